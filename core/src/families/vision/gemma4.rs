//! Gemma 4 with vision: a vision transformer with norms before and after each branch over pictures of
//! any aspect ratio, whose squares of patches are averaged; in some models the features of a picture
//! see each other both ways in the layers with a sliding window. Sound is not read. Follows
//! `modeling_gemma4` of transformers.

use crate::families::{multimodal, prelude::*, text::gemma4_text};
use mlx_rs::fast::scaled_dot_product_attention;

pub const FAMILY: Family =
    Family { model_types: &["gemma4"], build, recommended: gemma4_text::FAMILY.recommended };

#[derive(Deserialize)]
struct Config {
    head_dim: Size,
    num_key_value_heads: Size,
    pooling_kernel_size: Size,
    position_embedding_size: Size,
    use_clipped_linears: bool,
    standardize: bool,
}

const NAMES: &[(&str, &str)] =
    &[("rms_norm_eps", "layer_norm_eps"), ("hidden_activation", "hidden_act")];
const BOUNDS: [&str; 4] = ["input_min", "input_max", "output_min", "output_max"];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = gemma4_text::language_model(config, w)?;
    ignore_parts(w, &["audio_tower", "embed_audio"]);
    // Conversions to text alone may have left parts of the tower, such as the bounds of its linear layers.
    if !multimodal::tower(w).has_below("patch_embedder") {
        w.ignore_named(&BOUNDS);
        ignore_parts(w, &["vision_tower", "embed_vision"]);
        return Ok(text);
    }
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let sees = config::field::<Option<String>>(&config::text(config)?, "use_bidirectional_attention")?;
    let visibility = match sees.as_deref() {
        Some("vision") => Visibility::WithinPicturesAndWindows,
        _ => Visibility::Causal,
    };
    let tower = Gemma4Tower::read(config, w)?;
    let model = Sighted::new(text, tower, multimodal::placeholder(config, 258_880)?);
    Ok(Box::new(model.seeing(visibility).without_placeholders()))
}

struct Gemma4Tower {
    patches: Linear,
    /// Of columns and of rows, `[2, positions, width]`.
    table: Array,
    encoder: Encoder,
    /// The side of the squares of patches that are averaged.
    pooled: i32,
    /// What is subtracted from the features, and then a factor.
    standard: Option<[Array; 2]>,
    projection: Linear,
    width: i32,
    eps: f32,
}

impl Gemma4Tower {
    fn read(config: &Json, w: &Scope) -> Result<Self> {
        let nested = config::with_defaults(
            vision_config(config)?,
            json!({
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16,
                "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64,
                "patch_size": 16, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
                "pooling_kernel_size": 3, "position_embedding_size": 10_240,
                "use_clipped_linears": false, "standardize": false,
            }),
        );
        let (c, e) = (VisionConfig::read(&nested, NAMES)?, config::read::<Config>(&nested));
        let (e, eps, width) = (e.map_err(in_vision_config)?, *c.layer_norm_eps, *c.hidden_size);
        let rope: RopeScaling = config::field::<Option<_>>(&nested, "rope_parameters")?.unwrap_or_default();
        let theta = rope.rope_theta;
        let rope = rope_2d(*e.head_dim, theta.unwrap_or(100.0), Wavelengths::Same)?;
        let (place, patch) = (multimodal::tower(w), *c.patch_size);
        let block = |_, w: &Scope| {
            let norm = |name| w.rms_norm(name, width, eps);
            let mlp = w.at("mlp");
            let read = |name, input, output| e.linear(&mlp, name, input, output);
            let (gate, up, down) = (
                read("gate_proj", width, *c.intermediate_size)?,
                read("up_proj", width, *c.intermediate_size)?,
                read("down_proj", *c.intermediate_size, width)?,
            );
            let activation = c.activation()?;
            let mlp = Map(move |x: &Array| {
                down.forward(&activation(&gate.forward(x)?)?.multiply(up.forward(x)?)?)
            });
            let attention = VisionAttention::read(&w.at("self_attn"), &c, &e, rope.clone())?;
            let (attention, mlp) = sandwich(norm, FOUR_NORMS, attention, mlp)?;
            Ok(encoder::block(attention, mlp))
        };
        let embedder = place.at("patch_embedder");
        let standard = || -> Result<_> {
            Ok([place.tensor("std_bias", &[width])?, place.tensor("std_scale", &[width])?])
        };
        let (projection, field) = (multimodal::part(w, &["embed_vision"]), "vision_config.patch_size");
        let (text, table) = (multimodal::text_width(config)?, *e.position_embedding_size);
        Ok(Gemma4Tower {
            patches: embedder.linear("input_proj", square_width(field, patch, 3)?, width)?,
            table: embedder.tensor("position_embedding_table", &[2, table, width])?,
            encoder: Encoder::read(&place.at("encoder.layers"), *c.num_hidden_layers, block)?,
            pooled: *e.pooling_kernel_size,
            standard: e.standardize.then(standard).transpose()?,
            projection: projection.linear("embedding_projection", width, text)?,
            width,
            eps,
        })
    }
}

