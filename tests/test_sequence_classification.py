"""Task layers and classifiers: against loops over single words, and with padding, pairs and cached layers."""

import pytest
import torch
from conftest import TINY
from test_modeling import assert_close, make_texts, pad
from torch import Tensor, nn
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification

from modeling_elmo import ElmoConfig, ElmoForMultipleChoice, ElmoForSequenceClassification, ElmoModel, task_layers
from modeling_elmo.task_layers import (
    AttentivePooling,
    BiRecurrent,
    attend,
    classification_loss,
    problem_type_of,
    split_pair,
)

HEADS = ["recurrent", "linear"]


def make_classifier(cls=ElmoForSequenceClassification, **changes):
    """In evaluation mode, with weights large enough that everything matters."""
    model = cls(ElmoConfig(**{**TINY, "head_dim": 8, "num_labels": 3, **changes})).eval()
    for name, parameter in model.named_parameters():
        if "embedding" not in name:
            nn.init.normal_(parameter, std=0.4)
    return model


def make_pairs(model, lengths: list[tuple[int, int]]) -> dict[str, Tensor]:
    """A padded batch of pairs."""
    ids, mask = pad(make_texts(model, [first + second for first, second in lengths]))
    types = torch.zeros(mask.shape, dtype=torch.long)
    for row, (first, second) in enumerate(lengths):
        types[row, first : first + second] = 1
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": types}


def read_alone(layer: BiRecurrent, text: Tensor) -> Tensor:
    """What a recurrent layer makes of one text without padding: (words, input_dim) -> (words, 2 * dim)."""
    ahead, back = layer.forward_rnn(text[None])[0], layer.backward_rnn(text.flip(0)[None])[0]
    return torch.cat([ahead[0], back[0].flip(0)], 1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrent_layer_reads_each_text_to_its_own_end(dtype, padded, monkeypatch):
    """Outputs and gradients are those of torch's own layer on each text alone, also the way it goes on a GPU."""
    monkeypatch.setattr(task_layers, "is_traced", lambda: padded)
    layer = BiRecurrent(4, 3, dropout=0.0).to(dtype)
    inputs = torch.randn(4, 6, 4, dtype=dtype, requires_grad=True)
    lengths = [4, 6, 0, 2]
    outputs = layer(inputs, torch.arange(6) < torch.tensor(lengths)[:, None])
    weights = torch.randn_like(outputs)
    alone = [read_alone(layer, inputs[row, :length]) for row, length in enumerate(lengths) if length]
    for text, row in zip(alone, (0, 1, 3), strict=True):
        assert_close(outputs[row, : len(text)], text)
        assert not outputs[row, len(text) :].any()
    assert not outputs[2].any()
    tensors = [inputs, *layer.parameters()]
    expected = torch.autograd.grad(
        sum((text * weights[row, : len(text)]).sum() for text, row in zip(alone, (0, 1, 3), strict=True)), tensors
    )
    for actual, wanted in zip(torch.autograd.grad((outputs * weights).sum(), tensors), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        assert_close(layer(inputs, torch.arange(6) < torch.tensor(lengths)[:, None]), outputs)


def test_gradients_of_a_recurrent_layer_add_up():
    layer = BiRecurrent(4, 3, dropout=0.0)
    inputs, mask = torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    for _ in range(3):
        layer(inputs, mask).sum().backward()
    thrice = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    layer(inputs, mask).sum().backward()
    for total, parameter in zip(thrice, layer.parameters(), strict=True):
        assert_close(total, 3 * parameter.grad)


def test_recurrent_layer_without_words():
    layer = BiRecurrent(4, 3, dropout=0.0)
    inputs, mask = torch.randn(3, 6, 4), torch.zeros(3, 6, dtype=torch.bool)
    assert not layer(inputs, mask).any() and layer(inputs, mask).shape == (3, 6, 6)
    for _ in range(2):
        assert layer(inputs[:0], mask[:0]).shape == (0, 6, 6) and layer(inputs[:, :0], mask[:, :0]).shape == (3, 0, 6)
        layer.forward_rnn.register_forward_hook(lambda *_: None)  # torch's own LSTM runs, as on a GPU


def test_attention_is_a_weighted_sum_over_words_that_are_there():
    scores, vectors = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]).bool()
    result = attend(scores, mask, vectors)
    for query in range(3):
        weights = scores[0, query, :3].exp()
        assert_close(result[0, query], (weights[:, None] * vectors[0, :3]).sum(0) / weights.sum())
    assert not result[1].any()  # nothing to attend to


