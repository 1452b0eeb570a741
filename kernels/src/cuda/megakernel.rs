//! Steps of few rows as one launch (`cuda/megakernel.cu`): while a step is recorded, products of few rows, rotation and attention are
//! gathered instead of launched; whatever else is asked for has what was gathered started first, as one launch where that
//! is possible. So it shows in nothing but time.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::{Cuda, count};
use super::driver::{Driver, Launch};
use super::few::{DECLARED, FEW_THREADS, RINGS_BYTES};
use super::params::{
    AttentionParams, FewParams, MegakernelParams, OPERATIONS, OperationParams, RopeStoreParams,
    words_of,
};
use crate::device::DeviceError;

/// What a launch would be if it were not gathered.
pub(super) struct Operation {
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
    pub(super) params: OperationKind,
}

/// Its arguments.
pub(super) enum OperationKind {
    Linear(FewParams),
    RopeStore(RopeStoreParams),
    Attention(AttentionParams),
}

impl Operation {
    /// The form of its weights, if it has any.
    fn form(&self) -> Option<&str> {
        self.kernel.strip_prefix("linear_few_")
    }

    /// As the kernel takes it, and the shared memory that it needs there; none where it cannot.
    fn part(&self, multiprocessors: usize) -> Option<(OperationParams, usize)> {
        let (kind, params, shared) = match &self.params {
            OperationKind::Linear(few) if few.fine == 0 => (0, words_of(few), self.shared as usize),
            OperationKind::Linear(_) => return None,
            OperationKind::RopeStore(rope) => (1, words_of(rope), RINGS_BYTES + HEADS_BYTES),
            OperationKind::Attention(attention) => {
                let kind = match self.kernel.as_str() {
                    "attention_token_f16_64" => 2,
                    "attention_token_f16_128" => 3,
                    _ => return None,
                };
                let blocks: usize = self.grid.iter().map(|side| *side as usize).product();
                if blocks > multiprocessors || attention.ring != 2 {
                    return None;
                }
                (kind, words_of(attention), RINGS_BYTES + self.shared as usize)
            }
        };
        let [x, y, z] = self.grid;
        Some((OperationParams { kind, x, y, z, params }, shared))
    }
}

/// What was gathered since something was launched.
pub(super) struct Gathering<D: Driver>(Mutex<Gathered<D>>);

struct Gathered<D: Driver> {
    /// Whether a step is recorded, or planned, that may be few launches.
    on: bool,
    operations: Vec<Operation>,
    /// Two numbers of the device: blocks that have arrived, and that have left.
    meeting: Option<D::Memory>,
}

impl<D: Driver> Gathering<D> {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Gathered { on: false, operations: Vec::new(), meeting: None }))
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Driver> Cuda<D> {
    /// From here on what can be one launch is gathered, if the step has few tokens.
    pub(super) fn begin_gathering(&self, tokens: usize) -> Result<(), DeviceError> {
        let mut gathered = self.gathering.lock();
        gathered.on = tokens <= self.limits.megakernel_rows;
        if gathered.on && gathered.meeting.is_none() {
            let meeting = self.driver().reserve("workspace", MEETING_BYTES)?;
            self.driver().zero(&meeting, MEETING_BYTES)?;
            gathered.meeting = Some(meeting);
        }
        Ok(())
    }

    /// To here.
    pub(super) fn end_gathering(&self) -> Result<(), DeviceError> {
        self.gathering.lock().on = false;
        self.start_gathered()
    }

    /// Whether attention should divide its shared memory so that it can be gathered.
    pub(super) fn gathers(&self) -> bool {
        self.gathering.lock().on
    }

    /// Starts an operation, or keeps it for what follows.
    pub(super) fn launch_or_gather(&self, operation: Operation) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        let mut gathered = self.gathering.lock();
        let room = self.limits.shared.saturating_sub(DECLARED);
        let part = operation.part(self.driver().multiprocessors());
        if !gathered.on || part.is_none_or(|(_, shared)| shared > room) {
            drop(gathered);
            self.start_gathered()?;
            return self.start_alone(&operation);
        }
        let others = gathered.operations.iter().find_map(Operation::form);
        if operation.form().is_some_and(|form| others.is_some_and(|other| other != form)) {
            drop(gathered);
            self.start_gathered()?;
            gathered = self.gathering.lock();
        }
        gathered.operations.push(operation);
        Ok(())
    }

    /// Starts what was gathered: before anything else that is asked for.
    pub(super) fn start_gathered(&self) -> Result<(), DeviceError> {
        let gathered = &mut *self.gathering.lock();
        let operations = std::mem::take(&mut gathered.operations);
        let launches = operations.len().div_ceil(OPERATIONS).max(1);
        let each = operations.len().div_ceil(launches).max(1);
        for operations in operations.chunks(each) {
            match (operations.iter().find_map(Operation::form), &gathered.meeting) {
                (Some(form), Some(meeting)) if operations.len() > 1 => {
                    self.start_together(form, operations, self.driver().address(meeting))?;
                }
                _ => operations.iter().try_for_each(|operation| self.start_alone(operation))?,
            }
        }
        Ok(())
    }

    fn start_alone(&self, operation: &Operation) -> Result<(), DeviceError> {
        let Operation { kernel, grid, threads, shared, params } = operation;
        let (grid, threads, shared) = (*grid, *threads, *shared);
        let launch = Launch { kernel, grid, threads, shared, together: false };
        match params {
            OperationKind::Linear(params) => self.start_or_plan(&launch, params),
            OperationKind::RopeStore(params) => self.start_or_plan(&launch, params),
            OperationKind::Attention(params) => self.start_or_plan(&launch, params),
        }
    }

    fn start_together(
        &self,
        form: &str,
        operations: &[Operation],
        meeting: u64,
    ) -> Result<(), DeviceError> {
        let multiprocessors = self.driver().multiprocessors();
        let parts = operations.iter().filter_map(|operation| operation.part(multiprocessors));
        let mut params = MegakernelParams {
            meeting,
            count: count(operations.len()),
            unused: 0,
            operations: [OperationParams::NONE; OPERATIONS],
        };
        let mut most = 0;
        for (place, (part, shared)) in params.operations.iter_mut().zip(parts) {
            *place = part;
            most = shared.max(most);
        }
        // Another step of this kind may need all that there is.
        let planned = self.is_planning().then(|| self.limits.shared.saturating_sub(DECLARED));
        let launch = Launch {
            kernel: &format!("megakernel_{form}"),
            grid: [count(multiprocessors), 1, 1],
            threads: FEW_THREADS,
            shared: count(planned.unwrap_or(most)),
            together: true,
        };
        self.start_or_plan(&launch, &params)
    }
}

/// Of `megakernel.cu`: room for the heads that sixteen warps turn.
const HEADS_BYTES: usize = 16 << 10;
const MEETING_BYTES: usize = 8;

impl<D: Driver> fmt::Debug for Gathering<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathering")
    }
}
