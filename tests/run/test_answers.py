"""The teacher's answers ahead of a run, from elsewhere, and in runs that mix, repeat or compare views."""

import json
import signal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import understudy
from understudy.data import load_source
from understudy.errors import Interrupted, UserError
from understudy.recipe.reader import Source, build_recipe
from understudy.run import fill as filling
from understudy.run import start as engine
from understudy.run.fill import fill
from understudy.tasks.classify import fill as classify_fill
from understudy.tasks.classify.answers import remember
from understudy.tasks.classify.task import Classify


def students(folder, seeds=1) -> list[dict[str, torch.Tensor]]:
    """The weights of the distilled students of a run."""
    return [
        load_file(folder / f"arms/student_distilled/seed-{seed}/student/model.safetensors") for seed in range(seeds)
    ]


def same(one, other) -> bool:
    return all(torch.equal(mine[key], theirs[key]) for mine, theirs in zip(one, other, strict=True) for key in mine)


def known(result) -> float:
    return result.results["cache"][0]["known"]


@pytest.fixture
def go():
    """Run below the usual root, where caches are shared."""
    return lambda recipe: engine.start(recipe, out=None, objects={}, console=None)


# Filled ahead


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"augment": {"crop": 1}, "views": 2}, "train": {"epochs": 5}},
        {"data": {"augment": {"crop": 1}}, "cache": "on", "seeds": 2},
        {"data": {"augment": {"mixup": 0.4, "crop": 1}}, "cache": "on"},
        {"method": "rkd", "cache": "on"},
        {"assistants": [{"name": "mlp", "hidden": [16], "train": {"epochs": 4}}]},
        {"method": ["kd", {"name": "dkd", "labels": 1.0}]},
    ],
    ids=["plain", "views", "random", "mixed", "features", "assistants", "methods"],
)  # fmt: skip
def test_a_run_after_it_was_filled_asks_the_teacher_nothing_and_ends_with_the_same_bits(tiny, run, go, changes):
    recipe, off = tiny(**changes), tiny(**{**changes, "cache": "off"})
    wanted = run(off, "off").results["hash"]
    fill(recipe, objects={}, console=None)
    result = go(recipe)
    assert known(result) == 1.0
    assert result.results["hash"] == wanted
    assert any("100% of" in note for note in result.results["notes"])
    again = fill(recipe, objects={}, console=None)
    assert again[0]["known"] == 1.0
    assert again[0]["bytes"] > 0


def test_the_report_of_a_filled_cache_says_its_size_and_what_was_known(tiny, capsys):
    fill(tiny(cache={"top": 3}), objects={}, console=Console(width=300))
    told = capsys.readouterr().out
    assert "0% of 100 answers were known" in told
    assert "MiB in " in told
    assert "of the probability" in told


def test_a_fill_that_is_stopped_keeps_what_it_has_and_goes_on(tiny, monkeypatch):
    recipe = tiny(train={"batch_size": 8, "epochs": 4}, data={"augment": {"crop": 1}, "views": 4})
    steps, counted = classify_fill.steps, []

    def then_a_signal(*arguments):
        for step in steps(*arguments):
            counted.append(step)
            if len(counted) == 30:
                signal.raise_signal(signal.SIGTERM)
            yield step

    monkeypatch.setattr(classify_fill, "steps", then_a_signal)
    with pytest.raises(Interrupted, match="every answer so far was kept: the same command goes on"):
        fill(recipe, objects={}, console=None)
    monkeypatch.setattr(classify_fill, "steps", steps)
    (told,) = fill(recipe, objects={}, console=None)
    assert 0.4 < told["known"] < 0.9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cache": "off"}, "cache: is off"),
        ({"data": {"augment": {"crop": 1}}}, "cache: random views are new in each pass"),
        ({"data": {"augment": {"mixup": 1.0}}}, "cache: random views are new in each pass"),
        ({"method": "rkd"}, "cache: a method compares features, which are kept only with cache=on"),
    ],
)
def test_what_no_run_would_look_at_is_not_filled(tiny, changes, said):
    with pytest.raises(UserError, match=said):
        fill(tiny(**changes), objects={}, console=None)


def test_other_tasks_keep_no_answers():
    from understudy.recipe.reader import read_recipe

    with pytest.raises(UserError, match="task: 'diffusion' keeps no answers"):
        filling.fill(read_recipe("diffusion-digits"), objects={}, console=None)


# What is mixed, repeated, or seen twice


