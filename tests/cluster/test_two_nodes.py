"""Every verb on two nodes without a common disk, its data and models in S3 or on the hub."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.two_nodes import TwoNodes, two_nodes
from tests.support.hub_server import HubServer, folder_files, hub_server
from tests.support.s3_server import BUCKET, S3Server

import consomme
from consomme.datasets.scenes import encode, make_scene, render
from consomme.datasets.sources import SceneSource
from consomme.storage.stores.open import open_store
from consomme.storage.stores.store import Store
from consomme.storage.writers import WebDatasetWriter

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1800)]

NANO = folder_files(Path(consomme.__file__).parent / "models" / "nano")
WEIGHTS = "model.safetensors"
MODELS = {"nano": NANO, "other": {**NANO, WEIGHTS: NANO[WEIGHTS][:-2] + b"\0\0"}}
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


def shards_of(store: Store) -> dict[str, bytes]:
    """Write the shards of the data set, and return them by path."""
    writer = WebDatasetWriter(store, "scenes", max_rows=PER_SHARD)
    for sample in SceneSource(num=ROWS)():
        writer.write(sample)
    writer.close()
    return {file.path: store.read(file.path) for file in store.list()}


@contextlib.contextmanager
def filled_hub(tars: Mapping[str, bytes]) -> Iterator[HubServer]:
    """Run a hub with the data set and two models."""
    with hub_server() as hub:
        hub.dataset("org/scenes").commit({f"data/{path}": data for path, data in tars.items()})
        for name, files in MODELS.items():
            hub.model(f"org/{name}").commit(files)
        yield hub


@pytest.fixture(scope="module")
def places(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    root = f"s3://{BUCKET}/two-nodes"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.env().items():
            patch.setenv(name, value)
        for name, files in MODELS.items():
            for path, data in files.items():
                open_store(f"{root}/models/{name}").write(path, data)
        with filled_hub(shards_of(open_store(f"{root}/data"))) as hub:
            env = {**s3_server.env(), "HF_ENDPOINT": hub.url}
            with two_nodes(tmp_path_factory.mktemp("machines"), env) as nodes:
                yield Places(
                    nodes,
                    hub,
                    f"{root}/runs",
                    {"s3": f"{root}/data", "hub": "hf://datasets/org/scenes/data"},
                    {"s3": f"{root}/models/nano", "hub": "org/nano"},
                    {"s3": f"{root}/models/other", "hub": "hf://org/other@main"},
                )


def test_a_score_run_with_names_of_the_hub(tmp_path: Path) -> None:
    """Each node brings the model once, and the driver none of its weights.

    The runs lie in a folder that all machines share, as on a network file system.
    """
    tars = shards_of(open_store(str(tmp_path / "made")))
    with (
        filled_hub(tars) as hub,
        # Two actors do not fit on one node.
        two_nodes(tmp_path, {"HF_ENDPOINT": hub.url}, num_cpus=1) as nodes,
    ):
        where = {"hub": "hf://datasets/org/scenes/data"}
        root = str(tmp_path / "shared")
        places = Places(nodes, hub, root, where, {"hub": "org/nano"}, {})
        manifest = run(places, "score", "short", **scored(places, "hub"))
        assert manifest["counts"]["samples"] == ROWS
        assert set(manifest["pins"]) == {"hf://org/nano@main", "hf://datasets/org/scenes@main"}
        assert hub.times(f"org/nano/{WEIGHTS}") == 2
        caches = [list(node.glob("cache/consomme/models/*.complete")) for node in nodes.nodes]
        assert [len(models) for models in caches] == [1, 1]


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


VERBS = (
    "score",
    "tag",
    "dedup",
    "filter",
    "train",
    "recaption",
    "soup",
    "evaluate",
    "sweep",
    "prune",
    "assemble",
    "prepare",
    "loop",
)
ASKED = {"name": "scene_questions", "style": "outline", "num": 2}
TRAIN: dict[str, Any] = {
    "num_steps": 2,
    "global_batch": 4,
    "checkpoint_every": 1,
    "export_dtype": "float32",
}
ADAPTED = {
    "language_model": {"state": "lora", "rank": 2},
    "projector": {"state": "frozen"},
    "save_adapter": True,
}


@dataclass(frozen=True)
class Matrix:
    """Runs a verb with data and models in one place; runs that it needs are run before, once."""

    places: Places
    place: str
    done: dict[str, str]

    def __call__(self, verb: str) -> str:
        """Run a verb, or find its run; returns the run folder."""
        if verb not in self.done:
            recipe = getattr(self, f"_{verb}")()
            self.done[verb] = run(self.places, verb, f"{verb}-{self.place}", **recipe)["url"]
        return self.done[verb]

    @property
    def model(self) -> str:
        return self.places.models[self.place]

    @property
    def models(self) -> dict[str, str]:
        return {"a": self.model, "b": self.places.others[self.place]}

    @property
    def data(self) -> dict[str, Any]:
        return {"inputs": [self.places.inputs[self.place]], "unit_rows": PER_SHARD}

    def _score(self) -> dict[str, Any]:
        return scored(self.places, self.place)

    def _tag(self) -> dict[str, Any]:
        return {"taggers": [{"name": "embedding", "model": self.model}], **self.data}

    def _dedup(self) -> dict[str, Any]:
        return self.data

    def _filter(self) -> dict[str, Any]:
        half = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}
        return {"scores": self("score"), "keep": half}

    def _train(self) -> dict[str, Any]:
        data = [{"inputs": self.data["inputs"]}]
        return {"model": self.model, "data": data, "num_workers": 2, **TRAIN, **ADAPTED}

    def _recaption(self) -> dict[str, Any]:
        # The adapter of a run is one on S3, too.
        engine = {"name": "transformers", "adapter": self("train")}
        texts = {"max_tokens": 8, "num_actors": 2, "min_actors": 2}
        return {"view": self("filter"), "model": self.model, "engine": engine, **texts}

    def _soup(self) -> dict[str, Any]:
        return {"ingredients": self.models, "benchmark": ASKED, "num_actors": 2}

    def _evaluate(self) -> dict[str, Any]:
        return {"models": self.models, "benchmarks": [ASKED], "num_actors": 2}

    def _sweep(self) -> dict[str, Any]:
        data = [{"inputs": self.data["inputs"]}]
        trial = {"name": f"trial-{self.place}", "model": self.model, "data": data, **TRAIN}
        space = {"lr": {"name": "choice", "values": [0.0005, 0.001]}}
        return {"train": trial, "space": space, "benchmarks": [ASKED], "max_concurrent": 1}

    def _prune(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "data": [{"inputs": self.data["inputs"]}],
            "num_samples": 4,
            "n_layers": [0, 2],
            "benchmarks": [ASKED],
        }

    def _assemble(self) -> dict[str, Any]:
        shape = {"family": "qwen2", "width": 32, "layers": 2, "heads": 2, "ffn": 64}
        return {"vision_encoder": self.model, "tokenizer": self.model, "language_shape": shape}

    def _prepare(self) -> dict[str, Any]:
        return {"source": {"name": "scenes", "num": 8}}

    def _loop(self) -> dict[str, Any]:
        score = {"model": self.model, "inputs": ["@made/data"], "num_actors": 2, "unit_rows": 2}
        keep = {"name": "highest_fraction", "column": "image_gain", "fraction": 0.5}
        stages = {
            "made": ("prepare", self._prepare()),
            "scored": ("score", score),
            "kept": ("filter", {"scores": "@scored", "keep": keep}),
        }
        return {
            "stages": [
                {"name": name, "verb": verb, "recipe": recipe}
                for name, (verb, recipe) in stages.items()
            ]
        }


@pytest.fixture(scope="module", params=["hub", "s3"])
def matrix(request: pytest.FixtureRequest, places: Places) -> Matrix:
    return Matrix(places, request.param, {})


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_nodes_that_share_no_disk(verb: str, matrix: Matrix) -> None:
    assert open_store(matrix(verb)).exists("manifest.json")


def test_a_download_from_a_list_in_a_store(matrix: Matrix) -> None:
    image = encode(render(make_scene(0)))

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith(".png") else 404)
            self.end_headers()
            self.wfile.write(image if self.path.endswith(".png") else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    places, name = matrix.places, f"download-{matrix.place}"
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        port = site.server_address[1]
        rows = "".join(f"http://localhost:{port}/{k}.png\ta scene {k}\n" for k in range(8))
        text = f"url\tcaption\n{rows}".encode()
        if matrix.place == "hub":
            places.hub.dataset("org/urls").commit({"urls.tsv": text})
            url = "hf://datasets/org/urls/urls.tsv"
        else:
            open_store(places.root).write("lists/urls.tsv", text)
            url = f"{places.root}/lists/urls.tsv"
        fetch = {"private_hosts": ["localhost"], "timeout_s": 10}
        done = run(places, "download", name, inputs=[url], unit_rows=2, fetch=fetch)
        site.shutdown()
    assert done["counts"]["samples"] == 8
    assert not done["counts"].get("rejects")


def test_what_was_assembled_answers_on_both_nodes(matrix: Matrix) -> None:
    made = {name: f"{matrix(name)}/model" for name in ("assemble", "prune")}
    asked = {"models": made, "benchmarks": [ASKED], "num_actors": 2}
    done = run(matrix.places, "evaluate", f"made-{matrix.place}", **asked)
    assert set(done["decisions"]["results"]) == {"assemble", "prune"}


def test_no_model_was_brought_more_than_once_to_a_machine(matrix: Matrix) -> None:
    """Two nodes; and the driver's, where it writes a soup or the trainings of a sweep are."""
    if matrix.place == "hub":
        for name in ("nano", "other"):
            for path in NANO:
                assert matrix.places.hub.times(f"org/{name}/{path}") <= 3, path
