"""Folders that many ranks write, made of arrays without torch and DeepSpeed."""

import dataclasses
import functools
import io
import json

import numpy as np

from adamx.checkpoint.untrusted.stand_ins import Global, Size, StandIn
from adamx.checkpoint.untrusted.torch_archive import read_archive
from adamx.checkpoint.untrusted.torch_tensors import make_tensor
from adamx.checkpoint.writing import torch_writer
from adamx.checkpoint.writing.torch_writer import write_archive
from tests.checkpoint_folders.safetensors_writer import write_safetensors

__all__ = [
    "ADAMW",
    "Split",
    "advance",
    "edit",
    "make_adam",
    "make_tree",
    "pickled",
    "write_dcp",
    "write_shards",
    "write_universal",
    "write_zero",
]

ADAMW = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.01,
    "amsgrad": False,
    "maximize": False,
    "decoupled_weight_decay": True,
}
_DCP = "torch.distributed.checkpoint."


@dataclasses.dataclass
class Split:
    """A tensor in parts: where each begins, and its values."""

    shape: tuple
    parts: list


def make_adam(shapes, seed=0):
    """Weights and moments by name and field."""
    rng = np.random.default_rng(seed)
    fields = ("fp32", "exp_avg", "exp_avg_sq")
    return {
        name: {field: np.asarray(abs(rng.standard_normal(shape, np.float32))) for field in fields}
        for name, shape in shapes.items()
    }


def advance(checkpoint, steps=4, **settings):
    """As after some steps more, with these hyperparameters, and other values everywhere."""
    groups = [
        dataclasses.replace(
            group, count=group.count + steps, config=dataclasses.replace(group.config, **settings)
        )
        for group in checkpoint.groups
    ]
    fields = {
        field: {name: array + 1 for name, array in getattr(checkpoint, field).items()}
        for field in ("params", "mu", "nu")
    }
    return dataclasses.replace(checkpoint, groups=groups, **fields)


def edit(path, change):
    """Change what torch saved in a file."""
    saved = read_archive(path)
    change(saved)
    write_archive(path.with_suffix(".new"), saved)
    path.with_suffix(".new").replace(path)


def make_tree(adam, step=3.0):
    """What a script saves with `torch.distributed.checkpoint`, by path."""
    tree = {("model", name): fields["fp32"] for name, fields in adam.items()}
    for name, fields in adam.items():
        tree |= {
            ("optimizer", "state", name, key): fields[key] for key in ("exp_avg", "exp_avg_sq")
        }
        tree["optimizer", "state", name, "step"] = np.asarray(step, np.float32)
    settings = ADAMW | {"params": list(adam)}
    return tree | {("optimizer", "param_groups", 0, key): x for key, x in settings.items()}


_TENSORS = (np.ndarray, Split)


@functools.cache  # a pickle names each once
def name_class(kind):
    return Global(*f"{_DCP}{kind}".rsplit(".", 1))


def made(kind, **attributes):
    """An object of a class of torch's."""
    stand_in = StandIn(name_class(kind), (), is_new=True)
    stand_in.state = attributes or None
    return stand_in


def pickled(value):
    stream = io.BytesIO()
    torch_writer._Pickler(stream, 2).dump(value)
    return stream.getvalue()


def write_shards(folder, tree, ranks=1):
    """Write tensors by path as safetensors; parts go to the files of the ranks in turn."""
    folder.mkdir(exist_ok=True)
    for rank in range(ranks):
        arrays, offsets = {}, {}
        for path, value in tree.items():
            if isinstance(value, np.ndarray):
                value = Split(value.shape, [((0,) * value.ndim, value)])
            for offset, array in value.parts[rank::ranks] if isinstance(value, Split) else ():
                name = ".".join(map(str, path))
                arrays[name], offsets[name] = array, {"saved_offsets": list(offset)}
        name = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        write_safetensors(folder / name, arrays, DCP_SHARDING_INFO=json.dumps(offsets))


