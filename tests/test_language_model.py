"""The language model: sampler, losses and targets, each against a slow loop or a count."""

import math
import warnings

import pytest
import torch
from conftest import TINY
from test_modeling import make_model, make_texts, pad
from torch import Tensor
from torch.nn import functional as F

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel
from modeling_elmo import language_model as module
from modeling_elmo.language_model import LogUniformSampler, Negatives, full_softmax_loss, sampled_softmax_loss
from modeling_elmo.packing import pack_texts, unpack

VOCAB = TINY["lm_vocab_size"]


def make_lm(dtype: torch.dtype = torch.float32, **changes) -> ElmoForPreTraining:
    return make_model(dtype, ElmoForPreTraining, **changes)


def make_labels(mask: Tensor, share_ignored: float = 0.0) -> Tensor:
    labels = torch.randint(0, VOCAB, mask.shape)
    labels[torch.rand(mask.shape) < share_ignored] = -100
    return labels.masked_fill(mask == 0, -100)


# ---- the sampler


@pytest.mark.parametrize(("vocab", "samples"), [(40, 8), (40, 40), (1, 1), (5000, 700), (800_000, 8192)])
def test_draws_are_unique_words_of_the_vocabulary(vocab, samples):
    ids, tries = LogUniformSampler(vocab, samples).draw()
    assert ids.shape == (samples,) and ids.dtype == torch.int64
    assert len(ids.unique()) == samples and ids.min() >= 0 and ids.max() < vocab
    assert tries >= samples


def test_a_draw_is_that_of_a_loop_that_draws_one_by_one():
    """Same uniform numbers, same ids in the same order, and as many tries: the last one is the last that was needed."""
    vocab, samples = 60, 25
    sampler = LogUniformSampler(vocab, samples)
    for seed in range(50):
        ids, tries = sampler.draw(torch.Generator().manual_seed(seed))
        generator = torch.Generator().manual_seed(seed)
        found: list[int] = []
        slow_tries = 0
        while len(found) < samples:
            for uniform in torch.rand(2 * samples, dtype=torch.float64, generator=generator).tolist():
                slow_tries += 1
                word = int(math.exp(uniform * math.log(vocab + 1))) - 1
                if word not in found:
                    found.append(word)
                if len(found) == samples:
                    break
        assert ids.tolist() == found and tries == slow_tries


def test_first_words_of_draws_are_log_uniform():
    """Chi-square over 5,000 draws of one word."""
    vocab = 50
    sampler = LogUniformSampler(vocab, 1)
    words = torch.cat([sampler.draw().ids for _ in range(5_000)])
    counts = torch.bincount(words, minlength=vocab).double()
    probability = torch.tensor([math.log((k + 2) / (k + 1)) / math.log(vocab + 1) for k in range(vocab)]).double()
    assert probability.sum() == pytest.approx(1)
    expected = probability * len(words)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 94.7, "exceeded with probability 1e-4 at 49 degrees of freedom"


def test_draws_are_reproducible():
    sampler = LogUniformSampler(1000, 100)
    one, two = (sampler.draw(torch.Generator().manual_seed(7)) for _ in range(2))
    other = sampler.draw(torch.Generator().manual_seed(8))
    assert torch.equal(one.ids, two.ids) and one.tries == two.tries
    assert not torch.equal(one.ids, other.ids)
    torch.manual_seed(3)
    one, next_one = sampler.draw(), sampler.draw()
    torch.manual_seed(3)
    assert torch.equal(one.ids, sampler.draw().ids) and not torch.equal(one.ids, next_one.ids)


def test_more_samples_than_words():
    with pytest.raises(ValueError, match="cannot draw 41 different negatives from a vocabulary of 40 words"):
        LogUniformSampler(40, 41)


@pytest.mark.parametrize("tries", [20, 21, 57])
def test_expected_counts_are_the_formula(tries):
    sampler = LogUniformSampler(100, 20)
    for word in (0, 1, 50, 99):
        probability = math.log((word + 2) / (word + 1)) / math.log(101)
        # A draw without a repetition saw each word as often as 20 independent tries would.
        expected = tries * probability if tries == 20 else 1 - (1 - probability) ** tries
        assert sampler.expected_count(torch.tensor([word]), tries).item() == pytest.approx(expected, rel=1e-12)


