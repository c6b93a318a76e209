"""What goes where: by names, by an order, by shapes that leave no doubt; and never by a guess."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, torch_linear
from adamx.checkpoint.fitting import fit

SHAPES = {"in.weight": (4, 3), "in.bias": (4,), "out.weight": (4, 4), "out.bias": (4,)}


def checkpoint_of(shapes, framework="torch", amsgrad=False, **fields):
    """Moments that can be told apart: variable i has i + 1 in mu, its square in nu."""

    def arrays(value):
        return {
            name: np.full(shape, value(i + 1), np.float32)
            for i, (name, shape) in enumerate(shapes.items())
        }

    return Checkpoint(
        **{
            "framework": framework,
            "version": None,
            "config": AdamConfig(convention="torch", amsgrad=amsgrad),
            "count": 5,
            "names": tuple(shapes),
            "params": arrays(float),
            "mu": arrays(float),
            "nu": arrays(lambda i: i**2),
            "nu_max": arrays(lambda i: i**2 + 1) if amsgrad else {},
        }
        | fields
    )


def tree_of(shapes):
    tree = {}
    for path, shape in shapes.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.zeros(shape)
    return tree


def restored(checkpoint, shapes, **arguments):
    """By path, the number that stands in mu."""
    _, state = checkpoint.restore(tree_of(shapes), **arguments)
    return {
        key.removeprefix("mu/"): float(array.flat[0])
        for key, array in adamx.to_numpy(state).items()
        if key.startswith("mu/")
    }


NAMED = {"in/weight": (4, 3), "in/bias": (4,), "out/weight": (4, 4), "out/bias": (4,)}
KERNELS = {"in/kernel": (3, 4), "in/bias": (4,), "out/kernel": (4, 4), "out/bias": (4,)}


def test_by_name():
    expected = {"in/weight": 1, "in/bias": 2, "out/weight": 3, "out/bias": 4}
    assert restored(checkpoint_of(SHAPES), NAMED) == expected


@pytest.mark.parametrize("prefix", ["params", "model/encoder"])
def test_by_name_below_a_common_prefix(prefix):
    nested = {f"{prefix}/{path}": shape for path, shape in NAMED.items()}
    expected = {"in/weight": 1, "in/bias": 2, "out/weight": 3, "out/bias": 4}
    below = {f"{prefix}/{path}": value for path, value in expected.items()}
    assert restored(checkpoint_of(SHAPES), nested) == below
    there = {f"module.{name}": shape for name, shape in SHAPES.items()}
    assert restored(checkpoint_of(there), NAMED) == expected


def test_by_order_and_transform():
    checkpoint = checkpoint_of(SHAPES)
    assert restored(checkpoint, KERNELS, order=list(KERNELS), layout=torch_linear) == dict(
        zip(KERNELS, (1, 2, 3, 4), strict=True)
    )
    other = ["in/kernel", "out/bias", "out/kernel", "in/bias"]
    assert restored(checkpoint, KERNELS, order=other, layout=torch_linear) == dict(
        zip(other, (1, 2, 3, 4), strict=True)
    )


def test_transform_is_applied_to_weights_and_moments_alike():
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    whole = checkpoint_of({"w.weight": (4, 4)}, amsgrad=True)
    arrays = {field: {"w.weight": square + i} for i, field in enumerate(("params", "mu", "nu"))}
    whole = dataclasses.replace(whole, nu_max={"w.weight": square + 3}, **arrays)
    tree = {"w": {"kernel": jnp.zeros((4, 4))}}
    how = {"order": ["w/kernel"], "layout": torch_linear}
    np.testing.assert_array_equal(whole.params_like(tree, **how)["w"]["kernel"], square.T)
    state = adamx.to_numpy(whole.restore(tree, **how)[1])
    for i, field in enumerate(("mu", "nu", "nu_max"), 1):
        np.testing.assert_array_equal(state[f"{field}/w/kernel"], square.T + i)


def test_by_shape_if_there_is_one_way():
    """The last bias has only one place, then the other one too."""
    shapes = {"0": (3, 4), "1": (4,), "2": (4, 5), "3": (5,)}
    tree = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 5), "b/bias": (5,)}
    checkpoint = checkpoint_of(shapes, "keras3", params={})
    assert restored(checkpoint, tree) == dict(zip(tree, (1, 2, 3, 4), strict=True))


def test_by_shape_through_a_transform():
    """Transposed, the two kernels would fit either place; as they are, only one."""
    shapes = {"0": (2, 3), "1": (3, 2)}
    tree = {"a/kernel": (2, 3), "b/kernel": (3, 2)}
    checkpoint = checkpoint_of(shapes, params={})
    assert restored(checkpoint, tree, layout=torch_linear) == {"a/kernel": 2, "b/kernel": 1}


# torch's `nn.Sequential` in Flax: no name is the same, and every shape fits one path only.
SEQUENTIAL = {"0.weight": (5, 2), "0.bias": (5,), "2.weight": (1, 5), "2.bias": (1,)}
DENSE = {
    "Dense_0/bias": (5,),
    "Dense_0/kernel": (2, 5),
    "Dense_1/bias": (1,),
    "Dense_1/kernel": (5, 1),
}


def swap_axes(path, array):
    """A layout that fails for what it is not meant for: a bias, and a kernel at a bias's path."""
    return {"kernel": np.swapaxes(array, 0, 1)}[path.split("/")[-1]] if array.ndim > 1 else array


