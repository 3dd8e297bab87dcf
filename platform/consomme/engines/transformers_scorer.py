"""Score what is said about pictures with a model's own forward pass: with the picture and without.

Decisions made here. A unit's samples are taken in windows, cut by what they hold and nothing else,
so a score does not depend on how many workers there are. In a window each picture is encoded once,
however many captions it has. Rows with a picture and rows without go through the language model
together, sorted by length and cut by a token budget; its head runs on spoken positions only, a few
megabytes of logits at a time, in float32. A micro-batch that does not fit into memory is halved.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from consomme.base.errors import CheckpointError, DataError
from consomme.base.sample import Turn
from consomme.models.dialogue import Dialogue, Pixels, Spoken, pad_and_join
from consomme.models.weights import open_scorer

# Shapes: B rows, T token positions, S spoken tokens of all rows, V vocabulary, W width, P pictures.

TokenNll = Callable[[Tensor, Tensor], Tensor]

WINDOW_ROWS = 256
WINDOW_VALUES = 1 << 27
"""Numbers in the prepared pictures of a window: half a gigabyte."""

_PAD = 0


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be scored: a conversation, and the picture it is about."""

    turns: tuple[Turn, ...]
    image: Image.Image | None = None
    key: object = None
    """Names the picture; neighbours with the same key share its encoding."""

    @classmethod
    def about(cls, prompt: str, caption: str, image: Image.Image | None = None) -> Question:
        """Ask for a caption."""
        turns = (Turn(role="user", content=prompt), Turn(role="assistant", content=caption))
        return cls(turns=turns, image=image)


@dataclass(frozen=True, kw_only=True)
class TurnScore:
    """What one assistant turn scored, in nats."""

    nll: float
    nll_text: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the assistant's words scored, in nats."""

    nll: float
    """Picture, prompt and earlier tokens as context."""

    nll_text: float
    """Prompt and earlier tokens only."""

    num_tokens: int
    """Spoken tokens: each answer, and the token that ends its turn."""

    max_token_nll: float
    """Nats of the most surprising token, with the picture."""

    turns: tuple[TurnScore, ...] = ()
    """The same by turn."""

    is_truncated: bool = False
    """Only the first tokens were scored."""


@dataclass(frozen=True, kw_only=True)
class NotScored:
    """Why one conversation has no score."""

    reason: str
    """A word from `consomme.base.sample.REJECT_REASONS`."""

    detail: str


@dataclass(frozen=True)
class _Row:
    """One pass of one conversation through the language model."""

    number: int
    spoken: Spoken
    picture: object = None


@dataclass
class _Window:
    """Conversations that are worked on together."""

    rows: list[_Row] = field(default_factory=list)
    pictures: dict[object, Pixels] = field(default_factory=dict)


