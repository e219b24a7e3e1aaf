"""Perplexity of a finished model: against the model one sentence at a time, against hand counts, and the command."""

import gzip
import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pytest
import torch
from conftest import TINY
from finetuning_runs import save_pretrained
from pyarrow import parquet
from test_modeling import TABLE, make_model
from training_runs import forked
from transformers import BertConfig

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer
from modeling_elmo import perplexity as module
from modeling_elmo.perplexity import PerplexityError, SentenceScore, main, perplexity, sentence_scores

VOCAB = ["<S>", "</S>", "<UNK>", "the", ".", "cat", "sat", "do", "n't", "w1", "w2"]
LINES = [
    "the cat sat .",
    "",
    "Don't panic!",
    "cat",
    " ".join(f"w{number % 5}" for number in range(90)),
    "   ",
    "<UNK> <S> naïve </S>",
    *(" ".join(f"w{number}" for number in range(length)) for length in (3, 12, 1, 5, 7)),
    "the cat sat .",
]
TEXTS = [number for number, line in enumerate(LINES) if line.strip()]


def make_lm(**changes) -> ElmoForPreTraining:
    return make_model(cls=ElmoForPreTraining, lm_vocab_size=len(VOCAB), num_negative_samples=3, **changes)


def saved(path: Path, model) -> Path:
    return save_pretrained(model, path, ElmoTokenizer(vocab=VOCAB))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("model"), make_lm())


@pytest.fixture(scope="module")
def model(folder) -> ElmoForPreTraining:
    return ElmoForPreTraining.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder) -> ElmoTokenizer:
    return ElmoTokenizer.from_pretrained(folder)


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@torch.no_grad()
def slow_score(model, tokenizer, number: int) -> SentenceScore:
    """The line alone, its words predicted one by one from the log-softmax of the logits."""
    inputs = tokenizer(LINES[number], return_tensors="pt", return_lm_labels=True)
    ids = inputs.pop("labels")[0].tolist()
    output = model(**inputs)
    score = SentenceScore(num_words=len(ids) - 1, sentence=number)
    for place in range(len(ids) - 1):
        ahead = output.logits[0, place].double().log_softmax(0)[ids[place + 1]].item()
        behind = output.backward_logits[0, place + 1].double().log_softmax(0)[ids[place]].item()
        score.log_prob_forward += ahead
        score.log_prob_backward += behind
        score.num_unknown += ids[place + 1] == 2
        score.known_log_prob_forward += ahead if ids[place + 1] != 2 else 0
        score.known_log_prob_backward += behind if ids[place] != 2 else 0
    return score


def assert_scores(actual, expected):
    actual, expected = list(actual), list(expected)
    assert [score.sentence for score in actual] == [score.sentence for score in expected]
    for one, other in zip(actual, expected, strict=True):
        assert asdict(one) == pytest.approx(asdict(other), rel=1e-5)


# ---- the functions

BUDGETS = [{}, {"batch_words": 20, "window_words": 50}, {"batch_words": 7}, {"batch_words": 1, "window_words": 1}]


@pytest.mark.parametrize("budgets", BUDGETS, ids=str)
def test_equals_a_loop_over_single_sentences(budgets, model, tokenizer):
    """Also of a sentence in 1, 5, 13 and 91 pieces; in the order of the text, and with the numbers of its lines."""
    expected = [slow_score(model, tokenizer, number) for number in TEXTS]
    assert_scores(sentence_scores(model, tokenizer, LINES, **budgets), expected)


def test_the_report_is_the_models_own_perplexity(model, tokenizer):
    """As `model(**tokenizer(...))` tells it for the text as one batch."""
    lines = [LINES[number] for number in TEXTS]
    with torch.no_grad():
        output = model(**tokenizer(lines, padding=True, return_tensors="pt", return_lm_labels=True))
    report = perplexity(model, tokenizer, LINES, batch_words=20)
    assert report.num_sentences == len(TEXTS)
    assert output.num_targets.tolist() == [report.num_words] * 2
    assert report.perplexity == pytest.approx(output.perplexity, rel=1e-5)
    assert report.perplexities["forward_perplexity"] == pytest.approx(output.forward_perplexity, rel=1e-5)
    assert report.perplexities["backward_perplexity"] == pytest.approx(output.backward_perplexity, rel=1e-5)


