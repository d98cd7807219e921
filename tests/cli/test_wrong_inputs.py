"""Whatever a person gets wrong: one line that says where, what, and what to do; exit code 2; nothing left behind."""

import gzip
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import image_folder, saved_model
from safetensors.torch import save_file

import understudy
from understudy.models.mlp import mlp

SMALL = "small.yaml"


def refused(ended, *words: str) -> None:
    """Exit code 2, one line on stderr with all of these words, no run folder."""
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("understudy: ")
    for word in words:
        assert word in ended.err, ended.err
    assert not Path("runs").exists()


# Found before torch is imported: wrong words and wrong recipes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("frobnicate", ["No such command 'frobnicate'", "understudy --help"]),
        ("run", ["Missing argument 'RECIPE'", "understudy run --help"]),
        ("run small.yaml --fast", ["No such option: --fast", "understudy run --help"]),
        ("compare small.yaml --seeds 0", ["--seeds", "greater than or equal to 1"]),
        ("run nope", ["nope: there is no such recipe", "digits-quickstart"]),
        ("run digits-quickstat", ["did you mean 'digits-quickstart'?"]),
        ("run nope.yaml", ["nope.yaml: there is no such file", "understudy recipes"]),
        ("check .", [".: is a folder without a recipe.yaml"]),
        ("init nope", ["nope: there is no such recipe"]),
        ("init digits-quickstart small.yaml", ["small.yaml: exists already"]),
        ("init digits-quickstart small.yaml/below.yaml", ["small.yaml"]),
        ("check small.yaml train.epochz=3", ["'train.epochz=3'", "did you mean 'epochs'?"]),
        ("check small.yaml train.epochs=three", ["train.epochs", "whole number"]),
        ("check small.yaml train.epochs", ["the form key=value"]),
        ("run small.yaml train.read_at=[3]", ["train.read_at: 3 lies after the last epoch (2)"]),
        ("run small.yaml train.milestones=[1]", ["train.milestones: belong to schedule 'step'"]),
        ("run small.yaml train.device=gpu", ["train.device: should be auto, cpu, mps, cuda"]),
        ("run small.yaml method=[kd,kd]", ["method: two are called 'kd'", "different names"]),
        ("run small.yaml method=kdd", ["unknown method 'kdd', did you mean 'kd'"]),
        ("run small.yaml data=digit", ["data.name: unknown data set 'digit', did you mean 'digits'?"]),
        ("run small.yaml student.hiden=[3]", ["student.hiden: unknown key, did you mean 'hidden'?"]),
        ("run small.yaml student.weights=gone.pt", ["student.weights: there is no file 'gone.pt' (looked from "]),
        ("run small.yaml train={epochs", ["'train={epochs': '{epochs' is not a value"]),
        ("run small.yaml control=runs/none/1", ["'runs/none/1' is neither train, none"]),
        ("run small.yaml --import nothing_here", ["--import nothing_here: cannot be imported"]),
        ("compare small.yaml --grid temperature", ["--grid temperature: a grid has the form option=value,value"]),
        ("compare small.yaml --grid temp=2,4", ["grid.temp: no loss of these methods (kd) has such an option"]),
        ("compare keras-seed-004 --grid temperature=2,4", ["grid: is for recipes that train classifiers"]),
        ("compare small.yaml --methods kd,kdd", ["method.1: unknown method 'kdd'"]),
        ("cache small.yaml teacher=gone.parquet", ["there is no file 'gone.parquet' (looked from "]),
        ("cache small.yaml teacher.approximate=true", ["teacher.approximate: belongs to a file of answers"]),
        ("resume small.yaml", ["small.yaml: is no run folder"]),
        ("report gone", ["gone: is no run folder"]),
        ("evaluate gone", ["gone: no such folder"]),
        ("evaluate . --data digits --split tset", ["--split: there is no split 'tset', did you mean 'test'?"]),
        ("evaluate . --data digit", ["data.name: unknown data set 'digit', did you mean 'digits'?"]),
        ("evaluate . --data digits trian=3", ["'trian=3': data.trian: unknown key, did you mean 'train' or"]),
        ("evaluate . --data digits train", ["'train': options have the form key=value"]),
        ("evaluate .", ["name the data with --data"]),
        ("predict . gone.png", ["gone.png: there is no such image or folder"]),
        ("predict gone small.yaml", ["gone: no such folder"]),
        ("methods kdd", ["unknown method 'kdd', did you mean 'kd'"]),
        ("models cifr/*", ["'cifr/*': no model has such a name"]),
        ("taps cifar/resnet9", ["unknown model 'cifar/resnet9', did you mean 'cifar/resnet8'"]),
        ("taps mlp", ["model.hidden: is missing"]),
        ("taps cnn --shape 3,32", ["--shape 3,32: a shape has the form C,H,W"]),
        ("quickstart --labels few", ["data.labels", "whole number or 'all', not 'few'"]),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(call, recipe, words, said):
    refused(call(*words.split()), *said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: 2", "sedes: 2", ["small.yaml:22: sedes: unknown key, did you mean 'seeds' or"]),
        ("  lr: 0.01", "  lr: fast", ["small.yaml:21: train.lr: should be a number, not 'fast'"]),
        ("  train: 240", "  train: 240\n  train: 12", ["small.yaml:5: 'data.train' is given twice"]),
        ("name: small", "name: !!python/name:os.system ''", ["small.yaml:1: the tag"]),
        ("  name: digits", "  name: digits\n name: x", ["small.yaml:4: not valid YAML", "indented"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_file_line_and_key(call, recipe, old, new, said):
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    refused(call("run", SMALL), *said)


def test_what_is_wrong_in_a_recipe_is_said_before_torch_is_imported(here, recipe):
    code = (
        "import sys\n"
        "from understudy.cli import main\n"
        f"codes = [main([word, '{recipe}', 'train.lr=fast']) for word in ('check', 'run', 'train', 'compare')]\n"
        "sys.exit(0 if codes == [2] * 4 and 'torch' not in sys.modules else 'torch was imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 4


# Found when the models are built, before a folder is made


def test_a_shape_that_a_network_cannot_take(call, recipe):
    words = ("teacher: 'cifar/vgg8' cannot take images (C, H, W) of (1, 4, 4)", "teacher.size")
    refused(call("run", SMALL, "teacher={name: cifar/vgg8, size: 4}"), *words)


def test_a_cache_that_no_run_would_look_at(call, recipe):
    refused(call("cache", SMALL, "cache=off"), "cache: is off", "set it to on")


def test_options_that_cannot_build(call, recipe):
    refused(call("run", SMALL, "student.hidden=[-3]"), "mlp", "cannot be built")


def test_an_option_out_of_range(call, recipe):
    refused(call("run", SMALL, "method.temperature=-1"), "method 'kd'", "temperature must be above 0, not -1")


def test_a_saved_teacher_of_other_classes(call, here, recipe):
    saved_model(here / "teacher", classes=7)
    refused(call("run", SMALL, "teacher=teacher"), "teacher", "'7'", "7 classes", "10")


def test_weights_of_other_classes(call, here, recipe):
    saved_model(here / "teacher", classes=7, hidden=32)
    refused(call("run", SMALL, "teacher.weights=teacher"), "teacher: ", "7 classes", "the data has 10")


def test_weights_of_another_model(call, here, recipe):
    saved_model(here / "teacher", hidden=16)
    refused(call("run", SMALL, "teacher.weights=teacher/model.safetensors"), "another model", "model.safetensors")


def test_a_pickled_module(call, here, recipe):
    torch.save(mlp(classes=10, shape=(1, 8, 8), hidden=(32,)), "whole.pt")
    refused(call("run", SMALL, "teacher.weights=whole.pt"), "whole.pt", "state_dict()")


def test_a_pickle_that_runs_code_is_not_run(call, here, recipe):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (here / "ran",))

    Path("trap.pt").write_bytes(pickle.dumps(Trap()))
    refused(call("run", SMALL, "teacher.weights=trap.pt"), "trap.pt")
    assert not (here / "ran").exists()


def test_truncated_safetensors(call, here, recipe):
    file = saved_model(here / "teacher", hidden=32) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    refused(call("check", SMALL, "teacher.weights=teacher"), "teacher.weights", "cut short", "model.safetensors")


def test_a_file_that_is_no_safetensors(call, here, recipe):
    Path("notes.safetensors").write_text("these are words, " * 20)
    refused(call("check", SMALL, "teacher.weights=notes.safetensors"), "no safetensors file")


def test_a_safetensors_file_without_the_models_tensors(call, here, recipe):
    save_file({"x": torch.zeros(3)}, "other.safetensors")
    refused(call("run", SMALL, "teacher.weights=other.safetensors"), "another model", "other.safetensors")


def test_more_transfer_images_than_there_are(call, recipe):
    refused(call("run", SMALL, "data.labels=100", "data.transfer=900"), "data.transfer", "900")


def test_a_validation_set_larger_than_the_training_set(call, here, recipe):
    image_folder(here / "images", splits=("train", "test"))
    data = "data={name: folder, path: images, size: 8, channels: 1, validation: 500}"
    refused(call("run", SMALL, data), "validation", "500", "12")


def test_more_labels_than_there_are(call, recipe):
    refused(call("run", SMALL, "data.labels=5000"), "data.labels", "5,000")


def test_a_class_that_does_not_exist(call, recipe):
    refused(call("run", SMALL, "data.without=[ten]"), "data.without", "no class 'ten'")


def test_a_mean_for_other_channels(call, recipe):
    refused(call("run", SMALL, "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"), "data.mean", "3 values", "1 channels")


def test_an_out_folder_that_is_in_use(call, here, recipe):
    (here / "used").mkdir()
    (here / "used" / "thesis.tex").write_text("years of work")
    refused(call("run", SMALL, "--out", "used"), "used: exists already", "understudy resume")
    assert (here / "used" / "thesis.tex").read_text() == "years of work"


def test_an_out_folder_below_a_file(call, recipe):
    refused(call("run", SMALL, "--out", "small.yaml/run"), "small.yaml/run", "Not a directory")


def test_a_package_to_import_that_fails(call, here, recipe):
    (here / "mine_broken.py").write_text("1 / 0\n")
    refused(call("run", SMALL, "--import", "mine_broken"), "--import mine_broken", "ZeroDivisionError")


# Found in the data


def idx_folder(root: Path, *, labels: bytes = bytes(range(10)), magic: int = 0x803, cut: int = 0) -> Path:
    root.mkdir()
    pixels = bytes(28 * 28 * 10)
    for split in ("train", "t10k"):
        images = struct.pack(">IIII", magic, 10, 28, 28) + pixels
        (root / f"{split}-images-idx3-ubyte").write_bytes(images[: len(images) - cut])
        (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 0x801, 10) + labels))
    return root


def with_idx(call):
    return call("run", SMALL, "data={name: mnist, path: raw, validation: none}", "student.hidden=[4]")


def test_a_truncated_idx_file(call, here, recipe):
    idx_folder(here / "raw", cut=100)
    refused(with_idx(call), "raw/train-images-idx3-ubyte", "7,840", "7,740")


def test_a_wrong_idx_magic(call, here, recipe):
    idx_folder(here / "raw", magic=0x802)
    refused(with_idx(call), "raw/train-images-idx3-ubyte", "is no idx file of images")


def test_a_label_out_of_range(call, here, recipe):
    idx_folder(here / "raw", labels=bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 77]))
    refused(with_idx(call), "train-labels-idx1-ubyte", "image 9 has label 77", "10 classes")


