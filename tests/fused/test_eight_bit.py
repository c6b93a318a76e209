"""Moments in 8 bits in the fused step: the codes of the chain, bit for bit."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import native
from adamx.fused import cpu
from tests.fused.fused_runs import units

needs_kernel = pytest.mark.skipif(
    not native.status(), reason=f"no kernel: {native.status().reason}"
)

PARAMS = {"kernel": (64, 100), "bias": (3,), "wide": (128, 64)}

# By name: arguments of the fused step, and the chain that computes the same.
FORMS = {
    "adam": (adamx.fused_adam(1e-2, moments="8bit"), adamx.adam(1e-2, moments="8bit")),
    "adamw": (
        adamx.fused_adamw(1e-2, weight_decay=0.1, moments="8bit", clip_global_norm=1.0),
        optax.chain(
            optax.clip_by_global_norm(1.0), adamx.adamw(1e-2, weight_decay=0.1, moments="8bit")
        ),
    ),
    "nesterov": (
        adamx.fused_adam(1e-2, nesterov=True, moments="8bit"),
        adamx.adam(1e-2, nesterov=True, moments="8bit"),
    ),
    "keras": (
        adamx.fused_adam(optax.linear_schedule(1e-2, 0, 9), convention="keras", moments="8bit"),
        adamx.adam(optax.linear_schedule(1e-2, 0, 9), convention="keras", moments="8bit"),
    ),
    "coupled": (
        adamx.fused_adam(1e-2, weight_decay=0.1, decoupled=False, moments="8bit"),
        optax.chain(optax.add_decayed_weights(0.1), adamx.adam(1e-2, moments="8bit")),
    ),
}


def gradients(step):
    keys = jax.random.split(jax.random.key(step), len(PARAMS))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, PARAMS.items(), strict=True)
    }


def codes_of(state):
    found = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, adamx.EightBitMoment))
    return [x for x in found if isinstance(x, adamx.EightBitMoment)]


@pytest.mark.parametrize("name", FORMS)
def test_the_step_has_the_codes_of_the_chain(name):
    """And parameters within two units in the last place of 1, where codes have been the same."""
    fused, chain = FORMS[name]
    ours = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    theirs = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state, chained = fused.init(ours), chain.init(theirs)
    step, update = fused.jit(), jax.jit(chain.update)
    for i in range(6):
        grads = gradients(i) if name != "coupled" else gradients(0)
        ours, state = step(grads, ours, state)
        updates, chained = update(grads, chained, theirs)
        theirs = optax.apply_updates(theirs, updates)
    assert len(codes_of(state)) == 4
    if name in ("adamw", "coupled"):
        # Gradients differ in their last places, by the norm and by parameters: codes hardly do.
        for found, expected in zip(codes_of(state), codes_of(chained), strict=True):
            differ = np.asarray(found.codes, int) - np.asarray(expected.codes, int)
            assert np.mean(differ != 0) < 0.001
    else:
        chex.assert_trees_all_equal(codes_of(state), codes_of(chained))
    for key in PARAMS:
        far = np.abs(np.asarray(ours[key], np.float64) - theirs[key]) > 2.5e-7
        assert np.mean(far) <= (0.001 if name in ("adamw", "coupled") else 0)
        np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=2e-4)  # a level of 1e-2


# ---- The kernel beside the form in JAX's own operations ------------------------------------------


class Forms:
    """One fused optimizer in both forms; that of JAX's own operations is the one of `vmap`."""

    def __init__(self, fused, params):
        self.step, self.other = jax.jit(fused.step), jax.jit(jax.vmap(fused.step))
        self.params, self.state = params, fused.init(params)

    def compare(self, grads, apart=0):
        """A step in both, with the same codes and scales, and nearly the same parameters.

        `apart` is how far scales may be apart; then codes of one in a thousand may be, too.
        """
        given = grads, self.params, self.state
        stacked = jax.tree.map(lambda x: x[None], given)
        others, state = jax.tree.map(lambda x: x[0], self.other(*stacked))
        before = [np.abs(np.asarray(p, np.float64)) for p in self.params]
        self.params, self.state = self.step(*given)
        for x, y in zip(codes_of(self.state), codes_of(state), strict=True):
            assert np.mean(x.codes != y.codes) <= (0.001 if apart else 0)
            if x.scales.dtype == jnp.uint32:
                scales = np.asarray(x.scales, np.int64), np.asarray(y.scales, np.int64)
                np.testing.assert_allclose(*scales, rtol=0, atol=apart)
            else:
                np.testing.assert_array_equal(x.scales, y.scales)
        # Most of the steps are larger than the parameters of this size. Measured: 5.
        assert max(map(units, self.params, others, before)) <= 6


