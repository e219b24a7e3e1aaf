"""ElmoForQuestionAnswering: against loops over single words, and every promise of its interface."""

import pytest
import torch
from conftest import TINY
from test_modeling import assert_close, make_model
from test_sequence_classification import make_pairs, read_alone
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo import ElmoConfig, ElmoForQuestionAnswering, ElmoModel, ElmoTokenizer
from modeling_elmo.question_answering import BoundaryScores, TrilinearScores, boundary_loss

HEADS = ["recurrent", "linear"]
LOW = -1e4
LENGTHS = [(4, 6), (2, 3), (5, 9), (3, 2)]  # question and context with their boundaries; the last has no word


def make_reader(**changes) -> ElmoForQuestionAnswering:
    return make_model(cls=ElmoForQuestionAnswering, **{"head_dim": 5, **changes})


def make_batch(model, lengths=LENGTHS) -> dict[str, Tensor]:
    return make_pairs(model, lengths)


def answer_places(lengths: list[tuple[int, int]], width: int) -> Tensor:
    """Where scores stand: no answer, and the words of the context but its first and last, which are boundaries."""
    places = [[p == 0 or q + 1 <= p < q + c - 1 for p in range(width)] for q, c in lengths]
    return torch.tensor(places)


# ---- what is computed


def test_trilinear_scores_are_those_of_each_pair_of_words():
    """w [h; q; h * q] (Seo et al. 2017, equation 1)."""
    scores = TrilinearScores(5)
    first, second = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    weight = torch.cat([scores.first.weight[0], scores.second.weight[0], scores.product.weight[0]])
    result = scores(first, second)
    assert result.shape == (2, 3, 4)
    for row, one, other in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(4)):
        h, q = first[row, one], second[row, other]
        assert_close(result[row, one, other], weight @ torch.cat([h, q, h * q]))


def test_dropout_of_the_head_leaves_the_second_mix_alone():
    """It has that of features: beside the LSTM's outputs stands the mix as it is."""
    model = make_reader(head_dropout=0.9, feature_dropout=0.0).train()
    seen = []
    model.spans.reader.attention.register_forward_pre_hook(lambda _, texts: seen.extend(texts))
    model(**make_batch(model, [(4, 6)]))
    for text in seen:  # context and question
        outputs, mix = text.split([10, model.config.hidden_size], dim=2)
        assert (outputs == 0).float().mean() > 0.5 and (mix != 0).all()


def test_dropout_before_each_layer_of_the_head():
    """But not of the features, which had their own: before the attention to both texts, to itself, and two LSTMs."""
    model, calls = make_reader(head_dropout=0.3), []
    head, reader = model.spans, model.spans.reader
    reader.dropout.register_forward_hook(lambda *_: calls.append(None))
    model(**make_batch(model))
    assert reader.dropout.p == 0.3 and len(calls) == 3
    layers = (reader.encoder, reader.self_encoder, head.start.encoder, head.end.encoder)
    assert [layer.dropout.p for layer in layers] == [0.0, 0.3, 0.3, 0.3]


def test_a_context_does_not_see_the_padding_of_its_question():
    reader = make_reader().spans.reader
    nn.init.constant_(reader.attention.second.weight, -1.0)  # nothing would fit better than zeros
    width = reader.attention.first.in_features
    question, context = torch.rand(1, 3, width), torch.rand(1, 4, width)
    masks = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    expected = reader.attend_both_ways(question, context, *masks)
    padded = [nn.functional.pad(question, (0, 0, 0, 2)), context, nn.functional.pad(masks[0], (0, 2)), masks[1]]
    assert_close(reader.attend_both_ways(*padded), expected)


def attention(scores: TrilinearScores, words: Tensor, others: Tensor, itself: bool = False) -> tuple[Tensor, Tensor]:
    """For each word what it sees of the others (but the one at its own place), and its highest score."""
    weight = torch.cat([scores.first.weight[0], scores.second.weight[0], scores.product.weight[0]])
    seen, highest = [], []
    for place, h in enumerate(words):
        visible = [q for other, q in enumerate(others) if not (itself and other == place)]
        values = torch.stack([weight @ torch.cat([h, q, h * q]) for q in visible])
        shares = torch.softmax(values, 0)
        seen.append(sum(share * q for share, q in zip(shares, visible, strict=True)))
        highest.append(values.max())
    return torch.stack(seen), torch.stack(highest)


