"""ELMo modules of TF-Hub converted: what TensorFlow wrote and computed, other scopes and mixes, and what is refused."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from legacy_files import (
    OPTIONS,
    VOCABULARY,
    assert_refused,
    changed,
    random_datasets,
    write_checkpoint,
    write_legacy,
    write_options,
)

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.allennlp_format import ConversionWarning
from modeling_elmo.convert import convert_from_allennlp, convert_to_allennlp, main, summary

WRITTEN = Path(__file__).parent / "tf_hub_module"  # by TensorFlow and its Hub: make.py
USUAL = changed(lstm__cell_clip=3.0, lstm__proj_clip=3.0)
CELL_NAMES = {"/LSTMCell/W_0": "kernel", "/LSTMCell/B": "bias", "/LSTMCell/W_P_0": "projection/kernel"}


def variables_of(datasets: Mapping[str, np.ndarray], scope: str = "") -> dict[str, np.ndarray]:
    """The same weights under the names of `BidirectionalLanguageModel`, with a row for the mask."""
    variables = {}
    for name, data in datasets.items():
        for theirs, ours in CELL_NAMES.items():
            name = name.replace(theirs, f"/rnn/lstm_cell/{ours}")
        variables[f"{scope}bilm/{name}"] = np.pad(data, ((1, 0), (0, 0))) if name == "char_embed" else data
    return variables


def mix(weights: list[float], gamma: float | list[float]) -> dict[str, np.ndarray]:
    """As google/elmo names it."""
    return {
        "aggregation/weights": np.array(weights, np.float32),
        "aggregation/scaling": np.array(gamma, np.float32),
    }


def write_module(folder: Path, variables: Mapping[str, np.ndarray]) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"")
    write_checkpoint(folder / "variables" / "variables", variables)
    return folder


@pytest.mark.parametrize("packed", [True, False])
def test_what_tensorflow_wrote(packed, tmp_path, dst, capsys):
    """All outputs of the module are those that TensorFlow computed, in one batch."""
    source = WRITTEN / "module.tar.gz"
    if not packed:
        with tarfile.open(source) as archive:
            archive.extractall(tmp_path / "module", filter="data")
        source = tmp_path / "module"
    assert main([str(source), str(dst)]) == 0
    told = capsys.readouterr()
    assert "no options: taken are words of 50 characters, relu, clips at 3 and skip" in told.err
    assert "(a module of TF-Hub: variables.index)" in told.out
    assert "Files of a module of TF-Hub:" in (dst / "README.md").read_text()
    sentences, expected = json.loads((WRITTEN / "expected.json").read_text()).values()
    model, tokenizer = ElmoModel.from_pretrained(dst).eval(), ElmoTokenizer.from_pretrained(dst)
    batch = tokenizer(sentences, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    words, first, second = output.hidden_states
    found = {
        "word_emb": words[..., : model.config.projection_dim],
        "lstm_outputs1": first,
        "lstm_outputs2": second,
        "elmo": output.scalar_mix,
    }
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        for number, sentence in enumerate(sentences):
            rows = tensor[number, 1 : len(sentence) + 1].numpy()
            np.testing.assert_allclose(rows, expected[name][number], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("scope", ["", "module/"])
def test_weights_are_those_of_the_hdf5_file(scope, tmp_path, dst):
    """Of a module and of a task model's checkpoint; what is no weight of the ELMo is left out."""
    datasets = random_datasets(OPTIONS)
    variables = variables_of(datasets, scope) | {f"{scope}bilm/Variable": np.zeros((8, 5), np.float32)}
    variables |= {f"{scope}bilm/Variable_1": np.zeros((8, 4), np.float32)}
    variables |= {f"{scope}elmo_output_ELMo_{name}": data for name, data in (("W", [0, 1, 2]), ("gamma", [0.5]))}
    variables = {name: np.asarray(data, np.float32) for name, data in variables.items()}
    if scope:
        variables |= {f"{name}/Adam": data for name, data in variables.items()} | {
            "dense/kernel": np.ones(3, np.float32)
        }
        write_checkpoint(tmp_path / "model.ckpt-10", variables)
        source = tmp_path / "model.ckpt-10"
    else:
        source = write_module(tmp_path / "module", variables)
    with pytest.warns(ConversionWarning) as warned:
        read = convert_from_allennlp(source, dst)
    assert len(warned) == 1  # of the options, and of no variable
    np.testing.assert_array_equal(read.state_dict.pop("scalar_mix.weights"), [0, 1, 2])
    assert read.state_dict.pop("scalar_mix.gamma") == 0.5
    expected = convert_from_allennlp(write_legacy(tmp_path / "legacy", USUAL), tmp_path / "expected")
    torch.testing.assert_close(read.state_dict, expected.state_dict, rtol=0, atol=0)
    for key in ("cell_clip", "proj_clip", "cnn_activation", "max_word_length", "use_skip_connections", "cnn_filters"):
        assert getattr(read.config, key) == getattr(expected.config, key), key
    convert_to_allennlp(dst, tmp_path / "back")  # it has everything that the other format needs


