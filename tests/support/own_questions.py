"""Questions of a user in files: about the colors of scenes, and texts alone."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

from consomme.datasets import scenes
from tests.evaluate.test_file_kinds import write_tsv

COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "black", "pink")


def colors(folder: Path, first_seed: int, num: int) -> dict[str, Any]:
    """Multiple choice about images, as VLMEvalKit has it; the model writes the letter or color."""
    rng, rows = random.Random(first_seed), []
    for seed in range(first_seed, first_seed + 20 * num):
        scene = scenes.make_scene(seed)
        asked = next((q for q in scenes.questions(scene, seed) if q.kind == "color"), None)
        if asked is None:
            continue
        options = [asked.answer, *rng.sample([c for c in COLORS if c != asked.answer], 3)]
        rng.shuffle(options)
        image = base64.b64encode(scenes.encode(scenes.render(scene))).decode()
        rows.append(
            {"index": len(rows), "image": image, "question": asked.question,
             **dict(zip("ABCD", options, strict=True)),
             "answer": "ABCD"[options.index(asked.answer)]}
        )  # fmt: skip
        if len(rows) == num:
            break
    file = write_tsv(folder / f"colors-{first_seed}.tsv", rows)
    # The nano VLM knows colors, and no letters.
    return {"name": "multiple_choice", "file": file, "prompt": "{question}\n{options}"} | {
        "answer_by": "text_likelihood"
    }


def texts(folder: Path, first_seed: int, num: int) -> dict[str, Any]:
    """Held-out sentences, alone."""
    lines = [
        json.dumps({"text": scenes.caption(scenes.make_scene(seed))})
        for seed in range(first_seed, first_seed + num)
    ]
    file = folder / f"texts-{first_seed}.jsonl"
    file.write_text("\n".join(lines))
    return {"name": "likelihood", "file": str(file)}


def open_colors(folder: Path, first_seed: int, num: int) -> dict[str, Any]:
    """The same as `colors`, answered by writing."""
    node = colors(folder, first_seed, num)
    rows = Path(node["file"]).read_text().splitlines()
    names = rows[0].split("\t")
    asked = []
    for line in rows[1:]:
        row = dict(zip(names, line.split("\t"), strict=True))
        kept = {key: row[key] for key in ("index", "image", "question")}
        asked.append({**kept, "answer": row[row["answer"]]})
    file = write_tsv(folder / f"open-{first_seed}.tsv", asked)
    return {"name": "open", "file": file, "prompt": "{question}"}


def weighted(*parts: dict[str, Any]) -> dict[str, Any]:
    """The mean of several, the first one twice."""
    return {
        "name": "weighted",
        "parts": [{"benchmark": p, "weight": 2.0 if not k else 1.0} for k, p in enumerate(parts)],
    }
