"""What is trained on: texts found, tokenised once, and counted; the tokenizer and its LM vocabulary."""

import glob
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from tqdm import tqdm

from .arguments import ArgumentsError, PretrainingArguments
from .corpus import HELD_OUT, TRAIN, Corpus, cache_folder, key_of, open_or_write, write_corpus
from .lanes import TypeTable
from .processes import on_all, on_main
from .sentences import split_sentences
from .text_files import (
    FASTA,
    DataError,
    ReadingReport,
    content_hash,
    ending_of,
    find_files,
    lines_of_dataset,
    read_lines,
    way_to_read,
)
from .tokenization_elmo import ElmoTokenizer

HOLD_OUT_EVERY = 50
# The parts of a tokenizer.json that decide what words a text has.
WHAT_SPLITS = ("normalizer", "pre_tokenizer", "added_tokens")


@dataclass
class Text:
    """The text to learn, the text to be judged by, and the tokenizer with the LM vocabulary.

    Attributes:
        train_table: characters and labels of the words to learn.
        validation_table: the same of the words to be judged by.
    """

    train: Corpus
    validation: Corpus
    tokenizer: ElmoTokenizer
    train_table: TypeTable
    validation_table: TypeTable

    def report(self) -> dict[str, Any]:
        """Counts for the user and the model card; rates are shares of the tokens."""
        facts: dict[str, Any] = {"vocabulary": self.tokenizer.lm_vocab_size}
        parts = [("train", self.train, self.train_table), ("validation", self.validation, self.validation_table)]
        for name, corpus, table in parts:
            unknown = corpus.counts()[table.labels[: corpus.num_types] == self.tokenizer.lm_unk_id].sum()
            facts[name] = {
                "sentences": corpus.num_sentences,
                "tokens": corpus.num_tokens,
                "types": corpus.sizes["types"],
                "unknown_rate": float(unknown / corpus.num_tokens),
                "truncated_rate": corpus.sizes["truncated"] / corpus.num_tokens,
            }
        return facts

    def frequencies(self) -> np.ndarray:
        """How often a direction predicts each word of the LM vocabulary in one pass, mean of both, (lm_vocab_size,)."""
        labels, size = self.train_table.labels[: self.train.num_types], self.tokenizer.lm_vocab_size
        counts = np.bincount(labels, weights=self.train.counts(), minlength=size)
        for boundary in (self.tokenizer.lm_bos_id, self.tokenizer.lm_eos_id):  # each predicted by one direction only
            counts[boundary] += self.train.num_sentences / 2
        return counts

    def vocabulary_hash(self) -> str:
        """Changes when any word of the LM vocabulary or its place does."""
        words = "\n".join(self.tokenizer.lm_vocab).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(words, digest_size=16).hexdigest()


def splitter(args: PretrainingArguments, tokenizer: ElmoTokenizer) -> Callable[[str], list[list[str]]]:
    """What turns a line into sentences, each a list of words."""
    if args.pre_tokenized:
        normalizer = tokenizer.backend_tokenizer.normalizer
        if normalizer is None:
            return lambda line: [line.split()]
        return lambda line: [list(filter(None, map(normalizer.normalize_str, line.split())))]
    if args.sentence_per_line:
        return lambda line: [tokenizer.split_words(line)]
    return lambda line: [tokenizer.split_words(sentence) for sentence in split_sentences(line)]


def read_tokenizer(args: PretrainingArguments) -> ElmoTokenizer:
    """The tokenizer that the arguments name, with its vocabulary if it has one.

    Raises:
        ArgumentsError: it cannot be read.
    """
    if args.tokenizer_name is not None and args.vocab_file is not None:
        raise ArgumentsError("give either vocab_file or tokenizer_name: the tokenizer has a vocabulary of its own")
    folder = args.tokenizer_name or (None if args.vocab_file else args.model_name_or_path)
    try:
        if folder is None:
            return ElmoTokenizer(vocab_file=args.vocab_file)
        tokenizer = ElmoTokenizer.from_pretrained(folder)
        if tokenizer.char_vocab is not None or tokenizer.word_inputs:
            raise ValueError("it looks characters or words up in a dictionary, and train.py spells by bytes only")
        return tokenizer
    except Exception as error:  # those of any library that reads files may get through
        raise ArgumentsError(f"no vocabulary could be read from {folder or args.vocab_file}: {error}") from error


def dataset_hash(args: PretrainingArguments) -> list[Any]:
    """What tells a data set from others: its files in a folder; on the Hub its fingerprint, or as a stream its name."""
    from datasets import load_dataset

    name: list[Any] = [args.dataset_name, args.dataset_config_name, args.dataset_split]
    if os.path.isdir(name[0]):
        files = _files_of_dataset(name[0], name[1])
        # Their names tell splits and how they are read.
        name[0] = [content_hash(files), [os.path.relpath(file, name[0]) for file in files]]
    elif not args.streaming:
        # Errors are told better where the lines are read.
        with suppress(Exception):
            name.append(load_dataset(str(name[0]), name[1], split=name[2])._fingerprint)
    return name


