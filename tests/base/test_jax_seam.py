"""The seam to JAX: what is read of a lowering, and what happens where JAX changed."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamx.base import jax_seam
from adamx.base.jax_seam import Target, define_operation, is_traced


@pytest.fixture(autouse=True)
def _unwarned():
    jax_seam._warn_of_change.cache_clear()
    yield
    jax_seam._warn_of_change.cache_clear()


def double(x, *, plan):
    return [x * plan]


def abstract(x, *, plan):
    del plan
    return [x]


def operation(chosen, name="twice"):
    """An operation that notes what it was compiled for."""

    def choose(target, operands, plan):
        del operands, plan
        chosen.append(target)
        return double

    return define_operation(name, double, abstract, choose)


def test_what_an_operation_is_compiled_for():
    targets = []
    run = operation(targets)
    x = jnp.arange(8.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # so that a name lost in JAX fails here
        jax.jit(lambda x: run(x, plan=2))(x)
        mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d")))
        jax.jit(lambda x: run(x, plan=3))(split)
        jax.export.export(jax.jit(lambda x: run(x, plan=4)))(x)
        jax.jit(lambda x: run(x, plan=5)).trace(x).lower(lowering_platforms=("cuda",))
    assert targets == [
        Target("cpu", 1, is_export=False),
        Target("cpu", 2, is_export=False),
        Target("cpu", 1, is_export=True),
        Target("other", 1, is_export=False),
    ]


def test_an_operation_has_derivatives_and_vmap():
    run = operation([])
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.grad(lambda x: run(x, plan=2)[0].sum())(x), [2, 2, 2])
    np.testing.assert_array_equal(jax.vmap(lambda x: run(x, plan=2)[0])(x), 2 * x)
    np.testing.assert_array_equal(run(x, plan=3)[0], 3 * x)


@pytest.mark.parametrize(
    "context",
    [
        SimpleNamespace(axis_context=SimpleNamespace(device_count=1)),
        SimpleNamespace(axis_context=SimpleNamespace(num_devices=1)),
        SimpleNamespace(),
    ],
)
def test_a_renamed_name_is_a_warning_once(context):
    with pytest.warns(
        UserWarning,
        match=f"JAX {jax.__version__} lacks an interface that adamx's compiled kernel needs",
    ):
        target = jax_seam._target("cpu", SimpleNamespace(module_context=context))
    assert target == Target("cpu", None, is_export=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax_seam._target("cpu", SimpleNamespace(module_context=context))


@pytest.mark.parametrize(
    ("axes", "devices"),
    [
        (SimpleNamespace(mesh=None), None),
        (SimpleNamespace(num_devices=1), 1),
        (SimpleNamespace(num_devices=1, mesh=None, axis_env=None), 1),  # JAX 0.10.0
    ],
)
def test_parts_of_a_mesh_are_no_change_of_jax(axes, devices):
    context = SimpleNamespace(
        axis_context=axes, lowering_parameters=SimpleNamespace(for_export=False)
    )
    target = jax_seam._target("cpu", SimpleNamespace(module_context=context))
    assert target == Target("cpu", devices, is_export=False)


def test_without_primitives_the_plain_form_is_left(monkeypatch):
    monkeypatch.setattr(jax_seam, "Primitive", None)
    run = operation([])
    with pytest.warns(UserWarning, match="lacks an interface that adamx's compiled kernel needs"):
        np.testing.assert_array_equal(run(jnp.ones(2), plan=3)[0], [3, 3])


def test_is_traced():
    seen = []
    jax.jit(lambda x: seen.append(is_traced(x)) or x)(1.0)
    assert seen == [True]
    assert not is_traced(jnp.ones(2))
    assert not is_traced(1.0)


def test_a_weak_type_is_stripped_and_nothing_else_is_touched():
    weak, strong = jnp.asarray(0.5), jnp.asarray(0.5, jnp.float32)
    assert weak.weak_type
    stripped = jax_seam.strip_weak_type(weak)
    assert (stripped.weak_type, stripped.dtype, float(stripped)) == (False, jnp.float32, 0.5)
    assert jax_seam.strip_weak_type(strong) is strong
