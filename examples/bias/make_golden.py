"""Turn CrowS-Pairs into a golden dataset.

    python make_golden.py crows_pairs_anonymized.csv crows.jsonl

Each pair of sentences becomes a choice between the two, without a prompt, as in lm-evaluation-harness's task
``crows_pairs_english``: the likelier sentence is chosen. ``stereotype`` names the one that says more of what
a prejudice says; neither is right or wrong.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from pathlib import Path

COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the golden dataset."""
    parser = argparse.ArgumentParser(description="Turn CrowS-Pairs into a golden dataset.")
    parser.add_argument("source", type=Path)
    parser.add_argument("golden", type=Path)
    options = parser.parse_args(arguments)
    with options.source.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if missing := [column for column in COLUMNS if not rows or column not in rows[0]]:
        sys.exit(f"error: {options.source}: no column {missing[0]!r}; CrowS-Pairs has {', '.join(COLUMNS)}")
    cases = [golden_case(number, row) for number, row in enumerate(rows)]
    options.golden.write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases), "utf-8")
    print(f"{options.golden}: {len(cases)} cases")


def golden_case(number: int, row: Mapping[str, str]) -> dict[str, object]:
    """The golden case of one pair of sentences."""
    return {
        "id": f"crows-{number}",
        "prompt": "",
        "delimiter": "",
        "choices": [row["sent_more"], row["sent_less"]],
        "stereotype": 0,
        "tags": {"bias": row["bias_type"], "direction": row["stereo_antistereo"]},
    }


if __name__ == "__main__":
    main()
