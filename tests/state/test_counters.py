"""Integer scalars of Optax states: which of them follow Adam's count."""

import copy
import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import keystr

import adamx
from adamx.base.errors import InvalidValue
from adamx.checkpoint import Checkpoint
from adamx.state.counters import find_counters

PROMOTES = True  # Optax's wrappers do
STEPS = 5
PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
SCHEDULE = optax.linear_schedule(1e-2, 0.0, 100)


def multi_steps(adam, **kwargs):
    return optax.MultiSteps(adam, 2, **kwargs).gradient_transformation()


def is_odd(step):
    return step % 2 == 1


@chex.dataclass
class Noted:
    """What someone's own transformation keeps, in a dataclass."""

    count: Any


class Wrapped(NamedTuple):
    count: Any
    inner: Any


class Named(NamedTuple):
    steps: Any


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


def counting(make):
    """A transformation that keeps `make(count)` and does nothing."""

    def update(updates, state, params=None):
        del params
        return updates, make(jax.tree.leaves(state)[0] + 1)

    return optax.GradientTransformation(lambda _: make(jnp.zeros([], jnp.int32)), update)


def adam(learning_rate=SCHEDULE):
    return adamx.adam(learning_rate)


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


def trained(tx, steps):
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for t in range(steps):
        _, state = update(jax.tree.map(lambda p, t=t: p + 0.5 + t, PARAMS), state, PARAMS)
    return state


def names(state, kind):
    return sorted(counter.name for counter in find_counters(state) if counter.kind == kind)


