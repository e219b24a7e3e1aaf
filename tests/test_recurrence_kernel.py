"""The layer in C against the same in operations of torch, in every width of register that this processor has.

That the whole stack equals the reference, gradients too, is tested in test_lstm.py."""

import importlib
import math
import platform
import shutil

import pytest
import torch
from torch import Tensor

from modeling_elmo import lstm_ops
from modeling_elmo.cpu_kernels import ARITHMETIC, NAMES, PLACE, for_each_dtype
from modeling_elmo.lstm_ops import _backward_steps, _forward_steps, fused_lstm
from modeling_elmo.packing import step_chunks
from modeling_elmo.recurrence_kernel import RecurrenceKernel, recurrence_kernel
from modeling_elmo.recurrence_source import GRADIENT, LAYER, SIZES

c_library_module = importlib.import_module("modeling_elmo.c_library")
pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or platform.machine() != "x86_64", reason="there is no C compiler for x86"
)
DTYPES = [torch.float32, torch.bfloat16]
# The largest difference allowed, as a part of the largest number: sums in another order, or numbers of 8 bits.
BOUND = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
BATCH_SIZES = {
    "few texts": [3] * 9 + [2] * 4 + [1] * 40,  # several steps' input in one product, and more than that holds
    "one step": [5],
    "many texts": [150, 150, 149, 80, 71, 4, 1],  # several tasks of a step, whole and not
    "one by one": [1] * 7,
}


def test_chunks_hold_so_many_steps_and_words_at_most():
    assert list(step_chunks([3, 3, 2, 2, 1], None, 5)) == [[3], [3, 2], [2, 1]]
    assert list(step_chunks([3, 3, 2, 2, 1], 2, 5)) == [[3], [3, 2], [2, 1]]
    assert list(step_chunks([3, 3, 1], 2)) == [[3, 3], [1]]
    assert list(step_chunks([9, 1], None, 5)) == [[9], [1]]  # a step is never cut


@pytest.fixture(scope="module", params=["x86-64", "haswell", "haswell as AVX-512", "native"])
def library(request, tmp_path_factory):
    """Compiled for processors with 4, with 8 and with as many numbers in a register as this one has; and as for those
    with 16, which the compiler makes of two times 8."""
    architecture, *wide = request.param.split(" as ")
    capability = torch.backends.cpu.get_cpu_capability()
    if architecture == "haswell" and capability not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    arithmetic = ARITHMETIC.replace("defined(__AVX512F__)", "1", 1) if wide else ARITHMETIC
    source = arithmetic + SIZES + for_each_dtype(PLACE + LAYER + GRADIENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELING_ELMO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(c_library_module, "CANDIDATE_FLAGS", [[f"-march={architecture}", "-fopenmp"]])
        library = c_library_module.c_library.__wrapped__("recurrence", source)
    lanes = {"x86-64": 4, "haswell": 8, "native": {"AVX512": 16, "AVX2": 8}.get(capability, 4)}
    assert library.lanes() == (16 if wide else lanes[architecture])
    return library


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def kernel(library, dtype) -> RecurrenceKernel:
    return RecurrenceKernel(library, NAMES[dtype])


def make_layer(dtype: torch.dtype, width: int, dim: int, projection: int | None, sizes: list[int]) -> list:
    """What `_forward_steps` takes but for the bounds."""
    torch.manual_seed(0)
    out = projection or dim
    shapes = [(2, sum(sizes), width), (2, 4 * dim, width), (2, 4 * dim, out), (2, projection or 0, dim), (2, 4 * dim)]
    # Gates far from 0.5, but no chaos, in which the last bits would soon decide on all.
    inputs, weight_ih, weight_hh, weight_hr, bias = (torch.randn(shape) for shape in shapes)
    weight_ih, weight_hh, weight_hr = (weight / weight.shape[2] ** 0.5 for weight in (weight_ih, weight_hh, weight_hr))
    rows = sizes[0] + 2  # two texts have no words
    hidden, cell = torch.randn(2, rows, out), torch.randn(2, rows, dim)
    tensors = [inputs * 2, weight_ih, weight_hh, weight_hr, bias, hidden]
    layer = [tensor.to(dtype) for tensor in tensors]
    return [*layer[:3], layer[3] if projection else None, *layer[4:], cell, sizes]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, bound: dict[torch.dtype, float] = BOUND):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    difference = (actual.float() - expected.float()).abs().max()
    assert difference <= bound[dtype] * expected.float().abs().max(), float(difference)


