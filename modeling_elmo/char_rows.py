"""Words as rows of character ids, the input of ELMo's character CNN.

A row is [begin of word, UTF-8 bytes, end of word, padding ...] (Jozefowicz et al. 2016, arXiv 1602.02410; Peters et al.
2018, arXiv 1802.05365). A sentence boundary is a word of one character that no text contains. Every id is stored one
higher than in the original, so that 0 is free for the mask: a row of zeros is no word at all.

The second half of this file puts rows, or plain ids per word, together to batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers.utils import TensorType, to_numpy

BEGIN_OF_SENTENCE, END_OF_SENTENCE, BEGIN_OF_WORD, END_OF_WORD, PADDING = range(257, 262)
NUM_CHARACTERS = PADDING + 1


def check_words(words: Sequence[str]):
    """Raise a `TypeError` if `words` is a string, or one of its items is no string."""
    if isinstance(words, str):
        raise TypeError(f"expected a list of words, got the string {words[:40]!r}: put it into a list")
    for position, word in enumerate(words):
        if not isinstance(word, str):
            raise TypeError(f"every word must be a string, but word {position} is {word!r} ({type(word).__name__})")


def utf8_words(words: Sequence[str]) -> list[bytes]:
    """The UTF-8 bytes of each word; a lone surrogate, which UTF-8 cannot hold, becomes a question mark.

    Raises:
        TypeError: `words` is a string, or one of its items is no string.
    """
    check_words(words)
    return [word.encode("utf-8", "replace") for word in words]


def cut_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (words, max_word_length) without the columns behind the longest word."""
    return rows[:, : np.flatnonzero((rows != PADDING).any(0))[-1] + 1]


def encode_words(words: Sequence[str], max_word_length: int = 50) -> np.ndarray:
    """
    Rows of character ids. No string is special: `<S>` is a word of three characters.

    Args:
        words: Any strings. Of each the first `max_word_length - 2` bytes count; like the original, the cut may fall
            inside a character of several bytes.
        max_word_length: Ids per row, the two word boundaries included.

    Returns:
        uint16 array (words, max_word_length).

    Raises:
        TypeError: `words` is a string, or one of its items is no string.
    """
    num_bytes = max_word_length - 2
    cut = [word[:num_bytes] for word in utf8_words(words)]
    lengths = np.fromiter(map(len, cut), dtype=np.int64, count=len(cut))  # (words,)
    characters = np.array(cut, dtype=f"S{num_bytes}").view(np.uint8).reshape(-1, num_bytes)  # (words, num_bytes)

    rows = np.full((len(cut), max_word_length), PADDING, dtype=np.uint16)
    rows[:, 0] = BEGIN_OF_WORD
    # The lengths, not the zeros behind a word, say where it ends: a word may contain the byte 0.
    within = np.arange(num_bytes) < lengths[:, None]  # (words, num_bytes)
    rows[:, 1:-1] = np.where(within, characters + np.uint16(1), np.uint16(PADDING))
    rows[np.arange(len(cut)), lengths + 1] = END_OF_WORD
    return rows


def boundary_row(character: int, max_word_length: int = 50) -> np.ndarray:
    """The row of `BEGIN_OF_SENTENCE` or `END_OF_SENTENCE`, uint16 array (max_word_length,)."""
    row = np.full(max_word_length, PADDING, dtype=np.uint16)
    row[:3] = BEGIN_OF_WORD, character, END_OF_WORD
    return row


def decode_rows(rows: np.ndarray) -> list[str]:
    """
    The words that the rows (words, max_word_length) spell; bytes that are no UTF-8 become U+FFFD. The text of special
    rows is meaningless.

    Raises:
        ValueError: an id that no character has.
    """
    if rows.size and not 0 <= rows.min() <= rows.max() < NUM_CHARACTERS:
        raise ValueError(f"character ids lie in [0, {NUM_CHARACTERS - 1}], not in [{rows.min()}, {rows.max()}]")
    ends = (rows == END_OF_WORD).argmax(axis=1)  # (words,)
    characters = (rows - 1).astype(np.uint8)  # (words, max_word_length)
    return [row[1:end].tobytes().decode("utf-8", "replace") for row, end in zip(characters, ends, strict=True)]


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
