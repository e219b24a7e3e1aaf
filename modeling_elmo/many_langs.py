"""ELMoForManyLangs (Che et al. 2018, K18-2005; 44 languages and more): its folders read, checked and put in our terms.

    config.json          {"config_path": "..." the hyperparameters, a file beside it or one of the package's own}
    char.dic, word.dic   "<symbol> TAB <number>" a line; word.dic only if words have vectors of their own
    token_embedder.pkl, encoder.pkl   state dicts of torch

The biLM is that of Peters et al.; the word encoder spells by Unicode characters with a learned dictionary, and may have
a vector for each frequent word beside the character CNN (`spelling.DictionarySpelling`, `config.word_embedding_dim`).
"""

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from .allennlp_archive import read_state_dict
from .allennlp_files import read_json
from .allennlp_format import ConversionError, ConversionWarning, count_of, listing
from .archives import DAMAGES, unpacked
from .configuration_elmo import ElmoConfig
from .spelling import PAD, DictionarySpelling

WEIGHTS = ("token_embedder.pkl", "encoder.pkl")
# The hyperparameters that weights do not tell, as in both files that come with the original package. Published folders
# often name a path of the machine on which they were trained.
PUBLISHED: dict[str, Any] = {
    "encoder": {"name": "elmo", "cell_clip": 3, "proj_clip": 3},
    "token_embedder": {"name": "cnn", "activation": "relu", "max_characters_per_token": 50},
    "dropout": 0.1,
}


class ManyLangsElmo(NamedTuple):
    """A model of ELMoForManyLangs: the parameters of an `ElmoModel` but its scalar mix, and the dictionaries."""

    config: ElmoConfig
    state_dict: dict[str, Tensor]
    char_vocab: dict[str, int]
    word_vocab: dict[str, int] | None
    source_format: str = "ELMoForManyLangs"


def is_many_langs(src: Path) -> bool:
    """Whether a folder or a zip archive has the weights of such a model."""
    if src.is_dir():
        return all((src / name).is_file() for name in WEIGHTS)
    if src.is_file() and zipfile.is_zipfile(src):
        try:
            with zipfile.ZipFile(src) as archive:
                return set(WEIGHTS) <= {PurePosixPath(name).name for name in archive.namelist()}
        except (*DAMAGES, OSError, UnicodeDecodeError):
            return False
    return False


def read_many_langs(src: Path) -> ManyLangsElmo:
    """Read and check a folder, or a zip archive of one; all tensors are float32.

    Raises:
        ConversionError: files that are missing, damaged, of another kind, or contradict each other.
    """
    with _folder_of(src) as folder:
        options = _hyperparameters(folder)
        embedder, encoder = (read_state_dict(folder / name) for name in WEIGHTS)
        chars = _read_dictionary(folder / "char.dic")
        words = None
        if "word_emb_layer.embedding.weight" in embedder:
            words = _read_dictionary(folder / "word.dic")
    if "char_emb_layer.embedding.weight" not in embedder:
        raise ConversionError(f"{src} has no characters, only a table of words: such models are not supported")
    try:
        config = _config(embedder, encoder, options, chars, words)
        _check_told(config, options["told"], src)
        state_dict = {**_word_encoder(embedder, config), **_lstm(encoder, config)}
    except (LookupError, RuntimeError) as error:  # tensors that are not there or of other dimensions
        raise ConversionError(f"{src}: its weights are not whole ({error}): get it again") from error
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise ConversionError(f"{src}: {name} has NaN or infinite values: these weights are damaged")
    _check_sizes(embedder, chars, words)
    return ManyLangsElmo(config, state_dict, chars, words)


# ---------------------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def _folder_of(src: Path) -> Iterator[Path]:
    if src.is_dir():
        yield src
        return
    with unpacked(src) as scratch:
        folders = {path.parent for path in scratch.rglob(WEIGHTS[0])}
        if len(folders) != 1:
            raise ConversionError(f"{src} has {len(folders)} models in it: unpack it and convert one of them")
        yield folders.pop()


