//! Llama 4 Scout and Maverick: a vision transformer over tiles of a picture with learned positions,
//! rotary positions by column and row, and a class token at the end; squares of patches that become
//! one feature; Llama 4 with experts. Follows `modeling_llama4` of transformers.

mod text;

use crate::families::{multimodal, prelude::*};

pub const FAMILY: Family =
    Family { model_types: &["llama4"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    pixel_shuffle_ratio: Positive,
    projector_input_dim: Size,
    projector_output_dim: Size,
    vision_output_dim: Size,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = text::build(config, w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34,
            "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "hidden_act": "gelu",
            "rope_theta": 10_000.0, "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096,
            "projector_output_dim": 4096, "vision_output_dim": 7680,
        }),
    );
    // Its norms have a fixed epsilon.
    let nested = nested.with("layer_norm_eps", 1e-5);
    let (c, e) = (VisionConfig::read(&nested, &[])?, config::read::<Config>(&nested));
    let e = e.map_err(in_vision_config)?;
    let (place, width) = (multimodal::tower(w), multimodal::text_width(config)?);
    let adapter = place.at("vision_adapter.mlp");
    let side = (1.0 / *e.pixel_shuffle_ratio).round() as i32;
    let merged =
        square_width("vision_config.pixel_shuffle_ratio", side, *c.hidden_size)?;
    let (inner, output) = (*e.projector_input_dim, *e.projector_output_dim);
    let projector = multimodal::part(w, &["multi_modal_projector"]);
    let tower = Tiles {
        vision: Llama4Tower::read(&place, &c)?,
        side,
        adapter: [
            adapter.linear("fc1", merged, inner)?,
            adapter.linear("fc2", inner, output)?,
        ],
        projection: projector.linear("linear_1", *e.vision_output_dim, width)?,
    };
    Ok(Box::new(Sighted::new(text, tower, multimodal::placeholder(config, 200_092)?)))
}

struct Llama4Tower {
    patches: PatchEmbedding,
    class: Array,
    /// Of the patches and, at the end, of the class token.
    table: Array,
    /// Columns and rows, which begin at 1; the class token is at 0. `[2, 1, area + 1]`.
    positions: Array,
    before: Norm,
    encoder: Encoder,
    after: Norm,
}

impl Llama4Tower {
    fn read(w: &Scope, c: &VisionConfig) -> Result<Self> {
        let (width, side) = (*c.hidden_size, c.side());
        let norm = |w: &Scope, name| w.layer_norm_with_bias(name, width, *c.layer_norm_eps);
        let theta = c.rope_theta.map_or(10_000.0, f32::from);
        let rope = rope_2d_of_neighbours(c.head_dim(), theta)?;
        let kernel = Kernel::square(*c.num_channels, *c.patch_size);
        let block = |_, w: &Scope| {
            let names = AttentionNames::with_output("o_proj");
            let attention = encoder::biased_attention(&w.at("self_attn"), names, c, rope.clone())?;
            let mlp = encoder::plain_mlp(&w.at("mlp"), FC1_FC2, c)?;
            Ok(encoder::block(
                Residual::pre(norm(w, "input_layernorm")?, attention),
                Residual::pre(norm(w, "post_attention_layernorm")?, mlp),
            ))
        };
        let table = w.tensor("positional_embedding_vlm", &[side * side + 1, width])?;
        let places = (0..side * side).map(|place| [place % side + 1, place / side + 1]);
        let places: Vec<[i32; 2]> = places.chain([[0, 0]]).collect();
        let axis = |axis: usize| places.iter().map(move |place| place[axis]);
        let positions: Vec<i32> = axis(0).chain(axis(1)).collect();
        let patches = w.at("patch_embedding");
        Ok(Llama4Tower {
            patches: PatchEmbedding::read(&patches, "linear", kernel, width)?,
            class: w.tensor("class_embedding", &[width])?,
            table,
            positions: Array::from_slice(&positions, &[2, 1, side * side + 1]),
            before: norm(w, "layernorm_pre")?,
            encoder: Encoder::read(&w.at("model.layers"), *c.num_hidden_layers, block)?,
            after: norm(w, "layernorm_post")?,
        })
    }

    /// Tiles `[tiles, channels, height, width]` to their patches after the last norm.
    fn forward(&self, pixels: &Array) -> Result<Array> {
        let x = self.patches.forward(pixels)?;
        let (tiles, area) = (x.dim(0), x.dim(1));
        let class = ops::broadcast_to(&self.class, &[tiles, 1, x.dim(2)])?;
        let x = ops::concatenate(&[x, class], 1)?.add(&self.table)?;
        let mut step = Step::prefill(0, area + 1);
        step.rotary = Some(Rotary::Each(self.positions.clone()));
        let x = self.encoder.forward(&self.before.forward(&x)?, &step)?;
        mlx::slice(&self.after.forward(&x)?, 1, 0, area)
    }
}

struct Tiles {
    vision: Llama4Tower,
    /// The side of the squares of patches that become one feature.
    side: i32,
    /// Two projections, each before an activation.
    adapter: [Linear; 2],
    projection: Linear,
}

impl Tower for Tiles {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let pixels = picture.tensor("pixel_values")?;
        let (x, grid) = (self.vision.forward(pixels)?, self.vision.patches.grid(pixels));
        let x = grid.merge(&x, self.side, MergeOrder::PatchFirst)?;
        let x = self.adapter.iter().try_fold(x, |x, linear| gelu(&linear.forward(&x)?))?;
        Ok(vec![self.projection.forward(&x)?.flatten(0, 1)?])
    }
}
