//! Qwen3-VL: Qwen2-VL's tower with learned positions beside the rotary ones, whose features of early
//! blocks join the first layers of the text (DeepStack), and Qwen 3, dense or with experts. The
//! frames of a clip have timestamps between them. Follows `modeling_qwen3_vl` of transformers.

use crate::families::{
    multimodal,
    prelude::*,
    text::{qwen3, qwen3_moe},
    vision::qwen2_vl::{self, Merger, NAMES, Patches, sighted},
};

pub const FAMILY: Family = Family {
    model_types: &["qwen3_vl", "qwen3_vl_moe"],
    build,
    recommended: Recommended {
        sampling: Sampling { top_k: 20, ..Sampling::nucleus(0.7, 0.8) },
        ..Recommended::NOTHING
    },
};

#[derive(Deserialize)]
struct Config {
    num_position_embeddings: Size,
    deepstack_visual_indexes: Vec<usize>,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let nested = multimodal::text_config(config, w)?;
    let has_experts = ["num_experts", "num_local_experts"]
        .iter()
        .any(|name| nested.get(name).is_some_and(|count| !count.is_null()));
    let text = if has_experts { qwen3_moe::FAMILY.build } else { qwen3::FAMILY.build };
    // The router of the authors' code always normalises.
    let text = text(&config::with_defaults(&nested, json!({"norm_topk_prob": true})), w)?;
    if !multimodal::has_tower(config, w)? {
        return Ok(text);
    }
    Ok(Box::new(sighted(config, text, Qwen3Tower::read(config, w)?)?))
}

/// The tower of Qwen 3's vision models.
pub struct Qwen3Tower {
    patches: PatchEmbedding,
    table: PositionTable,
    encoder: Encoder,
    merger: Merger,
    /// The blocks after which features are taken for DeepStack, and their mergers.
    deepstack: Vec<(usize, Merger)>,
    /// The side of the squares of patches that become one feature.
    side: i32,
}

impl Qwen3Tower {
    pub fn read(config: &Json, w: &Scope) -> Result<Self> {
        let width = multimodal::text_width(config)?;
        let nested = config::with_defaults(
            vision_config(config)?,
            json!({
                "depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304,
                "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "spatial_merge_size": 2,
                "temporal_patch_size": 2, "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [], "layer_norm_eps": 1e-6,
            }),
        );
        let c = VisionConfig::read(&nested, NAMES)?;
        let (e, shared) = (config::read::<Config>(&nested), qwen2_vl::Config::read(&nested)?);
        let e = e.map_err(in_vision_config)?;
        let (w, eps) = (multimodal::tower(w), *c.layer_norm_eps);
        let (hidden, merged) = (*c.hidden_size, shared.merged_width(&c)?);
        let rope = rope_2d(c.head_dim(), 10_000.0, Wavelengths::Same)?;
        const MLP: PlainNames = PlainNames { up: "linear_fc1", down: "linear_fc2" };
        let deep = |(i, block): (usize, &usize)| {
            if *block >= *c.num_hidden_layers as usize {
                let field = format!("vision_config.deepstack_visual_indexes[{i}]");
                return Err(Error::config(field, format!("there is no block {block}")));
            }
            let w = w.at("deepstack_merger_list").at(i);
            let norm = w.layer_norm_with_bias("norm", merged, eps)?;
            Ok((*block, Merger::read(&w, MLP, norm, merged, width)?.norming_squares()))
        };
        let deepstack = e.deepstack_visual_indexes.iter().enumerate().map(deep);
        let mut deepstack = deepstack.collect::<Result<Vec<_>>>()?;
        // The mergers are in the order of the list, the features in that of the blocks.
        deepstack.sort_by_key(|(block, _)| *block);
        Ok(Qwen3Tower {
            patches: PatchEmbedding::with_bias(
                &w.at("patch_embed"),
                "proj",
                shared.kernel(&c),
                *c.hidden_size,
            )?,
            table: {
                let side = (*e.num_position_embeddings as f32).sqrt() as i32;
                PositionTable::read(&w, "pos_embed", side, hidden)?
            },
            encoder: Encoder::read(&w.at("blocks"), *c.num_hidden_layers, |_, w| {
                let norm = |name| w.layer_norm_with_bias(name, hidden, eps);
                let attention = encoder::biased_fused_attention(&w.at("attn"), "proj", &c, rope.clone())?;
                let mlp = encoder::plain_mlp(&w.at("mlp"), MLP, &c)?;
                Ok(encoder::block(
                    Residual::pre(norm("norm1")?, attention),
                    Residual::pre(norm("norm2")?, mlp),
                ))
            })?,
            merger: {
                let w = w.at("merger");
                let norm = w.layer_norm_with_bias("norm", hidden, eps)?;
                Merger::read(&w, MLP, norm, merged, width)?
            },
            deepstack,
            side: *shared.spatial_merge_size,
        })
    }
}

impl Tower for Qwen3Tower {
    fn encode(&self, media: &Media) -> Result<Vec<Array>> {
        let Patches { pixels, grid } = Patches::of(media)?;
        let table = self.table.sampled(grid, Interpolation::AlignedBilinear)?;
        let table = table.take_axis(grid.order(self.side), 0)?;
        let x = self.patches.flattened(&pixels)?.add(table)?;
        let states = self.encoder.hidden_states(&x, &encoder::rotary(grid, self.side))?;
        let last = &states[states.len() - 1];
        let deep = self.deepstack.iter().map(|(block, merger)| merger.forward(&states[block + 1]));
        std::iter::once(self.merger.forward(last)).chain(deep).collect()
    }

    fn positions(&self, media: &Media) -> Result<Option<GridPositions>> {
        qwen2_vl::positions(media, self.side, 1.0)
    }
}
