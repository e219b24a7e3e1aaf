"""What the examples share: texts and tables from files, their vectors from an ELMo, and mistakes told in a sentence."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers.utils import logging

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.arguments import ArgumentsError
from modeling_elmo.commands import run_command
from modeling_elmo.embed import embed
from modeling_elmo.embedding_files import EmbeddingError
from modeling_elmo.finetuning_report import aligned
from modeling_elmo.tables import is_table, read_table_file
from modeling_elmo.text_files import DataError, ReadingReport, find_files, read_lines


def run(example: Callable[[Any], object], arguments: Any, *extras: str) -> int:
    """Run an example; its exit code is that of `run_command`.

    `extras`: modules that it needs and not everyone has, so that a missing one is told before the work.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()

    def run_with_extras():
        try:
            for name in extras:
                importlib.import_module(name)
            example(arguments)
        except ImportError as error:
            raise ArgumentsError(f"{error}: pip install 'modeling-elmo[examples]'") from error

    return run_command(run_with_extras, ArgumentsError, DataError, EmbeddingError)


# --- Texts -------------------------------------------------------------------------------------------------------


def read_columns(file: str, texts: Sequence[str], numbers: Sequence[str] = ()) -> list[list[Any]]:
    """Columns of a table (json, jsonl, csv, tsv or parquet, also .gz): those of texts, then those of numbers.

    Raises:
        `DataError`: a file that cannot be read, has no rows or no such columns, or has something else in them.
    """
    found = read_table_file(file)
    columns = [*texts, *numbers]
    for column in columns:
        if column not in found.column_names:
            raise DataError(f"{file} has no column {column!r}; its columns are {', '.join(found.column_names)}")
    rows = found.select_columns(columns)[:]
    read: dict[str, Callable[[Any], Any]] = {**dict.fromkeys(texts, _text), **dict.fromkeys(numbers, _number)}
    for column, of_kind in read.items():
        for row, value in enumerate(rows[column]):
            try:
                rows[column][row] = of_kind(value)
            except ValueError as error:
                raise DataError(f"{file}, row {row}: column {column!r} has {value!r:.40} instead of {error}") from None
    return [rows[column] for column in columns]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def _number(value: Any) -> float:
    """Cells of csv and tsv are text."""
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    if not isinstance(value, int | float):
        raise ValueError("a number")
    return value


def read_texts(file: str, column: str | None) -> list[str]:
    """The lines of a text file, also compressed, or the texts of a table's column.

    Raises:
        `DataError`: a file that cannot be read or has no texts, or a table without its column.
    """
    if is_table(file):
        if column is None:
            raise DataError(f"{file} is a table: name its column of texts with --column")
        (texts,) = read_columns(file, [column])
    else:
        report = ReadingReport()
        texts = list(read_lines(find_files([file]), report))
        for problem in report.problems():
            print(problem, file=sys.stderr)
    if not any(text.strip() for text in texts):
        raise DataError(f"{file} has no texts")
    return texts


# --- Vectors -----------------------------------------------------------------------------------------------------


def layer_choice(text: str) -> str | int:
    """What a flag says of layers, as `embed` takes it.

    Raises:
        `argparse.ArgumentTypeError`: it is no such choice.
    """
    if text in ("mix", "top", "average"):
        return text
    if not text.removeprefix("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not mix, top, average or the number of a layer")
    return int(text)


def add_vector_flags(parser: argparse.ArgumentParser):
    """Flags of what compares texts: their column, their vectors, and the index that these are looked up in."""
    parser.add_argument("--column", help="column of texts in a table")
    parser.add_argument(
        "--layers", type=layer_choice, default=1, help="mix, top, average or the number of a layer; default 1"
    )
    parser.add_argument(
        "--centre", action="store_true", help="take the mean of all texts and the first components off their vectors"
    )
    parser.add_argument("--components", type=int, default=3, help="how many of them; default 3")
    parser.add_argument("--index", default="Flat", help="as for faiss.index_factory, such as HNSW32; default Flat")


def text_vectors(texts: Sequence[str], model: ElmoModel, tokenizer: ElmoTokenizer, layers: str | int = "all") -> Tensor:
    """The mean of each text's words: (texts, hidden_size), with `layers="all"` (layers + 2, texts, hidden_size): each
    layer, and behind them the average of all."""
    found = embed(texts, model, tokenizer, layers=layers, pooling="mean")
    vectors = torch.stack(list(tqdm(found, total=len(texts), desc="embedding", unit=" texts")))
    return with_average(vectors.transpose(0, 1)) if layers == "all" else vectors


def with_average(layers: Tensor) -> Tensor:
    """(layers, ...) -> (layers + 1, ...): the average of all layers behind them."""
    return torch.cat([layers, layers.mean(0, keepdim=True)])


def layer_names(model: ElmoModel) -> list[str]:
    """What the rows of `with_average` are."""
    return [*(f"layer {number}" for number in range(model.config.num_hidden_layers + 1)), "average"]


def centred(vectors: Tensor, sample: Tensor, components: int = 0) -> Tensor:
    """Unit vectors, after what all vectors have in common was taken off: "all but the top" of Mu and Viswanath 2018
    (arXiv 1702.01417, algorithm 1).

    Args:
        vectors: (n, dim).
        sample: (m, dim), whose mean and principal components are taken off.
        components: how many of them; the paper advises about dim / 100. 0 takes off the mean only.

    Raises:
        `ArgumentsError`: nothing would be left.
    """
    if components >= sample.shape[1]:
        raise ArgumentsError(f"--components must be less than {sample.shape[1]}, the width of the vectors")
    mean = sample.mean(0)
    moments = (sample - mean).T @ (sample - mean)
    top = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :components]  # (dim, components), of falling variance
    vectors = vectors - mean
    return normalize(vectors - vectors @ top @ top.T, dim=-1)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells below a header; numbers with three decimals."""
    return aligned(
        [header, *([f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    )