def write_dcp(folder, tree, ranks=1, *, in_safetensors=False):
    """Write values by path; parts go to the files of the ranks in turn.

    Tensors may be written behind the others as safetensors, of which all have one place.
    """
    folder.mkdir(exist_ok=True)
    files = [bytearray() for _ in range(ranks)]
    tensors = [{} for _ in range(ranks)]
    described, places = {}, {}
    names = {path: ".".join(map(str, path)) for path in tree}

    def store(name, value, offset, rank):
        place = {"relative_path": f"__{rank}_0.distcp", "offset": len(files[rank])}
        key = made("metadata.MetadataIndex", fqn=name, offset=offset)
        if in_safetensors and isinstance(value, np.ndarray):
            tensors[rank][name], length = value, value.nbytes
        else:
            write_archive(folder / "part", value)
            data = (folder / "part").read_bytes()
            files[rank] += data
            length = len(data)
        places[key] = made("filesystem._StorageInfo", **place, length=length)

    # Tensors come last, so that their place is known.
    for path, value in sorted(tree.items(), key=lambda item: isinstance(item[1], _TENSORS)):
        name = names[path]
        if isinstance(value, np.ndarray):
            value = Split(value.shape, [((0,) * value.ndim, value)])
        if not isinstance(value, Split):
            described[name] = made("metadata.BytesStorageMetadata")
            store(name, value, None, 0)
            continue
        chunks = []
        for index, (offset, array) in enumerate(value.parts):
            sizes = {"offsets": Size(offset), "sizes": Size(array.shape)}
            chunks.append(made("metadata.ChunkStorageMetadata", **sizes))
            tensor = array if in_safetensors else make_tensor(array)
            store(name, tensor, Size(offset), index % ranks)
        properties = made("metadata.TensorProperties")
        properties.state = (Global("torch", value.parts[0][1].dtype.name), None, False, None, False)
        described[name] = made(
            "metadata.TensorStorageMetadata",
            properties=properties,
            size=Size(value.shape),
            chunks=chunks,
        )
    (folder / "part").unlink()
    for rank, data in enumerate(files):
        if in_safetensors:
            data += write_safetensors(folder / "part", tensors[rank]).read_bytes()
            (folder / "part").unlink()
        (folder / f"__{rank}_0.distcp").write_bytes(data)
    metadata = made(
        "metadata.Metadata",
        state_dict_metadata=described,
        planner_data={name: path for path, name in names.items()},
        storage_data=places,
    )
    (folder / ".metadata").write_bytes(pickled(metadata))


def _flatten(adam, key, ranks, stage):
    """By rank the vector of a field."""
    arrays = [fields[key].reshape(-1) for fields in adam.values()]
    if stage == 3:
        parts = [np.resize(a, -(-a.size // ranks) * ranks) for a in arrays]  # padded with anything
        return [
            np.concatenate([p.reshape(ranks, -1)[rank] for p in parts]) for rank in range(ranks)
        ]
    flat = np.concatenate(arrays)
    flat = np.pad(flat, (0, -flat.size % (2 * ranks)))
    return list(flat.reshape(ranks, -1))


def write_zero(folder, adam, ranks=2, stage=3, steps=None, model=None):
    """Write the files of a step, as DeepSpeed's ZeRO lays them out; without slices."""
    folder.mkdir(exist_ok=True)
    shapes = {name: Size(fields["fp32"].shape) for name, fields in adam.items()}
    module = {name: make_tensor(np.zeros(shape, np.float16)) for name, shape in shapes.items()}
    common = {"module": module, "buffer_names": [], "param_shapes": [shapes], "mp_world_size": 1}
    for rank in range(ranks):
        vectors = {
            key: make_tensor(_flatten(adam, key, ranks, stage)[rank])
            for key in ("fp32", "exp_avg", "exp_avg_sq")
        }
        masters = vectors.pop("fp32")
        step = make_tensor(np.asarray((steps or [5.0] * ranks)[rank], np.float32))
        optimizer = {"state": {0: {"step": step, **vectors}}}
        optimizer["param_groups"] = [ADAMW | {"params": [0]}]
        keys = {3: ("optimizer_state_dict", "fp32_flat_groups")}
        keys = keys.get(stage, ("base_optimizer_state", "single_partition_of_fp32_groups"))
        held = {keys[0]: optimizer, keys[1]: [masters], "zero_stage": stage}
        held["partition_count"] = ranks if stage == 3 else [ranks]
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        write_archive(folder / f"{name}_optim_states.pt", {"optimizer_state_dict": held})
        if stage == 3:
            write_archive(folder / f"{name}_model_states.pt", common | (model or {}))
    if stage != 3:
        write_archive(folder / "mp_rank_00_model_states.pt", common | (model or {}))


def write_universal(folder, adam, steps=5, is_flat=False):
    """Write a Universal Checkpoint; those of ZeRO-3 have flat tensors, and the steps elsewhere."""
    write_zero(folder, adam, 1, 2)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    common = {"param_groups": [ADAMW | {"params": [0]}]}
    if is_flat:
        common["optimizer_state_dict"] = {"state": {0: {"step": steps}}}
    (folder / "zero").mkdir()
    write_archive(folder / "zero" / "optimizer_state.pt", common)
    for name, fields in adam.items():
        own = folder / "zero" / name
        own.mkdir()
        for key, array in fields.items():
            flat = make_tensor(array.reshape(-1))
            saved = flat if is_flat else {"param": make_tensor(array), "cat_dim": 0}
            write_archive(own / f"{key}.pt", saved)
        if not is_flat:
            write_archive(own / "step.pt", steps)
