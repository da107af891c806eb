//! Packings of other tools: where a checkpoint says which one it has, the types that only they use,
//! and that a model is never in memory twice.

use mlx_rs::{Array, Dtype, memory};
use mynah::{
    Model, Prompt, Score, inspect,
    internals::{Matrix, Mode, Scope, mlx},
};
use mynah_tests::{BUSY, Case, Fixture, block_on, on_engine};
use serde_json::{Map, Value as Json, json};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};
use tempfile::TempDir;

fn write(name: &str) -> TempDir {
    write_of("packings", name)
}

fn write_of(family: &str, name: &str) -> TempDir {
    let (_, fixture) = Fixture::all().into_iter().find(|(known, _)| known == family).unwrap();
    let case: Case = fixture.cases.into_iter().find(|case| case.name == name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || case.write(&path)).unwrap();
    folder
}

fn load(folder: &Path) -> Model {
    block_on(Model::load(folder)).unwrap()
}

fn score(folder: &Path) -> Score {
    block_on(load(folder).score(Prompt::Tokens(vec![1, 2, 3]), 2)).unwrap().1
}

fn json(folder: &Path, name: &str) -> Json {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn nvidia_has_a_file_of_its_own() {
    let _busy = BUSY.read().unwrap();
    let folder = write("ModelOpt nvfp4");
    let folder = folder.path();
    let expected = score(folder);
    let mut config = json(folder, "config.json");
    let mut said = config.as_object_mut().unwrap().remove("quantization_config").unwrap();
    said.as_object_mut().unwrap().remove("quant_method");
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let separate = json!({"producer": {"name": "modelopt"}, "quantization": said});
    fs::write(folder.join("hf_quant_config.json"), separate.to_string()).unwrap();
    assert_eq!(score(folder), expected);
    assert_eq!(block_on(inspect(folder, None)).unwrap().problem, None);

    said["quant_algo"] = json!("W4A8_AWQ");
    let separate = json!({ "quantization": said });
    fs::write(folder.join("hf_quant_config.json"), separate.to_string()).unwrap();
    let problem = block_on(inspect(folder, None)).unwrap().problem.unwrap();
    let error = block_on(Model::load(folder)).err().unwrap().into_cause().to_string();
    assert_eq!(problem, error);
    assert!(error.contains("hf_quant_config.json.quantization.quant_algo"), "{error}");
}

/// A wrapper says it of the text model within.
#[test]
fn the_statement_may_stand_in_the_text_config() {
    let _busy = BUSY.read().unwrap();
    let folder = write("fp8 whole");
    let folder = folder.path();
    let expected = score(folder);
    let wrapped = json!({"model_type": "mistral3", "text_config": json(folder, "config.json")});
    fs::write(folder.join("config.json"), wrapped.to_string()).unwrap();
    change_header(folder, |header| {
        let entries = std::mem::take(header);
        let inner = |(name, entry)| (format!("language_model.{name}"), entry);
        header.extend(entries.into_iter().map(inner));
    });
    assert_eq!(score(folder), expected);
}

#[test]
fn an_inspection_counts_elements_and_not_packed_integers() {
    let _busy = BUSY.read().unwrap();
    let (width, inner, keys) = (128, 192, 64);
    let projections = 2 * width * width + 2 * keys * width + 3 * inner * width;
    let parameters = projections + 2 * 96 * width + 3 * width;
    for (name, packing) in [
        ("awq", ("affine", 4, 64)),
        ("awq without zeros", ("affine", 4, 32)),
        ("gptq", ("affine", 4, 64)),
        ("gptq, 8 bit, one group", ("affine", 8, 128)),
        ("pack-quantized", ("affine", 4, 32)),
        ("pack-quantized with zeros", ("affine", 4, 64)),
        ("nvfp4-pack-quantized", ("nvfp4", 4, 16)),
        ("mxfp4-pack-quantized", ("mxfp4", 4, 32)),
        ("mxfp8", ("mxfp8", 8, 32)),
        ("ModelOpt nvfp4", ("nvfp4", 4, 16)),
    ] {
        let folder = write(name);
        let inspection = block_on(inspect(folder.path(), None)).unwrap();
        assert_eq!(inspection.problem, None, "{name}");
        assert_eq!(inspection.parameters, parameters, "{name}");
        let found = &inspection.quantization[0];
        assert_eq!((found.mode, found.bits, found.group_size), packing, "{name}");
        assert_eq!(inspection.quantization.iter().map(|found| found.matrices).sum::<usize>(), 7);
    }
}

/// Without a family no reader knows the format.
#[test]
fn an_inspection_of_an_unsupported_model_gives_types_and_bytes_alone() {
    let _busy = BUSY.read().unwrap();
    let folder = write("awq");
    let supported = block_on(inspect(folder.path(), None)).unwrap();
    assert!(!supported.dtypes.contains_key("I32"));
    let mut config = json(folder.path(), "config.json");
    config["model_type"] = json!("unheard_of");
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let found = block_on(inspect(folder.path(), None)).unwrap();
    assert!(found.problem.unwrap().contains("unheard_of"));
    assert_eq!((found.quantization, found.memory), (Vec::new(), None));
    assert_eq!(found.bytes, supported.bytes);
    // The packed integers and zero points of seven matrices.
    assert_eq!(found.dtypes["I32"], 2 * 7);
}

/// Stacked experts whose tensors have names of their own and not those of a module.
#[test]
fn scales_may_stand_beside_a_parameter() {
    let _busy = BUSY.read().unwrap();
    let matrices = on_engine(|| {
        let bytes = |shape: &[i32]| {
            let count = shape.iter().product::<i32>();
            Array::from_iter((0..count).map(|i| (i % 100) as u8), shape)
        };
        let tensors = HashMap::from([
            ("experts.up_proj".to_string(), bytes(&[2, 4, 32])),
            (
                "experts.up_proj_scale_inv".to_string(),
                Array::from_slice(&[0.5f32, 3.0], &[2, 1, 1]),
            ),
            ("experts.down_proj".to_string(), bytes(&[2, 4, 16])),
            ("experts.down_proj_weight_scale".to_string(), bytes(&[2, 4, 2])),
            (
                "experts.down_proj_weight_scale_2".to_string(),
                Array::from_slice(&[2.0f32, 4.0], &[2]),
            ),
        ]);
        let plain = tensors["experts.up_proj"].from_fp8(Dtype::Float32)?;
        let scope = Scope::new(tensors, &json!({"quantization_config": {"quant_method": "fp8"}}))?;
        let experts = scope.at("experts");
        let up = experts.parameter("up_proj").matrix(&[2, 4, 32])?;
        let down = experts.parameter("down_proj").matrix(&[2, 4, 32])?;
        scope.finish(|_| {})?;
        let (Matrix::Dense(up), Matrix::Quantized(down)) = (up, down) else {
            panic!("8-bit floats are dense and 4-bit floats are not")
        };
        assert_eq!((down.format.mode, down.weight.shape()), (Mode::Nvfp4, &[2, 4, 4][..]));
        let factors: Vec<f32> = mlx::to_vec(&down.global_scale.unwrap())?;
        Ok((
            mlx::to_vec::<f32>(&plain)?,
            mlx::to_vec::<f32>(&up.as_dtype(Dtype::Float32)?)?,
            factors,
        ))
    });
    let (plain, up, factors) = matrices.unwrap();
    let factor = |i| if i < plain.len() / 2 { 0.5 } else { 3.0 };
    // The product is rounded to bfloat16; a float of 8 bits has 4 of them, a factor of 3 adds two.
    let expected: Vec<f32> = plain.iter().enumerate().map(|(i, x)| x * factor(i)).collect();
    assert_eq!(up, expected);
    assert_eq!(factors, [2.0, 4.0]);
}

fn change_header(folder: &Path, change: impl FnOnce(&mut Map<String, Json>)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Json> = serde_json::from_slice(&bytes[8..end]).unwrap();
    header.remove("__metadata__");
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length, &header[..], &bytes[end..]].concat()).unwrap();
}

