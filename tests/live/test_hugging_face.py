"""transformers' own models name the variables of a Trainer's folder; none of its code is run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adamx.checkpoint import load, torch_names
from tests.checkpoint_files.wild_cases import check_arrays, check_names, check_steps, read_case
from tests.live.pages import run_page

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.live
PROMOTES = True  # the page's steps use Optax's schedules


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(read_case("hf_trainer").path, tmp_path / "checkpoint-6")


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_model_of_the_folder_tells_the_order():
    case = read_case("hf_trainer")
    checkpoint = load(case.path)
    assert set(checkpoint.naming.values()) == {"inferred"}
    check_names(case, checkpoint)
    check_arrays(case, checkpoint)
    check_steps(case, checkpoint)
    assert not any("torch_names" in note for note in checkpoint.notes)


def test_names_beside_the_training():
    case = read_case("hf_trainer")
    config = transformers.AutoConfig.from_pretrained(case.path)
    model = transformers.AutoModelForCausalLM.from_config(config)
    own = dict(model.named_parameters())
    groups = [{"params": [own[name] for name in g["names"]]} for g in case.told["groups"]]
    optimizer = torch.optim.AdamW(groups)
    assert torch_names(model, optimizer) == case.names
    for wrapped in (torch.compile(model, backend="eager"), torch.nn.ModuleDict({"module": model})):
        assert torch_names(wrapped, optimizer) == case.names


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layer": 50_000},
        {"n_layer": 4_000},
        {"n_layer": 2},
        {"n_embd": 10**12},
        {"n_inner": 12},
        {"architectures": ["AutoModel"]},
        {"architectures": ["Trainer"]},
        {"architectures": ["GPT2Model"]},
        {"architectures": ["DetrForObjectDetection"]},
        {"architectures": "GPT2LMHeadModel"},
        {"num_labels": 10**9, "n_embd": 7},
    ],
    ids=str,
)
def test_a_model_that_does_not_fit_names_nothing(changes, folder):
    change_config(folder, **changes)
    checkpoint = load(folder)
    assert set(checkpoint.naming.values()) == {"unknown"}
    assert any("config.json" in note for note in checkpoint.notes)


def test_code_of_the_folder_is_not_run(folder):
    """Nor are settings followed that fetch code."""
    (folder / "own.py").write_text("raise SystemExit('it was run')")
    change_config(
        folder,
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        attn_implementation="kernels-community/flash-attn",
        _attn_implementation="kernels-community/flash-attn",
        quantization_config={"quant_method": "own"},
    )
    assert set(load(folder).naming.values()) == {"inferred"}


def test_the_order_of_one_group(folder):
    """Without Trainer's two groups, where only one way fits."""
    path = folder / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    config = transformers.AutoConfig.from_pretrained(folder)
    names = [n for n, _ in transformers.AutoModelForCausalLM.from_config(config).named_parameters()]
    by_name = dict(
        enumerate(name for g in read_case("hf_trainer").told["groups"] for name in g["names"])
    )
    state = {names.index(by_name[i]): entry for i, entry in saved["state"].items()}
    group = saved["param_groups"][0] | {"params": list(range(len(names)))}
    torch.save({"state": state, "param_groups": [group]}, path)
    assert list(load(folder).names) == names


class Tokens(torch.utils.data.Dataset):
    """Sequences that count up, as on the page."""

    def __len__(self):
        return 48

    def __getitem__(self, index):
        tokens = (torch.arange(8) + index) % 12
        return {"input_ids": tokens, "labels": tokens}


@pytest.mark.filterwarnings("ignore")
def test_the_page(monkeypatch, tmp_path):
    """A trainer tells the names that the page uses, and continues from what JAX made."""
    pytest.importorskip("accelerate")
    case, begun = read_case("hf_trainer"), {}

    class Begin(transformers.TrainerCallback):
        def on_train_begin(self, *given, optimizer, **_):
            moments = [x["exp_avg"].numpy(force=True).copy() for x in optimizer.state.values()]
            begun.update(step=given[1].global_step, mu=moments)

    config = transformers.AutoConfig.from_pretrained(case.path)
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "output"),
        max_steps=20,
        warmup_steps=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        per_device_train_batch_size=4,
        logging_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model, callbacks = transformers.AutoModelForCausalLM.from_config(config), [Begin()]
    trainer = transformers.Trainer(model, settings, train_dataset=Tokens(), callbacks=callbacks)
    here = {}
    run_page("guides/hugging_face.md", here, {"trainer": trainer}, monkeypatch, tmp_path)

    assert Path("names.txt").read_text().split() == case.names
    assert begun["step"] == here["later"].count == 11
    for name, moment in zip(case.names, begun["mu"], strict=True):
        np.testing.assert_array_equal(moment, here["later"].mu[name])
    assert trainer.state.global_step == 20
    logs = [log for log in trainer.state.log_history if log["step"] > 11 and "loss" in log]
    assert [log["step"] for log in logs] == [12, 15, 18]
    assert all(np.isfinite(log["loss"]) for log in logs)
    rates = [float(here["schedule"](log["step"] - 1)) for log in logs]  # of the step just done
    np.testing.assert_allclose([log["learning_rate"] for log in logs], rates, rtol=1e-6)
