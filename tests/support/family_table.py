"""The table of families: what consomme does with each, against plain transformers.

    python -m tests.support.family_table [FAMILY ...]

Every cell is a real run of a tiny random model with its family's own processor. The reference is
plain transformers: one conversation at a time, unpadded, in float64, or in float32 where a family
has no float64 kernels. The results go to `tests/benchmarks/results/families.json`, from which
`tests.benchmarks.tables` writes the page; named families are added to those that stand there.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.sample import Turn
from consomme.curate.perplexity import token_nll
from consomme.engines.generation.requests import Generation, Request
from consomme.engines.generation.transformers import TransformersEngine
from consomme.engines.scoring.requests import Score, ScoringRequest
from consomme.engines.scoring.transformers import TransformersScorer
from consomme.models.anatomy import anatomy
from consomme.models.batches import Batcher, map_tensors
from consomme.models.chat_prefix import chat_encoder_for
from consomme.models.weights import open_model
from consomme.train.batch_check import check_batches, row_layout
from consomme.train.loop import sum_nll
from tests.support.families import FAMILIES, noise, write
from tests.support.messages import to_messages
from tests.support.more_families import MORE_FAMILIES
from tests.support.new_families import NEW_FAMILIES
from tests.support.table_families import MADE_HERE

TABLE = FAMILIES | MORE_FAMILIES | MADE_HERE | NEW_FAMILIES

VERBS = ("score", "anatomy", "train", "pack", "write")
OK, SLOWER, REFUSED, WRONG, CRASH = "ok", "slower", "refused", "wrong", "crash"

PROMPT = "describe the image."
LONG = "a large red circle and a small blue square beside it and more of it " * 3
ANSWERS = ("a large red circle at the top left", "star", LONG.strip(), f"{LONG}it is green")
SIZES = ((40, 40), (90, 30))
TOLERANCE = 1e-4
SHOWN = 300
RESULTS = Path(__file__).parents[1] / "benchmarks/results/families.json"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one verb does with one family."""

    state: str
    detail: str = ""


