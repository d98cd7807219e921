"""Reads which options a function or class has from its source, so that a recipe is checked without importing it."""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

_TYPES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "tuple": tuple, "Literal": Literal,
}  # fmt: skip


# What pydantic calls things, and what people do.
_WORDS = {
    "input should": "should",
    "a valid integer": "a whole number",
    "a valid tuple": "a list",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid dictionary": "a mapping",
    "tuple": "list",
    "a valid": "a",
}
# Sections that may be written as one word.
_BY_WORD = ("Data", "Model", "Teacher", "Method")


@dataclass(frozen=True)
class Option:
    """A keyword argument: its annotation, and whether it must be given."""

    annotation: str
    required: bool


@cache
def options(module: str, name: str) -> dict[str, Option]:
    """The keyword-only options of a function, or of a class's constructor.

    Args:
        module: dotted module name; it is located, not imported (its parent packages import no torch).
        name: the function or class in it.

    Returns:
        Option by name; empty where the constructor takes none.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    tree = ast.parse(Path(spec.origin).read_text())
    definition = next(node for node in tree.body if getattr(node, "name", None) == name)
    if isinstance(definition, ast.ClassDef):
        constructors = [node for node in definition.body if getattr(node, "name", None) == "__init__"]
        if not constructors:
            return {}
        definition = constructors[0]
    assert isinstance(definition, ast.FunctionDef)
    return {
        argument.arg: Option(ast.unparse(argument.annotation) if argument.annotation else "", default is None)
        for argument, default in zip(definition.args.kwonlyargs, definition.args.kw_defaults, strict=True)
    }


def wrong_type(option: Option, value: Any) -> str | None:
    """What is wrong with a value for an option, or None; annotations of other than plain types pass.

    Nothing is converted: booleans and texts are refused for numbers, which Python itself would take.
    """
    try:
        expected = eval(option.annotation, {"__builtins__": {}}, dict(_TYPES))  # noqa: S307 (our own source's annotations)
    except (NameError, SyntaxError, AttributeError):
        return None
    try:
        _adapter(expected).validate_python(_tuples(value), strict=True)
    except ValidationError as error:
        wanted = dict.fromkeys(in_words(detail) for detail in error.errors(include_url=False))
        return f"{' or '.join(wanted).replace(' or should be', ' or')}, not {shown(value)}"
    return None


def in_words(detail: Any) -> str:
    """What pydantic wants, as the middle of a sentence."""
    if detail["type"] == "model_type":
        by_word = detail["ctx"]["class_name"] in _BY_WORD
        return "should be a name or a mapping" if by_word else "should be a mapping"
    text = detail["msg"][0].lower() + detail["msg"][1:]
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    return text


def shown(value: Any) -> str:
    """A value as a message quotes it: short, in one line, as YAML would write it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    text = " ".join(str(list(value) if isinstance(value, tuple) else value).split())
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return text if isinstance(value, (int, float, list, tuple)) else f"'{text}'"


@cache
def _adapter(expected: Any) -> TypeAdapter[Any]:
    return TypeAdapter(expected, config=ConfigDict(allow_inf_nan=False))


def _tuples(value: Any) -> Any:
    """YAML has lists where the builders take tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
