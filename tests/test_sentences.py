"""Splitting paragraphs into sentences: examples of many languages, and that no text is lost."""

# ruff: noqa: RUF001 -- the stops and quotes of many scripts look like those of others

import random
import time

import pytest

from modeling_elmo.sentences import split_sentences

# Sentences are separated by " | " where white space is expected between them, and by "|" where there is none.
SPLIT = [
    "It rains. | It pours! | Does it? | It does… | Yes.",
    "He said “No.” | She left. | (Really.) | “Then go!” | Fine.",
    "It cost 3.5 million. | 14 people paid $5. | $6 was too much.",
    "See example.com. | Then www.example.com/a.B?c=D! | End.",
    "A note.[1] | Another.[12] | Third.",
    "He lived in Washington. | - Yes. | – No.",
    "tokenised text . | It goes on ? | `` No . '' | Good . ) | So be it .",
    "« Bonjour. » | Puis il partit. | « Oui ! » | Fin.",
    "¿Qué hora es? | ¡Tarde! | Son las tres.",
    "„Nein.“ | »Doch.« | Ende.",
    "Идёт дождь. | Да? | Нет!",
    "今日は雨だ。|傘がない！|「はい。」|行く？|終わり。",
    "「はい。」と言った。|次。",
    "他说：“好。”|我走了。|再见",
    "यह एक वाक्य है। | यह दूसरा है॥ | तीसरा",
    "هل تمطر؟ | نعم. | لا",
    "یہ جملہ ہے۔ | دوسرا",
    "Սա նախադասություն է։ | Երկրորդ",
    "ეს წინადადებაა. | მეორე",
    "비가 온다. | 우산이 없다.",
    "ይህ ነው። | ሁለተኛ",
    "มา. | ไป",
]
WHOLE = [
    "J. Smith met John F. Kennedy and J. R. R. Tolkien and Jean-J. Rousseau",
    "Mr. Smith, Mrs. Jones, Dr. Who and St. John vs. Prof. Plum",
    "the U.S. Army, a Ph.D. Student, e.g. Apples, i.e. Pears and a.k.a. Plums",
    "z.B. Äpfel, z. B. Birnen, d. h. Obst, bzw. Gemüse, ca. 5 Kilo, vgl. Abb. 3, am 3. Oktober, im 19. Jahrhundert",
    "M. Dupont et Mme. Curie, la Sra. García, el Sr. Pérez, il Sig. Rossi, t.ex. Äpplen, f.eks. Norge, им. Ленина",
    "No. 5, Fig. 3, p. 12, pp. 3-4, vol. 2, Jan. 5, et al. (2003), Nr. 7 and Art. 9",
    "pi is 3.14 and 1.000.000,5 at 10.30",
    "wait ... what? no! really. yes… and so on? maybe",
    "What?! he said. and “Really?” she asked",
    "1. Introduction",
    "3.1. Methods",
    ". . . Women have always",
    "in the Shari'a and 'J. Smith'",
    "no end",
    "...",
    "Yes! 😀",
]


@pytest.mark.parametrize("text", SPLIT)
def test_sentences_end_where_a_reader_ends_them(text):
    assert split_sentences(text.replace("|", "").replace("  ", " ")) == [part.strip() for part in text.split("|")]


@pytest.mark.parametrize("text", WHOLE)
def test_dots_within_a_sentence_do_not_end_it(text):
    assert split_sentences(text) == [text]


def test_an_abbreviation_counts_only_as_a_whole_word_and_before_what_it_needs():
    assert split_sentences("He is a TDr. Then he said No. Later, on p. He left etc. Then") == [
        "He is a TDr.",
        "Then he said No.",
        "Later, on p. He left etc.",
        "Then",
    ]


def test_no_text_no_sentences():
    assert split_sentences("") == split_sentences(" \n\t\u3000") == []


def test_white_space_of_any_kind_separates():
    assert split_sentences("  One.\n\nTwo.\u00a0 Three.\u3000Four. ") == ["One.", "Two.", "Three.", "Four."]


def test_nothing_but_white_space_is_ever_lost():
    choose = random.Random(0)
    alphabet = " \n\t\u00a0\u3000..!?…。！“”\"''«»)]([-–—$1aAbÄßǅ中あとक।ა\u0301\x00\x1f😀"
    words = ["Mr.", "U.S.", "No. 5", "z.B.", "。」", "It rains."]
    splits = 0
    for _ in range(5000):
        text = "".join(choose.choice([*alphabet, *words]) for _ in range(choose.randrange(40)))
        sentences = split_sentences(text)
        assert "".join("".join(sentences).split()) == "".join(text.split())
        assert all(sentence and sentence == sentence.strip() for sentence in sentences)
        splits += len(sentences) > 1
    assert splits > 1000


LONG = [".", " ", "a", "。", "[", ". ", "A. ", "! ", '." ', '" ', "- ", "« ", "1. Mai ", ".[a]", "? - (", "Ab. ", "\n"]


@pytest.mark.parametrize("unit", LONG)
def test_time_is_linear(unit):
    """Twenty times the text may not take two hundred times the time, as it would if it were quadratic: four hundred."""

    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        start = time.process_time()
        split_sentences(text)
        return time.process_time() - start

    small = min(seconds(10_000) for _ in range(5))
    assert seconds(200_000) < 200 * max(small, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [".", " ", "word ", "a word. "])
def test_ten_million_characters_take_seconds(unit):
    start = time.process_time()
    split_sentences(unit * (10_000_000 // len(unit)))
    assert time.process_time() - start < 10
