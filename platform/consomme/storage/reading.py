"""The key `reading` of every recipe that names inputs: how records become samples.

What it says travels with each unit, so that whoever reads the unit later, by a view or for a
report, reads the same samples. A unit without any of it is what it was before there were options.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from consomme.base.bounds import PositiveFloat, PositiveInt
from consomme.base.checked import Checked, rule
from consomme.base.sample import REJECT_REASONS
from consomme.base.schema import added, located, runtime
from consomme.base.suggest import did_you_mean
from consomme.storage.pins import portable_url

PARTS = ("image", "caption", "conversation", "question", "answer", "system", "id", "url")
"""What `columns` can say where to find; `url` is read by `download` only."""


@dataclass(frozen=True, kw_only=True)
class Reading(Checked):
    """How the records of the inputs become samples."""

    columns: dict[str, str | tuple[str, ...]] = added({})
    """Where records hold what: `{image: jpg, caption: en_text}`. Keys are image, caption,
    conversation, question, answer, system, id, url; values are columns of a table, keys of a JSON
    record (`info.text` for one inside another), or endings of a tar's members. `image` may be a
    list of several. What is not named here is found by its common names."""

    image_root: str | None = located(None)
    """Folder that the paths of images are relative to, local or in a store; absolute paths have to
    lie below it. None: the folder of the file that names them, and no absolute paths."""

    captions: Literal["each", "first", "random"] | None = added(None)
    """What a list of captions in one record becomes: `each` is a sample of its own, of the same
    picture; `first` and `random` take one, the latter by a hash of the sample's id. None rejects
    records with several."""

    min_side_px: PositiveInt | None = added(None)
    """Reject samples with an image whose shorter side has fewer pixels, as `image_too_small`; None
    rejects none. The image's header says it, nothing is decoded."""

    max_aspect: PositiveFloat | None = added(None)
    """Reject samples with an image whose longer side is more than so many times its shorter side,
    as `image_too_elongated`; None rejects none."""

    allow: tuple[str, ...] = runtime(())
    """Reject reasons that are expected, such as `image_missing`: such samples are still left out
    and listed, but do not count for `max_reject_fraction`."""

    @rule
    def _columns(self) -> Iterator[str]:
        for part, names in self.columns.items():
            if part not in PARTS:
                known = f"expected one of {', '.join(PARTS)}{did_you_mean(part, PARTS)}"
                yield f"columns.{part}: unknown; {known}"
            elif not names or "" in as_names(names):
                yield f"columns.{part}: found {names!r}, expected the name of a column or key"
            elif part != "image" and not isinstance(names, str):
                yield f"columns.{part}: found {len(names)} names; only image may have several"
        texts = [part for part in ("caption", "conversation", "answer") if part in self.columns]
        if len(texts) > 1:
            yield f"columns: found {' and '.join(texts)}; a sample has one of them"
        if "question" in self.columns and {"caption", "conversation"} & set(self.columns):
            yield "columns.question: goes with answer, not with a caption or a conversation"

    @rule
    def _shape(self) -> Iterator[str]:
        if self.max_aspect is not None and self.max_aspect < 1:
            yield f"max_aspect: found {self.max_aspect}, expected at least 1, which is a square"

    @rule
    def _allow(self) -> Iterator[str]:
        for reason in self.allow:
            if reason not in REJECT_REASONS:
                yield f"allow: no reject reason {reason!r}{did_you_mean(reason, REJECT_REASONS)}"

    @property
    def is_default(self) -> bool:
        """Whether records are read as without any option; `allow` changes no sample."""
        return dataclasses.replace(self, allow=()) == Reading()

    def for_units(self) -> str:
        """Return what units carry: JSON of all that is set and changes samples; mostly empty."""
        if self.is_default:
            return ""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "allow" and getattr(self, field.name) != getattr(Reading(), field.name)
        }
        values |= {"image_root": portable_url(self.image_root)} if self.image_root else {}
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    def anywhere(self) -> Self:
        """Return the same with a folder that other processes find, too."""
        root = self.image_root and portable_url(self.image_root)
        return dataclasses.replace(self, image_root=root)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def of_unit(cls, text: str) -> Self:
        """Return what `for_units` wrote."""
        if not text:
            return cls()
        values: dict[str, Any] = json.loads(text)
        columns = {
            part: names if isinstance(names, str) else tuple(names)
            for part, names in values.pop("columns", {}).items()
        }
        return cls(columns=columns, **values)

    @classmethod
    @functools.lru_cache(maxsize=64)
    def identity_of(cls, text: str) -> str:
        """Return what tells units of the same rows apart, of what they carry; empty for nothing.

        Where images lie is left out: data that are moved stay the same data.

        Args:
            text: What `for_units` wrote.
        """
        return dataclasses.replace(cls.of_unit(text), image_root=None).for_units()

    def beside_a_view(self, key: str = "reading") -> Iterator[str]:
        """Say what is wrong if these options stand beside a view.

        Args:
            key: Of the recipe.
        """
        if not self.is_default:
            yield (
                f"{key}: goes with inputs; the samples of a view are read as the run read them that"
                " the view is of (only allow may stand here)"
            )

    def unexpected(self, counts: Mapping[str, int]) -> int:
        """Count the rejects that are not expected.

        Args:
            counts: With `rejected` and `rejected/<reason>`.
        """
        expected = sum(counts.get(f"rejected/{reason}", 0) for reason in set(self.allow))
        return counts.get("rejected", 0) - expected


def as_names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (names,) if isinstance(names, str) else names
