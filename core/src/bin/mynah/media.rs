//! The pictures and clips of a prompt, and messages that name files.

use crate::Failure;
use clap::Args;
use mynah::{Attachment, Content, Error, Image, Message, Video};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{
    fs,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    process,
};

/// The pictures and clips of a prompt.
#[derive(Args)]
pub struct Media {
    /// A picture: a JPEG, PNG, WebP or GIF file; can be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A clip: a GIF, a folder of pictures in the order of their names, or a movie that ffmpeg reads; can
    /// be repeated
    #[arg(long, value_name = "FILE")]
    video: Vec<PathBuf>,
}

impl Media {
    /// The pictures in the order of the arguments, then the clips.
    pub fn attachments(&self) -> Result<Vec<Attachment>, Failure> {
        let images = self.image.iter().map(|path| Ok(Image::open(path)?.into()));
        let videos = self.video.iter().map(|path| Ok(video(path)?.into()));
        images.chain(videos).collect()
    }
}

/// The messages in a file of JSON. A part `{"type": "image", "image": PATH}` is the picture in that file,
/// and likewise a `video`.
pub fn messages(path: &Path) -> Result<Vec<Message>, Failure> {
    let mut messages: Vec<Message> = read(path)?;
    for message in &mut messages {
        let Some(Content::Parts(parts)) = &mut message.content else { continue };
        for part in parts {
            let Some(Value::String(file)) = part.other.get(&part.kind) else { continue };
            part.media = match part.kind.as_str() {
                "image" => Some(Image::open(file)?.into()),
                "video" => Some(video(Path::new(file))?.into()),
                _ => continue,
            };
            part.other.remove(&part.kind);
        }
    }
    Ok(messages)
}

/// The frames of each second of a movie that are read.
const MOVIE_FPS: f64 = 4.0;
/// The most bytes of the frames of a movie.
const MOST_BYTES: usize = 1 << 30;

/// A clip in a file or a folder. A movie is decoded by ffmpeg, if that is installed.
fn video(path: &Path) -> Result<Video, Failure> {
    let is_gif = fs::File::open(path).is_ok_and(|file| {
        let mut start = Vec::new();
        file.take(4).read_to_end(&mut start).is_ok_and(|_| start == b"GIF8")
    });
    if path.is_dir() || is_gif || !path.exists() {
        return Ok(Video::open(path)?);
    }
    let started = process::Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-i"])
        .arg(path)
        .args(["-vf", &format!("fps={MOVIE_FPS}"), "-f", "image2pipe", "-c:v", "ppm", "-"])
        .stdout(process::Stdio::piped())
        .spawn();
    let mut ffmpeg = started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::Usage(
            "reading a movie needs ffmpeg, which is not installed; install it, or pass a folder of frames",
        ),
        _ => error.into(),
    })?;
    let frames = ffmpeg.stdout.take().map(|output| frames(io::BufReader::new(output)));
    // It ends by itself once nothing reads its output.
    let status = ffmpeg.wait()?;
    let frames = frames.transpose()?.unwrap_or_default();
    if !status.success() {
        let reason = format!("{}: ffmpeg could not read the movie", path.display());
        return Err(Error::Image { reason }.into());
    }
    Ok(Video::from_frames(frames, Some(MOVIE_FPS))?)
}

/// Pictures in the format PPM, one after the other.
fn frames(mut output: impl BufRead) -> Result<Vec<Image>, Failure> {
    let (mut frames, mut bytes) = (Vec::new(), 0);
    loop {
        // The format, the size, and the largest level.
        let mut header = [const { String::new() }; 3];
        for line in &mut header {
            output.read_line(line)?;
        }
        let mut size = header[1].split_whitespace().map(str::parse::<u32>);
        let (Some(Ok(width)), Some(Ok(height))) = (size.next(), size.next()) else {
            return Ok(frames);
        };
        let length = 3 * width as usize * height as usize;
        bytes += length;
        if bytes > MOST_BYTES {
            let reason = "the frames of the movie take more than 1 GB; make it shorter or smaller";
            return Err(Error::Image { reason: reason.into() }.into());
        }
        let mut rgb = vec![0; length];
        output.read_exact(&mut rgb)?;
        frames.push(Image::from_rgb(width, rgb)?);
    }
}

/// The value of a file of JSON.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let bytes = fs::read(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        let file = path.display().to_string();
        Error::Config { file, field: String::new(), reason: error.to_string() }.into()
    })
}

/// A token id. A negative one is what some models write for the place of a picture.
pub fn token_id(argument: &str) -> Result<u32, String> {
    let id = argument.trim().parse::<i64>().ok();
    let id = id.and_then(|id| match id < 0 {
        true => i32::try_from(id).ok().map(i32::cast_unsigned),
        false => u32::try_from(id).ok(),
    });
    id.ok_or_else(|| format!("`{argument}` is no token id"))
}
