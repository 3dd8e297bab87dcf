"""Response headers by which a site forbids the use of a picture.

`X-Robots-Tag` holds directives, separated by commas, behind an optional `agent:`; some directives
have a value behind a colon, and dates hold commas and colons of their own. `TDM-Reservation: 1`
reserves the rights to text and data mining (TDMRep).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

X_ROBOTS_TAG = b"x-robots-tag"
TDM_RESERVATION = b"tdm-reservation"

_EVERYBODY = ("*", "robots")
_VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
_PLAIN = (
    "all none index noindex follow nofollow noarchive nocache nosnippet noai noimageai noml"
    " noimageindex notranslate nositelinkssearchbox indexifembedded noodp noydir"
).split()
_SCOPE = re.compile(r"\s*(?P<name>\*|[A-Za-z0-9_./+-]+)\s*:")
_DATE_REST = re.compile(r"\s*\d{1,2}[\s-]+[A-Za-z]{3,9}[\s-]+\d{2,4}\b")
"""How a date goes on behind the comma after the day of the week."""


def opt_outs(
    headers: Iterable[tuple[bytes, bytes]], token: str, forbidding: Collection[str]
) -> str:
    """Quote what forbids the use in a response's headers; empty if nothing does.

    Args:
        headers: Names and values as received.
        token: Our product token, in lower case; directives for other agents do not count.
        forbidding: Directives that forbid, in lower case. `none` means `noindex`, and so does
            `unavailable_after` once its date has passed.
    """
    found: set[str] = set()
    reserved = ""
    for name, value in headers:
        text = value.decode("latin-1").strip()
        if name.lower() == X_ROBOTS_TAG:
            found.update(_directives(text, token))
        elif name.lower() == TDM_RESERVATION and text == "1":
            reserved = "TDM-Reservation: 1" if "tdm-reservation" in forbidding else ""
    means_noindex = {"none", "unavailable_after"} if "noindex" in forbidding else set()
    directives = ", ".join(sorted(found & {*forbidding, *means_noindex}))
    return "; ".join(filter(None, (directives and f"X-Robots-Tag: {directives}", reserved)))


def _directives(line: str, token: str) -> set[str]:
    """Return the directives of one header line that are meant for us."""
    found: set[str] = set()
    is_ours = True
    pending = line.split(",")
    while pending:
        segment = pending.pop(0)
        scope = _SCOPE.match(segment)
        while scope and _is_agent(scope["name"].lower(), segment[scope.end() :], token):
            is_ours = scope["name"].lower().partition("/")[0] in (*_EVERYBODY, token)
            segment = segment[scope.end() :]
            scope = _SCOPE.match(segment)
        if not scope:
            words = re.split(r"[\s;]+", segment.lower())
            found |= {word.strip("\"'") for word in words} if is_ours else set()
        elif scope["name"].lower() == "unavailable_after":
            date = segment[scope.end() :]
            if pending and _DATE_REST.match(pending[0]):
                date += "," + pending.pop(0)
            found |= {"unavailable_after"} if is_ours and _is_past(date) else set()
    return found - {""}


def _is_agent(name: str, rest: str, token: str) -> bool:
    """Tell an agent from a directive with a value that is not known here.

    What another agent is told does not count for us, so a name is taken for one only if a directive
    follows it.
    """
    if name in _VALUED:
        return False
    word = re.match(r"[\w-]*", rest.strip().lower())
    return name in (*_EVERYBODY, token) or bool(word and word[0] in (*_PLAIN, *_VALUED))


def _is_past(text: str) -> bool:
    """Check whether a date has passed; one that is not readable is ignored, as its definition says.

    RFC 822, RFC 850 and ISO 8601 are read; without a time zone, UTC is meant.
    """
    date: datetime | None = None
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            date = read(text.strip())
            break
        except ValueError:
            continue
    if date is None:
        return False
    return (date if date.tzinfo else date.replace(tzinfo=UTC)) < datetime.now(UTC)
