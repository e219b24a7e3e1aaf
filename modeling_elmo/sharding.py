"""FSDP2: parameters and the optimizer's state sharded over GPUs, and whole on disk, as without it.

On disk nothing tells whether a run was sharded, so that any run can go on from it. What Accelerate 1.15 leaves to do is
done here: the state of Adagrad, saving under the model's own class, and sums in float32 with bf16.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy

from .arguments import ArgumentsError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
SHARE_OUT = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def wants_fsdp() -> bool:
    """Whether Accelerate's launcher was told to shard."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """What the launcher was told, but for the precision: autocast has the softmax and the LSTM's cells in float32."""
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy()) if wants_fsdp() else None


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether models that this accelerator prepares are sharded.

    Raises:
        ArgumentsError: the launcher was told to shard, but there are no GPUs, or as FSDP of the first version.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if wants_fsdp() and not (sharded and accelerator.is_fsdp2):
        raise ArgumentsError("sharding needs GPUs and fsdp_version: 2, as in configs/accelerate/fsdp2.yaml")
    return sharded


def prepare_sharded(accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """`accelerator.prepare(model, optimizer)`; the optimizer must not have stepped yet."""
    started = [dict(state) for state in optimizer.state.values()]
    optimizer.state.clear()  # it belongs to the parameters that are replaced by shards
    prepared = accelerator.prepare(model, optimizer)
    if started:  # Adagrad has a state from the start: a step count and sums that are all alike
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                total = torch.full_like(parameter, started[0]["sum"].flatten()[0].item())
                optimizer.state[parameter] = {"step": torch.tensor(0.0), "sum": total}
    return list(prepared)


def _numbers(model: torch.nn.Module) -> dict[str, int]:
    """Each parameter's number in an unsharded optimizer's state, by name."""
    return {name: number for number, (name, _) in enumerate(model.named_parameters())}


def whole_state(model: torch.nn.Module, optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and optimizer state as without sharding. Called by every process; the main one gets them."""
    weights: Any = get_model_state_dict(model, options=WHOLE)
    state: Any = get_optimizer_state_dict(model, optimizer.optimizer, options=WHOLE)
    if not weights:  # not the main process
        return {}, {}
    numbers = _numbers(model)
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return weights, {"state": {numbers[name]: v for name, v in state["state"].items()}, "param_groups": groups}


def load_whole_state(model: torch.nn.Module, optimizer: Any, weights: dict[str, Any], state: dict[str, Any]):
    """Share out what `whole_state` gave. Called by every process."""
    names = list(_numbers(model))
    named: dict[str, Any] = {
        "state": {names[number]: values for number, values in state["state"].items()},
        "param_groups": [{**g, "params": [names[number] for number in g["params"]]} for g in state["param_groups"]],
    }
    set_model_state_dict(model, weights, options=SHARE_OUT)
    set_optimizer_state_dict(model, optimizer.optimizer, named, options=SHARE_OUT)
