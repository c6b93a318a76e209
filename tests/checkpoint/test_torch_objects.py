"""What people save beside torch's state dicts, and state dicts that are keyed by names."""

import argparse
import collections
import dataclasses
import datetime
import enum
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamx.checkpoint import CheckpointError, load, save
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, assert_equal
from tests.fuzz import archives, pickles

torch = pytest.importorskip("torch", reason="torch reads its own files; see the torch session")

GRADIENTS = np.random.RandomState(0).randn(8, 4, 3).astype(np.float32)


class Level(enum.Enum):
    LOW = 1


class Table(dict):
    pass


class Rows(list):
    pass


def train(first=0, last=5, model=None, optimizer=None):
    """A layer and its Adam after steps with the recorded gradients."""
    torch.manual_seed(0)
    model = model or torch.nn.Sequential(torch.nn.Linear(3, 4))
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    for gradient in GRADIENTS[first:last]:
        model[0].weight.grad = torch.from_numpy(gradient)
        model[0].bias.grad = torch.from_numpy(gradient[:, 0].copy())
        optimizer.step()
    return model, optimizer


def save_with(path, is_archive=True, protocol=2, **beside):
    model, optimizer = train()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()} | beside
    torch.save(saved, path, pickle_protocol=protocol, _use_new_zipfile_serialization=is_archive)
    return path


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, tags=["a"], inner=argparse.Namespace(x={1: 2})),
    "simple namespace": types.SimpleNamespace(a=torch.ones(2)),
    "path": pathlib.PurePosixPath("a/b"),
    "date": datetime.datetime(2020, 1, 2),
    "enumeration": {Level.LOW: Level.LOW},
    "subclass of dict": Table(a=1, b=Table()),
    "subclass of list": Rows([1, [2]]),
    "scheduler": torch.optim.lr_scheduler.LRScheduler.__new__(torch.optim.lr_scheduler.LRScheduler),
    "module": torch.nn.ReLU(),
    "class": torch.nn.ReLU,
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "deque": collections.deque([1, 2]),
    "array": np.arange(3.0),
    "numpy's generator": np.random.RandomState(0).get_state(),
    "numpy's text and date": (np.str_("a"), np.datetime64("2020-01-02")),
    "set": {1, "a", None, 1j, b"b"},
    "set of tuples": {(1, 2)},
    "tensors and numbers of NumPy as keys": {torch.ones(1): 1, np.int64(3): 2},
    "frozenset": frozenset({1.5}),
    "complex": 1j,
    "bytes": (b"", b"\xff"),
    "ordered": collections.OrderedDict(a=collections.Counter("aab")),
    "torch": (torch.Size([1, 2]), torch.float16, torch.device("cpu"), torch.strided),
}


@pytest.mark.parametrize("is_archive", [True, False])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_what_stands_beside_changes_nothing(beside, is_archive, tmp_path):
    if not is_archive and (beside is BESIDE["module"] or beside is BESIDE["class"]):
        pytest.skip("torch writes the source code of modules into old files, which are refused")
    plain = load(save_with(tmp_path / "plain.pt"))
    assert_equal(load(save_with(tmp_path / "x.pt", is_archive, beside=beside)), plain)