class Plain:
    """A family through plain transformers: its processor, its `forward`, its `generate`."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model, self.processor = open_model(folder, dtype)
        # LLaVA's template ends answers with a space; the model was trained with this token.
        self.end = "</s>" if folder.name == "llava" else ""
        self.words = getattr(self.processor, "tokenizer", self.processor)
        self.has_vision = self.words is not self.processor

    def inputs(
        self, turns: Sequence[Turn], image: Image.Image | None, **options: Any
    ) -> dict[str, Any]:
        """What the family's own processor makes of one conversation."""
        if not (getattr(self.processor, "chat_template", None) or self.words.chat_template):
            return self.inputs_without_template(turns, image)
        if self.has_vision and not self.processor.chat_template:
            self.processor.chat_template = self.words.chat_template
        turns = [replace(t, content=t.content + self.end * (t.role == "assistant")) for t in turns]
        text = self.processor.apply_chat_template(
            to_messages(turns, has_image=image is not None, has_parts=self.has_vision),
            tokenize=False,
            **options,
        )
        begins = self.words.bos_token and text.startswith(self.words.bos_token)
        more = {"return_tensors": "pt", "add_special_tokens": not begins}
        if self.model.config.model_type == "cosmos3_edge":
            # The model asks for what its processor gives on request only.
            more["return_mm_token_type_ids"] = True
        output: Any
        if not self.has_vision:
            output = self.words([text], **more)
        elif image is None:
            try:
                output = self.processor(text=[text], **more)
            except (ValueError, TypeError, AttributeError, LookupError):
                # Some processors take no text without an image.
                output = self.words([text], **more)
        else:
            try:
                output = self.processor(text=[text], images=[[image]], **more)
            except (ValueError, TypeError, AttributeError):
                output = self.processor(text=[text], images=[image], **more)
        return self.as_inputs(output)

    def as_inputs(self, output: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.to(self.model.dtype) if value.is_floating_point() else value
            for name, value in output.items()
            if isinstance(value, torch.Tensor) and name != "labels"
        }

    def inputs_without_template(
        self, turns: Sequence[Turn], image: Image.Image | None
    ) -> dict[str, Any]:
        """PaliGemma has no template: a prefix, and a suffix."""
        question, *answers = [turn.content for turn in turns]
        if image is not None:
            output = self.processor(
                text=[f"<image>{question}"], images=[[image]], suffix=answers or None,
                return_tensors="pt",
            )  # fmt: skip
            if not answers:
                output["token_type_ids"] = torch.zeros_like(output["input_ids"])
            return self.as_inputs(output)
        head = self.words(f"<bos>{question}\n", add_special_tokens=False)["input_ids"]
        tail = [self.words(f"{a}<eos>", add_special_tokens=False)["input_ids"] for a in answers]
        ids = [*head, *(tail[0] if tail else [])]
        types = [0] * len(head) + [1] * (len(ids) - len(head))
        return {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}

    def span(self, turns: Sequence[Turn], image: Image.Image | None) -> tuple[int, int]:
        """Where the answer's tokens are, its end of turn included."""
        prompt = self.inputs(turns[:1], image, add_generation_prompt=True)["input_ids"][0].tolist()
        ids = self.inputs(turns, image)["input_ids"][0].tolist()
        begin = next(
            (t for t, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), len(prompt)
        )
        special = set(self.words.all_special_ids) | {
            token for token, added in self.words.added_tokens_decoder.items() if added.special
        }
        end = next(t for t in range(begin, len(ids)) if ids[t] in special) + 1
        said = self.words.decode(ids[begin : end - 1]).strip()
        # Tokenizers that join the space after a colon to the first word.
        while said != turns[1].content and begin < len(prompt):
            begin += 1
            said = self.words.decode(ids[begin : end - 1]).strip()
        assert said == turns[1].content, (said, turns[1].content)
        return begin, end

    def forward(self, inputs: Mapping[str, Any]) -> Any:
        return self.model(**inputs).logits

    @torch.no_grad()
    def nll(self, turns: Sequence[Turn], image: Image.Image | None) -> tuple[float, int]:
        inputs = self.inputs(turns, image)
        begin, end = self.span(turns, image)
        logp_TV = self.forward(inputs)[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0].tolist()
        return -sum(float(logp_TV[t - 1, ids[t]]) for t in range(begin, end)), end - begin

    @torch.no_grad()
    def written(self, turns: Sequence[Turn], image: Image.Image | None, count: int) -> list[int]:
        inputs = self.inputs(turns, image, add_generation_prompt=True)
        ids = self.model.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=self.words.eos_token_id,
            pad_token_id=self.words.pad_token_id,
        )
        found: list[int] = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return found


def conversation(answer: str) -> tuple[Turn, ...]:
    return (Turn(role="user", content=PROMPT), Turn(role="assistant", content=answer))


def picture(number: int) -> Image.Image:
    return noise(number % 2, *SIZES[number % 2])


def plain_references(folder: Path) -> tuple[Plain, list[tuple[float, int, float]]]:
    """Open a family for reference and score all conversations, in float64 where it has kernels."""
    for dtype in (torch.float64, torch.float32):
        plain = Plain(folder, dtype)
        try:
            return plain, [
                (*plain.nll(conversation(a), picture(k)), plain.nll(conversation(a), None)[0])
                if plain.has_vision
                else (*plain.nll(conversation(a), None), plain.nll(conversation(a), None)[0])
                for k, a in enumerate(ANSWERS)
            ]
        except RuntimeError:
            if dtype == torch.float32:
                raise
    raise AssertionError


def score(folder: Path) -> Cell:
    """Scores of several budgets against plain forward passes."""
    scorer = TransformersScorer(folder, token_nll)
    _, expected = plain_references(folder)
    requests = [
        ScoringRequest(turns=conversation(a), images=(picture(k),), keys=(k % 2,))
        for k, a in enumerate(ANSWERS)
    ]
    worst, worst_is = 0.0, ""
    for budget in (1, 200, 100_000):
        scorer.token_budget = budget
        for number, (found, (nll, count, nll_text)) in enumerate(
            zip(scorer.score(requests), expected, strict=True)
        ):
            if not isinstance(found, Score):
                return Cell(state=CRASH, detail=f"answer {number} is a reject: {found.detail}")
            if found.num_tokens != count:
                return Cell(state=WRONG, detail=f"{found.num_tokens} tokens, expected {count}")
            for what, ours, theirs in (("nll", found.nll, nll), ("text", found.nll_text, nll_text)):
                difference = abs(ours - theirs) / theirs
                if difference > worst:
                    worst, worst_is = difference, f"{what} of answer {number}, budget {budget}"
    if worst > TOLERANCE:
        return Cell(state=WRONG, detail=f"{worst:.2%} ({worst_is}), {scorer.check}")
    if scorer.check.failed or scorer.check.not_checked:
        return Cell(state=SLOWER, detail=scorer.way)
    return Cell(state=OK)


