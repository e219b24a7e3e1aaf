"""Embed a corpus of any size: `python -m modeling_elmo.embed MODEL INPUT OUTPUT`.

    python -m modeling_elmo.embed my-elmo corpus.txt.gz vectors                          # a folder of Parquet files
    python -m modeling_elmo.embed my-elmo corpus.txt vectors --layers all --dtype float16 --model_dtype bfloat16
    python -m modeling_elmo.embed my-elmo corpus.txt vectors.hdf5 --layers average       # as AllenNLP's `elmo` command
    python -m modeling_elmo.embed my-elmo texts.parquet vectors --column text --pooling mean --format safetensors
    accelerate launch --num_processes 2 -m modeling_elmo.embed my-elmo corpus.txt vectors

`datasets.load_dataset("vectors")` reads the Parquet files. Run again after an interruption, the command goes on where
it was. The function `embed` does the same for texts in memory.
"""

import argparse
import importlib.util
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from .char_rows import cut_rows
from .commands import command_parser, run_command
from .embedding_files import FORMATS, EmbeddingError, EmbeddingFolder, Part, fingerprint, fingerprint_of_tokenizer
from .evaluation_mode import evaluation_mode
from .freed_memory import keep_freed_memory
from .loading import load_encoder, spelling_mismatch
from .modeling_elmo import ElmoModel
from .processes import on_all, on_main
from .products import is_emulated
from .read_ahead import read_ahead
from .recurrence_kernel import recurrence_kernel
from .rust_splitter import checked_words
from .tables import FILE_TYPES, is_table, rows_of_table
from .text_files import DataError, ReadingReport, ending_of, find_files, read_lines, without_controls
from .tokenization_elmo import ElmoTokenizer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYERS = ("mix", "top", "average", "all")
POOLINGS = ("mean", "max")
BATCHES_AHEAD = 2


def embed(
    texts: Iterable[str | Sequence[str]],
    model: ElmoModel,
    tokenizer: ElmoTokenizer,
    *,
    layers: str | int = "mix",
    pooling: str | None = None,
    dtype: torch.dtype = torch.float32,
    words_per_batch: int = 4096,
    words_per_window: int = 32768,
) -> Iterator[Tensor]:
    """The embeddings of texts, in their order and in memory that does not grow with their number.

    Texts are sorted by length within a window, and batched by words, so that short and long ones run at full speed.

    Args:
        texts: strings, or lists of words that are split already. One text is one sentence to the model.
        model: put in evaluation mode while it runs; on its device and in its dtype.
        tokenizer: the one that belongs to the model.
        layers: "mix" (the scalar mix), "top", "average", "all", or the number of a layer; 0 is the word without
            context, -1 the top one.
        pooling: "mean" or "max" over the words of a text; `None` for a vector a word. A text without words has no
            vectors, or zeros when pooled.
        dtype: of the result.
        words_per_batch: how many words are computed at a time, at least one text.
        words_per_window: how many words are sorted by length together.

    Yields:
        A CPU tensor for each text: (words, hidden_size), without the sentence boundaries; with `layers="all"`
        (num_hidden_layers + 1, words, hidden_size); pooled, without the dimension of the words.

    Raises:
        EmbeddingError: a choice that there is not, one text instead of several, what is no text, with its number from
            0, or a tokenizer that spells in another way than the model reads.
    """
    if isinstance(texts, str):
        raise EmbeddingError(f"texts must be several: put {texts!r:.60} into a list")
    check_choices(layers, pooling, model.config.num_hidden_layers)
    if wrong := spelling_mismatch(model.config, tokenizer):
        raise EmbeddingError(wrong)
    words = (split_or_given(text, number, tokenizer) for number, text in enumerate(texts))
    for window in windows(words, words_per_window):
        yield from embed_window(window, model, tokenizer, layers, pooling, dtype, words_per_batch)