@pytest.mark.parametrize("sizes", BATCH_SIZES.values(), ids=BATCH_SIZES)
@pytest.mark.parametrize(
    ("width", "dim", "projection"),
    [(10, 38, 18), (64, 128, 64), (150, 70, 66), (6, 10, None), (30, 80, None), (9, 37, 17)],
)
def test_forward_and_backward_equal_the_steps_in_torch(kernel, dtype, width, dim, projection, sizes):
    if not kernel.takes(width, dim, projection or dim):
        pytest.skip("odd widths in bfloat16, which fused_lstm keeps from it")
    bounds = (0.8, 0.7)
    layer = make_layer(dtype, width, dim, projection, sizes)
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, _ = layer
    expected = _forward_steps(*layer, bounds)
    packed = kernel.pack_layer([weight_ih, weight_hh, *([] if weight_hr is None else [weight_hr])])
    actual = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds, keep=True)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, dtype)
    alone = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds)
    assert torch.equal(alone.outputs, actual.outputs)
    running, last = lstm_ops._last_places(tuple(sizes), inputs.device)
    assert torch.equal(alone.cell[:, :running], actual.cells[:, last]) and torch.equal(
        alone.cell[:, running:], cell[:, running:]
    )
    if projection:
        assert (actual.outputs.abs() == torch.tensor(0.7).to(dtype)).any(), "the bound is reached"

    d_outputs, d_cell = torch.randn_like(inputs[:, :, :1]).expand(expected.outputs.shape), torch.randn_like(cell)
    gradients = []
    for backward in (kernel.backward, _backward_steps):
        gradient = [d_outputs.clone(memory_format=torch.contiguous_format), d_cell.clone()]
        d_gates, d_hidden = backward(expected, weight_hh, weight_hr, *gradient, sizes, bounds)
        gradients.append([d_gates, d_hidden, *gradient])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, dtype)


