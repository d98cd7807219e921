"""Losses on gradients, and the attack: the recorded cases, on their small network, computed with ours.

Every function is a `Compute` (see `recorded.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses import BSS, KD, LwM, Sobolev
from understudy.parity.recorded import Inputs, Settings, Weights

Outputs = dict[str, Tensor]


def sobolev(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The gradients by the image."""
    image = inputs["student_image"]
    (_, student), (_, teacher) = (_network(image, weights[name]) for name in ("student", "teacher"))
    loss = Sobolev()(student, teacher, inputs=image, labels=inputs["labels"])
    return {"loss": loss, "student_logits": student, "teacher_logits": teacher}


def lwm(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """Grad-CAM: the features weighted by their mean gradients."""
    image = inputs["image"].requires_grad_()
    student, teacher = (_network(image, weights[name]) for name in ("student", "teacher"))
    loss = LwM()(student, teacher, labels=inputs["labels"])
    return {"loss": loss, "student_fm": student[0], "teacher_fm": teacher[0]}


def lwm_of_gradients(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """What KD-Zoo computes: the gradients weighted by their own means."""
    image, labels = inputs["image"].requires_grad_(), inputs["labels"]
    student, teacher = (_network(image, weights[name]) for name in ("student", "teacher"))
    seen = []
    for maps, logits in (student, teacher):
        (gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), maps, create_graph=True)
        seen.append(F.normalize((gradient.mean(dim=(2, 3), keepdim=True) * gradient).sum(1).relu().flatten(1)))
    return {"loss": (seen[0] - seen[1].detach()).abs().mean(), "student_fm": student[0], "teacher_fm": teacher[0]}


def bss(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """The divergence on attacked images, without T²."""
    divergence = BSS(temperature=settings["T"]).divergence
    assert isinstance(divergence, KD)
    return {"loss": divergence(inputs["student_logits"], inputs["teacher_logits"])}


def bss_attack(inputs: Inputs, settings: Settings, weights: Weights) -> Outputs:
    """KD-Zoo's attack, on probabilities."""

    class Teacher(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return _network(image, weights["teacher"])[1]

    # The original's step is a float32 whatever the images are.
    step_size = torch.tensor(settings["step_alpha"], dtype=torch.float32).item()
    attacker = BSS(step_size=step_size, steps=settings["num_steps"], scores="probabilities")
    image, teacher = inputs["image"], Teacher()
    attacked = attacker.attack(teacher, image, origins=inputs["target"], targets=inputs["attack_class"])
    return {"attacked": attacked, "teacher_logits": teacher(image)}


def _network(image: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The maps and the logits of the small network that the manifest describes."""
    maps = F.softplus(F.conv2d(image, weights["c1.weight"], weights["c1.bias"], padding=1))
    hidden = F.softplus(F.conv2d(maps, weights["c2.weight"], weights["c2.bias"], padding=1))
    return maps, F.linear(hidden.flatten(1), weights["fc.weight"], weights["fc.bias"])