def values(state, *kinds):
    leaves = {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    paths = [keystr(counter.path) for counter in find_counters(state) if counter.kind in kinds]
    return {path: int(leaves[path]) for path in paths}


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


GATED = {
    "MultiSteps": multi_steps(adam()),
    "apply_if_finite": optax.apply_if_finite(adam(), 3),
    "conditionally_mask": optax.conditionally_mask(adam(), is_odd),
    "conditionally_transform": optax.conditionally_transform(adam(), is_odd),
    "sam": optax.contrib.sam(adam(), optax.sgd(1e-3)),
}


def check_error(state, message):
    """Nothing is set to another step, nor changed; to the same step everything can be set."""
    before = copy.deepcopy(state)
    count, *moments = adamx.get_weights(state)
    with pytest.raises(InvalidValue, match=message) as error:
        adamx.set_weights(state, [count + 1, *moments])
    assert "The state was left as it was" in str(error.value)
    chex.assert_trees_all_equal(state, before)
    chex.assert_trees_all_equal(adamx.set_weights(state, [count, *moments]), before)


@pytest.mark.parametrize("gate", GATED)
def test_a_counter_outside_of_the_gate_around_adam(gate):
    """How many of its calls passed the gate is not known."""
    state = optax.chain(GATED[gate], optax.scale_by_schedule(SCHEDULE)).init(PARAMS)
    name = r"state\[1\].count: ScaleByScheduleState.count"
    check_error(state, f"{name}: expected a counter of the steps that Adam counts, found one on")


@pytest.mark.parametrize("gate", GATED)
def test_a_counter_behind_a_gate_beside_adam(gate):
    names = {"MultiSteps": "inner_opt_state", "sam": "opt_state"}
    gated = jax.tree.map(lambda x: x, GATED[gate].init(PARAMS))
    name = names.get(gate, "inner_state")
    inner = optax.ScaleByScheduleState(jnp.int32(0))
    state = (adam(1e-3).init(PARAMS), gated._replace(**{name: inner}))
    check_error(state, "expected a counter of the steps that Adam counts, found one on")


def test_both_sides_of_sam_are_apart():
    """The adversarial optimizer takes other steps than the other one."""
    state = optax.contrib.sam(adam(), optax.sgd(SCHEDULE)).init(PARAMS)
    check_error(state, r"state.adv_state\[1\].count: ScaleByScheduleState.count: expected")


UNKNOWN = {
    "named_otherwise": (
        optax.chain(counting(lambda count: Named(steps=count)), adam()),
        r"state\[0\].steps: Named.steps: expected integers that are known to",
    ),
    "bare": (
        optax.chain(adam(), counting(lambda count: count)),
        r"state\[1\]: tuple\[1\]: expected",
    ),
    "wrapper": (
        optax.GradientTransformation(lambda p: Wrapped(0, adam().init(p)), optax.identity().update),
        r"state.count: Wrapped.count: expected",
    ),
    "two": (
        optax.chain(*[counting(lambda count: Named(steps=count))] * 2, adam()),
        r"state\[0\].steps: Named.steps, state\[1\].steps: Named.steps: expected",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_integer_is_an_error_that_names_it(name):
    tx, message = UNKNOWN[name]
    check_error(tx.init(PARAMS), message)


def test_a_wrapper_that_keeps_an_average():
    """Its count is that of what went into the average."""
    state = (Wrapped(jnp.int32(0), {"average": jnp.ones(3), "inner": adam().init(PARAMS)}), ())
    assert names(state, "unknown") == ["Wrapped.count"]
    state = (optax.contrib.mechanize(adam()).init(PARAMS), ())
    assert names(state, "stays") == ["MechanicState.count"]


def test_restoring_a_checkpoint_meets_the_same_error():
    config = adamx.AdamConfig()
    state = trained(config.transformation(), STEPS)
    checkpoint = Checkpoint.from_state(PARAMS, state, config)
    with pytest.raises(ValueError, match=r"state\[0\].steps: Named.steps"):
        checkpoint.restore(PARAMS, transformation=UNKNOWN["named_otherwise"][0])


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


def test_an_ensemble_and_a_counter_for_all_of_it():
    """One count cannot go on by as many steps as each of several."""
    tx = optax.chain(adam(), optax.ema(0.9))
    state = jax.vmap(tx.init)(jnp.ones((3, 2)))
    counts = np.array([1, 2, 3], np.int32)
    moved = adamx.set_weights(state, [counts, *adamx.get_weights(state)[1:]])
    assert moved[0][1].count.tolist() == [1, 2, 3]
    assert moved[1].count.tolist() == [0, 0, 0]
    shared = (state, optax.scale_by_schedule(SCHEDULE).init(PARAMS))
    check_error(shared, r"state\[1\].count: ScaleByScheduleState.count: expected integers")


def test_schedule_free_goes_on_with_its_learning_rate():
    """Its averages begin anew: with the weights of a fresh one, the next step is that of `adam`."""
    tx, free = adam(1.0), optax.contrib.schedule_free(adam(1.0), SCHEDULE)
    state = free.init(PARAMS)
    moved = adamx.set_weights(state, adamx.get_weights(trained(tx, STEPS)))
    assert (state.step_count, moved.step_count) == (1, 1 + STEPS)
    _, after = free.update(PARAMS, moved, PARAMS)
    # Of a schedule that falls, the rate that is used is also the highest so far.
    assert after.max_lr == SCHEDULE(1 + STEPS) != SCHEDULE(1)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int16"])
def test_counters_stop_at_the_largest_number_and_at_zero(dtype):
    """As Optax's `safe_increment` does: a schedule that wrapped would begin anew, or before it."""
    last = np.iinfo(dtype).max
    adam_state = adam(1e-3).init(PARAMS)
    weights = adamx.get_weights(adam_state)[1:]

    def move(adam_count, count, to):
        tree = (optax.tree.set(adam_state, count=jnp.int32(adam_count)), Noted(count=count))
        return adamx.set_weights(tree, [to, *weights])[1].count

    for count in (jnp.asarray(last - 2, dtype), np.asarray(last - 2, dtype)):
        assert [int(move(0, count, to)) for to in (1, 2, 3, 2**31 - 1)] == [last - 1, *[last] * 3]
    for count in (jnp.asarray(2, dtype), np.asarray(2, dtype)):
        assert [int(move(9, count, to)) for to in (8, 7, 6, 0)] == [1, 0, 0, 0]
        assert move(9, count, 0).dtype == dtype


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
