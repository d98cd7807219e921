"""The Distiller: what Keras promises of a model, and what distillation asks of it."""

import zipfile

import numpy as np
import pytest

pytest.importorskip("keras")
import keras
from keras import layers
from keras_helpers import convolutional, dense, images, same_weights, softmax, vectors

from understudy.errors import UserError
from understudy.keras import Distiller, Objective, Schedule, Teacher
from understudy.keras import losses as keras_losses

LABELS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def kd(**options):
    return [Objective(keras_losses.CrossEntropy(), 0.1), Objective(keras_losses.KD(**options), 0.9)]


def compiled(distiller, **settings):
    distiller.compile(keras.optimizers.SGD(0.1), **settings)
    return distiller


def test_fit_trains_the_student_and_leaves_the_teacher_bit_for_bit():
    x, y = images()
    student, teacher = convolutional((2, 3)), convolutional((4, 6))
    before, start = [w.copy() for w in teacher.get_weights()], [w.copy() for w in student.get_weights()]
    distiller = compiled(Distiller(student=student, teacher=teacher, objectives="kd+at+fitnet"), metrics=["accuracy"])
    history = distiller.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y), verbose=0).history
    assert same_weights(before, teacher)
    assert not same_weights(start, student)
    assert {"loss", "accuracy", "labels", "kd", "at", "fitnet", "val_loss", "val_kd"} <= history.keys()


def test_the_student_runs_once_a_step_whatever_is_tapped():
    x, y = images(32)
    calls = []

    @keras.saving.register_keras_serializable("tests")
    class Counting(layers.Layer):
        def call(self, inputs, training=None):
            if training:
                calls.append(1)
            return inputs

    inputs = keras.Input((8, 8, 1))
    features = Counting()(layers.Conv2D(3, 3, name="second")(inputs))
    student = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(features)))
    objectives = [
        *kd(),
        Objective(keras_losses.AT(), student_tap="second", teacher_tap="second"),
        Objective(keras_losses.SP(), student_tap="second", teacher_tap="first"),
    ]
    distiller = Distiller(student=student, teacher=convolutional((4, 6)), objectives=objectives)
    compiled(distiller, run_eagerly=True).fit(x, y, batch_size=8, verbose=0)
    assert len(calls) == 4


def test_the_loss_is_the_weighted_sum_of_its_objectives():
    x, y = vectors()
    student, teacher = dense(4), dense(16)
    z_s, z_t = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    hard = -np.log(softmax(z_s)[np.arange(48), y]).mean()
    p, q = softmax(z_t / 4), softmax(z_s / 4)
    soft = 16 * (p * np.log(p / q)).sum(-1).mean()
    distiller = compiled(Distiller(student=student, teacher=teacher, objectives=kd(temperature=4.0)))
    logs = distiller.evaluate(x, y, batch_size=48, verbose=0, return_dict=True)
    assert logs == pytest.approx({"loss": 0.1 * hard + 0.9 * soft, "crossentropy": hard, "kd": soft}, rel=1e-4)


