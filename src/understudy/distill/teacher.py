"""The teacher: frozen, in evaluation mode, and the same answer for an image whatever else was asked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.data.prepare import Preprocess
from understudy.distill.heads import has_two_modules, one_answer
from understudy.distill.taps import StopForward, logits_of, tapped

if TYPE_CHECKING:
    from understudy.distill.cache import AnswerCache


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


class Teacher:
    """A frozen model that answers batches; no module, so that nobody's parameters include it.

    Logits of one image differ in their last bits with the size of the batch it is in. So images are answered in
    chunks of one fixed size, the last one padded: an answer depends on its image alone.

    Args:
        model: any classifier; it is set to evaluation mode and its parameters stop requiring gradients.
        preprocess: from shared pixels to its input; None takes inputs as they come.
        chunk: images a forward; None answers each batch whole.
        columns: for each class of the student, the teacher's logit; None where both have the same order.

    `cache` is where the training loop keeps its answers; None asks each time.
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
        self.preprocess = preprocess
        self.chunk = chunk
        self.columns = None if columns is None else torch.tensor(columns)
        self.cache: AnswerCache | None = None
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
        with torch.set_grad_enabled(graph):
            # Features and logits of one graph must be what one forward made: neither cut into chunks nor padded.
            return self._answer(inputs, taps, logits, None if graph else self.chunk)

    def _answer(self, inputs: Tensor, taps: Iterable[str], logits: bool, chunk: int | None) -> Answer:
        self.model.eval()
        with tapped(self.model, taps, stop=not logits) as features:
            if chunk is None:
                return self._forward(inputs, logits, features)
            return _joined([self._padded(part, logits, features) for part in inputs.split(chunk)])

    def _padded(self, part: Tensor, logits: bool, features: dict[str, Tensor]) -> Answer:
        assert self.chunk is not None
        count = len(part)
        if count < self.chunk:
            part = F.pad(part, (0, 0) * (part.ndim - 1) + (0, self.chunk - count))
        return self._forward(part, logits, features).at(slice(count))

    def _forward(self, inputs: Tensor, logits: bool, features: dict[str, Tensor]) -> Answer:
        try:
            said = one_answer(self.model, inputs) if has_two_modules(self.model) else self.model(inputs)
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
