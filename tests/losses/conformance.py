"""What every loss must do, as one table of checks: a test parametrizes over its `Member`s and over `CHECKS`.

    @pytest.mark.parametrize("check", CHECKS)
    @pytest.mark.parametrize("member", MEMBERS, ids=str)
    def test_conformance(member, check):
        check(member)

A check that does not concern a member skips itself; what does not hold for a loss is switched off in its `Member`,
where a reader sees it.
"""

import copy
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
# One tensor, or several where a loss compares several taps.
Shape = tuple[int, ...] | tuple[tuple[int, ...], ...]
Tensors = Tensor | tuple[Tensor, ...]
MAP = (3, 4, 5, 6)


@dataclass(frozen=True)
class Member:
    """A loss with settings, and what holds for it.

    Args:
        name: of the test.
        build: makes the loss.
        reference: an independent rewrite in NumPy: (student, teacher, **needs) as float64 arrays, to a number. It
            gets `teacher=None` where `teacher` is False, and `weights`, the arrays of the loss's state by name, where
            the loss has weights of its own. What it draws comes after `torch.manual_seed(0)`.
        shape: of student and teacher; a tuple of shapes where the loss takes several tensors a side.
        teacher_shape: of the teacher, where it is another.
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
        stops_gradient: treats something that depends on the student as constant, so that the gradient is not that of
            the value; the test pins it otherwise.
        layout_rtol: how far gradients may differ between memory layouts; convolutions add in another order there.
    """

    name: str
    build: Callable[[], nn.Module]
    reference: Callable[..., float]
    shape: Shape = (SIZES["N"], SIZES["K"])
    teacher_shape: Shape | None = None
    needs: Callable[[torch.Generator, tuple[int, ...]], dict[str, Any]] = lambda generator, shape: {}
    teacher: bool = True
    maps: bool = False
    minimum_at_teacher: bool = True
    zero_at_teacher: bool = True
    permutable: bool = True
    batch_of_one: bool = True
    logits: bool = True
    teacher_detached: bool = True
    layout_rtol: float = 1e-12
    stops_gradient: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass
class Batch:
    """Arguments of one call."""

    student: Tensors
    teacher: Tensors | None
    needs: dict[str, Any]

    def loss(self, loss: nn.Module, *, student: Tensors | None = None) -> Tensor:
        student = self.student if student is None else student
        positional = (student,) if self.teacher is None else (student, self.teacher)
        if any(True for _ in loss.buffers()):
            loss = copy.deepcopy(loss)  # a memory that the call changes must not reach the next call
        torch.manual_seed(0)
        return loss(*positional, **self.needs)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same batch with student and teacher changed."""
        return Batch(_map(change, self.student), _map(change, self.teacher), self.needs)

    def tracked(self) -> list[Tensor]:
        """The student's tensors, from now on leaves that track gradients."""
        self.student = _map(lambda tensor: tensor.detach().requires_grad_(), self.student)
        return _listed(self.student)


def batch_of(
    member: Member, *, seed: int = 0, shape: Shape | None = None, dtype: torch.dtype = torch.float64, size: int = 0
) -> Batch:
    """A random batch for a member, of `size` samples where given."""
    generator = torch.Generator().manual_seed(seed)
    teacher_shape = shape or member.teacher_shape or member.shape
    shape = shape or member.shape
    student, teacher = (
        _random(_resized(each, size), generator=generator, dtype=dtype) for each in (shape, teacher_shape)
    )
    first = _resized(shape, size)
    needs = member.needs(generator, first[0] if isinstance(first[0], tuple) else first)
    return Batch(student, teacher if member.teacher else None, needs)


def built(member: Member, batch: Batch, *, seed: int = 1) -> nn.Module:
    """The loss, its weights made for the batch's shapes where it has any, in the batch's precision."""
    loss = member.build()
    if hasattr(loss, "prepare"):
        torch.manual_seed(seed)
        example = batch.changed(lambda tensor: tensor.detach().float())
        loss.prepare(example.student, example.teacher)
    return loss.double() if _listed(batch.student)[0].dtype == torch.float64 else loss


def value_equals_an_independent_rewrite(member: Member) -> None:
    for seed, shape in enumerate(_shapes(member)):
        batch = batch_of(member, seed=seed, shape=shape)
        loss = built(member, batch)
        _assert_close(batch.loss(loss), _reference(member, batch, loss), relative=1e-12)


def gradient_is_that_of_the_value(member: Member) -> None:
    if member.stops_gradient:
        pytest.skip("takes something that depends on the student as constant")
    for shape in _shapes(member):
        smaller = shape and (*(min(size, 4) for size in shape[:2]), *shape[2:])
        batch = batch_of(member, shape=smaller)
        loss = built(member, batch)
        several = isinstance(batch.student, tuple)

        def value(*tensors, batch=batch, loss=loss, several=several):
            return batch.loss(loss, student=tensors if several else tensors[0])

        tracked = tuple(batch.tracked())
        # Along one random direction where all of them would take seconds.
        fast = sum(tensor.numel() for tensor in tracked) > 60
        assert torch.autograd.gradcheck(value, tracked, fast_mode=fast)


