"""The recorded cases of Salimans and Ho's diffusion code, computed with ours.

The model is one of the two formulas of the manifest (`raw`: any network output; `gauss`: the posterior mean of Gaussian
data) or a UNet with its checkpoint. Images have their channels last there, first here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy.parity.diffusion_models import Gauss, PerfectStudent, Raw
from understudy.tasks.diffusion import process as processes
from understudy.tasks.diffusion import steps as sampling
from understudy.tasks.diffusion.flax_file import read_flax
from understudy.tasks.diffusion.network import LogsnrClock
from understudy.tasks.diffusion.process import Denoised, Process, spread, weighted_error
from understudy.tasks.diffusion.published import unet_from_tree

Arrays = dict[str, Tensor]
Outputs = dict[str, Tensor]
_WEIGHTINGS = ("constant", "snr", "snr_trunc", "v_mse")


def _raw(first: list[float], second: list[float], process: Process, dtype: torch.dtype) -> Raw:
    given = [first, second] if process.prediction == "both" else [first]
    return Raw([torch.tensor(constants, dtype=dtype) for constants in given], process)


def _times(args: dict[str, Any], z: Tensor) -> tuple[Tensor, Tensor]:
    t, s = (torch.full((len(z),), (args["i"] + part) / args["num_steps"], dtype=z.dtype) for part in (1, 0))
    return t, s


def _process(args: dict[str, Any]) -> Process:
    return Process(
        args.get("logsnr_min", -20.0),
        args.get("logsnr_max", 20.0),
        args.get("mean_type", "x"),
        args.get("clip_x", False),
    )


def _variance(name: str) -> float:
    kind, _, share = name.removeprefix("fixed_").partition(":")
    return {"small": 0.0, "large": 1.0}[kind] if not share else float(share)


def schedule(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """The cosine schedule with alpha, sigma and log-variance."""
    logsnr = Process(args["logsnr_min"], args["logsnr_max"]).logsnr(arrays["t"])
    alpha, sigma = processes.scales(logsnr)
    return {"logsnr": logsnr, "alpha": alpha, "sigma": sigma, "logvar": nn.functional.logsigmoid(-logsnr)}


def conversions(arrays: Arrays, _args: dict[str, Any], _path: Path) -> Outputs:
    """Between image, noise and direction; the variances follow from the slope of the first."""
    z, x, eps = arrays["z"], arrays["x"], arrays["eps"]
    logsnr = spread(arrays["logsnr"], z)
    one, zero = torch.ones_like(logsnr), torch.zeros_like(logsnr)
    slope = processes.x_from_eps(zero, one, logsnr).square().log().flatten()
    back = processes.eps_from_x(zero, one, logsnr).square().log().flatten()
    given = 0.1 * arrays["logsnr"]
    return {
        "x_from_eps": processes.x_from_eps(z, eps, logsnr),
        "eps_from_x": processes.eps_from_x(z, x, logsnr),
        "x_from_v_with_v_eq_eps": processes.x_from_v(z, eps, logsnr),
        "v_from_x_and_eps": processes.v_from_x_and_eps(x, eps, logsnr),
        "xlogvar_from_epslogvar": given + slope,
        "epslogvar_from_xlogvar": given + back,
    }


def run_model(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """A network's output read as image, noise and direction."""
    process = _process(args)
    raw = _raw(args["raw_params"], args["raw_params2"], process, arrays["z"].dtype)
    output = raw.at(arrays["z"], arrays["logsnr"])
    found = process.interpret(output, arrays["z"], arrays["logsnr"])
    return {"raw": output, "model_x": found.x, "model_eps": found.eps, "model_v": found.v}


