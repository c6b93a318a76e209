"""Which form of a step is chosen, and the reasons that are given."""

import logging

import jax
import jax.numpy as jnp
import pytest

import adamx
from adamx import native
from adamx.base.jax_seam import Target
from adamx.base.numerics import CONVENTIONS
from adamx.fused import cpu, plain, step
from adamx.fused.plan import Plan, Row

ONE_CPU = Target("cpu", 1, is_export=False)
ARRAYS = [jnp.zeros(2), jnp.zeros(2, jnp.bfloat16)]
PLAN = Plan((), 0, 0, CONVENTIONS["optax"], *[False] * 5)

needs_kernel = pytest.mark.skipif(
    not native.status(), reason=f"no kernel: {native.status().reason}"
)


@needs_kernel
def test_the_kernel_is_chosen_on_one_cpu():
    form, reasons = step.choose(ONE_CPU, ARRAYS, PLAN)
    assert (form.run, reasons) == (cpu.run, {})


@pytest.mark.parametrize(
    ("target", "arrays", "reason"),
    [
        (ONE_CPU._replace(platform="other"), ARRAYS, "not compiled for a CPU"),
        (ONE_CPU._replace(devices=2), ARRAYS, "several devices"),
        (ONE_CPU._replace(devices=None), ARRAYS, "parts of a mesh"),
        (ONE_CPU._replace(is_export=True), ARRAYS, "exported"),
        (ONE_CPU, [*ARRAYS, jnp.zeros(2, jnp.complex64)], "does not support complex64"),
        (ONE_CPU, [jnp.zeros(2, jnp.float8_e4m3fn)], "does not support float8_e4m3fn"),
    ],
)
def test_the_plain_form_is_chosen_for_a_reason(target, arrays, reason):
    form, reasons = step.choose(target, arrays, PLAN)
    assert form.run is plain.run
    assert reason in reasons["the compiled kernel"]


@pytest.mark.parametrize("field", ["nesterov", "rounds_nu_at_random"])
def test_the_plain_form_is_chosen_for_what_the_kernel_does_not_have(field):
    form, reasons = step.choose(ONE_CPU, ARRAYS, PLAN._replace(**{field: True}))
    assert form.run is plain.run
    assert "supports neither nesterov nor nu_key" in reasons["the compiled kernel"]


def test_the_plain_form_is_chosen_for_residuals_of_huge_leaves():
    """Whose random bits the kernel would repeat."""
    plan = PLAN._replace(rows=(Row(0, 0, 0, 0, decays=False, residual_bits=8),))
    huge = jax.ShapeDtypeStruct((2**16, 2**16), jnp.int8)
    form, reasons = step.choose(ONE_CPU, [*ARRAYS, huge], plan)
    assert form.run is plain.run
    assert "nor residuals of huge leaves" in reasons["the compiled kernel"]


def test_without_the_kernel_its_status_is_the_reason(monkeypatch):
    monkeypatch.setattr(native, "is_registered", lambda: False)
    monkeypatch.setattr(native, "status", lambda: native.Status(False, "turned off"))
    _, reasons = step.choose(ONE_CPU, ARRAYS, PLAN)
    assert reasons == {"the compiled kernel": "turned off"}


def test_a_compilation_tells_its_reasons(caplog):
    optimizer = adamx.fused_adam(0.1)
    params = jnp.ones(3, jnp.complex64)
    with caplog.at_level(logging.DEBUG, logger="adamx.fused"):
        jax.jit(optimizer.step)(params, params, optimizer.init(params))
    [record] = caplog.records
    assert "JAX's own operations" in record.getMessage()
    assert "does not support complex64" in record.getMessage()
