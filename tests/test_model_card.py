"""The generated README.md: its metadata as the Hub reads it, what it tells, and that its code runs as written."""

import re

import pytest
from elsewhere import run_elsewhere
from finetuning_runs import save_pretrained
from huggingface_hub import ModelCard

from modeling_elmo import (
    ElmoConfig,
    ElmoForPreTraining,
    ElmoForQuestionAnswering,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)
from modeling_elmo.arguments import PretrainingArguments
from modeling_elmo.model_card import converted_card, count_parameters, finetuned_card, model_card, table
from modeling_elmo.output_folder import source_of
from modeling_elmo.tokenization_elmo import ElmoTokenizer

SIDE = {"sentences": 21220, "tokens": 339758, "types": 15777, "unknown_rate": 0.0214, "truncated_rate": 0.00012}
METRICS = {
    "eval_perplexity": 61.237,
    "eval_forward_perplexity": 60.5,
    "eval_backward_perplexity": 62.0,
    "eval_loss": 4.1,
}


def make_card(config, **changes):
    arguments = {
        "repo_name": "my-elmo",
        "parameters": {"word encoder": 300000, "LSTMs": 900000, "softmax": 600000},
        "data": {
            "source": ["/home/me/news.txt"],
            "vocabulary": 8497,
            "train": SIDE,
            "validation": {**SIDE, "types": 7},
        },
        "recipe": {"output_dir": "/home/me/out", "train_file": ["/home/me/news.txt"], "optim": "adamw", "steps": 1000},
        "metrics": METRICS,
    }
    return model_card(config, **{**arguments, **changes})


def test_metadata_as_the_hub_reads_it(tiny_config):
    data = ModelCard(make_card(tiny_config, license="apache-2.0", language="en")).data
    assert (data.library_name, data.license, data.language) == ("transformers", "apache-2.0", "en")
    assert {"elmo", "character-level", "word-embeddings", "lstm"} <= set(data.tags)
    assert data.model_name == "my-elmo"
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("perplexity", 61.237),
        ("perplexity", 60.5),
        ("perplexity", 62.0),
    ]
    assert data.eval_results[0].dataset_name == "news.txt (held out)"
    assert data.eval_results[0].dataset_split == "validation" and data.metrics == ["perplexity"]


def make_finetuned_card(config, **changes):
    arguments = {
        "repo_name": "me/tuned",
        "parameters": {"word encoder": 300000, "LSTMs": 900000, "head": 5000},
        "pipeline_tag": "token-classification",
        "base_model": "me/elmo",
        "data_name": "conll2003",
        "recipe": {"head": "linear", "learning_rate": 0.001},
        "scores": {"validation": {"f1": 0.91237, "loss": 1.5}, "test": {"f1": 0.875}},
    }
    return finetuned_card(config, **{**arguments, **changes})


def test_card_of_a_fine_tuned_model(tiny_config, tmp_path, monkeypatch):
    card = ModelCard(make_finetuned_card(tiny_config))
    assert (card.data.pipeline_tag, card.data.base_model) == ("token-classification", "me/elmo")
    results = [(one.dataset_split, one.metric_type, one.metric_value) for one in card.data.eval_results]
    assert results == [("validation", "f1", 0.9124), ("validation", "loss", 1.5), ("test", "f1", 0.875)]
    assert "fine-tuned from [me/elmo](https://huggingface.co/me/elmo) on conll2003 by" in card.text
    assert "its weights are in `layer_weights.json`" in card.text and "fine-tuned on, including" in card.text
    assert "che-etal-2018" not in card.text
    tiny_config.char_padding_id += 1  # characters by a dictionary, as those of ELMoForManyLangs
    assert "che-etal-2018" in make_finetuned_card(tiny_config)
    tiny_config.char_padding_id -= 1
    assert "| test | f1 | 0.8750 |" in card.text and "| `learning_rate` | `0.001` |" in card.text
    folder = tmp_path / "base"
    folder.mkdir()
    told = make_finetuned_card(tiny_config, base_model=str(folder), scores={})
    assert "base_model" not in told and str(tmp_path) not in told and "fine-tuned from `base` on" in told
    assert "Nothing was scored." in told
    monkeypatch.chdir(folder)
    assert make_finetuned_card(tiny_config, base_model=".", scores={}) == told


def test_metadata_leaves_out_what_is_not_known(tiny_config):
    text = make_card(tiny_config).split("---")[1]
    assert "license" not in text and "language:" not in text and "datasets" not in text