/// The fixtures hold bytes where files of others say which floats they are.
#[test]
fn floats_of_eight_bits_have_types_of_their_own() {
    let _busy = BUSY.read().unwrap();
    for (name, scales) in [("fp8 with powers of two", "F8_E8M0"), ("ModelOpt nvfp4", "F8_E4M3")] {
        let folder = write(name);
        let expected = score(folder.path());
        let mut changed = 0;
        change_header(folder.path(), |header| {
            for (name, entry) in header.iter_mut().filter(|(_, entry)| entry["dtype"] == "U8") {
                let is_scale = name.contains("weight_scale");
                if is_scale || scales == "F8_E8M0" {
                    entry["dtype"] = json!(if is_scale { scales } else { "F8_E4M3" });
                    changed += 1;
                }
            }
        });
        assert!(changed >= 7, "{changed}");
        assert_eq!(score(folder.path()), expected, "{name}");
    }
}

/// Pairs of 4-bit floats have no type, and are signed bytes in some files.
#[test]
fn floats_of_four_bits_stand_beside_those_of_eight() {
    let _busy = BUSY.read().unwrap();
    let folder = write_of("deepseek_v41", "published");
    let expected = score(folder.path());
    let mut counts = HashMap::new();
    change_header(folder.path(), |header| {
        for (name, entry) in header.iter_mut().filter(|(_, entry)| entry["dtype"] == "U8") {
            let dtype = match name {
                name if name.ends_with(".scale") => "F8_E8M0",
                name if name.contains(".experts.") => "I8",
                _ => "F8_E4M3",
            };
            entry["dtype"] = json!(dtype);
            *counts.entry(dtype).or_insert(0) += 1;
        }
    });
    let [fours, eights] = [counts["I8"], counts["F8_E4M3"]];
    assert_eq!((fours, fours + eights), (4 * 4 * 3, counts["F8_E8M0"]));
    assert_eq!(score(folder.path()), expected);
    let found = block_on(inspect(folder.path(), None)).unwrap();
    assert_eq!(found.problem, None);
    let packings = found.quantization.iter().map(|p| (p.mode, p.bits, p.matrices));
    assert_eq!(packings.collect::<Vec<_>>(), [("mxfp4", 4, fours), ("mxfp8", 8, eights)]);
}

