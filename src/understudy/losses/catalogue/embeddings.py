"""Embeddings: the last features, through a projector or the teacher's own classifier. Imports no torch."""

from understudy.losses.catalogue.row import Loss

ROWS: dict[str, Loss] = {
    "srrl": Loss(
        module="understudy.losses.srrl",
        class_name="SRRL",
        summary="The student's features have the teacher's means, and the teacher's last layer reads them rightly.",
        formula="α mean (f(r(F_s)) - f(F_t))² + β mean (W f(r(F_s)) - z_t)²",
        paper="Yang, Martinez, Bulat, Tzimiropoulos: Knowledge Distillation via Softmax Regression Representation "
        "Learning, ICLR 2021",
        link="https://openreview.net/forum?id=ZzwDy_wiWv",
        taps="last",
        cost="a 1×1 convolution and the teacher's last layer",
        source="SimKD's code, beside kd with weight 1: `srrl+kd`",
        presets={
            "default": {"labels": 1.0, "weight": 1.0, "features": 1.0, "logits": 1.0},
            "cls-kd": {"labels": 1.0, "weight": 1.0, "features": 1.0, "logits": 5.0},
        },
    ),
    "simkd": Loss(
        module="understudy.losses.simkd",
        class_name="SimKD",
        summary="The student's last map becomes the teacher's; the student keeps projector and teacher's last layer.",
        formula="mean (r(F_s) - F_t)²",
        paper="Chen, Mei, Zhang, Wang, Feng, Chen: Knowledge Distillation with the Reused Teacher Classifier, "
        "CVPR 2022",
        link="https://arxiv.org/abs/2203.14001",
        taps="last",
        cost="three convolutions, which stay in the exported student",
        source="the authors' code",
        presets={
            "default": {"labels": 0.0, "weight": 1.0, "factor": 2},
            "small": {"labels": 0.0, "weight": 1.0, "factor": 8},
        },
    ),
    "vkd": Loss(
        module="understudy.losses.vkd",
        class_name="VkD",
        summary="The student's embedding, turned but not stretched, follows the teacher's normalised one.",
        formula="mean h(P f_s, n(f_t)), P with orthonormal rows or columns, h Huber's loss",
        paper="Miles, Elezi, Deng: VkD: Improving Knowledge Distillation using Orthogonal Projections, CVPR 2024",
        link="https://arxiv.org/abs/2403.06213",
        taps="embedding",
        cost="an orthogonal matrix",
        source="formula of the paper; weight 1, for want of one that could be confirmed",
        presets={
            "default": {"labels": 1.0, "weight": 1.0, "normalize": "standardize"},
        },
    ),
    "srd": Loss(
        module="understudy.losses.srd",
        class_name="SRD",
        summary="The student's projected embedding follows the teacher's, both standardised over the batch.",
        formula="log Σ |x̂(W f_s) - x̂(f_t)|^p",
        paper="Miles, Mikolajczyk: Understanding the Role of the Projector in Knowledge Distillation, AAAI 2024",
        link="https://arxiv.org/abs/2303.11098",
        taps="embedding",
        cost="a linear layer",
        source="the authors' code, ResNet-34 to ResNet-18, beside kd at temperature 1",
        presets={"default": {"labels": 1.0, "weight": 2.0, "exponent": 4.0}},
    ),
}
