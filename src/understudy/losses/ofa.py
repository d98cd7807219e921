"""One for all: every stage of the student predicts the classes through a head, and follows the teacher's logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import above_zero, check_same_shape, class_numbers, in_float32, prepared, softened


class OFA(nn.Module):
    """Distillation between unlike architectures: features are compared where they mean the same, as classes.

    Each stage's feature goes through a head to K logits; those and the student's own are compared with the teacher's
    at temperature T: `-Σ_k ((softmax(z_t / T)_k + 1_y)^ε - 1_y) log softmax(z_s / T)_k`, with 1_y one for the labelled
    class and zero elsewhere, averaged over samples, summed over heads. ε above 1 gives the label more weight the surer
    the teacher is of it; ε = 1 is Hinton's cross entropy, without T².

    The heads: a map is halved by separable convolutions as often as it takes to reach the last stage's size (the last
    stage has a 1x1 convolution), averaged and projected; tokens go through transformer blocks, as many as stages
    follow, and are averaged. They belong to the loss, not to the student.

    Reference: Hao, Guo, Han, Tang, Hu, Wang, Xu, "One-for-All: Bridge the Gap Between Heterogeneous Architectures in
    Knowledge Distillation", NeurIPS 2023 (https://arxiv.org/abs/2310.19444); code: https://github.com/Hao840/OFAKD.
    Its heads are as wide as the wider of the two models, ours as the student's last stage; it merges patches before
    the transformer blocks and reads a class token where there is one.

    Args:
        epsilon: ε; the authors take 1 to 1.5.
        temperature: T.
    """

    # The student's logits come last, behind its features; of the teacher there are logits at most.
    with_logits = "student"

    def __init__(self, *, epsilon: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.temperature = above_zero("temperature", temperature)
        self.heads: nn.ModuleList | None = None

    def prepare(self, student: tuple[Tensor, ...], teacher: Tensor) -> None:
        """Make a head for each stage.

        Args:
            student: example (feature of a stage, ..., logits), as in `forward`.
            teacher: example logits.
        """
        *features, logits = student
        self.heads = nn.ModuleList(
            _map_head(feature, features[-1], logits.shape[1])
            if feature.ndim == 4
            else _token_head(feature, max(len(features) - 1 - place, 1), logits.shape[1])
            for place, feature in enumerate(features)
        )

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], teacher: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: the features of the stages in order, maps (N, C, H, W), tokens (N, L, C) or (N, C), and last the
                (N, K) logits.
            teacher: (N, K) logits; never a gradient.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        heads = prepared(self.heads)
        *features, logits = in_float32(*student)
        check_same_shape(logits, teacher)
        (teacher,) = in_float32(teacher.detach())
        own = class_numbers(labels).unsqueeze(1)
        targets = F.softmax(softened(teacher, self.temperature), dim=1)
        targets = (targets**self.epsilon).scatter(1, own, (targets.gather(1, own) + 1) ** self.epsilon - 1)
        predictions = [head(feature) for head, feature in zip(heads, features, strict=True)]
        log_students = F.log_softmax(softened(torch.stack([*predictions, logits]), self.temperature), dim=-1)
        return -(targets * log_students).sum() / len(logits)


class _TokenMean(nn.Module):
    """The mean over the tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.mean(dim=1)


def _map_head(feature: Tensor, last: Tensor, classes: int) -> nn.Module:
    channels, width = feature.shape[1], last.shape[1]
    halvings = round(math.log2(feature.shape[-1] / last.shape[-1])) if last.ndim == 4 else 0
    layers: list[nn.Module] = [] if halvings > 0 else [nn.Conv2d(channels, width, 1)]
    for step in range(halvings):
        out = width if step == halvings - 1 else 2 * channels
        layers.append(_halve(channels, out))
        channels = out
    return _initialised(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)))


def _halve(channels: int, out: int) -> nn.Module:
    """Two separable convolutions, the first with stride 2."""
    layers: list[nn.Module] = []
    for stride, to in ((2, channels), (1, out)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, to, 1, bias=False),
            nn.BatchNorm2d(to),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _token_head(feature: Tensor, blocks: int, classes: int) -> nn.Module:
    width = feature.shape[-1]
    if feature.ndim == 2:
        return _initialised(nn.Sequential(nn.Linear(width, classes)))
    layers = [
        nn.TransformerEncoderLayer(
            width, math.gcd(width, 4), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(blocks)
    ]
    return _initialised(nn.Sequential(*layers, _TokenMean(), nn.Linear(width, classes)))


def _initialised(head: nn.Sequential) -> nn.Module:
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return head
