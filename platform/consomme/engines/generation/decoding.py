"""Choose tokens with transformers so that no row of a batch depends on its neighbours.

One decision is made here: a sampled token is the largest of score plus Gumbel noise, and the noise
comes from the request's own seed and the position. That is sampling from the same distribution, and
neither the batch, nor the order, nor the device's generator has a part in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from consomme.base.errors import RecipeError
from consomme.models.imports import import_transformers

# Shapes: B rows, T token positions, V vocabulary.

_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio; spreads seeds that are neighbours."""


class Nucleus:
    """Makes the largest score of each row a token sampled from its distribution."""

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        """Start at the first token.

        Args:
            seeds: One per row.
            temperature: Above 0.
            top_p: Share of the probability that may be sampled; at least one token may be.
        """
        self.seeds, self.temperature, self.top_p = list(seeds), temperature, top_p
        self.position = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with noise; what is outside the nucleus is minus infinity."""
        logits_BV = scores.float() / self.temperature
        if self.top_p < 1:
            sorted_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
            before_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
            before_BV[:, 0] = 0.0
            outside_BV = (before_BV >= self.top_p).scatter(-1, order_BV, before_BV >= self.top_p)
            logits_BV = logits_BV.masked_fill(outside_BV, -torch.inf)
        noise_BV = torch.stack([self._noise(seed, scores.shape[1]) for seed in self.seeds])
        self.position += 1
        return logits_BV + noise_BV.to(scores.device)

    def _noise(self, seed: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed((seed * _GOLDEN + self.position) % 2**63)
        return -torch.empty(size).exponential_(generator=generator).log()


class Patterns:
    """Lets each row only go on as its regular expression allows."""

    def __init__(self, patterns: Sequence[Any]) -> None:
        """Begin at the beginning.

        Args:
            patterns: By row, what `PatternCompiler` made, or None.
        """
        import xgrammar

        self._fill = xgrammar.allocate_token_bitmask
        self._apply = xgrammar.apply_token_bitmask_inplace
        self._matchers = [one and xgrammar.GrammarMatcher(one) for one in patterns]
        self._is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V); what a pattern forbids is minus infinity."""
        allowed = self._fill(len(self._matchers), scores.shape[1])
        for row, matcher in enumerate(self._matchers):
            if matcher is None or matcher.is_terminated():
                continue
            # A row that has ended in another way goes on with padding, which matches nothing.
            if self._is_first or matcher.accept_token(int(input_ids[row, -1])):
                matcher.fill_next_token_bitmask(allowed, row)
        self._is_first = False
        self._apply(scores, allowed.to(scores.device))
        return scores


class PatternCompiler:
    """Makes regular expressions ready for one model's tokens, each once."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Sequence[int]) -> None:
        """Look at the tokens.

        Args:
            tokenizer: The model's.
            vocab_size: Scores the model gives, which may be more than there are tokens.
            stop_ids: Tokens that end a text.
        """
        self._tokens = (tokenizer, vocab_size, list(stop_ids))
        self._compiler: Any = None
        self._made: dict[str, Any] = {}

    def compile(self, pattern: str) -> Any:
        """Make one ready.

        Raises:
            RecipeError: It is none, or the package that would hold a text to it is missing.
        """
        if pattern in self._made:
            return self._made[pattern]
        try:
            import xgrammar
        except ImportError as error:
            raise RecipeError(
                "a text is held to a pattern with the package xgrammar, which comes with vLLM and"
                " is not installed here: pip install 'consomme[cpu]' or 'consomme[gpu]'"
            ) from error
        if self._compiler is None:
            tokenizer, vocab_size, stop_ids = self._tokens
            tokens = xgrammar.TokenizerInfo.from_huggingface(
                tokenizer, vocab_size=vocab_size, stop_token_ids=stop_ids
            )
            self._compiler = xgrammar.GrammarCompiler(tokens, max_threads=1)
        try:
            self._made[pattern] = self._compiler.compile_regex(pattern)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"the pattern {pattern!r} is no regular expression that a text can be held to:"
                f" {error}"
            ) from error
        return self._made[pattern]


class Endings:
    """Watches each row's length, the strings that end a text, and the clock."""

    def __init__(
        self,
        num_prompt: int,
        limits: Sequence[int],
        stop: Sequence[str],
        decode: Callable[[list[int]], str],
        deadline_s: float,
    ) -> None:
        """Start the clock.

        Args:
            num_prompt: Tokens before the first new one.
            limits: Most new tokens, by row.
            stop: Strings that end a text.
            decode: Makes text of tokens.
            deadline_s: How long the batch may take.
        """
        self.num_prompt, self.limits = num_prompt, list(limits)
        self.stop, self.decode = tuple(stop), decode
        self.begin, self.deadline_s = time.monotonic(), deadline_s
        self.ended: dict[int, int] = {}
        """By row: new tokens when a string ended it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Say which rows are done: (B,)."""
        new_BT = input_ids[:, self.num_prompt :]
        if self.stop:
            for row, new in enumerate(new_BT.tolist()):
                if row not in self.ended and cut(self.decode(new), self.stop) is not None:
                    self.ended[row] = len(new)
        is_late = time.monotonic() - self.begin > self.deadline_s
        done = [
            is_late or row in self.ended or new_BT.shape[1] >= limit
            for row, limit in enumerate(self.limits)
        ]
        return torch.tensor(done, device=input_ids.device)


def generate(
    model: Any,
    inputs: dict[str, Any],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    pad_id: int,
    processors: Sequence[Any],
    endings: Endings,
) -> Tensor:
    """Let a model go on with some rows; how is said here alone, and not by the model's folder.

    Returns:
        The rows (B, T), what they began with included.
    """
    hf = import_transformers()
    model.generation_config = hf.GenerationConfig()
    rows_BT: Tensor = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        logits_processor=hf.LogitsProcessorList(processors),
        stopping_criteria=hf.StoppingCriteriaList([endings]),
    )
    return rows_BT


def version() -> str:
    """What decodes."""
    return f"transformers {import_transformers().__version__}"


def cut(text: str, stop: Sequence[str]) -> str | None:
    """Return a text up to the first of some strings; None if it holds none of them."""
    found = [at for at in (text.find(one) for one in stop if one) if at >= 0]
    return text[: min(found)] if found else None
