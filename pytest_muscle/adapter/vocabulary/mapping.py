"""From a distribution over the old model's tokens to one over the new model's.

An old token goes to the first piece of its bytes in the new vocabulary. Where the new model stands inside
an old token, the old tokens that begin with the bytes already given count, by their remaining bytes.

A new token that no old one goes to (a longer word, say) belongs to the class of the longest old token that
it begins with: the old model says how likely all of a class is, not how it is divided. What neither side
can express of the other is a class too, the rest. Both models are compared class by class.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_muscle.adapter.vocabulary.tokens import Vocabulary

_REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class PrefixMap:
    """The map for one prefix, the bytes of an old token that are already given.

    ``sources`` [m] are the ids, ascending, of the old tokens that begin with it and ``targets`` [m] the new
    tokens they go to; ``classes`` [new tokens] says to which new token's class each new token belongs. The
    number of new tokens stands for the rest.
    """

    sources: Tensor
    targets: Tensor
    classes: Tensor

    @property
    def rest(self) -> int:
        """The class of what has no counterpart."""
        return len(self.classes)

    def carry(self, old: Tensor, read: Tensor, along: Tensor, following: Tensor) -> Tensor:
        """Probabilities of the classes [n, new tokens + 1] from those of the old tokens [n, old tokens].

        ``read`` [n] are the old tokens that really come, ``following`` [n] the new ones and ``along`` [n]
        the log-probability of the old model's way from the end of ``read`` to that of ``following``: that
        much of the probability of ``read`` goes to ``following``, whatever its first piece would be.
        """
        given = old[:, self.sources]
        given = given / given.sum(-1, keepdim=True).clamp_min(torch.finfo(given.dtype).tiny)
        rows = torch.arange(len(given), device=given.device)
        place = torch.searchsorted(self.sources, read)
        certain = given[rows, place]
        given[rows, place] = 0
        carried = given.new_zeros(len(given), self.rest + 1).index_add_(1, self.targets, given)
        carried[rows, following] += certain * along.exp()
        carried[rows, self.targets[place]] += certain * -along.expm1()
        return carried

    def merge(self, logits: Tensor, following: Tensor) -> Merged:
        """The new model's logits [n, new tokens], by class; ``following`` [n] makes a class of its own."""
        rows = torch.arange(len(logits), device=logits.device)
        shares = (logits - logits.amax(-1, keepdim=True)).exp()
        own = shares[rows, following]
        shares[rows, following] = 0
        sums = shares.new_zeros(len(logits), self.rest + 1).index_add_(1, self.classes, shares)
        sums[rows, following] += own
        shares[rows, following] = own
        known = torch.zeros(self.rest + 1, dtype=torch.bool, device=logits.device)
        known[self.classes.long()] = True
        known = known.repeat(len(logits), 1)
        known[rows, following] = True
        return Merged(self.classes, following, shares, sums.clamp_min_(torch.finfo(sums.dtype).tiny), known)


@dataclass(frozen=True, slots=True)
class Merged:
    """A model's tokens gathered into classes, and the way back for a gradient.

    ``shares`` [n, tokens] and their ``sums`` [n, tokens + 1] over each class are probabilities up to a
    factor; ``known`` marks the classes that have a token.
    """

    classes: Tensor
    following: Tensor
    shares: Tensor
    sums: Tensor
    known: Tensor

    def log_probabilities(self, temperature: float) -> Tensor:
        """Those of the classes [n, tokens + 1], softened."""
        return soften(self.sums, self.known, temperature)

    def spread(self, gradient: Tensor) -> Tensor:
        """The gradient of the tokens' logits [n, tokens] from that of the classes' [n, tokens + 1]."""
        rows = torch.arange(len(gradient), device=gradient.device)
        ratio = gradient / self.sums
        spread = ratio.index_select(1, self.classes).mul_(self.shares)
        spread[rows, self.following] = ratio[rows, self.following] * self.shares[rows, self.following]
        return spread


def soften(probabilities: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Log-probabilities at a temperature of probabilities [n, classes], among the ``known`` classes."""
    logits = probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log() / temperature
    return logits.masked_fill_(~known, -torch.inf).log_softmax(-1)


class VocabularyMap:
    """The maps between two vocabularies, each made when its prefix is first met.

    ``sizes`` are the numbers of old and new tokens that the models' output layers know.
    """

    def __init__(
        self, old: Vocabulary, new: Vocabulary, sizes: tuple[int, int], device: torch.device
    ) -> None:
        self.sizes = sizes
        self._old = old
        self._new = new
        self._device = device
        self._whole = self._make(b"")
        self._made: OrderedDict[bytes, PrefixMap] = OrderedDict()

    def at(self, prefix: bytes) -> PrefixMap:
        """The map for a prefix."""
        if not prefix:
            return self._whole
        if prefix not in self._made:
            self._made[prefix] = self._make(prefix)
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        self._made.move_to_end(prefix)
        return self._made[prefix]

    def _make(self, prefix: bytes) -> PrefixMap:
        old_size, new_size = self.sizes
        sources = numpy.sort(self._old.beginning_with(prefix))
        sources = sources[sources < old_size]
        remaining = [(self._old.pieces[number] or b"")[len(prefix) :] for number in sources.tolist()]
        pieces = {text: self._target(text) for text in set(remaining)}
        targets = numpy.array([pieces[text] for text in remaining], dtype=numpy.int64)
        classes = numpy.full(new_size, new_size, dtype=numpy.int64)
        for text in sorted(filter(None, pieces), key=len):
            longer = self._new.beginning_with(text)
            classes[longer[longer < new_size]] = pieces[text]
        if not prefix:
            whole = numpy.full(old_size, new_size, dtype=numpy.int64)
            whole[sources] = targets
            for old, new in ((self._old.begin, self._new.begin), (self._old.end, self._new.end)):
                if old is not None and new is not None and old < old_size and new < new_size:
                    whole[old] = new
            sources, targets = numpy.arange(old_size), whole
        reached = targets[targets < new_size]
        classes[reached] = reached
        return PrefixMap(*(torch.from_numpy(each).to(self._device) for each in (sources, targets, classes)))

    def _target(self, text: bytes) -> int:
        piece = self._new.first_piece(text) if text else None
        return self.sizes[1] if piece is None or piece >= self.sizes[1] else piece