@pytest.mark.parametrize(
    "layout",
    [
        torch_linear,
        swap_axes,
        lambda path, array: np.einsum("oi->io", array) if "kernel" in path else array,
        lambda path, array: jnp.swapaxes(array, 0, 1) if "kernel" in path else array,
        lambda path, array: array.T if "kernel" in path else {array.ndim: array}[1],
        lambda path, array: array.T if "kernel" in path else (array if array.ndim == 1 else None),
    ],
)
def test_a_layout_that_fails_for_other_layers_ends_no_search(layout):
    checkpoint = checkpoint_of(SEQUENTIAL)
    expected = {"Dense_0/bias": 2, "Dense_0/kernel": 1, "Dense_1/bias": 4, "Dense_1/kernel": 3}
    assert restored(checkpoint, DENSE, layout=layout) == expected
    weights = checkpoint.params_like(tree_of(DENSE), layout=layout)
    assert float(weights["Dense_1"]["kernel"][0, 0]) == 3


def test_a_layout_is_asked_only_for_as_many_entries():
    asked = []

    def layout(path, array):
        asked.append((path, array.shape))
        return torch_linear(path, array)

    restored(checkpoint_of(SEQUENTIAL), DENSE, layout=layout)
    assert {np.prod(shape) == np.prod(DENSE[path]) for path, shape in asked} == {True}


@pytest.mark.parametrize("shapes", [SEQUENTIAL, {**SEQUENTIAL, "0.bias": (9,)}])
def test_a_layout_that_fails_everywhere_is_named(shapes):
    with pytest.raises(
        CheckpointError, match=r"(?s)the tree:.*\n  0\.weight to Dense_0/kernel: the"
    ) as e:
        restored(checkpoint_of(shapes), DENSE, layout=lambda _, array: array.transposed())
    assert "AttributeError: 'numpy.ndarray' object has no attribute 'transposed'" in str(e.value)


def test_a_kernel_that_cannot_cross_is_named_among_other_names():
    """Between frameworks, too, shapes may have to decide; the reason must not get lost."""
    keras = checkpoint_of({"conv/kernel": (3, 3, 1, 2), "conv/bias": (2,)}, "keras3")
    torch = checkpoint_of({"c.weight": (2, 1, 3, 3), "c.shift": (2,)})
    with pytest.raises(CheckpointError, match="conv/kernel: expected the kernel of a dense layer"):
        fit(keras, torch)
    dense = checkpoint_of({"a/kernel": (3, 2), "a/bias": (2,)}, "keras3")
    there = checkpoint_of({"b.shift": (2,), "b.weight": (2, 3)})
    assert fit(dense, there)[0].mu["b.weight"].flat[0] == 1


