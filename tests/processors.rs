//! Processors make of pictures what transformers' processors make of them.

use mynah::{
    Error, Files, Image, NamedTensor, Piece, Prepared, Tokenizer, Values, Video,
    internals::processors::{
        Pixels, Read, Settings, blocks, canvas, decode, fixed, grids, overlapping, padded_tiles,
        patches, rows, smart_resize, tiles,
    },
};
use mynah_tests::PictureFile;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::{collections::BTreeMap, fs};

const READERS: &[(&str, Read)] = &[
    ("blocks::limited", blocks::limited),
    ("canvas::read", canvas::read),
    ("fixed::centered", fixed::centered),
    ("fixed::squared_and_reduced", fixed::squared_and_reduced),
    ("fixed::with_crops", fixed::with_crops),
    ("fixed::with_start_after", fixed::with_start_after),
    ("grids::chat", grids::chat),
    ("grids::lined", grids::lined),
    ("grids::numbered", grids::numbered),
    ("grids::plain", grids::plain),
    ("overlapping::read", overlapping::read),
    ("padded_tiles::crossed", padded_tiles::crossed),
    ("padded_tiles::separated", padded_tiles::separated),
    ("patches::pooled", patches::pooled),
    ("patches::split", patches::split),
    ("patches::whole", patches::whole),
    ("rows::read", rows::read),
    ("smart_resize::doubled", smart_resize::doubled),
    ("smart_resize::read", smart_resize::read),
    ("tiles::named", tiles::named),
];

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    read: String,
    config: Json,
    settings: Json,
    processor: Json,
    tokens: Vec<String>,
    /// How many levels of 8 bits the reference differs from Pillow.
    levels: u8,
    pictures: Vec<Picture>,
}

#[derive(Deserialize)]
struct Picture {
    size: [u32; 2],
    tensors: BTreeMap<String, Tensor>,
    placeholders: Vec<(String, usize)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Tensor {
    Integers { shape: Vec<i32>, integers: Vec<i64>, sum: i64 },
    Floats { shape: Vec<i32>, at: Vec<usize>, values: Vec<f32>, quantiles: Vec<f64> },
}

/// The picture that the script makes.
fn picture(width: u32, height: u32) -> Pixels {
    let level =
        |x: u32, y: u32, c: u32| (x * (7 + c) / 3 + y * (11 + 2 * c) / 5 + x * y / (61 + c)) as u8;
    let pixels = (0..width * height).map(|i| (i % width, i / width));
    let rgb = pixels.flat_map(|(x, y)| [0, 1, 2].map(|c| level(x, y, c))).collect();
    Pixels { width: width as usize, height: height as usize, rgb }
}

/// A tokenizer that has these tokens.
fn tokenizer(tokens: &[String]) -> Json {
    let added = tokens.iter().enumerate().map(|(i, token)| {
        json!({
            "id": i + 2, "content": token, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    });
    json!({
        "version": "1.0", "added_tokens": added.collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "\n": 1}, "unk_token": "[UNK]"},
    })
}

/// What stands for the picture, in runs of equal tokens.
fn runs(prepared: &Prepared, tokenizer: &Tokenizer) -> Vec<(String, usize)> {
    let mut runs: Vec<(String, usize)> = Vec::new();
    let mut add = |text: String, count: usize| match runs.last_mut() {
        Some(last) if last.0 == text => last.1 += count,
        _ => runs.push((text, count)),
    };
    for piece in &prepared.placeholders {
        match piece {
            Piece::Tokens { id, count } => {
                // Where no token marks the place, the marker is the text of the code.
                add(tokenizer.token(*id).unwrap_or("<image>".into()), *count);
            }
            Piece::Text(text) => {
                for part in text.split_inclusive('\n') {
                    let line = part.strip_suffix('\n');
                    let part = line.unwrap_or(part);
                    if !part.is_empty() {
                        add(part.into(), 1);
                    }
                    if line.is_some() {
                        add("\n".into(), 1);
                    }
                }
            }
        }
    }
    runs
}

/// How far a tensor is from what is expected: the largest difference of a value.
fn compare(what: &str, tensor: &NamedTensor, expected: &Tensor) -> f32 {
    match (expected, &tensor.values) {
        (Tensor::Integers { shape, integers, sum }, Values::Integers(values)) => {
            assert_eq!(&tensor.shape, shape, "{what}");
            let step = if values.len() <= 64 { 1 } else { values.len() / 61 };
            let kept: Vec<i64> =
                values.iter().step_by(step).map(|value| i64::from(*value)).collect();
            assert_eq!(&kept, integers, "{what}");
            assert_eq!(values.iter().map(|value| i64::from(*value)).sum::<i64>(), *sum, "{what}");
            0.0
        }
        (Tensor::Floats { shape, at, values: expected, quantiles }, Values::Floats(values)) => {
            assert_eq!(&tensor.shape, shape, "{what}");
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f32::total_cmp);
            let ends = [sorted[0], sorted[sorted.len() - 1]];
            let expected_ends = [quantiles[0] as f32, quantiles[16] as f32];
            let pairs = at.iter().map(|at| values[*at]).zip(expected.iter().copied());
            let pairs = pairs.chain(ends.into_iter().zip(expected_ends));
            pairs.map(|(value, expected)| (value - expected).abs()).fold(0.0, f32::max)
        }
        _ => panic!("{what}: values of another kind"),
    }
}

