"""What the tests of detectors build on: painted images, a narrow YOLO, and a look at every output of a head."""

from pathlib import Path

import numpy as np
import yaml

# The smallest training there is.
SMALL = {"imgsz": 64, "batch": 8, "nbs": 8, "device": "cpu", "plots": False, "optimizer": "AdamW", "lr0": 0.002,
         "verbose": False, "workers": 0, "mosaic": 0.0, "warmup_epochs": 0.0}  # fmt: skip


def paint(folder: Path, split: str, count: int, seed: int, size: int = 96) -> None:
    """Bright squares (class 0) and dark discs (class 1) on noise, with their labels."""
    import cv2

    draw = np.random.default_rng(seed)
    images, labels = folder / "images" / split, folder / "labels" / split
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for number in range(count):
        image = draw.integers(90, 130, (size, size, 3), dtype=np.uint8)
        rows = []
        for _ in range(3):
            side, kind = int(draw.integers(18, 34)), int(draw.integers(2))
            left, top = (int(draw.integers(0, size - side)) for _ in range(2))
            if kind == 0:
                cv2.rectangle(image, (left, top), (left + side, top + side), (240, 240, 240), -1)
            else:
                middle = (left + side // 2, top + side // 2)
                cv2.circle(image, middle, side // 2, (10, 10, 10), -1)
            box = [(left + side / 2) / size, (top + side / 2) / size, side / size, side / size]
            rows.append(" ".join([str(kind), *(f"{value:.6f}" for value in box)]))
        cv2.imwrite(str(images / f"{number}.png"), image)
        (labels / f"{number}.txt").write_text("\n".join(rows) + "\n")


def narrow(folder: Path, family: str = "v8/yolov8", width: float = 0.125) -> Path:
    """The YAML of a member of a family, narrower than its smallest."""
    import ultralytics

    stock = Path(ultralytics.__file__).parent / "cfg" / "models" / f"{family}.yaml"
    plain = yaml.safe_load(stock.read_text())
    plain.pop("scales")
    plain |= {"nc": 2, "depth_multiple": 0.33, "width_multiple": width}
    path = folder / f"narrow-{width:g}.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


def lively(model, seed: int = 0):
    """BatchNorms as after a training: no scale, shift or statistic equal to another."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.1, 0.1), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                values.copy_(torch.rand(values.shape, generator=draw) * (high - low) + low)
    return model.float().eval()


def outputs(model, images):
    """Every tensor that a detector's head gives, undecoded ones among them."""
    import torch

    found = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            for key, each in value.items():
                if key != "feats":  # the neck's own outputs, whose channels are pruned
                    collect(each)
        elif isinstance(value, (tuple, list)):
            for each in value:
                collect(each)

    with torch.no_grad():
        collect(model(images))
    return found
