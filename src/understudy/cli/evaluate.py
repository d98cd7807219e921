"""`understudy evaluate`: score a saved model, or one by its name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from understudy.cli.options import Import, import_packages, section
from understudy.errors import UserError, did_you_mean

_SPLITS = ("test", "validation", "train")
_HEADS = ("mean", "sum_softmax", "class", "distillation")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="A saved model or run; or a name, such as timm/deit_tiny_patch16_224.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Of the data, path=DIR; of a name, weights=FILE.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A data set by name [default: the run's own].")] = None,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    images: Annotated[
        Path | None, typer.Option(help="Instead a folder with a folder for each class: ImageNet's val, ImageNet-V2.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="JSON lists of the right classes by image, as ImageNet-ReaL.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="What two heads answer: mean, sum_softmax, class or distillation.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Of a diffusion run: numbers of steps, such as 1,2,4,64.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes that share the work; the scores stay the same.")] = 1,
    packages: Import = None,
) -> None:
    """Print accuracy and loss of a model on a data set.

    Of images of ImageNet and others with more than ten classes Acc@1, Acc@5 and loss; of two heads each one's.
    """
    import_packages(packages)
    if split not in _SPLITS:
        raise UserError(f"there is no split '{split}', {did_you_mean(split, _SPLITS)}", where="--split")
    if heads is not None and heads not in _HEADS:
        raise UserError(f"there is no '{heads}', {did_you_mean(heads, _HEADS)}", where="--heads")
    if data is not None and images is not None:
        raise UserError("give --data, a data set, or --images, a folder: not both")
    if labels is not None and images is None:
        raise UserError("belong to a folder of images: give --images too", where="--labels")
    is_folder = Path(model).is_dir()
    if not is_folder:
        check_name(model)
    recipe: Any = _recipe_of(model) if is_folder else None
    if recipe is not None and recipe.task != "classify":
        print(_by_task(recipe.task, Path(model), [*(options or []), *([f"steps={steps}"] if steps else [])]))
        return
    if steps is not None:
        raise UserError("belong to a run of diffusion", where="--steps")
    of_model, of_data = ([], options or []) if is_folder else divide(options or [], data)
    described = None if images is not None else _described(model, recipe, data, of_model, of_data)
    if images is not None and of_data:
        raise UserError("is for a data set: with --images there are no such options", where=f"'{of_data[0]}'")

    from understudy.evaluate import best_device
    from understudy.evaluate import evaluate as score
    from understudy.tasks.classify.named import open_model

    module = open_model(model, section("model", {}, of_model, name=model).data["model"]).to(best_device())
    scores = score(module, data=described, split=split, images=images, labels=labels, heads=heads, processes=nproc)  # pyright: ignore[reportArgumentType] (one of the heads, as looked at above)
    told = heads or getattr(module, "combine_heads", "mean")
    print("\n".join(_in_lines(scores, told, as_imagenet=images is not None)))


def divide(options: list[str], data: str | None) -> tuple[list[str], list[str]]:
    """Which options are a named model's and which the data's: `model.size=384` and `data.size=384` say it themselves.

    Args:
        options: `key=value` texts.
        data: the name of the data set, None for a folder of images, which has none.
    """
    known = _keys_of_data(data)
    parts: dict[str, list[str]] = {"model": [], "data": []}
    for text in options:
        whose, dot, rest = text.partition("=")[0].partition(".")
        if dot and whose in parts:
            parts[whose].append(text.removeprefix(f"{whose}."))
        else:
            parts["data" if whose in known and not rest else "model"].append(text)
    return parts["model"], parts["data"]


def _keys_of_data(name: str | None) -> set[str]:
    from understudy.data.table import SOURCES
    from understudy.recipe.schema import Data
    from understudy.recipe.signature import options

    if name is None:
        return set()
    of_source = options(SOURCES[name].module, SOURCES[name].function) if name in SOURCES else {}
    return {*Data.model_fields, *of_source}


def check_name(model: str) -> None:
    """Refuse what is neither a folder nor may be the name of a model.

    Raises:
        UserError: a path that leads nowhere is likelier than a model of that name.
    """
    from understudy.models.table import MODELS, PREFIXES, REGISTERED

    if not model.startswith(PREFIXES) and model not in {*MODELS, *REGISTERED}:
        raise UserError("no such folder: give that of a saved model or of a run, or a name as timm/NAME", where=model)


def _recipe_of(model: str) -> Any:
    """The recipe of the run that a folder is, or is in; None where it is in none."""
    from understudy.recipe.reader import read_recipe

    home = next((place for place in (Path(model), *Path(model).parents) if (place / "recipe.yaml").is_file()), None)
    return None if home is None else read_recipe(home / "recipe.yaml", files=False)


def _by_task(task: str, folder: Path, options: list[str]) -> str:
    """How a run of another task is scored: its own module knows."""
    from understudy.run.start import runner_of

    runner: Any = runner_of(task)
    if not hasattr(runner, "evaluate"):
        raise UserError(f"is a run of the task {task}, which is scored when it ends: see its report", where=folder)
    return runner.evaluate(folder, options)


def _described(model: str, recipe: Any, data: str | None, of_model: list[str], of_data: list[str]) -> Mapping[str, Any]:
    """The data section to score on, checked."""
    from understudy.recipe.reader import read_data

    if data is None and recipe is None:
        raise UserError("name the data with --data or --images: the model is in no run folder", where=model)
    if data is None:
        described = recipe.data.model_dump(mode="json")
        origin = f"the data of the run {recipe.name}"
    else:
        described, origin = {"name": data}, f"--data {data}"
    read_data(section("data", described, of_data, name=origin))
    return described


def _in_lines(scores: Mapping[str, float], answer: str, *, as_imagenet: bool) -> list[str]:
    """What is printed: one line, or with two heads a line for the answer and one for each head."""
    rows = {"": "", "[class]": "class", "[distillation]": "distillation"}
    rows = {suffix: name for suffix, name in rows.items() if f"accuracy{suffix}" in scores}
    if len(rows) == 1 and "top5" not in scores and not as_imagenet:
        return ["  ".join(f"{name} {value:.4f}" for name, value in scores.items())]
    if len(rows) > 1:
        rows[""] = answer if answer in ("class", "distillation") else f"both ({answer})"
    width = max(map(len, rows.values()))
    return [f"{name:<{width}}  {_in_words(scores, suffix)}".strip() for suffix, name in rows.items()]


def _in_words(scores: Mapping[str, float], suffix: str) -> str:
    parts = {"Acc@1": f"accuracy{suffix}", "Acc@5": f"top5{suffix}", "loss": f"loss{suffix}"}
    shown = {name: scores[key] for name, key in parts.items() if key in scores}
    return "  ".join(
        f"{name} {value:.4f}" if name == "loss" else f"{name} {100 * value:7.3f}" for name, value in shown.items()
    )
