"""The CRF against a sum over every chain there is."""

import itertools

import pytest
import torch
from torch import Tensor

from modeling_elmo.crf import (
    ChainSteps,
    LinearChainCrf,
    allowed_transitions,
    free_steps,
    log_likelihood,
    log_marginals,
    log_partition,
    tag_scheme,
    viterbi,
)

LABELS = 3
LENGTHS = [4, 0, 1, 3]
BIO = ["O", "B-X", "I-X", "B-Y", "I-Y"]


def make_steps(labels: int = LABELS) -> ChainSteps:
    shapes = [(labels,), (labels, labels), (labels,)]
    return ChainSteps(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))


def make_chains(labels: int = LABELS, lengths=LENGTHS) -> tuple[Tensor, Tensor]:
    """Emissions (batch, words, labels) with noise at padding, and the mask."""
    words = max(lengths)
    emissions = 2 * torch.randn(len(lengths), words, labels, dtype=torch.float64)
    return emissions, torch.arange(words) < torch.tensor(lengths)[:, None]


def all_chains(emissions: Tensor, steps: ChainSteps) -> dict[tuple[int, ...], float]:
    """The score of every chain of one text, emissions (words, labels)."""
    words, labels = emissions.shape
    emitted = emissions.tolist()
    start, transitions, end = (part.detach().tolist() for part in steps)
    scores = {}
    for chain in itertools.product(range(labels), repeat=words):
        score = sum(emitted[word][label] for word, label in enumerate(chain))
        score += sum(transitions[one][two] for one, two in itertools.pairwise(chain))
        scores[chain] = score + (start[chain[0]] + end[chain[-1]] if chain else 0.0)
    return scores


def log_sum(scores) -> float:
    return float(torch.logsumexp(torch.tensor(list(scores), dtype=torch.float64), 0)) if scores else -torch.inf


def is_allowed(chain: tuple[int, ...], allowed: ChainSteps) -> bool:
    if not chain:
        return True
    inner = all(allowed.transitions[one, two] for one, two in itertools.pairwise(chain))
    return bool(allowed.start[chain[0]] and inner and allowed.end[chain[-1]])


@pytest.fixture
def brute_force():
    """Emissions, mask and steps, and the score of every chain of every row."""
    (emissions, mask), steps = make_chains(), make_steps()
    rows = [all_chains(row[:length], steps) for row, length in zip(emissions, LENGTHS, strict=True)]
    return emissions, mask, steps, rows


# ---- what is computed


