"""The recurrence: the reference against the equations and torch, and all faster paths against the reference."""

import math
import shutil

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_elmo import ElmoConfig, ElmoState, cpu_kernels
from modeling_elmo import lstm as lstm_module
from modeling_elmo.lstm import ElmoLstm
from modeling_elmo.lstm_ops import fused_lstm, naive_lstm
from modeling_elmo.packing import Packing, pack, pack_full, pack_texts
from modeling_elmo.recurrence_kernel import recurrence_kernel

TOLERANCE = {torch.float64: {"rtol": 0, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 2e-6}}
LENGTHS = {
    "mixed": [3, 7, 0, 5, 1],
    "equal": [4, 4, 4],
    "ties": [2, 5, 2, 5, 0, 0],
    "single": [6],
    "rising": [1, 2, 3],
    "equal or none": [3, 0, 3],
    "no words": [0, 0],
    "no rows": [],
}


def make_lstm(dtype: torch.dtype = torch.float64, std: float = 0.7, **changes) -> ElmoLstm:
    """A stack with weights large enough for gates far from 0.5, and for clipping where the clips are small."""
    lstm = ElmoLstm(ElmoConfig(**{**TINY, **changes}))
    for parameter in lstm.parameters():
        nn.init.normal_(parameter, std=std)
    return lstm.to(dtype)


def make_inputs(lstm: ElmoLstm, lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, ElmoState]:
    """(2, rows, words, projection_dim) streams in reading order, and a state that is not zero."""
    projection_dim, dim = lstm.layers[0].weight_hr.shape[1:]
    streams = torch.randn(2, len(lengths), max(lengths, default=0), projection_dim, dtype=dtype)
    hidden = torch.randn(len(lstm.layers), 2, len(lengths), projection_dim, dtype=dtype) / 2
    cell = torch.randn(len(lstm.layers), 2, len(lengths), dim, dtype=dtype) / 2
    return streams, ElmoState(hidden, cell)


def packing_of(streams: Tensor, lengths: list[int]) -> Packing:
    return pack(torch.arange(len(lengths)) * streams.shape[2], torch.tensor(lengths, dtype=torch.long))


def run(lstm: ElmoLstm, streams: Tensor, lengths: list[int], state: ElmoState) -> tuple[list[Tensor], ElmoState]:
    """`ElmoLstm` over padded streams: each layer (2, rows, words, projection_dim), zeros behind the texts."""
    packing = packing_of(streams, lengths)
    layers, state = lstm(streams.flatten(1, 2)[:, packing.forward_index], packing, state)
    place = [layer.new_zeros(2, streams[0].flatten(0, 1).shape[0], layer.shape[2]) for layer in layers]
    return [
        zeros.index_copy(1, packing.forward_index, layer).view(streams.shape)
        for zeros, layer in zip(place, layers, strict=True)
    ], state


def reference(lstm: ElmoLstm, streams: Tensor, lengths: list[int], state: ElmoState, masks: Tensor | None = None):
    """The same by `naive_lstm`, a text at a time. `masks`: what dropout multiplies each layer's input with."""
    layers, hidden, cell = [], state.hidden.clone(), state.cell.clone()
    inputs = streams
    for index, layer in enumerate(lstm.layers):
        if masks is not None:
            inputs = inputs * masks[index]
        clips = {"cell_clip": layer.cell_clip, "proj_clip": layer.proj_clip, "forget_bias": layer.forget_bias}
        outputs = torch.zeros_like(streams)
        for side in (0, 1):
            weights = [w[side] for w in (layer.weight_ih, layer.weight_hh, layer.bias, layer.weight_hr)]
            for row, length in enumerate(lengths):
                before = state.hidden[index, side, row], state.cell[index, side, row]
                out, h, c = naive_lstm(inputs[side, row, :length], *weights, *before, **clips)
                if lstm.use_skip_connections and index > 0:
                    out = out + inputs[side, row, :length]
                outputs[side, row, :length] = out
                hidden[index, side, row], cell[index, side, row] = h, c
        inputs = outputs
        layers.append(outputs)
    return layers, ElmoState(hidden, cell)


