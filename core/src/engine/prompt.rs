//! The prompt of a request on the engine thread. Text is embedded chunk by chunk, so that a long
//! prompt takes no memory for embeddings; a prompt with media is embedded once, as a whole, and then
//! sliced.

use crate::{
    error::Result,
    layers::embedded::{Embedded, Key},
    models::language::{Input, LanguageModel, Media},
};
use mlx_rs::Array;

/// A prompt whose chunks can be computed one after the other.
pub struct EnginePrompt {
    /// One id a position, with the placeholders that the model has expanded.
    pub tokens: Vec<u32>,
    /// What stands at each position.
    pub keys: Vec<Key>,
    /// The part with media, from the start; none for text.
    embedded: Option<Embedded>,
}

impl EnginePrompt {
    /// A prompt of tokens and of the media that its placeholders stand for.
    ///
    /// # Errors
    /// Those of [`LanguageModel::prompt`].
    pub fn new(network: &dyn LanguageModel, tokens: Vec<u32>, media: &[Media]) -> Result<Self> {
        if media.is_empty() {
            let keys = tokens.iter().copied().map(Key::token).collect();
            return Ok(EnginePrompt { tokens, keys, embedded: None });
        }
        let input = Input { tokens, media: media.to_vec() };
        let embedded = network.prompt(&input)?;
        let keys = embedded.keys()?;
        // A model may hide the ids of placeholders from its layers.
        let is_expanded = input.tokens.len() == keys.len();
        let tokens = if is_expanded { input.tokens } else { embedded.tokens()? };
        Ok(EnginePrompt { tokens, keys, embedded: Some(embedded) })
    }

    /// Appends tokens of text.
    pub(super) fn append(&mut self, tokens: &[u32]) {
        self.tokens.extend(tokens);
        self.keys.extend(tokens.iter().copied().map(Key::token));
    }

    /// The part that is embedded already, if `from` is in it.
    fn embedded_at(&self, from: usize) -> Option<&Embedded> {
        self.embedded.as_ref().filter(|embedded| from < embedded.length())
    }

    /// Where a chunk from `from` on may end, at best at `to`; see [`Embedded::border`].
    pub fn border(&self, from: usize, to: usize) -> usize {
        self.embedded_at(from)
            .map_or(to, |embedded| embedded.border(from, to.min(embedded.length())))
    }

    /// The last position up to `position` that cuts no span: a prefix that ends there can be reused.
    pub fn whole_prefix(&self, position: usize) -> usize {
        let spans = self.embedded.iter().flat_map(|embedded| &embedded.spans);
        let cut = spans.into_iter().find(|span| span.start < position && position < span.end);
        cut.map_or(position, |span| span.start)
    }

    /// Frees the embeddings once all chunks are computed.
    pub fn release(&mut self) {
        self.embedded = None;
    }

    /// The embedded positions from `from` on: at best `most` of them, and more where a span is longer.
    ///
    /// # Errors
    /// Those of [`EnginePrompt::chunk`].
    pub fn next_chunk(
        &self,
        network: &dyn LanguageModel,
        from: usize,
        most: usize,
    ) -> Result<Embedded> {
        let to = self.tokens.len().min(from + most);
        self.chunk(network, from, self.border(from, to))
    }

