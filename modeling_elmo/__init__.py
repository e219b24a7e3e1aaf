"""ELMo (Peters et al. 2018) for Hugging Face transformers. Importing this package registers its Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .lstm import ElmoState
from .modeling_elmo import ElmoModel, ElmoPreTrainedModel
from .sequence_classification import ElmoForMultipleChoice, ElmoForSequenceClassification
from .tokenization_elmo import ElmoTokenizer

__version__ = "0.1.0"
__all__ = [
    "ElmoConfig",
    "ElmoForMultipleChoice",
    "ElmoForPreTraining",
    "ElmoForSequenceClassification",
    "ElmoModel",
    "ElmoPreTrainedModel",
    "ElmoState",
    "ElmoTokenizer",
]

AutoConfig.register("elmo", ElmoConfig)
AutoModel.register(ElmoConfig, ElmoModel)
AutoModelForPreTraining.register(ElmoConfig, ElmoForPreTraining)
AutoModelForSequenceClassification.register(ElmoConfig, ElmoForSequenceClassification)
AutoModelForMultipleChoice.register(ElmoConfig, ElmoForMultipleChoice)
AutoTokenizer.register(ElmoConfig, tokenizer_class=ElmoTokenizer)
# Whatever is saved carries the code that loads it, so that others can load it without this package.
ElmoConfig.register_for_auto_class()
ElmoModel.register_for_auto_class("AutoModel")
ElmoForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ElmoForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ElmoForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
ElmoTokenizer.register_for_auto_class("AutoTokenizer")
