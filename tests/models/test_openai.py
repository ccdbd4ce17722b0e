"""``openai:MODEL``: what a server is sent, and what becomes of its answers."""

import dataclasses
import itertools
import json
import logging
import re
import sqlite3
import ssl
import sys
import threading
import time
from email.utils import formatdate

import pytest
from servers import FAULTS, Loopback, Proxy, Reply, chat, completion, one_context

from pytest_muscle import compare
from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions, Response, open_model
from pytest_muscle.models.openai import server as server_module
from pytest_muscle.models.openai.endpoint import Endpoint
from pytest_muscle.models.openai.parallel import as_completed

TEXT = GoldenCase(
    "text", "d.jsonl", "exact_match", ("4",), prompt="2 + 2 =", stop=("\n", "!"), max_new_tokens=9
)
TALK = dataclasses.replace(TEXT, id="talk", prompt="", messages=({"role": "user", "content": "2 + 2?"},))
KEY = "sk-canary-5d1e7f"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ssl, "create_default_context", one_context)


def ask(reply, cases, **options):
    """Return the server and the responses to the cases, in their order."""
    with Loopback(reply) as server:
        model = open_model("openai:desk", ModelOptions(base_url=server.url, run_id="r", **options))
        responses = {(c.id, c.draw): response for batch in model.respond(cases) for c, response in batch}
        model.close()
        return server, [responses[case.id, case.draw] for case in cases]


def numbered(count: int) -> list[GoldenCase]:
    return [dataclasses.replace(TEXT, id=str(i), prompt=f"number {i}") for i in range(count)]


# What is sent -------------------------------------------------------------------------------------


def test_a_prompt_is_continued_and_messages_are_a_chat():
    def reply(path, body):
        return chat("4") if "messages" in body else completion("5")

    server, responses = ask(reply, [TEXT, TALK], concurrency=1)
    assert responses == [Response(text="5"), Response(text="4")]
    common = {"model": "desk", "temperature": 0.0, "max_tokens": 9, "stop": ["\n", "!"]}
    assert server.asked == [
        ("/v1/completions", {"prompt": "2 + 2 =", **common}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "2 + 2?"}], **common}),
    ]
    assert server.keys == {"Bearer none"}


def test_with_a_chat_server_prompts_are_a_chat_too():
    server, _ = ask(lambda path, body: chat("4"), [TEXT], api="chat", system_prompt="Be short.")
    ((path, body),) = server.asked
    assert path == "/v1/chat/completions"
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "2 + 2 ="},
    ]


def test_the_system_prompt_is_told_as_to_a_local_model():
    told = dataclasses.replace(TALK, messages=({"role": "system", "content": "Add."}, *TALK.messages))

    def reply(path, body):
        return chat("4") if "messages" in body else completion("5")

    server, _ = ask(reply, [TEXT, told], system_prompt="Be short.", concurrency=1)
    assert server.asked[0][1]["prompt"] == "Be short.\n\n2 + 2 ="
    assert server.asked[1][1]["messages"][0] == {"role": "system", "content": "Be short.\n\nAdd."}


def test_what_is_drawn_has_a_seed_of_its_own_in_each_draw():
    draws = [dataclasses.replace(TEXT, draw=draw) for draw in range(3)]
    server, _ = ask(lambda path, body: completion("4"), draws, temperature=0.7, seed=5, concurrency=1)
    seeds = [body["seed"] for _, body in server.asked]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert {body["temperature"] for _, body in server.asked} == {0.7}
    again, _ = ask(lambda path, body: completion("4"), draws, temperature=0.7, seed=5, concurrency=1)
    assert [body["seed"] for _, body in again.asked] == seeds
    other, _ = ask(lambda path, body: completion("4"), draws, temperature=0.7, seed=6, concurrency=1)
    assert not {body["seed"] for _, body in other.asked} & set(seeds)


def test_each_draw_is_asked_even_where_nothing_is_drawn():
    model = open_model("openai:desk", ModelOptions(base_url="http://localhost:1"))
    assert model.request_digest(TEXT) != model.request_digest(dataclasses.replace(TEXT, draw=1))


def test_the_extra_body_goes_with_each_request():
    server, _ = ask(lambda path, body: completion("4"), [TEXT], extra_body={"top_k": 5, "max_tokens": 3})
    assert server.asked[0][1]["top_k"] == 5
    assert server.asked[0][1]["max_tokens"] == 3


def test_lone_surrogates_can_be_sent():
    server, _ = ask(lambda path, body: completion("4"), [dataclasses.replace(TEXT, prompt="a\ud800b")])
    assert server.asked[0][1]["prompt"] == "a\ufffdb"