def is_least_where_student_equals_teacher(member: Member) -> None:
    if not (member.teacher and member.minimum_at_teacher):
        pytest.skip("is least elsewhere" if member.teacher else "has no teacher")
    batch = batch_of(member)
    loss = built(member, batch)
    batch.student = _map(torch.clone, batch.teacher)
    tracked = batch.tracked()
    least = batch.loss(loss)
    assert max(gradient.abs().max() for gradient in torch.autograd.grad(least, tracked)) < 1e-12
    if member.zero_at_teacher:
        assert abs(least.item()) < 1e-12
    for seed in range(100, 110):  # others than the batch's, whose noise would be a multiple of its teacher
        generator = torch.Generator().manual_seed(seed)
        for size in (1e-3, 1.0):
            noisy = _map(
                lambda tensor, size=size, generator=generator: (
                    tensor + size * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                ),
                batch.teacher,
            )
            assert batch.loss(loss, student=noisy) > least


def order_of_the_samples_does_not_matter(member: Member) -> None:
    if not member.permutable:
        pytest.skip("depends on the order of the samples")
    batch = batch_of(member)
    loss = built(member, batch)
    order = torch.randperm(len(_listed(batch.student)[0]), generator=torch.Generator().manual_seed(1))
    shuffled = batch.changed(lambda tensor: tensor[order])
    shuffled.needs = {
        name: need[order] if isinstance(need, Tensor) and need.ndim and len(need) == len(order) else need
        for name, need in batch.needs.items()
    }
    _assert_close(shuffled.loss(loss), batch.loss(loss).item(), relative=1e-12)


def takes_a_batch_of_one(member: Member) -> None:
    if not member.batch_of_one:
        pytest.skip("says nothing about a single sample")
    batch = batch_of(member, size=1)
    loss = built(member, batch_of(member))
    tracked = batch.tracked()
    value = batch.loss(loss)
    _assert_close(value, _reference(member, batch, loss), relative=1e-12)
    value.backward()
    for student in tracked:
        assert student.grad is None or student.grad.isfinite().all()
    assert any(student.grad is not None for student in tracked)


def memory_layout_does_not_matter(member: Member) -> None:
    for shape in _shapes(member):
        batch = batch_of(member, shape=shape)
        loss = built(member, batch)
        layouts = [_transposed_in_memory, _every_second_of_a_larger_one]
        layouts += [_channels_last] if any(tensor.ndim == 4 for tensor in _listed(batch.student)) else []
        value, gradients = _value_and_gradients(loss, batch)
        for layout in layouts:
            laid_out = batch.changed(layout)
            assert not all(tensor.is_contiguous() for tensor in _listed(laid_out.student))
            other_value, other_gradients = _value_and_gradients(loss, laid_out)
            torch.testing.assert_close(other_value, value, rtol=1e-12, atol=0)
            torch.testing.assert_close(other_gradients, gradients, rtol=member.layout_rtol, atol=1e-15)


def computes_in_float32_under_bfloat16_autocast(member: Member) -> None:
    for shape in _shapes(member):
        full = batch_of(member, shape=shape, dtype=torch.float32)
        loss = built(member, full)
        rounded = full.changed(lambda tensor: tensor.bfloat16())
        for inside, outside in ((full, full), (rounded, rounded.changed(lambda tensor: tensor.float()))):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = inside.loss(loss)
            assert value.dtype == torch.float32
            _assert_close(value, outside.loss(loss).item(), relative=1e-5)


def keeps_float64(member: Member) -> None:
    batch = batch_of(member)
    assert batch.loss(built(member, batch)).dtype == torch.float64


def stays_finite_at_large_logits(member: Member) -> None:
    if not member.logits:
        pytest.skip("does not compare logits")
    for dtype in (torch.float32, torch.bfloat16):
        batch = batch_of(member, dtype=torch.float32)
        loss = built(member, batch)
        batch = batch.changed(lambda tensor, dtype=dtype: (1e4 * tensor.sign()).to(dtype))
        value, gradients = _value_and_gradients(loss, batch)
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def gives_the_teacher_no_gradient(member: Member) -> None:
    if not (member.teacher and member.teacher_detached):
        pytest.skip("lets gradients through to both" if member.teacher else "has no teacher")
    batch = batch_of(member)
    loss = built(member, batch)
    tracked = batch.tracked()
    batch.teacher = _map(lambda tensor: tensor.detach().requires_grad_(), batch.teacher)
    batch.loss(loss).backward()
    assert any(student.grad is not None for student in tracked)
    assert all(teacher.grad is None for teacher in _listed(batch.teacher))


