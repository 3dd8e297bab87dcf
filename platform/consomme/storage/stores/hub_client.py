"""One request to the Hugging Face hub at a time, as its own library makes them.

Endpoint, token, headers and the meaning of errors are those of `huggingface_hub`, and so are the
variables: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`. The library's own
retries are not used, because `consomme.storage.stores.retries` does all of them.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from consomme.base.errors import RecipeError
from consomme.base.suggest import did_you_mean
from consomme.storage.stores.bucket import Clients
from consomme.storage.stores.hub_place import HubPlace
from consomme.storage.stores.retries import (
    NETWORK_ERRORS,
    RetryPolicy,
    SlowDownError,
    is_transient_status,
    retry,
)

OFFLINE_VARIABLE = "CONSOMME_HUB_OFFLINE"
"""Set in workers: whether the driver may reach the hub. There `HF_HUB_OFFLINE` is always set, so
that no library looks up by itself what consomme has brought."""

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_TRUE = ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Return the hub's address."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)).rstrip("/")


def is_offline() -> bool:
    """Whether the user forbids requests to the hub."""
    named = os.environ.get(OFFLINE_VARIABLE)
    if named is None:
        named = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return named.upper() in _TRUE


def hub_cache() -> Path:
    """Return the folder in which `huggingface_hub` keeps what it downloads."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        home = os.environ.get("HF_HOME") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
        )
        named = os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(named)))


def hub_request(
    method: str,
    url: str,
    place: HubPlace,
    policy: RetryPolicy,
    *,
    headers: Mapping[str, str] | None = None,
    json: Any = None,
    final: Callable[[Any], bool] = lambda _: False,
    is_signed: bool = False,
) -> Any:
    """Send one request, again while it may succeed; returns the response, its body read.

    Args:
        method: Of HTTP.
        url: Whole address.
        place: What it is about, for messages.
        policy: How long to retry.
        headers: More headers.
        json: Body.
        final: Whether a response that is an error is taken as it is.
        is_signed: The address carries its own right, so no token is sent.

    Raises:
        RecipeError: The hub refuses the request, or has no such repository or revision.
        FileNotFoundError: The repository has no such file.
        StorageAwayError: Patience ended.
    """
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    def send() -> Any:
        # Of anything but the bytes as they are stored no range could be told.
        own = {} if is_signed else build_hf_headers()
        sent = own | {"Accept-Encoding": "identity"} | dict(headers or {})
        response = _CLIENTS.get().request(method, url, headers=sent, json=json)
        status = int(response.status_code)
        if final(response):
            return response
        if is_transient_status(status):
            raise SlowDownError(
                f"HTTP {status} {response.reason_phrase}", _asked_wait_s(response.headers)
            )
        hf_raise_for_status(response)
        return response

    return retry(send, place.url, lambda error: _classify(error, place), policy)


def _asked_wait_s(headers: Mapping[str, str]) -> float:
    """Return how long the hub asks to wait, by `Retry-After` or its own rate limit header."""
    from huggingface_hub.utils import parse_ratelimit_headers

    try:
        return max(0.0, float(headers.get("Retry-After") or ""))
    except ValueError:
        limit = parse_ratelimit_headers(headers)
        return float(limit.reset_in_seconds) if limit and not limit.remaining else 0.0


def _classify(error: Exception, place: HubPlace) -> Exception | None:
    """Classify an error; see `consomme.storage.stores.retries.ErrorClassifier`."""
    import httpx2
    from huggingface_hub import errors

    if isinstance(error, SlowDownError):
        return None
    if isinstance(error, errors.GatedRepoError):
        return RecipeError(
            f"{place.url}: the {place.name} is gated, and {_who()} may not read it; accept its"
            f" terms at {_page(place)}, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return RecipeError(
            f"{place.url}: the hub at {endpoint()} has no {place.name}, or {_who()} may not see it"
            f"{_near(place)}; check the spelling, and HF_TOKEN if it is private"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return RecipeError(
            f"{place.url}: the {place.name} has no revision {place.revision!r}"
            f"{_near_revisions(place)}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such file on the hub", place.url)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return RecipeError(
                f"{place.url}: the hub at {endpoint()} answers {status}: {_who()} may not read the"
                f" {place.name}; set HF_TOKEN to a token that may, or renew the one that is set"
            )
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "no such file on the hub", place.url)
        return RecipeError(
            f"{place.url}: the hub at {endpoint()} refuses the request with status {status}:"
            f" {error.server_message or error}"
        )
    if isinstance(error, (httpx2.TransportError, *NETWORK_ERRORS)):
        return None
    return error


def _who() -> str:
    from huggingface_hub import get_token

    return "the token in use" if get_token() else "a request without a token (HF_TOKEN is not set)"


def _page(place: HubPlace) -> str:
    kind = "datasets/" if place.kind == "dataset" else ""
    return f"{endpoint()}/{kind}{place.repo}"


def _near(place: HubPlace) -> str:
    """Name a repository of the same organisation whose name is close; empty if unknown."""
    org, _, name = place.repo.partition("/")
    found = _look(f"{endpoint()}/api/{place.kind}s?author={quote(org)}&limit=200")
    if not isinstance(found, list):
        return ""
    ids = [str(one.get("id", "")) for one in found if isinstance(one, dict)]
    hint = did_you_mean(name, [one.rpartition("/")[2] for one in ids])
    if hint or not ids:
        return hint
    return f" ({org} has {', '.join(one.rpartition('/')[2] for one in ids[:5])})"


def _near_revisions(place: HubPlace) -> str:
    """Name the revisions that there are; empty if unknown."""
    found = _look(f"{endpoint()}/api/{place.kind}s/{place.repo}/refs")
    if not isinstance(found, dict):
        return ""
    refs = [*found.get("branches", ()), *found.get("tags", ())]
    names = [str(one.get("name")) for one in refs if isinstance(one, dict)]
    return f"{did_you_mean(place.revision, names)}; it has {', '.join(names[:10])}" if names else ""


def _look(url: str) -> Any:
    """Ask once for something that only makes a message better."""
    from huggingface_hub.utils import build_hf_headers

    try:
        response = _CLIENTS.get().get(url, headers=build_hf_headers())
        return response.json() if response.status_code == 200 else None
    except Exception:  # noqa: BLE001 - the message is complete without it, whatever went wrong.
        return None


def _make_client() -> Any:
    import httpx2

    # It writes a line for every request.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    # Not the library's own client, which refuses every request where HF_HUB_OFFLINE is set, as in
    # all workers. Like it, this one heeds proxies and certificates named by the environment, and
    # sends the token to no other host that a redirect leads to.
    return httpx2.Client(
        follow_redirects=True,
        timeout=httpx2.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
    )


_CLIENTS = Clients(_make_client, "HF_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT")
