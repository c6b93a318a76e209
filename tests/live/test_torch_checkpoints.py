"""Checkpoints that adamx wrote, read by PyTorch and trained on there."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

import adamx
from adamx.checkpoint import Checkpoint, CheckpointError, load, save, torch_linear
from adamx.config.adam_config import AdamConfig
from tests.golden.make_checkpoints import Torch
from tests.live.resuming import (
    CHECKPOINTS,
    HALF,
    TORCH_NORM,
    Recorded,
    assert_near,
    assert_same,
    half_way,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.live

RUNS = ["torch_adam", "torch_adam_amsgrad", "torch_adamw", "torch_frozen", "torch_names"]

# What is recorded came from another machine, whose products of matrices round otherwise: measured,
# 6e-8 of weights that the 30 steps move by 0.1 to 0.3.
OTHER_MACHINE = 3e-7
# Where JAX did half of the steps: measured, up to 3e-7 (AdamW).
HALF_IN_JAX = 6e-7

# What a weight that is not called kernel or bias is called in Keras.
ROLES = {
    "norm.weight": "gamma",
    "norm.bias": "beta",
    "norm.running_mean": "moving_mean",
    "norm.running_var": "moving_variance",
    "norm.num_batches_tracked": "num_batches_tracked",
}


def keras_path(name):
    """`in/kernel` for `in.weight`, and so on."""
    layer, role = name.split(".")
    return f"{layer}/{ROLES.get(name, role).replace('weight', 'kernel')}"


def fresh(run):
    """A model whose first weights are not those recorded, and its optimizer."""
    model = Torch("torch", run._replace(seed=run.seed + 1))
    if run.name == "torch_adamw":
        model.optimizer = torch.optim.AdamW(model.model.parameters(), **run.config)
    return model


def opened(run, path):
    """The model of a file, and its optimizer."""
    model, states = fresh(run), torch.load(path, weights_only=True)
    model.model.load_state_dict(states["model"])
    model.optimizer.load_state_dict(states["optimizer"])
    return model


def template(run, folder):
    """A file of the model that PyTorch saved after one step."""
    model = fresh(run)
    model.train(Recorded.of(run.name).batches[:1])
    model.save(str(folder / "template.pt"))
    return folder / "template.pt"


def arrays(model):
    """Of the whole state: weights, buffers and moments."""
    state = [tensor.numpy() for tensor in model.model.state_dict().values()]
    return [*state, *model.optimizer_weights().values()]


def finals(model):
    return [*model.weights().values()]


def assert_continues(model, recorded, expected):
    """As the one that PyTorch itself opened, and as recorded."""
    assert_same(arrays(model), arrays(expected))
    for each in (model, expected):
        each.train(recorded.batches)
    assert_same(arrays(model), arrays(expected))
    assert_near(finals(model), recorded.final, OTHER_MACHINE)


@pytest.mark.parametrize("name", [*RUNS, "torch_legacy"])
def test_with_template(name, tmp_path):
    recorded, file = Recorded.of(name), CHECKPOINTS / f"{name}.pt"
    assert save(tmp_path / "a.pt", load(file), template=template(recorded.run, tmp_path)) == ()
    model = opened(recorded.run, tmp_path / "a.pt")
    assert_continues(model, recorded, opened(recorded.run, file))


@pytest.mark.parametrize("name", RUNS)
def test_optimizer_alone(name, tmp_path):
    recorded, file = Recorded.of(name), CHECKPOINTS / f"{name}.pt"
    checkpoint = load(file)
    left = save(tmp_path / "a.pt", checkpoint)
    assert left == tuple(f"params/{weight}" for weight in checkpoint.params)

    model = fresh(recorded.run)
    model.optimizer.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    weights = {weight: torch.tensor(array) for weight, array in checkpoint.params.items()}
    model.model.load_state_dict(weights)
    assert_continues(model, recorded, opened(recorded.run, file))


def test_groups(tmp_path):
    """Each has its own hyperparameters, there and back."""
    recorded, file = Recorded.of("torch_groups"), CHECKPOINTS / "torch_groups.pt"
    expected = opened(recorded.run, file)
    written = template(recorded.run, tmp_path)
    assert save(tmp_path / "a.pt", load(file), template=written) == ()
    model = opened(recorded.run, tmp_path / "a.pt")
    assert [group["weight_decay"] for group in model.optimizer.param_groups] == [0.1, 0.0]
    assert_continues(model, recorded, expected)


@pytest.mark.parametrize("name", RUNS)
def test_half_of_the_steps_in_jax(name, tmp_path):
    recorded, checkpoint = Recorded.of(name), load(CHECKPOINTS / f"{name}.pt")
    names = list(checkpoint.params)
    paths = [keras_path(weight) for weight in names]
    half = half_way(checkpoint, recorded, paths, torch_linear, TORCH_NORM)
    written = template(recorded.run, tmp_path)
    assert save(tmp_path / "a.pt", half, template=written, order=names) == ()
    model = opened(recorded.run, tmp_path / "a.pt")
    model.train(recorded.batches[HALF:])
    assert_near(finals(model), recorded.final, HALF_IN_JAX)


# By resume file, what Keras saved and the run of torch with the same layers.
FROM_KERAS = {
    "tfkeras_legacy": ("tfkeras_legacy_model.h5", "torch_adam"),
    "tfkeras_legacy_frozen": ("tfkeras_legacy_frozen.h5", "torch_frozen"),
    "keras3_frozen": ("keras3_frozen.keras", "torch_frozen"),
}

# Keras adds epsilon to the root of v, torch to that of v / (1 - b2^t), which comes to an epsilon
# that is smaller by the root of 1 - b2^t: 1.7e-8 in the place of 1e-7 at step 31. Measured, 4.8e-6.
TORCH_EPSILON = 8e-6
# With epsilon / sqrt(1 - b2^t) in its place torch's step is Keras's, and what is left is rounding:
# measured, 1.8e-7 against tf_keras, and 7e-7 against Keras 3, which takes the corrections of the
# bias from powers in float32.
KERAS_EPSILON = {"tfkeras_legacy": 4e-7, "tfkeras_legacy_frozen": 4e-7, "keras3_frozen": 1.2e-6}


def expressible(checkpoint):
    """The checkpoint without what torch cannot express: Keras's decay and place of epsilon."""
    config = dataclasses.replace(checkpoint.config, convention="torch", decay=0.0)
    return dataclasses.replace(checkpoint, config=config)


