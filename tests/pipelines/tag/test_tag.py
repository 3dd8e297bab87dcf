"""Tags as a user meets them: right, the same however units are cut, and of use to a filter."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tests.support.samples import with_image

from consomme.base.describe import describe
from consomme.base.errors import RecipeError
from consomme.base.manifest import Manifest
from consomme.base.recipe import fingerprint, load_recipe
from consomme.base.sample import ImageFile, Sample, Turn
from consomme.curate.tag.judges import Answerable, Grammar
from consomme.curate.tag.pictures import Classes, Embedding
from consomme.curate.tag.tagger import TaggerInput
from consomme.datasets import scenes
from consomme.execution.stage import DecodedSample
from consomme.models.weights import open_model
from consomme.ops.verify import verify
from consomme.pipelines.filter import run as filter_
from consomme.pipelines.filter.recipe import FilterRecipe
from consomme.pipelines.report import run as report
from consomme.pipelines.tag import report as report_tags
from consomme.pipelines.tag import run as tag
from consomme.pipelines.tag.models import OpenModels
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.pipelines.tag.stage import PictureTagStage
from consomme.report import model as page
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder
from consomme.storage.sidecar import read_columns
from consomme.storage.stores.open import open_store
from consomme.storage.writers import WebDatasetWriter

pytestmark = pytest.mark.slow

NANO = "package://models/nano"
NUM = 36
COLORS = tuple(scenes.COLORS)


def scene_sample(seed: int) -> Sample:
    """A scene, a question about it with its answer, and what to choose from."""
    scene = scenes.make_scene(seed)
    asked = scenes.questions(scene, seed)[0]
    options = list({"color": COLORS, "count": scenes.NUMBERS}.get(asked.kind, ("yes", "no")))
    return Sample(
        sample_id=f"scene-{seed:03d}",
        images=(ImageFile(data=scenes.encode(scenes.render(scene)), name=f"scene-{seed:03d}.png"),),
        turns=(
            Turn(role="user", content=asked.question),
            Turn(role="assistant", content=asked.answer),
        ),
        source="scenes",
        meta={"options": options},
    )


def seen(sample: Sample) -> TaggerInput:
    return TaggerInput(
        sample=sample, images=(Image.open(io.BytesIO(sample.images[0].data)).convert("RGB"),)
    )


@pytest.fixture(scope="module")
def models() -> OpenModels:
    return OpenModels({NANO: model_folder(NANO)}, None, "float32")


class Reference:
    """One answer at a time, in float64, with transformers alone."""

    def __init__(self) -> None:
        self.model, self.processor = open_model(model_folder(NANO), torch.float64)

    def prob(self, question: str, answer: str) -> float:
        words = self.processor.tokenizer
        head = words(f"<bos><user>{question}<assistant>", add_special_tokens=False)["input_ids"]
        tail = words(f"{answer}<end>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([head + tail])
            logp_TV = self.model(input_ids=ids).logits[0].log_softmax(dim=-1)
        nats = sum(float(logp_TV[len(head) - 1 + k, t]) for k, t in enumerate(tail))
        return float(np.exp(nats))


def test_pseudo_labels_of_the_shipped_vlm_are_right(models) -> None:
    seeds = [seed for seed in range(300) if len(scenes.make_scene(seed).objects) == 1][:40]
    inputs = [seen(scene_sample(seed)) for seed in seeds]
    alone = [scenes.make_scene(seed).objects[0] for seed in seeds]
    for classes, question, truth, least in (
        (COLORS, "what color is the object?", [item.color for item in alone], 0.95),
        (scenes.SHAPES, "what shape is the object?", [item.shape for item in alone], 0.6),
    ):
        for prior in ("model", "equal"):
            tagger = Classes(model=NANO, question=question, classes=classes, prior=prior)
            found = tagger.open(models)(inputs).columns
            right = np.array(
                [said == true for said, true in zip(found["class"], truth, strict=True)]
            )
            assert right.mean() >= least, f"{question} {prior}"
            probs = np.array(found["class_probs"])
            np.testing.assert_allclose(probs.sum(axis=1), 1.0)
            assert (probs.argmax(axis=1) == [classes.index(said) for said in found["class"]]).all()
            if right.all():
                continue
            entropy = np.array(found["class_entropy"])
            assert entropy[right].mean() < entropy[~right].mean(), "it is not surer where right"


def test_embeddings_know_pictures_apart_and_again(models) -> None:
    made = [scene_sample(seed) for seed in (0, 1, 2)]
    again = [replace(made[1], sample_id="copy"), replace(made[0], sample_id="other copy")]
    found = Embedding(model=NANO).open(models)([seen(s) for s in [*made, *again]])
    vectors = np.stack(found.columns["embedding"])
    np.testing.assert_array_equal(vectors[[3, 4]], vectors[[1, 0]])
    near = vectors[:3] @ vectors[:3].T
    assert near[~np.eye(3, dtype=bool)].max() < 0.99


def test_judges_are_asked_as_transformers_would_be(models) -> None:
    reference = Reference()
    text = "what color is the circle?\nthe circle are red"
    sample = Sample(
        sample_id="a",
        images=(ImageFile(data=b"", name=""),),
        turns=(
            Turn(role="user", content="what color is the circle?"),
            Turn(role="assistant", content="the circle are red"),
        ),
        source="s",
    )
    grammar = Grammar(model=NANO, prompt="is there an error? {text}").open(models)
    (value,) = grammar([TaggerInput(sample=sample)]).columns["grammar_error"]
    yes, no = (reference.prob(f"is there an error? {text}", said) for said in ("yes", "no"))
    assert value == pytest.approx(yes / (yes + no), rel=1e-3)

    questions = [
        "what color is the circle?",
        "how many objects are there?",
        "is it small or large?",
    ]
    pool = ("red", "blue", "two", "large", "top left")
    turns = [
        (Turn(role="user", content=question), Turn(role="assistant", content=answer))
        for question, answer in zip(questions, ("red", "two", "top left"), strict=True)
    ]
    inputs = [
        TaggerInput(sample=replace(sample, sample_id=f"s{k}", turns=some))
        for k, some in enumerate(turns)
    ]
    found = Answerable(model=NANO, answers=pool).open(models)(inputs).columns
    for k, question in enumerate(questions):
        probs = {answer: reference.prob(question, answer) for answer in pool}
        true = turns[k][1].content
        rank = 1 + sum(prob > probs[true] for prob in probs.values())
        assert found["answer_rank"][k] == rank
        assert found["answer_prob"][k] == pytest.approx(probs[true] / sum(probs.values()), rel=1e-3)
        assert found["answerable"][k] == (rank == 1)


ALL: tuple[dict[str, Any], ...] = (
    {"name": "text"},
    {"name": "objects", "words": {"shape": list(scenes.SHAPES), "colour": list(COLORS)}},
    {"name": "embedding", "model": NANO},
    {
        "name": "classes",
        "model": NANO,
        "question": "how many objects are there?",
        "classes": list(scenes.NUMBERS[1:]),
    },
    {"name": "grammar", "model": NANO},
    {"name": "answerable", "model": NANO, "options": "options"},
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("shards"))
    samples = [scene_sample(seed) for seed in range(NUM)]
    samples[7] = with_image(samples[7], samples[7].images[0].data[:200])
    special = (Turn(role="user", content="what?"), Turn(role="assistant", content="a <end> b"))
    samples[20] = replace(samples[20], turns=special)
    with WebDatasetWriter(open_store(folder), "shard", max_rows=20) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def recipe(root: Path, shards: str, **changes: Any) -> TagRecipe:
    options: dict[str, Any] = {
        "name": "t",
        "root": str(root),
        "inputs": (shards,),
        "taggers": ALL,
        "unit_rows": 10,
        "max_reject_fraction": 0.1,
    }
    return TagRecipe(**{**options, **changes})


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory, shards: str, lent_ray: None) -> Manifest:
    return tag.run(recipe(tmp_path_factory.mktemp("runs"), shards))


def columns_of(run: Manifest, *names: str) -> dict[str, dict[str, Any]]:
    rows = read_columns(run.url, names, kind="tags").to_pylist()
    return {row["sample_id"]: row for row in rows}


@pytest.mark.ray
def test_every_sample_is_tagged_once_by_every_tagger(tagged: Manifest) -> None:
    rejects = {reject.sample_id: reject for reject in RunFolder.at(tagged.url).rejects()}
    assert {name: reject.reason for name, reject in rejects.items()} == {
        "scene-007": "image_truncated",
        "scene-020": "text_not_encodable",
    }
    assert "<end>" in rejects["scene-020"].detail
    rows = columns_of(
        tagged, "num_words", "object", "class", "class_entropy", "grammar_error", "answer_rank"
    )
    expected = {f"scene-{seed:03d}" for seed in range(NUM)} - set(rejects)
    assert set(rows) == expected
    assert verify(tagged.url).problems == ()
    (check,) = (Path(tagged.url) / "selfcheck").iterdir()
    assert json.loads(check.read_text())["kind"] == "scoring"
    counted = [
        rows[f"scene-{seed:03d}"]["class"] == scenes.NUMBERS[len(scenes.make_scene(seed).objects)]
        for seed in range(NUM)
        if f"scene-{seed:03d}" in rows
    ]
    assert np.mean(counted) > 0.9
    assert tagged.counts["object/colour"] == sum(row["object"] == "colour" for row in rows.values())
    shown = {(column, value) for column, value, _ in tagged.decisions["table"]["rows"]}
    assert {("object", "colour"), ("class", "two"), ("script", "latin")} <= shown


@pytest.mark.ray
def test_one_actor_or_two_give_the_same_bytes(tagged, shards, tmp_path: Path) -> None:
    other = tag.run(recipe(tmp_path, shards, num_actors=1))
    assert other.fingerprint == tagged.fingerprint
    assert tree(Path(other.url)) == tree(Path(tagged.url))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for part in ("commits", "data", "rejects")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }


@pytest.mark.ray
def test_rules_look_at_no_picture(shards, tmp_path: Path, lent_ray: None) -> None:
    done = tag.run(recipe(tmp_path, shards, taggers=ALL[:2]))
    assert done.counts["samples"] == NUM
    assert "rejected" not in done.counts or done.counts["rejected"] == 0
    rows = columns_of(done, "num_chars", "language")
    said = [scene_sample(seed).caption for seed in range(NUM)]
    said[20] = "a <end> b"
    assert [rows[f"scene-{k:03d}"]["num_chars"] for k in range(NUM)] == [len(text) for text in said]


@pytest.mark.ray
def test_a_filter_chooses_by_tags(tagged: Manifest, tmp_path: Path) -> None:
    done = filter_.run(
        FilterRecipe(
            name="f",
            root=str(tmp_path),
            scores=tagged.url,
            keep={"name": "threshold", "column": "answer_rank", "max": 1.0},
        )
    )
    rows = columns_of(tagged, "answer_rank", "answerable")
    assert done.counts["kept"] == sum(row["answerable"] for row in rows.values())
    assert 0 < done.counts["kept"] < len(rows)


@pytest.fixture(scope="module")
def stage() -> PictureTagStage:
    recipe = TagRecipe(name="all", inputs=("x",), taggers=ALL, dtype="float32")
    return PictureTagStage(recipe, {NANO: model_folder(NANO)})


def test_how_units_are_cut_makes_no_difference(stage: PictureTagStage) -> None:
    samples = [
        DecodedSample(row=seed, sample=subject.sample, images=subject.images)
        for seed in range(NUM)
        if (subject := seen(scene_sample(seed))).images
    ]
    whole = stage.work(samples).table
    parts = [stage.work(samples[k : k + 7]).table for k in range(0, NUM, 7)]
    backwards = stage.work(samples[::-1]).table.take(list(range(NUM))[::-1])
    for other in (pa.concat_tables(parts), backwards):
        assert other.schema == whole.schema
        for name in whole.column_names:
            one, two = whole[name].to_pylist(), other[name].to_pylist()
            if pa.types.is_floating(whole[name].type) or whole[name].type == pa.list_(pa.float32()):
                np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-6, err_msg=name)
            else:
                assert one == two, name


@pytest.mark.ray
def test_the_report_shows_counts_distributions_and_pictures(tagged: Manifest) -> None:
    (section,) = report_tags.sections([tagged], {})
    tables = {b.columns[0]: dict(b.rows) for b in section.blocks if isinstance(b, page.Table)}
    assert tables["class"] == {name: tagged.counts[f"class/{name}"] for name in scenes.NUMBERS[1:]}
    drawn = {b.x_label: b for b in section.blocks if isinstance(b, page.Histogram)}
    assert {"num_words", "class_entropy", "grammar_error", "answer_prob"} <= set(drawn)
    assert sum(drawn["class_entropy"].series["all samples"]) == tagged.counts["samples"]
    shown = [item for b in section.blocks if isinstance(b, page.Gallery) for item in b.items]
    for item in (item for item in shown if item.badge == "class: three"):
        seed = int(item.lines[0].removeprefix("scene-"))
        assert len(scenes.make_scene(seed).objects) == 3
        (shown_picture,) = (
            part
            for turn in item.turns
            for part in turn.parts
            if isinstance(part, page.ShownPicture)
        )
        assert shown_picture.image_bytes == scene_sample(seed).images[0].data
    assert any(item.badge == "class: three" for item in shown)
    done = report.run_folder(tagged.url)
    text = (Path(done.url) / "report.html").read_text()
    assert "Tags: t" in text
    assert "data:image/png;base64" in text


def test_types_are_the_same_for_a_unit_without_samples(stage: PictureTagStage) -> None:
    schema = stage.work([]).table.schema
    assert (
        schema
        == stage.work(
            [DecodedSample(row=0, sample=scene_sample(0), images=seen(scene_sample(0)).images)]
        ).table.schema
    )
    assert schema.field("embedding").type == pa.list_(pa.float32())
    assert schema.field("answerable").type == pa.int8()
    assert schema.names[:2] == ["row", "sample_id"]


@pytest.mark.parametrize(
    ("taggers", "message"),
    [
        ((), "taggers: found none"),
        (
            (ALL[2], {**ALL[2], "name": "embedding"}),
            "embedding and embedding both make the column 'embedding'",
        ),
        (({**ALL[2], "column": "row"},), "makes the column 'row', which every run has"),
    ],
)
def test_columns_have_one_maker(taggers: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TagRecipe(name="t", inputs=("x",), taggers=taggers)


def test_everything_wrong_with_taggers_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "tag.yaml"
    path.write_text(
        "name: t\ninputs: [a.tar]\n"
        "taggers:\n- {name: txt}\n- {name: classes, model: m, clases: [a]}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(TagRecipe, path)
    shown = str(caught.value)
    assert "taggers[0].name: unknown tagger 'txt'; did you mean 'text'?" in shown
    assert "taggers[1].clases: unknown key; did you mean 'classes'?" in shown
    assert "taggers[1].question: missing" in shown


def test_help_shows_a_default_of_several_lines_in_one() -> None:
    shown = describe(TagRecipe)
    assert "\n      prompt: str = 'Does the following text" in shown
    assert "no.\\n\\n{text}'\n" in shown


def test_the_fingerprint_knows_what_decides_and_nothing_else() -> None:
    one = TagRecipe(name="t", inputs=("x",), taggers=({"name": "text"},))
    same = TagRecipe(
        name="t",
        inputs=("x",),
        taggers=({"name": "text", "min_confidence": 0.5},),
        num_actors=7,
        token_budget=9,
    )
    other = TagRecipe(name="t", inputs=("x",), taggers=({"name": "text", "min_confidence": 0.6},))
    assert fingerprint(one, {}) == fingerprint(same, {}) != fingerprint(other, {})
