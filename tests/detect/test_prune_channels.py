"""Pruning: planted dead channels are found and nothing else changes; limits, targets and refusals."""

import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import torch
from detect_helpers import lively, outputs

from understudy.errors import UserError
from understudy.run.measure import parameter_count
from understudy.tasks.detect.channels import ChannelGraph, prunable_scales
from understudy.tasks.detect.guest import YOLO, open_yolo
from understudy.tasks.detect.prune import Pruning, prune
from understudy.tasks.detect.stages import save

SLOW = pytest.mark.slow
IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plant(model, share, seed=0):
    """Make that share of the channels of every group dead: scale and shift 0 in all norms over them."""
    draw = torch.Generator().manual_seed(seed)
    graph = ChannelGraph(model)
    for group in graph.groups:
        dead = torch.zeros(group.size, dtype=torch.bool)
        dead[torch.randperm(group.size, generator=draw)[: int(group.size * share)]] = True
        for scale in group.scales:
            channels = scale.own[dead[scale.places]]
            scale.norm.weight.data[channels] = 0
            scale.norm.bias.data[channels] = 0
    graph.fold()
    return sum(int(group.size * share) for group in graph.groups)


def named(name, request):
    return str(request.getfixturevalue("narrow_yaml")) if name == "narrow" else f"{name}.yaml"


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("narrow", "local"),
        ("narrow", "global"),
        ("yolo26n", "local"),
        *(pytest.param(name, "local", marks=SLOW) for name in ("yolo11n", "yolo12n", "yolo11n-seg", "yolo11n-pose")),
        *(pytest.param(name, "local", marks=SLOW) for name in ("yolo11n-obb", "yolo26n-obb", "yolo11n-cls")),
        *(pytest.param(name, "global", marks=SLOW) for name in ("yolo11n", "yolo12n", "yolo26n")),
    ],
)
def test_all_planted_dead_channels_are_found_and_no_output_changes(name, scope, request):
    model = lively(YOLO(named(name, request)).model)
    channels = sum(group.size for group in ChannelGraph(_copy(model)).groups)
    dead = plant(model, 0.5)
    before = outputs(model, IMAGES)
    ratio = 0.5 if scope == "local" else dead / channels
    done = prune(model, Pruning(ratio=ratio, scope=scope, round_to=1, imgsz=64))
    assert sum(was - left for was, left in done.widths.values()) > 0
    assert done.after["parameters"] < 0.65 * done.before["parameters"]
    for was, left in zip(before, outputs(done.model, IMAGES), strict=True):
        assert (was - left).abs().max() <= 1e-5 * was.abs().max()


def test_the_channels_with_the_smallest_scales_go(narrow_yaml):
    model = lively(YOLO(str(narrow_yaml)).model)
    name = "model.0"
    scales = model.get_submodule(f"{name}.bn").weight.detach().abs()
    done = prune(model, Pruning(ratio=0.5, round_to=1, imgsz=64))
    left = done.model.get_submodule(f"{name}.bn").weight.detach().abs()
    expected = scales.sort(descending=True).values[: len(left)]
    assert torch.equal(left.sort(descending=True).values, expected)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.6])
def test_the_widths_told_are_those_of_the_convolutions_and_never_larger_than_before(narrow_yaml, scope, ratio):
    model = lively(YOLO(str(narrow_yaml)).model)
    done = prune(model, Pruning(ratio=ratio, scope=scope, round_to=2, imgsz=64))
    for layer, (was, left) in done.widths.items():
        assert left <= was
        assert model.get_submodule(layer).conv.out_channels == was
        assert done.model.get_submodule(layer).conv.out_channels == left
        if scope == "local":
            assert abs(left - was * (1 - ratio)) <= 2  # each half of an opened block is rounded by itself


