"""Like make_checkpoints.py, for TensorFlow 1.1.0; to be run on CPython 3.6.

python -m tests.golden.make_tf11_checkpoint DIRECTORY
"""

import sys

from tests.golden import resume_data as data

SEED = 14
CONFIG = {"lr": 0.01, "decay": 0.001, "clipnorm": 1.0}


def build(keras):
    """The compiled model, with its first weights."""
    model = keras.models.Sequential()
    for n, (name, i, o) in enumerate(data.FROZEN_LAYERS):
        if name == "norm":
            model.add(keras.layers.BatchNormalization(name=name))
            continue
        arguments = {"input_shape": (i,)} if n == 0 else {}
        activation = "linear" if name == "out" else "tanh"
        trainable = name != "frozen"
        model.add(keras.layers.Dense(o, activation, name=name, trainable=trainable, **arguments))
    model.compile(keras.optimizers.Adam(**CONFIG), loss="mse")
    model.set_weights(data.weights(SEED, data.FROZEN_LAYERS))
    return model


def slots(model):
    """The trained variables in the order of the optimizer's slots."""
    return sorted(model.trainable_weights, key=lambda v: v.name)


def resume(tf, keras, model, batches):
    """Trains a model on; the optimizer's weights in the end.

    `train_on_batch` updates a layer before the gradients of those below it are done. Here an
    optimizer with the state of the model's own gets finished gradients.
    """
    backend = keras.backend
    session = backend.get_session()
    params = slots(model)
    x, y = model.inputs[0], tf.placeholder(tf.float32, (None, 4))
    grads = tf.gradients(tf.reduce_mean(tf.square(model.outputs[0] - y)), params)
    fed = [tf.placeholder(tf.float32, backend.int_shape(p)) for p in params]
    optimizer = keras.optimizers.Adam(**CONFIG)
    loss = sum(tf.reduce_sum(p * fed[i]) for i, p in enumerate(params))
    updates = optimizer.get_updates(params, {}, loss)
    session.run(tf.variables_initializer(optimizer.weights))
    optimizer.set_weights(model.optimizer.get_weights())
    for inputs, targets in batches:
        feeds = {x: inputs, y: targets, backend.learning_phase(): 1}
        values = session.run([grads, model.updates], feeds)[0]
        session.run(updates, {placeholder: values[i] for i, placeholder in enumerate(fed)})
    return optimizer.get_weights()


def start(tf, keras):
    """An empty session with one thread: with more, the step counter races with the update."""
    keras.backend.clear_session()
    config = tf.ConfigProto(inter_op_parallelism_threads=1, intra_op_parallelism_threads=1)
    keras.backend.set_session(tf.Session(config=config))


def main(directory):
    """Writes the two files, and checks them."""
    import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    from tensorflow.contrib import keras  # pyright: ignore[reportMissingImports]

    batches = list(data.batches(SEED))
    path = directory + "/tf11_frozen"

    start(tf, keras)
    model = build(keras)
    for x, y in batches[: data.BEFORE]:
        model.train_on_batch(x, y)
    model.save(path + ".h5")
    saved, opt = model.get_weights(), model.optimizer.get_weights()
    texts = {
        "config": CONFIG,
        "names": [v.name for layer in model.layers for v in layer.weights],
        "opt_names": [v.name for v in model.optimizer.weights],
        "slot_order": [v.name for v in slots(model)],
    }
    optfinal = resume(tf, keras, model, batches[data.BEFORE :])
    final = model.get_weights()
    lists = {"saved": saved, "final": final, "opt": opt, "optfinal": optfinal}
    data.write(path + "_resume.npz", SEED, texts, lists)

    start(tf, keras)
    loaded = keras.models.load_model(path + ".h5")
    opt_off = data.farthest(resume(tf, keras, loaded, batches[data.BEFORE :]), optfinal)
    off = data.farthest(loaded.get_weights(), final)
    print(f"{path}.h5: weights {off:g}, optimizer's weights {opt_off:g}")


if __name__ == "__main__":
    main(sys.argv[1])
