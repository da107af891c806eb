//! The vision transformers of Llama 3.2 Vision: one over all tiles of a picture, with a class token a
//! tile, and a second one with gates; the output of some layers of the first joins that of the second.

use crate::families::prelude::*;

#[derive(Clone, Deserialize)]
struct Own {
    num_global_layers: Size,
    max_num_tiles: Size,
    intermediate_layers_indices: Vec<i32>,
    supported_aspect_ratios: Vec<[i32; 2]>,
    vision_output_dim: Option<Size>,
}

/// The fields of the tower.
pub struct Fields {
    vision: VisionConfig,
    own: Own,
}

impl Fields {
    pub fn read(config: &Json) -> Result<Self> {
        let nested = config::with_defaults(
            vision_config(config)?,
            json!({
                "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                "attention_heads": 16, "image_size": 448, "patch_size": 14, "hidden_act": "gelu",
                "norm_eps": 1e-5, "num_global_layers": 8, "max_num_tiles": 4,
                "intermediate_layers_indices": [3, 7, 15, 23, 30],
                "supported_aspect_ratios":
                    [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            }),
        );
        let names =
            [("attention_heads", "num_attention_heads"), ("norm_eps", "layer_norm_eps")];
        let kind = json!({"model_type": "mllama_vision_model"});
        config::only(&nested, kind).map_err(in_vision_config)?;
        let vision = VisionConfig::read(&nested, &names)?;
        let own: Own = config::read(&nested).map_err(in_vision_config)?;
        let layers = *vision.num_hidden_layers;
        if let Some(layer) = own.intermediate_layers_indices.iter().find(|i| !(0..layers).contains(*i)) {
            let reason = format!("there is no layer {layer}");
            return Err(Error::config("vision_config.intermediate_layers_indices", reason));
        }
        Ok(Fields { vision, own })
    }

    /// Width of the features.
    pub fn output_width(&self) -> Result<i32> {
        let parts = self.own.intermediate_layers_indices.len() as i32 + 1;
        let parts = [*self.vision.hidden_size, parts];
        let width = config::product("vision_config.intermediate_layers_indices", parts)?;
        match self.own.vision_output_dim {
            Some(given) if *given != width => {
                let reason = format!(
                    "{} instead of {width}: the hidden_size, for the tower and each of the \
                     intermediate_layers_indices",
                    *given
                );
                Err(Error::config("vision_config.vision_output_dim", reason))
            }
            _ => Ok(width),
        }
    }
}

pub struct MllamaTower {
    embedding: PatchEmbedding,
    class: Array,
    /// `[patches, width]`.
    positions: Array,
    /// `[ratios, tiles · patches · width]`.
    tile_positions: Array,
    /// Before the first transformer, and before the second.
    around: [TilePositions; 2],
    norms: [Norm; 2],
    first: Encoder,
    second: Encoder,
    /// The layers whose output joins the features.
    layers: Vec<usize>,
    tiles: i32,
    patches: i32,
    width: i32,
}

/// Learned positions of tiles, by aspect ratio, behind a gate that they contain.
struct TilePositions {
    /// `[ratios, tiles · width]`.
    table: Array,
}

impl TilePositions {
    fn read(w: &Scope, ratios: i32, width: i32) -> Result<Self> {
        let gate = ops::tanh(&w.tensor("gate", &[1])?)?;
        let table = w.at("embedding").tensor("weight", &[ratios, width])?;
        Ok(TilePositions { table: w.keep(table.multiply(gate)?) })
    }

    /// Adds those of a picture to its tiles, `[tiles, patches, width]`.
    fn add(&self, x: &Array, ratio: i32) -> Result<Array> {
        let row = mlx::slice(&self.table, 0, ratio, ratio + 1)?;
        Ok(x.add(row.reshape(&[x.dim(0), 1, x.dim(2)])?)?)
    }
}

impl MllamaTower {
    pub fn read(w: &Scope, fields: Fields) -> Result<Self> {
        let Fields { vision: c, own } = fields;
        let (width, tiles) = (*c.hidden_size, *own.max_num_tiles);
        let patches = c.side() * c.side() + 1;
        let ratios = own.supported_aspect_ratios.len() as i32 + 1;
        let row = config::product("vision_config.max_num_tiles", [tiles, width])?;
        let positions = w.at("gated_positional_embedding");
        let gate = ops::tanh(&positions.tensor("gate", &[1])?)?;
        let plain = positions.tensor("embedding", &[patches, width])?;
        let rest = mlx::scalar(1.0, gate.dtype())?.subtract(&gate)?;
        let table = config::product("vision_config.image_size", [row, patches])?;
        let tile_positions = positions.at("tile_embedding").tensor("weight", &[ratios, table])?;
        let norm = |name| w.layer_norm_with_bias(name, width, 1e-5);
        Ok(MllamaTower {
            embedding: PatchEmbedding::read(
                w,
                "patch_embedding",
                Kernel::square(*c.num_channels, *c.patch_size),
                width,
            )?,
            class: w.tensor("class_embedding", &[width])?,
            positions: w.keep(plain.multiply(rest)?),
            tile_positions: w.keep(tile_positions.multiply(gate)?),
            around: [
                TilePositions::read(&w.at("pre_tile_positional_embedding"), ratios, row)?,
                TilePositions::read(&w.at("post_tile_positional_embedding"), ratios, row)?,
            ],
            norms: [norm("layernorm_pre")?, norm("layernorm_post")?],
            first: Encoder::read(&w.at("transformer.layers"), *c.num_hidden_layers, |_, w| {
                block(w, &c, false)
            })?,
            second: Encoder::read(&w.at("global_transformer.layers"), *own.num_global_layers, |_, w| {
                block(w, &c, true)
            })?,
            layers: own.intermediate_layers_indices.iter().map(|i| *i as usize + 1).collect(),
            tiles,
            patches,
            width,
        })
    }

