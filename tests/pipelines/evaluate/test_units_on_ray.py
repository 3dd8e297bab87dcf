"""A benchmark is cut into units: actors share it, and it goes on where it stopped."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.test_file_kinds import in_text, write_tsv
from tests.support.chat_server import serving

from consomme.base.errors import DataError, RecipeError
from consomme.engines.generation.requests import Sampling
from consomme.engines.generation.transformers import TransformersEngine
from consomme.execution import driver
from consomme.pipelines.evaluate import run as evaluate
from consomme.pipelines.evaluate.kept import KEPT, read_answers
from consomme.pipelines.evaluate.recipe import EvaluateRecipe
from consomme.storage.ledger.run_folder import RunFolder
from consomme.storage.model_folder import model_folder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NANO = "package://models/nano"
SCENES = {"name": "scene_questions", "num": 4}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions, of which one is too long for the model."""
    rows = [
        {"index": k, "image": in_text(color), "question": f"what color is it?{' so' * size}",
         "A": "red", "B": "blue", "answer": letter}
        for k, (color, letter, size) in enumerate(
            [("red", "A", 0), ("blue", "B", 0), ("red", "A", 3000), ("blue", "B", 0)]
        )
    ]  # fmt: skip
    return write_tsv(tmp_path_factory.mktemp("files") / "colors.tsv", rows)


def recipe(root: Path, file: str, **options: Any) -> EvaluateRecipe:
    choice = {"name": "multiple_choice", "file": file, "prompt": "{question}"}
    values: dict[str, Any] = {
        "name": "units",
        "root": str(root),
        "models": {"nano": NANO},
        "benchmarks": (
            SCENES,
            {"name": "open", "file": file, "prompt": "{question}", "label": "said"},
            choice | {"answer_by": "text_likelihood"},
        ),
        "unit_items": 3,
        "num_actors": 1,
    }
    return EvaluateRecipe(**values | options)


@pytest.fixture(scope="module")
def undisturbed(file: str, tmp_path_factory: pytest.TempPathFactory, lent_ray: None) -> Any:
    return evaluate.run(recipe(tmp_path_factory.mktemp("undisturbed"), file))


def kept(url: str) -> bytes:
    return (Path(url) / KEPT).read_bytes()


def written(url: str, units: set[str]) -> dict[str, int]:
    """When the answers of some units were written."""
    files = (Path(url) / "data").iterdir()
    return {p.name: p.stat().st_mtime_ns for p in files if p.stem.rpartition("-")[0] in units}


def test_every_answer_is_kept_and_refused_ones_are_wrong(undisturbed: Any, file: str) -> None:
    folder = RunFolder.at(undisturbed.url)
    rows = read_answers(folder.store).to_pylist()
    names = {"scene_questions", "said", "colors"}
    assert {row["benchmark"] for row in rows} == names
    asked = [row for row in rows if row["benchmark"] == "said"]
    assert [row["number"] for row in asked] == [0, 1, 2, 3]
    assert asked[0]["question"] == "<image>what color is it?"
    assert [row["refused"] for row in asked] == [None, None, "sequence_too_long", None]
    assert (asked[2]["answer"], asked[2]["verdict"]) == (None, 0.0)
    assert undisturbed.metrics["evaluate/nano/said/num_refused"] == 1
    assert undisturbed.metrics["evaluate/nano/colors/num_refused"] == 1
    assert {one.source for one in folder.rejects()} == {"nano/said", "nano/colors"}
    scenes = [row["verdict"] for row in rows if row["benchmark"] == "scene_questions"]
    accuracy = undisturbed.metrics["evaluate/nano/scene_questions/accuracy_fraction"]
    assert sum(scenes) / len(scenes) == accuracy > 0.8


