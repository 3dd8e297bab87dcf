"""Compositional tests by name, in the layouts in which their files are published.

A model has to find a true caption more likely than ones of the same words in another order, or with
one thing changed. All are kinds of `pairs`: captions are ranked by their likelihood, plain or
guided by regions. Files are not here; `file` names them, and `image_root` the folder of the images.

Sources: ARO, arXiv 2210.01936; SugarCrepe, arXiv 2306.14610; What'sUp, arXiv 2310.19785;
Winoground, arXiv 2204.03162; and the released code of the first and the third.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from consomme.base.bounds import PositiveInt
from consomme.base.checked import rule
from consomme.datasets.negatives import (
    ARO_SHUFFLES,
    Words,
    negatives,
    rule_name_problems,
)
from consomme.evaluate.benchmark import BENCHMARKS, mean
from consomme.evaluate.from_files import AskedRow
from consomme.evaluate.likelihoods import Pairs
from consomme.evaluate.metrics import Z_95
from consomme.evaluate.question_files import (
    QuestionFile,
    QuestionRow,
    as_list,
    decoded,
    question_urls,
    read_question_file,
    text_of_cell,
)


def macro_figures(
    right: Sequence[float], categories: Sequence[str], min_cases: int = 1
) -> dict[str, float]:
    """Return the mean over categories of their accuracies, with its interval."""
    by_kind: dict[str, list[float]] = {}
    for verdict, category in zip(right, categories, strict=True):
        by_kind.setdefault(category, []).append(verdict)
    counted = {kind: values for kind, values in by_kind.items() if len(values) >= min_cases}
    shares = [mean(values) for values in counted.values()]
    variances = [p * (1 - p) / len(v) for p, v in zip(shares, counted.values(), strict=True)]
    half = Z_95 * math.sqrt(sum(variances)) / max(1, len(shares))
    return {
        "macro_accuracy_fraction": mean(shares),
        "macro_accuracy_low_fraction": max(0.0, mean(shares) - half),
        "macro_accuracy_high_fraction": min(1.0, mean(shares) + half),
        "num_categories": float(len(counted)),
    }


@dataclass(frozen=True, kw_only=True)
class _Macro(Pairs):
    """What benchmarks share whose figure is a mean over categories."""

    min_cases: ClassVar[int] = 1
    """Categories with fewer rows do not count."""

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Macro mean with its interval; then the figures of `pairs`."""
        categories = [question.category for question in self.prepared.questions]
        found = macro_figures(self.outcomes(answers), categories, self.min_cases)
        return found | super().measure(answers)


@dataclass(frozen=True, kw_only=True)
class _Cropped(_Macro):
    """What ARO's two benchmarks of Visual Genome share: their images are cut to a box."""

    crops: bool = True
    """Show the part of the image in the row's box (`bbox_x`, `bbox_y`, `bbox_w`, `bbox_h`), as the
    authors do."""

    @rule
    def _boxes_are_of_the_whole(self) -> Iterator[str]:
        is_data = self.guidance is not None and self.guidance.boxes.get("name") == "data"
        if self.crops and is_data:
            yield (
                "guidance.boxes: found data, whose boxes are those of whole images, but these are"
                " cropped; take crops: false, or a detector"
            )

    def _row_of(self, row: QuestionRow, image: int) -> QuestionRow:
        row = super()._row_of(row, image)
        if not self.crops:
            return row
        left, top, width, height = (
            float(row.cells[name]) for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
        )
        (picture,) = decoded(row.images)
        # Pillow fills what lies beyond the picture with black, as it does for the authors.
        box = tuple(round(edge) for edge in (left, top, left + width, top + height))
        data = io.BytesIO()
        picture.crop(box).save(data, "PNG")  # type: ignore[arg-type]
        return replace(row, images=(data.getvalue(),))

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the captions, and check that the box is there."""
        missing = [k for k in ("bbox_x", "bbox_y", "bbox_w", "bbox_h") if k not in row.cells]
        if self.crops and missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        return super().question_of(row)


@BENCHMARKS.register("aro_relation")
@dataclass(frozen=True, kw_only=True)
class ARORelation(_Cropped):
    """ARO's VG-Relation (`visual_genome_relation.json`): who does what to whom, by relation."""

    label: str = "VG-Relation"

    def _category(self, row: QuestionRow) -> str:
        return text_of_cell(row.cells.get("relation_name", "")).replace("/", "-")


