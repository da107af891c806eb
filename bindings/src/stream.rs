//! A running generation.

use crate::{error::MynahError, events::EventBuffer};
use mynah::{Canceller, Event, Generation};
use std::sync::Arc;
use tokio::sync::Mutex;

/// A running generation. It computes a few tokens ahead of its reader and then waits. Dropping it
/// stops the generation.
#[derive(uniffi::Object)]
pub struct GenerationStream {
    reader: Mutex<Reader>,
    canceller: Canceller,
    prompt: Vec<u32>,
}

struct Reader {
    generation: Generation,
    /// An error that came after the last buffer of events.
    error: Option<mynah::Error>,
    /// The text that no token carried.
    rest: String,
}

impl Reader {
    fn pack(
        &mut self,
        events: impl IntoIterator<Item = mynah::Result<Event>>,
    ) -> Result<Vec<u8>, MynahError> {
        let mut buffer = EventBuffer::default();
        for event in events {
            match event {
                Ok(event) => buffer.push(&event),
                Err(error) => {
                    self.error = Some(error);
                    break;
                }
            }
        }
        match self.error.take_if(|_| buffer.is_empty()) {
            Some(error) => Err(error.into()),
            None => Ok(buffer.into_bytes()),
        }
    }
}

impl GenerationStream {
    pub(crate) fn new(generation: Generation) -> Arc<Self> {
        let canceller = generation.canceller();
        let prompt = generation.prompt_tokens().to_vec();
        let reader = Mutex::new(Reader { generation, error: None, rest: String::new() });
        Arc::new(GenerationStream { reader, canceller, prompt })
    }
}

#[uniffi::export]
impl GenerationStream {
    /// The tokens of the prompt.
    pub fn prompt_tokens(&self) -> Vec<u32> {
        self.prompt.clone()
    }

    /// At most `max` events that need no waiting, packed as records of a kind byte, the length of the
    /// payload as a little-endian u32, and the payload. The buffer is empty when no event is
    /// waiting, after the end, after an error, and while another task reads.
    ///
    /// # Errors
    /// The error that stopped the generation, after all events before it.
    pub fn ready(&self, max: u32) -> Result<Vec<u8>, MynahError> {
        let Ok(mut reader) = self.reader.try_lock() else { return Ok(Vec::new()) };
        let events = reader.generation.ready(max as usize);
        reader.pack(events)
    }

    /// Waits for the next event and returns it with those that need no waiting, at most `max` in
    /// all, packed as `ready` packs them. The buffer is empty after the end and after an error.
    ///
    /// # Errors
    /// The error that stopped the generation, after all events before it.
    pub async fn next(&self, max: u32) -> Result<Vec<u8>, MynahError> {
        let mut reader = self.reader.lock().await;
        let mut first = reader.generation.next().await;
        // An empty batch would be the end.
        while let Some(Ok(Event::Text(text))) = &first {
            reader.rest += text;
            first = reader.generation.next().await;
        }
        let rest = reader.generation.ready(max.saturating_sub(1) as usize);
        reader.pack(first.into_iter().chain(rest))
    }

    /// Ends the generation after the current decode step; the stream still yields its last event.
    pub fn cancel(&self) {
        self.canceller.cancel();
    }
}