NOT_IN_ORDER = ["Dense_0/bias", "Dense_0/kernel", "Dense_1/kernel", "Dense_1/bias"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (torch_linear, "Dense_0/bias: expected a path that ends in kernel .*say with order="),
        (lambda _, array: array.no, "Dense_0/bias: the layout raised AttributeError: .*no"),
        (lambda path: path, "Dense_0/bias: the layout raised TypeError: .* It is called with"),
        (lambda *_: None, "Dense_0/bias: expected an array from the layout, found NoneType"),
        (lambda *_: "x", "Dense_0/bias: expected an array from the layout, found str"),
        (lambda *_: [[1], [2, 3]], "expected an array from the layout, found list"),
        (lambda _, array: array.ravel(), r"Dense_0/bias: expected shape \(5,\), found \(10,\)"),
    ],
)
@pytest.mark.parametrize("method", ["restore", "params_like"])
def test_a_layout_that_fails_where_the_order_says(layout, message, method):
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        getattr(checkpoint_of(SEQUENTIAL), method)(
            tree_of(DENSE), order=NOT_IN_ORDER, layout=layout
        )


def test_a_layout_is_a_function():
    checkpoint, tree = checkpoint_of({"a": (2,)}), {"a": jnp.zeros(2)}
    with pytest.raises(TypeError, match=r"layout: expected a function .* found 'torch_l"):
        checkpoint.restore(tree, layout="torch_linear")
    with pytest.raises(TypeError, match="layout: expected a function"):
        checkpoint.params_like(tree, layout=0)
    state = checkpoint.config.transformation().init(tree)
    with pytest.raises(CheckpointError, match="a: the layout raised KeyError"):
        Checkpoint.from_state(tree, state, checkpoint.config, layout=lambda path, _: {}[path])


def test_a_layout_may_cast_and_narrow_numbers_stay():
    checkpoint = checkpoint_of({"a": (2,)}, mu={"a": np.ones(2, jnp.bfloat16)})
    _, state = checkpoint.restore({"b": jnp.zeros(2)}, layout=lambda _, array: array)
    assert state[0].mu["b"].dtype == jnp.float32
    tree = {"b": jnp.zeros(2, jnp.bfloat16)}
    weights = checkpoint.params_like(tree, layout=lambda _, x: x.astype(jnp.bfloat16))
    assert weights["b"].dtype == jnp.bfloat16


def test_more_than_one_way_is_an_error():
    shapes = {"0": (3, 4), "1": (4,), "2": (4, 4), "3": (4,)}
    with pytest.raises(CheckpointError) as raised:
        restored(checkpoint_of(shapes, "keras3", params={}), KERNELS)
    message = str(raised.value)
    assert "more than one assignment has the right shapes" in message
    assert "order=[the tree's paths in the file's order]" in message
    for line in ("0 (3, 4)", "1 (4,)", "in/kernel (3, 4)", "out/bias (4,)"):
        assert f"\n  {line}" in message


def test_all_faults_in_one_error():
    tree = {"in/weight": (4, 2), "in/bias": (4,), "out/weight": (4, 4), "more/bias": (4,)}
    with pytest.raises(CheckpointError) as raised:
        restored(checkpoint_of(SHAPES), tree)
    message = str(raised.value)
    assert "\n  more/bias: not in the file" in message
    assert "\n  out.bias: in the file, but not in the tree" in message
    assert "\n  in/weight: expected shape (4, 2), found (4, 3)" in message
    assert "\nThe file has, in its order:\n  in.weight (4, 3)\n  in.bias (4,)\n" in message
    assert message.count("out.bias") == message.count("more/bias") == 1


def test_a_square_kernel_of_torch_needs_a_transform():
    """Its shape does not tell that it is transposed."""
    checkpoint = checkpoint_of({"a.weight": (4, 4), "a.bias": (4,)})
    tree = {"a/kernel": (4, 4), "a/bias": (4,)}
    with pytest.raises(CheckpointError, match=r"(?s)a/kernel: a\.weight .* layout=.*torch_linear"):
        restored(checkpoint, tree, order=["a/kernel", "a/bias"])
    as_it_is = restored(
        checkpoint, tree, order=["a/kernel", "a/bias"], layout=lambda _, array: array
    )
    assert as_it_is == {"a/kernel": 1, "a/bias": 2}


