"""Caption prompts, each under an id that is stored with every caption's provenance.

A prompt never changes under its id, and the hash of its text is stored next to the id, so a caption
can always be traced to its prompt. A new wording gets a new id; a wording that stands in a recipe
gets one that is made from its content.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from consomme.base.checked import Checked, rule
from consomme.base.errors import RecipeError
from consomme.base.hashing import mix_hash
from consomme.base.suggest import did_you_mean
from consomme.curate.caption.prompt_pools import NAMED_POOLS
from consomme.datasets.boxes import BOX_PATTERN
from consomme.datasets.scene_tasks import TASK_PROMPTS

# Shapes: N samples.

_SLOTS = ("original", "written")
_SLOT = re.compile(rf"\{{({'|'.join(_SLOTS)})\}}")
_PLACEHOLDER = re.compile(r"\{\s*(\w*)\s*\}")
"""What looks like a slot; other braces, as in an example of JSON, are text."""


@dataclass(frozen=True, kw_only=True)
class CaptionPrompt:
    """One caption prompt."""

    prompt_id: str
    """Name in recipes and in provenance columns."""

    text: str
    """The user's turn, without image placeholder and chat template; may have the slots `{original}`
    and `{written}`."""

    source: str = ""
    """Source of the wording."""

    pattern: str = ""
    """Regular expression that the whole answer has to match, for engines with constrained decoding;
    empty for free text."""

    has_boxes: bool = False
    """Whether the answer says where things are, in boxes; see `Guards.boxes`."""

    @property
    def text_hash(self) -> str:
        """Return 12 hex digits of the SHA-256 of the text with unfilled slots."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of the slots, in order; none for a prompt that only needs a picture."""
        return tuple(_SLOT.findall(self.text))

    @property
    def needs_written(self) -> bool:
        """Whether the prompt is about a caption that a model has written before."""
        return "written" in self.slots

    def fill(self, *, original: str | None = None, written: str | None = None) -> str:
        """Return the text with a sample's texts in its slots; these are inserted verbatim.

        Args:
            original: The text that came with the picture.
            written: A caption that a model has written for it.

        Raises:
            RecipeError: There is no text for a slot.
        """
        texts = {"original": original, "written": written}
        missing = [slot for slot in self.slots if texts[slot] is None]
        if missing:
            raise RecipeError(
                f"prompt {self.prompt_id!r} has a slot for the {' and the '.join(missing)} text,"
                " and there is none here; use it where captions are merged, or take a prompt"
                " without slots"
            )
        return _SLOT.sub(lambda slot: str(texts[slot[1]]), self.text)


def _pool_id(pool: str, number: int) -> str:
    return f"{pool}_{number:02d}"


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
        CaptionPrompt(
            prompt_id="fuse",
            text=(
                "Here are two texts about one picture. The first came with the picture: it holds "
                "facts about the real world, but may be badly written. The second was written by "
                "a model that saw the picture: it reads well, but lacks such facts and may be "
                "wrong. Turn them into one fluent text that keeps the facts of the first.\n"
                "1. Weave both together so that no seam shows.\n"
                "2. Add nothing that is in neither of them.\n"
                "3. Answer with the merged text and nothing else.\n"
                "First text: {original}\n"
                "Second text: {written}"
            ),
            source="own wording, in the substance of CapFusion as arXiv 2409.04828 (POINTS) has it",
        ),
        CaptionPrompt(
            prompt_id="images",
            text="Describe the images, one after the other.",
            source="own wording, for several pictures at once",
        ),
        CaptionPrompt(
            prompt_id="compare",
            text="What do the images have in common, and how do they differ?",
            source="own wording, for several pictures at once",
        ),
        CaptionPrompt(
            prompt_id="main_box",
            text="Where is the main object of the image? Answer with its box.",
            source="own wording",
            pattern=BOX_PATTERN,
            has_boxes=True,
        ),
        *(
            CaptionPrompt(
                prompt_id=task,
                text=text,
                source=f"own wording, in the substance of the {task} prompt of arXiv 2407.17453",
                has_boxes=task == "grounding",
            )
            for task, text in TASK_PROMPTS.items()
        ),
        *(
            CaptionPrompt(
                prompt_id=_pool_id(pool, number),
                text=text,
                source="own wording; pools as in arXiv 2412.08443 (POINTS1.5)",
            )
            for pool, texts in NAMED_POOLS.items()
            for number, text in enumerate(texts, 1)
        ),
    )
}
"""Prompt id -> prompt."""

PROMPT_POOLS: Mapping[str, tuple[str, ...]] = {
    "vila2_long": ("long_v1", "long_v2", "long_v3"),
    **{
        pool: tuple(_pool_id(pool, number) for number in range(1, len(texts) + 1))
        for pool, texts in NAMED_POOLS.items()
    },
}
"""Pool name -> ids of its prompts; `describe_en` and `describe_zh` are the pools of POINTS1.5."""


