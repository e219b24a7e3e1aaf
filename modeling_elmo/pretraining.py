"""Pretraining: truncated back-propagation over lanes, on one or many processes through Accelerate.

All randomness is a function of the seed and the step: the order of sentences, the negatives (the same in all
processes) and dropout (another one in each). So a run that is resumed goes on exactly as it would have.
"""

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm
from transformers import get_scheduler

from .arguments import ArgumentsError, PretrainingArguments
from .checkpoints import find_checkpoint, load_checkpoint, read_facts, save_checkpoint
from .configuration_elmo import ElmoConfig
from .data import (
    BACKWARD,
    FORWARD,
    Corpus,
    DataError,
    Lanes,
    ReadingReport,
    TypeTable,
    find_files,
    lines_of_dataset,
    read_lines,
)
from .language_model import ElmoForPreTraining
from .lstm import ElmoState
from .model_card import model_card
from .reporting import plot_curve
from .tokenization_elmo import ElmoTokenizer

CONFIGS = Path(__file__).parents[1] / "configs"
HOLD_OUT_EVERY = 50
LOG_FILE = "log.jsonl"


@dataclass
class Text:
    """What is trained on: the text to learn, the text to be judged by, and the tokenizer with the LM vocabulary."""

    train: Corpus
    validation: Corpus
    tokenizer: ElmoTokenizer

    def report(self) -> dict[str, Any]:
        """Counts for the user and the model card; rates are shares of the tokens."""
        facts: dict[str, Any] = {"vocabulary": self.tokenizer.lm_vocab_size}
        for name, corpus in (("train", self.train), ("validation", self.validation)):
            counts = np.bincount(corpus.words, minlength=len(corpus.types))
            unknown = self.tokenizer.lm_ids(corpus.types) == self.tokenizer.lm_unk_id
            cut = self.tokenizer.is_truncated(corpus.types)
            facts[name] = {
                "sentences": corpus.num_sentences,
                "tokens": len(corpus.words),
                "types": int((counts > 0).sum()),
                "unknown_rate": float(counts[unknown].sum() / max(counts.sum(), 1)),
                "truncated_rate": float(counts[cut].sum() / max(counts.sum(), 1)),
                "lines_with_invalid_utf8": corpus.report.lines_with_invalid_utf8,
                "control_characters": corpus.report.control_characters,
            }
        return facts


def read_text(args: PretrainingArguments, progress: bool) -> Text:
    """Read and count the texts that the arguments name, and get or build the vocabulary.

    Raises:
        `DataError`, `ArgumentsError`: files, data sets, tokenizers or vocabularies that cannot be used.
    """
    if args.tokenizer_name is not None and args.vocab_file is not None:
        raise ArgumentsError("give either vocab_file or tokenizer_name: the tokenizer has a vocabulary of its own")
    try:
        tokenizer = ElmoTokenizer(vocab_file=args.vocab_file)
        if args.tokenizer_name is not None:
            tokenizer = ElmoTokenizer.from_pretrained(args.tokenizer_name)
    except (OSError, ValueError) as error:
        raise ArgumentsError(f"no vocabulary could be read: {error}") from error
    split_words = str.split if args.pre_tokenized else tokenizer.split_words

    def read(files: list[str]) -> Corpus:
        report = ReadingReport()
        return Corpus.from_lines(read_lines(find_files(files), report), split_words, report, progress)

    if args.dataset_name is not None:
        lines = lines_of_dataset(args.dataset_name, args.dataset_config_name, "train", args.text_column_name)
        train = Corpus.from_lines(lines, split_words, progress=progress)
    else:
        train = read(args.train_file)
    if args.validation_file:
        validation = read(args.validation_file)
    else:
        train, validation = train.hold_out(HOLD_OUT_EVERY)
    if not tokenizer.lm_vocab_size:
        tokenizer = tokenizer.train_new_from_counts(train.counts(), args.vocab_size, args.min_frequency)
    return Text(train, validation, tokenizer)


