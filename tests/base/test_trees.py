"""What the leaves of trees are called, in boxes of Flax and without."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from adamx.base.trees import describe_difference, flatten_with_path, is_none, path_name


class Attention(eqx.Module):
    query: Any
    value: Any


class Scale(eqx.Module):
    value: Any


class Shift(flax.struct.PyTreeNode):
    value: Any


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        """A layer whose kernel is boxed in one way and whose bias in another."""
        kernel = nn.with_partitioning(nn.initializers.ones, ("a", "b"))
        bias = nn.with_logical_partitioning(nn.initializers.zeros, ("b",))
        return nn.Dense(3, kernel_init=kernel, bias_init=bias)(x)


def linear():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


X = jnp.ones((1, 2))
NAMES = {
    "nnx": (lambda: {"a": nnx.state(linear())}, ["a/bias", "a/kernel"]),
    "nnx_module": (lambda: [linear()], ["0/bias", "0/kernel"]),
    "nnx_pure": (lambda: nnx.to_pure_dict(nnx.state(linear())), ["bias", "kernel"]),
    "nnx_alone": (lambda: nnx.Param(X), [""]),
    "nnx_of_a_tree": (lambda: {"a": nnx.Variable({"value": X, "b": X})}, ["a/b", "a/value"]),
    "linen": (lambda: Dense().init(jax.random.key(0), X)["params"]["Dense_0"], ["bias", "kernel"]),
    "dict": (lambda: {"value": X, "a": {"value": X}}, ["a/value", "value"]),
    "box_at_value": (lambda: {"value": nnx.Param(X)}, ["value"]),
    "equinox": (lambda: {"a": Attention(X, X), "b": Scale(X)}, ["a/query", "a/value", "b/value"]),
    "flax_struct": (lambda: Shift(X), ["value"]),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_box_is_no_part_of_a_name(name):
    """And neither leaves nor their order and structure change."""
    make, expected = NAMES[name]
    tree = make()
    keyed, treedef = flatten_with_path(tree)
    assert [path_name(path) for path, _ in keyed] == expected
    leaves, structure = jax.tree.flatten(tree)
    assert treedef == structure
    assert all(x is y for (_, x), y in zip(keyed, leaves, strict=True))


def test_leaves_that_are_none():
    tree = {"a": None, "b": nnx.Param(None), "c": nnx.Param(X)}
    keyed, treedef = flatten_with_path(tree, is_none)
    assert [(path_name(path), leaf is None) for path, leaf in keyed] == [
        ("a", True),
        ("b", True),
        ("c", False),
    ]
    assert treedef == jax.tree.structure(tree, is_leaf=is_none)


def test_a_difference_of_boxes_is_not_one_of_names():
    boxed = nnx.state(linear())
    assert describe_difference(boxed, {"bias": X}) == "unexpected: kernel"
    assert describe_difference({"kernel": X, "scale": X}, boxed) == (
        "missing: bias; unexpected: scale"
    )
    assert "missing" not in describe_difference(boxed, nnx.to_pure_dict(boxed))
