"""Cut KubeRay's CustomResourceDefinitions down to what the tests read.

    python -m tests.cluster.crds.trim FOLDER_WITH_THE_THREE_YAML_FILES

Keeps `spec.versions[name=v1].schema.openAPIV3Schema` as sorted JSON, gzipped without a time, so the
same input gives the same bytes: 3.3 MB become 31 kB. Nothing else is changed.
"""

import gzip
import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
NAMES = ("rayclusters", "rayjobs", "rayservices")


def trim(source: Path) -> dict[str, bytes]:
    """Return the trimmed files by name."""
    files = {}
    for name in NAMES:
        text = (source / f"ray.io_{name}.yaml").read_text()
        versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
        schema = next(v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1")
        content = json.dumps(schema, sort_keys=True, separators=(",", ":")).encode()
        files[f"{name}-v1.json.gz"] = gzip.compress(content, 9, mtime=0)
    return files


if __name__ == "__main__":
    for file, data in trim(Path(sys.argv[1])).items():
        (HERE / file).write_bytes(data)