def is_continuous_in_its_settings_and_weights(member: Member) -> None:
    batch = batch_of(member)
    loss = built(member, batch)
    settings = [name for name in _constructor(loss) if isinstance(getattr(loss, name, None), float)]
    # What an orthogonal matrix is made of cannot be moved freely.
    weights = [weight for path, weight in loss.named_parameters() if "parametrizations" not in path]
    if not settings and not weights:
        pytest.skip("has neither numbers to set nor weights")
    torch.manual_seed(0)  # of masks
    value = batch.loss(loss).item()
    for name in settings:
        _assert_close(_with(loss, name, getattr(loss, name) * (1 - 1e-9), batch), value, relative=1e-6)
    with torch.no_grad():
        for weight in weights:
            weight += 1e-9
    torch.manual_seed(0)
    _assert_close(batch.loss(loss), value, relative=1e-5)


def changes_no_input(member: Member) -> None:
    batch = batch_of(member)
    before = batch.changed(torch.clone)
    batch.loss(built(member, batch))
    for tensor, same in zip(
        _listed(batch.student) + _listed(batch.teacher), _listed(before.student) + _listed(before.teacher), strict=True
    ):
        assert torch.equal(tensor, same)


def its_state_survives_save_and_load(member: Member) -> None:
    batch = batch_of(member)
    loss = built(member, batch)
    if not loss.state_dict():
        pytest.skip("has no state")
    other = built(member, batch, seed=2)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(batch.loss(other), batch.loss(loss))


def says_that_it_is_not_prepared(member: Member) -> None:
    loss = member.build()
    if not hasattr(loss, "prepare"):
        pytest.skip("has no weights of its own")
    with pytest.raises(RuntimeError, match="prepare"):
        batch_of(member).loss(loss)


def gives_a_scalar_and_takes_keywords_only(member: Member) -> None:
    batch = batch_of(member, dtype=torch.float32)
    loss = built(member, batch)
    assert batch.loss(loss).shape == ()
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
    is_continuous_in_its_settings_and_weights,
    changes_no_input,
    its_state_survives_save_and_load,
    says_that_it_is_not_prepared,
    gives_a_scalar_and_takes_keywords_only,
    docstring_is_complete,
)


def class_labels(generator: torch.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """`needs` of a loss with class labels."""
    return {"labels": torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)}


def soft_labels(generator: torch.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    """`needs` of a loss with probabilities as labels."""
    return {"labels": torch.rand(shape, generator=generator, dtype=torch.float64).softmax(dim=1)}


def _with(loss: nn.Module, name: str, value: float, batch: Batch) -> Tensor:
    """The loss of a batch where one setting has another value."""
    before = getattr(loss, name)
    setattr(loss, name, value)
    torch.manual_seed(0)
    try:
        return batch.loss(loss).detach()
    finally:
        setattr(loss, name, before)


def _shapes(member: Member) -> list[Any]:
    """Shapes to try: None for the member's own."""
    return [None, MAP] if member.maps else [None]


def _resized(shape: Any, size: int) -> Any:
    if not size:
        return shape
    return tuple((size, *each[1:]) for each in shape) if isinstance(shape[0], tuple) else (size, *shape[1:])


def _random(shape: Any, *, generator: torch.Generator, dtype: torch.dtype) -> Any:
    if isinstance(shape[0], tuple):
        return tuple(_random(each, generator=generator, dtype=dtype) for each in shape)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _map(change: Callable[[Tensor], Any], tensors: Any) -> Any:
    if isinstance(tensors, tuple):
        return tuple(change(tensor) for tensor in tensors)
    return None if tensors is None else change(tensors)


def _listed(tensors: Tensors | None) -> list[Tensor]:
    if tensors is None:
        return []
    return list(tensors) if isinstance(tensors, tuple) else [tensors]


def _reference(member: Member, batch: Batch, loss: nn.Module) -> float:
    def array(tensor: Tensor) -> Any:
        tensor = tensor.detach()
        return (tensor.to(torch.float64) if tensor.is_floating_point() else tensor).numpy()

    needs = {name: array(need) if isinstance(need, Tensor) else need for name, need in batch.needs.items()}
    if hasattr(loss, "prepare"):
        needs["weights"] = {name: array(tensor) for name, tensor in loss.state_dict().items()}
    torch.manual_seed(0)
    return float(member.reference(_map(array, batch.student), _map(array, batch.teacher), **needs))


def _value_and_gradients(loss: nn.Module, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
    tracked = batch.tracked()
    value = batch.loss(loss)
    gradients = torch.autograd.grad(value, tracked, allow_unused=True, materialize_grads=True)
    return value.detach(), gradients


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


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
