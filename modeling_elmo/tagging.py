"""Tagged texts: files of columns and tables, tags of chunks, and the scores of taggers.

Files of columns are those of the CoNLL shared tasks (Tjong Kim Sang and De Meulder 2003, arXiv cs/0306050): a word a
line, its tag in one of the columns, an empty line between sentences. Tables have a list of words and a list of tags a
row.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Sequence as ListOf
from transformers.utils import logging

from .crf import tag_scheme
from .tables import files_by_split, load_splits, read_table_file
from .text_files import DataError, ReadingReport, ending_of, read_lines

logger = logging.get_logger(__name__)

Metrics = dict[str, float]
TABLES = {".json", ".jsonl", ".parquet"}
NO_LABEL = -100


class TaggedSentence(NamedTuple):
    """Words, their tags (`None` where test data have none), and where they stand, for messages."""

    tokens: list[str]
    tags: list[str] | None
    place: str


Splits = dict[str, list[TaggedSentence]]


@dataclass
class Columns:
    """Where words and tags are: names of a table's columns; numbers in files of columns, from 0, or backwards from -1.

    By default they are the usual names (`tokens`; `ner_tags` or the like for the task, `tags`, `labels`), and the first
    and the last column, or form and universal tag of .conllu files (universaldependencies.org).
    """

    text: str | None = None
    label: str | None = None
    task: str = "ner"


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_files(files: Mapping[str, str], columns: Columns) -> Splits:
    """Sentences of each split's file; those of "test" may be without tags. See `read_file`."""
    return {split: read_file(name, columns, needs_tags=split != "test") for split, name in files.items()}


def read_dataset(name: str, config_name: str | None, columns: Columns) -> Splits:
    """Sentences of a data set: a folder of files such as train.txt, dev.txt, test.txt, one that `datasets` saved, or
    one of the Hub.

    Raises:
        DataError: there is no such data set, or as `read_file`.
    """
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "dataset_dict.json")):
        files = files_by_split(Path(name).iterdir())
        if not files:
            raise DataError(f"{name} has no files such as train.txt, dev.txt, test.txt or train.jsonl.gz")
        return read_files(files, columns)
    return {
        split: read_table(table, columns, f"{name}, {split}", needs_tags=split != "test")
        for split, table in load_splits(name, config_name).items()
    }


def read_file(name: str, columns: Columns, needs_tags: bool = True) -> list[TaggedSentence]:
    """Sentences of a .json, .jsonl or .parquet table, or of a file of columns with another name; each also as .gz.

    Raises:
        DataError: a file that cannot be read; no such column; a row of another width, or without tabs where others
            have some; as many tags as words are missing, unless `needs_tags` is false and there are none at all.
    """
    if not os.path.isfile(name):
        raise DataError(f"{name} is no file")
    ending = ending_of(name)
    if ending in TABLES:
        return read_table(read_table_file(name), columns, name, needs_tags)
    if ending == ".csv":
        raise DataError(f"{name}: write a word a line, then a tab and its tag; or make a .jsonl or .parquet table")
    sentences = list(_sentences_of_rows(name))
    width = len(sentences[0][1][0]) if sentences else 2
    text, label = _column_numbers(name, columns, width)
    if label == text and needs_tags:
        raise DataError(f"{name} has no tags: column {text} of {width} is that of the words")
    if not needs_tags and not any(cells[label].strip() for _, rows in sentences for cells in rows):
        label = text  # there are none
    for place, rows in sentences:
        if label != text and any(not cells[label].strip() for cells in rows):
            raise DataError(
                f"{place}: a word of this sentence has an empty tag in column {label}, the last is {width - 1}"
            )
    return [
        TaggedSentence(
            [cells[text] for cells in rows], None if label == text else [cells[label] for cells in rows], place
        )
        for place, rows in sentences
    ]


