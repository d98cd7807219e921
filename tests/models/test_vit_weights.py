"""Checkpoints of vision transformers: the original's layout, other resolutions, other classes, parts to train."""

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from understudy.errors import UserError
from understudy.models import build, load_weights, read_weights
from understudy.models.resolution import interpolate_positions
from understudy.models.trainable import train_only
from understudy.recipe.schema import Model

pytest.importorskip("timm")

GOLDEN = Path(__file__).parents[1] / "golden" / "deit"
ENTRIES = {entry["id"]: entry for entry in json.loads((GOLDEN / "manifest.json").read_text())["entries"]}


def vit(seed: int = 0, size: int = 32, classes: int = 4, **options):
    torch.manual_seed(seed)
    model = Model(**{"name": "vit", "patch": 8, "width": 12, "depth": 1, "heads": 2, "tokens": 2} | options)
    return build(model, classes=classes, shape=(3, size, size))


def assert_same(module, state, but=()):
    for name, value in module.state_dict().items():
        if name not in but:
            assert torch.equal(value, state[name]), name


# Interpolation


@pytest.mark.parametrize("case", [name for name in ENTRIES if name.startswith("posembed")])
def test_positions_equal_the_originals_bit_for_bit(case):
    arrays, settings = np.load(GOLDEN / f"{case}.npz"), ENTRIES[case]["conventions"]
    before, after = torch.tensor(arrays["pos_embed"]), torch.tensor(arrays["new_pos_embed"])
    extra = settings["extra_tokens_first"]
    side = int((after.shape[1] - extra) ** 0.5)
    made = interpolate_positions(before, (side, side), extra=extra)
    assert torch.equal(made, after)
    assert torch.equal(made[:, :extra], before[:, :extra])


def test_a_constant_grid_stays_constant_whatever_its_shape():
    embedding = torch.cat([torch.tensor([[[7.0]]]), torch.full((1, 12, 1), 3.0)], 1)
    made = interpolate_positions(embedding, (5, 2), extra=1, old=(3, 4))
    torch.testing.assert_close(made, torch.cat([torch.tensor([[[7.0]]]), torch.full((1, 10, 1), 3.0)], 1))


def test_a_grid_that_is_no_square_must_be_named():
    with pytest.raises(UserError, match="12 patches is no grid of 3 x 3"):
        interpolate_positions(torch.zeros(1, 13, 2), (4, 4), extra=1)


@pytest.mark.parametrize("size", [48, 16])
def test_weights_of_one_resolution_go_into_a_model_of_another(tmp_path: Path, size):
    trained, module = vit(seed=1), vit(size=size)
    torch.save({"model": trained.state_dict()}, tmp_path / "trained.pth")
    load_weights(module, tmp_path / "trained.pth")
    assert_same(module, trained.state_dict(), but=("pos_embed",))
    assert torch.equal(module.pos_embed[:, :2], trained.pos_embed[:, :2])
    assert torch.isfinite(module.eval()(torch.randn(1, 3, size, size))).all()


def test_one_token_more_is_another_model_and_no_other_resolution(tmp_path: Path):
    torch.save(vit(tokens=1).state_dict(), tmp_path / "one.pth")
    with pytest.raises(UserError, match=r"another model: 3 of .* not in it \(first: dist_token\)"):
        load_weights(vit(), tmp_path / "one.pth")


# The original's checkpoints


def checkpoint(path: Path, **entries) -> Path:
    """As main.py of DeiT's code writes it after each epoch."""
    optimizer = torch.optim.AdamW(vit().parameters())
    more = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"base_values": [5e-4], "t_initial": 300, "noise_range_t": None},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "growth_tracker": 3},
        "args": argparse.Namespace(model="deit", lr=5e-4, opt_betas=None, data_path="/x", distributed=True),
    }
    torch.save({**entries, **more}, path)
    return path


def test_the_originals_checkpoint_loads_strictly_and_its_args_do_no_harm(tmp_path: Path):
    trained, module = vit(seed=1), vit()
    load_weights(module, checkpoint(tmp_path / "x.pth", model=trained.state_dict()))
    assert_same(module, trained.state_dict())


