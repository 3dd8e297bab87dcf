"""The table of families holds: every cell is right, slower with a warning, or refused."""

import json
from pathlib import Path

import pytest
from tests.support.family_table import (
    CRASH,
    OK,
    REFUSED,
    RESULTS,
    SLOWER,
    TABLE,
    VERBS,
    WRONG,
    run_cell,
    run_family,
    write_family,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

QUICK = (
    "bert", "blip2", "chameleon", "diffusion_gemma", "florence2", "glm5_next", "hunyuan_vl",
    "idefics", "kosmos2", "minimax_m3_vl", "perception_lm", "qianfan_ocr", "step3p7", "video_llava",
)  # fmt: skip
"""A family of each kind of fault that no other test has; all others are long."""


def stored() -> dict[str, dict[str, dict[str, str]]]:
    rows = json.loads(RESULTS.read_text())["rows"]
    return {row["family"]: row["cells"] for row in rows}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in TABLE],
)
def test_cells_are_those_of_the_page(tmp_path: Path, name: str) -> None:
    found = run_family(name, tmp_path / name)
    assert {verb: cell.state for verb, cell in found.items()} == {
        verb: cell["state"] for verb, cell in stored()[name].items()
    }, found


def test_the_page_has_every_family_and_nothing_wrong() -> None:
    cells = stored()
    assert set(cells) == set(TABLE)
    for name, row in cells.items():
        assert set(row) == set(VERBS)
        for verb, cell in row.items():
            assert cell["state"] in (OK, SLOWER, REFUSED), (name, verb, cell)
            assert bool(cell["detail"]) == (cell["state"] != OK), (name, verb, cell)


def test_a_fault_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is no stamp: a wrong number, a reject and a crash are none of the three."""
    write_family(TABLE["qwen3"], tmp_path / "qwen3")
    from consomme.engines.scoring import transformers as engine

    inner = engine.TransformersScorer._nll

    def wrong(self, *args):
        return inner(self, *args) * (1.01 if hasattr(self, "check") else 1)

    monkeypatch.setattr(engine.TransformersScorer, "_nll", wrong)
    assert run_cell("score", tmp_path / "qwen3").state == WRONG

    def fail(self, *args):
        raise RuntimeError("in mid-run")

    monkeypatch.setattr(engine.TransformersScorer, "score", fail)
    assert run_cell("score", tmp_path / "qwen3").state == CRASH
