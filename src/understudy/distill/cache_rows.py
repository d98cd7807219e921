"""How an answer is written down: a row of bytes with a check over itself and over the pixels that it answers."""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CHECK = 8  # bytes
# Odd multipliers of the checks, the same in every run; more are drawn where rows are longer.
_MULTIPLIERS = torch.from_numpy(np.random.default_rng(20_251_121).integers(-(2**62), 2**62, 4096) * 2 + 1)


@dataclass(frozen=True)
class Found:
    """What was looked up.

    Args:
        values: (N, ...) float32; of rows that are not valid anything.
        valid: (N,) whether the row answers these very pixels.
        odd: how many rows hold something else: damaged, or about other pixels.
    """

    values: Tensor
    valid: Tensor
    odd: int


@dataclass(frozen=True)
class Layout:
    """How a row is written.

    Args:
        shape: of one sample's value.
        precision: of its numbers.
        top: how many of them are kept, with their places; None keeps all.
    """

    shape: tuple[int, ...]
    precision: Precision
    top: int | None = None

    @property
    def width(self) -> int:
        """Bytes of a row, its check included."""
        count = self.top if self.top is not None else prod(self.shape)
        return _CHECK + count * (_DTYPES[self.precision].itemsize + (4 if self.top is not None else 0))

    def write(self, values: Tensor, marks: Tensor) -> np.ndarray:
        """Rows of bytes (N, width) that hold values (N, ...), given to pixels with these marks."""
        content = self._encode(values.detach().cpu().float())
        check = _check(content, marks)
        return torch.cat([check[:, None].view(torch.uint8), content], dim=1).numpy()

    def read(self, rows: np.ndarray, marks: Tensor) -> Found:
        """What rows hold, held against the marks of the pixels that are asked about."""
        told = torch.from_numpy(rows)
        check, content = _as(torch.int64, told[:, :_CHECK]).flatten(), _as(torch.uint8, told[:, _CHECK:])
        valid = check == _check(content, marks)
        return Found(self._decode(content), valid, int(((check != 0) & ~valid).sum()))

    def rounded(self, values: Tensor) -> Tensor:
        """Values as they will be found again."""
        return self._decode(self._encode(values.detach().cpu().float())).to(values.device)

    def _encode(self, values: Tensor) -> Tensor:
        dtype = _DTYPES[self.precision]
        if self.top is None:
            return values.flatten(1).to(dtype).contiguous().view(torch.uint8)
        best = values.log_softmax(1).topk(self.top, dim=1)
        parts = best.values.to(dtype).contiguous(), best.indices.to(torch.int32).contiguous()
        return torch.cat([part.view(torch.uint8) for part in parts], dim=1)

    def _decode(self, content: Tensor) -> Tensor:
        dtype = _DTYPES[self.precision]
        if self.top is None:
            return _as(dtype, content).float().unflatten(1, self.shape)
        cut = self.top * dtype.itemsize
        values = _as(dtype, content[:, :cut]).float()
        classes = self.shape[0]
        # A damaged row may name any place: it is not believed, but must not be written out of bounds.
        places = _as(torch.int32, content[:, cut:]).long().clamp(0, classes - 1)
        rest = (1 - values.exp().sum(1, keepdim=True)).clamp_min(1e-12) / max(classes - self.top, 1)
        return rest.log().expand(-1, classes).scatter(1, places, values)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"shape": self.shape, "precision": self.precision, "top": self.top}

    @classmethod
    def from_json(cls, about: dict[str, Any]) -> "Layout":
        """From plain data.

        Raises:
            KeyError, TypeError: it is none.
        """
        return cls(tuple(about["shape"]), about["precision"], about["top"])


@dataclass(frozen=True)
class Kept:
    """How answers are kept.

    Args:
        precision: of the numbers; `fp32` gives back the teacher's own bits.
        top: how many of the largest logits are kept of each answer; None keeps all. The others then share the rest of
            the probability evenly.
        features: whether tapped features are kept too, which may be large; without, who wants them asks the teacher.
        once: whether answers about views that are drawn anew in each pass are kept, for a later run of the same seed.
    """

    precision: Precision = "fp32"
    top: int | None = None
    features: bool = True
    once: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether what comes back are the teacher's bits."""
        return self.precision == "fp32" and self.top is None

    def layout(self, item: str, example: Tensor) -> Layout:
        """How an item is written, of which an example shows the shape; only of logits the largest are what matters."""
        top = min(self.top, example.shape[1]) if self.top is not None and item == "logits" else None
        return Layout(tuple(example.shape[1:]), self.precision, top)


def pixel_marks(images: Tensor) -> Tensor:
    """A number for each image that changes with any of its bytes.

    Args:
        images: (N, ...) of any type.

    Returns:
        (N,) int64 on the CPU.
    """
    return _marks(images.contiguous().flatten(1)).cpu()


def _marks(rows: Tensor) -> Tensor:
    """Of each row the sum of its 64-bit words, each times an odd number of its place, modulo 2^64."""
    words = rows.view(torch.uint8)
    if words.shape[1] % 8:
        words = torch.nn.functional.pad(words, (0, 8 - words.shape[1] % 8))
    words = words.flatten().view(torch.int64).view(len(rows), -1)
    factors = _factors(words.shape[1]).to(words.device)
    # High bits are folded down, so that they count in the low ones too.
    return ((words ^ (words >> 29)) * factors).sum(1)


def _as(dtype: torch.dtype, rows: Tensor) -> Tensor:
    """Bytes (N, w) as numbers; copied, because a part of a single row may begin anywhere."""
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)


def _factors(count: int) -> Tensor:
    if count <= len(_MULTIPLIERS):
        return _MULTIPLIERS[:count]
    places = torch.arange(count)
    return _MULTIPLIERS[places % len(_MULTIPLIERS)] + 2 * (places // len(_MULTIPLIERS))


def _check(content: Tensor, marks: Tensor) -> Tensor:
    # Never 0, which is what an empty file holds.
    return (_marks(content) ^ (marks * 0x5851F42D4C957F2D)) | 1