def test_a_square_weight_from_keras_needs_a_transform():
    checkpoint = checkpoint_of({"a/kernel": (4, 4)}, "keras3")
    with pytest.raises(CheckpointError, match=r"a/weight: a/kernel .* layout"):
        restored(checkpoint, {"a/weight": (4, 4)}, order=["a/weight"])


def test_layout_by_its_old_name():
    """`transform=` does the same with a warning, and is not allowed beside `layout=`."""
    square = {"a/kernel": (4, 4)}
    stairs = np.arange(16, dtype=np.float32).reshape(4, 4)
    checkpoint = checkpoint_of(square, mu={"a/kernel": stairs}, params={"a/kernel": stairs})
    tree, config = tree_of(square), checkpoint.config
    calls = [
        lambda **how: checkpoint.restore(tree, **how)[1][0].mu,
        lambda **how: checkpoint.params_like(tree, **how),
        lambda **how: Checkpoint.from_state(
            {"a": {"kernel": stairs}}, config.transformation().init(tree), config, **how
        ).params["a/kernel"],
    ]
    for call in calls:
        new = call(layout=torch_linear)
        with pytest.warns(DeprecationWarning, match="now called layout=") as caught:
            old = call(transform=torch_linear)
        assert caught[0].filename == __file__
        jax.tree.map(np.testing.assert_array_equal, old, new)
        np.testing.assert_array_equal(jax.tree.leaves(new)[0], stairs.T)
        with pytest.raises(CheckpointError, match="transform: expected layout alone"):
            call(layout=torch_linear, transform=torch_linear)


def test_torch_linear_leaves_the_rest_alone():
    array = np.arange(6).reshape(2, 3)
    assert torch_linear("hidden/kernel", array).tolist() == array.T.tolist()
    assert torch_linear("embedding/embedding", array) is array
    assert torch_linear("hidden/bias", array[0]).shape == (3,)
    with pytest.raises(CheckpointError, match=r"conv/kernel: expected a kernel of 2 dimensions"):
        torch_linear("conv/kernel", np.zeros((3, 3, 3, 3)))


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (["in/kernel"], CheckpointError, "order: expected 4 paths.*found 1"),
        (["in/kernel"] * 4, CheckpointError, "order: expected every path once, found in/kernel"),
        ("in/kernel", TypeError, "order: expected a list of paths, found str"),
        ([1, 2, 3, 4], TypeError, "order: expected paths such as"),
        (["x/kernel", "in/bias", "out/kernel", "out/bias"], CheckpointError, "as x/kernel"),
    ],
)
def test_wrong_orders(order, error, message):
    with pytest.raises(error, match=message):
        restored(checkpoint_of(SHAPES), KERNELS, order=order, layout=torch_linear)


def test_weights_of_a_file_that_does_not_link_them():
    """The optimizer's variables are numbered in an order of its own, the weights have names."""
    square = {"0": (4, 4), "1": (4, 4)}
    weights = {"body": np.full((4, 4), 7.0), "head": np.full((4, 4), 8.0)}
    checkpoint = checkpoint_of(square, framework="tf_keras", params=weights)
    tree = tree_of({"b/w": (4, 4), "h/w": (4, 4)})
    head_first = ["h/w", "b/w"]
    assert restored(checkpoint, {"b/w": (4, 4), "h/w": (4, 4)}, order=head_first) == {
        "b/w": 2,
        "h/w": 1,
    }
    with pytest.raises(CheckpointError, match=r"order: expected a mapping such as {'body': path"):
        checkpoint.params_like(tree, order=head_first)
    # One mapping may speak of both.
    pairs = {"0": "h/w", "1": "b/w", "body": "b/w", "head": "h/w"}
    found = checkpoint.params_like(tree, order=pairs)
    assert (float(found["b"]["w"][0, 0]), float(found["h"]["w"][0, 0])) == (7, 8)
    assert restored(checkpoint, {"b/w": (4, 4), "h/w": (4, 4)}, order=pairs) == {
        "b/w": 2,
        "h/w": 1,
    }


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        ({"0": "a"}, CheckpointError, "order: 0: not in the file, which has in.weight"),
        ({"in.bias": 0}, TypeError, "order: expected names and paths, found 'in.bias': 0"),
        ({"in.bias": "in/bias"}, CheckpointError, "in.weight: in the file, but not in the tree"),
        (
            dict.fromkeys(SHAPES, "in/bias"),
            CheckpointError,
            "in/bias: expected one variable, found in.weight, in.bias, out.weight and out.bias",
        ),
    ],
)
def test_wrong_mappings(order, error, message):
    with pytest.raises(error, match=re.escape(message)):
        checkpoint_of(SHAPES).restore(tree_of(NAMED), order=order)


