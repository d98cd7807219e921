"""Steps, samplers and the two-step target: what must hold whatever the model is."""

import math

import pytest
import torch
from torch import nn

from understudy.errors import UserError
from understudy.tasks.diffusion import (
    Process,
    ddim_step,
    image_for_jump,
    noisy_step,
    sample,
    trajectory,
    two_step_target,
)
from understudy.tasks.diffusion.draw import draw
from understudy.tasks.diffusion.noise import normal
from understudy.tasks.diffusion.steps import reverse


class Gauss:
    """The best denoiser of normal data; gives x."""

    def __init__(self, process: Process, mean: float = 0.3, deviation: float = 0.45) -> None:
        self.process, self.mean, self.deviation = process, mean, deviation

    def __call__(self, z, t, y=None):
        alpha, sigma = self.process.scales(t, z)
        variance = self.deviation**2
        return (alpha * variance * z + sigma**2 * self.mean) / (alpha**2 * variance + sigma**2)


class Perfect:
    """A student that gives the two-step target of its teacher."""

    def __init__(self, teacher, steps, process):
        self.teacher, self.steps, self.process = teacher, steps, process

    def __call__(self, z, t, y=None):
        step = (t * self.steps).round().long() - 1
        return two_step_target(self.teacher, z, step, self.steps, y, process=self.process).x


@pytest.mark.parametrize("start", [8, 12])
def test_students_that_learn_perfectly_give_the_teachers_sample(start):
    process = Process(prediction="x")
    noise = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    model = Gauss(process)
    wanted = sample(model, noise, start, process=process)
    steps = start
    while steps % 2 == 0:
        steps //= 2
        model = Perfect(model, steps, process)
        ours = sample(model, noise, steps, process=process)
        assert (ours - wanted).abs().max() <= 1e-12


def test_the_target_is_the_image_with_which_one_step_does_for_two():
    process = Process(-12.0, 12.0, "v")
    model = lambda z, t, y: torch.tanh(z) - 0.3 * z  # noqa: E731
    z = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    step = torch.tensor([7, 3, 1, 2])
    t, middle, s = ((step + part) / 8 for part in (1.0, 0.5, 0.0))
    two = ddim_step(
        model, ddim_step(model, z, t.double(), middle.double()), middle.double(), s.double(), process=process
    )
    two = ddim_step(
        model,
        ddim_step(model, z, t.double(), middle.double(), process=process),
        middle.double(),
        s.double(),
        process=process,
    )
    target = two_step_target(model, z, step, 8, process=process)
    one = ddim_step(lambda *_: target.v, z, t.double(), s.double(), process=process)
    assert torch.allclose(one, two, atol=1e-12)


def test_the_last_steps_target_is_the_teachers_image_at_the_midpoint():
    process = Process(prediction="x")
    model = Gauss(process)
    z = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    whole, half = torch.full((3,), 0.25, dtype=torch.float64), torch.full((3,), 0.125, dtype=torch.float64)
    middle = ddim_step(model, z, whole, half, process=process)
    target = two_step_target(model, z, torch.zeros(3, dtype=torch.long), 4, process=process)
    assert torch.equal(target.x, model(middle, half))


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Conv2d(1, 1, 1)
    target = two_step_target(lambda z, t, y: teacher(z), torch.randn(2, 1, 2, 2), torch.tensor([0, 1]), 2)
    assert not target.x.requires_grad


def test_the_image_for_a_jump_is_what_a_step_was_made_of():
    process = Process(-6.0, 6.0, "x")
    x, z = torch.randn(2, 5, 3, dtype=torch.float64)
    t, s = torch.tensor([0.9] * 5, dtype=torch.float64), torch.tensor([0.4] * 4 + [0.0], dtype=torch.float64)
    there = ddim_step(lambda *_: x, z, t, s, process=process)
    assert torch.allclose(image_for_jump(z, there, t, s, process), x)


