"""Checkpoints: safetensors and JSON only, written whole or not at all, checked when read."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from understudy.models.store import write_tensors
from understudy.train.files import sha256, sync

_TENSOR = "@tensor"


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Split nested state into plain JSON and tensors.

    Args:
        tree: mappings, lists, numbers, words, None and tensors.
        tensors: filled with the tensors by their path.
        path: where `tree` stands.

    Returns:
        The tree with each tensor replaced by a reference.
    """
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().to("cpu", copy=True).contiguous()
        return {_TENSOR: path}
    if isinstance(tree, dict):
        return {str(key): pack(value, tensors, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [pack(value, tensors, f"{path}/{index}") for index, value in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint cannot hold a {type(tree).__name__} (at {path})")


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors back; keys that are whole numbers become so again (optimiser states are numbered)."""
    if isinstance(tree, dict):
        if _TENSOR in tree:
            return tensors[tree[_TENSOR]]
        return {int(key) if key.isdigit() else key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


class Checkpoints:
    """The checkpoints of a run, the newest last.

    Each is a folder with `state.json`, `state.safetensors` and a manifest of their SHA-256. It is written under
    another name, forced to disk and renamed, so a folder with its final name is whole unless the disk is at fault.

    Args:
        folder: where they are kept.
        keep: how many of the newest.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: dict[str, Any]) -> Path:
        """Write a checkpoint and remove those that are too old.

        Raises:
            OSError: the disk is full or fails; earlier checkpoints stay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        known = self._numbered()
        target = self.folder / f"{(int(known[-1].name) if known else 0) + 1:08d}"
        partial = self.folder / f".{target.name}.tmp"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            tensors: dict[str, Tensor] = {}
            plain = pack(state, tensors)
            write_tensors(tensors, partial / "state.safetensors")
            (partial / "state.json").write_text(json.dumps(plain))
            sums = {file.name: sha256(file) for file in sorted(partial.iterdir())}
            (partial / "manifest.json").write_text(json.dumps({"sha256": sums}, indent=2))
            for file in partial.iterdir():
                sync(file)
            sync(partial)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync(self.folder)
        for old in known[: -self.keep + 1 or None]:
            shutil.rmtree(old)
        return target

    def latest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole; damaged ones are named and passed over."""
        for folder in reversed(self._numbered()):
            try:
                return self._read(folder)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"{folder}: damaged ({error}), the one before it is looked for", file=sys.stderr)
        return None

    def _read(self, folder: Path) -> dict[str, Any]:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        if set(sums) != {"state.json", "state.safetensors"}:
            raise ValueError("its manifest names other files")
        for name, wanted in sums.items():
            if sha256(folder / name) != wanted:
                raise ValueError(f"{name} is not what was written")
        tensors = load_file(folder / "state.safetensors")
        return unpack(json.loads((folder / "state.json").read_text()), tensors)

    def _numbered(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.name.isdigit())


def all_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether no tensor holds a NaN or an infinity."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())
