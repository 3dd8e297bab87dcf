"""Folders of consomme's own on this machine: a cache that stays, scratch that does not.

What lies in a temporary folder under a name that others can guess, others may have put there. So
the cache is a folder of mode 0700 that belongs to this user and that nobody else could have
replaced, and scratch folders have random names. A folder that fails these checks is not used: the
next candidate is, and without any the command is refused with the reason for each.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import grp
import os
import pwd
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from consomme.base.errors import RecipeError

CACHE_DIR = "CONSOMME_CACHE_DIR"
"""Environment variable: the folder in which the cache is made, as `consomme`."""

_PREFIX = "consomme-tmp-"
_CACHE_PREFIX = "consomme-cache-"
_LOCK = ".lock"
_TEMPORARY_VARIABLES = ("TMPDIR", "TEMP", "TMP")
_TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp", "/dev/shm")
_CLOSE_TRIES = 50
_EMPTY_FOR_S = 3600.0
"""A scratch folder without a lock file was left by a process that died in between."""

_ADVICE = (
    f"set {CACHE_DIR} (for models) and TMPDIR to folders that belong to you, and that no other"
    " user may write"
)


def cache_folder(*parts: str) -> Path:
    """Return a folder below the cache, which outlives processes; makes what is missing.

    The cache is `consomme` in `$CONSOMME_CACHE_DIR`, else in `$XDG_CACHE_HOME` or `~/.cache`, else
    a folder with a random name beside other temporary files, which is found again by its owner.

    Raises:
        RecipeError: `$CONSOMME_CACHE_DIR` cannot be used, or no place can.
    """
    root = _cache_root()
    folder = root.joinpath(*parts)
    _make(folder)
    if problem := _problem_of(folder):
        raise RecipeError(f"{folder}: {problem}; {_ADVICE}")
    return folder


def _cache_root() -> Path:
    named = os.environ.get(CACHE_DIR)
    if named:
        folder, problem = _usable(Path(named).absolute() / "consomme", is_vouched=True)
        if folder is None:
            raise RecipeError(f"{CACHE_DIR}={named}: {problem}; {_ADVICE}")
        return folder
    problems = []
    for candidate in _cache_candidates():
        folder, problem = _usable(candidate)
        if folder is not None:
            return folder
        problems.append(f"{candidate}: {problem}")
    for base, reason in _temporary_bases():
        if reason:
            problems.append(reason)
            continue
        with contextlib.suppress(OSError):
            return _temporary_cache(base)
    raise RecipeError(_refusal("cache", problems))


def _cache_candidates() -> Iterator[Path]:
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative one is invalid by the specification.
    if os.path.isabs(base):
        yield Path(base) / "consomme"
    home = os.environ.get("HOME") or ""
    if not home:
        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.geteuid()).pw_dir
    if os.path.isabs(home):
        yield Path(home) / ".cache" / "consomme"


def _temporary_cache(base: Path) -> Path:
    """Find the cache that an earlier process made beside other temporary files, or make it."""
    made = None
    while True:
        for path in sorted(base.glob(f"{_CACHE_PREFIX}*")):
            if _problem_of(path) is None:
                return path
        # Two processes that are here at the same time both take the first in order.
        made = made or Path(tempfile.mkdtemp(prefix=_CACHE_PREFIX, dir=base))
        made.chmod(0o700)
        if problem := _problem_of(made):
            raise OSError(f"{made}: {problem}")


def temporary_base(*variables: str, max_length: int | None = None) -> Path:
    """Return the folder for temporary files: `$TMPDIR`, else the first system folder that is fit.

    Args:
        variables: Environment variables that come before `TMPDIR`.
        max_length: Of the path, in bytes; None takes any.

    Raises:
        RecipeError: No folder can be used.
    """
    problems = []
    for base, problem in _temporary_bases(variables):
        length = len(os.fsencode(base))
        if problem is None and max_length is not None and length > max_length:
            problem = (
                f"{base}: the path has {length} bytes, sockets need one of at most {max_length}"
            )
        if problem is None:
            return base
        problems.append(problem)
    raise RecipeError(_refusal("temporary", problems))


def _temporary_bases(variables: Sequence[str] = ()) -> Iterator[tuple[Path, str | None]]:
    """Yield candidates, each with the reason against it."""
    named = [os.environ.get(name, "") for name in (*variables, *_TEMPORARY_VARIABLES)]
    for text in filter(os.path.isabs, named):
        yield _real(Path(text)), _base_problem(_real(Path(text)))
    for text in (*_TEMPORARY_FOLDERS, "."):
        path = _real(Path(text))
        yield path, _base_problem(path) or _parents_problem(path / "x")


def _base_problem(path: Path) -> str | None:
    """Say why no folder can be made in `path`, by making one."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=path))
    except OSError as error:
        return f"{path}: {_reason(error)}"
    return None


