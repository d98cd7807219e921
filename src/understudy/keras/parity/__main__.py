"""`python -m understudy.keras.parity DIR`: one row a case, exit 1 if one fails. The backend is `KERAS_BACKEND`."""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

from understudy.errors import UserError


def main() -> int:
    """Compare, print, and say by the exit code whether all agree."""
    parser = argparse.ArgumentParser(prog="python -m understudy.keras.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with manifest.json and the recorded cases")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--json", type=Path, help="write the rows as a list of objects too")
    arguments = parser.parse_args()
    import keras

    from understudy.keras.parity import run_parity

    backend = keras.backend.backend()
    try:
        outcomes = run_parity(arguments.folder, dtype=arguments.dtype)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for outcome in outcomes:
        worst = max(outcome.gradients.values(), key=lambda each: math.inf if math.isnan(each) else each, default=None)
        loss, gradient = ("" if error is None else f"{error:.1e}" for error in (outcome.error, worst))
        print(f"{outcome.id:42} {loss:8} {gradient:8} {outcome.status:16} {outcome.reason}".rstrip())
    counts = {status: sum(each.status == status for each in outcomes) for status in ("pass", "fail", "not implemented")}
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    print(f"{len(outcomes)} cases on {backend} in {arguments.dtype}: {said}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
