//! Steps of few rows as one launch (`cuda/megakernel.cu`): while a step is recorded, products of few rows, rotation and attention are
//! gathered instead of launched; whatever else is asked for has what was gathered started first, as one launch where that
//! is possible. So it shows in nothing but time, and in heads that nobody has turned where they lie, as their attention does.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::{Cuda, count};
use super::driver::{Driver, Launch};
use super::few::{DECLARED, FEW_THREADS, RINGS_BYTES};
use super::params::{
    AttentionParams, FewParams, MegakernelParams, OPERATIONS, OperationParams, RopeStoreParams,
    TurnedAttention, words_of,
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
    /// It waits for its attention.
    RopeStore(RopeStoreParams),
    Attention(AttentionParams),
    /// Attention, and what has turned its heads, which are one operation.
    Turned(AttentionParams, Box<Operation>),
}

impl Operation {
    /// The form of its weights, if it has any.
    fn form(&self) -> Option<&str> {
        self.kernel.strip_prefix("linear_few_")
    }

    fn turns(&self) -> Option<&RopeStoreParams> {
        match &self.params {
            OperationKind::RopeStore(params) => Some(params),
            _ => None,
        }
    }

    /// Whether this is attention over the heads that such an operation turns: then nobody else reads those.
    fn takes(&self, rope: &Self, multiprocessors: usize) -> bool {
        let (OperationKind::Attention(params), Some(turned)) = (&self.params, rope.turns()) else {
            return false;
        };
        let blocks: usize = self.grid.iter().map(|side| *side as usize).product();
        let all = (params.first_token, params.end_token) == (0, rope.grid[0]);
        kind_of(&self.kernel).is_some()
            && (params.early, params.ring) == (1, 2)
            && blocks <= multiprocessors
            && all
            && (params.q, params.cache.k) == (turned.heads.q, turned.cache.k)
    }

    /// Both as one.
    fn turned_by(mut self, rope: Self) -> Self {
        if let OperationKind::Attention(params) = self.params {
            self.params = OperationKind::Turned(params, Box::new(rope));
        }
        self
    }

    /// As the kernel takes it, and the shared memory that it needs there; none where it cannot.
    fn part(&self) -> Option<(OperationParams, usize)> {
        let [x, y, z] = self.grid;
        let shared = self.shared as usize;
        match &self.params {
            OperationKind::Linear(few) if few.fine == 0 => {
                let params = words_of(few);
                Some((OperationParams { kind: LINEAR, x, y, z, params }, shared + JOINED_BYTES))
            }
            OperationKind::Turned(attention, rope) => {
                let heads = rope.turns()?.heads;
                let params = words_of(&TurnedAttention { attention: *attention, heads });
                let kind = kind_of(&self.kernel)?;
                let shared = RINGS_BYTES + JOINED_BYTES + shared;
                Some((OperationParams { kind, x, y, z, params }, shared))
            }
            _ => None,
        }
    }
}

