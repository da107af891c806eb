//! Configs that are damaged or at odds with themselves.

use crate::*;

#[test]
fn a_config_that_is_none() {
    refuse_all(
        good(),
        &[
            ("no config", |f| remove(f, CONFIG), "Config", &["config.json", "no such file"]),
            ("empty", |f| put(f, CONFIG, ""), "Config", &["config.json", "not JSON"]),
            ("truncated", |f| put(f, CONFIG, r#"{"model_type": "lla"#), "Config", &["not JSON"]),
            (
                "HTML",
                |f| put(f, CONFIG, "<!doctype html><title>404</title>"),
                "Config",
                &["not JSON"],
            ),
            ("not text", |f| put(f, CONFIG, b"\xff\xfe{}"), "Config", &["not JSON"]),
            ("null", |f| put(f, CONFIG, "null"), "Config", &["config.json", "model_type"]),
            ("a list", |f| put(f, CONFIG, "[]"), "Config", &["config.json", "model_type"]),
            (
                "deep",
                |f| put(f, CONFIG, "[".repeat(1 << 20)),
                "Config",
                &["config.json", "not JSON"],
            ),
            (
                "deep objects",
                |f| put(f, CONFIG, r#"{"a":"#.repeat(1 << 20)),
                "Config",
                &["config.json", "not JSON"],
            ),
            (
                "no type",
                |f| configure(f, |c| drop(c.remove("model_type"))),
                "Config",
                &["model_type"],
            ),
            ("a number as type", |f| set(f, "model_type", json!(3)), "Config", &["model_type"]),
            ("null as type", |f| set(f, "model_type", Json::Null), "Config", &["model_type"]),
            (
                "a misspelt type",
                |f| set(f, "model_type", json!("lama")),
                "UnknownModelType",
                &["`lama`", "did you mean llama"],
            ),
            (
                "a type like no other",
                |f| set(f, "model_type", json!("x".repeat(1 << 20))),
                "UnknownModelType",
                &["xxx"],
            ),
            ("an empty type", |f| set(f, "model_type", json!("")), "UnknownModelType", &["``"]),
            (
                "code",
                |f| set(f, "model_file", json!("model.py")),
                "CustomCode",
                &["config.json", "model_file", "model.py"],
            ),
        ],
    );
}

#[test]
fn a_config_at_odds_with_itself() {
    let scaling = "rope_scaling";
    let longrope = |factors: [i32; 8]| json!({"rope_type": "longrope", "long_factor": factors, "original_max_position_embeddings": 64});
    let short = json!({
        "rope_type": "longrope", "long_factor": [1.0], "original_max_position_embeddings": 64,
    });
    refuse_settings(
        good(),
        &[
            ("num_key_value_heads", json!(3), &["4 query heads"]),
            ("layer_types", json!(["full_attention"]), &["1 entries for 2 layers"]),
            ("layer_types", json!(vec!["full_attention"; 3]), &["3 entries for 2 layers"]),
            ("layer_types", json!(["full_attention", "linear_attention"]), &["[1]", "linear_at"]),
            ("layer_types", json!(["full_attention", 1]), &["layer_types[1]"]),
            (scaling, json!({"rope_type": "spiral", "factor": 2.0}), &[".rope_type", "spiral"]),
            (scaling, json!({"rope_type": "linear"}), &["rope_scaling.factor", "missing"]),
            (scaling, json!({"type": "yarn"}), &["rope_scaling.factor", "missing"]),
            (scaling, json!({"rope_type": "llama3", "factor": -8.0}), &[".factor", "-8"]),
            (scaling, json!({"rope_type": "dynamic", "factor": 0}), &[".factor", "0"]),
            (scaling, short, &["rope_scaling.long_factor", "1 factors for 8"]),
            (scaling, longrope([1, 1, 1, 1, 1, 1, 1, -1]), &["rope_scaling.long_factor", "-1"]),
        ],
    );
    refuse_all(
        good(),
        &[
            (
                "sliding layers without a window",
                |f| set(f, "layer_types", json!(["sliding_attention", "full_attention"])),
                "Config",
                &["sliding_window"],
            ),
            (
                "a factor that is not a number",
                |f| {
                    set(f, "rope_scaling", json!({"rope_type": "linear", "factor": 1}));
                    let config = fs::read_to_string(f.join(CONFIG)).unwrap();
                    put(f, CONFIG, config.replace("\"factor\":1", "\"factor\":NaN"));
                },
                "Config",
                &["rope_scaling.factor"],
            ),
            (
                "an infinite factor",
                |f| {
                    set(f, "rope_scaling", json!({"rope_type": "linear", "factor": 1}));
                    let config = fs::read_to_string(f.join(CONFIG)).unwrap();
                    put(f, CONFIG, config.replace("\"factor\":1", "\"factor\":Infinity"));
                },
                "Config",
                &["rope_scaling.factor"],
            ),
            (
                "longrope without a context",
                |f| {
                    configure(f, |c| drop(c.remove("max_position_embeddings")));
                    let scaling = json!({
                        "rope_type": "longrope", "long_factor": vec![1; 8],
                        "original_max_position_embeddings": 64,
                    });
                    set(f, "rope_scaling", scaling);
                },
                "Config",
                &["max_position_embeddings"],
            ),
            (
                "heads of one element",
                |f| {
                    set(f, "num_attention_heads", json!(64));
                    set(f, "num_key_value_heads", json!(32));
                },
                "Config",
                &["head_dim", "1"],
            ),
            (
                "more heads than elements",
                |f| set(f, "num_attention_heads", json!(128)),
                "Config",
                &["head_dim", "0"],
            ),
            (
                "an absurd number of layers",
                |f| set(f, "num_hidden_layers", json!(1 << 24)),
                "MissingTensor",
                &["model.layers.2."],
            ),
        ],
    );
}

#[test]
fn a_config_that_only_one_family_refuses() {
    let known: BTreeMap<_, _> = families().map(|(family, case)| (family, write(&case))).collect();
    let nan = json!({"__float__": "NaN"});
    let much = json!({"__float__": "much"});
    let settings: &[(&str, Setting)] = &[
        ("gemma3_text", ("text_config", json!(5), &[])),
        ("gemma3_text", ("use_bidirectional_attention", json!(true), &["modules.json"])),
        ("gemma4_text", ("num_kv_shared_layers", json!(4), &["4"])),
        ("glm4", ("partial_rotary_factor", json!(1.5), &["1.5"])),
        ("mistral3", ("text_config", json!({"model_type": "whisper"}), &["whisper"])),
        ("smollm3", ("no_rope_layers", json!([1, 0]), &["2 entries for 4 layers"])),
        ("gpt_oss", ("num_experts_per_tok", json!(5), &["5 of 4"])),
        ("mamba2", ("n_groups", json!(3), &["8 heads"])),
        ("mamba2", ("time_step_limit", json!([0.5, 0.25]), &[])),
        ("mamba2", ("time_step_limit", json!([nan, 1.0]), &[])),
        ("mamba2", ("time_step_limit", json!([0.0, much]), &[])),
        ("mamba2", ("time_step_limit", json!([0.0]), &[])),
        ("qwen3_moe", ("mlp_only_layers", json!(["first"]), &["mlp_only_layers[0]"])),
    ];
    for (family, setting) in settings {
        refuse_settings(known[*family].path(), std::slice::from_ref(setting));
    }
    let breaks: &[(&str, Break)] = &[
        (
            "gemma4_text",
            (
                "fewer inputs of layers than tokens",
                |f| {
                    set(f, "hidden_size_per_layer_input", json!(16));
                    set(f, "vocab_size_per_layer_input", json!(32));
                },
                "Config",
                &["vocab_size_per_layer_input", "32"],
            ),
        ),
        (
            "gemma4_text",
            (
                "nothing to share",
                |f| {
                    set(f, "num_kv_shared_layers", json!(1));
                    let mut kinds = vec!["sliding_attention"; 3];
                    kinds.push("full_attention");
                    set(f, "layer_types", json!(kinds));
                },
                "TensorShape",
                &["model.layers.1"],
            ),
        ),
        (
            "gemma4_text",
            (
                "experts without a number",
                |f| set(f, "enable_moe_block", json!(true)),
                "Config",
                &["num_experts", "missing"],
            ),
        ),
        (
            "gemma4_text",
            (
                "wide key heads that do not divide",
                |f| {
                    set(f, "attention_k_eq_v", json!(true));
                    set(f, "num_global_key_value_heads", json!(3));
                },
                "Config",
                &["num_global_key_value_heads", "4 query heads"],
            ),
        ),
        ("gemma4_text", ("many layers", many_layers, "TensorShape", &["model.layers."])),
        ("gpt_oss", ("many layers", many_layers, "MissingTensor", &["model.layers.2."])),
        (
            "qwen",
            (
                "no logarithm",
                |f| {
                    set(f, "use_logn_attn", json!(true));
                    set(f, "seq_length", json!(1));
                },
                "Config",
                &["seq_length"],
            ),
        ),
    ];
    for (family, spoil) in breaks {
        refuse_all(known[*family].path(), &[*spoil]);
    }
}

fn many_layers(folder: &Path) {
    configure(folder, |config| drop(config.remove("layer_types")));
    set(folder, "num_hidden_layers", json!(1 << 24));
}
