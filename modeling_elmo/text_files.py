"""Lines of text from any source, in constant memory: files, compressed files, Parquet files and data sets."""

import bz2
import codecs
import glob
import gzip
import hashlib
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from .commands import one_line

# A longer line is cut, so that a file without line ends does not fill the memory.
MAX_LINE_BYTES = 2**24
BUFFER_BYTES = 2**18
# How `datasets` and pyarrow call columns of text.
TEXT_TYPES = ("string", "large_string")
# Cells are read this many at a time: documents may have megabytes each.
CELLS_PER_BATCH = 256
# Endings of files whose lines are no texts.
NO_LINES = {".json", ".jsonl", ".csv", ".zip", ".tar", ".tgz", ".7z", ".rar", ".pdf"}
NO_LINES |= {".doc", ".docx", ".odt", ".rtf", ".xls", ".xlsx"}
# Of sequences of proteins or nucleotides. Not .fa, which Persian texts are called, too.
FASTA = {".fasta", ".fas", ".faa", ".fna"}
# Controls, but for the white space among them (tab to carriage return), separate words.
CONTROLS = frozenset(map(chr, [*range(0x00, 0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0)]))
SPACES = tuple(space.encode() for space in " \t\v\f\r\u3000")


class DataError(ValueError):
    """Text that cannot be read or trained on; the message says what is wrong and the way out."""


@dataclass
class ReadingReport:
    """What was met while reading: counts, to be shown to the user."""

    lines: int = 0
    lines_with_invalid_utf8: int = 0
    invalid_utf8_sequences: int = 0
    control_characters: int = 0
    long_lines: int = 0

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
        if self.long_lines:
            lines.append(f"{self.long_lines:,} lines of more than {MAX_LINE_BYTES:,} bytes were cut into several")
        return lines


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that paths and globs name, each once, globs in sorted order.

    Raises:
        DataError: a name that fits no file.
    """
    files: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
        found = [name for name in found if os.path.isfile(name)]
        if not found and os.path.exists(pattern) and not os.path.isdir(pattern):
            raise DataError(f"{pattern!r} is a pipe or a device, and texts are read more than once: make a file of it")
        if not found:
            raise DataError(
                f"no file is named {pattern!r}: give text files (also .gz, .bz2, .xz, .zst), .parquet files or a "
                "pattern such as 'data/*.txt'"
            )
        files += found
    return list(dict.fromkeys(files))


def read_lines(
    files: Sequence[str],
    report: ReadingReport,
    text_column: str | None = None,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[str]:
    """Lines of text files and of the cells of .parquet files, without the line end; of FASTA files the sequences.

    Args:
        files: plain or compressed (.gz, .bz2, .xz, .zst, .zstd) text or FASTA (.fasta, .fas, .faa, .fna), or .parquet.
        report: counts the lines, and what had to be mended: not UTF-8, control characters, lines of more than
            `MAX_LINE_BYTES`, which are cut at white space.
        text_column: of .parquet files; by default their first column of text. Null is left out.
        on_bytes: is told now and then how many more bytes of the files, as they lie on the disk, were read; in the
            end these add up to their sizes.

    Raises:
        DataError: a file that is damaged or cannot be read, or has no such column.
    """
    for name in files:
        try:
            if way_to_read(name) == ".parquet":
                yield from read_parquet(name, text_column, report, on_bytes)
            else:
                yield from read_text(name, report, on_bytes)
        except DAMAGE as error:
            raise unreadable(name, error) from error


# What reading a file raises that is damaged or not there.
DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)


def unreadable(name: str, error: BaseException) -> DataError:
    """What to tell of a file that cannot be read."""
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{name} cannot be read ({error.strerror}): is it there, a file, and yours to read?")
    return DataError(f"{name} is damaged ({error}): make or fetch it again")


# ---------------------------------------------------------------------------------------------------------------------
# Text files


class WatchedFile(io.FileIO):
    """A file that tells `on_bytes` of each read: how far a decompressor is in it."""

    def __init__(self, name: str, on_bytes: Callable[[int], object]):
        super().__init__(name)
        self.on_bytes = on_bytes

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer) or 0
        self.on_bytes(count)
        return count


def open_zstd(file: BinaryIO) -> BinaryIO:
    """The decompressed bytes of a .zst file."""
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")


OPENERS: dict[str, Callable] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": open_zstd,
    ".zstd": open_zstd,
}


# How these files begin. Texts may begin with BZh or PAR1, too, but do not go on like this.
SIGNATURES = {
    ".gz": rb"\x1f\x8b",
    ".bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    ".xz": rb"\xfd7zXZ\x00",
    ".zst": rb"\x28\xb5\x2f\xfd",
    ".parquet": rb"PAR1\x15",
}


def way_to_read(name: str) -> str:
    """How a file is read, by its name in any case: ".parquet", the ending of its compression, or "" as it is."""
    ending = Path(name.lower()).suffix
    return ending if ending in OPENERS or ending == ".parquet" else ""


def ending_of(name: str) -> str:
    """How a file's name ends, in small letters and without the ending of its compression: ".jsonl" of a.jsonl.gz."""
    path = Path(name.lower())
    return (path.with_suffix("") if way_to_read(name) in OPENERS else path).suffix


