"""Files whose names could lead astray: what they are taken for, and what is refused."""

import dataclasses
import json
import shutil
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx import AdamConfig
from adamx.checkpoint import Checkpoint, CheckpointError, load, save, torch_linear
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, PLAIN
from tests.checkpoint.test_matching import checkpoint_of, restored, tree_of

# What made a state is not of concern here.
pytestmark = pytest.mark.filterwarnings("ignore:state. Optax keeps the states:UserWarning")

NEEDS_TORCH = "torch reads its own files; see the torch session"


@pytest.fixture
def h5(tmp_path):
    """A copy of a golden file, open for changes; then loaded."""

    def changed(file, change):
        path = tmp_path / file
        shutil.copy(CHECKPOINTS / file, path)
        with h5py.File(path, "r+") as opened:
            change(opened)
        return path

    return changed


def with_config(path, change):
    """A copy of a .keras file with another config.json."""
    target = path.parent / f"changed_{path.name}"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                described = json.loads(content)
                change(described["compile_config"]["optimizer"])
                content = json.dumps(described)
            new.writestr(name, content)
    return target


def test_numbers_of_groups_are_no_names(h5):
    """tf_keras writes no layer's name into .weights.h5: `dense_1` is not the layer `dense_1`."""

    def forget(file):
        for group in file["layers"].values():
            del group["vars"].attrs["name"]

    checkpoint = load(h5("keras3.weights.h5", forget), config=PLAIN)
    assert checkpoint.names == tuple("01234567")
    names = ["dense", "dense_1", "dense_2", "dense_3"]
    shapes = [(8, 16), (16, 16), (16, 16), (16, 4)]
    tree = {f"{n}/kernel": shape for n, shape in zip(names, shapes, strict=True)}
    tree |= {f"{n}/bias": shape[1:] for n, shape in zip(names, shapes, strict=True)}
    with pytest.raises(CheckpointError, match="more than one assignment"):
        checkpoint.restore(tree_of(tree))
    with pytest.raises(CheckpointError, match="more than one assignment"):
        checkpoint.params_like(tree_of(tree))


def test_averages_in_a_file_without_configuration(h5):
    """They cannot be told from gradients that were accumulated."""

    def add(file):
        slots = file["optimizer/vars"]
        for index in range(18, 26):
            slots[str(index)] = np.zeros(slots[str(2 * (index - 17))].shape, np.float32)

    with pytest.raises(CheckpointError, match="averages of the weights or accumulated gradients"):
        load(h5("keras3.weights.h5", add), config=PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o["config"].update(gradient_accumulation_steps=2),
            "gradient_accumulation_steps",
        ),
        (lambda o: o.update(class_name="LossScaleOptimizer"), "inner_optimizer: expected Adam"),
        (lambda o: o.update(class_name="Nadam"), "class_name: expected Adam or AdamW"),
    ],
)
def test_a_given_configuration_does_not_change_what_the_file_holds(change, message, tmp_path):
    path = tmp_path / "model.keras"
    shutil.copy(CHECKPOINTS / "keras3_model.keras", path)
    with pytest.raises(CheckpointError, match=message):
        load(with_config(path, change), config=PLAIN)


def test_two_weights_with_one_flat_name(h5):
    """Keras 3's .h5 joins names with _: `b2/kernel` may be either of two weights."""

    def add(file):
        layer = file["model_weights/b2"]
        names = list(layer.attrs["weight_names"])
        layer["sequential/b2_kernel"] = np.zeros((16, 16), np.float32)
        layer.attrs["weight_names"] = np.array([*names, "sequential/b2_kernel"], "S")

    names = load(h5("keras3_model.h5", add)).names
    assert "sequential/b2/kernel" not in names
    assert "sequential/b2_kernel" not in names
    assert "sequential/b10/kernel" in names


