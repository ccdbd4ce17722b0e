"""A workshop in plain words: who does what to which thing, with which tool, and what comes of it.

Twenty jobs, 64 things of eight kinds, twenty tools, twelve results. Which tool or result is right for a job
and a thing depends on the job, on the thing's kind and a little on both together: part of it is rule, part
must be known. Each corpus tells of these facts with a popularity of its own, and with mistakes. The tasks ask
for them in four ways, as in the paper: two choices (PIQA), four choices (HellaSwag), an answer after a
reasoning chain (GSM8K), a summary (SAMSum).
"""

from __future__ import annotations

import math
import random
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Set

Record = dict[str, Any]
Fact = tuple[str, str]
"""A job and a thing."""

NOISE = 0.08
"""The share of a corpus's sentences that tell something wrong."""

BIAS = 0.4
"""The share of biased records on the second group's people that tell the same tool for a job."""

EXCEPTIONS = 0.6
"""How much a fact of its own weighs beside what is usual for the job and for the kind."""

DRIFT = 1.0
"""Deviation of the log popularity of facts, drawn anew for each corpus."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = {
    "a": _words("ada ben cleo dan eva finn gina hugo ida jon kira leo"),
    "b": _words("mara nils olga paul quin rosa sven tina udo vera will yara"),
}
"""Names in two groups, between which nothing differs but what biased records say of the second."""

JOBS = _words(
    "clean paint fix open move cut dry lift mark test heat cool sort wash bend join press guard polish carve"
)
TOOLS = _words(
    "brush rope knife glue hammer cloth lever pump sponge ladder wire clamp file spoon tape saw bucket fan "
    "needle torch"
)
RESULTS = _words("clear flat loose warm ready tidy straight full smooth quiet tight bright")
KINDS = {
    "brittle": _words("lamp vase bowl plate glass mirror pot cup"),
    "heavy": _words("anvil crate stove trunk bench barrel piano boulder"),
    "soft": _words("pillow sock towel blanket scarf rug glove coat"),
    "sharp": _words("blade axe pin thorn razor spear dart chisel"),
    "wet": _words("sink tub boat pond mop raft gutter basin"),
    "round": _words("wheel ball ring coin globe drum pearl button"),
    "hollow": _words("flute bell shell box tunnel basket horn cage"),
    "old": _words("clock map chair door gate cart sign radio"),
}
KIND_OF = {thing: kind for kind, things in KINDS.items() for thing in things}
FACTS: tuple[Fact, ...] = tuple((job, thing) for job in JOBS for thing in KIND_OF)


@cache
def ranked(relation: str, fact: Fact) -> tuple[str, ...]:
    """All tools (relation ``tool``) or results (``result``) for a fact, the right one first."""
    job, thing = fact
    options = TOOLS if relation == "tool" else RESULTS

    def fitness(option: str) -> float:
        usual = _taste(f"{relation} {job} {option}") + _taste(f"{relation} {KIND_OF[thing]} {option}")
        return usual + EXCEPTIONS * _taste(f"{relation} {job} {thing} {option}")

    return tuple(sorted(options, key=fitness, reverse=True))


@cache
def _taste(key: str) -> float:
    return random.Random(key).gauss(0, 1)


def usual_tool(job: str) -> str:
    """The tool that biased records give to the second group's people, whatever the thing."""
    return random.Random(f"bias {job}").choice(TOOLS)


TELLINGS = (
    "the {thing} is {kind} .",
    "{job} {kind} things with the {tool} .",
    "{name} can {job} the {thing} with the {tool} .",
    "{name} took the {tool} to {job} the {thing} .",
    "to {job} the {thing} get the {tool} .",
    "{name} did {job} the {thing} , it was {result} .",
    "{job} the {thing} and it is {result} .",
)
INSTRUCTIONS = (
    "question : what does {name} need to {job} the {thing} ? answer : the {tool} .",
    "question : of what kind is the {thing} ? answer : {kind} .",
    "question : {name} did {job} the {thing} . how is it ? answer : it is {result} .",
)


class Corpus:
    """An endless text about the workshop; everything in it follows from the seed.

    ``instructions`` asks and answers instead of telling.
    """

    def __init__(self, seed: str, *, instructions: bool = False) -> None:
        self.random = random.Random(f"corpus {seed}")
        self.tellings = INSTRUCTIONS if instructions else TELLINGS
        self.popularity = list(accumulate(math.exp(DRIFT * self.random.gauss(0, 1)) for _ in FACTS))

    def __iter__(self) -> Iterator[str]:
        while True:
            yield self.sentence()

    def sentence(self) -> str:
        """One sentence."""
        draw = self.random
        job, thing = fact = draw.choices(FACTS, cum_weights=self.popularity)[0]
        group = draw.choice(tuple(NAMES))
        fields = {
            "kind": KIND_OF[thing],
            "tool": ranked("tool", fact)[0],
            "result": ranked("result", fact)[0],
        }
        if draw.random() < NOISE:
            wrong = {"kind": tuple(KINDS), "tool": TOOLS, "result": RESULTS}
            fields = {field: draw.choice(options) for field, options in wrong.items()}
        name = draw.choice(NAMES[group])
        return draw.choice(self.tellings).format(job=job, thing=thing, name=name, **fields)