def test_numbers_by_hand(tokenizer):
    """A softmax that ignores its inputs: <UNK> has 1/2, each of the ten others 1/20."""
    model = make_lm()
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.full((11,), 1 / 20).index_fill(0, torch.tensor(2), 1 / 2).log())
    scores = []
    report = perplexity(model, tokenizer, ["the dog sat .", "cat", "a dog"], scores.append)
    # Predicted are 4 + 1, 1 + 1 and 2 + 1 words; "dog", "a" and "dog" are unknown.
    assert (report.num_sentences, report.num_words, report.num_unknown) == (3, 10, 3)
    assert report.oov_rate == pytest.approx(0.3)
    over_all = (2**3 * 20**7) ** (1 / 10)
    for name, value in report.perplexities.items():
        assert value == pytest.approx(20 if name.startswith("known") else over_all, rel=1e-5)
    assert [score.num_unknown for score in scores] == [1, 0, 2]
    assert scores[2].log_prob_backward == pytest.approx(-math.log(2 * 2 * 20), rel=1e-5)
    assert scores[2].known_log_prob_forward == pytest.approx(-math.log(20), rel=1e-5)
    assert scores[0].perplexity == pytest.approx((2 * 20**4) ** (1 / 5), rel=1e-5)


def test_both_is_exp_of_the_mean_loss():
    score = SentenceScore(4, 2, -4.0, -8.0, -1.0, -3.0)
    assert score.perplexities == pytest.approx(
        {
            "perplexity": math.exp(12 / 8),
            "forward_perplexity": math.exp(4 / 4),
            "backward_perplexity": math.exp(8 / 4),
            "known_perplexity": math.exp(4 / 4),
            "known_forward_perplexity": math.exp(1 / 2),
            "known_backward_perplexity": math.exp(3 / 2),
        }
    )


def test_a_long_sentence_is_read_in_pieces(model, tokenizer, monkeypatch):
    words = [f"w{number % 7}" for number in range(3000)]
    sizes = []
    forward = ElmoForPreTraining.forward
    monkeypatch.setattr(
        ElmoForPreTraining,
        "forward",
        lambda *args, **named: sizes.append(named["input_ids"].shape) or forward(*args, **named),
    )
    (whole,) = sentence_scores(model, tokenizer, [words])
    assert sizes == [(1, 3001, 50)]
    assert_scores(sentence_scores(model, tokenizer, [words], batch_words=400), [whole])
    assert [size[1] for size in sizes[1:]] == [400] * 7 + [201]


def test_batches_are_within_the_budget(model, tokenizer, monkeypatch):
    batches: list[list] = []
    told = []
    original = module.score_batch
    monkeypatch.setattr(module, "score_batch", lambda *args: batches.append(args[2]) or original(*args))
    report = perplexity(model, tokenizer, LINES, batch_words=20, on_batch=lambda *counts: told.append(counts))
    assert sum(map(len, batches)) == len(TEXTS) > len(batches) > 1
    assert all(sum(len(words) + 1 for words in batch) <= 20 for batch in batches if len(batch) > 1)
    assert [sentences for sentences, _ in told] == list(map(len, batches))
    assert sum(words for _, words in told) == report.num_words


def test_words_that_are_split_already(model, tokenizer):
    words = [tokenizer.split_words(line) for line in LINES]
    assert words[2] == ["Do", "n't", "panic", "!"]
    assert_scores(sentence_scores(model, tokenizer, words), sentence_scores(model, tokenizer, LINES))


def test_padding_on_the_left_is_the_tokenizers_own_affair(model, folder):
    left = ElmoTokenizer.from_pretrained(folder, padding_side="left")
    assert left.padding_side == "left"
    expected = [slow_score(model, left, number) for number in TEXTS]
    assert_scores(sentence_scores(model, left, LINES), expected)


def test_a_model_without_characters():
    model = make_lm(**{**TABLE, "word_vocab_size": len(VOCAB) + 1})
    tokenizer = ElmoTokenizer(vocab=VOCAB, word_inputs=True)
    expected = [slow_score(model, tokenizer, number) for number in TEXTS]
    assert_scores(sentence_scores(model, tokenizer, LINES, batch_words=20), expected)


def test_a_training_model_is_evaluated_and_goes_on_training(tokenizer):
    model = make_lm(dropout=0.5)
    expected = perplexity(model, tokenizer, LINES)
    model.train()
    assert perplexity(model, tokenizer, LINES) == expected
    assert model.training and model.elmo.training


def test_lines_are_read_as_they_are_needed(model, tokenizer):
    """An endless text: no more of it is read than a window."""
    read = []

    def endless():
        while True:
            read.append(1)
            yield "the cat"

    scores = sentence_scores(model, tokenizer, endless(), window_words=40)
    assert [next(scores).sentence for _ in range(25)] == list(range(25))
    assert len(read) == 30  # windows of ten sentences, each four words with its boundaries