def tree_of(shapes, seed, dtype="float32"):
    """An array for each shape, whose numbers differ in size by some powers of e."""
    r = np.random.default_rng(seed)
    arrays = [np.exp(r.standard_normal(x)) * r.standard_normal(x) for x in shapes]
    return [jnp.asarray(x, dtype) for x in arrays]


@needs_kernel
@pytest.mark.sampled(2)
@pytest.mark.parametrize("group", [8, 16, 64, 256, 1024])
def test_groups_of_all_sizes(group):
    """And last axes that are no multiple of them."""
    shapes = [(2, 2, 3 * group - 1), (3, group + 1)]
    fused = adamx.fused_adam(1e-2, moments=adamx.EightBit(group=group, min_size=0))
    forms = Forms(fused, tree_of(shapes, 0))
    assert len(codes_of(forms.state)) == 4
    given = tree_of(shapes, 1), forms.params, forms.state
    assert "@adamx_step" in forms.step.lower(*given).as_text()
    stacked = jax.tree.map(lambda x: x[None], given)
    assert "@adamx_step" not in forms.other.lower(*stacked).as_text()
    for i in range(1, 5):
        forms.compare(tree_of(shapes, i))


@needs_kernel
@pytest.mark.parametrize(
    "numbers",
    [
        {"eps_root": 1e-3},
        {"eps": 0.0},
        {"eps": 0.1, "convention": "keras"},
        {"b1": 0.2, "b2": 0.4},
        {"b1": 0.0, "b2": 0.3, "convention": "torch"},
        {"b1": 0.99, "b2": 0.99999},
    ],
    ids=str,
)
def test_hyperparameters_in_both_forms(numbers):
    """With a b2 below one half the forms round the second moment in different places."""
    fused = adamx.fused_adamw(1e-2, weight_decay=0.1, moments="8bit", **numbers)
    forms = Forms(fused, tree_of([(64, 100)], 0))
    for i in range(1, 7):
        forms.compare(tree_of([(64, 100)], i), apart=16 if numbers.get("b2", 1) < 0.5 else 0)


