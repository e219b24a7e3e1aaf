"""Lanes: a corpus as parallel streams for truncated back-propagation, and their batches.

A lane reads `<S> w1 .. wn` and predicts `w1 .. wn </S>` sentence by sentence (backward: reads `</S> wn .. w1`, predicts
`wn .. w1 <S>`), without padding. Each direction has lanes and an order of its own, as in the original (bilm-tf).
"""

import bisect
import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .char_rows import cut_rows
from .corpus import Corpus

FORWARD, BACKWARD = 0, 1
# Sentences are shuffled in groups of runs of neighbours: so many in a run, so many runs in a group. A group, about
# 1.3 million words, is what memory holds of the order; a smaller text is one group and wholly shuffled.
SENTENCES_IN_RUN, RUNS_IN_GROUP = 1024, 64


class Window(NamedTuple):
    """The same steps of some lanes: for each direction the words it reads and those it is to predict.

    Attributes:
        inputs: (2, lanes, steps) type ids, index 0 forward and 1 backward.
        targets: (2, lanes, steps) type ids; -1 is not predicted.
    """

    inputs: np.ndarray
    targets: np.ndarray


class Position(NamedTuple):
    """How far all lanes have read: all that going on needs, the same for any number of processes. Int64.

    Attributes:
        taken: (2,) sentences that the lanes of a direction took so far, over all epochs.
        starts: (2, lanes) the first word of the sentence that each lane is in.
        lengths: (2, lanes) the words of that sentence.
        offsets: (2, lanes) how many words, boundaries counted, it read of that sentence.
    """

    taken: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray

    @classmethod
    def at_the_end(cls, num_lanes: int) -> "Position":
        """Lanes that have nothing left to read, so that each takes a sentence next."""
        starts, lengths, offsets = np.zeros((3, 2, num_lanes), dtype=np.int64)
        return cls(np.zeros(2, dtype=np.int64), starts, lengths, offsets + 1)

    def copy(self) -> "Position":
        return Position(*(values.copy() for values in self))


# The sentence that a lane of a direction reads next, as (first word, words); None: the lane has come to its end.
NextSentence = Callable[[int, int], tuple[int, int] | None]


def _read_window(corpus: Corpus, position: Position, steps: int, mine: range, following: NextSentence) -> Window:
    """Read `steps` words of each lane of both directions, moving `position`; the window has those of `mine`."""
    sides = [_read(corpus, position, direction, steps, mine, following) for direction in (FORWARD, BACKWARD)]
    return Window(*map(np.stack, zip(*sides, strict=True)))


def _read(
    corpus: Corpus, position: Position, direction: int, steps: int, mine: range, following: NextSentence
) -> tuple[np.ndarray, np.ndarray]:
    """Read `steps` words of each lane of a direction, moving `position`; inputs and targets of `mine`, (lanes, steps).

    The lanes of other processes move on, too, without their words being read from disk. Lanes take sentences in the
    order in which they come to need one, so that the same words come out in windows of any length.
    """
    starts, lengths, offsets = (values[direction].tolist() for values in position[1:])
    pieces: list[Piece] = []

    def read_on(lane: int, at: int):
        """Read on in the lane's sentence, from step `at` of the window to its end or that of the window."""
        take = min(steps - at, lengths[lane] - offsets[lane] + 1)
        if take > 0 and lane in mine:
            pieces.append(Piece(mine.index(lane), at, take, starts[lane], lengths[lane], offsets[lane]))
        offsets[lane] += take

    due = [(length - offset + 1, lane) for lane, (length, offset) in enumerate(zip(lengths, offsets, strict=True))]
    for lane in range(len(due)):  # (when it needs a sentence, lane)
        read_on(lane, 0)
    heapq.heapify(due)
    while due[0][0] < steps:
        at, lane = due[0]
        sentence = following(direction, lane)
        if sentence is None:
            heapq.heapreplace(due, (steps, lane))
        else:
            (starts[lane], lengths[lane]), offsets[lane] = sentence, 0
            heapq.heapreplace(due, (at + sentence[1] + 1, lane))
            read_on(lane, at)
    for values, read in zip(position[1:], (starts, lengths, offsets), strict=True):
        values[direction] = read
    inputs = np.full((len(mine), steps), corpus.bos, dtype=np.int64)
    targets = np.full((len(mine), steps), -1, dtype=np.int64)
    if pieces:
        _fill(corpus, direction, pieces, inputs, targets)
    return inputs, targets


