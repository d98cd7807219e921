"""What is written and measured: exports against torch, tables, pictures, the command line."""

import json
import shutil
import warnings

import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import numpy as np
from detect_helpers import SMALL

from understudy.cli import main
from understudy.errors import UserError
from understudy.run.measure import parameter_count
from understudy.tasks.detect import compare, export, measure, predict, sensitivity
from understudy.tasks.detect.compressor import prepare_data
from understudy.tasks.detect.guest import open_yolo

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch", "ignore::DeprecationWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def prepared(shapes, tmp_path_factory):
    return prepare_data(shapes, tmp_path_factory.mktemp("files"))


@pytest.fixture
def weights(trained, tmp_path):
    (tmp_path / "model.pt").write_bytes(trained.read_bytes())
    return tmp_path / "model.pt"


def test_onnx_gives_the_numbers_of_torch_and_is_measured_as_it_is(weights, prepared):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    done = export(weights, "onnx", imgsz=64)
    assert done.path == weights.with_suffix(".onnx")
    assert done.difference is not None
    assert done.difference < 1e-4
    table = compare([weights, done.path], prepared[1], imgsz=64, split="test")
    ours, theirs = table.rows
    assert ours.parameters == parameter_count(open_yolo(weights).model)
    assert theirs.parameters == pytest.approx(ours.parameters, rel=0.02)  # norms are folded into convolutions
    assert ours.onnxruntime_ms is not None
    assert theirs.onnxruntime_ms is not None
    assert ours.torch_ms is not None
    assert theirs.torch_ms is None
    assert theirs.size_bytes == done.path.stat().st_size
    assert abs(ours.metrics["mAP50"] - theirs.metrics["mAP50"]) < 0.02
    assert ours.macs > 1e5
    assert len(table.table().columns) == len(table.full_table()["columns"])


def test_a_comparison_is_written_as_json_and_picture(weights, prepared, tmp_path):
    table = compare({"before": weights}, prepared[1], imgsz=64, split="test")
    picture = table.save(tmp_path / "out")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["models"][0]["name"] == "before"


@pytest.mark.parametrize(
    ("format", "options", "said"),
    [
        ("onyx", {}, "did you mean 'onnx'"),
        ("torchscript", {"int8": True}, "calibrated on images"),
        ("openvino", {}, "openvino needs openvino|needs what is not installed"),
        ("torchscript", {"opset": 12}, "opset"),
    ],
)
def test_exports_that_cannot_be_had_are_refused(weights, format, options, said):
    if format == "openvino":
        with warnings.catch_warnings():
            try:
                import openvino  # noqa: F401

                pytest.skip("openvino is installed")
            except ModuleNotFoundError:
                pass
    with pytest.raises(UserError, match=said):
        export(weights, format, imgsz=64, **options)


def test_torchscript_runs_and_is_measured(weights, prepared):
    done = export(weights, "torchscript", imgsz=64)
    row = measure(done.path, data=prepared[1], imgsz=64)
    assert row.torch_ms is not None
    assert row.parameters is None


def test_boxes_are_drawn_on_every_image_of_a_folder(weights, shapes, tmp_path):
    pictures = predict(weights, shapes.parent / "images" / "test", tmp_path / "out", imgsz=64, conf=0.001)
    assert len(pictures) == 8
    assert all(picture.stat().st_size > 500 for picture in pictures)
    with pytest.raises(UserError, match="no such image"):
        predict(weights, tmp_path / "nowhere", tmp_path / "out")


def test_the_scan_puts_everything_back_and_finds_the_planted_dead_layer(weights, prepared):
    yolo = open_yolo(weights)
    dead = yolo.model.get_submodule("model.4.m.0.cv1.bn")
    dead.weight.data.zero_()
    dead.bias.data.zero_()
    before = {name: value.clone() for name, value in yolo.model.state_dict().items()}
    found = sensitivity(yolo, prepared[0], str(prepared[1]), imgsz=64, images=4, ratios=(0.9,))
    assert all(np.array_equal(value.numpy(), yolo.model.state_dict()[name].numpy()) for name, value in before.items())
    assert found.losses["model.4.m.0.cv1"][0.9] == pytest.approx(found.whole, rel=1e-6)
    rises = [abs(by_ratio[0.9] / found.whole - 1) for by_ratio in found.losses.values()]
    assert max(rises) > 1e-4
    assert found.limits()["model.4.m.0.cv1"] == 0.9


