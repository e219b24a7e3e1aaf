"""Which files of a folder, an archive or a checkpoint are the options, weights and vocabulary of a published ELMo.

Options and weights are known by their content, whatever they are called.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .allennlp_archive import ARCHIVED_WEIGHTS
from .allennlp_files import HDF5_SIGNATURE, LegacyFiles, begins_with, open_hdf5, read_json
from .allennlp_format import ConversionError, ConversionWarning, get_option
from .archives import is_archive, unpacked
from .commands import listing
from .tensorflow_checkpoint import index_of, is_index, last_index, read_checkpoint
from .tf_hub_module import MODULE_TABLE, is_hub_module

SAVED_MODEL = "saved_model.pb"
FASTTEXT_SIGNATURE = b"\xba\x16\x4f\x2f"  # `FASTTEXT_FILEFORMAT_MAGIC_INT32` of fasttext.cc


@contextmanager
def open_source(src: Path | None, given: LegacyFiles) -> Iterator[LegacyFiles]:
    """The files of a folder or of an archive (unpacked while the context lasts), or only those given.

    Args:
        src: a folder, a zip or tar archive, or a checkpoint: a prefix such as `folder/model.ckpt-10`, or a file of it.
        given: files that win over those found; `weights` may be such a prefix.

    Raises:
        ConversionError: none or several candidates for one role, or a source of another kind.
    """
    if given.weights:
        given = given._replace(weights=index_of(given.weights) or given.weights)
    if src is None:
        yield given
    elif src.is_dir():
        yield find_files(src, given)
    elif index := index_of(src):
        yield find_files(src.parent, given._replace(weights=given.weights or index))
    elif not src.exists():
        raise ConversionError(f"{src} does not exist; it must be a folder, an archive or a checkpoint on this machine")
    elif src.is_file() and is_archive(src):
        with unpacked(src) as folder:
            yield find_files(_model_folder(folder), given)
    else:
        reason = "is neither a folder nor an archive: give the model's files with --options and --weights"
        raise ConversionError(f"{src} {_other_format([src]) or reason}")


def find_files(folder: Path, given: LegacyFiles) -> LegacyFiles:
    """Add to the files given those in a folder: options and weights by their content, the vocabulary by its name.

    Token embeddings are taken from the folder only if the options have no `char_cnn`.
    """
    candidates: dict[str, list[Path]] = {"options": [], "weights": [], "checkpoint": [], "token_embeddings": []}
    problems = []
    paths = sorted(folder.iterdir())
    for path in paths:
        try:
            if role := _role(path):
                candidates[role].append(path)
        except ConversionError as error:
            if isinstance(error.__cause__, ImportError):  # what the file is cannot be told
                raise
            problems.append(str(error))

    def only(role: str, flag: str | None = None) -> Path | None:
        if len(candidates[role]) > 1:
            names = listing(path.name for path in candidates[role])
            raise ConversionError(
                f"{folder} has several files of {role}: {names}. Name the right one with --{flag or role}"
            )
        return candidates[role][0] if candidates[role] else None

    weights = given.weights or only("weights") or _module_index(folder)
    if candidates["checkpoint"] and not given.weights:
        if weights:
            text = f"the folder of {weights.name} has a checkpoint too, which was not read: it has the softmax, and is "
            warnings.warn(text + "chosen with --weights", ConversionWarning, stacklevel=3)
        else:
            weights = last_index(folder) or only("checkpoint", "weights")
    if not weights:
        found = f"holds no weights of a known kind, only {listing(path.name for path in paths)}"
        found = _other_format(paths) or (found if paths else "is empty")
        raise ConversionError(" ".join([f"{folder} {found}", *problems]))
    options = given.options or only("options")
    if not options and weights.name in ARCHIVED_WEIGHTS:
        options = _archived_options(weights.parent)
    if not options and is_hub_module(weights):  # it has none of its own
        return LegacyFiles(None, weights, given.vocab, given.token_embeddings)
    if not options:
        text = f"{folder} has no options JSON for {weights.name}, which tells what weights do not: the activation, the "
        raise ConversionError(" ".join([text + "clips and the length of words. Give it with --options.", *problems]))
    token_embeddings = given.token_embeddings
    if not token_embeddings and get_option(read_json(options), "char_cnn") is None:
        token_embeddings = only("token_embeddings")
    return LegacyFiles(options, weights, given.vocab or _vocabulary(paths), token_embeddings)


def _role(path: Path) -> str | None:
    """Which field of `LegacyFiles` a file is made for, judged by its content; `"checkpoint"` for the index of one."""
    if not path.is_file():
        return None
    if _is_archived(path):
        return "weights"
    if is_index(path):
        return "checkpoint"
    if begins_with(path, HDF5_SIGNATURE) or path.suffix in (".hdf5", ".h5"):
        with open_hdf5(path) as file:
            names = set(file)
        if names == {"embedding"}:
            return "token_embeddings"
        return "weights" if names & {"RNN_0", "RNN_1", "RNN", "rnn", "char_embed"} else None
    if path.suffix == ".json" and path.stat().st_size < 1_000_000:  # tokenizers and corpora may be large, options never
        return "options" if {"lstm", "char_cnn"} & set(read_json(path)) else None
    return None


def _vocabulary(paths: list[Path]) -> Path | None:
    """`vocab.txt`, or what is called like it (`vocab-2016-09-10.txt`), plain or gzipped."""
    found = [path for path in paths if re.fullmatch(r"vocab.*\.txt(\.gz)?", path.name) and path.is_file()]
    plain = [path for path in found if path.name in ("vocab.txt", "vocab.txt.gz")]
    if len(found) > 1 and not plain:
        names = listing(path.name for path in found)
        raise ConversionError(f"{found[0].parent} has several vocabularies: {names}. Name the right one with --vocab")
    return next(iter([*plain, *found]), None)


def _archived_options(folder: Path) -> Path:
    """The options of the ELMo in an AllenNLP model; its archive has the files that its config.json names in `fta`."""
    found = sorted(folder.glob("fta/*options_file"))
    if len({path.read_bytes() for path in found}) == 1:
        return found[0]
    if found:
        raise ConversionError(f"{folder} has several ELMos: {listing(path.name for path in found)}, not one")
    named = re.findall(r'"options_file":\s*"([^"]+)"', (folder / "config.json").read_text("utf-8", "replace"))
    where = f"its config.json names {listing(dict.fromkeys(named))}" if named else "its config.json names none"
    raise ConversionError(f"{folder} is an AllenNLP model without the options of an ELMo ({where}): give --options")


def _module_index(folder: Path) -> Path | None:
    """The variables of a SavedModel, which must be an ELMo's; `None` for another folder."""
    index = folder / "variables" / "variables.index"
    if not (folder / SAVED_MODEL).is_file():
        return None
    if not index.is_file():
        raise ConversionError(f"{folder} {_other_format([folder / SAVED_MODEL])}")
    if not is_hub_module(index):
        names = listing(read_checkpoint(index)) if is_index(index) else "no variables that can be read"
        raise ConversionError(f"{folder} is a SavedModel of no ELMo: it lacks {MODULE_TABLE}, and has {names}")
    return index


