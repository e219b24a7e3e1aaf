"""Which words a language model expects at a place: from the words before it, those behind it, and both.

The forward direction has read what is before a place and the backward direction what is behind it, and neither the word
that stands there. So a word need not be masked, as BERT's must be, for others to be found in its stead.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .language_model import ElmoForPreTraining
from .tokenization_elmo import ElmoTokenizer


class Substitute(NamedTuple):
    """A word that could stand at a place.

    Attributes:
        word: itself.
        word_id: its id in the LM vocabulary.
        probability: there, from 0 to 1.
    """

    word: str
    word_id: int
    probability: float


class Substitutes(NamedTuple):
    """The likeliest words of a place, best first.

    Attributes:
        both: as both directions together see it.
        forward: as the words before it make them likely.
        backward: as the words behind it do.
    """

    both: list[Substitute]
    forward: list[Substitute]
    backward: list[Substitute]


@torch.no_grad()
def predict_words(
    model: ElmoForPreTraining, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, positions: Tensor
) -> Tensor:
    """What each direction expects at some places of a batch.

    Args:
        model: in evaluation mode.
        input_ids: (batch, words, row_length), as for `ElmoModel`, with sentence boundaries.
        attention_mask: (batch, words), 1 for words and 0 for padding behind them.
        rows: (places,) which text.
        positions: (places,) which of its words; never a boundary.

    Returns:
        (places, 2, lm_vocab_size) float32 log-probabilities, those of the forward direction first.
    """
    layers = model.elmo(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
    forward, backward = layers[-1].chunk(2, dim=-1)  # (batch, words, projection_dim) each
    # The forward direction predicts a place where it has read the word before it.
    seen = torch.stack([forward[rows, positions - 1], backward[rows, positions + 1]], dim=1)
    return torch.log_softmax(model.lm_head(seen).float(), dim=-1)


def combine(log_probs: Tensor, left_out: Sequence[int] = ()) -> Tensor:
    """Both directions as one distribution: their product, without some ids, made to sum to 1.

    Args:
        log_probs: (places, 2, lm_vocab_size).
        left_out: ids that get no probability.

    Returns:
        (places, lm_vocab_size) log-probabilities.
    """
    total = log_probs.sum(1)
    total[:, list(left_out)] = -torch.inf
    return torch.log_softmax(total, dim=-1)


def special_ids(tokenizer: ElmoTokenizer) -> list[int]:
    """Ids of the LM vocabulary that are no words: sentence boundaries and the unknown word."""
    return [tokenizer.lm_bos_id, tokenizer.lm_eos_id, tokenizer.lm_unk_id]


def find_substitutes(
    model: ElmoForPreTraining, tokenizer: ElmoTokenizer, words: Sequence[str], position: int, top_k: int = 10
) -> Substitutes:
    """Words that could stand at a place of a sentence.

    Args:
        model: in evaluation mode, with the softmax of the tokenizer's LM vocabulary.
        tokenizer: the one that belongs to the model.
        words: the sentence, split into words.
        position: which of them, from 0; what stands there does not matter.
        top_k: how many of each list.

    Returns:
        Up to `top_k` words for both directions and for each, best first; never a boundary or the unknown word.

    Raises:
        ValueError: a position outside of the sentence, or a tokenizer without the model's LM vocabulary.
        TypeError: a text instead of its words.
    """
    if isinstance(words, str):
        raise TypeError(f"words must be a list of words, not the text {words!r:.60}: tokenizer.split_words makes one")
    if not 0 <= position < len(words):
        raise ValueError(f"position must be one of the sentence's {len(words)} words, from 0, not {position}")
    if wrong := vocabulary_mismatch(model.config, tokenizer):
        raise ValueError(wrong)
    batch = tokenizer([list(words)], is_split_into_words=True, return_tensors="pt").to(model.device)
    rows, places = torch.tensor([0]), torch.tensor([position + 1])  # behind <S>
    log_probs = predict_words(model, batch["input_ids"], batch["attention_mask"], rows, places)
    log_probs[..., special_ids(tokenizer)] = -torch.inf
    return Substitutes(*(best(tokenizer, part, top_k) for part in (combine(log_probs)[0], *log_probs[0])))


def vocabulary_mismatch(config: Any, tokenizer: ElmoTokenizer) -> str | None:
    """How a tokenizer knows other words than a model predicts, and the way out; `None` if it does not."""
    if not tokenizer.lm_vocab_size:
        return (
            "the tokenizer has no vocabulary of the language model: put the vocab.txt that the model was trained with "
            "beside tokenizer.json"
        )
    if tokenizer.lm_vocab_size != config.lm_vocab_size:
        return (
            f"the vocabulary has {tokenizer.lm_vocab_size:,} words but the model predicts {config.lm_vocab_size:,}: "
            "take the tokenizer that belongs to this model"
        )
    return None


def best(tokenizer: ElmoTokenizer, log_probs: Tensor, top_k: int) -> list[Substitute]:
    """The likeliest words of one place: (lm_vocab_size,) -> at most `top_k` words with a probability."""
    values, ids = log_probs.topk(min(top_k, len(log_probs)))
    found = zip(ids.tolist(), values.exp().tolist(), strict=True)
    return [Substitute(tokenizer.lm_vocab[word_id], word_id, value) for word_id, value in found if value > 0]