def test_paths_of_the_machine_are_not_told(tiny_config, tmp_path):
    (tmp_path / "base").mkdir()
    recipe = {"model_name_or_path": str(tmp_path / "base"), "tokenizer_name": "me/tok", "data_cache_dir": "/home/me/c"}
    recipe |= {"overwrite_output_dir": True, "resume_from_checkpoint": "/home/me/run", "dataset_name": "/home/me/text"}
    recipe |= {"language": "en", "license": "mit", "push_to_hub": True, "hub_private_repo": True}
    text = make_card(tiny_config, recipe={**recipe, "train_file": ["/home/me/private/*.txt"]})
    assert str(tmp_path) not in text and "/home/me" not in text
    assert re.findall(r"(?m)^\| `(.*?)` \|", text) == ["model_name_or_path", "tokenizer_name", "train_file"]
    assert "| `model_name_or_path` | `base` |" in text and "| `tokenizer_name` | `me/tok` |" in text
    assert "| `train_file` | `*.txt` |" in text


def test_a_data_set_of_the_hub_is_named_and_a_folder_is_not(tmp_path):
    assert source_of(PretrainingArguments("out", dataset_name="Salesforce/wikitext")) == "Salesforce/wikitext"
    assert source_of(PretrainingArguments("out", dataset_name=str(tmp_path))) == [str(tmp_path)]
    assert source_of(PretrainingArguments("out", train_file=["a.txt"])) == ["a.txt"]


def test_data_set_is_named(tiny_config):
    data = {"source": "Salesforce/wikitext", "vocabulary": 10, "train": SIDE, "validation": SIDE}
    card = ModelCard(make_card(tiny_config, data=data))
    assert card.data.datasets == ["Salesforce/wikitext"]
    assert card.data.eval_results[0].dataset_type == "Salesforce/wikitext"


def test_what_the_card_tells(tiny_config):
    card = make_card(tiny_config)
    for row in (
        "| both directions | 61.24 |",
        "| forward | 60.50 |",
        "| backward | 62.00 |",
        "| convolutions | 20 filters: 4 of width 1, 8 of width 2, 8 of width 3; relu |",
        "| outputs | 3 layers of 12 |",
        "| parameters: softmax | 600,000 |",
        "| parameters: all | 1,800,000 |",
        "| tokens | 339,758 | 339,758 |",
        "| different words | 15,777 | 7 |",
        "| words in the vocabulary | 8,497 |  |",
        "| unknown words (share of tokens) | 2.14% | 2.14% |",
        "| words cut because of their length (share of tokens) | 0.01% | 0.01% |",
        "| `optim` | `adamw` |",
        "| `train_file` | `news.txt` |",
    ):
        assert row in card, row
    assert "N18-1202" in card
    assert "/home/me" not in card, "paths of the machine that trained"
    tables = re.findall(r"(?:^\|.*\|\n)+", card, re.MULTILINE)
    assert len(tables) == 4
    for rows in tables:
        assert len({line.count("|") for line in rows.splitlines()}) == 1


def test_the_architecture_is_that_of_the_configuration(tiny_config):
    tiny_config.lstm_dim, tiny_config.proj_clip = 1200, 2.5
    card = make_card(tiny_config)
    for row in (
        "| characters | UTF-8 bytes, at most 48 a word, as vectors of 4 |",
        "| highway layers | 1 |",
        "| word vectors | 6 wide |",
        "| 2 layers in each direction, 1,200 cells projected to 6; cells clipped to ±3, outputs clipped to ±2.5 |",
        "| softmax | 40 words, shared by both directions |",
    ):
        assert row in card, row
    assert "print(len(output.hidden_states))  # 3 layers" in card
    tiny_config.vocab_size, tiny_config.char_padding_id = 3001, 7
    tiny_config.word_vocab_size, tiny_config.word_embedding_dim = 5001, 5
    card = make_card(tiny_config, parameters={})
    assert "| characters | 3,000 known characters, at most 48 a word, as vectors of 4 |" in card
    assert "| beside the filters | vectors of 5 for 5,000 words |" in card and "| softmax |" not in card


def test_parameters_are_counted_by_part(tiny_config):
    model = ElmoForPreTraining(tiny_config)
    counts = count_parameters(model.state_dict())
    assert counts["softmax"] == 40 * 6 + 40
    assert counts["LSTMs"] == sum(parameter.numel() for parameter in model.elmo.lstm.parameters())
    del counts["softmax"]
    assert count_parameters(model.elmo.state_dict()) == counts and len(counts) == 2


