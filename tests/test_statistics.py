"""Intervals, tests and sample sizes against scipy, statsmodels, the literature and simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint, proportions_ztest

from pytest_muscle.statistics import (
    ALPHA,
    Z,
    binomial_tail,
    bootstrap_mean,
    cases_for_difference,
    cases_for_rate,
    difference,
    exceeds,
    holm,
    hypergeometric_tail,
    mcnemar,
    newcombe,
    student,
    values_for_mean,
    wilson,
)

GSM8K = (306, 209, 152, 652)
"""Both right, lost, won, neither: recorded solutions of two models."""


# Wilson


@pytest.mark.parametrize(
    ("k", "n", "published"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_intervals(k, n, published):
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert wilson(k, n) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (3, 7), (209, 1319), (50_000, 100_000)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_wilson_agrees_with_statsmodels(k, n, alpha):
    z = stats.norm.ppf(1 - alpha / 2)
    assert wilson(k, n, z) == pytest.approx(proportion_confint(k, n, alpha, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_wilson_covers_95_percent(n):
    random = np.random.default_rng(n)
    rates = random.uniform(0.01, 0.5, 50_000)
    bounds = np.array([wilson(k, n) for k in range(n + 1)])[random.binomial(n, rates)]
    covered = (bounds[:, 0] <= rates) & (rates <= bounds[:, 1])
    assert covered.mean() == pytest.approx(0.95, abs=0.015)


# The paired difference


@pytest.mark.parametrize(
    ("counts", "published"),
    [((1, 1, 7, 12), (0.026, 0.507)), ((14, 0, 5, 22), (0.011, 0.226))],
    ids=["Fagerland et al. 2014, airway reactivity", "Altman et al. 2000, table 6.2"],
)
def test_newcombe_gives_the_published_intervals(counts, published):
    assert newcombe(*counts) == pytest.approx(published, abs=5e-4)


def test_newcombe_of_recorded_solutions():
    assert newcombe(*GSM8K) == pytest.approx((-0.0713, -0.0150), abs=5e-5)


def test_newcombe_turns_round_with_the_models():
    low, high = newcombe(30, 5, 9, 20)
    assert newcombe(30, 9, 5, 20) == pytest.approx((-high, -low))


def test_newcombe_of_one_answer_in_all_cases_has_a_width():
    low, high = newcombe(20, 0, 0, 0)
    assert low < 0 < high


@pytest.mark.parametrize("n", [50, 200, 1000])
def test_newcombe_covers_95_percent(n):
    random = np.random.default_rng(n)
    # Both right, lost, won, neither: models that agree in about two thirds of the cases.
    chances = random.dirichlet((4, 2, 2, 4), 6_000)
    counts = np.array([random.multinomial(n, each) for each in chances])
    bounds = np.array([newcombe(*map(int, each)) for each in counts])
    change = chances[:, 2] - chances[:, 1]
    covered = (bounds[:, 0] <= change) & (change <= bounds[:, 1])
    assert covered.mean() == pytest.approx(0.95, abs=0.015)


def test_difference_of_independent_rates_agrees_with_statsmodels():
    ours = difference(30 / 100, wilson(30, 100), 12 / 80, wilson(12, 80))
    theirs = confint_proportions_2indep(30, 100, 12, 80, method="newcomb", compare="diff")
    assert ours == pytest.approx(theirs, abs=1e-9)


# The bootstrap


def test_bootstrap_agrees_with_student_on_normal_values():
    values = np.random.default_rng(1).normal(0.1, 0.3, 60)
    low, high = stats.t.interval(0.95, 59, values.mean(), stats.sem(values))
    assert bootstrap_mean(values) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_bootstrap_follows_the_skew_as_scipy_does():
    values = np.random.default_rng(2).exponential(1.0, 200)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert bootstrap_mean(values) == pytest.approx(theirs, abs=0.02)


def test_bootstrap_does_not_care_about_the_order_of_the_values():
    values = np.random.default_rng(6).exponential(1.0, 60)
    assert bootstrap_mean(values[::-1]) == bootstrap_mean(values)


def test_bootstrap_of_one_value_is_that_value():
    assert bootstrap_mean([0.25]) == (0.25, 0.25)


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 30, 498, 4_999])
def test_students_quantile_is_scipys(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-11)


@pytest.mark.parametrize("n", [8, 30])
def test_bootstrap_covers_95_percent_of_small_samples(n):
    random = np.random.default_rng(n)
    bounds = np.array([bootstrap_mean(random.normal(0, 1, n), seed) for seed in range(800)])
    covered = (bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)
    assert covered.mean() == pytest.approx(0.95, abs=0.03)


def test_bootstrap_of_many_values_goes_over_into_the_normal_interval():
    values = np.random.default_rng(4).exponential(1.0, 5_000)
    before, after = bootstrap_mean(values[:4_999]), bootstrap_mean(values)
    assert after == pytest.approx(before, abs=0.1 * (after[1] - after[0]))


def test_the_normal_interval_of_many_values_is_scipys():
    values = np.random.default_rng(4).exponential(3.0, 6_000)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert bootstrap_mean(values) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_gives_the_same_each_time():
    values = np.random.default_rng(5).random(50).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


# Tails and tests


def test_binomial_tails_agree_with_scipy():
    random = np.random.default_rng(5)
    for _ in range(500):
        n, p = int(random.integers(1, 3_000)), float(random.random() ** 3)
        for k in (int(random.integers(0, n + 2)), int(random.binomial(n, p))):
            assert binomial_tail(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), rel=1e-8, abs=1e-11)


@pytest.mark.parametrize(("k", "p", "chance"), [(0, 0.0, 1.0), (1, 0.0, 0.0), (3, 1.0, 1.0), (4, 0.5, 0.0)])
def test_binomial_tail_at_the_edges(k, p, chance):
    assert binomial_tail(k, 3, p) == chance


def test_binomial_tail_far_out_does_not_vanish():
    assert binomial_tail(900, 1_000, 0.1) == pytest.approx(stats.binom.sf(899, 1_000, 0.1), rel=1e-6)


def test_hypergeometric_tails_agree_with_scipy():
    random = np.random.default_rng(6)
    for _ in range(500):
        total = int(random.integers(1, 2_000))
        marked, drawn = (int(random.integers(0, total + 1)) for _ in range(2))
        expected = stats.hypergeom(total, marked, drawn)
        for k in (int(random.integers(0, total + 1)), int(expected.rvs(random_state=random))):
            ours = hypergeometric_tail(k, marked, drawn, total)
            assert ours == pytest.approx(expected.sf(k - 1), rel=1e-7, abs=1e-10)


@pytest.mark.parametrize(("b", "c"), [(209, 152), (0, 0), (5, 5), (0, 9), (1, 0), (4_000, 4_100)])
def test_mcnemar_agrees_with_the_exact_binomial_test(b, c):
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-8)


def test_holm_agrees_with_statsmodels():
    p_values = (np.random.default_rng(7).random(40) ** 3).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_a_p_value_inverts_the_interval():
    # Wilson's lower bound inverts the score test.
    expected = proportions_ztest(70, 1_000, 0.05, alternative="larger", prop_var=0.05)[1]
    assert exceeds(0.05, lambda z: wilson(70, 1_000, z)[0]) == pytest.approx(expected, rel=1e-6)
    assert exceeds(0.07, lambda z: wilson(70, 1_000, z)[0]) == 1.0


# Sample sizes


@pytest.mark.parametrize(("rate", "limit"), [(0.0425, 0.05), (0.08, 0.05), (0.3, 0.25)])
def test_so_many_cases_show_a_rate_with_a_power_of_80_percent(rate, limit):
    n = cases_for_rate(rate, limit)
    k = np.random.default_rng(8).binomial(n, rate, 20_000)
    score = (k / n - limit) / math.sqrt(limit * (1 - limit) / n)
    assert (np.sign(rate - limit) * score > Z).mean() == pytest.approx(0.8, abs=0.04)


def test_without_a_flip_the_cases_needed_bring_wilsons_bound_to_the_limit():
    n = cases_for_rate(0.0, 0.02)
    assert wilson(0, n)[1] <= 0.02 < wilson(0, n - 1)[1]


@pytest.mark.parametrize(("lost", "won", "limit"), [(0.16, 0.115, 0.0), (0.08, 0.02, 0.03)])
def test_so_many_cases_show_a_paired_difference_with_a_power_of_80_percent(lost, won, limit):
    n = cases_for_difference(lost - won, lost + won, limit)
    counts = np.random.default_rng(9).multinomial(n, (lost, won, 1 - lost - won), 20_000)
    change = (counts[:, 0] - counts[:, 1]) / n
    spread = np.sqrt(((counts[:, 0] + counts[:, 1]) / n - limit**2) / n)
    assert ((change - limit) / spread > Z).mean() == pytest.approx(0.8, abs=0.04)


def test_so_many_values_show_a_mean_with_a_power_of_80_percent():
    n = values_for_mean(0.3, 0.2, 0.25)
    means = np.random.default_rng(10).normal(0.3, 0.2, (5_000, n)).mean(axis=1)
    assert ((means - 0.25) / (0.2 / math.sqrt(n)) > Z).mean() == pytest.approx(0.8, abs=0.03)


def test_no_number_of_cases_tells_equal_figures_apart():
    assert cases_for_rate(0.05, 0.05) is None
    assert cases_for_difference(0.0, 0.1) is None
    assert values_for_mean(0.1, 0.2, 0.1) is None


def test_the_level_is_that_of_one_end_of_a_95_percent_interval():
    assert pytest.approx(stats.norm.sf(Z)) == ALPHA
