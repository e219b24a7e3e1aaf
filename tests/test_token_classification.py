"""ElmoForTokenClassification: against sums over all chains of labels, and every promise of its interface."""

import itertools
import math

import pytest
import torch
from conftest import TINY
from test_crf import all_chains, is_allowed, log_sum
from test_modeling import TABLE, assert_close, make_model, make_texts, pad
from torch import Tensor
from transformers import AutoModelForTokenClassification

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoForTokenClassification, ElmoTokenizer
from modeling_elmo.crf import allowed_transitions, free_steps

LABELS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
OPTIONS = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}, "head_dim": 5}
TEXTS = [["the", "cat", "sat"], ["no"], [], ["a", "b", "c", "d"]]
HEADS = [{}, {"head": "linear"}, {"use_crf": False}, {"head": "linear", "use_crf": False}]


def make_tagger(**changes) -> ElmoForTokenClassification:
    return make_model(cls=ElmoForTokenClassification, **{**OPTIONS, **changes})


def encode(texts: list[list[str]] = TEXTS) -> tuple[dict[str, Tensor], Tensor]:
    """What the tokenizer makes of the texts, and which positions are words, (batch, words) bool."""
    encoded = ElmoTokenizer()(
        texts, is_split_into_words=True, padding=True, return_special_tokens_mask=True, return_tensors="pt"
    )
    return dict(encoded), encoded["special_tokens_mask"] == 0


def random_labels(words: Tensor) -> Tensor:
    return torch.randint(0, len(LABELS), words.shape).masked_fill(~words, -100)


def emissions_of(model: ElmoForTokenClassification, inputs: dict[str, Tensor]) -> Tensor:
    """Log-probabilities of each word by itself, which is what is left when nothing is in the chain."""
    return model(**{**inputs, "special_tokens_mask": inputs["attention_mask"]}).logits


