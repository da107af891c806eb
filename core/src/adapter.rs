//! Adapters: what fine-tuning adds to a model or changes in it, in a folder of its own, as mlx-lm or
//! PEFT writes it.
//!
//! mlx-lm names tensors by its own modules, PEFT by those of transformers. Checkpoints have the names
//! of one or the other, so an adapter fits where the two agree: everywhere but in models that mlx-lm
//! renames as it reads them. Whatever finds no matrix of its name is an error.

use crate::{
    checkpoint,
    config::{self, Json},
    error::{Error, List, Result},
    files::Files,
    parts::{
        linear::{Experts, Matrix},
        low_rank::LowRank,
    },
    weights::{Scope, is_floating},
};
use mlx_rs::Array;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

const CONFIG: &str = "adapter_config.json";
const MLX_LM: &str = "adapters.safetensors";
const PEFT: &str = "adapter_model.safetensors";

/// The files of which an adapter has two.
pub(crate) const FILES: [&str; 3] = [CONFIG, MLX_LM, PEFT];

/// Fields of PEFT's config that change what an adapter is, unless they are off.
const OFF: &[&str] = &[
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "ensure_weight_tying",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

/// Ways to begin that leave the matrices of the model as they are.
const BEGINNINGS: &[&str] = &["eva", "gaussian", "orthogonal"];

/// An adapter on its way into a model.
pub(crate) struct Adapter {
    file: PathBuf,
    unread: RefCell<BTreeMap<String, Tensor>>,
    /// Nothing in a full fine-tune.
    product: Option<Product>,
    is_peft: bool,
}

struct Tensor {
    /// As the file has it.
    name: String,
    values: Array,
}

#[derive(Clone, Copy)]
struct Product {
    rank: i32,
    scale: f32,
    has_lengths: bool,
}

#[derive(Deserialize)]
struct MlxLmConfig {
    lora_parameters: MlxLmParameters,
}

#[derive(Deserialize)]
struct MlxLmParameters {
    #[serde(deserialize_with = "config::size")]
    rank: i32,
    #[serde(deserialize_with = "config::positive")]
    scale: f32,
}

#[derive(Deserialize)]
struct PeftConfig {
    #[serde(deserialize_with = "config::size")]
    r: i32,
    #[serde(deserialize_with = "config::positive")]
    lora_alpha: f32,
    #[serde(default, deserialize_with = "config::switch")]
    use_rslora: bool,
    #[serde(default, deserialize_with = "config::switch")]
    use_dora: bool,
}

/// What tells an adapter from others.
///
/// # Errors
/// As [`Files::fingerprint`].
pub(crate) fn fingerprint(files: &Files) -> Result<String> {
    let file = file(&config(files)?);
    files.hash(CONFIG, &[file.to_string()].into())
}

impl Adapter {
    /// Opens the adapter in a folder.
    ///
    /// # Errors
    /// [`Error::Config`] for a kind that is not supported, those of the file of tensors, and
    /// [`Error::Adapter`] for two tensors of one place.
    pub fn open(files: &Files) -> Result<Self> {
        let config = config(files)?;
        let (name, is_peft) = (file(&config), file(&config) == PEFT);
        let product = if is_peft { Some(peft(&config)?) } else { mlx_lm(&config)? };
        let mut unread = BTreeMap::<_, Tensor>::new();
        let file = files.path(name);
        for (name, values) in checkpoint::file(files, name)? {
            let (usual, is_turned) =
                if is_peft { usual_peft(&name) } else { (usual(&name), false) };
            let values = if is_turned { values.t() } else { values };
            if let Some(other) = unread.insert(usual, Tensor { name: name.clone(), values }) {
                let reason = format!("`{name}` and `{}` are one place", other.name);
                return Err(Error::Adapter { file, reason });
            }
        }
        Ok(Adapter { file, unread: RefCell::new(unread), product, is_peft })
    }

    /// Replaces tensors of a checkpoint by those that the adapter has as a whole.
    ///
    /// # Errors
    /// [`Error::TensorShape`].
    pub fn replace(&self, tensors: &mut HashMap<String, Array>) -> Result<()> {
        if self.product.is_some() && !self.is_peft {
            return Ok(());
        }
        let mut unread = self.unread.borrow_mut();
        for (name, tensor) in tensors {
            let Some(Tensor { name, values }) = unread.remove(&usual(name)) else { continue };
            if values.shape() != tensor.shape() {
                return Err(misshaped(name, &values, tensor.shape()));
            }
            *tensor = values;
        }
        Ok(())
    }

    fn take(&self, name: &str, shape: &[i32]) -> Result<Option<Array>> {
        let tensor = self.unread.borrow_mut().remove(&usual(name));
        let Some(Tensor { name, values }) = tensor else { return Ok(None) };
        if values.shape() != shape {
            return Err(misshaped(name, &values, shape));
        }
        if !is_floating(&values) {
            return Err(self.wrong(format!("tensor `{name}` holds {:?}", values.dtype())));
        }
        Ok(Some(values))
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Adapter { file: self.file.clone(), reason }
    }

    fn missing(&self, name: &str) -> Error {
        self.wrong(format!("has no tensor `{name}`"))
    }

    /// An error if there are tensors that the model had no use for.
    ///
    /// # Errors
    /// [`Error::Adapter`].
    pub fn finish(&self) -> Result<()> {
        let unread = self.unread.take();
        if unread.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = unread.into_values().map(|tensor| tensor.name).collect();
        Err(self.wrong(format!("the model has no place for {}", List(&names))))
    }
}

/// The shapes of the two factors, by their rank.
type Shapes = dyn Fn(i32) -> [Vec<i32>; 2];

fn projection([output, input]: [i32; 2]) -> impl Fn(i32) -> [Vec<i32>; 2] {
    move |rank| [vec![input, rank], vec![rank, output]]
}

impl Scope {
    /// What the adapter adds to the matrix `[output, input]` here.
    pub(crate) fn added(&self, matrix: &Matrix, sizes: [i32; 2]) -> Result<Option<LowRank>> {
        let Some(added) = self.product("", &projection(sizes))? else { return Ok(None) };
        Ok(Some(self.keep_added(self.lengthened(added, matrix, sizes[0])?)))
    }

    /// As [`Scope::added`], to each of the matrices that are read from one, as [`Scope::fused_by_group`]
    /// does. The adapter, too, may have factors for all of them or for each.
    pub(crate) fn added_to_parts<const N: usize>(
        &self,
        matrix: &Matrix,
        input: i32,
        groups: i32,
        outputs: [i32; N],
    ) -> Result<Vec<Option<LowRank>>> {
        let total = groups * outputs.iter().sum::<i32>();
        let Some(all) = self.product("", &projection([total, input]))? else {
            let part = |(i, output)| {
                let added = self.product(&format!(".{i}"), &projection([output, input]))?;
                Ok(added.map(|added| self.keep_added(added)))
            };
            return outputs.into_iter().enumerate().map(part).collect();
        };
        let all = self.lengthened(all, matrix, total)?;
        let mut start = 0;
        let part = |output| {
            let from = start;
            start += output;
            Ok(Some(self.keep_rows(all.rows(groups, from, start)?)))
        };
        self.keep(all.a.clone());
        outputs.into_iter().map(part).collect()
    }

    /// What the adapter adds to the table `[vocabulary, width]` here, and to a head that is tied to it.
    pub(crate) fn added_to_table(
        &self,
        table: &Matrix,
        [vocabulary, width]: [i32; 2],
    ) -> Result<[Option<LowRank>; 2]> {
        let shapes = move |rank| [vec![vocabulary, rank], vec![rank, width]];
        let Some(LowRank { a, b, scale, stretch }) = self.product("", &shapes)? else {
            return Ok([None, None]);
        };
        let added = LowRank { a: b.t(), b: a.t(), scale, stretch };
        let added = self.keep_added(self.lengthened(added, table, vocabulary)?);
        // PEFT leaves the head alone that transformers ties to the table.
        let is_tied = self.adapter().is_some_and(|adapter| !adapter.is_peft);
        Ok([Some(added.clone()), is_tied.then_some(added)])
    }

    /// What the adapter adds to the matrices `[count, output, input]` of experts here. It has factors
    /// for all of them, or for each under a name of its own.
    pub(crate) fn added_to_experts(
        &self,
        each: impl Fn(i32) -> Scope,
        [count, input, output]: [i32; 3],
    ) -> Result<Option<LowRank>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let shapes = move |rank| [vec![count, rank, input], vec![count, output, rank]];
        let added = match self.product("", &shapes)? {
            Some(added) => {
                let (a, b) = (added.a.swap_axes(-1, -2)?, added.b.swap_axes(-1, -2)?);
                LowRank { a, b, ..added }
            }
            None => {
                let factors = |i| each(i).product("", &projection([output, input]));
                let factors = (0..count).map(factors).collect::<Result<Vec<_>>>()?;
                if factors.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let missing = |i| adapter.missing(&each(i).full_name("lora_a"));
                let factors = (0..).zip(factors).map(|(i, one)| one.ok_or_else(|| missing(i)));
                LowRank::stack(&factors.collect::<Result<Vec<_>>>()?)?
            }
        };
        if adapter.product.is_some_and(|product| product.has_lengths) {
            let name = self.full_name("lora_a");
            return Err(adapter.wrong(format!("`{name}`: experts with lengths are not supported")));
        }
        Ok(Some(self.keep_added(added.for_experts()?)))
    }

    /// With what the adapter adds to experts here under the name that they have in a stack, if it
    /// knows them by that.
    pub(crate) fn adapted_experts(
        &self,
        experts: Experts,
        name: &str,
        sizes: [i32; 3],
    ) -> Result<Experts> {
        let stack = self.at("experts");
        let added = stack.at(name).added_to_experts(|i| stack.at(i).at(name), sizes)?;
        Ok(if added.is_some() { experts.adapted(added) } else { experts })
    }

    /// The factors of a product as the file has them.
    fn product(&self, part: &str, shapes: &Shapes) -> Result<Option<LowRank>> {
        let Some(adapter) = self.adapter() else { return Ok(None) };
        let Some(product) = adapter.product else { return Ok(None) };
        let names = ["lora_a", "lora_b"].map(|factor| self.full_name(&format!("{factor}{part}")));
        let [a, b] = shapes(product.rank);
        match (adapter.take(&names[0], &a)?, adapter.take(&names[1], &b)?) {
            (None, None) => Ok(None),
            (Some(a), Some(b)) => Ok(Some(LowRank { a, b, scale: product.scale, stretch: None })),
            (a, _) => Err(adapter.missing(&names[usize::from(a.is_some())])),
        }
    }

    /// With the lengths of rows, where the adapter is one that has them.
    fn lengthened(&self, added: LowRank, matrix: &Matrix, output: i32) -> Result<LowRank> {
        let Some(adapter) = self.adapter() else { return Ok(added) };
        if !adapter.product.is_some_and(|product| product.has_lengths) {
            return Ok(added);
        }
        let name = self.full_name("m");
        let lengths = adapter.take(&name, &[output])?.ok_or_else(|| adapter.missing(&name))?;
        added.with_lengths(matrix, &lengths)
    }

    fn keep_added(&self, added: LowRank) -> LowRank {
        self.keep(added.a.clone());
        self.keep_rows(added)
    }

    fn keep_rows(&self, added: LowRank) -> LowRank {
        for array in [Some(&added.b), added.stretch.as_ref()].into_iter().flatten() {
            self.keep(array.clone());
        }
        added
    }
}

