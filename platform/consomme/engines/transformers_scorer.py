"""Score what is said about pictures with a model's own forward pass: with the picture and without.

Decisions made here. A unit's samples are taken in windows, cut by what they hold and nothing else,
so a score does not depend on how many workers there are. In a window each picture is encoded once,
and goes through the language model once, however many captions it has (see `trees`). Rows with a
picture and rows without go together, sorted by length and cut by a token budget; the head runs on
spoken positions only, a few megabytes of logits at a time, in float32. A micro-batch that does not
fit into memory is halved.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import CheckpointError
from consomme.engines.questions import (
    Encoded,
    Limits,
    NotScored,
    Passage,
    Question,
    Score,
    encode,
    put_together,
)
from consomme.engines.trees import Growth, Tree, lay_out, plant
from consomme.models.dialogue import Pixels, pad_and_join
from consomme.models.prefix_dialogue import dialogue_for
from consomme.models.weights import open_scorer

# Shapes: B rows, T token positions, S spoken tokens of all rows, V vocabulary, W width, P pictures.

TokenNll = Callable[[Tensor, Tensor], Tensor]

WINDOW_ROWS = 256
WINDOW_VALUES = 1 << 27
"""Numbers in the prepared pictures of a window: half a gigabyte."""


@dataclass
class _Window:
    """Conversations that are worked on together."""

    conversations: list[tuple[int, Encoded]] = field(default_factory=list)
    """Which question, and how it is in tokens."""

    passages: list[Passage] = field(default_factory=list)
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
            dtype: Of the weights: `float32`, `bfloat16`, `float16`, or `auto`, which is bfloat16 on
                a GPU and float32 on a CPU.
        """
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        self.model, processor = open_scorer(model_path, getattr(torch, dtype))
        self.model.to(self.device)
        self.dialogue = dialogue_for(self.model.config, processor)
        self.token_nll = token_nll
        self.token_budget = token_budget or (16_384 if self.device.type == "cuda" else 1_024)
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
        self.limits = Limits(
            max_caption_tokens=max_caption_tokens,
            truncates=truncates,
            max_positions=text.max_position_embeddings,
        )
        self._has_three_positions = hasattr(self.body, "get_rope_index")
        if self._has_three_positions:
            self._rope_takes = frozenset(inspect.signature(self.body.get_rope_index).parameters)
        self.growth = self._growth(text)
        chunk = (1 << 24) // max(1, self.head.weight.shape[0])
        self._head_rows = max(16, chunk)

    def _growth(self, text: Any) -> Growth | None:
        """How trees may grow; None for families whose attention has rules of its own."""
        if "token_type_ids" in self._body_takes or "position_ids" not in self._body_takes:
            # Gemma's pictures and PaliGemma's prompts look ahead.
            return None
        if text._attn_implementation not in ("sdpa", "eager"):
            return None
        # A token costs about 24 W² in dense layers and 4 T W in attention, so this is a sixth more.
        return Growth(cheap=max(256, text.hidden_size), most=getattr(text, "sliding_window", None))

    @torch.inference_mode()
    def score(self, questions: Sequence[Question]) -> list[Score | NotScored]:
        """Score each conversation.

        Returns:
            Aligned with `questions`: a `Score`, or why there is none.
        """
        found: dict[int, Score | NotScored] = {}
        for window in self._windows(questions, found):
            features = self._encode_pictures(window.pictures)
            nats = iter(self._nats(window.passages, features))
            for number, encoded in window.conversations:
                parts = [next(nats) for _ in encoded.passages]
                spans = encoded.passages[0].spoken.spans
                found[number] = put_together(parts[0], parts[-1], spans, encoded.is_truncated)
        return [found[number] for number in range(len(questions))]

    def _windows(
        self, questions: Sequence[Question], found: dict[int, Score | NotScored]
    ) -> Iterator[_Window]:
        """Encode conversations, and hand them out a window at a time; note what is not scored."""
        window, values = _Window(), 0
        for number, question in enumerate(questions):
            encoded = encode(self.dialogue, question, number, self.limits)
            if isinstance(encoded, NotScored):
                found[number] = encoded
                continue
            window.conversations.append((number, encoded))
            window.passages += encoded.passages
            for passage in encoded.passages:
                pixels = passage.spoken.pixels
                if pixels is not None and passage.picture not in window.pictures:
                    window.pictures[passage.picture] = pixels
                    values += pixels.num_values
            if len(window.conversations) >= WINDOW_ROWS or values >= WINDOW_VALUES:
                yield window
                window, values = _Window(), 0
        if window.passages:
            yield window

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

    def _nats(
        self, passages: Sequence[Passage], features: dict[object, list[Tensor]]
    ) -> list[Tensor]:
        """Run passages through the language model; nats of their spoken tokens (S,), on the CPU."""
        trees = plant(passages, self.growth)
        trees.sort(key=lambda tree: (len(tree), tree.branches[0].ids, tree.branches[0].numbers))
        nats: dict[int, Tensor] = {}
        sizes = [(k, len(tree)) for k, tree in enumerate(trees)]
        for group in _groups(sizes, self.token_budget):
            some = [trees[k] for k in group]
            parts = self._halving(lambda few: self._forward(few, features), some)
            branches = [branch for tree in some for branch in tree.branches]
            for branch, part in zip(branches, parts, strict=True):
                nats |= dict.fromkeys(branch.numbers, part)
        return [nats[number] for number in range(len(passages))]

    def _forward(self, trees: Sequence[Tree], features: dict[object, list[Tensor]]) -> list[Tensor]:
        """Return nats of the spoken tokens, (S,) float32 on the CPU, branch by branch."""
        layout = lay_out(trees, self._three_positions if self._has_three_positions else None)
        inputs: dict[str, Any] = {"input_ids": layout.ids_BT, "attention_mask": layout.mask}
        if layout.positions is not None:
            inputs["position_ids"] = layout.positions
            inputs["attention_mask"] = layout.mask.to(self.model.dtype)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in self._body_takes:
                inputs[name] = layout.types_BT
        seeing = [tree for tree in trees if tree.pixels is not None]
        if seeing:
            inputs |= self._beside([tree.pixels for tree in seeing if tree.pixels])
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        if seeing:
            inputs["mm_encoder_outputs"] = {
                "image": self._seen([features[tree.picture] for tree in seeing])
            }
        hidden_BTW = self.body(**inputs, use_cache=False).last_hidden_state
        hidden_SW = hidden_BTW[
            torch.tensor(layout.rows, device=self.device),
            torch.tensor(layout.predictors, device=self.device),
        ]
        labels_S = torch.tensor(layout.labels, device=self.device)
        nats = [
            self.token_nll(self.head(hidden), labels)
            for hidden, labels in zip(
                torch.split(hidden_SW, self._head_rows),
                torch.split(labels_S, self._head_rows),
                strict=True,
            )
        ]
        return list(torch.split(torch.cat(nats).float().cpu(), layout.counts))

    def _three_positions(self, tree: Tree) -> Tensor:
        """Where a stem with a picture is, for families that count time, height and width."""
        assert tree.pixels is not None
        beside = self._beside([tree.pixels])
        inputs = {name: value for name, value in beside.items() if name in self._rope_takes}
        positions, _ = self.body.get_rope_index(
            input_ids=torch.tensor([tree.ids]),
            mm_token_type_ids=torch.tensor([tree.types]),
            attention_mask=torch.ones((1, len(tree.ids)), dtype=torch.long),
            **inputs,
        )
        found: Tensor = positions[:, 0].cpu()
        return found

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
            halves = _halves(items)
            if not halves or not _is_memory(error):
                raise
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return [part for half in halves for part in self._halving(run, half)]


def _halves(items: Sequence[Any]) -> list[Sequence[Any]]:
    if len(items) > 1:
        half = len(items) // 2
        return [items[:half], items[half:]]
    if isinstance(items[0], Tree) and not items[0].is_plain:
        return [[tree] for tree in items[0].halves()]
    return []


def _is_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _flat(value: Any) -> Tensor:
    """Lay out picture tokens one below the other: (tokens, W)."""
    whole = value if isinstance(value, Tensor) else torch.cat(list(value))
    return whole.reshape(-1, whole.shape[-1])


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
