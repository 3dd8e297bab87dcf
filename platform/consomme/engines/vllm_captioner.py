"""Captions pictures with vLLM inside an actor.

The one decision: on a CPU the engine lives in the actor's own process. vLLM would otherwise start
two more processes per engine, which more than doubles the start (27 s against 10 s for a nano model
on two cores) and leaves more behind when an actor is killed. On a GPU vLLM's defaults stand.

Prompts arrive rendered by the model's chat template, with its image placeholder in them (`<image>`
for a LLaVA); which prompt, which sample and what becomes of the text is the caller's business.
"""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from consomme.base.errors import CheckpointError, DataError
from consomme.engines.torchvision_shim import prepare_environment

_GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What the engine wrote for one picture."""

    text: str
    """Decoded text without special tokens, otherwise exactly as generated."""

    num_tokens: int
    """Generated tokens, the end-of-sequence token included."""

    finish_reason: str
    """`stop` when the model ended by itself, `length` when `max_tokens` cut it off."""


class VLLMCaptioner:
    """Write one text per picture with vLLM's offline engine. Loads the model once, in `__init__`.

    Greedy decoding (`temperature=0`) in float32 on a CPU gives the tokens transformers gives.
    Sampling is reproducible for a given seed per request on the same build and device.
    """

    def __init__(
        self,
        model_path: str,
        *,
        max_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        max_model_len: int = 512,
        max_num_batched_tokens: int = 4096,
        max_num_seqs: int = 64,
        kv_cache_gb: float = 1.0,
        num_threads: int = 1,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        """Load the model.

        Args:
            model_path: Hugging Face folder on local disk.
            max_tokens: Longest text, in tokens.
            temperature: 0 is greedy.
            seed: Seed of the engine; each request has its own beside it.
            top_p: Nucleus of the sampled distribution; 1 keeps all of it.
            stop: Strings that end a text; they are not part of it.
            max_model_len: Prompt, image tokens and text together, in tokens; a model that was built
                for less gets its own limit.
            max_num_batched_tokens: Tokens the engine may process in one step.
            max_num_seqs: Requests the engine may hold in one step.
            kv_cache_gb: Memory for keys and values, CPU only.
            num_threads: Threads of this engine, CPU only. More than the cores left to the actor
                makes it tens of times slower, because the threads wait for each other.
            gpu_memory_utilization: Share of the GPU's memory the engine may take, GPU only.

        Raises:
            CheckpointError: The folder is not there, or vLLM cannot load what is in it.
        """
        if not (Path(model_path) / "config.json").is_file():
            raise CheckpointError(
                f"no config.json in {model_path!r}: the captioner expects a Hugging Face model "
                "folder on local disk; check the recipe's model path"
            )
        max_model_len = min(max_model_len, _position_limit(Path(model_path), max_model_len))
        prepare_environment()
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        import torch

        is_cpu = not torch.cuda.is_available()
        options: dict[str, Any] = {
            "dtype": "auto",
            "gpu_memory_utilization": gpu_memory_utilization,
        }
        if is_cpu:
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

            self.version = f"vllm {vllm.__version__}"
            self._refusals = (ValueError, VLLMValidationError)
            try:
                self._llm: Any = vllm.LLM(
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
        self._new_params: Callable[[int], Any] = lambda request_seed: vllm.SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=request_seed,
            stop=list(stop) or None,
        )

    def caption(
        self, images: Sequence[Image.Image], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Generation]:
        """Write one text per picture, in the order of the pictures.

        Args:
            images: Decoded pictures of any mode; each is converted to RGB.
            prompts: Rendered prompts with exactly one image placeholder each.
            seeds: One seed per request, so that a text does not depend on its batch.

        Raises:
            DataError: The three lists differ in length, or the engine refuses the prompts (for
                instance because one is longer than `max_model_len`).
        """
        if not len(images) == len(prompts) == len(seeds):
            raise DataError(
                f"{len(images)} images, {len(prompts)} prompts and {len(seeds)} seeds: "
                "give one of each per sample"
            )
        if not images:
            return []
        requests = [
            {"prompt": prompt, "multi_modal_data": {"image": image.convert("RGB")}}
            for image, prompt in zip(images, prompts, strict=True)
        ]
        params = [self._new_params(seed) for seed in seeds]
        try:
            outputs = self._llm.generate(requests, params, use_tqdm=False)
        except self._refusals as error:
            raise DataError(f"vLLM refused a batch of {len(requests)} prompts: {error}") from error
        return [
            Generation(
                text=output.outputs[0].text,
                num_tokens=len(output.outputs[0].token_ids),
                finish_reason=str(output.outputs[0].finish_reason),
            )
            for output in outputs
        ]

    def close(self) -> None:
        """Shut the engine down and give its memory back; the captioner is of no use afterwards."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup: Callable[[], None] = cleanup_dist_env_and_memory
        cleanup()


def _position_limit(folder: Path, default: int) -> int:
    """Return how many positions the language model knows; `default` if its config does not say."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config)
    return int(text.get("max_position_embeddings", default))
