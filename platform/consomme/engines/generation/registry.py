"""The engines a recipe can choose to write with: what they are called, and what can be set.

One decision is made here: choosing costs nothing. An engine's own package is imported when its
writer is opened, in the process that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol

from consomme.base.registry import Registry
from consomme.base.schema import runtime
from consomme.engines.generation.requests import GenerationEngine, Sampling
from consomme.engines.vllm_engine import EngineOptions


class EngineChoice(Protocol):
    """What every engine of this list offers."""

    is_remote: ClassVar[bool]
    """Whether the model runs elsewhere: no weights and no GPU are needed here."""

    @property
    def num_gpus(self) -> int:
        """GPUs that one writer takes, where there are any."""

    def __call__(
        self, model_path: str, sampling: Sampling, *, threads: int = 1
    ) -> GenerationEngine:
        """Open a writer.

        Args:
            model_path: Hugging Face folder on local disk; for a remote engine the model's name
                there.
            sampling: How tokens are chosen.
            threads: Of this process, CPU only.
        """


GENERATION_ENGINES: Registry[EngineChoice] = Registry(
    "caption engine", "consomme/engines/generation/registry.py"
)


@GENERATION_ENGINES.register("vllm")
@dataclass(frozen=True, kw_only=True)
class VLLM(EngineOptions):
    """vLLM in the actor: continuous batching, one model on one or more GPUs, or on a CPU."""

    is_remote: ClassVar[bool] = False

    deadline_s: float = runtime(600.0)
    """How long one text may take, in seconds from when the engine begins; one that takes longer
    is rejected as `model_timeout`."""

    stall_s: float = runtime(300.0)
    """An engine that was given work and for so long comes forth with no token hangs; it is killed,
    and a fresh one does its work."""

    @property
    def num_gpus(self) -> int:
        """GPUs that one writer takes."""
        return self.tensor_parallel

    def __post_init__(self) -> None:
        """Refuse times that no text could keep."""
        _check_positive(deadline_s=self.deadline_s, stall_s=self.stall_s)

    def __call__(
        self, model_path: str, sampling: Sampling, *, threads: int = 1
    ) -> GenerationEngine:
        """Open a writer."""
        from consomme.engines.generation.vllm import VLLMEngine

        options = {field.name: getattr(self, field.name) for field in fields(EngineOptions)}
        return VLLMEngine(
            model_path,
            sampling,
            EngineOptions(**options),
            deadline_s=self.deadline_s,
            stall_s=self.stall_s,
            threads=threads,
        )


@GENERATION_ENGINES.register("transformers")
@dataclass(frozen=True, kw_only=True)
class Transformers:
    """transformers in the actor: every family that consomme scores with, in plain batches."""

    is_remote: ClassVar[bool] = False
    num_gpus: ClassVar[int] = 1

    batch_size: int = runtime(64)
    """Requests decoded together."""

    deadline_s: float = runtime(600.0)
    """How long one batch may take, in seconds; texts that are not done by then are rejected as
    `model_timeout`."""

    adapter: str | None = None
    """Folder of a LoRA in PEFT's format, on local disk, that is merged into the weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU and float32 on a CPU."""

    def __post_init__(self) -> None:
        """Refuse sizes and times that no text could keep."""
        _check_positive(batch_size=self.batch_size, deadline_s=self.deadline_s)

    def __call__(
        self, model_path: str, sampling: Sampling, *, threads: int = 1
    ) -> GenerationEngine:
        """Open a writer."""
        from consomme.engines.generation.transformers import TransformersEngine

        return TransformersEngine(
            model_path,
            sampling,
            batch_size=self.batch_size,
            deadline_s=self.deadline_s,
            adapter=self.adapter,
            dtype=self.dtype,
            threads=threads,
        )


@GENERATION_ENGINES.register("openai")
@dataclass(frozen=True, kw_only=True)
class OpenAI:
    """A server with OpenAI's interface: vLLM, SGLang, or a service; no weights are needed here."""

    is_remote: ClassVar[bool] = True
    num_gpus: ClassVar[int] = 0

    url: str
    """Where its interface begins, such as `http://captioner:8000/v1`."""

    api_key_env: str | None = None
    """Environment variable of the workers that holds the key; None for a server without."""

    concurrency: int = runtime(16)
    """Requests on their way at once, per actor."""

    deadline_s: float = runtime(600.0)
    """How long one answer may take, in seconds; one that takes longer is rejected as
    `model_timeout`, if the server is alive."""

    max_retries: int = runtime(8)
    """How often a request is sent again after 429, 5xx or a broken connection, with growing pauses
    or those that the server asks for."""

    detail: Literal["auto", "low", "high"] = "auto"
    """How closely a service looks at pictures, where it gives a choice."""

    def __post_init__(self) -> None:
        """Refuse what no request could keep."""
        _check_positive(concurrency=self.concurrency, deadline_s=self.deadline_s)
        if self.max_retries < 0:
            raise ValueError(f"max_retries: found {self.max_retries}, expected 0 or more")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: found {self.url!r}, expected http://… or https://…")

    def __call__(
        self, model_path: str, sampling: Sampling, *, threads: int = 1
    ) -> GenerationEngine:
        """Open a writer; `model_path` is the name of a model there."""
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
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name}: found {value}, expected more than 0")
