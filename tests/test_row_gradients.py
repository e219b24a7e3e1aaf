"""Sparse gradients of the softmax against dense ones: loss, gradients, steps of the optimizers, clipping."""

import copy

import pytest
import torch
from torch import multiprocessing
from training_runs import fork_server

from modeling_elmo import ElmoConfig, ElmoForPreTraining
from modeling_elmo.row_gradients import clip_gradients, share_row_gradients

WORDS = 300


@pytest.fixture
def models(tiny_config) -> list[ElmoForPreTraining]:
    """The same model twice: dense and sparse."""
    config = ElmoConfig.from_dict({**tiny_config.to_dict(), "lm_vocab_size": WORDS})
    dense = ElmoForPreTraining(config).train()
    sparse = copy.deepcopy(dense)
    sparse.lm_head.sparse = True
    return [dense, sparse]


def batch(step: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = [torch.randint(1, 262, (3, 5, 50), generator=generator) for _ in range(2)]
    labels = [torch.randint(0, WORDS, (3, 5), generator=generator) for _ in range(2)]
    return {"input_ids": ids[0], "reversed_input_ids": ids[1], "next_targets": labels[0], "previous_targets": labels[1]}


def losses_and_gradients(models, step: int = 0) -> list[float]:
    losses = []
    for model in models:
        torch.manual_seed(step)  # the same negatives
        loss = model(**batch(step)).loss
        loss.backward()
        losses.append(loss.item())
    return losses


def test_sparse_gradients_are_the_dense_ones(models):
    first, second = losses_and_gradients(models)
    assert first == second
    dense, sparse = (dict(model.named_parameters()) for model in models)
    assert sparse["lm_head.weight"].grad.is_sparse and sparse["lm_head.bias"].grad.is_sparse
    touched = sparse["lm_head.weight"].grad.coalesce().indices().shape[1]
    assert 16 < touched < WORDS / 2
    for name, parameter in sparse.items():
        gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        torch.testing.assert_close(gradient, dense[name].grad, rtol=1e-5, atol=1e-8)


def test_adagrad_goes_the_same_way_with_both(models):
    optimizers = [
        torch.optim.Adagrad(model.parameters(), lr=0.2, initial_accumulator_value=1.0, eps=0.0) for model in models
    ]
    for step in range(5):
        losses_and_gradients(models, step)
        share_row_gradients(list(models[1].lm_head.parameters()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for dense, sparse in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clipping_counts_sparse_gradients(models, max_norm):
    losses_and_gradients(models)
    assert share_row_gradients(list(models[1].lm_head.parameters())) == 0  # nothing travels in one process
    expected = torch.nn.utils.clip_grad_norm_(models[0].parameters(), max_norm)
    norm = clip_gradients(models[1].parameters(), max_norm)
    torch.testing.assert_close(norm, expected)
    for dense, sparse in zip(*(model.parameters() for model in models), strict=True):
        gradient = sparse.grad.to_dense() if sparse.grad.is_sparse else sparse.grad
        torch.testing.assert_close(gradient, dense.grad, rtol=1e-5, atol=1e-9)


def rows_of(rank: int) -> dict[int, float]:
    """Rows that a process touches, and by how much; row 3 by all, twice."""
    return {0: {3: 1.0, 5: 2.0}, 1: {3: 10.0, 0: 4.0, 7: 6.0}, 2: {3: 7.0}}[rank]


def share_in_process(rank: int, processes: int, address: str, results) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
    weight, bias = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((9, 2), (9,)))
    ids = torch.tensor([*rows_of(rank), 3])
    amounts = torch.tensor([*rows_of(rank).values(), 1.0])
    for parameter in (weight, bias):
        rows = amounts.reshape(-1, *[1] * (parameter.dim() - 1)).expand(-1, *parameter.shape[1:])
        parameter.grad = torch.sparse_coo_tensor(ids[None], rows.contiguous(), parameter.shape)
    sent = share_row_gradients([weight, bias])
    results[rank] = sent, weight.grad.indices().tolist(), weight.grad.to_dense().tolist(), bias.grad.to_dense().tolist()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_the_mean_over_processes_has_the_rows_of_all_and_travels_small(tmp_path):
    with fork_server().Manager() as manager:
        results = manager.dict()
        arguments = (3, f"file://{tmp_path / 'meeting'}", results)
        multiprocessing.start_processes(share_in_process, arguments, nprocs=3, start_method="forkserver")
        results = dict(results)
    assert results.keys() == {0, 1, 2}
    expected = torch.zeros(9)
    for rank in range(3):
        for row, amount in rows_of(rank).items():
            expected[row] += amount / 3
    expected[3] += 1
    for sent, ids, weight, bias in results.values():
        assert ids == [[0, 3, 5, 7]]
        torch.testing.assert_close(torch.tensor(bias), expected)
        torch.testing.assert_close(torch.tensor(weight), expected[:, None].expand(9, 2))
        assert sent == 3 * 8 + 4 * 3 * 4  # ids of at most three rows; four rows of weight and bias