def train(folder: Path, *, packs: bool = False) -> Cell:
    """The loss of a step, of samples with images and without, against plain forward passes."""
    model, processor = open_model(folder)
    chat = chat_encoder_for(model.config, processor)
    batcher = Batcher(model, chat.tokenizer)
    check = check_batches(model, chat, batcher, packs=packs)
    layout = row_layout(check, batcher, micro_batch=len(ANSWERS), pack_tokens=1 << 20)
    plain, expected = plain_references(folder)
    has_image = [plain.has_vision and k != 2 for k in range(len(ANSWERS))]
    rows = [
        chat.encode(conversation(answer), [picture(k)] if has_image[k] else ())
        for k, answer in enumerate(ANSWERS)
    ]
    wanted = sum(nll if has_image[k] else text for k, (nll, _, text) in enumerate(expected))
    model, _ = open_model(folder, plain.model.dtype)
    batcher = Batcher(model, chat.tokenizer)
    lengths = [len(row.input_ids) for row in rows]
    loss = 0.0
    for together in layout.split(lengths, 1)[0]:
        some = [rows[k] for row in together for k in row]
        is_packed = layout.pack_tokens is not None and not layout.is_alone(len(some[0].input_ids))
        batch = batcher.pack(some) if is_packed else batcher.collate(some)
        batch = map_tensors(batch, lambda v: v.to(model.dtype) if v.is_floating_point() else v)
        with torch.no_grad():
            loss += float(sum_nll(model, batch))
    difference = abs(loss - wanted) / wanted
    if difference > TOLERANCE:
        return Cell(state=WRONG, detail=f"{difference:.2%}, {check}")
    if check.failed or check.not_checked:
        return Cell(state=SLOWER, detail=check.way)
    return Cell(state=OK)


def find_parts(folder: Path) -> Cell:
    """Parts against what gradients of a picture and of words reach."""
    plain = Plain(folder, torch.float32)
    model = plain.model
    found = anatomy(model)
    groups = {
        "vision_encoder": found.vision_encoder,
        "projector": found.projector,
        "embeddings": found.embeddings,
        "head": found.head,
        **found.sides,
        **{f"layer {k}": layer for k, layer in enumerate(found.layers)},
    }
    parts = {name: part for part, some in groups.items() for name in some}
    if set(parts) != {name for name, _ in model.named_parameters()}:
        return Cell(state=WRONG, detail="parameters of no part")
    num_layers = model.config.get_text_config().num_hidden_layers
    if len(found.layers) != num_layers:
        return Cell(state=WRONG, detail=f"{len(found.layers)} layers, expected {num_layers}")
    of_images = reached_by(plain, picture(0)) if plain.has_vision else set()
    try:
        of_words = reached_by(plain, None)
    except (TypeError, ValueError):
        # The family takes no text without an image.
        assert of_images
        of_words, of_images = set(), set()
    for name in of_words:
        if parts[name] in ("vision_encoder", "projector", *found.sides):
            return Cell(state=WRONG, detail=f"{name} is {parts[name]}, but words pass through it")
    for name in of_images - of_words:
        if parts[name] not in ("vision_encoder", "projector") and "layer" not in parts[name]:
            return Cell(state=WRONG, detail=f"{name} is {parts[name]}, but only images pass")
    if plain.has_vision and not found.vision_encoder and not found.projector:
        return Cell(state=WRONG, detail="no part for images")
    return Cell(state=OK)


def reached_by(plain: Plain, image: Image.Image | None) -> set[str]:
    """Names of the parameters that one conversation's outputs depend on."""
    # RWKV changes its weights in eval mode.
    plain.model.train().zero_grad()
    with torch.enable_grad():
        logits = plain.forward(plain.inputs(conversation(ANSWERS[0]), image))
        (
            logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        ).sum().backward()
    return {
        name
        for name, p in plain.model.named_parameters()
        if p.grad is not None and bool((p.grad != 0).any())
    }