def _files_of_dataset(folder: str, config: str | None) -> list[str]:
    """The files of a local data set, and not what a run writes beside them."""
    from datasets import load_dataset_builder

    with suppress(Exception):  # errors are told better where the lines are read
        by_split = load_dataset_builder(folder, config).config.data_files
        if by_split:
            return sorted({str(file) for files in by_split.values() for file in files})
    return find_files([f"{glob.escape(folder)}/**"])


def tokenised(args: PretrainingArguments, files: list[str], tokenizer: ElmoTokenizer, hold_out: int) -> Path:
    """The folder of the tokenised text, made if no earlier run has made it; without files, of the data set.

    Called by every process of a run; one of them does the work.

    Raises:
        DataError: files or data sets that cannot be read.
    """
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    ways = [way_to_read(name) + (".fasta" if ending_of(name) in FASTA else "") for name in files]
    key = key_of(
        content=on_main(lambda: content_hash(files) if files else dataset_hash(args)),
        **({"read_as": ways} if any(ways) else {}),  # texts that were tokenised before are known, too
        column=args.text_column_name,
        pre_tokenized=args.pre_tokenized,
        sentence_per_line=args.sentence_per_line,
        words=words["normalizer"] if args.pre_tokenized else [words[part] for part in WHAT_SPLITS],
        max_word_length=tokenizer.max_word_length,
        hold_out=hold_out,
    )

    def write(folder: Path):
        report = ReadingReport()
        split = splitter(args, tokenizer)
        if files:
            total = sum(os.path.getsize(name) for name in files)
            with tqdm(total=total, desc="tokenising", unit="B", unit_scale=True, delay=1) as bar:
                lines = read_lines(files, report, args.text_column_name, on_bytes=bar.update)
                write_corpus(folder, lines, split, tokenizer, report, hold_out)
        else:
            lines = lines_of_dataset(
                str(args.dataset_name), args.dataset_config_name, args.dataset_split, args.text_column_name, report,
                streaming=args.streaming,
            )  # fmt: skip
            seen = tqdm(lines, desc="tokenising", unit=" lines", unit_scale=True, delay=1)
            write_corpus(folder, seen, split, tokenizer, report, hold_out)

    return open_or_write(Path(args.data_cache_dir or cache_folder()) / key, write)


def check_size(args: PretrainingArguments, train: Corpus, validation: Corpus) -> None:
    """Raise a `DataError` where there is nothing to learn, or nothing to be judged by."""
    if not train.num_sentences:
        raise DataError(f"there are no words in {args.dataset_name or ', '.join(args.train_file)}: give a text")
    if validation.num_sentences:
        return
    if args.validation_file:
        raise DataError(f"there are no words in {', '.join(args.validation_file)}: name another validation_file")
    raise DataError(
        f"every {HOLD_OUT_EVERY}th sentence is kept out to validate, but the text has only {train.num_sentences}: name "
        "a validation_file, or give more text"
    )


def _what_is_read(args: PretrainingArguments) -> tuple[ElmoTokenizer, list[str], list[str]]:
    """The tokenizer, and the files to train on and to validate with."""
    files, others = (find_files(patterns) if patterns else [] for patterns in (args.train_file, args.validation_file))
    if args.text_column_name and files and ".parquet" not in map(way_to_read, [*files, *others]):
        raise ArgumentsError("text_column_name is for tables, and no file is one: their names end in .parquet")
    return read_tokenizer(args), files, others


def read_text(args: PretrainingArguments) -> Text:
    """Tokenise or open the texts that the arguments name, and get or build the vocabulary.

    Raises:
        DataError, ArgumentsError: files, data sets, tokenizers or vocabularies that cannot be used.
    """
    tokenizer, files, others = on_all(lambda: _what_is_read(args))
    sizes = gather_object([[os.path.getsize(name) for name in [*files, *others]]])
    if differing := [number for number, of_process in enumerate(sizes) if of_process != sizes[0]]:
        raise DataError(f"process {differing[0]} has other texts than process 0: give each machine the same files")
    hold_out = 0 if args.validation_file else HOLD_OUT_EVERY
    folder = tokenised(args, files, tokenizer, hold_out)
    train = Corpus(folder, TRAIN)
    validation = Corpus(tokenised(args, others, tokenizer, 0)) if args.validation_file else Corpus(folder, HELD_OUT)
    check_size(args, train, validation)
    if not tokenizer.lm_vocab_size or args.new_vocabulary:
        # vocab_size counts <S>, </S> and <UNK>, which may be words of the text, too.
        counts = train.frequent_words(args.min_frequency, args.vocab_size)
        if not counts:
            raise DataError(f"no word of the text occurs {args.min_frequency} times: lower min_frequency")
        tokenizer = tokenizer.train_new_from_counts(counts, args.vocab_size, args.min_frequency)
    table = TypeTable(train, tokenizer)
    same = validation.folder == train.folder
    return Text(train, validation, tokenizer, table, table if same else TypeTable(validation, tokenizer))