def test_a_gzip_file_cut_short(call, here, recipe):
    file = idx_folder(here / "raw") / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-10])
    refused(with_idx(call), "train-labels-idx1-ubyte.gz", "cut short")


def test_idx_files_that_are_not_there(call, here, recipe):
    (here / "raw").mkdir()
    refused(with_idx(call), "raw", "data.path")


def with_folder(call, path: str = "images", *more: str):
    data = f"data={{name: folder, path: {path}, size: 8, channels: 1, validation: none}}"
    return call("run", SMALL, data, "teacher.train.epochs=1", "train.epochs=1", "seeds=1", *more)


def test_a_folder_that_is_not_there(call, recipe):
    refused(with_folder(call), "data.path: there is no folder 'images' (looked from ")


def test_an_empty_folder(call, here, recipe):
    (here / "images").mkdir()
    refused(with_folder(call), "images", "train")


def test_a_class_folder_without_images(call, here, recipe):
    for name in ("cat", "dog"):
        (here / "images" / "train" / name).mkdir(parents=True)
    refused(with_folder(call), "images/train", "no images")


def test_a_class_that_only_validation_has(call, here, recipe):
    image_folder(here / "images")
    (here / "images" / "val" / "dog").rename(here / "images" / "val" / "bird")
    refused(with_folder(call), "images/val/bird", "cat")


