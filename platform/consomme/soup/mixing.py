"""Mix the weights of models, tensor by tensor and piece by piece, in memory that does not grow.

Threads mix pieces of some hundred thousand values, which are written in order, so memory depends on
the number of models and threads only. What all models have in common, byte for byte, is copied.
Models are read in the order of their labels, so the order in which they are named makes no
difference, not even in the last bit.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock, local
from typing import TYPE_CHECKING

import numpy as np

from consomme.base.errors import CheckpointError, RecipeError
from consomme.soup.arrays import (
    Floats,
    Raw,
    all_finite,
    is_float,
    stored_type,
    to_floats,
    to_stored,
)
from consomme.soup.blends import Blend, Candidate, Grouping, TensorGroups, members_of
from consomme.soup.formulas import Mixer
from consomme.soup.ingredients import Ingredient, LowRank, TensorSpec
from consomme.soup.likeness import check_compatible
from consomme.soup.methods import Average, MixMethod

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 18
"""Values of a piece: a megabyte as float32, which stays in a core's cache."""

_AHEAD = 3
STORED_AS = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Type as configurations name it -> as safetensors does."""


@dataclass(frozen=True, kw_only=True)
class ModelMix:
    """What is mixed, and how."""

    ingredients: tuple[Ingredient, ...]
    shares: tuple[float, ...]
    """Of the ingredients, summing to one."""

    method: MixMethod
    base: Ingredient | None
    dtype: str | None
    """Type of the mixed tensors in notation of safetensors; None: that of the first ingredient."""

    groups: TensorGroups | None = None
    """Tensors that have shares of their own, if there are such; `shares` are then the mean."""

    shares_G: tuple[tuple[float, ...], ...] = ()  # noqa: N815
    """Of each group, the shares of the ingredients."""

    @classmethod
    def of(
        cls,
        ingredients: Sequence[Ingredient],
        weights: Sequence[float] | None = None,
        *,
        method: MixMethod | None = None,
        base: Ingredient | None = None,
        dtype: str | None = None,
    ) -> ModelMix:
        """Check that models can be mixed.

        Args:
            ingredients: The models; configuration and tokenizer are those of the first one.
            weights: Of the models, in any unit; None: equal ones.
            method: A registered method; None: the weighted average.
            base: The model that all were tuned from.
            dtype: See `dtype`.

        Raises:
            CheckpointError: They cannot be mixed; see `check_compatible`.
            RecipeError: The weights are none, or the method needs a base.
        """
        chosen = Average() if method is None else method
        if chosen.needs_base and base is None:
            raise RecipeError(
                f"base: found none, but {type(chosen).__name__} mixes differences from the model"
                " that all were tuned from; name it"
            )
        check_compatible([*ingredients, *([base] if base else [])])
        return cls(
            ingredients=tuple(ingredients),
            shares=tuple(shares_of(len(ingredients), weights)),
            method=chosen,
            base=base,
            dtype=dtype,
        )

    @classmethod
    def of_candidate(
        cls,
        ingredients: Sequence[Ingredient],
        candidate: Candidate,
        groups: Mapping[Grouping, TensorGroups],
        *,
        method: MixMethod | None = None,
        base: Ingredient | None = None,
        dtype: str | None = None,
    ) -> ModelMix:
        """Return how a candidate is mixed, in memory and on disk.

        Args:
            ingredients: All of them.
            candidate: Which of them, in which parts.
            groups: What groupings mean for this architecture.
            method: As in `of`.
            base: As in `of`.
            dtype: As in `of`.

        Raises:
            CheckpointError: They cannot be mixed.
        """
        members = members_of(candidate)
        mix = cls.of([ingredients[k] for k in members], method=method, base=base, dtype=dtype)
        if not isinstance(candidate, Blend):
            return mix
        shares_G = tuple(tuple(shares[k] for k in members) for shares in candidate.shares())
        mean = tuple(math.fsum(some) / len(shares_G) for some in zip(*shares_G, strict=True))
        if len(shares_G) == 1:
            return replace(mix, shares=mean)
        return replace(mix, shares=mean, groups=groups[candidate.grouping], shares_G=shares_G)

    @property
    def used(self) -> list[tuple[Ingredient, float]]:
        """The models that have a share anywhere, by label, and their shares."""
        return self._with_shares(self.shares)

    def used_in(self, name: str) -> list[tuple[Ingredient, float]]:
        """Return the models that have a share of a tensor, by label, and their shares of it."""
        if self.groups is None:
            return self._with_shares(self.shares)
        return self._with_shares(self.shares_G[self.groups.group_of[name]])

    def _with_shares(self, shares: Sequence[float]) -> list[tuple[Ingredient, float]]:
        pairs = zip(self.ingredients, shares, strict=True)
        used = [(one, share) for one, share in pairs if share != 0.0]
        return sorted(used, key=lambda pair: (pair[0].name, pair[0].source))

    def stored_as(self, name: str) -> str:
        """Return the type in which a tensor is written."""
        own = self.ingredients[0].tensors[name].dtype
        return self.dtype if self.dtype and is_float(own) else own

    def tensors(self) -> Iterator[tuple[str, Raw]]:
        """Yield each mixed tensor, flat and as it is stored, in the order of the first model."""
        with MixReader(self) as reader:
            for name in self.ingredients[0].tensors:
                tensor = reader.open(name)
                mixed = np.empty(tensor.size, stored_type(self.stored_as(name)))
                for start, stop, piece in reader.mixed(tensor):
                    mixed[start:stop] = piece
                yield name, mixed


def shares_of(count: int, weights: Sequence[float] | None) -> list[float]:
    """Normalise weights to shares that sum to one; without `weights`, equal shares.

    Raises:
        RecipeError: The number of weights is wrong, or they are negative or sum to zero.
    """
    if weights is None:
        return [1.0 / count] * count
    if len(weights) != count:
        raise RecipeError(f"{len(weights)} weights for {count} ingredients: give one each")
    total = math.fsum(weights)
    if not all(math.isfinite(w) and w >= 0 for w in weights) or total <= 0:
        raise RecipeError(f"weights {list(weights)}: expected numbers >= 0 with a sum above zero")
    return [w / total for w in weights]


def mixed_tensors(mixture: ModelMix) -> Iterator[tuple[str, Tensor]]:
    """Yield the mixed tensors for an engine that holds the model: the same bits as on disk."""
    import torch

    types = {"BF16": torch.bfloat16}
    for name, raw in mixture.tensors():
        shape = mixture.ingredients[0].tensors[name].shape
        known = types.get(mixture.stored_as(name))
        tensor = torch.from_numpy(raw.view(np.int16) if known else raw)
        yield name, (tensor.view(known) if known else tensor).reshape(shape)


def average_ingredients(
    ingredients: Sequence[Ingredient], weights: Sequence[float] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Average models; see `mixed_tensors`.

    Raises:
        CheckpointError: They cannot be averaged; see `check_compatible`.
    """
    yield from mixed_tensors(ModelMix.of(ingredients, weights))


