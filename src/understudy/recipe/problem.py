"""Turns what is wrong with a recipe into one line: where, which key, what to do."""

from typing import Any, get_args

from pydantic import ValidationError

from understudy.errors import UserError, did_you_mean
from understudy.recipe.schema import ClassifyRecipe, Part
from understudy.recipe.signature import in_words, shown
from understudy.recipe.source import KeyPath, Source, dotted

# The path of a value and what is wrong with it, in one line.
Problem = tuple[KeyPath, str]


def first_problem(
    error: ValidationError, section: KeyPath, source: Source, recipe: type[Part] = ClassifyRecipe
) -> UserError:
    """The error for the likeliest cause among all that pydantic complains about.

    Args:
        error: what validating gave.
        section: the path of what was validated.
        source: where the data came from.
        recipe: the class of the whole, for the keys that a section may have.
    """
    details: list[Any] = sorted(error.errors(include_url=False), key=_unlikeliness)
    paths = [_known_path((*section, *detail["loc"]), detail["type"], source.data) for detail in details]
    path, detail = paths[0], details[0]
    if detail["type"] in ("value_error", "assertion_error"):
        message = str(detail["ctx"]["error"])
        key, colon, rest = message.partition(": ")
        # A validator of a whole section names the key that it is about first.
        if colon and key.isidentifier() and path[-1:] != (key,):
            path, message = (*path, key), rest
        return UserError(f"{dotted(path)}: {message}", where=source.where(path))
    # The members of a union each complain about the same value: what any of them takes is right.
    beside = [other for other, place in zip(details, paths, strict=True) if place == path]
    others = len({place[:2] for place in paths if place[: len(path)] != path and path[: len(place)] != place})
    more = f" (and {others} more to mend)" if others else ""
    return UserError(f"{dotted(path)}: {_message(beside, path, recipe)}{more}", where=source.where(path))


def as_written(path: KeyPath, data: dict[str, Any]) -> KeyPath:
    """The path to a value as it was written: methods and several teachers have short forms."""
    if isinstance(data.get("teacher"), (list, tuple)) and path[:1] in (("teacher",), ("more_teachers",)):
        first = path[0] == "teacher"
        return ("teacher", 0, *path[1:]) if first else ("teacher", int(path[1]) + 1, *path[2:])
    if path[:1] != ("method",) or len(path) < 2:
        return path
    written, head, below = data["method"], path[:1], path[2:]
    if isinstance(written, (list, tuple)) and isinstance(path[1], int):
        written, head = written[path[1]], path[:2]
    is_long = isinstance(written, dict) and "objectives" in written
    return (*head, *below) if is_long or below[:1] != ("objectives",) else (*head, *below[2:])


def _unlikeliness(detail: Any) -> int:
    """An unknown key is the likelier cause of what else is wrong; a union's members of another kind the least."""
    if detail["type"] == "extra_forbidden":
        return 0
    is_container = isinstance(detail.get("input"), (dict, list, tuple))
    return 2 if is_container and (detail["type"].endswith("_type") or detail["type"] == "literal_error") else 1


def _known_path(location: KeyPath, kind: str, data: Any) -> KeyPath:
    """Pydantic adds the names of union members to a location: keep the parts that lead through the data."""
    path: list[str | int] = []
    for place, part in enumerate(location):
        below: dict[Any, Any] = {}
        if isinstance(data, dict):
            below = data
        elif isinstance(data, (list, tuple)):
            below = dict(enumerate(data))
        if part in below:
            data = below[part]
            path.append(part)
        elif place == len(location) - 1 and kind == "missing":
            path.append(part)
    return tuple(path)


def _message(details: list[Any], path: KeyPath, recipe: type[Part]) -> str:
    kind, value = details[0]["type"], details[0].get("input")
    if kind == "extra_forbidden":
        if path[0] in ClassifyRecipe.model_fields and len(path) == 1:
            return "is for recipes that train classifiers: leave it out"
        return f"unknown key, {did_you_mean(str(path[-1]), _keys_beside(path, recipe))}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"should be letters, digits, '.', '_' and '-', and start with a letter or digit, not {shown(value)}"
    wanted = " or ".join(dict.fromkeys(in_words(detail) for detail in details))
    return f"{wanted.replace(' or should be', ' or')}, not {shown(value)}"


def _keys_beside(path: KeyPath, recipe: type[Part]) -> list[str]:
    """The keys that the section around a path may have."""
    section: Any = recipe
    for part in path[:-1]:
        if isinstance(part, int) or section is None:
            continue
        info = section.model_fields.get(part)
        section = _section_of(info.annotation) if info else None
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
