"""Where a teacher comes from: a shape to train, a diffusers pipeline, a published checkpoint, or one's own module."""

import copy
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.tasks.diffusion.guidance import Guided
from understudy.tasks.diffusion.network import Network, StepClock, TableClock, build_unet
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.published import load_published
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.settings import Prediction
from understudy.tasks.diffusion.store import CARD, load_network

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "sample": "x", "v_prediction": "v"}


@dataclass(frozen=True)
class Teacher:
    """A model to distil.

    Args:
        model: called as `model(z, t, y)`, t on our clock.
        process: how its output is read.
        ours: whether it was trained on our schedule, at all of its noise.
        classes: class names, where it says.
        shape: (C, H, W) of its images, where it says.
        steps: the number that it is to be sampled with, where it says.
        null: the class number that means "no class", where it has one.
    """

    model: nn.Module
    process: Process
    ours: bool = True
    classes: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    steps: int | None = None
    null: int | None = None

    @property
    def conditional(self) -> bool | None:
        """Whether it draws by class; None where it does not say."""
        return self.model.conditional if isinstance(self.model, (Network, Foreign)) else None


class Foreign(nn.Module):
    """A model that was trained on another schedule, seen from ours: our noise is found among its time steps.

    Where ours is purer, at either end, it is told its own first or last time. It gives the image x.

    Args:
        network: with the clock of its table.
        prediction: of the network.
        clip: whether its sampler cuts images to [-1, 1].
    """

    def __init__(self, network: Network, prediction: Prediction, *, clip: bool) -> None:
        super().__init__()
        self.network = network
        self.reading = Process(prediction=prediction, clip=clip)

    @property
    def conditional(self) -> bool:
        """Whether it draws by class."""
        return self.network.conditional

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """The image in z at our times t."""
        clock = self.network.clock
        assert isinstance(clock, TableClock)
        return self.reading.interpret(self.network(z, t, y).to(z.dtype), z, clock.clamped(t)).x


def clock_steps(steps: int) -> int:
    """Time steps of a clock that `steps` steps, halved again and again, divide: near 1024."""
    return steps * max(1, round(1024 / steps))


def fresh_teacher(recipe: DiffusionRecipe, *, shape: tuple[int, int, int], classes: tuple[str, ...]) -> Teacher:
    """Build the teacher that a recipe has trained.

    Raises:
        UserError: the images cannot be halved as often as its shape does.
    """
    described, trained = recipe.teacher, recipe.teacher.train
    assert trained is not None
    prediction: Prediction = described.prediction or "v"
    null = len(classes) if trained.label_dropout else None
    numbers = (len(classes) + (null is not None)) if described.conditional else 0
    unet = build_unet(
        described.shape(),
        image=shape,
        outputs=(2 if prediction == "both" else 1) * shape[0],
        classes=numbers,
        dropout=trained.dropout,
    )
    network = Network(unet, StepClock(clock_steps(recipe.steps[0])))
    process = Process(recipe.process.logsnr_min, recipe.process.logsnr_max, prediction)
    return Teacher(network, process, classes=classes if described.conditional else (), shape=shape, null=null)


def read_teacher(recipe: DiffusionRecipe, given: Any, *, size: int | None) -> Teacher:
    """Read the teacher that a recipe brings.

    Args:
        recipe: with `teacher.weights`, or a teacher that was given in Python.
        given: that object.
        size: height and width of the images, for a published checkpoint, which does not say.

    Raises:
        UserError: it cannot be read, or is not what the recipe says.
    """
    process = Process(recipe.process.logsnr_min, recipe.process.logsnr_max)
    if recipe.teacher.weights is None:
        teacher = _from_object(given, process, recipe)
    elif Path(recipe.teacher.weights).expanduser().is_dir():
        teacher = _from_folder(Path(recipe.teacher.weights).expanduser(), process)
    else:
        teacher = _from_file(Path(recipe.teacher.weights).expanduser(), process, recipe.teacher.prediction, size)
    return _checked(teacher, recipe)


def _checked(teacher: Teacher, recipe: DiffusionRecipe) -> Teacher:
    wanted, found = recipe.teacher.prediction, _own_prediction(teacher)
    where = recipe.teacher.weights or recipe.teacher.name
    if wanted is not None and wanted != found:
        raise UserError(f"predicts '{found}', not '{wanted}' as teacher.prediction says: take that out", where=where)
    if teacher.conditional is True and not recipe.teacher.conditional:
        raise UserError("draws by class: set teacher.conditional=true", where=where)
    if teacher.conditional is False and recipe.teacher.conditional:
        raise UserError("knows no classes: set teacher.conditional=false", where=where)
    limits = (teacher.process.logsnr_min, teacher.process.logsnr_max)
    if limits != (recipe.process.logsnr_min, recipe.process.logsnr_max):
        low, high = limits
        raise UserError(
            f"was trained from logsnr {low:g} to {high:g}: set process.logsnr_min and process.logsnr_max so",
            where=where,
        )
    return teacher


def _own_prediction(teacher: Teacher) -> str:
    return teacher.model.reading.prediction if isinstance(teacher.model, Foreign) else teacher.process.prediction


def _from_folder(folder: Path, process: Process) -> Teacher:
    if (folder / "recipe.yaml").is_file():  # a run: its teacher is meant
        folder = folder / "teacher"
    if (folder / CARD).is_file():
        network = load_network(folder)
        return of_card(network)
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"holds no diffusers pipeline ({' '.join(str(error).split())[:200]})", where=folder) from None
    return _from_pipeline(pipeline, process, str(folder))