def test_partition_is_the_sum_over_all_chains(brute_force):
    emissions, mask, steps, rows = brute_force
    expected = torch.tensor([log_sum(row.values()) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(log_partition(emissions, mask, steps), expected)
    assert expected[1] == 0, "the empty chain is the only one of its length, and its score is 0"


SOME_UNKNOWN = [[2, -100, 0, -100], [1, 2, 0, 1], [1, -100, 2, 2], [-100, -100, -100, 1]]
ALL_KNOWN = [[2, 1, 0, 0], [1, 2, 0, 1], [1, 0, 2, 2], [2, 2, 1, 1]]


@pytest.mark.parametrize("labels", [ALL_KNOWN, SOME_UNKNOWN], ids=["all known", "some unknown"])
def test_likelihood_sums_over_unknown_labels(brute_force, labels):
    emissions, mask, steps, rows = brute_force
    expected = []
    for row, known, length in zip(rows, labels, LENGTHS, strict=True):
        agreeing = [
            score
            for chain, score in row.items()
            if all(one in (-100, two) for one, two in zip(known[:length], chain, strict=True))
        ]
        expected.append(log_sum(agreeing) - log_sum(row.values()))
    actual = log_likelihood(emissions, torch.tensor(labels), mask, steps)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    assert actual[1] == 0 and (actual[3] == 0) == (labels is SOME_UNKNOWN)


def test_marginals_are_shares_of_all_chains(brute_force):
    emissions, mask, steps, rows = brute_force
    actual = log_marginals(emissions, mask, steps)
    for number, row in enumerate(rows):
        for word in range(LENGTHS[number]):
            for label in range(LABELS):
                through = log_sum([score for chain, score in row.items() if chain[word] == label])
                assert float(actual[number, word, label]) == pytest.approx(through - log_sum(row.values()))


def test_marginals_are_the_gradient_of_the_partition(brute_force):
    emissions, mask, steps, _ = brute_force
    emissions.requires_grad_()
    (gradient,) = torch.autograd.grad(log_partition(emissions, mask, steps).sum(), emissions)
    torch.testing.assert_close(gradient[mask], log_marginals(emissions, mask, steps)[mask].exp())
    assert gradient[~mask].eq(0).all()


def test_viterbi_finds_the_best_chain(brute_force):
    emissions, mask, steps, rows = brute_force
    best = viterbi(emissions, mask, steps)
    assert best.dtype == torch.int64 and best[~mask].eq(-100).all()
    for number, row in enumerate(rows):
        assert tuple(best[number][mask[number]].tolist()) == max(row, key=row.__getitem__)


@pytest.mark.parametrize("words", [1, 2, 4])
def test_constraints_leave_chains_out(words):
    lengths = [words, 1, 0]
    for _ in range(5):
        emissions, mask = make_chains(len(BIO), lengths)
        allowed = allowed_transitions(BIO)
        steps = make_steps(len(BIO))
        restricted = steps.restricted(allowed)
        best, marginals = viterbi(emissions, mask, restricted), log_marginals(emissions, mask, restricted)
        partition = log_partition(emissions, mask, restricted)
        for number, length in enumerate(lengths):
            row = all_chains(emissions[number, :length], steps)
            row = {chain: score for chain, score in row.items() if is_allowed(chain, allowed)}
            assert tuple(best[number, :length].tolist()) == max(row, key=row.__getitem__)
            assert float(partition[number]) == pytest.approx(log_sum(row.values()))
            for word, label in itertools.product(range(length), range(len(BIO))):
                through = log_sum([score for chain, score in row.items() if chain[word] == label])
                expected = max(through - log_sum(row.values()), -87.3)
                assert float(marginals[number, word, label]) == pytest.approx(expected, rel=1e-3)
        assert marginals.isfinite().all()
        torch.testing.assert_close(marginals.exp().sum(2), torch.ones(mask.shape, dtype=torch.float64))


@pytest.mark.parametrize("function", [log_partition, log_likelihood, log_marginals])
def test_gradients(function):
    (emissions, mask), steps = make_chains(), make_steps()
    labels = torch.where(torch.rand(mask.shape) < 0.5, -100, torch.randint(0, LABELS, mask.shape))
    inputs = [tensor.requires_grad_() for tensor in (emissions, *steps)]

    def run(emissions: Tensor, *steps: Tensor) -> Tensor:
        arguments = (labels, mask) if function is log_likelihood else (mask,)
        result = function(emissions, *arguments, ChainSteps(*steps))
        return result[mask] if function is log_marginals else result

    torch.autograd.gradcheck(run, inputs)


def test_gradients_under_constraints_are_finite():
    (emissions, mask), steps = make_chains(len(BIO)), make_steps(len(BIO))
    inputs = [tensor.requires_grad_() for tensor in (emissions, *steps)]
    steps = ChainSteps(*inputs[1:]).restricted(allowed_transitions(BIO))
    log_marginals(emissions, mask, steps)[mask].square().sum().backward()
    assert all(tensor.grad.isfinite().all() and tensor.grad.ne(0).any() for tensor in inputs)


# ---- batches


def test_padding_and_company_change_nothing():
    (emissions, mask), steps = make_chains(), make_steps()
    wide, wide_mask = make_chains(lengths=[6, *LENGTHS])
    wide_mask[0] = False
    wide[1:, :4], wide_mask[1:, 4:] = emissions, False
    labels = torch.randint(0, LABELS, mask.shape)
    wide_labels = torch.randint(0, LABELS, wide_mask.shape)
    wide_labels[1:, :4] = labels
    one = log_likelihood(emissions, labels, mask, steps)
    torch.testing.assert_close(log_likelihood(wide, wide_labels, wide_mask, steps)[1:], one)
    one = log_marginals(emissions, mask, steps)[mask]
    torch.testing.assert_close(log_marginals(wide, wide_mask, steps)[1:, :4][mask], one)
    assert torch.equal(viterbi(wide, wide_mask, steps)[1:, :4], viterbi(emissions, mask, steps))


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (0, 0), (2, 3)], ids=str)
def test_no_words(shape):
    emissions, mask = torch.randn(*shape, LABELS), torch.zeros(shape, dtype=torch.bool)
    steps = free_steps(LABELS, emissions)
    assert torch.equal(log_partition(emissions, mask, steps), torch.zeros(shape[0]))
    assert torch.equal(log_likelihood(emissions, mask.long(), mask, steps), torch.zeros(shape[0]))
    assert log_marginals(emissions, mask, steps).shape == emissions.shape
    assert torch.equal(viterbi(emissions, mask, steps), torch.full(shape, -100))


def test_without_scores_of_steps_words_are_on_their_own():
    emissions, mask = make_chains()
    steps = free_steps(LABELS, emissions)
    expected = torch.log_softmax(emissions, 2)
    torch.testing.assert_close(log_marginals(emissions, mask, steps)[mask], expected[mask])
    assert torch.equal(viterbi(emissions, mask, steps)[mask], emissions.argmax(2)[mask])


# ---- numbers


def test_half_precision_is_computed_in_float32():
    crf = LinearChainCrf(LABELS).bfloat16()
    torch.nn.init.normal_(crf.transitions)
    for scores in (crf.start, crf.end):
        torch.nn.init.normal_(scores)
    emissions, mask = make_chains()
    steps = crf()
    assert {scores.dtype for scores in steps} == {torch.float32}
    half = emissions.bfloat16()
    expected = log_partition(half.float(), mask, steps)
    assert torch.equal(log_partition(half, mask, steps), expected) and expected.dtype == torch.float32
    log_partition(half, mask, steps).sum().backward()
    assert crf.transitions.grad.dtype == torch.bfloat16 and crf.transitions.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-6, 30.0, 1e4])
