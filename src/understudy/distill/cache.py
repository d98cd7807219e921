"""What the teacher said, kept on disk: asked again about the same pixels, it need not be run.

An answer is found by the sample and the view it was seen in, and counts only if the pixels are the very ones: with each
row stands a check over its own bytes and over the pixels that it answers. So a row that was torn by a crash, damaged
on the disk, or made for other data under the same name is not found, and the teacher is run.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from understudy.distill.teacher import Answer, Teacher

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Odd multipliers of the checks, the same in every run; more are drawn where rows are longer.
_MULTIPLIERS = torch.from_numpy(np.random.default_rng(20_251_121).integers(-(2**62), 2**62, 4096) * 2 + 1)


@dataclass(frozen=True)
class Kept:
    """How answers are kept.

    Args:
        precision: of the numbers; `fp32` gives back the teacher's own bits.
        top: how many of the largest logits are kept of each answer; None keeps all. The others then share the rest of
            the probability evenly.
        features: whether tapped features are kept too, which may be large; without, who wants them asks the teacher.
    """

    precision: Precision = "fp32"
    top: int | None = None
    features: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether what comes back are the teacher's bits."""
        return self.precision == "fp32" and self.top is None


@dataclass
class Counts:
    """How often the cache knew the answer.

    Args:
        hits: images whose answer was there.
        misses: images that the teacher was asked about.
        mass: the probability that the kept logits hold, summed over the images kept; for `top`.
        kept: images that were kept.
    """

    hits: int = 0
    misses: int = 0
    mass: float = 0.0
    kept: int = 0

    @property
    def rate(self) -> float:
        """The share of images whose answer was there."""
        return self.hits / max(self.hits + self.misses, 1)


@dataclass(frozen=True)
class Place:
    """Where the answers to some images are kept.

    Args:
        view: name of the view that all of them are seen in; empty where their pixels are no view of one sample.
        ids: (N,) numbers of the samples in their source.
    """

    view: str
    ids: Tensor


