"""Contrastive representation distillation: tell a sample's pair of embeddings from thousands of others."""

import torch
from torch import Tensor, nn

from understudy.losses.alias import AliasSampler
from understudy.losses.crd_memory import Contrast
from understudy.losses.features import without_autocast
from understudy.losses.functional import of_all_processes


class _WithMemory(nn.Module):
    contrast: Contrast

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the embeddings.

        Args:
            student: example features.
            teacher: example features.
        """
        self.contrast.prepare(student, teacher)
        self.to(student.device)


class CRD(_WithMemory):
    """Student and teacher embeddings of one sample go together, those of samples of other classes apart.

    With h = exp(⟨e_s, e_t⟩ / τ) / Z, K negatives out of n samples and D = h / (h + K/n), for both directions:
    `-log D(positive) - Σ_K log(1 - D(negative))`. A memory holds embeddings of all training samples, as many
    negatives as wanted cost no forward.

    Reference: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020
    (https://arxiv.org/abs/1910.10699), equations 9 to 19; code https://github.com/HobbitLong/RepDistiller (BSD-2).
    Negatives are drawn on the device in each step rather than by the data loader, and Z, estimated from the first
    batch as there, is part of the state.

    Args:
        samples: n, how many training samples there are; `sample_ids` lie below it.
        negatives: K.
        temperature: τ.
        momentum: how much of its memory a sample keeps when it is seen again.
        width: of the embeddings.
    """

    classes: Tensor

    def __init__(
        self,
        *,
        samples: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.contrast = Contrast(samples=samples, width=width, temperature=temperature, momentum=momentum)
        # Filled as batches come; a sample not seen yet counts as of another class.
        self.register_buffer("classes", torch.full((samples,), -1))

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor, *, sample_ids: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss and update the memory.

        Args:
            student: (N, D) embeddings, or (N, D, H, W) maps that are averaged.
            teacher: (N, E) or (N, E, H, W); it gets no gradient, but its embedding learns.
            sample_ids: (N,) numbers of the samples, below `samples`.
            labels: (N,) class numbers.

        Returns:
            A scalar.
        """
        if labels.ndim != 1:
            raise ValueError("CRD draws samples of other classes, and mixed labels have none: take crd_instance")
        self.classes[of_all_processes(sample_ids)] = of_all_processes(labels)
        others = self._of_other_classes(labels)
        return self.contrast(student, teacher, torch.cat([sample_ids[:, None], others], dim=1))

    def _of_other_classes(self, labels: Tensor) -> Tensor:
        """(N, K) samples, drawn evenly from those of other classes than each label."""
        in_order, order = torch.sort(self.classes, stable=True)
        first = torch.searchsorted(in_order, labels)[:, None]
        count = torch.searchsorted(in_order, labels, right=True)[:, None] - first
        left = (len(order) - count).clamp(min=1)
        uniform = torch.rand(len(labels), self.negatives, device=labels.device)
        position = (uniform * left).long().clamp(max=left - 1)
        # The samples sorted by class are numbered as if those of one's own class were cut out.
        position = torch.where(position < first, position, position + count).clamp(max=len(order) - 1)
        return order[position]


class CRDInstance(_WithMemory):
    """Student and teacher embeddings of one sample go together, those of all other samples apart.

    `-log D(positive) - Σ_K log(1 - D(negative))` as in `CRD`, but negatives come from all n samples, as when no
    labels are known: among them are samples of the same class, and now and then the sample itself.

    Reference: Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020
    (https://arxiv.org/abs/1910.10699), its policy i ≠ j; code https://github.com/HobbitLong/RepDistiller (BSD-2),
    whose memory draws so when it is given no indices, by the alias method. Other weights than even ones:
    `loss.sampler = AliasSampler(weights)`.

    Args:
        samples: n, how many training samples there are; `sample_ids` lie below it.
        negatives: K.
        temperature: of the similarities.
        momentum: how much of its memory a sample keeps when it is seen again.
        width: of the embeddings.
    """

    def __init__(
        self,
        *,
        samples: int,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.sampler = AliasSampler(torch.ones(samples))
        self.contrast = Contrast(samples=samples, width=width, temperature=temperature, momentum=momentum)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor, *, sample_ids: Tensor) -> Tensor:
        """Compute the loss and update the memory.

        Args:
            student: (N, D) embeddings, or (N, D, H, W) maps that are averaged.
            teacher: (N, E) or (N, E, H, W); it gets no gradient, but its embedding learns.
            sample_ids: (N,) numbers of the samples, below `samples`.

        Returns:
            A scalar.
        """
        others = self.sampler.draw(len(sample_ids), self.negatives)
        return self.contrast(student, teacher, torch.cat([sample_ids[:, None], others], dim=1))
