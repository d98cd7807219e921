"""A student that starts from the teacher's tensors instead of random ones."""

import re

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"\.(\d+)\.")


@torch.no_grad()
def start_from(student: nn.Module, teacher: nn.Module, *, blocks: bool = False) -> int:
    """Copy into a student what the teacher has under the same name and of the same shape.

    Args:
        student: changed in place.
        teacher: left as it is.
        blocks: where the student has fewer blocks of a kind than the teacher, take every k-th of the teacher's, the
            last among them (Sanh et al., "DistilBERT", 2019, take one of two).

    Returns:
        How many tensors were copied.
    """
    source, copied = teacher.state_dict(), 0
    depths = (_depths(student.state_dict()), _depths(source)) if blocks else ({}, {})
    for name, tensor in student.state_dict().items():
        found = source.get(_in_teacher(name, *depths))
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)
            copied += 1
    return copied


def _depths(tensors: dict[str, Tensor]) -> dict[str, int]:
    """How many blocks stand below each path: `blocks` to 12."""
    depths: dict[str, int] = {}
    for name in tensors:
        for number in _BLOCK.finditer(name):
            path = name[: number.start()]
            depths[path] = max(depths.get(path, 0), int(number.group(1)) + 1)
    return depths


def _in_teacher(name: str, own: dict[str, int], theirs: dict[str, int]) -> str:
    """The name in the teacher of a tensor of the student: of a shallower stack, in every k-th block."""
    number = _BLOCK.search(name)
    if number is None:
        return name
    path, block = name[: number.start()], int(number.group(1))
    depth, wanted = own.get(path, 0), theirs.get(path, 0)
    if not 0 < depth < wanted:
        return name
    return f"{path}.{(block + 1) * wanted // depth - 1}.{name[number.end() :]}"
