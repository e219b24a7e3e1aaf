"""The state in which texts begin: zeros, or one that is made of text and saved with the weights."""

import copy
import json

import pytest
import torch
from accelerate import cpu_offload
from finetuning_runs import save_pretrained

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer
from modeling_elmo.convert import ConversionError, convert_to_allennlp
from modeling_elmo.lstm import ElmoState
from modeling_elmo.warm_state import SENTENCES_PER_LANE, WarmStateError, main, warm_state

SENTENCES = ["It rains .", "Why ?", "The second sentence is longer than the first .", "Yes ."]


def make_model(config: ElmoConfig, cls: type = ElmoModel):
    model = cls(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_state(config: ElmoConfig, rows: int = 1) -> ElmoState:
    shape = config.num_hidden_layers, 2, rows
    return ElmoState(torch.randn(*shape, config.projection_dim) / 2, torch.randn(*shape, config.lstm_dim))


def with_rows(state: ElmoState, rows: int) -> ElmoState:
    return ElmoState(*(tensor.expand(-1, -1, rows, -1) for tensor in state))


@torch.no_grad()
def layers_of(model: ElmoModel, *texts, **kwargs):
    batch = ElmoTokenizer()(*texts, padding=True, return_tensors="pt")
    return torch.stack(model(**batch, output_hidden_states=True, **kwargs).hidden_states)


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A folder with a language model, and a text."""
    vocab = ["<S>", "</S>", "<UNK>", "It", "rains", ".", "Why", "?"]
    tiny_config.lm_vocab_size = len(vocab)
    save_pretrained(make_model(tiny_config, ElmoForPreTraining), tmp_path / "elmo", ElmoTokenizer(vocab=vocab))
    (tmp_path / "elmo" / "README.md").write_text("# A card\n")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 10))
    return tmp_path


def test_texts_begin_in_the_state_that_was_set(tiny_config):
    model, state = make_model(tiny_config), some_state(tiny_config)
    zeros = layers_of(model, SENTENCES)
    expected = layers_of(model, SENTENCES, state=with_rows(state, len(SENTENCES)))
    model.set_initial_state(state)
    for tensor in state:
        tensor.zero_()  # what becomes of the given state is nothing to the model
    assert model.config.initial_state
    torch.testing.assert_close(layers_of(model, SENTENCES), expected, rtol=0, atol=0)
    assert (expected[1:] - zeros[1:]).abs().amax((1, 2, 3)).min() > 0.01
    torch.testing.assert_close(expected[0], zeros[0], rtol=0, atol=0)
    model.set_initial_state(None)
    torch.testing.assert_close(layers_of(model, SENTENCES), zeros, rtol=0, atol=0)


def test_the_state_that_was_set_is_the_models_own(tiny_config):
    model, state = make_model(tiny_config), some_state(tiny_config)
    model.set_initial_state(state)
    before = layers_of(model, SENTENCES)
    for tensor in state:
        tensor.zero_()
    torch.testing.assert_close(layers_of(model, SENTENCES), before, rtol=0, atol=0)


def test_a_state_that_was_computed_with_gradients_leaves_them_behind(tiny_config):
    model = make_model(tiny_config)
    model.set_initial_state(model(**ElmoTokenizer()("It rains .", return_tensors="pt")).state)
    assert not any(buffer.requires_grad for buffer in model.buffers())
    same = copy.deepcopy(model)
    torch.testing.assert_close(layers_of(same, SENTENCES), layers_of(model, SENTENCES), rtol=0, atol=0)


def test_the_state_of_offloaded_weights_comes_for_the_call(tiny_config):
    model = make_model(tiny_config)
    model.set_initial_state(some_state(tiny_config))
    expected = layers_of(model, SENTENCES)
    cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert all(buffer.is_meta for buffer in model.buffers())
    torch.testing.assert_close(layers_of(model, SENTENCES), expected, rtol=0, atol=1e-5)


def test_a_text_has_the_same_vectors_alone_in_a_batch_and_in_a_pair(tiny_config):
    model = make_model(tiny_config)
    model.set_initial_state(some_state(tiny_config))
    together = layers_of(model, SENTENCES)
    for row, text in enumerate(SENTENCES):
        alone = layers_of(model, [text])
        torch.testing.assert_close(together[:, row, : alone.shape[2]], alone[:, 0], rtol=0, atol=1e-6)
    pair = layers_of(model, SENTENCES[:1], SENTENCES[1:2])[:, 0]
    apart = [layers_of(model, [text])[:, 0] for text in SENTENCES[:2]]
    torch.testing.assert_close(pair, torch.cat(apart, 1), rtol=0, atol=1e-6)


def test_the_state_is_saved_with_the_weights(tiny_config, tmp_path):
    model = make_model(tiny_config)
    zeros = layers_of(model, SENTENCES)
    model.set_initial_state(some_state(tiny_config))
    model.save_pretrained(tmp_path)
    again = ElmoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(layers_of(again, SENTENCES), layers_of(model, SENTENCES), rtol=0, atol=0)
    without, info = ElmoModel.from_pretrained(tmp_path, initial_state=False, output_loading_info=True)
    assert not info["unexpected_keys"]
    torch.testing.assert_close(layers_of(without, SENTENCES), zeros, rtol=0, atol=0)


def test_a_state_that_no_file_has_is_zeros_and_told(tiny_config, tmp_path):
    model = make_model(tiny_config)
    model.save_pretrained(tmp_path)
    asked, info = ElmoModel.from_pretrained(tmp_path, initial_state=True, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lstm.initial_hidden", "lstm.initial_cell"}
    torch.testing.assert_close(layers_of(asked, SENTENCES), layers_of(model, SENTENCES), rtol=0, atol=0)


def test_an_export_begins_there_too(tiny_config):
    model = make_model(tiny_config)
    model.set_initial_state(some_state(tiny_config))
    batch = dict(ElmoTokenizer()(SENTENCES, padding=True, return_tensors="pt"))
    del batch["token_type_ids"]
    sizes = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("words")} for name in batch}
    exported = torch.export.export(model, (), {**batch}, dynamic_shapes=sizes)
    with torch.no_grad():
        found = exported.module()(**batch).last_hidden_state
    torch.testing.assert_close(found, layers_of(model, SENTENCES)[-1], rtol=0, atol=1e-5)


def test_a_state_of_another_shape_is_refused(tiny_config):
    with pytest.raises(ValueError, match="state must hold"):
        make_model(tiny_config).set_initial_state(some_state(tiny_config, rows=2))


def test_the_warm_state_is_the_mean_behind_the_second_half_of_each_lane(tiny_config):
    model, tokenizer = make_model(tiny_config), ElmoTokenizer()
    texts = [f"This is sentence {number} ." for number in range(2 * SENTENCES_PER_LANE + 3)]
    behind = []
    for lane in range(2):
        state = None
        for number in range(SENTENCES_PER_LANE):
            batch = tokenizer([texts[lane * SENTENCES_PER_LANE + number]], return_tensors="pt")
            with torch.no_grad():
                state = model(**batch, state=state).state
            behind += [state] * (number >= SENTENCES_PER_LANE // 2)
    found = warm_state(model, tokenizer, ["", *texts])
    for tensor, parts in zip(found, zip(*behind, strict=True), strict=True):
        expected = torch.stack(parts).mean(0)
        assert tensor.dtype == torch.float32 and expected.abs().max() > 0.1
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_a_training_model_goes_on_training(tiny_config):
    tiny_config.dropout = 0.9
    model = make_model(tiny_config)
    states = []
    for is_training in (True, False):
        model.train(is_training)
        states.append(warm_state(model, ElmoTokenizer(), SENTENCES))
        assert model.training == is_training
    assert all(map(torch.equal, *states)), "no state is made with dropout"


def test_a_few_sentences_are_enough(tiny_config):
    model, tokenizer = make_model(tiny_config), ElmoTokenizer()
    with torch.no_grad():
        expected = model(**tokenizer(SENTENCES[:1], return_tensors="pt")).state
    for found, wanted in zip(warm_state(model, tokenizer, SENTENCES[:1]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with pytest.raises(WarmStateError, match="no text with a word"):
        warm_state(model, tokenizer, [" ", ""])


def test_the_tokenizer_of_another_model_is_refused(tiny_config):
    with pytest.raises(WarmStateError, match="reads 50 ids a word, and the tokenizer gives 20: take the model's own"):
        warm_state(make_model(tiny_config), ElmoTokenizer(max_word_length=20), SENTENCES)


def test_command(saved, capsys):
    arguments = [str(saved / "elmo"), str(saved / "text.txt"), str(saved / "warm")]
    assert main(arguments) == 0
    assert "40 sentences of text.txt" in capsys.readouterr().out
    model = ElmoForPreTraining.from_pretrained(saved / "warm")
    elmo = ElmoModel.from_pretrained(saved / "elmo")
    expected = warm_state(elmo, ElmoTokenizer(), SENTENCES * 10)
    torch.testing.assert_close(model.elmo.lstm.initial_cell, expected.cell, rtol=0, atol=1e-6)
    assert torch.equal(model.lm_head.weight, ElmoForPreTraining.from_pretrained(saved / "elmo").lm_head.weight)
    assert model.config.initial_state and ElmoTokenizer.from_pretrained(saved / "warm").lm_vocab_size == 8
    card = (saved / "warm" / "README.md").read_text()
    assert card.startswith("# A card") and "40 sentences of text.txt left behind" in card
    (saved / "elmo" / "README.md").write_text(f"{card}\n## Mine\n\nnotes\n")  # a state that takes the place of another
    assert main([*arguments[:2], str(saved / "again"), *arguments[3:]]) == 0
    again = (saved / "again" / "README.md").read_text()
    assert again.count("## Initial state") == 1 and "notes" in again and again.startswith("# A card")
    (saved / "elmo" / "README.md").write_bytes(b"# K\xf6ln\n")  # as other encodings have it
    assert main([*arguments[:2], str(saved / "other"), *arguments[3:]]) == 0
    assert (saved / "other" / "README.md").read_text().startswith("# K\ufffdln")
    assert main(arguments) == 2
    assert "warm exists: choose another folder" in capsys.readouterr().err


def test_empty_lines_are_no_sentences_of_those_that_are_read(saved, capsys):
    (saved / "text.txt").write_text("\n\n".join(SENTENCES) + "\n")
    assert main([str(saved / "elmo"), str(saved / "text.txt"), str(saved / "warm"), "--max_sentences", "3"]) == 0
    assert "3 sentences of text.txt" in capsys.readouterr().out
    expected = warm_state(ElmoModel.from_pretrained(saved / "elmo"), ElmoTokenizer(), SENTENCES[:3])
    found = ElmoForPreTraining.from_pretrained(saved / "warm").elmo.lstm.initial_cell
    torch.testing.assert_close(found, expected.cell, rtol=0, atol=1e-6)


def test_an_encoder_whose_config_names_no_class(saved):
    config = json.loads((saved / "elmo" / "config.json").read_text())
    del config["architectures"]
    (saved / "elmo" / "config.json").write_text(json.dumps(config))
    (saved / "elmo" / "README.md").unlink()
    (saved / "text.txt").write_text("It rains.\n")
    assert main([str(saved / "elmo"), str(saved / "text.txt"), str(saved / "warm"), "--pre_tokenized"]) == 0
    expected = warm_state(ElmoModel.from_pretrained(saved / "elmo"), ElmoTokenizer(), [["It", "rains."]])
    found = ElmoModel.from_pretrained(saved / "warm").lstm.initial_cell
    torch.testing.assert_close(found, expected.cell, rtol=0, atol=1e-6)
    assert (saved / "warm" / "README.md").read_text().startswith("# warm\n\n## Initial state\n")


def test_mistakes_are_told_in_a_line(saved, tiny_config, capsys):
    from modeling_elmo import ElmoForTokenClassification

    (saved / "empty.txt").write_text("\n\n")
    save_pretrained(ElmoForTokenClassification(tiny_config), saved / "tagger")
    for model, text, told in (
        ("elmo", "empty.txt", "no text with a word"),
        ("elmo", "absent.txt", "absent.txt"),
        ("absent", "text.txt", "has no ELMo model"),
        ("tagger", "text.txt", "is an ElmoForTokenClassification, whose head"),
    ):
        assert main([str(saved / model), str(saved / text), str(saved / "new")]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error:") and told in error
        assert not (saved / "new").exists()


def test_the_legacy_format_has_no_place_for_it(saved, tmp_path):
    pytest.importorskip("h5py")
    assert main([str(saved / "elmo"), str(saved / "text.txt"), str(saved / "warm")]) == 0
    with pytest.raises(ConversionError, match="begins texts in a state of its own"):
        convert_to_allennlp(saved / "warm", tmp_path / "legacy")
    assert not (tmp_path / "legacy").exists()


def test_ctrl_c_leaves_nothing(saved, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_elmo.warm_state.warm_state", stop)
    before = sorted(saved.iterdir())
    assert main([str(saved / "elmo"), str(saved / "text.txt"), str(saved / "new")]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "stopped"
    assert sorted(saved.iterdir()) == before