def test_pooling_is_over_the_words_of_each_text():
    pooling = AttentivePooling(4)
    vectors, mask = torch.randn(2, 5, 4), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    words = vectors[0, :3]
    weights = torch.softmax(pooling.attention(words)[:, 0], 0)
    expected = torch.cat([words.amax(0), words.amin(0), words.mean(0), weights @ words])
    pooled = pooling(vectors, mask)
    assert_close(pooled[0], expected)
    assert not pooled[1].any()


def test_pairs_are_split_where_the_types_change():
    vectors = torch.arange(1.0, 19.0).view(3, 6, 1)
    mask = torch.arange(6) < torch.tensor([[6], [4], [3]])
    types = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    (first, first_mask), (second, second_mask) = split_pair(vectors, mask, types)
    assert [row[keep, 0].tolist() for row, keep in zip(first, first_mask, strict=True)] == [
        [1, 2], [7, 8, 9], [13, 14, 15],
    ]  # fmt: skip
    assert [row[keep, 0].tolist() for row, keep in zip(second, second_mask, strict=True)] == [
        [3, 4, 5, 6], [10], [13, 14, 15],  # a row without a second text has its first one twice
    ]  # fmt: skip
    assert not second[~second_mask].any()
    assert len(split_pair(vectors, mask, torch.zeros_like(types))) == len(split_pair(vectors, mask, None)) == 1


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("changes", [{}, {"feature_layers": [0]}, {"cnn_filters": [], "word_vocab_size": 30}])
def test_a_text_has_the_same_scores_alone_and_in_a_batch(head, changes):
    model = make_classifier(head=head, **changes)
    batch = make_pairs(model, [(4, 3), (1, 5), (6, 1)])
    scores = model(**batch).logits
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
        assert_close(model(**alone).logits, scores[row : row + 1], atol=1e-5 + 2e-6 * scores.abs().max().item())
    single = {name: tensor for name, tensor in batch.items() if name != "token_type_ids"}
    assert (model(**single).logits - scores).abs().max() > 1e-4  # one long text is something else


def test_order_of_a_pair_matters_and_a_single_text_is_a_pair_with_itself():
    model = make_classifier()
    text, other = make_texts(model, [4, 4])
    types = torch.tensor([[0] * 4 + [1] * 4])
    forth = model(input_ids=torch.cat([text, other])[None], token_type_ids=types).logits
    back = model(input_ids=torch.cat([other, text])[None], token_type_ids=types).logits
    assert (forth - back).abs().max() > 1e-4
    twice = model(input_ids=torch.cat([text, text])[None], token_type_ids=types).logits
    assert_close(model(input_ids=text[None]).logits, twice, atol=1e-5)


