//! `checkpoints FOLDER` writes small checkpoints for the tests in Swift and Kotlin, and `expected.json`
//! with what the library computes from them in Rust.

use mynah::{
    Attachment, Audio, AudioCodec, AudioModel, Detection, EncodedAudio, Event, Image, Message,
    Model, Prompt, Result, Script, SpeakOptions, SpeechModel, TranscribeOptions, VadModel, Video,
};
use mynah_tests::{
    AudioCheckpoint, Case, Fixture, block_on, on_engine,
    speech::{multilingual_tokenizer, sound},
};
use serde_json::{Map, Value as Json, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

fn main() {
    let Some(folder) = env::args().nth(1).map(PathBuf::from) else {
        eprintln!("usage: checkpoints FOLDER");
        std::process::exit(2);
    };
    let expected = json!({
        "vision": vision(&folder).unwrap(),
        "whisper": whisper(&folder).unwrap(),
        "kokoro": kokoro(&folder).unwrap(),
        "silero_vad": detector(&folder, "silero_vad", 8000).unwrap(),
        "smart_turn": detector(&folder, "smart_turn", 9000).unwrap(),
        "sortformer": detector(&folder, "sortformer", 20_000).unwrap(),
        "snac": snac(&folder).unwrap(),
    });
    fs::write(folder.join("expected.json"), expected.to_string()).unwrap();
}

/// A new folder of this name.
fn new(folder: &Path, name: &str) -> PathBuf {
    let folder = folder.join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn read(fixture: &str) -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A model that sees, with all that a model repository has, and answers about a picture and a clip.
fn vision(folder: &Path) -> Result<Json> {
    const TEMPLATE: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
        {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% elif p.type == 'image' %}\
        <|vision_start|><|image_pad|><|vision_end|>{% else %}\
        <|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}{% endfor %}";
    let folder = new(folder, "vision");
    let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == "qwen2_vl").unwrap();
    let case = fixture.cases.into_iter().next().unwrap();
    let to = folder.clone();
    on_engine(move || case.write(&to))?;
    let write = |name: &str, json: Json| fs::write(folder.join(name), json.to_string()).unwrap();
    write("tokenizer.json", letters());
    write("tokenizer_config.json", json!({"chat_template": TEMPLATE, "eos_token": "</s>"}));
    let settings = json!({
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2,
        "temporal_patch_size": 2, "min_pixels": 64, "max_pixels": 1024,
    });
    write("video_preprocessor_config.json", settings.clone());
    write("preprocessor_config.json", settings);
    let picture = read("pictures.json")[0][1].as_str().unwrap().to_string();
    let bytes = picture.as_bytes().chunks(2);
    let bytes = bytes.map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16));
    fs::write(
        folder.join("picture.png"),
        bytes.map(std::result::Result::unwrap).collect::<Vec<_>>(),
    )
    .unwrap();

    let model = block_on(Model::load(folder.as_path()))?;
    let answer = |media: Vec<Attachment>| -> Result<Vec<u32>> {
        let prompt = Prompt::from(Message::with_media(media, "what is it"));
        let options = model.default_options().max_tokens(12).temperature(0.0).ignore_end(true);
        let (mut generation, mut tokens) = (model.generate(prompt, &options)?, Vec::new());
        while let Some(event) = block_on(generation.next()) {
            if let Event::Token(token) = event? {
                tokens.push(token.id);
            }
        }
        Ok(tokens)
    };
    let image = Image::open(folder.join("picture.png"))?;
    let frames: Result<Vec<Image>> = (0..4).map(|i| Image::from_rgb(16, pixels(i))).collect();
    let clip = Video::from_frames(frames?, Some(2.0))?;
    Ok(json!({
        "image": answer(vec![image.into()])?,
        "rgb": answer(vec![Image::from_rgb(16, pixels(0))?.into()])?,
        "video": answer(vec![clip.into()])?,
        "text": answer(Vec::new())?,
    }))
}

/// A picture of 16 rows of 16 pixels.
fn pixels(number: usize) -> Vec<u8> {
    (0..3 * 16 * 16).map(|i| (i * (number + 3) % 251) as u8).collect()
}

/// A tokenizer of letters and the special tokens of the model that sees.
fn letters() -> Json {
    let special = [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (92, "<|vision_start|>")];
    let special = special.into_iter().chain([
        (93, "<|vision_end|>"),
        (94, "<|video_pad|>"),
        (95, "<|image_pad|>"),
    ]);
    let special: Vec<(u32, &str)> = special.collect();
    let mut vocabulary: Map<String, Json> =
        (3..92).map(|id| (char::from_u32(id + 29).unwrap().to_string(), json!(id))).collect();
    vocabulary.extend(special.iter().map(|(id, text)| ((*text).to_string(), json!(id))));
    let added = special.iter().map(|(id, text)| {
        json!({
            "id": id, "content": text, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false,
        })
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false,
        },
        "post_processor": null, "decoder": {"type": "Fuse"}, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    })
}

