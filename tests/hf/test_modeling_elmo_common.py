"""transformers' own common tests of models, configurations and training, run on ELMo's classes: `make test-hf`.

ELMo's `input_ids` have a dimension more than the tests expect, the characters of each word. `skips.py` lists every
test that is overridden here or skipped, with its reason.
"""

import fnmatch
import inspect
import unittest
from unittest import mock

import pytest
import torch
from harness import MODEL_CLASSES, load
from skips import OLDER_RELEASE, OVERRIDDEN, SKIPPED
from torch import Tensor
from transformers.testing_utils import torch_device

from modeling_elmo import ElmoConfig, ElmoForMultipleChoice, ElmoForPreTraining, ElmoForQuestionAnswering
from modeling_elmo.char_rows import BEGIN_OF_WORD, END_OF_WORD, PADDING

modeling_common = load("test_modeling_common")
ConfigTester = load("test_configuration_common").ConfigTester
TrainingTesterMixin = load("test_training_mixin").TrainingTesterMixin

MAX_WORD_LENGTH = 12


def spell(words: Tensor) -> Tensor:
    """One-letter words: (batch, words) ids of bytes, 0 for padding -> (batch, words, MAX_WORD_LENGTH) rows."""
    rows = torch.full((*words.shape, MAX_WORD_LENGTH), PADDING, device=words.device)
    rows[..., 0], rows[..., 1], rows[..., 2] = BEGIN_OF_WORD, words, END_OF_WORD
    return rows.masked_fill(words[..., None] == 0, 0)


class ElmoModelTester:
    """Makes the tiny configuration and the padded batch that the common tests ask for."""

    batch_size = 3
    seq_length = 7
    num_hidden_layers = 2
    hidden_size = 32
    num_choices = 2
    is_training = True
    causal_lm_class = ElmoForPreTraining  # the class that `test_training_overfit` trains

    def get_config(self) -> ElmoConfig:
        return ElmoConfig(
            max_word_length=MAX_WORD_LENGTH,
            char_embedding_dim=4,
            cnn_filters=[[1, 8], [2, 8], [3, 16]],
            num_highway_layers=1,
            num_hidden_layers=self.num_hidden_layers,
            lstm_dim=32,
            projection_dim=self.hidden_size // 2,
            dropout=0.0,
            lm_vocab_size=40,
            freeze_bilm=False,  # the tests ask for gradients everywhere
            head_dim=4,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[ElmoConfig, dict[str, Tensor]]:
        lengths = torch.tensor([self.seq_length, 4, 1], device=torch_device)
        mask = (torch.arange(self.seq_length, device=torch_device) < lengths[:, None]).long()  # (batch, words)
        words = torch.randint(1, 257, mask.shape, device=torch_device) * mask
        return self.get_config(), {"input_ids": spell(words), "attention_mask": mask}


# ModelTesterMixin first: its `model_tester` stands in for the abstract one of TrainingTesterMixin, and pytest collects
# nothing from an abstract class.
class ElmoModelTest(modeling_common.ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    """The common tests. What is replaced here has its reason in `skips.OVERRIDDEN`."""

    all_model_classes = tuple(MODEL_CLASSES.values())
    has_attentions = False
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True
    # 1e-3 is for wider models: there the loss of this one falls by 97 %, but its gradient is still large at the end.
    training_overfit_learning_rate = 3e-3

    def setUp(self):
        self.model_tester = ElmoModelTester()
        self.config_tester = ConfigTester(
            self, config_class=ElmoConfig, common_properties=["hidden_size", "num_hidden_layers"], projection_dim=37
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_outputs_come_in_the_order_of_their_fields(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            model = model_class(config).to(torch_device)
            for return_labels in (False, True):
                prepared = self._prepare_for_class(inputs, model_class, return_labels=return_labels)
                outputs = model(**prepared, output_hidden_states=True)
                fields = [name for name in type(outputs).__dataclass_fields__ if getattr(outputs, name) is not None]
                self.assertEqual(list(outputs), fields)

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        if model_class is ElmoForMultipleChoice:
            inputs = {
                name: value[:, None].expand(-1, self.model_tester.num_choices, *value.shape[1:]).contiguous()
                if isinstance(value, Tensor)
                else value
                for name, value in inputs_dict.items()
            }
            if return_labels:
                inputs["labels"] = torch.zeros(len(inputs["attention_mask"]), dtype=torch.long, device=torch_device)
            return inputs
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is ElmoForPreTraining:
            inputs["labels"] = torch.zeros_like(inputs["attention_mask"])
        if return_labels and model_class is ElmoForQuestionAnswering:
            # A question of one word, and an answer in the context behind it: elsewhere there is nothing to learn.
            inputs["token_type_ids"] = (
                (torch.arange(inputs["attention_mask"].shape[1]) > 0).long().expand(inputs["attention_mask"].shape)
            )
            inputs |= {name: torch.ones_like(inputs[name]) for name in ("start_positions", "end_positions")}
        return inputs

    def _create_text_training_batch(self, batch_size: int, seq_length: int, vocab_size: int) -> dict[str, Tensor]:
        batch = super()._create_text_training_batch(batch_size, seq_length, vocab_size)
        return {"input_ids": spell(batch["input_ids"]), "labels": batch["labels"]}

    def test_load_with_mismatched_shapes(self):
        ids_tensor = modeling_common.ids_tensor
        with mock.patch.object(
            modeling_common, "ids_tensor", lambda shape, vocab_size: ids_tensor((*shape, MAX_WORD_LENGTH), vocab_size)
        ):
            super().test_load_with_mismatched_shapes()

    def test_retain_grad_hidden_states_attentions(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config).to(torch_device)
        outputs = model(**inputs, output_hidden_states=True)
        for layer in outputs.hidden_states:
            layer.retain_grad()
        outputs.scalar_mix.sum().backward()
        for layer in outputs.hidden_states:
            self.assertTrue(layer.grad.any())


def test_table_of_overrides_is_exact():
    replaced = {
        name
        for name, method in inspect.getmembers(ElmoModelTest, inspect.isfunction)
        if inspect.unwrap(method).__module__ == __name__
        and any(hasattr(base, name) for base in (modeling_common.ModelTesterMixin, TrainingTesterMixin))
    }
    assert replaced == set(OVERRIDDEN)


@pytest.mark.skipif(OLDER_RELEASE, reason="older releases lack some of the tests")
def test_table_of_skips_has_no_stale_entry():
    tests = [name for name in dir(ElmoModelTest) if name.startswith("test_")]
    assert not [pattern for patterns in SKIPPED.values() for pattern in patterns if not fnmatch.filter(tests, pattern)]
