"""The machine a run is on: its device, threads, and whether every operation must repeat its bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from understudy.errors import UserError
from understudy.recipe.schema import Machine
from understudy.train import processes


@contextmanager
def machine(wanted: Machine) -> Iterator[dict[str, Any]]:
    """Threads and determinism as a recipe wants them, inside the block alone.

    Args:
        wanted: the recipe's `train`.

    Yields:
        What of it a run records.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(wanted.threads or threads)
    _set_deterministic(wanted.deterministic)
    try:
        yield {"threads": torch.get_num_threads(), "device": str(device(wanted))} | _of_several()
    finally:
        torch.set_num_threads(threads)
        _set_deterministic(deterministic)


def device(wanted: Machine) -> torch.device:
    """The device that a recipe names, or the best there is.

    Raises:
        UserError: it cannot be used.
    """
    if processes.count() > 1:  # which `joined` found to be possible
        on_gpu = wanted.device == "cuda" or (wanted.device == "auto" and torch.cuda.is_available())
        return torch.device("cuda", processes.local_rank()) if on_gpu else torch.device("cpu")
    if wanted.device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(wanted.device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"cannot be used: {str(error).splitlines()[0]}", where=f"train.device '{wanted.device}'"
        ) from None
    return chosen


def _of_several() -> dict[str, Any]:
    if processes.count() == 1:
        return {}
    return {"processes": processes.count(), "machines": processes.machines()}


def _set_deterministic(wanted: bool) -> None:
    if wanted != torch.are_deterministic_algorithms_enabled():  # setting it imports torch's compiler: seconds
        torch.use_deterministic_algorithms(wanted)
