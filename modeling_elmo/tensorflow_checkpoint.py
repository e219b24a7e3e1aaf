"""TensorFlow's checkpoints (`model.ckpt-*`), read without TensorFlow.

The format is that of TensorFlow 0.12 and younger (`tensorflow/core/util/tensor_bundle/tensor_bundle.cc`, `naming.cc`):

    PREFIX.index                 a table from "" to a BundleHeaderProto and from the name of each variable to a
                                 BundleEntryProto (`tensorflow/core/protobuf/tensor_bundle.proto`)
    PREFIX.data-00000-of-00002   the bytes of the variables, where those entries say
    checkpoint                   text: the prefix of the last checkpoint

The table is one of LevelDB without filters (github.com/google/leveldb, doc/table_format.md and table/format.cc). Its
blocks and the variables have checksums, CRC-32C masked as in LevelDB (util/crc32c.h), which are all compared.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from .allennlp_format import ConversionError

TABLE_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
FOOTER_SIZE, TRAILER_SIZE = 48, 5
MAX_INDEX_SIZE = 2**26  # that of an ELMo has some kilobytes
# `tensorflow/core/framework/types.proto`: what weights and counters may be. All else is an object to NumPy.
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 19: np.float16}


@dataclass
class Variable:
    """A variable, unread: its values are `variable[()]`, as in h5py.

    Raises:
        ConversionError: on reading, if the data file is missing, too short, or has other bytes than were written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    data_file: Path
    offset: int
    size: int
    checksum: int

    def __getitem__(self, key: tuple[()]) -> np.ndarray:
        if self.size != prod(self.shape) * self.dtype.itemsize:
            raise ConversionError(f"{self.data_file}: {self.name} of shape {self.shape} has {self.size} bytes")
        try:
            with self.data_file.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(min(self.offset, end))
                data = file.read(self.size) if self.offset + self.size <= end else b""
        except FileNotFoundError as error:
            raise ConversionError(f"{self.data_file} does not exist: a checkpoint needs all its data files") from error
        if len(data) < self.size:
            raise ConversionError(
                f"{self.data_file} is cut off: {self.name} ends at byte {self.offset + self.size}, the file at {end}: "
                "get it again"
            )
        if not _is_intact(data, self.checksum):
            raise ConversionError(f"{self.data_file} is damaged: the checksum of {self.name} is wrong: get it again")
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint, or another table of LevelDB."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(TABLE_MAGIC)))
        return file.read() == TABLE_MAGIC


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that `path` means, a prefix (`model.ckpt-10`) or one of its files; or `None`."""
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path.name)
    index = path.with_name(f"{prefix}.index")
    return index if index.is_file() else None


def last_index(folder: Path) -> Path | None:
    """The index that the file `checkpoint` of a folder names, whatever folder it names; `None` without that file.

    Raises:
        ConversionError: it names none, or one that is not there.
    """
    try:
        text = (folder / "checkpoint").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    found = re.search(r'^model_checkpoint_path:\s*"(.+)"', text, re.MULTILINE)
    # Of both kinds of paths: most name a folder of the machine on which they were written.
    index = index_of(folder / PureWindowsPath(found[1]).name) if found else None
    if index is None:
        named = f"names {found[1]!r}, which is not there" if found else "names no checkpoint"
        raise ConversionError(f"{folder / 'checkpoint'} {named}: name the right one with --weights")
    return index


def read_checkpoint(index: Path) -> dict[str, Variable]:
    """The variables of a checkpoint by name, unread.

    Raises:
        ConversionError: an index that is damaged or of another kind.
    """
    if index.stat().st_size > MAX_INDEX_SIZE:
        raise ConversionError(f"{index} has {index.stat().st_size} bytes, too many for the index of a checkpoint")
    try:
        table = _read_table(index.read_bytes())
        key, value = next(table, (b"", b""))
        header = {} if key else _parse(value, {1: int, 2: int})
        shards = header.get(1, [0])[0]
        if not shards:
            raise ValueError("it has no header: a table of another kind, or a checkpoint older than TensorFlow 0.12")
        if header.get(2):
            raise ValueError("it was written on a big-endian machine, whose numbers are not read")
        return {name.decode("utf-8"): _variable(name.decode("utf-8"), entry, index, shards) for name, entry in table}
    except ConversionError:
        raise
    except (ValueError, OSError) as error:  # both of UTF-8 and of the format; OSError: snappy
        raise ConversionError(f"{index} cannot be read as the index of a checkpoint ({error})") from error


def _variable(name: str, entry: bytes, index: Path, shards: int) -> Variable:
    fields = _parse(entry, {1: int, 2: bytes, 3: int, 4: int, 5: int, 6: int, 7: bytes})
    if 7 in fields:
        raise ValueError(f"{name} is stored in slices, which are not read")
    # Protobuf leaves zeros out.
    dtype, shard, offset, size, checksum = (fields.get(number, [0])[-1] for number in (1, 3, 4, 5, 6))
    dimensions = _parse(fields.get(2, [b""])[-1], {2: bytes}).get(2, [])
    shape = tuple(_parse(dimension, {1: int}).get(1, [0])[0] for dimension in dimensions)
    if shard >= shards:
        raise ValueError(f"{name} is in data file {shard} of {shards}")
    data_file = index.with_name(f"{index.name.removesuffix('.index')}.data-{shard:05d}-of-{shards:05d}")
    return Variable(name, shape, np.dtype(DTYPES.get(dtype, object)), data_file, offset, size, checksum)


# ---------------------------------------------------------------------------------------------------------------------
# Checksums, protobufs and tables


def _is_intact(data: bytes, masked: int) -> bool:
    try:
        import google_crc32c
    except ImportError as error:
        raise ConversionError(
            f"checkpoints need google-crc32c ({error}): pip install 'modeling-elmo[convert]'"
        ) from error
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == masked


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position behind it."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        number |= (data[position] & 0x7F) << shift
        position += 1
        if data[position - 1] < 0x80:
            return number, position
    raise ValueError("a number is cut off")


def _parse(message: bytes, kinds: dict[int, type]) -> dict[int, list[Any]]:
    """The fields of a protobuf message by number, those in `kinds` only: `int`, or `bytes` for what has a length."""
    fields: dict[int, list[Any]] = {}
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        value: int | bytes
        if wire_type == 0:
            value, position = _varint(message, position)
        elif wire_type in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
            if position > len(message):
                raise ValueError("an entry is cut off")
            if wire_type != 2:
                value = int.from_bytes(value, "little")
        else:
            raise ValueError("an entry is no protobuf message")
        if number in kinds:
            if not isinstance(value, kinds[number]):
                raise ValueError("an entry has fields of other kinds")
            fields.setdefault(number, []).append(value)
    return fields


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values, in the order of the keys."""
    if len(data) < FOOTER_SIZE or not data.endswith(TABLE_MAGIC):
        raise ValueError("it does not end as one: cut off, or another file")
    footer = data[-FOOTER_SIZE:]
    _, _, position = _place(footer, 0)  # that of a list of filters, of which there are none
    offset, size, _ = _place(footer, position)
    last = None
    for _, value in _entries(_block(data, offset, size)):
        offset, size, _ = _place(value, 0)
        for entry in _entries(_block(data, offset, size)):
            if last is not None and entry[0] <= last:
                raise ValueError("its keys are not in order")
            last = entry[0]
            yield entry


def _place(data: bytes, position: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position behind them."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    return offset, size, position


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    block, trailer = data[offset : end + 1], data[end + 1 : end + TRAILER_SIZE]  # the last byte tells the compression
    if len(trailer) < TRAILER_SIZE - 1 or not _is_intact(block, int.from_bytes(trailer, "little")):
        raise ValueError("a block is damaged: its checksum is wrong")
    block, compression = block[:-1], block[-1]
    if compression == 0:
        return block
    if compression != 1:
        raise ValueError(f"a block has the unknown compression {compression}")
    from pyarrow import decompress

    unpacked_size, _ = _varint(block, 0)
    if unpacked_size > MAX_INDEX_SIZE:
        raise ValueError(f"a block unpacks to {unpacked_size} bytes, which are too many")
    return decompress(block, unpacked_size, "snappy", asbytes=True)


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key is stored without what it shares with the one before."""
    end = len(block) - 4 * (1 + int.from_bytes(block[-4:], "little"))  # of entries; places to begin at lie behind them
    if end < 0:
        raise ValueError("a block is cut off")
    key, position = b"", 0
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + own + length > end:
            raise ValueError("a block is cut off")
        key = key[:shared] + block[position : position + own]
        position += own + length
        yield key, block[position - length : position]
