"""The generation engines that a recipe can choose: their names and settings.

Choosing one costs nothing: an engine's package is imported when the engine is opened, in the
process that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from consomme.base.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.registry import Registry
from consomme.base.schema import located, runtime
from consomme.engines.generation.requests import GenerationEngine, Sampling
from consomme.engines.vllm_engine import EngineOptions, OpenedEngine

if TYPE_CHECKING:
    from consomme.engines.scoring.requests import ScoringEngine


class EngineChoice(Protocol):
    """The settings of an engine, which open it."""

    is_remote: ClassVar[bool]
    """Whether the model runs elsewhere: no weights and no GPU are needed here."""

    has_likelihoods: ClassVar[bool]
    """Whether `open_scorer` opens anything."""

    @property
    def num_gpus(self) -> int:
        """GPUs that one engine takes, where there are any."""

    def __call__(
        self,
        model_path: str,
        sampling: Sampling,
        *,
        threads: int = 1,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> GenerationEngine:
        """Open an engine.

        Args:
            model_path: Hugging Face folder on local disk; for a remote engine the model's name
                there.
            sampling: How tokens are chosen.
            threads: Of this process, CPU only.
            model_hash: Of the model's content, for engines that check themselves against plain
                `generate`: they cache the result under it.
            template: Options of the model's chat template.
        """

    def open_scorer(
        self,
        model_path: str,
        token_nll: Callable[[Any, Any], Any],
        *,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> ScoringEngine:
        """Open the engine that gives the likelihoods of texts, with the same weights.

        Args:
            model_path: As for an engine that writes.
            token_nll: See `TransformersScorer`.
            model_hash: As for an engine that writes.
            template: As for an engine that writes.

        Raises:
            RecipeError: There is none.
        """


_ANY_LENGTH = 1 << 30
"""No limit of our own on the length of a scored text; the model's limit applies."""

GENERATION_ENGINES: Registry[EngineChoice] = Registry(
    "caption engine", "consomme/engines/generation/registry.py"
)


@GENERATION_ENGINES.register("vllm")
@dataclass(frozen=True, kw_only=True)
class VLLM(EngineOptions):
    """vLLM in the actor: continuous batching, one model on one or more GPUs, or on a CPU."""

    is_remote: ClassVar[bool] = False
    has_likelihoods: ClassVar[bool] = True

    deadline_s: PositiveFloat = runtime(600.0)
    """Time limit of one text, in seconds from when the engine starts on it; one that takes longer
    is rejected as `model_timeout`."""

    stall_s: PositiveFloat = runtime(300.0)
    """An engine that has work and emits no token for this long, in seconds, counts as hung; it is
    killed, and a new one does its work."""

    @property
    def num_gpus(self) -> int:
        """GPUs that one engine takes."""
        return self.tensor_parallel

    def __call__(
        self,
        model_path: str,
        sampling: Sampling,
        *,
        threads: int = 1,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
        opened: OpenedEngine | None = None,
    ) -> GenerationEngine:
        """Open an engine, or write with the one that a scorer of the same folder has opened."""
        from consomme.engines.generation.vllm import VLLMEngine

        return VLLMEngine(
            model_path,
            sampling,
            self._options(),
            deadline_s=self.deadline_s,
            stall_s=self.stall_s,
            threads=threads,
            template=template,
            opened=opened,
        )

    def open_scorer(
        self,
        model_path: str,
        token_nll: Callable[[Any, Any], Any],
        *,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
        opened: OpenedEngine | None = None,
    ) -> ScoringEngine:
        """Open the engine that scores, as for one that writes; vLLM computes the nats itself."""
        from consomme.engines.scoring.vllm import VLLMScorer

        return VLLMScorer(
            model_path,
            max_caption_tokens=_ANY_LENGTH,
            options=self._options(),
            template=template,
            opened=opened,
        )

    def _options(self) -> EngineOptions:
        return EngineOptions(
            **{field.name: getattr(self, field.name) for field in fields(EngineOptions)}
        )


