//! Events of a generation, packed into one buffer.
//!
//! uniffi converts records field by field, which costs several times as much as the rest of an
//! event's way; a buffer of bytes crosses with one copy. The buffer holds records in their order:
//!
//! | bytes | |
//! |---|---|
//! | 1 | the kind of the record |
//! | 4 | the length of its payload in bytes |
//! | … | the payload |
//!
//! | kind | event | payload |
//! |---|---|---|
//! | 1 | prefill progress | u64 tokens computed, u64 tokens of the prompt |
//! | 2 | token | u32 id, f32 log-probability before any filter, u32 bytes of text, u32 candidates, the text that the token completes, then u32 id and f32 log-probability of each candidate, most likely first |
//! | 3 | text without a token | the text |
//! | 4 | reasoning text | the text |
//! | 5 | tool call | three texts: the id, the name, the arguments as JSON |
//! | 6 | audio | reserved |
//! | 7 | a part of the arguments of a tool call | u32 number of calls before it, then two texts: the name of the tool, the next part of the JSON of the arguments |
//! | 8 | rejected tool call | three texts: the name of the tool or nothing, the text of the model, the reason |
//! | 255 | finished | u8 reason (1 stop, 2 length, 3 cancelled; 0 another), u64 prompt tokens, u64 cached tokens, u64 dropped messages, u64 generated tokens, u64 peak memory in bytes, f64 seconds to the first token, f64 prefill tokens per second, f64 generated tokens per second |
//!
//! Integers are unsigned, numbers are little endian, text is UTF-8; one of several texts follows its
//! length, a u32. A reader skips records of unknown
//! kinds and the bytes of a payload after those that it knows.

use mynah::{Event, FinishReason, Summary, Token};

/// Packs events.
#[derive(Default)]
pub(crate) struct EventBuffer(Vec<u8>);

