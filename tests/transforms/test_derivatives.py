"""Derivatives through the update, at points where some gradients are exactly zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx

OPTIONS = [
    {},
    {"nesterov": True},
    {"amsgrad": True},
    {"convention": "torch", "amsgrad": True},
    {"convention": "keras"},
]
EPS = 1e-3  # so that a finite difference can be small beside it


def loss_after_two_steps(tx, x, data):
    """A loss after two steps, in which x scales the gradients and data switches them on."""

    def loss(params, target):
        return jnp.sum(0.5 * params**2 * target + x * params * target)

    params = jnp.zeros_like(x)
    state = tx.init(params)
    for target in data:
        grads = jax.grad(loss)(params, target)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jnp.sum(jnp.sin(params + jnp.arange(x.size, dtype=x.dtype)))


def central_differences(function, x):
    """The gradient of `function` at `x`. At 0 the update bends as |g| / eps does: small steps."""
    function = jax.jit(function)
    steps = np.diag(np.where(x == 0, 1e-10, 1e-5))
    return [(function(x + h) - function(x - h)) / (2 * h.sum()) for h in steps]


# Gradients are zero: in both steps (x = 0), in the first, in the second, in neither.
X = np.array([0.0, 0.7, -0.4, 0.3, 0.0])
DATA = np.array([[1.0, 0.0, 1.0, -0.5, 0.0], [1.0, 2.0, 0.0, 0.8, 0.0]])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_finite_differences(options):
    tx = adamx.adam(0.1, eps=EPS, eps_root=0.0, **options)
    # In float32 each operation for itself: what is left of 1 depends on how XLA fuses them.
    with jax.disable_jit():
        ours = jax.grad(lambda x: loss_after_two_steps(tx, x, jnp.asarray(DATA, "float32")))(
            jnp.asarray(X, "float32")
        )
    with jax.enable_x64(True):
        data = jnp.asarray(DATA)
        exact = central_differences(lambda x: loss_after_two_steps(tx, x, data), X)
        compiled = jax.grad(lambda x: loss_after_two_steps(tx, x, data))(jnp.asarray(X))
    np.testing.assert_allclose(ours, exact, rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(compiled, exact, rtol=2e-5, atol=1e-8)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_finite_with_default_eps(options, dtype):
    tx = adamx.adam(0.1, **options)
    data = jnp.asarray(DATA, dtype)
    gradient = jax.jit(jax.grad(lambda x: loss_after_two_steps(tx, x, data)))(jnp.asarray(X, dtype))
    assert np.all(np.isfinite(gradient))
    assert gradient[0] != 0


def test_complex_parameters():
    """At zero the direction is g / eps."""

    def direction(g):
        tx = adamx.scale_by_adam(eps=EPS)
        return tx.update(g, tx.init(jnp.zeros(1, jnp.complex64)))[0]

    _, tangent = jax.jvp(
        direction, (jnp.zeros(1, jnp.complex64),), (jnp.array([1 + 2j], jnp.complex64),)
    )
    np.testing.assert_allclose(tangent, (1 + 2j) / EPS, rtol=1e-6)


def test_optax_gives_nan_here():
    """So that the test above tests something."""
    data = jnp.asarray(DATA, "float32")
    with jax.numpy_dtype_promotion("standard"):
        gradient = jax.grad(lambda x: loss_after_two_steps(optax.adam(0.1), x, data))
        assert np.isnan(gradient(jnp.asarray(X, "float32"))).any()


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_by_hyperparameters(mode):
    """The learning rate and the betas can be learned."""

    def final(hyper):
        tx = adamx.adam(hyper[0], b1=hyper[1], b2=hyper[2])
        return loss_after_two_steps(tx, jnp.asarray(X, hyper.dtype), jnp.asarray(DATA, hyper.dtype))

    hyper = np.array([0.1, 0.8, 0.95])
    ours = jax.jit(mode(final))(jnp.asarray(hyper, "float32"))
    with jax.enable_x64(True):
        exact = central_differences(final, hyper)
    np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-8)  # 4e-5 measured


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_second_derivative_through_scan(options):
    """By the learning rate and b2, in a loop of steps that one parameter has no gradient in."""

    def final(hyper):
        tx = adamx.adam(hyper[0], b2=hyper[1], eps=EPS, **options)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params * jnp.array([1.0, 0.0], hyper.dtype), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.array([1.0, 0.5], hyper.dtype)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, 3)
        return jnp.sum(params**2)

    hyper = np.array([0.1, 0.95])
    found = [
        jax.jit(mode)(jnp.asarray(hyper, "float32"))
        for mode in (
            jax.hessian(final),
            jax.jacrev(jax.jacrev(final)),
            jax.jacfwd(jax.jacfwd(final)),
        )
    ]
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(final))
        exact = [(gradient(hyper + h) - gradient(hyper - h)) / 2e-5 for h in np.eye(2) * 1e-5]
    for hessian in found:
        np.testing.assert_allclose(hessian, exact, rtol=2e-6, atol=6e-5)  # 4.4e-5 measured


def test_second_derivative_is_finite():
    tx = adamx.adam(0.1, eps=EPS)
    hessian = jax.hessian(lambda x: loss_after_two_steps(tx, x, jnp.asarray(DATA, "float32")))
    assert np.all(np.isfinite(jax.jit(hessian)(jnp.asarray(X, "float32"))))
