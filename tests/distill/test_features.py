"""Features of unlike models meet: automatic pairs, adapters from shapes, logits beside features, input gradients."""

import pytest
import torch
from torch import nn

import understudy as us
from understudy.distill.adapters import make_adapter
from understudy.distill.match import match
from understudy.distill.taps import tapped
from understudy.losses.table import LOSSES
from understudy.models import build
from understudy.recipe.schema import Method, Model
from understudy.tasks.classify.objectives import objectives


def network(*widths: int, name: str = "cnn") -> nn.Module:
    return build(Model(name=name, widths=list(widths)), classes=10, shape=(1, 16, 16))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((3, 8), (3, 16)),
        ((3, 8, 8, 8), (3, 16, 4, 4)),
        ((3, 8, 4, 4), (3, 8, 8, 8)),
        ((3, 17, 8), (3, 65, 12)),  # tokens with a class token in front
        ((3, 17, 8), (3, 12, 8, 8)),  # tokens to a map
        ((3, 12, 8, 8), (3, 17, 24)),  # a map to tokens
    ],
)
def test_an_adapter_gives_the_teachers_shape_and_a_gradient(student, teacher):
    feature = torch.randn(student, requires_grad=True)
    adapter = make_adapter(torch.zeros(student), torch.zeros(teacher))
    adapted = adapter(feature)
    assert adapted.shape == teacher
    adapted.square().sum().backward()
    assert feature.grad is not None
    assert feature.grad.abs().sum() > 0


def test_equal_shapes_need_no_adapter_and_unlike_kinds_are_refused():
    assert isinstance(make_adapter(torch.zeros(2, 8, 4, 4), torch.zeros(5, 8, 4, 4)), nn.Identity)
    with pytest.raises(us.UserError, match="tap places of one kind"):
        make_adapter(torch.zeros(2, 8), torch.zeros(2, 8, 4, 4))


def test_resizing_by_an_adapter_is_average_pooling():
    adapter = make_adapter(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4))
    feature = torch.randn(1, 2, 8, 8)
    assert torch.allclose(adapter(feature), nn.functional.avg_pool2d(feature, 2))


def test_pairs_are_made_by_resolution_then_by_depth():
    student = {"stem": (2, 8, 32, 32), "a": (2, 8, 32, 32), "b": (2, 16, 16, 16), "pool": (2, 16)}
    teacher = {"s1": (2, 64, 32, 32), "s2": (2, 128, 16, 16), "s3": (2, 256, 8, 8)}
    assert match(student, teacher) == (("a", "b"), ("s1", "s2"))
    other = {"x": (2, 4, 20, 20), "y": (2, 4, 10, 10), "z": (2, 4, 5, 5)}
    assert match({"a": (2, 8, 32, 32), "b": (2, 16, 16, 16)}, other) == (("a", "b"), ("y", "z"))
    tokens = {f"blocks.{i}": (2, 65, 192) for i in range(4)}
    assert match(student, tokens)[0] == ("a", "b")


def test_auto_pairs_a_convolutional_teacher_with_a_transformer():
    timm = pytest.importorskip("timm")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1, **small)
    teacher = build(Model(name="cifar/resnet8x4"), classes=10, shape=(1, 32, 32))
    objective = us.Objective(us.losses.PKD(), student_tap="auto")
    distiller = us.Distiller(student=vit, teacher=teacher, objectives=[objective], example=torch.randn(2, 1, 32, 32))
    assert len(objective.student_paths) == len(objective.teacher_paths) > 1
    losses = distiller(torch.randn(4, 1, 32, 32))
    losses.total.backward()
    adapters = [parameter for name, parameter in distiller.named_parameters() if "adapters" in name]
    assert adapters
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapters)


def test_a_losss_own_weights_are_parameters_of_the_distiller_before_any_optimiser():
    distiller = us.Distiller(
        student=network(4, 8),
        teacher=network(8, 16),
        objectives=[us.Objective(us.losses.FitNet(), student_tap="auto")],
        example=torch.randn(2, 1, 16, 16),
    )
    own = [name for name, _ in distiller.named_parameters() if name.startswith("objectives")]
    assert own
    state = distiller.state_dict()
    assert set(own) <= set(state)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"vitkd"}))
