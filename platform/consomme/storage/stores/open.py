"""Open a store by its URL: local disk, S3, GCS, the Hugging Face hub, or a folder of the package.

A store is rooted at a URL and takes relative paths with `/`. It offers only what both file systems
and object stores can guarantee: atomic whole-file writes, exclusive creation, ranged reads, and
listings in byte order.
"""

import os
from pathlib import Path

import consomme
from consomme.base.errors import RecipeError
from consomme.storage.stores.hub_place import HubPlace, is_hub_root
from consomme.storage.stores.local import LocalStore
from consomme.storage.stores.store import Store, is_safe_path

PACKAGE_SCHEME = "package://"
_BUCKET_SCHEMES = ("s3", "gs")


def open_store(url: str) -> Store:
    """Open the store rooted at a URL, without reading or connecting.

    Args:
        url: A local folder (relative ones count from the current directory, `~` is the home),
            `s3://bucket/folder`, `gs://bucket/folder`, `hf://datasets/org/name@revision/folder`
            (read only), or `package://x/y` for a folder shipped inside the consomme package.

    Raises:
        RecipeError: The scheme is not supported or the path is not allowed.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return LocalStore(os.path.abspath(os.path.expanduser(url)))
    if scheme == "file":
        return open_store(rest)
    if scheme == "package":
        inside = rest.strip("/")
        if inside and not is_safe_path(inside):
            raise RecipeError(f"{url}: the path leads out of the consomme package")
        return LocalStore(str(Path(consomme.__path__[0]) / inside), PACKAGE_SCHEME + inside)
    if scheme in _BUCKET_SCHEMES:
        return _open_bucket(url, scheme, rest)
    if scheme == "hf":
        from consomme.storage.stores.hub import HubStore

        return HubStore(HubPlace.parse(url))
    raise RecipeError(
        f"{url}: found {scheme}://, expected a local path, file://, s3://, gs://, hf:// or"
        " package://"
    )


def split_url(url: str) -> tuple[Store, str]:
    """Open the store that holds a file.

    Returns:
        A store rooted at the file's folder, and the file's name in it.

    Raises:
        RecipeError: The URL names no file, or the scheme is not supported.
    """
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    folder, slash, name = rest.rpartition("/")
    if not name or name in (".", ".."):
        raise RecipeError(f"{url!r}: found a folder, expected a file")
    if scheme in _BUCKET_SCHEMES and not slash:
        raise RecipeError(f"{url!r}: found a bucket, expected a file in one")
    if is_hub_root(url):
        raise RecipeError(f"{url!r}: found a repository, expected a file in one")
    if slash and not folder:
        folder = "/"
    return open_store(f"{scheme}{separator}{folder}" if separator else folder or "."), name


def absolute_url(url: str) -> str:
    """Return a URL that is valid in any working directory: local paths become absolute."""
    return open_store(url).url


def _open_bucket(url: str, scheme: str, rest: str) -> Store:
    bucket, _, folder = rest.partition("/")
    if "@" in bucket:
        raise RecipeError(
            f"{scheme}://…@{bucket.rpartition('@')[2]}: found credentials in a URL, expected"
            f" {scheme}://bucket/folder; they would be stored with the run, so put them into a"
            " profile, a role or a mounted file"
        )
    folder = folder.rstrip("/")
    if not bucket or (folder and not is_safe_path(folder)):
        raise RecipeError(f"{url}: expected {scheme}://bucket/folder, without '..' or '//'")
    # These modules take a second to import, and most commands use local files only.
    if scheme == "s3":
        from consomme.storage.stores.s3 import S3Store

        return S3Store(bucket, folder)
    from consomme.storage.stores.gcs import GcsStore

    return GcsStore(bucket, folder)
