"""The processes that train one run together: which of them this is, and how they come to agree.

Each process makes its share of every batch; DistributedDataParallel averages the gradients. The first one writes the
run folder and prints. Without a launcher there is one process, and everything here costs nothing.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from understudy.errors import Interrupted, RunError, UserError

if TYPE_CHECKING:
    from torch import Tensor

# What a process ends with because another one did: a launcher tells of that one, not of this.
LOST = 75

# Others wait while the first evaluates or saves: longer than any of that takes.
_PATIENCE = timedelta(hours=6)
# A launcher that sees one process end kills the rest: the first must have said why by then.
_LINGER = 3.0


@dataclass(frozen=True)
class Place:
    """Where a process stands among those of its run.

    Args:
        rank: its number, from 0.
        count: how many there are.
        local_rank: its number on its machine, which is that of its GPU.
        machines: how many machines they are on.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    machines: int = 1


_here = Place()


def count() -> int:
    """How many processes train this run."""
    return _here.count


def rank() -> int:
    """The number of this process, from 0."""
    return _here.rank


def local_rank() -> int:
    """The number of this process on its machine."""
    return _here.local_rank


def machines() -> int:
    """How many machines the processes are on."""
    return _here.machines


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return _here.rank == 0


def launched() -> Place:
    """What a launcher (torchrun, SLURM through `understudy submit`) or the caller's own process group says."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        told = {"RANK": distributed.get_rank(), "WORLD_SIZE": distributed.get_world_size()}
    else:
        told = {name: int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    if told["WORLD_SIZE"] == 1:
        return Place()
    local = int(os.environ.get("LOCAL_RANK", told["RANK"]))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", told["WORLD_SIZE"]))
    return Place(told["RANK"], told["WORLD_SIZE"], local, -(-told["WORLD_SIZE"] // here))


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Inside the block this process is one of those that its launcher started.

    Args:
        device: the recipe's.

    Raises:
        UserError: the device cannot be shared out, or there are fewer GPUs than processes.
        RunError: another process ended.
    """
    global _here
    place = launched()
    if place.count == 1:
        yield
        return
    import torch
    from torch import distributed

    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(kind, place)
    ours = not distributed.is_initialized()
    if ours:
        if kind == "cuda":
            torch.cuda.set_device(place.local_rank)
        # What processes agree on is told through the CPU, so that no GPU is waited for.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    if distributed.get_world_size() != place.count:
        raise RunError(f"{distributed.get_world_size()} processes came together, {place.count} were started")
    _here = place
    try:
        yield
    except (UserError, RunError, Interrupted):
        if place.rank:
            time.sleep(_LINGER)
        raise
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        if "TORCHELASTIC_RUN_ID" in os.environ:  # a launcher watches and tells which one
            sys.exit(LOST)
        raise RunError(
            "another process of the run ended; the last checkpoint is kept: continue with `understudy resume FOLDER`"
        ) from error
    finally:
        _here = Place()
        if ours:
            distributed.destroy_process_group()


def _check_device(kind: str, place: Place) -> None:
    where = f"{place.count} processes"
    if kind not in ("cpu", "cuda"):
        raise UserError("train on GPUs of CUDA, one each, or on the CPU: set train.device to cuda or cpu", where=where)
    if kind == "cuda":
        import torch

        if torch.cuda.device_count() <= place.local_rank:
            raise UserError(
                f"need as many GPUs on each machine, this one has {torch.cuda.device_count()}: start fewer, or set "
                "train.device=cpu",
                where=where,
            )


def _is_lost(error: RuntimeError) -> bool:
    """Whether it says that a connection to another process broke."""
    from torch.distributed import DistError

    text = str(error)
    return isinstance(error, DistError) or "gloo" in text or "NCCL" in text


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works as if there were no others: nothing in it waits for them."""
    global _here
    before, _here = _here, Place(local_rank=_here.local_rank)
    try:
        yield
    finally:
        _here = before


def on_first(act: Callable[[], Any]) -> Any:
    """Do something on the first process, and let all know what it came to; every process must call it.

    Args:
        act: gives what JSON can hold.
    """
    if count() == 1:
        return act()
    import torch
    from torch import distributed

    size, text = torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.uint8)
    if is_first():
        with alone():
            text = torch.frombuffer(bytearray(json.dumps(act()).encode()), dtype=torch.uint8)
        size += len(text)
    distributed.broadcast(size, 0)
    if not is_first():
        text = torch.empty(int(size), dtype=torch.uint8)
    distributed.broadcast(text, 0)
    return json.loads(text.numpy().tobytes())


def barrier() -> None:
    """Wait until every process is here."""
    on_first(lambda: None)


def agreed(number: int) -> int:
    """The largest of the numbers that the processes bring."""
    if count() == 1:
        return number
    import torch
    from torch import distributed

    brought = torch.tensor([number])
    distributed.all_reduce(brought, distributed.ReduceOp.MAX)
    return int(brought)


def summed(parts: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Scalars of one device, each summed over the processes, in one message.

    Args:
        parts: the same names on every process.
    """
    if count() == 1 or not parts:
        return dict(parts)
    import torch
    from torch import distributed

    packed = torch.stack([value.double() for value in parts.values()])
    distributed.all_reduce(packed)
    return {name: whole.to(value.dtype) for (name, value), whole in zip(parts.items(), packed, strict=True)}
