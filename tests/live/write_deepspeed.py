"""Trains a model with DeepSpeed on CPUs, in each of its stages, on one rank and on two.

python write_deepspeed.py FOLDER

Processes are forked, since each would take seconds to import torch and DeepSpeed.
"""

import multiprocessing
import os
import sys
from pathlib import Path

STEPS = 3
BATCH = 4


def make() -> tuple:
    """A model, and an optimizer with two groups."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 5))
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=1e-2)


def make_batch(step: int):
    """The inputs of all ranks."""
    import torch

    return torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))


def train_alone(path: Path) -> None:
    """The same without DeepSpeed."""
    import torch

    model, optimizer = make()
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(make_batch(step)) ** 2).mean().backward()
        # As DeepSpeed does in stages 1 to 3, unless it is told otherwise.
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def train(rank: int, ranks: int, stage: int, folder: Path, port: int) -> None:
    """One rank's part."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    import deepspeed

    for name in deepspeed.ops.__compatible_ops__:  # nothing is to be compiled
        deepspeed.ops.__compatible_ops__[name] = False
    model, optimizer = make()
    own = BATCH // ranks
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": own,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for step in range(STEPS):
        inputs = make_batch(step)[rank * own : (rank + 1) * own]
        engine.backward((engine(inputs) ** 2).mean())
        engine.step()
    engine.save_checkpoint(str(folder))


def main() -> None:
    """`alone.pt`, and one folder `stageS_ranksN` for each stage and number of ranks."""
    import deepspeed  # noqa: F401 - for all processes, before they are forked
    from forked_ranks import run  # beside this script, which is run by its path

    folder = Path(sys.argv[1])
    fork = multiprocessing.get_context("fork")
    runs = [[fork.Process(target=train_alone, args=(folder / "alone.pt",))]]
    for port, (stage, ranks) in enumerate(((s, n) for s in (1, 2, 3) for n in (1, 2)), 29_611):
        target = folder / f"stage{stage}_ranks{ranks}"
        arguments = [(rank, ranks, stage, target, port) for rank in range(ranks)]
        runs.append([fork.Process(target=train, args=own) for own in arguments])
    for ranks in runs:
        run(ranks)


if __name__ == "__main__":
    main()
