"""Contamination: training records that are golden cases, or nearly so."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_muscle.golden import GoldenCase

# Scripts written without spaces: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_GRAM = 5
_FEWEST_GRAMS = 4
_SHARE = 0.8
_COMMON = 0.05
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Overlap:
    """A training record and the golden case it repeats; ``share`` is 1 for an equal prompt."""

    train: GoldenCase
    golden: GoldenCase
    share: float


def find_overlaps(train: Sequence[GoldenCase], golden: Sequence[GoldenCase]) -> list[Overlap]:
    """The training records that repeat a golden case, in their order.

    Compared are prompts together with their choices, without case, punctuation and space. A record is
    a near-duplicate if it shares 80% of its 5-word sequences with the case, or the case of its with the
    record. Sequences that stand in more than 5% of either side's prompts (a template, a few-shot block)
    say nothing and are left out; of the others, at least four must be there.
    """
    train_words, golden_words = [_words(case) for case in train], [_words(case) for case in golden]
    equal = {words: index for index, words in reversed(list(enumerate(golden_words)))}
    train_grams, golden_grams = [_grams(w) for w in train_words], [_grams(w) for w in golden_words]
    common = _common(train_grams) | _common(golden_grams)
    golden_grams = [grams - common for grams in golden_grams]
    holders: dict[int, list[int]] = defaultdict(list)
    for index, grams in enumerate(golden_grams):
        for gram in grams:
            holders[gram].append(index)
    found = []
    for case, words, grams in zip(train, train_words, train_grams, strict=True):
        if words in equal:
            found.append(Overlap(case, golden[equal[words]], 1.0))
        elif near := _nearest(grams - common, golden_grams, holders):
            found.append(Overlap(case, golden[near[0]], near[1]))
    return found


def refuse_overlaps(train: Sequence[GoldenCase], golden: Sequence[GoldenCase]) -> None:
    """Raise ``MuscleError`` with the ids of training records that repeat golden cases, if there are any."""
    overlaps = find_overlaps(train, golden)
    if not overlaps:
        return
    shown = [
        f"  {where(each.train)} repeats {where(each.golden)}"
        + (f" ({each.share:.0%} of its word sequences)" if each.share < 1 else "")
        for each in overlaps[:_SHOWN]
    ]
    if len(overlaps) > _SHOWN:
        shown.append(f"  and {len(overlaps) - _SHOWN} more")
    raise MuscleError(
        f"{len(overlaps)} of {len(train)} training records overlap the golden cases that the adapter would "
        "be judged by:\n" + "\n".join(shown) + "\nremove them from the training file, or allow the overlap "
        "on purpose (--muscle-allow-overlap, --allow-overlap, allow_overlap=True)"
    )


def where(case: GoldenCase) -> str:
    """A case as people find it: ``file.jsonl:7 (id)``."""
    place = f"{case.dataset}:{case.line}" if case.line else case.dataset
    return f"{place} ({case.id})"


def _words(case: GoldenCase) -> tuple[str, ...]:
    texts = [case.prompt, *(message["content"] for message in case.messages), *case.choices]
    text = unicodedata.normalize("NFKC", "\n".join(texts)).casefold()
    return tuple(_WORD.findall(text)) or (text,)


def _grams(words: tuple[str, ...]) -> set[int]:
    # Hashes serve as well as the words themselves and take a tenth of the memory.
    return {hash(words[i : i + _GRAM]) for i in range(len(words) - _GRAM + 1)}


def _common(texts: Iterable[set[int]]) -> set[int]:
    texts = list(texts)
    counts = Counter(gram for grams in texts for gram in grams)
    most = max(2, _COMMON * len(texts))
    return {gram for gram, count in counts.items() if count > most}


def _nearest(
    grams: set[int], golden: Sequence[set[int]], holders: dict[int, list[int]]
) -> tuple[int, float] | None:
    """The golden case that shares most with the record, and how much, if it is enough."""
    shared = Counter(index for gram in grams for index in holders.get(gram, ()))
    best: tuple[int, float] | None = None
    for index, count in shared.items():
        smaller = min(len(grams), len(golden[index]))
        share = count / smaller
        if smaller >= _FEWEST_GRAMS and share >= _SHARE and (best is None or share > best[1]):
            best = index, share
    return best
