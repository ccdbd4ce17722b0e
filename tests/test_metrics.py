"""Rates and magnitudes against hand-made counts, the paper's definitions and independent libraries."""

import math

import pytest
from cases import chosen, result, results, scored
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from pytest_muscle.flips import Flip
from pytest_muscle.golden import GoldenCase
from pytest_muscle.metrics import measure, slice_members, slices_of

KINDS = {"both": 10, "lost": 3, "won": 5, "same": 4, "other": 2}
COUNTS = st.fixed_dictionaries({name: st.integers(0, 12) for name in (*KINDS, "failed")})
SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8)


def test_rates_by_hand():
    metrics = measure(results(**KINDS))
    assert metrics.n == 24
    assert metrics.accuracy_old == 13 / 24
    assert metrics.accuracy_new == 15 / 24
    assert metrics.accuracy_delta == 2 / 24
    assert metrics.nfr == 3 / 24
    assert metrics.nfr_mc == 5 / 24
    assert metrics.pfr == 5 / 24
    assert metrics.inconsistency_rate == 2 / 24
    assert metrics.btc == 10 / 13
    assert metrics.counts == {
        "both_correct": 10,
        "positive_flip": 5,
        "both_wrong": 4,
        "inconsistency_flip": 2,
        "negative_flip": 3,
    }
    assert metrics.score_old is metrics.mean_delta is metrics.mean_gain is metrics.mean_regression is None


def test_another_right_choice_is_right_still():
    metrics = measure([chosen(0, 1), chosen(1, 0), chosen(0, 0), chosen(0, 2), chosen(2, 1)])
    assert (metrics.accuracy_old, metrics.accuracy_new, metrics.btc) == (4 / 5, 4 / 5, 3 / 4)
    assert metrics.counts["both_correct_changed"] == 2


def test_recorded_solutions_of_grade_school_problems():
    """Counts of 1319 published solutions, and figures from elsewhere."""
    metrics = measure(results(both=306, lost=209, won=152, same=75, other=577))
    assert metrics.nfr == pytest.approx(0.1585, abs=5e-5)
    assert metrics.nfr_mc == pytest.approx(0.5959, abs=5e-5)
    assert metrics.intervals["nfr"] == pytest.approx((0.1397, 0.1791), abs=5e-5)
    assert metrics.intervals["accuracy_delta"] == pytest.approx((-0.0713, -0.0150), abs=5e-5)
    assert metrics.mcnemar_p == pytest.approx(0.00315, abs=5e-6)


def test_magnitudes_by_hand():
    pairs = [(0.5, 0.75), (0.5, 0.625), (0.5, 0.25), (0.5, 0.5)]
    metrics = measure([scored(old, new, f"c{i}") for i, (old, new) in enumerate(pairs)])
    assert (metrics.n, metrics.nfr, metrics.pfr) == (4, 0.25, 0.5)
    assert (metrics.score_old, metrics.score_new, metrics.mean_delta) == (0.5, 0.53125, 0.03125)
    assert (metrics.mean_gain, metrics.mean_regression) == (0.1875, 0.25)
    assert metrics.accuracy_old is metrics.nfr_mc is metrics.btc is metrics.mcnemar_p is None
    assert metrics.counts == {"positive_flip": 2, "negative_flip": 1, "unchanged": 1}


def test_both_kinds_together():
    metrics = measure([*results(both=1, lost=1), scored(0.5, 0.25), scored(0.5, 0.75)])
    assert (metrics.n, metrics.nfr, metrics.pfr) == (4, 0.5, 0.25)
    assert (metrics.accuracy_old, metrics.nfr_mc, metrics.btc) == (1.0, 0.5, 0.5)


def test_what_has_no_instances_is_none_and_never_nan():
    nothing = measure([])
    assert (nothing.n, nothing.errors, nothing.counts, nothing.intervals) == (0, 0, {}, {})
    plain = nothing.to_dict()
    assert all(value is None for name, value in plain.items() if isinstance(value, float | None))
    assert measure(results(same=3)).btc is None
    assert measure(results(both=3)).mcnemar_p == 1.0
    assert measure([scored(0.5, 0.5)]).mean_gain is measure([scored(0.5, 0.5)]).mean_regression is None


def test_cases_that_could_not_be_judged_count_for_nothing_but_themselves():
    with_errors, without = measure(results(**KINDS, failed=7)), measure(results(**KINDS))
    assert with_errors.errors == 7
    assert {**with_errors.to_dict(), "errors": 0} == without.to_dict()