@BENCHMARKS.register("aro_attribution")
@dataclass(frozen=True, kw_only=True)
class AROAttribution(_Cropped):
    """ARO's VG-Attribution (`visual_genome_attribution.json`): which of two things is how.

    The mean is over pairs of attributes with 25 cases or more.
    """

    label: str = "VG-Attribution"

    min_cases: ClassVar[int] = 25

    def _category(self, row: QuestionRow) -> str:
        return "_".join(as_list(row.cells.get("attributes", ""))).replace("/", "-")


@BENCHMARKS.register("sugarcrepe")
@dataclass(frozen=True, kw_only=True)
class SugarCrepe(_Macro):
    """SugarCrepe: swap, replace and add, by sub-kind, which is the name of a file.

    `file` is one of its files (`swap_obj.json`), a folder or a glob of them; `image_root` is COCO's
    `val2017`.
    """

    label: str = "SugarCrepe"

    @cached_property
    def rows(self) -> QuestionFile:
        """The rows of all files, with their sub-kinds.

        Raises:
            DataError: A file cannot be read.
        """
        files = [
            read_question_file(url, self.image_root, ("filename", "image"))
            for url in question_urls(self.file)
        ]
        rows: list[QuestionRow] = []
        for one in files:
            kind = one.url.rpartition("/")[2].partition(".")[0]
            rows += [
                replace(row, number=len(rows) + k, cells={**row.cells, "category": kind})
                for k, row in enumerate(one.rows)
            ]
        return _joined(self.file, files, rows)


@BENCHMARKS.register("winoground")
@dataclass(frozen=True, kw_only=True)
class Winoground(Pairs):
    """Winoground: two images and two captions of the same words; text, image and group score."""

    label: str = "Winoground"

    def _category(self, row: QuestionRow) -> str:
        return text_of_cell(row.cells.get("collapsed_tag", "")).replace("/", "-")


_PAIRED = (("left", "right"), ("on", "under"), ("in-front", "behind"), ("above", "below"))


