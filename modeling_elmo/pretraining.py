"""Pretraining: truncated back-propagation over lanes, on one or many processes through Accelerate.

All randomness is a function of the seed and the step: the order of sentences, the negatives (the same in all
processes) and dropout (another one in each). So a run that is resumed goes on exactly as it would have.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, send_to_device
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from .arguments import ArgumentsError, PretrainingArguments
from .checkpoints import (
    CheckpointError,
    compare_facts,
    find_checkpoint,
    give_up_behind,
    load_checkpoint,
    read_facts,
    save_checkpoint,
)
from .commands import one_line
from .configuration_elmo import ElmoConfig
from .corpus import HELD_OUT
from .evaluation import evaluate
from .lanes import Lanes, Position
from .language_model import Negatives
from .lstm import ElmoState
from .output_folder import OutputFolder, write_finished_folder, write_model
from .processes import check_launch, on_all, on_main
from .products import is_emulated
from .read_ahead import read_ahead
from .row_gradients import clip_gradients, share_row_gradients, to_dense
from .sharding import fsdp_plugin, is_sharded, load_whole_state, prepare_sharded, whole_state
from .stopping import Stopped, StopSignals
from .text_files import DataError
from .training_log import TrainingLog
from .training_model import (
    check_spelling,
    load_schedule,
    make_model,
    make_optimizer,
    make_schedule,
    rates_kept,
    start_from_frequencies,
)
from .training_text import read_text

# Arguments that a run must keep to go on exactly.
KEPT = (
    "unroll_steps", "gradient_accumulation_steps", "optim", "seed", "learning_rate", "muon_learning_rate",
    "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_grad_norm",
    "scale_loss_by_unroll_steps", "state_reset_probability", "freeze_bilm_steps",
)  # fmt: skip
# Batches that are made while a GPU works. On a processor the model itself has all threads.
BATCHES_AHEAD = 3
MANY_UNKNOWN = 0.5  # share of a text's words from which on its vocabulary is likely to be that of another


# Arguments of the model on the host, the negatives of each direction, and the position behind the batch.
HostBatch = tuple[dict[str, Tensor], tuple[Negatives, Negatives] | None, Position]


def seed_of(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such as a seed, a step and a process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class Pretrainer:
    """One run: sets everything up from the arguments, trains, evaluates, and writes the finished folder.

    Args:
        args: everything that the run is told.

    Raises:
        ArgumentsError: what cannot be trained with.
        DataError: what cannot be trained on.
        CheckpointError: what cannot be gone on from.
    """

    def __init__(self, args: PretrainingArguments):
        self.output_dir = Path(args.output_dir)
        try:
            self.accelerator = Accelerator(
                # Else processes on a machine without a GPU would not find each other, and each train alone.
                cpu=not torch.accelerator.is_available(),
                mixed_precision=args.mixed_precision,
                # A plugin, for a bare number gives way to a variable of the environment.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=args.gradient_accumulation_steps),
                log_with=args.report_to or None,
                project_dir=args.output_dir,
                fsdp_plugin=fsdp_plugin(),
                # Gradients are views of what is sent to the other processes: one copy of them less.
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
        except (ImportError, ValueError) as error:
            raise ArgumentsError(f"Accelerate cannot be set up: {error}") from error
        if self.accelerator.mixed_precision != "no":  # as `accelerate launch` says
            args = dataclasses.replace(args, mixed_precision=self.accelerator.mixed_precision)
        self.args = args
        check_launch(self.accelerator)
        missing = set(args.report_to) - {"all", *map(str, self.accelerator.log_with)}
        if missing:
            raise ArgumentsError(
                f"report_to: {', '.join(sorted(missing))} is not installed: pip install {' '.join(sorted(missing))}"
            )
        self.is_main = self.accelerator.is_main_process
        resumes, overwrite = args.resume_from_checkpoint is not None, args.overwrite_output_dir
        self.folder = OutputFolder(self.output_dir, resumes=resumes, overwrite=overwrite, read=args.paths_read())
        on_main(self.folder.claim)
        with ExitStack() as stack:
            stack.callback(self.folder.unlock)  # if nothing comes of this run
            self._set_up()
            stack.pop_all()

    def _set_up(self):
        args = self.args
        self.checkpoint = None
        if (wanted := args.resume_from_checkpoint) is not None:
            self.checkpoint = on_main(lambda: find_checkpoint(wanted, self.output_dir))
        self.text = read_text(args)
        self._set_up_lanes()
        self._set_up_model()
        self.step = 0
        self.batches = read_ahead(self.read_batches(), 0 if self.accelerator.device.type == "cpu" else BATCHES_AHEAD)
        self.last_evaluation: dict[str, float] = {}
        self.evaluated_at = -1
        self.gradient_bytes = 0
        on_main(self.folder.clear)
        if args.report_to:
            on_all(self._start_trackers)

    def _start_trackers(self):
        try:
            self.accelerator.init_trackers("tracker", config={k: str(v) for k, v in self.args.changed().items()})
        except Exception as error:  # whatever a tracker raises that is not set up
            raise ArgumentsError(f"{', '.join(self.args.report_to)} cannot be started: {error}") from error

    def _set_up_lanes(self):
        args, processes = self.args, self.accelerator.num_processes
        train = self.text.train
        self.lanes = Lanes(train, args.per_device_train_batch_size * processes, args.seed)
        if train.num_predictions < self.lanes.num_lanes * args.unroll_steps:
            raise DataError(
                f"the text has {train.num_predictions:,} words to predict, fewer than one batch of "
                f"{self.lanes.num_lanes:,} lanes x {args.unroll_steps} words: give more text, or lower "
                "per_device_train_batch_size or unroll_steps"
            )
        first = self.accelerator.process_index * args.per_device_train_batch_size
        self.mine = range(first, first + args.per_device_train_batch_size)
        self.position = Position.at_the_end(self.lanes.num_lanes)
        self.state: ElmoState | None = None
        self.losses_to_log: Tensor | None = None
        self.words_per_step = self.lanes.num_lanes * args.unroll_steps * args.gradient_accumulation_steps
        self.words_beyond = 0  # of steps that an earlier run did with other batches
        self.max_steps = args.max_steps
        if self.max_steps < 0:
            self.max_steps = max(1, math.ceil(args.num_train_epochs * train.num_predictions / self.words_per_step))

    def _set_up_model(self):
        args, accelerator = self.args, self.accelerator
        torch.manual_seed(args.seed)
        # Folders may be there for some processes only.
        model, self.has_new_softmax = on_all(lambda: make_model(args, self.text.tokenizer.lm_vocab_size))
        on_all(lambda: check_spelling(model.config, self.text.tokenizer))
        if args.unigram_bias and (self.has_new_softmax or args.model_name_or_path is None):
            start_from_frequencies(model, self.text.frequencies())
        model.to(accelerator.device)
        if args.gradient_checkpointing:
            # Transformers 5.17 knows the older name only.
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        self.config, self.sampler = model.config, model.sampler
        self.is_sharded = is_sharded(accelerator)  # then the softmax is, too, with its gradient
        model.lm_head.sparse = self.is_sparse = model.sampler is not None and not self.is_sharded
        if self.is_sparse:
            torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns unless it is told one or the other
            names = [name for name, _ in model.named_parameters() if name.startswith("lm_head.")]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        # A filter of width 1 has a dimension of one, whose stride means nothing but makes DDP warn.
        warnings.filterwarnings("ignore", message="Grad strides do not match")
        if self.is_sharded and args.optim == "muon":
            raise ArgumentsError("muon needs whole matrices, which sharding cuts: take optim adamw or adagrad")
        prepare = prepare_sharded if self.is_sharded else Accelerator.prepare
        try:
            self.model, self.optimizer = prepare(accelerator, model, make_optimizer(args, model))
            self.schedule = make_schedule(args, self.optimizer.optimizer, self.max_steps)
        except ValueError as error:  # torch's and transformers' own checks of their options
            raise ArgumentsError(f"optimizer and schedule cannot be made: {error}") from error

    def announce(self):
        """Print what will be trained on what, once."""
        if not self.is_main:
            return
        report = self.text.report()
        for name, corpus in (("train", self.text.train), ("validation", self.text.validation)):
            facts = report[name]
            print(
                f"{name}: {facts['sentences']:,} sentences, {facts['tokens']:,} tokens, {facts['types']:,} types, "
                f"{facts['unknown_rate']:.2%} unknown, {facts['truncated_rate']:.3%} cut at "
                f"{self.config.max_word_length - 2} bytes"
            )
            if facts["unknown_rate"] > MANY_UNKNOWN:
                way_out = "; --new_vocabulary true makes one of it" if self.args.model_name_or_path else ""
                print(f"{name}: is this the vocabulary of this text? Most of its words are unknown{way_out}")
            for trouble in corpus.report.problems() if corpus.part != HELD_OUT else ():  # read with the text to learn
                print(f"{name}: {trouble}")
        softmax = f"sampled softmax with {self.sampler.num_samples:,} negatives" if self.sampler else "full softmax"
        print(f"vocabulary: {self.config.lm_vocab_size:,} words, {softmax}")
        if self.has_new_softmax:
            frozen = self.args.freeze_bilm_steps
            told = (
                f"trained alone for the first {frozen:,} steps" if frozen else "--freeze_bilm_steps N trains it first"
            )
            print(f"softmax: new, {told}")
        print(
            f"model: {sum(p.numel() for p in self.model.parameters()):,} parameters; {self.max_steps:,} steps of "
            f"{self.words_per_step:,} words on {self.accelerator.num_processes} x {self.accelerator.device.type}, "
            f"{self.max_steps * self.words_per_step / self.text.train.num_predictions:,.2f} passes over the text"
        )
        if self.args.mixed_precision == "bf16" and is_emulated(torch.bfloat16, self.accelerator.device):
            print("this processor has no products for bfloat16: --mixed_precision no is faster")

    # --- one step ---------------------------------------------------------------------------------------------------

    def read_batches(self) -> Generator[HostBatch, None, None]:
        """All batches from that on which is next when the first one is taken."""
        index = self.step * self.args.gradient_accumulation_steps
        args, position, generator = self.args, self.position, torch.Generator()
        on_gpu = self.accelerator.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.accelerator.device)  # in the thread that reads, too
        while True:
            window, position = self.lanes.read(position, args.unroll_steps, self.mine)
            batch = self.text.train_table.batch(window)
            if on_gpu:
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            negatives = None
            if self.sampler is not None:
                generator.manual_seed(seed_of(args.seed, index))
                negatives = self.sampler.draw(generator), self.sampler.draw(generator)
            yield batch, negatives, position
            index += 1

    def micro_step(self, index: int) -> Tensor:
        """Forward and backward of one batch; returns the mean loss of each direction and lane, (2, lanes)."""
        args, accelerator = self.args, self.accelerator
        host_batch, negatives, self.position = next(self.batches)
        batch = send_to_device(host_batch, accelerator.device, non_blocking=True)
        self.reset_lanes(index)
        torch.manual_seed(seed_of(args.seed, index, accelerator.process_index))  # dropout
        with accelerator.autocast():
            output = self.model(**batch, state=self.state, negatives=negatives)
        self.state = ElmoState(*(tensor.detach() for tensor in output.state))
        accelerator.backward(output.loss * (args.unroll_steps if args.scale_loss_by_unroll_steps else 1))
        return output.word_losses.detach().mean(2)

    def reset_lanes(self, index: int):
        """Let some lanes begin anew, as the batch's number decides."""
        probability = self.args.state_reset_probability
        if self.state is None or not probability:
            return
        generator = torch.Generator().manual_seed(seed_of(self.args.seed, index, 0, 1))
        chosen = torch.rand(self.lanes.num_lanes, generator=generator)[self.mine] < probability  # (lanes,)
        chosen = chosen.to(self.accelerator.device, non_blocking=True)[:, None]
        new = self.accelerator.unwrap_model(self.model).elmo.lstm.initial_state(len(chosen), self.state.hidden)
        self.state = ElmoState(*(torch.where(chosen, start, kept) for start, kept in zip(new, self.state, strict=True)))

    def finish_gradients(self) -> Tensor:
        """Share the gradients that DDP leaves alone, and clip all; returns their norm before, ()."""
        limit = self.args.max_grad_norm or math.inf
        model = self.accelerator.unwrap_model(self.model)
        if self.step < self.args.freeze_bilm_steps:
            for parameter in model.elmo.parameters():
                parameter.grad = None
        if not self.is_sparse:
            return self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        self.gradient_bytes = share_row_gradients(list(model.lm_head.parameters()))
        self.accelerator.unscale_gradients()
        norm = clip_gradients(model.parameters(), limit)
        if self.args.optim != "adagrad":
            for parameter in model.lm_head.parameters():
                parameter.grad = to_dense(parameter.grad)
        return norm

    def optimizer_step(self) -> Tensor:
        """One step of the optimizer; returns the gradient's norm before clipping, ()."""
        norm = torch.zeros(())
        accumulation = self.args.gradient_accumulation_steps
        for micro in range(accumulation):
            with self.accelerator.accumulate(self.model):
                self.log.add(self.micro_step(self.step * accumulation + micro))
                if self.accelerator.sync_gradients:
                    norm = self.finish_gradients()
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        return norm

    # --- the run ----------------------------------------------------------------------------------------------------

    def start_log(self):
        """Begin the log behind the steps that are done."""
        self.log = TrainingLog(
            self.accelerator,
            self.output_dir,
            self.step,
            self.losses_to_log,
            self.max_steps,
            self.words_per_step,
            self.text.train.num_predictions,
            self.words_beyond,
        )

    def train(self) -> dict[str, float]:
        """Train to the last step, write the finished folder, and return the last evaluation.

        Raises:
            Stopped: SIGTERM or SIGINT came; a checkpoint was saved.
            FloatingPointError: the loss is no number any more.
            CheckpointError: a checkpoint, the log or the finished model could not be read or written.
        """
        with ExitStack() as stack:
            stack.callback(self.folder.unlock)
            self.announce()
            if self.checkpoint is not None:
                self.resume()
            self.start_log()
            stack.callback(self.batches.close)
            stack.callback(self.log.bar.close)
            stops = stack.enter_context(StopSignals(self.accelerator, self.step, self.max_steps))
            self.model.train()
            while self.step < self.max_steps:
                self._step_and_look(stops)
            if not self.last_evaluation:  # resumed behind the last step
                self.evaluate()
            self.finish()
        # gloo's threads must be done with Python's objects, and DDP gone, before the process group is destroyed: its
        # destructor waits for those threads, which may wait for Python's lock.
        self.accelerator.wait_for_everyone()
        del self.model
        self.accelerator.free_memory()
        self.accelerator.end_training()
        return self.last_evaluation

    def _step_and_look(self, stops: StopSignals):
        """One step, and what is due behind it."""
        args, learning_rate = self.args, self.schedule.get_last_lr()[0]
        norm = self.optimizer_step()
        self.log.bar.update()
        is_last = self.step == self.max_steps
        told_to_stop = stops.came_by(self.step)
        logs = is_last or self.step % args.logging_steps == 0
        evaluates = is_last or (args.eval_steps and self.step % args.eval_steps == 0)
        saves = told_to_stop or (args.save_steps and (is_last or self.step % args.save_steps == 0))
        if logs or evaluates or saves:
            self.log.check(self.step, args.gradient_accumulation_steps)
        if (is_last or saves) and self.accelerator.scaler is None and not norm.isfinite():  # a scaler skips such steps
            raise FloatingPointError(
                f"the gradient of step {self.step} has a norm of {float(norm):g} although the loss is a number: lower "
                "the learning rate, and go on with --resume_from_checkpoint last --resume_with_changes"
            )
        if logs:
            self.log.training_line(self.step, learning_rate=learning_rate, **self.measures(norm))
        pause = time.monotonic()
        if evaluates:
            self.evaluate()
        if saves:
            self.save()
        self.log.pause(pause)
        if told_to_stop:
            raise Stopped(told_to_stop, self.step)

    def measures(self, norm: Tensor) -> dict[str, float]:
        """What is worth watching beside the loss."""
        assert self.state is not None
        values = {"grad_norm": float(norm)}
        if self.config.cell_clip:
            clipped = (self.state.cell.abs() >= self.config.cell_clip).float().mean()
            values["clipped_cells"] = float(self.accelerator.reduce(clipped, "mean"))
        if self.gradient_bytes:
            values["softmax_gradient_bytes"] = self.gradient_bytes
        return values

    def evaluate(self):
        """Perplexity of the validation text, into the log and onto the progress bar."""
        args, text = self.args, self.text
        values = evaluate(
            self.accelerator, self.model, text.validation, text.validation_table, args.eval_lanes, args.unroll_steps
        )
        self.last_evaluation, self.evaluated_at = values, self.step
        self.log.write(self.step, **values)
        self.log.show(val_fw=values["eval_forward_perplexity"], val_bw=values["eval_backward_perplexity"])

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on exactly."""
        config = self.config.to_dict()
        return {
            "text": self.text.train.folder.name,
            "vocabulary": self.text.vocabulary_hash(),
            "lanes": self.lanes.num_lanes,
            "processes": self.accelerator.num_processes,
            "mixed_precision": self.accelerator.mixed_precision,
            **{name: getattr(self.args, name) for name in KEPT},
            **{f"config.{name}": value for name, value in config.items() if name in ElmoConfig.__annotations__},
        }

    def whole_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and the optimizer's state, as a single process would have them. Called by every process."""
        if self.is_sharded:
            return whole_state(self.model, self.optimizer)
        model = self.accelerator.unwrap_model(self.model)
        return model.state_dict(), self.optimizer.state_dict()

    def save(self):
        """Write a checkpoint."""
        weights, optimizer = self.whole_state()
        optimizer_state = {
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
        }
        if self.accelerator.scaler is not None:
            optimizer_state["scaler"] = self.accelerator.scaler.state_dict()
        assert self.state is not None
        lanes = self.state._asdict()
        if self.log.losses:
            lanes["losses"] = torch.stack(self.log.losses)
        facts = {**self.facts(), "words": self.step * self.words_per_step + self.words_beyond}
        if self.evaluated_at == self.step:
            facts["eval_loss"] = self.last_evaluation["eval_loss"]
        save_checkpoint(
            self.accelerator,
            self.output_dir,
            self.step,
            lambda folder: write_model(folder, self.config, weights, self.text.tokenizer),
            optimizer_state,
            lanes,
            self.position,
            facts,
            self.args.save_total_limit,
        )

    def _plan_the_rest(self, facts: dict[str, Any]):
        """Where the steps that are done had other batches: as many steps as the text still needs."""
        names = ("lanes", "unroll_steps", "gradient_accumulation_steps")
        words = facts.get("words", facts["step"] * math.prod(facts[name] for name in names))
        self.step, self.words_beyond = facts["step"], words - facts["step"] * self.words_per_step
        if self.words_beyond and self.args.max_steps < 0:
            left = self.args.num_train_epochs * self.text.train.num_predictions - words
            self.max_steps = self.step + max(0, math.ceil(left / self.words_per_step))
            self.schedule = make_schedule(self.args, self.optimizer.optimizer, self.max_steps)

    def resume(self):
        """Go on from the checkpoint that the arguments name."""
        assert self.checkpoint is not None
        facts = read_facts(self.checkpoint)  # checked when it was found
        different = compare_facts(self.checkpoint, facts, self.facts(), self.args.resume_with_changes)
        try:
            self._plan_the_rest(facts)
            weights, optimizer_state, lanes, position = load_checkpoint(self.checkpoint)
            with rates_kept(self.optimizer):
                if self.is_sharded:
                    load_whole_state(self.model, self.optimizer, weights, optimizer_state["optimizer"])
                else:
                    self.accelerator.unwrap_model(self.model).load_state_dict(weights)
                    self.optimizer.load_state_dict(optimizer_state["optimizer"])
            load_schedule(self.schedule, optimizer_state["schedule"])
            if self.accelerator.scaler is not None and "scaler" in optimizer_state:
                self.accelerator.scaler.load_state_dict(optimizer_state["scaler"])
        except Exception as error:  # whatever torch's readers raise for other files than were written
            raise CheckpointError(f"{self.checkpoint} does not fit this model: {one_line(error)[:300]}") from error
        on_main(lambda: give_up_behind(self.output_dir, self.step))
        if different & {"lanes", "text", "seed"}:
            # Other lanes start from zero states; the stream goes on behind the sentences that were taken before.
            taken = position.taken if "text" not in different else np.zeros_like(position.taken)
            self.position = Position.at_the_end(self.lanes.num_lanes)._replace(taken=taken)
        else:
            self.position = position
            mine = {name: tensor[:, :, self.mine].to(self.accelerator.device) for name, tensor in lanes.items()}
            self.losses_to_log = mine.pop("losses", None)
            self.state = ElmoState(**mine)
        if self.is_main:
            changes = f"; other than it: {', '.join(sorted(different))}" if different else ""
            print(f"resumed from {self.checkpoint} at step {self.step}{changes}")
            if self.words_beyond:
                left = max(0, self.max_steps - self.step)
                print(f"with these batches {left:,} steps of {self.words_per_step:,} words are left")

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self):
        """Write the finished folder. Called by every process."""
        weights, _ = self.whole_state()
        facts = {"steps": self.step, "processes": self.accelerator.num_processes}
        what = (self.output_dir, self.config, weights, self.text, self.args, facts, self.last_evaluation)
        try:
            on_main(lambda: write_finished_folder(*what))
        except Exception as error:  # as for a checkpoint
            raise CheckpointError(
                f"the finished model could not be written into {self.output_dir} ({error}): mend that (make room, if "
                "the disk is full) and go on with --resume_from_checkpoint auto"
            ) from error