@given(COUNTS)
def test_rates_add_up(counts):
    metrics = measure(results(**counts))
    n = sum(counts.values()) - counts["failed"]
    assert (metrics.n, metrics.errors) == (n, counts["failed"])
    assert sum(metrics.counts.values()) == n
    if not n:
        assert metrics.nfr is metrics.nfr_mc is metrics.accuracy_old is None
        return
    assert metrics.nfr_mc == pytest.approx(metrics.nfr + metrics.inconsistency_rate)
    assert metrics.accuracy_new - metrics.accuracy_old == pytest.approx(metrics.pfr - metrics.nfr)
    assert metrics.accuracy_delta == pytest.approx(metrics.pfr - metrics.nfr)
    shares = [metrics.counts.get(flip, 0) / n for flip in Flip]
    assert math.fsum(shares) == pytest.approx(1.0)
    if metrics.accuracy_old:
        assert metrics.btc == pytest.approx(1 - metrics.nfr / metrics.accuracy_old)


@given(COUNTS)
def test_intervals_and_test_are_those_of_statsmodels(counts):
    metrics = measure(results(**counts))
    n = metrics.n
    for name in ("accuracy_old", "accuracy_new", "nfr", "nfr_mc", "pfr", "inconsistency_rate"):
        rate = getattr(metrics, name)
        if rate is None:
            assert name not in metrics.intervals
        else:
            expected = proportion_confint(round(rate * n), n, method="wilson")
            assert metrics.intervals[name] == pytest.approx(expected, abs=1e-12)
            assert metrics.intervals[name][0] <= rate <= metrics.intervals[name][1]
    if n:
        table = [[counts["both"], counts["lost"]], [counts["won"], counts["same"] + counts["other"]]]
        # statsmodels divides by zero where nothing is discordant.
        if counts["lost"] + counts["won"]:
            assert metrics.mcnemar_p == pytest.approx(mcnemar(table, exact=True).pvalue)


@given(SCORES)
def test_generations_add_up(pairs):
    metrics = measure([scored(old, new, f"c{i}") for i, (old, new) in enumerate(pairs)])
    if not pairs:
        return
    deltas = [new - old for old, new in pairs]
    assert metrics.mean_delta == pytest.approx(sum(deltas) / len(deltas))
    assert metrics.score_new - metrics.score_old == pytest.approx(metrics.mean_delta)
    gained, lost = metrics.pfr * (metrics.mean_gain or 0), metrics.nfr * (metrics.mean_regression or 0)
    assert gained - lost == pytest.approx(metrics.mean_delta)
    low, high = metrics.intervals["mean_delta"]
    assert low <= metrics.mean_delta + 1e-9
    assert metrics.mean_delta <= high + 1e-9


def test_the_interval_of_the_mean_change_is_near_scipys_and_always_the_same():
    chance = stats.norm(0.02, 0.1)
    values = chance.rvs(300, random_state=1)
    judged = [scored(0.5, 0.5 + value, f"c{i}") for i, value in enumerate(values)]
    low, high = measure(judged).intervals["mean_delta"]
    expected = stats.bootstrap((values,), lambda x, axis: x.mean(axis=axis), n_resamples=5000, random_state=2)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.1 * (high - low))
    assert measure(judged).intervals["mean_delta"] == (low, high)


def test_plain_data_for_json():
    plain = measure(results(**KINDS)).to_dict()
    assert plain["nfr"] == 3 / 24
    assert plain["counts"]["negative_flip"] == 3
    assert plain["intervals"]["nfr"] == list(measure(results(**KINDS)).intervals["nfr"])
    assert {
        "n",
        "accuracy_old",
        "accuracy_new",
        "nfr",
        "nfr_mc",
        "pfr",
        "inconsistency_rate",
        "btc",
    } <= plain.keys()
    assert {
        "score_old",
        "score_new",
        "mean_gain",
        "mean_regression",
        "mcnemar_p",
        "intervals",
    } <= plain.keys()


def test_slices():
    case = GoldenCase("id", "d", "exact_match", ("1",), tags={"topic": "law", "lang": "de"})
    assert slices_of(case) == ["topic=law", "lang=de"]
    assert slices_of(case, pairs=True) == ["topic=law", "lang=de", "lang=de,topic=law"]
    tagged = [
        result("1", "1", "a", tags={"lang": "de"}),
        result("1", "2", "b", tags={"lang": "fr"}),
        result("1", "1"),
    ]
    members = slice_members(tagged, lambda each: each.case)
    assert {name: len(inside) for name, inside in members.items()} == {"": 3, "lang=de": 1, "lang=fr": 1}
    assert measure(members["lang=fr"]).nfr == 1.0
