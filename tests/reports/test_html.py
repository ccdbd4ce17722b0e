"""The page: every figure is the JSON result's, nothing in it can act, and its size has an end."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from anything import TEXT
from cases import OTHER, RIGHT
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.comparison import Comparison, ModelIdentity, TrainedAdapter
from pytest_muscle.flips import Flip, judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade
from pytest_muscle.history import Run
from pytest_muscle.models import Response
from pytest_muscle.reports import cases
from pytest_muscle.reports.html import render_fragment, render_html
from pytest_muscle.reports.markdown import render_markdown
from pytest_muscle.reports.terminal import summarise


class Reader(HTMLParser):
    """What stands in a page: its elements with their attributes, and the text of those named."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in ("data", "script", "b", "svg", "title", "desc", "h2"):
            self._open.append((tag, dict(attributes), []))

    def handle_data(self, text: str) -> None:
        for _, _, texts in self._open:
            texts.append(text)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            name, attributes, texts = self._open.pop()
            self.texts.append((name, attributes, "".join(texts)))

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for name, attributes, text in self.texts if name == tag]


def as_json(comparison: Comparison) -> Any:
    return json.loads(json.dumps(comparison.to_dict()))


def at(result: Any, pointer: str) -> Any:
    for step in pointer.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        result = result[int(step) if isinstance(result, list) else step]
    return result


def embedded(reader: Reader) -> Any:
    (text,) = (text for attributes, text in reader.named("script") if attributes.get("id") == "data")
    return json.loads(text)


def shown(value: float, text: str) -> bool:
    """Whether a text is a value rounded to the digits it has, as a percentage or plain."""
    plain = text.replace(",", "").removesuffix(" s")
    scale = 100 if plain.endswith("%") else 1
    plain = plain.removesuffix("%")
    digits = len(plain.partition("e")[0].partition(".")[2])
    if "e" in plain or scale == 1:
        return float(plain) == pytest.approx(value, rel=5e-3, abs=0.5 * 10**-digits)
    return float(plain) == pytest.approx(scale * value, abs=0.5 * 10**-digits + 1e-9)


def test_every_figure_is_the_results(mixed: Comparison) -> None:
    result = as_json(mixed)
    figures = Reader(render_html(mixed)).named("data")
    for attributes, text in figures:
        value = at(result, str(attributes["data-at"]))
        assert float(str(attributes["value"])) == value
        assert shown(value, text), attributes
    pointers = {str(attributes["data-at"]) for attributes, _ in figures}
    whole = "/datasets/golden.jsonl/metrics"
    assert {f"{whole}/{name}" for name in ("n", "nfr", "nfr_mc", "pfr", "btc", "score_new")} <= pointers
    assert {f"{whole}/intervals/nfr/{i}" for i in (0, 1)} <= pointers
    slices = result["datasets"]["golden.jsonl"]["slices"]
    assert len(slices) == 5
    assert {f"/datasets/golden.jsonl/slices/{name}/nfr" for name in slices} <= pointers
    assert {f"/gates/{i}/{name}" for i in range(3) for name in ("value", "limit")} <= pointers


def test_quadrants_are_counted_from_the_cases(mixed: Comparison) -> None:
    result, marks = as_json(mixed), Reader(render_html(mixed)).named("b")
    for attribute, is_generation in (("data-count", False), ("data-generated", True)):
        counts = Counter(
            case["flip"] for case in result["cases"] if (case["task"] == "generation") is is_generation
        )
        read = {str(a[attribute]): int(text) for a, text in marks if attribute in a}
        assert read == {flip: counts[flip] for flip in read}
        assert sum(read.values()) == sum(n for flip, n in counts.items() if flip)


def test_cases_are_the_results(mixed: Comparison) -> None:
    carried = embedded(Reader(render_html(mixed)))
    by_id = {case["id"]: case for case in as_json(mixed)["cases"]}
    assert len(carried["cases"]) == len(by_id) == 60
    for case in carried["cases"]:
        truth = by_id[case["id"]]
        assert carried["datasets"][case["dataset"]] == truth["dataset"]
        assert case["flip"] == (truth["flip"] or "error")
        assert case["outcome"] == truth["outcome"]
        assert case.get("delta") == truth["delta"]
        assert case["slices"] == [f"{tag}={value}" for tag, value in truth["tags"].items()]
        for side in ("old", "new"):
            for name in ("correct", "score", "loglikelihoods"):
                assert case[side].get(name) == truth[side].get(name)
            assert case[side].get("text", "") == truth[side].get("text", "")
    ranked = sorted(carried["cases"], key=lambda case: case["rank"])
    sizes = [case["delta"] for case in ranked if "delta" in case]
    assert sizes == sorted(sizes)
    assert [case["rank"] for case in ranked] == list(range(60))


