"""`Trainer` as fine-tuning an ELMo needs it, and the checkpoints that it leaves."""

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from .arguments import ArgumentsError
from .checkpoints import checkpoints_of
from .commands import one_line
from .finetuning_arguments import FinetuningArguments, told_in_a_line
from .modeling_elmo import ElmoScalarMix
from .processes import on_all, on_main
from .task_layers import ElmoTaskModel

LAST = ("last", "true", "True")  # of --resume_from_checkpoint
# Files of a checkpoint: weights, without which `Trainer` refuses it, and those without which it goes on in another way.
NEEDED = ("*.safetensors", "optimizer*", "scheduler*", "rng_state*")


class ElmoTrainer(Trainer):
    """`Trainer` with learning rates of their own for the biLM and for the weights of the layers, their pull also where
    labels are smoothed, and predictions for all data, in their order."""

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)  # also with group_by_length

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        drops_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops_last and is_training  # all data are to be scored
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)  # type: ignore[misc]
        finally:
            self.args.dataloader_drop_last = drops_last

    def create_scheduler(self, *args: Any, **kwargs: Any) -> torch.optim.lr_scheduler.LRScheduler:
        with told_in_a_line():
            return super().create_scheduler(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        with told_in_a_line():
            optimizer = super().create_optimizer(*args, **kwargs)
        model, arguments = cast(Any, self.model), cast(Any, self.args)
        _set_learning_rate(optimizer, model.elmo.parameters(), arguments.bilm_learning_rate)
        if arguments.scalar_mix_learning_rate is not None:
            mixes = [module.weights for module in model.modules() if isinstance(module, ElmoScalarMix)]
            _set_learning_rate(optimizer, mixes, arguments.scalar_mix_learning_rate)
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if self.label_smoother is not None and model.training:  # a loss of the logits alone, without the mix's pull
            # Losses that are shares of a whole batch add up, and the others are divided by its parts behind this.
            parts = self.current_gradient_accumulation_steps if self.model_accepts_loss_kwargs else 1
            loss = loss + cast(ElmoTaskModel, self.model).penalty() / parts
        return (loss, outputs) if return_outputs else loss

    def save_model(self, *args: Any, **kwargs: Any):
        on_all(partial(super().save_model, *args, **kwargs))  # before the barrier of `_save_checkpoint`

    def _save_checkpoint(self, *args: Any, **kwargs: Any):
        save_checkpoint = partial(super()._save_checkpoint, *args, **kwargs)
        # Those of a course that was left behind an earlier checkpoint, which "last" would take for the newest, and what
        # is half there of this one.
        on_main(partial(remove_checkpoints, Path(str(self.args.output_dir)), self.state.global_step))

        def save():
            try:
                save_checkpoint()
            except RuntimeError as error:  # torch's for a full disk
                raise OSError(f"the checkpoint cannot be written: {error}") from error

        on_all(save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any):
        with _told_as_damage_of(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        with _told_as_damage_of(checkpoint):
            if checkpoint and not self.is_deepspeed_enabled and not self.args.save_only_model:
                for name in NEEDED[1:]:  # without which Trainer would go on all the same
                    if not any(Path(checkpoint).glob(name)):
                        raise FileNotFoundError(f"it has no {name}")
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None):
        with _told_as_damage_of(checkpoint):
            super()._load_rng_state(checkpoint)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        # The mixes' weights have a pull of their own, `scalar_mix_l2`, and gamma is a scale that begins at 1.
        return [name for name in super().get_decay_parameter_names(model) if "scalar_mix." not in name]

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        return 0  # Trainer would count characters for words


@contextmanager
def _told_as_damage_of(checkpoint: str | None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the readers of torch, safetensors and transformers raise
        raise ArgumentsError(
            f"{checkpoint} is damaged or another model's ({one_line(error)[:300]}): go on from another checkpoint, or "
            "begin anew with --overwrite_output_dir"
        ) from error


def _set_learning_rate(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor], rate: float):
    """Move parameters into groups of their own; those that have one already, by an earlier call, stay there."""
    moved = {id(parameter) for parameter in parameters}
    for group in [group for group in optimizer.param_groups if "has_own_rate" not in group]:
        inside = [parameter for parameter in group["params"] if id(parameter) in moved]
        if inside:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            options = {key: value for key, value in group.items() if key not in ("params", "lr", "initial_lr")}
            optimizer.add_param_group({**options, "params": inside, "lr": rate, "has_own_rate": True})


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def find_checkpoint(args: FinetuningArguments) -> str | None:
    """The checkpoint that training goes on from: the one named, or with "last" the newest of the output folder, if any.

    Raises:
        ArgumentsError: there is none of that name.
    """
    name = args.resume_from_checkpoint
    if name in LAST:
        return _last_checkpoint(args)
    if name is not None and not Path(name, TRAINER_STATE_NAME).is_file():
        raise ArgumentsError(
            f"--resume_from_checkpoint {name} is no checkpoint; 'last' is the newest of the output folder"
        )
    return name


def _last_checkpoint(args: FinetuningArguments) -> str | None:
    """The newest checkpoint that is whole: `Trainer` writes its state last, and deletes it file by file.

    If none is whole, it is the newest that has its state: damage is told, and other kinds of checkpoints go on.
    """
    found = checkpoints_of(Path(str(args.output_dir)))[::-1]
    written = [path for path in found if _has_state(path)]
    whole = [path for path in written if all(any(path.glob(name)) for name in NEEDED)]
    taken = next(iter(whole or written), None)
    for path in found[: found.index(taken) if taken else None]:
        if args.process_index == 0:
            print(f"{path} was not written to its end, or is half deleted, and is left out", file=sys.stderr)
    return str(taken) if taken else None


def _has_state(checkpoint: Path) -> bool:
    try:
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
    return True


def remove_checkpoints(folder: Path, first_step: int = 0):
    """Of a run that is overwritten. Without its state first, a checkpoint that is half gone never passes for whole."""
    for checkpoint in checkpoints_of(folder, first_step):
        (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
