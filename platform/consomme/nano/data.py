"""Batches for the training of the nano VLM, generated from a seed and a step number.

Batch k depends on (seed, k) alone, so a run resumes at any step without replaying the data, and any
number of loader processes yields the same batches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from consomme.datasets import emoji, scenes
from consomme.datasets.augment import augment_emoji

# Shapes: B images, P side in pixels, T token positions.

MASKED = -1e9
"""Added to the score of a masked attention position."""

CAPTION_PROMPT = "describe the image."
NAME_PROMPT = "what emoji is this?"
KEYWORD_PROMPT = "list keywords."


class EmojiViews:
    """Draws random views of the emoji of the training styles, uniformly over names."""

    def __init__(self, styles: Sequence[str] = emoji.TRAIN_STYLES) -> None:
        """Decode every image of `styles` once (about 100 MB for five)."""
        self.by_name: dict[str, list[tuple[emoji.Emoji, np.ndarray]]] = {}
        for style in styles:
            entries = emoji.load(style)
            for entry, rgba in zip(entries, emoji.pixels(entries), strict=True):
                self.by_name.setdefault(entry.name, []).append((entry, rgba))
        self.names = sorted(self.by_name)

    def draw(self, rng: random.Random, out_px: int) -> tuple[emoji.Emoji, np.ndarray]:
        """Draw a name, then a style that has it, then a random view of it."""
        entry, rgba = rng.choice(self.by_name[rng.choice(self.names)])
        return entry, augment_emoji(rgba, rng, out_px)


def emoji_turns(entry: emoji.Emoji, rng: random.Random) -> list[tuple[str, str]]:
    """Return prompt and answer for one emoji: its name, or in a tenth of cases keywords."""
    kind = rng.random()
    if kind < 0.1 and len(entry.keywords) >= 3:
        return [(KEYWORD_PROMPT, ", ".join(rng.sample(entry.keywords, 3)))]
    return [(CAPTION_PROMPT if kind < 0.55 else NAME_PROMPT, entry.name)]


def scene_turns(
    scene: scenes.Scene, seed: int, rng: random.Random, num_turns: int
) -> list[tuple[str, str]]:
    """Return at most `num_turns` different questions in random order, in 40 % after a caption.

    Each kind of question is drawn twice, about different objects: the model learns to distinguish
    them by the contrast.
    """
    drawn = [*scenes.questions(scene, seed), *scenes.questions(scene, seed + 1)]
    pairs = list({q.question: q.answer for q in drawn}.items())
    rng.shuffle(pairs)
    if rng.random() < 0.4:
        return [(CAPTION_PROMPT, scenes.caption(scene)), *pairs[: num_turns - 3]]
    return pairs[:num_turns]


def normalise(images: Sequence[np.ndarray]) -> Tensor:
    """Stack uint8 images (P, P, 3) into float32 pixel values (B, 3, P, P) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return stacked / 127.5 - 1.0