@pytest.mark.enable_socket
def test_a_checkpoint_is_fetched_from_a_web_server(tmp_path: Path, monkeypatch):
    (tmp_path / "site").mkdir()
    trained, module = vit(seed=1), vit()
    checkpoint(tmp_path / "site" / "deit.pth", model=trained.state_dict())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(tmp_path / "site") as address:
        load_weights(module, f"{address}/deit.pth")
        with pytest.raises(UserError, match=r"other\.pth: could not be fetched \(HTTP Error 404"):
            load_weights(module, f"{address}/other.pth")
    assert_same(module, trained.state_dict())
    load_weights(vit(), f"{address}/deit.pth#model")  # nobody serves it any more: it was kept


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_weights_are_found_in_the_layout_of_the_hub(tmp_path: Path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    place = tmp_path / "models--timm--deit_tiny" / "snapshots" / "0123"
    place.mkdir(parents=True)
    (tmp_path / "models--timm--deit_tiny" / "refs").mkdir()
    (tmp_path / "models--timm--deit_tiny" / "refs" / "main").write_text("0123")
    trained = vit(seed=1)
    save_file(trained.state_dict(), place / "model.safetensors")
    checkpoint(place / "deit.pth", model=vit(seed=2).state_dict())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    module = vit()
    load_weights(module, "hf://timm/deit_tiny")
    assert_same(module, trained.state_dict())
    load_weights(module, "hf://timm/deit_tiny/deit.pth#model")
    assert_same(module, vit(seed=2).state_dict())


def test_the_moving_average_comes_first_and_the_other_weights_can_be_named(tmp_path: Path):
    trained, averaged = vit(seed=1).state_dict(), vit(seed=2).state_dict()
    path = checkpoint(tmp_path / "x.pth", model=trained, model_ema=averaged)
    module = vit()
    load_weights(module, path)
    assert_same(module, averaged)
    load_weights(module, f"{path}#model")
    assert_same(module, trained)


def test_a_name_that_the_checkpoint_does_not_hold_is_refused(tmp_path: Path):
    path = checkpoint(tmp_path / "x.pth", model=vit().state_dict())
    with pytest.raises(UserError, match=r"x\.pth: holds no weights 'modle', did you mean 'model'\?"):
        read_weights(f"{path}#modle")


def test_a_file_may_have_a_hash_in_its_name(tmp_path: Path):
    trained = vit(seed=1)
    torch.save(trained.state_dict(), tmp_path / "run#3.pth")
    module = vit()
    load_weights(module, tmp_path / "run#3.pth")
    assert_same(module, trained.state_dict())


def test_names_of_the_original_deit_iii_are_known(tmp_path: Path):
    def deit3(seed: int):
        torch.manual_seed(seed)
        options = {"embed_dim": 12, "depth": 2, "num_heads": 2}
        module = build(Model(name="timm/deit3_small_patch16_224", size=32, **options), classes=4, shape=(3, 32, 32))
        for name, parameter in module.named_parameters():
            if ".ls" in name:
                torch.nn.init.uniform_(parameter)
        return module

    trained, module = deit3(1), deit3(2)
    original = dict(trained.state_dict())
    for block in (0, 1):
        for layer in (1, 2):
            original[f"blocks.{block}.gamma_{layer}"] = original.pop(f"blocks.{block}.ls{layer}.gamma")
    load_weights(module, checkpoint(tmp_path / "x.pth", model=original))
    assert_same(module, trained.state_dict())


def test_weights_of_another_width_are_one_line(tmp_path: Path):
    path = checkpoint(tmp_path / "x.pth", model=vit(width=24).state_dict())
    with pytest.raises(UserError, match=r"another model: cls_token is \(1, 1, 24\), not \(1, 1, 12\)"):
        load_weights(vit(), path)


# Other classes


def test_a_new_head_takes_everything_else_from_the_weights(tmp_path: Path):
    trained, module = vit(seed=1, classes=7), vit(size=48)
    fresh = {name: value.clone() for name, value in module.state_dict().items() if "head" in name}
    path = checkpoint(tmp_path / "x.pth", model=trained.state_dict())
    with pytest.raises(UserError, match=r"its head gives 7 classes, the data has 4: .* or new_head: true"):
        load_weights(module, path)
    load_weights(module, path, new_head=True)
    assert_same(module, trained.state_dict() | fresh, but=("pos_embed",))
    assert fresh.keys() == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


def test_a_new_head_is_new_for_as_many_classes_too(tmp_path: Path):
    torch.save(vit(seed=1).state_dict(), tmp_path / "x.pth")
    module = vit()
    before = module.head.weight.clone()
    load_weights(module, tmp_path / "x.pth", new_head=True)
    assert torch.equal(module.head.weight, before)


# Parts


@pytest.mark.parametrize(
    ("what", "trained"),
    [
        ("attention", {"attn", "head", "head_dist", "pos_embed"}),
        ("head", {"head", "head_dist"}),
    ],
)
def test_only_a_part_is_trained(what, trained):
    module = vit(depth=2)
    train_only(module, what)
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == bool(trained & set(name.split("."))), name


def test_a_network_without_attention_has_none_to_train_alone():
    module = build(Model(name="cnn", widths=[4]), classes=4, shape=(3, 8, 8))
    with pytest.raises(UserError, match="Sequential has no attention"):
        train_only(module, "attention")
    train_only(module, "head")
    assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
