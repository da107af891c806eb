//! Llama 3.2 Vision: Llama with further layers, whose cross attention reads the features of the tiles of
//! pictures. A picture is one token of the prompt; the tokens after it see it up to the next one. Follows
//! `modeling_mllama` of transformers.

mod cross;
mod tower;

use crate::{
    families::{multimodal, prelude::*, text::llama},
    layers::embedded::MediaRange,
    models::language::Input,
};
use cross::CrossBlock;
use std::ops::Range;
use tower::{Fields, MllamaTower};

pub const FAMILY: Family =
    Family { model_types: &["mllama"], build, recommended: Recommended::NOTHING };

/// Rows of the token table beyond the vocabulary, of which the placeholder of pictures is one.
const FURTHER_TOKENS: i32 = 8;

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let defaults = json!({
        "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        "num_key_value_heads": 8,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    });
    let text = config::with_defaults(&config::text(config)?, defaults);
    let kind = json!({"model_type": "mllama_text_model"});
    config::only(&text, kind).map_err(multimodal::in_text_config)?;
    let c = Text::read(&text)?;
    let crossing: Vec<i32> = config::field(&text, "cross_attention_layers")?;
    let ((body, head), rope) = (body(w), Rope::of(&c)?);
    let layers = body.at("layers");
    let block = |i: i32| match crossing.contains(&i) {
        true => Ok(Block::new(CrossBlock::read(&layers.at(i), &c)?)),
        false => llama::block(&layers.at(i), &c, i, rope.clone()),
    };
    let rows = c.vocab_size.saturating_add(FURTHER_TOKENS);
    let text = Decoder {
        embedding: body.embedding("embed_tokens", rows, c.hidden_size)?,
        embedding_scale: None,
        blocks: (0..c.num_hidden_layers).map(block).collect::<Result<_>>()?,
        norm: body.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?,
        head: Head::of(&head, &c)?,
        original_context: None,
    };
    if !multimodal::has_tower(config, w)? {
        return Ok(Box::new(text));
    }
    let fields = Fields::read(config)?;
    let place = if w.at("multi_modal_projector").exists() { w.clone() } else { w.at("model") };
    let output = fields.output_width()?;
    Ok(Box::new(Mllama {
        text,
        projection: place.linear_with_bias("multi_modal_projector", output, c.hidden_size)?,
        tower: MllamaTower::read(&multimodal::tower(w), fields)?,
        placeholder: multimodal::placeholder(config, 128_256)?,
    }))
}

struct Mllama {
    text: Decoder,
    tower: MllamaTower,
    projection: Linear,
    placeholder: u32,
}

impl Mllama {
    /// The features of all tiles of a picture, `[tiles · patches, width]`, evaluated.
    fn features(&self, picture: &Media) -> Result<Array> {
        let encode = |_: &_| {
            let features = self.projection.forward(&self.tower.forward(picture)?)?;
            features.eval()?;
            Ok(vec![features])
        };
        let features = picture.features(encode)?.pop();
        features.ok_or_else(|| Error::Internal("a picture has features".into()))
    }

    /// Which features each position sees, `[length, features]`: those of the tiles of the pictures
    /// whose tokens it follows. A position without any has none here.
    fn mask(&self, tokens: &[u32], media: &[Media]) -> Result<Array> {
        let places = self.places(tokens);
        let mut columns = Vec::new();
        for (range, picture) in readers(&places, tokens.len()).into_iter().zip(media) {
            for tile in picture.sizes("aspect_ratio_mask", 1)? {
                let sees = |place: usize| tile != 0 && range.contains(&place);
                let column: Vec<bool> = (0..tokens.len()).map(sees).collect();
                let column = Array::from_slice(&column, &[tokens.len() as i32, 1]);
                let shape = [tokens.len() as i32, self.tower.patches()];
                columns.push(ops::broadcast_to(&column, &shape)?);
            }
        }
        Ok(ops::concatenate(&columns, 1)?)
    }

    fn places(&self, tokens: &[u32]) -> Vec<usize> {
        (0..tokens.len()).filter(|place| tokens[*place] == self.placeholder).collect()
    }
}

/// The positions that see each of the pictures at these places: up to the next picture, where pictures
/// that follow each other directly are seen together.
fn readers(places: &[usize], length: usize) -> Vec<Range<usize>> {
    let mut end = length;
    let mut readers: Vec<Range<usize>> = Vec::new();
    for (i, place) in places.iter().enumerate().rev() {
        let next = places.get(i + 1).copied().unwrap_or(length);
        end = if next == place + 1 { end } else { next };
        readers.push(*place..end);
    }
    readers.reverse();
    readers
}

impl Wrapper for Mllama {
    fn inner(&self) -> &dyn LanguageModel {
        &self.text
    }

    fn prompt(&self, input: &Input) -> Result<Embedded> {
        let tokens = &input.tokens;
        let text = self.text.embed(&Array::from_slice(tokens, &[1, tokens.len() as i32]))?;
        if input.media.is_empty() {
            return Ok(text);
        }
        let places = self.places(tokens);
        if places.len() != input.media.len() {
            return Err(Error::Placeholders { found: places.len(), needed: input.media.len() });
        }
        let features = input.media.iter().map(|picture| self.features(picture));
        let features = ops::concatenate(&features.collect::<Result<Vec<_>>>()?, 0)?;
        let range = |(place, picture): (&usize, &Media)| MediaRange {
            range: *place..*place + 1,
            hash: picture.hash,
        };
        Ok(Embedded {
            encoded: Some(features.expand_dims(0)?),
            encoded_mask: Some(self.mask(tokens, &input.media)?),
            media: places.iter().zip(&input.media).map(range).collect(),
            ..text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_seen_up_to_the_next_and_neighbours_together() {
        let whole = 2..9;
        assert_eq!(readers(&[2], 9), [whole]);
        assert_eq!(readers(&[1, 4, 5, 7], 9), [1..4, 4..7, 5..7, 7..9]);
        assert_eq!(readers(&[0, 1], 5), [0..5, 1..5]);
    }
}
