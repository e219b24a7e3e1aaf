"""Tables from files: rows of json, jsonl and parquet, and of csv and tsv without guesses, each also compressed."""

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .commands import one_line
from .text_files import DAMAGE, OPENERS, DataError, decompressed, ending_of, unreadable

if TYPE_CHECKING:
    from datasets import Dataset

# What the names of files begin with, and the split they hold.
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
FILE_TYPES = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
LONGEST_CELL = 2**30  # characters
TSV = {"delimiter": "\t"}
PLAIN_TSV = {**TSV, "quoting": csv.QUOTE_NONE}


def is_table(name: str) -> bool:
    """Whether a file's name is that of a table, compressed or not."""
    return ending_of(name)[1:] in FILE_TYPES


def read_table_file(name: str) -> "Dataset":
    """The rows of a file, also compressed (.gz, .bz2, .xz, .zst). In those of csv and tsv every cell is text, as it
    stands there.

    Raises:
        DataError: a file that is not there, of an unknown kind, without rows, or that cannot be read.
    """
    from datasets import Dataset, load_dataset

    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name} is no file")
    kind = FILE_TYPES.get(ending_of(name)[1:])
    if kind is None:
        raise DataError(
            f"{name}: a table must end in .{', .'.join(FILE_TYPES)}, also with {', '.join(OPENERS)} behind it"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty")
    if kind == "csv":
        head, rows = _head_and_rows(name)
        columns = list(map(list, zip(*rows, strict=True)))
        table = Dataset.from_dict(dict(zip(head, columns, strict=False)))
    else:
        try:
            # `datasets` takes names for patterns.
            table = load_dataset(kind, data_files=glob.escape(name), split="train")
        except Exception as error:  # `datasets` raises whatever its parsers raise
            raise unreadable_table(name, error) from error
    if len(table) == 0:
        raise DataError(f"{name} has no rows")
    return table


def files_by_split(paths: Iterable[Path], split_names: Mapping[str, str] = SPLIT_NAMES) -> dict[str, str]:
    """The files of a folder that are named after splits, such as train.jsonl.gz and dev.txt; others are left out.

    Args:
        split_names: what stands before the first point of a name, in small letters, and the split.

    Raises:
        DataError: several files of a split.
    """
    named = sorted((path, split) for path in paths if (split := split_names.get(path.name.split(".")[0].lower())))
    files = {split: str(path) for path, split in named}
    if len(files) < len(named):
        names = ", ".join(path.name for path, _ in named)
        raise DataError(f"{named[0][0].parent} has several files of a split: {names}")
    return files


def load_splits(name: str, config_name: str | None) -> "dict[str, Dataset]":
    """The splits train, validation and test, as far as they are there, of a folder that `datasets` saved, or of a data
    set of the Hub.

    Raises:
        DataError: it cannot be loaded.
    """
    from datasets import load_dataset, load_from_disk

    try:
        tables = load_from_disk(name) if os.path.isdir(name) else load_dataset(name, config_name)
    except Exception as error:  # `datasets` raises whatever its parsers and the network raise
        raise DataError(f"the data set {name!r} cannot be loaded: {one_line(error.__cause__ or error)}") from error
    return {split: tables[split] for split in dict.fromkeys(SPLIT_NAMES.values()) if split in tables}


def unreadable_table(name: str, error: Exception) -> DataError:
    """What to tell of a table that `datasets` cannot read."""
    cause = str(error.__cause__ or error).strip().splitlines()
    if isinstance(error.__cause__ or error, StopIteration):
        cause = ["it has no rows"]
    file = getattr(error, "filename", None)
    if file not in (None, name, os.path.abspath(name)):
        return DataError(f"the cache of `datasets` cannot be written ({error}): name another in HF_DATASETS_CACHE")
    return DataError(f"{name} cannot be read: {cause[0] if cause else type(error).__name__}")


def rows_of_table(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file as `read_table_file` has them, read where they are needed.

    Raises:
        DataError: as `read_table_file`, when the place is reached.
    """
    from datasets import load_dataset

    kind = FILE_TYPES[ending_of(name)[1:]]
    if kind == "csv":
        head, rows = _head_and_rows(name)
        yield from (dict(zip(head, row, strict=True)) for row in rows)
        return
    try:
        yield from load_dataset(kind, data_files=glob.escape(name), split="train", streaming=True)
    except Exception as error:
        raise unreadable_table(name, error) from error


def _head_and_rows(name: str) -> tuple[list[str], Iterator[list[str]]]:
    """The names of the columns, those without one by their number, and the rows, which are checked to be as wide."""
    is_tsv = ending_of(name) == ".tsv"
    rows = _rows(name, **(PLAIN_TSV if is_tsv and _has_stray_marks(name) else TSV if is_tsv else {}))
    head = [column or f"column {number}" for number, column in enumerate(next(rows, []), 1)]
    if len(set(head)) < len(head):
        raise DataError(f"{name}: two columns have one name: {', '.join(head)}")
    return head, _checked(name, rows, len(head), is_tsv)


def _checked(name: str, rows: Iterator[list[str]], width: int, is_tsv: bool) -> Iterator[list[str]]:
    for number, row in enumerate(rows):
        if len(row) != width:
            way_out = "cells have no tabs or line breaks" if is_tsv else "put cells with commas in quotation marks"
            raise DataError(f"{name}, row {number}: {len(row)} columns, but {width} have names: {way_out}")
        yield row


def _has_stray_marks(name: str) -> bool:
    """Whether quotation marks of a tsv file are signs like any others: its lines make a table, and are none with cells
    in quotation marks, or one whose cells swallowed lines."""
    if len(set(map(len, _rows(name, **PLAIN_TSV)))) != 1:
        return False
    try:
        kinds = {(len(row), any("\n" in cell for cell in row)) for row in _rows(name, **TSV)}
    except DataError:
        return True
    return len(kinds) > 1 or any(has_breaks for _, has_breaks in kinds)


def _rows(name: str, **dialect: Any) -> Iterator[list[str]]:
    """All rows that have a cell, the names of the columns first."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    try:
        with open(name, "rb") as file:
            lines = io.TextIOWrapper(decompressed(file, name), encoding="utf-8-sig", newline="")
            yield from filter(None, csv.reader(lines, strict=True, **dialect))
    except csv.Error as error:
        raise DataError(f"{name}: {error}: put cells with quotation marks in such, and double those inside") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}") from error
    except DAMAGE as error:
        raise unreadable(name, error) from error