def test_the_stochastic_step_draws_from_the_true_posterior_of_normal_data():
    # With all of the small variance, the step is the posterior of z_s given x and z_t, known in closed form.
    low, high = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    x, z = torch.randn(2, 1, 4, dtype=torch.float64)
    mean, log_variance = reverse(x, z, logsnr_t=low, logsnr_s=high, variance=0.0)
    (a_t, s_t), (a_s, s_s) = (
        (math.sqrt(1 / (1 + math.exp(-v))), math.sqrt(1 / (1 + math.exp(v)))) for v in (-1.0, 2.0)
    )
    between = a_t / a_s
    added = s_t**2 - between**2 * s_s**2
    variance = 1 / (1 / s_s**2 + between**2 / added)
    wanted = variance * (a_s * x / s_s**2 + between * z / added)
    assert torch.allclose(mean, wanted)
    assert log_variance.exp().item() == pytest.approx(variance)


def test_the_last_stochastic_step_adds_no_noise():
    process = Process(prediction="x")
    z = torch.randn(2, 1, 2, 2)
    t, s = torch.full((2,), 0.25), torch.zeros(2)
    ours = noisy_step(Gauss(process), z, t, s, noise=torch.full_like(z, 1e6), process=process)
    assert torch.equal(ours, Gauss(process)(z, t))


@pytest.mark.parametrize("sampler", ["ddim", "noisy", "consistency"])
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_any_number_of_steps_samples_the_data(sampler, steps):
    process = Process(prediction="x")
    images = sample(Gauss(process), torch.randn(4000, 1), steps, process=process, sampler=sampler)
    assert images.mean().item() == pytest.approx(0.3, abs=0.05)
    if steps == 7 and sampler != "consistency":
        assert images.std().item() == pytest.approx(0.45, abs=0.12)


def test_pieces_take_latents_and_models_of_ones_own():
    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.time = nn.Linear(6, 6), nn.Linear(1, 6)

        def forward(self, tokens, t, y):
            return self.mix(tokens) + self.time(t[:, None])[:, None] + y[:, None, None]

    tokens = torch.randn(3, 5, 6)
    y = torch.tensor([0.0, 1.0, 2.0])
    model = Transformer()
    assert two_step_target(model, tokens, torch.tensor([0, 1, 3]), 4, y).x.shape == tokens.shape
    assert sample(model, tokens, 4, y).shape == tokens.shape


def test_the_path_ends_with_the_sample():
    process = Process(prediction="x")
    noise = torch.randn(2, 1, 4, 4)
    path = list(trajectory(Gauss(process), noise, 5, process=process))
    assert len(path) == 5
    assert torch.equal(path[-1], sample(Gauss(process), noise, 5, process=process))


def test_wrong_samplers_and_steps_are_refused():
    with pytest.raises(UserError, match="no sampler 'ddpm'"):
        sample(lambda z, t, y: z, torch.randn(1, 1), 2, sampler="ddpm")
    with pytest.raises(UserError, match="at least one step"):
        list(trajectory(lambda z, t, y: z, torch.randn(1, 1), 0))


@pytest.mark.parametrize("sampler", ["ddim", "noisy"])
def test_an_image_is_the_same_whatever_is_drawn_beside_it(sampler):
    process = Process(prediction="x")
    how = {"process": process, "shape": (1, 3, 3), "steps": 3, "seed": 5, "sampler": sampler}
    many = draw(Gauss(process), count=130, **how)
    assert torch.allclose(draw(Gauss(process), count=30, first=100, **how), many[100:])
    assert not torch.allclose(draw(Gauss(process), count=30, first=100, **{**how, "seed": 6}), many[100:])


def test_keyed_noise_is_normal():
    numbers = normal(1, range(2000), (5, 5)).double()
    assert numbers.mean().item() == pytest.approx(0, abs=0.02)
    assert numbers.std().item() == pytest.approx(1, abs=0.02)
    assert (numbers**4).mean().item() == pytest.approx(3, abs=0.1)
    # Neither pixels nor images depend on each other.
    flat = numbers.flatten(1)
    assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 0.15
    assert torch.equal(normal(1, [7], (5, 5))[0], normal(1, range(2000), (5, 5))[7])
