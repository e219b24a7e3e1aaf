"""The flags of the fine-tuning scripts: those of `TrainingArguments`, and those of ELMo's heads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from huggingface_hub.errors import HTTPError  # of the HTTP library that this release of huggingface_hub uses
from transformers import TrainingArguments

from .arguments import ArgumentsError, flag
from .commands import one_line
from .publish import explain
from .sharding import wants_fsdp

FEATURES = ("elmo", "layer_0", "random")


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """What transformers raises while it makes things as flags say, as an `ArgumentsError`: bad values, missing packages
    (a `RuntimeError` where they are trackers'), a Hub that is out of reach."""
    try:
        yield
    except (HTTPError, ImportError, OSError, RuntimeError, ValueError) as error:
        text = f"--push_to_hub: {explain(error)}" if isinstance(error, HTTPError) else str(error)
        raise ArgumentsError(one_line(text)) from error


@dataclass
class FinetuningArguments(TrainingArguments):
    """All flags of `TrainingArguments`, with defaults for heads on a frozen biLM, and those of ELMo's heads."""

    model_name_or_path: str | None = flag(None, "folder or Hub name of an ELMo: pretrained, converted or fine-tuned")
    features: str = flag(
        "elmo", "what the head reads: 'elmo', all layers of the biLM; the baselines 'layer_0', its words without "
        "context; 'random', words of a character CNN that was never trained", choices=FEATURES,
    )  # fmt: skip
    feature_layers: list[int] | None = field(
        default=None, metadata={"help": "the layers that the head reads, 0 for words without context; default: all"}
    )
    concat_word_vectors: bool | None = flag(
        None, "let the head read layer 0 beside the mix of all layers, as in section 3.3 of the paper; default: yes"
    )
    finetune_bilm: bool = flag(False, "train the biLM too; the paper leaves it frozen")
    bilm_learning_rate: float = flag(1e-4, "learning rate of the biLM with --finetune_bilm")
    head: str | None = flag(
        None, "'recurrent', the task model of the papers, or 'linear'; default: that of the model's config, recurrent "
        "unless it says otherwise", choices=("recurrent", "linear"),
    )  # fmt: skip
    head_dim: int | None = flag(None, "cells of each recurrent layer of the head and direction; default: the papers'")
    head_dropout: float | None = flag(None, "dropout between the layers of the head; default: 0.2")
    feature_dropout: float | None = flag(None, "dropout on the ELMo vectors; default: 0.5")
    scalar_mix_l2: float | None = flag(None, "L2 pull of the layers' weights towards their average; default: 0.001")
    scalar_mix_learning_rate: float | None = flag(None, "learning rate of the layers' weights; default: the head's")
    scalar_mix_layer_norm: bool | None = flag(None, "normalise the layers before they are mixed; default: no")
    cache_features: bool = flag(True, "keep the layers of a frozen biLM on disk instead of computing them each epoch")
    cache_dir: str | None = flag(None, "folder of that cache; default: OUTPUT_DIR/_layer_cache")
    cache_dtype: str = flag(
        "float32", "number type of that cache; bfloat16 takes half", choices=("float32", "bfloat16")
    )
    ignore_mismatched_sizes: bool = flag(
        False, "start from a model that was fine-tuned for other labels: what depends on their number is new"
    )
    overwrite_output_dir: bool = flag(False, "write into an output folder that has files in it")
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "train once with each of these, instead of --seed; several give mean and standard deviation"},
    )
    max_train_samples: int | None = flag(None, "train on the first so many examples only")
    max_eval_samples: int | None = flag(None, "evaluate on the first so many examples only")
    max_predict_samples: int | None = flag(None, "predict for the first so many examples only")

    # TrainingArguments' own, for small recurrent heads.
    do_train: bool = flag(True, "train the head")
    do_eval: bool = flag(True, "evaluate on the validation data")
    do_predict: bool = flag(True, "predict for the test data, where there are any")
    num_train_epochs: float = flag(5.0, "epochs to train")
    learning_rate: float = flag(1e-3, "peak learning rate of the head")
    warmup_steps: float = flag(0.05, "steps, or share of all steps, with a rising learning rate")
    per_device_train_batch_size: int = flag(32, "examples a step and device")
    per_device_eval_batch_size: int = flag(64, "examples a batch in evaluation")
    eval_strategy: str = flag("epoch", "when to evaluate: no, steps, epoch")
    save_strategy: str = flag("epoch", "when to save a checkpoint: no, steps, epoch, best")
    save_total_limit: int | None = flag(1, "checkpoints to keep, the best one besides")
    load_best_model_at_end: bool = flag(True, "end with the checkpoint that was best in evaluation")
    logging_steps: float = flag(50, "steps between lines of the log")
    remove_unused_columns: bool = flag(False, "not used: the collators pick their columns")
    train_sampling_strategy: str = flag(
        "random", "random, sequential or group_by_length; the last is faster, but its batches are alike"
    )
    log_level_replica: str = flag("error", "how much processes other than the main one tell")
    data_dir: str | None = flag(None, "folder with a folder of data files for each task, instead of the Hub")

    def __post_init__(self):
        self._check_flags()
        if not self.do_eval:
            self.eval_strategy = "no"
        if not self.do_train or "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else several processes would each train a model of its own
        metric, greater_is_better = self.metric_for_best_model, self.greater_is_better
        with told_in_a_line():
            super().__post_init__()
        if metric is None:  # the task's, and not the loss
            self.metric_for_best_model, self.greater_is_better = None, greater_is_better
        self.seeds = self.seeds or [self.seed]
        if self.model_name_or_path is None:
            raise ArgumentsError("--model_name_or_path is missing: the folder or Hub name of an ELMo")
        if self.output_dir is None or self.output_dir == "trainer_output":
            raise ArgumentsError("--output_dir is missing: where the model and its results go")
        if self.features != "elmo" and self.feature_layers:
            raise ArgumentsError(f"--features {self.features} has layer 0 only: leave --feature_layers out")

    def _check_flags(self):
        """Raise an `ArgumentsError` for flags of `TrainingArguments` that make no sense here, and for bad numbers."""
        from_disk = self.cache_features and not self.finetune_bilm
        adds_noise = self.neftune_noise_alpha is not None
        counts = self.include_num_input_tokens_seen not in (False, "no")
        no_ids = "layers on disk stand in for characters: add --cache_features false"
        for name, is_set, reason in (
            ("remove_unused_columns", self.remove_unused_columns, "collators need all columns"),
            ("prediction_loss_only", self.prediction_loss_only, "scores need all predictions"),
            ("batch_eval_metrics", self.batch_eval_metrics, "scores need all predictions"),
            ("eval_do_concat_batches false", not self.eval_do_concat_batches, "scores need all predictions"),
            ("include_for_metrics", self.include_for_metrics, "the scores do not look at the inputs"),
            ("fsdp", self.fsdp or wants_fsdp(), "torch shards no scalars, such as the mix's gamma: launch without it"),
            ("use_liger_kernel", self.use_liger_kernel, "Liger has no kernels for ELMo"),
            ("neftune_noise_alpha", adds_noise and from_disk, no_ids),
            ("include_num_input_tokens_seen", counts and from_disk, no_ids),
        ):
            if is_set:
                raise ArgumentsError(f"--{name} cannot be had: {reason}")
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "max_seq_length")
        steps = ("gradient_accumulation_steps", "eval_accumulation_steps")
        at_least = dict.fromkeys((*sizes, *steps, "max_train_samples", "max_eval_samples", "max_predict_samples"), 1)
        rates = ("learning_rate", "bilm_learning_rate", "scalar_mix_learning_rate")
        at_least |= dict.fromkeys((*rates, "weight_decay", "dataloader_num_workers"), 0)
        for name, least in at_least.items():
            value = getattr(self, name, None)
            if value is not None and not value >= least:
                raise ArgumentsError(f"--{name} must be {least} or more, not {value}")
        for seed in (self.seed, *self.seeds):
            if not 0 <= seed < 2**32:  # NumPy takes no others
                raise ArgumentsError(f"--seed and --seeds must be from 0 to {2**32 - 1}, not {seed}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ArgumentsError(f"--seeds {' '.join(map(str, self.seeds))}: the same seed gives the same model")

    def files(self) -> dict[str, str]:
        """The files of data that were given, by split."""
        files = {split: getattr(self, f"{split}_file") for split in ("train", "validation", "test")}
        return {split: file for split, file in files.items() if file}

    def max_samples(self) -> dict[str, int | None]:
        """How many examples of each split are used; `None` for all."""
        return {"train": self.max_train_samples, "validation": self.max_eval_samples, "test": self.max_predict_samples}

    def head_options(self) -> dict[str, Any]:
        """The fields of `ElmoConfig` that were asked for."""
        names = (
            *("head", "head_dim", "head_dropout", "feature_dropout", "feature_layers"),
            *("concat_word_vectors", "scalar_mix_l2", "scalar_mix_layer_norm"),
        )
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.features != "elmo":
            options["feature_layers"] = [0]
        return {**options, "freeze_bilm": not self.finetune_bilm}
