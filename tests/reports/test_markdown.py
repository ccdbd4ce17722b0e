"""The Markdown summary: its tables hold, and no text in them can act."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pytest_muscle.comparison import Comparison
from pytest_muscle.reports.markdown import inert, render_markdown
from pytest_muscle.reports.text import one_line

MEANINGFUL = '|<>[]*_`~\\!@:$"{}^#&'


@given(st.text(max_size=300) | st.sampled_from(["www.evil.example", "a@b.example", "::error::x", "<!--"]))
def test_text_is_code_without_a_meaningful_character(text: str) -> None:
    code = inert(text)
    assert not code or (code.startswith("<code>") and code.endswith("</code>"))
    body = code.removeprefix("<code>").removesuffix("</code>")
    outside = re.sub(r"&#\d+;", "", body)
    assert not set(MEANINGFUL) & set(outside)
    assert "\n" not in body
    assert "www." not in outside.lower()
    assert unescape(body) == one_line(text)


def test_every_table_row_has_the_columns_of_its_header(mixed: Comparison, hostile: Comparison) -> None:
    for comparison in (mixed, hostile):
        for table in re.findall(r"(?:^\|.*\n)+", render_markdown(comparison), re.MULTILINE):
            widths = {line.count("|") for line in table.splitlines()}
            assert len(widths) == 1, table


def test_hostile_text_is_inert(hostile: Comparison) -> None:
    text = render_markdown(hostile)
    text.encode()
    assert set(re.findall(r"</?(\w+)", text)) <= {"code", "br"}
    for forged in ("](", "![", "::error", "##[", "@every", "www.evil", "http://", "\x1b", "\x00", "`code`"):
        assert forged not in text
    assert len(text) < 20_000
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in rendered
    tags = set(re.findall(r"<(\w+)", rendered))
    assert tags <= {
        "h2",
        "h3",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "br",
        "ul",
        "li",
        "strong",
    }
    assert rendered.count("<table>") == len(re.findall(r"^\| ---", text, re.MULTILINE))
    assert not [line for line in text.splitlines() if line.startswith(("    ", "\t", "::"))]


def test_says_what_is_in_the_way(mixed: Comparison) -> None:
    lines = render_markdown(mixed).splitlines()
    assert lines[0] == "## pytest-muscle: ❌ failed"
    counts = mixed.metrics.counts
    assert f"{counts['negative_flip']} cases of 59 got worse" in lines[4]
    assert "1 of 3 gates failed." in lines[4]
    (gate,) = (line for line in lines if line.startswith("| <code>max&#95;nfr</code>"))
    assert "| 23.73% | 14.69% to 35.97% | 5.00% | ✕ over" in gate
    assert lines[-1].startswith("- <code>note&#58; ")


def test_long_lists_are_bounded_and_counted(mixed: Comparison) -> None:
    text = render_markdown(mixed)
    regressions = sum(result.flip is not None and result.flip.is_regression for result in mixed.results)
    listed = re.findall(r"^\| <code>golden.jsonl&#58;&#58;case-\d+</code> \|", text, re.MULTILINE)
    assert len(listed) == 10
    assert f"... and {regressions - 10} more regressions." in text


def test_passed_run_says_so(build: pytest.FixtureRequest) -> None:
    case = {"id": "a", "prompt": "?", "answer": "x"}
    comparison = build([case], [{"text": "x"}], [{"text": "x"}])  # type: ignore[operator]
    text = render_markdown(comparison)
    assert text.startswith("## pytest-muscle: ✅ passed")
    assert "Worst regressions" not in text
    assert "| **old right** | 1 still right | **0 negative flips** |" in text
