"""ElmoModel: against a slow model of plain loops, and every promise of its interface."""

import copy
import math

import pytest
import torch
from accelerate import cpu_offload
from conftest import TINY
from test_lstm import reference
from test_word_encoder import random_words, slow_word
from torch import Tensor, nn

from modeling_elmo import (
    ElmoConfig,
    ElmoForPreTraining,
    ElmoForQuestionAnswering,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
    ElmoState,
    ElmoTokenizer,
    lstm_ops,
)
from modeling_elmo.char_rows import PADDING
from modeling_elmo.lstm import ElmoLstmLayer
from modeling_elmo.modeling_elmo import ElmoScalarMix

TABLE = {"cnn_filters": [], "word_vocab_size": 30}


def make_model(dtype: torch.dtype = torch.float32, cls=ElmoModel, **changes):
    """Weights large enough that every word is heard at the other end of a text."""
    model = cls(ElmoConfig(**{**TINY, "cell_clip": 1.0, "proj_clip": 0.8, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "embedding" not in name:
            nn.init.normal_(parameter, std=0.4)
    return model.to(dtype)


def make_texts(model, lengths: list[int]) -> list[Tensor]:
    """Texts of (words, 50) character ids or (words,) word ids."""
    if not model.config.cnn_filters:
        return [torch.randint(1, 30, (length,)) for length in lengths]
    return [random_words(torch.randint(0, 12, (length,)).tolist()).view(length, 50) for length in lengths]


def pad(texts: list[Tensor], words: int | None = None) -> tuple[Tensor, Tensor]:
    """(batch, words, ...) with zeros behind the texts, and its bool mask."""
    words = max(map(len, texts)) if words is None else words
    ids = torch.stack([torch.cat([text, text.new_zeros(words - len(text), *text.shape[1:])]) for text in texts])
    return ids, torch.arange(words) < torch.tensor([[len(text)] for text in texts])


def slow_elmo(model: ElmoModel, text: Tensor, state: ElmoState | None = None) -> tuple[list[Tensor], ElmoState]:
    """All layers (words, hidden_size) of one text and the state behind it, by the slow references of the parts."""
    config, encoder = model.config, model.word_encoder
    if encoder.has_characters:
        vectors = torch.stack([slow_word(encoder, word) for word in text])
    else:
        vectors = encoder.word_embedding.weight[text]
    shapes = [(config.num_hidden_layers, 2, 1, width) for width in (config.projection_dim, config.lstm_dim)]
    state = state or ElmoState(*(vectors.new_zeros(shape) for shape in shapes))
    streams = torch.stack([vectors, vectors.flip(0)])[:, None]  # (2, 1, words, projection_dim)
    layers, state = reference(model.lstm, streams, [len(text)], state)
    return [torch.cat([layer[0, 0], layer[1, 0].flip(0)], dim=1) for layer in [streams, *layers]], state


def assert_close(actual, expected, atol: float = 1e-6):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# ---- what the model computes


@pytest.mark.parametrize("cut", [13, 50])
@pytest.mark.parametrize("is_pair", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_distinct_words_are_the_words_where_they_stand(cut, is_pair, is_frozen):
    """Layers, state and gradients, with frozen weights (and the cache of words) and without."""
    model = make_model(torch.float64).requires_grad_(not is_frozen)
    (words,) = make_texts(model, [6])  # (6, 50), none longer than 13 characters
    assert (words[:, 13:] == PADDING).all()
    places, mask = torch.randint(0, 6, (3, 5)), torch.arange(5) < torch.tensor([[5], [2], [4]])
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 0, 0], [0, 1, 1, 1, 0]]) if is_pair else None
    given = {"attention_mask": mask, "token_type_ids": types, "output_hidden_states": True}
    expected = model(words[places] * mask[..., None], **given)
    for _ in range(2):  # the second time words are known where weights are frozen
        actual = model(places, distinct_words=words[:, :cut], **given)
        for one, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
            assert_close(one, other, atol=1e-10)
    assert is_pair == (actual.state is None)
    if not is_pair:
        assert_close(actual.state.cell, expected.state.cell, atol=1e-10)
    if not is_frozen:
        gradients = [
            torch.autograd.grad(output.last_hidden_state.square().sum(), list(model.lstm.parameters()))
            for output in (actual, expected)
        ]
        for one, other in zip(*gradients, strict=True):
            assert_close(one, other, atol=1e-10)


def test_distinct_words_need_characters():
    with pytest.raises(ValueError, match="reads no characters"):
        make_model(**TABLE)(torch.zeros(1, 2, dtype=torch.long), distinct_words=torch.full((1, 50), 7))


@pytest.mark.parametrize(
    "changes",
    [{}, TABLE, {"num_hidden_layers": 3, "chunk_size": 2}, {"use_skip_connections": False}, {"num_hidden_layers": 1}],
    ids=str,
)
@pytest.mark.parametrize("with_state", [False, True])
def test_model_equals_the_slow_one(changes, with_state):
    model = make_model(torch.float64, **changes)
    texts = make_texts(model, [4, 1, 7])
    ids, mask = pad(texts, 9)
    state = None
    if with_state:
        state = ElmoState(*(torch.randn_like(part) for part in model(ids[:, :1]).state))
    output = model(ids, mask, state=state, output_hidden_states=True)
    weights = model.scalar_mix.gamma * torch.softmax(model.scalar_mix.weights, 0)
    for row, text in enumerate(texts):
        row_state = state and ElmoState(*(part[:, :, row : row + 1] for part in state))
        layers, final = slow_elmo(model, text, row_state)
        for actual, expected in zip(output.hidden_states, layers, strict=True):
            assert_close(actual[row, : len(text)], expected, 1e-10)
            assert actual[row, len(text) :].eq(0).all()
        mix = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
        assert_close(output.scalar_mix[row, : len(text)], mix, 1e-10)
        for actual, expected in zip(output.state, final, strict=True):
            assert_close(actual[:, :, row : row + 1], expected, 1e-10)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_scalar_mix(layer_norm):
    mix = ElmoScalarMix(ElmoConfig(**TINY, scalar_mix_layer_norm=layer_norm))
    mix.weights, mix.gamma = nn.Parameter(torch.tensor([0.3, -1.0, 2.0])), nn.Parameter(torch.tensor(1.7))
    layers = [torch.randn(2, 5, 12) * 3 + 1 for _ in range(3)]
    scales = [math.exp(weight) for weight in (0.3, -1.0, 2.0)]
    expected = torch.zeros(2, 5, 12)
    for scale, layer in zip(scales, layers, strict=True):
        if layer_norm:
            mean, variance = layer.mean(-1, keepdim=True), layer.var(-1, unbiased=False, keepdim=True)
            layer = (layer - mean) / (variance + 1e-5).sqrt()
        expected += 1.7 * scale / sum(scales) * layer
    assert_close(mix(layers), expected, 1e-5)
    mix(layers).square().sum().backward()
    assert mix.weights.grad.ne(0).all() and mix.gamma.grad.ne(0)


def test_layer_norm_of_the_mix_leaves_padding_zero():
    model = make_model(scalar_mix_layer_norm=True)
    ids, mask = pad(make_texts(model, [2, 5]))
    assert model(ids, mask).scalar_mix[0, 2:].eq(0).all()


# ---- the same text, the same vectors


@pytest.mark.parametrize("changes", [{}, TABLE], ids=str)
def test_a_text_has_the_same_vectors_in_every_company(changes):
    model = make_model(**changes)
    texts = make_texts(model, [4, 1, 7, 7, 3])
    ids, mask = pad(texts)
    batch = model(ids, mask, output_hidden_states=True)
    wide_ids, wide_mask = pad(texts, 20)
    wide = model(torch.where(wide_mask.bool().view(5, 20, *[1] * (ids.dim() - 2)), wide_ids, 7), wide_mask)
    order = torch.tensor([3, 0, 4, 2, 1])
    reordered = model(ids[order], mask[order])
    by_ids_alone = model(ids)
    for row, text in enumerate(texts):
        alone = model(text[None], output_hidden_states=True)
        here, there = slice(0, len(text)), (order == row).nonzero().item()
        for one, other in zip(alone.hidden_states, batch.hidden_states, strict=True):
            assert_close(other[row, here], one[0])
        for name in ("last_hidden_state", "scalar_mix"):
            expected = alone[name][0]
            for output, place in ((batch, row), (wide, row), (reordered, there), (by_ids_alone, row)):
                assert_close(output[name][place, here], expected)
                assert output[name][place, len(text) :].eq(0).all()
        for part, other, moved in zip(alone.state, batch.state, reordered.state, strict=True):
            assert_close(other[:, :, row], part[:, :, 0])
            assert_close(moved[:, :, there], part[:, :, 0])


def test_nothing_is_remembered_between_calls():
    model = make_model()
    ids, mask = pad(make_texts(model, [4, 7]))
    first = model(ids, mask)
    model(*pad(make_texts(model, [9, 2])))
    assert torch.equal(model(ids, mask).scalar_mix, first.scalar_mix)
    assert not list(model.buffers())


def test_both_directions_hear_the_whole_text():
    """Guards the weights of these tests: a vector that hears only its neighbours would prove little above."""
    model = make_model()
    (text,) = make_texts(model, [6])
    changed = text.clone()
    changed[3] = random_words([9])[0]
    difference = (model(text[None]).last_hidden_state - model(changed[None]).last_hidden_state).abs()[0]
    forward, backward = difference[:, :6].amax(1), difference[:, 6:].amax(1)
    assert forward[:3].eq(0).all() and (forward[3:] > 1e-4).all()
    assert backward[4:].eq(0).all() and (backward[:4] > 1e-4).all()


def test_pairs_are_two_texts():
    model = make_model()
    firsts, seconds = make_texts(model, [3, 1, 4, 0]), make_texts(model, [2, 6, 0, 3])
    ids, mask = pad([torch.cat(pair) for pair in zip(firsts, seconds, strict=True)])
    types = pad([torch.tensor([0] * len(a) + [1] * len(b)) for a, b in zip(firsts, seconds, strict=True)])[0]
    types = torch.where(mask, types, 1)  # what is behind the texts does not count
    output = model(ids, mask, token_type_ids=types, output_hidden_states=True)
    assert output.state is None
    for row, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        alone = [model(text[None], output_hidden_states=True) for text in (first, second)]
        end = len(first) + len(second)
        for layer, *parts in zip(output.hidden_states, *(one.hidden_states for one in alone), strict=True):
            assert_close(layer[row, :end], torch.cat(parts, dim=1)[0])
            assert layer[row, end:].eq(0).all()
        mixes = torch.cat([one.scalar_mix for one in alone], dim=1)[0]
        assert_close(output.scalar_mix[row, :end], mixes)


@pytest.mark.parametrize("behind", [0, 1, 7])
def test_token_types_of_padding_do_not_count(behind):
    model = make_model()
    ids, mask = pad(make_texts(model, [4, 7]))
    output = model(ids, mask, token_type_ids=torch.where(mask.bool(), 0, behind))
    assert output.state is not None
    assert torch.equal(output.scalar_mix, model(ids, mask).scalar_mix)


# ---- state


def test_state_carries_the_forward_direction_on():
    model = make_model()
    (text,) = make_texts(model, [9])
    whole = model(text[None]).last_hidden_state[..., :6]
    first = model(text[None, :4])
    second = model(text[None, 4:], state=first.state)
    halves = torch.cat([first.last_hidden_state, second.last_hidden_state], dim=1)
    assert_close(halves[..., :6], whole)
    assert not torch.allclose(model(text[None, 4:]).last_hidden_state[..., :6], whole[:, 4:], atol=1e-3)
    assert_close(second.state.hidden[:, 0], model(text[None]).state.hidden[:, 0])


def test_state_carries_the_backward_direction_on_from_the_first_word():
    """The backward state behind a text is the one after its first word: there the next text is read on, from its end.

    So the result is that of the backward direction over the second text followed by the first, as in the original.
    """
    model = make_model()
    (text,) = make_texts(model, [9])
    second = model(text[None, 4:], state=model(text[None, :4]).state)
    swapped = model(torch.cat([text[4:], text[:4]])[None])
    assert_close(second.last_hidden_state[0, :, 6:], swapped.last_hidden_state[0, :5, 6:])


def test_rows_without_words_hand_their_state_on():
    model = make_model()
    ids, mask = pad(make_texts(model, [4, 7]))
    state = model(ids, mask).state
    mask[0] = 0
    output = model(ids, mask, state=state)
    assert all(torch.equal(a[:, :, 0], b[:, :, 0]) for a, b in zip(output.state, state, strict=True))


def test_state_carries_gradients_unless_detached():
    model = make_model()
    (text,) = make_texts(model, [3])
    embeds = model.get_input_embeddings()(text[None]).detach().requires_grad_()
    model(text[None], state=model(inputs_embeds=embeds).state).scalar_mix.sum().backward()
    assert embeds.grad.ne(0).any()


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_long_texts_in_chunks_equal_the_unchunked(chunk_size):
    whole = make_model(chunk_size=None, max_word_length=12)
    chunked = make_model(chunk_size=chunk_size, max_word_length=12)
    chunked.load_state_dict(whole.state_dict())
    ids, mask = pad([random_words(torch.randint(0, 9, (n,)).tolist(), 12) for n in (30, 70)])
    outputs = [model(ids, mask) for model in (whole, chunked)]
    assert_close(outputs[1].scalar_mix, outputs[0].scalar_mix)
    assert_close(outputs[1].state, outputs[0].state)
    for output in outputs:
        output.scalar_mix.square().mean().backward()
    for (name, one), other in zip(whole.named_parameters(), chunked.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6, msg=name)


# ---- ways in and out


@pytest.mark.parametrize("changes", [{}, TABLE], ids=str)
def test_inputs_embeds_equal_input_ids(changes):
    model = make_model(**changes)
    ids, mask = pad(make_texts(model, [4, 7]))
    embeds = model.get_input_embeddings()(ids)
    assert_close(model(inputs_embeds=embeds, attention_mask=mask).scalar_mix, model(ids, mask).scalar_mix)
    assert_close(model(inputs_embeds=embeds[1:]).scalar_mix, model(ids[1:]).scalar_mix)


@pytest.mark.parametrize("changes", [{}, TABLE], ids=str)
def test_dummy_inputs_are_inputs(changes):
    model = make_model(**changes)
    assert model(**model.dummy_inputs).scalar_mix.shape == (3, 5, 12)


def test_word_vectors_of_another_type_are_cast_to_that_of_the_weights():
    model = make_model(torch.bfloat16, **TABLE)
    vectors = torch.randn(2, 5, 6)
    output, expected = (
        model(inputs_embeds=words, output_hidden_states=True) for words in (vectors, vectors.bfloat16())
    )
    assert output.scalar_mix.dtype == output.hidden_states[0].dtype == torch.bfloat16
    assert torch.equal(output.scalar_mix, expected.scalar_mix)


@pytest.mark.parametrize("changes", [{}, TABLE], ids=str)
def test_input_embeddings_can_be_replaced(changes):
    model = make_model(**changes)
    (text,) = make_texts(model, [4])
    before = model(text[None]).scalar_mix
    old = model.get_input_embeddings()
    model.set_input_embeddings(nn.Embedding(*old.weight.shape))
    assert not torch.allclose(model(text[None]).scalar_mix, before, atol=1e-3)
    model.set_input_embeddings(old)
    assert torch.equal(model(text[None]).scalar_mix, before)


def test_hidden_states_and_tuples():
    model = make_model()
    (text,) = make_texts(model, [4])
    assert model(text[None]).hidden_states is None
    output = model(text[None], output_hidden_states=True)
    assert [layer.shape for layer in output.hidden_states] == [(1, 4, 12)] * 3
    assert torch.equal(output.hidden_states[0][..., :6], output.hidden_states[0][..., 6:])
    last, mix, state, layers = model(text[None], output_hidden_states=True, return_dict=False)  # in transformers' order
    assert torch.equal(last, output.last_hidden_state) and torch.equal(mix, output.scalar_mix)
    assert len(layers) == 3 and isinstance(state, ElmoState)
    model.config.output_hidden_states = True
    assert len(model(text[None]).hidden_states) == 3
    assert model(text[None], output_hidden_states=False).hidden_states is None


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint16, torch.int32, torch.uint32], ids=str)
def test_ids_of_any_integer_type(dtype):
    model = make_model()
    ids, mask = pad(make_texts(model, [4, 7]))
    assert torch.equal(model(ids.to(dtype), mask).scalar_mix, model(ids).scalar_mix)
    assert torch.equal(model(ids.to(dtype)).scalar_mix, model(ids).scalar_mix)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
