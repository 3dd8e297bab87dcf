"""Every verb with root, data and model in S3, or on the hub, on nodes that share no disk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.two_nodes import TwoNodes, two_nodes
from tests.support.hub_server import HubServer, folder_files, hub_server
from tests.support.s3_server import BUCKET, S3Server

import consomme
from consomme.datasets.sources import SceneSource
from consomme.storage.stores.open import open_store
from consomme.storage.writers import WebDatasetWriter

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

NANO = folder_files(Path(consomme.__file__).parent / "models" / "nano")
WEIGHTS = "model.safetensors"
ROWS, PER_SHARD = 24, 4


@dataclass(frozen=True)
class Places:
    """The cluster, and where data and models lie."""

    nodes: TwoNodes
    hub: HubServer
    root: str
    inputs: dict[str, str]
    models: dict[str, str]
    others: dict[str, str]
    """A second model, by place."""


@pytest.fixture(scope="module")
def places(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    folder = tmp_path_factory.mktemp("machines")
    with hub_server() as hub, pytest.MonkeyPatch.context() as patch:
        env = {**s3_server.env(), "HF_ENDPOINT": hub.url}
        for name, value in env.items():
            patch.setenv(name, value)
        root = f"s3://{BUCKET}/two-nodes"
        shards = open_store(f"{root}/data")
        writer = WebDatasetWriter(shards, "scenes", max_rows=PER_SHARD)
        for sample in SceneSource(num=ROWS)():
            writer.write(sample)
        writer.close()
        tars = {file.path: shards.read(file.path) for file in shards.list()}
        hub.dataset("org/scenes").commit({f"data/{path}": data for path, data in tars.items()})
        other = {**NANO, WEIGHTS: NANO[WEIGHTS][:-2] + b"\0\0"}
        for name, files in (("nano", NANO), ("other", other)):
            hub.model(f"org/{name}").commit(files)
            for path, data in files.items():
                open_store(f"{root}/models/{name}").write(path, data)
        with two_nodes(folder, env) as nodes:
            yield Places(
                nodes,
                hub,
                f"{root}/runs",
                {"s3": f"{root}/data", "hub": "hf://datasets/org/scenes/data"},
                {"s3": f"{root}/models/nano", "hub": "org/nano"},
                {"s3": f"{root}/models/other", "hub": "hf://org/other@main"},
            )


def test_a_score_run_with_names_of_the_hub(places: Places) -> None:
    """Each node brings the model once, and the driver none of its weights."""
    manifest = run(places, "score", "short", **scored(places, "hub"))
    assert manifest["counts"]["samples"] == ROWS
    assert set(manifest["pins"]) == {"hf://org/nano@main", "hf://datasets/org/scenes@main"}
    assert places.hub.times(f"org/nano/{WEIGHTS}") == 2
    assert places.hub.tokens_of_files
    used = [len(list(node.glob("cache/consomme/models/*.complete"))) for node in places.nodes.nodes]
    assert used == [1, 1]


def run(places: Places, verb: str, name: str, **values: Any) -> dict[str, Any]:
    """Run a verb, and read its manifest."""
    told = places.nodes.run(verb, {"name": name, "root": places.root, **values})
    (url,) = re.findall(r"run folder +(\S+)", told)
    manifest: dict[str, Any] = json.loads(open_store(url).read("manifest.json"))
    return {**manifest, "url": url}


def scored(places: Places, place: str) -> dict[str, Any]:
    return {
        "model": places.models[place],
        "inputs": [places.inputs[place]],
        "unit_rows": PER_SHARD,
        "num_actors": 2,
        "min_actors": 2,
    }


@pytest.mark.long
@pytest.mark.parametrize("place", ["s3", "hub"])
def test_every_verb_on_nodes_that_share_no_disk(place: str, places: Places) -> None:
    model, other = places.models[place], places.others[place]
    data = {"inputs": [places.inputs[place]], "unit_rows": PER_SHARD}
    scores = run(places, "score", f"scores-{place}", **scored(places, place))["url"]
    tagger = {"name": "embedding", "model": model}
    run(places, "tag", f"tags-{place}", taggers=[tagger], **data)
    run(places, "dedup", f"copies-{place}", **data)
    half = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}
    view = run(places, "filter", f"half-{place}", scores=scores, keep=half)["url"]
    train: dict[str, Any] = {
        "num_steps": 2,
        "global_batch": 4,
        "checkpoint_every": 1,
        "export_dtype": "float32",
        "num_workers": 2,
        "model": model,
    }
    run(places, "train", f"plain-{place}", data=[{"inputs": data["inputs"]}], **train)
    lora = {
        "language_model": {"state": "lora", "rank": 2},
        "projector": {"state": "frozen"},
        "save_adapter": True,
    }
    one = run(places, "train", f"lora-{place}", data=[{"view": view}], **train, **lora)["url"]
    writer = {"name": "transformers", "adapter": one}
    texts = {"view": view, "model": model, "engine": writer, "max_tokens": 8, "num_actors": 2}
    run(places, "recaption", f"texts-{place}", **texts)
    asked = {"name": "scene_questions", "style": "outline", "num": 2}
    mixed = {"ingredients": {"a": model, "b": other}, "benchmark": asked}
    run(places, "soup", f"soup-{place}", num_actors=2, **mixed)
    models = {"models": {"a": model, "b": other}, "benchmarks": [asked]}
    run(places, "evaluate", f"answers-{place}", num_actors=2, **models)
    trial = {"name": "trial", "data": [{"view": view}], **{**train, "num_workers": 1}}
    space = {"lr": {"name": "choice", "values": [0.0005, 0.001]}}
    run(places, "sweep", f"rates-{place}", train=trial, space=space, benchmarks=[asked])
    if place == "hub":
        # Two nodes; the driver brings all of a model where it writes a soup or exports.
        for name in ("nano", "other"):
            assert places.hub.times(f"org/{name}/{WEIGHTS}") <= 3
