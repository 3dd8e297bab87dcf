"""Compare a fast way of running a model with its plain forward pass, when the model is opened.

Fast ways put several conversations into one batch or one row. Whether that leaves a model's numbers
as they are depends on every layer, input and mask of its family, so nothing is assumed: a few probe
conversations are run in the fast way, and one by one, unpadded, through the model's own `forward`.
The fastest way with equal numbers is used; if a way fails, a warning says what is lost; if all
fail, the model is refused. Scorer, trainer and writer use the same probes and the same reference.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import consomme
from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.base.places import cache_folder
from consomme.base.sample import ImageRef, Turn
from consomme.models.encoded import EncodedChat, EncodedPrompt

# Shapes: T token positions, S labelled tokens, V vocabulary.

_LOG = logging.getLogger(__name__)

FAULTS = (Exception,)
"""What a family raises that does not support what it is asked for: anything, even `Exception`
itself, as outputs of transformers do."""

EXACT_TOLERANCE = 1e-4
"""Maximum difference in float32, relative to the nats of a token. Differences by rounding were
below 5e-6 in all families that were tried, faults at least 2e-3."""

MAX_CACHED = 1000
"""Results of checks that are kept on this machine."""

_QUESTION = "describe the image."
_ANSWERS = ("a large red circle", "two small squares and a green star below them")
_SIZES = ((64, 48), (40, 72))
_LONG_ANSWER = "a red circle and a blue square and "


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A conversation that a model is checked with."""

    name: str
    turns: tuple[Turn, ...]
    images: tuple[Image.Image, ...] = ()
    image_keys: tuple[str, ...] = ()
    """Name the images; those with the same key are the same."""


def make_probes(*, has_vision: bool) -> list[Probe]:
    """Return the probes: two answers to one question, two images of different shape, no image.

    Answers to one question about one image share a prefix, and so do those without an image.
    """
    first, second = (_conversation(answer) for answer in _ANSWERS)
    probes = [
        Probe(name="text 1", turns=first),
        Probe(name="text 2", turns=second),
    ]
    if has_vision:
        first_image, second_image = make_images()
        probes += [
            Probe(
                name="image 1, text 1", turns=first, images=(first_image,), image_keys=("probe 1",)
            ),
            Probe(
                name="image 1, text 2", turns=second, images=(first_image,), image_keys=("probe 1",)
            ),
            Probe(
                name="image 2, text 1", turns=first, images=(second_image,), image_keys=("probe 2",)
            ),
        ]
    return probes


def make_image_probes() -> list[Probe]:
    """Return conversations with two images: in one turn, with two answers; and in two turns."""
    first_image, second_image = make_images()
    images, keys = (first_image, second_image), ("probe 1", "probe 2")
    one, two = (_conversation(answer) for answer in _ANSWERS)
    pair = (ImageRef(0), ImageRef(1), _QUESTION)
    later = Turn(role="user", content=("and now, in", ImageRef(1), "?"))
    shapes = [
        ("two images, text 1", (replace(one[0], content=pair), one[1])),
        ("two images, text 2", (replace(two[0], content=pair), two[1])),
        (
            "two turns with an image each",
            (replace(one[0], content=(ImageRef(0), _QUESTION)), one[1], later, two[1]),
        ),
    ]
    probes = [
        Probe(name=name, turns=turns, images=images, image_keys=keys) for name, turns in shapes
    ]
    alone = Probe(name="image 2 alone", turns=one, images=(second_image,), image_keys=("probe 2",))
    return [*probes, alone]


def make_images() -> list[Image.Image]:
    """Return images of different shape."""
    return [_noise(number, *size) for number, size in enumerate(_SIZES)]


def make_long_probe(chat: Any, num_tokens: int, images: Sequence[Image.Image] = ()) -> Probe:
    """Return a probe that is longer than `num_tokens`.

    Args:
        chat: The model's encoder of conversations.
        num_tokens: Such as the model's attention window.
        images: For families that take no conversation without one.
    """
    unit = len(chat.encode(_conversation(_LONG_ANSWER * 9), images).input_ids) - len(
        chat.encode(_conversation(_LONG_ANSWER), images).input_ids
    )
    repeats = 2 + 8 * (num_tokens + 16) // max(unit, 1)
    turns = _conversation((_LONG_ANSWER * repeats).strip())
    return Probe(name=f"text longer than {num_tokens} tokens", turns=turns, images=tuple(images))


def _conversation(answer: str) -> tuple[Turn, ...]:
    return (
        Turn(role="user", content=_QUESTION),
        Turn(role="assistant", content=answer.strip()),
    )


