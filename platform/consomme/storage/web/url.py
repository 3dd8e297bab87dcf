"""URLs as they are written: what a list or a redirect says is what is sent, byte for byte.

URL classes decode and encode again what they are given (`%2F`, `%28`, `%3A`), which breaks the
signatures of signed stores. So a URL is only split here, by RFC 3986. What HTTP cannot carry is
percent-encoded: spaces, and bytes beyond ASCII (UTF-8 in a list, any byte in a `Location`).
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from consomme.storage.web.addresses import canonical_host, is_address, is_public

_PARTS = re.compile(
    rb"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):)?(?://(?P<authority>[^/?#]*))?"
    rb"(?P<path>[^?#]*)(?P<query>\?[^#]*)?(?:#.*)?",
    re.DOTALL,
)
"""RFC 3986, appendix B; the fragment is for the client and is dropped."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_NOT_SENT = re.compile(rb"[\x20\x80-\xff]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class RefusedUrlError(ValueError):
    """A URL that is never fetched, with the reason; the URL itself may hold a password."""


@dataclass(frozen=True)
class WebUrl:
    """An http or https URL."""

    scheme: str
    host: str
    """In canonical spelling; IPv6 without brackets."""

    port: int
    target: str
    """Path and query as written; ASCII."""

    @property
    def origin(self) -> str:
        """Scheme, host and port: what one robots.txt is valid for."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == _DEFAULT_PORTS[self.scheme]
        return f"{self.scheme}://{host}" + ("" if is_default else f":{self.port}")

    def __str__(self) -> str:
        """Write the URL out."""
        return self.origin + self.target

    def at(self, target: str) -> WebUrl:
        """Return the URL of another path on the same server."""
        return WebUrl(self.scheme, self.host, self.port, target)


def parse_url(text: str | bytes, base: WebUrl | None = None) -> WebUrl:
    """Split a URL.

    Args:
        text: The URL of a list, or the bytes of a `Location` header.
        base: The URL that redirected here, for a reference without scheme or host.

    Raises:
        RefusedUrlError: It is no URL, or not one that may be fetched.
    """
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise RefusedUrlError("found a lone surrogate, expected a URL") from error
    data = data.strip(bytes(range(0x21)))
    if _CONTROL.search(data):
        raise RefusedUrlError("found a control character or a line break inside of the URL")
    parts = _PARTS.fullmatch(data)
    assert parts, "the expression matches every text"
    scheme = (parts["scheme"] or b"").decode().lower() or (base.scheme if base else "")
    if scheme not in _DEFAULT_PORTS:
        raise RefusedUrlError(f"found {scheme or 'no scheme'}, expected http or https")
    path, query = _sendable(parts["path"]), _sendable(parts["query"] or b"")
    if parts["authority"] is None and base and not parts["scheme"]:
        return base.at(_resolved(path, query, base.target))
    host, port = _split_authority(parts["authority"] or b"", scheme)
    return WebUrl(scheme, host, port, (path or "/") + query)


def refusal_reason(url: str | WebUrl, private_hosts: Container[str] = ()) -> str:
    """Explain why a URL may not be fetched; empty if it may. No name is resolved here."""
    if not isinstance(url, WebUrl):
        try:
            url = parse_url(str(url))
        except RefusedUrlError as error:
            return str(error)
    if is_address(url.host) and url.host not in private_hosts and not is_public(url.host):
        return f"{url.host} is not a public address"
    return ""


def _sendable(part: bytes) -> str:
    return _NOT_SENT.sub(lambda match: b"%%%02X" % ord(match[0]), part).decode("ascii")


def _split_authority(authority: bytes, scheme: str) -> tuple[str, int]:
    if b"@" in authority:
        raise RefusedUrlError("it holds a user or password")
    name, colon, port = authority.rpartition(b":")
    if not colon or port.endswith(b"]"):
        name, port = authority, b""
    if not name:
        raise RefusedUrlError("no host")
    if port and (not port.isdigit() or len(port) > 5 or not 0 < int(port) < 1 << 16):
        # What stands here may be a password, so it is not quoted.
        raise RefusedUrlError("the port is not a number from 1 to 65535")
    try:
        host = canonical_host(name.decode("utf-8"))
    except ValueError as error:
        raise RefusedUrlError(f"not a URL: {error}") from error
    return host, int(port) if port else _DEFAULT_PORTS[scheme]


def _resolved(path: str, query: str, base: str) -> str:
    """Resolve a reference without scheme and host; RFC 3986, section 5.2.2."""
    base_path, mark, base_query = base.partition("?")
    if not path:
        return base_path + (query or mark + base_query)
    if path.startswith("/"):
        return path + query
    return remove_dot_segments(base_path[: base_path.rfind("/") + 1] + path) + query


def remove_dot_segments(path: str) -> str:
    """Take `.` and `..` out of an absolute path; RFC 3986, section 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments and segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
