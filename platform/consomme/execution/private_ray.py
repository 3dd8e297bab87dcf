"""The place of a private Ray: its folder, its token, and the address that it listens on.

Ray's own defaults are a folder that others can guess (`/tmp/ray`), a token that all sessions of a
user share, readable for everyone (`~/.ray/auth_token`), and servers on all interfaces. A private
Ray gets a scratch folder with a token of its own, and listens on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from consomme.base.places import Scratch, temporary_base
from consomme.base.process import environment
from consomme.execution.ray_private import imported_module, ray_private

_LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray then takes 127.0.0.1 for the address of the node, and each of its servers listens there."""

_SOCKET = (
    "consomme-tmp-12345678/ray/session_2000-01-01_00-00-00_000000_1234567/sockets/plasma_store"
)
"""The longest path of a socket below the folder for temporary files."""

_MAX_SOCKET_PATH = 107
"""Of Linux, in bytes."""


@contextlib.contextmanager
def private_place() -> Iterator[tuple[Path, dict[str, str]]]:
    """Give the folder of a private Ray, and the environment of its processes; then remove it.

    Token and address stay in the environment of this process inside the block, so commands that it
    starts can join.

    Raises:
        RecipeError: No folder can be used, or none has a path that is short enough for sockets.
    """
    base = temporary_base("RAY_TMPDIR", max_length=_MAX_SOCKET_PATH - len(f"/{_SOCKET}"))
    with Scratch(base) as folder:
        token = folder / "token"
        descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        files = folder / "files"
        files.mkdir(mode=0o700)
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        # RAY_AUTH_TOKEN comes before the file.
        given = os.environ.pop("RAY_AUTH_TOKEN", None)
        try:
            with environment(auth | _LOOPBACK_ONLY):
                _reload_token()
                # Ray opens its own folder for all users; the one around it stays closed.
                yield folder / "ray", {"TMPDIR": str(files)}
        finally:
            if given is not None:
                os.environ["RAY_AUTH_TOKEN"] = given
            _reload_token()


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """Make a Ray that was imported before take the loopback address; see `_LOOPBACK_ONLY`."""
    name = "ENABLE_RAY_CLUSTER"
    constants = imported_module(name)
    before = getattr(constants, name, None)
    if constants is not None:
        setattr(constants, name, False)
    try:
        yield
    finally:
        if constants is not None:
            setattr(constants, name, before)


def _reload_token() -> None:
    """Make a Ray that was imported before read mode and token again, which it caches."""
    if imported_module("Config") is not None:
        ray_private("Config").initialize("")
        ray_private("AuthenticationTokenLoader").instance().reset_cache()
