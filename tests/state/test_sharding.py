"""Parameters split over eight devices: the state lies where they lie, and nothing is gathered."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adamx

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((4, 2), ("data", "model"))


def sharded_params(mesh):
    specs = {
        "kernel": PartitionSpec("data", "model"),
        "bias": PartitionSpec("model"),
        "scale": PartitionSpec(),
    }
    shapes = {"kernel": (16, 8), "bias": (8,), "scale": ()}
    rng = np.random.default_rng(0)
    # Away from 0, where a step would leave nothing but its rounding.
    values = {k: np.asarray(rng.uniform(0.5, 2, s), np.float32) for k, s in shapes.items()}
    shardings = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    return jax.tree.map(jax.device_put, values, shardings), values


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True}, {"nesterov": True}, {"convention": "keras"}]
)
def test_state_is_sharded_like_the_parameters(mesh, options):
    params, values = sharded_params(mesh)
    tx = adamx.adam(1e-2, **options)
    state: Any = tx.init(params)
    for moments in state[0][1:]:
        assert jax.tree.map(lambda m: m.sharding, moments) == jax.tree.map(
            lambda p: p.sharding, params
        )

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step)
    text = jitted.lower(params, state, params).compile().as_text()
    assert not any(collective in text for collective in COLLECTIVES)
    summed = jax.jit(lambda tree: jax.tree.map(jnp.sum, tree)).lower(params).compile().as_text()
    assert any(collective in summed for collective in COLLECTIVES)  # so they are named like this

    alone = ({k: jnp.asarray(v) for k, v in values.items()},)
    alone += (tx.init(alone[0]),)
    together = (params, state)
    for _ in range(3):
        alone = jitted(*alone, alone[0])
        together = jitted(*together, together[0])
        new_params, new_state = together
        for moments in new_state[0][1:]:
            for name, moment in moments.items():
                sharding = params[name].sharding
                assert moment.sharding.is_equivalent_to(sharding, moment.ndim)
                assert new_params[name].sharding.is_equivalent_to(sharding, moment.ndim)
    for mine, other in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(mine, other, rtol=5e-7)  # fused another way: 2 roundings


def test_weights_of_a_sharded_state(mesh):
    """They come out whole, and go back to where they were."""
    params, values = sharded_params(mesh)
    tx = adamx.adam(1e-2)
    _, state = jax.jit(tx.update)(params, tx.init(params))
    arrays = adamx.to_numpy(state)
    np.testing.assert_allclose(arrays["mu/kernel"], 0.1 * values["kernel"], rtol=1e-6)
    restored = adamx.from_numpy(tx.init(params), arrays)
    for mine, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(mine, other)
    for name, param in params.items():
        assert restored[0].mu[name].sharding == param.sharding
        assert restored[0].nu[name].sharding == param.sharding
