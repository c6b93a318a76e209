"""The recorded checkpoints of today's trainers, and what a reader has to make of them."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax

__all__ = ["WILD", "Case", "check_arrays", "check_names", "check_steps", "read_case"]

WILD = Path(__file__).parents[1] / "golden" / "wild"
FIELDS = ("mu", "nu", "nu_max")


@dataclasses.dataclass(frozen=True)
class Case:
    """A recorded checkpoint.

    Attributes:
      path: what a user would give to `load`.
      told: what `case.json` says.
      truth: the arrays by kind and name.
    """

    path: Path
    told: dict
    truth: dict

    @property
    def names(self):
        """The optimizer's variables, in its order."""
        return [name for group in self.told["groups"] for name in group["names"]]


def read_case(name, entry=None, truth="truth.npz", groups=None):
    folder = WILD / name
    told = json.loads((folder / "case.json").read_text())
    told = told if groups is None else told | {"groups": groups}
    kinds = {}
    with np.load(folder / truth) as file:
        for key in file:
            kind, _, variable = key.partition("|")
            kinds.setdefault(kind, {})[variable] = file[key]
    return Case(folder / (entry or told["entry"]), told, kinds)


def shorten(name):
    """A name without what wrappers of a model put before it."""
    for prefix in ("_orig_mod.", "module.", "net.", "sequential/"):
        name = name.removeprefix(prefix)
    return name


def check_names(case, checkpoint):
    """Names and groups are the optimizer's, in its order."""
    groups = [[shorten(name) for name in group["names"]] for group in case.told["groups"]]
    assert [[shorten(name) for name in group.names] for group in checkpoint.groups] == groups


def check_arrays(case, checkpoint):
    """Moments, weights and counts are bit-equal to the recorded ones, by name."""
    for field in FIELDS:
        found = {shorten(name): array for name, array in getattr(checkpoint, field).items()}
        recorded = {shorten(n): array for n, array in case.truth.get(field, {}).items()}
        assert found.keys() == recorded.keys(), field
        for name, array in recorded.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{field}/{name}")
            assert found[name].dtype == array.dtype, name
    weights = {shorten(name): array for name, array in checkpoint.params.items()}
    for name, array in case.truth["param"].items():
        if checkpoint.params:
            np.testing.assert_array_equal(weights[shorten(name)], array, err_msg=name)
    steps = {shorten(name): int(count) for name, count in case.truth["step"].items()}
    assert steps == {shorten(n): g.count for g in checkpoint.groups for n in g.names}


def check_steps(case, checkpoint, within=2e-6, final="final", **arguments):
    """Five further steps on the recorded gradients end where the original optimizer did."""
    params = {name: jnp.asarray(array) for name, array in case.truth["param"].items()}
    own = {shorten(name): name for name in checkpoint.names}
    order = {own[shorten(name)]: name for name in params}
    tx, state = checkpoint.restore(params, order=order, layout=lambda _, array: array, **arguments)
    for step in range(5):
        told = case.truth[f"grad{step}"]
        gradients = {name: jnp.asarray(told[name]) for name in case.truth["param"]}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, array in case.truth[final].items():
        assert np.max(np.abs(params[name] - array)) <= within, name
