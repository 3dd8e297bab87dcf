"""Soups are exact where they can be, streamed where they must be, and refused for strangers."""

import json
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from consomme.base.errors import CheckpointError, RecipeError
from consomme.soup import mixing
from consomme.soup.formulas import karcher_mean
from consomme.soup.ingredients import open_ingredient
from consomme.soup.methods import METHODS
from consomme.soup.mixing import ModelMix, average_ingredients, mixed_tensors
from consomme.soup.writing import write_soup

CONFIG = {"architectures": ["X"], "hidden_size": 4, "transformers_version": "5.19.0"}
State = dict[str, torch.Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(5, 4, generator=generator).to(dtype),
        "b.weight": torch.randn(3, generator=generator).to(dtype),
        "positions": torch.arange(7) + seed,
        "scale": torch.tensor(1.5 + seed).to(dtype),
    }


def checkpoint(folder: Path, tensors: State, **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "optimizer.pt").write_bytes(b"not for the soup")
    return folder


def mixture_of(
    folder: Path, states: Sequence[State], base: State | None = None, **options: Any
) -> ModelMix:
    folders = [checkpoint(folder / f"m{i}", s) for i, s in enumerate(states)]
    opened = None if base is None else open_ingredient(checkpoint(folder / "base", base))
    return ModelMix.of([open_ingredient(f) for f in folders], base=opened, **options)


def soup_of(tmp_path: Path, states: Sequence[State], **options: Any) -> State:
    tmp_path.mkdir(exist_ok=True)
    write_soup(tmp_path / "soup", mixture_of(tmp_path, states, **options))
    return load_file(tmp_path / "soup" / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_mix_of_equal_models_is_that_model_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, method: str, count: int
) -> None:
    """And that of models that are all their base is the base, for each method."""
    equal = [state(0, dtype)] * count
    mixed = soup_of(tmp_path, equal, base=state(0, dtype), method=METHODS.build({"name": method}))
    for name, tensor in state(0, dtype).items():
        assert torch.equal(mixed[name], tensor)
        assert mixed[name].dtype == tensor.dtype


def test_the_average_of_one_model_many_times_is_that_model_whatever_the_others_hold(
    tmp_path: Path,
) -> None:
    """Pieces that are not shared are mixed and still equal, since nothing is lost in between."""
    mixture = mixture_of(tmp_path, [state(3)] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing.np, "array_equal", lambda *_: False)
        mixed = dict(mixed_tensors(mixture))
    assert all(torch.equal(mixed[name], tensor) for name, tensor in state(3).items())


# --- formulas, in float64 and without pieces ---------------------------------------------------

Arrays = Sequence[np.ndarray]


