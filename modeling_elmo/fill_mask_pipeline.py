"""The pipeline "fill-mask" for ELMo: the words that both directions of the language model expect at a gap."""

from typing import Any

import torch
from transformers import Pipeline
from transformers.utils import logging

from .rust_splitter import checked_words
from .word_prediction import best, combine, predict_words, special_ids, vocabulary_mismatch

logger = logging.get_logger(__name__)

MASKS = ("[MASK]", "<mask>")


class ElmoFillMaskPipeline(Pipeline):
    """Words for gaps in texts.

    ```python
    >>> fill = pipeline("fill-mask", "runs/mine", trust_remote_code=True)
    >>> fill("You can [MASK] the value.", top_k=2)
    [{'score': 0.31, 'token': 120, 'token_str': 'set', 'sequence': 'You can set the value .'}, ...]
    ```

    A gap is "[MASK]" or `<mask>`. `token` is an id of the LM vocabulary. A text with several gaps has a list for each.
    For a model object, `pipeline("fill-mask", model=model, tokenizer=tokenizer, pipeline_class=ElmoFillMaskPipeline)`.
    """

    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def _sanitize_parameters(  # type: ignore[override]
        self, top_k: int | None = None, targets: str | list[str] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be 1 or more, not {top_k}")
        after: dict[str, Any] = {} if top_k is None else {"top_k": top_k}
        if targets is not None:
            after["targets"] = self._target_ids([targets] if isinstance(targets, str) else list(targets))
        return {}, {}, after

    def _target_ids(self, targets: list[str]) -> list[int]:
        tokenizer: Any = self.tokenizer
        words = checked_words(targets, tokenizer.backend_tokenizer.normalizer)
        known = [word for word in words if word in tokenizer.lm_vocab]
        if not known:
            raise ValueError(f"none of the targets is in the model's vocabulary: {', '.join(targets)}")
        if len(known) < len(words):
            unknown = [target for target, word in zip(targets, words, strict=True) if word not in known]
            logger.warning(f"targets that are not in the model's vocabulary are left out: {', '.join(unknown)}")
        return tokenizer.lm_ids(known).tolist()

    def preprocess(self, text: str) -> dict[str, Any]:  # type: ignore[override]
        tokenizer: Any = self.tokenizer
        if wrong := vocabulary_mismatch(self.model.config, tokenizer):
            raise ValueError(wrong)
        if not isinstance(text, str):
            raise ValueError(f"every text must be a string, not {type(text).__name__}")
        first, *others = text.replace(MASKS[1], MASKS[0]).split(MASKS[0])
        if not others:
            raise ValueError(f"there is no gap in {text[:60]!r}: mark one with {' or '.join(MASKS)}")
        words, gaps = tokenizer.split_words(first), []
        for part in others:
            gaps.append(len(words))
            words += [MASKS[0], *tokenizer.split_words(part)]
        return {**tokenizer([words], is_split_into_words=True, return_tensors="pt"), "words": words, "gaps": gaps}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        """For a text as `preprocess` leaves it, or a batch of them, whose words and gaps are lists of such."""
        model: Any = self.model
        is_batch = isinstance(inputs["words"][0], list)
        gaps = inputs["gaps"] if is_batch else [inputs["gaps"]]
        rows = torch.tensor([row for row, of_text in enumerate(gaps) for _ in of_text])
        places = torch.tensor([gap for of_text in gaps for gap in of_text]) + 1  # behind <S>
        log_probs = predict_words(model, inputs["input_ids"], inputs["attention_mask"], rows, places)
        by_text = log_probs.split([len(of_text) for of_text in gaps])  # (its gaps, 2, lm_vocab_size) each
        # `pipeline` takes a batch apart again, and puts a dimension before tensors.
        return {
            "log_probs": list(by_text) if is_batch else by_text[0][None],
            "words": inputs["words"],
            "gaps": inputs["gaps"],
        }

    def postprocess(  # type: ignore[override]
        self, outputs: dict[str, Any], top_k: int = 5, targets: list[int] | None = None
    ) -> list[Any]:
        tokenizer: Any = self.tokenizer
        log_probs = combine(outputs["log_probs"][0], special_ids(tokenizer))  # (gaps, lm_vocab_size)
        if targets is not None:
            others = torch.ones(log_probs.shape[1], dtype=torch.bool)
            others[targets] = False
            log_probs[:, others] = -torch.inf
        found = []
        for gap, place in zip(log_probs, outputs["gaps"], strict=True):
            filled = []
            for word, word_id, probability in best(tokenizer, gap, top_k):
                words = [*outputs["words"][:place], word, *outputs["words"][place + 1 :]]
                filled.append({"score": probability, "token": word_id, "token_str": word, "sequence": " ".join(words)})
            found.append(filled)
        return found if len(found) > 1 else found[0]
