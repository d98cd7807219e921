"""Steps from noise towards an image, whole samplers made of them, and the target that makes one step do for two.

Everything here works on any callable `model(z, t, y)`: a UNet, a transformer, a formula; on images and on latents.

References: Song, Meng and Ermon, "Denoising Diffusion Implicit Models", ICLR 2021 (https://arxiv.org/abs/2010.02502);
Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (https://arxiv.org/abs/2006.11239);
Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022
(https://arxiv.org/abs/2202.00512).
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.errors import UserError, did_you_mean
from understudy.tasks.diffusion.process import Denoised, Model, Process, scales, spread

Sampler = Literal["ddim", "noisy", "consistency"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "noisy", "consistency")

_V = Process()


def ddim_step(model: Model, z: Tensor, t: Tensor, s: Tensor, y: Any = None, *, process: Process = _V) -> Tensor:
    """One deterministic step: z_s = alpha_s x + sigma_s eps, with the x and eps that the model sees in z_t.

    A step to time 0 gives x itself.

    Args:
        model: called as `model(z, t, y)`.
        z: (N, ...) at times t.
        t: (N,) from where.
        s: (N,) to where, earlier than t.
        y: what the model is conditioned on.
        process: the schedule and the model's prediction.
    """
    return move(process.denoise(model, z, t, y), s, process)


def move(found: Denoised, s: Tensor, process: Process) -> Tensor:
    """The z at times s (N,) of what is known about an image; at time 0 the image itself."""
    return torch.where(spread(s, found.x) == 0, found.x, process.diffuse(found.x, found.eps, s))


def reverse(x: Tensor, z: Tensor, *, logsnr_t: Tensor, logsnr_s: Tensor, variance: float) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of an earlier z, given the image and the present z.

    mean = r (alpha_s / alpha_t) z + (1 - r) alpha_s x with r = SNR_t / SNR_s. The variance lies between
    (1 - r) sigma_s² (that of the true posterior, small) and (1 - r) sigma_t² (large): their logarithms are mixed.

    Args:
        x: (N, ...) the images.
        z: (N, ...) at logsnr_t.
        logsnr_t: (N,) of z.
        logsnr_s: (N,) of the earlier time.
        variance: share of the large one, 0 to 1.

    Returns:
        The mean, and the log-variance shaped to be broadcast with it.
    """
    logsnr_t, logsnr_s = spread(logsnr_t, z), spread(logsnr_s, z)
    ratio = torch.exp(logsnr_t - logsnr_s)
    rest = -torch.expm1(logsnr_t - logsnr_s)
    alpha_s, alpha_t = scales(logsnr_s)[0], scales(logsnr_t)[0]
    mean = ratio * (alpha_s / alpha_t) * z + rest * alpha_s * x
    log_variance = rest.log() + variance * F.logsigmoid(-logsnr_t) + (1 - variance) * F.logsigmoid(-logsnr_s)
    return mean, log_variance


def noisy_step(
    model: Model,
    z: Tensor,
    t: Tensor,
    s: Tensor,
    y: Any = None,
    *,
    noise: Tensor,
    variance: float = 1.0,
    process: Process = _V,
) -> Tensor:
    """One stochastic (ancestral) step, with a variance between the smallest and the largest sensible one.

    A step to time 0 gives x itself, without noise.

    Args:
        model: called as `model(z, t, y)`.
        z: (N, ...) at times t.
        t: (N,) from where.
        s: (N,) to where, earlier than t.
        y: what the model is conditioned on.
        noise: like z, standard normal.
        variance: share of the large one, 0 to 1, mixed in logarithms.
        process: the schedule and the model's prediction.
    """
    x = process.denoise(model, z, t, y).x
    mean, log_variance = reverse(x, z, logsnr_t=process.logsnr(t), logsnr_s=process.logsnr(s), variance=variance)
    return torch.where(spread(s, x) == 0, x, mean + torch.exp(0.5 * log_variance) * noise)


def consistency_step(
    model: Model, z: Tensor, t: Tensor, s: Tensor, y: Any = None, *, noise: Tensor, process: Process = _V
) -> Tensor:
    """One step of a consistency model: the image that it sees, in new noise.

    Reference: Song et al., "Consistency Models", ICML 2023 (https://arxiv.org/abs/2303.01469), algorithm 1.

    Args:
        model: called as `model(z, t, y)`.
        z: (N, ...) at times t.
        t: (N,) from where.
        s: (N,) to where, earlier than t.
        y: what the model is conditioned on.
        noise: like z, standard normal.
        process: the schedule and the model's prediction.
    """
    x = process.denoise(model, z, t, y).x
    return torch.where(spread(s, x) == 0, x, process.diffuse(x, noise, s))