@GENERATION_ENGINES.register("transformers")
@dataclass(frozen=True, kw_only=True)
class Transformers(Checked):
    """transformers in the actor: every family that consomme scores with, in static batches."""

    is_remote: ClassVar[bool] = False
    has_likelihoods: ClassVar[bool] = True
    num_gpus: ClassVar[int] = 1

    batch_size: PositiveInt = runtime(64)
    """Requests decoded together."""

    deadline_s: PositiveFloat = runtime(600.0)
    """Time limit of one batch, in seconds; texts that are unfinished by then are rejected as
    `model_timeout`."""

    adapter: str | None = located(None)
    """A LoRA in PEFT's format that is merged into the weights; named as a model is."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""

    def __call__(
        self,
        model_path: str,
        sampling: Sampling,
        *,
        threads: int = 1,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> GenerationEngine:
        """Open an engine."""
        from consomme.engines.generation.transformers import TransformersEngine

        return TransformersEngine(
            model_path,
            sampling,
            batch_size=self.batch_size,
            deadline_s=self.deadline_s,
            adapter=self.adapter,
            dtype=self.dtype,
            threads=threads,
            model_hash=model_hash,
            template=template,
        )

    def open_scorer(
        self,
        model_path: str,
        token_nll: Callable[[Any, Any], Any],
        *,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> ScoringEngine:
        """Open the engine that scores."""
        from consomme.engines.scoring.transformers import TransformersScorer

        return TransformersScorer(
            model_path,
            token_nll,
            max_caption_tokens=_ANY_LENGTH,
            dtype=self.dtype,
            adapter=self.adapter,
            model_hash=model_hash,
            template=template,
        )


@GENERATION_ENGINES.register("openai")
@dataclass(frozen=True, kw_only=True)
class OpenAI(Checked):
    """A server with OpenAI's interface: vLLM, SGLang, or a service; no weights are needed here."""

    is_remote: ClassVar[bool] = True
    has_likelihoods: ClassVar[bool] = False
    num_gpus: ClassVar[int] = 0

    url: str
    """Base URL of the interface, such as `http://captioner:8000/v1`."""

    api_key_env: str | None = None
    """Environment variable of the workers that holds the API key; None for a server without."""

    concurrency: PositiveInt = runtime(16)
    """Concurrent requests per actor."""

    deadline_s: PositiveFloat = runtime(600.0)
    """Time limit of one answer, in seconds; a request that takes longer is rejected as
    `model_timeout`, if the server is alive."""

    max_retries: NonNegativeInt = runtime(8)
    """Retries of a request after 429, 5xx or a broken connection, with exponential backoff or the
    server's `Retry-After`."""

    detail: Literal["auto", "low", "high"] = "auto"
    """Image resolution that a service uses, where it gives a choice."""

    @rule
    def _http_url(self) -> Iterator[str]:
        if not self.url.startswith(("http://", "https://")):
            yield f"url: found {self.url!r}, expected http://… or https://…"

    def __call__(
        self,
        model_path: str,
        sampling: Sampling,
        *,
        threads: int = 1,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> GenerationEngine:
        """Open an engine; `model_path` is the name of a model on the server."""
        from consomme.engines.generation.openai import OpenAIEngine

        return OpenAIEngine(
            self.url,
            model_path,
            sampling,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            deadline_s=self.deadline_s,
            max_retries=self.max_retries,
            detail=self.detail,
            template=template,
        )

    def open_scorer(
        self,
        model_path: str,
        token_nll: Callable[[Any, Any], Any],
        *,
        model_hash: str | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> ScoringEngine:
        """Refuse: a server writes texts, and gives no likelihoods of given ones."""
        raise RecipeError(
            f"the engine openai gives no likelihoods of given texts, which {model_path} is asked"
            " for; use the engine vllm or transformers"
        )
