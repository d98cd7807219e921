"""`understudy detect`: one stage of a detector's compression at a time, with arguments as ultralytics has them."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.errors import UserError

if TYPE_CHECKING:
    from understudy.tasks.detect.compressor import Compressor

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="What the command takes, and any argument of ultralytics: imgsz=640."),
]

stages = typer.Typer(
    help="Detectors (ultralytics, AGPL-3.0), from training to export; diagrams: boxes and their parents.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.add_typer(stages, name="detect")


@stages.command()
def train(arguments: Arguments = None) -> None:
    """Train: model=yolov8n.yaml data=my.yaml epochs=100.

    A pruned model keeps its widths. Leaves FOLDER/weights/trained.pt (folder=FOLDER).
    """
    _stage(arguments, lambda small, given: small.train(**given))


@stages.command()
def sparsify(arguments: Arguments = None) -> None:
    """Pull BatchNorm scales to zero: model=best.pt data=my.yaml strength=0.5 epochs=50.

    Also method=proximal|subgradient, schedule=constant|linear|cosine, end=0.1. Leaves FOLDER/weights/sparse.pt.
    """
    _stage(arguments, lambda small, given: small.sparsify(**given))


@stages.command()
def prune(arguments: Arguments = None) -> None:
    """Remove channels: model=sparse.pt ratio=0.4, or parameters=0.5, macs=0.5, latency=0.5 to be left.

    Also scope=local|global, round_to=8, most=0.9, limits={model.2: 0.1}, keep=[model.0], imgsz=640, and out=pruned.pt.
    """
    given = parse(arguments)
    weights, out = _take(given, "model"), given.pop("out", None)
    trust = bool(given.pop("trust_pickle", False))

    from understudy.tasks.detect.compressor import make_pruning
    from understudy.tasks.detect.stages import prune_weights

    to = Path(out) if out else Path(weights).with_name("pruned.pt")
    if to.exists():
        raise UserError("exists already: choose another with out=", where=to)
    if isinstance(given.get("keep"), (str, list)):
        given["keep"] = tuple([given["keep"]] if isinstance(given["keep"], str) else given["keep"])
    done = prune_weights(weights, to, make_pruning(given), trust_pickle=trust)
    print(done.in_words())
    print(to)


@stages.command()
def finetune(arguments: Arguments = None) -> None:
    """Train a pruned model on: model=pruned.pt data=my.yaml epochs=50.

    Leaves FOLDER/weights/finetuned.pt.
    """
    _stage(arguments, lambda small, given: small.finetune(**given))


@stages.command()
def distill(arguments: Arguments = None) -> None:
    """Train a student with a teacher: model=pruned.pt teacher=best.pt method=cwd data=my.yaml epochs=100.

    Also layers=neck|backbone|article|[4, 6], teacher_layers, weight, schedule, end and the method's own options;
    unlabelled=FRAMES; control=false leaves out the same training without a teacher; folder=FOLDER resume=true goes on.
    """
    given = parse(arguments)
    method = {"name": given.pop("method", "mgd")}

    from understudy.tasks.detect.catalogue import check_method
    from understudy.tasks.detect.guest import argument_names

    ours = {"model", "data", "folder", "trust_pickle", "teacher", "control", "unlabelled", "unlabelled_batch"}
    for key in [key for key in given if key not in ours | argument_names()]:
        method[key] = given.pop(key)
    if problem := check_method(method):
        raise UserError(problem)
    _take(given, "teacher", keep=True)
    _run(given, lambda small, rest: small.distill(method=method, **rest))


@stages.command()
def export(arguments: Arguments = None) -> None:
    """Export: model=distilled.pt format=onnx imgsz=640.

    Also half, int8 (with data=my.yaml, whose training images calibrate it), dynamic, nms and what ultralytics takes.
    """
    given = parse(arguments)
    weights, data = _take(given, "model"), given.pop("data", None)

    from understudy.tasks.detect.data import read_data
    from understudy.tasks.detect.export import export as write

    if data is not None:
        data = read_data(data).write(Path(weights).with_name("data.yaml"))
    done = write(weights, given.pop("format", "onnx"), data=data, **given)
    if done.difference is not None:
        print(f"largest difference to torch: {done.difference:.1e} of the largest output")
    print(done.path)


@stages.command()
def compare(arguments: Arguments = None) -> None:
    """Measure models side by side: weights=[a.pt, b.pt, b.onnx] data=my.yaml imgsz=640 split=test.

    Also names=[before, after], device, batch, folder=FOLDER for the table as JSON and the plot.
    """
    given = parse(arguments)
    weights, data = _several(_take(given, "weights")), _take(given, "data")
    folder, names = Path(given.pop("folder", "runs/detect/compare")), given.pop("names", None)

    from rich.console import Console

    from understudy.tasks.detect.comparison import compare as measure
    from understudy.tasks.detect.compressor import prepare_data

    with _dirt_in_one_line():
        found, data_yaml = prepare_data(data, folder)
    named = dict(zip(names, weights, strict=True)) if names and len(names) == len(weights) else weights
    imgsz, split = int(given.pop("imgsz", 640)), given.pop("split", found.test_split)
    trust = bool(given.pop("trust_pickle", False))
    table = measure(named, data_yaml, imgsz=imgsz, split=split, arguments=given, trust_pickle=trust)
    Console(width=None if Console().is_terminal else 140).print(table.table())
    print(table.save(folder))


@stages.command()
def predict(
    arguments: Arguments = None,
    relations: Annotated[bool, typer.Option("--relations", help="Also find and draw each box's parent.")] = False,
) -> None:
    """Draw boxes: model=best.pt source=images/ (or W images/), on images, folders or video frames.

    Also conf, iou, imgsz and what ultralytics takes; folder=FOLDER for the pictures.
    """
    given = parse(arguments, positional=("model", "source"))
    weights, source = _take(given, "model"), _take(given, "source")
    folder = Path(given.pop("folder", "runs/detect/predictions"))

    if relations:
        from understudy.tasks.detect.relations import predict_relations

        pictures = predict_relations(weights, source, folder, **given)
    else:
        from understudy.tasks.detect.predict import predict as draw

        pictures = draw(weights, source, folder, **given)
    print(f"{len(pictures)} pictures in {folder}")


@stages.command()
def evaluate(
    arguments: Arguments = None,
    split: Annotated[str, typer.Option("--split", help="Which images/SPLIT and plabels/SPLIT.")] = "val",
) -> None:
    """Score boxes and their parents on diagrams: model=best.pt data=datasets/diagram (or W FOLDER) --split val."""
    given = parse(arguments, positional=("model", "data"))
    weights, data = _take(given, "model"), _take(given, "data")

    from understudy.tasks.detect.relations import evaluate_weights

    print(evaluate_weights(weights, data, split=split, **given))


@stages.command()
def generate(arguments: Arguments = None) -> None:
    """Draw diagrams to train and test on: out=datasets/diagram (or OUT) count=500 seed=0.

    Also val=0.1 and test=0.1, their shares. Writes images/, labels/, plabels/ (with each box's parent), diagram.yaml.
    """
    given = parse(arguments, positional=("out",))
    out = _take(given, "out")

    from understudy.errors import did_you_mean
    from understudy.recipe.signature import options, wrong_type

    known = options("understudy.tasks.detect.diagrams.generate", "generate_diagrams")
    names = known.keys() - {"progress"}
    for name, value in given.items():
        if name not in names:
            raise UserError(f"no option '{name}', {did_you_mean(name, names)}")
        if problem := wrong_type(known[name], value):
            raise UserError(f"{name}: {problem}")

    from rich.progress import Progress

    from understudy.tasks.detect.diagrams import generate_diagrams

    with Progress(transient=True) as progress:
        drawn = progress.add_task("diagrams", total=given.get("count", 500))
        print(generate_diagrams(out, **given, progress=lambda done: progress.update(drawn, completed=done)))


def parse(arguments: list[str] | None, *, positional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments of the form key=value, values as in YAML.

    Args:
        arguments: as typed.
        positional: what arguments without a key mean, in order.

    Raises:
        UserError: not of that form, or one given twice.
    """
    from understudy.recipe.source import parse_value

    found: dict[str, Any] = {}
    waiting = list(positional)
    for text in arguments or []:
        key, equals, value = text.partition("=")
        if not equals and waiting:
            key, value = waiting.pop(0), text
        elif not equals or not key:
            raise UserError("arguments have the form key=value, such as imgsz=640", where=f"'{text}'")
        if key in found:
            raise UserError(f"'{key}' is given twice", where=f"'{text}'")
        found[key] = parse_value(value, f"'{text}'")
        if key in waiting:
            waiting.remove(key)
    return found


def _stage(arguments: list[str] | None, do: Callable[["Compressor", dict[str, Any]], Any]) -> None:
    _run(parse(arguments), do)


def _run(given: dict[str, Any], do: Callable[["Compressor", dict[str, Any]], Any]) -> None:
    """Make a compressor of what every stage needs, do the stage, and print what it left."""
    model, data = _take(given, "model"), _take(given, "data")
    own = {key: given.pop(key) for key in ("folder", "trust_pickle") if key in given}

    from understudy.tasks.detect.compressor import Compressor

    with _dirt_in_one_line():
        small = Compressor(model, data, **own, **{key: given[key] for key in ("imgsz", "device") if key in given})
    done = do(small, given)
    for name, path in done.weights.items():
        if name != "given":
            print(f"{name}: {path}")


@contextmanager
def _dirt_in_one_line() -> Iterator[None]:
    """What is merely dirty in the data is said without the place in our source that Python puts before it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"understudy: {message}", file=sys.stderr)
        yield


def _take(given: dict[str, Any], key: str, *, keep: bool = False) -> Any:
    if key not in given:
        raise UserError(f"{key} is missing: {key}=...")
    return given[key] if keep else given.pop(key)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
