"""Moments that optimizers for torch keep in 8 bits, in a state of 8 bits."""

import pytest

import adamx
from adamx.checkpoint import Checkpoint, load, save
from tests.checkpoint_files.wild_cases import check_steps, read_case
from tests.checkpoint_folders.coded_runs import assert_bits, assert_rounded

# The networks are small: with the defaults, no parameter of theirs would be in 8 bits.
SMALL = adamx.EightBit(group=8, min_size=0)
NAMES = ("torchao8", "bnb8")

# Hyperparameters are not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")


def restored(checkpoint):
    """The state of 8 bits, of weights in torch's layout."""
    weights = dict(checkpoint.params)
    return checkpoint.restore(weights, layout=lambda _, array: array, moments=SMALL)[1]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_training_continues(name):
    """After 5 steps nearer to float32 than the recorded 8-bit optimizers, which are 8e-5 off.

    Parameters move by 5e-3. Measured, over several keys: 3.8e-5 to 4.7e-5.
    """
    case = read_case(name)
    check_steps(case, load(case.path), final="final32", within=7e-5, moments=SMALL)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_rounded_once(name, tmp_path):
    """From the file to a state; from there on, adamx's own format keeps every bit."""
    checkpoint = load(read_case(name).path)
    state = restored(checkpoint)
    for variable, v in checkpoint.nu.items():
        assert_rounded(state[0].nu[variable], v, SMALL.group)
    own = Checkpoint.from_state(dict(checkpoint.params), state, checkpoint.config)
    save(tmp_path / "x.safetensors", own)
    assert_bits(restored(load(tmp_path / "x.safetensors")), state)
