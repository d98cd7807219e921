"""Measures of quality, against their definitions."""

import numpy as np
import pytest
import scipy.linalg
import torch

from understudy.errors import UserError
from understudy.tasks.diffusion.quality import fid, frechet_distance, paired_error, pixels, precision_and_recall


def test_the_frechet_distance_is_its_formula():
    random = np.random.default_rng(0)
    one = random.normal(size=(200, 6)) @ random.normal(size=(6, 6))
    other = random.normal(size=(150, 6)) @ random.normal(size=(6, 6)) + 0.5
    covariances = np.cov(one.T), np.cov(other.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    wanted = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(torch.from_numpy(one), torch.from_numpy(other)) == pytest.approx(wanted, rel=1e-6)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_though_its_covariance_is_singular():
    features = torch.randn(10, 30)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-5)


def test_precision_and_recall_are_the_shares_that_lie_among_the_others():
    grid = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    half = grid[grid[:, 0] < 5] + 0.1
    precision, recall = precision_and_recall(grid, half)
    assert precision == 1
    assert 0.5 <= recall <= 0.7
    far = grid + 100
    assert precision_and_recall(grid, far) == (0, 0)
    assert precision_and_recall(grid, grid) == (1, 1)


def test_the_paired_error_is_that_of_what_can_be_shown():
    assert paired_error(torch.full((2, 1, 2, 2), 3.0), torch.ones(2, 1, 2, 2)) == 0
    assert paired_error(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)) == 1


def test_pixels_are_rounded_not_cut():
    assert pixels(torch.tensor([-2.0, -1.0, -0.9999, 0.0, 0.999, 1.0])).tolist() == [0, 0, 0, 128, 255, 255]


def test_fid_is_refused_where_its_network_is_missing(tmp_path):
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(UserError, match=r"inception\.pth: no such file: FID needs .* no other network will do"):
        fid(images, images, weights=tmp_path / "inception.pth")
