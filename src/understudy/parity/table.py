"""Which function computes which recorded case; the variants `__v2`, `__v3`, … of a case share it.

To add a family: write a file of functions like those of `hinton.py` and name them here.
"""

from dataclasses import dataclass

from understudy.parity import activations, dense, factors, features, gradients, hinton, logits, modern, relational
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
    "dml_zoo": logits.mutual,
    "dkd_mdistiller": logits.decoupled,
    "dkd_mdistiller_forward": logits.decoupled_with_labels,
    "dkd_mmrazor": logits.decoupled_mmrazor,
    "dkd_clskd": logits.decoupled_cls_kd,
    "nkd_clskd": logits.normalised,
    "dist_hunto_cls": logits.correlated,
    "dist_hunto_seg": logits.correlated,
    "dist_mmrazor": logits.correlated_mmrazor,
    "wsld_mmrazor": logits.weighted_mmrazor,
    "wsld_original": logits.weighted_original,
    "wsld_clskd": logits.weighted_cls_kd,
    "lskd_kd": logits.standardized_kd,
    "lskd_dkd": logits.standardized_dkd,
    "mlkd_original": logits.multi_level,
    "lskd_mlkd": logits.multi_level_standardized,
    "mlkd_parts": logits.multi_level_parts,
    "pkt_zoo": relational.pkt_zoo,
    "pkt_rep": relational.pkt,
    "pkt_author": relational.pkt,
    "pkt_author_supervised": relational.supervised_pkt,
    "sp_zoo": relational.sp,
    "sp_rep": relational.sp,
    "rkd_zoo": relational.rkd_zoo,
    "rkd_author_distance": relational.rkd_distance,
    "rkd_author_angle": relational.rkd_angle,
    "rkd_rep": relational.rkd_rep,
    "rkd_mmrazor": relational.rkd_mmrazor,
    "cc_zoo": relational.cc,
    "cc_rep_correlation": relational.cc_neighbours,
    "irg_zoo": relational.irg,
    "crd_rep": relational.crd_rep,
    "crd_rep_alias_drawn": relational.crd_rep_drawn,
    "crd_zoo": relational.crd_zoo,
    "crd_contrastloss": relational.crd_contrast,
    "crd_alias_table": relational.crd_alias,
    "reviewkd_hcl": modern.context,
    "reviewkd_abf": modern.fusion,
    "reviewkd_mdistiller": modern.reviewkd,
    "srrl_author": modern.srrl_author,
    "srrl_simkdrepo": modern.srrl_simkd,
    "srrl_clskd": modern.srrl_clskd,
    "simkd": modern.simkd,
    "catkd": modern.catkd,
    "mgd_author_det": dense.mgd_author,
    "mgd_author_cls": dense.mgd_author_channels,
    "mgd_mmrazor": dense.mgd_mmrazor,
    "mgd_seed2": dense.mgd_seed_2,
    "cwd_mmrazor": dense.cwd_mmrazor,
    "cwd_author": dense.cwd_author,
    "cwd_seed2": dense.cwd_seed_2,
    "pkd_mmrazor": dense.pkd,
    "vitkd_clskd": dense.vitkd,
    "featureloss_seed2": dense.feature_loss_seed_2,
    "seed2_weight_schedule": dense.weight_schedule_seed_2,
    "feat_keras_featuredistillation": features.keras_features,
    "hint_zoo": features.hint,
    "hint_rep_convreg": features.hint_regressed,
    "at_zoo": features.at_zoo,
    "at_rep": features.at,
    "at_szagoruyko": features.at,
    "at_mmrazor": features.at,
    "nst_zoo": features.nst,
    "nst_rep": features.nst,
    "fsp_zoo": features.fsp,
    "fsp_rep": features.fsp,
    "ft_zoo": factors.ft,
    "ft_zoo_paraphraser_reconstruction": factors.ft_reconstruction,
    "ft_author": factors.ft,
    "ft_mmrazor": factors.ft_without_factors,
    "ab_zoo": activations.ab_mean,
    "ab_rep": activations.ab_layers,
    "ab_author": activations.ab_sum,
    "ab_mmrazor": activations.ab_mmrazor,
    "ab_rep_connector": activations.ab_layers,
    "ofd_zoo": activations.ofd_batch,
    "ofd_author": activations.ofd_author,
    "ofd_mdistiller": activations.ofd_layers,
    "ofd_mmrazor": activations.ofd_distance,
    "afd_zoo": features.afd_channels,
    "afd_clovaai": features.afd,
    "vid_zoo": features.vid_zoo,
    "vid_rep": features.vid,
    "sobolev_zoo": gradients.sobolev,
    "bss_zoo_loss": gradients.bss,
    "bss_zoo_attack": gradients.bss_attack,
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
    # Only with a reduction other than `batchmean`.
    "dkd_mmrazor": Difference(
        reason="mmrazor passes size_average=False on to its divergence, so that `mean` is the plain sum, N times ours; "
        "ours is the mean over the samples",
        original=logits.decoupled_mmrazor_summed,
    ),
    "pkt_author_supervised": Difference(
        reason="the author's labels become probabilities in float32 whatever the student's precision is, 1/3 off by "
        "1e-8; ours have the student's",
        original=relational.supervised_pkt_rounded,
    ),
    # Only with other settings than those of the paper.
    "cwd_author": Difference(
        reason="the authors' criterion ignores its temperature with squared differences, and compares the first image "
        "alone where nothing is normalised; ours are the two divergences and the means of channels",
        original=dense.cwd_author_rest,
    ),
    "at_rep": Difference(
        reason="with an odd p RepDistiller adds up signed powers, so that activations of opposite sign cancel; ours "
        "takes their sizes, as the paper does. With an even p both agree",
        original=features.at_signed,
    ),
    "ft_rep": Difference(
        reason="RepDistiller sums a factor's channels to an attention map before it compares; the paper, its authors' "
        "code and ours compare the whole factors",
        original=factors.ft_of_attention,
    ),
    "lwm_zoo": Difference(
        reason="KD-Zoo weighs the gradients by their own means, where Grad-CAM, and ours, weigh the features",
        original=gradients.lwm_of_gradients,
    ),
}