def decompressed(file: BinaryIO, name: str) -> BinaryIO:
    """The bytes in a file, which is compressed if its name says so."""
    opener = OPENERS.get(way_to_read(name))
    return opener(file) if opener else file


def read_text(name: str, report: ReadingReport, on_bytes: Callable[[int], object] | None) -> Iterator[str]:
    """The lines of one file, plain or compressed.

    Raises:
        DataError: something else than lines in UTF-8, by its name or its first bytes.
    """
    ending = ending_of(name)
    if ending in NO_LINES:
        raise DataError(
            f"{name} is a {ending}, not lines of text: write its texts into a text file; train.py also takes the "
            "folder of a table as --dataset_name, with --text_column_name"
        )
    file = io.BufferedReader(WatchedFile(name, on_bytes) if on_bytes else io.FileIO(name), BUFFER_BYTES)
    with file:
        content: Any = decompressed(file, name)
        stream = file if content is file else io.BufferedReader(content, BUFFER_BYTES)
        start = stream.peek(BUFFER_BYTES)[:4096]
        for kind, signature in SIGNATURES.items():
            if re.match(signature, start):
                way_out = f"call it {os.path.basename(name)}{kind}" if content is file else "unpack it"
                raise DataError(f"the first bytes in {name} are those of a {kind} file, not of text: {way_out}")
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or start.count(0) > len(start) / 8:
            raise DataError(f"{name} is no text in UTF-8 (UTF-16, perhaps): save it as UTF-8")
        lines = decoded_lines(stream, report)
        yield from sequences(lines, name) if ending in FASTA else lines


def sequences(lines: Iterator[str], name: str) -> Iterator[str]:
    """The sequence of each record of a FASTA file: what stands below a line that begins with ">", put together."""
    record: list[str] | None = None
    for line in lines:
        if line.startswith(">"):
            if record is not None:
                yield "".join(record)
            record = []
        elif record is not None:
            record.append(line.strip())
        elif line.strip():
            raise DataError(f"{name} does not begin with a line of FASTA ('>' and a name): call it .txt if it is text")
    if record is not None:
        yield "".join(record)


def decoded_lines(stream: BinaryIO, report: ReadingReport) -> Iterator[str]:
    """The lines of a binary stream as text, without line ends and without a byte order mark at the start."""
    mark = codecs.BOM_UTF8
    for line in pieces(stream, report):
        yield decode(line.removeprefix(mark).rstrip(b"\r\n"), report)
        mark = b""


def pieces(stream: BinaryIO, report: ReadingReport) -> Iterator[bytes]:
    """The lines of a binary stream; those of more than `MAX_LINE_BYTES` come in pieces, cut before white space.

    A piece without white space is cut between characters.
    """
    rest = b""
    while line := rest + stream.readline(MAX_LINE_BYTES - len(rest)):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            rest = b""
        else:
            report.long_lines += not rest  # what is left over says that the line was counted
            cut = max(line.rfind(space) for space in SPACES)
            if cut <= 0:
                cut = len(line) - 1
                while cut > len(line) - 4 and line[cut] & 0xC0 == 0x80:  # within a character
                    cut -= 1
            line, rest = line[:cut], line[cut:]
        yield line


def decode(line: bytes, report: ReadingReport) -> str:
    """A line as text: invalid UTF-8 becomes U+FFFD, control characters become spaces; both are counted."""
    report.lines += 1
    text = line.decode("utf-8", errors="replace")
    invalid = text.count("\ufffd") - line.count(b"\xef\xbf\xbd")
    if invalid > 0:
        report.lines_with_invalid_utf8 += 1
        report.invalid_utf8_sequences += invalid
    return without_controls(text, report)


