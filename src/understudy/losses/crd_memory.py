"""The memory of contrastive distillation: an embedding of each training sample by both models."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import in_float32, of_all_processes, pooled, prepared

_EPS = 1e-7
# Scores of all samples are one matrix product, those of chosen ones are gathered rows: how much dearer each is.
_GATHER_COST = {"cpu": 10, "cuda": 30}


class Contrast(nn.Module):
    """Embeds both sides, contrasts them with the memory, and keeps the memory up to date.

    Of several processes each contrasts its own samples and remembers those of all, so that their memories stay equal.

    Args:
        samples: how many training samples there are.
        width: of the embeddings.
        temperature: of the similarities.
        momentum: how much of its memory a sample keeps when it is seen again.
    """

    of_student: Tensor
    of_teacher: Tensor
    scale_student: Tensor
    scale_teacher: Tensor

    def __init__(self, *, samples: int, width: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        bound = 1 / math.sqrt(width / 3)
        for name in ("of_student", "of_teacher"):
            self.register_buffer(name, torch.empty(samples, width).uniform_(-bound, bound))
        # What scores are divided by; below 0 until the first batch has set it.
        for name in ("scale_student", "scale_teacher"):
            self.register_buffer(name, torch.tensor(-1.0))
        self.embed_student: nn.Linear | None = None
        self.embed_teacher: nn.Linear | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the embeddings.

        Args:
            student: example features.
            teacher: example features.
        """
        width, device = self.of_student.shape[1], student.device
        self.embed_student = nn.Linear(pooled(student).shape[1], width, device=device)
        self.embed_teacher = nn.Linear(pooled(teacher).shape[1], width, device=device)
        self.to(device)

    def forward(self, student: Tensor, teacher: Tensor, indices: Tensor) -> Tensor:
        """Contrast a batch, then remember it.

        Args:
            student: (N, D) embeddings or (N, D, H, W) maps.
            teacher: (N, E) or (N, E, H, W).
            indices: (N, 1 + K) samples: each one's own, then those to tell it from.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        student = F.normalize(prepared(self.embed_student)(pooled(student)), dim=1)
        teacher = F.normalize(prepared(self.embed_teacher)(pooled(teacher)), dim=1)
        # Each side is compared with the other's memory.
        loss = self._side(student, self.of_teacher, self.scale_student, indices)
        loss = loss + self._side(teacher, self.of_student, self.scale_teacher, indices)
        samples = of_all_processes(indices[:, 0])
        self._remember(self.of_student, of_all_processes(student.detach()), samples)
        self._remember(self.of_teacher, of_all_processes(teacher.detach()), samples)
        return loss

    def _side(self, embedded: Tensor, memory: Tensor, scale: Tensor, indices: Tensor) -> Tensor:
        scores = (_products(embedded, memory, indices) / self.temperature).exp()
        with torch.no_grad():
            # Chosen on the device: asking whether it is set would wait for a GPU.
            first = of_all_processes(scores.mean(dim=1)).mean() * len(memory)
            scale.copy_(torch.where(scale > 0, scale, first))
        return contrast_loss(scores / scale.clone(), samples=len(memory))

    @torch.no_grad()
    def _remember(self, memory: Tensor, embedded: Tensor, samples: Tensor) -> None:
        mixed = self.momentum * memory[samples] + (1 - self.momentum) * embedded
        memory[samples] = F.normalize(mixed, dim=1).to(memory.dtype)


def contrast_loss(scores: Tensor, *, samples: int) -> Tensor:
    """Noise-contrastive estimation: is each pair from one sample, or from K even draws out of all?

    Args:
        scores: (N, 1 + K) above 0, the first of each row from the same sample.
        samples: how many there are to draw from.

    Returns:
        A scalar: both kinds of errors, summed over pairs, averaged over the batch.
    """
    noise = (scores.shape[1] - 1) / samples
    positive, negative = scores[:, 0], scores[:, 1:]
    same = (positive / (positive + noise + _EPS)).log().sum()
    different = (noise / (negative + noise + _EPS)).log().sum()
    return -(same + different) / len(scores)


def _products(embedded: Tensor, memory: Tensor, indices: Tensor) -> Tensor:
    """(N, 1 + K) inner products of each embedding with the rows of the memory it is given."""
    device = memory.device.type
    if len(memory) <= _GATHER_COST.get(device, 10) * indices.shape[1]:
        # The memory changes before backward reads it.
        return (embedded @ memory.clone().mT).gather(1, indices)
    if device == "cpu":  # a sample at a time, whose rows are still in the cache when they are multiplied
        pairs = zip(indices, embedded, strict=True)
        return torch.stack([memory.index_select(0, rows).mv(own) for rows, own in pairs])
    gathered = memory.index_select(0, indices.flatten()).view(*indices.shape, -1)
    return (gathered @ embedded[:, :, None])[:, :, 0]
