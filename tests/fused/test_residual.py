"""Parameters with residuals in the fused step: float32 runs, and the bits of the chain."""

import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import native
from adamx.base.eight_bit import EightBit
from tests.low_precision.residual_runs import assert_same, gradients, mixed_params
from tests.low_precision.rounded_runs import apply_updates

SHAPES = {"kernel": (7, 33), "long": (33_001,), "one": (1,)}
WIDE = {"mu_dtype": "float32"}  # as with float32 parameters
# By name: how to compile a step in each form. A batch is computed in JAX's own operations.
FORMS = {"kernel": jax.jit, "plain": lambda step: jax.jit(one_of_a_batch(step))}


def one_of_a_batch(step):
    def run(*arguments):
        batch = jax.tree.map(lambda x: x[None], arguments)
        return jax.tree.map(lambda x: x[0], jax.vmap(step)(*batch))

    return run


def start(dtype):
    """Weights between 1/2 and 2 in size, so that no constant spacing is near."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.uniform(0.5, 2, shape) for name, shape in SHAPES.items()}
    return {name: jnp.asarray(x * rng.choice([-1, 1], x.shape), dtype) for name, x in drawn.items()}


def run(optimizer, params, state, form="kernel", steps=50):
    step = FORMS[form](optimizer.step)
    for t in range(steps):
        params, state = step(gradients(params, t), params, state)
    return params, state


@pytest.mark.skipif(not native.status(), reason=f"no kernel: {native.status().reason}")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernel_takes_the_step(dtype):
    optimizer, params = adamx.fused_adamw(1e-3, residual_bits=8, moments="8bit"), start(dtype)
    arguments = gradients(params), params, optimizer.init(params)
    assert native.STEP in jax.jit(optimizer.step).lower(*arguments).as_text()
    assert native.STEP not in FORMS["plain"](optimizer.step).lower(*arguments).as_text()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.1, "clip_global_norm": 1.0, **WIDE},
        {"weight_decay": 0.1, "decoupled": False, "amsgrad": True, "packed": True, **WIDE},
        {"weight_decay": 0.1, "moments": EightBit(min_size=0)},
    ],
    ids=["clipped", "packed", "coded"],
)
def test_16_bits_are_the_run_in_float32(arguments, dtype, form):
    """Bit for bit over 50 steps, weight decay included."""
    narrow = start(dtype)
    if "moments" in arguments:
        del narrow["one"]  # too small for codes: the moments would follow the parameter
    wide = optax.tree.cast(narrow, "float32")
    optimizer = adamx.fused_adam(1e-2, residual_bits=16, **arguments)
    found = run(optimizer, narrow, optimizer.init(narrow), form)
    plain = adamx.fused_adam(1e-2, **arguments)
    expected, _ = run(plain, wide, plain.init(wide), form)
    assert any(np.any(expected[name] != wide[name]) for name in narrow)
    assert_same(adamx.full_params(*found), expected)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bits_are_those_of_the_chain(bits, dtype, form):
    """Each gradient is a power of two, and alone: all know its sum with the weight exactly.

    Weights of any size, also near zero, so that float16 rounds at random with 16 bits too. Where a
    weight almost vanishes, the chain cannot return the parameter exactly, and the fused step can.
    """
    rng = np.random.default_rng(1)
    adam = {"learning_rate": 1.1e-6, "b1": 0.0, "b2": 0.0, "eps": 0.0, **WIDE}
    fused = adamx.fused_adam(**adam, residual_bits=bits, residual_key=7)
    chain = optax.chain(adamx.adam(**adam), adamx.residual_params(bits, key=7))
    normal = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    weights = {
        name: jnp.asarray(x * 2.0 ** rng.uniform(-24, 2, x.shape), jnp.float32)
        for name, x in normal.items()
    }
    weights = {"none": None, **weights}  # a leaf that the chain counts
    params = optax.tree.cast(weights, dtype)
    ours = adamx.split_params(weights, params, fused.init(params))
    first = chain.init(params)[0]  # which these decay rates make no use of
    step, update = FORMS[form](fused.step), jax.jit(chain.update)
    rounded = 0
    for _ in range(4):
        powers = {name: 2.0 ** rng.integers(-3, 3, shape) for name, shape in SHAPES.items()}
        grads = {
            name: jnp.asarray(x * rng.choice([-1, 1], x.shape), jnp.float32)
            for name, x in powers.items()
        }
        grads["none"] = None
        updates, state = update(grads, (first, ours[1][-1]), ours[0])
        theirs = apply_updates(ours[0], updates), state
        before, ours = adamx.full_params(*ours), step(grads, *ours)
        after, expected = (adamx.full_params(*pair) for pair in (ours, theirs))
        for name in SHAPES:
            exact = np.asarray(before[name]) - np.float32(1.1e-6) * np.sign(grads[name])
            usual = np.abs(exact) > 2.0**-13 * np.abs(before[name])
            assert np.mean(usual) > 0.9
            np.testing.assert_array_equal(after[name][usual], expected[name][usual])
            np.testing.assert_array_equal(ours[0][name][usual], theirs[0][name][usual])
            rounded += np.sum(after[name] != exact)
        assert ours[1][-1].count == state[-1].count
    assert bool(rounded > 1000) == (bits == 8 or dtype == "float16")


@pytest.mark.parametrize("bits", [8, 16])
def test_special_weights_are_those_of_the_plain_form(bits):
    """Infinite ones, NaN, zeros of both signs, and the largest; in whole and broken registers."""
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, -65519, 3.4e38, -3.39e38, 1e-30, 3e-8]
    weights = jnp.asarray(np.tile(np.float32(values), 7))
    for dtype in ("bfloat16", "float16"):
        optimizer = adamx.fused_adam(1e-3, residual_bits=bits, **WIDE)
        params = weights.astype(dtype)
        given = adamx.split_params(weights, params, optimizer.init(params))
        grads = jnp.asarray(np.tile(np.float32([1, -1, 0]), 26)[:77])
        found, expected = (FORMS[form](optimizer.step)(grads, *given) for form in FORMS)
        np.testing.assert_array_equal(*(np.asarray(x[0]).astype(float) for x in (found, expected)))
        # JAX 0.10.0 rounds the product of rate and direction, the kernel only its sum.
        units = [np.asarray(x[1][-1].residual, int) for x in (found, expected)]
        np.testing.assert_allclose(*units, rtol=0, atol=1)


def test_a_leaf_without_a_gradient_keeps_its_weight():
    optimizer, params = adamx.fused_adamw(1e-2, residual_bits=8), mixed_params()
    params, state = run(optimizer, params, optimizer.init(params), steps=1)
    assert state[-1].residual["norm"] is None
    grads = {**gradients(params), "dense": None}
    after, later = jax.jit(optimizer.step)(grads, params, state)
    assert_same(after["dense"], params["dense"])
    assert_same(later[-1].residual["dense"], state[-1].residual["dense"])
    assert np.any(later[-1].residual["half"] != state[-1].residual["half"])
    chex.assert_trees_all_equal_structs((after, later), (params, state))


def test_a_chain_is_continued():
    """Its weights, moments and counts: the fused step is the chain's next one."""
    params = mixed_params()
    chain = optax.chain(adamx.adam(1e-2, **WIDE), adamx.residual_params(16))
    fused = adamx.fused_adam(1e-2, residual_bits=16, **WIDE)
    theirs = run_chain(chain, params, chain.init(params), range(3))
    state = adamx.from_numpy(fused.init(params), adamx.to_numpy(theirs[1]))
    ours = adamx.split_params(adamx.full_params(*theirs), theirs[0], state)
    assert_same(ours[0], theirs[0])
    assert ours[1][-1].count == ours[1][0].count == 3
    ours = jax.jit(fused.step)(gradients(params, 3), *ours)
    theirs = run_chain(chain, *theirs, [3])
    pairs = zip(*map(jax.tree.leaves, (adamx.full_params(*p) for p in (ours, theirs))), strict=True)
    for found, expected in pairs:  # within the last place of 1; XLA divides in several ways
        np.testing.assert_allclose(found, expected, rtol=2.0**-22, atol=2.0**-26)


