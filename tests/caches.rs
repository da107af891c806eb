//! What caches take, what fits a budget, what grows, and which files are refused.

use mlx_rs::{Array, transforms::eval};
use mynah::{
    Bound, CachePlan, CacheQuantization, DEMO, Error, Files, Result,
    internals::{Cache, LanguageModel, mlx, prefill},
};
use mynah_tests::{Case, Fixture, on_engine};
use std::{collections::HashMap, fs, path::Path, rc::Rc};

fn first(family: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    fixture.cases.into_iter().next().unwrap()
}

/// The case of a family with heads that can be quantized.
fn quantizable(family: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == family).unwrap();
    fixture.cases.into_iter().find(|case| case.name == "caches").unwrap()
}

fn plan(quantization: Option<CacheQuantization>, bound: Option<Bound>) -> CachePlan {
    let mut plan = CachePlan::default();
    (plan.quantization, plan.bound) = (quantization, bound);
    plan
}

fn quantized(bits: i32, group_size: i32) -> Option<CacheQuantization> {
    Some(CacheQuantization::new(bits, group_size, 0).unwrap())
}

fn bits(bits: i32, group_size: i32) -> CachePlan {
    plan(quantized(bits, group_size), None)
}

fn bounded(positions: usize) -> Option<Bound> {
    Some(Bound::new(positions, 4).unwrap())
}

/// Computes so many tokens, the same ones every time.
fn fill(model: &dyn LanguageModel, cache: &mut Cache, count: i32) -> Result<Vec<f32>> {
    let from = cache.offset;
    let tokens: Vec<i32> = (from..from + count).map(|position| position * 31 % 96).collect();
    let hidden = prefill(model, &Array::from_slice(&tokens, &[1, count]), cache)?;
    eval(cache.arrays().into_iter().map(|array| &*array))?;
    mlx::to_vec(&mlx::slice(&hidden, 1, count - 1, count)?)
}

/// A llama with heads of 64.
fn wide() -> Case {
    let mut case = first("llama");
    case.config["head_dim"] = 64.into();
    case.with_shape("model.layers.*.self_attn.q_proj.weight", &[256, 64])
        .with_shape("model.layers.*.self_attn.k_proj.weight", &[128, 64])
        .with_shape("model.layers.*.self_attn.v_proj.weight", &[128, 64])
        .with_shape("model.layers.*.self_attn.o_proj.weight", &[64, 256])
}

#[test]
fn four_bits_take_less_than_a_third_of_sixteen() {
    let [plain, eight, four, estimated] = on_engine(|| {
        // As most checkpoints are.
        let model = wide().in_bfloat16().model()?;
        let bytes = |plan: CachePlan| -> Result<usize> {
            let mut cache = model.cache(&plan);
            fill(&*model, &mut cache, 500)?;
            Ok(cache.bytes())
        };
        let four = Cache::estimate(&*model, &bits(4, 64), 512)?;
        Ok([bytes(CachePlan::default())?, bytes(bits(8, 64))?, bytes(bits(4, 64))?, four])
    })
    .unwrap();
    // Keys and values of 2 layers, 2 heads, 512 positions, 64 elements, 2 bytes.
    assert_eq!(plain, 2 * 2 * 2 * 512 * 64 * 2);
    // A scale and a bias for each head.
    assert_eq!(eight, plain / 2 + 2 * 2 * 2 * 512 * 4);
    assert_eq!(four, plain / 4 + 2 * 2 * 2 * 512 * 4);
    assert!(four * 10 <= plain * 3);
    assert_eq!(four, estimated);
}

#[test]
fn a_budget_chooses_what_loses_least() {
    on_engine(|| {
        let model = wide().model()?;
        let plain = Cache::estimate(&*model, &CachePlan::default(), 1024)?;
        let within = |bytes| CachePlan::within(&*model, 1024, bytes);
        let as_in = |plan: CachePlan, wanted: CachePlan| {
            assert_eq!((plan.quantization, plan.bound), (wanted.quantization, wanted.bound));
        };
        as_in(within(plain)?, CachePlan::default());
        as_in(within(plain - 1)?, bits(8, 64));
        as_in(within(plain / 4)?, bits(4, 64));
        let small = within(plain / 9)?;
        as_in(small, plan(quantized(4, 64), bounded(512)));
        let mut cache = model.cache(&small);
        for _ in 0..3 {
            fill(&*model, &mut cache, 400)?;
            assert!(cache.bytes() <= plain / 9, "{} at {}", cache.bytes(), cache.offset);
        }
        // What is not quantized yet reserves no more than it needs.
        let mut late = CachePlan::new(1024);
        late.quantization = Some(CacheQuantization::new(4, 64, 200)?);
        let mut cache = model.cache(&late);
        fill(&*model, &mut cache, 150)?;
        assert_eq!(cache.bytes(), plain / 4);
        fill(&*model, &mut cache, 60)?;
        assert_eq!(cache.bytes(), Cache::estimate(&*model, &bits(4, 64), 1024)?);
        assert!(matches!(within(1000), Err(Error::MemoryLimit { limit: 1000, .. })));
        // What has no keys takes the same under every plan.
        let recurrent = first("mamba2").model()?;
        let size = Cache::estimate(&*recurrent, &CachePlan::default(), 2048)?;
        as_in(CachePlan::within(&*recurrent, 2048, size)?, CachePlan::default());
        assert!(CachePlan::within(&*recurrent, 2048, size - 1).is_err());
        Ok(())
    })
    .unwrap();
}

