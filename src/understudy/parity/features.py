"""The classic losses on features: the recorded cases computed with ours.

Every function is a `Compute` (see `recorded.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from understudy.losses import AFD, AFDS, AT, FSP, NST, VID, FeatureRegression, FitNet
from understudy.parity.recorded import Inputs, Settings, Weights, load
from understudy.parity.taps import Outputs, below, both, by_layer, only, ready, renamed, sides

# FitNet


def keras_features(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """`keras.distillation.FeatureDistillation`; its cosine loss is the negative cosine."""
    distance = {"mse": "mse", "mean_squared_error": "mse", "cosine_similarity": "cosine"}[settings["loss"]]
    loss = FeatureRegression(distance=distance)(*both(inputs))  # pyright: ignore[reportArgumentType]
    return {"loss": loss if distance == "mse" else loss - 1}


def hint(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The hint loss without a regressor."""
    return {"loss": FeatureRegression()(*both(inputs))}


def hint_regressed(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The hint loss with RepDistiller's regressor."""
    loss = ready(FitNet(relu=settings["use_relu"]), *both(inputs))
    load(only(loss.regressors), renamed(weights["convreg"], {r"bn\.": "norm."}))
    return {"loss": loss(*both(inputs))}


# Attention transfer and neuron selectivity


def at_zoo(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Attention transfer, the norms raised by 1e-6."""
    return {"loss": AT(p=settings["p"], epsilon=1e-6)(*both(inputs))}


def at(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Attention transfer of the authors, of RepDistiller over several taps, of mmrazor."""
    scale = settings.get("loss_weight", 1.0)
    return by_layer(inputs, lambda *pair: scale * AT(p=settings.get("p", 2))(*pair))


def at_signed(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """What RepDistiller computes with an odd p: sums of signed powers."""

    def signed(student: Tensor, teacher: Tensor) -> Tensor:
        size = min(student.shape[2], teacher.shape[2])
        maps = (F.adaptive_avg_pool2d(each, size) if each.shape[2] > size else each for each in (student, teacher))
        mine, theirs = (F.normalize(each.pow(settings["p"]).mean(1).flatten(1)) for each in maps)
        return (mine - theirs).square().mean()

    return by_layer(inputs, signed)


def nst(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Neuron selectivity transfer, one tap or several."""
    return by_layer(inputs, NST())


# Flows between taps


def fsp(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """FSP over two taps or more."""
    student, teacher = sides(inputs)
    loss = FSP()
    pairs = [loss(student[index : index + 2], teacher[index : index + 2]) for index in range(len(student) - 1)]
    return {"loss": loss(student, teacher), "per_pair": torch.stack(pairs)}


# Learned weights and variances


def afd_channels(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """KD-Zoo's distillation of AFDS."""
    loss = ready(AFDS(squeeze=settings["att_f"]), *both(inputs))
    load(only(loss.attentions), below(weights["afd"], "attention."))
    return {"loss": loss(*both(inputs))}


def afd(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The attention between all taps of both models."""
    student, teacher = sides(inputs)
    loss = ready(AFD(dimension=settings["qk_dim"]), student, teacher)
    assert loss.attention is not None
    renames = {
        r"^p_t$": "teacher_positions",
        r"^p_s$": "student_positions",
        r"^linear_trans_s\.key_layer\.": "keys.",
        r"^linear_trans_t\.query_layer\.": "queries.",
        r"^linear_trans_s\.": "",
        r"\.bn\.": ".norm.",
    }
    load(loss.attention, renamed(below(weights["afd"], "attention."), renames))
    return {"loss": loss(student, teacher), "n_t": _shape_numbers(teacher)}


def _shape_numbers(features: tuple[Tensor, ...]) -> Tensor:
    # As the original counts: the last new shape's number, also for one seen before.
    seen: list[tuple[int, ...]] = []
    numbers = []
    for each in features:
        if tuple(each.shape) not in seen:
            seen.append(tuple(each.shape))
        numbers.append(len(seen) - 1)
    return torch.tensor(numbers)


def vid(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """RepDistiller's."""
    return _vid(inputs, settings, weights, epsilon=1e-5)


def vid_zoo(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """KD-Zoo's, with a smaller least variance."""
    return _vid(inputs, settings, weights, epsilon=1e-6)


def _vid(inputs: Inputs, settings: Settings, weights: Weights, *, epsilon: float) -> Outputs:
    options = {"hidden": settings["mid"], "initial_variance": settings["init_var"], "epsilon": epsilon}
    loss = ready(VID(**options), *both(inputs))
    load(only(loss.gaussians), renamed(weights["vid"], {"^(alpha|log_scale)$": "raw"}))
    return {"loss": loss(*both(inputs))}
