//! `mynah inspect` and `mynah families`.

use crate::{
    Outcome,
    model::{self, Adapter},
    terminal::{bytes, print, print_json},
};
use clap::Args;
use mynah::{Inspection, Memory, internals::families};
use std::{collections::BTreeMap, process::ExitCode};

#[derive(Args)]
pub struct Arguments {
    /// A directory or a hub repository, org/name[@revision]; default: the embedded demo model
    model: Option<String>,
    /// The length of the context for which to estimate memory; default: the model's, at most 4096
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    adapter: Adapter,
}

#[derive(Args)]
pub struct FamiliesArguments {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let location = model::location(arguments.model.as_deref());
    let inspection = match arguments.adapter.location() {
        Some(adapter) => mynah::inspect_with_adapter(location, adapter, arguments.context).await?,
        None => mynah::inspect(location, arguments.context).await?,
    };
    if arguments.json {
        print_json(&inspection)?;
    } else {
        print(&describe(&inspection))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(inspection: &Inspection) -> String {
    let number = |n: Option<u64>| n.map_or("unknown".into(), |n| n.to_string());
    let yes = |is: bool| if is { "yes" } else { "no" }.to_string();
    let supported = inspection.problem.as_ref().map_or("yes".into(), |why| format!("no: {why}"));
    let packing = inspection.quantization.iter().map(|packing| {
        let mynah::Packing { mode, bits, group_size, matrices } = packing;
        format!("{mode}, {bits} bits, groups of {group_size}, {matrices} matrices")
    });
    let dense = inspection.dtypes.iter().map(|(dtype, count)| format!("{dtype}, {count} tensors"));
    let lines = [
        ("model type", inspection.model_type.clone()),
        ("family", inspection.family.unwrap_or("none").to_string()),
        ("supported", supported),
        ("layers", number(inspection.layers)),
        ("hidden size", number(inspection.hidden_size)),
        ("context", number(inspection.context.map(|tokens| tokens as u64))),
        ("parameters", inspection.parameters.to_string()),
        ("size", bytes(inspection.bytes)),
        ("weights", packing.chain(dense).collect::<Vec<_>>().join("; ")),
        ("tokenizer", yes(inspection.tokenizer)),
        ("chat template", yes(inspection.chat_template)),
    ];
    let gated = inspection.gated.map(|gated| ("gated", yes(gated)));
    let ignored = inspection.ignored_fields.join(", ");
    let ignored = Some(("ignored fields", ignored)).filter(|(_, fields)| !fields.is_empty());
    let memory = inspection.memory.as_ref().map(|memory| ("memory", describe_memory(memory)));
    let lines = lines.into_iter().chain(gated).chain(ignored).chain(memory);
    lines.map(|(name, value)| format!("{name:<14} {value}\n")).collect()
}

fn describe_memory(memory: &Memory) -> String {
    let Memory { context, weights, cache, needed, device, fits } = memory;
    let parts = format!("{} weights, {} cache", bytes(*weights), bytes(*cache));
    let verdict = match (device, fits) {
        (Some(device), Some(true)) => format!(": fits in {}", bytes(*device)),
        (Some(device), _) => format!(": does not fit in {}", bytes(*device)),
        _ => String::new(),
    };
    format!("{} for {context} tokens ({parts}){verdict}", bytes(*needed))
}

/// Each family with its model types, under the first of them.
pub fn families(arguments: FamiliesArguments) -> Outcome {
    if arguments.json {
        let types = families::all().map(|family| (family.model_types[0], family.model_types));
        print_json(&types.collect::<BTreeMap<_, _>>())?;
    } else {
        let lines = families::all().map(|family| family.model_types.join(" ") + "\n");
        print(&lines.collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
