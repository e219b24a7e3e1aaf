"""SQuAD: reading both forms, windows, the search for spans against loops, and scores worked out by hand."""

import gzip
import itertools
import json
import math
import os
import time

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from modeling_elmo import ElmoTokenizer
from modeling_elmo.answer_spans import Window, best_answers, best_spans, split_texts, window_bounds
from modeling_elmo.squad import (
    Prediction,
    Question,
    SquadReport,
    best_thresholds,
    check_version,
    evaluate,
    exact_match,
    f1,
    make_windows,
    normalized,
    place,
    predict_answers,
    read_dataset,
    read_questions,
    training_windows,
)
from modeling_elmo.text_files import DataError

CONTEXT = "Ann Lee lives in New York City. She was born in 1990."
ROWS = [
    {"id": "1", "title": "Ann", "question": "Where does Ann live?", "context": CONTEXT,
     "answers": {"text": ["New York City", "New York"], "answer_start": [17, 17]}},
    {"id": "2", "title": "Ann", "question": "When was she born?", "context": CONTEXT,
     "answers": {"text": ["1990"], "answer_start": [48]}},
    {"id": "3", "title": "Ann", "question": "Who is her father?", "context": CONTEXT,
     "answers": {"text": [], "answer_start": []}},
]  # fmt: skip


def nested(rows: list[dict]) -> dict:
    """As SQuAD is published: articles of paragraphs of questions."""
    questions = []
    for row in rows:
        pairs = zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        questions.append({"id": row["id"], "question": row["question"], "answers": answers})
        questions[-1] |= {"is_impossible": not answers}
        if not answers:
            questions[-1]["plausible_answers"] = [{"text": "Ann", "answer_start": 0}]
    return {"version": "v2.0", "data": [{"title": "Ann", "paragraphs": [{"context": CONTEXT, "qas": questions}]}]}


def write(path, content: bytes | str):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(rows: list) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_parquet(path, rows):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def listed(rows: list[dict]) -> list[dict]:
    """Rows with answers as a list of objects."""
    pairs = [zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True) for row in rows]
    answers = [[{"text": text, "answer_start": start} for text, start in each] for each in pairs]
    return [{**row, "answers": each} for row, each in zip(rows, answers, strict=True)]


FORMS = {
    "nested.json": lambda path: write(path, json.dumps(nested(ROWS))),
    "nested.json.gz": lambda path: write(path, gzip.compress(json.dumps(nested(ROWS)).encode())),
    "rows.jsonl": lambda path: write(path, lines(ROWS)),
    "rows.jsonl.gz": lambda path: write(path, gzip.compress(("\ufeff" + lines(ROWS)).encode())),
    "lines.json": lambda path: write(path, lines(ROWS) + " \n"),
    "list.json": lambda path: write(path, json.dumps(listed(ROWS), indent=1)),
    "data.json": lambda path: write(path, json.dumps({"version": 2, "data": ROWS})),
    "rows.parquet": lambda path: write_parquet(path, ROWS),
    "ROWS.PARQUET": lambda path: write_parquet(path, ROWS),
    "NESTED.JSON.GZ": lambda path: write(path, gzip.compress(json.dumps(nested(ROWS)).encode())),
}


def questions_of(rows: list[dict], tmp_path, report: SquadReport | None = None, **options) -> list[Question]:
    return read_questions([write(tmp_path / "rows.jsonl", lines(rows))], report or SquadReport(), **options)


def question(answers: list[str] = (), starts: list[int | None] | None = None, context: str = CONTEXT, **fields):
    starts = [context.index(answer) for answer in answers] if starts is None else starts
    return Question(
        **{"id": "1", "question": "Who?", "context": context, **fields}, answers=list(answers), answer_starts=starts
    )


# ---- reading


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_are_read_alike(name, tmp_path):
    report = SquadReport()
    questions = read_questions([FORMS[name](tmp_path / name)], report)
    assert [vars(one) for one in questions] == [
        {"id": row["id"], "question": row["question"], "context": CONTEXT, "answers": row["answers"]["text"],
         "answer_starts": row["answers"]["answer_start"]}
        for row in ROWS
    ]  # fmt: skip
    assert report == SquadReport(questions=3, unanswerable=1) and report.problems() == []


def test_a_single_row_is_a_file_too(tmp_path):
    assert len(questions_of(ROWS[:1], tmp_path)) == 1


