"""What an ELMo knows about words: shown with a pretrained folder, loaded as anybody would load it from the Hub.

    python examples/demo_words.py demo_output/model demo_output/text/train.txt

Every number is computed from the model; only the example sentences are given. Vectors are compared by their cosine,
after the mean over the words of the text is subtracted, for the vectors of all words have much in common.
"""

import argparse
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

# Words with two uses in texts about programming: two sentences for each use, the word in brackets.
USES = {
    "set": (
        ("The result is a [set] of strings .", "Return a new [set] with the elements of both ."),
        ("This function is used to [set] the name of the file .", "You can [set] the value of this option ."),
    ),
    "match": (
        ("The type of the value does not [match] .", "The names must [match] the pattern ."),
        ("Return the first [match] of the pattern .", "If there is a [match] , the group is returned ."),
    ),
    "call": (
        ("We must not [call] this method .", "You should [call] the function with no arguments ."),
        ("The function [call] returns a string .", "The arguments of the [call] are in a list ."),
    ),
    "left": (
        ("Return the [left] side of the window .", "The text is aligned to the [left] ."),
        ("All other values are [left] unchanged .", "The file is [left] open ."),
    ),
    "handle": (
        ("The method can [handle] this exception .", "The server does not [handle] the request ."),
        ("Close the [handle] of the process .", "Return the [handle] of the file ."),
    ),
    "test": (
        ("Run the [test] again .", "The result of the [test] is printed ."),
        ("This method is used to [test] the value .", "You can [test] whether the file is open ."),
    ),
    "point": (
        ("It is a floating [point] number .", "Return a floating [point] value ."),
        ("At this [point] the file is closed .", "It is not known at that [point] ."),
    ),
}
SHOWN_IN_TEXT = ("set", "match", "handle")  # those of them whose nearest occurrences are printed
MISSPELT = {
    "exeption": "exception",
    "funtion": "function",
    "arguement": "argument",
    "atribute": "attribute",
    "dictionnary": "dictionary",
    "seperator": "separator",
    "occured": "occurred",
    "retruns": "returns",
}


@dataclass
class Occurrences:
    """All words of some sentences in context. `vectors`: (words, width), centred."""

    sentences: list[list[str]]
    places: list[tuple[int, int]]
    vectors: Tensor

    def of(self, word: str) -> list[int]:
        """Where in `places` and `vectors` a word is."""
        return [i for i, (sentence, place) in enumerate(self.places) if self.sentences[sentence][place] == word]

    def show(self, index: int, width: int) -> str:
        """A word between its neighbours, in a line of about `width` columns."""
        sentence, place = self.places[index]
        return in_context(self.sentences[sentence], place, width)


class Embedder:
    """A pretrained folder as functions from words to vectors."""

    def __init__(self, folder: str):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        self.mean = torch.zeros(())

    @torch.no_grad()
    def in_context(self, sentences: list[list[str]]) -> list[Tensor]:
        """Mean of the LSTM layers at each word: a tensor (words, width) for each sentence, centred."""
        result: list[Tensor] = [torch.empty(0)] * len(sentences)
        by_length = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        for start in range(0, len(by_length), 64):
            numbers = by_length[start : start + 64]
            words = [sentences[number] for number in numbers]
            batch = self.tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
            layers = self.model(**batch, output_hidden_states=True).hidden_states
            vectors = torch.stack(layers[1:]).mean(0)  # (sentences, words, width)
            for number, row in zip(numbers, vectors, strict=True):
                result[number] = row[1 : 1 + len(sentences[number])] - self.mean  # without the sentence boundaries
        return result

    @torch.no_grad()
    def alone(self, words: list[str]) -> Tensor:
        """The words' vectors before any context, (words, width), centred over those words."""
        batch = self.tokenizer([[word] for word in words], is_split_into_words=True, return_tensors="pt")
        vectors = self.model(**batch, output_hidden_states=True).hidden_states[0][:, 1]  # (words, width)
        return vectors - vectors.mean(0)

    def read(self, lines: list[str]) -> Occurrences:
        """The words of a text in context; from now on their mean is what vectors are centred by."""
        sentences = [words for words in map(self.tokenizer.split_words, lines) if words]
        vectors = torch.cat(self.in_context(sentences))  # (words, width)
        self.mean = vectors.mean(0)
        places = [(number, place) for number, words in enumerate(sentences) for place in range(len(words))]
        return Occurrences(sentences, places, vectors - self.mean)