def split_or_given(text: Any, number: int, tokenizer: ElmoTokenizer) -> list[str]:
    """The words of a text, split already or not; an `EmbeddingError` with its number for anything else."""
    if isinstance(text, str):
        return tokenizer.split_words(text)
    words: list[Any] = list(text) if isinstance(text, Iterable) else [None]
    if isinstance(text, bytes) or not all(isinstance(word, str) for word in words):
        raise EmbeddingError(f"text {number} is {text!r:.60}: only texts and lists of words can be embedded")
    return words


def check_choices(layers: str | int, pooling: str | None, num_hidden_layers: int):
    """Raise an `EmbeddingError` unless there are such layers and such a pooling."""
    is_number = isinstance(layers, int) and -num_hidden_layers - 1 <= layers <= num_hidden_layers
    if layers not in LAYERS and not is_number:
        raise EmbeddingError(f"layers must be one of {', '.join(LAYERS)} or 0 to {num_hidden_layers}, not {layers!r}")
    if pooling is not None and pooling not in POOLINGS:
        raise EmbeddingError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")


def windows(texts: Iterable[list[str]], num_words: int) -> Iterator[list[list[str]]]:
    """Texts that follow each other, until they have `num_words` words; a text counts its boundaries."""
    window: list[list[str]] = []
    count = 0
    for text in texts:
        window.append(text)
        count += len(text) + 2
        if count >= num_words:
            yield window
            window, count = [], 0
    if window:
        yield window


@torch.no_grad()  # and no inference mode, whose vectors nothing can be trained on
def embed_window(
    texts: list[list[str]],
    model: ElmoModel,
    tokenizer: ElmoTokenizer,
    layers: str | int,
    pooling: str | None,
    dtype: torch.dtype,
    words_per_batch: int,
    on_batch: Callable[[int, int], object] = lambda texts, words: None,
) -> list[Tensor]:
    """`embed` for one window of split texts; `on_batch` is told of the texts and words of each batch."""
    by_length = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
    results: list[Tensor] = [torch.empty(0)] * len(texts)
    with evaluation_mode(model):
        planned = batches(by_length, [len(text) + 2 for text in texts], words_per_batch)
        for numbers, chosen in run_batches(planned, texts, model, tokenizer, layers):
            for row, number in enumerate(numbers):
                # Without <S> and </S>; a copy, so that the batch can be freed.
                vectors = torch.stack([layer[row, 1 : len(texts[number]) + 1] for layer in chosen])
                results[number] = pool(vectors if layers == "all" else vectors[0], pooling).to("cpu", dtype)
            on_batch(len(numbers), sum(len(texts[number]) for number in numbers))
    return results


def batches(by_length: list[int], lengths: list[int], num_words: int) -> Iterator[list[int]]:
    """Cut `by_length` into batches of at most `num_words` words, or of one text that is longer."""
    batch: list[int] = []
    count = 0
    for number in by_length:
        if batch and count + lengths[number] > num_words:
            yield batch
            batch, count = [], 0
        batch.append(number)
        count += lengths[number]
    if batch:
        yield batch


def run_batches(
    planned: Iterable[list[int]], texts: list[list[str]], model: ElmoModel, tokenizer: ElmoTokenizer, layers: str | int
) -> Iterator[tuple[list[int], Sequence[Tensor]]]:
    """The numbers and the chosen layers of each batch, (batch, words, hidden_size) each, on the CPU.

    A GPU is given the next batch before the last one's layers are looked at, and others are tokenised meanwhile.
    """

    def tokenised() -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        for numbers in planned:
            yield numbers, distinct_batch([texts[number] for number in numbers], tokenizer)

    on_gpu = model.device.type == "cuda"
    last: tuple[list[int], list[Tensor], Any] | None = None
    for numbers, inputs in read_ahead(tokenised(), BATCHES_AHEAD if on_gpu else 0):
        if not on_gpu:
            inputs = {name: values.to(model.device) for name, values in inputs.items()}
        chosen = choose_layers(model(**inputs, output_hidden_states=True), layers)
        if not on_gpu:
            yield numbers, [layer.to("cpu") for layer in chosen]
            continue
        copies = [layer.to("cpu", non_blocking=True) for layer in chosen]
        is_copied = torch.cuda.Event()
        is_copied.record()
        if last is not None:
            last[2].synchronize()
            yield last[:2]
        last = numbers, copies, is_copied
    if last is not None:
        last[2].synchronize()
        yield last[:2]


