"""The README.md of a folder with an ELMo: what it is, how it was made or where it comes from, and how it is used."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils.sha import sha_fileobj
from torch import Tensor

from .char_rows import PADDING

TAGS = ["elmo", "character-level", "word-embeddings", "lstm"]
PARTS = {"word encoder": "word_encoder.", "LSTMs": "lstm.", "softmax": "lm_head."}
# Told elsewhere in the card, or of no use to its readers.
NOT_IN_RECIPE = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "dataset_name", "language", "license"}
NOT_IN_RECIPE |= {"push_to_hub", "hub_model_id", "hub_private_repo", "data_cache_dir"}

CARD = """---
{metadata}
---

# {name}

An ELMo (embeddings from language models, [Peters et al. 2018](https://arxiv.org/abs/1802.05365)): a bidirectional
LSTM language model that {reads} and gives each word vectors that depend on its context. It was
{origin} [modeling_elmo](https://pypi.org/project/modeling-elmo). It loads with
`transformers` alone.

## Use

```python
{usage}
```

{mix}

`trust_remote_code=True` runs the Python files that lie beside the weights. From the Hub, also give each call the commit
whose files you have read, `revision="<commit>"`, so that no later one runs.

{sections}

## Limitations

{limitations}

## Citation

```bibtex
{citations}
```
"""

NEW_MIX = "The weights of the sum (`model.scalar_mix`) are equal at first and are meant to be learned with the task."
LEARNT_MIX = "The weights of the sum (`model.scalar_mix`) are those that were learned where these weights come from."

LEARNT_LAYERS = "The head reads a weighted sum of the ELMo's layers; its weights are in `layer_weights.json`."

LIMITATIONS = """The model knows only the kind of text that it was trained on, including its errors and prejudices, and
its vectors are of little use for other languages and weaker for other domains. It is made to give features to other
models, not to write text or to judge facts."""

TUNED_LIMITATIONS = """The model knows only the kinds of text that it was pretrained and fine-tuned on, including their
errors and prejudices, and is of little use for other languages and weaker for other domains."""

TUNED_USAGE = {
    "text-classification": """from transformers import pipeline

classify = pipeline("text-classification", "{name}", trust_remote_code=True)  # {name_is}
print(classify("Here a text ."))  # and a pair: {{"text": "Here one .", "text_pair": "And here the other ."}}""",
    "token-classification": """from transformers import pipeline

tag = pipeline("token-classification", "{name}", trust_remote_code=True, aggregation_strategy="simple")  # {name_is}
print(tag("Anna lives in Berlin ."))""",
    "question-answering": """from transformers import pipeline

answer = pipeline("question-answering", "{name}", trust_remote_code=True)  # {name_is}
print(answer(question="Where does Anna live?", context="Anna lives in Berlin ."))""",
}

USAGE = """import torch
from transformers import AutoModel, AutoTokenizer

name = "{name}"  # {name_is}
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
vectors = model(**batch).last_hidden_state  # (1, words + 2 sentence boundaries, {hidden_size})"""

LANGUAGE_MODEL_USAGE = """

# The language model itself: how probable it finds a text.
from transformers import AutoModelForPreTraining

language_model = AutoModelForPreTraining.from_pretrained(name, trust_remote_code=True)
batch = tokenizer(sentences[0], return_tensors="pt", return_lm_labels=True)
with torch.no_grad():
    print(language_model(**batch).perplexity)"""

ABOUT_PERPLEXITY = """The perplexity is per word over the whole vocabulary, unknown words counted as one word, with the
LSTM state carried from sentence to sentence; that of both directions is exp of their mean loss. Those of models with
other vocabularies cannot be compared to it."""

PETERS = """@inproceedings{peters-etal-2018-deep,
    title = "Deep Contextualized Word Representations",
    author = "Peters, Matthew E. and Neumann, Mark and Iyyer, Mohit and Gardner, Matt and Clark, Christopher and
        Lee, Kenton and Zettlemoyer, Luke",
    booktitle = "Proceedings of the 2018 Conference of the North American Chapter of the Association for
        Computational Linguistics: Human Language Technologies, Volume 1 (Long Papers)",
    year = "2018",
    pages = "2227--2237",
    doi = "10.18653/v1/N18-1202",
}"""

CHE = """@inproceedings{che-etal-2018-towards,
    title = "Towards Better {UD} Parsing: Deep Contextualized Word Embeddings, Ensemble, and Treebank Concatenation",
    author = "Che, Wanxiang and Liu, Yijia and Wang, Yuxuan and Zheng, Bo and Liu, Ting",
    booktitle = "Proceedings of the {CoNLL} 2018 Shared Task: Multilingual Parsing from Raw Text to Universal
        Dependencies",
    year = "2018",
    pages = "55--64",
    doi = "10.18653/v1/K18-2005",
}"""


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
    """The text of a pretrained model's README.md, metadata included.

    Args:
        config: the model's `ElmoConfig`.
        repo_name: the folder's name, or its id on the Hub: under it the card's code loads it.
        parameters: how many there are in each part of the model, as `count_parameters` tells.
        data: `source` (name of a data set, or list of files), `vocabulary` (words), and `train` and `validation`, each
            with `sentences`, `tokens`, `types`, and `unknown_rate` and `truncated_rate` as shares of the tokens.
        recipe: the arguments of the run that are not defaults. Of paths only the last part is told.
        metrics: `eval_perplexity`, `eval_forward_perplexity` and `eval_backward_perplexity`.
        license: for the metadata, as the Hub spells it; left out when `None`.
        language: the same.
    """
    results = table(["validation perplexity", ""], [(name, f"{value:.2f}") for name, value in perplexities(metrics)])
    recipe_table = table(["argument", "value"], recipe_rows(recipe))
    return render(
        config,
        repo_name,
        parameters,
        metadata=metadata(repo_name, license, language, **held_out_results(data, metrics)),
        origin="pretrained with",
        sections={
            "Results": f"{results}\n\n{ABOUT_PERPLEXITY}",
            "Training data": table(["", "training", "validation"], data_rows(data)),
            "Recipe": f"{recipe_table}\n\nWhatever is not listed had the default of `train.py`.",
        },
        usage=USAGE + LANGUAGE_MODEL_USAGE,
    )


def converted_card(
    config,
    *,
    repo_name: str,
    parameters: Mapping[str, int],
    source_format: str,
    source_files: Iterable[Path],
    has_learnt_mix: bool = False,
    has_vocabulary: bool = True,
    license: str | None = None,
    language: str | None = None,
) -> str:
    """The text of a converted model's README.md.

    Args:
        config, repo_name, parameters, license, language: as for `model_card`.
        source_format: what the published files are, such as "ELMoForManyLangs".
        source_files: those files; they are read for their hashes.
        has_learnt_mix: whether the weights of the sum came with them.
        has_vocabulary: whether the words did that a softmax predicts.
    """
    files = table(["file", "bytes", "SHA-256"], map(source_row, source_files))
    return render(
        config,
        repo_name,
        parameters,
        metadata=metadata(repo_name, license, language),
        origin="converted from published weights by",
        sections={"Source": f"Files of {source_format}:\n\n{files}"},
        usage=USAGE + (LANGUAGE_MODEL_USAGE if "softmax" in parameters and has_vocabulary else ""),
        mix=LEARNT_MIX if has_learnt_mix else NEW_MIX,
    )


def finetuned_card(
    config,
    *,
    repo_name: str,
    parameters: Mapping[str, int],
    pipeline_tag: str,
    base_model: str,
    data_name: str,
    recipe: Mapping[str, Any],
    scores: Mapping[str, Mapping[str, float]],
) -> str:
    """The text of a fine-tuned model's README.md.

    Args:
        config, repo_name, parameters: as for `model_card`.
        pipeline_tag: the Hub's name of the task, such as "token-classification".
        base_model: the folder or Hub name of the ELMo that was fine-tuned; of a folder only the last part is told.
        data_name: what the data are called.
        recipe: options of the head and of its training; those that are `None` are left out.
        scores: for each split that was scored, the value of each metric.
    """
    is_folder = Path(base_model).exists()
    base = (
        f"`{Path(base_model).resolve().name}`" if is_folder else f"[{base_model}](https://huggingface.co/{base_model})"
    )
    results = [
        EvalResult(
            task_type=pipeline_tag, dataset_type=data_name, dataset_name=data_name, dataset_split=split,
            metric_type=metric, metric_value=round(value, 4),
        )
        for split, of_split in scores.items()
        for metric, value in of_split.items()
    ]  # fmt: skip
    told = {"pipeline_tag": pipeline_tag, "eval_results": results, "base_model": None if is_folder else base_model}
    rows = [(split, metric, f"{value:.4f}") for split, of_split in scores.items() for metric, value in of_split.items()]
    options = [(f"`{name}`", f"`{value}`") for name, value in recipe.items() if value is not None]
    return render(
        config,
        repo_name,
        parameters,
        metadata=metadata(repo_name, None, None, **told),
        origin=f"fine-tuned from {base} on {data_name} by",
        sections={
            "Results": table(["split", "metric", ""], rows) if rows else "Nothing was scored.",
            "Recipe": table(["option", "value"], options),
        },
        usage=TUNED_USAGE[pipeline_tag],
        mix=LEARNT_LAYERS,
        limitations=TUNED_LIMITATIONS,
    )


def render(
    config,
    name: str,
    parameters: Mapping[str, int],
    metadata: str,
    origin: str,
    sections: Mapping[str, str],
    usage: str,
    mix: str = NEW_MIX,
    limitations: str = LIMITATIONS,
) -> str:
    """What every card says, around what it says of one model."""
    usage = usage.format(
        name=name,
        name_is="its id on the Hub" if "/" in name else "this folder, or the id of its copy on the Hub",
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers + 1,
    )
    architecture = {"Architecture": table(["part", ""], architecture_rows(config, parameters))}
    return CARD.format(
        metadata=metadata,
        name=name,
        origin=origin,
        usage=usage,
        mix=mix,
        limitations=limitations,
        reads="reads words as characters" if config.cnn_filters else "looks words up in a table",
        sections="\n\n".join(f"## {title}\n\n{text}" for title, text in {**architecture, **sections}.items()),
        citations=PETERS if config.char_padding_id == PADDING else f"{PETERS}\n\n{CHE}",
    )


def count_parameters(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """How many parameters each part has that is there."""
    counts = {
        part: sum(
            tensor.numel() for name, tensor in state_dict.items() if name.removeprefix("elmo.").startswith(prefix)
        )
        for part, prefix in PARTS.items()
    }
    return {part: number for part, number in counts.items() if number}


def source_row(file: Path) -> tuple[str, str, str]:
    """Name, size in bytes and SHA-256 of a file."""
    with open(file, "rb") as opened:
        digest = sha_fileobj(opened).hex()
    return f"`{file.name}`", f"{file.stat().st_size:,}", f"`{digest}`"


def metadata(repo_name: str, license: str | None, language: str | None, **more: Any) -> str:
    """The card's YAML, without the lines of dashes around it."""
    told = {"pipeline_tag": "feature-extraction", "license": license, "language": language, "tags": list(TAGS), **more}
    return ModelCardData(model_name=repo_name.split("/")[-1], library_name="transformers", **told).to_yaml()


def held_out_results(data: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The metadata's data set and perplexities."""
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
    datasets = [source] if isinstance(source, str) else None
    return {"datasets": datasets, "metrics": ["perplexity"], "eval_results": results}


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
        *(
            [("softmax", f"{config.lm_vocab_size:,} words, shared by both directions")]
            if "softmax" in parameters
            else []
        ),
        *((f"parameters: {part}", f"{number:,}") for part, number in parameters.items()),
        ("parameters: all", f"{sum(parameters.values()):,}"),
    ]


def data_rows(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What was counted in the text that was trained on and in the text held out."""
    sides = [data["train"], data["validation"]]
    counted = [("sentences", "sentences"), ("tokens", "tokens"), ("types", "different words")]
    shares = [("unknown_rate", "unknown words (share of tokens)")]
    shares += [("truncated_rate", "words cut because of their length (share of tokens)")]
    return [
        ("source", source_name(data["source"])),
        *((label, *[f"{side[key]:,}" for side in sides]) for key, label in counted),
        ("words in the vocabulary", f"{data['vocabulary']:,}"),
        *((label, *[f"{side[key]:.2%}" for side in sides]) for key, label in shares),
    ]


def recipe_rows(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in recipe.items():
        if key not in NOT_IN_RECIPE:
            if key.endswith("_file") or (key.endswith(("_name", "_path")) and Path(value).exists()):
                value = file_names(value)
            rows.append((f"`{key}`", f"`{value}`"))
    return rows


def source_name(source: str | Iterable[str]) -> str:
    """The name of a data set, or the names of files."""
    return source if isinstance(source, str) else file_names(source)


def file_names(paths: str | Iterable[str]) -> str:
    """The last parts of paths: where a file lay on the machine that trained is nobody's business."""
    return ", ".join(PurePath(path).name for path in ([paths] if isinstance(paths, str) else paths))


def write_card(folder: Path, text: str):
    """Write README.md. Names of files and folders, which it tells, need not be UTF-8."""
    (folder / "README.md").write_text(text, encoding="utf-8", errors="backslashreplace")


def table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; a row may be shorter than the head."""
    lines = [tuple(head), ("---",) * len(head), *(row + ("",) * (len(head) - len(row)) for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
