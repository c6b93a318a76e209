"""The order of a model's parameters, where safetensors has its weights sorted by name."""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.formats._torch_names import match_shapes
from adamx.checkpoint.formats._torch_objects import list_tensors
from adamx.checkpoint.formats._torch_search import Found
from adamx.checkpoint.untrusted.account import Account, parse_json

__all__ = ["HOW_TO_NAME", "name_by_model"]

HOW_TO_NAME = (
    "the folder does not store the names of the optimizer's variables: safetensors sorts weights "
    "by name. In the program that has the model, run: from adamx.checkpoint import torch_names; "
    "names = torch_names(model, optimizer); "
    "open('names.txt', 'w').write('\\n'.join(names)). "
    "Then, here: checkpoint.rename(open('names.txt').read().split())"
)

_ARCHITECTURE = re.compile(r"[A-Z][A-Za-z0-9]{1,80}")
# Settings that name code or files to fetch, not sizes of the model.
_NO_SIZES = re.compile(r"auto_map|implementation|kernel|quantization|_name_or_path|backbone")
_BACKBONES = ("backbone", "backbone_config", "use_timm_backbone")
# Parameters to which Trainer applies no weight decay, besides those of torch's LayerNorm.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_DEEPEST, _LONGEST = 4, 10_000
_LEAST = 4_096  # up to which any number in a configuration is accepted

_Shape = tuple[int, ...]


def name_by_model(
    found: Found, config: Path, account: Account, notes: list[str]
) -> list[str] | None:
    """The names of the optimizer's parameters, by the model that transformers makes.

    Nothing in the folder is run, and nothing is fetched: the class is one of transformers' own, its
    settings are numbers and words, and its parameters have no values.

    Args:
      found: the optimizer and its weights.
      config: the file with the configuration.
      account: what the configuration is charged to.
      notes: get a remark that says why, if this fails.

    Returns:
      The names in the optimizer's order; None if the model is not known, or does not fit.
    """
    if found.model is None or not config.is_file() or config.stat().st_size > account.size:
        return None
    told = parse_json(config.read_bytes(), account)
    shapes = {name: tuple(x.shape) for name, x in list_tensors(found.model).items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parameters = _list_parameters(told, shapes)
    except ImportError:
        return None
    except Exception as error:
        # A model of any kind may fail in any way; positions are right whatever that was.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        notes.append(f"transformers could not make the model of {config.name}: {reason}")
        return None
    names = _name_groups(found.shapes, parameters, shapes)
    if names is None:
        notes.append(f"the optimizer's groups do not match the model of {config.name}")
        return None
    return [name for group in names for name in group]


def _name_groups(
    groups: Sequence[Sequence[_Shape | None]],
    parameters: Mapping[str, bool],
    shapes: Mapping[str, _Shape],
) -> list[list[str]] | None:
    """Names for each group: by Trainer's rule, or else where only one way fits.

    Args:
      groups: the shapes of each one's parameters.
      parameters: of the model, by name in its order, whether weight decay is applied.
      shapes: of the weights in the folder.
    """
    if not parameters.keys() <= shapes.keys():
        return None
    by_rule = [[name for name, d in parameters.items() if d == which] for which in (True, False)]
    if len(groups) == 2 and all(
        len(group) == len(names)
        and all(shape in (None, shapes[name]) for shape, name in zip(group, names, strict=True))
        for group, names in zip(groups, by_rule, strict=True)
    ):
        return by_rule
    return match_shapes(groups, {name: shapes[name] for name in parameters}, in_order=True)


def _list_parameters(told: Any, shapes: Mapping[str, _Shape]) -> dict[str, bool]:
    """The model's parameters in its order, and whether Trainer applies weight decay to them."""
    architectures = told.get("architectures") if isinstance(told, dict) else None
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise CheckpointError(where="architectures", expected="one class", found=architectures)
    [name] = architectures
    if not isinstance(name, str) or not _ARCHITECTURE.fullmatch(name):
        raise CheckpointError(where="architectures", expected="a class", found=f"{name!r:.80}")
    import transformers

    made = getattr(transformers, name, None)
    import torch  # only here, since it is not needed without transformers

    if not isinstance(made, type) or not issubclass(made, transformers.PreTrainedModel):
        raise CheckpointError(f"{name} is not a model of transformers {transformers.__version__}")
    most = max(_LEAST, *(n for shape in shapes.values() for n in shape))
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        config = made.config_class.from_dict(_keep_sizes(told, most))
        if any(getattr(config, key, None) for key in _BACKBONES):
            raise CheckpointError("a part of it is another model, which might be downloaded")
        with torch.device("meta"), _Bound(16 * len(shapes) + 1_000):
            model = made(config)
        model.tie_weights()
    finally:
        transformers.logging.set_verbosity(verbosity)
    norms = [prefix for prefix, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)]
    parameters = {}
    for path, parameter in model.named_parameters():
        if path in shapes and tuple(parameter.shape) != shapes[path]:
            raise CheckpointError(
                where=path, expected=f"shape {shapes[path]}", found=tuple(parameter.shape)
            )
        is_norm = path.rpartition(".")[0] in norms
        parameters[path] = not is_norm and _UNDECAYED.search(path.lower()) is None
    return parameters


def _keep_sizes(value: Any, most: int, depth: int = 0) -> Any:
    """A configuration without what may name code or files, or be larger than the weights are.

    If something that matters is dropped, the model does not fit, and gives no names.
    """
    if isinstance(value, dict) and depth < _DEEPEST:
        kept = {k: _keep_sizes(v, most, depth + 1) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v is not None and not _NO_SIZES.search(k)}
    if isinstance(value, list) and len(value) <= _LONGEST:
        kept = [_keep_sizes(v, most, depth + 1) for v in value] if depth < _DEEPEST else []
        return None if None in kept else kept
    if isinstance(value, str):
        return value if len(value) < 100 and not set(value) & set("/\\:") else None
    is_number = isinstance(value, bool | int | float)
    return value if is_number and -most <= value <= most else None


class _Bound:
    """A context that limits how many modules and parameters torch makes."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        from torch.nn.modules import module

        self._handles = [
            module.register_module_module_registration_hook(self._count),
            module.register_module_parameter_registration_hook(self._count),
        ]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _count(self, *_: object) -> None:
        self._left -= 1
        if self._left < 0:
            raise CheckpointError("the configuration describes more parts than there are weights")
