"""Command-line arguments that may also stand in a recipe: a YAML or JSON file that holds only what differs."""

import argparse
import dataclasses
import difflib
import json
import math
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from transformers import HfArgumentParser

from .commands import one_line

T = TypeVar("T")

# Those of transformers that need nothing but steps: others want a metric, or arguments of their own.
SCHEDULES = [
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
]  # fmt: skip


class ArgumentsError(ValueError):
    """A user's mistake on the command line or in a recipe; the message names it and the way out."""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it stands, those defaults that say something, and `--no_...` as the opposite of its twin."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.option_strings and action.option_strings[0].startswith("--no_"):
            return f"not: {action.help}"
        return action.help if action.default in (None, []) else super()._get_help_string(action)


def parse_arguments(dataclass_type: type[T], argv: Sequence[str] | None = None, description: str | None = None) -> T:
    """Arguments from `[RECIPE] --flag value ...`: the recipe's values replace the defaults, flags replace both.

    Raises:
        ArgumentsError: an unknown flag, a recipe that cannot be read or is not in front, a key in it that is no flag.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(
        cast(Any, dataclass_type), description=description, allow_abbrev=False, formatter_class=_Help
    )
    parser.add_argument("recipe", nargs="?", help="YAML or JSON file whose keys are the flags below")
    if argv and not argv[0].startswith("-"):
        recipe = read_recipe(argv[0])
        check_keys(recipe, dataclass_type, argv[0])
        if any(flag.split("=")[0] in ("--num_train_epochs", "--num-train-epochs") for flag in argv):
            recipe.pop("max_steps", None)  # else the recipe would win
        parser.set_defaults(**recipe)
        for action in parser._actions:
            # A value from the recipe serves where a flag would be required.
            action.required = action.required and action.dest not in recipe
    arguments, *rest, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        raise ArgumentsError(f"unknown argument {unknown[0]!r}{hint_for(unknown[0].lstrip('-'), dataclass_type)}")
    if rest and rest[0].recipe not in (None, argv[0]):
        raise ArgumentsError(f"{rest[0].recipe!r} is the value of no flag; a recipe comes before all flags")
    return arguments


def hint_for(name: str, dataclass_type: type) -> str:
    """What may have been meant by a name that is no argument."""
    close = difflib.get_close_matches(name, [item.name for item in dataclasses.fields(dataclass_type)], n=1)
    return f": did you mean {close[0]!r}?" if close else "; see --help for those that exist"


def read_recipe(path: str) -> dict[str, Any]:
    """The keys and values of a recipe file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        loader = yaml.SafeLoader(text)  # JSON is YAML too
        node: Any = loader.get_single_node()
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        recipe = None if node is None else loader.construct_document(node)
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentsError(f"cannot read the recipe {path!r}: {error}") from error
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # of dates and numbers, too
        raise ArgumentsError(f"the recipe {path!r} is not valid YAML: {one_line(error)}") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        raise ArgumentsError(f"the recipe {path!r} must hold lines of the form 'key: value'")
    if twice := [key for number, key in enumerate(keys) if key in keys[:number]]:
        raise ArgumentsError(f"the recipe {path!r} gives {twice[0]!r} more than once")
    return recipe


def check_keys(recipe: dict[str, Any], dataclass_type: type, path: str):
    """Raise an `ArgumentsError` for keys that are no argument or whose value has another type."""
    fields = {item.name: item for item in dataclasses.fields(dataclass_type)}
    for key, value in recipe.items():
        if key not in fields:
            raise ArgumentsError(f"unknown key {key!r} in the recipe {path!r}{hint_for(str(key), dataclass_type)}")
        if value is None and fields[key].default is None:  # `HfArgumentParser` takes "| None" out of most types
            continue
        kind = str(fields[key].type).removeprefix("<class '").removesuffix("'>").removesuffix(" | None")
        recipe[key] = checked_value(value, kind, f"{key} in the recipe {path!r}")
        choices = fields[key].metadata.get("choices")
        if choices and value not in choices:
            raise ArgumentsError(f"{key} in the recipe {path!r} must be one of {', '.join(choices)}, not {value!r}")


