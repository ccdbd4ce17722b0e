"""Golden datasets: every format, every field, and whatever a file can have wrong."""

import csv
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import FIELDS, check_defaults, parse_case, read_golden, read_records

CHOICES = {"prompt": "Colour of snow?", "choices": ["black", "white"], "answer": 1}
EXACT = {"prompt": "2 + 2 =", "answer": "4", "extract": "(\\d+)"}
SUMMARY = {"prompt": "Sum up.", "answer": ["short", "brief"], "metric": "rouge1"}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def parse(record: dict[str, object], **defaults: object):
    return parse_case(record, "d.jsonl", 1, defaults)


def refused(path: Path, **how: object) -> str:
    with pytest.raises(MuscleError) as caught:
        read_golden(path, **how)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    return message.removeprefix(str(path))


def field_refused(record: dict[str, object], **defaults: object) -> str:
    with pytest.raises(MuscleError) as caught:
        parse(record, **defaults)
    return str(caught.value)


# What a record becomes ----------------------------------------------------------------------------


def test_tasks_are_inferred():
    assert [parse(record).task for record in (CHOICES, EXACT, SUMMARY)] == [
        "multiple_choice",
        "exact_match",
        "generation",
    ]
    assert parse({"prompt": "p", "answer": "a", "task": "generation"}).metric == "rouge1"


def test_every_field_reaches_the_case():
    case = parse(
        {
            "id": 7,
            "messages": [{"role": "user", "content": "hi", "extra": 1}],
            "answer": ["Yes", 3, 0.5],
            "extract": "A: (.*)",
            "ignore_case": True,
            "ignore_space": True,
            "stop": "\n",
            "max_new_tokens": 9,
            "tags": {"lang": "de", "hard": True, "year": 2024, "none": None},
            "source": "a field of the user's own",
        }
    )
    assert (case.id, case.key, case.line) == ("7", ("d.jsonl", "7"), 1)
    assert case.messages == ({"role": "user", "content": "hi"},)
    assert case.answer == ("Yes", "3", "0.5")
    assert (case.extract, case.ignore_case, case.ignore_space) == ("A: (.*)", True, True)
    assert (case.stop, case.max_new_tokens, case.delimiter) == (("\n",), 9, "")
    assert case.tags == {"lang": "de", "hard": "true", "year": "2024"}


@pytest.mark.parametrize(
    ("answer", "indices"), [(1, (1,)), ([1, 0, 1], (0, 1)), ([0], (0,))], ids=["one", "several", "list"]
)
def test_right_choices_are_a_sorted_set(answer, indices):
    assert parse({**CHOICES, "answer": answer}).answer == indices


def test_small_and_large_numbers_are_answers_without_exponents():
    answers = parse({"prompt": "p", "answer": [0.00001, 1e16, 1e-7, 12, 2.50]}).answer
    assert answers == ("0.00001", "10000000000000000", "0.0000001", "12", "2.5")


def test_defaults_of_the_file_give_way_to_the_record():
    defaults = {"extract": "A: (.*)", "max_new_tokens": 5, "tags": {"lang": "en", "year": 2024}}
    case = parse({"prompt": "p", "answer": "a", "max_new_tokens": 6, "tags": {"lang": "de"}}, **defaults)
    assert (case.extract, case.max_new_tokens) == ("A: (.*)", 6)
    assert case.tags == {"lang": "de", "year": "2024"}
    assert parse(CHOICES, metric="rougeL").task == "multiple_choice"


def test_null_is_as_good_as_absent():
    assert parse({**EXACT, "choices": None, "tags": None, "metric": None}).task == "exact_match"


def test_a_name_like_a_known_one_is_the_users_own_where_the_known_one_is_there():
    assert parse({**EXACT, "answers": ["4"], "prompts": 3}).answer == ("4",)


# Ids ----------------------------------------------------------------------------------------------


