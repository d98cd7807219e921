"""The CIFAR families against the figures counted on RepDistiller's models (100 classes, 32x32 input)."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from understudy.errors import UserError
from understudy.models.cifar.mobilenet import mobilenet_v2
from understudy.models.cifar.resnet import bottleneck_resnet, resnet
from understudy.models.cifar.sequential import TappedSequential
from understudy.models.cifar.shufflenet import shufflenet_v1, shufflenet_v2
from understudy.models.cifar.table import MODELS
from understudy.models.cifar.vgg import vgg
from understudy.models.cifar.wide_resnet import wide_resnet

# Name, parameters, multiply-adds in millions, tapped features: the table of the study, as it stands there.
FIGURES = """
resnet8 | 83,892 | 12.5 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet14 | 181,108 | 26.7 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet20 | 278,324 | 40.8 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet32 | 472,756 | 69.1 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet44 | 667,188 | 97.4 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet56 | 861,620 | 125.8 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet110 | 1,736,564 | 253.2 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
resnet8x4 | 1,233,540 | 177.1 | 32x32x32, 64x32x32, 128x16x16, 256x8x8, 256
resnet32x4 | 7,433,860 | 1083.0 | 32x32x32, 64x32x32, 128x16x16, 256x8x8, 256
resnet50 | 23,705,252 | 1298.0 | 64x32x32, 256x32x32, 512x16x16, 1024x8x8, 2048x4x4, 2048
wrn-16-1 | 180,916 | 26.7 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
wrn-16-2 | 703,284 | 101.1 | 16x32x32, 32x32x32, 64x16x16, 128x8x8, 128
wrn-40-1 | 569,780 | 83.3 | 16x32x32, 16x32x32, 32x16x16, 64x8x8, 64
wrn-40-2 | 2,255,156 | 327.6 | 16x32x32, 32x32x32, 64x16x16, 128x8x8, 128
vgg8 | 3,965,028 | 96.2 | 64x32x32, 128x16x16, 256x8x8, 512x4x4, 512x4x4, 512
vgg11 | 9,277,284 | 209.4 | 64x32x32, 128x16x16, 256x8x8, 512x4x4, 512x4x4, 512
vgg13 | 9,462,180 | 284.9 | 64x32x32, 128x16x16, 256x8x8, 512x4x4, 512x4x4, 512
vgg16 | 14,774,436 | 398.2 | 64x32x32, 128x16x16, 256x8x8, 512x4x4, 512x4x4, 512
vgg19 | 20,086,692 | 511.4 | 64x32x32, 128x16x16, 256x8x8, 512x4x4, 512x4x4, 512
mobilenet-v2 | 812,836 | 6.5 | 16x16x16, 12x16x16, 16x8x8, 48x4x4, 160x2x2, 1280
shufflenet-v1 | 949,258 | 38.7 | 24x32x32, 240x16x16, 480x8x8, 960x4x4, 960
shufflenet-v2 | 1,355,528 | 44.5 | 24x32x32, 116x16x16, 232x8x8, 464x4x4, 1024
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in FIGURES.strip().splitlines()]
NAMES = [f"cifar/{row[0]}" for row in ROWS]
# One small model of each builder, for what must be computed and not only counted.
SMALL = ("resnet8", "wrn-16-1", "vgg8", "mobilenet-v2", "shufflenet-v1", "shufflenet-v2")


def build(name: str, *, classes: int = 100, shape: tuple[int, int, int] = (3, 32, 32)) -> TappedSequential:
    module, function, options = MODELS[f"cifar/{name}"]
    return getattr(importlib.import_module(module), function)(**options, classes=classes, shape=shape)


def tapped(model: TappedSequential, images: Tensor) -> list[Tensor]:
    features: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        features.append(output)

    handles = [model.get_submodule(path).register_forward_hook(keep) for path in model.tap_points]
    model(images)
    for handle in handles:
        handle.remove()
    return features


def test_table_names_the_models_of_the_study():
    assert list(MODELS) == NAMES


@pytest.mark.parametrize(("name", "parameters", "macs", "shapes"), ROWS, ids=[row[0] for row in ROWS])
def test_parameters_macs_and_tapped_shapes_are_those_of_the_study(name, parameters, macs, shapes):
    with torch.device("meta"):
        model = build(name)
        images = torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        features = tapped(model, images)
    assert sum(parameter.numel() for parameter in model.parameters()) == int(parameters.replace(",", ""))
    assert counter.get_total_flops() / 2e6 == pytest.approx(float(macs), abs=0.0501)
    assert ["x".join(map(str, feature.shape[1:])) for feature in features] == shapes.split(", ")