def test_expected_counts_are_those_of_a_simulation():
    """In draws of exactly n tries, a word is among the samples as often as expected."""
    vocab, tries, runs = 30, 25, 40_000
    uniform = torch.rand(runs, tries, dtype=torch.float64)
    words = (torch.exp(uniform * math.log(vocab + 1)).long() - 1).clamp(max=vocab - 1)
    seen = torch.zeros(runs, vocab).scatter_(1, words, 1.0).double().mean(0)
    expected = LogUniformSampler(vocab, 10).expected_count(torch.arange(vocab), tries)
    # Five standard deviations of the mean of `runs` zeros and ones.
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / runs).sqrt() + 1e-9).all()


# ---- the losses


def make_softmax(words: int = 9, vocab: int = 60, dim: int = 6) -> list[Tensor]:
    hidden, weight, bias = torch.randn(words, dim), torch.randn(vocab, dim), torch.randn(vocab)
    return [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]


def slow_sampled_loss(hidden, targets, weight, bias, negatives: Negatives, vocab: int, samples: int) -> Tensor:
    """Word by word and negative by negative."""

    def log_expected(word: int) -> float:
        probability = math.log((word + 2) / (word + 1)) / math.log(vocab + 1)
        tries = negatives.tries
        return math.log(tries * probability if tries == samples else 1 - (1 - probability) ** tries)

    losses = []
    for vector, target in zip(hidden, targets.tolist(), strict=True):
        candidates = [target] + [word for word in negatives.ids.tolist() if word != target]
        scores = [vector @ weight[word] + bias[word] - log_expected(word) for word in candidates]
        losses.append(torch.stack(scores).logsumexp(0) - scores[0])
    return torch.stack(losses)


@pytest.mark.parametrize("logits_at_once", [2**20, 45, 1])  # those of all nine words, of two words and of one
@pytest.mark.parametrize("without_repetition", [False, True])
def test_sampled_loss_is_that_of_a_loop(without_repetition, logits_at_once, monkeypatch):
    monkeypatch.setattr(module, "CACHED_LOGITS", logits_at_once)
    hidden, weight, bias = make_softmax()
    sampler = LogUniformSampler(60, 20)
    negatives = sampler.draw()
    if without_repetition:
        negatives = Negatives(negatives.ids, 20)
    # Accidental hits: words that are among the negatives; and words that are not; one twice.
    missing = next(word for word in range(60) if word not in negatives.ids)
    targets = torch.tensor([*negatives.ids[:4].tolist(), missing, missing, 59, 0, 1])
    assert torch.isin(targets, negatives.ids).sum() >= 4

    actual = sampled_softmax_loss(hidden, targets, weight, bias, negatives, sampler)
    expected = slow_sampled_loss(hidden, targets, weight, bias, negatives, 60, 20)
    assert actual.dtype == torch.float32 and actual.shape == (9,)
    torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)
    scales = torch.randn(9, dtype=torch.float64)
    gradients = torch.autograd.grad((actual * scales).sum(), [hidden, weight, bias])
    expected_gradients = torch.autograd.grad((expected * scales).sum(), [hidden, weight, bias])
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    untouched = [word for word in range(60) if word not in {*negatives.ids.tolist(), *targets.tolist()}]
    assert untouched and gradients[1][untouched].eq(0).all()


def test_sampled_loss_over_all_words_is_the_full_one():
    """After a million tries every word is expected once, so nothing is corrected."""
    hidden, weight, bias = make_softmax()
    targets = torch.randint(0, 60, (9,))
    everything = Negatives(torch.randperm(60), 10**6)
    sampled = sampled_softmax_loss(hidden, targets, weight, bias, everything, LogUniformSampler(60, 60))
    torch.testing.assert_close(sampled, full_softmax_loss(hidden, targets, weight, bias))


