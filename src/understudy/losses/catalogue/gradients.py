"""Gradients and attacks: how a model answers to changes of its input. Imports no torch."""

from understudy.losses.catalogue.row import Loss

ROWS: dict[str, Loss] = {
    "lwm": Loss(
        module="understudy.losses.gradients",
        class_name="LwM",
        summary="What the student sees of a class (Grad-CAM) follows what the teacher sees.",
        formula="mean |M_s/‖M_s‖ - M_t/‖M_t‖|, M = max(0, Σ_c ᾱ_c F_c)",
        paper="Dhar, Singh, Peng, Wu, Chellappa: Learning without Memorizing, CVPR 2019",
        link="https://arxiv.org/abs/1811.08051",
        taps="last",
        cost="a backward pass of each model and a second one of the student",
        source="KD-Zoo, which taps the middle stage and weighs the gradients",
        presets={"default": {"labels": 1.0, "weight": 0.4}},
    ),
    "sobolev": Loss(
        module="understudy.losses.gradients",
        class_name="Sobolev",
        summary="The student's logits change with the image as the teacher's do (Jacobian matching).",
        formula="mean (J_s/‖J_s‖ - J_t/‖J_t‖)², J = ∂z[y] / ∂x",
        paper="Czarnecki, Osindero, Jaderberg, Świrszcz, Pascanu: Sobolev Training for Neural Networks, NeurIPS 2017",
        link="https://arxiv.org/abs/1706.04859",
        cost="a backward pass of each model and a second one of the student",
        source="KD-Zoo",
        presets={"default": {"labels": 1.0, "weight": 20.0}},
    ),
    "bss": Loss(
        module="understudy.losses.bss",
        class_name="BSS",
        summary="The student follows the teacher on images moved across the teacher's decision boundary.",
        formula="KL(softmax(z_t(x') / T) ‖ softmax(z_s(x') / T)), x' attacked",
        paper="Heo, Lee, Yun, Choi: Knowledge Distillation with Adversarial Samples Supporting Decision Boundary, "
        "AAAI 2019",
        link="https://arxiv.org/abs/1805.05532",
        cost="up to ten forwards and backwards of the teacher, one more forward of both",
        source="the authors' code, 80 epochs on CIFAR-10",
        presets={
            "default": {"labels": 1.0, "weight": {"start": 2.0, "end": 0.0, "epochs": 60}, "temperature": 3.0},
            "constant": {"labels": 1.0, "weight": 2.0, "temperature": 3.0},
        },
    ),
}
