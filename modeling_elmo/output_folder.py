"""The folder of a run: nothing of another run is lost in it or mixed up with it, and a finished run leaves there the
model, its tokenizer, its code, its card and its curve."""

import glob
import os
import shutil
from collections.abc import Iterable
from math import exp
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file
from torch import Tensor

from .arguments import ArgumentsError, PretrainingArguments
from .checkpoints import UNFINISHED, CheckpointError, best_checkpoint, check
from .commands import LOCK_FILE, unlock
from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .model_card import count_parameters, model_card, write_card
from .reporting import plot_curve, read_log
from .tokenization_elmo import ElmoTokenizer
from .training_text import Text

LOG_FILE = "log.jsonl"
# What a killed run leaves half-done, and what every run leaves, as patterns: a folder with none of these was written by
# something else.
HALF_DONE = tuple(f"{UNFINISHED}{name}" for name in ("checkpoint-*", "old-checkpoint-*", "model", LOG_FILE))
LEFT_BY_RUNS = (LOG_FILE, "checkpoint-*/stream.safetensors", "tracker", *HALF_DONE)
# What a run that goes on, or begins where others have left such things, would delete or replace.
REPLACED = ("checkpoint-*", "config.json", "*.safetensors*", "tokenizer*", "vocab.txt", "README.md")
# Loss by which the last evaluation must be worse than the best one to be told: 2 % of the perplexity.
WORSE = 0.02


class OutputFolder:
    """A run's folder, for the main process.

    Args:
        path: the folder; it is made by `claim`.
        resumes: whether the run goes on from a checkpoint, so that what is there stays.
        overwrite: whether an earlier run may be deleted.
        read: files, patterns of files and folders that the run reads: they must not be deleted with an earlier run.
    """

    def __init__(self, path: Path, *, resumes: bool, overwrite: bool, read: Iterable[str] = ()):
        self.path = path
        self.resumes = resumes
        self.overwrite = overwrite
        self.read = tuple(read)
        self.lock = FileLock(path / LOCK_FILE)

    def claim(self):
        """Make the folder and lock it.

        Raises:
            ArgumentsError: it holds something else, another run is writing into it, or it cannot be written into; or
                it is to be overwritten and is no run's, or holds what this run reads.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ArgumentsError(f"{self.path} is a file: output_dir is a folder, so choose another name")
        found = self._files_of_other_runs()
        if found and not (self.resumes or self.overwrite):
            raise ArgumentsError(
                f"{self.path} is not empty: choose another output_dir, go on with --resume_from_checkpoint last, or "
                "delete what is there with --overwrite_output_dir"
            )
        lost = self._files(REPLACED) if self.resumes else found
        if lost and not self._files(LEFT_BY_RUNS):
            raise ArgumentsError(
                f"{self.path} has files such as {lost[0].name} but no {LOG_FILE}, so no run left them, and this one "
                "would delete or replace them: choose another output_dir, or empty the folder yourself"
            )
        if found and not self.resumes:
            self._check_that_nothing_read_is_deleted()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise ArgumentsError(f"another run is writing into {self.path}: wait for it, or choose another") from None
        except OSError as error:
            raise ArgumentsError(f"cannot write into {self.path}: {error}") from error

    def _check_that_nothing_read_is_deleted(self):
        read = [path for pattern in self.read for path in glob.glob(pattern, recursive=True) or [pattern]]
        for path in read:
            # `resolve` raises for a link that leads to itself.
            if Path(os.path.realpath(path)).is_relative_to(self.path.resolve()):
                raise ArgumentsError(
                    f"--overwrite_output_dir would delete {path}, which this run reads: choose another output_dir"
                )

    def clear(self):
        """Delete an earlier run, or what a killed one left half-done; not before all else was found in order.

        Raises:
            ArgumentsError: something cannot be deleted.
        """
        going = self._files(HALF_DONE) if self.resumes else self._files_of_other_runs()
        try:
            # The log last: by it a folder that is half cleared is still known as a run's.
            for path in sorted(going, key=lambda path: path.name == LOG_FILE):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except OSError as error:
            raise ArgumentsError(f"cannot delete what is in {self.path}: {error}") from error

    def unlock(self):
        """Let others write into it."""
        unlock(self.lock)

    def _files(self, patterns: Iterable[str]) -> list[Path]:
        return [path for pattern in patterns for path in self.path.glob(pattern)]

    def _files_of_other_runs(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.name != LOCK_FILE] if self.path.is_dir() else []


# ---------------------------------------------------------------------------------------------------------------------
# What a finished run leaves


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


def last_or_best(
    folder: Path, weights: dict[str, Tensor], metrics: dict[str, float], args: PretrainingArguments
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and metrics of the last step or of the best checkpoint; a line is printed where these differ.

    Raises:
        CheckpointError: the best checkpoint is damaged.
    """
    evaluations = {line["step"]: line for line in read_log(folder / LOG_FILE)[1] if "step" in line}
    best = best_checkpoint(folder)
    if args.load_best_model_at_end and best is not None:
        try:
            step = check(best)["step"]
        except CheckpointError as error:
            raise CheckpointError(f"{error}: delete it, and the next best one is taken") from error
        metrics = evaluations.get(step, metrics)
        print(f"the finished model is that of step {step}: validation perplexity {exp(metrics['eval_loss']):.1f}")
        return load_file(best / "model.safetensors"), metrics
    lowest = min(evaluations.values(), key=lambda line: line["eval_loss"], default=metrics)
    if metrics["eval_loss"] > lowest["eval_loss"] + WORSE:
        name = f"checkpoint-{lowest['step']}"
        resumes = named = ""
        if best is not None and best.name == name:
            resumes, named = "--resume_from_checkpoint last ", f", {name}"
        more_dropout = "" if args.model_name_or_path else "more dropout (--config_overrides dropout=0.3) or "
        print(
            f"the validation perplexity was {exp(lowest['eval_loss']):.1f} at step {lowest['step']} and is "
            f"{exp(metrics['eval_loss']):.1f} now: {more_dropout}fewer passes help, and "
            f"{resumes}--load_best_model_at_end true takes the best checkpoint{named}"
        )
    return weights, metrics


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
        weights: of the last step; with `args.load_best_model_at_end` those of the best checkpoint are written.
        facts: about the run, for the model card, beside the arguments that were changed.
        metrics: of the last evaluation.

    Raises:
        Exception: whatever writing raises, for instance because the disk is full; nothing unfinished is left.
    """
    weights, metrics = last_or_best(folder, weights, metrics, args)
    facts = {**facts, "steps": metrics.get("step", facts["steps"])}
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
        except (KeyError, TypeError, ValueError):  # no reason to lose the model
            print(f"no curve was drawn: {folder / LOG_FILE} has lines that no run wrote")
        # Nothing loads the model before its config is there.
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == "config.json"):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
