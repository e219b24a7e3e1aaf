"""The README.md of a pretrained folder, generated from the run: what the model is, and how it was made."""

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .char_rows import PADDING

TAGS = ["elmo", "character-level", "word-embeddings", "lstm"]
# Told elsewhere in the card, or of no use to its readers.
NOT_IN_RECIPE = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dataset_name", "language", "license"}

CARD = """---
{metadata}
---

# {name}

An ELMo (embeddings from language models, [Peters et al. 2018](https://arxiv.org/abs/1802.05365)): a bidirectional
LSTM language model that reads words as characters and gives each word vectors that depend on its context. It was
pretrained with [modeling_elmo](https://pypi.org/project/modeling-elmo) and loads with `transformers` alone.

## Use

```python
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

name = "{name}"  # this folder, or the id of its copy on the Hub
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)

sentences = ["The bank lent them money.", "They sat on the bank of the river."]
batch = tokenizer(sentences, padding=True, return_tensors="pt")
with torch.no_grad():
    output = model(**batch, output_hidden_states=True)
print(output.scalar_mix.shape)  # (sentences, words, {hidden_size}): the weighted sum of the layers
print(len(output.hidden_states))  # {num_layers} layers, the first without context

# Words that are already separated stay as they are.
batch = tokenizer([["It", "does", "n't", "rain", "."]], is_split_into_words=True, return_tensors="pt")
vectors = model(**batch).last_hidden_state  # (1, words + 2 sentence boundaries, {hidden_size})

# The language model itself: how probable it finds a text.
language_model = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
batch = tokenizer(sentences[0], return_tensors="pt", return_lm_labels=True)
with torch.no_grad():
    print(language_model(**batch).perplexity)
```

The weights of the sum (`model.scalar_mix`) are equal at first and are meant to be learned with the task.

## Results

{results}

The perplexity is per word over the whole vocabulary, unknown words counted as one word, with the LSTM state carried
from sentence to sentence; that of both directions is exp of their mean loss.

## Architecture

{architecture}

## Training data

{data}

## Recipe

{recipe}

Whatever is not listed had the default of `train.py`.

## Limitations

The model knows only the kind of text that is described above, including its errors and prejudices, and its vectors
are of little use for other languages and weaker for other domains. It is made to give features to other models, not
to write text or to judge facts, and the perplexities of models with other vocabularies cannot be compared to its own.

## Citation

```bibtex
@inproceedings{{peters-etal-2018-deep,
    title = "Deep Contextualized Word Representations",
    author = "Peters, Matthew E. and Neumann, Mark and Iyyer, Mohit and Gardner, Matt and Clark, Christopher and
        Lee, Kenton and Zettlemoyer, Luke",
    booktitle = "Proceedings of the 2018 Conference of the North American Chapter of the Association for
        Computational Linguistics: Human Language Technologies, Volume 1 (Long Papers)",
    year = "2018",
    pages = "2227--2237",
    doi = "10.18653/v1/N18-1202",
}}
```
"""


def model_card(
    config,
    *,
    repo_name: str,
    parameters: Mapping[str, int],
    data: Mapping[str, Any],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, float],
    license: str | None = None,
    language: str | None = None,
) -> str:
    """The text of README.md, metadata included.

    Args:
        config: the model's `ElmoConfig`.
        repo_name: name of the folder, under which the card's code loads it.
        parameters: how many there are in each part of the model.
        data: `source` (name of a data set, or list of files), `vocabulary` (words), and `train` and `validation`, each
            with `sentences`, `tokens`, `types`, and `unknown_rate` and `truncated_rate` as shares of the tokens.
        recipe: the arguments of the run that are not defaults. Of paths only the last part is told.
        metrics: `eval_perplexity`, `eval_forward_perplexity` and `eval_backward_perplexity`.
        license: for the metadata, as the Hub spells it; left out when `None`.
        language: the same.
    """
    return CARD.format(
        metadata=metadata(repo_name, data, metrics, license, language),
        name=repo_name,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers + 1,
        results=table(["validation perplexity", ""], [(name, f"{value:.2f}") for name, value in perplexities(metrics)]),
        architecture=table(["part", ""], architecture_rows(config, parameters)),
        data=table(["", "training", "validation"], data_rows(data)),
        recipe=table(["argument", "value"], recipe_rows(recipe)),
    )


