"""A run whose moments are in 8 bits, and checkpoints of such moments."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamx
from adamx import AdamConfig
from adamx.base.blockwise import EightBitMoment, encode
from adamx.base.coded import Coded, decode_coded

__all__ = ["CONFIG", "EIGHT", "PARAMS", "TX", "assert_bits", "assert_rounded", "code", "run"]

# Shapes with whole groups and with a part of one, and leaves that keep float32.
PARAMS = {
    "body": {"kernel": jnp.ones((48, 100)), "stack": jnp.ones((3, 4, 64))},
    "bias": jnp.ones(3),
    "embed": jnp.ones((40, 32)),
}
EIGHT = adamx.EightBit(key=7, min_size=0, keep=["embed"])
CONFIG = AdamConfig(learning_rate=1e-2, weight_decay=0.1)
TX = adamx.adamw(1e-2, weight_decay=0.1, moments=EIGHT)


def run(optimizer, params, state, first, last):
    """The parameters and the state after steps on gradients of a normal distribution."""
    leaves, treedef = jax.tree.flatten(params)
    for i in range(first, last):
        rng = np.random.default_rng(i)
        grads = [jnp.asarray(rng.standard_normal(p.shape, np.float32)) for p in leaves]
        params, state = step_of(optimizer)(treedef.unflatten(grads), params, state)
    return params, state


@functools.cache
def step_of(optimizer):
    if isinstance(optimizer, adamx.FusedOptimizer):
        return jax.jit(optimizer.step)

    @jax.jit
    def step(grads, params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def code(checkpoint, group=8):
    """The checkpoint with the moments in 8 bits that have a last axis of at least a group."""
    fields = {"mu": dict(checkpoint.mu), "nu": dict(checkpoint.nu)}
    key = np.uint32([1, 2])
    for name, m in checkpoint.mu.items():
        if m.ndim and m.shape[-1] >= group:
            codes = _encode(jnp.asarray(m), jnp.asarray(checkpoint.nu[name]), group, key)
            coded = Coded(*(EightBitMoment(*map(np.asarray, moment)) for moment in codes))
            fields["mu"][name], fields["nu"][name] = decode_coded(coded)
    return dataclasses.replace(checkpoint, quantised=True, **fields)


_encode = jax.jit(encode, static_argnums=2)


def assert_rounded(moment, v, group):
    """Each root is a level next to that of v: they are w apart in the bits of float32.

    The last 4 bits of a scale tell w, and the others the scale; see `adamx/base/blockwise.py`.
    """
    scales = np.asarray(moment.scales)
    choice, lowest = scales.astype(int) & 15, (scales & ~np.uint32(15)).view(np.float32)
    distance = 2**23 // (4 * (4 + choice % 4) * 2 ** (choice // 4))
    like = [jnp.zeros(v.shape, jnp.int8), jnp.zeros(choice.shape, jnp.bfloat16)]
    found = decode_coded(Coded(*(EightBitMoment(*map(np.asarray, x)) for x in (like, moment))))[1]
    lowest, apart = (x.repeat(group, -1)[..., : v.shape[-1]] for x in (lowest, distance))
    roots = [np.sqrt(x, dtype=np.float32) / np.where(lowest == 0, 1, lowest) for x in (v, found)]
    bits = [np.maximum(x, 1).view(np.int32).astype(np.int64) for x in roots]
    assert np.all(abs(bits[0] - bits[1]) <= apart + 8)
    assert np.any(bits[0] != bits[1])


def assert_bits(found, expected):
    """The same trees, bit by bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