def run_chain(tx, params, state, steps):
    for t in steps:
        updates, state = jax.jit(tx.update)(gradients(params, t), state, params)
        params = apply_updates(params, updates)
    return params, state


def test_the_parts_are_updated_in_place():
    optimizer, params = adamx.fused_adamw(1e-2, residual_bits=8, moments="8bit"), start("bfloat16")
    state = optimizer.init(params)
    step, grads = optimizer.jit(), gradients(params)
    params, state = step(grads, params, state)
    before = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state[-1].residual))]
    params, state = step(grads, params, state)
    after = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state[-1].residual))]
    assert after == before


def test_bytes_of_the_smallest_setting():
    """2 of the parameter, 1 of its residual, 2.1875 of both moments."""
    params = jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16)
    optimizer = adamx.fused_adamw(1e-3, residual_bits=8, moments="8bit")
    kept = jax.tree.leaves((params, jax.eval_shape(optimizer.init, params)))
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in kept)
    assert total / math.prod(params.shape) == pytest.approx(5.1875, abs=1e-5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_devices_share_the_weights(kind):
    """Split over eight devices, with the bits of one."""
    optimizer = adamx.fused_adamw(1e-2, residual_bits=8, **WIDE)
    params = {"w": start("bfloat16")["long"][:32_000].reshape(160, 200)}
    expected = run(optimizer, params, optimizer.init(params), "plain", steps=3)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    with jax.set_mesh(mesh):
        spread = jax.device_put(params, jax.NamedSharding(mesh, jax.P("x")))
        state, step = jax.jit(optimizer.init)(spread), jax.jit(optimizer.step)
        for t in range(3):
            grads = jax.device_put(gradients(params, t), jax.NamedSharding(mesh, jax.P("x")))
            spread, state = step(grads, spread, state)
    assert state[-1].residual["w"].sharding.is_equivalent_to(spread["w"].sharding, 2)
    assert_same(spread, expected[0])
    assert_same(state[-1].residual, expected[1][-1].residual)


def test_derivative_by_the_learning_rate():
    params = start("bfloat16")

    def total(rate):
        optimizer = adamx.fused_adam(rate, residual_bits=8, **WIDE)
        after = optimizer.step(gradients(params), params, optimizer.init(params))
        return jnp.sum(adamx.full_params(*after)["long"])

    direction = np.sign(gradients(params)["long"])  # of a first step
    assert jax.grad(total)(1e-2) == pytest.approx(-np.sum(direction), rel=1e-2)


def test_errors():
    params = start("bfloat16")
    state = adamx.fused_adam(1e-3, residual_bits=8).init(params)
    for arguments, words in (
        ({"residual_bits": 4}, "residual_bits: expected 8 or 16, found 4"),
        ({"residual_bits": 8, "residual_key": 0.5}, "residual_key: expected an int"),
        ({"residual_key": 1}, "residual_key: expected residual_bits=8 or residual_bits=16 with"),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(words)):
            adamx.fused_adamw(1e-3, **arguments)
    sixteen, none = adamx.fused_adam(1e-3, residual_bits=16), adamx.fused_adam(1e-3)
    with pytest.raises(TypeError, match="expected int16, for a parameter of bfloat16, found int8"):
        sixteen.step(params, params, state)
    with pytest.raises(TypeError, match="the parameters have residuals: pass residual_bits"):
        none.step(params, params, state)
    with pytest.raises(TypeError, match=r"3 parts \(adam, rate, residual\).*split_params"):
        sixteen.step(params, params, none.init(params))
    with pytest.raises(TypeError, match="part residual: expected ResidualState"):
        sixteen.step(params, params, (*state[:2], optax.EmptyState()))
    wide = optax.tree.cast(params, "float32")
    with pytest.raises(ValueError, match="expected the dtypes given to init, 3 of bfloat16"):
        adamx.fused_adam(1e-3, residual_bits=8).step(wide, wide, state)
    with pytest.raises(TypeError, match="bfloat16 or float16, or of float32 and wider"):
        sixteen.init(optax.tree.cast(params, "float8_e4m3fn"))