def _noise(number: int, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encode_probes(chat: Any, probes: Sequence[Probe]) -> list[EncodedChat]:
    """Encode probes.

    Raises:
        CheckpointError: The model's processor or its template does not take one of them.
    """
    rows = []
    for probe in probes:
        with family_faults(f"cannot prepare the probe conversation {probe.name!r}"):
            try:
                rows.append(chat.encode(probe.turns, probe.images, probe.image_keys))
            except DataError as error:
                raise CheckpointError(
                    f"the model's own processor or chat template does not take a plain question"
                    f" and answer (probe {probe.name!r}): {error}; no sample could be encoded, so"
                    " change chat_template.jinja or the processor's settings beside the model"
                ) from error
    return rows


@contextlib.contextmanager
def family_faults(what: str) -> Iterator[None]:
    """Raise what a family's own code raises as `CheckpointError`, with a remedy.

    Raises:
        CheckpointError: For every fault in `FAULTS`; running out of memory passes unchanged.
    """
    try:
        yield
    except (torch.OutOfMemoryError, DataError, CheckpointError):
        raise
    except FAULTS as error:
        raise CheckpointError(
            f"{what}: found {type(error).__name__}: {error}; expected a model that takes what its"
            " own processor makes of pictures of two shapes and of text. Correct the processor's"
            " settings beside the model (sizes of pictures and patches); if they are right, this"
            " family does not support what consomme needs, so use another one"
        ) from error


def accepted_inputs(model: Any) -> frozenset[str]:
    """Return the names of inputs that a model's `forward` takes, itself or through `**kwargs`."""
    outer = inspect.signature(model.forward).parameters
    names = set(outer)
    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in outer.values())
    base = getattr(model, "base_model", model)
    if takes_more and base is not model:
        names |= set(inspect.signature(base.forward).parameters)
    return frozenset(names)


def plain_inputs(model: Any, row: EncodedChat | EncodedPrompt) -> dict[str, Tensor]:
    """Return one unpadded conversation as its own processor gave it, on the model's device."""
    accepted = accepted_inputs(model)
    inputs = {
        "input_ids": torch.tensor([row.input_ids]),
        "attention_mask": torch.ones((1, len(row.input_ids)), dtype=torch.long),
        **{name: value[None] for name, value in row.token_inputs.items()},
        **(row.pixels.inputs if row.pixels is not None else {}),
    }
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if name in accepted
    }


@torch.no_grad()
def plain_nll(model: Any, row: EncodedChat, num_copies: int = 1) -> Tensor:
    """Return the nll of the labelled tokens by the model's own `forward`: (S,) float32, CPU.

    Args:
        model: In eval mode.
        row: One conversation; it is not padded.
        num_copies: Rows of a batch of this conversation, which must have no image then; to
            measure how much a number depends on the size of a batch.
    """
    inputs = plain_inputs(model, row)
    if num_copies > 1:
        inputs = {name: torch.cat([value] * num_copies) for name, value in inputs.items()}
    logits_TV = model(**inputs).logits[0]
    if len(logits_TV) != len(row.input_ids):
        raise CheckpointError(
            f"the forward pass of this {model.config.model_type} model returns logits of"
            f" {len(logits_TV)} positions for {len(row.input_ids)} tokens, expected one for each:"
            " it does not predict the next token; use another family"
        )
    labelled = [t for begin, end in row.spans for t in range(begin, end)]
    before_S = torch.tensor(labelled, device=logits_TV.device) - 1
    labels_S = torch.tensor([row.input_ids[t] for t in labelled], device=logits_TV.device)
    nll_S = torch.nn.functional.cross_entropy(
        logits_TV[before_S].float(), labels_S, reduction="none"
    )
    return nll_S.cpu()


LOOKS_AHEAD = {torch.float64: 1e-3, torch.float32: 1e-3}
"""Difference by which a model is taken to attend to later tokens; 5 % in 16 bits, where a mixture
may choose other experts for another length."""


