//! What is known of fields that no reader consumed: which of them change no number, and which do.

use crate::{
    checkpoint::config::json::Json,
    error::{Error, Result},
};
use serde_json::Value;

/// The fields that no reader consumed and of which nothing is known.
///
/// # Errors
/// [`Error::Unsupported`] for a field that no reader consumed and that changes the numbers.
pub fn ignored_fields(config: &Json) -> Result<Vec<String>> {
    let (mut ignored, mut refused) = (Vec::new(), None);
    config.visit_unread("", &mut |path, value| match judge(path, &value.to_value()) {
        Judgement::Harmless => {}
        Judgement::Unknown => ignored.push(path.to_string()),
        Judgement::Decisive(path, value) => {
            refused.get_or_insert((path, value));
        }
    });
    match refused {
        Some((path, value)) => {
            let reason = format!(
                "{value} is not supported: this model's family does not use the field, which \
                 changes the numbers"
            );
            Err(Error::unsupported(path, reason))
        }
        None => Ok(ignored),
    }
}

enum Judgement {
    /// It changes no number, or has the value that changes none.
    Harmless,
    Unknown,
    /// It changes the numbers.
    Decisive(String, Value),
}

fn judge(path: &str, value: &Value) -> Judgement {
    let is_harmless =
        |(_, names): &(&str, &[&str])| names.iter().any(|name| names_field(name, path));
    if value.is_null() || HARMLESS.iter().any(is_harmless) {
        return Judgement::Harmless;
    }
    if let Some((_, neutral)) = DECISIVE.iter().find(|(name, _)| names_field(name, path)) {
        return match is_neutral(value, neutral) {
            true => Judgement::Harmless,
            false => Judgement::Decisive(path.into(), value.clone()),
        };
    }
    // Of an object as a whole, all that is in it must be known.
    let Some(fields) = value.as_object() else { return Judgement::Unknown };
    let mut judgement = Judgement::Harmless;
    for (name, value) in fields {
        match judge(&format!("{path}.{name}"), value) {
            Judgement::Harmless => {}
            Judgement::Unknown => judgement = Judgement::Unknown,
            decisive => return decisive,
        }
    }
    judgement
}

/// Whether an entry of the lists is about a field. An entry with dots is the end of its path;
/// `*_id` is any name that ends so, `use_*` any that starts so; and a plain name is that of the field
/// or of an object around it.
fn names_field(entry: &str, path: &str) -> bool {
    if entry.contains('.') {
        return path == entry || path.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.'));
    }
    let is_named = |part: &str| match (entry.strip_prefix('*'), entry.strip_suffix('*')) {
        (Some(end), _) => part.ends_with(end),
        (_, Some(start)) => part.starts_with(start),
        _ => part == entry,
    };
    path.split('.').any(is_named)
}

/// Whether a value, or each element of a list, is one of those written as JSON in `neutral`.
fn is_neutral(value: &Value, neutral: &[&str]) -> bool {
    if let Value::Array(items) = value {
        return items.iter().all(|item| item.is_null() || is_neutral(item, neutral));
    }
    neutral.iter().any(|neutral| match (value.as_f64(), neutral.parse::<f64>()) {
        (Some(value), Ok(neutral)) => value == neutral,
        _ => value.as_str().map_or_else(|| value.to_string(), String::from) == *neutral,
    })
}

