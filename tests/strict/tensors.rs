//! Every tensor of every family: missing, of another shape, and one too many.

use crate::*;

#[test]
fn every_tensor_of_every_family() {
    let mut failures = Vec::new();
    let more = [
        ("qwen3_moe", "original"),
        ("gpt_oss", "original"),
        ("llama", "4 bit"),
        ("packings", "awq, fused"),
        ("packings", "gptq experts"),
        ("packings", "pack-quantized with zeros"),
        ("packings", "nvfp4-pack-quantized"),
        ("packings", "mxfp4-pack-quantized"),
        ("packings", "float-quantized by row"),
        ("packings", "fp8 blocks"),
        ("packings", "fp8 with powers of two"),
        ("packings", "ModelOpt nvfp4"),
    ];
    let more = more.map(|(family, name)| (format!("{family}, {name}"), case(family, name)));
    for (family, case) in families().chain(more) {
        let folder = write(&case);
        let folder = folder.path();
        let good = read_tensors(folder);
        let mut check =
            |what: String, tensors: &BTreeMap<String, Raw>, name: &str, expected: &[&str]| {
                write_tensors(folder, WEIGHTS, tensors);
                let error = attempt(folder).err();
                let fits = error.as_ref().is_some_and(|error| {
                    let text = error.to_string();
                    expected.contains(&&*variant(error))
                        && (text.contains(name) || text.contains(&other_spelling(name)))
                });
                if !fits {
                    let error = error.map(|error| format!("{error:?}"));
                    failures.push(format!("{family}: {what}: {error:?}"));
                }
            };
        let quantized = |name: &str| {
            let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
            let beside = ["scales", "weight_scale", "weight_scale_inv"];
            beside.iter().any(|scales| good.contains_key(&format!("{path}.{scales}")))
                || name.ends_with("_scales")
        };
        let tied = case.config["tie_word_embeddings"] == true;
        let mut known = BTreeSet::new();
        for (name, (dtype, shape, data)) in &good {
            // A head beside a tied embedding is left alone.
            if tied && name == "lm_head.weight" || case.insensitive.contains(name) {
                continue;
            }
            // Layers and experts of one kind read their tensors alike.
            if !known.insert((kind_of(name), shape)) {
                continue;
            }
            let changed = |shape: Vec<usize>| {
                let mut tensors = good.clone();
                let size = data.len() / shape_size(&good[name].1) * shape_size(&shape);
                tensors.insert(name.clone(), (dtype.clone(), shape, vec![0; size]));
                tensors
            };
            let mut without = good.clone();
            without.remove(name);
            check(
                format!("without {name}"),
                &without,
                missing_name(name),
                &[
                    "MissingTensor",
                    // Packed integers without scales are no matrix.
                    if name.ends_with(".scales") { "TensorShape" } else { "MissingTensor" },
                    // Nor are bytes without scales.
                    if name.contains(".weight_scale") { "Quantization" } else { "MissingTensor" },
                ],
            );
            let wrong = if quantized(name) {
                &["TensorShape", "Quantization"][..]
            } else {
                &["TensorShape"]
            };
            let path = name.rsplit_once('.').map_or(&**name, |(path, _)| path);
            let named = if quantized(name) { path } else { name };
            // Checkpoints of Kimi Delta Attention pad it, and have it with axes of one.
            if name.ends_with(".self_attn.A_log") || name.ends_with(".attention.A_log") {
                let shorter: Vec<usize> = shape.iter().map(|size| (size - 1).max(1)).collect();
                check(format!("{name} {shorter:?}"), &changed(shorter), named, wrong);
                continue;
            }
            for axis in 0..shape.len() {
                let mut larger = shape.clone();
                larger[axis] += 1;
                check(format!("{name} {larger:?}"), &changed(larger), named, wrong);
            }
            let turned: Vec<usize> = shape.iter().rev().copied().collect();
            if turned != *shape {
                check(format!("{name} turned"), &changed(turned), named, wrong);
            }
            // One scale is one scale.
            if shape_size(shape) > 1 && shape.len() > 1 {
                check(format!("{name} flat"), &changed(vec![shape_size(shape)]), named, wrong);
            }
        }
        for extra in ["extra", "model.layers.0.extra.weight", "model.layers.9.mlp.up_proj.weight"] {
            let mut tensors = good.clone();
            tensors.insert(extra.into(), ("F32".into(), vec![1], vec![0; 4]));
            check(format!("with {extra}"), &tensors, extra, &["UnusedTensors"]);
        }
        goes_on();
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The other name under which published checkpoints, or those of mlx-lm, have a tensor: without either,
/// the error has one of them.
fn other_spelling(name: &str) -> String {
    const PAIRS: [(&str, &str); 18] = [
        ("attention.dense.", "attention.o_proj."),
        (".f_proj.", ".f_a_proj."),
        (".g_proj.", ".g_a_proj."),
        (".mlp.gate.weight", ".mlp.gate.gate_proj.weight"),
        (".mlp.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
        ("_res_proj.weight", "_res.proj_weight"),
        (".qkv_conv.conv.", ".q_conv1d."),
        (".q_conv.conv.", ".q_conv1d."),
        (".qkv_proj.", ".q_proj."),
        (".linear_attn.conv1d.", ".linear_attn.q_conv1d."),
        (".in_proj_qkvz.", ".in_proj_qkv."),
        (".feed_forward.w1.", ".feed_forward.gate_proj."),
        (".feed_forward.w2.", ".feed_forward.gate_proj."),
        (".feed_forward.w3.", ".feed_forward.gate_proj."),
        (".experts.w1.", ".experts.gate_proj."),
        (".experts.gate_up_proj", ".experts.gate_proj.weight"),
        ("model.embed_vision.", "embed_vision."),
        ("model.connector.", "connector."),
    ];
    let pair = PAIRS.iter().find(|(from, _)| name.contains(from));
    pair.map_or_else(|| name.to_string(), |(from, to)| name.replace(from, to))
}

/// The part of a name that the error about a missing tensor must have.
fn missing_name(name: &str) -> &str {
    [".scales", "_blocks", ".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv"]
        .iter()
        .find_map(|part| name.strip_suffix(part))
        .unwrap_or(name)
}