/// A checkpoint whose bytes are all alike.
struct Large {
    width: usize,
    inner: usize,
    layers: usize,
    /// One tensor each; none are a dense model.
    experts: usize,
}

impl Large {
    fn write(&self, folder: &Path, quantization: Json, parts: Parts) {
        let config = json!({
            "model_type": if self.experts > 0 { "mixtral" } else { "llama" },
            "num_local_experts": self.experts, "num_experts_per_tok": 1, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "intermediate_size": self.inner, "num_attention_heads": 16, "num_key_value_heads": 16,
            "rms_norm_eps": 1e-5, "vocab_size": 64, "tie_word_embeddings": true,
            "quantization_config": quantization,
        });
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_string(), "BF16", vec![64, self.width]),
            ("model.norm.weight".to_string(), "BF16", vec![self.width]),
        ];
        for layer in 0..self.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                tensors.push((at(&format!("{norm}.weight")), "BF16", vec![self.width]));
            }
            let (width, inner) = (self.width, self.inner);
            let attention = ["q_proj", "k_proj", "v_proj", "o_proj"];
            let mut matrices: Vec<_> =
                attention.map(|name| (format!("self_attn.{name}"), width, width)).into();
            let mut network = |place: &str, [gate, up, down]: [&str; 3]| {
                matrices.push((format!("{place}.{gate}"), inner, width));
                matrices.push((format!("{place}.{up}"), inner, width));
                matrices.push((format!("{place}.{down}"), width, inner));
            };
            if self.experts == 0 {
                network("mlp", ["gate_proj", "up_proj", "down_proj"]);
            } else {
                let router = at("block_sparse_moe.gate.weight");
                tensors.push((router, "BF16", vec![self.experts, width]));
            }
            for expert in 0..self.experts {
                network(&format!("block_sparse_moe.experts.{expert}"), ["w1", "w3", "w2"]);
            }
            for (name, output, input) in matrices {
                for (part, dtype, shape) in parts(output, input) {
                    tensors.push((at(&format!("{name}.{part}")), dtype, shape));
                }
            }
        }
        let (mut header, mut end) = (Map::new(), 0);
        for (name, dtype, shape) in tensors {
            let width = match dtype {
                "U8" | "F8_E4M3" => 1,
                "BF16" => 2,
                _ => 4,
            };
            let start = end;
            end += shape.iter().product::<usize>() * width;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
            header.insert(name, entry);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let mut file = BufWriter::new(File::create(folder.join("model.safetensors")).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(&header).unwrap();
        // What the bytes say does not matter, only that they are read.
        let chunk = vec![17; 1 << 20];
        while end > 0 {
            let size = end.min(chunk.len());
            file.write_all(&chunk[..size]).unwrap();
            end -= size;
        }
        file.flush().unwrap();
    }
}