def slow_reader(model: ElmoForQuestionAnswering, layers: Tensor, question_length: int) -> Tensor:
    """Start and end scores (words of the context, and before them no answer; 2) of one pair without padding, word by
    word as Clark and Gardner (2017) describe it."""
    head, reader = model.spans, model.spans.reader
    mixes = model.features(layers[None])[0], head.attention_mix(layers[None])[0]
    texts = []
    for place in (slice(0, question_length), slice(question_length, None)):
        texts.append(torch.cat([read_alone(reader.encoder, mixes[0][place]), mixes[1][place]], dim=1))
    question, context = texts
    seen, highest = attention(reader.attention, context, question)
    whole = sum(share * h for share, h in zip(torch.softmax(highest, 0), context, strict=True))
    rows = [torch.cat([h, c, h * c, whole * c]) for h, c in zip(context, seen, strict=True)]
    read = torch.relu(reader.merge(torch.stack(rows)))
    again = read_alone(reader.self_encoder, read)
    seen, _ = attention(reader.self_attention, again, again, itself=True)
    read = read + torch.relu(reader.self_merge(torch.cat([again, seen, again * seen], dim=1)))
    columns, inputs = [], read
    for part in (head.start, head.end):
        states = read_alone(part.encoder, inputs)
        words = states[1:-1]
        scores = part.score(words)[:, 0]
        columns.append(torch.cat([part.no_answer(torch.softmax(scores, 0) @ words), scores]))
        inputs = torch.cat([states, read], dim=1)
    return torch.stack(columns, 1)


@torch.no_grad()
def test_the_network_follows_its_equations():
    model = make_reader(dtype=torch.float64)
    lengths = LENGTHS[:3]
    batch = make_batch(model, lengths)
    output = model(**batch)
    layers, _ = model.bilm_layers(**batch)
    for row, (question, context) in enumerate(lengths):
        expected = slow_reader(model, layers[row, : question + context], question)
        places = [0, *range(question + 1, question + context - 1)]
        actual = torch.stack([output.start_logits[row, places], output.end_logits[row, places]], 1)
        assert_close(actual, expected)  # shares of attention are float32


def test_the_plain_head_is_a_linear_layer():
    model = make_reader(head="linear")
    batch = make_batch(model)
    scores = model.spans.output(model.features(model.bilm_layers(**batch)[0]))
    places = answer_places(LENGTHS, scores.shape[1])
    output = model(**batch)
    assert_close(output.start_logits[places], scores[..., 0][places])
    assert_close(output.end_logits[places], scores[..., 1][places])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_scores_stand_at_the_words_of_the_context_and_at_position_0(head, dtype):
    model = make_reader(head=head, dtype=dtype)
    batch = make_batch(model)
    output = model(**batch)
    places = answer_places(LENGTHS, batch["attention_mask"].shape[1])
    for logits in (output.start_logits, output.end_logits):
        assert logits.shape == places.shape and logits.dtype == dtype
        assert (logits[~places] == torch.tensor(LOW, dtype=dtype)).all()
        assert (logits[places].abs() < 100).all() and logits[places].unique().numel() > 5
    assert not output.start_logits.equal(output.end_logits)


@pytest.mark.parametrize("changes", [{}, {"feature_layers": [0]}, {"cnn_filters": [], "word_vocab_size": 30}], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_a_pair_has_the_same_scores_alone_and_in_a_batch(head, changes):
    model = make_reader(head=head, **changes)
    batch = make_batch(model)
    batch["token_type_ids"][batch["attention_mask"] == 0] = 1  # padding is of no text, whatever it is called
    output = model(**batch)
    for row, length in enumerate(map(sum, LENGTHS)):
        alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
        for one, all_rows in ((alone.start_logits, output.start_logits), (alone.end_logits, output.end_logits)):
            assert_close(all_rows[row, :length], one[0], 1e-5)
            assert (all_rows[row, length:] == LOW).all()


def test_the_question_matters():
    model = make_reader()
    batch = make_batch(model, [(5, 8)])
    before = model(**batch)
    batch["input_ids"][0, 2] = batch["input_ids"][0, 7]
    after = model(**batch)
    words = slice(6, 12)
    assert ((after.start_logits - before.start_logits)[0, words].abs() > 1e-5).all()
    assert ((after.end_logits - before.end_logits)[0, [0, *range(6, 12)]].abs() > 1e-5).all()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("lengths", [[(3, 0)], [(3, 0), (2, 5)], [(3, 2)], [(0, 4), (3, 3)], [(1, 1)]], ids=str)
def test_missing_and_empty_texts_have_finite_scores_and_gradients(head, lengths):
    model = make_reader(head=head, freeze_bilm=False).train()
    batch = make_batch(model, lengths)
    positions = torch.zeros(len(lengths), dtype=torch.long)
    output = model(**batch, start_positions=positions, end_positions=positions)
    places = answer_places(lengths, batch["attention_mask"].shape[1])
    assert output.start_logits.isfinite().all() and output.loss.isfinite()
    assert (output.start_logits[~places] == LOW).all()
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)], ids=str)
def test_batches_of_nothing_have_empty_scores(head, shape):
    model = make_reader(head=head).train()
    none = torch.zeros(shape, dtype=torch.long)
    positions = torch.zeros(shape[0], dtype=torch.long)
    for types in (none, None):
        output = model(
            torch.zeros(*shape, 50, dtype=torch.long), none, types, start_positions=positions, end_positions=positions
        )
        assert output.start_logits.shape == output.end_logits.shape == shape and output.loss.isfinite()