def test_data_sets(tmp_path, monkeypatch):
    """Files as SQuAD names them, or as others do, in the order of their names; what `datasets` saved; a name."""
    official, own, saved = (tmp_path / name for name in ("official", "own", "saved"))
    for folder in (official, own):
        folder.mkdir()
    write(official / "train-v2.0.json", json.dumps(nested(ROWS)))
    write(official / "dev-v2.0.json", json.dumps(nested(ROWS[:2])))
    write(official / "README.md", "SQuAD")
    write(own / "train.jsonl", lines(ROWS[:1]))
    write(own / "train_more.jsonl", lines(ROWS[1:]))
    write_parquet(own / "Validation.parquet", ROWS[:2])
    tables = {"train": Dataset.from_list(ROWS), "validation": Dataset.from_list(ROWS[:2])}
    DatasetDict(tables).save_to_disk(str(saved))
    listdir = os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: sorted(listdir(folder), reverse=True))
    for folder in (official, own, saved):
        splits = read_dataset(str(folder), None, SquadReport())
        assert {split: [one.id for one in questions] for split, questions in splits.items()} == {
            "train": ["1", "2", "3"], "validation": ["1", "2"],
        }  # fmt: skip
        assert splits["train"][0].answer_starts == [17, 17]


def test_data_sets_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"has no files such as train-v1.1.json"):
        read_dataset(str(tmp_path), None, SquadReport())
    monkeypatch.setattr("datasets.load_dataset", lambda *_: 1 / 0)
    with pytest.raises(DataError, match="the data set 'no/where' cannot be loaded: division by zero"):
        read_dataset("no/where", None, SquadReport())


def test_lines_end_where_json_says(tmp_path):
    rows = [{**row, "id": number, "question": "Who\u2028is it?"} for number, row in enumerate(ROWS)]
    file = write(tmp_path / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert [one.id for one in read_questions([file], SquadReport())] == ["0", "1", "2"]


def test_test_data_need_no_answers(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "answers"} for row in ROWS]
    assert [one.answers for one in questions_of(rows, tmp_path, need_answers=False)] == [[], [], []]
    with pytest.raises(DataError, match="has no column context; its columns are"):
        questions_of([{"id": "1", "question": "Who?"}], tmp_path, need_answers=False)
    folder, saved = tmp_path / "folder", tmp_path / "saved"
    folder.mkdir()
    write(folder / "test.jsonl", lines(rows))
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(str(saved))
    for name in (folder, saved):
        assert [one.answers for one in read_dataset(str(name), None, SquadReport())["test"]] == [[], [], []]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "query": "?", "context": ""}], "no column question, answers; its columns are id, query, context"),
        ([ROWS[0], {**ROWS[0], "id": 1}], "question 1: the id occurs twice"),
        ([{**ROWS[0], "context": None}], "question '1': context must be a text, not None"),
        ([{**ROWS[0], "answers": "1990"}], "question '1': answers must be"),
        ([{**ROWS[0], "answers": {"text": ["1990"], "answer_start": []}}], "answers must be"),
        ([{**ROWS[0], "answers": {"text": ["1990"]}}], "answers must be"),
        ([{**ROWS[0], "answers": {"text": ["1990"], "answer_start": ["here"]}}], "answers must be"),
        ([{**ROWS[0], "answers": [{"text": 5, "answer_start": 0}]}], "answers must be"),
        ([{**ROWS[0], "answers": [{"text": "1990", "answer_start": math.inf}]}], "answers must be"),
        ([[1]], "entry 1 must be an object with id, question, context, answers"),
        ([{"title": "x", "paragraphs": [{"qas": [{"id": "1"}]}]}], "article 1 is not as in SQuAD's files"),
        ([{"title": "x", "paragraphs": 5}], "article 1 is not as in SQuAD's files"),
    ],
)
def test_bad_rows_are_told(rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        questions_of(rows, tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"id": 1}\n{"id": 2\n', "x.jsonl", "x.jsonl, line 2 is not JSON"),
        ("[" * 100_000, "x.json", "line 1 is not JSON"),
        ('{"id": 1}\n{"id": ' + "9" * 5000 + "}", "x.jsonl", "line 2 is not JSON"),
        ("5", "x.json", "no list of questions"),
        ('{"data": 5}', "x.json", "no list of questions"),
        (b"\xff\xfe{}", "x.json", "is damaged"),
        (gzip.compress(b"[]", mtime=0)[:-4], "x.json.gz", "is damaged"),
        (b"PAR1", "x.parquet", "is damaged"),
        (None, "x.json", "cannot be read"),
        (None, "x.parquet", "cannot be read"),
    ],
)
def test_bad_files_are_told(content, name, message, tmp_path):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        read_questions([str(tmp_path / name)], SquadReport())


