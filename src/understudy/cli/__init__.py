"""The command line: thin, one file a command. Nothing here imports torch until a command needs it."""

import errno
import sys
import time
from importlib import import_module
from typing import Any

import typer

from understudy.errors import Interrupted, RunError, UserError
from understudy.train import processes

# Typer brings a click of its own or uses the installed one, depending on its version: take the class it raises.
_ClickException: Any = typer.BadParameter.__mro__[2]

# A path that a person gave and the system refuses; any other OSError is a bug or a failing machine.
_OF_PATHS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EEXIST)

app = typer.Typer(
    name="understudy",
    help="Train a small model to do a large one's job, and prove how well it does it.",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the help: the way a newcomer takes, then what surrounds it.
for _command in (
    "quickstart", "recipes", "init", "check", "run", "compare", "submit", "resume", "train", "cache", "evaluate",
    "predict", "sample", "detect", "report", "analyse", "methods", "models", "taps", "parity",
):  # fmt: skip
    import_module(f"understudy.cli.{_command}").register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and turn every expected end into its exit code.

    Args:
        arguments: the words after `understudy`; by default those of the process.

    Returns:
        0 done; 1 the run failed; 2 the user's input; 128 plus the signal that stopped it. Bugs keep their traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return app(args=words or ["--help"], prog_name="understudy", standalone_mode=False) or 0
    except _ClickException as error:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "understudy"
        return _say(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
    except typer.Exit as done:
        return done.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except UserError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except Interrupted as error:
        return _say(str(error), 128 + error.signal)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _say(f"the disk is full ({error.filename or 'while writing'}); the last checkpoint is kept", 1)
        if error.errno not in _OF_PATHS or not error.filename:
            raise
        return _say(f"{error.filename}: {str(error.strerror).lower()}", 2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        return _say("out of memory: lower train.batch_size, or raise train.accumulate; the last checkpoint is kept", 1)


def _say(text: str, code: int) -> int:
    print(f"understudy: {' '.join(text.split())}", file=sys.stderr)
    if processes.launched().rank:
        # What is wrong in all processes the first one says: were it stopped because another has ended before it, the
        # launcher would say it again.
        time.sleep(2)
    return code