def test_a_corrupt_image(call, here, recipe):
    image_folder(here / "images")
    for file in (here / "images" / "train").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:60])
    ended = with_folder(call)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "images/train/" in ended.err
    assert ".png" in ended.err


def write_csv(here: Path, text: str) -> None:
    image_folder(here / "images")
    Path("list.csv").write_text(text)


def with_csv(call):
    return call("run", SMALL, "data={name: csv, path: list.csv, size: 8, channels: 1, validation: none}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["list.csv:1", "columns path and label"]),
        ("path,label\n", ["list.csv", "no rows"]),
        ("file,label\nimages/train/cat/0.png,cat\n", ["list.csv:1", "columns path and label"]),
        ("path,label\nimages/train/cat/0.png,cat\ngone.png,dog\n", ["list.csv:3", "gone.png"]),
        ("path,label,split\nimages/train/cat/0.png,cat,later\n", ["list.csv:2", "unknown split 'later'"]),
        ("path,label,split\nimages/train/cat/0.png,cat,test\n", ["list.csv", "train"]),
    ],
)
def test_a_wrong_csv(call, here, recipe, text, said):
    write_csv(here, text)
    refused(with_csv(call), *said)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite(here, value):
    images, labels = np.zeros((20, 4, 4), np.float32), np.arange(20) % 2
    images[7, 1, 2] = value
    student = {"name": "mlp", "hidden": [4]}
    with pytest.raises(understudy.UserError, match="image 7 has a pixel that is not a finite number"):
        understudy.distill(teacher=student, student=student, data=(images, labels), quiet=True)
    assert not Path("runs").exists()