def test_answers_are_looked_for_where_they_should_stand(tmp_path):
    texts, starts = ["New York", "1990", "in", "Boston", "Ann", ""], [3, 48.0, 0, 2, -1, 0]
    report = SquadReport()
    (one,) = questions_of([{**ROWS[0], "answers": {"text": texts, "answer_start": starts}}], tmp_path, report)
    assert one.answers == texts[:5] and one.answer_starts == [17, 48, None, None, 0]
    assert (report.moved_answers, report.lost_answers) == (2, 2)
    moved, lost = report.problems()
    assert moved.startswith("2 answers") and "that was taken" in moved and lost.startswith("2 answers")
    assert question(["Boston", "1990"], [None, 48]).span == (48, 52)
    assert question(["Boston"], [None]).span is None


def test_an_answer_is_moved_to_the_only_place_there_is():
    report = SquadReport()
    assert place("Ann", 0, "Ann met Ann", report) == 0, "it stands there"
    assert place("Ann", -3, "met Ann", report) == 4, "no place is counted from the end"
    assert place("aa", 5, "aaa", report) is None, "places may overlap"
    assert (report.moved_answers, report.lost_answers) == (1, 1)


def test_questions_without_answers_need_version_2(tmp_path):
    questions = questions_of(ROWS, tmp_path)
    with pytest.raises(DataError, match=r"1 questions of dev.json have no answer \(the first: '3'\): pass --version_2"):
        check_version(questions, False, "dev.json")
    check_version(questions, True, "dev.json")
    check_version(questions[:2], False, "dev.json")


# ---- windows


def test_words_know_their_characters():
    texts = ["Don't  stop.", "", "naïve 🙂 <S>"]
    for text, (words, offsets) in zip(texts, split_texts(ElmoTokenizer(), texts), strict=True):
        assert [text[first:last] for first, last in offsets.tolist()] == words and offsets.shape == (len(words), 2)
    assert split_texts(ElmoTokenizer(), texts)[0][0] == ["Do", "n't", "stop", "."]


@pytest.mark.parametrize("num_words", range(12))
@pytest.mark.parametrize(("room", "stride"), [(3, 0), (3, 2), (5, 2), (4, 1), (20, 5)])
def test_windows_cover_all_words_and_share_the_stride(num_words, room, stride):
    bounds = window_bounds(num_words, room, stride)
    assert bounds[0][0] == 0 and bounds[-1][1] == num_words
    for (begin, end), (next_begin, next_end) in itertools.pairwise(bounds):
        assert end - begin == room and end - next_begin == stride and next_end > end


def window_texts(questions, tokenizer=None, **options):
    options = {"max_length": 384, "stride": 128, "report": SquadReport(), **options}
    return make_windows(questions, tokenizer or ElmoTokenizer(), **options)


