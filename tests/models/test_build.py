"""From a model's name to a module."""

import sys
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn

import understudy as us
from understudy.data import Preprocess
from understudy.errors import UserError
from understudy.models import Card, build, save
from understudy.models.build import _replace_head
from understudy.models.table import REGISTERED
from understudy.recipe.schema import Model

RGB = (3, 32, 32)


def make(
    name: str, *, classes: int = 5, shape: tuple[int, int, int] = RGB, given: object = None, **options
) -> nn.Module:
    return build(Model.model_validate({"name": name, **options}), classes=classes, shape=shape, given=given)


def logits(module: nn.Module, shape: tuple[int, int, int] = RGB) -> torch.Tensor:
    outputs = module.eval()(torch.rand(2, *shape))
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


@pytest.fixture
def hf_folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=32, patch_size=16, **sizes)
    config.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


# Every kind of name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"hidden": [16]}),
        ("cnn", {"widths": [4, 8], "depth": 1}),
        ("strided-cnn", {"widths": [4, 8]}),
        ("cifar/resnet8", {}),
        ("cifar/vgg8", {}),
        ("timm/resnet10t", {}),
        ("timm/test_vit", {"img_size": 32}),
        ("torchvision/mobilenet_v3_small", {}),
        ("torchvision/squeezenet1_1", {}),
    ],
)
def test_models_are_built_by_name_in_training_mode_and_from_the_seed_alone(name: str, options: dict):
    torch.manual_seed(3)
    first = make(name, **options)
    torch.manual_seed(3)
    again = make(name, **options)
    other = make(name, **options)
    assert first.training
    for one, same in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert any((one != two).any() for one, two in zip(first.parameters(), other.parameters(), strict=True))
    assert logits(first).shape == (2, 5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "timm/resnet10t", "cifar/resnet8"])
def test_grey_images_get_a_first_layer_that_takes_them(name: str):
    options = {"hidden": [4]} if name == "mlp" else {}
    assert logits(make(name, shape=(1, 32, 32), **options), (1, 32, 32)).shape == (2, 5)


def test_grey_images_are_refused_where_the_first_layer_is_fixed(hf_folder: Path):
    for name in ("torchvision/resnet18", f"hf/{hf_folder}"):
        with pytest.raises(UserError, match="takes images of 3 channels, the data has 1"):
            make(name, shape=(1, 32, 32))


def test_the_size_of_a_model_is_that_of_its_input():
    module = make("mlp", hidden=[4], size=16, shape=(1, 28, 28))
    assert module.get_submodule("fc1").in_features == 256


def test_a_transformers_model_is_made_from_a_config_or_its_weights(hf_folder: Path):
    torch.manual_seed(0)
    module = make(f"hf/{hf_folder}")
    assert logits(module).shape == (2, 5)
    module.save_pretrained(hf_folder)  # pyright: ignore[reportCallIssue]
    loaded, fresh = make(f"hf/{hf_folder}", pretrained=True), make(f"hf/{hf_folder}")
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value)
    assert any((fresh.state_dict()[name] != value).any() for name, value in module.state_dict().items())


def test_objects_are_copied_and_callables_are_called():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
    copied = make("python:x", given=module)
    assert copied is not module
    torch.testing.assert_close(copied.state_dict()["1.weight"], module[1].weight)
    assert logits(make("python:x", given=lambda: module)).shape == (2, 5)
    with pytest.raises(UserError, match="calling it gave a int, not a torch module"):
        make("python:x", given=lambda: 3)
    with pytest.raises(UserError, match="pass the same object again"):
        make("python:x")


def test_registered_models_get_what_they_ask_for():
    @us.models.add("test-linear")
    def linear(*, classes: int, gain: float = 1.0) -> nn.Module:
        layer = nn.Linear(3072, classes)
        nn.init.constant_(layer.weight, gain)
        return nn.Sequential(nn.Flatten(), layer)

    try:
        assert make("test-linear", gain=3.0)[1].weight[0, 0] == 3  # pyright: ignore[reportIndexIssue]
        with pytest.raises(UserError, match="unexpected keyword argument 'gian'"):
            make("test-linear", gian=3.0)
    finally:
        REGISTERED.pop("test-linear")


def test_a_saved_folder_is_a_name(tmp_path: Path):
    module = make("cnn", widths=[4], depth=1)
    card = Card({"name": "cnn", "widths": [4], "depth": 1}, tuple("abcde"), RGB, Preprocess())
    save(module, tmp_path / "model", card)
    loaded = make(str(tmp_path / "model"))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_a_folder_called_as_a_model_does_not_hide_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cnn").mkdir()
    monkeypatch.chdir(tmp_path)
    assert logits(make("cnn")).shape == (2, 5)


# What does not fit


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "mpl"}, r"model\.name: unknown model 'mpl', did you mean 'mlp'"),
        ({"name": "cifar/resnet9"}, r"unknown model 'cifar/resnet9', did you mean 'cifar/resnet"),
        ({"name": "mlp", "hiden": [3]}, r"model\.hiden: unknown key, did you mean 'hidden'"),
        ({"name": "mlp"}, r"model\.hidden: is missing"),
        ({"name": "mlp", "hidden": "x"}, r"model\.hidden: should be a "),
        ({"name": "mlp", "hidden": [8], "pretrained": True}, "'mlp' has no pretrained weights"),
        ({"name": "mlp", "hidden": [-3]}, r"mlp: cannot be built for 5 classes and images \(3, 32, 32\)"),
        ({"name": "cnn", "weights": "nope.pt"}, r"model\.weights: .*file 'nope\.pt'"),
        ({"name": "timm/resnet10q"}, r"timm has no model 'resnet10q', did you mean .*'resnet10t'"),
        ({"name": "timm/resnet10t", "foo": 1}, "timm/resnet10t: cannot be built .*'foo'"),
        ({"name": "torchvision/resnet19"}, r"torchvision has no classifier 'resnet19', did you mean 'resnet18'"),
        ({"name": "torchvision/fasterrcnn_resnet50_fpn"}, "torchvision has no classifier"),
        ({"name": "torchvision/resnet18", "foo": 1}, "torchvision/resnet18: cannot be built .*'foo'"),
        ({"name": "no/such/folder"}, r"unknown model 'no/such/folder'.*or timm/…"),
    ],
)
def test_unknown_names_and_options_say_the_near_ones(given: dict, message: str):
    with pytest.raises(UserError, match=message):
        build(Model.model_validate(given), classes=5, shape=RGB)


@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18", "hf/nobody/nothing"])
def test_pretrained_weights_without_network_are_one_clear_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(UserError, match=rf"^{name}: its files could not be fetched or read \(.+\)$"):
        make(name, pretrained=True)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"needs the package timm: pip install 'understudy\[vit\]'"):
        make("timm/resnet10t")


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_pretrained_classifier_gets_a_head_for_the_classes(name: str):
    from torchvision.models import get_model

    module = get_model(name)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    _replace_head(module, 5)
    changed = [key for key, value in module.state_dict().items() if value.shape != before[key].shape]
    assert len(changed) == 2
    assert logits(module, (3, 64, 64)).shape == (2, 5)
    _replace_head(module, 5)
    assert logits(module, (3, 64, 64)).shape == (2, 5)
