"""Writes the checkpoints of this folder with TensorFlow (2.21 was used), as bilm-tf's trainer does.

    python -m venv tf && tf/bin/pip install tensorflow-cpu==2.21.0
    tf/bin/python tests/bilm_tf_checkpoint/make.py

The weights are no trained ones but numbers that follow from a variable's name, so that a test can tell them.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

OPTIONS: dict[str, Any] = {
    "bidirectional": True,
    "char_cnn": {
        "activation": "relu",
        "embedding": {"dim": 2},
        "filters": [[1, 3], [2, 4]],
        "max_characters_per_token": 50,
        "n_characters": 261,
        "n_highway": 1,
    },
    "dropout": 0.1,
    "lstm": {
        "cell_clip": 3,
        "dim": 5,
        "n_layers": 2,
        "proj_clip": 3,
        "projection_dim": 4,
        "use_skip_connections": True,
    },
    "all_clip_norm_val": 10.0,
    "batch_size": 2,
    "n_epochs": 1,
    "n_negative_samples_batch": 2,
    "n_tokens_vocab": 7,
    "n_train_tokens": 100,
    "sample_softmax": True,
    "unroll_steps": 3,
}
VOCABULARY = ["<S>", "</S>", "<UNK>", "the", "cat", "日本", "sat"]


def shapes(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the variables of bilm-tf's `LanguageModel`, as its bin/train_elmo.py scopes them."""
    lstm, cnn, words = options["lstm"], options.get("char_cnn"), options["n_tokens_vocab"]
    dim, projection, layers = lstm["dim"], lstm["projection_dim"], lstm.get("n_layers", 1)
    found: dict[str, tuple[int, ...]] = {}
    if cnn:
        char_dim, filters = cnn["embedding"]["dim"], sum(number for _, number in cnn["filters"])
        found["lm/char_embed"] = (261, char_dim)
        for i, (width, number) in enumerate(cnn["filters"]):
            found |= {f"lm/CNN/W_cnn_{i}": (1, width, char_dim, number), f"lm/CNN/b_cnn_{i}": (number,)}
        for i in range(cnn["n_highway"]):
            for gate in ("carry", "transform"):
                found |= {f"lm/CNN_high_{i}/W_{gate}": (filters, filters), f"lm/CNN_high_{i}/b_{gate}": (filters,)}
        found |= {"lm/CNN_proj/W_proj": (filters, projection), "lm/CNN_proj/b_proj": (projection,)}
    else:
        found["lm/embedding"] = (words, projection)
    for direction in (0, 1):
        for layer in range(layers):
            cell = f"lm/RNN_{direction}/rnn/" + (f"multi_rnn_cell/cell_{layer}/" if layers > 1 else "") + "lstm_cell/"
            found |= {cell + "kernel": (2 * projection, 4 * dim), cell + "bias": (4 * dim,)}
            found[cell + "projection/kernel"] = (dim, projection)
    return found | {"lm/softmax/W": (words, projection), "lm/softmax/b": (words,)}


def values(options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Values of all variables, from -50/64 to 50/64, which float32 holds exactly."""
    return {
        name: ((np.arange(np.prod(shape)) * 37 + zlib.crc32(name.encode())) % 101 - 50)
        .reshape(shape)
        .astype(np.float32)
        / 64
        for name, shape in shapes(options).items()
    }


def main():
    """Save the variables with what the trainer adds: twice, at step 2 in one file, at step 3 in one of each device."""
    import tensorflow

    tf = tensorflow.compat.v1
    tf.disable_eager_execution()
    folder = Path(__file__).parent
    with tf.device("/cpu:0"):
        step = tf.get_variable(
            "global_step", [], initializer=tf.constant_initializer(1), trainable=False, use_resource=False
        )
        tf.get_variable("train_perplexity", [], initializer=tf.zeros_initializer(), trainable=False, use_resource=False)
    variables = []
    for name, value in values(OPTIONS).items():
        with tf.device("/cpu:1" if "RNN_1" in name or "softmax" in name else "/cpu:0"):
            variables.append(tf.get_variable(name, initializer=tf.constant(value), use_resource=False))
    # At a rate of zero the weights stay, and the squares of their gradients are added up beside them.
    optimizer = tf.train.AdagradOptimizer(0.0, initial_accumulator_value=1.0)
    train = optimizer.minimize(sum(tf.reduce_sum(variable) for variable in variables), global_step=step)
    savers = [tf.train.Saver(tf.global_variables(), sharded=sharded) for sharded in (False, True)]
    with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as session:
        session.run(tf.global_variables_initializer())
        for saver in savers:
            session.run(train)
            saver.save(session, str(folder / "model.ckpt"), global_step=step, write_meta_graph=False)
    (folder / "options.json").write_text(json.dumps(OPTIONS))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")


if __name__ == "__main__":
    main()
