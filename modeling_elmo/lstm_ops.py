"""The recurrence of one ELMo LSTM layer, from its equations to what runs (Sak et al. 2014).

One step, for each direction, with input x, projected output h and cell c:

    i, f, g, o = split(x W_ih^T + h W_hh^T + b)
    c' = clip(sigmoid(f + forget_bias) * c + sigmoid(i) * tanh(g), cell_clip)
    h' = clip((sigmoid(o) * tanh(c')) W_hr^T, proj_clip)

Four functions compute it, and the tests hold their outputs and, where they have any, gradients together:

- `naive_lstm`: the equations as a loop over the words of one text. The reference.
- `packed_lstm`: both directions and all texts at once in operations of torch, which autograd, torch.export and
  torch.func can look into.
- `fused_lstm`: the same with a backward pass of its own, which gathers the products of all steps into one wherever they
  do not wait for each other. On x86 processors a whole layer is one call of C (`recurrence_kernel.py`), on GPUs
  its steps are kernels in Triton (`gpu_recurrence.py`), elsewhere each step's cell is one kernel or a few operations.
- `scan_lstm`: padded texts of any number and length, as one operation that torch.export and ONNX can keep a loop of.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cpu_kernels import cell_kernels
from .gpu_cell import gpu_cell_backward, gpu_cell_forward, takes_cell
from .gpu_recurrence import GpuRecurrence, gpu_recurrence
from .packing import step_chunks
from .products import (
    bmm,
    is_faster_one_by_one,
    is_plain_tensor,
    keeps_layout,
    lay_out,
    repeated_product,
    weight_gradients,
)
from .recurrence_kernel import LayerResults, RecurrenceKernel, recurrence_kernel
from .weight_changes import LaidOutWeights


def naive_lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor, hidden: Tensor, cell: Tensor,
    *, cell_clip: float | None, proj_clip: float | None, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One layer, one direction, one text: the equations above as a loop. The reference for every faster path.

    Args:
        inputs: (words, projection_dim) in reading order.
        weight_ih: (4 * lstm_dim, projection_dim).
        weight_hh: (4 * lstm_dim, projection_dim).
        bias: (4 * lstm_dim,).
        weight_hr: (projection_dim, lstm_dim).
        hidden: (projection_dim,), at the start.
        cell: (lstm_dim,), at the start.

    Returns:
        (words, projection_dim) outputs before the skip, and the final hidden and cell state.
    """
    outputs = []
    for word in inputs:
        i, f, g, o = (weight_ih @ word + weight_hh @ hidden + bias).chunk(4)  # (lstm_dim,) each
        cell = torch.sigmoid(f + forget_bias) * cell + torch.sigmoid(i) * torch.tanh(g)
        if cell_clip is not None:
            cell = cell.clamp(-cell_clip, cell_clip)
        hidden = weight_hr @ (torch.sigmoid(o) * torch.tanh(cell))  # (projection_dim,)
        if proj_clip is not None:
            hidden = hidden.clamp(-proj_clip, proj_clip)
        outputs.append(hidden)
    return torch.stack(outputs) if outputs else inputs, hidden, cell


