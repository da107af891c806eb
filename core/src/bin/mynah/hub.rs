//! `mynah download`, `mynah models` and `mynah rm`: the cache of downloaded models.

use crate::{
    Outcome,
    progress::Progress,
    terminal::{bytes, print, print_json, say},
};
use clap::Args;
use mynah::{
    Source,
    hub::{self, CachedModel, CachedRevision, default_cache},
};
use std::{path::PathBuf, process::ExitCode, time::SystemTime};

const ENVIRONMENT: &str = "\
The hub, the cache and the access token are those of Python's huggingface_hub. The environment
variables HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN and HF_HUB_OFFLINE change them.";

#[derive(Args)]
#[command(after_help = ENVIRONMENT)]
pub struct DownloadArguments {
    /// A hub repository: org/name or org/name@revision
    #[arg(value_name = "REPOSITORY")]
    name: String,
}

#[derive(Args)]
#[command(after_help = ENVIRONMENT)]
pub struct ModelsArguments {
    /// Move the cache with all models to this folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "json")]
    move_to: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = ENVIRONMENT)]
pub struct RemoveArguments {
    /// The repositories to delete: org/name, or org/name@revision for one revision
    #[arg(value_name = "REPOSITORY", required = true)]
    names: Vec<String>,
}

/// Prints the folder of the model's files.
pub async fn download(arguments: DownloadArguments) -> Outcome {
    let source = Source::new(&arguments.name)?;
    let mut progress = Progress::default();
    let folder = mynah::download(&source, move |event| progress.show_download(&event)).await?;
    print(&format!("{}\n", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub fn models(arguments: ModelsArguments) -> Outcome {
    let cache = default_cache();
    if let Some(to) = arguments.move_to {
        hub::move_to(&cache, &to)?;
        say(&format!("moved; set HF_HUB_CACHE to {} to use the models there", to.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let models = hub::list(&cache)?;
    if arguments.json {
        print_json(&models)?;
    } else {
        print(&models.iter().map(describe).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(model: &CachedModel) -> String {
    let mut text = format!("{:<48} {:>10}\n", model.repository, bytes(model.bytes));
    for CachedRevision { commit, names, bytes: size, last_used, complete } in &model.revisions {
        let name = if names.is_empty() { String::new() } else { format!(" {}", names.join(" ")) };
        let state = if *complete { "complete" } else { "incomplete" };
        let used = last_used.map_or_else(String::new, |time| format!(", used {}", ago(time)));
        let short = commit.get(..8).unwrap_or(commit);
        text +=
            &format!("  {:<46} {:>10}  {state}{used}\n", format!("{short}{name}"), bytes(*size));
    }
    text
}

fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |since| since.as_secs());
    match seconds {
        86_400.. => format!("{} d ago", seconds / 86_400),
        3_600.. => format!("{} h ago", seconds / 3_600),
        _ => format!("{} min ago", seconds / 60),
    }
}

pub fn remove(arguments: RemoveArguments) -> Outcome {
    let cache = default_cache();
    for name in &arguments.names {
        let freed = match name.split_once('@') {
            Some((repository, revision)) => {
                hub::delete_revision(&cache, &repository.parse()?, revision)
            }
            None => hub::delete(&cache, &name.parse()?),
        };
        say(&format!("deleted {name}, which frees {}", bytes(freed?)));
    }
    Ok(ExitCode::SUCCESS)
}
