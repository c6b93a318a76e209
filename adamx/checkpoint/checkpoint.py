"""The optimizer state of any framework in one class, with conversion from and to JAX trees."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self

import jax
import numpy as np
import optax

from adamx.base.eight_bit import EightBit
from adamx.checkpoint.consistency import (
    Naming,
    check_alike,
    check_groups,
    check_moments,
    guess_naming,
    make_groups,
)
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import Framework
from adamx.checkpoint.health import Problem, find_problems, warn_of_problems
from adamx.checkpoint.layouts import Layout, choose_layout
from adamx.checkpoint.matching import Order
from adamx.checkpoint.probing import Made, check_made
from adamx.checkpoint.renaming import rename_fields
from adamx.checkpoint.restoring import (
    assign_moments,
    assign_variables,
    choose_moments,
    fill_tree,
    restore_state,
)
from adamx.checkpoint.taking import read_state
from adamx.checkpoint.trees import MOMENTS, list_leaves
from adamx.config.adam_config import AdamConfig
from adamx.config.groups import ParameterGroup

__all__ = ["Checkpoint"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, init=False)
class Checkpoint:
    """An Adam optimizer's state, and what a file holds of the model's weights.

    Attributes:
      framework: what wrote the file: "tf1" (TensorFlow 1.1, Keras 2.0), "tf_keras_legacy",
        "tf_keras", "keras3", "torch" or "jax".
      version: of the framework, if the file states it.
      groups: for each group of variables their names, hyperparameters and count of steps. Most
        files have one group.
      params: the model's weights by name, in the model's order, including those that are not
        trained. Empty if the file holds none.
      mu: the first moments by name. Shapes and dtypes are the file's.
      nu: the second moments by name.
      nu_max: AMSGrad's maxima by name; empty without AMSGrad.
      naming: where each name comes from: "file" if the file stores it, "inferred" if it was taken
        from the order of the model's weights, "unknown" if it is only a number.
      transformed: whether `from_state` was given a layout, so that arrays called `kernel` may not
        be in JAX's.
      ordered: whether the variables are in the order of the model, as far as the file shows. False
        after `from_state` without `order`, and for files of JAX programs, since JAX sorts trees.
      quantised: whether moments were kept in 8 bits, so that these are approximate.
      extra: what is not part of Adam's state: Keras's averages of the weights as
        `average/<name>`, and their `ema_momentum`.
      not_read: what else is in the file and was not read, such as a scheduler.
      notes: remarks on what was read, such as that moments were dequantised.

    The mappings are read-only; `dataclasses.replace` makes a checkpoint with others. For a single
    group, it and the constructor accept `names`, `config` and `count` instead of `groups`.

    Raises:
      CheckpointError: a name has no moments, moments have no name, or their shapes differ.
    """

    __module__ = "adamx.checkpoint"  # as users import it: what pickles and repr name

    framework: Framework
    version: str | None
    groups: tuple[ParameterGroup, ...]
    params: Mapping[str, np.ndarray]
    mu: Mapping[str, np.ndarray]
    nu: Mapping[str, np.ndarray]
    nu_max: Mapping[str, np.ndarray]
    extra: Mapping[str, np.ndarray]
    naming: Mapping[str, Naming]
    transformed: bool
    ordered: bool
    quantised: bool
    not_read: tuple[str, ...]
    notes: tuple[str, ...]

    def __init__(
        self,
        *,
        framework: Framework,
        version: str | None,
        params: Mapping[str, np.ndarray],
        mu: Mapping[str, np.ndarray],
        nu: Mapping[str, np.ndarray],
        nu_max: Mapping[str, np.ndarray] = MappingProxyType({}),
        extra: Mapping[str, np.ndarray] = MappingProxyType({}),
        groups: Sequence[ParameterGroup] | None = None,
        names: Sequence[str] | None = None,
        config: AdamConfig | None = None,
        count: int | None = None,
        naming: Mapping[str, Naming] = MappingProxyType({}),
        transformed: bool = False,
        ordered: bool = True,
        quantised: bool = False,
        not_read: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        own = {"params": params, "mu": mu, "nu": nu, "nu_max": nu_max, "extra": extra}
        own = {field: dict(arrays) for field, arrays in own.items()}
        groups = make_groups(groups, names, config, count)
        names = [name for group in groups for name in group.names]
        fields = {
            "framework": framework,
            "version": version,
            "groups": groups,
            "naming": MappingProxyType({n: naming.get(n, guess_naming(names)) for n in names}),
            "transformed": transformed,
            "ordered": ordered,
            "quantised": quantised,
            "not_read": tuple(not_read),
            "notes": tuple(notes),
            "_own": own,
            **{field: MappingProxyType(arrays) for field, arrays in own.items()},
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        check_groups(self.framework, self.groups)
        others = {"nu": self.nu, "nu_max": self.nu_max}
        amsgrad = {name: g.config.amsgrad for g in self.groups for name in g.names}
        check_moments(self.names, self.params, self.mu, others, amsgrad)

    @property
    def names(self) -> tuple[str, ...]:
        """The variables of the optimizer, in the file's order.

        Such as `hidden/kernel` (Keras), `hidden.weight` (torch), or "0", "1", ... if the file has
        no names. A frozen parameter of torch is included, though it has no moments.
        """
        return tuple(name for group in self.groups for name in group.names)

    @property
    def config(self) -> AdamConfig:
        """The hyperparameters; a CheckpointError where groups differ in them."""
        check_alike("config", self.groups)
        return self.groups[0].config

    @property
    def count(self) -> int:
        """Steps done; a CheckpointError where groups differ in them."""
        check_alike("count", self.groups)
        return self.groups[0].count

    @classmethod
    def from_state(
        cls,
        params: optax.Params,
        state: optax.OptState,
        config: AdamConfig,
        *,
        transformation: Made | None = None,
        order: Sequence[str] | None = None,
        layout: Layout | None = None,
        transform: Layout | None = None,
    ) -> Self:
        """The checkpoint of a run in JAX.

        Args:
          params: the model's parameters. Some may have no moments; random keys are left out.
          state: any Optax state that holds an Adam state for them; see `adamx.to_numpy`.
          config: the hyperparameters. They are not in the state: give those of the run.
          transformation: what made the state. Its next step is compared with that of `config`.
          order: the tree's paths in the checkpoint's order; None for the order of the tree.
          layout, transform: as in `restore`, for weights and moments alike.

        Returns:
          A checkpoint with framework "jax" and the paths as names. bfloat16 becomes float32, or the
          weights of `adamx.full_params`. Arrays of moments in 8 bits remember their codes, for
          adamx's own format and `restore`.

        Raises:
          ValueError: as `adamx.to_numpy`; an ensemble; moments of no parameter; paths missing in
            `order`; a state or step not that of `config`; other counters; accumulated gradients.

        Warns:
          UserWarning: no `transformation` was given, or its next step is 0, so that Adam cannot be
            told from Adamax; or `config` cannot describe a transformation for low precision.
        """
        layout = choose_layout(layout, transform)
        check_made(transformation, params, state, config)
        return cls(
            framework="jax",
            version=jax.__version__,
            config=config,
            transformed=layout is not None,
            ordered=order is not None,
            **read_state(params, state, order, layout),
        )

    def restore(
        self,
        params: optax.Params,
        *,
        order: Order | None = None,
        layout: Layout | None = None,
        transformation: optax.GradientTransformation | None = None,
        moments: EightBit | Literal["8bit"] | None = None,
        transform: Layout | None = None,
    ) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
        """The optimizer, to continue with in JAX.

        Args:
          params: the tree of parameters to train; its shapes and dtypes count, not its values. A
            leaf that is None is not trained.
          order: the tree's paths in the order of `names`, where names differ. Those without moments
            may be left out. Or a mapping from the file's names to paths, which may contain other
            weights, too.
          layout: called with a path of the tree and each array that goes there, to rearrange its
            axes, as `torch_linear`. Where shapes alone decide, its error means "not this array".
          transformation: one with an Adam, to continue with; it may hold parts that `config` cannot
            describe, such as `adamx.stochastic_round`; these begin anew. Its hyperparameters, and
            AMSGrad's convention, are not compared. None for `config.transformation()`.
          moments: as in `adamx.adam`, for a transformation that this makes. Moments that are not in
            8 bits of the same group in the file are rounded; the others have the file's bits.
          transform: the old name of `layout`; deprecated.

        Returns:
          The transformation, and its state: the moments and every count, also those of schedules.
          `nnx.Optimizer` needs the state in its own boxes: `optimizer.opt_state =
          adamx.from_numpy(optimizer.opt_state, adamx.to_numpy(state))`.

        Raises:
          CheckpointError: names do not settle where an array goes, and more than one assignment
            has the right shapes; entries are missing, extra or misshapen: all are named; an array
            would lose precision in the dtype of its parameter; `transformation` and the checkpoint
            disagree about AMSGrad; the checkpoint has moments of what `transformation` freezes.

        Warns:
          UserWarning: there are `problems()`.
        """
        layout, how = choose_layout(layout, transform), choose_moments(moments, transformation)
        warn_of_problems(self.problems())
        sources = assign_moments(self, params, order, layout, transformation)
        arrays = {field: getattr(self, field) for field in MOMENTS}
        return restore_state(params, self.groups, arrays, sources, transformation, how, layout)

    def params_like(
        self,
        params: optax.Params,
        *,
        order: Order | None = None,
        layout: Layout | None = None,
        transform: Layout | None = None,
    ) -> Any:
        """The model's weights, shaped like a tree.

        Args:
          params: the tree, of arrays or `jax.ShapeDtypeStruct`. Variables that have no moments
            (frozen layers, statistics of batch normalisation) may be left out of it.
          order: the tree's paths in the order of `names`, as in `restore`; or for all of the file's
            weights, if there are more, in that of `self.params`. Or a mapping from the file's names
            to paths: needed if `names` are only numbers, which do not give the weights' order.
          layout, transform: as in `restore`.

        Returns:
          A tree like `params`, with JAX arrays of the dtypes there; random keys are unchanged.

        Raises:
          CheckpointError: as `restore`; or the file holds no weights.
        """
        layout = choose_layout(layout, transform)
        if not self.params:
            raise CheckpointError(
                "the file holds no weights, or those of several models", where="params"
            )
        leaves = list_leaves(params)
        sources = assign_variables(self, leaves, order, layout, are_weights=True)
        return fill_tree(params, leaves, self.params, sources, layout)

    def rename(self, names: Sequence[str]) -> Self:
        """The checkpoint with other names for the optimizer's variables.

        Args:
          names: the new names in the order of `names`, as `adamx.checkpoint.torch_names` lists them
            in the training environment. If the file holds weights, names of these; prefixes of
            `torch.compile` and DistributedDataParallel are optional.

        Returns:
          A checkpoint whose `naming` is "file", since the names are given and not guessed.

        Raises:
          CheckpointError: the number of names is wrong; a name occurs twice or is not that of a
            weight; or the shape of a variable differs from that of its weight.
        """
        return dataclasses.replace(self, **rename_fields(self, names))

    def problems(self) -> list[Problem]:
        """What no run of Adam can give: moments that are not finite, or contradict each other.

        Returns:
          Findings with `field`, `name` and `finding`; empty if there are none.
        """
        return find_problems(self.groups, self.mu, self.nu, self.nu_max, self.quantised)

    def drain(self, field: str) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a field by name, each dropped as it is yielded, so that memory is freed."""
        arrays: dict[str, np.ndarray] = getattr(self, "_own")[field]  # noqa: B009
        for name in list(arrays):
            yield name, arrays.pop(name)

    @property
    def is_named(self) -> bool:
        """Whether `names` are more than numbers."""
        return set(self.naming.values()) != {"unknown"}