    /// The embedded positions from `from` up to `to`.
    ///
    /// # Errors
    /// Those of [`Embedded::slice`] and [`LanguageModel::embed`].
    pub fn chunk(&self, network: &dyn LanguageModel, from: usize, to: usize) -> Result<Embedded> {
        match self.embedded_at(from) {
            Some(embedded) => embedded.slice(from, to),
            None => {
                network.embed(&Array::from_slice(&self.tokens[from..to], &[1, (to - from) as i32]))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::Reader,
        checkpoint::files::Files,
        engine::{
            Answering, Engine, Event, Request, Summary, block_on,
            engine_model::{EngineModel, Place, find},
            prefix_cache::{PrefixCache, Slot},
        },
        error::Error,
        families::tests::{ENCODED, GRID, PLACEHOLDER, picture, prepared},
        generate::GenerateOptions,
        layers::cache_plan::CachePlan,
    };
    use std::{fs, sync::Arc};

    const WIDTH: i32 = 128;
    const CELLS: usize = GRID[0] * GRID[1];

    /// The demo's weights as a model that reads pictures.
    fn load(folder: &std::path::Path) -> u64 {
        let demo = crate::DEMO;
        for name in ["config.json", "model.safetensors"] {
            fs::write(folder.join(name), demo.read(name).unwrap().unwrap()).unwrap();
        }
        let files = Files::from(folder);
        let mut config = files.json("config.json").unwrap().unwrap();
        config["model_type"] = "test_pictures".into();
        let engine = Engine::get().unwrap();
        let read = move || {
            let mut reading = EngineModel::read(&files, None, Some(&config), |_| {})?;
            loop {
                if let Some(model) = reading()? {
                    let place = Place::new(engine, model);
                    let id = place.id;
                    std::mem::forget(place);
                    return Ok(id);
                }
            }
        };
        block_on(engine.run(read)).unwrap()
    }

    #[derive(Debug)]
    struct Answer {
        tokens: Vec<u32>,
        logprobs: Vec<f32>,
        prefills: Vec<usize>,
        summary: Summary,
    }

    /// Asks the model, in a session if that has a number.
    fn ask(
        model: u64,
        session: Option<u64>,
        (tokens, media): (&[u32], &[u64]),
        prefill_chunk: usize,
    ) -> Result<Answer> {
        let options = GenerateOptions {
            max_tokens: 6,
            ignore_end: true,
            prefill_chunk,
            ..GenerateOptions::default()
        };
        let request = Request {
            engine: Engine::get()?,
            prompt: tokens.to_vec(),
            media: media.iter().map(|hash| prepared(*hash, WIDTH)).collect(),
            marks: Vec::new(),
            dropped_messages: 0,
            options,
            draft: None,
            end_tokens: Vec::new(),
            tokenizer: None,
            answering: Answering { reader: Reader::default(), constraint: None, continues: false },
        };
        let mut generation = request.start(move || {
            let loaded = find(model)?;
            let empty = loaded.prompt_cache(CachePlan::default(), 1 << 20)?;
            let Some(session) = session else { return Ok((loaded, Slot::passing(empty))) };
            let known = loaded.sessions.borrow().get(&session).cloned();
            let slot = known.unwrap_or_else(|| Slot::lasting(empty, Arc::default()));
            loaded.sessions.borrow_mut().insert(session, slot.clone());
            Ok((loaded, slot))
        });
        let (mut tokens, mut logprobs, mut prefills) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match block_on(generation.next()).expect("the end comes before nothing")? {
                Event::Prefill { done, .. } => prefills.push(done),
                Event::Token(token) => {
                    tokens.push(token.id);
                    logprobs.push(token.logprob);
                }
                Event::Finished(summary) => {
                    return Ok(Answer { tokens, logprobs, prefills, summary });
                }
                _ => {}
            }
        }
    }

    fn assert_equal(a: &Answer, b: &Answer) {
        assert_eq!(a.tokens, b.tokens);
        assert_eq!(a.logprobs.len(), b.logprobs.len());
        for (a, b) in a.logprobs.iter().zip(&b.logprobs) {
            assert!((a - b).abs() < 1e-4, "{a} instead of {b}");
        }
    }

    fn differ(a: &Answer, b: &Answer) -> bool {
        a.logprobs.iter().zip(&b.logprobs).any(|(a, b)| (a - b).abs() > 1e-3)
    }

    #[test]
    fn prompts_with_media_are_chunked_and_reused_by_their_content() {
        let folder = tempfile::tempdir().unwrap();
        let model = load(folder.path());
        let text: Vec<u32> = (10..40).collect();
        let prompt = [&text[..], &[PLACEHOLDER, 50, 51], &[PLACEHOLDER], &text[..20]].concat();
        let one = (&prompt[..], &[1, 2][..]);
        let fresh = |media: &[u64]| ask(model, None, (&prompt, media), 512).unwrap();
        let expected = fresh(&[1, 2]);
        let length = prompt.len() - 2 + 2 * CELLS;
        assert_eq!(expected.summary.prompt_tokens, length);
        let spans = [30..30 + CELLS, 32 + CELLS..32 + 2 * CELLS];
        for chunk in [1, 4, 5, 7, 31, 33] {
            let answer = ask(model, None, one, chunk).unwrap();
            assert_equal(&answer, &expected);
            assert!(answer.prefills.len() > 1);
            for done in answer.prefills {
                assert!(!spans.iter().any(|span| span.start < done && done < span.end), "{done}");
            }
        }
        // The same prompt again: all but its last position is reused.
        let reused = |media: &[u64]| {
            let answer = ask(model, Some(1), (&prompt, media), 512).unwrap();
            assert_equal(&answer, &fresh(media));
            answer.summary.cached_tokens
        };
        assert_eq!([reused(&[1, 2]), reused(&[1, 2])], [0, length - 1]);
        // Equal ids with other pictures share what comes before the picture that differs.
        assert!(
            differ(&fresh(&[1, 2]), &fresh(&[1, 3])) && differ(&fresh(&[1, 2]), &fresh(&[4, 2]))
        );
        assert_eq!(reused(&[1, 3]), 32 + CELLS);
        assert_eq!(reused(&[4, 2]), 30);
        assert_eq!(reused(&[1, 2]), 30);
        // Another session copies no prefix of another picture either.
        let elsewhere = |session, media: &[u64]| {
            let answer = ask(model, Some(session), (&prompt, media), 512).unwrap();
            assert_equal(&answer, &fresh(media));
            answer.summary.cached_tokens
        };
        assert_eq!([elsewhere(2, &[7, 2]), elsewhere(3, &[1, 2])], [30, length - 1]);
        // Text after pictures has no rotary delta of theirs.
        let plain = [&text[..], &[60, 61, 62]].concat();
        let answer = ask(model, Some(1), (&plain, &[]), 512).unwrap();
        assert_eq!(answer.summary.cached_tokens, 30);
        assert_equal(&answer, &ask(model, None, (&plain, &[]), 512).unwrap());
        // A prompt that ends with a picture computes the whole picture again.
        let ending = (&prompt[..31], &[1][..]);
        let cached = |answer: &Answer| answer.summary.cached_tokens;
        let first = ask(model, Some(1), ending, 512).unwrap();
        let second = ask(model, Some(1), ending, 512).unwrap();
        assert_equal(&second, &first);
        assert_eq!((cached(&first), cached(&second)), (30, 30));
    }

    #[test]
    fn saved_prefix_caches_tell_media_from_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let model = load(folder.path());
        let prompt: Vec<u32> = (10..30).chain([PLACEHOLDER]).chain(60..70).collect();
        let expected = ask(model, Some(5), (&prompt, &[1]), 512).unwrap();
        let path = folder.path().join("session.safetensors");
        let restore = move || {
            let loaded = find(model)?;
            let slot = loaded.sessions.borrow()[&5].clone();
            slot.prefix_cache.borrow_mut().save(&path, "model")?;
            loaded.sessions.borrow_mut().remove(&5);
            for session in [6, 7] {
                let mut restored: PrefixCache =
                    loaded.prompt_cache(CachePlan::default(), 1 << 20)?;
                restored.restore(&path, "model")?;
                let slot = Slot::lasting(restored, Arc::default());
                loaded.sessions.borrow_mut().insert(session, slot);
            }
            Ok(())
        };
        block_on(Engine::get().unwrap().run(restore)).unwrap();
        let same = ask(model, Some(6), (&prompt, &[1]), 512).unwrap();
        assert_equal(&same, &expected);
        assert_eq!(same.summary.cached_tokens, 20 + CELLS + 10 - 1);
        let other = ask(model, Some(7), (&prompt, &[2]), 512).unwrap();
        assert_eq!(other.summary.cached_tokens, 20);
        assert_equal(&other, &ask(model, None, (&prompt, &[2]), 512).unwrap());
    }

