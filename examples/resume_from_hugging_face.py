"""Take up a run of Hugging Face's Trainer in Flax NNX, with Adam's moments and without them.

tests/golden/wild/hf_trainer/checkpoint-6 is what Trainer left of a tiny GPT-2 (one block, 8 wide)
after 6 steps of AdamW. truth.npz beside it has the gradients of five more steps, and the weights
that torch had after them.

The folder does not hold the names of the optimizer's variables: NAMES are those that
`adamx.checkpoint.torch_names(trainer.model, trainer.optimizer)` lists where the run is. Trainer's
first group decays, its second (biases and norms) does not; both continue as they were. GPT-2's
Conv1D layers have their kernels as Flax has them, (in, out), so that nothing is transposed.

With the moments, five steps on torch's gradients end where torch did: no weight differs by more
than 2e-8, which is the rounding of float32. Without them, each weight's first step is as long as
the learning rate allows, and the five end up to 4e-3 away. Both runs then train on sequences of
this example's own. So early in training, at a small learning rate, the loss itself hardly shows
which of the two lost its moments; resume_from_torch.py has a run in which it does.

Needs Flax beside what the other examples need: pip install -e ".[examples,test]".
"""

from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import adamx
import adamx.checkpoint

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise SystemExit(f'{error}: pip install -e ".[examples,test]"') from error

CASE = Path(__file__).parents[1] / "tests" / "golden" / "wild" / "hf_trainer"
WIDTH, HEADS, INNER, TOKENS, LENGTH = 8, 2, 16, 12, 8
GIVEN, STEPS, BATCH = 5, 150, 16

# What torch_names(trainer.model, trainer.optimizer) returned: group by group, in the model's order.
NAMES = [
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.attn.c_proj.weight",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.h.0.mlp.c_proj.weight",
    "transformer.h.0.ln_1.weight",
    "transformer.h.0.ln_1.bias",
    "transformer.h.0.attn.c_attn.bias",
    "transformer.h.0.attn.c_proj.bias",
    "transformer.h.0.ln_2.weight",
    "transformer.h.0.ln_2.bias",
    "transformer.h.0.mlp.c_fc.bias",
    "transformer.h.0.mlp.c_proj.bias",
    "transformer.ln_f.weight",
    "transformer.ln_f.bias",
]


