"""What the compiler for TPUs makes of a step, read from its program; no TPU is needed for that."""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adamx

pytestmark = pytest.mark.live
PROMOTES = True  # apply_updates adds a float32 update to a bfloat16 parameter

P = PartitionSpec
SHAPES = {"first": (1024, 2048), "bias": (2048,), "last": (2048, 512)}
BATCH = 4096


# A language model of 70 billion parameters: 80 layers, stacked, and how each array is split over
# the model axis (the plan in docs/guides/many_devices.md).
LAYERS, WIDTH, HIDDEN, KEYS, WORDS = 80, 8192, 28672, 1024, 128256
COLUMNS, ROWS = P(None, None, "model"), P(None, "model")
LARGE = {
    "embed": ((WORDS, WIDTH), P("model")),
    "query": ((LAYERS, WIDTH, WIDTH), COLUMNS),
    "key": ((LAYERS, WIDTH, KEYS), COLUMNS),
    "value": ((LAYERS, WIDTH, KEYS), COLUMNS),
    "out": ((LAYERS, WIDTH, WIDTH), ROWS),
    "gate": ((LAYERS, WIDTH, HIDDEN), COLUMNS),
    "up": ((LAYERS, WIDTH, HIDDEN), COLUMNS),
    "down": ((LAYERS, HIDDEN, WIDTH), ROWS),
    "norm1": ((LAYERS, WIDTH), P()),
    "norm2": ((LAYERS, WIDTH), P()),
    "norm": ((WIDTH,), P()),
    "head": ((WIDTH, WORDS), P(None, "model")),
}


def mesh_of(name, **axes):
    """A mesh of TPUs of which nothing but the description is there."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # asks nobody which TPU this machine has
    devices = np.array(topologies.get_topology_desc(name, "tpu").devices)
    kinds = (AxisType.Auto,) * len(axes)
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes), axis_types=kinds)


def shapes_of_state(tx, params, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        shardings,
    )


def loss(params, batch):
    x = jnp.tanh(batch @ params["first"] + params["bias"][None])
    return jnp.mean((x @ params["last"]) ** 2)


def compiled_step(tx, mesh, dtype=jnp.float32):
    whole = NamedSharding(mesh, P())
    params = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for name, shape in SHAPES.items()
    }
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    state = shapes_of_state(tx, params, shardings)
    batch = jax.ShapeDtypeStruct(
        (BATCH, SHAPES["first"][0]), dtype, sharding=NamedSharding(mesh, P("data"))
    )

    def step(params, state, batch):
        grads = jax.grad(loss)(params, batch)
        if isinstance(tx, adamx.FusedOptimizer):
            return tx.step(grads, params, state)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = (jax.tree.map(lambda _: whole, params), shardings)
    jitted = jax.jit(step, out_shardings=out, donate_argnums=(0, 1))
    return jitted.lower(params, state, batch).compile()


def gathers(text):
    """The channels of the program's all-gathers; those of one channel are parts of one."""
    return set(re.findall(r" all-gather(?:-start)?\(.*?channel_id=(\d+)", text))


@pytest.mark.parametrize("make", [adamx.adam, adamx.fused_adam])
def test_gradients_are_reduce_scattered(make):
    """By the compiler itself, without `adamx.reduce_scatter`; and no moment is gathered."""
    step = compiled_step(make(1e-3), mesh_of("v5e:2x4", data=8))
    text = step.as_text()
    # A fusion that the compiler calls so stands for the reduce-scatter.
    scattered = re.findall(
        r"^%all-reduce-scatter\S* \(\S+ f32\[([\d,]+)\]\) -> f32\[([\d,]+)\]", text, re.MULTILINE
    )
    assert sorted(scattered) == [("1024,2048", "1024,256"), ("2048,512", "256,512")]
    assert len(gathers(text)) == len(SHAPES)

    whole = sum(4 * int(np.prod(shape)) for shape in SHAPES.values())
    batch = 4 * BATCH * SHAPES["first"][0] // 8
    memory = step.memory_analysis()
    # Parameters, an eighth of the two moments, and the count in a block of its own.
    assert memory.argument_size_in_bytes == batch + whole + 2 * whole // 8 + 512
    assert memory.temp_size_in_bytes < whole // 8


def test_stochastic_rounding_takes_no_pass_of_its_own():
    """In bfloat16, scattered and gathered in it too."""
    tx = optax.chain(
        adamx.adam(1e-3, mu_dtype="bfloat16", nu_dtype="bfloat16", nu_key=0),
        adamx.stochastic_round(1),
    )
    step = compiled_step(tx, mesh_of("v5e:2x4", data=8), jnp.bfloat16)
    text = step.as_text()
    [scattered] = re.findall(r"^%all-reduce-scatter\S* \(.*\) -> (.*) \{$", text, re.MULTILINE)
    assert sorted(re.findall(r"\w+\[[\d,]+\]", scattered)) == ["bf16[1024,256]", "bf16[256,512]"]
    gathered = re.findall(r"= (\w+)\[[\d,]+\]\S* all-gather", text)
    assert set(gathered) == {"bf16"}
    assert len(gathers(text)) == len(SHAPES)
    assert " while(" not in text
    # Beside the gradients' parts, an eighth, there is no room for bits or sums in float32.
    whole = sum(2 * int(np.prod(shape)) for shape in SHAPES.values())
    assert step.memory_analysis().temp_size_in_bytes < 2 * whole // 8


def test_70_billion_parameters_on_256_devices():
    """The optimizer's step of docs/guides/many_devices.md: 32 for the data by 8 for the model."""
    mesh = mesh_of("v5p:8x8x4", data=32, model=8)
    tx = adamx.adamw(1e-4, mu_dtype=jnp.bfloat16)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for name, (shape, spec) in LARGE.items()
    }
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    state = shapes_of_state(tx, params, shardings)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    out = (jax.tree.map(lambda p: p.sharding, params), shardings)
    jitted = jax.jit(step, out_shardings=out, donate_argnums=(0, 1))
    compiled = jitted.lower(params, state, params).compile()
    assert len(gathers(compiled.as_text())) == len(LARGE)

    count = sum(int(np.prod(shape)) for shape, _ in LARGE.values())
    assert count == 70_553_706_496
    norms = WIDTH * (2 * LAYERS + 1)  # not split over the model axis
    held = (count - norms) // 8 + norms
    moments = (count - norms) // 256 + norms // 32
    # Parameters and gradients of 2 bytes, moments of 2 and 4; counts and padding.
    expected = 2 * 2 * held + (2 + 4) * moments
    found = compiled.memory_analysis().argument_size_in_bytes
    assert expected <= found <= expected + 2**20
