"""The files of published ELMo weights: found in a folder or a zip archive, read, checked and written.

Both bilm-tf and AllenNLP (`ElmoLstm.load_weights`) read an options JSON and an HDF5 file, and the NLPL repository
(vectors.nlpl.eu/repository) ships the two with a vocabulary in a zip archive. `allennlp_format` tells what is in them.
"""

import gzip
import json
import re
import shutil
import stat
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .allennlp_format import (
    ConversionError,
    ConversionWarning,
    dataset_shapes,
    from_datasets,
    get_option,
    infer_config,
    listing,
    to_datasets,
    to_options,
)
from .configuration_elmo import ElmoConfig
from .tokenization_elmo import END_OF_LEGACY_VOCABULARY

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
VOCABULARY_NAMES = ("vocab.txt", "vocab.txt.gz")


class LegacyFiles(NamedTuple):
    """The files of a legacy model: options JSON, HDF5 weights and, optionally, vocabulary and token embeddings."""

    options: Path | None = None
    weights: Path | None = None
    vocab: Path | None = None
    token_embeddings: Path | None = None


class LegacyElmo(NamedTuple):
    """A legacy model in our terms: the parameters of an `ElmoModel` but its scalar mix, by name, in float32."""

    config: ElmoConfig
    state_dict: dict[str, Tensor]
    vocabulary: list[str] | None
    files: LegacyFiles


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def read_allennlp(files: LegacyFiles) -> LegacyElmo:
    """Read and check a legacy model; all tensors are float32, named and laid out as in `ElmoModel`.

    With `files.token_embeddings`, or options without `char_cnn`, the model looks words up in a table, one row per line
    of the vocabulary, as bilm-tf's `TokenBatcher` does.

    Raises:
        `ConversionError`: files that are missing, damaged, of another kind, or contradict each other.
    """
    if not files.options or not files.weights:
        raise ConversionError("a model has an options JSON and an HDF5 file of weights: give --options and --weights")
    options = read_json(files.options)
    use_words = bool(files.token_embeddings) or get_option(options, "char_cnn") is None
    if get_option(options, "bidirectional", True) is not True:
        raise ConversionError(
            f"{files.options}: bidirectional is {options['bidirectional']}, but ELMo needs both directions: a "
            "unidirectional language model cannot be converted"
        )
    with _open_hdf5(files.weights) as file:
        datasets = _datasets(file)
        if files.token_embeddings:
            with _open_hdf5(files.token_embeddings) as table:
                cells = {name: data for name, data in datasets.items() if name.startswith(("RNN", "rnn"))}
                datasets = cells | {name: np.asarray(data) for name, data in _datasets(table).items()}
        word_dataset = "embedding" if use_words else "char_embed"
        if word_dataset not in datasets:
            needed_by = "words, which are looked up without char_cnn in the options" if use_words else "char_cnn"
            raise ConversionError(
                f"{files.token_embeddings or files.weights} has no dataset {word_dataset!r} for {needed_by}: use the "
                "options that belong to these weights, or give a table of words with --token_embeddings"
            )
        config = infer_config({name: data.shape for name, data in datasets.items()}, options, use_words)
        values = {name: _values(name, datasets[name]) for name in dataset_shapes(config)}
    vocabulary = read_vocabulary(files.vocab) if files.vocab else None
    _check_vocabulary(config, vocabulary, None if files.token_embeddings else options.get("n_tokens_vocab"))
    return LegacyElmo(config, from_datasets(values, config), vocabulary, files)