def train_with_decay(model, batches, count, config, keras_epsilon):
    """Trains as Keras does with `config`, whose decay becomes a scheduler."""

    def rate(steps):
        return 1 / (1 + config.decay * (count + steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(model.optimizer, rate)
    for t, batch in enumerate(batches, count + 1):
        if keras_epsilon:
            model.optimizer.param_groups[0]["eps"] = config.eps / math.sqrt(1 - config.b2**t)
        model.train([batch])
        scheduler.step()


def assert_ends_as_keras(model, recorded, bound):
    """All but `running_var`: torch averages the unbiased variance."""
    weights = model.weights()
    for name, path in zip(weights, recorded.paths, strict=True):
        assert keras_path(name) == path
    finals = [torch_linear(keras_path(name), array) for name, array in weights.items()]
    kept = [i for i, name in enumerate(weights) if name != "norm.running_var"]
    assert_near([finals[i] for i in kept], [recorded.final[i] for i in kept], bound)


@pytest.mark.parametrize("keras_epsilon", [False, True])
@pytest.mark.parametrize("resume", FROM_KERAS)
def test_from_keras(resume, keras_epsilon, tmp_path):
    file, name = FROM_KERAS[resume]
    recorded, run = Recorded.of(file.partition(".")[0], resume), Recorded.of(name).run
    written = template(run, tmp_path)
    checkpoint, names = load(CHECKPOINTS / file), load(written).params
    # torch's batch normalisation also counts batches; the template's count stays.
    order = [name for name in names if not name.endswith("num_batches_tracked")]
    assert [keras_path(name) for name in order] == list(checkpoint.params)
    sent = expressible(checkpoint)
    assert save(tmp_path / "a.pt", sent, template=written, order=order) == ()

    model = opened(run, tmp_path / "a.pt")
    if "norm.weight" in names:
        model.model.norm.eps, model.model.norm.momentum = 1e-3, 0.01
    train_with_decay(model, recorded.batches, checkpoint.count, checkpoint.config, keras_epsilon)
    bound = KERAS_EPSILON[resume] if keras_epsilon else TORCH_EPSILON
    assert_ends_as_keras(model, recorded, bound)


def test_from_keras_optimizer_alone(tmp_path):
    """Without a template only the moments are written; the weights go over by hand."""
    recorded = Recorded.of("tfkeras_legacy_model", "tfkeras_legacy")
    checkpoint = load(CHECKPOINTS / "tfkeras_legacy_model.h5")
    left = save(tmp_path / "a.pt", expressible(checkpoint))
    assert left == tuple(f"params/{path}" for path in recorded.paths)

    model = fresh(Recorded.of("torch_adam").run)
    model.optimizer.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    for name, tensor in model.model.state_dict().items():
        path = keras_path(name)
        tensor.copy_(torch.tensor(torch_linear(path, checkpoint.params[path])))
    train_with_decay(model, recorded.batches, checkpoint.count, checkpoint.config, False)
    assert_ends_as_keras(model, recorded, TORCH_EPSILON)


def test_from_keras_refuses_what_torch_cannot_express(tmp_path):
    checkpoint = load(CHECKPOINTS / "tfkeras_legacy_model.h5")
    with pytest.raises(CheckpointError, match=r"^convention: "):
        save(tmp_path / "a.pt", checkpoint)
    config = dataclasses.replace(checkpoint.config, convention="torch")
    with pytest.raises(CheckpointError, match=r"^decay: "):
        save(tmp_path / "a.pt", dataclasses.replace(checkpoint, config=config))
    assert not list(tmp_path.iterdir())


def test_groups_in_an_order_of_their_own(tmp_path):
    """The head's group first, and one shape: a mapping says what is what, there and back."""
    body, head = (torch.nn.Linear(3, 3, bias=False) for _ in range(2))
    model = torch.nn.Sequential(body, torch.nn.Tanh(), head)
    optimizer = torch.optim.Adam([{"params": [head.weight]}, {"params": [body.weight]}])
    model(torch.ones(5, 3)).square().sum().backward()
    optimizer.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "theirs.pt")
    theirs = load(tmp_path / "theirs.pt")
    like = {name: {"kernel": jnp.zeros((3, 3))} for name in ("body", "head")}
    order = {"0": "head/kernel", "1": "body/kernel"}
    order |= {"0.weight": "body/kernel", "2.weight": "head/kernel"}
    params = theirs.params_like(like, order=order, layout=torch_linear)
    tx, state = theirs.restore(params, order=order, layout=torch_linear)
    moments = adamx.to_numpy(state)
    for name, layer in {"body": body, "head": head}.items():
        weight, moment = layer.weight, optimizer.state[layer.weight]["exp_avg"]
        np.testing.assert_array_equal(params[name]["kernel"].T, weight.detach().numpy())
        np.testing.assert_array_equal(moments[f"mu/{name}/kernel"].T, moment.numpy())

    ours = Checkpoint.from_state(
        params, state, theirs.config, transformation=tx, layout=torch_linear
    )
    for unclear in (None, ["0.weight", "2.weight"], ["1", "0"]):
        with pytest.raises(CheckpointError, match="or a mapping from the names in the template"):
            save(tmp_path / "ours.pt", ours, template=tmp_path / "theirs.pt", order=unclear)
    save(tmp_path / "ours.pt", ours, template=tmp_path / "theirs.pt", order=order)
    again = torch.load(tmp_path / "ours.pt", weights_only=True)
    for name, tensor in saved["model"].items():
        assert torch.equal(again["model"][name], tensor)
    for position, entry in saved["optimizer"]["state"].items():
        for key, tensor in entry.items():
            assert torch.equal(again["optimizer"]["state"][position][key], tensor)


def test_complex_moments(tmp_path):
    """Torch has two second moments for each, adamx one: neither is taken for the other."""
    parameter = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.tensor([1 + 0j, 2 + 0j])  # so that all imaginary parts are zero
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"state/0/mu: expected real numbers"):
        load(tmp_path / "theirs.pt")
    params = {"w": jnp.ones(2, jnp.complex64)}
    tx, config = adamx.adam(1e-3), AdamConfig(convention="torch")
    checkpoint = Checkpoint.from_state(params, tx.init(params), config, transformation=tx)
    with pytest.raises(CheckpointError, match=r"mu/w: expected real numbers"):
        save(tmp_path / "ours.pt", checkpoint)
    assert not (tmp_path / "ours.pt").exists()


def test_the_state_of_radam(tmp_path):
    """It has the names of Adam's, and is that of another algorithm whatever `config` says."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.RAdam([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "radam.pt")
    for config in (None, AdamConfig(convention="torch")):
        with pytest.raises(
            CheckpointError, match="expected those of Adam or AdamW, found the state of RAdam"
        ):
            load(tmp_path / "radam.pt", config=config)


def test_amsgrad_for_keras():
    """What the tests of Keras 3, which have no torch, go on from is what torch's file holds."""
    torchs = load(CHECKPOINTS / "torch_adam_amsgrad.pt")
    copy = load(CHECKPOINTS / "torch_adam_amsgrad.safetensors")
    for field in dataclasses.fields(copy):
        found, expected = getattr(copy, field.name), getattr(torchs, field.name)
        if field.name in ("params", "mu", "nu", "nu_max", "extra"):
            assert list(found) == list(expected)
            assert_same(found.values(), expected.values())
        else:
            assert found == expected
