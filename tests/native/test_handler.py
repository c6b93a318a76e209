"""What the kernel's handlers take from XLA, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx import native

pytestmark = pytest.mark.skipif(not native.status(), reason=f"no kernel: {native.status().reason}")

F32 = jnp.float32
NUMBERS = jnp.array([0.9, 0.1, 0.999, 0.001, 1e-8, 0.0, 0.1, 0.001, -1e-3, 0.0, 0.0], F32)
ONE = jnp.ones((), F32)
ATTRIBUTES = {
    "eps_beside_corrected": np.bool_(True),
    "maximum_of_corrected": np.bool_(True),
    "amsgrad": np.bool_(False),
    "decoupled": np.bool_(True),
    "clip": np.bool_(False),
    "mu_buffers": np.int64(1),
    "nu_buffers": np.int64(1),
    "table": np.array([0, 0, 0, 0, 0, 0, 0], np.int64),
}
NO_KEYS = jnp.zeros((0, 2), jnp.uint32)


def call(operands, aliases=None, **changed):
    """The handler with these operands after the coefficients; all but the gradients come back."""
    assert native.is_registered()
    attributes = ATTRIBUTES | changed
    aliases = aliases or {4: 0, 5: 1, 7: 2}
    results = [jax.ShapeDtypeStruct(operands[i].shape, operands[i].dtype) for i in aliases]
    target = jax.ffi.ffi_call(native.STEP, results, input_output_aliases=aliases)
    return jax.block_until_ready(jax.jit(lambda *x: target(*x, **attributes))(*operands))


def operands(numbers=NUMBERS, wide=None, norm=ONE, sizes=(4, 4, 4, 4), dtypes=(F32,) * 4):
    wide = jnp.zeros(0, F32) if wide is None else wide
    return [
        numbers,
        wide,
        norm,
        NO_KEYS,
        *(jnp.ones(n, d) for n, d in zip(sizes, dtypes, strict=True)),
    ]


def test_handler_takes_what_is_right():
    mu, nu, p = call(operands())
    np.testing.assert_allclose(mu, 1.0)
    np.testing.assert_allclose(nu, 1.0)
    np.testing.assert_allclose(p, 1 - 1e-3 * (1 / 0.1) / np.sqrt(1 / 0.001), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        ({"numbers": NUMBERS[:-1]}, {}, "expected the scalars as float32"),
        ({"numbers": NUMBERS.astype("bfloat16")}, {}, "expected the scalars as float32"),
        ({"wide": NUMBERS}, {}, "expected the scalars as float64"),
        ({"norm": jnp.ones(2)}, {}, "expected a norm"),
        ({"norm": jnp.int32(1)}, {}, "expected a norm"),
        ({"sizes": (4, 4, 3, 4)}, {}, "a gradient and its parameter differ in size"),
        ({"sizes": (3, 4, 4, 4)}, {}, "the moments of a leaf do not fit their buffer"),
        ({"sizes": (4, 3, 4, 4)}, {}, "the moments of a leaf do not fit their buffer"),
        ({"dtypes": (F32, F32, jnp.int32, F32)}, {}, "argument 6 has a dtype"),
        ({"dtypes": (F32, F32, F32, jnp.uint16)}, {}, "argument 7 has a dtype"),
        ({"dtypes": (jnp.int8, F32, F32, F32)}, {}, "a moment is not of a floating-point dtype"),
        ({"dtypes": (F32, jnp.uint8, F32, F32)}, {}, "a moment is not of a floating-point dtype"),
        ({"dtypes": (F32, F32, jnp.uint32, F32)}, {}, "a parameter is not of a floating-point"),
        ({}, {"amsgrad": np.bool_(True)}, "expected 9 arguments, found 8"),
        ({}, {"mu_buffers": np.int64(2)}, "expected 9 arguments, found 8"),
        ({}, {"nu_buffers": np.int64(-1)}, "expected other numbers of buffers"),
        ({}, {"mu_buffers": np.int64(2**62)}, "expected other numbers of buffers"),
        ({}, {"table": np.zeros(5, np.int64)}, "a broken row"),
        ({}, {"table": np.zeros(0, np.int64)}, "expected 6 arguments, found 8"),
        ({}, {"table": np.array([1, 0, 0, 0, 0, 0, 0])}, "a buffer of moments that is not there"),
        ({}, {"table": np.array([0, 0, -1, 0, 0, 0, 0])}, "a buffer of moments that is not there"),
        ({}, {"table": np.array([0, 1, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, -1, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 2**62, 0, 0, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 0, 0, 2**63 - 1, 0, 0, 0])}, "do not fit their buffer"),
        ({}, {"table": np.array([0, 0, 0, 0, 0, 0, 8])}, "expected 9 arguments, found 8"),
    ],
)
def test_handler_refuses(given, changed, message):
    with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*adamx: .*{message}"):
        call(operands(**given), **changed)


CODES = {
    "keys": jnp.ones((1, 2), jnp.uint32),
    "mu": jnp.zeros((2, 40), jnp.int8),
    "nu": jnp.zeros((2, 40), jnp.uint8),
    "mu_scales": jnp.zeros((2, 2), jnp.bfloat16),
    "nu_scales": jnp.zeros((2, 2), jnp.uint32),
    "g": jnp.ones((2, 40)),
    "p": jnp.ones((2, 40)),
}


def call_with_codes(group=32, element=0, **changed):
    """A step of one leaf with moments in 8 bits, with these operands or attributes changed."""
    arrays = CODES | {name: x for name, x in changed.items() if name in CODES}
    others = {name: x for name, x in changed.items() if name not in CODES}
    given = [NUMBERS, jnp.zeros(0, F32), ONE, *arrays.values()]
    others["table"] = np.array([0, element, 0, element, 0, group, 0], np.int64)
    return call(given, {4: 0, 5: 1, 6: 2, 7: 3, 9: 4}, **others)


def test_handler_takes_codes():
    """After a first step all moments of a group are alike, and p has moved by the rate."""
    mu, nu, mu_scales, nu_scales, p = call_with_codes()
    assert np.all(mu >= 126)
    assert np.all((nu == 2) | (nu == 3))  # levels begin at 0.995 of r, which is 1.13 of them above
    np.testing.assert_array_equal(nu_scales & 15, 15)
    lowest = np.asarray(nu_scales & ~np.uint32(15)).view(np.float32)
    np.testing.assert_allclose(lowest, np.sqrt(0.001) * 0.995, rtol=1e-5)
    np.testing.assert_allclose(mu_scales.astype(F32), 0.1 / np.sqrt(0.001), rtol=2**-7)
    np.testing.assert_allclose(p, 1 - 1e-3 * (0.1 / 0.1) / np.sqrt(0.001 / 0.001), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": 0}, "expected 8 arguments, found 10"),
        *(({"group": group}, "do not fit") for group in (-1, 16, 64, 2000, 2**62, -(2**63))),
        ({"element": 1}, "the moments of a leaf do not fit their buffer"),
        ({"mu": CODES["nu"]}, "do not fit their scales or their dtypes"),
        ({"nu": CODES["mu"]}, "do not fit their scales or their dtypes"),
        ({"mu": CODES["g"]}, "do not fit their scales or their dtypes"),
        ({"mu_scales": jnp.zeros((2, 2), F32)}, "do not fit their scales or their dtypes"),
        ({"mu_scales": jnp.zeros((2, 2), jnp.float16)}, "do not fit their scales or their dtypes"),
        ({"nu_scales": jnp.zeros((2, 2), F32)}, "do not fit their scales or their dtypes"),
        ({"nu_scales": jnp.zeros((2, 2), jnp.int32)}, "argument 7 has a dtype"),
        ({"mu_scales": jnp.zeros((2, 1), jnp.bfloat16)}, "do not fit their scales"),
        ({"nu_scales": jnp.zeros((2, 3), jnp.uint32)}, "do not fit their scales"),
        ({"mu": jnp.zeros(80, jnp.int8)}, "do not fit their scales"),
        ({"nu": jnp.zeros((4, 20), jnp.uint8)}, "do not fit their scales"),
        ({"mu": jnp.zeros((3, 40), jnp.int8)}, "do not fit their scales"),
        ({"mu": jnp.zeros((1, 40), jnp.int8)}, "the moments of a leaf do not fit their buffer"),
        ({"g": CODES["mu"]}, "a gradient or a parameter is not of a floating-point dtype"),
        ({"p": CODES["nu"]}, "a gradient or a parameter is not of a floating-point dtype"),
        ({"keys": NO_KEYS}, "expected a key of two uint32 for each leaf"),
        ({"keys": jnp.ones((1, 1), jnp.uint32)}, "expected a key of two uint32 for each leaf"),
        ({"keys": jnp.ones((1, 2), F32)}, "expected a key of two uint32 for each leaf"),
        ({"amsgrad": np.bool_(True)}, "expected 11 arguments, found 10"),
    ],
)
def test_handler_refuses_codes(changed, message):
    with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*adamx: .*{message}"):
        call_with_codes(**changed)


def test_handler_refuses_codes_with_amsgrad_or_float64():
    arrays = [*CODES.values()]
    given = [NUMBERS, jnp.zeros(0, F32), ONE, *arrays[:3], arrays[2], *arrays[3:]]
    aliases = {4: 0, 5: 1, 6: 2, 7: 3, 8: 4, 10: 5}
    table = np.array([0, 0, 0, 0, 0, 32, 0], np.int64)
    with pytest.raises(Exception, match="do not fit their scales or their dtypes"):
        call(given, aliases, amsgrad=np.bool_(True), table=table)
    with jax.enable_x64(True), pytest.raises(Exception, match="do not fit their scales"):
        call_with_codes(p=jnp.ones((2, 40), jnp.float64))


@pytest.mark.parametrize(
    ("p", "residual", "bits"),
    [
        (jnp.ones(4), jnp.zeros(4, jnp.int8), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(4, jnp.int16), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(3, jnp.int8), 8),
        (jnp.ones(4, jnp.bfloat16), jnp.zeros(4, jnp.int8), 4),
    ],
)
def test_handler_refuses_residuals_that_do_not_fit(p, residual, bits):
    numbers, wide, norm, _, mu, nu, g, _ = operands()
    table = np.array([0, 0, 0, 0, 0, 0, bits])
    given = [numbers, wide, norm, jnp.zeros((1, 2), jnp.uint32), mu, nu, residual, g, p]
    aliases = {4: 0, 5: 1, 6: 2, 8: 3}
    with pytest.raises(Exception, match="adamx: a residual does not fit its parameter"):
        call(given, aliases, table=table)
    with pytest.raises(Exception, match="adamx: expected a key of two uint32 for each leaf"):
        call([*given[:3], NO_KEYS, *given[4:]], aliases, table=table)


def test_handler_refuses_results_elsewhere():
    with pytest.raises(Exception, match="expected 3 results, found 2"):
        call(operands(), aliases={4: 0, 5: 1})
    results = [jax.ShapeDtypeStruct((4,), F32)] * 3
    target = jax.ffi.ffi_call(native.STEP, results)
    with pytest.raises(Exception, match="result 0 does not lie in its argument's memory"):
        jax.block_until_ready(jax.jit(lambda *x: target(*x, **ATTRIBUTES))(*operands()))


def test_handler_of_the_norm():
    assert native.is_registered()

    def norm(result, *grads):
        return jax.jit(jax.ffi.ffi_call(native.NORM, result))(*grads)

    scalar = jax.ShapeDtypeStruct((), F32)
    grads = jnp.full(3, 2.0), jnp.full((2, 2), 1.0, jnp.bfloat16), jnp.zeros(0)
    assert norm(scalar, *grads) == 4
    assert norm(scalar) == 0
    for result, given, message in (
        (jax.ShapeDtypeStruct((2,), F32), grads, "expected a scalar as result"),
        (jax.ShapeDtypeStruct((), jnp.int32), grads, "a result of float32 or float64"),
        (scalar, (jnp.arange(3),), "argument 0 has a dtype"),
        (scalar, (jnp.ones(3, jnp.int8),), "a gradient is not of a floating-point dtype"),
    ):
        with pytest.raises(Exception, match=f"INVALID_ARGUMENT.*adamx: .*{message}"):
            jax.block_until_ready(norm(result, *given))


def test_handler_refuses_float64_without_its_scalars():
    with jax.enable_x64(True), pytest.raises(Exception, match="scalars as float64 beside"):
        call(operands(dtypes=(F32, F32, F32, jnp.float64)))
