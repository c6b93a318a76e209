"""jit, vmap, grad, scan, donation: one compilation, and no copy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.dtypes import is_number

VARIANTS = [
    {},
    {"nesterov": True},
    {"amsgrad": True},
    {"convention": "torch", "amsgrad": True},
    {"convention": "keras"},
]


def problem():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32), "b": jnp.zeros(3)}
    x = jnp.asarray(rng.standard_normal((16, 4)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((16, 3)), jnp.float32)
    return params, lambda params: jnp.mean((x @ params["w"] + params["b"][None] - y) ** 2)


def make_step(tx, loss):
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", VARIANTS)
def test_jit(options):
    params, loss = problem()
    tx = adamx.adam(1e-2, **options)
    step = make_step(tx, loss)
    plain = compiled = (params, tx.init(params))
    for _ in range(5):
        plain, compiled = step(*plain), jax.jit(step)(*compiled)
    chex.assert_trees_all_close(plain, compiled, rtol=1e-6, atol=1e-7)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", VARIANTS)
def test_scan_over_1000_steps(options):
    params, loss = problem()
    tx = adamx.adam(adamx.inverse_time_decay(1e-2, 1e-3), **options)
    step = jax.jit(make_step(tx, loss))
    looped = (params, tx.init(params))
    scanned, _ = jax.lax.scan(lambda carry, _: (step(*carry), None), looped, length=1000)
    for _ in range(1000):
        looped = step(*looped)
    chex.assert_trees_all_close(looped, scanned, rtol=1e-5, atol=1e-6)
    assert loss(scanned[0]) < 0.7 * loss(params)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", VARIANTS)
def test_vmap_over_an_ensemble(options):
    """Each member has its own parameters, learning rate, b1 and count."""
    params, loss = problem()
    rates, b1s = jnp.array([1e-3, 1e-2, 1e-1]), jnp.array([0.5, 0.9, 0.99])
    members = jax.tree.map(lambda p: jnp.stack([p, 2 * p, 3 * p]), params)

    def train(rate, b1, params):
        tx = adamx.adam(rate, b1=b1, **options)
        state, step = tx.init(params), make_step(tx, loss)
        return jax.lax.fori_loop(0, 10, lambda _, carry: step(*carry), (params, state))

    together = jax.jit(jax.vmap(train))(rates, b1s, members)
    train_one = jax.jit(train)
    for i in range(3):
        alone = train_one(rates[i], b1s[i], jax.tree.map(lambda p, i=i: p[i], members))
        chex.assert_trees_all_close(
            alone, jax.tree.map(lambda x, i=i: x[i], together), rtol=1e-5, atol=1e-6
        )
    assert together[1][0].count.shape == (3,)


@pytest.mark.parametrize("options", VARIANTS)
def test_donation_reuses_the_buffers(options):
    params, loss = problem()
    tx = adamx.adam(1e-2, **options)
    state = tx.init(params)
    step = jax.jit(make_step(tx, loss), donate_argnums=(0, 1))
    params, state = step(jax.tree.map(jnp.copy, params), state)
    before = jax.tree.leaves((params, state))
    pointers = [x.unsafe_buffer_pointer() for x in before]
    after = jax.tree.leaves(step(params, state))
    assert all(x.is_deleted() for x in before)
    assert sorted(pointers) == sorted(x.unsafe_buffer_pointer() for x in after)


def test_donated_memory_is_all_that_a_step_needs():
    """Parameters and state are written in place: nothing of their size is allocated."""
    params = jnp.ones(100_000)
    tx = adamx.adam(1e-2)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    memory = jitted.lower(params, tx.init(params), params).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * params.nbytes
    assert memory.temp_size_in_bytes < params.nbytes / 10


def test_compiles_once():
    """However the count, the schedule and the hyperparameters change."""
    params, loss = problem()
    wrapped = optax.inject_hyperparams(adamx.adam)(learning_rate=1e-2)
    step = jax.jit(chex.assert_max_traces(make_step(wrapped, loss), n=1))
    state = wrapped.init(params)
    for rate in (1e-2, 1e-3, 1.0):
        for b1 in (0.9, 0.0):
            state.hyperparams["learning_rate"] = jnp.asarray(rate)
            state.hyperparams["b1"] = jnp.asarray(b1)
            params, state = step(params, state)
    assert step._cache_size() == 1


@pytest.mark.parametrize("options", VARIANTS)
def test_no_value_is_looked_at(options):
    """With every hyperparameter traced: to look at one would raise."""
    params, loss = problem()

    @jax.jit
    def step(params, hyper):
        tx = adamx.adamw(*hyper, weight_decay=hyper[0], **options)
        return make_step(tx, loss)(params, tx.init(params))

    hyper = (1e-2, 0.9, 0.999, 1e-8, 0.0)
    tx = adamx.adamw(*hyper, weight_decay=hyper[0], **options)
    expected = make_step(tx, loss)(params, tx.init(params))
    chex.assert_trees_all_close(step(params, hyper), expected, rtol=2e-6, atol=1e-7)
    for eager in map(jnp.float32, hyper):
        assert not is_number(eager)  # an array is not looked at outside of jit either


def test_init_under_eval_shape():
    params, _ = problem()
    tx = adamx.adamw(1e-2, amsgrad=True)
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), tx.init(params))


@pytest.mark.parametrize("options", VARIANTS)
def test_float32_stays_float32_in_double_precision_mode(options):
    params, _ = problem()
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        tx = adamx.adam(1e-2, **options)
        text = str(jax.make_jaxpr(tx.update)(params, tx.init(params)))
        assert "f32" in text
        assert "f64" not in text
        doubles = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        assert "f64" in str(jax.make_jaxpr(tx.update)(doubles, tx.init(doubles)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_count_stops_at_its_largest(nesterov):
    """Beyond it, as before, the bias corrections are 1."""
    last = np.iinfo(np.int32).max
    g, m, v = 0.5, 0.25, 0.125
    ahead = 0.9 * (0.9 * m + 0.1 * g) + 0.1 * g if nesterov else 0.9 * m + 0.1 * g
    expected = ahead / (np.sqrt(0.999 * v + 0.001 * g**2) + 1e-8)
    tx = adamx.scale_by_adam(nesterov=nesterov)
    fused = adamx.fused_adam(1.0, nesterov=nesterov)
    for count in (last - 2, last - 1, last):
        state = adamx.AdamState(jnp.int32(count), jnp.array(m), jnp.array(v))
        direction, after = jax.jit(tx.update)(jnp.array(g), state)
        np.testing.assert_allclose(direction, expected, rtol=1e-6)
        assert after.count == min(count + 1, last)
        params, (after, _) = jax.jit(fused.step)(
            jnp.array(g), jnp.array(0.0), (state, optax.EmptyState())
        )
        np.testing.assert_allclose(params, -expected, rtol=1e-6)
        assert after.count == min(count + 1, last)