def test_sampled_loss_keeps_extreme_logits():
    """A target's logit is far above all others, or the only one that there is."""
    weight = torch.zeros(60, 2)
    weight[0, 0] = 200.0
    sampler, hidden, targets = LogUniformSampler(60, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 7])
    losses = sampled_softmax_loss(hidden, targets, weight, torch.zeros(60), Negatives(torch.tensor([7]), 1), sampler)
    assert losses.tolist() == [0, 0]


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_of_the_sampled_loss_is_for_its_product_only(weight_dtype):
    """The biases, which carry the expected counts, are not rounded."""
    hidden, weight, bias = (tensor.detach().float() for tensor in make_softmax())
    sampler, targets = LogUniformSampler(60, 20), torch.randint(0, 60, (9,))
    negatives = sampler.draw()
    expected = sampled_softmax_loss(hidden * 0, targets, weight, bias, negatives, sampler)
    half = (hidden * 0).bfloat16(), targets, weight.to(weight_dtype)
    torch.testing.assert_close(sampled_softmax_loss(*half, bias, negatives, sampler), expected)


def test_full_loss_is_cross_entropy(monkeypatch):
    hidden, weight, bias = make_softmax(words=23)
    targets = torch.randint(0, 60, (23,))
    scores = hidden @ weight.T + bias
    expected = scores.exp().sum(1).log() - scores[torch.arange(23), targets]
    actual = full_softmax_loss(hidden, targets, weight, bias)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)
    for block, limit in ((1024, 1), (60, 300), (59, 10**6), (7, 35), (1, 1)):  # 1, 5, all, 5 and 1 words at once
        monkeypatch.setattr(module, "VOCABULARY_BLOCK", block)
        monkeypatch.setattr(module, "MAX_LOGITS", limit)
        with torch.no_grad():
            torch.testing.assert_close(full_softmax_loss(hidden, targets, weight, bias), actual.detach())
            assert full_softmax_loss(hidden[:0], targets[:0], weight, bias).shape == (0,)


def test_evaluation_never_holds_more_logits_than_the_limit(monkeypatch):
    hidden, weight, bias = make_softmax(words=23)
    monkeypatch.setattr(module, "VOCABULARY_BLOCK", 40)
    monkeypatch.setattr(module, "MAX_LOGITS", 400)
    sizes: list[tuple[int, int]] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: sizes.append((len(args[0]), len(args[1]))) or linear(*args))
    with torch.no_grad():
        full_softmax_loss(hidden, torch.randint(0, 60, (23,)), weight, bias)
    assert sizes == [(10, 40), (10, 20), (10, 40), (10, 20), (3, 40), (3, 20)]


def test_blocks_of_the_vocabulary_keep_extreme_logits():
    """One word's logit is far above all others, in the first block of one text and the last of another."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    weight = torch.zeros(3000, 2)
    weight[0, 0] = weight[2999, 1] = 200.0
    targets = torch.tensor([0, 0, 5])
    with torch.no_grad():
        actual = full_softmax_loss(hidden, targets, weight, torch.zeros(3000))
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    torch.testing.assert_close(actual, expected.float())


def test_no_loss_is_negative_where_logits_are_rounded():
    torch.manual_seed(0)
    hidden, weight = torch.randn(500, 32).bfloat16(), torch.randn(5000, 32) * 2
    targets = (hidden.float() @ weight.T).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = full_softmax_loss(hidden, targets, weight.requires_grad_(), torch.zeros(5000)).detach()
        with torch.no_grad():
            actual = full_softmax_loss(hidden, targets, weight, torch.zeros(5000))
    assert actual.min() >= 0
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# ---- targets and the model's loss


def slow_losses(model: ElmoForPreTraining, texts: list[Tensor], labels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss of each direction with the full softmax, text by text and word by word."""
    forward, backward = [], []
    for text, ids in zip(texts, labels, strict=True):
        top = model.elmo(text[None]).last_hidden_state[0]
        ahead, behind = top.chunk(2, dim=1)
        for place in range(len(text)):
            if place + 1 < len(text) and ids[place + 1] != -100:
                forward.append(F.cross_entropy(model.lm_head(ahead[place]), ids[place + 1]))
            if place > 0 and ids[place - 1] != -100:
                backward.append(F.cross_entropy(model.lm_head(behind[place]), ids[place - 1]))
    return torch.stack(forward).mean(), torch.stack(backward).mean()


