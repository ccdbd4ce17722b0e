"""What a sample says about a figure, against statsmodels, scipy and the definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import normal_sample_size_one_tail
from statsmodels.stats.proportion import confint_proportions_2indep

from pytest_muscle.evidence import AccuracyDrop, ExcessRate, MeanLoss, Rate
from pytest_muscle.statistics import newcombe

LOSSES = (0.1, 0.3, 0.2, 0.5, 0.15)


def cases(difference, at_limit, measured):
    """The cases that a one-sided test at 2.5% needs for a power of 80%."""
    return math.ceil(normal_sample_size_one_tail(abs(difference), 0.8, 0.025, at_limit, measured))


# Rates


@pytest.mark.parametrize(("k", "n", "limit"), [(7, 100, 0.05), (3, 8, 0.1), (1, 1, 0.5), (60, 1000, 0.05)])
def test_a_rate_is_held_against_its_limit_by_the_exact_binomial_test(k, n, limit):
    expected = stats.binomtest(k, n, limit, alternative="greater").pvalue
    assert Rate(k, n).p_value(limit) == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.05, 0.06])
def test_a_rate_within_its_limit_is_no_evidence_against_it(limit):
    assert Rate(5, 100).p_value(limit) == 1.0


def test_a_rate_moves_by_whole_cases_and_stays_one():
    rate = Rate(2, 5)
    assert [rate.shifted(k) for k in (-3, -2, 0, 3, 4)] == [None, Rate(0, 5), rate, Rate(5, 5), None]
    assert rate.step == 0.2


def test_the_cases_a_rate_needs():
    expected = cases(0.08 - 0.05, math.sqrt(0.05 * 0.95), math.sqrt(0.08 * 0.92))
    assert Rate(8, 100).needed(0.05) == expected


# The drop of the accuracy


COUNTS = st.integers(0, 6)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.integers(-14, 14))
def test_answers_changed_for_the_worse_lower_the_new_accuracy_alone(both, lost, won, neither, changes):
    if not both + lost + won + neither:
        return
    moved = AccuracyDrop(both, lost, won, neither).shifted(changes)
    right = both + won
    assert (moved is None) == (not 0 <= right - changes <= both + lost + won + neither)
    if moved is not None:
        assert moved.both + moved.won == right - changes
        assert (moved.both + moved.lost, moved.won + moved.neither) == (both + lost, won + neither)


def test_what_both_have_right_is_lost_first_and_what_was_lost_is_won_back_first():
    drop = AccuracyDrop(both=3, lost=2, won=4, neither=1)
    assert drop.shifted(3) == AccuracyDrop(0, 5, 4, 1)
    assert drop.shifted(5) == AccuracyDrop(0, 5, 2, 3)
    assert drop.shifted(-2) == AccuracyDrop(5, 0, 4, 1)
    assert drop.shifted(-3) == AccuracyDrop(5, 0, 5, 0)
    assert drop.shifted(8) is drop.shifted(-4) is None
    assert drop.shifted(0) == drop


def test_the_p_value_of_a_drop_is_that_of_the_interval_that_just_leaves_the_limit_out():
    drop = AccuracyDrop(both=60, lost=25, won=5, neither=10)
    z = stats.norm.isf(drop.p_value(0.05))
    assert -newcombe(60, 25, 5, 10, z)[1] == pytest.approx(0.05)
    assert drop.p_value(0.2) == 1.0
    assert drop.step == 0.01


def test_the_cases_a_drop_needs():
    expected = cases(0.2 - 0.05, math.sqrt(0.3 - 0.05**2), math.sqrt(0.3 - 0.2**2))
    assert AccuracyDrop(both=60, lost=25, won=5, neither=10).needed(0.05) == expected


# The mean loss


def test_the_mean_loss_is_held_against_its_limit_in_standard_errors():
    errors = (stats.tmean(LOSSES) - 0.15) / stats.sem(LOSSES)
    assert MeanLoss(LOSSES, 20).p_value(0.15) == pytest.approx(stats.norm.sf(errors))
    assert MeanLoss(LOSSES, 20).p_value(0.3) == 1.0


def test_two_losses_say_something_and_one_nothing():
    errors = (0.3 - 0.1) / stats.sem([0.2, 0.4])
    pair = MeanLoss((0.2, 0.4), 9)
    assert pair.p_value(0.1) == pytest.approx(stats.norm.sf(errors))
    assert pair.needed(0.1) is not None
    assert pair.interval[0] < 0.3 < pair.interval[1]
    single = MeanLoss((0.2,), 9)
    assert (single.p_value(0.1), single.needed(0.1), single.interval) == (1.0, None, None)
    assert (MeanLoss((), 9).interval, MeanLoss((), 9).value) == ((0.0, 0.0), 0.0)
    assert single.shifted(1) is None


def test_the_cases_a_mean_loss_needs_bring_as_many_losses():
    deviation = stats.tstd(LOSSES)
    regressions = cases(stats.tmean(LOSSES) - 0.2, deviation, deviation)
    assert MeanLoss(LOSSES, 20).needed(0.2) == math.ceil(regressions * 20 / 5)
    assert MeanLoss((0.25, 0.25), 20).needed(0.25) is None


# The excess over what the old model does to itself


@pytest.mark.parametrize(("flips", "own", "n"), [(30, 12, 100), (9, 4, 40), (5, 0, 20)])
def test_the_interval_of_the_excess_is_newcombes_for_two_rates(flips, own, n):
    low, high = confint_proportions_2indep(flips, n, own, n, method="newcomb", compare="diff")
    excess = ExcessRate(flips, own, n)
    assert excess.interval == pytest.approx((max(low, 0), high), abs=1e-9)
    assert excess.value == pytest.approx((flips - own) / n)


def test_no_excess_counts_as_none():
    excess = ExcessRate(4, 30, 100)
    assert (excess.value, excess.interval) == (0.0, (0.0, 0.0))


def test_the_p_value_of_an_excess_is_that_of_the_interval_that_just_leaves_the_limit_out():
    p = ExcessRate(30, 12, 100).p_value(0.05)
    low, _ = confint_proportions_2indep(30, 100, 12, 100, method="newcomb", compare="diff", alpha=2 * p)
    assert low == pytest.approx(0.05)
    assert ExcessRate(30, 12, 100).p_value(0.19) == 1.0


def test_the_cases_an_excess_needs():
    expected = cases(0.18 - 0.05, math.sqrt(0.42 - 0.05**2), math.sqrt(0.42 - 0.18**2))
    assert ExcessRate(30, 12, 100).needed(0.05) == expected


def test_an_excess_moves_by_whole_cases_within_what_can_flip():
    excess = ExcessRate(2.5, 1.0, 5)
    assert excess.shifted(2) == ExcessRate(4.5, 1.0, 5)
    assert excess.shifted(-2) == ExcessRate(0.5, 1.0, 5)
    assert excess.shifted(3) is excess.shifted(-3) is None
    assert ExcessRate(2.0, 1.0, 5).shifted(3) == ExcessRate(5.0, 1.0, 5)
    assert ExcessRate(2.0, 1.0, 5).shifted(-2) == ExcessRate(0.0, 1.0, 5)
    assert excess.step == 0.2
