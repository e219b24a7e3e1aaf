"""transformers' common model tests, made importable here and told of ELMo's classes.

The source distribution lacks the sub-packages that its common tests import from. What stands in for them is our own:
no export tests (ELMo's are in this project's own tests), no generation tests (ELMo does not generate text), and a set
of values for the options that every config has.
"""

import importlib
import sys
from types import ModuleType

import torch
from fetch_transformers_tests import PACKAGE, fetch
from transformers.models.auto import modeling_auto

from modeling_elmo import (
    ElmoForMultipleChoice,
    ElmoForPreTraining,
    ElmoForQuestionAnswering,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)

# The classes under test, each with the table of transformers that the common tests look it up in to see which labels
# it takes. A new task model is one more line.
MODEL_CLASSES = {
    "MODEL_MAPPING_NAMES": ElmoModel,
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES": ElmoForPreTraining,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": ElmoForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": ElmoForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": ElmoForQuestionAnswering,
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": ElmoForMultipleChoice,
}


class ExportTesterMixin:
    """Stand-in without tests."""


class GenerationTesterMixin:
    """Stand-in without tests; the common tests check that a model which cannot generate does not inherit from it."""


# Options of every `PreTrainedConfig`, each with a value that is not its default.
config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": torch.float16,
    "chunk_size_feed_forward": 5,
    "architectures": ["ElmoModel"],
    "id2label": {0: "label"},
    "label2id": {"label": 0},
    "problem_type": "regression",
    "_name_or_path": "some/folder",
}

STAND_INS = {
    "exporters.test_export": {"ExportTesterMixin": ExportTesterMixin},
    "generation.test_utils": {"GenerationTesterMixin": GenerationTesterMixin},
    "utils.test_configuration_utils": {"config_common_kwargs": config_common_kwargs},
}


def load(name: str) -> ModuleType:
    """One module of transformers' tests, such as `"test_modeling_common"`. The first call fetches them."""
    folder = fetch()
    for stand_in, contents in STAND_INS.items():
        module = ModuleType(f"{PACKAGE}.{stand_in}")
        vars(module).update(contents)
        sys.modules.setdefault(module.__name__, module)
    for mapping, model_class in MODEL_CLASSES.items():
        getattr(modeling_auto, mapping)["elmo"] = model_class.__name__
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(f"{PACKAGE}.{name}")