def metadata(
    repo_name: str, data: Mapping[str, Any], metrics: Mapping[str, float], license: str | None, language: str | None
) -> str:
    """The card's YAML, without the lines of dashes around it."""
    source = data["source"]
    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Bidirectional language modeling",
            dataset_type=source if isinstance(source, str) else "text",
            dataset_name=f"{source_name(source)} (held out)",
            dataset_split="validation",
            metric_type="perplexity",
            metric_name=f"Perplexity ({name})",
            metric_value=round(value, 4),
        )
        for name, value in perplexities(metrics)
    ]
    return ModelCardData(
        model_name=repo_name,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        license=license,
        language=language,
        datasets=[source] if isinstance(source, str) else None,
        tags=TAGS,
        metrics=["perplexity"],
        eval_results=results,
    ).to_yaml()


def perplexities(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return [
        ("both directions", metrics["eval_perplexity"]),
        ("forward", metrics["eval_forward_perplexity"]),
        ("backward", metrics["eval_backward_perplexity"]),
    ]


def architecture_rows(config, parameters: Mapping[str, int]) -> list[tuple[str, str]]:
    """Name and description of each part of the model."""
    filters = ", ".join(f"{number} of width {width}" for width, number in config.cnn_filters)
    if filters:
        kind = "UTF-8 bytes" if config.char_padding_id == PADDING else f"{config.vocab_size - 1:,} known characters"
        characters = f"{kind}, at most {config.max_word_length - 2} a word, as vectors of {config.char_embedding_dim}"
        word = [
            ("characters", characters),
            ("convolutions", f"{config.num_filters:,} filters: {filters}; {config.cnn_activation}"),
            ("highway layers", str(config.num_highway_layers)),
        ]
        if config.word_embedding_dim is not None:
            table = f"vectors of {config.word_embedding_dim} for {config.word_vocab_size - 1:,} words"
            word.append(("beside the filters", table))
    else:
        word = [("words", f"a table of {config.word_vocab_size:,} rows")]
    clips = [("cells", config.cell_clip), ("outputs", config.proj_clip)]
    clipping = ", ".join(f"{what} clipped to ±{clip:g}" for what, clip in clips if clip is not None)
    return [
        *word,
        ("word vectors", f"{config.projection_dim} wide"),
        (
            "LSTMs",
            f"{config.num_hidden_layers} layers in each direction, {config.lstm_dim:,} cells projected to "
            f"{config.projection_dim}" + (f"; {clipping}" if clipping else ""),
        ),
        ("outputs", f"{config.num_hidden_layers + 1} layers of {config.hidden_size}"),
        ("softmax", f"{config.lm_vocab_size:,} words, shared by both directions"),
        *((f"parameters: {part}", f"{number:,}") for part, number in parameters.items()),
        ("parameters: all", f"{sum(parameters.values()):,}"),
    ]


def data_rows(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was counted in the text that was trained on and in the text held out."""
    sides = [data[side] for side in ("train", "validation") if side in data]
    counted = [("sentences", "sentences"), ("tokens", "tokens"), ("types", "different words")]
    shares = [("unknown_rate", "unknown words (share of tokens)")]
    shares += [("truncated_rate", "words cut because of their length (share of tokens)")]
    return [
        ("source", source_name(data["source"]), ""),
        *((label, *[f"{side[key]:,}" for side in sides]) for key, label in counted),
        ("words in the vocabulary", f"{data['vocabulary']:,}", ""),
        *((label, *[f"{side[key]:.2%}" for side in sides]) for key, label in shares),
    ]


def recipe_rows(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in recipe.items():
        if key not in NOT_IN_RECIPE:
            if key.endswith(("_file", "_name")):
                value = file_names(value)
            rows.append((f"`{key}`", f"`{value}`"))
    return rows


def source_name(source: str | Iterable[str]) -> str:
    """The name of a data set, or the names of files."""
    return source if isinstance(source, str) else file_names(source)


def file_names(paths: str | Iterable[str]) -> str:
    """The last parts of paths: where a file lay on the machine that trained is nobody's business."""
    return ", ".join(PurePath(path).name for path in ([paths] if isinstance(paths, str) else paths))


def table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; a row may be shorter than the head."""
    lines = [tuple(head), ("---",) * len(head), *(row + ("",) * (len(head) - len(row)) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
