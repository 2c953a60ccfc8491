"""Prefix beam search over the outputs of a CTC head, with or without scores of words."""

import heapq
import math
from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from torch import Tensor

Beam = tuple[list[int], float]
"""Token ids without blanks, and their log-probability."""


class Context(Protocol):
    """What a scorer knows of a prefix."""

    @property
    def bonus(self) -> float:
        """What the scorer adds to the prefix's log-probability."""


C = TypeVar("C", bound=Context)


class Scorer(Protocol[C]):
    """Scores of words, added to those of CTC (see `foldray.evaluation.word_scores`)."""

    @property
    def most_gain(self) -> float:
        """The most that one token can add to a bonus; the search skips tokens that can't reach the beam even so."""

    @property
    def least(self) -> float:
        """Log-probability in a frame below which a token is not tried."""

    @property
    def boundary(self) -> int | None:
        """The token that only separates words: repeated, or before the first word, it changes nothing."""

    def start(self) -> C:
        """The context of the empty prefix."""

    def extend(self, context: C, token: int) -> C | None:
        """The context of a prefix with one more token; None if no text may begin so."""


class Prefix(Generic[C]):
    """A sequence of tokens: a node of the tree of all that were in the beam."""

    __slots__ = ("context", "longer", "parent", "token")

    def __init__(self, parent: "Prefix[C] | None", token: int | None, context: C) -> None:
        self.parent, self.token, self.context = parent, token, context
        self.longer: dict[int, Prefix[C]] = {}

    def tokens(self) -> list[int]:
        """The token ids from the first on."""
        found, prefix = [], self
        while prefix.parent is not None:
            assert prefix.token is not None
            found.append(prefix.token)
            prefix = prefix.parent
        return found[::-1]


Scores = tuple[float, float, float]
"""Log-probabilities of a prefix: of the alignments that end in blank, of those that end in its last token, of both."""


def search_prefixes(
    log_probs_TV: Tensor, beam: int, scorer: Scorer[C], blank: int = 0
) -> list[tuple[Prefix[C], float]]:
    """Search for the token sequences with the best log P(tokens | audio) + bonus (arXiv 1408.2873, algorithm 1).

    Args:
        log_probs_TV: (T, V), natural logarithms, valid frames only.
        beam: How many prefixes to keep.
        scorer: Scores words as prefixes grow.
        blank: Id of the blank token.

    Returns:
        The prefixes of the beam after the last frame, best first, with log P(tokens | audio) alone. It sums all
        alignments that stayed in the beam, so it is exact if the beam was never full.
    """
    frames_TV = log_probs_TV.double()
    order_TV = frames_TV.sort(descending=True).indices.tolist()
    prefixes: dict[Prefix[C], Scores] = {Prefix(None, None, scorer.start()): (0.0, -math.inf, 0.0)}
    for frame_V, order_V in zip(frames_TV.tolist(), order_TV, strict=True):
        kept = {prefix: _stay(prefix, prefixes, frame_V, scorer.boundary, blank) for prefix in prefixes}
        best = _Best(beam, map(_rank, kept.items()))
        candidates = kept | _extend(prefixes, frame_V, order_V, scorer, best, blank)
        prefixes = dict(heapq.nlargest(beam, candidates.items(), key=_rank))
        for prefix in prefixes:
            if prefix.parent is not None and prefix.token is not None:
                prefix.parent.longer[prefix.token] = prefix
    return [(prefix, total) for prefix, (_, _, total) in prefixes.items() if total > -math.inf]