def test_biattention_follows_its_equations():
    """Section 3 of McCann et al. 2017 with shortcuts and cosines, word by word for one pair."""
    encoder = make_classifier().classifier.encoder
    first, second = torch.randn(1, 3, 18), torch.randn(1, 2, 18)
    masks = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    words = [torch.relu(encoder.reduce(text[0])) for text in (first, second)]
    read = [torch.cat([text, read_alone(encoder.encoder, text)], 1) for text in words]
    compared = []
    for word in read[0]:
        weights = torch.softmax(torch.stack([10 * torch.cosine_similarity(word, other, 0) for other in read[1]]), 0)
        context = sum(weight * other for weight, other in zip(weights, read[1], strict=True))
        compared.append(torch.cat([word, context, word - context, word * context]))
    inputs = torch.relu(encoder.project(torch.stack(compared)))
    integrated = torch.cat([inputs, read_alone(encoder.integrator, inputs)], 1)
    expected = encoder.pooling(integrated[None], masks[0])
    assert_close(encoder([(first, masks[0]), (second, masks[1])])[0], expected, atol=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_what_is_trained(freeze, tmp_path):
    """The biLM gets gradients if and only if it is not frozen; also after saving and loading."""
    model = make_classifier(freeze_bilm=freeze, feature_dropout=0.0)
    model.save_pretrained(tmp_path)
    loaded, _ = ElmoForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    for trained in (model, ElmoForSequenceClassification.from_pretrained(tmp_path), loaded):
        trained.train()
        assert trained.elmo.lstm.training is not freeze
        trained(**make_pairs(trained, [(3, 2), (2, 2)]), labels=torch.tensor([0, 2])).loss.backward()
        for name, parameter in trained.named_parameters():
            assert (parameter.grad is None) == (freeze and name.startswith("elmo.")), name
        outputs: list = []
        trained.elmo.register_forward_hook(lambda *call, outputs=outputs: outputs.append(call[-1].last_hidden_state))
        with torch.no_grad():
            trained(**make_pairs(trained, [(3, 2)]))
        assert not outputs[0].requires_grad


def test_an_unfrozen_part_of_a_frozen_bilm_is_trained():
    """As adapters are."""
    model = make_classifier().train()
    weight = model.elmo.lstm.layers[0].weight_ih.requires_grad_()
    model(**make_pairs(model, [(3, 2)]), labels=torch.tensor([1])).loss.backward()
    assert weight.grad is not None and weight.grad.any()


@pytest.mark.parametrize("changes", [{}, {"feature_layers": [0]}, {"feature_layers": [2, 1]}])
def test_cached_layers_stand_in_for_ids(changes):
    model = make_classifier(**changes)
    batch = make_pairs(model, [(4, 3), (1, 5)])
    layers, mask = model.bilm_layers(**batch)
    hidden = ElmoModel(model.config).eval()
    hidden.load_state_dict(model.elmo.state_dict(), strict=False)
    all_layers = hidden(**batch, output_hidden_states=True).hidden_states
    chosen = [all_layers[number] for number in changes.get("feature_layers", [0, 1, 2])]
    assert_close(layers, torch.stack(chosen, 2))
    assert mask.equal(batch["attention_mask"].bool())
    expected = model(**batch).logits
    del batch["input_ids"]
    assert_close(model(hidden_states=layers, **batch).logits, expected)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("layers", [None, [0, 2], [2, 0]])
def test_a_head_reads_words_beside_the_mix(layers, layer_norm):
    """[x_k; ELMo_k], section 3.3 of the paper."""
    options = {"feature_layers": layers, "scalar_mix_layer_norm": layer_norm}
    model = make_classifier(head="linear", **options)
    batch = make_pairs(model, [(4, 3), (1, 5)])
    found, mask = model.bilm_layers(**batch)
    words = found[:, :, 1 if layers == [2, 0] else 0, :6]
    assert_close(words[mask], model.elmo.word_vectors(batch["input_ids"][mask]))
    if layer_norm:
        words = nn.functional.layer_norm(words, (6,))
    mix = model.features.scalar_mix(found.unbind(2))
    assert_close(model.features(found), torch.cat([words, mix], 2))
    without = make_classifier(head="linear", concat_word_vectors=False, **options)
    without.features.load_state_dict(model.features.state_dict())
    assert_close(without.features(found), mix)


@pytest.mark.parametrize("layers", [[0], [1, 2]])
def test_a_head_reads_no_words_beside_themselves_or_without_layer_0(layers):
    model = make_classifier(feature_layers=layers)
    found, _ = model.bilm_layers(**make_pairs(model, [(4, 3)]))
    assert_close(model.features(found), model.features.scalar_mix(found.unbind(2)))


def test_mixes_that_are_not_trained_are_not_pulled():
    """As PEFT keeps the ones from before beside those that it trains."""
    model = make_classifier(scalar_mix_l2=0.5).train()
    assert model.penalty().item() == pytest.approx(0.5 * model.features.penalty().item())
    model.features.scalar_mix.requires_grad_(False)
    assert model.penalty() == 0


def test_gradients_reach_the_characters_through_a_frozen_bilm():
    """For what asks which characters matter: integrated gradients, adversarial examples."""
    model = make_classifier()
    inputs = make_pairs(model, [(4, 3)])
    vectors = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
    assert model.bilm_is_frozen
    model(inputs_embeds=vectors, **inputs).logits.sum().backward()
    assert vectors.grad.abs().amax((0, 2, 3)).min() > 0
    assert all(parameter.grad is None for parameter in model.elmo.parameters())


def test_hidden_states_are_checked():
    model = make_classifier()
    layers = torch.randn(2, 4, 3, 12)
    for mask in (None, torch.ones(2, 5)):
        with pytest.raises(ValueError, match="need an attention_mask"):
            model(hidden_states=layers, attention_mask=mask)
    with pytest.raises(ValueError, match=r"of shape \(batch, words, layers, hidden_size\) = \(batch, words, 3, 12\)"):
        model(hidden_states=layers[..., :6], attention_mask=torch.ones(2, 4))
    for name, width in (("input_ids", 50), ("inputs_embeds", 6)):
        with pytest.raises(ValueError, match="only one of them"):
            model(hidden_states=layers, attention_mask=torch.ones(2, 4), **{name: torch.zeros(2, 4, width)})
    with pytest.raises(ValueError, match="attention_mask must be padded on the right, but row 1 has a 0 before a 1"):
        model(hidden_states=layers, attention_mask=torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]))
    with pytest.raises(ValueError, match="token_type_ids must be 0 for the first text of a pair and 1 for the second"):
        types = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
        model(hidden_states=layers, attention_mask=torch.ones(2, 4), token_type_ids=types)