def unbracket(example: str) -> tuple[list[str], int]:
    """The words of an example sentence, and which of them is in brackets."""
    words = example.split()
    place = next(index for index, word in enumerate(words) if word.startswith("["))
    words[place] = words[place].strip("[]")
    return words, place


def in_context(words: list[str], place: int, width: int) -> str:
    """A word in brackets in the middle of a line of `width` columns, between as many words as there is room for."""
    side = (width - len(words[place]) - 4) // 2
    before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
    before = before if len(before) <= side else "…" + before[len(before) - side + 1 :]
    after = after if len(after) <= side else after[: side - 1] + "…"
    return f"{before:>{side}} [{words[place]}] {after}"


def nearest_by_context(embedder: Embedder, text: Occurrences, examples: Iterable[str], number: int = 3):
    """Print, for a word in a sentence, the sentences of the text where the same word has the nearest vectors."""
    for example in examples:
        words, place = unbracket(example)
        indices = text.of(words[place])
        if not indices:
            continue
        vector = embedder.in_context([words])[0][place]
        similarity = cosine_similarity(vector, text.vectors[indices], dim=1)
        nearest: dict[str, float] = {}  # each line once
        for which in similarity.argsort(descending=True).tolist():
            nearest.setdefault(text.show(indices[which], 84), float(similarity[which]))
            if len(nearest) == number:
                break
        print(f"\n  given {in_context(words, place, 84)}")
        for line, value in nearest.items():
            print(f"  {value:5.2f} {line}")


def same_word_in_two_contexts(embedder: Embedder, uses: dict):
    """Print how alike a word's vectors are in the same use and in two uses."""
    print(f"  {'word':<10}{'first use':>12}{'second use':>12}{'across uses':>13}")
    for word, groups in uses.items():
        examples = [unbracket(example) for group in groups for example in group]
        vectors = embedder.in_context([words for words, _ in examples])
        chosen = torch.stack([row[place] for row, (_, place) in zip(vectors, examples, strict=True)])  # (4, width)
        alike = cosine_similarity(chosen[:, None], chosen[None], dim=2)  # (4, 4)
        print(f"  {word:<10}{alike[0, 1]:>12.2f}{alike[2, 3]:>12.2f}{alike[:2, 2:].mean():>13.2f}")


def misspelt_words(embedder: Embedder, misspelt: dict[str, str]):
    """Print, for a misspelt word, how near the right one is among all words of the vocabulary."""
    vocabulary = [word for word in embedder.tokenizer.lm_vocab if word.isalpha() and len(word) > 2]
    misspelt = {wrong: right for wrong, right in misspelt.items() if wrong not in vocabulary and right in vocabulary}
    vectors = embedder.alone([*vocabulary, *misspelt])
    known, unknown = vectors[: len(vocabulary)], vectors[len(vocabulary) :]
    print(f"  {'misspelt':<14}{'meant':<14}{'cosine':>6}{f'rank of {len(vocabulary):,}':>16}   nearest words")
    for (wrong, right), vector in zip(misspelt.items(), unknown, strict=True):
        similarity = cosine_similarity(vector, known, dim=1)  # (vocabulary,)
        value = similarity[vocabulary.index(right)]
        rank = int((similarity > value).sum()) + 1
        nearest = ", ".join(vocabulary[index] for index in similarity.topk(min(3, len(vocabulary))).indices)
        print(f"  {wrong:<14}{right:<14}{value:>6.2f}{rank:>16}   {nearest}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a pretrained folder, or its name on the Hub")
    parser.add_argument("text", nargs="+", type=Path, help="text files, a sentence a line, to look for neighbours in")
    parser.add_argument("--sentences", type=int, default=6000, help="sentences that are read, chosen at random")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    embedder = Embedder(arguments.folder)
    lines = [line for path in arguments.text for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    text = embedder.read(lines[: arguments.sentences])
    print(f"{type(embedder.model).__name__} from {arguments.folder}, loaded from the code in that folder alone;")
    print(f"{len(text.places):,} words of {len(text.sentences):,} sentences read")

    print("\nNearest by context: a word in a sentence, and its nearest occurrences in the text")
    nearest_by_context(embedder, text, (group[0] for word in SHOWN_IN_TEXT for group in USES[word]))
    print("\nThe same word in two contexts: cosine between two sentences of one use, and across two uses\n")
    same_word_in_two_contexts(embedder, USES)
    print("\nMisspelt words, not in the vocabulary: their characters lead to the right one, before any context\n")
    misspelt_words(embedder, MISSPELT)


if __name__ == "__main__":
    main()