impl EventBuffer {
    pub fn push(&mut self, event: &Event) {
        match event {
            Event::Prefill { done, total } => self.record(1, |payload| {
                payload.extend((*done as u64).to_le_bytes());
                payload.extend((*total as u64).to_le_bytes());
            }),
            Event::Token(token) => self.record(2, |payload| pack_token(payload, token)),
            Event::Text(text) => self.record(3, |payload| payload.extend(text.as_bytes())),
            Event::Reasoning(text) => self.record(4, |payload| payload.extend(text.as_bytes())),
            Event::ToolCall(call) => self.record(5, |payload| {
                let arguments = serde_json::Value::Object(call.arguments.clone()).to_string();
                pack_texts(payload, &[&call.id, &call.name, &arguments]);
            }),
            Event::ToolCallDelta(delta) => self.record(7, |payload| {
                payload.extend((delta.index as u32).to_le_bytes());
                pack_texts(payload, &[&delta.name, &delta.arguments]);
            }),
            Event::RejectedToolCall(call) => self.record(8, |payload| {
                let name = call.name.as_deref().unwrap_or_default();
                pack_texts(payload, &[name, &call.raw, &call.reason]);
            }),
            Event::Finished(summary) => {
                self.record(255, |payload| pack_summary(payload, summary));
            }
            // The core's events grow; a kind without a record is nothing that readers know.
            _ => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn record(&mut self, kind: u8, pack: impl FnOnce(&mut Vec<u8>)) {
        self.0.push(kind);
        let length = self.0.len();
        self.0.extend([0; 4]);
        let start = self.0.len();
        pack(&mut self.0);
        let payload = (self.0.len() - start) as u32;
        self.0[length..start].copy_from_slice(&payload.to_le_bytes());
    }
}

fn pack_texts(payload: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        payload.extend((text.len() as u32).to_le_bytes());
        payload.extend(text.as_bytes());
    }
}

fn pack_token(payload: &mut Vec<u8>, token: &Token) {
    payload.extend(token.id.to_le_bytes());
    payload.extend(token.logprob.to_le_bytes());
    payload.extend((token.text.len() as u32).to_le_bytes());
    payload.extend((token.top.len() as u32).to_le_bytes());
    payload.extend(token.text.as_bytes());
    for (id, logprob) in &token.top {
        payload.extend(id.to_le_bytes());
        payload.extend(logprob.to_le_bytes());
    }
}

fn pack_summary(payload: &mut Vec<u8>, summary: &Summary) {
    payload.push(match summary.finish_reason {
        FinishReason::Stop => 1,
        FinishReason::Length => 2,
        FinishReason::Cancelled => 3,
        // Reasons of later versions of the core.
        _ => 0,
    });
    let counts = [
        summary.prompt_tokens,
        summary.cached_tokens,
        summary.dropped_messages,
        summary.generated_tokens,
        summary.peak_memory,
    ];
    payload.extend(counts.into_iter().flat_map(|count| (count as u64).to_le_bytes()));
    let seconds = summary.time_to_first_token.as_secs_f64();
    let rates = [seconds, summary.prefill_rate, summary.decode_rate];
    payload.extend(rates.into_iter().flat_map(f64::to_le_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn events_are_packed_as_documented() {
        let mut buffer = EventBuffer::default();
        buffer.push(&Event::Prefill { done: 3, total: 4 });
        let mut token = Token::new(0x0102_0304, 1.0, "é");
        token.top = vec![(7, -0.5), (0x0102_0304, f32::NEG_INFINITY)];
        buffer.push(&Event::Token(token));
        buffer.push(&Event::Token(Token::new(7, -2.0, "")));
        let expected: [&[u8]; 15] = [
            &[1, 16, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
            &[2, 34, 0, 0, 0],
            &[4, 3, 2, 1],
            &[0, 0, 0x80, 0x3f],
            &[2, 0, 0, 0],
            &[2, 0, 0, 0],
            &[0xc3, 0xa9],
            &[7, 0, 0, 0],
            &[0, 0, 0, 0xbf],
            &[4, 3, 2, 1],
            &[0, 0, 0x80, 0xff],
            &[2, 16, 0, 0, 0],
            &[7, 0, 0, 0, 0, 0, 0, 0xc0],
            &[0; 8],
        ];
        assert_eq!(buffer.into_bytes(), expected.concat());
    }

    #[test]
    fn thoughts_and_calls_are_packed_as_documented() {
        let mut buffer = EventBuffer::default();
        buffer.push(&Event::Reasoning("é".into()));
        let arguments = serde_json::Map::from_iter([("a".to_string(), 1.into())]);
        buffer.push(&Event::ToolCall(mynah::ToolCall::new("i", "nm", arguments)));
        let expected: [&[u8]; 6] = [
            &[4, 2, 0, 0, 0, 0xc3, 0xa9],
            &[5, 22, 0, 0, 0],
            &[1, 0, 0, 0, b'i'],
            &[2, 0, 0, 0, b'n', b'm'],
            &[7, 0, 0, 0],
            b"{\"a\":1}",
        ];
        assert_eq!(buffer.into_bytes(), expected.concat());
    }

    #[test]
    fn the_last_text_comes_before_the_summary() {
        let mut buffer = EventBuffer::default();
        buffer.push(&Event::Text("é".into()));
        let mut summary = Summary::new(FinishReason::Length);
        summary.prompt_tokens = 1;
        summary.cached_tokens = 2;
        summary.dropped_messages = 3;
        summary.generated_tokens = 4;
        summary.peak_memory = 5;
        summary.time_to_first_token = Duration::from_millis(500);
        (summary.prefill_rate, summary.decode_rate) = (1.0, 2.0);
        buffer.push(&Event::Finished(summary));
        let mut expected = vec![3, 2, 0, 0, 0, 0xc3, 0xa9, 255, 65, 0, 0, 0, 2];
        expected.extend((1..=5_u64).flat_map(u64::to_le_bytes));
        expected.extend([0.5_f64, 1.0, 2.0].into_iter().flat_map(f64::to_le_bytes));
        assert_eq!(buffer.into_bytes(), expected);
    }
}