class ConversationBatches(Dataset[dict[str, Any]]):
    """The two micro-batches of each step, emoji and scenes, with labels on the answers only."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        seed: int,
        num_steps: int,
        num_emoji: int,
        num_scenes: int,
        out_px: int,
        num_image_tokens: int,
        num_questions: int = 6,
        blind_fraction: float = 0.06,
        width: int = 256,
    ) -> None:
        """Keep what a step needs; see `NanoRecipe` for the meaning of the numbers."""
        self.ids: dict[str, list[int]] = {}
        self.tokenizer, self.seed, self.num_steps = tokenizer, seed, num_steps
        self.num_emoji, self.num_scenes, self.out_px = num_emoji, num_scenes, out_px
        self.num_image_tokens, self.blind_fraction = num_image_tokens, blind_fraction
        self.num_questions, self.width = num_questions, width
        self.special = {
            name: tokenizer.convert_tokens_to_ids(f"<{name}>")
            for name in ("pad", "bos", "end", "user", "assistant", "image")
        }
        self.views = EmojiViews()

    def __len__(self) -> int:
        """Number of steps."""
        return self.num_steps

    def encode(self, text: str) -> list[int]:
        """Tokenize with a cache, because most texts repeat."""
        if text not in self.ids:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
            if len(self.ids) > 200_000:
                self.ids.clear()
            self.ids[text] = ids
        return self.ids[text]

    def conversation(
        self, turns: Sequence[tuple[str, str]], *, has_image: bool
    ) -> tuple[list[int], list[int], list[int], int]:
        """Encode one image and several independent turns about it, in the chat template.

        Returns:
            Token ids, labels, the branch of every token (0: the shared prefix with the image; k:
            turn k) and the length of the prefix. Turns that do not fit are left out.
        """
        special = self.special
        ids = [special["bos"], special["user"]]
        ids += [special["image"]] * (self.num_image_tokens if has_image else 0)
        start = len(ids)
        labels, branches = [-100] * start, [0] * start
        for number, (question, answer) in enumerate(turns, 1):
            prompt = [*self.encode(question), special["assistant"]]
            reply = [*self.encode(answer), special["end"]]
            if len(ids) + len(prompt) + len(reply) > self.width:
                continue
            ids += prompt + reply
            labels += [-100] * len(prompt) + reply
            branches += [number] * (len(prompt) + len(reply))
        return ids, labels, branches, start

    def collate(
        self, rows: Sequence[tuple[np.ndarray, list[tuple[str, str]], bool]]
    ) -> dict[str, Any]:
        """Pad one micro-batch; a turn attends to the image and to itself, never to another turn.

        With causal attention over all turns, the model would copy a colour or a shape from an
        earlier question instead of reading it from the image, and fail on a single question.
        """
        encoded = [self.conversation(turns, has_image=has_image) for _, turns, has_image in rows]
        longest = max(len(ids) for ids, *_ in encoded)
        width = math.ceil(longest / 16) * 16
        shape = (len(rows), width)
        input_ids_BT = torch.full(shape, self.special["pad"])
        labels_BT = torch.full(shape, -100)
        branch_BT = torch.full(shape, -1)
        position_BT = torch.zeros(shape, dtype=torch.long)
        for row, (ids, labels, branches, start) in enumerate(encoded):
            input_ids_BT[row, : len(ids)] = torch.tensor(ids)
            labels_BT[row, : len(ids)] = torch.tensor(labels)
            branch_BT[row, : len(ids)] = torch.tensor(branches)
            lengths: dict[int, int] = {}
            for at, branch in enumerate(branches):
                offset = lengths[branch] = lengths.get(branch, -1) + 1
                position_BT[row, at] = offset + (start if branch else 0)
        earlier_TT = torch.ones(width, width, dtype=torch.bool).tril()
        same_BTT = branch_BT[:, :, None] == branch_BT[:, None, :]
        shared_BTT = (branch_BT == 0)[:, None, :]
        allowed_BTT = (same_BTT | shared_BTT) & earlier_TT
        return {
            "input_ids": input_ids_BT,
            "labels": labels_BT,
            "attention_mask": torch.where(allowed_BTT, 0.0, MASKED)[:, None],
            "position_ids": position_BT,
            "pixel_values": normalise([image for image, _, has_image in rows if has_image]),
        }

    def __getitem__(self, step: int) -> dict[str, Any]:
        """Build the micro-batches of one step."""
        rng = random.Random(f"nano-{self.seed}-{step}")
        emoji_rows, scene_rows = [], []
        for _ in range(self.num_emoji):
            entry, view = self.views.draw(rng, self.out_px)
            has_image = rng.random() >= self.blind_fraction
            emoji_rows.append((view, emoji_turns(entry, rng), has_image))
        for _ in range(self.num_scenes):
            seed = rng.randrange(10**12)
            scene = scenes.make_scene(TRAIN_SCENES_FROM + seed)
            view = np.asarray(scenes.render(scene))
            has_image = rng.random() >= self.blind_fraction
            scene_rows.append((view, scene_turns(scene, seed, rng, self.num_questions), has_image))
        return {"emoji": self.collate(emoji_rows), "scenes": self.collate(scene_rows)}


TRAIN_SCENES_FROM = 1_000_000
"""First seed of training scenes; smaller seeds are for evaluation and the quickstart."""


class VisionBatches(Dataset[dict[str, Tensor]]):
    """The images of each step with class targets, for pre-training the vision encoder alone."""

    def __init__(
        self, *, seed: int, num_steps: int, num_emoji: int, num_scenes: int, out_px: int
    ) -> None:
        """Keep what a step needs."""
        self.seed, self.num_steps, self.out_px = seed, num_steps, out_px
        self.num_emoji, self.num_scenes = num_emoji, num_scenes
        self.views = EmojiViews()
        self.index = {name: k for k, name in enumerate(self.views.names)}

    def __len__(self) -> int:
        """Number of steps."""
        return self.num_steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """Build one step: emoji and scenes, emoji names as class ids, contents of each quadrant."""
        rng = random.Random(f"vision-{self.seed}-{step}")
        drawn = [self.views.draw(rng, self.out_px) for _ in range(self.num_emoji)]
        drawn_scenes = [
            scenes.make_scene(TRAIN_SCENES_FROM + rng.randrange(10**12))
            for _ in range(self.num_scenes)
        ]
        images = [view for _, view in drawn] + [
            np.asarray(scenes.render(scene)) for scene in drawn_scenes
        ]
        return {
            "pixel_values": normalise(images),
            "names": torch.tensor([self.index[e.name] for e, _ in drawn]),
            "quadrants": torch.tensor([quadrant_targets(s) for s in drawn_scenes]),
        }


def quadrant_targets(scene: scenes.Scene) -> list[list[int]]:
    """Return the classes (shape, colour, size, word) of each quadrant; 0 means none.

    Returns:
        Four lists of four ints, in the order of `scenes.POSITIONS`.
    """
    targets = [[0, 0, 0, 0] for _ in scenes.POSITIONS]
    for item in scene.objects:
        targets[scenes.POSITIONS.index(item.position)][:3] = [
            1 + scenes.SHAPES.index(item.shape),
            1 + list(scenes.COLORS).index(item.color),
            1 + scenes.SIZES.index(item.size),
        ]
    if scene.word and scene.word_position:
        targets[scenes.POSITIONS.index(scene.word_position)][3] = 1 + scenes.WORDS.index(scene.word)
    return targets


def corpus() -> Iterator[str]:
    """Yield the texts that the nano tokenizer learns its merges from."""
    for style in emoji.TRAIN_STYLES:
        for entry in emoji.load(style):
            yield entry.name
            yield ", ".join(entry.keywords)
    for prompt in (CAPTION_PROMPT, NAME_PROMPT, KEYWORD_PROMPT):
        yield from [prompt] * 2000
    for number in range(4000):
        scene = scenes.make_scene(TRAIN_SCENES_FROM + number)
        yield scenes.caption(scene)
        for question in scenes.questions(scene, number):
            yield question.question
            yield question.answer