def test_a_step_is_worth_what_it_is_on_the_torch_front():
    torch = pytest.importorskip("torch")
    import understudy as us

    def both(seed, width):
        ours = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(width, 3, activation="relu", name="body"),
                layers.GlobalAveragePooling2D(name="pooled"),
                layers.Dense(3, name="head"),
            ]
        )
        random = np.random.default_rng(seed)
        ours.set_weights([random.normal(size=weight.shape) for weight in ours.get_weights()])
        kernel, bias, matrix, offset = (torch.tensor(weight) for weight in ours.get_weights())
        theirs = torch.nn.Sequential(torch.nn.Conv2d(1, width, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                                     torch.nn.Flatten(), torch.nn.Linear(width, 3))  # fmt: skip
        state = {"0.weight": kernel.permute(3, 2, 0, 1), "0.bias": bias, "4.weight": matrix.T, "4.bias": offset}
        theirs.load_state_dict(state)
        return ours, theirs

    x, y = images()
    (student, torch_student), (teacher, torch_teacher) = both(1, 4), both(2, 6)
    weights = {"CrossEntropy": 0.1, "KD": 0.9, "DKD": 0.5, "AT": 1000.0, "SP": 300.0, "RKD": 1.0}
    taps = {"AT": ("body", "1"), "SP": ("body", "1"), "RKD": ("pooled", "3")}

    def objectives(front, side):
        places = {name: {"student_tap": both[side], "teacher_tap": both[side]} for name, both in taps.items()}
        return [
            front.Objective(getattr(front.losses, name)(), weight=weight, **places.get(name, {}))
            for name, weight in weights.items()
        ]

    inputs = torch.tensor(x.transpose(0, 3, 1, 2))
    reference = us.Distiller(
        student=torch_student, teacher=torch_teacher, objectives=objectives(us, 1), example=inputs[:2]
    )
    wanted = reference(inputs, torch.tensor(y).long()).total.item()
    distiller = compiled(Distiller(student=student, teacher=teacher, objectives=objectives(us.keras, 0)))
    assert distiller.evaluate(x, y, batch_size=32, verbose=0)[0] == pytest.approx(wanted, rel=1e-4)


def test_the_articles_call_shape_gives_the_articles_loss():
    x, y = vectors()
    student, teacher = dense(4), dense(16)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(
        optimizer=keras.optimizers.Adam(),
        metrics=[keras.metrics.SparseCategoricalAccuracy("acc")],
        student_loss_fn=LABELS,
        distillation_loss_fn=keras.losses.KLDivergence(),
        alpha=0.1,
        temperature=10,
    )
    z_s, z_t = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    hard = -np.log(softmax(z_s)[np.arange(48), y]).mean()
    p, q = softmax(z_t / 10), softmax(z_s / 10)
    soft = 100 * (p * np.log(p / q)).sum(-1).mean()
    logs = distiller.evaluate(x, y, batch_size=48, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(0.1 * hard + 0.9 * soft, rel=1e-3)
    before = [w.copy() for w in teacher.get_weights()]
    history = distiller.fit(x, y, epochs=3, verbose=0).history
    assert same_weights(before, teacher)
    assert {"acc", "student_loss", "distillation_loss"} <= history.keys()
    distiller.compile("adam", student_loss_fn=LABELS, distillation_loss_fn=keras.losses.KLDivergence(), alpha=0.5)
    distiller.fit(x, y, verbose=0)  # compiling again replaces both parts


def test_sample_weights_and_class_weights_are_honoured():
    x, y = vectors()
    distiller = compiled(Distiller(student=dense(4), teacher=dense(16), objectives=kd()))
    weight = np.where(y == 1, 0.0, 1.0).astype("float32")
    weighted = distiller.evaluate(x, y, sample_weight=weight, batch_size=48, verbose=0, return_dict=True)
    kept = distiller.evaluate(x[y != 1], y[y != 1], batch_size=48, verbose=0, return_dict=True)
    share = (y != 1).mean()
    assert weighted == pytest.approx({name: share * value for name, value in kept.items()}, rel=1e-4)
    start = [w.copy() for w in distiller.student.get_weights()]
    by_class = distiller.fit(x, y, class_weight={0: 1.0, 1: 0.0, 2: 1.0}, batch_size=48, verbose=0).history["loss"]
    distiller.student.set_weights(start)
    by_sample = distiller.fit(x, y, sample_weight=weight, batch_size=48, verbose=0).history["loss"]
    assert by_class == pytest.approx(by_sample, rel=1e-5)


def test_relations_between_samples_say_that_weights_do_not_apply():
    x, y = vectors()
    objective = Objective(keras_losses.RKD(), student_tap="hidden", teacher_tap="hidden")
    distiller = compiled(Distiller(student=dense(4), teacher=dense(16), objectives=[objective]), run_eagerly=True)
    with pytest.warns(UserWarning, match="'rkd' compares the samples of a batch with each other"):
        distiller.evaluate(x, y, sample_weight=np.ones(48, "float32"), verbose=0)


def test_masked_positions_do_not_count():
    def sequences(width):
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(9, width, mask_zero=True)(inputs)
        wide = keras.initializers.RandomNormal(stddev=30.0, seed=width)
        return keras.Model(inputs, layers.Dense(3, kernel_initializer=wide)(x))

    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]], "int32")
    student, teacher = sequences(4), sequences(8)
    distiller = compiled(Distiller(student=student, teacher=teacher, objectives=kd(reduction="mean")))
    logs = distiller.evaluate(tokens, np.zeros((2, 5), "int32"), verbose=0, return_dict=True)
    z_s, z_t = (softmax(model.predict(tokens, verbose=0) / t)[tokens > 0] for model, t in ((student, 1), (teacher, 4)))
    q = softmax(student.predict(tokens, verbose=0) / 4)[tokens > 0]
    assert logs["crossentropy"] == pytest.approx(-np.log(z_s[:, 0]).mean(), rel=1e-4)
    assert logs["kd"] == pytest.approx(16 * (z_t * np.log(z_t / q)).sum(-1).mean() / 3, rel=1e-3)


