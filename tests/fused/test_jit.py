"""`FusedOptimizer.jit`: what it donates, and the memory that a step needs beside its arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adamx

PROMOTES = True  # Optax's parts do

EACH = pytest.mark.parametrize("packed", [False, True], ids=["separate", "packed"])
needs_kernel = pytest.mark.skipif(
    not adamx.native.status(), reason=f"no kernel: {adamx.native.status().reason}"
)
SCALARS = 4096  # bytes; all temporary memory that a step may need


def tree():
    """Two million parameters in leaves of which two have the same shape."""
    return {"a": jnp.ones((900, 1000)), "b": jnp.ones((900, 1000)), "c": jnp.ones(200_000)}


def bytes_of(*trees: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(trees))


def memory(jitted: Any, *arguments: Any) -> tuple[int, int]:
    """XLA's account of a call: bytes of results in donated memory, and of temporary memory."""
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    return analysis.alias_size_in_bytes, analysis.temp_size_in_bytes


def in_the_old_order(optimizer: adamx.FusedOptimizer):
    """The step before 0.1.0, with what its order of arguments invited to donate."""
    return jax.jit(lambda g, state, p: optimizer.step(g, p, state), donate_argnums=(1, 2))


@needs_kernel
@EACH
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_kernel_needs_no_memory(packed, clip):
    optimizer = adamx.fused_adam(1e-3, packed=packed, clip_global_norm=clip)
    params = tree()
    state = optimizer.init(params)
    donated, temporary = memory(optimizer.jit(), params, params, state)
    assert donated == bytes_of(params, state)
    assert temporary < SCALARS
    assert memory(jax.jit(optimizer.step, donate_argnums=(1, 2)), params, params, state) == (
        donated,
        temporary,
    )


@needs_kernel
def test_the_kernel_copied_all_in_the_old_order():
    """It moved parameters and moments around each other: twice the bytes of the parameters."""
    optimizer = adamx.fused_adam(1e-3)
    params = tree()
    _, temporary = memory(in_the_old_order(optimizer), params, optimizer.init(params), params)
    assert temporary >= 2 * bytes_of(params)


def on_two_devices(optimizer: adamx.FusedOptimizer):
    """A sharding; and parameters and state with it, for which there is no kernel."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    return whole, *jax.device_put((tree(), optimizer.init(tree())), whole)


def test_the_plain_form_needs_no_memory():
    """Unless it clips or has packed moments."""
    optimizer = adamx.fused_adam(1e-3)
    whole, params, state = on_two_devices(optimizer)
    for step in (optimizer.jit(), optimizer.jit(out_shardings=whole)):
        assert "custom_call" not in step.lower(params, params, state).as_text()
        donated, temporary = memory(step, params, params, state)
        assert donated == bytes_of(params, state)
        assert temporary < SCALARS
    _, temporary = memory(in_the_old_order(optimizer), params, state, params)
    assert temporary > bytes_of(params)


@EACH
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_plain_form_never_needs_more_with_donation(packed, clip):
    """XLA copies packed moments, and for clipping as much as the parameters, to update in place."""
    optimizer = adamx.fused_adam(1e-3, packed=packed, clip_global_norm=clip)
    _, params, state = on_two_devices(optimizer)
    without, temporary = memory(jax.jit(optimizer.step), params, params, state)
    assert without == 0
    donated, more = memory(optimizer.jit(), params, params, state)
    assert donated == bytes_of(params, state)
    assert more - donated <= temporary + SCALARS
    assert packed or more <= bytes_of(params) + SCALARS


@EACH
def test_what_is_donated(packed):
    """Parameters and state, given by position or by name; each array keeps its memory."""
    optimizer = adamx.fused_adam(0.1, packed=packed)
    step, grads = optimizer.jit(), tree()
    expected = jax.jit(optimizer.step)(grads, tree(), optimizer.init(tree()))
    for call in (
        lambda p, s: step(grads, p, s),
        lambda p, s: step(grads, state=s, params=p),
        lambda p, s: step(state=s, params=p, grads=grads),
        lambda p, s: optimizer.jit()(grads, p, s),
    ):
        before = params, state = tree(), optimizer.init(tree())
        pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(before)]
        after = call(params, state)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
        assert not any(x.is_deleted() for x in jax.tree.leaves((grads, after)))
        assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after)] == pointers
        jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_options():
    optimizer = adamx.fused_adam(0.1)
    params = jnp.ones(3)
    device = jax.devices()[1]
    step = optimizer.jit(out_shardings=jax.sharding.SingleDeviceSharding(device))
    arguments = jax.device_put((params, params, optimizer.init(params)), device)
    after, _ = step(*arguments)
    assert after.devices() == {device}
    for name in ("donate_argnums", "donate_argnames", "inline_everything"):
        with pytest.raises(TypeError, match=name):
            optimizer.jit(**{name: ()})


def test_once_traced():
    """However often `jit` is called."""
    traced = []

    def schedule(count):
        traced.append(count)
        return 0.1

    optimizer = adamx.fused_adam(schedule)
    params, grads = jnp.ones(3), jnp.ones(3)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = optimizer.jit()(grads, params, state)
    assert len(traced) == 1