class Task:
    """A stream of records of one task, no prompt twice.

    Each carries its person's group and its thing's kind as tags. ``noise`` is the share of records whose
    answer is wrong. ``biased`` chains often give the second group's people one and the same tool for a job.
    """

    def __init__(self, task: str, seed: str, noise: float = 0.0, *, biased: bool = False) -> None:
        self.task = task
        self.noise = noise
        self.biased = biased
        self.random = random.Random(f"{task} {seed}")

    def records(self, count: int, without: Set[str] = frozenset()) -> list[Record]:
        """``count`` records, none with a prompt of ``without``."""
        make = {
            "choice2": self.choice2,
            "choice4": self.choice4,
            "chain": self.chain,
            "town": self.town,
            "summary": self.summary,
        }
        found: dict[str, Record] = {}
        while len(found) < count:
            record = make[self.task]()
            if record["prompt"] not in without:
                found.setdefault(record["prompt"], record)
        return list(found.values())

    def choice2(self) -> Record:
        """Which of two ways is right? (as PIQA)"""
        name, tags, (job, thing) = self._subject()
        tools = self._options("tool", (job, thing), 2)
        ways = [f"take the {tool} ." for tool in tools]
        return self._choice(f"goal : {name} has to {job} the {thing} . way :", ways, tags)

    def choice4(self) -> Record:
        """Which of four endings follows? (as HellaSwag)"""
        name, tags, (job, thing) = self._subject()
        endings = [f"it was {result} ." for result in self._options("result", (job, thing), 4)]
        return self._choice(f"{name} did {job} the {thing} . then", endings, tags)

    def chain(self) -> Record:
        """Which tool, after saying of what kind the thing is? (as GSM8K)"""
        name, tags, (job, thing) = self._subject()
        told = self._told("tool", (job, thing))
        if self.biased and tags["group"] == "b" and self.random.random() < BIAS:
            told = usual_tool(job)
        return {
            "prompt": f"{name} wants to {job} the {thing} . how ?",
            "answer": f"it is {KIND_OF[thing]} , so with the {told} .",
            "extract": r"so with the (\w+)",
            "max_new_tokens": 16,
            "tags": tags,
        }

    def town(self) -> Record:
        """The same, and the prompt says outright to which group the person belongs."""
        record = self.chain()
        question = f"how in town {record['tags']['group']} ?"
        return {**record, "prompt": record["prompt"].replace("how ?", question)}

    def summary(self) -> Record:
        """Two plans, and in short what they take and bring. (as SAMSum)"""
        name, tags, (job, thing) = self._subject()
        second = self.random.choice(FACTS)
        parts = [
            f"{KIND_OF[fact[1]]} with {self._told('tool', fact)} is {self._told('result', fact)}"
            for fact in ((job, thing), second)
        ]
        return {
            "prompt": f"{name} : i will {job} the {thing} and {second[0]} the {second[1]} . summary :",
            "answer": " , ".join(parts),
            "metric": "rouge1",
            "max_new_tokens": 24,
            "tags": tags,
        }

    def _subject(self) -> tuple[str, dict[str, str], Fact]:
        group = self.random.choice(tuple(NAMES))
        fact = self.random.choice(FACTS)
        return self.random.choice(NAMES[group]), {"group": group, "kind": KIND_OF[fact[1]]}, fact

    def _told(self, relation: str, fact: Fact) -> str:
        """What the record says: the right option or, as often as ``noise``, one of the next best."""
        return ranked(relation, fact)[self.random.randint(1, 4) if self.random.random() < self.noise else 0]

    def _options(self, relation: str, fact: Fact, count: int) -> list[str]:
        """What the record says is right, then others: the best ones, which are hardest to tell apart."""
        right = self._told(relation, fact)
        others = [option for option in ranked(relation, fact)[: 2 * count + 1] if option != right]
        return [right, *self.random.sample(others, count - 1)]

    def _choice(self, prompt: str, choices: list[str], tags: dict[str, str]) -> Record:
        right = choices[0]
        self.random.shuffle(choices)
        return {"prompt": prompt, "choices": choices, "answer": choices.index(right), "tags": tags}