def without_controls(text: str, report: ReadingReport) -> str:
    """A text whose control characters became spaces; they are counted."""
    if not text.isprintable():
        for control in CONTROLS.intersection(text):
            report.control_characters += text.count(control)
            text = text.replace(control, " ")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read_parquet(
    name: str, text_column: str | None, report: ReadingReport, on_bytes: Callable[[int], object] | None
) -> Iterator[str]:
    """The lines of one .parquet file's cells."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    size, rows, told = os.path.getsize(name), 0, 0
    try:
        # Else a whole column of a group of rows, which may be all rows, is read at once.
        with ParquetFile(name, buffer_size=BUFFER_BYTES, pre_buffer=False) as table:
            types = {field.name: str(field.type) for field in table.schema_arrow}
            column = choose_column(types, text_column, name)
            for batch in table.iter_batches(CELLS_PER_BATCH, columns=[column]):
                yield from lines_of_cells(batch.column(0), report)
                rows += len(batch)
                if on_bytes:
                    # Columns and their dictionaries lie apart, so bytes are told by the share of the rows.
                    on_bytes(size * rows // table.metadata.num_rows - told)
                    told = size * rows // table.metadata.num_rows
    except ArrowException as error:
        raise unreadable(name, error) from error
    if on_bytes:
        on_bytes(size - told)


def lines_of_dataset(
    name: str,
    config_name: str | None,
    split: str,
    text_column: str | None,
    report: ReadingReport,
    streaming: bool = False,
) -> Iterator[str]:
    """Lines of a data set's text column (by default its first column of text), from the Hub or a local folder.

    With `streaming`, nothing is written to the disk. `report` counts as in `read_lines`; null is left out.

    Raises:
        DataError: there is no such data set, configuration, split or column of text, or it cannot be fetched.
    """
    from datasets import load_dataset

    source = f"data set {name!r}" + (f" ({config_name})" if config_name else "")
    try:
        dataset = load_dataset(name, config_name, split=split, streaming=streaming)
        features = dataset.features or dataset._resolve_features().features or {}
        types = {column: getattr(feature, "dtype", "") for column, feature in features.items()}
        column = choose_column(types, text_column, source)
        for table in dataset.select_columns(column).with_format("arrow").iter(CELLS_PER_BATCH):
            yield from lines_of_cells(table.column(column), report)
    except DataError:
        raise
    except Exception as error:  # those of any library that fetches and reads files may get through
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else error
        raise DataError(f"{source} cannot be read, split {split!r}: {one_line(cause or error)}") from error


def choose_column(types: dict[str, str], text_column: str | None, source: str) -> str:
    """The name of the column of text: `text_column`, or the first of `types`, the types by name."""
    text = [name for name, kind in types.items() if kind in TEXT_TYPES]
    if not text:
        raise DataError(f"{source} has no column of text, only {list(types)}: give text a string a row")
    column = text_column or text[0]
    if column not in text:
        raise DataError(f"{source} has no text column {column!r}: set text_column_name to one of {text}")
    return column


def lines_of_cells(cells, report: ReadingReport) -> Iterator[str]:
    """The lines of an Arrow column of strings."""
    import pyarrow

    # As bytes, because strings of Arrow may hold invalid UTF-8 and are to be mended in the same way as files.
    for cell in cells.cast(pyarrow.large_binary()).to_pylist():
        if cell is not None:
            yield from decoded_lines(io.BytesIO(cell or b"\n"), report)


# ---------------------------------------------------------------------------------------------------------------------


def file_digest(name: str | os.PathLike, on_bytes: Callable[[int], object] = lambda count: None) -> bytes:
    """16 bytes of blake2b of a file's content; `on_bytes` is told of the bytes that were read."""
    digest = hashlib.blake2b(digest_size=16)
    with open(name, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.digest()


def content_hash(files: Sequence[str]) -> str:
    """32 hexadecimal digits of what is in the files, in this order; their names do not matter, their boundaries do.

    A bar is drawn if it takes more than two seconds.

    Raises:
        DataError: a file that cannot be read.
    """
    whole = hashlib.blake2b(digest_size=16)
    size = sum(os.path.getsize(name) for name in files if os.path.isfile(name))
    with tqdm(total=size, desc="hashing", unit="B", unit_scale=True, delay=2) as bar:
        for name in files:
            try:
                whole.update(file_digest(name, bar.update))
            except OSError as error:
                raise unreadable(name, error) from error
    return whole.hexdigest()
