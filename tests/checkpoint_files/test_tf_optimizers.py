"""Which optimizer a TensorFlow checkpoint holds: by names in TensorFlow 1, by objects in 2."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from adamx import AdamConfig
from adamx.checkpoint import CheckpointError, load
from tests.checkpoint_files.bundle_writer import Objects, write_bundle

CONFIG = AdamConfig(convention="keras", float32=True)
AMSGRAD = AdamConfig(convention="keras", amsgrad=True)
STEPS = 5
END = "/.ATTRIBUTES/VARIABLE_VALUE"


VALUES = itertools.count(1)


def numbers(*shape):
    """Arrays that no two calls have alike."""
    return np.full(shape, next(VALUES), np.float32)


def power(factor, steps):
    """What TensorFlow holds after so many steps: a product of float32 numbers, one by one."""
    product = np.float32(factor)
    for _ in range(steps):
        product *= np.float32(factor)
    return product


def tf1(names=("net/a", "net/b"), slots="Adam", scope="", steps=STEPS, **others):
    """The variables of a graph of TensorFlow 1."""
    tensors = {f"{scope}beta1_power": power(0.9, steps), f"{scope}beta2_power": power(0.999, steps)}
    for name in names:
        tensors[name] = numbers(3)
        tensors |= {f"{scope}{name}/{slots}{end}": numbers(3) for end in ("", "_1")}
    return {name: np.asarray(array) for name, array in (tensors | others).items()}


AVERAGE = {"net/a/ExponentialMovingAverage": np.ones(3, np.float32)}
FROZEN = {"net/frozen": np.ones(3, np.float32)}
GRAPHS = {
    "as it is": (tf1(), ("net/a", "net/b"), ()),
    "in a scope": (tf1(scope="train/"), ("net/a", "net/b"), ()),
    "another name": (tf1(slots="opt"), ("net/a", "net/b"), ("the slots .* are called opt",)),
    "frozen": (tf1(**FROZEN), ("net/a", "net/b"), ()),
    "averages": (tf1(**AVERAGE), ("net/a", "net/b"), ()),
    "text": (tf1() | {"net/vocabulary": b"a text"}, ("net/a", "net/b"), ()),
    "flag": (tf1(flag=np.asarray(True)), ("net/a", "net/b"), ()),
    "the same step": (tf1(global_step=np.int64(STEPS)), ("net/a", "net/b"), ()),
    "another step": (
        tf1(global_step=np.int64(1_000)),
        ("net/a", "net/b"),
        ("global_step is 1000, but by the powers of b1 and b2 the optimizer has done 5 steps",),
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_tensorflow_1(name, tmp_path):
    tensors, names, notes = GRAPHS[name]
    checkpoint = load(write_bundle(tmp_path / "model", tensors), config=CONFIG)
    assert (checkpoint.framework, checkpoint.count) == ("tf1", STEPS)
    assert checkpoint.names == names
    for variable in names:
        [first] = [key for key in tensors if key.endswith((f"{variable}/Adam", f"{variable}/opt"))]
        np.testing.assert_array_equal(checkpoint.mu[variable], tensors[first])
        np.testing.assert_array_equal(checkpoint.nu[variable], tensors[f"{first}_1"])
        np.testing.assert_array_equal(checkpoint.params[variable], tensors[variable])
    assert set(checkpoint.params) == {*names, *(FROZEN if name == "frozen" else {})}
    assert list(checkpoint.extra) == (["average/net/a"] if name == "averages" else [])
    unread = {"text": ("net/vocabulary",), "flag": ("flag",)}.get(name, ())
    assert checkpoint.not_read == unread
    assert len(checkpoint.notes) == len(notes)
    for found, expected in zip(checkpoint.notes, notes, strict=True):
        assert re.search(expected, found)


@pytest.mark.parametrize("steps", [0, 1, 500, 2_000, 80_000])
def test_the_count_comes_from_the_powers(steps, tmp_path):
    index = write_bundle(tmp_path / "model", tf1(steps=steps))
    assert load(index, config=CONFIG).count == steps


GONE = {"beta1_power": np.float32(0), "beta2_power": np.float32(0)}
REFUSED = {
    "powers gone": (tf1() | GONE, "beta2_power: expected a power of b2 above 0, or global_step"),
    "no powers": (
        {"a": numbers(3), "a/Adam": numbers(3), "a/Adam_1": numbers(3)},
        "beta1_power: expected a variable of",
    ),
    "no slots": ({"a": numbers(3)}, "found no slots"),
    "no second": ({k: v for k, v in tf1().items() if k != "net/a/Adam_1"}, "nu/net/a: missing"),
    "two": (tf1(beta1_power_1=np.float32(0.9)), "those of several"),
    "on one variable": (tf1(**{"net/a/Adam_2": numbers(3)}), "Adam, Adam_2: two optimizers"),
    "RMSProp": ({"a": numbers(3), "a/RMSProp": numbers(3), "a/RMSProp_1": numbers(3)}, "RMSProp"),
    "BERT": (tf1(**{"net/a/adam_m": numbers(3)}), "without bias correction"),
    "unlike powers": (tf1(beta2_power=power(0.999, 7)), r"those after \[5, 7\]"),
    "misshapen": (tf1(**{"net/a/Adam": numbers(4)}), "expected moments of shape|expected shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_graphs_of_tensorflow_1(name, tmp_path):
    tensors, message = REFUSED[name]
    tensors = {key: np.asarray(array) for key, array in tensors.items()}
    index = write_bundle(tmp_path / "model", tensors)
    with pytest.raises(CheckpointError, match=message):
        load(index, config=CONFIG)


def test_a_step_alone_tells_the_count_and_says_so(tmp_path):
    tensors = tf1(global_step=np.int64(90_000)) | {k: np.asarray(v) for k, v in GONE.items()}
    checkpoint = load(write_bundle(tmp_path / "model", tensors), config=CONFIG)
    assert checkpoint.count == 90_000
    assert checkpoint.notes == ("the number of steps is taken from global_step alone",)


def test_a_wrong_b2_without_a_step_is_told(tmp_path):
    index = write_bundle(tmp_path / "model", tf1())
    with pytest.warns(UserWarning, match=r"b2 0\.999, given 0\.99"):
        assert load(index, config=AdamConfig(b2=0.99, convention="keras")).count == STEPS
    with pytest.raises(CheckpointError, match="the b1 and b2 of the run") as caught:
        load(index, config=AdamConfig(b1=0.8, b2=0.99, convention="keras"))
    assert caught.value.argument == "config"


# Object graphs.

LAYERS = ("a", "b")


def keras(kind="keras3", *, names=LAYERS, spelled=None, own="adam", order=None):
    """A model and an optimizer whose variables are numbered; and the root's node of each."""
    graph = Objects()
    model, optimizer = graph.add(0, "model"), graph.add(0, "optimizer")
    graph.add(optimizer, "_iterations", f"{own}/iteration", np.int64(STEPS))
    graph.add(optimizer, "_learning_rate", f"{own}/learning_rate", np.float32(1e-3))
    trained = [
        graph.add(model, f"layer {i}", f"net/{name}", numbers(3)) for i, name in enumerate(names)
    ]
    if kind == "keras3":
        part = graph.add(optimizer, "_trainable_variables")
        for index, number in enumerate(trained):
            graph.link(part, str(index), number)
    for part, role, letter in (("_momentums", "momentum", "m"), ("_velocities", "velocity", "v")):
        number = graph.add(optimizer, part)
        for index in order or range(len(names)):
            name = (spelled or names)[index]
            called = (
                f"{own}/net_{name}_{role}" if kind == "keras3" else f"{own}/{letter}/net/{name}"
            )
            graph.add(number, str(len(graph.nodes)), called, numbers(3))
    return graph, model, optimizer


