"""Keep secrets out of everything that is written: recipes, manifests, reports, messages and logs.

A secret is known by its name (`api_key`, `HF_TOKEN`), by its place (the password in a URL, a signed
query) or by its form (`hf_…`). A text that came from the environment through `${oc.env:…}` is never
written down either: what is written is the expression. `SecretText` carries such a text to where it
is used, and `redact` removes what is known of all of them from any other text.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

REDACTED = "<redacted>"
"""Stands for a secret in what is written."""

_MIN_LENGTH = 6
"""A shorter secret is only redacted where its name or its place says what it is: it would be found
inside of other words."""

_MIN_PLAIN_LENGTH = 8
"""The same for a text from the environment that nothing else marks as a secret."""


class SecretText(str):
    """A text that is used as it is, and written as something else."""

    written: str
    """What is written instead, such as `${oc.env:NAME}`."""

    stable: str
    """What counts in fingerprints: the text, or what does not change when the secret does."""

    hidden: tuple[tuple[str, str], ...]
    """Parts of the text that are removed from all other texts, and what is put instead."""

    def __new__(
        cls, value: str, written: str, stable: str, hidden: tuple[tuple[str, str], ...]
    ) -> SecretText:
        """Make the text; where it arrives by pickle, its parts are removed from texts too."""
        text = super().__new__(cls, value)
        text.written, text.stable, text.hidden = written, stable, hidden
        for part, shown in hidden:
            remember(part, shown)
        return text

    def __repr__(self) -> str:
        """Return what is written, so that no record of a recipe shows the text."""
        return repr(self.written)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all of it."""
        return SecretText, (str(self), self.written, self.stable, self.hidden)


_hidden: dict[str, str] = {}
"""Text -> what is put instead."""


def remember(text: str, shown: str = REDACTED) -> None:
    """Redact a text from now on, in all the ways in which it may be quoted."""
    shortest = _MIN_LENGTH if shown == REDACTED else _MIN_PLAIN_LENGTH
    for form in (text, quote(text, safe=""), quote_plus(text), unquote(text)):
        for known in (form, repr(form)[1:-1]):
            if len(known.strip()) >= shortest and _hidden.get(known) != REDACTED:
                _hidden[known] = shown


