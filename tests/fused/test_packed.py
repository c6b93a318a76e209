"""The moments of all leaves in one buffer: there and back, exactly, and what cannot be packed."""

import pickle
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adamx

PROMOTES = True  # Optax's wrappers do

RNG = np.random.default_rng(0)


def params_of(dtypes):
    shapes = {"kernel": (5, 7), "bias": (7,), "scale": (), "empty": (0, 3), "long": (129,)}
    rows = zip(shapes.items(), dtypes * 5, strict=False)
    return {name: jnp.asarray(RNG.standard_normal(shape), d) for (name, shape), d in rows}


def stepped(tx, params):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        _, state = update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
    return state


def assert_same(mine, other):
    assert jax.tree.structure(mine) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    ("dtypes", "mu_dtype", "names"),
    [
        (["float32"], None, ({"float32"}, {"float32"})),
        (["float32"], "bfloat16", ({"bfloat16"}, {"float32"})),
        (["bfloat16", "float32"], None, ({"bfloat16", "float32"}, {"float32"})),
        (["float16", "float64"], None, ({"float16", "float64"}, {"float32", "float64"})),
    ],
)
def test_there_and_back(dtypes, mu_dtype, names, amsgrad):
    with jax.enable_x64(True):
        params = params_of(dtypes)
        tx = adamx.adam(1e-3, mu_dtype=mu_dtype, amsgrad=amsgrad)
        state = stepped(tx, params)
        packed = adamx.pack(state, params)
        kind = adamx.PackedAmsgradState if amsgrad else adamx.PackedAdamState
        assert isinstance(packed[0], kind)
        assert (set(packed[0].mu), set(packed[0].nu)) == names
        assert_same(adamx.unpack(packed, params), state)
        jitted = jax.jit(lambda state, params: adamx.unpack(adamx.pack(state, params), params))
        assert_same(jitted(state, params), state)
        # init makes what packing the ordinary state of the start gives
        optimizer = adamx.fused_adam(1e-3, mu_dtype=mu_dtype, amsgrad=amsgrad, packed=True)
        assert_same(optimizer.init(params), adamx.pack(tx.init(params), params))
        shapes = jax.eval_shape(optimizer.init, params)
        assert jax.tree.structure(shapes) == jax.tree.structure(packed)


def test_layout():
    """Parts in the order of the tree, each at a multiple of 64 bytes, zeros between them."""
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 8)), "c": jnp.ones(17)}
    state = adamx.pack(adamx.AdamState(jnp.int32(1), params, params), params)
    expected = np.zeros(16 + 16 + 32)
    expected[[0, 1, 2, *range(16, 32), *range(32, 49)]] = 1
    np.testing.assert_array_equal(state.mu["float32"], expected)
    half = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    state = adamx.pack(adamx.AdamState(jnp.int32(1), half, half), half)
    assert state.nu["bfloat16"].shape == (32 + 32 + 32,)


def test_within_other_states():
    params = params_of(["float32"])
    tx = optax.chain(
        optax.clip(1.0), optax.MultiSteps(adamx.adam(1e-3), 2).gradient_transformation()
    )
    state = tx.init(params)
    packed = adamx.pack(state, params)
    assert any(isinstance(x, adamx.PackedAdamState) for x in packed[1].inner_opt_state)
    assert_same(adamx.unpack(packed, params), state)


def test_checkpoints_of_a_packed_run(tmp_path):
    """Through `unpack`: the numbers, a file, and on with the packed steps, bit for bit."""
    params = params_of(["float32"])
    optimizer = adamx.fused_adam(1e-2, packed=True)
    step = jax.jit(optimizer.step)
    grads = jax.tree.map(lambda p: 0.3 * p, params)
    half_params, half = step(grads, params, optimizer.init(params))
    np.savez(tmp_path / "state.npz", **adamx.to_numpy(adamx.unpack(half, params)))
    with np.load(tmp_path / "state.npz") as arrays:
        fresh = adamx.from_numpy(adamx.adam(1e-2).init(params), arrays)
    assert_same(step(grads, half_params, adamx.pack(fresh, params)), step(grads, half_params, half))
    with pytest.raises(ValueError, match=r"expected an optimizer state that holds .* adamx.unpack"):
        adamx.to_numpy(half)


PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
STATE = adamx.adam(1e-3).init(PARAMS)


