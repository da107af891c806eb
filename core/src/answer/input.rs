//! The text of an answer on its way to the readers of its parts.

/// The text that was not read yet.
#[derive(Debug, Default)]
pub(super) struct Input {
    text: String,
    at: usize,
    ended: bool,
    /// What was taken since the block of calls began.
    pub taken: String,
}

impl Input {
    pub fn push(&mut self, text: &str) {
        self.text.drain(..self.at);
        self.at = 0;
        self.text += text;
    }

    pub fn end(&mut self) {
        self.ended = true;
    }

    pub fn ended(&self) -> bool {
        self.ended
    }

    pub fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    pub fn take(&mut self, length: usize) -> String {
        let text = self.text[self.at..self.at + length].to_string();
        self.at += length;
        self.taken += &text;
        text
    }

    /// Gives back the end of what was taken.
    pub fn put_back(&mut self, length: usize) {
        self.at -= length;
        self.taken.truncate(self.taken.len() - length);
    }

    pub fn skip_space(&mut self) {
        let rest = self.rest();
        let length = rest.len() - rest.trim_start().len();
        self.take(length);
    }

    /// What was taken, which then is forgotten.
    pub fn taken(&mut self) -> String {
        std::mem::take(&mut self.taken)
    }
}

/// What reading a part of a call led to.
#[derive(Debug)]
pub(super) enum Progress {
    /// More text is needed.
    More,
    /// There may be more to read.
    Again,
    /// The call is complete.
    Complete,
    /// What was read is no call, with the reason.
    Broken(String),
}
