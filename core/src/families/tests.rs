//! Families of every kind, which only the unit tests know.

use super::*;
use crate::{
    checkpoint::{config::Text, file_rules::FileRules, scope::Scope},
    families::prelude::{Attention, GATE_UP_DOWN, Mlp, QKVO, Rope, pre_norm},
    layers::{
        algebra::Block,
        attention::{
            bidirectional::{BidirectionalAttention, Heads},
            cross::CrossAttention,
        },
        audio::log_mel::LogMel,
        cache_plan::CachePlan,
        embedded::{Embedded, MediaRange, PromptPositions},
        linear::Embedding,
        position::sections::interleaved,
        residual::Residual,
        step::Step,
    },
    mlx,
    models::{
        cache::Cache,
        decode_step::{DecodeStep, prefill, prefill_embedded},
        decoder::Decoder,
        language::{Input, Wrapper},
        speech::{Output, WindowedDecoder},
    },
    models::{
        embedder::Embedder,
        language::LanguageModel,
        network::Network,
        speech::Transcriber,
        text_batch::{TextBatch, Tokens},
    },
    processors::{NamedTensor, Prepared, PreparedMedia},
};
use mlx_rs::{Array, ops, random, transforms::eval};
use serde_json::json;
use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Arc, Mutex},
};

pub const FAMILIES: &[Entry] = &[
    entry(&["test_pictures"], Build::Language(pictures), FileRules::USUAL),
    entry(&["test_transcriber"], Build::Transcriber(transcriber), TRANSCRIBER_FILES),
    entry(&["test_embedder"], Build::Embedder(embedder), FileRules::USUAL),
];

const fn entry(model_types: &'static [&'static str], build: Build, files: FileRules) -> Entry {
    Entry { model_types, build, recommended: Recommended::NOTHING, files, processor: None }
}

/// A Llama that reads pictures: each placeholder becomes the rows of a grid, which see each other
/// both ways, have rotary positions of three axes, and join the stream after the first layer too.
struct Pictures(Decoder);

pub const PLACEHOLDER: u32 = 1249;
pub const GRID: [usize; 2] = [2, 3];
const CELLS: usize = GRID[0] * GRID[1];

fn pictures(checkpoint: &Checkpoint) -> Result<Box<dyn LanguageModel>> {
    let c = Text::read(checkpoint.config)?;
    let rope = Rope::of(&c)?.with_sections(&interleaved(&[6, 5, 5]))?;
    Ok(Box::new(Pictures(Decoder::stack(checkpoint.weights, &c, |_, w| {
        let attention = Attention::read(&w.at("self_attn"), QKVO, &c, rope.clone())?;
        pre_norm(w, &c, attention, Mlp::of(&w.at("mlp"), GATE_UP_DOWN, &c)?)
    })?)))
}

impl Wrapper for Pictures {
    fn inner(&self) -> &dyn LanguageModel {
        &self.0
    }

    fn prompt(&self, input: &Input) -> Result<Embedded> {
        let (mut ids, mut spans, mut media) = (Vec::new(), Vec::new(), Vec::new());
        let mut positions = [const { Vec::new() }; 3];
        let (mut next, mut pictures) = (0, input.media.iter());
        let (mut hidden, mut added) = (Vec::new(), Vec::new());
        for id in &input.tokens {
            let own = self.0.embed(&Array::from_slice(&[*id], &[1, 1]))?.hidden;
            if *id != PLACEHOLDER {
                ids.push(*id);
                positions.iter_mut().for_each(|axis| axis.push(next));
                next += 1;
                added.push(ops::zeros_like(&own)?);
                hidden.push(own);
                continue;
            }
            let picture = pictures.next().ok_or(Error::EmptyPrompt)?;
            let encoded = picture.features(|tensors| {
                ENCODED.lock().unwrap().push(picture.hash);
                Ok(vec![tensors["pixel_values"].clone()])
            })?;
            let features = encoded[0].as_dtype(own.dtype())?.expand_dims(0)?;
            added.push(features.multiply(mlx::scalar(0.5, own.dtype())?)?);
            hidden.push(features);
            let range = ids.len()..ids.len() + CELLS;
            for cell in 0..CELLS {
                ids.push(*id);
                let (row, column) = (cell / GRID[1], cell % GRID[1]);
                for (axis, ahead) in [0, row, column].into_iter().enumerate() {
                    positions[axis].push(next + ahead as i32);
                }
            }
            next += GRID[0].max(GRID[1]) as i32;
            spans.push(range.clone());
            media.push(MediaRange { range, hash: picture.hash });
        }
        let length = ids.len() as i32;
        let positions = Array::from_slice(&positions.concat(), &[3, 1, length]);
        Ok(Embedded {
            rotary: Some(PromptPositions { positions, delta: next - length }),
            spans,
            deepstack: vec![ops::concatenate(&added, 1)?],
            media,
            ..Embedded::new(Array::from_slice(&ids, &[1, length]), ops::concatenate(&hidden, 1)?)
        })
    }
}

