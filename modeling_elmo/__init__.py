"""ELMo (Peters et al. 2018) for Hugging Face transformers. Importing this package registers its Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .lstm import ElmoState
from .modeling_elmo import ElmoModel, ElmoPreTrainedModel
from .question_answering import ElmoForQuestionAnswering
from .sequence_classification import ElmoForMultipleChoice, ElmoForSequenceClassification
from .token_classification import ElmoForTokenClassification
from .tokenization_elmo import ElmoTokenizer

__version__ = "0.1.0"
__all__ = [
    "ElmoConfig",
    "ElmoForMultipleChoice",
    "ElmoForPreTraining",
    "ElmoForQuestionAnswering",
    "ElmoForSequenceClassification",
    "ElmoForTokenClassification",
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
AutoModelForTokenClassification.register(ElmoConfig, ElmoForTokenClassification)
AutoModelForQuestionAnswering.register(ElmoConfig, ElmoForQuestionAnswering)
AutoTokenizer.register(ElmoConfig, tokenizer_class=ElmoTokenizer)
# Whatever is saved carries the code that loads it, so that others can load it without this package.
ElmoConfig.register_for_auto_class()
ElmoModel.register_for_auto_class("AutoModel")
ElmoForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ElmoForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
ElmoForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
ElmoForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
ElmoForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
ElmoTokenizer.register_for_auto_class("AutoTokenizer")
