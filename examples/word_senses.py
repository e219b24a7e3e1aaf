"""What an ELMo knows of word senses, by layer: no training, only the cosines of a word's vectors in two contexts.

Word in context (WiC, Pilehvar and Camacho-Collados 2019, arXiv 1808.09121): has a word the same sense in two sentences?
Yes if the cosine is above a threshold, which is chosen on the training data. Columns sentence1, start1, end1,
sentence2, start2, end2 (where the word is, in characters) and label (1: same sense):

    python examples/word_senses.py my-elmo wic/train.jsonl.gz wic/validation.jsonl.gz

Word sense disambiguation (as CoarseWSD-20, Loureiro et al. 2021, arXiv 2008.11608): which sense has a word here? That
of its nearest use in the training data, or that whose uses have the nearest mean. Columns word, sentence (split at
white space), index (which of its words) and sense:

    python examples/word_senses.py my-elmo coarse_wsd20/train.jsonl.gz coarse_wsd20/test.jsonl.gz

Layer 0 is the word without context. Where cosines are equal, as they are there, the more frequent sense is taken.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from texts_and_vectors import layer_names, read_columns, run, table, with_average
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.embed import embed
from modeling_elmo.loading import load_encoder
from modeling_elmo.tables import read_table_file
from modeling_elmo.text_files import DataError

Use = tuple[list[str], list[int]]  # the words of a sentence, and which of them are meant


def vectors_of(uses: Sequence[Use], model: ElmoModel, tokenizer: ElmoTokenizer) -> Tensor:
    """The mean of the words that are meant, by layer and for the average of all: (layers + 1, uses, hidden_size)."""
    found = embed((words for words, _ in uses), model, tokenizer, layers="all")  # (layers, words, hidden_size) each
    watched = tqdm(found, total=len(uses), desc="embedding", unit=" sentences")
    chosen = [vectors[:, places].mean(1) for vectors, (_, places) in zip(watched, uses, strict=True)]
    return with_average(torch.stack(chosen, dim=1))


def rounded_cosines(cosines: Tensor) -> np.ndarray:
    """So that those of equal vectors are equal."""
    return cosines.double().numpy().round(5)


# --- Word in context ---------------------------------------------------------------------------------------------


def use_at(text: str, start: int, end: int, tokenizer: ElmoTokenizer) -> Use:
    """The words of a text, and which of them have characters from `start` to `end`, the latter not included.

    Raises:
        `DataError`: none has.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    places = [place for place, (first, last) in enumerate(offsets) if first < end and last > start]
    if not places:
        raise DataError(f"there is no word at characters {start} to {end} of {text!r:.60}")
    return tokenizer.split_words(text), places