def test_the_code_names_the_model_as_it_is_found():
    name_of = re.compile(r'name = "(.*)"  # (.*)\n')
    config = ElmoConfig(lm_vocab_size=40)
    assert name_of.findall(make_card(config)) == [("my-elmo", "this folder, or the id of its copy on the Hub")]
    card = make_card(config, repo_name="me/my-elmo")
    assert name_of.findall(card) == [("me/my-elmo", "its id on the Hub")]
    assert ModelCard(card).data.model_name == "my-elmo"


def test_model_without_characters_or_clipping():
    config = ElmoConfig(
        cnn_filters=[], word_vocab_size=5000, lm_vocab_size=5000, cell_clip=None, proj_clip=None, lstm_dim=8
    )
    card = make_card(config)
    assert "| words | a table of 5,000 rows |" in card
    assert "convolutions" not in card and "clipped" not in card


def test_table_escapes_and_fills_up():
    assert table(["a", "b"], [("x|y",)]) == "| a | b |\n| --- | --- |\n| x\\|y |  |"


def converted(config, folder) -> str:
    """The card of a model that was converted from one file."""
    (folder / "weights.hdf5").write_bytes(b"abc")
    return converted_card(
        config,
        repo_name="my-elmo",
        parameters={"word encoder": 3000},
        source_format="bilm-tf / AllenNLP",
        source_files=[folder / "weights.hdf5"],
    )


def test_card_of_a_converted_model(tiny_config, tmp_path):
    tiny_config.lm_vocab_size = None
    card = converted(tiny_config, tmp_path)
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "feature-extraction") and "elmo" in data.tags
    assert data.license is None and data.language is None and data.eval_results is None
    # The digest of FIPS 180-2, appendix B.1.
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert "Files of bilm-tf / AllenNLP:\n\n| file | bytes | SHA-256 |\n" in card
    assert f"| `weights.hdf5` | 3 | `{digest}` |" in card
    assert "N18-1202" in card and "K18-2005" not in card and 'revision="<commit>"' in card
    assert "softmax" not in card and "PreTraining" not in card
    tiny_config.char_padding_id = 7  # words are spelt by a dictionary, as in ELMoForManyLangs
    assert "K18-2005" in converted(tiny_config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrained", "converted"])
def test_code_runs_as_written(tmp_path, tiny_config, kind):
    sentences = ["The bank lent them money .", "It does n't rain ."]
    tokenizer = ElmoTokenizer().train_new_from_iterator(sentences)
    tiny_config.lm_vocab_size = tokenizer.lm_vocab_size
    model = (ElmoForPreTraining if kind == "pretrained" else ElmoModel)(tiny_config)
    save_pretrained(model, tmp_path / "my-elmo", tokenizer)
    card = make_card(tiny_config) if kind == "pretrained" else converted(tiny_config, tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shape, layers, *perplexity = run_elsewhere(code, tmp_path).splitlines()
    assert shape == "torch.Size([2, 11, 12])"
    assert layers == "3"
    assert kind == "converted" or 1 < float(*perplexity) < 40


@pytest.mark.slow
def test_code_of_a_fine_tuned_model_runs_as_written(tmp_path, tiny_config):
    heads = {
        "text-classification": (ElmoForSequenceClassification, r"\[\{'label': 'LABEL_[01]', 'score': 0"),
        "token-classification": (ElmoForTokenClassification, r"\[\{'entity_group': 'LABEL_[01]'"),
        "question-answering": (ElmoForQuestionAnswering, r"\{'score': .*'answer': "),
    }
    codes = []
    for tag, (head, _) in heads.items():
        save_pretrained(head(tiny_config), tmp_path / tag)
        card = make_finetuned_card(tiny_config, pipeline_tag=tag, repo_name=tag)
        codes += re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(codes) == 3
    told = run_elsewhere("\n".join(codes), tmp_path).splitlines()
    for line, (_, expected) in zip(told, heads.values(), strict=True):
        assert re.match(expected, line), line


def test_a_converted_card_tells_what_came_along(tiny_config):
    tiny_config.lm_vocab_size = 3
    facts: dict = {
        "repo_name": "x",
        "parameters": {"softmax": 3},
        "source_format": "TF-Hub",
        "source_files": [],
    }
    card = converted_card(tiny_config, **facts)
    assert "are equal at first" in card and "AutoModelForPreTraining" in card and "reads words as characters" in card
    card = converted_card(tiny_config, **facts, has_learnt_mix=True, has_vocabulary=False)
    assert "are those that were learned" in card and "AutoModelForPreTraining" not in card
    table = ElmoConfig(cnn_filters=[], word_vocab_size=9, lm_vocab_size=3, lstm_dim=4, projection_dim=2)
    assert "looks words up in a table" in converted_card(table, **facts)