@needs_kernel
@pytest.mark.parametrize(
    ("p_dtype", "g_dtype"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")],
)
def test_narrow_dtypes_in_both_forms(p_dtype, g_dtype):
    forms = Forms(adamx.fused_adam(1e-2, moments="8bit"), tree_of([(64, 100)], 0, p_dtype))
    for i in range(1, 5):
        forms.compare(tree_of([(64, 100)], i, g_dtype))


@needs_kernel
@pytest.mark.parametrize("b", [(0.9, 0.999), (0.2, 0.4)], ids=str)
def test_lost_elements_in_both_forms(b):
    """NaN and infinity in gradients are coded alike, and stay where they are."""
    forms = Forms(adamx.fused_adam(1e-2, *b, moments="8bit"), tree_of([(64, 100)], 0))
    for i in range(1, 6):
        [g] = tree_of([(64, 100)], i)
        for k, number in enumerate((np.nan, np.inf, -np.inf)):
            if i < 4:
                g = g.at[7 * i + k, 5 * k : 5 * k + 3].set(number)
        forms.compare([g], apart=16 if b[1] < 0.5 else 0)
    codes = np.asarray(forms.state[0].nu[0].codes)
    assert np.sum(codes == 255) == 27
    np.testing.assert_array_equal(np.isnan(forms.params[0]), codes == 255)


@needs_kernel
def test_sizes_of_gradients_in_both_forms():
    """Beside ones of other sizes in the same group, and zeros."""
    fused = adamx.fused_adam(1e-2, eps=0.0, moments="8bit")
    forms = Forms(fused, tree_of([(64, 100)], 0))
    for size in (1e-38, 1e-30, 1e-20, 1e20, 1e30, 1e38):
        forms.state = fused.init(forms.params)
        for i in range(1, 5):
            [g] = tree_of([(64, 100)], i)
            forms.compare([g.at[:, ::3].multiply(size).at[:, ::7].set(0)])


@needs_kernel
def test_a_long_time_without_gradients():
    """Until m and then v has decayed to 0."""
    fused = adamx.fused_adam(1e-2, b1=0.3, b2=0.5, moments="8bit")
    forms = Forms(fused, tree_of([(64, 64)], 0))
    forms.compare(tree_of([(64, 64)], 1))
    for i in range(260):
        assert i > 200 or all(np.any(x.scales) for x in forms.state[0].nu)
        forms.compare([jnp.zeros((64, 64))])
    assert not any(np.any(x.codes) or np.any(x.scales) for x in codes_of(forms.state))


@needs_kernel
def test_trees_of_several_calls(monkeypatch):
    """A call has at most so many leaves; those with codes find their scales and keys in each."""
    shapes = [(64, 64), (5,), (1, 4096), (3,), (4096,), (64, 65), (7,), (65, 64)]
    fused = adamx.fused_adamw(1e-2, moments="8bit", clip_global_norm=1.0)
    params, grads = tree_of(shapes, 0), tree_of(shapes, 1)
    grads[4] = None  # frozen
    expected = jax.jit(fused.step)(grads, params, fused.init(params))
    monkeypatch.setattr(cpu, "_LEAVES_OF_A_CALL", 3)
    step = jax.jit(lambda *args: fused.step(*args))
    assert step.lower(grads, params, fused.init(params)).as_text().count("@adamx_step") == 3
    chex.assert_trees_all_equal(step(grads, params, fused.init(params)), expected)


def test_a_leaf_without_a_gradient_is_left_alone():
    fused = adamx.fused_adamw(1e-2, moments="8bit")
    params = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state = fused.init(params)
    params, state = fused.step(gradients(0), params, state)
    after, later = fused.step({**gradients(1), "kernel": None}, params, state)
    chex.assert_trees_all_equal(after["kernel"], params["kernel"])
    chex.assert_trees_all_equal(later[0].mu["kernel"], state[0].mu["kernel"])
    assert np.any(later[0].mu["wide"].codes != state[0].mu["wide"].codes)


def test_low_precision_parameters():
    """Of bfloat16 parameters and gradients, moments in 8 bits: computed in float32."""
    fused = adamx.fused_adam(1e-2, moments="8bit")
    params = jnp.ones((64, 64), jnp.bfloat16)
    grads = jax.random.normal(jax.random.key(0), (64, 64), jnp.bfloat16)
    after, state = fused.jit()(grads, jnp.copy(params), fused.init(params))
    assert after.dtype == jnp.bfloat16
    direction, other = adamx.scale_by_adam(moments="8bit").update(grads, fused.init(params)[0])
    chex.assert_trees_all_equal(state[0], other)
    expected = 1 - 1e-2 * np.asarray(direction, np.float64)
    np.testing.assert_allclose(np.asarray(after, np.float64), expected, rtol=2**-8)


def test_a_state_in_8_bits_needs_the_argument():
    params = {key: jnp.ones(shape) for key, shape in PARAMS.items()}
    state = adamx.fused_adam(1e-2, moments="8bit").init(params)
    with pytest.raises(TypeError, match=re.escape('pass moments="8bit" to continue in 8 bits')):
        adamx.fused_adam(1e-2).step(gradients(0), params, state)
    with pytest.raises((TypeError, ValueError), match="8 bits"):
        adamx.pack(state, params)


def test_double_precision_parameters_keep_theirs():
    """If a state was converted for them: moments are rounded, parameters are not."""
    with jax.enable_x64(True):
        params = jnp.full((64, 64), 1 + 1e-12)
        plain, coded = (
            adamx.fused_adam(0.0, mu_dtype="float32"),
            adamx.fused_adam(0.0, moments="8bit"),
        )
        state = adamx.quantize_moments(plain.init(params))
        assert len(codes_of(state)) == 2
        after, _ = jax.jit(coded.step)(jnp.ones_like(params), params, state)
        assert after.dtype == np.float64
        np.testing.assert_array_equal(after, params)
