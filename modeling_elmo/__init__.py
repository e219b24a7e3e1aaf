"""ELMo (Peters et al. 2018) for Hugging Face transformers. Importing this package registers its Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoTokenizer

from .configuration_elmo import ElmoConfig
from .language_model import ElmoForPreTraining
from .lstm import ElmoState
from .modeling_elmo import ElmoModel, ElmoPreTrainedModel
from .tokenization_elmo import ElmoTokenizer

__version__ = "0.1.0"
__all__ = ["ElmoConfig", "ElmoForPreTraining", "ElmoModel", "ElmoPreTrainedModel", "ElmoState", "ElmoTokenizer"]

AutoConfig.register("elmo", ElmoConfig)
AutoModel.register(ElmoConfig, ElmoModel)
AutoModelForPreTraining.register(ElmoConfig, ElmoForPreTraining)
AutoTokenizer.register(ElmoConfig, tokenizer_class=ElmoTokenizer)
# Whatever is saved carries the code that loads it, so that others can load it without this package.
ElmoConfig.register_for_auto_class()
ElmoModel.register_for_auto_class("AutoModel")
ElmoForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ElmoTokenizer.register_for_auto_class("AutoTokenizer")