@pytest.mark.parametrize("kind", ["keras3", "tf_keras"])
def test_names_come_before_order(kind, tmp_path):
    graph, _, _ = keras(kind, order=(1, 0))
    checkpoint = load(graph.write(tmp_path / "model"), config=CONFIG)
    assert checkpoint.framework == kind
    assert checkpoint.names == ("net/b", "net/a")
    assert set(checkpoint.naming.values()) == {"file"}
    assert list(checkpoint.params) == ["net/b", "net/a"]


@pytest.mark.parametrize(("kind", "naming"), [("keras3", "inferred"), ("tf_keras", "unknown")])
def test_where_names_do_not_tell(kind, naming, tmp_path):
    graph, _, _ = keras(kind, spelled=("x", "x"))
    checkpoint = load(graph.write(tmp_path / "model"), config=CONFIG)
    assert set(checkpoint.naming.values()) == {naming}
    assert checkpoint.names == (("net/a", "net/b") if kind == "keras3" else ("0", "1"))


def test_variables_called_the_same_have_their_paths(tmp_path):
    graph, _, _ = keras(names=("a", "a"))
    checkpoint = load(graph.write(tmp_path / "model"), config=CONFIG)
    assert checkpoint.names == ("1/layer 0", "1/layer 1")
    assert set(checkpoint.naming.values()) == {"inferred"}


