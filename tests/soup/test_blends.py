"""Shares of each part: by the methods' formulas, and the same bits in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.soup.test_families import ingredient
from tests.soup.test_mixing import FORMULAS, checkpoint, state
from tests.support.families import FAMILIES

from consomme.base.errors import RecipeError
from consomme.models.weights import load_tensors, open_model
from consomme.soup.blends import WHOLE, Blend, Grouping, TensorGroups, blend
from consomme.soup.groups import tensor_groups
from consomme.soup.ingredients import open_ingredient
from consomme.soup.methods import METHODS
from consomme.soup.mixing import ModelMix, mixed_tensors
from consomme.soup.writing import write_soup

PARTS = Grouping(per_part=True)
GROUPS = TensorGroups(
    names=("one", "two"), group_of={"a.weight": 0, "positions": 1, "b.weight": 1, "scale": 0}
)
UNITS = [(0, 3, 1), (2, 0, 1)]


@pytest.mark.parametrize("method", METHODS.names())
def test_each_part_is_mixed_by_its_shares(tmp_path: Path, method: str) -> None:
    folders = [checkpoint(tmp_path / f"m{k}", state(k)) for k in range(4)]
    *opened, base = [open_ingredient(folder) for folder in folders]
    formula, options = FORMULAS.get(method, (None, {}))
    built = METHODS.build({"name": method, **options})
    mix = ModelMix.of_candidate(
        opened, blend(PARTS, UNITS), {PARTS: GROUPS}, method=built,
        base=base if built.needs_base else None,
    )  # fmt: skip
    found = dict(mixed_tensors(mix))
    write_soup(tmp_path / "soup", mix)
    written = load_file(tmp_path / "soup/model.safetensors")
    assert all(torch.equal(tensor, written[name]) for name, tensor in found.items())
    states = [state(k) for k in range(4)]
    # Whole numbers are those of the first model that has a share of this part.
    assert torch.equal(found["positions"], states[0]["positions"])
    for name in ("a.weight", "b.weight"):
        units = UNITS[GROUPS.group_of[name]]
        used = [k for k in range(3) if units[k]]
        plain = ModelMix.of(
            [opened[k] for k in used], [units[k] for k in used], method=built, base=mix.base
        )
        assert torch.equal(found[name], dict(mixed_tensors(plain))[name])
        if formula is not None:
            models = [states[k][name].double().numpy() for k in used]
            shares = [units[k] / sum(units) for k in used]
            expected = formula(models, states[3][name].double().numpy(), shares)
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=2e-6, atol=2e-7)
    told = json.loads((tmp_path / "soup/soup.json").read_text())
    assert told["groups"]["two"] == {"m0": 2 / 3, "m1": 0.0, "m2": 1 / 3}
    assert [one["share"] for one in told["ingredients"]] == pytest.approx([1 / 3, 3 / 8, 7 / 24])
    assert "| two | 0.6667 | 0.0000 | 0.3333 |" in (tmp_path / "soup/README.md").read_text()


def test_a_blend_of_the_whole_model_is_a_weighted_mix(tmp_path: Path) -> None:
    opened = [
        open_ingredient(checkpoint(tmp_path / f"m{k}", state(k, torch.bfloat16))) for k in range(3)
    ]
    weighted = blend(WHOLE, [(3, 0, 1)])
    assert isinstance(weighted, Blend)
    mix = ModelMix.of_candidate(opened, weighted, {})
    assert (mix.shares, mix.groups) == ((0.75, 0.25), None)
    plain = ModelMix.of([opened[0], opened[2]], [3, 1])
    expected = dict(mixed_tensors(plain))
    assert all(torch.equal(t, expected[name]) for name, t in mixed_tensors(mix))


def test_more_groups_than_layers_are_refused(debug_vlm: Path) -> None:
    grouping = Grouping(per_part=True, layer_groups=99)
    with pytest.raises(RecipeError, match="layer_groups: found 99, but the language model has"):
        tensor_groups(debug_vlm, ["x"], grouping)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [one if one == "qwen2_vl" else pytest.param(one, marks=pytest.mark.long) for one in FAMILIES],
)
def test_parts_of_each_family(tmp_path: Path, name: str) -> None:
    """Parts are found in names as plain transformers stores them, and a soup by parts loads."""
    folders = [ingredient(name, tmp_path / str(k), k, is_plain=True) for k in (1, 2)]
    opened = [open_ingredient(folder) for folder in folders]
    grouping = Grouping(per_part=True, layer_groups=2)
    groups = tensor_groups(folders[0], opened[0].tensors, grouping)
    assert groups.names == ("vision_encoder", "projector", "layers_0_to_0", "layers_1_to_1")
    assert groups.group_of.keys() == opened[0].tensors.keys()
    # The first model sees, the second one speaks.
    candidate = blend(grouping, [(1, 0), (1, 1), (1, 3), (0, 1)])
    mix = ModelMix.of_candidate(opened, candidate, {grouping: groups})
    found = dict(mixed_tensors(mix))
    states = [load_file(folder / "model.safetensors") for folder in folders]
    for part, source in (("vision_encoder", 0), ("layers_1_to_1", 1)):
        members = [k for k, g in groups.group_of.items() if groups.names[g] == part]
        assert len(members) > 5
        assert all(torch.equal(found[k], states[source][k]) for k in members)
    model, _ = open_model(folders[0])
    load_tensors(model, found)
    written, _ = open_model(write_soup(tmp_path / "soup", mix))
    pairs = zip(model.state_dict().items(), written.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)
