"""The two ways a command can end badly without being a bug of ours."""

CHECKPOINTED = "a checkpoint was written: continue with `understudy resume FOLDER`"


class UserError(Exception):
    """What a person gave is wrong: says what, where, and what to do. The command line prints it, exit 2.

    Args:
        message: one line: what is wrong and what to do.
        where: the file and line, key or path it concerns, put before the message.
    """

    def __init__(self, message: str, *, where: object = None) -> None:
        super().__init__(" ".join((f"{where}: {message}" if where else message).splitlines()))


class RunError(Exception):
    """A run could not go on (non-finite loss, no memory, full disk). Its last good checkpoint stays, exit 1."""


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint was written.

    Args:
        signal: the number of the signal received; the exit code is 128 plus it.
        kept: what was kept, and how to go on.
    """

    def __init__(self, signal: int, kept: str = CHECKPOINTED) -> None:
        super().__init__(f"stopped by signal {signal}; {kept}")
        self.signal = signal


def did_you_mean(word: str, known: object) -> str:
    """The end of a message about an unknown name: the near ones, or the list when it is short."""
    import difflib

    names = [str(name) for name in known]  # pyright: ignore[reportGeneralTypeIssues]
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    if len(names) <= 30:
        return "known: " + ", ".join(sorted(names))
    return f"{len(names)} names are known"