def test_loss_has_the_pull_towards_the_average_in_training_only():
    model = make_classifier(scalar_mix_l2=0.5, feature_dropout=0.0, head_dropout=0.0)
    batch = {**make_pairs(model, [(3, 2), (2, 4)]), "labels": torch.tensor([2, 0])}
    output = model(**batch)
    plain = nn.functional.cross_entropy(output.logits, batch["labels"])
    assert_close(output.loss, plain)
    pull = 0.5 * model.features.scalar_mix.weights.square().sum()
    assert pull > 0.01
    assert_close(model.train()(**batch).loss, plain + pull)


@pytest.mark.parametrize(
    ("labels", "num_labels", "problem_type", "expected"),
    [
        (torch.tensor([0.5, 3.0]), 1, None, nn.functional.mse_loss),
        (torch.tensor([[0.5], [3.0]]), 1, None, nn.functional.mse_loss),
        (torch.tensor([0, 1]), 3, None, nn.functional.cross_entropy),
        (torch.tensor([-100, 1]), 3, None, nn.functional.cross_entropy),
        (torch.tensor([[0.0, 1, 1], [1, 0, 0]]), 3, None, nn.functional.binary_cross_entropy_with_logits),
        (torch.tensor([[0.5, 1], [2, 0]]), 2, "regression", nn.functional.mse_loss),
    ],
)
def test_loss_of_each_problem_type(labels, num_labels, problem_type, expected):
    logits = torch.randn(2, num_labels).bfloat16().float()
    problem_type = problem_type or problem_type_of(labels, num_labels)
    loss = classification_loss(logits, labels, num_labels, problem_type)
    assert_close(loss, expected(logits.view(labels.shape) if num_labels == 1 else logits, labels))
    others = (labels.double() if labels.is_floating_point() else labels.int()).view(2, -1)
    again = classification_loss(logits.bfloat16(), others, num_labels, problem_type)
    assert again.equal(loss), "in float32, whatever the types are, and also for columns"


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_refused(label):
    model = make_classifier()
    with pytest.raises(ValueError, match=rf"between 0 and num_labels - 1 = 2, or -100 for none, but there is {label}"):
        model(**make_pairs(model, [(2, 2)]), labels=torch.tensor([label]))


def test_one_number_a_text_for_several_scores_is_refused():
    model = make_classifier()
    with pytest.raises(ValueError, match=r"labels of shape \(1,\) do not fit logits of shape \(1, 3\)"):
        model(**make_pairs(model, [(2, 2)]), labels=torch.tensor([0.5]))
    assert model.config.problem_type is None  # other labels may follow


def test_empty_texts_have_finite_scores_and_gradients():
    model = make_classifier().train()
    batch = make_pairs(model, [(3, 2), (1, 1)])
    batch["attention_mask"][1] = 0
    output = model(**batch, labels=torch.tensor([0, 1]))
    assert output.logits.isfinite().all()
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    padding = {name: torch.zeros_like(tensor) for name, tensor in batch.items()}
    assert make_classifier()(**padding).logits.isfinite().all()  # a frozen biLM that has met no word yet


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16(head):
    model = make_classifier(head=head)
    batch = {**make_pairs(model, [(4, 3), (1, 5)]), "labels": torch.tensor([0, 1])}
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    bound = {"rtol": 0.0, "atol": 0.02 * expected.logits.abs().max().item()}
    torch.testing.assert_close(output.logits.float(), expected.logits, **bound)
    torch.testing.assert_close(model.to(torch.bfloat16)(**batch).logits.float(), expected.logits, **bound)


