"""Classifier-free guidance: away from what any image would be, towards the class; and a student that has learnt it.

References: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022 (https://arxiv.org/abs/2207.12598); Meng et al.,
"On Distillation of Guided Diffusion Models", CVPR 2023 (https://arxiv.org/abs/2210.03142).
"""

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.tasks.diffusion.network import Network
from understudy.tasks.diffusion.process import Model


class Guided:
    """A model with guidance: (1 + w) model(z, t, y) - w model(z, t, null), in whatever the model predicts.

    Args:
        model: called as `model(z, t, y)`, trained with some labels replaced by `null`.
        null: the class number that means "no class".
        strength: w, for all images; None where each y brings its own (see `with_guidance`).
    """

    def __init__(self, model: Model, null: int, strength: float | None = None) -> None:
        self.model = model
        self.null = null
        self.strength = strength

    def __call__(self, z: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Answer with guidance: the model is asked twice."""
        if y is None:
            raise UserError("guidance is towards a class: say which")
        if self.strength is None:
            y, strength = y[:, 0].round().long(), y[:, 1].reshape(-1, *[1] * (z.ndim - 1))
        else:
            strength = self.strength
        towards, away = self.model(z, t, y), self.model(z, t, torch.full_like(y, self.null))
        return (1 + strength) * towards - strength * away


def with_guidance(labels: Tensor, strength: Tensor | float) -> Tensor:
    """Class numbers with the strength of guidance beside each, as networks that have learnt guidance take them.

    Args:
        labels: (N,) class numbers.
        strength: (N,) or one number.

    Returns:
        (N, 2) float32.
    """
    strengths = torch.as_tensor(strength, dtype=torch.float32, device=labels.device).expand(len(labels))
    return torch.stack([labels.float(), strengths], dim=1)


class ClassAndStrength(nn.Module):
    """The embedding of class and strength in one: that of the class plus a small network of the strength.

    At the start the strength changes nothing: the student begins as the model without guidance.

    Args:
        embedding: of the classes.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        width = embedding.embedding_dim
        self.strength = nn.Sequential(nn.Linear(_WAVES, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.strength[2].weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.strength[2].bias)  # pyright: ignore[reportArgumentType]

    def forward(self, y: Tensor) -> Tensor:
        """Embed (N, 2): class numbers and strengths."""
        return self.embedding(y[:, 0].round().long()) + self.strength(_waves(y[:, 1]).to(self.embedding.weight.dtype))


_WAVES = 32


def _waves(values: Tensor) -> Tensor:
    """Sines and cosines of the strength, from slow to fast."""
    frequencies = torch.exp(torch.linspace(-2.0, 2.0, _WAVES // 2, device=values.device))
    angles = values[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def learns_guidance(network: Network) -> Network:
    """Give a class-conditional network a place for the strength of guidance, in place.

    Raises:
        UserError: the network takes no classes.
    """
    embedding = network.unet.class_embedding
    if not isinstance(embedding, nn.Embedding):
        raise UserError("guidance needs a network that knows classes")
    network.unet.class_embedding = ClassAndStrength(embedding)  # pyright: ignore[reportAttributeAccessIssue]
    return network


@torch.no_grad()
def at_strength(network: Network, strength: float) -> Network:
    """A network that has learnt guidance, at one strength: a plain class-conditional one, in place.

    The embedding of the strength is added to that of every class, so that nothing else needs to know of it.
    """
    both = network.unet.class_embedding
    assert isinstance(both, ClassAndStrength)
    numbers = torch.arange(both.embedding.num_embeddings, device=both.embedding.weight.device)
    both.embedding.weight.copy_(both(with_guidance(numbers, strength)))
    network.unet.class_embedding = both.embedding
    return network


def has_guidance(network: nn.Module) -> bool:
    """Whether a network takes the strength of guidance beside the class."""
    return isinstance(network, Network) and isinstance(network.unet.class_embedding, ClassAndStrength)
