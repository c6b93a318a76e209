"""Keras's `.weights.h5`: numbered variables without a configuration."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence

from adamx.checkpoint.checkpoint import Checkpoint
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.format import FileFormat, Head, Source, Target, register
from adamx.checkpoint.formats._keras_heads import holds_whole_model, starts_hdf5
from adamx.checkpoint.formats._keras_names import name_slots
from adamx.checkpoint.formats._keras_numbered import Numbered, read_numbered, write_numbered
from adamx.checkpoint.formats._keras_optimizers import check_name, describe_rest
from adamx.checkpoint.formats._keras_settings import is_constant, write_settings
from adamx.checkpoint.formats._keras_slots import SlotOrder, unpack
from adamx.checkpoint.untrusted.hdf5 import Reader
from adamx.config.adam_config import AdamConfig

__all__ = ["KerasWeights"]


class KerasWeights(FileFormat):
    """What `save_weights` of Keras 3 and tf_keras writes."""

    name = "weights.h5"
    title = "Keras 3 and tf_keras, weights alone"
    names = "inferred from the order of the layers, or unknown"
    config_of = "keras"
    suffixes = (".weights.h5",)
    extra = "checkpoint"
    packages = ("h5py",)
    template = "required"
    holds_config = False

    def matches(self, head: Head) -> bool:
        """Whether it is HDF5, and not of a whole model."""
        return starts_hdf5(head) and not head.examine(holds_whole_model)

    def read(self, source: Source, *, values: bool) -> Checkpoint:
        """Read the variables, in the one order that their shapes allow."""
        config = source.config
        assert config is not None  # holds_config is False
        if not values:  # a template may have another rate than the checkpoint
            config = dataclasses.replace(config, learning_rate=0.0, decay=0.0)
        with Reader.open(source.path, source.progress, values) as reader:
            held = read_numbered(reader, None, values=values)
        notes = check_name(held.name)
        order = _find_order(held, config)
        is_keras3 = held.name is not None or order.has_rate
        names, more = name_slots(held, order, has_flags=False)
        notes += more + _describe_rate(order, config, is_keras3)
        notes += describe_rest({}, held.is_scaled, held.loss_scale)
        read = unpack(
            held.optimizer,
            names,
            order,
            framework="keras3" if is_keras3 else "tf_keras",
            version=None,
            config=config,
            params=held.weights,
            notes=notes,
            config_is_given=values,
            is_template=not values,
        )
        _check_signs(read)
        return read

    def write(self, target: Target, new: Checkpoint, template: Source | None) -> Sequence[str]:
        """Write a copy of the template with other values."""
        assert template is not None
        write_settings(new, {})  # raises where Keras cannot express them
        with Reader.open(template.path, values=False) as reader:
            order = _find_order(read_numbered(reader, None, values=False), new.config)
        if order.has_rate and not is_constant(new.config):
            raise CheckpointError(
                f"the model of {template.path} has a number for it, the checkpoint has a schedule, "
                "and Keras would drop the whole state",
                where="learning_rate",
                remedy="make a template with the schedule",
                argument="template",
            )
        with Reader.open(template.path, target.progress) as reader:
            write_numbered(reader, target.path, new, None, order)
        return ["config"]


def _find_order(held: Numbered, config: AdamConfig) -> SlotOrder:
    """The one order that the number and the shapes of the variables allow."""
    fitting = []
    for has_rate in (True, False):
        order = SlotOrder(has_rate, False, interleaved=True, amsgrad=config.amsgrad)
        with contextlib.suppress(CheckpointError):
            if _is_consistent(held, order):
                fitting.append(order)
    if len(fitting) != 1:
        raise CheckpointError(
            where="optimizer/vars",
            expected=f"the variables of Adam with amsgrad={config.amsgrad}",
            found=f"{len(held.optimizer)} that do not match: perhaps there are averages of the "
            "weights or accumulated gradients too, or they belong to another optimizer",
            remedy="Save the model as .keras, which stores what they are",
        )
    return fitting[0]


def _describe_rate(order: SlotOrder, config: AdamConfig, is_keras3: bool) -> list[str]:
    """A note where the file does not tell its framework, or has no learning rate."""
    if order.has_rate:
        return []
    if is_keras3:
        if callable(config.learning_rate):
            return []
        return ["the file was saved with a schedule as learning rate, which it does not store"]
    return [
        "the file does not say whether tf_keras wrote it, or an early Keras 3 with a schedule as "
        "learning rate: adamx assumes tf_keras. Both compute the same steps"
    ]


def _check_signs(checkpoint: Checkpoint) -> None:
    """Raise if second moments are negative: they are something else in this file."""
    for name, array in [*checkpoint.nu.items(), *checkpoint.nu_max.items()]:
        if (array < 0).any():
            raise CheckpointError(
                where="optimizer/vars",
                expected=f"a second moment of {name} with no number below 0",
                found="numbers below 0: the optimizer is not Adam, or amsgrad in config= is wrong",
                argument="config",
            )


def _is_consistent(held: Numbered, order: SlotOrder) -> bool:
    count = order.count_variables(len(held.optimizer))
    shapes: dict[int, tuple[int, ...]] = {}
    for (kind, index), array in zip(order.list_kinds(count), held.optimizer, strict=True):
        expected = () if kind in ("count", "rate") else shapes.setdefault(index, array.shape)
        if array.shape != expected:
            return False
    weights = Counter(array.shape for array in held.weights.values())
    return bool(shapes) and Counter(shapes.values()) <= weights


register(KerasWeights())
