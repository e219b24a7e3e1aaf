"""Text to text: an ELMo as the encoder of transformers' `EncoderDecoderModel`, with a small decoder that is new.

    python examples/seq2seq.py demo_output/model              # misspelt words restored, on the text of `make demo`
    python examples/seq2seq.py my-elmo pairs.tsv --output_dir runs/translator    # any pairs: source TAB target a line

The decoder reads the ELMo vectors, the learned sum of the layers, and both are trained together. By default targets are
pieces of the sentences of Python's own documentation, of frequent words; in their sources some of the longer words have
a slip of the hand, another one in each pass. The held-out documents are those that `make demo` held out as well.
Printed are some outputs and how many words are right, beside what the source as it is would score.
"""

import argparse
import random
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from demo_corpus import compiled_modules, documents, library_files, split, topics
from texts_and_vectors import run
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)

from modeling_elmo import ElmoModel, ElmoTokenizer  # makes the type "elmo" known to EncoderDecoderConfig
from modeling_elmo.loading import load_encoder
from modeling_elmo.text_files import DataError

Pair = tuple[list[str], list[str]]  # words of source and target
LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END, PAD = 0, 1, 2


# --- Pairs -------------------------------------------------------------------------------------------------------


def misspell(word: str, rng: random.Random) -> str:
    """A word with one slip behind its first letter: two letters swapped, one dropped, doubled or mistaken."""
    place = rng.randrange(1, len(word) - 1)
    head, one, other, tail = word[:place], word[place], word[place + 1], word[place + 2 :]
    slips = [head + other + one + tail, head + other + tail, head + one + one + other + tail]
    return rng.choice([*slips, head + rng.choice(LETTERS) + other + tail])


def corrupted(pieces: Sequence[list[str]], rng: random.Random, share: float = 0.3) -> list[Pair]:
    """Each piece as a target, and as a source in which `share` of the longer words are misspelt."""
    pairs = []
    for target in pieces:
        slips = [word.isalpha() and len(word) > 3 and rng.random() < share for word in target]
        pairs.append(([misspell(w, rng) if slip else w for w, slip in zip(target, slips, strict=True)], target))
    return pairs


def pieces_of(sentences: Iterable[list[str]], known: set[str], shortest: int = 3, longest: int = 6) -> list[list[str]]:
    """Runs of known words."""
    pieces: list[list[str]] = []
    piece: list[str] = []
    for word in (word for sentence in sentences for word in [*sentence, ""]):
        if word not in known or len(piece) == longest:
            pieces += [piece] * (len(piece) >= shortest)
            piece = []
        if word in known:
            piece.append(word)
    return pieces


