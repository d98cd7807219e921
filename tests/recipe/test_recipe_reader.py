"""What a recipe may say, how it may be changed, and what is said about a wrong one."""

import pytest

from understudy.errors import UserError
from understudy.recipe.reader import build_recipe, parse, read_recipe, shipped
from understudy.recipe.schema import WeightSchedule
from understudy.train.folder import resolved


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_reads_and_reads_back_equal(name):
    recipe = read_recipe(name, files=False)
    assert recipe.name == name
    assert recipe.about
    assert build_recipe(parse(resolved(recipe).encode(), "resolved"), files=False) == recipe


def test_a_recipe_with_everything_in_it_reads_back_equal(read, text):
    recipe = read(
        text,
        "method=[kd:seed-000, {name: both, loss: kd+logits}, "
        "{name: ramp, loss: kd, weight: {start: 0, end: 1, epochs: 5}, labels: [1, 0.5]}]",
        "grid={temperature: [2, 4.5]}",
        "control=[train, label_smoothing]",
        "data={name: digits, without: [3, '4'], validation: 0.2, mean: [0.5], std: [0.2]}",
        "teacher.train={epochs: 2, betas: [0.8, 0.99]}",
        "train.read_at=[1, 3]",
    )
    assert build_recipe(parse(resolved(recipe).encode(), "resolved")) == recipe
    assert isinstance(recipe.method[2].objectives[0].weight, WeightSchedule)


# Short forms


def test_a_word_is_a_method_with_its_papers_weights(read, text):
    (method,) = read(text).method
    assert (method.name, method.labels) == ("kd", 0.1)
    assert method.objectives[0].weight == 0.9
    assert method.objectives[0].options == {"temperature": 4.0}


def test_a_preset_stands_behind_a_colon(read, text):
    (method,) = read(text, "method=kd:seed-001").method
    assert (method.name, method.labels) == ("kd-seed-001", 0.3)
    assert method.objectives[0].options == {"temperature": 10.0}


def test_losses_are_added_by_a_plus(read, text):
    (method,) = read(text, "method=kd + logits").method
    assert method.name == "kd+logits"
    assert [objective.loss for objective in method.objectives] == ["kd", "logits"]


def test_a_mapping_sets_options_of_the_one_loss_it_names(read, text):
    (method,) = read(text, "method={name: kd, temperature: 7, labels: 0.2, weight: 0.8, label_smoothing: 0.1}").method
    assert (method.labels, method.label_smoothing) == (0.2, 0.1)
    assert method.objectives[0].weight == 0.8
    assert method.objectives[0].options == {"temperature": 7}


def test_a_mapping_with_a_loss_may_have_a_name_of_its_own(read, text):
    (method,) = read(text, "method={name: warm, loss: kd:seed-000, temperature: 3}").method
    assert method.name == "warm"
    assert method.objectives[0].options == {"temperature": 3, "t_squared": False}


def test_objectives_may_be_written_out(read, text):
    written = "method={name: mine, labels: 1, objectives: [{loss: kd, weight: 2}, {loss: logits, student: fc1}]}"
    (method,) = read(text, written).method
    assert [objective.weight for objective in method.objectives] == [2, 1]
    assert method.objectives[1].student == "fc1"


def test_a_word_is_a_name_in_data_and_models(read, text):
    recipe = read(text, "student=cifar/resnet8", "data=digits")
    assert recipe.student.name == "cifar/resnet8"
    assert recipe.data.name == "digits"


# Overrides


def test_overrides_set_values_as_yaml_reads_them(read, text):
    recipe = read(text, "train.lr=3e-4", "seeds=5", "data.labels=100", "train.schedule=cosine")
    assert (recipe.train.lr, recipe.seeds, recipe.data.labels) == (3e-4, 5, 100)


def test_an_override_below_a_word_keeps_the_word_as_name(read, text):
    recipe = read(text, "data.validation=none", "method.temperature=2")
    assert (recipe.data.name, recipe.data.validation) == ("digits", "none")
    assert recipe.method[0].objectives[0].options["temperature"] == 2


def test_an_override_may_open_a_section_that_was_not_there(read, text):
    assert read(text, "data.augment.crop=2").data.augment.crop == 2
    recipe = read(text, "teacher.train.epochs=7")
    assert recipe.train_of(recipe.teacher).epochs == 7


