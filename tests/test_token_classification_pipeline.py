"""The pipeline for tags: from folders and model objects, with everything that transformers' own one offers."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY
from finetuning_runs import save_pretrained
from transformers import TokenClassificationPipeline, pipeline
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo import ElmoConfig, ElmoForTokenClassification, ElmoTokenizer
from modeling_elmo.token_classification_pipeline import ElmoTokenClassificationPipeline

TAGS = {"Anna": "B-PER", "Bo": "I-PER", "lives": "O", "in": "O", "New": "B-LOC", "York": "I-LOC", ".": "O", "<S>": "O"}
BIOES = {**TAGS, "Bo": "E-PER", "York": "E-LOC", "lives": "S-ACT"}
TEXT = "Anna Bo lives in New York."
ENTITIES = [("PER", "Anna Bo", 0, 7), ("LOC", "New York", 17, 25)]


def make_tagger(tags: dict[str, str], word_inputs: bool = False):
    """A model that knows the tag of each of these words, and the tokenizer; for it words have no context."""
    labels = sorted(set(tags.values()))
    options = {"projection_dim": 16, "head": "linear", "feature_layers": [0]}
    if word_inputs:
        options |= {"cnn_filters": [], "word_vocab_size": 20}
    config = ElmoConfig(**{**TINY, **options}, id2label=dict(enumerate(labels)))
    model = ElmoForTokenClassification(config).eval()
    tokenizer = ElmoTokenizer(vocab=["<S>", "</S>", "<UNK>", *list(tags)[:-1]], word_inputs=word_inputs)
    words = list(tags)
    inputs = tokenizer([words], is_split_into_words=True, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        torch.nn.init.normal_(model.elmo.get_input_embeddings().weight)
        vectors = model.features(model.bilm_layers(**inputs)[0])[0]  # (words, hidden_size)
        scores = torch.tensor([[9.0 * (tags[word] == label) for label in labels] for word in words])
        model.classifier.weight.copy_(torch.linalg.lstsq(vectors, scores, driver="gelsd").solution.T)
    return model, tokenizer


def make_pipeline(tags: dict[str, str] = TAGS, **options) -> ElmoTokenClassificationPipeline:
    model, tokenizer = make_tagger(tags, options.pop("word_inputs", False))
    return pipeline("ner", model=model, tokenizer=tokenizer, pipeline_class=ElmoTokenClassificationPipeline, **options)


def entities(results: list[dict]) -> list[tuple]:
    return [(one["entity_group"], one["word"], one["start"], one["end"]) for one in results]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model, tokenizer = make_tagger(TAGS)
    return save_pretrained(model, tmp_path_factory.mktemp("saved"), tokenizer)


# ---- ways to it


@pytest.mark.parametrize("task", ["token-classification", "ner"])
def test_from_a_folder(saved, task, tmp_path):
    with CaptureLogger(logging.get_logger("transformers")) as captured:
        ner = pipeline(task, model=str(saved), trust_remote_code=True)
    assert type(ner).__name__ == "ElmoTokenClassificationPipeline" and captured.out == ""
    assert type(ner).__module__.startswith("transformers_modules.")
    assert entities(ner(TEXT, aggregation_strategy="simple")) == ENTITIES
    ner.save_pretrained(tmp_path / "again")
    again = pipeline(task, str(tmp_path / "again"), trust_remote_code=True)
    assert entities(again(TEXT, aggregation_strategy="simple")) == ENTITIES


def test_the_folder_names_the_pipelines(saved):
    custom = json.loads((saved / "config.json").read_text())["custom_pipelines"]
    for task in ("token-classification", "ner"):
        file, name = custom[task]["impl"].split(".")
        assert name == "ElmoTokenClassificationPipeline" and (saved / f"{file}.py").is_file()
        assert custom[task]["pt"] == ["AutoModelForTokenClassification"]


def test_one_config_serves_several_pipelines(saved):
    config = ElmoConfig.from_pretrained(saved)
    for task in ("token-classification", "ner"):
        pipeline(task, model=str(saved), config=config, trust_remote_code=True)
    assert ElmoConfig(**TINY).custom_pipelines["ner"]["pt"] == ["AutoModelForTokenClassification"]


def test_users_pipelines_are_kept():
    own = {"impl": "mine.Pipeline", "pt": ["AutoModel"]}
    assert ElmoConfig(**TINY, custom_pipelines={"my-task": own}).custom_pipelines["my-task"] == own


# ---- what it returns


def test_words_and_scores():
    ner = make_pipeline()
    results = ner(TEXT)
    assert [(one["entity"], one["word"], one["index"]) for one in results] == [
        ("B-PER", "Anna", 1), ("I-PER", "Bo", 2), ("B-LOC", "New", 5), ("I-LOC", "York", 6)
    ]  # fmt: skip
    assert all(TEXT[one["start"] : one["end"]] == one["word"] for one in results)
    logits = ner.model(**ner.tokenizer(TEXT, return_tensors="pt")).logits[0]
    for one in results:
        expected = logits[one["index"]].exp().max().item()
        assert float(one["score"]) == pytest.approx(expected, rel=1e-5) and expected > 0.9
    assert [one["entity"] for one in ner(TEXT, ignore_labels=[])][2] == "O"


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("text", [TEXT, "¿Anna Bo? New York.", "Anna  Bo\tlives,New York"])
def test_aggregation(strategy, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = make_pipeline(aggregation_strategy=strategy)(text)
    places = [(text.index(first), text.index(last) + len(last)) for first, last in (("Anna", "Bo"), ("New", "York"))]
    found = {(one["entity_group"], one["start"], one["end"]) for one in results}
    assert {("PER", *places[0]), ("LOC", *places[1])} <= found


def test_entities_side_by_side():
    text = "Anna Bo Anna New York New"
    assert entities(make_pipeline(aggregation_strategy="simple")(text)) == [
        ("PER", "Anna Bo", 0, 7), ("PER", "Anna", 8, 12), ("LOC", "New York", 13, 21), ("LOC", "New", 22, 25)
    ]  # fmt: skip


def test_schemes_that_mark_the_end():
    text = "Anna Bo lives lives in New York"
    assert entities(make_pipeline(BIOES, aggregation_strategy="simple")(text)) == [
        ("PER", "Anna Bo", 0, 7), ("ACT", "lives", 8, 13), ("ACT", "lives", 14, 19), ("LOC", "New York", 23, 31)
    ]  # fmt: skip


def test_texts_split_before():
    ner = make_pipeline(aggregation_strategy="simple")
    words = ["Anna", "Bo", "lives", "in", "New", "York", "."]
    (results,) = ner(words, is_split_into_words=True)
    assert entities(results) == [("PER", "Anna Bo", 0, 7), ("LOC", "New York", 17, 25)]
    batch = ner([words, ["in", "New"]], is_split_into_words=True)
    assert [entities(row) for row in batch][1] == [("LOC", "New", 3, 6)]
    (results,) = ner(words, is_split_into_words=True, delimiter="--")
    assert entities(results)[1][2:] == (len("Anna--Bo--lives--in--"), len("Anna--Bo--lives--in--New--York"))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches(batch_size):
    ner = make_pipeline(aggregation_strategy="simple")
    texts = [TEXT, "", "New York", "Anna", "in"]
    batch = ner(texts, batch_size=batch_size)
    assert [entities(row) for row in batch] == [
        ENTITIES, [], [("LOC", "New York", 0, 8)], [("PER", "Anna", 0, 4)], []
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [0, 1, 2])
def test_long_texts_in_windows(stride):
    """Each window is a chain of its own; what two of them see is taken from the one that sees more of it."""
    ner = make_pipeline(aggregation_strategy="simple")
    text = " ".join(["in Anna Bo lives in New York ."] * 5)
    whole = entities(ner(text))
    assert len(whole) == 10
    ner.tokenizer.model_max_length = 6
    windows = entities(ner(text, stride=stride))
    assert windows[-1] == whole[-1] and all(text[start:end] == word for _, word, start, end in windows)
    if stride == 2:
        assert windows == whole


def test_texts_longer_than_the_model_takes_are_cut():
    ner = make_pipeline(aggregation_strategy="simple")
    ner.tokenizer.model_max_length = 4
    assert entities(ner(TEXT)) == ENTITIES[:1]


def test_models_without_characters():
    ner = make_pipeline(word_inputs=True, aggregation_strategy="simple")
    assert entities(ner(TEXT)) == ENTITIES
    seen = []
    ner.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    ner(TEXT)
    assert seen[0]["special_tokens_mask"].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 1]]


def test_half_precision():
    ner = make_pipeline(aggregation_strategy="simple")
    ner.model.bfloat16()
    assert entities(ner(TEXT)) == ENTITIES


def test_it_is_a_token_classification_pipeline():
    ner = make_pipeline()
    assert isinstance(ner, TokenClassificationPipeline)
    with pytest.raises(ValueError, match="At least one input"):
        ner([])