/// Fields that change no number of a model that loads, under the reason why.
const HARMLESS: &[(&str, &[&str])] = &[
    (
        "They say who wrote the file and which code of others reads it.",
        &[
            "model_type",
            "architectures",
            "auto_map",
            "custom_pipelines",
            "transformers_version",
            "_name_or_path",
            "name_or_path",
            "_commit_hash",
            "unsloth_version",
            "unsloth_fixed",
            "model_name",
            "version",
        ],
    ),
    (
        "The type of the tensors counts, not what the config says of it.",
        &["torch_dtype", "dtype", "use_bfloat16", "bf16", "fp16", "fp32"],
    ),
    (
        "They choose between implementations of the same formula, or their precision.",
        &[
            "*attn_implementation",
            "*attn_implementation_autoset",
            "*attn_implementation_internal",
            "*experts_implementation",
            "use_flash_attn",
            "use_flash_attention",
            "use_flash_attention_2",
            "flash_attn",
            "use_fused_*",
            "fuse_*",
            "use_dynamic_ntk_cache",
            "use_cache",
            "use_cache_*",
            "pretraining_tp",
            "tensor_parallel_degree",
            "ep_size",
            "chunk_size",
            "block_size",
            "chunk_size_feed_forward",
            "attention_softmax_in_fp32",
            "scale_attention_softmax_in_fp32",
            "softmax_in_fp32",
            "reorder_and_upcast_attn",
            "residual_in_fp32",
            "moe_impl",
            "mlp_implementation",
            "torchscript",
            "compile",
        ],
    ),
    (
        "Only training uses them.",
        &[
            "initializer_*",
            "init_*",
            "*_init_std",
            "*dropout",
            "*_dropout_prob",
            "*_dropout_rate",
            "*pdrop",
            "dropout_*",
            "*aux_loss_coef",
            "*aux_loss_coeff",
            "*aux_loss_alpha",
            "moe_loss_weight",
            "router_z_loss_coef",
            "z_loss_*",
            "seq_aux",
            "*jitter_noise",
            "*jitter_eps",
            "router_load_balancing_type",
            "moe_capacity",
            "gradient_checkpointing",
            "*_gradient_checkpointing",
            "is_training",
            "training",
            "rescale_prenorm_residual",
            "time_step_min",
            "time_step_max",
            "time_step_floor",
            "time_step_rank",
            "time_step_init_scheme",
            "num_nextn_predict_layers",
            "mtp_*",
            "num_mtp_layers",
            "fsdp",
            "peft_config",
        ],
    ),
    (
        "They are about outputs other than logits, or about tasks other than language.",
        &[
            "output_attentions",
            "output_hidden_states",
            "output_router_logits",
            "output_scores",
            "return_dict",
            "return_dict_in_generate",
            "id2label",
            "label2id",
            "num_labels",
            "problem_type",
            "finetuning_task",
            "task_specific_params",
            "summary_*",
            "classifier_*",
            "pruned_heads",
            "is_decoder",
            "tie_encoder_decoder",
            "cross_attention_hidden_size",
            "tf_legacy_loss",
        ],
    ),
    (
        "They recommend how to generate, which generation_config.json does now.",
        &[
            "generation_config",
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "num_beams",
            "num_beam_groups",
            "num_return_sequences",
            "max_length",
            "min_length",
            "max_new_tokens",
            "length_penalty",
            "diversity_penalty",
            "repetition_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "early_stopping",
            "bad_words_ids",
            "suppress_tokens",
            "begin_suppress_tokens",
            "remove_invalid_values",
            "prefix",
        ],
    ),
    (
        "They name tokens or the tokenizer, which reads files of its own.",
        &[
            "*_token_id",
            "*_token_ids",
            "*_token_index",
            "*_tokens_per_image",
            "*_tokens_per_video",
            "*_per_token_audio",
            "tokenizer_class",
            "tokenizer_*",
            "ignore_index",
        ],
    ),
    (
        "Transformers writes them beside the lists of layers that it made of them.",
        &["_sliding_window_pattern", "global_attn_every_n_layers"],
    ),
    (
        "They say how long a sequence may be.",
        &[
            "max_position_embeddings",
            "max_sequence_length",
            "max_seq_len",
            "max_seq_length",
            "seq_length",
            "seq_len",
            "model_max_length",
            "max_model_len",
            "n_ctx",
            "n_positions",
            "training_length",
        ],
    ),
    (
        "They are about parts of a model that do not run: pictures, sound, speech, drafts.",
        &[
            "vision_config",
            "audio_config",
            "speech_config",
            "vision_*",
            "video_*",
            "audio_*",
            "image_*",
            "img_*",
            "mm_*",
            "projector_*",
            "projection_*",
            "multimodal_*",
            "spatial_merge_size",
            "out_hidden_size",
            "merged_hidden_size",
            "encoder_config",
            "speculators_config",
        ],
    ),
    (
        "Every tensor must be read with its shape, so a checkpoint that differs does not load.",
        &[
            "tie_word_embeddings",
            "attention_bias",
            "attention_out_bias",
            "attn_qkv_bias",
            "use_attention_bias",
            "mlp_bias",
            "use_mlp_bias",
            "qkv_bias",
            "use_qkv_bias",
            "use_bias",
            "add_bias_linear",
            "add_qkv_bias",
            "lm_head_bias",
            "bias",
            "no_bias",
            "hidden_size",
            "intermediate_size",
            "vocab_size",
            "num_hidden_layers",
            "num_layers",
            "head_dim",
            "qk_head_dim",
            "num_key_value_heads",
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "n_shared_experts",
            "num_shared_experts",
            "moe_intermediate_size",
            "vocab_size_per_layer_input",
            "block_dim",
            "expand",
            "interleave_moe_layer_step",
            "moe_layers",
            "mlp_only_layers",
            "decoder_sparse_step",
            "hidden_size_per_layer_input",
        ],
    ),
    (
        "The tensors of a quantized matrix tell its format; activations and caches stay as they are.",
        &[
            "quantization.bits",
            "quantization.group_size",
            "quantization.mode",
            "quantization_config.bits",
            "quantization_config.group_size",
            "quantization_config.mode",
            "quantization_config.desc_act",
            "quantization_config.sym",
            "quantization_config.true_sequential",
            "quantization_config.damp_percent",
            "quantization_config.static_groups",
            "quantization_config.lm_head",
            "quantization_config.meta",
            "quantization_config.tokenizer",
            "quantization_config.dataset",
            "quantization_config.block_name_to_quantize",
            "quantization_config.pack_dtype",
            "quantization_config.dynamic",
            "quantization_config.backend",
            "quantization_config.do_fuse",
            "quantization_config.fuse_max_seq_len",
            "quantization_config.exllama_config",
            "quantization_config.use_exllama",
            "quantization_config.modules_to_not_convert",
            "quantization_config.modules_to_fuse",
            "quantization_config.ignored_layers",
            "quantization_config.ignore",
            "quantization_config.activation_scheme",
            "quantization_config.kv_cache_scheme",
            "quantization_config.kv_cache_quant_algo",
            "quantization_config.quantization_status",
            "quantization_config.global_compression_ratio",
            "quantization_config.producer",
            "quantization_config.exclude_modules",
            "quantization_config.quantization_mode",
            "quantization_config.quant_method",
            "config_groups",
            "compression_config",
        ],
    ),
];

