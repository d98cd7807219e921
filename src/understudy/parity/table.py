"""Which function computes which recorded case; the variants `__v2`, `__v3`, … of a case share it.

To add a family: write a file of functions like those of `hinton.py` and name them here.
"""

from dataclasses import dataclass

from understudy.parity import hinton
from understudy.parity.recorded import Compute


@dataclass(frozen=True)
class Difference:
    """A deviation of an original that we do not reproduce, on purpose.

    It is declared of a case that no function of ours computes, or that ours does not reproduce while `original` does.

    Args:
        reason: what the original does, and what to use instead.
        original: what it computes, rewritten to show that we understand it; without, there is only the reason.
    """

    reason: str
    original: Compute | None = None


CASES: dict[str, Compute] = {
    "kd_zoo_softtarget": hinton.soft_target,
    "kd_rep_distillkl": hinton.soft_target,
    "kd_mdistiller": hinton.soft_target,
    "kd_szagoruyko": hinton.soft_and_hard,
    "kd_mmrazor_kl": hinton.mmrazor,
    "kd_clskd_ce": hinton.cross_entropy_form,
    "kd_seed0_function": hinton.seed_0_function,
    "kd_seed0_loop": hinton.seed_0_loop,
    "kd_seed1_loop": hinton.seed_1_loop,
    "kd_seed4_keras_distiller": hinton.keras_example,
    "kd_keras_logitsdistillation_instance": hinton.keras_logits,
    "kd_keras_distiller": hinton.keras_distiller,
    "deit_soft": hinton.deit_soft,
    "deit_hard": hinton.deit_hard,
    "deit_seed3": hinton.deit_of_kind,
    "logits_zoo": hinton.logit_mse,
}

_KERAS_CLIPS = (
    "Keras raises class probabilities below 1e-7 to 1e-7 before it takes logarithms, which cuts the gradient where "
    "the student is most wrong; ours works with logarithms throughout"
)

DIFFERENCES: dict[str, Difference] = {
    "kd_keras_logitsdistillation_default": Difference(
        reason="Keras 3.15.1's default loss string compares raw logits over T as if they were probabilities, without "
        "softmax and T²; ours is the one it documents, kd_keras_logitsdistillation_instance",
        original=hinton.keras_raw_logits,
    ),
    # These three only with some class below 1e-7.
    "kd_keras_logitsdistillation_instance": Difference(_KERAS_CLIPS, hinton.keras_logits_clipped),
    "kd_keras_distiller": Difference(_KERAS_CLIPS, hinton.keras_distiller_clipped),
    "kd_seed4_keras_distiller": Difference(_KERAS_CLIPS, hinton.keras_example_clipped),
}
