"""Folders that `torch.distributed.checkpoint` writes on several ranks, each with a part of all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load, save
from tests.checkpoint.checkpoint_runs import assert_equal

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked"),
]

SCRIPT = Path(__file__).with_name("write_distributed.py")
RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, SCRIPT, path, *RANKS]
    subprocess.run(list(map(str, command)), check=True, timeout=180)
    return path


def test_the_same_state_from_any_number_of_ranks(folders):
    whole = load(folders / "ranks_1")
    assert (whole.count, len(whole.names), len(whole.params)) == (3, 6, 6)
    for ranks in RANKS:
        folder = folders / f"ranks_{ranks}"
        split = load(folder)
        assert len(list(folder.glob("*.distcp"))) == ranks
        assert set(split.naming.values()) == {"file"}
        assert_equal(split, whole)
        assert_equal(load(f"{folder}_behind"), whole)
        shards = load(f"{folder}_shards", config=whole.config)
        assert shards.names == tuple(sorted(whole.names))
        assert (shards.count, shards.ordered) == (whole.count, False)
        for field in ("params", "mu", "nu"):
            for name, array in getattr(whole, field).items():
                np.testing.assert_array_equal(getattr(shards, field)[name], array, strict=True)


def resume(folder):
    """What torch has in its place, and the weights after three steps more, on one rank."""
    import torch
    from torch import nn
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load as load_into

    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 5))
    optimizer = torch.optim.AdamW(model.parameters())
    weights, state = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": state}
    with pytest.warns(UserWarning, match="assuming the intent is to load in a single process"):
        load_into(saved, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
    )
    steps = [entry["step"].item() for entry in optimizer.state_dict()["state"].values()]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return steps, optimizer.param_groups[0]["lr"], [p.detach().numpy() for p in model.parameters()]


@pytest.mark.parametrize("ranks", RANKS)
def test_torch_goes_on_with_a_written_folder(folders, ranks):
    """The state of a later step in the folder of an earlier one is that step's own folder."""
    template, later = folders / f"ranks_{ranks}", folders / f"ranks_{ranks}_later"
    written = folders / f"ranks_{ranks}_written"
    save(written, load(later), template=template)
    expected, found = resume(later), resume(written)
    assert expected[:2] == found[:2] == ([6.0] * 6, 1e-2)
    before = resume(template)
    for one, other, old in zip(expected[2], found[2], before[2], strict=True):
        np.testing.assert_array_equal(one, other, strict=True)
        assert (one != old).any()
