"""Trees of parameters to step on: the shapes of real networks, and a few that show one thing."""

import math

__all__ = ["WORKLOADS", "Shapes", "size"]

Shapes = dict[str, tuple[int, ...]]  # of each leaf, by its name


def size(shapes: Shapes) -> int:
    """The number of parameters."""
    return sum(math.prod(shape) for shape in shapes.values())


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def _norm(name: str, features: int) -> Shapes:
    return {f"{name}/scale": (features,), f"{name}/bias": (features,)}


def mlp() -> Shapes:
    """A small network for handwritten digits."""
    return _dense("hidden1", 784, 512) | _dense("hidden2", 512, 512) | _dense("out", 512, 10)


def resnet50() -> Shapes:
    """ResNet-50 for ImageNet: 25,557,032 parameters in 161 leaves."""

    def convolution(name: str, inputs: int, outputs: int, width: int) -> Shapes:
        return {f"{name}/kernel": (outputs, inputs, width, width)} | _norm(f"{name}/norm", outputs)

    shapes = convolution("stem", 3, 64, 7)
    inputs = 64
    for stage, (blocks, features) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        outputs = 4 * features
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            shapes |= convolution(f"{name}/reduce", inputs, features, 1)
            shapes |= convolution(f"{name}/middle", features, features, 3)
            shapes |= convolution(f"{name}/expand", features, outputs, 1)
            if block == 0:
                shapes |= convolution(f"{name}/shortcut", inputs, outputs, 1)
            inputs = outputs
    return shapes | _dense("out", inputs, 1000)


def gpt2() -> Shapes:
    """GPT-2 small: 124,439,808 parameters in 148 leaves."""
    width = 768
    shapes: Shapes = {"wte": (50257, width), "wpe": (1024, width)}
    for block in range(12):
        name = f"h{block}"
        shapes |= _norm(f"{name}/ln_1", width)
        shapes |= _dense(f"{name}/attn/c_attn", width, 3 * width)
        shapes |= _dense(f"{name}/attn/c_proj", width, width)
        shapes |= _norm(f"{name}/ln_2", width)
        shapes |= _dense(f"{name}/mlp/c_fc", width, 4 * width)
        shapes |= _dense(f"{name}/mlp/c_proj", 4 * width, width)
    return shapes | _norm("ln_f", width)


WORKLOADS: dict[str, Shapes] = {
    "mlp": mlp(),
    "resnet50": resnet50(),
    "gpt2": gpt2(),
    "leaf1m": {"leaf": (1_000_000,)},
    "leaf64m": {"leaf": (64_000_000,)},
    "leaves1000": {f"leaf{i:03}": (3_500,) for i in range(1000)},
}
