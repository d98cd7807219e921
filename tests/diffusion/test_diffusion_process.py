"""The process against its definition, written anew in NumPy."""

import numpy as np
import pytest
import torch

from understudy.errors import UserError
from understudy.tasks.diffusion.process import (
    Denoised,
    Process,
    eps_from_x,
    spread,
    v_from_x_and_eps,
    weighted_error,
    x_from_eps,
    x_from_v,
)


def cosine(t, low, high):
    begin, end = np.arctan(np.exp(-high / 2)), np.arctan(np.exp(-low / 2))
    return -2 * np.log(np.tan(begin + t * (end - begin)))


@pytest.mark.parametrize("limits", [(-20.0, 20.0), (-10.0, 7.0)])
def test_the_schedule_is_the_cosine_one_between_its_limits(limits):
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    ours = Process(*limits).logsnr(t)
    np.testing.assert_allclose(ours.numpy(), cosine(t.numpy(), *limits), rtol=1e-10)
    assert ours[0] == pytest.approx(limits[1])
    assert ours[-1] == pytest.approx(limits[0])


def test_alpha_and_sigma_lie_on_a_circle_and_mix_image_and_noise():
    process = Process()
    t = torch.rand(5, dtype=torch.float64)
    x, eps = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    alpha, sigma = process.scales(t, x)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert torch.allclose(process.diffuse(x, eps, t), alpha * x + sigma * eps)


@pytest.mark.parametrize("prediction", ["x", "eps", "v", "both"])
def test_whatever_a_network_predicts_the_same_image_and_noise_are_read(prediction):
    process = Process(logsnr_min=-8.0, logsnr_max=8.0, prediction=prediction)
    t = torch.rand(6, dtype=torch.float64)
    x, eps = torch.randn(2, 6, 2, 4, 4, dtype=torch.float64)
    alpha, sigma = process.scales(t, x)
    z = alpha * x + sigma * eps
    v = alpha * eps - sigma * x
    output = {"x": x, "eps": eps, "v": v, "both": torch.cat([x, eps], 1)}[prediction]
    found = process.denoise(lambda *_: output, z, t)
    for ours, wanted in ((found.x, x), (found.eps, eps), (found.v, v)):
        assert torch.allclose(ours, wanted, atol=1e-10)


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_a_clipped_image_brings_its_own_noise_and_direction(prediction):
    process = Process(-8.0, 8.0, prediction, clip=True)
    z, output = torch.randn(2, 4, 1, 4, 4, dtype=torch.float64) * 3
    t = torch.full((4,), 0.6, dtype=torch.float64)
    found = process.denoise(lambda *_: output, z, t)
    alpha, sigma = process.scales(t, z)
    assert found.x.abs().max() <= 1
    assert torch.allclose(alpha * found.x + sigma * found.eps, z)
    assert torch.allclose(found.v, alpha * found.eps - sigma * found.x)


def test_conversions_undo_each_other():
    logsnr = spread(torch.linspace(-9, 9, 5, dtype=torch.float64), torch.empty(5, 1, 2, 2))
    z, x = torch.randn(2, 5, 1, 2, 2, dtype=torch.float64)
    eps = eps_from_x(z, x, logsnr)
    assert torch.allclose(x_from_eps(z, eps, logsnr), x)
    assert torch.allclose(x_from_v(z, v_from_x_and_eps(x, eps, logsnr), logsnr), x)


def test_weightings_are_known_multiples_of_the_error_of_the_image():
    process = Process(-6.0, 6.0, "x")
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    z, x, wanted = torch.randn(3, 7, 2, 4, 4, dtype=torch.float64)
    found, target = process.complete(x, z, t), process.complete(wanted, z, t)
    snr = process.logsnr(t).exp()
    base = (x - wanted).square().mean((1, 2, 3))
    assert torch.allclose(weighted_error(found, target, "constant"), base)
    assert torch.allclose(weighted_error(found, target, "snr"), snr * base)
    assert torch.allclose(weighted_error(found, target, "snr_trunc"), snr.clamp(min=1) * base)
    assert torch.allclose(weighted_error(found, target, "v_mse"), (snr + 1) * base)


def test_truncation_compares_means_of_samples_not_pixels():
    # One pixel has the larger error of x, the other that of eps: the means decide.
    found = Denoised(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2))
    zero = Denoised(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    assert weighted_error(found, zero, "snr_trunc").item() == 4.5


def test_an_output_of_another_prediction_is_one_clear_line():
    z, t = torch.randn(2, 3, 4, 4), torch.rand(2)
    with pytest.raises(UserError, match=r"predicts 'both' gives \(2, 6, 4, 4\).*gives \(2, 3, 4, 4\)"):
        Process(prediction="both").denoise(lambda z, t, y: z, z, t)
    with pytest.raises(UserError, match="is it one of another prediction"):
        Process(prediction="v").denoise(lambda z, t, y: torch.cat([z, z], 1), z, t)