def with_gradients(function, lstm: ElmoLstm, streams: Tensor, lengths: list[int], state: ElmoState, *args):
    """All outputs as one list of tensors, and the gradients of a random sum of them in inputs, state and weights."""
    leaves = [tensor.clone().requires_grad_() for tensor in (streams, *state)]
    layers, final = function(lstm, leaves[0], lengths, ElmoState(*leaves[1:]), *args)
    outputs = [*layers, *final]
    torch.manual_seed(1)
    total = sum((output * torch.randn(output.shape, dtype=torch.float64).to(output.dtype)).sum() for output in outputs)
    return outputs, torch.autograd.grad(total, [*leaves, *lstm.parameters()], materialize_grads=True)


def assert_all_close(actual, expected, **tolerance):
    assert len(actual) == len(expected)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, number=number: f"tensor {number}: {text}")


# ---- the reference itself


def test_naive_lstm_is_the_equations():
    """One cell, in plain Python; the clips are reached."""
    numbers = [0.7, -1.3, 0.9, 2.0]  # i, f, g, o
    weight_ih, weight_hh, bias = (torch.tensor(numbers, dtype=torch.float64) * scale for scale in (1.0, -0.5, 0.3))
    words = [1.5, -0.4, 2.5, 0.3, -2.0]

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    hidden, cell, expected, clipped = 0.2, -0.1, [], 0
    for word in words:
        i, f, g, o = (n * word - 0.5 * n * hidden + 0.3 * n for n in numbers)
        cell = sigmoid(f + 1.0) * cell + sigmoid(i) * math.tanh(g)
        clipped += abs(cell) > 0.6
        cell = min(max(cell, -0.6), 0.6)
        hidden = sigmoid(o) * math.tanh(cell) * 1.7
        clipped += abs(hidden) > 0.8
        hidden = min(max(hidden, -0.8), 0.8)
        expected.append(hidden)
    assert clipped >= 3

    outputs, last_hidden, last_cell = naive_lstm(
        torch.tensor(words, dtype=torch.float64)[:, None],
        weight_ih[:, None],
        weight_hh[:, None],
        bias,
        torch.tensor([[1.7]], dtype=torch.float64),
        torch.tensor([0.2], dtype=torch.float64),
        torch.tensor([-0.1], dtype=torch.float64),
        cell_clip=0.6,
        proj_clip=0.8,
        forget_bias=1.0,
    )
    assert outputs[:, 0].tolist() == pytest.approx(expected, abs=1e-14)
    assert (last_hidden.item(), last_cell.item()) == pytest.approx((hidden, cell), abs=1e-14)


@pytest.mark.parametrize("forget_bias", [0.0, 1.0, -0.5])
def test_naive_lstm_equals_torch_without_clips(forget_bias):
    torch_lstm = nn.LSTM(6, 12, proj_size=6).double()
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = torch_lstm.parameters()
    words, hidden, cell = torch.randn(9, 6).double(), torch.randn(6).double(), torch.randn(12).double()
    bias = (bias_ih + bias_hh).detach().clone()
    with torch.no_grad():
        bias[12:24] -= forget_bias
    actual = naive_lstm(
        words, weight_ih, weight_hh, bias, weight_hr, hidden, cell,
        cell_clip=None, proj_clip=None, forget_bias=forget_bias,
    )  # fmt: skip
    outputs, (last_hidden, last_cell) = torch_lstm(words, (hidden[None], cell[None]))
    assert_all_close(actual, (outputs, last_hidden[0], last_cell[0]), **TOLERANCE[torch.float64])


# ---- packing


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packing_visits_every_word_once_in_reading_order(lengths):
    starts = torch.arange(len(lengths)) * 10 + 3
    packing = pack(starts, torch.tensor(lengths, dtype=torch.long))
    steps = range(max(lengths, default=0))
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])  # stable, as packing.order must be
    visits = [(row, step) for step in steps for row in rows if step < lengths[row]]
    assert packing.order.tolist() == rows
    assert packing.batch_sizes == [sum(length > step for length in lengths) for step in steps]
    assert packing.forward_index.tolist() == [row * 10 + 3 + step for row, step in visits]
    assert packing.backward_index.tolist() == [row * 10 + 3 + lengths[row] - 1 - step for row, step in visits]
    assert packing.is_last.tolist() == [step == lengths[row] - 1 for row, step in visits]


