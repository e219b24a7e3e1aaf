"""Tables from files: rows of json, jsonl and parquet, and of csv and tsv without guesses, each also compressed."""

import csv
import glob
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from .text_files import OPENERS, DataError, unreadable

FILE_TYPES = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
LONGEST_CELL = 2**30  # characters
TSV = {"delimiter": "\t"}


def read_table_file(name: str) -> Dataset:
    """The rows of a file. In those of csv and tsv every cell is text, as it stands there.

    A tsv file whose quotation marks do not come in pairs around cells has them as signs like any others.

    Raises:
        DataError: a file that is not there, of an unknown kind, without rows, or that cannot be read.
    """
    path = Path(name)
    if not path.is_file():
        raise DataError(f"{name} is no file")
    ending = next((part for part in reversed(path.name.lower().split(".")) if part in FILE_TYPES), None)
    if ending is None:
        raise DataError(f"{name}: a table must end in .{', .'.join(FILE_TYPES)}, compressed or not")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty")
    if FILE_TYPES[ending] == "csv":
        rows = list(rows_of_text(name))
        table = Dataset.from_dict({column: [row[column] for row in rows] for column in rows[0]} if rows else {})
    else:
        try:
            # `datasets` takes names for patterns.
            table = load_dataset(FILE_TYPES[ending], data_files=glob.escape(name), split="train")
        except Exception as error:  # `datasets` raises whatever its parsers raise
            raise unreadable_table(name, error) from error
    if len(table) == 0:
        raise DataError(f"{name} has no rows")
    return table


def unreadable_table(name: str, error: Exception) -> DataError:
    """What to tell of a table that `datasets` cannot read."""
    cause = str(error.__cause__ or error).strip().splitlines()
    return DataError(f"{name} cannot be read: {cause[0] if cause else type(error).__name__}")


def rows_of_text(name: str) -> Iterator[dict[str, str]]:
    """The rows of a csv or tsv file, whose first line names the columns: every cell as it stands there.

    Raises:
        DataError: as `read_table_file`, when the place is reached.
    """
    is_tsv = "tsv" in name.lower().split(".")
    dialect: dict[str, Any] = TSV if is_tsv else {}
    if is_tsv and _has_stray_marks(name):
        dialect = {**TSV, "quoting": csv.QUOTE_NONE}
    rows = _rows(name, **dialect)
    head = next(rows, [])
    if len(set(head)) < len(head):
        raise DataError(f"{name}: two columns have one name: {', '.join(head)}")
    for number, row in enumerate(rows):
        if len(row) != len(head):
            way_out = "cells have no tabs or line breaks" if is_tsv else "put cells with commas in quotation marks"
            raise DataError(f"{name}, row {number}: {len(row)} columns, but {len(head)} have names: {way_out}")
        yield dict(zip(head, row, strict=True))


def _has_stray_marks(name: str) -> bool:
    """Whether a quotation mark of a tsv file opens a cell that is none, and swallows lines or has text behind it."""
    try:
        return any("\n" in cell for row in _rows(name, **TSV) for cell in row)
    except DataError:
        return True


def _rows(name: str, **dialect: Any) -> Iterator[list[str]]:
    """All rows that have a cell, the names of the columns first."""
    opener = OPENERS.get(os.path.splitext(name)[1])
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        with open(name, "rb") as file:
            lines = io.TextIOWrapper(opener(file) if opener else file, encoding="utf-8-sig", newline="")
            yield from filter(None, csv.reader(lines, strict=True, **dialect))
    except csv.Error as error:
        raise DataError(f"{name}: {error}: put cells with quotation marks in such, and double those inside") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise unreadable(name, error) from error
    finally:
        csv.field_size_limit(limit)
