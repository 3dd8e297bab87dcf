"""Train the shipped nano VLM from scratch.

    python -m consomme.nano.train recipes/train/nano.yaml

Four stages: the vision encoder learns classes (`vision.py`), then the whole VLM learns captions,
names and questions (`data.py`) in three stages. Every stage resumes from its last checkpoint. About
two hours on two CPU cores. Matrices are updated by Muon, everything else by AdamW.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from consomme.models.assembly import LlavaShape, build_llava, build_processor
from consomme.models.tokenizer import train_tokenizer
from consomme.nano.data import ConversationBatches, EmojiViews, VisionBatches, corpus
from consomme.nano.vision import ReadOut

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Length, data and learning rates of one stage."""

    num_steps: int
    num_emoji: int
    """Emoji views per step."""

    num_scenes: int
    """Scenes per step."""

    muon_lr: float = 2e-3
    """Peak learning rate of matrices, scaled to match AdamW's update size."""

    adamw_lr: float = 2e-3
    """Peak learning rate of embeddings, norms and biases."""

    warmup_steps: int = 50

    schedule_steps: int | None = None
    """Steps over which the learning rate decays to its final value; None uses `num_steps`."""

    questions_per_scene: int = 6
    """Most questions per scene."""


@dataclass(frozen=True, kw_only=True)
class NanoRecipe:
    """Everything that the weights of the nano VLM depend on."""

    out: str
    """Folder for checkpoints and the finished model."""

    seed: int = 0
    threads: int = 2
    shape: LlavaShape = field(default_factory=LlavaShape)
    vision: Stage = field(
        default_factory=lambda: Stage(num_steps=2200, num_emoji=96, num_scenes=28)
    )
    """Vision encoder alone, by classification."""

    speech: Stage = field(
        default_factory=lambda: Stage(
            num_steps=800, schedule_steps=1200, num_emoji=96, num_scenes=28
        )
    )
    """Whole VLM, mostly on names."""

    polish: Stage = field(
        default_factory=lambda: Stage(
            num_steps=550, num_emoji=64, num_scenes=56, questions_per_scene=8, muon_lr=1.5e-3
        )
    )
    """Whole VLM, mostly on questions."""

    questions: Stage = field(
        default_factory=lambda: Stage(
            num_steps=1500, num_emoji=64, num_scenes=64, questions_per_scene=12
        )
    )
    """Whole VLM, names and questions in equal parts."""

    checkpoint_every: int = 200
    """Steps between checkpoints."""


