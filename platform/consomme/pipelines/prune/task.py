"""Prune a model in one process: observe, choose, write, check, measure."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from consomme.base.errors import CheckpointError, DataError, RecipeError
from consomme.evaluate.guards import GuardFinding, judge_guard
from consomme.evaluate.names import benchmark_name
from consomme.pipelines.evaluate.in_memory import AnswerCache, answer_folder
from consomme.pipelines.prune.job import PruneJob, PruneOutcome
from consomme.pipelines.prune.samples import CalibrationSamples
from consomme.prune.choosing import LAYER_CHOICES, ChosenLayers
from consomme.prune.importance import LAYER_IMPORTANCES, ImportanceInputs
from consomme.prune.layer_config import fixed_layers
from consomme.storage.model_folder import model_content_hash, model_folder
from consomme.storage.output_folder import output_folder
from consomme.train.layers import LAYER_SELECTORS, ScoringInputs

logger = logging.getLogger(__name__)

MODEL = "model"
"""Folder of the model of the run."""


def model_path(count: int) -> str:
    """Return the folder of the model without so many layers, if there are several."""
    return f"removed-{count}/{MODEL}"


def prune_model(job: PruneJob) -> Iterator[PruneOutcome | None]:
    """Do everything that a prune recipe says; runs as a Ray task.

    Yields:
        None after each of `num_steps` steps, and the outcome at last.

    Raises:
        CheckpointError: Layers of this model cannot be removed.
        DataError: No model loses little enough.
        RecipeError: So many layers cannot be removed, or a protected layer does not exist.
    """
    yield from PruneTask(job).run()


def num_steps(counts: Collection[int]) -> int:
    """Return how many steps `prune_model` has: one to look into the model, two for each number."""
    some = len([count for count in counts if count])
    return 2 + 2 * some


class PruneTask:
    """The whole model, what was found out about it, and what was written."""

    def __init__(self, job: PruneJob) -> None:
        """Open the model and read the calibration samples."""
        import torch

        from consomme.models.anatomy import language_model
        from consomme.models.chat_prefix import chat_encoder_for
        from consomme.models.weights import open_model, stored_dtype

        self.job, self.recipe = job, job.recipe
        self.folder = model_folder(job.inputs.model)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # On CPUs many kernels for half precision are missing or slow.
        self.dtype = stored_dtype(self.folder) if self.device.type == "cuda" else torch.float32
        self.model, processor = open_model(self.folder, self.dtype)
        self.model.to(self.device)
        self.chat = chat_encoder_for(self.model.config, processor, self.recipe.template)
        self.num_layers = len(self.model.get_submodule(language_model(self.model).layers_path))
        self.samples: CalibrationSamples | None = None
        if job.calibration is not None:
            self.samples = CalibrationSamples(
                job.calibration, self.recipe.num_samples, self.model, self.chat
            )
        fixed = fixed_layers(self.model.config)
        self.outcome = PruneOutcome(
            num_layers=self.num_layers, protected=sorted({*self._protected(), *fixed})
        )
        for why in dict.fromkeys(fixed.values()):
            layers = ", ".join(str(layer) for layer, one in fixed.items() if one == why)
            self.outcome.notes.append(f"layers {layers} stay in this family: {why}")
        if self.samples is not None:
            self.outcome.samples = self.samples.ids
        self._runs: dict[tuple[tuple[int, ...], int], list[float]] = {}
        self._guarded: dict[int, list[Sequence[str]]] = {}
        """Answers to guards, by number of removed layers."""

        self._cache = AnswerCache(job.cache_url, self.recipe.template)

    def run(self) -> Iterator[PruneOutcome | None]:
        """Choose, diagnose, and write a model for each number of layers; see `prune_model`."""
        from consomme.prune.checking import is_cacheable, probes, skipped_outputs

        recipe, outcome = self.recipe, self.outcome
        self.probes = probes(self.model, self.chat)
        if any(recipe.counts):
            outcome.scores = list(self._score_runs(range(self.num_layers), 1))
        chosen = {}
        for count in recipe.counts:
            chosen[count] = self._choose(count)
            if count:
                yield None
        self._diagnose()
        yield None
        cacheable = is_cacheable(self.model, self.probes[0])
        self.expected = {
            count: skipped_outputs(self.model, self.probes, one.removed, cacheable=cacheable)
            for count, one in chosen.items()
        }
        # Measured even if it is not asked for: it is what the others are compared with.
        nothing = ChosenLayers(removed=(), steps=())
        whole = self._row(nothing, self.folder, self._cost(nothing, self.folder, self.model))
        yield None
        rows = [whole]
        for count, one in chosen.items():
            if count:
                rows.append(self._write(count, one))
                yield None
        if 0 in chosen and recipe.has_several:
            self._written(model_path(0), ())
        outcome.models = rows
        outcome.chosen = self._select()
        if recipe.has_several or not outcome.chosen:
            row = next(one for one in rows if one["n"] == outcome.chosen)
            self._written(MODEL, row["removed"])
        self._revert()
        yield outcome

    def _protected(self) -> list[int]:
        """Return the layers that stay."""
        region = self.job.inputs.region
        if region is not None:
            if self.job.inputs.region_depth != self.num_layers:
                raise RecipeError(
                    f"protect_run: found a run of a model of {self.job.inputs.region_depth} layers,"
                    f" but {self.recipe.model} has {self.num_layers}"
                )
            return sorted(region)
        if self.recipe.protect is None:
            return []
        selector = LAYER_SELECTORS.build(self.recipe.protect, "protect")
        scores = selector.score(
            ScoringInputs(model=self.model, chat=self.chat, batches=self._batches)
        )
        return list(selector(self.num_layers, scores))

    def _batches(self, num: int | None = None) -> Iterator[Mapping[str, Any]]:
        if self.samples is not None:
            yield from self.samples.batches(num)

    def _score_runs(self, kept: Sequence[int], size: int) -> list[float]:
        key = (tuple(kept), size)
        if key not in self._runs:
            inputs = ImportanceInputs(
                folder=self.folder,
                model=self.model,
                batches=self._batches,
                image_token_id=self.chat.image_token_id if self.chat.has_vision else None,
                base=self.job.inputs.base and model_folder(self.job.inputs.base),
            )
            measure = LAYER_IMPORTANCES.build(self.recipe.importance, "importance")
            self._runs[key] = measure.score_runs(inputs, list(kept), size)
        return self._runs[key]

    def _choose(self, count: int) -> ChosenLayers:
        if count == 0:
            return ChosenLayers(removed=(), steps=())
        choice = LAYER_CHOICES.build(self.recipe.choose, "choose")
        found = choice(self._score_runs, self.num_layers, count, self.outcome.protected)
        logger.info("prune: %d layers go: %s", count, ", ".join(map(str, found.removed)))
        return found

    def _write(self, count: int, chosen: ChosenLayers) -> dict[str, Any]:
        """Write a model, check it, and return its row."""
        from consomme.models.weights import open_model
        from consomme.prune.checking import check_pruned

        path = model_path(count) if self.recipe.has_several else MODEL
        with output_folder(self.job.folder.store, path) as output:
            folder = output.folder / path
            try:
                self._write_folder(folder, chosen.removed)
                model, _ = open_model(folder, self.dtype)
                model.to(self.device)
                difference = check_pruned(model, self.probes, self.expected[count])
            except CheckpointError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            cost = self._cost(chosen, str(folder), model)
            # Benchmarks open the model once more.
            del model
            row = self._row(chosen, str(folder), cost)
        self.outcome.written |= output.written
        return row | {"largest_logit_difference": difference, "path": path}

    def _written(self, path: str, removed: Sequence[int]) -> None:
        """Write a model that is checked already."""
        with output_folder(self.job.folder.store, path) as output:
            self._write_folder(output.folder / path, removed)
        self.outcome.written |= output.written

    def _write_folder(self, folder: Any, removed: Sequence[int]) -> None:
        from consomme.prune.card import pruned_card
        from consomme.prune.writing import plan_removal, write_pruned

        removal = plan_removal(self.folder, removed)
        if removal.dropped:
            self.outcome.notes.append(
                f"{len(removal.dropped)} tensors of layers beyond the model's own, which predict"
                " further tokens, are left out: they were trained on top of the whole model"
            )
        largest = self.recipe.max_shard_gb
        card = pruned_card(
            self.recipe.model,
            removed=removed,
            num_layers=self.num_layers,
            importance=self.recipe.importance,
            choose=self.recipe.choose,
            protected=self.outcome.protected,
        )
        size = None if largest is None else int(largest * 1e9)
        write_pruned(folder, removal, max_file_bytes=size, card=card)

    def _cost(self, chosen: ChosenLayers, folder: str, model: Any) -> dict[str, Any]:
        from consomme.prune.figures import model_cost
        from consomme.prune.writing import plan_removal

        stored = plan_removal(folder, ())
        return model_cost(
            model,
            self.probes,
            num_layers=self.num_layers - len(chosen.removed),
            num_parameters=stored.num_parameters,
            weight_bytes=stored.num_bytes,
        ).plain()

    def _row(self, chosen: ChosenLayers, folder: str, cost: dict[str, Any]) -> dict[str, Any]:
        """Let a model answer, and return all that is known of it."""
        nodes = [*self.recipe.benchmarks, *(one.benchmark for one in self.recipe.guards)]
        steps = [
            {"removed": list(one.removed), "score": one.score, "scores": one.scores}
            for one in chosen.steps
        ]
        self.model = None
        return {
            "n": len(chosen.removed),
            "removed": list(chosen.removed),
            "steps": steps,
            "cost": cost,
            "figures": self._answered(len(chosen.removed), folder, nodes) if nodes else {},
        }

    def _answered(
        self, count: int, folder: str, nodes: Sequence[Mapping[str, Any]]
    ) -> dict[str, dict[str, float]]:
        from consomme.evaluate.benchmarks import BENCHMARKS

        digest = model_content_hash(folder) if count else self.job.inputs.model_hash
        texts = answer_folder(
            self._cache,
            folder,
            digest,
            nodes,
            template=self.recipe.template,
            run=self.job.folder,
        )
        built = [BENCHMARKS.build(node, "benchmarks") for node in nodes]
        guards = texts[len(self.recipe.benchmarks) :]
        self._guarded[count] = list(guards)
        found = {
            benchmark_name(node): one.measure(answers)
            for node, one, answers in zip(nodes, built, texts, strict=True)
        }
        self.outcome.main_figures = {name: next(iter(one)) for name, one in found.items()}
        return found

    def _select(self) -> int:
        """Return the largest number of layers that loses little enough.

        Raises:
            DataError: There is none, and a guard refuses that.
        """
        counts = self.recipe.counts
        if not self.recipe.guards:
            return max(counts)
        found = {count: self._findings(count) for count in counts if count}
        self.outcome.guards = {n: [one.plain() for one in some] for n, some in found.items()}
        passing = [n for n in counts if not n or all(one.passes for one in found[n])]
        if passing:
            return max(passing)
        least = min(counts)
        for guard, finding in zip(self.recipe.guards, found[least], strict=True):
            if not finding.passes and guard.otherwise == "refuse":
                raise DataError(
                    f"already without {least} layers, {finding.line}. Remove fewer, allow more by"
                    " at_most_worse, heal the model by training, or take it all the same with"
                    " otherwise=warn"
                )
        return least

    def _findings(self, count: int) -> list[GuardFinding]:
        return [
            judge_guard(
                guard, benchmark_name(guard.benchmark), self._guarded[0][k], self._guarded[count][k]
            )
            for k, guard in enumerate(self.recipe.guards)
        ]

    def _diagnose(self) -> None:
        """Look into the layers of the whole model."""
        from consomme.prune.diagnosing import attention_by_layer, lens_words

        wanted, found = self.recipe.diagnostics, self.outcome.diagnostics
        token = self.chat.image_token_id if self.chat.has_vision else None
        if wanted.needs_images and self.samples is not None and not self.samples.num_images:
            raise DataError(
                "diagnostics: found no image in the calibration samples, so there are no image"
                " tokens to look at; give other data"
            )
        if wanted.attention:
            found["attention"] = attention_by_layer(self.model, self._batches(), token)
        if wanted.logit_lens:
            found["logit_lens"] = lens_words(
                self.model, self._batches(), self.chat.tokenizer, token, wanted.logit_lens
            )

    def _revert(self) -> None:
        """Put back each layer of the base, and ask the benchmarks."""
        if self.job.inputs.revert_to is None:
            return
        from consomme.pipelines.prune.reverting import reverted_figures

        self.outcome.diagnostics["reversion"] = reverted_figures(
            self.job, self.folder, model_folder(self.job.inputs.revert_to), self.num_layers
        )
