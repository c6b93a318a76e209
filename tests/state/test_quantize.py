"""Moments in 8 bits in a state: as arrays, converted, split over devices and restored on fewer."""

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adamx
from tests.checkpoint_folders.coded_runs import assert_rounded

SHAPES = {"kernel": (128, 96), "wide": (63, 512), "bias": (3,)}


def trained(tx, steps=4, state=None, start=0, **settings):
    """The state after some steps on gradients of a normal distribution."""
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    state = tx.init(params) if state is None else state
    step = jax.jit(tx.update, **settings)
    for i in range(start, start + steps):
        keys = jax.random.split(jax.random.key(i), len(SHAPES))
        grads = {
            name: jax.random.normal(key, shape)
            for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
        }
        _, state = step(grads, state, params)
    return state


TX = optax.chain(optax.clip_by_global_norm(9.0), adamx.adam(1e-3, moments="8bit"))


def test_arrays_are_decoded():
    """The numbers that the next step reads, under the names that float32 moments have."""
    state = trained(TX)
    arrays, wide = adamx.to_numpy(state), adamx.dequantize_moments(state)
    chex.assert_trees_all_equal(arrays, adamx.to_numpy(wide))
    assert list(arrays) == list(adamx.to_numpy(optax.adam(1e-3).init(wide[1][0].mu)))
    assert arrays["mu/wide"].dtype == arrays["nu/wide"].dtype == np.float32
    weights = adamx.get_weights(state)
    chex.assert_trees_all_equal(weights, list(arrays.values()))


def test_arrays_are_encoded():
    """Each root is a level next to its own; and the count and all else are taken."""
    exact = adamx.to_numpy(trained(adamx.adam(1e-3)))
    state = adamx.from_numpy(TX.init({n: jnp.ones(s) for n, s in SHAPES.items()}), exact)
    assert isinstance(state[1][0].mu["wide"], adamx.EightBitMoment)
    found = adamx.to_numpy(state)
    assert found["count"] == 4
    np.testing.assert_array_equal(found["nu/bias"], exact["nu/bias"])
    for name in ("kernel", "wide"):
        assert_rounded(state[1][0].nu[name], exact[f"nu/{name}"], 32)
        m, nearer = exact[f"mu/{name}"], found[f"mu/{name}"]
        assert np.sqrt(np.mean((m - nearer) ** 2) / np.mean(m**2)) < 0.03
    again = adamx.set_weights(state, adamx.get_weights(state))
    chex.assert_trees_all_equal_shapes_and_dtypes(again, state)


def test_arrays_remember_their_codes():
    """Into a state of the same form no bit is lost, unless an array was changed."""
    state = trained(TX)
    empty = TX.init({n: jnp.ones(s) for n, s in SHAPES.items()})
    chex.assert_trees_all_equal(adamx.from_numpy(empty, adamx.to_numpy(state)), state)
    chex.assert_trees_all_equal(adamx.set_weights(empty, adamx.get_weights(state)), state)
    arrays = adamx.to_numpy(state)
    arrays["nu/wide"] *= 0.25
    arrays["mu/kernel"] = arrays["mu/kernel"] + 0
    found = adamx.from_numpy(empty, arrays)
    again = adamx.to_numpy(found)
    np.testing.assert_allclose(np.mean(again["nu/wide"]), np.mean(arrays["nu/wide"]), rtol=1e-3)
    assert np.any(found[1][0].mu["kernel"].codes != state[1][0].mu["kernel"].codes)
    exact = np.linalg.norm(arrays["mu/kernel"])
    assert np.linalg.norm(again["mu/kernel"] - arrays["mu/kernel"]) < 0.03 * exact
    plain = pickle.loads(pickle.dumps(arrays["mu/wide"]))
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(plain, arrays["mu/wide"])


def test_codes_are_put_on_the_devices_of_the_state():
    mesh = jax.make_mesh((8,), ("data",))
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=TX)
    empty, state = jax.jit(TX.init, out_shardings=shardings)(params), trained(TX)
    split = adamx.from_numpy(empty, adamx.to_numpy(state))
    assert jax.tree.map(lambda x: x.sharding, split) == shardings
    chex.assert_trees_all_equal(jax.device_get(split), jax.device_get(state))
    chex.assert_trees_all_equal(adamx.to_numpy(split), adamx.to_numpy(state))
    rounded = adamx.from_numpy(empty, {n: a.copy() for n, a in adamx.to_numpy(state).items()})
    assert jax.tree.map(lambda x: x.sharding, rounded) == shardings


def test_conversion_at_any_step():
    """Float32 to 8 bits and back, also within jit; the run continues near the float32 one."""
    wide = trained(adamx.adam(1e-3))
    eight = jax.jit(adamx.quantize_moments)(wide)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        eight, adamx.adam(1e-3, moments="8bit").init(wide[0].mu)
    )
    chex.assert_trees_all_equal(eight, adamx.quantize_moments(adamx.quantize_moments(wide)))
    back = adamx.dequantize_moments(trained(adamx.adam(1e-3, moments="8bit"), 4, eight, 4))
    exact = trained(adamx.adam(1e-3), 4, wide, 4)
    assert back[0].count == 8
    for name in ("kernel", "wide"):
        found, nu = np.asarray(back[0].nu[name]), np.asarray(exact[0].nu[name])
        assert abs(np.mean(found / nu) - 1) < 0.01
    chosen = adamx.quantize_moments(wide, adamx.EightBit(keep=["wide"]))
    assert chosen[0].nu["wide"] is wide[0].nu["wide"]
    assert isinstance(chosen[0].nu["kernel"], adamx.EightBitMoment)