def _hyperparameters(folder: Path) -> dict[str, Any]:
    """Those of the file that config.json names, if it lies in the folder; else those of the published models."""
    named = read_json(folder / "config.json").get("config_path") if (folder / "config.json").is_file() else None
    name = PureWindowsPath(str(named)).name if named else ""  # of both kinds of paths: never one that leaves the folder
    options: Mapping[str, Any] = {}
    if name and (folder / name).is_file() and name != "config.json":
        options = read_json(folder / name)
    else:
        text = f"there is no file {name or 'with hyperparameters'}: those of the published models are taken"
        warnings.warn(text, ConversionWarning, stacklevel=3)
    merged: dict[str, Any] = {"told": options}
    for key, defaults in PUBLISHED.items():
        value = options.get(key, defaults)
        if isinstance(defaults, dict):
            if not isinstance(value, Mapping):
                raise ConversionError(f"{folder / name}: {key} must be an object, not {value!r:.60}")
            value = {**defaults, **value}
        merged[key] = value
    kinds = merged["token_embedder"]["name"], merged["encoder"]["name"]
    if kinds != ("cnn", "elmo"):
        raise ConversionError(f"{folder}: a model with token_embedder and encoder {kinds} is no ELMo: ('cnn', 'elmo')")
    return merged


def _read_dictionary(path: Path) -> dict[str, int]:
    """Symbols and their numbers from 0. White space around a line goes in the original, so its symbol may be gone."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} is not UTF-8: {error}") from error
    entries: dict[str, int] = {}
    # As codecs.open reads them: U+0085 and U+2028 end a line there, too.
    for number, line in enumerate(text.splitlines(), start=1):
        symbol, _, index = line.strip().rpartition("\t")
        if not re.fullmatch(r"\d{1,9}", index):
            raise ConversionError(f"{path}, line {number}: {line!r:.60} is no symbol with a number behind a tab")
        entries[symbol or "\u3000"] = int(index)  # the ideographic space is white space
    return entries


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def _config(
    embedder: Mapping[str, Tensor],
    encoder: Mapping[str, Tensor],
    options: Mapping[str, Any],
    chars: dict[str, int],
    words: dict[str, int] | None,
) -> ElmoConfig:
    """The configuration; every size comes from the weights."""
    shapes = {name: tensor.shape for name, tensor in {**embedder, **encoder}.items()}
    needed = ["convolutions.0.weight", "projection.weight", "forward_layer_0.state_projection.weight"]
    if missing := [name for name in needed if name not in shapes]:
        raise ConversionError(f"the weights lack {listing(missing)}: they are not those of an ELMoForManyLangs model")

    number = count_of(shapes, r"convolutions\.(\d+)\.weight")
    convolutions = [shapes[f"convolutions.{index}.weight"] for index in range(number)]
    try:
        projection_dim, lstm_dim = shapes["forward_layer_0.state_projection.weight"]
        DictionarySpelling(chars, words, options["token_embedder"]["max_characters_per_token"])
        return ElmoConfig(
            vocab_size=shapes["char_emb_layer.embedding.weight"][0] + 1,
            max_word_length=options["token_embedder"]["max_characters_per_token"],
            char_embedding_dim=shapes["char_emb_layer.embedding.weight"][1],
            cnn_filters=[[width, number] for number, _, width in convolutions],
            cnn_activation=options["token_embedder"]["activation"],
            num_highway_layers=count_of(shapes, r"highways\._layers\.(\d+)\.weight"),
            char_padding_id=chars[PAD] + 1,
            word_vocab_size=len(words) + 1 if words is not None else None,
            word_embedding_dim=shapes["word_emb_layer.embedding.weight"][1] if words is not None else None,
            num_hidden_layers=count_of(shapes, r"forward_layer_(\d+)\."),
            lstm_dim=lstm_dim,
            projection_dim=projection_dim,
            cell_clip=options["encoder"]["cell_clip"] or None,  # 0 stands for none
            proj_clip=options["encoder"]["proj_clip"] or None,
            forget_bias=0.0,  # it is in the stored biases
            dropout=options["dropout"],
        )
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConversionError(f"no ELMo can be made of these files: {error}") from error


def _check_told(config: ElmoConfig, told: Mapping[str, Any], src: Path):
    """Raise a `ConversionError` where the file of hyperparameters has other sizes than the weights.

    A damaged name among the weights would else make a smaller model.
    """
    embedder, encoder = told.get("token_embedder", {}), told.get("encoder", {})
    for name, found, wanted in (
        ("filters", config.cnn_filters, embedder.get("filters")),
        ("n_highway", config.num_highway_layers, embedder.get("n_highway")),
        ("char_dim", config.char_embedding_dim, embedder.get("char_dim")),
        ("n_layers", config.num_hidden_layers, encoder.get("n_layers")),
        ("dim", config.lstm_dim, encoder.get("dim")),
        ("projection_dim", config.projection_dim, encoder.get("projection_dim")),
    ):
        if wanted is not None and wanted != found:
            raise ConversionError(f"{src}: {name} should be {wanted}, but the weights say {found}: they are damaged")


def _word_encoder(embedder: Mapping[str, Tensor], config: ElmoConfig) -> dict[str, Tensor]:
    """Parameters of `ElmoWordEncoder`. Row 0 of both tables is the mask, which is added; zeros."""
    found = {"char_embedding.weight": _with_mask(embedder["char_emb_layer.embedding.weight"])}
    if config.word_embedding_dim is not None:
        found["word_embedding.weight"] = _with_mask(embedder["word_emb_layer.embedding.weight"])
    for index in range(len(config.cnn_filters or ())):
        for kind in ("weight", "bias"):
            found[f"convolutions.{index}.{kind}"] = embedder[f"convolutions.{index}.{kind}"]
    for index in range(config.num_highway_layers):
        # One matrix, the transform above the gate. Their gate says how much is carried, ours how much is transformed:
        # sigmoid(-x) = 1 - sigmoid(x).
        for kind in ("weight", "bias"):
            transform, gate = embedder[f"highways._layers.{index}.{kind}"].unflatten(0, (2, -1))
            found[f"highways.{index}.transform.{kind}"], found[f"highways.{index}.carry.{kind}"] = transform, -gate
    found["projection.weight"], found["projection.bias"] = embedder["projection.weight"], embedder["projection.bias"]
    return {f"word_encoder.{name}": tensor.contiguous() for name, tensor in found.items()}


def _with_mask(table: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(table[:1]), table])


def _lstm(encoder: Mapping[str, Tensor], config: ElmoConfig) -> dict[str, Tensor]:
    """Parameters of `ElmoLstm`: both directions stacked. Gates lie as ours, i, f, g, o, and nothing is transposed."""
    names = {
        "weight_ih": "input_linearity.weight",
        "weight_hh": "state_linearity.weight",
        "bias": "state_linearity.bias",
        "weight_hr": "state_projection.weight",
    }
    return {
        f"lstm.layers.{layer}.{ours}": torch.stack(
            [encoder[f"{side}_layer_{layer}.{theirs}"] for side in ("forward", "backward")]
        )
        for layer in range(config.num_hidden_layers)
        for ours, theirs in names.items()
    }


def _check_sizes(embedder: Mapping[str, Tensor], chars: dict[str, int], words: dict[str, int] | None):
    for name, entries in (("char", chars), ("word", words)):
        if entries is not None and len(entries) != len(embedder[f"{name}_emb_layer.embedding.weight"]):
            raise ConversionError(
                f"{name}.dic has {len(entries)} entries, but there are vectors for "
                f"{len(embedder[f'{name}_emb_layer.embedding.weight'])}: use the files that belong together"
            )
