"""Reads recipes: YAML with line numbers, `key=value` overrides, one line for each thing that is wrong."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from understudy.errors import UserError, did_you_mean
from understudy.recipe.check import Problem, check, data_problems, exists, model_problems
from understudy.recipe.schema import Data, Model, Part, Recipe
from understudy.recipe.signature import in_words, shown

Path_ = tuple[str | int, ...]
_Section = TypeVar("_Section", bound=Part)
_LARGEST_RECIPE = 1_000_000
_MOST_VALUES = 20_000
_KINDS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.MappingNode: ("map",),
    yaml.SequenceNode: ("seq",),
    yaml.ScalarNode: ("str", "int", "float", "bool", "null"),
}
# What YAML's parser complains about most, and what has usually happened.
_HINTS = {
    "mapping values are not allowed here": "a value with a colon needs quotes, or a line is indented too far",
    "expected <block end>": "is a line indented differently from those beside it?",
    "cannot start any token": "indent with spaces, not tabs, and quote values that start with a sign",
    "could not find expected ':'": "a colon and a space must follow a key",
    "but found another document": "one recipe a file, without '---' between",
}


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


def read_recipe(name: str | Path, overrides: list[str] | tuple[str, ...] = (), *, files: bool = True) -> Recipe:
    """Read a recipe from a file or, by its bare name, from those shipped, and check it.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe.
        overrides: `key=value` texts, keys with dots (`train.lr=3e-4`), values as in YAML.
        files: whether the files that it names must be there.

    Returns:
        The recipe: its types, names, options and files are sound. Nothing was imported or run.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    return build_recipe(read_source(name), overrides, files=files)


def read_source(name: str | Path) -> Source:
    """Read a recipe's plain data, unchecked, from a file or, by its bare name, from those shipped.

    Raises:
        UserError: there is no such recipe, or it is not YAML.
    """
    path = find_recipe(name)
    return parse(path.read_bytes(), f"{name}.yaml" if path == shipped().get(str(name)) else str(path))


def build_recipe(source: Source, overrides: list[str] | tuple[str, ...] = (), *, files: bool = True) -> Recipe:
    """Lay overrides over a source, then hold it against the schema and the tables of names.

    Args:
        source: plain data; overrides change it in place.
        overrides: `key=value` texts.
        files: whether the files that it names must be there.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    for text in overrides:
        override(source, text)
    recipe = _validate(Recipe, source.data, (), source)
    _raise_first(check(recipe, files=files), source)
    return recipe


def read_data(source: Source) -> Data:
    """Check a data section that stands alone.

    Args:
        source: its plain data holds the section as `data`.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    data = _validate(Data, source.data["data"], ("data",), source)
    _raise_first(data_problems(data), source)
    return data


def read_model(source: Source) -> Model:
    """Check a model section that stands alone.

    Args:
        source: its plain data holds the section as `model`.

    Raises:
        UserError: one line that says where and what is wrong.
    """
    model = _validate(Model, source.data["model"], ("model",), source)
    _raise_first(model_problems(("model",), model), source)
    return model


def _validate(kind: type[_Section], data: Any, path: Path_, source: Source) -> _Section:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _first_problem(error, path, source) from None


def _raise_first(problems: Iterator[Problem], source: Source) -> None:
    for path, message in problems:
        written = _as_written(path, source.data)
        raise UserError(f"{_dotted(written)}: {message}", where=source.where(written))


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
    if exists(str(path), "file"):
        return path
    if exists(str(path / "recipe.yaml"), "file"):
        return path / "recipe.yaml"
    if str(name) in shipped():
        return shipped()[str(name)]
    if exists(str(path), "folder"):
        raise UserError("is a folder without a recipe.yaml: give a recipe file or a run folder", where=name)
    if path.suffix in (".yaml", ".yml"):
        raise UserError("there is no such file; `understudy recipes` lists the shipped recipes", where=name)
    raise UserError(f"there is no such recipe, {did_you_mean(str(name), shipped())}", where=name)