def test_a_factor_before_even_weights_was_learnt_too(tmp_path, dst):
    module = write_module(tmp_path / "module", variables_of(random_datasets(OPTIONS)) | mix([0, 0, 0], 0.5))
    with pytest.warns(ConversionWarning):
        read = convert_from_allennlp(module, dst)
    assert "that were learned where these weights come from" in (dst / "README.md").read_text()
    assert "the learnt scalar mix among them" in summary(read, str(module), str(dst), to_allennlp=False)
    assert read.state_dict["scalar_mix.gamma"] == 0.5 and ElmoModel.from_pretrained(dst).scalar_mix.gamma == 0.5


def test_a_mix_that_was_not_trained_is_left_out(tmp_path, dst):
    module = write_module(tmp_path / "module", variables_of(random_datasets(OPTIONS)) | mix([0, 0, 0], 1))
    with pytest.warns(ConversionWarning):
        read = convert_from_allennlp(module, dst)
    assert not any("scalar_mix" in name for name in read.state_dict)
    assert "are equal at first" in (dst / "README.md").read_text()


def test_options_and_vocabulary_win(tmp_path, dst, recwarn):
    """Given, they are believed as those of an HDF5 file are."""
    module = write_module(tmp_path / "module", variables_of(random_datasets(OPTIONS)))
    write_options(tmp_path, char_cnn__activation="tanh", lstm__cell_clip=1.5)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY), encoding="utf-8")
    read = convert_from_allennlp(module, dst, options=tmp_path / "options.json", vocab=tmp_path / "vocab.txt")
    assert (read.config.cnn_activation, read.config.cell_clip) == ("tanh", 1.5)
    assert ElmoTokenizer.from_pretrained(dst).lm_vocab == VOCABULARY
    assert not [warning for warning in recwarn if issubclass(warning.category, ConversionWarning)]
    write_options(tmp_path, n_tokens_vocab=9)
    options = tmp_path / "options.json"
    with pytest.warns(ConversionWarning, match="n_tokens_vocab is 9, but the vocabulary has 7 lines"):
        read = convert_from_allennlp(module, dst, options=options, vocab=tmp_path / "vocab.txt", overwrite=True)
    assert read.config.lm_vocab_size == 7
    write_options(tmp_path, lstm__n_layers=3)
    assert_refused(module, tmp_path / "other", r"lstm\.n_layers is 3, but the tensors say 2", options=options)


@pytest.mark.filterwarnings("ignore::modeling_elmo.allennlp_format.ConversionWarning")
def test_modules_that_are_refused(tmp_path, dst):
    variables = variables_of(random_datasets(OPTIONS))
    modules: dict[str, tuple[dict[str, np.ndarray], str]] = {
        "bert": ({"bert/embeddings": np.ones((3, 2), np.float32)}, r"no ELMo: it lacks bilm/char_embed.* bert/embed"),
        "two": (variables | variables_of(random_datasets(OPTIONS), "other/"), r"several ELMos.*: , other/"),
        "mix": (variables | mix([0, 1], 1), r"aggregation/weights has shape \(2,\) and .* but there are 3 layers"),
        "factors": (variables | mix([0, 1, 2], [1, 2]), r"aggregation/scaling \(2,\), but there are .* one factor"),
        "characters": (variables | {"bilm/char_embed": np.ones((300, 4), np.float32)}, r"'char_embed' has 299 rows"),
        "part": ({n: v for n, v in variables.items() if "RNN_1" not in n}, r"one direction only"),
    }
    for name, (content, message) in modules.items():
        assert_refused(write_module(tmp_path / name, content), dst, message)
    module = write_module(tmp_path / "module", variables)
    assert_refused(module, dst, r"token embeddings go with HDF5", token_embeddings=module / "saved_model.pb")
    data = module / "variables" / "variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-100])
    assert_refused(module, dst, r"is cut off")
    (module / "variables" / "variables.index").write_bytes(b"nothing")
    assert_refused(module, dst, r"no ELMo.*no variables that can be read")
    (module / "variables" / "variables.index").unlink()
    assert_refused(module, dst, r"TF-Hub, that is not whole: it needs")
