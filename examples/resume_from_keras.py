"""Take up a half-trained Keras model in JAX, and see what it costs to lose Adam's moments.

examples/data/digits_keras.keras is what Keras 3's `model.save` wrote after 600 steps on the
handwritten digits of scikit-learn. examples/data/record.py trained it, and recorded the loss of
each step before, and of 200 steps after, in which Keras itself went on.

With the moments, JAX continues as Keras did: no loss differs by more than 2e-7, the rounding of
float32. Without them, Adam begins anew: its first step has no past to average over, and moves
every weight by the whole learning rate, up or down as one batch's gradient says. Late in training,
where gradients nearly cancel from batch to batch, that is far too much: the loss jumps from 0.002
to 0.12 and takes some 90 steps to come back. From other initial weights (`record.py --seed` 1 to 3)
it jumps to between 0.06 and 0.18. The earlier a run is taken up and the smaller its learning rate,
the less there is to see: with Keras's default, a tenth of the 0.01 here, next to nothing.
"""

import common
import jax

import adamx.checkpoint


def main() -> None:
    picture = common.make_parser(__doc__, out=True).parse_args().out / "resume_from_keras.png"
    # A GPU would multiply matrices with fewer bits than the float32 that the model was trained in.
    jax.config.update("jax_default_matmul_precision", "highest")

    # The tree and its shapes are enough: no weight is drawn only to be replaced.
    layers = common.RECORDED_LAYERS
    model = jax.eval_shape(lambda: common.init_params(jax.random.key(0), layers))
    # Keras's variables are named by layer, as the leaves of this tree are: nothing else to say.
    checkpoint = adamx.checkpoint.load(common.RECORDED / "digits_keras.keras")
    params = checkpoint.params_like(model)
    transformation, state = checkpoint.restore(params)

    recording = common.load_recording("digits_keras")
    common.compare_runs(recording, transformation, params, state, checkpoint.count, picture)


if __name__ == "__main__":
    main()