def test_ids_survive_an_inserted_row(tmp_path):
    records = [{"prompt": f"p{i}", "answer": "a", "tags": {"b": 1, "a": 2}} for i in range(5)]
    before = [case.id for case in read_golden(write(tmp_path / "a.jsonl", *records))]
    inserted = [{"prompt": "new", "answer": "a"}, *records[::-1]]
    after = [case.id for case in read_golden(write(tmp_path / "a.jsonl", *inserted))]
    assert len(set(before)) == 5
    assert after[1:] == before[::-1]
    assert all(len(each) == 12 and set(each) <= set(string.hexdigits) for each in before)


def test_an_id_does_not_hang_on_the_order_of_fields_but_on_their_content():
    one, two = {"prompt": "p", "answer": "a"}, {"answer": "a", "prompt": "p"}
    assert parse(one).id == parse(two).id
    assert parse({**one, "tags": {"lang": "de"}}).id != parse(one).id


def test_the_request_digest_holds_what_the_model_is_given_and_nothing_else():
    case = parse({**EXACT, "id": 1, "tags": {"a": "b"}})
    assert case.request_digest() == parse({**EXACT, "id": 2, "answer": "5"}).request_digest()
    changes = {"prompt": "3 + 3 =", "stop": "\n", "max_new_tokens": 3}
    digests = {parse({**EXACT, name: value}).request_digest() for name, value in changes.items()}
    assert len(digests | {case.request_digest()}) == 4
    assert parse({**CHOICES, "delimiter": ""}).request_digest() != parse(CHOICES).request_digest()
    assert parse({**CHOICES, "stop": "\n"}).request_digest() == parse(CHOICES).request_digest()


# Formats ------------------------------------------------------------------------------------------

RECORDS = [
    {"id": "a", **CHOICES, "tags": {"lang": "de"}},
    {"id": "b", **EXACT, "max_new_tokens": 5, "stop": ["\n", "."]},
    {"id": "c", **SUMMARY},
]


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "id", "prompt", "choices", "answer", "extract", "metric", "stop", "tags.lang"])
        writer.writerow(["0", "a", "Colour of snow?", '["black", "white"]', "1", "", "", "", "de"])
        writer.writerow(["1", "b", "2 + 2 =", "", "4", "(\\d+)", "", '["\\n", "."]', ""])
        writer.writerow(["2", "c", "Sum up.", "", '["short", "brief"]', "", "rouge1", "", ""])
    return path


def as_parquet(path: Path) -> Path:
    import pyarrow
    from pyarrow import parquet

    names = ("id", "prompt", "extract", "metric", "max_new_tokens", "stop")
    columns = {name: [record.get(name) for record in RECORDS] for name in names}
    tags = pyarrow.array([[("lang", "de")], None, []], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    choices = [RECORDS[0]["choices"], None, None]
    answers = [["1"], ["4"], ["short", "brief"]]
    table = pyarrow.table({**columns, "choices": choices, "tags": tags, "answer": answers})
    parquet.write_table(table.slice(1), path)
    return path


def test_json_holds_the_same_cases_as_jsonl(tmp_path):
    lines = read_golden(write(tmp_path / "a.jsonl", *RECORDS), "d")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS, indent=2))
    whole = read_golden(path, "d")
    assert [case.id for case in whole] == ["a", "b", "c"]
    assert [case.request_digest() for case in whole] == [case.request_digest() for case in lines]
    assert [path.read_text().splitlines()[case.line - 1] for case in whole] == ["  {"] * 3


def test_csv(tmp_path):
    snow, total, summary = read_golden(as_csv(tmp_path / "a.csv"))
    assert (snow.choices, snow.answer, snow.tags, snow.line) == (("black", "white"), (1,), {"lang": "de"}, 2)
    assert (total.answer, total.extract, total.stop) == (("4",), "(\\d+)", ("\n", "."))
    assert (summary.answer, summary.metric) == (("short", "brief"), "rouge1")


