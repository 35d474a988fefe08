"""Biased decoding: of several texts for a clip, the one that holds terms of a personal vocabulary is preferred.

Shallow fusion (arXiv:1808.02480) adds a bonus to each token that goes on with a term, and takes it back where the term
is not completed. Greedy decoding cannot take anything back, so terms are tried on the finished text instead: wherever a
word begins, the branches of a trie of the terms' tokens that the model finds likely enough are followed, the text is
read on behind each completed term, and it replaces the first one where its log-probability and the bonuses of all its
terms come to more. So a bonus counts for whole terms alone and is bounded, greedy and beam search gain alike, and an
engine need do no more than go on from the beginning of a text.

Letters in shapes: `U` tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

ROUNDS = 4  # times that a text is replaced, at most
SLACK = 2.0  # by how much the beginning of a term may fall behind the bonus of its tokens
BRANCHES = 12  # of a clip that are followed at once, the likeliest first

Logprobs = np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass(slots=True)
class Node:
    """A beginning of terms, as tokens."""

    children: dict[int, Node] = field(default_factory=dict)
    bonus: float = 0.0  # of the term that ends here; 0: none does
    earned: float = 0.0  # the bonus of the tokens so far


def trie(terms: Sequence[Sequence[int]], bonus: float, limit: float) -> Node:
    """The trie of terms given as tokens; a term's bonus is so much a token, up to the limit."""
    root = Node()
    for tokens in terms:
        node = root
        for count, token in enumerate(tokens, start=1):
            node = node.children.setdefault(token, Node(earned=min(limit, bonus * count)))
        node.bonus = node.earned
    return root


@dataclass(slots=True)
class Reading:
    """A text of U tokens, its end included where it was reached, and what the model made of its places."""

    tokens: list[int]
    logprobs: Logprobs  # (U, V), or of the last places alone
    chances: list[float] = field(init=False)  # of the tokens whose places are there

    def __post_init__(self) -> None:
        last = self.tokens[len(self.tokens) - len(self.logprobs) :]
        self.chances = np.exp(self.logprobs[np.arange(len(last)), last]).tolist()


def log_softmax(logits: Logprobs) -> Logprobs:
    """Log-probabilities (U, V) of logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


@dataclass(frozen=True, slots=True)
class _Branch:
    """The beginning of a term, tried at a place of a clip's text."""

    row: int
    place: int
    node: Node
    tokens: tuple[int, ...]
    behind: float  # log-probability that it lost so far against the likeliest tokens


Read = Callable[[Sequence[int], Sequence[list[int]], Sequence[int]], list[Reading]]
"""Reads the texts of some rows on: rows, the tokens that each begins with, and how many more may be written.

Where that is 0, the text is only read: (U, V) are its own places. Else those of the tokens given come first as well.
"""


