"""Teachers from elsewhere: pipelines on schedules of their own, seen from ours."""

import math

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel

from understudy.errors import UserError
from understudy.tasks.diffusion import Process, Shape, build_unet, save_network
from understudy.tasks.diffusion.network import Network, StepClock, TableClock
from understudy.tasks.diffusion.recipe import DiffusionRecipe
from understudy.tasks.diffusion.store import Card, scheduler_for
from understudy.tasks.diffusion.teachers import Foreign, read_teacher

SHAPE = Shape(channels=8, multipliers=(1, 2), groups=4)


def unet():
    """A network in the layout of public DDPMs."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def recipe(**teacher):
    return DiffusionRecipe.model_validate(
        {"name": "x", "data": "digits", "teacher": {"weights": "somewhere", **teacher}, "steps": [4, 2]}
    )


def our_time(logsnr, process):
    """Where our schedule has that logsnr."""
    begin, end = (math.atan(math.exp(-limit / 2)) for limit in (process.logsnr_max, process.logsnr_min))
    return (torch.atan(torch.exp(-logsnr / 2)) - begin) / (end - begin)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_foreign_model_gives_the_image_that_its_own_scheduler_sees(tmp_path, betas, prediction):
    scheduler = DDPMScheduler(100, beta_schedule=betas, prediction_type=prediction, clip_sample=True)
    DDPMPipeline(unet(), scheduler).save_pretrained(tmp_path)
    teacher = read_teacher(recipe(weights=str(tmp_path)), None, size=None)
    assert isinstance(teacher.model, Foreign)
    assert not teacher.ours
    process, z = Process(), torch.randn(1, 1, 8, 8)
    for step in (0, 37, 98):
        kept = scheduler.alphas_cumprod[step].double()
        t = our_time(torch.log(kept) - torch.log1p(-kept), process)
        with torch.no_grad():
            theirs = scheduler.step(teacher.model.network.unet(z, step).sample, step, z).pred_original_sample
            ours = teacher.process.denoise(teacher.model, z, t.float()[None]).x
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_noise_beyond_what_a_foreign_model_knows_is_told_as_its_first_or_last_time():
    clock = TableClock((5.0, 1.0, -3.0))
    assert clock(torch.tensor([0.0, 1.0])).tolist() == [0.0, 2.0]
    assert clock.at(torch.tensor([3.0, 1.0, -2.0])).tolist() == [0.5, 1.0, 1.75]


def test_a_pipeline_that_we_saved_is_on_our_schedule(tmp_path):
    network = Network(build_unet(SHAPE, image=(1, 8, 8)), StepClock(1024)).eval()
    save_network(network, tmp_path / "ours", Card(Process(), 8, (1, 8, 8)))
    teacher = read_teacher(recipe(weights=str(tmp_path / "ours")), None, size=None)
    assert teacher.ours
    assert teacher.steps == 8
    # Also when diffusers alone saved it.
    DDIMPipeline(network.unet, scheduler_for(Process(), 1024)).save_pretrained(tmp_path / "theirs")
    again = read_teacher(recipe(weights=str(tmp_path / "theirs")), None, size=None)
    assert again.ours
    z, t = torch.randn(2, 1, 8, 8), torch.tensor([0.25, 1.0])
    assert torch.equal(again.model(z, t), network(z, t))


def test_what_cannot_be_distilled_is_one_clear_line(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler(10)).save_pretrained(tmp_path / "eps")
    with pytest.raises(UserError, match=r"predicts 'eps', not 'v' as teacher\.prediction says"):
        read_teacher(recipe(weights=str(tmp_path / "eps"), prediction="v"), None, size=None)
    with pytest.raises(UserError, match="knows no classes"):
        read_teacher(recipe(weights=str(tmp_path / "eps"), conditional=True), None, size=None)
    with pytest.raises(UserError, match="holds no diffusers pipeline"):
        read_teacher(recipe(weights=str(tmp_path)), None, size=None)
    network = Network(build_unet(SHAPE, image=(1, 8, 8), classes=3))
    save_network(network, tmp_path / "ours", Card(Process(-9.0, 9.0), 8, (1, 8, 8), classes=tuple("abc")))
    with pytest.raises(UserError, match=r"draws by class: set teacher\.conditional=true"):
        read_teacher(recipe(weights=str(tmp_path / "ours")), None, size=None)
    with pytest.raises(UserError, match=r"from logsnr -9 to 9: set process.logsnr_min"):
        read_teacher(recipe(weights=str(tmp_path / "ours"), conditional=True), None, size=None)
    with pytest.raises(UserError, match="does not say its schedule"):
        read_teacher(recipe(weights=None, name="python:unet"), unet(), size=None)
    with pytest.raises(UserError, match="the teacher is a function: wanted a module"):
        read_teacher(recipe(weights=None, name="python:f"), lambda z, t, y: z, size=None)
    with pytest.raises(UserError, match="pass the same object again"):
        read_teacher(recipe(weights=None, name="python:unet"), None, size=None)
