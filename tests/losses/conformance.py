"""What every loss must do, as one table of checks: a test parametrizes over its `Member`s and over `CHECKS`.

    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("member", MEMBERS, ids=str)
    def test_conformance(member, check):
        check(member)

A check that does not concern a member skips itself; what does not hold for a loss is switched off in its `Member`,
where a reader sees it.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

SIZES = {"N": 6, "K": 5}
MAP = (3, 4, 5, 6)


@dataclass(frozen=True)
class Member:
    """A loss with settings, and what holds for it.

    Args:
        name: of the test.
        build: makes the loss.
        reference: an independent rewrite in NumPy: (student, teacher, **needs) as float64 arrays, to a number. It
            gets `teacher=None` where `teacher` is False.
        shape: of student and teacher.
        needs: further arguments of `forward`, made for a batch: (generator, student's shape) to keywords. Tensors
            whose first size is the batch's are permuted with it.
        teacher: has a teacher argument.
        maps: takes (N, C, H, W) as well.
        minimum_at_teacher: the loss is least where the student equals the teacher.
        zero_at_teacher: and 0 there.
        permutable: the order of the samples does not matter.
        batch_of_one: means something for a single sample.
        logits: student and teacher are logits, and may be as large as 1e4.
        teacher_detached: no gradient goes to the teacher.
    """

    name: str
    build: Callable[[], nn.Module]
    reference: Callable[..., float]
    shape: tuple[int, ...] = (SIZES["N"], SIZES["K"])
    needs: Callable[[torch.Generator, tuple[int, ...]], dict[str, Any]] = lambda generator, shape: {}
    teacher: bool = True
    maps: bool = False
    minimum_at_teacher: bool = True
    zero_at_teacher: bool = True
    permutable: bool = True
    batch_of_one: bool = True
    logits: bool = True
    teacher_detached: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass
class Batch:
    """Arguments of one call."""

    student: Tensor
    teacher: Tensor | None
    needs: dict[str, Any]

    def loss(self, loss: nn.Module, *, student: Tensor | None = None) -> Tensor:
        student = self.student if student is None else student
        positional = (student,) if self.teacher is None else (student, self.teacher)
        return loss(*positional, **self.needs)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with student and teacher changed."""
        return Batch(change(self.student), None if self.teacher is None else change(self.teacher), self.needs)


def batch_of(
    member: Member, *, seed: int = 0, shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float64
) -> Batch:
    """A random batch for a member."""
    generator = torch.Generator().manual_seed(seed)
    shape = shape or member.shape
    student, teacher = (2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    return Batch(student, teacher if member.teacher else None, member.needs(generator, shape))


def value_equals_an_independent_rewrite(member: Member) -> None:
    loss = member.build().double()
    for seed, shape in enumerate(_shapes(member)):
        batch = batch_of(member, seed=seed, shape=shape)
        _assert_close(batch.loss(loss), _reference(member, batch), relative=1e-12)


def gradient_is_that_of_the_value(member: Member) -> None:
    loss = member.build().double()
    for shape in _shapes(member):
        batch = batch_of(member, shape=(*(min(size, 4) for size in shape[:2]), *shape[2:]))
        student = batch.student.requires_grad_()
        assert torch.autograd.gradcheck(lambda tensor, batch=batch: batch.loss(loss, student=tensor), (student,))


def is_least_where_student_equals_teacher(member: Member) -> None:
    if not (member.teacher and member.minimum_at_teacher):
        pytest.skip("does not hold for this loss")
    loss = member.build().double()
    batch = batch_of(member)
    assert batch.teacher is not None
    student = batch.teacher.clone().requires_grad_()
    least = batch.loss(loss, student=student)
    (gradient,) = torch.autograd.grad(least, student)
    assert gradient.abs().max() < 1e-12
    if member.zero_at_teacher:
        assert abs(least.item()) < 1e-12
    for seed in range(10):
        noise = torch.randn(batch.student.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for size in (1e-3, 1.0):
            assert batch.loss(loss, student=batch.teacher + size * noise) > least


def order_of_the_samples_does_not_matter(member: Member) -> None:
    if not member.permutable:
        pytest.skip("does not hold for this loss")
    loss = member.build().double()
    batch = batch_of(member)
    order = torch.randperm(len(batch.student), generator=torch.Generator().manual_seed(1))
    shuffled = batch.changed(lambda tensor: tensor[order])
    shuffled.needs = {
        name: need[order] if isinstance(need, Tensor) and need.ndim and len(need) == len(order) else need
        for name, need in batch.needs.items()
    }
    _assert_close(shuffled.loss(loss), batch.loss(loss).item(), relative=1e-12)


def takes_a_batch_of_one(member: Member) -> None:
    if not member.batch_of_one:
        pytest.skip("does not hold for this loss")
    batch = batch_of(member, shape=(1, *member.shape[1:]))
    student = batch.student.requires_grad_()
    value = batch.loss(member.build().double())
    _assert_close(value, _reference(member, batch), relative=1e-12)
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def memory_layout_does_not_matter(member: Member) -> None:
    loss = member.build().double()
    for shape in _shapes(member):
        batch = batch_of(member, shape=shape)
        layouts = [_transposed_in_memory, _every_second_of_a_larger_one]
        layouts += [lambda tensor: tensor.contiguous(memory_format=torch.channels_last)] if len(shape) == 4 else []
        value, gradient = _value_and_gradient(loss, batch)
        for layout in layouts:
            laid_out = batch.changed(layout)
            assert not laid_out.student.is_contiguous()
            other_value, other_gradient = _value_and_gradient(loss, laid_out)
            torch.testing.assert_close(other_value, value, rtol=1e-12, atol=0)
            torch.testing.assert_close(other_gradient, gradient, rtol=1e-12, atol=1e-15)


def computes_in_float32_under_bfloat16_autocast(member: Member) -> None:
    loss = member.build()
    for shape in _shapes(member):
        full = batch_of(member, shape=shape, dtype=torch.float32)
        rounded = full.changed(lambda tensor: tensor.bfloat16())
        for inside, outside in ((full, full), (rounded, rounded.changed(lambda tensor: tensor.float()))):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = inside.loss(loss)
            assert value.dtype == torch.float32
            _assert_close(value, outside.loss(loss).item(), relative=1e-5)


def keeps_float64(member: Member) -> None:
    assert batch_of(member).loss(member.build().double()).dtype == torch.float64


def stays_finite_at_large_logits(member: Member) -> None:
    if not member.logits:
        pytest.skip("does not compare logits")
    loss = member.build()
    for dtype in (torch.float32, torch.bfloat16):
        batch = batch_of(member, dtype=torch.float32).changed(lambda tensor: 1e4 * tensor.sign())
        batch = batch.changed(lambda tensor, dtype=dtype: tensor.to(dtype))
        value, gradient = _value_and_gradient(loss, batch)
        assert value.isfinite()
        assert gradient.isfinite().all()


def gives_the_teacher_no_gradient(member: Member) -> None:
    if not (member.teacher and member.teacher_detached):
        pytest.skip("does not hold for this loss")
    batch = batch_of(member)
    assert batch.teacher is not None
    batch.student.requires_grad_()
    batch.teacher.requires_grad_()
    batch.loss(member.build().double()).backward()
    assert batch.student.grad is not None
    assert batch.teacher.grad is None


def changes_no_input(member: Member) -> None:
    batch = batch_of(member)
    before = batch.changed(torch.clone)
    batch.loss(member.build().double())
    assert torch.equal(batch.student, before.student)
    if batch.teacher is not None and before.teacher is not None:
        assert torch.equal(batch.teacher, before.teacher)


def gives_a_scalar_and_takes_keywords_only(member: Member) -> None:
    loss = member.build()
    assert batch_of(member, dtype=torch.float32).loss(loss).shape == ()
    for name, parameter in _constructor(loss).items():
        assert parameter.kind is parameter.KEYWORD_ONLY, f"{name} of the constructor"
    for name, parameter in inspect.signature(loss.forward).parameters.items():
        if name not in ("student", "teacher"):
            assert parameter.kind is parameter.KEYWORD_ONLY, f"{name} of forward"


def docstring_is_complete(member: Member) -> None:
    """One sentence, the equation, the reference with a link; every argument of constructor and forward."""
    loss = member.build()
    text, of_forward = inspect.getdoc(type(loss)) or "", inspect.getdoc(loss.forward) or ""
    first = text.split("\n\n")[0]
    assert first.endswith("."), "the first paragraph is a sentence"
    description = text.split("Reference:")[0]
    assert re.search(r"`[^`]*(_s|_t|log|exp|[²Σ‖])[^`]*`", description), "the equation, in backticks"
    assert re.search(r"Reference:.*\d{4}.*https://", text, re.DOTALL), "who, when, where to read it"
    _assert_describes(text, _constructor(loss))
    _assert_describes(of_forward, inspect.signature(loss.forward).parameters)
    assert "Returns:" in of_forward


CHECKS = (
    value_equals_an_independent_rewrite,
    gradient_is_that_of_the_value,
    is_least_where_student_equals_teacher,
    order_of_the_samples_does_not_matter,
    takes_a_batch_of_one,
    memory_layout_does_not_matter,
    computes_in_float32_under_bfloat16_autocast,
    keeps_float64,
    stays_finite_at_large_logits,
    gives_the_teacher_no_gradient,
    changes_no_input,
    gives_a_scalar_and_takes_keywords_only,
    docstring_is_complete,
)


def class_labels(generator: torch.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """`needs` of a loss with class labels."""
    return {"labels": torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)}


def soft_labels(generator: torch.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """`needs` of a loss with probabilities as labels."""
    return {"labels": torch.rand(shape, generator=generator, dtype=torch.float64).softmax(dim=1)}


def _shapes(member: Member) -> list[tuple[int, ...]]:
    return [member.shape, MAP] if member.maps and len(member.shape) == 2 else [member.shape]


def _reference(member: Member, batch: Batch) -> float:
    arrays = [
        None if tensor is None else tensor.detach().to(torch.float64).numpy()
        for tensor in (batch.student, batch.teacher)
    ]
    needs = {name: need.numpy() if isinstance(need, Tensor) else need for name, need in batch.needs.items()}
    return float(member.reference(*arrays, **needs))


def _value_and_gradient(loss: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    student = batch.student.detach().requires_grad_()
    value = batch.loss(loss, student=student)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def _transposed_in_memory(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _every_second_of_a_larger_one(tensor: Tensor) -> Tensor:
    return tensor.repeat_interleave(2, dim=-1)[..., ::2]


def _assert_close(value: Tensor, expected: float, *, relative: float) -> None:
    np.testing.assert_allclose(value.item(), expected, rtol=relative, atol=relative * 1e-3)


def _constructor(loss: nn.Module) -> Mapping[str, inspect.Parameter]:
    # A loss without settings has no constructor of its own, and nn.Module's takes anything.
    return {} if type(loss).__init__ is nn.Module.__init__ else inspect.signature(type(loss)).parameters


def _assert_describes(text: str, parameters: Mapping[str, inspect.Parameter]) -> None:
    assert not parameters or "Args:" in text
    for name in parameters:
        assert re.search(rf"^\s+{name}: \S", text, re.MULTILINE), f"argument {name} is described"
