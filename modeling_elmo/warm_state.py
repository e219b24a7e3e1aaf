"""A state for texts to begin in, instead of zeros: `python -m modeling_elmo.warm_state MODEL TEXT FOLDER`.

    python -m modeling_elmo.warm_state my-elmo corpus.txt.gz my-warm-elmo

An ELMo is trained with the state carried from sentence to sentence, so that it hardly ever read a sentence from zeros,
and its authors advise to let it read some text before its vectors are used (github.com/allenai/bilm-tf, issue 176).
Which vectors a sentence has then depends on that text. Here the state that sentences leave behind is averaged over many
of them and saved with the weights, so that every text begins in it and has the same vectors alone, in any batch and in
any order.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from .commands import command_parser, new_folder, run_command
from .embed import distinct_batch
from .evaluation_mode import evaluation_mode
from .language_model import ElmoForPreTraining
from .loading import load_config, load_model, load_tokenizer, spelling_mismatch
from .lstm import ElmoState
from .model_card import write_card
from .modeling_elmo import ElmoModel
from .text_files import DataError, ReadingReport, find_files, read_lines
from .tokenization_elmo import ElmoTokenizer

# Not hundreds: the cells of some lanes latch at the clip when the state is carried for so long.
SENTENCES_PER_LANE = 20
CLASSES: dict[str, Any] = {"ElmoModel": ElmoModel, "ElmoForPreTraining": ElmoForPreTraining}


class WarmStateError(ValueError):
    """What keeps a state from being made; the message names it and the way out."""


@torch.no_grad()
def warm_state(
    model: ElmoModel, tokenizer: ElmoTokenizer, texts: Iterable[str | Sequence[str]], progress: bool = False
) -> ElmoState:
    """The mean of the states that sentences leave behind when each begins in that of the one before it.

    The texts are cut into lanes of 20, and fewer at the end are left out. The first half of a lane warms it up, and the
    states behind the second half are averaged, each direction for itself.

    Args:
        model: put in evaluation mode while it runs; on its device and in its dtype.
        tokenizer: the one that belongs to the model.
        texts: sentences in their order: strings, or lists of words that are split already. Those without words are left
            out. A few thousand are plenty.
        progress: whether to show a progress bar.

    Returns:
        A state with a batch of 1, for `ElmoModel.set_initial_state` or as an argument of the model.

    Raises:
        WarmStateError: no text has a word, or the tokenizer spells in another way than the model reads.
    """
    if wrong := spelling_mismatch(model.config, tokenizer):
        raise WarmStateError(wrong)
    split = (tokenizer.split_words(text) if isinstance(text, str) else list(text) for text in texts)
    sentences = [words for words in split if words]
    if not sentences:
        raise WarmStateError("there is no text with a word in it")
    length = min(SENTENCES_PER_LANE, len(sentences))
    lanes = [sentences[first : first + length] for first in range(0, len(sentences) - length + 1, length)]
    state: ElmoState | None = None
    collected = []
    with evaluation_mode(model):
        for number in tqdm(range(length), desc="warming up", unit=" sentences", disable=not progress):
            batch = distinct_batch([lane[number] for lane in lanes], tokenizer)
            state = model(**{name: values.to(model.device) for name, values in batch.items()}, state=state).state
            assert state is not None
            if number >= length // 2:
                collected.append([tensor.double().mean(2, keepdim=True) for tensor in state])
    means = (torch.stack(parts).mean(0) for parts in zip(*collected, strict=True))  # (layers, 2, 1, width) each
    return ElmoState(*(mean.float() for mean in means))


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def load(name: str) -> tuple[Any, ElmoTokenizer]:
    """Model, with its softmax if it has one, and tokenizer.

    Raises:
        LoadingError: a folder without them.
        WarmStateError: one with a task model.
    """
    config = load_config(name)
    architecture = (config.architectures or ["ElmoModel"])[0]
    if architecture not in CLASSES:
        raise WarmStateError(
            f"{name} is an {architecture}, whose head has learnt from texts that begin as they do: give the ELMo that "
            "it was made from, and train a head on the result"
        )
    return load_model(CLASSES[architecture], name, config=config)[0], load_tokenizer(name)


def run(arguments: argparse.Namespace):
    """Make the state, and write the model with it."""
    report, files = ReadingReport(), find_files(arguments.text)
    with new_folder(arguments.folder) as folder:
        model, tokenizer = load(arguments.model)
        lines = islice((line for line in read_lines(files, report) if line.strip()), arguments.max_sentences)
        sentences = [line.split() if arguments.pre_tokenized else line for line in lines]
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        elmo = model.elmo if isinstance(model, ElmoForPreTraining) else model
        elmo.set_initial_state(warm_state(elmo, tokenizer, sentences, progress=True))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        card = Path(arguments.model, "README.md")
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else f"# {arguments.folder.name}\n"
        read = f"{len(sentences):,} sentences of {', '.join(Path(file).name for file in files)}"
        text = re.sub(rf"{TITLE}\n.*?(?=\n## |\Z)", "", text, flags=re.DOTALL)  # what is told of an earlier state
        told = f"{text}{TITLE}\n\n{CARD.format(read=read)}\n"
        write_card(folder, told)
    for problem in report.problems():
        print(problem, file=sys.stderr)
    print(f"{arguments.folder}: texts begin in the mean state behind {read}")


TITLE = "\n## Initial state"
CARD = """Texts begin in the mean of the states that {read} left behind, and not in zeros.
`from_pretrained(..., initial_state=False)` takes zeros."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("warm_state", __doc__)
    parser.add_argument("model", help="folder or Hub name of an ELMo with its tokenizer")
    parser.add_argument("text", nargs="+", help="text files (a sentence a line, in their order, also compressed)")
    parser.add_argument("folder", type=Path, help="folder to write; it must not be there yet")
    parser.add_argument("--pre_tokenized", action="store_true", help="words are split at white space and only there")
    parser.add_argument("--max_sentences", type=int, default=2000, help="read so many at most; default 2000")
    arguments = parser.parse_args(argv)
    if arguments.max_sentences < 1:
        parser.error("--max_sentences must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code is that of `run_command`."""
    arguments = parse_arguments(argv)
    disable_progress_bar()
    return run_command(lambda: run(arguments), WarmStateError, DataError)


if __name__ == "__main__":
    sys.exit(main())
