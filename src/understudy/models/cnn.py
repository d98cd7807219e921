"""Small convolutional networks for small images."""

from collections import OrderedDict

from torch import nn


def cnn(
    *,
    classes: int,
    shape: tuple[int, int, int],
    widths: tuple[int, ...] = (32, 64),
    depth: int = 2,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build stages of 3x3 convolutions with BatchNorm and ReLU, halving the resolution between stages.

    Args:
        classes: number of logits.
        shape: (C, H, W) of one image.
        widths: channels of each stage.
        depth: convolutions in each stage.
        dropout: probability of dropping a value of the pooled embedding; at 0 there is no dropout layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = shape[0]
    for index, width in enumerate(widths, start=1):
        stage: list[nn.Module] = [nn.MaxPool2d(2)] if index > 1 else []
        for _ in range(depth):
            stage += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers[f"stage{index}"] = nn.Sequential(*stage)
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["head"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def strided_cnn(*, classes: int, shape: tuple[int, int, int], widths: tuple[int, ...] = (256, 512)) -> nn.Sequential:
    """Build the network of Keras' distillation example: strided convolutions, one overlapping pool, one linear layer.

    Reference: Borup, "Knowledge Distillation", Keras code examples, 2020
    (https://keras.io/examples/vision/knowledge_distillation). Padding is that of Keras' "same" on even sizes
    (one more pixel at the right and bottom), weights start as Keras starts them (Glorot uniform, zero biases).

    Args:
        classes: number of logits.
        shape: (C, H, W) of one image.
        widths: channels of the convolutions; the first is followed by LeakyReLU and the pool.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, height, width = shape
    for index, units in enumerate(widths, start=1):
        layers[f"pad{index}"] = nn.ZeroPad2d((width % 2, 1, height % 2, 1))
        layers[f"conv{index}"] = nn.Conv2d(channels, units, 3, stride=2)
        channels, height, width = units, (height + 1) // 2, (width + 1) // 2
        if index == 1:
            layers["activation"] = nn.LeakyReLU(0.2)
            # Keras pads a pool with -inf. Zeros would win against the small negatives of the activation;
            # repeating the border leaves the maximum of each window as it is.
            layers["pool_pad"] = nn.ReplicationPad2d((0, 1, 0, 1))
            layers["pool"] = nn.MaxPool2d(2, stride=1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels * height * width, classes)
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]
    return model