def assert_losses(output, forward: Tensor, backward: Tensor, atol: float = 1e-6):
    expected = torch.stack([(forward + backward) / 2, forward, backward])
    actual = torch.stack([output.loss, output.forward_loss, output.backward_loss])
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)
    assert output.perplexity == pytest.approx(math.exp(actual[0].item()))
    assert output.forward_perplexity == pytest.approx(math.exp(actual[1].item()))
    assert output.backward_perplexity == pytest.approx(math.exp(actual[2].item()))


@pytest.mark.parametrize("share_ignored", [0.0, 0.3])
def test_losses_of_texts(share_ignored):
    model = make_lm()
    texts = make_texts(model, [4, 1, 7, 0, 2])
    ids, mask = pad(texts)
    labels = make_labels(mask, share_ignored)
    labels[2, 0] = -100  # a target of the backward direction alone, so that both have different numbers of them
    output = model(ids, mask, labels=labels)
    rows = [row[: len(text)] for row, text in zip(labels, texts, strict=True)]
    assert_losses(output, *slow_losses(model, texts, rows))
    assert output.num_targets.tolist() == [
        sum(int((row[1:] != -100).sum()) for row in rows),
        sum(int((row[:-1] != -100).sum()) for row in rows),
    ]
    assert output.num_targets[0] != output.num_targets[1]
    assert output.logits is None and output.hidden_states is None
    assert_losses(model(ids, labels=labels), output.forward_loss, output.backward_loss)
    # What stands behind a text is no label of it.
    others = torch.where(mask == 1, labels, torch.randint(0, VOCAB, labels.shape))
    assert torch.equal(model(ids, mask, labels=others).loss, output.loss)
    single = model(ids, mask, torch.zeros_like(mask), labels, state=output.state)
    carried = model(ids, mask, labels=labels, state=output.state)
    assert torch.equal(single.state.cell, carried.state.cell), "texts of one type are no pairs"


def test_losses_of_pairs():
    model = make_lm()
    firsts, seconds = make_texts(model, [3, 1, 4]), make_texts(model, [2, 6, 0])
    ids, mask = pad([torch.cat(pair) for pair in zip(firsts, seconds, strict=True)])
    types = pad([torch.tensor([0] * len(a) + [1] * len(b)) for a, b in zip(firsts, seconds, strict=True)])[0]
    labels = make_labels(mask)
    output = model(ids, mask, token_type_ids=types, labels=labels)
    parts = [row[: len(a)] for row, a in zip(labels, firsts, strict=True)]
    parts += [row[len(a) : len(a) + len(b)] for row, a, b in zip(labels, firsts, seconds, strict=True)]
    assert_losses(output, *slow_losses(model, firsts + seconds, parts))
    assert output.state is None


def test_lanes_of_a_text_and_its_reverse_are_that_text():
    model = make_lm()
    ids, mask = pad(make_texts(model, [6, 6, 6]))
    labels = make_labels(mask)
    text = model(ids, labels=labels)
    end = torch.full((3, 1), -100)
    lanes = model(
        ids,
        reversed_input_ids=ids.flip(1),
        next_targets=torch.cat([labels[:, 1:], end], dim=1),
        previous_targets=torch.cat([labels.flip(1)[:, 1:], end], dim=1),
    )
    assert_losses(lanes, text.forward_loss, text.backward_loss)
    assert lanes.num_targets.tolist() == text.num_targets.tolist()
    torch.testing.assert_close(lanes.word_losses, torch.stack([text.word_losses[0], text.word_losses[1].flip(1)]))
    for one, other in zip(lanes.state, text.state, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [False, True])
