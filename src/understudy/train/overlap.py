"""On a GPU the teachers answer the batches to come beside the students' steps, on a stream of their own."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

_Group = TypeVar("_Group")


def beside(groups: Iterator[_Group], device: torch.device) -> Iterator[_Group]:
    """Have each group made while the one before is still trained on; on a processor as they are asked for.

    The work for a group is queued before the steps on the group before it: a stream runs beside another, not ahead of
    it, so at most one group lies ready.

    Args:
        groups: batches with the teachers' answers; drawing one queues the work on the current stream.
        device: where it is done.
    """
    if device.type != "cuda":
        yield from groups
        return
    own, students = torch.cuda.Stream(device), torch.cuda.current_stream(device)

    def start() -> tuple[_Group | None, Any]:
        own.wait_stream(students)  # what the teachers read was written there; and none may run far ahead
        with torch.cuda.stream(own):
            return next(groups, None), own.record_event()

    group, ready = start()
    while group is not None:
        following = start()
        students.wait_event(ready)
        for tensor in tensors_in(group):
            if tensor.device.type != "cpu":
                tensor.record_stream(students)  # or its memory would be taken again while they still read it
        yield group
        group, ready = following


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors within mappings, sequences and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
