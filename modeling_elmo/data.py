"""From text to the batches of pretraining: reading, counting, and the lanes of truncated back-propagation.

A corpus is held as one integer a word (its type id) beside a table of its distinct words, so a batch is two look-ups:
type ids -> rows of characters, and type ids -> ids in the LM vocabulary.
"""

import glob
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

FORWARD, BACKWARD = 0, 1
# How `datasets` calls columns of text.
TEXT_TYPES = ("string", "large_string")


class DataError(ValueError):
    """Text that cannot be trained on; the message says what is wrong and the way out."""


@dataclass
class ReadingReport:
    """What was met while reading: counts, to be shown to the user."""

    lines: int = 0
    sentences: int = 0
    tokens: int = 0
    types: int = 0
    lines_with_invalid_utf8: int = 0
    invalid_utf8_sequences: int = 0
    control_characters: int = 0

    def problems(self) -> list[str]:
        """What was mended while reading, a line each."""
        lines = []
        if self.invalid_utf8_sequences:
            lines.append(
                f"{self.invalid_utf8_sequences:,} invalid UTF-8 sequences in {self.lines_with_invalid_utf8:,} lines "
                "were read as U+FFFD"
            )
        if self.control_characters:
            lines.append(f"{self.control_characters:,} control characters were read as spaces")
        return lines


