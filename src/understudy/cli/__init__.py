"""The command line: thin, one file a command. Nothing here imports torch until a command needs it."""

import errno
import sys
from importlib import import_module

import click
import typer

from understudy.errors import Interrupted, RunError, UserError

app = typer.Typer(
    name="understudy",
    help="Train a small model to do a large one's job, and prove how well it does it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the help: the way a newcomer takes, then what surrounds it.
for _command in (
    "quickstart", "recipes", "init", "check", "run", "compare", "resume", "train", "evaluate", "predict",
    "report", "methods", "models", "taps", "parity",
):  # fmt: skip
    import_module(f"understudy.cli.{_command}").register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and turn every expected end into its exit code.

    Args:
        arguments: the words after `understudy`; by default those of the process.

    Returns:
        0 done; 1 the run failed; 2 the user's input; 128 plus the signal that stopped it. Bugs keep their traceback.
    """
    try:
        return app(args=arguments, standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return 2
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return 130
    except UserError as error:
        return _say(str(error), 2)
    except RunError as error:
        return _say(str(error), 1)
    except Interrupted as error:
        return _say(f"{error}; a checkpoint was written: continue with `understudy resume FOLDER`", 128 + error.signal)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _say(f"the disk is full ({error.filename or 'while writing'}); the last checkpoint is kept", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        return _say("out of memory: lower train.batch_size, or raise train.accumulate; the last checkpoint is kept", 1)


def _say(text: str, code: int) -> int:
    print(f"understudy: {' '.join(text.split())}", file=sys.stderr)
    return code
