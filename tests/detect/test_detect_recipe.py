"""The recipe of the task: read without ultralytics or torch, and what is wrong with it said by key."""

import subprocess
import sys
from copy import deepcopy

import pytest
import yaml

from understudy.errors import UserError
from understudy.recipe.reader import build_recipe, read_recipe, shipped
from understudy.recipe.source import Source


@pytest.fixture
def plain(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
    described = {"train": "images/train", "val": "images/val", "names": ["a", "b"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(described))
    return {
        "name": "small", "task": "detect", "data": str(tmp_path / "data.yaml"), "model": "yolov8n.yaml",
        "stages": {"train": {"epochs": 2}, "prune": {"ratio": 0.4}, "distill": {"epochs": 2, "methods": ["cwd"]}},
    }  # fmt: skip


def read(plain, *overrides):
    return build_recipe(Source("small.yaml", deepcopy(plain)), list(overrides))


def test_a_recipe_names_its_arms_after_its_methods(plain):
    plain["stages"]["distill"]["methods"] = [
        "cwd",
        {"name": "mgd", "as": "mgd-wide", "layers": "article"},
        "kd:seed-001",
    ]
    assert read(plain).arms == ["student_cwd", "student_mgd-wide", "student_kd-seed-001"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.prune.ratio=0", "stages.prune.ratio"),
        ("stages.prune.ratio=1.0", "stages.prune.ratio"),
        ("stages.prune.macs=0.5", "give one of ratio"),
        ("stages.distill.methods=[mgdd]", "did you mean 'mgd'"),
        ("stages.distill.methods=[cwd, cwd]", "two methods are called"),
        ("stages.distill.teacher=best", "neither a .pt file nor the stage"),
        ("stages.distill.teacher=nowhere.pt", "there is no file 'nowhere.pt'"),
        ("stages.train=null", "untrained"),
        ("data=nowhere.yaml", "no such data YAML"),
        ("stages.prune.round_too=8", "did you mean 'round_to'"),
        ("stages.distill.methods=[dkd]", "a label for each image"),
        ("stages.relations={}", "needs the parents of the test boxes"),
    ],
)
def test_what_is_wrong_is_said_by_key(plain, override, said):
    with pytest.raises(UserError, match=said):
        read(plain, override)


def test_ultralytics_arguments_are_checked_where_it_is_installed(plain):
    pytest.importorskip("ultralytics")
    with pytest.raises(UserError, match=r"args\.lr: ultralytics has no such argument"):
        read(plain, "args.lr=0.1")
    with pytest.raises(UserError, match=r"stages\.distill\.epoch\b.*did you mean 'epochs'|no such argument"):
        read(plain, "stages.distill.epoch=3")
    with pytest.raises(UserError, match="set by the recipe itself"):
        read(plain, "args.device=0")
    assert read(plain, "args.close_mosaic=3", "stages.train.lr0=0.01").stages.train.options == {"lr0": 0.01}


def test_the_shipped_recipes_are_sound():
    assert {"yolo-bccd", "diagram-tree"} <= set(shipped())
    assert read_recipe("yolo-bccd", [], files=False).arms == ["student_cwd", "student_mgd"]
    assert read_recipe("diagram-tree", [], files=False).arms == ["student_mgd"]


def test_reading_a_recipe_imports_neither_torch_nor_ultralytics(plain, tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(plain))
    code = (
        "import sys; from understudy.recipe.reader import read_recipe\n"
        f"read_recipe({str(tmp_path / 'small.yaml')!r})\n"
        "import understudy.tasks.detect\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'ultralytics'}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
