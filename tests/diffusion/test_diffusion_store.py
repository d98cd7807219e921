"""What is saved: pipelines that diffusers samples as we do, and networks that come back as they were."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline

from understudy.errors import UserError
from understudy.tasks.diffusion import (
    Network,
    Process,
    Shape,
    StepClock,
    build_unet,
    load_network,
    sample,
    save_network,
)
from understudy.tasks.diffusion.guidance import Guided, learns_guidance, with_guidance
from understudy.tasks.diffusion.pipeline import ClassConditionalPipeline
from understudy.tasks.diffusion.store import Card, scheduler_for, why_no_pipeline

SHAPE = Shape(channels=8, multipliers=(1, 2), groups=4)


def network(classes: int = 0, channels: int = 1) -> Network:
    torch.manual_seed(1)
    unet = build_unet(SHAPE, image=(channels, 8, 8), classes=classes)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return Network(unet, StepClock(1024)).eval()


def as_shown(images):
    """What pipelines return of an image."""
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("prediction", ["v", "x"])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_plain_diffusers_samples_a_saved_student_as_we_do(tmp_path, prediction, steps):
    student, process = network(channels=3), Process(prediction=prediction)
    save_network(student, tmp_path, Card(process, steps, (3, 8, 8)))
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipeline) is DDIMPipeline
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2, num_inference_steps=steps, generator=torch.Generator().manual_seed(3), output_type="np"
    ).images
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = as_shown(sample(student, noise, steps, process=process))
    assert np.abs(ours - theirs).max() <= 1e-5


def test_a_class_conditional_student_is_a_pipeline_that_takes_classes_and_knows_its_steps(tmp_path):
    student, process = network(classes=5), Process()
    save_network(student, tmp_path, Card(process, 4, (1, 8, 8), classes=tuple("abcde")))
    labels = torch.tensor([0, 4, 2])
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    ours = as_shown(sample(student, noise, 4, labels, process=process))
    for pipeline in (
        ClassConditionalPipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=str(tmp_path), trust_remote_code=True),
    ):
        pipeline.set_progress_bar_config(disable=True)
        theirs = pipeline([0, 4, 2], generator=torch.Generator().manual_seed(3), output_type="np").images
        assert np.abs(ours - theirs).max() <= 1e-5
    assert type(pipeline).__name__ == "ClassConditionalPipeline"


def test_the_number_of_steps_is_in_the_card_and_the_readme(tmp_path):
    save_network(network(), tmp_path, Card(Process(), 4, (1, 8, 8)))
    assert json.loads((tmp_path / "understudy.json").read_text())["steps"] == 4
    assert "num_inference_steps=4" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("limits", [(-20.0, 20.0), (-9.0, 9.0)])
def test_the_exported_scheduler_has_our_noise_at_every_time(limits):
    process = Process(*limits)
    scheduler = scheduler_for(process, 64)
    kept = torch.sigmoid(process.logsnr(torch.arange(1, 65, dtype=torch.float64) / 64))
    assert torch.allclose(scheduler.alphas_cumprod.double(), kept, atol=1e-6)


def test_what_stock_pipelines_cannot_sample_says_why():
    assert "both" in (why_no_pipeline(network(), Process(prediction="both")) or "")
    assert "fresh noise" in (why_no_pipeline(network(), Process(), "consistency") or "")
    assert "no UNet2DModel" in (why_no_pipeline(torch.nn.Linear(1, 1), Process()) or "")
    assert why_no_pipeline(network(), Process()) is None


def test_a_loaded_network_answers_with_the_same_bits(tmp_path):
    student = network(classes=3)
    save_network(student, tmp_path, Card(Process(), 2, (1, 8, 8), classes=tuple("abc")))
    again = load_network(str(tmp_path))
    z, t, y = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.0]), torch.tensor([2, 0])
    assert torch.equal(again(z, t, y), student(z, t, y))
    assert again.card.steps == 2


def test_ones_own_module_is_saved_and_needs_its_object_again(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, z, t, y=None):
            return self.layer(z)

    module = Own()
    save_network(module, tmp_path, Card(Process(), 2, (1, 8, 8)))
    assert torch.equal(load_network(tmp_path, Own).layer.weight, module.layer.weight)
    with pytest.raises(UserError, match="pass the same object again"):
        load_network(tmp_path)


def test_labels_for_an_unconditional_network_and_none_for_a_conditional_one_are_refused():
    z, t = torch.randn(1, 1, 8, 8), torch.ones(1)
    with pytest.raises(UserError, match="knows no classes"):
        network()(z, t, torch.tensor([1]))
    with pytest.raises(UserError, match="draws a class: say which"):
        network(classes=3)(z, t)


def test_guidance_is_the_models_answer_led_away_from_no_class():
    model = network(classes=4)
    z, t, y = torch.randn(3, 1, 8, 8), torch.rand(3), torch.tensor([0, 1, 2])
    null = torch.full_like(y, 3)
    wanted = 3 * model(z, t, y) - 2 * model(z, t, null)
    assert torch.allclose(Guided(model, 3, 2.0)(z, t, y), wanted, atol=1e-6)
    assert torch.allclose(Guided(model, 3)(z, t, with_guidance(y, 2.0)), wanted, atol=1e-6)
    assert torch.equal(Guided(model, 3, 0.0)(z, t, y), model(z, t, y))


def test_a_student_that_learns_guidance_begins_as_its_teacher():
    plain, z, t, y = network(classes=4), torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 3])
    before = plain(z, t, y)
    learner = learns_guidance(plain)
    assert torch.equal(learner(z, t, with_guidance(y, torch.tensor([0.0, 3.0]))), before)


def test_learnt_guidance_is_saved_at_one_strength_and_can_be_changed(tmp_path):
    student = learns_guidance(network(classes=4))
    torch.nn.init.normal_(student.unet.class_embedding.strength[2].weight, std=0.3)
    save_network(student, tmp_path, Card(Process(), 4, (1, 8, 8), classes=tuple("abc"), guidance=1.0))
    z, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 2])
    with torch.no_grad():
        at_one, at_three = (student(z, t, with_guidance(y, strength)) for strength in (1.0, 3.0))
        assert torch.allclose(load_network(tmp_path)(z, t, y), at_one, atol=1e-5)
        assert torch.allclose(load_network(tmp_path, guidance=3.0)(z, t, y), at_three, atol=1e-5)
        assert not torch.allclose(at_one, at_three, atol=1e-3)
        assert torch.equal(load_network(tmp_path, unfolded=True)(z, t, with_guidance(y, 3.0)), at_three)
    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path)
    assert pipeline.unet.config.num_class_embeds == 4
    save_network(network(classes=3), tmp_path / "plain", Card(Process(), 4, (1, 8, 8), classes=tuple("abc")))
    with pytest.raises(UserError, match="has not learnt guidance"):
        load_network(tmp_path / "plain", guidance=2.0)


def test_a_folder_that_holds_none_of_ours_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="holds no diffusion model"):
        load_network(tmp_path)
    (tmp_path / "understudy.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_network(tmp_path)
