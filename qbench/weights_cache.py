"""Quantized weights in the cache: one folder per quantization, shared by all processes.

Each folder has a lock. One process quantizes while others wait for it; then any number evaluate at once. The last
process that used the weights deletes them.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qbench.files import Lock, remove_stale
from qbench.models.quantized import QuantizedFolder


class CachedWeights:
    """The quantized weights ``id`` of a model of ``blocks`` decoder layers."""

    def __init__(self, cache_dir: Path, id: str, blocks: int):
        self.folder, self.blocks = QuantizedFolder(cache_dir / "quantized" / id), blocks
        self._lock = Lock(cache_dir / ".locks" / id)

    @contextmanager
    def whole(self, make: Callable[[QuantizedFolder], None]) -> Iterator[QuantizedFolder]:
        """The folder with all its blocks, after ``make`` wrote those that are missing. No process deletes it while the
        context is open."""
        try:
            while not self._is_ready(make):
                self._lock.release()
            yield self.folder
        finally:
            self._lock.release()

    def _is_ready(self, make: Callable[[QuantizedFolder], None]) -> bool:
        if self._lock.acquire():
            if not self.folder.is_complete(self.blocks):
                remove_stale(self.folder.path, age=0)  # no other process is writing here
                make(self.folder)
        elif not self._lock.acquire(shared=True):
            print(f"waiting for another process that quantizes {self.folder.path}", file=sys.stderr, flush=True)
        self._lock.acquire(shared=True, wait=True)
        return self.folder.is_complete(self.blocks)  # not if the other process failed, or deleted it just now

    def drop(self) -> None:
        """Deletes the weights unless another process uses them."""
        if self.folder.path.exists() and self._lock.acquire():
            shutil.rmtree(self.folder.path, ignore_errors=True)
            self._lock.release(remove=True)
