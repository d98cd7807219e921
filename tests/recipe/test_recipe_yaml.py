"""What the reader makes of YAML itself: scalars, lines, and files that mean harm."""

import math
import time

import pytest

from understudy.errors import UserError
from understudy.recipe.source import parse, parse_value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3.", -3.0),
        ("3", 3),
        ("010", 10),
        ("+7", 7),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", math.inf),
        # YAML 1.1 makes a boolean, a sexagesimal number, a hexadecimal one, a date of these.
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("'010'", "010"),
        ('"true"', "true"),
        ("resnet50.pth", "resnet50.pth"),
        ("[kd, 1e-3, no]", ["kd", 1e-3, "no"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(written, value):
    found = parse(f"key: {written}\n".encode(), "r.yaml").data["key"]
    assert found == value
    assert type(found) is type(value)
    if written:
        assert parse_value(written, "x") == value


def test_every_value_knows_its_line():
    source = parse(b"a: 1\nb:\n  c: 2\n  d:\n    - 3\n    - {e: 4}\n", "r.yaml")
    assert source.where(("a",)) == "r.yaml:1"
    assert source.where(("b", "c")) == "r.yaml:3"
    assert source.where(("b", "d", 1)) == "r.yaml:6"
    assert source.where(("b", "d", 1, "e")) == "r.yaml:6"
    assert source.where(("b", "missing")) == "r.yaml:2"
    assert source.where(("missing",)) == "r.yaml:1"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is given twice"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, "'a.b' is given twice"),
        ("a: !!python/object/apply:os.system ['true']\n", 1, ""),
        ("a: !!python/object:os.path {}\n", 1, ""),
        ("a: !!int three\n", 1, "'three' is no int"),
        ("a: !!set {x}\n", 1, "is refused"),
        ("a: !mine 3\n", 1, "the tag '!mine' is refused"),
        ("a: 1\nb: !!timestamp 2020-01-01\n", 2, "is refused"),
        ("a: 1\n b: 2\n", 2, "indented"),
        ("a:\n  b: 1\n\tc: 2\n", 3, "tabs"),
        ("a: 1\n[b]: 2\n", 2, "a key must be a word"),
        ("a: [1, 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "one recipe a file"),
        ("a: 12345678901234567890123456789012345\n", 1, "too long"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text, line, words):
    with pytest.raises(UserError, match=rf"^r\.yaml:{line}: ") as caught:
        parse(text.encode(), "r.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfea\x00:\x00", "UTF-8"),
        (b"- a\n- b\n", "a mapping of keys to values"),
        (b"just words", "a mapping of keys to values"),
        (b"", "a mapping of keys to values"),
        (b"a: \x00", "not valid YAML"),
        (b"x" * 1_000_001, "is this the right file"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"a: &x [*x]\n", "too"),
    ],
)
def test_other_files_are_refused_in_one_line(content, words):
    with pytest.raises(UserError, match=r"^r\.yaml") as caught:
        parse(content, "r.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_quickly():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    began = time.perf_counter()
    with pytest.raises(UserError, match="far too many values"):
        parse("\n".join(lines).encode(), "r.yaml")
    assert time.perf_counter() - began < 1


def test_reading_a_python_tag_runs_nothing(tmp_path):
    target = tmp_path / "made"
    with pytest.raises(UserError):
        parse(f"a: !!python/object/apply:pathlib.Path.touch ['{target}']\n".encode(), "r.yaml")
    assert not target.exists()