class Attention(nnx.Module):
    """GPT-2's causal attention."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c_attn = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.c_proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mix what each position may look at."""
        shape = (*x.shape[:-1], HEADS, WIDTH // HEADS)
        query, key, value = (part.reshape(shape) for part in jnp.split(self.c_attn(x), 3, -1))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(mixed.reshape(x.shape))


class Inner(nnx.Module):
    """The two dense layers of a block."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.c_fc = nnx.Linear(WIDTH, INNER, rngs=rngs)
        self.c_proj = nnx.Linear(INNER, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Each position by itself."""
        return self.c_proj(jax.nn.gelu(self.c_fc(x), approximate=True))


class Block(nnx.Module):
    """One block; its layers are called as in torch."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.ln_1, self.ln_2 = (nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.attn = Attention(rngs)
        self.mlp = Inner(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Add what attention and the dense layers say."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Model(nnx.Module):
    """The whole; the last layer's weights are those of the first."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.wte = nnx.Embed(TOKENS, WIDTH, rngs=rngs)
        self.wpe = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.h = nnx.List([Block(rngs)])
        self.ln_f = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits for the token after each."""
        x = self.wte(tokens) + self.wpe(jnp.arange(tokens.shape[-1]))
        for block in self.h:
            x = block(x)
        return self.wte.attend(self.ln_f(x))


def find_path(name: str) -> str:
    """Where in the model the weight is that torch calls so."""
    parts = name.removeprefix("transformer.").split(".")
    if parts[-1] == "weight":
        layer = parts[-2]
        parts[-1] = "scale" if "ln_" in layer else "embedding" if "w" in layer[0] else "kernel"
    return "/".join(parts)


def keep(path: str, array: np.ndarray) -> np.ndarray:
    """The layout of GPT-2's Conv1D, which is Flax's. torch's Linear would need `torch_linear`."""
    del path
    return array


def take_up(
    checkpoint: adamx.checkpoint.Checkpoint, *, with_moments: bool
) -> tuple[Model, nnx.Optimizer]:
    """The model and its optimizer, as far as the checkpoint has been trained."""
    model = Model(nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    order = {name: find_path(name) for name in checkpoint.names}
    nnx.update(model, checkpoint.params_like(params, order=order, layout=keep))
    transformation, state = checkpoint.restore(params, order=order, layout=keep)
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    if with_moments:
        arrays = adamx.to_numpy(state)
        optimizer.opt_state = adamx.from_numpy(optimizer.opt_state, arrays)
    return model, optimizer


def follow_torch(model: Model, optimizer: nnx.Optimizer, truth: Any) -> dict[str, float]:
    """How far each weight is from torch's, after five steps on torch's gradients."""
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    paths = {"/".join(map(str, path)): path for path, _ in params}
    update = nnx.jit(lambda model, optimizer, gradients: optimizer.update(model, gradients))
    for step in range(GIVEN):
        flat = {paths[find_path(n)]: jnp.asarray(truth[f"grad{step}|{n}"]) for n in NAMES}
        gradients = nnx.map_state(
            lambda path, leaf, flat=flat: leaf.replace(flat[path]), nnx.state(model, nnx.Param)
        )
        update(model, optimizer, gradients)
    found = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    return {
        name: float(np.max(np.abs(found[paths[find_path(name)]][...] - truth[f"final|{name}"])))
        for name in NAMES
    }


def batches(first: int, last: int) -> np.ndarray:
    """For each step sequences (16, 8) that count up by 1, 2 or 3 from anywhere, and around."""
    drawn = []
    for step in range(first, last):
        random = np.random.RandomState((0, step))
        start, stride = random.randint(TOKENS, size=(BATCH, 1)), random.randint(1, 4, (BATCH, 1))
        drawn.append((start + stride * np.arange(LENGTH)) % TOKENS)
    return np.stack(drawn)


def train(model: Model, optimizer: nnx.Optimizer) -> np.ndarray:
    """The losses of the steps on these sequences, each before its update."""

    def loss(model: Model, tokens: jax.Array) -> jax.Array:
        logits = model(tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
        value, gradients = nnx.value_and_grad(loss)(model, tokens)
        optimizer.update(model, gradients)
        return value

    return np.asarray([step(model, optimizer, jnp.asarray(b)) for b in batches(0, STEPS)])


def draw(path: Path, apart: dict[str, dict[str, float]], losses: dict[str, np.ndarray]) -> None:
    """How far each weight is from torch's, and the losses of both runs."""
    colors = dict(zip(apart, (common.BLUE, common.ORANGE), strict=True))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    rows = np.arange(len(NAMES))[::-1]
    for title, color in colors.items():
        # A weight that agrees in every bit has no place on a logarithmic axis: put it at its foot.
        values = np.maximum([apart[title][name] for name in NAMES], 1e-10)
        left.semilogx(values, rows, "o", color=color, label=title)
        right.plot(np.arange(1, STEPS + 1), losses[title], color=color, label=title)
    left.set_yticks(rows, [name.removeprefix("transformer.") for name in NAMES], fontsize=7)
    left.set(
        title=f"After {GIVEN} steps on torch's gradients", xlabel="largest distance from torch"
    )
    right.set(title="Then, on this example's sequences", xlabel="step")
    right.set_ylabel("loss of a batch (nats)")
    right.legend(frameon=False)
    common.save_figure(figure, (left, right), path)


def main() -> None:
    options = common.make_parser(__doc__, out=True).parse_args()
    picture = options.out / "resume_from_hugging_face.png"
    # A GPU would multiply matrices with fewer bits than the float32 that the model was trained in.
    jax.config.update("jax_default_matmul_precision", "highest")

    checkpoint = adamx.checkpoint.load(CASE / "checkpoint-6").rename(NAMES)
    with np.load(CASE / "truth.npz") as file:
        truth = dict(file)
    print(f"{checkpoint.count} steps done in torch, taken up in Flax for {GIVEN} and {STEPS} more")
    apart, losses = {}, {}
    for title, with_moments in (("moments kept", True), ("moments lost", False)):
        model, optimizer = take_up(checkpoint, with_moments=with_moments)
        apart[title] = follow_torch(model, optimizer, truth)
        losses[title] = train(model, optimizer)
        farthest = max(apart[title].values())
        first, last = losses[title][0], losses[title][-10:].mean()
        print(f"{title}: at most {farthest:.1e} from torch; loss {first:.4f}, at last {last:.4f}")
    draw(picture, apart, losses)
    print(f"the picture is in {picture}")


if __name__ == "__main__":
    main()
