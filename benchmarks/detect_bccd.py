"""A detector on blood cells: pruned by half and by 70 %, recovered alone and with its original as teacher.

UNDERSTUDY_DATA=... python benchmarks/detect_bccd.py                                # CPU size, an hour or two
UNDERSTUDY_DATA=... python benchmarks/detect_bccd.py --imgsz 640 --epochs 100 --recover 100 --device cuda:0
python benchmarks/detect_bccd.py --from runs/detect-bccd                            # reads finished runs

The base is trained once; it is also trained on for the epochs of the recovery, so that both have had the same total.
The layers that see at the highest resolutions keep their width: they have few of the parameters, and platelets are a
few pixels wide. Small batches in the recovery, because ten epochs of large ones are few steps.
"""

import argparse
import json
import os
from pathlib import Path

import understudy as us
from common import describe_machine, record
from understudy.compare import mean_interval
from understudy.report.format import interval
from understudy.tasks.detect import Compressor
from understudy.tasks.detect.measure import measure_all

METRICS = ("mAP50", "mAP50-95")
ARMS = ("student_alone", "student_cwd", "student_mgd")
LEFT = {"half": 0.5, "70 percent fewer": 0.3}
KEPT = ("model.[0-4].*", "model.15.*", "model.22.cv[23].0.*")  # backbone to stride 8, and what detects there (v8)


def folder_of(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-")


def seeds_of(model: dict, metric: str) -> list[float]:
    return [entry["last"] for entry in model["metrics"][metric]["seeds"]]


def run(out: Path, arguments: argparse.Namespace) -> None:
    common = [
        f"imgsz={arguments.imgsz}", f"train.device={arguments.device}", f"args.batch={arguments.recover_batch}",
        f"args.nbs={arguments.recover_batch}", "args.lr0=0.001", "args.plots=false", "stages.finetune=null",
        f"stages.prune.keep={json.dumps(KEPT)}",
        f"stages.distill.epochs={arguments.recover}", "stages.sensitivity=null", f"seeds={arguments.seeds}",
    ]  # fmt: skip
    base = out / "base" / "weights" / "trained.pt"
    data = Path(os.environ["UNDERSTUDY_DATA"]) / "bccd" / "bccd.yaml"
    settings = {"imgsz": arguments.imgsz, "plots": False, "device": arguments.device.replace("cuda:", ""),
                "optimizer": "AdamW", "patience": 0, "warmup_bias_lr": 0.0}  # fmt: skip
    if not base.exists():
        first = {"batch": arguments.batch, "nbs": arguments.batch, "lr0": 0.002, "epochs": arguments.epochs}
        Compressor(arguments.model, data, folder=out / "base", **settings).train(**first)
    settings |= {"batch": arguments.recover_batch, "nbs": arguments.recover_batch, "lr0": 0.001}
    longer = [Compressor(base, data, folder=out / f"longer-{seed}", **settings) for seed in range(arguments.seeds)]
    for seed, compressor in enumerate(longer):
        compressor.train(epochs=arguments.recover, seed=seed, resume=True)
    if not (out / "longer.json").exists():
        rows = [compressor.compare(compressor.weights).rows for compressor in longer]
        (out / "longer.json").write_text(json.dumps([[row.to_json() for row in pair] for pair in rows]))
    start = [f"model={base}", f"stages.distill.teacher={base}", "stages.train=null", "stages.sparsify=null"]
    for name, left in LEFT.items():
        folder = folder_of(out, name)
        if (folder / "recipe.yaml").exists():
            us.resume(folder)
        else:
            us.run("yolo-bccd", [*common, *start, f"stages.prune.parameters={left}", "stages.predict=null"], out=folder)
    (out / "latencies.json").write_text(json.dumps(latencies(out, base, arguments.imgsz)))


def latencies(out: Path, base: Path, imgsz: int) -> dict[str, float | None]:
    """Milliseconds in onnxruntime of the base and of each pruned model, timed in turn."""
    pruned = {name: folder_of(out, name) / "weights" / "pruned.pt" for name in LEFT}
    return {row.name: row.onnxruntime_ms for row in measure_all({"base": base, **pruned}, imgsz=imgsz)}


def told(out: Path) -> str:
    pairs = json.loads((out / "longer.json").read_text())
    before, after = pairs[0][0], [pair[1] for pair in pairs]
    rows = ["| model | parameters | MACs | onnxruntime | mAP50 | mAP50-95 |", "|---|---|---|---|---|---|"]

    def row(name: str, model: dict, latency: float, scores: dict[str, list[float]]) -> None:
        shown = " | ".join(interval(*mean_interval(scores[metric])) for metric in METRICS)
        rows.append(f"| {name} | {model['parameters']:,} | {model['macs'] / 1e6:.0f} M | {latency:.2f} ms | {shown} |")

    times = json.loads((out / "latencies.json").read_text())
    row("base", before, times["base"], {metric: [before["metrics"][metric]] for metric in METRICS})
    long = {metric: [each["metrics"][metric] for each in after] for metric in METRICS}
    row("base, trained on for as long", after[0], times["base"], long)
    verdicts = []
    for name in LEFT:
        results = json.loads((folder_of(out, name) / "results.json").read_text())
        for model in ("pruned", *ARMS):
            found = results["models"][model]
            scores = {metric: seeds_of(found, metric) for metric in METRICS}
            row(f"{name}: {model}", found, times[name], scores)
        for arm, verdict in results["verdicts"].items():
            verdicts.append(f"- {name}, {arm}: {verdict['text']}")
        base = mean_interval(long["mAP50"])[0]
        differences = ", ".join(
            f"{arm} {mean_interval(seeds_of(results['models'][arm], 'mAP50'))[0] - base:+.4f}" for arm in ARMS
        )
        verdicts.append(f"- {name}: mAP50 against the base of equal total epochs: {differences}; "
                        f"{times['base'] / times[name]:.2f} times as fast in onnxruntime (timed in turn)")  # fmt: skip
    return "\n".join([*rows, "", *verdicts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8n.yaml", help="a YOLOv8: see KEPT")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--recover-batch", type=int, default=4)
    parser.add_argument("--recover", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/detect-bccd"))
    parser.add_argument("--from", dest="finished", type=Path)
    arguments = parser.parse_args()
    out = (arguments.finished or arguments.out).resolve()
    if arguments.finished is None:
        run(out, arguments)
    size = f"{arguments.model}, {arguments.imgsz} px, {arguments.epochs} + {arguments.recover} epochs"
    text = told(out) if arguments.finished else f"{size}, {arguments.seeds} seeds\n\n{told(out)}"
    print(text)
    record("detect_bccd", text, describe_machine())


if __name__ == "__main__":
    main()