class Piece(NamedTuple):
    """Places `first` to `first + take` (included) of a sentence with both its boundaries, as a direction reads it: what
    a lane (a row of a window) reads from step `at` on."""

    row: int
    at: int
    take: int
    start: int
    length: int
    first: int


def _fill(corpus: Corpus, direction: int, pieces: list[Piece], inputs: np.ndarray, targets: np.ndarray):
    """Write the words of pieces, and of each the word behind it, into (lanes, steps), all pieces at once."""
    row, at, take, start, length, first = np.array(pieces).T  # (pieces,) each
    low, high = np.maximum(first, 1), np.minimum(first + take, length)  # their words, counted from 1 in reading order
    if direction == FORWARD:
        begin, end, spans = corpus.bos, corpus.eos, (start + low - 1, start + high)
    else:
        begin, end, spans = corpus.eos, corpus.bos, (start + length - high, start + length - low + 1)
    words = corpus.words(*(bounds.tolist() for bounds in spans))  # those of all pieces
    numbers = spans[1] - spans[0]
    lies = np.cumsum(numbers) - numbers  # (pieces,) where the words of each begin

    piece = np.repeat(np.arange(len(pieces)), take)  # (words of the window,) each
    step = np.arange(len(piece)) - np.repeat(np.cumsum(take) - take, take)

    def at_place(place: np.ndarray) -> np.ndarray:
        """Type ids at places of sentences, 0 being the boundary in front."""
        inside = place - low[piece] if direction == FORWARD else high[piece] - place
        found = words[np.clip(lies[piece] + inside, 0, len(words) - 1)]
        return np.where(place == 0, begin, np.where(place == length[piece] + 1, end, found))

    inputs[row[piece], at[piece] + step] = at_place(first[piece] + step)
    targets[row[piece], at[piece] + step] = at_place(first[piece] + step + 1)


