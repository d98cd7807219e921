"""What the benchmarks share: where results are written, and what they ran on."""

import os
import platform
from datetime import date
from importlib import import_module
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def describe_machine(software: str | None = None) -> str:
    """The machine and the versions, in one line; `software` in place of torch's threads and version."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(": ")[1] for line in cpuinfo.read_text().splitlines() if "model name" in line), model)
    if software is None:
        import torch

        software = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    return f"{os.cpu_count()} cores of {model}, {software}"


def keras_software() -> str:
    """Keras, its backend and their versions."""
    import keras

    backend = keras.backend.backend()
    return f"Keras {keras.version()} on {backend} {import_module(backend).__version__}"


def record(name: str, text: str, machine: str) -> None:
    """Put a benchmark's result into RESULTS.md, in the place of its earlier one."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{begin}\n{text}\n\n*{date.today().isoformat()}, {machine}*\n{end}"
    content = RESULTS.read_text()
    if begin not in content:
        raise SystemExit(f"RESULTS.md has no place for {name}: add {begin} {end}")
    before, rest = content.split(begin, 1)
    RESULTS.write_text(before + block + rest.split(end, 1)[1])
