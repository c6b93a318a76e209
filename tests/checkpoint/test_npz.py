"""What `numpy.savez` wrote of `adamx.to_numpy`, and what `save` writes for `numpy.load`."""

import io
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, load, save, torch_linear
from tests.checkpoint.checkpoint_runs import CHECKPOINTS
from tests.golden import WILD

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

CASE = WILD / "npz_to_numpy"
CONFIG = AdamConfig(learning_rate=1e-3, weight_decay=1e-4)


@pytest.fixture
def truth():
    with np.load(CASE / "truth.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def by_name(truth, kind):
    prefix = f"{kind}|"
    return {k.removeprefix(prefix): a for k, a in truth.items() if k.startswith(prefix)}


def nested(arrays):
    tree = {}
    for name, array in arrays.items():
        layer, key = name.split("/")
        tree.setdefault(layer, {})[key] = jnp.asarray(array)
    return tree


def flat(tree):
    return {f"{layer}/{key}": x for layer, own in tree.items() for key, x in own.items()}


def written(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_run_of_optax_is_read(truth):
    checkpoint = load(CASE / "state.npz", config=CONFIG)
    assert (checkpoint.framework, checkpoint.version) == ("jax", None)
    for field in ("mu", "nu"):
        expected, found = by_name(truth, field), getattr(checkpoint, field)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert {checkpoint.count} == {int(step) for step in by_name(truth, "step").values()}


def test_it_goes_on_as_optax_did(truth):
    params = nested(by_name(truth, "param"))
    transformation, state = load(CASE / "state.npz", config=CONFIG).restore(params)
    for index in range(5):
        gradients = nested(by_name(truth, f"grad{index}"))
        updates, state = transformation.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    final = by_name(truth, "final")
    apart = max(np.abs(np.asarray(x) - final[name]).max() for name, x in flat(params).items())
    assert apart <= 2.4e-7  # 1.2e-7 measured: Optax takes 1 - b**t from b in float32


def test_numpy_and_from_numpy_read_what_is_written(truth, tmp_path):
    checkpoint = load(CASE / "state.npz", config=CONFIG)
    assert save(tmp_path / "x.npz", checkpoint) == ("config",)
    with np.load(tmp_path / "x.npz") as new, np.load(CASE / "state.npz") as old:
        assert new.files == old.files
        for key in old.files:
            np.testing.assert_array_equal(new[key], old[key], strict=True)
        state = optax.adamw(1e-3).init(nested(by_name(truth, "param")))
        assert int(adamx.from_numpy(state, new)[0].count) == checkpoint.count


def test_compressed_and_unusual_arrays(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.float64(1) / 3,
        "big-endian": np.arange(3, dtype=">f4"),
        "complex": np.full(2, 1 + 2j, np.complex64),
        "name with spaces, \u00e9": np.ones(1),
    }
    keys = {f"{field}/{name}": x for field in ("mu", "nu") for name, x in arrays.items()}
    for save_as in (np.savez, np.savez_compressed):
        save_as(tmp_path / "x.npz", count=np.int64(5), **keys)
        read = load(tmp_path / "x.npz", config=CONFIG)
        assert list(read.mu) == list(arrays)
        for name, array in arrays.items():
            native = array.astype(array.dtype.newbyteorder("="))
            np.testing.assert_array_equal(read.mu[name], native, strict=True)
            assert read.mu[name].flags.writeable


def test_a_tree_that_is_one_array(tmp_path):
    params, transformation = jnp.arange(3.0), CONFIG.transformation()
    _, state = transformation.update(params, transformation.init(params), params)
    path = written(tmp_path / "x.npz", **adamx.to_numpy(state))
    _, restored = load(path, config=CONFIG).restore(params)
    expected = adamx.to_numpy(state)
    again = Checkpoint.from_state(params, restored, CONFIG)
    assert set(save(tmp_path / "y.npz", again)) == {"params/", "config"}
    with np.load(tmp_path / "y.npz") as new:
        assert new.files == list(expected)
        for key in new.files:
            np.testing.assert_array_equal(new[key], expected[key], strict=True)


def test_bfloat16_is_written_as_float32(tmp_path):
    one = {"a": np.array([1, 1.5, -2], jnp.bfloat16)}
    checkpoint = Checkpoint(
        framework="jax",
        version=None,
        config=CONFIG,
        count=1,
        names=("a",),
        params={},
        mu=one,
        nu=one,
    )
    save(tmp_path / "x.npz", checkpoint)
    read = load(tmp_path / "x.npz", config=CONFIG).mu["a"]
    np.testing.assert_array_equal(read, np.array([1, 1.5, -2], np.float32), strict=True)


def test_what_is_not_in_it_comes_back(tmp_path):
    source = load(CHECKPOINTS / "keras3_ema.keras")
    left = save(tmp_path / "x.npz", source)
    assert left == (*(f"params/{name}" for name in source.params), *source.extra, "config")


def test_a_layout_is_refused(tmp_path):
    """The file could not tell that kernels are transposed."""
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    state = CONFIG.transformation().init(params)
    checkpoint = Checkpoint.from_state(params, state, CONFIG, layout=torch_linear)
    with pytest.raises(
        CheckpointError, match="layout: expected arrays in the layout of the tree"
    ) as caught:
        save(tmp_path / "x.npz", checkpoint)
    assert caught.value.argument == "layout"


def test_amsgrad_must_be_that_of_the_file(tmp_path):
    one = np.ones(2, np.float32)
    path = written(tmp_path / "x.npz", count=1, mu=one, nu=one, nu_max=one)
    with pytest.raises(CheckpointError, match="amsgrad: the file has True, config=") as caught:
        load(path, config=CONFIG)
    assert caught.value.argument == "config"
    assert load(path, config=AdamConfig(amsgrad=True)).nu_max.keys() == {""}


ONE = np.ones(2, np.float32)
BAD = {
    "pickle": ({"mu": np.array([None, 1])}, r"found \{'descr': '\|O'"),
    "text": ({"mu": np.array(["a"])}, r"found \{'descr': '<U1'"),
    "structure": ({"mu": np.zeros(1, "f4,f4")}, "expected an array of numbers"),
    "integers": ({"mu": np.ones(2, int)}, "mu: expected floating-point numbers, found int64"),
    "half": ({"count": np.float32(0.5)}, "count: expected a whole number, found float32"),
    "counts": ({"count": np.ones(2, int)}, "count: expected a whole number, found array"),
    "negative": ({"count": -1}, "count: expected at least 0, found -1"),
    "other": ({"weights": ONE}, "expected the arrays of adamx.to_numpy.*found weights"),
    "lone": ({"nu/a": ONE}, "nu/a: there is no mu/a"),
    "shape": ({"nu": np.ones(3)}, r"expected shape \(2,\) as mu/, found \(3,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name, tmp_path):
    changed, message = BAD[name]
    path = written(tmp_path / "x.npz", **{"count": 1, "mu": ONE, "nu": ONE, **changed})
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path, config=CONFIG)
    assert caught.value.where.startswith(str(path))


def test_missing_arrays(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected the arrays .* found count, mu"):
        load(written(tmp_path / "x.npz", count=1, mu=ONE), config=CONFIG)


def with_size(content, size):
    """The size that the directory states for each member."""
    result = bytearray(content)
    at = result.index(b"PK\1\2")
    while at >= 0:
        struct.pack_into("<I", result, at + 24, size)
        at = result.find(b"PK\1\2", at + 4)
    return bytes(result)


@pytest.mark.parametrize("size", [1, 200, 1 << 20, 1 << 31])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_lying_sizes(size, method, tmp_path):
    stream = io.BytesIO()
    (np.savez if method == zipfile.ZIP_STORED else np.savez_compressed)(
        stream, count=1, mu=ONE, nu=ONE
    )
    path = tmp_path / "x.npz"
    path.write_bytes(with_size(stream.getvalue(), size))
    with pytest.raises(CheckpointError, match=re_path(path)):
        load(path, config=CONFIG)


def re_path(path):
    return f"^{path}: "


def test_deflated_zeros(tmp_path):
    zeros = np.zeros(1 << 22, np.float32)
    np.savez_compressed(tmp_path / "x.npz", count=1, mu=zeros, nu=zeros)
    with pytest.raises(CheckpointError, match="takes more memory than twice its"):
        load(tmp_path / "x.npz", config=CONFIG)