@pytest.mark.parametrize("cls", [ElmoForSequenceClassification, ElmoForMultipleChoice])
@pytest.mark.parametrize("head", HEADS)
def test_padding_changes_nothing_in_float16(head, cls):
    model = make_classifier(cls, head=head)
    if head == "recurrent":
        nn.init.zeros_(model.classifier.encoder.reduce.bias)  # as at first: padding has vectors of zeros
    model.half()
    pairs = make_pairs(model, [(4, 3), (1, 5), (0, 6), (9, 2)])
    if cls is ElmoForMultipleChoice:
        pairs = {name: tensor.unflatten(0, (4, 1)) for name, tensor in pairs.items()}
    texts = {name: tensor for name, tensor in pairs.items() if name != "token_type_ids"}
    for batch in (pairs, texts):
        scores = model(**batch).logits
        for row, length in enumerate(pairs["attention_mask"].sum(-1).flatten()):
            alone = {name: tensor[row : row + 1].narrow(tensor.dim() - 1 - (name == "input_ids"), 0, length)
                     for name, tensor in batch.items()}  # fmt: skip
            assert_close(model(**alone).logits[0], scores[row], atol=0.01 * scores.abs().max().item())


def test_multiple_choice_scores_each_choice_as_the_classifier_would():
    model = make_classifier(ElmoForMultipleChoice)
    pairs = make_pairs(model, [(4, 3), (1, 5), (2, 2), (3, 3)])
    batch = {name: tensor.unflatten(0, (2, 2)) for name, tensor in pairs.items()}
    output = model(**batch, labels=torch.tensor([1, 0]), output_hidden_states=True)
    classifier = make_classifier(num_labels=1)
    classifier.load_state_dict(model.state_dict())
    assert_close(output.logits, classifier(**pairs).logits.view(2, 2), atol=1e-5)
    assert_close(output.loss, nn.functional.cross_entropy(output.logits, torch.tensor([1, 0])))
    assert output.hidden_states[0].shape == (*batch["attention_mask"].shape, 12)
    with pytest.raises(ValueError, match="input_ids must be integers of shape"):
        model(pairs["input_ids"])


@pytest.mark.parametrize(
    ("cls", "auto"),
    [
        (ElmoForSequenceClassification, AutoModelForSequenceClassification),
        (ElmoForMultipleChoice, AutoModelForMultipleChoice),
    ],
)
def test_saved_and_loaded_by_the_auto_class(cls, auto, tmp_path):
    model = make_classifier(cls, head="linear", feature_layers=[1], num_labels=4)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is cls and loaded.config.head == "linear" and loaded.config.feature_layers == [1]
    for name, parameter in model.state_dict().items():
        assert parameter.equal(loaded.state_dict()[name]), name


def test_starts_from_a_pretrained_bilm(tmp_path):
    bilm = ElmoModel(ElmoConfig(**TINY))
    bilm.save_pretrained(tmp_path)
    model = ElmoForSequenceClassification.from_pretrained(tmp_path, num_labels=2, head_dim=4)
    for name, parameter in model.elmo.state_dict().items():
        assert parameter.equal(bilm.state_dict()[name]), name
    assert model.layer_weights() == {"features.scalar_mix": pytest.approx([1 / 3] * 3)}


def test_a_new_head_has_initial_values(tmp_path):
    """Those of Glorot and Bengio, orthogonal ones between an LSTM's steps, and its forget gates are open."""
    ElmoModel(ElmoConfig(**TINY)).save_pretrained(tmp_path)
    model = ElmoForSequenceClassification.from_pretrained(tmp_path, num_labels=2, head_dim=8)
    for name, parameter in model.classifier.named_parameters():
        if "weight_hh" in name:
            for gate in parameter.split(8):
                assert_close(gate @ gate.T, torch.eye(8))
        elif parameter.dim() == 2:
            spread = (2 / sum(parameter.shape)) ** 0.5
            assert 0.7 * spread < parameter.std() < 1.3 * spread, name
        else:
            expected = [0.0] * 8 + [1.0] * 8 + [0.0] * 16 if "bias_ih" in name else [0.0] * len(parameter)
            assert parameter.tolist() == expected, name


def test_learns_which_of_two_texts_is_longer():
    """A task for which both texts must be read."""
    model = make_classifier(num_labels=2, feature_dropout=0.0, head_dropout=0.0).train()
    lengths = [(int(a), int(b)) for a, b in torch.randint(1, 7, (48, 2)) if a != b]
    batch = make_pairs(model, lengths)
    labels = torch.tensor([int(a > b) for a, b in lengths])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (model.eval()(**batch).logits.argmax(1) == labels).float().mean()
    assert accuracy > 0.9, float(accuracy)


