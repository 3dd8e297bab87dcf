"""Build the embedded emoji shards from the npm packages that carry the pictures and the CLDR names.

Run manually when a picture set or CLDR is updated. Users do not need it: the shards are shipped.

    mkdir build && cd build
    npm install --ignore-scripts @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 \
        @iconify-json/openmoji@1.2.29 @iconify-json/fluent-emoji-flat@1.2.6 \
        @iconify-json/emojione@1.2.3 @iconify-json/twemoji@1.2.5 emojibase-data@17.0.0
    apt-get install librsvg2-bin          # rsvg-convert draws the SVG files
    python -m consomme.datasets.build_emoji node_modules ../platform/consomme/datasets/data

Each picture is drawn once, at 64 px with its alpha channel, and stored as WebP; these bytes are the
sample. Skin tones are left out, because their names repeat the base name.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STYLES = ("noto", "noto-v1", "openmoji", "fluent-emoji-flat", "emojione", "twemoji")
LANGUAGES = ("en", "de", "fr", "es", "ja")
SIZE_PX = 64
QUALITY = 75


def slug(label: str) -> str:
    """Convert a CLDR name to the icon name that the picture packages use."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    plain = plain.lower().replace("’", "").replace("'", "").replace(".", "").replace("!", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def load_names(node_modules: Path) -> list[dict[str, Any]]:
    """Read the names and keywords of all base emoji in all languages, in Unicode order."""
    tables = {
        language: {
            entry["hexcode"].lower(): entry
            for entry in json.loads(
                (node_modules / "emojibase-data" / language / "data.json").read_text("utf-8")
            )
        }
        for language in LANGUAGES
    }
    names = []
    for code, entry in sorted(tables["en"].items(), key=lambda item: item[1].get("order", 10**9)):
        if "group" not in entry or entry["group"] == 2:  # regional letters and skin-tone swatches
            continue
        texts = {
            language: {"name": table[code]["label"], "keywords": table[code].get("tags", [])}
            for language, table in tables.items()
            if code in table
        }
        names.append({"code": code.replace("-fe0f", ""), "group": entry["group"], "texts": texts})
    return names


def icons_of(node_modules: Path, style: str, names: list[dict[str, Any]]) -> dict[str, str]:
    """Map code points to SVG text for one style; emoji that the style lacks are left out."""
    folder = node_modules / "@iconify-json" / style
    pack = json.loads((folder / "icons.json").read_text("utf-8"))
    chars = json.loads((folder / "chars.json").read_text("utf-8"))
    by_code = {code.replace("-fe0f", ""): name for code, name in chars.items()}
    icons, aliases = pack["icons"], pack.get("aliases", {})
    svg_by_code = {}
    for entry in names:
        label = entry["texts"]["en"]["name"]
        guesses = [by_code.get(entry["code"]), slug(label)]
        if label.startswith("flag: "):
            country = slug(label[6:])
            guesses += [f"flag-for-{country}", f"flag-for-flag-{country}"]
        for guess in guesses:
            name = aliases.get(guess, {}).get("parent", guess) if guess else None
            if name in icons:
                icon = icons[name]
                width = icon.get("width", pack.get("width", pack.get("height", 16)))
                height = icon.get("height", pack.get("height", 16))
                left, top = icon.get("left", 0), icon.get("top", 0)
                svg_by_code[entry["code"]] = (
                    '<svg xmlns="http://www.w3.org/2000/svg" '
                    'xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
                )
                break
    return svg_by_code


def draw(svg: str) -> bytes:
    """Render one SVG as a 64 px WebP with alpha."""
    command = ["rsvg-convert", "-w", str(SIZE_PX), "-h", str(SIZE_PX), "--keep-aspect-ratio"]
    png = subprocess.run(command, input=svg.encode(), capture_output=True, check=True).stdout
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (SIZE_PX, SIZE_PX), (0, 0, 0, 0))
    square.paste(drawn, ((SIZE_PX - drawn.width) // 2, (SIZE_PX - drawn.height) // 2))
    out = io.BytesIO()
    square.save(out, "WEBP", quality=QUALITY, method=6, alpha_quality=50)
    return out.getvalue()


def write_shard(path: Path, style: str, names: list[dict[str, Any]], icons: dict[str, str]) -> int:
    """Write one style as Parquet with Hugging Face image structs; return the number of rows."""
    available = [entry for entry in names if entry["code"] in icons]
    with ThreadPoolExecutor(2) as pool:
        pictures = list(pool.map(lambda entry: draw(icons[entry["code"]]), available))
    rows = []
    for entry, picture in zip(available, pictures, strict=True):
        english = entry["texts"]["en"]
        key = f"{style}-{entry['code']}"
        meta = {
            "style": style,
            "group": entry["group"],
            "keywords": english["keywords"],
            "names": {k: v["name"] for k, v in entry["texts"].items() if k != "en"},
        }
        rows.append(
            {
                "sample_id": key,
                "image": {"bytes": picture, "path": f"{key}.webp"},
                "caption": english["name"],
                "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True),
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", compression_level=19)
    return len(rows)


def main() -> None:
    """Build the shards of all styles and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    names = load_names(options.node_modules)
    for style in STYLES:
        path = options.out / f"emoji-{style}.parquet"
        count = write_shard(path, style, names, icons_of(options.node_modules, style, names))
        parser._print_message(f"{path.name}: {count} pictures, {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