def test_equal_requests_are_sent_once_and_answer_every_case():
    twin = dataclasses.replace(TEXT, id="twin", answer=("5",))
    server, responses = ask(lambda path, body: completion("4"), [TEXT, twin])
    assert responses == [Response(text="4")] * 2
    assert len(server.asked) == 1


def test_no_more_requests_are_under_way_than_asked_for():
    def reply(path, body):
        time.sleep(0.03)
        return completion("4")

    server, responses = ask(reply, numbered(24), concurrency=5)
    assert responses == [Response(text="4")] * 24
    assert server.most_under_way == 5


def test_each_response_comes_as_soon_as_it_is_there():
    go_on = threading.Event()

    def reply(path, body):
        if body["prompt"] == "number 0":
            go_on.wait(5)
        return completion("4")

    with Loopback(reply) as server:
        model = open_model("openai:desk", ModelOptions(base_url=server.url))
        batches = model.respond(numbered(4))
        early = {next(batches)[0][0].id for _ in range(3)}
        assert early == {"1", "2", "3"}
        go_on.set()
        assert [case.id for ((case, _),) in batches] == ["0"]


# What comes back ----------------------------------------------------------------------------------


def test_a_text_ends_before_its_first_stop_string():
    _, responses = ask(lambda path, body: completion(" 4! no\nmore"), [TEXT])
    assert responses == [Response(text=" 4")]


def test_an_empty_text_is_an_answer_where_the_model_ended_it():
    _, responses = ask(lambda path, body: completion(""), [TEXT])
    assert responses == [Response(text="")]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (chat(None), "the answer has no text (finish_reason 'stop')"),
        (chat("", reason="length"), "it may have spent them on thinking: raise 'max_new_tokens'"),
        (chat("", reason=None), "the answer has no text (finish_reason 'None')"),
        (chat("half", reason="content_filter"), "the server's content filter withheld the answer"),
        ({"choices": [{"message": "4", "finish_reason": "stop"}]}, "the answer has no text"),
        (Reply({"error": {"message": "too long\x1b[2J"}}, 400), "HTTP 400: too long?[2J"),
        (Reply({"detail": "no such field"}, 422), "HTTP 422: no such field"),
    ],
)
def test_what_is_no_answer_leaves_the_case_unanswered(answer, message):
    _, (good, bad) = ask(
        lambda path, body: answer if body["messages"][-1]["content"] == "bad" else chat("4"),
        [TALK, dataclasses.replace(TALK, id="bad", messages=({"role": "user", "content": "bad"},))],
        concurrency=1,
    )
    assert good == Response(text="4")
    assert bad.text is None
    assert bad.error
    assert bad.error.startswith("openai:desk at http://127.0.0.1:")
    assert message in bad.error


def test_messages_that_the_assistant_ends_are_not_asked():
    open_end = dataclasses.replace(TALK, messages=(*TALK.messages, {"role": "assistant", "content": "It"}))
    server, (response,) = ask(lambda path, body: chat("4"), [open_end])
    assert "end with the assistant's" in (response.error or "")
    assert server.asked == []


@pytest.mark.parametrize("name", ["desk", "desk-2026-01-31", "acme/desk@main", "DESK"])
def test_a_name_that_is_the_same_model(name):
    _, responses = ask(lambda path, body: completion("4", model=name), [TEXT])
    assert responses == [Response(text="4")]


def test_another_name_is_the_same_model_only_where_the_table_says_so():
    _, responses = ask(lambda path, body: completion("4", model="llama"), [TEXT], answers_as="llama")
    assert responses == [Response(text="4")]
    with pytest.raises(MuscleError) as caught:
        ask(lambda path, body: completion("4", model="desktop"), numbered(3))
    assert "asked for 'desk', it answered as 'desktop'; if that is the same model, set" in str(caught.value)


# Nothing can be had -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply({"error": {"message": "bad key"}}, 401),
            "HTTP 401: bad key; put the key into the environment",
        ),
        (Reply({"error": {"message": "no", "code": "insufficient_quota"}}, 429), "HTTP 429: no"),
        (Reply(b"<html>hello</html>"), "the answer is no JSON: '<html>hello</html>'; correct 'base_url' (2 "),
        (Reply([1]), "the answer is no JSON object: '[1]' (2 tries)"),
        (Reply({"choices": []}), "the answer has no choices: '{\"choices\": []}' (2 tries)"),
        (Reply(completion("a"), cut=True), "the connection failed (peer closed connection"),
    ],
)
def test_a_server_that_never_worked_ends_the_run(reply, message):
    with pytest.raises(MuscleError) as caught:
        ask(lambda path, body: reply, numbered(3), concurrency=1)
    assert str(caught.value).startswith("openai:desk at http://127.0.0.1:")
    assert message in str(caught.value)
    assert re.search(r"\(asked for case '[02]' of d.jsonl\)$", str(caught.value))