def test_texts_without_padding_are_packed_as_any():
    for one, other in zip(pack_full(3, 4, torch.device("cpu")), pack_texts(torch.ones(3, 4).bool()), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


# ---- ElmoLstm against the reference

VARIANTS = {
    "original": {"cell_clip": 3.0, "proj_clip": 3.0},
    "tight clips": {"cell_clip": 0.5, "proj_clip": 0.4},
    "no clips": {"cell_clip": None, "proj_clip": None},
    "cell clip": {"cell_clip": 0.5, "proj_clip": None},
    "projection clip": {"cell_clip": None, "proj_clip": 0.4},
    "no skips": {"use_skip_connections": False},
    "one layer": {"num_hidden_layers": 1},
    "three layers": {"num_hidden_layers": 3},
    "no forget bias": {"forget_bias": 0.0},
    "chunks of 1": {"chunk_size": 1},
    "chunks of 3": {"chunk_size": 3},
    "no chunks": {"chunk_size": None},
}


def choose_path(monkeypatch, path: str):
    """Let `ElmoLstm` run one of its paths: "packed", or "fused" with the cell by torch or by the compiled kernel, or
    one direction behind the other, as on processors that MKL holds back, or so with weights that are kept laid out; or
    the whole layer in C."""
    if path == "whole layer":
        if recurrence_kernel(torch.float32) is None:
            pytest.skip("there is no C compiler, or no processor that the kernel is for")
        return
    monkeypatch.setattr("modeling_elmo.lstm_ops.recurrence_kernel", lambda dtype: None)
    if path == "packed":
        monkeypatch.setattr(lstm_module, "is_traced", lambda: True)
    elif path == "fused, one by one":
        monkeypatch.setattr("modeling_elmo.products.mkl_holds_back", lambda: True)
        monkeypatch.setattr("modeling_elmo.products.FEWEST_ONE_BY_ONE", 0)
        monkeypatch.setattr("modeling_elmo.lstm_ops.keeps_layout", lambda *_: False)
    elif path == "fused, laid out":
        monkeypatch.setattr("modeling_elmo.lstm_ops.keeps_layout", lambda *_: True)
    elif path == "fused, torch":
        monkeypatch.setattr("modeling_elmo.lstm_ops.cell_kernels", lambda dtype: None)
    elif shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    else:
        assert cpu_kernels.cell_kernels(torch.float32) is not None


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(
    ("dtype", "path"),
    [
        (torch.float64, "packed"),
        (torch.float64, "fused, torch"),
        (torch.float32, "fused, torch"),
        (torch.float32, "fused, kernel"),
        (torch.float32, "fused, one by one"),
        (torch.float32, "whole layer"),
    ],
    ids=str,
)
def test_lstm_equals_the_reference(dtype, path, variant, monkeypatch):
    choose_path(monkeypatch, path)
    # With std=0.7, float32 rounding grows to 1e-5 in the gradients, whatever the order of summation.
    lstm = make_lstm(dtype, std=0.7 if dtype == torch.float64 else 0.4, **variant)
    streams, state = make_inputs(lstm, LENGTHS["mixed"], dtype)
    actual, gradients = with_gradients(run, lstm, streams, LENGTHS["mixed"], state)
    expected, expected_gradients = with_gradients(reference, lstm, streams, LENGTHS["mixed"], state)
    assert_all_close(actual, expected, **TOLERANCE[dtype])
    assert_all_close(gradients, expected_gradients, **TOLERANCE[dtype])


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lstm_equals_the_reference_for_all_lengths(lengths):
    lstm = make_lstm(cell_clip=0.5, proj_clip=0.4)
    streams, state = make_inputs(lstm, lengths)
    actual, gradients = with_gradients(run, lstm, streams, lengths, state)
    expected, expected_gradients = with_gradients(reference, lstm, streams, lengths, state)
    assert_all_close(actual, expected, **TOLERANCE[torch.float64])
    assert_all_close(gradients, expected_gradients, **TOLERANCE[torch.float64])


@pytest.mark.parametrize("hoisted_bytes", [1, 40_000, 300_000, 2**30])
@pytest.mark.parametrize(
    "path", ["packed", "fused, torch", "fused, kernel", "fused, one by one", "fused, laid out", "whole layer"]
)
def test_inference_equals_training(path, hoisted_bytes, monkeypatch):
    """Without gradients other buffers are used; with many rows the kernel runs on several threads."""
    choose_path(monkeypatch, path)
    monkeypatch.setattr("modeling_elmo.lstm_ops.HOISTED_BYTES", hoisted_bytes)
    lengths = [9, 2, 0, 5, 5] * 20
    lstm = make_lstm(torch.float32, 0.2, lstm_dim=45, projection_dim=19, chunk_size=4, cell_clip=0.8, proj_clip=0.4)
    streams, state = make_inputs(lstm, lengths, torch.float32)
    expected, final = run(lstm, streams, lengths, state)
    assert (final.cell.abs() == 0.8).any() and (expected[0].abs() == 0.4).any()
    with torch.no_grad():
        actual, end = run(lstm, streams, lengths, state)
    assert_all_close([*actual, *end], [*expected, *final], rtol=1e-5, atol=1e-6)
    is_kept = path in ("fused, laid out", "whole layer")
    assert [layer.laid_out._kept[1] is not None for layer in lstm.layers] == [is_kept] * 2


def test_weights_laid_out_for_onednn(monkeypatch):
    """Large weights and many steps take another library's products."""
    choose_path(monkeypatch, "fused, kernel")
    lengths = [12, 3, 12, 0, 7]
    lstm = make_lstm(torch.float32, std=0.2, lstm_dim=45, projection_dim=19)
    streams, state = make_inputs(lstm, lengths, torch.float32)
    for layer in lstm.layers:
        layer.laid_out = None  # for one call alone
    laid_out = []
    reorder = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *args: laid_out.append(1) or reorder(*args))
    with torch.no_grad():
        expected, final = run(lstm, streams, lengths, state)
        assert not laid_out
        monkeypatch.setattr("modeling_elmo.products.PACKED_BYTES", 0)
        actual, end = run(lstm, streams, lengths, state)
    assert len(laid_out) == len(lstm.layers) * 2 * 2
    assert_all_close([*actual, *end], [*expected, *final], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_equal_the_cell_in_torch(dtype, monkeypatch):
    """Far gates too, an odd width, and gradients; both paths round each result to `dtype` once."""
    dim, projection_dim, sizes = 37, 11, [70, 70, 33]
    packed = sum(sizes)
    shapes = [(2, packed, projection_dim), (2, 4 * dim, projection_dim), (2, 4 * dim, projection_dim), (2, 4 * dim)]
    tensors = [torch.randn(shape) for shape in [*shapes, (2, projection_dim, dim), (2, 70, projection_dim)]]
    tensors[3] *= 20
    leaves = [tensor.to(dtype).requires_grad_() for tensor in tensors] + [torch.randn(2, 70, dim).requires_grad_()]

    def results() -> list[Tensor]:
        outputs = fused_lstm(*leaves, sizes, cell_clip=2.0, proj_clip=3.0)
        torch.manual_seed(0)
        total = sum((output.float() * torch.randn(output.shape)).sum() for output in outputs)
        return [tensor.float() for tensor in (*outputs, *torch.autograd.grad(total, leaves))]

    actual = results()
    choose_path(monkeypatch, "fused, torch")
    for one, other in zip(actual, results(), strict=True):
        error = (one - other).norm() / other.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2), float(error)


