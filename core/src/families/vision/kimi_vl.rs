//! Kimi-VL: MoonViT, a vision transformer over pictures in their own shape with learned and rotary
//! positions, whose blocks of patches an MLP joins, and DeepSeek V3. Follows `modeling_kimi_vl.py` of the
//! published models; mlx-vlm has other epsilons and another activation.

use crate::{
    families::{multimodal, prelude::*},
    layers::attention::bidirectional::BidirectionalAttention,
};

pub const FAMILY: Family =
    Family { model_types: &["kimi_vl"], build, recommended: Recommended::NOTHING };

#[derive(Deserialize)]
struct Config {
    init_pos_emb_height: Size,
    init_pos_emb_width: Size,
    merge_kernel_size: [Size; 2],
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let text = multimodal::text_model(config, w, "deepseek_v3")?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    let nested = config::with_defaults(
        vision_config(config)?,
        json!({
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh",
            "init_pos_emb_height": 64, "init_pos_emb_width": 64, "merge_kernel_size": [2, 2],
        }),
    );
    config::only(&nested, json!({"model_type": "moonvit"})).map_err(in_vision_config)?;
    // Its norms have a fixed epsilon.
    let nested = nested.with("layer_norm_eps", 1e-5);
    let (c, e) = (VisionConfig::read(&nested, &[])?, config::read::<Config>(&nested));
    let e = e.map_err(in_vision_config)?;
    let [rows, columns] = e.merge_kernel_size.map(|side| *side);
    if rows != columns {
        let reason = format!("blocks of {rows} by {columns} patches are no squares");
        return Err(Error::unsupported("vision_config.merge_kernel_size", reason));
    }
    let (width, output) = (*c.hidden_size, multimodal::text_width(config)?);
    let merged = square_width("vision_config.merge_kernel_size", rows, width)?;
    let (place, projector) = (multimodal::tower(w), multimodal::part(w, &["multi_modal_projector"]));
    // mlx-vlm leaves this name out.
    let encoder = if place.has_below("encoder") { place.at("encoder") } else { place.clone() };
    let (rope, embed) = (rope_2d_by_turns(c.head_dim(), 10_000.0)?, place.at("patch_embed"));
    let kernel = Kernel::square(*c.num_channels, *c.patch_size);
    let table = Grid::picture(*e.init_pos_emb_height, *e.init_pos_emb_width);
    let tower = MoonVit {
        patches: PatchEmbedding::with_bias(&embed, "proj", kernel, width)?,
        positions: PositionTable::rectangle(&embed, "pos_emb", table, width)?,
        encoder: Encoder::read(&encoder.at("blocks"), *c.num_hidden_layers, |_, w| {
            block(w, &c, rope.clone())
        })?,
        norm: encoder.layer_norm_with_bias("final_layernorm", width, 1e-5)?,
        side: rows,
        before: projector.layer_norm_with_bias("pre_norm", width, 1e-5)?,
        first: projector.linear_with_bias("linear_1", merged, merged)?,
        second: projector.linear_with_bias("linear_2", merged, output)?,
    };
    let placeholder = config::field::<Option<u32>>(config, "media_placeholder_token_id")?;
    let placeholder = placeholder.map_or_else(|| multimodal::placeholder(config, 163_606), Ok)?;
    Ok(Box::new(Sighted::new(text, tower, placeholder)))
}

fn block(w: &Scope, c: &VisionConfig, rope: Rope) -> Result<Ffn> {
    let width = *c.hidden_size;
    let norm = |name| w.layer_norm_with_bias(name, width, *c.layer_norm_eps);
    let a = if w.has_below("attn") { w.at("attn") } else { w.clone() };
    ["wqkv", "wo"].iter().try_for_each(|name| a.at(name).require("bias"))?;
    let [q, k, v] = a.fused("wqkv", width, [width; 3])?;
    let projections = [q, k, v, a.linear("wo", width, width)?];
    let attention = BidirectionalAttention::new(projections, c.heads(), rope);
    let mlp = encoder::plain_mlp(&w.at("mlp"), PlainNames { up: "fc0", down: "fc1" }, c)?;
    Ok(encoder::block(
        Residual::pre(norm("norm0")?, attention),
        Residual::pre(norm("norm1")?, mlp),
    ))
}

struct MoonVit {
    patches: PatchEmbedding,
    positions: PositionTable,
    encoder: Encoder,
    norm: Norm,
    /// The side of the squares of patches that become one feature.
    side: i32,
    before: Norm,
    first: Linear,
    second: Linear,
}

impl Tower for MoonVit {
    fn encode(&self, picture: &Media) -> Result<Vec<Array>> {
        let sizes = picture.sizes("image_grid_hws", 2)?;
        let grid = Grid::of_sizes(&[1, sizes[0], sizes[1]])?;
        let pixels = picture.tensor("pixel_values")?.reshape(&[1, grid.area(), -1])?;
        let x = self.patches.flattened(&pixels)?;
        let x = x.add(self.positions.sampled(grid, Interpolation::Bicubic)?)?;
        let x = self.encoder.forward(&x, &encoder::rotary(grid, 1))?;
        let x = self.before.forward(&self.norm.forward(&x)?)?;
        let x = grid.merge(&x, self.side, MergeOrder::PatchFirst)?;
        let x = self.second.forward(&gelu(&self.first.forward(&x)?)?)?;
        Ok(vec![x.flatten(0, 1)?])
    }
}
