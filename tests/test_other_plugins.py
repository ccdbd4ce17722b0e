"""The plugin among others: nothing breaks, nothing is judged otherwise."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OTHERS = {
    "pytest_cov": ["--cov=."],
    "pytest_html": ["--html=report.html"],
    "pytest_randomly": ["-p", "randomly"],
    "pytest_rerunfailures": ["--reruns=1"],
    "pytest_timeout": ["--timeout=60"],
    "xdist": ["-n2"],
}
OWN = """
def test_mine(golden_case, flip):
    assert golden_case.id

def test_all(comparison):
    assert comparison.metrics.n == 60
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in OTHERS), reason="not all of them are installed"
    ),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    names = [f"q{i}" for i in range(60)]
    golden = [{"id": name, "prompt": "?", "answer": name} for name in names]
    old = [{"id": name, "text": name} for name in names]
    new = [{"id": name, "text": "lost" if name.endswith("7") else name} for name in names]
    for file, records in (("golden", golden), ("old", old), ("new", new)):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "test_own.py").write_text(OWN)
    return tmp_path


def run(project: Path, budget: float, *options: str) -> tuple[int, str, dict[str, object]]:
    (project / "pyproject.toml").write_text(f"[tool.pytest-muscle.thresholds]\nmax_nfr = {budget}\n")
    models = ["--muscle-old=recorded:old.jsonl", "--muscle-new=recorded:new.jsonl"]
    files = ["--muscle-golden=golden.jsonl", "--muscle-json=result.json"]
    command = [sys.executable, "-m", "pytest", "-q", *models, *files, *options]
    done = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    return done.returncode, done.stdout + done.stderr, json.loads((project / "result.json").read_text())


@pytest.mark.parametrize(("budget", "code"), [(0.2, 0), (0.05, 1)])
def test_all_of_them_together(project, budget, code):
    alone = run(project, budget, *(f"-pno:{name}" for name in ("randomly", "rerunfailures", "html", "cov")))
    among = run(project, budget, *(option for options in OTHERS.values() for option in options))
    assert (alone[0], among[0]) == (code, code), among[1]
    assert among[2] == alone[2]
    assert "INTERNALERROR" not in among[1]
    assert (project / "report.html").read_text().count("golden.jsonl::q7") > 0