class Lanes:
    """Endless training lanes: a lane that has read a sentence takes the next one of a shuffled stream for all lanes.

    Each epoch has every sentence once. What is read is a function of the seed and of the position alone: not of the
    number of processes, of which each reads the words of its own lanes.

    Args:
        corpus: the tokenised text.
        num_lanes: of all processes together.
        seed: of the order of sentences.
    """

    def __init__(self, corpus: Corpus, num_lanes: int, seed: int):
        self.corpus = corpus
        self.num_lanes = num_lanes
        self.seed = seed
        self._groups: dict[int, tuple[tuple[int, int], np.ndarray, np.ndarray]] = {}

    def read(self, position: Position, steps: int, mine: range | None = None) -> tuple[Window, Position]:
        """The next `steps` words of the lanes `mine` (default: all), and the position behind them."""
        position = position.copy()
        mine = range(self.num_lanes) if mine is None else mine

        def following(direction: int, _lane: int) -> tuple[int, int]:
            return self._next(position.taken, direction)

        return _read_window(self.corpus, position, steps, mine, following), position

    def _next(self, taken: np.ndarray, direction: int) -> tuple[int, int]:
        """First word and length of the next sentence of the stream."""
        epoch, rank = divmod(int(taken[direction]), self.corpus.num_sentences)
        taken[direction] += 1
        group, place = divmod(rank, SENTENCES_IN_RUN * RUNS_IN_GROUP)
        starts, lengths = self._group(epoch, direction, group)
        return int(starts[place]), int(lengths[place])

    def _group(self, epoch: int, direction: int, group: int) -> tuple[np.ndarray, np.ndarray]:
        """First words and lengths of a group's sentences in their order, each (sentences,)."""
        key = (epoch, group)
        if direction not in self._groups or self._groups[direction][0] != key:
            corpus, total = self.corpus, self.corpus.num_sentences
            # The last run may be a short one; it stays the last, so that all groups before the last are of one size.
            runs = np.random.default_rng([self.seed, epoch, direction]).permutation(total // SENTENCES_IN_RUN)
            runs = np.append(runs, total // SENTENCES_IN_RUN)[group * RUNS_IN_GROUP : (group + 1) * RUNS_IN_GROUP]
            firsts = (runs * SENTENCES_IN_RUN).tolist()
            bounds = [corpus.starts(first, min(first + SENTENCES_IN_RUN, total)) for first in firsts]
            starts = np.concatenate([bound[:-1] for bound in bounds])
            lengths = np.concatenate([np.diff(bound) for bound in bounds])
            order = np.random.default_rng([self.seed, epoch, direction, group]).permutation(len(starts))
            self._groups[direction] = key, starts[order], lengths[order]
        return self._groups[direction][1:]


def read_in_order(corpus: Corpus, num_lanes: int, steps: int, mine: range | None = None) -> Iterator[Window]:
    """One pass for evaluation: the text in its order, cut between sentences into lanes of about equal length.

    A lane that has come to its end before the others predicts nothing more (targets -1).
    """
    mine = range(num_lanes) if mine is None else mine
    total = corpus.num_sentences
    cuts = [corpus.num_predictions * lane // num_lanes for lane in range(num_lanes)]
    firsts = [bisect.bisect_left(range(total), cut, key=lambda i: int(corpus.starts(i, i)[0]) + i) for cut in cuts]
    ends = [*firsts[1:], total]
    upcoming = np.array([firsts, firsts])  # (2, lanes) the next sentence of each lane, forwards
    position = Position.at_the_end(num_lanes)

    def following(direction: int, lane: int) -> tuple[int, int] | None:
        index = int(upcoming[direction, lane])
        if index == ends[lane]:
            return None
        upcoming[direction, lane] += 1
        start, stop = corpus.starts(index, index + 1).tolist()
        return start, stop - start

    while True:
        yield _read_window(corpus, position, steps, mine, following)
        lanes_left = (upcoming[FORWARD] < ends) | (position.offsets[FORWARD] <= position.lengths[FORWARD])
        if not lanes_left.any():
            return


class TypeTable:
    """What the model needs of each type of a corpus: its characters and its id in the LM vocabulary.

    Attributes:
        rows: (types + 2, max_word_length) uint16 character ids, on disk; the last two are `<S>` and `</S>`.
        labels: (types + 3,) int32 ids in the LM vocabulary; the last, reached by index -1, is -100.
    """

    def __init__(self, corpus: Corpus, tokenizer):
        self.rows = corpus.rows()
        ids = [tokenizer.lm_ids(words) for words in corpus.types()]
        boundaries = [tokenizer.lm_bos_id, tokenizer.lm_eos_id, -100]
        self.labels = np.concatenate([*ids, boundaries]).astype(np.int32)

    def batch(self, window: Window) -> dict[str, Tensor]:
        """Arguments of `ElmoForPreTraining` for a window: its different words, and where each is among them."""
        types, places = np.unique(window.inputs, return_inverse=True)
        places = places.reshape(window.inputs.shape)  # (2, lanes, steps)
        rows = self.rows[types].astype(np.int16)  # (distinct, max_word_length)
        labels = self.labels[window.targets].astype(np.int64)  # (2, lanes, steps)
        return {
            "distinct_words": torch.from_numpy(cut_rows(rows).copy()),
            "input_ids": torch.from_numpy(places[FORWARD]),
            "reversed_input_ids": torch.from_numpy(places[BACKWARD]),
            "next_targets": torch.from_numpy(labels[FORWARD]),
            "previous_targets": torch.from_numpy(labels[BACKWARD]),
        }
