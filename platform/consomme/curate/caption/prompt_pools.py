"""Pools of prompts by type of text, for scoring captions.

The prompt of a sample depends on its type and its id, so it is the same with any number of workers.
Captions and transcriptions need different prompts: with the wrong one, good samples of that type
have a high perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consomme.base.errors import RecipeError
from consomme.base.hashing import hash_ids
from consomme.base.suggest import did_you_mean

NAMED_POOLS: Mapping[str, tuple[str, ...]] = {
    "describe_en": (
        "Describe this image in detail.",
        "Give a detailed description of this picture.",
        "What can be seen in this image? Be thorough.",
        "Write down in detail what this picture shows.",
        "Explain the content of this image as fully as you can.",
        "Please describe everything of importance in this picture.",
        "Tell me in detail what is in this image.",
        "Provide a full account of what this picture contains.",
        "Look at this image and describe it closely.",
        "What does this picture show? Go into detail.",
    ),
    "describe_zh": (
        "请详细描述这张图片。",
        "请仔细说明图片中的内容。",
        "这张图片里有什么？请详细回答。",
        "请对这幅图做出详尽的描述。",
        "请尽可能完整地介绍图中的内容。",
        "请详细讲述你在图片中看到的一切。",
        "请细致地描绘这张图片所展示的内容。",
        "图片展示了什么？请具体说明。",
        "请观察图片并给出详细的说明。",
        "请用详细的文字描述这幅图像。",
    ),
    "transcribe_en": (
        "Transcribe the text in this image.",
        "Write down all text that can be read in this picture.",
        "What does the text in this image say?",
    ),
    "transcribe_zh": (
        "请识别图片中的文字。",
        "请写出图中的全部文字。",
        "图片中的文字内容是什么？",
    ),
}
"""Pools by name, in our own wording.

Source: POINTS1.5, arXiv 2412.08443, samples from 10 English and 10 Chinese prompts for a detailed
description; its authors advise another prompt for transcribed text.
"""

DEFAULT = "default"
_REFERENCE = "pool:"


@dataclass(frozen=True, kw_only=True)
class PromptPools:
    """Assigns a prompt to each sample."""

    pools: Mapping[str, Sequence[str]]
    """Prompts by type of text; `default` for all other samples."""

    key: str
    """Key of a sample's `meta` that holds its type."""

    @classmethod
    def read(cls, pools: Mapping[str, Sequence[str]], key: str, prompt: str) -> PromptPools:
        """Resolve the pools of a recipe.

        Args:
            pools: Prompts by type; `pool:NAME` stands for all of `NAMED_POOLS[NAME]`.
            key: Key of `meta` with the type.
            prompt: For samples of other types, unless there is a pool `default`.

        Raises:
            RecipeError: A pool is empty, or a name is unknown.
        """
        resolved: dict[str, tuple[str, ...]] = {DEFAULT: (prompt,)}
        for kind, texts in pools.items():
            prompts: list[str] = []
            for text in texts:
                if not text.startswith(_REFERENCE):
                    prompts.append(text)
                    continue
                name = text.removeprefix(_REFERENCE)
                if name not in NAMED_POOLS:
                    raise RecipeError(
                        f"prompts.{kind}: unknown pool {name!r}{did_you_mean(name, NAMED_POOLS)};"
                        f" there are {', '.join(NAMED_POOLS)}"
                    )
                prompts += NAMED_POOLS[name]
            if not prompts:
                raise RecipeError(f"prompts.{kind}: found no prompt, expected at least one")
            resolved[kind] = tuple(prompts)
        return cls(pools=resolved, key=key)

    def draw(self, sample_id: str, meta: Mapping[str, object]) -> str:
        """Return the prompt of one sample."""
        pool = self.pools.get(str(meta.get(self.key)), self.pools[DEFAULT])
        return pool[int(hash_ids([sample_id])[0] % len(pool))] if len(pool) > 1 else pool[0]
