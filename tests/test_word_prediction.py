"""Words that could stand at a place: against the losses of every word tried there, the pipeline and the command."""

import io
import json
from pathlib import Path

import pytest
import torch
from finetuning_runs import save_pretrained
from tokenizers.normalizers import Lowercase
from transformers import pipeline

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoTokenizer, substitutes
from modeling_elmo.fill_mask_pipeline import ElmoFillMaskPipeline
from modeling_elmo.word_prediction import combine, find_substitutes, predict_words

WORDS = ["the", "cat", "sat", "on", "a", "mat", "."]


@pytest.fixture(scope="module")
def tokenizer() -> ElmoTokenizer:
    return ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", *WORDS])


@pytest.fixture
def model(tiny_config) -> ElmoForPreTraining:
    model = ElmoForPreTraining(ElmoConfig.from_dict({**tiny_config.to_dict(), "lm_vocab_size": 10})).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=3)
    return model


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    return save_pretrained(model, tmp_path / "model", tokenizer)


def log_probs_by_losses(model, tokenizer, words: list[str], position: int) -> torch.Tensor:
    """(2, 10): the loss of each word of the vocabulary, put as a label at the place."""
    batch = tokenizer([words], is_split_into_words=True, return_lm_labels=True, return_tensors="pt")
    columns = []
    for word_id in range(10):
        batch["labels"][0, position + 1] = word_id
        with torch.no_grad():
            losses = model(**batch).word_losses  # at the word behind which the prediction was made
        columns.append(torch.stack([-losses[0, 0, position], -losses[1, 0, position + 2]]))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("position", [0, 2, 3])
def test_predictions_are_the_losses_of_every_word(model, tokenizer, position):
    words = ["the", "cat", "dog", "."]
    expected = log_probs_by_losses(model, tokenizer, words, position)
    batch = tokenizer([["a"], words], is_split_into_words=True, padding=True, return_tensors="pt")
    places = torch.tensor([1]), torch.tensor([position + 1])
    actual = predict_words(model, batch["input_ids"], batch["attention_mask"], *places)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.exp().sum(1), torch.ones(2))


def test_both_directions_are_multiplied(model, tokenizer):
    words = ["the", "cat", "sat"]
    log_probs = log_probs_by_losses(model, tokenizer, words, 1)
    product = (log_probs[0] + log_probs[1]).exp()
    product[:3] = 0
    product /= product.sum()
    found = find_substitutes(model, tokenizer, words, 1, top_k=4)
    order = product.argsort(descending=True)[:4].tolist()
    assert [item.word_id for item in found.both] == order
    assert [item.word for item in found.both] == [tokenizer.lm_vocab[index] for index in order]
    assert [item.probability for item in found.both] == pytest.approx(product[order].tolist(), rel=1e-4)
    for side, part in zip(log_probs, (found.forward, found.backward), strict=True):
        best = side[3:].argmax() + 3
        assert part[0].word_id == best and part[0].probability == pytest.approx(float(side[best].exp()), rel=1e-4)
    everything = find_substitutes(model, tokenizer, words, 1, top_k=99)
    assert all({item.word for item in part} == set(WORDS) for part in everything)  # without the special ones
    assert found == find_substitutes(model, tokenizer, ["the", "anything", "sat"], 1, top_k=4)


def test_combined_probabilities_sum_to_one():
    log_probs = torch.log_softmax(torch.randn(3, 2, 5), dim=-1)
    before = log_probs.clone()
    both = combine(log_probs, [1, 4]).exp()
    torch.testing.assert_close(both.sum(1), torch.ones(3))
    assert not both[:, [1, 4]].any() and torch.equal(log_probs, before)


