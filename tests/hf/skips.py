"""Every common test of transformers that is not run as it stands, with the reason.

A skip that has no reason here fails the run (`conftest.py`), and so does an entry here that fits no test any more.

Left out as whole classes, because the source distribution does not hold them: the export tests (ELMo's own belong to
this project's tests), the generation tests (ELMo does not generate text) and the pipeline tests. Left out although it
does: the mixins for tensor, expert and FSDP parallelism, which start several processes with helpers it does not hold.
"""

from fnmatch import fnmatch

import transformers
from packaging.version import Version

# Releases before 5.23 lack some of the tests below.
release = Version(transformers.__version__)
OLDER_RELEASE = release < Version("5.23")

# Methods of the common tests that ELMo's test class replaces.
OVERRIDDEN = {
    "_create_text_training_batch": "makes 2-D ids; the same batch is spelt out in characters, its ids are the labels",
    "_prepare_for_class": (
        "makes no labels for models of the pretraining table, and no contexts for answers; repeats tensors of two "
        "dimensions only for each choice"
    ),
    "test_load_with_mismatched_shapes": "makes 2-D ids in its body; it runs unchanged on ids with a third dimension",
    "test_retain_grad_hidden_states_attentions": (
        "takes each layer's output for the very tensor that the next layer reads; ELMo's layers read packed words, and "
        "hidden_states are laid out from them for the caller. The replacement asks for gradients through the mix of "
        "all layers instead, and for each layer rather than for the first"
    ),
}

# Reason -> tests that skip themselves for it, as patterns of names.
SKIPPED = {
    "an LSTM has no attention: no implementations of it to choose from, no attention weights to return": [
        "test_attention_outputs",
        "test_attn_implementation_composite_models",
        "test_can_set_attention_dynamically*",
        "test_eager_matches_sdpa_inference_*",
        "test_flash_attn_*",
        "test_flex_attention_with_grads",
        "test_sdpa_can_*",
        "test_sliding_window_mask",
    ],
    "an LSTM has no position embeddings": [
        "test_model_rope_*",
        "test_resize_position_vector_embeddings",
        "test_vision_axial_rope",
    ],
    "there is no mixture of experts": [
        "test_eager_matches_batched_and_grouped_inference_*",
        "test_moe_models_record_router_logits",
        "test_output_router_logits_from_config",
    ],
    "the config holds no other configs": ["test_internal_model_config_and_subconfig_are_same"],
    "words are spelt in characters, of which the table always has as many": [
        "test_resize_embeddings_untied*",
        "test_resize_tokens_embeddings*",
    ],
    "the heads are neither left-to-right nor sequence-to-sequence language models": [
        "test_causal_lm_loss_honors_shift_labels",
        "test_encoder_decoder_loss_no_double_shift",
    ],
    "forward collects hidden_states itself; transformers' capture_outputs hooks would return packed words": [
        "test_can_capture_specific_layers_hidden_states",
        "test_capture_outputs_decorator",
    ],
    "no module has to stay in float32 in a half-precision model: the cell state does, and that is no weight": [
        "test_keep_in_fp32_modules*",
    ],
    "transformers has no table of renamed weights for ELMo; legacy files go through modeling_elmo.convert": [
        "test_can_load_from_already_mapped_keys",
        "test_reverse_loading_mapping",
    ],
    "there is no tensor-parallel plan": [
        "test_tp_plan_matches_params",
        *(["test_tied_head_has_a_tp_plan_entry"] if release < Version("5.24") else []),
    ],
    "needs an accelerator, and runs where there is one": [
        "test_can_load_with_device_context_manager",
        "test_can_load_with_global_device_set",
        "test_cpu_offload",
        "test_disk_offload_*",
    ],
    "needs several accelerators": ["test_model_parallelism"],
    "needs an accelerator and the kernels library": ["test_kernels_can_load_without_crashing"],
    "makes 2-D ids and asks for one graph, while the steps of a batch of texts are a loop of varying length": [
        "test_torch_compile_for_training",
    ],
    "needs deepspeed": ["test_resize_*_with_deepspeed*"],
}
if OLDER_RELEASE:
    SKIPPED["asked only of models whose files begin with a copyright of 2023 or later"] = [
        "test_can_init_all_missing_weights"
    ]


def is_listed(test: str) -> bool:
    """Whether there is a reason for that test to be skipped."""
    return any(fnmatch(test, pattern) for patterns in SKIPPED.values() for pattern in patterns)
