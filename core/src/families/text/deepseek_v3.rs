//! DeepSeek V3 and R1, Kimi K2: multi-head latent attention (MLA), whose KV cache holds the
//! latents; after a few dense layers, routed experts beside a shared expert. Follows `deepseek_v3`
//! of mlx-lm, and DeepSeek's own code, as in transformers, for `rope_interleave` and
//! `rope_parameters`.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["deepseek_v3", "kimi_k2", "joyai_llm_flash"],
    build,
    recommended: Recommended::NOTHING,
};

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    Ok(Box::new(decoder(config, w)?))
}

pub fn decoder(config: &Json, w: &Scope) -> Result<Decoder> {
    let config = &complete(config);
    let c = Config::read(config)?;
    let rope = c.latent.rope(&c.text)?;
    // The norms of the low-rank projections have an epsilon of their own.
    let attention = |_, w: &Scope| Mla::read(w, &c.text, &c.latent, 1e-6, rope.clone());
    c.decoder(w, attention, |w| router(w, &c.text, config))
}

/// The config with defaults for fields that published configs omit.
pub fn complete(config: &Json) -> Json {
    config::with_defaults(
        config,
        json!({
            "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
            "qk_nope_head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
            "norm_topk_prob": true, "routed_scaling_factor": 1.0, "num_experts_per_tok": 1,
            "tie_word_embeddings": false,
        }),
    )
}

/// The config fields that the DeepSeek families and their relatives share.
pub struct Config {
    pub text: Text,
    pub latent: LatentSizes,
    pub sparsity: Sparsity,
}

impl Config {
    pub fn read(config: &Json) -> Result<Self> {
        let text = Text::read(config)?;
        let latent = LatentSizes::read(config, text.num_attention_heads)?;
        let sparsity = Sparsity::read(config, text.num_hidden_layers)?;
        Ok(Config { text, latent, sparsity })
    }

    /// The decoder with `attention` in every layer, which gets the layer index, and `router` in
    /// layers with experts.
    pub fn decoder<A: Layer + 'static, R: Router + 'static>(
        &self,
        w: &Scope,
        attention: impl Fn(i32, &Scope) -> Result<A>,
        router: impl Fn(&Scope) -> Result<R>,
    ) -> Result<Decoder> {
        let Config { text: c, sparsity, .. } = self;
        ignore_prediction_layers(w, c);
        let (body, head) = body(w);
        // Transformers saves those of Kimi K2.5 under a name of its vision tower.
        let layers = if body.has_below("blocks") { "blocks" } else { "layers" };
        let names = Names { layers, ..Names::default() };
        Decoder::named(&body, names, c, Head::of(&head, c)?, |i, w| {
            let network = sparsity.network(&w.at("mlp"), c, i, |w, _| router(w))?;
            pre_norm(w, c, attention(i, &w.at("self_attn"))?, network)
        })
    }
}

pub fn router(w: &Scope, c: &Text, config: &Json) -> Result<LossFreeRouter> {
    loss_free_router(w, c, &routing(config)?)
}

/// The router, with the config fields of which only one value is supported.
pub fn routing(config: &Json) -> Result<LossFreeRouting> {
    config::only(config, json!({"topk_method": "noaux_tc", "scoring_func": "sigmoid"}))?;
    config::read(config)
}