/// Fields that change the numbers of a family that does not use them, and the values with which they
/// change none, beside null. A list is neutral where each of its elements is.
const DECISIVE: &[(&str, &[&str])] = &[
    // Positions.
    ("alibi", &["false"]),
    ("use_alibi", &["false"]),
    ("alibi_bias_max", &[]),
    ("no_rope_layers", &["1"]),
    ("no_rope_layer_interval", &["0"]),
    ("nope_layer_interval", &["0"]),
    ("partial_rotary_factor", &["1"]),
    ("rotary_pct", &["1"]),
    ("rope_pct", &["1"]),
    ("rope_ratio", &["1"]),
    ("rope_local_base_freq", &[]),
    ("layer_rope_theta", &[]),
    ("rope_scaling.type", &["default"]),
    ("rope_scaling.rope_type", &["default"]),
    ("rope_parameters.type", &["default"]),
    ("rope_parameters.rope_type", &["default"]),
    ("rope_scaling.factor", &["1"]),
    ("rope_parameters.factor", &["1"]),
    ("full_attention.rope_type", &["default"]),
    ("sliding_attention.rope_type", &["default"]),
    ("rope_parameters.full_attention", &[]),
    ("rope_parameters.sliding_attention", &[]),
    ("use_dynamic_ntk", &["false"]),
    ("use_logn_attn", &["false"]),
    // Which keys a query sees.
    ("layer_types", &["full_attention", "attention"]),
    ("use_sliding_window", &["false"]),
    ("attention_chunk_size", &[]),
    ("use_bidirectional_attention", &["false", "vision"]),
    ("is_causal", &["true"]),
    ("is_encoder_decoder", &["false"]),
    ("add_cross_attention", &["false"]),
    ("index_topk", &[]),
    ("num_kv_shared_layers", &["0"]),
    ("add_swa_attention_sink_bias", &["false"]),
    ("add_full_attention_sink_bias", &["false"]),
    // Scores, queries, keys and values.
    ("qk_norm", &["false"]),
    ("use_qk_norm", &["false"]),
    ("qk_layernorm", &["false"]),
    ("qk_layernorms", &["false"]),
    ("use_qk_layernorm", &["false"]),
    ("normalize_qk_projections", &["false"]),
    ("clip_qkv", &[]),
    ("attention_multiplier", &["1"]),
    ("attn_logit_softcapping", &["0"]),
    ("attn_logit_softcap", &["0"]),
    ("query_pre_attn_scalar", &[]),
    ("scale_attn_weights", &["true"]),
    ("scale_attn_by_inverse_layer_idx", &["false"]),
    ("attention_value_scale", &["1"]),
    ("attn_temperature_tuning", &["false", "0"]),
    ("llama_4_scaling_beta", &["0"]),
    ("qk_scale_factor", &["1"]),
    ("key_multiplier", &["1"]),
    ("attention_k_eq_v", &["false"]),
    ("use_gated_attention", &["false"]),
    ("attn_output_gate", &["false"]),
    ("headwise_attn_output_gate", &["false"]),
    ("elementwise_attn_output_gate", &["false"]),
    ("value_residual", &["false"]),
    // The residual stream.
    ("residual_multiplier", &["1"]),
    ("embedding_multiplier", &["1"]),
    ("scale_emb", &["1"]),
    ("scale_depth", &[]),
    ("emb_scale_by_sqrt_dim", &["false"]),
    ("scale_embeddings", &["false"]),
    ("mup_enabled", &["false"]),
    ("use_mup", &["false"]),
    ("mup_attn_multiplier", &["1"]),
    ("mup_embedding_multiplier", &["1"]),
    ("attention_in_multiplier", &["1"]),
    ("attention_out_multiplier", &["1"]),
    ("mlp_multipliers", &["1"]),
    ("full_attn_alpha_factor", &["1"]),
    ("full_attn_beta_factor", &["1"]),
    ("linear_attn_alpha_factor", &["1"]),
    ("linear_attn_beta_factor", &["1"]),
    ("mlp_alpha_factor", &["1"]),
    ("mlp_beta_factor", &["1"]),
    ("layernorm_full_attention_alpha", &["1"]),
    ("layernorm_full_attention_beta", &["1"]),
    ("layernorm_linear_attention_alpha", &["1"]),
    ("layernorm_linear_attention_beta", &["1"]),
    ("layernorm_mlp_alpha", &["1"]),
    ("layernorm_mlp_beta", &["1"]),
    ("parallel_attn", &["false"]),
    ("parallel_residual", &["false"]),
    ("use_parallel_residual", &["false"]),
    ("new_decoder_architecture", &["false"]),
    ("apply_residual_connection_post_layernorm", &["false"]),
    ("use_double_wide_mlp", &["false"]),
    ("num_loops", &["1"]),
    ("loop_num", &["1"]),
    ("total_ut_steps", &["1"]),
    // Norms and activations.
    ("post_norm", &["false"]),
    ("use_post_norm", &["false"]),
    ("use_gemma_norm", &["false"]),
    ("rms_norm_add_unit_offset", &["false"]),
    ("apply_layernorm_1p", &["false"]),
    ("hidden_act", &["silu", "swish"]),
    ("hidden_activation", &["silu", "swish"]),
    ("activation_function", &["silu", "swish"]),
    ("swiglu_alpha", &[]),
    ("swiglu_limit", &["0"]),
    ("swiglu_limits", &["0"]),
    ("swiglu_limits_shared", &["0"]),
    ("quantization_config.use_rms_norm", &["false"]),
    // Experts.
    ("routed_scaling_factor", &["1"]),
    ("moe_routed_scaling_factor", &["1"]),
    ("moe_router_scaling_factor", &["1"]),
    ("route_scale", &["1"]),
    ("n_group", &["0", "1"]),
    ("topk_group", &["0", "1"]),
    ("router_logit_softcapping", &["0"]),
    ("moe_router_logit_softcapping", &["0"]),
    ("moe_apply_router_weight_on_input", &["false"]),
    ("enable_moe_block", &["false"]),
    ("zero_expert_num", &["0"]),
    // Logits.
    ("logits_scaling", &["1"]),
    ("logit_scale", &["1"]),
    ("output_multiplier", &["1"]),
    ("output_multiplier_scale", &["1"]),
    ("lm_head_multiplier", &["1"]),
    ("final_logit_softcapping", &["0"]),
    ("final_logit_softcap", &["0"]),
    ("logit_softcapping", &["0"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ignored(config: Value) -> Result<Vec<String>> {
        ignored_fields(&config.into())
    }

    #[test]
    fn a_field_is_unknown_harmless_or_decisive() {
        let known = json!({
            "use_cache": true, "eos_token_id": [1, 2], "attention_dropout": 0.1, "use_alibi": false,
            "attention_multiplier": 1, "residual_multiplier": 1.0, "qk_norm": null,
            "no_rope_layers": [1, 1], "vision_config": {"hidden_act": "gelu"},
            "quantization": {"bits": 4, "group_size": 64},
        });
        assert!(ignored(known).unwrap().is_empty());
        let unknown = json!({"my_field": 1, "nested": {"use_cache": true, "other": 2}});
        assert_eq!(ignored(unknown).unwrap(), ["my_field", "nested"]);
        for (field, value) in [
            ("use_alibi", json!(true)),
            ("attention_multiplier", json!(0.5)),
            ("no_rope_layers", json!([1, 0])),
            ("clip_qkv", json!(8)),
            ("rope_scaling", json!({"rope_type": "yarn"})),
        ] {
            let error = ignored(json!({ field: value })).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: `{field}")), "{error}");
        }
    }

    #[test]
    fn an_entry_stands_in_one_list_and_once() {
        let mut all: Vec<&str> = HARMLESS.iter().flat_map(|(_, names)| *names).copied().collect();
        all.extend(DECISIVE.iter().map(|(name, _)| name));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(count, all.len());
        let is_shadowed = |name: &str| {
            HARMLESS.iter().flat_map(|(_, names)| *names).any(|entry| names_field(entry, name))
        };
        let shadowed: Vec<_> = DECISIVE.iter().filter(|(name, _)| is_shadowed(name)).collect();
        assert!(shadowed.is_empty(), "{shadowed:?}");
    }
}
