"""What RepDistiller calls correlation congruence: errors of neighbours in the batch, side by side."""

from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32, prepared, weighted_sum


class CCNeighbours(nn.Module):
    """Errors of the embeddings are small, and not at the same place in two neighbouring samples.

    With linear embeddings r and `δ = |r_s(f_s) - r_t(f_t)|`: `mean_i δ_i · δ_{i+1}`. It depends on the
    order of the samples.

    Reference: under the name of Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
    (https://arxiv.org/abs/1904.01802) in https://github.com/HobbitLong/RepDistiller (BSD-2), from which the numbers
    that papers print for CC come. The paper's own formula is `CC`.

    Args:
        width: of the embeddings.
    """

    def __init__(self, *, width: int = 128) -> None:
        super().__init__()
        self.width = width
        self.embed_student: nn.Linear | None = None
        self.embed_teacher: nn.Linear | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the embeddings.

        Args:
            student: example features.
            teacher: example features.
        """
        self.embed_student = nn.Linear(student[0].numel(), self.width, device=student.device)
        self.embed_teacher = nn.Linear(teacher[0].numel(), self.width, device=student.device)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened; N at least 2.
            teacher: (N, E); it gets no gradient, but its embedding learns.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        embedded = prepared(self.embed_student)(student.flatten(1))
        errors = (embedded - prepared(self.embed_teacher)(teacher.flatten(1))).abs()
        if len(errors) == 1:
            return errors.sum() * 0.0
        return weighted_sum(errors[:-1], errors[1:]) / (len(errors) - 1)
