"""Gradients that are averaged over the devices, each of which gets the part that it updates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import adamx
from tests.state.sharded_runs import (
    SHAPES,
    P,
    batches,
    data_mesh,
    farthest,
    loss,
    on_mesh,
    values,
)


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
    with pytest.raises(ValueError, match=rf"bias: .*found one already summed over {other}"):
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


@pytest.mark.sampled(3)
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


def of_parts(params, batch):
    """A loss with a weight that is gathered, and one whose parts stay apart."""
    gathered = jax.lax.all_gather(params["w"], "data", axis=1, tiled=True)
    return jnp.mean(jnp.tanh(batch @ gathered + params["b"][None]) ** 2)


@pytest.mark.parametrize("columns", [8, 16, 64])
def test_a_parameter_that_is_split_itself(columns):
    """Its gradient is a part already, whether or not the devices would divide it once more."""
    mesh, rng = data_mesh(), np.random.default_rng(0)
    shapes = {"w": (5, columns), "b": (columns,)}
    whole = {k: np.asarray(rng.standard_normal(s), np.float32) for k, s in shapes.items()}
    batch = np.asarray(rng.standard_normal((16, 5)), np.float32)
    param_specs = {"w": P(None, "data"), "b": P()}
    params = {k: jax.device_put(x, NamedSharding(mesh, param_specs[k])) for k, x in whole.items()}
    shardings = adamx.zero_sharding(params, mesh, "data")

    def local(params, batch):
        params = params | {"b": jax.lax.pcast(params["b"], "data", to="varying")}
        return adamx.reduce_scatter(jax.grad(of_parts)(params, batch), shardings, "data")

    specs = jax.tree.map(lambda s: s.spec, shardings)
    in_specs = (param_specs, P("data"))
    grads_of = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=specs)
    grads = jax.jit(grads_of)(params, batch)

    def alone(params):
        return jnp.mean(jnp.tanh(batch @ params["w"] + params["b"][None]) ** 2)

    for name, g in grads.items():
        assert g.shape == shapes[name]
        assert g.sharding.is_equivalent_to(shardings[name], g.ndim)
    assert farthest(grads, jax.grad(alone)(whole)) <= 1e-6


def test_a_parameter_that_is_split_over_one_of_two_axes():
    """Over the other one its gradient is scattered."""
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(AxisType.Auto,) * 2)
    both, rows = ("replica", "data"), np.random.default_rng(0).standard_normal((16, 6))
    rows = np.asarray(rows, np.float32)
    w = np.linspace(-1, 1, 6 * 8, dtype=np.float32).reshape(6, 8)
    param = jax.device_put(w, NamedSharding(mesh, P(None, "data")))
    sharding = adamx.zero_sharding(param, mesh, both)
    assert sharding.spec == P("replica", "data")

    def loss_of(w, rows):
        return jnp.mean(jnp.sin(rows @ w))

    def local(w, rows):
        w = jax.lax.pcast(w, "replica", to="varying")
        gathered = lambda w: jax.lax.all_gather(w, "data", axis=1, tiled=True)  # noqa: E731
        g = jax.grad(lambda w: loss_of(gathered(w), rows))(w)
        return adamx.reduce_scatter(g, sharding, both)

    specs = (P(None, "data"), P(both))
    grads_of = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=sharding.spec)
    assert farthest(jax.jit(grads_of)(param, rows), jax.grad(loss_of)(w, rows)) <= 1e-6


def test_a_part_of_which_nothing_is_known():
    mesh, w = data_mesh(), np.ones((32, 3), np.float32)
    sharding = {"w": NamedSharding(mesh, P("data"))}

    def local(w):
        return adamx.reduce_scatter({"w": w}, sharding, "data")["w"]

    scattered = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    message = r"w: .* a full gradient whose dimension 0 .* the 8 devices .*found shape \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(scattered, w)
