//! Prism's packs of Qwen 3.5 in 2 bits, whose matrices expect rotated inputs, as a manifest in the
//! config says. Follows `prism_hadamard_qwen35` of mlx-lm.

use crate::families::prelude::*;
use crate::families::text::qwen3_5;

pub const FAMILY: Family = Family {
    model_types: &["prism_hadamard_qwen35"],
    build,
    recommended: qwen3_5::RECOMMENDED,
};

#[derive(Deserialize)]
struct Module {
    path: String,
    embedding: bool,
    dtype: String,
}

fn build(config: &Json, w: &Scope) -> Result<Box<dyn LanguageModel>> {
    config::only(config, json!({"gdn_activation_layout": "grouped"}))?;
    let (schema, namespace): (Option<i64>, String) =
        (config::field(config, "schema_version")?, config::field(config, "tensor_namespace")?);
    // Packs of the language model alone, and of the whole model.
    let known = [(1, "mlx-lm-text"), (2, "mlx-vlm-qwen3_5")];
    if !known.contains(&(schema.unwrap_or(2), namespace.as_str())) {
        let reason = format!("`{namespace}` is not supported with this `schema_version`");
        return Err(Error::unsupported("tensor_namespace", reason));
    }
    let packing = config.get("quantization").filter(|packing| packing.is_object());
    let packing = packing.ok_or_else(|| Error::config("quantization", "not an object"))?;
    config::only(packing, json!({"bits": 2, "group_size": 128, "mode": "affine"}))
        .map_err(|error| error.with_field(|name| format!("quantization.{name}")))?;
    let modules: Vec<Module> = config::field(config, "modules")?;
    if let Some(module) = modules.iter().find(|module| module.dtype != "float16") {
        let reason = format!("activations in `{}` are not supported", module.dtype);
        return Err(Error::unsupported("modules", reason));
    }
    for Module { path, embedding, .. } in &modules {
        if *embedding != path.ends_with("embed_tokens") {
            let reason = format!("`embedding` of `{path}` is {embedding}");
            return Err(Error::config("modules", reason));
        }
    }
    qwen3_5::build(config, w)
}
