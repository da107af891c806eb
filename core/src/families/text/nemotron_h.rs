//! Nemotron H, Nano 2 and Nemotron 3: each layer is one branch, by a pattern: Mamba 2 with a norm of each
//! group, attention without positions, an MLP without a gate and with squared ReLU, or such experts
//! beside a shared one, which may see a narrower latent stream. The layers of Puzzle models differ in
//! their sizes. Follows `nemotron_h` of mlx-lm and of transformers.

use crate::families::prelude::*;

pub const FAMILY: Family = Family {
    model_types: &["nemotron_h", "nemotron_h_puzzle"],
    build,
    recommended: Recommended::NOTHING,
};

/// The config fields of experts.
#[derive(Deserialize)]
struct ExpertConfig {
    moe_intermediate_size: Size,
    moe_latent_size: Option<Size>,
    n_shared_experts: Option<Count>,
    moe_shared_expert_intermediate_size: Option<Size>,
}

const MIXER_NAMES: &[(&str, &str)] = &[
    ("mamba_num_heads", "mamba_n_heads"),
    ("mamba_head_dim", "mamba_d_head"),
    ("n_groups", "mamba_n_groups"),
    ("ssm_state_size", "mamba_d_state"),
    ("conv_kernel", "mamba_d_conv"),
    ("use_conv_bias", "mamba_conv_bias"),
];

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"mamba_hidden_act": "silu", "mlp_hidden_act": "relu2"}))?;
    let kinds = kinds(config)?;
    let c = text(config, kinds.len())?;
    w.ignore("mtp");
    let root = w.at(if w.has_below("backbone") { "backbone" } else { "model" });
    let names = Names { embedding: "embeddings", norm: "norm_f", ..Names::default() };
    Ok(Box::new(Decoder::named(&root, names, &c, Head::of(w, &c)?, |i, w| {
        let i = i as usize;
        let config = &layer_config(config, i)?;
        let (c, m) = (text(config, kinds.len())?, w.at("mixer"));
        let norm = w.rms_norm("norm", c.hidden_size, c.rms_norm_eps)?;
        Ok(match kinds[i] {
            LayerKind::Recurrence => Block::new(Residual::pre(norm, mixer(config, &m, &c)?)),
            LayerKind::Attention => {
                let attention = Attention::read(&m, QKVO, &c, Rope::None)?;
                Block::new(Residual::pre(norm, attention))
            }
            LayerKind::Mlp => {
                let earlier = kinds[..i].iter().filter(|kind| **kind == LayerKind::Mlp).count();
                Block::new(Residual::pre(norm, mlp(&m, &c, inner(config, earlier)?)?))
            }
            LayerKind::Experts => Block::new(Residual::pre(norm, experts(config, &m, &c)?)),
        })
    })?))
}

/// The kind of each layer, by one of four fields.
fn kinds(config: &Json) -> Result<Vec<LayerKind>> {
    use LayerKind::{Attention, Experts, Mlp, Recurrence};
    let known = [Attention, Recurrence, Mlp, Experts];
    let fields = ["hybrid_override_pattern", "layers_block_type", "layer_types"];
    if let Some(kinds) = LayerKind::of_config(config, &fields, &known)? {
        return Ok(kinds);
    }
    let blocks = blocks(config).ok_or_else(|| Error::config(fields[0], "missing"))?;
    blocks.iter().for_each(Json::mark);
    let types: Vec<Option<&Json>> = blocks.iter().map(|block| block.get("block_type")).collect();
    let types = json!({"block_configs": types}).into();
    let kinds = LayerKind::of_config(&types, &["block_configs"], &known)?;
    Ok(kinds.unwrap_or_default())
}

/// The configs of the layers of Puzzle models.
fn blocks(config: &Json) -> Option<&[Json]> {
    config.get("block_configs")?.as_array()
}

/// The config of one layer: in Puzzle models, each has some fields of its own.
fn layer_config(config: &Json, layer: usize) -> Result<Json> {
    let Some(blocks) = blocks(config) else { return Ok(config.clone()) };
    let own = config::entry("block_configs", blocks, layer as i32)?;
    Ok(config::with_defaults(own, config.clone()))
}

