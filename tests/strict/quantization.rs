//! Quantization that the config and the weights do not agree about.

use crate::*;

/// Adds a statement about quantization to the config.
fn state(folder: &Path, value: Json) {
    set(folder, "quantization", value);
}

#[test]
fn a_quantization_at_odds_with_the_config() {
    // Four bits in groups of 32.
    let quantized = write(&case("llama", "4 bit"));
    attempt(quantized.path()).unwrap();
    refuse_all(
        quantized.path(),
        &[
            (
                "no scales",
                |f| retensor(f, |t| drop(t.remove(&format!("{MLP}.scales")))),
                "TensorShape",
                &[MLP],
            ),
            (
                "no biases",
                |f| retensor(f, |t| drop(t.remove(&format!("{MLP}.biases")))),
                "MissingTensor",
                &["model.layers.0.mlp.up_proj.biases"],
            ),
            (
                "another group",
                |f| {
                    state(
                        f,
                        json!({"bits": 4, "group_size": 64, MLP: {"bits": 4, "group_size": 64}}),
                    )
                },
                "Quantization",
                &[MLP, "group: 64", "group: 32"],
            ),
            (
                "other bits",
                |f| {
                    state(
                        f,
                        json!({"bits": 8, "group_size": 32, MLP: {"bits": 8, "group_size": 32}}),
                    )
                },
                "Quantization",
                &[MLP, "bits: 8", "bits: 4"],
            ),
            (
                "another mode",
                |f| state(f, json!({MLP: {"mode": "mxfp4"}})),
                "Quantization",
                &[MLP, "Mxfp4", "Affine"],
            ),
            (
                "an unknown mode",
                |f| state(f, json!({MLP: {"mode": "q4_k"}})),
                "Quantization",
                &[MLP, "mode"],
            ),
            (
                "bits that are a word",
                |f| state(f, json!({MLP: {"bits": "four"}})),
                "Quantization",
                &[MLP, "bits"],
            ),
            (
                "a group beyond 32 bits",
                |f| state(f, json!({MLP: {"group_size": 1i64 << 40}})),
                "Quantization",
                &[MLP, "group_size"],
            ),
            (
                "false, and scales",
                |f| state(f, json!({"bits": 4, "group_size": 32, MLP: false})),
                "Quantization",
                &[MLP, "false"],
            ),
            (
                "seven bits",
                |f| {
                    retensor(f, |t| {
                        let (_, shape, data) = t.get_mut(&format!("{MLP}.weight")).unwrap();
                        shape[1] = shape[1] / 4 * 7;
                        data.resize(shape_size(shape) * 4, 0);
                    })
                },
                "Quantization",
                &[MLP, "no format"],
            ),
            (
                "groups of 16",
                |f| {
                    retensor(f, |t| {
                        for part in ["scales", "biases"] {
                            let (_, shape, data) = t.get_mut(&format!("{MLP}.{part}")).unwrap();
                            shape[1] *= 2;
                            data.resize(shape_size(shape) * 4, 0);
                        }
                    })
                },
                "Quantization",
                &[MLP, "no format"],
            ),
            (
                "scales that are integers",
                |f| retensor(f, |t| t.get_mut(&format!("{MLP}.scales")).unwrap().0 = "I32".into()),
                "Quantization",
                &["up_proj.scales", "Int32"],
            ),
            (
                "weights that are floats",
                |f| retensor(f, |t| t.get_mut(&format!("{MLP}.weight")).unwrap().0 = "F32".into()),
                "Quantization",
                &[MLP, "Float32"],
            ),
            (
                "a global scale",
                |f| {
                    retensor(f, |t| {
                        let one = ("F32".into(), vec![1], vec![0; 4]);
                        t.insert(format!("{MLP}.global_scale"), one);
                    })
                },
                "Quantization",
                &[MLP, "global scale"],
            ),
        ],
    );
    let dense = good();
    refuse_all(
        dense,
        &[
            (
                "a dense path that is named",
                |f| {
                    state(
                        f,
                        json!({"bits": 4, "group_size": 64, MLP: {"bits": 4, "group_size": 64}}),
                    )
                },
                "MissingTensor",
                &["model.layers.0.mlp.up_proj.scales"],
            ),
            (
                "packed weights that only another family reads",
                |f| {
                    set(f, "quantization_config", json!({"quant_method": "bitnet"}));
                    reheader(f, |header| {
                        let packed = &mut header["model.layers.0.self_attn.q_proj.weight"];
                        (packed["dtype"], packed["shape"]) = (json!("U8"), json!([16, 1024]));
                    });
                },
                "Quantization",
                &["model.layers.0.self_attn.q_proj.weight"],
            ),
        ],
    );
}

