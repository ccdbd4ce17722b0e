"""The notebook example runs as it stands and shows what it says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "notebook" / "compare.py"


def test_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(SCRIPT))
    comparison = names["comparison"]
    assert comparison.metrics.counts["negative_flip"] == 3
    assert comparison.metrics.counts["inconsistency_flip"] == 1
    assert not comparison.passed
    told = capsys.readouterr().out
    assert "refund-3 (de): yes -> no" in told
    assert "written: comparison.html" in told
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert "25.00%" in page
    assert "FAILED" in page
    assert len(names["frame"]) == 12
