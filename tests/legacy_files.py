"""A tiny legacy model to write, to vary and to compare with: options, random tensors, vocabulary and their files."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch

from modeling_elmo import ElmoModel
from modeling_elmo.allennlp_format import ConversionError
from modeling_elmo.convert import convert_from_allennlp

h5py = pytest.importorskip("h5py")
google_crc32c = pytest.importorskip("google_crc32c")

VOCABULARY = ["<S>", "</S>", "<UNK>", "the", "cat", "日本", "sat"]
OPTIONS: dict[str, Any] = {
    "bidirectional": True,
    "dropout": 0.25,
    "n_tokens_vocab": len(VOCABULARY),
    "lstm": {
        "cell_clip": 0.7,
        "dim": 7,
        "n_layers": 2,
        "proj_clip": 0.4,
        "projection_dim": 5,
        "use_skip_connections": True,
    },
    "char_cnn": {
        "activation": "relu",
        "embedding": {"dim": 3},
        "filters": [[1, 4], [2, 3], [4, 6]],
        "max_characters_per_token": 50,
        "n_characters": 262,
        "n_highway": 2,
    },
}
ABSENT = object()


def changed(**changes: Any) -> dict[str, Any]:
    """`OPTIONS` with other values, named section__key; `ABSENT` takes a key away."""
    options = deepcopy(OPTIONS)
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = options
        for name in sections:
            section = section[name]
        if value is ABSENT:
            del section[key]
        else:
            section[key] = value
    return options


def random_datasets(options: dict[str, Any], projection: bool = True) -> dict[str, np.ndarray]:
    """Random tensors of the sizes in the options, large enough for saturated gates and clipped cells."""
    rng = np.random.default_rng(0)
    lstm, cnn = options["lstm"], options.get("char_cnn")
    dim, projection_dim = lstm["dim"], lstm["projection_dim"]
    shapes: dict[str, tuple[int, ...]] = {}
    if cnn is None:
        shapes["embedding"] = (options["n_tokens_vocab"], projection_dim)
    else:
        filters, char_dim = sum(number for _, number in cnn["filters"]), cnn["embedding"]["dim"]
        shapes["char_embed"] = (261, char_dim)
        for i, (width, number) in enumerate(cnn["filters"]):
            shapes |= {f"CNN/W_cnn_{i}": (1, width, char_dim, number), f"CNN/b_cnn_{i}": (number,)}
        for i in range(cnn.get("n_highway") or 0):
            for gate in ("carry", "transform"):
                shapes |= {f"CNN_high_{i}/W_{gate}": (filters, filters), f"CNN_high_{i}/b_{gate}": (filters,)}
        if projection:
            shapes |= {"CNN_proj/W_proj": (filters, projection_dim), "CNN_proj/b_proj": (projection_dim,)}
    for direction in (0, 1):
        for j in range(lstm.get("n_layers", 1)):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{j}/LSTMCell/"
            shapes |= {cell + "W_0": (2 * projection_dim, 4 * dim), cell + "B": (4 * dim,)}
            shapes[cell + "W_P_0"] = (dim, projection_dim)

    def scale(name: str, shape: tuple[int, ...]) -> float:
        return np.prod(shape[:-1]) ** -0.5 if name.startswith("CNN") and len(shape) > 1 else 0.7

    return {name: rng.normal(scale=scale(name, shape), size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_hdf5(path: Path, datasets: dict[str, np.ndarray]):
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    datasets: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, node: datasets.update({name: node[()]} if isinstance(node, h5py.Dataset) else {}))
    return datasets


def write_options(folder: Path, **changes: Any):
    """Replace the options of a model by `changed(**changes)`, whatever the tensors say."""
    (folder / "options.json").write_text(json.dumps(changed(**changes)))


def write_legacy(
    folder: Path,
    options: dict[str, Any] = OPTIONS,
    datasets: dict[str, np.ndarray] | None = None,
    vocabulary: list[str] | None = VOCABULARY,
) -> Path:
    """A folder of options.json, weights.hdf5 (random tensors if none are given) and, unless it is None, vocab.txt."""
    folder.mkdir(exist_ok=True)
    (folder / "options.json").write_text(json.dumps(options))
    write_hdf5(folder / "weights.hdf5", datasets or random_datasets(options))
    if vocabulary is not None:
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
    return folder


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def table(entries: Mapping[bytes, bytes], snappy: bool = False, block_size: int = 5) -> bytes:
    """A table of LevelDB, with `block_size` keys to a block, each without what it shares with the one before."""
    data = b""

    def store(keys: list[bytes], values: Mapping[bytes, bytes]) -> bytes:
        nonlocal data
        block, last = b"", b""
        for key in keys:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(map(len, (key, last)))
            )
            block += varint(shared) + varint(len(key) - shared) + varint(len(values[key])) + key[shared:] + values[key]
            last = key
        block += bytes(4) + (1).to_bytes(4, "little")  # one place to begin at
        place = varint(len(data))
        if snappy:
            block = pyarrow.compress(block, "snappy", asbytes=True)
        place += varint(len(block))
        block += bytes([snappy])
        data += block + masked_crc(block)
        return place

    keys = list(entries)
    parts = [keys[start : start + block_size] for start in range(0, len(keys), block_size)]
    places = {part[-1]: store(part, entries) for part in parts}
    footer = store([], {}) + store(list(places), places)
    return data + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def write_checkpoint(prefix: Path, variables: Mapping[str, np.ndarray], header: bytes = field(1, 1), **options: Any):
    """A TensorFlow checkpoint with one data file; the options are those of `table`."""
    entries, data = {b"": header}, b""
    for name in sorted(variables, key=str.encode):
        array = variables[name]
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        entry = field(1, {"float32": 1, "float64": 2, "int64": 9}[array.dtype.name]) + field(2, shape)
        entry += field(4, len(data)) + field(5, array.nbytes) + varint(6 << 3 | 5) + masked_crc(array.tobytes())
        entries[name.encode()], data = entry, data + array.tobytes()
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries, **options))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)


def assert_bit_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]):
    assert first.keys() == second.keys()
    for name, data in first.items():
        assert (data.dtype, data.shape) == (second[name].dtype, second[name].shape), name
        assert data.tobytes() == second[name].tobytes(), name


def assert_refused(source: Path | str | None, dst: Path, message: str, **arguments: Any):
    """The conversion fails with this message, and where there was no result, there is none."""
    before = dst.exists()
    with pytest.raises(ConversionError, match=message):
        convert_from_allennlp(source, dst, **arguments)
    assert dst.exists() == before


def layers_of(model: ElmoModel, rows: np.ndarray) -> np.ndarray:
    """All layers of one sentence from legacy rows: (layers + 1, words, hidden_size)."""
    with torch.no_grad():
        output = model(torch.from_numpy(rows + 1)[None], output_hidden_states=True)
    return torch.cat(output.hidden_states).numpy()