def packed_lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor, hidden: Tensor, cell: Tensor,
    batch_sizes: list[int], *, cell_clip: float | None, proj_clip: float | None, chunk_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One layer, both directions, packed texts.

    The input products of many steps are hoisted into one, and no step touches a text that has ended.

    Args:
        inputs: (2, packed, projection_dim), each direction in its reading order, packed as `Packing` says.
        weight_ih: that of `naive_lstm` with a dimension of 2 in front, as all weights, and of the dtype of `inputs`.
        weight_hh: as `weight_ih`.
        bias: (2, 4 * lstm_dim), with the forget bias in it.
        weight_hr: (2, projection_dim, lstm_dim).
        hidden: (2, rows, projection_dim), rows by falling length.
        cell: (2, rows, lstm_dim), at least float32, and so is the arithmetic of the cell.
        batch_sizes: texts still running at each step.
        cell_clip: the bound of the cell, or `None`.
        proj_clip: the bound of the projected output, or `None`.
        chunk_size: steps whose input products are in memory at a time; `None` for all.

    Returns:
        Outputs before the skip (2, packed, projection_dim), and each row's state after its own last word.
    """
    weight_ih, weight_hh, weight_hr = (weight.transpose(1, 2) for weight in (weight_ih, weight_hh, weight_hr))
    outputs, ended = [], []
    first = 0
    for sizes in step_chunks(batch_sizes, chunk_size):
        words = inputs[:, first : first + sum(sizes)]  # (2, words of the chunk, projection_dim)
        first += sum(sizes)
        from_inputs = torch.baddbmm(bias[:, None], words, weight_ih)  # (2, words of the chunk, 4 * lstm_dim)
        for rows, from_input in zip(sizes, from_inputs.split(sizes, dim=1), strict=True):
            if rows < hidden.shape[1]:
                ended.append((hidden[:, rows:], cell[:, rows:]))
                hidden, cell = hidden[:, :rows], cell[:, :rows]
            gates = torch.baddbmm(from_input, hidden.to(from_input.dtype), weight_hh)  # (2, rows, 4 * lstm_dim)
            i, f, g, o = gates.to(cell.dtype).chunk(4, dim=-1)  # (2, rows, lstm_dim) each
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            if cell_clip is not None:
                cell = cell.clamp(-cell_clip, cell_clip)
            output = (torch.sigmoid(o) * torch.tanh(cell)).to(weight_hr.dtype)
            hidden = torch.bmm(output, weight_hr)  # (2, rows, projection_dim)
            if proj_clip is not None:
                hidden = hidden.clamp(-proj_clip, proj_clip)
            outputs.append(hidden)
    ended.append((hidden, cell))
    # The longest texts ended last, and rows go by falling length.
    hidden = torch.cat([rows.to(hidden.dtype) for rows, _ in reversed(ended)], dim=1)
    cell = torch.cat([rows for _, rows in reversed(ended)], dim=1)
    return torch.cat(outputs, dim=1) if outputs else inputs, hidden, cell


def scan_lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor, hidden: Tensor, cell: Tensor,
    *, cell_clip: float | None, proj_clip: float | None,
) -> Tensor:  # fmt: skip
    """One layer, both directions, padded texts; for export, since a loop in Python would be unrolled.

    What a direction reads behind a text's last word cannot change what came before. Weights and bounds are those of
    `packed_lstm`.

    Args:
        inputs: (2, batch, words, projection_dim), each direction in its reading order.
        hidden: (2, batch, projection_dim), of the dtype of `inputs`.
        cell: (2, batch, lstm_dim), at least float32.

    Returns:
        (2, batch, words, projection_dim) outputs before the skip.
    """
    from torch._higher_order_ops.scan import scan  # torch has no public name for it

    weight_ih, weight_hh, weight_hr = (weight.transpose(1, 2) for weight in (weight_ih, weight_hh, weight_hr))
    from_inputs = torch.matmul(inputs, weight_ih[:, None]) + bias[:, None, None]  # (2, batch, words, 4 * lstm_dim)

    def step(state: tuple[Tensor, Tensor], from_input: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        hidden, cell = state  # (2, batch, projection_dim), (2, batch, lstm_dim)
        i, f, g, o = (from_input + torch.bmm(hidden, weight_hh)).to(cell.dtype).chunk(4, dim=-1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        if cell_clip is not None:
            cell = cell.clamp(-cell_clip, cell_clip)
        hidden = torch.bmm((torch.sigmoid(o) * torch.tanh(cell)).to(weight_hr.dtype), weight_hr)
        if proj_clip is not None:
            hidden = hidden.clamp(-proj_clip, proj_clip)
        return (hidden, cell), hidden.clone()  # results of a scan must not share memory

    start = hidden.contiguous(), cell.contiguous()  # laid out as what a step returns, or scan refuses them
    _, outputs = scan(step, start, from_inputs.movedim(2, 0))
    return outputs.movedim(0, 2)


def fused_lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor | None, hidden: Tensor,
    cell: Tensor, batch_sizes: list[int], *, cell_clip: float | None, proj_clip: float | None,
    chunk_size: int | None = None, laid_out: LaidOutWeights | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`packed_lstm` for speed: the same arguments and results, and inputs of any width.

    Without `weight_hr` it is a plain LSTM: `hidden` is (2, rows, lstm_dim), and nothing is projected or clipped then.
    `laid_out` keeps the weights of a layer that gets no gradient in a faster form between calls.

    Where it is faster (`products.py`), one direction runs behind the other: a leading 2 in the shapes below is 1 then.

    Differentiable once. Where a number lies exactly on its bound no gradient goes through, as if it had been clipped.
    """
    if not batch_sizes:
        return inputs.new_zeros(2, 0, hidden.shape[2]), hidden, cell
    bounds = (math.inf if cell_clip is None else cell_clip, math.inf if proj_clip is None else proj_clip)
    cell = cell.to(torch.promote_types(inputs.dtype, torch.float32))  # kernels in C take it for that
    tensors = (inputs, weight_ih, weight_hh, bias, weight_hr, hidden.to(inputs.dtype), cell)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        if laid_out is not None:
            laid_out.clear()  # they are about to change
        return _by_direction(lambda *part: _FusedLstm.apply(*part, batch_sizes, *bounds), tensors, batch_sizes)
    with torch.autocast(inputs.device.type, enabled=False):
        results = _infer_by_kernel(*tensors, batch_sizes=batch_sizes, bounds=bounds, laid_out=laid_out)
        if results is not None:
            return results
        kept = None
        if laid_out is not None and weight_hr is not None and keeps_layout(weight_hh, max(batch_sizes)):
            kept = laid_out.look_up((weight_ih, weight_hh, weight_hr), lay_out)
        infer = functools.partial(_infer, batch_sizes=batch_sizes, bounds=bounds, chunk_size=chunk_size)
        return _by_direction(infer, tensors, batch_sizes, kept)


