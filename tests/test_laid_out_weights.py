"""Weights that are kept in a faster form: equal numbers, never stale, and only where they pay."""

import copy
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from modeling_elmo import ElmoConfig, ElmoModel, lstm_ops, products
from modeling_elmo.lstm import ElmoLstmLayer
from modeling_elmo.products import keeps_layout
from modeling_elmo.recurrence_kernel import recurrence_kernel
from modeling_elmo.weight_changes import LaidOutWeights, fingerprint_of

SIZES = [6, 6, 4, 1]  # texts that run at each step


@pytest.fixture(params=["oneDNN", "kernel"])
def form(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def layouts(form, monkeypatch) -> list[tuple[torch.Size, int]]:
    """What was laid out, for oneDNN or for our kernel; all weights are made to pay. Its shape, and how many tensors
    that were laid out earlier were alive before it."""
    calls: list[tuple[torch.Size, int]] = []
    made: list[weakref.ref] = []

    def watched(lay_out):
        def run(weight: Tensor, *args, **kwargs) -> Tensor:
            calls.append((weight.shape, sum(ref() is not None for ref in made)))
            laid_out = lay_out(weight, *args, **kwargs)
            made.append(weakref.ref(laid_out))
            return laid_out

        return run

    monkeypatch.setattr(lstm_ops, "keeps_layout", lambda *_: True)
    monkeypatch.setattr(products, "_lay_out", watched(products._lay_out))
    kernel = recurrence_kernel(torch.float32)
    if form == "oneDNN":
        if not products.has_onednn_products(torch.float32):
            pytest.skip("torch has no oneDNN on this machine")
        monkeypatch.setattr(lstm_ops, "recurrence_kernel", lambda dtype: None)
    elif kernel is None:
        pytest.skip("there is no C compiler, or no processor that the kernel is for")
    else:
        monkeypatch.setattr(kernel, "pack", watched(kernel.pack))
    return calls


def make_layer(seed: int = 0) -> ElmoLstmLayer:
    torch.manual_seed(seed)
    layer = ElmoLstmLayer(ElmoConfig(**{**TINY, "lstm_dim": 20, "projection_dim": 8}))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def outputs_of(layer: ElmoLstmLayer, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, sum(SIZES), 8, generator=generator)
    with torch.no_grad():
        return layer(inputs, SIZES, torch.zeros(2, 6, 8), torch.zeros(2, 6, 20))[0]  # (2, packed, projection_dim)


def without_layout(layer: ElmoLstmLayer) -> Tensor:
    layer = copy.deepcopy(layer)
    layer.laid_out = None
    return outputs_of(layer)


def test_weights_are_laid_out_once(layouts, form):
    layer = make_layer()
    first, second = outputs_of(layer), outputs_of(layer)
    one = [(80, 8), (80, 8), (8, 20)]
    assert [shape for shape, _ in layouts] == (one * 2 if form == "oneDNN" else [(2, *shape) for shape in one])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, without_layout(layer), rtol=1e-5, atol=1e-6)


def scale(weight: Tensor, through_data: bool):
    with torch.no_grad():
        (weight.data if through_data else weight).mul_(-1.5)  # through .data, torch's counter of changes stays


CHANGES = {
    "in place": lambda layer, name: scale(getattr(layer, name), through_data=False),
    "through data": lambda layer, name: scale(getattr(layer, name), through_data=True),
    "another parameter": lambda layer, name: setattr(layer, name, nn.Parameter(-getattr(layer, name).detach())),
    "load_state_dict": lambda layer, name: layer.load_state_dict({**layer.state_dict(), name: -getattr(layer, name)}),
    "assign": lambda layer, name: layer.load_state_dict({name: -getattr(layer, name)}, strict=False, assign=True),
}


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "weight_hr"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_weight_is_laid_out_anew(change, name):
    layer = make_layer()
    before = outputs_of(layer)
    change(layer, name)
    after = outputs_of(layer)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after, without_layout(layer), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_rows_that_change_places_are_seen():
    """The sums of a large weight's bits stay what they were, but torch counts the change."""
    weight = nn.Parameter(torch.randn(64, 64))
    before = fingerprint_of([weight])
    assert fingerprint_of([weight]) == before
    weight[:2] = weight[:2].flip(0)
    assert fingerprint_of([weight]) != before


def test_a_number_of_a_large_weight_that_changes_past_the_counter_is_seen():
    weight = nn.Parameter(torch.randn(150, 150))
    before = fingerprint_of([weight])
    weight.data[0, 0] += 1
    assert fingerprint_of([weight]) != before


