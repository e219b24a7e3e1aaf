"""The word encoder against a slow one: every row in full, every word on its own, every window by itself."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from modeling_elmo import ElmoConfig, ElmoModel
from modeling_elmo.char_rows import BEGIN_OF_SENTENCE, BEGIN_OF_WORD, END_OF_WORD, PADDING
from modeling_elmo.word_cache import WordCache
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


@pytest.mark.parametrize("lengths", [[3, 0, 5], [40, 2], [48, 1], [43, 43]], ids=str)
def test_distinct_words_cut_behind_the_longest_are_the_whole_ones(lengths):
    """On a processor, and as a GPU takes them: then no row is looked at to know where to cut it."""
    encoder = make_encoder()
    words = random_words(lengths)
    cut = words[:, : max(lengths) + 2]
    assert (words[:, cut.shape[1] :] == PADDING).all()
    expected = torch.stack([slow_word(encoder, ids) for ids in words])
    expected_gradients = gradients(expected, encoder)
    for encode in (lambda rows: encoder(rows, all_differ=True), encoder._in_chunks):
        actual = encode(cut)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)
        for one, other in zip(gradients(actual, encoder), expected_gradients, strict=True):
            torch.testing.assert_close(one[1:], other[1:], rtol=0, atol=1e-10)  # [1:]: without the mask


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


def test_many_words_come_in_few_numbers_of_rows():
    """Each costs memory: oneDNN keeps a product compiled for it. Rows that fill up the last chunk change nothing."""
    encoder = make_encoder()
    words = random_words(range(1, 40)).repeat(14, 1)[:515]
    encode, rows = encoder._encode, []
    encoder._encode = lambda chunk: rows.append(len(chunk)) or encode(chunk)
    for number in (257, 288, 300, 512, 515):
        vectors, expected = encoder._in_chunks(words[:number]), encode(words[:number])
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-10)
        for one, other in zip(gradients(vectors, encoder), gradients(expected, encoder), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert rows == [256, 32, 256, 32, 256, 64, 256, 256, 256, 256, 32]
    rows.clear()
    encoder._in_chunks(words[:20])
    assert rows == [20]  # a sentence is not made longer


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
    cut = encoder._cut
    encoder._cut = lambda words: rows.append(len(words)) or cut(words)
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
    together = encoder._convolve_together
    encoder._convolve_together = lambda characters: lengths.append(characters.shape[1]) or together(characters)
    encoder(random_words([30, 2, 31, 3]))
    assert lengths == [3 + 2 + 3, 31 + 2 + 3], "words of similar length together, cut behind the longest"


@pytest.mark.parametrize("filters", [[[1, 4], [2, 8], [3, 8]], [[7, 12]], [[5, 2], [1, 3]]], ids=str)
def test_all_filters_in_one_product(filters):
    """Against the convolutions one by one: the maxima and their gradients."""
    encoder = make_encoder(cnn_filters=filters)
    words, is_cut = encoder._cut(random_words([3, 9, 0, 12]))
    assert is_cut and words.shape[1] == 12 + 2 + encoder.widest
    results = []
    for convolve in (encoder._convolve, encoder._convolve_together):
        characters = encoder.char_embedding(words).detach().requires_grad_()
        maxima = convolve(characters)
        weights = [parameter for convolution in encoder.convolutions for parameter in convolution.parameters()]
        torch.manual_seed(0)
        gradients = torch.autograd.grad((maxima * torch.randn_like(maxima)).sum(), [characters, *weights])
        results.append([maxima, *gradients[1:]])  # of equal windows of padding another one may get the gradient
        embedding = torch.zeros(262, 4, dtype=torch.float64).index_add(0, words.flatten(), gradients[0].flatten(0, 1))
        results[-1].append(embedding)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_changed_convolution_is_called():
    encoder, words = make_encoder(), random_words([3, 9])
    before = encoder(words)
    encoder.convolutions[1].register_forward_hook(lambda module, inputs, output: output + 1)
    assert not torch.allclose(encoder(words), before)


# ---- words of earlier batches


def encode(encoder: ElmoWordEncoder, words: Tensor) -> tuple[Tensor, list[int]]:
    """The vectors without gradients, and how many words were computed for them."""
    computed: list[int] = []
    original = encoder._encode
    encoder._encode = lambda chunk: computed.append(len(chunk)) or original(chunk)
    try:
        with torch.no_grad():
            return encoder(words), sum(computed)
    finally:
        del encoder._encode


def test_words_of_earlier_batches_are_not_computed_again():
    encoder = make_encoder()
    words = random_words([3, 9, 30, 5])
    expected = torch.stack([slow_word(encoder, ids) for ids in words]).detach()
    first, computed = encode(encoder, words[:3])
    torch.testing.assert_close(first, expected[:3], rtol=0, atol=1e-10)
    assert computed == 3
    order = torch.tensor([3, 1, 1, 0, 3])
    second, computed = encode(encoder, words[order])
    torch.testing.assert_close(second, expected[order], rtol=0, atol=1e-10)
    assert computed == 1


def zero_a_number(encoder: ElmoWordEncoder, name: str, through_data: bool):
    weight = encoder.get_parameter(name)
    if through_data:
        weight.data.view(-1)[-1] = 0.0  # leaves no trace in torch's counter of changes
    else:
        with torch.no_grad():
            weight.view(-1)[-1] = 0.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("through_data", [False, True])
def test_a_changed_weight_empties_the_cache(through_data, dtype):
    words = random_words([3, 9, 30, 5])
    for name, _ in make_encoder().named_parameters():
        encoder = make_encoder(dtype)
        encode(encoder, words)
        zero_a_number(encoder, name, through_data)
        vectors, computed = encode(encoder, words)
        assert computed == 4, name
        encoder.cache = WordCache(0)
        assert torch.equal(vectors, encode(encoder, words)[0]), name


def test_other_ways_to_change_weights_empty_the_cache():
    words = random_words([3, 9])
    changes = {
        "optimizer": lambda encoder: torch.optim.SGD(encoder.parameters(), lr=0.1).step(),
        "load_state_dict": lambda encoder: encoder.load_state_dict(make_encoder().state_dict()),
        "assign": lambda encoder: encoder.load_state_dict(make_encoder().state_dict(), assign=True),
        "dtype": lambda encoder: encoder.float(),
        "swap": lambda encoder: setattr(encoder.char_embedding, "weight", nn.Parameter(torch.randn(262, 4).double())),
    }
    for name, change in changes.items():
        encoder = make_encoder()
        encoder(words).sum().backward()
        before, _ = encode(encoder, words)
        change(encoder)
        after, computed = encode(encoder, words)
        assert computed == 2 and not torch.equal(before, after), name


def test_numbers_that_change_places_past_the_counter_empty_the_cache():
    """As where gates are put into another order: each sum over all of a weight stays what it was."""
    words = random_words([3, 9])
    for move in (
        lambda weight: weight.flip(0),
        lambda weight: weight.flip(1),
        lambda weight: weight.roll(1, 0),
        lambda weight: torch.cat([weight[2:4], weight[:2], weight[4:]]),
    ):
        encoder = make_encoder()
        weight = encoder.projection.weight
        before, _ = encode(encoder, words)
        weight.data.copy_(move(weight.data.clone()))
        after, computed = encode(encoder, words)
        assert computed == 2 and not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_parameters_at_any_place_in_memory(dtype):
    """`vector_to_parameters` makes them views of one vector."""
    words, encoder = random_words([3, 9]), make_encoder(dtype)
    expected, _ = encode(encoder, words)
    vector = nn.utils.parameters_to_vector(encoder.parameters())
    nn.utils.vector_to_parameters(torch.cat([vector.new_zeros(1), vector])[1:], encoder.parameters())
    assert any(weight.storage_offset() % 2 for weight in encoder.parameters())
    torch.testing.assert_close(encode(encoder, words)[0], expected)


def test_a_model_that_is_trained_or_hooked_has_no_cache():
    words = random_words([3, 9])
    encoder = make_encoder()
    encoder(words)
    assert len(encoder.cache) == 0, "gradients are wanted"
    encoder.requires_grad_(False)
    assert not encoder(words).requires_grad and len(encoder.cache) == 2, "frozen"
    encoder.cache = WordCache(10)
    encoder.highways[0].carry.register_forward_hook(lambda *_: None)
    assert encode(encoder, words)[1] == encode(encoder, words)[1] == 2
    encoder = make_encoder()
    encoder.projection = nn.Sequential(encoder.projection)
    assert encode(encoder, words)[1] == encode(encoder, words)[1] == 2
    encoder = make_encoder()
    encoder.convolutions[1].forward = lambda rows: nn.Conv1d.forward(encoder.convolutions[1], rows) * 0
    silent, distinct = encode(encoder, words)
    assert distinct == encode(encoder, words)[1] == 2
    nn.init.zeros_(encoder.convolutions[1].weight), nn.init.zeros_(encoder.convolutions[1].bias)
    torch.testing.assert_close(encode(encoder, words)[0], silent)


def test_autocast_has_vectors_of_its_own():
    encoder, words = make_encoder(torch.float32), random_words([3, 9])
    assert encode(encoder, words)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert encode(encoder, words)[0].dtype == torch.bfloat16
    assert encode(encoder, words)[0].dtype == torch.float32


def test_the_cache_is_bounded():
    encoder = make_encoder()
    encoder.cache = WordCache(5)
    words = random_words(range(9))
    expected, _ = encode(encoder, words)
    assert len(encoder.cache) == 0, "more words at once than the cache holds"
    for start in range(6):
        assert torch.allclose(encode(encoder, words[start : start + 3])[0], expected[start : start + 3], atol=1e-12)
        assert len(encoder.cache) <= 5 and len(encoder.cache._table) <= 5
    cache = WordCache(4)
    for keys, kept in (([], 0), ([b"a", b"b"], 2), ([b"c", b"d"], 4), ([b"a", b"b", b"c", b"e"], 4)):
        assert cache.look_up(keys, None, lambda places: torch.zeros(len(places), 3)).shape == (len(keys), 3)
        assert len(cache) == kept
    assert b"e" in cache._places and b"d" not in cache._places
    assert copy.copy(cache).max_words == 4


def test_vectors_stay_where_the_cache_grows():
    cache, vectors = WordCache(20), {bytes([number]): torch.tensor([float(number)]) for number in range(9)}
    for keys in ([b"\1"], [b"\2", b"\3", b"\4"], [b"\1", b"\5", b"\3"]):
        found = cache.look_up(keys, None, lambda places, keys=keys: torch.stack([vectors[keys[n]] for n in places]))
        assert found.flatten().tolist() == [key[0] for key in keys]


def test_copies_and_threads():
    encoder = make_encoder()
    words = random_words([i % 40 for i in range(200)])
    expected, _ = encode(copy.deepcopy(encoder), words)
    encode(encoder, words)
    assert len(copy.deepcopy(encoder).cache) == 0
    encoder.cache = WordCache(60)

    def run(seed: int) -> bool:
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:50]
        with torch.inference_mode(seed % 2 == 0), torch.no_grad():
            return torch.allclose(encoder(words[order]), expected[order], atol=1e-12)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(40)))
    encoder.requires_grad_(False)
    encoder(words[:2]).requires_grad_().sum().backward()  # vectors kept in inference mode are ordinary tensors


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
