"""How good samples are, measured in the features of a classifier; and FID, where its own network is at hand.

A distance means something beside its floor: what real images of the training set, as many as there are samples, come
to against the same held-out images. All distances of a run use equally many samples, because few make them larger.
"""

from hashlib import file_digest
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from understudy.errors import UserError

# The port of the Inception network that FID is defined by, as pytorch-fid and torch-fidelity publish it.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """The Fréchet distance of two sets of features, each taken for normal: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½).

    Reference: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; Heusel et
    al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017
    (https://arxiv.org/abs/1706.08500). With the features of another network than Inception it is not FID.

    Args:
        one: (N, D) features.
        other: (M, D) features.
    """
    (mean, covariance), (other_mean, other_covariance) = _moments(one), _moments(other)
    root = _root(covariance)
    cross = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp(min=0).sqrt().sum()
    distance = (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross
    return float(distance.clamp(min=0))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()
    return features.mean(0), torch.cov(features.T).reshape(features.shape[1], features.shape[1])


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def precision_and_recall(real: Tensor, samples: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """The share of samples that lie among real images, and of real images that lie among samples.

    A point lies among others when it is within the distance that one of them has to its k-th neighbour.

    Reference: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", NeurIPS
    2019 (https://arxiv.org/abs/1904.06991).

    Args:
        real: (N, D) features.
        samples: (M, D) features.
        neighbours: k.
    """
    return _covered(samples, real, neighbours), _covered(real, samples, neighbours)


def _covered(points: Tensor, among: Tensor, neighbours: int) -> float:
    radii = torch.cdist(among, among).kthvalue(min(neighbours + 1, len(among)), dim=1).values  # the first is itself
    hits = [(torch.cdist(part, among) <= radii).any(1) for part in points.split(1000)]
    return float(torch.cat(hits).double().mean())


def paired_error(samples: Tensor, reference: Tensor) -> float:
    """Mean squared difference of two sets of images made from the same noise, in [-1, 1]."""
    return float((samples.clamp(-1, 1) - reference.clamp(-1, 1)).square().double().mean())


def check_inception(weights: Path) -> None:
    """Refuse to compute FID where it could not be the standard one.

    Raises:
        UserError: torchmetrics or the file is missing, or the file is another one.
    """
    if not weights.is_file():
        raise UserError(
            "no such file: FID needs pt_inception-2015-12-05-6726825d.pth here, and no other network will do; leave "
            "evaluate.inception out to compare in a classifier's features",
            where=weights,
        )
    for package in ("torchmetrics", "torch_fidelity"):
        if find_spec(package) is None:
            raise UserError(f"FID needs {package}: pip install 'understudy[diffusion]'", where="evaluate.inception")
    # torch_fidelity unpickles whatever it is given: only the one file that is known gets that far.
    with weights.open("rb") as file:
        if file_digest(file, "sha256").hexdigest() != INCEPTION_SHA256:
            raise UserError(
                f"is not pt_inception-2015-12-05-6726825d.pth (SHA-256 {INCEPTION_SHA256[:8]}...): with another "
                "network's weights the distance would be no FID",
                where=weights,
            )


class Fid:
    """The Fréchet inception distance to some real images, by torchmetrics with the standard weights in a local file.

    Args:
        real: (N, C, H, W) images in [-1, 1], grey or RGB.
        weights: `pt_inception-2015-12-05-6726825d.pth`, the port of the original network.
        device: where the network runs.

    Raises:
        UserError: torchmetrics or the file is missing. Nothing takes their place: another network's distance is no FID.
    """

    def __init__(self, real: Tensor, *, weights: Path, device: torch.device | str = "cpu") -> None:
        check_inception(weights)
        from torchmetrics.image.fid import FrechetInceptionDistance  # pyright: ignore[reportMissingImports]

        self.device = device
        self.metric = FrechetInceptionDistance(
            feature=2048, reset_real_features=False, feature_extractor_weights_path=str(weights)
        ).to(device)
        self._update(real, real=True)

    def __call__(self, samples: Tensor) -> float:
        """The distance of samples (M, C, H, W) in [-1, 1]."""
        self.metric.reset()  # of the samples before; the real images stay
        self._update(samples, real=False)
        return float(self.metric.compute())

    def _update(self, images: Tensor, *, real: bool) -> None:
        for part in images.split(100):
            self.metric.update(pixels(part).expand(-1, 3, -1, -1).to(self.device), real=real)


def pixels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes, rounded to the nearest (the original's notebook cut the fraction off)."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