def read_config(args: PretrainingArguments, lm_vocab_size: int) -> ElmoConfig:
    """The model configuration that the arguments name, for a vocabulary of that size.

    Raises:
        `ArgumentsError`: no such configuration, or overrides that no ELMo can have.
    """
    named = CONFIGS / f"{args.config_name}.json"
    path = named if named.is_file() else Path(args.config_name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
        raise ArgumentsError(f"no configuration {args.config_name!r}: give a config.json or one of {known}")
    try:
        config = ElmoConfig.from_json_file(path)
        if args.config_overrides:
            config.update_from_string(args.config_overrides)
        values = {**config.to_dict(), "lm_vocab_size": lm_vocab_size}
        return ElmoConfig.from_dict(values)
    except Exception as error:  # JSON, strict-dataclass and override errors have no common class
        raise ArgumentsError(f"configuration {args.config_name!r}: {str(error).splitlines()[-1].strip()}") from error


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such as a seed, a step and a process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def make_optimizer(args: PretrainingArguments, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The original's Adagrad (it has no epsilon), or AdamW."""
    if args.optim == "adagrad":
        return torch.optim.Adagrad(
            model.parameters(),
            lr=args.learning_rate,
            initial_accumulator_value=args.initial_accumulator_value,
            eps=0.0,
        )
    return torch.optim.AdamW(
        model.parameters(),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model, corpus: Corpus, tokenizer: ElmoTokenizer, num_lanes: int, steps: int
) -> dict[str, float]:
    """Loss and perplexity of each direction over a text, full softmax, state carried over the whole of each lane.

    Called by every process; each reads its own lanes. `steps` words of a lane are read at once, which does not change
    the result. Carried for long, a lane's cells may latch at the clip and spoil the mean, so the perplexity of the
    median lane stands beside it.
    """
    lanes = Lanes(corpus, min(max(num_lanes, accelerator.num_processes), corpus.num_predictions))
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    table = TypeTable(corpus, tokenizer)
    model = accelerator.unwrap_model(model)
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, lanes.num_lanes)  # forward loss, backward loss, words
    state = None
    for position in range(0, lanes.steps_per_epoch, steps):
        window = lanes.window(position, min(steps, lanes.steps_per_epoch - position), mine)
        with accelerator.autocast():
            output = model(**to_device(table.batch(window), accelerator.device), state=state)
        state = output.state
        sums[:2, mine] += output.word_losses.sum(2).float().cpu()
        sums[2, mine] += torch.from_numpy((window.targets[FORWARD] >= 0).sum(1))
    model.train(was_training)
    sums = accelerator.reduce(sums.to(accelerator.device)).double().cpu()
    losses = (sums[:2].sum(1) / sums[2].sum()).tolist()
    medians = (sums[:2] / sums[2]).median(dim=1).values.tolist()
    return {
        "eval_loss": sum(losses) / 2,
        "eval_perplexity": math.exp(sum(losses) / 2),
        "eval_forward_perplexity": math.exp(losses[FORWARD]),
        "eval_backward_perplexity": math.exp(losses[BACKWARD]),
        "eval_forward_median_lane": math.exp(medians[FORWARD]),
        "eval_backward_median_lane": math.exp(medians[BACKWARD]),
    }


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on a device, without waiting for it."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class Pretrainer:
    """One run: sets everything up from the arguments, trains, evaluates, and writes the finished folder."""

    def __init__(self, args: PretrainingArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            # Gradients are views of what is sent to the other processes: one copy of them less.
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
        self.is_main = accelerator.is_main_process
        self._prepare_output_dir()
        self.text = read_text(args, progress=self.is_main)
        self.table = TypeTable(self.text.train, self.text.tokenizer)
        self.lanes = Lanes(self.text.train, args.per_device_train_batch_size * accelerator.num_processes, args.seed)
        if self.text.train.num_predictions < self.lanes.num_lanes * args.unroll_steps:
            raise DataError(
                f"the text has {self.text.train.num_predictions:,} words to predict, fewer than one batch of "
                f"{self.lanes.num_lanes:,} lanes x {args.unroll_steps} words: give more text, or lower "
                "per_device_train_batch_size or unroll_steps"
            )
        if self.text.validation.num_predictions == 0:
            raise DataError("the validation text is empty: name another validation_file")
        self.words_per_step = self.lanes.num_lanes * args.unroll_steps * args.gradient_accumulation_steps
        self.max_steps = args.max_steps
        if self.max_steps < 0:
            words = args.num_train_epochs * self.text.train.num_predictions
            self.max_steps = max(1, math.ceil(words / self.words_per_step))

        torch.manual_seed(args.seed)
        model = ElmoForPreTraining(read_config(args, self.text.tokenizer.lm_vocab_size))
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.config = model.config
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(args, model))
        warmup = math.ceil(args.warmup_steps * (self.max_steps if args.warmup_steps < 1 else 1))
        schedule = args.lr_scheduler_type
        schedule = "constant_with_warmup" if schedule == "constant" and warmup else schedule
        self.scheduler = get_scheduler(schedule, self.optimizer.optimizer, warmup, self.max_steps)
        self.state: ElmoState | None = None
        self.step = 0
        self.generator = torch.Generator()
        self.last_evaluation: dict[str, float] = {}
        self.shown: dict[str, str] = {}

    def _prepare_output_dir(self):
        """Make sure that nothing of an earlier run is lost or mixed up with this one."""
        args, folder = self.args, self.output_dir
        self.checkpoint = None
        if args.resume_from_checkpoint is not None:
            self.checkpoint = find_checkpoint(args.resume_from_checkpoint, folder)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not args.overwrite_output_dir:
            raise ArgumentsError(
                f"{folder} is not empty: choose another output_dir, go on with --resume_from_checkpoint last, or "
                "delete what is there with --overwrite_output_dir"
            )
        self.accelerator.wait_for_everyone()
        if self.is_main:
            if args.overwrite_output_dir and folder.is_dir() and self.checkpoint is None:
                shutil.rmtree(folder)
            folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()

    def announce(self):
        """Print what will be trained on what, once."""
        if not self.is_main:
            return
        report = self.text.report()
        for name in ("train", "validation"):
            facts = report[name]
            print(
                f"{name}: {facts['sentences']:,} sentences, {facts['tokens']:,} tokens, {facts['types']:,} types, "
                f"{facts['unknown_rate']:.2%} unknown, {facts['truncated_rate']:.3%} cut at "
                f"{self.config.max_word_length - 2} bytes"
            )
            for trouble in ("lines_with_invalid_utf8", "control_characters"):
                if facts[trouble]:
                    print(f"{name}: {facts[trouble]:,} {trouble.replace('_', ' ')} (replaced)")
        sampler = self.accelerator.unwrap_model(self.model).sampler
        softmax = f"sampled softmax with {sampler.num_samples:,} negatives" if sampler else "full softmax"
        print(f"vocabulary: {self.config.lm_vocab_size:,} words, {softmax}")
        print(
            f"model: {sum(p.numel() for p in self.model.parameters()):,} parameters; {self.max_steps:,} steps of "
            f"{self.words_per_step:,} words on {self.accelerator.num_processes} x {self.accelerator.device.type}"
        )

    def facts(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be resumed."""
        return {
            "data": self.text.train.fingerprint,
            "lanes": self.lanes.num_lanes,
            "processes": self.accelerator.num_processes,
            "unroll_steps": self.args.unroll_steps,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "optim": self.args.optim,
            "seed": self.args.seed,
            "lm_vocab_size": self.config.lm_vocab_size,
        }

    def resume(self):
        """Go on from the checkpoint that the arguments name."""
        facts = read_facts(self.checkpoint, self.facts())
        self.state = load_checkpoint(self.accelerator, self.checkpoint, self.model, self.optimizer, self.scheduler)
        self.step = facts["step"]
        log = self.output_dir / LOG_FILE
        if self.is_main and log.is_file():
            # What was logged behind the checkpoint will be logged once more.
            lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step]
            log.write_text("".join(line + "\n" for line in lines))
        if self.is_main:
            print(f"resumed from {self.checkpoint} at step {self.step}")

    def micro_step(self, index: int) -> Tensor:
        """Forward and backward of one batch; returns both directions' losses, (2,), for the log."""
        args, accelerator = self.args, self.accelerator
        lanes = args.per_device_train_batch_size
        first = accelerator.process_index * lanes
        window = self.lanes.window(index * args.unroll_steps, args.unroll_steps, slice(first, first + lanes))
        batch = to_device(self.table.batch(window), accelerator.device)
        self.reset_lanes(index, slice(first, first + lanes))
        negatives = None
        if (sampler := accelerator.unwrap_model(self.model).sampler) is not None:
            self.generator.manual_seed(seed_of(args.seed, index))
            negatives = sampler.draw(self.generator), sampler.draw(self.generator)
        torch.manual_seed(seed_of(args.seed, index, accelerator.process_index))  # dropout
        output = self.model(**batch, state=self.state, negatives=negatives)
        self.state = ElmoState(*(tensor.detach() for tensor in output.state))
        accelerator.backward(output.loss * (args.unroll_steps if args.scale_loss_by_unroll_steps else 1))
        return torch.stack([output.forward_loss, output.backward_loss]).detach()

    def reset_lanes(self, index: int, mine: slice):
        """Set the state of some lanes to zero, as the batch's number decides."""
        probability = self.args.state_reset_probability
        if self.state is None or not probability:
            return
        self.generator.manual_seed(seed_of(self.args.seed, index, 0, 1))
        chosen = torch.rand(self.lanes.num_lanes, generator=self.generator)[mine] < probability  # (lanes,)
        chosen = chosen.to(self.accelerator.device)[:, None]
        self.state = ElmoState(*(tensor.masked_fill(chosen, 0) for tensor in self.state))

    def optimizer_step(self) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; returns the mean losses (2,) and the gradient's norm before clipping ()."""
        args, accumulation = self.args, self.args.gradient_accumulation_steps
        losses, norm = torch.zeros(2, device=self.accelerator.device), torch.zeros(())
        for micro in range(accumulation):
            with self.accelerator.accumulate(self.model):
                losses += self.micro_step(self.step * accumulation + micro) / accumulation
                if self.accelerator.sync_gradients:
                    limit = args.max_grad_norm if args.max_grad_norm > 0 else math.inf
                    norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.scheduler.step()
        self.step += 1
        return losses, norm

    def train(self) -> dict[str, float]:
        """Train to the last step, write the finished folder, and return the last evaluation."""
        if self.checkpoint is not None:
            self.resume()
        self.model.train()
        with tqdm(
            total=self.max_steps, initial=self.step, desc="training", disable=not self.is_main, mininterval=1
        ) as self.bar:
            self._train_to_the_end()
            if not self.last_evaluation:  # resumed behind the last step
                self.evaluate()
        self.accelerator.wait_for_everyone()
        if self.is_main:
            self.write_finished_folder()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.last_evaluation

    def _train_to_the_end(self):
        args = self.args
        losses, logged_at, started = torch.zeros(2, device=self.accelerator.device), self.step, time.monotonic()
        while self.step < self.max_steps:
            learning_rate = self.scheduler.get_last_lr()[0]
            step_losses, norm = self.optimizer_step()
            losses += step_losses
            self.bar.update()
            is_last = self.step == self.max_steps
            if self.step % args.logging_steps == 0 or is_last:
                seconds = time.monotonic() - started
                self.log_training(losses / (self.step - logged_at), norm, learning_rate, seconds, logged_at)
                losses, logged_at, started = torch.zeros_like(losses), self.step, time.monotonic()
            pause = time.monotonic()
            if is_last or (args.eval_steps and self.step % args.eval_steps == 0):
                self.evaluate()
            if args.save_steps and (is_last or self.step % args.save_steps == 0):
                self.save()
            started += time.monotonic() - pause  # words/s is the speed of training alone

    def log_training(self, losses: Tensor, norm: Tensor, learning_rate: float, seconds: float, since: int):
        """One line of the log: means over the steps since the last one, over all processes."""
        forward, backward = self.accelerator.reduce(losses, "mean").tolist()
        if not (math.isfinite(forward) and math.isfinite(backward)):
            raise FloatingPointError(
                f"the loss became {forward} forward and {backward} backward between steps {since} and {self.step}: "
                "lower the learning rate; nothing was saved since the last checkpoint"
            )
        speed = (self.step - since) * self.words_per_step / max(seconds, 1e-9)
        self.log(
            loss=(forward + backward) / 2,
            forward_perplexity=math.exp(forward),
            backward_perplexity=math.exp(backward),
            learning_rate=learning_rate,
            grad_norm=float(norm),
            words_per_second=speed,
        )
        self.show(words=f"{speed:,.0f}/s", fw=math.exp(forward), bw=math.exp(backward))

    def evaluate(self):
        """Perplexity of the validation text, into the log and onto the progress bar."""
        args = self.args
        values = evaluate(
            self.accelerator, self.model, self.text.validation, self.text.tokenizer, args.eval_lanes, args.unroll_steps
        )
        self.last_evaluation = values
        self.log(**values)
        self.show(val_fw=values["eval_forward_perplexity"], val_bw=values["eval_backward_perplexity"])

    def show(self, **values: float | str):
        """Set values of the progress bar's end; the others stay."""
        self.shown |= {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in values.items()}
        self.bar.set_postfix(self.shown)

    def log(self, **values: float):
        """Append a line to the log."""
        if not self.is_main:
            return
        words = self.step * self.words_per_step
        line = {"step": self.step, "epoch": round(words / self.text.train.num_predictions, 4), "words": words, **values}
        with open(self.output_dir / LOG_FILE, "a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self):
        """Write a checkpoint."""
        save_checkpoint(
            self.accelerator,
            self.output_dir,
            self.step,
            self.model,
            self.optimizer,
            self.scheduler,
            self.state,
            self.facts(),
            self.args.save_total_limit,
        )

    def write_finished_folder(self):
        """Model, tokenizer, code, model card and curve: all that sharing needs, each file whole or absent."""
        unfinished = self.output_dir / "unfinished-model"
        shutil.rmtree(unfinished, ignore_errors=True)
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(unfinished)
        self.text.tokenizer.save_pretrained(unfinished)
        parts = {"word encoder": model.elmo.word_encoder, "LSTMs": model.elmo.lstm, "softmax": model.lm_head}
        card = model_card(
            model.config,
            repo_name=self.output_dir.resolve().name,
            parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
            data={"source": self.args.dataset_name or self.args.train_file, **self.text.report()},
            recipe={**self.args.changed(), "steps": self.step, "processes": self.accelerator.num_processes},
            metrics=self.last_evaluation,
            license=self.args.license,
            language=self.args.language,
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        try:
            plot_curve(self.output_dir / LOG_FILE, unfinished / "curve.png")
        except ImportError as error:
            print(error)
        for file in unfinished.iterdir():
            file.replace(self.output_dir / file.name)
        unfinished.rmdir()
