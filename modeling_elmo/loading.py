"""Models and tokenizers from folders or the Hub, for commands: whole ones, or one clear error.

`from_pretrained` makes weights that a folder lacks anew, with a warning, and libraries below it raise errors without a
common class for damaged files. A command would compute with random weights, or end in a traceback.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from .char_rows import PADDING
from .commands import one_line
from .configuration_elmo import ElmoConfig
from .modeling_elmo import ElmoModel
from .tokenization_elmo import ElmoTokenizer

# What transformers, huggingface_hub and safetensors raise for folders that are no model or a damaged one.
FAILURES = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(SafetensorError, StrictDataclassError, UnpicklingError),
)


class LoadingError(OSError):
    """A folder or Hub name without a whole ELMo; the message names what is wrong."""


class MismatchError(LoadingError):
    """A head with other sizes than the config that was asked for."""


@contextmanager
def told_as_loading_errors(name: str) -> Iterator[None]:
    """Without the libraries' own reports, and with their errors as a `LoadingError`."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except FAILURES as error:
        raise LoadingError(f"{name} has no ELMo model: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def load_config(name: str, **options: Any) -> ElmoConfig:
    """The config of an ELMo, with some fields set anew.

    Raises:
        LoadingError: none there, one of another kind of model, or with values that it cannot have.
    """
    with told_as_loading_errors(name):
        if (name.startswith((".", "~")) or Path(name).is_absolute()) and not Path(name).exists():
            raise FileNotFoundError("there is no such folder")
        model_type = ElmoConfig.get_config_dict(name)[0].get("model_type")
        if model_type != "elmo":
            raise ValueError(f"its config.json has the model_type {model_type!r}, not 'elmo'")
        return ElmoConfig.from_pretrained(name, **options)


def load_model(
    model_class: Any,
    name: str,
    needs: str = "",
    ignore_mismatched_sizes: bool = False,
    config: ElmoConfig | None = None,
    **options: Any,
) -> tuple[Any, list[str]]:
    """A model in evaluation mode, and the names of its weights that are new, since the folder has none that fit.

    Those of a scalar mix are never counted: new ones are the same each time.

    Args:
        model_class: `ElmoModel` or a class with a head.
        name: a folder or Hub name.
        needs: how the names of weights begin that must be there, such as "elmo."; all by default.
        ignore_mismatched_sizes: whether those that need not be there may be new if their sizes are not the config's.
        config: what `load_config` gave for it; read here by default.
        **options: for `from_pretrained`.

    Raises:
        LoadingError: no ELMo there, or one that is damaged, or weights that are needed are absent or of another size.
        MismatchError: others have another size.
    """
    config = config or load_config(name)
    with told_as_loading_errors(name):
        model, info = model_class.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    for weight, found, expected in sorted(info["mismatched_keys"]):
        if weight.startswith(needs) or not ignore_mismatched_sizes:
            kind = LoadingError if weight.startswith(needs) else MismatchError
            raise kind(f"{name}: {weight} has the shape {tuple(found)}, its config asks for {tuple(expected)}")
    missing = [weight for weight in sorted(info["missing_keys"]) if "scalar_mix." not in weight]
    if lost := [weight for weight in missing if weight.startswith(needs)]:
        raise LoadingError(f"{name} lacks weights ({', '.join(lost)}): make or fetch it again")
    return model, [*missing, *(weight for weight, *_ in sorted(info["mismatched_keys"]))]


def load_tokenizer(name: str) -> ElmoTokenizer:
    """The tokenizer of an ELMo.

    Raises:
        LoadingError: no ELMo there, or a tokenizer that cannot be read or spells words in another way than the model.
    """
    config = load_config(name)
    with told_as_loading_errors(name):
        try:
            tokenizer = ElmoTokenizer.from_pretrained(name)
        except Exception as error:  # the Rust tokenizer's have no class of their own
            raise ValueError(f"its tokenizer cannot be read: {error}") from error
        if wrong := spelling_mismatch(config, tokenizer):
            raise ValueError(wrong)
    if Path(name).is_dir() and not Path(name, "tokenizer_config.json").is_file():
        warnings.warn(f"{name} has no tokenizer: texts are split and words spelt as by default", stacklevel=2)
    return tokenizer


def spelling_mismatch(config: Any, tokenizer: ElmoTokenizer) -> str | None:
    """How a tokenizer spells words otherwise than a model reads them, and the way out; `None` if it does not."""
    if (config.char_padding_id == PADDING) != (tokenizer.char_vocab is None):
        return "of model and tokenizer one spells words in bytes, the other by a dictionary: is char_vocab.json there?"
    read = config.row_length if config.cnn_filters else 1
    given = 1 if tokenizer.word_inputs else tokenizer.spelling.row_length
    if read != given:
        return f"the model reads {read} ids a word, and the tokenizer gives {given}: take the model's own"
    if tokenizer.word_inputs and not 0 < tokenizer.lm_vocab_size < config.word_vocab_size:
        words = f"a table of {config.word_vocab_size - 1:,} words, and the tokenizer knows {tokenizer.lm_vocab_size:,}"
        return f"the model has {words}: put the vocab.txt that belongs to it beside tokenizer.json"
    return None


def load_encoder(name: str, dtype: torch.dtype = torch.float32) -> tuple[ElmoModel, ElmoTokenizer]:
    """Encoder, frozen and in evaluation mode, and tokenizer; of a model with a head, its biLM.

    Raises:
        LoadingError: a folder without them, or where one does not belong to the other.
    """
    tokenizer = load_tokenizer(name)
    model, _ = load_model(ElmoModel, name, dtype=dtype)
    return model.requires_grad_(False).eval(), tokenizer