def test_margins_follow_from_the_loglikelihoods(mixed: Comparison) -> None:
    with_margin = [case for case in embedded(Reader(render_html(mixed)))["cases"] if "margin" in case]
    assert len(with_margin) == 20
    for case in with_margin:
        for side, margin in zip(("old", "new"), case["margin"], strict=True):
            values = case[side]["loglikelihoods"]
            wrong = [value for i, value in enumerate(values) if i not in case["answer"]]
            assert margin == pytest.approx(values[case["answer"][0]] - max(wrong))
            assert (margin > 0) is case[side]["correct"]


def test_all_reports_show_the_same_figures(mixed: Comparison) -> None:
    result = as_json(mixed)
    page = {str(attributes["data-at"]): text for attributes, text in Reader(render_html(mixed)).named("data")}
    terminal = summarise(mixed, width=200)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in render_markdown(mixed).splitlines()
        if line.startswith("| <code>")
    ]
    slices = result["datasets"]["golden.jsonl"]["slices"]
    places = {"golden.jsonl": "/datasets/golden.jsonl/metrics"}
    places |= {name: f"/datasets/golden.jsonl/slices/{name}" for name in slices}
    for name, place in places.items():
        rates = [f"{100 * at(result, place)[rate]:.2f}%" for rate in ("nfr", "nfr_mc", "pfr")]
        assert [page[f"{place}/{rate}"] for rate in ("nfr", "nfr_mc", "pfr")] == rates
        (row,) = (row for row in rows if row[0] == f"<code>{name}</code>")
        assert row[1] == page[f"{place}/n"] == str(at(result, place)["n"])
        assert [row[4], *row[6:8]] == rates
        (line,) = (line for line in terminal.splitlines() if re.match(rf" *{name}( \(under.*\))? +\d", line))
        assert [rate for rate in line.split() if rate in rates] == rates
    for i, gate in enumerate(result["gates"]):
        (row,) = (row for row in rows if row[0].startswith(f"<code>{gate['name'].replace('_', '&#95;')}<"))
        assert row[1] == page[f"/gates/{i}/value"]
        assert row[3] == page[f"/gates/{i}/limit"]
        (line,) = (line for line in terminal.splitlines() if f"{gate['scope']} {gate['name']} " in line)
        assert f"{gate['value']:.4f}" in line
        assert f" {gate['limit']:g} " in line


# fmt: off
ALLOWED = {
    "a", "b", "bdi", "body", "br", "button", "caption", "circle", "code", "data", "desc", "div",
    "figcaption", "figure", "footer", "form", "h1", "h2", "head", "header", "html", "input", "label",
    "li", "link", "main", "meta", "nav", "noscript", "option", "p", "path", "rect", "script", "section",
    "select", "small", "span", "style", "svg", "table", "tbody", "td", "text", "th", "thead", "title",
    "tr", "ul",
}
# fmt: on


def test_hostile_text_is_inert(hostile: Comparison) -> None:
    page = render_html(hostile)
    reader = Reader(page)
    page.encode()
    assert {tag for tag, _ in reader.elements} <= ALLOWED
    assert sum(tag == "script" for tag, _ in reader.elements) == 2
    for _, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")]
        targets = [str(attributes[name]) for name in ("href", "src", "action") if name in attributes]
        assert all(target.startswith(("#", "data:,")) for target in targets)
    assert "603729" not in page
    prompts = [case["prompt"] for case in embedded(reader)["cases"] if case["id"] == "b"]
    assert prompts[0].startswith("<script>document.title='owned'</script></template></script><!--<img")
    assert "\\x1b[31mred" in prompts[0]
    assert "\\u202egnorw \\ud800 \\x00 \\u2028 &amp; {{ 777 * 777 }}" in prompts[0]


@given(texts=st.lists(TEXT, min_size=6, max_size=6))
def test_any_text_is_inert(benign: int, texts: list[str]) -> None:
    """Whatever an id, a tag, a prompt or an answer says, the page has the elements of a plain one."""
    page = render_html(told(*texts))
    page.encode()
    assert len(Reader(page).elements) == benign
    json.loads(next(t for a, t in Reader(page).named("script") if a.get("id") == "data"))


@pytest.fixture(scope="module")
def benign() -> int:
    return len(Reader(render_html(told("id", "tag", "value", "prompt", "old", "new"))).elements)


