"""Whole runs, tiny: rounds as stages that can be stopped and resumed, other teachers and methods, and what is left."""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from PIL import Image

from understudy.errors import Interrupted, UserError
from understudy.recipe.reader import Source, build_recipe
from understudy.run import start as engine
from understudy.tasks.diffusion import contest, distill, load_network, samples
from understudy.tasks.diffusion.evaluate import evaluate, evaluate_run
from understudy.train import loop


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "write_report", lambda folder: folder)


@pytest.fixture
def run(tmp_path, tiny_recipe):
    """Run the tiny recipe with changes, in a folder of its own."""

    def start(name="run", objects=None, **changes):
        recipe = build_recipe(Source("test", {**copy.deepcopy(tiny_recipe), **changes}))
        return engine.start(recipe, out=tmp_path / name, objects=objects or {}, console=None)

    return start


def by_class(tiny_recipe, **train):
    teacher = copy.deepcopy(tiny_recipe["teacher"])
    teacher["train"] |= train
    return {**teacher, "conditional": True}


def test_a_run_leaves_every_round_as_a_pipeline_and_compares_them(run, tmp_path):
    result = run(seeds=2)
    folder = result.folder
    models = result.results["models"]
    assert [name for name, about in models.items() if about["role"] == "distilled"] == [
        "student_4",
        "student_2",
        "student_1",
    ]
    assert models["teacher_8"]["role"] == "teacher"
    assert models["teacher_ddim_4"]["role"] == "control"
    assert models["teacher_8"]["metrics"]["paired_mse"]["last"] == 0
    assert models["student_4"]["macs"] == 4 * models["student_1"]["macs"]
    assert [entry["seed"] for entry in models["student_1"]["metrics"]["frechet"]["seeds"]] == [0, 1]
    assert result.results["verdict"]["metric"] == "frechet"
    assert "the teacher with 4 DDIM steps" in result.verdict
    for name in ("student_4", "student_2", "student_1"):
        pipeline = DiffusionPipeline.from_pretrained(folder / "arms" / name / "seed-1" / "student")
        pipeline.set_progress_bar_config(disable=True)
        assert len(pipeline(batch_size=1, num_inference_steps=2).images) == 1
    assert result.student.card.steps == 4
    assert result.teacher.card.steps == 8
    sections = result.results["extra"]
    assert {"chart", "table"} <= sections[0].keys()
    assert len(sections[0]["table"]["rows"]) == len(models)
    for section in sections[1:]:
        with Image.open(folder / section["image"]) as picture:
            assert picture.width > 100


@pytest.fixture
def stop_at(monkeypatch):
    """Have a signal sent during chosen updates, counted over all stages and processes."""
    original, done, wanted = loop.train_step, [0], []

    def counted(*args, **kwargs):
        done[0] += 1
        if done[0] in wanted:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", counted)

    def choose(*updates):
        done[0], wanted[:] = 0, updates

    return choose


def test_a_run_stopped_in_the_middle_of_stages_ends_with_the_same_bits(run, tmp_path, stop_at):
    # Updates: 2 of the classifier, 6 of the teacher, then 4 a round.
    whole = run("whole")
    stop_at(5, 10, 15)
    with pytest.raises(Interrupted):
        run("parts")
    for _ in range(2):
        with pytest.raises(Interrupted):
            engine.resume(tmp_path / "parts", objects={}, console=None)
    resumed = engine.resume(tmp_path / "parts", objects={}, console=None)
    assert resumed.results["hash"] == whole.results["hash"]


def test_a_comparison_that_was_killed_goes_on_where_it_was(run, tmp_path):
    whole = run("whole")
    folder, log = whole.folder, whole.folder / "quality" / "seed-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote
    (folder / "results.json").unlink()
    assert engine.resume(folder, objects={}, console=None).results["hash"] == whole.results["hash"]
    assert log.read_text() == "".join(lines)


