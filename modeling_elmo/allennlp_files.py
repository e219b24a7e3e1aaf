"""The files of published ELMo weights: read, checked and written.

Both bilm-tf and AllenNLP (`ElmoLstm.load_weights`) read an options JSON and an HDF5 file, and the NLPL repository
(vectors.nlpl.eu/repository) ships the two with a vocabulary in a zip archive. bilm-tf's trainer leaves the same options
with a checkpoint of TensorFlow's, which has the softmax too. `allennlp_format` tells what is in them.
"""

import gzip
import json
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .allennlp_format import (
    ConversionError,
    ConversionWarning,
    dataset_name,
    dataset_shapes,
    from_datasets,
    from_variables,
    get_option,
    has_softmax,
    infer_config,
    to_datasets,
    to_options,
)
from .commands import listing
from .configuration_elmo import ElmoConfig
from .tensorflow_checkpoint import is_index, read_checkpoint
from .vocabulary import last_lines_count, words_of

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
GZIP_SIGNATURE = b"\x1f\x8b"
MAX_VOCABULARY = 2**30
MAX_RATIO = 100  # of a file of weights to what it unpacks to: no compression gains so much on trained weights


class LegacyFiles(NamedTuple):
    """The files of a legacy model: options JSON, weights and, optionally, vocabulary and token embeddings.

    `weights`: an HDF5 file, the index of a TensorFlow checkpoint or of a TF-Hub module, or the `weights.th` of an
        AllenNLP model.
    """

    options: Path | None = None
    weights: Path | None = None
    vocab: Path | None = None
    token_embeddings: Path | None = None

    def required(self) -> tuple[Path, Path]:
        """Options and weights; raises a `ConversionError` if one is missing."""
        if not self.options or not self.weights:
            raise ConversionError("a model has an options JSON and a file of weights: give --options and --weights")
        return self.options, self.weights


class LegacyElmo(NamedTuple):
    """A legacy model in our terms.

    `state_dict`: the parameters of an `ElmoModel`, by name, in float32; the scalar mix only if it has one. With a
        softmax, `lm_head.weight` and `lm_head.bias` of an `ElmoForPreTraining` too.
    `source_format`: what the files are, for the model card.
    """

    config: ElmoConfig
    state_dict: dict[str, Tensor]
    vocabulary: list[str] | None
    files: LegacyFiles
    source_format: str = "bilm-tf / AllenNLP"


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def read_allennlp(files: LegacyFiles) -> LegacyElmo:
    """Read and check a legacy model; all tensors are float32, named and laid out as in `ElmoModel`.

    With `files.token_embeddings`, or options without `char_cnn`, the model looks words up in a table, one row per line
    of the vocabulary, as bilm-tf's `TokenBatcher` does.

    Raises:
        ConversionError: files that are missing, damaged, of another kind, or contradict each other.
    """
    options_file, weights = files.required()
    options = read_json(options_file)
    use_words = bool(files.token_embeddings) or get_option(options, "char_cnn") is None
    if get_option(options, "bidirectional", True) is not True:
        raise ConversionError(
            f"{options_file}: bidirectional is {options['bidirectional']}, but ELMo needs both directions: a "
            "unidirectional language model cannot be converted"
        )
    with _open_weights(weights) as datasets:
        if files.token_embeddings:
            if has_softmax(datasets):
                warnings.warn("the softmax was left out, for its words may be others", ConversionWarning, stacklevel=2)
            with open_hdf5(files.token_embeddings) as table:
                cells = {name: data for name, data in datasets.items() if name.startswith(("RNN", "rnn"))}
                tables = {name: data for name, data in _datasets(table).items() if name == "embedding"}
                datasets = cells | {name: checked_values(name, data) for name, data in tables.items()}
        elif get_option(options, "share_embedding_softmax") and {"embedding", "softmax/b"} <= datasets.keys():
            datasets["softmax/W"] = datasets["embedding"]
        word_dataset = "embedding" if use_words else "char_embed"
        if word_dataset not in datasets:
            needed_by = "words, which are looked up without char_cnn in the options" if use_words else "char_cnn"
            raise ConversionError(
                f"{files.token_embeddings or weights} has no dataset {word_dataset!r} for {needed_by}: use the "
                "options that belong to these weights, or give a table of words with --token_embeddings"
            )
        config = infer_config({name: data.shape for name, data in datasets.items()}, options, use_words)
        values = {name: checked_values(name, datasets[name]) for name in dataset_shapes(config, has_softmax(datasets))}
    vocabulary = read_legacy_vocabulary(files.vocab) if files.vocab else None
    if has_softmax(values):
        _check_softmax_vocabulary(config, vocabulary)
    check_vocabulary(config, vocabulary, None if files.token_embeddings else options.get("n_tokens_vocab"))
    return LegacyElmo(config, from_datasets(values, config), vocabulary, files)


