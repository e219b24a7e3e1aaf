"""Files of legacy models: which are found where, in folders and archives, and what is said of those that are none."""

import gzip
import io
import json
import os
import shutil
import stat
import sys
import tarfile
import zipfile
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
    layers_of,
    random_datasets,
    read_hdf5,
    write_hdf5,
    write_legacy,
    write_options,
)
from numpy_reference import elmo_layers

from modeling_elmo import ElmoModel
from modeling_elmo.allennlp_files import LegacyFiles, read_allennlp
from modeling_elmo.allennlp_format import ConversionWarning
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp
from modeling_elmo.tokenization_elmo import ElmoTokenizer


def test_single_layer_as_the_trainer_dumps_it(tmp_path, dst):
    """bilm-tf's trainer has no MultiRNNCell around a single layer, and so its dump has none in the names."""
    options = changed(lstm__n_layers=1)
    datasets = random_datasets(options)
    short = {name.replace("MultiRNNCell/Cell0/", ""): data for name, data in datasets.items()}
    assert short.keys() != datasets.keys()
    convert_from_allennlp(write_legacy(tmp_path / "legacy", options, short), dst)
    convert_to_allennlp(dst, tmp_path / "back")
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), datasets)


def test_token_embeddings_replace_the_characters(legacy, tmp_path, dst, recwarn):
    table = np.random.default_rng(1).normal(size=(len(VOCABULARY), 5)).astype(np.float32)
    datasets = {name: data for name, data in random_datasets(OPTIONS).items() if name.startswith("RNN")}
    not_read = {name: np.zeros_like(data) for name, data in datasets.items()}
    write_hdf5(tmp_path / "table.hdf5", {"embedding": table, **not_read})
    write_options(legacy, n_tokens_vocab=99)  # of the softmax, which had other words
    convert_from_allennlp(legacy, dst, token_embeddings=tmp_path / "table.hdf5")
    assert not [warning for warning in recwarn if issubclass(warning.category, ConversionWarning)]
    datasets["embedding"] = table
    rows = np.array([0, 3, 4, 2, 6, 1])
    expected = elmo_layers(datasets, {"lstm": OPTIONS["lstm"]}, rows)
    np.testing.assert_allclose(layers_of(ElmoModel.from_pretrained(dst).double(), rows), expected, rtol=0, atol=1e-10)
    tokenizer = ElmoTokenizer.from_pretrained(dst)
    assert tokenizer(["the", "cat", "dog", "sat"], is_split_into_words=True)["input_ids"] == [*(rows + 1)]
    convert_to_allennlp(dst, tmp_path / "back")
    assert_bit_equal(read_hdf5(tmp_path / "back" / "weights.hdf5"), datasets)


def test_bad_token_embeddings(legacy, tmp_path, dst):
    table = tmp_path / "table.hdf5"
    for data, message in [
        ({"0": np.zeros((7, 5), np.float32)}, r"table\.hdf5 has no dataset 'embedding'"),
        ({"embedding": np.zeros(7, np.float32)}, r"'embedding' has shape \(7,\), but should have 2 dimensions"),
        ({"embedding": np.zeros((7, 6), np.float32)}, r"'embedding' has shape \(7, 6\), but .* \(7, 5\)"),
        ({"embedding": np.zeros((9, 5), np.float32)}, r"word table has 9 rows, the vocabulary 7 lines"),
        ({"embedding": np.full((7, 5), np.nan, np.float32)}, r"'embedding' has NaN or infinite values"),
    ]:
        write_hdf5(table, data)
        assert_refused(legacy, dst, message, token_embeddings=table)


def test_token_embeddings_found_in_folder(legacy, tmp_path, dst):
    """They count only where the options have no characters and no others are given."""
    write_hdf5(legacy / "table.hdf5", {"embedding": np.ones((len(VOCABULARY), 5), np.float32)})
    assert convert_from_allennlp(legacy, dst).config.cnn_filters
    write_options(legacy, char_cnn=ABSENT)
    read = convert_from_allennlp(legacy, dst, overwrite=True)
    assert not read.config.cnn_filters and read.files.token_embeddings == legacy / "table.hdf5"
    given = Path(shutil.copy(legacy / "table.hdf5", tmp_path / "given.hdf5"))
    assert convert_from_allennlp(legacy, dst, token_embeddings=given, overwrite=True).files.token_embeddings == given


