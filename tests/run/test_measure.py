"""Size and cost of a model, against counts by hand and those of the distillation papers."""

import pytest
import torch
from torch import nn

from understudy.models import build
from understudy.models.cnn import strided_cnn
from understudy.models.mlp import mlp
from understudy.models.table import MODELS
from understudy.recipe.schema import Model
from understudy.run.measure import latency, measure, multiply_adds, parameter_count, size_on_disk


def test_an_mlp_counted_by_hand():
    found = measure(mlp(classes=10, shape=(1, 28, 28), hidden=(1200, 1200)), torch.rand(1, 1, 28, 28))
    macs = 784 * 1200 + 1200 * 1200 + 1200 * 10
    assert (found["parameters"], found["macs"]) == (macs + 2410, macs)
    assert found["size_bytes"] == 4 * (macs + 2410)
    assert found["latency_ms"] > 0


def test_convolutions_counted_by_hand():
    model = strided_cnn(classes=10, shape=(1, 28, 28), widths=(16, 32))
    macs = 14 * 14 * 9 * 16 + 7 * 7 * 9 * 16 * 32 + 7 * 7 * 32 * 10
    assert multiply_adds(model, torch.rand(1, 1, 28, 28)) == macs
    grouped = nn.Conv2d(8, 8, 3, groups=4, padding=1)
    assert multiply_adds(grouped, torch.rand(1, 8, 10, 10)) == 100 * 9 * 2 * 8


@pytest.mark.parametrize(
    ("name", "parameters", "millions"), [("cifar/resnet8x4", 1_233_540, 177.1), ("cifar/mobilenet-v2", 812_836, 6.5)]
)
def test_models_of_the_papers(name: str, parameters: int, millions: float):
    assert name in MODELS
    model = build(Model(name=name), classes=100, shape=(3, 32, 32))
    assert parameter_count(model) == parameters
    assert multiply_adds(model, torch.rand(1, 3, 32, 32)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_shared_parameters_are_counted_once_and_buffers_weigh():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    assert parameter_count(model) == 16 + 4 + 4 + 8
    assert size_on_disk(nn.BatchNorm1d(4)) == 4 * 16 + 8


def test_measuring_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert 0 < latency(model, torch.rand(1, 4), seconds=0.02) < 1000
    measure(model, torch.rand(1, 4))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