#[test]
fn processors_make_what_the_reference_makes() {
    let fixture = fs::read_to_string("fixtures/processors.json").unwrap();
    let fixture: Fixture = serde_json::from_str(&fixture).unwrap();
    for case in fixture.cases {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, json: &Json| {
            fs::write(folder.path().join(name), json.to_string()).unwrap();
        };
        write("preprocessor_config.json", &case.settings);
        write("processor_config.json", &case.processor);
        write("tokenizer.json", &tokenizer(&case.tokens));
        let files = Files::from(folder.path());
        let tokenizer = Tokenizer::load(&files).unwrap();
        let settings =
            Settings { config: &case.config, files: &files, tokenizer: Some(&tokenizer) };
        let (_, read) = READERS.iter().find(|(name, _)| *name == case.read).unwrap();
        let processor = read(&settings).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        for expected in &case.pictures {
            let [width, height] = expected.size;
            let what = format!("{} of {width} x {height}", case.name);
            let prepared = processor.image(&picture(width, height)).unwrap();
            for (name, expected) in &expected.tensors {
                let tensor = prepared.tensors.iter().find(|tensor| tensor.name == name);
                let tensor = tensor.unwrap_or_else(|| panic!("{what}: no {name}"));
                let difference = compare(&format!("{what}: {name}"), tensor, expected);
                // A level is at most a hundredth in the units of a tower.
                let most = 2e-5 + f32::from(case.levels) * 0.01;
                assert!(difference < most, "{what}: {name} differs by {difference}");
            }
            assert_eq!(runs(&prepared, &tokenizer), expected.placeholders, "{what}");
        }
    }
}

#[test]
fn damaged_pictures_are_refused() {
    let refused = |what: &str, bytes: &[u8]| {
        let read = Image::from_bytes(bytes).and_then(|image| decode(&image));
        match read.map(|pixels| pixels.extent()) {
            Err(Error::Image { reason }) => assert!(!reason.is_empty(), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    };
    refused("nothing", b"");
    refused("a text", b"a picture of a cat");
    let files = PictureFile::all();
    // Half of the file with several frames has the first frame.
    for file in files.iter().filter(|file| file.0 != "gif of two frames") {
        let bytes = file.bytes();
        refused(&file.0, &bytes[..bytes.len() / 2]);
        refused(&file.0, &bytes[..20]);
    }
    // A GIF that says it has 65,535 x 65,535 pixels costs nothing.
    let mut bomb = files.iter().find(|file| file.0 == "gif").unwrap().bytes();
    bomb[6..10].fill(0xff);
    let error = Image::from_bytes(bomb).unwrap_err().to_string();
    assert!(error.starts_with("65535 x 65535 pixels are more than"), "{error}");
    for (width, bytes) in [(0, 0), (0, 3), (2, 3), (1, 0)] {
        assert!(matches!(Image::from_rgb(width, vec![0; bytes]), Err(Error::Image { .. })));
    }
}

#[test]
fn clips_have_frames_of_one_size() {
    let frame = |width: u32| Image::from_rgb(width, vec![7; 6]).unwrap();
    let clip = Video::from_frames(vec![frame(1), frame(1)], Some(2.0)).unwrap();
    assert_eq!((clip.frames().len(), clip.fps()), (2, Some(2.0)));
    for (frames, fps) in
        [(vec![], None), (vec![frame(1), frame(2)], None), (vec![frame(1)], Some(0.0))]
    {
        assert!(Video::from_frames(frames, fps).is_err());
    }
    let gif = PictureFile::all().into_iter().find(|file| file.0 == "gif of two frames").unwrap();
    assert_eq!(Video::from_gif(&gif.bytes()).unwrap().frames().len(), 2);
    let png = PictureFile::all()[0].bytes();
    assert!(matches!(Video::from_gif(&png), Err(Error::Image { .. })));
}

#[test]
fn pictures_of_every_kind_of_file_are_read_as_pillow_reads_them() {
    for file in PictureFile::all() {
        let bytes = file.bytes();
        let PictureFile(name, _, [width, height], levels, tolerance) = file;
        let image = Image::from_bytes(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([image.width(), image.height()], [width, height], "{name}");
        let pixels = decode(&image).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!([pixels.width as u32, pixels.height as u32], [width, height], "{name}");
        let pairs = pixels.rgb.iter().step_by(pixels.rgb.len().div_ceil(60)).zip(&levels);
        for (level, expected) in pairs {
            let difference = (i32::from(*level) - i32::from(*expected)).abs();
            assert!(difference <= tolerance, "{name}: {level} instead of {expected}");
        }
    }
}
