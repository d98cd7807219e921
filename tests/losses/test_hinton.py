"""Hinton's loss in all its conventions, the losses beside it, and what the temperature does."""

import doctest
from functools import partial

import numpy as np
import pytest
import torch
from conformance import CHECKS, Member, class_labels, soft_labels

import understudy.losses.kd
from understudy.losses import KD, CrossEntropy, HardLabel, LogitMSE

# The same mathematics in NumPy, from the definitions.


def probabilities(logits, temperature=1.0):
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def kd(student, teacher, *, temperature=4.0, t_squared=True, reduction="batchmean", cross_entropy=False):
    of_student, of_teacher = probabilities(student, temperature), probabilities(teacher, temperature)
    terms = -of_teacher * np.log(of_student) + (0 if cross_entropy else of_teacher * np.log(of_teacher))
    divisor = {"batchmean": len(student), "mean": student.size, "sum": 1}[reduction]
    return terms.sum() / divisor * (temperature**2 if t_squared else 1)


def cross_entropy(student, teacher, labels, *, label_smoothing=0.0):
    classes = student.shape[1]
    targets = labels if labels.dtype.kind == "f" else np.eye(classes)[labels]
    targets = (1 - label_smoothing) * targets + label_smoothing / classes
    return -(targets * np.log(probabilities(student))).sum() / len(student)


def hard_label(student, teacher, *, label_smoothing=0.0):
    return cross_entropy(student, None, teacher.argmax(axis=1), label_smoothing=label_smoothing)


KD_SETTINGS = [
    {},
    {"temperature": 1.0},
    {"temperature": 7.0, "t_squared": False},
    {"temperature": 3.0, "reduction": "mean"},
    {"temperature": 0.5, "reduction": "sum"},
    {"temperature": 2.0, "cross_entropy": True},
]
MEMBERS = [
    *(
        Member(
            "kd" + "".join(f"-{key}={value}" for key, value in settings.items()),
            partial(KD, **settings),
            partial(kd, **settings),
            maps=True,
            zero_at_teacher=not settings.get("cross_entropy", False),
        )
        for settings in KD_SETTINGS
    ),
    Member("logits", LogitMSE, lambda student, teacher: ((student - teacher) ** 2).mean(), maps=True),
    # Both are least where the student is certain, not where it equals the teacher.
    Member("hard", HardLabel, hard_label, minimum_at_teacher=False),
    Member(
        "hard-smooth",
        partial(HardLabel, label_smoothing=0.1),
        partial(hard_label, label_smoothing=0.1),
        minimum_at_teacher=False,
    ),
    Member("cross-entropy", CrossEntropy, cross_entropy, needs=class_labels, teacher=False),
    Member(
        "cross-entropy-soft-smooth",
        partial(CrossEntropy, label_smoothing=0.1),
        partial(cross_entropy, label_smoothing=0.1),
        needs=soft_labels,
        teacher=False,
    ),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


# The temperature


def logits(seed):
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def size_of_gradient(loss, *arguments, **needs):
    student = logits(0).requires_grad_()
    return torch.autograd.grad(loss(student, *arguments, **needs), student)[0].norm().item()


def soft_over_hard(temperature, *, t_squared):
    hard = size_of_gradient(CrossEntropy(), labels=torch.arange(6) % 5)
    return size_of_gradient(KD(temperature=temperature, t_squared=t_squared), logits(1)) / hard


def test_with_t_squared_the_share_of_the_soft_gradient_tends_to_a_constant():
    ratios = [soft_over_hard(temperature, t_squared=True) for temperature in (50, 100, 200, 400)]
    steps = np.abs(np.diff(ratios))
    assert ratios[-1] > 0.1
    assert steps[-1] < 0.01 * ratios[-1]
    assert (steps[1:] < 0.6 * steps[:-1]).all()  # each doubling of T halves what is left


def test_without_t_squared_it_falls_as_one_over_t_squared():
    limit = soft_over_hard(1e4, t_squared=True)
    for temperature in (100, 200, 400):
        assert soft_over_hard(temperature, t_squared=False) == pytest.approx(limit / temperature**2, rel=0.02)


def test_at_high_temperature_the_gradient_is_that_of_centred_logits():
    student, teacher = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(KD(temperature=1e5)(student, teacher), student)
    difference = (student - teacher).detach()
    expected = (difference - difference.mean(dim=1, keepdim=True)) / difference.numel()
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_cross_entropy_has_the_gradient_of_the_divergence():
    gradients = []
    for cross_entropy in (False, True):
        student = logits(0).requires_grad_()
        gradients += torch.autograd.grad(KD(cross_entropy=cross_entropy)(student, logits(1)), student)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


# Refusals and examples


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_zero_or_less_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        KD(temperature=temperature)


@pytest.mark.parametrize("loss", [KD(), LogitMSE(), HardLabel()])
def test_other_classes_than_the_teachers_are_refused_not_broadcast(loss):
    with pytest.raises(ValueError, match="differ in shape"):
        loss(torch.zeros(4, 1), torch.zeros(4, 5))


def test_of_equal_largest_logits_the_first_decides():
    student = logits(0)
    tied = torch.zeros_like(student)
    expected = CrossEntropy()(student, labels=torch.zeros(6, dtype=torch.long))
    assert HardLabel()(student, tied) == expected


def test_the_example_in_kd_runs():
    results = doctest.testmod(understudy.losses.kd)
    assert results.attempted > 0
    assert results.failed == 0
