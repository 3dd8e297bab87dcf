"""Open vLLM's engine inside an actor, for generation and for scoring.

On a CPU the engine runs in the actor's own process. vLLM would otherwise start two more processes
per engine, which more than doubles the start (27 s instead of 10 s for a nano model on two cores)
and leaves more behind when an actor is killed. On a GPU vLLM's defaults apply.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from consomme.base.bounds import PositiveFloat, PositiveFraction, PositiveInt
from consomme.base.checked import Checked
from consomme.base.errors import CheckpointError, RecipeError
from consomme.base.process import environment, imports_without_gc
from consomme.base.schema import added, located, runtime
from consomme.storage.model_files import is_from_gguf

_GIB = 1024**3

_MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `max_lora_rank` that vLLM accepts."""

_RELOADING = "vllm.model_executor.model_loader.reload.inplace"
"""Logger that says which parameters got no weights; vLLM only warns of them."""

_LANGUAGE_MODEL_NAMES = ("language_model.", "text_model.")
"""Names of the language model in VLM families; vLLM applies adapters to it only."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Checked):
    """How vLLM runs a model."""

    max_model_len: PositiveInt = 4096
    """Maximum length of prompt, image tokens and text together, in tokens; a model with fewer
    positions uses its own limit."""

    max_num_batched_tokens: PositiveInt = runtime(4096)
    """Maximum tokens in one step of the engine; at least `max_model_len`."""

    max_num_seqs: PositiveInt = runtime(64)
    """Maximum requests in one step of the engine."""

    kv_cache_gb: PositiveFloat = runtime(1.0)
    """Size of the KV cache in GiB, CPU only."""

    gpu_memory_utilization: PositiveFraction = runtime(0.9)
    """Share of the GPU's memory that the engine may take, GPU only."""

    tensor_parallel: PositiveInt = runtime(1)
    """Number of GPUs that the weights are sharded over."""

    prefix_caching: bool = runtime(False)
    """Keep the KV cache of common prefixes, and of an image in several consecutive requests: two or
    three times as many texts per second then, a few per cent fewer where nothing repeats."""

    adapter: str | None = located(None)
    """A LoRA in PEFT's format for the language model; named as a model is."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = added("auto")
    """Of the weights; `auto` is what the model's folder says on a GPU, and float32 on a CPU."""

    own_process: bool | None = runtime(None)
    """Whether the engine runs in a process of its own, which can be killed when it hangs. None: yes
    on a GPU, no on a CPU, where it more than doubles the start."""


@dataclass(frozen=True, kw_only=True)
class OpenedEngine:
    """A running engine."""

    llm: Any
    """The `vllm.LLM`."""

    version: str
    """`vllm` and its version."""

    adapter: Any = None
    """The `LoRARequest` of every prompt."""

    using: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever steps the engine or exchanges its weights."""

    @property
    def max_images(self) -> int:
        """Images that a prompt of the model's family may have; 0 without a vision encoder."""
        processor = self.llm.llm_engine.renderer.mm_processor
        return 0 if processor is None else int(processor.info.allowed_mm_limits.get("image", 0))

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Replace the model's weights by others of the same architecture, in place.

        What the engine keeps of the weights before is dropped: encoded images and cached prefixes.

        Args:
            weights: Tensors by the names of a checkpoint folder's.

        Raises:
            CheckpointError: vLLM does not take all of them.
            RecipeError: The engine runs in another process.
        """
        if self.processes():
            raise RecipeError("weights are exchanged in vLLM's engine only in the same process")
        with self.using, _warnings_of(_RELOADING) as warned:
            try:
                self.llm.collective_rpc(
                    "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
                )
            # What vLLM's code of a family raises about other weights.
            except (ValueError, KeyError, AttributeError, AssertionError) as error:
                raise CheckpointError(
                    f"vLLM does not take other weights in place of its own:"
                    f" {type(error).__name__}: {error}; use the engine transformers"
                ) from error
            self.llm.collective_rpc(_process_heads)
            # The scheduler believes that they are there still.
            self.llm.llm_engine.reset_encoder_cache()
            self.llm.reset_prefix_cache()
        if warned:
            raise CheckpointError(
                f"vLLM does not take all weights in place: {'; '.join(warned)}; use the engine"
                " transformers"
            )

    def processes(self) -> list[Any]:
        """Return the processes that the engine started; none if it runs in ours."""
        resources = getattr(self.llm.llm_engine.engine_core, "resources", None)
        return list(getattr(getattr(resources, "engine_manager", None), "processes", ()))

    def is_dead(self) -> bool:
        """Return whether the engine's own process has ended."""
        resources = getattr(self.llm.llm_engine.engine_core, "resources", None)
        return bool(getattr(resources, "engine_dead", False))

    def kill(self) -> None:
        """Kill the engine's processes, even stopped ones, and unblock their waiting threads."""
        import psutil

        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                for one in (*parent.children(recursive=True), parent):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
        self.unblock()

    def unblock(self) -> None:
        """Wake a thread that waits for output of a process that has ended.

        vLLM's client waits for its queue without a time limit, and is not told that the process has
        ended (seen in 0.32).
        """
        outputs = getattr(self.llm.llm_engine.engine_core, "outputs_queue", None)
        if outputs is not None:
            outputs.put_nowait(RuntimeError("the engine's process has ended"))


