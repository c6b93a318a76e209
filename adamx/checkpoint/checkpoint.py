"""The optimizer state of any framework, in one form, and its way into and out of a JAX tree."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamx.base.trees import listed, path_name
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.layouts import (
    AS_IN_TORCH,
    Transform,
    leaves_of,
    on_host,
    transformed,
)
from adamx.checkpoint.matching import (
    assign,
    check_order,
    check_pairs,
    precision_problems,
    role,
    transposes,
)
from adamx.config.adam_config import AdamConfig
from adamx.state.arrays import from_numpy, to_numpy
from adamx.state.find import named_arrays
from adamx.transforms.rounding import StochasticRoundState

__all__ = ["Checkpoint", "Framework", "Order"]

Framework = Literal["tf1", "tf_keras_legacy", "tf_keras", "keras3", "torch", "jax"]
Order = Sequence[str] | Mapping[str, str]

_MOMENTS = ("mu", "nu", "nu_max")


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
      transformed: whether `from_state` was given a transform, so that arrays called `kernel` may
        stand otherwise than in JAX.
      extra: what Adam's state has no place for: Keras's averages of the weights as
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
        own = {field: dict(getattr(self, field)) for field in ("params", *_MOMENTS, "extra")}
        object.__setattr__(self, "_own", own)
        for field, arrays in own.items():
            object.__setattr__(self, field, MappingProxyType(arrays))
        object.__setattr__(self, "names", tuple(self.names))
        known = set(self.names)
        if len(known) != len(self.names):
            twice = [name for name, count in Counter(self.names).items() if count > 1]
            raise CheckpointError(f"{listed(twice)}: expected every name once")
        if self.config.amsgrad and self.config.convention == "optax" and self.framework != "jax":
            raise CheckpointError(
                f"config: expected the convention of {self.framework} with AMSGrad, found "
                "'optax', whose maxima are of the second moment without its bias"
            )
        if self.count < 0:
            raise CheckpointError(f"count: expected at least 0, found {self.count}")
        problems = [f"{n}: moments of no variable" for n in self.mu if n not in known]
        for field in _MOMENTS[1:]:
            wanted = self.mu if field == "nu" or self.config.amsgrad else {}
            arrays = getattr(self, field)
            problems += [f"{field}/{n}: missing beside mu/{n}" for n in wanted if n not in arrays]
            problems += [
                f"{field}/{name}: not expected beside amsgrad={self.config.amsgrad}"
                if name in self.mu
                else f"{field}/{name}: there is no mu/{name}"
                for name in arrays
                if name not in wanted
            ]
            problems += [
                f"{field}/{n}: expected shape {a.shape} as mu/{n}, found {arrays[n].shape}"
                for n, a in wanted.items()
                if n in arrays and arrays[n].shape != a.shape
            ]
        problems += [
            f"{n}: expected moments of shape {self.params[n].shape} as the weight, found {a.shape}"
            for n, a in self.mu.items()
            if n in self.params and self.params[n].shape != a.shape
        ]
        if problems:
            raise CheckpointError("\n  ".join(["the moments do not fit together:", *problems]))

    @classmethod
    def from_state(
        cls,
        params: optax.Params,
        state: optax.OptState,
        config: AdamConfig,
        *,
        order: Sequence[str] | None = None,
        transform: Transform | None = None,
    ) -> Self:
        """The checkpoint of a run in JAX.

        Args:
          params: the model's parameters. Leaves without moments (of `optax.masked`) may be there.
          state: any Optax state that holds an Adam state for them; see `adamx.to_numpy`.
          config: the hyperparameters. They are not in the state: give those of the run.
          order: the tree's paths in the order that the checkpoint is to have; None for the tree's.
          transform: applied to weights and moments alike, with the path, as in `restore`.

        Returns:
          A checkpoint with framework "jax", and the paths as names. bfloat16 comes as float32.

        Raises:
          ValueError: as `adamx.to_numpy`; the state and the configuration disagree about AMSGrad;
            moments of no parameter; an order that does not name every path once.

        Warns:
          UserWarning: parameters were rounded by `adamx.stochastic_round`, which no configuration
            can say: `restore` needs its `transformation`.
        """
        arrays = to_numpy(state)
        leaves = leaves_of(params)
        moments = {
            field: {
                name.removeprefix(f"{field}/"): array
                for name, array in arrays.items()
                if name.startswith(f"{field}/")
            }
            for field in _MOMENTS
        }
        if "mu" in arrays:
            raise CheckpointError("params: expected a tree with paths, found a single array")
        paths = list(leaves)
        if order is not None:
            paths = check_order(order, [len(leaves)], "each leaf of params")
            if unknown := sorted(set(paths) - leaves.keys()):
                raise CheckpointError(
                    f"order: {listed(unknown)}: not among the paths of params, which are "
                    f"{listed(leaves, most=1000)}"
                )
        weights = on_host(leaves)
        if _rounds_at_random(state):
            warnings.warn(
                "state: parameters are rounded by stochastic_round, which is not in a checkpoint: "
                "go on with restore(params, transformation=...), given the same chain; without it "
                "they would be rounded to nearest",
                stacklevel=2,
            )

        def put(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            known = [path for path in paths if path in values]
            known += [path for path in values if path not in paths]
            return {p: values[p] if transform is None else transform(p, values[p]) for p in known}

        return cls(
            framework="jax",
            version=jax.__version__,
            config=config,
            count=int(arrays["count"]),
            names=tuple(path for path in paths if path in moments["mu"]),
            params=put(weights),
            transformed=transform is not None,
            **{field: put(values) for field, values in moments.items()},
        )

    def restore(
        self,
        params: optax.Params,
        *,
        order: Order | None = None,
        transform: Transform | None = None,
        transformation: optax.GradientTransformation | None = None,
    ) -> tuple[optax.GradientTransformationExtraArgs, optax.OptState]:
        """The optimizer, to go on with in JAX.

        Args:
          params: the tree of parameters to train; its shapes and dtypes count, not its values. A
            leaf that is None is not trained.
          order: the tree's paths in the order of `names`, where names differ. Where `names` has
            some without moments, they may be left out, or not. Or a mapping from the file's names
            to paths, in which those of other weights may stand, too.
          transform: called with a path of the tree and each array that goes there, to change its
            layout; `torch_linear` is one.
          transformation: a transformation to go on with that holds an Adam and perhaps more than
            `config` can say, such as `adamx.stochastic_round`; what else it keeps begins anew. None
            for `config.transformation()`. Hyperparameters, and with AMSGrad the convention, are not
            compared with those of `config`.

        Returns:
          The transformation, and its state: the moments, and every count, those of schedules too.

        Raises:
          CheckpointError: names do not settle where an array goes, and more than one assignment
            has the right shapes; entries are missing, extra or misshapen: all are named; an array
            would lose precision in the dtype of its parameter; `transformation` and the checkpoint
            disagree about AMSGrad.
        """
        transformation = self.config.transformation() if transformation is None else transformation
        state = transformation.init(params)
        like = named_arrays(state)
        leaves = {path: leaf for path, leaf in leaves_of(params).items() if f"mu/{path}" in like}
        amsgrad = self.config.amsgrad
        if any((f"nu_max/{path}" in like) != amsgrad for path in leaves):
            raise CheckpointError(
                f"transformation: expected one of amsgrad={amsgrad}, as in the checkpoint; found "
                f"one of amsgrad={not amsgrad}"
            )
        sources = self._assigned(leaves, self.mu, self.names, order, transform, ())
        arrays: dict[str, np.ndarray] = {"count": np.asarray(self.count)}
        problems: list[str] = []
        for path, name in sources.items():
            for field in _MOMENTS:
                key = f"{field}/{path}"
                if key in like:
                    array = transformed(path, getattr(self, field)[name], transform)
                    arrays[key] = array
                    problems += precision_problems(key, array, like[key].dtype)
        if problems:
            raise CheckpointError("\n  ".join(["values would lose precision:", *problems]))
        return optax.with_extra_args_support(transformation), from_numpy(state, arrays)

    def params_like(
        self,
        params: optax.Params,
        *,
        order: Order | None = None,
        transform: Transform | None = None,
    ) -> Any:
        """The model's weights, shaped like a tree.

        Args:
          params: the tree, of arrays or `jax.ShapeDtypeStruct`. Variables that have no moments
            (frozen layers, statistics of batch normalisation) may be left out of it.
          order: the tree's paths in the order of `names`, as in `restore`; or for all of the file's
            weights, if there are more, in that of `self.params`. Or a mapping from the file's names
            to paths: needed if `names` are only numbers, which do not tell the weights' order.
          transform: as in `restore`.

        Returns:
          A tree like `params`, with JAX arrays of the dtypes there.

        Raises:
          CheckpointError: as `restore`; or the file holds no weights.
        """
        if not self.params:
            raise CheckpointError(
                "params: the file holds no weights, or not just those of one model"
            )
        leaves = leaves_of(params)
        # Where the optimizer's variables have no names, any of the weights may be one.
        untrained = [name for name in self.params if name not in self.mu]
        names = list(self.params)
        sources = self._assigned(leaves, self.params, names, order, transform, untrained)
        problems: list[str] = []
        weights = {}
        for path, name in sources.items():
            array = transformed(path, self.params[name], transform)
            problems += precision_problems(path, array, leaves[path].dtype)
            weights[path] = jnp.asarray(array.astype(leaves[path].dtype))
        if problems:
            raise CheckpointError("\n  ".join(["values would lose precision:", *problems]))
        return jax.tree_util.tree_map_with_path(lambda p, _: weights[path_name(p)], params)

    def drained(self, field: str) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays of a field by name, each forgotten as it comes: for a conversion in place.

        The checkpoint is of no use afterwards.
        """
        arrays: dict[str, np.ndarray] = getattr(self, "_own")[field]  # noqa: B009
        for name in list(arrays):
            yield name, arrays.pop(name)

    @property
    def is_named(self) -> bool:
        """Whether `names` are more than numbers, because the file tells them."""
        return not all(name.isdecimal() for name in self.names)

    def ordered(self, order: Order, of: Mapping[str, np.ndarray]) -> dict[str, str]:
        """By name the path that `order` gives it: in the order of `names`, or in that of `of`.

        Of `names`, those without moments may be left out.
        """
        trained = [name for name in self.names if name in self.mu]
        choices = [list(self.names), trained]
        choices.insert(2 if all(name in of for name in trained) else 0, list(of))
        paths = check_order(order, [len(choice) for choice in choices], "each variable")
        chosen = next(choice for choice in choices if len(choice) == len(paths))
        return dict(zip(chosen, paths, strict=True))

    def _is_unlinked(self, order: Order) -> bool:
        """Whether as many paths could be of the variables or of the weights, in other orders."""
        anonymous = not self.is_named and not all(name in self.params for name in self.names)
        return anonymous and len(order) in (len(self.names), len(self.mu))

    def _assigned(
        self,
        leaves: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        names: Sequence[str],
        order: Order | None,
        transform: Transform | None,
        optional: Collection[str],
    ) -> dict[str, str]:
        """By path of the tree, the name of the one of `arrays` that goes there."""
        given: Mapping[str, str] | None = None
        if isinstance(order, Mapping):
            check_pairs(order, [*self.names, *self.params])
            given = order
        elif order is not None and arrays is self.params and self._is_unlinked(order):
            raise CheckpointError(
                f"order: expected a mapping such as {{{next(iter(arrays))!r}: path, ...}}, since "
                "the file does not tell in which order its optimizer has the weights "
                f"{listed(arrays, most=1000)}"
            )
        elif order is not None:
            given = self.ordered(order, arrays)

        def fault(name: str, path: str) -> str | None:
            shape = arrays[name].shape
            from_torch = self.framework == "torch" and role(path) not in AS_IN_TORCH
            from_keras = self.framework != "torch" and transposes(name, path, shape)
            if transform is not None or len(shape) < 2 or not (from_torch or from_keras):
                return None
            return f"{name} of shape {shape} may be laid out otherwise: give a transform"

        try:
            return assign(
                {name: arrays[name].shape for name in names if name in arrays},
                {path: leaf.shape for path, leaf in leaves.items()},
                order=given,
                shape_at=lambda name, path: transformed(path, arrays[name], transform).shape,
                optional=optional,
                known={name: _FROZEN for name in [*self.params, *self.names] if name not in arrays},
                fault=fault,
                named=self.is_named or arrays is self.params,
            )
        except CheckpointError as error:
            if self.framework != "torch" or transform is not None:
                raise
            raise CheckpointError(f"{error}\n{_TRANSPOSED}") from error.__cause__


def _rounds_at_random(state: optax.OptState) -> bool:
    def is_it(node: object) -> bool:
        return isinstance(node, StochasticRoundState)

    return any(map(is_it, jax.tree.leaves(state, is_leaf=is_it)))


_FROZEN = (
    "has no moments in the file (it was frozen): put None there, or keep it from the optimizer "
    "with optax.masked or optax.partition"
)
_TRANSPOSED = (
    "The weights of torch's layers are transposed against the kernels of Keras and Flax: give "
    "transform=adamx.checkpoint.torch_linear, or lambda path, array: array if yours are not"
)
