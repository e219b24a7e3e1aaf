"""Bulk embedding: against the model one text at a time, and the files against the function."""

import copy
import gzip
import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from conftest import save_random_model
from tokenizers.normalizers import Lowercase
from torch import Tensor
from training_runs import Forked, forked

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel, ElmoTokenizer, embedding_files
from modeling_elmo import embed as embed_module
from modeling_elmo.char_rows import PADDING
from modeling_elmo.embed import batches, distinct_batch, embed, main, pool, windows
from modeling_elmo.embedding_files import EmbeddingError, fingerprint_of_tokenizer, read_parts

LINES = [
    "Don't panic!",
    "It rains .",
    "",
    "naïve " * 30,
    "a",
    "x" * 70,
    *(" ".join(f"word{number}" for number in range(length)) for length in (3, 1, 12, 5, 7, 2, 9, 4)),
    "It rains .",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder) -> ElmoModel:
    return ElmoModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder) -> ElmoTokenizer:
    return ElmoTokenizer.from_pretrained(folder)


@pytest.fixture
def corpus(tmp_path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def one_by_one(model: ElmoModel, tokenizer: ElmoTokenizer) -> list[list[Tensor]]:
    """For each line, its scalar mix and its layers, (words, hidden_size) each."""
    results = []
    for line in LINES:
        with torch.no_grad():
            output = model(**tokenizer(line, return_tensors="pt"), output_hidden_states=True)
        results.append([layer[0, 1:-1] for layer in (output.scalar_mix, *output.hidden_states)])
    return results


def assert_same(actual, expected, atol: float = 1e-5):
    actual = list(actual)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), other, rtol=0, atol=atol)


# ---- the function


@pytest.mark.parametrize(
    "budgets", [{}, {"words_per_batch": 20, "words_per_window": 50}, {"words_per_batch": 1}], ids=str
)
@pytest.mark.parametrize("pooling", [None, "mean", "max"])
@pytest.mark.parametrize("layers", ["mix", "top", "average", "all", 0, 1, -1])
def test_equals_the_model_one_text_at_a_time(layers, pooling, budgets, model, tokenizer):
    def expected(mix: Tensor, *stack: Tensor) -> Tensor:
        if layers == "mix":
            chosen = mix
        elif layers == "average":
            chosen = sum(stack) / len(stack)
        else:
            chosen = torch.stack(stack) if layers == "all" else stack[-1 if layers == "top" else layers]
        if pooling is None:
            return chosen
        if chosen.shape[-2] == 0:
            return chosen.sum(-2)
        return chosen.mean(-2) if pooling == "mean" else chosen.max(-2).values

    actual = embed(LINES, model, tokenizer, layers=layers, pooling=pooling, **budgets)
    assert_same(actual, [expected(*layers_of_line) for layers_of_line in one_by_one(model, tokenizer)])


def test_layers_are_counted_from_both_ends(model, tokenizer):
    for number, layers in ((2, "top"), (-3, 0)):
        assert_same(embed(LINES, model, tokenizer, layers=number), list(embed(LINES, model, tokenizer, layers=layers)))


def test_split_words_and_strings_and_dtypes(model, tokenizer):
    words = [tokenizer.split_words(line) for line in LINES]
    expected = list(embed(LINES, model, tokenizer))
    assert_same(embed(words, model, tokenizer), expected, atol=0)
    half = list(embed(words, model, tokenizer, dtype=torch.float16))
    assert {vectors.dtype for vectors in half} == {torch.float16}
    assert_same((vectors.float() for vectors in half), expected, atol=2e-3)