def tf1_file(path, weights, frozen, moments):
    """A file of TensorFlow 1.1: by layer its weights' own names, and the moments in its order."""
    layers = [
        {"class_name": "Dense", "config": {"name": layer, "trainable": layer not in frozen}}
        for layer in weights
    ]
    optimizer = {"class_name": "Adam", "config": {"lr": 0.1, "beta_1": 0.9, "beta_2": 0.999}}
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.0.0-tf"
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
        file.attrs["training_config"] = json.dumps({"optimizer_config": optimizer})
        model = file.create_group("model_weights")
        model.attrs["layer_names"] = np.array(list(weights), "S")
        for layer, names in weights.items():
            model.create_group(layer).attrs["weight_names"] = np.array(names, "S")
            for name in names:
                model[layer][name] = np.zeros((2, 2), np.float32)
        slots = [np.float32(3), *moments, *(moment**2 for moment in moments)]
        names = [f"Variable_{i}:0" for i in range(len(slots))]
        group = file.create_group("optimizer_weights")
        group.attrs["weight_names"] = np.array(names, "S")
        for name, array in zip(names, slots, strict=True):
            group[name] = array
    return path


def test_frozen_is_the_layer_and_not_the_scope(tmp_path):
    """A model that was built twice: the scope of layer `a` is `a_1`, and there is a layer `a_1`."""
    weights = {"a": ["a_1/kernel:0"], "a_1": ["a_1_1/kernel:0"]}
    moment = np.ones((2, 2), np.float32)
    path = tf1_file(tmp_path / "x.h5", weights, frozen=["a_1"], moments=[moment])
    assert load(path).names == ("a_1/kernel",)


def test_sorted_by_the_name_that_tensorflow_has(tmp_path):
    weights = {"zed": ["a:0"], "hidden": ["hidden/kernel:0"], "b": ["b10:0"], "c": ["b1:0"]}
    moments = [np.full((2, 2), i, np.float32) for i in range(1, 5)]
    checkpoint = load(tf1_file(tmp_path / "x.h5", weights, frozen=[], moments=moments))
    assert checkpoint.names == ("zed/a", "b/b10", "c/b1", "hidden/kernel")
    assert float(checkpoint.mu["hidden/kernel"][0, 0]) == 4


BODY_AND_HEAD = {"body/kernel": (4, 4), "body/bias": (4,), "head/kernel": (4, 4), "head/bias": (4,)}


def test_the_moments_of_one_layer_are_not_those_of_another():
    """Only the head was trained: its moments fit the body by shape, and by the ends of names."""
    whole = checkpoint_of(BODY_AND_HEAD, "keras3")

    def head(arrays):
        return {name: array for name, array in arrays.items() if name.startswith("head")}

    trained = dataclasses.replace(
        whole, names=("head/kernel", "head/bias"), mu=head(whole.mu), nu=head(whole.nu)
    )
    body = {path: shape for path, shape in BODY_AND_HEAD.items() if path.startswith("body")}
    with pytest.raises(CheckpointError, match="body/kernel: has no moments in the file"):
        trained.restore(tree_of(body))
    tree = {"head/kernel": (4, 4), "head/bias": (4,)}
    assert restored(trained, tree) == {"head/kernel": 3, "head/bias": 4}


def test_numbers_do_not_match_the_places_of_a_list():
    checkpoint = checkpoint_of({"0": (3,), "1": (3,)}, params={})
    with pytest.raises(CheckpointError, match="more than one assignment"):
        checkpoint.restore([jnp.zeros(3), jnp.zeros(3)])


def test_names_that_are_the_same_but_for_their_dots():
    checkpoint = checkpoint_of({"a.b/k": (3,), "a/b/k": (3,)})
    with pytest.raises(CheckpointError, match=r"a\.b/k, a/b/k: expected names that differ"):
        checkpoint.restore(tree_of({"a/b/k": (3,)}))


def test_one_order_means_one_thing():
    """TensorFlow 1.1 sorts its variables: `restore` and `params_like` take the same order."""
    checkpoint = load(CHECKPOINTS / "tf11_model.h5")
    assert list(checkpoint.names) != list(checkpoint.params)
    order = [f"x/{i}" for i in range(8)]
    tree = {f"x/{i}": checkpoint.mu[name].shape for i, name in enumerate(checkpoint.names)}
    weights = checkpoint.params_like(tree_of(tree), order=order)
    state = adamx.to_numpy(checkpoint.restore(tree_of(tree), order=order)[1])
    for i, name in enumerate(checkpoint.names):
        np.testing.assert_array_equal(weights["x"][str(i)], checkpoint.params[name])
        np.testing.assert_array_equal(state[f"mu/x/{i}"], checkpoint.mu[name])


