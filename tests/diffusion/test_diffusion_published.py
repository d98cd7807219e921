"""Published checkpoints: read without Flax, and run by diffusers as the original's network runs."""

import struct

import numpy as np
import pytest
import torch
from flax_writer import packed, random_tree, run_tree

from understudy.errors import UserError
from understudy.tasks.diffusion import LogsnrClock, Network, load_published
from understudy.tasks.diffusion.flax_file import read_flax
from understudy.tasks.diffusion.network import build_unet
from understudy.tasks.diffusion.published import _translated, unet_from_tree
from understudy.tasks.diffusion.shapes import SHAPES, Shape
from understudy.tasks.diffusion.store import Card, load_network, save_network, why_no_pipeline

SMALL = {
    "channels": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "size": 8, "embedding": 48,
    "heads": lambda width: 1, "resample": True,
}  # fmt: skip
VARIANTS = {
    "one head": {},
    "heads of one size": {"heads": lambda width: width // 16, "attention": (8, 4), "blocks": 2},
    "as many heads at every level": {"heads": lambda width: 2, "attention": (8, 4)},
    "by class, x and eps": {"classes": 5, "outputs": 6},
    "plain convolutions between levels": {"resample": False, "multipliers": (1, 2, 2)},
    "attention in the middle alone": {"attention": ()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_diffusers_runs_the_originals_network(name):
    settings = {**SMALL, **VARIANTS[name]}
    tree = random_tree(**settings)
    network = unet_from_tree(tree, size=8).double()
    torch.manual_seed(0)
    images, time = torch.randn(3, 3, 8, 8).double(), torch.tensor([3.0, 500.0, 999.0])
    labels = torch.tensor([0, 4, 2]) if settings.get("classes", 1) > 1 else None
    with torch.no_grad():
        ours = network(images, time, class_labels=labels).sample
    assert (ours - run_tree(tree, images, time, labels)).abs().max() < 2e-5


def test_a_checkpoint_is_read_with_its_steps(tmp_path):
    tree = random_tree(**SMALL)
    path = tmp_path / "cifar_8"
    weights = {"target": random_tree(**SMALL, seed=1)}
    path.write_bytes(packed({"step": 3, "optimizer": weights, "ema_params": tree, "num_sample_steps": 8}))
    network, steps = load_published(path, size=8)
    assert steps == 8
    expected = tree["down_1.attn_0"]["q"]["kernel"].reshape(64, 64).T
    np.testing.assert_array_equal(network.state_dict()["down_blocks.1.attentions.0.to_q.weight"].numpy(), expected)


def test_norms_of_early_versions_of_flax_are_read(tmp_path):
    tree = random_tree(**SMALL)
    tree["norm_out"] = {name: value.reshape(1, 1, 1, -1) for name, value in tree["norm_out"].items()}
    assert unet_from_tree(tree, size=8).conv_norm_out.weight.shape == (32,)


def test_arrays_in_chunks_and_halves_are_put_together(tmp_path):
    array = np.arange(10, dtype=np.float32).reshape(2, 5)
    chunked = {
        "__msgpack_chunked_array__": 1,
        "shape": {"0": 2, "1": 5},
        "chunks": {"0": array.reshape(-1)[:7], "1": array.reshape(-1)[7:]},
    }
    path = tmp_path / "file"
    path.write_bytes(packed({"a": chunked}))
    np.testing.assert_array_equal(read_flax(path)["a"], array)
    inner = packed([[2], "bfloat16", struct.pack("<2H", 0x3F80, 0xC000)])
    path.write_bytes(b"\x81\xa1h" + struct.pack(">BIb", 0xC9, len(inner), 1) + inner)
    assert read_flax(path)["h"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x81\xa1a", b"\xc1", b"\x93\x01\x02\x03", b"\x81\xa1a" * 5000, b"\x91" * 5000]
)
def test_a_file_that_is_none_is_one_clear_line(tmp_path, content):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model: is no Flax checkpoint"):
        read_flax(path)


def test_an_array_of_objects_or_of_another_length_is_refused(tmp_path):
    path = tmp_path / "model"
    for kind, content in (("object", b"12345678"), ("float32", b"123"), ("nonsense", b"1234")):
        inner = packed([[1], kind, content])
        path.write_bytes(b"\x81\xa1h" + struct.pack(">BIb", 0xC9, len(inner), 1) + inner)
        with pytest.raises(UserError, match="is no Flax checkpoint"):
            read_flax(path)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(packed({"ema_params": {"layer": {"kernel": np.zeros((2, 2), np.float32)}}}))
    with pytest.raises(UserError, match="no network of the original's kind"):
        load_published(path, size=8)


def test_a_published_network_is_saved_and_read_back_though_no_stock_pipeline_samples_it(tmp_path):
    settings = {**SMALL, "heads": lambda width: 2, "attention": (8, 4)}
    network = Network(unet_from_tree(random_tree(**settings), size=8), LogsnrClock())
    from understudy.tasks.diffusion import Process

    process = Process(prediction="x")
    assert "told the time" in (why_no_pipeline(network, process) or "")
    save_network(network, tmp_path / "saved", Card(process, 8, (3, 8, 8)))
    again = load_network(tmp_path / "saved")
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([0.2, 1.0])
    assert torch.equal(again(z, t), network(z, t))


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "lsun128"])
def test_the_published_configurations_have_the_originals_parameters(name):
    by_class = name == "imagenet64"
    size, shape = {"cifar10": 32, "imagenet64": 64, "lsun128": 128}[name], SHAPES[name]
    tree = random_tree(
        channels=shape.channels,
        multipliers=shape.multipliers,
        blocks=3,
        attention=(8, 16) if name == "cifar10" else (8, 16, 32),
        size=size,
        embedding=shape.embedding,
        heads=(lambda width: 1) if name == "cifar10" else (lambda width: width // 64),
        resample=True,
        outputs=6 if by_class else 3,
        classes=1000 if by_class else 1,
        empty=True,
    )
    wanted = dict(_translated(tree))
    with torch.device("meta"):
        unet = build_unet(shape, image=(3, size, size), outputs=6 if by_class else 3, classes=1000 if by_class else 0)
    assert {key: tuple(value.shape) for key, value in unet.state_dict().items()} == {
        key: tuple(value.shape) for key, value in wanted.items()
    }


def test_what_cannot_be_halved_is_one_clear_line():
    with pytest.raises(UserError, match=r"30x30 cannot be halved 2 times.*data\.pad_to=32"):
        build_unet(SHAPES["cifar10"], image=(3, 30, 30))
    with pytest.raises(UserError, match="64 channels cannot be divided by 48"):
        build_unet(Shape(channels=32, multipliers=(1, 2), head_dim=48), image=(3, 8, 8))
