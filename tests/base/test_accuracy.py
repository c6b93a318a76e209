"""The bounds on the table of benchmarks/accuracy.py."""

import pytest

from benchmarks import accuracy


@pytest.fixture(scope="module")
def errors():
    return accuracy.measure(["adamx", "optax"], size=256)


@pytest.mark.slow
@pytest.mark.parametrize("step", accuracy.STEPS)
def test_median_error(errors, step):
    assert errors["adamx"][step][0] <= 4e-7


@pytest.mark.parametrize("step", accuracy.STEPS)
def test_twenty_times_closer_than_optax(errors, step):
    assert errors["adamx"][step][0] <= errors["optax"][step][0] / 20
