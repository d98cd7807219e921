"""The verdict: t intervals, paired tests, Holm's correction, and words that fit them."""

import numpy as np
import pytest
from scipy import stats

from understudy.compare import holm, mean_interval, paired_p, untested, verdicts


def test_the_interval_is_students_t():
    values = [0.91, 0.93, 0.92, 0.95, 0.90]
    mean, interval = mean_interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values))
    assert interval == pytest.approx(expected)


def test_the_interval_of_three_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    assert mean_interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5)))


def test_one_value_has_no_interval_and_no_p():
    assert mean_interval([0.5]) == (0.5, None)
    assert paired_p([0.1]) is None


@pytest.mark.parametrize("seed", range(5))
def test_p_is_that_of_the_paired_t_test(seed):
    first, second = np.random.default_rng(seed).normal(size=(2, 3 + seed))
    assert paired_p([float(value) for value in first - second]) == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_equal_differences_are_judged_by_their_sign():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([0.25, 0.25]) == 0.5
    assert paired_p([-0.25] * 6) == 2 / 2**6


def test_holms_correction_by_hand():
    # Ordered 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": None})
    assert corrected == {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06, "e": None}
    assert list(corrected) == ["a", "b", "c", "d", "e"]
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


CONTROL = {0: 0.90, 1: 0.91, 2: 0.92}


@pytest.mark.parametrize(
    ("scores", "outcome", "text"),
    [
        ([0.92, 0.931, 0.941], "helped", "Distillation helped: 2.07 points of test accuracy more than"),
        ([0.88, 0.891, 0.899], "hurt", "Distillation hurt: 2.00 points of test accuracy less than"),
        ([0.91, 0.90, 0.92], "none", "No difference could be shown: +0.00 points of test accuracy"),
    ],
)  # fmt: skip
def test_outcomes_and_their_words(scores, outcome, text):
    verdict = verdicts("accuracy", CONTROL, {"student": dict(enumerate(scores))})["student"]
    assert verdict.outcome == outcome
    assert verdict.text.startswith(text)
    assert "3 seeds)" in verdict.text
    assert verdict.to_json()["outcome"] == outcome


def test_one_seed_and_no_control_are_untested():
    one = verdicts("accuracy", {0: 0.9}, {"student": {0: 0.8}})["student"]
    assert (one.outcome, one.ci95, one.p) == ("untested", None, None)
    assert one.text == (
        "Not tested: one seed gave 10.00 points of test accuracy less, and one seed proves nothing. Run more: seeds=5."
    )
    assert untested("accuracy").outcome == "untested"


def test_only_seeds_of_both_are_compared():
    found = verdicts("accuracy", {1: 0.5, 2: 0.5, 3: 0.6}, {"student": {0: 0.0, 1: 0.6, 2: 0.7}})["student"]
    assert found.seeds == 2
    assert found.difference == pytest.approx(0.15)


def test_several_methods_are_corrected_and_say_so():
    shift = {0: 0.92, 1: 0.931, 2: 0.941}
    alone = verdicts("accuracy", CONTROL, {"a": shift})["a"]
    both = verdicts("accuracy", CONTROL, {"a": shift, "b": {0: 0.9, 1: 0.92, 2: 0.91}})["a"]
    assert alone.p is not None
    assert both.p == pytest.approx(2 * alone.p)
    assert both.ci95 == alone.ci95
    assert "p corrected for 2 comparisons" in both.text


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("images", [None, 360])
def test_without_an_effect_five_percent_at_most_are_called_one(seeds, images):
    """2000 experiments without an effect; with 360 test images, scores are coarse and often tie."""
    draws = np.random.default_rng(seeds)
    called = 0
    for _ in range(2000):
        scores = draws.normal(0.9, 0.01, (2, seeds))
        if images is not None:
            scores = np.round(scores * images) / images
        control, student = (dict(enumerate(row.tolist())) for row in scores)
        called += verdicts("accuracy", control, {"student": student})["student"].outcome in ("helped", "hurt")
    # Four standard errors around 5 %; ties only make it cautious.
    assert called / 2000 < 0.07
    if images is None:
        assert called / 2000 > 0.03
