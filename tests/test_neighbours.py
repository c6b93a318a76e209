"""The real packages that users put around Adam."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import adamx

PROMOTES = True  # the neighbours do

X = jnp.asarray(np.random.default_rng(0).standard_normal((32, 4)), jnp.float32)
Y = jnp.sin(X @ jnp.array([1.0, -2.0, 0.5, 0.0]))[:, None]


def parameters():
    return {"kernel": jnp.full((4, 1), 0.1, jnp.float32), "bias": jnp.zeros(1)}


def loss(params):
    return jnp.mean((X @ params["kernel"] + params["bias"] - Y) ** 2)


def train(tx, steps=20):
    params = parameters()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    assert step._cache_size() == 1
    return params, state


WRAPPERS = {
    "chain": lambda adam: optax.chain(optax.clip_by_global_norm(0.1), adam(1e-2), optax.ema(0.9)),
    "MultiSteps": lambda adam: optax.MultiSteps(adam(1e-2), 4).gradient_transformation(),
    "masked": lambda adam: optax.masked(adam(1e-2), {"kernel": True, "bias": False}),
    "partition": lambda adam: optax.partition(
        {"adam": adam(1e-2), "sgd": optax.sgd(1e-2)}, {"kernel": "adam", "bias": "sgd"}
    ),
    "apply_if_finite": lambda adam: optax.apply_if_finite(adam(1e-2), 3),
    "schedule_free": lambda adam: optax.contrib.schedule_free(adam(1e-2, b1=0.0), 1e-2, b1=0.9),
    "inject_hyperparams": lambda adam: optax.inject_hyperparams(adam)(
        optax.linear_schedule(1e-2, 0.0, 20)
    ),
    "inject_static": lambda adam: optax.inject_hyperparams(adam, static_args=("b1", "b2", "eps"))(
        1e-2
    ),
    "reduce_on_plateau": lambda adam: optax.chain(adam(1e-2), optax.contrib.reduce_on_plateau()),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_like_optax(wrapper):
    expected = train(WRAPPERS[wrapper](optax.adam))
    found = train(WRAPPERS[wrapper](adamx.adam))
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=5e-5, atol=1e-6)


@pytest.mark.slow
def test_lookahead():
    def final(adam):
        tx = optax.lookahead(adam(1e-1), sync_period=3, slow_step_size=0.5)
        params = optax.LookaheadParams.init_synced(parameters())
        state = tx.init(params)
        for _ in range(7):
            grads = jax.grad(loss)(params.fast)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    chex.assert_trees_all_close(final(adamx.adam), final(optax.adam), rtol=5e-5, atol=1e-6)


def test_learning_rate_is_set_without_recompiling():
    """And the value that is set is the one that counts."""
    tx = optax.inject_hyperparams(adamx.adam)(learning_rate=1e-2)
    params = parameters()
    state = tx.init(params)
    step = jax.jit(tx.update)
    for rate in (1e-2, 1e-3, 0.5):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = step(parameters(), state, params)
        assert optax.tree.get(state, "learning_rate") == np.float32(rate)
    assert step._cache_size() == 1
    assert abs(updates["kernel"][0, 0] + 0.5) < 1e-5  # constant gradients: the step is the rate


def test_apply_if_finite_keeps_the_state():
    tx = optax.apply_if_finite(adamx.adam(1e-2), max_consecutive_errors=2)
    params = parameters()
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    updates, after = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), state, params)
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)
    assert not any(x.any() for x in jax.tree.leaves(updates))


def test_tree_get_set_and_map_params():
    tx = adamx.adam(1e-2)
    params = parameters()
    state = tx.init(params)
    assert optax.tree.get(state, "count") == 0
    assert optax.tree.get(state, "ScaleByAdamState") is state[0]
    assert optax.tree.set(state, count=jnp.int32(5))[0].count == 5
    marked = optax.tree_utils.tree_map_params(tx, lambda _: "moment", state)
    assert marked[0].mu == marked[0].nu == {"kernel": "moment", "bias": "moment"}


def test_flax_nnx_optimizer():
    def train_nnx(adam):
        model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, adam(1e-2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            grads = nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
            optimizer.update(model, grads)

        for _ in range(10):
            step(model, optimizer)
        return nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(nnx.state(optimizer))

    chex.assert_trees_all_close(train_nnx(adamx.adam), train_nnx(optax.adam), rtol=5e-5, atol=1e-6)


def test_equinox():
    def train_equinox(adam):
        model = eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0))
        tx = adam(1e-2)
        state = tx.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, state):
            grads = eqx.filter_grad(lambda model: jnp.mean((jax.vmap(model)(X) - Y) ** 2))(model)
            updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
            return eqx.apply_updates(model, updates), state

        for _ in range(10):
            model, state = step(model, state)
        return eqx.filter((model, state), eqx.is_array)

    ours, theirs = train_equinox(adamx.adam), train_equinox(optax.adam)
    chex.assert_trees_all_close(ours, theirs, rtol=5e-5, atol=1e-6)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("saved_by", "restored_by"), [(optax, adamx), (adamx, optax)])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}])
def test_orbax_carries_a_run_over(tmp_path, saved_by, restored_by, options):
    def build(package):
        if options and package is optax:
            return optax.amsgrad(optax.linear_schedule(1e-2, 0.0, 50))
        return package.adam(optax.linear_schedule(1e-2, 0.0, 50), **options)

    params, state = train(build(saved_by), steps=5)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", {"params": params, "state": state})
    tx = build(restored_by)
    target = jax.eval_shape(lambda: {"params": parameters(), "state": tx.init(parameters())})
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "run", target)
    chex.assert_trees_all_equal(restored, {"params": params, "state": state})
    assert jax.tree.structure(restored["state"]) == jax.tree.structure(tx.init(parameters()))
    tx.update(restored["params"], restored["state"], restored["params"])
