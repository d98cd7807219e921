"""A learner spread over processes: gradients averaged, gradient norms and batch statistics those of the whole batch."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from understudy.distill import Learner
from understudy.distill.learner import gradient_norms
from understudy.train import processes

_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:  # its name in earlier versions of torch
    _SYNC_BUFFERS = "broadcast_buffers"
_BATCH_NORM = inspect.signature(F.batch_norm)


def spread(learner: Learner) -> nn.Module:
    """The learner itself; with several processes wrapped, so that each backward averages its gradients over them.

    Its teacher is no submodule and is never wrapped: every process asks its own about its own share.

    Args:
        learner: with the same weights on every process.
    """
    if processes.count() == 1:
        return learner
    # Which parameters a step uses changes with the objectives' weights. This mode also keeps the order in which
    # gradients are summed from the first step on, so that a resumed run sums alike. Batch statistics (`WholeBatch`) and
    # memories of losses are the same everywhere: nothing is to be broadcast.
    how: dict[str, Any] = {"find_unused_parameters": True, _SYNC_BUFFERS: False}
    return DistributedDataParallel(learner, **how)


class WholeBatch(TorchFunctionMode):
    """Inside, batch normalisation in training mode is that of the whole batch, not of this process's part of it.

    torch's SyncBatchNorm does so too, on GPUs alone. Inside a step all processes run the same layers in the same
    order, which is what sums over them need.

    Args:
        counts: whether the samples of this process are of the batch; False where it only keeps the others company.
    """

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm and processes.count() > 1:
            given = _BATCH_NORM.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments.pop("training"):
                return _batch_norm(counts=self.counts, **given.arguments)
        return func(*args, **(kwargs or {}))


def _batch_norm(
    *,
    input: Tensor,  # its name in torch
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    counts: bool,
) -> Tensor:
    values = input if input.dtype in (torch.float32, torch.float64) else input.float()
    dims, shape = [0, *range(2, input.ndim)], [1, -1, *[1] * (input.ndim - 2)]
    here = values if counts else values[:0]
    sums = _Sum.apply(torch.cat([here.sum(dims), values.new_full((1,), here.numel() // here.shape[1])]))
    mean, count = sums[:-1] / sums[-1], sums[-1].detach()
    centred = values - mean.view(shape)
    variance = _Sum.apply((centred if counts else centred[:0]).square().sum(dims)) / count
    for running, found in ((running_mean, mean), (running_var, variance * count / (count - 1).clamp(min=1))):
        if running is not None:
            running.lerp_(found.detach().to(running.dtype), momentum)
    normal = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        normal = normal * weight.view(shape)
    if bias is not None:
        normal = normal + bias.view(shape)
    return normal.to(input.dtype)


class _Sum(torch.autograd.Function):
    """A tensor summed over the processes; so are the gradients that all of them have for it."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        whole = tensor.clone()
        torch.distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(gradients[0])


def norms_of_gradients(
    terms: Mapping[str, Tensor], shares: Mapping[str, float], student: nn.Module, factor: float = 1.0
) -> dict[str, float]:
    """The norm of each term's gradient with respect to the student, over the whole batch.

    Args:
        terms: scalars, each a mean over the samples that it is about.
        shares: of those samples, the part that this process has.
        student: whose parameters.
        factor: on the terms while their gradients are computed, so that float16 can hold them.
    """
    if processes.count() == 1:
        norms = gradient_norms({name: term * factor for name, term in terms.items()}, student.parameters())
        return {name: norm / factor for name, norm in norms.items()}
    wanted = [parameter for parameter in student.parameters() if parameter.requires_grad]
    device = next(student.parameters()).device
    wholes = processes.summed({name: torch.tensor(shares[name], device=device) for name in terms})
    norms = {}
    for name, term in terms.items():
        weight = factor * shares[name] / max(wholes[name].item(), 1e-12)
        gradients = torch.autograd.grad(term * weight, wanted, retain_graph=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        norms[name] = float(flat.norm()) / factor
    return norms
