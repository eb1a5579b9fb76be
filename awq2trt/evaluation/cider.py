"""CIDEr-D: how near captions come to what people wrote of the same pictures. Texts in, scores out; no model.

Source: Vedantam et al., CIDEr: Consensus-based Image Description Evaluation, CVPR 2015, sections 3 and 4 (CIDEr-D),
with the conventions of its authors' program (github.com/vrama91/cider, ciderD_scorer.py at 3b388bd): n-grams of one to
four words, document frequencies from the references given, a penalty on the difference of lengths with sigma 6, and a
factor of 10. Their tool splits captions with the Java program PTBTokenizer; `words_of` lowers and drops punctuation,
which gives the same words for plain captions, though not for contractions ("doesn't" stays one word here).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from awq2trt.errors import UsageError

LONGEST: Final = 4
"""Words in the longest n-grams."""

SIGMA: Final = 6.0
"""Standard deviation, in words, of the penalty on the difference of lengths; the paper's section 4."""

FACTOR: Final = 10.0
"""By which the paper's program multiplies, so that scores look like those of other measures."""

_WORD: Final = re.compile(r"[^\W_]+(?:['\u2019\-][^\W_]+)*")

_NGram = tuple[str, ...]


@dataclass(frozen=True)
class CiderScore:
    """CIDEr-D of a set of captions.

    Attributes:
        scores: Score of each picture, from 0 to 10.
    """

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean score of all pictures."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class _Vectors:
    """A caption's n-grams, weighted by TF-IDF.

    Attributes:
        weights: For n from 1 to `LONGEST`, each n-gram's weight.
        norms: The Euclidean length of each of them.
        length: Bigrams in the caption, which is how the authors' program counts its length.
    """

    weights: tuple[Mapping[_NGram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CiderScore:
    """Scores captions against references.

        cider(["a red circle", "two dogs"], [["one red circle", "a circle"], ["two dogs run"]]).mean

    A word that is in the references of every picture weighs nothing, so that a score of one picture alone is always 0.

    Args:
        captions: What a model says of each picture.
        references: What people say of each, one text or several.

    Raises:
        UsageError: There are not as many captions as pictures, no pictures, or one without references.
    """
    if len(captions) != len(references) or not references:
        raise UsageError(
            f"expected one caption for each picture, got {len(captions)} for {len(references)} pictures.",
            where="CIDEr",
            fix="give one caption, and its references, for each of one or more pictures.",
        )
    for number, given in enumerate(references, start=1):
        if isinstance(given, str) or not given:
            raise UsageError(
                f"expected a list of one or more references, got {given!r}.",
                where=f"CIDEr, picture {number}",
                fix="give what people say of this picture, as a list, or take it out.",
            )
    counted = [[_n_grams(reference) for reference in given] for given in references]
    frequency = Counter(n_gram for given in counted for n_gram in set().union(*given))
    pictures = len(counted)
    scores = []
    for caption, written in zip(captions, counted, strict=True):
        said = _vectors(_n_grams(caption), frequency, pictures)
        near = [_similarity(said, _vectors(reference, frequency, pictures)) for reference in written]
        scores.append(FACTOR * math.fsum(near) / len(near))
    return CiderScore(tuple(scores))


def words_of(text: str) -> list[str]:
    """A caption's words, lowered, without punctuation."""
    return _WORD.findall(text.lower())


def _n_grams(text: str) -> Counter[_NGram]:
    words = words_of(text)
    starts = ((n, start) for n in range(1, LONGEST + 1) for start in range(len(words) - n + 1))
    return Counter(tuple(words[start : start + n]) for n, start in starts)


def _vectors(counts: Counter[_NGram], frequency: Mapping[_NGram, int], pictures: int) -> _Vectors:
    weights: tuple[dict[_NGram, float], ...] = tuple({} for _ in range(LONGEST))
    for n_gram, count in counts.items():
        # What no reference has counts as if one had it.
        weights[len(n_gram) - 1][n_gram] = count * math.log(pictures / max(1, frequency.get(n_gram, 0)))
    norms = tuple(math.sqrt(math.fsum(weight**2 for weight in of_n.values())) for of_n in weights)
    length = sum(count for n_gram, count in counts.items() if len(n_gram) == 2)
    return _Vectors(weights, norms, length)


def _similarity(said: _Vectors, reference: _Vectors) -> float:
    """Cosines, averaged over n; a weight counts at most as much as the reference's, so that repeating earns nothing."""
    cosines = []
    for ours, theirs, our_norm, their_norm in zip(
        said.weights, reference.weights, said.norms, reference.norms, strict=True
    ):
        dot = math.fsum(
            min(weight, theirs.get(n_gram, 0.0)) * theirs.get(n_gram, 0.0) for n_gram, weight in ours.items()
        )
        cosines.append(dot / (our_norm * their_norm) if our_norm and their_norm else 0.0)
    return math.fsum(cosines) / LONGEST * math.exp(-((said.length - reference.length) ** 2) / (2 * SIGMA**2))