def test_flax_nnx():
    """Its states have each array under `value`; that is no name, nor a role of its own."""
    model = nnx.state(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Param)
    from_keras = checkpoint_of({"kernel": (4, 4), "bias": (4,)}, framework="keras3")
    _, state = from_keras.restore(model)
    assert float(state[0].mu["kernel"].get_value()[0, 0]) == 1
    square = {"weight": (4, 4), "bias": (4,)}
    from_torch, order = checkpoint_of(square), ["kernel/value", "bias/value"]
    with pytest.raises(CheckpointError, match=r"kernel: weight .*: give a layout"):
        from_torch.restore(model, order=order)
    stairs = np.arange(16, dtype=np.float32).reshape(4, 4)
    from_torch = checkpoint_of(square, mu={"weight": stairs, "bias": stairs[0]})
    _, state = from_torch.restore(model, order=order, layout=torch_linear)
    np.testing.assert_array_equal(state[0].mu["kernel"].get_value(), stairs.T)
    back = Checkpoint.from_state(model, state, from_torch.config)
    with pytest.raises(CheckpointError, match="kernel: expected a layout"):
        fit(back, from_torch, ["bias", "weight"])


def with_hole():
    """As torch saves a frozen parameter: it has a position and a weight, and no moments."""
    whole = checkpoint_of(SHAPES)

    def but_one(arrays):
        return {name: array for name, array in arrays.items() if name != "in.bias"}

    return dataclasses.replace(whole, mu=but_one(whole.mu), nu=but_one(whole.nu))


def test_a_frozen_parameter_is_left_out():
    rest = {path: shape for path, shape in NAMED.items() if path != "in/bias"}
    expected = {"in/weight": 1, "out/weight": 3, "out/bias": 4}
    assert restored(with_hole(), rest) == expected
    assert restored(with_hole(), rest, order=list(rest)) == expected
    assert restored(with_hole(), rest, order=list(NAMED)) == expected
    tree = tree_of(NAMED)
    tree["in"]["bias"] = None
    _, state = with_hole().restore(tree)
    assert "mu/in/bias" not in adamx.to_numpy(state)


def test_a_frozen_parameter_cannot_be_trained_as_if_nothing_had_been():
    with pytest.raises(CheckpointError, match=r"in/bias: has no moments .* put None there"):
        restored(with_hole(), NAMED)


def test_weights_of_frozen_parameters_are_there():
    weights = with_hole().params_like(tree_of(NAMED))
    assert float(weights["in"]["bias"][0]) == 2
    rest = tree_of({path: shape for path, shape in NAMED.items() if path != "in/bias"})
    assert jax.tree.structure(with_hole().params_like(rest)) == jax.tree.structure(rest)
    with pytest.raises(CheckpointError, match="the file holds no weights"):
        dataclasses.replace(with_hole(), params={}).params_like(rest)


def test_shapes_alone_will_do_for_weights():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree_of(NAMED))
    weights = checkpoint_of(SHAPES).params_like(shapes)
    assert float(weights["out"]["bias"][0]) == 4