type Parts = fn(usize, usize) -> Vec<(&'static str, &'static str, Vec<usize>)>;

/// What is in memory at the worst moment of loading is the model and what a few matrices need.
#[test]
fn no_model_is_in_memory_twice() {
    let _alone = BUSY.write().unwrap();
    let awq: Parts = |output, input| {
        vec![
            ("qweight", "I32", vec![input, output / 8]),
            ("qzeros", "I32", vec![input / 128, output / 8]),
            ("scales", "BF16", vec![input / 128, output]),
        ]
    };
    let gptq: Parts = |output, input| {
        vec![
            ("qweight", "I32", vec![input / 8, output]),
            ("qzeros", "I32", vec![input / 128, output / 8]),
            ("scales", "BF16", vec![input / 128, output]),
        ]
    };
    let fp8: Parts = |output, input| {
        vec![
            ("weight", "F8_E4M3", vec![output, input]),
            ("weight_scale_inv", "F32", vec![output / 128, input / 128]),
        ]
    };
    let nvfp4: Parts = |output, input| {
        vec![
            ("weight_packed", "U8", vec![output, input / 2]),
            ("weight_scale", "F8_E4M3", vec![output, input / 16]),
            ("weight_global_scale", "F32", vec![1]),
        ]
    };
    let ternary: Parts = |output, input| {
        vec![("weight", "U8", vec![output / 4, input]), ("weight_scale", "BF16", vec![1])]
    };
    let cases = [
        (json!({"quant_method": "bitnet"}), ternary, 80, 0),
        (json!({"quant_method": "awq"}), awq, 40, 0),
        (json!({"quant_method": "gptq"}), gptq, 40, 0),
        (json!({"quant_method": "fp8"}), fp8, 20, 0),
        (json!({"quant_method": "compressed-tensors"}), nvfp4, 40, 0),
        (json!({"quant_method": "awq"}), awq, 24, 8),
        (json!({"quant_method": "fp8"}), fp8, 12, 8),
        (json!({"quant_method": "compressed-tensors"}), nvfp4, 24, 8),
    ];
    for (quantization, parts, layers, experts) in cases {
        let folder = tempfile::tempdir().unwrap();
        // The experts of a layer are turned together.
        let inner = if experts > 0 { 1024 } else { 4096 };
        let large = Large { width: 1024, inner, layers, experts };
        large.write(folder.path(), quantization.clone(), parts);
        let (before, _) = memory_now();
        let model = load(folder.path());
        let (after, peak) = memory_now();
        let (size, above) = (after - before, peak - after);
        drop(model);
        // A second copy, be it packed or not, would be larger.
        const FEW: usize = 256 << 20;
        let file = fs::metadata(folder.path().join("model.safetensors")).unwrap().len() as usize;
        assert!(file > FEW && size > FEW, "{quantization}: {file} bytes became {size}");
        assert!(above < FEW, "{quantization}, {experts}: {size} bytes needed {above} more");
    }
}

/// The bytes that arrays hold, and the most that they held since this was last asked.
fn memory_now() -> (usize, usize) {
    let now = || {
        let now = (memory::active_memory()?, memory::peak_memory()?);
        memory::reset_peak_memory()?;
        Ok(now)
    };
    on_engine(now).unwrap()
}
