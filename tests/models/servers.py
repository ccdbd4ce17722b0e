"""Servers on loopback: one that answers by a function, one that scores with a real model, a faulty proxy."""

from __future__ import annotations

import functools
import json
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

Body = dict[str, Any]

one_context = functools.cache(ssl.create_default_context)
"""Reading all certificates anew for each client, which needs none here, would take half of the time."""


@dataclass
class Reply:
    """What goes back: a mapping is sent as JSON, bytes as they are, ``cut`` ends the connection instead."""

    content: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False


def completion(text: str, model: str = "desk", **choice: Any) -> Body:
    """What a completions server answers."""
    return {"model": model, "choices": [{"index": 0, "text": text, "finish_reason": "stop", **choice}]}


def chat(content: Any, model: str = "desk", reason: str | None = "stop") -> Body:
    """What a chat server answers."""
    message = {"role": "assistant", "content": content}
    return {"model": model, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}


class Loopback:
    """An HTTP server on a free port of 127.0.0.1; ``asked`` holds every body that was posted to it."""

    def __init__(self, reply: Callable[[str, Body], Reply | Body]) -> None:
        self.reply = reply
        self.asked: list[tuple[str, Body]] = []
        self.keys: set[str | None] = set()
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(server: Loopback) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            body = json.loads(content)
            with server.lock:
                server.asked.append((self.path, body))
                server.keys.add(self.headers["authorization"])
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            try:
                self._answer(body)
            finally:
                with server.lock:
                    server.under_way -= 1

        def do_GET(self) -> None:
            self._answer({})

        def _answer(self, body: Body) -> None:
            reply = server.reply(self.path, body)
            if not isinstance(reply, Reply):
                reply = Reply(reply)
            content = (
                reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
            )
            with suppress(OSError):
                self.send_response(reply.status)
                headers = {"content-type": "application/json", **reply.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if reply.cut else content)
            if reply.cut:
                self.close_connection = True

        def log_message(self, *message: object) -> None:
            pass

    return Handler


FAULTS: Mapping[str, Callable[[], Reply]] = {
    "429": lambda: Reply({"error": {"message": "slow down"}}, 429, {"retry-after": "0.05"}),
    "500": lambda: Reply({"error": {"message": "out of luck"}}, 500),
    "cut": lambda: Reply(completion("half of an answer"), cut=True),
    "slow": lambda: time.sleep(7) or Reply(completion("too late")),
    "garbage": lambda: Reply(b'{"choices": [{"text": "unfin'),
    "html": lambda: Reply(b"<html>Bad gateway</html>", headers={"content-type": "text/html"}),
    "model": lambda: Reply(completion("not me", model="another")),
    "choiceless": lambda: Reply({"model": "desk", "choices": []}),
    "error": lambda: Reply({"error": {"message": "overloaded", "code": 529}}),
}


class Proxy(Loopback):
    """Lets ``answer`` answer, but ``fault(number of the request)`` may name what goes wrong.

    ``succeeded`` counts the whole answers that were sent, by the request's body.
    """

    def __init__(
        self, answer: Callable[[str, Body], Reply | Body], fault: Callable[[int], str | None]
    ) -> None:
        super().__init__(self._pass_on)
        self.answer = answer
        self.fault = fault
        self.faults: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()

    def _pass_on(self, path: str, body: Body) -> Reply | Body:
        with self.lock:
            number = self.faults.total() + self.succeeded.total()
            fault = self.fault(number)
            if fault:
                self.faults[fault] += 1
            else:
                self.succeeded[json.dumps(body, sort_keys=True)] += 1
        return FAULTS[fault]() if fault else self.answer(path, body)


def passed_on_to(url: str) -> Callable[[str, Body], Reply]:
    """What answers with another server's answers."""

    def answer(path: str, body: Body) -> Reply:
        headers = {"content-type": "application/json"}
        place = url.removesuffix("/v1") + path
        request = urllib.request.Request(place, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answered:
            return Reply(answered.read(), answered.status)

    return answer


class Scorer:
    """Answers as vLLM documents it, by a real model: greedy text and log-probabilities of prompts.

    ``kinds`` are the ways to those that it knows, ``prompt_logprobs`` and ``echo``.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, kinds: tuple[str, ...]) -> None:
        self.model, self.tokenizer, self.name, self.kinds = model, tokenizer, name, kinds
        self._one_at_a_time = threading.Lock()

    def __call__(self, path: str, body: Body) -> Reply | Body:
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        with self._one_at_a_time:
            choices = [self._choice(i, prompt, body) for i, prompt in enumerate(prompts)]
        # The order of the answers is not promised, their index is.
        return {"model": self.name, "choices": choices[::-1]}

    @torch.inference_mode()
    def _choice(self, index: int, prompt: str, body: Body) -> Body:
        ids = self.tokenizer(prompt)["input_ids"]
        rows = self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        scores = [rows[i, token].item() for i, token in enumerate(ids[1:])]
        choice: Body = {"index": index, "finish_reason": "length", "text": "!"}
        if "prompt_logprobs" in body and "prompt_logprobs" in self.kinds:
            told = [{str(t): {"logprob": s, "rank": 9}} for t, s in zip(ids[1:], scores, strict=True)]
            choice["prompt_logprobs"] = [None, *told]
        if body.get("echo") and "echo" in self.kinds:
            choice["text"] = prompt
            choice["logprobs"] = {"token_logprobs": [None, *scores]}
        return choice