/// The kind of operation that attention by this kernel is, if it can be one.
fn kind_of(attention: &str) -> Option<u32> {
    match attention {
        "attention_token_f16_64" => Some(1),
        "attention_token_f16_128" => Some(2),
        _ => None,
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

impl<D: Driver> Gathered<D> {
    /// Whether this can be part of the same launch: weights of one form, and heads that are turned only in front of their attention.
    fn goes_on_with(&self, operation: &Operation) -> bool {
        let others = || self.operations.iter().filter_map(Operation::form);
        self.operations.last().is_none_or(|last| last.turns().is_none())
            && operation.form().is_none_or(|form| others().all(|other| other == form))
    }
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

    /// Whether attention by this kernel may be gathered, and so has less shared memory.
    pub(super) fn gathers(&self, attention: &str) -> bool {
        kind_of(attention).is_some() && self.gathering.lock().on
    }

    /// Starts an operation, or keeps it for what follows.
    pub(super) fn launch_or_gather(&self, operation: Operation) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        let gathered = &mut *self.gathering.lock();
        if !gathered.on {
            return self.start_alone(&operation);
        }
        let takes = |rope: &Operation| operation.takes(rope, self.driver().multiprocessors());
        let rope = gathered.operations.pop_if(|last| takes(last));
        let operation = match rope {
            Some(rope) => operation.turned_by(rope),
            None => operation,
        };
        let fits = operation.part().is_some_and(|(_, shared)| shared <= self.room());
        if let (true, Some(form)) = (self.is_planning(), operation.form()) {
            // Recorded, it may be gathered with what is not while it is planned.
            let kernel = &format!("megakernel_{form}");
            let launch = self.together(kernel, self.room());
            self.start_or_plan(&launch, &MegakernelParams::none())?;
        }
        let gathers = fits || operation.turns().is_some();
        if !gathers || !gathered.goes_on_with(&operation) {
            self.start_all(gathered)?;
        }
        if !gathers {
            return self.start_alone(&operation);
        }
        gathered.operations.push(operation);
        Ok(())
    }

    /// Shared memory that a block of `megakernel.cu` can have.
    fn room(&self) -> usize {
        (self.limits.shared + JOINED_BYTES).saturating_sub(DECLARED)
    }

    /// Starts what was gathered: before anything else that is asked for.
    pub(super) fn start_gathered(&self) -> Result<(), DeviceError> {
        self.start_all(&mut self.gathering.lock())
    }

    fn start_all(&self, gathered: &mut Gathered<D>) -> Result<(), DeviceError> {
        let mut operations = std::mem::take(&mut gathered.operations);
        let rope = operations.pop_if(|last| last.turns().is_some());
        let launches = operations.len().div_ceil(OPERATIONS).max(1);
        let each = operations.len().div_ceil(launches).max(1);
        for operations in operations.chunks(each) {
            match (operations.iter().find_map(Operation::form), &gathered.meeting) {
                (Some(form), Some(meeting)) if operations.len() >= LEAST => {
                    self.start_together(form, operations, self.driver().address(meeting))?;
                }
                _ => operations.iter().try_for_each(|operation| self.start_alone(operation))?,
            }
        }
        rope.map_or(Ok(()), |rope| self.start_alone(&rope))
    }

    fn start_alone(&self, operation: &Operation) -> Result<(), DeviceError> {
        let Operation { kernel, grid, threads, shared, params } = operation;
        let (grid, threads, shared) = (*grid, *threads, *shared);
        let launch = Launch { kernel, grid, threads, shared, together: false };
        match params {
            OperationKind::Linear(params) => self.start_or_plan(&launch, params),
            OperationKind::RopeStore(params) => self.start_or_plan(&launch, params),
            OperationKind::Attention(params) => self.start_or_plan(&launch, params),
            OperationKind::Turned(params, rope) => {
                self.start_alone(rope)?;
                self.start_or_plan(&launch, params)
            }
        }
    }

    fn start_together(
        &self,
        form: &str,
        operations: &[Operation],
        meeting: u64,
    ) -> Result<(), DeviceError> {
        let parts = operations.iter().filter_map(Operation::part);
        let mut params = MegakernelParams {
            meeting,
            count: count(operations.len()),
            ..MegakernelParams::none()
        };
        let mut most = 0;
        for (place, (part, shared)) in params.operations.iter_mut().zip(parts) {
            *place = part;
            most = shared.max(most);
        }
        let kernel = &format!("megakernel_{form}");
        self.start_or_plan(&self.together(kernel, most), &params)
    }

    fn together<'a>(&self, kernel: &'a str, shared: usize) -> Launch<'a> {
        Launch {
            kernel,
            grid: [count(self.driver().multiprocessors()), 1, 1],
            threads: FEW_THREADS,
            shared: count(shared),
            together: true,
        }
    }
}

/// Operations from which on they are one launch: it begins later than one that is alone, and lets nothing begin before it ends.
const LEAST: usize = 3;
/// Of `megakernel.cu`.
const LINEAR: u32 = 0;
/// Of `few.cuh`: sums that are joined, which `linear_few.cu` declares.
const JOINED_BYTES: usize = 16 << 10;
const MEETING_BYTES: usize = 8;

impl<D: Driver> fmt::Debug for Gathering<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gathering")
    }
}