def conceal(value: Any, key: str = "") -> Any:
    """Wrap what is secret in plain values: under secret keys, and in URLs.

    Args:
        value: Content of a YAML file, or of a part of it.
        key: The key that it stands under.
    """
    if isinstance(value, Mapping):
        return {name: conceal(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        # Keys of lists are often names that a user chose, of a data set for example.
        return [conceal(item) for item in value]
    if not isinstance(value, str) or isinstance(value, SecretText) or not value:
        return value
    if is_secret_name(key):
        return SecretText(value, REDACTED, REDACTED, ((value, REDACTED),))
    clean = _in_url(value)
    if clean == value:
        return value
    return SecretText(value, clean, clean, tuple((s, REDACTED) for s in _url_secrets(value)))


def from_environment(
    value: str, written: str, variables: Mapping[str, str], key: str
) -> SecretText:
    """Wrap a text of a recipe that was made of environment variables.

    Args:
        value: The text.
        written: As the recipe has it.
        variables: Names and values of the variables.
        key: The key that it stands under.
    """
    is_secret = is_secret_name(key)
    hidden = [(part, REDACTED) for part in _url_secrets(value)]
    is_place = key in ("name", "root") or any(mark in value for mark in "/\\") or value[:1] in ".~"
    for name, part in variables.items():
        if is_secret or is_secret_name(name, is_variable=True):
            is_secret = True
            hidden.append((part, REDACTED))
        elif not is_place and not part.replace(".", "").isdigit():
            # A message without a number or a place would say nothing.
            hidden.append((part, written))
    return SecretText(value, written, written if is_secret else _in_url(value), tuple(hidden))


def written(value: Any, key: str = "") -> Any:
    """Return plain values as they may be written down."""
    value = conceal(value, key)
    if isinstance(value, SecretText):
        return value.written
    if isinstance(value, Mapping):
        return {name: written(item, str(name)) for name, item in value.items()}
    return [written(item, key) for item in value] if isinstance(value, list) else value


def stable(value: str, key: str) -> str:
    """Return what counts of a text in a fingerprint."""
    text = conceal(value, key)
    return text.stable if isinstance(text, SecretText) else str(text)


def named(value: str) -> str:
    """Return a name for what a text says, which may be written and does not change with a secret.

    It is the text itself, or a hash of it if it came from the environment.
    """
    text = conceal(value)
    if not isinstance(text, SecretText) or text.written == text.stable:
        return text.stable if isinstance(text, SecretText) else value
    return f"{text.written} ({hashlib.sha256(text.stable.encode()).hexdigest()[:16]})"


def replaced(text: str, old: str, new: Any) -> str:
    """Replace a part of a text; what is secret in either stays so."""
    value = text.replace(old, str(new))
    if old not in text or not (isinstance(text, SecretText) or isinstance(new, SecretText)):
        return text if old not in text else value
    outer = text if isinstance(text, SecretText) else SecretText(text, text, text, ())
    inner = new if isinstance(new, SecretText) else SecretText(str(new), str(new), str(new), ())
    return SecretText(
        value,
        outer.written.replace(old, inner.written),
        outer.stable.replace(old, inner.stable),
        (*outer.hidden, *inner.hidden),
    )


def redact(text: str, *, is_record: bool = False) -> str:
    """Remove secrets from a text for people: a message, a log line, a reason.

    Args:
        text: Any text.
        is_record: Programs read it too, so what came from the environment, and is not known to be
            secret, stays.
    """
    known = {**_of_process(), **_hidden}
    for part in sorted((part for part in known if part in text), key=len, reverse=True):
        if not is_record or known[part] == REDACTED:
            text = _replace_word(text, part, known[part])
    text = _in_urls(text)
    text = _HEADER.sub(rf"\1{REDACTED}", text)
    text = _PAIR.sub(rf"\1{REDACTED}", text)
    return _FORMS.sub(REDACTED, text)


def redact_all(value: Any) -> Any:
    """Remove secrets from all texts of a record; keys and numbers stay.

    A text of the recipe that came from the environment is written as the recipe has it.
    """
    if isinstance(value, SecretText):
        return redact(value.written, is_record=True)
    if isinstance(value, str):
        return redact(value, is_record=True)
    if isinstance(value, Mapping):
        return {name: redact_all(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(item) for item in value)
    return value


def _replace_word(text: str, secret: str, shown: str) -> str:
    """Replace a secret; a short one only where it is not a part of a word."""
    if len(secret) >= 12:
        return text.replace(secret, shown)
    return re.sub(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", lambda _: shown, text)


def _of_process() -> dict[str, str]:
    """Return the secrets in the environment of this process."""
    found = {}
    for name, value in os.environ.items():
        if len(value) >= _MIN_LENGTH and is_secret_name(name, is_variable=True):
            found[value] = REDACTED
        elif "://" in value:
            secrets = (part for part in _url_secrets(value) if len(part) >= _MIN_LENGTH)
            found |= dict.fromkeys(secrets, REDACTED)
    return found


# Names.

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_SECRET_WORDS = frozenset(
    "password passwd passphrase pwd secret secrets credential credentials authorization apikey"
    " accesskey secretkey privatekey authtoken accesstoken cookie jwt sas".split()
)
_SECRET_ENDS = ("password", "passwd", "passphrase", "apikey", "secret")
_NOT_SECRET_ENDS = frozenset(
    "env file path dir folder mode name url uri type provider timeout expiry expires ttl length"
    " limit num id header template count region".split()
)
_KINDS_OF_KEY = frozenset(
    "api access private secret signing encryption account storage service master auth".split()
)
_OTHER_TOKENS = frozenset(
    "eos bos pad unk sep cls mask image video audio vision stop start end special begin think num"
    " max min per last first next prefix suffix boi eoi chat turn new cache sample label".split()
)


@functools.lru_cache(4096)
def is_secret_name(name: str, *, is_variable: bool = False) -> bool:
    """Whether what has this name is a secret.

    Args:
        name: Key of a recipe, or name of a variable.
        is_variable: It is an environment variable: any `…_KEY` is one then.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last == "id" and words[-3:-1] == ["access", "key"]:
        return True
    if last in _NOT_SECRET_ENDS:
        return False
    if is_variable and words == ["pwd"]:
        # The shell's working directory.
        return False
    if _SECRET_WORDS & set(words) or last.endswith(_SECRET_ENDS) or last == "auth":
        return True
    if last in ("token", "tokens") and (last == "token" or is_variable):
        return before not in _OTHER_TOKENS
    if words[-2:] == ["connection", "string"]:
        return True
    return last == "key" and (before in _KINDS_OF_KEY or (is_variable and before != ""))


# Places and forms.

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_USER = re.compile(r"(?<=://)[^\s/?#]*@")
# A part of it may be redacted already.
_QUERY = re.compile(rf"([?#])((?:{REDACTED}|[^\s\"'<>?#])*=(?:{REDACTED}|[^\s\"'<>?#])*)")
_SIGNED = frozenset(
    "sig signature token key auth authorization apikey api-key password passwd pwd secret"
    " credential policy key-pair-id awsaccesskeyid hmac session jwt sessionid hdnts hdnea hdntl"
    " code".split()
)
_SIGNED_STARTS = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-")
_SIGNED_ENDS = (
    "token",
    "secret",
    "password",
    "signature",
    "apikey",
    "api_key",
    "access_key",
    "-key",
)


def _in_urls(text: str) -> str:
    """Remove users, passwords and signed queries from all URLs in a text."""
    text = _USER.sub(f"{REDACTED}@", text)
    return _QUERY.sub(
        lambda found: found[1] + (REDACTED if _is_signed(found[2]) else found[2]), text
    )


def _is_signed(query: str) -> bool:
    for pair in re.split(r"[&;]", query):
        name = unquote(pair.partition("=")[0]).lower()
        if name in _SIGNED or name.startswith(_SIGNED_STARTS) or name.endswith(_SIGNED_ENDS):
            return True
    return False


def _in_url(text: str) -> str:
    """Remove the same from a text that is a URL; any other text stays."""
    return _in_urls(text) if _URL.fullmatch(text) else text


def _url_secrets(text: str) -> list[str]:
    """List the secret parts of the URLs in a text."""
    found = []
    for user in _USER.findall(text):
        name, colon, password = user[:-1].partition(":")
        found.append(password if colon else name)
    for _, query in _QUERY.findall(text):
        found += [pair.partition("=")[2] for pair in re.split(r"[&;]", query) if _is_signed(pair)]
    return [part for part in found if part]


_HEADER = re.compile(
    r"\b((?:(?:proxy-)?authorization|x-api-key|api-key|x-auth-token|(?:set-)?cookie"
    r"|x-amz-security-token)[\"']?\s*[:=]\s*[\"']?)"
    r"(?:(?:bearer|basic|token|negotiate|digest|aws4-hmac-sha256)\s+)?"
    rf"(?:{REDACTED}|[^\s\"',;)}}\]<>])(?:{REDACTED}|[^\s\"')}}\]<>])*",
    re.IGNORECASE,
)
_PAIR = re.compile(
    r"\b((?:[A-Za-z0-9_.-]{0,40}(?:password|passwd|passphrase|[_-]secret|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|secret[_-]?key|auth[_-]?token|access[_-]?token|session[_-]?token"
    r"|security[_-]?token|hf[_-]?token|(?:secret|token)(?==|[\"']\s*:)))[\"']?\s*[:=]\s*)"
    rf"(?:\"[^\"]+\"|'[^']+'|(?:{REDACTED}|[^\s\"',;)}}\]<>])+)",
    re.IGNORECASE,
)
_FORMS = re.compile(
    r"\b(?:"
    r"hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"
    r"|(?:Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)


# What a process says.


def redact_output() -> None:
    """Redact all log records, warnings and uncaught errors of this process; repeating is safe."""
    make = logging.getLogRecordFactory()
    if isinstance(make, _RedactedRecords):
        return
    logging.setLogRecordFactory(_RedactedRecords(make))
    shown = warnings.showwarning

    def show(message: Any, category: Any, *more: Any, **named: Any) -> None:
        text = str(message)
        clean = redact(text)
        shown(message if clean == text else category(clean), category, *more, **named)

    warnings.showwarning = show
    sys.excepthook = lambda kind, error, trace: _print_error(error)
    threading.excepthook = lambda hook: _print_error(hook.exc_value)


def _print_error(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        sys.stderr.write(redact("".join(traceback.format_exception(error))))


class _RedactedRecords:
    """Makes log records without secrets, whoever logs and whatever handles them."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self, *args: Any, **named: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._make(*args, **named)
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            # The handler reports a message that does not fit its arguments.
            return record
        clean = redact(text)
        if clean != text:
            record.msg, record.args = clean, None
        if record.exc_info and record.exc_info[1] is not None:
            trace = "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
            clean = redact(trace)
            if clean != trace:
                record.exc_info, record.exc_text = None, clean
        return record
