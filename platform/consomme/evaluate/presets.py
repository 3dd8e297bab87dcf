"""The eight benchmarks of POINTS by name: file, prompt and metric of each.

Files are those of VLMEvalKit, in its folder `~/LMUData` if `file` names no other place. Everything
else can be changed as in the kind that a preset is one of. Which judge reads answers has to be
named, since its verdicts are part of the figures: MM-Vet and MathVista need one, the others may
have one. Their mean is a `weighted` of the eight, as in recipes/evaluate/points.yaml.

Source: POINTS (arXiv 2409.04828), section 3; its figures were made with VLMEvalKit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.base.schema import located
from consomme.evaluate.benchmark import BENCHMARKS
from consomme.evaluate.file_kinds import MultipleChoice, YesNo
from consomme.evaluate.open_kind import OpenAnswers
from consomme.evaluate.question_files import QuestionRow, text_of_cell
from consomme.evaluate.yes_no import group_accuracy

FOLDER = "~/LMUData"
SHORT_ANSWER = "{hint}{question}\nAnswer the question using a single word or phrase."


@BENCHMARKS.register("mmbench")
@dataclass(frozen=True, kw_only=True)
class MMBench(MultipleChoice):
    """MMBench, English, development split, circular (arXiv 2307.06281)."""

    file: str = located(f"{FOLDER}/MMBench_DEV_EN.tsv")
    circular: bool = True
    label: str = "MMBench"


@BENCHMARKS.register("mmstar")
@dataclass(frozen=True, kw_only=True)
class MMStar(MultipleChoice):
    """MMStar: questions that cannot be answered without the image (arXiv 2403.20330)."""

    file: str = located(f"{FOLDER}/MMStar.tsv")
    label: str = "MMStar"


@BENCHMARKS.register("ai2d")
@dataclass(frozen=True, kw_only=True)
class AI2D(MultipleChoice):
    """AI2D: diagrams of science textbooks, test split (arXiv 1603.07396)."""

    file: str = located(f"{FOLDER}/AI2D_TEST.tsv")
    label: str = "AI2D"


@BENCHMARKS.register("mmmu")
@dataclass(frozen=True, kw_only=True)
class MMMU(MultipleChoice):
    """MMMU, validation split, several images in their places (arXiv 2311.16502).

    Its questions without options are compared by their content; VLMEvalKit takes them for choices
    between the right answer and any other, which measures what its parser makes of a long text.
    """

    file: str = located(f"{FOLDER}/MMMU_DEV_VAL.tsv")
    open_prompt: str | None = SHORT_ANSWER
    label: str = "MMMU"

    def __post_init__(self) -> None:
        """Take the validation split, unless `where` says otherwise."""
        if not self.where:
            object.__setattr__(self, "where", {"split": "validation"})
        super().__post_init__()


@BENCHMARKS.register("hallusionbench")
@dataclass(frozen=True, kw_only=True)
class HallusionBench(YesNo):
    """HallusionBench: the mean of accuracy by question, by figure and by group (2310.14566)."""

    file: str = located(f"{FOLDER}/HallusionBench.tsv")
    label: str = "HallusionBench"

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Mean of aAcc, fAcc and qAcc first, then these and the figures of `yes_no`."""
        figures = super().measure(answers)
        places = [_place(question.row) for question in self.prepared.questions]
        bad = [(f"unreadable {k}",) for k in range(len(self.prepared.problems))]
        right = [*self.verdicts(answers), *([0.0] * len(bad))]
        figure = [*((category, group, figure) for category, group, figure, _ in places), *bad]
        asked = [*((category, group, question) for category, group, _, question in places), *bad]
        parts = {
            "aAcc_fraction": figures["accuracy_fraction"],
            "fAcc_fraction": group_accuracy(right, figure),
            "qAcc_fraction": group_accuracy(right, asked),
        }
        return {"mean_accuracy_fraction": sum(parts.values()) / len(parts)} | parts | figures


def _place(row: QuestionRow) -> tuple[str, str, str, str]:
    """Return category, set, figure and question: the last three parts of the row's index."""
    cells = row.cells
    category = text_of_cell(cells.get("l2-category", cells.get("category", "")))
    named = [text_of_cell(cells.get(key, "")) for key in ("set_id", "figure_id", "question_id")]
    parts = named if all(named) else text_of_cell(cells.get("index", "")).split("_")[-3:]
    if len(parts) < 3:
        # Of no group that is known: it stands for itself.
        parts = [str(row.number)] * 3
    return category, parts[0], parts[1], parts[2]


@BENCHMARKS.register("ocrbench")
@dataclass(frozen=True, kw_only=True)
class OCRBench(OpenAnswers):
    """OCRBench: an answer is right if it contains a right text; 1 is 1,000 points (2305.07895)."""

    file: str = located(f"{FOLDER}/OCRBench.tsv")
    metric: Literal[
        "exact", "vqa", "anls", "relaxed", "number", "contains", "contains_formula", "judge"
    ] = "contains"
    prompt: str = "{hint}{question}"
    max_tokens: PositiveInt = 128
    label: str = "OCRBench"


@dataclass(frozen=True, kw_only=True)
class _JudgedAnswers(OpenAnswers):
    """What presets share that mean nothing without a judge."""

    @rule
    def _has_judge(self) -> Iterator[str]:
        if self.judge is None:
            yield (
                "judge: missing; its answers are long texts that a model has to read, so name"
                " one, judge: {model: …}"
            )


@BENCHMARKS.register("mathvista")
@dataclass(frozen=True, kw_only=True)
class MathVista(_JudgedAnswers):
    """MathVista, testmini: the judge finds the short answer, which is compared (2310.02255)."""

    file: str = located(f"{FOLDER}/MathVista_MINI.tsv")
    metric: Literal[
        "exact", "vqa", "anls", "relaxed", "number", "contains", "contains_formula", "judge"
    ] = "number"
    prompt: str = "{hint}{question}"
    max_tokens: PositiveInt = 512
    label: str = "MathVista"


@BENCHMARKS.register("mmvet")
@dataclass(frozen=True, kw_only=True)
class MMVet(_JudgedAnswers):
    """MM-Vet: the judge says how right an answer is, from 0 to 1 (arXiv 2308.02490)."""

    file: str = located(f"{FOLDER}/MMVet.tsv")
    metric: Literal[
        "exact", "vqa", "anls", "relaxed", "number", "contains", "contains_formula", "judge"
    ] = "judge"
    prompt: str = "{hint}{question}"
    max_tokens: PositiveInt = 512
    label: str = "MMVet"


EIGHT = ("mmbench", "mathvista", "hallusionbench", "ocrbench", "ai2d", "mmvet", "mmstar", "mmmu")
"""The eight, in the order of POINTS' tables."""