def test_the_last_override_wins(read, text):
    assert read(text, "seeds=5", "seeds=2").seeds == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr", "'train.lr': an override has the form key=value, such as train.lr=3e-4"),
        ("=3", "'=3': an override has the form key=value, such as train.lr=3e-4"),
        ("train.lr=[", "'train.lr=[': '[' is not a value: put it in quotes if it is text"),
        ("seeds.first=3", "'seeds.first=3': 'seeds' has no keys of its own to set"),
        ("train.lr=fast", "'train.lr=fast': train.lr: should be a number, not 'fast'"),
        ("train.epochz=3", "'train.epochz=3': train.epochz: unknown key, did you mean 'epochs'?"),
        ("student.hiden=[3]", "'student.hiden=[3]': student.hiden: unknown key, did you mean 'hidden'?"),
        ("method.temprature=3", "'method.temprature=3': method.temprature: unknown key, did you mean 'temperature'?"),
    ],
)
def test_a_wrong_override_is_quoted(read, text, override, message):
    with pytest.raises(UserError) as caught:
        read(text if "seeds" not in override else text + "seeds: 3\n", override)
    assert str(caught.value) == message


# Messages


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train:", "trian:", "r.yaml:10: trian: unknown key, did you mean 'train'?"),
        ("  epochs: 3", "  epoch: 3", "r.yaml:11: train.epoch: unknown key, did you mean 'epochs'?"),
        ("  epochs: 3", "  epochs: many", "r.yaml:11: train.epochs: should be a whole number, not 'many'"),
        ("  epochs: 3", "  epochs: true", "r.yaml:11: train.epochs: should be a whole number, not true"),
        ("  epochs: 3", "  epochs: 0", "r.yaml:11: train.epochs: should be greater than or equal to 1, not 0"),
        ("  epochs: 3", "  epochs: 3\n  read_at: [2, 4]", "r.yaml:12: train.read_at: 4 lies after the last epoch (3)"),
        ("  lr: 1e-2", "  lr: true", "r.yaml:12: train.lr: should be a number, not true"),
        ("  lr: 1e-2", "  lr: .nan", "r.yaml:12: train.lr: should be a finite number, not nan"),
        ("  lr: 1e-2", "  optimizer: sdg", "r.yaml:12: train.optimizer: should be 'sgd', 'adam' or 'adamw', not 'sdg'"),
        ("  hidden: [8]", "  hidden: 8", "r.yaml:8: student.hidden: should be a list, not 8"),
        ("  hidden: [8]", "  hidden: [8, true]", "r.yaml:8: student.hidden: should be a whole number, not [8, True]"),
        ("  hidden: [8]", "  hidden: ['8']", "r.yaml:8: student.hidden: should be a whole number, not ['8']"),
        ("  hidden: [8]", "", "r.yaml:6: student.hidden: is missing"),
        ("  widths: [8, 16]", "  widhts: [8]", "r.yaml:5: teacher.widhts: unknown key, did you mean 'widths' or"),
        ("name: cnn", "name: cnnn", "r.yaml:4: teacher.name: unknown model 'cnnn', did you mean 'cnn'"),
        ("data: digits", "data: digit", "r.yaml:2: data.name: unknown data set 'digit', did you mean 'digits'?"),
        ("method: kd", "method: kdd", "r.yaml:9: method: unknown method 'kdd', did you mean 'kd'"),
        ("method: kd", "method: kd:seed-01", "r.yaml:9: method: 'kd' has no preset 'seed-01', did you mean"),
        ("method: kd", "method: [kd, kd]", "r.yaml:9: method: two are called 'kd', give them different names"),
        ("method: kd", "method: 3", "r.yaml:9: method: should be a name or a mapping, not 3"),
        ("data: digits", "data: [digits]", "r.yaml:2: data: should be a name or a mapping, not ['digits']"),
        (
            "data: digits",
            "data: {name: digits, augment: yes}",
            "r.yaml:2: data.augment: should be a mapping, not 'yes'",
        ),
        (
            "method: kd",
            "method: {name: kd, weight: much}",
            "r.yaml:9: method.weight: should be a number or a mapping or a",
        ),
        ("method: kd", "method: []", "r.yaml:9: method: is empty, name at least one, such as 'kd'"),
        ("method: kd", "method: {name: kd, weight: [ ]}", "r.yaml:9: method.weight: "),
        (
            "method: kd",
            "method: {name: kd, labels: 0, weight: 0}",
            "r.yaml:9: method.labels: 'kd' has nothing to learn from",
        ),
        ("method: kd", "method: {name: ../kd, loss: kd}", "r.yaml:9: method.name: should be letters, digits"),
        ("method: kd", "method: {name: alone, loss: kd}", "r.yaml:9: method: 'alone' is what a control is called"),
        (
            "method: kd",
            "method:\n  - kd\n  - name: b\n    loss: kd\n    weight: {start: 0, end: 1}",
            "r.yaml:13: method.1.weight.epochs: is missing",
        ),
        ("name: small", "name: ../small", "r.yaml:1: name: should be letters, digits"),
        ("name: small\n", "", "r.yaml:1: name: is missing"),
        ("method: kd", "grid: {temp: [1]}\nmethod: kd", "r.yaml:9: grid.temp: no loss of these methods (kd) has such"),
        ("method: kd", "grid: {temperature: []}\nmethod: kd", "r.yaml:9: grid.temperature: is empty"),
        (
            "method: kd",
            "grid: {temperature: [a]}\nmethod: kd",
            "r.yaml:9: grid.temperature: should be a number, not 'a'",
        ),
        ("method: kd", "grid: {temperature: [2, 2]}\nmethod: kd", "r.yaml:9: grid.temperature: names a value twice"),
        ("method: kd", "control: runs/none\nmethod: kd", "r.yaml:9: control: 'runs/none' is neither train, none"),
        (
            "  lr: 1e-2",
            "  milestones: [1]",
            "r.yaml:12: train.milestones: belong to schedule 'step', not to 'constant'",
        ),
        ("  lr: 1e-2", "  schedule: step", "r.yaml:12: train.schedule: 'step' needs milestones"),
        (
            "data: digits",
            "data: {name: digits, train: alll}",
            "r.yaml:2: data.train: should be a whole number or 'all', not",
        ),
        (
            "data: digits",
            "data: {name: digits, mean: [0]}",
            "r.yaml:2: data.std: is missing: mean and std come together",
        ),
        ("data: digits", "data: {name: digits, validation: 1.5}", "r.yaml:2: data.validation: is a share below 1 or"),
        ("data: digits", "data: {name: folder, path: gone, size: 8}", "r.yaml:2: data.path: there is no folder 'gone'"),
        (
            "data: digits",
            "data: {name: csv, path: gone.csv, size: 8}",
            "r.yaml:2: data.path: there is no file 'gone.csv'",
        ),
        ("  hidden: [8]", "  hidden: [8]\n  weights: no.pth", "r.yaml:9: student.weights: there is no file 'no.pth'"),
        ("  hidden: [8]", "  hidden: [8]\n  dropout: .inf", "r.yaml:9: student.dropout: should be a finite number"),
        (
            "  widths: [8, 16]",
            "  widths: [8, 16]\n  train: {epoch: 3}",
            "r.yaml:6: teacher.train.epoch: unknown key, did you mean 'epochs'?",
        ),
        (
            "  widths: [8, 16]",
            "  widths: [8, 16]\n  train: {epochs: 2, warmup_epochs: 2}",
            "r.yaml:6: teacher.train.warmup_epochs: must be below epochs (2), not 2",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_key(read, text, old, new, message):
    assert text.count(old) >= 1
    with pytest.raises(UserError) as caught:
        read(text.replace(old, new, 1))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_long_value_is_quoted_short(read, text):
    with pytest.raises(UserError) as caught:
        read(text, f"train.lr={'x' * 5000}")
    assert "x" * 61 not in str(caught.value).split(": ", 2)[2]


def test_a_grid_key_needs_only_one_method_that_has_it(read, text):
    recipe = read(text, "method=[kd, logits]", "grid={temperature: [2, 4]}")
    from understudy.tasks.classify.variants import distilled_arms

    arms = distilled_arms(recipe)
    assert list(arms) == ["student_kd-temperature-2", "student_kd-temperature-4", "student_logits"]
    assert arms["student_kd-temperature-4"].method.objectives[0].options["temperature"] == 4
    assert "temperature" not in arms["student_logits"].method.objectives[0].options


def test_a_mapping_given_in_python_may_hold_tuples(small_recipe):
    from understudy.recipe.reader import Source

    recipe = build_recipe(Source("arguments", {**small_recipe, "method": ("kd", "logits")}))
    assert [method.name for method in recipe.method] == ["kd", "logits"]
