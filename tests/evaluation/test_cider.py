"""CIDEr-D against values worked out by hand from the paper's formulas."""

from __future__ import annotations

import math

import pytest

from awq2trt.errors import UsageError
from awq2trt.evaluation.cider import cider, words_of

OTHER = "green squares everywhere today"
"""A second picture, without which every word would be in all pictures and weigh nothing."""


def _first(caption: str, *references: str) -> float:
    return cider([caption, OTHER], [list(references), [OTHER]]).scores[0]


def test_the_same_words_score_ten() -> None:
    assert cider(["a red circle lies", OTHER], [["a red circle lies"], [OTHER]]).scores == pytest.approx((10, 10))


def test_three_words_have_no_n_grams_of_four() -> None:
    assert _first("one red circle", "one red circle") == pytest.approx(7.5)


def test_part_of_a_reference() -> None:
    # All n-grams weigh ln 2, which cancels. Words: 2 of 3 in common of 3 and 3; bigrams: 1 of 2 and 2; no longer ones.
    assert _first("one red square", "one red circle") == pytest.approx(10 * (2 / 3 + 1 / 2) / 4)


def test_a_repeated_word_counts_as_often_as_the_reference_has_it() -> None:
    # Words: weights 3 and 1; the clipped product is 1, over norms 3 and sqrt 2; 2 bigrams against 1: the penalty.
    expected = 10 * (1 / (3 * math.sqrt(2))) / 4 * math.exp(-1 / 72)
    assert _first("red red red", "red circle") == pytest.approx(expected)


def test_references_are_averaged() -> None:
    assert _first("one red circle", "one red circle", "blue") == pytest.approx(7.5 / 2)


def test_words_of_many_pictures_weigh_less() -> None:
    # Of three pictures, `a` is said of two and weighs ln 1.5; `dog` of one, ln 3. The bigrams have nothing in common.
    common, rare = math.log(1.5), math.log(3)
    scores = cider(["a dog", "a cat", "birds"], [["a fox"], ["a cat"], ["birds"]]).scores
    assert scores[0] == pytest.approx(10 * common**2 / (common**2 + rare**2) / 4)


def test_words_of_every_picture_weigh_nothing() -> None:
    assert cider(["a", "a"], [["a"], ["a"]]).scores == (0.0, 0.0)


def test_an_empty_caption_scores_nothing() -> None:
    assert _first("", "one red circle") == 0.0


def test_case_and_punctuation_do_not_count() -> None:
    assert words_of("A well-lit, RED circle.") == ["a", "well-lit", "red", "circle"]
    assert _first("One red circle.", "one red circle") == pytest.approx(7.5)


def test_the_mean_is_of_all_pictures() -> None:
    assert cider(["a red circle lies", ""], [["a red circle lies"], [OTHER]]).mean == pytest.approx(5)


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "got 1 for 2 pictures"),
        ([], [], "got 0 for 0 pictures"),
        (["a", "b"], [["a"], []], "picture 2: expected a list of one or more references"),
        (["a"], ["a"], "picture 1: expected a list of one or more references"),
    ],
)
def test_what_makes_no_sense_is_refused(captions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        cider(captions, references)


def test_the_published_program_says_the_same() -> None:
    """Scores that `CiderScorer` of pycocoevalcap 1.2 gives for these captions; it needs words without punctuation."""
    captions = [
        "a man rides a brown horse on the beach",
        "two dogs play with a ball",
        "a bowl of of fruit",
        "a train at the station",
    ]
    references = [
        ["a man riding a horse on the beach", "a man rides a brown horse along the sea"],
        ["two dogs chase a red ball", "dogs play with a ball on grass", "two dogs play"],
        ["a bowl of fruit on a table"],
        ["a red train stands at the station", "the train is at a station"],
    ]
    scored = cider(captions, references)
    assert scored.scores == pytest.approx((5.16023687, 4.40621501, 3.49927846, 2.90427539), abs=1e-8)
    assert scored.mean == pytest.approx(3.9925014312935305)
