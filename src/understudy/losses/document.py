"""What the table of losses says, in words: for `understudy methods` and for docs/methods.md. Imports no torch."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from understudy.losses.catalogue.schemes import SCHEMES, Scheme
from understudy.losses.table import FAMILIES, LOSSES, Loss
from understudy.losses.temperature import gradient_ratios

# What a batch or the models must give, by the arguments of a loss's `forward`.
_NEEDS = {
    "labels": "labels",
    "inputs": "the images",
    "sample_ids": "the samples' numbers",
    "teacher_head": "the teacher's last layer",
    "student_model": "the student itself",
    "teacher_model": "the teacher itself",
    "epoch": "the epoch",
    "step": "the step",
}
_TEMPERATURES = (1, 2, 4, 8, 16, 32, 64)
_OF_TRANSFORMERS = {"vitkd": ("timm/deit3_small_patch16_224", "timm/deit_tiny_patch16_224")}
_HEADER = """# Methods
Written by `understudy methods --markdown > docs/methods.md` from the table that recipes are read with; \
`understudy methods NAME` prints one.

A method's name in a recipe (`method: dkd`) means its preset `default`; `method: dkd:imagenet` means another one, \
`method: dkd+at` a sum, `method: {name: dkd, beta: 2}` other settings. In the presets, `labels` is the weight of cross \
entropy on the labels and `weight` that of the loss; over several taps a loss is their sum. Where no setting was \
published, or none that could be confirmed, the source says so.
"""


def needs(row: Loss) -> tuple[str, ...]:
    """What a loss asks for beside logits or features.

    Args:
        row: of the table.

    Returns:
        A few words each: fields of the batch, parts of the models, gradients, weights of its own.
    """
    methods, settings = _read(row.module, row.class_name)
    forward = methods["forward"].args
    found = [_NEEDS[argument.arg] for argument in forward.kwonlyargs]
    if "teacher" not in [argument.arg for argument in forward.args]:
        found.insert(0, "no teacher")
    if "needs_input_gradients" in settings:
        found.append("gradients through both models")
    if "prepare" in methods:
        found.append("weights of its own")
    return tuple(found)


def short_paper(row: Loss | Scheme) -> str:
    """Who wrote it and when, such as `Hinton et al. 2015`."""
    authors = row.paper.partition(":")[0].removesuffix(" et al.")
    names = authors.split(", ")
    more = " et al." if len(names) > 2 or authors != row.paper.partition(":")[0] else ""
    year = re.findall(r"\d{4}", row.paper)[-1]
    return f"{names[0] if more else ' and '.join(names)}{more} {year}"


def settings_in_words(settings: dict[str, Any]) -> str:
    """A preset as it would stand in a recipe, without braces."""
    return ", ".join(f"{key}: {_value(value)}" for key, value in settings.items())


def example_recipe(name: str) -> str:
    """A recipe that trains with a method by its name alone."""
    if name in SCHEMES:
        models = "\n".join(SCHEMES[name].models)
        return f"name: {name}-example\ndata: digits\n{models}\nmethod: {name}\n"
    if name in _OF_TRANSFORMERS:
        teacher, student = _OF_TRANSFORMERS[name]
        models = f"teacher: {{name: {teacher}, pretrained: true}}\nstudent: {student}"
        return f"name: {name}-example\ndata: {{name: folder, path: photos, size: 224}}\n{models}\nmethod: {name}\n"
    return (
        f"name: {name}-example\ndata: digits\nteacher: cnn\nstudent: {{name: cnn, widths: [8, 16]}}\nmethod: {name}\n"
    )


def explanation(name: str) -> str:
    """All about one method, as text for a terminal."""
    if name in SCHEMES:
        return _explained_scheme(name)
    row = LOSSES[name]
    lines = [
        name,
        f"  {row.summary}",
        f"  formula  {row.formula}",
        f"  paper    {row.paper}",
        f"           {row.link}",
        f"  compares {row.taps}",
        f"  needs    {', '.join(needs(row)) or 'nothing else'}",
        f"  costs    {row.cost}",
        f"  options  {', '.join(_options(row)) or 'none'}",
        "  presets (labels: weight of cross entropy on the labels; weight: of this loss)",
        *(f"    {_word(name, preset):<24}{settings_in_words(settings)}" for preset, settings in row.presets.items()),
        f"    source of the default: {row.source}",
        "  in a recipe",
        *(f"    {line}" for line in example_recipe(name).splitlines()),
    ]
    if name == "kd":
        lines += ["  size of its gradient over that of the labels, by temperature", *_of_temperature()]
    return "\n".join(lines)


def _explained_scheme(name: str) -> str:
    scheme = SCHEMES[name]
    lines = [
        name,
        f"  {scheme.summary}",
        f"  paper    {scheme.paper}",
        f"           {scheme.link}",
        f"  needs    {scheme.needs or 'nothing else'}",
        f"  costs    {scheme.cost}",
        f"  means    {{name: {name}, {settings_in_words(scheme.settings)}}}",
        "  in a recipe",
        *(f"    {line}" for line in example_recipe(name).splitlines()),
    ]
    return "\n".join(lines)


def markdown() -> str:
    """The page docs/methods.md."""
    parts = [_HEADER]
    for family, rows in FAMILIES.items():
        parts.append(f"## {family}\n| method | compares | needs | costs | paper |\n|---|---|---|---|---|")
        parts += [
            f"| [{name}](#{name}) | {row.taps} | {', '.join(needs(row))} | {row.cost} | {short_paper(row)} |"
            for name, row in rows.items()
        ]
        parts.append("")
        parts += [_section(name, row) for name, row in rows.items()]
    parts += ["## Schemes\n| method | means | needs | costs | paper |\n|---|---|---|---|---|"]
    parts += [
        f"| {name} | {scheme.summary} `{{name: {name}, {settings_in_words(scheme.settings)}}}` | {scheme.needs} "
        f"| {scheme.cost} | [{short_paper(scheme)}]({scheme.link}) |"
        for name, scheme in SCHEMES.items()
    ]
    parts += ["", "Others are written with keys of the recipe ([recipes.md](recipes.md)), or are losses above.", ""]
    return "\n".join(parts)


def _section(name: str, row: Loss) -> str:
    title, _, year = row.paper.partition(":")
    lines = [
        f"### {name}",
        f"{row.summary} `{row.formula}`",
        "",
        f"{title}:{year} ([read it]({row.link})). Source of the default: {row.source}.",
        "",
        *(f"- `{_word(name, preset)}`: `{settings_in_words(value)}`" for preset, value in row.presets.items()),
        "",
    ]
    if name == "kd":
        lines += ["The size of its gradient over that of the labels:", "```", *_of_temperature(), "```", ""]
    return "\n".join(lines)


def _options(row: Loss) -> list[str]:
    """The options as the constructor declares them, such as `temperature: float = 4.0`."""
    methods, _ = _read(row.module, row.class_name)
    if "__init__" not in methods:
        return []
    declared = methods["__init__"].args
    return [
        f"{argument.arg}: {ast.unparse(argument.annotation or ast.Constant(None))}"
        + ("" if default is None else f" = {ast.unparse(default)}")
        for argument, default in zip(declared.kwonlyargs, declared.kw_defaults, strict=True)
    ]


def _of_temperature() -> list[str]:
    rows = [
        ("T", [f"{temperature}" for temperature in _TEMPERATURES]),
        ("with T²", [f"{ratio:.3f}" for ratio in gradient_ratios(_TEMPERATURES)]),
        ("without", [f"{ratio:.1e}" for ratio in gradient_ratios(_TEMPERATURES, t_squared=False)]),
    ]
    return ["    " + f"{title:<9}" + "".join(f"{value:>9}" for value in values) for title, values in rows]


def _word(name: str, preset: str) -> str:
    return name if preset == "default" else f"{name}:{preset}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + settings_in_words(value) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@cache
def _read(module: str, name: str) -> tuple[dict[str, ast.FunctionDef], set[str]]:
    """The methods of a class and the names it sets, with those of its bases in the same file, from the source."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    classes = {
        node.name: node for node in ast.parse(Path(spec.origin).read_text()).body if isinstance(node, ast.ClassDef)
    }
    methods: dict[str, ast.FunctionDef] = {}
    settings: set[str] = set()
    wanted = [name]
    while wanted:
        definition = classes.get(wanted.pop())
        if definition is None:
            continue
        wanted += [base.id for base in definition.bases if isinstance(base, ast.Name)]
        for node in definition.body:
            if isinstance(node, ast.FunctionDef):
                methods.setdefault(node.name, node)
            if isinstance(node, ast.Assign):
                settings |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return methods, settings