# ---- what is computed


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_against_all_chains(changes, training):
    model = make_tagger(**changes, head_dropout=0.0, feature_dropout=0.0, scalar_mix_l2=0.5).double()
    model.train(training)
    inputs, words = encode()
    labels = random_labels(words)
    labels[3, 2] = -100
    with torch.no_grad():
        output, emissions = model(**inputs, labels=labels), emissions_of(model, inputs)
        best = model.decode(**inputs)
        steps = model.crf() if model.crf is not None else free_steps(len(LABELS), emissions)
    allowed = allowed_transitions(LABELS)
    likelihood = 0.0
    for row in range(len(TEXTS)):
        here = words[row]
        known = labels[row][here].tolist()
        everything = all_chains(emissions[row][here], steps)
        agreeing = [
            score
            for chain, score in everything.items()
            if all(a in (-100, b) for a, b in zip(known, chain, strict=True))
        ]
        likelihood += log_sum(agreeing) - log_sum(everything.values())
        possible = {chain: score for chain, score in everything.items() if is_allowed(chain, allowed)}
        assert tuple(best[row][here].tolist()) == max(possible, key=possible.__getitem__)
        if not training and model.crf is not None:
            everything = possible
        for word, label in itertools.product(range(len(known)), range(len(LABELS))):
            through = log_sum([score for chain, score in everything.items() if chain[word] == label])
            expected = max(through - log_sum(everything.values()), -87.3)
            assert float(output.logits[row][here][word, label]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    penalty = 0.5 * model.features.penalty().item() if training else 0.0
    assert float(output.loss) == pytest.approx(-likelihood / 7 + penalty, rel=1e-6)
    assert best[~words].eq(-100).all()
    assert torch.equal(output.logits[~words], emissions[~words])


def test_without_crf_the_loss_is_cross_entropy():
    model = make_tagger(use_crf=False)
    inputs, words = encode()
    labels = random_labels(words)
    output = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert_close(output.loss, expected)


def test_boundaries_are_known_without_a_mask():
    model = make_tagger()
    inputs, words = encode()
    plain = {name: tensor for name, tensor in inputs.items() if name != "special_tokens_mask"}
    labels = random_labels(words)
    output, expected = model(**plain, labels=labels), model(**inputs, labels=labels)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert torch.equal(model.decode(**plain), model.decode(**inputs))
    plain["input_ids"] = plain["input_ids"].to(torch.uint16)
    assert torch.equal(model.decode(**plain), model.decode(**inputs))


def test_labels_of_boundaries_and_padding_do_not_count():
    model = make_tagger()
    inputs, words = encode()
    labels = random_labels(words)
    everywhere = torch.where(words, labels, 3)
    assert torch.equal(model(**inputs, labels=everywhere).loss, model(**inputs, labels=labels).loss)


@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_padding_and_company_change_nothing(changes):
    model = make_tagger(**changes)
    inputs, words = encode()
    wide, _ = encode([*TEXTS, ["w"] * 9])
    labels = random_labels(words)
    output = model(**inputs, labels=labels)
    assert_close(model(**wide).logits[:4, :6][words], output.logits[words], 1e-5)
    assert torch.equal(model.decode(**wide)[:4, :6][words], model.decode(**inputs)[words])
    total = 0.0
    for row, text in enumerate(TEXTS):
        alone, here = encode([text])
        own = model(**alone, labels=labels[row : row + 1, : here.shape[1]])
        assert_close(own.logits[here], output.logits[row, : here.shape[1]][here[0]], 1e-5)
        total += own.loss.item() * len(text)
    assert total / 8 == pytest.approx(output.loss.item(), rel=1e-5)


def test_cached_layers_equal_ids():
    model = make_tagger()
    inputs, words = encode()
    labels = random_labels(words)
    expected = model(**inputs, labels=labels, output_hidden_states=True)
    assert len(expected.hidden_states) == 3
    cached = {name: inputs[name] for name in ("attention_mask", "special_tokens_mask")}
    cached["hidden_states"] = torch.stack(expected.hidden_states, 2)
    output = model(**cached, labels=labels)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    assert torch.equal(model.decode(**cached), model.decode(**inputs))


def test_without_a_mask_every_word_of_layers_and_vectors_is_in_the_chain():
    model = make_tagger()
    inputs, _ = encode([["a", "b"], ["c"]])
    layers = torch.stack(model(**inputs, output_hidden_states=True).hidden_states, 2)
    vectors = model.get_input_embeddings()(inputs["input_ids"])
    mask = inputs["attention_mask"]
    for given in ({"hidden_states": layers}, {"inputs_embeds": vectors}):
        assert model.decode(**given, attention_mask=mask).ne(-100).equal(mask == 1)


def test_ids_of_labels_may_be_text():
    model = make_tagger()
    inputs, _ = encode()
    expected = model.decode(**inputs)
    model.config.id2label = {str(label): name for label, name in enumerate(LABELS)}  # as JSON has them
    assert torch.equal(model.decode(**inputs), expected)


def test_models_without_characters():
    model = make_tagger(**TABLE)
    ids, mask = pad(make_texts(model, [4, 2]))
    assert model.decode(ids).ne(-100).equal(mask)
    special = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0]])
    labels = random_labels(mask & (special == 0))
    output = model(ids, special_tokens_mask=special, labels=labels)
    assert output.loss.isfinite() and model.decode(ids, special_tokens_mask=special)[1].eq(-100).all()


def test_pairs_are_one_chain_of_two_texts():
    model = make_tagger()
    inputs = ElmoTokenizer()(
        [["a", "b"]], [["c"]], is_split_into_words=True, return_tensors="pt", return_special_tokens_mask=True
    )
    tags = model.decode(**inputs)
    assert tags[0].ne(-100).tolist() == [False, True, True, False, False, True, False]


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_decoded_chains_are_well_formed(changes, scale):
    model = make_tagger(**changes)
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
    special = torch.zeros(30, 22, dtype=torch.long)
    special[:, [0, 21]] = 1
    inputs = {"hidden_states": 3 * torch.randn(30, 22, 3, 12), "attention_mask": torch.ones(30, 22)}
    inputs["special_tokens_mask"], words = special, special == 0
    allowed = allowed_transitions(LABELS)
    rows = model.decode(**inputs)[words].view(30, 20).tolist()
    assert all(is_allowed(tuple(row), allowed) for row in rows)
    assert len({tuple(row) for row in rows}) > 1
    alone = [tuple(row) for row in emissions_of(model, inputs).argmax(2)[words].view(30, 20).tolist()]
    assert not all(is_allowed(row, allowed) for row in alone), "else the constraints had nothing to do"


