"""The conformance checks find what they are for: each of these losses is wrong in one way."""

import numpy as np
import pytest
import torch
from conformance import CHECKS, Member
from torch import nn

CHECK = {check.__name__: check for check in CHECKS}


def mse(student, teacher):
    return ((student - teacher) ** 2).mean()


class Wrong(nn.Module):
    """One."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, student, teacher):
        return self.formula(student, teacher)


class Forgetful(Wrong):
    """Has a weight, of which a copy is what counts."""

    def __init__(self):
        super().__init__(lambda student, teacher: mse(student, teacher.detach()) * self.copy)
        self.weight = nn.Parameter(torch.empty(()))

    def prepare(self, student, teacher):
        nn.init.uniform_(self.weight)
        self.copy = torch.rand(())


class Jumping(Wrong):
    """Adds something as soon as a weight is below 1."""

    def __init__(self, *, weight: float = 1.0):
        super().__init__(lambda student, teacher: mse(student, teacher.detach()) + (self.weight < 1))
        self.weight = weight


class Unprepared(Wrong):
    """Does something all the same where nobody prepared it."""

    def __init__(self):
        super().__init__(mse)

    def prepare(self, student, teacher):
        pass


def matmul(student, teacher):
    return mse(student @ student.mT, (teacher @ teacher.mT).detach())


def naive_divergence(student, teacher):
    of_student, of_teacher = student.softmax(dim=1), teacher.detach().softmax(dim=1)
    return (of_teacher * (of_teacher / of_student).log()).sum()


def in_place(student, teacher):
    with torch.no_grad():
        student.mul_(2)
    return mse(student, teacher.detach())


WRONG = {
    "value_equals_an_independent_rewrite": lambda student, teacher: 2 * mse(student, teacher.detach()),
    "gradient_is_that_of_the_value": lambda student, teacher: mse(student, teacher) + (student**2).mean().detach(),
    "is_least_where_student_equals_teacher": lambda student, teacher: mse(student, 2 * teacher),
    "order_of_the_samples_does_not_matter": lambda student, teacher: mse(student[1:] - student[:-1], teacher[1:]),
    "takes_a_batch_of_one": lambda student, teacher: mse(student, teacher) + student.std(dim=0).mean(),
    "memory_layout_does_not_matter": lambda student, teacher: mse(student.view(-1), teacher.reshape(-1)),
    "computes_in_float32_under_bfloat16_autocast": matmul,
    "keeps_float64": lambda student, teacher: mse(student, teacher).float(),
    "stays_finite_at_large_logits": naive_divergence,
    "gives_the_teacher_no_gradient": mse,
    "is_continuous_in_its_settings_and_weights": Jumping,
    "changes_no_input": in_place,
    "its_state_survives_save_and_load": Forgetful,
    "says_that_it_is_not_prepared": Unprepared,
    "gives_a_scalar_and_takes_keywords_only": mse,
    "docstring_is_complete": mse,
}


@pytest.mark.filterwarnings("ignore:std..:UserWarning")
@pytest.mark.parametrize("name", CHECK)
def test_check_finds_a_loss_that_breaks_it(name):
    wrong = WRONG[name]
    build = wrong if isinstance(wrong, type) else lambda: Wrong(wrong)
    member = Member("wrong", build, lambda student, teacher: np.mean((student - teacher) ** 2))
    with pytest.raises((AssertionError, RuntimeError, pytest.fail.Exception)):
        CHECK[name](member)