def test_no_text_no_vocabulary_no_number(model, tokenizer):
    with pytest.raises(PerplexityError, match="the text has no words"):
        perplexity(model, tokenizer, ["", " "])
    with pytest.raises(PerplexityError, match=r"no vocabulary of the language model: put the vocab\.txt"):
        perplexity(model, ElmoTokenizer(), LINES)
    with pytest.raises(PerplexityError, match="has 12 words but the model predicts 11"):
        perplexity(model, ElmoTokenizer(vocab=[*VOCAB, "more"]), LINES)
    with pytest.raises(PerplexityError, match="reads 50 ids a word, and the tokenizer gives 20: take the model's own"):
        perplexity(model, ElmoTokenizer(vocab=VOCAB, max_word_length=20), LINES)
    broken = make_lm()
    torch.nn.init.constant_(broken.lm_head.bias, math.nan)
    with pytest.raises(PerplexityError, match="the loss of the model is no number"):
        perplexity(broken, tokenizer, LINES)


def test_a_model_that_diverged_has_a_finite_perplexity(tokenizer):
    model = make_lm()
    torch.nn.init.normal_(model.lm_head.bias, std=1e5)
    values = perplexity(model, tokenizer, LINES).perplexities
    assert values["perplexity"] == pytest.approx(math.exp(700)) and json.dumps(values)


# ---- the command


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu"])


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_prints_a_table(folder, corpus, model, tokenizer, capsys):
    assert run(folder, corpus) == 0
    report = perplexity(model, tokenizer, LINES)
    out, err = capsys.readouterr()
    first, *rows = out.splitlines()
    assert (
        first
        == f"11 sentences, {report.num_words} predicted words with their boundaries, {report.oov_rate:.2%} unknown"
    )
    assert len({len(row) for row in rows}) == 1, "columns are aligned"
    assert rows[0].split() == ["perplexity", "both", "forward", "backward"]
    assert re.search(r"11/11 .* [1-9][\d,]* words/s", err)
    values = [f"{value:.2f}" for value in report.perplexities.values()]
    assert rows[1].split() == ["all", "words", *values[:3]] and rows[2].split() == ["known", "words", *values[3:]]


def test_json_and_the_scores_of_sentences(folder, corpus, tmp_path, model, tokenizer, capsys):
    output = tmp_path / "scores.jsonl"
    assert run(folder, corpus, "--json", "--per_sentence", output, "--batch_words", 20) == 0
    values = json.loads(capsys.readouterr().out)
    report = perplexity(model, tokenizer, LINES)
    assert values == pytest.approx(report.to_dict(), rel=1e-5)
    assert {"perplexity", "known_perplexity", "oov_rate", "num_sentences", "num_words"} <= set(values)
    rows = read(output)
    assert [row["sentence"] for row in rows] == TEXTS
    for row, score in zip(rows, sentence_scores(model, tokenizer, LINES), strict=True):
        assert row == pytest.approx(score.to_dict(), rel=1e-5)
        both = row["log_prob_forward"] + row["log_prob_backward"]
        assert row["perplexity"] == pytest.approx(math.exp(-both / (2 * row["num_words"])))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "scores.jsonl"]


def test_of_several_processes_one_scores_the_text(folder, corpus, tmp_path, monkeypatch, capsys):
    output = tmp_path / "scores.jsonl"
    for rank in ("1", "0"):  # as torchrun numbers them
        monkeypatch.setenv("RANK", rank)
        assert not output.exists() and not capsys.readouterr().out
        assert run(folder, corpus, "--per_sentence", output) == 0
    assert len(read(output)) == len(TEXTS) and "perplexity" in capsys.readouterr().out


def test_words_at_spaces_lines_and_files(folder, tmp_path, model, tokenizer, capsys):
    """Several files, one of them compressed, are one text; --max_lines counts its lines."""
    (tmp_path / "a.txt").write_text("Don't\n\ncat")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("the\u00a0cat\x01sat\nmore words\n")
    assert run(folder, tmp_path / "*.txt", tmp_path / "b*", "--pre_tokenized", "--max_lines", 4, "--json") == 0
    out, err = capsys.readouterr()
    expected = perplexity(model, tokenizer, [["Don't"], ["cat"], ["the", "cat", "sat"]])
    assert json.loads(out) == pytest.approx(expected.to_dict(), rel=1e-5)
    assert err.splitlines()[-1] == "warning: 1 control characters were read as spaces"


def test_a_column_of_a_table(folder, tmp_path, model, tokenizer, capsys):
    table = {"id": ["w1"] * len(LINES), "text": LINES}
    parquet.write_table(pyarrow.table(table), tmp_path / "text.parquet")
    assert run(folder, tmp_path / "text.parquet", "--text_column_name", "text", "--json") == 0
    expected = perplexity(model, tokenizer, LINES)
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected.to_dict(), rel=1e-5)
    assert run(folder, tmp_path / "text.parquet", "--text_column_name", "texts") == 2
    assert "set text_column_name to one of ['id', 'text']" in capsys.readouterr().err.splitlines()[-1]


