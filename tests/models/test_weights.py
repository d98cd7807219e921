"""Weights from files of any maker, none of which can run anything."""

import argparse
import collections
import io
import os
import pickle
import subprocess
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from understudy.errors import UserError
from understudy.models import load_weights, read_weights
from understudy.models.cnn import cnn
from understudy.models.mlp import mlp


def model(hidden: int = 6, classes: int = 4) -> nn.Module:
    return mlp(classes=classes, shape=(1, 3, 3), hidden=(hidden,))


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def assert_loads(source: Path, wanted: nn.Module) -> None:
    module = model()
    load_weights(module, source)
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=0, atol=0)


# Layouts of trainers

LAYOUTS = {
    "plain": lambda state, other: state,
    "ordered": lambda state, other: collections.OrderedDict(state),
    "lightning": lambda state, other: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
    "ddp": lambda state, other: {"state_dict": prefixed(state, "module.")},
    "compiled": lambda state, other: prefixed(state, "_orig_mod."),
    "ddp of compiled": lambda state, other: prefixed(state, "module._orig_mod."),
    "compiled ddp": lambda state, other: prefixed(state, "_orig_mod.module."),
    "ema": lambda state, other: {"model": other, "model_ema": state},
    "timm ema": lambda state, other: {"state_dict": other, "state_dict_ema": state, "arch": "x", "version": 2},
    "nested": lambda state, other: {"model": {"state_dict": state}},
    "namespace": lambda state, other: {"model": state, "args": argparse.Namespace(lr=0.1, layers=[1, 2], out="x")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_trainers_are_looked_into(tmp_path: Path, layout: str, zipped: bool):
    wanted = model()
    content = LAYOUTS[layout](wanted.state_dict(), model().state_dict())
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert_loads(tmp_path / "x.pt", wanted)


def test_an_averaged_model_of_torch_is_read(tmp_path: Path):
    averaged = AveragedModel(model())
    torch.save({"model_ema": averaged.state_dict()}, tmp_path / "x.pth")
    assert_loads(tmp_path / "x.pth", averaged.module)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_and_a_folder_of_them_are_read(tmp_path: Path, prefix: str):
    wanted = model()
    save_file(prefixed(wanted.state_dict(), prefix), tmp_path / "model.safetensors")
    assert_loads(tmp_path / "model.safetensors", wanted)
    assert_loads(tmp_path, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_take_the_models_type(tmp_path: Path, dtype: torch.dtype):
    torch.save({name: value.to(dtype) for name, value in model().state_dict().items()}, tmp_path / "x.pt")
    module = model()
    load_weights(module, tmp_path / "x.pt")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    torch.testing.assert_close(module.state_dict()["fc1.weight"], read_weights(tmp_path / "x.pt")["fc1.weight"].float())


# Weights that do not fit


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (model(classes=7), "its head gives 7 classes, the data has 4: use weights trained on these classes"),
        (model(hidden=9), r"holds the weights of another model: fc1\.weight is \(9, 9\), not \(6, 9\)"),
        (mlp(classes=4, shape=(1, 4, 4), hidden=(6,)), r"another model: fc1\.weight is \(6, 16\), not \(6, 9\)"),
        (
            cnn(classes=4, shape=(1, 3, 3), widths=(4,), depth=1),
            r"another model: 4 of the model's 4 tensors are not in it \(first: fc1\.weight\); "
            r"8 of its own are unknown to the model \(first: stage1\.0\.weight\)",
        ),
    ],
)
def test_weights_of_another_model_say_how_they_differ(tmp_path: Path, other: nn.Module, message: str):
    torch.save(other.state_dict(), tmp_path / "x.pt")
    module = model()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(module, tmp_path / "x.pt")
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "holds a Tensor, no weights by name"),
        ({"epoch": 3}, "holds no weights by name"),
        ([1, 2], "holds a list, no weights by name"),
    ],
)
def test_a_file_without_weights_is_said(tmp_path: Path, content: Any, message: str):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=rf"x\.pt: {message}"):
        read_weights(tmp_path / "x.pt")


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_damaged_files_of_every_kind_are_one_line(tmp_path: Path, suffix: str):
    path = tmp_path / f"x.{suffix}"
    if suffix == "pt":
        torch.save(model().state_dict(), path)
    else:
        save_file(model().state_dict(), path)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    damaged = [b"", b"x", b"hello world", b"\x80\x04", whole[:100], whole[: len(whole) // 2], whole[:-30]]
    for _ in range(40):  # bits anywhere: whatever is still read, nothing else than a UserError comes out
        bytes_ = bytearray(whole)
        for place in draw.integers(0, len(whole), 20):
            bytes_[place] ^= int(draw.integers(1, 256))
        damaged.append(bytes(bytes_))
    messages = []
    for content in damaged:
        path.write_bytes(content)
        try:
            read_weights(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) >= 7
    assert all(message.startswith(str(path)) and "\n" not in message for message in messages)


# Files that want to run something


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Sets:
    """Pickles with a state whose setting would run something."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()

    def __getstate__(self) -> str:
        return self.__dict__["mark"]


def setting(mark: str) -> Any:
    thing = Sets()
    thing.__dict__["mark"] = mark
    return thing


MALICIOUS = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({mark!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({mark!r}, 'w')"),
    "open": lambda mark: Calls(open, mark, "w"),
    "subprocess": lambda mark: Calls(subprocess.check_output, ["touch", mark]),
    "Path.touch": lambda mark: Calls(Path.touch, Path(mark)),
    "getattr": lambda mark: Calls(getattr, Calls(__import__, "os"), "system"),
    "setstate": setting,
    "in a list": lambda mark: [1, [Calls(os.system, f"touch {mark}")]],
    "in a namespace": lambda mark: argparse.Namespace(x=Calls(os.system, f"touch {mark}")),
    "as a key": lambda mark: {Calls(os.system, f"touch {mark}"): 1},
    "torch.load": lambda mark: Calls(torch.load, mark),
    "pickle.loads": lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {mark}"))),
}


@pytest.mark.parametrize("attack", MALICIOUS)
@pytest.mark.parametrize("form", ["zip", "legacy", "raw pickle", "raw pickle called safetensors"])
def test_nothing_in_a_file_is_run(tmp_path: Path, attack: str, form: str):
    mark = tmp_path / "mark"
    content = {"model": model().state_dict(), "extra": MALICIOUS[attack](str(mark))}
    path = tmp_path / ("x.safetensors" if "safetensors" in form else "x.pt")
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    mark.unlink(missing_ok=True)  # writing the file may already have made it
    with pytest.raises(UserError, match=r"pickled objects|is no|holds"):
        read_weights(path)
    assert not mark.exists()


def test_the_attacks_do_run_where_they_are_let(tmp_path: Path):
    """Without this, the tests above could pass because the files are harmless."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(MALICIOUS["os.system"](str(mark))))
    assert mark.exists()


def test_a_whole_pickled_module_is_refused_by_name_with_what_to_do(tmp_path: Path):
    torch.save(model(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"pickled objects \(torch\.nn\..*save `model\.state_dict\(\)`"):
        read_weights(tmp_path / "x.pt")


def test_a_scripted_module_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    warnings.simplefilter("ignore")  # torch itself says that scripting is of yesterday
    torch.jit.save(torch.jit.trace(model().eval(), torch.rand(1, 1, 3, 3)), buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="TorchScript"):
        read_weights(tmp_path / "x.pt")


# Addresses


def test_two_files_of_one_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[str] = []

    def download(url: str, target: str) -> None:
        fetched.append(url)
        torch.save({"value": torch.tensor(len(fetched))}, target)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert read_weights("https://a.org/model.pt?x=1")["value"] == 1
        assert read_weights("https://b.org/model.pt")["value"] == 2
    assert len(fetched) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/x.pt", "could not be fetched"),
        ("hf://nobody/nothing", "hf://nobody/nothing: could not be fetched"),
        ("hf://nobody", "wanted hf://OWNER/NAME"),
    ],
)
def test_an_address_that_cannot_be_read_is_one_line(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    with pytest.raises(UserError, match=message) as caught:
        read_weights(url)
    assert "\n" not in str(caught.value)