impl Tower for Gemma4Tower {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        // `[1, most patches, …]`; the positions of padding are -1.
        let places = picture.sizes("image_position_ids", 2)?;
        let places: Vec<[i32; 2]> =
            places.chunks_exact(2).map(|place| [place[0], place[1]]).collect();
        let count = places.iter().take_while(|[column, _]| *column >= 0).count();
        let axis = |axis: usize| places[..count].iter().map(move |place| place[axis]);
        let side = |of: usize| axis(of).max().map_or(0, |last| last + 1);
        let grid = Grid::of_sizes(&[1, side(1), side(0)])?;
        let positions: Vec<i32> = axis(0).chain(axis(1)).collect();
        let positions = Array::from_slice(&positions, &[2, count as i32]);
        let pixels = mlx::slice(picture.tensor("pixel_values")?, 1, 0, count as i32)?;
        let pixels = pixels.subtract(Array::from_f32(0.5))?.multiply(Array::from_int(2))?;
        let pixels = pixels.as_dtype(self.table.dtype())?;
        let row = |of: i32| -> Result<Array> {
            let table = mlx::slice(&self.table, 0, of, of + 1)?.squeeze_axes(&[0])?;
            let places = mlx::slice(&positions, 0, of, of + 1)?.squeeze_axes(&[0])?;
            Ok(table.take_axis(places, 0)?)
        };
        let x = self.patches.forward(&pixels)?.add(row(0)?)?.add(row(1)?)?;
        let mut step = Step::prefill(0, grid.area());
        step.rotary = Some(Rotary::Each(positions.expand_dims(1)?));
        let x = grid.average(&self.encoder.forward(&x, &step)?, self.pooled)?;
        // In half precision the factor could be too large.
        let mut x = x.as_dtype(Dtype::Float32)?;
        x = x.multiply(Array::from_f32((self.width as f32).sqrt()))?;
        if let Some([bias, factor]) = &self.standard {
            x = x.subtract(bias)?.multiply(factor)?;
        }
        let x = Norm::Rms { weight: None, eps: self.eps }.forward(&x)?;
        let x = self.projection.forward(&x.as_dtype(self.table.dtype())?)?;
        Ok(vec![x.flatten(0, 1)?])
    }
}

impl Config {
    fn linear(&self, w: &Scope, name: &str, input: i32, output: i32) -> Result<Clipped> {
        let w = w.at(name);
        let bounds = || BOUNDS.iter().map(|name| w.tensor(name, &[])).collect::<Result<_>>();
        let bounds = self.use_clipped_linears.then(bounds).transpose()?;
        Ok(Clipped { linear: w.linear("linear", input, output)?, bounds })
    }
}

/// A projection whose inputs and outputs are bounded.
struct Clipped {
    linear: Linear,
    /// In the order of [`BOUNDS`].
    bounds: Option<Vec<Array>>,
}

impl Clipped {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self.bounds.as_deref() {
            Some([least, most, least_output, most_output]) => {
                let y = self.linear.forward(&ops::clip(x, (least, most))?)?;
                Ok(ops::clip(&y, (least_output, most_output))?)
            }
            _ => self.linear.forward(x),
        }
    }
}

/// Attention with norms of queries, keys and values and scores that are not scaled.
struct VisionAttention {
    projections: [Clipped; 4],
    norms: [Norm; 3],
    heads: i32,
    kv_heads: i32,
    rope: Rope,
}

impl VisionAttention {
    fn read(w: &Scope, c: &VisionConfig, e: &Config, rope: Rope) -> Result<Self> {
        let (width, dims, eps) = (*c.hidden_size, *e.head_dim, *c.layer_norm_eps);
        let (heads, kv_heads) = (*c.num_attention_heads, *e.num_key_value_heads);
        if heads % kv_heads != 0 {
            let reason = format!("does not divide the {heads} query heads");
            return Err(Error::config("vision_config.num_key_value_heads", reason));
        }
        config::product("vision_config.head_dim", [heads, dims])?;
        Ok(VisionAttention {
            projections: [
                e.linear(w, "q_proj", width, heads * dims)?,
                e.linear(w, "k_proj", width, kv_heads * dims)?,
                e.linear(w, "v_proj", width, kv_heads * dims)?,
                e.linear(w, "o_proj", heads * dims, width)?,
            ],
            norms: [
                w.rms_norm("q_norm", dims, eps)?,
                w.rms_norm("k_norm", dims, eps)?,
                Norm::Rms { weight: None, eps },
            ],
            heads,
            kv_heads,
            rope,
        })
    }

    /// Heads `[batch, heads, length, head_dim]` at their positions. The pairs of columns are the
    /// halves of the first half of a head, those of rows of the second; the rotation has both columns
    /// and rows in either half, so the middle quarters change places. Products do not.
    fn place(&self, x: &Array, step: &Step) -> Result<Array> {
        let [batch, heads, length, dims] = [0, 1, 2, 3].map(|axis| x.dim(axis));
        let quarters = x.reshape(&[batch, heads, length, 2, 2, dims / 4])?.swap_axes(3, 4)?;
        self.rope.forward(&quarters.reshape(x.shape())?, step)
    }
}

impl Layer for VisionAttention {
    type State = ();

    fn state(&self, _: &CachePlan) {}

    fn forward(&self, x: &Array, (): &mut (), step: &Step) -> Result<Array> {
        let [q, k, v, output] = &self.projections;
        let split = |projection: &Clipped, heads, norm: &Norm| {
            norm.forward(&split_heads(&projection.forward(x)?, heads)?)
        };
        let q = self.place(&split(q, self.heads, &self.norms[0])?, step)?;
        let k = self.place(&split(k, self.kv_heads, &self.norms[1])?, step)?;
        let v = split(v, self.kv_heads, &self.norms[2])?;
        output.forward(&join_heads(&scaled_dot_product_attention(q, k, v, 1.0, None, None)?)?)
    }
}
