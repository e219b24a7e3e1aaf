"""Compiles the kernels of an LSTM layer for a Hopper GPU, which need not be there, and tells what is in them, as JSON.

A process of its own: Triton interprets kernels or compiles them, as it was told when it was imported.
"""

import json
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeling_elmo import gpu_kernels
from modeling_elmo.gpu_recurrence import sizes_for

ROWS, DIM, WIDTH, PROCESSORS = 128, 1024, 128, 132
TYPES = {"starts": "*i32", "counter": "*i32", "is_open": "*i1", "cell_bound": "fp32", "proj_bound": "fp32"}
FLOATS = ("cells", "d_cell", "parts")
HALVES = ("gates", "hiddens", "mixed", "weight_hh", "bias", "weight_hr", "d_outputs", "d_gates", "d_hidden")


def compiled(name: str) -> dict[str, int]:
    """The kernel that runs all steps at once, at a small size in bfloat16."""
    kernel, plan = getattr(gpu_kernels, name), sizes_for(ROWS, DIM, WIDTH, 2, PROCESSORS, torch.bfloat16)
    constants = {
        "PHASE": gpu_kernels.ALL, "SIDES": 2, "DIM": DIM, "WIDTH": WIDTH, **plan.constants(name == "backward"),
        **({"KEEP": True} if name == "forward" else {}),
    }  # fmt: skip
    types = (
        TYPES | dict.fromkeys(FLOATS, "*fp32") | dict.fromkeys(HALVES, "*bf16") | dict.fromkeys(constants, "constexpr")
    )
    signature = {argument: types.get(argument, "i32") for argument in kernel.arg_names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": plan.warps})
    ptx = result.asm["ptx"]
    return {
        "acquire": len(re.findall(r"\.acquire\.", ptx)),
        "release": len(re.findall(r"\.release\.", ptx)),
        "tensor core products": len(re.findall(r"wgmma\.mma_async", ptx)),
        "bytes on the chip": result.metadata.shared,
    }


print(json.dumps({name: compiled(name) for name in ("forward", "backward")}))