def test_mistakes_are_told(model, tokenizer):
    with pytest.raises(ValueError, match="one of the sentence's 2 words, from 0, not 2"):
        find_substitutes(model, tokenizer, ["the", "cat"], 2)
    with pytest.raises(ValueError, match="the vocabulary has 4 words but the model predicts 10"):
        find_substitutes(model, ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", "a"]), ["the"], 0)
    with pytest.raises(TypeError, match="list of words, not the text 'the cat'"):
        find_substitutes(model, tokenizer, "the cat", 0)


# ---- the pipeline


def test_the_pipeline_fills_gaps(folder, model, tokenizer):
    fill = pipeline("fill-mask", str(folder), trust_remote_code=True)
    assert type(fill).__module__.startswith("transformers_modules.")
    found = fill("The [MASK] sat.", top_k=3)
    expected = find_substitutes(model, tokenizer, ["The", "?", "sat", "."], 1, top_k=3).both
    assert [item["token_str"] for item in found] == [item.word for item in expected]
    assert [item["score"] for item in found] == pytest.approx([item.probability for item in expected], rel=1e-5)
    assert found[0]["sequence"] == f"The {found[0]['token_str']} sat ."
    assert tokenizer.lm_vocab[found[0]["token"]] == found[0]["token_str"]
    two = fill("<mask> cat sat on the <mask>")
    assert len(two) == 2 and [len(gap) for gap in two] == [5, 5]
    assert two[1][0]["sequence"] == f"[MASK] cat sat on the {two[1][0]['token_str']}"
    chosen = fill("The [MASK] sat.", targets=["mat", "cat", "unheard-of"])
    assert sorted(item["token_str"] for item in chosen) == ["cat", "mat"]
    assert fill(["The [MASK] sat.", "A [MASK]"], top_k=1)[0][0] == found[0]


def test_targets_that_are_no_words_of_the_vocabulary_are_told(model, tokenizer, caplog):
    fill = ElmoFillMaskPipeline(model=model, tokenizer=tokenizer)
    fill("The [MASK] sat.", targets=["mat", "cat"])
    assert not caplog.records
    fill("The [MASK] sat.", targets=["mat", "unheard-of", "Cat"])
    assert caplog.messages == ["targets that are not in the model's vocabulary are left out: unheard-of, Cat"]


def test_targets_are_normalised(model):
    tokenizer = ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", *WORDS])
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    found = ElmoFillMaskPipeline(model=model, tokenizer=tokenizer)("The [MASK] sat.", targets=["MAT", "Cat"])
    assert sorted(item["token_str"] for item in found) == ["cat", "mat"]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_pipeline_takes_texts_together(folder, batch_size):
    """Also of different lengths and with different numbers of gaps."""
    fill = pipeline("fill-mask", str(folder), trust_remote_code=True)
    texts = ["The [MASK] sat.", "<mask> cat sat on the <mask>", "A [MASK]", "[MASK] [MASK] [MASK]"]
    alone, together = [fill(text) for text in texts], fill(texts, batch_size=batch_size)

    def found(gaps):
        gaps = gaps if isinstance(gaps[0], list) else [gaps]
        return [[(item["token_str"], item["sequence"], round(item["score"], 5)) for item in gap] for gap in gaps]

    assert list(map(found, together)) == list(map(found, alone))


def test_the_pipeline_needs_the_words_that_the_model_predicts(model):
    fill = ElmoFillMaskPipeline(model=model, tokenizer=ElmoTokenizer())
    with pytest.raises(ValueError, match=r"no vocabulary of the language model: put the vocab\.txt"):
        fill("The [MASK] sat.")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no gap", {}, "there is no gap in 'no gap'"),
        ("[MASK]", {"top_k": 0}, "top_k must be 1 or more"),
        ("[MASK]", {"targets": "dog"}, "none of the targets is in the model's vocabulary: dog"),
    ],
)
def test_the_pipeline_tells_mistakes(folder, text, options, message):
    fill = pipeline("fill-mask", str(folder), trust_remote_code=True)
    with pytest.raises(ValueError, match=message):
        fill(text, **options)


# ---- the command


def test_the_command_prints_tables(folder, capsys):
    assert substitutes.main([str(folder), "The [cat] sat.", "[A] mat", "--top_k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The [cat] sat ." and lines[6] == "[A] mat"
    assert lines[1].split("  ")[1:2] == ["both"] and "from the left" in lines[1] and "from the right" in lines[1]
    assert all(len(line.split()) == 6 for line in lines[2:5])


def test_the_command_reads_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the [cat] sat.\n\nA [ mat ] .\n")))
    assert substitutes.main([str(folder), "--json", "--pre_tokenized", "--top_k", "2"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["words"] == ["the", "cat", "sat."] and first["position"] == 1
    assert second["words"] == ["A", "mat", "."] and second["position"] == 1
    assert all(len(second[name]) == 2 for name in ("both", "forward", "backward"))


def test_the_command_reads_standard_input_as_files_are_read(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfthe [cat] caf\xe9\x00.\r\n"), "ascii"))
    assert substitutes.main([str(folder), "--json", "--pre_tokenized"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["words"] == ["the", "cat", "caf\ufffd", "."]
    assert "1 invalid UTF-8 sequences in 1 lines" in told.err and "1 control characters" in told.err


def test_the_command_prints_json_in_any_encoding(folder, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, "ascii", write_through=True))
    assert substitutes.main([str(folder), "na\u00efve [cat] \U0001f600", "--json", "--pre_tokenized"]) == 0
    assert json.loads(shown.getvalue())["words"] == ["na\u00efve", "cat", "\U0001f600"]


@pytest.mark.parametrize(
    ("sentence", "message"),
    [("no mark", "0 words are in brackets in 'no mark'"), ("[a] [b]", "2 words are in brackets")],
)
def test_the_command_tells_mistakes(folder, capsys, sentence, message):
    assert substitutes.main([str(folder), sentence]) == 2
    assert message in capsys.readouterr().err
    assert substitutes.main([str(folder / "nowhere"), "[a]"]) == 2
    assert "nowhere has no ELMo model" in capsys.readouterr().err
