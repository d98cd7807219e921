"""Writing the report beside the files it is drawn from."""

import os
from pathlib import Path

from understudy.report.read import read_run


def write_report(folder: Path) -> Path:
    """Writes `report.html` of a run folder, finished or not, replacing the one before in one step.

    Args:
        folder: the run folder.

    Returns:
        The path of the report.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    # The plotting library takes most of a second, and the terminal table only wants `format`.
    from understudy.report.page import page

    folder = Path(folder)
    html = page(read_run(folder))
    path = folder / "report.html"
    temporary = folder / f".report.html.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(html.encode("utf-8", errors="replace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