def distinct_batch(texts: list[list[str]], tokenizer: ElmoTokenizer) -> dict[str, Tensor]:
    """Arguments of `ElmoModel` that mean what the tokenizer's mean: each different word's characters are made once."""
    if tokenizer.word_inputs:
        return dict(tokenizer(texts, is_split_into_words=True, padding=True, return_tensors="pt"))
    normalizer = tokenizer.backend_tokenizer.normalizer
    index: dict[str, int] = {}  # of words in the rows, behind those of the boundaries
    places = [
        [0, *(index.setdefault(word, len(index) + 2) for word in checked_words(text, normalizer)), 1] for text in texts
    ]
    boundaries = np.stack([tokenizer.bos_row, tokenizer.eos_row])
    rows = np.concatenate([boundaries, tokenizer.encode_words(list(index))])  # (distinct, row_length)
    if tokenizer.char_vocab is None:  # bytes alone: no word has anything behind the longest one
        rows = cut_rows(rows)
    longest = max(map(len, places), default=0)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in places])  # (batch, words)
    lengths = torch.tensor([[len(row)] for row in places])
    return {
        "input_ids": ids,
        "attention_mask": torch.arange(longest) < lengths,
        "distinct_words": torch.from_numpy(rows.astype(np.int32)),
    }


def choose_layers(output, layers: str | int) -> Sequence[Tensor]:
    """The vectors to write, (batch, words, hidden_size) each: one tensor, or for "all" one for each layer."""
    if layers == "all":
        return output.hidden_states
    if layers == "mix":
        if output.scalar_mix is None:
            raise EmbeddingError("this model, made for a softmax, has no scalar mix: choose other layers, as 'average'")
        return [output.scalar_mix]
    if layers == "average":
        return [torch.stack(output.hidden_states).mean(0)]
    return [output.hidden_states[-1 if layers == "top" else layers]]


