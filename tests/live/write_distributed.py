"""Trains a model that is split over ranks, and saves it, for several numbers of ranks.

python write_distributed.py FOLDER RANKS ...

Processes are forked, since each would take seconds to import torch.
"""

import multiprocessing
import sys
from pathlib import Path

STEPS = 3


def train(rank: int, ranks: int, folder: Path) -> None:
    """Train on gradients that do not depend on the number of ranks."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.set_num_threads(1)
    store = f"file://{folder}.store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 5))
    for module in model:
        for name, whole in list(module.named_parameters(recurse=False)):
            # Some ranks have fewer rows than others.
            own = distribute_tensor(whole.detach(), mesh, [Shard(0)])
            module.register_parameter(name, nn.Parameter(own))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def advance() -> None:
        for _ in range(STEPS):
            for parameter in model.parameters():
                gradient = torch.randn(parameter.shape)
                parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)])
            optimizer.step()

    advance()
    weights, state = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    behind = FileSystemWriter(
        f"{folder}_behind", serialization_format=SerializationFormat.SAFETENSORS
    )
    save({"model": weights, "optimizer": state}, storage_writer=behind)
    shards = HuggingFaceStorageWriter(f"{folder}_shards", save_distributed=True)
    save({"model": weights, "optimizer": {"state": state["state"]}}, storage_writer=shards)
    advance()
    weights, state = get_state_dict(model, optimizer)
    save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}_later")
    dist.destroy_process_group()


def main() -> None:
    """One folder `ranks_N` for each number, and `ranks_N_later`, which has gone on from there.

    Two have safetensors, which hold tensors alone: `ranks_N_behind` has them behind the groups of
    the optimizer, `ranks_N_shards` in place of all.
    """
    import torch.distributed.checkpoint  # noqa: F401 - for all processes, before they are forked
    from forked_ranks import run  # beside this script, which is run by its path

    fork = multiprocessing.get_context("fork")
    for ranks in map(int, sys.argv[2:]):
        folder = Path(sys.argv[1], f"ranks_{ranks}")
        run([fork.Process(target=train, args=(rank, ranks, folder)) for rank in range(ranks)])


if __name__ == "__main__":
    main()