def test_learns_whether_two_texts_share_a_word():
    """Of words that it has met a few times in training, in pairs that it has not met. A head that compares nothing but
    an LSTM's outputs by their products gets .66 right here."""
    torch.manual_seed(0)
    vectors, head = torch.randn(200, 18), make_classifier(num_labels=2, head_dim=16, head_dropout=0.0).classifier
    head.load_state_dict(ElmoForSequenceClassification(ElmoConfig(**{**TINY, "head_dim": 16})).classifier.state_dict())
    words = torch.randint(0, 200, (768, 10))  # four of the first text, six of the second
    for row in words[::2]:  # two of the first text stand anywhere in the second
        row[4 + torch.randperm(6)[:2]] = row[torch.randperm(4)[:2]]
    labels = (words[:, :4, None] == words[:, None, 4:]).any(2).any(1).long()
    types = (torch.arange(10) >= 4).long().expand(768, 10)
    mask = torch.ones(768, 10, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    for _ in range(12):
        for rows in torch.randperm(512).split(32):
            logits = head(vectors[words[rows]], mask[rows], types[rows])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        predicted = head(vectors[words[512:]], mask[512:], types[512:]).argmax(1)
    accuracy = (predicted == labels[512:]).float().mean()
    assert accuracy > 0.75, float(accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "transformer"}, "head must be 'recurrent' or 'linear'"),
        ({"feature_layers": [3]}, "feature_layers must be different numbers from 0 to num_hidden_layers=2"),
        ({"feature_layers": []}, "feature_layers"),
        ({"feature_layers": [1, 1]}, "feature_layers"),
        ({"head_dropout": 1.0}, r"head_dropout must be in \[0, 1\)"),
        ({"scalar_mix_l2": -1.0}, "scalar_mix_l2 must be 0 or more"),
        ({"head_dim": 0}, "head_dim must be greater than 0"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(Exception, match=message):
        ElmoConfig(**TINY, **change)


def test_hooks_and_parametrisations_of_recurrent_layers_are_heard():
    layer = BiRecurrent(4, 3, dropout=0.0)
    inputs, mask = torch.randn(2, 5, 4), torch.arange(5) < torch.tensor([[5], [3]])
    plain = layer(inputs, mask)
    called = []
    handle = layer.forward_rnn.register_full_backward_hook(lambda *_: called.append(1))
    outputs = layer(inputs.requires_grad_(), mask)
    outputs.sum().backward()
    handle.remove()
    assert called
    assert_close(outputs, plain)
    nn.utils.parametrizations.spectral_norm(layer.forward_rnn, "weight_ih_l0")
    assert (layer(inputs, mask) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_texts_without_a_word(head):
    """No boundaries either, alone or as one side of all pairs: as where they are padding beside another text."""
    model = make_classifier(head=head)
    ids = make_pairs(model, [(3, 0)])["input_ids"]
    nothing = ids[:, :0]
    beside = pad([ids[0], nothing[0]])
    expected = model(input_ids=beside[0], attention_mask=beside[1].long()).logits[1]
    assert_close(model(input_ids=nothing).logits[0], expected)
    types = torch.ones(1, 3, dtype=torch.long)  # the first text of the only pair is empty
    both = pad([ids[0], ids[0]])[0]
    two = torch.stack([types[0], torch.tensor([0, 1, 1])])
    expected = model(input_ids=both, token_type_ids=two).logits[:1]
    assert_close(model(input_ids=ids, token_type_ids=types).logits, expected, atol=1e-5)


@pytest.mark.parametrize(("head", "times"), [("linear", 1), ("recurrent", 2)])
def test_dropout_before_each_layer_of_the_head(head, times):
    model, calls = make_classifier(head=head, head_dropout=0.3), []
    model.classifier.dropout.register_forward_hook(lambda *_: calls.append(None))
    model(torch.full((1, 3, 50), 7))
    assert model.classifier.dropout.p == 0.3 and len(calls) == times


def test_dropout_of_features_and_before_recurrent_layers():
    features = make_classifier(feature_dropout=0.7, head_dropout=0.0).features.train()
    assert 0.6 < (features(torch.ones(9, 9, 3, 12)) == 0).float().mean() < 0.8
    layer, inputs, mask = BiRecurrent(4, 3, dropout=0.5), torch.randn(2, 5, 4), torch.ones(2, 5) == 1
    assert (layer.train()(inputs, mask) - layer.eval()(inputs, mask)).abs().max() > 1e-3
