"""Trains a model with DeepSpeed on CPUs, in each of its stages, on one rank and on two.

python write_deepspeed.py FOLDER [NAME ...]

Processes are forked, since each would take seconds to import torch and DeepSpeed.
"""

import multiprocessing
import os
import re
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
    """One rank's part: what it saves first, and what some steps later."""
    engine = start(rank, ranks, stage, port)
    for name in (folder.name, f"{folder.name}_later"):
        advance(engine, rank, ranks)
        engine.save_checkpoint(str(folder.with_name(name)))


def resume(rank: int, ranks: int, stage: int, folder: Path, port: int) -> None:
    """One rank's part of going on from a folder that was saved, or written."""
    is_universal = folder.name.startswith("universal")
    engine = start(rank, ranks, stage, port, checkpoint={"load_universal": is_universal})
    if is_universal:
        engine.load_checkpoint(str(folder.parent), tag=folder.name)
    else:
        engine.load_checkpoint(str(folder))
    advance(engine, rank, ranks)
    engine.save_checkpoint(f"{folder}_resumed")


def start(rank: int, ranks: int, stage: int, port: int, **settings):
    """DeepSpeed's engine on this rank."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    import deepspeed

    for name in deepspeed.ops.__compatible_ops__:  # nothing is to be compiled
        deepspeed.ops.__compatible_ops__[name] = False
    model, optimizer = make()
    config = settings | {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // ranks,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def advance(engine, rank: int, ranks: int) -> None:
    """Train for some steps."""
    own = BATCH // ranks
    for step in range(engine.global_steps, engine.global_steps + STEPS):
        inputs = make_batch(step)[rank * own : (rank + 1) * own]
        engine.backward((engine(inputs) ** 2).mean())
        engine.step()


def main() -> None:
    """Trains anew, or goes on from folders that are called so in FOLDER.

    Anew: `alone.pt`, and for each stage and number of ranks `stageS_ranksN` and, some steps later,
    `stageS_ranksN_later`. Going on from NAME, which has S and N in it: `NAME_resumed`.
    """
    import deepspeed  # noqa: F401 - for all processes, before they are forked
    from forked_ranks import run  # beside this script, which is run by its path

    folder, names = Path(sys.argv[1]), sys.argv[2:]
    fork = multiprocessing.get_context("fork")
    function, runs = resume, []
    if not names:
        runs.append([fork.Process(target=train_alone, args=(folder / "alone.pt",))])
        function, names = train, [f"stage{stage}_ranks{n}" for stage in (1, 2, 3) for n in (1, 2)]
    for port, name in enumerate(names, 29_611):
        stage, ranks = map(int, re.findall(r"(?:stage|ranks)(\d)", name))
        arguments = [(rank, ranks, stage, folder / name, port) for rank in range(ranks)]
        runs.append([fork.Process(target=function, args=own) for own in arguments])
    for ranks in runs:
        run(ranks)


if __name__ == "__main__":
    main()
