"""The one check of an Adam state: what it refuses, and that all that takes a state asks it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamx
from adamx.base.adam_state import AdamState, as_adam, check_count, open_state

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
OPTIMIZER = adamx.fused_adam(1e-3, amsgrad=True)
STATE = OPTIMIZER.init(PARAMS)[0]


def changed(field, leaf):
    tree = {"dense": {"kernel": leaf, "bias": getattr(STATE, field)["dense"]["bias"]}}
    return STATE._replace(**{field: tree})


FAULTS = {
    "a float count": (
        STATE._replace(count=jnp.zeros([])),
        "count: expected an integer scalar, .*float32",
    ),
    "a vector of counts": (
        STATE._replace(count=jnp.zeros(2, jnp.int32)),
        r"count: expected an integer scalar, found int32 of shape \(2,\)",
    ),
    "a negative count": (
        STATE._replace(count=jnp.int32(-3)),
        "count: expected .*at least 0, found -3",
    ),
    "no count": (STATE._replace(count=None), "count: expected an integer scalar, found NoneType"),
    "nu of another shape": (
        changed("nu", jnp.zeros((1, 3))),
        r"nu/dense/kernel: expected shape \(2, 3\), like the .*, found \(1, 3\)",
    ),
    "nu_max of another shape": (
        changed("nu_max", jnp.zeros(())),
        r"nu_max/dense/kernel: expected shape \(2, 3\), like the .*, found \(\)",
    ),
    "nu of another structure": (
        STATE._replace(nu={"dense": {"kernel": jnp.ones((2, 3))}}),
        "nu: the structure differs from that of the .*missing: dense/bias",
    ),
    "nu of integers": (
        changed("nu", jnp.ones((2, 3), jnp.int32)),
        "nu/dense/kernel: expected floating-point numbers.*found int32",
    ),
    "a complex nu": (
        changed("nu", jnp.ones((2, 3), jnp.complex64)),
        "nu/dense/kernel: expected floating-point numbers.*found complex64",
    ),
    "mu of integers": (
        changed("mu", jnp.ones((2, 3), jnp.int32)),
        "mu/dense/kernel: expected floating-point numbers.*found int32",
    ),
}

USES = {
    "update": lambda adam: adamx.scale_by_adam(amsgrad=True).update(PARAMS, adam),
    "step": lambda adam: OPTIMIZER.step(PARAMS, PARAMS, (adam, optax.EmptyState())),
    "pack": lambda adam: adamx.pack(adam, PARAMS),
    "to_numpy": adamx.to_numpy,
    "get_weights": adamx.get_weights,
    "checkpoint": lambda adam: adamx.checkpoint.Checkpoint.from_state(
        PARAMS, adam, adamx.AdamConfig(amsgrad=True)
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_use_of_a_state_refuses_it_in_the_same_words(use, fault):
    state, message = FAULTS[fault]
    with pytest.raises((ValueError, TypeError), match=f"^state: {message}"):
        USES[use](state)


@pytest.mark.parametrize("use", ["update", "step", "pack"])
def test_shapes_are_checked_under_jit(use):
    state, message = FAULTS["nu of another shape"]
    with pytest.raises(ValueError, match=message):
        jax.jit(USES[use])(state)


@pytest.mark.parametrize("use", USES)
def test_what_is_right_passes(use):
    USES[use](STATE)
    USES[use](jax.device_get(STATE))


def test_an_open_state_has_the_moments_of_every_leaf():
    opened = open_state(STATE, PARAMS)
    assert opened.treedef == jax.tree.structure(PARAMS)
    for field, column in opened.columns.items():
        for leaf, path in zip(column, opened.paths, strict=True):
            assert leaf is getattr(STATE, field)["dense"][path[-1].key]


def test_a_negative_count_is_not_waited_for_in_a_trace():
    jax.eval_shape(USES["update"], STATE._replace(count=jax.ShapeDtypeStruct((), jnp.int32)))


@pytest.mark.parametrize("count", [-1, np.int32(-1), np.int64(-2)])
def test_a_negative_count_of_python_and_numpy(count):
    with pytest.raises(ValueError, match=f"count: expected a number of at least 0, found {count}"):
        check_count(count)


def test_a_truth_is_no_count():
    with pytest.raises(TypeError, match="count: expected an integer scalar, found bool"):
        check_count(True)
    check_count(0)
    check_count(7)


def test_a_count_of_members_needs_moments_of_each():
    """Where every moment begins with the count's shape; only then it is an ensemble's state."""
    params = {"w": jnp.ones((4, 3))}
    members = AdamState(jnp.zeros(4, jnp.int32), params, params)
    open_state(members, is_ensemble_allowed=True)
    for field in ("mu", "nu"):
        with pytest.raises(TypeError, match=r"count: expected an integer scalar, found int32 of"):
            open_state(
                members._replace(**{field: {"w": jnp.ones((3, 4))}}), is_ensemble_allowed=True
            )


@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_mapping_with_the_fields_of_a_state_is_one(amsgrad):
    state = adamx.scale_by_adam(amsgrad=amsgrad).init(jnp.ones(3))
    found = as_adam(state._asdict())
    assert type(found) is type(state)
    assert jax.tree.map(np.array_equal, found, state) == jax.tree.map(lambda _: True, state)
    assert as_adam(state._asdict() | {"other": jnp.zeros(3)}) is None
