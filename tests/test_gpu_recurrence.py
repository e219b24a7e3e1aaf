"""The layer in Triton against the same in operations of torch: on a GPU, or elsewhere in Triton's interpreter.

The interpreter runs one program behind the other, so that programs that wait for each other run on a GPU only; and it
multiplies bfloat16 as if it were integers, so that this is left to GPUs, too. Tolerances are stated in `BOUND`.
"""

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_recurrence_kernel
import torch
from test_recurrence_kernel import make_layer
from torch import Tensor

from modeling_elmo import gpu_kernels, lstm_ops
from modeling_elmo import gpu_recurrence as gpu
from modeling_elmo.gpu_recurrence import GpuRecurrence, gpu_recurrence, sizes_for
from modeling_elmo.lstm_ops import _backward_steps, _forward_steps, fused_lstm, naive_lstm

triton = pytest.importorskip("triton", reason="needs Triton")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if not (ON_GPU or triton.knobs.runtime.interpret):
    pytest.skip("there is neither a GPU nor Triton's interpreter", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("full_precision")
DTYPES = [torch.float32, torch.float16, torch.bfloat16] if ON_GPU else [torch.float32, torch.float16]
# The largest difference allowed, as a part of the largest number: sums in another order, numbers of 11 and of 8 bits.
BOUND = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 2.5e-2}
BATCH_SIZES = {"several tiles": [70, 67, 1], "few texts": [5, 5, 3, 1], "one step": [2], "no text at last": [2, 1, 0]}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(params=[False, True], ids=["phase by phase", "at once"])
def kernel(request) -> GpuRecurrence:
    if request.param and not ON_GPU:
        pytest.skip("programs that wait for each other need a GPU")
    return GpuRecurrence(at_once=request.param)


def layer_on_device(dtype: torch.dtype, width: int, dim: int, projection: int, sizes: list[int]) -> list:
    return [x.to(DEVICE) if isinstance(x, Tensor) else x for x in make_layer(dtype, width, dim, projection, sizes)]


assert_close = functools.partial(test_recurrence_kernel.assert_close, bound=BOUND)


@pytest.mark.parametrize("sizes", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize(("width", "dim", "projection"), [(10, 128, 64), (64, 192, 128)])
def test_forward_and_backward_equal_the_steps_in_torch(kernel, dtype, width, dim, projection, sizes):
    bounds = (0.8, 0.7)
    layer = layer_on_device(dtype, width, dim, projection, sizes)
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer
    assert kernel.takes(width, projection, dim)
    expected = _forward_steps(*layer, bounds)
    packed = kernel.pack_layer([weight_ih, weight_hh, weight_hr])
    actual = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds, keep=True)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, dtype)
    assert (actual.outputs.abs() == torch.tensor(0.7).to(dtype)).any(), "the bound is reached"
    alone = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds)
    assert torch.equal(alone.outputs, actual.outputs), "without gradients the numbers are the same"
    running, last = lstm_ops._last_places(tuple(sizes), DEVICE)
    assert torch.equal(alone.cell[:, :running], actual.cells[:, last])
    assert torch.equal(alone.cell[:, running:], cell[:, running:])

    d_outputs, d_cell = torch.randn(expected.outputs.shape, device=DEVICE).to(dtype), torch.randn_like(cell)
    gradients = []
    for backward in (kernel.backward, _backward_steps):
        gradient = [d_outputs.clone(), d_cell.clone()]
        d_gates, d_hidden = backward(expected, weight_hh, weight_hr, *gradient, sizes, bounds)
        gradients.append([d_gates, d_hidden, *gradient])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, dtype)


