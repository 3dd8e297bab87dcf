"""One recipe over all the files in tests/cases: no traceback, and each row is accounted for."""

from collections import Counter
from pathlib import Path

import pytest
from tests.storage.test_formats import CASES, TABLE

from consomme.base.errors import DataError
from consomme.pipelines.tag import run as tag
from consomme.pipelines.tag.recipe import TagRecipe
from consomme.storage.reading import Reading

FILES = {name: (samples, reasons) for name, options, samples, reasons in TABLE if not options}


def recipe(root: Path, **options: object) -> TagRecipe:
    inputs = tuple(str(CASES / name) for name in FILES)
    return TagRecipe(
        name="all",
        inputs=inputs,
        taggers=[{"name": "text"}],  # type: ignore[arg-type]
        root=str(root),
        unit_rows=3,
        num_actors=1,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.ray
@pytest.mark.slow
def test_one_recipe_over_all_files(tmp_path: Path, lent_ray: None) -> None:
    with pytest.raises(DataError, match="max_reject_fraction"):
        tag.run(recipe(tmp_path / "strict"))
    done = tag.run(recipe(tmp_path, max_reject_fraction=1.0))
    expected: Counter[str] = Counter()
    for samples, reasons in FILES.values():
        expected["samples"] += samples
        expected.update({f"rejected/{reason}": number for reason, number in reasons.items()})
        expected["rejected"] += sum(reasons.values())
    found = {key: number for key, number in done.counts.items() if key in expected}
    assert found == dict(expected)
    again = tag.run(
        recipe(
            tmp_path,
            reading=Reading(
                allow=tuple(key[9:] for key in expected if key.startswith("rejected/"))
            ),
        )
    )
    assert again.url == done.url, "what is expected changes no sample, so this run is done"