@pytest.mark.parametrize(
    "number",
    [
        *(kind(0.25) for kind in (np.float16, np.float32, np.float64)),
        *(kind(1) for kind in (np.int8, np.uint16, np.int64)),
        np.array(0.25, ">f8")[()],
    ],
    ids=repr,
)
def test_hyperparameters_and_steps_as_numpy_numbers(number, tmp_path):
    """As a schedule by hand leaves them; torch goes on with them, too."""
    _, optimizer = train()
    (group,) = optimizer.param_groups
    group["lr"] = group["weight_decay"] = number
    for entry in optimizer.state.values():
        entry["step"] = np.int64(5)
    torch.save({"epoch": number, "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    found = load(tmp_path / "x.pt")
    assert (found.config.learning_rate, found.config.weight_decay, found.count) == (
        *(float(number),) * 2,
        5,
    )
    save(tmp_path / "y.pt", found, template=tmp_path / "x.pt")
    again = torch.load(tmp_path / "y.pt", weights_only=False)["epoch"]
    assert (again, type(again)) == (number, type(number))


def with_beside(path, payload):
    """A recorded file in which something stands beside the state dicts."""
    parts = archives.members((CHECKPOINTS / "torch_adam.pt").read_bytes())
    name = "torch_adam/data.pkl"
    path.write_bytes(archives.packed({**parts, name: pickles.with_payload(parts[name], payload)}))
    return path


def test_a_numpy_number_of_the_old_name(tmp_path):
    payload = pickles.numpy_number("f8", "\0" * 6 + "\xf8?")
    assert load(with_beside(tmp_path / "x.pt", payload)).count == 30


def test_an_ordered_dictionary_of_python_2(tmp_path):
    payload = pickles.calling("collections", "OrderedDict", b"]](" + pickles.text("a") + b"K\x01ea")
    assert load(with_beside(tmp_path / "x.pt", payload)).count == 30


WEB = b")" + b"r\xff\xff\0\0j\xff\xff\0\0\x86" * 60  # takes forever to hash


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (pickles.calling("collections", "OrderedDict", b"]" + WEB + b"a"), "numbers as keys"),
        (pickles.numpy_number("f8", "\0" * 7), "dtype float64 takes 8 bytes, found 7"),
        (pickles.numpy_number("f8", ""), "dtype float64 takes 8 bytes, found 0"),
        (pickles.numpy_number("i4", "\0" * 4, "x"), "no byte order 'x'"),
        (pickles.numpy_number("f8", "\0" * 8) + b"}b", "puts something into what is no container"),
        (pickles.calling("builtins", "complex", pickles.text("1" * 99)), "builtins complex"),
        (pickles.calling("builtins", "bytes", pickles.integer(10**10)), "builtins bytes"),
        (pickles.calling("collections", "Counter", pickles.text("a" * 99)), "collections Counter"),
        (pickles.calling("torch", "Size", b"()t"), "torch Size"),
        (b"}" + WEB + b"Ns", "strings and numbers as keys"),
        (pickles.calling("builtins", "set", b"]" + WEB + b"a"), "strings and numbers as keys"),
        (b"Nr\xff\xff\xff\x00", "more memory than twice"),
        (b"(" + b"".join(b"ca\n%x\n" % i for i in range(90_000)) + b"t", "more memory than twice"),
    ],
)
def test_what_is_refused_beside(payload, message, tmp_path):
    path = with_beside(tmp_path / "x.pt", payload)
    with pytest.raises(CheckpointError, match=f"^{path}: .*{message}"):
        load(path)


def test_nothing_is_imported_or_called(tmp_path, monkeypatch):
    """Neither is a module found beside the file, nor one that is installed used."""
    (tmp_path / "surprise.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    calls = [
        pickles.calling("surprise", "run", pickles.text("x")),
        b"csurprise\nThing\n)\x81}" + pickles.text("a") + b"K\x01sb",
        pickles.calling("shutil", "rmtree", pickles.text(str(tmp_path))),
        pickles.calling("torch._utils", "_import_dotted_name", pickles.text("surprise")),
        b"ctorch\nonnx\n",
    ]
    assert load(with_beside(tmp_path / "x.pt", b"(" + b"".join(calls) + b"t")).count == 30


def test_an_object_where_a_number_is_needed(tmp_path):
    path = tmp_path / "x.pt"
    _, optimizer = train()
    for change, message in (
        (
            lambda s: s["param_groups"][0].update(lr=datetime.timedelta(1)),
            "param_groups: lr: .*a nu",
        ),
        (lambda s: s["state"][0].update(exp_avg=argparse.Namespace()), "exp_avg: .*argparse.Names"),
        (lambda s: s["state"][0].update(step=pathlib.PurePosixPath("5")), "state/0/step: expected"),
        (lambda s: s.update(state=argparse.Namespace()), "found none"),
    ):
        state_dict = optimizer.state_dict()
        change(state_dict)
        torch.save(state_dict, path)
        with pytest.raises(CheckpointError, match=f"{path}: .*{message}"):
            load(path)