TEXTS = {
    "bytes": [["One", "word", "One"], [], ["<S>", "", "na\u00efve", "\ud800", "x" * 70]],
    "short words": [["a", "b"], ["c"]],
    "no words": [[]],
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("is_lower_cased", [False, True])
def test_a_batch_of_distinct_words_is_that_of_the_tokenizer(texts, is_lower_cased, tokenizer):
    if is_lower_cased:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.normalizer = Lowercase()
    expected = tokenizer(texts, is_split_into_words=True, padding=True, return_tensors="pt")
    batch = distinct_batch(texts, tokenizer)
    words = batch["distinct_words"]
    assert len(words.unique(dim=0)) == len(words)
    rows = torch.nn.functional.pad(words, (0, 50 - words.shape[1]), value=PADDING)
    actual = rows[batch["input_ids"]] * batch["attention_mask"][..., None]
    assert torch.equal(actual, expected["input_ids"].to(actual.dtype))
    assert torch.equal(batch["attention_mask"], expected["attention_mask"].bool())


def test_others_can_be_trained_on_the_vectors(model, tokenizer):
    (vectors,) = embed(["It rains ."], model, tokenizer)
    scorer = torch.nn.Linear(vectors.shape[1], 1)
    scorer(vectors).sum().backward()
    assert scorer.weight.grad.abs().sum() > 0 and not vectors.requires_grad


def test_a_training_model_goes_on_training(model, tokenizer):
    model.train()
    assert_same(embed(LINES, model, tokenizer), [mix for mix, *_ in one_by_one(model.eval(), tokenizer)])
    model.train()
    list(embed(LINES[:1], model, tokenizer))
    assert model.training
    model.eval()


def test_texts_are_read_as_they_are_needed(model, tokenizer):
    """An endless source: no more of it is read than a window."""
    read = []

    def endless():
        while True:
            read.append(1)
            yield ["a", "b", "c"]

    results = embed(endless(), model, tokenizer, words_per_window=50, words_per_batch=10)
    for _ in range(25):
        next(results)
    assert len(read) == 30


def test_budgets():
    texts = [["w"] * length for length in (3, 8, 1, 1, 20, 2)]
    assert [[len(text) for text in window] for window in windows(texts, 12)] == [[3, 8], [1, 1, 20], [2]]
    lengths = [len(text) for text in texts]
    order = [4, 1, 0, 5, 2, 3]
    assert list(batches(order, lengths, 11)) == [[4], [1, 0], [5, 2, 3]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"layers": "last"}, "mix, top, average, all"), ({"layers": 3}, "0 to 2"), ({"pooling": "sum"}, "mean, max")],
    ids=str,
)
def test_choices_that_there_are_not(choice, message, model, tokenizer):
    with pytest.raises(EmbeddingError, match=message):
        list(embed(LINES, model, tokenizer, **choice))


def test_the_encoder_of_a_model_with_a_softmax_has_no_mix(model, tokenizer):
    encoder = ElmoForPreTraining(ElmoConfig(**model.config.to_diff_dict() | {"lm_vocab_size": 10})).elmo
    assert len(list(embed(LINES, encoder, tokenizer, layers="average"))) == len(LINES)
    with pytest.raises(EmbeddingError, match="no scalar mix: choose other layers"):
        next(embed(LINES, encoder, tokenizer))


OTHER_TOKENIZERS = {
    "shorter words": {"max_word_length": 20},
    "longer words": {"max_word_length": 80},
    "words as ids": {"vocab": ["<S>", "</S>", "<UNK>"], "word_inputs": True},
}


@pytest.mark.parametrize("options", OTHER_TOKENIZERS.values(), ids=OTHER_TOKENIZERS)
def test_the_tokenizer_of_another_model_is_refused(options, model):
    """Shorter words would else have other vectors, and longer ones fail when the first comes."""
    with pytest.raises(EmbeddingError, match=r"reads 50 ids a word, and the tokenizer gives \d+: take the model's own"):
        list(embed([["a"]], model, ElmoTokenizer(**options)))


@pytest.mark.parametrize("kind", [tuple, np.array, pandas.Series])
def test_words_in_any_sequence(kind, model, tokenizer):
    words = ["the", "cat", "sat"]
    assert_same(embed([kind(words)], model, tokenizer), list(embed([words], model, tokenizer)), atol=0)
    assert_same(embed(kind(words), model, tokenizer), list(embed(words, model, tokenizer)), atol=0)