def test_every_method_trains_a_convolutional_pair_by_its_name_alone(name):
    from understudy.recipe.methods import expand_method
    from understudy.recipe.schema import Method

    torch.manual_seed(0)
    method = Method.model_validate(expand_method(name))
    student = network(4, 8)
    distiller = us.Distiller(
        student=student,
        teacher=network(8, 16),
        objectives=objectives(method, samples=100),
        example=torch.randn(4, 1, 16, 16),
    )
    before = {key: value.clone() for key, value in student.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    for step in range(2):
        images, labels = torch.randn(8, 1, 16, 16), torch.arange(8) % 10
        losses = distiller(images, labels, sample_ids=torch.arange(8) + 8 * step, step=step, epoch=1)
        assert torch.isfinite(losses.total)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert any(not torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_taps_that_a_loss_cannot_compare_are_refused_at_construction():
    with pytest.raises(us.UserError, match="cannot compare what is tapped"):
        us.Distiller(
            student=network(4, 8),
            teacher=network(8, 16),
            objectives=[us.Objective(us.losses.FitNet(), student_tap="last", teacher_tap="embedding")],
            example=torch.randn(2, 1, 16, 16),
        )


def transformer(width: int) -> nn.Module:
    settings = {"patch": 4, "width": width, "depth": 4, "heads": 2}
    return build(Model.model_validate({"name": "vit", **settings}), classes=10, shape=(1, 16, 16))


PAIRS = {
    "maps to tokens": lambda: (network(8, 16), transformer(16)),
    "tokens to maps": lambda: (transformer(16), network(4, 8)),
    "tokens to tokens": lambda: (transformer(24), transformer(16)),
}
# Tokens say nothing of where a class is seen, maps are no blocks, early exits are made for convolutions, and a
# transformer's last layer does not take the average of its patches.
REFUSED = {
    "maps to tokens": {"catkd", "lwm", "byot", "vitkd"},
    "tokens to maps": {"catkd", "lwm", "vitkd", "simkd"},
    "tokens to tokens": {"catkd", "lwm", "byot", "simkd"},
}


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.taps != "logits"])
@pytest.mark.parametrize("pair", PAIRS)
def test_convolutions_and_transformers_meet_by_a_methods_name_alone(pair, name):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    teacher, student = PAIRS[pair]()
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4)

    def made():
        described = objectives(Method.model_validate(name), samples=100)
        return us.Distiller(student=student, teacher=teacher, objectives=described, example=images)

    if name in REFUSED[pair]:
        with pytest.raises(us.UserError, match=r"cannot compare what is tapped|the average of its map"):
            made()
        return
    distiller = made()
    losses = distiller(images, labels, sample_ids=torch.arange(4))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert distiller.exported(images).shape == (4, 10)
    first = next(student.children())
    assert all(parameter.grad is not None for parameter in first.parameters())


def test_a_loss_on_any_channels_gets_tokens_as_maps_and_no_adapter():
    pytest.importorskip("timm")
    student, teacher = transformer(16), network(8, 16)
    images = torch.randn(2, 1, 16, 16)
    objective = us.Objective(us.losses.AT(), student_tap="blocks.3", teacher_tap="stage1")
    distiller = us.Distiller(student=student, teacher=teacher, objectives=[objective], example=images)
    assert not any(name.startswith("objectives") for name, _ in distiller.named_parameters())
    with torch.no_grad(), tapped(student, ["blocks.3"]) as tokens:
        student(images)
    with torch.no_grad(), tapped(teacher, ["stage1"]) as maps:
        teacher(images)
    patches = tokens["blocks.3"][:, 1:].mT.unflatten(2, (4, 4))
    expected = us.losses.AT()(patches, maps["stage1"])
    torch.testing.assert_close(distiller(images).parts["at"], expected)