class MixReader:
    """Reads and mixes pieces; a context manager that closes its files and ends its threads."""

    def __init__(self, mixture: ModelMix) -> None:
        self.mixture = mixture
        self._files: dict[Path, int] = {}

    def __enter__(self) -> MixReader:
        """Start the threads."""
        self.num_threads = os.cpu_count() or 1
        self.pool = ThreadPoolExecutor(self.num_threads, "mix")
        # Of its own: who mixes a piece may wait until the whole tensor was looked at.
        self.looking = ThreadPoolExecutor(self.num_threads, "look")
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads and close the files."""
        self.pool.shutdown(cancel_futures=True)
        self.looking.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)

    def open(self, name: str) -> MixedTensor:
        """Return a tensor of all models."""
        base = self.mixture.base
        used = self.mixture.used_in(name)
        read = [*(one for one, _ in used), *([base] if base else [])]
        specs = [one.tensors[name] for one in read]
        # The first one in the order of the recipe: whole numbers, such as positions and counters,
        # have no average.
        first = next(one for one in self.mixture.ingredients if any(one is k for k, _ in used))
        return MixedTensor(
            name=name,
            specs=specs,
            files=[
                self._file(one.folder / spec.file) for one, spec in zip(read, specs, strict=True)
            ],
            labels=[one.name for one in read],
            updates=[one.updates.get(name) for one in read],
            shares=[share for _, share in used],
            first=next(k for k, one in enumerate(read) if one is first),
            has_base=base is not None,
            pool=self.looking,
        )

    def _file(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def mixed(self, tensor: MixedTensor) -> Iterator[tuple[int, int, Raw]]:
        """Yield start, stop and content of the pieces of a mixed tensor, in order."""
        stored = self.mixture.stored_as(tensor.name)
        mix: Callable[[int, int], Raw]
        if is_float(tensor.specs[0].dtype):
            mix = _shared_or(tensor, self.mixture.method, stored)
        else:
            mix = partial(tensor.raw, tensor.first)
        waiting: deque[tuple[int, int, Future[Raw]]] = deque()
        for start, stop in tensor.pieces():
            waiting.append((start, stop, self.pool.submit(mix, start, stop)))
            if len(waiting) >= _AHEAD * self.num_threads:
                begin, end, piece = waiting.popleft()
                yield begin, end, piece.result()
        for start, stop, piece in waiting:
            yield start, stop, piece.result()


def _shared_or(tensor: MixedTensor, method: MixMethod, stored: str) -> Callable[[int, int], Raw]:
    """Return a function that copies what all models share, and mixes the rest.

    The method is asked when a piece differs first, so frozen parts are read once.
    """
    lock = Lock()
    mixers: list[Mixer] = []

    def mixer() -> Mixer:
        with lock:
            if not mixers:
                mixers.append(method(tensor, tensor.shares))
            return mixers[0]

    def mix(start: int, stop: int) -> Raw:
        raws = [tensor.raw(k, start, stop) for k in range(len(tensor.specs))]
        types = {spec.dtype for spec in tensor.specs}
        is_shared = (
            len(types) == 1
            and not any(tensor.updates)
            and all(np.array_equal(raws[0], raw) for raw in raws[1:])
        )
        floats = [
            tensor.floats(k, raw, start) for k, raw in enumerate(raws[: 1 if is_shared else None])
        ]
        for k, values in enumerate(floats):
            tensor.check_finite(k, values)
        if is_shared and types == {stored}:
            return raws[0]
        if is_shared:
            mixed = floats[0]
        else:
            with tensor.having(start, stop, floats):
                mixed = mixer()(start, stop)
        found = to_stored(mixed, stored)
        tensor.check_in_range(found, stored)
        return found

    return mix


@dataclass(frozen=True, kw_only=True)
class MixedTensor:
    """One tensor of all models; see `consomme.soup.methods.Values`."""

    name: str
    specs: Sequence[TensorSpec]
    """Of the models, and of the base at the end if there is one."""

    files: Sequence[int]
    labels: Sequence[str]
    updates: Sequence[LowRank | None]
    """What adapters add, of those that are one."""

    shares: Sequence[float]
    """Of the models, summing to one."""

    first: int
    """The model whose whole numbers are taken."""

    has_base: bool
    pool: Executor
    at_hand: local = field(default_factory=local)
    """Of each thread: the piece that it mixes, already read."""

    @property
    def models(self) -> Sequence[str]:
        """Labels of the models, without the base."""
        return self.labels[: len(self.labels) - self.has_base]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.specs[0].shape)

    @property
    def row(self) -> int:
        """Values of a row."""
        return self.specs[0].shape[-1] if self.specs[0].shape else 1

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield start and stop of pieces of whole rows."""
        step = max(1, PIECE // max(1, self.row)) * self.row
        return ((at, min(at + step, self.size)) for at in range(0, self.size, max(1, step)))

    def read(self, model: int, start: int, stop: int) -> Floats:
        """Return values of a model; -1 is the base."""
        if getattr(self.at_hand, "place", None) == (start, stop):
            floats: Floats = self.at_hand.floats[model]
            return floats
        return self.floats(model, self.raw(model, start, stop), start)

    def floats(self, model: int, raw: Raw, start: int) -> Floats:
        """Return stored values of a model as numbers to compute with, with its adapter."""
        values = to_floats(raw, self.specs[model].dtype)
        update = self.updates[model]
        return values if update is None else update.add_to(values, start)

    @contextlib.contextmanager
    def having(self, start: int, stop: int, floats: Sequence[Floats]) -> Iterator[None]:
        """Let this thread read a piece from memory; nobody may change it there."""
        self.at_hand.place, self.at_hand.floats = (start, stop), floats
        try:
            yield
        finally:
            self.at_hand.place = self.at_hand.floats = None

    def raw(self, model: int, start: int, stop: int) -> Raw:
        """Return values as they are stored."""
        spec = self.specs[model]
        kind = stored_type(spec.dtype)
        content = np.empty(stop - start, kind)
        view = memoryview(content.view(np.uint8).data)
        filled = 0
        while filled < len(view):
            place = spec.start + start * kind.itemsize + filled
            count = os.preadv(self.files[model], [view[filled:]], place)
            if not count:
                raise CheckpointError(
                    f"{self.labels[model]}: {spec.file} ended within {self.name}; copy it again"
                )
            filled += count
        return content

    def check_in_range(self, mixed: Raw, stored: str) -> None:
        """Refuse mixed values that are too large for the type in which they are stored."""
        if not all_finite(mixed, stored):
            raise CheckpointError(
                f"{self.name} has mixed values beyond the range of {stored}; set dtype=bfloat16 or"
                " float32"
            )

    def check_finite(self, model: int, values: Floats) -> None:
        """Refuse values that are no numbers: they would be in the soup, too."""
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.labels[model]}: {self.name} holds NaN or infinite values; leave this model"
                " out, or train it again"
            )
