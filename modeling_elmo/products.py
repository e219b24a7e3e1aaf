"""Matrix products on the CPU, by the faster one of the two libraries that torch has for them.

torch gives float32 to MKL, which on AMD's processors computes as if they had no AVX-512, and bfloat16 to oneDNN, which
knows all processors. So there oneDNN gets float32, too (benchmarks/README.md has figures). Where neither library has
products for bfloat16, it is multiplied in float32 and rounded.
"""

import functools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Measured with original, medium and small on AVX2: with 2 MiB nothing is won, and laying out costs 8 steps' gain.
PACKED_BYTES, PACKED_STEPS = 4 * 2**20, 9
# Multiplications of a step from which the two directions' products are faster one by one: measured with tiny to
# original on AMD with AVX-512. Compact has so many with 16 texts, small with 8 and original with one.
FEWEST_ONE_BY_ONE = 2**22


def is_traced() -> bool:
    """Whether a compiler or a function transform looks on: into operations of torch, not into a kernel's gradient."""
    is_compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return is_compiled or torch._C._are_functorch_transforms_active()


def is_hooked(module: nn.Module) -> bool:
    """Whether a call does something else than the class's `forward`: by torch's hooks, or a `forward` of the module's
    own, such as accelerate's, which brings weights."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or getattr(module.forward, "__func__", None) is not type(module).forward


def has_onednn_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies `dtype` on this processor, without emulating it."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32


@functools.cache
def mkl_holds_back() -> bool:
    """Whether MKL leaves the half of this processor unused: one of AMD's with AVX-512."""
    info = Path("/proc/cpuinfo")
    maker = info.read_text() if info.is_file() else platform.processor()
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_avx512 and "AuthenticAMD" in maker and torch.backends.mkl.is_available()


def is_plain_tensor(tensor: Tensor) -> bool:
    """Whether its numbers are all there is to it: a quantised weight, say, knows by itself how to multiply."""
    return type(tensor) in (Tensor, nn.Parameter)


def prefers_onednn(tensor: Tensor) -> bool:
    """Whether products of this tensor, float32 on the CPU, are to be oneDNN's."""
    is_float32 = tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    return is_float32 and is_plain_tensor(tensor) and has_onednn_products(torch.float32) and mkl_holds_back()


def _onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(rows, in), (out, in) of any strides, (out,) -> (rows, out), without gradients."""
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def is_emulated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether torch multiplies in this dtype number by number, since neither library does on this processor."""
    return dtype == torch.bfloat16 and device.type == "cpu" and not has_onednn_products(dtype)


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """(directions, rows, inner), (directions, inner, columns) -> (directions, rows, columns), without gradients."""
    if len(left) == 1:
        return linear(left[0], right[0].T)[None]
    if is_emulated(left.dtype, left.device):
        return torch.bmm(left.float(), right.float()).to(left.dtype)
    return torch.bmm(left, right)


def weight_gradients(d_outputs: Tensor, inputs: Tensor) -> Tensor:
    """`weight_gradient` for (directions, rows, out), (directions, rows, in) -> (directions, out, in)."""
    if len(inputs) == 1 and prefers_onednn(inputs):
        return weight_gradient(d_outputs[0], inputs[0])[None]
    return bmm(d_outputs.transpose(1, 2), inputs)


