"""The word encoder against a slow one: every row in full, every word on its own, every window by itself."""

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from modeling_elmo import ElmoConfig, ElmoModel
from modeling_elmo.char_rows import BEGIN_OF_SENTENCE, BEGIN_OF_WORD, END_OF_WORD, PADDING
from modeling_elmo.word_encoder import ElmoWordEncoder

VARIANTS = {
    "relu": {},
    "tanh": {"cnn_activation": "tanh"},
    "no projection": {"use_cnn_projection": False, "cnn_filters": [[2, 2], [5, 4]]},
    "no highways": {"num_highway_layers": 0},
    "two highways": {"num_highway_layers": 2},
    "width 1": {"cnn_filters": [[1, 8]]},
    "widths 1 to 7": {"cnn_filters": [[width, 3] for width in range(1, 8)]},
    "width of a whole row": {"cnn_filters": [[50, 6], [49, 6], [3, 6]]},
    "chunks of 1": {"chunk_size": 1},
    "chunks of 3": {"chunk_size": 3},
    "no chunks": {"chunk_size": None},
    "short rows": {"max_word_length": 9},
}


def make_encoder(dtype: torch.dtype = torch.float64, std: float = 0.7, **changes) -> ElmoWordEncoder:
    """Weights so large that no unit is near zero, and windows of padding often are the maximum."""
    encoder = ElmoModel(ElmoConfig(**{**TINY, **changes})).word_encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            nn.init.normal_(parameter, std=std)
        for embedding in (getattr(encoder, name, None) for name in ("char_embedding", "word_embedding")):
            if embedding is not None:
                embedding.weight[0] = 0
    return encoder.to(dtype)


def row(word: bytes, length: int = 50) -> list[int]:
    ids = [BEGIN_OF_WORD, *(byte + 1 for byte in word), END_OF_WORD]
    return ids + [PADDING] * (length - len(ids))


def random_words(lengths, row_length: int = 50) -> Tensor:
    rows = [row(bytes(torch.randint(0, 256, (length,)).tolist()), row_length) for length in lengths]
    return torch.tensor(rows, dtype=torch.long).view(-1, row_length)


def slow_word(encoder: ElmoWordEncoder, ids: Tensor) -> Tensor:
    """(max_word_length,) -> (projection_dim,): the equations of Kim et al. 2015, without any short cut."""
    characters = encoder.char_embedding.weight[ids]  # (max_word_length, char_embedding_dim)
    maxima = []
    for convolution in encoder.convolutions:
        width = convolution.weight.shape[2]
        windows = [
            (convolution.weight * characters[start : start + width].T).sum((1, 2)) + convolution.bias
            for start in range(len(ids) - width + 1)
        ]
        maxima.append(torch.stack([encoder.activation(window) for window in windows]).max(0).values)
    vector = torch.cat(maxima)
    for highway in encoder.highways:
        carry = torch.sigmoid(highway.carry.weight @ vector + highway.carry.bias)
        transform = torch.relu(highway.transform.weight @ vector + highway.transform.bias)
        vector = carry * transform + (1 - carry) * vector
    return vector if encoder.projection is None else encoder.projection.weight @ vector + encoder.projection.bias


def gradients(vectors: Tensor, encoder: ElmoWordEncoder) -> list[Tensor]:
    torch.manual_seed(1)
    total = (vectors * torch.randn(vectors.shape, dtype=torch.float64).to(vectors.dtype)).sum()
    return list(torch.autograd.grad(total, list(encoder.parameters())))


def assert_equals_the_slow_one(encoder: ElmoWordEncoder, words: Tensor, rtol: float = 0, atol: float = 1e-10):
    actual, expected = encoder(words), torch.stack([slow_word(encoder, ids) for ids in words])
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    names = [name for name, _ in encoder.named_parameters()]
    for name, one, other in zip(names, gradients(actual, encoder), gradients(expected, encoder), strict=True):
        if "embedding" in name:
            other[0] = 0  # the mask is not trained
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_encoder_equals_the_slow_one(variant):
    encoder = make_encoder(**variant)
    longest = variant.get("max_word_length", 50)
    lengths = [length for length in (4, 0, 1, 48, 7, 7, 47, 30, 2) if length <= longest - 2]
    assert_equals_the_slow_one(encoder, random_words(lengths, longest))