def test_states_that_cannot_be_packed():
    with pytest.raises(
        ValueError, match=r"expected a state that holds an AdamState .* found tuple"
    ):
        adamx.pack(optax.sgd(0.1).init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="expected a state that holds a PackedAdamState"):
        adamx.unpack(STATE, PARAMS)
    with pytest.raises(ValueError, match=r"mu: the structure differs from that of the parameters"):
        adamx.pack(STATE, {"kernel": PARAMS["kernel"]})
    other = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"mu/kernel: expected shape \(3, 2\), .* found \(2, 3\)"):
        adamx.pack(STATE, other)
    longer = {"kernel": jnp.ones((50, 3)), "bias": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"mu: expected buffers of .*176.* found .*32"):
        adamx.unpack(adamx.pack(STATE, PARAMS), longer)
    mixed = STATE[0]._replace(mu=STATE[0].mu | {"bias": jnp.ones(3, jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"mu/bias: expected float32, .* found bfloat16"):
        adamx.pack(mixed, PARAMS)


ONES = {"a": jnp.ones((2, 3)), "b": jnp.ones(16)}
OTHER_TREES = {
    "transposed": ONES | {"a": jnp.ones((3, 2))},
    "flat": ONES | {"a": jnp.ones(6)},
    "shorter within the same 64 bytes": ONES | {"a": jnp.ones(5)},
    "two leaves that change places": {"a": jnp.ones(16), "b": jnp.ones((2, 3))},
    "the same with other names": {"b": jnp.ones((2, 3)), "c": jnp.ones(16)},
    "nested": {"a": {"a": jnp.ones((2, 3))}, "b": jnp.ones(16)},
}


@pytest.mark.parametrize("other", OTHER_TREES.values(), ids=OTHER_TREES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_state_of_parameters_whose_buffers_have_the_same_sizes(other, amsgrad):
    optimizer = adamx.fused_adam(1e-3, amsgrad=amsgrad, packed=True)
    states = optimizer.init(ONES), adamx.pack(adamx.adam(1e-3, amsgrad=amsgrad).init(ONES), ONES)
    for state in states:
        assert jax.tree.map(jnp.shape, state[0].mu) == {"float32": (32,)}
        for call in (adamx.unpack, lambda state, p: jax.jit(optimizer.step)(p, p, state)):
            with pytest.raises(ValueError, match="packed for parameters of other names, shapes"):
                call(state, other)
            call(state, ONES)


def test_a_state_of_parameters_whose_dtypes_change_places():
    """The buffers have the same names and sizes, and another leaf is in each."""
    a, b = jnp.ones(32), jnp.ones(32, jnp.bfloat16)
    state = adamx.fused_adam(1e-3, packed=True).init({"a": a, "b": b})
    with pytest.raises(ValueError, match="packed for parameters of other names, shapes or dtypes"):
        adamx.unpack(state, {"a": b, "b": a})


def test_layouts():
    """The same on every machine; those who map over two states, and ensembles, have one."""
    optimizer = adamx.fused_adam(1e-3, packed=True)
    state: Any = optimizer.init(ONES)
    assert state[0].layout == {"4085b3d382761e0b": ()}
    shapes: Any = jax.eval_shape(optimizer.init, ONES)
    assert shapes[0].layout == state[0].layout
    jax.tree.map(jnp.add, state, optimizer.init(jax.tree.map(jnp.zeros_like, ONES)))
    members = jax.tree.map(lambda p: jnp.stack([p, p]), ONES)
    states: Any = jax.vmap(optimizer.init)(members)
    assert states[0].layout == state[0].layout
    jax.vmap(optimizer.step)(members, members, states)
    by_hand = (state[0]._replace(layout=None), *state[1:])
    assert_same(adamx.unpack(by_hand, ONES), adamx.unpack(state, ONES))
    _, after = optimizer.step(ONES, ONES, by_hand)
    assert jax.tree.structure(after) == jax.tree.structure(by_hand)


def test_files_of_packed_states(tmp_path):
    state = adamx.fused_adam(1e-3, packed=True).init(ONES)
    assert_same(pickle.loads(pickle.dumps(state)), state)
    assert_same(flax.serialization.from_bytes(state, flax.serialization.to_bytes(state)), state)
    with ocp.StandardCheckpointer() as files:
        files.save(tmp_path / "state", state)
        files.wait_until_finished()
        assert_same(files.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state)), state)


@pytest.mark.parametrize("buffer", [jnp.zeros((4, 8)), jnp.zeros(32, "int32")])
def test_buffers_of_another_shape_or_dtype(buffer):
    optimizer = adamx.fused_adam(1e-3, packed=True)
    packed: Any = optimizer.init(ONES)
    state = (packed[0]._replace(mu={"float32": buffer}), *packed[1:])
    for call in (adamx.unpack, lambda state, p: optimizer.step(p, p, state)):
        with pytest.raises(
            TypeError, match=r"state: mu: expected a one-dimensional array of float32"
        ):
            call(state, ONES)


def test_maxima_of_other_dtypes_than_the_second_moment():
    """Their parts would begin elsewhere."""
    state: Any = adamx.adam(1e-3, amsgrad=True).init(PARAMS)
    half = jax.tree.map(lambda x: x.astype("bfloat16"), state[0].nu_max)
    state = (state[0]._replace(nu_max=half), *state[1:])
    with pytest.raises(ValueError, match=r"nu_max: expected the dtypes of nu .* found bfloat16"):
        adamx.pack(state, PARAMS)
    optimizer = adamx.fused_adam(1e-3, amsgrad=True, packed=True)
    packed: Any = optimizer.init(PARAMS)
    maxima = {"bfloat16": jnp.zeros(64, "bfloat16")}
    with pytest.raises(ValueError, match=r"nu_max: expected the dtypes of nu .* found bfloat16"):
        optimizer.step(PARAMS, PARAMS, (packed[0]._replace(nu_max=maxima), *packed[1:]))


def test_parameters_that_cannot_be_packed():
    optimizer = adamx.fused_adam(1e-3, packed=True)
    with pytest.raises(TypeError, match=r"a/0: expected a real parameter .* packed=False"):
        optimizer.init({"a": [jnp.ones(3, jnp.complex64)]})
    with pytest.raises(TypeError, match="a: expected a floating-point or complex parameter"):
        optimizer.init({"a": jnp.arange(3)})
    mesh = jax.make_mesh((8,), ("data",))
    split = jax.device_put(jnp.ones(16), NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match=r"a: expected a parameter that is not sharded"):
        optimizer.init({"a": split})
    with pytest.raises(ValueError, match=r"b: expected a parameter that is not sharded"):
        optimizer.init({"a": np.ones(3, np.float32), "b": split})
    optimizer.init({"a": jax.device_put(jnp.ones(16), NamedSharding(mesh, PartitionSpec()))})
