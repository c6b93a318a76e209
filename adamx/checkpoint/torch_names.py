"""List the names of an optimizer's parameters in the environment where torch trains the model."""

from typing import Any

from adamx.base.trees import listed
from adamx.checkpoint.errors import CheckpointError
from adamx.checkpoint.names import unwrap_names

__all__ = ["torch_names"]


def torch_names(model: Any, optimizer: Any) -> list[str]:
    """The names of an optimizer's parameters, in the order in which its state dict numbers them.

    Run it in the training environment, and save what it returns: most files of torch do not have
    these names. It does not import torch.

    Args:
      model: the `torch.nn.Module`; the one within `torch.compile` or DistributedDataParallel, or
        the wrapper.
      optimizer: a `torch.optim.Optimizer` of parameters of the model, or a wrapper of one with its
        `param_groups`.

    Returns:
      For each parameter, group by group, its name in `model.named_parameters()`, without what
      wrappers put into it. A weight that layers share has the first of its names. Pass the list to
      `Checkpoint.rename`.

    Raises:
      CheckpointError: the optimizer has a parameter that is not the model's.
    """
    parameters = list(model.named_parameters())
    plain = unwrap_names([name for name, _ in parameters])
    # By identity: == compares the values.
    names = {id(parameter): name for (_, parameter), name in zip(parameters, plain, strict=True)}
    found = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    unknown = [
        f"number {index} of shape {tuple(parameter.shape)}"
        for index, parameter in enumerate(found)
        if id(parameter) not in names
    ]
    if unknown:
        raise CheckpointError(
            where="optimizer",
            expected="only parameters of the model",
            found=listed(unknown),
            remedy="pass the model that the optimizer trains, or a torch.nn.ModuleList of all "
            "models that it trains",
        )
    return [names[id(parameter)] for parameter in found]