# Commands on saved models


def test_resume_of_a_folder_that_is_no_run(call, here):
    (here / "notes").mkdir()
    refused(call("resume", "notes"), "notes: is no run folder", "recipe.yaml")


def test_evaluate_of_a_folder_without_a_model(call, here):
    refused(call("evaluate", ".", "--data", "digits"), "config.json", "saved model")


def test_evaluate_on_data_of_other_classes(call, here):
    saved_model(here / "model", classes=7)
    refused(call("evaluate", "model", "--data", "digits"), "7 classes", "10")


def test_evaluate_a_model_whose_weights_are_gone(call, here):
    (saved_model(here / "model") / "model.safetensors").unlink()
    refused(call("evaluate", "model", "--data", "digits"), "model/model.safetensors")


def test_a_config_that_is_not_ours(call, here):
    (saved_model(here / "model") / "config.json").write_text('{"architectures": []}')
    refused(call("evaluate", "model", "--data", "digits"), "model/config.json", "understudy")


def test_evaluate_on_a_split_that_the_data_does_not_have(call, here):
    saved_model(here / "model")
    words = ("evaluate", "model", "--data", "digits", "validation=none", "--split", "validation")
    refused(call(*words), "no split 'validation'")


def test_predict_of_a_file_that_is_no_image(call, here):
    saved_model(here / "model")
    Path("words.png").write_text("no image")
    refused(call("predict", "model", "words.png"), "words.png", "no image that can be read")


def test_predict_of_a_folder_without_images(call, here):
    saved_model(here / "model")
    (here / "empty").mkdir()
    refused(call("predict", "model", "empty"), "empty: holds no images")
