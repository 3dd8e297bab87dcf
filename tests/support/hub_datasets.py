"""Open folders of shards with Hugging Face `datasets`, without network."""

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"


def opened(folder: str | Path, cache: Path) -> Any:
    """The shards of a folder, as `datasets` opens it by its card."""
    import datasets

    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def pictures_of(row: dict[str, Any]) -> list[Any]:
    """The decoded pictures of a row, in the order of their names."""
    if "sample_id" in row:
        many = row.get("images") or []
        return [*many, *([row["image"]] if row.get("image") else [])]
    found = [value for _, value in sorted(row.items()) if hasattr(value, "getpixel")]
    for picture in found:
        picture.load()
    return found