def test_the_student_saves_alone_and_knows_nothing_of_understudy(tmp_path):
    x, y = images()
    distiller = Distiller(student=convolutional((2, 3)), teacher=convolutional((4, 6)), objectives="kd+fitnet")
    compiled(distiller).fit(x, y, verbose=0)
    distiller.student.save(tmp_path / "student.keras")
    with zipfile.ZipFile(tmp_path / "student.keras") as archive:
        assert b"understudy" not in archive.read("config.json")
    again = keras.saving.load_model(tmp_path / "student.keras", compile=False)
    np.testing.assert_allclose(again.predict(x, verbose=0), distiller.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_the_whole_distiller_saves_and_goes_on(tmp_path):
    x, y = images()
    distiller = Distiller(student=convolutional((2, 3)), teacher=convolutional((4, 6)), objectives="kd+fitnet")
    compiled(distiller).fit(x, y, verbose=0)
    distiller.save(tmp_path / "whole.keras")
    again = keras.saving.load_model(tmp_path / "whole.keras")
    wanted = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert again.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(wanted, rel=1e-4)
    again.fit(x, y, verbose=0)


def test_callbacks_work(tmp_path):
    x, y = vectors()
    distiller = compiled(Distiller(student=dense(4), teacher=dense(16), objectives=kd()), metrics=["accuracy"])
    best = tmp_path / "best.weights.h5"
    watched = {"monitor": "val_kd", "mode": "min"}
    callbacks = [
        keras.callbacks.ModelCheckpoint(best, save_weights_only=True, **watched),
        keras.callbacks.EarlyStopping(patience=0, min_delta=1e9, restore_best_weights=True, **watched),
    ]
    history = distiller.fit(x, y, epochs=6, validation_split=0.25, verbose=0, callbacks=callbacks).history
    assert len(history["loss"]) == 2
    distiller.load_weights(best)


def test_a_weight_follows_its_schedule():
    x, y = vectors()
    objectives = [
        Objective(keras_losses.CrossEntropy(), 1.0),
        Objective(keras_losses.KD(), Schedule.ramp(0.0, 1.0, 2)),
    ]
    distiller = Distiller(student=dense(4), teacher=dense(16), objectives=objectives)
    distiller.compile(keras.optimizers.SGD(0.0))
    logs = distiller.fit(x, y, epochs=4, batch_size=48, verbose=0).history
    shares = (np.array(logs["loss"]) - logs["crossentropy"]) / logs["kd"]
    assert shares == pytest.approx([0, 0.5, 1, 1], abs=1e-4)


def test_a_final_softmax_of_the_teacher_is_noticed():
    x, y = vectors()
    student, plain, soft = dense(4), dense(16), dense(16, softmax=True)
    soft.set_weights(plain.get_weights())
    values = [
        compiled(Distiller(student=student, teacher=teacher, objectives=kd())).evaluate(
            x, y, verbose=0, return_dict=True
        )
        for teacher in (plain, soft)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-4)


def test_a_teacher_has_its_own_preprocessing_and_input_size():
    x, y = images()
    teacher = convolutional((4, 6))
    big = keras.Sequential(
        [keras.Input((16, 16, 3)), layers.Conv2D(3, 5, strides=4), layers.Flatten(), layers.Dense(3)]
    )
    preprocess = lambda inputs: keras.ops.repeat(2 * inputs, 3, axis=-1)  # noqa: E731
    distiller = Distiller(student=convolutional((2, 3)), teacher=big, objectives=kd(), preprocess=preprocess)
    compiled(distiller).fit(x, y, verbose=0)
    answer, _ = distiller.asked(keras.ops.convert_to_tensor(x))
    resized = keras.ops.image.resize(preprocess(x), (16, 16), antialias=True)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(answer),
        big.predict(keras.ops.convert_to_numpy(resized), verbose=0),
        rtol=1e-4,
        atol=1e-5,
    )
    doubled, _ = Teacher(teacher, preprocess=lambda inputs: 2 * inputs)(keras.ops.convert_to_tensor(x))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(doubled), teacher.predict(2 * x, verbose=0), rtol=1e-4, atol=1e-5
    )


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, width=3, **settings):
        super().__init__(**settings)
        self.body = layers.Conv2D(width, 3, strides=2, padding="same", name="body")
        self.head = layers.Dense(3, name="head")

    def call(self, inputs):
        return self.head(keras.ops.mean(keras.ops.relu(self.body(inputs)), axis=(1, 2)))


def test_subclassed_and_nested_models_are_tapped():
    x, y = images()
    backbone = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(5, 3, strides=2, name="deep")], name="backbone")
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(backbone(inputs))))
    student = Subclassed()
    objective = Objective(keras_losses.AT(), 10.0, student_tap="body", teacher_tap="backbone/deep")
    distiller = Distiller(student=student, teacher=nested, objectives=[*kd(), objective], example=x[:2])
    maps = [backbone.predict(x, verbose=0), keras.ops.convert_to_numpy(student.body(x))]
    wanted = float(keras_losses.AT()(maps[1], maps[0]))
    logs = compiled(distiller).evaluate(x, y, batch_size=32, verbose=0, return_dict=True)
    assert logs["at"] == pytest.approx(wanted, rel=1e-3)
    distiller.fit(x, y, verbose=0)
    assert "call" not in vars(student.body)


