"""Slices: how they are made, marked, and searched for the worst one."""

import numpy as np
import pytest
from cases import RIGHT, WRONG, result, results
from scipy import stats

from pytest_muscle.comparison import Comparison, ModelIdentity
from pytest_muscle.metrics import FEW, find_worst_slice, measure, slice_members, slices_of
from pytest_muscle.reports.terminal import summarise
from pytest_muscle.statistics import wilson


def tagged(**tags):
    return result(RIGHT, RIGHT, tags=tags).case


def searched(members):
    slices = {name: measure(part) for name, part in slice_members(members, lambda each: each.case).items()}
    return find_worst_slice(slices.pop(""), slices)


def compared(members, **how):
    return Comparison(ModelIdentity("old", ""), ModelIdentity("new", ""), members, **how)


def test_each_tag_makes_a_slice_and_each_pair_on_request():
    case = tagged(topic="law", lang="de", level="1")
    assert slices_of(case) == ["topic=law", "lang=de", "level=1"]
    assert slices_of(case, pairs=True)[3:] == ["lang=de,level=1", "lang=de,topic=law", "level=1,topic=law"]
    assert slices_of(tagged(lang="de", topic="law"), pairs=True)[2:] == ["lang=de,topic=law"]
    assert list(slice_members([case], lambda each: each)) == ["", *slices_of(case)]
    assert list(slice_members([case], lambda each: each, pairs=True)) == ["", *slices_of(case, pairs=True)]


def test_pairs_are_measured_on_request():
    members = results(both=2, lost=1, tags={"lang": "de", "topic": "law"})
    assert "lang=de,topic=law" not in compared(members).to_dict()["datasets"]["golden/qa.jsonl"]["slices"]
    plain = compared(members, slice_pairs=True).to_dict()["datasets"]["golden/qa.jsonl"]["slices"]
    assert plain["lang=de,topic=law"]["nfr"] == pytest.approx(1 / 3)


def test_a_slice_of_few_cases_is_marked_and_not_hidden():
    members = results(lost=1, tags={"lang": "de"}) + results(both=FEW, start=1, tags={"lang": "fr"})
    slices = compared(members).to_dict()["datasets"]["golden/qa.jsonl"]["slices"]
    assert {name: metrics["few"] for name, metrics in slices.items()} == {"lang=de": True, "lang=fr": False}
    assert f"lang=de (under {FEW} cases)" in summarise(compared(members), 120)
    assert wilson(0, FEW)[1] > 0.11


def test_slices_are_in_order_of_what_is_surely_lost():
    members = [
        *results(both=1, lost=1, tags={"lang": "one-of-two"}),
        *results(both=70, lost=30, start=2, tags={"lang": "thirty-of-hundred"}),
        *results(both=99, lost=1, start=102, tags={"lang": "one-of-hundred"}),
    ]
    text = summarise(compared(members), 120)
    places = [text.index(f"lang={each}") for each in ("thirty-of-hundred", "one-of-two", "one-of-hundred")]
    assert places == sorted(places)


def test_the_worst_slice_is_found_by_fishers_exact_test():
    members = [
        *results(both=20, lost=10, tags={"lang": "de"}),
        *results(both=90, lost=10, start=30, tags={"lang": "fr"}),
        *results(both=68, lost=2, start=130, tags={"lang": "en"}),
    ]
    worst = searched(members)
    assert (worst.slice, worst.n, worst.searched) == ("lang=de", 30, 3)
    assert (worst.nfr, worst.nfr_elsewhere) == (pytest.approx(10 / 30), pytest.approx(12 / 170))
    expected = stats.fisher_exact([[10, 20], [12, 158]], alternative="greater").pvalue
    assert worst.p == pytest.approx(3 * expected)


def test_a_slice_that_is_everything_is_not_searched():
    assert searched(results(both=5, lost=5, tags={"lang": "de"})) is None
    assert searched(results(both=5)) is None


def test_a_search_finds_no_worst_slice_where_none_is_worse():
    """Uncorrected, the worst of sixty slices would stand out in most runs."""
    random = np.random.default_rng(0)
    found = naive = 0
    for _ in range(40):
        lost = random.random(900) < 0.1
        tags = random.integers(0, 20, (900, 3)).tolist()
        members = [
            result(RIGHT, WRONG if is_lost else RIGHT, tags={"a": str(a), "b": str(b), "c": str(c)})
            for is_lost, (a, b, c) in zip(lost, tags, strict=True)
        ]
        worst = searched(members)
        found += worst.p <= 0.05
        naive += worst.p / worst.searched <= 0.05
    assert found <= 4
    assert naive > 20


def test_a_search_finds_the_slice_that_is_worse():
    random = np.random.default_rng(1)
    parts = random.integers(0, 50, 2_000).tolist()
    lost = random.random(2_000) < np.where(np.array(parts) == 7, 0.5, 0.05)
    members = [
        result(RIGHT, WRONG if is_lost else RIGHT, str(i), tags={"part": str(part)})
        for i, (part, is_lost) in enumerate(zip(parts, lost, strict=True))
    ]
    worst = searched(members)
    assert worst.slice == "part=7"
    assert worst.p < 1e-4
    assert "part=7 stands out" in summarise(compared(members), 120)