def _model_folder(folder: Path) -> Path:
    """The one folder with weights among all that was unpacked."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = (
        {path.parent for path in paths if _is_archived(path)},  # may have the HDF5 file that it was made from beside it
        {path.parent for path in paths if begins_with(path, HDF5_SIGNATURE)},
        {path.parent for path in paths if is_index(path) and not path.parent.with_name(SAVED_MODEL).exists()},
        {path.parent for path in paths if path.name == SAVED_MODEL},
    )
    folders = next(filter(None, kinds), set())
    names = listing(path.relative_to(folder) for path in paths)
    if len(folders) > 1:
        raise ConversionError(f"{folder} must have weights in one folder, not in {len(folders)}: {names}")
    if not folders:
        raise ConversionError(f"{folder} {_other_format(paths) or f'holds no weights of a known kind, only {names}'}")
    return folders.pop()


def _is_archived(path: Path) -> bool:
    """Whether a file is the weights of an AllenNLP model."""
    return path.name in ARCHIVED_WEIGHTS and path.with_name("config.json").is_file()


def _other_format(paths: Iterable[Path]) -> str | None:
    """What a folder or an archive with these files is, if it is known and cannot be read."""
    files = {path.name: path for path in paths if path.is_file()}
    if {SAVED_MODEL, "tfhub_module.pb"} & files.keys():
        return (
            "is a SavedModel of TensorFlow's, as on TF-Hub, that is not whole: it needs saved_model.pb, "
            "variables/variables.index and the .data files beside that"
        )
    if {"encoder.pkl", "token_embedder.pkl"} <= files.keys():
        return "is an ELMoForManyLangs model: give its folder or a zip archive of it, and no other files"
    if {"encoder.pkl", "token_embedder.pkl", "char.dic"} & files.keys():
        return "is an ELMoForManyLangs model that is not whole: it needs encoder.pkl, token_embedder.pkl and char.dic"
    if "tokenizer_config.json" in files or (
        "config.json" in files and b"model_type" in files["config.json"].read_bytes()
    ):
        return "is a transformers folder, which needs no conversion; with --to-allennlp it is converted back"
    if parts := [name for name in files if name == "checkpoint" or re.search(r"\.ckpt.*\.(meta|data)", name)]:
        return f"has a TensorFlow checkpoint that is not whole ({listing(parts)}): it needs its .index and .data files"
    if vectors := [
        name
        for name, path in files.items()
        if name.endswith((".vec", ".vec.gz")) or begins_with(path, FASTTEXT_SIGNATURE)
    ]:
        return f"holds vectors of fastText ({listing(vectors)}), which are the same in every context: no ELMo"
    if pickles := [name for name in files if name.endswith((".pkl", ".bin", ".pt", ".pth", ".th", ".ckpt"))]:
        return (
            f"holds pickled weights of no known kind ({listing(pickles)}): AllenNLP's are weights.th beside "
            "config.json, ELMoForManyLangs' encoder.pkl and token_embedder.pkl"
        )
    return None
