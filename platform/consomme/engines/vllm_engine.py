"""Opens vLLM's offline engine inside an actor, for writing and for scoring.

The one decision: on a CPU the engine lives in the actor's own process. vLLM would otherwise start
two more processes per engine, which more than doubles the start (27 s against 10 s for a nano model
on two cores) and leaves more behind when an actor is killed. On a GPU vLLM's defaults stand.
"""

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consomme.base.errors import CheckpointError
from consomme.engines.torchvision_shim import prepare_environment

_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An engine that runs."""

    llm: Any
    """The `vllm.LLM`."""

    version: str
    """`vllm`, and which."""

    refusals: tuple[type[Exception], ...]
    """What it raises when it does not take a prompt."""


def open_engine(
    model_path: str,
    *,
    seed: int = 0,
    max_model_len: int = 512,
    max_num_batched_tokens: int = 4096,
    max_num_seqs: int = 64,
    kv_cache_gb: float = 1.0,
    num_threads: int = 1,
    gpu_memory_utilization: float = 0.9,
    tensor_parallel: int = 1,
) -> Opened:
    """Load a model.

    Args:
        model_path: Hugging Face folder on local disk.
        seed: Of the engine.
        max_model_len: Prompt, image tokens and text together, in tokens; a model that was built for
            less gets its own limit.
        max_num_batched_tokens: Tokens the engine may process in one step.
        max_num_seqs: Requests the engine may hold in one step.
        kv_cache_gb: Memory for keys and values, CPU only.
        num_threads: Threads of this engine, CPU only. More than the cores left to the actor makes
            it tens of times slower, because the threads wait for each other.
        gpu_memory_utilization: Share of the GPU's memory the engine may take, GPU only.
        tensor_parallel: GPUs the weights are spread over.

    Raises:
        CheckpointError: The folder is not there, or vLLM cannot load what is in it.
    """
    if not (Path(model_path) / "config.json").is_file():
        raise CheckpointError(
            f"no config.json in {model_path!r}: vLLM expects a Hugging Face model folder on local"
            " disk; check the recipe's model path"
        )
    max_model_len = min(max_model_len, _position_limit(Path(model_path), max_model_len))
    prepare_environment()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch

    options: dict[str, Any] = {
        "dtype": "auto",
        "gpu_memory_utilization": gpu_memory_utilization,
        "tensor_parallel_size": tensor_parallel,
    }
    if not torch.cuda.is_available():
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        torch.set_num_threads(num_threads)
        options = {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": int(kv_cache_gb * _GIB),
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import vllm
        from vllm.exceptions import VLLMValidationError

        try:
            llm = vllm.LLM(
                model_path,
                seed=seed,
                max_model_len=max_model_len,
                max_num_batched_tokens=max(max_num_batched_tokens, max_model_len),
                max_num_seqs=max_num_seqs,
                limit_mm_per_prompt={"image": 1},
                # Every picture is new: caches keyed by picture would only cost hashing.
                enable_prefix_caching=False,
                mm_processor_cache_gb=0,
                use_tqdm_on_load=False,
                **options,
            )
        except (ValueError, RuntimeError, KeyError, OSError) as error:
            raise CheckpointError(
                f"vLLM {vllm.__version__} cannot load {model_path!r}: {error}. A LLaVA folder "
                "must store its vision encoder as vision_tower.vision_model.*; "
                "see consomme.models.checkpoint_keys"
            ) from error
    return Opened(
        llm=llm,
        version=f"vllm {vllm.__version__}",
        refusals=(ValueError, VLLMValidationError),
    )


def close_engine(llm: Any) -> None:
    """Shut an engine down and give its memory back."""
    from vllm.distributed import cleanup_dist_env_and_memory

    llm.llm_engine.engine_core.shutdown()
    cleanup: Callable[[], None] = cleanup_dist_env_and_memory
    cleanup()


def _position_limit(folder: Path, default: int) -> int:
    """Return how many positions the language model knows; `default` if its config does not say."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    return int(text.get("max_position_embeddings", default))