/// Changes one field of `quantization_config`.
fn say(folder: &Path, field: &str, value: Json) {
    configure(folder, |config| config["quantization_config"][field] = value);
}

/// Changes the type and the shape of a tensor, and fills it with ones.
fn reshape(folder: &Path, name: &str, dtype: &str, shape: &[usize], width: usize) {
    retensor(folder, |tensors| {
        let data = vec![1; shape_size(shape) * width];
        tensors.insert(name.into(), (dtype.into(), shape.to_vec(), data));
    });
}

const METHOD: &str = "quantization_config.quant_method";
const GATE: &str = "model.layers.0.mlp.gate_proj";

#[test]
fn packings_that_cannot_be_read() {
    let awq = write(&case("packings", "awq"));
    attempt(awq.path()).unwrap();
    refuse_all(
        awq.path(),
        &[
            (
                "no method",
                |f| say(f, "quant_method", json!("hqq")),
                "Quantization",
                &[METHOD, "hqq"],
            ),
            (
                "no statement",
                |f| configure(f, |config| drop(config.remove("quantization_config"))),
                "Quantization",
                &["qweight", "awq"],
            ),
            (
                "a statement that is none",
                |f| set(f, "quantization_config", json!("awq")),
                "Quantization",
                &["qweight", "awq"],
            ),
            ("eight bits", |f| say(f, "bits", json!(8)), "Quantization", &["bits", "8"]),
            ("another order", |f| say(f, "version", json!("gemv")), "Quantization", &["gemv"]),
            (
                "the same weights as GPTQ",
                |f| say(f, "quant_method", json!("gptq")),
                "Quantization",
                &["q_proj.qweight", "words"],
            ),
            (
                "groups that do not divide",
                |f| reshape(f, &format!("{GATE}.scales"), "F32", &[3, 192], 4),
                "Quantization",
                &[GATE, "[3, 192]", "128 inputs"],
            ),
            (
                "groups of 16",
                |f| {
                    reshape(f, &format!("{GATE}.scales"), "F32", &[8, 192], 4);
                    reshape(f, &format!("{GATE}.qzeros"), "I32", &[8, 24], 4);
                },
                "Quantization",
                &[GATE, "[8, 192]", "groups of 32 or more"],
            ),
            (
                "scales of another group than zeros",
                |f| reshape(f, &format!("{GATE}.scales"), "F32", &[1, 192], 4),
                "TensorShape",
                &["gate_proj.qzeros"],
            ),
            (
                "no zeros",
                |f| retensor(f, |t| drop(t.remove(&format!("{GATE}.qzeros")))),
                "MissingTensor",
                &["gate_proj.qzeros"],
            ),
            (
                "scales that are integers",
                |f| reshape(f, &format!("{GATE}.scales"), "I32", &[2, 192], 4),
                "Quantization",
                &["gate_proj.scales", "Int32"],
            ),
            (
                "words that are floats",
                |f| reshape(f, &format!("{GATE}.qweight"), "F32", &[128, 24], 4),
                "Quantization",
                &["gate_proj.qweight", "Float32"],
            ),
        ],
    );
    let gptq = write(&case("packings", "gptq"));
    refuse_all(
        gptq.path(),
        &[
            (
                "another layout",
                |f| say(f, "checkpoint_format", json!("marlin")),
                "Quantization",
                &["checkpoint_format", "marlin"],
            ),
            (
                "inputs in another order",
                |f| reshape(f, &format!("{GATE}.g_idx"), "I32", &[128], 4),
                "Quantization",
                &["gate_proj.g_idx", "desc_act"],
            ),
            (
                "as many groups as inputs say",
                |f| reshape(f, &format!("{GATE}.g_idx"), "I32", &[64], 4),
                "TensorShape",
                &["gate_proj.g_idx"],
            ),
            (
                "three bits",
                |f| reshape(f, &format!("{GATE}.qweight"), "I32", &[12, 192], 4),
                "Quantization",
                &["gate_proj.qweight", "[12, 192]"],
            ),
        ],
    );
    let experts = write(&case("packings", "gptq experts"));
    refuse_all(
        experts.path(),
        &[
            (
                "one expert that is dense",
                |f| {
                    let path = "model.layers.0.mlp.experts.1.up_proj";
                    retensor(f, |t| t.retain(|name, _| !name.starts_with(path)));
                    reshape(f, &format!("{path}.weight"), "F32", &[64, 64], 4);
                },
                "Quantization",
                &["model.layers.0.mlp.experts", "different formats"],
            ),
            (
                "one expert of eight bits",
                |f| {
                    let path = "model.layers.0.mlp.experts.1.up_proj";
                    reshape(f, &format!("{path}.qweight"), "I32", &[16, 64], 4);
                    reshape(f, &format!("{path}.qzeros"), "I32", &[1, 16], 4);
                },
                "Quantization",
                &["model.layers.0.mlp.experts", "different formats"],
            ),
        ],
    );
    let integers = write(&case("packings", "pack-quantized with zeros"));
    refuse_all(
        integers.path(),
        &[
            ("a format", |f| say(f, "format", json!("marlin-24")), "Quantization", &["marlin-24"]),
            (
                "the format of a group",
                |f| {
                    let group = json!({"format": "int-quantized", "weights": {}});
                    say(f, "config_groups", json!({ "group_1": group }));
                },
                "Quantization",
                &["config_groups.group_1.format", "int-quantized"],
            ),
            (
                "sparse weights",
                |f| say(f, "sparsity_config", json!({"format": "sparse-24-bitmask"})),
                "Quantization",
                &["sparsity_config.format"],
            ),
            (
                "rotated weights",
                |f| say(f, "transform_config", json!({"config_groups": {}})),
                "Quantization",
                &["transform_config", "rotated"],
            ),
            (
                "zeros that are bytes",
                |f| reshape(f, &format!("{GATE}.weight_zero_point"), "I8", &[24, 2], 1),
                "Quantization",
                &["weight_zero_point", "Int8"],
            ),
            (
                "integers that are not packed",
                |f| {
                    retensor(f, |t| t.retain(|name, _| !name.starts_with(GATE)));
                    reshape(f, &format!("{GATE}.weight"), "I8", &[192, 128], 1);
                    reshape(f, &format!("{GATE}.weight_scale"), "F32", &[192, 1], 4);
                },
                "Quantization",
                &["gate_proj.weight", "Int8"],
            ),
        ],
    );
    let floats = write(&case("packings", "fp8 blocks"));
    refuse_all(
        floats.path(),
        &[
            ("another float", |f| say(f, "fmt", json!("e5m2")), "Quantization", &["fmt", "e5m2"]),
            (
                "a block of words",
                |f| say(f, "weight_block_size", json!(["a", "b"])),
                "Quantization",
                &["weight_block_size"],
            ),
            (
                "a block of nothing",
                |f| say(f, "weight_block_size", json!([0, 128])),
                "Quantization",
                &["weight_block_size", "[0,128]"],
            ),
            (
                "other blocks",
                |f| say(f, "weight_block_size", json!([64, 64])),
                "TensorShape",
                &["weight_scale_inv"],
            ),
            (
                "exponents of other blocks",
                |f| reshape(f, &format!("{GATE}.weight_scale_inv"), "U8", &[2, 3], 1),
                "TensorShape",
                &["gate_proj.weight_scale_inv"],
            ),
            (
                "scales that are integers",
                |f| reshape(f, &format!("{GATE}.weight_scale_inv"), "I32", &[2, 1], 4),
                "Quantization",
                &["gate_proj.weight_scale_inv", "Int32"],
            ),
        ],
    );
    let nvidia = write(&case("packings", "ModelOpt nvfp4"));
    refuse_all(
        nvidia.path(),
        &[
            (
                "an algorithm",
                |f| say(f, "quant_algo", json!("W4A8_AWQ")),
                "Quantization",
                &["quant_algo", "W4A8_AWQ"],
            ),
            (
                "an algorithm of one layer",
                |f| {
                    say(f, "quant_algo", json!("MIXED_PRECISION"));
                    say(f, "quantized_layers", json!({"lm_head": {"quant_algo": "INT4_AWQ"}}));
                },
                "Quantization",
                &["quantized_layers.lm_head.quant_algo", "INT4_AWQ"],
            ),
            (
                "groups of 64",
                |f| reshape(f, &format!("{GATE}.weight_scale"), "U8", &[192, 2], 1),
                "Quantization",
                &["gate_proj.weight_scale", "groups of 64"],
            ),
            (
                "two factors",
                |f| reshape(f, &format!("{GATE}.weight_scale_2"), "F32", &[2], 4),
                "TensorShape",
                &["gate_proj.weight_scale_2"],
            ),
            (
                "no statement, and scales of activations",
                |f| configure(f, |config| drop(config.remove("quantization_config"))),
                "UnusedTensors",
                &["input_scale"],
            ),
        ],
    );
    let global = write(&case("packings", "nvfp4 experts with global scales"));
    refuse_all(
        global.path(),
        &[(
            "a factor for each of four experts",
            |f| {
                let name = "model.layers.0.mlp.switch_mlp.up_proj.global_scale";
                reshape(f, name, "F32", &[4], 4);
            },
            "TensorShape",
            &["up_proj.global_scale"],
        )],
    );
}
