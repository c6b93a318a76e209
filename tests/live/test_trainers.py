"""Checkpoints of trainers, through adamx and back: their libraries go on as if nothing had been."""

import numpy as np
import pytest

from adamx.checkpoint import load, save
from tests.checkpoint.checkpoint_runs import assert_equal

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.live

SIZE, WORDS = 16, 11


def through(source, target, **keys):
    """Read a checkpoint, write it anew with the old one as template, and compare."""
    checkpoint = load(source, **keys)
    assert save(target, checkpoint, template=source, **keys) == ()
    assert_equal(load(target, **keys), checkpoint)
    return target


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, other[name], err_msg=name, strict=True)


class Block(torch.nn.Module):
    """A part of nanoGPT's model, with its names."""

    def __init__(self):
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(SIZE, bias=False)
        self.c_fc = torch.nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, x):
        """Change each vector."""
        return x + torch.tanh(self.c_fc(self.ln_1(x)))


class NanoGpt:
    """nanoGPT's train.py, as far as its checkpoint is concerned."""

    def __init__(self):
        torch.manual_seed(0)
        parts = {"wte": torch.nn.Embedding(WORDS, SIZE), "h": torch.nn.Sequential(Block(), Block())}
        self.model = torch.nn.ModuleDict({"transformer": torch.nn.ModuleDict(parts)})
        self.model["lm_head"] = torch.nn.Linear(SIZE, WORDS, bias=False)
        self.model["transformer"]["wte"].weight = self.model["lm_head"].weight  # tied
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
        self.iter_num = 0

    def train(self, steps):
        """Train on other words at each step."""
        for _ in range(steps):
            rng = torch.Generator().manual_seed(self.iter_num)
            words = torch.randint(WORDS, (8, 5), generator=rng)
            for group in self.optimizer.param_groups:  # its cosine schedule
                group["lr"] = 1e-2 / (1 + self.iter_num)
            x = self.model["transformer"]["h"](self.model["transformer"]["wte"](words[:, :-1]))
            logits = self.model["lm_head"](x).flatten(0, 1)
            torch.nn.functional.cross_entropy(logits, words[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.iter_num += 1

    def save(self, path):
        """Write what train.py writes, of a compiled model."""
        model = {f"_orig_mod.{name}": x for name, x in self.model.state_dict().items()}
        saved = {"model": model, "optimizer": self.optimizer.state_dict()}
        saved |= {"model_args": {"n_layer": 2, "dropout": 0.0}, "iter_num": self.iter_num}
        torch.save(saved | {"best_val_loss": torch.tensor(1e9), "config": {"out_dir": "out"}}, path)

    def resume(self, path):
        """Go on as with init_from="resume"."""
        saved = torch.load(path, map_location="cpu")
        model = {name.removeprefix("_orig_mod."): x for name, x in saved["model"].items()}
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.iter_num = saved["iter_num"]


def test_nanogpt(tmp_path):
    run, resumed = NanoGpt(), NanoGpt()
    run.train(5)
    run.save(tmp_path / "ckpt.pt")
    resumed.resume(through(tmp_path / "ckpt.pt", tmp_path / "new.pt"))
    for one in (run, resumed):
        one.train(5)
    assert_same_weights(run.model.state_dict(), resumed.model.state_dict())


class Tokens(torch.utils.data.Dataset):
    """Sequences of words, always the same."""

    def __init__(self, *, named):
        self.words = torch.randint(WORDS, (48, 6), generator=torch.Generator().manual_seed(1))
        self.named = named

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        words = self.words[index]
        return {"input_ids": words, "labels": words} if self.named else words


def make_trainer(folder, steps):
    """Transformers' Trainer of a tiny GPT-2, which saves after six steps."""
    import transformers

    transformers.set_seed(0)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": SIZE, "vocab_size": WORDS, "n_positions": 8}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    settings = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=6,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        weight_decay=0.1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return transformers.Trainer(model=model, args=settings, train_dataset=Tokens(named=True))


@pytest.mark.filterwarnings("ignore")
def test_trainer_of_transformers(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run = make_trainer(tmp_path / "run", 12)
    run.train()
    folder = through(tmp_path / "run" / "checkpoint-6", tmp_path / "checkpoint-6")
    resumed = make_trainer(tmp_path / "resumed", 12)
    resumed.train(resume_from_checkpoint=str(folder))
    assert resumed.state.global_step == 12
    assert_same_weights(run.model.state_dict(), resumed.model.state_dict())
    assert_equal(
        load(tmp_path / "resumed" / "checkpoint-12"), load(tmp_path / "run" / "checkpoint-12")
    )


def make_lightning(folder, epochs):
    """A LightningModule with groups and a scheduler, and the Trainer for it."""
    import lightning

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(WORDS, SIZE)
            self.block = Block()
            self.head = torch.nn.Linear(SIZE, WORDS)

        def training_step(self, words):
            logits = self.head(self.block(self.embedding(words[:, :-1])))
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())

        def configure_optimizers(self):
            decayed = [p for p in self.parameters() if p.ndim >= 2]
            others = [p for p in self.parameters() if p.ndim < 2]
            groups = [
                {"params": decayed, "weight_decay": 0.1},
                {"params": others, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    return Model(), trainer


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    pytest.importorskip("lightning")
    batches = torch.utils.data.DataLoader(Tokens(named=False), batch_size=8)
    model, trainer = make_lightning(tmp_path, 1)
    trainer.fit(model, batches)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    through(tmp_path / "one.ckpt", tmp_path / "new.ckpt")
    weights = []
    for name in ("one", "new"):
        model, trainer = make_lightning(tmp_path, 3)
        trainer.fit(model, batches, ckpt_path=tmp_path / f"{name}.ckpt")
        assert trainer.global_step == 18
        weights.append(model.state_dict())
    assert_same_weights(*weights)
