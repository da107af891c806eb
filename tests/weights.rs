//! The arrays of adapters are parameters of a model: they are replaced under a compiled decode step,
//! and have gradients through the forward pass of inference.

use mlx_rs::{Array, Dtype, ops::indexing::take_along_axis, transforms::eval};
use mynah::{
    CachePlan, Error, Result,
    internals::{
        Cache, DecodeStep, Embedded, LanguageModel, Parameters, Scope, Step, Wrapper, families,
        mlx, prefill,
    },
};
use mynah_tests::{Case, Fixture, on_engine};
use serde_json::{Value as Json, json};
use std::{cell::Cell, collections::HashMap, fs, path::Path, rc::Rc};
use tempfile::TempDir;

const CONFIG: &str = "adapter_config.json";

fn case(name: &str) -> Case {
    let (_, fixture) = Fixture::all().into_iter().find(|(known, _)| known == "adapters").unwrap();
    fixture.cases.into_iter().find(|case| case.name == name).unwrap()
}

/// A model that counts its forward passes: those of prefill, and the traces of compiled steps.
struct Counting {
    model: Rc<dyn LanguageModel>,
    passes: Rc<Cell<usize>>,
}

impl Wrapper for Counting {
    fn inner(&self) -> &dyn LanguageModel {
        &*self.model
    }

    fn forward(&self, x: &Embedded, cache: &mut Cache, step: &Step) -> Result<Array> {
        self.passes.set(self.passes.get() + 1);
        self.model.forward(x, cache, step)
    }
}

struct Adapted {
    model: Rc<dyn LanguageModel>,
    passes: Rc<Cell<usize>>,
    parameters: Parameters,
    step: DecodeStep,
}

impl Adapted {
    /// The checkpoint of a case with the adapter in a folder. On the engine's thread.
    fn load(case: &Case, adapter: &Path) -> Result<Self> {
        let scope = Scope::new(case.checkpoint()?, &case.config)?;
        let (model, parameters) = Self::read(case, &scope.with_adapter(&adapter.into())?)?;
        let passes = Rc::new(Cell::new(0));
        let step = DecodeStep::with_parameters(parameters.clone());
        let model = Rc::new(Counting { model, passes: passes.clone() });
        Ok(Adapted { model, passes, parameters, step })
    }

    fn read(case: &Case, scope: &Scope) -> Result<(Rc<dyn LanguageModel>, Parameters)> {
        let family = families::find(case.config["model_type"].as_str().unwrap())?;
        let model = family.language(scope)?;
        let parameters = scope.parameters();
        scope.finish(|_| {})?;
        Ok((model, parameters))
    }

    /// The logits after each token: those of a prefill first, then those of compiled steps.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (prompt, rest) = tokens.split_at(5);
        let mut cache = self.model.cache(&CachePlan::default());
        let hidden = prefill(&*self.model, &ids(prompt), &mut cache)?;
        let mut logits: Vec<f32> = mlx::to_vec(&self.model.logits(&hidden)?)?;
        for token in rest {
            eval(cache.arrays().into_iter().map(|array| &*array))?;
            let next = self.step.run(&self.model, &ids(&[*token]), &mut cache)?;
            logits.extend(mlx::to_vec::<f32>(&next)?);
        }
        Ok(logits)
    }
}

fn ids(tokens: &[u32]) -> Array {
    Array::from_slice(tokens, &[1, tokens.len() as i32])
}

/// The adapter of a case in a folder, after a change of its tensors. On the engine's thread.
fn write(case: &Case, change: impl Fn(&str, &Array) -> Result<Array>) -> Result<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    case.write_adapter(folder.path())?;
    for name in ["adapters.safetensors", "adapter_model.safetensors"] {
        let file = folder.path().join(name);
        if !file.exists() {
            continue;
        }
        let tensors = Array::load_safetensors(&file).unwrap();
        let changed: Result<HashMap<String, Array>> = tensors
            .iter()
            .map(|(name, tensor)| Ok((name.clone(), change(name, tensor)?)))
            .collect();
        let changed = changed?;
        eval(changed.values())?;
        Array::save_safetensors(&changed, None, &file).unwrap();
    }
    Ok(folder)
}

