"""Reads checkpoints that Flax wrote, without Flax: msgpack, with arrays as an extension of it.

The format is that of `flax.serialization.to_bytes`: nested maps; an array is extension 1, whose content is again
msgpack: (shape, dtype, bytes); arrays of more than a gigabyte are maps of chunks. Only this much of msgpack
(https://github.com/msgpack/msgpack/blob/master/spec.md) is read, and nothing in it can execute.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import UserError

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
# Codes with a length of 1, 2 or 4 bytes before the content.
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}
_DEEPEST = 100


def read_flax(path: Path) -> dict[str, Any]:
    """Read a Flax checkpoint.

    Args:
        path: the file.

    Returns:
        Nested mappings of NumPy arrays and numbers.

    Raises:
        UserError: it is no such file, or is cut short.
    """
    try:
        reader = _Reader(memoryview(path.read_bytes()))
        content = reader.value()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path) from None
    except (ValueError, struct.error, TypeError, RecursionError) as error:
        raise UserError(f"is no Flax checkpoint, or is damaged: {error}", where=path) from None
    if reader.place != len(reader.data) or not isinstance(content, dict):
        raise UserError("is no Flax checkpoint: it should hold one map", where=path)
    return content


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 0

    def take(self, count: int) -> memoryview:
        if self.place + count > len(self.data):
            raise ValueError("it ends in the middle of a value")
        taken = self.data[self.place : self.place + count]
        self.place += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        code = self.take(1)[0]
        if code < 0x80:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code < 0x90:
            return self.map(code & 0x0F, depth)
        if code < 0xA0:
            return self.list(code & 0x0F, depth)
        if code < 0xC0:
            return str(self.take(code & 0x1F), "utf-8")
        if code in _WORDS:
            return _WORDS[code]
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code in _TEXTS:
            return str(self.take(self.number(_TEXTS[code])), "utf-8")
        if code in _BYTES:
            return bytes(self.take(self.number(_BYTES[code])))
        if code in _LISTS:
            return self.list(self.number(_LISTS[code]), depth)
        if code in _MAPS:
            return self.map(self.number(_MAPS[code]), depth)
        if code in _EXTENSIONS:
            return self.extension(self.number(_EXTENSIONS[code]))
        if code in _FIXED_EXTENSIONS:
            return self.extension(_FIXED_EXTENSIONS[code])
        raise ValueError(f"there is no type {code:#x}")

    def list(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def map(self, count: int, depth: int) -> Any:
        found = {}
        for _ in range(count):
            key = self.value(depth + 1)
            found[key] = self.value(depth + 1)
        return _joined(found) if found.get(_CHUNKED) else found

    def extension(self, length: int) -> Any:
        kind = self.number(">b")
        inner = _Reader(self.take(length))
        if kind in (_ARRAY, _SCALAR):
            array = _array(*inner.value())
            return array[()] if kind == _SCALAR else array
        if kind == _COMPLEX:
            return complex(*inner.value())
        raise ValueError(f"there is no extension {kind}")


def _array(shape: list[int], kind: Any, content: bytes) -> np.ndarray:
    name = kind.decode() if isinstance(kind, bytes) else kind
    if name == "bfloat16":  # which NumPy does not have: the upper half of a float32
        halves = np.frombuffer(content, "<u2").astype("<u4") << 16
        return halves.view("<f4").reshape(shape)
    dtype = np.dtype(name)
    if dtype.hasobject or len(content) != dtype.itemsize * prod(shape):
        raise ValueError(f"an array of {name} and shape {tuple(shape)} has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape)


def _joined(chunked: dict[Any, Any]) -> np.ndarray:
    def in_order(entry: Any) -> list[Any]:
        return [entry[key] for key in sorted(entry, key=int)] if isinstance(entry, dict) else list(entry)

    return np.concatenate([np.ravel(part) for part in in_order(chunked["chunks"])]).reshape(in_order(chunked["shape"]))
