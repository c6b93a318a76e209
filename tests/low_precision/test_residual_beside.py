"""Residuals in Orbax, in Flax, in functions of Optax, and in checkpoints."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamx
from adamx.checkpoint import Checkpoint
from tests.low_precision.residual_runs import ADAMW, CODED, assert_same, mixed_params, train
from tests.low_precision.rounded_runs import make_step

PROMOTES = True  # Optax and Flax add float32 to bfloat16


@pytest.mark.slow
def test_orbax_saves_on_eight_devices_and_restores_on_one(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, tx = mixed_params(), optax.chain(CODED, adamx.residual_params())
    split = {"dense": {"kernel": P("data")}, "half": P("data"), "norm": P(), "scale": P()}
    params = jax.tree.map(lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), params, split)
    half = train(tx, params, tx.init(params))
    assert half[1][1].residual["half"].sharding.spec == P("data")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", half)
    expected = train(tx, *half)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    shapes = jax.eval_shape(lambda: half)
    targets = [
        jax.tree.map(lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y), shapes, s)
        for s in (jax.tree.map(lambda x: x.sharding, half), jax.tree.map(lambda _: one, shapes))
    ]
    for target in targets:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(tmp_path / "run", target)
        assert_same(restored, half)
        assert_same(train(tx, *restored), expected)
    with ocp.StandardCheckpointer() as checkpointer:  # without a target: mappings
        params, state = checkpointer.restore(tmp_path / "run")
    assert_same(adamx.full_params(params, state), adamx.full_params(*half))


@pytest.mark.slow
def test_an_optimizer_of_nnx_with_two_dtypes():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(8, 8, rngs=rngs, param_dtype=jnp.bfloat16)
            self.norm = nnx.LayerNorm(8, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.dense(x))

    model, tx = Model(nnx.Rngs(0)), optax.chain(ADAMW, adamx.residual_params())
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (4, 8))

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: jnp.mean(model(x)[:, :3] ** 2))(model)
        optimizer.update(model, grads)
        return nnx.to_pure_dict(grads)

    state = tx.init(params)
    for _ in range(3):
        grads = step(model, optimizer)
        params, state = jax.jit(make_step(tx))(params, state, grads)
    expected = adamx.full_params(params, state)
    boxed = nnx.state(model, nnx.Param)
    for holder in (optimizer.opt_state, nnx.state(optimizer)):
        found = adamx.full_params(boxed, holder)
        assert isinstance(found["dense"]["kernel"], nnx.Param)
        jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(found), expected)
    model_again, state_again = adamx.split_params(expected, boxed, optimizer.opt_state)
    assert_same(nnx.to_pure_dict(model_again), params)
    assert_same(*map(jax.tree.leaves, (state_again, optimizer.opt_state)))


def test_boxes_of_linen_with_two_dtypes():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {
        "kernel": nn.Partitioned(jnp.ones((8, 16), jnp.bfloat16), names=("data", None)),
        "norm": nn.Partitioned(jnp.ones(8), names=("data",)),
    }
    tx = adamx.residual_params()
    shardings = nn.get_sharding(jax.eval_shape(tx.init, params), mesh)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    assert state.residual["kernel"].value.sharding.spec == P("data", None)
    updates = jax.tree.map(lambda p: jnp.full(p.shape, 1e-4), params)
    after = jax.jit(make_step(tx))(params, state, updates)
    assert after[1].residual["norm"].value is None
    weights = adamx.full_params(*after)
    assert weights["kernel"].names == ("data", None)
    plain = nn.unbox(params)
    expected = jax.jit(make_step(tx))(plain, tx.init(plain), nn.unbox(updates))
    assert_same(nn.unbox(weights), adamx.full_params(*expected))


def test_trees_of_optax():
    """`tree_map_params` puts what belongs to a parameter in the place of its residual."""
    params, tx = mixed_params(), adamx.residual_params()
    names = jax.tree.map(lambda p: str(p.dtype), params)
    found = optax.tree_map_params(
        tx, lambda _, name: name, tx.init(params), names, is_leaf=lambda x: x is None
    )
    assert found.residual == names
    assert optax.tree_utils.tree_get(tx.init(params), "residual")["norm"] is None


@pytest.mark.slow
def test_a_checkpoint_has_the_weights_in_full(tmp_path):
    tx = optax.chain(adamx.adamw(1e-3, weight_decay=0.1), adamx.residual_params(16))
    params = {"b": jnp.linspace(0, 1, 9), "w": jnp.linspace(0.5, 1, 99, dtype=jnp.bfloat16)}
    params, state = train(tx, params, tx.init(params))
    config = adamx.AdamConfig(learning_rate=1e-3, weight_decay=0.1)
    with pytest.warns(UserWarning, match=r"residual_params keeps bits .* adamx.split_params"):
        made = Checkpoint.from_state(params, state, config, transformation=tx)
    adamx.checkpoint.save(tmp_path / "run.safetensors", made)
    loaded = adamx.checkpoint.load(tmp_path / "run.safetensors")
    weights = loaded.params_like(optax.tree.cast(params, "float32"))
    assert_same(weights, adamx.full_params(params, state))
    again = adamx.split_params(weights, params, loaded.restore(params, transformation=tx)[1])
    assert_same(again, (params, state))
    with pytest.warns(UserWarning, match="residual_params"):
        same = Checkpoint.from_state(weights, state, config, transformation=tx)
    np.testing.assert_array_equal(same.params["w"], made.params["w"])
