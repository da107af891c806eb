//! MiniMax M3 (text): MiniMax M2 with norms whose weight `w` means `1 + w`, clamped MLPs, a shared
//! expert, and block-sparse attention in most layers. Follows `minimax_m3_vl` of mlx-lm.

mod block_attention;

use crate::families::text::gpt_oss::clamped_swiglu;
use crate::families::{
    prelude::*,
    text::minimax_m3_vl::block_attention::{BlockAttention, BlockIndexer, BlockIndexerSizes},
};

pub const FAMILY: Family = Family {
    model_types: &["minimax_m3_vl", "minimax_m3"],
    build,
    recommended: Recommended::NOTHING,
};

#[derive(Deserialize)]
struct Config {
    dense_intermediate_size: Size,
    shared_intermediate_size: Size,
    rotary_dim: Option<Size>,
    use_qk_norm: bool,
    use_gemma_norm: bool,
    swiglu_alpha: f32,
    swiglu_limit: Positive,
    mlp_layer_types: Option<Vec<String>>,
    moe_layer_freq: Option<Vec<i32>>,
    layer_types: Option<Vec<String>>,
    sparse_attention_freq: Option<Vec<i32>>,
    index_block_size: Option<Size>,
}

/// The fields that published configs nest and later ones do not, with the names they use.
const NEST: &str = "sparse_attention_config";
const NESTED: &[(&str, &str)] = &[
    ("sparse_num_index_heads", "index_n_heads"),
    ("sparse_index_dim", "index_head_dim"),
    ("sparse_block_size", "index_block_size"),
    ("sparse_topk_blocks", "index_topk_blocks"),
    ("sparse_local_block", "index_local_blocks"),
    ("sparse_attention_freq", "sparse_attention_freq"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let mut text = config::text(config)?;
    let nested = text.get(NEST).filter(|nested| !nested.is_null()).cloned();
    let names = match &nested {
        None => &[],
        Some(nested) if nested.is_object() => NESTED,
        Some(_) => return Err(Error::config(NEST, "not an object")),
    };
    for (theirs, ours) in names {
        if let Some(value) = nested.as_ref().and_then(|nested| nested.get(theirs)) {
            text = text.with(ours, value);
        }
    }
    build_flat(&text, w).map_err(|error| {
        error.with_field(|field| {
            let theirs = names.iter().find(|(_, ours)| *ours == field);
            theirs.map_or(field.into(), |(theirs, _)| format!("{NEST}.{theirs}"))
        })
    })
}

fn build_flat(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(
        config,
        json!({
            "hidden_size": 6144, "intermediate_size": 3072, "dense_intermediate_size": 12288,
            "shared_intermediate_size": 3072, "num_attention_heads": 64, "num_key_value_heads": 4,
            "num_hidden_layers": 60, "num_local_experts": 128, "num_experts_per_tok": 4,
            "max_position_embeddings": 1_048_576, "rms_norm_eps": 1e-6, "rope_theta": 5e6,
            "head_dim": 128, "vocab_size": 200_064, "tie_word_embeddings": false,
            "routed_scaling_factor": 2.0, "norm_topk_prob": true, "use_qk_norm": true,
            "use_gemma_norm": true, "swiglu_alpha": 1.702, "swiglu_limit": 7.0, "index_local_blocks": 1,
        }),
    );
    let e: Config = config::read(config)?;
    let c = Text::read(&config::without(config, &["layer_types"]))?;
    let routing = LossFreeRouting::read(config, &[("num_local_experts", "n_routed_experts")])?;
    let layers = c.num_hidden_layers;
    config::check_entries("mlp_layer_types", e.mlp_layer_types.as_ref(), layers)?;
    config::check_entries("moe_layer_freq", e.moe_layer_freq.as_ref(), layers)?;
    config::check_entries("layer_types", e.layer_types.as_ref(), layers)?;
    config::check_entries("sparse_attention_freq", e.sparse_attention_freq.as_ref(), layers)?;
    // Only the text model is read.
    ignore_parts(w, &["vision_tower", "multi_modal_projector", "patch_merge_mlp"]);
    let norm = |w: &Scope, name: &str, width| {
        let norm = w.rms_norm(name, width, c.rms_norm_eps)?;
        if e.use_gemma_norm { norm.plus_one() } else { Ok(norm) }
    };
    let share = c.partial_rotary_factor().unwrap_or(0.5);
    let dims = e.rotary_dim.map_or((f64::from(c.head_dim()) * share) as i32, i32::from);
    if dims > c.head_dim() {
        let reason = format!("{dims} of the {} elements of a head", c.head_dim());
        return Err(Error::config("rotary_dim", reason));
    }
    let rope = |dims| Rope::partial(&c, dims);
    let last = |w: &Scope| norm(w, "norm", c.hidden_size);
    let decoder = Decoder::stack_under(w, &c, last, |i, w| {
        let (a, block_norm) = (w.at("self_attn"), |name| norm(w, name, c.hidden_size));
        let mut attention = Attention::read(&a, QKVO, &c, rope(dims)?)?;
        if e.use_qk_norm {
            let own = |name| norm(&a, name, c.head_dim());
            attention = attention.qk_norm(QkNorm::BeforeRope(own("q_norm")?, own("k_norm")?));
        }
        let ffn = e.network(w, &c, i as usize, &routing)?;
        if e.index_block_size.is_none() || !e.is_sparse(i as usize) {
            return pre_norm_under(block_norm, TWO_NORMS, attention, ffn);
        }
        let sizes: BlockIndexerSizes = config::read(config)?;
        let own = rope(dims.min(*sizes.index_head_dim))?;
        let indexer = BlockIndexer::read(&a, &c, &sizes, own, |name, width| norm(&a, name, width))?;
        pre_norm_under(block_norm, TWO_NORMS, BlockAttention::new(attention, indexer), ffn)
    })?;
    Ok(Box::new(decoder))
}

impl Config {
    fn is_sparse(&self, layer: usize) -> bool {
        match (&self.layer_types, &self.sparse_attention_freq) {
            (Some(kinds), _) => kinds[layer] != "full_attention",
            (None, Some(sparse)) => sparse[layer] != 0,
            (None, None) => true,
        }
    }

    fn has_experts(&self, layer: usize) -> bool {
        match (&self.mlp_layer_types, &self.moe_layer_freq) {
            (Some(kinds), _) => kinds[layer] == "sparse",
            (None, Some(sparse)) => sparse[layer] != 0,
            (None, None) => true,
        }
    }

    fn gate(&self) -> impl Gate + use<> {
        clamped_swiglu(self.swiglu_alpha, *self.swiglu_limit)
    }

    fn network(&self, w: &Scope, c: &Text, layer: usize, routing: &LossFreeRouting) -> Result<Ffn> {
        let moe = w.at("block_sparse_moe");
        if !self.has_experts(layer) {
            // Some checkpoints keep the name that Mixtral uses.
            let mlp = if w.has_below("mlp") { w.at("mlp") } else { moe };
            return Ok(Box::new(Mlp::sized_with(&mlp, c, *self.dense_intermediate_size, self.gate())?));
        }
        let router = loss_free_router_at(&moe, &moe, c, routing)?.normalized().rounded();
        let sizes = ExpertSizes {
            count: routing.n_routed_experts,
            width: c.hidden_size,
            inner: c.intermediate_size,
        };
        let (experts, shared) = self.experts(&moe, c, sizes)?;
        Ok(sum(Moe::new(router, experts), shared))
    }

    /// Experts, and the network that all tokens share. Some exports fold that in as the last expert,
    /// and some join gates and values.
    fn experts(&self, w: &Scope, c: &Text, sizes: ExpertSizes) -> Result<(GatedExperts, Mlp)> {
        let ExpertSizes { count, width, inner } = sizes;
        if !w.has_below("switch_mlp") {
            let experts = GatedExperts::read(w, "switch_mlp", sizes, self.gate())?;
            return Ok((experts, self.shared(w, c)?));
        }
        let stack = w.at("switch_mlp");
        let first = if stack.has_below("gate_up_proj") { "gate_up_proj" } else { "gate_proj" };
        let is_folded = [first, "down_proj"].iter().all(|name| {
            let shape = stack.at(name).shape("weight").unwrap_or_default();
            shape.first() == Some(&(count + 1))
        });
        let all = count + i32::from(is_folded);
        let read = |name, output, input| stack.at(name).matrix(&[all, output, input]);
        let [gate, up] = if stack.has_below("gate_up_proj") {
            stack.at("gate_up_proj").halves(&[all, 2 * inner, width])?
        } else {
            [read("gate_proj", inner, width)?, read("up_proj", inner, width)?]
        };
        let matrices = [gate, up, read("down_proj", width, inner)?];
        let [gate, up, down] = matrices.each_ref().map(|matrix| matrix.experts(0, count));
        let experts = GatedExperts::of(w, gate?, up?, down?, self.gate())?;
        if !is_folded {
            return Ok((experts, self.shared(w, c)?));
        }
        let last = |matrix: &Matrix| -> Result<Linear> {
            Ok(Linear::new(w.keep_matrix(matrix.expert(count)?), None))
        };
        let [gate, up, down] = matrices.each_ref().map(last);
        Ok((experts, Mlp::new(gate?, up?, down?, self.gate())))
    }

    /// The shared expert, where it is stored separately.
    fn shared(&self, w: &Scope, c: &Text) -> Result<Mlp> {
        let (w, inner) = (w.at("shared_experts"), *self.shared_intermediate_size);
        if !w.has_below("gate_up_proj") {
            return Mlp::sized_with(&w, c, inner, self.gate());
        }
        let [gate, up] = w.fused("gate_up_proj", c.hidden_size, [inner, inner])?;
        Ok(Mlp::new(gate, up, w.linear("down_proj", inner, c.hidden_size)?, self.gate()))
    }
}
