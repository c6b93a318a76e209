"""What goes where: by names, by an order, by shapes that leave no doubt; and never by a guess."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import adamx
from adamx.checkpoint import Checkpoint, CheckpointError, torch_linear
from adamx.checkpoint.fitting import fit
from tests.checkpoint.matching_cases import KERNELS, NAMED, SHAPES, checkpoint_of, restored, tree_of

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")


def test_by_name():
    expected = {"in/weight": 1, "in/bias": 2, "out/weight": 3, "out/bias": 4}
    assert restored(checkpoint_of(SHAPES), NAMED) == expected


@pytest.mark.parametrize("prefix", ["params", "model/encoder"])
def test_by_name_below_a_common_prefix(prefix):
    nested = {f"{prefix}/{path}": shape for path, shape in NAMED.items()}
    expected = {"in/weight": 1, "in/bias": 2, "out/weight": 3, "out/bias": 4}
    below = {f"{prefix}/{path}": value for path, value in expected.items()}
    assert restored(checkpoint_of(SHAPES), nested) == below
    there = {f"module.{name}": shape for name, shape in SHAPES.items()}
    assert restored(checkpoint_of(there), NAMED) == expected


def test_by_shape_if_there_is_one_way():
    """The last bias has only one place, then the other one too."""
    shapes = {"0": (3, 4), "1": (4,), "2": (4, 5), "3": (5,)}
    tree = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 5), "b/bias": (5,)}
    checkpoint = checkpoint_of(shapes, "keras3", params={})
    assert restored(checkpoint, tree) == dict(zip(tree, (1, 2, 3, 4), strict=True))


def test_more_than_one_way_is_an_error():
    shapes = {"0": (3, 4), "1": (4,), "2": (4, 4), "3": (4,)}
    with pytest.raises(CheckpointError) as raised:
        restored(checkpoint_of(shapes, "keras3", params={}), KERNELS)
    message = str(raised.value)
    assert "more than one assignment fits the shapes" in message
    assert "order=[the tree's paths in the file's order]" in message
    for line in ("0 (3, 4)", "1 (4,)", "in/kernel (3, 4)", "out/bias (4,)"):
        assert f"\n  {line}" in message


def test_all_faults_in_one_error():
    tree = {"in/weight": (4, 2), "in/bias": (4,), "out/weight": (4, 4), "more/bias": (4,)}
    with pytest.raises(CheckpointError) as raised:
        restored(checkpoint_of(SHAPES), tree)
    message = str(raised.value)
    assert "\n  more/bias: not in the file" in message
    assert "\n  out.bias: in the file, but not in the tree" in message
    assert "\n  in/weight: expected shape (4, 2), found (4, 3)" in message
    assert "\nThe file has, in its order:\n  in.weight (4, 3)\n  in.bias (4,)\n" in message
    assert message.count("out.bias") == message.count("more/bias") == 1


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (["in/kernel"], CheckpointError, "order: expected 4 paths.*found 1"),
        (["in/kernel"] * 4, CheckpointError, "order: expected every path once, found in/kernel"),
        ("in/kernel", TypeError, "order: expected a list of paths, found str"),
        ([1, 2, 3, 4], TypeError, "order: expected paths such as"),
        (["x/kernel", "in/bias", "out/kernel", "out/bias"], CheckpointError, "as x/kernel"),
    ],
)
def test_wrong_orders(order, error, message):
    with pytest.raises(error, match=message):
        restored(checkpoint_of(SHAPES), KERNELS, order=order, layout=torch_linear)


def test_weights_of_a_file_that_does_not_link_them():
    """The optimizer's variables are numbered in an order of its own, the weights have names."""
    square = {"0": (4, 4), "1": (4, 4)}
    weights = {"body": np.full((4, 4), 7.0), "head": np.full((4, 4), 8.0)}
    checkpoint = checkpoint_of(square, framework="tf_keras", params=weights)
    tree = tree_of({"b/w": (4, 4), "h/w": (4, 4)})
    head_first = ["h/w", "b/w"]
    assert restored(checkpoint, {"b/w": (4, 4), "h/w": (4, 4)}, order=head_first) == {
        "b/w": 2,
        "h/w": 1,
    }
    with pytest.raises(CheckpointError, match=r"order: expected a mapping such as {'body': path"):
        checkpoint.params_like(tree, order=head_first)
    # One mapping may speak of both.
    pairs = {"0": "h/w", "1": "b/w", "body": "b/w", "head": "h/w"}
    found = checkpoint.params_like(tree, order=pairs)
    assert (float(found["b"]["w"][0, 0]), float(found["h"]["w"][0, 0])) == (7, 8)
    assert restored(checkpoint, {"b/w": (4, 4), "h/w": (4, 4)}, order=pairs) == {
        "b/w": 2,
        "h/w": 1,
    }


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ({"0": "a"}, CheckpointError, "order: 0: not in the file, which has in.weight"),
        ({"in.bias": 0}, TypeError, "order: expected names and paths, found 'in.bias': 0"),
        ({"in.bias": "in/bias"}, CheckpointError, "in.weight: in the file, but not in the tree"),
        (
            dict.fromkeys(SHAPES, "in/bias"),
            CheckpointError,
            "in/bias: expected one variable, found in.weight, in.bias, out.weight and out.bias",
        ),
    ],
)
def test_wrong_mappings(order, error, message):
    with pytest.raises(error, match=re.escape(message)):
        checkpoint_of(SHAPES).restore(tree_of(NAMED), order=order)


