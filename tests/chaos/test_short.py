"""The short form of the matrix of deaths; `make chaos` is the whole of it."""

import random
import sys
from pathlib import Path

import pytest
import ray

sys.path.append(str(Path(__file__).parent))

import matrix
from faulty_proxy import FaultyProxy

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def local(folder: Path) -> matrix.Arena:
    return matrix.arena("local", folder, str(folder / "local"), {}, num_shards=4)


def unharmed(place: matrix.Arena) -> bool:
    return (place.tally.lost, place.tally.doubled, place.tally.differing) == (0, 0, 0)


@pytest.mark.parametrize(("kind", "number"), [("driver", 2), ("interrupt", 1), ("worker", 2)])
def test_deaths_on_local_storage_change_nothing(
    local: matrix.Arena, one_ray: dict[str, str], kind: str, number: int
) -> None:
    before = local.tally.kills.total()
    # A driver may die on a cluster that lives on; the others have a Ray of their own.
    local.environment = one_ray if kind == "driver" else {}
    matrix.KINDS[kind](local, number, random.Random(f"short-{kind}"))
    assert local.tally.kills.total() == before + number
    assert unharmed(local)
    if kind == "interrupt":
        assert set(local.tally.exit_codes["Ctrl-C"]) == {130}


def test_a_lost_node_changes_nothing(local: matrix.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    # Two clusters in one process end it: the one that other tests share comes back by itself.
    ray.shutdown()
    local.environment = {}
    matrix.node(local, 1, random.Random("short-node"))
    assert local.tally.kills["node removal"] == 1
    assert unharmed(local)


def test_storms_and_deaths_on_s3_change_nothing(
    folder: Path, s3_server, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = s3_server.env()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    place = matrix.arena("s3", folder, f"s3://{matrix.BUCKET}/short-chaos", variables, num_shards=4)
    rng = random.Random("short-s3")
    with FaultyProxy(server_url(place), matrix.STORM, 1) as proxy:
        place.environment = {**variables, "AWS_ENDPOINT_URL": proxy.url}
        matrix.driver(place, 1, rng)
        assert sum(proxy.counts[kind] for kind in matrix.STORM) >= 10
    assert place.tally.kills["driver SIGKILL"] == 1
    assert unharmed(place)


def server_url(place: matrix.Arena) -> str:
    return place.environment["AWS_ENDPOINT_URL"]
