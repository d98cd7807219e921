"""Saves a network as a diffusers pipeline that samples as we do, and loads what was saved."""

import copy
import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors.torch import load_file
from torch import nn

from understudy.errors import UserError
from understudy.models.store import write_tensors
from understudy.tasks.diffusion import pipeline as pipeline_file
from understudy.tasks.diffusion.guidance import ClassAndStrength, at_strength, has_guidance, learns_guidance
from understudy.tasks.diffusion.network import Network, StepClock, clock_from_json, plain_heads, set_heads
from understudy.tasks.diffusion.process import Process
from understudy.train.files import write_atomically

CARD = "understudy.json"
_GUIDANCE, _PLAIN = "guidance.safetensors", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """What a saved network must know about itself.

    Args:
        process: its schedule and prediction.
        steps: the number of steps that it was distilled to, or its teacher is used with.
        shape: (C, H, W) of its images.
        classes: their names, where it draws by class.
        guidance: the strength that it was saved at, where it has learnt guidance.
        learnt: the lowest and highest strength that it has learnt.
        sampler: `ddim`, or `consistency`.
        text: one sentence for the model card.
    """

    process: Process
    steps: int
    shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    guidance: float | None = None
    learnt: tuple[float, float] | None = None
    sampler: str = "ddim"
    text: str = field(default="", compare=False)


def scheduler_for(process: Process, count: int) -> DDIMScheduler:
    """The diffusers scheduler that takes our steps: our noise at each of `count` times, and no clipping.

    Any number of steps that divides `count` gives our sampler's result.

    Args:
        process: its schedule and prediction (`v` or `x`).
        count: time steps, those of the network's clock.
    """
    times = torch.arange(1, count + 1, dtype=torch.float64) / count
    kept = torch.sigmoid(process.logsnr(times))
    betas = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return DDIMScheduler(
        num_train_timesteps=count,
        trained_betas=betas.tolist(),
        prediction_type="v_prediction" if process.prediction == "v" else "sample",
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
        clip_sample=False,  # the stock pipeline would cut x but keep the eps that it had before
    )


def why_no_pipeline(network: nn.Module, process: Process, sampler: str = "ddim") -> str | None:
    """What keeps a network from being sampled by diffusers' own pipelines; None where nothing does."""
    if not isinstance(network, Network):
        return "it is no UNet2DModel"
    if not isinstance(network.clock, StepClock):
        return "it is told the time in another way than diffusers' schedulers do (a recipe's `convert` changes that)"
    if process.prediction not in ("v", "x"):
        return f"diffusers cannot sample a prediction of '{process.prediction}' exactly"
    if plain_heads(network.unet) is not None:
        return "its attention heads differ in size, which UNet2DModel's configuration cannot say"
    return "it is sampled with fresh noise at each step" if sampler != "ddim" else None


