"""TensorFlow's checkpoints: files that it wrote itself (`bilm_tf_checkpoint/make.py`), and damaged ones."""

import sys
from pathlib import Path

import numpy as np
import pytest
from bilm_tf_checkpoint.make import OPTIONS, values
from legacy_files import field, masked_crc, table, varint, write_checkpoint

from modeling_elmo.allennlp_format import ConversionError
from modeling_elmo.tensorflow_checkpoint import MAX_INDEX_SIZE, read_checkpoint

WRITTEN = Path(__file__).parent / "bilm_tf_checkpoint"


def copy_of(step: int, folder: Path) -> Path:
    """The index of a copy that may be damaged."""
    for path in WRITTEN.glob(f"model.ckpt-{step}.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / f"model.ckpt-{step}.index"


@pytest.mark.parametrize("step", [2, 3])
def test_what_tensorflow_wrote(step):
    """Step 3 lies in two data files. Gradients of 1 were squared and added to the optimizer's 1."""
    variables = read_checkpoint(WRITTEN / f"model.ckpt-{step}.index")
    expected = values(OPTIONS)
    expected |= {f"{name}/Adagrad": np.full_like(array, step) for name, array in expected.items()}
    expected |= {"global_step": np.float32(step), "train_perplexity": np.float32(0)}
    assert variables.keys() == expected.keys()
    for name, variable in variables.items():
        assert variable.shape == expected[name].shape and variable.dtype == variable[()].dtype == np.float32
        np.testing.assert_array_equal(variable[()], expected[name])
    assert {variable.data_file.name[-14:] for variable in variables.values()} == (
        {"00000-of-00001"} if step == 2 else {"00000-of-00002", "00001-of-00002"}
    )


@pytest.mark.parametrize("options", [{}, {"snappy": True}, {"block_size": 1}, {"block_size": 1000}])
def test_tables_of_other_forms(tmp_path, options):
    expected = values(OPTIONS) | {"step": np.array(3), "double": np.ones(2), "empty": np.ones((2, 0), np.float32)}
    write_checkpoint(tmp_path / "model.ckpt", expected, **options)
    variables = read_checkpoint(tmp_path / "model.ckpt.index")
    assert variables.keys() == expected.keys()
    for name, variable in variables.items():
        assert variable.dtype == expected[name].dtype
        np.testing.assert_array_equal(variable[()], expected[name])


@pytest.mark.parametrize(("number", "dtype"), [(3, np.int32), (19, np.float16), (7, object)])
def test_kinds_of_values(tmp_path, number, dtype):
    """A string, 7, stands in the index too. Fields that nobody knows are passed over."""
    fields = field(1, number) + varint(99 << 3 | 1) + bytes(8) + varint(98 << 3 | 5) + bytes(4)
    (tmp_path / "x.index").write_bytes(table(HEADER | {b"x": ENTRY + fields}))
    assert read_checkpoint(tmp_path / "x.index")["x"].dtype == dtype


@pytest.mark.parametrize("offset", [2**40, 2**63])
def test_places_that_no_file_has(tmp_path, offset):
    (tmp_path / "x.index").write_bytes(table(HEADER | {b"x": ENTRY + field(4, offset)}))
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(8))
    with pytest.raises(ConversionError, match=f"is cut off: x ends at byte {offset + 4}, the file at 8"):
        read_checkpoint(tmp_path / "x.index")["x"][()]


def test_damaged_bytes_of_an_index_are_found(tmp_path):
    index = copy_of(2, tmp_path)
    intact, expected = index.read_bytes(), read_checkpoint(index)
    unread, end = 0, len(intact)
    for position in [*range(0, end - 70, 5), *range(end - 70, end)]:
        index.write_bytes(intact[:position] + bytes([intact[position] ^ 0x11]) + intact[position + 1 :])
        try:
            assert read_checkpoint(index) == expected
            unread += 1
        except ConversionError as error:
            assert str(index) in str(error)
    # A list of filters (empty, and its trailer), its place, and what fills the footer up to 40 bytes.
    assert unread <= 8 + 5 + 40
    for size in [*range(0, end, 40), end - 1]:
        index.write_bytes(intact[:size])
        with pytest.raises(ConversionError, match=r"model\.ckpt-2\.index cannot be read"):
            read_checkpoint(index)