def test_small_integers_hold_the_ids_of_a_word_table(dtype):
    model = make_model(**TABLE, vocab_size=262)
    ids, mask = pad(make_texts(model, [4, 7]))
    assert torch.equal(model(ids.to(dtype), mask.to(dtype)).scalar_mix, model(ids).scalar_mix)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8, torch.bfloat16], ids=str)
def test_masks_of_any_type(dtype):
    model = make_model()
    ids, mask = pad(make_texts(model, [4, 7]))
    assert torch.equal(model(ids, mask.to(dtype)).scalar_mix, model(ids, mask).scalar_mix)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_half_precision_is_close(dtype, tolerance):
    model = make_model()
    ids, mask = pad(make_texts(model, [12, 7, 1]))
    half = copy.deepcopy(model).to(dtype)
    expected, output = model(ids, mask), half(ids, mask)
    assert output.last_hidden_state.dtype == output.scalar_mix.dtype == output.state.hidden.dtype == dtype
    assert output.state.cell.dtype == torch.float32
    assert_close(output.last_hidden_state.float(), expected.last_hidden_state, tolerance)
    assert_close(output.scalar_mix.float(), expected.scalar_mix, tolerance)
    half(ids, mask, state=output.state).scalar_mix.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in half.parameters())


@torch.no_grad()
def test_a_state_in_half_precision_is_carried_on_without_a_loss():
    """The forward direction over two pieces is bit by bit that over the whole: the cell stays float32 between them."""
    model = make_model().to(torch.bfloat16)
    (text,) = make_texts(model, [24])
    whole = model(text[None]).last_hidden_state[..., :6]
    state, pieces = None, []
    for piece in text.split(4):
        output = model(piece[None], state=state)
        state = output.state
        pieces.append(output.last_hidden_state[..., :6])
    assert torch.equal(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("shape", [(0, 4, 50), (3, 0, 50), (0, 0, 50)], ids=str)
def test_nothing_in_nothing_out(shape):
    model = make_model()
    ids = torch.zeros(shape, dtype=torch.long)
    output = model(ids, output_hidden_states=True)
    assert [layer.shape for layer in output.hidden_states] == [(*shape[:2], 12)] * 3
    assert output.scalar_mix.shape == (*shape[:2], 12)
    assert [part.shape for part in output.state] == [(2, 2, shape[0], 6), (2, 2, shape[0], 12)]
    output.scalar_mix.sum().backward()


def test_rows_of_padding_only():
    model = make_model()
    output = model(torch.zeros(2, 3, 50, dtype=torch.long))
    assert output.last_hidden_state.eq(0).all() and output.scalar_mix.eq(0).all()
    assert all(part.eq(0).all() for part in output.state)


# ---- training


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable:FutureWarning")  # a name that 5.17 lacks
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"dropout": 0.3, **TABLE}], ids=["characters", "table"])
def test_gradient_checkpointing_changes_nothing(use_reentrant, changes, monkeypatch):
    model = make_model(**changes).train()
    ids, mask = pad(make_texts(model, [4, 7, 0]))
    runs: list[int] = []
    weights = ElmoLstmLayer._weights
    monkeypatch.setattr(ElmoLstmLayer, "_weights", lambda layer, inputs: runs.append(1) or weights(layer, inputs))

    def run() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(3)
        runs.clear()
        output = model(ids, mask)
        (output.scalar_mix.square().sum() + output.state.cell.sum() + output.state.hidden.sum()).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.zero_grad()
        return output.scalar_mix.detach(), gradients

    mix, expected = run()
    assert len(runs) == 2
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed_mix, actual = run()
    assert len(runs) == 4, "each layer is run again for its gradients"
    assert torch.equal(checkpointed_mix, mix)
    for (name, _), one, other in zip(model.named_parameters(), actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_dropout_only_in_training():
    model = make_model(dropout=0.5)
    ids, mask = pad(make_texts(model, [4, 7]))
    expected = model(ids, mask).scalar_mix
    model.train()
    torch.manual_seed(0)
    one, two = model(ids, mask).scalar_mix, model(ids, mask).scalar_mix
    torch.manual_seed(0)
    again = model(ids, mask).scalar_mix
    assert not torch.allclose(one, two, atol=1e-3) and not torch.allclose(one, expected, atol=1e-3)
    assert torch.equal(one, again)
    assert torch.equal(model.eval()(ids, mask).scalar_mix, expected)


@pytest.mark.parametrize("trained", ["lstm.layers.0.weight_ih", "word_encoder.projection.weight", None])
def test_no_dropout_where_only_the_mix_is_trained(trained):
    """As AllenNLP's `Elmo(requires_grad=False)` has none, also within a user's module; one weight or adapter is enough
    for it to be training."""
    model = make_model(dropout=0.5).requires_grad_(False)
    model.scalar_mix.requires_grad_(True)
    if trained:
        model.get_parameter(trained).requires_grad_(True)
    ids, mask = pad(make_texts(model, [4, 7]))
    expected = model(ids, mask).scalar_mix
    torch.nn.ModuleList([model]).train()
    assert model.training and model.scalar_mix.training
    output = model(ids, mask).scalar_mix
    assert output.equal(expected) == (trained is None)
    output.sum().backward()
    assert model.scalar_mix.weights.grad.any()
    assert model.eval()(ids, mask).scalar_mix.equal(expected)


def test_no_gradients_without_grad_mode():
    model = make_model()
    (text,) = make_texts(model, [4])
    for context in (torch.no_grad, torch.inference_mode):
        lstm_ops._last_places.cache_clear()  # what one mode leaves there serves in the others
        with context():
            output = model(text[None])
        assert not output.scalar_mix.requires_grad and not output.state.cell.requires_grad
        trained = model(text[None])
        assert_close(output.scalar_mix, trained.scalar_mix.detach())
        trained.scalar_mix.sum().backward()


# ---- bad input


IDS = torch.full((2, 3, 50), 7)
BAD_INPUTS = {
    "left padding": (
        {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])},
        "row 1 has a 0",
    ),
    "a hole": ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, "padded on the right"),
    "left-padded ids": ({"input_ids": torch.cat([IDS * 0, IDS], dim=1)}, "padded on the right"),
    "long mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"= \(2, 3\), not \(2, 4\)"),
    "broadcast mask": ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 1, 3)}, "attention_mask must be of shape"),
    "one row's mask": ({"input_ids": IDS, "attention_mask": torch.ones(1, 3)}, "attention_mask must be of shape"),
    "2-D ids": ({"input_ids": IDS[0]}, r"of shape \(batch, words, 50\), not torch.int64 \(3, 50\).*ElmoTokenizer"),
    "4-D ids": ({"input_ids": IDS[None]}, "input_ids must be integers of shape"),
    "short words": ({"input_ids": IDS[..., :49]}, "input_ids must be integers of shape"),
    "id too large": ({"input_ids": IDS + 255}, "between 0 and 261, but they go from 262 to 262"),
    "16-bit id too large": ({"input_ids": (IDS + 600).to(torch.uint16)}, "between 0 and 261, but"),
    "negative id": ({"input_ids": IDS - 8}, "between 0 and 261, but they go from -1 to -1"),
    "float ids": ({"input_ids": IDS.float()}, "must be integers .*not torch.float32"),
    "bool ids": ({"input_ids": IDS.bool()}, "must be integers .*not torch.bool"),
    "nothing": ({}, "either input_ids or inputs_embeds"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 50, 4)}, "either input_ids or inputs_embeds"),
    "word vectors": ({"inputs_embeds": torch.zeros(2, 3, 6)}, r"inputs_embeds must be .*50, 4.*not .*\(2, 3, 6\)"),
    "narrow vectors": ({"inputs_embeds": torch.zeros(2, 3, 50, 5)}, "inputs_embeds must be"),
    "integer vectors": ({"inputs_embeds": torch.zeros(2, 3, 50, 4).long()}, "inputs_embeds must be floating-point"),
    "ids as vectors": ({"inputs_embeds": IDS.float()}, "inputs_embeds must be"),
    "second before first": (
        {"input_ids": IDS, "token_type_ids": torch.tensor([[1, 0, 0]] * 2)},
        "1 for the second",
    ),
    "three texts": ({"input_ids": IDS, "token_type_ids": torch.tensor([[0, 1, 2]] * 2)}, "1 for the second"),
    "negative type": ({"input_ids": IDS, "token_type_ids": torch.tensor([[0, -1, 1]] * 2)}, "1 for the second"),
    "type of one row": (
        {"input_ids": IDS, "token_type_ids": torch.tensor([[0, 0, 1]])},
        "token_type_ids must be",
    ),
    "short types": ({"input_ids": IDS, "token_type_ids": torch.zeros(2, 2)}, r"= \(2, 3\), not \(2, 2\)"),
    "state of three": (
        {"input_ids": IDS, "state": ElmoState(torch.zeros(2, 2, 3, 6), torch.zeros(2, 2, 3, 12))},
        "as many rows",
    ),
    "state of one layer": (
        {"input_ids": IDS, "state": ElmoState(torch.zeros(1, 2, 2, 6), torch.zeros(1, 2, 2, 12))},
        r"\(layers, directions, batch, width\) = \(2, 2, 2, 6\)",
    ),
    "hidden state of another width": (
        {"input_ids": IDS, "state": ElmoState(torch.zeros(2, 2, 2, 5), torch.zeros(2, 2, 2, 12))},
        r"not \(2, 2, 2, 5\) and \(2, 2, 2, 12\)",
    ),
    "state with pairs": (
        {
            "input_ids": IDS,
            "token_type_ids": torch.tensor([[0, 1, 1]] * 2),
            "state": ElmoState(torch.zeros(2, 2, 2, 6), torch.zeros(2, 2, 2, 12)),
        },
        "one by one",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": IDS}, r"shape \(batch, words\), not"),
        ({"input_ids": torch.tensor([[3, 30]])}, "between 0 and 29, but they go from 3 to 30"),
        ({"input_ids": torch.tensor([[3, -1]])}, "between 0 and 29"),
        ({"input_ids": torch.tensor([[0, 3]])}, "padded on the right"),
        ({"inputs_embeds": torch.zeros(2, 3, 50, 4)}, "inputs_embeds must be"),
    ],
    ids=["characters", "large", "negative", "left padding", "character vectors"],
)
def test_bad_input_of_a_word_table(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**TABLE)(**inputs)