def reverse(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """Mean and variance of the stochastic step."""
    mean, log_variance = sampling.reverse(
        arrays["x"],
        arrays["z_t"],
        logsnr_t=arrays["logsnr_t"],
        logsnr_s=arrays["logsnr_s"],
        variance=_variance(args["x_logvar"]),
    )
    log_variance = log_variance.expand_as(mean)
    return {"mean": mean, "logvar": log_variance, "var": log_variance.exp(), "std": (0.5 * log_variance).exp()}


def ddim_step(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """One deterministic step."""
    process, z = _process(args), arrays["z_t"]
    model = _raw(args["raw_params"], args["raw_params2"], process, z.dtype)
    return {"out": sampling.ddim_step(model, z, *_times(args, z), process=process)}


def noisy_step(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """One stochastic step."""
    process, z = _process(args), arrays["z_t"]
    model = _raw(args["raw_params"], args.get("raw_params2", args["raw_params"]), process, z.dtype)
    t, s = _times(args, z)
    variance = _variance(args["logvar_type"])
    return {"out": sampling.noisy_step(model, z, t, s, noise=arrays["noise"], variance=variance, process=process)}


def loss(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """Training losses under the four weightings, with their gradients and targets, on data and by distillation."""
    process = _process(args)
    x, eps, dtype = arrays["x"], arrays["eps"], arrays["x"].dtype
    student = _raw(args["student"], args["student2"], process, dtype)
    teacher = _raw(args["teacher"], args["teacher2"], process, dtype)
    student.constants = [constants.requires_grad_() for constants in student.constants]
    t = (arrays["i"] + 1).to(dtype) / args["num_steps"] if args["num_steps"] else arrays["u"]
    z = process.diffuse(x, eps, t)
    if args["mode"] == "distill":
        wanted = sampling.two_step_target(teacher, z, arrays["i"], args["num_steps"], process=process)
    else:
        wanted = Denoised(x, eps, processes.v_from_x_and_eps(x, eps, spread(process.logsnr(t), x)))
    found = process.denoise(student, z, t)
    outputs = {
        "u": t,
        "logsnr": process.logsnr(t),
        "x_target": wanted.x,
        "eps_target": wanted.eps,
        "v_target": wanted.v,
    }
    for weighting in _WEIGHTINGS:
        error = weighted_error(found, wanted, weighting)
        gradients = torch.autograd.grad(error.mean(), student.constants, retain_graph=True)
        outputs |= {f"loss_{weighting}": error, f"grad_mean_loss_{weighting}": torch.cat(gradients)}
    return outputs


def trajectory(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """A whole deterministic sampling, step by step."""
    process = _process(args)
    model = Gauss(args["mu"], args["s"], process)
    path = [arrays["init"], *sampling.trajectory(model, arrays["init"], args["num_steps"], process=process)]
    return {"traj": torch.stack(path), "sample_loop": path[-1]}


def noisy_trajectory(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """A whole stochastic sampling, with the recorded noise."""
    process = _process(args)
    noise = arrays["noise_by_i"]
    result = sampling.sample(
        Gauss(args["mu"], args["s"], process),
        arrays["init"],
        args["num_steps"],
        process=process,
        sampler="noisy",
        variance=_variance(args["logvar_type"]),
        draw=lambda step: noise[step],
    )
    return {"sample_loop": result}


def perfect_chain(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """Teacher and ever shorter students that learnt perfectly: all must give one sample."""
    process = _process(args)
    model: Callable[..., Tensor] = Gauss(args["mu"], args["s"], process)
    names = sorted((int(name[1:]) for name in arrays if name.startswith("N")), reverse=True)
    outputs = {}
    for steps in names:
        if outputs:
            model = PerfectStudent(model, steps, process)
        outputs[f"N{steps}"] = sampling.sample(model, arrays["init"], steps, process=process)
    return outputs


def clip_norm(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """Gradients clipped by their global norm, as `train.arm` does it."""
    parameters = [nn.Parameter(torch.zeros_like(arrays[name])) for name in "ab"]
    for parameter, name in zip(parameters, "ab", strict=True):
        parameter.grad = arrays[name].clone()
    norm = nn.utils.get_total_norm([arrays[name] for name in "ab"])
    # torch divides by the norm plus 1e-6, the original by the norm.
    nn.utils.clip_grads_with_norm_(parameters, args["clip_norm"], norm - 1e-6)
    found = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return {"out_a": found[0], "out_b": found[1], "norm": norm}


def average(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """One update of the moving average."""
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    mean = [arrays["avg_a"].clone()]
    get_ema_multi_avg_fn(args["decay"])(mean, [arrays["new_a"]], torch.tensor(1))
    return {"out_a": mean[0]}


def adam(arrays: Arrays, args: dict[str, Any], _path: Path) -> Outputs:
    """Updates by AdamW."""
    parameter = nn.Parameter(arrays["params"][0].clone())
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=args["lr"],
        weight_decay=args["weight_decay"],
        betas=(args["beta1"], args["beta2"]),
        eps=args["eps"],
    )
    path = [parameter.detach().clone()]
    for gradient in arrays["grads"]:
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return {"params": torch.stack(path)}


def unet(arrays: Arrays, args: dict[str, Any], path: Path) -> Outputs:
    """A network from its published checkpoint, run by diffusers."""
    checkpoint = path.with_name(f"{path.stem.rpartition('_')[0]}_checkpoint.msgpack")
    images = arrays["x_nhwc"]
    network = unet_from_tree(read_flax(checkpoint)["ema_params"], size=images.shape[-1])
    wide = path.stem.endswith("f64")
    kind = args["logsnr_input_type"]
    low, high = args.get("logsnr_scale_range", (-10.0, 10.0))
    logsnr = arrays["logsnr"]
    clock = LogsnrClock(kind)
    time = clock.at(logsnr if kind != "linear" else -10 + 20 * (logsnr - low) / (high - low))
    classes = arrays["y"].long() if args["num_classes"] > 1 else None
    if wide:
        network, images = network.double(), images.double()
    with torch.no_grad():
        return {"out_nhwc": network(images, time, class_labels=classes).sample}


@dataclass(frozen=True)
class Family:
    """How the cases of a family are computed.

    Args:
        compute: from a case's arrays (images with their channels first), its arguments and its file to its outputs.
        method: in words.
        inputs: the arrays that are given; every other one of the file must be computed.
    """

    compute: Callable[[Arrays, dict[str, Any], Path], Outputs]
    method: str
    inputs: tuple[str, ...]


# By how the ids of their cases begin.
FAMILIES: dict[str, Family] = {
    "schedule": Family(schedule, "cosine logsnr schedule", ("t",)),
    "conversions": Family(conversions, "conversions of x, eps and v", ("z", "x", "eps", "logsnr")),
    "run_model": Family(run_model, "reading a network's output", ("z", "logsnr")),
    "reverse": Family(reverse, "reverse distribution", ("x", "z_t", "logsnr_s", "logsnr_t")),
    "ddim_step": Family(ddim_step, "DDIM step", ("z_t",)),
    "noisy_step": Family(noisy_step, "stochastic step", ("z_t", "noise")),
    "loss": Family(loss, "training loss", ("x", "eps", "i")),
    "ddim_traj": Family(trajectory, "DDIM sampling", ("init",)),
    "noisy_traj": Family(noisy_trajectory, "stochastic sampling", ("init", "noise_by_i")),
    "perfect_student_chain": Family(perfect_chain, "perfect students", ("init",)),
    "clip_global_norm": Family(clip_norm, "clipping by global norm", ("a", "b")),
    "ema": Family(average, "moving average", ("avg_a", "new_a")),
    "flax_optim_adam": Family(adam, "Adam of Flax", ("grads",)),
    "unet": Family(unet, "UNet from its checkpoint", ("x_nhwc", "logsnr", "y")),
}


def channels_first(array: Tensor) -> Tensor:
    """An image, or a batch or path of them, with its channels first; other arrays as they are."""
    return array.movedim(-1, -3).contiguous() if array.ndim >= 4 else array


def channels_last(array: Tensor) -> Tensor:
    """The same turned back."""
    return array.movedim(-3, -1) if array.ndim >= 4 else array
