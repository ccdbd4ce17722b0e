"""The support desk of a small web shop: what its customers write, and what the desk answers.

Everything is made from the sentences below. What customers talk about drifts from year to year: each
phrase, courier and price has a popularity of its own in each year. The desk's own records are not perfect:
some were filed under the wrong intent, some with a wrong number of days.
"""

from __future__ import annotations

import math
import random
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

Record = dict[str, Any]
Option = TypeVar("Option")

DRIFT, WISH_DRIFT = 1.5, 2.4
"""Deviations of the log popularity, drawn anew for each year, of facts and of ways to say a wish."""

NOISE = 0.15
"""The share of the desk's records that are filed wrongly."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Bea Carl Dora Emil Fay Gus Hana Ivo Jana Karl Lena Milo Nora Otto Pia Rolf Sara Tom Ula Vera "
    "Wim Yara Zoe"
)
COLOURS = _words("red blue green black white grey yellow brown pink silver")
PRODUCTS = _words(
    "kettle lamp desk chair jacket mug blanket toaster radio clock mirror rug pillow pan tent bottle "
    "scarf shelf speaker camera drill ladder vase helmet wallet printer heater fan basket stool"
)
WHEN = (
    "on Monday",
    "on Friday",
    "last week",
    "two days ago",
    "in May",
    "in June",
    "for my mother",
    "for the office",
    "as a gift",
    "in your sale",
)
OPENERS = {
    "chat": ("hi,", "hello,", "hey there,", "quick question,", "me again,"),
    "email": ("Dear team,", "Good morning,", "To the support desk,", "Dear shop,", "Good evening,"),
}

# The eight intents, each with the ways in which customers say it (every one fits after "I want to").
INTENTS = {
    "refund": (
        "get my money back",
        "be paid back",
        "have the amount on my card again",
        "see the payment undone",
        "recover what I spent",
        "be repaid in full",
        "have the cost returned",
        "receive the full price again",
        "be compensated in cash",
        "let you keep it and have my euros",
    ),
    "exchange": (
        "swap it for another one",
        "have a new one instead",
        "get the next size up",
        "trade it for a bigger one",
        "have it replaced",
        "pick a different model",
        "be sent a fresh one",
        "turn it in for the newer type",
        "hand it in and take one that works",
        "have the same in another colour",
    ),
    "repair": (
        "have it fixed",
        "get it mended",
        "send it to your workshop",
        "let a technician look at it",
        "order a spare part",
        "have the broken piece renewed",
        "make it work again",
        "book a visit by your mechanic",
        "use the warranty service",
        "know who can restore it",
    ),
    "cancellation": (
        "stop the order",
        "call the purchase off",
        "withdraw what I ordered",
        "drop it before it ships",
        "step back from the contract",
        "not buy it after all",
        "delete my latest order",
        "end the subscription",
        "take it out of the queue",
        "have nothing shipped to me",
    ),
    "address": (
        "have it sent to my office",
        "move the drop to another street",
        "correct the house number",
        "redirect it to my neighbour",
        "use my new flat instead",
        "receive it at my parents",
        "add the name on the door",
        "pick it up at a shop nearby",
        "fix a typo in the postcode",
        "tell you that we moved",
    ),
    "tracking": (
        "know where the parcel is",
        "find out when it arrives",
        "see how far the box has come",
        "learn why it is late",
        "follow the delivery van",
        "hear if it left the warehouse",
        "check if customs has it",
        "get a date for the delivery",
        "know who signed for it",
        "have the number of the shipment",
    ),
    "invoice": (
        "receive the bill again",
        "get a paper for my taxes",
        "have a receipt with my firm on it",
        "download the statement",
        "see the VAT listed",
        "have proof of the payment",
        "print what I was charged",
        "send the bill to our accounts",
        "correct the billing name",
        "have a copy for my insurance",
    ),
    "voucher": (
        "use my gift code",
        "redeem the coupon",
        "apply the discount",
        "pay with my points",
        "get the ten percent off",
        "add the birthday bonus",
        "have the sale price too",
        "combine two codes",
        "make the promo code work",
        "spend the credit from last time",
    ),
}
# One wish, or a wish {a} beside something that the customer does not ask for {b}.
WISHES = (
    "I want to {a}.",
    "can I {a}?",
    "I do not want to {b}, I want to {a}.",
    "rather than {b}, I hope to {a}.",
    "I want to {a}, not to {b}.",
    "first I asked to {b}, now I prefer to {a}.",
    "please let me {a}, no need to {b}.",
    "you told me to {b}, my wish is to {a}.",
    "to {b} is too slow, I would like to {a}.",
    "before I {b} again, I must {a}.",
    "I must {a} before I {b} again.",
    "others may {b}, I came to {a}.",
)

COURIERS = (
    "Kite Post",
    "Blue Van",
    "Swift Box",
    "North Line",
    "Parcel Owl",
    "Red Wheel",
    "Harbour",
    "Quick Fox",
)
COUNTRIES = _words("Spain Malta Norway France Italy Poland Greece Ireland Latvia Austria Cyprus Finland")
DAYS = (
    "{name} in {country} waits for a {colour} {product} by {courier}. How many days?",
    "A {product} goes to {country} with {courier}, ordered by {name}. Delivery days?",
    "{courier} takes the {colour} {product} to {name} in {country}. When is it there, in days?",
    "Days for {courier} to bring {name} a {product} {when} to {country}?",
)
QUANTITIES = range(2, 10)
PRICES = range(3, 16)
TOTALS = (
    "{name} ordered {n} {product}s in {colour} at {p} euro each {when}. Total?",
    "{n} times the {colour} {product}, {p} euro for one, for {name}. What is the sum?",
    "What does {name} pay for {n} {colour} {product}s if each is {p} euro?",
    "{when} {name} took {n} {product}s, each for {p} euro. Amount in euro?",
)

FAULTS = {
    "leaking": ("water runs out of it", "it drips", "my table got wet from it", "it cannot hold a drop"),
    "scratched": ("it has marks all over", "there is a long line in the paint", "the surface looks used"),
    "noisy": ("it hums all night", "it rattles", "the sound is awful", "it squeaks when I touch it"),
    "too small": (
        "it does not fit",
        "I thought it was bigger",
        "there is no room in it",
        "it is made for a child",
    ),
    "dead": (
        "it does not start",
        "nothing happens when I press the button",
        "it went dark",
        "no sign of life",
    ),
    "incomplete": (
        "a screw is missing",
        "half of the set was not in the box",
        "there is no manual",
        "a leg is absent",
    ),
    "torn": ("the seam is open", "there is a hole in it", "the cloth came apart", "a strap ripped off"),
    "bent": ("it is not straight", "the frame is crooked", "it wobbles", "one side hangs lower"),
    "smelly": (
        "it stinks",
        "the smell of glue fills the room",
        "it has an odd scent",
        "my eyes burn near it",
    ),
    "too hot": ("I burned my hand on it", "it smokes", "the plug melts", "it glows after a minute"),
    "wrong colour": ("the shade is not what I saw", "it looks orange", "the picture showed another tone"),
    "late": (
        "it came after the party",
        "it took a month",
        "I waited for weeks",
        "you had promised it sooner",
    ),
}
TICKETS = (
    "{opener} my {colour} {product} came {when}. {fault}. {wish} {name}",
    "{opener} {name} here. {wish} It is about the {colour} {product}: {fault}.",
    "{opener} {fault}, I mean the {colour} {product} I got {when}. {wish} Yours, {name}",
    "{opener} about a {product}, the {colour} one: {fault}. {wish} My name is {name}.",
)


def days(courier: str, country: str) -> int:
    """Days that a courier needs to a country: its own pace, the distance, and a few odd routes."""
    route = random.Random(f"{courier} to {country}")
    pace = random.Random(courier).randrange(1, 4)
    distance = random.Random(country).randrange(0, 5)
    return pace + distance + (route.randrange(1, 4) if route.random() < 0.4 else 0)


class Desk:
    """A stream of records as they come in over the given years."""

    def __init__(self, seed: int, years: tuple[int, ...], noise: float = NOISE) -> None:
        self.random = random.Random(seed)
        self.years = years
        self.noise = noise

    def records(self, count: int) -> list[Record]:
        """``count`` records, the three tasks in turn, no prompt twice."""
        makers = (self.intent, self.order, self.ticket)
        found: dict[str, Record] = {}
        while len(found) < count:
            record = makers[len(found) % 3]()
            found.setdefault(record["prompt"], record)
        return list(found.values())

    def intent(self) -> Record:
        """What does the customer want? Four intents to choose from."""
        wish, text = self._wish()
        channel, opener = self._opener()
        bought = self._fill("about the {colour} {product} I bought {when}:")
        others = self.random.sample([name for name in INTENTS if name not in wish], 4 - len(wish))
        choices = [*wish, *others]
        self.random.shuffle(choices)
        meant = wish[0] if self.random.random() >= self.noise else self.random.choice(choices)
        return {
            "prompt": f"{opener} {bought} {text}\nIntent:",
            "choices": choices,
            "answer": choices.index(meant),
            "tags": {"channel": channel},
        }

    def order(self) -> Record:
        """A number: days of a delivery, or the total of an order."""
        if self.random.random() < 0.5:
            courier, country = self._popular([(a, b) for a in COURIERS for b in COUNTRIES])
            answer = days(courier, country)
            if self.random.random() < self.noise:
                answer += self.random.choice((-1, 1, 2))
            question = self._fill(self.random.choice(DAYS), courier=courier, country=country)
            topic = "delivery"
        else:
            n, p = self._popular([(a, b) for a in QUANTITIES for b in PRICES])
            answer = n * p
            question = self._fill(self.random.choice(TOTALS), n=n, p=p)
            topic = "total"
        return {
            "prompt": f"{question}\nA:",
            "answer": str(answer),
            "max_new_tokens": 8,
            "tags": {"topic": topic},
        }

    def ticket(self) -> Record:
        """A ticket and its summary in one line."""
        wish, text = self._wish()
        fault, phrase = self._popular([(name, said) for name, phrases in FAULTS.items() for said in phrases])
        if self.random.random() < self.noise:
            fault = self.random.choice(list(FAULTS))
        channel, opener = self._opener()
        fields = self._fields()
        ticket = self.random.choice(TICKETS).format(opener=opener, fault=phrase, wish=text, **fields)
        summary = f"{fields['name']} wants {wish[0]}: {fields['product']} {fault}"
        return {
            "prompt": f"{ticket}\nSummary:",
            "answer": summary,
            "metric": "rouge1",
            "max_new_tokens": 40,
            "tags": {"channel": channel},
        }

    def _wish(self) -> tuple[list[str], str]:
        """The intent meant (and, second, the one only mentioned), and the sentence that says so."""
        phrases = [(name, said) for name, sayings in INTENTS.items() for said in sayings]
        meant, a = self._popular(phrases, WISH_DRIFT)
        template = self._popular(WISHES)
        if "{b}" not in template:
            return [meant], template.format(a=a)
        other, b = self._popular([phrase for phrase in phrases if phrase[0] != meant], WISH_DRIFT)
        return [meant, other], template.format(a=a, b=b)

    def _opener(self) -> tuple[str, str]:
        channel = self.random.choice(list(OPENERS))
        return channel, self.random.choice(OPENERS[channel])

    def _fields(self) -> dict[str, str]:
        return {
            "name": self.random.choice(NAMES),
            "colour": self.random.choice(COLOURS),
            "product": self.random.choice(PRODUCTS),
            "when": self.random.choice(WHEN),
        }

    def _fill(self, template: str, **fields: object) -> str:
        return template.format(**self._fields(), **fields)

    def _popular(self, options: Sequence[Option], drift: float = DRIFT) -> Option:
        """One of the options, by its popularity in one of the years."""
        year = self.random.choice(self.years)
        weights = [math.exp(drift * _taste(f"{year} {option}")) for option in options]
        return self.random.choices(options, weights)[0]


@cache
def _taste(key: str) -> float:
    return random.Random(key).gauss(0, 1)
