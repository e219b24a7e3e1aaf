"""Writes this folder's module.tar.gz and expected.json with TensorFlow and its Hub, as ELMo modules were exported.

    python3.10 -m venv tf && tf/bin/pip install tensorflow-cpu==2.10.1 tensorflow-hub==0.12.0 'numpy<2' 'protobuf<3.20'
    tf/bin/python tests/tf_hub_module/make.py

Names and signature are those of google/elmo; the weights are random, and large enough for the clips to matter.
"""

import json
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import tensorflow
import tensorflow_hub as hub

tf = tensorflow.compat.v1
FOLDER = Path(__file__).parent
SENTENCES = [["The", "cat", "sat", "."], ["Naïve", "words", ",", "日本", "x" * 60, "!"], ["Hi"]]
CHAR_DIM, FILTERS, NUM_HIGHWAYS = 3, [(1, 3), (2, 4), (3, 5)], 2
DIM, PROJECTION, NUM_LAYERS, CLIP = 7, 4, 2, 3.0
WORD_LENGTH = 50
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PADDING = range(256, 261)


def initial(name: str, shape: list[int]) -> np.ndarray:
    """Random numbers that follow from a variable's name: gates that are nearly open fill the cells up to the clip."""
    bound = 1.0 if len(shape) < 2 or name.endswith("char_embed") else np.prod(shape[:-1]) ** -0.5
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-bound, bound, shape)
    if name.endswith("lstm_cell/bias"):
        values += 2
    if name.endswith("lstm_cell/projection/kernel"):
        values *= 6
    if name.endswith("char_embed"):
        values[0] = 0  # the mask
    return values.astype(np.float32)


def known_values(getter, name, **kwargs):
    """A `custom_getter`."""
    kwargs["initializer"] = lambda shape, **_: initial(name, [int(size) for size in shape])
    return getter(name, **kwargs)


def word_rows(words):
    """Strings (n,) -> character ids (n, WORD_LENGTH) as the files count them, without the mask."""
    data = tf.cast(tensorflow.io.decode_raw(words, tf.uint8, fixed_length=WORD_LENGTH - 2), tf.int32)
    length = tf.minimum(tf.strings.length(words), WORD_LENGTH - 2)[:, None]
    place = tf.range(WORD_LENGTH)[None] - 1
    data = tf.where(place < length, tf.pad(data, [[0, 0], [1, 1]]), tf.fill([tf.shape(data)[0], WORD_LENGTH], PADDING))
    data = tf.where(tf.equal(place, length), tf.fill(tf.shape(data), END_WORD), data)
    return tf.where(tf.broadcast_to(place < 0, tf.shape(data)), tf.fill(tf.shape(data), BEGIN_WORD), data)


def sentence_rows(tokens, lengths):
    """Strings (batch, words) -> ids (batch, words + 2, WORD_LENGTH) with the boundaries, zeros behind them."""
    ends = np.full((2, WORD_LENGTH), PADDING)
    ends[:, 0], ends[:, 1], ends[:, 2] = BEGIN_WORD, [BEGIN_SENTENCE, END_SENTENCE], END_WORD
    shape = tf.shape(tokens)
    rows = tf.reshape(word_rows(tf.reshape(tokens, [-1])), [shape[0], shape[1], WORD_LENGTH])
    rows = tf.pad(rows, [[0, 0], [1, 1], [0, 0]])
    place, last = tf.range(shape[1] + 2)[None, :, None], lengths[:, None, None] + 1
    rows = tf.where(tf.broadcast_to(tf.equal(place, 0), tf.shape(rows)), tf.zeros_like(rows) + ends[0], rows)
    rows = tf.where(tf.broadcast_to(tf.equal(place, last), tf.shape(rows)), tf.zeros_like(rows) + ends[1], rows)
    return tf.where(tf.broadcast_to(place <= last, tf.shape(rows)), rows + 1, tf.zeros_like(rows))