def write_allennlp(legacy: LegacyElmo, folder: Path):
    """Write options.json, weights.hdf5 and, if there is a vocabulary, vocab.txt; the inverse of `read_allennlp`.

    Raises:
        ConversionError: a model that the format cannot hold.
    """
    datasets = to_datasets(legacy.state_dict, legacy.config)
    (folder / "options.json").write_text(json.dumps(to_options(legacy.config), indent=2) + "\n", encoding="utf-8")
    with open_hdf5(folder / "weights.hdf5", "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data)
    if legacy.vocabulary is not None:
        text = "".join(f"{word}\n" for word in legacy.vocabulary)
        (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")


def check_vocabulary(config: ElmoConfig, vocabulary: list[str] | None, n_tokens_vocab: int | None):
    """Compare the vocabulary with the word table and with the options, and set `config.lm_vocab_size` to its length."""
    if not config.cnn_filters:
        rows = (config.word_vocab_size or 1) - 1
        if vocabulary is None:
            raise ConversionError("a model that looks words up in a table needs their vocabulary: give it with --vocab")
        if len(vocabulary) != rows or n_tokens_vocab not in (None, rows):
            raise ConversionError(
                f"the word table has {rows} rows, the vocabulary {len(vocabulary)} lines and the options "
                f"n_tokens_vocab={n_tokens_vocab}: use the files that belong together"
            )
    if vocabulary is not None:
        if n_tokens_vocab not in (None, len(vocabulary)):
            text = f"options: n_tokens_vocab is {n_tokens_vocab}, but the vocabulary has {len(vocabulary)} lines: "
            warnings.warn(text + "the vocabulary is used", ConversionWarning, stacklevel=3)
        config.lm_vocab_size = len(vocabulary)


def _check_softmax_vocabulary(config: ElmoConfig, vocabulary: list[str] | None):
    """Insist on a word for each row of the softmax."""
    if vocabulary is None:
        text = "there is no vocabulary, so that no one knows which words the softmax predicts: give it with --vocab"
        warnings.warn(text, ConversionWarning, stacklevel=3)
    elif len(vocabulary) != config.lm_vocab_size:
        raise ConversionError(
            f"the softmax predicts {config.lm_vocab_size} words, but the vocabulary has {len(vocabulary)} lines: give "
            "the one that the model was trained with, with --vocab"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # ValueError: both of UTF-8 and of JSON
        raise ConversionError(f"{path} is no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_legacy_vocabulary(path: Path) -> list[str]:
    """Words of a UTF-8 file, plain or gzipped, one a line; word k is row k of a word table and class k of the LM. Of a
    word on several lines the last one counts, as in bilm-tf; the others keep their places under other names."""
    try:
        with (gzip.open if begins_with(path, GZIP_SIGNATURE) else open)(path, "rb") as file:
            data = file.read(MAX_VOCABULARY + 1)
        if len(data) > MAX_VOCABULARY:
            raise ConversionError(f"{path} has more than {MAX_VOCABULARY:,} bytes of text, too many for a vocabulary")
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConversionError(f"{path} cannot be read as a vocabulary in UTF-8, one word a line ({error})") from error
    words = words_of(text)
    if renamed := last_lines_count(words):
        again = words[next(iter(renamed))]
        text = f"{path.name}: {len(renamed)} words have a later line, too, which counts, as in bilm-tf; such as "
        warnings.warn(f"{text}{again!r}", ConversionWarning, stacklevel=3)
    return [renamed.get(place, word) for place, word in enumerate(words)]


@contextmanager
def _open_weights(path: Path) -> Iterator[dict[str, Any]]:
    """All datasets of an HDF5 file or of a checkpoint by name, unread."""
    if path.is_file() and is_index(path):
        variables = read_checkpoint(path)
        datasets = from_variables(variables)
        if not datasets:
            text = (
                "is a checkpoint of another model than bilm-tf's, whose variables are lm/char_embed and so on; it has"
            )
            raise ConversionError(f"{path} {text} {listing(variables)}")
        yield datasets
    else:
        with open_hdf5(path) as file:
            yield _datasets(file)


@contextmanager
def open_hdf5(path: Path, mode: str = "r") -> Iterator[Any]:
    """An HDF5 file, whose errors are told as those of a damaged file or of a full disk."""
    try:
        import h5py
    except ImportError as error:
        raise ConversionError(f"HDF5 files need h5py ({error}): pip install 'modeling-elmo[convert]'") from error
    if mode == "r":
        if not path.is_file():
            raise ConversionError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
        with path.open("rb") as file:
            start = file.read(len(HDF5_SIGNATURE))
        if start != HDF5_SIGNATURE:
            raise ConversionError(f"{path} is no HDF5 file (it begins with {start!r}): give the real weights")
    try:
        # On a full disk HDF5's own writes crash the process, and those of Python's files raise an error.
        with path.open("w+b") if mode == "w" else nullcontext(path) as source, h5py.File(source, mode) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        if mode != "r":
            raise OSError(f"{path} cannot be written ({error}): make room") from error
        raise ConversionError(f"{path} is truncated or damaged ({error}): get it again") from error


def _datasets(file: Any) -> dict[str, Any]:
    """All datasets of an open HDF5 file by name, unread; none whose values lie in other files of this machine."""
    nodes: dict[str, Any] = {}
    file.visititems(nodes.__setitem__)
    datasets = {name: node for name, node in nodes.items() if hasattr(type(node), "shape")}
    size = 0
    for name, dataset in datasets.items():
        with _errors_name(name):
            if not isinstance(name, str) or dataset.shape is None:
                raise ConversionError(f"{file.filename}: the dataset {name!r} has no name or no values: get it again")
            if dataset.external or dataset.is_virtual:
                raise ConversionError(
                    f"dataset {name!r} takes its values from other files: published weights hold their own"
                )
            size += prod(dataset.shape) * dataset.dtype.itemsize
            if not _is_written(dataset):
                raise ConversionError(f"dataset {name!r} lacks values that were never written: get the file again")
    if size > MAX_RATIO * Path(file.filename).stat().st_size:
        raise ConversionError(f"{file.filename} unpacks to {size:,} bytes, more than weights can: get it again")
    return {dataset_name(name): dataset for name, dataset in datasets.items()}


@contextmanager
def _errors_name(dataset: str) -> Iterator[None]:
    """Errors of h5py, which are of many classes, as one that names the dataset."""
    try:
        yield
    except ConversionError:
        raise
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ConversionError(f"dataset {dataset!r} cannot be read ({error}): get the file again") from error


def _is_written(dataset: Any) -> bool:
    """Whether the file has all values of a dataset: HDF5 reads zeros where nothing was written."""
    if dataset.chunks is None:
        return dataset.id.get_storage_size() > 0 or prod(dataset.shape) == 0
    needed = prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() >= needed


def checked_values(name: str, dataset: Any) -> np.ndarray:
    """The values of a dataset in float32; raises a `ConversionError` if they are no finite floating-point numbers."""
    if not np.issubdtype(dataset.dtype, np.floating):
        raise ConversionError(f"dataset {name!r} holds {dataset.dtype}, not floating-point numbers: no weights")
    if dataset.dtype != np.float32:
        text = f"dataset {name!r} holds {dataset.dtype} and was converted to float32, the format of ELMo's weights"
        warnings.warn(text, ConversionWarning, stacklevel=2)
    with _errors_name(name):
        values = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ConversionError(f"dataset {name!r} has NaN or infinite values: these weights are damaged, get them again")
    return values


def begins_with(path: Path, signature: bytes) -> bool:
    """Whether these are the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(len(signature)) == signature
