"""The pipeline "question-answering": from folders and model objects, single questions, lists, long contexts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from finetuning_runs import save_pretrained
from test_modeling import make_model
from torch.utils.data import ConcatDataset
from transformers import pipeline
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from modeling_elmo import ElmoForQuestionAnswering, ElmoTokenizer
from modeling_elmo.answer_spans import Window
from modeling_elmo.question_answering_pipeline import ElmoQuestionAnsweringPipeline

CONTEXT = "My name is Wolfgang and I live in Berlin."
QUESTION = "Where do I live?"
NULL = 1.0  # the score of no answer, as start and as end
SCORES = {"Berlin": 5.0, "Wolfgang": 3.0, "live": 2.0}


class Reader(ElmoForQuestionAnswering):
    """Knows by heart what each word of a context scores, as start and as end; others -5."""

    def forward(self, input_ids, attention_mask, token_type_ids, **kwargs):
        tokenizer = ElmoTokenizer()
        scores = torch.full(input_ids.shape[:2], -1e4)
        scores[:, 0] = NULL
        for row, ids in enumerate(input_ids):
            first = int((token_type_ids[row] == 0).logical_and(attention_mask[row] == 1).sum())
            for place in range(first + 1, int(attention_mask[row].sum()) - 1):
                scores[row, place] = SCORES.get(tokenizer.convert_ids_to_tokens(ids[place][None])[0], -5.0)
        return QuestionAnsweringModelOutput(start_logits=scores, end_logits=scores.clone())


def make_pipeline(cls=Reader, **options) -> ElmoQuestionAnsweringPipeline:
    model = make_model(cls=cls, head_dim=4)
    return ElmoQuestionAnsweringPipeline(model=model, tokenizer=ElmoTokenizer(), **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_pretrained(make_model(cls=ElmoForQuestionAnswering, head_dim=4), tmp_path_factory.mktemp("saved"))


# ---- ways to it


def test_from_a_folder(saved, tmp_path):
    with CaptureLogger(logging.get_logger("transformers")) as captured:
        qa = pipeline("question-answering", model=str(saved), trust_remote_code=True)
    assert type(qa).__name__ == "ElmoQuestionAnsweringPipeline" and captured.out == ""
    assert type(qa).__module__.startswith("transformers_modules.")
    result = qa(question=QUESTION, context=CONTEXT)
    assert CONTEXT[result["start"] : result["end"]] == result["answer"] != "" and 0 < result["score"] < 1
    qa.save_pretrained(tmp_path / "again")
    again = pipeline("question-answering", str(tmp_path / "again"), trust_remote_code=True)
    assert again(question=QUESTION, context=CONTEXT) == result


def test_the_folder_names_the_pipeline(saved):
    custom = json.loads((saved / "config.json").read_text())["custom_pipelines"]["question-answering"]
    assert custom["impl"] == "question_answering_pipeline.ElmoQuestionAnsweringPipeline"
    assert custom["pt"] == ["AutoModelForQuestionAnswering"]
    assert (saved / "question_answering_pipeline.py").is_file() and (saved / "answer_spans.py").is_file()
    assert not (saved / "squad.py").exists()


def test_from_a_model_object(saved):
    model = ElmoForQuestionAnswering.from_pretrained(saved)
    qa = pipeline(
        "question-answering", model=model, config=model.config, tokenizer=ElmoTokenizer(),
        pipeline_class=ElmoQuestionAnsweringPipeline,
    )  # fmt: skip
    direct = ElmoQuestionAnsweringPipeline(model=model, tokenizer=ElmoTokenizer())
    assert qa(question=QUESTION, context=CONTEXT) == direct(question=QUESTION, context=CONTEXT)


# ---- what it returns


def test_an_answer_and_its_probability():
    result = make_pipeline()(question=QUESTION, context=CONTEXT)
    assert CONTEXT.index("Berlin") == 34
    scores = torch.full((10,), -5.0)  # the words of the context
    scores[:3] = torch.tensor([5.0, 3.0, 2.0])
    expected = float(torch.softmax(scores, 0)[0] ** 2)
    assert result == {"score": pytest.approx(expected), "start": 34, "end": 40, "answer": "Berlin"}


@torch.no_grad()
def test_scores_are_those_of_the_model():
    qa = make_pipeline(ElmoForQuestionAnswering)
    output = qa.model(**qa.tokenizer(QUESTION, CONTEXT, return_tensors="pt"))
    starts, ends = output.start_logits[0], output.end_logits[0]
    words = slice(5 + 3, -1)  # those of the context
    sums = (starts[words, None] + ends[words]).masked_fill(torch.ones(10, 10).tril(-1) == 1, -torch.inf)
    total = starts[words].logsumexp(0) + ends[words].logsumexp(0)
    result = qa(question=QUESTION, context=CONTEXT)
    assert result["score"] == pytest.approx(float((sums.max() - total).exp()))
    first, last = divmod(int(sums.argmax()), 10)
    offsets = qa.tokenizer(CONTEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert (result["start"], result["end"]) == (offsets[first][0], offsets[last][1])
    found = qa(question=QUESTION, context=CONTEXT, top_k=100, handle_impossible_answer=True)
    nothing = starts[0] + ends[0]
    (score,) = [one["score"] for one in found if one["answer"] == ""]
    assert score == pytest.approx(float((nothing - torch.logaddexp(total, nothing)).exp()))


def test_the_best_answers():
    results = make_pipeline()(question=QUESTION, context=CONTEXT, top_k=4)
    assert results[0]["answer"] == "Berlin" and len(results) == 4
    assert [one["score"] for one in results] == sorted((one["score"] for one in results), reverse=True)
    assert {(one["start"], one["end"]) for one in results} >= {(34, 40), (11, 40), (11, 19)}
    assert sum(one["score"] for one in make_pipeline()(question=QUESTION, context=CONTEXT, top_k=1000)) <= 1
    short = make_pipeline()(question=QUESTION, context=CONTEXT, top_k=100, max_answer_len=2)
    assert max(len(one["answer"].split()) for one in short) == 2 and len(short) == 19


def test_no_answer():
    qa = make_pipeline(handle_impossible_answer=True)
    assert qa(question=QUESTION, context=CONTEXT)["answer"] == "Berlin"
    results = qa(question=QUESTION, context="I live somewhere.", top_k=2)
    assert [one["answer"] for one in results] == ["live", ""]
    assert results[1]["start"] == results[1]["end"] == 0
    assert results[0]["score"] / results[1]["score"] == pytest.approx(float(torch.tensor(2 * (2.0 - NULL)).exp()))
    nothing = qa(question=QUESTION, context="Nothing here.")
    assert nothing["answer"] == "" and nothing["score"] > 0.99
    assert qa(question=QUESTION, context="Nothing here.", handle_impossible_answer=False)["answer"] != ""


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize(("options", "parts"), [({}, 5), ({"doc_stride": 0}, 3), ({"doc_stride": 9}, 9)])
def test_long_contexts_in_parts(batch_size, options, parts):
    """Here words score the same in each part, so the whole is as the parts; words that they share count once."""
    qa = make_pipeline(batch_size=batch_size)
    context = "word " * 20 + CONTEXT + " word" * 6  # 36 words
    calls = []
    qa.model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs["input_ids"]), with_kwargs=True)
    results = qa(question=QUESTION, context=context, max_seq_len=21, top_k=3, **options)
    assert max(ids.shape[1] for ids in calls) == 21 and sum(map(len, calls)) == parts
    assert (results[0]["answer"], results[0]["start"]) == ("Berlin", 134)
    whole = qa(question=QUESTION, context=context, top_k=3)
    assert whole[0]["score"] > 0.6 and results[0]["score"] == pytest.approx(whole[0]["score"])
    assert results == whole or options != {"doc_stride": 9}  # spans across a border are lost without a stride


def test_default_lengths():
    qa, widths = make_pipeline(), []
    qa.model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = qa(question=QUESTION, context="word " * 400, top_k=6000)
    assert widths == [384, 5 + 4 + 400 - (384 - 5 - 4 - 128)]  # the second part shares 128 words with the first
    assert max(len(one["answer"].split()) for one in found) == 15


def test_parts_that_disagree():
    """A word that two parts share has its highest score, and no answer the score of the part that believes least in
    it, in whatever order the parts come."""
    parts = [
        (["a", "b"], [[0, 1], [2, 3]], [0.0, -2.5], [1.0, 3.0]),
        (["b", "c"], [[2, 3], [4, 5]], [-1.0, -1.0], [2.0, 0.5]),
    ]  # words, where they stand, the scores of no answer as start and as end, and those of the words as both
    outputs = []
    for words, offsets, nulls, scores in parts:  # <S> q </S> <S> ... </S>
        starts, ends = (torch.tensor([[null, -1e4, -1e4, -1e4, *scores, -1e4]]) for null in nulls)
        window = Window(0, ["q"], words, np.array(offsets))
        outputs.append({"starts": starts, "ends": ends, "window": window, "context": "a b c"})
    total = 2 * torch.tensor([1.0, 3.0, 0.5]).logsumexp(0)
    for order in (outputs, outputs[::-1]):
        qa = make_pipeline()
        best = qa.postprocess(order)
        assert best["answer"] == "b" and best["score"] == pytest.approx(float((6.0 - total).exp()))
        found = qa.postprocess(order, top_k=20, handle_impossible_answer=True)
        (nothing,) = [one["score"] for one in found if one["answer"] == ""]
        everything = torch.logaddexp(total, torch.tensor(-2.5))
        assert nothing == pytest.approx(float((-2.5 - everything).exp()))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_many_questions(batch_size):
    qa = make_pipeline(batch_size=batch_size)
    contexts = [CONTEXT, "word " * 30 + "Berlin", "", "I live.", " \n "]
    answers = ["Berlin", "Berlin", "", "live", ""]
    results = qa(question=(QUESTION,) * 5, context=tuple(contexts), max_seq_len=20)
    assert qa(question=[QUESTION] * 5, context=contexts, max_seq_len=20) == results
    assert [one["answer"] for one in results] == answers
    assert [one["score"] for one in results][2] == 0
    assert qa(question=QUESTION, context="", top_k=2) == results[2:3]
    examples = [{"question": QUESTION, "context": context} for context in contexts]
    assert qa(examples, max_seq_len=20) == results
    assert list(qa((example for example in examples), max_seq_len=20)) == results
    assert qa(examples[0])["answer"] == "Berlin"
    assert [one["answer"] for one in qa(question=[QUESTION, "Who?"], context=CONTEXT)] == ["Berlin", "Berlin"]
    assert [one["answer"] for one in qa(examples[:1])] == ["Berlin"]
    assert [len(one) for one in qa(examples[:2], top_k=2)] == [2, 2]
    assert qa([]) == qa(question=[], context=[]) == []
    assert qa(Dataset.from_list(examples), max_seq_len=20) == qa(tuple(examples), max_seq_len=20) == results


def test_a_question_and_its_context_by_position():
    qa = make_pipeline()
    expected = qa(question=QUESTION, context=CONTEXT, top_k=2)
    assert qa(QUESTION, CONTEXT, top_k=2) == qa(QUESTION, context=CONTEXT, top_k=2) == expected


def test_a_data_set_of_torch_is_read_while_answers_are_asked_for():
    answers = make_pipeline()(ConcatDataset([[{"question": QUESTION, "context": CONTEXT}] * 2]))
    assert not isinstance(answers, list) and [one["answer"] for one in answers] == ["Berlin", "Berlin"]


def test_batches_of_a_real_model_give_what_it_gives_one_by_one():
    qa = make_pipeline(ElmoForQuestionAnswering)
    examples = [{"question": QUESTION, "context": CONTEXT[:cut] + " word" * cut} for cut in (41, 12, 20, 30)]
    alone = [qa(example, max_seq_len=25, top_k=3) for example in examples]
    for batch in (qa(examples, max_seq_len=25, top_k=3, batch_size=3), qa(examples, max_seq_len=25, top_k=3)):
        for one, other in zip(alone, batch, strict=True):
            assert [each["score"] for each in one] == pytest.approx([each["score"] for each in other], rel=1e-3)
            assert one[0]["answer"] == other[0]["answer"]


def test_long_questions_are_cut():
    qa = make_pipeline()
    seen = []
    qa.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    assert qa(question="why " * 100, context=CONTEXT)["answer"] == "Berlin"
    assert qa(question="why " * 100, context=CONTEXT, max_question_len=5)["answer"] == "Berlin"
    assert [ids.shape[1] for ids in seen] == [64 + 4 + 10, 5 + 4 + 10]


def test_half_precision():
    qa = make_pipeline(ElmoForQuestionAnswering)
    before = qa(question=QUESTION, context=CONTEXT)
    qa.model.bfloat16()
    assert qa(question=QUESTION, context=CONTEXT)["score"] == pytest.approx(before["score"], rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either question=... and context=..., or a dict with both"),
        ({"inputs": {"question": "?", "context": "x"}, "question": "?"}, "give either question"),
        ({"inputs": {"question": "?", "context": "x"}, "context": "y"}, "give either question"),
        ({"inputs": "?", "question": "?", "context": "x"}, "give either question"),
        ({"question": "?"}, "each example must be a dict with a text as 'question' and as 'context'"),
        ({"inputs": {"context": "x"}}, "each example must be a dict"),
        ({"inputs": {"question": "?", "text": "x"}}, "each example must be a dict"),
        ({"inputs": "?"}, "each example must be a dict"),
        ({"inputs": ["?"]}, "each example must be a dict"),
        ({"question": ["?", "?"], "context": ["x"]}, "2 questions and 1 contexts"),
        ({"question": ["?"], "context": ["x", "y"]}, "1 questions and 2 contexts"),
        ({"question": "?", "context": ["x", "y"]}, "one question and 2 contexts"),
        ({"question": "?", "context": "x", "top_k": 0}, "top_k must be 1 or more, not 0"),
        ({"question": "?", "context": "x", "max_answer_len": 0}, "max_answer_len must be 1 or more, not 0"),
        ({"question": "a b", "context": "x", "max_seq_len": 6}, "with max_seq_len=6 and a question of 2 words"),
        ({"question": "a b", "context": "x", "max_seq_len": 12, "doc_stride": 6}, "use a larger max_seq_len, or"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(**arguments)
