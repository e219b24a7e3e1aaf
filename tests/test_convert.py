"""Converting both ways, the command line, and the numbers of other implementations."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from legacy_files import (
    ABSENT,
    OPTIONS,
    VOCABULARY,
    assert_bit_equal,
    assert_refused,
    changed,
    random_datasets,
    read_hdf5,
    write_legacy,
    write_options,
)
from training_runs import forked

from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoModel
from modeling_elmo.allennlp_files import LegacyFiles, read_allennlp
from modeling_elmo.allennlp_format import ConversionError, ConversionWarning
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp, main
from modeling_elmo.tokenization_elmo import ElmoTokenizer


def test_config_of_converted_model(legacy, dst):
    config = convert_from_allennlp(legacy, dst).config
    assert config.cnn_filters == [[1, 4], [2, 3], [4, 6]] and config.num_highway_layers == 2
    assert (config.lstm_dim, config.projection_dim, config.num_hidden_layers) == (7, 5, 2)
    assert (config.cell_clip, config.proj_clip, config.dropout, config.lm_vocab_size) == (0.7, 0.4, 0.25, 7)
    saved = json.loads((dst / "config.json").read_text())
    assert saved["architectures"] == ["ElmoModel"] and "AutoModel" in saved["auto_map"]
    assert (dst / "model.safetensors").is_file()
    assert not ElmoModel.from_pretrained(dst).word_encoder.char_embedding.weight[0].any()


def test_without_vocabulary(tmp_path, dst):
    source = write_legacy(tmp_path / "legacy", vocabulary=None)
    assert convert_from_allennlp(source, dst).config.lm_vocab_size == OPTIONS["n_tokens_vocab"]
    assert not ElmoTokenizer.from_pretrained(dst).lm_vocab
    convert_to_allennlp(dst, tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["options.json", "weights.hdf5"]


def test_the_card_names_the_source(legacy, tmp_path, dst):
    """The files, or the archive that they came in, and none of this machine's folders."""
    convert_from_allennlp(legacy, dst, license="mit")
    card = (dst / "README.md").read_text()
    digest = hashlib.sha256((legacy / "weights.hdf5").read_bytes()).hexdigest()
    assert f"`{digest}`" in card and "`options.json`" in card and "`vocab.txt`" in card and "license: mit" in card
    assert 'name = "converted"' in card and str(tmp_path) not in card
    shutil.make_archive(str(tmp_path / "143"), "zip", legacy)
    convert_from_allennlp(tmp_path / "143.zip", dst, overwrite=True)
    card = (dst / "README.md").read_text()
    assert "| `143.zip` |" in card and "hdf5" not in card and "license" not in card


def test_pretraining_model_and_half_precision_go_back(tmp_path, tiny_config):
    """Of a model with a head the biLM is written; the file holds float32 whatever the folder held."""
    model = ElmoForPreTraining(tiny_config)
    model.save_pretrained(tmp_path / "pretraining")
    convert_to_allennlp(tmp_path / "pretraining", tmp_path / "legacy")
    options = json.loads((tmp_path / "legacy" / "options.json").read_text())
    assert (options["n_tokens_vocab"], options["n_negative_samples_batch"]) == (40, 8)
    assert options["char_cnn"]["n_characters"] == 262
    read = read_allennlp(LegacyFiles(tmp_path / "legacy" / "options.json", tmp_path / "legacy" / "weights.hdf5"))
    expected = {name: tensor for name, tensor in model.elmo.state_dict().items() if not name.startswith("scalar_mix.")}
    torch.testing.assert_close(read.state_dict, expected, rtol=0, atol=0)

    model.elmo.bfloat16().save_pretrained(tmp_path / "half")
    convert_to_allennlp(tmp_path / "half", tmp_path / "legacy", overwrite=True)
    datasets = read_hdf5(tmp_path / "legacy" / "weights.hdf5")
    assert {data.dtype for data in datasets.values()} == {np.dtype("float32")}
    rounded = model.elmo.word_encoder.projection.weight.detach().float()
    np.testing.assert_array_equal(datasets["CNN_proj/W_proj"].T, rounded)