/// The usual fields; how many layers there are follows from their kinds.
fn text(config: &Json, layers: usize) -> Result<Text> {
    let elsewhere = ["num_hidden_layers", "layer_types", "intermediate_size", "hidden_act"];
    let defaults = json!({
        "num_hidden_layers": layers, "intermediate_size": 1, "layer_norm_epsilon": 1e-5,
    });
    let own = config::with_defaults(&config::without(config, &elsewhere), defaults);
    Text::read_renamed(&own, &[("layer_norm_epsilon", "rms_norm_eps")])
}

/// No time step is shorter than `time_step_min`, as in transformers; a higher bound in
/// `time_step_limit` counts too, as in mlx-lm.
fn mixer(config: &Json, w: &Scope, c: &Text) -> Result<Mamba2> {
    let use_bias: Option<bool> = config::field(config, "use_bias")?;
    let defaults = json!({"mamba_proj_bias": use_bias, "time_step_min": 0.001});
    let config = config::with_defaults(config, defaults);
    let config::Float(shortest) = config::field(&config, "time_step_min")?;
    let mut sizes = Mamba2Config::read(&config, MIXER_NAMES)?;
    let limit = sizes.time_step_limit.unwrap_or(TimeStepLimit::NONE);
    sizes.time_step_limit = Some(limit.at_least(shortest));
    let norm = GatedNorm { eps: c.rms_norm_eps, is_before_gate: false };
    Mamba2::read(w, c.hidden_size, &sizes, Some(norm))
}

/// The width of an MLP: the same for all, or one for each MLP, of which `earlier` come before.
fn inner(config: &Json, earlier: usize) -> Result<i32> {
    let widths: PerLayer = config::field(config, "intermediate_size")?;
    match widths.entries() {
        [width] => Ok(**width),
        widths => config::entry("intermediate_size", widths, earlier as i32).map(|width| **width),
    }
}

fn mlp(w: &Scope, c: &Text, inner: i32) -> Result<PlainMlp> {
    let c = Text { intermediate_size: inner, ..c.clone() };
    PlainMlp::read(w, PlainNames { up: "up_proj", down: "down_proj" }, &c, relu_squared)
}

fn experts(config: &Json, w: &Scope, c: &Text) -> Result<Ffn> {
    let e: ExpertConfig = config::read(config)?;
    let defaults = json!({"norm_topk_prob": true, "routed_scaling_factor": 1.0});
    let routing = config::with_defaults(config, defaults);
    let routing = LossFreeRouting::read(&routing, &[("num_local_experts", "n_routed_experts")])?;
    let router = loss_free_router(w, c, &routing)?;
    let latent = e.moe_latent_size.map(i32::from);
    let read = if *c.mlp_bias { Scope::linear_with_bias } else { Scope::linear };
    let narrow = latent.map(|latent| -> Result<[Linear; 2]> {
        let down = read(w, "fc1_latent_proj", c.hidden_size, latent)?;
        Ok([down, read(w, "fc2_latent_proj", latent, c.hidden_size)?])
    });
    let narrow = narrow.transpose()?;
    let (width, inner) = (latent.unwrap_or(c.hidden_size), *e.moe_intermediate_size);
    let names = if w.has_below("switch_mlp") { ["fc1", "fc2"] } else { ["up_proj", "down_proj"] };
    let stack = |name, input, output| {
        let sizes = StackSizes { experts: routing.n_routed_experts, input, output };
        w.experts_named(ExpertNames { stacked: "switch_mlp", split: "experts" }, name, sizes)
    };
    let (up, down) = (stack(names[0], width, inner)?, stack(names[1], inner, width)?);
    let routed = Map(move |x: &Array| {
        let (ids, weights) = router.route(x)?;
        let y = |x: &Array| -> Result<Array> {
            let y = dispatch(x, &ids, |x, ids, sorted| {
                down.forward(&relu_squared(&up.forward(x, ids, sorted)?)?, ids, sorted)
            })?;
            mix(&y, &weights)
        };
        match &narrow {
            Some([into, back]) => back.forward(&y(&into.forward(x)?)?),
            None => y(x),
        }
    });
    if !e.n_shared_experts.map_or(w.has_below("shared_experts"), |count| *count > 0) {
        return Ok(Box::new(routed));
    }
    let inner = e.moe_shared_expert_intermediate_size.unwrap_or(e.moe_intermediate_size);
    Ok(sum(routed, mlp(&w.at("shared_experts"), c, *inner)?))
}
