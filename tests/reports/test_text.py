"""Text from models made fit to be shown."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.reports.text import difference, one_line, plain

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
ACTIVE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@given(ANY_TEXT)
def test_nothing_active_is_left_and_it_can_be_written(text):
    for shown in (plain(text), one_line(text), difference(text, text[::-1])):
        assert not {unicodedata.category(each) for each in shown.replace("\n", "")} & ACTIVE
        shown.encode("utf-8")
    assert "\n" not in one_line(text)


def test_what_is_spelt_out():
    assert plain("\x1b[31mred\x1b[0m") == "\\x1b[31mred\\x1b[0m"
    assert plain("a\ud800b\u202ec\U000e0001\r\x9b") == "a\\ud800b\\u202ec\\U000e0001\\x0d\\x9b"
    assert plain("line\n\tnext") == "line\n    next"
    assert plain("Grüße 你好 🙂 e\u0301") == "Grüße 你好 🙂 e\u0301"
    assert plain("[bold]<script>::error::%0A`|`") == "[bold]<script>::error::%0A`|`"


def test_long_texts_are_cut_and_say_so():
    assert plain("x" * 2000) == "x" * 2000
    assert plain("x" * 1_000_000) == "x" * 2000 + " [... 998,000 more characters]"
    assert plain("abcdef", limit=2) == "ab [... 4 more characters]"


def test_one_line():
    assert one_line("  two\n \t lines\u2028three ") == "two lines three"
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 197 + "..."
    assert one_line("a" + " " * 1000 + "b", limit=10) == "a..."
    assert one_line("") == ""
    assert len(one_line("\x1b" * 1_000_000, limit=50)) == 50


def test_differences_are_marked_word_by_word():
    assert difference("The sum is 18 in all.", "The sum is 26 in all.") == "The sum is [-18-] {+26+} in all."
    assert difference("a b", "b c") == "[-a-] b {+c+}"
    assert difference("yes", "no") == ""
    assert difference("a  b\n", "a b") == ""
    assert difference("", "") == difference("a", "") == ""
    assert difference("ok \x1b[2J", "ok then") == "ok [-\\x1b[2J-] {+then+}"


def test_only_the_beginning_is_compared():
    start = [f"w{i}" for i in range(200)]
    assert difference(" ".join([*start, "old"]), " ".join([*start, "new"])) == ""
    marked = difference("old " + " ".join(start), "new " + " ".join(start))
    assert marked.startswith("[-old-] {+new+} w0 w1 ")


def test_a_megabyte_of_one_word_is_compared_by_its_beginning():
    marked = difference("a " * 500_000, "a b " * 250_000)
    assert marked.startswith("a {+b+} a {+b+} ")
    assert marked.count("+}") == 100
    assert difference("x" * 1_000_000, "y" * 1_000_000) == ""
