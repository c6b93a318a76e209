"""What is printed of where arrays lie."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

import adamx
from tests.state.sharded_runs import P, bytes_per_device, data_mesh, split_run, two_axes


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
each device holds 6,508 bytes of 51,364; 100 of them are replicated (1.5%)
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
each device holds 48 bytes of 64; 20 of them are replicated (41.7%)
"""
    )


def test_description_of_copies_of_parts_and_of_shapes_alone():
    """Split over one of two axes is not replicated; without a sharding a leaf is."""
    shapes = {"w": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
    split = adamx.zero_sharding(shapes, two_axes(), "data")
    assert printed(shapes, split).endswith("24 bytes of 96; 0 of them are replicated (0.0%)\n")
    assert printed(shapes).endswith("96 bytes of 96; 96 of them are replicated (100.0%)\n")


def test_description_of_arrays_in_another_memory():
    kind = "pinned_host"
    place = NamedSharding(data_mesh(), P("data"), memory_kind=kind)
    arrays = {"w": jax.device_put(jnp.ones((8, 3)), place)}
    row = "w     float32[8,3]  data in pinned_host                12\n"
    assert row in printed(arrays)
    assert row in printed(jax.eval_shape(lambda: {"w": jnp.ones((8, 3))}), {"w": place})
