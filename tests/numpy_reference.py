"""A plain NumPy ELMo, straight from the equations of DESIGN sections 1 and 2 on tensors in TensorFlow's layout.

Written to be checked by eye against the paper, not to be fast, and independent of the package that it tests: nothing is
batched, padded or packed, the gates are i, g, f, o as stored, and all arithmetic is in float64.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BEGIN_OF_SENTENCE, END_OF_SENTENCE, BEGIN_OF_WORD, END_OF_WORD, PADDING = range(256, 261)


def character_rows(words: Sequence[str], length: int) -> np.ndarray:
    """(words + 2, length) legacy character ids of a sentence with its two boundaries, without the shift for a mask."""
    spelled = [[BEGIN_OF_SENTENCE], *([*word.encode()][: length - 2] for word in words), [END_OF_SENTENCE]]
    rows = np.full((len(spelled), length), PADDING)
    for row, characters in zip(rows, spelled, strict=True):
        row[: len(characters) + 2] = [BEGIN_OF_WORD, *characters, END_OF_WORD]
    return rows


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def clip(x: np.ndarray, bound: float | None) -> np.ndarray:
    return x if bound is None else np.clip(x, -bound, bound)


def word_vectors(weights: Mapping[str, np.ndarray], options: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """(words, characters) ids, or (words,) ids of a word table, -> (words, projection_dim)."""
    if "char_cnn" not in options:
        return weights["embedding"][rows]
    cnn = options["char_cnn"]
    activation = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[cnn["activation"]]
    characters = weights["char_embed"][rows]  # (words, characters, char_dim)
    features = []
    for i, (width, _) in enumerate(cnn["filters"]):
        kernel, bias = weights[f"CNN/W_cnn_{i}"][0], weights[f"CNN/b_cnn_{i}"]  # (width, char_dim, number), (number,)
        windows = [characters[:, at : at + width] for at in range(rows.shape[1] - width + 1)]
        scores = [np.einsum("nwd,wdf->nf", window, kernel) + bias for window in windows]
        features.append(activation(np.max(scores, axis=0)))
    x = np.concatenate(features, axis=1)  # (words, filters)
    for i in range(cnn.get("n_highway") or 0):
        name = f"CNN_high_{i}/"
        carry = sigmoid(x @ weights[name + "W_carry"] + weights[name + "b_carry"])
        transform = np.maximum(x @ weights[name + "W_transform"] + weights[name + "b_transform"], 0)
        x = carry * transform + (1 - carry) * x
    if "CNN_proj/W_proj" in weights:
        x = x @ weights["CNN_proj/W_proj"] + weights["CNN_proj/b_proj"]
    return x


def lstm(weights: Mapping[str, np.ndarray], prefix: str, options: Mapping[str, Any], x: np.ndarray) -> np.ndarray:
    """One layer in one direction, from a zero state: (words, projection_dim) -> the same, in reading order."""
    kernel, bias, projection = (weights[prefix + name] for name in ("W_0", "B", "W_P_0"))
    output, cell, outputs = np.zeros(projection.shape[1]), np.zeros(projection.shape[0]), []
    for vector in x:
        i, g, f, o = np.split(np.concatenate([vector, output]) @ kernel + bias, 4)
        cell = clip(sigmoid(f + 1.0) * cell + sigmoid(i) * np.tanh(g), options["lstm"].get("cell_clip"))
        output = clip((sigmoid(o) * np.tanh(cell)) @ projection, options["lstm"].get("proj_clip"))
        outputs.append(output)
    return np.array(outputs)


def elmo_layers(datasets: Mapping[str, np.ndarray], options: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
    """All layers of one sentence from a zero state.

    Args:
        datasets: the legacy tensors by name, as the HDF5 file has them.
        options: the legacy options.
        rows: (words, characters) legacy character ids, or (words,) rows of the word table.

    Returns:
        (layers + 1, words, 2 * projection_dim) float64.
    """
    weights = {name: np.asarray(data, dtype=np.float64) for name, data in datasets.items()}
    vectors = word_vectors(weights, options, rows)
    directions = []
    for direction, step in ((0, 1), (1, -1)):
        layers, x = [vectors], vectors[::step]
        for j in range(options["lstm"].get("n_layers", 1)):
            prefix = f"RNN_{direction}/RNN/MultiRNNCell/Cell{j}/LSTMCell/"
            y = lstm(weights, prefix, options, x)
            x = x + y if j > 0 and options["lstm"].get("use_skip_connections") else y
            layers.append(x[::step])
        directions.append(np.array(layers))
    return np.concatenate(directions, axis=2)