def word_vectors(rows):
    """(batch, words, WORD_LENGTH) -> (batch, words, PROJECTION)."""
    characters = tf.nn.embedding_lookup(tf.get_variable("char_embed", [262, CHAR_DIM]), rows)
    width = sum(number for _, number in FILTERS)
    maxima = []
    with tf.variable_scope("CNN"):
        for i, (window, number) in enumerate(FILTERS):
            weight = tf.get_variable(f"W_cnn_{i}", [1, window, CHAR_DIM, number])
            windows = tf.nn.conv2d(characters, weight, [1, 1, 1, 1], "VALID") + tf.get_variable(f"b_cnn_{i}", [number])
            maxima.append(tf.nn.relu(tf.reduce_max(windows, 2)))
    vectors = tf.concat(maxima, 2)  # (batch, words, width)
    for i in range(NUM_HIGHWAYS):
        with tf.variable_scope(f"CNN_high_{i}"):
            carry, transform = (
                tf.tensordot(vectors, tf.get_variable(f"W_{gate}", [width, width]), 1)
                + tf.get_variable(f"b_{gate}", [width])
                for gate in ("carry", "transform")
            )
            vectors = tf.sigmoid(carry) * tf.nn.relu(transform) + (1 - tf.sigmoid(carry)) * vectors
    with tf.variable_scope("CNN_proj"):
        weight, bias = tf.get_variable("W_proj", [width, PROJECTION]), tf.get_variable("b_proj", [PROJECTION])
        return tf.tensordot(vectors, weight, 1) + bias


def directions(vectors, lengths):
    """The outputs of each layer, both directions side by side: NUM_LAYERS of (batch, words, 2 * PROJECTION)."""
    sides = []
    for direction in (0, 1):
        outputs, layers = tf.reverse_sequence(vectors, lengths, 1) if direction else vectors, []
        for layer in range(NUM_LAYERS):
            cell = tf.nn.rnn_cell.LSTMCell(DIM, num_proj=PROJECTION, cell_clip=CLIP, proj_clip=CLIP)
            cell = tf.nn.rnn_cell.ResidualWrapper(cell) if layer else cell
            with tf.variable_scope(f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}"):
                outputs, _ = tf.nn.dynamic_rnn(cell, outputs, lengths, dtype=tf.float32)
            layers.append(tf.reverse_sequence(outputs, lengths, 1) if direction else outputs)
        sides.append(layers)
    # DeepPavlov's keep states like this one, which no other variable's name has.
    tf.Variable(tf.zeros([8, DIM]), trainable=False)
    return [tf.concat(both, 2) for both in zip(*sides, strict=True)]


def module():
    """What the Hub makes a module of."""
    tokens, lengths = tf.placeholder(tf.string, [None, None]), tf.placeholder(tf.int32, [None])
    with tf.variable_scope("bilm", custom_getter=known_values):
        words = word_vectors(sentence_rows(tokens, lengths))
        layers = [tf.concat([words, words], 2), *directions(words, lengths + 2)]
    layers = [layer[:, 1:-1] for layer in layers]  # the words; behind shorter sentences an end is among them
    with tf.variable_scope("aggregation", custom_getter=known_values):
        weights = tf.nn.softmax(tf.get_variable("weights", [len(layers)]))
        mixed = tf.get_variable("scaling", []) * sum(weights[i] * layer for i, layer in enumerate(layers))
    outputs = {"elmo": mixed, "word_emb": layers[0][..., :PROJECTION]}
    outputs |= {f"lstm_outputs{i}": layer for i, layer in enumerate(layers[1:], 1)}
    hub.add_signature("tokens", {"tokens": tokens, "sequence_len": lengths}, outputs)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member


def main():
    tf.disable_v2_behavior()
    longest = max(map(len, SENTENCES))
    inputs = {
        "tokens": tf.constant([words + [""] * (longest - len(words)) for words in SENTENCES]),
        "sequence_len": tf.constant([len(words) for words in SENTENCES]),
    }
    elmo = hub.Module(hub.create_module_spec(module))
    outputs = elmo(inputs, signature="tokens", as_dict=True)
    with tf.Session() as session, tempfile.TemporaryDirectory() as folder:
        session.run(tf.global_variables_initializer())
        found = session.run(outputs)
        elmo.export(folder, session)
        with tarfile.open(FOLDER / "module.tar.gz", "w:gz") as archive:
            archive.add(folder, arcname=".", filter=anonymous)
    expected = {
        name: [row[: len(words)].tolist() for row, words in zip(values, SENTENCES, strict=False)]
        for name, values in found.items()
    }
    (FOLDER / "expected.json").write_text(json.dumps({"sentences": SENTENCES, "outputs": expected}))


if __name__ == "__main__":
    main()
