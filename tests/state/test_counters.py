"""Integer scalars of Optax states: which of them follow Adam's count."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import keystr

import adamx
from adamx.state.counters import find_counters
from tests.state.counted import (
    PARAMS,
    SCHEDULE,
    STEPS,
    UNKNOWN,
    Noted,
    adam,
    counting,
    is_odd,
    multi_steps,
    names,
    trained,
)

PROMOTES = True  # Optax's wrappers do


@dataclasses.dataclass
class OfKey:
    """A stateful schedule's state."""

    count: Any
    key: Any


jax.tree_util.register_dataclass(OfKey)


class Drawn(optax.schedules.StatefulSchedule):
    """Random numbers in [0, 1)."""

    def init(self):
        """No draw yet."""
        return OfKey(count=jnp.zeros([], jnp.int32), key=jax.random.key(0))

    def update(self, state, **extra_args):
        """One more draw."""
        del extra_args
        return OfKey(count=state.count + 1, key=state.key)

    def __call__(self, state, **extra_args):
        """The next number."""
        del extra_args
        return jax.random.uniform(jax.random.fold_in(state.key, state.count))


# For each transformation its integer scalars but Adam's: those that follow and those that stay.
KNOWN = {
    "adamw": (
        adamx.adamw(SCHEDULE, weight_decay=SCHEDULE),
        "ScaleByScheduleState.count WeightDecaySchedule.count",
        "",
    ),
    "noise": (
        optax.chain(optax.add_noise(0.1, 0.55, 0), adam(), adamx.stochastic_round(0)),
        "AddNoiseState.count ScaleByScheduleState.count StochasticRoundState.count",
        "",
    ),
    "ema": (optax.chain(adam(), optax.ema(0.9)), "ScaleByScheduleState.count", "EmaState.count"),
    "apply_every": (optax.chain(adam(1.0), optax.apply_every(3)), "", "ApplyEvery.count"),
    "named_chain": (
        optax.named_chain(("count", optax.scale_by_schedule(SCHEDULE)), ("adam", adam(1e-3))),
        "ScaleByScheduleState.count",
        "",
    ),
    "inject": (
        optax.inject_hyperparams(adamx.adamw)(SCHEDULE, b1=SCHEDULE, weight_decay=1),
        "InjectStatefulHyperparamsState.count WrappedScheduleState.count "
        "WrappedScheduleState.count",
        "InjectStatefulHyperparamsState.hyperparams['weight_decay']",
    ),
    "stateful": (
        optax.inject_hyperparams(adamx.adam)(Drawn()),
        "InjectStatefulHyperparamsState.count OfKey.count",
        "",
    ),
    "partition": (
        optax.partition({"a": adam(), "b": optax.adan(SCHEDULE)}, {"kernel": "a", "bias": "b"}),
        "ScaleByScheduleState.count ScaleByScheduleState.count",
        "ScaleByAdanState.t",
    ),
    "masked": (
        optax.masked(adam(), {"kernel": True, "bias": False}),
        "ScaleByScheduleState.count",
        "",
    ),
    "muon": (
        optax.contrib.muon(SCHEDULE),
        "ScaleByScheduleState.count ScaleByScheduleState.count",
        "MuonState.count",
    ),
    "MultiSteps": (
        multi_steps(adam(), should_skip_update_fn=optax.skip_not_finite),
        "MultiStepsState.gradient_step ScaleByScheduleState.count",
        "MultiStepsState.mini_step MultiStepsState.skip_state['num_not_finite']",
    ),
    "apply_if_finite": (
        optax.apply_if_finite(adam(), 3),
        "ScaleByScheduleState.count",
        "ApplyIfFiniteState.notfinite_count ApplyIfFiniteState.total_notfinite",
    ),
    "conditionally_beside": (
        optax.chain(adam(), optax.conditionally_transform(optax.scale(2.0), is_odd)),
        "ConditionallyTransformState.step ScaleByScheduleState.count",
        "",
    ),
    "monitor": (
        optax.chain(adam(), optax.monitor({"n": lambda _: jnp.int32(3), "e": optax.ema(0.9)})),
        "ScaleByScheduleState.count",
        "EmaState.count MonitorState.measurements['n']",
    ),
    "snapshot": (
        optax.chain(adam(1e-3), optax.snapshot("n", lambda _: jnp.int32(3))),
        "",
        "SnapshotState.measurement['n']",
    ),
    "mechanize": (
        optax.contrib.mechanize(adam()),
        "ScaleByScheduleState.count",
        "MechanicState.count",
    ),
    "galore": (
        optax.contrib.galore(SCHEDULE, rank=2),
        "ScaleByScheduleState.count",
        "GaLoreState.count",
    ),
    "ademamix": (
        optax.partition(
            {"a": adam(), "b": optax.contrib.ademamix(1e-3)}, {"kernel": "a", "bias": "b"}
        ),
        "ScaleByScheduleState.count",
        "ScaleByAdemamixState.count ScaleByAdemamixState.count_m2",
    ),
    "schedule_free": (
        optax.contrib.schedule_free(adam(), SCHEDULE),
        "ScaleByScheduleState.count ScheduleFreeState.step_count",
        "",
    ),
    "split": (
        optax.contrib.split_real_and_imaginary(adam()),
        "ScaleByScheduleState.count",
        "",
    ),
    "dataclass": (
        optax.chain(adam(1e-3), counting(lambda count: Noted(count=count))),
        "Noted.count",
        "",
    ),
    "dict": (optax.chain(adam(1e-3), counting(lambda count: {"count": count})), "[1]['count']", ""),
}