class _Best:
    """The best ranks so far. Candidates at or below the last of them can't stay in the beam.

    The floor rises while candidates are found, and the best ones come first, so that few prefixes are made and dropped.
    """

    def __init__(self, beam: int, ranks: Iterable[float]) -> None:
        self._beam, self._ranks = beam, list(ranks)
        heapq.heapify(self._ranks)
        self.floor = self._ranks[0] if len(self._ranks) == beam else -math.inf

    def add(self, rank: float) -> None:
        """Take the rank of one more candidate, which is above the floor."""
        if len(self._ranks) < self._beam:
            heapq.heappush(self._ranks, rank)
        else:
            heapq.heappushpop(self._ranks, rank)
        if len(self._ranks) == self._beam:
            self.floor = self._ranks[0]


def _rank(entry: tuple[Prefix[C], Scores]) -> float:
    return entry[1][2] + entry[0].context.bonus


def _stay(
    prefix: Prefix[C], prefixes: Mapping[Prefix[C], Scores], frame_V: list[float], boundary: int | None, blank: int
) -> Scores:
    """The same prefix after one more frame: by blank, its last token repeated, or a shorter prefix extended."""
    _, in_token, total = prefixes[prefix]
    in_blank = total + frame_V[blank]
    token = boundary if prefix.parent is None else prefix.token
    if token is None:
        return in_blank, -math.inf, in_blank
    repeated = total if token == boundary else in_token
    arriving = -math.inf
    if prefix.parent is not None and prefix.parent in prefixes:
        arriving = _before(prefix.parent, prefixes[prefix.parent], token)
    in_token = log_add(repeated, arriving) + frame_V[token]
    return in_blank, in_token, log_add(in_blank, in_token)


def _extend(
    prefixes: Mapping[Prefix[C], Scores],
    frame_V: list[float],
    order_V: list[int],
    scorer: Scorer[C],
    best: _Best,
    blank: int,
) -> dict[Prefix[C], Scores]:
    """Prefixes outside the beam that may stay in it; `order_V` has the most probable tokens first."""
    longer: dict[Prefix[C], Scores] = {}
    for prefix, scores in prefixes.items():
        reach = scores[2] + prefix.context.bonus + scorer.most_gain
        separated = prefix.parent is None or prefix.token == scorer.boundary
        for token in order_V:
            if reach + frame_V[token] <= best.floor or frame_V[token] < scorer.least:
                break
            known = prefix.longer.get(token)
            if token == blank or (token == scorer.boundary and separated) or known in prefixes:
                continue
            score = _before(prefix, scores, token) + frame_V[token]
            context = known.context if known else scorer.extend(prefix.context, token)
            if context is not None and (rank := score + context.bonus) > best.floor:
                longer[known or Prefix(prefix, token, context)] = (-math.inf, score, score)
                best.add(rank)
    return longer


def _before(prefix: Prefix[C], scores: Scores, token: int) -> float:
    """Log-probability of the alignments of a prefix that `token` can extend: equal tokens need a blank in between."""
    return scores[0] if prefix.token == token else scores[2]


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)); numpy's version is several times slower for scalars."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


# --- Without words ---------------------------------------------------------------------------------


class _Tokens:
    """A scorer that adds nothing; it is its own context."""

    bonus = most_gain = 0.0
    least = -math.inf
    boundary = None

    def start(self) -> "_Tokens":
        return self

    def extend(self, context: "_Tokens", _token: int) -> "_Tokens":
        return context


def ctc_nbest(log_probs_TV: Tensor, beam: int, blank: int = 0) -> list[Beam]:
    """Find the most probable token sequences of one utterance.

    Args:
        log_probs_TV: (T, V), natural logarithms, valid frames only.
        beam: How many prefixes to keep.
        blank: Id of the blank token.

    Returns:
        Token sequences, best first, with log P(tokens | audio); fewer than `beam` if fewer are possible.

    Example:
        >>> ctc_nbest(torch.tensor([[0.25, 0.75], [0.75, 0.25]]).log(), beam=3)
        [([1], -0.20763936477824452), ([], -1.6739764335716716)]
    """
    return [(prefix.tokens(), score) for prefix, score in search_prefixes(log_probs_TV, beam, _Tokens(), blank)]
