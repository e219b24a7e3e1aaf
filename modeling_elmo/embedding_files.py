"""Embeddings on disk: parts that appear whole or not at all, in Parquet, safetensors or AllenNLP's HDF5 layout.

A folder of parts can be gone on with after an interruption: a part that is there is complete, and a hidden file tells
with which settings the parts were made. One command at a time writes into it.
"""

import glob
import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from .commands import LOCK_FILE, unlock, whole_file
from .tokenization_elmo import ElmoTokenizer

FORMATS = ("parquet", "safetensors", "hdf5")
SETTINGS = ".embed.json"


class EmbeddingError(ValueError):
    """Something that keeps texts from being embedded; the message says what is wrong and the way out."""


class Part(NamedTuple):
    """Texts that follow each other in the input.

    Attributes:
        first: the number of the first text.
        texts: the words of each text.
        embeddings: a tensor for each text, (words, dim), with all layers (layers, words, dim), pooled (dim,) or
            (layers, dim).
        pooled: whether a text has one vector.
    """

    first: int
    texts: list[list[str]]
    embeddings: list[Tensor]
    pooled: bool


class EmbeddingFolder:
    """Where the parts of one input go.

    Args:
        output: a folder for the formats "parquet" and "safetensors"; for "hdf5" the file that `finish` puts together.
        file_format: one of `FORMATS`.
        settings: what the embeddings depend on, as JSON can hold it.
        overwrite: whether `claim` may delete earlier embeddings.
    """

    def __init__(self, output: str | Path, file_format: str, settings: dict[str, Any], overwrite: bool = False):
        self.output, self.format = Path(output), file_format
        self.folder, self.lock_file = self.output, self.output / LOCK_FILE
        if file_format == "hdf5":
            self.folder = self.output.with_name(f".{self.output.name}.parts")
            self.lock_file = self.output.with_name(f".{self.output.name}{LOCK_FILE}")  # the folder goes away
        self.settings = {**settings, "format": file_format}
        self.overwrite = overwrite
        self.lock = FileLock(self.lock_file)

    def claim(self):
        """Make the folder and lock it, for the processes of one command.

        Raises:
            EmbeddingError: the output holds something else, or embeddings made with other settings, or another command
                is writing into it.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise EmbeddingError(
                f"{self.folder} is a file, but a folder of parts is to be written: choose another name"
            )
        self.lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise EmbeddingError(
                f"another command is writing into {self.output}: wait for it, or choose another output"
            ) from None
        try:
            if self.overwrite:
                self._remove_earlier()
            self._check()
            self.folder.mkdir(exist_ok=True)
        except BaseException:
            self.unlock()
            raise

    def unlock(self):
        """Let others write into it."""
        unlock(self.lock)

    def _scratch_files(self) -> list[Path]:
        """What killed commands left half-written."""
        merged = self.output.parent.glob(f".{glob.escape(self.output.name)}.[0-9]*") if self.format == "hdf5" else ()
        return [*self.folder.glob(".part-*"), *self.folder.glob(f".{SETTINGS}.*"), *merged]

    def _remove_earlier(self):
        if (self.folder / SETTINGS).is_file():
            for part in [*self.folder.glob("part-*"), *self._scratch_files()]:
                part.unlink()
            self._write_settings()
        if self.format == "hdf5" and self.output.is_file():
            self.output.unlink()

    def _check(self):
        if self.format == "hdf5" and self.output.exists():
            left = f" (and delete {self.folder}, which an interrupted command left)" if self.folder.exists() else ""
            raise EmbeddingError(f"{self.output} exists: choose another file, or replace it with --overwrite{left}")
        written = self.folder / SETTINGS
        if written.is_file():
            earlier = _read_settings(written)
            different = [
                f"{name} ({earlier.get(name)!r}, now {self.settings.get(name)!r})"
                for name in sorted({*earlier, *self.settings})
                if earlier.get(name) != self.settings.get(name)
            ]
            if different:
                raise EmbeddingError(
                    f"{self.folder} holds embeddings that differ in {', '.join(different)}: choose another output, or "
                    "replace them with --overwrite"
                )
        elif self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise EmbeddingError(f"{self.folder} holds other files: choose a new or empty folder")

    def path(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{number:06}.{self.format}"

    def has(self, number: int) -> bool:
        """Whether a part is written."""
        return self.path(number).is_file()

    def write(self, number: int, part: Part):
        """Write a part; it appears when it is complete, and behind the settings."""
        if not (self.folder / SETTINGS).is_file():
            self._write_settings()
        writer = {"parquet": _write_parquet, "safetensors": _write_safetensors, "hdf5": _write_hdf5}[self.format]
        with whole_file(self.path(number)) as scratch:
            writer(scratch, part)

    def _write_settings(self):
        with whole_file(self.folder / SETTINGS) as scratch:
            scratch.write_text(json.dumps(self.settings, indent=2) + "\n")

    def finish(self, num_parts: int):
        """Remove what killed processes left; put the parts of an HDF5 file together, and remove them, too."""
        for scratch in self._scratch_files():
            scratch.unlink()
        if self.format != "hdf5":
            return
        paths = [self.path(number) for number in range(num_parts)]
        try:
            with whole_file(self.output) as scratch:
                _merge_hdf5(scratch, paths)
        except OSError as error:
            again = "run this again" + " without --overwrite" * self.overwrite
            raise OSError(f"{self.output} cannot be put together ({error}): make room, and {again}") from error
        for part in paths:  # before the settings, by which what is left of them is known
            part.unlink()
        shutil.rmtree(self.folder)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise EmbeddingError(
            f"{path} is damaged ({error}): choose another output, or replace the embeddings with --overwrite"
        ) from error
    return settings


def _write_parquet(path: Path, part: Part):
    """Columns `words` and `embeddings`; the innermost lists have a fixed length and are read as arrays."""
    import pyarrow as pa
    from pyarrow import parquet

    dim = part.embeddings[0].shape[-1]
    flat = torch.cat([embedding.reshape(-1, dim) for embedding in part.embeddings]).numpy()  # (rows, dim)
    values: Any = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), dim)
    shapes = [embedding.shape[:-1] for embedding in part.embeddings]
    for axis in reversed(range(len(shapes[0]))):
        # Every text has as many lists at this depth as the product of its lengths above.
        lengths = [shape[axis] for shape in shapes for _ in range(int(np.prod(shape[:axis])))]
        values = pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), values)
    words = pa.array(part.texts, type=pa.list_(pa.string()))
    parquet.write_table(
        pa.table({"words": words, "embeddings": values}),
        path,
        compression="none",
        use_dictionary=["words.list.element"],
    )


def _write_safetensors(path: Path, part: Part):
    """`embeddings`: all texts behind each other along the words; `starts`: where each begins, and the end."""
    if part.pooled:
        tensors = {"embeddings": torch.stack(part.embeddings)}
    else:
        lengths = torch.tensor([embedding.shape[-2] for embedding in part.embeddings])
        starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        tensors = {"embeddings": torch.cat(part.embeddings, dim=-2), "starts": starts}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _write_hdf5(path: Path, part: Part):
    """The layout of AllenNLP's `elmo` command: a data set for each text, named by its number."""
    import h5py

    content = io.BytesIO()  # a full disk is an error where bytes are written, and a crash within HDF5
    with h5py.File(content, "w") as file:
        for number, embedding in enumerate(part.embeddings, part.first):
            file.create_dataset(str(number), data=embedding.numpy())
        file.create_dataset("texts", data=json.dumps([" ".join(words) for words in part.texts]))
    path.write_bytes(content.getbuffer())