def test_other_names_and_places(legacy, tmp_path, dst):
    """Files are known by their content; those given win over those found."""
    folder = tmp_path / "renamed"
    folder.mkdir()
    options = (legacy / "options.json").read_text()
    (folder / "elmo_2x7_5_options.json").write_text(options, encoding="utf-8-sig")
    (folder / "vocab.of.others.txt").mkdir()
    shutil.copy(legacy / "weights.hdf5", folder / "model.h5")
    (folder / "meta.json").write_text("{}")
    write_hdf5(folder / "lm_embeddings_0.hdf5", {"0": np.zeros((2, 3, 5), np.float32)})
    (folder / "words.gz").write_bytes(gzip.compress("\n".join([*VOCABULARY, "!!!MAXTERMID"]).encode("utf-8-sig")))
    expected = convert_from_allennlp(legacy, dst).state_dict
    sources: list[dict[str, Any]] = [
        {"src": folder},
        {"src": None, "options": legacy / "options.json", "weights": folder / "model.h5"},
        {"src": str(folder), "vocab": folder / "words.gz"},
    ]
    for source in sources:
        read = convert_from_allennlp(**source, dst=dst, overwrite=True)
        torch.testing.assert_close(read.state_dict, expected, rtol=0, atol=0)
        assert read.vocabulary == (VOCABULARY if "vocab" in source else None)
    (folder / "options_of_the_trainer.json").write_text(json.dumps(changed(char_cnn__n_characters=261)))
    assert_refused(folder, tmp_path / "other", r"elmo_2x7_5_options\.json, options_of_the_trainer\.json.*--options")
    convert_from_allennlp(folder, dst, options=folder / "options_of_the_trainer.json", overwrite=True)


