"""Maps and tokens position by position, as detectors, segmenters and transformers have them. Imports no torch."""

from understudy.losses.catalogue.row import Loss

ROWS: dict[str, Loss] = {
    "mgd": Loss(
        module="understudy.losses.mgd",
        class_name="MGD",
        summary="From a student map with holes, a small network generates the teacher's whole one.",
        formula="‖F_t - G(M · r(F_s))‖² / N",
        paper="Yang, Li, Shao, Shi, Yuan, Yuan: Masked Generative Distillation, ECCV 2022",
        link="https://arxiv.org/abs/2205.01529",
        taps="features",
        cost="two 3×3 convolutions of the teacher's width a tap",
        source="the authors' code, ResNet-34 to ResNet-18 on ImageNet",
        presets={
            "default": {"labels": 1.0, "weight": 7e-5, "mask": "channels", "ratio": 0.15},
            "dense": {"labels": 1.0, "weight": 2e-5, "mask": "positions", "ratio": 0.65},
            "segmentation": {"labels": 1.0, "weight": 2e-5, "mask": "positions", "ratio": 0.75},
            "seed-002": {"labels": 1.0, "weight": 6e-6, "ratio": 0.65, "align": False, "standardize": True},
        },
    ),
    "cwd": Loss(
        module="understudy.losses.cwd",
        class_name="CWD",
        summary="Each channel's distribution over the positions of the map follows the teacher's.",
        formula="T² / (N C) · Σ p_t log(p_t / p_s), p the softmax of a channel over positions",
        paper="Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021",
        link="https://arxiv.org/abs/2011.13256",
        taps="features",
        source="the authors' code, for the logits of segmentation",
        presets={
            "default": {"labels": 1.0, "weight": 3.0, "temperature": 4.0},
            "detection": {"labels": 1.0, "weight": 5.0, "temperature": 1.0},
            "seed-002": {"labels": 1.0, "weight": 1.0, "temperature": 1.0, "standardize": True},
        },
    ),
    "pkd": Loss(
        module="understudy.losses.pkd",
        class_name="PKD",
        summary="How each channel varies over batch and positions correlates with the teacher's.",
        formula="mean (x̂_s - x̂_t)² / 2, x̂ with mean 0 and deviation 1 in each channel",
        paper="Cao, Zhang, Gao, Cheng, Cheng, Cheng: PKD: General Distillation Framework for Object Detectors via "
        "Pearson Correlation Coefficient, NeurIPS 2022",
        link="https://arxiv.org/abs/2207.02039",
        taps="features",
        source="the authors' code (mmrazor), Faster R-CNN",
        presets={
            "default": {"labels": 1.0, "weight": 6.0},
            "one-stage": {"labels": 1.0, "weight": 10.0},
        },
    ),
    "fbkd": Loss(
        module="understudy.losses.fbkd",
        class_name="FBKD",
        summary="Features where either model looks, both attentions and relations of positions (detection).",
        formula="λ_f √Σ m (a(F_s) - F_t)² + λ_c ‖channels‖ + λ_p ‖positions‖ + λ_r ‖relations‖",
        paper="Zhang, Ma: Improve Object Detection with Feature-based Knowledge Distillation, ICLR 2021",
        link="https://openreview.net/forum?id=uKhGRvM8QNH",
        taps="features",
        cost="a non-local block a side and three convolutions a tap",
        source="mmrazor, Faster R-CNN",
        presets={"default": {"labels": 1.0, "weight": 1.0}},
    ),
    "vitkd": Loss(
        module="understudy.losses.vitkd",
        class_name="ViTKD",
        summary="Shallow tokens follow the teacher's; masked tokens of the last block are generated.",
        formula="α Σ ‖r(F_s) - F_t‖² / N + β Σ_masked ‖G(r(F_s)) - F_t‖² / (λ N)",
        paper="Yang, Li, Zeng, Li, Yuan, Li: ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation, 2022",
        link="https://arxiv.org/abs/2209.02432",
        taps="blocks",
        cost="a linear layer a block and two 3×3 convolutions",
        source="the authors' code (cls_KD), DeiT-III-S to DeiT-Ti, beside nkd",
        presets={"default": {"labels": 1.0, "weight": 1.0, "shallow": 3e-5, "deep": 3e-6, "ratio": 0.5}},
    ),
}