    /// The patches of a tile and its class token.
    pub fn patches(&self) -> i32 {
        self.patches
    }

    /// The features of all tiles of a picture, `[tiles · patches, features]`.
    pub fn forward(&self, picture: &Media) -> Result<Array> {
        let pixels = picture.tensor("pixel_values")?.flatten(0, 2)?;
        let ratio = picture.sizes("aspect_ratio_ids", 1)?[0];
        let real = picture.sizes("aspect_ratio_mask", self.tiles as usize)?;
        let x = self.around[0].add(&self.embedding.forward(&pixels)?, ratio)?;
        let class = ops::broadcast_to(&self.class, &[self.tiles, 1, self.width])?;
        let x = ops::concatenate(&[class, x], 1)?.add(&self.positions)?;
        let row = mlx::slice(&self.tile_positions, 0, ratio, ratio + 1)?;
        let x = x.add(row.reshape(&[self.tiles, self.patches, self.width])?)?;
        // The authors pad the patches of a tile to a multiple of eight; padding sees what is real, and is
        // seen by it.
        let padding = (8 - self.patches % 8) % 8;
        let zeros = ops::zeros_dtype(&[self.tiles, padding, self.width], x.dtype())?;
        let x = ops::concatenate(&[self.norms[0].forward(&x)?, zeros], 1)?;
        let (length, whole) = (self.patches + padding, [1, -1, self.width]);
        let is_real = |place: i32| place % length < self.patches && real[(place / length) as usize] != 0;
        let is_real: Vec<bool> = (0..self.tiles * length).map(is_real).collect();
        let is_real = Array::from_slice(&is_real, &[self.tiles * length, 1]);
        let mut step = Step::prefill(0, self.tiles * length);
        step.visible = Some(is_real.logical_or(is_real.t())?);
        let states = self.first.hidden_states(&x.reshape(&whole)?, &step)?;
        let last = states.last().ok_or_else(|| Error::Internal("a tower has states".into()))?;
        let x = self.norms[1].forward(last)?.reshape(&[self.tiles, length, self.width])?;
        let x = self.around[1].add(&x, ratio)?.reshape(&whole)?;
        let x = self.second.forward(&x, &step)?;
        let between: Vec<&Array> = self.layers.iter().map(|layer| &states[*layer]).collect();
        let between = ops::stack(&between, -1)?.flatten(-2, -1)?;
        let x = ops::concatenate(&[x, between], -1)?;
        let x = x.reshape(&[self.tiles, length, -1])?;
        Ok(mlx::slice(&x, 1, 0, self.patches)?.flatten(0, 1)?)
    }
}

fn block(w: &Scope, c: &VisionConfig, is_gated: bool) -> Result<Ffn> {
    let norm = |name| w.layer_norm_with_bias(name, *c.hidden_size, *c.layer_norm_eps);
    let names = AttentionNames::with_output("o_proj");
    let attention = encoder::attention(&w.at("self_attn"), names, c, Rope::None)?;
    let mlp = encoder::plain_mlp(&w.at("mlp"), FC1_FC2, c)?;
    let (before, after) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
    if !is_gated {
        return Ok(encoder::block(Residual::pre(before, attention), Residual::pre(after, mlp)));
    }
    let gate = |name| -> Result<_> {
        let gate = ops::tanh(&w.tensor(name, &[1])?)?;
        Ok(Map(move |x: &Array| -> Result<Array> { Ok(x.multiply(&gate)?) }))
    };
    let attention = encoder::block(attention, gate("gate_attn")?);
    let mlp = encoder::block(mlp, gate("gate_ffn")?);
    Ok(encoder::block(Residual::pre(before, attention), Residual::pre(after, mlp)))
}