fn config(files: &Files) -> Result<Json> {
    files.json(CONFIG)?.ok_or_else(|| wrong("", "there is no such file"))
}

/// The file of tensors that belongs to a config.
fn file(config: &Json) -> &'static str {
    if config.get("peft_type").is_some_and(|kind| !kind.is_null()) { PEFT } else { MLX_LM }
}

fn mlx_lm(config: &Json) -> Result<Option<Product>> {
    let kind = match config.get("fine_tune_type") {
        None => Some("lora"),
        Some(kind) => kind.as_str(),
    };
    let has_lengths = match kind {
        Some("full") => return Ok(None),
        Some("lora") => false,
        Some("dora") => true,
        _ => return Err(wrong("fine_tune_type", "not `lora`, `dora` or `full`")),
    };
    let MlxLmParameters { rank, scale } = read::<MlxLmConfig>(config)?.lora_parameters;
    Ok(Some(Product { rank, scale, has_lengths }))
}

fn peft(config: &Json) -> Result<Product> {
    if config.get("peft_type").and_then(Json::as_str) != Some("LORA") {
        return Err(wrong("peft_type", "only `LORA` is supported"));
    }
    let is_off = |value: &Json| match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(list) => list.is_empty(),
        Json::Object(map) => map.is_empty(),
        _ => false,
    };
    let is_on = |field: &&&str| config.get(**field).is_some_and(|value| !is_off(value));
    if let Some(field) = OFF.iter().find(is_on) {
        return Err(wrong(field, "not supported"));
    }
    if config.get("bias").is_some_and(|bias| bias != "none") {
        return Err(wrong("bias", "only `none` is supported"));
    }
    if let Some(Json::String(way)) = config.get("init_lora_weights")
        && !BEGINNINGS.contains(&&**way)
    {
        let reason = format!("`{way}` changes the model before anything is added to it");
        return Err(wrong("init_lora_weights", &reason));
    }
    let PeftConfig { r, lora_alpha, use_rslora, use_dora } = read(config)?;
    let divisor = if use_rslora { f64::from(r).sqrt() } else { f64::from(r) };
    let scale = (f64::from(lora_alpha) / divisor) as f32;
    Ok(Product { rank: r, scale, has_lengths: use_dora })
}

