"""Describe shards for Hugging Face `datasets`: features in Parquet, and a card beside the shards.

`datasets` takes the types of columns from the first shard or the first members of a tar, and fails
on others that differ. The card, `README.md` beside the shards or above, names the columns of all
of them, so that `datasets.load_dataset(FOLDER)` opens shards whose samples have different numbers
of images, captions or conversations. What a sample lacks is None there.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml

CARD = "README.md"
"""Name of the card in a folder of shards."""

_FIELD = "field/"

_TURNS = [{"name": "role", "dtype": "string"}, {"name": "content", "dtype": "string"}]

_MESSAGES = [
    {"name": "role", "dtype": "string"},
    {
        "name": "content",
        "list": [{"name": "type", "dtype": "string"}, {"name": "text", "dtype": "string"}],
    },
    {"name": "image_indices", "list": "int32"},
    {"name": "is_labelled", "dtype": "bool"},
]

_PARQUET: Mapping[str, Mapping[str, Any]] = {
    "sample_id": {"dtype": "string"},
    "image": {"dtype": "image"},
    "image_name": {"dtype": "string"},
    "turns": {"list": _TURNS},
    "images": {"list": "image"},
    "messages": {"list": _MESSAGES},
    "source": {"dtype": "string"},
    "meta": {"dtype": "string"},
}
"""Columns of consomme's Parquet shards, as a card describes them."""

_MEMBERS = {"txt": "string", "json": "json"}
"""Types of members of a tar that are no images, as `datasets` decodes them."""


def count_fields(names: Iterable[str]) -> dict[str, float]:
    """Count columns or members, as sums of a unit that add up over units.

    Args:
        names: Columns of a shard, or endings of the members of a tar, as often as they occur.
    """
    return {f"{_FIELD}{name}": float(number) for name, number in sorted(Counter(names).items())}


def card(
    name: str, suffix: str, sums: Mapping[str, float], num_samples: int, folder: str = ""
) -> bytes:
    """Return the card of a folder of shards.

    Args:
        name: Of the run that wrote them.
        suffix: Of the shards: `tar` or `parquet`.
        sums: Of all units, with those of `count_fields`.
        num_samples: Samples in all shards.
        folder: Of the shards, relative to the card, with a slash at its end; empty if they lie
            beside it.
    """
    names = sorted(key.removeprefix(_FIELD) for key in sums if key.startswith(_FIELD))
    if suffix == "parquet":
        features = [{"name": key, **_PARQUET[key]} for key in _PARQUET if key in names]
    else:
        features = [{"name": key, "dtype": _MEMBERS.get(key, "image")} for key in names]
        features += [{"name": key, "dtype": "string"} for key in ("__key__", "__url__")]
    head = {
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": f"{folder}*.{suffix}"}],
            }
        ],
        "dataset_info": {"features": features},
    }
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    columns = "\n".join(f"- `{one['name']}`" for one in features)
    return _TEXT.format(
        front=front, name=PurePosixPath(name), num=f"{num_samples:,}", columns=columns
    ).encode()


_TEXT = """\
---
{front}---

# {name}

{num} samples, written by consomme. Each consomme recipe reads this folder, and so does Hugging
Face `datasets`:

```python
import datasets

data = datasets.load_dataset("FOLDER", split="train")
```

Columns, which are None where a sample has no such part:

{columns}
"""
