"""Tables from files: rows of json, jsonl and parquet, and of csv and tsv without guesses, each also compressed."""

import csv
import glob
import io
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, load_dataset

from .text_files import OPENERS, DataError, unreadable

FILE_TYPES = {"json": "json", "jsonl": "json", "csv": "csv", "tsv": "csv", "parquet": "parquet"}
LONGEST_CELL = 2**30  # characters


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
        table = Dataset.from_dict(_read_columns(name, is_tsv=ending == "tsv"))
    else:
        try:
            # `datasets` takes names for patterns.
            table = load_dataset(FILE_TYPES[ending], data_files=glob.escape(name), split="train")
        except Exception as error:  # `datasets` raises whatever its parsers raise
            cause = str(error.__cause__ or error).strip().splitlines()
            raise DataError(f"{name} cannot be read: {cause[0] if cause else type(error).__name__}") from error
    if len(table) == 0:
        raise DataError(f"{name} has no rows")
    return table


def _read_columns(name: str, is_tsv: bool) -> dict[str, list[str]]:
    """The cells of each column of a csv or tsv file whose first line names the columns."""
    if is_tsv:
        try:
            rows = _read_rows(name, delimiter="\t")
            has_long_cells = any("\n" in cell for row in rows for cell in row)
        except csv.Error:
            has_long_cells = True
        if has_long_cells:  # a quotation mark opened a cell that was none, and it swallowed lines
            rows = _read_rows(name, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        try:
            rows = _read_rows(name)
        except csv.Error as error:
            raise DataError(
                f"{name}: {error}: put cells with quotation marks in such, and double those inside"
            ) from error
    head, *body = rows
    if len(set(head)) < len(head):
        raise DataError(f"{name}: two columns have one name: {', '.join(head)}")
    for number, row in enumerate(body):
        if len(row) != len(head):
            way_out = "cells have no tabs or line breaks" if is_tsv else "put cells with commas in quotation marks"
            raise DataError(f"{name}, row {number}: {len(row)} columns, but {len(head)} have names: {way_out}")
    return {column: [row[place] for row in body] for place, column in enumerate(head)}


def _read_rows(name: str, **dialect: object) -> list[list[str]]:
    """All rows that have a cell, the names of the columns first."""
    try:
        return list(_rows(name, **dialect))
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:
        raise unreadable(name, error) from error


def _rows(name: str, **dialect: object) -> Iterator[list[str]]:
    opener = OPENERS.get(os.path.splitext(name)[1])
    limit = csv.field_size_limit(LONGEST_CELL)
    try:
        with open(name, "rb") as file:
            lines = io.TextIOWrapper(opener(file) if opener else file, encoding="utf-8-sig", newline="")
            yield from filter(None, csv.reader(lines, strict=True, **dialect))  # type: ignore[arg-type]
    finally:
        csv.field_size_limit(limit)