def test_labels_of_no_scheme_are_free():
    names = ["NN", "VB", "DT", "IN", "I-X"]
    model = make_tagger(id2label=dict(enumerate(names)), feature_dropout=0.0, head_dropout=0.0)
    inputs, _ = encode()
    assert_close(model.eval()(**inputs).logits, model.train()(**inputs).logits)


def test_logits_decode_well_word_by_word():
    """What clients that know nothing of chains make of them: labels of high probability, impossible ones never."""
    model = make_tagger()
    inputs, words = encode()
    logits = model(**inputs).logits
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    assert_close(logits.exp().sum(2), torch.ones(words.shape), 1e-5)
    first = logits[0, 1]
    assert first[LABELS.index("I-X")] < -80 and first.argmax() not in (LABELS.index("I-X"), LABELS.index("I-Y"))


# ---- training


@pytest.mark.parametrize("changes", HEADS, ids=str)
@pytest.mark.parametrize("freeze_bilm", [True, False])
def test_gradients_reach_what_is_trained_and_nothing_else(changes, freeze_bilm):
    model = make_tagger(**changes, freeze_bilm=freeze_bilm).train()
    inputs, words = encode()
    model(**inputs, labels=random_labels(words)).loss.backward()
    for name, parameter in model.named_parameters():
        if name.startswith("elmo.") and freeze_bilm:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.ne(0).any(), name


def test_parts_of_a_batch_add_up():
    """As Trainer accumulates gradients: the losses of the parts, divided by the labels of all, have the same sum."""
    model = make_tagger(scalar_mix_l2=0.5, feature_dropout=0.0, head_dropout=0.0).train()
    inputs, words = encode()
    labels = random_labels(words)
    whole = model(**inputs, labels=labels).loss
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        part = {name: tensor[rows] for name, tensor in inputs.items()}
        parts.append(model(**part, labels=labels[rows], num_items_in_batch=torch.tensor(8)).loss)
    assert_close(sum(parts), whole, 1e-5)
    sum(parts).backward()


def test_batches_without_labels_have_no_loss():
    counted_by_trainer = {"num_items_in_batch": torch.tensor(0)}
    for changes, count in itertools.product(HEADS, ({}, counted_by_trainer)):
        model = make_tagger(**changes).train()
        inputs, words = encode()
        loss = model(**inputs, labels=torch.full(words.shape, -100), **count).loss
        loss.backward()
        assert loss == 0 and all(p.grad.eq(0).all() for p in model.classifier.parameters())


@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_nothing_in_nothing_out(changes):
    model = make_tagger(**changes)
    for shape in [(2, 3), *([(0, 4), (3, 0), (0, 0)] if model.reader is None else [])]:
        nothing = {"hidden_states": torch.zeros(*shape, 3, 12), "attention_mask": torch.zeros(shape)}
        output = model(**nothing, labels=torch.zeros(shape, dtype=torch.long))
        assert output.logits.shape == (*shape, len(LABELS)) and output.loss == 0
        assert torch.equal(model.decode(**nothing), torch.full(shape, -100))


def test_bf16_autocast():
    inputs, words = encode()
    labels = random_labels(words)
    for changes in HEADS:
        model = make_tagger(**changes, freeze_bilm=False, feature_dropout=0.0, head_dropout=0.0).train()
        expected = model(**inputs, labels=labels)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**inputs, labels=labels)
        assert output.logits.dtype == output.loss.dtype == torch.float32
        assert_close(output.loss, expected.loss, 0.1)
        output.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    inputs, words = encode()
    for changes in HEADS:
        model = make_tagger(**changes)
        expected = model(**inputs).logits
        half = model.to(dtype)
        output = half(**inputs, labels=random_labels(words))
        assert output.logits.dtype == torch.float32 and output.loss.isfinite()
        assert_close(output.logits[words].exp(), expected[words].exp(), 0.1)
        assert half.decode(**inputs).ne(-100).equal(words)


def test_a_new_head_starts_as_softmax():
    model = ElmoForTokenClassification(ElmoConfig(**TINY, **OPTIONS))
    assert all(parameter.eq(0).all() for parameter in model.crf.parameters())
    inputs, words = encode()
    loss = model(**inputs, labels=random_labels(words)).loss
    assert float(loss.detach()) == pytest.approx(math.log(len(LABELS)), abs=0.3)
    assert model.reader.forward_rnn.hidden_size == 5
    default = ElmoForTokenClassification(ElmoConfig(**TINY))
    assert default.reader.forward_rnn.hidden_size == 200