@pytest.mark.parametrize("filters", [[[1, 4], [2, 8], [3, 8]], [[7, 12]]], ids=str)
def test_encoder_in_float32(filters):
    encoder = make_encoder(torch.float32, std=0.3, cnn_filters=filters)
    assert_equals_the_slow_one(encoder, random_words([3, 48, 11]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widest", [1, 3, 7])
def test_words_of_every_length_alone_and_together(widest):
    """The cut behind the longest word leaves the maximum as it is, also where a window of padding is the maximum."""
    encoder = make_encoder(cnn_filters=[[1, 6], [widest, 6]], chunk_size=4)
    words = random_words(range(49))
    with torch.no_grad():
        expected = torch.stack([slow_word(encoder, ids) for ids in words])
        torch.testing.assert_close(encoder(words), expected, rtol=0, atol=1e-10)
        for word, vector in zip(words, expected, strict=True):
            torch.testing.assert_close(encoder(word[None])[0], vector, rtol=0, atol=1e-10)


def test_padding_is_the_maximum_somewhere_in_these_tests():
    """Otherwise a cut that leaves no window of padding would pass them."""
    encoder = make_encoder()
    with torch.no_grad():
        characters = encoder.char_embedding(random_words([3] * 20)).transpose(1, 2)
        for convolution in encoder.convolutions[1:]:
            values = convolution(characters)  # (words, filters, windows)
            assert (values[:, :, :5].amax(2) < values[:, :, -1]).double().mean() > 0.05


UNUSUAL = {
    "a mask": [0] * 50,
    "padding only": [PADDING] * 50,
    "padding inside": [BEGIN_OF_WORD, 70, PADDING, PADDING, 80, END_OF_WORD] + [PADDING] * 44,
    "padding in front": [PADDING] * 20 + [70] * 30,
    "no padding": [70] * 50,
    "zeros behind": [BEGIN_OF_WORD, 70, END_OF_WORD] + [0] * 47,
    "a sentence's begin": [BEGIN_OF_WORD, BEGIN_OF_SENTENCE, END_OF_WORD] + [PADDING] * 47,
}


@pytest.mark.parametrize("ids", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_rows(ids):
    assert_equals_the_slow_one(make_encoder(), torch.tensor([ids, row(b"word")]))
    assert_equals_the_slow_one(make_encoder(), torch.tensor([ids]))


@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_no_words(chunk_size):
    encoder = make_encoder(chunk_size=chunk_size)
    vectors = encoder(torch.empty(0, 50, dtype=torch.long))
    assert vectors.shape == (0, 6)
    assert all(gradient.eq(0).all() for gradient in gradients(vectors, encoder))


def test_character_vectors_equal_character_ids():
    encoder = make_encoder(chunk_size=2)
    words = random_words([3, 0, 48, 3, 9])
    vectors = encoder.char_embedding(words).detach().requires_grad_()
    torch.testing.assert_close(encoder(vectors), encoder(words), rtol=0, atol=1e-12)
    encoder(vectors).sum().backward()
    assert vectors.grad.abs().sum((1, 2)).gt(0).all()


# ---- no work twice, and none for padding


def count_convolved_rows(encoder: ElmoWordEncoder) -> list[int]:
    rows: list[int] = []
    encoder.convolutions[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("chunk_size", [2, None])
def test_equal_words_are_computed_once(chunk_size):
    encoder = make_encoder(chunk_size=chunk_size)
    a, b, c = random_words([3, 40, 3])
    words = torch.stack([a, b, a, a, c, b])
    expected = torch.stack([slow_word(encoder, ids) for ids in words])
    rows = count_convolved_rows(encoder)
    torch.testing.assert_close(encoder(words), expected, rtol=0, atol=1e-10)
    assert sum(rows) == 3
    assert max(rows) <= (chunk_size or 3)


def test_masked_words_are_not_computed():
    model = ElmoModel(ElmoConfig(**TINY))
    rows = count_convolved_rows(model.word_encoder)
    words = random_words(range(12)).view(3, 4, 50)
    model(words, attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    assert sum(rows) == 6


def test_padding_is_not_convolved():
    encoder = make_encoder(chunk_size=2)
    lengths: list[int] = []
    encoder.convolutions[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[2]))
    encoder(random_words([30, 2, 31, 3]))
    assert lengths == [3 + 2 + 3, 31 + 2 + 3], "words of similar length together, cut behind the longest"


# ---- the mask


@pytest.mark.parametrize("optimizer", [torch.optim.Adagrad, torch.optim.AdamW])
@pytest.mark.parametrize("table", [False, True])
def test_the_mask_stays_zero_in_training(optimizer, table):
    changes = {"cnn_filters": [], "word_vocab_size": 30} if table else {}
    encoder = make_encoder(torch.float32, **changes)
    words = torch.tensor([0, 3, 29, 0]) if table else torch.tensor([UNUSUAL["a mask"], UNUSUAL["zeros behind"]])
    embedding = encoder.word_embedding if table else encoder.char_embedding
    steps = optimizer(encoder.parameters(), lr=0.1)
    for _ in range(2):
        encoder(words).square().sum().backward()
        assert embedding.weight.grad[0].eq(0).all() and embedding.weight.grad.ne(0).any()
        steps.step()
        steps.zero_grad()
    assert embedding.weight[0].eq(0).all()


# ---- a table of words instead of characters


def test_word_table():
    encoder = make_encoder(cnn_filters=[], word_vocab_size=30)
    words = torch.tensor([3, 0, 29, 3])
    assert [name for name, _ in encoder.named_parameters()] == ["word_embedding.weight"]
    assert torch.equal(encoder(words), encoder.word_embedding.weight[words])
    assert encoder(words)[1].eq(0).all()
    assert encoder(words[:0]).shape == (0, 6)
