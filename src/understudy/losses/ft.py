"""Factor transfer: the teacher paraphrases, the student translates."""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, pool_to_smaller, several, without_autocast
from understudy.losses.functional import above_zero, prepared


class FT(nn.Module):
    """A translation of the student's maps follows a paraphrase of the teacher's.

    `Σ_taps mean |f_s/‖f_s‖ - f_t/‖f_t‖|` of the factors `f_s = T(F_s)` and `f_t = P(F_t)`, the norms over a sample.
    The paraphraser P is the encoder of an autoencoder on the teacher's maps, trained before by minimising
    `reconstruction` (an init stage; without it P stays random); it is fixed in `forward`, where the translator T
    learns with the student.

    Reference: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018
    (https://arxiv.org/abs/1802.04977), with p = 1, and
    https://github.com/Jangho-Kim/Factor-Transfer-pytorch. RepDistiller compares the factors' attention maps (`AT`).

    Args:
        rate: k, the share of the teacher's channels that the factors have.
        batch_norm: after each convolution of P and T.
    """

    def __init__(self, *, rate: float = 0.5, batch_norm: bool = True) -> None:
        super().__init__()
        self.rate = above_zero("rate", rate)
        self.batch_norm = batch_norm
        self.paraphrasers: nn.ModuleList | None = None
        self.translators: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make a paraphraser and a translator for each pair of taps.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        self.paraphrasers, self.translators = nn.ModuleList(), nn.ModuleList()
        for mine, theirs in paired_maps(student, teacher):
            factors = max(1, int(theirs.shape[1] * self.rate))
            self.paraphrasers.append(Paraphraser(theirs.shape[1], factors, batch_norm=self.batch_norm).to(mine))
            self.translators.append(Translator(mine.shape[1], factors, batch_norm=self.batch_norm).to(mine))

    @property
    def pretrained(self) -> nn.ModuleList:
        """What an init stage trains: the paraphrasers."""
        return cast(nn.ModuleList, prepared(self.paraphrasers))

    @without_autocast
    def reconstruction(self, teacher: Features) -> Tensor:
        """What the paraphrasers minimise before the student learns: `Σ_taps mean (P'(P(F_t)) - F_t)²`.

        Args:
            teacher: maps of the teacher, as for `forward`.

        Returns:
            A scalar; its gradient goes to the paraphrasers alone.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        losses = []
        for paraphraser, maps in zip(prepared(self.paraphrasers), several(teacher), strict=True):
            maps = maps.detach()
            losses.append(F.mse_loss(paraphraser.train(self.training)(maps), maps))
        return torch.stack(losses).sum()

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several; the larger of two factors is average-pooled.
            teacher: as many; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        layers = zip(
            prepared(self.translators), prepared(self.paraphrasers), paired_maps(student, teacher), strict=True
        )
        losses = []
        for translator, paraphraser, (mine, theirs) in layers:
            with torch.no_grad():
                # Fixed: its batch norms use what they saw in their own training.
                paraphrased = cast(Paraphraser, paraphraser).eval().encoder(theirs)
            factors = pool_to_smaller(translator(mine), paraphrased)
            translation, paraphrase = (F.normalize(factor.flatten(1), dim=1) for factor in factors)
            losses.append(F.l1_loss(translation, paraphrase))
        return torch.stack(losses).sum()


class Paraphraser(nn.Module):
    """An autoencoder on the teacher's maps.

    Args:
        channels: of the maps.
        factors: channels between encoder and decoder.
        batch_norm: after each convolution.
    """

    def __init__(self, channels: int, factors: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.encoder = _convolutions((channels, channels, factors, factors), nn.Conv2d, batch_norm=batch_norm)
        self.decoder = _convolutions((factors, factors, channels, channels), nn.ConvTranspose2d, batch_norm=batch_norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Take maps apart and put them together again."""
        return self.decoder(self.encoder(maps))


class Translator(nn.Module):
    """From the student's maps to factors.

    Args:
        channels: of the maps.
        factors: channels of what it returns.
        batch_norm: after each convolution.
    """

    def __init__(self, channels: int, factors: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.encoder = _convolutions((channels, channels, factors, factors), nn.Conv2d, batch_norm=batch_norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Translate maps into factors."""
        return self.encoder(maps)


def _convolutions(
    channels: tuple[int, ...], kind: type[nn.Conv2d | nn.ConvTranspose2d], *, batch_norm: bool
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inward, outward in pairwise(channels):
        layers.append(kind(inward, outward, 3, padding=1, bias=not batch_norm))
        layers.append(nn.BatchNorm2d(outward) if batch_norm else nn.Identity())
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)