def test_adapters_bring_widths_and_sizes_together():
    x, y = images()
    objective = Objective(keras_losses.CWD(), student_tap="second", teacher_tap="relu")
    distiller = Distiller(student=convolutional((2, 3)), teacher=convolutional((4, 6)), objectives=[*kd(), objective])
    (adapter,) = objective.adapters
    assert tuple(adapter(keras.ops.ones((2, 4, 4, 3))).shape) == (2, 8, 8, 4)
    before = keras.ops.convert_to_numpy(adapter.project.kernel).copy()
    compiled(distiller).fit(x, y, verbose=0)
    assert not np.array_equal(before, keras.ops.convert_to_numpy(adapter.project.kernel))


def test_mixed_precision_keeps_losses_in_float32():
    x, y = images()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        student, teacher = convolutional((2, 3)), convolutional((4, 6))
    finally:
        keras.config.set_dtype_policy("float32")
    history = (
        compiled(Distiller(student=student, teacher=teacher, objectives="kd+fitnet+sp")).fit(x, y, verbose=0).history
    )
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.parametrize("kind", ["pydataset", "loader", "tf"])
def test_data_may_be_any_that_keras_takes(kind):
    x, y = vectors()
    if kind == "tf":
        data = pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices((x, y)).batch(16)
    elif kind == "loader":
        torch = pytest.importorskip("torch")
        data = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y)), batch_size=16
        )
    else:

        class Three(keras.utils.PyDataset):
            def __len__(self):
                return 3

            def __getitem__(self, index):
                return x[16 * index : 16 * index + 16], y[16 * index : 16 * index + 16]

        data = Three()
    distiller = compiled(Distiller(student=dense(4), teacher=dense(16), objectives=kd()))
    assert np.isfinite(distiller.fit(data, verbose=0).history["loss"]).all()


def test_labels_are_not_needed_where_no_loss_asks_for_them():
    x, _ = vectors()
    distiller = Distiller(student=dense(4), teacher=dense(16), objectives=[Objective(keras_losses.KD())])
    assert "kd" in compiled(distiller).fit(x, verbose=0).history


def test_wrong_input_is_one_clear_message():
    x, _ = vectors()
    with pytest.raises(UserError, match=r"the teacher gives \(4,\), the student \(3,\) .* same classes"):
        Distiller(student=dense(4), teacher=dense(16, classes=4), objectives=kd())
    objective = Objective(keras_losses.SP(), student_tap="hiden", teacher_tap="hidden")
    with pytest.raises(UserError, match=r"no layer 'hiden' in the model 'small', did you mean 'hidden'\?"):
        Distiller(student=dense(4, name="small"), teacher=dense(16), objectives=[objective])
    distiller = Distiller(student=dense(4), teacher=dense(16), objectives=[Objective(keras_losses.DKD())])
    compiled(distiller)
    with pytest.raises(UserError, match=r"the loss 'dkd' needs labels: give y to fit"):
        distiller.fit(x, verbose=0)
    with pytest.raises(UserError, match=r"'subclassed.*' has no input shape yet: give example="):
        Distiller(student=Subclassed(), teacher=dense(16), objectives=kd())
    with pytest.raises(UserError, match=r"returns probabilities: take the softmax out"):
        Distiller(student=dense(4, softmax=True), teacher=dense(16), objectives=kd())
    with pytest.raises(UserError, match=r"the teacher is a str: give a keras\.Model"):
        Distiller(student=dense(4), teacher="dense", objectives=kd())
    with pytest.raises(UserError, match=r"'kd' compares with a teacher: give one"):
        Distiller(student=dense(4), objectives=kd())
    with pytest.raises(UserError, match=r"cannot take inputs of shape \(4, 6\): give preprocess="):
        Distiller(student=dense(4), teacher=convolutional((2, 3)), objectives=kd())


def test_wrong_compile_is_one_clear_message():
    plain = Distiller(student=dense(4), teacher=dense(16))
    with pytest.raises(UserError, match=r"gives logits: compile loss=keras.losses.Sparse.*from_logits=True"):
        plain.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(UserError, match=r"distillation_loss_fn is missing"):
        plain.compile("sgd", student_loss_fn=LABELS)
    with pytest.raises(UserError, match=r"nothing to train on"):
        plain.compile("sgd")
    given = Distiller(student=dense(4), teacher=dense(16), objectives=kd())
    with pytest.raises(UserError, match=r"exclude each other"):
        given.compile("sgd", student_loss_fn=LABELS, distillation_loss_fn=keras.losses.KLDivergence())
