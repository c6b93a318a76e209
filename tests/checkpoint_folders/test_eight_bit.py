"""Moments in 8 bits in files: adamx's own keep every bit, the others numbers."""

import dataclasses
import json
import re

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import adamx
from adamx import AdamConfig
from adamx.base.blockwise import CODE_VERSION, EightBitMoment
from adamx.base.coded import Coded, decode_coded
from adamx.checkpoint import FORMATS, Checkpoint, CheckpointError, load, save
from adamx.cli.main import main
from tests.checkpoint.checkpoint_runs import assert_equal
from tests.checkpoint.format_cases import CONFIGS, example_of, template_for
from tests.checkpoint_folders.coded_runs import (
    CONFIG,
    EIGHT,
    PARAMS,
    TX,
    assert_bits,
    assert_rounded,
    code,
    run,
)
from tests.fuzz.adamx_files import parts

pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")
CODED, WIDE = ("body/kernel", "body/stack"), ("bias", "embed")


@pytest.fixture(scope="module")
def half():
    """Parameters and state after 5 steps."""
    return run(TX, PARAMS, TX.init(PARAMS), 0, 5)


@pytest.fixture(scope="module")
def file(half, tmp_path_factory):
    path = tmp_path_factory.mktemp("coded") / "half.safetensors"
    assert save(path, Checkpoint.from_state(*half, CONFIG, transformation=TX)) == ()
    return path


FUSED = adamx.fused_adamw(1e-2, weight_decay=0.1, moments=EIGHT)


@pytest.mark.parametrize("optimizer", [TX, FUSED], ids=["adamw", "fused_adamw"])
def test_a_run_that_was_saved_half_way_is_the_same_run(optimizer, tmp_path):
    """5 steps, a file and 5 steps have every bit of 10 steps."""
    params, state = run(optimizer, PARAMS, optimizer.init(PARAMS), 0, 5)
    saved = Checkpoint.from_state(params, state, CONFIG, transformation=optimizer)
    save(tmp_path / "half.safetensors", saved)
    again = load(tmp_path / "half.safetensors")
    params = again.params_like(PARAMS)
    made, restored = again.restore(params, moments=EIGHT)
    _, given = again.restore(params, transformation=TX)
    assert_bits(given, restored)
    converted = adamx.from_numpy(optimizer.init(params), adamx.to_numpy(restored))
    assert_bits(converted, state)
    expected = run(optimizer, PARAMS, optimizer.init(PARAMS), 0, 10)
    assert_bits(run(optimizer, params, converted, 5, 10), expected)
    if optimizer is TX:
        assert_bits(run(made, params, restored, 5, 10), expected)


def test_what_is_in_the_file(half, file):
    """Codes and scales as the state has them, and what is needed to read them."""
    state, (header, _) = half[1][0], parts(file.read_bytes())
    described = json.loads(header.pop("__metadata__")["checkpoint"])
    assert described["version"] == 3
    assert described["eight_bit"] == {"version": CODE_VERSION, "groups": dict.fromkeys(CODED, 32)}
    arrays = load_file(file)
    assert arrays.keys() == header.keys()
    for field in ("mu", "nu"):
        assert {f"{field}/{name}" for name in WIDE} < arrays.keys()
        moments = getattr(state, field)["body"]
        for name in ("kernel", "stack"):
            assert f"{field}/body/{name}" not in arrays
            for part in ("codes", "scales"):
                assert_bits(arrays[f"{field}_{part}/body/{name}"], getattr(moments[name], part))
    checkpoint = load(file)
    assert checkpoint.quantised
    found = {f"mu/{n}": a for n, a in checkpoint.mu.items()}
    wide = adamx.to_numpy(adamx.dequantize_moments(half[1]))
    assert list(found) == [name for name in wide if name.startswith("mu")]
    assert_bits(found, {name: wide[name] for name in found})


def test_files_without_codes_can_be_read_by_older_versions(tmp_path):
    save(tmp_path / "x.safetensors", load(example_of(FORMATS["torch"])))
    header, _ = parts((tmp_path / "x.safetensors").read_bytes())
    described = json.loads(header["__metadata__"]["checkpoint"])
    assert described["version"] == 2
    assert "eight_bit" not in described


def test_a_float32_optimizer_gets_the_numbers(half, file):
    _, state = load(file).restore(PARAMS)
    assert_bits(adamx.to_numpy(state), adamx.to_numpy(half[1]))
    assert jax.tree.structure(state) == jax.tree.structure(CONFIG.transformation().init(PARAMS))


def test_names_may_change_and_numbers_may_not(half, file):
    """The codes of moments that were changed, or put beside others, are not used."""
    names = ["a", "b/0", "b/1", "c"]
    tree = {"a": PARAMS["bias"], "b": [*PARAMS["body"].values()], "c": PARAMS["embed"]}
    named = dataclasses.replace(load(file), params={}).rename(names)
    keeping = adamx.EightBit(min_size=0, keep=["c"])
    _, renamed = named.restore(tree, moments=keeping)
    assert_bits(jax.tree.leaves(renamed[0]), jax.tree.leaves(half[1][0]))

    checkpoint = load(file)
    checkpoint.mu["body/kernel"][3, 5] *= 2
    checkpoint.nu["body/stack"][:] *= 4
    _, state = checkpoint.restore(PARAMS, moments=EIGHT)
    found = adamx.to_numpy(state)
    was = adamx.to_numpy(half[1])
    assert found["mu/body/kernel"][3, 5] == pytest.approx(2 * was["mu/body/kernel"][3, 5], rel=0.1)
    ratio = found["nu/body/stack"] / was["nu/body/stack"]
    assert np.median(ratio) == pytest.approx(4, rel=0.02)


