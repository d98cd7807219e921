"""Mathematics that several losses share."""

import torch
from torch import Tensor


def in_float32(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Raise half-precision tensors to float32; wider ones stay as they are.

    Args:
        tensors: any floating-point tensors.

    Returns:
        The same tensors, in float32 where they were float16 or bfloat16.
    """
    half = (torch.float16, torch.bfloat16)
    return tuple(tensor.float() if tensor.dtype in half else tensor for tensor in tensors)


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse student and teacher tensors that cannot be compared element by element.

    Raises:
        ValueError: their shapes differ, which broadcasting would hide.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape: "
            "give both the same classes, or an adapter between the taps"
        )
