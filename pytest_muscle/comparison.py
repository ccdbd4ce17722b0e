"""Two models' results on the golden cases, with every figure that a report shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_muscle.accepted import AcceptedFlips, StaleFlip
from pytest_muscle.bias import (
    Bias,
    PreferenceChange,
    bias_of,
    inherited_by_slice,
    inherited_errors,
    plain_rate,
    preference_change,
)
from pytest_muscle.evidence import Rate
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.gates import Gate, Judge, Outcome, Verdict, decide
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade
from pytest_muscle.metrics import Metrics, WorstSlice, find_worst_slice, measure, slice_members
from pytest_muscle.models import ChoiceMethod, Response
from pytest_muscle.sampling import Noise, noise_of
from pytest_muscle.store import encode_response

if TYPE_CHECKING:
    import pandas

SCHEMA = "pytest-muscle/1"
DECIMALS = 3
"""Of log-likelihoods in the JSON result: the rounding of a batch or a machine hardly ever reaches them."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model as the user named it, the digest of its content, and what its choices rest on."""

    spec: str
    fingerprint: str
    choices: tuple[ChoiceMethod, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"spec": self.spec, "fingerprint": self.fingerprint, "choices": list(self.choices)}


@dataclass(frozen=True, slots=True)
class DatasetMetrics:
    """The metrics of one golden dataset and of each of its slices (``lang=de``)."""

    metrics: Metrics
    slices: Mapping[str, Metrics]

    @property
    def worst_slice(self) -> WorstSlice | None:
        """The slice that suffers most, with the chance that it only seems to."""
        return find_worst_slice(self.metrics, self.slices)


