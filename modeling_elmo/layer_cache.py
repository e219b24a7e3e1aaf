"""The layers of a frozen biLM on disk, so that a head trains on them from the second epoch on as from the first.

A text has the same layers alone, in any batch and as either part of a pair, so each distinct text is computed once and
found again by a hash of its characters.

    folder/<weights, layers and dtype>/layers.bin   (words, layers, hidden_size), text behind text
    folder/<weights, layers and dtype>/index.npz    which text lies where
"""

import hashlib
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from .commands import whole_file
from .embed import batches
from .embedding_files import fingerprint
from .evaluation_mode import evaluation_mode
from .task_layers import ElmoTaskModel, used_layers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEY_BYTES = 16
WORDS_PER_WINDOW = 2**15
WORDS_PER_BATCH = 4096


class LayerCache:
    """The layers that a model's head mixes, for texts that were added.

    Args:
        folder: shared by models: each biLM has a folder of its own in it.
        model: its biLM must be frozen.
        dtype: "float32", or "bfloat16" for half the space.

    Raises:
        ValueError: the biLM is trained, so that its layers change.
    """

    def __init__(self, folder: str | Path, model: ElmoTaskModel, dtype: str = "float32"):
        if not model.bilm_is_frozen:
            raise ValueError("features of a biLM that is trained change at every step: freeze it to cache them")
        self.model = model
        self.dtype = DTYPES[dtype]
        layers = used_layers(model.config)
        self.shape = (len(layers), model.config.hidden_size)
        self.word_bytes = math.prod(self.shape) * self.dtype.itemsize
        name = f"{fingerprint(model.elmo)}-{'_'.join(map(str, layers))}-{dtype}"
        self.folder = Path(folder, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._read_index()

    def __getstate__(self) -> dict[str, Any]:
        """For processes that load data: they look layers up where they are, and have no use for the model."""
        return {**self.__dict__, "data": None, "model": None}

    def __setstate__(self, state: dict[str, Any]):
        self.__dict__.update(state)
        self._map_data()

    def _read_index(self):
        """Take what is there. An unfinished last text of the data is beyond the index and will be written over."""
        self.places: dict[bytes, tuple[int, int]] = {}  # key -> first word, words
        absent_or_damaged = suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
        with absent_or_damaged, np.load(self.folder / "index.npz", allow_pickle=False) as index:
            lengths = index["lengths"]
            spans = zip((np.cumsum(lengths) - lengths).tolist(), lengths.tolist(), strict=True)
            self.places = dict(zip((key.tobytes() for key in index["keys"]), spans, strict=True))
        words = sum(length for _, length in self.places.values())
        file = self.folder / "layers.bin"
        if not (file.is_file() and file.stat().st_size >= words * self.word_bytes):
            self.places = {}  # somebody cut the data off: they are computed anew
        self._map_data()

    def _map_data(self):
        words = sum(length for _, length in self.places.values())
        numpy_dtype = np.dtype(np.float32 if self.dtype == torch.float32 else np.uint16)  # NumPy has no bfloat16
        if words:
            self.data = np.memmap(self.folder / "layers.bin", numpy_dtype, "r", shape=(words, *self.shape))
        else:
            self.data = np.zeros((0, *self.shape), numpy_dtype)

    @property
    def num_bytes(self) -> int:
        """Size of the layers on disk."""
        return self.data.nbytes

    def add(self, encoded: Iterable[Mapping[str, Any]], total: int | None = None):
        """Compute the layers of all texts that are not there yet.

        Args:
            encoded: batches as the model takes them, with `input_ids`, `attention_mask` and, for pairs,
                `token_type_ids`.
            total: how many examples they have, for the progress bar.
        """
        with FileLock(self.folder / "lock"):
            self._read_index()
            del self.data  # it is mapped anew below, and Windows cuts off no file that is mapped
            window: dict[bytes, np.ndarray] = {}
            words = examples = 0
            # Delayed, it is never seen where all is there already, as in all processes but one.
            with tqdm(total=total, unit=" examples", desc="layers of the biLM", delay=1) as bar:
                for batch in encoded:
                    for rows in _texts(batch):
                        for text in rows:
                            key = _key(text)
                            if key not in self.places and key not in window:
                                window[key] = text
                                words += len(text)
                    examples += len(batch["input_ids"])
                    if words >= WORDS_PER_WINDOW:
                        self._write(window)
                        bar.update(examples)
                        window, words, examples = {}, 0, 0
                self._write(window)
                if window or bar.n:
                    bar.update(examples)
            self._map_data()

    @torch.no_grad()
    def _write(self, window: dict[bytes, np.ndarray]):
        """Compute texts, those of similar length together, append them to the data and then to the index."""
        if not window:
            return
        keys = sorted(window, key=lambda key: -len(window[key]))
        end = sum(length for _, length in self.places.values())
        device = self.model.device
        data = self.folder / "layers.bin"
        with evaluation_mode(self.model), open(data, "r+b" if data.exists() else "w+b") as file:
            file.seek(end * self.word_bytes)
            for numbers in batches(list(range(len(keys))), [len(window[key]) for key in keys], WORDS_PER_BATCH):
                texts = [window[keys[number]] for number in numbers]
                ids, mask = _padded(texts)
                layers, _ = self.model.bilm_layers(ids.to(device), mask.to(device))
                for number, text, vectors in zip(numbers, texts, layers.to("cpu", self.dtype), strict=True):
                    file.write(vectors[: len(text)].contiguous().flatten().view(torch.uint8).numpy())
                    self.places[keys[number]] = (end, len(text))
                    end += len(text)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._write_index()

    def _write_index(self):
        keys = np.frombuffer(b"".join(self.places), dtype=np.uint8).reshape(-1, KEY_BYTES)
        lengths = np.array([length for _, length in self.places.values()], dtype=np.int64)
        with whole_file(self.folder / "index.npz") as scratch, open(scratch, "wb") as file:
            np.savez(file, keys=keys, lengths=lengths)

    def look_up(self, batch: Mapping[str, Any]) -> Tensor:
        """The layers of a batch that the tokenizer made.

        Args:
            batch: `input_ids` (batch, words, row_length), `attention_mask`, and `token_type_ids` for pairs.

        Returns:
            (batch, words, layers, hidden_size) in the cache's dtype, zeros at padding.

        Raises:
            KeyError: a text that was not added.
        """
        layers = np.zeros((*batch["attention_mask"].shape, *self.shape), self.data.dtype)
        for row, texts in enumerate(_texts(batch)):
            begin = 0
            for text in texts:
                start, length = self.places[_key(text)]
                layers[row, begin : begin + length] = self.data[start : start + length]
                begin += length
        found = torch.from_numpy(layers)
        return found if self.dtype == torch.float32 else found.view(self.dtype)


class CachedCollator:
    """A collator whose batches have the biLM's layers in the place of ids."""

    def __init__(self, collate: Callable[[list[Any]], Any], cache: LayerCache):
        self.collate = collate
        self.cache = cache

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        batch = dict(self.collate(examples))
        batch["hidden_states"] = self.cache.look_up(batch)
        del batch["input_ids"]
        return batch


def _texts(batch: Mapping[str, Any]) -> Iterator[list[np.ndarray]]:
    """For each row of a batch its one or two texts, each as int32 ids (words, row_length)."""
    ids = np.asarray(batch["input_ids"]).astype(np.int32)
    lengths = np.asarray(batch["attention_mask"]).sum(1)
    types = batch.get("token_type_ids")
    seconds = np.zeros_like(lengths) if types is None else np.asarray(types * batch["attention_mask"]).sum(1)
    for row, length, second in zip(ids, lengths, seconds, strict=True):
        first = length - second
        yield [text for text in (row[:first], row[first:length]) if len(text)]


def _key(text: np.ndarray) -> bytes:
    return hashlib.blake2b(text.tobytes(), digest_size=KEY_BYTES).digest()


def _padded(texts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Texts by falling length -> ids (batch, words, row_length) and mask (batch, words)."""
    ids = np.zeros((len(texts), *texts[0].shape), np.int64)
    mask = np.zeros(ids.shape[:2], np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