@BENCHMARKS.register("whatsup")
@dataclass(frozen=True, kw_only=True)
class WhatsUp(Pairs):
    """What'sUp's controlled images: where a thing is, of four places, with everything else equal.

    `file` is `controlled_images_dataset.json` or `controlled_clevr_dataset.json`. Beside single
    images, pairs of opposite places and sets of all four count, which have to be right together. A
    set is told by the image's name, such as `mug_left_of_table.jpeg`.
    """

    label: str = "WhatsUp"

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Read the captions, the first of which is true."""
        captions = as_list(row.cells.get("caption_options", ""))
        if len(set(captions)) < max(2, len(captions)):
            raise ValueError(f"found {len(set(captions))} different captions in caption_options")
        if len(row.images) != 1:
            raise ValueError(f"it has {len(row.images)} images, expected 1")
        return AskedRow(
            row=row,
            text=self.prompt,
            truths=(captions[0],),
            category=self._category(row),
            options={str(k): text for k, text in enumerate(captions)},
        )

    def measure(self, answers: Sequence[str]) -> dict[str, float]:
        """Accuracy of single images, of pairs of opposite places, and of sets of four."""
        rows = [question.row for question in self.prepared.questions]
        places = [_place_of(row) for row in rows]
        return super().measure(answers) | set_figures(self.outcomes(answers), places)

    def _category(self, row: QuestionRow) -> str:
        return _place_of(row)[1]


def set_figures(
    right: Sequence[float], places: Sequence[tuple[tuple[str, ...], str]]
) -> dict[str, float]:
    """Return the accuracy of pairs of opposite places, and of whole sets.

    Args:
        right: Of each image.
        places: Which set it is of, and its place.
    """
    sets: dict[tuple[str, ...], dict[str, float]] = {}
    for verdict, (group, place) in zip(right, places, strict=True):
        sets.setdefault(group, {})[place] = verdict
    pairs = [
        min(one[a], one[b]) for one in sets.values() for a, b in _PAIRED if a in one and b in one
    ]
    whole = [min(one.values()) for one in sets.values() if len(one) == 4]
    return {
        "pair_accuracy_fraction": mean(pairs),
        "set_accuracy_fraction": mean(whole),
        "num_pairs": float(len(pairs)),
        "num_sets": float(len(whole)),
        "num_incomplete_sets": float(len(sets) - len(whole)),
    }


def _place_of(row: QuestionRow) -> tuple[tuple[str, ...], str]:
    """Return which set an image is of, and its place, from its name."""
    name = text_of_cell(row.cells.get("image_path", row.cells.get("image", "")))
    parts = name.rpartition("/")[2].rpartition(".")[0].split("_")
    if len(parts) < 3:
        raise ValueError(f"found the image {name!r}, expected a name such as mug_left_of_table.jpg")
    return (parts[0], parts[-1]), parts[1]


@BENCHMARKS.register("negatives")
@dataclass(frozen=True, kw_only=True)
class NegativeCaptions(Pairs):
    """Any captions against hard negatives that are made of them by rule.

    The rules are those of `consomme.datasets.negatives`, and a negative may be true by accident:
    `crg.negatives` in tests/benchmarks has how often.
    """

    kinds: tuple[str, ...] = ARO_SHUFFLES
    """Rules: ARO's four shuffles, `swap_obj`, `swap_att`, `replace_obj`, `replace_att`,
    `replace_rel`, `add_obj`, `add_att`. A caption competes with all negatives at once; rules that
    cannot change it are left out."""

    plain_text: bool = False
    """Write captions as ARO does: in small letters, without punctuation, at most 30 words."""

    max_captions: PositiveInt | None = None
    """Captions per row; None takes all, as ARO does."""

    @rule
    def _known_rules(self) -> Iterator[str]:
        yield from rule_name_problems(self.kinds)

    @cached_property
    def rows(self) -> QuestionFile:
        """A row for each caption.

        Raises:
            DataError: The file cannot be read.
        """
        file = read_question_file(self.file, self.image_root)
        rows: list[QuestionRow] = []
        for row in file.rows:
            texts = as_list(self._captions(row))[: self.max_captions]
            rows += [
                replace(row, number=len(rows) + k, cells={**row.cells, _CAPTION: text})
                for k, text in enumerate(texts)
            ]
        return _joined(self.file, [file], rows)

    def data_version(self) -> str:
        """Return a hash of the file and of the negatives, which the rules decide."""
        made = [question.options for question in self.prepared.questions]
        return hashlib.sha256(f"{self.rows.version}\n{made}".encode()).hexdigest()

    def _captions(self, row: QuestionRow) -> object:
        names = (self.columns["answer"],) if "answer" in self.columns else _CAPTION_COLUMNS
        found = next((row.cells[name] for name in names if name in row.cells), None)
        return [] if found is None else found

    @cached_property
    def _words(self) -> Words:
        return Words.of(str(row.cells[_CAPTION]) for row in self.rows.rows)

    def question_of(self, row: QuestionRow) -> AskedRow:
        """Make the negatives of a caption."""
        if len(row.images) != 1:
            raise ValueError(f"it has {len(row.images)} images, expected 1")
        caption = str(row.cells[_CAPTION])
        name = hashlib.sha256(row.images[0]).hexdigest()
        # ARO shuffles first, and leaves out punctuation afterwards.
        found = list(negatives(caption, name, self.kinds, self._words).values())
        texts = [_as_aro(text) if self.plain_text else text for text in (caption, *found)]
        texts = list(dict.fromkeys(texts))
        if len(texts) < 2:
            raise ValueError(f"no rule of {', '.join(self.kinds)} changes {caption[:60]!r}")
        return AskedRow(
            row=row,
            text=self.prompt,
            truths=(texts[0],),
            category=self._category(row),
            options={str(k): text for k, text in enumerate(texts)},
        )


_CAPTION = "the caption"
_CAPTION_COLUMNS = ("caption", "captions", "sentences", "text", "answer")


@BENCHMARKS.register("aro_order")
@dataclass(frozen=True, kw_only=True)
class AROOrder(NegativeCaptions):
    """ARO's COCO-Order and Flickr30k-Order: a caption against its four shuffles, Precision@1.

    `file` is `coco_karpathy_test.json` or `flickr30k_test.json`; the shuffles are made here, by
    rules that find nouns and adjectives otherwise than the authors' tagger.
    """

    plain_text: bool = True
    label: str = "COCO-Order"


def _as_aro(caption: str) -> str:
    """Write a caption as the authors of ARO do before it is compared."""
    text = re.sub(r"[.!\"()*#:;~]", " ", caption.lower())
    return " ".join(re.sub(r"\s{2,}", " ", text).strip().split(" ")[:30])


def _joined(file: str, files: Sequence[QuestionFile], rows: Sequence[QuestionRow]) -> QuestionFile:
    columns: Mapping[str, None] = dict.fromkeys(name for one in files for name in one.columns)
    return QuestionFile(
        url=file,
        columns=(*columns, "category"),
        rows=tuple(rows),
        problems=tuple(problem for one in files for problem in one.problems),
        version=hashlib.sha256("\n".join(one.version for one in files).encode()).hexdigest(),
    )
