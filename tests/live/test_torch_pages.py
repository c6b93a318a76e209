"""The parts of the documentation's pages that are torch's, run with torch."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from adamx.checkpoint import load, torch_linear
from tests.checkpoint_files.wild_cases import read_case, shorten
from tests.live.pages import DOCS, read_blocks, run_page

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # of snippets
]
PROMOTES = True


class Gpt(torch.nn.Module):
    """The parameters of nanoGPT's model in tests/golden/wild/nanogpt, by its names."""

    def __init__(self):
        super().__init__()
        linear, norm, parts = torch.nn.Linear, torch.nn.LayerNorm, torch.nn.ModuleDict
        attn = parts({"c_attn": linear(8, 24), "c_proj": linear(8, 8)})
        mlp = parts({"c_fc": linear(8, 16), "c_proj": linear(16, 8)})
        block = parts({"ln_1": norm(8), "attn": attn, "ln_2": norm(8), "mlp": mlp})
        tables = {"wte": torch.nn.Embedding(11, 8), "wpe": torch.nn.Embedding(8, 8)}
        layers = torch.nn.ModuleList([block])
        self.transformer = parts(tables | {"h": layers, "ln_f": norm(8)})
        self.lm_head = linear(8, 11, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight


def training(names):
    """The names of a snippet, with a function that takes steps of its optimizer."""

    def train(steps):
        for _ in range(steps):
            for group in names["optimizer"].param_groups:
                for parameter in group["params"]:
                    parameter.grad = torch.randn_like(parameter)
            names["optimizer"].step()

    torch.manual_seed(0)
    names |= {"train": train}
    return names


def grouped(checkpoint):
    return [(group.names, group.count, group.config) for group in checkpoint.groups]


def test_torch(monkeypatch, tmp_path):
    """The script saves such a file as the page's; what JAX made of it continues in torch."""
    model, here = Gpt(), {}
    there = training({"model": model, "iter_num": 6})
    run_page("guides/torch.md", here, there, monkeypatch, tmp_path)
    for written, golden in zip(load("ckpt.pt").groups, load(here["path"]).groups, strict=True):
        assert [*written.names] == [shorten(name) for name in golden.names]
        assert (written.count, written.config.weight_decay) == (6, golden.config.weight_decay)
    assert there["iter_num"] == here["later"].count == 206

    # One more step on both sides, with the same gradients.
    gradients = read_case("nanogpt").truth["grad0"]
    own = dict(model.named_parameters())
    for name, gradient in gradients.items():
        own[shorten(name)].grad = torch.tensor(gradient)
    there["optimizer"].step()
    here["update"](here["model"], here["optimizer"], here["recorded"]("grad0"))
    flat = dict(nnx.to_flat_state(nnx.state(here["model"], nnx.Param)))
    in_jax = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat.items()}
    assert in_jax.keys() == {*here["order"].values()}
    for name, path in here["order"].items():
        weight = own[shorten(name)].detach().numpy()
        assert np.abs(torch_linear(path, in_jax[path]) - weight).max() < 1e-6
        assert np.abs(here["later"].params[name] - weight).max() > 1e-6  # it moved


def test_groups(monkeypatch, tmp_path):
    """Groups that come late give such a file as the page's."""
    golden = load(read_case("late_layer").path)
    zeros = {n: torch.nn.Parameter(torch.zeros(a.shape)) for n, a in golden.params.items()}
    layers = {"head": torch.nn.Module(), "n2": torch.nn.Module()}
    for name, layer in layers.items():
        for role in ("weight", "bias"):
            setattr(layer, role, zeros[f"{name}.{role}"])
    first = [zeros[name] for name in golden.groups[0].names]
    there = training({"first_parameters": first, **layers})
    run_page("guides/groups.md", {}, there, monkeypatch, tmp_path)
    weights = {name: tensor.detach() for name, tensor in zeros.items()}
    saved = {"model": weights, "optimizer": there["optimizer"].state_dict()}
    torch.save(saved, tmp_path / "late.pt")
    names = [name for group in golden.groups for name in group.names]
    assert grouped(load(tmp_path / "late.pt").rename(names)) == grouped(golden.rename(names))


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpoints(compiled, monkeypatch, tmp_path):
    """Both ways to get the names give those of nanoGPT's two groups."""
    model = torch.compile(Gpt(), backend="eager") if compiled else Gpt()
    parameters = list(model.parameters())
    groups = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups])
    monkeypatch.chdir(tmp_path)
    blocks = read_blocks(DOCS / "guides/checkpoints.md")
    snippets = [block.code for block in blocks if block.kind == "python"]
    assert len(snippets) == 2
    for code in snippets:
        exec(code, {"model": model, "optimizer": optimizer})
        told = Path("names.txt").read_text().split()
        assert told == [shorten(name) for name in read_case("nanogpt").names]
        Path("names.txt").unlink()
