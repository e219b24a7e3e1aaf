"""The exponentials of the sampled softmax in Triton against those in operations of torch: on a GPU, or in Triton's
interpreter."""

import math

import pytest
import torch
from test_gpu_recurrence import DEVICE, DTYPES

from modeling_elmo import language_model as module
from modeling_elmo.gpu_softmax import exponentials, takes_softmax
from modeling_elmo.language_model import LogUniformSampler, Negatives, sampled_softmax_loss

BOUND = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.mark.parametrize(("words", "samples"), [(5, 1), (3, 8), (7, 100), (2, 5000)])
def test_exponentials_are_what_they_say(words, samples, dtype):
    logits = (torch.randn(words, samples, device=DEVICE) * 3).to(dtype)
    bias, own_logits = torch.randn(samples, device=DEVICE), torch.randn(words, device=DEVICE) * 3
    own = torch.randint(-1, samples, (words,), device=DEVICE)
    own[0] = samples - 1
    together = logits.double() + bias.double()
    together[own >= 0, own[own >= 0]] = -math.inf
    all_logits = torch.cat([together, own_logits[:, None].double()], dim=1)
    exps = logits.clone()
    top, total = exponentials(exps, bias, own, own_logits)
    torch.testing.assert_close(top.double(), all_logits.amax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(total.log() + top, all_logits.logsumexp(1).float(), rtol=0, atol=1e-5)
    expected = (together - top[:, None].double()).exp()
    torch.testing.assert_close(exps.double(), expected, rtol=BOUND[dtype], atol=BOUND[dtype])
    assert exps[0, samples - 1] == 0


def test_losses_and_gradients_are_those_of_torch(monkeypatch, dtype):
    sampler, negatives = LogUniformSampler(50, 8), Negatives(torch.tensor([3, 1, 7, 0, 9, 12, 30, 22]), 11)
    targets = torch.tensor([3, 4, 49, 0, 3], device=DEVICE)
    results = []
    for taken in (False, True):
        monkeypatch.setattr(module, "takes_softmax", lambda *_, taken=taken: taken)
        torch.manual_seed(0)
        tensors = [torch.randn(5, 16), torch.randn(50, 16), torch.randn(50)]
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in tensors]
        hidden, weight, bias = leaves
        losses = sampled_softmax_loss(hidden.to(dtype), targets, weight, bias, negatives, sampler)
        (losses * torch.tensor([1.0, 2, 3, 4, 5], device=DEVICE)).sum().backward()
        results.append([losses.detach(), *(leaf.grad for leaf in leaves)])
    for one, other in zip(*results, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=0, atol=BOUND[dtype] * float(other.abs().max()))


def test_nan_is_not_lost(dtype):
    logits = torch.zeros(2, 6, device=DEVICE, dtype=dtype)
    logits[1, 3] = math.nan
    _, total = exponentials(
        logits, torch.zeros(6, device=DEVICE), torch.tensor([-1, -1], device=DEVICE), torch.zeros(2, device=DEVICE)
    )
    assert total[0] == 7 and total[1].isnan()


def test_where_it_serves():
    assert not takes_softmax(torch.zeros(3, 4), 8), "not on a processor"
    if torch.cuda.is_available():
        assert not takes_softmax(torch.zeros(3, 4, device="cuda"), 8), "not in float32, where tensors are whole"


def test_no_words_have_no_losses():
    losses = sampled_softmax_loss(
        torch.randn(0, 4), torch.zeros(0, dtype=torch.long), torch.randn(9, 4), torch.randn(9),
        Negatives(torch.tensor([1, 2]), 2), LogUniformSampler(9, 2),
    )  # fmt: skip
    assert losses.shape == (0,)
