"""Search with ELMo: the sentences of a corpus that are nearest to a query.

The texts are the lines of a text file (also compressed) or a column of a table (json, jsonl, csv, tsv, parquet, also
.gz). Each of their sentences has the mean of its words' vectors, in an index of faiss:

    python examples/search.py my-elmo corpus.txt.gz "Who wrote the book?" "The rain did not stop ."
    python examples/search.py my-elmo corpus.txt.gz "Who wrote the book?" --misspell        # and with typos in it
    python examples/search.py my-elmo texts.jsonl.gz "Who wrote the book?" --column text --layers average --centre

How good it is, on a table of questions and the texts that answer them, such as SQuAD: recall by layer, with and
without what all vectors have in common, beside TF-IDF, as asked and with typos:

    python examples/search.py my-elmo squad/validation.jsonl.gz --evaluate
"""

import argparse
import random
import re
import sys
from collections.abc import Callable, Sequence
from textwrap import shorten

import numpy as np
from texts_and_vectors import add_vector_flags, centred, layer_names, read_columns, read_texts, run, table, text_vectors
from torch import Tensor
from torch.nn.functional import normalize

from modeling_elmo.arguments import ArgumentsError
from modeling_elmo.loading import load_encoder
from modeling_elmo.sentences import split_sentences

RANKS = (1, 5, 10)


