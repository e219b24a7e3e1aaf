"""The recurrence of ELMo: a stack of projected, clipped LSTM layers in two directions (Sak et al. 2014).

Equations of one step, for each direction and layer, with input x, projected output h and cell c:

    i, f, g, o = split(x W_ih^T + h W_hh^T + b)
    c' = clip(sigmoid(f + forget_bias) * c + sigmoid(i) * tanh(g), cell_clip)
    h' = clip((sigmoid(o) * tanh(c')) W_hr^T, proj_clip)

h' goes to the next step as it is; to the next layer it goes with the layer's input added (a skip, from layer 2 on).

`naive_lstm` is these equations as a loop over one text at a time. `ElmoLstm` is what the model runs; it equals the
reference and does less work: both directions advance in the same products, the input products of many steps are
hoisted into one, and no step touches a text that has ended.

The layers know nothing of left and right. Each direction is a stream of its own, given in the order in which that
direction reads it: index 0 of the first dimension is the forward direction, 1 the backward one.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer


class ElmoState(NamedTuple):
    """The LSTM's memory between two pieces of text. Index 1 is the direction: 0 forward, 1 backward.

    `hidden`: (num_hidden_layers, 2, batch, projection_dim), the last projected output before the skip.
    `cell`: (num_hidden_layers, 2, batch, lstm_dim), float32 also in a half-precision model.
    """

    hidden: Tensor
    cell: Tensor


class Packing(NamedTuple):
    """Where the real words of a batch lie, sorted so that each step of the LSTM is one slice.

    Packed order is step by step, and within a step the longest text first: `batch_sizes[t]` texts are still running
    at step t. Rows are texts; positions count words of the flattened (batch * words) input.

    `order`: (rows,) rows by falling length. `batch_sizes`: list of `longest` ints.
    `forward_index`, `backward_index`: (packed,) position of the word that each direction reads.
    `is_last`: (packed,) bool, true at the last step of a row.
    """

    order: Tensor
    batch_sizes: list[int]
    forward_index: Tensor
    backward_index: Tensor
    is_last: Tensor


def pack(starts: Tensor, lengths: Tensor) -> Packing:
    """The packing of texts that begin at flat positions `starts` (rows,) and have `lengths` (rows,) words."""
    order = torch.argsort(lengths, descending=True, stable=True)
    starts, lengths = starts[order], lengths[order]
    longest = int(lengths[0]) if len(lengths) else 0
    steps = torch.arange(longest, device=lengths.device)
    running = steps[:, None] < lengths  # (longest, rows)
    step, row = running.nonzero(as_tuple=True)  # (packed,) each, in packed order
    return Packing(
        order=order,
        batch_sizes=running.sum(1).tolist(),
        forward_index=starts[row] + step,
        backward_index=starts[row] + lengths[row] - 1 - step,
        is_last=step == lengths[row] - 1,
    )


def naive_lstm(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, weight_hr: Tensor, hidden: Tensor, cell: Tensor,
    *, cell_clip: float | None, proj_clip: float | None, forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One layer, one direction, one text: the equations above as a loop. The reference for every faster path.

    Args:
        inputs: (words, projection_dim) in reading order.
        weight_ih, weight_hh, bias, weight_hr: (4 * lstm_dim, projection_dim), the same, (4 * lstm_dim,) and
            (projection_dim, lstm_dim).
        hidden, cell: (projection_dim,) and (lstm_dim,), the initial state.

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


class ElmoLstmLayer(GradientCheckpointingLayer):
    """One layer of both directions. Parameters as in `torch.nn.LSTM` (gates i, f, g, o), stacked over directions."""

    def __init__(self, config):
        super().__init__()
        dim, projection_dim = config.lstm_dim, config.projection_dim
        self.cell_clip = config.cell_clip
        self.proj_clip = config.proj_clip
        self.forget_bias = config.forget_bias
        self.chunk_size = config.chunk_size
        self.weight_ih = nn.Parameter(torch.empty(2, 4 * dim, projection_dim))
        self.weight_hh = nn.Parameter(torch.empty(2, 4 * dim, projection_dim))
        self.bias = nn.Parameter(torch.empty(2, 4 * dim))
        self.weight_hr = nn.Parameter(torch.empty(2, projection_dim, dim))

    def forward(
        self, inputs: Tensor, batch_sizes: list[int], hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer over packed words.

        Args:
            inputs: (2, packed, projection_dim), each direction in its reading order.
            batch_sizes: texts still running at each step, as in `Packing`.
            hidden, cell: (2, rows, projection_dim) and (2, rows, lstm_dim), rows by falling length.

        Returns:
            Outputs before the skip (2, packed, projection_dim), and each row's state after its own last word.
        """
        weight_ih, weight_hh, weight_hr = self._transposed_weights(inputs)
        bias = self._bias_with_forget_bias().to(weight_ih.dtype)
        outputs, ended = [], []
        first = 0
        for sizes in self._chunks(batch_sizes):
            words = inputs[:, first : first + sum(sizes)]  # (2, words of the chunk, projection_dim)
            first += sum(sizes)
            from_inputs = torch.baddbmm(bias, words, weight_ih)  # (2, words of the chunk, 4 * lstm_dim)
            for rows, from_input in zip(sizes, from_inputs.split(sizes, dim=1), strict=True):
                if rows < hidden.shape[1]:
                    ended.append((hidden[:, rows:], cell[:, rows:]))
                    hidden, cell = hidden[:, :rows], cell[:, :rows]
                gates = torch.baddbmm(from_input, hidden.to(from_input.dtype), weight_hh)  # (2, rows, 4 * lstm_dim)
                hidden, cell = self._step(gates, cell, weight_hr)
                outputs.append(hidden)
        ended.append((hidden, cell))
        # The longest texts ended last, and rows go by falling length.
        hidden = torch.cat([rows.to(hidden.dtype) for rows, _ in reversed(ended)], dim=1)
        cell = torch.cat([rows for _, rows in reversed(ended)], dim=1)
        return torch.cat(outputs, dim=1) if outputs else inputs, hidden, cell

    def _step(self, gates: Tensor, cell: Tensor, weight_hr: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.to(cell.dtype).chunk(4, dim=-1)  # (2, rows, lstm_dim) each
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        if self.cell_clip is not None:
            cell = cell.clamp(-self.cell_clip, self.cell_clip)
        output = (torch.sigmoid(o) * torch.tanh(cell)).to(weight_hr.dtype)
        hidden = torch.bmm(output, weight_hr)  # (2, rows, projection_dim)
        if self.proj_clip is not None:
            hidden = hidden.clamp(-self.proj_clip, self.proj_clip)
        return hidden, cell

    def _bias_with_forget_bias(self) -> Tensor:
        offsets = self.bias.new_tensor([0.0, self.forget_bias, 0.0, 0.0])[:, None]  # (4, 1): i, f, g, o
        return (self.bias.unflatten(1, (4, -1)) + offsets).flatten(1)[:, None]  # (2, 1, 4 * lstm_dim)

    def _transposed_weights(self, inputs: Tensor) -> list[Tensor]:
        """Weights as right factors. Under autocast they are cast here once, not anew in each step."""
        dtype, device = self.weight_ih.dtype, inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return [weight.to(dtype).transpose(1, 2) for weight in (self.weight_ih, self.weight_hh, self.weight_hr)]

    def _chunks(self, batch_sizes: list[int]):
        size = self.chunk_size or max(len(batch_sizes), 1)
        return (batch_sizes[first : first + size] for first in range(0, len(batch_sizes), size))


class ElmoLstm(nn.Module):
    """The stack of layers, with dropout on each layer's input and skips from layer 2 on."""

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.use_skip_connections = config.use_skip_connections
        self.layers = nn.ModuleList(ElmoLstmLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, inputs: Tensor, packing: Packing, state: ElmoState) -> tuple[list[Tensor], ElmoState]:
        """Run all layers over packed words.

        Args:
            inputs: (2, packed, projection_dim), each direction in its reading order.
            packing: how the words are packed.
            state: the state before the first word; its batch dimension counts the packing's rows, in input order.

        Returns:
            A list with one (2, packed, projection_dim) tensor for each layer, and the state after each row's last word.
        """
        layers, finals = [], []
        for index, layer in enumerate(self.layers):
            inputs = F.dropout(inputs, self.dropout, self.training)
            hidden, cell = state.hidden[index][:, packing.order], state.cell[index][:, packing.order]
            outputs, hidden, cell = layer(inputs, packing.batch_sizes, hidden, cell)
            # Dropped inputs go over the skip, as in the original: its residual wrapper is inside its dropout wrapper.
            inputs = outputs + inputs if self.use_skip_connections and index > 0 else outputs
            layers.append(inputs)
            finals.append((hidden, cell))
        input_order = torch.argsort(packing.order)
        hidden = torch.stack([hidden[:, input_order] for hidden, _ in finals])
        cell = torch.stack([cell[:, input_order] for _, cell in finals])
        return layers, ElmoState(hidden, cell)
