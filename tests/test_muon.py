"""Muon against singular value decompositions, against torch's own Muon and AdamW, and through saved states."""

import copy

import pytest
import torch
from torch import nn

from modeling_elmo.muon import MuonAdamW, orthogonalize

OPTIONS = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.9, 0.99)}


def gradient_of(parameter: torch.Tensor, step: int) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))


def step_with(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], step: int):
    for parameter in parameters:
        parameter.grad = gradient_of(parameter, step)
    optimizer.step()


@pytest.mark.parametrize("shape", [(3, 12, 5), (3, 5, 12), (1, 8, 8)])
def test_singular_values_become_about_one_and_directions_stay(shape):
    matrices = torch.randn(*shape) @ torch.diag(10.0 ** torch.linspace(-1, 1, shape[2]))
    expected_left, _, expected_right = torch.linalg.svd(matrices, full_matrices=False)
    actual = orthogonalize(matrices)
    assert actual.shape == shape and actual.dtype == torch.float32
    inside = expected_left.transpose(1, 2) @ actual @ expected_right.transpose(1, 2)  # diagonal if directions stay
    values = inside.diagonal(dim1=1, dim2=2)
    assert ((values > 0.6) & (values < 1.25)).all()
    torch.testing.assert_close(inside, torch.diag_embed(values), rtol=0, atol=1e-3)


def test_bfloat16_is_near():
    matrices = torch.randn(2, 12, 5)
    actual = orthogonalize(matrices, torch.bfloat16)
    assert actual.dtype == torch.float32 and not torch.equal(actual, orthogonalize(matrices))
    torch.testing.assert_close(actual, orthogonalize(matrices), rtol=0, atol=0.05)


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_single_matrices_move_as_in_torch():
    """torch's Muon computes in bfloat16, so that its directions are known to three digits."""
    ours, theirs = (nn.Parameter(torch.ones(6, 20)) for _ in range(2))
    mine = MuonAdamW([{"params": [ours], "muon": True, "gate_dim": 99}], **OPTIONS)
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        step_with(mine, [ours], step)
        step_with(reference, [theirs], step)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4 * 0.01 * 0.02)
    assert (ours - 1).abs().max() > 0.01


def test_each_gate_of_each_direction_is_a_matrix():
    stack = nn.Parameter(torch.zeros(2, 4 * 6, 3))
    step_with(MuonAdamW([{"params": [stack], "muon": True, "gate_dim": 6}], **OPTIONS), [stack], 0)
    gradient = gradient_of(stack, 0)
    for side in range(2):
        for gate in range(4):
            rows = slice(6 * gate, 6 * gate + 6)
            expected = -0.01 * 0.2 * 6**0.5 * orthogonalize(gradient[side, rows][None])[0]
            torch.testing.assert_close(stack[side, rows].detach(), expected)


def test_all_else_is_adamw_and_saved_states_go_on_exactly():
    start = [nn.Parameter(torch.randn(2, 8, 3)), nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(5, 2))]

    def make(parameters: list[nn.Parameter]) -> MuonAdamW:
        groups = [{"params": parameters[1:]}, {"params": parameters[:1], "muon": True, "lr": 0.02, "gate_dim": 2}]
        return MuonAdamW(groups, **OPTIONS, fused=True)

    parameters, others = copy.deepcopy(start), copy.deepcopy(start[1:])
    optimizer, reference = make(parameters), torch.optim.AdamW(others, **OPTIONS, fused=True)
    for step in range(3):
        step_with(optimizer, parameters, step)
        step_with(reference, others, step)
    assert all(torch.equal(a, b) for a, b in zip(parameters[1:], others, strict=True))
    resumed = copy.deepcopy(parameters)
    second = make(resumed)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in (3, 4):
        step_with(optimizer, parameters, step)
        step_with(second, resumed, step)
    assert all(torch.equal(a, b) for a, b in zip(parameters, resumed, strict=True))
    assert not torch.equal(parameters[0], start[0])


def test_a_parameter_without_gradient_stays():
    stack = nn.Parameter(torch.ones(2, 8, 3))
    MuonAdamW([{"params": [stack], "muon": True, "gate_dim": 2}], **OPTIONS).step()
    assert torch.equal(stack.detach(), torch.ones(2, 8, 3))
