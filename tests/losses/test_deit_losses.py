"""DeiT-III's losses: binary cross entropy on mixed labels, and submodels that teach each other."""

import numpy as np
import pytest
import torch
from conformance import CHECKS, Member
from torch import nn

from understudy.losses.deit import BinaryCrossEntropy, Cosub, submodels_agree


def binary(logits: np.ndarray, targets: np.ndarray) -> float:
    """-mean [y log σ(z) + (1 - y) log(1 - σ(z))], written so that it stays finite."""
    return float(np.mean(np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))))


def questions(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[labels] if labels.ndim == 1 else (labels > 0).astype(float)


def class_numbers(generator, shape):
    return {"labels": torch.randint(shape[1], (shape[0],), generator=generator)}


def mixed_labels(generator, shape):
    numbers = torch.randint(shape[1], (2, shape[0]), generator=generator)
    first, second = nn.functional.one_hot(numbers, shape[1]).double()
    return {"labels": 0.3 * first + 0.7 * second}


MEMBERS = [
    Member(
        f"bce on {name}",
        BinaryCrossEntropy,
        lambda student, teacher, *, labels: binary(student, questions(labels, student.shape[1])),
        needs=needs,
        teacher=False,
        minimum_at_teacher=False,
        zero_at_teacher=False,
    )
    for name, needs in (("class numbers", class_numbers), ("mixed labels", mixed_labels))
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


class Scaled(nn.Module):
    """Logits that a second forward scales: as if other blocks were skipped."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, images):
        return self.factor * images


def cosub(student, images, labels, model):
    return Cosub()(student, inputs=images, labels=labels, student_model=model)


@pytest.mark.parametrize("mixed", [False, True])
def test_cosub_is_the_mean_of_four_questions(mixed: bool):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    labels = (mixed_labels if mixed else class_numbers)(generator, (6, 5))["labels"]
    first = images * 0.5
    value = cosub(first, images, labels, Scaled(2.0))
    a, b, y = first.numpy(), 2 * images.numpy(), questions(labels.numpy(), 5)
    sigmoid = [1 / (1 + np.exp(-logits)) for logits in (a, b)]
    expected = np.mean([binary(a, y), binary(b, y), binary(a, sigmoid[1]), binary(b, sigmoid[0])])
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_each_submodel_learns_and_none_gets_a_gradient_as_the_other_ones_target():
    images = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(6) % 5
    leaf, model = (images * 0.5).requires_grad_(), Scaled(2.0)
    cosub(leaf, images, labels, model).backward()
    y, a, b = np.eye(5)[labels], leaf.detach().numpy(), 2 * images.numpy()
    sigmoid = [1 / (1 + np.exp(-logits)) for logits in (a, b)]
    # d BCE(z, t) / dz = (σ(z) - t) / (N K), from the labels and from the other one, a quarter each.
    expected = ((sigmoid[0] - y) + (sigmoid[0] - sigmoid[1])) / 4 / y.size
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-10)
    of_second = ((sigmoid[1] - y) + (sigmoid[1] - sigmoid[0])) / 4 / y.size
    assert model.factor.grad.item() == pytest.approx((of_second * images.numpy()).sum(), rel=1e-10)


def test_of_several_answers_of_a_student_the_first_is_meant():
    images, labels = torch.randn(6, 5), torch.arange(6) % 5

    class Pair(nn.Module):
        def forward(self, images):
            return 2 * images, 100 * images

    expected = submodels_agree(images, 2 * images, labels=labels)
    assert torch.equal(cosub(images, images, labels, Pair()), expected)


def test_half_precision_is_raised_and_large_logits_stay_finite():
    logits = torch.full((2, 3), 1e4, dtype=torch.bfloat16)
    value = submodels_agree(logits, -logits, labels=torch.tensor([0, 1]))
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