class Preference:
    """What a personal vocabulary prefers: its trie, and where words begin and end in a model's tokens."""

    def __init__(self, root: Node, end: int, spelled: Callable[[int], bytes], *, spaced: bool) -> None:
        self.root = root
        self.end = end
        self.spelled = spelled
        self.spaced = spaced  # whether words are written with spaces between them
        self._firsts = np.array(list(root.children), dtype=np.int64)
        self._earned = np.array([node.earned for node in root.children.values()], dtype=np.float32)

    def prefer(self, readings: Sequence[Reading], limits: Sequence[int], read: Read) -> list[Reading | None]:
        """For each text the one preferred to it, of at most so many tokens; None where it stays."""
        chosen: list[Reading | None] = [None] * len(readings)
        if not len(self._firsts):
            return chosen
        now = {row: reading for row, reading in enumerate(readings) if reading.tokens}
        for _ in range(ROUNDS):
            completed = self._completed(now, limits, read)
            if not completed:
                break
            begun = [[*now[one.row].tokens[: one.place], *one.tokens] for one in completed]
            room = [limits[one.row] - len(begin) for one, begin in zip(completed, begun, strict=True)]
            better: dict[int, tuple[float, Reading]] = {}
            for one, reading in zip(completed, read([one.row for one in completed], begun, room), strict=True):
                worth = self.worth(reading)
                best = better[one.row][0] if one.row in better else self.worth(now[one.row])
                if worth > best + 1e-4:
                    better[one.row] = (worth, reading)
            now = {row: reading for row, (_, reading) in better.items()}
            for row, reading in now.items():
                chosen[row] = reading
        return chosen

    def worth(self, reading: Reading) -> float:
        """The log-probability of a text and the bonuses of the terms in it."""
        total = float(np.log(np.maximum(reading.chances, 1e-30)).sum())
        place = 0
        while place < len(reading.tokens):
            length, bonus = self._term_at(reading.tokens, place)
            total += bonus
            place += max(1, length)
        return total

    def _term_at(self, tokens: Sequence[int], place: int) -> tuple[int, float]:
        """Tokens and bonus of the longest term at a place, 0 where there is none."""
        found = (0, 0.0)
        if self._begins(tokens, place):
            node = self.root
            for count, token in enumerate(tokens[place:], start=1):
                child = node.children.get(token)
                if child is None:
                    break
                node = child
                if node.bonus and self._ends(tokens, place + count):
                    found = (count, node.bonus)
        return found

    def _begins(self, tokens: Sequence[int], place: int) -> bool:
        """Whether a word may begin at a place."""
        return not (self.spaced and place) or tokens[place] == self.end or self.spelled(tokens[place])[:1] == b" "

    def _ends(self, tokens: Sequence[int], place: int) -> bool:
        """Whether a word may end before a place: what follows is no letter and no digit."""
        if not self.spaced or place >= len(tokens) or tokens[place] == self.end:
            return True
        first = self.spelled(tokens[place])[:1]
        return not (first.isalnum() or first >= b"\x80")

    def _completed(self, now: dict[int, Reading], limits: Sequence[int], read: Read) -> list[_Branch]:
        """Terms that are likely enough somewhere in the texts and do not stand there."""
        branches: list[_Branch] = []
        for row, reading in now.items():
            branches += self._likeliest(self._firsts_of(row, reading))
        completed: list[_Branch] = []
        while branches:
            completed += [
                one
                for one in branches
                if one.node.bonus and not self._stands(now[one.row], one) and self._room(one, limits) >= 0
            ]
            growing = [one for one in branches if one.node.children and self._room(one, limits) > 0]
            branches = self._grown(growing, now, read)
        return completed

    @staticmethod
    def _room(branch: _Branch, limits: Sequence[int]) -> int:
        return limits[branch.row] - branch.place - len(branch.tokens)

    @staticmethod
    def _stands(reading: Reading, branch: _Branch) -> bool:
        return reading.tokens[branch.place : branch.place + len(branch.tokens)] == list(branch.tokens)

    def _firsts_of(self, row: int, reading: Reading) -> Iterator[_Branch]:
        """First tokens of terms that are likely enough where words of a text begin."""
        nodes = list(self.root.children.values())
        for place, logprobs in enumerate(reading.logprobs):
            if place < len(reading.tokens) and self._begins(reading.tokens, place):
                behind = logprobs.max() - logprobs[self._firsts]
                for index in np.flatnonzero(behind <= self._earned + SLACK):
                    token = int(self._firsts[index])
                    yield _Branch(row, place, nodes[index], (token,), float(behind[index]))

    def _grown(self, branches: Sequence[_Branch], now: dict[int, Reading], read: Read) -> list[_Branch]:
        """Branches one token longer, those that are likely enough."""
        ahead: dict[int, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}
        for index, one in enumerate(branches):
            reading, after = now[one.row], one.place + len(one.tokens)
            if self._stands(reading, one) and after < len(reading.logprobs):
                ahead[index] = reading.logprobs[after]
        unknown = [index for index in range(len(branches)) if index not in ahead]
        if unknown:
            chosen = [branches[index] for index in unknown]
            begun = [[*now[one.row].tokens[: one.place], *one.tokens] for one in chosen]
            for index, reading in zip(unknown, read([one.row for one in chosen], begun, [1] * len(begun)), strict=True):
                ahead[index] = reading.logprobs[-1]
        grown: dict[int, list[_Branch]] = {}
        for index, one in enumerate(branches):
            logprobs = ahead[index]
            for token, child in one.node.children.items():
                behind = one.behind + float(logprobs.max() - logprobs[token])
                if behind <= child.earned + SLACK:
                    branch = _Branch(one.row, one.place, child, (*one.tokens, token), behind)
                    grown.setdefault(one.row, []).append(branch)
        return [branch for mine in grown.values() for branch in self._likeliest(iter(mine))]

    @staticmethod
    def _likeliest(branches: Iterator[_Branch]) -> list[_Branch]:
        return sorted(branches, key=lambda one: (one.behind - one.node.earned, one.place, one.tokens))[:BRANCHES]
