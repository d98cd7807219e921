"""The CIFAR models by the name a recipe gives them; importing this imports no torch."""

_FAMILY = "understudy.models.cifar"
_NARROW = (16, 16, 32, 64)
_FOUR_TIMES = (32, 64, 128, 256)

# Recipe name: module, function in it, the options that make it this model.
MODELS: dict[str, tuple[str, str, dict[str, object]]] = {
    "cifar/resnet8": (f"{_FAMILY}.resnet", "resnet", {"depth": 8, "widths": _NARROW}),
    "cifar/resnet14": (f"{_FAMILY}.resnet", "resnet", {"depth": 14, "widths": _NARROW}),
    "cifar/resnet20": (f"{_FAMILY}.resnet", "resnet", {"depth": 20, "widths": _NARROW}),
    "cifar/resnet32": (f"{_FAMILY}.resnet", "resnet", {"depth": 32, "widths": _NARROW}),
    "cifar/resnet44": (f"{_FAMILY}.resnet", "resnet", {"depth": 44, "widths": _NARROW}),
    "cifar/resnet56": (f"{_FAMILY}.resnet", "resnet", {"depth": 56, "widths": _NARROW}),
    "cifar/resnet110": (f"{_FAMILY}.resnet", "resnet", {"depth": 110, "widths": _NARROW}),
    "cifar/resnet8x4": (f"{_FAMILY}.resnet", "resnet", {"depth": 8, "widths": _FOUR_TIMES}),
    "cifar/resnet32x4": (f"{_FAMILY}.resnet", "resnet", {"depth": 32, "widths": _FOUR_TIMES}),
    "cifar/resnet50": (f"{_FAMILY}.resnet", "bottleneck_resnet", {"depth": 50}),
    "cifar/wrn-16-1": (f"{_FAMILY}.wide_resnet", "wide_resnet", {"depth": 16, "width": 1}),
    "cifar/wrn-16-2": (f"{_FAMILY}.wide_resnet", "wide_resnet", {"depth": 16, "width": 2}),
    "cifar/wrn-40-1": (f"{_FAMILY}.wide_resnet", "wide_resnet", {"depth": 40, "width": 1}),
    "cifar/wrn-40-2": (f"{_FAMILY}.wide_resnet", "wide_resnet", {"depth": 40, "width": 2}),
    "cifar/vgg8": (f"{_FAMILY}.vgg", "vgg", {"depth": 8}),
    "cifar/vgg11": (f"{_FAMILY}.vgg", "vgg", {"depth": 11}),
    "cifar/vgg13": (f"{_FAMILY}.vgg", "vgg", {"depth": 13}),
    "cifar/vgg16": (f"{_FAMILY}.vgg", "vgg", {"depth": 16}),
    "cifar/vgg19": (f"{_FAMILY}.vgg", "vgg", {"depth": 19}),
    "cifar/mobilenet-v2": (f"{_FAMILY}.mobilenet", "mobilenet_v2", {"width": 0.5, "expansion": 6}),
    "cifar/shufflenet-v1": (
        f"{_FAMILY}.shufflenet",
        "shufflenet_v1",
        {"groups": 3, "widths": (240, 480, 960), "blocks": (4, 8, 4)},
    ),
    "cifar/shufflenet-v2": (
        f"{_FAMILY}.shufflenet",
        "shufflenet_v2",
        {"widths": (116, 232, 464, 1024), "blocks": (4, 8, 4)},
    ),
}