# Controls, but for the white space among them (tab to carriage return), separate words.
CONTROLS = {code: " " for code in [*range(0x00, 0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)]}


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that paths and globs name, each once, globs in sorted order.

    Raises:
        `DataError`: a name that fits no file.
    """
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        found = [name for name in found if Path(name).is_file()]
        if not found:
            raise DataError(
                f"no file is named {pattern!r}: give text files, .gz files or a pattern such as 'data/*.txt'"
            )
        files += found
    return list(dict.fromkeys(files))


def read_lines(files: Sequence[str], report: ReadingReport) -> Iterator[str]:
    """Lines of text files (plain or .gz), without the line end; what is not UTF-8 is replaced and counted.

    Raises:
        `DataError`: a .gz file that is damaged.
    """
    for name in files:
        opener = gzip.open if name.endswith(".gz") else open
        with opener(name, "rb") as lines:
            try:
                for line in lines:
                    yield decode(line.rstrip(b"\r\n"), report)
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"{name} is damaged ({error}): make or fetch it again") from error


def decode(line: bytes, report: ReadingReport) -> str:
    """A line as text: invalid UTF-8 becomes U+FFFD, control characters become spaces; both are counted."""
    report.lines += 1
    text = line.decode("utf-8", errors="replace")
    invalid = text.count("\ufffd") - line.count(b"\xef\xbf\xbd")
    if invalid > 0:
        report.lines_with_invalid_utf8 += 1
        report.invalid_utf8_sequences += invalid
    if not text.isprintable():
        clean = text.translate(CONTROLS)
        report.control_characters += sum(a != b for a, b in zip(text, clean, strict=True)) if clean != text else 0
        text = clean
    return text


def lines_of_dataset(name: str, config_name: str | None, split: str, text_column: str | None) -> Iterator[str]:
    """Lines of a data set's text column (by default its first column of strings), from the Hub or a local folder.

    Raises:
        `DataError`: the column is not there or not text.
    """
    from datasets import load_dataset

    dataset = load_dataset(name, config_name, split=split)
    text = [column for column, feature in dataset.features.items() if getattr(feature, "dtype", None) in TEXT_TYPES]
    column = text_column or (text[0] if text else None)
    if column not in text:
        raise DataError(f"data set {name!r} has no text column {column!r}: set text_column_name to one of {text}")
    for row in dataset.select_columns(column):
        yield from (row[column] or "").split("\n")


@dataclass
class Corpus:
    """Tokenised text: one type id a word.

    `types`: the distinct words. `words`: (tokens,) int32 indices into `types`. `starts`: (sentences + 1,) int64, the
    first token of each sentence, and the end. No sentence is empty.
    """

    types: list[str]
    words: np.ndarray
    starts: np.ndarray
    report: ReadingReport

    @classmethod
    def from_lines(cls, lines: Iterable[str], split_words, report: ReadingReport | None = None, progress: bool = False):
        """Read a sentence a line; `split_words` turns a line into words. Lines without words are left out."""
        report = report or ReadingReport()
        index: dict[str, int] = {}
        chunks, lengths = [], []
        for line in tqdm(lines, desc="reading", unit=" lines", disable=not progress, mininterval=1):
            words = split_words(line)
            if words:
                chunks.append(np.array([index.setdefault(word, len(index)) for word in words], dtype=np.int32))
                lengths.append(len(words))
        report.sentences, report.tokens, report.types = len(lengths), sum(lengths), len(index)
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        words = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.int32)
        return cls(list(index), words, starts.astype(np.int64), report)

    @property
    def num_sentences(self) -> int:
        return len(self.starts) - 1

    @property
    def num_predictions(self) -> int:
        """Words that one pass predicts in each direction: all, and one boundary a sentence."""
        return len(self.words) + self.num_sentences

    @property
    def fingerprint(self) -> str:
        """Changes when any word of the corpus does; a resumed run must find the same text."""
        checksum = zlib.crc32(self.starts.tobytes(), zlib.crc32(self.words.tobytes()))
        return f"{len(self.words)}-{zlib.crc32(chr(10).join(self.types).encode('utf-8', 'replace'), checksum):08x}"

    def hold_out(self, every: int) -> tuple["Corpus", "Corpus"]:
        """The corpus without each `every`th sentence, and these sentences."""
        held = np.arange(self.num_sentences) % every == every - 1
        return self._select(~held), self._select(held)

    def _select(self, chosen: np.ndarray) -> "Corpus":
        lengths = np.diff(self.starts)
        words = self.words[np.repeat(chosen, lengths)]
        starts = np.concatenate([[0], np.cumsum(lengths[chosen])]).astype(np.int64)
        types = len(np.unique(words))
        report = replace(self.report, sentences=int(chosen.sum()), tokens=len(words), types=types)
        return Corpus(self.types, words, starts, report)

    def counts(self) -> dict[str, int]:
        """How often each type occurs."""
        return dict(zip(self.types, np.bincount(self.words, minlength=len(self.types)).tolist(), strict=True))


class Window(NamedTuple):
    """The same steps of some lanes: for each direction the words it reads and those it is to predict.

    `inputs`, `targets`: (2, lanes, steps) type ids, index 0 forward and 1 backward; -1 in `targets` is not predicted.
    """

    inputs: np.ndarray
    targets: np.ndarray


class Lanes:
    """A corpus as `num_lanes` parallel streams for truncated back-propagation, endless and without padding.

    An epoch puts all sentences in a row, each as `<S> w1 .. wn` predicting `w1 .. wn </S>` (backward: `</S> wn .. w1`
    predicting `wn .. w1 <S>`), and cuts the row into equal lanes. At its end a lane goes on with its part of the next
    epoch. Each direction has an order of its own, as in the original. Where a batch lies is a function of the seed and
    the number of steps read so far, so a position is all that resuming needs.

    Args:
        corpus: the text.
        num_lanes: rows of a batch, over all processes.
        seed: of the shuffling; `None` keeps the order of the text and ends after one epoch, its tail included.

    Raises:
        `DataError`: fewer words than lanes.
    """

    def __init__(self, corpus: Corpus, num_lanes: int, seed: int | None = None):
        if corpus.num_predictions < num_lanes:
            raise DataError(
                f"the text has {corpus.num_predictions:,} words to predict, fewer than the {num_lanes:,} lanes of a "
                "batch: give more text or lower the batch size"
            )
        self.corpus = corpus
        self.num_lanes = num_lanes
        self.seed = seed
        # In training the few words behind the last full row of lanes are others in each epoch; evaluation reads all.
        total = corpus.num_predictions
        self.steps_per_epoch = total // num_lanes if seed is not None else -(-total // num_lanes)
        self._orders: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def window(self, position: int, steps: int, lanes: slice = slice(None)) -> Window:
        """`steps` steps from step `position` (counted over all epochs) of the given lanes."""
        position_in_lane = np.arange(position, position + steps)
        epochs, offsets = np.divmod(position_in_lane, self.steps_per_epoch)
        first = np.arange(self.num_lanes)[lanes, None] * self.steps_per_epoch  # (lanes, 1)
        inputs = np.empty((2, len(first), steps), dtype=np.int64)
        targets = np.empty_like(inputs)
        for epoch in np.unique(epochs):
            columns = epochs == epoch
            for direction in (FORWARD, BACKWARD):
                inputs[direction][:, columns], targets[direction][:, columns] = self._read(
                    first + offsets[columns], int(epoch), direction
                )
        return Window(inputs, targets)

    def _read(self, places: np.ndarray, epoch: int, direction: int) -> tuple[np.ndarray, np.ndarray]:
        """Words read and predicted at `places` of an epoch's row, both of the shape of `places`."""
        corpus = self.corpus
        order, ends = self._order(epoch, direction)
        inside = places < corpus.num_predictions
        places = np.where(inside, places, 0)
        rank = np.searchsorted(ends, places, side="right")  # which sentence of the row
        sentence = order[rank]
        length = corpus.starts[sentence + 1] - corpus.starts[sentence]
        offset = places - (ends[rank] - length - 1)  # 0 .. length
        begin, end = (self.bos, self.eos) if direction == FORWARD else (self.eos, self.bos)
        # Word k of the sentence in reading order, k = 1 .. length.
        if direction == FORWARD:
            read, predicted = corpus.starts[sentence] + offset - 1, corpus.starts[sentence] + offset
        else:
            read, predicted = corpus.starts[sentence + 1] - offset, corpus.starts[sentence + 1] - offset - 1
        last = len(corpus.words) - 1
        inputs = np.where(offset == 0, begin, corpus.words[read.clip(0, last)])
        targets = np.where(offset == length, end, corpus.words[predicted.clip(0, last)])
        return inputs, np.where(inside, targets, -1)

    def _order(self, epoch: int, direction: int) -> tuple[np.ndarray, np.ndarray]:
        """The sentences of an epoch in order, and where in the row each one ends."""
        key = (epoch, direction)
        if key not in self._orders:
            sentences = np.arange(self.corpus.num_sentences)
            if self.seed is not None:
                sentences = np.random.default_rng([self.seed, epoch, direction]).permutation(sentences)
            ends = np.cumsum(np.diff(self.corpus.starts)[sentences] + 1)
            # A window touches one epoch or two that follow each other; older orders are not needed any more.
            self._orders = {old: order for old, order in self._orders.items() if old[0] >= epoch - 1}
            self._orders[key] = (sentences, ends)
        return self._orders[key]

    @property
    def bos(self) -> int:
        """Type id of `<S>`: behind the words."""
        return len(self.corpus.types)

    @property
    def eos(self) -> int:
        """Type id of `</S>`."""
        return len(self.corpus.types) + 1


