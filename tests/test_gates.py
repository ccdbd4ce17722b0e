"""Gates: three ways to decide, what an undecided one does, and what becomes of the cases."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import OTHER, RIGHT, SET, WRONG, chosen, result, results, scored, unused
from scipy.stats import binomtest

from pytest_muscle.gates import Judge, Outcome, Ruling, Verdict, decide, idle_budgets, plan
from pytest_muscle.models import Response
from pytest_muscle.sampling import compare_draws
from pytest_muscle.settings.values import Threshold
from pytest_muscle.statistics import cases_for_rate, newcombe, wilson

PAIR = {"both": 222, "lost": 64, "won": 293, "same": 58, "other": 682}
"""GSM8K, recorded solutions of two models: 64 negative flips in 1,319 cases."""
KEPT, LOST, WON, FAILED = (
    result(old, new) for old, new in ((RIGHT, RIGHT), (RIGHT, WRONG), (WRONG, RIGHT), (WRONG, WRONG))
)


def judged(members, *thresholds, accepted=(), **how):
    planned = plan([each.case for each in members], thresholds, **how)
    return decide(planned, members, accepted, how.get("pairs", False))


def one(members, name, limit, decision="point", **how):
    (gate,) = judged(members, Threshold(name, limit, decision=decision), **how)
    return gate


# The three decisions


@pytest.fixture(scope="module")
def pair():
    return results(**PAIR)


@pytest.mark.parametrize(
    ("limit", "decision", "ruling"),
    [
        (0.03, "point", "failed"),
        (0.03, "significant", "failed"),
        (0.03, "assured", "failed"),
        (0.045, "point", "failed"),
        (0.045, "significant", "inconclusive"),
        (0.045, "assured", "failed"),
        (0.05, "point", "passed"),
        (0.05, "significant", "passed"),
        (0.05, "assured", "inconclusive"),
        (0.06, "assured", "inconclusive"),
        (0.07, "assured", "passed"),
    ],
)
def test_the_rulings_on_recorded_solutions(pair, limit, decision, ruling):
    gate = one(pair, "max_nfr", limit, decision)
    assert gate.value == pytest.approx(64 / 1319)
    assert gate.interval == pytest.approx((0.0382, 0.0615), abs=5e-5)
    assert gate.ruling == ruling
    assert gate.passed is {"passed": True, "failed": False}.get(ruling)


def test_a_budget_met_exactly_is_within():
    assert one(results(both=98, lost=2), "max_nfr", 0.02).passed


def test_each_gate_may_have_a_decision_of_its_own(pair):
    strict, lenient = judged(
        pair,
        Threshold("max_nfr", 0.05, decision="assured"),
        Threshold("max_nfr_mc", 0.55, decision="significant"),
    )
    assert (strict.ruling, lenient.ruling) == ("inconclusive", "inconclusive")
    assert (strict.inconclusive, lenient.inconclusive) == ("fail", "warn")
    assert (strict.blocks, lenient.blocks) == (True, False)


@pytest.mark.parametrize(("setting", "blocks"), [("fail", True), ("warn", False), ("pass", False)])
def test_what_an_undecided_gate_does_can_be_set(pair, setting, blocks):
    assert one(pair, "max_nfr", 0.05, "assured", inconclusive=setting).blocks is blocks
    assert one(pair, "max_nfr", 0.045, "significant", inconclusive=setting).blocks is blocks


def chance_of(ruling, n, rate, budget, decision):
    """The chance of a ruling by simulation: n cases that flip with this rate."""
    counts = np.random.default_rng(n).binomial(n, rate, 20_000)
    found = {
        k: one([LOST] * k + [KEPT] * (n - k), "max_nfr", budget, decision).ruling
        for k in set(counts.tolist())
    }
    return np.mean([found[k] == ruling for k in counts.tolist()])


@pytest.mark.parametrize("n", [20, 50, 200, 1000])
@pytest.mark.parametrize("budget", [0.005, 0.01, 0.02, 0.05, 0.1])
def test_at_the_budget_a_significant_gate_fails_in_at_most_5_percent(n, budget):
    assert chance_of("failed", n, budget, budget, "significant") <= 0.05


@pytest.mark.parametrize("n", [50, 200, 1000])
@pytest.mark.parametrize("budget", [0.01, 0.02, 0.05, 0.1])
def test_just_over_the_budget_an_assured_gate_passes_in_at_most_5_percent(n, budget):
    assert chance_of("passed", n, budget * 1.0001, budget, "assured") <= 0.05


def test_far_from_the_budget_both_decide():
    assert chance_of("failed", 500, 0.12, 0.05, "significant") > 0.95
    assert chance_of("passed", 500, 0.01, 0.05, "assured") > 0.95


@pytest.mark.parametrize("n", [50, 200])
def test_at_the_budget_a_significant_drop_fails_in_at_most_5_percent(n):
    kinds = [KEPT, LOST, WON, FAILED]
    tables = np.random.default_rng(n).multinomial(n, (0.5, 0.15, 0.1, 0.25), 800)
    unique, times = np.unique(tables, axis=0, return_counts=True)
    failed = 0
    for table, count in zip(unique.tolist(), times.tolist(), strict=True):
        members = list(
            itertools.chain.from_iterable([kind] * k for kind, k in zip(kinds, table, strict=True))
        )
        failed += count * (one(members, "max_accuracy_drop", 0.05, "significant").ruling == "failed")
    assert failed / 800 <= 0.05


def test_of_many_slices_at_the_budget_hardly_any_fails():
    """Uncorrected, one of forty slices would fail in more than half of the runs."""
    random = np.random.default_rng(11)
    thresholds = [Threshold("max_nfr", 0.05, slice=f"part={i}", decision="significant") for i in range(40)]
    failed = single = 0
    for _ in range(60):
        members = []
        for i, lost in enumerate(random.binomial(200, 0.05, 40).tolist()):
            members += [result(RIGHT, WRONG, tags={"part": str(i)})] * lost
            members += [result(RIGHT, RIGHT, tags={"part": str(i)})] * (200 - lost)
        gates = judged(members, *thresholds)
        assert {gate.tests for gate in gates} == {40}
        failed += any(gate.ruling == "failed" for gate in gates)
        single += any(gate.interval[0] > 0.05 for gate in gates)
    assert failed / 60 <= 0.05
    assert single / 60 > 0.5


@pytest.mark.parametrize("other", [0, 5, 14, 30])
def test_a_significant_gate_fails_just_where_its_corrected_p_does(other):
    """On one side, 2.5 %; beside another gate its own level is lower, though its interval is no wider."""

    def part(name, lost):
        kept = [result(RIGHT, RIGHT, tags={"part": name})] * (200 - lost)
        return [result(RIGHT, WRONG, tags={"part": name})] * lost + kept

    thresholds = [Threshold("max_nfr", 0.05, slice=f"part={i}", decision="significant") for i in "ab"]
    alone = []
    for lost in range(11, 26):
        gates = judged(part("a", lost) + part("b", other), *thresholds)
        p, rest = (
            binomtest(count, 200, 0.05, alternative="greater").pvalue if count > 10 else 1.0
            for count in (lost, other)
        )
        corrected = min(1.0, 2 * p) if p <= rest else max(p, min(1.0, 2 * rest))
        assert gates[0].p == pytest.approx(corrected, rel=1e-9)
        assert gates[0].ruling == ("failed" if corrected <= 0.025 else "inconclusive")
        alone.append(p <= 0.025 < corrected)
    assert any(alone) == (other < 20)  # Else the other gate has the stricter level.


# Each budget's figure


def test_the_accuracy_drop_has_newcombes_interval():
    members = results(both=306, lost=209, won=152, same=652)
    low, high = newcombe(306, 209, 152, 652)
    gate = one(members, "max_accuracy_drop", 0.02)
    assert gate.value == pytest.approx(57 / 1319)
    assert gate.interval == pytest.approx((-high, -low))
    assert gate.ruling == "failed"
    assert one(members, "max_accuracy_drop", 0.02, "significant").ruling == "inconclusive"
    assert one(members, "max_accuracy_drop", 0.01, "significant").ruling == "failed"


def test_another_right_choice_is_no_drop():
    members = [chosen(0, 1)] * 10 + [chosen(0, 0)] * 20 + [chosen(0, 2)] * 10
    low, high = newcombe(30, 10, 0, 0)
    assert one(members, "max_accuracy_drop", 0.3).interval == pytest.approx((-high, -low))


def test_a_gain_in_accuracy_is_no_drop():
    gate = one(results(both=100, won=50, same=50), "max_accuracy_drop", 0.0, "assured")
    assert (gate.value, gate.interval, gate.ruling) == (0.0, (0.0, 0.0), "passed")


def test_the_mean_regression_is_that_of_what_got_worse():
    members = [scored(0.8, 0.8 - loss, f"case-{i}") for i, loss in enumerate([0.1, 0.3, 0.2, 0.2] * 10)]
    members += [scored(0.5, 0.9, f"more-{i}") for i in range(60)]
    gate = one(members, "max_mean_regression", 0.15, "significant")
    assert gate.value == pytest.approx(0.2)
    assert gate.interval[0] == pytest.approx(0.2 - 2.02 * 0.0716 / 40**0.5, abs=0.004)
    assert (gate.ruling, gate.cases) == ("failed", 100)
    assert one(members, "max_mean_regression", 0.25, "assured").ruling == "passed"
    assert one(members, "max_mean_regression", 0.21, "assured").ruling == "inconclusive"


def test_where_nothing_got_worse_the_mean_regression_passes():
    for decision in ("point", "significant", "assured"):
        assert one([scored(0.5, 0.5)] * 40, "max_mean_regression", 0.1, decision).passed


def test_failed_calls_are_counted_for_their_own_budget_alone():
    members = results(both=95, lost=2, failed=3)
    errors, nfr = judged(members, Threshold("max_nfr", 0.05), Threshold("max_error_rate", 0.02))[::-1]
    assert (errors.name, errors.value, errors.ruling) == ("max_error_rate", 0.03, "failed")
    assert (nfr.value, nfr.ruling) == (2 / 97, "passed")


def test_where_every_call_failed_a_rate_of_flips_is_not_judged():
    gate = one(results(failed=5), "max_nfr", 0.5)
    assert gate.ruling is Ruling.UNJUDGED
    assert "max_nfr has nothing to judge: no case could be judged" in gate.verdict()


@pytest.mark.parametrize("name", ["max_nfr", "max_accuracy_drop", "max_error_rate", "max_excess_nfr"])
def test_a_gate_of_which_nothing_is_answered_is_not_judged(name):
    members = results(both=3)
    (gate,) = decide(plan([each.case for each in members], [Threshold(name, 0.1)]), [])
    assert (gate.ruling, gate.value) == ("unjudged", None)
    assert gate.verdict() == f"0 of 3 cases answered: {name} cannot be judged on a part"


def test_a_score_of_which_nothing_is_answered_is_not_judged():
    cases = [scored(0.5, 0.5).case]
    (gate,) = decide(plan(cases, [Threshold("max_mean_regression", 0.1)]), [])
    assert (gate.ruling, gate.value) == ("unjudged", None)


def test_a_gate_is_not_judged_on_a_part():
    members = results(both=10)
    planned = plan([each.case for each in members], [Threshold("max_nfr", 0.0)])
    (gate,) = decide(planned, members[:7])
    assert (gate.ruling, gate.passed, gate.answered, gate.blocks) == ("unjudged", None, 7, False)
    assert "7 of 10 cases answered" in gate.verdict()


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_case_without_both_responses_is_not_answered(side):
    """Nor is a text counted, which a budget on accuracy is not about."""
    lost = results(both=4, lost=4)
    members = [*lost[:-1], replace(lost[-1], **{side: None}), scored(0.5, 0.4, "text")]
    gates = judged(
        members,
        Threshold("max_accuracy_drop", 0.0, decision="significant"),
        Threshold("max_nfr", 0.0, decision="significant"),
    )
    assert [(gate.answered, gate.cases) for gate in gates] == [(7, 8), (8, 9)]
    assert {(gate.ruling, gate.p) for gate in gates} == {("unjudged", None)}


def test_accepted_flips_are_left_out():
    members = results(both=8, lost=2)
    gate = one(members, "max_nfr", 0.1, accepted={members[-1].case.key})
    assert (gate.value, gate.accepted, gate.ruling) == (0.1, 1, "passed")


def test_an_accepted_flip_is_no_drop_of_the_accuracy():
    members = [*results(both=6, lost=2), *results(won=1, same=1, start=8)]
    gate = one(members, "max_accuracy_drop", 0.0, accepted={members[6].case.key})
    assert (gate.value, gate.accepted) == (0.0, 1)
    low, high = newcombe(7, 1, 1, 1)
    assert gate.interval == pytest.approx((max(-high, 0), -low))
    drift = [*results(both=6, lost=2), *results(other=2, start=8)]
    gate = one(drift, "max_accuracy_drop", 0.0, accepted={drift[-1].case.key})
    low, high = newcombe(6, 2, 0, 2)
    assert (gate.value, gate.interval) == (0.2, pytest.approx((max(-high, 0), -low)))


def test_an_accepted_drift_stays_wrong():
    members = [*results(both=6, lost=1), *results(other=2, start=7)]
    gate = one(members, "max_nfr_mc", 0.3, accepted={members[-1].case.key})
    assert (gate.value, gate.accepted, gate.answered) == (pytest.approx(2 / 9), 1, 9)


def test_an_accepted_fall_of_a_score_is_none():
    members = [scored(0.8, 0.8 - loss, f"case-{i}") for i, loss in enumerate([0.2, 0.4, 0.0])]
    gate = one(members, "max_mean_regression", 0.3, accepted={members[1].case.key})
    assert (gate.value, gate.accepted) == (pytest.approx(0.2), 1)
    none_left = one(members, "max_mean_regression", 0.0, accepted={each.case.key for each in members})
    assert (none_left.value, none_left.ruling) == (0.0, "passed")
    assert one(members, "max_nfr", 0.5, accepted={members[1].case.key}).value == pytest.approx(1 / 3)


def test_an_accepted_flip_flips_as_often_as_the_old_model_does_by_itself():
    answers = {RIGHT: Response(RIGHT), WRONG: Response(WRONG)}

    def drawn(name, old, new):
        case = result(RIGHT, RIGHT, name).case
        sides = [[[answers[text]] for text in side] for side in (old, new)]
        return compare_draws([case], *sides, unused)[0]

    members = [drawn("noisy", "1122", "2222"), drawn("lost", "1111", "2222"), drawn("kept", "11", "11")]
    own = 2 * 2 / (4 * 3)
    gate = one(members, "max_excess_nfr", 0.5)
    assert gate.value == pytest.approx((0.5 + 1 - own) / 3)
    accepted = one(members, "max_excess_nfr", 0.5, accepted={members[1].case.key})
    assert (accepted.value, accepted.accepted) == (pytest.approx((0.5 - own) / 3), 1)
    noisy = result(RIGHT, RIGHT, "half").case
    half = compare_draws([noisy], [[answers[t]] for t in "1112"], [[answers[t]] for t in "2222"], unused)[0]
    assert one([half, members[2]], "max_excess_nfr", 0.5, accepted={noisy.key}).value == 0.0


def test_a_case_that_could_not_be_judged_cannot_be_accepted_away():
    members = results(both=3, failed=1)
    gate = one(members, "max_error_rate", 0.0, accepted={members[-1].case.key})
    assert (gate.value, gate.ruling) == (0.25, "failed")


# What the sample can say


@pytest.mark.parametrize("decision", ["point", "significant", "assured"])
@pytest.mark.parametrize("name", ["max_nfr", "max_accuracy_drop"])
@pytest.mark.parametrize("lost", [0, 2, 4, 7, 20])
def test_no_smaller_change_than_the_reversal_changes_the_ruling(decision, name, lost):
    def ruling(changes):
        lose = lost + changes
        return one([LOST] * lose + [KEPT] * (80 - lose) + [FAILED] * 10, name, 0.04, decision).ruling

    reversal = one([LOST] * lost + [KEPT] * (80 - lost) + [FAILED] * 10, name, 0.04, decision).reversal
    now = ruling(0)
    differs = [changes for changes in range(-lost, 25) if ruling(changes) != now]
    assert abs(reversal) == min(abs(c) for c in differs)
    assert reversal in differs


def test_the_cases_needed_decide_the_gate_where_the_rate_stays():
    gate = one(results(**PAIR), "max_nfr", 0.06, "assured")
    assert gate.ruling == "inconclusive"
    assert wilson(gate.value * gate.needed, gate.needed)[1] < 0.06
    assert wilson(gate.value * gate.needed / 3, gate.needed / 3)[1] > 0.06


def test_no_number_of_cases_assures_that_nothing_ever_flips():
    gate = one(results(both=100), "max_nfr", 0.0, "assured")
    assert (gate.ruling, gate.needed) == ("inconclusive", None)
    assert gate.details()[-1] == "at this rate no number of cases would settle it"


def test_a_budget_below_one_case_is_called_zero_tolerance():
    gate = one(results(both=80), "max_nfr", 0.01)
    assert gate.is_zero_tolerance
    assert "zero tolerance: the budget is below one in 80 cases" in gate.details()
    assert not one(results(both=100), "max_nfr", 0.01).is_zero_tolerance
    assert not one([scored(0.5, 0.4)] * 3, "max_mean_regression", 0.0).is_zero_tolerance


def test_the_text_says_what_was_found_and_what_would_change_it(pair):
    gate = one(pair, "max_nfr", 0.05, "assured")
    expected = "nfr 0.0485 is within the budget of 0.05, but may be over it (95% interval 0.0382 to 0.0615)"
    assert gate.verdict() == expected
    assert gate.details() == [
        "2 answers changed for the worse would reverse this",
        "about 169,133 cases would settle it",
    ]
    unsure = one(pair, "max_nfr", 0.045, "significant")
    assert "is over the budget of 0.045, but not surely" in unsure.verdict()
    assert unsure.details()[0] == f"p = {unsure.p:.2g}"


def test_the_correction_is_stated(pair):
    gates = judged(
        pair, *(Threshold(name, 0.045, decision="significant") for name in ("max_nfr", "max_nfr_mc"))
    )
    assert all("corrected for 2 gates" in gate.details()[0] for gate in gates)


def test_the_text_of_a_gate_without_interval_or_with_accepted_flips():
    single = one([scored(0.5, 0.25)], "max_mean_regression", 0.5)
    assert single.verdict() == "mean_regression 0.2500 is within the budget of 0.5"
    members = results(both=8, lost=2)
    gate = one(members, "max_nfr", 0.1, accepted={members[-1].case.key})
    assert gate.verdict().endswith("to 0.4042) without 1 accepted")
    assert "is over the budget of 0.05 (" in one(members, "max_nfr", 0.05).verdict()
    assert "is within the budget of 0.2 (" in one(members, "max_nfr", 0.2).verdict()


def test_one_answer_may_reverse_a_gate():
    kept = one(results(both=98, lost=2), "max_nfr", 0.02)
    assert kept.details()[0] == "1 answer changed for the worse would reverse this"
    gate = one(results(both=97, lost=3), "max_nfr", 0.02)
    assert (gate.reversal, gate.details()[0]) == (
        -1,
        "1 answer changed for the better would reverse this",
    )


def test_a_p_value_of_one_is_not_worth_telling():
    gate = one(results(both=98, lost=2), "max_nfr", 0.05, "significant")
    assert (gate.p, gate.tests) == (1.0, 1)
    assert not any(told.startswith("p = ") for told in gate.details())


def test_json_holds_the_ruling_and_what_it_rests_on():
    members = results(both=97, lost=3)
    gate = one(members, "max_nfr", 0.01, "significant", accepted={members[-1].case.key})
    expected = {
        "name": "max_nfr",
        "scope": SET,
        "limit": 0.01,
        "value": 0.02,
        "interval": list(wilson(2, 100)),
        "passed": None,
        "ruling": "inconclusive",
        "decision": "significant",
        "inconclusive": "warn",
        "accepted": 1,
        "p": pytest.approx(binomtest(2, 100, 0.01, alternative="greater").pvalue),
        "tests": 1,
        "needed": cases_for_rate(0.02, 0.01),
        "reversal": gate.reversal,
        "zero_tolerance": False,
    }
    assert gate.to_dict() == expected
    assert one([scored(0.5, 0.25)], "max_mean_regression", 0.5).to_dict()["interval"] is None
    assert one(results(both=5), "max_nfr", 0.01).to_dict()["zero_tolerance"] is True


# Cases


def outcomes(members, *thresholds, **how):
    gates = judged(members, *thresholds, **how)
    judge = Judge(gates, how.get("pairs", False))
    return [judge.outcome(each) for each in members]


def verdicts(members, *thresholds, **how):
    return [each.verdict for each in outcomes(members, *thresholds, **how)]


CASES = [result(RIGHT, RIGHT, "kept"), result(RIGHT, WRONG, "lost"), result(WRONG, OTHER, "drift")]


def test_without_a_budget_every_flip_fails():
    assert verdicts(CASES) == [Verdict.PASSED, Verdict.FAILED, Verdict.FAILED]


def test_every_verdict_but_a_pass_has_its_reason():
    lost = CASES[:2]
    judge = Judge(judged(lost))
    assert judge.outcome(lost[0]).reason == ""
    assert judge.outcome(lost[1]).reason == "negative flip"
    assert judge.outcome(lost[1], "") == Outcome(
        Verdict.ACCEPTED, "negative flip, accepted: no reason given yet"
    )
    assert judge.outcome(lost[1], "was never right") == Outcome(
        Verdict.ACCEPTED, "negative flip, accepted: was never right"
    )
    assert Judge([]).outcome(result(RIGHT, None)) == Outcome(Verdict.ERROR, "new model: it timed out")

    def reason(members, *thresholds, **how):
        return outcomes(members, *thresholds, **how)[-1].reason

    assert reason(CASES, Threshold("max_nfr", 0.5)) == (
        "inconsistency flip, tolerated: no budget is set for it"
    )
    assert reason(lost, Threshold("max_nfr", 0.5)) == (
        "negative flip, tolerated: within max_nfr = 0.5 (0.5000)"
    )
    assert reason(lost, Threshold("max_nfr", 0.4)) == "negative flip, over budget: max_nfr = 0.4 (0.5000)"
    many = results(both=95, lost=5)
    assert reason(many, Threshold("max_nfr", 0.06, decision="assured")) == (
        "negative flip, not surely within budget: max_nfr = 0.06 (0.0500)"
    )
    assert reason(many, Threshold("max_nfr", 0.04, decision="significant")) == (
        "negative flip, tolerated: not surely over max_nfr = 0.04 (0.0500)"
    )


def test_a_flip_whose_budget_could_not_be_judged_fails_and_says_so():
    planned = plan([each.case for each in CASES], [Threshold("max_nfr", 1.0)])
    outcome = Judge(decide(planned, CASES[:2])).outcome(CASES[1])
    assert outcome.verdict is Verdict.FAILED
    assert outcome.reason.startswith("negative flip; 2 of 3 cases answered")


def test_a_flip_weighs_where_it_can_fail_or_uses_up_a_budget():
    kept, lost, drift = CASES
    failed = result(RIGHT, None)
    unbudgeted = Judge([])
    assert [unbudgeted.weighs(each) for each in (kept, lost, drift, failed)] == [False, True, True, False]
    budgeted = Judge(judged(CASES, Threshold("max_nfr", 0.5)))
    assert [budgeted.weighs(each) for each in (kept, lost, drift, failed)] == [False, True, False, False]


def test_within_a_budget_its_flips_are_tolerated():
    assert verdicts(CASES, Threshold("max_nfr_mc", 0.7)) == [
        Verdict.PASSED,
        Verdict.TOLERATED,
        Verdict.TOLERATED,
    ]


def test_over_a_budget_its_flips_fail_and_others_do_not():
    assert verdicts(CASES, Threshold("max_nfr", 0.2)) == [Verdict.PASSED, Verdict.FAILED, Verdict.TOLERATED]


def test_a_budget_for_errors_alone_makes_no_flip_tolerable():
    assert verdicts(CASES, Threshold("max_error_rate", 0.5)) == [
        Verdict.PASSED,
        Verdict.FAILED,
        Verdict.FAILED,
    ]


def test_an_unjudgeable_case_is_an_error_unless_a_budget_bears_it():
    members = [*CASES, result(RIGHT, None, "failed")]
    assert verdicts(members)[-1] is Verdict.ERROR
    assert verdicts(members, Threshold("max_error_rate", 0.2))[-1] is Verdict.ERROR
    tolerated = outcomes(members, Threshold("max_error_rate", 0.25))[-1]
    assert tolerated.verdict is Verdict.TOLERATED
    assert "it timed out" in tolerated.reason


def test_an_undecided_gate_decides_for_its_flips_as_it_is_set():
    members = results(both=95, lost=5)
    assert verdicts(members, Threshold("max_nfr", 0.06, decision="assured"))[-1] is Verdict.FAILED
    assert verdicts(members, Threshold("max_nfr", 0.04, decision="significant"))[-1] is Verdict.TOLERATED
    strict = verdicts(members, Threshold("max_nfr", 0.04, decision="significant"), inconclusive="fail")
    assert strict[-1] is Verdict.FAILED


def test_a_slice_pays_for_its_own_flips():
    members = [result(RIGHT, WRONG, lang, tags={"lang": lang}) for lang in ("de", "fr")]
    found = outcomes(members, Threshold("max_nfr", 1.0), Threshold("max_nfr", 0.0, slice="lang=de"))
    assert [each.verdict for each in found] == [Verdict.FAILED, Verdict.TOLERATED]
    assert "max_nfr of lang=de" in found[0].reason


def test_a_pair_of_tags_may_have_a_budget():
    members = [
        result(RIGHT, WRONG, f"{topic}-{lang}", tags={"topic": topic, "lang": lang})
        for topic in ("law", "art")
        for lang in ("de", "fr")
    ]
    budget = Threshold("max_nfr", 0.0, slice="lang=de,topic=law")
    assert verdicts(members, budget, Threshold("max_nfr", 1.0), pairs=True).count(Verdict.FAILED) == 1
    assert [gate.slice for gate in plan([each.case for each in members], [budget])] == []
    gates = judged(members, budget, Threshold("max_nfr", 1.0), pairs=True)
    assert {Judge(gates).outcome(each).verdict for each in members} == {Verdict.TOLERATED}


def test_a_dataset_has_its_own_budget():
    here, there = result(RIGHT, WRONG, "a"), result(RIGHT, WRONG, "b", dataset="golden/other.jsonl")
    thresholds = [Threshold("max_nfr", 0.0), Threshold("max_nfr", 1.0, dataset="golden/other.jsonl")]
    for order in (thresholds[::-1], thresholds):
        gates = [*plan([here.case], order), *plan([there.case], order)]
        assert [gate.limit for gate in gates] == [0.0, 1.0]
    judge = Judge(decide(gates, [here, there]))
    assert [judge.outcome(each).verdict for each in (here, there)] == [Verdict.FAILED, Verdict.TOLERATED]
    assert here.case.dataset == SET


def test_a_budget_that_meets_no_case_is_told_of():
    cases = [result(RIGHT, RIGHT, tags={"lang": "de"}).case]
    thresholds = [
        Threshold("max_nfr", 0.1),
        Threshold("max_nfr", 0.1, slice="lang=de"),
        Threshold("max_nfr", 0.1, slice="lang=de_"),
        Threshold("max_mean_regression", 0.1),
        Threshold("max_nfr", 0.1, dataset=SET),
        Threshold("max_nfr", 0.1, dataset="golden/other.jsonl"),
    ]
    assert idle_budgets(thresholds, plan(cases, thresholds), cases) == [
        "the budget max_nfr, slice lang=de_ meets no case; did you mean 'lang=de'?",
        "the budget max_mean_regression meets no case",
        "the budget max_nfr of golden/other.jsonl meets no case",
    ]


def test_a_budget_of_a_pair_of_tags_is_told_of_where_pairs_are_none():
    cases = [result(RIGHT, RIGHT, tags={"lang": "de", "topic": "law"}).case]
    budget = [Threshold("max_nfr", 0.1, slice="lang=de,topic=law_")]
    told = "the budget max_nfr, slice lang=de,topic=law_ meets no case"
    assert idle_budgets(budget, plan(cases, budget), cases) == [told]
    with_pairs = idle_budgets(budget, plan(cases, budget, pairs=True), cases, pairs=True)
    assert with_pairs == [f"{told}; did you mean 'lang=de,topic=law'?"]
    known = [Threshold("max_mean_regression", 0.1, slice="lang=de")]
    assert idle_budgets(known, plan(cases, known), cases) == [
        "the budget max_mean_regression, slice lang=de meets no case"
    ]