def pool(vectors: Tensor, pooling: str | None) -> Tensor:
    """(..., words, dim) -> (..., dim), zeros if there are no words; unchanged without `pooling`."""
    if pooling is None:
        return vectors
    if vectors.shape[-2] == 0:
        return vectors.new_zeros(*vectors.shape[:-2], vectors.shape[-1])
    return vectors.float().mean(-2) if pooling == "mean" else vectors.amax(-2)


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("embed", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ELMo model with its tokenizer")
    parser.add_argument(
        "input", help="text files (a sentence a line), or .parquet, .jsonl, .csv, .tsv; also compressed, and patterns"
    )
    parser.add_argument("output", type=Path, help="folder to write, or a .hdf5 file")
    parser.add_argument("--layers", default="mix", help=f"{', '.join(LAYERS)} or the number of a layer (default: mix)")
    parser.add_argument("--pooling", choices=POOLINGS, help="one vector a text instead of one a word")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the written vectors")
    parser.add_argument("--format", choices=FORMATS, help="default: hdf5 for .hdf5 and .h5, else parquet")
    parser.add_argument("--model_dtype", choices=DTYPES, default="float32", help="in which the model computes")
    parser.add_argument(
        "--pre_tokenized",
        action="store_true",
        help="words are split at white space and only there; those with spaces in them need a table's lists of words",
    )
    parser.add_argument("--column", help="which column of a table to embed: texts, or lists of words")
    parser.add_argument("--words_per_batch", type=int, default=4096)
    parser.add_argument("--words_per_part", type=int, default=32768, help="words sorted and written together")
    parser.add_argument("--overwrite", action="store_true", help="replace embeddings that are there")
    arguments = parser.parse_args(argv)
    if re.fullmatch(r"-?\d{1,9}", arguments.layers):
        arguments.layers = int(arguments.layers)
    if arguments.format is None:
        arguments.format = "hdf5" if arguments.output.suffix in (".hdf5", ".h5") else "parquet"
    if min(arguments.words_per_batch, arguments.words_per_part) < 1:
        parser.error("--words_per_batch and --words_per_part must be at least 1")
    if arguments.dtype == "bfloat16" and arguments.format != "safetensors":
        parser.error(f"{arguments.format} has no bfloat16: take --dtype float16, or --format safetensors")
    return arguments


def read_texts(arguments: argparse.Namespace, tokenizer: ElmoTokenizer, report: ReadingReport) -> Iterator[list[str]]:
    """The words of each text of the input, also of the empty ones, so that numbers stay those of the lines."""
    split = str.split if arguments.pre_tokenized else tokenizer.split_words
    files = find_files([arguments.input])
    if kind_of_table(files) is None:
        if arguments.column is not None:
            raise DataError(f"{arguments.input} has no columns: --column is for tables ({', '.join(FILE_TYPES)})")
        yield from (split(line) for line in read_lines(files, report))
        return
    for number, row in enumerate(row for name in files for row in rows_of_table(name)):
        if arguments.column not in row:
            raise DataError(f"{arguments.input} has no column {arguments.column!r}: set --column to one of {list(row)}")
        value = row[arguments.column]
        if isinstance(value, str):
            yield split(without_controls(value, report))
        elif value is None:
            yield []
        elif isinstance(value, list) and all(isinstance(word, str) for word in value):
            yield value
        else:
            raise DataError(
                f"row {number} of {arguments.input} has {value!r:.60} in column {arguments.column!r}: only texts and "
                "lists of words can be embedded"
            )


def kind_of_table(files: Sequence[str]) -> str | None:
    """Which of `FILE_TYPES` the files are; `None` for files of text."""
    kinds = {ending_of(name)[1:] if is_table(name) else None for name in files}
    if len(kinds) > 1:
        raise DataError(f"{files[0]} to {files[-1]}: embed texts, and tables of each kind, by commands of their own")
    return kinds.pop()


def settings_of(arguments: argparse.Namespace, model: ElmoModel, tokenizer: ElmoTokenizer) -> dict[str, Any]:
    """What the parts depend on: choices, model and tokenizer, and the input's files by size and time."""
    names = ("layers", "pooling", "dtype", "model_dtype", "pre_tokenized", "column", "words_per_part")
    stats = [(str(Path(name).resolve()), Path(name).stat()) for name in find_files([arguments.input])]
    return {
        **{name: getattr(arguments, name) for name in names},
        "scalar_mix_layer_norm": model.config.scalar_mix_layer_norm,
        "weights": fingerprint(model),
        "tokenizer": fingerprint_of_tokenizer(tokenizer),
        "input": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


def set_up(arguments: argparse.Namespace) -> tuple[ElmoModel, ElmoTokenizer, EmbeddingFolder]:
    """Model, tokenizer and the folder, claimed. An error of one process is one of all."""

    def prepare() -> tuple[ElmoModel, ElmoTokenizer, EmbeddingFolder]:
        if arguments.format == "hdf5" and importlib.util.find_spec("h5py") is None:
            raise EmbeddingError("HDF5 needs h5py: pip install 'modeling-elmo[convert]'")
        model, tokenizer = load_encoder(arguments.model, DTYPES[arguments.model_dtype])
        check_choices(arguments.layers, arguments.pooling, model.config.num_hidden_layers)
        next(read_texts(arguments, tokenizer, ReadingReport()), None)  # an input that is none mostly shows here
        settings = settings_of(arguments, model, tokenizer)
        return model, tokenizer, EmbeddingFolder(arguments.output, arguments.format, settings, arguments.overwrite)

    model, tokenizer, folder = on_all(prepare)
    on_main(folder.claim)
    return model, tokenizer, folder


def run(arguments: argparse.Namespace):
    """Embed the input; an error of any process is the main one's to tell."""
    state = PartialState(
        cpu=not torch.accelerator.is_available(),  # else processes would not find each other
        timeout=timedelta(days=30),  # one may be done long before another
    )
    try:
        embed_input(arguments, state)
    except Exception:
        if state.is_main_process:
            raise
        sys.exit(2)  # the main process has the same error and tells it


def embed_input(arguments: argparse.Namespace, state: PartialState):
    """Each process writes every n-th part, and the main one puts them together and prints what was done."""
    model, tokenizer, folder = set_up(arguments)
    try:
        start = time.perf_counter()
        report, counts = on_all(partial(write_parts, arguments, state, model, tokenizer, folder))
        everyone = gather_object([counts])
        if state.is_main_process:
            for name in ("words", "cut", "found"):
                counts[name] = sum(other[name] for other in everyone)
            folder.finish(counts["parts"])
            print(summary(arguments, counts, report, time.perf_counter() - start))
    finally:
        folder.unlock()


def write_parts(
    arguments: argparse.Namespace,
    state: PartialState,
    model: ElmoModel,
    tokenizer: ElmoTokenizer,
    folder: EmbeddingFolder,
) -> tuple[ReadingReport, Counter[str]]:
    """Embed this process's share of the input into a folder that is claimed; what was read and done."""
    model.to(state.device)
    is_slow = is_emulated(model.dtype, state.device) and recurrence_kernel(model.dtype) is None
    if is_slow and state.is_main_process:
        print("warning: neither processor nor compiled kernel multiplies bfloat16: float32 is faster", file=sys.stderr)
    start = time.perf_counter()
    report, counts = ReadingReport(), Counter[str]()
    total = count_texts(arguments) if state.is_main_process else None
    with tqdm(total=total, unit=" texts", desc="embedding", disable=not state.is_main_process) as bar:

        def on_batch(texts: int, words: int):
            counts["words"] += words
            bar.set_postfix_str(f"{counts['words'] / (time.perf_counter() - start):,.0f} words/s", refresh=False)
            bar.update(texts)

        for number, window in enumerate(windows(read_texts(arguments, tokenizer, report), arguments.words_per_part)):
            is_mine = number % state.num_processes == state.process_index
            if is_mine and not folder.has(number):
                embeddings = embed_window(
                    window, model, tokenizer, arguments.layers, arguments.pooling, DTYPES[arguments.dtype],
                    arguments.words_per_batch, on_batch,
                )  # fmt: skip
                folder.write(number, Part(counts["texts"], window, embeddings, arguments.pooling is not None))
                counts["cut"] += int(tokenizer.is_truncated([word for text in window for word in text]).sum())
            else:
                counts["found"] += is_mine
                bar.update(len(window))
            counts["texts"] += len(window)
            counts["parts"] += 1
    return report, counts


def count_texts(arguments: argparse.Namespace) -> int | None:
    """How many lines the input has, for the time that is left; `None` for tables."""
    files = find_files([arguments.input])
    if kind_of_table(files) is not None:
        return None
    return sum(1 for _ in tqdm(read_lines(files, ReadingReport()), desc="counting", unit=" lines", leave=False))


def summary(arguments: argparse.Namespace, counts: dict[str, int], report: ReadingReport, seconds: float) -> str:
    """What was done, in lines."""
    lines = [f"{arguments.output}: {counts['texts']:,} texts in {counts['parts']:,} parts"]
    if counts["found"]:
        lines.append(f"{counts['found']:,} parts had been there already")
    if counts["words"]:
        lines.append(f"{counts['words']:,} words in {seconds:,.1f} s, {counts['words'] / seconds:,.0f} words/s")
    if counts["cut"]:
        lines.append(f"{counts['cut']:,} words were longer than the model reads and were cut, as in its training")
    return "\n".join([*lines, *report.problems()])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    arguments = parse_arguments(argv)
    keep_freed_memory()
    same = "the same command" + " without --overwrite" * arguments.overwrite
    stopped = f"stopped: parts that are whole were kept, and {same} goes on behind them"
    return run_command(lambda: run(arguments), EmbeddingError, DataError, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