def test_a_resized_word_table_can_be_saved_and_loaded(tmp_path):
    model = make_model(cnn_filters=[], word_vocab_size=20)
    model.resize_token_embeddings(25)
    assert model.config.word_vocab_size == 25
    model.save_pretrained(tmp_path)
    assert_close(
        ElmoModel.from_pretrained(tmp_path).word_encoder.word_embedding.weight, model.word_encoder.word_embedding.weight
    )


def test_a_table_of_characters_is_not_resized():
    model = make_model()
    table = model.get_input_embeddings()
    assert model.resize_token_embeddings() is model.resize_token_embeddings(table.num_embeddings) is table
    for size in ((4,), (None, 64)):  # such as len(tokenizer)
        with pytest.raises(ValueError, match=f"of which its table always has {table.num_embeddings}"):
            model.resize_token_embeddings(*size)
    assert len(model.get_input_embeddings().weight) == table.num_embeddings


def test_a_hidden_size_that_contradicts_is_refused_when_loading(tmp_path):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="always 2 \\* projection_dim"):
        ElmoModel.from_pretrained(tmp_path, hidden_size=100)


# ---- weights that come for the call, and function transforms


HEADS = {
    "encoder": (ElmoModel, {}),
    "texts": (ElmoForSequenceClassification, {"head_dim": 4}),
    "tags": (ElmoForTokenClassification, {"head_dim": 4}),
    "answers": (ElmoForQuestionAnswering, {"head_dim": 4}),
}


