"""The optimizer's state split over eight devices (ZeRO, stage 1), and what a step then costs."""

import functools
import io
import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import adamx

PROMOTES = True  # schedules of Optax do

P = PartitionSpec
COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
WIDTH, BATCH = 64, 128

# No dimension of "odd" is divided by 8, 4 or 2; a scalar has none.
SHAPES = {"first": (WIDTH, 96), "bias": (96,), "last": (96, 24), "odd": (5, 3), "scale": ()}
DIVIDED = {"first", "bias", "last"}


def labels(params):
    return {name: "adam" if name in DIVIDED else "frozen" for name in params}


def masked(params):
    return {name: name != "bias" for name in params}


TRANSFORMATIONS: dict[str, Any] = {
    "adam": adamx.adam(1e-2),
    "adamw": adamx.adamw(1e-2, mask=masked),
    "amsgrad": adamx.adam(1e-2, amsgrad=True),
    "keras": adamx.AdamConfig(learning_rate=1e-2, convention="keras").transformation(),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), adamx.adam(optax.cosine_decay_schedule(1e-2, 10))
    ),
    "partition": optax.partition({"adam": adamx.adam(1e-2), "frozen": optax.set_to_zero()}, labels),
    "masked": optax.masked(adamx.adam(1e-2), masked),
    "inject": optax.inject_hyperparams(adamx.adam)(learning_rate=1e-2),
    "multi_steps": optax.MultiSteps(adamx.adam(1e-2), 1).gradient_transformation(),
    "if_finite": optax.apply_if_finite(adamx.adam(1e-2), 3),
    "nonnegative": optax.chain(adamx.adam(1e-2), optax.keep_params_nonnegative()),
    "optax": optax.adam(1e-2),
    "fused": adamx.fused_adam(1e-2),
    "fused_amsgrad": adamx.fused_adamw(1e-2, amsgrad=True, clip_global_norm=1.0),
}


def loss(params, batch):
    """A network in which every parameter has a gradient."""
    x = jnp.tanh(batch @ params["first"] + params["bias"][None])
    return jnp.mean((x @ params["last"]) ** 2 * params["scale"]) + jnp.sum(params["odd"] ** 2)


def values(seed=0):
    rng = np.random.default_rng(seed)
    return {k: np.asarray(rng.standard_normal(s) / 3, np.float32) for k, s in SHAPES.items()}


def batches(count):
    rng = np.random.default_rng(1)
    return [np.asarray(rng.standard_normal((BATCH, WIDTH)), np.float32) for _ in range(count)]