@pytest.mark.parametrize("head", HEADS)
def test_without_token_types_there_is_no_context(head):
    model = make_reader(head=head)
    batch = make_batch(model)
    logits = model(batch["input_ids"], batch["attention_mask"]).start_logits
    assert (logits[:, 1:] == LOW).all() and (logits[:, 0] > -100).all()


def test_what_the_tokenizer_makes_is_understood():
    model, tokenizer = make_reader(), ElmoTokenizer()
    batch = tokenizer([("Who is it?", "It is Ann."), ("What?", "Nothing at all")], padding=True, return_tensors="pt")
    logits = model(**batch).start_logits
    found = [[batch.tokens(row)[place] for place in torch.nonzero(logits[row, 1:] > LOW)[:, 0] + 1] for row in range(2)]
    assert found == [["It", "is", "Ann", "."], ["Nothing", "at", "all"]]


def test_no_answer_is_told_from_the_best_words():
    part = BoundaryScores(4, 3, 0.0)
    vectors, mask = torch.randn(1, 6, 4), torch.ones(1, 6, dtype=torch.bool)
    is_word = torch.tensor([[False, True, True, True, False, False]])
    states, scores, no_answer = part(vectors, mask, is_word)
    pooled = torch.softmax(scores[0, 1:4], 0) @ states[0, 1:4]
    assert_close(no_answer, part.no_answer(pooled))
    nothing = part(vectors, mask, torch.zeros_like(is_word))[2]
    assert_close(nothing, part.no_answer.bias)


# ---- loss


