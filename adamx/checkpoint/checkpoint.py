"""The optimizer state of any framework, in one form, and its way into and out of a JAX tree."""

import dataclasses
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.trees import flatten_with_path, listed, path_name
from adamx.checkpoint.consistency import check_moments
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.frameworks import FRAMEWORKS, Framework
from adamx.checkpoint.layouts import Layout, choose_layout, lay_out
from adamx.checkpoint.matching import Order, apply_order, check_pairs, check_paths
from adamx.checkpoint.names import spell_order
from adamx.checkpoint.precision import check_losses, find_losses
from adamx.checkpoint.trees import (
    MOMENTS,
    assign_to_tree,
    copy_to_host,
    list_leaves,
    name_moment,
    read_count,
    rounds_at_random,
    split_moments,
)
from adamx.config.adam_config import AdamConfig
from adamx.state.arrays import from_numpy, to_numpy
from adamx.state.find import named_arrays

__all__ = ["Checkpoint"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """An Adam optimizer's state, and what a file holds of the model's weights.

    Attributes:
      framework: whose file it was: "tf1" (TensorFlow 1.1, Keras 2.0), "tf_keras_legacy",
        "tf_keras", "keras3", "torch" or "jax".
      version: of the framework, where the file says it.
      config: the hyperparameters.
      count: steps done.
      names: the variables of the optimizer, in the file's order: such as `hidden/kernel` (Keras),
        `hidden.weight` (torch), or "0", "1", ... where the file does not tell. A frozen parameter
        of torch is among them, though it has no moments.
      params: the model's weights by name, in the model's order; those that are not trained too.
        Empty if the file holds none.
      mu: the first moments by name. Shapes and dtypes are the file's.
      nu: the second moments by name.
      nu_max: AMSGrad's maxima by name; empty without AMSGrad.
      transformed: whether `from_state` was given a layout, so that arrays called `kernel` may not
        be in JAX's.
      extra: what Adam's state has no room for: Keras's averages of the weights as
        `average/<name>`, and their `ema_momentum`.

    The mappings cannot be changed; `dataclasses.replace` makes a checkpoint with others.

    Raises:
      CheckpointError: a name without its moments, moments without a name, or of unlike shapes.
    """

    __module__ = "adamx.checkpoint"  # as users import it: what pickles and repr name

    framework: Framework
    version: str | None
    config: AdamConfig
    count: int
    names: tuple[str, ...]
    params: Mapping[str, np.ndarray]
    mu: Mapping[str, np.ndarray]
    nu: Mapping[str, np.ndarray]
    nu_max: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    transformed: bool = False

    def __post_init__(self) -> None:
        own = {field: dict(getattr(self, field)) for field in ("params", *MOMENTS, "extra")}
        object.__setattr__(self, "_own", own)
        for field, arrays in own.items():
            object.__setattr__(self, field, MappingProxyType(arrays))
        object.__setattr__(self, "names", tuple(self.names))
        convention = FRAMEWORKS[self.framework].convention
        if self.config.amsgrad and self.config.convention == "optax" != convention:
            raise CheckpointError(
                where="config",
                expected=f"the convention of {self.framework} with AMSGrad",
                found="'optax', whose maxima are of the second moment without its bias",
                argument="config",
            )
        if self.count < 0:
            raise CheckpointError(where="count", expected="at least 0", found=self.count)
        others = {"nu": self.nu, "nu_max": self.nu_max}
        check_moments(self.names, self.params, self.mu, others, self.config.amsgrad)

    @classmethod
    def from_state(
        cls,
        params: optax.Params,
        state: optax.OptState,
        config: AdamConfig,
        *,
        order: Sequence[str] | None = None,
        layout: Layout | None = None,
        transform: Layout | None = None,
    ) -> Self:
        """The checkpoint of a run in JAX.

        Args:
          params: the model's parameters. Others without moments may be there; keys are left out.
          state: any Optax state that holds an Adam state for them; see `adamx.to_numpy`.
          config: the hyperparameters. They are not in the state: give those of the run.
          order: the tree's paths in the order that the checkpoint is to have; None for the tree's.
          layout: applied to weights and moments alike, with the path, as in `restore`.
          transform: the old name of `layout`; deprecated.

        Returns:
          A checkpoint with framework "jax", and the paths as names. bfloat16 comes as float32.

        Raises:
          ValueError: as `adamx.to_numpy`; the state of an ensemble; one that disagrees with the
            configuration about AMSGrad; moments of no parameter; an order that is not of all paths.

        Warns:
          UserWarning: parameters were rounded by `adamx.stochastic_round`, which no configuration
            can say: `restore` needs its `transformation`.
        """
        layout = choose_layout(layout, transform)
        arrays = to_numpy(state)
        leaves = list_leaves(params)
        moments = split_moments(arrays)
        order = spell_order(order, leaves)
        paths = list(leaves) if order is None else check_paths(order, leaves)
        if rounds_at_random(state):
            warnings.warn(
                "state: parameters are rounded by stochastic_round, which is not in a checkpoint: "
                "go on with restore(params, transformation=...), given the same chain; without it "
                "they would be rounded to nearest",
                stacklevel=2,
            )

        def put(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            known = [path for path in paths if path in values]
            known += [path for path in values if path not in paths]
            return {path: lay_out(path, values[path], layout) for path in known}

        return cls(
            framework="jax",
            version=jax.__version__,
            config=config,
            count=read_count(arrays),
            names=tuple(path for path in paths if path in moments["mu"]),
            params=put(copy_to_host(leaves)),
            transformed=layout is not None,
            **{field: put(values) for field, values in moments.items()},
        )

    def restore(
        self,
        params: optax.Params,
        *,
        order: Order | None = None,
        layout: Layout | None = None,
        transformation: optax.GradientTransformation | None = None,
        transform: Layout | None = None,
    ) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
        """The optimizer, to go on with in JAX.

        Args:
          params: the tree of parameters to train; its shapes and dtypes count, not its values. A
            leaf that is None is not trained.
          order: the tree's paths in the order of `names`, where names differ. Where `names` has
            some without moments, they may be left out, or not. Or a mapping from the file's names
            to paths, in which those of other weights may stand, too.
          layout: called with a path of the tree and each array that goes there, to change how its
            axes stand; `torch_linear` is one. Where shapes alone decide what goes where, an error
            that it raises means that this array does not go there.
          transformation: one to go on with that holds an Adam and perhaps more than `config` can
            say, such as `adamx.stochastic_round`; what else it keeps begins anew. None for
            `config.transformation()`. Its numbers, and AMSGrad's convention, are not compared.
          transform: the old name of `layout`; deprecated.

        Returns:
          The transformation, and its state: the moments, and every count, those of schedules too.
          `nnx.Optimizer` needs the state in its own boxes: `optimizer.opt_state =
          adamx.from_numpy(optimizer.opt_state, adamx.to_numpy(state))`.

        Raises:
          CheckpointError: names do not settle where an array goes, and more than one assignment
            has the right shapes; entries are missing, extra or misshapen: all are named; an array
            would lose precision in the dtype of its parameter; `transformation` and the checkpoint
            disagree about AMSGrad.
        """
        layout = choose_layout(layout, transform)
        transformation = self.config.transformation() if transformation is None else transformation
        state = transformation.init(params)
        like = named_arrays(state)
        leaves = {p: x for p, x in list_leaves(params).items() if name_moment("mu", p) in like}
        amsgrad = self.config.amsgrad
        if any((name_moment("nu_max", path) in like) != amsgrad for path in leaves):
            raise CheckpointError(
                f"expected one of amsgrad={amsgrad}, as in the checkpoint; found one of "
                f"amsgrad={not amsgrad}",
                where="transformation",
                argument="transformation",
            )
        sources = self._assign(leaves, self.mu, order, layout, ())
        arrays: dict[str, np.ndarray] = {"count": np.asarray(self.count)}
        losses: list[str] = []
        for path, name in sources.items():
            for field in MOMENTS:
                key = name_moment(field, path)
                if key in like:
                    array = lay_out(path, getattr(self, field)[name], layout)
                    arrays[key] = array
                    losses += find_losses(key, array, like[key].dtype)
        check_losses(losses)
        return optax.with_extra_args_support(transformation), from_numpy(state, arrays)

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
            to paths: needed if `names` are only numbers, which do not tell the weights' order.
          layout: as in `restore`.
          transform: the old name of `layout`; deprecated.

        Returns:
          A tree like `params`, with JAX arrays of the dtypes there; its random keys as they are.

        Raises:
          CheckpointError: as `restore`; or the file holds no weights.
        """
        layout = choose_layout(layout, transform)
        if not self.params:
            raise CheckpointError(
                "the file holds no weights, or not just those of one model", where="params"
            )
        leaves = list_leaves(params)
        # Where the optimizer's variables have no names, any of the weights may be one.
        untrained = [name for name in self.params if name not in self.mu]
        sources = self._assign(leaves, self.params, order, layout, untrained)
        losses: list[str] = []
        weights = {}
        for path, name in sources.items():
            array = lay_out(path, self.params[name], layout)
            losses += find_losses(path, array, leaves[path].dtype)
            weights[path] = jnp.asarray(array.astype(leaves[path].dtype))
        check_losses(losses)
        keyed, treedef = flatten_with_path(params)
        return treedef.unflatten([weights.get(path_name(path), leaf) for path, leaf in keyed])

    def drain(self, field: str) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a field by name, each forgotten as it comes, so that memory is freed."""
        arrays: dict[str, np.ndarray] = getattr(self, "_own")[field]  # noqa: B009
        for name in list(arrays):
            yield name, arrays.pop(name)

    @property
    def is_named(self) -> bool:
        """Whether `names` are more than numbers, because the file tells them."""
        return not all(name.isdecimal() for name in self.names)

    def _assign(
        self,
        leaves: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        order: Order | None,
        layout: Layout | None,
        optional: Collection[str],
    ) -> dict[str, str]:
        """By path of the tree, the name of the one of `arrays` that goes there."""
        given: Mapping[str, str] | None = None
        names = self.params if arrays is self.params else self.names
        order = spell_order(order, leaves, [*self.names, *self.params])
        are_linked = self.is_named or all(name in self.params for name in self.names)
        if isinstance(order, Mapping):
            check_pairs(order, [*self.names, *self.params])
            given = order
        elif (
            order is not None
            and arrays is self.params
            and not are_linked
            and len(order) in (len(self.names), len(self.mu))
        ):
            raise CheckpointError(
                f"expected a mapping such as {{{next(iter(arrays))!r}: path, ...}}, since the file "
                "does not tell in which order its optimizer has the weights "
                f"{listed(arrays, most=1000)}",
                where="order",
                argument="order",
            )
        elif order is not None:
            given = apply_order(order, self.names, self.mu, arrays)
        return assign_to_tree(
            {name: arrays[name] for name in names if name in arrays},
            leaves,
            order=given,
            layout=layout,
            is_transposed=FRAMEWORKS[self.framework].kernel == "out, in",
            optional=optional,
            frozen=[name for name in [*self.params, *self.names] if name not in arrays],
            named=self.is_named or arrays is self.params,
        )