def test_windows_are_what_the_tokenizer_would_make(tmp_path):
    """Its own truncation with a stride, for a question as long as the longest."""
    tokenizer = ElmoTokenizer()
    (one, other, _) = questions_of(ROWS, tmp_path)
    windows = window_texts([one, other], tokenizer, max_length=15, stride=2)
    expected = tokenizer(
        [one.question, other.question], [CONTEXT] * 2, truncation="only_second", max_length=15, stride=2,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    assert [window.example for window in windows] == expected["overflow_to_sample_mapping"] and len(windows) == 6
    encoded = tokenizer(
        [window.question for window in windows], [window.words for window in windows], is_split_into_words=True
    )
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert encoded[name] == expected[name]
    for window, offsets, row in zip(windows, expected["offset_mapping"], range(6), strict=True):
        assert window.offsets.tolist() == [list(pair) for pair in offsets[window.begin : -1]]
        assert expected.tokens(row)[window.begin] == window.words[0]


def test_all_questions_have_the_same_windows_of_a_context(tmp_path):
    one, other, _ = questions_of(ROWS, tmp_path)
    other.question = "When?"
    windows = window_texts([one, other], max_length=15, stride=2)
    assert [window.words for window in windows if window.example] == [w.words for w in windows if not w.example]


def answer_in(window: Window) -> list[str]:
    return window.words[window.start_position - window.begin : window.end_position - window.begin + 1]


@pytest.mark.parametrize(
    ("answer", "start", "words"),
    [
        ("New York", 17, ["New", "York"]),
        ("Ann Lee", 0, ["Ann", "Lee"]),
        ("1990.", 48, ["1990", "."]),
        ("199", 48, ["1990"]),  # within a word
        ("ew York Ci", 18, ["New", "York", "City"]),
        (" in ", 13, ["in"]),
        ("City.", 26, ["City", "."]),
        ("City", 26, ["City"]),
    ],
)
def test_answers_as_words(answer, start, words):
    assert CONTEXT[start:].startswith(answer)
    (window,) = window_texts([question([answer], [start])])
    assert answer_in(window) == words
    encoded = ElmoTokenizer()("Who?", CONTEXT)
    assert encoded.tokens()[window.start_position : window.end_position + 1] == words


def test_answers_in_windows():
    """0 where the answer is not there as a whole."""
    windows = window_texts([question(["York City"]), question([], id="2")], max_length=12, stride=2)
    texts = [window.words for window in windows[: len(windows) // 2]]
    assert texts == [["Ann", "Lee", "lives", "in", "New", "York"], ["New", "York", "City", ".", "She", "was"],
                     ["She", "was", "born", "in", "1990", "."]]  # fmt: skip
    positions = [(window.start_position, window.end_position) for window in windows]
    assert positions == [(0, 0), (6, 7), (0, 0), (0, 0), (0, 0), (0, 0)] and answer_in(windows[1]) == ["York", "City"]


def test_answers_that_are_nowhere_are_left_out_of_training():
    questions = [question(["Boston"], [None]), question(["  "], [1], context="a    b"), question(["Ann"]), question([])]
    windows = window_texts(questions)
    assert [(window.start_position, window.end_position) for window in windows] == [
        (-100, -100), (-100, -100), (5, 5), (0, 0),
    ]  # fmt: skip
    report = SquadReport()
    windows.append(windows[0])  # a question counts once, however many windows it has
    assert [window.example for window in training_windows(windows, report)] == [2, 3] and report.left_out == 2
    assert "2 questions" in report.problems()[0]


def test_long_questions_are_cut():
    report = SquadReport()
    windows = window_texts([question(question="why " * number) for number in (70, 64, 2)], report=report)
    assert [len(window.question) for window in windows] == [64, 64, 2] and report.cut_questions == 1
    assert report.problems() == ["1 questions were too long and were cut"]
    # What was cut off takes no room from the context: 100 words less 64 and 4 boundaries.
    long = question(question="why " * 99, context="word " * 50)
    (window, *_) = window_texts([long], max_length=100, stride=5, report=report)
    assert len(window.words) == 32 and report.cut_questions == 2, "of all splits"


@pytest.mark.parametrize(("max_length", "stride"), [(12, 6), (12, 8), (6, 0), (3, 0), (12, -1)])
def test_windows_that_get_nowhere_are_refused(max_length, stride):
    message = (
        rf"beside a question of 2 words and 4 boundaries, windows of {max(max_length - 6, 0)} words of context cannot "
        rf"share {stride} with the next: .*max_seq_length \({max_length}\).*doc_stride \({stride}\)"
    )
    with pytest.raises(DataError, match=message):
        window_texts([question()], max_length=max_length, stride=stride)


def test_contexts_without_words():
    for context in ("", " \n"):
        (window,) = window_texts([question([], context=context)])
        assert window.words == [] and window.offsets.shape == (0, 2) and window.start_position == 0
    assert window_texts([]) == []


# ---- the search for answers


@pytest.mark.parametrize("max_words", [1, 3, 10**15])
@pytest.mark.parametrize("top_k", [1, 5, 1000])
def test_best_spans_against_loops(max_words, top_k):
    rng = np.random.default_rng(0)
    starts, ends = rng.normal(size=(2, 5, 9)).astype(np.float32)
    starts[2, 4:] = ends[2, 4:] = -np.inf
    starts[3], ends[3] = -np.inf, -np.inf
    first, last, scores = best_spans(starts, ends, max_words, top_k)
    for row in range(5):
        spans = {(i, j): starts[row, i] + ends[row, j] for i in range(9) for j in range(i, min(i + max_words, 9))}
        expected = sorted((score for score in spans.values() if score > -np.inf), reverse=True)[:top_k]
        found = scores[row][scores[row] > -np.inf]
        assert found.tolist() == expected
        for i, j, score in zip(first[row], last[row], found, strict=False):
            assert spans[i, j] == score


def test_equal_spans_come_in_the_order_of_the_text():
    first, last, _ = best_spans(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32), 2, 10)
    assert list(zip(first[0], last[0], strict=True))[:5] == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]
    windows = [Window(0, ["q"], list("bc"), np.array([[2, 3], [4, 5]])),
               Window(0, ["q"], list("ab"), np.array([[0, 1], [2, 3]]))]  # fmt: skip
    (answers,) = best_answers(windows, np.zeros((2, 2)), np.zeros((2, 2)), 1, 2, 9)
    assert [answer[1:] for answer in answers] == [(0, 1), (0, 3), (2, 3), (2, 5), (4, 5)]


@pytest.mark.parametrize("top_k", [1, 2, 7, 30])
def test_of_equal_spans_the_first_are_taken(top_k):
    """However many are asked for: as bfloat16 rounds them, many are equal."""
    starts, ends = np.random.default_rng(0).integers(-1, 3, (2, 40, 12)).astype(np.float32)
    starts[3], ends[4, 2:] = -np.inf, np.nan
    first, last, scores = best_spans(starts, ends, 4, top_k)
    for row in (*range(4), *range(5, 40)):
        spans = [(i, j) for i in range(12) for j in range(i, min(i + 4, 12)) if starts[row, i] > -np.inf]
        expected = sorted(spans, key=lambda span: -(starts[row, span[0]] + ends[row, span[1]]))[:top_k]
        found = scores[row] > -np.inf
        assert list(zip(first[row, found].tolist(), last[row, found].tolist(), strict=True)) == expected


def slow_predictions(questions, windows, starts, ends, max_words, version_2) -> dict[str, list[tuple]]:
    """All answers of each question by falling score, text and score; no answer among them in version 2."""
    everything = {}
    for number, one in enumerate(questions):
        spans, nulls = {}, []
        for row, window in enumerate(windows):
            if window.example != number:
                continue
            nulls.append(starts[row, 0] + ends[row, 0])
            for i in range(len(window.words)):
                for j in range(i, min(i + max_words, len(window.words))):
                    place = window.offsets[i, 0], window.offsets[j, 1]
                    score = starts[row, window.begin + i] + ends[row, window.begin + j]
                    spans[place] = max(score, spans.get(place, -1e9))
        found = [(one.context[first:last], score) for (first, last), score in spans.items()]
        found += [("", min(nulls))] if version_2 else []
        everything[one.id] = sorted(found, key=lambda pair: -pair[1])
    return everything


@pytest.mark.parametrize("version_2", [False, True])
def test_predictions_against_loops(version_2, tmp_path):
    questions = questions_of(ROWS, tmp_path)
    windows = window_texts(questions, max_length=14, stride=3)
    order = np.random.default_rng(1).permutation(len(windows))
    windows = [windows[place] for place in order]
    starts, ends = np.random.default_rng(2).normal(size=(2, len(windows), 20)).astype(np.float32)
    predictions = predict_answers(questions, windows, starts, ends, 5, 3, version_2, null_threshold=0.5)
    for name, expected in slow_predictions(questions, windows, starts, ends, 3, version_2).items():
        one = predictions[name]
        assert [each["text"] for each in one.candidates] == [text for text, _ in expected[:5]]
        weights = np.exp([score for _, score in expected[:5]])
        probabilities = [each["probability"] for each in one.candidates]
        np.testing.assert_allclose(probabilities, weights / weights.sum(), rtol=1e-5)
        best, score = next((text, score) for text, score in expected if text)
        assert one.best_text == best
        if version_2:
            odds = next(score for text, score in expected if not text) - score
            assert one.null_odds == pytest.approx(odds, rel=1e-5) and one.answer == ("" if odds > 0.5 else best)
        else:
            assert one.null_odds is None and one.answer == best
        for each in one.candidates:
            assert CONTEXT[each["start"] : each["end"]] == each["text"]


def test_the_threshold_decides():
    (window,) = window_texts([question(["Ann"])])
    logits = np.full((1, 20), -5.0, np.float32)
    logits[0, 0], logits[0, window.begin] = 1.0, 2.0  # no answer 2, "Ann" 4
    for threshold, answer in ((-2.1, ""), (-2.0, "Ann"), (-1.9, "Ann")):  # no answer if the odds are above it
        one = predict_answers([question(["Ann"])], [window], logits, logits, 20, 17, True, threshold)["1"]
        assert one.answer == answer and one.best_text == "Ann" and one.null_odds == -2.0
    probabilities = [each["probability"] for each in one.candidates]
    (far,) = predict_answers([question(["Ann"])], [window], logits - 1000, logits - 1000, 20, 17, True).values()
    assert [each["probability"] for each in far.candidates] == pytest.approx(probabilities)


def test_a_context_without_words_has_no_answer():
    questions = [question([], context="", question="Who is Ann Lee ?"), question(["Ann"], id="2")]
    windows = window_texts(questions)
    width = max(window.begin + len(window.words) + 1 for window in windows)  # none has a long question and context
    logits = np.zeros((2, width), np.float32)
    for version_2 in (False, True):
        one = predict_answers(questions, windows, logits, logits, version_2=version_2)["1"]
        assert one.answer == one.best_text == "" and len(one.candidates) == version_2
        assert not version_2 or one.null_odds > 1e4
        json.dumps(vars(one), allow_nan=False)
    assert predict_answers(questions[:1], windows[:1], logits[:1], logits[:1])["1"].candidates == []


def test_each_window_has_its_prediction():
    questions = [question(["Ann"]), question(["Ann"], id="2")]
    for number in (1, 3):
        logits = np.zeros((number, 30), np.float32)
        with pytest.raises(ValueError, match=f"2 windows, but predictions for {number}"):
            predict_answers(questions, window_texts(questions), logits, logits)


def test_five_thousand_questions_take_seconds():
    offsets = np.arange(600).reshape(300, 2)
    windows = [Window(number, ["q"] * 10, ["w"] * 300, offsets) for number in range(5000)]
    questions = [question(id=str(number), context="x" * 600) for number in range(5000)]
    logits = np.random.default_rng(0).normal(size=(5000, 320)).astype(np.float32)
    start = time.process_time()
    assert len(predict_answers(questions, windows, logits, logits, 20, 30, True)) == 5000
    assert time.process_time() - start < 10


# ---- scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat, sat.", "cat sat"),
        ("an apple a day", "apple day"),
        ("theatre Athens bathe banana Iran", "theatre athens bathe banana iran"),  # no articles
        ("one\N{EN DASH}the\N{EN DASH}one", "one\N{EN DASH} \N{EN DASH}one"),
        ("U.S.", "us"),
        ("don't", "dont"),
        ("co-op", "coop"),
        ("a-b", "ab"),  # punctuation goes first, so no article is left
        ("  two \t\n lines ", "two lines"),
        ("“quoted”", "“quoted”"),  # ASCII punctuation only
        ("24 \N{EN DASH} 10", "24 \N{EN DASH} 10"),
        ("the", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalized(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "overlap"),
    [
        ("the Denver Broncos", "Denver Broncos!", 1, 1),
        ("Broncos", "Denver Broncos", 0, 2 / 3),  # precision 1, recall 1/2
        ("Denver Broncos team of Denver", "Denver Broncos", 0, 4 / 7),  # 2 common: precision 2/5, recall 1
        ("a b a b", "b a b", 1, 1),  # articles gone: "b b" and "b b"
        ("x", "y", 0, 0),
    ],
)
def test_scores_of_an_answer(prediction, answer, exact, overlap):
    assert exact_match(prediction, answer) == exact
    for version_2 in (False, True):
        assert f1(prediction, answer, version_2) == pytest.approx(overlap)


def test_answers_without_words():
    """The F1 of nothing with nothing is where both evaluations differ."""
    assert exact_match("the", "") == 1 and exact_match("", "x") == 0
    assert f1("", "", version_2=True) == 1 and f1("", "", version_2=False) == 0
    assert f1("x", "", version_2=True) == f1("", "x", version_2=True) == 0


def test_scores_of_version_1():
    questions = [
        question(["New York City", "New York"], id="1"),
        question(["1990"], id="2"),
        question(["Ann Lee"], id="3"),
        question(["City"], id="4"),
    ]
    texts = {"1": "new york", "2": "in 1990", "3": "", "unknown": "x"}
    # exact: 1, 0, 0, none; F1: 1, 2/3, 0, none
    assert evaluate(questions, texts) == {"exact_match": 25.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 4)}
    assert evaluate([], {}) == {"exact_match": 0.0, "f1": 0.0}


