"""The pipeline "feature-extraction", also for batches: transformers' own one cannot take the LSTM state apart."""

from typing import Any

from transformers import FeatureExtractionPipeline


class ElmoFeatureExtractionPipeline(FeatureExtractionPipeline):
    """`FeatureExtractionPipeline` for an ELMo: a text has the same vectors in a batch as alone, without padding.

    ```python
    >>> extract = pipeline("feature-extraction", "runs/mine", trust_remote_code=True, batch_size=32)
    >>> extract("The sky is blue.", return_tensors=True).shape  # with <S> and </S>
    torch.Size([1, 7, 256])
    ```

    The vectors are `last_hidden_state`. For a model object, `pipeline("feature-extraction", model=model,
    tokenizer=tokenizer, pipeline_class=ElmoFeatureExtractionPipeline)`.
    """

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        vectors = self.model(**model_inputs).last_hidden_state
        mask = model_inputs.get("attention_mask", vectors.new_ones(vectors.shape[:2]))
        return {"last_hidden_state": vectors, "attention_mask": mask}

    def postprocess(self, model_outputs: dict[str, Any], return_tensors: bool = False) -> Any:  # type: ignore[override]
        num_words = int(model_outputs["attention_mask"].sum(1).max())
        return super().postprocess([model_outputs["last_hidden_state"][:, :num_words]], return_tensors)
