//! A language model that sees: a vision tower turns each picture into features, which stand in the
//! prompt where its placeholders do.

use crate::{
    error::{Error, Result},
    layers::{
        embedded::{Embedded, MediaRange, PromptPositions, SpanReach},
        vision::grid::Grid,
    },
    models::language::{Input, LanguageModel, Media, Wrapper},
};
use mlx_rs::{Array, ops, transforms::eval};
use std::ops::Range;

/// Rotary positions of the rows of a picture or clip: time, row and column.
#[derive(Clone, Debug)]
pub struct GridPositions {
    /// Rows of features by frame, row and column.
    pub grid: Grid,
    /// From one frame to the next.
    pub frame_step: f32,
}

/// Makes features of pictures.
pub trait Tower {
    /// The features of a picture: a row for each of its placeholders, `[placeholders, width]`, in the
    /// width of the text's stream; then rows that join the stream after its first layers (DeepStack),
    /// one array a layer.
    ///
    /// # Errors
    /// [`Error::Mlx`]; [`Error::Internal`] when the processor made other tensors.
    fn encode(&self, picture: &Media) -> Result<Vec<Array>>;

    /// The rotary positions of the rows, where they have some of their own.
    ///
    /// # Errors
    /// As [`Tower::encode`].
    fn positions(&self, _: &Media) -> Result<Option<GridPositions>> {
        Ok(None)
    }
}

/// Which positions of a prompt see each other both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// None: all is causal.
    Causal,
    /// Those of each run of placeholders, no further than a layer's sliding window.
    WithinPictures,
    /// The same, in layers with a sliding window only.
    WithinPicturesAndWindows,
    /// All of a prompt with pictures.
    WholePrompt,
}

/// The language model and its tower.
pub struct Sighted {
    text: Box<dyn LanguageModel>,
    tower: Box<dyn Tower>,
    placeholders: Vec<u32>,
    has_own_placeholders: bool,
    visibility: Visibility,
    hides_placeholders: bool,
}

impl Sighted {
    /// A model whose placeholders have this id.
    pub fn new(
        text: Box<dyn LanguageModel>,
        tower: impl Tower + 'static,
        placeholder: u32,
    ) -> Self {
        Sighted {
            text,
            tower: Box::new(tower),
            placeholders: vec![placeholder],
            has_own_placeholders: false,
            visibility: Visibility::Causal,
            hides_placeholders: false,
        }
    }

    /// With positions that see each other both ways.
    pub fn seeing(self, visibility: Visibility) -> Self {
        Sighted { visibility, ..self }
    }

    /// With id 0 in the place of placeholders, for text models that look at the ids themselves.
    pub fn without_placeholders(self) -> Self {
        Sighted { hides_placeholders: true, ..self }
    }

    /// With placeholders of another id too, such as those of clips.
    pub fn with_placeholder(mut self, placeholder: Option<u32>) -> Self {
        self.placeholders.extend(placeholder);
        self
    }

    /// With placeholders of the id that each picture tells in `image_token_id`, for checkpoints of which
    /// only the tokenizer knows it.
    pub fn with_placeholders_of_pictures(self) -> Self {
        Sighted { has_own_placeholders: true, ..self }
    }

    /// The ids of the placeholders in a prompt with these pictures.
    fn placeholders(&self, media: &[Media]) -> Result<Vec<u32>> {
        let mut placeholders = self.placeholders.clone();
        for picture in media.iter().filter(|_| self.has_own_placeholders) {
            let ids = picture.sizes("image_token_id", 1)?;
            placeholders.extend(ids.into_iter().map(i32::cast_unsigned));
        }
        Ok(placeholders)
    }

    /// The features of a picture, evaluated.
    fn features(&self, picture: &Media) -> Result<Vec<Array>> {
        picture.features(|_| {
            let features = self.tower.encode(picture)?;
            eval(&features)?;
            Ok(features)
        })
    }
}

impl Wrapper for Sighted {
    fn inner(&self) -> &dyn LanguageModel {
        &*self.text
    }

