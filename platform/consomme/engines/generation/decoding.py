"""Decode with transformers so that no row of a batch depends on the other rows.

Sampling takes the token with the largest score plus Gumbel noise, and the noise depends on the
request's own seed and the position. That samples from the same distribution, and the batch, the
order and the device's generator have no influence.
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
"""2^64 divided by the golden ratio; spreads neighbouring seeds."""


class GumbelLogitsProcessor:
    """Adds seeded Gumbel noise, so that the largest score of each row is a sampled token.

    Called like a `LogitsProcessor` of transformers; samples with a temperature and top-p.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float) -> None:
        """Start at the first new token.

        Args:
            seeds: One per row.
            temperature: Above 0.
            top_p: Share of the probability mass to sample from; at least one token is kept.
        """
        self.seeds, self.temperature, self.top_p = list(seeds), temperature, top_p
        self.position = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with noise; tokens outside the nucleus are minus infinity."""
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


class RegexLogitsProcessor:
    """Masks the tokens that a row's regular expression does not allow next.

    Called like a `LogitsProcessor` of transformers.
    """

    def __init__(self, grammars: Sequence[Any]) -> None:
        """Start at the first new token.

        Args:
            grammars: For each row what `RegexCompiler` returned, or None.
        """
        import xgrammar

        self._fill = xgrammar.allocate_token_bitmask
        self._apply = xgrammar.apply_token_bitmask_inplace
        self._matchers = [one and xgrammar.GrammarMatcher(one) for one in grammars]
        self._is_first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V); tokens that are not allowed are minus infinity."""
        allowed = self._fill(len(self._matchers), scores.shape[1])
        for row, matcher in enumerate(self._matchers):
            if matcher is None or matcher.is_terminated():
                continue
            # A row that ended otherwise continues with padding, which no expression accepts.
            if self._is_first or matcher.accept_token(int(input_ids[row, -1])):
                matcher.fill_next_token_bitmask(allowed, row)
        self._is_first = False
        self._apply(scores, allowed.to(scores.device))
        return scores


class RegexCompiler:
    """Compiles regular expressions to grammars over one model's tokens, each once."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Sequence[int]) -> None:
        """Keep what a grammar needs to know about the tokens.

        Args:
            tokenizer: The model's.
            vocab_size: Number of scores the model returns, which may exceed the number of tokens.
            stop_ids: Tokens that end a text.
        """
        self._tokens = (tokenizer, vocab_size, list(stop_ids))
        self._compiler: Any = None
        self._grammars: dict[str, Any] = {}

    def compile(self, pattern: str) -> Any:
        """Compile one regular expression.

        Raises:
            RecipeError: It is invalid, or the package xgrammar is not installed.
        """
        if pattern in self._grammars:
            return self._grammars[pattern]
        try:
            import xgrammar
        except ImportError as error:
            raise RecipeError(
                "generating a text that matches a pattern needs the package xgrammar, which comes"
                " with vLLM and is not installed here: pip install 'consomme[cpu]' or"
                " 'consomme[gpu]'"
            ) from error
        if self._compiler is None:
            tokenizer, vocab_size, stop_ids = self._tokens
            tokens = xgrammar.TokenizerInfo.from_huggingface(
                tokenizer, vocab_size=vocab_size, stop_token_ids=stop_ids
            )
            self._compiler = xgrammar.GrammarCompiler(tokens, max_threads=1)
        try:
            self._grammars[pattern] = self._compiler.compile_regex(pattern)
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"the pattern {pattern!r} is not a supported regular expression: {error}"
            ) from error
        return self._grammars[pattern]


class RowStoppingCriteria:
    """Stops each row at its own length limit, at a stop string, or at the deadline.

    Called like a `StoppingCriteria` of transformers.
    """

    def __init__(
        self,
        prompt_length: int,
        limits: Sequence[int],
        stop: Sequence[str],
        decode: Callable[[list[int]], str],
        deadline_s: float,
    ) -> None:
        """Start the clock.

        Args:
            prompt_length: Tokens before the first new one.
            limits: Maximum number of new tokens, by row.
            stop: Strings that end a text.
            decode: Converts tokens to text.
            deadline_s: Time limit of the batch.
        """
        self.prompt_length, self.limits = prompt_length, list(limits)
        self.stop, self.decode = tuple(stop), decode
        self.begin, self.deadline_s = time.monotonic(), deadline_s
        self.stopped_at: dict[int, int] = {}
        """Row -> number of new tokens when a stop string ended it."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return which rows are done: (B,)."""
        new_BT = input_ids[:, self.prompt_length :]
        if self.stop:
            for row, new in enumerate(new_BT.tolist()):
                if row not in self.stopped_at and (
                    cut_at_stop(self.decode(new), self.stop) is not None
                ):
                    self.stopped_at[row] = len(new)
        is_late = time.monotonic() - self.begin > self.deadline_s
        done = [
            is_late or row in self.stopped_at or new_BT.shape[1] >= limit
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
    criteria: Callable[..., Tensor],
) -> Tensor:
    """Generate with exactly these settings; the model folder's generation config is ignored.

    Returns:
        The rows (B, T), prompts included.
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
        stopping_criteria=hf.StoppingCriteriaList([criteria]),
    )
    return rows_BT


def version() -> str:
    """Return the name and version of the library that decodes."""
    return f"transformers {import_transformers().__version__}"


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """Return a text up to the first of some strings; None if it holds none of them."""
    places = [at for at in (text.find(one) for one in stop if one) if at >= 0]
    return text[: min(places)] if places else None
