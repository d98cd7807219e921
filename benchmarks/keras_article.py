"""The Keras article's experiment: the recipe `keras-seed-004`, on each backend, from finished runs of it.

    understudy run keras-seed-004 data.train=10000 train.backend=torch --out runs/keras-torch
    understudy run keras-seed-004 data.train=10000 train.backend=jax seeds=1 --out runs/keras-jax \\
        teacher.name=runs/keras-torch/teacher/model.keras teacher.train=none
    python benchmarks/keras_article.py runs/keras-torch runs/keras-jax

A run ends with an error if the teacher's weights are not, bit for bit, what they were before it taught.
"""

import argparse
import json
from pathlib import Path

import yaml

from common import describe_machine, record
from mnist_articles import usual_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, help="finished runs, one a backend")
    for folder in parser.parse_args().folders:
        results = json.loads((folder / "results.json").read_text())
        data = yaml.safe_load((folder / "recipe.yaml").read_text())["data"]
        ran = json.loads((folder / "environment.json").read_text())
        text = f"{usual_table(results)}\n\nTrained on {data['train']} images of {data['name']}."
        print(text)
        record(f"keras_article_{ran['backend']}", text, describe_machine(f"Keras {ran['keras']} on {ran['backend']}"))


if __name__ == "__main__":
    main()
