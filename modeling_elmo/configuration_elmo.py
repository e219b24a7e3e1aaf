"""The configuration of an ELMo: every number that shapes its weights or its outputs."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

LARGEST = 2**63
MAX_LAYERS = 1000  # else a config of a few bytes would fill the memory with modules
# Which class each Auto class finds when the model is loaded as remote code. Each value is "<file>.<class>".
AUTO_MAP = {
    "AutoConfig": "configuration_elmo.ElmoConfig",
    "AutoModel": "modeling_elmo.ElmoModel",
    "AutoModelForPreTraining": "language_model.ElmoForPreTraining",
    "AutoModelForSequenceClassification": "sequence_classification.ElmoForSequenceClassification",
    "AutoModelForMultipleChoice": "sequence_classification.ElmoForMultipleChoice",
    "AutoModelForTokenClassification": "token_classification.ElmoForTokenClassification",
    "AutoModelForQuestionAnswering": "question_answering.ElmoForQuestionAnswering",
}
# Which class `pipeline` finds for tasks whose own one cannot read rows of characters or batch a state, or is no more.
FEATURE_PIPELINE = {
    "impl": "feature_extraction_pipeline.ElmoFeatureExtractionPipeline",
    "pt": ["AutoModel"],
}
TAGGING_PIPELINE = {
    "impl": "token_classification_pipeline.ElmoTokenClassificationPipeline",
    "pt": ["AutoModelForTokenClassification"],
}
ANSWERING_PIPELINE = {
    "impl": "question_answering_pipeline.ElmoQuestionAnsweringPipeline",
    "pt": ["AutoModelForQuestionAnswering"],
}
GAP_PIPELINE = {
    "impl": "fill_mask_pipeline.ElmoFillMaskPipeline",
    "pt": ["AutoModelForPreTraining"],
}
CUSTOM_PIPELINES = {
    "feature-extraction": FEATURE_PIPELINE,
    "fill-mask": GAP_PIPELINE,
    "token-classification": TAGGING_PIPELINE,
    "ner": TAGGING_PIPELINE,
    "question-answering": ANSWERING_PIPELINE,
}


def _code_to_save():
    """Never called. A saved model takes along the files that its own file imports, directly or through others.

    All of them import this one, so what it imports here goes into every folder: all files that `AUTO_MAP` and
    `CUSTOM_PIPELINES` name.
    """
    from .feature_extraction_pipeline import ElmoFeatureExtractionPipeline  # noqa: F401
    from .fill_mask_pipeline import ElmoFillMaskPipeline  # noqa: F401
    from .language_model import ElmoForPreTraining  # noqa: F401
    from .modeling_elmo import ElmoModel  # noqa: F401
    from .question_answering import ElmoForQuestionAnswering  # noqa: F401
    from .question_answering_pipeline import ElmoQuestionAnsweringPipeline  # noqa: F401
    from .sequence_classification import ElmoForSequenceClassification  # noqa: F401
    from .token_classification import ElmoForTokenClassification  # noqa: F401
    from .token_classification_pipeline import ElmoTokenClassificationPipeline  # noqa: F401


@strict
class ElmoConfig(PreTrainedConfig):
    r"""
    Configuration of an ELMo (Peters et al. 2018, arXiv 1802.05365). The defaults are the published "original" model.

    Characters to word (Kim et al. 2015, arXiv 1508.06615; Jozefowicz et al. 2016, arXiv 1602.02410):

    Attributes:
        vocab_size: Character ids: 0 is the mask, 1-256 the bytes 0-255, then begin of sentence, end of sentence, begin
            of word, end of word and padding. Default: 262.
        max_word_length: Ids per word: at most `max_word_length - 2` bytes and the two word boundaries. Default: 50.
        char_embedding_dim: Width of a character's vector. Default: 16.
        cnn_filters: Pairs of (window width in characters, number of filters). An empty list leaves the characters out:
            the model then looks words up in a table of `word_vocab_size` rows. Default: widths 1 to 7 with 32, 32, 64,
            128, 256, 512 and 1,024 filters.
        cnn_activation: `"relu"` or `"tanh"`, after the maximum over positions. Default: `"relu"`.
        num_highway_layers: Highway layers between the convolutions and the projection. Default: 2.
        use_cnn_projection: Project the filters to `projection_dim`. The original leaves this layer out when there are
            exactly `projection_dim` filters. Default: `True`.
        char_padding_id: What fills a word's row behind its last character. Another one than that of bytes means that
            words are spelt by a dictionary of characters. Default: 261.
        word_vocab_size: Rows of the word table that stands in for the characters when `cnn_filters` is empty, or beside
            them with `word_embedding_dim`: 0 is the mask, word k of the vocabulary has id k + 1. Default: no table.
        word_embedding_dim: Width of a vector for each frequent word beside the filters, before the projection, as in
            ELMoForManyLangs (Che et al. 2018, K18-2005). Rows then have the word's id as their last. Default: none.

    Bidirectional language model (Peters et al. 2018, section 3; projected LSTM of Sak et al. 2014, arXiv 1402.1128):

    Attributes:
        num_hidden_layers: LSTM layers of each direction. Default: 2.
        lstm_dim: Cells of each LSTM layer, per direction. Default: 4,096.
        projection_dim: Width to which each direction's output is projected; also the width of the word vectors.
            `hidden_size`, the width of every output, is twice this. Default: 512.
        cell_clip: The cell state is kept in [-cell_clip, cell_clip]; `None` switches clipping off. Default: 3.0.
        proj_clip: The same for the projected output. Default: 3.0.
        use_skip_connections: Add each layer's input to its output, from layer 2 on. Default: `True`.
        forget_bias: Added to the forget gate beside the stored bias, as in TensorFlow; 0.0 for weights whose bias has
            it already. Default: 1.0.
        dropout: On each LSTM layer's input and on the top output before the softmax. Default: 0.1.
        chunk_size: Longest run of words that is worked on at once; bounds the memory of long texts and does not change
            the result. `None` works on all words at once. Default: 512.
        initial_state: Texts begin in a state that is saved with the weights (`warm_state`), and not in zeros. Default:
            `False`.
        scalar_mix_layer_norm: Normalise each layer before the weighted sum (equation 1). Default: `False`.
        mix_last_hidden_state: `last_hidden_state` is that sum, and not the top layer, for what reads nothing else of an
            encoder, such as `EncoderDecoderModel`. Default: `False`.

    Language-model head (section 3.1; sampled softmax of Jean et al. 2015, arXiv 1412.2007):

    Attributes:
        lm_vocab_size: Words that the softmax predicts, in order of falling frequency. Needed by `ElmoForPreTraining`
            only.
        num_negative_samples: Negatives of the sampled softmax in training, shared by all words of a batch. Default:
            8,192.

    Task models (section 4 and the appendix; one set of options for all heads):

    Attributes:
        freeze_bilm: Train the head and the scalar mix only, as the paper does. Default: `True`.
        feature_layers: Which layers the head mixes. With `[0]` it sees words without context, and the LSTMs do not run.
            Default: all.
        concat_word_vectors: Where the head mixes layer 0 with others, it reads layer 0 beside the mix, too, as x_k in
            [x_k; ELMo_k] (section 3.3). Default: `True`.
        feature_dropout: On what the head reads. Default: 0.5.
        scalar_mix_l2: Weight of the squared scalar mix weights in the training loss: it pulls the mix towards the
            average of the layers. Default: 0.001.
        head: `"recurrent"`, the task model of the papers, or `"linear"`, one linear layer over the (pooled) features:
            fast, and the baseline. Default: `"recurrent"`.
        head_dim: Cells of each recurrent layer of the head, per direction. Default: that of the papers, 300 for
            classification, 200 for tagging, 100 for questions.
        head_dropout: Between the layers of the head. Default: 0.2.
        use_crf: Score tags jointly with a linear-chain CRF; otherwise one by one. Default: `True`.

    Raises:
        StrictDataclassError: a value of the wrong type, or one that no ELMo can have; the message names the field.

    Example:

    ```python
    >>> from modeling_elmo import ElmoConfig, ElmoModel
    >>> model = ElmoModel(ElmoConfig(lstm_dim=1024, projection_dim=128, num_highway_layers=1))
    >>> model.config.hidden_size
    256
    ```
    """

    model_type = "elmo"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["state", "hidden_states", "scalar_mix", "word_losses"]

    vocab_size: int = 262
    max_word_length: int = 50
    char_embedding_dim: int = 16
    cnn_filters: list[list[int]] | tuple[list[int], ...] | None = None  # None: those of the original
    cnn_activation: str = "relu"
    num_highway_layers: int = 2
    use_cnn_projection: bool = True
    char_padding_id: int = 261
    word_vocab_size: int | None = None
    word_embedding_dim: int | None = None

    num_hidden_layers: int = 2
    lstm_dim: int = 4096
    projection_dim: int = 512
    cell_clip: float | int | None = 3.0
    proj_clip: float | int | None = 3.0
    use_skip_connections: bool = True
    forget_bias: float | int = 1.0
    dropout: float | int = 0.1
    chunk_size: int | None = 512
    initial_state: bool = False
    scalar_mix_layer_norm: bool = False
    mix_last_hidden_state: bool = False

    lm_vocab_size: int | None = None
    num_negative_samples: int = 8192

    freeze_bilm: bool = True
    feature_layers: list[int] | None = None
    concat_word_vectors: bool = True
    feature_dropout: float | int = 0.5
    scalar_mix_l2: float | int = 0.001
    head: str = "recurrent"
    head_dim: int | None = None
    head_dropout: float | int = 0.2
    use_crf: bool = True

    # As the tokenizer numbers them.
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.cnn_filters is None:
            self.cnn_filters = [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]]
        self.cnn_filters = [list(pair) for pair in self.cnn_filters]
        self.hidden_size = kwargs.pop("hidden_size", self.hidden_size)  # says so if it contradicts
        # What is given counts: a class made from one of ours, or code that lies in another repository.
        kwargs["auto_map"] = {**AUTO_MAP, **(kwargs.pop("auto_map", None) or {})}
        own = {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()}  # copies, for `pipeline` writes into them
        kwargs["custom_pipelines"] = {**own, **(kwargs.get("custom_pipelines") or {})}
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Width of every layer's output: forward and backward side by side."""
        return 2 * self.projection_dim

    @hidden_size.setter
    def hidden_size(self, value: int):
        if value != self.hidden_size:
            raise ValueError(
                f"hidden_size={value} contradicts projection_dim={self.projection_dim}: hidden_size is always "
                f"2 * projection_dim = {self.hidden_size}. Set projection_dim and leave hidden_size out."
            )

    @property
    def num_filters(self) -> int:
        """Width of a word between the convolutions and the projection."""
        return sum(number for _, number in self.cnn_filters or ())

    @property
    def row_length(self) -> int:
        """Ids that make a word: its characters and, with `word_embedding_dim`, its own id."""
        return self.max_word_length + (self.word_embedding_dim is not None)

    def validate_elmo(self):
        """Raise a `ValueError` that names the field and what it may be. Runs after every construction."""
        positive = ["vocab_size", "char_embedding_dim", "num_hidden_layers", "lstm_dim", "projection_dim"]
        positive += ["num_negative_samples"]
        optional = [
            "word_vocab_size",
            "word_embedding_dim",
            "lm_vocab_size",
            "chunk_size",
            "cell_clip",
            "proj_clip",
            "head_dim",
        ]
        for name in positive + [name for name in optional if getattr(self, name) is not None]:
            if not 0 < getattr(self, name) < LARGEST:  # so that NaN is refused too
                raise ValueError(f"{name} must be greater than 0, and less than 2**63, not {getattr(self, name)}")
        if self.num_highway_layers < 0:
            raise ValueError(f"num_highway_layers must be 0 or more, not {self.num_highway_layers}")
        for name in ("num_hidden_layers", "num_highway_layers"):
            if getattr(self, name) > MAX_LAYERS:
                raise ValueError(f"{name} must be at most {MAX_LAYERS}, not {getattr(self, name)}")
        if not abs(self.forget_bias) < LARGEST:
            raise ValueError(f"forget_bias must be between -2**63 and 2**63, not {self.forget_bias}")
        for name in ("dropout", "feature_dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 3 <= self.max_word_length <= 2**16:
            raise ValueError(
                f"max_word_length must be from 3, two boundaries and a byte, to {2**16}, not {self.max_word_length}"
            )
        if self.cnn_activation not in ("relu", "tanh"):
            raise ValueError(f"cnn_activation must be 'relu' or 'tanh', not {self.cnn_activation!r}")
        self._validate_filters()
        if not self.cnn_filters and self.word_vocab_size is None:
            raise ValueError("without cnn_filters the model needs word_vocab_size, the rows of its word table")
        self._validate_word_table()
        if self.cnn_filters and not self.use_cnn_projection and self.num_filters != self.projection_dim:
            raise ValueError(
                f"use_cnn_projection=False needs as many filters as projection_dim={self.projection_dim}, "
                f"but cnn_filters has {self.num_filters}"
            )
        self._validate_head()

    def _validate_filters(self):
        for pair in self.cnn_filters:
            if len(pair) != 2 or not all(isinstance(number, int) and number > 0 for number in pair):
                raise ValueError(f"cnn_filters must hold pairs of positive integers (width, number), not {pair}")
            if pair[0] > self.max_word_length:
                raise ValueError(f"cnn_filters: width {pair[0]} is greater than max_word_length={self.max_word_length}")
        if self.cnn_filters and not 0 < self.char_padding_id < self.vocab_size:
            raise ValueError(
                f"char_padding_id={self.char_padding_id} must be a character's id, from 1 to vocab_size - 1 = "
                f"{self.vocab_size - 1}"
            )

    def _validate_word_table(self):
        if self.word_embedding_dim is None:
            if self.cnn_filters and self.word_vocab_size is not None:
                raise ValueError(
                    "word_vocab_size is for models without characters, or with word_embedding_dim beside them: leave "
                    "it out, set cnn_filters to [], or set word_embedding_dim"
                )
        elif not self.cnn_filters or self.word_vocab_size is None or not self.use_cnn_projection:
            raise ValueError(
                "word_embedding_dim needs cnn_filters, which it stands beside, word_vocab_size and use_cnn_projection"
            )

    def _validate_head(self):
        if self.head not in ("recurrent", "linear"):
            raise ValueError(f"head must be 'recurrent' or 'linear', not {self.head!r}")
        if not self.scalar_mix_l2 >= 0:
            raise ValueError(f"scalar_mix_l2 must be 0 or more, not {self.scalar_mix_l2}")
        layers = self.feature_layers
        if layers is not None and (
            not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(self.num_hidden_layers + 1))
        ):
            raise ValueError(
                f"feature_layers must be different numbers from 0 to num_hidden_layers={self.num_hidden_layers}, "
                f"not {layers}"
            )
