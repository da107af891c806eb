//! Files that are a formula, so that gigabytes of them need no memory, and repositories of them.

use crate::{Fixture, on_engine};
use mynah::{DEMO, Files};
use serde_json::{Map, Value as Json, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    ops::Range,
    path::Path,
    sync::{Arc, LazyLock},
};

/// A prime, so that no two pieces of a file at multiples of a power of two are alike.
const PERIOD: u64 = 1_048_573;

static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..PERIOD).map(|_| next()).collect()
});

/// What a file holds: a beginning, and then a formula of the position.
#[derive(Clone)]
pub struct Content {
    head: Arc<[u8]>,
    size: u64,
    seed: u64,
}

impl Content {
    /// The bytes themselves.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        let head: Arc<[u8]> = bytes.into().into();
        Content { size: head.len() as u64, head, seed: 0 }
    }

    /// So many bytes; another seed gives others.
    pub fn formula(size: u64, seed: u64) -> Self {
        Content { head: Arc::new([]), size, seed }
    }

    /// A checkpoint with tensors of these names, types and shapes; their data is the formula.
    pub fn safetensors(tensors: &[(&str, &str, &[u64])], seed: u64) -> Self {
        let mut header = Map::new();
        let mut end = 0;
        for (name, dtype, shape) in tensors {
            let width = match *dtype {
                "U8" => 1,
                "F16" | "BF16" => 2,
                "F32" | "U32" => 4,
                other => panic!("{other} is no type"),
            };
            let begin = end;
            end += width * shape.iter().product::<u64>();
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]});
            header.insert(name.to_string(), entry);
        }
        let mut text = Json::Object(header).to_string();
        text += &" ".repeat(text.len().next_multiple_of(8) - text.len());
        let head = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        Content { size: head.len() as u64 + end, head: head.into(), seed }
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` with what stands from `offset` on.
    pub fn read_at(&self, mut offset: u64, mut buffer: &mut [u8]) {
        let head = self.head.get(offset as usize..).unwrap_or_default();
        let known = head.len().min(buffer.len());
        buffer[..known].copy_from_slice(&head[..known]);
        buffer = &mut buffer[known..];
        offset += known as u64;
        while !buffer.is_empty() {
            let at = (self.seed.wrapping_mul(7919).wrapping_add(offset) % PERIOD) as usize;
            let count = buffer.len().min(PATTERN.len() - at);
            buffer[..count].copy_from_slice(&PATTERN[at..at + count]);
            buffer = &mut buffer[count..];
            offset += count as u64;
        }
    }

    /// Gives the bytes of a range to `take`, piece by piece, until it wants no more.
    pub fn pieces<E>(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; 1 << 16];
        let mut offset = range.start;
        while offset < range.end {
            let count = buffer.len().min((range.end - offset) as usize);
            self.read_at(offset, &mut buffer[..count]);
            take(offset, &mut buffer[..count])?;
            offset += count as u64;
        }
        Ok(())
    }

    /// All of it.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read_at(0, &mut bytes);
        bytes
    }

    fn hash<D: Digest>(&self, mut hasher: D) -> String {
        let digest = |_, piece: &mut [u8]| -> Result<(), std::convert::Infallible> {
            hasher.update(&*piece);
            Ok(())
        };
        let Ok(()) = self.pieces(0..self.size, digest);
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The name that git gives it.
    pub fn git_sha1(&self) -> String {
        self.hash(Sha1::new_with_prefix(format!("blob {}\0", self.size)))
    }

    /// The name that LFS gives it.
    pub fn sha256(&self) -> String {
        self.hash(Sha256::new())
    }

    /// Whether a file holds just this.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_in(&self, path: &Path) -> io::Result<bool> {
        let mut file = std::fs::File::open(path)?;
        if file.metadata()?.len() != self.size {
            return Ok(false);
        }
        let mut found = vec![0; 1 << 16];
        let mut same = true;
        self.pieces(0..self.size, |_, piece| {
            file.read_exact(&mut found[..piece.len()])?;
            same &= found[..piece.len()] == *piece;
            io::Result::Ok(())
        })?;
        Ok(same)
    }
}

/// A file of a repository, and what the hub says of it.
#[derive(Clone)]
pub struct File {
    /// What it holds.
    pub content: Content,
    /// Whether it is large: kept by the second host, and named by its SHA-256.
    pub lfs: bool,
    /// The size that is listed.
    pub size: u64,
    /// The hash that is listed.
    pub id: String,
}

/// The files of one commit.
#[derive(Clone, Default)]
pub struct Repository {
    /// By name.
    pub files: BTreeMap<String, File>,
    /// Whether a licence must be accepted.
    pub gated: bool,
    /// The token without which it is not shown.
    pub token: Option<String>,
    /// Whether the list leaves out sizes and hashes, as mirrors do; the files' headers have them.
    pub is_bare: bool,
}

impl Repository {
    /// The demo model.
    pub fn demo() -> Self {
        let Files::Embedded(files) = DEMO else { unreachable!("the demo model is embedded") };
        files.iter().fold(Repository::default(), |repository, (name, bytes)| {
            if name.ends_with(".safetensors") {
                repository.with_large(name, Content::bytes(*bytes))
            } else {
                repository.with(name, *bytes)
            }
        })
    }

    /// A LLaVA of random weights, with a tokenizer of single characters.
    pub fn vision() -> Self {
        let (_, fixture) = Fixture::all().into_iter().find(|(name, _)| name == "llava").unwrap();
        let case = fixture.cases[0].clone();
        let number = |path: &str| case.config.pointer(path).and_then(Json::as_u64).unwrap();
        let (image, side) = (number("/image_token_index"), number("/vision_config/image_size"));
        let config = case.config.to_string();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        on_engine(move || case.write(&path)).unwrap();
        let weights = fs::read(folder.path().join("model.safetensors")).unwrap();

        let characters = (' '..='~').take(image as usize);
        let vocabulary: Map<String, Json> =
            characters.enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [{"id": image, "content": "<image>", "special": true,
                "normalized": false, "single_word": false, "lstrip": false, "rstrip": false}],
            "pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated",
                "invert": false},
            "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": " "},
        });
        let template = "{% for message in messages %}{{ message.role }}: \
            {% for part in message.content %}\
            {% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}\
            {% endfor %} {% endfor %}assistant: ";
        let processor = json!({
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        });
        Repository::default()
            .with("config.json", config)
            .with_large("model.safetensors", Content::bytes(weights))
            .with("tokenizer.json", tokenizer.to_string())
            .with("tokenizer_config.json", json!({"chat_template": template}).to_string())
            .with("preprocessor_config.json", processor.to_string())
    }

    /// With one more small file.
    pub fn with(self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        let content = Content::bytes(content);
        let (size, id) = (content.size(), content.git_sha1());
        self.and(name, File { content, lfs: false, size, id })
    }

    /// With one more large file.
    pub fn with_large(self, name: &str, content: Content) -> Self {
        let (size, id) = (content.size(), content.sha256());
        self.and(name, File { content, lfs: true, size, id })
    }

    fn and(mut self, name: &str, file: File) -> Self {
        self.files.insert(name.into(), file);
        self
    }

    /// The name that git would give this state of it.
    pub fn commit(&self) -> String {
        let names = self.files.iter().map(|(name, file)| format!("{name} {}\n", file.id));
        Content::bytes(names.collect::<String>()).git_sha1()
    }
}
