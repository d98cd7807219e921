"""How the samples of a batch lie to each other: SP, RKD, PKT and CC. Sample weights have no meaning to these."""

import math
from typing import Any

import keras

from understudy.keras.losses.base import Loss
from understudy.keras.losses.functional import Features, Tensor, in_float32, length, mean_square, paired, rows, scaled
from understudy.keras.operations import ops

_TINY = 1e-12
# Squared distances this much smaller than the squared lengths are rounding in float32.
_ROUNDING = 1e-12


@keras.saving.register_keras_serializable("understudy")
class SP(Loss):
    """The similarities between the samples of a batch follow the teacher's.

    With A the flattened maps, one row a sample, and G = rows of A Aᵀ scaled to length 1: `‖G_t - G_s‖² / N²`, summed
    over taps.

    Reference: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1907.09682), equations 1 to 4, as https://github.com/HobbitLong/RepDistiller (BSD-2).
    """

    def call(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, ...) features of one tap or of several.
            teacher: as many, of any width and size; never a gradient.

        Returns:
            A scalar.
        """
        return sum(mean_square(_similarities(ours), _similarities(theirs)) for ours, theirs in paired(student, teacher))


def _similarities(features: Tensor) -> Tensor:
    return scaled(_products(rows(features)))


@keras.saving.register_keras_serializable("understudy")
class RKD(Loss):
    """Distances between pairs and angles within triplets of samples follow the teacher's.

    With d the distances over their mean and h Huber's loss:
    `λ_d mean_ij h(d_s, d_t) + λ_a mean_ijk h(cos∠_s(ijk), cos∠_t(ijk))`.

    Reference: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019 (https://arxiv.org/abs/1904.05068),
    equations 4 to 9; code https://github.com/lenscloth/RKD. As there, the means run over all N² pairs and N³
    triplets, those of a sample with itself included as zeros.

    Args:
        distance: λ_d, the weight of the distances.
        angle: λ_a, the weight of the angles.
        normalize: scale each embedding to length 1 first, as mmrazor does by default.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, distance: float = 25.0, angle: float = 50.0, normalize: bool = False, **layer: Any) -> None:
        super().__init__(**layer)
        self.distance = distance
        self.angle = angle
        self.normalize = normalize

    def call(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            teacher: (N, E), with another width where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = (rows(features) for features in in_float32(student, ops.stop_gradient(teacher)))
        if self.normalize:
            student, teacher = scaled(student), scaled(teacher)
        of_student, of_teacher = _relations(student), _relations(teacher)
        total = 0.0 * ops.sum(student)
        if self.distance:
            total = total + self.distance * _huber(_distances(*of_student), _distances(*of_teacher))
        if self.angle:
            total = total + self.angle * _huber(_cosines(*of_student), _cosines(*of_teacher))
        return total


def _relations(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N, D) differences from each sample to each, and their squared lengths (N, N), 0 for two in one place."""
    # Differences first: squared distances from inner products cancel, and not every backend has float64 to spare.
    differences = ops.expand_dims(embeddings, 0) - ops.expand_dims(embeddings, 1)
    squares = ops.sum(ops.square(differences), axis=-1)
    # A compiler may round the two sides of a difference apart: what is left of equal samples is no direction.
    lengths = ops.sum(ops.square(embeddings), axis=-1)
    rounding = _ROUNDING * (ops.expand_dims(lengths, 0) + ops.expand_dims(lengths, 1))
    return differences, ops.where(squares > ops.stop_gradient(rounding), squares, ops.zeros_like(squares))


def _distances(differences: Tensor, squares: Tensor) -> Tensor:
    """(N, N) distances over the mean of the N (N - 1) that are between two samples."""
    apart = squares > 0
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)
    samples = ops.cast(ops.shape(squares)[0], squares.dtype)
    pairs = ops.maximum(samples * (samples - 1), 1.0)
    return distances / ops.maximum(ops.sum(distances) / pairs, _TINY)


def _cosines(differences: Tensor, squares: Tensor) -> Tensor:
    """(N, N, N) cosines of the angles at sample i between the directions to j and to k."""
    apart = squares > 0
    # Two samples in one place have no direction.
    inverse = ops.where(apart, ops.rsqrt(ops.where(apart, squares, 1.0)), 0.0)
    directions = differences * ops.expand_dims(inverse, -1)
    return ops.matmul(directions, ops.transpose(directions, (0, 2, 1)))


def _huber(student: Tensor, teacher: Tensor) -> Tensor:
    error = ops.abs(student - teacher)
    return ops.mean(ops.where(error < 1, 0.5 * ops.square(error), error - 0.5))


@keras.saving.register_keras_serializable("understudy")
class PKT(Loss):
    """Each sample's similarities to the batch, as probabilities, follow the teacher's.

    With s = (1 + cos) / 2 and P = s with rows that add up to 1: `mean_ij P_t log((P_t + ε) / (P_s + ε))`.

    Reference: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018
    (https://arxiv.org/abs/1803.10837); code https://github.com/passalis/probabilistic_kt (MIT). As there, a sample's
    similarity to itself is counted and the mean is over all N² pairs, N times smaller than a KL divergence.

    Args:
        eps: keeps the logarithm finite; Knowledge-Distillation-Zoo has 1e-6.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, eps: float = 1e-7, **layer: Any) -> None:
        super().__init__(**layer)
        self.eps = eps

    def call(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            teacher: (N, E), with another width where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = (self._chances(each) for each in in_float32(student, ops.stop_gradient(teacher)))
        # Rows add up to 1 on both sides, so that taking off their difference changes nothing but the rounding: terms
        # of one sign cannot cancel.
        difference = teacher - student
        return ops.mean(teacher * ops.log1p(difference / (student + self.eps)) - difference)

    def _chances(self, features: Tensor) -> Tensor:
        embeddings = rows(features)
        similar = (_products(embeddings / (length(embeddings, 1, keepdims=True) + self.eps)) + 1) / 2
        return similar / ops.sum(similar, axis=1, keepdims=True)


@keras.saving.register_keras_serializable("understudy")
class CC(Loss):
    """The correlations between the samples of a batch follow the teacher's.

    With f the embeddings scaled to length 1 and the Gaussian kernel written as its series in their inner products,
    `K = Σ_p≤P exp(-2γ) (2γ)^p / p! · (f_i · f_j)^p`: `‖K_t - K_s‖² / N²`.

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01802), equations 4 to 7; the conventions of
    https://github.com/AberHu/Knowledge-Distillation-Zoo.

    Args:
        gamma: γ, the kernel's sharpness.
        order: P, where the series ends.
        layer: settings of every loss, see `Loss`.
    """

    def __init__(self, *, gamma: float = 0.4, order: int = 2, **layer: Any) -> None:
        super().__init__(**layer)
        if order < 0:
            raise ValueError(f"order must be 0 or more, not {order}")
        self.gamma = gamma
        self.order = order

    def call(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            teacher: (N, E), with another width where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, ops.stop_gradient(teacher))
        return mean_square(self._kernel(student), self._kernel(teacher))

    def _kernel(self, features: Tensor) -> Tensor:
        products = _products(scaled(rows(features)))
        kernel = ops.zeros_like(products)
        # Horner's scheme, from the last term of the series to the constant one.
        for power in range(self.order, -1, -1):
            kernel = kernel * products + (2 * self.gamma) ** power / math.factorial(power)
        return math.exp(-2 * self.gamma) * kernel


def _products(embeddings: Tensor) -> Tensor:
    """(N, N) inner products."""
    return ops.matmul(embeddings, ops.transpose(embeddings))