def test_what_stays_an_array_is_float32():
    """As `init` makes it: a second moment in bfloat16 would be rounded to nearest from then on."""
    params = {"w": jnp.ones((64, 64)), "b": jnp.ones(3)}
    state = adamx.adam(1.0, nu_dtype="bfloat16", nu_key=0).init(params)
    eight = adamx.quantize_moments(state)
    expected = adamx.adam(1.0, moments="8bit").init(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(eight, expected)


def test_what_cannot_be_converted():
    with pytest.raises(ValueError, match="expected an Adam state without AMSGrad"):
        adamx.quantize_moments(adamx.adam(1, amsgrad=True).init({"w": jnp.ones((64, 64))}))
    for state in (optax.sgd(1.0).init({"w": jnp.ones(3)}), ()):
        with pytest.raises(ValueError, match="expected an optimizer state that holds an AdamState"):
            adamx.quantize_moments(state)
    with pytest.raises(TypeError, match='moments: expected None, "8bit" or an EightBit'):
        adamx.quantize_moments(trained(TX), "4bit")


def test_a_deleted_state_is_named():
    state = trained(TX)
    state[1][0].nu["wide"].codes.delete()
    with pytest.raises(ValueError, match=r"nu/wide.*a deleted one"):
        adamx.to_numpy(state)


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_eight_devices_round_as_one(axes):
    """Codes and scales are split, and all of them have the bits of one device.

    Without clipping: a norm is added up in another order there.
    """
    alone = optax.chain(optax.identity(), adamx.adam(1e-3, moments="8bit"))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axes,))
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=alone)
    assert shardings[1][0].mu["kernel"].codes.spec == PartitionSpec("data")
    assert shardings[1][0].nu["wide"].codes.spec == PartitionSpec(None, "data")
    assert shardings[1][0].nu["wide"].scales.spec == PartitionSpec(None, "data")
    state = jax.jit(alone.init, out_shardings=shardings)(params)
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    if axes == AxisType.Auto:
        split = trained(alone, 4, state, out_shardings=(replicated, shardings))
        assert split[1][0].mu["wide"].codes.sharding.spec == PartitionSpec(None, "data")
        chex.assert_trees_all_equal(jax.device_get(split), jax.device_get(trained(alone)))
        return
    with jax.set_mesh(mesh):
        of_params = {
            name: jax.device_put(p, shardings[1][0].mu["bias"]) for name, p in params.items()
        }
        split = trained(alone, 4, jax.jit(alone.init)(of_params))
    chex.assert_trees_all_equal(jax.device_get(split), jax.device_get(trained(alone)))


def test_no_group_is_divided():
    """Where the parts of the last axis are no multiples of a group, another axis is split."""
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    tx = adamx.scale_by_adam(moments="8bit")
    params = {"even": jnp.ones((64, 200)), "odd": jnp.ones((63, 200)), "last": jnp.ones((63, 256))}
    state = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    specs = {name: tuple(state.nu[name].codes.spec) for name in params}
    assert specs == {"even": ("data",), "odd": (), "last": (None, "data")}
    assert {tuple(x.scales.spec) for x in state.nu.values()} >= {("data", None), (None, "data")}


@pytest.mark.parametrize("devices", [2, 1])
def test_orbax_restores_on_fewer_devices(devices, tmp_path):
    """A state saved on 8 devices, with the same bits on 2 and on 1; and it continues as there."""
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    mesh = jax.make_mesh((8,), ("data",))
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=TX)
    replicated = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    start = jax.jit(TX.init, out_shardings=shardings)(params)
    saved = trained(TX, 4, start, out_shardings=(replicated, shardings))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", saved)
        checkpointer.wait_until_finished()
        fewer = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(TX.init, params),
            adamx.zero_sharding(params, fewer, "data", transformation=TX),
        )
        restored = checkpointer.restore(tmp_path / "state", like)
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(saved))
    expected = jax.device_get(trained(TX, 2, jax.device_get(saved), 4))
    found = jax.device_get(trained(TX, 2, restored, 4))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if ours.dtype in (np.int8, np.uint8):
            # A gradient that differs in the last place may be rounded to the other level.
            assert np.mean(ours != theirs) < 1e-3
        else:
            np.testing.assert_allclose(
                np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=2**-7
            )
    np.testing.assert_allclose(found[1][0].mu["bias"], expected[1][0].mu["bias"], rtol=1e-6)


def test_in_flax_nnx():
    """In an `nnx.Optimizer`, whose boxes the arrays keep, and in its pure state."""

    class Model(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((64, 128)))
            self.bias = nnx.Param(jnp.ones(3))

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return jnp.sum((model.kernel[...] - 0.5) ** 2) + jnp.sum(model.bias[...] ** 2)

        optimizer.update(model, nnx.grad(loss)(model))

    model = Model()
    optimizer = nnx.Optimizer(model, adamx.adam(1e-2, moments="8bit"), wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer)
    arrays = adamx.to_numpy(optimizer.opt_state)
    assert {name: x.shape for name, x in arrays.items()} == {
        "count": (),
        "mu/bias": (3,),
        "mu/kernel": (64, 128),
        "nu/bias": (3,),
        "nu/kernel": (64, 128),
    }
    chex.assert_trees_all_equal(arrays, adamx.to_numpy(nnx.state(optimizer)))
    before = jax.tree.leaves(optimizer.opt_state)
    optimizer.opt_state = adamx.from_numpy(optimizer.opt_state, arrays)
    chex.assert_trees_all_equal(jax.tree.leaves(optimizer.opt_state), before)
    step(model, optimizer)
    np.testing.assert_allclose(model.kernel[...], 1 - 4e-2, rtol=1e-3)