def data_mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def two_axes(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def on_mesh(mesh: Mesh, params):
    """The parameters, replicated over "data" and, where there is one, split over "model"."""
    specs = dict.fromkeys(params, P())
    if mesh.axis_types[-1] == AxisType.Explicit and "model" in mesh.axis_names:
        specs["last"] = P(None, "model")
    elif "model" in mesh.axis_names:
        specs |= {"first": P(None, "model"), "bias": P("model"), "last": P("model")}
    shardings = {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
    return jax.tree.map(jax.device_put, params, shardings), shardings


def apply(tx, grads, state, params):
    """One step of a transformation or of a fused optimizer."""
    if isinstance(tx, adamx.FusedOptimizer):
        return tx.step(grads, state, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def value_and_scattered_grads(mesh: Mesh, shardings):
    """The gradients by `jax.shard_map` and `adamx.reduce_scatter`."""

    def local(params, batch):
        params = jax.lax.pcast(params, "data", to="varying")
        value, grads = jax.value_and_grad(loss)(params, batch)
        return jax.lax.pmean(value, "data"), adamx.reduce_scatter(grads, shardings, "data")

    specs = jax.tree.map(lambda s: s.spec, shardings)
    return jax.shard_map(local, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P(), specs))


def split_run(tx, mesh: Mesh, *, scattered=False):
    """The compiled step on `mesh`, and the parameters and the state that it begins with."""
    params, param_shardings = on_mesh(mesh, values())
    shardings = adamx.zero_sharding(params, mesh, "data", transformation=tx)
    state = jax.jit(tx.init, out_shardings=shardings)(params)
    of_loss = jax.value_and_grad(loss)
    if scattered:
        of_loss = value_and_scattered_grads(mesh, adamx.zero_sharding(params, mesh, "data"))

    def step(params, state, batch):
        value, grads = of_loss(params, batch)
        return *apply(tx, grads, state, params), value

    replicated = NamedSharding(mesh, P())
    jitted = jax.jit(
        step, out_shardings=(param_shardings, shardings, replicated), donate_argnums=(0, 1)
    )
    batch = jax.ShapeDtypeStruct(
        (BATCH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, P("data"))
    )
    return jitted.lower(params, state, batch).compile(), params, state


def bytes_per_device(state):
    held = Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    return held


def alone(tx, count):
    """The parameters after `count` steps on one device."""
    params = jax.tree.map(jnp.asarray, values())
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        return apply(tx, jax.grad(loss)(params, batch), state, params)

    for batch in batches(count):
        params, state = step(params, state, batch)
    return params, state


RUNS = [
    *((name, data_mesh, AxisType.Auto) for name in TRANSFORMATIONS),
    *((name, two_axes, AxisType.Auto) for name in ("adam", "chain", "partition", "fused_amsgrad")),
    *((name, data_mesh, AxisType.Explicit) for name in ("adam", "partition", "fused_amsgrad")),
    ("adam", two_axes, AxisType.Explicit),
]


@pytest.mark.parametrize(("name", "make_mesh", "kind"), RUNS)
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


def farthest(tree, other):
    """The largest difference in any leaf, in parts of the leaf's largest entry."""

    def of(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-300)

    return max(jax.tree.leaves(jax.tree.map(of, tree, other)))


def collectives(text):
    """How often each collective is in a compiled program, with the shape that it makes."""
    found = Counter()
    for result, kind in COLLECTIVE.findall(text):
        for shape in re.findall(r"\w+\[[\d,]*\]", result):
            found[kind, shape] += 1
    return found


def array(shape):
    return f"f32[{','.join(map(str, shape))}]"


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
    assert spec_of((24, 16), P(None, "data"), mesh=mesh, axis=axis) == P(None, "data")


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


def test_gradients_that_were_summed_already():
    """By JAX, for parameters that do not vary: the sum of sums would be eight times the mean."""
    mesh = data_mesh()
    params, _ = on_mesh(mesh, values())
    shardings = adamx.zero_sharding(params, mesh, "data")

    def local(params, batch):
        return adamx.reduce_scatter(jax.grad(loss)(params, batch), shardings, "data")

    specs = jax.tree.map(lambda s: s.spec, shardings)
    of_loss = functools.partial(
        jax.shard_map, local, mesh=mesh, in_specs=(P(), P("data")), out_specs=specs
    )
    [batch] = batches(1)
    with pytest.raises(ValueError, match=r'bias: .*jax.lax.pcast\(params, .data., to="varying"\)'):
        jax.eval_shape(of_loss(), params, batch)
    # Where JAX does not track that, it does not sum either.
    grads = jax.jit(of_loss(check_vma=False))(params, batch)
    expected = jax.grad(loss)(values(), batch)
    assert farthest(grads, expected) <= 1e-6


@pytest.mark.parametrize("varying", ["data", "replica"])
@pytest.mark.parametrize("over", [("replica", "data"), "data", "replica"])
def test_gradients_that_were_summed_over_one_of_two_axes(over, varying):
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    params, _ = on_mesh(mesh, values())
    shardings = adamx.zero_sharding(params, mesh, over)
    both = ("replica", "data")

    def local(params, batch):
        params = jax.lax.pcast(params, varying, to="varying")
        return adamx.reduce_scatter(jax.grad(loss)(params, batch), shardings, both)

    specs = jax.tree.map(lambda s: s.spec, shardings)
    grads_of = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(both)), out_specs=specs)
    [other] = {"data", "replica"} - {varying}
    with pytest.raises(ValueError, match=rf"bias: .*one that was summed over {other} already"):
        jax.eval_shape(grads_of, params, batches(1)[0])


def test_shardings_of_gradients():
    """None where there is no gradient; a clear error for what is no sharding of a gradient."""
    mesh, w = data_mesh(), np.ones((8, 8), np.float32)
    given = {"v": NamedSharding(mesh, P()), "w": NamedSharding(mesh, P("data"))}

    def scattered(w, shardings):
        def local(w):
            return adamx.reduce_scatter({"v": None, "w": w}, shardings, "data")["w"]

        return jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(w)

    # Each device's gradient is its row; the mean of all, of which each device gets one column.
    rows = np.arange(64, dtype=np.float32).reshape(8, 8)
    columns = given | {"w": NamedSharding(mesh, P(None, "data"))}
    np.testing.assert_array_equal(scattered(rows, columns)[:, 0], rows.mean(axis=0))
    with pytest.raises(TypeError, match=r"shardings: w: expected a NamedSharding.*found P"):
        scattered(w, given | {"w": P("data")})
    with pytest.raises(ValueError, match=r"shardings: expected the structure .*'v'.*'w'"):
        scattered(w, {"w": given["w"]})