def test_scores_of_version_2():
    questions = [
        question(["New York City"], id="1"),
        question(["1990"], id="2"),
        question([], id="3"),
        question([], id="4"),
        question([], id="5"),
        question(["the"], [0], context="the", id="6"),  # nothing is left of it, so "" is right
    ]
    texts = {"1": "York", "2": "", "3": "", "4": "Ann", "6": ""}
    result = evaluate(questions, texts, version_2=True)
    assert result == {
        "exact": pytest.approx(100 * 2 / 6),
        "f1": pytest.approx(100 * 2.5 / 6),
        "total": 6,
        "HasAns_exact": pytest.approx(100 * 1 / 3),
        "HasAns_f1": pytest.approx(100 * 1.5 / 3),
        "HasAns_total": 3,
        "NoAns_exact": pytest.approx(100 * 1 / 3),
        "NoAns_f1": pytest.approx(100 * 1 / 3),
        "NoAns_total": 3,
    }
    several = question(["the", "cat"], [0, 4], context="the cat")  # what is left of these does not include ""
    assert evaluate([several], {"1": ""}, version_2=True)["exact"] == 0
    assert "NoAns_exact" not in evaluate(questions[:2], texts, version_2=True)


def test_best_thresholds_against_all_thresholds():
    rng = np.random.default_rng(3)
    questions, predictions = [], {}
    for number in range(40):
        has_answer = rng.random() < 0.6
        text = str(rng.choice(["Ann Lee", "Lee", "York", ""]))
        questions.append(question(["Ann Lee"] if has_answer else [], id=str(number)))
        predictions[str(number)] = Prediction(
            text, text, float(rng.normal() + 1 - 2 * (has_answer and "Lee" in text)), []
        )
    result = best_thresholds(questions, predictions)

    def score(threshold: float) -> dict[str, float]:
        texts = {key: one.best_text if one.null_odds <= threshold else "" for key, one in predictions.items()}
        return evaluate(questions, texts, version_2=True)

    thresholds = [-100.0, *sorted(one.null_odds for one in predictions.values())]
    for name in ("exact", "f1"):
        scores = [score(threshold)[name] for threshold in thresholds]
        assert result[f"best_{name}"] == pytest.approx(max(scores))
        assert result[f"best_{name}_thresh"] == thresholds[int(np.argmax(scores))]
    assert result["best_exact"] < result["best_f1"] < 100


