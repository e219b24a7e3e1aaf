"""How contextual the vectors of an ELMo are, by layer: the measures of Ethayarajh 2019 (arXiv 1909.00512, section 3).

    python examples/contextuality.py my-elmo corpus.txt.gz contextuality.png
    python examples/contextuality.py my-elmo texts.jsonl.gz contextuality.png --column text --sentences 5000

Sentences of a text file (also compressed) or of a table's column are drawn at random, and words among those that are in
at least five of them. Printed and drawn are three means for each layer, as measured and less what any words have that
are drawn at random (the anisotropy of the layer):

    self-similarity            cosine of a word's vectors in two of its contexts, mean over words
    intra-sentence similarity  cosine of a word's vector and the mean of its sentence, mean over words and sentences
    explainable variance       share of the first singular value in a word's vectors, mean over words: the most that
                               one vector for all of its contexts can tell

Below them the words whose vectors change most and least with their context.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from texts_and_vectors import read_texts, run, table
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from modeling_elmo.embed import embed
from modeling_elmo.loading import load_encoder
from modeling_elmo.text_files import DataError

MEASURES = ("self-similarity", "intra-sentence similarity", "explainable variance")


# --- The measures ------------------------------------------------------------------------------------------------


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs of different rows of (n, dim): the self-similarity of a word (definition 1), and the
    anisotropy, if rows are words drawn at random (section 3.4)."""
    number = len(vectors)
    total = normalize(vectors.double(), dim=1).sum(0)
    # The square of the sum is that of all pairs, each with itself among them.
    return float((total @ total - number) / (number * (number - 1)))


def intra_sentence_similarity(vectors: Tensor) -> float:
    """Mean cosine of the words of a sentence (n, dim) and their mean (definition 2)."""
    return float(torch.cosine_similarity(vectors.double(), vectors.double().mean(0), dim=1).mean())


def maximum_explainable_variance(vectors: Tensor) -> float:
    """The share of the first singular value among those of (n, dim), all squared (definition 3).

    As in the definition, the vectors are not centred: a word that is the same everywhere has 1 (the author's own code
    centres them, and has far lower values). n vectors have 1 / n at least.
    """
    squares = torch.linalg.svdvals(vectors.double()).square()
    return float(squares[0] / squares.sum())


@dataclass
class Layer:
    """The measures of a layer: means, the same of words drawn at random, and the self-similarity of each word."""

    measured: tuple[float, float, float]
    baseline: tuple[float, float, float]
    of_words: dict[str, float]

    @property
    def adjusted(self) -> list[float]:
        """What is measured beyond the baseline (section 3.4)."""
        return [value - base for value, base in zip(self.measured, self.baseline, strict=True)]


def measure(vectors: Sequence[Tensor], words: dict[str, list[tuple[int, int]]], drawn: Tensor) -> Layer:
    """The measures of a layer.

    Args:
        vectors: of each sentence, (words, dim).
        words: for each word where it is: sentence and place.
        drawn: words drawn at random, (n, dim).
    """
    self_similarities, variances = {}, []
    for word, places in words.items():
        occurrences = torch.stack([vectors[sentence][place] for sentence, place in places])  # (occurrences, dim)
        self_similarities[word] = mean_cosine(occurrences)
        variances.append(maximum_explainable_variance(occurrences))
    # A single word is its own mean.
    within = [intra_sentence_similarity(sentence) for sentence in vectors if len(sentence) > 1] or [1.0]
    anisotropy = mean_cosine(drawn)
    return Layer(
        (fmean(self_similarities.values()), fmean(within), fmean(variances)),
        (anisotropy, anisotropy, maximum_explainable_variance(drawn)),
        self_similarities,
    )


# --- What is measured --------------------------------------------------------------------------------------------