@pytest.mark.parametrize("wrong", [None, float("nan"), b"the cat", b"", 3, ["the", None], [["the"]]], ids=str)
def test_what_is_no_text_is_told_by_its_number(wrong, model, tokenizer):
    with pytest.raises(EmbeddingError, match=r"text 2 is .* only texts and lists of words can be embedded"):
        list(embed(["the cat", ["sat"], wrong], model, tokenizer))


# ---- the command


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def read_parquet(output: Path):
    from datasets import load_dataset

    return load_dataset(str(output), split="train").with_format("numpy")


def assert_same_parts(folder: Path, other: Path):
    """The same files, with the same words and, but for rounding, vectors."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in other.iterdir())
    paths = sorted(folder.glob("*.parquet"))
    assert len(paths) == 4
    for path in paths:
        tables = [pyarrow.parquet.read_table(name) for name in (path, other / path.name)]
        assert tables[0]["words"] == tables[1]["words"]
        flat = [torch.tensor(table["embeddings"].combine_chunks().flatten().flatten().to_numpy()) for table in tables]
        torch.testing.assert_close(*flat, rtol=0, atol=1e-5)


def test_parquet(folder, corpus, tmp_path, model, tokenizer, capsys):
    assert run(folder, corpus, tmp_path / "out", "--words_per_part", 40, "--words_per_batch", 20) == 0
    rows = read_parquet(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.parquet"))) > 2
    assert [list(words) for words in rows["words"]] == [tokenizer.split_words(line) for line in LINES]
    expected = list(embed(LINES, model, tokenizer))
    assert_same([row["embeddings"].astype(np.float32).reshape(-1, 12) for row in rows], expected)
    printed = capsys.readouterr().out
    assert f"{len(LINES)} texts" in printed and "1 words were longer than the model reads" in printed


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("layers", ["mix", "all"])
@pytest.mark.parametrize("file_format", ["parquet", "safetensors"])
def test_shapes_of_parts(file_format, layers, pooling, folder, corpus, tmp_path, model, tokenizer):
    options = ["--layers", layers, "--format", file_format, "--words_per_part", 60]
    assert run(folder, corpus, tmp_path / "out", *options, *(["--pooling", pooling] if pooling else [])) == 0
    expected = list(embed(LINES, model, tokenizer, layers=layers, pooling=pooling))
    if file_format == "safetensors":
        assert_same(read_parts(tmp_path / "out"), expected)
        return
    table = pyarrow.parquet.read_table(tmp_path / "out")
    rows = [np.array(row, dtype=np.float32) for row in table["embeddings"].to_pylist()]
    assert_same((row.reshape(tuple(other.shape)) for row, other in zip(rows, expected, strict=True)), expected)


def test_bfloat16(folder, corpus, tmp_path, model, tokenizer, capsys):
    options = ["--dtype", "bfloat16", "--model_dtype", "bfloat16"]
    assert run(folder, corpus, tmp_path / "out", "--format", "safetensors", *options) == 0
    for vectors, expected in zip(read_parts(tmp_path / "out"), embed(LINES, model, tokenizer), strict=True):
        assert vectors.dtype == torch.bfloat16
        if len(expected):
            assert torch.cosine_similarity(vectors.float(), expected, dim=-1).mean() > 0.999
    with pytest.raises(SystemExit) as error:
        run(folder, corpus, tmp_path / "other", *options)
    assert error.value.code == 2 and "parquet has no bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(("layers", "dims"), [("all", 3), ("average", 2)])
def test_hdf5_in_allennlps_layout(layers, dims, folder, corpus, tmp_path, model, tokenizer):
    h5py = pytest.importorskip("h5py")
    output = tmp_path / "out.hdf5"
    assert run(folder, corpus, output, "--layers", layers, "--words_per_part", 40, "--pre_tokenized") == 0
    expected = list(embed([line.split() for line in LINES], model, tokenizer, layers=layers))
    with h5py.File(output) as file:
        assert set(file) == {*map(str, range(len(LINES))), "sentence_to_index"}
        assert file["0"].dtype == np.float32 and file["0"].ndim == dims
        assert_same([file[str(number)][...] for number in range(len(LINES))], expected)
        index = json.loads(file["sentence_to_index"][0])
    assert index == {" ".join(line.split()): str(number) for number, line in enumerate(LINES)}  # of equals the last
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out.hdf5"], "no parts are left"


def test_goes_on_after_an_interruption(folder, corpus, tmp_path, monkeypatch, capsys):
    options = ["--words_per_part", 30, "--words_per_batch", 20]
    assert run(folder, corpus, tmp_path / "whole", *options) == 0
    original, done = embed_module.embed_window, []

    def interrupted(*args):
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(embed_module, "embed_window", interrupted)
    assert run(folder, corpus, tmp_path / "out", *options) == 130
    assert capsys.readouterr().err.endswith(
        "parts that are whole were kept, and the same command goes on behind them\n"
    )
    parts = sorted(path.name for path in (tmp_path / "out").glob("*.parquet"))
    assert parts == [f"part-{number:06}.parquet" for number in range(3)]
    assert run(folder, corpus, tmp_path / "out", *options) == 0
    assert_same_parts(tmp_path / "out", tmp_path / "whole")
    assert len(done) == 4 + 1, "parts that were there are not computed again"
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".part")]


def test_an_interrupted_command_that_overwrites_goes_on_without_that(folder, corpus, tmp_path, monkeypatch, capsys):
    """Else it would delete its own parts."""
    argv = [folder, corpus, tmp_path / "vectors.hdf5", "--words_per_part", 20]
    assert run(*argv, "--layers", "top") == 0
    for error, told in (
        (KeyboardInterrupt(), "and the same command without --overwrite goes on behind them\n"),
        (OSError("full"), "(full): make room, and run this again without --overwrite\n"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(embedding_files, "_merge_hdf5", Mock(side_effect=error))
            assert run(*argv, "--overwrite") == (2 if isinstance(error, OSError) else 130)
        assert capsys.readouterr().err.endswith(told)
    assert run(*argv) == 0 and "parts had been there already" in capsys.readouterr().out


def test_what_a_killed_command_left_in_the_first_part_is_no_hindrance(folder, corpus, tmp_path):
    output = tmp_path / "out"
    assert run(folder, corpus, output) == 0
    for part in output.glob("part-*"):
        part.rename(output / f".{part.name}.123")
    (output / "..embed.json.123").write_text("{")
    assert run(folder, corpus, output) == 0
    assert len(read_parquet(output)) == len(LINES)
    assert sorted(path.name for path in output.iterdir()) == [".embed.json", "part-000000.parquet"]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", 100_000 * b"["])
def test_damaged_settings_are_told(folder, corpus, tmp_path, capsys, content):
    argv = [str(folder), str(corpus), str(tmp_path / "vectors")]
    assert main(argv) == 0
    (tmp_path / "vectors/.embed.json").write_bytes(content)
    assert main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert ".embed.json is damaged" in error and "--overwrite" in error
    assert main([*argv, "--overwrite"]) == 0


def test_a_command_killed_behind_the_hdf5_file_is_no_hindrance(folder, corpus, tmp_path, monkeypatch, capsys):
    argv = [str(folder), str(corpus), str(tmp_path / "vectors.hdf5")]

    def killed(path: Path):
        (path / ".embed.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding_files.shutil, "rmtree", killed)
        assert main(argv) == 130
    assert main(argv) == 2
    assert f"delete {tmp_path / '.vectors.hdf5.parts'}, which an inter" in capsys.readouterr().err
    (tmp_path / ".vectors.hdf5.123").touch()
    assert main([*argv, "--overwrite"]) == 0
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_part_of_an_hdf5_file_is_named(folder, corpus, tmp_path, monkeypatch, capsys):
    argv = [str(folder), str(corpus), str(tmp_path / "vectors.hdf5"), "--words_per_part", "20"]
    with monkeypatch.context() as patch:
        patch.setattr(embedding_files, "_merge_hdf5", Mock(side_effect=KeyboardInterrupt))
        assert main(argv) == 130
    part = tmp_path / ".vectors.hdf5.parts/part-000001.hdf5"
    part.write_bytes(part.read_bytes()[:1000])
    assert main(argv) == 2
    assert "part-000001.hdf5 is damaged" in capsys.readouterr().err
    part.unlink()
    assert main(argv) == 0


def test_other_settings_or_input_are_not_mixed_in(folder, corpus, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(folder, corpus, output) == 0
    assert run(folder, corpus, output) == 0
    assert "1 parts had been there already" in capsys.readouterr().out
    assert run(folder, corpus, output, "--layers", "top") == 2
    assert "differ in layers ('mix', now 'top')" in capsys.readouterr().err
    corpus.write_text(corpus.read_text() + "more\n")
    assert run(folder, corpus, output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(folder, corpus, output, "--overwrite") == 0
    assert len(read_parquet(output)) == len(LINES) + 1


@pytest.mark.parametrize("name", ["notes", "vectors.hdf5"])
def test_what_is_no_output_of_the_command_is_not_overwritten(name, folder, corpus, tmp_path, capsys):
    output = tmp_path / name
    mine = (tmp_path / f".{name}.parts" if name.endswith("hdf5") else output) / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("not to be lost")
    assert run(folder, corpus, output, "--overwrite") == 2
    assert "holds other files" in capsys.readouterr().err and mine.read_text() == "not to be lost"


def test_what_others_put_beside_the_parts_is_not_overwritten(folder, corpus, tmp_path):
    """A description for the Hub, or the folder of git in which the first command began."""
    output = tmp_path / "out"
    (output / ".git").mkdir(parents=True)
    (output / ".git" / "HEAD").write_text("not to be lost")
    assert run(folder, corpus, output, "--words_per_part", 40) == 0
    (output / "README.md").write_text("nor this")
    assert run(folder, corpus, output, "--overwrite", "--layers", "top") == 0
    names = [".embed.json", ".git", "README.md", "part-000000.parquet"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert (output / ".git" / "HEAD").read_text() == "not to be lost" and len(read_parquet(output)) == len(LINES)
    assert run(folder, corpus, output) == 2, "they were made with other settings"


def test_another_vocabulary_of_word_inputs_is_another_tokenizer():
    words = ["<S>", "</S>", "<UNK>", "a", "b"]
    one, same, other = (
        ElmoTokenizer(vocab=vocab, word_inputs=True) for vocab in (words, words, [*words[:3], "b", "a"])
    )
    assert fingerprint_of_tokenizer(one) == fingerprint_of_tokenizer(same) != fingerprint_of_tokenizer(other)
    # Rows of characters are the same whatever the softmax predicts.
    one, other = (ElmoTokenizer(vocab=vocab) for vocab in (words, [*words[:3], "b", "a"]))
    assert fingerprint_of_tokenizer(one) == fingerprint_of_tokenizer(other)


def test_means_of_half_precision_are_exact():
    vectors = torch.tensor([[1.0], [1.0078125]], dtype=torch.bfloat16)  # neighbours: what is between is no bfloat16
    assert pool(vectors, "mean").tolist() == [1.00390625]


@pytest.mark.parametrize("name", ["out", "out.hdf5"])
def test_a_command_writes_alone(name, folder, corpus, tmp_path, monkeypatch, capsys):
    original, codes = embed_module.embed_window, []

    def meanwhile(*args):
        monkeypatch.setattr(embed_module, "embed_window", original)
        codes.extend(run(folder, corpus, tmp_path / name, *some) for some in ([], ["--layers", "top"], ["--overwrite"]))
        return original(*args)

    monkeypatch.setattr(embed_module, "embed_window", meanwhile)
    assert run(folder, corpus, tmp_path / name) == 0 and codes == [2, 2, 2]
    assert capsys.readouterr().err.count(f"error: another command is writing into {tmp_path / name}: wait for it") == 3
    assert not list(tmp_path.rglob("*.lock"))
    assert run(folder, corpus, tmp_path / name, "--overwrite", "--layers", "top") == 0


def test_settings_without_parts_count(folder, corpus, tmp_path, capsys):
    """Others that are orphans of a killed command may go on with them."""
    assert run(folder, corpus, tmp_path / "out") == 0
    (tmp_path / "out" / "part-000000.parquet").unlink()
    assert run(folder, corpus, tmp_path / "out", "--layers", "top") == 2
    assert "differ in layers ('mix', now 'top')" in capsys.readouterr().err


def test_a_changed_model_is_another_setting(folder, corpus, tmp_path, capsys):
    changed = tmp_path / "model"
    shutil.copytree(folder, changed)
    assert run(changed, corpus, tmp_path / "out") == 0
    model = ElmoModel.from_pretrained(changed)
    torch.nn.init.zeros_(model.word_encoder.projection.bias[:1])
    model.save_pretrained(changed)
    assert run(changed, corpus, tmp_path / "out") == 2
    assert "weights" in capsys.readouterr().err


def test_a_changed_configuration_or_tokenizer_is_another_setting(folder, corpus, tmp_path, capsys):
    changed = tmp_path / "model"
    shutil.copytree(folder, changed)
    assert run(changed, corpus, tmp_path / "out") == 0
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "use_skip_connections": False}))
    assert run(changed, corpus, tmp_path / "out") == 2
    assert "differ in weights" in capsys.readouterr().err
    (changed / "config.json").write_text(json.dumps({**config, "dropout": 0.3, "head": "linear"}))
    assert run(changed, corpus, tmp_path / "out") == 0, "the layers do not depend on these"
    ElmoTokenizer(pre_tokenizer="whitespace").save_pretrained(changed)
    assert run(changed, corpus, tmp_path / "out") == 2
    assert "differ in tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["jsonl.gz", "tsv.gz", "csv", "JSONL.GZ", "CSV.GZ"])
def test_tables_may_be_compressed(folder, tmp_path, ending):
    lines = {"jsonl.gz": ['{"n": 1, "text": "a b"}', '{"n": 2, "text": "c"}'], "tsv.gz": ["n\ttext", "1\ta b", "2\tc"]}
    content = "\n".join(lines.get(ending.lower(), ["n,text", "1,a b", "2,c"])).encode()
    (tmp_path / f"texts.{ending}").write_bytes(gzip.compress(content) if ending.lower().endswith("gz") else content)
    assert run(folder, tmp_path / f"texts.{ending}", tmp_path / "out", "--column", "text") == 0
    assert [list(row["words"]) for row in read_parquet(tmp_path / "out")] == [["a", "b"], ["c"]]


def test_words_with_spaces_need_lists_of_words(folder, tmp_path):
    rows = [{"text": "New\u00a0York is\u2009big", "words": ["New\u00a0York", "is", "very big"]}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    for column, words in (("text", ["New", "York", "is", "big"]), ("words", rows[0]["words"])):
        assert run(folder, tmp_path / "a.jsonl", tmp_path / column, "--column", column, "--pre_tokenized") == 0
        assert list(read_parquet(tmp_path / column)[0]["words"]) == words


def test_columns_of_texts_and_kinds_of_files_that_do_not_go_together(folder, corpus, tmp_path, capsys):
    assert run(folder, corpus, tmp_path / "out", "--column", "text") == 2
    assert "has no columns" in capsys.readouterr().err
    shutil.copy(corpus, tmp_path / "some.txt")
    (tmp_path / "some.jsonl").write_text('{"text": "a"}\n')
    assert run(folder, tmp_path / "some.*", tmp_path / "out", "--column", "text") == 2
    assert "by commands of their own" in capsys.readouterr().err


def test_tables(folder, tmp_path, model, tokenizer, capsys):
    table = tmp_path / "in.jsonl"
    rows = [{"id": number, "text": line, "tokens": line.split()} for number, line in enumerate(LINES)]
    table.write_text("\n".join(map(json.dumps, rows)))
    for column, texts in (("text", LINES), ("tokens", [line.split() for line in LINES])):
        assert run(folder, table, tmp_path / column, "--column", column, "--format", "safetensors") == 0
        assert_same(read_parts(tmp_path / column), list(embed(texts, model, tokenizer)))
    capsys.readouterr()
    assert run(folder, table, tmp_path / "other") == 2
    assert "set --column to one of ['id', 'text', 'tokens']" in capsys.readouterr().err


@pytest.mark.parametrize("value", [["a", None], ["a", 3], 3, {"a": "b"}], ids=str)
def test_a_table_that_holds_no_words(value, folder, tmp_path, capsys):
    table = tmp_path / "in.jsonl"
    table.write_text(json.dumps({"tokens": value}) + "\n")
    assert run(folder, table, tmp_path / "out", "--column", "tokens") == 2
    assert "row 0 of" in capsys.readouterr().err


def test_hdf5_without_h5py(folder, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embed_module.importlib.util, "find_spec", lambda name: None)
    assert run(folder, corpus, tmp_path / "out.hdf5") == 2
    assert "pip install 'modeling-elmo[convert]'" in capsys.readouterr().err


MISTAKES = {
    "no model": (["{tmp}/nothing", "{corpus}", "{tmp}/out"], "has no ELMo model"),
    "no input": (["{folder}", "{tmp}/nothing.txt", "{tmp}/out"], "no file is named"),
    "no such layer": (["{folder}", "{corpus}", "{tmp}/out", "--layers", "7"], "0 to 2"),
    "no number of a layer": (["{folder}", "{corpus}", "{tmp}/out", "--layers", "\u00b2"], "0 to 2, not '\u00b2'"),
    "a number without end": (["{folder}", "{corpus}", "{tmp}/out", "--layers", 5000 * "1"], "0 to 2, not '11"),
    "folder with other files": (["{folder}", "{corpus}", "{tmp}"], "holds other files"),
    "file in the way": (["{folder}", "{corpus}", "{corpus}"], "is a file"),
    "hdf5 in the way": (["{folder}", "{corpus}", "{corpus}", "--format", "hdf5"], "--overwrite"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_in_a_line(arguments, message, folder, corpus, tmp_path, capsys):
    before = corpus.read_bytes()
    assert run(*(text.format(tmp=tmp_path, corpus=corpus, folder=folder) for text in arguments)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert corpus.read_bytes() == before and not (tmp_path / "out").exists()


def patience_is_asked_for():
    """A process may be done hours before another; torch's own patience is minutes."""
    start = torch.distributed.init_process_group

    def checked(*args, timeout: timedelta, **options):
        assert timeout > timedelta(days=7)
        start(*args, timeout=timeout, **options)

    patch("torch.distributed.init_process_group", checked).start()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, corpus, tmp_path):
    options = ["--words_per_part", "30"]
    assert run(folder, corpus, tmp_path / "one", *options) == 0
    arguments = [str(folder), str(corpus), str(tmp_path / "two"), *options]
    code, told = forked(arguments, tmp_path / "told", 2, script="modeling_elmo.embed", prepare=patience_is_asked_for)
    assert code == 0 and f"{tmp_path / 'two'}: {len(LINES)} texts" in told, told
    assert_same_parts(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_mistakes_are_told_once_by_two_processes(folder, corpus, tmp_path):
    assert run(folder, corpus, tmp_path / "out") == 0
    for options, message in ((["--layers", "top"], "differ in layers"), (["--layers", "7"], "layers must be one of")):
        ran = Forked(
            [str(folder), str(corpus), str(tmp_path / "out"), *options],
            tmp_path / "told",
            2,
            script="modeling_elmo.embed",
        )
        assert ran.wait() == 2
        assert [process.exitcode for process in ran.processes] == [2, 2]
        assert ran.text().count("error: ") == ran.text().count(message) == 1 and "Traceback" not in ran.text()


def full_disk_of_the_second_process():
    if os.environ["RANK"] == "1":
        patch("modeling_elmo.embedding_files._write_parquet", side_effect=OSError("No space left on device")).start()


@pytest.mark.slow
def test_a_full_disk_of_one_process_is_told_once(folder, corpus, tmp_path):
    """The other one writes its share to its end, and the same command goes on behind it."""
    arguments = [str(folder), str(corpus), str(tmp_path / "out"), "--words_per_part", "30"]
    ran = Forked(arguments, tmp_path / "told", 2, script="modeling_elmo.embed", prepare=full_disk_of_the_second_process)
    assert ran.wait() == 2 and [process.exitcode for process in ran.processes] == [2, 2], ran.text()
    assert ran.text().count("error: No space left on device") == 1 and "Traceback" not in ran.text(), ran.text()
    kept = sorted(path.name for path in (tmp_path / "out").glob("part-*"))
    assert kept and all(int(Path(name).stem.removeprefix("part-")) % 2 == 0 for name in kept)
    assert run(*arguments) == 0
    assert len(read_parquet(tmp_path / "out")) == len(LINES)


def test_control_characters_in_cells_are_spaces_as_in_lines(folder, tmp_path, capsys):
    rows = [{"text": "a\x00b \x85c", "words": ["a\x00b", "c d"]}, {"text": "d\te", "words": []}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.txt").write_text("\n".join(row["text"] for row in rows))
    for name, column in (("a.jsonl", ["--column", "text"]), ("a.txt", [])):
        assert run(folder, tmp_path / name, tmp_path / name.replace(".", ""), *column) == 0
        assert "2 control characters were read as spaces" in capsys.readouterr().out
        words = [list(row["words"]) for row in read_parquet(tmp_path / name.replace(".", ""))]
        assert words == [["a", "b", "c"], ["d", "e"]]
    assert run(folder, tmp_path / "a.jsonl", tmp_path / "lists", "--column", "words") == 0
    assert "control characters" not in capsys.readouterr().out
    assert list(read_parquet(tmp_path / "lists")[0]["words"]) == rows[0]["words"]


def test_cells_of_tables_are_texts_as_they_stand(folder, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text\nnull\nNA\nNone\n1984\nhello world\n")
    assert run(folder, tmp_path / "a.csv", tmp_path / "out", "--column", "text") == 0
    words = [list(row["words"]) for row in read_parquet(tmp_path / "out")]
    assert words == [["null"], ["NA"], ["None"], ["1984"], ["hello", "world"]]
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": \n')
    capsys.readouterr()
    assert run(folder, tmp_path / "a.jsonl", tmp_path / "other", "--column", "text") == 2
    assert "a.jsonl cannot be read" in capsys.readouterr().err


def test_one_text_is_not_taken_for_several(model, tokenizer):
    with pytest.raises(EmbeddingError, match="put 'a b' into a list"):
        next(embed("a b", model, tokenizer))


def test_a_disk_without_room_for_hdf5(folder, corpus, tmp_path, capsys, monkeypatch):
    """HDF5 itself crashes there, with the process."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr("modeling_elmo.embedding_files.shutil.disk_usage", lambda path: usage)
    assert run(folder, corpus, tmp_path / "out.hdf5") == 2
    assert "has 10 bytes left, and all parts together need" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(folder, corpus, tmp_path / "out.hdf5") == 0
    assert "1 parts had been there already" in capsys.readouterr().out


def test_a_disk_that_becomes_full_meanwhile(folder, corpus, tmp_path, capsys):
    """The file of all parts may not become as large as it is, though the disk has room."""
    arguments = [folder, corpus, tmp_path / "out.hdf5", "--words_per_part", 40]
    assert run(*arguments) == 0
    size = (tmp_path / "out.hdf5").stat().st_size
    (tmp_path / "out.hdf5").unlink()
    told = tmp_path / "told"
    code, text = forked([*map(str, arguments)], told, largest_file=size - 1, script="modeling_elmo.embed")
    assert code == 2 and "out.hdf5 cannot be put together ([Errno 27] File too large): make room" in text, text
    assert not (tmp_path / "out.hdf5").exists() and not list(tmp_path.glob(".out.hdf5.[0-9]*"))
    assert run(*arguments) == 0 and (tmp_path / "out.hdf5").stat().st_size == size
    assert "parts had been there already" in capsys.readouterr().out
