"""Reads recipes: YAML with line numbers, `key=value` overrides, one line for each thing that is wrong."""

import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from understudy.errors import UserError, did_you_mean
from understudy.recipe.check import check
from understudy.recipe.schema import Recipe

Path_ = tuple[str | int, ...]
_LARGEST_RECIPE = 1_000_000
_MOST_VALUES = 20_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: `1e-3` is a number, `no`, `010` and `12:30` are not what YAML 1.1 makes of them."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""])


@dataclass
class Source:
    """A recipe as it was written: plain data and where each value stands.

    Args:
        name: the file as the person named it.
        data: mappings, lists, strings, numbers, booleans and None.
        lines: the line of each value by its path.
        overrides: the text of the `key=value` that set a value, by its path.
    """

    name: str
    data: dict[str, Any]
    lines: dict[Path_, int] = field(default_factory=dict)
    overrides: dict[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """The file and line, or the override, that holds a path or the nearest section around it."""
        sections = [path[:end] for end in range(len(path), -1, -1)]
        for section in sections:
            if section in self.overrides:
                return f"'{self.overrides[section]}'"
        return next((f"{self.name}:{self.lines[section]}" for section in sections if section in self.lines), self.name)


def read_recipe(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe from a file or, by its bare name, from those shipped, and check it.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe.
        overrides: `key=value` texts, keys with dots (`train.lr=3e-4`), values as in YAML.

    Returns:
        The recipe: its types, names, options and files are sound. Nothing was imported or run.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    path = find_recipe(name)
    source = parse(path.read_bytes(), str(name) if Path(name).suffix else f"{name}.yaml")
    return build_recipe(source, overrides)


def build_recipe(source: Source, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Lay overrides over a source, then hold it against the schema and the tables of names.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    for text in overrides:
        override(source, text)
    try:
        recipe = Recipe.model_validate(source.data)
    except ValidationError as error:
        raise _first_problem(error, source) from None
    for problem_path, message in check(recipe):
        problem_path = _as_written(problem_path, source.data)
        raise UserError(f"{_dotted(problem_path)}: {message}", where=source.where(problem_path))
    return recipe


def shipped() -> dict[str, Path]:
    """The shipped recipes: name to file."""
    folder = Path(str(resources.files("understudy") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path or by bare name.

    Raises:
        UserError: there is no such file or shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if str(name) in shipped():
        return shipped()[str(name)]
    if path.suffix in (".yaml", ".yml"):
        raise UserError("no such file", where=name)
    raise UserError(f"no such recipe, {did_you_mean(str(name), shipped())}", where=name)


def parse(text: bytes, name: str) -> Source:
    """Turn YAML into plain data with line numbers.

    Raises:
        UserError: not YAML, not a mapping, a key twice, a tag that would build an object, or far too large.
    """
    if len(text) > _LARGEST_RECIPE:
        raise UserError(f"{len(text):,} bytes is no recipe: is this the right file?", where=name)
    try:
        node = yaml.compose(text.decode("utf-8"), Loader=_Loader)
    except UnicodeDecodeError:
        raise UserError("is not text in UTF-8: is this the right file?", where=name) from None
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark.line + 1) if error.problem_mark else 1
        raise UserError(f"not valid YAML: {error.problem}", where=f"{name}:{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", where=name) from None
    source = Source(name=name, data={})
    if not isinstance(node, yaml.MappingNode):
        raise UserError("a recipe is a mapping of keys to values", where=name)
    source.data = _plain(node, (), source, [0])
    return source


def _plain(node: yaml.Node, path: Path_, source: Source, count: list[int]) -> Any:
    line = node.start_mark.line + 1
    source.lines.setdefault(path, line)
    count[0] += 1
    if count[0] > _MOST_VALUES:  # aliases of aliases can make a short file endless
        raise UserError("unfolds to far too many values", where=f"{source.name}:{line}")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{source.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError("a key must be a word", where=where)
            key = key_node.value
            if key in result:
                raise UserError(f"'{_dotted((*path, key))}' is given twice", where=where)
            source.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = _plain(value_node, (*path, key), source, count)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), source, count) for index, item in enumerate(node.value)]
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "int":
        return int(node.value)
    if kind == "float":
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "null":
        return None
    if kind == "str":
        return node.value
    raise UserError(f"the tag '{node.tag}' is refused: a recipe is plain data", where=f"{source.name}:{line}")


def parse_value(text: str, where: str) -> Any:
    """Read one value as YAML would: `3e-4`, `[kd, logits]`, `true`, `some words`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"'{text}' is not a value: put it in quotes if it is text", where=where) from None
    return None if node is None else _plain(node, (), Source(where, {}), [0])


def override(source: Source, text: str) -> None:
    """Set one value of a source from `key=value`.

    A section written as one word (`teacher: timm/resnet50`) becomes a mapping when a key below it is set.

    Raises:
        UserError: not of that form, or a key below something that has none.
    """
    key, equals, value_text = text.partition("=")
    if not equals or not key.strip():
        raise UserError("an override has the form key=value, such as train.lr=3e-4", where=f"'{text}'")
    parts = tuple(key.strip().split("."))
    section: Any = source.data
    for depth, part in enumerate(parts[:-1], start=1):
        below = section.get(part) if isinstance(section, dict) else None
        if isinstance(below, str):
            below = section[part] = {"name": below}
        if below is None and isinstance(section, dict):
            below = section[part] = {}
        if not isinstance(below, dict):
            raise UserError(f"'{'.'.join(parts[:depth])}' has no keys of its own to set", where=f"'{text}'")
        section = below
    section[parts[-1]] = parse_value(value_text, f"'{text}'")
    source.overrides[parts] = text


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "recipe"


def _first_problem(error: ValidationError, source: Source) -> UserError:
    details = error.errors(include_url=False)
    # An unknown key is the likelier cause of what else is wrong (a missing key, a failed union).
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    detail = details[0]
    path = _known_path(detail["loc"], source.data)
    message = _message(detail, path)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 and detail["loc"][:1] != details[1]["loc"][:1] else ""
    return UserError(f"{_dotted(path)}: {message}{more}", where=source.where(path))


def _as_written(path: Path_, data: dict[str, Any]) -> Path_:
    """A method's objectives may have been written in a short form: the path to the value there."""
    if path[:1] != ("method",) or "objectives" not in path:
        return path
    method = data["method"]
    if not isinstance(method, list):
        return path if isinstance(method, dict) and "objectives" in method else ("method", path[-1])
    written = method[path[1]] if isinstance(path[1], int) else None
    return path if isinstance(written, dict) and "objectives" in written else (*path[:2], path[-1])


def _known_path(location: tuple[str | int, ...], data: Any) -> Path_:
    """Pydantic adds the names of union members to a location: keep the parts that lead through the data."""
    path: list[str | int] = []
    for part in location:
        below: dict[Any, Any] = (
            dict(data) if isinstance(data, dict) else dict(enumerate(data)) if isinstance(data, list) else {}
        )
        if part in below:
            data = below[part]
            path.append(part)
        elif part == location[-1] and isinstance(data, dict):
            path.append(part)
    return tuple(path)


def _message(detail: Any, path: Path_) -> str:
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return f"unknown key, {did_you_mean(str(path[-1]), _keys_beside(path))}"
    if kind == "missing":
        return "is missing"
    if kind in ("value_error", "assertion_error"):
        return str(detail["ctx"]["error"])
    text = detail["msg"][0].lower() + detail["msg"][1:]
    return f"{text.replace('input should be', 'should be')}, not {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return "nothing" if value is None else f"'{value}'"


def _keys_beside(path: Path_) -> list[str]:
    """The keys that the section around a path may have."""
    section: Any = Recipe
    for part in path[:-1]:
        if isinstance(part, int) or section is None:
            continue
        info = section.model_fields.get(part)
        section = _section_of(info.annotation) if info else None
    return list(section.model_fields) if section else []


def _section_of(annotation: Any) -> Any:
    from typing import get_args

    from understudy.recipe.schema import Part

    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
