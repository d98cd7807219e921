"""Factor transfer: the recorded cases computed with ours.

Every function is a `Compute` (see `recorded.py`).
"""

import copy
import re

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses import FT
from understudy.losses.ft import Paraphraser
from understudy.parity.recorded import Inputs, Settings, Weights, load
from understudy.parity.taps import Outputs, both, only, ready


def ft(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Factor transfer with the recorded paraphraser and translator."""
    loss = _factors(inputs, settings, weights)
    # A copy: a second call would move the statistics of the translator once more.
    paraphraser, translator = only(loss.paraphrasers).eval(), copy.deepcopy(only(loss.translators))
    assert isinstance(paraphraser, Paraphraser)
    teacher = inputs["teacher_feat"]
    factors = {"factor_s": translator(inputs["student_feat"]), "factor_t": paraphraser.encoder(teacher)}
    return {"loss": loss(*both(inputs)), **factors, "reconstruction": paraphraser(teacher)}


def ft_without_factors(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The loss of mmrazor, on factors that are already there."""
    loss = ready(FT(rate=1.0, batch_norm=False), *both(inputs))
    assert loss.paraphrasers is not None
    assert loss.translators is not None
    for module in (*loss.paraphrasers, *loss.translators):
        module.encoder = nn.Identity()
    return {"loss": settings["loss_weight"] * loss(*both(inputs))}


def ft_of_attention(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """What RepDistiller compares: the attention maps of the factors."""
    loss = _factors(inputs, settings, weights)
    student, teacher = (
        only(modules).encoder(inputs[name])  # pyright: ignore[reportCallIssue]
        for modules, name in ((loss.translators, "student_feat"), (loss.paraphrasers, "teacher_feat"))
    )
    size = min(student.shape[2], teacher.shape[2])
    maps = (F.adaptive_avg_pool2d(each, size) if each.shape[2] > size else each for each in (student, teacher.detach()))
    mine, theirs = (F.normalize(each.pow(settings["p1"]).mean(1).flatten(1)) for each in maps)
    difference = mine - theirs
    return {"loss": (difference.abs() if settings["p2"] == 1 else difference.pow(settings["p2"])).mean()}


def ft_reconstruction(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """What the paraphraser minimises before the student learns."""
    teacher = inputs["teacher_feat"]
    loss = _factors(inputs | {"student_feat": teacher}, settings, weights)
    spare = copy.deepcopy(only(loss.paraphrasers))
    return {"loss": loss.reconstruction(teacher), "reconstruction": spare(teacher)}


def _factors(inputs: Inputs, settings: Settings, weights: Weights) -> FT:
    # RepDistiller's translator may have batch norms where its paraphraser has none.
    groups = {"paraphrasers": weights["paraphraser"], "translators": weights.get("translator")}
    made = {
        name: ready(FT(rate=settings["k"], batch_norm=_has_norm(group)), *both(inputs))
        for name, group in groups.items()
        if group is not None
    }
    loss = made["paraphrasers"]
    if "translators" in made:
        loss.translators = made["translators"].translators
    for name, group in groups.items():
        if group is not None:
            load(only(getattr(loss, name)), {_factor_key(key): tensor for key, tensor in group.items()})
    return loss.train()


def _has_norm(group: dict[str, Tensor]) -> bool:
    return any("running_mean" in key for key in group)


def _factor_key(key: str) -> str:
    # The authors number the convolutions, everybody else all layers.
    return re.sub(
        r"^(de)?conv(\d+)\.", lambda found: f"{'decoder' if found[1] else 'encoder'}.{3 * int(found[2])}.", key
    )