def write_allennlp(legacy: LegacyElmo, folder: Path):
    """Write options.json, weights.hdf5 and, if there is a vocabulary, vocab.txt; the inverse of `read_allennlp`.

    Raises:
        `ConversionError`: a model that the format cannot hold.
    """
    datasets = to_datasets(legacy.state_dict, legacy.config)
    (folder / "options.json").write_text(json.dumps(to_options(legacy.config), indent=2) + "\n", encoding="utf-8")
    with _open_hdf5(folder / "weights.hdf5", "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data)
    if legacy.vocabulary is not None:
        text = "".join(f"{word}\n" for word in legacy.vocabulary)
        (folder / "vocab.txt").write_text(text, encoding="utf-8", newline="\n")


def _check_vocabulary(config: ElmoConfig, vocabulary: list[str] | None, n_tokens_vocab: int | None):
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist") from error
    except ValueError as error:  # both of UTF-8 and of JSON
        raise ConversionError(f"{path} is no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_vocabulary(path: Path) -> list[str]:
    """Words of a UTF-8 file, plain or gzipped, one a line; word k is row k of a word table and class k of the LM."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConversionError(f"{path} cannot be read as a vocabulary in UTF-8, one word a line ({error})") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return [line for line in lines if line != END_OF_LEGACY_VOCABULARY]


@contextmanager
def _open_hdf5(path: Path, mode: str = "r") -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ConversionError("HDF5 files need h5py: pip install 'modeling-elmo[convert]'") from error
    if mode == "r":
        if not path.is_file():
            raise ConversionError(f"{path} does not exist")
        with path.open("rb") as file:
            start = file.read(len(HDF5_SIGNATURE))
        if start != HDF5_SIGNATURE:
            raise ConversionError(f"{path} is no HDF5 file (it begins with {start!r}): give the real weights")
    try:
        with h5py.File(path, mode) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        if mode != "r":
            raise
        raise ConversionError(f"{path} is truncated or damaged ({error}): get it again") from error


def _datasets(file: Any) -> dict[str, Any]:
    """All datasets of an open HDF5 file by name, unread."""
    nodes: dict[str, Any] = {}
    file.visititems(nodes.__setitem__)
    datasets = {name: node for name, node in nodes.items() if hasattr(node, "shape")}
    # The trainer of bilm-tf wraps two and more layers into a MultiRNNCell, but not a single one.
    single, wrapped = re.compile(r"^(RNN_[01]/RNN)/LSTMCell/"), r"\1/MultiRNNCell/Cell0/LSTMCell/"
    return {single.sub(wrapped, name): dataset for name, dataset in datasets.items()}


def _values(name: str, dataset: Any) -> np.ndarray:
    if not np.issubdtype(dataset.dtype, np.floating):
        raise ConversionError(f"dataset {name!r} holds {dataset.dtype}, not floating-point numbers: no weights")
    if dataset.dtype != np.float32:
        text = f"dataset {name!r} holds {dataset.dtype} and was converted to float32, the format of ELMo's weights"
        warnings.warn(text, ConversionWarning, stacklevel=2)
    values = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ConversionError(f"dataset {name!r} has NaN or infinite values: these weights are damaged, get them again")
    return values


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def find_files(folder: Path, given: LegacyFiles) -> LegacyFiles:
    """Add to the files given those in a folder: options and HDF5 files by their content, the vocabulary by its name.

    Token embeddings are taken from the folder only if the options have no `char_cnn`.

    Raises:
        `ConversionError`: none or several candidates for one role, or a folder of another kind.
    """
    candidates: dict[str, list[Path]] = {"options": [], "weights": [], "token_embeddings": []}
    problems = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            if role := _role(path):
                candidates[role].append(path)
        except ConversionError as error:
            problems.append(str(error))

    def only(role: str) -> Path | None:
        if len(candidates[role]) > 1:
            names = listing(path.name for path in candidates[role])
            raise ConversionError(f"{folder} has several files of {role}: {names}. Name the right one with --{role}")
        return candidates[role][0] if candidates[role] else None

    weights, options = given.weights or only("weights"), given.options or only("options")
    if not weights or not options:
        missing = "HDF5 file of weights" if not weights else "options JSON"
        names = [path.name for path in sorted(folder.iterdir())]
        reason = None if weights else _other_format(names)
        reason = reason or " ".join([f"has no {missing}. It holds: {listing(names)}.", *problems])
        raise ConversionError(f"{folder} {reason}")
    token_embeddings = given.token_embeddings
    if not token_embeddings and get_option(read_json(options), "char_cnn") is None:
        token_embeddings = only("token_embeddings")
    vocab = given.vocab or next((folder / name for name in VOCABULARY_NAMES if (folder / name).is_file()), None)
    return LegacyFiles(options, weights, vocab, token_embeddings)


def _role(path: Path) -> str | None:
    """Which field of `LegacyFiles` a file is made for, judged by its content."""
    with path.open("rb") as file:
        start = file.read(len(HDF5_SIGNATURE))
    if start == HDF5_SIGNATURE or path.suffix in (".hdf5", ".h5"):
        with _open_hdf5(path) as file:
            names = set(file)
        if names == {"embedding"}:
            return "token_embeddings"
        return "weights" if names & {"RNN_0", "RNN_1", "RNN", "rnn", "char_embed"} else None
    if path.suffix == ".json" and path.stat().st_size < 1_000_000:  # tokenizers and corpora may be large, options never
        return "options" if {"lstm", "char_cnn"} & set(read_json(path)) else None
    return None


def _other_format(names: Iterable[str]) -> str | None:
    """What a folder or an archive with files of these names is, if it is known and not of this format."""
    names = [PurePosixPath(name).name for name in names]
    if {"encoder.pkl", "token_embedder.pkl", "char.dic"} & set(names):
        return "is an ELMoForManyLangs model that is not whole: it needs encoder.pkl, token_embedder.pkl and char.dic"
    if {"config.json", "tokenizer_config.json"} & set(names):
        return "is a transformers folder, which needs no conversion; with --to-allennlp it is converted back"
    if "checkpoint" in names or any(re.match(r"model\.ckpt.*\.(index|meta|data)", name) for name in names):
        return "is a TensorFlow checkpoint (model.ckpt-*): write HDF5 weights with bilm-tf's bin/dump_weights.py first"
    if pickles := [name for name in names if name.endswith((".pkl", ".bin", ".pt", ".pth", ".th", ".ckpt"))]:
        return f"holds pickled weights ({listing(pickles)}), which are not read: pickles can run code"
    return None


@contextmanager
def open_source(src: Path | None, given: LegacyFiles) -> Iterator[LegacyFiles]:
    """The files of a folder or of a zip archive (unpacked while the context lasts), or only those given."""
    if src is None:
        yield given
    elif src.is_dir():
        yield find_files(src, given)
    elif not src.exists():
        raise ConversionError(f"{src} does not exist; it must be a folder or a zip archive on this machine")
    elif zipfile.is_zipfile(src):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                yield find_files(_unpack(src, Path(scratch)), given)
            except ConversionError as error:
                raise ConversionError(str(error).replace(scratch, str(src))) from error
    else:
        with src.open("rb") as file:
            is_hdf5 = file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
        reason = "is neither a folder nor a zip archive: give the model's files with --options and --weights"
        raise ConversionError(f"{src} {reason if is_hdf5 else _other_format([src.name]) or reason}")


def _unpack(src: Path, scratch: Path) -> Path:
    """Unpack the model in a zip archive, such as those of the NLPL repository, and return its folder."""
    with open_archive(src) as (archive, members):
        weights = [member for member in members if archive.open(member).read(8) == HDF5_SIGNATURE]
        folders = {PurePosixPath(member.filename).parent for member in weights}
        if len(folders) != 1:
            names = [member.filename for member in weights or members]
            reason = _other_format(names) if not folders else None
            reason = reason or f"must have HDF5 weights in one folder, not in {len(folders)}: {listing(names)}"
            raise ConversionError(f"{src} {reason}")
        folder = folders.pop()
        wanted = [member for member in members if PurePosixPath(member.filename).parent == folder]
        wanted = [m for m in wanted if m in weights or m.filename.endswith((".json", *VOCABULARY_NAMES))]
        extract(archive, wanted, src, scratch)
    return scratch / folder


@contextmanager
def open_archive(src: Path) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """A zip archive and what is in it; raises a `ConversionError` if it is damaged or leaves its folder."""
    try:
        with zipfile.ZipFile(src) as archive:
            yield archive, checked_members(archive, src)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ConversionError(f"{src} is damaged or encrypted ({error}): get it again") from error


def extract(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], src: Path, scratch: Path):
    """Unpack some members; raises a `ConversionError` if they are larger than the disk has room for."""
    if sum(member.file_size for member in members) > shutil.disk_usage(scratch).free:
        raise ConversionError(f"{src} unpacks to more than the free space of {scratch}: set TMPDIR to another disk")
    archive.extractall(scratch, members=members)


def checked_members(archive: zipfile.ZipFile, src: Path) -> list[zipfile.ZipInfo]:
    """What is in an archive; raises a `ConversionError` if anything would be unpacked outside of its folder."""
    for member in archive.infolist():
        if not _is_inside(member):
            raise ConversionError(
                f"{src} has a member {member.filename!r} that is a link or points outside the folder: the "
                "archive is damaged or hostile, and nothing was unpacked"
            )
    return archive.infolist()


def _is_inside(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    return not (is_link or ".." in path.parts or path.is_absolute() or PureWindowsPath(path).drive)