def save_network(network: nn.Module, folder: str | Path, card: Card) -> None:
    """Write a network: as a diffusers pipeline where one samples it exactly, else for `load_network` alone.

    A network that has learnt guidance is written at the card's strength, with what is needed to change it beside.

    Args:
        network: a `Network`, or any module.
        folder: made if missing; files of an earlier save are replaced.
        card: what it must know about itself.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, Network):
        if has_guidance(network):
            learnt = network.unet.class_embedding
            assert isinstance(learnt, ClassAndStrength)
            assert card.guidance is not None
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in learnt.state_dict().items()}
            write_tensors(tensors, folder / _GUIDANCE)
            network = at_strength(copy.deepcopy(network), card.guidance)
        _save_unet(network, folder, card)
    else:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
        write_tensors(tensors, folder / _PLAIN)
    about = {**asdict(card), "process": asdict(card.process)}
    about.pop("text")
    if isinstance(network, Network):
        about |= {"clock": network.clock.to_json(), "heads": plain_heads(network.unet)}
    (folder / "README.md").write_text(_readme(network, card))
    write_atomically(folder / CARD, json.dumps(about, indent=2) + "\n")  # last: a folder with a card is whole


def _save_unet(network: Network, folder: Path, card: Card) -> None:
    if why_no_pipeline(network, card.process, card.sampler) is not None:
        network.unet.save_pretrained(folder / "unet")
        return
    assert isinstance(network.clock, StepClock)
    scheduler = scheduler_for(card.process, network.clock.count)
    if network.conditional:
        pipeline = pipeline_file.ClassConditionalPipeline(network.unet, scheduler, steps=card.steps)
        shutil.copyfile(pipeline_file.__file__, folder / "pipeline.py")
    else:
        pipeline = DDIMPipeline(network.unet, scheduler)
    pipeline.save_pretrained(folder)


def read_card(folder: Path) -> Card:
    """What a saved network knows about itself.

    Raises:
        UserError: the folder holds none of ours.
    """
    about = _about(folder)
    try:
        return Card(
            process=Process(**about["process"]),
            steps=about["steps"],
            shape=tuple(about["shape"]),
            classes=tuple(about["classes"]),
            guidance=about["guidance"],
            learnt=about["learnt"] and (about["learnt"][0], about["learnt"][1]),
            sampler=about["sampler"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"is damaged: {error}", where=folder / CARD) from None


def _about(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    if not path.is_file():
        raise UserError("holds no diffusion model saved by understudy", where=folder)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=path) from None


def load_network(
    folder: str | Path, given: Any = None, *, guidance: float | None = None, unfolded: bool = False
) -> nn.Module:
    """Read a network that was saved, in evaluation mode; it has its card as `.card`.

    Args:
        folder: where `save_network` wrote it.
        given: for a network that was given in Python: the module, or a callable that makes one.
        guidance: another strength of guidance, for a network that has learnt it.
        unfolded: leave the strength of guidance open, for a network that has learnt it.

    Raises:
        UserError: the folder holds none of ours, one that needs its object again, or one that has not learnt such a
            strength.
    """
    folder = Path(folder)
    about, card = _about(folder), read_card(folder)
    if (folder / _PLAIN).is_file():
        module = _object(given, folder)
        module.load_state_dict(load_file(folder / _PLAIN))
    else:
        unet = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
        assert isinstance(unet, UNet2DModel)
        if about["heads"] is not None:
            set_heads(unet, about["heads"])
        module = Network(unet, clock_from_json(about["clock"]))
        if guidance is not None or (unfolded and card.guidance is not None):
            _unfold(module, folder)
        if guidance is not None:
            low, high = card.learnt or (0.0, math.inf)
            if not low <= guidance <= high:
                raise UserError(
                    f"this model has learnt guidance of strengths {low:g} to {high:g}, not {guidance:g}", where=folder
                )
            module, card = at_strength(module, guidance), replace(card, guidance=guidance)
    module.card = card  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return module.eval()


def _unfold(network: Network, folder: Path) -> None:
    if not (folder / _GUIDANCE).is_file():
        raise UserError("this model has not learnt guidance: it has no strength to choose", where=folder)
    learnt = learns_guidance(network).unet.class_embedding
    assert isinstance(learnt, ClassAndStrength)
    learnt.load_state_dict(load_file(folder / _GUIDANCE))


def _object(given: Any, folder: Path) -> nn.Module:
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    made = given() if callable(given) else None
    if isinstance(made, nn.Module):
        return made
    raise UserError("holds a model that was given as an object in Python: pass the same object again", where=folder)


def _readme(network: nn.Module, card: Card) -> str:
    height, width = card.shape[-2:]
    lines = ["---", "library_name: diffusers", "tags: [understudy, diffusion, progressive-distillation]", "---"]
    lines += ["# A diffusion model", card.text, ""]
    lines += [
        f"- **steps: {card.steps}** (sampler: {card.sampler}). Say so when sampling: pipelines take 50 if not told.",
        f"- images: {card.shape[0]} x {height} x {width}; schedule: cosine, logsnr {card.process.logsnr_min:g} to "
        f"{card.process.logsnr_max:g}; predicts {card.process.prediction}",
    ]
    if card.classes:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(card.classes[:20]))
        lines.append(f"- classes: {names}{', ...' if len(card.classes) > 20 else ''}")
    if card.guidance is not None:
        learnt = "" if card.learnt is None else f"; it has learnt those of {card.learnt[0]:g} to {card.learnt[1]:g}"
        lines.append(f"- guidance of strength {card.guidance:g} is in the weights{learnt}")
    reason = why_no_pipeline(network, card.process, card.sampler)
    lines += ["", "```python"]
    if reason is not None:
        lines += ["import understudy as us", 'network = us.diffusion.load_network("FOLDER")', "```", ""]
        lines += [f"diffusers' own pipelines do not sample it: {reason}."]
    elif card.classes:
        lines += [
            "from diffusers import DiffusionPipeline",
            'pipeline = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)',
            f"images = pipeline(class_labels=[0, 1], num_inference_steps={card.steps}).images",
            "```",
        ]
    else:
        lines += [
            "from diffusers import DiffusionPipeline",
            'pipeline = DiffusionPipeline.from_pretrained("FOLDER")',
            f"images = pipeline(batch_size=4, num_inference_steps={card.steps}).images",
            "```",
        ]
    return "\n".join(lines) + "\n"
