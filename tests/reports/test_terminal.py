"""The summary at the end of a run."""

import re
import unicodedata

import pytest
from cases import results, scored

from pytest_muscle.comparison import Comparison, ModelIdentity
from pytest_muscle.gates import Gate, Ruling
from pytest_muscle.reports.terminal import summarise


def comparison(*judged, **fields) -> Comparison:
    return Comparison(ModelIdentity("v1", "1"), ModelIdentity("v2", "2"), judged, **fields)


def numbers(line: str) -> list[str]:
    return re.findall(r"[\d,.]+%?", line)


def line_of(text: str, start: str) -> str:
    (found,) = [line for line in text.splitlines() if line.lstrip().startswith(start)]
    return found.strip()


def test_quadrants_and_rates_are_those_of_the_comparison():
    text = summarise(comparison(*results(both=10, lost=3, won=5, same=4, other=2)))
    assert line_of(text, "old  ") == "old  v1"
    assert line_of(text, "new  ") == "new  v2"
    assert numbers(line_of(text, "old right")) == ["10", "41.7%", "3", "12.5%"]
    assert numbers(line_of(text, "old wrong")) == ["5", "20.8%", "6", "25.0%", "2"]
    rates = line_of(text, "golden/qa.jsonl ")
    assert rates.split() == [
        "golden/qa.jsonl",
        "24",
        "54.17%",
        "62.50%",
        "12.50%",
        "4.3-31.0%",
        "20.83%",
        "20.83%",
    ]
    assert line_of(text, "cases: ") == "cases: 19 passed, 5 failed"


def test_several_datasets_end_in_all():
    one, two = results(both=1, dataset="a.jsonl"), results(lost=1, dataset="b.jsonl")
    lines = summarise(comparison(*one, *two)).splitlines()
    assert [
        line.split()[0] for line in lines if line.strip().startswith(("a.jsonl ", "b.jsonl ", "all "))
    ] == [
        "a.jsonl",
        "b.jsonl",
        "all",
    ]


def test_the_worst_come_first():
    many = results(both=60, lost=0, tags={"lang": "en"})
    many += results(both=20, lost=20, tags={"lang": "de"}, start=100)
    text = summarise(comparison(*many))
    assert text.index("lang=de") < text.index("lang=en")
    assert "golden/qa.jsonl::case-120  '1' -> '2' (truth '1')" in text
    assert text.count("'1' -> '2'") == 5
    drops = summarise(comparison(scored(0.5, 0.45, "small"), scored(0.9, 0.1, "large"), scored(0.1, 0.9)))
    assert drops.index("::large") < drops.index("::small")


def test_folded_regressions_keep_their_margin():
    text = summarise(comparison(*results(both=4, lost=2, dataset=f"golden/{'long' * 12}.jsonl")))
    told = text.partition("worst regressions\n")[2].partition("\n\n")[0].splitlines()
    assert len(told) > 2
    assert all(line.startswith("  ") and len(line) <= 80 for line in told)


def test_generations_show_their_scores():
    text = summarise(comparison(scored(0.5, 0.75), scored(0.5, 0.48)))
    flat = " ".join(text.split())
    assert "generation: score 0.500 -> 0.615, mean D +0.115" in flat
    assert "mean gain 0.250, mean regression 0.020; 1 of 1 regressions are smaller than 0.05" in flat
    assert "new right" not in text


def test_nothing_to_show_is_shown():
    assert "cases: none" in summarise(comparison())
    assert "cases: 2 error" in summarise(comparison(*results(failed=2)))


def test_notices_end_the_summary():
    text = summarise(comparison(*results(both=1), notices=["old.jsonl: 3 responses have no golden case"]))
    assert text.endswith("note: old.jsonl: 3 responses have no golden case\n")


@pytest.mark.parametrize("width", [10, 60, 80, 200])
def test_it_fits_the_terminal(mixed, width):
    text = summarise(mixed, width)
    assert max(map(len, text.splitlines())) <= max(width, 80)
    assert "max_nfr_mc" in text


def test_at_80_columns_no_figure_is_broken(mixed):
    text = summarise(mixed, 80)
    for dataset in mixed.datasets.values():
        assert f"{100 * dataset.metrics.nfr:.2f}%" in text
    assert "…" not in text
    for gate in mixed.gates:
        assert f"{gate.value:.4f}" in text


def gate(name, ruling, **figures):
    about = {"dataset": "golden/customer_support.jsonl", "slice": "", "limit": 0.005, "cases": 12_000}
    return Gate(name, **{**about, "answered": 12_000, "ruling": ruling, **figures})


def test_at_80_columns_no_word_of_a_gate_is_broken(monkeypatch):
    figures = {"value": 0.1234, "interval": (0.1001, 0.1501), "needed": 14_000}
    gates = [
        gate("max_accuracy_drop", Ruling.INCONCLUSIVE, reversal=-1_234, **figures),
        gate("max_mean_regression", Ruling.FAILED, reversal=12, **figures),
        gate("max_nfr", Ruling.UNJUDGED, answered=7, value=1.0, interval=(0.2, 1.0)),
        gate("max_nfr_mc", Ruling.UNJUDGED, answered=7, value=1.0, interval=(0.2, 1.0)),
    ]
    monkeypatch.setattr(Comparison, "gates", tuple(gates))
    text = summarise(comparison(*results(both=3)), 80)
    table = text[text.index("budget") : text.index("reversal:")]
    words = table.split()
    for each in gates:
        assert each.name in words
    for word in (
        "inconclusive",
        "FAILED",
        "unjudged",
        "10.0-15.0%",
        "20.0-100.0%",
        "0.1234",
        "1,234",
        "14,000",
    ):
        assert word in words
    # Said once, of all the gates that wait for the same cases.
    assert text.count("golden/customer_support.jsonl: unjudged, as 7 of 12,000 cases are answered") == 1
    assert max(map(len, text.splitlines())) <= 80


def test_colour_is_left_out_unless_asked_for(mixed):
    assert "\x1b" not in summarise(mixed)
    coloured = summarise(mixed, colour=True)
    assert "\x1b[31m" in coloured
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == summarise(mixed).splitlines()


def test_hostile_text_is_inert(hostile):
    text = summarise(hostile, 80)
    active = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert not {unicodedata.category(each) for each in text.replace("\n", "")} & active
    assert len(text) < 20_000
    text.encode("utf-8")


def test_markup_in_names_is_text():
    text = summarise(comparison(*results(lost=1, dataset="[red]a.jsonl[/red]", tags={"x": "[bold]:smile:"})))
    assert "[red]a.jsonl[/red]" in text
    assert "[bold]:smile:" in text
