"""Tokenised text on disk: one integer a word, beside a table of the distinct words.

A corpus is tokenised once and read by every later run: its folder is named by the content of the text and all settings
that matter. Neither making nor reading one needs memory that grows with the text: words are read where they are needed,
and the dictionary of words seen so far is thinned out when it grows too large.

    <folder>/types.txt          the distinct words ("types"), one a line; a type's id is the number of its line
    <folder>/rows.bin           their characters, uint16 (types + 2, max_word_length); the last two are <S> and </S>
    <folder>/<part>/words.bin   int32, a type id a word
    <folder>/<part>/starts.bin  int64 (sentences + 1), where each sentence begins, and the end
    <folder>/<part>/counts.bin  int64 (types), how often each type occurs
    <folder>/corpus.json        sizes and the report of reading
"""

import hashlib
import heapq
import json
import os
import shutil
import threading
import zlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .c_library import user_cache
from .text_files import DataError, ReadingReport

FORMAT = 2  # part of the key: another layout is another corpus
TRAIN, HELD_OUT = "train", "held_out"
# Words whose ids are known at once while tokenising: at about 150 bytes a word, 600 MB.
MAX_INDEXED_TYPES = 4_000_000
TYPES_AT_ONCE = 2**16
WORDS_AT_ONCE = 2**20
SEEKING = threading.Lock()  # Windows cannot read at a place without moving there


def cache_folder() -> Path:
    """Where tokenised corpora lie by default."""
    return user_cache() / "corpora"


def key_of(**settings: Any) -> str:
    """The name of a corpus: a hash of the content of its text and of what was done to it."""
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _Index(dict):
    """Word -> type id; a word that is not there gets the next id."""

    def __init__(self, new_type: Callable[[str], object]):
        self.num_types = 0
        self.new_type = new_type

    def __missing__(self, word: str) -> int:
        self[word] = index = self.num_types
        self.num_types += 1
        self.new_type(word)
        return index