/// A model of windows, and a recording.
fn whisper(folder: &Path) -> Result<Json> {
    let folder = new(folder, "whisper");
    let mut case = read("speech.json")[0].as_object().unwrap().clone();
    for field in ["tokens", "probes", "logprobs"] {
        case.insert(field.into(), json!([]));
    }
    let case: Case = serde_json::from_value(Json::Object(case)).unwrap();
    let to = folder.clone();
    on_engine(move || case.write(&to))?;
    fs::write(folder.join("tokenizer.json"), multilingual_tokenizer()).unwrap();
    sound(34.0).write_wav(folder.join("sound.wav"))?;
    let model = block_on(AudioModel::load(folder.as_path()))?;
    let options = TranscribeOptions::default()
        .language("en".to_string())
        .temperatures(vec![0.0])
        .no_speech_threshold(None)
        .timestamps(mynah::Timestamps::Words)
        .max_tokens(12);
    let found = block_on(model.transcribe(folder.join("sound.wav"), &options)?.finish())?;
    let segments = found.segments.iter().map(|segment| {
        let words: Vec<_> = segment.words.iter().map(|word| &word.word).collect();
        json!({"start": segment.start, "end": segment.end, "text": segment.text, "words": words})
    });
    let segments: Vec<Json> = segments.collect();
    Ok(json!({"text": found.text, "tokens": found.tokens, "segments": segments}))
}

/// Sound that every language computes to the last bit.
fn noise(length: usize) -> Audio {
    let sample = |i: usize| (i * 7919 % 2048) as f32 / 2048.0 - 0.5;
    Audio::mono((0..length).map(sample).collect(), 16_000)
}

/// A checkpoint of a codec, a detector or a speaker, with its case.
fn audio(folder: &Path, name: &str) -> Result<(PathBuf, Json)> {
    let folder = new(folder, name);
    let case = read(&format!("audio_models/{name}.json"))["cases"][0].clone();
    let checkpoint: AudioCheckpoint = serde_json::from_value(case.clone()).unwrap();
    let to = folder.clone();
    on_engine(move || checkpoint.write(&to))?;
    Ok((folder, case))
}

fn kokoro(folder: &Path) -> Result<Json> {
    let (folder, case) = audio(folder, "kokoro")?;
    let model = block_on(SpeechModel::load(folder.as_path()))?;
    // The first word, because speech takes long in a debug build.
    let phonemes = case["phonemes"].as_str().unwrap().split(' ').next().unwrap().to_string();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let spoken = samples.clone();
    let out = move |speech: mynah::Speech| spoken.lock().unwrap().extend(speech.samples);
    let script = Script::Phonemes(phonemes.clone());
    block_on(model.speak(script, SpeakOptions::default(), out))?;
    let samples = samples.lock().unwrap();
    let sum: f32 = samples.iter().map(|sample| sample.abs()).sum();
    Ok(json!({
        "phonemes": phonemes, "voices": model.voices(), "rate": model.sample_rate(),
        "count": samples.len(), "sum": sum,
    }))
}

fn detector(folder: &Path, name: &str, length: usize) -> Result<Json> {
    let (folder, _) = audio(folder, name)?;
    let model = block_on(VadModel::load(folder.as_path()))?;
    let segments = |segments: &[mynah::SpeechSegment]| -> Vec<[f64; 2]> {
        segments.iter().map(|segment| [segment.start, segment.end]).collect()
    };
    Ok(match block_on(model.detect(&noise(length)))? {
        Detection::Speech { probabilities, frame_stride, segments: speech, .. } => json!({
            "probabilities": probabilities, "stride": frame_stride, "segments": segments(&speech),
        }),
        Detection::Turn { probability, .. } => json!({"probability": probability}),
        Detection::Speakers { probabilities, segments: speech, .. } => json!({
            "probabilities": probabilities,
            "segments": speech.iter().map(|speech| segments(speech)).collect::<Vec<_>>(),
        }),
    })
}

fn snac(folder: &Path) -> Result<Json> {
    let (folder, _) = audio(folder, "snac")?;
    let model = block_on(AudioCodec::load(folder.as_path()))?;
    let sound = Audio { sample_rate: model.sample_rate(), ..noise(500) };
    let encoded = block_on(model.encode(&sound))?;
    let EncodedAudio::Codes(stretches) = &encoded else { panic!("snac has codes") };
    let codebooks = stretches[0].codebooks.clone();
    let decoded = block_on(model.decode(encoded, None))?;
    Ok(json!({
        "rate": model.sample_rate(), "codebooks": codebooks, "count": decoded.samples.len(),
        "sum": decoded.samples.iter().map(|sample| sample.abs()).sum::<f32>(),
    }))
}
