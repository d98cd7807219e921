"""ultralytics' own trainer, subclassed: widths, teacher, connectors, columns, resume and the launcher's pickling."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import torch
from detect_helpers import SMALL

from understudy.errors import UserError
from understudy.run.measure import parameter_count
from understudy.tasks.detect import stages
from understudy.tasks.detect.compressor import prepare_data
from understudy.tasks.detect.guest import YOLO, get_cfg, load_checkpoint, open_yolo
from understudy.tasks.detect.methods import read_method
from understudy.tasks.detect.prune import Pruning
from understudy.tasks.detect.sparse import Sparsity
from understudy.tasks.detect.trainers import distill_trainer, is_pruned, keep_widths_trainer, sparse_trainer
from understudy.tasks.detect.wrapper import DistilledModel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::UserWarning:ultralytics")


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def data(shapes, tmp_path_factory):
    return str(prepare_data(shapes, tmp_path_factory.mktemp("data"))[1])


@pytest.fixture(scope="module")
def pruned(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("pruned") / "pruned.pt"
    stages.prune_weights(trained, path, Pruning(ratio=0.4, round_to=2, imgsz=64))
    return path


def logged(folder):
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def settings(data, **more):
    return {**SMALL, "data": data, "epochs": 2, **more}


def test_a_pruned_student_is_distilled_at_its_own_widths_and_logged(trained, pruned, data, tmp_path):
    place = stages.Place(tmp_path / "run", tmp_path / "distilled.pt")
    before, seen = digest(trained), {}

    def at_start(trainer):
        seen["teacher"] = {name: value.clone() for name, value in trainer.model.teacher_model.state_dict().items()}
        seen["connectors"] = [value.detach().clone() for value in trainer.model.projector.parameters()]
        groups = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        ids = {id(parameter) for parameter in groups}
        seen["optimised"] = all(id(value) in ids for value in trainer.model.projector.parameters())

    def at_end(trainer):
        now = trainer.model.teacher_model.state_dict()
        seen["unchanged"] = all(torch.equal(value, now[name]) for name, value in seen["teacher"].items())
        pairs = zip(seen["connectors"], trainer.model.projector.parameters(), strict=True)
        seen["moved"] = [not torch.equal(one, other) for one, other in pairs]
        averaged = trainer.ema.ema.projector.parameters()
        seen["averaged"] = all(not torch.equal(one, o) for one, o in zip(seen["connectors"], averaged, strict=True))

    watch = {"on_train_start": at_start, "on_train_end": at_end}
    done = stages.distill(pruned, trained, read_method("mgd"), place, settings(data, plots=True), watch=watch)

    assert parameter_count(done.model) == parameter_count(open_yolo(pruned).model)
    assert seen["optimised"]
    assert seen["unchanged"]
    assert digest(trained) == before
    assert len(seen["moved"]) > 0
    assert all(seen["moved"])
    assert seen["averaged"]
    rows = logged(tmp_path / "run")
    assert len(rows) == 2
    assert all(float(row["train/mgd_loss"]) > 0 for row in rows)
    assert (tmp_path / "run" / "results.png").exists()
    assert {type(module).__module__.split(".")[0] for module in done.model.modules()} <= {"ultralytics", "torch"}


class _Enough(Exception):
    pass


@pytest.mark.parametrize("method", ["cwd", pytest.param("native", marks=pytest.mark.slow)])
def test_a_broken_training_goes_on_with_its_widths_and_connectors(trained, pruned, data, tmp_path, method):
    place = stages.Place(tmp_path / "run", tmp_path / "distilled.pt")

    def stop(trainer):
        if trainer.epoch == 1:
            raise _Enough

    chosen = read_method({"name": "cwd", "layers": "backbone"} if method == "cwd" else "native")
    with pytest.raises(_Enough):
        stages.distill(pruned, trained, chosen, place, settings(data), watch={"on_train_batch_end": stop})
    kept = load_checkpoint(str(place.last))[0]
    connectors = [value.clone().float() for value in kept.projector.parameters()]
    if method == "cwd":
        assert isinstance(kept, DistilledModel)
        assert kept.distillation.method.layers == "backbone"
    seen = {}

    def at_start(trainer):
        seen["epoch"] = trainer.start_epoch
        seen["same"] = [
            torch.equal(o, v) for o, v in zip(connectors, trainer.model.projector.parameters(), strict=True)
        ]
        seen["parameters"] = parameter_count(trainer.model.student_model)

    done = stages.distill(
        pruned, trained, chosen, place, settings(data), resume=True, watch={"on_train_start": at_start}
    )
    wanted = parameter_count(open_yolo(pruned).model)
    assert seen["epoch"] == 1
    assert all(seen["same"])
    assert seen["parameters"] == parameter_count(done.model) == wanted
    assert len(logged(tmp_path / "run")) == 2


def test_a_pruned_model_trains_on_alone_and_stock_training_would_have_rebuilt_it(pruned, data, tmp_path):
    done = stages.train(pruned, stages.Place(tmp_path / "run", tmp_path / "tuned.pt"), settings(data, epochs=1))
    wanted = parameter_count(open_yolo(pruned).model)
    assert parameter_count(done.model) == wanted
    stock = YOLO(str(pruned)).model
    assert is_pruned(stock)
    assert parameter_count(type(stock)(stock.yaml, verbose=False)) > wanted


def test_other_classes_than_a_pruned_model_was_made_for_are_refused(pruned, shapes, tmp_path):
    text = shapes.read_text().replace("- disc\n", "- disc\n- ring\n")
    (shapes.parent / "three.yaml").write_text(text)
    _, three = prepare_data(shapes.parent / "three.yaml", tmp_path)
    with pytest.raises(UserError, match="made for 2 classes, the data has 3"):
        stages.train(pruned, stages.Place(tmp_path / "run", tmp_path / "x.pt"), settings(str(three), epochs=1))


@pytest.mark.parametrize("method", ["proximal", pytest.param("subgradient", marks=pytest.mark.slow)])
def test_sparse_training_shrinks_prunable_scales_and_no_others(trained, data, tmp_path, method):
    place = stages.Place(tmp_path / "run", tmp_path / "sparse.pt")
    found = stages.sparsify(trained, place, settings(data, nbs=16, lr0=0.01), Sparsity(strength=0.9, method=method))
    plain = stages.Place(tmp_path / "plain", tmp_path / "plain.pt")
    stages.train(trained, plain, settings(data, nbs=16, lr0=0.01), keep="last")
    from understudy.tasks.detect.channels import prunable_scales
    from understudy.tasks.detect.sparse import scales_of

    sparse, alone = open_yolo(place.weights).model, open_yolo(plain.weights).model
    names = prunable_scales(sparse)
    sums = [sum(float(scale.detach().abs().sum()) for scale in scales_of(model, names)) for model in (sparse, alone)]
    assert sums[0] < sums[1] - 0.1
    assert found["after"]["median"] < found["before"]["median"]


def test_the_average_sees_the_step_and_its_shrinking_together(trained, data):
    """One step of the trainer itself, against plain AdamW followed by the closed form."""
    trainer_class = sparse_trainer(Sparsity(strength=0.5))
    trainer = trainer_class(overrides={**settings(data, epochs=1, model=str(trained)), "project": "x", "name": "y",
                                       "save_dir": str(Path(data).parent / "one")})  # fmt: skip
    trainer._setup_train()
    trainer.epoch = 0
    trainer.model.train()
    batch = trainer.preprocess_batch(next(iter(trainer.train_loader)))
    trainer.model(batch)[0].sum().backward()
    scale = trainer._scales[0]
    rate = next(group["lr"] for group in trainer.optimizer.param_groups if any(scale is p for p in group["params"]))
    gradients = [parameter.grad for parameter in trainer.model.parameters() if parameter.grad is not None]
    norm = torch.norm(torch.stack([torch.norm(gradient) for gradient in gradients]))
    gradient = scale.grad * min(1.0, 10.0 / float(norm))
    expected = scale.detach() - rate * gradient / (gradient.abs() + 1e-8)  # the first step of Adam
    expected = expected.sign() * (expected.abs() - rate * 0.5).clamp_min(0)
    before = trainer.ema.updates
    trainer.optimizer_step()
    torch.testing.assert_close(scale.detach(), expected, rtol=1e-4, atol=1e-6)
    assert trainer.ema.updates == before + 1


@pytest.mark.slow
def test_the_launcher_of_several_processes_keeps_trainer_and_options(trained, pruned, data, tmp_path):
    """What ultralytics pickles for torchrun's processes, read in a process that never saw the class."""
    cloudpickle = pytest.importorskip("cloudpickle")
    trainer = distill_trainer(trained, {"name": "mgd", "ratio": 0.5}, layers="article", schedule="cosine")
    sparse = sparse_trainer(Sparsity(strength=0.25))
    with (tmp_path / "state.pt").open("wb") as file:
        torch.save({"trainer": trainer, "sparse": sparse, "args": vars(get_cfg(overrides=settings(data)))}, file,
                   pickle_module=cloudpickle)  # fmt: skip
    code = (
        "import sys, json\n"
        "from ultralytics.utils.patches import torch_load\n"
        "state = torch_load(sys.argv[1], map_location='cpu')\n"
        "trainer, sparse = state['trainer'], state['sparse']\n"
        "made = trainer(overrides={**state['args'], 'model': sys.argv[2], 'project': sys.argv[3], 'name': 'child'})\n"
        "made.model = made.get_model(cfg=None, weights=__import__('ultralytics').YOLO(sys.argv[2]).model)\n"
        "made._setup_train()\n"
        "said = {'bases': [b.__name__ for b in trainer.__mro__], 'method': made.distillation.method.name,\n"
        "        'ratio': made.distillation.method.objectives[0]['ratio'], 'layers': made.distillation.method.layers,\n"
        "        'strength': sparse.sparsity.strength, 'taps': len(made.model.taps),\n"
        "        'student': sum(p.numel() for p in made.model.student_model.parameters())}\n"
        "print('SAID' + json.dumps(said))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "state.pt"), str(pruned), str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("SAID"))[4:])
    assert {"DistillTrainer", "Distills", "KeepsWidths", "DetectionTrainer"} <= set(said["bases"])
    assert (said["method"], said["ratio"], said["layers"], said["taps"]) == ("mgd", 0.5, "article", 6)
    assert said["strength"] == 0.25
    assert said["student"] == parameter_count(open_yolo(pruned).model)


def test_plain_yolo_takes_the_trainer(trained, pruned, data, tmp_path):
    yolo = YOLO(str(pruned))
    yolo.train(trainer=distill_trainer(trained, "cwd"), **settings(data, epochs=1), project=str(tmp_path), name="plain")
    assert "train/cwd_loss" in (tmp_path / "plain" / "results.csv").read_text()


def test_frames_without_labels_join_a_training(trained, pruned, data, shapes, tmp_path):
    seen = []
    place = stages.Place(tmp_path / "run", tmp_path / "x.pt")
    watch = {"on_train_batch_end": lambda trainer: seen.append(tuple(trainer._frames.batch(1).shape))}
    stages.distill(pruned, trained, read_method("cwd"), place, settings(data, epochs=1), watch=watch,
                   unlabelled=str(shapes.parent / "images" / "test"), unlabelled_batch=3)  # fmt: skip
    assert seen[0] == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: distill_trainer("nowhere.pt", "cwd"), "no such file"),
        (lambda: keep_widths_trainer("semantic"), "no trainer for 'semantic'"),
        (lambda: stages.training_arguments({"epoch": 3}), "did you mean 'epochs'"),
        (lambda: stages.training_arguments({"lr0": "big"}), "lr0"),
    ],
)
def test_wrong_words_are_answered(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_a_learning_rate_of_ones_own_is_not_thrown_away():
    given = stages.training_arguments({"lr0": 0.01})
    assert (given["optimizer"], given["warmup_bias_lr"]) == ("AdamW", 0.0)
    assert "optimizer" not in stages.training_arguments({"epochs": 1})
    given = stages.training_arguments({"lr0": 0.01, "optimizer": "SGD"})
    assert (given["optimizer"], "warmup_bias_lr" in given) == ("SGD", False)
    assert stages.training_arguments({"lr0": 0.01, "warmup_bias_lr": 0.05})["warmup_bias_lr"] == 0.05


def test_a_pickle_that_would_run_code_is_not_opened(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'harmed'}",))

    torch.save({"model": Harm(), "epoch": -1}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="trust_pickle"):
        open_yolo(tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


def test_a_module_that_is_no_yolo_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    with pytest.raises(UserError, match=r"linear\.pt: holds something else"):
        open_yolo(tmp_path / "linear.pt")