def test_scores_of_any_size(size):
    """Constraints hold however sure the model is, and long texts neither overflow nor lose their probabilities."""
    emissions = size * torch.randn(2, 500, len(BIO))
    mask = torch.ones(2, 500, dtype=torch.bool)
    steps = free_steps(len(BIO), emissions).restricted(allowed_transitions(BIO))
    marginals = log_marginals(emissions, mask, steps)
    assert marginals.isfinite().all() and log_partition(emissions, mask, steps).isfinite().all()
    torch.testing.assert_close(marginals.exp().sum(2), torch.ones(2, 500))
    assert all(is_allowed(tuple(row.tolist()), allowed_transitions(BIO)) for row in viterbi(emissions, mask, steps))


# ---- labels


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [
        (["O", "B-PER", "I-PER"], "IOB2"),
        (["B", "I", "O"], "IOB2"),
        (["O", "B-X"], "IOB2"),
        (["B-a-b", "I-a-b", "O"], "IOB2"),
        (["O", "B-X", "I-X", "E-X", "S-X"], "IOBES"),
        (["O", "B-X", "L-X", "U-X"], "BILOU"),
        (["O", "I-X", "I-Y"], None),
        (["O", "PER"], None),
        (["O", "B-X", "M-X", "E-X"], None),
        (["O", "B-X", "E-X", "U-X"], None),
        (["NN", "VB", "-LRB-"], None),
        (["LABEL_0", "LABEL_1"], None),
    ],
    ids=str,
)
def test_schemes(labels, scheme):
    assert tag_scheme(labels) == scheme
    allowed = allowed_transitions(labels)
    assert allowed.transitions.shape == (len(labels), len(labels))
    assert all(mask.dtype == torch.bool for mask in allowed)
    if scheme is None:
        assert all(mask.all() for mask in allowed)


def follow(labels: list[str]) -> dict[str, set[str]]:
    allowed = allowed_transitions(labels)
    return {
        one: {two for two, cell in zip(labels, row, strict=True) if cell}
        for one, row in zip(labels, allowed.transitions, strict=True)
    }


def test_chunks_go_on_only_in_their_own_type():
    anything = {"O", "B-X", "B-Y"}
    after = follow(BIO)
    assert after["O"] == anything
    assert after["B-X"] == after["I-X"] == anything | {"I-X"}
    assert after["B-Y"] == after["I-Y"] == anything | {"I-Y"}
    allowed = allowed_transitions(BIO)
    assert allowed.start.tolist() == [True, True, False, True, False] and allowed.end.all()
    allowed.start.fill_(False)  # they are the caller's
    assert allowed_transitions(BIO).start.any()


@pytest.mark.parametrize("last, single", ["ES", "LU"])
def test_schemes_that_mark_the_end(last, single):
    labels = ["O", "B-X", "I-X", f"{last}-X", f"{single}-X", "B-Y", f"{last}-Y"]
    after = follow(labels)
    opening = {"O", "B-X", f"{single}-X", "B-Y"}
    assert after["O"] == after[f"{last}-X"] == after[f"{single}-X"] == after[f"{last}-Y"] == opening
    assert after["B-X"] == after["I-X"] == {"I-X", f"{last}-X"}
    assert after["B-Y"] == {f"{last}-Y"}
    allowed = allowed_transitions(labels)
    assert {label for label, mask in zip(labels, allowed.start, strict=True) if mask} == opening
    assert {label for label, mask in zip(labels, allowed.end, strict=True) if mask} == {
        "O", f"{last}-X", f"{single}-X", f"{last}-Y"
    }  # fmt: skip


def test_a_type_without_begin_is_free():
    after = follow([*BIO, "I-Z"])
    assert all("I-Z" in labels for labels in after.values())
    assert "I-X" not in after["I-Z"] and "I-X" not in after["O"]
    after = follow(["O", "B-X", "E-X", "S-X", "I-Z"])
    assert after["I-Z"] == {"O", "B-X", "S-X", "I-Z"}


def test_labels_that_cannot_make_a_chain_of_one_word_are_free():
    assert all(mask.all() for mask in allowed_transitions(["B-X", "I-X", "E-X"]))


def test_constraints_made_in_inference_mode_serve_in_training():
    labels = ["O", "B-new", "I-new"]
    with torch.inference_mode():
        allowed_transitions(labels)
    steps = make_steps()
    steps.transitions.requires_grad_()
    emissions, mask = make_chains()
    log_partition(emissions, mask, steps.restricted(allowed_transitions(labels))).sum().backward()
    assert steps.transitions.grad.isfinite().all()


def test_steps_outlive_the_parameters():
    """Which FSDP frees behind the call; whoever reads them then ends the process."""
    crf = LinearChainCrf(LABELS).requires_grad_(False)
    for parameter in crf.parameters():
        torch.nn.init.ones_(parameter)
    steps = crf()
    for parameter in crf.parameters():
        torch.nn.init.zeros_(parameter)
    assert all(scores.all() for scores in steps)
