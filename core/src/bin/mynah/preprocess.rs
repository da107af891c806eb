//! `mynah preprocess`.

use crate::{
    Failure, Outcome,
    media::Media,
    model,
    terminal::{print, print_json},
};
use clap::Args;
use mynah::{NamedTensor, Prepared, Values, preprocess};
use serde::Serialize;
use std::{process::ExitCode, sync::Arc};

const MEANING: &str = "\
Shows what a model reads of pictures, without loading the model: the tensor that its vision tower gets,
and how many positions of a prompt the pictures take.";

#[derive(Args)]
#[command(after_help = MEANING)]
pub struct Arguments {
    /// A directory
    model: String,
    #[command(flatten)]
    media: Media,
    /// Show the values at these places of the tensor, counted row by row
    #[arg(long, value_name = "INDICES", value_delimiter = ',')]
    at: Vec<usize>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// The line that `--json` prints.
#[derive(Serialize)]
struct Report {
    pixel_values: Tensors,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    grid_thw: Vec<Vec<i32>>,
    soft_tokens: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Tensors {
    /// All pictures in one tensor.
    Joined(Statistics),
    /// Pictures of different shapes.
    Each(Vec<Statistics>),
}

/// What a tensor holds.
#[derive(Serialize)]
struct Statistics {
    shape: Vec<i32>,
    /// By colour channel.
    mean: [f64; 3],
    /// The standard deviation by colour channel.
    std: [f64; 3],
    /// The values at the places that were asked for; null beyond the end.
    values: Vec<Option<f32>>,
    /// The smallest value, the 15 quantiles between, and the largest one.
    quantiles: Vec<f64>,
}

pub async fn run(arguments: Arguments) -> Outcome {
    let media = arguments.media.attachments()?;
    if media.is_empty() {
        return Err(Failure::Usage(
            "there is no picture or clip; pass one with --image or --video",
        ));
    }
    let prepared = preprocess(model::location(Some(&arguments.model)), &media)?;
    let report = Report::new(&prepared, &arguments.at);
    match (&report.pixel_values, arguments.json) {
        (_, true) => print_json(&report)?,
        (Tensors::Joined(tensor), false) => print(&tensor.line())?,
        (Tensors::Each(tensors), false) => {
            print(&tensors.iter().map(Statistics::line).collect::<String>())?;
        }
    }
    if !arguments.json {
        print(&format!("{} positions of the prompt\n", report.soft_tokens))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(prepared: &[Arc<Prepared>], at: &[usize]) -> Self {
        let tensor = |prepared: &Prepared, suffix: &str| {
            prepared.tensors.iter().find(|tensor| tensor.name.contains(suffix)).cloned()
        };
        let pixels: Vec<_> = prepared.iter().filter_map(|it| tensor(it, "pixel_values")).collect();
        let run = prepared.first().map_or(1, |prepared| prepared.channel_run);
        let pixel_values = match joined(&pixels) {
            Some(all) => Tensors::Joined(Statistics::new(&all, run, at)),
            None => {
                let each = pixels.iter().zip(prepared);
                Tensors::Each(
                    each.map(|(it, prepared)| Statistics::new(it, prepared.channel_run, at))
                        .collect(),
                )
            }
        };
        let grids = prepared.iter().filter_map(|it| tensor(it, "grid_thw"));
        let rows = |grid: NamedTensor| match grid.values {
            Values::Integers(values) => values,
            Values::Floats(_) => Vec::new(),
        };
        Report {
            pixel_values,
            grid_thw: grids.map(rows).collect(),
            soft_tokens: prepared.iter().map(|prepared| prepared.soft_tokens).sum(),
        }
    }
}

/// Pictures whose tensors differ in their number of views or patches alone, in one tensor.
fn joined(tensors: &[NamedTensor]) -> Option<NamedTensor> {
    let first = tensors.first()?;
    let axis = usize::from(first.shape.len() == 5);
    let others = |tensor: &NamedTensor| {
        let mut shape = tensor.shape.clone();
        shape.get_mut(axis).map(|size| std::mem::replace(size, 0));
        shape
    };
    let is_alike = tensors.iter().all(|tensor| others(tensor) == others(first));
    let mut all = first.clone();
    for tensor in tensors.iter().skip(1).filter(|_| is_alike) {
        all.shape[axis] += tensor.shape[axis];
        if let (Values::Floats(all), Values::Floats(more)) = (&mut all.values, &tensor.values) {
            all.extend(more);
        }
    }
    is_alike.then_some(all)
}

impl Statistics {
    fn new(tensor: &NamedTensor, channel_run: usize, at: &[usize]) -> Self {
        let values: Vec<f32> = match &tensor.values {
            Values::Floats(values) => values.clone(),
            Values::Integers(values) => values.iter().map(|value| *value as f32).collect(),
        };
        let channel = |channel: usize| {
            let runs = values.chunks(channel_run).skip(channel).step_by(3);
            runs.flatten().map(|value| f64::from(*value))
        };
        let mean = [0, 1, 2].map(|index| mean(channel(index)));
        let variance =
            [0, 1, 2].map(|index| self::mean(channel(index).map(|x| (x - mean[index]).powi(2))));
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        Statistics {
            shape: tensor.shape.clone(),
            mean,
            std: variance.map(f64::sqrt),
            values: at.iter().map(|index| values.get(*index).copied()).collect(),
            quantiles: (0..=16).map(|part| quantile(&sorted, f64::from(part) / 16.0)).collect(),
        }
    }

    /// One line for people.
    fn line(&self) -> String {
        let shape: Vec<_> = self.shape.iter().map(ToString::to_string).collect();
        let numbers = |numbers: &[f64]| {
            numbers.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(" ")
        };
        format!(
            "{}: mean {}, deviation {}, from {:.4} to {:.4}\n",
            shape.join(" x "),
            numbers(&self.mean),
            numbers(&self.std),
            self.quantiles.first().copied().unwrap_or_default(),
            self.quantiles.last().copied().unwrap_or_default(),
        )
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// The value below which this share of the sorted values is, interpolated as numpy does.
fn quantile(sorted: &[f32], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let value = |index: usize| sorted.get(index).map_or(0.0, |value| f64::from(*value));
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len().saturating_sub(1));
    value(below) + (value(above) - value(below)) * place.fract()
}