def test_weights_are_packed_as_the_source_says(kernel, dtype):
    lanes, step = kernel.lanes, 2 if dtype == torch.bfloat16 else 1
    cells, width = lanes + 3, 6
    gates = torch.arange(2 * 4 * cells * width).view(2, 4 * cells, width).to(dtype)
    packed = kernel.pack(gates, is_gates=True)
    assert packed.shape == (2, 2, width, 4 * lanes)
    blocks = packed.view(2, 2, width // step, 4, lanes, step)  # two inputs of bfloat16 lie side by side
    for side, gate, cell, k in [(0, 0, 0, 0), (1, 2, lanes - 1, 3), (1, 3, lanes + 2, 5), (0, 1, lanes, 4)]:
        place = blocks[side, cell // lanes, k // step, gate, cell % lanes, k % step]
        assert place == gates[side, gate * cells + cell, k]
    assert not blocks[:, 1, :, :, 3:].any(), "zero past the last cell"
    outputs = torch.randn(2, width, 4 * lanes + 1).to(dtype).transpose(1, 2)  # strides of any kind
    packed = kernel.pack(outputs)
    blocks = packed.view(2, 2, width // step, 4 * lanes, step).transpose(3, 4).flatten(2, 3)  # (2, 2, width, 4 * lanes)
    assert torch.equal(blocks.transpose(2, 3).flatten(1, 2)[:, : 4 * lanes + 1], outputs)
    assert not blocks[:, 1, :, 1:].any()


def test_numbers_that_are_not_finite_stay_in_their_row(kernel, dtype):
    sizes = [80] * 3
    inputs, *weights, bias, hidden, cell, _ = make_layer(dtype, 8, 24, 12, sizes)
    packed = kernel.pack_layer(weights)
    expected = kernel.forward(inputs, packed, bias, hidden, cell, sizes, (math.inf, math.inf)).outputs
    inputs[0, 80 + 5, 3], inputs[1, 7, 0] = math.nan, 1e30
    outputs = kernel.forward(inputs, packed, bias, hidden, cell, sizes, (math.inf, math.inf)).outputs
    rows = outputs.unflatten(1, (3, 80))  # (2, steps, rows, projection_dim)
    assert rows[0, 1:, 5].isnan().all() and rows[0, 0, 5].isfinite().all() and rows[1].isfinite().all()
    others = torch.arange(80) != 5
    assert torch.equal(rows[0][:, others], expected.unflatten(1, (3, 80))[0][:, others])


def test_a_text_has_the_same_bits_alone_and_in_any_batch(kernel, dtype):
    sizes, bounds = [100] * 4 + [7] * 30, (3.0, 3.0)
    inputs, *weights, bias, hidden, cell, _ = make_layer(dtype, 70, 40, 22, sizes)
    packed = kernel.pack_layer(weights)
    together = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds)
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    for row in (0, 5, 6, 99):
        words = starts[torch.tensor(sizes) > row] + row  # its places
        alone = kernel.forward(
            inputs[:, words], packed, bias, hidden[:, [row]], cell[:, [row]], [1] * len(words), bounds
        )
        assert torch.equal(alone.outputs, together.outputs[:, words])
        assert torch.equal(alone.cell[:, 0], together.cell[:, row])


def test_any_number_of_threads_computes_the_same_bits(kernel, dtype, monkeypatch):
    """One for all, one for each direction, and several for both."""
    sizes, bounds = [80] * 3 + [6] * 12, (0.8, 0.7)
    inputs, *weights, bias, hidden, cell, _ = make_layer(dtype, 64, 128, 64, sizes)
    packed, results = kernel.pack_layer(weights), []
    for threads in (1, 2, 3, 5):
        monkeypatch.setattr("modeling_elmo.recurrence_kernel._threads", lambda threads=threads: threads)
        forward = kernel.forward(inputs, packed, bias, hidden, cell, sizes, bounds, keep=True)
        gradient = [torch.ones_like(forward.outputs), torch.ones_like(cell)]
        results.append([*forward, *kernel.backward(forward, *weights[1:], *gradient, sizes, bounds), *gradient])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


CHANGES = {
    "width": lambda layer: layer.__setitem__(0, layer[0][:, :, :-2]),
    "words": lambda layer: layer.__setitem__(0, layer[0][:, 1:]),
    "hidden": lambda layer: layer.__setitem__(5, layer[5][:, :, :-2]),
    "rows": lambda layer: layer.__setitem__(6, layer[6][:, :-1]),
    "cells": lambda layer: layer.__setitem__(6, layer[6][:, :, :-1]),
    "rising": lambda layer: layer[7].reverse(),
    "more texts than rows": lambda layer: layer[7].__setitem__(slice(None), [9, 1]),
    "device": lambda layer: layer.__setitem__(5, layer[5].to("meta")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_memory_is_read_that_is_not_there(kernel, dtype, change):
    layer = make_layer(dtype, 8, 24, 12, [6, 4])
    packed = kernel.pack_layer(layer[1:4])
    change(layer)
    inputs, *_, bias, hidden, cell, sizes = layer
    with pytest.raises(ValueError, match=r"do not go together|must fall|weights are on the CPU"):
        kernel.forward(inputs, packed, bias, hidden, cell, sizes, (3.0, 3.0))


# ---- where it runs


@pytest.fixture
def forwards(monkeypatch) -> list[int]:
    """The number of words of each call of the kernel that this machine chooses, here one for both dtypes."""
    calls: list[int] = []
    for dtype in DTYPES:
        kernel = recurrence_kernel(dtype)
        if kernel is None:
            pytest.skip("this processor has something faster")

        def forward(inputs, *args, run=kernel.forward, **kwargs):
            calls.append(inputs.shape[1])
            return run(inputs, *args, **kwargs)

        monkeypatch.setattr(kernel, "forward", forward)
    return calls


def run(layer: list, **changes) -> tuple[Tensor, Tensor, Tensor]:
    inputs, weight_ih, weight_hh, weight_hr, bias, hidden, cell, sizes = layer
    return fused_lstm(
        inputs, weight_ih, weight_hh, bias, weight_hr, hidden, cell, sizes, cell_clip=3.0, proj_clip=3.0, **changes
    )


def test_few_words_are_not_worth_the_packing(forwards):
    run(make_layer(torch.float32, 8, 16, 8, [lstm_ops.FEWEST_WORDS_TO_PACK - 1]))
    assert forwards == []
    run(make_layer(torch.float32, 8, 16, 8, [lstm_ops.FEWEST_WORDS_TO_PACK]))
    assert forwards == [lstm_ops.FEWEST_WORDS_TO_PACK]


def test_other_weights_take_other_paths(forwards):
    """Odd widths in bfloat16, dtypes without a kernel, and weights that know by themselves how to multiply."""
    run(make_layer(torch.bfloat16, 8, 16, 9, [40]))
    layer = make_layer(torch.float32, 8, 16, 8, [40])
    run([None if x is None else x.double() if isinstance(x, Tensor) else x for x in layer])
    layer[2] = layer[2].as_subclass(type("Quantised", (Tensor,), {}))
    run(layer)
    assert forwards == []
    run(make_layer(torch.bfloat16, 8, 16, 8, [40]))
    run(make_layer(torch.float32, 7, 15, None, [40]))
    assert forwards == [40, 40]


def test_training_runs_it_too(forwards):
    layer = make_layer(torch.float32, 8, 16, 8, [40, 3])
    layer[2].requires_grad_()
    run(layer)[0].sum().backward()
    assert forwards == [43] and layer[2].grad.abs().max() > 0
