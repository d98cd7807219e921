"""Checkpoints: whole or not at all, and damage is always noticed."""

import contextlib
import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from understudy.train import checkpoint
from understudy.train.checkpoint import Checkpoints, pack, unpack


def state(number: int) -> dict:
    return {
        "stage": "seed-0",
        "step": number,
        "arms": {"student": {"weights": {"0.weight": torch.full((8, 4), float(number))}, "best": None, "ok": True}},
    }


def step_of(found: dict | None) -> int | None:
    return None if found is None else found["step"]


@pytest.fixture
def saved(tmp_path) -> Checkpoints:
    """Two checkpoints, of step 1 and step 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for number in (1, 2):
        checkpoints.save(state(number))
    return checkpoints


def mutate(folder: Path, older: Path, name: str, draws: random.Random) -> str:
    """Damage one file of a checkpoint, and say how."""
    file = folder / name
    content = bytearray(file.read_bytes())
    how = draws.choice(["truncate", "flip", "flip", "flip", "delete", "swap", "empty", "append", "folder"])
    if how == "truncate":
        file.write_bytes(content[: draws.randrange(len(content))])
    if how == "flip":
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
    if how == "empty":
        file.write_bytes(b"")
    if how == "append":
        file.write_bytes(content + draws.randbytes(3) + b"}")
    if how in ("delete", "folder"):
        file.unlink()
    if how == "folder":
        file.mkdir()
    if how == "swap":
        other = older / name if name != "manifest.json" else folder / "state.json"
        file.write_bytes(other.read_bytes())
    return how


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
def test_every_damage_is_noticed_and_named_and_the_checkpoint_before_is_used(saved, name, tmp_path, capsys):
    draws = random.Random(name)
    for _ in range(70):
        copy = Checkpoints(tmp_path / "copy")
        shutil.rmtree(copy.folder, ignore_errors=True)
        shutil.copytree(saved.folder, copy.folder)
        how = mutate(copy.folder / "00000002", copy.folder / "00000001", name, draws)
        assert step_of(copy.latest()) == 1, how
        assert f"{copy.folder / '00000002'}: damaged" in capsys.readouterr().err, how


@pytest.mark.parametrize("content", ["null", "[]", '{"sha256": 3}', '{"sha256": null}', '{"sha256": {}}', "\udcff"])
def test_an_odd_manifest_is_damage(saved, content):
    (saved.folder / "00000002" / "manifest.json").write_text(content, errors="surrogateescape")
    assert step_of(saved.latest()) == 1


def test_with_all_damaged_there_is_none(saved, capsys):
    for folder in saved.folder.iterdir():
        (folder / "state.json").unlink()
    assert saved.latest() is None
    assert capsys.readouterr().err.count(": damaged") == 2


def test_only_the_newest_are_kept_and_only_safetensors_and_json(saved):
    saved.save(state(3))
    assert sorted(os.listdir(saved.folder)) == ["00000002", "00000003"]
    files = {path.name for path in saved.folder.rglob("*") if path.is_file()}
    assert files == {"state.json", "state.safetensors", "manifest.json"}
    assert step_of(saved.latest()) == 3


STEPS = ["write_tensors", "Path.write_text", "sha256", "sync", "Path.rename", "shutil.rmtree"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_or_the_new_one(saved, step, after, error, monkeypatch):
    holder, _, name = f"checkpoint.{step}".rpartition(".")
    holder = {"checkpoint": checkpoint, "checkpoint.Path": Path, "checkpoint.shutil": shutil}[holder]
    original = getattr(holder, name)
    for call in range(1, 6):
        calls = []

        def fail(*arguments, call=call, calls=calls, **more):
            calls.append(1)
            if after and len(calls) == call:
                original(*arguments, **more)
            if len(calls) == call and not more.get("ignore_errors"):
                raise error
            return original(*arguments, **more)

        before = step_of(saved.latest())
        assert before is not None
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, fail)
            with contextlib.suppress(OSError, KeyboardInterrupt):
                saved.save(state(before + 1))
        assert step_of(saved.latest()) in (before, before + 1)
        assert not [entry for entry in os.listdir(saved.folder) if not entry.isdigit()]


def test_a_full_disk_is_an_os_error_and_leaves_the_earlier_checkpoint(tmp_path):
    """On a file system of 64 KiB, where it may be mounted; safetensors raises an error of its own there."""
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=64k none {tmp_path} 2> /dev/null"):
        pytest.skip("no file system can be mounted here")
    try:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        checkpoints.save(state(1))
        for large in ({"tensor": torch.zeros(100_000)}, {"text": "x" * 100_000}):
            with pytest.raises(OSError, match="No space left") as caught:
                checkpoints.save({**state(2), **large})
            assert caught.value.errno == errno.ENOSPC
            assert os.listdir(checkpoints.folder) == ["00000001"]
            assert step_of(checkpoints.latest()) == 1
    finally:
        os.system(f"umount {tmp_path}")


def test_what_a_killed_process_left_is_removed_by_the_next_save(saved):
    partial = saved.folder / ".00000003.tmp"
    partial.mkdir()
    (partial / "state.json").write_text("{")
    assert step_of(saved.latest()) == 2
    saved.save(state(3))
    assert not partial.exists()


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_through_a_checkpoint_unchanged(name, tmp_path):
    def train(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 3) * step).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    again = torch.nn.Linear(3, 2)
    optimizer_again = OPTIMIZERS[name](again.parameters())
    found = checkpoints.latest()
    assert found is not None
    again.load_state_dict(found["model"])
    optimizer_again.load_state_dict(found["optimizer"])
    train(model, optimizer, 2)
    train(again, optimizer_again, 2)
    assert torch.equal(model.weight, again.weight)


def test_pack_and_unpack_are_inverse():
    tree = {
        "state": {0: {"step": torch.tensor(3.0), "mean": torch.randn(2, 3).t()}, 1: {}},
        "half": [torch.ones(2, dtype=torch.bfloat16), None, True, 1, 2.5, "word"],
        "numbers": torch.arange(3),
        "infinite": float("-inf"),
    }
    tensors: dict[str, torch.Tensor] = {}
    plain = json.loads(json.dumps(pack(tree, tensors)))
    again = unpack(plain, tensors)
    assert list(again["state"]) == [0, 1]
    assert torch.equal(again["state"][0]["mean"], tree["state"][0]["mean"])
    assert again["half"][0].dtype == torch.bfloat16
    assert again["half"][1:] == tree["half"][1:]
    assert again["infinite"] == float("-inf")


def test_pack_copies_and_refuses_what_json_cannot_hold():
    tensors: dict[str, torch.Tensor] = {}
    weight = torch.zeros(2)
    pack({"weight": weight, "same": weight}, tensors)
    weight += 1
    assert all(tensor.sum() == 0 for tensor in tensors.values())
    with pytest.raises(TypeError, match=r"cannot hold a set \(at /odd\)"):
        pack({"odd": {1, 2}}, {})
