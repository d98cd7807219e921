"""Losses on gradients: of a class's logit by the image (Sobolev, Jacobian matching) or by features (Grad-CAM)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import pool_to_smaller, without_autocast
from understudy.losses.functional import in_float32


class Sobolev(nn.Module):
    """The student's logits change with the image as the teacher's do.

    `mean (J_s/‖J_s‖ - J_t/‖J_t‖)²` with J the gradient of the labelled class's logit by the image, the norm over a
    sample. It needs outputs that were computed from `inputs` with their graphs, the teacher's too, and costs a
    backward pass through each model and a second one through the student's.

    Reference: Czarnecki et al., "Sobolev Training for Neural Networks", NeurIPS 2017
    (https://arxiv.org/abs/1706.04859), and Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018
    (https://arxiv.org/abs/1803.00443), with the mean over pixels as in
    https://github.com/AberHu/Knowledge-Distillation-Zoo, which found it unstable alone.
    """

    # Both models run with autograd on inputs that require gradients, and the teacher's graph is kept.
    needs_input_gradients = True

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor, *, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits with their graph from `inputs`.
            teacher: (N, K) logits, likewise; never a gradient through them.
            inputs: (N, ...) what both models saw.
            labels: (N,) class numbers.

        Returns:
            A scalar.

        Raises:
            RuntimeError: the logits have no graph to the inputs.
        """
        of_student = _class_gradient(student, labels, by=inputs, whose="student", create_graph=True)
        of_teacher = _class_gradient(teacher, labels, by=inputs, whose="teacher")
        return F.mse_loss(_scaled(of_student), _scaled(of_teacher))


class LwM(nn.Module):
    """What the student sees of a class (Grad-CAM) follows what the teacher sees.

    `mean |M_s/‖M_s‖ - M_t/‖M_t‖|` with `M = max(0, Σ_c ᾱ_c F_c)`, ᾱ_c the mean over places of the gradient of the
    labelled class's logit by the features F; the norm is over a sample. It needs features and logits with the graph
    between them, the teacher's too, and costs a backward pass through the rest of each model and a second one of
    the student's. Before a global average and a linear layer, ᾱ is constant: tap earlier.

    Reference: Dhar et al., "Learning without Memorizing", CVPR 2019 (https://arxiv.org/abs/1811.08051),
    with the mean over places for the sum and the label for the teacher's best class.
    https://github.com/AberHu/Knowledge-Distillation-Zoo weighs the gradients instead of the features.
    """

    # Both models run with autograd on inputs that require gradients, and the teacher's graph is kept.
    needs_input_gradients = True
    # After the tap's maps it is given the logits.
    with_logits = True

    @without_autocast
    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps and the (N, K) logits computed from them, with their graph.
            teacher: likewise; never a gradient through them. Of two sizes the larger activation is averaged.
            labels: (N,) class numbers.

        Returns:
            A scalar.

        Raises:
            RuntimeError: the logits have no graph to the maps.
        """
        of_student = _class_activation(*student, labels, whose="student", create_graph=True)
        of_teacher = _class_activation(*teacher, labels, whose="teacher").detach()
        of_student, of_teacher = pool_to_smaller(of_student[:, None], of_teacher[:, None])
        return F.l1_loss(_scaled(of_student), _scaled(of_teacher))


def _class_activation(
    maps: Tensor, logits: Tensor, labels: Tensor, *, whose: str, create_graph: bool = False
) -> Tensor:
    if maps.ndim != 4:
        raise ValueError(f"Grad-CAM takes maps (N, C, H, W) of a convolutional stage, not {tuple(maps.shape)}")
    gradient = _class_gradient(logits, labels, by=maps, whose=whose, create_graph=create_graph)
    (maps,) = in_float32(maps)
    return (gradient.mean(dim=(2, 3), keepdim=True) * maps).sum(dim=1).relu()


def _class_gradient(logits: Tensor, labels: Tensor, *, by: Tensor, whose: str, create_graph: bool = False) -> Tensor:
    """The gradient of each sample's labelled logit, in float32 at least."""
    if not (logits.requires_grad and by.requires_grad):
        raise RuntimeError(
            f"the {whose}'s logits have no graph: this loss takes gradients, so run the {whose} with autograd on "
            "inputs that require them"
        )
    chosen = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, by, create_graph=create_graph, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise RuntimeError(
            f"the {whose}'s logits do not come from what this loss differentiates by: give both as one forward made "
            "them, neither cut nor put together, and tap a place before the logits"
        )
    return in_float32(gradient)[0]


def _scaled(features: Tensor) -> Tensor:
    return F.normalize(features.flatten(1), dim=1)