def misspell(text: str, random_numbers: random.Random) -> str:
    """A text with a typo in one of its words of four letters or more: two letters behind its first changed places."""
    words = [match for match in re.finditer(r"[^\W\d_]{4,}", text) if len(set(match[0][1:])) > 1]
    if not words:
        return text
    word = random_numbers.choice(words)
    places = [place for place in range(word.start() + 1, word.end() - 1) if text[place] != text[place + 1]]
    place = random_numbers.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def sentences_of(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The sentences of texts, and the number of the text that each is from, (sentences,)."""
    pairs = [(sentence, number) for number, text in enumerate(texts) for sentence in split_sentences(text)]
    return [sentence for sentence, _ in pairs], np.array([number for _, number in pairs])


def build_index(vectors: Tensor, kind: str = "Flat"):
    """An index of faiss over unit vectors (n, dim), by inner product: by cosine.

    Args:
        kind: as for `faiss.index_factory`: "Flat" compares with all vectors, "HNSW32" with few of a large corpus.

    Raises:
        `ArgumentsError`: faiss knows no such index.
    """
    import faiss

    try:
        index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors.numpy())  # nothing to do for the two above
    except RuntimeError as error:
        raise ArgumentsError(f"--index {kind}: faiss cannot make this index of {len(vectors):,} vectors") from error
    index.add(vectors.numpy())
    return index


def ask(arguments: argparse.Namespace):
    """Print the nearest sentences to each query."""
    texts = read_texts(arguments.data, arguments.column)
    sample = read_texts(arguments.query_sample, arguments.query_column) if arguments.query_sample else []
    first: dict[str, int] = {}  # each sentence is shown once
    for sentence, number in zip(*sentences_of(texts), strict=True):
        first.setdefault(sentence, number)
    sentences = list(first)
    model, tokenizer = load_encoder(arguments.model)
    vectors = text_vectors(sentences, model, tokenizer, arguments.layers)  # (sentences, hidden_size)
    queries = list(arguments.query)
    if arguments.misspell:
        random_numbers = random.Random(arguments.seed)
        queries = [text for query in queries for text in (query, misspell(query, random_numbers))]
    asked = text_vectors(queries, model, tokenizer, arguments.layers)
    if arguments.centre:
        of_sample = text_vectors(sample, model, tokenizer, arguments.layers) if sample else vectors
        asked = centred(asked, of_sample, arguments.components)
        vectors = centred(vectors, vectors, arguments.components)
    index = build_index(normalize(vectors, dim=1), arguments.index)
    cosines, found = index.search(normalize(asked, dim=1).numpy(), min(arguments.top_k, len(sentences)))
    print(f"{len(sentences):,} different sentences of {len(texts):,} texts in {arguments.data}")
    print("Below each query: cosine, number of the text, sentence")
    for query, row, places in zip(queries, cosines, found, strict=True):
        print(f"\n{query}")
        for cosine, sentence in zip(row, (sentences[place] for place in places if place >= 0), strict=False):
            print(f"  {cosine:5.2f}  {first[sentence] + 1:>6}  {shorten(sentence, 90, placeholder=' ...')}")


# --- Evaluation --------------------------------------------------------------------------------------------------


def recall(found: Sequence[Sequence[int]], right: Sequence[int]) -> list[float]:
    """The share of queries whose right text is among the first 1, 5 and 10 that were found, (len(RANKS),)."""
    pairs = list(zip(found, right, strict=True))
    return [sum(text in texts[:rank] for texts, text in pairs) / len(pairs) for rank in RANKS]


def ways_to_compare(
    sentences: Tensor, sample: Tensor, components: int
) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """By name, what makes unit vectors of sentences (n, dim) and of queries (m, dim).

    `sample`: queries as they are asked, from which their mean and components are known.
    """
    return {
        "": lambda queries: (normalize(sentences, dim=1), normalize(queries, dim=1)),
        " - the texts' mean": lambda queries: (centred(sentences, sentences), centred(queries, sentences)),
        " - its own mean": lambda queries: (centred(sentences, sentences), centred(queries, sample)),
        f" - its own mean, {components} components": lambda queries: (
            centred(sentences, sentences, components),
            centred(queries, sample, components),
        ),
    }


def found_by_elmo(sentences: Tensor, queries: Tensor, owner: np.ndarray) -> list[list[int]]:
    """For each query the texts by their nearest sentence, the nearest first.

    Args:
        sentences, queries: unit vectors (n, dim), (m, dim).
        owner: (n,) which text each sentence is of.
    """
    # So many sentences are of ten texts at least.
    depth = min(len(owner), max(RANKS) * int(np.bincount(owner).max()))
    _, found = build_index(sentences).search(queries.numpy(), depth)
    return [list(dict.fromkeys(row.tolist())) for row in owner[found]]


def found_by_tfidf(texts: Sequence[str], queries: Sequence[str], analyzer: str) -> list[list[int]]:
    """For each query the texts by the cosine of their TF-IDF vectors: of "word" or, within words, of "char_wb"."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    options = {"ngram_range": (3, 5), "sublinear_tf": True} if analyzer == "char_wb" else {}
    vectorizer = TfidfVectorizer(analyzer=analyzer, **options)
    weights = vectorizer.fit_transform(texts)
    cosines = (vectorizer.transform(queries) @ weights.T).toarray()  # (queries, texts)
    return np.argsort(-cosines, axis=1, kind="stable")[:, : max(RANKS)].tolist()


def evaluate(arguments: argparse.Namespace):
    """Print recall on questions and the texts that answer them."""
    questions, contexts = read_columns(arguments.data, [arguments.query_column, arguments.column or "context"])
    texts = list(dict.fromkeys(contexts))
    number_of = {text: number for number, text in enumerate(texts)}
    right = [number_of[context] for context in contexts]
    random_numbers = random.Random(arguments.seed)
    ways = [questions, [misspell(question, random_numbers) for question in questions]]
    rows: list[list] = []
    for name, analyzer in (("TF-IDF of words", "word"), ("TF-IDF of 3 to 5 characters", "char_wb")):
        scores = [recall(found_by_tfidf(texts, queries, analyzer), right) for queries in ways]
        rows.append([name, *scores[0], *scores[1]])

    model, tokenizer = load_encoder(arguments.model)
    sentences, owner = sentences_of(texts)
    of_texts = text_vectors(sentences, model, tokenizer)  # (layers, sentences, hidden_size)
    of_queries = [text_vectors(queries, model, tokenizer) for queries in ways]
    for number, name in enumerate(layer_names(model)):
        for way, of_layer in ways_to_compare(of_texts[number], of_queries[0][number], arguments.components).items():
            found = [found_by_elmo(*of_layer(queries[number]), owner) for queries in of_queries]
            scores = [recall(texts_found, right) for texts_found in found]
            rows.append([f"{name}{way}", *scores[0], *scores[1]])
    print(f"{len(questions):,} questions, {len(texts):,} texts of {len(sentences):,} sentences: recall at 1, 5, 10")
    print(table(["", *(f"@{rank}" for rank in RANKS), *(f"typo @{rank}" for rank in RANKS)], rows))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("data", help="text file or table to search, or with --evaluate a table of questions and texts")
    parser.add_argument("query", nargs="*", help="what to search for")
    add_vector_flags(parser)
    parser.add_argument("--top_k", type=int, default=5, help="sentences to show for each query; default 5")
    parser.add_argument(
        "--query_sample", help="file of texts like the queries: with --centre, what is taken off the queries is theirs"
    )
    parser.add_argument("--misspell", action="store_true", help="ask each query again with typos in it")
    parser.add_argument("--seed", type=int, default=0, help="of the typos")
    parser.add_argument("--evaluate", action="store_true", help="measure recall instead; its column of texts: context")
    parser.add_argument("--query_column", default="question", help="column of queries in a table; default question")
    arguments = parser.parse_args(argv)
    if arguments.top_k < 1 or arguments.components < 0:
        parser.error("--top_k must be 1 or more, --components 0 or more")
    if bool(arguments.query) == arguments.evaluate:
        parser.error("give either queries or --evaluate")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.evaluate:
        return run(evaluate, arguments, "faiss", "sklearn.feature_extraction.text")
    return run(ask, arguments, "faiss")


if __name__ == "__main__":
    sys.exit(main())