def test_transformers_folders_that_the_format_cannot_hold(tmp_path, tiny_config, dst):
    model = ElmoModel(tiny_config)
    with torch.no_grad():
        model.word_encoder.char_embedding.weight[0, 0] = 1.0
    model.save_pretrained(tmp_path / "mask")
    with pytest.raises(ConversionError, match=r"row 0 of .*char_embedding.*must be zeros"):
        convert_to_allennlp(tmp_path / "mask", dst)
    ElmoModel(ElmoConfig(**tiny_config.to_diff_dict() | {"vocab_size": 300})).save_pretrained(tmp_path / "characters")
    with pytest.raises(ConversionError, match="vocab_size is 300"):
        convert_to_allennlp(tmp_path / "characters", dst)
    torch.save(model.state_dict(), tmp_path / "mask" / "pytorch_model.bin")  # no pickle is read in place of it
    (tmp_path / "mask" / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"mask has no ELMo model: .*model\.safetensors"):
        convert_to_allennlp(tmp_path / "mask", dst)
    assert not dst.exists()


def test_folders_that_are_no_elmo_of_transformers(legacy, dst):
    with pytest.raises(ConversionError, match=r"no transformers folder.*config\.json"):
        convert_to_allennlp(legacy, dst)
    (legacy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConversionError, match="'bert', not 'elmo'"):
        convert_to_allennlp(legacy, dst)


def test_destination(legacy, tmp_path, dst, monkeypatch):
    dst.mkdir()
    convert_from_allennlp(legacy, dst)  # an empty folder is as good as none
    assert_refused(legacy, dst, r"not empty.*--overwrite")
    others = [dst / "char_vocab.json", dst / "model-00001-of-00002.safetensors"]
    for file in others:  # of another conversion
        file.touch()
    convert_from_allennlp(legacy, dst, overwrite=True)
    assert not any(file.exists() for file in others)
    (dst / "thesis.tex").touch()
    assert_refused(legacy, dst, r"does not look like an earlier result \(it has thesis\.tex\)", overwrite=True)
    (dst / "thesis.tex").unlink()

    assert_refused(legacy, legacy, "holds what is to be converted", overwrite=True)
    assert_refused(legacy, tmp_path, "holds what is to be converted", overwrite=True)
    with monkeypatch.context() as patch:
        patch.chdir(legacy)
        assert_refused(legacy, Path("."), "holds what is to be converted", overwrite=True)
    given = {"options": legacy / "options.json", "weights": legacy / "weights.hdf5"}
    assert_refused(None, legacy, "holds what is to be converted", overwrite=True, **given)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert_refused(legacy, tmp_path / "mine", "does not look like an earlier result", overwrite=True)
    (tmp_path / "mine" / "thesis.tex").rename(tmp_path / "mine" / "thesis.py")
    assert_refused(legacy, tmp_path / "mine", r"\(it has neither config\.json nor options\.json\)", overwrite=True)
    (tmp_path / "file").touch()
    assert_refused(legacy, tmp_path / "file", "exists")

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    before = {path.name: path.read_bytes() for path in dst.iterdir()}
    monkeypatch.setattr(ElmoTokenizer, "save_pretrained", full_disk)
    for target in (dst, tmp_path / "new"):
        with pytest.raises(OSError, match="no space"):
            convert_from_allennlp(legacy, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in dst.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "file", "legacy", "mine"]


