"""The teacher: frozen, in evaluation mode, and the same answer for an image whatever else was asked."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data.prepare import Preprocess, channels_last
from understudy.distill.frozen import difference, folded
from understudy.distill.heads import has_two_modules, one_answer
from understudy.distill.taps import StopForward, logits_of, tapped

if TYPE_CHECKING:
    from understudy.distill.cache import AnswerCache

# How far apart, relative to the largest value, a network and a copy built for answering may be.
_AGREES, _AGREES_IN_BF16 = 1e-4, 5e-2


@dataclass(frozen=True)
class Answer:
    """What the teacher says to one batch.

    Args:
        logits: (N, K); None where only features were asked for.
        features: tapped outputs by module path.
        members: (N, M, K) what each of several teachers says; None for a single one.
    """

    logits: Tensor | None
    features: dict[str, Tensor]
    members: Tensor | None = None

    def at(self, rows: Tensor | slice) -> "Answer":
        """The answers to some of the samples."""
        logits, members = (None if told is None else told[rows] for told in (self.logits, self.members))
        return Answer(logits, {path: feature[rows] for path, feature in self.features.items()}, members)


@dataclass(frozen=True)
class Place:
    """Where some images come from.

    Args:
        view: name of the view that all of them are seen in: with equal names and numbers the pixels are equal too.
            Empty where they are no view of one sample each.
        ids: (N,) numbers of the samples in their source.
    """

    view: str
    ids: Tensor


class Teacher:
    """A frozen model that answers batches; no module, so that nobody's parameters include it.

    Logits of one image differ in their last bits with the size of the batch it is in. So images are answered in
    chunks of one fixed size, the last one padded: an answer depends on its image alone.

    Args:
        model: any classifier; it is set to evaluation mode and its parameters stop requiring gradients.
        preprocess: from shared pixels to its input; None takes inputs as they come.
        chunk: images a forward; None answers each batch whole.
        columns: for each class of the student, the teacher's logit; None where both have the same order.

    `cache` is where the training loop keeps its answers; None asks each time. `network` is what answers: the model, or
    a copy that `freeze` made; `manner` is how it was made.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        chunk: int | None = None,
        columns: Sequence[int] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.network = self.model
        self.preprocess = preprocess
        self.chunk = chunk
        self.columns = None if columns is None else torch.tensor(columns)
        self.cache: AnswerCache | None = None
        self.manner: dict[str, Any] = {}
        self._precision: str | None = None
        self._compiled: nn.Module | None = None
        self._gives_probabilities: bool | None = None

    def __call__(self, images: Tensor, *, taps: Iterable[str] = (), logits: bool = True, graph: bool = False) -> Answer:
        """Answer a batch.

        Args:
            images: (N, C, H, W), as `preprocess` wants them.
            taps: module paths whose outputs are wanted too.
            logits: whether the logits are wanted; without them the forward stops at the deepest tap.
            graph: keep the graph from the images to the answer, for losses that compare input gradients; the images
                are then taken as they come, and answered in one forward.
        """
        inputs = images if self.preprocess is None or graph else self.preprocess(images)
        if graph:
            # Features and logits of one graph must be what one forward made: neither cut into chunks nor padded.
            with torch.enable_grad():
                return self._answer(self.model, inputs, taps, logits, None)
        bf16 = self._precision == "bf16"
        cast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16) if self._precision else nullcontext()
        network = self.network if self._compiled is None or taps or not logits else self._compiled
        with torch.no_grad(), cast:
            if "folded" in self.manner:
                inputs = channels_last(inputs)
            answer = self._answer(network, inputs, taps, logits, self.chunk)
        # As they would come from the cache: a sum over features has other last bits with another order in memory.
        return replace(answer, features={path: feature.contiguous() for path, feature in answer.features.items()})

    def answer(
        self, images: Tensor, places: Sequence[Place], *, taps: tuple[str, ...] = (), logits: bool = True
    ) -> Answer:
        """Answer a batch of which it is known where it comes from: from the cache, as far as there is one and it knows.

        Args:
            images: (N, C, H, W), as `preprocess` wants them.
            places: of the images, in their order.
            taps: module paths whose outputs are wanted too.
            logits: whether the logits are wanted.
        """
        if self.cache is None:
            return self(images, taps=taps, logits=logits)
        return self.cache.answer(self, images, places, taps=taps, logits=logits)

    def probe(self, example: Tensor, *, taps: Iterable[str] = (), graph: bool = False) -> Answer:
        """An answer that shows the shapes of all others, to a batch of images as the student takes them."""
        return self(example, taps=taps, graph=graph)

    @property
    def says(self) -> tuple[str, ...]:
        """What of an answer is no tapped feature."""
        return ("logits", "members") if hasattr(self.model, "shares") else ("logits",)

    def freeze(
        self,
        images: Tensor,
        *,
        taps: Iterable[str] = (),
        fold: bool = True,
        precision: str | None = None,
        compiled: bool = False,
    ) -> list[str]:
        """Answer from now on by a copy that is built for it; `model` stays as it is.

        Args:
            images: a real batch, which copy and model have to agree on.
            taps: whose outputs will be wanted.
            fold: fold BatchNorms into the convolutions before them.
            precision: `fp32` or `bf16`; None runs as its caller does.
            compiled: compile the network; not where features are tapped, which a compiled one does not show.

        Returns:
            What could not be had, one line each.
        """
        said, taps = [], tuple(taps)
        inputs = images if self.preprocess is None else self.preprocess(images)
        network, pairs = folded(self.model, spare=taps) if fold else (self.model, 0)
        apart = difference(self.model, network, inputs, taps) if pairs else 0.0
        if not apart <= _AGREES:
            said.append(f"its BatchNorms were not folded: that changes its answers by {apart:.1e} of the largest")
        elif pairs:
            self.network, self.manner = network, {"folded": pairs}
        if precision is not None:
            self._precision, self.manner = precision, {**self.manner, "arithmetic": precision}
        if compiled:
            said += self._compile(images, taps)
        return said

    def _compile(self, images: Tensor, taps: tuple[str, ...]) -> list[str]:
        if taps or has_two_modules(self.model):
            return ["it was not compiled: its features are tapped, which a compiled network does not show"]
        eager = self(images).logits
        try:
            self._compiled = torch.compile(self.network, dynamic=False)  # pyright: ignore[reportAttributeAccessIssue]
            found = self(images).logits
        except Exception as error:  # no compiler, or a network that it cannot follow
            self._compiled = None
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            return [f"it was not compiled: {reason}"]
        assert eager is not None
        assert found is not None
        apart = float((eager - found).abs().max() / eager.abs().max().clamp_min(1e-12))
        if not apart <= (_AGREES if self._precision != "bf16" else _AGREES_IN_BF16):
            self._compiled = None
            return [f"it was not compiled: that changes its answers by {apart:.1e} of the largest"]
        self.manner = {**self.manner, "compiled": True}
        return []

    def _answer(
        self, network: nn.Module, inputs: Tensor, taps: Iterable[str], logits: bool, chunk: int | None
    ) -> Answer:
        network.eval()
        # The compiled network is asked without taps, and hooks would have it compiled anew.
        hooks = nullcontext({}) if network is self._compiled else tapped(network, taps, stop=not logits)
        with hooks as features:
            if chunk is None:
                return self._forward(network, inputs, logits, features)
            return _joined([self._padded(network, part, chunk, logits, features) for part in inputs.split(chunk)])

    def _padded(
        self, network: nn.Module, part: Tensor, chunk: int, logits: bool, features: dict[str, Tensor]
    ) -> Answer:
        count = len(part)
        if count < chunk:
            part = F.pad(part, (0, 0) * (part.ndim - 1) + (0, chunk - count))
        return self._forward(network, part, logits, features).at(slice(count))

    def _forward(self, network: nn.Module, inputs: Tensor, logits: bool, features: dict[str, Tensor]) -> Answer:
        try:
            said = one_answer(network, inputs) if has_two_modules(network) else network(inputs)
        except StopForward:
            return Answer(None, dict(features))
        if not logits:
            return Answer(None, dict(features))
        members = said.get("members") if isinstance(said, Mapping) else None
        return Answer(self._as_logits(logits_of(said)), dict(features), members)

    def _as_logits(self, outputs: Tensor) -> Tensor:
        if self._gives_probabilities is None:
            self._gives_probabilities = are_probabilities(outputs)
        if self._gives_probabilities:
            outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        return outputs if self.columns is None else outputs[:, self.columns]

    @property
    def gives_probabilities(self) -> bool:
        """Whether its outputs turned out to be probabilities, so that their logarithms are taken as logits."""
        return bool(self._gives_probabilities)


def _joined(parts: list[Answer]) -> Answer:
    def cat(tensors: list[Any]) -> Any:
        return None if tensors[0] is None else torch.cat(tensors)

    features = {path: torch.cat([part.features[path] for part in parts]) for path in parts[0].features}
    return Answer(cat([part.logits for part in parts]), features, cat([part.members for part in parts]))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether every row of a batch of outputs lies in [0, 1] and sums to one.

    Args:
        outputs: (N, K) what a model gave.
    """
    rows = outputs.detach().float()
    if rows.ndim != 2 or rows.shape[1] < 2:
        return False
    in_range = bool((rows >= 0).all() and (rows <= 1).all())
    return in_range and bool(torch.allclose(rows.sum(1), torch.ones(len(rows), device=rows.device), atol=1e-3))
