"""Opening and folding blocks: not one bit of any output changes, and only stock classes remain."""

import copy

import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import torch
from detect_helpers import lively, outputs

from understudy.errors import UserError
from understudy.tasks.detect.blocks import OpenBlock, check_prunable, fold_blocks, open_blocks
from understudy.tasks.detect.guest import YOLO


@pytest.mark.parametrize("family", ["yolov8n", "yolo11n", "yolo12n", "yolo26n"])
def test_opened_and_folded_a_model_computes_the_very_same_bits(family):
    model = lively(YOLO(f"{family}.yaml").model)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    before = outputs(model, images)
    classes = [type(module) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())

    opened = open_blocks(model)
    assert len(opened) >= 3
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(model, images), strict=True))

    fold_blocks(model)
    assert all(torch.equal(one, other) for one, other in zip(before, outputs(model, images), strict=True))
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_opening_keeps_what_is_trained_and_how(narrow_yaml):
    model = YOLO(str(narrow_yaml)).model
    model.train()
    model.model[2].cv1.conv.weight.requires_grad_(False)
    open_blocks(model)
    block = model.model[2]
    assert isinstance(block, OpenBlock)
    assert block.cv0.bn.training
    assert not block.cv0.conv.weight.requires_grad
    assert block.cv1.bn.weight.requires_grad
    fold_blocks(model)
    assert not model.model[2].cv1.conv.weight.requires_grad


def test_halves_of_unlike_width_are_refused_not_folded(narrow_yaml):
    model = YOLO(str(narrow_yaml)).model
    open_blocks(model)
    block = model.model[2]
    block.cv0.conv.out_channels -= 1
    with pytest.raises(UserError, match="do not fold"):
        block.fold()


@pytest.mark.parametrize(
    ("family", "named"), [("yolov9t", "ELAN1"), ("yolov10n", "SCDown"), ("yolov8s-world", "C2fAttn")]
)
def test_a_block_that_cannot_be_pruned_is_refused_by_name(family, named):
    with pytest.raises(UserError, match=rf"model\.\d+ is a {named}"):
        check_prunable(YOLO(f"{family}.yaml").model)