def best_threshold(cosines: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with which most labels are right: 1 for cosines above it, else 0. Both are (pairs,)."""
    order = cosines.argsort()
    cosines, labels = cosines[order], labels[order]
    # Right if the first k are taken for 0 and the others for 1, for k from 0 to all: (pairs + 1,).
    right = np.concatenate([[0], (1 - labels).cumsum()]) + np.concatenate([labels[::-1].cumsum()[::-1], [0]])
    thresholds = np.concatenate([[-np.inf], (cosines[1:] + cosines[:-1]) / 2, [np.inf]])
    right[1:-1][cosines[1:] == cosines[:-1]] = -1  # equal ones cannot be told apart
    return float(thresholds[right.argmax()])


def read_pairs(file: str, tokenizer: ElmoTokenizer) -> tuple[list[Use], list[Use], np.ndarray]:
    """First uses, second uses and labels of a file of WiC."""
    firsts, seconds, starts1, ends1, starts2, ends2, labels = read_columns(
        file, ["sentence1", "sentence2"], ["start1", "end1", "start2", "end2", "label"]
    )
    if not set(labels) <= {0, 1}:
        raise DataError(f"{file}: labels must be 0 and 1")
    one = [use_at(text, start, end, tokenizer) for text, start, end in zip(firsts, starts1, ends1, strict=True)]
    other = [use_at(text, start, end, tokenizer) for text, start, end in zip(seconds, starts2, ends2, strict=True)]
    return one, other, np.array(labels, dtype=int)


def word_in_context(arguments: argparse.Namespace):
    """Print the threshold and the accuracy by layer."""
    model, tokenizer = load_encoder(arguments.model)
    cosines, labels = [], []
    for file in (arguments.train, arguments.test):
        firsts, seconds, gold = read_pairs(file, tokenizer)
        one, other = (vectors_of(uses, model, tokenizer) for uses in (firsts, seconds))
        cosines.append(rounded_cosines(cosine_similarity(one, other, dim=2)))  # (layers + 1, pairs)
        labels.append(gold)
    rows = []
    for name, train, test in zip(layer_names(model), *cosines, strict=True):
        threshold = best_threshold(train, labels[0])
        rows.append([name, threshold, accuracy(train, labels[0], threshold), accuracy(test, labels[1], threshold)])
    print(f"Word in context: {len(labels[0]):,} pairs to choose the threshold on, {len(labels[1]):,} pairs to test it")
    print(f"The more frequent label alone: accuracy {max(labels[1].mean(), 1 - labels[1].mean()):.3f}")
    print(table(["", "threshold", "accuracy, train", "accuracy, test"], rows))


def accuracy(cosines: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """The share of pairs whose label is 1 and whose cosine is above the threshold, or neither."""
    return float(((cosines > threshold) == labels).mean())


# --- Word sense disambiguation -----------------------------------------------------------------------------------


def nearest_neighbour(train: Tensor, senses: np.ndarray, test: Tensor) -> np.ndarray:
    """For each test vector (m, dim) the sense of the nearest training vector (n, dim): (m,). All are unit vectors.

    `senses` (n,) are numbers by falling frequency; of equally near ones the most frequent is taken.
    """
    order = senses.argsort(kind="stable")
    cosines = rounded_cosines(test @ train.T)[:, order]
    return senses[order][cosines.argmax(1)]


def nearest_centroid(train: Tensor, senses: np.ndarray, test: Tensor) -> np.ndarray:
    """The same with the mean of each sense's training vectors."""
    means = [normalize(train[senses == sense].mean(0), dim=0) for sense in range(senses.max() + 1)]
    return rounded_cosines(test @ torch.stack(means).T).argmax(1)


def most_frequent(train: Tensor, senses: np.ndarray, test: Tensor) -> np.ndarray:
    """The same for any vectors: the most frequent sense, whose number is 0."""
    return np.zeros(len(test), dtype=int)


METHODS = {"nearest mean of a sense's uses": nearest_centroid, "nearest use": nearest_neighbour}
Method = Callable[[Tensor, np.ndarray, Tensor], np.ndarray]


def read_uses(file: str) -> tuple[list[str], list[str], list[Use]]:
    """Words, senses and uses of a file of senses."""
    words, sentences, senses, indices = read_columns(file, ["word", "sentence", "sense"], ["index"])
    uses: list[Use] = [(sentence.split(), [index]) for sentence, index in zip(sentences, indices, strict=True)]
    for row, (sentence, (index,)) in enumerate(uses):
        if not isinstance(index, int) or not 0 <= index < len(sentence):
            raise DataError(f"{file}, row {row}: index {index!r} is none of the {len(sentence)} words of the sentence")
    return words, senses, uses


def scores(gold: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Accuracy, and the mean F1 of the senses."""
    from sklearn.metrics import f1_score

    return float((gold == predicted).mean()), float(f1_score(gold, predicted, average="macro", zero_division=0))


def disambiguate(arguments: argparse.Namespace):
    """Print accuracy and macro-F1 of each word by layer, beside the most frequent sense, for both methods."""
    import sklearn.metrics  # noqa: F401  # rather missed now than when `scores` asks for it

    model, tokenizer = load_encoder(arguments.model)
    train_words, train_senses, train_uses = read_uses(arguments.train)
    words, senses, uses = read_uses(arguments.test)
    if missing := sorted(set(words) - set(train_words)):
        raise DataError(f"{arguments.train} has no use of {', '.join(missing)}")
    train, test = (normalize(vectors_of(some, model, tokenizer), dim=2) for some in (train_uses, uses))
    cells: dict[str, list[list]] = {name: [] for name in METHODS}
    for word in sorted(set(words)):
        there, here = ([i for i, other in enumerate(all_words) if other == word] for all_words in (train_words, words))
        counts = Counter(train_senses[i] for i in there)
        numbers = {sense: number for number, (sense, _) in enumerate(counts.most_common())}
        known = np.array([numbers[train_senses[i]] for i in there])
        gold = np.array([numbers.setdefault(senses[i], len(numbers)) for i in here])  # unseen ones cannot be found
        for name, method in METHODS.items():
            row = [scores(gold, most_frequent(train[0, there], known, test[0, here]))]
            row += [scores(gold, method(train[n, there], known, test[n, here])) for n in range(len(train))]
            cells[name].append([word, len(counts), len(there), len(here), *row])
    print(f"Word senses: {len(train_uses):,} uses to learn from, {len(uses):,} uses to tell; accuracy and macro-F1")
    for name, rows in cells.items():
        print(f"\n{name}\n{sense_table(rows, layer_names(model))}")


def sense_table(rows: list[list], layers: list[str]) -> str:
    """A line for each word, the mean over words, and the accuracy over all uses."""
    results = np.array([row[4:] for row in rows])  # (words, layers + 1, 2)
    senses, train, test = (np.array([row[column] for row in rows]) for column in (1, 2, 3))
    lines = [*rows, ["mean of words", senses.sum(), train.sum(), test.sum(), *results.mean(0)]]
    shown = [[*map(str, line[:4]), *(f"{right:.3f} {f1:.3f}" for right, f1 in line[4:])] for line in lines]
    shown.append(["all uses", "", "", "", *(f"{right:.3f}" for right in np.average(results[..., 0], 0, test))])
    return table(["word", "senses", "train", "test", "most frequent", *layers], shown)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("train", help="table of pairs or of senses to choose the threshold on, or to learn from")
    parser.add_argument("test", help="table of the same form")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace):
    """The task that the columns are those of."""
    is_pairs = "sentence2" in read_table_file(arguments.train).column_names
    (word_in_context if is_pairs else disambiguate)(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    return run(show, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
