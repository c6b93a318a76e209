"""Trains on in TensorFlow 1.1.0 from a file; on CPython 3.6, for which there is no adamx.

PYTHONPATH=. python3.6 tests/live/continue_tf11.py FILE.h5 SEED FIRST OUT.npz

The batches are those of SEED from step FIRST to the end.
"""

import json
import sys

import numpy as np

from tests.golden import make_tf11_checkpoint, resume_data


def main(path, seed, first, out):
    """Writes the hyperparameters in the file, the model's weights in the end, the optimizer's."""
    import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    from tensorflow.contrib import keras  # pyright: ignore[reportMissingImports]

    make_tf11_checkpoint.start(tf, keras)
    model = keras.models.load_model(path)
    config = model.optimizer.get_config()
    make_tf11_checkpoint.CONFIG.clear()
    make_tf11_checkpoint.CONFIG.update(config)  # which `resume` trains with
    batches = list(resume_data.batches(int(seed)))[int(first) :]
    optimizer = make_tf11_checkpoint.resume(tf, keras, model, batches)
    lists = {"weights": model.get_weights(), "optimizer": optimizer}
    arrays = {f"{k}{i}": x for k, xs in lists.items() for i, x in enumerate(xs)}
    np.savez(out, config=np.array(json.dumps(config)), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
