"""The honest answer to "did it help?": paired differences over seeds, their interval, and a verdict in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

Outcome = Literal["helped", "hurt", "none", "untested"]
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Verdict:
    """What a comparison with the control came to.

    Args:
        metric: what was compared, on the test data at the last epoch.
        difference: mean of distilled minus control over the seeds, as a fraction.
        ci95: 95 % t interval of that mean; None with a single seed.
        seeds: number of pairs.
        p: two-sided p value of the paired t test, corrected after Holm where several methods were compared.
        outcome: `helped`, `hurt`, `none` (no difference could be shown) or `untested`.
        text: the verdict in words.
    """

    metric: str
    difference: float
    ci95: tuple[float, float] | None
    seeds: int
    p: float | None
    outcome: Outcome
    text: str

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The mean of some values and its 95 % t interval (n - 1 degrees of freedom); no interval for one value."""
    from scipy.stats import t

    mean = fmean(values)
    if len(values) < 2:
        return mean, None
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return mean, (mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p value of the paired t test; None for one pair.

    Scores of few test images are coarse, so that all differences can be equal by chance, and t infinite: then the
    p value is the sign test's.
    """
    from scipy.stats import t

    if len(differences) < 2:
        return None
    mean, spread = fmean(differences), stdev(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - len(differences))
    return float(2 * t.sf(abs(mean) / spread * math.sqrt(len(differences)), len(differences) - 1))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Correct p values for having looked at several at once.

    The smallest is multiplied by their number, the next by one less, and so on.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.

    Args:
        p_values: by comparison; None where there is none.

    Returns:
        The corrected values, at most 1 and never falling.
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[name] = largest
    return corrected


def verdicts(
    metric: str,
    control: Mapping[int, float],
    distilled: Mapping[str, Mapping[int, float]],
    *,
    better: Better = "higher",
) -> dict[str, Verdict]:
    """Compare distilled arms with the control, seed by seed.

    Args:
        metric: name of the score.
        control: score by seed.
        distilled: for each arm, score by seed.
        better: `higher` for fractions such as accuracy, `lower` for distances.

    Returns:
        A verdict for each arm. The interval is that arm's own; whether a difference is called shown is decided by
        the p value after Holm's correction.
    """
    differences = {
        name: [scores[seed] - control[seed] for seed in sorted(scores) if seed in control]
        for name, scores in distilled.items()
    }
    p_values = holm({name: paired_p(values) for name, values in differences.items()})
    found = {}
    for name, values in differences.items():
        mean, interval = mean_interval(values)
        outcome = _outcome(mean if better == "higher" else -mean, p_values[name])
        told = _Told(metric, better, mean, interval, len(values), p_values[name], len(differences))
        text = told.in_words(outcome)
        found[name] = Verdict(metric, mean, interval, len(values), p_values[name], outcome, text)
    return found


def untested(metric: str) -> Verdict:
    """The verdict of a run that had no control."""
    text = "Not tested: there was no control, so whether distillation helped is not known."
    return Verdict(metric, math.nan, None, 0, None, "untested", text)


def _outcome(mean: float, p: float | None) -> Outcome:
    if p is None:
        return "untested"
    if p >= 0.05:
        return "none"
    return "helped" if mean > 0 else "hurt"


@dataclass(frozen=True)
class _Told:
    """A comparison on its way into words: fractions are told in points, distances as they are."""

    metric: str
    better: Better
    mean: float
    interval: tuple[float, float] | None
    seeds: int
    p: float | None
    compared: int

    def in_words(self, outcome: Outcome) -> str:
        amount, direction = self._amount(abs(self.mean), ""), "more" if self.mean >= 0 else "less"
        if self.interval is None or self.p is None:
            return f"Not tested: one seed gave {amount} {direction}, and one seed proves nothing. Run more: seeds=5."
        low, high = (self._number(value, "+") for value in self.interval)
        spread = f"95 % interval {low} to {high}, {self.seeds} seeds"
        if self.compared > 1:
            spread += f", p corrected for {self.compared} comparisons {self.p:.3g}"
        if outcome == "none":
            return f"No difference could be shown: {self._amount(self.mean, '+')} ({spread})."
        return f"Distillation {outcome}: {amount} {direction} than the student alone ({spread})."

    def _amount(self, value: float, sign: str) -> str:
        unit = "points of " if self.better == "higher" else ""
        return f"{self._number(value, sign)} {unit}test {self.metric}"

    def _number(self, value: float, sign: str) -> str:
        return f"{100 * value:{sign}.2f}" if self.better == "higher" else f"{value:{sign}.3g}"
