"""Students with two heads: who reads which, and what they answer."""

import pytest
import torch
from torch import nn

import understudy as us
from understudy.data import Preprocess
from understudy.distill.heads import ask_heads, combine, one_answer
from understudy.distill.teacher import Teacher
from understudy.errors import UserError
from understudy.evaluate import asking_each
from understudy.models import build
from understudy.recipe.schema import Model

pytest.importorskip("timm")


def vit(tokens: int = 2, **options) -> nn.Module:
    torch.manual_seed(0)
    model = Model(**{"name": "vit", "patch": 4, "width": 12, "depth": 2, "heads": 2, "tokens": tokens, **options})
    return build(model, classes=5, shape=(1, 8, 8))


class Fixed(nn.Module):
    """A teacher that says the same to every image."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 5.0, -1.0, 0.5]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def distiller(student: nn.Module, *objectives: us.Objective, teacher: bool = True) -> us.Distiller:
    return us.Distiller(
        student=student, teacher=Fixed() if teacher else None, objectives=objectives, example=IMAGES[:2]
    )


def labels(**options) -> us.Objective:
    return us.Objective(us.losses.CrossEntropy(), 0.5, name="labels", **options)


def hard(**options) -> us.Objective:
    return us.Objective(us.losses.HardLabel(), 0.5, name="hard", **options)


def own_losses(student: nn.Module) -> dict[str, torch.Tensor]:
    """Cross entropies of both heads with labels and teacher, from the pair that timm's model gives in training."""
    of_class, of_teacher = student.train()(IMAGES)
    told = torch.full_like(LABELS, 2)
    return {
        f"{head} {name}": nn.functional.cross_entropy(logits, target)
        for head, logits in (("class", of_class), ("distillation", of_teacher))
        for name, target in (("labels", LABELS), ("hard", told))
    }


# Who reads what


def test_by_default_it_is_deit_labels_for_the_class_head_and_the_teacher_for_the_other():
    student = vit()
    losses = distiller(student, labels(), hard())(IMAGES, LABELS)
    expected = own_losses(student)
    torch.testing.assert_close(losses.parts["labels"], expected["class labels"])
    torch.testing.assert_close(losses.parts["hard"], expected["distillation hard"])
    torch.testing.assert_close(losses.total, 0.5 * expected["class labels"] + 0.5 * expected["distillation hard"])
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught on the class head"])
def test_a_head_that_no_teacher_teaches_learns_the_labels_too(taught: bool):
    student = vit()
    objectives = [labels(), hard(head="class")] if taught else [labels()]
    losses = distiller(student, *objectives, teacher=taught)(IMAGES, LABELS)
    expected = own_losses(student)
    both = (expected["class labels"] + expected["distillation labels"]) / 2
    torch.testing.assert_close(losses.parts["labels"], both)
    if taught:
        torch.testing.assert_close(losses.parts["hard"], expected["class hard"])


def test_an_objective_without_weight_teaches_no_head():
    silent = us.Objective(us.losses.HardLabel(), 0.0)
    student = vit()
    losses = distiller(student, labels(), silent)(IMAGES, LABELS)
    expected = own_losses(student)
    both = (expected["class labels"] + expected["distillation labels"]) / 2
    torch.testing.assert_close(losses.parts["labels"], both)


def test_an_objective_on_features_alone_teaches_no_head():
    features = us.Objective(us.losses.FeatureRegression(), student_tap="blocks.0", teacher_tap="blocks.0")
    together = us.Distiller(student=vit(), teacher=vit(), objectives=[labels(), features], example=IMAGES[:2])
    assert {objective.name: objective.reads for objective in together.objective_list()}["labels"] == "each"


@pytest.mark.parametrize("head", ["class", "distillation", "each"])
def test_the_head_can_be_named(head: str):
    student = vit()
    losses = distiller(student, labels(head="class"), hard(head=head))(IMAGES, LABELS)
    expected = own_losses(student)
    wanted = {
        "class": expected["class hard"],
        "distillation": expected["distillation hard"],
        "each": (expected["class hard"] + expected["distillation hard"]) / 2,
    }
    torch.testing.assert_close(losses.parts["hard"], wanted[head])


def test_half_labelled_batches_teach_both_heads_where_they_can():
    student = vit()
    losses = distiller(student, labels(), hard())(IMAGES, LABELS, labelled=torch.tensor([1, 4]))
    of_class, of_teacher = student(IMAGES)
    expected = nn.functional.cross_entropy(of_class[[1, 4]], LABELS[[1, 4]])
    torch.testing.assert_close(losses.parts["labels"], expected)
    told = torch.full_like(LABELS, 2)
    torch.testing.assert_close(losses.parts["hard"], nn.functional.cross_entropy(of_teacher, told))


