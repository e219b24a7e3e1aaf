"""transformers' own pipelines on ELMo, from a folder as remote code and from model objects.

Those for tags, questions and gaps, which ELMo brings itself, have tests of their own.
"""

from pathlib import Path

import pytest
import torch
from finetuning_runs import save_pretrained
from test_modeling import assert_close
from test_sequence_classification import make_classifier
from transformers import AutoTokenizer, pipeline

from modeling_elmo import ElmoForSequenceClassification, ElmoModel, ElmoTokenizer
from modeling_elmo.feature_extraction_pipeline import ElmoFeatureExtractionPipeline

TEXTS = ["the cat sat", "a much longer text about other things .", "no"]
LABELS = ["contradiction", "neutral", "entailment"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A classifier whose labels are those of entailment."""
    torch.manual_seed(0)
    ids = {label: number for number, label in enumerate(LABELS)}
    model = make_classifier(id2label=dict(enumerate(LABELS)), label2id=ids)
    return save_pretrained(model, tmp_path_factory.mktemp("classifier"))


@pytest.fixture(params=["folder", "objects"])
def make(request, folder):
    """Makes the pipeline of a task from the folder or from objects."""

    def make_pipeline(task: str, auto_class, own_class=None, **options):
        if request.param == "folder":
            return pipeline(task, str(folder), trust_remote_code=True, **options)
        model = auto_class.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return pipeline(task, model=model, tokenizer=tokenizer, pipeline_class=own_class, **options)

    return make_pipeline


def scores_of(folder: Path, *texts: str) -> torch.Tensor:
    """(labels,) probabilities for a text or a pair."""
    model = ElmoForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**ElmoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")).logits[0].softmax(0)


def found(answers: list[dict]) -> list[float]:
    """A pipeline's scores, in the order of `LABELS`."""
    return [next(answer["score"] for answer in answers if answer["label"] == label) for label in LABELS]


def test_text_classification(make, folder):
    classify = make("text-classification", ElmoForSequenceClassification, top_k=None, batch_size=3)
    for text, answers in zip(TEXTS, classify(TEXTS), strict=True):
        assert found(answers) == pytest.approx(scores_of(folder, text).tolist(), abs=1e-5)
    pair = classify({"text": TEXTS[0], "text_pair": TEXTS[2]})
    assert found(pair) == pytest.approx(scores_of(folder, TEXTS[0], TEXTS[2]).tolist(), abs=1e-5)


def test_zero_shot_classification(make, folder):
    classify = make("zero-shot-classification", ElmoForSequenceClassification)
    answer = classify(TEXTS[0], ["animals", "money"], hypothesis_template="about {}", multi_label=True)
    for label, score in zip(answer["labels"], answer["scores"], strict=True):
        contradiction, _, entailment = scores_of(folder, TEXTS[0], f"about {label}").tolist()
        assert score == pytest.approx(entailment / (entailment + contradiction), abs=1e-5)
    assert sorted(answer["labels"]) == ["animals", "money"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
def test_feature_extraction(make, folder, batch_size):
    extract = make("feature-extraction", ElmoModel, ElmoFeatureExtractionPipeline, batch_size=batch_size)
    model = ElmoModel.from_pretrained(folder).eval()
    texts = [*TEXTS, "", "another one"]
    for text, vectors, tensor in zip(texts, extract(texts), extract(texts, return_tensors=True), strict=True):
        with torch.no_grad():
            expected = model(**ElmoTokenizer()(text, return_tensors="pt")).last_hidden_state
        assert_close(torch.tensor(vectors), expected, atol=1e-5)
        assert_close(tensor, expected, atol=1e-5)
    if batch_size == 1:
        assert extract("a", tokenize_kwargs={"return_attention_mask": False}) == extract("a")