def slow_loss(logits: Tensor, targets: list[int | None]) -> Tensor:
    losses = [
        -torch.log_softmax(row, 0)[target] for row, target in zip(logits, targets, strict=True) if target is not None
    ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_the_mean_of_both_cross_entropies(head):
    model = make_reader(head=head)
    batch = make_batch(model)
    starts, ends = [5, 0, 7, 0], [8, 0, 7, 0]
    output = model(**batch, start_positions=torch.tensor(starts), end_positions=torch.tensor(ends))
    expected = (slow_loss(output.start_logits, starts) + slow_loss(output.end_logits, ends)) / 2
    assert_close(output.loss, expected)
    columns = (torch.tensor(places, dtype=torch.int32)[:, None] for places in (starts, ends))
    column = model(**batch, **dict(zip(("start_positions", "end_positions"), columns, strict=True)))
    assert_close(column.loss, expected)
    assert model(**batch, start_positions=torch.tensor(starts)).loss is None


@pytest.mark.parametrize("place", [-100, -1, 3, 4, 9, 13, 14, 1000])
def test_positions_that_can_hold_no_answer_are_left_out(place):
    """The question, boundaries, padding and what is beyond; as when the answer was cut off."""
    model = make_reader()
    batch = make_batch(model)
    starts, ends = [place, 0, 7, 0], [5, 0, 7, 0]
    output = model(**batch, start_positions=torch.tensor(starts), end_positions=torch.tensor(ends))
    starts[0] = None
    assert_close(output.loss, (slow_loss(output.start_logits, starts) + slow_loss(output.end_logits, ends)) / 2)


def test_a_batch_without_any_position_has_loss_0_and_is_told_of():
    model = make_reader().train()
    model.config.scalar_mix_l2 = 0.0
    nowhere = torch.full((4,), -100)
    with CaptureLogger(logging.get_logger("modeling_elmo.question_answering")) as captured:
        loss = model(**make_batch(model), start_positions=nowhere, end_positions=nowhere).loss
    assert loss == 0 and "encode pairs of (question, context)" in captured.out
    loss.backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_loss_is_computed_in_float32():
    logits = torch.randn(3, 6).bfloat16()
    loss = boundary_loss(logits, torch.tensor([1, 2, 3]), torch.ones(3, 6, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert_close(loss, slow_loss(logits.float(), [1, 2, 3]))


def test_loss_has_the_pull_of_both_mixes_in_training_only():
    model = make_reader(scalar_mix_l2=0.5, feature_dropout=0.0, head_dropout=0.0)
    inputs = {**make_batch(model), "start_positions": torch.zeros(4).long(), "end_positions": torch.zeros(4).long()}
    plain = model(**inputs).loss
    mixes = [model.features.scalar_mix.weights, model.spans.attention_mix.scalar_mix.weights]
    pull = 0.5 * sum(weights.square().sum() for weights in mixes)
    assert pull > 0.01
    assert_close(model.train()(**inputs).loss, plain + pull)
    assert set(model.layer_weights()) == {"features.scalar_mix", "spans.attention_mix.scalar_mix"}


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_what_is_trained(freeze, head):
    model = make_reader(head=head, freeze_bilm=freeze).train()
    assert model.elmo.lstm.training is not freeze
    positions = torch.tensor([5, 0, 7, 0])
    model(**make_batch(model), start_positions=positions, end_positions=positions).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (freeze and name.startswith("elmo.")), name
        # Self-attention's softmax cancels what only the attending word says.
        assert parameter.grad is None or parameter.grad.any() or name == "spans.reader.self_attention.first.weight", (
            name
        )


# ---- the interface


@pytest.mark.parametrize("head", HEADS)
def test_cached_layers_stand_in_for_ids(head):
    model = make_reader(head=head)
    batch = make_batch(model)
    expected = model(**batch, output_hidden_states=True)
    layers, _ = model.bilm_layers(**batch)
    del batch["input_ids"]
    output = model(hidden_states=layers, **batch)
    assert_close(output.start_logits, expected.start_logits)
    assert_close(output.end_logits, expected.end_logits)
    assert output.hidden_states is None and len(expected.hidden_states) == 3
    assert_close(torch.stack(expected.hidden_states, 2), layers)


@pytest.mark.parametrize("head", HEADS)
def test_autocast(head):
    model = make_reader(head=head)
    batch = make_batch(model)
    expected = model(**batch)
    positions = torch.tensor([5, 0, 7, 0])
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(**batch, start_positions=positions, end_positions=positions)
        scores = model.eval()(**batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    places = answer_places(LENGTHS, batch["attention_mask"].shape[1])
    assert_close(scores.start_logits.float()[places], expected.start_logits[places], 0.2)
    assert_close(scores.end_logits.float()[places], expected.end_logits[places], 0.2)


def test_tuples():
    model = make_reader()
    batch = make_batch(model)
    output = model(**batch, return_dict=False)
    assert isinstance(output, tuple) and len(output) == 2
    assert output[0].equal(model(**batch).start_logits) and output[0].is_contiguous()
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("head", HEADS)
def test_saved_and_loaded_by_the_auto_class(head, tmp_path):
    model = make_reader(head=head)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is ElmoForQuestionAnswering and loaded.config.head == head
    batch = make_batch(model)
    assert_close(loaded(**batch).end_logits, model(**batch).end_logits)


def test_starts_from_a_pretrained_bilm(tmp_path):
    bilm = ElmoModel(ElmoConfig(**TINY))
    bilm.save_pretrained(tmp_path)
    model = ElmoForQuestionAnswering.from_pretrained(tmp_path)
    assert model.spans.reader.encoder.forward_rnn.hidden_size == 100
    for name, parameter in model.elmo.state_dict().items():
        assert parameter.equal(bilm.state_dict()[name]), name
    for name, parameter in model.spans.named_parameters():
        assert parameter.isfinite().all() and (parameter.any() or "bias" in name or "scalar_mix" in name), name


def test_learns_to_find_the_word_behind_the_one_that_is_asked_for():
    """Or that it is not there: three questions for each context, so both must be read."""
    names, values = (torch.argsort(torch.rand(8, 4), 1).tolist() for _ in range(2))
    questions, contexts, answers = [], [], []
    for row in range(24):
        name, value = names[row // 3], values[row // 3]
        contexts.append(" ".join(f"{'abcd'[name[i]]} {'1234'[value[i]]}" for i in range(2)))
        questions.append("abcd"[name[row % 3]])
        answers.append((5, 7, 0)[row % 3])  # behind <S> question </S> <S>
    batch = ElmoTokenizer()(questions, contexts, padding=True, return_tensors="pt")
    options = {"projection_dim": 16, "head_dim": 24, "feature_dropout": 0.0, "head_dropout": 0.0}
    model = ElmoForQuestionAnswering(ElmoConfig(**{**TINY, **options})).train()
    nn.init.normal_(model.elmo.word_encoder.projection.weight)
    layers, _ = model.bilm_layers(**batch)
    del batch["input_ids"]
    target = torch.tensor(answers)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(200):
        loss = model(hidden_states=layers, **batch, start_positions=target, end_positions=target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    output = model.eval()(hidden_states=layers, **batch)
    right = (output.start_logits.argmax(1) == target) & (output.end_logits.argmax(1) == target)
    assert right.float().mean() > 0.9, float(right.float().mean())