def told(name: str, tag: str, value: str, prompt: str, old: str, new: str) -> Comparison:
    case = GoldenCase(name, "d.jsonl", "exact_match", (RIGHT,), prompt=prompt, tags={tag: value})
    responses = [Response(RIGHT + old), Response(OTHER + new)]
    grades = [Grade(right, text, float(right)) for right, text in ((True, old), (False, new))]
    judged = [judge(case, *responses, *grades)]
    return Comparison(ModelIdentity(old, ""), ModelIdentity(new, ""), judged)


def test_policy_allows_the_pages_own_script_and_nothing_else(mixed: Comparison) -> None:
    reader = Reader(render_html(mixed))
    (policy,) = (
        str(attributes["content"])
        for tag, attributes in reader.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    script = reader.named("script")[-1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    directives = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == f"'sha256-{digest}'"


def test_long_texts_are_cut_and_say_so(hostile: Comparison) -> None:
    page = render_html(hostile)
    assert len(page) < 400_000
    (case,) = (case for case in embedded(Reader(page))["cases"] if case["id"] == "d")
    assert case["new"]["text"].startswith("<i><i>")
    assert case["new"]["text"].endswith("[... 1,030,000 more characters]")


def test_calm_cases_are_cut_before_regressions(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"id": str(i), "prompt": "?" * 2000, "answer": "x"} for i in range(4)]
    comparison = build(records, [{"text": "x"}] * 4, [{"text": text} for text in "xyxy"])
    monkeypatch.setattr(cases, "_RECORD_BYTES", 0)
    whole = len(cases.embedded_cases(comparison).encode())
    for most, kept in ((whole, [2000] * 4), (whole - 1, [1000, 2000, 1000, 2000]), (100, [10] * 4)):
        monkeypatch.setattr(cases, "_MOST_BYTES", most)
        monkeypatch.setattr(cases, "_LIMITS", ((2000, 2000), (2000, 1000), (10, 10)))
        carried = json.loads(cases.embedded_cases(comparison))["cases"]
        assert [case["prompt"].count("?") for case in carried] == kept
        for case, length in zip(carried, kept, strict=True):
            assert case["prompt"].endswith("?") or f"[... {2000 - length:,} more" in case["prompt"]


def test_ten_thousand_cases_stay_below_fifteen_megabytes(build: Any) -> None:
    words = "all work and no play makes the answer longer than it has to be " * 20
    records = [{"id": str(i), "prompt": words, "answer": str(i % 3)} for i in range(10_000)]
    old = [{"text": f"{words}<{i}>"} for i in range(10_000)]
    comparison = build(records, old, [{"text": "1"}] * 10_000)
    page = render_html(comparison).encode()
    assert 8_000_000 < len(page) < 15_000_000
    assert len(embedded(Reader(page.decode()))["cases"]) == 10_000


def test_adapter_is_shown_before_and_after(mixed: Comparison) -> None:
    mended = replace(mixed, results=[r for r in mixed.results if r.flip is not Flip.NEGATIVE])
    adapter = TrainedAdapter(Path("<adapter>"), "student-wrong <1>", 75.2, mixed, mended, ["a <note>"])
    comparison = replace(mended, adapter=replace(adapter, after=mended))
    page = render_html(comparison)
    figures = {str(a["data-at"]): text for a, text in Reader(page).named("data")}
    assert figures["/adapter/before/nfr"] == "23.73%"
    assert figures["/adapter/after/nfr"] == "0.00%"
    assert figures["/adapter/seconds"] == "75 s"
    assert "Without it, the release fails." in page
    assert {"&lt;adapter&gt;", "student-wrong &lt;1&gt;", "a &lt;note&gt;"} <= set(
        re.findall(r"<bdi>(.*?)</bdi>", page)
    )
    lines = render_markdown(comparison).splitlines()
    (without,) = (line for line in lines if line.startswith("| without |"))
    (with_it,) = (line for line in lines if line.startswith("| with |"))
    assert without.split(" | ")[1:3] == ["45.00%", "23.73%"]
    assert with_it.split(" | ")[2] == "0.00%"
    assert "adapter" not in [str(a.get("id")) for a, _ in Reader(render_html(mixed)).named("h2")]


def test_training_in_vain_is_told(mixed: Comparison) -> None:
    comparison = replace(mixed, adapter=TrainedAdapter(None, "recipe", 1.0, mixed))
    assert "No adapter was worth keeping" in render_html(comparison)
    text = render_markdown(comparison)
    assert "No adapter was worth keeping" in text
    assert "| without |" in text
    assert "| with |" not in text


def test_noise_is_told(build: Any) -> None:
    records = [{"id": str(i), "prompt": "?", "answer": "x"} for i in range(4)]
    old = [[{"text": text} for text in draws] for draws in ("xxx", "xxx", "xxy", "xyx")]
    new = [[{"text": text} for text in draws] for draws in ("xxx", "yyy", "yyx", "yzy")]
    comparison = build(records, old, new, samples=3)
    result = as_json(comparison)
    reader = Reader(render_html(comparison))
    page, text = render_html(comparison), unescape(render_markdown(comparison))
    for name in ("draw_nfr", "self_flip_rate", "excess_nfr"):
        figure = f"{100 * result['noise'][name]:.2f}% ["
        assert figure in page
        assert figure in text
    carried = embedded(reader)["cases"]
    assert [case["draws"][0] for case in carried] == [["x"] * 3, ["x"] * 3, ["x", "x", "y"], ["x", "y", "x"]]
    assert carried[3]["draws"][1] == ["y", "z", "y"]
    unstable = [bool(case.get("unstable")) for case in carried]
    assert unstable == [result.draws.unstable for result in comparison.results]
    assert sum(unstable) == result["noise"]["unstable"] > 0


def test_bias_is_told(build: Any) -> None:
    records = [{"id": str(i), "prompt": "?", "answer": "x", "group": "ab"[i % 2]} for i in range(8)]
    old, new = ([{"text": text} for text in texts] for texts in ("xxxxxyxx", "xyxyxxxx"))
    comparison = build(records, old, new)
    gap = as_json(comparison)["datasets"]["golden.jsonl"]["bias"]["new"]["accuracy_gap"]
    for report in (render_html(comparison), unescape(render_markdown(comparison))):
        assert "widest accuracy gap of groups" in report
        assert "50.00% [" in report
        assert "a over b" in report
    assert 0.5 in gap.values()


def runs(comparison: Comparison, *rates: float) -> list[Run]:
    datasets: dict[str, dict[str, Any]] = {"golden.jsonl": {}}
    return [
        Run(f"2030-01-0{i + 1}T00:00:00+00:00", "<b>" * 9, {}, {}, True, {"nfr": rate}, datasets)
        for i, rate in enumerate(rates)
    ]


def test_trend_is_drawn_of_runs_on_the_same_datasets(mixed: Comparison) -> None:
    history = runs(mixed, 0.1, 0.2, 0.05)
    strange = Run("2030-01-01", None, {}, {}, True, {"nfr": "x"}, {"other.jsonl": {}})
    page = render_html(mixed, [*history, strange])
    titles = [text for _, text in Reader(page).named("title")]
    dots = [title for title in titles if title.startswith("nfr ") and "2030-01" in title]
    assert [title.split(",")[0] for title in dots] == ["nfr 10.00%", "nfr 20.00%", "nfr 5.00%"]
    assert "1 runs on other golden datasets are left out" in page
    assert "trend over" not in render_html(mixed, history[:1])


def test_plots_describe_themselves(mixed: Comparison) -> None:
    reader = Reader(render_html(mixed, runs(mixed, 0.1, 0.2)))
    pictures = reader.named("svg")
    assert len(pictures) >= 12
    for attributes, _ in pictures:
        assert attributes["role"] == "img"
    titled = [text for _, text in reader.named("title")]
    assert {"Score (rouge1), old against new", "Margin of the right choice, old against new"} <= set(titled)
    assert any("NFR 23.73%, 95% interval 14.69% to 35.97%" in title for title in titled)
    assert any("negative flip: 8" in text for _, text in reader.named("desc"))


def test_notebook_shows_verdict_rates_and_worst(mixed: Comparison) -> None:
    fragment = mixed._repr_html_()
    assert fragment == render_fragment(mixed)
    reader = Reader(fragment)
    assert "FAILED" in fragment
    assert not reader.named("script")
    assert not [tag for tag, attributes in reader.elements if "href" in attributes]
    assert "html" not in {tag for tag, _ in reader.elements}
    result = as_json(mixed)
    for attributes, text in reader.named("data"):
        assert shown(at(result, str(attributes["data-at"])), text)
    worst = max(result["cases"], key=lambda case: -(case["delta"] or 0))
    assert worst["id"] in fragment


def test_notebook_is_inert(hostile: Comparison) -> None:
    reader = Reader(render_fragment(hostile))
    assert {tag for tag, _ in reader.elements} <= ALLOWED


def test_run_without_a_judged_case_is_still_a_page(build: Any) -> None:
    case = {"id": "a", "prompt": "?", "answer": "x"}
    comparison = build([case], [{"text": "x"}], [{"error": "timeout"}])
    page = render_html(comparison)
    assert "1 case was not judged." in page
    assert embedded(Reader(page))["cases"][0]["flip"] == "error"
    assert render_fragment(comparison)
    assert render_markdown(comparison)