def _process_heads(worker: Any) -> None:
    """Derive again what a CPU's kernels need of embeddings.

    A head that is tied to them gets no weights of its own, so vLLM leaves its packed copy of those
    before (seen in 0.32).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    for module in worker.get_model().modules():
        method = getattr(module, "quant_method", None)
        if isinstance(module, VocabParallelEmbedding) and isinstance(
            method, UnquantizedEmbeddingMethod
        ):
            method.process_weights_after_loading(module)


@contextlib.contextmanager
def _warnings_of(name: str) -> Iterator[list[str]]:
    """Collect what a logger warns of, whatever the level of vLLM's log."""
    logger, found = logging.getLogger(name), list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def open_engine(model_path: str, options: EngineOptions, *, threads: int = 1) -> OpenedEngine:
    """Load a model.

    Args:
        model_path: Hugging Face folder on local disk.
        options: How to run it.
        threads: Of the engine, CPU only. More than the actor's cores makes it tens of times slower,
            because the threads wait for each other.

    Raises:
        CheckpointError: The folder or the adapter is missing, vLLM cannot load it, or its pictures
            are cut by a tiling of consomme.
        RecipeError: The options need GPUs that are not there.
    """
    folder = Path(model_path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no config.json in {model_path!r}: vLLM expects a Hugging Face model folder on local"
            " disk; check the recipe's model path"
        )
    _refuse_tilings(folder)
    config = json.loads((folder / "config.json").read_text())
    positions = config.get("text_config", config).get("max_position_embeddings")
    max_model_len = min(options.max_model_len, positions or options.max_model_len)
    adapter = _adapter_options(options.adapter, is_vlm="text_config" in config)
    from consomme.engines.vllm_environment import prepare_environment

    prepare_environment()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    variables: dict[str, str] = {}
    # Weights that came from GGUF are plain; vLLM looks for a method of that name.
    plain = {"hf_overrides": {"quantization_config": None}} if is_from_gguf(config) else {}
    placement: dict[str, Any] = {
        "dtype": options.dtype,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "tensor_parallel_size": options.tensor_parallel,
    }
    own_process = options.own_process
    if not torch.cuda.is_available():
        if options.tensor_parallel > 1:
            raise RecipeError(
                f"tensor_parallel: found {options.tensor_parallel}, but there is no GPU here;"
                " expected 1"
            )
        own_process = bool(own_process)
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        set_threads(threads)
        variables["OMP_NUM_THREADS"] = str(threads)
        placement = {
            "dtype": "float32" if options.dtype == "auto" else options.dtype,
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(options.kv_cache_gb * _GIB),
        }
    if own_process is not None:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(own_process))
    if own_process is not False:
        # A fork of a process that has threads, as an actor has, can hang.
        variables["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    with warnings.catch_warnings(), environment(variables):
        warnings.simplefilter("ignore", FutureWarning)
        with imports_without_gc():
            import vllm

        try:
            llm = vllm.LLM(
                model_path,
                max_model_len=max_model_len,
                max_num_batched_tokens=max(options.max_num_batched_tokens, max_model_len),
                max_num_seqs=options.max_num_seqs,
                # An image takes a token at least, so this is no limit; what vLLM allocates for
                # images is bounded by the tokens of a step.
                limit_mm_per_prompt={"image": max_model_len},
                enable_prefix_caching=options.prefix_caching,
                # A cache of prepared images would only cost hashing: nearly every one is new.
                mm_processor_cache_gb=0,
                use_tqdm_on_load=False,
                **placement,
                **adapter,
                **plain,
            )
        # A family that vLLM does not support raises whatever its code meets first.
        except Exception as error:
            advice = (
                "a LLaVA folder must store its vision encoder as vision_tower.vision_model.*; see"
                " consomme.models.checkpoint_keys"
                if config.get("model_type") == "llava"
                else "use {name: transformers}, or a family that this version supports"
            )
            raise CheckpointError(
                f"vLLM {vllm.__version__} cannot load {model_path!r}: {type(error).__name__}:"
                f" {error}; {advice}"
            ) from error
    lora = _load_adapter(llm, options.adapter) if options.adapter else None
    return OpenedEngine(llm=llm, version=f"vllm {vllm.__version__}", adapter=lora)


def _refuse_tilings(folder: Path) -> None:
    """Refuse a model whose pictures are cut by consomme's processor: vLLM prepares its own way.

    Raises:
        CheckpointError: They are.
    """
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text()) if path.is_file() else {}
    if processor.get("processor_class") == "ConsommeTilingProcessor":
        tiling = processor.get("image_processor", {}).get("tiling")
        raise CheckpointError(
            f"{str(folder)!r} has pictures cut by the tiling {tiling}, which vLLM does not know: it"
            " would show the model other pictures than it was trained on; use {name: transformers}"
        )


