"""A network that is never trained again, built to answer: BatchNorms folded into convolutions, channels last in memory.

`benchmarks/cache.py` measures what it saves.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from understudy.data.prepare import channels_last
from understudy.distill.heads import has_two_modules, one_answer
from understudy.distill.taps import logits_of, tapped

_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


def folded(model: nn.Module, *, spare: Iterable[str] = ()) -> tuple[nn.Module, int]:
    """A copy whose convolutions do what the BatchNorm after them did, which becomes an identity.

    Every module keeps its path, and every output but that of a folded convolution its value. Where nothing else reads
    a convolution is found by following the forward symbolically; of a module that cannot be followed, its children
    are.

    Args:
        model: any network, in evaluation mode; it is left as it is.
        spare: taps; a convolution whose output is one of them, or goes into a BatchNorm whose input is, is not folded.

    Returns:
        The copy, and how many pairs were folded.
    """
    spared = set(spare)
    if not any(type(layer) in _PAIRS.values() for layer in model.modules()):
        return model, 0
    pairs = [
        (convolution, norm)
        for convolution, norm in _pairs(model, "")
        if convolution not in spared and f"{norm}:input" not in spared
    ]
    if not pairs:
        return model, 0
    network = copy.deepcopy(model)
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(network.get_submodule(convolution), network.get_submodule(norm))  # pyright: ignore[reportArgumentType]
        network.set_submodule(convolution, fused)
        network.set_submodule(norm, nn.Identity())
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network.eval().requires_grad_(False), len(pairs)


class _Tracer(fx.Tracer):
    """Follows a forward down to the layers, whoever wrote them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a step of its own: torch's own, one without children, or a BatchNorm that does more."""
        is_layer = isinstance(m, nn.modules.batchnorm._BatchNorm) or not any(True for _ in m.children())
        return is_layer or super().is_leaf_module(m, module_qualified_name)


def _pairs(module: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """The paths of each convolution whose output goes into one BatchNorm and nowhere else, with that BatchNorm's."""
    try:
        graph = _Tracer().trace(module)
    except Exception:  # what a forward may do that cannot be followed has no end of types
        return [pair for name, child in module.named_children() for pair in _pairs(child, f"{prefix}{name}.")]
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times: dict[nn.Module, int] = {}
    for node in calls:
        called = module.get_submodule(node.target)
        times[called] = times.get(called, 0) + 1
    found = []
    for node in calls:
        norm, before = module.get_submodule(node.target), node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution = module.get_submodule(str(before.target))
        # Exactly these types: what is derived from them may do more. Without running means there is nothing to fold.
        fits = type(norm) is _PAIRS.get(type(convolution)) and getattr(norm, "running_mean", None) is not None
        if fits and times[norm] == times[convolution] == 1:
            found.append((f"{prefix}{before.target}", f"{prefix}{node.target}"))
    return found


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module, inputs: Tensor, taps: Iterable[str] = ()) -> float:
    """How far two networks' answers are apart, relative to the largest value of each.

    Args:
        model: the network to compare with.
        other: a folded copy of it.
        inputs: a batch as they take it.
        taps: whose outputs are compared beside the logits.
    """
    if inputs.device.type == "cuda":  # TensorFloat-32 is coarser than what is looked for
        model, other, inputs = copy.deepcopy(model).double(), copy.deepcopy(other).double(), inputs.double()
    pairs = zip(_outputs(model, inputs, taps), _outputs(other, channels_last(inputs), taps), strict=True)
    return max(float((one - two).abs().max() / one.abs().max().clamp_min(1e-12)) for one, two in pairs)


def _outputs(network: nn.Module, inputs: Tensor, taps: Iterable[str]) -> list[Tensor]:
    with tapped(network, taps) as features:
        logits = one_answer(network, inputs) if has_two_modules(network) else logits_of(network(inputs))
        return [logits, *features.values()]