def test_csv_tells_lines_apart_from_records(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('\nprompt,answer\n\n"two\nlines",a\np,b\n')
    assert [(case.line, case.prompt) for case in read_golden(path)] == [(4, "two\nlines"), (6, "p")]


def test_parquet(tmp_path):
    total, summary = read_golden(as_parquet(tmp_path / "a.parquet"))
    assert (total.id, total.extract, total.max_new_tokens, total.tags) == ("b", "(\\d+)", 5, {})
    assert (summary.answer, summary.line) == (("short", "brief"), 2)


def test_parquet_structs_lack_what_is_null(tmp_path):
    import pandas

    tags = [{"lang": "de"}, {"topic": "sums"}]
    path = tmp_path / "a.parquet"
    pandas.DataFrame({"prompt": ["p", "q"], "answer": ["a", "b"], "tags": tags}).to_parquet(path)
    assert [case.tags for case in read_golden(path)] == tags


def test_limit_reads_no_further(tmp_path):
    path = write(tmp_path / "a.jsonl", *RECORDS)
    path.write_text(path.read_text() + "not JSON\n")
    assert [case.id for case in read_golden(path, limit=2)] == ["a", "b"]


def test_bom_crlf_blank_lines_and_no_last_newline(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "\xc3\xa4", "answer": "a"}\r\n\r\n{"prompt": "q", "answer": "a"}'
    )
    assert [(case.line, case.prompt) for case in read_golden(path)] == [(1, "ä"), (3, "q")]
    for name, text in (("a.json", '[{"prompt": "p", "answer": "a"}]'), ("a.csv", "prompt,answer\np,a\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [case.prompt for case in read_golden(tmp_path / name)] == ["p"]


def test_lone_surrogates_are_text_like_any_other(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(r'{"id": "\ud800", "prompt": "\udfff", "answer": "a", "tags": {"\ud801": "\ud802"}}')
    (case,) = read_golden(path)
    assert (case.id, case.prompt, case.tags) == ("\ud800", "\udfff", {"\ud801": "\ud802"})
    assert len(case.request_digest()) == 64


# Bad files ----------------------------------------------------------------------------------------


def test_malformed_json_on_line_7(tmp_path):
    path = write(tmp_path / "a.jsonl", *({"prompt": f"{i}", "answer": "a"} for i in range(6)))
    path.write_text(path.read_text() + '{"prompt": "p", "answer" "a"}\n')
    assert refused(path) == (
        ":7: malformed JSON at column 26: Expecting ':' delimiter; each line must be one JSON object"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "p", "answer": "a"}\n{"prompt": "\xe4"}', ":2: not UTF-8 (byte 0xe4)"),
        ("a.jsonl", '{"prompt": "p"}'.encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
        ("a.csv", b"prompt,answer\np,a\n\xff,b\n", ":3: not UTF-8 (byte 0xff)"),
        ("a.json", b'[\n{"prompt": "\xff"}]', ":2: not UTF-8 (byte 0xff)"),
        ("a.jsonl", b"", ": the file holds no records"),
        ("a.jsonl", b"\n \n", ": the file holds no records"),
        ("a.json", b"", ": the file holds no records"),
        ("a.json", b"[]", ": the file holds no records"),
        ("a.csv", b"", ": the file holds no records"),
        ("a.csv", b"prompt,answer\n", ": the file holds no records"),
        ("a.json", b'{"prompt": "p"}', ":1: must be a list of records"),
        ("a.json", b'[\n{"prompt": "p",}]', ":2: malformed JSON: "),
        ("a.json", b"[" * 100_000, ":1: malformed JSON: nested too deeply"),
        ("a.jsonl", b"[" * 100_000, ":1: malformed JSON at column 1: nested too deeply"),
        (
            "a.jsonl",
            b'{"answer": ' + b"9" * 5000 + b"}",
            ":1: malformed JSON at column 1: a number is too long",
        ),
        ("a.json", b"[" + b"9" * 5000 + b"]", ":1: malformed JSON: a number is too long"),
        ("a.jsonl", b"[1, 2]", ":1: a record must be a JSON object, not [1, 2]"),
        ("a.jsonl", b'"' + b"x" * 1000 + b'"', ":1: a record must be a JSON object, not 'xxx"),
        ("a.csv", b"prompt,answer\np,a,b\n", ":2: more cells than the header has columns; quote the commas"),
        ("a.csv", b'prompt,answer\n"p,a\n', ":2: malformed CSV: unexpected end of data"),
        ("a.csv", b"prompt,prompt\np,a\n", ":1: two columns are named 'prompt'; rename one"),
        ("a.csv", b"prompt,choices,answer\np,black,0\n", ":2: column 'choices' must hold JSON, not 'black'"),
        ("a.csv", b"prompt,answer,tags,tags.lang\np,a,[1],de\n", ":2: field 'tags' must be a mapping"),
        ("a.parquet", b"PAR1 and no more", ": not a readable Parquet file"),
        ("a.txt", b"x", ": unknown format '.txt'; use one of .jsonl"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    found = refused(path)
    assert found.startswith(message)
    assert len(found) < 250


def test_parquet_text_that_is_not_utf8(tmp_path):
    import pyarrow
    from pyarrow import parquet

    column = pyarrow.array([b"\xff"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "a.parquet")
    assert ": not a readable Parquet file" in refused(tmp_path / "a.parquet")


def test_files_that_are_not_there_or_cannot_be_read(tmp_path):
    assert refused(tmp_path / "a.jsonl") == ": no such file"
    (tmp_path / "d.jsonl").mkdir()
    assert refused(tmp_path / "d.jsonl") == ": no such file"
    memory = Path("/proc/self/mem")
    if memory.exists():
        (tmp_path / "m.jsonl").symlink_to(memory)
        assert refused(tmp_path / "m.jsonl").startswith(": cannot be read: ")


def test_duplicate_ids_name_both_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": 7, **EXACT}, {"id": "x", **EXACT}, {"id": "7", **CHOICES})
    assert refused(path) == ":3: duplicate id '7', first used on line 1; give each record an id of its own"
    path = write(tmp_path / "a.jsonl", EXACT, EXACT)
    assert ":2: duplicate id '" in refused(path)


# Bad fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "field 'answer' is missing"),
        ({"prompt": None}, "exactly one of the fields 'prompt' and 'messages' must be given"),
        ({"messages": [{"role": "user", "content": ""}]}, "exactly one of the fields"),
        ({"prompt": 3}, "field 'prompt' must be a text, not 3"),
        ({"prompt": None, "messages": []}, "field 'messages' must be a list such as"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "field 'messages' must be a list such as"),
        ({"id": 1.5}, "field 'id' must be a text or a whole number, not 1.5"),
        ({"id": ""}, "field 'id' must be a text"),
        ({"id": True}, "field 'id' must be a text"),
        ({"task": "exact_mach"}, "not 'exact_mach'; did you mean 'exact_match'?"),
        ({"task": ["exact_match"]}, "field 'task' must be one of multiple_choice, exact_match, generation"),
        ({"answer": []}, "field 'answer' is an empty list"),
        ({"answer": True}, "field 'answer' must be a text or a list of texts, not True"),
        ({"answer": float("nan")}, "field 'answer' must be a text or a list of texts, not nan"),
        ({"answer": {"a": 1}}, "field 'answer' must be a text"),
        ({"answer": ["4", " "]}, "field 'answer' holds an empty text"),
        ({"extract": 4}, "field 'extract' must be a text, not 4"),
        ({"extract": "(4"}, "field 'extract' is not a valid regular expression: '(4': missing )"),
        ({"extract": "(" * 600 + ")" * 600}, "field 'extract' is not a valid regular expression"),
        ({"extract": "4"}, "field 'extract' needs a group around the answer"),
        ({"ignore_case": "yes"}, "field 'ignore_case' must be true or false, not 'yes'"),
        ({"stop": [1]}, "field 'stop' must be a list of texts, not [1]"),
        ({"max_new_tokens": 0}, "field 'max_new_tokens' must be a whole number of at least 1, not 0"),
        ({"max_new_tokens": 2.0}, "field 'max_new_tokens' must be a whole number"),
        ({"max_new_tokens": True}, "field 'max_new_tokens' must be a whole number"),
        ({"tags": ["de"]}, "field 'tags' must be a mapping"),
        ({"tags": {"lang": ["de"]}}, "field 'tags' must be a mapping"),
        ({"tags": ""}, "field 'tags' must be a mapping"),
        ({"tagz": {}}, "unknown field 'tagz'; did you mean 'tags'?"),
        ({"choice_rule": "norm"}, "field 'choice_rule' must be one of acc, acc_norm, acc_bytes"),
        ({"choices": ["a", "b"], "task": "generation"}, "does not go with task 'generation'"),
        ({"metric": "rogue1"}, "not 'rogue1'; did you mean 'rouge1'?"),
        ({"metric": "os.system()"}, "or module:callable"),
        ({"extract": "\x1b[31m("}, "'\\x1b[31m('"),
    ],
)
def test_bad_fields(changes, message):
    found = field_refused({**EXACT, **changes})
    assert message in found
    assert found.isprintable()
    assert len(found) < 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": 2}, "field 'answer' is 2, but the 2 choices are 0 to 1"),
        ({"answer": -1}, "field 'answer' is -1, but the 2 choices are 0 to 1"),
        ({"answer": [0, 5]}, "field 'answer' is 5, but the 2 choices are 0 to 1"),
        ({"answer": "white"}, "field 'answer' must be the index of the right choice (0 to 1)"),
        ({"answer": True}, "field 'answer' must be the index of the right choice"),
        ({"answer": 1.0}, "field 'answer' must be the index of the right choice"),
        ({"answer": []}, "field 'answer' is an empty list"),
        ({"choices": ["white"], "answer": 0}, "field 'choices' must hold at least two texts, not ['white']"),
        ({"choices": [], "task": "multiple_choice"}, "field 'choices' must hold at least two texts"),
        ({"choices": "black white"}, "field 'choices' must be a list of texts"),
        ({"choices": [1, 2]}, "field 'choices' must be a list of texts, not [1, 2]"),
        ({"choices": ["", "white"]}, "field 'choices' holds an empty text"),
        ({"choices": None, "task": "multiple_choice"}, "field 'choices' must hold at least two texts"),
    ],
)
def test_bad_choices(changes, message):
    assert message in field_refused({**CHOICES, **changes})


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"max_new_token": 5}, "unknown key 'max_new_token'; did you mean 'max_new_tokens'?"),
        ({"zzz": 5}, "unknown key 'zzz'; the keys are task, delimiter"),
        ({"answer": "a"}, "unknown key 'answer'"),
        ({"extract": "("}, "field 'extract' is not a valid regular expression"),
        ({"task": "generation", "metric": "rouge3"}, "field 'metric' must be one of"),
        ({"task": "exact"}, "field 'task' must be one of"),
        ({"tags": {"a": []}}, "field 'tags' must be a mapping"),
    ],
)
def test_bad_defaults(defaults, message):
    with pytest.raises(MuscleError) as caught:
        check_defaults(defaults)
    assert message in str(caught.value)


def test_good_defaults_pass():
    check_defaults({"task": "multiple_choice", "choice_rule": "acc_norm", "delimiter": "\n"})
    check_defaults({"task": "generation", "metric": "rougeL", "max_new_tokens": 3, "tags": {"lang": "de"}})


# Whatever stands there ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=4), JSON, max_size=8))
def test_any_record_is_a_case_or_a_clear_error(record):
    outcome = attempt(lambda: parse(record))
    if isinstance(outcome, MuscleError):
        assert str(outcome).isprintable()
    else:
        assert outcome.answer
        assert len(outcome.request_digest()) == 64


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_any_bytes_are_records_or_a_clear_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    outcome = attempt(lambda: list(read_records(path)))
    if isinstance(outcome, MuscleError):
        assert str(outcome).startswith(str(path))
    else:
        assert all(isinstance(record, dict) for _, record in outcome)


def attempt(action):
    try:
        return action()
    except MuscleError as error:
        return error
