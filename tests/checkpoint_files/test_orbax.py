"""Folders of Orbax: the ways in which arrays lie there, steps, items, and damage."""

import json
import shutil
import sys
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from adamx.checkpoint import CheckpointError, load
from tests.checkpoint.format_cases import RUN

PARAMS = {
    "dense/inner": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)},
    "layers": [jnp.full(3, 2.0), jnp.full(3, 3.0)],
    "wide": jax.random.normal(jax.random.key(0), (70, 90)),
}
NAMES = ["dense/inner/bias", "dense/inner/kernel", "layers/0", "layers/1", "wide"]


def make_state():
    state: Any = optax.adamw(1e-3).init(PARAMS)
    filled = jax.tree.map(lambda x: (x + 0.25).astype(x.dtype), state[0].mu)
    return (state[0]._replace(count=jnp.asarray(4), mu=filled), *state[1:])


STATE = make_state()
TREE = {
    "step": 4,
    "params": PARAMS,
    "opt_state": STATE,
    "key": jax.random.key(1),
    "name": "a text",
    "empty": {},
}


def write(folder, tree, *, ocdbt=True, third=False, chunk=None):
    sizes = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=chunk), tree)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=third)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree, save_args=sizes))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Every array in a folder of its own, whose files can be damaged one by one."""
    return write(tmp_path_factory.mktemp("orbax") / "plain", TREE, ocdbt=False)


def assert_read(checkpoint):
    assert (list(checkpoint.names), checkpoint.count) == (NAMES, 4)
    leaves = {"params": PARAMS, "mu": STATE[0].mu, "nu": STATE[0].nu}
    for field, tree in leaves.items():
        for name, leaf in zip(NAMES, jax.tree.leaves(tree), strict=True):
            found = getattr(checkpoint, field)[name]
            assert found.dtype == leaf.dtype
            assert found.tobytes() == np.asarray(leaf).tobytes()


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("third", [True, False])
@pytest.mark.parametrize("chunk", [None, 5_000])
def test_each_way_to_keep_arrays(ocdbt, third, chunk, tmp_path):
    folder = write(tmp_path / "x", TREE, ocdbt=ocdbt, third=third, chunk=chunk)
    checkpoint = load(folder, config=RUN)
    assert_read(checkpoint)
    assert checkpoint.not_read == ("key",)
    assert len(checkpoint.notes) == 1
    if not (ocdbt or third):
        assert len(list((folder / WIDE).glob("[0-9]*"))) == (1 if chunk is None else 6)


def test_older_versions_store_no_chunks_of_zeros(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "x")
    edit_json(folder / "_METADATA", store_array_data_equal_to_fill_value=False)
    (folder / "opt_state.0.nu.wide" / "0.0").unlink()
    checkpoint = load(folder, config=RUN)
    assert_read(checkpoint)
    assert any("nu.wide: 1 of 1 chunks are not stored" in note for note in checkpoint.notes)


def save_steps(folder, steps):
    items = ("state", "params", "settings")
    with ocp.CheckpointManager(folder, item_names=items) as manager:
        for step in steps:
            state = (STATE[0]._replace(count=jnp.asarray(step)), *STATE[1:])
            items = {
                "state": ocp.args.StandardSave({"opt_state": state}),
                "params": ocp.args.StandardSave(PARAMS),
                "settings": ocp.args.JsonSave({"seed": 1}),
            }
            manager.save(step, args=ocp.args.Composite(**items))
    return folder


def test_the_newest_step_and_its_items(tmp_path):
    """12, which as a text comes before 4."""
    folder = save_steps(tmp_path / "run", (4, 12))
    newest = load(folder, config=RUN)
    assert newest.count == 12
    assert newest.not_read == ("settings",)
    assert "step 12 was read, the newest of 2" in newest.notes
    assert_read(load(folder / "4", config=RUN))
    assert load(folder / "4" / "state", config=RUN).params == {}
    shutil.rmtree(folder / "12" / "state")
    shutil.rmtree(folder / "12" / "params")
    with pytest.raises(CheckpointError, match=r"12: .*_METADATA.*found.*settings"):
        load(folder, config=RUN)
    shutil.rmtree(folder / "12")
    (folder / "12").mkdir()
    with pytest.raises(CheckpointError, match=r"12: expected a finished step.*use the folder"):
        load(folder, config=RUN)
    (folder / "run_0004").mkdir()
    (folder / "12").rmdir()
    with pytest.raises(CheckpointError, match="one newest step, found 4, run_0004"):
        load(folder, config=RUN)


def test_the_state_of_nnx(tmp_path):
    """Arrays in boxes, statistics, and keys of random numbers."""
    model = nnx.Sequential(
        nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
        nnx.BatchNorm(4, rngs=nnx.Rngs(0)),
        nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
    )
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    tree = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", tree)
    checkpoint = load(tmp_path / "x", config=RUN)
    trained = [f"layers/{name}" for name in ("0/bias", "0/kernel", "1/bias", "1/scale")]
    assert sorted(checkpoint.names) == trained
    assert sorted(checkpoint.params) == sorted([*trained, "layers/1/mean", "layers/1/var"])
    assert checkpoint.not_read == ("model.layers.2: 2 arrays",)
    checkpoint.restore(nnx.state(model, nnx.Param))


# Damage.


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_entry(folder, old, new):
    path = folder / "_METADATA"
    path.write_text(path.read_text().replace(json.dumps(old), json.dumps(new)))


WIDE = "opt_state.0.mu.wide"
HUGE = [1 << 40, 90]
DAMAGE = {
    "no chunk": (lambda f: (f / WIDE / "0.0").unlink(), f"{WIDE}: expected 1 chunks, found 0"),
    "no header": (lambda f: (f / WIDE / ".zarray").unlink(), "zarray is missing"),
    "no array": (lambda f: shutil.rmtree(f / WIDE), "zarray is missing"),
    "cut chunk": (
        lambda f: (f / WIDE / "0.0").write_bytes((f / WIDE / "0.0").read_bytes()[:-9]),
        f"{WIDE}: a damaged array",
    ),
    "huge": (
        lambda f: edit_json(f / WIDE / ".zarray", shape=HUGE, chunks=HUGE),
        "more memory than twice its",
    ),
    "huge chunks": (
        lambda f: edit_json(f / WIDE / ".zarray", chunks=HUGE),
        r"expected chunks within shape \(70, 90\)",
    ),
    "small": (
        lambda f: edit_json(f / WIDE / ".zarray", shape=[70, 9], chunks=[70, 9]),
        r"expected shape \(70, 90\), as in _METADATA, found \(70, 9\)",
    ),
    "longer": (lambda f: edit_json(f / WIDE / ".zarray", shape=[140, 90]), "expected 2 chunks"),
    "wide numbers": (lambda f: edit_json(f / WIDE / ".zarray", dtype="<f8"), "a damaged array"),
    "integers": (
        lambda f: edit_json(f / WIDE / ".zarray", dtype="<i4"),
        "expected floating-point numbers, found int32",
    ),
    "objects": (
        lambda f: edit_json(f / WIDE / ".zarray", dtype="|O"),
        "expected an array of numbers, found dtype '|O'",
    ),
    "filters": (lambda f: edit_json(f / WIDE / ".zarray", filters=[{}]), "expected no filters"),
    "compressor": (
        lambda f: edit_json(f / WIDE / ".zarray", compressor={"id": "blosc"}),
        "found 'blosc'",
    ),
    "no tree": (lambda f: (f / "_METADATA").write_text("{"), "_METADATA is damaged"),
    "a list": (lambda f: (f / "_METADATA").write_text("[]"), "_METADATA is damaged"),
    "nested": (lambda f: (f / "_METADATA").write_text("[" * 9_999), "_METADATA is damaged"),
    "another folder": (lambda f: rename_entry(f, "wide", "/../x"), "expected a name, found"),
    "the same name": (lambda f: rename_entry(f, "name", "."), None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(name, plain, tmp_path):
    damage, message = DAMAGE[name]
    folder = shutil.copytree(plain, tmp_path / "x")
    damage(folder)
    if message is None:
        assert_read(load(folder, config=RUN))
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, config=RUN)
    assert str(caught.value).startswith(f"{folder}: ")
    assert len(str(caught.value)) < 2_000


def test_keys_with_dots_that_give_one_name(tmp_path):
    """Orbax itself writes one over the other."""
    params = {"a.b": {"c": jnp.ones(2)}, "a": {"b.c": jnp.zeros(2)}}
    folder = write(tmp_path / "x", {"params": params, "s": optax.adam(0.1).init(params)})
    with pytest.raises(CheckpointError, match="keys with dots in them"):
        load(folder, config=RUN)


def test_a_chunk_that_unpacks_to_far_more(plain, tmp_path):
    """32 GiB of zeros in 1 MiB; the decoder of zstd would find out at the end only."""
    folder = shutil.copytree(plain, tmp_path / "x")
    block = (128 << 10 << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + block * (1 << 18) + b"\x01\0\0"
    (folder / WIDE / "0.0").write_bytes(bomb)
    with pytest.raises(CheckpointError, match="one that unpacks to 34359738368"):
        load(folder, config=RUN)


def test_without_its_package(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r'needs the package tensorstore: .*adamx\[orbax\]"'):
        load(plain, config=RUN)