/// Buffers that have grown since a checkpoint take what it kept.
#[test]
fn snapshots_outlive_growth() {
    let families = ["llama", "gemma3_text", "gemma4_text", "gpt_oss", "lfm2", "deepseek_v41"];
    for (family, bound) in families.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        on_engine(move || {
            let case = quantizable(family);
            let model = case.model()?;
            for quantization in [None, quantized(8, 32)] {
                // More than one growth, less than two.
                let plan = plan(quantization, bounded(300).filter(|_| bound));
                let mut cache = model.cache(&plan);
                fill(&*model, &mut cache, 200)?;
                let here = cache.checkpoint();
                let expected = fill(&*model, &mut cache.fork(), 40)?;
                fill(&*model, &mut cache, 250)?;
                assert!(cache.restore(&here)?);
                let found = fill(&*model, &mut cache, 40)?;
                let distance = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
                let distance = distance.fold(0.0, f32::max);
                assert!(distance < 1e-4, "{family}, {plan:?}: {distance}");
            }
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn caches_of_any_size_are_saved() {
    on_engine(|| {
        let model = quantizable("gemma3_text").model()?;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cache.safetensors");
        let late = Some(CacheQuantization::new(8, 32, 150)?);
        for quantization in [None, quantized(4, 32), late] {
            for bound in [None, bounded(70), bounded(300)] {
                for (positions, seen) in [(0, 100), (330, 100), (330, 200), (330, 400), (10, 300)] {
                    let mut plan = CachePlan::new(positions);
                    (plan.quantization, plan.bound) = (quantization, bound);
                    let mut cache = model.cache(&plan);
                    fill(&*model, &mut cache, seen)?;
                    cache.save(&file, MODEL, &HashMap::new())?;
                    let (mut loaded, _) = Cache::load(&file, &*model, MODEL)?;
                    assert_eq!((loaded.offset, loaded.plan()), (seen, cache.plan()));
                    assert_eq!(fill(&*model, &mut loaded, 9)?, fill(&*model, &mut cache, 9)?);
                }
            }
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn nobody_goes_forward_by_going_back() {
    on_engine(|| {
        let model = first("llama").model()?;
        let mut cache = model.cache(&CachePlan::default());
        fill(&*model, &mut cache, 10)?;
        let later = cache.checkpoint();
        assert!(!cache.rewind(11) && !cache.rewind(-1));
        assert!(cache.rewind(0) && cache.rewind(4));
        assert!(!cache.restore(&later)?);
        assert_eq!(cache.offset, 6);
        assert!(cache.rewind(6));
        assert_eq!((cache.offset, cache.bytes()), (0, 0));
        Ok(())
    })
    .unwrap();
}

#[test]
fn plans_that_make_no_sense_are_refused() {
    for (bits, group) in [(3, 64), (0, 64), (16, 64), (4, 0), (4, 48), (8, -32)] {
        assert!(matches!(CacheQuantization::new(bits, group, 0), Err(Error::Option { .. })));
    }
    for (positions, keep) in [(0, 0), (4, 4), (4, 5), (usize::MAX, 4)] {
        assert!(matches!(Bound::new(positions, keep), Err(Error::Option { .. })));
    }
    // Heads of 16 have no groups of 64; the sequence does not begin.
    on_engine(|| {
        let model = first("llama").model()?;
        let mut cache = model.cache(&bits(4, 64));
        let refused = fill(&*model, &mut cache, 3).err();
        assert!(matches!(refused, Some(Error::Option { option: "cache group size", .. })));
        Ok(())
    })
    .unwrap();
}

#[test]
fn fingerprints_tell_checkpoints_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_path_buf();
    on_engine(move || first("llama").write(&path)).unwrap();
    let files = Files::from(folder.path());
    let fingerprint = || files.fingerprint().unwrap();
    let original = fingerprint();
    for other in ["tokenizer.json", "session.safetensors"] {
        fs::write(folder.path().join(other), "{}").unwrap();
        assert_eq!(fingerprint(), original);
    }
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change); 4] = [
        ("config.json", |bytes| bytes.push(b' ')),
        ("model.safetensors", |bytes| bytes.push(0)),
        ("model.safetensors", |bytes| *bytes.last_mut().unwrap() ^= 1),
        // As a fine-tuned model differs: everywhere a little.
        ("model.safetensors", |bytes| {
            bytes.iter_mut().skip(5000).step_by(200).for_each(|b| *b ^= 1)
        }),
    ];
    for (name, change) in changes {
        let file = folder.path().join(name);
        let bytes = fs::read(&file).unwrap();
        let mut changed = bytes.clone();
        change(&mut changed);
        fs::write(&file, changed).unwrap();
        assert_ne!(fingerprint(), original, "{name}");
        fs::write(&file, bytes).unwrap();
        assert_eq!(fingerprint(), original);
    }
    let (from, to) = ("model.safetensors", "model-00001-of-00001.safetensors");
    fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    assert_ne!(fingerprint(), original);
    assert_ne!(DEMO.fingerprint().unwrap(), original);
}

const MODEL: &str = "0123";

fn load(path: &Path, model: &Rc<dyn LanguageModel>) -> Result<i32> {
    Ok(Cache::load(path, &**model, MODEL)?.0.offset)
}

/// What is wrong with a file of which the tests know that it is refused.
fn reason(path: &Path, model: &Rc<dyn LanguageModel>) -> String {
    match load(path, model) {
        Err(Error::SavedCache { file, reason }) => {
            assert_eq!(file, path);
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_not_this_cache_are_refused() {
    on_engine(|| {
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) =
            (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
        let model = first("gemma3_text").model()?;
        let mut cache = model.cache(&CachePlan::default());
        let none = HashMap::new();
        assert!(matches!(cache.save(&good, MODEL, &none), Err(Error::SavedCache { .. })));
        fill(&*model, &mut cache, 20)?;
        let elsewhere = folder.path().join("nowhere/a.safetensors");
        let nameless = folder.path().join("a");
        for path in [&elsewhere, &nameless] {
            assert!(matches!(cache.save(path, MODEL, &none), Err(Error::SavedCache { .. })));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        cache.save(&good, MODEL, &none)?;
        cache.save(&good, MODEL, &none)?;
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(load(&good, &model)?, 20);

        let other = Cache::load(&good, &*model, "4567").err();
        assert!(matches!(other, Some(Error::SavedCache { .. })));
        assert!(reason(&good, &first("llama").model()?).contains("array 0 is"));
        reason(&bad, &model);

        let bytes = fs::read(&good).unwrap();
        for length in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&bad, &bytes[..length]).unwrap();
            reason(&bad, &model);
        }
        let (arrays, metadata) = Array::load_safetensors_with_metadata(&good).unwrap();
        let write = |arrays: &HashMap<String, Array>, metadata: &HashMap<String, String>| {
            fs::remove_file(&bad).ok();
            Array::save_safetensors(arrays, metadata, &bad).unwrap();
            reason(&bad, &model)
        };
        assert_eq!(write(&arrays, &none), "holds no cache");
        let with = |from: &str, to: &str| {
            let mut metadata = metadata.clone();
            let header = metadata.get_mut("mynah.cache").unwrap();
            assert!(header.contains(from), "{header} has no {from}");
            *header = header.replace(from, to);
            metadata
        };
        for version in [1, 9] {
            let refused = write(&arrays, &with("\"version\":3", &format!("\"version\":{version}")));
            assert!(refused.contains(&format!("version {version}")), "{refused}");
            assert!(refused.contains("compute the cache anew"), "{refused}");
        }
        for (from, to) in [
            ("\"offset\":20", "\"offset\":0"),
            ("\"offset\":20", "\"offset\":257"),
            ("\"offset\":20", "\"offset\":\"20\""),
            ("\"offset\":20,", ""),
            ("\"capacity\":256", "\"capacity\":2147483647"),
            ("\"capacity\":256", "\"capacity\":1000000000"),
            ("\"capacity\":256", "\"capacity\":-1"),
            ("\"quantized\":false", "\"quantized\":true"),
            ("\"rotary_delta\":false", "\"rotary_delta\":true"),
            ("\"fixed\":[]", "\"fixed\":[1]"),
            ("\"fixed\":[]", "\"fixed\":[18446744073709551615,2]"),
            ("\"quantization\":null", "\"quantization\":[5,64,0]"),
            ("\"bound\":null", "\"bound\":[4,4]"),
            ("\"bound\":null", "\"bound\":[10,4]"),
            ("{", "["),
        ] {
            write(&arrays, &with(from, to));
        }
        let mut fewer = arrays.clone();
        fewer.remove("1");
        assert!(write(&fewer, &metadata).contains("array 1 is missing"));
        let mut more = arrays.clone();
        more.insert("more".into(), Array::from_int(1));
        assert!(write(&more, &metadata).contains("too many"));
        let mut halved = arrays.clone();
        halved.insert("0".into(), arrays["0"].as_dtype(mlx_rs::Dtype::Float16)?);
        assert!(write(&halved, &metadata).contains("Float16"));

        // Whatever a byte of the header becomes, it is this cache or none.
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for at in (0..8 + header).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&bad, damaged).unwrap();
            match load(&bad, &model) {
                Ok(_) | Err(Error::SavedCache { .. }) => {}
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        Ok(())
    })
    .unwrap();
}