@dataclass(frozen=True, slots=True)
class TrainedAdapter:
    """A compatibility adapter and the new model's comparison without it.

    ``after`` is the comparison with it. ``path`` and ``after`` are None where training found no adapter
    worth keeping; the release is then judged without.
    """

    path: Path | None
    recipe: str
    seconds: float
    before: Comparison
    after: Comparison | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """The selected cases under both models, and the gates.

    ``beside`` holds results of unselected cases whose responses were at hand: the gates count them,
    the reports do not; ``unselected`` cases were left out in all. ``planned`` are the gates as they were
    before any response came. ``accepted`` flips do not fail, ``stale`` ones are accepted in vain.
    """

    old: ModelIdentity
    new: ModelIdentity
    results: Sequence[CaseResult]
    beside: Sequence[CaseResult] = ()
    planned: Sequence[Gate] = ()
    notices: Sequence[str] = ()
    unselected: int = 0
    accepted: AcceptedFlips = field(default_factory=AcceptedFlips)
    stale: Sequence[StaleFlip] = ()
    slice_pairs: bool = False
    adapter: TrainedAdapter | None = None

    @cached_property
    def metrics(self) -> Metrics:
        """The metrics over all datasets."""
        return measure(self.results)

    @cached_property
    def quadrants(self) -> Counter[Flip]:
        """The number of cases of each flip among those with a right and a wrong."""
        return Counter(r.flip for r in self.results if r.flip is not None and r.case.task != "generation")

    @cached_property
    def datasets(self) -> dict[str, DatasetMetrics]:
        """The metrics of each dataset, in the order of the cases."""
        measured = {}
        for name, results in self._by_dataset(self.results).items():
            slices = slice_members(results, lambda result: result.case, self.slice_pairs)
            whole = measure(slices.pop(""))
            measured[name] = DatasetMetrics(whole, {key: measure(slices[key]) for key in sorted(slices)})
        return measured

    @cached_property
    def bias(self) -> dict[str, tuple[Bias, Bias]]:
        """The old and the new model's bias on each dataset that tells of any."""
        measured = {name: bias_of(results) for name, results in self._by_dataset(self.results).items()}
        return {name: bias for name, bias in measured.items() if bias is not None}

    @cached_property
    def preference_changes(self) -> dict[str, PreferenceChange]:
        """What the update did to the stereotype preference, by dataset."""
        changes = {name: preference_change(each) for name, each in self._by_dataset(self.results).items()}
        return {name: change for name, change in changes.items() if change is not None}

    @cached_property
    def inherited(self) -> dict[str, dict[str, Rate]]:
        """The errors that the adapter took over from the old model, by dataset and slice; ``""`` is all."""
        rates = {}
        for name, results in self._by_dataset(self.results).items():
            if (whole := inherited_errors(results)) is not None:
                rates[name] = {"": whole, **inherited_by_slice(results, self.slice_pairs)}
        return rates

    @cached_property
    def noise(self) -> Noise | None:
        """What flips by drawing alone; None where every case was asked once."""
        return noise_of(self.results)

    @cached_property
    def fragile(self) -> list[CaseResult]:
        """The cases in which rounding may decide a model's choice."""
        return [result for result in self.results if result.fragile]

    @cached_property
    def unstable(self) -> list[CaseResult]:
        """The cases that could as well have come out otherwise."""
        return [result for result in self.results if result.draws and result.draws.unstable]

    @cached_property
    def gates(self) -> list[Gate]:
        """The gates, judged."""
        results = (*self.results, *self.beside)
        accepted = {result.case.key for result in results if self.accepted.find(result)}
        return decide(self.planned, results, accepted, self.slice_pairs)

    @cached_property
    def outcomes(self) -> dict[tuple[str, str], Outcome]:
        """What becomes of each case, by its key."""
        return {r.case.key: self._judge.outcome(r, self._reason(r)) for r in self.results}

    def _reason(self, result: CaseResult) -> str | None:
        accepted = self.accepted.find(result)
        return accepted.reason if accepted else None

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.gates, self.slice_pairs)

    def weighs(self, result: CaseResult) -> bool:
        """Whether a result's flip can fail or uses up a budget, if it is not accepted."""
        return self._judge.weighs(result)

    @property
    def passed(self) -> bool:
        """Whether the release may go out: no case failed or could not be judged, and no gate blocks it."""
        bad = (Verdict.FAILED, Verdict.ERROR)
        return not any(each.verdict in bad for each in self.outcomes.values()) and not any(
            gate.blocks for gate in self.gates
        )

    @property
    def is_over_budget(self) -> bool:
        """Whether a gate blocks the release or, where there are no gates, a flip fails."""
        if self.gates:
            return any(gate.blocks for gate in self.gates)
        return any(each.verdict is Verdict.FAILED for each in self.outcomes.values())

    def mending(self, plain: Comparison) -> Comparison:
        """Return this comparison, of a model with its adapter, beside the one without."""
        grades = {result.case.key: result.new_grade for result in (*plain.results, *plain.beside)}
        results, beside = (
            [replace(result, unmended=grades.get(result.case.key)) for result in side]
            for side in (self.results, self.beside)
        )
        return replace(self, results=results, beside=beside)

    def result(self, case: GoldenCase) -> CaseResult:
        """Return the result of a selected case."""
        return self._by_key[case.key]

    @cached_property
    def _by_key(self) -> dict[tuple[str, str], CaseResult]:
        return {result.case.key: result for result in self.results}

    def gate(self, planned: Gate) -> Gate:
        """Return a planned gate, judged."""
        return self._judged[planned.dataset, planned.title]

    @cached_property
    def _judged(self) -> dict[tuple[str, str], Gate]:
        return {(gate.dataset, gate.title): gate for gate in self.gates}

    def of(self, flip: Flip) -> list[CaseResult]:
        """Return the results with this flip."""
        return [result for result in self.results if result.flip is flip]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON result, schema ``pytest-muscle/1``."""
        return {**self.totals(), "cases": list(self.case_records())}

    def totals(self) -> dict[str, Any]:
        """Return the JSON result without its cases, which may be many."""
        return {
            "schema": SCHEMA,
            "old": self.old.to_dict(),
            "new": self.new.to_dict(),
            "metrics": self.metrics.to_dict(),
            "datasets": {
                name: {
                    "metrics": dataset.metrics.to_dict(),
                    "slices": {
                        key: metrics.to_dict() | {"few": metrics.is_small}
                        for key, metrics in dataset.slices.items()
                    },
                    **self._bias(name),
                    "worst_slice": (worst := dataset.worst_slice) and worst.to_dict(),
                }
                for name, dataset in self.datasets.items()
            },
            "gates": [gate.to_dict() for gate in self.gates],
            "fragile": len(self.fragile),
            "noise": self.noise and self.noise.to_dict(),
            "adapter": self._adapter(),
        }

    def case_records(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON result's cases, one at a time."""
        return map(self._case, self.results)

    def _bias(self, dataset: str) -> dict[str, Any]:
        bias, rates = self.bias.get(dataset), self.inherited.get(dataset)
        inherited = {name: plain_rate(rate) for name, rate in (rates or {}).items()}
        return {
            "bias": bias and {"old": bias[0].to_dict(), "new": bias[1].to_dict()},
            "stereotype_change": (change := self.preference_changes.get(dataset)) and change.to_dict(),
            "inherited_errors": {**inherited.pop(""), "slices": inherited} if inherited else None,
        }

    def _adapter(self) -> dict[str, Any] | None:
        if self.adapter is None:
            return None
        return {
            "path": str(self.adapter.path) if self.adapter.path else None,
            "recipe": self.adapter.recipe,
            "seconds": self.adapter.seconds,
            "before": self.adapter.before.metrics.to_dict(),
            "after": self.adapter.after.metrics.to_dict() if self.adapter.after else None,
            "notes": list(self.adapter.notes),
            "bias_before": {name: bias[1].to_dict() for name, bias in self.adapter.before.bias.items()},
        }

    def _repr_html_(self) -> str:
        """Show the verdict, gates, quadrants, rates and worst regressions in a notebook."""
        from pytest_muscle.reports.html import render_fragment

        return render_fragment(self)

    def to_frame(self) -> pandas.DataFrame:
        """Return one row a case: what was asked, both answers, flip, outcome and size."""
        import pandas

        return pandas.DataFrame([_row(result, self.outcomes[result.case.key]) for result in self.results])

    def _case(self, result: CaseResult) -> dict[str, Any]:
        case, decided = result.case, self.outcomes[result.case.key]
        return {
            "id": case.id,
            "dataset": case.dataset,
            "task": case.task,
            "tags": dict(case.tags),
            "flip": result.flip and str(result.flip),
            "outcome": str(decided.verdict),
            "reason": decided.reason,
            "old": _side(result.old, result.old_grade),
            "new": _side(result.new, result.new_grade),
            "delta": result.delta,
            "fragile": result.fragile,
            "draws": _draws(result),
        }

    @staticmethod
    def _by_dataset(results: Sequence[CaseResult]) -> dict[str, list[CaseResult]]:
        grouped: dict[str, list[CaseResult]] = {}
        for result in results:
            grouped.setdefault(result.case.dataset, []).append(result)
        return grouped