def _sentences_of_rows(name: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Where each sentence of a file of columns begins, and the cells of its words. -DOCSTART- is left out."""
    report = ReadingReport()
    rows: list[list[str]] = []
    width, place = 0, ""
    is_conllu = ".conllu" in name.lower()
    lines = list(read_lines([name], report))
    has_tabs = any("\t" in line and line.strip() for line in lines)
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise DataError(f"{name}, line {number} has carriage returns in it: save the file with line ends of Unix")
        if is_conllu and line and not line.partition("\t")[0].isdecimal():
            continue  # a comment, or a range of words such as 3-4
        if not line.strip() or line.startswith("-DOCSTART-"):
            if rows:
                yield place, rows
            rows = []
            continue
        if has_tabs and "\t" not in line:
            hint = "; comments are known in .conllu files only" if line.startswith("#") else ""
            raise DataError(f"{name}, line {number} has no tab, though others have: {line!r:.60}{hint}")
        # Not `split()`, which also separates at spaces that are a part of words.
        cells = line.split("\t") if has_tabs else [cell for cell in line.split(" ") if cell]
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(f"{name}, line {number}: {len(cells)} columns, but {width} in the lines before it")
        place = place if rows else f"{name}, line {number}"
        rows.append(cells)
    if rows:
        yield place, rows
    for problem in report.problems():
        logger.warning(f"{name}: {problem}")


def _column_numbers(name: str, columns: Columns, width: int) -> tuple[int, int]:
    """The columns of words and of tags, from 0; the same if there is but one."""
    numbers = []
    text, label = ("1", "3") if ".conllu" in name.lower() else ("0", "-1")
    for flag, column in (("text_column_name", columns.text or text), ("label_column_name", columns.label or label)):
        if not re.fullmatch(r"-?\d{1,9}", column) or not -width <= int(column) < width:
            raise DataError(f"{name} has {width} columns without names: {flag} must be 0 to {width - 1}, not {column}")
        numbers.append(int(column) % width)
    return numbers[0], numbers[1]


def read_table(table: Dataset, columns: Columns, source: str, needs_tags: bool = True) -> list[TaggedSentence]:
    """Sentences of a table with a column of lists of words and one of lists of tags: strings or class ids.

    Raises:
        DataError: no such column; a row without words or with tags that are not as many; unknown class ids.
    """
    text = _find_column(table, columns.text, ("tokens", "words"), "text", source)
    usual = (f"{columns.task}_tags", "tags", "labels")
    label = None
    if needs_tags or set(table.column_names) & {columns.label or "", *usual}:
        label = _find_column(table, columns.label, usual, "label", source)
    names = getattr(getattr(table.features[label], "feature", None), "names", None) if label else None
    sentences = []
    for number, row in enumerate(table.select_columns([text] if label is None else [text, label])):
        place, tokens, tags = f"{source}, row {number}", row[text], None
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise DataError(f"{place}: column {text!r} has {str(tokens)[:60]} instead of a list of words")
        if label is not None:
            tags = _tag_names(row[label], names, f"{place}: column {label!r}")
            if len(tags) != len(tokens):
                raise DataError(f"{place}: {len(tokens)} words, but {len(tags)} tags")
        sentences.append(TaggedSentence(tokens, tags, place))
    return sentences


def _find_column(table: Dataset, wanted: str | None, usual: Sequence[str], flag: str, source: str) -> str:
    column = wanted or next((name for name in usual if name in table.column_names), usual[0])
    if column not in table.column_names:
        there = ", ".join(table.column_names)
        raise DataError(f"{source} has no column {column!r}: set {flag}_column_name to one of {there}")
    return column


def _tag_names(tags: Any, names: list[str] | None, place: str) -> list[str]:
    """Tags as strings; `names` are those of class ids."""
    if not isinstance(tags, list) or not all(isinstance(tag, str | int) for tag in tags):
        raise DataError(f"{place} has {str(tags)[:60]} instead of a list of tags")
    if names is None:
        return [str(tag) for tag in tags]
    if wrong := [tag for tag in tags if not 0 <= tag < len(names)]:
        raise DataError(f"{place} has the class id {wrong[0]}, but there are {len(names)} classes")
    return [names[tag] for tag in tags]


# ---------------------------------------------------------------------------------------------------------------------
# Tags and labels


def are_chunks(labels: Iterable[str]) -> bool:
    """Whether tags are those of chunks, such as B-PER, I-PER and O, and not one for each word, such as NN."""
    labels = set(labels) - {"O"}
    return tag_scheme(list(labels)) is not None or (
        bool(labels) and all(label[:1] in "BIESLU" and label[1:2] == "-" for label in labels)
    )


def mend_tags(splits: Splits, refuse: bool = False) -> Splits:
    """IOB1, or IOB2 with mistakes, as IOB2: an I- that does not follow its own type becomes B-. Tells how many.

    Other schemes are left as they are.

    Args:
        refuse: raise a `DataError` at the first instead.
    """
    used = tags_in(splits.values())
    _warn_of_strays(splits, used)
    if not are_chunks(used) or {tag[:1] for tag in used} - set("BIO"):
        return splits
    mended: Splits = {}
    for split, sentences in splits.items():
        mended[split], number = [], 0
        for sentence in sentences:
            tags = list(sentence.tags or ())
            for word, (before, tag) in enumerate(pairwise(["O", *tags])):
                prefix, _, kind = tag.partition("-")
                if prefix == "I" and (before == "O" or before.partition("-")[2] != kind):
                    if refuse:
                        raise DataError(
                            f"{sentence.place}, word {word + 1} ({sentence.tokens[word]!r}): {tag} follows {before}, "
                            "which IOB2 does not allow; --broken_tags repair reads it as B-"
                        )
                    tags[word] = "B" + tag[1:]
                    number += 1
            mended[split].append(sentence._replace(tags=None if sentence.tags is None else tags))
        if number:
            logger.warning(
                f"{split}: {number:,} tags I-... that do not follow their own type were read as B-... (IOB2)"
            )
    return mended


def _warn_of_strays(splits: Splits, used: set[str]):
    """Tell of tags that keep the others from being those of chunks, such as a 0 for an O."""
    chunks = {tag for tag in used if tag[:1] in "BIESLU" and tag[1:2] == "-"}
    strays = sorted(used - chunks - {"O"})
    if chunks and not are_chunks(used):
        everything = (sentence for sentences in splits.values() for sentence in sentences)
        place = next(sentence.place for sentence in everything if strays[0] in (sentence.tags or ()))
        logger.warning(
            f"{place}: the tag {strays[0]!r} is none of chunks, as {sorted(chunks)[0]!r} is"
            f"{f' ({len(strays)} such tags)' if len(strays) > 1 else ''}: so words are scored, and no entities"
        )


def tags_in(splits: Iterable[list[TaggedSentence]]) -> set[str]:
    """All tags that occur."""
    return {tag for sentences in splits for sentence in sentences for tag in sentence.tags or ()}


def label_list(splits: Splits, known: Sequence[str] | None = None) -> list[str]:
    """The labels of a model for these data: those of the training data, O first, then chunk by chunk.

    Tags that only other splits have come behind, with a warning: no model can learn them, but scores count them.

    Args:
        known: the labels of a model that was trained before; they cannot become more.

    Raises:
        DataError: no tags at all; a tag that is not among `known`.
    """
    labels = list(known or ())
    for split in sorted(splits, key=lambda split: split != "train"):
        new = tags_in([splits[split]]) - set(labels)
        for tag in sorted(new, key=lambda tag: (tag != "O", tag.partition("-")[::-1])):
            place = next(sentence.place for sentence in splits[split] if tag in (sentence.tags or ()))
            if known:
                raise DataError(f"{place}: the model has no label {tag!r}; its labels are {', '.join(known)}")
            if split != "train" and "train" in splits:
                logger.warning(
                    f"{place}: the tag {tag!r} does not occur in the training data; the model cannot learn it, and its "
                    "words count as mistakes"
                )
            labels.append(tag)
    if not labels:
        raise DataError("there are no tags to learn or to score: give --train_file or --validation_file")
    return labels


def to_dataset(
    sentences: Sequence[TaggedSentence],
    labels: Sequence[str],
    max_length: int | None = None,
    keep_empty: bool = True,
) -> Dataset:
    """Columns `tokens`, `labels` (ids, -100 for words without tags) and `length`, the number of words.

    Args:
        max_length: longer sentences are cut.
        keep_empty: whether to keep sentences without words, which are of no use in training.
    """
    ids = {label: number for number, label in enumerate(labels)}
    rows = [(tokens[:max_length], tags) for tokens, tags, _ in sentences if tokens or keep_empty]
    numbers = [
        [NO_LABEL] * len(tokens) if tags is None else [ids[tag] for tag in tags[:max_length]] for tokens, tags in rows
    ]
    columns = {"tokens": [tokens for tokens, _ in rows], "labels": numbers, "length": [len(row) for row in numbers]}
    types = {"tokens": ListOf(Value("string")), "labels": ListOf(Value("int64")), "length": Value("int64")}
    return Dataset.from_dict(columns, features=Features(types))


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def tags_of(ids: np.ndarray, gold_ids: np.ndarray, labels: Sequence[str]) -> list[list[str]]:
    """The names of ids (sentences, words), where there is a gold label: a list for each sentence."""
    return [[labels[label] for label in row[gold != NO_LABEL]] for row, gold in zip(ids, gold_ids, strict=True)]


def scorer(labels: Sequence[str], by_type: bool = False) -> Callable[[Any], Metrics]:
    """`compute_metrics` for `Trainer` on decoded tags: accuracy, and for chunks precision, recall and f1 of entities.

    Args:
        labels: the model's.
        by_type: also the scores of each type, as in "PER_f1", and the number of its entities.

    Raises:
        DataError: seqeval is needed, and not installed.
    """
    chunks = are_chunks(labels)
    if chunks:
        _seqeval()  # rather now than after training

    def compute(prediction: Any) -> Metrics:
        gold = tags_of(prediction.label_ids, prediction.label_ids, labels)
        predicted = tags_of(prediction.predictions, prediction.label_ids, labels)
        if not any(gold):
            return {}
        metrics = {"accuracy": accuracy(gold, predicted)}
        if not chunks:
            return metrics
        overall, types = entity_scores(gold, predicted)
        if by_type:
            metrics |= {f"{kind}_{name}": value for kind, row in types.items() for name, value in row.items()}
        return {**overall, **metrics}

    return compute


def accuracy(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Share of words with the right tag."""
    pairs = [
        one == two for row, other in zip(gold, predicted, strict=True) for one, two in zip(row, other, strict=True)
    ]
    return sum(pairs) / len(pairs)


def entity_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], strict: bool = False
) -> tuple[Metrics, dict[str, Metrics]]:
    """Precision, recall and f1 of whole entities by seqeval: over all (micro-averaged), and for each type.

    Args:
        strict: count only entities that are well-formed IOB2; otherwise, as conlleval does, an I- without a beginning
            is one too.

    Raises:
        DataError: seqeval is not installed; `strict` for another scheme than IOB2.
    """
    report_of, iob2 = _seqeval()
    tags = {tag for row in [*gold, *predicted] for tag in row}
    if strict and {tag[:1] for tag in tags} - set("BIO"):
        raise DataError(f"strict scores are for IOB2 (B-, I-, O) only, not for {sorted(tags)[0]!r}")
    # seqeval knows the scheme BILOU by the names of IOBES only.
    renamed = [[[_as_iobes(tag) for tag in row] for row in rows] for rows in (gold, predicted)]
    options: dict[str, Any] = {"mode": "strict", "scheme": iob2} if strict else {}
    types: dict[str, Metrics] = {}
    if any(tag != "O" for tag in tags):
        report = report_of(*renamed, output_dict=True, zero_division=0, **options)
        types = {kind: _metrics(row) for kind, row in report.items()}
    overall = types.pop("micro avg", {"precision": 0.0, "recall": 0.0, "f1": 0.0})
    return {name: value for name, value in overall.items() if name != "number"}, {
        kind: row for kind, row in types.items() if not kind.endswith(" avg")
    }


def _seqeval() -> tuple[Callable, type]:
    try:
        from seqeval.metrics import classification_report
        from seqeval.scheme import IOB2
    except ImportError as error:
        raise DataError(f"scores of entities need seqeval ({error}): pip install 'modeling-elmo[finetune]'") from error
    return classification_report, IOB2


def _as_iobes(tag: str) -> str:
    return {"L": "E", "U": "S"}.get(tag[:1], tag[:1]) + tag[1:] if tag[1:2] in ("", "-") else tag


def _metrics(row: Mapping[str, Any]) -> Metrics:
    names = {"precision": "precision", "recall": "recall", "f1-score": "f1"}
    return {**{new: float(row[old]) for old, new in names.items()}, "number": int(row["support"])}


def write_columns(path: str | Path, sentences: Iterable[Iterable[Sequence[str]]]):
    """Write words with their tags as a file of columns, as conlleval reads it: separated by a space, and an empty line
    behind each sentence. White space within a word, and a word that is empty, become "_"."""
    with open(path, "w", encoding="utf-8") as file:
        for sentence in sentences:
            for cells in sentence:
                file.write(" ".join("_".join(cell.split()) or "_" for cell in cells) + "\n")
            file.write("\n")
