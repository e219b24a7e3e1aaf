"""Ten optimiser steps of the original TensorFlow trainer, replayed: losses, gradients, states and final weights."""

import json

import numpy as np
import pytest
import torch

from modeling_elmo import ElmoConfig, ElmoForPreTraining
from modeling_elmo.allennlp_format import from_datasets, from_variables, infer_config
from modeling_elmo.language_model import LogUniformSampler, Negatives
from modeling_elmo.lstm import ElmoState

pytestmark = pytest.mark.data


def variables_of(recorded, prefix: str) -> dict[str, np.ndarray]:
    """The variables recorded under `prefix`, by name."""
    names = [name for name in recorded.files if name.startswith(prefix)]
    return {name.removeprefix(prefix).removesuffix(":0"): recorded[name] for name in names}


def state_dict_of(recorded, prefix: str, config: ElmoConfig) -> dict[str, torch.Tensor]:
    """They under our names and in our layout."""
    state = from_datasets(from_variables(variables_of(recorded, prefix)), config)
    return {name if name.startswith("lm_head.") else f"elmo.{name}": tensor for name, tensor in state.items()}


def final_state_of(recorded, step: int, config: ElmoConfig) -> ElmoState:
    """The original lists (cell, hidden) for each layer of the forward direction, then of the backward one."""
    arrays = [torch.from_numpy(recorded[f"step{step}/final_state_{i}"]) for i in range(4 * config.num_hidden_layers)]
    layers = config.num_hidden_layers
    cells, hiddens = arrays[0::2], arrays[1::2]
    cell = torch.stack([torch.stack([cells[layer], cells[layers + layer]]) for layer in range(layers)])
    hidden = torch.stack([torch.stack([hiddens[layer], hiddens[layers + layer]]) for layer in range(layers)])
    return ElmoState(hidden, cell)


def negatives_of(recorded, step: int, labels: list[np.ndarray], sampler: LogUniformSampler):
    """The recorded draws. Their number of tries is not recorded, but it is the one that gives the expected counts."""
    draws = []
    for side in (0, 1):
        ids = torch.from_numpy(recorded[f"step{step}/sampled_{side}"])
        expected = torch.from_numpy(recorded[f"step{step}/sampled_expected_{side}"])
        candidates = [(sampler.expected_count(ids, tries) - expected).abs().max().item() for tries in range(16, 4000)]
        tries = 16 + int(np.argmin(candidates))
        assert min(candidates) < 1e-5
        true = sampler.expected_count(torch.from_numpy(labels[side].reshape(-1)), tries)
        np.testing.assert_allclose(true, recorded[f"step{step}/true_expected_{side}"][:, 0], rtol=1e-4)
        draws.append(Negatives(ids, tries))
    return tuple(draws)


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_ten_recorded_steps_are_reproduced(shared, softmax):
    recorded = np.load(shared / f"fixtures/bilm_tf_training/ref_train_{softmax}.npz")
    options = json.loads(str(recorded["options"]))
    shapes = {name: data.shape for name, data in from_variables(variables_of(recorded, "init/")).items()}
    config = infer_config(shapes, options, use_words=False)
    model = ElmoForPreTraining(config).train()
    model.load_state_dict(state_dict_of(recorded, "init/", config))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.2, initial_accumulator_value=1.0, eps=0.0)
    assert (model.sampler is not None) == (softmax == "sampled")

    state = None
    for step in range(10):
        # The original's ids are not shifted: its 0 is byte 0, while our 0 is the mask.
        forward, backward = (
            torch.from_numpy(recorded[f"step{step}/tokens_characters{side}"]).long() + 1 for side in ("", "_reverse")
        )
        labels = [recorded[f"step{step}/next_token_id{side}"].astype(np.int64) for side in ("", "_reverse")]
        output = model(
            input_ids=forward,
            reversed_input_ids=backward,
            next_targets=torch.from_numpy(labels[0]),
            previous_targets=torch.from_numpy(labels[1]),
            state=state,
            negatives=negatives_of(recorded, step, labels, model.sampler) if model.sampler else None,
        )
        losses = torch.stack([output.forward_loss, output.backward_loss, output.loss]).detach()
        np.testing.assert_allclose(losses, recorded[f"step{step}/loss"], atol=1e-5, rtol=0)

        optimizer.zero_grad()
        (output.loss * options["unroll_steps"]).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options["all_clip_norm_val"])
        np.testing.assert_allclose(norm, recorded[f"step{step}/grad_norm_preclip"], rtol=1e-5)
        expected = state_dict_of(recorded, f"step{step}/clipped_grad/", config)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=0, msg=f"{name} at step {step}")
        optimizer.step()

        state = ElmoState(output.state.hidden.detach(), output.state.cell.detach())
        expected_state = final_state_of(recorded, step, config)
        torch.testing.assert_close(state.hidden, expected_state.hidden, atol=1e-5, rtol=0)
        torch.testing.assert_close(state.cell, expected_state.cell, atol=1e-5, rtol=0)

    final = state_dict_of(recorded, "final/", config)
    accumulators = state_dict_of(recorded, "final_acc/", config)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), final[name], atol=1e-5, rtol=0, msg=name)
        accumulator = optimizer.state[parameter]["sum"]
        rows = slice(1, None) if "char_embedding" in name else slice(None)  # the mask row has no accumulator there
        torch.testing.assert_close(accumulator[rows], accumulators[name][rows], atol=1e-4, rtol=1e-5, msg=name)


def test_sampler_gives_tensorflows_expected_counts(shared):
    recorded = np.load(shared / "fixtures/bilm_tf_training/ref_sampler.npz")
    sampler = LogUniformSampler(21_725, 1_024)
    labels = torch.from_numpy(recorded["labels"])
    for draw in range(3):
        tries = int(recorded[f"tries_{draw}"])
        sampled = sampler.expected_count(torch.from_numpy(recorded[f"ids_{draw}"]), tries)
        np.testing.assert_allclose(sampled, recorded[f"se_{draw}"], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(sampler.expected_count(labels, tries), recorded[f"te_{draw}"][:, 0], rtol=1e-4)