@pytest.mark.parametrize(
    ("changes", "second"),
    [
        ({"data": {"augment": {"mixup": 0.1, "cutmix": 0.5, "flip": True}}}, 1.0),
        ({"data": {"augment": {"crop": 1, "repeats": 2.0}}}, 0.0),
        ({"data": {"augment": {"crop": 1}, "second_view": {"flip": True}}, "method": "mlkd"}, 1.0),
    ],
    ids=["mixed", "repeated", "two views"],
)
def test_whatever_can_be_kept_is_and_the_bits_stay(tiny, run, go, changes, second):
    wanted = run(tiny(**changes, cache="off"), "off").results["hash"]
    cold, warm = (go(tiny(**changes, cache="on")) for _ in range(2))
    assert cold.results["hash"] == warm.results["hash"] == wanted
    assert known(warm) == second


def test_of_fixed_views_the_steps_that_are_not_mixed_are_known_to_a_run_of_another_seed(tiny, go):
    changes = {"data": {"augment": {"mixup": 0.02}}, "train": {"epochs": 8, "batch_size": 10}}
    first = go(tiny(**changes))
    assert 0 < known(first) < 0.9
    second = go(tiny(**changes, seed=1))
    assert known(second) > known(first)


# Answers from elsewhere


@pytest.fixture
def exported(tiny, tmp_path):
    file = tmp_path / "answers.parquet"
    fill(tiny(), objects={}, console=None, export=file)
    return file


def answered(tiny, file, teacher=None, **changes):
    """The recipe with a table of answers for its teacher."""
    described = json.loads(tiny(**changes).model_dump_json())
    return build_recipe(Source("test", {**described, "teacher": {"name": str(file), **(teacher or {})}}))


def test_a_table_of_answers_teaches_as_the_teacher_would(tiny, run, exported):
    wanted = run(tiny(), "asked")
    found = run(answered(tiny, exported), "recorded")
    assert same(students(wanted.folder), students(found.folder))
    teacher = found.results["models"]["teacher"]
    assert teacher["parameters"] is None
    table = pyarrow.parquet.read_table(exported)
    labels = load_source(tiny().data).train.labels[np.array(table["id"])]
    right = np.array(table["logits"].to_pylist()).argmax(1) == labels
    assert teacher["metrics"]["accuracy"]["last"] == pytest.approx(right.mean())
    assert any("labelled training images, for it has none to test images" in note for note in found.results["notes"])
    assert str(found)


def test_probabilities_in_any_order_are_as_good(tiny, run, exported, tmp_path):
    table = pyarrow.parquet.read_table(exported)
    order = np.random.default_rng(0).permutation(len(table))
    logits = torch.tensor(table["logits"].to_pylist())[order]
    file = tmp_path / "probabilities.parquet"
    ids = np.array(table["id"])[order]
    pyarrow.parquet.write_table(pyarrow.table({"id": ids, "probabilities": logits.softmax(1).tolist()}), file)
    one, other = (students(run(answered(tiny, path), path.stem).folder) for path in (exported, file))
    assert not same(one, other)
    assert all(torch.allclose(one[0][key], other[0][key], atol=1e-3) for key in one[0])


def test_random_views_have_to_be_agreed_to_and_the_table_says_so(tiny, run, exported):
    shown = {"augment": {"crop": 1}}
    with pytest.raises(UserError, match=r"random views of them: .* teacher.approximate=true"):
        run(answered(tiny, exported, data=shown), "refused")
    result = run(answered(tiny, exported, data=shown, teacher={"approximate": True}), "agreed")
    assert any("students see random views of the images" in note for note in result.results["notes"])
    with pytest.raises(UserError, match="nobody recorded an answer to mixed images"):
        run(answered(tiny, exported, data={"augment": {"mixup": 1.0}}, teacher={"approximate": True}), "mixed")