def test_flax_nnx():
    """Its states have each array under `value`; that is no name, nor a role of its own."""
    model = nnx.state(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Param)
    from_keras = checkpoint_of({"kernel": (4, 4), "bias": (4,)}, framework="keras3")
    _, state = from_keras.restore(model)
    assert float(state[0].mu["kernel"].get_value()[0, 0]) == 1
    square = {"weight": (4, 4), "bias": (4,)}
    from_torch, order = checkpoint_of(square), ["kernel/value", "bias/value"]
    with pytest.raises(CheckpointError, match=r"kernel: weight .*: pass layout="):
        from_torch.restore(model, order=order)
    stairs = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    from_torch = checkpoint_of(square, mu={"weight": stairs, "bias": stairs[0]})
    _, state = from_torch.restore(model, order=order, layout=torch_linear)
    np.testing.assert_array_equal(state[0].mu["kernel"].get_value(), stairs.T)
    back = Checkpoint.from_state(model, state, from_torch.config)
    with pytest.raises(CheckpointError, match="kernel: expected a layout"):
        fit(back, from_torch, ["bias", "weight"])


def with_hole():
    """As torch saves a frozen parameter: it has a position and a weight, and no moments."""
    whole = checkpoint_of(SHAPES)

    def but_one(arrays):
        return {name: array for name, array in arrays.items() if name != "in.bias"}

    return dataclasses.replace(whole, mu=but_one(whole.mu), nu=but_one(whole.nu))


def test_a_frozen_parameter_is_left_out():
    rest = {path: shape for path, shape in NAMED.items() if path != "in/bias"}
    expected = {"in/weight": 1, "out/weight": 3, "out/bias": 4}
    assert restored(with_hole(), rest) == expected
    assert restored(with_hole(), rest, order=list(rest)) == expected
    assert restored(with_hole(), rest, order=list(NAMED)) == expected
    tree = tree_of(NAMED)
    tree["in"]["bias"] = None
    _, state = with_hole().restore(tree)
    assert "mu/in/bias" not in adamx.to_numpy(state)


def test_a_frozen_parameter_cannot_be_trained_as_if_nothing_had_been():
    with pytest.raises(CheckpointError, match=r"in/bias: has no moments .* put None there"):
        restored(with_hole(), NAMED)


def test_weights_of_frozen_parameters_are_there():
    weights = with_hole().params_like(tree_of(NAMED))
    assert float(weights["in"]["bias"][0]) == 2
    rest = tree_of({path: shape for path, shape in NAMED.items() if path != "in/bias"})
    assert jax.tree.structure(with_hole().params_like(rest)) == jax.tree.structure(rest)
    with pytest.raises(CheckpointError, match="the file holds no weights"):
        dataclasses.replace(with_hole(), params={}).params_like(rest)


def test_shapes_alone_will_do_for_weights():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree_of(NAMED))
    weights = checkpoint_of(SHAPES).params_like(shapes)
    assert float(weights["out"]["bias"][0]) == 4


def test_precision_is_not_lost_without_a_word():
    fine = np.float32(1) + np.arange(4, dtype=np.float32) / 1024
    whole = checkpoint_of({"b": (4,)}, params={"b": fine})
    narrow = {"b": jnp.zeros(4, jnp.bfloat16)}
    with pytest.raises(
        CheckpointError, match=r"b: expected values that the target's bfloat16 can hold"
    ):
        whole.params_like(narrow)
    _, state = whole.restore(narrow)  # its moments are 1 and 1
    assert state[0].mu["b"].dtype == jnp.bfloat16
    finer = dataclasses.replace(whole, mu={"b": fine})
    with pytest.raises(
        CheckpointError, match=r"mu/b: expected values that the target's bfloat16 can hold"
    ):
        finer.restore(narrow)
    rounded = dataclasses.replace(finer, mu={"b": fine.astype(jnp.bfloat16)})
    rounded.restore(narrow)