def test_lanes_of_distinct_words_are_those_of_all_words(training):
    """Losses and all gradients, also where the words' rows are cut behind the longest one."""
    forward, backward = torch.randint(0, 5, (2, 3, 4)), torch.randint(0, 5, (2, 3, 4))
    labels = {"next_targets": torch.randint(0, VOCAB, (3, 4)), "previous_targets": torch.randint(0, VOCAB, (3, 4))}
    labels["next_targets"][0, 1] = -100
    results = []
    for cut in (None, 13, 50):
        torch.manual_seed(1)
        model = make_lm(torch.float64).train(training)
        (words,) = make_texts(model, [5])  # (5, 50), none longer than 13 characters
        assert len(words.unique(dim=0)) == 5 and (words[:, 13:] == model.config.char_padding_id).all()
        negatives = (Negatives(torch.tensor([3, 1, 7]), 3), Negatives(torch.tensor([3, 2, 8]), 4))
        if cut is None:
            inputs = {"input_ids": words[forward[0]], "reversed_input_ids": words[backward[0]]}
        else:
            inputs = {"input_ids": forward[0], "reversed_input_ids": backward[0], "distinct_words": words[:, :cut]}
        output = model(**inputs, **labels, negatives=negatives if training else None)
        output.loss.backward()
        results.append([output.word_losses, *output.state, *(parameter.grad for parameter in model.parameters())])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


def test_lanes_are_two_streams_with_carried_state():
    """Two windows with carried state have the losses of one long window, in both directions."""
    model = make_lm()
    (forward,), (backward,) = make_texts(model, [8]), make_texts(model, [8])
    following, previous = torch.randint(0, VOCAB, (2, 1, 8))
    streams = {"input_ids": forward[None], "reversed_input_ids": backward[None]}
    streams |= {"next_targets": following, "previous_targets": previous}
    whole = model(**streams)
    first = model(**{name: stream[:, :3] for name, stream in streams.items()})
    second = model(**{name: stream[:, 3:] for name, stream in streams.items()}, state=first.state)
    for name in ("loss", "forward_loss", "backward_loss"):
        torch.testing.assert_close((3 * first[name] + 5 * second[name]) / 8, whole[name])
    # Each direction by itself, on its own stream.
    slow = [model.elmo(stream[None]).last_hidden_state[0] for stream in (forward, backward.flip(0))]
    expected = F.cross_entropy(model.lm_head(slow[0][:, :6]), following[0])
    assert_losses(whole, expected, F.cross_entropy(model.lm_head(slow[1][:, 6:]), previous[0].flip(0)))


def test_logits_without_labels():
    model = make_lm()
    ids, mask = pad(make_texts(model, [4, 7]))
    output = model(ids, mask, output_hidden_states=True)
    assert output.loss is None and output.logits.shape == output.backward_logits.shape == (2, 7, VOCAB)
    body = model.elmo(ids, mask, output_hidden_states=True)
    assert output[-1] is output.hidden_states  # the state stands before them, as in transformers' own models
    for one, other in zip(output.hidden_states, body.hidden_states, strict=True):
        torch.testing.assert_close(one, other)
    ahead, behind = body.last_hidden_state.chunk(2, dim=-1)
    torch.testing.assert_close(output.logits, ahead @ model.lm_head.weight.T + model.lm_head.bias)
    torch.testing.assert_close(output.backward_logits, behind @ model.lm_head.weight.T + model.lm_head.bias)
    assert len(model(ids, labels=make_labels(mask), return_dict=False)) == 6
    assert len(model(ids, return_dict=False)) == 3
    model.config.output_hidden_states = True
    assert len(model(ids).hidden_states) == len(output.hidden_states)
    assert model(ids, output_hidden_states=False).hidden_states is None


# ---- which softmax, when


@pytest.mark.parametrize(("negatives", "samples"), [(19, True), (20, False), (8192, False)])
def test_small_vocabularies_have_no_sampler(negatives, samples):
    model = make_lm(num_negative_samples=negatives)
    assert (model.sampler is not None) == samples
    ids, mask = pad(make_texts(model, [5, 7]))
    labels = make_labels(mask)
    assert torch.equal(model.train()(ids, labels=labels).loss, model.eval()(ids, labels=labels).loss) != samples


