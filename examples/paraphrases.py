"""Paraphrases by ELMo: the pairs of sentences that are most alike, by the cosine of their words' mean vectors.

The most similar pairs of the lines of a text file (also compressed) or of a column of a table:

    python examples/paraphrases.py my-elmo sentences.txt
    python examples/paraphrases.py my-elmo mrpc/train.jsonl.gz --column sentence1 --layers 1 --centre

How well cosines agree with people, on tables of pairs with a label, by layer, with and without what all vectors have
in common, beside the words that both sentences have. Average precision for labels of 0 and 1, Spearman's rank
correlation for more:

    python examples/paraphrases.py my-elmo mrpc/validation.jsonl.gz stsb/validation.jsonl.gz --evaluate
    python examples/paraphrases.py my-elmo sick/test.jsonl.gz --evaluate --label_column relatedness_score
"""

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch
from search import build_index
from texts_and_vectors import add_vector_flags, centred, layer_names, read_columns, read_texts, run, table, text_vectors
from torch import Tensor
from torch.nn.functional import normalize

from modeling_elmo import ElmoModel, ElmoTokenizer
from modeling_elmo.loading import load_encoder
from modeling_elmo.text_files import DataError


def most_similar_pairs(vectors: Tensor, number: int, index: str = "Flat") -> list[tuple[float, int, int]]:
    """The pairs of different rows with the highest cosines: (cosine, row, row), the highest first.

    Args:
        vectors: unit vectors (n, dim).
        number: pairs to find; n * (n - 1) / 2 at most are there.
        index: as for `search.build_index`; exact with "Flat".
    """
    # No text is in more pairs than are asked for, so that its nearest `number`, beside itself, are enough.
    depth = min(len(vectors), number + 1)
    cosines, found = build_index(vectors, index).search(vectors.numpy(), depth)
    pairs = {
        (min(row, other), max(row, other)): float(cosine)
        for row, (others, values) in enumerate(zip(found.tolist(), cosines, strict=True))
        for other, cosine in zip(others, values, strict=True)
        if other not in (row, -1)  # faiss gives -1 where an approximate index found too few
    }
    best = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:number]
    return [(cosine, *pair) for pair, cosine in best]


def mine(arguments: argparse.Namespace):
    """Print the most similar pairs."""
    (file,) = arguments.data
    texts = [" ".join(text.split()) for text in read_texts(file, arguments.column)]
    texts = [text for text in dict.fromkeys(texts) if text]
    if len(texts) < 2:
        raise DataError(f"{file} has only one text")
    model, tokenizer = load_encoder(arguments.model)
    vectors = text_vectors(texts, model, tokenizer, arguments.layers)  # (texts, hidden_size)
    vectors = centred(vectors, vectors, arguments.components) if arguments.centre else normalize(vectors, dim=1)
    print(f"{len(texts):,} different texts in {file}")
    for cosine, one, other in most_similar_pairs(vectors, arguments.pairs, arguments.index):
        print(f"\n  {cosine:.3f}  {texts[one]}\n         {texts[other]}")


def word_overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of the words of either text that are in both: Jaccard's index, without regard to case."""
    first, second = ({word.lower() for word in words} for words in (one, other))
    return len(first & second) / max(len(first | second), 1)


def is_binary(labels: np.ndarray) -> bool:
    """Whether labels say only "the same" or not."""
    return set(labels.tolist()) <= {0, 1}


def agreement(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision for labels of 0 and 1, Spearman's rank correlation for others."""
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score

    if is_binary(labels):
        return float(average_precision_score(labels, scores))
    return float(spearmanr(labels, scores).statistic)


def similarities(
    firsts: Sequence[str], seconds: Sequence[str], components: int, model: ElmoModel, tokenizer: ElmoTokenizer
) -> dict[str, list[np.ndarray]]:
    """Scores of pairs by name, (pairs,) each: for each layer cosines as they are, less the mean of all sentences, and
    less their first components too."""
    words = [[tokenizer.split_words(text) for text in pair] for pair in zip(firsts, seconds, strict=True)]
    found = {"words in common": [np.array([word_overlap(*pair) for pair in words])]}
    layers = text_vectors([*firsts, *seconds], model, tokenizer)  # (layers, 2 * pairs, hidden_size)
    for name, layer in zip(layer_names(model), layers, strict=True):
        ways = normalize(layer, dim=1), centred(layer, layer), centred(layer, layer, components)
        found[name] = [torch.linalg.vecdot(*vectors.chunk(2)).numpy() for vectors in ways]
    return found


def evaluate(arguments: argparse.Namespace):
    """Print how well scores agree with the labels of pairs."""
    model, tokenizer = load_encoder(arguments.model)
    column = arguments.label_column
    for file in arguments.data:
        firsts, seconds, labels = read_columns(file, ["sentence1", "sentence2"], [column])
        if len(set(labels)) < 2:
            raise DataError(f"{file}: column {column!r} has {labels[0]!r} everywhere")
        gold = np.array(labels, dtype=float)
        scores = similarities(firsts, seconds, arguments.components, model, tokenizer)
        measure = "Spearman's correlation"
        if is_binary(gold):
            measure = f"average precision; by chance {gold.mean():.3f}"
        print(f"\n{file}, {len(labels):,} pairs, {measure}")
        header = ["cosine", "as it is", "less the mean", f"and {arguments.components} components"]
        rows = [[name, *(agreement(gold, values) for values in ways)] for name, ways in scores.items()]
        print(table(header, [[*row, *[""] * (len(header) - len(row))] for row in rows]))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("data", nargs="+", help="text file or table; with --evaluate tables of pairs")
    add_vector_flags(parser)
    parser.add_argument("--pairs", type=int, default=20, help="pairs to show; default 20")
    parser.add_argument("--evaluate", action="store_true", help="measure on pairs with labels instead")
    parser.add_argument("--label_column", default="label", help="with --evaluate: column of labels; default label")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 1 or arguments.components < 0:
        parser.error("--pairs must be 1 or more, --components 0 or more")
    if len(arguments.data) > 1 and not arguments.evaluate:
        parser.error("several files are for --evaluate only")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.evaluate:
        return run(evaluate, arguments, "scipy.stats", "sklearn.metrics")
    return run(mine, arguments, "faiss")


if __name__ == "__main__":
    sys.exit(main())
