"""The scripts of `make demo`: the text that they train on, and what they show."""

import re
import sys
from pathlib import Path

import demo_corpus
import demo_words
import pytest
from elsewhere import run_elsewhere
from finetuning_runs import save_pretrained

from modeling_elmo import ElmoConfig, ElmoForPreTraining
from modeling_elmo.tokenization_elmo import ElmoTokenizer


def sentences(text: str) -> list[str]:
    return [sentence for paragraph in demo_corpus.paragraphs(text) for sentence in demo_corpus.sentences(paragraph)]


def test_sentences_are_split_but_not_behind_abbreviations():
    assert sentences("The first is this.  The second, e.g. Python's, is\nthat (it ends here.)  A third has no end") == [
        "The first is this.",
        "The second, e.g. Python's, is that (it ends here.)",
        "A third has no end",
    ]


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("Return the ``value`` of the *key* in `this` map.", "Return the value of the key in this map."),
        (
            'The "with" statement closes it, or "TypeError" is raised.',
            "The with statement closes it, or TypeError is raised.",
        ),
        ("It raises :exc:`ValueError` as :meth:`~io.read` does.", "It raises ValueError as io.read does."),
        ("The \u201cstarred\u201d target isn\u2019t the last.", "The starred target isn't the last."),
    ],
)
def test_markup_is_taken_off(marked, plain):
    assert sentences(marked) == [plain]


def test_what_is_not_running_text_is_left_out():
    text = """\
    The title of the page
    =====================

    insert(index, object) -> None

    This is the only sentence of the text that is to be kept.

       for key in mapping: print(key)

    >>> print("This is a sentence in a doctest of the module.")
    This is a sentence in a doctest of the module.

    name      the name of the file that is to be read
    size      the size of the file that is to be read

    target  ::=  identifier | "(" [target_list] ")"
    """
    assert sentences(re.sub(r"^    ", "", text, flags=re.MULTILINE)) == [
        "This is the only sentence of the text that is to be kept."
    ]


def test_items_of_a_list_are_apart():
    text = "* If the target is a name:\n\n  * If the name is known, it is bound.\n  * Otherwise it is not bound.\n"
    assert sentences(text) == [
        "If the target is a name:",
        "If the name is known, it is bound.",
        "Otherwise it is not bound.",
    ]


def make_library(root: Path):
    """A library of modules that would fail if they were run."""
    (root / "test").mkdir(parents=True)
    (root / "package").mkdir()
    for number in range(40):
        (root / "package" / f"module{number}.py").write_text(
            f'"""This is the module with the number {number} in the library."""\nraise SystemExit\n'
            f'def function():\n    """Return the number {number} of the module as a string."""\n'
            "    # This comment of two lines is the same\n    # in all of the modules.\n"
        )
    (root / "test" / "test_module.py").write_text('"""This is the text of a test and not of the library."""')
    (root / "broken.py").write_text('"""This is the text of a broken module."""\n(')
    (root / "latin.py").write_bytes(
        '# coding: latin-1\n"""This is the text of a module in Latin-1: \xe9."""'.encode("latin-1")
    )


def test_library_is_read_without_running_it(tmp_path):
    make_library(tmp_path)
    texts = demo_corpus.documents(demo_corpus.library_files(tmp_path))
    assert len(texts) == 40
    assert texts["package/module0.py"] == [
        "This is the module with the number 0 in the library.",
        "Return the number 0 of the module as a string.",
        "This comment of two lines is the same in all of the modules.",
    ]
    assert len(texts["package/module1.py"]) == 2, "a sentence is kept once"


def test_split_keeps_documents_whole_and_is_repeatable(tmp_path):
    make_library(tmp_path)
    texts = demo_corpus.documents(demo_corpus.library_files(tmp_path))
    train, validation = demo_corpus.split(texts, share=0.2, seed=0)
    words = demo_corpus.count_words(train + validation)
    assert words == sum(demo_corpus.count_words(found) for found in texts.values())
    assert 0.14 * words < demo_corpus.count_words(validation) <= 0.2 * words
    for found in texts.values():
        assert not set(found) & set(train) or not set(found) & set(validation)
    assert (train, validation) == demo_corpus.split(texts, share=0.2, seed=0)
    assert validation != demo_corpus.split(texts, share=0.2, seed=1)[1]


def test_this_python_has_enough_text(tmp_path, monkeypatch, capsys):
    """The topics and the compiled modules alone, which takes a second; the whole library is some 300,000 words."""
    monkeypatch.setattr(demo_corpus.sysconfig, "get_path", lambda name: str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "argv", ["demo_corpus.py", str(tmp_path / "text"), "--validation_share", "0.1"])
    demo_corpus.main()
    train = (tmp_path / "text" / "train.txt").read_text(encoding="utf-8")
    assert len(train.split()) > 30_000
    assert f"{len(train.splitlines()):,} sentences, {len(train.split()):,} words" in capsys.readouterr().out
    for line in train.splitlines():
        assert 4 <= len(line.split()) <= 80
        assert not re.search(r"[\u201c\u2019]|>>>|``|::|  ", line), line


def test_word_in_context():
    words, place = demo_words.unbracket("The result is a [set] of strings .")
    assert words[place] == "set"
    assert demo_words.in_context(words, place, 50) == f"{'The result is a':>21} [set] of strings ."
    short = demo_words.in_context(words, place, 24)
    assert short == "…lt is a [set] of stri…" and len(short) <= 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a vocabulary of three words that are meant by misspelt ones."""
    words = ["function", "argument", "exception", "set", "handle", "match", "a", "the", "of"]
    tokenizer = ElmoTokenizer().train_new_from_iterator([words], is_split_into_words=True)
    config = ElmoConfig(
        char_embedding_dim=4,
        cnn_filters=[[1, 8], [2, 16], [3, 16]],
        num_highway_layers=1,
        lstm_dim=12,
        projection_dim=16,
        lm_vocab_size=tokenizer.lm_vocab_size,
    )
    return save_pretrained(ElmoForPreTraining(config), tmp_path_factory.mktemp("model"), tokenizer)


@pytest.mark.slow
def test_words_are_shown_by_remote_code_alone(folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Return a set of strings.\nThe handle of the set is not known.\nThey match the handle.\n" * 3)
    program = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    out = run_elsewhere(program, tmp_path, demo_words.__file__, folder, text)
    assert "ElmoModel" in out and "9 sentences" in out
    assert max(len(line) for line in out.splitlines() if str(folder) not in line) <= 100
    neighbours = re.findall(r"^ +(-?\d\.\d\d) .*\[(\w+)\]", out, re.MULTILINE)
    assert {word for _, word in neighbours} == set(demo_words.SHOWN_IN_TEXT)
    assert all(-1 <= float(value) <= 1 for value, _ in neighbours)
    uses = re.findall(r"^  (\w+)((?: +-?\d\.\d\d){3})$", out, re.MULTILINE)
    assert [word for word, _ in uses] == list(demo_words.USES)
    ranks = dict(re.findall(r"^  (\w+) +\w+ +-?\d\.\d\d +(\d+)  ", out, re.MULTILINE))
    assert list(ranks) == ["exeption", "funtion", "arguement"], "those whose right word is in the vocabulary"
    assert all(1 <= int(rank) <= 8 for rank in ranks.values())
