"""Recaptioning samples of any number of images: who sees what, and where the new text lands."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.pipelines.recaption.test_recaption import read, recaptioned, recipe, rows_of
from tests.support.families import FAMILIES
from tests.support.families import write as write_family

from consomme.base.errors import RecipeError
from consomme.base.hashing import hash_ids
from consomme.base.recipe import check_recipe, fingerprint
from consomme.base.sample import ImageFile, ImageRef, Sample, Turn, caption_turns
from consomme.curate.caption.guards import Guards
from consomme.datasets import scenes
from consomme.engines.generation.requests import Generation, Request, Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.execution.stage import DecodedSample
from consomme.pipelines.recaption.metrics import metrics_of, most_common, texts_of
from consomme.pipelines.recaption.recipe import RecaptionRecipe
from consomme.pipelines.recaption.report import sections
from consomme.pipelines.recaption.shown import groups_of, swap_partners
from consomme.report import model as page
from consomme.storage.captions import CAPTIONS, MESSAGES
from consomme.storage.ledger.run_folder import RunFolder, load_manifest
from consomme.storage.model_folder import model_folder
from consomme.storage.writers import parquet_bytes, tar_bytes

A, B, C = ImageRef(0), ImageRef(1), ImageRef(2)
PROMPT = "describe the image."
MAX_TOKENS = 24
LOOSE = Guards(truncated=False, copy_similarity=None, max_repeat_fraction=None, max_run=None)


def image_of(number: int) -> Any:
    return scenes.render(scenes.make_scene(620_000 + number))


def user(*content: str | ImageRef) -> Turn:
    return Turn(role="user", content=content if len(content) > 1 else str(content[0]))


def says(*content: str | ImageRef, **more: Any) -> Turn:
    return Turn(role="assistant", content=content if len(content) > 1 else str(content[0]), **more)


TURNS: dict[str, tuple[int, tuple[Turn, ...]]] = {
    "caption": (1, caption_turns("web text")),
    "caption-of-3": (3, caption_turns("three web pictures")),
    "first": (3, (user("which?"), says("the second"), user("why?"), says("it is red"))),
    "over-turns": (
        3,
        (
            Turn(role="system", content="be brief"),
            user(A, "what is it?"),
            says("a star"),
            user("and ", B, " or ", C, "?"),
            says("no", is_labelled=False),
            user("sure?"),
            says("yes"),
        ),
    ),
    "later": (1, (user("hello"), says("hi"), user("what is in ", A, "?"), says("a circle"))),
    "document": (2, (says("Here is ", B, " beside\n", A, "and no more."),)),
    "text": (0, (user("what is a star?"), says("a shape"))),
}


def samples() -> list[Sample]:
    found = []
    for at, (name, (number, turns)) in enumerate(TURNS.items()):
        images = [
            ImageFile(
                data=scenes.encode(image_of(3 * at + k)),
                name=f"{name}.png" if number == 1 else f"{name}.{k}.png",
            )
            for k in range(number)
        ]
        found.append(
            Sample(sample_id=name, images=tuple(images), turns=turns, source="data", meta={})
        )
    return found


@pytest.fixture(scope="module", params=[("tar", tar_bytes), ("parquet", parquet_bytes)])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    suffix, pack = request.param
    return written(tmp_path_factory.mktemp("shards") / f"a.{suffix}", samples(), pack)


def written(
    path: Path, found: Sequence[Sample], pack: Callable[[Sequence[Sample]], bytes] = tar_bytes
) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack(found))
    return str(path)


@pytest.fixture(scope="module")
def nano() -> str:
    return model_folder("package://models/nano")


@pytest.fixture(scope="module")
def said(nano: str) -> Callable[[str, Sequence[int]], str]:
    """What the model says about some images of a sample, or about its text alone."""
    engine = TransformersEngine(nano, Sampling(max_tokens=MAX_TOKENS))

    def say(name: str, indices: Sequence[int]) -> str:
        at = list(TURNS).index(name)
        (found,) = engine.generate(
            [Request.of_prompt(PROMPT, [image_of(3 * at + k) for k in indices])]
        )
        assert isinstance(found, Generation)
        return found.text.strip()

    return say


def run(root: Path, shards: str, nano: str, **changes: Any) -> str:
    options = {
        "max_tokens": MAX_TOKENS,
        "canary_fraction": 0.0,
        "guards": LOOSE,
        "unit_rows": 4,
        "truth": {"name": "none"},
    }
    return recaptioned(recipe(root, shards, **(options | changes)), nano)


def after(url: str, shards: str) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in read(url, shards, unit_rows=4)}


def test_all_images_are_shown_and_the_text_lands_where_the_old_stood(
    shards: str, tmp_path: Path, nano: str, said: Any
) -> None:
    url = run(tmp_path, shards, nano)
    rows, new = rows_of(url), after(url, shards)
    order = {"over-turns": (0, 1, 2), "document": (1, 0)}
    texts = {
        name: said(name, order.get(name, range(number)))
        for name, (number, _) in TURNS.items()
        if number
    }
    assert len(set(texts.values())) == len(texts)
    assert {name: row["written"] for name, row in rows.items() if row["is_new"]} == texts
    before = {sample.sample_id: sample for sample in samples()}
    for name, sample in new.items():
        assert [one.data for one in sample.images] == [one.data for one in before[name].images]
    turns = {name: sample.turns for name, sample in new.items()}
    old = {name: turns for name, (_, turns) in TURNS.items()}
    assert turns["caption"] == caption_turns(texts["caption"])
    assert turns["caption-of-3"] == caption_turns(texts["caption-of-3"])
    assert turns["first"] == (old["first"][0], says(texts["first"]), *old["first"][2:])
    # After all three images, and learned.
    assert turns["over-turns"] == (*old["over-turns"][:-1], says(texts["over-turns"]))
    assert turns["later"] == (*old["later"][:-1], says(texts["later"]))
    assert turns["document"] == (says(B, A, texts["document"]),)
    assert turns["text"] == old["text"]
    assert rows["text"]["written"] is rows["text"]["prompt_id"] is None
    assert rows["over-turns"]["parent_caption"] == "yes"
    assert rows["document"]["parent_caption"] == "Here is\nbeside\nand no more."
    counts = RunFolder.at(url).total_counts()
    assert (counts["asked"], counts["new"], counts["skipped/text_only"]) == (6, 6, 1)
    assert counts["samples"] == len(TURNS)


def test_one_of_the_images_by_rule(shards: str, tmp_path: Path, nano: str, said: Any) -> None:
    url = run(tmp_path, shards, nano, images="first", merge={"name": "concatenate"})
    new = after(url, shards)
    assert new["caption-of-3"].caption == f"three web pictures {said('caption-of-3', [0])}"
    # The first image is in the first question; of a document, the first in its text.
    assert new["over-turns"].turns[2] == says(f"a star {said('over-turns', [0])}")
    assert new["document"].turns[0].content[:-1] == ("Here is ", B, " beside\n", A)
    assert new["document"].turns[0].content[-1] == f"and no more. {said('document', [1])}"


@pytest.mark.parametrize("side", ["after", "before"])
def test_a_text_about_each_image(
    shards: str, tmp_path: Path, nano: str, said: Any, side: str
) -> None:
    merge = {"name": "concatenate", "side": side}
    url = run(tmp_path, shards, nano, images="each", merge=merge)
    new, rows = after(url, shards), rows_of(url)
    a, b = said("document", [0]), said("document", [1])
    content = {
        "after": ("Here is ", B, f"{b}  beside\n", A, f"{a} and no more."),
        "before": (f"Here is  {b}", B, f" beside\n {a}", A, "and no more."),
    }
    assert new["document"].turns == (says(*content[side]),)
    assert rows["document"]["written"] == f"{b}\n{a}"
    three = "\n".join(said("caption-of-3", [k]) for k in range(3))
    assert new["caption-of-3"].caption == f"three web pictures {three}"
    assert new["caption"].caption == f"web text {said('caption', [0])}"


def test_texts_alone_are_left_or_written_about(
    shards: str, tmp_path: Path, nano: str, said: Any
) -> None:
    url = run(tmp_path, shards, nano, text_only="write", canary_fraction=1.0)
    rows, new = rows_of(url), after(url, shards)
    assert new["text"].turns == (TURNS["text"][1][0], says(said("text", [])))
    assert rows["text"]["canary_blank"] is rows["text"]["canary_swap"] is None
    assert "skipped/text_only" not in RunFolder.at(url).total_counts()
    # Without pictures, all are written about, and nothing is said of what is not shown.
    blind = run(tmp_path, shards, nano, name="blind", text_only="write", shows_picture=False)
    assert {row["written"] for row in rows_of(blind).values()} == {said("text", [])}


def test_canaries_see_as_many_other_images(
    tmp_path: Path, nano: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []
    inner = TransformersEngine.generate

    def generate(self: Any, requests: Sequence[Request]) -> Any:
        seen.extend(request.images for request in requests)
        return inner(self, requests)

    monkeypatch.setattr(TransformersEngine, "generate", generate)
    url = run(tmp_path, written(tmp_path / "a.tar", samples()), nano, canary_fraction=1.0)
    sums = RunFolder.at(url).total_sums()
    # Units of four: in the first, two samples have three images; in the second there is one with
    # one image and one with two, and neither has a partner.
    assert sums["canary_blank"] == 6
    assert sums["canary_swap"] == 3
    assert sums["canary_swap_left_out"] == 1
    greys = [images for images in seen if images and all(_is_grey(one) for one in images)]
    assert sorted(len(images) for images in greys) == [1, 1, 2, 3, 3, 3]
    assert sums["canary_blank_same"] == sums["canary_swap_same"] == 0


def _is_grey(image: Any) -> bool:
    return bool(image.convert("RGB").getcolors(1) == [(image.width * image.height, (127,) * 3)])


def test_partners_have_as_many_images() -> None:
    items = [DecodedSample(row=n, sample=one, images=()) for n, one in enumerate(samples())]
    hash_N = hash_ids([item.sample.sample_id for item in items])
    shown = [groups_of(item.sample, "all")[0] for item in items]
    found = swap_partners(items, shown, hash_N, range(6))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all(len(shown[n]) == len(shown[other]) and n != other for n, other in found.items())
    by_first = [groups_of(item.sample, "first")[0] for item in items]
    assert sorted(swap_partners(items, by_first, hash_N, range(6))) == [0, 1, 2, 3, 4, 5]


def test_a_text_that_a_guard_doubts_leaves_all_of_the_sample(
    tmp_path: Path, nano: str, said: Any
) -> None:
    shards = written(tmp_path / "a.tar", samples())
    texts = [said("document", [k]) for k in range(2)]
    shortest = min(len(text.split()) for text in texts)
    assert len({len(text.split()) for text in texts}) == 2, texts
    strict = Guards(truncated=False, copy_similarity=None, min_words=shortest + 1)
    url = run(tmp_path, shards, nano, images="each", guards=strict)
    assert rows_of(url)["document"]["guard"] == "model_output_short"
    assert after(url, shards)["document"].turns == TURNS["document"][1]


def test_rounds_build_on_each_other(shards: str, tmp_path: Path, nano: str, said: Any) -> None:
    first = run(tmp_path, shards, nano, images="each", merge={"name": "concatenate"})
    one = after(first, shards)
    second = run(
        tmp_path, shards, nano, name="more", captions=first, merge={"name": "append_turns"}
    )
    two = after(second, shards)
    counts = RunFolder.at(second).total_counts()
    assert (counts["skipped/document"], counts["skipped/text_only"], counts["new"]) == (1, 1, 5)
    assert two["document"].turns == one["document"].turns
    for name in ("caption-of-3", "first", "over-turns", "later", "caption"):
        added = (user(PROMPT), says(rows_of(second)[name]["written"]))
        asked = () if one[name].turns[0].role != "assistant" else (user(PROMPT),)
        assert two[name].turns == (*asked, *one[name].turns, *added)
    third = run(tmp_path, shards, nano, name="third", captions=second)
    assert after(third, shards)["over-turns"].turns[:-3] == two["over-turns"].turns[:-3]
    assert after(third, shards)["document"].turns == (says(B, A, said("document", (1, 0))),)


def test_files_of_plain_turns_have_no_other_columns(tmp_path: Path, nano: str) -> None:
    def columns(found: Sequence[Sample], name: str) -> list[set[str]]:
        url = run(tmp_path, written(tmp_path / f"{name}.tar", found), nano, name=name)
        folder = RunFolder.at(url)
        paths = [f"{folder.path}/{record.path_of(CAPTIONS)}" for record in folder.iter_commits()]
        return [set(pq.read_schema(path).names) for path in paths]

    found = samples()
    assert [MESSAGES in one for one in columns(found, "all")] == [True, True]
    plain = [one for one in found if one.sample_id in ("caption", "caption-of-3", "first")]
    assert [MESSAGES in one for one in columns(plain, "plain")] == [False]


def test_a_family_of_one_image_rejects_samples_of_two(tmp_path: Path) -> None:
    family = str(write_family(FAMILIES["paligemma"], tmp_path / "paligemma"))
    found = [one for one in samples() if one.sample_id in ("caption", "caption-of-3", "later")]
    shard = written(tmp_path / "a.tar", found)
    changes = {"guards": Guards(empty=False, truncated=False), "max_tokens": 4}
    url = run(tmp_path, shard, family, **changes)
    rejects = {reject.sample_id: reject for reject in RunFolder.at(url).rejects()}
    assert rejects["caption-of-3"].reason == "conversation_unsupported"
    assert "one image" in rejects["caption-of-3"].detail
    assert set(rejects) == {"caption-of-3"}
    each = run(tmp_path, shard, family, name="each", images="each", **changes)
    assert not list(RunFolder.at(each).rejects())


def test_a_report_shows_pictures_in_their_places(shards: str, tmp_path: Path, nano: str) -> None:
    url = run(tmp_path, shards, nano, canary_fraction=1.0)
    folder = RunFolder.at(url)
    counts, sums, texts = folder.total_counts(), folder.total_sums(), texts_of(url)
    manifest = replace(
        load_manifest(url),
        metrics=metrics_of(counts, sums, texts),
        decisions={"most_common": most_common(texts)},
    )
    (section,) = sections([manifest], {})
    assert "Left as they were: 1 without an image." in section.lead_text
    (pairs,) = [block for block in section.blocks if isinstance(block, page.BeforeAfter)]
    assert len(pairs.items) == 6
    plain = [item for item in pairs.items if isinstance(item.after, str)]
    assert [item.before for item in plain] == ["web text"]
    many = [item for item in pairs.items if not isinstance(item.after, str)]
    numbers = [
        sum(isinstance(part, page.ShownPicture) for turn in item.after for part in turn.parts)
        for item in many
    ]
    assert sorted(numbers) == [1, 2, 3, 3, 3]


def test_a_recipe_names_what_it_shows(tmp_path: Path) -> None:
    values = {"name": "r", "model": "m", "inputs": ["a.tar"]}
    plain = check_recipe(RecaptionRecipe, values)
    assert (plain.images, plain.text_only) == ("all", "keep")
    others = [check_recipe(RecaptionRecipe, {**values, "images": one}) for one in ("each", "first")]
    assert len({fingerprint(one, {}) for one in (plain, *others)}) == 3
    with pytest.raises(RecipeError, match="images: found each, but shows_picture is false"):
        check_recipe(RecaptionRecipe, {**values, "images": "each", "shows_picture": False})
