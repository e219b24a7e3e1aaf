"""Products by oneDNN: the numbers and gradients of torch's own, and only where they are asked for."""

from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.nn import functional as F

from modeling_elmo import ElmoConfig, ElmoModel, products
from modeling_elmo.products import Linear, bmm, linear, weight_gradients

pytestmark = pytest.mark.skipif(
    not products.has_onednn_products(torch.float32), reason="torch has no oneDNN on this machine"
)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def calls(monkeypatch) -> list[torch.Size]:
    """The shapes of oneDNN's products, which every processor is made to prefer."""
    shapes: list[torch.Size] = []
    product = products._onednn
    monkeypatch.setattr(products, "mkl_holds_back", lambda: True)
    monkeypatch.setattr(products, "_onednn", lambda x, *rest: (shapes.append(x.shape), product(x, *rest))[1])
    return shapes


@pytest.mark.parametrize("strided", [False, True])
def test_linear_is_a_product(calls, strided):
    left, right = (torch.randn(33, 70), torch.randn(70, 21))
    if strided:
        left, right = torch.randn(70, 33).T, torch.randn(21, 2, 70)[:, 1].T
    torch.testing.assert_close(linear(left, right.T), left @ right, **CLOSE)
    assert calls == [(33, 70)]


@pytest.mark.parametrize(("rows", "inner", "columns"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_a_product_of_nothing(calls, rows, inner, columns):
    product = linear(torch.ones(rows, inner), torch.ones(inner, columns).T)
    assert torch.equal(product, torch.zeros(rows, columns))
    assert not calls


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("width", "dim"), [(8, 50), (50, 8)])
def test_products_of_one_direction_and_of_both(calls, directions, width, dim):
    inputs, d_outputs = torch.randn(directions, 30, width), torch.randn(directions, 30, dim)
    weight = torch.randn(directions, dim, width)
    torch.testing.assert_close(bmm(inputs, weight.mT), torch.bmm(inputs, weight.mT), **CLOSE)
    torch.testing.assert_close(weight_gradients(d_outputs, inputs), torch.bmm(d_outputs.mT, inputs), **CLOSE)
    assert len(calls) == (2 if directions == 1 else 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (5, 8)])