/// Another adapter for the matrices of a case: other values, and another scale.
fn write_other(case: &Case) -> Result<TempDir> {
    let factor = Array::from_f32(-0.7);
    let folder =
        write(case, |_, tensor| Ok(tensor.multiply(&factor)?.as_dtype(tensor.dtype())?))?;
    configure(folder.path(), |config| {
        match config.get_mut("lora_alpha") {
            Some(alpha) => *alpha = json!(3),
            None => config["lora_parameters"]["scale"] = json!(0.8),
        };
    });
    Ok(folder)
}

fn configure(folder: &Path, change: impl FnOnce(&mut Json)) {
    let text = fs::read_to_string(folder.join(CONFIG)).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut config);
    fs::write(folder.join(CONFIG), config.to_string()).unwrap();
}

#[test]
fn a_swapped_adapter_equals_a_fresh_load_under_the_same_compiled_step() {
    for name in [
        "lora",
        "lora bf16",
        "lora 4 bit",
        "lora of the ends",
        "lora of a tied table",
        "dora",
        "experts",
        "fused",
        "peft",
    ] {
        let case = case(name);
        on_engine(move || {
            let (first, second) =
                (write(&case, |_, tensor| Ok(tensor.clone()))?, write_other(&case)?);
            let mut model = Adapted::load(&case, first.path())?;
            let before = model.logits(&case.tokens[..12])?;
            let passes = model.passes.get();
            let mut fresh = Adapted::load(&case, second.path())?;
            let former = Adapted::load(&case, first.path())?.parameters;

            model.parameters.replace(&fresh.parameters)?;
            let after = model.logits(&case.tokens[..12])?;
            assert_eq!(after, fresh.logits(&case.tokens[..12])?, "{}", case.name);
            let difference = before.iter().zip(&after).map(|(one, other)| (one - other).abs());
            let difference = difference.fold(0.0, f32::max);
            assert!(difference > 0.05, "{}: the logits moved by {difference}", case.name);
            assert_eq!(model.passes.get(), passes + 1, "{}: only the prefill", case.name);

            model.parameters.replace(&former)?;
            assert_eq!(model.logits(&case.tokens[..12])?, before, "{}", case.name);
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_swapped_adapter_may_have_another_rank() {
    let case = case("lora");
    on_engine(move || {
        let lower = write(&case, |name, tensor| {
            mlx::slice(tensor, usize::from(name.ends_with("lora_a")), 0, 2)
        })?;
        configure(lower.path(), |config| config["lora_parameters"]["rank"] = json!(2));
        let whole = write(&case, |_, tensor| Ok(tensor.clone()))?;
        let mut model = Adapted::load(&case, whole.path())?;
        model.logits(&case.tokens[..12])?;
        let passes = model.passes.get();
        let mut fresh = Adapted::load(&case, lower.path())?;
        model.parameters.replace(&fresh.parameters)?;
        assert_eq!(model.logits(&case.tokens[..12])?, fresh.logits(&case.tokens[..12])?);
        assert_eq!(model.passes.get(), passes + 2, "the prefill and one trace for other shapes");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_adapter_of_other_matrices_is_refused() {
    on_engine(|| {
        let (all, last) = (case("lora"), case("lora, last layer"));
        let folders = [&all, &last].map(|case| write(case, |_, tensor| Ok(tensor.clone())));
        let [all, last] = [(&all, &folders[0]), (&last, &folders[1])]
            .map(|(case, folder)| Adapted::load(case, folder.as_ref().unwrap().path()).unwrap());
        let before = all.parameters.values();
        let missing = all.parameters.replace(&last.parameters).unwrap_err();
        assert!(matches!(&missing, Error::MissingTensor(name) if name.contains("layers.0")));
        let unused = last.parameters.replace(&all.parameters).unwrap_err();
        assert!(matches!(&unused, Error::UnusedTensors(names) if !names.is_empty()));
        for (now, before) in all.parameters.values().iter().zip(&before) {
            assert_eq!(mlx::to_vec::<f32>(now)?, mlx::to_vec::<f32>(before)?);
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_model_without_an_adapter_has_no_parameters() {
    for name in ["lora", "experts", "full"] {
        let case = case(name);
        on_engine(move || {
            let scope = Scope::new(case.checkpoint()?, &case.config)?;
            assert!(Adapted::read(&case, &scope)?.1.is_empty());
            Ok(())
        })
        .unwrap();
    }
}

/// The mean negative log-probability of each token after those before it.
fn loss(model: &dyn LanguageModel, tokens: &[u32]) -> Result<Array> {
    let count = tokens.len() - 1;
    let mut cache = model.cache(&CachePlan::default());
    let hidden = prefill(model, &ids(&tokens[..count]), &mut cache)?;
    let logits = model.logits(&hidden)?.as_dtype(Dtype::Float32)?;
    let logprobs = logits.subtract(logits.logsumexp_axis(-1, true)?)?;
    let next = Array::from_slice(&tokens[1..], &[1, count as i32, 1]);
    Ok(take_along_axis(&logprobs, next, -1)?.mean(None)?.negative()?)
}

/// The slope of the loss along a direction of one parameter, by central differences.
fn slope(
    parameters: &Parameters,
    place: usize,
    direction: &Array,
    size: f32,
    loss: impl Fn() -> Result<Array>,
) -> Result<f32> {
    let at = |distance: f32| -> Result<f32> {
        let mut values = parameters.values();
        let step = direction.multiply(Array::from_f32(distance))?;
        values[place] = values[place].add(step)?;
        parameters.with(&values, || Ok(loss()?.try_item_cast::<f32>()?))
    };
    Ok((at(size)? - at(-size)?) / (2.0 * size))
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    // From 32 tokens on, those of the experts are sorted.
    for (name, length) in [
        ("lora", 16),
        ("lora 4 bit", 16),
        ("lora of a tied table", 16),
        ("dora", 16),
        ("experts", 16),
        ("experts", 34),
    ] {
        let case = case(name);
        on_engine(move || {
            let folder = write(&case, |_, tensor| Ok(tensor.clone()))?;
            let Adapted { model, parameters, .. } = Adapted::load(&case, folder.path())?;
            let loss = || loss(&*model, &case.tokens[..length]);
            let (value, gradients) = parameters.value_and_gradients(loss)?;
            assert_eq!(value.try_item_cast::<f32>()?, loss()?.try_item_cast::<f32>()?);
            // All but the scale of the adapter.
            assert_eq!(gradients.len(), parameters.len() - 1, "{name}");
            for (place, (name, gradient)) in (1..).zip(&gradients) {
                assert_eq!(parameters.names().nth(place), Some(&**name));
                assert_eq!(gradient.shape(), parameters.values()[place].shape(), "{name}");
                let entries: Vec<f32> = mlx::to_vec(gradient)?;
                let norm = entries.iter().map(|entry| entry * entry).sum::<f32>().sqrt();
                let size = |place: &usize| entries[*place].abs();
                let steepest =
                    (0..entries.len()).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap();
                let mut one = vec![0.0; entries.len()];
                one[steepest] = 1.0;
                let one = Array::from_slice(&one, gradient.shape());
                let whole = gradient.divide(Array::from_f32(norm))?;
                for (direction, expected) in [(one, entries[steepest]), (whole, norm)] {
                    // A step over which a router selects other experts has no slope; a smaller one
                    // does.
                    let sizes = [0.01, 0.003, 0.001];
                    let found = sizes.map(|size| slope(&parameters, place, &direction, size, loss));
                    let found = found.into_iter().collect::<Result<Vec<f32>>>()?;
                    let is_near =
                        |found: &f32| (found - expected).abs() <= 0.03 * expected.abs() + 3e-4;
                    let near = found.iter().any(is_near);
                    assert!(near, "{}, {name}: {found:?}, gradient {expected}", case.name);
                }
            }
            let steep = gradients
                .iter()
                .map(|(_, gradient)| Ok(gradient.abs()?.max(None)?.try_item_cast::<f32>()? > 1e-3));
            let steep = steep.collect::<Result<Vec<bool>>>()?;
            assert!(steep.iter().filter(|is_steep| **is_steep).count() * 2 > steep.len(), "{name}");
            Ok(())
        })
        .unwrap();
    }
}
