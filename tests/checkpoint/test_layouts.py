"""How the axes of arrays stand: layouts, and what they are asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.checkpoint import Checkpoint, CheckpointError, torch_linear
from adamx.checkpoint.fitting import fit
from tests.checkpoint.matching_cases import KERNELS, SHAPES, checkpoint_of, restored, tree_of

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")


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
        (
            torch_linear,
            "Dense_0/bias: expected a path that ends in kernel .*assign the arrays with order=",
        ),
        (lambda _, array: array.no, "Dense_0/bias: the layout raised AttributeError: .*no"),
        (lambda path: path, "Dense_0/bias: the layout raised TypeError: .* It is called with"),
        (lambda *_: None, "Dense_0/bias: expected the layout to return an array, found NoneType"),
        (lambda *_: "x", "Dense_0/bias: expected the layout to return an array, found str"),
        (lambda *_: [[1], [2, 3]], "expected the layout to return an array, found list"),
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
    stairs = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
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
        with pytest.raises(CheckpointError, match="transform: expected only layout=, found both"):
            call(layout=torch_linear, transform=torch_linear)


def test_torch_linear_leaves_the_rest_alone():
    array = np.arange(6).reshape(2, 3)
    assert torch_linear("hidden/kernel", array).tolist() == array.T.tolist()
    assert torch_linear("embedding/embedding", array) is array
    assert torch_linear("hidden/bias", array[0]).shape == (3,)
    with pytest.raises(CheckpointError, match=r"conv/kernel: expected a kernel of 2 dimensions"):
        torch_linear("conv/kernel", np.zeros((3, 3, 3, 3)))
