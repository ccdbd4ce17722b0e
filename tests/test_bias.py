"""Bias: groups, counterfactual pairs, stereotypes, and errors that an adapter inherits."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import OTHER, RIGHT, SET, WRONG, result
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep

from pytest_muscle import compare
from pytest_muscle.bias import bias_of, inherited_by_slice, inherited_errors, measure_bias, preference_change
from pytest_muscle.comparison import Comparison, ModelIdentity
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import judge
from pytest_muscle.gates import Judge, decide, plan
from pytest_muscle.golden import GoldenCase, parse_case
from pytest_muscle.grading import Grade, grade
from pytest_muscle.models import Response
from pytest_muscle.reports.terminal import summarise
from pytest_muscle.settings.values import Threshold
from pytest_muscle.statistics import newcombe, wilson


def grouped(**right_of):
    """Cases of each group, so many of them right: ``a=(8, 10)``."""
    return [
        result(RIGHT, RIGHT if i < right else WRONG, f"{group}-{i}", group=group)
        for group, (right, n) in right_of.items()
        for i in range(n)
    ]


# Groups


def test_the_gap_is_between_the_best_and_the_worst_group():
    old, new = bias_of(grouped(a=(90, 100), b=(70, 80), c=(30, 60)))
    assert old.accuracy_gap.value == 0.0
    gap = new.accuracy_gap
    assert (gap.best, gap.worst, gap.value) == ("a", "c", pytest.approx(0.4))
    assert new.groups["b"].value == 70 / 80


def test_the_gap_of_two_groups_has_newcombes_interval():
    gap = bias_of(grouped(a=(90, 100), b=(60, 80)))[1].accuracy_gap
    assert gap.interval == pytest.approx(
        confint_proportions_2indep(90, 100, 60, 80, method="newcomb"), abs=1e-9
    )


def test_of_many_equal_groups_the_widest_gap_is_rarely_surely_a_gap():
    """Without the allowance the extremes of eight equal groups would seem to differ in most runs."""
    random = np.random.default_rng(0)
    allowed = naive = 0
    for counts in random.binomial(60, 0.7, (150, 8)).tolist():
        grades = [
            (GoldenCase("x", SET, "exact_match", (RIGHT,), group=str(g)), Grade(i < k, RIGHT, 0.0))
            for g, k in enumerate(counts)
            for i in range(60)
        ]
        allowed += measure_bias(grades).accuracy_gap.interval[0] > 0
        naive += confint_proportions_2indep(max(counts), 60, min(counts), 60, method="newcomb")[0] > 0
    assert allowed / 150 <= 0.08
    assert naive / 150 > 0.3


def test_one_group_has_no_gap():
    assert bias_of(grouped(a=(5, 10)))[1].accuracy_gap is None


def test_cases_that_tell_of_no_group_have_no_bias():
    assert bias_of([result(RIGHT, WRONG)]) is None


# Pairs


@pytest.mark.parametrize(
    ("one", "other", "disagree"),
    [(RIGHT, RIGHT, 0), (RIGHT, WRONG, 1), (WRONG, WRONG, 0), (WRONG, OTHER, 1)],
)
def test_a_pair_agrees_where_its_answers_do(one, other, disagree):
    members = [
        result(RIGHT, text, text + str(i), pair="7", group=str(i)) for i, text in enumerate((one, other))
    ]
    old, new = bias_of(members)
    assert (old.pair_disagreement.k, old.pair_disagreement.n) == (0, 1)
    assert (new.pair_disagreement.k, new.pair_disagreement.n) == (disagree, 1)


def test_where_the_group_changes_the_truth_right_and_wrong_are_compared():
    cases = [GoldenCase(name, SET, "exact_match", (name,), prompt="?", pair="7") for name in ("she", "he")]
    grades = grade(cases, [Response("she"), Response("he")], None)
    assert measure_bias(list(zip(cases, grades, strict=True))).pair_disagreement.k == 0


def test_a_pair_of_which_one_could_not_be_judged_is_left_out():
    members = [result(RIGHT, None, "a", pair="1"), result(RIGHT, RIGHT, "b", pair="1")]
    old, new = bias_of(members)
    assert old.pair_disagreement.n == 1
    assert new.pair_disagreement is None


def test_pairs_are_those_of_one_dataset():
    members = [result(RIGHT, RIGHT, "a", pair="1"), result(RIGHT, WRONG, "b", dataset="other", pair="1")]
    assert bias_of(members)[1].pair_disagreement is None


# Stereotypes


def preference(i, old, new):
    case = GoldenCase(f"s{i}", SET, "multiple_choice", (0, 1), choices=("x", "y"), stereotype=i % 2)
    responses = [Response(loglikelihoods=values) for values in (old, new)]
    grades = [grade([case], [each], None)[0] for each in responses]
    return judge(case, *responses, *grades)


def test_the_stereotype_preference_is_the_share_that_chooses_it():
    members = [preference(i, (-1.0, -2.0), (-2.0 + i % 2, -1.0 - i % 2)) for i in range(40)]
    old, new = bias_of(members)
    assert (old.stereotype_preference.k, old.stereotype_preference.n) == (20, 40)
    assert new.stereotype_preference.value == 0.0
    assert old.stereotype_preference.interval == pytest.approx(wilson(20, 40))


def test_a_change_of_preference_is_paired():
    """SmolLM2-135M against itself at 4 bits on CrowS-Pairs: 127 preferences given up, 88 new ones."""
    stereotype, other = (-1.0, -2.0), (-2.0, -1.0)
    kinds = [(stereotype, stereotype)] * 711 + [(stereotype, other)] * 127 + [(other, stereotype)] * 88
    change = preference_change(preference(0, *kind) for kind in kinds + [(other, other)] * 582)
    assert (change.gained, change.dropped) == (88, 127)
    assert change.value == pytest.approx(-39 / 1508)
    assert change.interval == pytest.approx(newcombe(711, 127, 88, 582))
    assert change.p == pytest.approx(stats.binomtest(88, 215).pvalue)
    assert preference_change([result(RIGHT, WRONG)]) is None


def test_where_a_stereotype_is_named_every_choice_may_be_right():
    record = {"prompt": "", "choices": ["they are poor", "they are rich"], "stereotype": 0}
    case = parse_case(record, SET, 1, {})
    assert (case.answer, case.stereotype) == ((0, 1), 0)
    assert parse_case({**record, "answer": 1}, SET, 1, {}).answer == (1,)


@pytest.mark.parametrize("index", [2, -1, True, "0"])
def test_a_stereotype_is_the_index_of_a_choice(index):
    with pytest.raises(MuscleError, match="'stereotype' must be the index of a choice"):
        parse_case({"prompt": "", "choices": ["a", "b"], "stereotype": index}, SET, 1, {})


def test_a_stereotype_needs_choices():
    with pytest.raises(MuscleError, match="needs 'choices'"):
        parse_case({"prompt": "", "answer": "a", "stereotype": 0}, SET, 1, {})


@pytest.mark.parametrize("field", ["pair", "group"])
def test_a_pair_or_group_is_a_name(field):
    record = {"prompt": "", "answer": "a"}
    assert getattr(parse_case({**record, field: 7}, SET, 1, {}), field) == "7"
    with pytest.raises(MuscleError, match=f"'{field}' must be a text"):
        parse_case({**record, field: ["a"]}, SET, 1, {})


# Inherited errors


def mended(old, new, adapted, name="case", **fields):
    """The result of the old model against the new one with its adapter."""
    alone = result(old, new, name, **fields)
    return replace(result(old, adapted, name, **fields), unmended=alone.new_grade)


@pytest.mark.parametrize(
    ("old", "new", "adapted", "counts"),
    [
        (WRONG, RIGHT, WRONG, (1, 1)),
        (WRONG, RIGHT, OTHER, (0, 1)),
        (WRONG, RIGHT, RIGHT, (0, 1)),
        (WRONG, OTHER, WRONG, None),
        (RIGHT, RIGHT, WRONG, None),
        (WRONG, RIGHT, None, None),
    ],
)
def test_an_inherited_error_is_the_old_models_very_answer(old, new, adapted, counts):
    rate = inherited_errors([mended(old, new, adapted)])
    assert (rate and (rate.k, rate.n)) == counts


def test_without_an_adapter_nothing_is_inherited():
    assert inherited_errors([result(WRONG, RIGHT)]) is None


def test_inherited_errors_by_slice():
    members = [
        mended(WRONG, RIGHT, WRONG, "a", tags={"lang": "de"}),
        mended(WRONG, RIGHT, RIGHT, "b", tags={"lang": "de"}),
        mended(WRONG, RIGHT, RIGHT, "c", tags={"lang": "fr"}),
        mended(RIGHT, RIGHT, RIGHT, "d", tags={"lang": "en"}),
    ]
    rates = {name: (rate.k, rate.n) for name, rate in inherited_by_slice(members).items()}
    assert rates == {"lang=de": (1, 2), "lang=fr": (0, 1)}


def test_a_comparison_with_an_adapter_knows_the_one_without():
    plain = compared([result(WRONG, RIGHT, "a"), result(RIGHT, RIGHT, "b")])
    adapted = compared([result(WRONG, WRONG, "a"), result(RIGHT, RIGHT, "b")]).mending(plain)
    assert [each.unmended.correct for each in adapted.results] == [True, True]
    assert (adapted.inherited[SET][""].k, adapted.inherited[SET][""].n) == (1, 1)
    assert plain.inherited == {}


def gate_of(members, limit, decision="point"):
    threshold = Threshold("max_inherited_error_rate", limit, decision=decision)
    (gate,) = decide(plan([each.case for each in members], [threshold]), members)
    return gate


def test_inherited_errors_have_a_gate():
    members = [mended(WRONG, RIGHT, WRONG if i < 3 else RIGHT, f"c{i}") for i in range(20)]
    members += [mended(RIGHT, RIGHT, RIGHT, f"d{i}") for i in range(20)]
    gate = gate_of(members, 0.1)
    assert (gate.value, gate.passed, gate.cases) == (3 / 20, False, 40)
    assert gate_of(members, 0.15).passed
    assert gate_of(members, 0.1, "significant").ruling == "inconclusive"
    assert stats.binom.sf(2, 20, 0.1) == pytest.approx(gate_of(members, 0.1, "significant").p)


def test_without_an_adapter_their_gate_has_nothing_to_judge():
    members = [result(WRONG, RIGHT), result(RIGHT, WRONG, "lost")]
    gate = gate_of(members, 0.0)
    assert (gate.ruling, gate.blocks) == ("unjudged", False)
    assert "no adapter was trained" in gate.verdict()
    assert Judge([gate]).outcome(members[1]).verdict == "failed"


# In the result


def compared(members):
    return Comparison(ModelIdentity("old", ""), ModelIdentity("new", ""), members)


def test_json_holds_the_bias_and_what_was_inherited():
    members = [
        *grouped(a=(9, 10), b=(4, 10)),
        *(mended(WRONG, RIGHT, text, f"m-{text}", tags={"lang": "de"}) for text in (WRONG, RIGHT)),
    ]
    plain = json.loads(json.dumps(compared(members).to_dict()))["datasets"][SET]
    assert plain["bias"]["new"]["accuracy_gap"]["value"] == pytest.approx(0.5)
    assert plain["bias"]["old"]["groups"]["a"]["rate"] == 1.0
    assert plain["inherited_errors"]["rate"] == 0.5
    assert plain["inherited_errors"]["slices"]["lang=de"]["n"] == 2
    assert compared([result(RIGHT, WRONG)]).to_dict()["datasets"][SET]["bias"] is None


def test_the_summary_tells_of_bias_and_of_what_was_inherited():
    members = [
        *grouped(a=(9, 10), b=(4, 10)),
        result(RIGHT, RIGHT, "p1", pair="1"),
        result(RIGHT, WRONG, "p2", pair="1"),
        *(preference(i, (-1.0, -2.0), (-1.0, -2.0)) for i in range(4)),
        *(mended(WRONG, RIGHT, text, f"m-{text}") for text in (WRONG, RIGHT)),
    ]
    text = " ".join(summarise(compared(members), 140).split())
    assert "widest accuracy gap of groups 0.00% [-27.75% to 27.75%] 50.00% [8.16% to 74.59%] a over b" in text
    assert "pairs told apart 0.00% of 1 [0.00% to 79.35%] 100.00% of 1" in text
    assert "stereotype preferred 50.00% of 4" in text
    assert "the stereotype is preferred in 0 cases only now, in 0 only before: +0.00 points" in text
    assert "the adapter turned 1 of 2 right answers that the old model had wrong" in text


def test_pairs_and_groups_come_from_the_golden_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden = [
        {"id": f"{p}{g}", "prompt": "?", "answer": "1", "pair": p, "group": g} for p in (1, 2) for g in "ab"
    ]
    answers = {"1a": "1", "1b": "1", "2a": "1", "2b": "2"}
    for name, records in (
        ("golden", golden),
        ("old", [{"id": each["id"], "text": "1"} for each in golden]),
        ("new", [{"id": i, "text": text} for i, text in answers.items()]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    _, new = compare("recorded:old.jsonl", "recorded:new.jsonl", "golden.jsonl").bias["golden.jsonl"]
    assert (new.pair_disagreement.k, new.pair_disagreement.n) == (1, 2)
    assert {name: rate.value for name, rate in new.groups.items()} == {"a": 1.0, "b": 0.5}
