"""The optimizer's state split over eight devices (ZeRO, stage 1), and what a step then costs."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

import adamx
from tests.state.sharded_runs import (
    DIVIDED,
    SHAPES,
    TRANSFORMATIONS,
    P,
    alone,
    batches,
    bytes_per_device,
    data_mesh,
    farthest,
    on_mesh,
    split_run,
    two_axes,
    values,
)

PROMOTES = True  # schedules of Optax do

COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)

RUNS = [
    *((name, data_mesh, AxisType.Auto) for name in TRANSFORMATIONS),
    *((name, two_axes, AxisType.Auto) for name in ("adam", "chain", "partition", "fused_amsgrad")),
    *((name, data_mesh, AxisType.Explicit) for name in ("adam", "partition", "fused_amsgrad")),
    ("adam", two_axes, AxisType.Explicit),
]
QUICK = ("adam", "partition")


@pytest.mark.parametrize(
    ("name", "make_mesh", "kind"),
    [pytest.param(*run, marks=() if run[0] in QUICK else pytest.mark.slow) for run in RUNS],
)
def test_moments_are_split_and_the_run_is_the_same(name, make_mesh, kind):
    tx, mesh = TRANSFORMATIONS[name], make_mesh(kind)
    step, params, state = split_run(tx, mesh)
    before = bytes_per_device(state)
    assert len(before) == 8
    like_params = bytes_per_device(tx.init(params))
    for device, held in before.items():
        assert held <= like_params[device] / (mesh.shape["data"] * 7.5 / 8)

    place = NamedSharding(mesh, P("data"))
    for batch in batches(5):
        params, state, _ = step(params, state, jax.device_put(batch, place))
    assert bytes_per_device(state) == before
    # The gradients' sums are in another order, which Adam magnifies where they are near zero.
    params_alone, state_alone = alone(tx, 5)
    assert farthest(params, params_alone) <= 1e-5
    assert farthest(state, state_alone) <= 3e-6
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), params, values())
    assert max(moved.values()) > 0.04


def collectives(text):
    """How often each collective is in a compiled program, with the shape that it makes."""
    found = Counter()
    for result, kind in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[[\d,]*\]", result):
            found[kind, shape] += 1
    return found


def array(shape):
    return f"f32[{','.join(map(str, shape))}]"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "kind", "scattered"),
    [
        ("adam", AxisType.Auto, False),
        ("adam", AxisType.Explicit, False),
        ("adam", AxisType.Auto, True),
        ("amsgrad", AxisType.Explicit, True),
        ("fused_amsgrad", AxisType.Auto, False),
        ("fused_amsgrad", AxisType.Explicit, True),
    ],
)
def test_gradients_are_scattered_and_parameters_gathered(name, kind, scattered):
    """Read from the compiled program; no moment is gathered, nor passed on in another way."""
    step, *_ = split_run(TRANSFORMATIONS[name], data_mesh(kind), scattered=scattered)
    found = collectives(step.as_text())
    gathered = {shape: n for (kind, shape), n in found.items() if kind == "all-gather"}
    # One gather for each parameter that is split: two or three moments of its shape have none.
    assert gathered == {array(SHAPES[name]): 1 for name in DIVIDED}
    assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    reduced = {shape for kind, shape in found if kind == "all-reduce"}
    parts = {shape: n for (kind, shape), n in found.items() if kind == "reduce-scatter"}
    if scattered:
        assert parts == {"f32[64,12]": 1, "f32[12]": 1, "f32[12,24]": 1}
        assert reduced <= {array(SHAPES["odd"]), "f32[]"}
    else:  # what XLA makes of it on CPUs; on TPUs it is a reduce-scatter
        assert not parts
        dimensions = [sorted(map(int, re.findall(r"\d+", shape[3:]))) for shape in reduced]
        assert all(sorted(SHAPES[name]) in dimensions for name in DIVIDED)


def spec_of(shape, spec=None, *, mesh=None, axis="data"):
    """The spec of the moments of a parameter of this shape that is split so."""
    mesh = mesh or jax.sharding.AbstractMesh((8, 2), ("data", "model"))
    sharding = None if spec is None else NamedSharding(mesh, spec)
    param = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    shardings = adamx.zero_sharding(
        {"w": param, "b": jax.ShapeDtypeStruct((64,), jnp.float32)},
        mesh,
        axis,
        transformation=adamx.scale_by_adam(),
    )
    assert shardings.mu == shardings.nu
    assert shardings.count.spec == P()
    return shardings.mu["w"].spec


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((16, 64), None, P(None, "data")),  # the largest
        ((64, 16), None, P("data")),
        ((32, 32), None, P("data")),  # the first of equals
        ((100, 16), None, P(None, "data")),  # the largest that 8 divides
        ((100, 15), None, P()),
        ((), None, P()),
        ((4,), None, P()),
        ((0, 8), None, P(None, "data")),
        ((0,), None, P()),
        ((3, 3, 1, 16), None, P(None, None, None, "data")),
        ((64, 16), P("model"), P("model", "data")),  # the largest is taken
        ((64, 16), P(None, "model"), P("data", "model")),
        ((64, 15), P("model"), P("model")),
        ((64,), P("model"), P("model")),
        ((64, 16), P("data"), P("data")),  # split over the axis itself
        ((16, 64), P(("data", "model")), P(("data", "model"))),
        ((64, 16), P(), P("data")),
    ],
)
def test_which_dimension_is_split(shape, spec, expected):
    assert spec_of(shape, spec) == expected


def test_several_axes_count_as_one():
    mesh = jax.sharding.AbstractMesh((2, 4, 2), ("replica", "data", "model"))
    axis = ("replica", "data")
    assert spec_of((24, 16), mesh=mesh, axis=axis) == P(axis)
    assert spec_of((12, 16), mesh=mesh, axis=axis) == P(None, axis)
    assert spec_of((24, 16), P(None, "model"), mesh=mesh, axis=axis) == P(axis, "model")


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((24, 16), P(None, "data"), P("replica", "data")),  # the axis that is free
        ((24, 16), P("replica"), P("replica", "data")),
        ((24, 15), P("replica"), P("replica")),
        ((24, 16), P(("data", "model")), P(("data", "model"), "replica")),
        ((24, 16), P("data", "replica"), P("data", "replica")),  # none is free
        ((4, 15), None, P("data")),  # 8 divides none, 4 does
        ((6, 15), None, P("replica")),
        ((4, 6), None, P("data")),  # the most parts, before the largest dimension
        ((4, 6, 8), None, P(None, None, ("replica", "data"))),
        ((3, 5), None, P()),
    ],
)
def test_axes_that_the_parameter_leaves(shape, spec, expected):
    mesh = jax.sharding.AbstractMesh((2, 4, 2), ("replica", "data", "model"))
    assert spec_of(shape, spec, mesh=mesh, axis=("replica", "data")) == expected


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host", "device", None])
@pytest.mark.parametrize("spec", [P(), P("model")])
@pytest.mark.parametrize("transformation", [None, adamx.scale_by_adam()])
def test_moments_lie_in_the_memory_of_their_parameters(kind, spec, transformation):
    mesh = two_axes()
    sharding = NamedSharding(mesh, spec, memory_kind=kind)
    params = {"w": jax.device_put(jnp.ones((8, 16)), sharding), "b": jnp.ones(8)}
    found: Any = adamx.zero_sharding(params, mesh, "data", transformation=transformation)
    for moments in [found] if transformation is None else [found.mu, found.nu]:
        assert moments["w"].memory_kind == (kind or "device")
        assert moments["b"].memory_kind == "device"
    abstract = NamedSharding(mesh.abstract_mesh, spec, memory_kind=kind)
    shapes = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=abstract)}
    assert adamx.zero_sharding(shapes, mesh.abstract_mesh, "data")["w"].memory_kind == kind


@pytest.mark.parametrize("spec", [P("data"), P(None, "model"), P()])
def test_a_mesh_with_the_devices_in_another_order(spec):
    """JAX compiles nothing for arrays on both."""
    mesh = two_axes()
    other = jax.sharding.Mesh(mesh.devices[::-1], mesh.axis_names)
    params = {"v": [jax.device_put(jnp.ones((8, 8)), NamedSharding(other, spec))]}
    order = [device.id for device in mesh.devices.flat]
    message = rf"v/0: .* the devices in the order {order}, found .*pass the mesh that the param"
    with pytest.raises(ValueError, match=re.escape(message).replace(r"\.\*", ".*")):
        adamx.zero_sharding(params, mesh, "data")
    # Only shapes and names count where there are no devices, or if all of it is moved anyway.
    again = jax.sharding.Mesh(mesh.devices.copy(), mesh.axis_names)
    for same in (other, again, mesh.abstract_mesh):
        of_same = {"v": [jax.ShapeDtypeStruct((8, 8), "f4", sharding=NamedSharding(same, spec))]}
        for meshes in (same, mesh.abstract_mesh):
            assert adamx.zero_sharding(of_same, meshes, "data")["v"][0].spec[0] == "data"


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_shardings_have_the_structure_of_the_state(name):
    tx = TRANSFORMATIONS[name]
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, values()))
    shardings = adamx.zero_sharding(shapes, data_mesh(), "data", transformation=tx)
    state = jax.eval_shape(tx.init, shapes)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    split = {
        leaf.shape
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
        if not sharding.is_fully_replicated
    }
    assert split == {SHAPES[name] for name in DIVIDED} - ({(96,)} if name == "masked" else set())


def test_trees_of_one_leaf_of_tuples_and_with_none():
    mesh, tx = data_mesh(), adamx.scale_by_adam()
    alone = adamx.zero_sharding(jnp.ones((8, 3)), mesh, "data", transformation=tx)
    assert (alone.count.spec, alone.mu.spec) == (P(), P("data"))
    params = (jnp.ones(16), None, [jnp.ones(3)])
    nested = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    assert nested.nu[0].spec == P("data")
    assert nested.nu[1] is None
    assert nested.nu[2][0].spec == P()
    assert adamx.zero_sharding({}, mesh, "data", transformation=tx).mu == {}


def test_what_belongs_to_no_parameter_is_replicated():
    """A state of eight entries beside a parameter of eight entries, and moments in other shapes."""
    params = {"w": jnp.ones(8), "v": jnp.ones((256, 128))}
    other = optax.GradientTransformation(lambda _: jnp.zeros(8), lambda u, s, _: (u, s))
    tx = optax.chain(optax.adafactor(1e-3), other, adamx.scale_by_adam())
    shardings = adamx.zero_sharding(params, data_mesh(), "data", transformation=tx)
    assert shardings[1].spec == P()
    assert shardings[2].mu["w"].spec == P("data")
    assert shardings[0][0].v_row["v"].spec == P()
    # With a tree of one leaf every path ends like its own; the key has its shape, too.
    tx = optax.chain(adamx.scale_by_adam(), adamx.stochastic_round(0))
    mesh = jax.sharding.AbstractMesh((2,), ("data",))
    alone = adamx.zero_sharding(jnp.ones(2), mesh, "data", transformation=tx)
    assert (alone[0].nu.spec, alone[1].key.spec) == (P("data"), P())
    # Nothing is there to be split: no warning.
    tx = optax.chain(optax.sgd(1e-3), adamx.stochastic_round(0))
    alone = adamx.zero_sharding(jnp.ones(2), mesh, "data", transformation=tx)
    assert alone[1].key.spec == P()


def test_a_state_is_created_split():
    """Each device makes its own part: at no time does one hold a whole moment."""
    tx, mesh = adamx.adam(1e-3), data_mesh()
    shapes = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}
    shardings = adamx.zero_sharding(shapes, mesh, "data", transformation=tx)
    compiled = jax.jit(tx.init, out_shardings=shardings).lower(shapes).compile()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes <= 2 * 4096 * 4096 * 4 / 8 + 1024
    assert memory.temp_size_in_bytes <= 1024


def test_arrays_go_out_and_come_back_split():
    tx, mesh = adamx.adam(1e-2), data_mesh()
    step, params, state = split_run(tx, mesh)
    [batch] = batches(1)
    _, state, _ = step(params, state, jax.device_put(batch, NamedSharding(mesh, P("data"))))
    params, _ = on_mesh(mesh, values())
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    template = jax.jit(tx.init, out_shardings=shardings)(params)
    restored = adamx.from_numpy(template, adamx.to_numpy(state))
    rows = zip(*map(jax.tree.leaves, (restored, state, shardings)), strict=True)
    for mine, other, sharding in rows:
        np.testing.assert_array_equal(mine, other)
        assert mine.sharding.is_equivalent_to(sharding, mine.ndim)


def test_bad_input():
    mesh, tx = data_mesh(), adamx.adam(1e-3)
    params = {"w": jnp.ones((8, 3))}
    with pytest.raises(ValueError, match=r"axis: .* axes \('data',\), found 'batch'"):
        adamx.zero_sharding(params, mesh, "batch", transformation=tx)
    with pytest.raises(ValueError, match="axis: "):
        adamx.zero_sharding(params, mesh, (), transformation=tx)
    elsewhere = {"w": jax.device_put(params["w"], NamedSharding(two_axes(), P("data")))}
    with pytest.raises(ValueError, match=r"w: expected a parameter on the mesh .*'model': 2"):
        adamx.zero_sharding(elsewhere, mesh, "data", transformation=tx)
    packed = adamx.fused_adam(1e-3, packed=True)
    with pytest.raises(ValueError, match=r"found a PackedAdamState.*use packed=False"):
        adamx.zero_sharding(params, mesh, "data", transformation=packed)
    with pytest.warns(UserWarning, match="no array of the state could be split over 'data'"):
        adamx.zero_sharding({"w": jnp.ones(7)}, mesh, "data", transformation=tx)
    # Split over another axis, and over this one not: 4 does not divide 7.
    model = NamedSharding(two_axes(), P("model"))
    other = {"w": jax.ShapeDtypeStruct((16, 7), jnp.float32, sharding=model)}
    with pytest.warns(UserWarning, match="no array of the state could be split over 'data'"):
        adamx.zero_sharding(other, two_axes(), "data", transformation=tx)
    turned = jax.make_mesh((2, 4), ("model", "data"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="w: expected a parameter on the mesh"):
        adamx.zero_sharding(other, turned, "data", transformation=tx)
    with pytest.raises(ValueError, match="structure"):
        adamx.describe_sharding(params, {"v": NamedSharding(mesh, P())})
    with pytest.raises(TypeError, match=r"shardings: w: expected a Sharding.*found P"):
        adamx.describe_sharding(params, {"w": P("data")})