def test_another_group_or_choice_of_leaves(half, file):
    """What is not in the form of the state is rounded once, to a level next to it."""
    how = adamx.EightBit(group=16, min_size=0, keep=["kernel"])
    _, state = load(file).restore(PARAMS, moments=how)
    was, found = adamx.to_numpy(half[1]), adamx.to_numpy(state)
    for name in ("mu/bias", "nu/bias", "mu/body/kernel", "nu/body/kernel"):
        assert_bits(found[name], was[name])
    assert_rounded(state[0].nu["body"]["stack"], was["nu/body/stack"], 16)
    assert_rounded(state[0].nu["embed"], was["nu/embed"], 16)


@pytest.mark.parametrize("form", [f for f in FORMATS.values() if f.writable], ids=lambda f: f.name)
def test_every_format_has_the_numbers(form, tmp_path):
    path = example_of(form)
    original = code(load(path, config=CONFIGS.get(path.name)))
    template = path if form.is_folder else template_for(path)
    save(tmp_path / path.name, original, template=template)
    found = load(tmp_path / path.name, config=CONFIGS.get(path.name))
    for field in ("mu", "nu"):
        ours, theirs = (list(getattr(c, field).values()) for c in (original, found))
        assert any(array.coded is not None for array in ours if hasattr(array, "coded"))
        assert_bits([np.asarray(x) for x in theirs], [np.asarray(x) for x in ours])
    if form.name == "safetensors":
        assert_equal(found, original)


# What is refused, and the command.


def test_what_restore_refuses(file):
    checkpoint = load(file)
    with pytest.raises(CheckpointError, match="moments: expected None with transformation="):
        checkpoint.restore(PARAMS, moments="8bit", transformation=TX)
    with pytest.raises(TypeError, match='moments: expected None, "8bit" or an EightBit'):
        checkpoint.restore(PARAMS, moments="4bit")
    config = AdamConfig(amsgrad=True)
    state = config.transformation().init(PARAMS)
    with pytest.raises(CheckpointError, match="amsgrad: expected False with moments in 8 bits"):
        Checkpoint.from_state(PARAMS, state, config).restore(PARAMS, moments="8bit")


def test_a_run_of_other_hyperparameters_is_noticed(half):
    """The next step is compared without rounding it."""
    with pytest.raises(CheckpointError, match=r"transformation: the next step of .* differs"):
        Checkpoint.from_state(*half, AdamConfig(learning_rate=1.01e-2), transformation=TX)


def test_trees_of_other_programs_are_refused(half, tmp_path):
    """They have no version of the code; their libraries restore them bit by bit."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {"opt_state": half[1]})
    (tmp_path / "x.msgpack").write_bytes(flax.serialization.to_bytes({"opt_state": half[1]}))
    for name in ("orbax", "x.msgpack"):
        with pytest.raises(CheckpointError, match=r"codes: .* found int8, of moments in 8 bits; "):
            load(tmp_path / name, config=CONFIG)


def test_the_command_says_so(file, tmp_path, capsys):
    assert main(["inspect", str(file)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert [" 8bit " in rows[name] for name in (*CODED, *WIDE)] == [True, True, False, False]
    npz, back = tmp_path / "x.npz", tmp_path / "x.safetensors"
    assert main(["convert", str(file), str(npz)]) == 0
    wide = load(npz, config=CONFIG)
    assert_bits(dict(wide.nu), {n: np.asarray(a) for n, a in load(file).nu.items()})
    assert main(["convert", str(file), str(back)]) == 0
    assert main(["diff", str(file), str(back)]) == 0
    assert_equal(load(back), load(file))


def test_other_codes_of_the_same_numbers_differ(file, tmp_path, capsys):
    """Each m is 0 in any scale; the next one is rounded as the scale says."""
    checkpoint, files = load(file), []
    nu = checkpoint.nu["body/stack"].coded.nu
    for scale in (0.0, 1.0):
        scales = np.full(nu.scales.shape, scale, jnp.bfloat16)
        m, v = decode_coded(Coded(EightBitMoment(np.zeros(nu.codes.shape, np.int8), scales), nu))
        mu = {**checkpoint.mu, "body/stack": m}
        new = dataclasses.replace(checkpoint, mu=mu, nu={**checkpoint.nu, "body/stack": v})
        files.append(str(tmp_path / f"{scale}.safetensors"))
        save(files[-1], new)
    assert not np.any(m)
    assert main(["diff", *files]) == 1
    assert re.search(r"body/stack +0, other codes", capsys.readouterr().out)
