"""The pipeline "question-answering", which transformers 5 no longer has: answers cut out of a context."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers.pipelines.base import ChunkPipeline

from .answer_spans import NUM_BOUNDARIES, Answer, Window, best_answers, context_scores, split_texts, window_bounds

Example = Mapping[str, str]


class ElmoQuestionAnsweringPipeline(ChunkPipeline):
    """Answers to questions, found in contexts of any length.

    ```python
    >>> qa = pipeline("question-answering", "runs/squad", trust_remote_code=True)
    >>> qa(question="Where do I live?", context="My name is Wolfgang and I live in Berlin.")
    {'score': 0.91, 'start': 34, 'end': 40, 'answer': 'Berlin'}
    ```

    For a model object, `ElmoQuestionAnsweringPipeline(model=model, tokenizer=tokenizer)`; transformers' own function
    needs its config too: `pipeline("question-answering", model, config=model.config, tokenizer=tokenizer,
    pipeline_class=ElmoQuestionAnsweringPipeline)`.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def _sanitize_parameters(  # type: ignore[override]
        self,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        max_question_len: int | None = None,
        top_k: int | None = None,
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, number in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be 1 or more, not {number}")
        before = {"max_seq_len": max_seq_len, "doc_stride": doc_stride, "max_question_len": max_question_len}
        after = {
            "top_k": top_k,
            "max_answer_len": max_answer_len,
            "handle_impossible_answer": handle_impossible_answer,
        }
        given = ({name: value for name, value in part.items() if value is not None} for part in (before, after))
        return next(given), {}, next(given)

    def __call__(  # type: ignore[override]
        self, inputs: Any = None, context: Any = None, *, question: Any = None, **kwargs: Any
    ) -> Any:
        """Answer questions.

        Args:
            inputs: `{"question": ..., "context": ...}`, a list, a data set or a generator of these; or one question.
            context: with a question, a text for all questions, or a list of as many.
            question: instead of `inputs`, a text or a list of texts.

        Keyword Args:
            max_seq_len: words that the model reads at once, question and boundaries included; default 384.
            doc_stride: words that neighbouring parts of a longer context share; default 128, or half of the room that
                the question leaves if that is less.
            max_question_len: longer questions are cut to so many words; default 64.
            top_k: answers to return; default 1.
            max_answer_len: words of the longest answer; default 15.
            handle_impossible_answer: whether "no answer", an empty text, may be the answer; default no.

        Returns:
            A dict with `score` (its probability), `start`, `end` (characters of the context) and `answer`; with
            `top_k` above 1 a list of up to so many, best first. For a list, a list of these. A context without words
            has an empty answer with score 0.

        Raises:
            ValueError: a question or context that is missing or no text; a `doc_stride` that is too large.
        """
        if isinstance(inputs, str) and question is None:
            inputs, question = None, inputs
        if (inputs is None) == (question is None and context is None):
            raise ValueError("give either question=... and context=..., or a dict with both, or a list of dicts")
        if inputs is None:
            inputs = as_examples(question, context)
        is_sequence = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__") and not isinstance(inputs, Mapping)
        if is_sequence and not isinstance(inputs, Dataset):  # of torch: those are read while answers are asked for
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(  # type: ignore[override]
        self, example: Example, max_seq_len: int = 384, doc_stride: int | None = None, max_question_len: int = 64
    ) -> Iterator[dict[str, Any]]:
        check_example(example)
        (question, _), (words, offsets) = split_texts(self.tokenizer, [example["question"], example["context"]])
        question = question[:max_question_len]
        room = max_seq_len - NUM_BOUNDARIES - len(question)
        try:
            bounds = window_bounds(len(words), room, min(128, room // 2) if doc_stride is None else doc_stride)
        except ValueError as error:
            raise ValueError(
                f"with max_seq_len={max_seq_len} and a question of {len(question)} words {error}: use a larger "
                "max_seq_len, or a smaller doc_stride or max_question_len"
            ) from error
        for begin, end in bounds:
            window = Window(0, question, words[begin:end], offsets[begin:end])
            encoded = self.tokenizer(  # type: ignore[misc]
                [question], [window.words], is_split_into_words=True, return_tensors="pt"
            )
            yield {**encoded, "window": window, "context": example["context"], "is_last": end == bounds[-1][1]}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        passed_on = {name: inputs.pop(name) for name in ("window", "context", "is_last")}
        output = self.model(**inputs)
        return {"starts": output.start_logits, "ends": output.end_logits, **passed_on}

    def postprocess(  # type: ignore[override]
        self,
        outputs: list[dict[str, Any]],
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        windows = [output["window"] for output in outputs]
        starts, ends = (
            pad_sequence([output[name][0].float() for output in outputs], batch_first=True).numpy()
            for name in ("starts", "ends")
        )  # (windows, positions)
        null = float((starts[:, 0] + ends[:, 0]).min())
        starts, ends = context_scores(starts, windows), context_scores(ends, windows)  # (windows, longest context)
        answers = best_answers(windows, starts, ends, 1, max_answer_len, top_k)[0]
        # Start and end are drawn from all words, or else there is no answer.
        context = outputs[0]["context"]
        total = log_total(starts, windows, len(context)) + log_total(ends, windows, len(context))
        if handle_impossible_answer:
            total = np.logaddexp(total, null)
            answers = sorted([*answers, Answer(null, 0, 0)], key=lambda answer: -answer.score)[:top_k]
        found = [
            {"score": float(np.exp(score - total)), "start": start, "end": end, "answer": context[start:end]}
            for score, start, end in answers
        ] or [{"score": 0.0, "start": 0, "end": 0, "answer": ""}]
        return found if top_k > 1 else found[0]


def log_total(scores: np.ndarray, windows: list[Window], length: int) -> float:
    """The logarithm of the sum over all words of exp(score), (windows, longest context); a word that several windows
    share counts once, where it has its highest score. `length`: characters of the context."""
    highest = np.full(length, -np.inf)
    for row, window in zip(scores, windows, strict=True):
        np.maximum.at(highest, window.offsets[:, 0], row[: len(window.words)])
    return float(np.logaddexp.reduce(highest))


def as_examples(question: Any, context: Any) -> Example | list[Example]:
    """A question and a context as one dict, lists of them as dicts; one context may serve several questions."""
    if not isinstance(question, list | tuple):
        if isinstance(context, list | tuple):
            raise ValueError(f"one question and {len(context)} contexts: give a list of as many questions")
        return {"question": question, "context": context}
    contexts = context if isinstance(context, list | tuple) else [context] * len(question)
    if len(contexts) != len(question):
        raise ValueError(f"{len(question)} questions and {len(contexts)} contexts: give as many, or one context")
    return [{"question": one, "context": other} for one, other in zip(question, contexts, strict=True)]


def check_example(example: Any):
    """Raise a `ValueError` unless this is a question with its context."""
    for name in ("question", "context"):
        if not isinstance(example, Mapping) or not isinstance(example.get(name), str):
            raise ValueError(f"each example must be a dict with a text as 'question' and as 'context', not {example!r}")