def test_a_signal_is_heard_while_images_are_drawn(run, tmp_path, monkeypatch):
    whole = run("whole")
    folder, log = whole.folder, whole.folder / "quality" / "seed-0.jsonl"
    (folder / "results.json").unlink()
    log.unlink()
    original, drawn = contest.images_of, []

    def killed(contender, *args, **kwargs):
        drawn.append(contender.name)
        if len(drawn) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(contender, *args, **kwargs)

    monkeypatch.setattr(contest, "images_of", killed)
    with pytest.raises(Interrupted):
        engine.resume(folder, objects={}, console=None)
    assert len(log.read_text().splitlines()) == 1
    assert engine.resume(folder, objects={}, console=None).results["hash"] == whole.results["hash"]


def test_self_taught_stages_resume_too(run, tmp_path, stop_at):
    method = [
        {"name": "tract", "updates": 6, "batch_size": 16},
        {"name": "consistency", "updates": 4, "batch_size": 16},
    ]
    whole = run("whole", method=method)
    names = [name for name, about in whole.results["models"].items() if about["role"] == "distilled"]
    assert names == ["student_tract_1", "student_consistency_4", "student_consistency_2", "student_consistency_1"]
    stop_at(12, 16)
    with pytest.raises(Interrupted):
        run("parts", method=method)
    with pytest.raises(Interrupted):
        engine.resume(tmp_path / "parts", objects={}, console=None)
    assert engine.resume(tmp_path / "parts", objects={}, console=None).results["hash"] == whole.results["hash"]


@pytest.fixture
def foreign(tmp_path):
    """A pipeline in the layout of a public DDPM: it predicts noise on linear betas."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(50)).save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_a_foreign_pipeline_is_converted_first_and_comes_nearer_to_its_own_images(run, foreign):
    result = run(
        teacher={"weights": str(foreign)},
        convert={"updates": 40, "batch_size": 16, "lr": 2e-3, "weighting": "v_mse"},
        steps=[4, 2],
    )
    rows = [
        json.loads(line) for line in (result.folder / "arms/converted/seed-0/metrics.jsonl").read_text().splitlines()
    ]
    nearness = [row["test"]["psnr"] for row in rows if row["kind"] == "eval"]
    assert nearness[-1] > nearness[0] + 1
    student = load_network(result.folder / "arms" / "student_2" / "seed-0" / "student")
    assert student.card.process.prediction == "v"
    assert (
        DiffusionPipeline.from_pretrained(result.folder / "student").scheduler.config.prediction_type == "v_prediction"
    )


def test_without_data_the_teachers_own_samples_are_learnt_from(foreign, tmp_path):
    result = distill(
        teacher=str(foreign),
        data={"name": "teacher", "images": 30},
        steps=[4, 2],
        method={"name": "progressive", "updates": 3, "batch_size": 8},
        convert={"updates": 3, "batch_size": 8},
        evaluate={"images": 8},
        out=tmp_path / "free",
        quiet=True,
        threads=1,
    )
    assert result.results["verdict"]["metric"] == "paired_mse"
    assert (result.folder / "samples" / "samples.safetensors").is_file()
    assert any("no labelled images" in note for note in result.results["notes"])


class Own(torch.nn.Module):
    """A model of one's own, on latents of four channels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, z, t, y=None):
        return self.layer(z) * (1 + t.reshape(-1, 1, 1, 1))


def test_any_module_is_distilled_on_any_data(tmp_path):
    latents = torch.randn(40, 4, 6, 6)
    settings = {
        "teacher": Own(),
        "data": latents,
        "steps": [4, 2, 1],
        "method": {"name": "progressive", "updates": 3, "batch_size": 8},
        "evaluate": {"images": 8},
        "quiet": True,
        "threads": 1,
    }
    result = distill(**settings, out=tmp_path / "own")
    module = load_network(result.folder / "arms/student_1/seed-0/student", Own)
    assert not torch.equal(module.layer.weight, Own().layer.weight)
    assert any("no UNet2DModel" in note for note in result.results["notes"])


