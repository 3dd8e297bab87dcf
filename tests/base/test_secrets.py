"""Secrets are known by name, place and form, and removed from every text."""

import logging
import pickle
import re
import time
from pathlib import Path

import pytest

import consomme
from consomme.base import secrets
from consomme.base.secrets import (
    REDACTED,
    SecretText,
    conceal,
    from_environment,
    is_secret_name,
    named,
    redact,
    redact_all,
    redact_output,
    replaced,
    written,
)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_hidden", {})


CANARY = "cAnArY-7f3/+9=a b"


@pytest.mark.parametrize(
    "name",
    "password db_password PGPASSWORD api_key apiKey OPENAI_API_KEY token hf_token HF_TOKEN"
    " AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN WANDB_API_KEY secret client_secret"
    " clientSecret MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN authorization Authorization"
    " credentials private_key passphrase AZURE_STORAGE_CONNECTION_STRING basic_auth"
    " MYSQL_PWD".split(),
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name, is_variable=name.isupper())


@pytest.mark.parametrize(
    "name",
    "max_tokens num_tokens eos_token image_token api_key_env key image_key caption_key name author"
    " AWS_SHARED_CREDENTIALS_FILE RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE tokens_per_s keep monkey"
    " token_count passes secretary_id new_token".split(),
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


def test_the_working_directory_is_no_secret() -> None:
    assert not is_secret_name("PWD", is_variable=True)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:{}@host/x: refused",
        "cannot open s3://KEY:{}@bucket/x",
        "GET https://h/x?X-Amz-Algorithm=A&X-Amz-Signature={}&X-Amz-Date=1 gave 403",
        "GET /container/x?sv=2024&sp=r&sig={} HTTP/1.1",
        "https://h/x?X%2DAmz%2DSignature={}",
        "https://h/x#access_token={}",
        "https://h/x?a=1;token={};b=2",
        "{{'Authorization': 'Bearer {}'}}",
        "Authorization: Basic {}",
        "x-api-key: {}",
        "api_key={} is wrong",
        '{{"password": "{}", "user": "me"}}',
        "override 'engine.api_key={}': unknown key",
        "AWS_SECRET_ACCESS_KEY={}",
        "token={}",
    ],
)
def test_places_of_secrets(text: str) -> None:
    for secret in ("abcdef12345", "a%2Fb%3D99x", "Zx9_-~.!secret"):
        clean = redact(text.format(secret))
        assert secret not in clean
        assert REDACTED in clean
        assert redact(clean) == clean


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "a" * 34,
        "AKIA" + "B" * 16,
        "sk-" + "c" * 40,
        "ghp_" + "d" * 36,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcDEF123",
        "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_forms_of_secrets(text: str) -> None:
    assert redact(f"found {text}, expected") == f"found {REDACTED}, expected"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c: no such object",
        "https://example.com/image.jpg?width=100&height=50",
        "max_tokens=256, num_tokens: 3",
        "api_key_env: the environment variable KEY is not set",
        "git@github.com:o/r.git",
        "score: 1,024 of 5,000 samples (20 %), 312.0 samples/s",
        "keep.fracton: unknown key; did you mean 'fraction'?",
        "https://medium.com/@user/post?page=2",
        "unexpected token: '<'",
        "the override of x holds a secret: on the command line, others see it",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_a_secret_is_removed_however_it_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "env-cAnArY-1")
    conceal({"password": CANARY})
    from urllib.parse import quote, quote_plus

    for form in (CANARY, quote(CANARY, safe=""), quote_plus(CANARY), repr(CANARY), "env-cAnArY-1"):
        assert "cAnArY" not in redact(f"the server said: {form}!")


def test_a_secret_that_is_a_part_of_another_one_leaves_nothing_of_it() -> None:
    conceal({"password": "cAnArY"})
    for text in (
        "https://h/?sig=cAnArY-44",
        "api_key=cAnArY-44",
        "Authorization: Bearer cAnArY.44",
    ):
        assert "44" not in redact(text)


def test_short_secrets_are_not_found_inside_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "sample")
    assert redact("5 samples, the sample 'sample'") == f"5 samples, the {REDACTED} '{REDACTED}'"