    fn prompt(&self, input: &Input) -> Result<Embedded> {
        let tokens = &input.tokens;
        let ids = Array::from_slice(tokens, &[1, tokens.len() as i32]);
        if input.media.is_empty() {
            return self.text.embed(&ids);
        }
        let placeholders = self.placeholders(&input.media)?;
        let is_placeholder = |id: &u32| placeholders.contains(id);
        let places: Vec<usize> =
            (0..tokens.len()).filter(|place| is_placeholder(&tokens[*place])).collect();
        let features: Vec<Vec<Array>> =
            input.media.iter().map(|media| self.features(media)).collect::<Result<_>>()?;
        let media = ranges(input, &features, &places)?;
        // The embedding of a placeholder is not used, and may not exist.
        let known = tokens.iter().map(|id| if is_placeholder(id) { 0 } else { *id });
        let known = Array::from_slice(&known.collect::<Vec<_>>(), ids.shape());
        let text = self.text.embed(&known)?;
        let layer = |layer| features.iter().filter_map(move |features| features.get(layer));
        let layers = features.iter().map(Vec::len).max().unwrap_or(1);
        let nothing = ops::zeros_like(&text.hidden)?;
        let deepstack = (1..layers).map(|i| place_rows(&nothing, layer(i), &places));
        let positions = input.media.iter().map(|media| self.tower.positions(media));
        let positions = positions.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        Ok(Embedded {
            ids: if self.hides_placeholders { known } else { ids },
            hidden: place_rows(&text.hidden, layer(0), &places)?,
            rotary: rotary_positions(tokens.len(), &places, &positions),
            spans: match self.visibility {
                Visibility::Causal => Vec::new(),
                Visibility::WithinPictures | Visibility::WithinPicturesAndWindows => runs(&places),
                Visibility::WholePrompt => std::iter::once(0..tokens.len()).collect(),
            },
            span_reach: match self.visibility {
                Visibility::WithinPicturesAndWindows => SpanReach::WindowedLayers,
                Visibility::WithinPictures => SpanReach::Window,
                Visibility::Causal | Visibility::WholePrompt => SpanReach::Whole,
            },
            deepstack: deepstack.collect::<Result<_>>()?,
            media,
            ..text
        })
    }
}

/// Which positions stand for each of the media: from the first of its placeholders to the last.
fn ranges(input: &Input, features: &[Vec<Array>], places: &[usize]) -> Result<Vec<MediaRange>> {
    let rows = |features: &Vec<Array>| features.first().map_or(0, |rows| rows.dim(0) as usize);
    let needed = features.iter().map(rows).sum();
    if needed != places.len() {
        return Err(Error::Placeholders { found: places.len(), needed });
    }
    let mut rest = places;
    let range = |(media, features): (&Media, &Vec<Array>)| {
        let (own, others) = rest.split_at(rows(features));
        rest = others;
        let range = *own.first()?..*own.last()? + 1;
        Some(MediaRange { range, hash: media.hash })
    };
    Ok(input.media.iter().zip(features).filter_map(range).collect())
}

/// `hidden` `[1, length, width]` with these rows at `places`.
fn place_rows<'a>(
    hidden: &Array,
    rows: impl Iterator<Item = &'a Array>,
    places: &[usize],
) -> Result<Array> {
    let length = hidden.dim(1);
    let mut order: Vec<i32> = (0..length).collect();
    for (row, place) in (length..).zip(places) {
        order[*place] = row;
    }
    let rows = rows.map(|rows| Ok(rows.as_dtype(hidden.dtype())?.expand_dims(0)?));
    let parts = std::iter::once(Ok(hidden.clone())).chain(rows).collect::<Result<Vec<_>>>()?;
    let order = Array::from_slice(&order, &[length]);
    Ok(ops::concatenate(&parts, 1)?.take_axis(order, 1)?)
}

/// Runs of consecutive numbers.
fn runs(places: &[usize]) -> Vec<Range<usize>> {
    let runs = places.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| run[0]..run[run.len() - 1] + 1).collect()
}

/// Positions of a prompt: text advances on all axes by one, a picture by its larger side.
fn rotary_positions(
    length: usize,
    places: &[usize],
    grids: &[GridPositions],
) -> Option<PromptPositions> {
    if grids.is_empty() {
        return None;
    }
    let mut axes = [const { Vec::new() }; 3];
    let (mut next, mut places) = (0, places.iter().peekable());
    let mut grids = grids.iter();
    while axes[0].len() < length {
        if places.peek().is_none_or(|place| **place != axes[0].len()) {
            axes.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            continue;
        }
        let GridPositions { grid, frame_step } = grids.next()?;
        for place in 0..grid.count() {
            let (frame, cell) = (place / grid.area(), place % grid.area());
            axes[0].push(next + (frame as f32 * frame_step) as i32);
            axes[1].push(next + cell / grid.columns);
            axes[2].push(next + cell % grid.columns);
            places.next();
        }
        next += grid.rows.max(grid.columns);
    }
    let last = axes.iter().flatten().max()?;
    let delta = last + 1 - length as i32;
    let positions = Array::from_slice(&axes.concat(), &[3, 1, length as i32]);
    Some(PromptPositions { positions, delta })
}
