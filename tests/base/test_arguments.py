"""The signatures of Adam, which are made of one statement, beside Optax's."""

import inspect
import pydoc

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

PAIRS = {
    "adam": (adamx.adam, optax.adam),
    "adamw": (adamx.adamw, optax.adamw),
    "scale_by_adam": (adamx.scale_by_adam, optax.scale_by_adam),
}
KINDS = inspect.Parameter


def positional(function):
    """The names and defaults of arguments that may be given by position."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is KINDS.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_by_position_are_those_of_optax(name):
    ours, theirs = map(positional, PAIRS[name])
    # Optax has its own later arguments by position, too, as adamw's mask comes before `nesterov`.
    assert list(ours.items()) == list(theirs.items())[: len(ours)]
    missing = theirs.keys() - inspect.signature(PAIRS[name][0]).parameters.keys()
    assert not missing


@pytest.mark.parametrize(
    ("fused", "chained"), [(adamx.fused_adam, adamx.adam), (adamx.fused_adamw, adamx.adamw)]
)
def test_a_fused_step_takes_the_same_in_the_same_order(fused, chained):
    assert positional(fused) == positional(chained)
    assert list(positional(fused)) == list(positional(chained))
    parameters = inspect.signature(chained).parameters.keys()
    assert parameters - inspect.signature(fused).parameters.keys() == set()


@pytest.mark.parametrize(
    "function",
    [adamx.adam, adamx.adamw, adamx.scale_by_adam, adamx.fused_adam, adamx.fused_adamw],
)
def test_help_shows_and_explains_every_argument(function):
    signature, documented = inspect.signature(function), inspect.getdoc(function)
    shown = pydoc.render_doc(function)
    for name in signature.parameters:
        assert f"{name}: " in shown
        assert name in documented
    assert signature.return_annotation is not inspect.Signature.empty
    assert function.__annotations__.keys() == {*signature.parameters, "return"}


def test_arguments_by_position_and_by_name_are_the_same():
    by_position = adamx.adamw(0.1, 0.8, 0.9, 1e-3, 1e-4, "bfloat16", 0.2, True)
    by_name = adamx.adamw(
        learning_rate=0.1,
        b1=0.8,
        b2=0.9,
        eps=1e-3,
        eps_root=1e-4,
        mu_dtype="bfloat16",
        weight_decay=0.2,
        mask=True,
    )
    g = jnp.array([1.0, -2.0])
    first, second = (tx.update(g, tx.init(g), g)[0] for tx in (by_position, by_name))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adamx.adam(), r"adam\(\): missing a required argument: 'learning_rate'"),
        (lambda: adamx.scale_by_adam(1, 2, 3, 4, 5, 6), r"scale_by_adam\(\): too many positional"),
        (lambda: adamx.adam(0.1, 0.9, b1=0.9), r"adam\(\): multiple values for argument 'b1'"),
    ],
)
def test_wrong_calls_name_the_function(call, message):
    with pytest.raises(TypeError, match=message):
        call()
