"""Hyperparameters of a TensorFlow checkpoint: what it holds, and whether `config=` agrees."""

import math
import warnings
from pathlib import Path

import numpy as np

from adamx.base.dtypes import is_number
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._bundle_entries import Bundle
from adamx.checkpoint.formats._bundle_optimizer import Optimizer
from adamx.checkpoint.formats._counts import read_count
from adamx.checkpoint.frameworks import FRAMEWORKS
from adamx.config.adam_config import AdamConfig

__all__ = ["read_settings", "read_steps", "request_settings", "warn_of_contradictions"]

_KEYS = {"learning_rate": "learning_rate", "b1": "beta_1", "b2": "beta_2", "decay": "decay"}
_EPSILONS = {"tf1": "1e-8"}  # by default; of the later ones 1e-7
_CLOSE = 2.0**-23  # how far a float32 number may be off, relatively
_MOST_STEPS = 1 << 24
_CHUNK = 1 << 14


def read_settings(bundle: Bundle, optimizer: Optimizer) -> dict[str, float]:
    """The hyperparameters that are variables, by field of `AdamConfig`."""
    settings = {}
    for field, key in optimizer.settings.items():
        array = bundle.array(key)
        if array.size != 1 or array.dtype.kind != "f":
            raise CheckpointError(where=key, expected="a number", found=f"{array!r:.80}")
        settings[field] = float(array.item())
    return settings


def request_settings(bundle: Bundle, optimizer: Optimizer) -> CheckpointError:
    """The error for a missing `config=`: what is in the file, and the call to make."""
    told = {field: _shorten(value) for field, value in read_settings(bundle, optimizer).items()}
    for field, power in zip(("b1", "b2"), optimizer.powers, strict=False):
        value = bundle.array(power)
        count = None if optimizer.count is None else _read_scalar(bundle, optimizer.count)
        if count is not None and _is_normal(value):
            told[field] = float(f"{float(value.item()) ** (1 / (count + 1)):.6g}")
    keys = _KEYS | ({"learning_rate": "lr"} if optimizer.framework == "tf1" else {})
    epsilon = _EPSILONS.get(optimizer.framework, "1e-7")
    arguments = [f'"{key}": {told.get(field, "...")!s}' for field, key in keys.items()]
    if optimizer.framework not in ("tf1", "tf_keras_legacy"):
        del arguments[-1]  # decay is one of the earlier generations
    call = f"AdamConfig.from_keras({{{', '.join(arguments)}, "
    call += f'"epsilon": {epsilon}}}, "{optimizer.framework}")'
    held = ", ".join(f"{field}={value}" for field, value in told.items()) or "none of them"
    return CheckpointError(
        where="config",
        expected="an AdamConfig, since TensorFlow's checkpoints do not hold all hyperparameters: "
        f"this one holds {held}, and epsilon, clipping and weight decay are never stored",
        remedy=f"pass config={call}, with those of the run",
        argument="config",
    )


def warn_of_contradictions(
    path: Path, told: dict[str, float], optimizer: Optimizer, config: AdamConfig
) -> None:
    """Warn with both values where `config` is not what the file tells."""
    texts: list[str] = []
    if optimizer.is_scheduled and not callable(config.learning_rate):
        texts.append(f"learning_rate a schedule, given {config.learning_rate!r:.80}")
    row = FRAMEWORKS[optimizer.framework]
    for field, value in told.items():
        given = getattr(config, field)
        if not is_number(given) or not math.isclose(float(given), value, rel_tol=_CLOSE):
            texts.append(f"{field} {_shorten(value)!r}, given {given!r:.80}")
    if config.convention != row.convention:
        texts.append(f"convention {row.convention!r} ({row.title}), given {config.convention!r}")
    if texts:
        warnings.warn(
            f"{path}: config= contradicts the file, and is used: {'; '.join(texts)}",
            stacklevel=6,  # where load was called
        )


def read_steps(
    bundle: Bundle, optimizer: Optimizer, config: AdamConfig
) -> tuple[int, dict[str, float]]:
    """The number of steps; and b1 and b2 by their powers, where `config` contradicts these.

    A counter of TensorFlow 1 may count something else. So the number of steps is the one after
    which TensorFlow's powers of b2, and of b1 while it is above 0, are what the file has: products
    of float32 numbers.

    Raises:
      CheckpointError: the powers have become 0, or fit no number of steps, and there is no counter.
    """
    if not optimizer.powers:
        assert optimizer.count is not None
        return read_count(optimizer.count, bundle.array(optimizer.count)), {}
    counter = None if optimizer.count is None else _read_scalar(bundle, optimizer.count)
    powers = [bundle.array(key) for key in optimizer.powers]
    found = {
        field: _count_factors(key, power, float(getattr(config, field)))
        for field, key, power in zip(("b1", "b2"), optimizer.powers, powers, strict=True)
        if _is_normal(power)
    }
    counts = {count for count in found.values() if count is not None}
    if len(counts) > 1:
        raise CheckpointError(
            where=" and ".join(optimizer.powers),
            expected="powers of config's b1 and b2 after one number of steps",
            found=f"those after {sorted(counts)}",
            argument="config",
        )
    count = next(iter(counts), counter)
    if count is None:
        raise CheckpointError(
            where="config" if found else optimizer.powers[1],
            expected="the b1 and b2 of the run, whose powers give the number of steps"
            if found
            else "a power of b2 above 0, or global_step, to find the number of steps",
            found=f"b1={config.b1}, b2={config.b2}" if found else "neither",
            argument="config" if found else None,
        )
    if counter is not None and counter != count:
        optimizer.notes.append(
            f"{optimizer.count} is {counter}, but by the powers of b1 and b2 the optimizer has "
            f"done {count} steps"
        )
    elif not counts:
        optimizer.notes.append(f"the number of steps is taken from {optimizer.count} alone")
    told = {
        field: float(power.item()) ** (1 / (count + 1))
        for field, power in zip(("b1", "b2"), powers, strict=True)
        if field in found and found[field] != count
    }
    return count, told


def _count_factors(key: str, power: np.ndarray, factor: float) -> int | None:
    """After how many steps a power is what the file holds, computed as TensorFlow does; or None."""
    if power.size != 1 or power.dtype.kind != "f":
        raise CheckpointError(where=key, expected="a number", found=f"{power!r:.80}")
    wanted, product = power.reshape(()), power.dtype.type(1)
    if not 0 < factor < 1:
        return None
    factors = np.full(_CHUNK, factor, power.dtype)
    for start in range(0, _MOST_STEPS, _CHUNK):
        factors[0] = product * power.dtype.type(factor)
        products = np.multiply.accumulate(factors)
        same = np.flatnonzero(products == wanted)
        if len(same):
            return start + int(same[0])
        product = products[-1]
        if product < wanted:
            return None
    return None


def _is_normal(power: np.ndarray) -> bool:
    """Whether it has all its bits: products that come close to 0 lose them."""
    if power.size != 1 or power.dtype.kind != "f":
        return True  # an error follows
    return float(power.item()) >= float(np.finfo(power.dtype).tiny)


def _read_scalar(bundle: Bundle, key: str) -> int:
    return read_count(key, bundle.array(key))


def _shorten(value: float) -> float:
    """The shortest number that is the same in float32."""
    return float(str(np.float32(value)))
