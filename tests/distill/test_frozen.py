"""A teacher built for answering: the same answers, whatever is tapped, and the model itself untouched."""

import copy

import pytest
import torch
from torch import nn

from understudy.data import Preprocess
from understudy.distill import Ensemble, Teacher, stage_ends
from understudy.distill.cache import identity_of
from understudy.distill.frozen import difference, folded
from understudy.models import build
from understudy.recipe.schema import Model

NAMES = ("cifar/resnet20", "cifar/wrn-16-1", "cifar/vgg8", "cifar/mobilenet-v2", "cifar/shufflenet-v2", "cnn")


def network(name: str, *, size: int = 32) -> nn.Module:
    """A network whose BatchNorms have seen something."""
    torch.manual_seed(0)
    module = build(Model(name=name), classes=10, shape=(3, size, size)).train()
    with torch.no_grad():
        for _ in range(3):
            module(2 * torch.randn(16, 3, size, size) + 1)
        for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return module.eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


@pytest.mark.parametrize("name", NAMES)
def test_a_folded_network_gives_the_same_logits_and_features_in_fewer_layers(name):
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    copied, pairs = folded(model)
    assert norms(model) - norms(copied) == pairs > 0
    assert difference(model, copied, torch.randn(4, 3, 32, 32), stage_ends(model)) < 1e-5
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_convolution_that_is_tapped_keeps_its_own_output():
    model = network("cifar/resnet20")
    taps = ("layer1.0.conv1", "layer2.0.bn2:input", "layer1.0.bn2", "layer3")
    whole, pairs = folded(model)
    inputs = torch.randn(4, 3, 32, 32)
    assert difference(model, whole, inputs, taps) > 0.01
    copied, kept = folded(model, spare=taps)
    assert kept == pairs - 2
    assert difference(model, copied, inputs, taps) < 1e-5


class Shared(nn.Module):
    """A convolution that something else reads too, one before nothing, and a forward that cannot be followed."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        before = self.conv(images)
        features = self.norm(before) + before
        return self.head(self.inner(features).mean((2, 3)))


class Untraceable(Shared):
    def forward(self, images):
        return super().forward(images) if float(images.sum()) > -1e9 else images


@pytest.mark.parametrize("kind", [Shared, Untraceable])
def test_a_convolution_that_something_else_reads_is_left_alone(kind):
    model = kind().eval()
    model.norm.running_mean.fill_(2.0)
    model.inner[1].running_mean.fill_(3.0)
    copied, pairs = folded(model)
    assert pairs == 1
    assert isinstance(copied.norm, nn.BatchNorm2d)
    assert difference(model, copied, torch.randn(4, 3, 8, 8)) < 1e-5


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, features):
        return super().forward(features).relu()


def test_what_is_derived_from_a_batch_norm_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NormAndActivation(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    assert folded(model)[1] == 1


def test_a_frozen_teacher_answers_as_the_eager_one_in_any_company(images):
    model = network("cifar/resnet20")
    eager, frozen = (Teacher(model, preprocess=Preprocess(), chunk=3) for _ in range(2))
    assert frozen.freeze(images, taps=stage_ends(model)) == []
    assert frozen.network is not model
    wanted, found = (teacher(images, taps=stage_ends(model)) for teacher in (eager, frozen))
    for one, other in (
        (wanted.logits, found.logits),
        *((wanted.features[path], found.features[path]) for path in wanted.features),
    ):
        assert torch.allclose(one, other, atol=1e-4 * one.abs().max())
    assert all(feature.is_contiguous() for feature in found.features.values())
    assert torch.equal(frozen(images[2:4], taps=["layer2"]).features["layer2"], found.features["layer2"][2:4])
    assert torch.equal(frozen(images[2:4]).logits, found.logits[2:4])


def test_a_copy_that_answers_otherwise_is_not_used_and_that_is_said(images, monkeypatch):
    from understudy.distill import teacher as module

    def spoiled(model, spare=()):
        copied, pairs = folded(model, spare=spare)
        copied.fc.bias += 0.1
        return copied, pairs

    monkeypatch.setattr(module, "folded", spoiled)
    model = network("cifar/resnet20")
    teacher = Teacher(model, preprocess=Preprocess(), chunk=8)
    (said,) = teacher.freeze(images)
    assert "were not folded: that changes its answers by" in said
    assert teacher.network is model
    assert teacher.manner == {}


def test_folding_is_part_of_what_answers_depend_on(images):
    model = network("cifar/resnet20")
    teachers = [Teacher(model, preprocess=Preprocess(), chunk=8) for _ in range(2)]
    teachers[1].freeze(images)
    assert identity_of(teachers[0]) != identity_of(teachers[1])


def test_gradients_with_respect_to_the_input_are_those_of_the_model(images):
    model = network("cifar/resnet20")
    eager, frozen = (Teacher(model, chunk=3) for _ in range(2))
    frozen.freeze(images.float())
    gradients = []
    for teacher in (eager, frozen):
        inputs = images.float().requires_grad_()
        teacher(inputs, graph=True).logits.square().sum().backward()
        gradients.append(inputs.grad)
    assert torch.equal(*gradients)


def test_a_network_without_batch_norms_is_asked_as_it_is(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
    teacher = Teacher(model, preprocess=Preprocess(), chunk=8)
    assert teacher.freeze(images) == []
    assert teacher.network is model


def test_members_of_an_ensemble_are_folded(images):
    model = Ensemble([network("cifar/resnet20"), network("cifar/vgg8")]).eval()
    teacher = Teacher(model, chunk=8)
    wanted = teacher(images)
    assert teacher.freeze(images) == []
    assert norms(teacher.network) == 0
    assert torch.allclose(teacher(images).members, wanted.members, atol=1e-4 * wanted.members.abs().max())


def test_half_precision_is_the_teachers_own(images):
    model = network("cifar/resnet20")
    teacher = Teacher(model, preprocess=Preprocess(), chunk=8)
    exact = teacher(images).logits
    teacher.freeze(images, precision="bf16")
    coarse = teacher(images).logits
    assert 1e-4 < (coarse.float() - exact).abs().max() / exact.abs().max() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        teacher.freeze(images, precision="fp32")
        assert teacher(images).logits.dtype == torch.float32


def test_tapped_features_keep_a_network_from_being_compiled(images):
    teacher = Teacher(network("cifar/resnet20"), preprocess=Preprocess(), chunk=8)
    (said,) = teacher.freeze(images, taps=["layer2"], compiled=True)
    assert "not compiled: its features are tapped" in said
    assert teacher(images, taps=["layer2"]).features["layer2"].shape[0] == 8


def test_without_a_compiler_it_runs_eagerly_and_that_is_said(images, monkeypatch):
    def refuse(*_arguments, **_options):
        raise RuntimeError("\nno C++ compiler was found\nmore")

    monkeypatch.setattr(torch, "compile", refuse)
    teacher = Teacher(network("cifar/resnet20"), preprocess=Preprocess(), chunk=8)
    assert teacher.freeze(images, compiled=True) == ["it was not compiled: no C++ compiler was found"]
    assert teacher(images).logits.shape == (8, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_compiled_teacher_answers_as_the_eager_one(images):
    model = network("cifar/resnet20")
    eager, compiled = (Teacher(model, preprocess=Preprocess(), chunk=8) for _ in range(2))
    assert compiled.freeze(images, compiled=True) == []
    assert compiled.manner["compiled"]
    wanted = eager(images).logits
    assert torch.allclose(compiled(images).logits, wanted, atol=1e-4 * wanted.abs().max())
    assert torch.equal(compiled(images[2:4]).logits, compiled(images).logits[2:4])
