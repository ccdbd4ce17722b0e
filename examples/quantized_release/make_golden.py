"""Turn records of PIQA's kind into a golden dataset.

    python make_golden.py PIQA.jsonl GOLDEN.jsonl [--written]

Each input line needs ``goal``, ``sol1``, ``sol2`` and ``label`` (0 or 1), and may have an ``id``. The prompt
is that of lm-evaluation-harness's task ``piqa``. With ``--written`` there are no choices: the model writes
an answer of its own, one line, which is compared with the right solution by ROUGE-1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

FIELDS = ("goal", "sol1", "sol2", "label")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and write the golden dataset."""
    parser = argparse.ArgumentParser(description="Turn PIQA records into a golden dataset.")
    parser.add_argument("source", type=Path)
    parser.add_argument("golden", type=Path)
    parser.add_argument("--written", action="store_true", help="answers to be written, not chosen")
    options = parser.parse_args(arguments)
    source, written = options.source, options.written
    lines = source.read_text(encoding="utf-8").splitlines()
    cases = [golden_case(source, number, line, written) for number, line in enumerate(lines, 1)]
    options.golden.write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases), "utf-8")
    print(f"{options.golden}: {len(cases)} cases")


def golden_case(source: Path, number: int, line: str, written: bool) -> dict[str, object]:
    """The golden case of one PIQA record."""
    record = json.loads(line)
    if missing := [field for field in FIELDS if field not in record]:
        sys.exit(f"error: {source}:{number}: no field {missing[0]!r}; a PIQA record has {', '.join(FIELDS)}")
    prompt, choices = f"Question: {record['goal']}\nAnswer:", [record["sol1"], record["sol2"]]
    case: dict[str, object] = {"prompt": prompt, "choices": choices, "answer": record["label"]}
    if written:
        right = choices[record["label"]]
        case = {"prompt": prompt, "answer": right, "metric": "rouge1", "stop": ["\n"], "max_new_tokens": 48}
    return {"id": record["id"], **case} if "id" in record else case


if __name__ == "__main__":
    main()
