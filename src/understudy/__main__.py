"""`python -m understudy`, and what the installed command calls."""

import sys

from understudy.cli import main


def run() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
