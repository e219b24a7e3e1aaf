"""ELMoForManyLangs: a random model made, saved and run by its own package, against ours; and what cannot be read."""

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from modeling_elmo import ElmoForSequenceClassification, ElmoModel, ElmoTokenizer
from modeling_elmo.allennlp_format import ConversionError, ConversionWarning
from modeling_elmo.convert import main
from modeling_elmo.many_langs import is_many_langs, read_many_langs
from modeling_elmo.spelling import DictionarySpelling

SENTENCES = [
    ["今", "天", "天氣", "真", "好", "阿"],
    ["coffee", "und", "x" * 70, "Straße", "unbekanntesWort"],
    ["<bos>", "a"],
    ["é", "a\u3000b"],
]
CHARACTERS = [*"abcdefountSrßcé今天氣真好x<>sk", "<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>"]
WORDS = ["<oov>", "<bos>", "<eos>", "<pad>", "天氣", "coffee", "a", "x" * 46, "Straße"]
OPTIONS = {
    "encoder": {"name": "elmo", "projection_dim": 6, "cell_clip": 0.5, "proj_clip": 0.4, "dim": 11, "n_layers": 2},
    "token_embedder": {
        "name": "cnn", "activation": "relu", "filters": [[1, 4], [2, 5], [3, 6]], "n_highway": 2,
        "word_dim": 7, "char_dim": 3, "max_characters_per_token": 48,
    },
    "classifier": {"name": "sampled_softmax", "n_samples": 8192},
    "dropout": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def original_package():
    """elmoformanylangs, whose decorator `overrides` is out of date: newer ones refuse its annotations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "overrides", SimpleNamespace(overrides=lambda method: method))
        yield pytest.importorskip("elmoformanylangs")


def write_model(folder: Path, has_words: bool = True, **embedder) -> Path:
    """A folder as the original's trainer leaves it, with random weights."""
    frontend = pytest.importorskip("elmoformanylangs.frontend")
    layers = pytest.importorskip("elmoformanylangs.modules.embedding_layer")
    options = json.loads(json.dumps(OPTIONS))
    options["token_embedder"] |= {"word_dim": 7 * has_words, **embedder}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config_path": "/home/someone/configs/cnn.json", "seed": 1}))
    (folder / "cnn.json").write_text(json.dumps(options))
    chars = {symbol: number for number, symbol in enumerate(dict.fromkeys([*CHARACTERS, "\u3000"]))}
    words = {word: number for number, word in enumerate(WORDS)}
    (folder / "char.dic").write_text("".join(f"{symbol}\t{number}\n" for symbol, number in chars.items()))
    if has_words:
        (folder / "word.dic").write_text("".join(f"{word}\t{number}\n" for word, number in words.items()))
    word_layer = layers.EmbeddingLayer(7, words, fix_emb=False) if has_words else None
    model = frontend.Model(options, word_layer, layers.EmbeddingLayer(3, chars, fix_emb=False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    torch.save(model.token_embedder.state_dict(), folder / "token_embedder.pkl")
    torch.save(model.encoder.state_dict(), folder / "encoder.pkl")
    return folder


def embeddings_of(folder: Path) -> list[np.ndarray]:
    """All layers of each sentence as the original package computes them, (3, words, hidden_size) each."""
    embedder = pytest.importorskip("elmoformanylangs").Embedder(str(folder), batch_size=9)
    return embedder.sents2elmo(SENTENCES, output_layer=-2)


@pytest.mark.parametrize(
    ("has_words", "options"), [(True, {}), (False, {"activation": "tanh"}), (True, {"n_highway": 0})]
)
def test_all_layers_are_those_of_the_original_package(tmp_path, capsys, has_words, options):
    folder = write_model(tmp_path / "original", has_words, **options)
    expected = embeddings_of(folder)
    assert main([str(folder), str(tmp_path / "ours"), "--license", "mit"]) == 0
    told = capsys.readouterr().out
    assert ("31 characters, 15 character filters" in told) and (", vectors of 9 words" in told) == has_words
    model, tokenizer = ElmoModel.from_pretrained(tmp_path / "ours"), ElmoTokenizer.from_pretrained(tmp_path / "ours")
    batch = tokenizer(SENTENCES, is_split_into_words=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[2] == model.config.row_length == 48 + has_words
    with torch.no_grad():
        layers = torch.stack(model(**batch, output_hidden_states=True).hidden_states)  # (3, batch, words, hidden_size)
    for row, sentence in enumerate(SENTENCES):
        if "<bos>" in sentence:  # a word for us, a sentence's begin for the original
            continue
        ours = layers[:, row, 1 : len(sentence) + 1].numpy()
        np.testing.assert_allclose(ours, expected[row], rtol=0, atol=5e-6)  # values reach 8
        assert np.abs(expected[row]).max() > 0.3
    card = (tmp_path / "ours" / "README.md").read_text()
    assert "Files of ELMoForManyLangs" in card and "K18-2005" in card and "license: mit" in card
    assert ("`word.dic`" in card) == has_words and "`encoder.pkl`" in card


def test_words_with_a_number_in_the_dictionary_are_known_by_it(tmp_path):
    folder = write_model(tmp_path / "original")
    assert main([str(folder), str(tmp_path / "ours"), "--pre_tokenizer", "characters"]) == 0
    tokenizer = ElmoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.tokenize("今天 Q") == ["今", "天", "Q"]
    last = tokenizer(["coffee", "a", "x" * 70, "<bos>", "tea"], is_split_into_words=True)["input_ids"]
    numbers = {word: number + 1 for number, word in enumerate(WORDS)}
    expected = ["<bos>", "coffee", "a", "x" * 46, "<oov>", "<oov>", "<eos>"]
    assert [row[-1] for row in last] == [numbers[word] for word in expected]
    assert tokenizer.convert_ids_to_tokens(last) == [
        "<S>",
        "coffee",
        "a",
        "x" * 46,
        "<bos>",
        "tea",
        "</S>",
    ]
    assert tokenizer.is_truncated(["x" * 47, "氣" * 46]).tolist() == [True, False]
    assert tokenizer.decode(tokenizer("今 Q")["input_ids"]) == "<S> 今 \ufffd </S>"


def test_it_is_a_model_like_others(tmp_path):
    """From a zip archive, saved again, fine-tuned, as remote code, its word vectors cached."""
    folder = write_model(tmp_path / "original")
    with zipfile.ZipFile(tmp_path / "144.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"144/{path.name}")
    shutil.copy(tmp_path / "144.zip", tmp_path / "two.zip")
    with zipfile.ZipFile(tmp_path / "two.zip", "a") as archive:
        archive.write(folder / "token_embedder.pkl", "145/token_embedder.pkl")
    with pytest.raises(ConversionError, match="has 2 models in it: unpack it and convert one of them"):
        read_many_langs(tmp_path / "two.zip")
    assert main([str(tmp_path / "144.zip"), str(tmp_path / "ours")]) == 0
    assert "| `144.zip` |" in (tmp_path / "ours" / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    model = ElmoForSequenceClassification.from_pretrained(tmp_path / "ours", num_labels=2, head_dim=4).eval()
    pair = tokenizer("天氣 coffee", "ein Wort", return_tensors="pt")
    alone = tokenizer("天氣 coffee", return_tensors="pt")
    assert model(**pair).logits.shape == (1, 2)
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True).eval()
    first = AutoModel.from_pretrained(tmp_path / "ours").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "again", trust_remote_code=True)("天氣 coffee", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(again(**ids).last_hidden_state, first(**alone).last_hidden_state)
        assert torch.equal(first(**alone).last_hidden_state, first(**alone).last_hidden_state)


def test_what_the_legacy_format_and_training_cannot_hold_is_refused(tmp_path, capsys, run):
    assert main([str(write_model(tmp_path / "original")), str(tmp_path / "ours")]) == 0
    assert main(["--to-allennlp", str(tmp_path / "ours"), str(tmp_path / "back")]) == 2
    assert "spells words by dictionaries" in capsys.readouterr().err
    (tmp_path / "text.txt").write_text("a b c\n" * 100)
    text = ["--train_file", str(tmp_path / "text.txt"), "--output_dir", str(tmp_path / "run")]
    assert run("--model_name_or_path", str(tmp_path / "ours"), "--new_vocabulary", "true", *text) == 2
    assert "by bytes only" in capsys.readouterr().err
    model = ElmoModel.from_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="give input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 48, 3))
    ids = torch.ones(1, 2, 49, dtype=torch.long)
    ids[..., -1] = 10
    with pytest.raises(ValueError, match="the words' own ids must be between 0 and 9"):
        model(ids)
    with pytest.raises(ValueError, match=r"distinct_words must be integers of shape \(distinct, 49 to 49\), not"):
        model(torch.zeros(1, 2, dtype=torch.long), distinct_words=ids[0, :, :48])


def damage(folder: Path, how: str):
    if how == "no_config":
        (folder / "config.json").unlink()
    elif how == "no_dictionary":
        (folder / "char.dic").unlink()
    elif how == "short_dictionary":
        (folder / "word.dic").write_text("<oov>\t0\n<bos>\t1\n<eos>\t2\n<pad>\t3\n")
    elif how == "no_symbols":
        (folder / "char.dic").write_text("a\t0\nb\t1\n")
    elif how == "another_character":
        with (folder / "char.dic").open("a") as file:
            file.write("Ω\t31\n")
    elif how == "no_numbers":
        (folder / "char.dic").write_text("a b\n")
    elif how == "latin_dictionary":
        (folder / "char.dic").write_bytes(b"\xe9\t0\n")
    elif how == "long_number":
        (folder / "char.dic").write_text(f"a\t{5000 * '9'}\n")
    elif how == "truncated":
        (folder / "encoder.pkl").write_bytes((folder / "encoder.pkl").read_bytes()[:500])
    elif how in ("nan", "-inf"):
        state = torch.load(folder / "encoder.pkl", weights_only=True)
        state["forward_layer_0.state_linearity.bias"][0] = float(how)
        torch.save(state, folder / "encoder.pkl")
    elif how == "layer_missing":
        state = torch.load(folder / "encoder.pkl", weights_only=True)
        torch.save(
            {name: tensor for name, tensor in state.items() if "backward_layer_1" not in name}, folder / "encoder.pkl"
        )
    elif how in ("flat", "sides_differ"):
        state = torch.load(folder / "encoder.pkl", weights_only=True)
        name = {"flat": "forward_layer_0.state_projection", "sides_differ": "backward_layer_1.input_linearity"}[how]
        state[f"{name}.weight"] = torch.zeros(3)
        torch.save(state, folder / "encoder.pkl")
    elif how in ("lstm_embedder", "lstm_encoder", "no_encoder", "more_layers"):
        options = json.loads((folder / "cnn.json").read_text())
        if how == "lstm_embedder":
            options["token_embedder"]["name"] = "lstm"
        elif how == "lstm_encoder":
            options["encoder"]["name"] = "lstm"
        elif how == "no_encoder":
            options["encoder"] = None
        else:
            options["encoder"]["n_layers"] = 3
        (folder / "cnn.json").write_text(json.dumps(options))
    elif how in (
        "highway_missing",
        "bias_missing",
        "no_axis",
        "no_characters",
        "no_projection",
        "half_a_highway",
        "long_bias",
    ):
        state = torch.load(folder / "token_embedder.pkl", weights_only=True)
        if how == "no_axis":
            state["convolutions.0.weight"] = torch.tensor(1.0)
        elif how == "long_bias":
            state["convolutions.0.bias"] = torch.zeros(99)
        elif how == "half_a_highway":
            state["highways._layers.0.bias"] = torch.zeros(1)
        lost = {
            "highway_missing": "highways._layers.1.",
            "bias_missing": "projection.bias",
            "no_characters": "char_emb_layer.",
            "no_projection": "projection.weight",
        }.get(how, "?")
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(lost)}
        torch.save(kept, folder / "token_embedder.pkl")
    elif how == "truncated_as_of_old":
        state = torch.load(folder / "encoder.pkl", weights_only=True)
        torch.save(state, folder / "encoder.pkl", _use_new_zipfile_serialization=False)
        (folder / "encoder.pkl").write_bytes((folder / "encoder.pkl").read_bytes()[:1500])
    elif how == "code":
        torch.save({"a": torch.zeros(1), "code": Path("evil")}, folder / "encoder.pkl")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no_dictionary", "char.dic does not exist"),
        ("short_dictionary", "word.dic has 4 entries, but there are vectors for 9"),
        ("no_symbols", "char_vocab lacks <eow> <bow> <bos> <eos> <oov> <pad>"),
        ("another_character", r"char\.dic has 32 entries, but there are vectors for 31"),
        ("no_numbers", "char.dic, line 1: 'a b' is no symbol with a number behind a tab"),
        ("latin_dictionary", "char.dic is not UTF-8"),
        ("long_number", "char.dic, line 1: .* is no symbol with a number behind a tab"),
        ("truncated", "encoder.pkl is damaged, or holds something else than tensors"),
        ("nan", "NaN or infinite"),
        ("-inf", "NaN or infinite"),
        ("layer_missing", "original: its weights are not whole .'backward_layer_1.input_linearity.weight'"),
        ("lstm_embedder", r"\('lstm', 'elmo'\) is no ELMo"),
        ("lstm_encoder", r"\('cnn', 'lstm'\) is no ELMo"),
        ("no_encoder", "cnn.json: encoder must be an object, not None"),
        ("more_layers", "n_layers should be 3, but the weights say 2"),
        ("highway_missing", "n_highway should be 2, but the weights say 1"),
        ("bias_missing", "its weights are not whole"),
        ("no_axis", "no ELMo can be made of these files"),
        ("no_characters", "has no characters, only a table of words"),
        ("no_projection", r"the weights lack projection\.weight: they are not those of an ELMoForManyLangs model"),
        ("long_bias", "the weights contradict each other: size mismatch for word_encoder.convolutions.0.bias"),
        ("half_a_highway", "its weights are not whole"),
        ("flat", "no ELMo can be made of these files"),
        ("sides_differ", "its weights are not whole"),
        ("truncated_as_of_old", "encoder.pkl is damaged, or holds something else than tensors"),
        ("code", "encoder.pkl is damaged, or holds something else than tensors"),
    ],
)
def test_damaged_models_are_told(tmp_path, capsys, how, message):
    folder = write_model(tmp_path / "original")
    damage(folder, how)
    assert main([str(folder), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert re.search(message, error), error
    assert not (tmp_path / "ours").exists()


def test_without_its_hyperparameters_those_of_the_published_models_are_taken(tmp_path, capsys):
    folder = write_model(tmp_path / "original")
    damage(folder, "no_config")
    assert main([str(folder), str(tmp_path / "ours")]) == 0
    assert "those of the published models are taken" in capsys.readouterr().err
    config = ElmoModel.from_pretrained(tmp_path / "ours").config
    assert (config.cell_clip, config.proj_clip, config.max_word_length) == (3, 3, 50)
    assert (config.cnn_activation, config.dropout) == ("relu", 0.1)
    assert (config.lstm_dim, config.projection_dim, config.forget_bias, config.word_vocab_size) == (11, 6, 0, 10)


def test_what_files_may_lack_or_have_more(tmp_path):
    """White space behind the numbers of a dictionary, hyperparameters that are not told, a file that names itself."""
    folder = write_model(tmp_path / "original")
    expected, options = read_many_langs(folder), json.loads((folder / "cnn.json").read_text())
    (folder / "char.dic").write_text((folder / "char.dic").read_text().replace("\n", " \n"))
    del options["encoder"]["cell_clip"]
    (folder / "cnn.json").write_text(json.dumps({**options, "dropout": 0.3}))
    found = read_many_langs(folder)
    assert found.char_vocab == expected.char_vocab
    assert found.config.char_padding_id == found.char_vocab["<pad>"] + 1
    assert (found.config.cell_clip, found.config.proj_clip, found.config.dropout) == (3, 0.4, 0.3)
    for part, name in (("token_embedder", "char_dim"), ("encoder", "dim"), ("encoder", "projection_dim")):
        (folder / "cnn.json").write_text(json.dumps({**options, part: {**options[part], name: 99}}))
        with pytest.raises(ConversionError, match=f": {name} should be 99, but the weights say"):
            read_many_langs(folder)
    (folder / "config.json").write_text(json.dumps({"config_path": "config.json"}))
    with pytest.warns(ConversionWarning, match="those of the published models are taken"):
        read_many_langs(folder)
    (folder / "encoder.pkl").unlink()
    assert not is_many_langs(folder)
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        archive.write(folder / "token_embedder.pkl", "144/token_embedder.pkl")
    assert not is_many_langs(tmp_path / "half.zip")


def test_its_own_folder_is_not_replaced_and_no_other_files_are_taken(tmp_path, capsys):
    folder = write_model(tmp_path / "original")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["--overwrite", str(folder), str(folder)]) == 2
    assert "holds what is to be converted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main([str(folder), str(tmp_path / "ours"), "--vocab", str(folder / "word.dic")]) == 2
    assert "and no other files" in capsys.readouterr().err


def test_a_clip_of_0_is_none(tmp_path):
    folder = write_model(tmp_path / "original")
    options = json.loads((folder / "cnn.json").read_text())
    options["encoder"] |= {"cell_clip": 0, "proj_clip": 0.0}
    (folder / "cnn.json").write_text(json.dumps(options))
    assert main([str(folder), str(tmp_path / "ours")]) == 0
    config = ElmoModel.from_pretrained(tmp_path / "ours").config
    assert config.cell_clip is None and config.proj_clip is None


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\xff", "zip file version 25.5"),
        ("é".encode(), b"\xff\xff", "'utf-8' codec can't decode"),
    ],
)
def test_damaged_directories_of_zip_archives_are_told(tmp_path, capsys, before, after, reason):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("é.pkl", b"")
    content = (tmp_path / "x.zip").read_bytes()
    assert before in content
    (tmp_path / "x.zip").write_bytes(content.replace(before, after))
    assert main([str(tmp_path / "x.zip"), str(tmp_path / "ours")]) == 2
    assert f"x.zip is damaged or encrypted ({reason}" in capsys.readouterr().err


def test_a_path_that_leaves_the_folder_is_not_followed(tmp_path, capsys):
    folder = write_model(tmp_path / "original")
    (tmp_path / "cnn.json").write_text(json.dumps({"token_embedder": {"name": "lstm"}}))
    for path in ("../cnn.json", "..\\cnn.json", str(tmp_path / "cnn.json")):
        (folder / "config.json").write_text(json.dumps({"config_path": path}))
        assert main(["--overwrite", str(folder), str(tmp_path / "ours")]) == 0
        assert ElmoModel.from_pretrained(tmp_path / "ours").config.cell_clip == 0.5


def test_dictionaries_are_checked():
    chars = {symbol: number for number, symbol in enumerate(dict.fromkeys(CHARACTERS))}
    with pytest.raises(ValueError, match="each with a number of its own"):
        DictionarySpelling({**chars, "a": 1}, None, 50)
    with pytest.raises(ValueError, match="word_vocab lacks <bos> <eos> <pad>"):
        DictionarySpelling(chars, {"<oov>": 0}, 50)
    with pytest.raises(ValueError, match="stands beside a char_vocab"):
        ElmoTokenizer(word_vocab={"a": 0})