def demo_pairs(passes: int, tokenizer: ElmoTokenizer, rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Pairs of the demo's text for training, in each pass with other slips, and held-out ones."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = split(documents([*topics(), *compiled_modules(), *library_files(root)]), 0.03, seed=0)
    train, held_out = ([tokenizer.split_words(line) for line in lines] for lines in texts)
    counts = Counter(word for words in train for word in words)
    train, held_out = (pieces_of(part, {word for word, _ in counts.most_common(2000)}) for part in (train, held_out))
    return [p for _ in range(passes) for p in corrupted(rng.sample(train, len(train)), rng)], corrupted(held_out, rng)


def pairs_of(path: Path, passes: int, tokenizer: ElmoTokenizer, rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Pairs of a file for training, in another order each pass, and a twentieth of them held out.

    Raises:
        `DataError`: a file that cannot be read, that has a line without a pair, or too few of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not all(map(str.strip, row)):
            raise DataError(f"{path}: pair {number} must be a source and a target with one tab between them")
    if len(rows) < 20:
        raise DataError(f"{path} has {len(rows)} pairs, too few to learn from and to hold some out: give 20 or more")
    pairs = [(tokenizer.split_words(source), target.split()) for source, target in rows]
    rng.shuffle(pairs)
    held_out, train = pairs[: len(pairs) // 20], pairs[len(pairs) // 20 :]
    return [pair for _ in range(passes) for pair in rng.sample(train, len(train))], held_out


# --- Model -------------------------------------------------------------------------------------------------------


def target_tokenizer(pairs: Sequence[Pair], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding learned from the targets."""
    bpe = ByteLevelBPETokenizer(add_prefix_space=True)
    texts = {" ".join(target) for _, target in pairs}
    bpe.train_from_iterator(sorted(texts), vocab_size, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_model(encoder: ElmoModel, target: PreTrainedTokenizerFast, most_tokens: int) -> EncoderDecoderModel:
    """The ELMo with a decoder of two layers as wide as its vectors."""
    width = encoder.config.hidden_size
    decoder = BertConfig(
        vocab_size=len(target),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=most_tokens + 1,
        is_decoder=True,
        add_cross_attention=True,
        pad_token_id=PAD,
    )
    model = EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(decoder))
    model.config.decoder_start_token_id, model.config.pad_token_id = START, PAD
    for name, value in {"decoder_start_token_id": START, "bos_token_id": START, "eos_token_id": END}.items():
        setattr(model.generation_config, name, value)
    model.generation_config.pad_token_id, model.generation_config.max_length = PAD, most_tokens + 1
    return model


class Collator:
    """Pairs as a batch: rows of characters for the encoder, tokens of the targets as labels."""

    def __init__(self, source: ElmoTokenizer, target: PreTrainedTokenizerFast, most_tokens: int):
        self.source, self.target, self.most_tokens = source, target, most_tokens

    def labels(self, words: list[str]) -> list[int]:
        return [*self.target(" ".join(words))["input_ids"][: self.most_tokens - 1], END]

    def __call__(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        batch = self.source([words for words, _ in pairs], is_split_into_words=True, padding=True, return_tensors="pt")
        rows = [torch.tensor(self.labels(words)) for _, words in pairs]
        labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)  # (batch, tokens)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


# --- How good it is ----------------------------------------------------------------------------------------------


def report(outputs: Sequence[list[str]], pairs: Sequence[Pair]):
    """Some outputs, and the share of the targets' words that stand at their place in output and source."""
    for words, (source, target) in list(zip(outputs, pairs, strict=True))[:: max(1, len(pairs) // 5)][:5]:
        print(f"\n  source  {' '.join(source)}\n  output  {' '.join(words)}\n  target  {' '.join(target)}")
    rows = [
        (*(words[place] if place < len(words) else "" for words in (output, source)), word)
        for output, (source, target) in zip(outputs, pairs, strict=True)
        for place, word in enumerate(target)
    ]
    right = [output == word for output, _, word in rows]
    to_change = [output == word for output, source, word in rows if source != word]
    print(f"\n{len(pairs):,} held-out pairs, words right: {sum(right) / len(right):.1%}")
    print(f"the source as it is: {1 - len(to_change) / len(rows):.1%}")
    if to_change:
        print(f"of the {len(to_change):,} words to change: {sum(to_change) / len(to_change):.1%}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of an ELMo")
    parser.add_argument("pairs", type=Path, nargs="?", help="UTF-8, source TAB target a line; default: the demo's text")
    parser.add_argument("--output_dir", default="demo_output/seq2seq")
    parser.add_argument("--passes", type=int, default=2, help="over the pairs")
    parser.add_argument("--vocab_size", type=int, default=4000, help="of the targets' byte-pair encoding")
    parser.add_argument("--max_tokens", type=int, default=64, help="of a target; the rest is cut off")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    arguments = parser.parse_args(argv)
    if min(arguments.passes, arguments.batch_size) < 1 or arguments.max_tokens < 2 or not arguments.learning_rate > 0:
        parser.error("--passes and --batch_size must be 1 or more, --max_tokens 2 or more, --learning_rate above 0")
    if arguments.vocab_size < 300:
        parser.error("--vocab_size must be 300 or more: 256 bytes come first")
    return arguments


def translate(arguments: argparse.Namespace):
    set_seed(0)
    warnings.filterwarnings("ignore", category=FutureWarning)  # on changes of transformers in 2021
    encoder, source = load_encoder(arguments.model)
    encoder.requires_grad_().config.mix_last_hidden_state = True
    rng = random.Random(0)
    train: Any  # a list does as a data set
    held_out: Any
    if arguments.pairs is None:
        train, held_out = demo_pairs(arguments.passes, source, rng)
    else:
        train, held_out = pairs_of(arguments.pairs, arguments.passes, source, rng)
    target = target_tokenizer(train, arguments.vocab_size)
    model = make_model(encoder, target, arguments.max_tokens)
    print(f"{len(train):,} pairs to train on, {model.num_parameters():,} parameters")
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=arguments.output_dir,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.05,
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            logging_steps=100,
            save_strategy="no",
            report_to=[],
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            predict_with_generate=True,
        ),
        data_collator=Collator(source, target, arguments.max_tokens),
        train_dataset=train,
        eval_dataset=held_out,
    )
    trainer.train()
    tokens: Any = trainer.predict(held_out).predictions
    texts = target.batch_decode(tokens.clip(min=0), skip_special_tokens=True)  # -100 stands for padding here
    report([text.split() for text in texts], held_out)
    trainer.save_model()
    target.save_pretrained(arguments.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    return run(translate, parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
