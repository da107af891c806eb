//! Arrays of a model that can be replaced, such as the factors of adapters, and gradients by them.

use crate::error::{Error, Result};
use mlx_rs::{
    Array,
    error::Exception,
    stop_gradient,
    transforms::{eval, value_and_grad_with_argnums},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    rc::Rc,
};

/// An array that can be replaced while layers hold it. Clones share it.
#[derive(Clone)]
pub struct Parameter(Rc<RefCell<Array>>);

impl Parameter {
    /// A parameter with this value.
    pub fn new(value: Array) -> Self {
        Parameter(Rc::new(RefCell::new(value)))
    }

    /// The current value.
    pub fn value(&self) -> Array {
        self.0.borrow().clone()
    }
}

/// The parameters of a model, in the order in which its weights were read. Clones share them.
///
/// A compiled step takes the values as inputs, so it follows a replacement: without tracing anew
/// where shapes and types stay the same.
#[derive(Clone, Default)]
pub struct Parameters(Rc<Vec<Entry>>);

/// One parameter of a list.
#[derive(Clone)]
pub(crate) struct Entry {
    pub name: String,
    pub parameter: Parameter,
    /// Whether gradients are taken by it.
    pub is_trainable: bool,
}

impl Parameters {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        Parameters(Rc::new(entries))
    }

    /// How many parameters there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of each parameter: that of the tensor, as the checkpoint would name it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| &*entry.name)
    }

    /// The current values.
    pub fn values(&self) -> Vec<Array> {
        self.0.iter().map(|entry| entry.parameter.value()).collect()
    }

    /// Takes over the values of another list, of the same model with another adapter, once they are
    /// computed.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] and [`Error::UnusedTensors`] when the adapters change different
    /// matrices; [`Error::Mlx`] when the file of the other adapter cannot be read. The values are
    /// then as before.
    pub fn replace(&self, other: &Parameters) -> Result<()> {
        let theirs: BTreeSet<&str> = other.names().collect();
        if let Some(missing) = self.names().find(|name| !theirs.contains(name)) {
            return Err(Error::MissingTensor(missing.into()));
        }
        let ours: BTreeSet<&str> = self.names().collect();
        let unused: Vec<String> =
            other.names().filter(|name| !ours.contains(name)).map(String::from).collect();
        if !unused.is_empty() {
            return Err(Error::UnusedTensors(unused));
        }
        if !self.names().eq(other.names()) {
            return Err(Error::Internal("parameters of one model come in one order".into()));
        }
        let values = other.values();
        eval(&values)?;
        self.set(values);
        Ok(())
    }

    /// Runs `f` while the parameters have these values.
    ///
    /// # Errors
    /// Those of `f`; [`Error::Internal`] when there is not one value for each parameter.
    pub fn with<T>(&self, values: &[Array], f: impl FnOnce() -> Result<T>) -> Result<T> {
        /// Sets the former values again, whatever `f` does.
        struct Restore<'a>(&'a Parameters, Vec<Array>);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.set(std::mem::take(&mut self.1));
            }
        }
        if values.len() != self.len() {
            let reason = format!("{} values for {} parameters", values.len(), self.len());
            return Err(Error::Internal(reason));
        }
        let _restore = Restore(self, self.values());
        self.set(values.to_vec());
        f()
    }

    /// The value of a scalar function of the parameters, and its gradient by each trainable one, by
    /// name. A DoRA magnitude is the ratio of the length that a row gets to its own; as in the
    /// paper, its own length counts as a constant.
    ///
    /// # Errors
    /// Those of `loss`; [`Error::Mlx`].
    pub fn value_and_gradients(
        &self,
        loss: impl Fn() -> Result<Array>,
    ) -> Result<(Array, Vec<(String, Array)>)> {
        let trainable = || (0..).zip(&*self.0).filter(|(_, entry)| entry.is_trainable);
        let places: Vec<i32> = trainable().map(|(place, _)| place).collect();
        let failure = RefCell::new(None);
        let _taking = TakingGradients::begin();
        let function = |values: &[Array]| -> Result<Vec<Array>, Exception> {
            self.with(values, &loss).map(|loss| vec![loss]).map_err(|error| {
                failure.replace(Some(error));
                Exception::custom("the loss failed")
            })
        };
        let result = value_and_grad_with_argnums(function, &places[..])(&self.values());
        let (values, gradients) =
            result.map_err(|exception| failure.take().unwrap_or_else(|| exception.into()))?;
        let value = values.into_iter().next();
        let value = value.ok_or_else(|| Error::Internal("a loss has one value".into()))?;
        let names = trainable().map(|(_, entry)| entry.name.clone());
        Ok((value, names.zip(gradients).collect()))
    }

    fn set(&self, values: Vec<Array>) {
        for (entry, value) in self.0.iter().zip(values) {
            entry.parameter.0.replace(value);
        }
    }
}

thread_local! {
    static TAKES_GRADIENTS: Cell<bool> = const { Cell::new(false) };
}

/// While one exists, this thread takes gradients.
struct TakingGradients {
    before: bool,
}

impl TakingGradients {
    fn begin() -> Self {
        TakingGradients { before: TAKES_GRADIENTS.replace(true) }
    }
}

impl Drop for TakingGradients {
    fn drop(&mut self) {
        TAKES_GRADIENTS.set(self.before);
    }
}

/// Indices that depend on parameters, such as the ids of the experts that a router selects. No
/// gradient flows through them: MLX refuses to compute one. Without gradients they stay as they
/// are, because an operation that does nothing still costs the host time.
pub(crate) fn detach_indices(ids: Array) -> Result<Array> {
    if TAKES_GRADIENTS.get() { Ok(stop_gradient(&ids)?) } else { Ok(ids) }
}
