//! The prompt of a model that reads pictures and clips: each marker becomes the placeholders of its medium.

use crate::{
    error::{Error, Result},
    processors::{Marker, Piece, PreparedMedia, Surroundings},
    text::{RenderedText, Tokenizer},
};
use std::{borrow::Cow, ops::Range};

/// The media of a prompt, and how their places are marked.
pub struct Expansion<'a> {
    /// What marks the places of pictures and of clips.
    pub markers: &'a [Marker],
    /// The media, in the order of their places.
    pub media: &'a [PreparedMedia],
    /// What else the processor writes.
    pub surroundings: Surroundings,
    /// The tokenizer; none for a checkpoint that reads token ids only.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// The place of a marker in a prompt.
struct Place {
    range: Range<usize>,
    /// Which marker it is.
    marker: usize,
}

impl Expansion<'_> {
    /// The ids of a text with the placeholders written out. A marker counts only where it is the template's
    /// own or the application's, not where it is part of what a message says. `encode` gets the text in one
    /// part, unless there are placeholders that no text can write.
    ///
    /// # Errors
    /// [`Error::MediaCount`]; [`Error::NoTokenizer`]; those of `encode`.
    pub(crate) fn encode(
        &self,
        prompt: &RenderedText,
        encode: impl Fn(&RenderedText) -> Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer.ok_or(Error::NoTokenizer)?;
        let prompt = &self.with_first(prompt);
        let text = prompt.as_str();
        let is_written = |range: &Range<usize>| prompt.runs(range.clone()).all(|(_, given)| !given);
        let starts = |at: usize| {
            let fits =
                |marker: &Marker| !marker.text.is_empty() && text[at..].starts_with(&marker.text);
            let marker = self.markers.iter().position(fits)?;
            let range = at..at + self.markers[marker].text.len();
            is_written(&range).then_some(Place { range, marker })
        };
        let places = text.char_indices().filter_map(|(at, _)| starts(at));
        let places = self.check(places.collect())?;
        let (mut ids, mut part) = (Vec::new(), RenderedText::default());
        let mut write = |part: &mut RenderedText, pieces: &[Piece]| {
            for piece in pieces {
                match piece.text(tokenizer) {
                    Some(text) => part.push_str(&text, false),
                    None => {
                        let before = std::mem::take(part);
                        if !before.as_str().is_empty() {
                            ids.extend(encode(&before)?);
                        }
                        ids.extend(piece.ids(None)?);
                    }
                }
            }
            Ok::<_, Error>(())
        };
        let start = self.surroundings.start.iter().filter_map(|piece| piece.text(tokenizer));
        if !text.starts_with(&start.collect::<String>()) {
            write(&mut part, &self.surroundings.start)?;
        }
        let mut done = 0;
        for (place, media) in places.into_iter().zip(self.media) {
            part.push_slice(prompt, done..place.start);
            write(&mut part, &media.prepared.placeholders)?;
            done = place.end;
        }
        write(&mut part, &self.surroundings.after_media)?;
        part.push_slice(prompt, done..text.len());
        write(&mut part, &self.surroundings.end)?;
        if !part.as_str().is_empty() {
            ids.extend(encode(&part)?);
        }
        Ok(ids)
    }

    /// The prompt with the processor's first token in its place.
    fn with_first<'p>(&self, prompt: &'p RenderedText) -> Cow<'p, RenderedText> {
        let text = prompt.as_str();
        let missing = self.surroundings.first.as_ref().filter(|first| !text.contains(*first));
        let Some(first) = missing else { return Cow::Borrowed(prompt) };
        let marker = self.markers.first().map_or("", |marker| &marker.text);
        let mut start = 0;
        while !marker.is_empty() && text[start..].starts_with(marker) {
            start += marker.len();
        }
        let mut whole = RenderedText::default();
        whole.push_slice(prompt, 0..start);
        whole.push_str(first, false);
        whole.push_slice(prompt, start..text.len());
        Cow::Owned(whole)
    }

    /// Token ids with the placeholders written out.
    ///
    /// # Errors
    /// [`Error::MediaCount`]; [`Error::NoTokenizer`] when placeholders have text between them.
    pub fn ids(&self, prompt: &[u32]) -> Result<Vec<u32>> {
        let starts = |at: usize| {
            let fits =
                |marker: &Marker| !marker.ids.is_empty() && prompt[at..].starts_with(&marker.ids);
            let marker = self.markers.iter().position(fits)?;
            Some(Place { range: at..at + self.markers[marker].ids.len(), marker })
        };
        let places = self.check((0..prompt.len()).filter_map(starts).collect())?;
        let (mut out, mut done) = (Vec::new(), 0);
        let write = |out: &mut Vec<u32>, pieces: &[Piece]| {
            for piece in pieces {
                out.extend(piece.ids(self.tokenizer)?);
            }
            Ok::<_, Error>(())
        };
        let mut start = Vec::new();
        write(&mut start, &self.surroundings.start)?;
        if !prompt.starts_with(&start) {
            out = start;
        }
        for (place, media) in places.into_iter().zip(self.media) {
            out.extend_from_slice(&prompt[done..place.start]);
            write(&mut out, &media.prepared.placeholders)?;
            done = place.end;
        }
        write(&mut out, &self.surroundings.after_media)?;
        out.extend_from_slice(&prompt[done..]);
        write(&mut out, &self.surroundings.end)?;
        Ok(out)
    }

    /// The places, if there is one of its kind for each of the media, in order.
    fn check(&self, places: Vec<Place>) -> Result<Vec<Range<usize>>> {
        let marker_of = |media: &PreparedMedia| usize::from(media.kind == "video");
        for marker in 0..self.markers.len() {
            let own = |place: &&Place| place.marker == marker;
            let (found, media) = (
                places.iter().filter(own).count(),
                self.media.iter().filter(|media| marker_of(media) == marker).count(),
            );
            if found != media {
                let Marker { text, ids } = &self.markers[marker];
                let marker = if text.is_empty() { format!("{ids:?}") } else { text.clone() };
                return Err(Error::MediaCount { markers: found, media, marker });
            }
        }
        if places.iter().zip(self.media).any(|(place, media)| place.marker != marker_of(media)) {
            let reason =
                "the pictures and clips are in another order than their places in the prompt";
            return Err(Error::Image { reason: reason.into() });
        }
        Ok(places.into_iter().map(|place| place.range).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processors::Prepared;
    use std::sync::Arc;

    fn media(kind: &'static str, id: u32, count: usize) -> PreparedMedia {
        let prepared = Prepared {
            tensors: Vec::new(),
            placeholders: vec![Piece::token(8), Piece::tokens(id, count)],
            soft_tokens: count,
            channel_run: 1,
        };
        PreparedMedia { hash: 0, kind, prepared: Arc::new(prepared) }
    }

    fn expand(
        prompt: &[u32],
        media: &[PreparedMedia],
        surroundings: Surroundings,
    ) -> Result<Vec<u32>> {
        let marker = |ids: &[u32]| Marker { text: String::new(), ids: ids.to_vec() };
        let markers = [marker(&[5]), marker(&[6, 7, 6])];
        Expansion { markers: &markers, media, surroundings, tokenizer: None }.ids(prompt)
    }

    #[test]
    fn markers_become_the_placeholders_of_their_media() {
        let plain = Surroundings::default;
        let both = [media("image", 9, 2), media("video", 10, 3), media("image", 9, 1)];
        let ids = expand(&[1, 5, 6, 7, 6, 2, 5], &both, plain()).unwrap();
        assert_eq!(ids, [1, 8, 9, 9, 8, 10, 10, 10, 2, 8, 9]);
        let counted = |prompt: &[u32], media: &[PreparedMedia]| match expand(prompt, media, plain())
            .unwrap_err()
        {
            Error::MediaCount { markers, media, .. } => (markers, media),
            error => panic!("{error}"),
        };
        assert_eq!(counted(&[1, 5], &both), (1, 2));
        assert_eq!(counted(&[1, 5, 5], &both[..1]), (2, 1));
        assert_eq!(counted(&[5, 5], &both), (0, 1));
        let turned = expand(&[6, 7, 6, 5], &both[..2], plain());
        assert!(matches!(turned, Err(Error::Image { .. })));
    }

    #[test]
    fn a_first_token_is_written_once_after_pictures_at_the_start() {
        let markers = [Marker { text: "<p>".into(), ids: Vec::new() }];
        let surroundings = Surroundings { first: Some("<s>".into()), ..Surroundings::default() };
        let expansion = Expansion { markers: &markers, media: &[], surroundings, tokenizer: None };
        for (given, whole) in
            [("a<p>", "<s>a<p>"), ("<p><p>a", "<p><p><s>a"), ("<p>a<s>", "<p>a<s>")]
        {
            assert_eq!(expansion.with_first(&RenderedText::written(given)).as_str(), whole);
        }
    }

    #[test]
    fn surroundings_stand_around_the_prompt_once() {
        let around = |start: &[u32], after: &[u32]| Surroundings {
            start: start.iter().copied().map(Piece::token).collect(),
            after_media: after.iter().copied().map(Piece::token).collect(),
            end: vec![Piece::token(4)],
            ..Surroundings::default()
        };
        let one = [media("image", 9, 1)];
        assert_eq!(expand(&[5, 2], &one, around(&[], &[3])).unwrap(), [8, 9, 3, 2, 4]);
        assert_eq!(expand(&[5, 2], &one, around(&[1], &[])).unwrap(), [1, 8, 9, 2, 4]);
        assert_eq!(expand(&[1, 5, 2], &one, around(&[1], &[])).unwrap(), [1, 8, 9, 2, 4]);
    }
}