def test_the_command_prunes_and_says_what_it_left(weights, tmp_path, capsys):
    code = main(["detect", "prune", f"model={weights}", "ratio=0.4", "round_to=2", "imgsz=64"])
    assert code == 0
    assert "parameters" in capsys.readouterr().out
    assert parameter_count(open_yolo(tmp_path / "pruned.pt").model) < parameter_count(open_yolo(weights).model)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prune", "model={weights}", "ratio=1"], "above 0 and below 1"),
        (["prune", "model={weights}", "ratio=0"], "above 0 and below 1"),
        (["prune", "model={weights}", "ratio=much"], "ratio: is a number"),
        (["prune", "model={weights}", "ratio=0.4", "scope=both"], "scope: is local or global"),
        (["prune", "model=rtdetr-l.yaml", "ratio=0.4"], "is no YOLO"),
        (["prune", "ratio=0.4"], "model is missing"),
        (["prune", "model=nowhere.pt", "ratio=0.4"], "nothing is downloaded"),
        (["prune", "model=yolov9t.yaml", "ratio=0.4"], "ELAN1"),
        (["prune", "model={weights}", "ratio=0.4", "raito=1"], "raito"),
        (["train", "model={weights}", "data=nowhere.yaml"], "no such data YAML"),
        (["train", "model={weights}", "data={data}", "epoch=1"], "did you mean 'epochs'"),
        (["distill", "model={weights}", "data={data}", "teacher={weights}", "method=dkd"], "a label for each image"),
        (["distill", "model={weights}", "data={data}", "method=cwd"], "teacher is missing"),
        (["export", "model={weights}", "format=onyx"], "no export format"),
        (["export", "model={weights}", "halff=true"], "did you mean 'half'"),
        (["compare", "weights=[{weights}, nowhere.onnx]", "data={data}"], "nowhere.onnx: no such file"),
        (["compare", "weights=[]", "data={data}"], "at least one"),
        (["train", "model={weights}", "data={data}", "device=99"], "device=99: there is no such device"),
        (["predict", "{weights}", "nowhere.jpg"], "no such image, folder or video"),
        (["predict", "{weights}", "empty"], "no images or videos there"),
        (["train", "imgsz"], "key=value"),
    ],
)
def test_wrong_words_end_in_one_line_and_exit_2(words, said, weights, prepared, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    given = [word.format(weights=weights, data=prepared[1]) for word in words]
    assert main(["detect", *given]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1]


def test_what_is_merely_dirty_is_said_in_one_line(shapes, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shapes.parent, "dirty")
    (tmp_path / "dirty" / "labels" / "train" / "0.txt").write_text("")
    assert main(["detect", "compare", "weights=[nowhere.onnx]", "data=dirty/shapes.yaml"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "understudy: train: 1 images have no boxes: they are trained on as background"


@pytest.mark.slow
def test_the_commands_of_a_whole_chain(trained, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [f"{key}={value}" for key, value in SMALL.items()]
    run = ["detect", "distill", f"model={trained}", f"teacher={trained}", f"data={prepared[1]}", "epochs=1"]
    assert main([*run, "method=mgd", "layers=[15, 18]", "folder=out", *small]) == 0
    assert {path.name for path in (tmp_path / "out" / "weights").iterdir()} == {"distilled.pt", "control.pt"}
    weights = "[out/weights/distilled.pt, out/weights/control.pt]"
    assert main(["detect", "compare", f"weights={weights}", f"data={prepared[1]}", "imgsz=64", "folder=table"]) == 0
    assert (tmp_path / "table" / "comparison.png").exists()