def test_training_samples_anew_for_each_direction(monkeypatch):
    model = make_lm().train()
    ids, mask = pad(make_texts(model, [5, 7]))
    labels = make_labels(mask)
    draws: list[Negatives] = []
    draw = LogUniformSampler.draw
    monkeypatch.setattr(LogUniformSampler, "draw", lambda sampler: draws.append(draw(sampler)) or draws[-1])
    output = model(ids, mask, labels=labels)
    assert len(draws) == 2 and not torch.equal(draws[0].ids, draws[1].ids)
    given = model(ids, mask, labels=labels, negatives=tuple(draws))
    assert torch.equal(given.loss, output.loss) and len(draws) == 2
    assert torch.equal(model.eval()(ids, mask, labels=labels, negatives=tuple(draws)).loss, output.loss)
    assert not torch.equal(model(ids, mask, labels=labels).loss, output.loss)
    assert len(draws) == 2, "the full softmax draws nothing"


def test_dropout_before_the_softmax():
    """With the dropout of the layers' inputs undone, what is left is that of the top output."""
    model = make_lm(num_negative_samples=8192, dropout=0.5)
    model.elmo.lstm.dropout = 0.0
    ids, mask = pad(make_texts(model, [5, 7]))
    expected = model(ids, mask).logits
    model.train()
    torch.manual_seed(4)
    dropped = model(ids, mask).logits
    with torch.no_grad():
        layers, _ = model.elmo.encode(ids.flatten(0, 1), pack_texts(mask.bool()))
        torch.manual_seed(4)
        top = F.dropout(layers[-1], 0.5)
        both = unpack(top, pack_texts(mask.bool()), mask.shape)
    torch.testing.assert_close(dropped, model.lm_head(both[..., :6]))
    assert not torch.allclose(dropped, expected, atol=1e-3)


# ---- training


def test_initial_weights_are_those_of_the_original():
    model = ElmoForPreTraining(ElmoConfig(lstm_dim=300, projection_dim=100, char_embedding_dim=16, lm_vocab_size=2000))
    weights = {name.removeprefix("elmo."): weight.detach() for name, weight in model.named_parameters()}
    uniform = {"word_encoder.char_embedding.weight": 1.0}
    normal = {"word_encoder.projection.weight": 1 / 2048, "lm_head.weight": 1 / 100}
    constant = {"word_encoder.projection.bias": 0.0, "lm_head.bias": 0.0}
    for i in range(7):
        uniform[f"word_encoder.convolutions.{i}.weight"] = 0.05
        constant[f"word_encoder.convolutions.{i}.bias"] = 0.0
    for i in range(2):
        for gate, bias in (("transform", 0.0), ("carry", -2.0)):
            normal[f"word_encoder.highways.{i}.{gate}.weight"] = 1 / 2048
            constant[f"word_encoder.highways.{i}.{gate}.bias"] = bias
        uniform[f"lstm.layers.{i}.weight_ih"] = uniform[f"lstm.layers.{i}.weight_hh"] = math.sqrt(6 / (200 + 1200))
        uniform[f"lstm.layers.{i}.weight_hr"] = math.sqrt(6 / 400)
        constant[f"lstm.layers.{i}.bias"] = 0.0
    assert set(weights) == {*uniform, *normal, *constant}
    assert weights["word_encoder.char_embedding.weight"][0].eq(0).all()
    for name, bound in uniform.items():
        largest, spread = weights[name].abs().max(), weights[name].std()
        assert 0.9 * bound < largest <= bound and spread == pytest.approx(bound / math.sqrt(3), rel=0.1), name
    for name, variance in normal.items():
        assert weights[name].var() == pytest.approx(variance, rel=0.1), name
        assert weights[name].abs().max() > 3 * math.sqrt(variance), name
    for name, value in constant.items():
        assert weights[name].eq(value).all(), name