def check_causal(model: Any, rows: Sequence[EncodedChat], plain: Sequence[Tensor]) -> None:
    """Check that an answer's tokens have the same nats if the rest of the answer is cut off.

    Args:
        model: In eval mode.
        rows: Of the probes; a short one without an image is run again.
        plain: Their nats, from `plain_nll`.

    Raises:
        CheckpointError: A token's nats depend on tokens after it: the model sees the token that it
            is asked for, so its numbers are no likelihoods of a text.
    """
    fitting = [(row, nll_S) for row, nll_S in zip(rows, plain, strict=True) if row.num_tokens > 3]
    texts = [pair for pair in fitting if pair[0].pixels is None] or fitting
    if not texts:
        return
    row, nll_S = min(texts, key=lambda pair: len(pair[0].input_ids))
    begin, end = row.spans[0]
    size = (begin + end) // 2
    cut = dataclasses.replace(
        row,
        input_ids=row.input_ids[:size],
        spans=[(begin, size)],
        token_types=row.token_types[:size],
        token_inputs={name: value[:size] for name, value in row.token_inputs.items()},
    )
    found_S = plain_nll(model, cut)
    difference = relative_difference(found_S, nll_S[: len(found_S)])
    limit = LOOKS_AHEAD.get(model.dtype, 0.05)
    # A model whose numbers change from call to call has another fault.
    if difference > limit and relative_difference(plain_nll(model, row), nll_S) <= limit:
        raise CheckpointError(
            f"this {model.config.model_type} model attends to tokens that come after: the nats of"
            f" an answer's first tokens differ by {difference:.1%} with the rest of the answer and"
            " without; expected a causal language model, so set is_decoder: true in config.json if"
            " the family has it, or use another family"
        )


def relative_difference(ours_S: Tensor, plain_S: Tensor) -> float:
    """Return the mean difference of tokens, relative to the mean nats of a token.

    Tokens that are not finite in both are left out: such a model is told from its scores.
    """
    ours_S, plain_S = ours_S.double(), plain_S.double()
    if ours_S.shape != plain_S.shape:
        return float("inf")
    is_finite_S = ours_S.isfinite() | plain_S.isfinite()
    if not bool(is_finite_S.any()):
        return 0.0
    ours_S, plain_S = ours_S[is_finite_S], plain_S[is_finite_S]
    difference = float((ours_S - plain_S).abs().mean() / plain_S.abs().mean().clamp(min=0.1))
    return difference if difference == difference else float("inf")