def values(state, *kinds):
    leaves = {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    paths = [keystr(counter.path) for counter in find_counters(state) if counter.kind in kinds]
    return {path: int(leaves[path]) for path in paths}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", KNOWN)
def test_kinds(name):
    tx, follow, stay = KNOWN[name]
    state = trained(tx, 1)
    follow = ["tuple" + n if n.startswith("[") else n for n in follow.split()]
    assert names(state, "follows") == sorted(follow)
    assert names(state, "stays") == sorted(stay.split())
    assert names(state, "unknown") == []
    assert len(names(state, "adam")) == 1


@pytest.mark.parametrize("name", KNOWN)
def test_a_fresh_state_counts_on_as_the_trained_one(name):
    """What follows is where training took it, what stays is where it was."""
    tx = KNOWN[name][0]
    state, fresh = trained(tx, STEPS), tx.init(PARAMS)
    moved = adamx.set_weights(fresh, adamx.get_weights(state))
    assert values(moved, "adam", "follows") == values(state, "adam", "follows")
    assert values(moved, "stays") == values(fresh, "stays")
    assert set(values(moved, "adam").values()) == {STEPS // 2 if name == "MultiSteps" else STEPS}
    back = adamx.set_weights(moved, adamx.get_weights(fresh))
    assert values(back, "adam", "follows") == values(fresh, "adam", "follows")
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, fresh)


@pytest.mark.parametrize(
    "name", ["adamw", "inject", "stateful", "masked", "apply_if_finite", "named_chain", "split"]
)
def test_the_next_update_is_the_same(name):
    """Its learning rate, decay and b1 included."""
    tx = KNOWN[name][0]
    state = trained(tx, STEPS)
    moved = adamx.from_numpy(tx.init(PARAMS), adamx.to_numpy(state))
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    expected, found = (tx.update(gradients, s, PARAMS) for s in (state, moved))
    chex.assert_trees_all_equal(found, expected)


def test_inject_hyperparams_of_old():
    """The state that Optax made before 0.1.9, which it can still read."""
    state = optax.InjectHyperparamsState(
        count=jnp.int32(0), hyperparams={"b1": 0.9, "k": 1}, inner_state=adam().init(PARAMS)
    )
    moved = adamx.set_weights(state, [np.int32(3), *adamx.get_weights(state)[1:]])
    assert (moved.count, moved.inner_state[1].count, moved.hyperparams["k"]) == (3, 3, 1)


def test_lookahead():
    """It calls what it holds at every step; how far it is from the next synchronization stays."""
    tx = optax.lookahead(adam(), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(PARAMS)
    state = tx.init(params)
    for _ in range(STEPS):
        _, state = tx.update(PARAMS, state, params)
    moved = adamx.set_weights(tx.init(params), adamx.get_weights(state))
    assert values(moved, "follows") == values(state, "follows") == {".fast_state[1].count": STEPS}
    assert values(moved, "stays") == {".steps_since_sync": 0}


def test_a_line_search_and_a_plateau_keep_what_they_measured():
    tx = optax.chain(
        adam(), optax.contrib.reduce_on_plateau(), optax.scale_by_backtracking_linesearch(5)
    )
    assert names(tx.init(PARAMS), "stays") == [
        "BacktrackingLinesearchInfo.num_linesearch_steps",
        "ReduceLROnPlateauState.cooldown_count",
        "ReduceLROnPlateauState.count",
        "ReduceLROnPlateauState.plateau_count",
    ]


def test_flax_nnx():
    """It has a box around each leaf."""
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    tx = optax.chain(multi_steps(adam()), optax.ema(0.9))
    state = nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state
    assert names(state, "adam") == ["ScaleByAdamState.count"]
    assert names(state, "follows") == [
        "MultiStepsState.gradient_step",
        "ScaleByScheduleState.count",
    ]
    assert names(state, "stays") == ["EmaState.count", "MultiStepsState.mini_step"]
    other = nnx.Optimizer(model, UNKNOWN["named_otherwise"][0], wrt=nnx.Param).opt_state
    assert names(other, "unknown") == ["Named.steps"]


def test_schedule_free_goes_on_with_its_learning_rate():
    """Its averages begin anew: with the weights of a fresh one, the next step is that of `adam`."""
    tx, free = adam(1.0), optax.contrib.schedule_free(adam(1.0), SCHEDULE)
    state = free.init(PARAMS)
    moved = adamx.set_weights(state, adamx.get_weights(trained(tx, STEPS)))
    assert (state.step_count, moved.step_count) == (1, 1 + STEPS)
    _, after = free.update(PARAMS, moved, PARAMS)
    # Of a schedule that falls, the rate that is used is also the highest so far.
    assert after.max_lr == SCHEDULE(1 + STEPS) != SCHEDULE(1)


def test_python_numbers():
    state = (adam().init(PARAMS), Noted(count=0))
    moved = adamx.set_weights(state, [3, *adamx.get_weights(state)[1:]])
    assert moved[1].count == 3
    assert type(moved[1].count) is int


# Called with nothing, with a number, a schedule or an Adam, whatever works first.
ARGUMENTS: tuple[tuple[Any, ...], ...] = ((SCHEDULE,), (1e-3,), (), (adam(),), (adam(), SCHEDULE))


@pytest.mark.parametrize("module", [optax, optax.contrib], ids=lambda module: module.__name__)
def test_all_of_optax_is_known(module):
    """There is no integer of which it is not known whose steps it counts."""
    unknown, tried = set(), 0
    for name in sorted(vars(module)):
        for arguments in ARGUMENTS:
            try:
                tx = getattr(module, name)(*arguments)
                counters = find_counters(tx.init(PARAMS))
            except Exception:  # no transformation, or other arguments
                continue
            tried += 1
            unknown |= {counter.name for counter in counters if counter.kind == "unknown"}
            break
    assert tried >= (60 if module is optax else 15)
    assert not unknown