def close_engine(llm: Any) -> None:
    """Shut an engine down and free its memory."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup: Callable[[], None] = cleanup_dist_env_and_memory
    cleanup()


def set_threads(threads: int) -> None:
    """Set the number of torch's OpenMP threads for this thread.

    OpenMP keeps the number per thread. `torch.set_num_threads` cannot be used: vLLM replaces it by
    a function that does nothing.
    """
    import torch

    torch._C.set_num_threads(threads)


def _adapter_options(adapter: str | None, *, is_vlm: bool) -> dict[str, Any]:
    """Return vLLM's options for an adapter.

    Raises:
        CheckpointError: It cannot be read, or adapts a part that vLLM would silently ignore.
    """
    if adapter is None:
        return {}
    from consomme.models.adapters import open_adapter

    opened = open_adapter(adapter)
    if opened.rank > _MAX_LORA_RANKS[-1]:
        raise CheckpointError(
            f"{adapter}: found rank {opened.rank}, vLLM takes at most {_MAX_LORA_RANKS[-1]}"
        )
    for name in opened.modules if is_vlm else ():
        if not any(part in f"{name}." for part in _LANGUAGE_MODEL_NAMES):
            raise CheckpointError(
                f"{adapter} adapts {name}, which is not in the language model: vLLM would ignore"
                " it; generate with {name: transformers}, which merges the adapter"
            )
    rank = next(size for size in _MAX_LORA_RANKS if size >= opened.rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}


def _load_adapter(llm: Any, adapter: str) -> Any:
    """Load an adapter, so that one that does not fit fails before the first request."""
    from vllm.exceptions import VLLMError
    from vllm.lora.request import LoRARequest

    request = LoRARequest("adapter", 1, str(Path(adapter).resolve()))
    try:
        llm.llm_engine.add_lora(request)
    except (ValueError, RuntimeError, KeyError, OSError, VLLMError) as error:
        close_engine(llm)
        raise CheckpointError(f"vLLM cannot load the adapter {adapter!r}: {error}") from error
    # An engine in a process of its own raises a bare Exception; any other class is raised again.
    except Exception as error:
        if type(error) is not Exception:
            raise
        close_engine(llm)
        raise CheckpointError(f"vLLM cannot load the adapter {adapter!r}: {error}") from error
    return request