def find_tolerance(model: Any, rows: Sequence[EncodedChat], plain: Sequence[Tensor]) -> float:
    """Return the maximum difference that rounding explains, in the model's own dtype.

    In 16 bits it is four times the difference that the size of a batch makes to the same unpadded
    conversation, within one and four units of the dtype's precision: 0.8 and 3 % in bfloat16.
    """
    epsilon = torch.finfo(model.dtype).eps
    if epsilon < EXACT_TOLERANCE:
        return EXACT_TOLERANCE
    noise = 0.0
    for row, plain_S in zip(rows, plain, strict=True):
        if row.pixels is None:
            try:
                found_S = plain_nll(model, row, num_copies=3)
            except FAULTS:
                continue
            noise = max(noise, relative_difference(found_S, plain_S))
    return min(max(4 * noise, epsilon), 4 * epsilon)


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What the check of one model found."""

    kind: str
    """What was checked, such as `scoring`."""

    way: str
    """The fastest way with the numbers of the plain forward pass."""

    tolerance: float
    """Maximum relative difference."""

    difference: float
    """Largest relative difference of the chosen way."""

    failed: dict[str, str] = field(default_factory=dict)
    """Faster ways, and what differed."""

    not_checked: dict[str, str] = field(default_factory=dict)
    """What was too costly to check, and what is done instead."""

    alone_beyond: int | None = None
    """Rows of more tokens run alone, whatever the way is; None for no such length."""

    several_alone: bool = False
    """Rows of several images run alone, whatever the way is."""

    several_refused: str | None = None
    """Why rows of several images cannot be used; None if they can."""

    filler_way: str = ""
    """How passes without an image get one; empty for a check of another kind."""

    num_probes: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        """Return the result as one line."""
        return (
            f"self-check of {self.kind}: {self.way} equal plain forward passes of"
            f" {self.num_probes} probes within {self.tolerance:.1e} (largest difference"
            f" {self.difference:.1e}), {self.seconds:.1f} s"
        )

    def to_json(self) -> bytes:
        """Return this check as JSON."""
        return json.dumps(asdict(self), indent=2, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SelfCheck:
        """Return a check from JSON."""
        return cls(**json.loads(data))


Way = Callable[[], Sequence[Tensor]]
"""Runs all probes and returns the nll of the labelled tokens (S,) of each."""


def choose_way(
    kind: str,
    ways: Mapping[str, Way],
    names: Sequence[str],
    plain: Sequence[Tensor],
    tolerance: float,
    lost: Mapping[str, str],
    family: str,
    *,
    failed: Mapping[str, str] | None = None,
    not_checked: Mapping[str, str] | None = None,
    is_quiet: bool = False,
) -> SelfCheck:
    """Try ways, fastest first, and choose the first one with the numbers of the plain pass.

    Args:
        kind: What is checked.
        ways: By name, fastest first.
        names: Of the probes.
        plain: Nll of the labelled tokens of each probe, from `plain_nll`.
        tolerance: From `find_tolerance`.
        lost: What is lost if a way cannot be used, by its name.
        family: Named in messages.
        failed: Faster ways that are not tried, and why.
        not_checked: What is too costly to check, and what is done instead.
        is_quiet: Say nothing of ways that cannot be used: hardly anything is lost.

    Raises:
        CheckpointError: No way has these numbers.
    """
    start = time.perf_counter()
    failed = dict(failed or {})
    for way, run in ways.items():
        try:
            found = run()
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:
            failed[way] = f"{type(error).__name__}: {str(error)[:200]}"
            continue
        worst, name = max(
            (relative_difference(ours_S, plain_S), name)
            for ours_S, plain_S, name in zip(found, plain, names, strict=True)
        )
        if worst <= tolerance:
            result = SelfCheck(
                kind=kind,
                way=way,
                tolerance=tolerance,
                difference=worst,
                failed=failed,
                not_checked=dict(not_checked or {}),
                num_probes=len(names),
                seconds=time.perf_counter() - start,
            )
            if not is_quiet:
                warn_of_lost(result, lost, family)
            return result
        failed[way] = f"{name} differs by {worst:.2%} of its nats"
    tried = "; ".join(f"{way}: {what}" for way, what in failed.items())
    raise CheckpointError(
        f"{kind}: no way of running this {family} model gives the numbers of its plain forward"
        f" pass: found {tried}; expected at most {tolerance:.1e}; use another family"
    )


def warn_of_lost(check: SelfCheck, lost: Mapping[str, str], family: str) -> None:
    """Log one warning if faster ways cannot be used; it says what is lost."""
    if check.failed or check.not_checked:
        reasons = [
            *(f"{lost.get(way, way)} ({what})" for way, what in check.failed.items()),
            *(f"{what} is not checked: {instead}" for what, instead in check.not_checked.items()),
        ]
        _LOG.warning(
            "%s: this %s model runs with %s, which is slower: %s",
            check.kind,
            family,
            check.way,
            "; ".join(reasons),
        )


def cache_key(content_hash: str, settings: Mapping[str, Any]) -> str:
    """Return the key of a check: the model's content, the settings, and all versions.

    consomme's own code of models counts by its content, so a change of it is checked again.
    """
    import transformers

    code = hashlib.sha256()
    package = Path(consomme.__file__).parent
    for folder in ("models", "engines/scoring", "train", "engines/generation"):
        for path in sorted((package / folder).glob("*.py")):
            code.update(path.read_bytes())
    parts = {
        "model": content_hash,
        "settings": dict(settings),
        "versions": [torch.__version__, transformers.__version__],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "code": code.hexdigest(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def cached_check(
    model: Any,
    kind: str,
    model_hash: str | None,
    settings: Mapping[str, Any],
    lost: Mapping[str, str],
    run: Callable[[], SelfCheck],
) -> SelfCheck:
    """Return the cached result of a check, or run it and cache the result.

    Args:
        model: On the device of the check.
        kind: What is checked.
        model_hash: Of the model's content; None runs the check every time.
        settings: Besides the model's dtype and device, what the result depends on.
        lost: What is lost if a way cannot be used, by its name; said of a cached result too.
        run: Runs the check.
    """
    start = time.perf_counter()
    if model_hash is None:
        return replace(run(), seconds=time.perf_counter() - start)
    on = {"kind": kind, "dtype": str(model.dtype), "device_type": model.device.type}
    key = cache_key(model_hash, {**settings, **on})
    found = load_check(key)
    if found is not None:
        warn_of_lost(found, lost, model.config.model_type)
        return found
    found = replace(run(), seconds=time.perf_counter() - start)
    store_check(key, found)
    return found


def _cache_file(key: str) -> Path:
    return cache_folder("selfchecks") / f"{key[:32]}.json"


def load_check(key: str) -> SelfCheck | None:
    """Return the cached result of a check on this machine, or None."""
    try:
        path = _cache_file(key)
        check = SelfCheck.from_json(path.read_bytes())
        os.utime(path)
    except (OSError, ValueError, TypeError, RecipeError):
        return None
    return check


def store_check(key: str, check: SelfCheck) -> None:
    """Cache the result of a check on this machine; a full disk costs the cache and nothing else."""
    try:
        path = _cache_file(key)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        partial.write_bytes(check.to_json())
        os.replace(partial, path)
        _forget_old_checks(path.parent)
    except (OSError, RecipeError) as error:
        _LOG.info("cannot cache the self-check: %s", error)


def _forget_old_checks(folder: Path) -> None:
    """Remove the results that were used least recently, and what dead processes left."""
    used = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in used[:-MAX_CACHED]:
        path.unlink(missing_ok=True)
