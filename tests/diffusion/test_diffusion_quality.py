"""Measures of quality, against their definitions."""

from hashlib import sha256

import numpy as np
import pytest
import scipy.linalg
import torch

from understudy.errors import UserError
from understudy.tasks.diffusion import quality
from understudy.tasks.diffusion.quality import Fid, frechet_distance, paired_error, pixels, precision_and_recall


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


def test_fid_is_refused_where_its_network_is_missing_or_another(tmp_path, monkeypatch):
    images, path = torch.zeros(2, 3, 8, 8), tmp_path / "inception.pth"
    with pytest.raises(UserError, match=r"inception\.pth: no such file: FID needs .* no other network will do"):
        Fid(images, weights=path)
    monkeypatch.setattr(quality, "find_spec", lambda _: True)
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"inception\.pth: is not pt_inception-.* the distance would be no FID"):
        Fid(images, weights=path)
    monkeypatch.setattr(quality, "find_spec", lambda name: None if name == "torch_fidelity" else True)
    with pytest.raises(UserError, match=r"FID needs torch_fidelity: pip install 'understudy\[diffusion\]'"):
        Fid(images, weights=path)


@pytest.mark.slow
def test_fid_is_the_frechet_distance_in_the_features_of_the_file(tmp_path, monkeypatch):
    """The network has random weights here: what is held against another way is everything else."""
    torch_fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = torch_fidelity.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(torch_fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("made", ["2048"])
    torch.save(network.state_dict(), tmp_path / "made.pth")
    monkeypatch.setattr(quality, "INCEPTION_SHA256", sha256((tmp_path / "made.pth").read_bytes()).hexdigest())
    real, samples, others = (torch.rand(8, 1, 16, 16) * 2 - 1 for _ in range(3))
    fid = Fid(real, weights=tmp_path / "made.pth")

    def features(images):
        return network(quality.pixels(images).expand(-1, 3, -1, -1))[0]

    for images in (samples, others, real):
        assert fid(images) == pytest.approx(frechet_distance(features(real), features(images)), rel=1e-2, abs=1e-3)
