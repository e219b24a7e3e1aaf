"""The pipelines "token-classification" and "ner" for models whose ids are rows of characters."""

from typing import Any

import torch
from transformers import TokenClassificationPipeline
from transformers.pipelines.token_classification import AggregationStrategy


class ElmoTokenClassificationPipeline(TokenClassificationPipeline):
    """`TokenClassificationPipeline` for an ELMo: each word is one token, known by its place in the text.

    ```python
    >>> ner = pipeline("ner", "runs/conll2003", trust_remote_code=True, aggregation_strategy="simple")
    >>> ner("My name is Wolfgang and I live in Berlin.")
    [{'entity_group': 'PER', 'score': 0.98, 'word': 'Wolfgang', 'start': 11, 'end': 19}, ...]
    ```

    For a model object, `pipeline("ner", model=model, tokenizer=tokenizer,
    pipeline_class=ElmoTokenClassificationPipeline)`; without the class it is transformers' own pipeline, which fails.
    """

    def check_model_type(self, supported_models):
        """Nothing: the list of supported models is that of transformers' own."""

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        tokenizer: Any = self.tokenizer
        names = [*tokenizer.model_input_names, "special_tokens_mask"]
        output = self.model(**{name: model_inputs[name] for name in names if name in model_inputs})
        # What follows looks a token up by its id, and takes a word from the text where the id is that of "<UNK>".
        words = torch.full_like(model_inputs["special_tokens_mask"], tokenizer.unk_token_id)
        return {**model_inputs, "logits": output.logits, "input_ids": words}

    def gather_pre_entities(  # type: ignore[override]
        self, sentence, input_ids, scores, offset_mapping, special_tokens_mask, aggregation_strategy, **kwargs
    ) -> list[dict]:
        # The strategy decides on a warning only, that a token may be less than a word. Ours never is.
        strategy = AggregationStrategy.NONE
        return super().gather_pre_entities(
            sentence, input_ids, scores, offset_mapping, special_tokens_mask, strategy, **kwargs
        )

    def get_tag(self, entity_name: str) -> tuple[str, str]:
        """Also for schemes that mark the end of an entity: E- and L- go on with it, S- and U- begin one."""
        prefix, dash, kind = entity_name.partition("-")
        part = {"E": "I", "L": "I", "S": "B", "U": "B"}.get(prefix)
        return (part, kind) if dash and part else super().get_tag(entity_name)
