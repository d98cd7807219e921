"""A saved model: read again by us, by its own library and by plain torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from understudy.data import Preprocess
from understudy.errors import UserError
from understudy.models import Card, build, load, read_card, save
from understudy.models.table import REGISTERED
from understudy.recipe.schema import Model

RGB = (3, 32, 32)
NAMES = ("ant", "bee", "cow")
PREPROCESS = Preprocess(None, (0.5, 0.4, 0.3), (0.2, 0.2, 0.25))


@pytest.fixture
def vit(tmp_path: Path) -> str:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.ViTConfig(image_size=32, patch_size=16, **sizes).save_pretrained(tmp_path / "vit")
    return f"hf/{tmp_path / 'vit'}"


def saved(
    folder: Path, name: str, *, given: object = None, preprocess: Preprocess = PREPROCESS, **options
) -> nn.Module:
    """A model with weights that no initialisation gives, in a folder."""
    model = Model.model_validate({"name": name, **options})
    module = build(model, classes=len(NAMES), shape=RGB, given=given)
    torch.manual_seed(1)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    save(module, folder, Card(model.model_dump(mode="json"), NAMES, RGB, preprocess, "f00", "A test."))
    return module.eval()


def images() -> torch.Tensor:
    return torch.rand(4, *RGB, generator=torch.Generator().manual_seed(2))


def answer(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        outputs = module(images())
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def assert_equal(first: nn.Module, second: nn.Module) -> None:
    assert list(first.state_dict()) == list(second.state_dict())
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(answer(first), answer(second))


KINDS = [
    ("mlp", {"hidden": [7, 5], "dropout": 0.1}),
    ("mlp", {"hidden": [7], "size": 32}),
    ("cnn", {"widths": [4, 6], "depth": 1}),
    ("strided-cnn", {"widths": [4, 6]}),
    ("cifar/resnet8", {}),
    ("cifar/shufflenet-v2", {}),
    ("timm/resnet10t", {}),
    ("timm/test_vit", {"img_size": 32, "drop_path_rate": 0.1}),
    ("torchvision/squeezenet1_1", {"dropout": 0.3}),
]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_every_kind_of_model_comes_back_bit_for_bit(tmp_path: Path, name: str, options: dict):
    module = saved(tmp_path / "m", name, **options)
    loaded = load(tmp_path / "m")
    assert_equal(module, loaded)
    assert not loaded.training
    card = loaded.card
    assert isinstance(card, Card)
    assert (card.classes, card.shape, card.preprocess, card.fingerprint) == (NAMES, RGB, PREPROCESS, "f00")
    assert sorted(file.name for file in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_transformers_model_comes_back_bit_for_bit(tmp_path: Path, vit: str):
    assert_equal(saved(tmp_path / "m", vit), load(tmp_path / "m"))


def test_a_registered_model_and_an_object_come_back_bit_for_bit(tmp_path: Path):
    def make(**_: object) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))

    REGISTERED["test-linear"] = make
    try:
        assert_equal(saved(tmp_path / "a", "test-linear"), load(tmp_path / "a"))
    finally:
        REGISTERED.pop("test-linear")
    module = saved(tmp_path / "b", "python:make", given=make)
    assert_equal(module, load(tmp_path / "b", given=make))
    assert_equal(module, load(tmp_path / "b", given=make()))
    with pytest.raises(UserError, match="pass the same object again"):
        load(tmp_path / "b")


def test_a_copy_of_a_loaded_model_does_not_need_the_folder_it_came_from(tmp_path: Path):
    module = saved(tmp_path / "a", "cnn", widths=[4], depth=1)
    description = Model(name=str(tmp_path / "a"))
    again = build(description, classes=3, shape=RGB)
    save(again, tmp_path / "b", Card(description.model_dump(mode="json"), NAMES, RGB, PREPROCESS))
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    assert_equal(module, load(tmp_path / "b"))


def test_the_student_of_a_run_is_found(tmp_path: Path):
    assert_equal(saved(tmp_path / "run" / "student", "mlp", hidden=[4]), load(tmp_path / "run"))


def test_saving_again_replaces(tmp_path: Path):
    saved(tmp_path, "mlp", hidden=[4])
    assert_equal(saved(tmp_path, "cnn", widths=[4], depth=1), load(tmp_path))


def test_shared_tensors_are_saved_once_each(tmp_path: Path):
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3), nn.Linear(3, 3), nn.Linear(3, 3))
        module[3].weight = module[2].weight
        return module

    assert_equal(saved(tmp_path, "python:tied", given=tied), load(tmp_path, given=tied))


# The files


def test_the_config_holds_architecture_preprocessing_and_class_names(tmp_path: Path):
    saved(tmp_path, "cnn", widths=[4], preprocess=Preprocess(32, (0.5,), (0.25,)))
    config = json.loads((tmp_path / "config.json").read_text())
    about = config["understudy"]
    assert config["architecture"] == "cnn"
    assert (about["model"]["name"], about["model"]["widths"]) == ("cnn", [4])
    assert about["preprocess"] == {"size": 32, "mean": [0.5], "std": [0.25]}
    assert about["classes"] == list(NAMES)
    assert read_card(tmp_path).preprocess == Preprocess(32, (0.5,), (0.25,))


def test_a_folder_that_holds_no_model_of_ours_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"config\.json: no such file: give the folder of a saved model"):
        load(tmp_path)
    for content in ("{", "{}", "[]", '{"understudy": {"model": 3}}', '{"understudy": 1}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"is not a config\.json written by understudy"):
            load(tmp_path)


def test_missing_and_foreign_weights_are_said(tmp_path: Path):
    saved(tmp_path / "a", "mlp", hidden=[4])
    saved(tmp_path / "b", "mlp", hidden=[5])
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="holds the weights of another model"):
        load(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        load(tmp_path / "a")


# Other libraries


def readme_code(folder: Path) -> str:
    """The model card's own code to load the model without understudy, pointed at the folder."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert "understudy" in blocks[0]
    assert "understudy" not in blocks[1]
    return blocks[1].replace("path/to/this/folder", str(folder))


