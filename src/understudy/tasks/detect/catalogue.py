"""Which methods of the catalogue a detector can be trained by, and how their names are read. Imports no torch."""

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from understudy.errors import did_you_mean
from understudy.losses.table import LOSSES
from understudy.recipe.methods import expand_method
from understudy.recipe.signature import options, wrong_type

# What a detector takes of a method where the name alone is given: settings made for maps, not for classifiers.
_PRESETS = {"cwd": "seed-002", "mgd": "dense"}

# The logit methods, each with what it compares by default: yes or no for each class (`scores`), or, where the method
# is about how classes relate, the `classes` of the anchors.
LOGITS: dict[str, Any] = {
    name: "classes" if name in ("dist", "lskd", "mlkd", "ttm", "wttm", "wsld") else "scores"
    for name, entry in LOSSES.items()
    if entry.taps == "logits"
}

# What one batch of a detector does not have: one label or number an image, or one last linear layer.
_MISSING = {
    "labels": "a label for each image",
    "labelled": "a label for each image",
    "sample_ids": "a number for each image",
    "teacher_head": "a classifier's last layer",
    "student_model": "to run the student again",
    "teacher_model": "to run the teacher again",
}
_OF_METHOD = ("layers", "teacher_layers", "schedule", "end")


def check_method(given: Mapping[str, Any]) -> str | None:
    """What is wrong with a method for detectors, in one line, or None.

    Args:
        given: its `name` and options.
    """
    name = given.get("name")
    if not isinstance(name, str):
        return "name a method, such as cwd or mgd"
    if given.get("schedule", "constant") not in ("constant", "linear", "cosine"):
        return f"schedule: is constant, linear or cosine, not '{given['schedule']}'"
    if name == "native":
        unknown = set(given) - {"name", "weight", *_OF_METHOD[2:]}
        return f"native has no '{min(unknown)}': only a weight" if unknown else None
    bare = {key: value for key, value in given.items() if key not in _OF_METHOD}
    try:
        expanded = expand_method(spelled_out(bare))
    except ValueError as error:
        return str(error)
    return next((problem for each in expanded["objectives"] if (problem := _check_objective(each))), None)


def spelled_out(given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's mapping with the presets that detectors take, where it names none."""
    key = "loss" if "loss" in given else "name"
    words = [part.strip() for part in str(given[key]).split("+")]
    full = "+".join(f"{word}:{_PRESETS[word]}" if word in _PRESETS else word for word in words)
    return {**given, "loss": full}


def _check_objective(described: Mapping[str, Any]) -> str | None:
    loss = described.get("loss")
    if loss not in LOSSES:
        return f"unknown method '{loss}', {did_you_mean(str(loss), LOSSES)}"
    entry = LOSSES[loss]
    if entry.taps in ("embedding", "last"):
        return f"'{loss}' is about the embeddings of whole images or a classifier's last stage: a detector has neither"
    if missing := [need for need in _needs(entry.module, entry.class_name) if need in _MISSING]:
        return f"'{loss}' needs {_MISSING[missing[0]]}, which a detector's batch does not have"
    if "on" in described and loss not in LOGITS:
        return f"on: is for logit methods; '{loss}' compares features: set layers"
    if described.get("on", "scores") not in ("scores", "classes", "boxes"):
        return f"on: is scores, classes or boxes, not '{described['on']}'"
    known = options(entry.module, entry.class_name)
    for key, value in described.items():
        if key in ("loss", "weight", "on"):
            continue
        if key not in known:
            return f"'{loss}' has no option '{key}', {did_you_mean(key, [*known, 'weight', *_OF_METHOD])}"
        if problem := wrong_type(known[key], value):
            return f"{key}: {problem}"
    return None


@cache
def _needs(module: str, name: str) -> tuple[str, ...]:
    """The keyword-only arguments of a loss's forward, read from its source."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    forward = next((node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "forward"), None)
    return tuple(argument.arg for argument in forward.args.kwonlyargs) if forward else ()
