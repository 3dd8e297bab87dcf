"""Score captions by perplexity and by what the picture adds, on a pool of actors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.sample import turns_of
from consomme.base.schema import runtime
from consomme.curate.prompt_pools import PromptPools
from consomme.pipelines.captions import check_units, planned_units, reader
from consomme.pipelines.flow import Pool, run_units
from consomme.pipelines.planning import plan_shards
from consomme.pipelines.runs import begin, check_rejects, folders_of
from consomme.pipelines.session import num_cpus, ray_session
from consomme.pipelines.stage import Decoded, Item, Outcome, UnitStage, reject_of
from consomme.storage.shards import find_shards, shards_fingerprint

if TYPE_CHECKING:
    from consomme.engines.questions import Score, ScoringEngine


@dataclass(frozen=True, kw_only=True)
class ScoreRecipe:
    """Image-conditioned and text-only perplexity of every caption."""

    name: str
    """Name of the run."""

    model: str
    """The VLM that scores: a Hugging Face folder; `package://models/nano` is the one shipped."""

    inputs: tuple[str, ...] = ()
    """Shards: files, folders, globs, brace ranges; local, `s3://` or `gs://`."""

    source: str = "data"
    """Name of the data set behind `inputs`, in references and unit ids."""

    sources: dict[str, list[str]] = field(default_factory=dict)
    """More data sets, by name: inputs of each."""

    captions: str | None = None
    """Folder of a finished recaption run over the same inputs: score the texts it left instead."""

    root: str = runtime("runs")
    """Where run folders are made: a local path or a URL."""

    prompt: str = "describe the image."
    """What the user turn asks for; context only, never scored."""

    prompts: dict[str, list[str]] = field(default_factory=dict)
    """Other prompts by type of text, `{ocr: [Transcribe the text.]}`; `pool:describe_en` stands for
    a pool that ships, see curate/prompt_pools.py. Of several, a sample's id draws one."""

    prompt_key: str = "text_type"
    """Key of `meta` that says a sample's type of text."""

    labels: tuple[str, ...] = ()
    """Keys of `meta` to copy beside the scores, such as `noise`."""

    unit_rows: int = 1024
    """Most samples per unit: what is retried, resumed and committed."""

    max_caption_tokens: int = 256
    """How many tokens of the assistant's are scored at most."""

    too_long: Literal["reject", "truncate"] = "reject"
    """What happens to longer ones: a reject, `caption_too_long`, or a score of the first tokens,
    marked `is_truncated`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is bfloat16 on a GPU. Logits are float32 always."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """`vllm` is for models that are too large for one GPU: the same scores for more work."""

    tensor_parallel: int = runtime(1)
    """GPUs per actor that the weights are spread over; engine vllm only."""

    formula: Literal["exact", "points_script"] = "exact"
    """`points_script` rounds probabilities to bfloat16 before the logarithm, as the script that
    POINTS released does; see recipes/score/points_script.yaml."""

    max_reject_fraction: float = runtime(0.01)
    """More rejects than this share fail the run; nothing of it is lost."""

    num_actors: int | None = runtime(None)
    """Most scoring actors; None takes as many as the GPUs hold, or one per CPU."""

    actors_per_gpu: int = runtime(1)
    """Actors that share a GPU, each with the whole model; engine transformers only. Two may help
    small models, whose pictures take an actor longer to prepare than the GPU to look at."""

    min_actors: int = runtime(1)
    """Fewest; between the two the pool follows the work and the nodes there are."""

    num_readers: int | None = runtime(None)
    """Tasks that read units ahead of the actors; more hide slow storage, each costs a unit of
    memory. 0 lets actors read for themselves. None: 0 without GPUs, else one per actor."""

    token_budget: int | None = runtime(None)
    """Padded tokens per micro-batch; None takes 1,024 on a CPU and 16,384 on a GPU."""


class PerplexityStage(UnitStage):
    """Attach the columns of `score_columns`; loads the model once per actor."""

    def __init__(
        self,
        model: str,
        prompt: str,
        labels: Sequence[str],
        max_caption_tokens: int,
        token_budget: int | None,
        too_long: str = "reject",
        dtype: str = "auto",
        formula: str = "exact",
        prompts: Mapping[str, Sequence[str]] | None = None,
        prompt_key: str = "text_type",
        engine: str = "transformers",
        tensor_parallel: int = 1,
    ) -> None:
        """Load the scorer."""
        self.labels = labels
        self.prompts = PromptPools.read(prompts or {}, prompt_key, prompt)
        self.keeps_prompts = bool(prompts)
        self.scorer: ScoringEngine
        if engine == "vllm":
            from consomme.engines.vllm_engine import EngineOptions
            from consomme.engines.vllm_scorer import VLLMScorer

            self.scorer = VLLMScorer(
                model,
                max_caption_tokens=max_caption_tokens,
                truncates=too_long == "truncate",
                options=EngineOptions(tensor_parallel=tensor_parallel),
            )
            return
        from consomme.curate.perplexity import FORMULAS
        from consomme.engines.transformers_scorer import TransformersScorer

        self.scorer = TransformersScorer(
            model,
            FORMULAS[formula],
            max_caption_tokens=max_caption_tokens,
            truncates=too_long == "truncate",
            token_budget=token_budget,
            dtype=dtype,
        )

    def work(self, samples: Sequence[Decoded]) -> Outcome:
        """Score one unit."""
        from consomme.engines.questions import NotScored, Question

        asked = [self.prompts.draw(item.sample.sample_id, item.sample.meta) for item in samples]
        questions = [
            Question(
                turns=turns_of(item.sample, prompt),
                image=item.image,
                key=hashlib.blake2b(item.sample.image, digest_size=16).digest(),
            )
            for item, prompt in zip(samples, asked, strict=True)
        ]
        scores = self.scorer.score(questions)
        rejects, rows, prompts = [], [], []
        for item, score, prompt in zip(samples, scores, asked, strict=True):
            if isinstance(score, NotScored):
                reject = reject_of(item.sample, score.reason, score.detail)
                rejects.append((item.row, reject))
                continue
            if not math.isfinite(score.nll + score.nll_text):
                detail = f"nll {score.nll}, text-only {score.nll_text}"
                rejects.append((item.row, reject_of(item.sample, "score_not_finite", detail)))
                continue
            rows.append((item, score))
            prompts.append(prompt)
        columns: dict[str, Any] = {
            "row": pa.array([item.row for item, _ in rows], pa.int32()),
            "sample_id": pa.array([item.sample.sample_id for item, _ in rows], pa.string()),
            **score_columns([score for _, score in rows], [_num_bytes(item) for item, _ in rows]),
        }
        if self.keeps_prompts:
            columns["prompt"] = pa.array(prompts, pa.string())
        for label in self.labels:
            values = [item.sample.meta.get(label) for item, _ in rows]
            columns[label] = pa.array(
                [None if value is None else str(value) for value in values], pa.string()
            )
        return Outcome(
            table=pa.table(columns),
            rejects=rejects,
            sums={
                "nll": math.fsum(s.nll for _, s in rows),
                "nll_text": math.fsum(s.nll_text for _, s in rows),
                "num_tokens": sum(s.num_tokens for _, s in rows),
            },
        )


def score_columns(scores: Sequence[Score], num_bytes: Sequence[int]) -> dict[str, pa.Array]:
    """Put scores into columns.

    Args:
        scores: What the engine found.
        num_bytes: UTF-8 bytes of what the assistant says in each.

    Returns:
        `nll`, `num_tokens`, `perplexity`, `nll_text`, `image_gain` (nats per token),
        `bits_per_byte` (comparable between tokenizers), `max_token_nll`, `is_truncated`, and by
        assistant turn `turn_nll`, `turn_nll_text`, `turn_tokens`.
    """
    floats = pa.list_(pa.float32())
    return {
        "nll": pa.array([s.nll for s in scores], pa.float32()),
        "num_tokens": pa.array([s.num_tokens for s in scores], pa.int32()),
        "perplexity": pa.array(
            [math.exp(min(s.nll / s.num_tokens, 80.0)) for s in scores], pa.float32()
        ),
        "nll_text": pa.array([s.nll_text for s in scores], pa.float32()),
        "image_gain": pa.array([(s.nll_text - s.nll) / s.num_tokens for s in scores], pa.float32()),
        "bits_per_byte": pa.array(
            [s.nll / math.log(2) / max(1, size) for s, size in zip(scores, num_bytes, strict=True)],
            pa.float32(),
        ),
        "max_token_nll": pa.array([s.max_token_nll for s in scores], pa.float32()),
        "is_truncated": pa.array([s.is_truncated for s in scores], pa.bool_()),
        "turn_nll": pa.array([[t.nll for t in s.turns] for s in scores], floats),
        "turn_nll_text": pa.array([[t.nll_text for t in s.turns] for s in scores], floats),
        "turn_tokens": pa.array(
            [[t.num_tokens for t in s.turns] for s in scores], pa.list_(pa.int32())
        ),
    }


def _num_bytes(item: Item) -> int:
    return sum(len(t.content.encode()) for t in item.sample.turns if t.role == "assistant")


def run(recipe: ScoreRecipe) -> Manifest:
    """Score every sample of the inputs exactly once; running again does what is missing."""
    from consomme.evaluate.cache import model_content_hash
    from consomme.pipelines.checkpoints import model_folder

    _check(recipe)
    shards = find_shards(recipe.inputs, recipe.source, recipe.sources)
    model = model_folder(recipe.model)
    inputs = {"data": shards_fingerprint(shards), "model": model_content_hash(model)}
    attempt = begin(
        "score",
        recipe,
        inputs=inputs,
        parents=[recipe.captions] if recipe.captions else [],
        reads=[*folders_of(shards), model],
    )
    if attempt.folder.is_done:
        return attempt.folder.manifest()
    with ray_session():
        plan = plan_shards(attempt.folder, shards, recipe.unit_rows)
        check_units(recipe.captions, (u.unit_id for u in planned_units(attempt.folder, plan)))
        run_units(
            plan,
            attempt.folder,
            kind="scores",
            stage=PerplexityStage,
            stage_options={
                "model": model,
                "prompt": recipe.prompt,
                "labels": list(recipe.labels),
                "max_caption_tokens": recipe.max_caption_tokens,
                "token_budget": recipe.token_budget,
                "too_long": recipe.too_long,
                "dtype": recipe.dtype,
                "formula": recipe.formula,
                "prompts": recipe.prompts,
                "prompt_key": recipe.prompt_key,
                "engine": recipe.engine,
                "tensor_parallel": recipe.tensor_parallel,
            },
            what="score",
            pool=_pool(recipe),
            max_reject_fraction=recipe.max_reject_fraction,
            read=reader(recipe.captions),
        )
    counts = attempt.folder.total_counts()
    check_rejects(counts, recipe.max_reject_fraction, attempt.folder.url)
    sums = attempt.folder.total_sums()
    tokens = max(sums.get("num_tokens", 0.0), 1.0)
    return attempt.finish(
        counts=counts,
        metrics={
            "score/perplexity_per_token": math.exp(sums["nll"] / tokens),
            "score/image_gain_nats": (sums["nll_text"] - sums["nll"]) / tokens,
        },
        outputs={"scores": "data", "rejects": "rejects"},
    )


def _check(recipe: ScoreRecipe) -> None:
    """Refuse what no engine can do, before Ray starts."""
    PromptPools.read(recipe.prompts, recipe.prompt_key, recipe.prompt)
    if recipe.engine == "vllm":
        for name, only in (
            ("formula", "exact"),
            ("dtype", "auto"),
            ("token_budget", None),
            ("actors_per_gpu", 1),
        ):
            found = getattr(recipe, name)
            if found != only:
                raise RecipeError(
                    f"{name}: found {found}, but engine vllm decides this itself; leave it out, or"
                    " score with engine: transformers"
                )
    elif recipe.tensor_parallel != 1:
        raise RecipeError(
            f"tensor_parallel: found {recipe.tensor_parallel}, but engine transformers keeps a"
            " model on one GPU; say engine: vllm"
        )
    if recipe.actors_per_gpu < 1:
        raise RecipeError(f"actors_per_gpu: found {recipe.actors_per_gpu}, expected 1 or more")


def _pool(recipe: ScoreRecipe) -> Pool:
    """As many actors as GPUs hold where there are GPUs; else one per CPU, with room for reading."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus and gpus < recipe.tensor_parallel:
        raise RecipeError(
            f"tensor_parallel: found {recipe.tensor_parallel}, but the cluster has {gpus} GPUs"
        )
    held = gpus * recipe.actors_per_gpu // recipe.tensor_parallel
    return Pool(
        max_actors=recipe.num_actors or held or num_cpus(),
        min_actors=recipe.min_actors,
        num_readers=recipe.num_readers,
        cpus=0.8,
        gpus=recipe.tensor_parallel / recipe.actors_per_gpu if gpus else 0.0,
    )
