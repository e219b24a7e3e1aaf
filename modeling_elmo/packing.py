"""Where the real words of padded texts lie, so that each step of the LSTM is one slice of them, and back."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Where the real words of a batch lie, sorted so that each step of the LSTM is one slice.

    Packed order is step by step, and within a step the longest text first: `batch_sizes[t]` texts are still running
    at step t. Rows are texts; positions count words of the flattened (batch * words) input.

    Attributes:
        order: (rows,) rows by falling length.
        batch_sizes: list of `longest` ints.
        forward_index: (packed,) position of the word that the forward direction reads.
        backward_index: (packed,) position of the word that the backward direction reads.
        is_last: (packed,) bool, true at the last step of a row.
    """

    order: Tensor
    batch_sizes: list[int]
    forward_index: Tensor
    backward_index: Tensor
    is_last: Tensor

    def to(self, device: torch.device) -> "Packing":
        """The same on a device."""
        order, batch_sizes, *indices = self
        return Packing(order.to(device), batch_sizes, *(index.to(device) for index in indices))


def pack(starts: Tensor, lengths: Tensor) -> Packing:
    """The packing of texts that begin at flat positions `starts` (rows,) and have `lengths` (rows,) words."""
    order = torch.argsort(lengths, descending=True, stable=True)
    starts, lengths = starts[order], lengths[order]
    longest = int(lengths[0]) if len(lengths) else 0
    steps = torch.arange(longest, device=lengths.device)
    running = steps[:, None] < lengths  # (longest, rows)
    step, row = running.nonzero(as_tuple=True)  # (packed,) each, in packed order
    return Packing(
        order=order,
        batch_sizes=running.sum(1).tolist(),
        forward_index=starts[row] + step,
        backward_index=starts[row] + lengths[row] - 1 - step,
        is_last=step == lengths[row] - 1,
    )


def pack_full(rows: int, words: int, device: torch.device) -> Packing:
    """The packing of `rows` texts of `words` words each, without waiting for a device."""
    row, step = torch.arange(rows, device=device), torch.arange(words, device=device)[:, None]
    place = row * words + step  # (words, rows)
    return Packing(
        order=row,
        batch_sizes=[rows] * words,
        forward_index=place.flatten(),
        backward_index=(row * words + words - 1 - step).flatten(),
        is_last=(step == words - 1).expand(words, rows).flatten(),
    )


def text_lengths(attention_mask: Tensor, token_type_ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The words of each row's first text and of its second one, (batch,) each; `None` where there are single texts.

    Args:
        attention_mask: (batch, words) bool.
        token_type_ids: (batch, words) of 0 and 1, or `None` for single texts.

    Raises:
        ValueError: a mask that is not padded on the right, or types that are not some 0 and then some 1.
    """
    lengths = attention_mask.sum(1)  # (batch,)
    places = torch.arange(attention_mask.shape[1], device=lengths.device)
    wrong = (attention_mask != (places < lengths[:, None])).any(1)
    if not torch.compiler.is_compiling() and wrong.any():
        raise ValueError(
            f"attention_mask must be padded on the right, but row {int(wrong.nonzero()[0])} has a 0 before a 1: "
            "ELMo reads from both ends, so move the padding (tokenizer.padding_side = 'right')"
        )
    if token_type_ids is None:
        return lengths, None
    if token_type_ids.shape != attention_mask.shape:
        raise ValueError(
            f"token_type_ids must be of shape (batch, words) = {tuple(attention_mask.shape)}, "
            f"not {tuple(token_type_ids.shape)}"
        )
    types = token_type_ids * attention_mask  # (batch, words)
    if not types.any():
        return lengths, None
    second = (types == 1).sum(1)  # (batch,)
    first = lengths - second
    if (types != (attention_mask & (places >= first[:, None]))).any():
        raise ValueError("token_type_ids must be 0 for the first text of a pair and 1 for the second behind it")
    return first, second


def pack_texts(attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Packing:
    """The packing of a padded batch: a row for each text, or two rows for each pair (all firsts, then all seconds).

    Arguments and errors are those of `text_lengths`.
    """
    first, second = text_lengths(attention_mask, token_type_ids)
    starts = torch.arange(len(first), device=first.device) * attention_mask.shape[1]
    if second is None:
        return pack(starts, first)
    return pack(torch.cat([starts, starts + first]), torch.cat([first, second]))


def places_turned_around(mask: Tensor) -> Tensor:
    """Where each word of padded texts stands when its text is read from the end: (batch, words) bool -> (batch, words)
    int. Padding stays where it is."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, mask.sum(1, keepdim=True) - 1 - steps, steps)


def step_chunks(batch_sizes: list[int], chunk_size: int | None, most_words: float = math.inf) -> Iterator[list[int]]:
    """Steps that follow each other: at most `chunk_size` of them, with at most `most_words` words or one step."""
    chunk: list[int] = []
    words = 0
    for size in batch_sizes:
        if chunk and (len(chunk) == chunk_size or words + size > most_words):
            yield chunk
            chunk, words = [], 0
        chunk.append(size)
        words += size
    if chunk:
        yield chunk


def unpack(layer: Tensor, packing: Packing, shape: torch.Size) -> Tensor:
    """(2, packed, projection_dim) in reading order -> (*shape, 2 * projection_dim), zeros where no word is; `shape` is
    that of the mask, (batch, words)."""
    both = layer.new_zeros(shape.numel(), 2, layer.shape[2])
    for side, index in enumerate((packing.forward_index, packing.backward_index)):
        both[:, side].index_copy_(0, index.to(layer.device), layer[side])
    return both.flatten(1).unflatten(0, shape)
