"""What is trained, and by what: the model that the arguments name, its optimizer and schedule."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from .arguments import ArgumentsError, PretrainingArguments
from .char_rows import PADDING
from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .loading import load_config, load_model
from .modeling_elmo import ElmoModel
from .muon import MuonAdamW
from .tokenization_elmo import ElmoTokenizer

CONFIGS = Path(__file__).parents[1] / "configs"


def read_config(args: PretrainingArguments, lm_vocab_size: int) -> ElmoConfig:
    """The model configuration that the arguments name, for a vocabulary of that size.

    Raises:
        ArgumentsError: no such configuration, or overrides that no ELMo can have.
    """
    named = CONFIGS / f"{args.config_name}.json"
    path = named if named.is_file() else Path(args.config_name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        others = f" or one of {known}" if known else "; those that have names are in configs/ of a clone of the project"
        raise ArgumentsError(f"no configuration {args.config_name!r}: give a config.json{others}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("model_type", ElmoConfig.model_type) != ElmoConfig.model_type:
            raise ValueError(f"it is that of another model, of type {values['model_type']!r}")
        config = ElmoConfig(**values)
        if args.config_overrides:
            config.update_from_string(args.config_overrides)
        values = {**config.to_dict(), "lm_vocab_size": lm_vocab_size}
        return ElmoConfig.from_dict(values)
    except Exception as error:  # JSON, strict-dataclass and override errors have no common class
        raise ArgumentsError(f"configuration {args.config_name!r}: {str(error).splitlines()[-1].strip()}") from error


def make_model(args: PretrainingArguments, lm_vocab_size: int) -> tuple[ElmoForPreTraining, bool]:
    """The model to train, and whether its softmax is new although its biLM is not.

    Raises:
        ArgumentsError: `model_name_or_path` or the configuration cannot be used.
    """
    path = args.model_name_or_path
    if path is None:
        return ElmoForPreTraining(read_config(args, lm_vocab_size)), False
    try:
        config = load_config(path)
        if args.new_vocabulary or args.vocab_file or args.tokenizer_name or config.lm_vocab_size is None:
            model = ElmoForPreTraining(ElmoConfig.from_dict({**config.to_dict(), "lm_vocab_size": lm_vocab_size}))
            weights = load_model(ElmoModel, path, config=config, dtype=torch.float32)[0].state_dict()
            model.elmo.load_state_dict({name: weights[name] for name in model.elmo.state_dict()})
            return model, True
        if config.lm_vocab_size != lm_vocab_size:
            raise ValueError(
                f"its softmax has {config.lm_vocab_size:,} words and its vocabulary {lm_vocab_size:,}: "
                "take --new_vocabulary"
            )
        model, new = load_model(ElmoForPreTraining, path, needs="elmo.", config=config, dtype=torch.float32)
        return model, bool(new)
    except (OSError, ValueError, KeyError) as error:
        raise ArgumentsError(f"cannot start from {path}: {error}") from error


def check_spelling(config: ElmoConfig, tokenizer: ElmoTokenizer):
    """Raise an `ArgumentsError` unless the model reads words as the tokenizer spells them, by bytes."""
    if not config.cnn_filters or config.word_embedding_dim is not None or config.char_padding_id != PADDING:
        raise ArgumentsError(
            "the model looks characters or words up in a dictionary, and train.py spells by bytes only"
        )
    if config.max_word_length != tokenizer.max_word_length:
        raise ArgumentsError(
            f"the model has max_word_length={config.max_word_length} and the tokenizer {tokenizer.max_word_length}: "
            f"make them the same, by --config_overrides max_word_length={tokenizer.max_word_length} or with a "
            "tokenizer of your own as --tokenizer_name"
        )


@torch.no_grad()
def start_from_frequencies(model: ElmoForPreTraining, frequencies: np.ndarray):
    """Let the softmax know how frequent each word is before it learns anything else.

    Else many steps go into moving the biases of rare words, whose gradients are rare, down from 0.

    Args:
        frequencies: (lm_vocab_size,) how often each word is predicted.
    """
    shares = torch.from_numpy(frequencies).clamp(min=0.5) / frequencies.sum()  # a word that never comes: half a time
    model.lm_head.bias.copy_(shares.log())


def make_optimizer(args: PretrainingArguments, model: ElmoForPreTraining) -> Optimizer:
    """The original's Adagrad (it has no epsilon), AdamW, or Muon for the matrices of LSTMs and highways and AdamW.

    Adagrad leaves a row alone whose gradient is zero, so it takes the softmax's sparse gradients as they are. AdamW is
    to get them dense: a sparse Adam, which knows the rows that a step touches only, learns worse.
    """
    if args.optim == "adagrad":
        start = args.initial_accumulator_value
        return torch.optim.Adagrad(model.parameters(), lr=args.learning_rate, initial_accumulator_value=start, eps=0.0)
    options: dict[str, Any] = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
        "fused": True,
    }
    if args.optim == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    matrices = [weight for layer in model.elmo.lstm.layers for weight in layer.parameters() if weight.ndim == 3]
    encoder = model.elmo.word_encoder
    if encoder.has_characters:
        layers = [layer for highway in encoder.highways for layer in (highway.transform, highway.carry)]
        matrices += [layer.weight for layer in [*layers, encoder.projection] if layer is not None]
    inside = {id(weight) for weight in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    muon = {"params": matrices, "muon": True, "lr": args.muon_learning_rate, "gate_dim": model.config.lstm_dim}
    muon_dtype = torch.bfloat16 if args.mixed_precision == "bf16" else torch.float32
    return MuonAdamW([{"params": others}, muon], muon_dtype=muon_dtype, **options)


def make_schedule(args: PretrainingArguments, optimizer: Optimizer, max_steps: int) -> LambdaLR:
    """The course of the learning rate over `max_steps`."""
    warmup = math.ceil(args.warmup_steps * (max_steps if args.warmup_steps < 1 else 1))
    name = "constant_with_warmup" if args.lr_scheduler_type == "constant" and warmup else args.lr_scheduler_type
    return get_scheduler(name, optimizer, warmup, max_steps)


@contextmanager
def rates_kept(optimizer: Any) -> Iterator[None]:
    """Leave rates and other numbers of an optimizer as they are while its state is loaded."""
    kept = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    yield
    for group, numbers in zip(optimizer.param_groups, kept, strict=True):
        group.update(numbers)


def load_schedule(schedule: LambdaLR, state: dict[str, Any]):
    """Put a schedule where another one was, which may have had other rates."""
    schedule.load_state_dict({**state, "base_lrs": schedule.base_lrs})
    rates = [rate * at(schedule.last_epoch) for rate, at in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