class _Part:
    """The growing files of one part of a corpus."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.words_file = open(folder / "words.bin", "wb")  # noqa: SIM115 -- `close` does
        self.starts_file = open(folder / "starts.bin", "wb")  # noqa: SIM115
        self.words, self.starts = array("i"), array("q", [0])
        self.counts = np.zeros(0, dtype=np.int64)
        self.sentences = self.tokens = 0

    def add(self, ids: list[int]):
        self.words.extend(ids)
        self.sentences += 1
        self.tokens += len(ids)
        self.starts.append(self.tokens)
        if len(self.words) >= WORDS_AT_ONCE:
            self.flush()

    def flush(self):
        counts = np.bincount(np.frombuffer(self.words, dtype=np.int32), minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts.astype(np.int64)
        self.words_file.write(self.words)
        self.starts_file.write(self.starts)
        self.words, self.starts = array("i"), array("q")

    def close(self, num_types: int, is_cut: np.ndarray) -> dict[str, int]:
        """Write the rest, and return the sizes. `is_cut`: (types,) bool."""
        self.flush()
        counts = np.pad(self.counts, (0, num_types - len(self.counts)))
        counts.tofile(self.folder / "counts.bin")
        for file in (self.words_file, self.starts_file):
            file.close()
        return {
            "sentences": self.sentences,
            "tokens": self.tokens,
            "types": int((counts > 0).sum()),
            "truncated": int(counts[is_cut].sum()),
        }


def write_corpus(
    folder: Path,
    lines: Iterable[str],
    split: Callable[[str], Iterable[list[str]]],
    tokenizer,
    report: ReadingReport,
    hold_out_every: int = 0,
    max_indexed_types: int = MAX_INDEXED_TYPES,
) -> None:
    """Tokenise a text into an empty folder.

    Args:
        lines: the text.
        split: a line to its sentences, each a list of words; sentences without words are left out.
        tokenizer: knows the characters of a word.
        report: filled in while `lines` is read; it is kept with the corpus.
        hold_out_every: put each sentence of that number into the part "held_out"; 0: none.
        max_indexed_types: when more words than these, and at least one, are remembered, all but the most frequent half
            as many are forgotten; a forgotten word that comes again gets a second id.
    """
    parts = {name: _Part(folder / name) for name in ([TRAIN, HELD_OUT] if hold_out_every else [TRAIN])}
    num_sentences = 0
    with open(folder / "types.txt", "w", encoding="utf-8", errors="surrogatepass", newline="\n") as types_file:
        index = _Index(lambda word: types_file.write(word + "\n"))
        for line in lines:
            for words in split(line):
                if not words:
                    continue
                num_sentences += 1
                held = hold_out_every and num_sentences % hold_out_every == 0
                parts[HELD_OUT if held else TRAIN].add([index[word] for word in words])
            if len(index) > max_indexed_types:
                _thin_out(index, list(parts.values()), -(-max_indexed_types // 2))
    is_cut = _write_rows(folder, tokenizer)
    facts = {
        "parts": {name: part.close(index.num_types, is_cut) for name, part in parts.items()},
        "types": index.num_types,
        "has_repeated_types": index.num_types > len(index),
        "max_word_length": tokenizer.max_word_length,
        "report": asdict(report),
        "bytes": {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*.*")},
    }
    (folder / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")


def _thin_out(index: _Index, parts: list[_Part], most: int):
    """Forget all but the `most` most frequent words."""
    counts = np.zeros(index.num_types, dtype=np.int64)
    for part in parts:
        part.flush()
        counts[: len(part.counts)] += part.counts
    rare = len(index) - most
    kept = np.argpartition(counts[list(index.values())], rare)[rare:]
    words = list(index)
    kept_words = [(words[i], index[words[i]]) for i in sorted(kept)]
    index.clear()
    index.update(kept_words)


def _write_rows(folder: Path, tokenizer) -> np.ndarray:
    """Write rows.bin from types.txt; returns which types have more bytes than a row has room for, (types,) bool."""
    cut = []
    with open(folder / "rows.bin", "wb") as file:
        for words in _types_in(folder):
            tokenizer.encode_words(words).tofile(file)
            cut.append(tokenizer.is_truncated(words))
        np.stack([tokenizer.bos_row, tokenizer.eos_row]).tofile(file)
    return np.concatenate(cut) if cut else np.zeros(0, dtype=bool)


def _types_in(folder: Path) -> Iterator[list[str]]:
    """The types of a corpus in the order of their ids, in lists of at most `TYPES_AT_ONCE`."""
    with open(folder / "types.txt", encoding="utf-8", errors="surrogatepass", newline="\n") as file:
        while words := [line[:-1] for line in islice(file, TYPES_AT_ONCE)]:
            yield words


class Corpus:
    """One part of a tokenised text, read from disk where it is needed.

    `num_sentences`, `num_tokens`, `num_types` (ids; the two behind them are `bos` and `eos`), `report` of reading.

    Raises:
        DataError: the folder is not a whole corpus.
    """

    def __init__(self, folder: str | Path, part: str = TRAIN):
        self.folder, self.part = Path(folder), part
        try:
            facts = json.loads((self.folder / "corpus.json").read_text())
            self.sizes = facts["parts"][part]
            self.num_types: int = facts["types"]
            self.has_repeated_types: bool = facts["has_repeated_types"]
            self.max_word_length: int = facts["max_word_length"]
            self.report = ReadingReport(**facts["report"])
            sizes = {
                "rows.bin": 2 * (self.num_types + 2) * self.max_word_length,
                f"{part}/words.bin": 4 * self.num_tokens,
                f"{part}/starts.bin": 8 * (self.num_sentences + 1),
                f"{part}/counts.bin": 8 * self.num_types,
            }
            for name, size in (facts["bytes"] | sizes).items():
                if (found := (self.folder / name).stat().st_size) != size:
                    raise ValueError(f"{name} has {found} bytes, not {size}")
            # Closed when the corpus goes.
            self._words = open(self.folder / part / "words.bin", "rb", buffering=0)  # noqa: SIM115
            self._starts = open(self.folder / part / "starts.bin", "rb", buffering=0)  # noqa: SIM115
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"the tokenised text in {folder} is damaged ({error}): delete that folder") from error

    @property
    def num_sentences(self) -> int:
        return self.sizes["sentences"]

    @property
    def num_tokens(self) -> int:
        return self.sizes["tokens"]

    @property
    def num_predictions(self) -> int:
        """Words that one pass predicts in each direction: all, and one boundary a sentence."""
        return self.num_tokens + self.num_sentences

    @property
    def bos(self) -> int:
        """Type id of `<S>`."""
        return self.num_types

    @property
    def eos(self) -> int:
        """Type id of `</S>`."""
        return self.num_types + 1

    def words(self, starts: Iterable[int], stops: Iterable[int]) -> np.ndarray:
        """Type ids of the words from each start to its stop, one span behind the other, int32."""
        # Read, not mapped: mapped pages would count as this process's memory.
        bounds = zip(starts, stops, strict=True)
        parts = [_read_at(self._words, 4 * start, 4 * (stop - start)) for start, stop in bounds]
        return np.frombuffer(b"".join(parts), dtype=np.int32)

    def starts(self, first: int, last: int) -> np.ndarray:
        """Where the sentences `first` to `last` (included; `num_sentences` is the end) begin, int64."""
        return np.frombuffer(_read_at(self._starts, 8 * first, 8 * (last + 1 - first)), dtype=np.int64)

    def types(self) -> Iterator[list[str]]:
        """The types in the order of their ids, some at a time; a word may be there twice if `has_repeated_types`."""
        return _types_in(self.folder)

    def counts(self) -> np.ndarray:
        """How often each type occurs, (num_types,) int64."""
        return np.fromfile(self.folder / self.part / "counts.bin", dtype=np.int64)

    def rows(self) -> np.ndarray:
        """Characters of each type, `<S>` and `</S>`, (num_types + 2, max_word_length) uint16, read when looked at."""
        shape = (self.num_types + 2, self.max_word_length)
        return np.memmap(self.folder / "rows.bin", dtype=np.uint16, mode="r", shape=shape)

    def frequent_words(self, min_frequency: int, most: int | None) -> dict[str, int]:
        """Words and their counts: those that occur `min_frequency` times, at most the `most` most frequent.

        Words with several ids are added up, a share of all words at a time, so that memory stays bounded.
        """
        shares = -(-self.num_types // MAX_INDEXED_TYPES) if self.has_repeated_types else 1
        counts = self.counts()
        found: list[tuple[int, str]] = []
        for share in range(shares):
            sums: dict[str, int] = defaultdict(int)
            words = (word for some in self.types() for word in some)
            for word, count in zip(words, counts.tolist(), strict=True):
                if shares == 1 or zlib.crc32(word.encode("utf-8", "surrogatepass")) % shares == share:
                    sums[word] += count
            found += [(-count, word) for word, count in sums.items() if count >= max(min_frequency, 1)]
            if most is not None:
                found = heapq.nsmallest(most, found)
        return {word: -count for count, word in found}


def _read_at(file: FileIO, place: int, size: int) -> bytes:
    """Bytes of a file that several threads may read at once."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, place)
    with SEEKING:
        file.seek(place)
        return file.read(size)


def open_or_write(folder: Path, write: Callable[[Path], None]) -> Path:
    """The corpus in `folder`, which `write` fills first if it is not there. Safe for several processes at once.

    Raises:
        DataError: it cannot be written (disk full), and what `write` raises; nothing half-done is left.
    """
    if (folder / "corpus.json").is_file():  # also in a folder that others own
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "corpus.json").is_file():
                unfinished = folder.with_name(f"unfinished-{folder.name}")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                try:
                    unfinished.mkdir()
                    write(unfinished)
                    shutil.rmtree(folder, ignore_errors=True)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the tokenised text cannot be kept in {folder.parent} ({error}): make room there, or name another "
            "folder with --data_cache_dir"
        ) from error
    return folder