def of_card(network: nn.Module) -> Teacher:
    """A network that was saved, as a teacher."""
    card: Any = network.card
    null = None
    if isinstance(network, Network) and network.classes > len(card.classes):
        null = len(card.classes)
    return Teacher(network, card.process, classes=card.classes, shape=card.shape, steps=card.steps, null=null)


def _from_pipeline(pipeline: Any, process: Process, where: str) -> Teacher:
    unet: Any = getattr(pipeline, "unet", None)
    scheduler: Any = getattr(pipeline, "scheduler", None)
    if not isinstance(unet, UNet2DModel) or not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            "has no UNet2DModel with a scheduler of alphas: only such pipelines (DDPM, DDIM) can be distilled",
            where=where,
        )
    settings = scheduler.config
    name = settings.get("prediction_type", "epsilon")
    if name not in _PREDICTIONS:
        raise UserError(f"predicts '{name}', which is none of {', '.join(_PREDICTIONS)}", where=where)
    prediction = _PREDICTIONS[name]
    kept = scheduler.alphas_cumprod.double().clamp(1e-12, 1 - 1e-12)
    table = torch.log(kept) - torch.log1p(-kept)
    count = len(table)
    ours = process.logsnr(torch.arange(1, count + 1, dtype=torch.float64) / count)
    if torch.allclose(table, ours, atol=0.05):
        network = Network(unet, StepClock(count))
        return Teacher(network, replace(process, prediction=prediction), shape=network.image_shape)
    clock = TableClock(tuple(table.tolist()), process.logsnr_min, process.logsnr_max)
    clip = bool(settings.get("clip_sample", False))
    model = Foreign(Network(unet, clock), prediction, clip=clip)
    return Teacher(model, replace(process, prediction="x"), ours=False, shape=model.network.image_shape)


def _from_file(path: Path, process: Process, prediction: Prediction | None, size: int | None) -> Teacher:
    from understudy.tasks.diffusion.network import LogsnrClock

    if size is None:
        raise UserError("a published checkpoint does not say how large its images are: set data.pad_to", where=path)
    unet, steps = load_published(path, size=size)
    doubled = unet.config["out_channels"] == 2 * unet.config["in_channels"]
    if doubled != (prediction == "both") and prediction is not None:
        found = "both" if doubled else "one of x, eps and v"
        raise UserError(f"predicts {found}, not '{prediction}' as teacher.prediction says", where=path)
    found = "both" if doubled else (prediction or "x")
    network = Network(unet, LogsnrClock("inv_cos", process.logsnr_min, process.logsnr_max))
    return Teacher(network, replace(process, prediction=found), shape=network.image_shape, steps=steps)


def _from_object(given: Any, process: Process, recipe: DiffusionRecipe) -> Teacher:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    if given is None:
        raise UserError(f"'{recipe.teacher.name}' was given as an object in Python: pass the same object again")
    if isinstance(given, DiffusionPipeline):
        return _from_pipeline(given, process, type(given).__name__)
    if isinstance(given, UNet2DModel):
        raise UserError("a UNet2DModel does not say its schedule: give the pipeline, or us.diffusion.Network(unet)")
    if not isinstance(given, nn.Module) and callable(given):
        if signature(given).parameters:
            raise UserError("the teacher is a function: wanted a module, whose weights a student can start from")
        given = given()
    if not isinstance(given, nn.Module):
        raise UserError(f"the teacher is a {type(given).__name__}: wanted a pipeline or a module called as (z, t, y)")
    if hasattr(given, "card"):
        return of_card(given)
    shape = given.image_shape if isinstance(given, Network) else None
    return Teacher(given, replace(process, prediction=recipe.teacher.prediction or "v"), shape=shape)


def describe(teacher: Teacher) -> str:
    """What a teacher is, in words."""
    parameters = sum(parameter.numel() for parameter in teacher.model.parameters())
    schedule = "our schedule" if teacher.ours else "a schedule of its own"
    by_class = f", draws {len(teacher.classes)} classes" if teacher.classes else ""
    return f"teacher: {parameters:,} parameters, predicts {_own_prediction(teacher)} on {schedule}{by_class}"


def as_compared(teacher: Teacher, recipe: DiffusionRecipe) -> nn.Module | Guided:
    """The teacher as it is drawn from: with guidance, where the students learn it."""
    if recipe.guidance is None or teacher.null is None:
        return teacher.model
    return Guided(teacher.model, teacher.null, recipe.guidance.sample)


def on_our_clock(teacher: Teacher, clock: StepClock) -> nn.Module:
    """A copy of the teacher's network that is told the time as ours are, with one output where it had two."""
    model = teacher.model.network if isinstance(teacher.model, Foreign) else teacher.model
    model = copy.deepcopy(model)
    if not isinstance(model, Network):
        return model
    network = Network(model.unet, clock)
    if teacher.process.prediction == "both":
        _halve_output(network)
    return network


def _halve_output(network: Network) -> None:
    """Keep of a network that gives x and eps the first half."""
    wide = network.unet.conv_out
    channels = wide.out_channels // 2
    narrow = nn.Conv2d(wide.in_channels, channels, wide.kernel_size, padding=wide.padding)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:channels])
        if wide.bias is not None and narrow.bias is not None:
            narrow.bias.copy_(wide.bias[:channels])
    network.unet.conv_out = narrow.to(wide.weight.device)
    network.unet.register_to_config(out_channels=channels)