def _side(response: Response | None, grade: Grade) -> dict[str, Any]:
    plain = encode_response(response) if response else {}
    if response and response.loglikelihoods:
        plain["loglikelihoods"] = [round(value, DECIMALS) for value in response.loglikelihoods]
    return {**plain, "answer": grade.answer, "correct": grade.correct, "score": grade.score}


def _draws(result: CaseResult) -> dict[str, Any] | None:
    if result.draws is None:
        return None
    return {
        "old": [grade.answer for _, grade in result.draws.old],
        "new": [grade.answer for _, grade in result.draws.new],
        "unstable": result.draws.unstable,
    }


def _row(result: CaseResult, decided: Outcome) -> dict[str, Any]:
    case = result.case
    return {
        "dataset": case.dataset,
        "id": case.id,
        "task": case.task,
        **{f"tag.{name}": value for name, value in case.tags.items()},
        "truth": case.answer,
        "flip": result.flip and str(result.flip),
        "outcome": str(decided.verdict),
        "old_answer": result.old_grade.answer,
        "new_answer": result.new_grade.answer,
        "old_correct": result.old_grade.correct,
        "new_correct": result.new_grade.correct,
        "old_score": result.old_grade.score,
        "new_score": result.new_grade.score,
        "delta": result.delta,
    }
