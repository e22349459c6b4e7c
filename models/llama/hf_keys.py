"""What every known key of a Hugging Face `config.json` means for a dense Llama: data, no logic."""

from __future__ import annotations

READ_KEYS = frozenset(
    """architectures attention_bias bos_token_id dtype eos_token_id head_dim hidden_act hidden_size intermediate_size
    max_position_embeddings mlp_bias model_type num_attention_heads num_hidden_layers num_key_value_heads
    rms_norm_eps rope_parameters rope_scaling rope_theta tie_word_embeddings torch_dtype vocab_size""".split()
)
"""Keys that are read."""

HARMLESS_KEYS = frozenset(
    """_attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _flash_attn_2_enabled _name_or_path attention_dropout attn_implementation bad_words_ids
    begin_suppress_tokens chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample early_stopping
    embd_pdrop encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout id2label initializer_range is_decoder is_llama_config label2id length_penalty
    max_length mlp_dropout min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty resid_pdrop residual_dropout return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    tokenizer_padding_side top_k top_p torchscript transformers.js_config transformers_version typical_p
    unsloth_fixed unsloth_version use_bfloat16 use_cache""".split()
)
"""Keys that do not change the function the model computes: bookkeeping, training and generation settings."""

MEANING_KEYS: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_out_bias": (False,),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "compression_config": (),
    "cross_attention_layers": ([],),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "moe_layers": ([],),
    "n_routed_experts": (0,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "num_nextn_predict_layers": (0,),
    "partial_rotary_factor": (1,),
    "pruned_heads": ({}, []),
    "qk_norm": (False,),
    "qkv_bias": (False,),
    "quantization_config": (),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "rotary_pct": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "sliding_window": (),
    "text_config": (),
    "use_bias": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
    "vision_config": (),
}
"""Keys that change the function: allowed only as null or one of the listed values, under which they change nothing."""

ACTIVATIONS = ("silu", "swish")
ARCHITECTURES = ("LlamaForCausalLM",)
ROPE_TYPES = ("default", "linear", "llama3")
ROPE_COMMON = ("rope_type", "rope_theta", "partial_rotary_factor")
ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": ROPE_COMMON,
    "linear": (*ROPE_COMMON, "factor"),
    "llama3": (
        *ROPE_COMMON,
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
"""rope_type -> the keys of `rope_parameters` / `rope_scaling` that it uses."""

DTYPE_NAMES: dict[str, str] = {
    "bfloat16": "bf16",
    "float16": "f16",
    "half": "f16",
    "float32": "f32",
    "float": "f32",
}
