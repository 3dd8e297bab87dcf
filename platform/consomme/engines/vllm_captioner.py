"""Captions pictures with vLLM inside an actor.

Prompts arrive rendered by the model's chat template, with its image placeholder in them (`<image>`
for a LLaVA); which prompt, which sample and what becomes of the text is the caller's business.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from consomme.base.errors import DataError
from consomme.engines.vllm_engine import close_engine, open_engine


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
        opened = open_engine(
            model_path,
            seed=seed,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            kv_cache_gb=kv_cache_gb,
            num_threads=num_threads,
            gpu_memory_utilization=gpu_memory_utilization,
        )
        self.version, self._refusals, self._llm = opened.version, opened.refusals, opened.llm
        import vllm

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
        close_engine(self._llm)
        del self._llm
