"""What is left of a run: a folder with the model, its tokenizer, its code, its card and its curve."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import PretrainingArguments
from .checkpoints import UNFINISHED
from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .model_card import count_parameters, model_card, write_card
from .output_folder import LOG_FILE
from .reporting import plot_curve
from .tokenization_elmo import ElmoTokenizer
from .training_text import Text


def write_model(folder: Path, config: ElmoConfig, weights: dict[str, Tensor], tokenizer: ElmoTokenizer):
    """Weights, configuration, code and tokenizer."""
    with torch.device("meta"):  # the model that was trained may be of another class: sharded ones are
        model = ElmoForPreTraining(config)
    model.save_pretrained(folder, state_dict=dict(weights))  # transformers empties what it is given
    tokenizer.save_pretrained(folder)


def source_of(args: PretrainingArguments) -> str | list[str]:
    """The data set's name on the Hub, or where the text lay on this machine."""
    if args.dataset_name is None:
        return args.train_file
    return [args.dataset_name] if Path(args.dataset_name).exists() else args.dataset_name


def write_finished_folder(
    folder: Path,
    config: ElmoConfig,
    weights: dict[str, Tensor],
    text: Text,
    args: PretrainingArguments,
    facts: dict[str, Any],
    metrics: dict[str, float],
):
    """Write all that sharing needs into the output folder, each file whole or absent.

    Args:
        facts: about the run, for the model card, beside the arguments that were changed.
        metrics: of the last evaluation.

    Raises:
        Exception: whatever writing raises, for instance because the disk is full; nothing unfinished is left.
    """
    unfinished = folder / f"{UNFINISHED}model"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        write_model(unfinished, config, weights, text.tokenizer)
        card = model_card(
            config,
            repo_name=args.hub_model_id or folder.resolve().name,
            parameters=count_parameters(weights),
            data={"source": source_of(args), **text.report()},
            recipe={**args.changed(), **facts},
            metrics=metrics,
            license=args.license,
            language=args.language,
        )
        write_card(unfinished, card)
        try:
            plot_curve(folder / LOG_FILE, unfinished / "curve.png")
        except ImportError as error:
            print(error)
        for file in unfinished.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
