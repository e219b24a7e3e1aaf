"""An ELMo as a model of sentence-transformers: `python -m modeling_elmo.sentence_embedding MODEL FOLDER`.

    python -m modeling_elmo.sentence_embedding my-elmo my-sentence-elmo                       # mean of the scalar mix
    python -m modeling_elmo.sentence_embedding my-elmo my-sentence-elmo --layer 1 --pooling max

`SentenceTransformer("my-sentence-elmo", trust_remote_code=True)` then loads it, without this package too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .commands import command_parser, new_folder, run_command
from .loading import load_encoder

POOLINGS = ("mean", "max", "cls", "lasttoken", "mean_sqrt_len_tokens")


class SentenceEmbeddingError(ValueError):
    """What cannot be made; the message names it and the way out."""


def make_sentence_transformer(model: str | Path, layer: int | str = "scalar_mix", pooling: str = "mean") -> Any:
    """A `SentenceTransformer` whose sentence vectors are pooled ELMo vectors, of width `config.hidden_size`.

    The boundaries of sentences are pooled too: they are words of the biLM.

    Args:
        model: folder or Hub name.
        layer: the words' vectors: "scalar_mix", or the number of a layer, 0 for words without context, -1 for the top.
            The mix of a model that was not fine-tuned is the average of its layers.
        pooling: as in `sentence_transformers`' `Pooling`: "mean", "max", ...

    Raises:
        LoadingError: no ELMo there.
        SentenceEmbeddingError: a layer that it has not, or sentence-transformers is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError as error:
        raise SentenceEmbeddingError(
            f"no sentence-transformers 6 ({error}): pip install 'modeling-elmo[sentences]'"
        ) from error
    config = load_encoder(str(model))[0].config  # else sentence-transformers would make lacking weights anew
    output: Any = "scalar_mix"
    if layer != "scalar_mix":
        number, layers = int(layer), config.num_hidden_layers + 1
        if not -layers <= number < layers:
            raise SentenceEmbeddingError(f"there is no layer {number}: {model} has 0 to {layers - 1}")
        output = ("hidden_states", number % layers)
    try:
        words = Transformer(
            str(model),
            modality_config={"text": {"method": "forward", "method_output_name": output}},
            module_output_name="token_embeddings",
        )
        return SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), pooling_mode=pooling)])
    except (OSError, ValueError) as error:
        raise SentenceEmbeddingError(f"no sentence model can be made of {model}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    parser = command_parser("sentence_embedding", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("folder", type=Path, help="folder to write; it must not be there yet")
    parser.add_argument(
        "--layer", default="scalar_mix", help="scalar_mix (default) or the number of a layer, 0 or more"
    )
    parser.add_argument("--pooling", default="mean", choices=POOLINGS, help="of words to a sentence; default mean")
    arguments = parser.parse_args(argv)
    if arguments.layer != "scalar_mix" and not arguments.layer.removeprefix("-").isdecimal():
        parser.error(f"--layer must be scalar_mix or the number of a layer, not {arguments.layer!r}")

    def run():
        with new_folder(arguments.folder) as folder:
            make_sentence_transformer(arguments.model, arguments.layer, arguments.pooling).save(str(folder))
        told = f"SentenceTransformer({str(arguments.folder)!r}, trust_remote_code=True) loads it"
        print(f"wrote {arguments.folder}: {told}")

    return run_command(run, SentenceEmbeddingError)


if __name__ == "__main__":
    sys.exit(main())