@pytest.mark.parametrize("name", SMALL)
def test_grey_images_of_another_size_give_logits(name):
    logits = build(name, classes=7, shape=(1, 28, 28)).eval()(torch.rand(1, 1, 28, 28))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


def test_vgg_pools_once_more_from_64_pixels_on():
    with torch.device("meta"):
        features = tapped(vgg(depth=8, classes=10, shape=(3, 64, 64)), torch.empty(1, 3, 64, 64))
    assert features[4].shape == (1, 512, 4, 4)


@pytest.mark.parametrize("name", SMALL)
def test_tapped_features_are_not_altered_by_the_layers_after_them(name):
    model = build(name).train()
    copies: list[Tensor] = []
    for path in model.tap_points:
        model.get_submodule(path).register_forward_hook(lambda *call: copies.append(call[-1].clone()))
    features = tapped(model, torch.randn(2, 3, 32, 32))
    assert len(features) == len(copies) == len(model.tap_points)
    assert all(torch.equal(feature, copy) for feature, copy in zip(features, copies, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_makes_a_new_model_answer_the_same(name):
    first, second = build(name).eval(), build(name).eval()
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


def test_tensor_names_are_those_of_the_papers_checkpoints():
    with torch.device("meta"):
        names = {name: set(build(name).state_dict()) for name in SMALL}
    assert {"conv1.weight", "layer2.0.downsample.1.bias", "fc.bias"} <= names["resnet8"]
    assert {"block2.layer.0.convShortcut.weight", "block1.layer.1.bn2.bias", "bn1.bias"} <= names["wrn-16-1"]
    assert {"block0.0.bias", "block4.1.running_var", "classifier.weight"} <= names["vgg8"]
    assert {"conv1.0.weight", "blocks.6.0.conv.7.bias", "classifier.0.bias"} <= names["mobilenet-v2"]
    assert {"bn1.bias", "layer1.3.conv3.weight", "linear.bias"} <= names["shufflenet-v1"]
    assert {"layer3.0.bn5.bias", "layer2.7.conv3.weight", "conv2.weight"} <= names["shufflenet-v2"]


def test_convolutions_start_by_fan_out():
    weight = resnet(depth=8, widths=(16, 16, 32, 256), classes=10).get_parameter("layer3.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_a_slice_is_a_model():
    with torch.device("meta"):
        assert build("resnet8")[:4](torch.empty(1, 3, 32, 32)).shape == (1, 16, 32, 32)


@pytest.mark.parametrize(
    ("builder", "options", "advice"),
    [
        (resnet, {"depth": 21, "widths": (16, 16, 32, 64)}, "6n\\+2, not 21: use depth 20 or 26"),
        (resnet, {"depth": 2, "widths": (16, 16, 32, 64)}, "use depth 8 or 14"),
        (resnet, {"depth": 20, "widths": (16, 32, 64)}, "4 widths"),
        (bottleneck_resnet, {"depth": 18}, "use 50, 101 or 152"),
        (wide_resnet, {"depth": 20, "width": 2}, "6n\\+4, not 20: use depth 16 or 22"),
        (vgg, {"depth": 10}, "use 8, 11, 13, 16 or 19"),
        (mobilenet_v2, {"width": 0.01, "expansion": 6}, "use 0.5 and 6"),
        (shufflenet_v1, {"groups": 3, "widths": (240, 480), "blocks": (4, 8)}, "three stages"),
        (shufflenet_v1, {"groups": 5, "widths": (240, 480, 960), "blocks": (4, 8, 4)}, "do not divide"),
        (shufflenet_v2, {"widths": (115, 232, 464, 1024), "blocks": (4, 8, 4)}, "three even widths"),
    ],
)
def test_options_that_make_no_model_are_refused_in_one_line_of_advice(builder, options, advice):
    with pytest.raises(UserError, match=advice) as raised:
        builder(**options, classes=10)
    assert "\n" not in str(raised.value)


def test_the_table_imports_no_torch():
    code = "import sys, understudy.models.cifar.table; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