def test_scores_are_replaced_only_when_told(folder, corpus, tmp_path, capsys):
    output = tmp_path / "scores.jsonl"
    output.write_text("mine\n")
    assert run(folder, corpus, "--per_sentence", output) == 2
    assert "--overwrite" in capsys.readouterr().err and output.read_text() == "mine\n"
    assert run(folder, corpus, "--per_sentence", output, "--overwrite") == 0
    assert len(read(output)) == len(TEXTS)
    before = corpus.read_bytes()
    assert run(folder, corpus, "--per_sentence", corpus, "--overwrite") == 2
    assert "is a text to be scored" in capsys.readouterr().err and corpus.read_bytes() == before


def test_scores_appear_whole_or_not_at_all(folder, corpus, tmp_path, monkeypatch):
    output = tmp_path / "scores.jsonl"
    original = module.score_batch
    done = []

    def interrupted(*args):
        if len(done) == 2:
            assert not output.exists() and len(list(tmp_path.iterdir())) == 2, "a scratch file beside the corpus"
            raise KeyboardInterrupt
        done.append(1)
        return original(*args)

    monkeypatch.setattr(module, "score_batch", interrupted)
    assert run(folder, corpus, "--per_sentence", output, "--batch_words", 20) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def spoilt_folder(kind: str, folder: Path, path: Path) -> Path:
    """A folder that is no language model, in the way that `kind` says."""
    if kind == "encoder":  # as a converted model: a vocabulary, and no softmax
        return saved(path, ElmoModel(ElmoConfig(**{**TINY, "lm_vocab_size": len(VOCAB)})))
    if kind == "encoder without a vocabulary":
        return saved(path, ElmoModel(ElmoConfig(**{**TINY, "lm_vocab_size": None})))
    if kind == "bert":
        return saved(path, BertConfig())
    if kind == "other size":
        return saved(path, ElmoForPreTraining(ElmoConfig(**TINY)))
    shutil.copytree(folder, path)
    if kind == "no vocabulary":
        (path / "vocab.txt").unlink()
    elif kind == "damaged":
        (path / "model.safetensors").write_bytes(b"\xff" * 100)
    elif kind == "layer missing":
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    return path


SPOILT = {
    "encoder": "has no softmax (lm_head)",
    "encoder without a vocabulary": "has no softmax (lm_head)",
    "bert": "has the model_type 'bert', not 'elmo'",
    "other size": "has 11 words but the model predicts 40",
    "no vocabulary": "no vocabulary of the language model",
    "damaged": "has no ELMo model: ",
    "layer missing": "lacks weights (elmo.lstm.layers.2.",
}


@pytest.mark.parametrize(("kind", "message"), SPOILT.items(), ids=SPOILT)
def test_folders_that_are_no_language_model(kind, message, folder, corpus, tmp_path, capsys):
    spoilt = spoilt_folder(kind, folder, tmp_path / "model")
    capsys.readouterr()
    assert run(spoilt, corpus, "--per_sentence", tmp_path / "scores.jsonl") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.glob("*scores*"))


MISTAKES = {
    "no model": (["{tmp}/nothing", "{corpus}"], "has no ELMo model"),
    "no text": (["{folder}", "{tmp}/nothing.txt"], "no file is named"),
    "empty text": (["{folder}", "{tmp}/empty.txt"], "the text has no words"),
    "a folder in the way": (["{folder}", "{corpus}", "--per_sentence", "{tmp}", "--overwrite"], "exists"),
    "no such folder": (["{folder}", "{corpus}", "--per_sentence", "{tmp}/no/scores"], "No such file or directory"),
    "no such device": (["{folder}", "{corpus}", "--device", "abacus"], "set --device cpu"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(arguments, message, folder, corpus, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main([text.format(tmp=tmp_path, corpus=corpus, folder=folder) for text in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


@pytest.mark.parametrize(
    "options", [["--batch_words", 0], ["--max_lines", 0], ["--overwrite"]], ids=lambda options: options[0]
)
def test_options_that_make_no_sense(options, folder, corpus, capsys):
    with pytest.raises(SystemExit) as error:
        run(folder, corpus, *options)
    assert error.value.code == 2 and options[0] in capsys.readouterr().err.splitlines()[-1]


def test_as_a_process(folder, corpus, tmp_path, model, tokenizer):
    """On the device of its choice."""
    argv = [str(folder), str(corpus), "--json"]
    code, told = forked(argv, tmp_path / "told", script="modeling_elmo.perplexity")
    assert code == 0, told
    expected = perplexity(model, tokenizer, LINES).to_dict()
    assert json.loads(told.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)
