//! EXAONE 3 and 3.5: Llama with GPT-2's tensor names. Follows `exaone` of mlx-lm.

use crate::families::prelude::*;

pub const FAMILY: Family =
    Family { model_types: &["exaone"], build, recommended: Recommended::NOTHING };

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    let config = &config::with_defaults(config, json!({"tie_word_embeddings": true}));
    let names = [
        ("num_layers", "num_hidden_layers"),
        ("layer_norm_epsilon", "rms_norm_eps"),
        ("activation_function", "hidden_act"),
    ];
    let c = Text::read_renamed(config, &names)?;
    let rope = Rope::of(&c)?;
    let names = Names { embedding: "wte", layers: "h", norm: "ln_f" };
    let head = Head::of(w, &c)?;
    Ok(Box::new(Decoder::named(&w.at("transformer"), names, &c, head, |_, w| {
        let names = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let attention = Attention::read(&w.at("attn.attention"), names, &c, rope.clone())?;
        let mlp =
            Mlp::of(&w.at("mlp"), MlpNames { gate: "c_fc_0", up: "c_fc_1", down: "c_proj" }, &c)?;
        pre_norm_named(w, TwoNorms { before_mixer: "ln_1", before_ffn: "ln_2" }, &c, attention, mlp)
    })?))
}