def test_plain_torch_loads_a_student(tmp_path: Path):
    module = saved(tmp_path, "mlp", hidden=[7, 5])
    torch.save({"images": images(), "logits": answer(module)}, tmp_path / "wanted.pt")
    script = f"""
import sys, torch
from collections import OrderedDict
from torch import nn
from safetensors.torch import load_file
model = nn.Sequential(OrderedDict(
    flatten=nn.Flatten(), fc1=nn.Linear(3072, 7), relu1=nn.ReLU(), fc2=nn.Linear(7, 5), relu2=nn.ReLU(),
    fc3=nn.Linear(5, 3),
))
model.load_state_dict(load_file({str(tmp_path / "model.safetensors")!r}), strict=True)
wanted = torch.load({str(tmp_path / "wanted.pt")!r})
assert (model(wanted["images"]) - wanted["logits"]).abs().max() <= 1e-6
assert not any(name.startswith("understudy") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(("name", "options"), [kind for kind in KINDS if not kind[0].startswith("cifar/")])
def test_the_code_in_the_model_card_gives_the_same_logits(tmp_path: Path, name: str, options: dict):
    module = saved(tmp_path, name, **options)
    names = {"images": images()}
    exec(readme_code(tmp_path), names)
    torch.testing.assert_close(names["logits"], answer(module))


def test_the_code_in_the_model_card_of_a_transformers_model_gives_the_same_logits(tmp_path: Path, vit: str):
    module = saved(tmp_path / "m", vit)
    names = {"images": images()}
    exec(readme_code(tmp_path / "m"), names)
    torch.testing.assert_close(names["logits"], answer(module))
    assert names["model"].config.id2label == dict(enumerate(NAMES))  # pyright: ignore[reportAttributeAccessIssue]


def test_timm_reads_normalisation_size_and_class_names_of_a_student(tmp_path: Path):
    timm = pytest.importorskip("timm")
    saved(tmp_path, "timm/resnet10t")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = timm.data.resolve_data_config({}, model=loaded)
    found = [tuple(config[key]) for key in ("mean", "std", "input_size")]
    assert found == [PREPROCESS.mean, PREPROCESS.std, RGB]
    assert loaded.pretrained_cfg["label_names"] == list(NAMES)


def test_the_model_card_is_true(tmp_path: Path):
    module = saved(tmp_path, "mlp", hidden=[7], preprocess=Preprocess(32, (0.5,), (0.25,)))
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: pytorch\npipeline_tag: image-classification\n")
    assert "A test." in text
    assert f"parameters: {sum(p.numel() for p in module.parameters()):,}" in text
    assert "images: 3 x 32 x 32" in text
    assert "pixels from 0 to 255, resized to 32 pixels, divided by 255, normalised with mean (0.5,)" in text
    assert "classes: ant, bee, cow" in text
