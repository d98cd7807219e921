"""Numbers are written one way everywhere."""

import math

import pytest

from understudy.report import format as shown


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0.9552, ".9552"),
        (1.0, "1.0000"),
        (0.99999, "1.0000"),
        (0, ".0000"),
        (-0.25, "−.2500"),
        (12.345, "12.35"),
    ],
)
def test_scores_have_four_digits_and_no_leading_zero(x, text):
    assert shown.score(x) == text


def test_an_interval_is_a_half_width_unless_it_is_lopsided():
    assert shown.interval(0.9552, (0.9513, 0.9591)) == ".9552 ± .0039"
    assert shown.interval(0.99, (0.95, 1.0)) == ".9900 (.9500 to 1.0000)"
    assert shown.interval(0.9552, None) == ".9552"


@pytest.mark.parametrize(
    ("x", "text"), [(0.0345, "+3.45 pp"), (-0.0172, "−1.72 pp"), (0.00001, "0.00 pp"), (-0.00001, "0.00 pp")]
)
def test_differences_are_signed_points_and_what_rounds_to_zero_has_no_sign(x, text):
    assert shown.points(x) == text


def test_a_difference_of_what_is_no_fraction_is_no_percentage():
    assert shown.difference("loss", -0.5) == "−0.5"
    assert shown.difference("recall[3]", -0.5) == "−50.00 pp"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (950, "950"),
        (21_930, "21.9 k"),
        (999_600, "1.00 M"),
        (1_234_000, "1.23 M"),
        (4.1e9, "4.10 G"),
    ],
)
def test_counts_have_three_digits(n, text):
    assert shown.count(n) == text


def test_sizes_and_durations_carry_their_unit():
    assert shown.bytes(88_976) == "89.0 kB"
    assert shown.bytes(12) == "12 B"
    assert shown.milliseconds(0.2137) == "0.214 ms"
    assert shown.milliseconds(1.8412) == "1.84 ms"
    assert shown.milliseconds(1234.5) == "1234 ms"


@pytest.mark.parametrize("write", [shown.score, shown.points, shown.count, shown.bytes, shown.milliseconds])
@pytest.mark.parametrize("unknown", [None, math.nan, math.inf])
def test_what_is_unknown_is_a_dash(write, unknown):
    assert write(unknown) == shown.DASH


def test_one_thing_has_no_plural():
    assert [shown.counted(n, "step") for n in (0, 1, 2, 1024)] == ["0 steps", "1 step", "2 steps", "1,024 steps"]