class Scratch:
    """A temporary folder of mode 0700; it is removed with `close`, or when its process is dead.

    The process holds a lock in it. Whoever makes another one removes those that nobody holds.
    """

    def __init__(self, base: Path | None = None) -> None:
        """Make the folder.

        Args:
            base: Where; None takes `temporary_base`.

        Raises:
            RecipeError: No folder can be used.
        """
        base = base or temporary_base()
        remove_leftovers(base)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            # mkdtemp is subject to the umask.
            self.path.chmod(0o700)
            self._lock = lock(self.path / _LOCK)
            if self._lock is not None:
                return

    def __enter__(self) -> Path:
        """Return the folder."""
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the folder."""
        self.close()

    def close(self) -> None:
        """Remove the folder; what a process that ends right now still writes is waited for."""
        for _ in range(_CLOSE_TRIES):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                break
            time.sleep(0.1)
        if self._lock is not None:
            self._lock.close()


_of_process: dict[int, Scratch] = {}


def process_scratch() -> Path:
    """Return the scratch folder of this process, which ends with it.

    Raises:
        RecipeError: No folder can be used.
    """
    process = os.getpid()
    if process not in _of_process:
        # A forked child leaves what belongs to its parent.
        scratch = _of_process[process] = Scratch()
        atexit.register(lambda: scratch.close() if os.getpid() == process else None)
    return _of_process[process].path


def remove_leftovers(base: Path) -> int:
    """Remove this user's scratch folders in `base` whose processes are dead; returns how many."""
    number = 0
    for path in base.glob(f"{_PREFIX}*"):
        if path.name.startswith(_CACHE_PREFIX) or _problem_of(path) is not None:
            continue
        held = None
        try:
            if not (path / _LOCK).exists():
                if time.time() - path.stat().st_mtime > _EMPTY_FOR_S:
                    path.rmdir()
                continue
            held = lock(path / _LOCK, wait=False, create=False)
            if held is not None:
                shutil.rmtree(path, ignore_errors=True)
                number += 1
        except OSError:
            # It vanished, or it is not empty and not ours.
            continue
        finally:
            if held is not None:
                held.close()
    return number


class Lock:
    """A lock on a file, shared or exclusive; the kernel releases it when the process dies."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Hold the descriptor that carries the lock."""
        self.path, self._descriptor = path, descriptor

    def __enter__(self) -> Self:
        """Return the lock."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.close()

    def close(self) -> None:
        """Release it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def lock(
    path: Path, *, wait: bool = True, is_shared: bool = False, create: bool = True
) -> Lock | None:
    """Lock a file.

    Args:
        path: The file, in a folder that only this user may write.
        wait: Wait for other holders; otherwise return None if there are any.
        is_shared: Several processes may hold it at a time.
        create: Make the file if it does not exist.

    Returns:
        The lock; None if others hold it, or if its folder was removed meanwhile.

    Raises:
        OSError: The file system has no locks, or the file cannot be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    while True:
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
            # Another process may have removed the file while this one waited.
            if _is_same(descriptor, path):
                return Lock(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        # No open file is left behind, whatever it was, Ctrl-C included; the error is raised again.
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (there.st_ino, there.st_dev) == (held.st_ino, held.st_dev)


def _usable(folder: Path, *, is_vouched: bool = False) -> tuple[Path | None, str]:
    """Make a folder if it is missing and check it; returns its real path, or why it is not used.

    Args:
        folder: The folder.
        is_vouched: The user names it, so who may write its parents is the user's business.
    """
    try:
        _make(folder)
        real = _real(folder)
        problem = _problem_of(real) or (None if is_vouched else _parents_problem(real))
        if problem is None:
            with contextlib.closing(_lockable(real)):
                pass
    except OSError as error:
        problem = _reason(error)
    return (None, problem) if problem else (real, "")


def _lockable(folder: Path) -> Lock:
    held = lock(folder / _LOCK, is_shared=True)
    if held is None:
        raise OSError("was removed meanwhile")
    return held


def _make(folder: Path) -> None:
    """Make a folder and missing parents, each of mode 0700 under any umask."""
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        _make(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)


def _problem_of(folder: Path) -> str | None:
    """Say why a folder may hold what others put there; narrows the mode of one that may not."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return _reason(error)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return f"found a folder of uid {found.st_uid}, expected one of uid {os.geteuid()}"
        if _is_writable_by_others(found):
            return (
                f"found a folder with mode {stat.S_IMODE(found.st_mode):04o}, in which others may"
                " have written; remove it"
            )
        if found.st_mode & 0o077:
            os.fchmod(descriptor, 0o700)
        is_read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
        if is_read_only or not os.access(folder, os.W_OK | os.X_OK):
            return "found a folder that cannot be written"
    except OSError as error:
        return _reason(error)
    finally:
        os.close(descriptor)
    return None


def _parents_problem(folder: Path) -> str | None:
    """Say who else could replace a folder, given by its real path."""
    trusted = {0, os.geteuid(), *_unmapped()}
    for parent in folder.parents:
        found = parent.stat()
        if found.st_uid not in trusted:
            return f"{parent} belongs to uid {found.st_uid}, who could replace what is in it"
        if _is_writable_by_others(found) and not found.st_mode & stat.S_ISVTX:
            return (
                f"{parent} (mode {stat.S_IMODE(found.st_mode):04o}) may be written by others and"
                " has no sticky bit, so they could replace what is in it"
            )
    return None


def _is_writable_by_others(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_private_group(found.st_gid)


def _is_private_group(gid: int) -> bool:
    """Whether a group has no member but this user, as many systems make one for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    is_own = gid == user.pw_gid and group.gr_name == user.pw_name
    return is_own and set(group.gr_mem) <= {user.pw_name}


def _unmapped() -> set[int]:
    """Return the uid that stands for users outside of this user namespace, if there is one."""
    with contextlib.suppress(OSError, ValueError):
        ranges = Path("/proc/self/uid_map").read_text().split()
        if ranges != ["0", "0", "4294967295"]:
            return {int(Path("/proc/sys/kernel/overflowuid").read_text())}
    return set()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOLCK or error.errno == errno.EOPNOTSUPP:
        return "the file system has no locks"
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "found no folder there, but another kind of file"
    return error.strerror or str(error)


def _refusal(what: str, problems: list[str]) -> str:
    lines = "".join(f"\n  - {problem}" for problem in problems)
    return f"found no {what} folder that is safe to use:{lines}\n  {_ADVICE}"