def choose_words(
    sentences: Sequence[Sequence[str]], contexts: int, number: int, random_numbers: random.Random
) -> dict[str, list[tuple[int, int]]]:
    """Words, at most `number`, that are in at least so many sentences; for each all its places: sentence and place.

    Raises:
        `DataError`: there is none.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for sentence, words in enumerate(sentences):
        for place, word in enumerate(words):
            places.setdefault(word, []).append((sentence, place))
    often = [word for word, found in places.items() if len({sentence for sentence, _ in found}) >= contexts]
    if not often:
        raise DataError(f"no word is in {contexts} of {len(sentences):,} sentences: give more text or lower --contexts")
    return {word: places[word] for word in random_numbers.sample(often, min(number, len(often)))}


def layers_of(arguments: argparse.Namespace) -> tuple[list[Layer], str]:
    """The measures of all layers, and what they were measured on."""
    random_numbers = random.Random(arguments.seed)
    texts = sorted({text.strip() for text in read_texts(arguments.data, arguments.column)} - {""})
    texts = random_numbers.sample(texts, min(arguments.sentences, len(texts)))
    model, tokenizer = load_encoder(arguments.model)
    sentences = [tokenizer.split_words(text) for text in texts]
    words = choose_words(sentences, arguments.contexts, arguments.words, random_numbers)
    anywhere = [(number, place) for number, words in enumerate(sentences) for place in range(len(words))]
    drawn = random_numbers.sample(anywhere, min(arguments.drawn, len(anywhere)))
    found = embed(sentences, model, tokenizer, layers="all")  # (layers, words, hidden_size) each
    vectors = list(tqdm(found, total=len(sentences), desc="embedding", unit=" sentences"))
    layers = []
    for number in tqdm(range(model.config.num_hidden_layers + 1), desc="measuring", unit=" layers"):
        of_layer = [sentence[number] for sentence in vectors]
        layers.append(measure(of_layer, words, torch.stack([of_layer[sentence][place] for sentence, place in drawn])))
    return layers, (
        f"{len(sentences):,} different sentences of {len(anywhere):,} words; {len(words):,} words that are in at least "
        f"{arguments.contexts} of them, {sum(map(len, words.values())):,} times; {len(drawn):,} drawn at random"
    )


# --- What is shown -----------------------------------------------------------------------------------------------


def measures_table(layers: Sequence[Layer]) -> str:
    """A line for each measure and layer."""
    rows = [
        [
            name if number == 0 else "",
            str(number),
            layer.measured[column],
            layer.baseline[column],
            layer.adjusted[column],
        ]
        for column, name in enumerate(MEASURES)
        for number, layer in enumerate(layers)
    ]
    return table(["", "layer", "measured", "at random", "adjusted"], rows)


def extremes_table(layer: Layer, number: int) -> str:
    """The words with the lowest and the highest self-similarity, side by side."""
    words = sorted(layer.of_words, key=layer.of_words.__getitem__)
    pairs = zip(words[:number], words[::-1][:number], strict=True)
    rows = [[low, layer.of_words[low], high, layer.of_words[high]] for low, high in pairs]
    return table(["changes most", "self-similarity", "changes least", "self-similarity"], rows)


def plot(layers: Sequence[Layer], png_file: Path):
    """Draw each measure over the layers: as measured, at random, and the difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    numbers = range(len(layers))
    for column, (axes, name) in enumerate(zip(panels, MEASURES, strict=True)):
        axes.plot(numbers, [layer.measured[column] for layer in layers], "o-", color="#0b63a5", label="measured")
        axes.plot(numbers, [layer.baseline[column] for layer in layers], "o--", color="#888888", label="at random")
        axes.plot(numbers, [layer.adjusted[column] for layer in layers], "o-", color="#d1601f", label="adjusted")
        axes.set_title(name, fontsize=10)
        axes.set_xticks(numbers)
        axes.set_xlabel("layer")
        axes.grid(True, axis="y", color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(min(0.0, *(value for layer in layers for value in layer.adjusted)) - 0.02, 1.02)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(png_file)


def show(arguments: argparse.Namespace):
    """Measure, print and draw."""
    layers, what = layers_of(arguments)
    print(what)
    print(measures_table(layers))
    print(f"\nIn layer {len(layers) - 1}:")
    print(extremes_table(layers[-1], arguments.shown))
    plot(layers, arguments.plot)
    print(f"\nwrote {arguments.plot}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("data", help="text file, a sentence a line, or a table")
    parser.add_argument("plot", type=Path, help="PNG file to write")
    parser.add_argument("--column", help="column of sentences in a table")
    parser.add_argument("--sentences", type=int, default=4000, help="different sentences to read; default 4000")
    parser.add_argument("--words", type=int, default=1000, help="words to measure at most; default 1000")
    parser.add_argument("--contexts", type=int, default=5, help="sentences that a word must be in; default 5")
    parser.add_argument("--drawn", type=int, default=1000, help="occurrences drawn for the baselines; default 1000")
    parser.add_argument("--shown", type=int, default=10, help="words to show at either end; default 10")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences, words and occurrences that are drawn")
    arguments = parser.parse_args(argv)
    if min(arguments.sentences, arguments.words, arguments.shown) < 1 or min(arguments.contexts, arguments.drawn) < 2:
        parser.error("--sentences, --words and --shown must be 1 or more, --contexts and --drawn 2 or more")
    if arguments.plot.suffix.lower() != ".png" or not arguments.plot.parent.is_dir():
        parser.error(f"{arguments.plot} must be a .png file in a folder that is there")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    return run(show, parse_arguments(argv), "matplotlib.figure")


if __name__ == "__main__":
    sys.exit(main())