def caption_prompt(prompt_id: str) -> CaptionPrompt:
    """Return the prompt with this id.

    Raises:
        RecipeError: There is none; the message names the most similar id.
    """
    if prompt_id not in CAPTION_PROMPTS:
        raise RecipeError(_unknown(prompt_id, [*CAPTION_PROMPTS]))
    return CAPTION_PROMPTS[prompt_id]


@dataclass(frozen=True, kw_only=True)
class OwnPrompt(Checked):
    """A prompt that stands in a recipe, in the user's own words."""

    text: str
    """The user's turn; `{original}` and `{written}` stand for the sample's texts, as in the prompts
    that have an id."""

    pattern: str = ""
    """Regular expression that the whole answer has to match, for engines with constrained
    decoding."""

    has_boxes: bool = False
    """Whether the answer says where things are, as [xmin,ymin,xmax,ymax] from 0 to 999; see
    `guards.boxes`."""

    @rule
    def _text(self) -> Iterator[str]:
        if not self.text.strip():
            yield f"text: found {self.text!r}, expected words"
        yield from placeholder_problems(self.text, _SLOTS, "text")

    @rule
    def _pattern(self) -> Iterator[str]:
        try:
            re.compile(self.pattern)
        except re.error as error:
            yield f"pattern: found {self.pattern!r}, which is no regular expression: {error}"

    @property
    def prompt(self) -> CaptionPrompt:
        """Return the prompt, under an id that is made from its content."""
        own = CaptionPrompt(
            prompt_id=prompt_id_of(self.text, self.pattern),
            text=self.text,
            source="the recipe",
            pattern=self.pattern,
            has_boxes=self.has_boxes,
        )
        named = CAPTION_PROMPTS.get(own.prompt_id)
        return replace(named, has_boxes=own.has_boxes or named.has_boxes) if named else own


def prompt_id_of(text: str, pattern: str = "") -> str:
    """Return the id of a text: that of the named prompt with the same one, else from its hash."""
    for named in CAPTION_PROMPTS.values():
        if (named.text, named.pattern) == (text, pattern):
            return named.prompt_id
    content = f"{text}\0{pattern}" if pattern else text
    return f"text_{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def placeholder_problems(text: str, slots: Sequence[str], where: str) -> Iterator[str]:
    """Say which placeholders of a text nothing is put in for.

    Args:
        text: Of a prompt.
        slots: Names that something is put in for.
        where: Key of the recipe.
    """
    for found in _PLACEHOLDER.finditer(text):
        if found[0] not in [f"{{{slot}}}" for slot in slots]:
            known = ", ".join(f"{{{slot}}}" for slot in slots) or "none here"
            hint = did_you_mean(found[1], slots) if slots else ""
            yield f"{where}: found the placeholder {found[0]}{hint}; there are {known}"


PromptNames = Sequence[str | OwnPrompt]
"""What a recipe asks with: ids, pools, and prompts of its own."""


def resolve_prompts(names: PromptNames) -> tuple[CaptionPrompt, ...]:
    """Return the prompts that a recipe names, each once, in the order they are named.

    Args:
        names: Ids of prompts, names of pools, which stand for all of their prompts, and prompts in
            the recipe's own words.

    Raises:
        RecipeError: None is named, or some are unknown; the message lists all unknown ones.
    """
    if not names:
        raise RecipeError(
            "no caption prompt given; name at least one, such as 'long_v1', or a pool, such as"
            " 'vila2_long'"
        )
    known = [*CAPTION_PROMPTS, *PROMPT_POOLS]
    problems = [_unknown(n, known) for n in names if isinstance(n, str) and n not in known]
    if problems:
        raise RecipeError.from_problems("prompts", problems)
    found: dict[str, CaptionPrompt] = {}
    for name in names:
        if isinstance(name, str):
            for prompt_id in PROMPT_POOLS.get(name, (name,)):
                found.setdefault(prompt_id, CAPTION_PROMPTS[prompt_id])
        else:
            found.setdefault(name.prompt.prompt_id, name.prompt)
    return tuple(found.values())


def own_prompts(names: PromptNames) -> dict[str, str]:
    """Return the texts of a recipe's own prompts by their ids."""
    own = [name.prompt for name in names if not isinstance(name, str)]
    return {prompt.prompt_id: prompt.text for prompt in own}


def sample_prompts(
    names: PromptNames, hash_N: NDArray[np.uint64], seed: int
) -> list[CaptionPrompt]:
    """Sample a prompt for each sample, uniformly over all that the names stand for.

    The choice depends on the sample's hash and the seed only, so it is the same with any number of
    workers. Source: arXiv 2407.17453 (VILA²) samples from three long prompts.
    """
    prompts = resolve_prompts(names)
    index_N = mix_hash(hash_N, seed) % np.uint64(len(prompts))
    return [prompts[int(i)] for i in index_N]


def _unknown(name: str, known: Sequence[str]) -> str:
    return (
        f"unknown caption prompt {name!r}{did_you_mean(name, known)}; known prompts:"
        f" {', '.join(known)}; to ask in your own words, write {{text: …}}"
    )
