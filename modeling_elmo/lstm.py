"""The recurrence of ELMo: a stack of projected, clipped LSTM layers in two directions (Sak et al. 2014).

The layers know nothing of left and right. Each direction is a stream of its own, given in the order in which that
direction reads it: index 0 of the first dimension is the forward direction, 1 the backward one.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized
from transformers.modeling_layers import GradientCheckpointingLayer

from .lstm_ops import fused_lstm, packed_lstm, scan_lstm
from .packing import Packing
from .products import is_traced
from .weight_changes import LaidOutWeights


class ElmoState(NamedTuple):
    """The LSTM's memory between two pieces of text (Sak et al. 2014, arXiv 1402.1128). Index 1 is the direction: 0
    forward, 1 backward.

    Attributes:
        hidden: (num_hidden_layers, 2, batch, projection_dim), the last projected output before the skip, in the dtype
            of the weights.
        cell: (num_hidden_layers, 2, batch, lstm_dim), float32 also in a half-precision model.
    """

    hidden: Tensor
    cell: Tensor


class ElmoLstmLayer(GradientCheckpointingLayer):
    """One layer of both directions. Parameters as in `torch.nn.LSTM` (gates i, f, g, o), stacked over directions.

    Attributes:
        laid_out: the weights once more in the form that products on the CPU are fastest with, while no gradient of
            them is asked for; set it to `None` to keep none.
    """

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
        self.laid_out: LaidOutWeights | None = LaidOutWeights()

    def forward(
        self, inputs: Tensor, batch_sizes: list[int], hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the layer over packed words.

        Args:
            inputs: (2, packed, projection_dim), each direction in its reading order.
            batch_sizes: texts still running at each step, as in `Packing`.
            hidden: (2, rows, projection_dim), rows by falling length.
            cell: (2, rows, lstm_dim), the same rows.

        Returns:
            Outputs before the skip (2, packed, projection_dim), and each row's state after its own last word.

        Raises:
            ValueError: gradient checkpointing of parametrised weights.
        """
        if self.gradient_checkpointing and self.training and is_parametrized(self):
            # PEFT takes its parametrisation away after the call, so that the layer would be recomputed without it.
            raise ValueError("adapters of the LSTMs and gradient checkpointing do not go together: switch one off")
        weight_ih, weight_hh, bias, weight_hr = self._weights(inputs)
        tensors = (inputs.to(weight_ih.dtype), weight_ih, weight_hh, bias, weight_hr, hidden, cell)
        bounds = {"cell_clip": self.cell_clip, "proj_clip": self.proj_clip}
        if is_traced():
            return packed_lstm(*tensors, batch_sizes, **bounds, chunk_size=self.chunk_size)
        return fused_lstm(*tensors, batch_sizes, **bounds, chunk_size=self.chunk_size, laid_out=self.laid_out)

    def forward_padded(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Outputs before the skip, (2, batch, words, projection_dim) as `inputs`: padded texts that begin in `hidden`
        (2, batch, projection_dim) and `cell` (2, batch, lstm_dim)."""
        weights = self._weights(inputs)
        tensors = (inputs.to(weights[0].dtype), *weights, hidden.to(weights[0].dtype), cell)
        return scan_lstm(*tensors, cell_clip=self.cell_clip, proj_clip=self.proj_clip)

    def _weights(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W_ih, W_hh, the bias with the forget bias, W_hr. Under autocast they are cast here once, not in each step."""
        # (4, 1): i, f, g, o; made where the bias is, since the host would have to wait for a GPU to copy it there.
        offsets = F.pad(self.bias.new_full((1, 1), self.forget_bias), (0, 0, 1, 2))
        bias = (self.bias.unflatten(1, (4, -1)) + offsets).flatten(1)  # (2, 4 * lstm_dim)
        dtype, device = self.weight_ih.dtype, inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        return self.weight_ih.to(dtype), self.weight_hh.to(dtype), bias.to(dtype), self.weight_hr.to(dtype)


class ElmoLstm(nn.Module):
    """The stack of layers, with dropout on each layer's input and skips from layer 2 on.

    Attributes:
        initial_hidden, initial_cell: with `config.initial_state` the state in which texts begin, as `ElmoState` has it
            for a batch of 1; otherwise `None`, for zeros.
    """

    initial_hidden: Tensor | None
    initial_cell: Tensor | None

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.use_skip_connections = config.use_skip_connections
        self.widths = config.projection_dim, config.lstm_dim
        self.layers = nn.ModuleList(ElmoLstmLayer(config) for _ in range(config.num_hidden_layers))
        for name, shape in zip(("initial_hidden", "initial_cell"), self.state_shapes(1), strict=True):
            self.register_buffer(name, torch.zeros(shape) if config.initial_state else None)

    def state_shapes(self, rows: int) -> list[tuple[int, ...]]:
        """Those of the hidden state and of the cell state of `rows` texts."""
        return [(len(self.layers), 2, rows, width) for width in self.widths]

    def initial_state(self, rows: int, like: Tensor) -> ElmoState:
        """The state in which `rows` texts begin; the device of `like`, and of the hidden state the dtype."""
        hidden_shape, cell_shape = self.state_shapes(rows)
        cell_dtype = torch.promote_types(like.dtype, torch.float32)
        hidden, cell = self.initial_hidden, self.initial_cell
        if hidden is None or cell is None:
            return ElmoState(like.new_zeros(hidden_shape), like.new_zeros(cell_shape, dtype=cell_dtype))
        hidden, cell = hidden.to(like.device, like.dtype), cell.to(like.device, cell_dtype)
        return ElmoState(hidden.expand(hidden_shape), cell.expand(cell_shape))

    def forward(self, inputs: Tensor, packing: Packing, state: ElmoState | None) -> tuple[list[Tensor], ElmoState]:
        """Run all layers over packed words.

        Args:
            inputs: (2, packed, projection_dim), each direction in its reading order.
            packing: how the words are packed.
            state: the state before the first word; its batch dimension counts the packing's rows, in input order.
                `None` for the one that texts begin in.

        Returns:
            A list with one (2, packed, projection_dim) tensor for each layer, and the state after each row's last word.
        """
        if state is None:  # in here, since offloaded buffers come for the call
            state = self.initial_state(len(packing.order), inputs)
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

    def forward_padded(self, inputs: Tensor) -> list[Tensor]:
        """All layers of padded texts from their start, without dropout, for export.

        Args:
            inputs: (2, batch, words, projection_dim), each direction in its reading order, padding behind.

        Returns:
            A list with one tensor of that shape for each layer.
        """
        state, layers = self.initial_state(inputs.shape[1], inputs), []
        for index, layer in enumerate(self.layers):
            outputs = layer.forward_padded(inputs, state.hidden[index], state.cell[index])
            inputs = outputs + inputs if self.use_skip_connections and index > 0 else outputs
            layers.append(inputs)
        return layers
