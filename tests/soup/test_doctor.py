"""Figures about differences between models equal those of whole arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.soup.test_mixing import checkpoint

from consomme.soup import mixing
from consomme.soup.doctor import layer_of, moves, summary
from consomme.soup.ingredients import open_ingredient
from consomme.soup.mixing import ModelMix


def test_figures_are_those_of_whole_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "PIECE", 10)
    generator = torch.Generator().manual_seed(0)
    names = ("model.layers.0.a.weight", "model.layers.0.b.weight", "model.layers.11.a.weight",
             "model.norm.weight")  # fmt: skip
    base = {name: torch.randn(7, 5, generator=generator) for name in names}
    models = []
    for k in range(3):
        moved = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        models.append(moved | {"model.norm.weight": base["model.norm.weight"].clone()})
        models[k]["positions"] = torch.arange(3)
    folders = [checkpoint(tmp_path / f"m{k}", one) for k, one in enumerate(models)]
    origin = checkpoint(tmp_path / "base", base | {"positions": torch.arange(3)})
    mix = ModelMix.of([open_ingredient(f) for f in folders], base=open_ingredient(origin))
    found = {one.layer: one for one in moves(mix)}
    assert list(found) == ["model.layers.0", "model.layers.11", "model.norm", "all"]
    for layer, one in found.items():
        mine = [name for name in names if layer in ("all", layer_of(name))]
        joined = [
            np.concatenate([m[name].double().numpy().reshape(-1) for name in mine])
            for m in (base, *models)
        ]
        deltas = [m - joined[0] for m in joined[1:]]
        assert one.num_values == len(joined[0])
        expected = [np.linalg.norm(d) / np.linalg.norm(joined[0]) for d in deltas]
        assert one.moved_M == pytest.approx(expected, rel=1e-6, abs=1e-12)
        stacked = np.stack(deltas)
        split = ((stacked > 0).any(0) & (stacked < 0).any(0)).mean()
        assert one.conflict_fraction == pytest.approx(split)
        if layer == "model.norm":
            assert one.cosine is None
            continue
        cosines = [
            deltas[a] @ deltas[b] / np.linalg.norm(deltas[a]) / np.linalg.norm(deltas[b])
            for a in range(3)
            for b in range(a)
        ]
        assert one.cosine == pytest.approx(np.mean(cosines), rel=1e-5, abs=1e-7)
        assert one.least_cosine == pytest.approx(min(cosines), rel=1e-5, abs=1e-7)
    assert "unrelated directions" in summary(list(found.values()))