def test_damaged_data_files(tmp_path):
    index = copy_of(3, tmp_path)
    data_file = tmp_path / "model.ckpt-3.data-00001-of-00002"
    intact = data_file.read_bytes()
    variables = [variable for variable in read_checkpoint(index).values() if variable.data_file == data_file]
    assert len(variables) == 2 * 8
    for variable in variables:
        damaged = bytearray(intact)
        damaged[variable.offset + variable.size - 1] ^= 1
        data_file.write_bytes(damaged)
        with pytest.raises(ConversionError, match=f"data-00001-of-00002 is damaged: the checksum of {variable.name} "):
            variable[()]
        data_file.write_bytes(intact[: variable.offset + variable.size - 1])
        with pytest.raises(ConversionError, match=f"data-00001-of-00002 is cut off: {variable.name} ends at byte"):
            variable[()]
    data_file.unlink()
    with pytest.raises(ConversionError, match="data-00001-of-00002 does not exist"):
        variable[()]


def with_block(block: bytes, compression: int = 0) -> bytes:
    """A table of one block, whose checksum is right."""
    block += bytes([compression])
    data = block + masked_crc(block)
    footer = varint(0) + varint(0) + varint(0) + varint(len(block) - 1)
    return data + footer.ljust(40, b"\0") + table({})[-8:]


HEADER, ENTRY = {b"": field(1, 1)}, field(1, 1) + field(2, b"") + field(5, 4)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "other_file": (b"options" * 100, "does not end as one"),
    "no_header": (table({b"x": ENTRY}), "no header"),
    "older_version": (table({b"": field(1, b"\x0a\x00")}), "fields of other kinds"),  # SavedTensorSlices
    "empty": (table({}), "no header"),
    "big_endian": (table({b"": field(1, 1) + field(2, 1)}), "big-endian"),
    "no_message": (table(HEADER | {b"x": b"\x07"}), "no protobuf message"),
    "cut_off_number": (table(HEADER | {b"x": b"\x08\xff"}), "a number is cut off"),
    "endless_number": (table(HEADER | {b"x": b"\x08" + b"\xff" * 100}), "a number is cut off"),
    "cut_off_field": (table(HEADER | {b"x": b"\x12\x50abc"}), "an entry is cut off"),
    "slices": (table(HEADER | {b"x": ENTRY + field(7, b"")}), "x is stored in slices"),
    "shard": (table(HEADER | {b"x": ENTRY + field(3, 1)}), "x is in data file 1 of 1"),
    "no_utf8": (table(HEADER | {b"\xff": ENTRY}), "utf-8"),
    "order": (table(HEADER | {b"b": ENTRY, b"a": ENTRY}), "not in order"),
    "bomb": (with_block(varint(MAX_INDEX_SIZE + 1) + bytes(10), 1), "unpacks to 67108865 bytes"),
    "no_snappy": (with_block(varint(5) + b"\xff" * 5, 1), "cannot be read as the index of a checkpoint .*snappy"),
    "compression": (with_block(bytes(8), 2), "unknown compression 2"),
    "places": (with_block((9).to_bytes(4, "little")), "a block is cut off"),
    "shared_key": (with_block(bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), "a block is cut off"),
    "long_value": (with_block(bytes([0, 0, 99, 0, 0, 0, 0])), "a block is cut off"),
    "no_footer": (table({})[-20:], "does not end as one"),
    "large": (bytes(MAX_INDEX_SIZE + 1), "too many for the index"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_indexes(tmp_path, name):
    content, message = MALFORMED[name]
    (tmp_path / "model.ckpt.index").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(tmp_path / "model.ckpt.index")


def test_sizes_that_contradict_each_other(tmp_path):
    for entry in (field(1, 1) + field(5, 8), field(1, 1) + field(2, field(2, field(1, 2**64 - 1))) + field(5, 4)):
        (tmp_path / "x.index").write_bytes(table(HEADER | {b"x": entry}))
        (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(8))
        with pytest.raises(ConversionError, match=r"x of shape \(.*\) has [48] bytes"):
            read_checkpoint(tmp_path / "x.index")["x"][()]


def test_the_library_for_checksums_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(
        ConversionError, match=r"^checkpoints need google-crc32c \(.*halted.*\): pip install 'modeling-elmo\[convert\]'"
    ):
        read_checkpoint(WRITTEN / "model.ckpt-2.index")