def test_kernels_by_another_name_need_a_transform():
    """Haiku's are called `w`: whether torch's must be transposed is not for adamx to say."""
    checkpoint = checkpoint_of({"a.weight": (4, 4), "a.bias": (4,)})
    tree = {"a/w": (4, 4), "a/b": (4,)}
    for layout in (None, torch_linear):
        with pytest.raises(CheckpointError, match="layout"):
            checkpoint.restore(tree_of(tree), order=["a/w", "a/b"], layout=layout)
    transposed = restored(checkpoint, tree, order=["a/w", "a/b"], layout=lambda _, array: array.T)
    assert transposed == {"a/w": 1, "a/b": 2}


@pytest.mark.parametrize("name", ["a/recurrent_kernel", "a/0", "0"])
def test_what_is_no_dense_kernel_does_not_cross(name, tmp_path):
    checkpoint = checkpoint_of({name: (4, 4)}, "keras3", params={})
    with pytest.raises(CheckpointError, match="expected the kernel of a dense layer"):
        save(tmp_path / "x.pt", checkpoint)


def test_kernels_of_a_jax_program_do_not_go_to_torch_as_they_are(tmp_path):
    tree = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}}
    config = AdamConfig(convention="torch")
    state, order = config.transformation().init(tree), ["a/kernel", "a/bias"]
    with pytest.raises(CheckpointError, match=r"a/kernel: expected a layout"):
        save(tmp_path / "x.pt", Checkpoint.from_state(tree, state, config, order=order))
    with pytest.raises(
        CheckpointError, match="order: expected the order of the parameters in the model"
    ):
        save(tmp_path / "x.pt", Checkpoint.from_state(tree, state, config, layout=torch_linear))
    said = Checkpoint.from_state(tree, state, config, order=order, layout=torch_linear)
    save(tmp_path / "x.safetensors", said)
    save(tmp_path / "x.pt", load(tmp_path / "x.safetensors"))


def saved_by_torch(tmp_path, **more):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    optimizer = torch.optim.Adam(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    saved |= {name: make(model) for name, make in more.items()}
    torch.save(saved, tmp_path / "saved.pt")
    return model, tmp_path / "saved.pt"


def test_averages_of_a_torch_model_are_not_its_weights(tmp_path):
    """Which of two state dicts is the model's, the file does not tell; their names are the same."""
    model, path = saved_by_torch(
        tmp_path, ema=lambda model: {k: v + 1 for k, v in model.state_dict().items()}
    )
    with pytest.raises(
        CheckpointError, match="found 2 that fit: model, ema; pass weights="
    ) as error:
        load(path)
    assert error.value.argument == "weights"
    checkpoint = load(path, weights="model")
    np.testing.assert_array_equal(checkpoint.params["0.bias"], model.state_dict()["0.bias"])
    assert checkpoint.not_read == ("ema (4 weights)",)
    with pytest.raises(CheckpointError, match="weights: expected one of model, ema, found 'other'"):
        load(path, weights="other")


def test_other_tensors_beside_a_torch_model(tmp_path):
    torch = pytest.importorskip("torch", reason=NEEDS_TORCH)
    model, path = saved_by_torch(tmp_path, stats=lambda _: {"loss": torch.zeros(())})
    checkpoint = load(path)
    weight = checkpoint.params["1.weight"]
    np.testing.assert_array_equal(weight, model.state_dict()["1.weight"].numpy())


def test_amsgrads_maxima_belong_to_a_convention():
    checkpoint = load(CHECKPOINTS / "keras3_amsgrad.keras")
    config = dataclasses.replace(checkpoint.config, convention="optax")
    with pytest.raises(CheckpointError, match="config: expected the convention of keras3"):
        dataclasses.replace(checkpoint, config=config)