def rows(file, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


EVERY = list(range(1200))
GOOD = [[0.0] * 10] * 1200


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": EVERY[600:], "logits": GOOD[600:]}, r"has no answer to \d+ of 100 training images, such as id \d"),
        ({"id": EVERY, "logits": [[0.0] * 9] * 1200}, "row 0 has 9 logits, the data has 10 classes"),
        ({"id": EVERY, "logits": [*GOOD[:-1], [0.0] * 9 + [float("nan")]]}, "row 1199 has a logit that is not finite"),
        ({"id": [*EVERY[:-1], 7], "logits": GOOD}, "answers id 7 more than once"),
        ({"id": [*EVERY[:-1], 1200], "logits": GOOD}, "id 1200 is no training image: they go from 0 to 1,199"),
        ({"id": [*EVERY[:-1], None], "logits": GOOD}, "row 1199 has no id"),
        ({"id": [f"{n}" for n in EVERY], "logits": GOOD}, "its column id is no whole number"),
        ({"id": EVERY, "probabilities": GOOD}, "row 0 has probabilities that are none, or do not sum to 1"),
        ({"id": EVERY, "logits": [*GOOD[:-1], None]}, "row 1199 has 0 logits"),
        ({"id": EVERY, "logits": ["a"] * 1200}, "its column logits is no list of numbers but string"),
        ({"id": EVERY, "scores": GOOD}, r"has no column logits or probabilities \(it has id, scores\)"),
        ({"number": EVERY, "logits": GOOD}, r"has no column id or path \(it has number, logits\)"),
        ({"path": [f"{n}.png" for n in EVERY], "logits": GOOD}, "the data set has no files: give the column id"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_refused_in_one_line(tiny, run, tmp_path, columns, said):
    file = rows(tmp_path / "wrong.parquet", **columns)
    with pytest.raises(UserError, match=said) as refusal:
        run(answered(tiny, file), "run")
    assert str(file) in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_what_is_no_table_is_refused(tiny, run, tmp_path):
    file = tmp_path / "wrong.parquet"
    file.write_text("id,logits")
    with pytest.raises(UserError, match="cannot be read as a parquet file"):
        run(answered(tiny, file), "run")


def test_without_pyarrow_it_says_what_to_install(tiny, run, exported, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install 'understudy\[hub\]'"):
        run(answered(tiny, exported), "run")


def test_the_answers_to_files_go_by_their_paths(tmp_path):
    from PIL import Image

    for split, count in (("train", 12), ("val", 4)):
        for number in range(2):
            place = tmp_path / "photos" / split / f"class{number}"
            place.mkdir(parents=True)
            for image in range(count):
                pixels = np.random.default_rng(image).integers(0, 100, (8, 8, 3)) + 100 * number
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{image}.png")
    described = {
        "name": "files",
        "data": {"name": "folder", "path": str(tmp_path / "photos"), "size": 8, "validation": "none"},
        "teacher": {"name": "mlp", "hidden": [8]},
        "student": {"name": "mlp", "hidden": [4]},
        "method": "kd",
        "train": {"epochs": 1, "batch_size": 8},
        "seeds": 1,
    }
    file = tmp_path / "answers.parquet"
    # Random crops are drawn while files are read: the table is of the images' middles.
    understudy.cache(described, export=file, quiet=True)
    table = pyarrow.parquet.read_table(file)
    assert sorted(table["path"].to_pylist())[0] == "train/class0/0.png"
    recipe = build_recipe(Source("test", {**described, "teacher": {"name": str(file), "approximate": True}}))
    result = engine.start(recipe, out=None, objects={}, console=None)
    assert result.results["models"]["teacher"]["metrics"]["accuracy"]["last"] is not None
    shorter = table.slice(1)
    pyarrow.parquet.write_table(shorter, file)
    missing = table["path"][0].as_py()
    with pytest.raises(UserError, match=f"has no answer to 1 of 24 training images, such as '{missing}'"):
        engine.start(recipe, out=None, objects={}, console=None)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"method": "at"}, "'at' compares features, "),
        ({"method": "bss"}, "'bss' runs the teacher itself"),
        ({"teacher": {"weights": "x.pt"}}, "says nothing to a table of answers"),
        ({"teacher": {"train": {"epochs": 3}}}, "says nothing to a table of answers"),
        ({"student": {"init": "teacher"}}, "there are no tensors to start from"),
        ({"teacher": {"copies": 2}}, "it can only be the one teacher"),
        ({"teacher": {"name": "gone.parquet"}}, "there is no file 'gone.parquet'"),
    ],
)
def test_what_needs_a_network_is_refused(small_recipe, exported, overrides, said):
    data = {"name": "digits", "train": 100, "validation": 30}
    plain = {**small_recipe, "data": data, "teacher": {"name": str(exported)}}
    for key, value in overrides.items():
        plain[key] = {**plain[key], **value} if isinstance(value, dict) else value
    with pytest.raises(UserError, match=said):
        engine.start(build_recipe(Source("test", plain)), out=None, objects={}, console=None)


def test_every_method_that_compares_logits_takes_a_table(tiny, run, exported):
    methods = ["kd", "logits", "dkd", "dist", "nkd", "wsld", "ttm", "hard"]
    results = run(answered(tiny, exported, method=methods), "run").results
    assert len(results["models"]) == 2 + len(methods)


@pytest.mark.parametrize("in_memory", [True, False])
def test_only_images_in_memory_are_looked_at_once(in_memory, small_recipe, tmp_path):
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8)
    pair = images, torch.arange(60) % 3
    given = pair if in_memory else [(image, int(label)) for image, label in zip(*pair, strict=True)]
    described = {**small_recipe, "data": {"name": "python:data", "validation": 10, "mean": [0.5], "std": [0.25]}}
    task = Classify(build_recipe(Source("test", described)), {"data": given}, torch.device("cpu"))
    teacher = task.as_teacher(task.build("teacher", 0))
    remember(task, teacher, tmp_path)
    assert teacher.cache.fixed is in_memory
