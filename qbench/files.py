"""Files: where those of the package lie, JSON, atomic writes, and locks that end with their process."""

import dataclasses
import fcntl
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DAY = 86400  # seconds; no file takes so long to write


def packaged(name: str) -> Path:
    """The folder ``name`` that travels with the code: inside the package in a wheel, beside it in a clone."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path``, which it replaces when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes ``text`` as ``written_whole`` does, and waits until it is on the disk."""
    with written_whole(path) as temporary, temporary.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def write_json(path: Path, x) -> None:
    """Writes dataclasses, dicts and lists as JSON, atomically."""
    write_atomic(path, json.dumps(plain(x), indent=1, allow_nan=False) + "\n")


def plain(x: Any) -> Any:
    """Dataclasses as dicts; floats that are not finite as "inf", "-inf", "nan", since JSON has no such numbers."""
    if dataclasses.is_dataclass(x):
        return {f.name: plain(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    return str(x) if isinstance(x, float) and not math.isfinite(x) else x


def slug(name: str) -> str:
    """``name`` as the name of a file: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def remove_stale(*folders: Path, age: float = DAY) -> None:
    """Removes temporary files of killed processes, of ``written_whole`` and of safetensors, if older than ``age``
    seconds."""
    for path in (path for folder in folders for path in folder.glob(".*tmp*")):
        try:
            about = path.lstat()
            if stat.S_ISREG(about.st_mode) and time.time() - about.st_mtime >= age:
                path.unlink()
        except FileNotFoundError:  # another process removed it
            pass


class Lock:
    """A lock on the file ``path``, held by one process or, if ``shared``, by many; it ends with its process.

    The holder may remove the file. A process that waited then locked a file that no other process can open, so
    ``acquire`` checks that the file it locked is still the one that ``path`` names.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file: int | None = None  # its descriptor while it is held

    def acquire(self, *, shared: bool = False, wait: bool = False) -> bool:
        """Whether this object holds the lock now, in the mode asked for; it first releases a lock it held before."""
        mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            self._file = file = self._open() if self._file is None else self._file
            try:
                fcntl.flock(file, mode)
            except BlockingIOError:
                self.release()
                return False
            if self._is_current(file):
                return True
            self.release()

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock; ``remove`` also removes its file, which only a sole holder may do."""
        if self._file is not None:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink():
            raise OSError(f"the lock {self.path} is a symbolic link; delete it")
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self.path.lstat())
        except FileNotFoundError:
            return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock ``path`` alone, after waiting for it."""
    lock = Lock(path)
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release(remove=True)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A folder in ``parent`` for this process alone, removed at the end; those of dead processes are removed first."""
    for lock in map(Lock, parent.glob("*.lock")):
        if lock.acquire():
            shutil.rmtree(lock.path.with_suffix(""), ignore_errors=True)
            lock.release(remove=True)
    folder = parent / uuid.uuid4().hex
    with locked(folder.with_suffix(".lock")):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