def image_for_jump(z_t: Tensor, z_s: Tensor, t: Tensor, s: Tensor, process: Process = _V) -> Tensor:
    """The image x with which a single DDIM step leads from z_t to z_s.

    x = (z_s - f z_t) / (alpha_s - f alpha_t), with f = sigma_s / sigma_t; at s = 0, z_s itself.

    Args:
        z_t: (N, ...) where the step starts.
        z_s: (N, ...) where it has to end.
        t: (N,) time of z_t.
        s: (N,) time of z_s, earlier.
        process: the schedule.
    """
    logsnr_t, logsnr_s = spread(process.logsnr(t), z_t), spread(process.logsnr(s), z_t)
    factor = torch.exp(0.5 * (F.softplus(logsnr_t) - F.softplus(logsnr_s)))
    x = (z_s - factor * z_t) / (scales(logsnr_s)[0] - factor * scales(logsnr_t)[0])
    return torch.where(spread(s, z_t) == 0, z_s, x)


@torch.no_grad()
def two_step_target(
    teacher: Model, z: Tensor, step: Tensor, steps: int, y: Any = None, *, process: Process = _V
) -> Denoised:
    """What a student has to see in z so that one of its steps ends where two steps of the teacher end.

    Reference: Salimans and Ho 2022, algorithm 2. The student takes `steps` steps, the teacher twice as many; both go
    from t = (step + 1) / steps to step / steps. In the last step (to time 0) the target is the teacher's image at the
    midpoint.

    Args:
        teacher: called as `teacher(z, t, y)`; no gradient goes through it.
        z: (N, ...) at times (step + 1) / steps.
        step: (N,) whole numbers from 0 (the last step, to the image) to steps - 1 (the first).
        steps: of the student.
        y: what the teacher is conditioned on.
        process: the schedule and the teacher's prediction.
    """
    t, middle, s = ((step.to(z.dtype) + part) / steps for part in (1.0, 0.5, 0.0))
    z_middle = ddim_step(teacher, z, t, middle, y, process=process)
    z_s = ddim_step(teacher, z_middle, middle, s, y, process=process)
    return process.complete(image_for_jump(z, z_s, t, s, process), z, t)


@torch.no_grad()
def trajectory(
    model: Model,
    noise: Tensor,
    steps: int,
    y: Any = None,
    *,
    process: Process = _V,
    sampler: Sampler = "ddim",
    variance: float = 1.0,
    draw: Callable[[int], Tensor] | None = None,
) -> Iterator[Tensor]:
    """The z after each step from noise to image; the last is the image.

    Args:
        model: called as `model(z, t, y)`.
        noise: (N, ...) where to start, standard normal.
        steps: how many; any number.
        y: what the model is conditioned on.
        process: the schedule and the model's prediction; with its `clip`, images are cut to [-1, 1] at each step.
        sampler: `ddim`, `noisy` or `consistency`.
        variance: of the noisy one: share of the large variance.
        draw: gives the noise of step i (from steps - 1 down to 0); by default from torch's global generator.

    Raises:
        UserError: an unknown sampler, or fewer steps than one.
    """
    if sampler not in SAMPLERS:
        raise UserError(f"there is no sampler '{sampler}', {did_you_mean(sampler, SAMPLERS)}")
    if steps < 1:
        raise UserError(f"an image takes at least one step, not {steps}")
    draw = draw or (lambda _: torch.randn_like(noise))
    z = noise
    for step in reversed(range(steps)):
        t, s = (torch.full((len(z),), place / steps, dtype=z.dtype, device=z.device) for place in (step + 1, step))
        if sampler == "ddim":
            z = ddim_step(model, z, t, s, y, process=process)
        elif sampler == "noisy":
            z = noisy_step(model, z, t, s, y, noise=draw(step), variance=variance, process=process)
        else:
            z = consistency_step(model, z, t, s, y, noise=draw(step), process=process)
        yield z


def sample(model: Model, noise: Tensor, steps: int, y: Any = None, **how: Any) -> Tensor:
    """Images from noise in a number of steps.

    Args:
        model: called as `model(z, t, y)`.
        noise: (N, ...) where to start, standard normal.
        steps: how many.
        y: what the model is conditioned on.
        how: `process`, `sampler`, `variance`, `draw`, as for `trajectory`.
    """
    return deque(trajectory(model, noise, steps, y, **how), maxlen=1).pop()
