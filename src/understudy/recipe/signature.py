"""Reads which options a function or class has from its source, so that a recipe is checked without importing it."""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

_TYPES: dict[str, Any] = {
    "int": int, "float": float, "bool": bool, "str": str, "tuple": tuple, "list": list, "Literal": Literal,
}  # fmt: skip


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

    Booleans are refused for numbers, which Python itself would take.
    """
    try:
        expected = eval(option.annotation, {"__builtins__": {}}, dict(_TYPES))  # noqa: S307 (our own source's annotations)
    except (NameError, SyntaxError, AttributeError):
        return None
    if isinstance(value, bool) and expected in (int, float):
        return f"should be a number, not {str(value).lower()}"
    try:
        TypeAdapter(expected).validate_python(value, strict=not isinstance(value, (list, tuple)))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        text = detail["msg"][0].lower() + detail["msg"][1:]
        return f"{text.replace('input should be', 'should be')}, not '{value}'"
    return None
