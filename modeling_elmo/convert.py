"""Published ELMo weights to transformers folders and back: `python -m modeling_elmo.convert SRC DST`.

    python -m modeling_elmo.convert legacy my-elmo               # folder or zip: options.json, weights.hdf5, vocab.txt
    python -m modeling_elmo.convert --options options.json --weights weights.hdf5 my-elmo
    python -m modeling_elmo.convert http://vectors.nlpl.eu/repository/11/149.zip my-elmo    # or by its address
    python -m modeling_elmo.convert zht.model my-elmo            # ELMoForManyLangs: its folder, or NLPL's zip
    python -m modeling_elmo.convert save_dir my-elmo             # bilm-tf's trainer, model.ckpt-*: with the softmax
    python -m modeling_elmo.convert elmo_3.tar.gz my-elmo        # TF-Hub: the archive or its folder
    python -m modeling_elmo.convert model.tar.gz my-elmo         # the ELMo of an AllenNLP model
    python -m modeling_elmo.convert seqvec.zip seqvec --pre_tokenizer characters    # of proteins: a letter is a word
    python -m modeling_elmo.convert --to-allennlp my-elmo back   # options.json and weights.hdf5 again, bit for bit

SRC is a folder, an archive or model.ckpt-*; DST becomes a folder for `AutoModel.from_pretrained`. Archives and files
may be addresses (http, https): they are fetched once, and kept in the cache. The functions `convert_from_allennlp`,
`convert_from_many_langs` and `convert_to_allennlp` do the same.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from .allennlp_archive import ARCHIVED_WEIGHTS, read_archived
from .allennlp_files import LegacyElmo, LegacyFiles, read_allennlp, write_allennlp
from .allennlp_format import ConversionError, ConversionWarning
from .char_rows import PADDING
from .commands import command_parser, new_folder, run_command
from .downloads import fetched, told_how_to_fetch_again
from .language_model import ElmoForPreTraining
from .loading import LoadingError, load_model, load_tokenizer
from .many_langs import WEIGHTS, ManyLangsElmo, is_many_langs, read_many_langs
from .model_card import converted_card, count_parameters, write_card
from .modeling_elmo import ElmoModel
from .penn_treebank import PRE_TOKENIZERS, pre_tokenizer_named
from .publish import PublishError, check_destination, publish
from .published_files import open_source
from .tf_hub_module import is_hub_module, read_hub_module
from .tokenization_elmo import ElmoTokenizer


def convert_from_allennlp(
    src: str | Path | None,
    dst: str | Path,
    *,
    options: str | Path | None = None,
    weights: str | Path | None = None,
    vocab: str | Path | None = None,
    token_embeddings: str | Path | None = None,
    pre_tokenizer: str | None = None,
    overwrite: bool = False,
    **card: str | None,
) -> LegacyElmo:
    """Convert published weights to a folder for `from_pretrained`: config, safetensors, tokenizer and model card.

    Files and archives may be addresses (http, https), from which they are fetched once.

    Args:
        src: a folder, an archive (zip, tar) or a TensorFlow checkpoint (`folder/model.ckpt-10`), or `None` if `options`
            and `weights` are given. Files given here win over those found in it.
        dst: the folder to write. It appears when it is complete, and not at all after an error.
        options: the JSON file.
        weights: an HDF5 file, a checkpoint or the `weights.th` of an AllenNLP model.
        vocab: the vocabulary, one word a line, plain or gzipped.
        token_embeddings: HDF5 file with a dataset `embedding` (words, projection_dim), a row per line of the
            vocabulary, which replaces the character CNN.
        pre_tokenizer: how the tokenizer is to split raw text, which the files do not tell: `"ptb"`, `"whitespace"` or
            `"characters"`. Default: that of `ElmoTokenizer`.
        overwrite: replace `dst` if it holds an earlier result.
        card: what the model card is told: `repo_name` (default: that of `dst`), `language`, `license`.

    Returns:
        What was read.

    Raises:
        ConversionError: a source that cannot be converted, or a `dst` that is in the way.
    """
    given = [fetched(path) if path else None for path in (options, weights, vocab, token_embeddings)]
    source = fetched(src) if src else None
    with _new_folder(Path(dst), [source, *given], overwrite) as folder:
        with open_source(source, LegacyFiles(*given)) as files:
            legacy = _read(files)
            tokenizer = new_tokenizer(legacy, pre_tokenizer)
        _save(legacy, tokenizer, folder)
        _write_card(legacy, [source, *legacy.files], folder, {"repo_name": Path(dst).resolve().name, **card})
    return legacy


def convert_from_many_langs(
    src: str | Path, dst: str | Path, *, pre_tokenizer: str | None = None, overwrite: bool = False, **card: str | None
) -> ManyLangsElmo:
    """Convert a folder or a zip archive of ELMoForManyLangs to a folder for `from_pretrained`.

    Args:
        src: with `token_embedder.pkl`, `encoder.pkl`, `char.dic` and, if words have vectors of their own, `word.dic`.
        dst: the folder to write, as in `convert_from_allennlp`.
        pre_tokenizer: as in `convert_from_allennlp`.
        overwrite: replace `dst` if it holds an earlier result.
        card: as in `convert_from_allennlp`.

    Returns:
        What was read.

    Raises:
        ConversionError: a source that cannot be converted, or a `dst` that is in the way.
    """
    source = fetched(src)
    with _new_folder(Path(dst), [source], overwrite) as folder:
        elmo = read_many_langs(source)
        tokenizer = ElmoTokenizer(
            pre_tokenizer=pre_tokenizer,
            max_word_length=elmo.config.max_word_length,
            char_vocab=elmo.char_vocab,
            word_vocab=elmo.word_vocab,
        )
        _save(elmo, tokenizer, folder)
        files = [source, *(source / name for name in (*WEIGHTS, "char.dic", "word.dic"))]
        _write_card(elmo, files, folder, {"repo_name": Path(dst).resolve().name, **card})
    return elmo


def _read(files: LegacyFiles) -> LegacyElmo:
    if files.weights and files.weights.name in ARCHIVED_WEIGHTS:
        return read_archived(files)
    if files.weights and is_hub_module(files.weights):
        return read_hub_module(files)
    return read_allennlp(files)


def _save(elmo: LegacyElmo | ManyLangsElmo, tokenizer: ElmoTokenizer, folder: Path):
    model: ElmoModel | ElmoForPreTraining
    prefix = ""
    if "lm_head.weight" in elmo.state_dict:
        model, prefix = ElmoForPreTraining(elmo.config), "elmo."
    else:
        model = ElmoModel(elmo.config)
    named = {name if name.startswith("lm_head.") else prefix + name: tensor for name, tensor in elmo.state_dict.items()}
    try:
        unused = model.load_state_dict(named, strict=False)
    except RuntimeError as error:  # shapes
        raise ConversionError(f"the weights contradict each other: {str(error).splitlines()[-1].strip()}") from error
    if unused.unexpected_keys or any(not name.startswith("scalar_mix.") for name in unused.missing_keys):
        raise RuntimeError(f"the converter and ElmoModel do not name the same parameters: {unused}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _parts_of(file: Path) -> list[Path]:
    """A file, and behind the index of a checkpoint those with its values."""
    return [file, *sorted(file.parent.glob(f"{file.stem}.data-*"))] if file.suffix == ".index" else [file]


def _write_card(elmo: LegacyElmo | ManyLangsElmo, files: Sequence[Path | None], folder: Path, told: dict[str, Any]):
    """README.md. Of `files` those are named that are there, once: the archive, or the files that are in no archive."""
    text = converted_card(
        elmo.config,
        parameters=count_parameters(elmo.state_dict),
        source_format=elmo.source_format,
        source_files=dict.fromkeys(part for file in files if file and file.is_file() for part in _parts_of(file)),
        has_learnt_mix=any(name.startswith("scalar_mix.") for name in elmo.state_dict),
        has_vocabulary=isinstance(elmo, LegacyElmo) and elmo.vocabulary is not None,
        **told,
    )
    write_card(folder, text)


def new_tokenizer(legacy: LegacyElmo, pre_tokenizer: str | None) -> ElmoTokenizer:
    """The tokenizer of a legacy model, which splits raw text as is said."""
    config = legacy.config
    splitter = None if pre_tokenizer is None else pre_tokenizer_named(pre_tokenizer)
    try:
        return ElmoTokenizer(
            vocab=legacy.vocabulary,
            pre_tokenizer=splitter,
            max_word_length=config.max_word_length,
            word_inputs=not config.cnn_filters,
        )
    except ValueError as error:
        way_out = "correct it or give another with --vocab" + (
            ", or convert without one by giving only --options and --weights" if config.cnn_filters else ""
        )
        raise ConversionError(f"{legacy.files.vocab} is no vocabulary of an ELMo ({error}): {way_out}") from error


def convert_to_allennlp(src: str | Path, dst: str | Path, *, overwrite: bool = False) -> LegacyElmo:
    """Convert a folder of `save_pretrained` to the legacy format: options.json, weights.hdf5 and, if known, vocab.txt.

    Any ELMo model will do; of a model with a head, the biLM is written. Scalar mix, softmax and heads have no place in
    the format.

    Args:
        src: a folder that `ElmoModel.from_pretrained` loads.
        dst: the folder to write, as in `convert_from_allennlp`.
        overwrite: replace `dst` if it holds an earlier result.

    Returns:
        What was written.

    Raises:
        ConversionError: a source that cannot be converted, or a `dst` that is in the way.
    """
    source = Path(src)
    with _new_folder(Path(dst), [source], overwrite) as folder:
        legacy = read_transformers(source)
        write_allennlp(legacy, folder)
    return legacy


def read_transformers(src: Path) -> LegacyElmo:
    """Config, biLM parameters and vocabulary of a folder of `save_pretrained`."""
    if not (src / "config.json").is_file():
        raise ConversionError(f"{src} is no transformers folder on this machine: it has no config.json")
    try:
        model, _ = load_model(ElmoModel, str(src), dtype=torch.float32, use_safetensors=True)
    except LoadingError as error:
        raise ConversionError(str(error)) from error
    if model.config.char_padding_id != PADDING:
        raise ConversionError(f"{src} spells words by dictionaries, for which the legacy format has no place")
    if model.config.initial_state:
        raise ConversionError(
            f"{src} begins texts in a state of its own, for which the legacy format has no place: convert the model "
            "that it was made from, or make one that begins in zeros (ElmoModel.from_pretrained(..., "
            "initial_state=False).save_pretrained)"
        )
    state_dict = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("scalar_mix.")}
    vocabulary = None
    if (src / "tokenizer_config.json").is_file():
        vocabulary = load_tokenizer(str(src)).lm_vocab or None
    return LegacyElmo(model.config, state_dict, vocabulary, LegacyFiles())


# What conversions leave in a folder, both ways.
WRITTEN = (
    *("*.py", "config.json", "model*.safetensors*", "tokenizer*.json", "vocab.txt"),
    *("*_vocab.json", "special_tokens_map.json", "README.md", "options.json", "weights.hdf5", "__pycache__"),
)


@contextmanager
def _new_folder(dst: Path, sources: Sequence[Path | None], overwrite: bool) -> Iterator[Path]:
    """`new_folder`, which may replace an earlier result if `overwrite` says so, and never holds a source."""
    dst = dst.resolve()
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        if any(source and source.resolve().is_relative_to(dst) for source in sources):
            raise ConversionError(f"{dst} holds what is to be converted: choose another folder")
        if not overwrite:
            raise ConversionError(
                f"{dst} exists and is not empty: choose another folder, or replace it with --overwrite"
            )
        others = [path.name for path in dst.iterdir() if not any(map(path.match, WRITTEN))]
        if others or not ((dst / "config.json").is_file() or (dst / "options.json").is_file()):
            has = f"it has {others[0]}" if others else "it has neither config.json nor options.json"
            raise ConversionError(
                f"{dst} does not look like an earlier result ({has}) and is not replaced: remove it yourself"
            )
    with new_folder(dst, replace=overwrite) as folder, told_how_to_fetch_again(sources):
        yield folder


# ---------------------------------------------------------------------------------------------------------------------
# Command line

FOR_THE_HUB = ("language", "license", "push", "private")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("convert", __doc__)
    parser.usage = (
        "%(prog)s [--pre_tokenizer NAME] [--overwrite] [--push ME/MY-ELMO [--private]] [--language EN]\n"
        "    [--license NAME] (SRC DST | --options FILE --weights FILE DST)\n"
        "%(prog)s [--overwrite] --to-allennlp SRC DST"
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="a folder, an archive or model.ckpt-*, and the folder to write"
    )
    parser.add_argument("--options", metavar="FILE", help="options JSON, if SRC is not given or does not tell")
    parser.add_argument("--weights", metavar="FILE", help="HDF5 or model.ckpt-*, if SRC is not given or does not tell")
    parser.add_argument("--vocab", metavar="FILE", help="vocabulary, one word a line, if it is not vocab.txt in SRC")
    parser.add_argument("--token_embeddings", metavar="FILE", help="HDF5 word table that replaces the characters")
    parser.add_argument(
        "--pre_tokenizer",
        choices=PRE_TOKENIZERS,
        help="how raw text is to be split: as in the Penn Treebank (default), at white space, or into characters",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it holds an earlier result")
    parser.add_argument("--to-allennlp", action="store_true", help="convert a transformers folder to options and HDF5")
    parser.add_argument("--language", help="for the model card: the language, as 'en'")
    parser.add_argument("--license", help="for the model card: the licence of the weights, as 'apache-2.0'")
    parser.add_argument("--push", metavar="ME/MY-ELMO", help="upload the result to this repository of the Hub, too")
    parser.add_argument("--private", action="store_true", default=None, help="with --push: a new repository is private")
    arguments = parser.parse_intermixed_args(argv)
    of_from = (*LegacyFiles._fields, "pre_tokenizer", *FOR_THE_HUB)
    if arguments.to_allennlp and any(getattr(arguments, name) for name in of_from):
        parser.error("--to-allennlp takes SRC and DST, and --overwrite")
    if arguments.push == "":
        parser.error("--push needs a name, such as me/my-elmo")
    if arguments.private and not arguments.push:
        parser.error("--private goes with --push")
    complete = arguments.options and arguments.weights
    if len(arguments.paths) > 2 or (len(arguments.paths) < 2 and not complete):
        parser.error("give SRC and DST, or --options, --weights and DST")
    return arguments


def run(arguments: argparse.Namespace):
    """Convert, tell, and publish if that was asked for."""
    src, dst = [None, *arguments.paths][-2:]
    files = {name: getattr(arguments, name) for name in LegacyFiles._fields}
    card = {"language": arguments.language, "license": arguments.license}
    if arguments.push:
        card["repo_name"] = check_destination(arguments.push)
    how = {"pre_tokenizer": arguments.pre_tokenizer, "overwrite": arguments.overwrite, **card}
    converted: LegacyElmo | ManyLangsElmo
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConversionWarning)
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        if arguments.to_allennlp:
            converted = convert_to_allennlp(src, dst, overwrite=arguments.overwrite)
        elif src is not None and not any(files.values()) and is_many_langs(fetched(src)):
            converted = convert_from_many_langs(src, dst, **how)
        else:
            converted = convert_from_allennlp(src, dst, **files, **how)
    print(summary(converted, src, dst, arguments.to_allennlp))
    if arguments.push:
        print(f"pushed {publish(dst, card['repo_name'], arguments.private)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    arguments = parse_arguments(argv)
    disable_progress_bar()
    return run_command(lambda: run(arguments), ConversionError, PublishError)


def summary(converted: LegacyElmo | ManyLangsElmo, src: str | None, dst: str, to_allennlp: bool) -> str:
    """What was read, how large it is, where it went and how to load it."""
    config, parameters = converted.config, sum(tensor.numel() for tensor in converted.state_dict.values())
    words = f"{config.num_filters} character filters, {config.num_highway_layers} highway layers"
    if isinstance(converted, ManyLangsElmo):
        kind = converted.source_format
        words = f"{len(converted.char_vocab):,} characters, {words}"
        if converted.word_vocab is not None:
            words = f"{words}, vectors of {len(converted.word_vocab):,} words"
    else:
        kind = f"{converted.source_format}: {', '.join(path.name for path in converted.files if path)}"
        if config.word_vocab_size:
            words = f"a table of {config.word_vocab_size - 1} words"
    model_class = "ElmoModel"
    parts = f"{parameters:,} parameters"
    if "lm_head.weight" in converted.state_dict:
        model_class, parts = "ElmoForPreTraining", f"{parts}, a softmax of {config.lm_vocab_size:,} words among them"
    if "scalar_mix.weights" in converted.state_dict:
        parts = f"{parts}, the learnt scalar mix among them, without the task model"
    lines = [
        f"read   {src or 'the files given'} ({'transformers' if to_allennlp else kind})",
        f"model  {words}, {config.num_hidden_layers} x {config.lstm_dim} LSTM cells per direction, projected to "
        f"{config.projection_dim}: {parts}",
        f"wrote  {dst}",
    ]
    if to_allennlp:
        lines.append("       without scalar mix, softmax and task heads, which have no place in this format")
    else:
        lines.append(f"load   from modeling_elmo import {model_class}, ElmoTokenizer")
        lines.append(f"       model, tokenizer = (c.from_pretrained({dst!r}) for c in ({model_class}, ElmoTokenizer))")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