@pytest.mark.parametrize("changes", [{}, {"num_negative_samples": 8192}, {"cnn_filters": [], "word_vocab_size": 30}])
def test_every_parameter_is_trained(changes):
    model = make_lm(dropout=0.1, **changes).train()
    ids, mask = pad(make_texts(model, [5, 7, 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = model(input_ids=ids, attention_mask=mask, labels=make_labels(mask))
        assert output.perplexity > 1
        output.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("words", [0, 1, 4])
def test_no_targets_no_loss(training, words):
    model = make_lm().train(training)
    ids, mask = pad(make_texts(model, [words, words]), words)
    output = model(ids, mask, labels=torch.full(mask.shape, -100 if words > 1 else 3))
    assert output.loss == output.forward_loss == output.backward_loss == output.num_targets.sum() == 0
    output.loss.backward()
    assert all(parameter.grad is None or parameter.grad.eq(0).all() for parameter in model.parameters())
    assert model(ids[:0], mask[:0], labels=mask[:0]).loss == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str)
def test_half_precision_losses_are_close(dtype, tolerance):
    model = make_lm().train()
    ids, mask = pad(make_texts(model, [5, 7, 3]))
    labels = make_labels(mask)
    negatives = (model.sampler.draw(), model.sampler.draw())
    expected = [model(ids, mask, labels=labels, negatives=negatives).loss, model.eval()(ids, labels=labels).loss]
    model.to(dtype)
    actual = [model.train()(ids, mask, labels=labels, negatives=negatives).loss, model.eval()(ids, labels=labels).loss]
    assert actual[0].dtype == actual[1].dtype == torch.float32
    torch.testing.assert_close(torch.stack(actual), torch.stack(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32], ids=str)
def test_lanes_of_any_integer_type(dtype):
    model = make_lm(num_negative_samples=VOCAB)
    words, labels = torch.randint(1, 256, (6, 50)), torch.randint(VOCAB, (2, 3))
    places = torch.tensor([[[0, 1, 2], [3, 4, 5]], [[2, 1, 0], [5, 4, 3]]])
    targets = {"next_targets": labels, "previous_targets": labels.flip(1)}
    expected = model(words[places[0]], reversed_input_ids=words[places[1]], **targets).loss
    forward, backward = words[places].to(dtype)
    assert torch.equal(model(forward, reversed_input_ids=backward, **targets).loss, expected)
    forward, backward = places.to(dtype)
    placed = model(forward, reversed_input_ids=backward, distinct_words=words.to(dtype), **targets)
    torch.testing.assert_close(placed.loss, expected)


# ---- bad input

IDS, LABELS = torch.full((2, 3, 50), 7), torch.full((2, 3), 5)
LANES = {"input_ids": IDS, "reversed_input_ids": IDS, "next_targets": LABELS, "previous_targets": LABELS}
PLACES, WORDS = torch.tensor([[0, 1, 1]] * 2), torch.full((2, 9), 7)
PLACED = {**LANES, "input_ids": PLACES, "reversed_input_ids": PLACES, "distinct_words": WORDS}
BAD_INPUTS = {
    "label too large": ({"input_ids": IDS, "labels": LABELS + 35}, "lm_vocab_size - 1 = 39, but there is 40"),
    "negative label": ({"input_ids": IDS, "labels": LABELS - 6}, "must be -100 or between 0 and .*but there is -1"),
    "lane's label": ({**LANES, "previous_targets": LABELS + 99}, "but there is 104"),
    "placed lane's label": ({**PLACED, "previous_targets": LABELS - 6}, "but there is -1"),
    "float labels": ({"input_ids": IDS, "labels": LABELS + 0.5}, "labels must be integers"),
    "short labels": ({"input_ids": IDS, "labels": LABELS[:, :2]}, r"shape \(2, 3\), not .*\(2, 2\)"),
    "labels of characters": ({"input_ids": IDS, "labels": IDS}, r"shape \(2, 3\), not .*\(2, 3, 50\)"),
    "short lane": ({**LANES, "reversed_input_ids": IDS[:, :2]}, "reversed_input_ids must be"),
    "lane of wrong ids": ({**LANES, "reversed_input_ids": IDS + 300}, "between 0 and 261"),
    "short lane's labels": ({**LANES, "next_targets": LABELS[:1]}, "labels must be"),
    "one direction's labels": ({"input_ids": IDS, "next_targets": LABELS}, "go together"),
    "lanes with a text's labels": ({"input_ids": IDS, "reversed_input_ids": IDS, "labels": LABELS}, "go together"),
    "lanes without labels": ({"input_ids": IDS, "reversed_input_ids": IDS}, "go together"),
    "lanes' labels for a text": ({k: v for k, v in LANES.items() if "rev" not in k}, "go together"),
    "lanes with one direction's labels": (
        {**LANES, "previous_targets": None},
        "both next_targets and previous_targets",
    ),
    "all labels": ({**LANES, "labels": LABELS}, "either labels, or both"),
    "lanes' hidden states": ({**LANES, "output_hidden_states": True}, "lanes have no hidden_states"),
    "distinct words and words": ({**LANES, "distinct_words": WORDS}, r"input_ids must be \(batch, words\) integers"),
    "distinct words and vectors": ({**PLACED, "inputs_embeds": torch.zeros(2, 3, 50, 4)}, "and not both"),
    "distinct words alone": ({"distinct_words": WORDS}, r"input_ids must be \(batch, words\) integers"),
    "distinct words that are too long": ({**PLACED, "distinct_words": torch.full((2, 51), 7)}, r"1 to 50\)"),
    "distinct words without characters": ({**PLACED, "distinct_words": WORDS[:, :0]}, r"1 to 50\)"),
    "distinct words as vectors": ({**PLACED, "distinct_words": WORDS.float()}, "must be integers of shape"),
    "distinct words as truth values": ({**PLACED, "distinct_words": WORDS > 0}, "must be integers of shape"),
    "places as truth values": ({**PLACED, "input_ids": PLACES > 0}, r"input_ids must be \(batch, words\) integers"),
    "distinct words of wrong ids": ({**PLACED, "distinct_words": WORDS + 300}, "distinct_words must be between 0"),
    "a reversed place that there is not": ({**PLACED, "reversed_input_ids": PLACES - 1}, "must be between 0 and 1"),
    "a place that there is not": ({**PLACED, "input_ids": PLACES + 1}, "places in distinct_words must be between 0"),
    "left padding": ({"input_ids": IDS, "attention_mask": torch.tensor([[0, 1, 1]] * 2)}, "padded on the right"),
    "state with pairs": (
        {"input_ids": IDS, "token_type_ids": torch.tensor([[0, 1, 1]] * 2), "state": (LABELS, LABELS)},
        "one by one",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_lm()(**inputs)


def test_a_vocabulary_is_needed():
    with pytest.raises(ValueError, match=r"needs config\.lm_vocab_size, the number"):
        ElmoForPreTraining(ElmoConfig(**{**TINY, "lm_vocab_size": None}))
    ElmoModel(ElmoConfig(**{**TINY, "lm_vocab_size": None}))


@pytest.mark.parametrize("is_pair", [False, True])
def test_word_losses_stand_at_the_words_that_predict(is_pair):
    model = make_lm(num_negative_samples=VOCAB).eval()
    ids, mask = pad(make_texts(model, [5, 7]))
    types = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]]) if is_pair else None
    labels = make_labels(mask, 0.2)
    output = model(ids, mask, types, labels=labels)
    logits = model(ids, mask, types)
    for row, length in enumerate([5, 7]):
        for word in range(7):
            for side, scores, other in ((0, logits.logits, word + 1), (1, logits.backward_logits, word - 1)):
                same_text = 0 <= other < length and word < length
                same_text = same_text and (types is None or types[row, word] == types[row, other])
                loss = output.word_losses[side, row, word]
                if same_text and labels[row, other] != -100:
                    torch.testing.assert_close(loss, F.cross_entropy(scores[row, word], labels[row, other]))
                else:
                    assert loss == 0
    means = output.word_losses.sum((1, 2)) / output.num_targets
    torch.testing.assert_close(means, torch.stack([output.forward_loss, output.backward_loss]))


def test_arguments_that_contradict_each_other():
    model = make_lm(num_negative_samples=VOCAB)
    ids, mask = pad(make_texts(model, [4, 4]))
    labels = make_labels(mask)
    draw = LogUniformSampler(VOCAB, 4).draw()
    with pytest.raises(ValueError, match="the full softmax is used"):
        model(ids, mask, labels=labels, negatives=(draw, draw))
    with pytest.raises(ValueError, match="lanes have no token_type_ids"):
        types = torch.tensor([[0, 0, 1, 1]] * 2)
        model(ids, mask, types, reversed_input_ids=ids, next_targets=labels, previous_targets=labels)