class MatrixOptimizer:
    """Muon for matrices inside layers and AdamW for the rest, with the same cosine schedule."""

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], stage: Stage) -> None:
        """Split the parameters; embeddings and heads are matrices, but go to AdamW."""
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named:
            inner = parameter.ndim == 2 and "embed" not in name and "head" not in name
            (matrices if inner and "names" not in name and "parts" not in name else rest).append(
                parameter
            )
        self.stage = stage
        self.parts: list[tuple[Any, float]] = [
            (
                torch.optim.Muon(
                    matrices, lr=stage.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
                ),
                stage.muon_lr,
            ),
            (
                torch.optim.AdamW(
                    rest, lr=stage.adamw_lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
                ),
                stage.adamw_lr,
            ),
        ]
        self.parameters = [*matrices, *rest]

    def step(self, step: int) -> None:
        """Clip gradients, update weights, clear gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        warmup = min(1.0, (step + 1) / self.stage.warmup_steps)
        done = step / (self.stage.schedule_steps or self.stage.num_steps)
        factor = warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[Any]:
        """Return the state of both optimizers."""
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load(self, state: list[Any]) -> None:
        """Restore what `state` returned."""
        for (optimizer, _), saved in zip(self.parts, state, strict=True):
            optimizer.load_state_dict(saved)


def run_stage(
    name: str,
    recipe: NanoRecipe,
    stage: Stage,
    module: nn.Module,
    named: Iterable[tuple[str, nn.Parameter]],
    batches: Any,
    loss_of: Any,
) -> None:
    """Train `module` for one stage, resuming from its checkpoint if there is one."""
    optimizer = MatrixOptimizer(named, stage)
    path = Path(recipe.out) / f"{name}.pt"
    start = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        module.load_state_dict(saved["module"])
        optimizer.load(saved["optimizer"])
        start = saved["step"]
    loader = DataLoader(
        Subset(batches, range(start, stage.num_steps)),
        batch_size=None,
        num_workers=1,
        prefetch_factor=4,
    )
    began, window_began = time.monotonic(), time.monotonic()
    for step, batch in enumerate(loader, start):
        metrics = loss_of(batch)
        optimizer.step(step)
        if (step + 1) % 25 == 0:
            step_s = (time.monotonic() - window_began) / 25
            window_began = time.monotonic()
            rounded = {key: round(float(value.detach()), 4) for key, value in metrics.items()}
            at = f"{step + 1}/{stage.num_steps}"
            logger.info("%s step %s %.2f s/step %s", name, at, step_s, rounded)
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == stage.num_steps:
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state(),
                "step": step + 1,
            }
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
    logger.info("%s done in %.0f s", name, time.monotonic() - began)


def train_nano(recipe: NanoRecipe) -> Path:
    """Run all stages and write the Hugging Face folder.

    Returns:
        Folder of the finished model, with bfloat16 weights.
    """
    from consomme.models.weights import save_vlm

    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    shape = recipe.shape
    tokenizer = train_tokenizer(corpus(), shape.vocab_size)
    model = build_llava(shape, tokenizer, recipe.seed)
    model.train()
    vision_encoder = model.model.vision_tower
    read_out = ReadOut(shape.vision_width, len(EmojiViews().names), shape.vision_heads)
    # Names of the modules are keys of stage checkpoints.
    classifier = nn.ModuleDict({"tower": vision_encoder, "read_out": read_out})

    def classification_loss(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            patches = vision_encoder(batch["pixel_values"]).last_hidden_state[:, 1:]
            losses = read_out.loss(patches, batch["names"], batch["quadrants"])
        (losses["names"] + losses["quadrants"]).backward()  # type: ignore[no-untyped-call]
        return losses

    stage = recipe.vision
    vision_batches = VisionBatches(
        seed=recipe.seed,
        num_steps=stage.num_steps,
        num_emoji=stage.num_emoji,
        num_scenes=stage.num_scenes,
        out_px=shape.image_px,
    )
    run_stage(
        "vision",
        recipe,
        stage,
        classifier,
        classifier.named_parameters(),
        vision_batches,
        classification_loss,
    )

    def language_loss(batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = {}
        for kind, part in batch.items():
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**part).loss
            loss.backward()
            losses[kind] = loss.detach()
        return losses

    # On CPUs the backward pass of fused attention takes three times as long as that of eager.
    model.set_attn_implementation("eager")
    stages = {"speech": recipe.speech, "polish": recipe.polish, "questions": recipe.questions}
    for number, (name, stage) in enumerate(stages.items()):
        batches = ConversationBatches(
            tokenizer,
            seed=recipe.seed + number,
            num_steps=stage.num_steps,
            num_emoji=stage.num_emoji,
            num_scenes=stage.num_scenes,
            out_px=shape.image_px,
            num_image_tokens=shape.num_image_tokens,
            num_questions=stage.questions_per_scene,
        )
        run_stage(name, recipe, stage, model, model.named_parameters(), batches, language_loss)
    folder = out / "nano"
    save_vlm(folder, model.to(torch.bfloat16), build_processor(shape, tokenizer))
    return folder


def main() -> None:
    """Train by the recipe given on the command line."""
    from consomme.base.recipe import load_recipe

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_nano(load_recipe(NanoRecipe, sys.argv[1], sys.argv[2:]))


if __name__ == "__main__":
    main()