class TypeTable:
    """What the model needs of each type of a corpus: its characters and its id in the LM vocabulary.

    `rows`: (types + 2, max_word_length) int16 character ids, the two last are `<S>` and `</S>`.
    `labels`: (types + 3,) int64 ids in the LM vocabulary; the last, reached by index -1, is -100.
    """

    def __init__(self, corpus: Corpus, tokenizer):
        words = tokenizer.encode_words(corpus.types)
        rows = np.concatenate([words, tokenizer.bos_row[None], tokenizer.eos_row[None]])
        self.rows = torch.from_numpy(rows.astype(np.int16))
        boundaries = [tokenizer.lm_bos_id, tokenizer.lm_eos_id, -100]
        self.labels = torch.from_numpy(np.concatenate([tokenizer.lm_ids(corpus.types), boundaries]))

    def batch(self, window: Window) -> dict[str, Tensor]:
        """Arguments of `ElmoForPreTraining` for a window."""
        inputs, targets = torch.from_numpy(window.inputs), torch.from_numpy(window.targets)
        return {
            "input_ids": self.rows[inputs[FORWARD]],  # (lanes, steps, max_word_length)
            "reversed_input_ids": self.rows[inputs[BACKWARD]],
            "next_labels": self.labels[targets[FORWARD]],  # (lanes, steps)
            "previous_labels": self.labels[targets[BACKWARD]],
        }