def pairs_of_words() -> dict[str, Tensor]:
    return dict(ElmoTokenizer()(["a b", "c"], ["d e f", "g"], padding=True, return_tensors="pt"))


def tensors_of(output) -> list[Tensor]:
    return [value for value in output.to_tuple() if isinstance(value, Tensor)]


@pytest.mark.parametrize("head", HEADS)
def test_offloaded_weights(head):
    """accelerate brings a module's weights when it is called, so nothing may read them past a call."""
    model_class, changes = HEADS[head]
    model, batch = make_model(cls=model_class, **changes), pairs_of_words()
    with torch.no_grad():
        expected = tensors_of(model(**batch))
        offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        for actual, wanted in zip(tensors_of(offloaded(**batch)), expected, strict=True):
            assert_close(actual, wanted, atol=1e-5)


def test_offloaded_softmax(tmp_path):
    model = make_model(cls=ElmoForPreTraining)
    model.save_pretrained(tmp_path)
    ids, mask = pad(make_texts(model, [4, 7, 1]))
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offloaded"}
    offloaded = ElmoForPreTraining.from_pretrained(tmp_path, **options)
    assert offloaded.lm_head.weight.is_meta
    for labels in (None, torch.randint(0, 40, mask.shape)):
        with torch.no_grad():
            actual, expected = (tensors_of(one(ids, mask, labels=labels)) for one in (offloaded, model))
        for one, other in zip(actual, expected, strict=True):
            assert_close(one, other, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_gradients_by_function_transforms(head):
    model_class, changes = HEADS[head]
    model, batch = make_model(cls=model_class, **changes), pairs_of_words()
    parameters = dict(model.named_parameters())

    def total(parameters: dict[str, Tensor]) -> Tensor:
        return sum(value.sum() for value in tensors_of(torch.func.functional_call(model, parameters, (), batch)))

    gradients = torch.func.grad(total)(parameters)
    total(parameters).backward()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("error:Dynamo detected a call to a `functools.lru_cache`-wrapped function")
@pytest.mark.parametrize("head", ["encoder", "texts", "tags"])
def test_compiled_for_texts_of_all_lengths(head):
    """The compiler leaves the recurrence and chains alone, whose steps it would unroll for each batch anew."""
    model_class, changes = HEADS[head]
    model, graphs = make_model(cls=model_class, **changes), []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=lambda graph, _: (graphs.append(len(graph.graph.nodes)), graph.forward)[1])
    for lengths in ([4, 2], [9, 3]):
        texts = [" ".join("a" * length) for length in lengths]
        batch = dict(ElmoTokenizer()(texts, padding=True, return_tensors="pt"))
        with torch.no_grad():
            for actual, wanted in zip(tensors_of(compiled(**batch)), tensors_of(model(**batch)), strict=True):
                assert_close(actual, wanted, atol=1e-5)
    assert max(graphs) < 100, "no graph holds the steps"
