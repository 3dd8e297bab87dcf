"""The prompts that ask for captions, each under an id that goes into every caption's provenance.

The one decision: a prompt never changes under its id. The hash of its text is stored beside the id,
so a caption can always be traced to the words that asked for it. A new wording is a new id.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consomme.base.errors import RecipeError
from consomme.base.suggest import did_you_mean
from consomme.curate.keep import mix_hash

# Shapes: N samples.


@dataclass(frozen=True, kw_only=True)
class CaptionPrompt:
    """One way to ask for a caption."""

    prompt_id: str
    """Name in recipes and in provenance columns."""

    text: str
    """The user's turn, without picture placeholder and chat template."""

    source: str = ""
    """Where the wording comes from."""

    @property
    def text_hash(self) -> str:
        """Return 12 hex digits of the SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


CAPTION_PROMPTS: dict[str, CaptionPrompt] = {
    prompt.prompt_id: prompt
    for prompt in (
        CaptionPrompt(
            prompt_id="plain",
            text="describe the image.",
            source="what the nano VLM was trained to answer with a caption",
        ),
        CaptionPrompt(
            prompt_id="points",
            text="please generate a caption for this image.",
            source="arXiv 2409.04828 (POINTS), released perplexity script",
        ),
        CaptionPrompt(
            prompt_id="simple",
            text="Describe the image briefly.",
            source="short prompt of the ablation in arXiv 2407.17453 (VILA²): brings no gain there",
        ),
        CaptionPrompt(
            prompt_id="long_v1",
            text="Describe the image in details.",
            source="arXiv 2407.17453 (VILA²), long prompt 1",
        ),
        CaptionPrompt(
            prompt_id="long_v2",
            text="Elaborate on the visual and narrative elements of the image in detail.",
            source="own wording, in the substance of long prompt 2 of arXiv 2407.17453 (VILA²)",
        ),
        CaptionPrompt(
            prompt_id="long_v3",
            text=(
                "Describe this image in flowing sentences. Mention only what can be determined "
                "with confidence from the image itself; do not make a list, and do not dwell on "
                "its mood or beauty."
            ),
            source="own wording, in the substance of long prompt 3 of arXiv 2407.17453 (VILA²)",
        ),
    )
}
"""Prompt id -> prompt."""


def caption_prompt(prompt_id: str) -> CaptionPrompt:
    """Return the prompt with this id.

    Raises:
        RecipeError: There is none; the message names the closest one.
    """
    if prompt_id not in CAPTION_PROMPTS:
        known = ", ".join(CAPTION_PROMPTS)
        hint = did_you_mean(prompt_id, CAPTION_PROMPTS)
        raise RecipeError(f"unknown caption prompt {prompt_id!r}{hint}; known prompts: {known}")
    return CAPTION_PROMPTS[prompt_id]


def draw_prompts(
    prompt_ids: Sequence[str], hash_N: NDArray[np.uint64], seed: int
) -> list[CaptionPrompt]:
    """Draw a prompt for each sample, uniformly over the given ids.

    The draw depends on the sample's hash and the seed only, so any number of workers asks the same
    questions. Source: arXiv 2407.17453 (VILA²) draws from three long prompts.
    """
    prompts = [caption_prompt(prompt_id) for prompt_id in prompt_ids]
    if not prompts:
        raise RecipeError("no caption prompt given; name at least one, such as 'long_v1'")
    drawn_N = mix_hash(hash_N, seed) % np.uint64(len(prompts))
    return [prompts[int(i)] for i in drawn_N]