def legacy(slots=("m", "v"), own="Adam", names=LAYERS):
    """A model and an optimizer with slots, and with a schedule."""
    graph = Objects()
    model, optimizer = graph.add(0, "model"), graph.add(0, "optimizer")
    graph.add(optimizer, "iter", f"{own}/iter", np.int64(STEPS))
    for name in names:
        variable = graph.add(model, name, f"net/{name}", numbers(3))
        for slot in slots:
            called = f"{own}/net/{name}/{slot}"
            graph.add_slot(optimizer, slot, variable, called, numbers(3))
    return graph, model, optimizer


def add_part(name, full_name):
    def change(graph, optimizer):
        graph.add(optimizer, name, full_name, np.float32(1))

    return change


def add_list(graph, optimizer):
    graph.add(graph.add(optimizer, "_accumulated_gradients"), "0", "x", numbers(3))


OTHERS = {
    "Lamb": (lambda: keras(own="lamb"), None, "lamb/iteration: .*found one of lamb"),
    "Adamax": (lambda: legacy(own="Adamax"), None, "found one of Adamax"),
    "Nadam": (
        keras,
        add_part("_u_product", "nadam/variable"),
        "_u_product: .*only the variables of Adam",
    ),
    "momentum_cache": (
        legacy,
        add_part("momentum_cache", "x"),
        "momentum_cache: .*only the variables of Adam",
    ),
    "accumulation": (keras, add_list, "counts each part as a step"),
    "no second moments": (lambda: legacy(("m",)), None, "expected the state of an Adam"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_are_refused(name, tmp_path):
    make, change, message = OTHERS[name]
    graph, _, optimizer = make()
    if change is not None:
        change(graph, optimizer)
    with pytest.raises(CheckpointError, match=message):
        load(graph.write(tmp_path / "model"), config=CONFIG)


def test_a_layer_may_be_called_as_an_optimizer(tmp_path):
    graph, _, _ = keras("tf_keras", names=("lamb/a", "nadam/b"))
    assert load(graph.write(tmp_path / "lists"), config=CONFIG).count == STEPS
    graph, _, _ = legacy(names=("lamb/a", "nadam/b"))
    config = dataclasses.replace(CONFIG, learning_rate=lambda _: 0.1)
    assert load(graph.write(tmp_path / "slots"), config=config).count == STEPS


def test_maxima_and_a_schedule(tmp_path):
    graph, _, _ = legacy(("m", "v", "vhat"))
    index = graph.write(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"learning_rate a schedule, given 0\.001"):
        checkpoint = load(index, config=AMSGRAD)
    assert set(checkpoint.nu_max) == {"net/a", "net/b"}
    assert checkpoint.framework == "tf_keras_legacy"


def test_two_optimizers_and_two_models(tmp_path):
    graph, first, _ = keras("tf_keras")
    second, other = graph.add(0, "second"), graph.add(0, "other")
    graph.add(other, "iter", "Adam/iter", np.int64(9))
    graph.add(other, "learning_rate", "Adam/learning_rate", np.float32(1e-3))
    variable = graph.add(second, "a", "net/a", numbers(3))
    for slot in ("m", "v"):
        graph.add_slot(other, slot, variable, f"Adam/net/a/{slot}", numbers(3))
    index = graph.write(tmp_path / "model")
    with pytest.raises(CheckpointError, match="found 2: optimizer, other") as caught:
        load(index, config=CONFIG)
    assert caught.value.argument == "optimizer"
    # Slots tell their variable; of the names in a list there are two.
    checkpoint = load(index, config=CONFIG, optimizer="other")
    assert (checkpoint.names, checkpoint.count) == ((f"{second}/a",), 9)
    checkpoint = load(index, config=CONFIG, optimizer="optimizer")
    assert checkpoint.names == ("0", "1")
    checkpoint = load(index, config=CONFIG, optimizer="optimizer", weights="model")
    assert checkpoint.names == tuple(checkpoint.params) == ("net/a", "net/b")
    np.testing.assert_array_equal(
        checkpoint.params["net/a"], graph.tensors[f"{first}/layer 0{END}"]
    )
    for wrong in ({"optimizer": "none"}, {"optimizer": "other", "weights": "none"}):
        with pytest.raises(CheckpointError, match="found 'none'") as caught:
            load(index, config=CONFIG, **wrong)
        assert caught.value.argument == list(wrong)[-1]
