"""From a recipe's methods to objectives."""

from importlib import import_module

from torch import nn

from understudy.distill import Objective, Schedule, Share
from understudy.errors import UserError
from understudy.losses import CrossEntropy
from understudy.losses.deit import BinaryCrossEntropy
from understudy.losses.table import LOSSES
from understudy.recipe.schema import Method, Train, Weight, WeightSchedule
from understudy.recipe.schema import Objective as Described
from understudy.recipe.signature import options

# Where a loss compares the models when the recipe does not say.
DEFAULT_TAPS = {"logits": None, "features": "auto", "last": "last", "blocks": "blocks", "embedding": "embedding"}

_PLAIN = Train()


def objectives(
    method: Method,
    samples: int,
    *,
    settings: Train = _PLAIN,
    members: tuple[int, ...] | None = None,
    init: bool = False,
    among_peers: bool = False,
    two_views: bool = False,
) -> list[Objective]:
    """Build a method's objectives: the labels with their weight, then its losses.

    Args:
        method: as the recipe describes it.
        samples: of the training set, for losses that keep something of each.
        settings: the recipe's `train`, which says how labels are learned.
        members: which of several teachers it learns from; None means all.
        init: with the weights of its init stage: one for what has such a stage, else nothing.
        among_peers: without default taps: peers compare logits.
        two_views: whether each image is seen in two views.

    Raises:
        UserError: an option does not fit.
    """
    weights = [method.labels, *(described.weight for described in method.objectives)]
    equal = 1 / sum(weight != 0 for weight in weights)
    built = []
    if method.labels != 0:
        built.append(labels(0.0 if init else schedule(method.labels), settings, method.label_smoothing))
    for described in method.objectives:
        weight = schedule(described.weight, equal)
        built.append(
            Objective(
                _loss(described, method, samples, two_views),
                float(described.init is not None) if init else weight,
                student_tap=described.student or (None if among_peers else DEFAULT_TAPS[LOSSES[described.loss].taps]),
                teacher_tap=described.teacher,
                members=members,
                head=described.head,
                name=described.loss,
            )
        )
    return built


def _loss(described: Described, method: Method, samples: int, two_views: bool) -> nn.Module:
    entry = LOSSES[described.loss]
    where = f"method '{method.name}', loss '{described.loss}'"
    wanted = options(entry.module, entry.class_name)
    given = {key: value for key, value in {"samples": samples}.items() if key in wanted} | described.options
    try:
        loss = getattr(import_module(entry.module), entry.class_name)(**given)
    except (TypeError, ValueError) as error:
        raise UserError(str(error), where=where) from None
    if getattr(loss, "needs_views", False) and not two_views:
        raise UserError("compares two views of each image: set data.second_view, such as {flip: true}", where=where)
    return loss


def schedule(weight: Weight | str, equal: float = 0.5) -> float | Schedule | Share:
    """A recipe's weight as a number, a schedule over epochs, or a share of the gradient to hold.

    Args:
        weight: as written.
        equal: what `auto` means.
    """
    if isinstance(weight, str):
        return Share(equal if weight == "auto" else float(weight.removesuffix("%")) / 100)
    if isinstance(weight, WeightSchedule):
        return Schedule.ramp(weight.start, weight.end, weight.epochs, weight.shape)
    return Schedule(weight) if isinstance(weight, tuple) else float(weight)


def labels(weight: float | Schedule | Share, settings: Train = _PLAIN, smoothing: float | None = None) -> Objective:
    """Learning from the labels, with the criterion of the recipe's `train`.

    Args:
        weight: of the objective.
        settings: how the model is trained.
        smoothing: of the labels, where it is another than there.
    """
    if settings.criterion == "bce":
        return Objective(BinaryCrossEntropy(), weight, name="labels")
    smoothing = settings.label_smoothing if smoothing is None else smoothing
    return Objective(CrossEntropy(label_smoothing=smoothing), weight, name="labels")