def weight_gradient(d_outputs: Tensor, inputs: Tensor) -> Tensor:
    """(rows, out), (rows, in) -> (out, in): the gradient of W in x W^T."""
    if inputs.shape[1] < d_outputs.shape[1]:  # oneDNN is twice as fast with a wide result as with a tall one
        return linear(inputs.T, d_outputs.T).T
    return linear(d_outputs.T, inputs.T)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., in), (out, in), (out,) -> (..., out)."""
    if is_traced() or not is_plain_tensor(weight):
        return F.linear(inputs, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        if not is_emulated(dtype, weight.device):
            return F.linear(inputs, weight, bias)
        with torch.autocast("cpu", enabled=False):
            return linear(inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if inputs.dtype == weight.dtype and is_emulated(weight.dtype, weight.device):
        bias = None if bias is None else bias.float()
        return F.linear(inputs.float(), weight.float(), bias).to(inputs.dtype)
    fits = inputs.dim() >= 2 and inputs.numel() * weight.numel() > 0 and inputs.shape[-1] == weight.shape[1]
    if not fits or not (prefers_onednn(inputs) and prefers_onednn(weight)):
        return F.linear(inputs, weight, bias)  # with torch's own words for shapes that do not go together
    return _Linear.apply(inputs.flatten(0, -2), weight, bias).unflatten(0, inputs.shape[:-1])


class _Linear(torch.autograd.Function):
    """oneDNN's product with a gradient."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx, d_outputs):
        inputs, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):  # as forward was, wherever backward is called
            return (
                linear(d_outputs, weight.T) if need[0] else None,
                weight_gradient(d_outputs, inputs) if need[1] else None,
                d_outputs.sum(0) if need[2] else None,
            )


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias)


# ---------------------------------------------------------------------------------------------------------------------
# The recurrence: one weight, many steps


def is_laid_out(weight: Tensor, batch_sizes: list[int]) -> bool:
    """Whether `repeated_product` lays weights (directions, out, in) out once for all steps.

    A library's product first lays the weight out anew. For a weight larger than the processor's caches this costs as
    much as the product with a few rows.
    """
    steps, words = len(batch_sizes), sum(batch_sizes)
    pays = weight[0].nbytes >= PACKED_BYTES and steps >= PACKED_STEPS and words > steps
    return pays and weight.device.type == "cpu" and has_onednn_products(weight.dtype)


def is_faster_one_by_one(weight: Tensor, batch_sizes: list[int]) -> bool:
    """Whether the recurrence with weights (directions, out, in) is to run one direction after the other: oneDNN, as
    torch has it, takes one product at a time."""
    is_large = max(batch_sizes) * weight[0].numel() >= FEWEST_ONE_BY_ONE
    return (is_large and prefers_onednn(weight)) or is_laid_out(weight, batch_sizes)


def repeated_product(
    weight: Tensor, batch_sizes: list[int], laid_out: Tensor | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """x W^T for each step: weight (directions, out, in).

    Args:
        laid_out: the weight of the one direction that there is, from `lay_out`.

    Returns:
        A function of x (directions, rows, in) and a tensor (directions, rows, out) that it may write into. It returns
        that one or another.
    """
    weight = weight.detach()
    if laid_out is None and len(weight) == 1 and is_laid_out(weight, batch_sizes):
        laid_out = _lay_out(weight[0])
    if laid_out is not None:
        return lambda inputs, out: _onednn(inputs[0], laid_out)[None]
    if len(weight) == 1 and prefers_onednn(weight):
        return lambda inputs, out: _onednn(inputs[0], weight[0])[None]
    right = weight.transpose(1, 2)
    if is_emulated(weight.dtype, weight.device):
        right = right.float()
        return lambda inputs, out: torch.bmm(inputs.float(), right).to(out.dtype)
    return lambda inputs, out: torch.bmm(inputs, right, out=out)


def _lay_out(weight: Tensor) -> Tensor:
    """(out, in) as oneDNN wants it for any number of rows but one."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, 64)


def lay_out(weights: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Weights (directions, out, in) each -> for each direction its part of each of them, as oneDNN wants it."""
    return [tuple(map(_lay_out, side)) for side in zip(*weights, strict=True)]


def keeps_layout(weight: Tensor, rows: int) -> bool:
    """Whether a layer with W_hh `weight` (directions, out, in) is faster with weights that were laid out before."""
    if weight.device.type != "cpu" or not has_onednn_products(weight.dtype):
        return False
    multiplications = rows * weight[0].numel()
    if weight.dtype == torch.bfloat16 or mkl_holds_back():
        return multiplications >= FEWEST_ONE_BY_ONE
    return rows > 1 and weight[0].nbytes >= PACKED_BYTES