def test_a_few_cases_that_are_left_of_another_run_do_not_end_the_run():
    server, responses = ask(lambda path, body: Reply(b"<html>"), numbered(2))
    assert all("the answer is no JSON" in (response.error or "") for response in responses)
    server, responses = ask(lambda path, body: Reply({}, 400), numbered(30))
    assert all("HTTP 400" in (response.error or "") for response in responses)
    assert len(server.asked) == 30


def test_a_server_that_is_not_there():
    model = open_model("openai:desk", ModelOptions(base_url="http://127.0.0.1:1/v1"))
    with pytest.raises(
        MuscleError, match=r"the connection failed .*; is the server running there\? \(2 tries"
    ):
        list(model.respond(numbered(3)))


def test_an_unknown_model_is_told_with_those_that_there_are():
    def reply(path, body):
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "v1"}, {"id": "v2"}]}
        return Reply({"error": {"message": "unknown"}}, 404)

    with pytest.raises(MuscleError, match="HTTP 404: unknown; the server has no model 'desk'; it has v1, v2"):
        ask(reply, [TEXT])


def test_a_server_without_completions_is_told_with_the_way_out():
    with pytest.raises(MuscleError, match="HTTP 404: nothing here; set api = 'chat', or correct 'base_url'"):
        ask(lambda path, body: Reply({"detail": "nothing here"}, 404), [TEXT])


def test_a_server_that_dies_leaves_the_rest_unanswered_and_keeps_the_answers():
    alive = itertools.count()

    def reply(path, body):
        return completion("4") if next(alive) < 10 else Reply({}, 503)

    server, responses = ask(reply, numbered(60), concurrency=1, retries=1)
    assert [response.text for response in responses[:10]] == ["4"] * 10
    assert all(response.error for response in responses[10:])
    assert "not asked, for 20 requests before it were given up" in (responses[-1].error or "")
    assert len(server.asked) == 10 + 2 * 20


# Asked again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"slow"}))
def test_what_may_pass_is_asked_again(fault):
    with Proxy(lambda path, body: completion("4"), lambda n: fault if n in (1, 2) else None) as proxy:
        model = open_model("openai:desk", ModelOptions(base_url=proxy.url, concurrency=1))
        responses = [response for ((_, response),) in model.respond(numbered(3))]
        model.close()
    assert responses == [Response(text="4")] * 3
    assert proxy.faults == {fault: 2}
    assert len(proxy.succeeded) == proxy.succeeded.total() == 3


def test_what_does_not_pass_is_given_up_with_its_reason():
    calls = itertools.count()

    def reply(path, body):
        return Reply({"error": {"message": "busy"}}, 500) if next(calls) else completion("4")

    server, (first, second) = ask(reply, numbered(2), concurrency=1, retries=3)
    assert first == Response(text="4")
    assert (second.error or "").endswith("HTTP 500: busy (4 tries)")
    assert len(server.asked) == 5


def test_a_slow_answer_is_asked_for_again():
    calls = itertools.count()

    def reply(path, body):
        if next(calls) == 0:
            time.sleep(0.6)
        return completion("4")

    server, responses = ask(reply, [TEXT], timeout=0.25)
    assert responses == [Response(text="4")]
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    "headers",
    [
        lambda: {"retry-after": "0.4"},
        lambda: {"retry-after-ms": "400", "retry-after": "9"},
        lambda: {"retry-after": formatdate(time.time() + 1.5, usegmt=True)},
    ],
)
def test_the_wait_that_the_server_asks_for_holds_for_all_requests(headers):
    times = []

    def reply(path, body):
        times.append(time.monotonic())
        if len(times) == 1:
            return Reply({"error": "wait"}, 429, headers())
        time.sleep(0.1)
        return completion("4")

    ask(reply, numbered(8), concurrency=2)
    assert len(times) == 9
    # The one that was under way when the server spoke may have come before.
    assert sum(moment - times[0] < 0.4 for moment in times[1:]) <= 1


def test_a_wait_beyond_reason_is_not_waited():
    server, (response,) = ask(lambda path, body: Reply({}, 429, {"retry-after": "86400"}), [TEXT])
    assert "the server asks to wait for 86,400 s: run later" in (response.error or "")
    assert len(server.asked) == 1