/// The pictures that the tower has read, by their hashes.
pub static ENCODED: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// The values of a picture.
fn values(hash: u64, width: i32) -> Vec<f32> {
    let value = |i: i32| ((i as f32 + 1.0) * (hash as f32 + 0.7)).sin();
    (0..CELLS as i32 * width).map(value).collect()
}

/// A picture as its processor leaves it.
pub fn prepared(hash: u64, width: i32) -> PreparedMedia {
    let shape = [CELLS, width as usize];
    let tensors = vec![NamedTensor::floats("pixel_values", &shape, values(hash, width))];
    let prepared =
        Prepared { tensors, placeholders: Vec::new(), soft_tokens: CELLS, channel_run: 1 };
    PreparedMedia { hash, kind: "image", prepared: Arc::new(prepared) }
}

/// A picture with values of its own.
pub fn picture(hash: u64, width: i32) -> crate::models::language::Media {
    let pixels = Array::from_slice(&values(hash, width), &[CELLS as i32, width]);
    crate::models::language::Media::new(hash, [("pixel_values".into(), pixels)].into())
}

/// An encoder of one layer, and a decoder with cross attention. Its files have names of their own
/// and no config.
struct Whispering {
    encoder: Block,
    output: WindowedDecoder,
}

const TRANSCRIBER_FILES: FileRules = FileRules {
    beside: &["am.mvn"],
    weights: &["speech-*.safetensors"],
    matches: Some(|contents| contents.names.iter().any(|name| name == "am.mvn")),
};

const WIDTH: i32 = 16;

fn transcriber(checkpoint: &Checkpoint) -> Result<Box<dyn Transcriber>> {
    if checkpoint.files.read("am.mvn")?.is_none() {
        return Err(Error::config("am.mvn", "missing"));
    }
    let config = json!({
        "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 32,
        "num_attention_heads": 2, "vocab_size": 32, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    });
    let c = Text::read(&config.into())?;
    let projections = |w: &Scope| {
        let [q, k, v, o] = QKVO.map(|name| w.linear(name, WIDTH, WIDTH));
        Ok::<_, Error>([q?, k?, v?, o?])
    };
    let (heads, w) = (Heads::equal(2, WIDTH / 2), checkpoint.weights);
    let encoder =
        BidirectionalAttention::new(projections(&w.at("encoder"))?, heads, Rope::base(8, 1e4)?);
    let decoder = Decoder::stack(w, &c, |_, w| {
        let own = Attention::read(&w.at("self_attn"), QKVO, &c, Rope::base(8, 1e4)?)?;
        let cross = CrossAttention::new(projections(&w.at("cross_attn"))?, heads);
        Ok(Block::new((Residual::plain(own), Residual::plain(cross))))
    })?;
    let encoder = Block::new(Residual::plain(encoder));
    let output = WindowedDecoder {
        decoder: Rc::new(decoder),
        front_end: LogMel::new(WIDTH),
        frames: 9,
        context: 64,
        alignment_heads: Vec::new(),
    };
    Ok(Box::new(Whispering { encoder, output }))
}

/// The tensors of a transcriber.
pub fn speech_weights() -> Result<HashMap<String, Array>> {
    random::seed(5)?;
    let normal = |shape: &[i32]| {
        Ok::<_, Error>(
            random::normal::<f32>(shape, None, None, None)?.multiply(Array::from_f32(0.4))?,
        )
    };
    let mut tensors = HashMap::from([
        ("model.embed_tokens.weight".to_string(), normal(&[32, WIDTH])?),
        ("model.norm.weight".to_string(), normal(&[WIDTH])?),
    ]);
    let layer = |i| [format!("model.layers.{i}.self_attn"), format!("model.layers.{i}.cross_attn")];
    let places = (0..2).flat_map(layer).chain(["encoder".to_string()]);
    for place in places {
        for name in QKVO {
            tensors.insert(format!("{place}.{name}.weight"), normal(&[WIDTH, WIDTH])?);
        }
    }
    Ok(tensors)
}

impl Transcriber for Whispering {
    fn features(&self, samples: &[f32]) -> Result<Array> {
        Ok(self.output.front_end.forward(samples)?.expand_dims(0)?)
    }
    fn encode(&self, features: &Array) -> Result<Array> {
        let mut state = self.encoder.state(&CachePlan::default());
        let step = Step::prefill(0, features.dim(1));
        self.encoder.forward(features, &mut *state, &step)
    }
    fn output(&self) -> Output<'_> {
        Output::Windows(&self.output)
    }
}

