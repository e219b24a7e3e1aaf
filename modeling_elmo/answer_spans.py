"""Windows over long contexts, and the best answers in them: what the pipeline and the evaluation on SQuAD share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# In an encoded pair, what stands around the words: <S> question </S> <S> context </S>.
NUM_BOUNDARIES = 4
# Texts are split this many at a time, since the tokenizer makes rows of characters too.
TEXTS_PER_BATCH = 256
# Windows whose spans are compared at a time: some 10 MB of scores.
WINDOWS_PER_BATCH = 256


@dataclass
class Window:
    """A question and as much of its context as the model reads at once.

    Attributes:
        example: the question's number.
        offsets: (words, 2), each context word's first character in the whole context and the one behind its last.
        start_position: the answer's first word in the encoded pair; 0 if this window has none, -100 if that is not
            known.
        end_position: the same of its last word.
    """

    example: int
    question: list[str]
    words: list[str]
    offsets: np.ndarray
    start_position: int = -100
    end_position: int = -100

    @property
    def begin(self) -> int:
        """Position of the first word of the context in the encoded pair."""
        return len(self.question) + 3


class Answer(NamedTuple):
    """A span of the context by its characters, and the sum of its scores as start and end."""

    score: float
    start: int
    end: int


def split_texts(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[str], np.ndarray]]:
    """For each text its words, and for each of these its first character and the one behind its last, (words, 2)."""
    parts = []
    for first in range(0, len(texts), TEXTS_PER_BATCH):
        batch = list(texts[first : first + TEXTS_PER_BATCH])
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = encoded["offset_mapping"]
        parts += [(encoded.tokens(n), np.array(offsets[n], np.int64).reshape(-1, 2)) for n in range(len(batch))]
    return parts


def window_bounds(num_words: int, room: int, stride: int) -> list[tuple[int, int]]:
    """First word and the one behind the last of windows of at most `room` words; neighbours share `stride` words.

    Raises:
        ValueError: a stride that leaves no step from window to window.
    """
    if not 0 <= stride < room:
        raise ValueError(f"windows of {max(room, 0)} words of context cannot share {stride} with the next")
    starts = range(0, max(num_words - stride, 1), room - stride)
    return [(start, min(start + room, num_words)) for start in starts]


def context_scores(logits: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """The scores of the windows' words.

    Args:
        logits: (windows, positions) of the encoded pairs.

    Returns:
        (windows, longest context) float32, minus infinity behind the words.
    """
    begins = np.array([window.begin for window in windows])[:, None]
    lengths = np.array([len(window.words) for window in windows])[:, None]
    steps = np.arange(lengths.max(initial=0))
    scores = np.take_along_axis(logits, np.minimum(begins + steps, logits.shape[1] - 1), axis=1)
    return np.where(steps < lengths, scores, -np.inf).astype(np.float32)


def best_spans(
    starts: np.ndarray, ends: np.ndarray, max_words: int, top_k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The spans of at most `max_words` words with the highest sums of start and end score, best first.

    Args:
        starts: (windows, words), minus infinity where no span may start.
        ends: (windows, words), minus infinity where none may end.

    Returns:
        First words, last words and sums, (windows, spans) each, with up to `top_k` spans; minus infinity for none.
    """
    parts = [
        _best_spans(starts[n : n + WINDOWS_PER_BATCH], ends[n : n + WINDOWS_PER_BATCH], max_words, top_k)
        for n in range(0, max(len(starts), 1), WINDOWS_PER_BATCH)
    ]
    first, last, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return first, last, scores


def _best_spans(starts: np.ndarray, ends: np.ndarray, max_words: int, top_k: int) -> tuple[np.ndarray, ...]:
    windows, words = starts.shape
    if words == 0:
        return np.zeros((windows, 0), int), np.zeros((windows, 0), int), np.zeros((windows, 0), np.float32)
    longest = min(max_words, words)
    behind = np.pad(ends, ((0, 0), (0, longest - 1)), constant_values=-np.inf)
    # [window, first word, words more]: all spans, and no others
    sums = starts[:, :, None] + np.lib.stride_tricks.sliding_window_view(behind, longest, axis=1)
    sums = sums.reshape(windows, words * longest)
    count = min(top_k, sums.shape[1])
    lowest = -np.partition(-sums, count - 1, axis=1)[:, count - 1 : count]  # (windows, 1) the last score that is taken
    is_better, is_worse = sums > lowest, sums < lowest
    equal = np.cumsum(~is_better & ~is_worse, axis=1)  # of equals the first, here and below
    is_taken = is_better | (~is_worse & (equal <= count - is_better.sum(1, keepdims=True)))
    places = is_taken.nonzero()[1].reshape(windows, count)
    order = np.argsort(-np.take_along_axis(sums, places, axis=1), axis=1, kind="stable")
    places = np.take_along_axis(places, order, axis=1)
    first, more = np.divmod(places, longest)
    return first, first + more, np.take_along_axis(sums, places, axis=1)


def best_answers(
    windows: Sequence[Window], starts: np.ndarray, ends: np.ndarray, num_examples: int, max_words: int, top_k: int
) -> list[list[Answer]]:
    """For each question its best answers in all of its windows, best first, each once.

    Args:
        starts: (windows, longest context), as `context_scores` gives them.
        ends: (windows, longest context).
        num_examples: how many questions there are.
        max_words: longest answer.
        top_k: answers to find.
    """
    found: list[dict[tuple[int, int], float]] = [{} for _ in range(num_examples)]
    spans = (array.tolist() for array in best_spans(starts, ends, max_words, top_k))
    for window, *columns in zip(windows, *spans, strict=True):
        best = found[window.example]
        for first, last, score in zip(*columns, strict=True):
            if score > -np.inf:
                place = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                best[place] = max(score, best.get(place, -np.inf))  # windows overlap
    answers = ([Answer(score, *place) for place, score in best.items()] for best in found)
    return [sorted(each, key=lambda answer: (-answer.score, answer.start, answer.end))[:top_k] for each in answers]
