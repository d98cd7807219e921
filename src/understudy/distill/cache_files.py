"""Where rows of answers lie: files of some thousand rows each, memory-mapped, filled in any order by anyone."""

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from understudy.distill.cache_rows import Found, Layout

# A full disk stops after the last whole file, a damaged one costs its own rows, and none is large and mostly empty.
SHARD_BYTES = 2**26
_ZEROS = bytes(2**20)


class Shards:
    """The rows of one item in one view, in files `NAME.0`, `NAME.1` and so on of consecutive samples.

    A row is believed by its check alone, so that several processes may write the same rows at once, and one that is
    killed leaves nothing that is wrong.

    Args:
        path: folder and beginning of the files' name.
        layout: of a row.
        samples: how many rows there can be.
    """

    def __init__(self, path: Path, layout: Layout, samples: int) -> None:
        self.path = path
        self.layout = layout
        self.samples = samples
        self.rows_each = max(1, SHARD_BYTES // layout.width)
        self.not_whole: set[str] = set()
        self._open: dict[int, np.ndarray] = {}

    def read(self, ids: Tensor, marks: Tensor) -> Found:
        """Look samples up.

        Args:
            ids: (N,) numbers of the samples.
            marks: (N,) of the pixels that are asked about.
        """
        numbers = ids.numpy()
        rows = np.zeros((len(numbers), self.layout.width), np.uint8)
        for shard, here, places in self._parts(numbers):
            known = self._file(shard)
            if known is not None:
                rows[here] = known[places]
        return self.layout.read(rows, marks)

    def write(self, ids: Tensor, marks: Tensor, values: Tensor) -> None:
        """Keep the values of some samples.

        Raises:
            OSError: there is no room, or no permission.
        """
        rows = self.layout.write(values, marks)
        for shard, here, places in self._parts(ids.numpy()):
            known = self._file(shard)
            if known is None or not known.flags.writeable:
                self._make(shard)
                known = self._open[shard] = _mapped(self._name(shard), self._shape(shard))
            known[places] = rows[here]

    def _parts(self, ids: np.ndarray) -> list[tuple[int, slice | np.ndarray, np.ndarray]]:
        """Which file holds which of the samples, and in which rows."""
        if self.samples <= self.rows_each:
            return [(0, slice(None), ids)]
        shards, places = np.divmod(ids, self.rows_each)
        return [(int(shard), shards == shard, places[shards == shard]) for shard in np.unique(shards)]

    def _file(self, shard: int) -> np.ndarray | None:
        """The rows of a file; None where there is none, or it is not whole."""
        if shard in self._open:
            return self._open[shard]
        name, shape = self._name(shard), self._shape(shard)
        try:
            whole = name.stat().st_size == shape[0] * shape[1]
            if not whole:
                self.not_whole.add(name.name)
                return None
            self._open[shard] = _mapped(name, shape)
        except OSError:
            return None
        return self._open[shard]

    def _make(self, shard: int) -> None:
        """Make a file at its full size, so that a full disk is known now and not while it is mapped."""
        name, (rows, width) = self._name(shard), self._shape(shard)
        existed = name.exists()
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, min(os.fstat(descriptor).st_size, rows * width))
            _reserve(descriptor, rows * width)
        except OSError:
            if not existed:
                name.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _name(self, shard: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{shard}")

    def _shape(self, shard: int) -> tuple[int, int]:
        return min(self.rows_each, self.samples - shard * self.rows_each), self.layout.width


def _reserve(descriptor: int, size: int) -> None:
    """Give a file blocks up to a size, with zeros where it had none."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    os.lseek(descriptor, 0, os.SEEK_END)
    while missing := size - os.fstat(descriptor).st_size:
        os.write(descriptor, _ZEROS[:missing])


def _mapped(name: Path, shape: tuple[int, int]) -> np.ndarray:
    mode = "r+" if os.access(name, os.W_OK) else "r"  # others' answers may be read without leave to add to them
    return np.memmap(name, dtype=np.uint8, mode=mode, shape=shape).view(np.ndarray)