def parse(text: bytes, name: str) -> Source:
    """Turn YAML into plain data with line numbers.

    Raises:
        UserError: not YAML, not a mapping, a key twice, a tag that would build an object, or far too large.
    """
    if len(text) > _LARGEST_RECIPE:
        raise UserError(f"{len(text):,} bytes is no recipe: is this the right file?", where=name)
    source = Source(name=name, data={})
    try:
        node = yaml.compose(text.decode("utf-8"), Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError("a recipe is a mapping of keys to values, such as 'name: my-recipe'", where=name)
        source.data = _plain(node, (), source, [0])
    except UnicodeDecodeError:
        raise UserError("is not text in UTF-8: is this the right file?", where=name) from None
    except yaml.MarkedYAMLError as error:
        line = (error.problem_mark.line + 1) if error.problem_mark else 1
        hint = next((f" ({hint})" for words, hint in _HINTS.items() if words in str(error.problem)), "")
        raise UserError(f"not valid YAML: {error.problem}{hint}", where=f"{name}:{line}") from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", where=name) from None
    except RecursionError:
        raise UserError("is nested too deeply, or holds itself", where=name) from None
    return source


def _plain(node: yaml.Node, path: Path_, source: Source, count: list[int]) -> Any:
    line = node.start_mark.line + 1
    source.lines.setdefault(path, line)
    count[0] += 1
    if count[0] > _MOST_VALUES:  # aliases of aliases can make a short file endless
        raise UserError("unfolds to far too many values", where=f"{source.name}:{line}")
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in _KINDS[type(node)]:
        raise UserError(f"the tag '{node.tag}' is refused: a recipe is plain data", where=f"{source.name}:{line}")
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
    if kind == "int" and len(node.value) > 30:
        raise UserError(f"a number of {len(node.value)} digits is too long", where=f"{source.name}:{line}")
    try:
        if kind == "int":
            return int(node.value)
        if kind == "float":
            return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # only where a tag says so: `!!int three`
        raise UserError(f"'{node.value}' is no {kind}", where=f"{source.name}:{line}") from None
    if kind == "bool":
        return node.value.lower() == "true"
    if kind == "null":
        return None
    return node.value


def parse_value(text: str, where: str) -> Any:
    """Read one value as YAML would: `3e-4`, `[kd, logits]`, `true`, `some words`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _plain(node, (), Source(where, {}), [0])
    except yaml.YAMLError:
        raise UserError(f"'{text}' is not a value: put it in quotes if it is text", where=where) from None
    except RecursionError:
        raise UserError("is nested too deeply, or holds itself", where=where) from None


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
            why = "is a list: set the whole of it" if isinstance(below, list) else "has no keys of its own to set"
            raise UserError(f"'{'.'.join(parts[:depth])}' {why}", where=f"'{text}'")
        section = below
    section[parts[-1]] = parse_value(value_text, f"'{text}'")
    source.overrides[parts] = text


def _dotted(path: Path_) -> str:
    return ".".join(str(part) for part in path) or "recipe"


def _first_problem(error: ValidationError, section: Path_, source: Source) -> UserError:
    details: list[Any] = sorted(error.errors(include_url=False), key=_unlikeliness)
    paths = [_known_path((*section, *detail["loc"]), detail["type"], source.data) for detail in details]
    path, detail = paths[0], details[0]
    if detail["type"] in ("value_error", "assertion_error"):
        message = str(detail["ctx"]["error"])
        key, colon, rest = message.partition(": ")
        # A validator of a whole section names the key that it is about first.
        if colon and key.isidentifier() and path[-1:] != (key,):
            path, message = (*path, key), rest
        return UserError(f"{_dotted(path)}: {message}", where=source.where(path))
    # The members of a union each complain about the same value: what any of them takes is right.
    beside = [other for other, place in zip(details, paths, strict=True) if place == path]
    others = len({place[:2] for place in paths if place[: len(path)] != path and path[: len(place)] != place})
    more = f" (and {others} more to mend)" if others else ""
    return UserError(f"{_dotted(path)}: {_message(beside, path)}{more}", where=source.where(path))


def _unlikeliness(detail: Any) -> int:
    """An unknown key is the likelier cause of what else is wrong; a union's members of another kind the least."""
    if detail["type"] == "extra_forbidden":
        return 0
    is_container = isinstance(detail.get("input"), (dict, list, tuple))
    return 2 if is_container and (detail["type"].endswith("_type") or detail["type"] == "literal_error") else 1


def _as_written(path: Path_, data: dict[str, Any]) -> Path_:
    """A method's objectives may have been written in a short form: the path to the value there."""
    if path[:1] != ("method",) or len(path) < 2:
        return path
    written, head, below = data["method"], path[:1], path[2:]
    if isinstance(written, (list, tuple)) and isinstance(path[1], int):
        written, head = written[path[1]], path[:2]
    is_long = isinstance(written, dict) and "objectives" in written
    return (*head, *below) if is_long or below[:1] != ("objectives",) else (*head, *below[2:])


def _known_path(location: Path_, kind: str, data: Any) -> Path_:
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


def _message(details: list[Any], path: Path_) -> str:
    kind, value = details[0]["type"], details[0].get("input")
    if kind == "extra_forbidden":
        return f"unknown key, {did_you_mean(str(path[-1]), _keys_beside(path))}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch":
        return f"should be letters, digits, '.', '_' and '-', and start with a letter or digit, not {shown(value)}"
    wanted = " or ".join(dict.fromkeys(in_words(detail) for detail in details))
    return f"{wanted.replace(' or should be', ' or')}, not {shown(value)}"


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
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)
