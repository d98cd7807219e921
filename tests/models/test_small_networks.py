"""mlp, cnn and the network of Keras' distillation example."""

import numpy as np
import pytest
import torch
from torch import nn

from understudy.models.cnn import cnn, strided_cnn
from understudy.models.mlp import mlp

MNIST = (1, 28, 28)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_mlp_of_the_first_articles():
    model = mlp(classes=10, shape=MNIST, hidden=(1200, 1200))
    assert count(model) == 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10
    assert [name for name, _ in model.named_children()] == ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"]
    assert model(torch.rand(2, *MNIST)).shape == (2, 10)


def test_an_mlp_without_hidden_layers_is_linear():
    assert count(mlp(classes=3, shape=(2, 4, 5), hidden=())) == 40 * 3 + 3


def test_dropout_is_there_only_when_asked_for():
    for dropout, layers in ((0.0, 0), (0.3, 2)):
        model = mlp(classes=10, shape=MNIST, hidden=(8, 8), dropout=dropout)
        found = [layer for layer in model if isinstance(layer, nn.Dropout)]
        assert len(found) == layers
        assert all(layer.p == dropout for layer in found)
    assert "dropout" in dict(cnn(classes=10, shape=MNIST, dropout=0.2).named_children())


def test_the_cnn_halves_the_resolution_between_stages():
    model = cnn(classes=7, shape=(3, 32, 32), widths=(8, 16, 24), depth=1)
    assert count(model) == 9 * (3 * 8 + 8 * 16 + 16 * 24) + 2 * (8 + 16 + 24) + 24 * 7 + 7
    images = torch.rand(2, 3, 32, 32)
    assert model[:3](images).shape == (2, 24, 8, 8)
    assert model(images).shape == (2, 7)


@pytest.mark.parametrize("widths", [(256, 512), (16, 32)])
def test_strided_cnn_has_the_size_of_keras_example(widths: tuple[int, int]):
    first, second = widths
    model = strided_cnn(classes=10, shape=MNIST, widths=widths)
    assert count(model) == 9 * first + first + 9 * first * second + second + 49 * second * 10 + 10
    if widths == (256, 512):
        assert count(model) == 3 * 3 * 1 * 256 + 256 + 3 * 3 * 256 * 512 + 512 + 25088 * 10 + 10


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Before and after, as TensorFlow documents "same" padding."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def convolve(images: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3x3 convolution of stride 2 with "same" padding, window by window."""
    images = np.pad(images, ((0, 0), (0, 0), *(same_padding(size, 3, 2) for size in images.shape[2:])))
    height, width = (images.shape[2] - 3) // 2 + 1, (images.shape[3] - 3) // 2 + 1
    out = np.empty((len(images), len(weight), height, width))
    for row in range(height):
        for column in range(width):
            window = images[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            out[:, :, row, column] = np.einsum("nchw,ochw->no", window, weight) + bias
    return out


def pool(images: np.ndarray) -> np.ndarray:
    """2x2 maximum of stride 1 with "same" padding, the padding never the maximum."""
    padding = [same_padding(size, 2, 1) for size in images.shape[2:]]
    images = np.pad(images, ((0, 0), (0, 0), *padding), constant_values=-np.inf)
    corners = [images[:, :, top : top - 1 or None, left : left - 1 or None] for top in (0, 1) for left in (0, 1)]
    return np.max(corners, axis=0)


@pytest.mark.parametrize("size", [(28, 28), (27, 29), (13, 12)])
def test_strided_cnn_pads_as_keras_does(size: tuple[int, int]):
    model = strided_cnn(classes=10, shape=(1, *size), widths=(4, 6)).double().eval()
    nn.init.normal_(model.get_submodule("conv1").bias)  # pyright: ignore[reportArgumentType]
    images = torch.randn(3, 1, *size, dtype=torch.float64)
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    hidden = convolve(images.numpy(), weights["conv1.weight"], weights["conv1.bias"])
    hidden = pool(np.where(hidden > 0, hidden, 0.2 * hidden))
    hidden = convolve(hidden, weights["conv2.weight"], weights["conv2.bias"])
    wanted = hidden.reshape(3, -1) @ weights["head.weight"].T + weights["head.bias"]
    np.testing.assert_allclose(model(images).detach().numpy(), wanted, atol=1e-12)


def test_strided_cnn_starts_as_keras_starts():
    model = strided_cnn(classes=10, shape=MNIST)
    head, conv = model.get_submodule("head"), model.get_submodule("conv2")
    assert isinstance(head, nn.Linear)
    assert isinstance(conv, nn.Conv2d)
    for layer, fan in ((head, 25088 + 10), (conv, 9 * (256 + 512))):
        limit = (6 / fan) ** 0.5
        assert layer.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
        assert layer.weight.std().item() == pytest.approx(limit / 3**0.5, rel=1e-2)
        assert (layer.bias == 0).all()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalOperand]