def test_linear_has_the_gradients_of_torch_twice(calls, shape, bias):
    inputs, weight = torch.randn(*shape, 12, requires_grad=True), torch.randn(31, 12, requires_grad=True)
    leaves = [inputs, weight, torch.randn(31, requires_grad=True)][: 3 if bias else 2]
    results = []
    for function in (linear, F.linear):
        outputs = function(*leaves)
        gradients = torch.autograd.grad(outputs.tanh().sum(), leaves, create_graph=True)
        penalty = sum(gradient.square().sum() for gradient in gradients)
        results.append([outputs, *gradients, *torch.autograd.grad(penalty, leaves)])
    assert len(calls) > 3
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_gradients_do_not_depend_on_where_backward_is_called(calls):
    inputs, weight = torch.randn(40, 12, requires_grad=True), torch.randn(31, 12, requires_grad=True)
    expected = torch.autograd.grad(linear(inputs, weight).tanh().sum(), [inputs, weight])
    total = linear(inputs, weight).tanh().sum()
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(total, [inputs, weight])
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_linear_leaves_to_torch_what_is_not_plain_float32(calls):
    weight = torch.randn(3, 4)
    assert linear(torch.ones(4), weight).shape == (3,)
    assert linear(torch.ones(0, 4), weight).shape == (0, 3)
    assert linear(torch.ones(2, 4).double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.ones(2, 4), weight).dtype == torch.bfloat16

    class Scaled(torch.Tensor):
        """As a library's quantised weights: a tensor that knows by itself how it is multiplied."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            assert function is F.linear or "get" in function.__name__
            return super().__torch_function__(function, types, args, kwargs or {})

    linear(torch.ones(2, 4), weight.as_subclass(Scaled))
    assert not calls
    linear(torch.ones(2, 4), weight)
    assert calls == [(2, 4)]


def test_shapes_that_do_not_fit_are_refused_in_the_words_of_torch(calls):
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        linear(torch.randn(2, 7), torch.randn(4, 8))
    assert not calls


def test_linear_module_is_a_linear_layer(calls):
    ours, layer = Linear(4, 3), nn.Linear(4, 3)
    ours.load_state_dict(layer.state_dict())
    inputs = torch.randn(6, 4)
    torch.testing.assert_close(ours(inputs), layer(inputs), **CLOSE)
    assert isinstance(ours, nn.Linear) and len(calls) == 1
    assert len(
        torch.export.export(ours, (inputs,)).graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    )


def test_bfloat16_is_multiplied_in_float32_where_it_would_be_emulated(monkeypatch):
    inputs, weight, bias = (torch.randn(shape).bfloat16().requires_grad_() for shape in [(2, 5, 7), (3, 7), (3,)])
    monkeypatch.setattr(products, "has_onednn_products", lambda dtype: False)
    dtypes = []
    product = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda inputs, *rest: (dtypes.append(inputs.dtype), product(inputs, *rest))[1]
    )
    outputs = linear(inputs, weight, bias)
    outputs.float().square().sum().backward()
    expected = inputs.float() @ weight.float().T + bias.float()
    assert torch.equal(outputs, expected.bfloat16()) and dtypes == [torch.float32]
    assert {leaf.grad.dtype for leaf in (inputs, weight, bias)} == {torch.bfloat16}
    assert (bias.grad.float() - 2 * outputs.float().sum((0, 1))).abs().max() < 0.05 * bias.grad.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(inputs.float(), weight.float(), bias), outputs)
    assert dtypes == [torch.float32] * 2
    linear(inputs, weight.detach().as_subclass(type("Quantised", (torch.Tensor,), {})), bias)
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16]
    rows, other = inputs[0].detach(), inputs[1].detach()
    assert torch.equal(linear(rows, other), (rows.float() @ other.float().T).bfloat16())
    assert torch.equal(bmm(inputs, inputs.transpose(1, 2))[0], linear(rows, rows))
    assert torch.equal(weight_gradients(inputs, inputs)[1], linear(other.T, other.T))


def test_steps_in_bfloat16_are_multiplied_in_float32_where_they_would_be_emulated(monkeypatch):
    inputs, weight = torch.randn(2, 5, 7).bfloat16(), torch.randn(2, 3, 7).bfloat16()
    monkeypatch.setattr(products, "has_onednn_products", lambda dtype: False)
    dtypes = []
    product = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, *rest, **out: (dtypes.append(x.dtype), product(x, *rest, **out))[1])
    times = products.repeated_product(weight, [5, 5])
    found = times(inputs, torch.empty(2, 5, 3, dtype=torch.bfloat16))
    assert torch.equal(found, product(inputs.float(), weight.float().mT).bfloat16()) and dtypes == [torch.float32]


@pytest.mark.parametrize("in_c", [True, False])
def test_a_model_has_the_same_numbers_and_gradients(calls, monkeypatch, in_c):
    """With the steps of the recurrence in C, or as products of this library, too."""
    if not in_c:
        monkeypatch.setattr("modeling_elmo.lstm_ops.recurrence_kernel", lambda dtype: None)
    model = ElmoModel(ElmoConfig(**TINY)).eval()
    ids = torch.randint(1, 258, (12, 7, 50))
    ids[:, :, 9:] = 261  # padding of characters

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        outputs = model(ids).last_hidden_state
        outputs.square().sum().backward()
        return [outputs, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]

    monkeypatch.setattr(products, "FEWEST_ONE_BY_ONE", 0)
    actual = results()
    assert len(calls) > (20 if in_c else 50)
    monkeypatch.setattr(products, "mkl_holds_back", lambda: False)
    number = len(calls)
    expected = results()
    assert len(calls) == number
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("maker", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
@pytest.mark.parametrize("has_info", [True, False])
def test_which_processors_mkl_holds_back(monkeypatch, maker, capability, expected, has_info):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(Path, "is_file", lambda path: has_info)
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor : 0\nvendor_id : {maker}\n")
    monkeypatch.setattr("platform.processor", lambda: f"AMD64 Family 26 Model 2, {maker}")
    assert products.mkl_holds_back.__wrapped__() is expected
