"""The process that turns images into noise, and what a network's output says about the image behind it.

Time t runs from 0 (the image) to 1 (noise). At each t an image x is mixed with noise as z = alpha x + sigma eps, with
alpha² + sigma² = 1; `logsnr` is log(alpha² / sigma²). Tensors have the batch first and may be images or latents.

References: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022
(https://arxiv.org/abs/2202.00512); Kingma et al., "Variational Diffusion Models", 2021
(https://arxiv.org/abs/2107.00630).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.errors import UserError
from understudy.tasks.diffusion.settings import Prediction, Weighting

# model(z, t, y): z (N, ...), t (N,) in [0, 1], y what it is conditioned on (class numbers, say) or None.
Model = Callable[[Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Denoised:
    """What is known about an image in noise; any one of the three gives the others.

    Args:
        x: the image.
        eps: the noise.
        v: alpha eps - sigma x, the direction in which z moves along the circle of alpha and sigma.
    """

    x: Tensor
    eps: Tensor
    v: Tensor


@dataclass(frozen=True)
class Process:
    """A cosine schedule between two limits, and how a network's output is to be read.

    logsnr(t) = -2 log tan(a t + b), with a and b such that it falls from `logsnr_max` at 0 to `logsnr_min` at 1.

    Args:
        logsnr_min: at t = 1, noise.
        logsnr_max: at t = 0, the image.
        prediction: what the network gives: `x`, `eps`, `v`, or `both` (twice the channels, x first, then eps).
        clip: whether x is cut to [-1, 1]; eps and v are then those of the image that was cut.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    prediction: Prediction = "v"
    clip: bool = False

    def logsnr(self, t: Tensor) -> Tensor:
        """Log of the signal-to-noise ratio at times t in [0, 1]."""
        begin = math.atan(math.exp(-0.5 * self.logsnr_max))
        end = math.atan(math.exp(-0.5 * self.logsnr_min))
        return -2 * torch.log(torch.tan((end - begin) * t + begin))

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma at times t, shaped to be multiplied with `like`."""
        return scales(spread(self.logsnr(t), like))

    def diffuse(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy z = alpha x + sigma eps at times t (N,)."""
        alpha, sigma = self.scales(t, x)
        return alpha * x + sigma * eps

    def denoise(self, model: Model, z: Tensor, t: Tensor, y: Any = None) -> Denoised:
        """What a model says about the images behind z.

        Args:
            model: called as `model(z, t, y)`; answers in this process' prediction.
            z: (N, ...) noisy images at times t.
            t: (N,) in [0, 1].
            y: what the model is conditioned on.
        """
        return self.interpret(model(z, t, y).to(z.dtype), z, self.logsnr(t))

    def interpret(self, output: Tensor, z: Tensor, logsnr: Tensor) -> Denoised:
        """Read a network's output.

        Args:
            output: as the network gave it, in this process' prediction.
            z: (N, ...) what it was given.
            logsnr: (N,) of z.

        Raises:
            UserError: the output does not have the shape that the prediction asks for.
        """
        wanted = (len(z), 2 * z.shape[1], *z.shape[2:]) if self.prediction == "both" else tuple(z.shape)
        if tuple(output.shape) != wanted:
            raise UserError(
                f"a network that predicts '{self.prediction}' gives {wanted} for images of {tuple(z.shape)}, this one "
                f"gives {tuple(output.shape)}: is it one of another prediction?"
            )
        logsnr = spread(logsnr, z)
        alpha, sigma = scales(logsnr)
        if self.prediction == "eps":
            x = x_from_eps(z, output, logsnr)
        elif self.prediction == "v":
            x = alpha * z - sigma * output
        elif self.prediction == "both":
            direct, eps = output.chunk(2, dim=1)
            share = torch.sigmoid(-logsnr)  # in noise the image is trusted, near the image the noise is
            x = share * direct + (1 - share) * x_from_eps(z, eps, logsnr)
        else:
            x = output
        if self.clip:
            return completed(x.clamp(-1, 1), z, logsnr)
        if self.prediction == "eps":
            return Denoised(x, output, alpha * output - sigma * x)
        if self.prediction == "v":
            # The same as (z - alpha x) / sigma, without the division by a sigma near zero.
            return Denoised(x, sigma * z + alpha * output, output)
        return completed(x, z, logsnr)

    def complete(self, x: Tensor, z: Tensor, t: Tensor) -> Denoised:
        """The noise and direction that an image x in z at times t (N,) means."""
        return completed(x, z, spread(self.logsnr(t), z))


def completed(x: Tensor, z: Tensor, logsnr: Tensor) -> Denoised:
    """The noise and direction that an image x in z means; `logsnr` is shaped like z."""
    alpha, sigma = scales(logsnr)
    eps = eps_from_x(z, x, logsnr)
    return Denoised(x, eps, alpha * eps - sigma * x)


def scales(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma: how much image and how much noise there is."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One number a sample, shaped to be multiplied with a batch."""
    return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values


def x_from_eps(z: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """The image, from the noise: x = (z - sigma eps) / alpha; `logsnr` is shaped like z."""
    return torch.sqrt(1 + torch.exp(-logsnr)) * (z - eps * torch.rsqrt(1 + torch.exp(logsnr)))


def x_from_v(z: Tensor, v: Tensor, logsnr: Tensor) -> Tensor:
    """The image, from the direction: x = alpha z - sigma v; `logsnr` is shaped like z."""
    alpha, sigma = scales(logsnr)
    return alpha * z - sigma * v


def eps_from_x(z: Tensor, x: Tensor, logsnr: Tensor) -> Tensor:
    """The noise, from the image: eps = (z - alpha x) / sigma; `logsnr` is shaped like z."""
    return torch.sqrt(1 + torch.exp(logsnr)) * (z - x * torch.rsqrt(1 + torch.exp(-logsnr)))


def v_from_x_and_eps(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """The direction: v = alpha eps - sigma x; `logsnr` is shaped like x."""
    alpha, sigma = scales(logsnr)
    return alpha * eps - sigma * x


def weighted_error(found: Denoised, wanted: Denoised, weighting: Weighting) -> Tensor:
    """How far a prediction is from its target, as the training losses weigh it.

    `constant` is the mean squared error of x; `snr` that of eps, which is SNR times as much; `v_mse` that of v,
    SNR + 1 times; `snr_trunc` the larger of the first two, max(SNR, 1) times. All are taken on what the output means,
    whatever the network predicts.

    Args:
        found: of the student.
        wanted: the target.
        weighting: one of the four.

    Returns:
        (N,) one error a sample.
    """
    if weighting == "constant":
        return _mean_square(found.x, wanted.x)
    if weighting == "snr":
        return _mean_square(found.eps, wanted.eps)
    if weighting == "v_mse":
        return _mean_square(found.v, wanted.v)
    return torch.maximum(_mean_square(found.x, wanted.x), _mean_square(found.eps, wanted.eps))


def _mean_square(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().flatten(1).mean(1)
