"""Let models answer benchmarks: from the cache, or as the units of a run on a pool of actors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from consomme.base.errors import DataError, RecipeError
from consomme.base.recipe import strategy_identity
from consomme.base.sample import Reject
from consomme.evaluate.benchmark import (
    Benchmark,
    HasData,
    describe,
    is_written,
    parts_of,
    portable_node,
)
from consomme.evaluate.cache import ResultCache, result_key
from consomme.evaluate.engine_rules import DEFAULT_ENGINE
from consomme.execution.driver import run_job
from consomme.execution.job import ActorPool, Job
from consomme.execution.session import num_cpus, ray_session
from consomme.pipelines.evaluate.asked import Asked, plan_asked, planned_sources, read_numbers
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.plan import Plan, read_part
from consomme.storage.sidecar import iter_columns
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import join_url

if TYPE_CHECKING:
    from consomme.engines.generation.models import EngineModel

_LOG = logging.getLogger(__name__)

CPUS_PER_ACTOR = 0.8
"""All actors together leave some CPU to what commits and follows."""

NO_ANSWER = ("judge", "clip_score")
"""Fields of benchmarks that decide verdicts, and no answers."""

PASSING = ("killed_worker", "model_timeout")
"""Reasons that another try might not have; answers of a model that lack some for these are not
kept for other runs."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of a model to a benchmark."""

    texts: Sequence[str]
    """Of each request; empty where there is none."""

    refused: Mapping[int, str] = field(default_factory=dict)
    """Number of a request without an answer -> reason."""

    cut: Sequence[int] = ()
    """Numbers of those that reached the token limit before their end."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the cache."""
        refused = {str(number): reason for number, reason in self.refused.items()}
        return {"answers": list(self.texts), "refused": refused, "cut": list(self.cut)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answers:
        """Read what `to_dict` wrote; earlier versions kept the texts only."""
        refused = {int(number): reason for number, reason in values.get("refused", {}).items()}
        return cls(texts=values["answers"], refused=refused, cut=values.get("cut", ()))


@dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
    """One model and one benchmark."""

    label: str
    """Of the model."""

    model: EngineModel
    name: str
    """Of the benchmark in tables."""

    node: Mapping[str, Any]
    """Of the recipe."""

    benchmark: Benchmark
    """Built from it."""

    @property
    def source(self) -> str:
        """Name in units and rejects."""
        return f"{self.label}/{self.name}"

    def is_in(self, sources: Collection[str]) -> bool:
        """Whether some of its parts are among these."""
        return any(self.source in (one, one.rpartition("/")[0]) for one in sources)

    def asked(self) -> Iterator[Asked]:
        """Yield the parts that are asked."""
        parts = parts_of(self.benchmark)
        for number, part in enumerate(parts):
            yield Asked(
                source=self.source + (f"/{number}" if len(parts) > 1 else ""),
                model=self.model,
                node=portable_node(self.node),
                part=number,
                is_written=is_written(part),
                num_items=len(part.items()),
                version=part.data_version() if isinstance(part, HasData) else "",
            )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How models are asked."""

    engine: Mapping[str, Any]
    """Node of the recipe."""

    template: Mapping[str, Any]
    """Options of the models' chat templates."""

    num_actors: int | None
    min_actors: int
    unit_items: int
    max_reject_fraction: float


def answer_all(
    root: str, folder: RunFolder, questions: Sequence[AskedBenchmark], asking: Asking
) -> list[Answers]:
    """Answer benchmarks; aligned with `questions`.

    Answers are taken from `<root>/cache/answers`, by the content of model and benchmark: a new
    checkpoint written to an old path is a new key. What is not there is asked in units that are
    committed in the run's ledger, and put there when all of it is answered.
    """
    cache = ResultCache(open_store(join_url(root, "cache")), "answers")
    keys = _keys(questions, asking)
    # The same may be asked under several labels.
    first: dict[str, AskedBenchmark] = {}
    for key, question in zip(keys, questions, strict=True):
        first.setdefault(key, question)
    known = {key: Answers.from_dict(one) for key in first if (one := cache.get(key)) is not None}
    missing = {key: question for key, question in first.items() if key not in known}
    planned = planned_sources(folder)
    # Repaired without plan and records: what it asked is not known, so all of it is asked again.
    is_lost = not planned and folder.was_started
    if missing or planned or is_lost:
        asked = {
            key: list(question.asked())
            for key, question in first.items()
            if key in missing or is_lost or question.is_in(planned)
        }
        parts = [part for key in asked for part in asked[key]]
        plan = plan_asked(folder, parts, asking.unit_items)
        if not folder.is_closed:
            with ray_session():
                _ask(folder, plan, parts, asking)
        found = _collect(folder, parts)
        for key, some in asked.items():
            known[key] = joined([found[part.source] for part in some])
            if not set(known[key].refused.values()) & set(PASSING):
                cache.put(key, known[key].to_dict())
    return [known[key] for key in keys]


def engine_identity(engine: Mapping[str, Any]) -> Any:
    """Return what of an engine's node decides the answers, for the keys of the cache."""
    from consomme.engines.generation.registry import GENERATION_ENGINES

    identity: Any = strategy_identity(GENERATION_ENGINES, engine)
    # Answers of runs before there was a choice are stored under its name alone.
    return DEFAULT_ENGINE["name"] if identity == DEFAULT_ENGINE else identity


def _keys(questions: Sequence[AskedBenchmark], asking: Asking) -> list[str]:
    identity = engine_identity(asking.engine)
    # Describing a benchmark reads its data.
    described = {id(one.benchmark): describe(one.benchmark, without=NO_ANSWER) for one in questions}
    return [
        result_key(
            model_hash=one.model.model_hash,
            benchmark=str(one.node["name"]),
            benchmark_hash=described[id(one.benchmark)],
            decoding={"engine": identity, "temperature": 0, "template": dict(asking.template)},
        )
        for one in questions
    ]


def _ask(folder: RunFolder, plan: Plan, asked: Sequence[Asked], asking: Asking) -> None:
    """Do the units of a plan that are not done."""
    from consomme.pipelines.evaluate.stage import ANSWERS, AnswerStage

    done = folder.done_units()
    by_source = {one.source: one for one in asked}
    left = [
        work.unit.source
        for part in plan.parts
        for work in read_part(folder.store, part.path)
        if work.unit.unit_id not in done
    ]
    # Without a unit that is left, no actor starts.
    first = [by_source[source] for source in dict.fromkeys(left)] or list(asked)
    job = Job(
        name="evaluate",
        plan=plan,
        folder=folder,
        kind=ANSWERS,
        stage=partial(AnswerStage, first, asking.engine, asking.template, folder=folder),
        pool=_pool(asking, len(left)),
        max_reject_fraction=asking.max_reject_fraction,
        read=read_numbers,
    )
    run_job(job)


def _pool(asking: Asking, num_units: int) -> ActorPool:
    """One engine per GPU or group of GPUs; without GPUs, one per CPU if it takes one only."""
    import ray

    from consomme.engines.generation.registry import GENERATION_ENGINES

    engine = GENERATION_ENGINES.build(asking.engine, "engine")
    gpus = 0 if engine.is_remote else int(ray.cluster_resources().get("GPU", 0))
    each = engine.num_gpus if gpus else 0
    if gpus and gpus < each:
        raise RecipeError(f"engine.tensor_parallel: found {each}, but the cluster has {gpus} GPUs")
    is_small = asking.engine["name"] == "transformers" and not gpus
    most = asking.num_actors or (num_cpus() if is_small else max(1, gpus // max(1, each)))
    return ActorPool(
        max_actors=max(1, min(most, num_units)),
        min_actors=asking.min_actors,
        num_readers=0,
        cpus=CPUS_PER_ACTOR,
        gpus=float(each),
    )


def _collect(folder: RunFolder, asked: Sequence[Asked]) -> dict[str, Answers]:
    """Read all answers and rejects of a ledger whose units are done, by source.

    Raises:
        DataError: A model can be asked nothing of a benchmark.
    """
    from consomme.pipelines.evaluate.stage import ANSWERS

    texts: dict[str, dict[int, str]] = {one.source: {} for one in asked}
    cut: dict[str, list[int]] = {one.source: [] for one in asked}
    for record, table in iter_columns(folder.url, ["answer", "is_cut"], ANSWERS):
        source = record.unit.source
        for row in table.to_pylist():
            texts[source][int(row["sample_id"])] = row["answer"]
            if row["is_cut"]:
                cut[source].append(int(row["sample_id"]))
    rejects: dict[str, dict[int, Reject]] = {one.source: {} for one in asked}
    for reject in folder.rejects():
        rejects[reject.source][int(reject.sample_id)] = reject
    found = {}
    for one in asked:
        refused = rejects[one.source]
        lost = set(range(one.num_items)) - set(texts[one.source]) - set(refused)
        assert not lost, f"{folder.url}: {one.source} has no answer to {sorted(lost)[:5]}"
        if refused:
            number, reject = min(refused.items())
            detail = f"{one.source}: question {number}: {reject.reason}: {reject.detail}"
            if len(refused) == one.num_items:
                raise DataError(f"no question can be put to this model; {detail}")
            _LOG.warning("%d of %d are not answered; %s", len(refused), one.num_items, detail)
        found[one.source] = Answers(
            texts=[texts[one.source].get(number, "") for number in range(one.num_items)],
            refused={number: reject.reason for number, reject in sorted(refused.items())},
            cut=sorted(cut[one.source]),
        )
    return found


def joined(parts: Sequence[Answers]) -> Answers:
    """Join the answers to the parts of a benchmark."""
    starts = [sum(len(one.texts) for one in parts[:k]) for k in range(len(parts))]
    pairs = list(zip(starts, parts, strict=True))
    return Answers(
        texts=[text for one in parts for text in one.texts],
        refused={start + n: why for start, one in pairs for n, why in one.refused.items()},
        cut=[start + n for start, one in pairs for n in one.cut],
    )