def test_the_time_budget_bounds_the_whole_and_keeps_what_came():
    first = threading.Event()

    def reply(path, body):
        if body["prompt"] == "number 0":
            first.set()
            return completion("4")
        first.wait(5)
        return Reply({"error": "wait"}, 429, {"retry-after": "5"})

    start = time.monotonic()
    _, responses = ask(reply, numbered(30), time_budget=0.5, concurrency=4)
    assert time.monotonic() - start < 3
    assert responses[0] == Response(text="4")
    assert all("the time budget of 0.5 s is used up" in (each.error or "") for each in responses[1:])


def test_pauses_grow_and_differ(monkeypatch):
    pauses = []
    monkeypatch.setattr(server_module, "_FIRST_PAUSE", 1.0)
    monkeypatch.setattr(
        server_module.Server,
        "_wait_until",
        lambda self, moment, why="": pauses.append(moment - time.monotonic()) if why else None,
    )
    ask(lambda path, body: Reply({}, 500), [TEXT], retries=8)
    for attempt, pause in enumerate(pauses):
        longest = min(30.0, 2.0**attempt)
        assert longest / 2 - 0.1 <= pause <= longest
    assert len(pauses) == 8
    shares = [pause / 2**attempt for attempt, pause in enumerate(pauses[:5])]
    # By chance once in ten million runs.
    assert max(shares) - min(shares) > 0.005


def test_closing_the_iterator_ends_the_pauses():
    def reply(path, body):
        return completion("4") if body["prompt"] == "number 0" else Reply({}, 429, {"retry-after": "60"})

    with Loopback(reply) as server:
        model = open_model("openai:desk", ModelOptions(base_url=server.url, concurrency=2))
        batches = model.respond(numbered(2))
        next(batches)
        before = [thread for thread in threading.enumerate() if "work" in thread.name]
        batches.close()
        for thread in before:
            thread.join(5)
        assert not any(thread.is_alive() for thread in before)


def test_an_error_lets_what_is_under_way_arrive_and_begins_nothing_more():
    started = threading.Barrier(3)
    begun = []

    def function(item: int) -> int:
        begun.append(item)
        if item < 3:
            started.wait(5)
        if item == 0:
            raise MuscleError("no")
        time.sleep(0.2)
        return item

    got = []
    with pytest.raises(MuscleError, match="no"):
        got.extend(as_completed(function, range(60), 3))
    assert sorted(got) == [(1, 1), (2, 2)]
    assert sorted(begun) == [0, 1, 2]


# Keys ---------------------------------------------------------------------------------------------


def test_a_key_comes_from_the_environment_and_goes_where_it_belongs(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai-own")
    monkeypatch.setenv("DESK_KEY", KEY)
    server, _ = ask(lambda path, body: completion("4"), [TEXT], api_key_env="DESK_KEY")
    assert server.keys == {f"Bearer {KEY}"}
    # A server that only the table names does not get the key that is meant for another.
    server, _ = ask(lambda path, body: completion("4"), [TEXT])
    assert server.keys == {"Bearer none"}
    own = Endpoint("openai:desk", ModelOptions())
    assert (own.url, own.key, own.is_own) == ("https://api.openai.com/v1", "sk-openai-own", True)
    named = Endpoint("s", ModelOptions(), {"OPENAI_BASE_URL": "http://desk:1/v1/", "OPENAI_API_KEY": "k"})
    assert (named.url, named.key, named.is_own) == ("http://desk:1/v1", "k", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the environment variable OPENAI_API_KEY is not set; for another server than OpenAI's set"),
        ({"api_key_env": "DESK_KEY"}, r"the environment variable DESK_KEY \(its api_key_env\) is not set"),
        ({"api_key_env": KEY}, "its api_key_env must name an environment variable in capitals"),
        ({"base_url": f"http://me:{KEY}@desk/v1"}, "its base_url holds a password or a query"),
        ({"base_url": f"http://desk/v1?key={KEY}"}, "its base_url holds a password or a query"),
        ({"base_url": "localhost:8000"}, "base_url 'localhost:8000' is no address; write it as http"),
        ({"base_url": "http://desk", "extra_body": {"stream": True}}, "'stream' cannot stand in extra_body"),
        (
            {"base_url": "http://d", "api": "chat", "choices": "log-likelihood"},
            "chats have no log-likelihoods",
        ),
    ],
)
def test_what_cannot_be_opened(options, message):
    with pytest.raises(MuscleError, match=message) as caught:
        open_model("openai:desk", ModelOptions(**options))
    assert KEY not in str(caught.value)


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MuscleError, match=r"pip install 'pytest-muscle\[api\]'"):
        open_model("openai:desk", ModelOptions(base_url="http://desk"))


