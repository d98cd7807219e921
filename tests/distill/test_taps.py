"""Taps: found by path, read during a forward, gone afterwards."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from understudy.distill import find, shapes, stage_ends, tapped
from understudy.distill.taps import StopForward, logits_of
from understudy.errors import UserError


class Counter(nn.Module):
    """Passes its input on and counts."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images


def chain() -> nn.Sequential:
    layers = [(f"layer{index}", nn.Linear(4, 4)) for index in range(1, 5)]
    return nn.Sequential(OrderedDict([*layers, ("after", Counter()), ("head", nn.Linear(4, 3))]))


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("layer2", ("layer2",)),
        ("layer[2-4]", ("layer2", "layer3", "layer4")),
        ("layer*", ("layer1", "layer2", "layer3", "layer4")),
        (["head", "layer1", "layer[12]"], ("head", "layer1", "layer2")),
    ],
)
def test_patterns_find_modules(pattern, paths):
    assert find(chain(), pattern) == paths


def test_a_star_stays_on_its_level():
    model = nn.Sequential(OrderedDict(a=nn.Sequential(nn.Linear(1, 1)), b=nn.Linear(1, 1)))
    assert find(model, "*") == ("a", "b")
    assert find(model, "a.*") == ("a.0",)


def test_a_path_that_does_not_exist_names_the_near_ones():
    with pytest.raises(UserError, match=r"no module 'layr3' in Sequential, did you mean 'layer3'"):
        find(chain(), "layr3")


def test_outputs_are_read_and_hooks_removed():
    model, images = chain(), torch.randn(2, 4)
    with tapped(model, ["layer1", "layer3", "layer1"]) as features:
        model(images)
    assert sorted(features) == ["layer1", "layer3"]
    assert torch.equal(features["layer1"], model.layer1(images))
    assert hooks(model) == 0


def test_hooks_are_removed_on_an_error_in_the_forward_and_in_a_path():
    model = chain()
    with pytest.raises(RuntimeError), tapped(model, ["layer1"]):
        model(torch.randn(2, 5))
    assert hooks(model) == 0
    with pytest.raises(AttributeError), tapped(model, ["layer1", "nowhere"]):
        pass
    assert hooks(model) == 0


def test_each_forward_fills_the_features_anew_and_stops_at_the_deepest_tap():
    model = chain()
    with tapped(model, ["layer3", "layer1"], stop=True) as features:
        seen = []
        for images in torch.randn(3, 2, 4):
            with pytest.raises(StopForward):
                model(images)
            seen.append((images, features["layer3"]))
    assert model.after.calls == 0
    for images, found in seen:
        assert torch.equal(found, model.layer3(model.layer2(model.layer1(images))))


def test_a_module_that_runs_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, images):
            return self.relu(self.relu(images) - 1)

    with pytest.raises(UserError, match="'relu' runs several times"), tapped(model := Twice(), ["relu"]):
        model(torch.randn(2, 4))


def test_a_module_that_gives_no_tensor_is_refused():
    class Words(nn.Module):
        def forward(self, _images):
            return {"a": 1}

    with (
        pytest.raises(UserError, match="the module '0' gives a dict, no tensor"),
        tapped(m := nn.Sequential(Words()), ["0"]),
    ):
        m(torch.randn(1))


def test_the_first_of_a_tuple_and_a_last_hidden_state_are_read():
    class Odd(nn.Module):
        def __init__(self, make):
            super().__init__()
            self.make = make

        def forward(self, images):
            return self.make(images)

    for make in (lambda x: (x, None), lambda x: SimpleNamespace(last_hidden_state=x)):
        model, images = nn.Sequential(Odd(make)), torch.randn(2)
        with tapped(model, ["0"]) as features:
            model(images)
        assert torch.equal(features["0"], images)


def test_logits_are_found_in_what_models_return():
    from transformers.modeling_outputs import ImageClassifierOutput

    logits = torch.randn(2, 3)
    for output in (
        logits,
        (logits, None),
        [logits],
        {"aux": 1, "logits": logits},
        ImageClassifierOutput(logits=logits),
    ):
        assert logits_of(output) is logits
    for output in ({"out": logits}, None, (), ("word",)):
        with pytest.raises(UserError, match="wanted logits as a tensor"):
            logits_of(output)


def torchvision(name):
    return lambda: __import__("torchvision").models.get_model(name)


def timm(name):
    return lambda: pytest.importorskip("timm").create_model(name)


def cifar(name):
    from understudy.models import build
    from understudy.recipe.schema import Model

    return lambda: build(Model(name=f"cifar/{name}"), classes=10, shape=(3, 32, 32))


def blocks(pattern: str, numbers) -> tuple[str, ...]:
    return tuple(pattern.format(number) for number in numbers)


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (cifar("resnet20"), ("relu", "layer1", "layer2", "layer3", "flatten")),
        (cifar("wrn-16-2"), ("conv1", "block1", "block2", "block3", "flatten")),
        (cifar("vgg8"), (*blocks("block{}", range(5)), "flatten")),
        (torchvision("resnet18"), blocks("layer{}", (1, 2, 3, 4))),
        (torchvision("mobilenet_v3_small"), blocks("features.{}", (2, 5, 9, 12))),
        (torchvision("convnext_tiny"), blocks("features.{}", (1, 3, 5, 7))),
        (torchvision("vit_b_16"), blocks("encoder.layers.encoder_layer_{}", (2, 5, 8, 11))),
        (timm("vit_tiny_patch16_224"), blocks("blocks.{}", (2, 5, 8, 11))),
        (timm("resnet50"), ("act1", *blocks("layer{}", (1, 2, 3, 4)))),
        (timm("convnext_atto"), blocks("stages.{}", range(4))),
    ],
)  # fmt: skip
def test_stage_ends_are_where_papers_tap(make, paths):
    assert stage_ends(make()) == paths


def test_stage_ends_of_small_models_leave_out_the_head():
    small = nn.Sequential(OrderedDict(fc1=nn.Linear(4, 4), relu=nn.ReLU(), fc2=nn.Linear(4, 4), head=nn.Linear(4, 2)))
    assert stage_ends(small) == ("fc1", "fc2")
    assert stage_ends(nn.Sequential(OrderedDict(net=small))) == ("net.fc1", "net.fc2")
    assert stage_ends(nn.Linear(2, 2)) == ()


def test_shapes_come_in_the_models_order_and_leave_no_hooks():
    model = chain().train()
    assert list(shapes(model, torch.randn(2, 4)).items())[-1] == ("head", (2, 3))
    assert hooks(model) == 0
    assert model.training
