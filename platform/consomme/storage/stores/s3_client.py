"""The boto3 client: one per process and environment, and the classification of its errors.

Credentials, region and endpoint come from boto3's standard chain and nowhere else: environment
(`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...), `~/.aws`, instance and pod roles. Retry settings found
there are overridden, because `consomme.storage.stores.retries` does all retries.
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
        # Throttling, as named by S3 and compatible servers.
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
        # The request or response was damaged or truncated in transit.
        "BadDigest",
        "IncompleteBody",
        "RequestTimeout",
        "RequestTimeoutException",
        "XAmzContentChecksumMismatch",
        # Two concurrent conditional writes, neither of which has succeeded yet.
        "ConditionalRequestConflict",
        "OperationAborted",
        # Errors inside the response to a batch delete have no HTTP status.
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
    "AccessDenied": "the credentials in use do not allow this; check AWS_PROFILE, and that the "
    "policy allows s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject there",
    "NoCredentialsError": "no credentials were found; set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run where a role is attached",
    "InvalidAccessKeyId": "the credentials are wrong or have expired; renew them",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "RequestTimeTooSkewed": "this machine's clock is wrong; correct it",
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
    """A multipart upload is gone or lost a race; all its parts have to be sent again."""


def s3_client() -> Any:
    """Return this process's client for the current environment. Thread-safe."""
    return _CLIENTS.get()


def _make_client() -> Any:
    # A new session, because boto3's default session is not thread-safe.
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
    """Return S3's error code; empty if the error is not from S3."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def classify_error(error: Exception, url: str) -> Exception | None:
    """Classify an error; see `consomme.storage.stores.retries.ErrorClassifier`.

    Args:
        error: Raised by boto3.
        url: Subject of the request, for messages.
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
        return _permanent_error(error, code, url)
    if isinstance(error, _TRANSIENT_ERRORS):
        return None
    if isinstance(error, boto.BotoCoreError):
        return _permanent_error(error, type(error).__name__, url)
    return error


def _permanent_error(error: Exception, code: str, url: str) -> RecipeError:
    advice = _ADVICE.get(
        _SAME_ADVICE.get(code, code), "the storage refuses the request; check the URL"
    )
    return RecipeError(f"{url}: {advice}. The storage said: {describe(error)}")