def test_damaged_files(legacy, dst):
    weights = (legacy / "weights.hdf5").read_bytes()
    for content, message in [
        (weights[: len(weights) // 2], r"weights\.hdf5 is truncated or damaged"),
        (weights[:8] + bytes(len(weights) - 8), r"weights\.hdf5 is truncated or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"weights\.hdf5 is no HDF5 file \(it begins with b'version"),
        (b"", r"weights\.hdf5 is no HDF5 file"),
    ]:
        (legacy / "weights.hdf5").write_bytes(content)
        for source in (legacy, None):
            files = {} if source else {"options": legacy / "options.json", "weights": legacy / "weights.hdf5"}
            assert_refused(source, dst, message, **files)
    (legacy / "weights.hdf5").write_bytes(weights)
    for content, message in [
        (b'{"lstm": ', r"options\.json is no valid JSON"),
        (b"\xff\xfe", r"options\.json is no valid JSON"),
        (100_000 * b"[", r"options\.json is no valid JSON"),
        (b"[1]", r"options\.json must hold a JSON object"),
        (b"{}", r"legacy has no options JSON for weights\.hdf5, .* Give it with --options\.$"),
    ]:
        (legacy / "options.json").write_bytes(content)
        assert_refused(legacy, dst, message)
    options, nothing = legacy / "options.json", legacy / "nothing"
    assert_refused(None, dst, "give --options and --weights", options=options)
    assert_refused(None, dst, "give --options and --weights", weights=legacy / "weights.hdf5")
    assert_refused(None, dst, "nothing does not exist", options=options, weights=nothing)


def test_values_of_other_files_are_not_taken(legacy, tmp_path, dst):
    """HDF5 can say that a dataset's bytes lie in another file: a download could so read what its user keeps."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "private").write_bytes(bytes(5 * 4))
    write_hdf5(tmp_path / "other.hdf5", {"bias": np.zeros(5, np.float32)})
    layout = h5py.VirtualLayout((5,), np.float32)
    layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "bias", (5,))
    name = "CNN_proj/b_proj"
    for make in (
        lambda file: file.create_dataset(name, (5,), np.float32, external=[(str(tmp_path / "private"), 0, 20)]),
        lambda file: file.create_virtual_dataset(name, layout),
    ):
        with h5py.File(legacy / "weights.hdf5", "r+") as file:
            assert file[name].shape == (5,)
            del file[name]
            make(file)
        assert_refused(legacy, dst, "'CNN_proj/b_proj' takes its values from other files")


@pytest.mark.parametrize("options", [{}, {"chunks": (2,)}, {"chunks": (2,), "compression": "gzip"}], ids=str)
def test_values_that_were_never_written_are_no_zeros(legacy, dst, options):
    """Their writer died before; HDF5 has zeros for them."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(legacy / "weights.hdf5", "r+") as file:
        del file["CNN_proj/b_proj"]
        biases = file.create_dataset("CNN_proj/b_proj", (5,), np.float32, **options)
        if options:
            biases[:4] = 1.0
    assert_refused(legacy, dst, "^dataset 'CNN_proj/b_proj' lacks values that were never written")
    with h5py.File(legacy / "weights.hdf5", "r+") as file:
        file["CNN_proj/b_proj"][4:] = 1.0
        file.create_dataset("none", (0, 5), np.float32)  # has all its values
    with pytest.warns(ConversionWarning, match="left out: none"):
        convert_from_allennlp(legacy, dst)


@pytest.mark.parametrize("name", ["nothing", b"\xff"])
def test_datasets_without_values_or_a_name(legacy, dst, name):
    h5py = pytest.importorskip("h5py")
    with h5py.File(legacy / "weights.hdf5", "r+") as file:
        file[name] = h5py.Empty("f4") if name == "nothing" else np.zeros(3, np.float32)
    assert_refused(legacy, dst, r"^\S+weights\.hdf5: the dataset b?'(nothing|\\xff)' has no name or no values")


def test_a_small_file_is_no_large_model(legacy, dst):
    h5py = pytest.importorskip("h5py")
    with h5py.File(legacy / "weights.hdf5", "r+") as file:
        file.create_dataset("char_embed_2", data=np.zeros(2**23, np.float32), compression="gzip")
    assert_refused(legacy, dst, r"weights\.hdf5 unpacks to 33,\d{3},\d{3} bytes, more than weights can")


def test_numbers_of_a_type_that_numpy_lacks(legacy, dst):
    h5py = pytest.importorskip("h5py")
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_fields(63, 47, 16, 0, 47)  # the exponent has 16 bits
    with h5py.File(legacy / "weights.hdf5", "r+") as file:
        del file["CNN_proj/b_proj"]
        h5py.h5d.create(file["CNN_proj"].id, b"b_proj", kind, h5py.h5s.create_simple((5,)))
    assert_refused(legacy, dst, r"dataset 'CNN_proj/b_proj' cannot be read \(.*precision.*\)")


def test_of_a_word_on_several_lines_the_last_one_counts(legacy, dst):
    """And white space around a word is none of it: so bilm-tf read its vocabularies."""
    (legacy / "vocab.txt").write_text("<S>\n</S>\n<UNK>\nthe\nthe \ncat\t\n\u00a0dog\n", encoding="utf-8")
    with pytest.warns(ConversionWarning, match="1 words have a later line, too, .* such as 'the'"):
        convert_from_allennlp(legacy, dst)
    tokenizer = ElmoTokenizer.from_pretrained(dst)
    assert tokenizer.lm_vocab_size == 7
    assert tokenizer.lm_ids(["<UNK>", "the", "cat", "dog"]).tolist() == [2, 4, 5, 6]


def test_bad_vocabularies(legacy, dst, monkeypatch):
    for content, message in [
        (b"the\ncat\n", r"missing: <S> </S> <UNK>.*giving only --options and --weights"),
        (b"\xff\n", r"vocab\.txt cannot be read as a vocabulary in UTF-8"),
        (b"\x1f\x8b\x00", r"vocab\.txt cannot be read as a vocabulary"),
        (gzip.compress(b"<S>", mtime=0)[:-4], r"vocab\.txt cannot be read as a vocabulary"),
        (gzip.compress(b"<S>", mtime=0)[:12] + b"\xff" * 20, r"vocab\.txt cannot be read as a vocabulary"),
    ]:
        (legacy / "vocab.txt").write_bytes(content)
        write_options(legacy, n_tokens_vocab=ABSENT)
        assert_refused(legacy, dst, message)
    for content in (bytes(50), gzip.compress(bytes(50))):
        (legacy / "vocab.txt").write_bytes(content)
        monkeypatch.setattr("modeling_elmo.allennlp_files.MAX_VOCABULARY", 49)
        assert_refused(legacy, dst, r"vocab\.txt has more than 49 bytes of text, too many for a vocabulary")
        monkeypatch.setattr("modeling_elmo.allennlp_files.MAX_VOCABULARY", 50)
        assert_refused(legacy, dst, "missing: <S> </S> <UNK>")
        monkeypatch.undo()
    words = changed(char_cnn=ABSENT)
    write_legacy(legacy, words | {"n_tokens_vocab": 9}, random_datasets(words))
    assert_refused(legacy, dst, r"word table has 7 rows, the vocabulary 7 lines .* n_tokens_vocab=9")
    write_legacy(legacy, words, vocabulary=VOCABULARY[:-1])
    assert_refused(legacy, dst, r"word table has 7 rows, the vocabulary 6 lines .* n_tokens_vocab=7")
    (legacy / "vocab.txt").unlink()
    assert_refused(legacy, dst, r"needs their vocabulary: give it with --vocab")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"encoder.pkl": b"", "char.dic": b"", "config.json": b"{}"}, r"ELMoForManyLangs.*encoder\.pkl"),
        ({"encoder.pkl": b"", "token_embedder.pkl": b""}, r"ELMoForManyLangs model: give .* and no other files"),
        ({"options.json": b'{"lstm": {}}', "checkpoint": b""}, r"checkpoint that is not whole \(checkpoint\).*\.index"),
        ({"model.ckpt-10.meta": b""}, r"checkpoint that is not whole \(model\.ckpt-10\.meta\)"),
        ({"model.ckpt-9.data-00000-of-00001": b"x"}, r"checkpoint that is not whole"),
        ({"saved_model.pb": b"", "tfhub_module.pb": b""}, r"SavedModel.*TF-Hub"),
        ({"config.json": b'{"model_type": "elmo"}', "model.safetensors": b""}, r"transformers folder.*--to-allennlp"),
        ({"tokenizer_config.json": b"{}"}, r"transformers folder"),
        ({"config.json": b"{}", "notes.txt": b""}, r"no weights of a known kind, only config\.json, notes\.txt$"),
        ({"weights.th": b""}, r"pickled weights of no known kind \(weights\.th\)"),
        ({"pytorch_model.bin": b""}, r"pickled weights of no known kind \(pytorch_model\.bin\): AllenNLP's are"),
        ({"cc.de.300.bin": b"\xba\x16\x4f\x2f\x0c"}, r"fastText \(cc\.de\.300\.bin\).*no ELMo"),
        ({"wiki.de.vec": b"2 3\n"}, r"fastText \(wiki\.de\.vec\)"),
        ({"notes.txt": b""}, r"holds no weights of a known kind, only notes\.txt$"),
        ({}, r"source is empty$"),
    ],
)
def test_folders_and_files_of_other_kinds(files, message, tmp_path, dst):
    """Each in a folder and, packed, in an archive; a single file alone, too, where its name or content tells."""
    (tmp_path / "source").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / name).write_bytes(content)
    assert_refused(tmp_path / "source", dst, message)
    if files:
        assert_refused(zip_of(tmp_path / "source.zip", files), dst, rf"source\.zip .*{message}")
    if len(files) == 1 and "notes.txt" not in files:
        assert_refused(tmp_path / "source" / next(iter(files)), dst, message)


