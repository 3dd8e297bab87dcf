"""robots.txt by RFC 9309: which groups are ours, and what they say of a path.

Protego matches paths (wildcards, anchors, the longest match); lines and groups are read here,
because it takes parts of a user agent for the whole, ends groups at records that RFC 9309 ignores,
and splits lines at characters that are none of its line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from protego import Protego

from consomme.storage.web.url import remove_dot_segments

MAX_ROBOTS_BYTES = 500 * 1024
"""Only this much of a robots.txt is read; RFC 9309 asks crawlers for at least as much."""

_AGENT_KEYS = (b"user-agent", b"user agent", b"useragent")
_ALLOW_KEYS = (b"allow",)
_DISALLOW_KEYS = (b"disallow", b"dissallow", b"dissalow", b"disalow", b"diasllow", b"disallaw")
"""Spellings as Google's parser takes them: nobody who misspells `disallow` means yes."""

_LINE_END = re.compile(rb"\r\n|\r|\n")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]+")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_OCTET = re.compile(rb"%[0-9A-Fa-f]{2}|[\x00-\xff]")
_MAX_SPELLINGS = 16


def product_token(user_agent: str) -> str:
    """Return the name by which robots.txt and headers address the sender of a `User-Agent`.

    That is its first product, or the one after `compatible;` where it presents itself as a browser.
    Empty if there is none.
    """
    inside = re.search(r"\(compatible;\s*([^\s;/()]+)", user_agent)
    found = _TOKEN.match(inside[1] if inside else user_agent.strip())
    return found[0].lower() if found else ""


class RobotsRules:
    """The rules of one robots.txt for one crawler.

    Args:
        body: The file, or as much of it as was read.
        token: Product token of the crawler; see `product_token`.
    """

    def __init__(self, body: bytes, token: str) -> None:
        lines = ["User-agent: *"]
        for is_allowed, pattern in _rules_for(body, token):
            key = "Allow" if is_allowed else "Disallow"
            lines += [f"{key}: {spelling}" for spelling in _spell_pattern(pattern)]
        self._protego = Protego.parse("\n".join(lines))

    def allows(self, target: str) -> bool:
        """Check whether a path with its query may be fetched.

        A path with dot segments may be read by the server as the one without, so both must be
        allowed.
        """
        path, mark, query = target.partition("?")
        if path == "/robots.txt":
            return True
        plain = remove_dot_segments(re.sub("%2e", ".", path, flags=re.IGNORECASE))
        return all(
            self._protego.can_fetch(_spell_path(variant, mark + query), "*")
            for variant in {path, plain}
        )


def _rules_for(body: bytes, token: str) -> list[tuple[bool, bytes]]:
    """List the rules of all groups for the crawler, or of all groups for everybody if none is."""
    own: list[tuple[bool, bytes]] = []
    common: list[tuple[bool, bytes]] = []
    agents: set[str] = set()
    is_named = is_in_rules = False
    for key, value in _records(body):
        if key in _AGENT_KEYS:
            if is_in_rules:
                agents, is_in_rules = set(), False
            text = value.decode("latin-1")
            found = _TOKEN.match(text)
            agents.add("*" if text.startswith("*") else found[0].lower() if found else "")
            is_named |= token in agents
        elif agents:
            # No other record reaches this point: by RFC 9309 they do not end a group.
            is_in_rules = True
            rule = (key in _ALLOW_KEYS, value)
            # An empty pattern matches nothing; one that begins otherwise is no path.
            if value.startswith((b"/", b"*")):
                own += [rule] * (token in agents)
                common += [rule] * ("*" in agents)
    return own if is_named else common


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key, in lower case, and value of the records that matter here."""
    for codec, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        if body.startswith(mark):
            body = body[2:].decode(codec, "replace").encode("utf-8", "replace")
    body = body.removeprefix(b"\xef\xbb\xbf")
    lines = _LINE_END.split(body[:MAX_ROBOTS_BYTES])
    if len(body) >= MAX_ROBOTS_BYTES:
        # The last line may be cut in the middle, and would forbid or allow more than it says.
        del lines[-1]
    for line in lines:
        text = line.partition(b"#")[0].strip()
        key, colon, value = text.partition(b":")
        if not colon or key.strip().lower() not in _KEYS:
            # As Google does: a blank for a forgotten colon, if there are just two words.
            words = text.split()
            key, value = words if len(words) == 2 else (b"", b"")
        key = key.strip().lower()
        if key in _KEYS:
            yield key, value.strip()


_KEYS = (*_AGENT_KEYS, *_ALLOW_KEYS, *_DISALLOW_KEYS)

_LETTERS = [chr(ord("a") + octet // 16) + chr(ord("A") + octet % 16) for octet in range(256)]
"""Spelling of each octet. Protego would decode escapes, take a final `$` both ways and add a rule
for `index.html`; letters it takes as they are. The two differ, so that no match begins between
them."""

_ENCODED_SLASH = "qQ"


def _spell_path(path: str, query: str) -> str:
    """Spell a path and query; in a query, `/` and `%2F` are the same."""
    return "/" + "".join(
        _spell_octet(octet, is_query=is_query)
        for is_query, part in ((False, path), (True, query))
        for octet in _OCTET.findall(part.encode("ascii"))
    )


def _spell_octet(octet: bytes, *, is_query: bool) -> str:
    """Spell one octet or escape: by RFC 9309, both ways of writing an octet are compared alike."""
    value = int(octet[1:], 16) if _ESCAPE.fullmatch(octet) else octet[0]
    if value == ord("/") and (is_query or octet != b"/"):
        return _ENCODED_SLASH
    return _LETTERS[value]


def _spell_pattern(pattern: bytes) -> list[str]:
    """Spell the pattern of a rule.

    A slash behind a wildcard may be meant in the path or in the query, which are spelled
    differently, so there is one spelling for each place at which the query may begin.
    """
    anchor = "$" if pattern.endswith(b"$") else ""
    octets = _OCTET.findall(pattern.removesuffix(b"$"))
    query_start = octets.index(b"?") if b"?" in octets else len(octets)
    star = octets.index(b"*") if b"*" in octets else len(octets)
    slashes = [k for k, octet in enumerate(octets) if octet == b"/" and star < k < query_start]
    starts = [query_start, *slashes[:-_MAX_SPELLINGS:-1]]
    return [
        # Doubled, so that a wildcard is as long as any other octet; the longest match decides.
        "/"
        + "".join(
            "**" if octet == b"*" else _spell_octet(octet, is_query=k >= start)
            for k, octet in enumerate(octets)
        )
        + anchor
        for start in starts
    ]