def averaged(models: Arrays, base: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    return sum(s * m for s, m in zip(shares, models, strict=True))


def task_arithmetic(models: Arrays, base: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    return base + 0.7 * sum(s * (m - base) for s, m in zip(shares, models, strict=True))


def agreed(deltas: Arrays, base: np.ndarray, shares: Sequence[float], scale: float) -> np.ndarray:
    weighted = [s * d for s, d in zip(shares, deltas, strict=True)]
    sign = np.sign(sum(weighted))
    total = sum(np.where(np.sign(w) == sign, w, 0) for w in weighted)
    share = sum(np.where(np.sign(w) == sign, s, 0) for w, s in zip(weighted, shares, strict=True))
    return base + scale * np.where((sign != 0) & (share > 0), total / np.maximum(share, 1e-300), 0)


def ties(models: Arrays, base: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    deltas = []
    for model in models:
        delta = model - base
        kept = max(1, int(0.3 * delta.size))
        least = np.sort(np.abs(delta).reshape(-1))[-kept]
        deltas.append(np.where(np.abs(delta) >= least, delta, 0))
    return agreed(deltas, base, shares, 0.9)


def slerp(models: Arrays, base: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    lengths = [np.linalg.norm(m) for m in models]
    units = [m / n for m, n in zip(models, lengths, strict=True)]
    if len(models) == 2:
        angle = np.arccos(np.clip((units[0] * units[1]).sum(), -1, 1))
        mean = sum(
            np.sin(s * angle) / np.sin(angle) * u for s, u in zip(shares, units, strict=True)
        )
    else:
        mean = averaged(units, base, shares)
        for _ in range(300):
            mean = mean / np.linalg.norm(mean)
            step = np.zeros_like(mean)
            for s, u in zip(shares, units, strict=True):
                cosine = np.clip((mean * u).sum(), -1, 1)
                angle = np.arccos(cosine)
                step += s * (angle / np.sin(angle) if angle > 1e-9 else 1) * (u - cosine * mean)
            length = np.linalg.norm(step)
            if length < 1e-13:
                break
            mean = np.cos(length) * mean + np.sin(length) * step / length
    return mean * averaged(lengths, base, shares)


def model_stock(models: Arrays, base: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    deltas = [m - base for m in models]
    cosines = [
        (deltas[i] * deltas[j]).sum() / np.linalg.norm(deltas[i]) / np.linalg.norm(deltas[j])
        for i in range(len(deltas))
        for j in range(i)
    ]
    cosine, n = np.mean(cosines), len(models)
    ratio = max(0.0, n * cosine / (1 + (n - 1) * cosine))
    return ratio * averaged(models, base, shares) + (1 - ratio) * base


FORMULAS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "average": (averaged, {}),
    "task_arithmetic": (task_arithmetic, {"scale": 0.7}),
    "ties": (ties, {"density": 0.3, "scale": 0.9}),
    "slerp": (slerp, {}),
    "model_stock": (model_stock, {}),
}


@pytest.mark.parametrize("piece", [1 << 18, 64])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("method", FORMULAS)
def test_methods_equal_their_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, count: int, piece: int
) -> None:
    monkeypatch.setattr(mixing, "PIECE", piece)
    generator = torch.Generator().manual_seed(count)
    base = {
        "w": torch.randn(37, 29, generator=generator),
        "v": torch.randn(11, generator=generator),
    }
    shift = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    states = [
        {n: t + shift[n] + 0.1 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for _ in range(count)
    ]
    weights = [1.0, 2.0, 0.5, 1.5][:count]
    shares = [w / sum(weights) for w in weights]
    formula, options = FORMULAS[method]
    built = METHODS.build({"name": method, **options})
    mixed = soup_of(tmp_path / "a", states, base=base, weights=weights, method=built)
    for name, tensor in mixed.items():
        models = [one[name].double().numpy() for one in states]
        expected = formula(models, base[name].double().numpy(), shares)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=2e-6, atol=2e-7)
    # Cut in any way, named in any order: the same bits.
    backwards = ModelMix.of(
        [open_ingredient(tmp_path / "a" / f"m{k}") for k in reversed(range(count))],
        weights[::-1],
        method=built,
        base=open_ingredient(tmp_path / "a" / "base"),
    )
    assert all(torch.equal(tensor, mixed[name]) for name, tensor in mixed_tensors(backwards))


@pytest.mark.parametrize("signs", [False, True])
def test_dare_drops_as_often_as_it_says_and_keeps_the_mean(tmp_path: Path, signs: bool) -> None:
    base = {"w": torch.zeros(400, 500)}
    states = [{"w": torch.full((400, 500), value)} for value in (1.0, 3.0)]
    method = METHODS.build({"name": "dare", "density": 0.25, "signs": signs})
    mixed = soup_of(tmp_path, states, base=base, method=method)["w"]
    if signs:
        # The weighted mean of those that stayed: 4, 12 or 8.
        assert set(mixed.unique().tolist()) == {0.0, 4.0, 12.0, 8.0}
    else:
        assert set(mixed.unique().tolist()) == {0.0, 2.0, 6.0, 8.0}
        assert mixed.mean().item() == pytest.approx(2.0, rel=0.02)
    assert (mixed == 0).double().mean().item() == pytest.approx(0.75**2, rel=0.02)
    again = dict(mixed_tensors(ModelMix.of(
        [open_ingredient(tmp_path / f"m{k}") for k in (1, 0)], method=method,
        base=open_ingredient(tmp_path / "base"),
    )))["w"]  # fmt: skip
    assert torch.equal(again, mixed), "what is dropped depends on the model, not on its place"
    other = METHODS.build({"name": "dare", "density": 0.25, "signs": signs, "seed": 1})
    (tmp_path / "other").mkdir()
    assert not torch.equal(soup_of(tmp_path / "other", states, base=base, method=other)["w"], mixed)


def test_della_drops_small_differences_more_often(tmp_path: Path) -> None:
    base = {"w": torch.zeros(20_000, 4)}
    states = [{"w": torch.tensor([0.4, 0.1, 0.3, 0.2]).repeat(20_000, 1)}]
    method = METHODS.build({"name": "della", "density": 0.5, "window": 0.4})
    mixed = soup_of(tmp_path, states, base=base, method=method)["w"]
    stays = (mixed != 0).double().mean(0)
    # Rank 0 is dropped with 1 - 0.5 - 0.2, each further one of four with 0.1 more.
    expected = torch.tensor([0.7, 0.4, 0.6, 0.5], dtype=torch.float64)
    torch.testing.assert_close(stays, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(
        mixed.double().mean(0), states[0]["w"][0].double(), atol=0.01, rtol=0.02
    )


def test_a_mean_of_opposite_directions_is_an_average() -> None:
    assert karcher_mean(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.5, 0.5])) is None


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_bfloat16_averages_are_the_rounded_float64_means(tmp_path: Path, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(300_000, generator=generator)
    states = [
        {"w": (base + 0.002 * torch.randn(base.shape, generator=generator)).bfloat16()}
        for _ in range(count)
    ]
    mixed = soup_of(tmp_path, states)["w"]
    exact = sum(one["w"].double() for one in states) / count
    assert int((mixed != exact.float().bfloat16()).sum()) == 0
    # 256 + 1 is 256 in bfloat16: summing in bfloat16 would lose every small model.
    small = [{"w": torch.full((4,), value).bfloat16()} for value in (256.0, *[1.0] * 7)]
    (tmp_path / "s").mkdir()
    assert torch.equal(soup_of(tmp_path / "s", small)["w"], torch.full((4,), 263 / 8).bfloat16())


def test_integers_are_those_of_the_first(tmp_path: Path) -> None:
    states = [state(i) for i in range(5)]
    mixed = soup_of(tmp_path, states)
    assert torch.equal(mixed["positions"], states[0]["positions"])
    opened = [open_ingredient(tmp_path / f"m{k}") for k in (3, 1)]
    assert torch.equal(dict(average_ingredients(opened))["positions"], states[3]["positions"])


def test_weights_are_normalised_and_a_single_share_is_that_model(tmp_path: Path) -> None:
    states = [state(i) for i in range(3)]
    ingredients = mixture_of(tmp_path, states).ingredients
    one = dict(average_ingredients(ingredients, [0, 5, 0]))
    assert all(torch.equal(one[name], tensor) for name, tensor in states[1].items())
    for weights in ([1, 2], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1]):
        with pytest.raises(RecipeError, match="weights"):
            dict(average_ingredients(ingredients, weights))


def test_memory_and_disk_agree(tmp_path: Path) -> None:
    states = [state(i, torch.bfloat16) for i in range(4)]
    on_disk = soup_of(tmp_path, states)
    streamed = dict(average_ingredients([open_ingredient(tmp_path / f"m{i}") for i in range(4)]))
    assert on_disk.keys() == streamed.keys()
    assert all(torch.equal(tensor, streamed[name]) for name, tensor in on_disk.items())


def test_a_base_and_its_fine_tune_may_be_stored_in_different_types(tmp_path: Path) -> None:
    states = [state(0, torch.bfloat16), state(1)]
    mixed = soup_of(tmp_path, states)
    assert mixed["a.weight"].dtype == torch.bfloat16
    expected = (states[0]["a.weight"].float() + states[1]["a.weight"]) / 2
    assert torch.equal(mixed["a.weight"], expected.bfloat16())


def test_the_type_of_the_soup_can_be_chosen(tmp_path: Path) -> None:
    states = [state(i) for i in (0, 1)]
    folders = [checkpoint(tmp_path / f"m{i}", s, dtype="float32") for i, s in enumerate(states)]
    mixture = ModelMix.of([open_ingredient(folder) for folder in folders], dtype="BF16")
    soup = write_soup(tmp_path / "soup", mixture)
    mixed = load_file(soup / "model.safetensors")
    expected = ((states[0]["a.weight"] + states[1]["a.weight"]) / 2).bfloat16()
    assert torch.equal(mixed["a.weight"], expected)
    assert mixed["positions"].dtype == torch.int64
    assert json.loads((soup / "config.json").read_text())["dtype"] == "bfloat16"


def test_files_are_cut_as_asked_whatever_the_models_have(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path / "whole", {"a": state(0)["a.weight"], "b": state(0)["b.weight"]})
    cut = checkpoint(tmp_path / "cut", {"a": state(1)["a.weight"]})
    (cut / "model.safetensors").rename(cut / "model-00001-of-00002.safetensors")
    save_file({"b": state(1)["b.weight"]}, cut / "model-00002-of-00002.safetensors")
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (cut / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    opened = [open_ingredient(folder) for folder in (cut, whole)]
    as_first = write_soup(tmp_path / "soup", ModelMix.of(opened))
    in_one = write_soup(tmp_path / "one", ModelMix.of(opened[::-1]))
    small = write_soup(tmp_path / "small", ModelMix.of(opened[::-1]), max_shard_bytes=40)
    for folder, number in ((as_first, 2), (in_one, 1), (small, 2)):
        files = sorted(folder.glob("*.safetensors"))
        assert len(files) == number
        mixed = {name: one for file in files for name, one in load_file(file).items()}
        for name in ("a", "b"):
            expected = (state(0)[f"{name}.weight"] + state(1)[f"{name}.weight"]) / 2
            torch.testing.assert_close(mixed[name], expected)
        index = folder / "model.safetensors.index.json"
        assert index.exists() == (number > 1)
        if number > 1:
            assert json.loads(index.read_text()) == {
                "metadata": {"total_size": 92}, "weight_map": where
            }  # fmt: skip
        assert open_ingredient(folder).tensors.keys() == {"a", "b"}


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = []
    for number in (2, 12):
        (tmp_path / str(number)).mkdir()
        states = [
            {f"w{k}": torch.full((1 << 20,), float(seed + k)) for k in range(number)}
            for seed in (0, 1, 2)
        ]
        mixture = mixture_of(tmp_path / str(number), states)
        tracemalloc.start()
        write_soup(tmp_path / str(number) / "soup", mixture)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_soup_json_tells_where_it_came_from(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / n, state(i)) for i, n in enumerate(("emoji", "scenes"))]
    mixture = ModelMix.of([open_ingredient(f) for f in folders], [1, 3])
    soup = write_soup(tmp_path / "soup", mixture, lineage={"search": "greedy"})
    record = json.loads((soup / "soup.json").read_text())
    assert [(i["name"], i["share"]) for i in record["ingredients"]] == [
        ("emoji", 0.25),
        ("scenes", 0.75),
    ]
    assert record["method"] == {"name": "average"}
    assert record["search"] == "greedy"
    assert not (soup / "optimizer.pt").exists()


def test_the_card_names_what_was_mixed(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / n, state(i)) for i, n in enumerate(("emoji", "scenes"))]
    (folders[0] / "README.md").write_text("the card of an ingredient")
    opened = [
        open_ingredient(folders[0], "emoji", "org/emoji@0123abc"),
        open_ingredient(folders[1], "scenes", "s3://bucket/scenes"),
    ]
    method = METHODS.build({"name": "ties", "density": 0.5})
    mix = ModelMix.of(opened, [1, 3], method=method, base=open_ingredient(folders[0], "base"))
    card = (write_soup(tmp_path / "soup", mix) / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["org/emoji"]
    assert "merge" in front["tags"]
    assert "| scenes | s3://bucket/scenes | 0.7500 |" in card
    assert '`ties` with `{"scale": 1.0, "density": 0.5}`' in card


def test_methods_that_need_a_base_say_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="base: found none, but Ties mixes differences"):
        mixture_of(tmp_path, [state(0)], method=METHODS.build({"name": "ties"}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    broken = state(1)
    broken["a.weight"][2, 1] = value
    for states in ([state(0), broken], [broken, broken]):
        (tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        folder = max(tmp_path.iterdir())
        with pytest.raises(CheckpointError, match=r"m\d: a.weight holds NaN or infinite"):
            soup_of(folder, states)
        assert not (folder / "soup" / "soup.json").exists()


def test_values_beyond_the_range_of_a_type_are_refused(tmp_path: Path) -> None:
    large = [{"w": torch.full((4,), value).bfloat16()} for value in (7e4, 8e4)]
    opened = [open_ingredient(checkpoint(tmp_path / str(k), one)) for k, one in enumerate(large)]
    for models in (opened, opened[:1] * 2):
        with pytest.raises(CheckpointError, match="w has mixed values beyond the range of F16"):
            list(ModelMix.of(models, dtype="F16").tensors())
        assert list(ModelMix.of(models, dtype="F32").tensors())
