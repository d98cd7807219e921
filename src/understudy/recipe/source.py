"""YAML as plain data with line numbers, and `key=value` texts laid over it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from understudy.errors import UserError

KeyPath = tuple[str | int, ...]
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
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """The file and line, or the override, that holds a path or the nearest section around it."""
        sections = [path[:end] for end in range(len(path), -1, -1)]
        for section in sections:
            if section in self.overrides:
                return f"'{self.overrides[section]}'"
        return next((f"{self.name}:{self.lines[section]}" for section in sections if section in self.lines), self.name)


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


def _plain(node: yaml.Node, path: KeyPath, source: Source, count: list[int]) -> Any:
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
                raise UserError(f"'{dotted((*path, key))}' is given twice", where=where)
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


def dotted(path: KeyPath) -> str:
    """A path as a person writes it: `train.lr`."""
    return ".".join(str(part) for part in path) or "recipe"


def section_of(which: str, given: Any, objects: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says where Python gave a name, a mapping or an object.

    Args:
        which: the section, such as `teacher`.
        given: a name or path, a mapping with a name, or an object.
        objects: where an object is put aside, under `which`.
    """
    if isinstance(given, (str, Path)):
        return {"name": str(given)}
    if isinstance(given, Mapping) and isinstance(given.get("name"), str):
        return dict(given)
    objects[which] = given
    return {"name": f"python:{getattr(given, '__qualname__', type(given).__qualname__)}"}
