"""The cell in Triton against the cell in operations of torch: on a GPU, or in Triton's interpreter."""

import math

import pytest
import torch
from test_gpu_recurrence import DEVICE, DTYPES, assert_close, layer_on_device
from torch import Tensor

from modeling_elmo import lstm_ops
from modeling_elmo.gpu_cell import takes_cell


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def use(monkeypatch):
    """Whether the cell is Triton's from here on; never C's."""
    monkeypatch.setattr(lstm_ops, "cell_kernels", lambda _: None)
    return lambda taken: monkeypatch.setattr(lstm_ops, "takes_cell", lambda *_: taken)


def with_gaps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers whose directions do not follow each other at once, as those of one step of many."""
    sides, rows, width = shape
    return (torch.randn(sides, rows + 3, width, device=DEVICE) * 2).to(dtype)[:, 1 : rows + 1]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("sides", "rows", "dim"), [(2, 5, 40), (1, 1, 7), (2, 9, 300)])
@pytest.mark.parametrize("bound", [0.7, math.inf])
def test_forward(use, dtype, sides, rows, dim, keep, in_place, bound):
    given = [with_gaps(sides, rows, 4 * dim, dtype=dtype) for _ in range(2)]
    bias, cell = torch.randn(sides, 4 * dim, device=DEVICE).to(dtype), with_gaps(sides, rows, dim)
    results = []
    for taken in (False, True):
        use(taken)
        gates, recurrent, old = (tensor.clone(memory_format=torch.preserve_format) for tensor in (*given, cell))
        new = old if in_place else torch.full_like(old, math.nan)
        output = torch.full((sides, rows, dim), math.nan, device=DEVICE, dtype=dtype)
        lstm_ops.cell_forward(gates, recurrent, bias, old, new, output, bound, keep)
        results.append([gates, new, output])
    for one, other in zip(*results, strict=True):
        assert_close(other, one, dtype)
    assert torch.equal(results[1][0], given[0]) != keep, "gates are activated where they are kept"
    assert ((results[0][1].abs() == bound).any()) == (bound < math.inf)


@pytest.mark.parametrize(("sides", "rows", "dim"), [(2, 5, 40), (1, 1, 7), (2, 9, 300)])
def test_backward(use, dtype, sides, rows, dim):
    bound = 0.7
    gates = with_gaps(sides, rows, 4 * dim).sigmoid().to(dtype)
    old, new = with_gaps(sides, rows, dim), with_gaps(sides, rows, dim).clamp(-bound, bound)
    d_output, d_last = with_gaps(sides, rows, dim, dtype=dtype), with_gaps(sides, rows, dim)
    results = []
    for taken in (False, True):
        use(taken)
        d_cell, d_gates = d_last.clone(), torch.full_like(gates, math.nan)
        lstm_ops.cell_backward(gates, old, new, d_output, d_cell, d_gates, bound)
        results.append([d_cell, d_gates])
    for one, other in zip(*results, strict=True):
        assert_close(other, one, dtype)
    assert (results[1][0] == 0).any(), "no gradient where the cell is at its bound"


def test_a_whole_layer_by_it(use, dtype):
    """Forward and backward through the steps in torch, texts of several lengths, odd widths."""
    sizes, bounds = [3, 2, 2], (0.8, 0.7)
    layer = layer_on_device(dtype, 9, 37, 17, sizes)
    results = []
    for taken in (False, True):
        use(taken)
        forward = lstm_ops._forward_steps(*layer, bounds)
        torch.manual_seed(1)
        d_outputs, d_cell = torch.randn(forward.outputs.shape).to(DEVICE, dtype), torch.randn_like(forward.cell)
        d_gates, d_hidden = lstm_ops._backward_steps(forward, layer[2], layer[3], d_outputs, d_cell, sizes, bounds)
        results.append([*forward, d_gates, d_hidden, d_cell])
    for one, other in zip(*results, strict=True):
        assert_close(other, one, dtype)


def test_where_it_serves():
    assert not takes_cell(torch.zeros(2, 3, 16), torch.zeros(2, 3, 4)), "not on a processor"
    if torch.cuda.is_available():
        gates, cell = torch.zeros(2, 3, 16, device="cuda"), torch.zeros(2, 3, 4, device="cuda")
        assert takes_cell(gates, cell) and takes_cell(gates.half(), cell)
        assert not takes_cell(gates.double(), cell.double()) and not takes_cell(gates[:, :0], cell[:, :0])