@pytest.mark.parametrize("over", [("replica", "data"), "data", "replica"])
@pytest.mark.parametrize("split", [None, "data", ("data", "replica")])
def test_a_batch_over_two_axes(over, split):
    """Moments split over both, over one, or as the parameter is: the mean is over the batch."""
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    both = ("replica", "data")
    params, _ = on_mesh(mesh, values())
    like = dict(params)
    if split is not None:  # moments that lie so, of a parameter that each device has whole
        sharding = NamedSharding(mesh, P(None, split))
        like["last"] = jax.ShapeDtypeStruct(SHAPES["last"], jnp.float32, sharding=sharding)
    shardings = adamx.zero_sharding(like, mesh, over)

    def local(params, batch):
        params = jax.lax.pcast(params, both, to="varying")
        return adamx.reduce_scatter(jax.grad(loss)(params, batch), shardings, both)

    specs = jax.tree.map(lambda s: s.spec, shardings)
    grads_of = jax.shard_map(local, mesh=mesh, in_specs=(P(), P(both)), out_specs=specs)
    [batch] = batches(1)
    grads = jax.jit(grads_of)(params, batch)
    for name, g in grads.items():
        assert g.shape == SHAPES[name]
        assert g.sharding.is_equivalent_to(shardings[name], g.ndim)
    assert farthest(grads, jax.grad(loss)(values(), batch)) <= 1e-6


def printed(*args):
    out = io.StringIO()
    adamx.describe_sharding(*args, file=out)
    return out.getvalue()


def test_description_of_a_state():
    tx = adamx.scale_by_adam(mu_dtype=jnp.bfloat16)
    _, _, state = split_run(optax.chain(tx), data_mesh())
    assert (
        printed(state)
        == """\
leaf        array            split over  bytes per device
0/count     int32[]          replicated                 4
0/mu/bias   bfloat16[96]     data                      24
0/mu/first  bfloat16[64,96]  -, data                1,536
0/mu/last   bfloat16[96,24]  data                     576
0/mu/odd    bfloat16[5,3]    replicated                30
0/mu/scale  bfloat16[]       replicated                 2
0/nu/bias   float32[96]      data                      48
0/nu/first  float32[64,96]   -, data                3,072
0/nu/last   float32[96,24]   data                   1,152
0/nu/odd    float32[5,3]     replicated                60
0/nu/scale  float32[]        replicated                 4
each device holds 6,508 bytes of 51,364; replicated are 100 of them (1.5%)
"""
    )
    assert set(bytes_per_device(state).values()) == {6508}
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 51364


def test_description_of_arrays_elsewhere(capsys):
    """Split in part, on one device, without a device; to standard output."""
    mesh = two_axes()
    place = NamedSharding(mesh, P(None, "model"))
    adamx.describe_sharding(
        {"a": jax.device_put(jnp.ones((4, 2)), place), "b": jnp.ones(3), "c": np.ones(2), "d": 1.0}
    )
    assert (
        capsys.readouterr().out
        == """\
leaf  array         split over  bytes per device
a     float32[4,2]  -, model                  16
b     float32[3]    one device                12
c     float64[2]    replicated                16
d     float32[]     replicated                 4
each device holds 48 bytes of 64; replicated are 20 of them (41.7%)
"""
    )


def test_description_of_copies_of_parts_and_of_shapes_alone():
    """Split over one of two axes is not replicated; without a sharding a leaf is."""
    shapes = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
    split = adamx.zero_sharding(shapes, two_axes(), "data")
    assert printed(shapes, split).endswith("24 bytes of 96; replicated are 0 of them (0.0%)\n")
    assert printed(shapes).endswith("96 bytes of 96; replicated are 96 of them (100.0%)\n")


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
    with pytest.warns(UserWarning, match="nothing of the state could be split over 'data'"):
        adamx.zero_sharding({"w": jnp.ones(7)}, mesh, "data", transformation=tx)
    # Split over another axis, and over this one not: 4 does not divide 7.
    model = NamedSharding(two_axes(), P("model"))
    other = {"w": jax.ShapeDtypeStruct((16, 7), jnp.float32, sharding=model)}
    with pytest.warns(UserWarning, match="nothing of the state could be split over 'data'"):
        adamx.zero_sharding(other, two_axes(), "data", transformation=tx)
    turned = jax.make_mesh((2, 4), ("model", "data"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="w: expected a parameter on the mesh"):
        adamx.zero_sharding(other, turned, "data", transformation=tx)
    with pytest.raises(ValueError, match="structure"):
        adamx.describe_sharding(params, {"v": NamedSharding(mesh, P())})
    with pytest.raises(TypeError, match=r"shardings: w: expected a Sharding.*found P"):
        adamx.describe_sharding(params, {"w": P("data")})