def _by_direction(
    run: Callable[..., tuple[Tensor, Tensor, Tensor]], tensors: Sequence[Tensor | None], batch_sizes: list[int],
    kept: Sequence[Sequence[Tensor]] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`run` for both directions at once, or, where that is faster or weights are laid out, one behind the other."""
    weight_hh = tensors[2]
    assert weight_hh is not None
    if kept is None and not is_faster_one_by_one(weight_hh, batch_sizes):
        return run(*tensors)
    sides = zip(*((None, None) if tensor is None else tensor.split(1) for tensor in tensors), strict=True)
    results = [run(*side, *([kept[index]] if kept else [])) for index, side in enumerate(sides)]
    outputs, hidden, cell = (torch.cat(parts) for parts in zip(*results, strict=True))
    return outputs, hidden, cell


# Words of a call from which the kernel is faster where its weights were packed before, and where they must be for it.
FEWEST_WORDS, FEWEST_WORDS_TO_PACK = 2, 32


def _given(*weights: Tensor | None) -> list[Tensor]:
    """Without the W_hr that a plain LSTM does not have."""
    return [weight for weight in weights if weight is not None]


def _kernel_for(inputs: Tensor, weights: Sequence[Tensor], words: int) -> RecurrenceKernel | GpuRecurrence | None:
    """The whole layer in C or on a GPU in Triton; `None` where neither serves or is faster."""
    are_fit = (is_plain_tensor(x) and x.device == inputs.device and x.dtype == inputs.dtype for x in weights)
    if words < FEWEST_WORDS or not all(are_fit):
        return None
    on_cpu = inputs.device.type == "cpu"
    kernel = recurrence_kernel(inputs.dtype) if on_cpu else gpu_recurrence(inputs.dtype, inputs.device)
    return kernel if kernel is not None and kernel.takes(*(weight.shape[2] for weight in weights)) else None


def _infer_by_kernel(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor | None, hidden: Tensor,
    cell: Tensor, *, batch_sizes: list[int], bounds: tuple[float, float], laid_out: LaidOutWeights | None,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """The forward pass alone, by a kernel where that is faster."""
    weights, words = _given(weight_ih, weight_hh, weight_hr), sum(batch_sizes)
    kernel = _kernel_for(inputs, weights, words)
    if kernel is None:
        return None
    packed = None
    if isinstance(kernel, RecurrenceKernel):
        packed = None if laid_out is None else laid_out.look_up(weights, kernel.pack_layer)
        if packed is None and words < FEWEST_WORDS_TO_PACK:
            return None
    if packed is None:
        packed = kernel.pack_layer(weights)
    results = kernel.forward(inputs, packed, bias, hidden, cell, batch_sizes, bounds)
    return results.outputs, _last_outputs(results.outputs, hidden, batch_sizes), results.cell


def _infer(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor | None, hidden: Tensor,
    cell: Tensor, laid_out: Sequence[Tensor | None] = (None, None, None), *, batch_sizes: list[int],
    bounds: tuple[float, float], chunk_size: int | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The forward pass alone, of both directions or one, in buffers that each step uses anew."""
    cell_bound, proj_bound = bounds
    rows, dim = cell.shape[1:]
    chunks = list(step_chunks(batch_sizes, chunk_size, HOISTED_BYTES / (4 * dim * len(inputs) * inputs.itemsize)))
    of_ih, of_hh, of_hr = laid_out
    times_ih = repeated_product(weight_ih, [sum(sizes) for sizes in chunks], of_ih)
    times_hh = repeated_product(weight_hh, batch_sizes, of_hh)
    times_hr = None if weight_hr is None else repeated_product(weight_hr, batch_sizes, of_hr)
    outputs = inputs.new_empty(len(inputs), inputs.shape[1], hidden.shape[2])
    final_cell = cell.clone(memory_format=torch.contiguous_format)
    before, cell = hidden, final_cell
    hoisted = inputs.new_empty(len(inputs) * max(map(sum, chunks)) * 4 * dim)
    first = 0
    for sizes in chunks:
        chunk = slice(first, first + sum(sizes))
        first = chunk.stop
        shape = len(inputs), sum(sizes), 4 * dim
        from_inputs = times_ih(inputs[:, chunk], hoisted[: math.prod(shape)].view(shape))
        steps = zip(from_inputs.split(sizes, 1), outputs[:, chunk].split(sizes, 1), strict=True)
        for gates, output in steps:  # (directions, rows, 4 * lstm_dim) and (directions, rows, projection_dim)
            if output.shape[1] < rows or before is hidden:
                rows = output.shape[1]
                before, cell = before[:, :rows], final_cell[:, :rows]
                buffer, mixed, projected = _step_buffers(gates, dim, output)
            recurrent = times_hh(before, buffer)
            if times_hr is None:
                cell_forward(gates, recurrent, bias, cell, cell, output, cell_bound, keep=False)
            else:
                cell_forward(gates, recurrent, bias, cell, cell, mixed, cell_bound, keep=False)
                torch.clamp(times_hr(mixed, projected), -proj_bound, proj_bound, out=output)
            before = output
    return outputs, _last_outputs(outputs, hidden, batch_sizes), final_cell


# Input products that are in memory at a time without gradients, unless those of one step are more: if many, they leave
# the caches, and if few, the products are small (measured with tiny to original).
HOISTED_BYTES = 16 * 2**20


def _step_buffers(gates: Tensor, dim: int, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What one step writes: (2, rows, 4 * lstm_dim), (2, rows, lstm_dim) and (2, rows, projection_dim), contiguous."""
    return gates.new_empty(gates.shape), gates.new_empty(*gates.shape[:2], dim), output.new_empty(output.shape)


def _last_outputs(outputs: Tensor, hidden: Tensor, batch_sizes: list[int]) -> Tensor:
    """Each row's output at its own last step; `hidden` for a row without words: (2, rows, projection_dim)."""
    running, last = _last_places(tuple(batch_sizes), outputs.device)
    return torch.cat([outputs[:, last], hidden[:, running:]], dim=1)


@functools.lru_cache(maxsize=64)
def _last_places(batch_sizes: tuple[int, ...], device: torch.device) -> tuple[int, Tensor]:
    """How many rows have words, and (that many,) the packed place of each one's last word."""
    sizes = torch.tensor(batch_sizes)
    running = int(sizes[0]) if len(sizes) else 0
    lengths = (sizes[:, None] > torch.arange(running)).sum(0)  # (running,)
    first_of_step = torch.cumsum(sizes, 0) - sizes  # (steps,)
    return running, (first_of_step[lengths - 1] + torch.arange(running)).to(device, non_blocking=True)


class _FusedLstm(torch.autograd.Function):
    """Keeps the activated gates, the cells and what each step projects; recomputes nothing but tanh of the cells."""

    @staticmethod
    def forward(
        ctx, inputs, weight_ih, weight_hh, bias, weight_hr, hidden, cell, batch_sizes, cell_bound, proj_bound
    ):  # fmt: skip
        bounds, weights = (cell_bound, proj_bound), (weight_ih, weight_hh, weight_hr)
        with torch.autocast(inputs.device.type, enabled=False):
            given = _given(*weights)
            kernel = _kernel_for(inputs, given, sum(batch_sizes))
            if kernel is not None:
                packed = kernel.pack_layer(given)
                results = kernel.forward(inputs, packed, bias, hidden, cell, batch_sizes, bounds, keep=True)
            else:
                results = _forward_steps(inputs, *weights, bias, hidden, cell, batch_sizes, bounds)
            final_hidden = _last_outputs(results.outputs, hidden, batch_sizes)
            final_cell = _last_outputs(results.cells, cell, batch_sizes)
        ctx.save_for_backward(inputs, *weights, hidden, *results)
        ctx.batch_sizes, ctx.bounds, ctx.kernel = batch_sizes, bounds, kernel
        return results.outputs, final_hidden, final_cell

    @staticmethod
    @once_differentiable
    def backward(ctx, d_outputs, d_final_hidden, d_final_cell):
        inputs, weight_ih, weight_hh, weight_hr, hidden, *saved = ctx.saved_tensors
        results, batch_sizes = LayerResults(*saved), ctx.batch_sizes
        running, last = _last_places(tuple(batch_sizes), inputs.device)
        with torch.autocast(inputs.device.type, enabled=False):
            # (directions, packed, projection_dim)
            d_outputs = d_outputs.index_add(1, last, d_final_hidden[:, :running]).contiguous()
            d_cell = d_final_cell.clone(memory_format=torch.contiguous_format)  # (directions, rows, lstm_dim)
            arguments = (results, weight_hh, weight_hr, d_outputs, d_cell, batch_sizes, ctx.bounds)
            d_gates, d_hidden = (_backward_steps if ctx.kernel is None else ctx.kernel.backward)(*arguments)
            hiddens_before = _shifted(results.outputs, hidden, batch_sizes)  # (directions, packed, projection_dim)
            need = ctx.needs_input_grad
            return (
                bmm(d_gates, weight_ih) if need[0] else None,
                weight_gradients(d_gates, inputs) if need[1] else None,
                weight_gradients(d_gates, hiddens_before) if need[2] else None,
                d_gates.sum(1) if need[3] else None,
                weight_gradients(d_outputs, results.mixed) if need[4] and weight_hr is not None else None,
                torch.cat([d_hidden, d_final_hidden[:, running:]], dim=1) if need[5] else None,
                d_cell if need[6] else None,
                None, None, None,
            )  # fmt: skip


def _forward_steps(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, weight_hr: Tensor | None, bias: Tensor, hidden: Tensor,
    cell: Tensor, batch_sizes: list[int], bounds: tuple[float, float],
) -> LayerResults:  # fmt: skip
    """`RecurrenceKernel.forward` with `keep`, step by step, on any device."""
    cell_bound, proj_bound = bounds
    packed, dim = inputs.shape[1], cell.shape[2]
    directions = len(inputs)  # both or one
    outputs = inputs.new_empty(directions, packed, hidden.shape[2])
    times_hh = repeated_product(weight_hh, batch_sizes)
    times_hr = None if weight_hr is None else repeated_product(weight_hr, batch_sizes)
    gates = bmm(inputs, weight_ih.transpose(1, 2))  # (directions, packed, 4 * lstm_dim)
    cell = cell.contiguous()
    cells = cell.new_empty(directions, packed, dim)
    mixed = outputs if weight_hr is None else inputs.new_empty(directions, packed, dim)
    before, cell_before, buffer = hidden, cell, None
    per_step = (gates, cells, mixed, outputs)
    for one_gates, one_cell, one_mixed, output in zip(*(x.split(batch_sizes, 1) for x in per_step), strict=True):
        rows = output.shape[1]
        if buffer is None or rows < before.shape[1]:
            before, cell_before = before[:, :rows], cell_before[:, :rows]
            buffer, _, projected = _step_buffers(one_gates, dim, output)
        recurrent = times_hh(before, buffer)  # (directions, rows, 4 * lstm_dim)
        cell_forward(one_gates, recurrent, bias, cell_before, one_cell, one_mixed, cell_bound, keep=True)
        if times_hr is not None:
            torch.clamp(times_hr(one_mixed, projected), -proj_bound, proj_bound, out=output)
        before, cell_before = output, one_cell
    return LayerResults(outputs, cell, mixed, cells, gates)


def _backward_steps(
    results: LayerResults, weight_hh: Tensor, weight_hr: Tensor | None, d_outputs: Tensor, d_cell: Tensor,
    batch_sizes: list[int], bounds: tuple[float, float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`RecurrenceKernel.backward`, step by step, on any device."""
    cell_bound, proj_bound = bounds
    d_gates = torch.empty_like(results.gates)  # (directions, packed, 4 * lstm_dim)
    per_step = (results.gates, results.cells, d_gates, d_outputs, results.outputs)
    steps = list(zip(*(tensor.split(batch_sizes, 1) for tensor in per_step), strict=True))
    for step in reversed(range(len(steps))):
        one_gates, one_cell, one_d_gates, d_output, output = steps[step]
        rows = d_output.shape[1]
        if weight_hr is None:
            d_mixed = d_output
        else:
            d_output.mul_(output.abs() < proj_bound)
            d_mixed = bmm(d_output, weight_hr)  # (directions, rows, lstm_dim)
        cell_before = (steps[step - 1][1] if step > 0 else results.cell)[:, :rows]
        cell_backward(one_gates, cell_before, one_cell, d_mixed, d_cell[:, :rows], one_d_gates, cell_bound)
        d_hidden = bmm(one_d_gates, weight_hh)  # (directions, rows, projection_dim)
        if step > 0:
            steps[step - 1][3][:, :rows] += d_hidden
    return d_gates, d_hidden


def _shifted(outputs: Tensor, hidden: Tensor, batch_sizes: list[int]) -> Tensor:
    """The recurrent input of each step: `hidden`, then the outputs of the step before: (2, packed, projection_dim)."""
    if batch_sizes[-1] == hidden.shape[1]:  # no text ends before another
        return torch.cat([hidden, outputs[:, : outputs.shape[1] - batch_sizes[-1]]], dim=1)
    sources = [hidden, *outputs.split(batch_sizes, 1)[:-1]]
    return torch.cat([source[:, :rows] for source, rows in zip(sources, batch_sizes, strict=True)], dim=1)


def cell_forward(
    gates: Tensor, recurrent: Tensor, bias: Tensor, cell: Tensor, new_cell: Tensor, output: Tensor,
    bound: float, keep: bool,
):  # fmt: skip
    """One step of the cell, all in place; every tensor's rows lie without gaps.

    Args:
        gates: (2, rows, 4 * lstm_dim); with `recurrent` and `bias` it sums to i, f, g, o.
        recurrent: (2, rows, 4 * lstm_dim).
        bias: (2, 4 * lstm_dim).
        cell: (2, rows, lstm_dim) before the step.
        new_cell: the same behind it; may be the same tensor.
        output: (2, rows, lstm_dim) for sigmoid(o) * tanh(new_cell).
        bound: where the cell is clipped.
        keep: whether `gates` holds the activated gates afterwards.
    """
    if gates.device.type == "cpu" and (kernels := cell_kernels(gates.dtype)) is not None:
        kernels.forward(gates, recurrent, bias, cell, new_cell, output, bound, keep)
        return
    if takes_cell(gates, cell):
        gpu_cell_forward(gates, recurrent, bias, cell, new_cell, output, bound, keep)
        return
    i, f, g, o = (gates.to(cell.dtype) + recurrent + bias[:, None]).chunk(4, dim=-1)  # (2, rows, lstm_dim) each
    i, f, g, o = i.sigmoid_(), f.sigmoid_(), g.tanh_(), o.sigmoid_()
    new_cell.copy_((f * cell).addcmul_(i, g).clamp_(-bound, bound))
    output.copy_(new_cell.tanh().mul_(o))
    if keep:
        gates.copy_(torch.cat([i, f, g, o], dim=-1))


def cell_backward(
    gates: Tensor, cell: Tensor, new_cell: Tensor, d_output: Tensor, d_cell: Tensor, d_gates: Tensor, bound: float
):
    """The gradients of `cell_forward`.

    Args:
        gates: activated.
        cell: before the step.
        new_cell: behind it.
        d_output: the gradient of its output.
        d_cell: the gradient of `new_cell`; afterwards that of `cell`.
        d_gates: for the gradient of the gates before their activations.
        bound: as in `cell_forward`.
    """
    if gates.device.type == "cpu" and (kernels := cell_kernels(gates.dtype)) is not None:
        kernels.backward(gates, cell, new_cell, d_output, d_cell, d_gates, bound)
        return
    if takes_cell(gates, cell):
        gpu_cell_backward(gates, cell, new_cell, d_output, d_cell, d_gates, bound)
        return
    i, f, g, o = gates.to(cell.dtype).chunk(4, dim=-1)  # (2, rows, lstm_dim) each
    squashed, d_output = new_cell.tanh(), d_output.to(cell.dtype)
    d_value = (d_cell + d_output * o * (1 - squashed * squashed)) * (new_cell.abs() < bound)
    parts = d_value * g * i * (1 - i), d_value * cell * f * (1 - f), d_value * i * (1 - g * g)
    d_gates.copy_(torch.cat([*parts, d_output * squashed * o * (1 - o)], dim=-1))
    torch.mul(d_value, f, out=d_cell)
