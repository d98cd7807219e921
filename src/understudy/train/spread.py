"""A learner spread over processes: gradients averaged, gradient norms and batch statistics those of the whole batch."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from understudy.distill import Learner
from understudy.distill.learner import gradient_norms
from understudy.train import processes

_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:  # its name in earlier versions of torch
    _SYNC_BUFFERS = "broadcast_buffers"


def spread(learner: Learner) -> nn.Module:
    """The learner itself; with several processes wrapped, so that each backward averages its gradients over them.

    Its teacher is no submodule and is never wrapped: every process asks its own about its own share.

    Args:
        learner: with the same weights on every process.
    """
    if processes.count() == 1:
        return learner
    # Which parameters a step uses changes with the objectives' weights. This mode also keeps the order in which
    # gradients are summed from the first step on, so that a resumed run sums alike. Batch statistics are averaged by
    # `average_statistics`, and memories of losses are the same everywhere: nothing is to be broadcast.
    how: dict[str, Any] = {"find_unused_parameters": True, _SYNC_BUFFERS: False}
    return DistributedDataParallel(learner, **how)


def average_statistics(learner: nn.Module, share: float) -> None:
    """After a step: the running statistics of batch normalisation become those of the whole batch's shards together.

    Each process normalises by the statistics of its own shard. (SyncBatchNorm, which does it over all, is for GPUs
    alone.)

    Args:
        learner: in training mode.
        share: of the batch that this process had.
    """
    if processes.count() == 1:
        return
    layers = [module for module in learner.modules() if isinstance(module, _BatchNorm) and module.training]
    kept = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]
    processes.average_(kept, share)


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