def checked_value(value: Any, kind: str, name: str) -> Any:
    """A value of a recipe as the flag would be read; an `ArgumentsError` where it has another type.

    Args:
        kind: the type, such as "float" or "list[str]".
        name: what the value is, for the message.
    """
    shown = reprlib.repr(value)  # lists that refer to lists may be short in YAML, and endless when written out
    if kind.startswith("list"):
        if not isinstance(value, list):
            raise ArgumentsError(f"{name} must be a list, not {shown}")
        return [checked_value(item, kind[len("list[") : -1], f"each of {name}") for item in value]
    if isinstance(value, list | dict):
        raise ArgumentsError(f"{name} must be a single value, not {shown}")
    if kind in ("int", "float"):
        # A quoted or exponent-only number ("1e-3" is text in YAML) is read as the flag would be.
        try:
            number = int(value) if kind == "int" else float(value)
            is_number = not isinstance(value, bool) and number == float(value)  # which NaN is not
        except (ValueError, TypeError, OverflowError):
            is_number = False
        if not is_number:
            raise ArgumentsError(f"{name} must be a number ({kind}), not {shown}")
        return number
    if kind == "bool" and not isinstance(value, bool):
        raise ArgumentsError(f"{name} must be true or false, not {value!r}")
    if kind == "str" and not isinstance(value, str):
        # YAML reads the language `no` as false, and `2024-01-01` as a date.
        raise ArgumentsError(f"{name} must be text, which YAML reads as {value!r}: put it in quotes")
    if kind == "str" and "\0" in value:
        raise ArgumentsError(f"{name} must be text without NUL, not {shown}")
    return value


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass of arguments; lists need a `field` with a `default_factory`."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class PretrainingArguments:
    """Everything that a run of `train.py` can be told. The defaults are the original's recipe."""

    output_dir: str = field(metadata={"help": "folder for the finished model, the log and the checkpoints"})
    # Text
    train_file: list[str] = field(
        default_factory=list, metadata={"help": "text files (also .gz, .bz2, .xz, .zst), .parquet files, or globs"}
    )
    validation_file: list[str] = field(
        default_factory=list,
        metadata={"help": "as train_file; default: every 50th sentence of the training text is kept out"},
    )
    dataset_name: str | None = flag(None, "instead of train_file: a data set of the Hub or a local folder of one")
    dataset_config_name: str | None = flag(None, "configuration of the data set")
    dataset_split: str = flag("train", "its split")
    streaming: bool = flag(False, "read the data set as a stream, without keeping a copy of it")
    text_column_name: str | None = flag(
        None, "column of texts in a data set or Parquet file; default: the first column of strings"
    )
    sentence_per_line: bool = flag(False, "each line is a sentence, and is to be split into words only")
    pre_tokenized: bool = flag(False, "each line is a sentence whose words are already separated by white space")
    data_cache_dir: str | None = flag(None, "where tokenised texts are kept; default: ~/.cache/modeling_elmo/corpora")
    # Model and vocabulary
    model_name_or_path: str | None = flag(None, "start from this model, its configuration and its vocabulary")
    new_vocabulary: bool = flag(False, "with model_name_or_path: a vocabulary of this text, and a fresh softmax")
    freeze_bilm_steps: int = flag(0, "train the softmax alone for so many steps at first")
    config_name: str = flag("small", "model: tiny, compact, small, medium, original, or a config.json")
    config_overrides: str | None = flag(None, "changes to it, as in 'lstm_dim=512,projection_dim=64'")
    tokenizer_name: str | None = flag(None, "folder of an ElmoTokenizer; without an LM vocabulary one is built")
    vocab_file: str | None = flag(None, "LM vocabulary, a word a line by falling frequency; default: build one")
    vocab_size: int | None = flag(None, "keep at most so many words when building the vocabulary")
    min_frequency: int = flag(1, "keep words that occur so often when building the vocabulary")
    # Batches
    per_device_train_batch_size: int = flag(128, "lanes of each process")
    unroll_steps: int = flag(20, "words of each lane in a batch: how far back-propagation reaches")
    state_reset_probability: float = flag(
        0.0, "chance of each lane in each batch to start from the zero state, in which texts are encoded later on"
    )
    gradient_accumulation_steps: int = flag(1, "batches that make one optimizer step")
    num_train_epochs: float = flag(10.0, "passes over the text, unless max_steps is given")
    max_steps: int = flag(-1, "optimizer steps; -1: as num_train_epochs says")
    # Optimizer
    optim: str = flag(
        "adagrad",
        "adagrad (the original's), adamw, or muon: Muon for the LSTMs and highways, AdamW for all else",
        choices=["adagrad", "adamw", "muon"],
    )
    learning_rate: float = flag(0.2, "its highest value")
    muon_learning_rate: float = flag(0.008, "highest value for what Muon moves, in steps of AdamW's size")
    initial_accumulator_value: float = flag(1.0, "Adagrad's sum of squares at the start")
    adam_beta1: float = flag(0.9, "AdamW's first beta")
    adam_beta2: float = flag(0.99, "AdamW's second beta")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon")
    weight_decay: float = flag(0.0, "AdamW's weight decay")
    lr_scheduler_type: str = flag("constant", f"a schedule of transformers: {', '.join(SCHEDULES)}")
    warmup_steps: float = flag(0.0, "steps in which the learning rate rises from 0; below 1: a share of all steps")
    max_grad_norm: float = flag(10.0, "global norm at which gradients are clipped; 0: never")
    unigram_bias: bool = flag(
        False, "start a new softmax's bias from the logarithm of the words' frequencies, not from 0"
    )
    scale_loss_by_unroll_steps: bool = flag(
        True, "multiply the loss by unroll_steps before the gradient, as the original"
    )
    mixed_precision: str | None = flag(
        None, "autocast to this type; default: as accelerate launch says, or no", choices=["no", "bf16", "fp16"]
    )
    gradient_checkpointing: bool = flag(False, "less memory for more time")
    seed: int = flag(42, "of the initial weights, the order of sentences, dropout and negatives")
    # Watching and keeping
    logging_steps: int = flag(50, "steps between two lines of the log")
    eval_steps: int = flag(0, "steps between two evaluations; 0: at the end only")
    eval_lanes: int = flag(16, "lanes in which the validation text is read; the perplexity depends a little on them")
    save_steps: int = flag(0, "steps between two checkpoints; 0: none, but when the run is told to stop")
    save_total_limit: int = flag(2, "checkpoints that are kept, beside the one with the lowest validation loss")
    load_best_model_at_end: bool = flag(
        False, "the finished model is the checkpoint with the lowest validation loss, not the last step's"
    )
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "trackers of Accelerate: tensorboard, wandb, ..."}
    )
    resume_from_checkpoint: str | None = flag(
        None,
        "a checkpoint folder, behind which those of output_dir are given up; 'last': the last whole one of output_dir; "
        "'auto': that, or start if there is no checkpoint at all",
    )
    resume_with_changes: bool = flag(
        False,
        "resume although text, batch, processes, rates or options of the model differ, with those of now: lanes go on "
        "where they can, and start anew if not",
    )
    overwrite_output_dir: bool = flag(False, "delete what an earlier run left in output_dir")
    # Model card and Hub
    language: str | None = flag(None, "language of the text, for the model card (as 'en')")
    license: str | None = flag(None, "licence of the model, for the model card (as 'apache-2.0')")
    push_to_hub: bool = flag(False, "upload the finished folder to the Hub")
    hub_model_id: str | None = flag(None, "its name there, as in me/my-elmo; default: that of output_dir")
    hub_private_repo: bool | None = flag(None, "make a new repository private; default: as its owner's settings say")

    def __post_init__(self):
        counts = ("per_device_train_batch_size", "unroll_steps", "gradient_accumulation_steps", "min_frequency")
        at_least = dict.fromkeys((*counts, "eval_lanes", "logging_steps", "save_total_limit"), 1)
        others = ("warmup_steps", "save_steps", "eval_steps", "freeze_bilm_steps", "max_grad_norm", "seed")
        at_least |= dict.fromkeys(others, 0)
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ArgumentsError(f"{name} must be {least} or more, not {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "num_train_epochs", "initial_accumulator_value"):
            if not getattr(self, name) > 0:
                raise ArgumentsError(f"{name} must be greater than 0, not {getattr(self, name)}")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            limit = 2**63 if isinstance(value, int) or item.name in ("num_train_epochs", "warmup_steps") else math.inf
            if isinstance(value, int | float) and not abs(value) < limit:  # a comparison with NaN is false
                raise ArgumentsError(f"{item.name} must be less than {limit:g}, not {value}")
        if self.lr_scheduler_type not in SCHEDULES:
            raise ArgumentsError(
                f"lr_scheduler_type must be one of {', '.join(SCHEDULES)}, not {self.lr_scheduler_type!r}"
            )
        if not 0 <= self.state_reset_probability <= 1:
            raise ArgumentsError(f"state_reset_probability must be in [0, 1], not {self.state_reset_probability}")
        if self.vocab_size is not None and self.vocab_size < 4:
            raise ArgumentsError(f"vocab_size counts <S>, </S> and <UNK>: it must be 4 or more, not {self.vocab_size}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ArgumentsError(f"max_steps must be 1 or more, or -1 for num_train_epochs, not {self.max_steps}")
        if bool(self.train_file) == (self.dataset_name is not None):
            raise ArgumentsError("say what to train on: either --train_file or --dataset_name")
        if self.model_name_or_path is not None and self.config_overrides is not None:
            raise ArgumentsError("config_overrides cannot change the model that model_name_or_path names")
        if self.optim == "muon" and self.mixed_precision == "fp16":
            raise ArgumentsError("muon cannot skip steps whose gradients overflowed in fp16: take mixed_precision bf16")
        fewer, more = sorted((self.eval_steps, self.save_steps))
        if self.load_best_model_at_end and (fewer == 0 or more % fewer):
            raise ArgumentsError(
                "load_best_model_at_end needs eval_steps and save_steps, one a multiple of the other, so that "
                f"checkpoints have a validation loss; they are {self.eval_steps} and {self.save_steps}"
            )
        if self.report_to == ["none"]:  # as `Trainer` calls it
            self.report_to = []
        if self.new_vocabulary and (self.vocab_file or self.tokenizer_name):
            raise ArgumentsError("give either new_vocabulary or a vocabulary (vocab_file, tokenizer_name)")

    def paths_read(self) -> list[str]:
        """What the run reads if it is on this machine: files, patterns of files and folders."""
        names = (self.dataset_name, self.model_name_or_path, self.config_name, self.tokenizer_name, self.vocab_file)
        here = [name for name in names if name and Path(name).exists()]  # others are names on the Hub
        return [*self.train_file, *self.validation_file, *here, *filter(None, [self.data_cache_dir])]

    def changed(self) -> dict[str, Any]:
        """The arguments that differ from the defaults, as JSON can hold them."""
        fields = dataclasses.fields(self)
        values = {item.name: getattr(self, item.name) for item in fields}
        defaults = {
            item.name: item.default_factory() if callable(item.default_factory) else item.default for item in fields
        }
        return json.loads(json.dumps({name: value for name, value in values.items() if value != defaults[name]}))