def test_one_direction_that_reads_words(legacy, dst):
    write_hdf5(legacy / "weights.hdf5", {"embedding": np.ones((7, 5)), "RNN/LSTMCell/W_0": np.ones((10, 28))})
    write_options(legacy, char_cnn=ABSENT)
    assert_refused(legacy, dst, "one direction only")


def test_sources_of_other_kinds(legacy, tmp_path, dst):
    assert_refused(tmp_path / "nothing", dst, "does not exist")
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    assert_refused(tmp_path / "pipe", dst, "pipe is neither a folder nor an archive")
    assert_refused(legacy / "weights.hdf5", dst, r"neither a folder nor an archive: .*--options and --weights")


def test_h5py_is_missing(legacy, dst, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert_refused(legacy, dst, r"^HDF5 files need h5py \(.*h5py halted.*\): pip install 'modeling-elmo\[convert\]'$")


def zip_of(path: Path, members: dict[str, bytes | Path]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return path


@pytest.mark.parametrize("folder", ["", "123/", "./a/b/"])
def test_nlpl_archive(legacy, folder, tmp_path, dst):
    names = {"model.hdf5": "weights.hdf5", "options.json": "options.json", "vocab.txt": "vocab.txt"}
    members: dict[str, Any] = {folder + name: legacy / source for name, source in names.items()}
    members |= {
        folder + "meta.json": b'{"id": 123, "corpus": "x"}',
        folder + "README": b"text",
        "other/vocab.txt": b"x",
    }
    read = convert_from_allennlp(zip_of(tmp_path / "123.zip", members), dst)
    expected = read_allennlp(LegacyFiles(legacy / "options.json", legacy / "weights.hdf5"))
    torch.testing.assert_close(read.state_dict, expected.state_dict, rtol=0, atol=0)
    assert ElmoTokenizer.from_pretrained(dst).lm_vocab == VOCABULARY


@pytest.mark.parametrize("name", ["../evil.json", "a/../../evil.json", "/evil.json", "C:\\evil.json", "..\\evil.json"])
def test_archive_with_members_outside(legacy, name, tmp_path, dst):
    archive = zip_of(tmp_path / "x.zip", {"model.hdf5": legacy / "weights.hdf5", name: b"{}"})
    assert_refused(archive, dst, "points outside")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["legacy", "x.zip"]


def test_archive_with_a_link(legacy, tmp_path, dst):
    link = zipfile.ZipInfo("options.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(legacy / "weights.hdf5", "model.hdf5")
        archive.writestr(link, "/etc/passwd")
    assert_refused(tmp_path / "x.zip", dst, r"options\.json.*link")


def test_archive_with_headers_that_no_disk_can_hold(legacy, tmp_path, dst):
    """Times of change beside all calendars are passed over, and names with NUL refused."""
    for name, value, message in (("mtime", "1e300", "no options JSON"), ("path", "a\0b", "points outside")):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            member = tarfile.TarInfo("model.hdf5")
            member.size, member.pax_headers = (legacy / "weights.hdf5").stat().st_size, {name: value}
            archive.addfile(member, io.BytesIO((legacy / "weights.hdf5").read_bytes()))
        assert_refused(tmp_path / "x.tar", dst, message)


def test_bad_archives(legacy, tmp_path, dst):
    weights = legacy / "weights.hdf5"
    two = zip_of(tmp_path / "two.zip", {"a/model.hdf5": weights, "b/model.hdf5": weights})
    assert_refused(two, dst, r"one folder, not in 2: a/model\.hdf5, b/model\.hdf5")
    # The message names the archive and not the folder that it was unpacked to.
    assert_refused(zip_of(tmp_path / "alone.zip", {"model.hdf5": weights}), dst, r"alone\.zip.* has no options JSON")
    members = {"model.hdf5": weights, "options.json": legacy / "options.json", "vocab.txt": b"the\nthe\n"}
    with pytest.warns(ConversionWarning, match=r"^vocab\.txt: 1 words have a later line"):
        assert_refused(zip_of(tmp_path / "words.zip", members), dst, r"words\.zip/vocab\.txt is no vocabulary")
    damaged = bytearray(zip_of(tmp_path / "x.zip", {"model.hdf5": weights, "options.json": b"{}"}).read_bytes())
    damaged[200:300] = bytes(100)
    (tmp_path / "x.zip").write_bytes(damaged)
    assert_refused(tmp_path / "x.zip", dst, r"x\.zip.*damaged")
    locked = zip_of(tmp_path / "x.zip", {"model.hdf5": weights, "options.json": b"{}"}).read_bytes()
    locked = locked.replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1")  # the flag of encryption
    (tmp_path / "x.zip").write_bytes(locked.replace(b"PK\3\4\x14\0\0", b"PK\3\4\x14\0\1"))
    assert_refused(tmp_path / "x.zip", dst, r"x\.zip.*encrypted.*password")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")  # a zip archive itself
    assert_refused(tmp_path / "pytorch_model.bin", dst, r"pytorch_model\.bin holds pickled weights of no known kind")
