"""The ids of words as rows of bytes, the input of ELMo's character CNN, and rows put together to batches.

A row is [begin of word, UTF-8 bytes, end of word, padding ...] (Jozefowicz et al. 2016, arXiv 1602.02410; Peters et al.
2018, arXiv 1802.05365). A sentence boundary is a word of one character that no text contains. Every id is stored one
higher than in the original, so that 0 is free for the mask: a row of zeros is no word at all. `spelling` makes rows of
words and words of rows; here rows, or plain ids per word, become batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils import TensorType, to_numpy

BEGIN_OF_SENTENCE, END_OF_SENTENCE, BEGIN_OF_WORD, END_OF_WORD, PADDING = range(257, 262)
NUM_CHARACTERS = PADDING + 1


def cut_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (words, max_word_length) without the columns behind the longest word."""
    return rows[:, : np.flatnonzero((rows != PADDING).any(0))[-1] + 1]


def axes_and_leaf(ids: Any) -> tuple[int, Any]:
    """How deeply `ids` is nested, and its first number, array or tensor. Empty lists count as a batch."""
    axes = 0
    while isinstance(ids, list | tuple):
        ids = next((item for item in ids if not isinstance(item, list | tuple) or len(item) > 0), None)
        if ids is None:
            return 3, None
        axes += 1
    return axes + getattr(ids, "ndim", 0), ids


def as_tensor(array: np.ndarray, tensor_type: str | TensorType | None) -> Any:
    """The array as the tensor that was asked for; `BatchEncoding` would copy it, and slowly."""
    if tensor_type is None or TensorType(tensor_type) != TensorType.PYTORCH:
        return array
    import torch

    return torch.from_numpy(array)


def look_up(table: np.ndarray, positions: list[list[int]], tensor_type: str | TensorType | None) -> Any:
    """`table` (entries, ...) at the positions of each sentence: a tensor where one is wanted and possible, or lists."""
    if tensor_type is not None and len({len(sentence) for sentence in positions}) <= 1:
        index = np.array(positions if positions else np.empty((0, 0)), dtype=np.int64)  # (batch, words)
        return as_tensor(table.astype(np.int64)[index], tensor_type)
    entries = table.tolist()
    if table.ndim == 1:
        return [[entries[position] for position in sentence] for sentence in positions]
    return [[entries[position].copy() for position in sentence] for sentence in positions]


def is_per_word(values: Sequence, lengths: list[int]) -> bool:
    """Whether a column holds one whole number for each word, as a mask does and a label of the sentence does not."""
    arrays = [np.asarray(to_numpy(value)) for value in values]
    return all(
        array.ndim == 1 and len(array) == length and (length == 0 or array.dtype.kind in "iub")
        for array, length in zip(arrays, lengths, strict=True)
    )


def padded(values: Sequence, widths: list[int], tail: tuple[int, ...], value: int, side: str) -> Any:
    """Sentences (words, *tail), each filled up to its width: an int64 array, or a list of arrays if widths differ."""
    out = np.full((len(values), max(widths, default=0), *tail), value, dtype=np.int64)
    for sentence, item, width in zip(out, values, widths, strict=True):
        array, length = to_numpy(item), len(item)
        if length == 0:
            continue
        if array.shape[1:] != tail:
            raise ValueError(f"input_ids: every word must have the shape {tail}, not {array.shape[1:]}")
        sentence[slice(width - length, width) if side == "left" else slice(0, length)] = array
    return out if len(set(widths)) <= 1 else [sentence[:width] for sentence, width in zip(out, widths, strict=True)]
