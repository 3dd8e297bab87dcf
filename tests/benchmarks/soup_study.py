"""Soups of nano models that were tuned on different skills: by selection, by shares, by parts.

The shipped model learns a style of drawing that it has never seen, one kind of question at a time,
with three seeds. Every search chooses by held-out scenes with all kinds of questions; its soup, the
start and the best single model are measured on other scenes.

    python -m tests.benchmarks.run soup_study

All runs are under `runs/soup-study`; an interrupted study is resumed.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "soup-study"
START = "package://models/nano"
SEEDS = (1, 2, 3)
SKILLS = ("color", "size", "position", "shape", "count", "word")
STYLE = "outline"
NUM_STEPS = 200
NUM_SCENES = 3000
HELD_OUT = {"name": "scene_questions", "num": 60, "first_seed": 700_000, "style": STYLE}
TEST = {"name": "scene_questions", "num": 250, "first_seed": 800_000, "style": STYLE}
SEARCHES: tuple[dict[str, Any], ...] = (
    {"name": "uniform"},
    {"name": "maximum", "k": 2},
    {"name": "greedy"},
    {"name": "exhaustive"},
    {"name": "pairs"},
    {"name": "cma_es", "max_evaluations": 80},
    {"name": "tpe", "max_evaluations": 120, "per_part": True},
)


def rows(
    seeds: Sequence[int] = SEEDS,
    skills: Sequence[str] = SKILLS,
    num_steps: int = NUM_STEPS,
    searches: Sequence[Mapping[str, Any]] = SEARCHES,
    root: Path = RUNS,
    scenes: tuple[int, int] = (HELD_OUT["num"], TEST["num"]),
) -> Iterator[dict[str, Any]]:
    """Tune and search; yields the held-out and the test figure of each seed and way to choose.

    Args:
        seeds: Of the trainings.
        skills: Kinds of questions, one for each ingredient.
        num_steps: Of each training.
        searches: Nodes of the searches.
        root: Of the runs.
        scenes: Held-out ones, and those of the test.
    """
    from consomme.base.telemetry import configure_logging
    from consomme.pipelines.soup import run as soup
    from consomme.pipelines.soup.recipe import SoupRecipe

    configure_logging()
    held_out, test = ({**node, "num": n} for node, n in zip((HELD_OUT, TEST), scenes, strict=True))
    for seed in seeds:
        tuned = {skill: _tuned(skill, seed, num_steps, root) for skill in skills}
        done = soup.run(
            SoupRecipe(
                name=f"seed-{seed}",
                root=str(root),
                ingredients=tuned,
                benchmark=held_out,
                report=(test,),
                searches=tuple(dict(one) for one in searches),
            )
        )
        start = _measured(seed, START, test, root)
        yield _row(seed, "start", "test", start, "the model that all were tuned from")
        decisions = done.decisions
        best = max(decisions["singles"].values())
        yield _row(
            seed, "best_single", "held_out", {"accuracy_fraction": best},
            ", ".join(f"{label} {score:.3f}" for label, score in decisions["singles"].items()),
        )  # fmt: skip
        for name, result in decisions["searches"].items():
            how = f"{result['num_evaluations']} evaluations; {_shares(result['shares'])}"
            yield _row(seed, name, "held_out", {"accuracy_fraction": result["score"]}, how)
        for name, figures in decisions["report"].items():
            (of_test,) = figures.values()
            yield _row(seed, name, "test", of_test, "the same model on the scenes of the test")


def _tuned(skill: str, seed: int, num_steps: int, root: Path) -> str:
    """Tune on one kind of question, and return the run's folder."""
    from consomme.pipelines.train import run as train
    from consomme.pipelines.train.recipe import TrainRecipe, TrainSource
    from consomme.train.parts import Part

    return train.run(
        TrainRecipe(
            name=f"{skill}-{seed}",
            root=str(root),
            model=START,
            data=(TrainSource(inputs=(f"{_data(skill, root)}/*.tar",)),),
            layers={"name": "all"},
            vision_encoder=Part(state="full"),
            projector=Part(state="full"),
            language_model=Part(state="full"),
            num_steps=num_steps,
            global_batch=16,
            micro_batch=16,
            lr=3e-4,
            seed=seed,
        )
    ).url


