"""Take up a half-trained torch model in JAX, and see what it costs to lose Adam's moments.

examples/data/digits_torch.pt is what `torch.save` wrote of a model and its AdamW after 600 steps on
scikit-learn's handwritten digits. examples/data/record.py trained it, and recorded the loss of each
step before, and of 200 steps after, in which torch itself went on.

With the moments, JAX continues as torch did: no loss differs by more than 2e-7, the rounding of
float32. Without them, Adam begins anew: its first step has no past to average over, and moves
every weight by the whole learning rate, up or down as one batch's gradient says. Late in training,
where gradients nearly cancel from batch to batch, that is far too much: the loss jumps from 0.005
to 0.08 and takes some 60 steps to come back. From other initial weights (`record.py --seed` 1 to 3)
it jumps to between 0.04 and 0.13; the 0.04 is no more than torch's own worst batch then. The
earlier a run is taken up and the smaller its learning rate, the less there is to see: with torch's
default, a tenth of the 0.01 here, next to nothing.

torch itself is not needed.
"""

import common
import jax

import adamx.checkpoint

# torch's optimizer knows its parameters by position alone: these are the leaves in that order,
# model.parameters(). JAX would sort them, and the bias would come before the kernel.
ORDER = [f"{layer}/{name}" for layer in common.RECORDED_LAYERS for name in ("kernel", "bias")]


def main() -> None:
    picture = common.make_parser(__doc__, out=True).parse_args().out / "resume_from_torch.png"
    # A GPU would multiply matrices with fewer bits than the float32 that the model was trained in.
    jax.config.update("jax_default_matmul_precision", "highest")

    # The tree and its shapes are enough: no weight is drawn only to be replaced.
    layers = common.RECORDED_LAYERS
    model = jax.eval_shape(lambda: common.init_params(jax.random.key(0), layers))
    # torch's Linear holds its weights the other way round, as (outputs, inputs).
    layout = adamx.checkpoint.torch_linear
    checkpoint = adamx.checkpoint.load(common.RECORDED / "digits_torch.pt")
    params = checkpoint.params_like(model, order=ORDER, layout=layout)
    transformation, state = checkpoint.restore(params, order=ORDER, layout=layout)

    recording = common.load_recording("digits_torch")
    common.compare_runs(recording, transformation, params, state, checkpoint.count, picture)


if __name__ == "__main__":
    main()