def test_thresholds_when_no_answer_is_best_everywhere():
    questions = [question([], id=str(number)) for number in range(3)]
    predictions = {str(number): Prediction("", "x", 1.0, []) for number in range(3)}
    assert best_thresholds(questions, predictions) == {
        "best_exact": 100.0, "best_exact_thresh": 0.0, "best_f1": 100.0, "best_f1_thresh": 0.0,
    }  # fmt: skip


@pytest.mark.data
def test_all_of_squad_is_found_again(shared):
    """Right scores for the first answers give these, but where SQuAD has answers within words ("gold" in "golden")."""
    file = shared / "data" / "tasks" / "squad" / "validation.jsonl.gz"
    report = SquadReport()
    questions = read_questions([str(file)], report)[:600]
    windows = make_windows(questions, ElmoTokenizer(), 384, 128, report)
    assert not report.problems() and all(window.start_position >= 0 for window in windows)
    starts, ends = (np.full((len(windows), 384), -5.0, np.float32) for _ in range(2))
    for row, window in enumerate(windows):
        starts[row, window.start_position] = ends[row, window.end_position] = 5.0
    predictions = predict_answers(questions, windows, starts, ends, max_answer_length=30)
    scores = evaluate(questions, {key: one.answer for key, one in predictions.items()})
    assert scores["exact_match"] > 95 and scores["f1"] > 95