    #[test]
    fn a_second_question_about_a_picture_runs_no_tower() {
        const HASH: u64 = 4711;
        let folder = tempfile::tempdir().unwrap();
        let model = load(folder.path());
        let ask = |session, question: u32| {
            let prompt = [1, PLACEHOLDER, question];
            ask(model, session, (&prompt, &[HASH]), 512).unwrap()
        };
        let runs = || ENCODED.lock().unwrap().iter().filter(|hash| **hash == HASH).count();
        let first = ask(Some(20), 5);
        assert_eq!(runs(), 1);
        assert_eq!(ask(Some(20), 6).summary.cached_tokens, 1 + CELLS);
        assert_equal(&ask(None, 5), &first);
        assert_equal(&ask(Some(21), 5), &first);
        assert_eq!(runs(), 1);
        // What the device may have damaged, or memory that the system wants back, is computed again.
        let forget = move || {
            find(model)?.forget_media();
            Ok(())
        };
        block_on(Engine::get().unwrap().run(forget)).unwrap();
        assert_equal(&ask(None, 5), &first);
        assert_eq!(runs(), 2);
    }

    #[test]
    fn models_of_text_refuse_media() {
        let engine = Engine::get().unwrap();
        let build = || {
            let files = crate::DEMO;
            let config = files.json("config.json")?.unwrap();
            let weights = crate::checkpoint::scope::Scope::open(&files, &config)?;
            let model = crate::families::find("llama")?.language(&weights)?;
            Ok(EnginePrompt::new(&*model, vec![1, PLACEHOLDER], &[picture(1, WIDTH)]).err())
        };
        let refused = block_on(engine.run(build)).unwrap();
        assert!(matches!(refused, Some(Error::TextOnly { media: 1 })));
    }
}