def written(folder: Path) -> Cell:
    """Greedy texts of a batch against plain `generate`, one prompt at a time."""
    engine = TransformersEngine(folder)
    questions = ("star?", "what color is the triangle?", "describe the image.")
    plain = Plain(folder, torch.float32)
    kinds: list[Callable[[int], Any]] = [lambda _: None]
    if plain.has_vision:
        kinds.append(picture)
    requests, expected = [], []
    for kind in kinds:
        for k, question in enumerate(questions):
            turns = [Turn(role="user", content=question)]
            image = kind(k)
            requests.append(Request.of_prompt(question, () if image is None else [image]))
            expected.append(plain.written(turns, kind(k), 6))
    engine.sampling = type(engine.sampling)(max_tokens=6)
    engine._decode_ids = lambda ids: " ".join(str(i) for i in ids)  # type: ignore[method-assign]
    for found, ids in zip(engine.generate(requests), expected, strict=True):
        if not isinstance(found, Generation):
            return Cell(state=CRASH, detail=f"a reject: {found.detail}")
        if found.text != " ".join(str(i) for i in ids):
            return Cell(state=WRONG, detail=f"{found.text} instead of {ids}, {engine.check}")
    if engine.check.failed:
        return Cell(state=SLOWER, detail=engine.check.way)
    return Cell(state=OK)


RUNS: Mapping[str, Callable[[Path], Cell]] = {
    "score": score,
    "anatomy": find_parts,
    "train": train,
    "pack": partial(train, packs=True),
    "write": written,
}


@contextlib.contextmanager
def warnings_seen() -> Iterator[list[str]]:
    """Collect what consomme warns of."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                seen.append(record.getMessage())

    handler = Keep()
    logger = logging.getLogger("consomme")
    logger.addHandler(handler)
    try:
        yield seen
    finally:
        logger.removeHandler(handler)


def run_cell(verb: str, folder: Path) -> Cell:
    """Run one cell; a slower way without a warning is a fault."""
    with warnings_seen() as seen:
        try:
            cell = RUNS[verb](folder)
        except (CheckpointError, RecipeError) as error:
            cell = Cell(state=REFUSED, detail=str(error))
        # That a cell raises nothing else is what the table is about.
        except Exception as error:  # noqa: BLE001
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            cell = Cell(state=CRASH, detail=what)
    if cell.state == SLOWER and not any("slower" in line for line in seen):
        cell = Cell(state=WRONG, detail=f"{cell.detail} without a warning")
    return replace(cell, detail=cell.detail.replace(str(folder), folder.name))


def run_family(name: str, folder: Path) -> dict[str, Cell]:
    """Write a tiny model of a family and run all verbs with it."""
    write_family(TABLE[name], folder)
    return {verb: run_cell(verb, folder) for verb in VERBS}


def write_family(build: Callable[[], tuple[Any, Any]], folder: Path) -> None:
    """Write a model; of a family that needs a package that is not installed, its config."""
    torch.manual_seed(0)
    made, processor = build()
    if isinstance(made, torch.nn.Module):
        write(build, folder)
        return
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file({"none": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})


def main(names: Sequence[str]) -> None:
    """Run families, print their rows, and keep them."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    if names and RESULTS.exists():
        kept = json.loads(RESULTS.read_text())["rows"]
        rows = {row["family"]: row for row in kept if row["family"] in TABLE}
    for name in names or TABLE:
        with tempfile.TemporaryDirectory() as folder:
            cells = run_family(name, Path(folder) / name)
        rows[name] = {"family": name, "cells": {verb: asdict(cell) for verb, cell in cells.items()}}
        shown = [f"{c.state}{c.detail and ': '}{c.detail[:SHOWN]}" for c in cells.values()]
        sys.stdout.write(f"| {name} | {' | '.join(shown)} |\n")
        sys.stdout.flush()
        result = {
            "date": str(datetime.date.today()),
            "transformers": transformers.__version__,
            "rows": [rows[name] for name in TABLE if name in rows],
        }
        RESULTS.write_text(f"{json.dumps(result, indent=1)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