class TransformersScorer:
    """Holds one model and scores conversations about pictures."""

    def __init__(
        self,
        model_path: str | Path,
        token_nll: TokenNll,
        *,
        token_budget: int | None = None,
        max_caption_tokens: int = 256,
        truncates: bool = False,
        threads: int = 1,
        dtype: str = "auto",
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder.
            token_nll: (logits_SV, labels_S) -> nats (S,); `consomme.curate.perplexity.token_nll`.
            token_budget: Padded tokens per micro-batch; bounds memory. None takes what is quick:
                1,024 on a CPU, whose caches hold no more, and 16,384 on a GPU.
            max_caption_tokens: Answers that are longer are not scored.
            truncates: Score the first `max_caption_tokens` of longer ones instead.
            threads: torch threads of this process.
            dtype: Of the weights: `float32`, `bfloat16`, or `auto`, which is bfloat16 on a GPU.
        """
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_scorer(model_path, getattr(torch, dtype))
        self.model.to(self.device)
        self.dialogue = Dialogue(self.model, processor)
        self.token_nll = token_nll
        self.token_budget = token_budget or (16_384 if self.device.type == "cuda" else 1_024)
        self.max_caption_tokens, self.truncates = max_caption_tokens, truncates
        self.body = self.model.model
        self.head = self.model.get_output_embeddings()
        self._body_takes = frozenset(inspect.signature(self.body.forward).parameters)
        self._eyes_take: frozenset[str] = frozenset()
        if self.dialogue.has_eyes:
            if "mm_encoder_outputs" not in self._body_takes:
                raise CheckpointError(
                    f"{type(self.model).__name__} cannot be given pictures that were encoded"
                    " before; it is no family that consomme scores with"
                )
            look = self.body.get_image_features
            self._eyes_take = frozenset(inspect.signature(inspect.unwrap(look)).parameters)
        text = self.model.config.get_text_config()
        self.max_positions: int = text.max_position_embeddings
        chunk = (1 << 24) // max(1, self.head.weight.shape[0])
        self._head_rows = max(16, chunk)

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `questions`: a `Score`, or why there is none.
        """
        found: dict[int, NotScored] = {}
        seen: dict[int, list[tuple[Tensor, list[tuple[int, int]]]]] = {}
        truncated: set[int] = set()
        for window in self._windows(questions, found, truncated):
            features = self._encode_pictures(window.pictures)
            order = sorted(
                range(len(window.rows)), key=lambda k: (len(window.rows[k].spoken.input_ids), k)
            )
            nats: dict[int, Tensor] = {}
            for group in _groups(
                [(k, len(window.rows[k].spoken.input_ids)) for k in order], self.token_budget
            ):
                rows = [window.rows[k] for k in group]
                nats |= dict(zip(group, self._nats(rows, features), strict=True))
            for k, row in enumerate(window.rows):
                seen.setdefault(row.number, []).append((nats[k], row.spoken.spans))
        scores: list[Score | NotScored] = []
        for number in range(len(questions)):
            if number in found:
                scores.append(found[number])
            else:
                (with_image, spans), (without, _) = seen[number][0], seen[number][-1]
                scores.append(_put_together(with_image, without, spans, number in truncated))
        return scores

    def _windows(
        self,
        questions: Sequence[Question],
        bad: dict[int, NotScored],
        truncated: set[int],
    ) -> Iterator[_Window]:
        """Encode conversations, and hand them out a window at a time."""
        window, values = _Window(), 0
        for number, question in enumerate(questions):
            try:
                rows = self._rows(number, question)
            except DataError as error:
                bad[number] = NotScored(reason="text_not_encodable", detail=str(error))
                continue
            longest = max(rows, key=lambda row: len(row.spoken.input_ids)).spoken
            if longest.num_tokens > self.max_caption_tokens:
                if not self.truncates:
                    detail = f"{longest.num_tokens} tokens, at most {self.max_caption_tokens}"
                    bad[number] = NotScored(reason="caption_too_long", detail=detail)
                    continue
                rows = [_cut(row, self.max_caption_tokens) for row in rows]
                longest = max(rows, key=lambda row: len(row.spoken.input_ids)).spoken
                truncated.add(number)
            if len(longest.input_ids) > self.max_positions:
                detail = (
                    f"{len(longest.input_ids)} tokens, the model has {self.max_positions} positions"
                )
                bad[number] = NotScored(reason="sequence_too_long", detail=detail)
                continue
            for row in rows:
                window.rows.append(row)
                if row.spoken.pixels is not None and row.picture not in window.pictures:
                    window.pictures[row.picture] = row.spoken.pixels
                    values += row.spoken.pixels.num_values
            if len(window.rows) >= 2 * WINDOW_ROWS or values >= WINDOW_VALUES:
                yield window
                window, values = _Window(), 0
        if window.rows:
            yield window

    def _rows(self, number: int, question: Question) -> list[_Row]:
        blind = _Row(number, self.dialogue.encode(question.turns, None))
        if question.image is None or not self.dialogue.has_eyes:
            return [blind]
        spoken = self.dialogue.encode(question.turns, question.image, question.key)
        picture = ("unnamed", number) if question.key is None else question.key
        return [_Row(number, spoken, picture), blind]

    def _encode_pictures(self, pictures: dict[object, Pixels]) -> dict[object, list[Tensor]]:
        """Encode each picture once.

        Returns:
            By picture: its tokens (tokens, W), and what deeper layers get, for families that have
            it.
        """
        found: dict[object, list[Tensor]] = {}
        keys = list(pictures)
        weights = [(k, pictures[key].num_values) for k, key in enumerate(keys)]
        # As many numbers as tokens of the language model would take, roughly.
        for group in _groups(weights, self.token_budget * 1024):
            chosen = [keys[k] for k in group]
            parts = self._halving(self._look, [pictures[key] for key in chosen])
            found |= dict(zip(chosen, parts, strict=True))
        return found

    def _look(self, pixels: Sequence[Pixels]) -> list[list[Tensor]]:
        names = [name for name in pixels[0].inputs if name in self._eyes_take]
        inputs = {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}
        inputs = {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        output = self.body.get_image_features(**inputs, return_dict=True)
        streams = [_flat(output.pooler_output)]
        streams += [_flat(deep) for deep in getattr(output, "deepstack_features", None) or []]
        counts = [one.num_tokens for one in pixels]
        split = [torch.split(stream, counts) for stream in streams]
        self._example = output
        return [list(parts) for parts in zip(*split, strict=True)]

    def _nats(self, rows: Sequence[_Row], features: dict[object, list[Tensor]]) -> list[Tensor]:
        """Run rows through the language model; nats of their spoken tokens, float32 on the CPU."""
        parts: list[Tensor] = self._halving(lambda some: self._forward(some, features), rows)
        return parts

    def _forward(self, rows: Sequence[_Row], features: dict[object, list[Tensor]]) -> list[Tensor]:
        width = max(len(row.spoken.input_ids) for row in rows)
        ids_BT = torch.full((len(rows), width), _PAD)
        types_BT = torch.zeros((len(rows), width), dtype=torch.long)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        for k, row in enumerate(rows):
            length = len(row.spoken.input_ids)
            ids_BT[k, :length] = torch.tensor(row.spoken.input_ids)
            types_BT[k, :length] = torch.tensor(row.spoken.token_types)
            mask_BT[k, :length] = 1
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._body_takes:
                inputs[name] = types_BT
        seeing = [row for row in rows if row.spoken.pixels is not None]
        if seeing:
            inputs |= self._beside([row.spoken.pixels for row in seeing if row.spoken.pixels])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if seeing:
            inputs["mm_encoder_outputs"] = {
                "image": self._seen([features[row.picture] for row in seeing])
            }
        hidden_BTW = self.body(**inputs, use_cache=False).last_hidden_state
        # The token at t is predicted from what is known at t - 1.
        places = [
            [t - 1 for begin, end in row.spoken.spans for t in range(begin, end)] for row in rows
        ]
        rows_S = torch.tensor([k for k, some in enumerate(places) for _ in some])
        places_S = torch.tensor([t for some in places for t in some])
        labels_S = ids_BT[rows_S, places_S + 1].to(self.device)
        hidden_SW = hidden_BTW[rows_S.to(self.device), places_S.to(self.device)]
        nats = [
            self.token_nll(self.head(hidden), labels)
            for hidden, labels in zip(
                torch.split(hidden_SW, self._head_rows),
                torch.split(labels_S, self._head_rows),
                strict=True,
            )
        ]
        whole_S = torch.cat(nats).float().cpu()
        return list(torch.split(whole_S, [len(some) for some in places]))

    def _beside(self, pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """What the language model wants to know of pictures, such as their grids."""
        wanted = self._body_takes - {"pixel_values", "pixel_attention_mask"}
        names = [name for name in pixels[0].inputs if name in wanted]
        return {name: pad_and_join([one.inputs[name] for one in pixels]) for name in names}

    def _seen(self, parts: Sequence[list[Tensor]]) -> Any:
        """Put the tokens of some pictures together as the family's own encoder would."""
        streams = [torch.cat(stream) for stream in zip(*parts, strict=True)]
        output = copy.copy(self._example)
        like = self._example.pooler_output
        first = streams[0]
        if isinstance(like, Tensor):
            output.pooler_output = first.reshape(-1, *like.shape[1:])
        else:
            output.pooler_output = [first]
        if len(streams) > 1:
            output.deepstack_features = [[stream] for stream in streams[1:]]
        return output

    def _halving(
        self, run: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any]
    ) -> list[Any]:
        """Run on some items; if memory does not suffice, on half of them at a time."""
        try:
            return run(items)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(items) == 1 or not _is_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(items) // 2
        return self._halving(run, items[:half]) + self._halving(run, items[half:])


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _flat(value: Any) -> Tensor:
    """Lay out picture tokens one below the other: (tokens, W)."""
    whole = value if isinstance(value, Tensor) else torch.cat(list(value))
    return whole.reshape(-1, whole.shape[-1])


def _cut(row: _Row, num_tokens: int) -> _Row:
    """Keep the first spoken tokens of a row, and nothing behind them."""
    left, spans = num_tokens, []
    for begin, end in row.spoken.spans:
        if left > 0:
            spans.append((begin, min(end, begin + left)))
            left -= end - begin
    stop = spans[-1][1]
    spoken = Spoken(
        input_ids=row.spoken.input_ids[:stop],
        spans=spans,
        token_types=row.spoken.token_types[:stop],
        pixels=row.spoken.pixels,
    )
    return _Row(row.number, spoken, row.picture)


def _groups(items: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Cut (number, size) into groups whose largest size times their count is within a budget."""
    groups: list[list[int]] = []
    largest = 0
    for number, size in items:
        if groups and (len(groups[-1]) + 1) * max(largest, size) <= budget:
            groups[-1].append(number)
            largest = max(largest, size)
        else:
            groups.append([number])
            largest = size
    return groups


def _put_together(
    with_image_S: Tensor, without_S: Tensor, spans: Sequence[tuple[int, int]], is_truncated: bool
) -> Score:
    sizes = [end - begin for begin, end in spans]
    turns = tuple(
        TurnScore(
            nll=float(seen.double().sum()), nll_text=float(blind.double().sum()), num_tokens=size
        )
        for seen, blind, size in zip(
            torch.split(with_image_S, sizes), torch.split(without_S, sizes), sizes, strict=True
        )
    )
    return Score(
        nll=float(with_image_S.double().sum()),
        nll_text=float(without_S.double().sum()),
        num_tokens=sum(sizes),
        max_token_nll=float(with_image_S.max()),
        turns=turns,
        is_truncated=is_truncated,
    )