def test_texts_of_recipes_are_used_as_they_are_and_written_otherwise() -> None:
    values = conceal(
        {
            "url": f"http://me:{CANARY.replace('/', '%2F').replace(' ', '+')}@host:8000/v1",
            "options": {"api_key": "sEcReT-11", "max_tokens": 3, "eos_token": "</s>"},
            "inputs": ["a.tar"],
        }
    )
    assert values["options"]["api_key"] == "sEcReT-11"
    assert repr(values).count("cAnArY") == repr(values).count("sEcReT") == 0
    assert written(values) == {
        "url": f"http://{REDACTED}@host:8000/v1",
        "options": {"api_key": REDACTED, "max_tokens": 3, "eos_token": "</s>"},
        "inputs": ["a.tar"],
    }


def test_a_text_survives_pickle_with_what_is_written() -> None:
    text = from_environment(
        "pw-cAnArY-22", "${oc.env:DB_PASSWORD}", {"DB_PASSWORD": "pw-cAnArY-22"}, "x"
    )
    again = pickle.loads(pickle.dumps({"x": text}))["x"]
    assert again == "pw-cAnArY-22"
    assert isinstance(again, SecretText)
    assert (again.written, again.stable) == ("${oc.env:DB_PASSWORD}",) * 2


def test_names_for_records_do_not_show_the_environment_and_tell_values_apart() -> None:
    assert named("llava") == "llava"
    assert named("http://me:cAnArY-77@host/v1") == f"http://{REDACTED}@host/v1"
    one, two = (from_environment(v, "${oc.env:M}", {"M": v}, "model") for v in ("one", "two"))
    assert named(one) != named(two)
    assert "one" not in named(one)
    old, new = (from_environment(v, "${oc.env:PW}", {"PW_TOKEN": v}, "x") for v in ("a", "b"))
    assert named(old) == named(new) == "${oc.env:PW}"


def test_what_is_filled_in_stays_secret() -> None:
    host = from_environment("gpu-cAnArY-7", "${oc.env:HOST}", {"HOST": "gpu-cAnArY-7"}, "host")
    url = replaced("http://{host}/v1", "{host}", host)
    assert url == "http://gpu-cAnArY-7/v1"
    assert written(url) == "http://${oc.env:HOST}/v1"
    assert replaced("no {x}", "{host}", host) == "no {x}"


def test_logs_have_no_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    factory = logging.getLogRecordFactory()
    try:
        redact_output()
        redact_output()
        logger = logging.getLogger("any.library")
        logger.warning("GET %s", "https://u:cAnArY-33@h/x")
        error = ValueError("https://h/?sig=cAnArY-44")
        logger.error("failed %d %s", 1, "x", exc_info=error)
        logger.warning("%d of %s", 3, {"token": "cAnArY-55"})
    finally:
        logging.setLogRecordFactory(factory)
    assert "cAnArY" not in caplog.text
    assert "ValueError: https://h/?<redacted>" in caplog.text
    assert caplog.text.count(REDACTED) == 3


def test_long_texts_take_no_time() -> None:
    start = time.perf_counter()
    for text in ("a." * 50_000, "?" * 100_000, "://" * 30_000, "a=" * 50_000, "-" * 100_000):
        redact(text)
    assert time.perf_counter() - start < 5


def test_no_key_of_a_recipe_is_taken_for_a_secret() -> None:
    """Such a field would not count in fingerprints, and not be read from a stored recipe."""
    package = Path(consomme.__file__).parent
    fields = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"^    ([a-z_]+): ", path.read_text(), re.MULTILINE)
    }
    assert len(fields) > 300
    assert [name for name in sorted(fields) if is_secret_name(name)] == []


def test_a_record_has_texts_of_the_environment_as_the_recipe_has_them() -> None:
    text = from_environment(
        "what is planted, here?", "what is ${oc.env:PLANTED}, here?", {"PLANTED": "planted"}, "x"
    )
    record = {"prompts": {"id": text}, "list": [text], "plain": "what is planted"}
    assert redact_all(record) == {
        "prompts": {"id": "what is ${oc.env:PLANTED}, here?"},
        "list": ["what is ${oc.env:PLANTED}, here?"],
        "plain": "what is planted",
    }
