"""Contrastive region guidance: its speed, its effect on the nano VLM, and the truth of negatives.

    python -m tests.benchmarks.run crg

Speed is that of one guided batch against two generations of the same length, one of the images and
one of the masked images, in turn. Effects are shares of right answers over three sets of questions
of scenes of an unseen style, pooled, with a 95 % interval; regions are those that a question or a
caption names. Negatives are judged claim by claim against the scene.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

NANO = "package://models/nano"
BATCHES = (1, 8, 32)
TOKENS = 32
ROUNDS = 5
SEEDS = (910_000, 920_000, 930_000)
VARIANTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "boxes": {"alpha": 1},
    "boxes_alpha_0.5": {"alpha": 0.5},
    "boxes_alpha_2": {"alpha": 2},
    "first": {"alpha": 1, "area": "first"},
    "hull": {"alpha": 1, "area": "hull"},
    "segments": {"alpha": 1, "area": "segments"},
    "image": {"alpha": 1, "area": "image"},
    "blur": {"alpha": 1, "mask": "blur"},
}
SETS: dict[str, dict[str, Any]] = {
    "negatives": {"name": "scene_negatives", "num": 40, "style": "outline"},
    "places": {"name": "scene_places", "num": 8, "style": "outline"},
    "questions": {"name": "scene_questions", "num": 20, "style": "outline"},
}
NEGATIVES_OF = 2_000


def speed_rows() -> Iterator[dict[str, Any]]:
    """Time guided batches of several sizes."""
    from tests.benchmarks.run import row

    from consomme.datasets import scenes
    from consomme.datasets.scene_regions import named_regions
    from consomme.engines.contrast import Contrast
    from consomme.engines.generation.requests import Request, Sampling
    from consomme.engines.generation.transformers import TransformersEngine
    from consomme.storage.model_folder import model_folder
    from consomme.vision.boxes import read_regions
    from consomme.vision.masking import masked

    engine = TransformersEngine(
        model_folder(NANO), Sampling(max_tokens=TOKENS), dtype="float32", batch_size=max(BATCHES)
    )
    # Texts of one length, whatever the model writes.
    engine._stop_ids = []
    plain, hidden, guided = [], [], []
    for seed in range(max(BATCHES)):
        scene = scenes.make_scene(seed)
        image = scenes.render(scene)
        (regions,) = read_regions(named_regions(scene, ""), [image.size])
        other = masked(image, regions[:1])
        plain.append(Request.of_prompt("describe the image.", [image]))
        hidden.append(Request.of_prompt("describe the image.", [other]))
        guided.append(replace(plain[-1], contrast=Contrast(alpha=1, images=(other,))))
    for size in BATCHES:
        ratios, rates = [], []
        for number in range(ROUNDS + 1):
            start = time.perf_counter()
            engine.generate(plain[:size])
            engine.generate(hidden[:size])
            between = time.perf_counter()
            engine.generate(guided[:size])
            end = time.perf_counter()
            if number:
                ratios.append((between - start) / (end - between))
                rates.append(size * TOKENS / (end - between))
        rate = statistics.median(rates)
        how = (
            f"nano VLM, one CPU thread, float32, {size} requests of {TOKENS} tokens, median of"
            f" {ROUNDS} rounds ({min(ratios):.2f} to {max(ratios):.2f}); {rate:.0f} guided tokens"
            " a second"
        )
        baseline = "generating once with the images and once with the masked images"
        key = f"crg.vs_two_generations_{size}"
        yield row(key, statistics.median(ratios), "×", baseline, how)


def effect_rows(sets: tuple[str, ...] = tuple(SETS)) -> Iterator[dict[str, Any]]:
    """Let the nano VLM answer every set with every variant."""
    from tests.benchmarks.run import row

    from consomme.curate.perplexity import token_nll
    from consomme.engines.generation.requests import Sampling
    from consomme.engines.generation.transformers import TransformersEngine
    from consomme.engines.scoring.transformers import TransformersScorer
    from consomme.evaluate.benchmark import is_written
    from consomme.evaluate.benchmarks import BENCHMARKS
    from consomme.evaluate.comparison import compare
    from consomme.evaluate.metrics import accuracy
    from consomme.pipelines.evaluate.stage import Refusal, likely_answers, written_answers
    from consomme.storage.model_folder import model_folder

    folder = model_folder(NANO)
    engine = TransformersEngine(folder, Sampling(), dtype="float32")
    scorer = TransformersScorer(folder, token_nll, dtype="float32")
    for name in sets:
        node = SETS[name]
        plain: list[float] = []
        for variant, guidance in VARIANTS.items():
            right: list[float] = []
            wholes: list[float] = []
            shares: list[float] = []
            refused = 0
            for seed in SEEDS:
                benchmark: Any = BENCHMARKS.build(
                    {**node, "first_seed": seed, **({"guidance": guidance} if guidance else {})}
                )
                items = benchmark.items()
                is_text = is_written(benchmark)
                answers: list[Any] = (
                    written_answers(engine, benchmark, items, range(len(items)))
                    if is_text
                    else likely_answers(scorer, benchmark, items, range(len(items)))
                )
                # What cannot be guided is answered wrongly, as in a run.
                texts = ["" if isinstance(one, Refusal) else one.text for one in answers]
                refused += texts.count("")
                figures = benchmark.measure(texts)
                right += benchmark.verdicts(texts)
                shares.append(figures["accuracy_fraction"])
                if "set_accuracy_fraction" in figures:
                    wholes.append(figures["set_accuracy_fraction"])
            plain = plain or right
            found, apart = accuracy([one > 0 for one in right]), compare(plain, right)
            how = (
                f"{len(right)} questions, three sets of {node['name']} ({node['style']}):"
                f" {', '.join(f'{one:.3f}' for one in shares)}; 95 % interval {found.low:.3f} to"
                f" {found.high:.3f}; difference {apart.difference:+.3f} ({apart.low:+.3f} to"
                f" {apart.high:+.3f})"
            )
            if refused:
                how += f"; {refused} cannot be guided, and count as wrong"
            yield row(f"crg.{name}.{variant}", found.value, "of answers", f"crg.{name}.plain", how)
            if wholes:
                yield row(
                    f"crg.{name}_sets_of_4.{variant}",
                    statistics.fmean(wholes),
                    "of sets",
                    f"crg.{name}_sets_of_4.plain",
                    ", ".join(f"{one:.3f}" for one in wholes),
                )


def negative_rows() -> Iterator[dict[str, Any]]:
    """Judge what each rule makes of the captions of scenes."""
    from tests.benchmarks.run import row

    from consomme.datasets import scenes
    from consomme.datasets.negatives import NEGATIVES, negative
    from consomme.datasets.scene_pairs import SCENE_WORDS, is_false, is_still_true

    known = [(seed, scenes.make_scene(seed)) for seed in range(NEGATIVES_OF)]
    for kind in NEGATIVES:
        made = [
            (scene, text)
            for seed, scene in known
            if (text := negative(kind, scenes.caption(scene), str(seed), SCENE_WORDS)) is not None
        ]
        still = sum(is_still_true(scene, text, scenes.caption(scene)) for scene, text in made)
        unsaid = sum(not is_false(scene, text) for scene, text in made)
        of = f"made of {len(made)} of {len(known)} captions of scenes"
        num = max(1, len(made))
        how = f"{of}; claim what the caption claims, and nothing false"
        yield row(f"crg.negatives.still_true.{kind}", still / num, "of negatives", "", how)
        how = f"{of}; no claim that can be read is false, though claims may be lost in the order"
        yield row(f"crg.negatives.none_false.{kind}", unsaid / num, "of negatives", "", how)


def rows() -> Iterator[dict[str, Any]]:
    """Measure all of it."""
    yield from negative_rows()
    yield from speed_rows()
    yield from effect_rows()


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Write the study: speed, effects by variant, and the truth of negatives."""
    values = {row["key"]: row["value"] for row in rows}
    names = [n for n in (*SETS, "places_sets_of_4") if f"crg.{n}.plain" in values]
    text = [f"| masked, alpha | {' | '.join(n.replace('_', ' ') for n in names)} |"]
    text.append("| --- |" + " --- |" * len(names))
    for variant in VARIANTS:
        keys = [f"crg.{name}.{variant}" for name in names]
        if any(key in values for key in keys):
            cells = " | ".join(f"{values[key]:.3f}" if key in values else "" for key in keys)
            text.append(f"| {MEANINGS[variant]} | {cells} |")
    text += ["", "| requests in a batch | guided batch against two generations |", "| --- | --- |"]
    text += [
        f"| {size} | {values[f'crg.vs_two_generations_{size}']:.2f} × |"
        for size in BATCHES
        if f"crg.vs_two_generations_{size}" in values
    ]
    still, unsaid = "crg.negatives.still_true.", "crg.negatives.none_false."
    text += ["", "| rule | still true | no claim is false |", "| --- | --- | --- |"]
    text += [
        f"| `{key.removeprefix(still)}` | {value:.4f} | {values[key.replace(still, unsaid)]:.4f} |"
        for key, value in values.items()
        if key.startswith(still)
    ]
    return text


MEANINGS = {
    "plain": "nothing: the model as it is",
    "boxes": "boxes, 1 (the paper)",
    "boxes_alpha_0.5": "boxes, 0.5",
    "boxes_alpha_2": "boxes, 2",
    "first": "the first box only, 1",
    "hull": "hull of the boxes, 1",
    "segments": "outlines, 1",
    "image": "whole image, 1",
    "blur": "boxes, blurred, 1",
}