/// The mean of the tokens' embeddings.
struct Mean(Embedding);

fn embedder(checkpoint: &Checkpoint) -> Result<Box<dyn Embedder>> {
    Ok(Box::new(Mean(checkpoint.weights.embedding("embed", 4, 2)?)))
}

impl Embedder for Mean {
    fn vocabulary(&self) -> u32 {
        self.0.vocabulary()
    }
    fn width(&self) -> usize {
        2
    }
    fn embed(&self, batch: &TextBatch) -> Result<Array> {
        Ok(self.0.lookup(&batch.ids)?.mean_axes(&[1], false)?)
    }
}

fn built(model_type: &str, tensors: &[(&str, Array)]) -> Network {
    let config = json!({"model_type": model_type});
    let tensors = tensors.iter().map(|(name, array)| (name.to_string(), array.clone()));
    let weights = &Scope::new(tensors.collect(), &config).unwrap();
    let files = &Files::Embedded(&[("am.mvn", b"1")]);
    let contents = Contents { names: &[], config: Some(&config), modules: None };
    let family = recognize(&contents).unwrap();
    let network = family.network(weights, files).unwrap();
    assert_eq!(network.kind(), family.build.kind());
    network
}

#[test]
fn families_build_models_of_every_kind() {
    let table = Array::from_slice(&[0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], &[4, 2]);
    let network = built("test_embedder", &[("embed.weight", table)]);
    let Network::Embedder(embedder) = network else { unreachable!() };
    let tokens = Tokens { ids: vec![1, 3], ..Tokens::default() };
    let vector = embedder.embed(&TextBatch::new(&[&tokens]).unwrap()).unwrap();
    assert_eq!(mlx::to_vec::<f32>(&vector).unwrap(), [4.0, 5.0]);
    assert_eq!(embedder.vocabulary(), 4);
}

#[test]
fn a_family_is_recognized_by_its_files_first() {
    let config = json!({"model_type": "llama"});
    let names = ["config.json".to_string(), "am.mvn".to_string()];
    let found = |names, config| {
        recognize(&Contents { names, config, modules: None }).map(|e| e.model_types[0])
    };
    assert_eq!(found(&names, Some(&config)).unwrap(), "test_transcriber");
    assert_eq!(found(&names, None).unwrap(), "test_transcriber");
    assert_eq!(found(&names[..1], Some(&config)).unwrap(), "llama");
    assert!(matches!(found(&names[..1], None), Err(Error::Config { .. })));
    let family = find("test_transcriber").unwrap();
    let refused = family.language(&Scope::new(HashMap::new(), &config).unwrap());
    let message = refused.err().unwrap().to_string();
    assert!(message.contains("`llama` is a transcriber (speech to text), not a language model"));
}

/// The logits of the last position.
fn last(logits: &Array) -> Vec<f32> {
    let length = logits.dim(1);
    mlx::to_vec(&mlx::slice(logits, 1, length - 1, length).unwrap()).unwrap()
}

fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let difference = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn cross_attention_keeps_its_keys_through_rewinding_forking_and_files() {
    let tensors: Vec<_> = speech_weights().unwrap().into_iter().collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, x)| (&**name, x.clone())).collect();
    let Network::Transcriber(model) = built("test_transcriber", &tensors) else { unreachable!() };
    let features = |seed, frames| {
        random::seed(seed).unwrap();
        random::normal::<f32>(&[1, frames, WIDTH], None, None, None).unwrap()
    };
    let (one, other) = (features(1, 9), features(2, 5));
    let (one, other) = (model.encode(&one).unwrap(), model.encode(&other).unwrap());
    let Output::Windows(model) = model.output() else { unreachable!() };
    let decoder = &model.decoder;
    let fresh = || decoder.cache(&CachePlan::default());
    let ids = |ids: &[u32]| Array::from_slice(ids, &[1, ids.len() as i32]);
    let whole =
        |encoded| last(&model.decode(&ids(&[3, 1, 4, 1]), Some(encoded), &mut fresh()).unwrap());
    let (expected, of_other) = (whole(&one), whole(&other));
    assert!(expected.iter().zip(&of_other).any(|(a, b)| (a - b).abs() > 0.01));

    let refused = model.decode(&ids(&[3]), None, &mut fresh()).err();
    assert!(matches!(refused, Some(Error::Internal(_))));

    // A compiled step takes the keys from the cache.
    let mut cache = fresh();
    model.decode(&ids(&[3, 1]), Some(&one), &mut cache).unwrap();
    let mut steps = DecodeStep::default();
    let mut step = |id, cache: &mut Cache| steps.run(decoder, &ids(&[id]), cache).unwrap();
    step(4, &mut cache);
    let mut fork = cache.fork();
    assert_close(&last(&step(1, &mut cache)), &expected);
    assert_close(&last(&step(1, &mut fork)), &expected);

    // Rewinding forgets positions, and all of them too.
    assert!(cache.rewinds() && cache.rewind(2));
    step(4, &mut cache);
    assert_close(&last(&step(1, &mut cache)), &expected);
    assert!(cache.rewind(4) && cache.offset == 0);
    assert_close(&last(&model.decode(&ids(&[3, 1, 4, 1]), None, &mut cache).unwrap()), &expected);
    let checkpoint = cache.checkpoint();
    step(9, &mut cache);
    assert!(cache.restore(&checkpoint).unwrap() && cache.rewind(1));
    assert_close(&last(&step(1, &mut cache)), &expected);

    // A file keeps them, whatever their length.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    assert!(cache.rewind(1));
    cache.save(&path, "model", &HashMap::new()).unwrap();
    let (mut loaded, _) = Cache::load(&path, &**decoder, "model").unwrap();
    assert_close(&last(&step(1, &mut loaded)), &expected);

    // The output of an encoder replaces that of another.
    assert!(cache.rewind(3) && cache.offset == 0);
    let again = model.decode(&ids(&[3, 1, 4, 1]), Some(&other), &mut cache).unwrap();
    assert_close(&last(&again), &of_other);
    cache.clear();
    assert!(model.decode(&ids(&[3]), None, &mut cache).is_err());
}

#[test]
fn rotary_positions_and_deepstack_go_on_while_decoding() {
    let files = crate::DEMO;
    let config = files.json("config.json").unwrap().unwrap();
    let weights = &Scope::open(&files, &config).unwrap();
    let checkpoint = Checkpoint { config: weights.config(), weights, files: &files };
    let model: Rc<dyn LanguageModel> = pictures(&checkpoint).unwrap().into();
    let tokens = vec![5, 6, PLACEHOLDER, 7, 8, PLACEHOLDER, 9];
    let media = vec![picture(1, 128), picture(2, 128)];
    let continued = [11_u32, 12, 13];
    // Prefilled as one prompt, continued text and all.
    let all = Input { tokens: [&tokens[..], &continued].concat(), media: media.clone() };
    let whole = model.prompt(&all).unwrap();
    let mut cache = model.cache(&CachePlan::default());
    let hidden = prefill_embedded(&*model, &whole, &mut cache).unwrap();
    let expected = last(&model.logits(&hidden).unwrap());
    let prompt = model.prompt(&Input { tokens, media }).unwrap();
    assert_eq!(prompt.rotary.as_ref().map(|rotary| rotary.delta), Some(-6));
    // In chunks, and the continued text step by step, or as a further pass.
    for chunk in [usize::MAX, 8, 7, 3, 1] {
        let mut cache = model.cache(&CachePlan::default());
        let mut at = 0;
        while at < prompt.length() {
            let end = prompt.border(at, prompt.length().min(at.saturating_add(chunk)));
            let part = prompt.slice(at, end).unwrap();
            prefill_embedded(&*model, &part, &mut cache).unwrap();
            eval(cache.arrays().into_iter().map(|array| &*array)).unwrap();
            at = end;
        }
        let mut steps = DecodeStep::default();
        let mut fork = cache.fork();
        let mut logits = None;
        for id in continued {
            let id = Array::from_slice(&[id], &[1, 1]);
            logits = Some(steps.run(&model, &id, &mut fork).unwrap());
        }
        assert_close(&last(&logits.unwrap()), &expected);
        let ids = Array::from_slice(&continued, &[1, 3]);
        let hidden = prefill(&*model, &ids, &mut cache).unwrap();
        assert_close(&last(&model.logits(&hidden).unwrap()), &expected);
    }
    // Each of the facts matters to some position.
    let hidden = |x: &Embedded| -> Vec<f32> {
        let mut cache = model.cache(&CachePlan::default());
        mlx::to_vec(&prefill_embedded(&*model, x, &mut cache).unwrap()).unwrap()
    };
    let expected = hidden(&whole);
    for change in [
        |x: &mut Embedded| x.rotary = None,
        |x: &mut Embedded| x.spans.clear(),
        |x: &mut Embedded| x.deepstack.clear(),
    ] {
        let mut changed = whole.clone();
        change(&mut changed);
        let found = hidden(&changed);
        assert!(found.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.05));
    }
}
