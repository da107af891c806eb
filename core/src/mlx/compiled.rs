//! Functions that MLX traces once and replays.

use crate::error::{Error, Result};
use mlx_rs::{Array, error::Exception, transforms::compile};
use std::{cell::RefCell, rc::Rc};

type Traced = dyn FnMut(&[Array]) -> Result<Vec<Array>, Exception>;

/// A function whose graph MLX has traced, simplified and fused for one set of input shapes.
pub(crate) struct Compiled {
    function: Box<Traced>,
    /// The error of the function, which MLX does not pass on.
    failure: Rc<RefCell<Option<Error>>>,
}

impl Compiled {
    /// Wraps `f`, which runs at the first call, on arrays without values, and at every call if
    /// compilation is off. Arrays that it captures must have been evaluated; they become constants.
    pub(crate) fn new(f: impl Fn(&[Array]) -> Result<Vec<Array>> + 'static) -> Self {
        let failure = Rc::<RefCell<Option<Error>>>::default();
        let report = failure.clone();
        let traced = move |inputs: &[Array]| {
            f(inputs).map_err(|error| {
                report.replace(Some(error));
                Exception::custom("the traced function failed")
            })
        };
        Compiled { function: Box::new(compile::compile(traced, false)), failure }
    }

    pub(crate) fn call(&mut self, inputs: &[Array]) -> Result<Vec<Array>> {
        (self.function)(inputs)
            .map_err(|exception| self.failure.take().unwrap_or_else(|| exception.into()))
    }
}
