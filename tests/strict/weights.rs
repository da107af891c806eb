//! Weights that are damaged: files, headers, shards, numbers.

use crate::*;

#[test]
fn damaged_weights() {
    refuse_all(
        good(),
        &[
            ("none", |f| remove(f, WEIGHTS), "Checkpoint", &["no model*.safetensors"]),
            ("empty", |f| put(f, WEIGHTS, ""), "Checkpoint", &[WEIGHTS, "truncated"]),
            (
                "seven bytes",
                |f| spoil_bytes(f, |b| b.truncate(7)),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "cut in the header",
                |f| spoil_bytes(f, |b| b.truncate(100)),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "cut in the data",
                |f| spoil_bytes(f, |b| b.truncate(b.len() - 1)),
                "Checkpoint",
                &[WEIGHTS, "bytes"],
            ),
            (
                "a byte too many",
                |f| spoil_bytes(f, |b| b.push(0)),
                "Checkpoint",
                &[WEIGHTS, "bytes"],
            ),
            (
                "a header of no bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&0u64.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a header that is cut short",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&9u64.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a header as long as the file",
                |f| {
                    spoil_bytes(f, |b| {
                        let all = b.len() as u64;
                        b[..8].copy_from_slice(&all.to_le_bytes());
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header of 2^63 bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&(1u64 << 63).to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header of 2^64 - 1 bytes",
                |f| spoil_bytes(f, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
                "Checkpoint",
                &[WEIGHTS, "truncated"],
            ),
            (
                "a header that is not JSON",
                |f| spoil_bytes(f, |b| b[8..20].copy_from_slice(b"<!doctype ht")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a list as header",
                |f| put(f, WEIGHTS, framed(b"[]", b"")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a deep header",
                |f| put(f, WEIGHTS, framed("[".repeat(1 << 20).as_bytes(), b"")),
                "Checkpoint",
                &[WEIGHTS, "bad header"],
            ),
            (
                "a pointer of a large file store",
                |f| {
                    put(
                        f,
                        WEIGHTS,
                        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9",
                    )
                },
                "Checkpoint",
                &[WEIGHTS, "git-lfs pointer"],
            ),
        ],
    );
}

const NORM: &str = "model.norm.weight";

fn entry(folder: &Path, edit: fn(&mut Map<String, Json>)) {
    reheader(folder, |header| edit(header[NORM].as_object_mut().unwrap()));
}

#[test]
fn a_header_that_lies() {
    refuse_all(
        good(),
        &[
            (
                "overlapping",
                |f| {
                    reheader(f, |header| {
                        let other = header["lm_head.weight"]["data_offsets"][0].as_u64().unwrap();
                        let size = header[NORM]["shape"][0].as_u64().unwrap() * 4;
                        header[NORM]["data_offsets"] = json!([other, other + size]);
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "offset"],
            ),
            (
                "out of range",
                |f| {
                    entry(f, |e| {
                        drop(
                            e.insert(
                                "data_offsets".into(),
                                json!([1u64 << 40, (1u64 << 40) + 256]),
                            ),
                        )
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "offset"],
            ),
            (
                "reversed",
                |f| entry(f, |e| e["data_offsets"].as_array_mut().unwrap().reverse()),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "negative",
                |f| entry(f, |e| drop(e.insert("data_offsets".into(), json!([-4, 0])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "larger than its bytes",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([65])))),
                "Checkpoint",
                &[WEIGHTS, NORM, "[65]"],
            ),
            (
                "larger than anything",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([1u64 << 40, 1u64 << 40])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "of a negative size",
                |f| entry(f, |e| drop(e.insert("shape".into(), json!([-64])))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "empty and larger than 32 bits",
                |f| {
                    reheader(f, |header| {
                        let empty = json!({"dtype": "F32", "shape": [0, 1u64 << 40], "data_offsets": [0, 0]});
                        header.insert("empty".into(), empty);
                    })
                },
                "Checkpoint",
                &[WEIGHTS, "empty", "too large"],
            ),
            (
                "wider than its bytes",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("F64")))),
                "Checkpoint",
                &[WEIGHTS, NORM],
            ),
            (
                "of an unknown type",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("Q4_K")))),
                "Checkpoint",
                &[WEIGHTS, NORM, "Q4_K"],
            ),
            (
                "of a type that MLX has not",
                |f| {
                    entry(f, |e| {
                        e.insert("dtype".into(), json!("F64"));
                        e.insert("shape".into(), json!([32]));
                    })
                },
                "Checkpoint",
                &[WEIGHTS, NORM, "F64"],
            ),
            (
                "of integers",
                |f| entry(f, |e| drop(e.insert("dtype".into(), json!("I32")))),
                "Quantization",
                &[NORM, "Int32"],
            ),
            (
                "of bytes",
                |f| {
                    retensor(f, |t| {
                        let (dtype, _, data) = t.get_mut(NORM).unwrap();
                        *dtype = "U8".into();
                        data.truncate(data.len() / 4);
                    })
                },
                "Quantization",
                &[NORM, "Uint8"],
            ),
            (
                "of bytes that are floats",
                |f| {
                    retensor(f, |t| {
                        let (dtype, _, data) = t.get_mut(NORM).unwrap();
                        *dtype = "F8_E4M3".into();
                        data.truncate(data.len() / 4);
                    })
                },
                "Quantization",
                &[NORM],
            ),
            (
                "without a type",
                |f| entry(f, |e| drop(e.remove("dtype"))),
                "Checkpoint",
                &[WEIGHTS, NORM, "dtype"],
            ),
            (
                "without offsets",
                |f| entry(f, |e| drop(e.remove("data_offsets"))),
                "Checkpoint",
                &[WEIGHTS, NORM, "data_offsets"],
            ),
        ],
    );
}

#[test]
fn shards_that_do_not_fit_together() {
    let sharded = copy(good());
    shard(sharded.path(), true, |_| {});
    attempt(sharded.path()).unwrap();
    let unlisted = copy(good());
    shard(unlisted.path(), false, |_| {});
    attempt(unlisted.path()).unwrap();
    // The index of the source of a conversion.
    let stale = copy(good());
    let all = read_tensors(stale.path());
    shard(stale.path(), true, |_| {});
    remove(stale.path(), "model-00001-of-00002.safetensors");
    remove(stale.path(), "model-00002-of-00002.safetensors");
    write_tensors(stale.path(), WEIGHTS, &all);
    attempt(stale.path()).unwrap();
    refuse_all(
        good(),
        &[
            (
                "a tensor in two shards",
                |f| {
                    shard(f, true, |[first, second]| {
                        let (name, tensor) = first.first_key_value().unwrap();
                        second.insert(name.clone(), tensor.clone());
                    })
                },
                "Checkpoint",
                &["two shards", "lm_head.weight"],
            ),
            (
                "a shard that is missing",
                |f| {
                    shard(f, true, |_| {});
                    remove(f, "model-00002-of-00002.safetensors");
                },
                "Checkpoint",
                &["model-00002-of-00002.safetensors", "missing"],
            ),
            (
                "a shard that is missing, without an index",
                |f| {
                    shard(f, false, |_| {});
                    remove(f, "model-00001-of-00002.safetensors");
                },
                "Checkpoint",
                &["1 of 2 shards"],
            ),
            (
                "two sets of shards, without an index",
                |f| {
                    let all = read_tensors(f);
                    shard(f, false, |_| {});
                    write_tensors(f, "model-00001-of-00001.safetensors", &all);
                },
                "Checkpoint",
                &["-of-00001", "-of-00002", "two sets"],
            ),
            (
                "shards beside whole weights, without an index",
                |f| {
                    let all = read_tensors(f);
                    shard(f, false, |_| {});
                    write_tensors(f, WEIGHTS, &all);
                },
                "Checkpoint",
                &[WEIGHTS, "-of-00002", "two sets"],
            ),
            (
                "an index with one of its shards, beside whole weights",
                |f| {
                    let all = read_tensors(f);
                    shard(f, true, |_| {});
                    remove(f, "model-00001-of-00002.safetensors");
                    write_tensors(f, WEIGHTS, &all);
                },
                "Checkpoint",
                &["model-00001-of-00002.safetensors", "missing"],
            ),
            (
                "a map to a path",
                |f| map_to(f, json!("../x.safetensors")),
                "Checkpoint",
                &[INDEX, NORM],
            ),
            (
                "a map to the root",
                |f| map_to(f, json!("/etc/passwd")),
                "Checkpoint",
                &[INDEX, NORM],
            ),
            ("a map to the parent", |f| map_to(f, json!("..")), "Checkpoint", &[NORM]),
            ("a map to a drive", |f| map_to(f, json!("C:\\x.safetensors")), "Checkpoint", &[INDEX]),
            ("a map to another file", |f| map_to(f, json!("config.json")), "Checkpoint", &[NORM]),
            ("a map to a number", |f| map_to(f, json!(1)), "Checkpoint", &[INDEX, NORM]),
            ("no map", |f| put(f, INDEX, "{}"), "Checkpoint", &[INDEX, "weight_map"]),
            ("a map to nothing", |f| map_to(f, Json::Null), "Checkpoint", &[INDEX, NORM]),
            ("an empty map", |f| put(f, INDEX, r#"{"weight_map": {}}"#), "Checkpoint", &[INDEX]),
            ("no JSON", |f| put(f, INDEX, "{"), "Config", &[INDEX, "not JSON"]),
        ],
    );
}

/// Each tensor of each family missing, of another shape, and one too many.

#[test]
fn weights_that_are_not_numbers() {
    let folder = copy(good());
    retensor(folder.path(), |tensors| {
        let (_, _, data) = tensors.get_mut(&format!("{MLP}.weight")).unwrap();
        data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let model = block_on(Model::load(folder.path())).unwrap();
    let prompt = || Prompt::Tokens(vec![1, 2, 3]);
    refused(block_on(model.score(prompt(), 1)), "NotANumber", &["position 0"]);
    for temperature in [0.0, 1.0] {
        let options = GenerateOptions::default().temperature(temperature);
        refused(generate(&model, prompt(), &options), "NotANumber", &["position 3"]);
    }
}