def test_precision_is_not_lost_without_a_word():
    fine = np.float32(1) + np.arange(4, dtype=np.float32) / 1024
    whole = checkpoint_of({"b": (4,)}, params={"b": fine})
    narrow = {"b": jnp.zeros(4, jnp.bfloat16)}
    with pytest.raises(CheckpointError, match=r"b: expected values that bfloat16 can hold"):
        whole.params_like(narrow)
    _, state = whole.restore(narrow)  # its moments are 1 and 1
    assert state[0].mu["b"].dtype == jnp.bfloat16
    finer = dataclasses.replace(whole, mu={"b": fine})
    with pytest.raises(CheckpointError, match=r"mu/b: expected values that bfloat16 can hold"):
        finer.restore(narrow)
    rounded = dataclasses.replace(finer, mu={"b": fine.astype(jnp.bfloat16)})
    rounded.restore(narrow)


def test_every_count_is_set():
    schedule = optax.linear_schedule(1.0, 0.0, 10)
    config = AdamConfig(learning_rate=schedule, convention="torch")
    checkpoint = checkpoint_of(SHAPES, config=config, params={})
    transformation, state = checkpoint.restore(tree_of(NAMED))
    counts = optax.tree_utils.tree_get_all_with_path(state, "count")
    assert [int(count) for _, count in counts] == [5, 5]
    updates, _ = transformation.update(jax.tree.map(jnp.zeros_like, tree_of(NAMED)), state)
    # m / sqrt(v) of 0.9 / sqrt(0.999) and the sixth step's corrections, at half the rate
    step = 0.5 * (0.9 / (1 - 0.9**6)) / np.sqrt(0.999 / (1 - 0.999**6))
    np.testing.assert_allclose(updates["in"]["weight"], -step, rtol=1e-6)


def test_from_state_and_back():
    tree = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": None}
    config = AdamConfig(amsgrad=True, learning_rate=0.5)
    transformation = config.transformation()
    state = transformation.init(tree)
    gradients = jax.tree.map(lambda x: x + 2, tree)
    _, state = transformation.update(gradients, state)
    checkpoint = Checkpoint.from_state(tree, state, config)
    assert checkpoint.names == ("a/bias", "a/kernel")
    assert (checkpoint.framework, checkpoint.count) == ("jax", 1)
    _, again = checkpoint.restore(tree)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)


def test_from_state_in_another_order():
    tree = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    config = AdamConfig()
    state = config.transformation().init(tree)
    order = ["a/kernel", "a/bias"]
    checkpoint = Checkpoint.from_state(tree, state, config, order=order, layout=torch_linear)
    assert checkpoint.names == tuple(order)
    assert checkpoint.mu["a/kernel"].shape == checkpoint.params["a/kernel"].shape == (3, 2)
    with pytest.raises(CheckpointError, match=r"order: a/x: not among the paths"):
        Checkpoint.from_state(tree, state, config, order=["a/kernel", "a/x"])


def test_from_state_must_fit_together():
    tree = {"a": jnp.ones(2)}
    state = AdamConfig().transformation().init(tree)
    with pytest.raises(CheckpointError, match="nu_max/a: missing beside mu/a"):
        Checkpoint.from_state(tree, state, AdamConfig(amsgrad=True))
    with pytest.raises(CheckpointError, match="a: expected moments of shape"):
        Checkpoint.from_state({"a": jnp.ones(3)}, state, AdamConfig())
    with pytest.raises(CheckpointError, match="a: moments of no variable"):
        Checkpoint.from_state({"b": jnp.ones(2)}, state, AdamConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("in.weight",) * 4}, "in.weight: expected every name once"),
        ({"count": -1}, "count: expected at least 0, found -1"),
        ({"nu": {}}, "nu/in.weight: missing beside mu/in.weight"),
        ({"nu_max": {"in.bias": np.zeros(4)}}, "nu_max/in.bias: not expected beside amsgrad=False"),
        ({"mu": {}}, "nu/in.weight: there is no mu/in.weight"),
    ],
)
def test_a_checkpoint_fits_together(fields, message):
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(checkpoint_of(SHAPES), **fields)


def test_it_cannot_be_changed():
    checkpoint = checkpoint_of(SHAPES)
    with pytest.raises(TypeError):
        checkpoint.mu["in.bias"] = np.zeros(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.count = 3
