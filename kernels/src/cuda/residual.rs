//! An `add` that waits: mostly the norm of its sum is what the next product takes, and then one kernel does both. Everything else
//! that is asked for has it done first, so that it shows in nothing but time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{Buffer, Cuda};
use super::driver::Driver;
use super::params::{InputParams, InputRows};
use crate::device::{DeviceError, Input};

/// What waits to be added, if anything does.
pub(super) struct Residual<D: Driver>(Mutex<Option<Waiting<D>>>);

/// `sum += input`, with the memory of both, which may be dropped in the meantime.
pub(super) struct Waiting<D: Driver> {
    rows: usize,
    pub(super) input: InputParams,
    sum: Arc<D::Memory>,
    _input: [Option<Arc<D::Memory>>; 2],
}

impl<D: Driver> Residual<D> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn replace(&self, waiting: Option<Waiting<D>>) -> Option<Waiting<D>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut slot, waiting)
    }
}

impl<D: Driver> Cuda<D> {
    /// Keeps an addition for whoever comes next.
    pub(super) fn wait_to_add(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        sum: &Buffer<D>,
    ) -> Result<(), DeviceError> {
        let made = self.input(rows, input);
        assert_eq!(made.cols as usize, sum.cols, "width of a sum");
        assert!(rows <= sum.rows, "{rows} rows of {}", sum.rows);
        self.add_what_waits()?;
        let _input = match input {
            Input::Rows(x) => [Some(x.memory.clone()), None],
            Input::Normed { x, weight, .. } => {
                [Some(x.memory.clone()), Some(weight.memory.clone())]
            }
            Input::Gated { gate, up, .. } => [Some(gate.memory.clone()), Some(up.memory.clone())],
        };
        if rows > 0 {
            let waiting = Waiting { rows, input: made, sum: sum.memory.clone(), _input };
            self.residual.replace(Some(waiting));
        }
        Ok(())
    }

    /// What waits to be added to these rows, if their norm is what is asked for: the caller adds it.
    pub(super) fn take_added(&self, rows: usize, input: Input<'_, Self>) -> Option<Waiting<D>> {
        let Input::Normed { x, .. } = input else { return None };
        let waiting = self.residual.replace(None)?;
        if waiting.rows == rows && Arc::ptr_eq(&waiting.sum, &x.memory) {
            return Some(waiting);
        }
        self.residual.replace(Some(waiting));
        None
    }

    /// Before anything that does not take it along.
    pub(super) fn add_what_waits(&self) -> Result<(), DeviceError> {
        let Some(waiting) = self.residual.replace(None) else { return Ok(()) };
        let out = self.driver().address(&waiting.sum);
        let params = InputRows { input: waiting.input, out };
        self.launch("add_rows", waiting.input.grid(waiting.rows), 256, &params)
    }
}

impl<D: Driver> fmt::Debug for Residual<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Residual")
    }
}