def test_a_run_goes_on_where_it_stopped(
    undisturbed: Any, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver ends after two units, when the cache is empty; some of it is not, later."""
    collected = []

    def dies(self: Any, record: Any) -> None:
        collected.append(record.unit_id)
        if len(collected) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(driver._Driver, "_collect", dies)
        with pytest.raises(KeyboardInterrupt):
            evaluate.run(recipe(tmp_path, file))
    run = RunFolder.at(evaluate.open_run(recipe(tmp_path, file)).folder.url)
    done = run.done_units()
    assert len(done) >= 2
    before = written(run.url, done)
    # Another run answers one of the benchmarks in the meantime, and fills the cache.
    evaluate.run(recipe(tmp_path, file, name="other", benchmarks=(SCENES,)))
    again = evaluate.run(recipe(tmp_path, file, num_actors=2))
    assert (again.url, again.is_found) == (run.url, False)
    assert written(run.url, done) == before, "they were done again"
    assert kept(again.url) == kept(undisturbed.url)
    assert again.decisions == undisturbed.decisions
    # A third run asks nothing.
    third = evaluate.run(recipe(tmp_path, file, name="third"))
    assert not (Path(third.url) / "plan").exists()
    assert kept(third.url) == kept(undisturbed.url)


def test_an_endpoint_answers_as_its_engine_does(
    undisturbed: Any, file: str, tmp_path: Path, lent_ray: None
) -> None:
    served = TransformersEngine(model_folder(NANO), Sampling(max_tokens=6), dtype="float32")
    with serving(served) as server:
        engine = {"name": "openai", "url": server.url, "max_retries": 0}
        asked = recipe(
            tmp_path,
            file,
            models={"nano": "served"},
            engine=engine,
            benchmarks=(SCENES, recipe(tmp_path, file).benchmarks[1]),
        )
        done = evaluate.run(asked)
        num_asked = len(server.asked)
        assert evaluate.run(asked).is_found
        assert len(server.asked) == num_asked
    assert done.inputs["models.nano"] == f"served at {server.url}"
    expected = read_answers(RunFolder.at(undisturbed.url).store).to_pylist()
    found = read_answers(RunFolder.at(done.url).store).to_pylist()
    of_file = [row for row in expected if row["benchmark"] != "colors"]
    assert [row["answer"] for row in found] == [row["answer"] for row in of_file]
    assert found[-2]["refused"] == "model_refused"


def test_what_cannot_be_known_is_refused_before_anything_starts(file: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"engine\.dtype: found auto"):
        recipe(tmp_path, file, engine={"name": "vllm", "dtype": "auto"})
    with pytest.raises(RecipeError, match=r"benchmarks\[2\]: answer_by text_likelihood needs"):
        recipe(tmp_path, file, engine={"name": "openai", "url": "http://localhost:1/v1"})


def test_a_benchmark_of_which_nothing_can_be_asked_fails(tmp_path: Path, lent_ray: None) -> None:
    rows = [{"question": "q " * 3000, "A": "red", "B": "blue", "answer": "A"}]
    long = write_tsv(tmp_path / "long.tsv", rows)
    with pytest.raises(DataError, match=r"no question can be put to this model; nano/long"):
        evaluate.run(
            recipe(tmp_path, long, benchmarks=({"name": "multiple_choice", "file": long},))
        )


def test_judges_answer_in_a_run_of_their_own(tmp_path: Path, lent_ray: None) -> None:
    """The judge is a server that says B of one model's answers; the nano VLM never writes one."""
    rows = [
        {"question": "what color is it?", "image": in_text(color), "A": "warm", "B": "cold",
         "answer": letter}
        for color, letter in [("red", "A"), ("blue", "B")]
    ]  # fmt: skip
    vet = [{"question": "what color is it?", "image": in_text("red"), "answer": "red"}]
    choices = write_tsv(tmp_path / "choices.tsv", rows)
    with serving() as server:

        def says(handler: Any, body: dict[str, Any]) -> bool:
            text = body["messages"][-1]["content"]
            said = "0.25" if text.endswith("Score:") else "B"
            message = {"role": "assistant", "content": said}
            handler.reply(200, {
                "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            })  # fmt: skip
            return True

        server.tricks.append(says)
        judge = {
            "model": "reader",
            "engine": {"name": "openai", "url": server.url, "max_retries": 0},
        }
        benchmarks = (
            {"name": "multiple_choice", "file": choices, "judge": judge,
             "prompt": "{options} describe the image.{question}"},
            {"name": "open", "file": write_tsv(tmp_path / "vet.tsv", vet), "metric": "judge",
             "judge": judge, "prompt": "{question}"},
        )  # fmt: skip
        asked = recipe(tmp_path, choices, benchmarks=benchmarks, name="judged")
        done = evaluate.run(asked)
        num_asked = len(server.asked)
        rows_kept = read_answers(RunFolder.at(done.url).store).to_pylist()
        unread = [row for row in rows_kept[:2] if row["judged"] is not None]
        assert all(row["judged"] == "B" for row in unread)
        assert rows_kept[2]["judged"] == "0.25"
        assert done.metrics["evaluate/nano/vet/judge_fraction"] == 0.25
        assert done.metrics["evaluate/nano/choices/num_judged"] == len(unread)
        (told,) = done.decisions["judges"]
        assert told["model"] == f"reader at {server.url}"
        assert told["asked"] == {"nano/choices": len(unread), "nano/vet": 1}
        judge_run = RunFolder.at(str(tmp_path / told["run"])).manifest()
        assert judge_run.recipe["benchmarks"][0]["name"] == "prompts"
        # Another run with the same answers asks nobody.
        again = evaluate.run(recipe(tmp_path, choices, benchmarks=benchmarks, name="again"))
        assert len(server.asked) == num_asked
    assert kept(again.url) == kept(done.url)


@pytest.mark.vllm
@pytest.mark.long
def test_vllm_answers_and_scores_as_transformers_does(
    undisturbed: Any, file: str, tmp_path: Path, lent_ray: None
) -> None:
    """One actor opens the engine that writes, then the one that scores."""
    engine = {"name": "vllm", "dtype": "float32", "kv_cache_gb": 0.25}
    done = evaluate.run(recipe(tmp_path, file, engine=engine))
    expected = read_answers(RunFolder.at(undisturbed.url).store).to_pylist()
    assert read_answers(RunFolder.at(done.url).store).to_pylist() == expected
