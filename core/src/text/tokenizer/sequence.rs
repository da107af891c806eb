//! Texts and pairs of texts for models that read them whole: truncated to a length, with the special
//! tokens of the model around them.

use crate::error::Result;
use crate::text::tokenizer::{Tokenizer, catch_panics};
use tokenizers::PostProcessor as _;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

/// The tokens of a text or of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EncodedText {
    /// Their ids.
    pub ids: Vec<u32>,
    /// For each token the number that the model's post-processor gives its text.
    pub types: Vec<u32>,
}

impl Tokenizer {
    /// Encodes a text, or a pair of texts, with the special tokens of the model. Of more than `longest`
    /// tokens the last ones are left out, of a pair those of the longer text first, as transformers
    /// truncates with `longest_first`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) when the vocabulary has no tokens for the text.
    pub(crate) fn encode_sequence(
        &self,
        text: &str,
        second: Option<&str>,
        longest: Option<usize>,
    ) -> Result<EncodedText> {
        catch_panics(self.0.file, || {
            let backend = &self.0.backend;
            let mut first = backend.encode_fast(text, false)?;
            let mut second = second.map(|text| backend.encode_fast(text, false)).transpose()?;
            if let Some(longest) = longest {
                let added = backend
                    .get_post_processor()
                    .map_or(0, |processor| processor.added_tokens(second.is_some()));
                let parameters = TruncationParams {
                    max_length: longest.saturating_sub(added),
                    strategy: TruncationStrategy::LongestFirst,
                    stride: 0,
                    direction: TruncationDirection::Right,
                };
                (first, second) = truncate_encodings(first, second, &parameters)?;
            }
            let encoding = backend.post_process(first, second, true)?;
            let (ids, types) = (encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec());
            Ok(EncodedText { ids, types })
        })
    }
}
