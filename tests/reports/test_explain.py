"""What people read of one failing case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.flips import CaseResult, judge
from pytest_muscle.gates import Outcome, Verdict
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import grade
from pytest_muscle.models import Response
from pytest_muscle.reports.explain import change, explain, headline

HOSTILE = "\x1b[2J\x1b]0;title\x07[red]\ud800\u202e</script>"
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


FAILED = Outcome(Verdict.FAILED, "negative flip")


def decided(judged: CaseResult) -> Outcome:
    return FAILED if judged.flip else Outcome(Verdict.ERROR, judged.error or "")


def result(case: GoldenCase, old: Response | None, new: Response | None) -> CaseResult:
    def length(metric, pairs):
        return [min(len(text) / 10, 1.0) for text, _ in pairs]

    grades = [grade([case], [response], length)[0] for response in (old, new)]
    return judge(case, old, new, *grades)


def exact(old: str, new: str, **fields: object) -> CaseResult:
    values: dict[str, object] = {"prompt": "2 + 2 =", "extract": "(\\d+)", **fields}
    case = GoldenCase("id", "d.jsonl", "exact_match", ("4",), **values)  # type: ignore[arg-type]
    return result(case, Response(text=old), Response(text=new))


def choice(old: Response, new: Response) -> CaseResult:
    case = GoldenCase(
        "id", "d.jsonl", "multiple_choice", (1, 2), prompt="Q?", choices=("no", "yes", "of course")
    )
    return result(case, old, new)


def told(judged: CaseResult) -> list[str]:
    return explain(judged, decided(judged)).splitlines()


def test_a_choice_that_was_asked_for_by_letter():
    letters = (Response(text=said, choice=i, method="letter") for said, i in (("C", 2), ("**A**\nfor", 0)))
    assert told(choice(*letters))[3:] == [
        "truth     [1] yes or [2] of course",
        "choices          old        new   (asked for by letter; the choice is marked)",
        "                              *   [0] no",
        "                                  [1] yes (right)",
        "                   *              [2] of course (right)",
        "old       'C'",
        "new       '**A** for'",
    ]


def test_an_exact_match():
    assert told(exact("It is 4 I think", "It is 5 I think")) == [
        "negative flip: '4' -> '5' (truth '4')",
        "",
        "prompt    2 + 2 =",
        "truth     '4'",
        "old       right: '4'",
        "          It is 4 I think",
        "new       wrong: '5'",
        "          It is 5 I think",
        "changed   It is [-4-] {+5+} I think",
    ]


def test_no_answer_and_an_empty_response():
    lines = told(exact("4", ""))
    assert lines[0] == "negative flip: '4' -> no answer (truth '4')"
    assert lines[-1] == "new       wrong: no answer (empty response)"
    assert told(exact("4", "none at all"))[-2:] == ["new       wrong: no answer", "          none at all"]


def test_choices_stand_one_under_the_other():
    old = Response(loglikelihoods=(-12.5, -1.0, -2.0))
    new = Response(loglikelihoods=(-0.25, -1.0, -float("inf")))
    assert told(choice(old, new)) == [
        "negative flip: [1] yes -> [0] no (truth [1] yes or [2] of course)",
        "",
        "prompt    Q?",
        "truth     [1] yes or [2] of course",
        "choices          old        new   (log-likelihoods; the choice is marked)",
        "             -12.50      -0.25*   [0] no",
        "              -1.00*     -1.00    [1] yes (right)",
        "              -2.00       -inf    [2] of course (right)",
    ]


def test_recorded_choices_have_no_loglikelihoods():
    lines = told(choice(Response(choice=2), Response(choice=0)))
    assert lines[-3:] == [
        f"{'*':>31}   [0] no",
        f"{'[1]':>37} yes (right)",
        f"{'*':>20}{'[2]':>17} of course (right)",
    ]


def test_a_generation_shows_its_scores():
    case = GoldenCase("id", "d.jsonl", "generation", ("short", "brief"), prompt="Sum up.", metric="rouge1")
    judged = result(case, Response(text="a longer summary"), Response(text="sum"))
    assert change(judged) == "1.000 -> 0.300 rouge1"
    lines = told(judged)
    assert lines[0] == "negative flip: 1.000 -> 0.300 rouge1"
    assert "truth     'short' or 'brief'" in lines
    assert "old       rouge1 1.000" in lines


def test_messages_are_shown_one_under_the_other():
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?\nQuick!"})
    lines = told(exact("4", "5", prompt="", messages=messages))
    assert lines[2:5] == ["prompt    system: Be brief.", "          user: 2 + 2?", "          Quick!"]


def test_an_unjudged_case_says_why():
    case = GoldenCase("id", "d.jsonl", "exact_match", ("4",), prompt="p")
    judged = result(case, Response(text="4"), Response(error=f"refused{HOSTILE}"))
    assert headline(judged, decided(judged)).startswith("not judged: new model: refused\\x1b[2J")
    assert "new       not judged: refused\\x1b[2J" in explain(judged, decided(judged))
    missing = result(case, None, Response(text="4"))
    assert "old       not judged: no response to this case" in explain(missing, decided(missing))


@pytest.mark.parametrize(("asked", "most"), [(80, 80), (60, 60), (300, 110), (5, 40)])
def test_no_line_is_wider_than_the_terminal(asked, most):
    words = "word " * 100
    judged = exact(f"4 {words}", f"5 {words}", prompt=words)
    first, blank, *lines = explain(judged, decided(judged), asked).splitlines()
    assert first.startswith("negative flip")
    assert not blank
    assert max(map(len, lines)) in range(most - len("word "), most + 1)
    assert {line[:10].strip() for line in lines} == {"", "prompt", "truth", "old", "new", "changed"}
    assert explain(judged, decided(judged), asked).count("word") == 4 * 100


def test_a_megabyte_is_cut():
    story = explain(exact("4 " + "x " * 500_000, "5 " + "y" * 1_000_000, prompt="p" * 1_000_000), FAILED)
    assert len(story) < 12_000
    assert "[... 998,000 more characters]" in story
    assert "more characters]" in story.splitlines()[-1]


@pytest.mark.parametrize("text", [HOSTILE, "\r\n" * 50, "  \u00a0 ", "\u2028" * 50])
def test_hostile_texts_are_inert(text):
    fields = {"prompt": text, "extract": "", "messages": ()}
    check_inert(explain(exact(f"4{text}", f"5{text}", **fields), FAILED))


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_any_text_is_inert(prompt, old, new):
    check_inert(explain(exact(old, new, prompt=prompt, extract=""), FAILED))


def check_inert(story: str) -> None:
    story.encode("utf-8")
    assert not any(each < " " for each in story.replace("\n", ""))
    assert all(len(line) <= 110 for line in story.splitlines()[1:])
    assert story.rstrip("\n").split("\n") == story.rstrip("\n").splitlines()
