"""Relations between samples, and contrast between them: the recorded cases computed with our losses.

Every function is a `Compute` (see `recorded.py`).
"""

import torch
from torch import Tensor

from understudy.losses import CC, IRG, PKT, RKD, SP, AliasSampler, CCNeighbours, SupervisedPKT
from understudy.losses.crd_memory import Contrast, contrast_loss
from understudy.parity.recorded import Inputs, Settings, Weights, load


def pkt(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The author's and RepDistiller's."""
    return {"loss": PKT()(*_features(inputs))}


def pkt_zoo(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with a larger ε, which is no argument of the original's."""
    return {"loss": PKT(eps=1e-6)(*_features(inputs))}


def supervised_pkt(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The author's variant with labels in the place of a teacher."""
    return {"loss": SupervisedPKT()(inputs["student_feat"], labels=inputs["labels"])}


def supervised_pkt_rounded(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The same with the labels' probabilities in float32, whatever the student's precision is."""
    student, labels, eps = inputs["student_feat"], inputs["labels"], 1e-7
    rows = student / (student.norm(dim=1, keepdim=True) + eps)
    similar = (rows @ rows.mT + 1) / 2
    similar = similar / similar.sum(dim=1, keepdim=True)
    same = (labels[:, None] == labels[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return {"loss": (target * ((target + eps) / (similar + eps)).log()).mean()}


def sp(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Similarity preserving."""
    return {"loss": SP()(*_features(inputs))}


def rkd_zoo(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The weighted sum, and both parts before weighting."""
    distance, angle = settings["w_dist"], settings["w_angle"]
    return {
        "loss": RKD(distance=distance, angle=angle)(*_features(inputs)),
        "dist": RKD(distance=1, angle=0)(*_features(inputs)),
        "angle": RKD(distance=0, angle=1)(*_features(inputs)),
    }


def rkd_distance(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The author's distances alone."""
    return {"loss": RKD(distance=1, angle=0)(*_features(inputs))}


def rkd_angle(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The author's angles alone."""
    return {"loss": RKD(distance=0, angle=1)(*_features(inputs))}


def rkd_rep(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The weighted sum of RepDistiller."""
    return {"loss": RKD(distance=settings["w_d"], angle=settings["w_a"])(*_features(inputs))}


def rkd_mmrazor(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Both losses of mmrazor with their default weights, and their sum."""
    normalize = settings["with_l2_norm"]
    distance = RKD(angle=0, normalize=normalize)(*_features(inputs))
    angle = RKD(distance=0, normalize=normalize)(*_features(inputs))
    return {"loss": distance + angle, "dist": distance, "angle": angle}


def cc(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The paper's correlation congruence."""
    return {"loss": CC(gamma=settings["gamma"], order=settings["P_order"])(*_features(inputs))}


def cc_neighbours(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """RepDistiller's loss of that name, with its two embeddings."""
    loss = CCNeighbours(width=settings["d"])
    loss.prepare(*_features(inputs))
    renamed = {"embed_student.weight": "embed_s", "embed_teacher.weight": "embed_t"}
    merged = {key: weights[module]["linear.weight"] for key, module in renamed.items()}
    merged |= {key.replace("weight", "bias"): weights[module]["linear.bias"] for key, module in renamed.items()}
    return {"loss": load(loss, merged)(*_features(inputs))}


def irg(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The weighted sum of vertices, edges and transformation."""
    vertex, edge, transformation = settings["w"]
    parts = ("feat_1", "feat_2", "embed", "logits")
    student, teacher = (tuple(inputs[f"{side}_{part}"] for part in parts) for side in ("student", "teacher"))
    return {"loss": IRG(vertex=vertex, edge=edge, transformation=transformation)(student, teacher)}


def crd_rep(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Two calls of RepDistiller's with given indices, and its memory after each."""
    contrast = _contrast(inputs, settings, weights, student="memory_v1", teacher="memory_v2", momentum="nce_m")
    first = _call(contrast, inputs, "call1", inputs["contrast_idx"])
    state = _rep_state(contrast, settings)
    second = _call(contrast, inputs, "call2", inputs["contrast_idx"])
    return {
        "loss": first + second,
        "loss_call1": first,
        "loss_call2": second,
        **{f"state_after_call1.{name}": tensor for name, tensor in state.items()},
        "after_crd.contrast.params": _rep_state(contrast, settings)["params"],
    }


def crd_rep_drawn(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """One call with the indices that the original drew; the sample's own takes the first place of each row."""
    contrast = _contrast(inputs, settings, weights, student="memory_v1", teacher="memory_v2", momentum="nce_m")
    own = inputs["idx"]
    indices = inputs["drawn_idx_flat"].reshape(len(own), -1).clone()
    indices[:, 0] = own
    loss = _call(contrast, inputs, "call1", indices)
    state = _rep_state(contrast, settings)
    return {
        "loss": loss,
        "loss_call1": loss,
        **{f"state_after_call1.{name}": tensor for name, tensor in state.items()},
        "after_crd.contrast.params": state["params"],
    }


def crd_zoo(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """Two calls of Knowledge-Distillation-Zoo's, its memory after the first, and what scores are divided by."""
    contrast = _contrast(inputs, settings, weights, student="memory_s", teacher="memory_t", momentum="nce_mom")
    first = _call(contrast, inputs, "call1", inputs["contrast_idx"])
    memory = {"memory_s": contrast.of_student.clone(), "memory_t": contrast.of_teacher.clone()}
    second = _call(contrast, inputs, "call2", inputs["contrast_idx"])
    return {
        "loss": first + second,
        "loss_call1": first,
        "loss_call2": second,
        **{f"state_after_call1.{name}": tensor for name, tensor in memory.items()},
        "Z_s": contrast.scale_student,
        "Z_t": contrast.scale_teacher,
    }


def crd_contrast(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The contrastive loss of given scores."""
    return {"loss": contrast_loss(inputs["student_scores"], samples=settings["n_data"])}


def crd_alias(inputs: Inputs, settings: Settings, weights: Weights) -> dict[str, Tensor]:
    """The tables of the alias method."""
    sampler = AliasSampler(inputs["probs"])
    return {"prob": sampler.keep, "alias": sampler.alias}


def _features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["student_feat"], inputs["teacher_feat"]


def _contrast(
    inputs: Inputs, settings: Settings, weights: Weights, *, student: str, teacher: str, momentum: str
) -> Contrast:
    """The memory with the recorded weights, whose names differ between the two originals."""
    contrast = Contrast(
        samples=settings["n_data"],
        width=settings["feat_dim"],
        temperature=settings["nce_t"],
        momentum=settings[momentum],
    )
    contrast.prepare(inputs["student_feat_call1"], inputs["teacher_feat_call1"])
    recorded = dict(weights["crd"])
    memory = recorded[f"contrast.{student}"]
    unset = memory.new_tensor([-1.0, -1.0])
    scales = recorded.pop("contrast.params")[2:4].clone() if "contrast.params" in recorded else unset
    recorded |= {"scale_student": scales[0], "scale_teacher": scales[1]}
    rename = {f"contrast.{student}": "of_student", f"contrast.{teacher}": "of_teacher"}
    for side, full in (("s", "student"), ("t", "teacher")):
        rename |= {f"embed_{side}.linear.{part}": f"embed_{full}.{part}" for part in ("weight", "bias")}
    return load(contrast, recorded, rename=rename)


def _call(contrast: Contrast, inputs: Inputs, call: str, indices: Tensor) -> Tensor:
    # The positive is the sample itself in the first column, whose memory the call updates.
    return contrast(inputs[f"student_feat_{call}"], inputs[f"teacher_feat_{call}"], indices)


def _rep_state(contrast: Contrast, settings: Settings) -> dict[str, Tensor]:
    scales = [contrast.scale_student.item(), contrast.scale_teacher.item()]
    params = [settings["nce_k"], settings["nce_t"], *scales, settings["nce_m"]]
    return {
        "params": torch.tensor(params, dtype=contrast.of_student.dtype),
        "memory_v1": contrast.of_student.clone(),
        "memory_v2": contrast.of_teacher.clone(),
    }