def _data(skill: str, root: Path) -> Path:
    """Write scenes with questions of one kind, and return the folder of the shards."""
    from consomme.base.sample import ImageFile, Sample, Turn
    from consomme.datasets import scenes
    from consomme.storage.writers import tar_bytes

    folder = root / "data" / skill
    done = folder / "scenes.tar"
    if done.exists():
        return folder
    samples = []
    for seed in range(50_000, 50_000 + NUM_SCENES):
        scene = scenes.make_scene(seed, STYLE)
        asked = [one for one in scenes.questions(scene, seed) if one.kind == skill]
        if not asked:
            continue
        picture = ImageFile(data=scenes.encode(scenes.render(scene)), name=f"{seed}.png")
        turns = (
            Turn(role="user", content=asked[0].question),
            Turn(role="assistant", content=asked[0].answer),
        )
        samples.append(
            Sample(sample_id=f"{skill}-{seed}", images=(picture,), turns=turns, source=skill)
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "scenes.tmp"
    temporary.write_bytes(tar_bytes(samples))
    temporary.rename(done)
    return folder


def _measured(seed: int, model: str, node: Mapping[str, Any], root: Path) -> Mapping[str, float]:
    from consomme.pipelines.evaluate import run as evaluate
    from consomme.pipelines.evaluate.recipe import EvaluateRecipe

    done = evaluate.run(
        EvaluateRecipe(
            name="start", root=str(root), models={"start": model}, benchmarks=(dict(node),)
        )
    )
    (figures,) = done.decisions["results"]["start"].values()
    found: Mapping[str, float] = figures
    return found


def _shares(shares: Mapping[str, Mapping[str, float]]) -> str:
    return "; ".join(
        f"{part}: {', '.join(f'{label} {share:.2f}' for label, share in some.items())}"
        for part, some in shares.items()
    )


WAYS = {
    "start": "the model that all were tuned from",
    "best_single": "best single model",
    "uniform": "average of all",
    "maximum": "average of the best two",
    "pairs": "best of every two",
    "greedy": "greedy",
    "exhaustive": "best of all 63 selections",
    "cma_es": "searched shares, 80 evaluations (CMA-ES)",
    "tpe": "searched shares of each part, 120 evaluations (TPE)",
}
"""Name of a row -> what it is called on the page."""


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the study's table, a line per way to choose.

    Args:
        rows: Of the results.
    """
    values: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        _, seed, name, what = row["key"].split(".")
        values.setdefault((name, what), {})[seed] = row["value"]
    text = ["| model | held-out scenes | other scenes | above the best single model |"]
    text.append("| --- | --- | --- | --- |")
    single = values["best_single", "test"]
    for name, shown in WAYS.items():
        test = values[name, "test"]
        gains = [test[seed] - single[seed] for seed in test]
        cells = [_spread(values.get((name, "held_out"), {}).values()), _spread(test.values())]
        each = ", ".join(f"{gain:+.3f}" for gain in gains)
        text.append(f"| {shown} | {' | '.join(cells)} | {'' if name == 'best_single' else each} |")
    return text


def _spread(values: Collection[float]) -> str:
    """Write a mean and a standard deviation; nothing of no values."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _row(seed: int, name: str, what: str, figures: Mapping[str, float], how: str) -> dict[str, Any]:
    ends = ("accuracy_low_fraction", "accuracy_high_fraction")
    interval = [figures[one] for one in ends if one in figures]
    return {
        "key": f"soup_study.{seed}.{name}.{what}",
        "value": round(figures["accuracy_fraction"], 4),
        "unit": "fraction",
        "baseline": f"soup_study.{seed}.best_single.{what}",
        "how": how + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""),
    }