def test_the_model_itself_is_left_alone(narrow_yaml):
    model = lively(YOLO(str(narrow_yaml)).model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    prune(model, Pruning(ratio=0.5, imgsz=64))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


def test_a_pruned_file_opens_in_plain_yolo_with_stock_classes(narrow_yaml, tmp_path):
    yolo = YOLO(str(narrow_yaml))
    done = prune(lively(yolo.model), Pruning(ratio=0.4, round_to=4, imgsz=64))
    save(done.model, tmp_path / "pruned.pt", yolo)
    again = open_yolo(tmp_path / "pruned.pt")  # by the restricted reader, which knows ultralytics' classes only
    assert {type(module).__module__.split(".")[0] for module in again.model.modules()} <= {"ultralytics", "torch"}
    assert parameter_count(again.model) == int(done.after["parameters"])
    wanted = outputs(done.model.half().float(), IMAGES)
    assert all(torch.equal(one, other) for one, other in zip(wanted, outputs(again.model, IMAGES), strict=True))


@pytest.mark.parametrize("target", ["parameters", pytest.param("macs", marks=SLOW)])
def test_a_target_is_reached_by_the_smallest_ratio(narrow_yaml, target):
    model = lively(YOLO(str(narrow_yaml)).model)
    done = prune(model, Pruning(**{target: 0.5}, round_to=1, imgsz=64))
    assert 0.44 < done.after[target] / done.before[target] <= 0.5


def test_limits_and_kept_layers_hold_and_widths_are_rounded(narrow_yaml):
    model = lively(YOLO(str(narrow_yaml)).model)
    pruning = Pruning(ratio=0.6, round_to=4, limits={"model.3": 0.25}, keep=("model.0", "model.2"), imgsz=64)
    done = prune(model, pruning)
    for layer, (was, left) in done.widths.items():
        if layer == "model.0" or layer.startswith("model.2."):
            assert left == was
        assert left % 4 == 0
    assert done.widths["model.3"][1] >= 0.75 * done.widths["model.3"][0]
    assert done.widths["model.5"][1] < 0.6 * done.widths["model.5"][0]


def test_what_attention_fixes_is_named_and_a_wish_to_prune_it_refused():
    model = lively(YOLO("yolo11n.yaml").model)
    done = prune(model, Pruning(ratio=0.4, imgsz=64))
    assert "model.10" in done.in_words()
    assert any(layer.startswith("model.10.m.0.attn") for layer in done.kept)
    with pytest.raises(UserError, match=r"cannot be pruned: .*attention"):
        prune(model, Pruning(ratio=0.4, limits={"model.10.m.*": 0.2}, imgsz=64))
    with pytest.raises(UserError, match=r"no layer 'model\.99'"):
        prune(model, Pruning(ratio=0.4, keep=("model.99",), imgsz=64))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ratio": 0.0}, "above 0 and below 1"),
        ({"ratio": 1.0}, "above 0 and below 1"),
        ({}, "0 are given"),
        ({"ratio": 0.4, "macs": 0.5}, "2 are given"),
        ({"parameters": 1.0}, "share above 0 and below 1"),
        ({"latency": 3.0}, "above 0 and below 1"),
        ({"ratio": 0.4, "limits": {"model.0": 1.0}}, "model.0"),
        ({"ratio": 0.4, "round_to": 0}, "at least 1"),
        ({"ratio": 0.4, "most": 1.5}, "most"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        Pruning(**given)


def test_a_target_out_of_reach_says_what_can_be_had(narrow_yaml):
    model = lively(YOLO(str(narrow_yaml)).model)
    with pytest.raises(UserError, match="cannot be reached"):
        prune(model, Pruning(parameters=0.05, most=0.3, imgsz=64))


def test_prunable_scales_leave_out_attention():
    names = prunable_scales(YOLO("yolo11n.yaml").model)
    assert "model.0.bn" in names
    assert "model.2.cv1.bn" in names
    assert not [name for name in names if name.startswith("model.10.m")]
    assert len(names) == len(set(names))


def _copy(model):
    import copy

    return copy.deepcopy(model)