def test_one_head_is_what_all_read():
    student = vit(tokens=1)
    losses = distiller(student, labels(), hard())(IMAGES, LABELS)
    logits = student(IMAGES)
    torch.testing.assert_close(losses.parts["labels"], nn.functional.cross_entropy(logits, LABELS))


@pytest.mark.parametrize("head", ["distillation", "each"])
def test_a_second_head_that_is_not_there_is_refused(head: str):
    with pytest.raises(UserError, match=f"'hard' reads the head '{head}', but the student has one: take one with two"):
        distiller(vit(tokens=1), labels(), hard(head=head))


def test_what_is_read_is_described():
    lines = distiller(vit(), labels(), hard()).describe()
    assert lines[1].endswith("hard on logits of the distillation head")


# What is answered


def test_the_two_heads_are_read_in_either_mode_and_from_models_that_are_not_timms():
    class Original(nn.Module):
        """As DeiT's own class: a pair in training, the mean in evaluation."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.head_dist = nn.Linear(64, 5), nn.Linear(64, 5)

        def forward(self, images: torch.Tensor):
            flat = images.flatten(1)
            of_class, of_teacher = self.head(flat), self.head_dist(flat)
            return (of_class, of_teacher) if self.training else (of_class + of_teacher) / 2

    model = Original()
    of_class, of_teacher = model(IMAGES)
    for training in (True, False):
        found = ask_heads(model.train(training), IMAGES)
        assert torch.equal(found[0], of_class)
        assert torch.equal(found[1], of_teacher)
    torch.testing.assert_close(one_answer(model, IMAGES), model(IMAGES))


def test_transformers_outputs_name_their_heads():
    transformers = pytest.importorskip("transformers")
    config = transformers.DeiTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=12, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, num_labels=5,
    )  # fmt: skip
    model = transformers.DeiTForImageClassificationWithTeacher(config).eval()
    output = model(IMAGES)
    of_class, of_teacher = ask_heads(model, IMAGES)
    torch.testing.assert_close(of_class, output.cls_logits)
    torch.testing.assert_close(of_teacher, output.distillation_logits)
    torch.testing.assert_close(one_answer(model, IMAGES), output.logits)


def test_the_papers_answer_is_the_sum_of_the_softmaxes_and_the_codes_the_mean_of_the_logits():
    of_class, of_teacher = torch.randn(2, 500, 10, generator=torch.Generator().manual_seed(0)) * 2
    softmaxes = of_class.softmax(1) + of_teacher.softmax(1)
    torch.testing.assert_close(combine(of_class, of_teacher, "sum_softmax").exp(), softmaxes / 2)
    torch.testing.assert_close(combine(of_class, of_teacher, "mean"), (of_class + of_teacher) / 2)
    decisions = [combine(of_class, of_teacher, how).argmax(1) for how in ("mean", "sum_softmax")]
    assert not torch.equal(*decisions)
    assert torch.equal(decisions[1], softmaxes.argmax(1))


@pytest.mark.parametrize("answer", ["mean", "sum_softmax", "class", "distillation"])
def test_a_built_model_answers_as_its_recipe_says_and_so_it_does_as_a_teacher(answer: str):
    model = vit(answer=answer).eval()
    of_class, of_teacher = ask_heads(model, IMAGES)
    expected = combine(of_class, of_teacher, answer)
    torch.testing.assert_close(one_answer(model, IMAGES), expected)
    torch.testing.assert_close(Teacher(model)(IMAGES).logits, expected)
    said = asking_each(model, Preprocess())(IMAGES)
    torch.testing.assert_close(said[""], expected)
    torch.testing.assert_close(said["class"], of_class)
    torch.testing.assert_close(said["distillation"], of_teacher)


def test_each_head_is_scored():
    model = vit()
    images = (torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 255).to(torch.uint8)
    truth = torch.arange(40) % 5
    scores = us.evaluate(model, data=(images, truth))
    of_class, of_teacher = ask_heads(model.eval(), images.float() / 255)
    answers = {
        "accuracy": (of_class + of_teacher) / 2,
        "accuracy[class]": of_class,
        "accuracy[distillation]": of_teacher,
    }
    for name, logits in answers.items():
        assert scores[name] == pytest.approx((logits.argmax(1) == truth).float().mean().item())
    assert "accuracy[class]" not in us.evaluate(vit(tokens=1), data=(images, truth))