def test_fused_lstm_with_it_equals_the_reference(kernel, monkeypatch):
    """Outputs, states, and gradients of all that has one, of texts of several lengths."""
    name = "gpu_recurrence" if ON_GPU else "recurrence_kernel"
    monkeypatch.setattr(lstm_ops, name, lambda *_: kernel)
    sizes, bounds = [3, 3, 2, 1], {"cell_clip": 0.8, "proj_clip": 0.7}
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer_on_device(torch.float32, 32, 64, 64, sizes)
    tensors = [inputs, weight_ih, weight_hh, bias, weight_hr, hidden, cell]
    given = [tensor.requires_grad_() for tensor in tensors]
    alone = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    with torch.no_grad():
        inferred = fused_lstm(*given, sizes, **bounds)
    outputs, last_hidden, last_cell = fused_lstm(*given, sizes, **bounds)

    firsts = [sum(sizes[:step]) for step in range(len(sizes))]
    expected = torch.zeros_like(outputs).detach().clone()
    losses = []
    for side in (0, 1):
        weights = [alone[place][side] for place in (1, 2, 3, 4)]
        for row, length in enumerate([4, 3, 2, 0, 0]):
            places = [first + row for first in firsts[:length]]
            parts = naive_lstm(
                alone[0][side, places], *weights, alone[5][side, row], alone[6][side, row], **bounds, forget_bias=0.0
            )
            if length:
                expected[side, places] = parts[0].detach()
            torch.testing.assert_close(last_hidden[side, row], parts[1], rtol=1e-5, atol=5e-6)
            torch.testing.assert_close(last_cell[side, row], parts[2], rtol=1e-5, atol=5e-6)
            losses.append(sum(part.square().sum() for part in parts if part.shape[0]))
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=5e-6)
    for one, other in zip(inferred, (outputs, last_hidden, last_cell), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    (outputs.square().sum() + last_hidden.square().sum() + last_cell.square().sum()).backward()
    torch.stack([torch.as_tensor(loss, device=DEVICE) for loss in losses]).sum().backward()
    for one, other in zip(given, alone, strict=True):
        assert_close(one.grad, other.grad, torch.float32)


def test_long_texts_in_chunks_have_the_same_numbers(monkeypatch):
    kernel, sizes = GpuRecurrence(at_once=ON_GPU), [4, 4, 3, 3, 1]
    layer = layer_on_device(torch.float32, 16, 64, 64, sizes)
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer
    arguments = (inputs, [weight_ih, weight_hh, weight_hr], bias, hidden, cell, sizes, (3.0, 3.0))
    whole = kernel.forward(*arguments)
    monkeypatch.setattr(gpu, "HOISTED_BYTES", 7 * 2 * 4 * 64 * 4)  # of 7 words, so that there are chunks of 4, 7 and 4
    parts = kernel.forward(*arguments)
    assert parts.gates.shape[1] < whole.gates.shape[1]
    assert_close(parts.outputs, whole.outputs, torch.float32)
    assert_close(parts.cell, whole.cell, torch.float32)


def test_nan_stays_in_its_text(dtype):
    kernel, sizes = GpuRecurrence(at_once=ON_GPU), [3, 3]
    layer = layer_on_device(dtype, 16, 64, 64, sizes)
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer
    inputs[0, 1] = math.nan
    results = kernel.forward(inputs, [weight_ih, weight_hh, weight_hr], bias, hidden, cell, sizes, (3.0, 3.0))
    is_lost = results.outputs.isnan()
    assert is_lost[0, [1, 4]].all() and is_lost.sum() == 2 * 64


def test_gradients_of_results_that_were_moved_are_the_same():
    """Hooks on saved tensors, as those that keep them on the CPU, may part what lay together."""
    kernel, sizes = GpuRecurrence(at_once=ON_GPU), [2, 2]
    layer = layer_on_device(torch.float32, 16, 64, 64, sizes)
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer
    results = kernel.forward(
        inputs, [weight_ih, weight_hh, weight_hr], bias, hidden, cell, sizes, (3.0, 3.0), keep=True
    )
    moved = type(results)(*(tensor.clone(memory_format=torch.contiguous_format) for tensor in results))
    d_outputs, d_cell = torch.randn_like(moved.outputs), torch.randn_like(cell)
    gradients = [
        kernel.backward(of, weight_hh, weight_hr, d_outputs.clone(), d_cell.clone(), sizes, (3.0, 3.0))
        for of in (results, moved)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 64, 65, 128, 512])
@pytest.mark.parametrize(("dim", "width"), [(4096, 512), (2048, 256), (1024, 128), (512, 128), (64, 64), (192, 320)])
def test_tiles_and_parts_cover_everything_once(rows, dim, width):
    for dtype in (torch.float32, torch.bfloat16):
        plan = sizes_for(rows, dim, width, 2, 132, dtype)
        assert dim % plan.cells == 0 and width % plan.columns == 0 and width % plan.depth == 0
        assert all(inner % (split * plan.depth) == 0 for inner, split in zip((dim, 4 * dim), plan.splits, strict=True))


def test_where_it_serves():
    kernel = GpuRecurrence(at_once=False)
    assert kernel.takes(16, 512, 4096) and not kernel.takes(16, 512), "no plain LSTM"
    assert not kernel.takes(16, 48, 64) and not kernel.takes(16, 64, 100)
    assert gpu_recurrence(torch.bfloat16, torch.device("cpu")) is None
    if ON_GPU:
        is_tried = torch.cuda.get_device_capability()[0] == gpu_kernels.GENERATION
        assert (gpu_recurrence(torch.bfloat16, torch.device("cuda", 0)) is not None) == is_tried
        assert gpu_recurrence(torch.float32, torch.device("cuda", 0)) is None, "not measured"


def test_programs_that_wait_see_what_others_wrote(tmp_path):
    """Triton 3.6 left out an atomic read whose result was not used, and with it what makes other programs' results
    visible: numbers were wrong. Looked for in the compiled kernels, for which no GPU is needed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compiled_for_gpu.py")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    for found in json.loads(result.stdout).values():
        assert found["acquire"] == found["release"] == len(gpu_kernels.PHASES), "each phase ends with a wait"
        assert found["tensor core products"] > 0
        assert found["bytes on the chip"] <= 227 * 1024, "a Hopper multiprocessor has no more"


def test_without_triton_there_is_none(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "triton", None)
    assert not gpu_kernels.has_triton.__wrapped__(torch.device("cuda", 0))


def test_a_triton_that_does_not_run_is_told_and_left_out(monkeypatch):
    """As without a C compiler, which it asks for when the first kernel is launched."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)

    def broken(_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "device", broken)
    with pytest.warns(UserWarning, match="Triton does not run here, .*: Failed to find C compiler"):
        assert not gpu_kernels.has_triton.__wrapped__(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not gpu_kernels.has_triton.__wrapped__(torch.device("cuda", 0)), "too old to be tried"
