"""The short ways to write a method: `kd`, `kd:seed-001`, `kd+logits`, or a mapping with options."""

from typing import Any

from understudy.errors import did_you_mean
from understudy.losses.catalogue.schemes import SCHEMES
from understudy.losses.table import LOSSES
from understudy.recipe.signature import Option, options

_OF_METHOD = {"name", "labels", "label_smoothing", "objectives", "taught_by", "generations", "peers", "model"}


def expand_method(value: Any) -> Any:
    """Write a method out in full: its name, the weight of the labels, its objectives.

    Args:
        value: a word (`loss`, `loss:preset`, or several joined by `+`; or a scheme such as `dml`), or a mapping. A
            mapping without `objectives` describes the single loss it names: every further key is that loss's.

    Returns:
        A mapping with `objectives`, or `value` itself where it is neither word nor mapping.

    Raises:
        ValueError: the loss or the preset does not exist.
    """
    if isinstance(value, str):
        if value not in SCHEMES:
            return _from_word(value)
        value = {"name": value}
    if not isinstance(value, dict) or "objectives" in value or not isinstance(value.get("name"), str):
        return value
    if value["name"] in SCHEMES and "loss" not in value:
        value = {**SCHEMES[value["name"]].settings, **value}
    word = value.get("loss", value["name"])
    if not isinstance(word, str):
        raise ValueError("loss: should be the name of a loss, such as kd")
    full = _from_word(word)
    (objective,) = full["objectives"] if len(full["objectives"]) == 1 else (None,)
    options = {key: option for key, option in value.items() if key not in _OF_METHOD | {"loss"}}
    if objective is None and options:
        raise ValueError(f"'{word}' is a sum: write its objectives out to set {', '.join(sorted(options))}")
    if objective is not None:
        full["objectives"] = [{**objective, **options}]
    settings = {key: setting for key, setting in value.items() if key in _OF_METHOD}
    return {**full, **settings}


def grid_option(loss: str, key: str) -> Option | None:
    """The option that a grid's key sets in a loss, or None where the loss has none of that name.

    Args:
        loss: its name in the table.
        key: `weight`, which every loss has, or an option of the loss.
    """
    if key == "weight":
        return Option("float", required=False)
    return options(LOSSES[loss].module, LOSSES[loss].class_name).get(key)


def _from_word(word: str) -> dict[str, Any]:
    words = [part.strip() for part in word.split("+")]
    parts = [_preset(part) for part in words]
    labels = parts[0]["labels"]
    return {
        "name": "+".join(words).replace(":", "-"),
        "labels": labels,
        "objectives": [part["objective"] for part in parts],
    }


def _preset(word: str) -> dict[str, Any]:
    loss, _, preset = word.partition(":")
    if loss not in LOSSES:
        raise ValueError(f"unknown method '{loss}', {did_you_mean(loss, [*LOSSES, *SCHEMES])}")
    presets = LOSSES[loss].presets
    preset = preset or "default"
    if preset not in presets:
        raise ValueError(f"'{loss}' has no preset '{preset}', {did_you_mean(preset, presets)}")
    settings = dict(presets[preset])
    return {"labels": settings.pop("labels", 1.0), "objective": {"loss": loss, **settings}}