def test_a_folder_of_images_needs_no_classes(run, tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for number in range(20):
        place = tmp_path / "photos" / ("deep" if number % 2 else "")
        Image.fromarray(random.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(place / f"{number}.png")
    result = run(data={"name": "images", "path": str(tmp_path / "photos"), "size": 8}, steps=[2, 1])
    assert result.student.image_shape == (3, 8, 8)
    assert list(result.results["models"]["student_1"]["metrics"]) == ["paired_mse"]
    # A teacher that is brought says how large they are.
    again = distill(
        teacher=result.folder, data="photos", steps=[2, 1], method={"updates": 2, "batch_size": 4},
        evaluate={"images": 8}, quiet=True, threads=1,
    )  # fmt: skip
    assert again.student.image_shape == (3, 8, 8)
    with pytest.raises(UserError, match="no teacher that says so"):
        run("none", data={"name": "images", "path": str(tmp_path / "photos")}, steps=[2, 1])


def test_guidance_is_learnt_first_and_then_halved(run, tiny_recipe):
    guidance = {"updates": 20, "batch_size": 16, "lr": 2e-2, "weights": [0.0, 3.0], "sample": 2.0}
    result = run(teacher=by_class(tiny_recipe, label_dropout=0.2), guidance=guidance, steps=[4, 2])
    assert {"guided_4", "teacher_4"} <= result.results["models"].keys()
    assert "recognised" in result.results["models"]["student_2"]["metrics"]
    student = result.folder / "student"
    assert load_network(student).card.guidance == 2.0
    one, other = (
        samples.sample_images(samples.choose(student), count=2, classes=["3"], guidance=strength)[0]
        for strength in (None, 0.0)
    )
    assert one.shape == (2, 8, 8, 1)
    assert not np.array_equal(one, other)
    with pytest.raises(UserError, match=r"strengths 0 to 3, not 3\.5"):
        samples.sample_images(samples.choose(student), count=2, classes=["3"], guidance=3.5)


def test_data_by_a_word_is_a_data_set_before_a_folder_and_else_refused(tmp_path, tiny_recipe):
    (tmp_path / "digits").mkdir()
    settings = {"teacher": tiny_recipe["teacher"], "steps": [2, 1], "method": tiny_recipe["method"], "quiet": True}
    result = distill(**settings, data="digits", evaluate=tiny_recipe["evaluate"], out=tmp_path / "run", threads=1)
    assert "frechet" in result.results["models"]["student_1"]["metrics"]
    with pytest.raises(UserError, match=r"photos: is neither a folder nor a data set, known: .*csv"):
        distill(**settings, data="photos")


def test_guidance_is_learnt_in_python_too(tmp_path, tiny_recipe):
    result = distill(
        teacher=by_class(tiny_recipe, label_dropout=0.1),
        data="digits",
        steps=[4, 2],
        guidance={"updates": 3, "weights": [0.0, 3.0], "sample": 2.0},
        process={"logsnr_min": -15.0, "logsnr_max": 15.0},
        method=tiny_recipe["method"],
        evaluate=tiny_recipe["evaluate"],
        out=tmp_path / "guided",
        quiet=True,
        threads=1,
    )
    assert result.student.card.guidance == 2
    assert (result.student.card.process.logsnr_min, result.student.card.process.logsnr_max) == (-15, 15)


@pytest.fixture
def finished(run, tiny_recipe):
    return run(teacher=by_class(tiny_recipe)).folder


def test_a_finished_run_is_listed_sampled_and_evaluated(finished, tmp_path):
    assert [one.card.steps for one in samples.saved(finished)] == [8, 4, 2, 1]
    four = samples.choose(finished, steps=4)
    assert four.name == "student_4"
    images, labels = samples.sample_images(four, count=5, classes=["3", "7"])
    assert labels.tolist() == [3, 7, 3, 7, 3]
    again, _ = samples.sample_images(four, count=5, classes=["3", "7"])
    assert np.array_equal(images, again)
    samples.write_npz(tmp_path / "samples.npz", images, labels)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (5, 8, 8, 3)
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_1"].tolist() == [3, 7, 3, 7, 3]
    rows = evaluate_run(finished, [1, 4])
    assert [row["name"] for row in rows] == ["teacher_8", "teacher_ddim_4", "teacher_ddim_1", "student_4", "student_1"]
    recorded = json.loads((finished / "results.json").read_text())["models"]["student_4"]["metrics"]
    assert rows[3]["frechet"] == pytest.approx(recorded["frechet"]["last"])
    table = evaluate(finished, ["steps=4"]).splitlines()
    assert [line.split()[:2] for line in table] == [
        ["name", "steps"],
        ["teacher_8", "8"],
        ["teacher_ddim_4", "4"],
        ["student_4", "4"],
    ]
    assert len(evaluate(finished, []).splitlines()) == 1 + 4 + 3
    with pytest.raises(UserError, match="numbers of steps are written as 1,2,4"):
        evaluate(finished, ["steps=4,few"])
    with pytest.raises(UserError, match="numbers of steps are 1 and more"):
        evaluate_run(finished, [4, 0])
    with pytest.raises(UserError, match=r"no model of 3 steps \(it has 8, 4, 2, 1\)"):
        samples.choose(finished, steps=3)
    with pytest.raises(UserError, match="there is no class 'cat'"):
        samples.sample_images(four, count=1, classes=["cat"])
    with pytest.raises(UserError, match="no sampler 'ddpm'"):
        samples.sample_images(four, count=1, sampler="ddpm")


@pytest.fixture
def sample_command():
    """The command alone, as a person calls it."""
    import typer

    from understudy.cli.sample import register

    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    return lambda *words: app([str(word) for word in words], standalone_mode=False)


def test_the_command_writes_a_grid_and_samples(finished, tmp_path, sample_command, capsys):
    sample_command(finished, "--list")
    assert "student_2" in capsys.readouterr().out
    sample_command(finished, "--steps", 2, "--classes", "1,8", "--columns", 3, "--grid", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == 3 * 42
        assert picture.height == 2 * 42
    sample_command(finished, "--steps", 2, "--classes", "1,8", "--columns", 3, "--out", tmp_path / "rows.npz")
    with np.load(tmp_path / "rows.npz") as file:
        assert file["arr_1"].tolist() == [1, 1, 1, 8, 8, 8]
    sample_command(finished, "--n", 7, "--out", tmp_path / "seven.npz", "--device", "cpu")
    with np.load(tmp_path / "seven.npz") as file:
        assert len(file["arr_0"]) == len(file["arr_1"]) == 7
    noisy = ["--model", "teacher", "--steps", 2, "--sampler", "noisy", "--n", 2]
    for name, variance in (("small.npz", 0), ("large.npz", 1)):
        sample_command(finished, *noisy, "--variance", variance, "--out", tmp_path / name)
    with np.load(tmp_path / "small.npz") as small, np.load(tmp_path / "large.npz") as large:
        assert not np.array_equal(small["arr_0"], large["arr_0"])
    with pytest.raises(UserError, match="say where the images shall go"):
        sample_command(finished, "--steps", 2)
    with pytest.raises(UserError, match=r"--grid .*grid.xyz.* ends in none of \.png"):
        sample_command(finished, "--grid", tmp_path / "grid.xyz")
    with pytest.raises(UserError, match=r"--out .*its folder does not exist"):
        sample_command(finished, "--out", tmp_path / "none" / "seven.npz")
    with pytest.raises(UserError, match="no such folder"):
        sample_command(tmp_path / "none", "--list")


def test_classes_of_an_unconditional_model_are_refused(run):
    result = run(steps=[2, 1])
    with pytest.raises(UserError, match="trained without classes"):
        samples.sample_images(samples.choose(result.folder), count=1, classes=["3"])


def test_images_that_the_network_cannot_halve_are_refused_before_anything_is_written(run, tmp_path, tiny_recipe):
    teacher = {**tiny_recipe["teacher"], "multipliers": [1, 1, 1, 1, 1]}
    with pytest.raises(UserError, match=r"8x8 cannot be halved 4 times.*data\.pad_to=16"):
        run(teacher=teacher)
    assert not (tmp_path / "run").exists()
