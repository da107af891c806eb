use super::{Audio, AudioFile, MonoReader, Resampler};
use crate::error::Error;
use std::{collections::BTreeMap, fs, path::PathBuf};

fn resampled(samples: &[f32], from: u32, to: u32, block: usize) -> Vec<f32> {
    let mut resampler = Resampler::new(from, to).unwrap();
    let mut out = Vec::new();
    samples.chunks(block).for_each(|block| resampler.push(block, &mut out));
    resampler.finish(&mut out);
    out
}

#[test]
fn resampling_gives_the_references_samples_in_blocks_of_any_length() {
    let wave = |i: u16| (0.3 * f32::from(i)).sin() + 0.25 * (1.7 * f32::from(i)).cos();
    let samples: Vec<f32> = (0..200).map(wave).collect();
    // The first two samples, the middle one and the last one, from `scipy.signal.resample_poly`.
    for (from, to, length, expected) in [
        (44_100, 16_000, 73, [0.207_058, 0.683_572, -0.996_976, 0.171_339]),
        (8_000, 16_000, 400, [0.253_973, 0.271_048, -0.753_533, 0.144_155_5]),
        (48_000, 44_100, 184, [0.259_926, 0.248_962, -0.772_527, 0.134_664]),
    ] {
        for block in [1, 7, 200] {
            let found = resampled(&samples, from, to, block);
            assert_eq!(found.len(), length);
            for (at, expected) in [0, 1, length / 2, length - 1].into_iter().zip(expected) {
                let found = found[at];
                assert!((found - expected).abs() < 2e-6, "{from} {to} {at}: {found}");
            }
        }
    }
    assert_eq!(resampled(&samples, 16_000, 16_000, 9), samples);
    assert!(resampled(&[], 44_100, 16_000, 1).is_empty());
    assert_eq!(resampled(&[0.5], 44_100, 16_000, 1).len(), 1);
}

#[test]
fn rates_that_no_device_has_are_refused() {
    for rate in [0, 1, 999, 1_000_000, u32::MAX] {
        let refused = Resampler::new(rate, 16_000).err().unwrap().to_string();
        assert!(refused.contains("resample the audio first"), "{refused}");
    }
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/audio").join(name)
}

/// The tones of the files: 440 Hz at 0.5 on the left, 880 Hz at 0.25 on the right.
fn tone(frame: usize) -> [f32; 2] {
    let angle = std::f64::consts::TAU * 440.0 * frame as f64 / 16_000.0;
    [(0.5 * angle.sin()) as f32, (0.25 * (2.0 * angle).sin()) as f32]
}

#[test]
fn exact_formats_are_decoded() {
    // The largest difference: an encoder may round down.
    for (name, frames, tolerance) in [
        ("tone-16.flac", 3200, 1.0 / 32768.0),
        ("tone-24.wav", 400, 2e-7),
        ("tone-8.wav", 400, 1.0 / 128.0),
    ] {
        let audio = Audio::read(fixture(name)).unwrap();
        assert_eq!((audio.channels, audio.sample_rate), (2, 16_000), "{name}");
        assert_eq!(audio.samples.len(), 2 * frames, "{name}");
        for (frame, found) in audio.samples.chunks(2).enumerate() {
            let close = found.iter().zip(tone(frame)).all(|(a, b)| (a - b).abs() <= tolerance);
            assert!(close, "{name} {frame}: {found:?} instead of {:?}", tone(frame));
        }
    }
}

#[test]
fn lossy_formats_are_decoded_as_ffmpeg_does() {
    #[derive(serde::Deserialize)]
    struct Decoded {
        every: usize,
        files: BTreeMap<String, Vec<[f32; 2]>>,
    }
    let decoded = fs::read_to_string(fixture("decoded.json")).unwrap();
    let decoded: Decoded = serde_json::from_str(&decoded).unwrap();
    for (name, expected) in decoded.files {
        let audio = Audio::read(fixture(&name)).unwrap();
        assert_eq!((audio.channels, audio.sample_rate), (2, 16_000), "{name}");
        // What an edit list of MP4 cuts off is kept: the frame in which an encoder begins.
        let begin = if name.ends_with(".m4a") { 1024 } else { 0 };
        for (i, expected) in expected.into_iter().enumerate() {
            let frame = begin + i * decoded.every;
            let found = &audio.samples[2 * frame..][..2];
            let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4);
            assert!(close, "{name} {frame}: {found:?} instead of {expected:?}");
        }
    }
}

#[test]
fn a_written_file_is_read_again_as_one_channel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.wav");
    let samples: Vec<f32> = (0..5000).flat_map(tone).collect();
    let audio = Audio { samples, channels: 2, sample_rate: 16_000 };
    audio.write_wav(&path).unwrap();
    assert_eq!(Audio::read(&path).unwrap(), audio);
    let file = AudioFile::open(&path).unwrap();
    assert_eq!(file.seconds(), Some(5000.0 / 16_000.0));
    let (mut mono, mut reader) = (Vec::new(), MonoReader::new(file, 16_000).unwrap());
    while reader.read(&mut mono).unwrap() {}
    assert_eq!(mono, audio.to_mono(16_000).unwrap());
    assert_eq!(mono[7], (tone(7)[0] + tone(7)[1]) / 2.0);
    // What is left of a file that was cut off is read.
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let rest = Audio::read(&path).unwrap().samples;
    assert!(rest.len() > 4000 && rest == audio.samples[..rest.len()]);
}

#[test]
fn damaged_files_and_samples_are_named() {
    let refused = |bytes: &[u8]| AudioFile::from_bytes(bytes.to_vec()).err().unwrap();
    for bytes in [&b""[..], b"RIFF", b"not audio at all, but text of some length", &[0; 4096]] {
        assert!(matches!(refused(bytes), Error::Audio { .. }));
    }
    assert!(matches!(AudioFile::open("no such file"), Err(Error::Io { .. })));
    assert!(matches!(AudioFile::open("."), Err(Error::Io { .. })));
    let nan = Audio { samples: vec![0.0, 0.0, 0.0, f32::NAN], channels: 2, sample_rate: 8_000 };
    let refused = nan.to_mono(16_000).unwrap_err().to_string();
    assert_eq!(refused, "the audio: sample 1 is not a number; save the audio again");
    // Any prefix of a file gives samples or an error.
    for name in ["tone-16.flac", "tone-24.wav", "tone.ogg", "tone.mp3", "tone.m4a"] {
        let bytes = fs::read(fixture(name)).unwrap();
        for length in (0..bytes.len()).step_by(97) {
            let Ok(mut file) = AudioFile::from_bytes(bytes[..length].to_vec()) else { continue };
            while let Ok(Some(_)) = file.next_block() {}
        }
    }
}
