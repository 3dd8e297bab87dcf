"""The short form of the matrix of deaths; `make chaos` is the whole of it."""

import random
from pathlib import Path

import pytest
import ray
from tests.chaos import matrix
from tests.support.faulty_proxy import FaultyProxy

from consomme.execution.session import ray_session

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def running(lent_ray: None) -> dict[str, str]:
    """How a command joins the shared Ray; runs that nothing happens to need none of their own."""
    with ray_session():
        return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture(scope="module")
def local(folder: Path, running: dict[str, str]) -> matrix.Arena:
    return matrix.arena("local", folder, str(folder / "local"), running, num_shards=4)


def unharmed(place: matrix.Arena) -> bool:
    return (place.tally.lost, place.tally.doubled, place.tally.differing) == (0, 0, 0)


# Seeds of moments that are not all in the first second, when nothing has begun.
@pytest.mark.parametrize(
    ("kind", "number", "seed"),
    [
        ("driver", 2, 4),
        pytest.param("interrupt", 1, 3, marks=pytest.mark.long),
        ("worker", 2, 0),
    ],
)
def test_deaths_on_local_storage_change_nothing(
    local: matrix.Arena,
    one_ray: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
    seed: int,
) -> None:
    before = local.tally.kills.total()
    # A driver may die on a cluster that lives on; the others have a Ray of their own.
    is_shared = kind == "driver"
    local.environment = one_ray if is_shared else {}
    if not is_shared:
        # Starting Ray takes longer than the run, and is a time to be killed at as well.
        monkeypatch.setattr(local, "seconds", local.seconds * 2.5)
    matrix.KINDS[kind](local, number, random.Random(f"short-{kind}-{seed}"))
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
    folder: Path, s3_server, one_ray: dict[str, str]
) -> None:
    variables = s3_server.env()
    place = matrix.arena(
        "s3", folder, f"s3://{matrix.BUCKET}/short-chaos", {**variables, **one_ray}, num_shards=4
    )
    rng = random.Random("short-s3")
    with FaultyProxy(server_url(place), matrix.STORM, 1) as proxy:
        place.environment = {**variables, "AWS_ENDPOINT_URL": proxy.url}
        matrix.driver(place, 1, rng)
        assert sum(proxy.counts[kind] for kind in matrix.STORM) >= 10
    assert place.tally.kills["driver SIGKILL"] == 1
    assert unharmed(place)


def server_url(place: matrix.Arena) -> str:
    return place.environment["AWS_ENDPOINT_URL"]
