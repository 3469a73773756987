"""Cached statistics of the unquantized model, shared by all methods and bit-widths that calibrate on it.

They only save time: what is missing or damaged is observed again. All models' statistics together take at most
``machine.statistics_gib``; the least recently used ones are deleted first.
"""

import os
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qbench.calibration import BlockCalibration
from qbench.models.files import save_tensors
from qbench.stats import Statistic


class CachedStatistics:
    """A folder with the statistics of one model on one calibration set, one file per block."""

    def __init__(self, folder: Path):
        self.folder, self.is_full = Path(folder), False

    def write(self, index: int, calib: BlockCalibration) -> None:
        """Writes ``calib.stats``. A failed write is the last: what is left of the disk is for the weights."""
        found = {
            f"{i}/{kind.__name__}/{field}": value
            for i, stage in enumerate(calib.block.stages)
            for kind, stat in calib.stats[stage].items()
            for field, value in stat.state().items()
        }
        try:
            if not self.is_full:
                save_tensors(found, self._path(index), {})
        except (OSError, SafetensorError) as e:
            self.is_full = True
            shutil.rmtree(self.folder, ignore_errors=True)
            warnings.warn(f"statistics are not kept in {self.folder}: {e}", stacklevel=2)

    def read(self, index: int, calib: BlockCalibration, kinds: Iterable[type[Statistic]]) -> bool:
        """Reads the statistics ``kinds`` into ``calib.stats``; False where they are missing or damaged."""
        path, found = self._path(index), {}
        try:
            with safe_open(path, framework="pt") as f:
                for i, stage in enumerate(calib.block.stages):
                    K = calib.block[stage.linears[0]].weight.shape[1]
                    found[stage] = {kind: kind(K, calib.device) for kind in kinds}
                    for kind, stat in found[stage].items():
                        state = {field: f.get_tensor(f"{i}/{kind.__name__}/{field}") for field in stat.state()}
                        if any(state[field].shape != empty.shape for field, empty in stat.state().items()):
                            raise ValueError(f"{i}/{kind.__name__} is of another shape")
                        stat.restore(state)
        except FileNotFoundError:
            return False
        except (OSError, SafetensorError, ValueError) as e:
            warnings.warn(f"{path} is damaged and made again: {e}", stacklevel=2)
            return False
        calib.stats |= found
        return True

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"


def open_statistics(root: Path, id: str, size: int, limit: float, spare: int) -> CachedStatistics | None:
    """The statistics ``id`` in ``root``, or None where their ``size`` bytes exceed ``limit`` or the free disk space.

    ``spare``: bytes of the disk that must stay free. Others in ``root`` are deleted as far as these need their space.
    """
    if size > limit:
        return None
    folder = root / id
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        if _make_room(folder, size, limit, spare):
            return CachedStatistics(folder)
        reason = f"they need {size / 2**30:.1f} GiB, and the disk has no room for them and the weights"
    except OSError as e:
        reason = str(e)
    warnings.warn(f"statistics are not kept in {root}: {reason}", stacklevel=2)
    return None


def _make_room(folder: Path, size: int, limit: float, spare: int) -> bool:
    others = sorted((path for path in folder.parent.iterdir() if path != folder), key=_last_use)
    while True:
        fits = size - _bytes(folder) + spare <= shutil.disk_usage(folder).free
        if not others or (fits and size + sum(map(_bytes, others)) <= limit):
            return fits
        shutil.rmtree(others.pop(0), ignore_errors=True)


def _last_use(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0


def _bytes(folder: Path) -> int:
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError:  # another process is deleting it
        return 0
