"""Vectors of words that were met before, kept for as long as the weights that made them stay what they are."""

import threading
from collections.abc import Callable, Hashable

import torch
from torch import Tensor


def row_keys(rows: Tensor) -> list[bytes]:
    """The bytes of each row of a CPU tensor of integers: (rows, width) -> rows keys."""
    raw, width = rows.to(torch.int32).numpy().tobytes(), 4 * rows.shape[1]
    return [raw[start : start + width] for start in range(0, len(raw), width)]


def first_positions(keys: list[bytes]) -> dict[bytes, int]:
    """Where each different key stands first."""
    return dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))


def compute_once(keys: list[bytes], compute: Callable[[list[int]], Tensor]) -> Tensor:
    """The vector of every key, (keys, dim); `compute` as in `WordCache.look_up`."""
    first = first_positions(keys)
    order = {key: place for place, key in enumerate(first)}
    return compute(list(first.values()))[[order[key] for key in keys]]


class WordCache:
    """A bounded table of vectors by key. It empties itself when it is full or when what the vectors depend on changes.

    Args:
        max_words: how many vectors it keeps at most; 0 keeps nothing.
    """

    def __init__(self, max_words: int):
        self.max_words = max_words
        self._lock = threading.Lock()
        self._clear(None)

    def __len__(self) -> int:
        """How many vectors are kept."""
        return len(self._places)

    def __reduce__(self):
        return type(self), (self.max_words,)  # a copy starts empty

    def _clear(self, fingerprint: Hashable):
        self._fingerprint = fingerprint
        self._places: dict[bytes, int] = {}
        self._table = torch.empty(0, 0)

    def look_up(self, keys: list[bytes], fingerprint: Hashable, compute: Callable[[list[int]], Tensor]) -> Tensor:
        """The vector of every key, from the table where it is there.

        Args:
            keys: equal keys have equal vectors.
            fingerprint: what the vectors depend on besides; where it differs from the last call's, the table is
                emptied.
            compute: takes positions in `keys`, each of a different word, and returns their vectors (positions, dim).

        Returns:
            (keys, dim).
        """
        with self._lock:
            if fingerprint != self._fingerprint:
                self._clear(fingerprint)
            first = first_positions(keys)
            if not keys or len(first) > self.max_words:  # an empty table does not know its width
                return compute_once(keys, compute)
            new = [key for key in first if key not in self._places]
            if len(self._places) + len(new) > self.max_words:
                self._clear(fingerprint)
                new = list(first)
            if new:
                self._add(new, compute([first[key] for key in new]))
            return self._table[[self._places[key] for key in keys]]

    def _add(self, keys: list[bytes], vectors: Tensor):
        used = len(self._places)
        if used + len(keys) > len(self._table):
            size = min(self.max_words, 2 * (used + len(keys)))
            with torch.inference_mode(False):  # its own mode would make the table unfit for anything else
                table = vectors.new_empty(size, vectors.shape[1])
            table[:used] = self._table[:used] if used else 0
            self._table = table
        self._table[used : used + len(keys)] = vectors
        self._places.update(zip(keys, range(used, used + len(keys)), strict=True))
