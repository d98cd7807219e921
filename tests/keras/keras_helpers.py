"""Small models and data for the tests of the Keras front; Keras is imported when one is asked for."""

import numpy as np


def dense(width, classes=3, *, softmax=False, name=None):
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, activation="relu", name="hidden"),
            layers.Dense(classes, activation="softmax" if softmax else None, name="head"),
        ],
        name=name,
    )


def convolutional(widths, classes=3, *, dropout=False):
    import keras
    from keras import layers

    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(widths[0], 3, padding="same", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(widths[1], 3, strides=2, padding="same", name="second")(x)
    x = layers.Flatten(name="flatten")(x)
    if dropout:
        x = layers.Dropout(0.5, name="drop")(x)
    return keras.Model(inputs, layers.Dense(classes, name="head")(x))


def vectors(samples=48, classes=3):
    random = np.random.default_rng(0)
    return random.normal(size=(samples, 6)).astype("float32"), random.integers(0, classes, samples).astype("int32")


def images(samples=32, classes=3):
    random = np.random.default_rng(0)
    return random.normal(size=(samples, 8, 8, 1)).astype("float32"), random.integers(0, classes, samples).astype(
        "int32"
    )


def softmax(z):
    z = z - z.max(-1, keepdims=True)
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True)


def same_weights(before, model):
    return all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
