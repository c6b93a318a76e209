"""Errors as objects: their sentence, and what survives of them."""

import copy
import pickle

import pytest

from adamx.base.errors import InvalidType, InvalidValue


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"where": "b1", "expected": "a number below 1", "found": 1.5, "remedy": "use 0.9"},
            "b1: expected a number below 1, found 1.5; use 0.9",
        ),
        ({"where": "nu/w", "expected": "(2,)", "found": (3,)}, "nu/w: expected (2,), found (3,)"),
        ({"problem": "nothing fits", "remedy": "Give order="}, "nothing fits. Give order="),
        ({"where": "a.pt", "problem": "it is damaged"}, "a.pt: it is damaged"),
    ],
)
def test_the_sentence_is_made_of_the_fields(fields, sentence):
    assert str(InvalidValue(**fields)) == sentence


def test_replaced_and_placed_errors_keep_the_other_fields():
    error = InvalidType(where="b1", expected="a number", found="'x'", argument="config")
    moved = error.replace(where="betas[0]").within("param_groups")
    assert str(moved) == "param_groups: betas[0]: expected a number, found 'x'"
    assert isinstance(moved, TypeError)
    assert moved.argument == "config"


@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_copies_have_the_fields(again):
    error = InvalidValue(where="b1", expected="a number", found=2, argument="config")
    found = again(error)
    assert (str(found), vars(found)) == (str(error), vars(error))
    assert type(found) is InvalidValue
