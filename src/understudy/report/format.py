"""How numbers are written, in the report and in the terminal alike."""

import math

DASH = "–"
MINUS = "−"

_NOT_FRACTIONS = {"loss", "fid", "frechet", "paired_mse", "kid", "inception_score", "perplexity", "mse", "mae", "rmse"}


def is_fraction(metric: str) -> bool:
    """Whether a metric lies between 0 and 1, so that its differences read as percentage points.

    Args:
        metric: its name, with or without an index, such as `accuracy` or `recall[3]`.

    Returns:
        False for losses, distances and the like.
    """
    return metric.split("[")[0] not in _NOT_FRACTIONS


def score(x: float | None) -> str:
    """A score as tables show it: `.9552`; four digits also for what is no fraction: `12.34`.

    Args:
        x: the score; None when unknown.

    Returns:
        The text, a dash for what is unknown or not finite.
    """
    if x is None or not math.isfinite(x):
        return DASH
    text = f"{abs(x):.4f}".removeprefix("0") if abs(x) <= 1 else f"{abs(x):.4g}"
    return (MINUS if x < 0 and text != ".0000" else "") + text


def interval(mean: float | None, ci: tuple[float, float] | None) -> str:
    """A mean with its interval: `.9552 ± .0039`, or both ends where it is lopsided.

    Args:
        mean: the mean; None when unknown.
        ci: the low and high end of the interval; None with a single seed.

    Returns:
        The text, the mean alone where there is no interval.
    """
    if ci is None or mean is None or not all(map(math.isfinite, (mean, *ci))):
        return score(mean)
    low, high = ci
    if abs((high - mean) - (mean - low)) > 0.02 * (high - low):
        return f"{score(mean)} ({score(low)} to {score(high)})"
    return f"{score(mean)} ± {score((high - low) / 2)}"


def points(difference: float | None) -> str:
    """A difference of two fractions in percentage points, always with its sign: `+3.45 pp`.

    Args:
        difference: the difference as a fraction; None when unknown.

    Returns:
        The text, a dash for what is unknown or not finite.
    """
    return _signed(difference, 100, ".2f", " pp")


def difference(metric: str, x: float | None) -> str:
    """A difference of two scores in the unit of their metric.

    Args:
        metric: the name of the metric.
        x: the difference; None when unknown.

    Returns:
        Percentage points for fractions, otherwise the signed number.
    """
    return points(x) if is_fraction(metric) else _signed(x, 1, ".4g", "")


def count(n: float | None) -> str:
    """A large number to three digits: `950`, `272 k`, `1.23 M`.

    Args:
        n: the number; None when unknown.

    Returns:
        The text, a dash for what is unknown.
    """
    return _scaled(n, ("", " k", " M", " G", " T"))


def counted(n: int, noun: str) -> str:
    """A whole number of things: `1 step`, `1,024 steps`.

    Args:
        n: the number.
        noun: of one of them.

    Returns:
        The text.
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def bytes(n: float | None) -> str:
    """A size in decimal units to three digits: `1.09 MB`.

    Args:
        n: the number of bytes; None when unknown.

    Returns:
        The text, a dash for what is unknown.
    """
    return _scaled(n, (" B", " kB", " MB", " GB", " TB"))


def milliseconds(x: float | None) -> str:
    """A duration in milliseconds to three digits: `1.84 ms`.

    Args:
        x: the milliseconds; None when unknown.

    Returns:
        The text, a dash for what is unknown or not finite.
    """
    if x is None or not math.isfinite(x):
        return DASH
    return f"{_three_digits(x)} ms"


def _signed(x: float | None, scale: float, spec: str, unit: str) -> str:
    if x is None or not math.isfinite(x):
        return DASH
    text = format(abs(x) * scale, spec)
    # What rounds to zero has no direction worth showing.
    sign = "" if float(text) == 0 else "+" if x > 0 else MINUS
    return f"{sign}{text}{unit}"


def _scaled(n: float | None, units: tuple[str, ...]) -> str:
    if n is None or not math.isfinite(n):
        return DASH
    if n < 1000 and n == int(n):
        return f"{int(n)}{units[0]}"
    unit = 0
    # 999.6 would print as 1000 of its unit.
    while n >= 999.5 and unit < len(units) - 1:
        n, unit = n / 1000, unit + 1
    return f"{_three_digits(n)}{units[unit]}"


def _three_digits(x: float) -> str:
    if x == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{x:.3g}")))))
    return f"{x:.{min(decimals, 6)}f}"
