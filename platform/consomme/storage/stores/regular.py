"""Open regular files only: what data names may be a pipe that blocks, or a link to anything.

The folder that a recipe names is the user's own choice, links included. What lies in it, or is
named by a record in it, may come from a stranger's archive: it must be a regular file below that
folder. Names are looked up one by one and relative to the folder before, so that nobody can put a
link in place between the check and the opening.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from consomme.base.errors import DataError

_MAX_LINKS = 40
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""A pipe without a writer must not block, and a terminal must not become our own."""

_OPEN_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | getattr(os, "O_PATH", 0)
"""With `O_PATH`, as for any path, passing through a folder needs no right to list it."""

_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}

_HUB_CACHES = ("datasets--", "models--", "spaces--")


class UnsafeFileError(DataError, OSError):
    """What a path leads to is no regular file, or lies outside of its folder."""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; links are followed.

    Raises:
        UnsafeFileError: It is a pipe, a socket or a device.
        OSError: It cannot be opened, or is a folder.
    """
    _check_regular(os.stat(path))
    return _opened(os.open(path, _OPEN))


def open_inside(root: str, path: str) -> BinaryIO:
    """Open a regular file below a folder; links are followed as long as they stay below it.

    A folder in a cache of the Hugging Face hub, whose files are links to `blobs/` beside it, counts
    as its whole repository.

    Args:
        root: Absolute path of the folder.
        path: Relative path, without `..`.

    Raises:
        UnsafeFileError: It leads out of the folder, or to a pipe, a socket or a device.
        OSError: It cannot be opened, or is a folder.
    """
    top, names = _top_of(root)
    pending = [*names, *_names(path)][::-1]
    folders = [os.open(top, _OPEN_FOLDER)]
    num_links = 0
    try:
        while pending:
            name = pending.pop()
            if name == "..":
                os.close(folders.pop())
                if not folders:
                    raise UnsafeFileError("a link in its path leads out of the folder")
                continue
            status = os.stat(name, dir_fd=folders[-1], follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                num_links += 1
                if num_links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(name, dir_fd=folders[-1])
                if target.startswith("/"):
                    target = _below(target, top)
                    while len(folders) > 1:
                        os.close(folders.pop())
                pending += _names(target)[::-1]
            elif pending:
                folders.append(os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=folders[-1]))
            else:
                _check_regular(status)
                return _opened(os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=folders[-1]))
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    finally:
        for folder in folders:
            os.close(folder)


def unsafe_files(root: str, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the files of a listing that may not be read, each with the reason."""
    real_folders: dict[str, bool] = {"": True}

    def is_real(folder: str) -> bool:
        """Whether neither a folder nor one above it is a link."""
        if folder not in real_folders:
            above, _, _ = folder.rpartition("/")
            is_link = stat.S_ISLNK(os.lstat(os.path.join(root, folder)).st_mode)
            real_folders[folder] = not is_link and is_real(above)
        return real_folders[folder]

    for path in paths:
        try:
            is_file = stat.S_ISREG(os.lstat(os.path.join(root, path)).st_mode)
            # Most are plain files in plain folders, and there may be a million of them.
            if not (is_file and is_real(path.rpartition("/")[0])):
                open_inside(root, path).close()
        except UnsafeFileError as error:
            yield path, str(error)
        except OSError:
            # It is gone or not readable: whoever reads it says so.
            continue


def kind_of(path: str | os.PathLike[str]) -> str:
    """Name what a path leads to if it is neither file nor folder; empty if it is, or is absent."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "")
    except OSError:
        return ""


def _opened(descriptor: int) -> BinaryIO:
    """Wrap an open file, after a look at what was really opened."""
    try:
        _check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if kind != stat.S_IFREG:
        raise UnsafeFileError(f"it is {_KINDS.get(kind, 'no file')}, expected a regular file")


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _top_of(root: str) -> tuple[str, list[str]]:
    """Return the folder out of which no link may lead, and the way from it to `root`."""
    names = root.split("/")
    for index in range(1, len(names) - 1):
        if names[index] == "snapshots" and names[index - 1].startswith(_HUB_CACHES):
            return "/".join(names[:index]), _names("/".join(names[index:]))
    return root, []


def _below(target: str, top: str) -> str:
    """Return the rest of an absolute path below a folder, however the folder is spelled."""
    for folder in (top, os.path.realpath(top)):
        if target == folder or target.startswith(folder.rstrip("/") + "/"):
            return target[len(folder.rstrip("/")) :]
    raise UnsafeFileError("a link in its path leads out of the folder")
