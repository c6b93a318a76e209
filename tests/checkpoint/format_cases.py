"""Recorded files of every format."""

import shutil

from adamx import AdamConfig
from adamx.checkpoint import FORMATS
from tests.checkpoint.checkpoint_runs import CHECKPOINTS, CLIPPED, PLAIN

WILD = CHECKPOINTS.parent / "wild"
NPZ = WILD / "npz_to_numpy" / "state.npz"
RUN = AdamConfig(learning_rate=1e-3, weight_decay=1e-4)

# What files do not hold, or not in a way that adamx follows.
CONFIGS = {
    "keras3.weights.h5": CLIPPED,
    "keras3_frozen.weights.h5": PLAIN,
    "state.npz": RUN,
    "state.msgpack": RUN,
    "ckpt": RUN,
    "ckpt-1.index": AdamConfig.from_keras({"decay": 0.0}, "tf_keras_legacy"),
}
# Of formats that other programs write, by the format's name.
ONLY_READ = {
    "dcp": WILD / "dcp_fsdp2" / "dcp",
    "deepspeed": WILD / "deepspeed_zero2_2ranks",
    "flax": WILD / "flax_msgpack" / "state.msgpack",
    "hugging_face": WILD / "accelerate" / "state",
    "orbax": WILD / "orbax_adamw" / "ckpt",
    "tensorflow": WILD / "tf2_tfkeras" / "ckpt-1.index",
}
# Of files; folders have tests of their own.
WRITTEN = [name for name, form in FORMATS.items() if form.writable and not form.is_folder]
RECORDED = sorted([*CHECKPOINTS.iterdir(), NPZ, *ONLY_READ.values()])
RECORDED = [path for path in RECORDED if not path.name.endswith("_resume.npz")]


def suffix_of(path):
    """The longest suffix that any format has."""
    known = [suffix for form in FORMATS.values() for suffix in form.suffixes]
    return max((s for s in known if path.name.endswith(s)), key=len)


def format_of(path):
    for name, example in ONLY_READ.items():
        if path == example:
            return FORMATS[name]
    return next(form for form in FORMATS.values() if suffix_of(path) in form.suffixes)


def example_of(form):
    return next(path for path in RECORDED if format_of(path) is form)


def copy_shards(path, target):
    """The files beside an index, which are called as it is."""
    for shard in path.parent.glob(f"{path.stem}.data-*"):
        name = shard.name.replace(path.stem, target.stem, 1)
        shutil.copy(shard, target.with_name(name))


def template_for(path):
    return path if format_of(path).template == "required" else None