@torch.no_grad()
def test_the_same_bits_are_other_weights_in_another_shape_or_dtype():
    weight = torch.ones(2, 6)
    views = [weight, weight.view(3, 4), weight.view(torch.int32)]
    assert len({fingerprint_of([view]) for view in views}) == 3


def test_small_tables_are_remembered_as_they_are():
    """Two rows of characters may lie in one part, and `data` moves them past torch's counter."""
    table = nn.Parameter(torch.randn(262, 16))
    before = fingerprint_of([table])
    table.data[[98, 99]] = table.data[[99, 98]]
    assert fingerprint_of([table]) != before


def test_each_form_is_laid_out_by_itself():
    """A layer may run by the kernel in C and by products, which want its weights in another form each."""
    weights, kept = [nn.Parameter(torch.randn(2, 8, 4))], LaidOutWeights()
    forms = {"one": lambda weights: "one", "other": lambda weights: "other"}
    assert [kept.look_up(weights, forms[name]) for name in ("one", "other", "one")] == ["one", "other", "one"]


def test_training_gives_the_memory_back(layouts, form):
    layer = make_layer()
    outputs_of(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    inputs = torch.randn(2, sum(SIZES), 8)
    layer(inputs, SIZES, torch.zeros(2, 6, 8), torch.zeros(2, 6, 20))[0].square().sum().backward()
    assert layer.laid_out._kept == (None, None)
    assert len(layouts) == (6 if form == "oneDNN" else 3 + 3 + 2), "the kernel packs for each call of training"
    optimizer.step()
    torch.testing.assert_close(outputs_of(layer), without_layout(layer), rtol=1e-5, atol=1e-6)


def test_copies_start_empty_and_are_independent():
    layer = make_layer()
    expected = outputs_of(layer)
    other = copy.deepcopy(layer)
    assert layer.laid_out._kept[1] and not other.laid_out._kept[1]
    assert not pickle.loads(pickle.dumps(layer)).laid_out._kept[1]
    scale(other.weight_hh, through_data=False)
    assert not torch.equal(outputs_of(other), expected) and torch.equal(outputs_of(layer), expected)


def test_threads_share_them():
    layer = make_layer()
    expected = [outputs_of(layer, seed) for seed in range(20)]
    layer.laid_out.clear()

    def run(seed: int) -> bool:
        with torch.inference_mode(seed % 2 == 0):
            return torch.equal(outputs_of(layer, seed), expected[seed])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(20)))


def test_a_weight_that_is_cast_for_the_call_is_not_kept(layouts):
    layer = make_layer()
    with torch.autocast("cpu", torch.bfloat16):
        outputs_of(layer)
    assert not layouts
    layer.weight_hh = nn.Parameter(layer.weight_hh.detach().as_subclass(type("Quantised", (Tensor,), {})))
    outputs_of(layer)
    assert not layouts


def test_a_saved_model_knows_nothing_of_them(tmp_path):
    model = ElmoModel(ElmoConfig(**TINY)).eval()
    ids = torch.randint(1, 258, (3, 7, 50))
    with torch.no_grad():
        expected = model(ids).last_hidden_state
        names = set(model.state_dict())
        model.save_pretrained(tmp_path)
        loaded = ElmoModel.from_pretrained(tmp_path)
        assert set(loaded.state_dict()) == names and not [name for name in names if "laid" in name]
        assert torch.equal(loaded(ids).last_hidden_state, expected)


@pytest.mark.parametrize(
    ("dim", "rows", "is_held_back", "is_kept"),
    [
        (4096, 64, False, True),
        (4096, 1, False, False),
        (64, 64, False, False),
        (64, 128, True, True),
        (64, 1, True, False),
    ],
)
def test_where_they_pay(dim, rows, is_held_back, is_kept, monkeypatch):
    """Large weights, or, where MKL holds the processor back, much work."""
    monkeypatch.setattr(products, "mkl_holds_back", lambda: is_held_back)
    assert keeps_layout(torch.empty(2, 4 * dim, 512), rows) is is_kept
    assert not keeps_layout(torch.empty(2, 4 * dim, 512, device="meta"), rows)
    assert not keeps_layout(torch.empty(2, 4 * dim, 512, dtype=torch.float64), rows)


def test_old_weights_are_given_back_before_new_ones_are_made(layouts, form):
    layer = make_layer()
    outputs_of(layer)
    number = len(layouts)
    assert number == (6 if form == "oneDNN" else 3)
    scale(layer.weight_hh, through_data=False)
    outputs_of(layer)
    assert [alive for _, alive in layouts] == [*range(number), *range(number)]
