"""boto3 for S3: one client per process and environment, and what its errors mean to a user.

Credentials, region and endpoint come from boto3's standard chain and nowhere else: environment
(`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...), `~/.aws`, instance and pod roles. Retry settings found
there are overruled, because `consomme.storage.stores.retries` is the one that tries again.
"""

import errno
from typing import Any

import boto3.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from consomme.base.errors import RecipeError
from consomme.storage.stores.bucket import Clients
from consomme.storage.stores.retries import NETWORK_ERRORS, describe, is_transient_status

_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_MAX_CONNECTIONS = 64

_TRANSIENT_CODES = frozenset(
    {
        # Throttling, in all the words that S3 and its look-alikes have for it.
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "LimitExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "Throttled",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        # The request or its answer was damaged or cut on the way.
        "BadDigest",
        "IncompleteBody",
        "RequestTimeout",
        "RequestTimeoutException",
        "XAmzContentChecksumMismatch",
        # Two conditional writes at once: neither is decided yet.
        "ConditionalRequestConflict",
        "OperationAborted",
        # Errors inside the answer to a delete of many carry no status.
        "InternalError",
        "ServiceUnavailable",
    }
)

_TRANSIENT_ERRORS = (
    *NETWORK_ERRORS,
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    ResponseParserError,
)

_ADVICE = {
    "NoSuchBucket": "there is no such bucket; check its name, and AWS_ENDPOINT_URL if the bucket "
    "is not on AWS",
    "AccessDenied": "the credentials in use may not do this; check AWS_PROFILE, and that the "
    "policy allows s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there",
    "NoCredentialsError": "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run where a role is attached",
    "InvalidAccessKeyId": "the credentials are wrong or have expired; renew them",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "NotImplemented": "the server does not offer this part of S3, which consomme needs",
}
_SAME_ADVICE = {
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "401": "InvalidAccessKeyId",
    "ExpiredToken": "InvalidAccessKeyId",
    "InvalidToken": "InvalidAccessKeyId",
    "SignatureDoesNotMatch": "InvalidAccessKeyId",
    "PartialCredentialsError": "NoCredentialsError",
    "ProfileNotFound": "NoCredentialsError",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "501": "NotImplemented",
}


class UploadLostError(Exception):
    """An upload in parts is gone, or lost against another; its parts have to be sent again."""


def s3_client() -> Any:
    """Return this process's client for the present environment; any thread may use it."""
    return _CLIENTS.get()


def _make_client() -> Any:
    # A session of its own, because boto3's default session must not be used by two threads.
    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            max_pool_connections=_MAX_CONNECTIONS,
            retries={"total_max_attempts": 1, "mode": "standard"},
            tcp_keepalive=True,
        ),
    )


_CLIENTS = Clients(_make_client, "AWS_")


def error_code(error: Exception) -> str:
    """Return S3's own word for an error; empty if it is none of S3's."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def classify_error(error: Exception, url: str) -> Exception | None:
    """Tell what an error means; see `consomme.storage.stores.retries.ErrorClassifier`.

    Args:
        error: What boto3 raised.
        url: What was asked for.
    """
    if isinstance(error, boto.ClientError):
        code = error_code(error)
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        if code in _TRANSIENT_CODES or is_transient_status(status):
            return None
        if code in ("NoSuchKey", "404"):
            return FileNotFoundError(errno.ENOENT, "no such object", url)
        if code == "NoSuchUpload":
            return UploadLostError(f"{url}: {error}")
        return _refused(error, code, url)
    if isinstance(error, _TRANSIENT_ERRORS):
        return None
    if isinstance(error, boto.BotoCoreError):
        return _refused(error, type(error).__name__, url)
    return error


def _refused(error: Exception, code: str, url: str) -> RecipeError:
    advice = _ADVICE.get(_SAME_ADVICE.get(code, code), "the storage refuses; check the URL")
    return RecipeError(f"{url}: {advice}. The storage said: {describe(error)}")