fn read<T: DeserializeOwned>(config: &Json) -> Result<T> {
    config::read(config).map_err(|error| match error {
        Error::Config { field, reason, .. } => wrong(&field, &reason),
        error => error,
    })
}

fn wrong(field: &str, reason: &str) -> Error {
    Error::Config { file: CONFIG.into(), field: field.into(), reason: reason.into() }
}

fn misshaped(name: String, found: &Array, expected: &[i32]) -> Error {
    Error::TensorShape { name, found: found.shape().to_vec(), expected: expected.to_vec() }
}

/// A name as it is compared: without the wrappers of whole models, which converters nest in different
/// ways, and with one word for experts in a stack.
fn usual(name: &str) -> String {
    let is_wrapper = |part: &&str| ["model", "language_model", "transformer"].contains(part);
    let mut parts: Vec<&str> = name.split('.').skip_while(is_wrapper).collect();
    for part in &mut parts {
        if ["switch_mlp", "switch_glu"].contains(part) {
            *part = "experts";
        }
    }
    parts.dedup_by(|one, other| *one == "experts" && one == other);
    parts.join(".")
}

/// What mlx-lm would call a tensor of PEFT's, and whether it has it transposed.
fn usual_peft(name: &str) -> (String, bool) {
    const SUFFIXES: &[(&str, &str, bool)] = &[
        (".lora_A.weight", ".lora_a", true),
        (".lora_B.weight", ".lora_b", true),
        (".lora_embedding_A", ".lora_a", true),
        (".lora_embedding_B", ".lora_b", true),
        (".lora_magnitude_vector", ".m", false),
        // It saves a table of embeddings whole, beside what it adds to that.
        (".base_layer.weight", ".weight", false),
    ];
    let name = usual(name.strip_prefix("base_model.model.").unwrap_or(name));
    let theirs = |(theirs, ours, is_turned): &(&str, &str, bool)| {
        Some((name.strip_suffix(theirs)?.to_string() + ours, *is_turned))
    };
    SUFFIXES.iter().find_map(theirs).unwrap_or((name.clone(), false))
}