def test_kernels_keep_numbers_that_are_not_finite():
    """NaN in, NaN out, in its own row alone; gates at infinity saturate."""
    lstm = make_lstm(torch.float32, cell_clip=3.0, proj_clip=3.0)
    streams, state = make_inputs(lstm, [4, 4, 4], torch.float32)
    streams[0, 1, 2], streams[0, 2] = math.nan, 1e30
    with torch.no_grad():
        layers, _ = run(lstm, streams, [4, 4, 4], state)
    assert layers[0][0, 1, :2].isfinite().all() and layers[0][0, 1, 2:].isnan().all()
    assert layers[0][0, [0, 2]].isfinite().all() and layers[0][1].isfinite().all()


@pytest.mark.parametrize("path", ["fused, torch", "fused, kernel", "whole layer"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_float64_state_of_a_float32_layer_is_rounded(path, grad, monkeypatch):
    choose_path(monkeypatch, path)
    lstm, lengths = make_lstm(torch.float32, std=0.4), [5, 3]
    streams, state = make_inputs(lstm, lengths, torch.float32)
    with torch.set_grad_enabled(grad):
        expected, final = run(lstm, streams, lengths, state)
        actual, end = run(lstm, streams, lengths, ElmoState(*(part.double() for part in state)))
    assert_all_close([*actual, *end], [*expected, *final], rtol=0, atol=0)
    if grad:
        parameters = list(lstm.parameters())
        gradients = [torch.autograd.grad(final.cell.sum(), parameters) for final in (end, final)]
        assert_all_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("path", ["packed", "fused, torch", "fused, kernel", "whole layer"])
def test_what_comes_in_stays_as_it_was(path, monkeypatch):
    """States and gradients may be others' too: autograd hands one tensor to all that a sum is made of."""
    choose_path(monkeypatch, path)
    lstm, lengths = make_lstm(torch.float32, num_hidden_layers=1), [5, 3]
    streams, state = make_inputs(lstm, lengths, torch.float32)
    packing = packing_of(streams, lengths)
    inputs = [streams.flatten(1, 2)[:, packing.forward_index], packing.batch_sizes, state.hidden[0], state.cell[0]]
    kept = [tensor.clone() for tensor in (inputs[0], *inputs[2:])]
    with torch.no_grad():
        lstm.layers[0](*inputs)
    results = lstm.layers[0](*inputs)
    assert_all_close([inputs[0], *inputs[2:]], kept, rtol=0, atol=0)
    gradients = [torch.randn_like(result) for result in results]
    kept = [gradient.clone() for gradient in gradients]
    torch.autograd.grad(results, list(lstm.parameters()), gradients)
    assert_all_close(gradients, kept, rtol=0, atol=0)


@pytest.mark.parametrize("path", ["fused, torch", "whole layer"])
def test_what_alone_gets_a_gradient_gets_the_same(path, monkeypatch):
    """As where all weights but some are frozen."""
    choose_path(monkeypatch, path)
    layer, lengths = make_lstm(torch.float32, std=0.4).layers[0], [5, 3, 0]
    streams, state = make_inputs(make_lstm(), lengths, torch.float32)
    packing = packing_of(streams, lengths)
    hidden, cell = (part[0][:, packing.order] for part in state)
    weights = [layer.weight_ih, layer.weight_hh, layer.bias, layer.weight_hr]
    tensors = [tensor.detach() for tensor in (streams.flatten(1, 2)[:, packing.forward_index], *weights, hidden, cell)]

    def gradients(wanted: list[int]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_(index in wanted) for index, tensor in enumerate(tensors)]
        outputs = fused_lstm(*leaves, packing.batch_sizes, cell_clip=3.0, proj_clip=3.0)
        return list(torch.autograd.grad(sum(x.square().sum() for x in outputs), [leaves[index] for index in wanted]))

    expected = gradients(list(range(7)))
    assert_all_close([gradient for index in range(7) for gradient in gradients([index])], expected, rtol=0, atol=1e-6)


def test_clips_are_reached_in_these_tests():
    lstm = make_lstm(cell_clip=0.5, proj_clip=0.4)
    streams, state = make_inputs(lstm, [40] * 5)
    layers, final = run(lstm, streams, [40] * 5, state)
    assert final.cell.abs().max() == 0.5 and (final.cell.abs() == 0.5).double().mean() > 0.1
    assert final.hidden.abs().max() == 0.4 and (final.hidden.abs() == 0.4).double().mean() > 0.1
    assert layers[0].abs().max() == 0.4
    assert layers[1].abs().max() > 0.4, "the skip is added behind the clip"


def test_a_text_without_words_keeps_its_state():
    lstm = make_lstm()
    streams, state = make_inputs(lstm, LENGTHS["mixed"])
    _, final = run(lstm, streams, LENGTHS["mixed"], state)
    assert torch.equal(final.hidden[:, :, 2], state.hidden[:, :, 2])
    assert torch.equal(final.cell[:, :, 2], state.cell[:, :, 2])


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_carrying_the_state_over_a_cut_changes_nothing(cut):
    lstm = make_lstm(num_hidden_layers=3)
    streams, state = make_inputs(lstm, [7, 7])
    whole, final = run(lstm, streams, [7, 7], state)
    first, middle = run(lstm, streams[:, :, :cut], [cut, cut], state)
    second, end = run(lstm, streams[:, :, cut:], [7 - cut, 7 - cut], middle)
    parts = [torch.cat(pair, dim=2) for pair in zip(first, second, strict=True)]
    assert_all_close([*parts, *end], [*whole, *final], rtol=0, atol=1e-12)


def test_directions_are_independent():
    lstm = make_lstm()
    streams, state = make_inputs(lstm, [4, 6])
    layers, final = run(lstm, streams, [4, 6], state)
    changed = streams.clone()
    changed[1] += 1
    others, other_final = run(lstm, changed, [4, 6], state)
    for layer, other in zip(layers, others, strict=True):
        assert torch.equal(layer[0], other[0])
        assert not torch.isclose(layer[1, 1], other[1, 1]).all(1).any()
    assert torch.equal(final.hidden[:, 0], other_final.hidden[:, 0])


# ---- dropout


@pytest.mark.parametrize("skips", [True, False])
def test_dropout_is_on_each_layers_input_and_its_skip(skips):
    lengths = [3, 7, 0, 5, 1]
    lstm = make_lstm(dropout=0.4, num_hidden_layers=3, use_skip_connections=skips).train()
    streams, state = make_inputs(lstm, lengths)
    packing = packing_of(streams, lengths)
    packed_masks = torch.ones(3, 2, sum(lengths), streams.shape[-1], dtype=torch.float64)
    torch.manual_seed(5)
    packed_masks = torch.stack([F.dropout(ones, 0.4) for ones in packed_masks])  # drawn in the order of the layers
    masks = torch.ones(3, 2, streams.shape[1] * streams.shape[2], streams.shape[-1], dtype=torch.float64)
    masks[:, :, packing.forward_index] = packed_masks
    expected, final = reference(lstm, streams, lengths, state, masks.view(3, *streams.shape))
    torch.manual_seed(5)
    actual, actual_final = run(lstm, streams, lengths, state)
    assert_all_close([*actual, *actual_final], [*expected, *final], rtol=0, atol=1e-10)
    assert not torch.equal(run(lstm, streams, lengths, state)[0][-1], actual[-1]), "each call draws anew"


def test_no_dropout_in_evaluation():
    lstm = make_lstm(dropout=0.4).eval()
    streams, state = make_inputs(lstm, [3, 7])
    expected, _ = reference(lstm, streams, [3, 7], state)
    assert_all_close(run(lstm, streams, [3, 7], state)[0], expected, rtol=0, atol=1e-10)


# ---- lower precision


FLOAT16 = 5e-3 if torch.__version__ >= "2.13" else 1e-2  # 2.13 comes to 0.002, 2.11 to 0.006; 2.12 was not tried


@pytest.mark.parametrize("path", ["packed", "whole layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, FLOAT16)], ids=str)
def test_half_precision_is_close(dtype, tolerance, path, monkeypatch):
    """The half model against the float64 reference with the same rounded weights and inputs, 30 words long."""
    choose_path(monkeypatch, path)
    lengths = [30, 12, 0, 30]
    lstm = make_lstm(torch.float32, std=0.4).to(dtype)
    streams, state = make_inputs(lstm, lengths, dtype)
    state = ElmoState(state.hidden, state.cell.float())
    layers, final = run(lstm, streams, lengths, state)
    assert {layer.dtype for layer in layers} == {final.hidden.dtype} == {dtype}
    assert final.cell.dtype == torch.float32
    lstm.double()
    expected, end = reference(lstm, streams.double(), lengths, ElmoState(*(part.double() for part in state)))
    assert_all_close([x.double() for x in [*layers, *final]], [*expected, *end], rtol=0, atol=tolerance)


@pytest.mark.parametrize("path", ["packed", "whole layer"])
def test_autocast_runs_the_products_in_bfloat16_and_trains_float32_weights(path, monkeypatch):
    choose_path(monkeypatch, path)
    lengths = [5, 3, 0]
    lstm = make_lstm(torch.float32, std=0.4)
    streams, state = make_inputs(lstm, lengths, torch.float32)
    expected, expected_gradients = with_gradients(run, lstm, streams, lengths, state)
    with torch.autocast("cpu", torch.bfloat16):
        actual, gradients = with_gradients(run, lstm, streams, lengths, state)
    assert actual[0].dtype == actual[-2].dtype == torch.bfloat16
    assert actual[-1].dtype == torch.float32, "cells stay float32"
    assert_all_close([x.float() for x in actual], [x.float() for x in expected], rtol=0, atol=2e-2)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - expected_gradient).norm() < 0.02 * expected_gradient.norm()