def test_a_full_disk_for_hdf5(legacy, dst, tmp_path):
    convert_from_allennlp(legacy, dst)
    size = (legacy / "weights.hdf5").stat().st_size
    arguments = ["--to-allennlp", str(dst), str(tmp_path / "back")]
    code, told = forked(arguments, tmp_path / "told", largest_file=size // 2, script="modeling_elmo.convert")
    assert code == 2, told
    assert re.search(r"^error: .*weights\.hdf5 cannot be written \(.* too large\): make room$", told, re.MULTILINE), (
        told
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "legacy", "told"]


def test_command_line(legacy, dst, capsys):
    """Success prints what was done and the lines that load it, which work; failure prints one line and exits with 2."""
    command = [sys.executable, "-m", "modeling_elmo.convert", str(legacy), str(dst)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and done.stderr == ""
    for text in ("options.json, weights.hdf5, vocab.txt", "2 x 7 LSTM cells", str(dst)):
        assert text in done.stdout
    lines = [line[7:] for line in done.stdout.splitlines()[-2:]]
    scope: dict[str, Any] = {}
    exec("\n".join(lines), scope)
    assert isinstance(scope["model"], ElmoModel) and scope["tokenizer"].lm_vocab == VOCABULARY

    capsys.readouterr()
    assert main([str(legacy), str(dst)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1


def test_main(legacy, tmp_path, dst, capsys):
    options, weights = str(legacy / "options.json"), str(legacy / "weights.hdf5")
    assert main(["--options", options, "--weights", weights, str(dst)]) == 0
    assert main(["--to-allennlp", str(dst), str(tmp_path / "back")]) == 0
    assert "softmax" in capsys.readouterr().out
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), random_datasets(OPTIONS))
    write_options(legacy, n_tokens_vocab=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as PYTHONWARNINGS may have it
        assert main([str(legacy), str(dst), "--overwrite"]) == 0
    assert capsys.readouterr().err.startswith("warning: options: n_tokens_vocab is 9")
    (tmp_path / "file").touch()
    assert main([str(legacy), str(tmp_path / "file" / "dst")]) == 2  # a folder inside a file
    assert capsys.readouterr().err.startswith("error: ")
    assert main(["--to-allennlp", "--overwrite", str(dst), str(tmp_path / "back")]) == 0
    back, new = ["--to-allennlp", str(dst), str(tmp_path / "new")], [str(legacy), str(tmp_path / "new")]
    capsys.readouterr()
    for arguments, message in [
        *((wrong, "give SRC and DST") for wrong in ([str(legacy)], ["--options", options, str(dst)], ["a", "b", "c"])),
        (["--to-allennlp", str(dst)], "give SRC and DST"),
        ([], "the following arguments are required"),
        *(([*back, flag, "y"], "--to-allennlp takes SRC and DST") for flag in ("--vocab", "--license", "--push")),
        ([*new, "--push", ""], "--push needs a name"),
        ([*new, "--private"], "--private goes with --push"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_a_table_of_words_is_summed_up_and_named(tmp_path, monkeypatch, capsys):
    """By the folder's name, also where one stands in it."""
    source = write_legacy(tmp_path / "legacy", changed(char_cnn=ABSENT))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([str(source), "."]) == 0
    told = capsys.readouterr().out
    assert "model  a table of 7 words, 2 x 7 LSTM cells per direction, projected to 5: 1," in told
    assert "import ElmoModel, ElmoTokenizer" in told and "# here\n" in (tmp_path / "here" / "README.md").read_text()
    assert main(["--to-allennlp", str(tmp_path / "here"), str(tmp_path / "back")]) == 0
    assert "here (transformers)\n" in capsys.readouterr().out
    (source / "vocab.txt").write_text("the\n" * 7)
    with pytest.warns(ConversionWarning, match="later line"):
        assert_refused(source, tmp_path / "new", r"missing: .* another with --vocab$")


def test_how_raw_text_is_to_be_split(tmp_path, dst, capsys):
    """SeqVec, an ELMo of proteins: its archive has a folder in it, and a letter is a word."""
    (tmp_path / "zipped").mkdir()
    write_legacy(tmp_path / "zipped" / "uniref50_v2", vocabulary=None)
    source = shutil.make_archive(str(tmp_path / "seqvec"), "zip", tmp_path / "zipped")
    assert main([source, "--pre_tokenizer", "characters", str(dst)]) == 0  # options may stand anywhere
    model, tokenizer = loaded(dst)
    batch = tokenizer("SEQWENCE", return_tensors="pt")
    given = tokenizer(list("SEQWENCE"), is_split_into_words=True, return_tensors="pt")
    assert batch.tokens()[1:-1] == list("SEQWENCE")
    assert torch.equal(model(**batch).last_hidden_state, model(**given).last_hidden_state)
    with pytest.raises(ValueError, match=r"^pre_tokenizer must be one of .*, not 'letters'$"):
        convert_from_allennlp(source, tmp_path / "other", pre_tokenizer="letters")
    with pytest.raises(SystemExit):
        main(["--to-allennlp", str(dst), str(tmp_path / "back"), "--pre_tokenizer", "ptb"])
    assert "--to-allennlp takes SRC and DST, and --overwrite" in capsys.readouterr().err


# --- the numbers of other implementations ---


@pytest.fixture(scope="module")
def allennlp(shared) -> Path:
    return shared / "fixtures" / "allennlp"


def layers_by_batch(model: ElmoModel, tokenizer: ElmoTokenizer, batches: list[list[list[str]]]) -> list[np.ndarray]:
    """All layers of each batch, (batch, layers + 1, words, hidden_size), boundaries included and state carried on."""
    state, results = None, []
    for batch in batches:
        inputs = tokenizer(batch, is_split_into_words=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs, state=state, output_hidden_states=True)
        state = output.state
        results.append(torch.stack(output.hidden_states, dim=1).numpy())
    return results


def loaded(folder: Path) -> tuple[ElmoModel, ElmoTokenizer]:
    return ElmoModel.from_pretrained(folder).eval(), ElmoTokenizer.from_pretrained(folder)


@pytest.fixture
def allennlp_batches(allennlp) -> list[list[list[str]]]:
    lanes = json.loads((allennlp / "sentences.json").read_text())
    return [[sentence.split() for sentence in batch] for batch in zip(*lanes, strict=True)]


@pytest.mark.data
def test_allennlp_embeddings(allennlp, allennlp_batches, tmp_path, dst):
    convert_from_allennlp(allennlp, dst)
    references = [read_hdf5(allennlp / f"lm_embeddings_{lane}.hdf5") for lane in range(3)]
    errors = []
    for i, (batch, layers) in enumerate(
        zip(allennlp_batches, layers_by_batch(*loaded(dst), allennlp_batches), strict=True)
    ):
        for lane, words in enumerate(batch):
            expected = np.concatenate([*references[lane][str(i)]], axis=1)  # (words, 32): forward, backward
            errors.append(np.abs(layers[lane, -1, 1 : len(words) + 1] - expected).max())
    print(f"max abs difference: {max(errors):.2e}")
    assert len(errors) == 30 and max(errors) < 2e-6
    convert_to_allennlp(dst, tmp_path / "back")
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), read_hdf5(allennlp / "lm_weights.hdf5"))


@pytest.mark.data
def test_allennlp_token_embeddings(allennlp, allennlp_batches, tmp_path, dst):
    """Row k of the table is the word vector of line k of the vocabulary, boundaries included."""
    files = {"token_embeddings": allennlp / "elmo_token_embeddings.hdf5", "vocab": allennlp / "vocab_test.txt"}
    vocabulary = convert_from_allennlp(allennlp, dst, **files).vocabulary
    convert_from_allennlp(allennlp, tmp_path / "characters")
    characters, spelling = loaded(tmp_path / "characters")

    rows = {"<S>": spelling.bos_row, "</S>": spelling.eos_row}
    rows = np.stack([rows[word] if word in rows else spelling.encode_words([word])[0] for word in vocabulary])
    expected = characters(torch.from_numpy(rows.astype(np.int64))[None], output_hidden_states=True).hidden_states[0]
    table, _ = loaded(dst)
    difference = (table.get_input_embeddings().weight[1:] - expected[0, :, :16]).abs().max().item()
    print(f"max abs difference of the table: {difference:.2e}")
    assert difference < 2e-6

    # To the table, a word that it lacks is <UNK>, as if those five characters had been written.
    known = [[[word if word in vocabulary else "<UNK>" for word in s] for s in batch] for batch in allennlp_batches]
    errors = [
        np.abs(ours - theirs).max()
        for ours, theirs in zip(
            layers_by_batch(*loaded(dst), allennlp_batches),
            layers_by_batch(characters, spelling, known),
            strict=True,
        )
    ]
    print(f"max abs difference of all layers: {max(errors):.2e}")
    assert max(errors) < 2e-6


@pytest.mark.data
def test_bilm_tf_layers(shared, tmp_path, dst):
    folder = shared / "fixtures" / "bilm_tf_brown"
    assert_refused(folder, dst, r"options\.json, training_options\.json.*--options")
    convert_from_allennlp(folder, dst, options=folder / "options.json")
    model, tokenizer = loaded(dst)
    sentences = json.loads((folder / "sentences.json").read_text())
    batch = [sentence.split() if isinstance(sentence, str) else sentence for sentence in sentences]
    ours = layers_by_batch(model, tokenizer, [batch])[0]
    with np.load(folder / "lm_embeddings.npz") as reference:
        theirs, lengths = reference["lm_embeddings"], reference["lengths"]
    assert [len(words) for words in batch] == [*lengths]
    errors = [np.abs(ours[k, :, 1 : length + 1] - theirs[k, :, :length]).max() for k, length in enumerate(lengths)]
    print("max abs difference:", " ".join(f"{error:.1e}" for error in errors))
    assert max(errors) < 2e-5

    convert_to_allennlp(dst, tmp_path / "back")
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), read_hdf5(folder / "weights.hdf5"))
    assert (tmp_path / "back" / "vocab.txt").read_bytes() == gzip.decompress((folder / "vocab.txt.gz").read_bytes())
    written, given = (json.loads((path / "options.json").read_text()) for path in (tmp_path / "back", folder))
    assert written == {key: given[key] for key in written}
