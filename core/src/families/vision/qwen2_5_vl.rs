//! Qwen2.5-VL: Qwen2-VL with a tower of RMS norms and gated networks, most of whose blocks attend
//! within windows of the picture; clips have positions in seconds. Follows `modeling_qwen2_5_vl` of
//! transformers.

use crate::families::{
    multimodal,
    prelude::*,
    text::qwen2,
    vision::qwen2_vl::{self, MERGER_MLP, Merger, NAMES, Patches, sighted},
};
use std::ops::Range;

pub const FAMILY: Family =
    Family { model_types: &["qwen2_5_vl"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    window_size: Size,
    fullatt_block_indexes: Vec<i32>,
    tokens_per_second: Positive,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = (qwen2::FAMILY.build)(&multimodal::text_config(config, w)?, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let width = multimodal::text_width(config)?;
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420,
            "patch_size": 14, "hidden_act": "silu", "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "tokens_per_second": 4,
            "fullatt_block_indexes": [7, 15, 23, 31], "layer_norm_eps": 1e-6,
        }),
    );
    let c = VisionConfig::read(&nested, NAMES)?;
    let (e, shared) = (config::read::<Config>(&nested), qwen2_vl::Config::read(&nested)?);
    let e = e.map_err(in_vision_config)?;
    let w = multimodal::tower(w);
    let rope = rope_2d(c.head_dim(), 10_000.0, Wavelengths::Same)?;
    let side = *shared.spatial_merge_size;
    let tower = WindowTower {
        patches: PatchEmbedding::read(
            &w.at("patch_embed"),
            "proj",
            shared.kernel(&c),
            *c.hidden_size,
        )?,
        encoder: Encoder::read(&w.at("blocks"), *c.num_hidden_layers, |_, w| {
            let norm = |name| w.rms_norm(name, *c.hidden_size, *c.layer_norm_eps);
            let attention = encoder::biased_fused_attention(&w.at("attn"), "proj", &c, rope.clone())?;
            let mlp = w.at("mlp");
            ["gate_proj", "up_proj", "down_proj"].iter().try_for_each(|name| mlp.at(name).require("bias"))?;
            let mlp = encoder::gated_mlp(&mlp, &c)?;
            Ok(encoder::block(
                Residual::pre(norm("norm1")?, attention),
                Residual::pre(norm("norm2")?, mlp),
            ))
        })?,
        merger: {
            let w = w.at("merger");
            let norm = w.rms_norm("ln_q", *c.hidden_size, *c.layer_norm_eps)?;
            Merger::read(&w.at("mlp"), MERGER_MLP, norm, shared.merged_width(&c)?, width)?
        },
        side,
        window: (*e.window_size / side / *c.patch_size).max(1),
        full_blocks: e.fullatt_block_indexes,
        tokens_per_second: *e.tokens_per_second,
    };
    Ok(Box::new(sighted(config, text, tower)?))
}

struct WindowTower {
    patches: PatchEmbedding,
    encoder: Encoder,
    merger: Merger,
    /// The side of the squares of patches that become one feature.
    side: i32,
    /// The side of a window, in squares.
    window: i32,
    /// The blocks that attend to the whole frame.
    full_blocks: Vec<i32>,
    tokens_per_second: f32,
}

/// The squares of a frame, window by window.
struct Windows {
    /// The place of each square in row-major order.
    order: Vec<i32>,
    /// How many squares each window has.
    lengths: Vec<usize>,
}

impl Windows {
    /// Windows of equal size are neighbours, so that attention computes them together.
    fn of(squares: Grid, side: i32) -> Self {
        let cells = |row: i32, column: i32| -> Vec<i32> {
            let rows = row..(row + side).min(squares.rows);
            let columns = column..(column + side).min(squares.columns);
            rows.flat_map(|row| columns.clone().map(move |at| row * squares.columns + at)).collect()
        };
        let starts = |count: i32| (0..count).step_by(side as usize);
        let mut windows: Vec<Vec<i32>> = starts(squares.rows)
            .flat_map(|row| starts(squares.columns).map(move |column| cells(row, column)))
            .collect();
        windows.sort_by_key(Vec::len);
        let lengths = windows.iter().map(Vec::len).collect();
        Windows { order: windows.concat(), lengths }
    }

    /// The patches of each window, of which a square has `each`.
    fn spans(&self, each: usize) -> Vec<Range<usize>> {
        let mut start = 0;
        let span = |squares: &usize| {
            let span = start..start + squares * each;
            start = span.end;
            span
        };
        self.lengths.iter().map(span).collect()
    }

    /// For each square in row-major order, its place here.
    fn inverse(&self) -> Vec<i32> {
        let mut inverse = vec![0; self.order.len()];
        for (at, place) in (0..).zip(&self.order) {
            inverse[*place as usize] = at;
        }
        inverse
    }
}

/// Reorders the squares of `each` patches along an axis.
fn reordered(x: &Array, axis: usize, order: &[i32], each: i32) -> Result<Array> {
    let mut shape = x.shape().to_vec();
    shape.splice(axis..=axis, [x.dim(axis as i32) / each, each]);
    let order = Array::from_slice(order, &[order.len() as i32]);
    let squares = x.reshape(&shape)?.take_axis(order, axis as i32)?;
    Ok(squares.reshape(x.shape())?)
}

impl Tower for WindowTower {
    fn encode(&self, media: &Media) -> Result<Vec<Array>> {
        let Patches { pixels, grid } = Patches::of(media)?;
        let each = self.side * self.side;
        let windows = Windows::of(grid.merged(self.side)?, self.window);
        let x = reordered(&self.patches.flattened(&pixels)?, 1, &windows.order, each)?;
        let positions = reordered(&grid.positions(self.side), 2, &windows.order, each)?;
        let step = || {
            let mut step = Step::prefill(0, grid.area());
            step.rotary = Some(Rotary::Each(positions.clone()));
            step
        };
        let (full, mut windowed) = (step(), step());
        windowed.spans = windows.spans(each as usize);
        let step = |block| if self.full_blocks.contains(&block) { &full } else { &windowed };
        let x = self.merger.forward(&self.encoder.forward_by(&x, step)?)?;
        let frames = x.reshape(&[grid.frames, grid.area() / each, -1])?;
        Ok(vec![reordered(&frames, 1, &windows.inverse(), 1)?.flatten(0, 1)?])
    }

    fn positions(&self, media: &Media) -> Result<Option<GridPositions>> {
        let Some(seconds) = media.tensors.get("second_per_grid_ts") else {
            return qwen2_vl::positions(media, self.side, 1.0);
        };
        let seconds: f32 = seconds.max(None)?.try_item_cast()?;
        qwen2_vl::positions(media, self.side, seconds * self.tokens_per_second)
    }
}