def test_opening_a_model_does_not_import_the_client(pytester):
    code = """
        import sys
        from pytest_muscle.models import ModelOptions, open_model
        open_model("openai:desk", ModelOptions(base_url="http://desk")).fingerprint
        assert not {"openai", "torch", "numpy"} & set(sys.modules)
    """
    assert pytester.run(sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())).ret == 0


def test_a_key_is_in_no_answer_error_log_store_or_report(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DESK_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    (tmp_path / "golden.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "prompt": f"number {i}", "answer": "4"}) + "\n" for i in range(4))
    )

    def reply(path, body):
        return {
            "number 0": lambda: completion(f"My key is {KEY}."),
            "number 1": lambda: Reply({"error": {"message": f"no such thing, {KEY}"}}, 400),
            "number 2": lambda: Reply({"error": {"message": f"busy, {KEY}"}}, 500),
            "number 3": lambda: Reply(f"garbage {KEY}".encode()),
        }[body["prompt"]]()

    with Loopback(reply) as server:
        table = {"spec": "openai:desk", "base_url": server.url, "api_key_env": "DESK_KEY", "retries": 1}
        kept = {"json": "result.json", "report": "report.html", "markdown": "r.md", "record": "recorded"}
        compared = compare(
            "desk", "desk", "golden.jsonl", models={"desk": {**table, "concurrency": 1}}, **kept
        )
        assert server.keys == {f"Bearer {KEY}"}
    assert compared.results[0].old == Response(text="My key is [key].")
    assert [result.old_grade.error is None for result in compared.results] == [True, False, False, False]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"responses.sqlite", "result.json", "report.html", "r.md", "old.jsonl"} <= {p.name for p in files}
    told = [path.read_bytes() for path in files]
    told += [caplog.text.encode(), repr(compared).encode(), repr(open_model("openai:d", ModelOptions(
        base_url="http://d", api_key_env="DESK_KEY")).__dict__).encode()]  # fmt: skip
    assert not [content for content in told if KEY.encode() in content]


def test_a_key_is_in_no_exception(monkeypatch):
    monkeypatch.setenv("DESK_KEY", KEY)
    for reply in (Reply({"error": {"message": f"Incorrect API key: {KEY}"}}, 401), Reply(KEY.encode())):
        with pytest.raises(MuscleError) as caught:
            ask(lambda path, body, reply=reply: reply, numbered(3), api_key_env="DESK_KEY")
        error: BaseException | None = caught.value
        while error is not None:
            assert KEY not in f"{error} {error!r} {error.args}"
            error = error.__cause__


# What a response is good for ----------------------------------------------------------------------


def test_responses_of_a_name_hold_for_one_run_unless_it_has_a_revision():
    def fingerprint(spec: str = "openai:desk", **options: object) -> str:
        return open_model(
            spec, ModelOptions(**{"base_url": "http://desk", "run_id": "one", **options})
        ).fingerprint

    plain = fingerprint()
    assert plain == fingerprint() != fingerprint(run_id="two")
    assert fingerprint(revision="v1") == fingerprint(revision="v1", run_id="two") != plain
    assert fingerprint(temperature=0.5) != fingerprint(temperature=0.5, seed=1)
    for change in (
        {"base_url": "http://other"},
        {"system_prompt": "Be short."},
        {"temperature": 0.5},
        {"api": "chat"},
        {"choices": "letter"},
        {"extra_body": {"top_k": 5}},
        {"spec": "openai:other"},
    ):
        assert fingerprint(**change) != plain
    assert fingerprint(concurrency=1, timeout=5.0, retries=0, time_budget=9.0, api_key_env=None) == plain


def rows(folder) -> int:
    connection = sqlite3.connect(folder / ".pytest-muscle" / "responses.sqlite")
    try:
        return connection.execute("SELECT count(*) FROM responses").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize(("revision", "asked"), [(None, 2), ("v1", 1)])
def test_a_second_run_asks_again_unless_there_is_a_revision(tmp_path, monkeypatch, revision, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "golden.jsonl").write_text('{"id": "a", "prompt": "2 + 2 =", "answer": "4"}\n')
    table = {"spec": "openai:desk", **({"revision": revision} if revision else {})}
    with Loopback(lambda path, body: completion("4")) as server:
        table["base_url"] = server.url
        for _ in range(2):
            compared = compare("desk", "desk", "golden.jsonl", models={"desk": table})
            assert compared.metrics.accuracy_new == 1.0
        assert len(server.asked) == asked
    assert rows(tmp_path) == asked