class AnswerCache:
    """The answers of one teacher to one source of samples, in files below a folder.

    Each stored thing (the logits, or a tapped feature) and view has a file of fixed rows, one a sample, and beside it
    their checks; both are memory-mapped, filled as answers come, and shared by every run with the same identity.

    Args:
        root: below which all caches are; this one's folder is named by its identity.
        identity: what answers depend on: the teacher's weights, preprocessing, chunk, device, threads, versions.
        samples: of the source.
        kept: how.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], samples: int, kept: Kept = Kept()) -> None:
        about = {**identity, "samples": samples, "precision": kept.precision, "top": kept.top}
        name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = root / name
        self.samples = samples
        self.kept = kept
        self.counts = Counts()
        self.stopped = ""  # why nothing more is kept, once that is so
        self._about = about
        self._shards: dict[str, _Shard | None] = {}

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.glob("*") if file.is_file())

    def answer(
        self, teacher: Teacher, images: Tensor, place: Place, *, taps: tuple[str, ...] = (), logits: bool = True
    ) -> Answer:
        """The teacher's answer to a batch: what is known from the files, the rest from the teacher, who is then kept.

        Args:
            teacher: asked about the images that are not known.
            images: (N, C, H, W), as the teacher's `preprocess` wants them.
            place: where their answers are kept.
            taps: module paths whose outputs are wanted too.
            logits: whether the logits are wanted.
        """
        wanted = (*(("logits",) if logits else ()), *taps)
        if not place.view or (taps and not self.kept.features) or hasattr(teacher.model, "shares"):
            # No view of single samples, or more than is kept: of several teachers what each says is wanted.
            self.counts.misses += len(images)
            return teacher(images, taps=taps, logits=logits)
        marks = pixel_marks(images)
        ids = place.ids.cpu()
        found = {item: self._recall(item, place.view, ids, marks) for item in wanted}
        known = torch.ones(len(images), dtype=torch.bool)
        for rows in found.values():
            known &= rows.valid if rows is not None else torch.zeros_like(known)
        self.counts.hits += int(known.sum())
        self.counts.misses += int((~known).sum())
        if known.all():
            return _answer({item: rows.values.to(images.device) for item, rows in found.items() if rows is not None})
        unknown = (~known).nonzero().flatten()
        told = teacher(images[unknown.to(images.device)], taps=taps, logits=logits)
        values = {**({"logits": told.logits} if logits else {}), **told.features}
        for item, value in values.items():
            assert value is not None
            self._keep(item, place.view, ids[unknown], marks[unknown], value)
        if not self.kept.is_exact and "logits" in values:
            # Nobody learns from more than what a later run would find.
            values["logits"] = self._rounded(values["logits"])
        merged = {}
        for item, value in values.items():
            assert value is not None
            rows = found[item]
            whole = value.new_empty((len(images), *value.shape[1:]))
            whole[unknown.to(whole.device)] = value
            if rows is not None and known.any():
                whole[known.to(whole.device)] = rows.values[known].to(whole)
            merged[item] = whole
        return _answer(merged)

    def _rounded(self, logits: Tensor | None) -> Tensor:
        assert logits is not None
        layout = _layout("logits", logits, self.kept)
        return layout.decode(layout.encode(logits.cpu().float())).to(logits)

    def _recall(self, item: str, view: str, ids: Tensor, marks: Tensor) -> "_Rows | None":
        shard = self._shard(item, view, None)
        return None if shard is None else shard.read(ids, marks)

    def _keep(self, item: str, view: str, ids: Tensor, marks: Tensor, value: Tensor) -> None:
        if self.stopped:
            return
        try:
            shard = self._shard(item, view, value)
        except OSError as error:  # the disk is full, or may not be written to
            self.stopped = f"{error.strerror or error} ({self.folder})"
            return
        if shard is None:
            return
        encoded = shard.layout.encode(value.detach().cpu().float())
        shard.write(ids, marks, encoded)
        if item == "logits":
            self.counts.kept += len(ids)
            self.counts.mass += shard.layout.mass(value)

    def _shard(self, item: str, view: str, example: Tensor | None) -> "_Shard | None":
        """The file of an item and view, opened, or made where an example shows its shape."""
        name = f"{_file_name(item)}.{_file_name(view)}"
        shard = self._shards.get(name)
        if shard is not None:
            return shard
        path = self.folder / name
        if (layout := _read_layout(path, self.samples)) is None:
            if example is None:
                return None
            self.folder.mkdir(parents=True, exist_ok=True)
            about = self.folder / "about.json"
            if not about.exists():
                about.write_text(json.dumps(self._about, indent=2, default=str))
            layout = _layout(item, example, self.kept)
            _make(path, layout, self.samples)
        shard = _Shard(path, layout, self.samples)
        self._shards[name] = shard
        return shard


def identity_of(teacher: Teacher, **more: Any) -> dict[str, Any]:
    """What a teacher's answers depend on, but for the pixels.

    Args:
        teacher: its weights, how it is asked, and in which chunks.
        more: further facts, such as the precision it runs in.
    """
    digest = hashlib.sha256(repr(teacher.model).encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    device = next((tensor.device.type for tensor in teacher.model.parameters()), "cpu")
    return {
        "teacher": digest.hexdigest(),
        "preprocess": repr(teacher.preprocess),
        "chunk": teacher.chunk,
        "columns": None if teacher.columns is None else teacher.columns.tolist(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **more,
    }


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
    words = words.contiguous().view(torch.int64)
    places = torch.arange(words.shape[1], device=words.device)
    factors = _MULTIPLIERS.to(words.device)[places % len(_MULTIPLIERS)] + 2 * (places // len(_MULTIPLIERS))
    # High bits are folded down, so that they count in the low ones too.
    return ((words ^ (words >> 29)) * factors).sum(1)


@dataclass(frozen=True)
class _Rows:
    values: Tensor
    valid: Tensor


@dataclass(frozen=True)
class _Layout:
    """How a row is written.

    Args:
        shape: of one sample's value.
        precision: of its numbers.
        top: how many of them are kept, with their places; None keeps all.
    """

    shape: tuple[int, ...]
    precision: Precision
    top: int | None

    @property
    def width(self) -> int:
        """Bytes of a row."""
        count = self.top if self.top is not None else int(np.prod(self.shape))
        return count * (_DTYPES[self.precision].itemsize + (4 if self.top is not None else 0))

    def encode(self, values: Tensor) -> Tensor:
        """Values (N, ...) in float32 as bytes (N, width)."""
        dtype = _DTYPES[self.precision]
        if self.top is None:
            return values.flatten(1).to(dtype).contiguous().view(torch.uint8)
        best = values.log_softmax(1).topk(self.top, dim=1)
        parts = best.values.to(dtype).contiguous(), best.indices.to(torch.int32).contiguous()
        return torch.cat([part.view(torch.uint8) for part in parts], dim=1)

    def decode(self, rows: Tensor) -> Tensor:
        """The values (N, ...) in float32 that bytes (N, width) hold."""
        dtype = _DTYPES[self.precision]
        if self.top is None:
            return rows.contiguous().view(dtype).float().unflatten(1, self.shape)
        cut = self.top * dtype.itemsize
        values = rows[:, :cut].contiguous().view(dtype).float()
        places = rows[:, cut:].contiguous().view(torch.int32).long()
        classes = self.shape[0]
        rest = (1 - values.exp().sum(1, keepdim=True)).clamp_min(1e-12) / max(classes - self.top, 1)
        return rest.log().expand(-1, classes).scatter(1, places, values)

    def mass(self, logits: Tensor) -> float:
        """The probability in what is kept of some logits, summed over the samples."""
        if self.top is None:
            return float(len(logits))
        return float(logits.float().softmax(1).topk(self.top, dim=1).values.sum())


@dataclass
class _Shard:
    """The rows of one item in one view, memory-mapped.

    Args:
        path: of the rows; `.check` and `.json` stand beside it.
        layout: of a row.
        samples: how many rows.
    """

    path: Path
    layout: _Layout
    samples: int
    rows: Tensor = field(init=False)
    checks: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.samples, self.layout.width)
        self.rows = torch.from_numpy(np.memmap(self.path, dtype=np.uint8, mode="r+", shape=shape))
        checks = np.memmap(_check_file(self.path), dtype=np.int64, mode="r+", shape=(self.samples,))
        self.checks = torch.from_numpy(checks)

    def read(self, ids: Tensor, marks: Tensor) -> _Rows:
        """The rows of some samples, and whether each answers these pixels."""
        rows = self.rows[ids]
        return _Rows(self.layout.decode(rows), self.checks[ids] == _check(rows, marks))

    def write(self, ids: Tensor, marks: Tensor, rows: Tensor) -> None:
        """Keep rows; the check comes last, so that a row that was not finished is not believed."""
        self.rows[ids] = rows
        self.checks[ids] = _check(rows, marks)


def _check(rows: Tensor, marks: Tensor) -> Tensor:
    # Never 0, which is what an empty file holds.
    return (_marks(rows) ^ (marks * 0x5851F42D4C957F2D)) | 1


def _layout(item: str, example: Tensor, kept: Kept) -> _Layout:
    # Only of logits are the largest the ones that matter.
    top = min(kept.top, example.shape[1]) if kept.top is not None and item == "logits" else None
    return _Layout(tuple(example.shape[1:]), kept.precision, top)


def _make(path: Path, layout: _Layout, samples: int) -> None:
    """Make the files of a shard at their full size, so that a full disk is known now and not while they are mapped.

    Raises:
        OSError: there is no room.
    """
    for file, size in ((path, samples * layout.width), (_check_file(path), samples * 8)):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, max(size, 1))
        except OSError:
            file.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    described = {"shape": layout.shape, "precision": layout.precision, "top": layout.top}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps(described))
    partial.replace(_layout_file(path))


def _read_layout(path: Path, samples: int) -> _Layout | None:
    """The layout of a shard; None where there is none, or its files are not whole."""
    try:
        about = json.loads(_layout_file(path).read_text())
        layout = _Layout(tuple(about["shape"]), about["precision"], about["top"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    sizes = {path: samples * layout.width, _check_file(path): samples * 8}
    return layout if all(file.is_file() and file.stat().st_size == size for file, size in sizes.items()) else None


def _check_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.check")


def _layout_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _file_name(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in text)


def _answer(values: Mapping[str, Tensor]) -> Answer:
    features = {item: value for item, value in values.items() if item != "logits"}
    return Answer(values.get("logits"), features)