@pytest.mark.parametrize("changes", HEADS, ids=str)
def test_learns_a_toy_task(changes):
    """Chunks whose type is told by their first word."""
    torch.manual_seed(1)
    texts, tags = [], []
    for _ in range(16):
        text, chain = [], []
        while len(text) < 9:
            kind, length = int(torch.randint(0, 2, ())), int(torch.randint(0, 3, ()))
            text += [["Barcelona", "Jo"][kind], *["Cap"] * length, "low"]
            chain += [1 + 2 * kind, *[2 + 2 * kind] * length, 0]
        texts.append(text)
        tags.append(chain)
    options = {**OPTIONS, **changes, "head_dim": 12, "feature_dropout": 0.1, "head_dropout": 0.1}
    model = ElmoForTokenClassification(ElmoConfig(**TINY, **options)).train()
    model.elmo.load_state_dict(make_tagger().elmo.state_dict())
    inputs, is_word = encode(texts)
    labels = torch.full(is_word.shape, -100)
    labels[is_word] = torch.tensor(list(itertools.chain(*tags)))
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.05)
    layers = torch.stack(model(**inputs, output_hidden_states=True).hidden_states, 2)
    cached = {"hidden_states": layers, **{name: inputs[name] for name in ("attention_mask", "special_tokens_mask")}}
    for _ in range(50):
        optimizer.zero_grad()
        loss = model(**cached, labels=labels).loss
        loss.backward()
        optimizer.step()
    model.eval()
    right = model.decode(**inputs)[is_word] == labels[is_word]
    assert right.float().mean() > 0.95


# ---- folders


def test_save_and_load(tmp_path):
    model = make_tagger()
    model.save_pretrained(tmp_path)
    inputs, _ = encode()
    loaded, info = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ElmoForTokenClassification and not any(info.values())
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert [loaded.config.id2label[i] for i in range(len(LABELS))] == LABELS
    assert loaded.bilm_is_frozen


def test_a_head_on_a_pretrained_model(tmp_path):
    pretrained = make_model(cls=ElmoForPreTraining)
    pretrained.save_pretrained(tmp_path)
    model, info = ElmoForTokenClassification.from_pretrained(tmp_path, **OPTIONS, output_loading_info=True)
    heads = ("features.", "reader.", "classifier.", "crf.")
    assert info["missing_keys"] and all(key.startswith(heads) for key in info["missing_keys"])
    assert all(parameter.eq(0).all() for parameter in model.crf.parameters())
    assert model.classifier.bias.eq(0).all() and model.classifier.weight.abs().max() < 2
    inputs, _ = encode()
    expected = pretrained(inputs["input_ids"], output_hidden_states=True).hidden_states
    output = model(**inputs, output_hidden_states=True)
    for one, other in zip(output.hidden_states, expected, strict=True):
        assert_close(one, other)


def test_tuples_and_defaults():
    model = make_tagger()
    inputs, words = encode()
    labels = random_labels(words)
    loss, logits = model(**inputs, labels=labels, return_dict=False)
    output = model(**inputs, labels=labels)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert output.hidden_states is None and model(**inputs).loss is None


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.full((4, 6), 5)}, "between 0 and num_labels - 1 = 4"),
        ({"labels": torch.full((4, 6), -1)}, "or -100 for none"),
        ({"labels": torch.zeros(4, 5).long()}, r"labels must be of shape \(batch, words\) = \(4, 6\), not \(4, 5\)"),
        ({"labels": torch.zeros(4).long()}, "labels must be of shape"),
        ({"special_tokens_mask": torch.zeros(4, 5)}, r"special_tokens_mask must be of shape .* = \(4, 6\)"),
        ({"hidden_states": torch.zeros(4, 6, 3, 12)}, "only one of them"),
        ({"input_ids": torch.zeros(4, 6).long()}, "input_ids must be integers of shape"),
    ],
    ids=["label too large", "negative", "short labels", "labels of texts", "short mask", "both", "2-D ids"],
)
def test_bad_input(changes, message):
    inputs, _ = encode()
    with pytest.raises(ValueError, match=message):
        make_tagger()(**{**inputs, **changes})


def test_dropout_of_the_head_is_that_of_the_config():
    model = make_tagger(head="recurrent", head_dropout=0.3)
    assert model.dropout.p == model.reader.dropout.p == 0.3