def test_a_whole_model_says_what_to_save(tmp_path):
    model, optimizer = train()
    torch.save({"model": model, "trainer": argparse.Namespace(optimizer=optimizer)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"none, but objects of torch\.nn\.modules"):
        load(tmp_path / "x")
    with pytest.raises(
        CheckpointError, match=r"argparse\.Namespace\. Other .* Save only the state dicts"
    ):
        load(tmp_path / "x")


KEPT = [
    BESIDE["namespace"],
    BESIDE["path"],
    BESIDE["date"],
    BESIDE["class"],
    BESIDE["subclass of dict"],
    BESIDE["subclass of list"],
    BESIDE["numpy's text and date"],
    collections.deque([1, 2]),
    {1, 2},
    Level.LOW,
]


@pytest.mark.parametrize("beside", KEPT, ids=repr)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_template_does_not_lose_objects(beside, protocol, tmp_path):
    """What stands for them is written back as what it was, and torch makes them again."""
    source = load(save_with(tmp_path / "plain.pt"))
    template = save_with(tmp_path / "template.pt", protocol=protocol, beside=[beside, beside])
    save(tmp_path / "new.pt", source, template=template)
    first, second = torch.load(tmp_path / "new.pt", weights_only=False)["beside"]
    assert first is second
    assert type(first) is type(beside)
    assert first == beside
    assert_equal(load(tmp_path / "new.pt"), source)


# State dicts that are keyed by the names of parameters.


def named_state(model, optimizer, flat):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    return get_optimizer_state_dict(model, optimizer, options=options)


@pytest.fixture(params=[False, True], ids=["nested", "flat"])
def by_names(request, tmp_path):
    """A model after five steps, its optimizer, and the file."""
    model, optimizer = train()
    optim = named_state(model, optimizer, request.param)
    torch.save({"model": model.state_dict(), "optim": optim}, tmp_path / "x.pt")
    return model, optimizer, tmp_path / "x.pt"


def test_keyed_by_names_goes_on_as_torch_does(by_names):
    model, optimizer, path = by_names
    checkpoint = load(path)
    assert checkpoint.names == tuple(checkpoint.params) == ("0.weight", "0.bias")
    tree = {"0": {"weight": jnp.zeros((4, 3)), "bias": jnp.zeros(4)}}
    weights = checkpoint.params_like(tree)
    transformation, state = checkpoint.restore(tree)
    for gradient in GRADIENTS[5:]:
        gradients = {"0": {"weight": gradient, "bias": gradient[:, 0]}}
        updates, state = transformation.update(gradients, state, weights)
        weights = optax.apply_updates(weights, updates)
    train(5, 8, model, optimizer)
    for key, tensor in model[0].named_parameters():
        np.testing.assert_allclose(weights["0"][key], tensor.detach(), rtol=2e-6)


def test_keyed_by_names_as_a_template(by_names, tmp_path):
    """Written back in the same form, with the numbers of another run; torch loads it."""
    _, _, path = by_names
    model, optimizer = train(2, 8)
    torch.save({"model": model.state_dict(), "optim": optimizer.state_dict()}, tmp_path / "o.pt")
    save(tmp_path / "new.pt", load(tmp_path / "o.pt"), template=path)
    told = dataclasses.replace(load(tmp_path / "o.pt"), naming={})  # since the template has names
    assert_equal(load(tmp_path / "new.pt"), told)
    was, new = (torch.load(p, weights_only=True)["optim"] for p in (path, tmp_path / "new.pt"))
    assert new.keys() == was.keys()
    expected = named_state(model, optimizer, "state" not in new)
    assert jax.tree.structure(new) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, new, expected)


@pytest.mark.parametrize("flat", [False, True])
def test_keyed_by_names_with_groups_and_a_frozen_parameter(flat, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(3, 4))
    model[1].weight.requires_grad_(False)
    groups = [
        {"params": [model[1].weight, model[0].bias], "weight_decay": 0.5},
        {"params": [model[0].weight, model[1].bias]},
    ]
    optimizer = torch.optim.Adam(groups)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    optim = named_state(model, optimizer, flat)
    torch.save({"model": model.state_dict(), "optim": optim}, tmp_path / "x.pt")
    checkpoint = load(tmp_path / "x.pt")
    decays = {n: group.config.weight_decay for group in checkpoint.groups for n in group.names}
    assert decays == {"1.weight": 0.5, "0.bias": 0.5, "0.weight": 0, "1.bias": 0}
    assert set(checkpoint.naming.values()) == {"file"}
    assert set(checkpoint.mu) == {"0.weight", "0.bias", "1.bias"}
    for name, parameter in model.named_parameters():
        if name in checkpoint.mu:
            moment = optimizer.state[parameter]["exp_avg"]
            np.testing.assert_array_equal(checkpoint.mu[name], moment.numpy())


def test_positions_and_names_do_not_mix(tmp_path):
    _, optimizer = train()
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["params"] = [0, "bias"]
    torch.save(state_dict, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"positions or names of .*found int, str"):
        load(tmp_path / "x.pt")