def _merge_hdf5(path: Path, parts: list[Path]):
    import h5py

    needed = sum(part.stat().st_size for part in parts)
    if (free := shutil.disk_usage(path.parent).free) < needed:
        raise OSError(f"{path.parent} has {free:,} bytes left, and all parts together need {needed:,}")
    index: dict[str, str] = {}
    # Where a disk or a quota is full, HDF5's own writes crash the process, and those of Python's files raise an error.
    with path.open("w+b") as content, h5py.File(content, "w") as merged:
        for part in tqdm(parts, desc="putting together", unit=" parts"):
            for name, text, embedding in _read_hdf5(part):
                merged.create_dataset(name, data=embedding)
                index[text] = name
        texts = merged.create_dataset("sentence_to_index", (1,), dtype=h5py.special_dtype(vlen=str))
        texts[0] = json.dumps(index)


def _read_hdf5(part: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """The number of each text, the text and its embedding."""
    import h5py

    try:
        with h5py.File(part) as file:
            names = sorted((name for name in file if name != "texts"), key=int)
            texts = json.loads(file["texts"][()])
            yield from ((name, text, file[name][...]) for name, text in zip(names, texts, strict=True))
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise EmbeddingError(f"{part} is damaged ({error}): delete it, and run this again") from error


def read_parts(folder: str | Path) -> Iterator[Tensor]:
    """The embeddings of a folder of safetensors parts, a tensor for each text, in the order of the input."""
    from safetensors import safe_open

    for path in sorted(Path(folder).glob("part-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor("embeddings")
            if "starts" not in file.keys():  # noqa: SIM118 - no mapping
                yield from embeddings
                continue
            starts = file.get_tensor("starts").tolist()
        for start, end in itertools.pairwise(starts):
            yield embeddings[..., start:end, :]


# What of a configuration changes the layers that weights of the same names and shapes make.
SHAPE_LAYERS = (
    *("cnn_filters", "cnn_activation", "char_padding_id", "max_word_length", "use_cnn_projection"),
    *("cell_clip", "proj_clip", "use_skip_connections", "forget_bias", "initial_state"),
)


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of the weights, and of what else the model's layers depend on, that goes with the settings."""
    digest = hashlib.sha256(repr([getattr(model.config, name) for name in SHAPE_LAYERS]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fingerprint_of_tokenizer(tokenizer: ElmoTokenizer) -> str:
    """A hash of what decides how texts are split and words are spelt."""
    words = tokenizer.lm_vocab if tokenizer.word_inputs else None
    spelling = (tokenizer.max_word_length, tokenizer.char_vocab, tokenizer.word_vocab, words)
    return hashlib.sha256(repr((tokenizer.backend_tokenizer.to_str(), spelling)).encode()).hexdigest()[:16]
