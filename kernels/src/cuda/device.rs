//! The device over a driver: shapes are asserted here, so that a kernel's arguments keep its contract.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use zeroize::Zeroizing;

pub use super::attention::Rope;
use super::driver::{Driver, Launch, Params};
use super::params::{Embed, InputParams, Select, Softcap};
use super::products::ProductLimits;
use super::residual::Residual;
use super::step::{Cache, Step};
use super::upload::{Pending, Staging};
use super::weights::Matrix;
use crate::batch::Batch;
use crate::device::{
    Activation, Attention, CacheShape, Crossings, Device, DeviceError, Input, Linear, RopeParams,
    RopeStore, Rows,
};
use crate::dtype::Dtype;

/// A card, or what stands for one.
pub struct Cuda<D: Driver> {
    driver: Arc<D>,
    scratch: Mutex<Scratch<D>>,
    /// Of the load that is under way.
    staging: Mutex<Weak<Staging<D>>>,
    pub(super) limits: ProductLimits,
    pub(super) residual: Residual<D>,
    /// The first failure since somebody waited. Nothing is started until he was told.
    failed: Mutex<Option<DeviceError>>,
    /// Whether operations only reserve what they need.
    planning: AtomicBool,
    /// The most blocks of a cache so far: the tables of a step have no more.
    max_blocks: AtomicUsize,
}

/// Activations, `[rows, cols]`, f32.
pub struct Buffer<D: Driver> {
    pub(super) memory: Arc<D::Memory>,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Weights of a norm or a bias.
pub struct Vector<D: Driver> {
    pub(super) memory: Arc<D::Memory>,
    len: usize,
}

/// Memory that an operation needs while it runs. It grows to the largest and stays.
pub(super) struct Scratch<D: Driver> {
    memory: Option<Arc<D::Memory>>,
    bytes: usize,
    tickets: Option<D::Memory>,
    num_tickets: usize,
}

impl<D: Driver> Scratch<D> {
    /// The address of at least so many bytes.
    pub(super) fn at_least(&mut self, driver: &D, bytes: usize) -> Result<u64, DeviceError> {
        if self.bytes < bytes || self.memory.is_none() {
            self.memory = None;
            self.memory = Some(Arc::new(driver.reserve("workspace", bytes)?));
            self.bytes = bytes;
        }
        Ok(self.memory.as_ref().map_or(0, |memory| driver.address(memory)))
    }

    /// For a launch that waits: it may have grown when that is done.
    pub(super) fn memory(&self) -> Option<Arc<D::Memory>> {
        self.memory.clone()
    }

    /// The address of at least so many numbers, which are zero; kernels leave them so.
    pub(super) fn tickets(&mut self, driver: &D, count: usize) -> Result<u64, DeviceError> {
        if self.num_tickets < count || self.tickets.is_none() {
            self.num_tickets = count.next_power_of_two().max(TICKETS);
            let tickets = driver.reserve("workspace", 4 * self.num_tickets)?;
            driver.zero(&tickets, 4 * self.num_tickets)?;
            self.tickets = Some(tickets);
        }
        Ok(self.tickets.as_ref().map_or(0, |tickets| driver.address(tickets)))
    }
}

impl<D: Driver> Cuda<D> {
    /// A device over this driver.
    pub fn new(driver: D) -> Self {
        let limits = ProductLimits::of(driver.architecture());
        Self::with_limits(driver, limits)
    }

    /// As [`Self::new`], with other limits between the kernels for products.
    pub fn with_limits(driver: D, limits: ProductLimits) -> Self {
        let scratch = Scratch { memory: None, bytes: 0, tickets: None, num_tickets: 0 };
        Self {
            driver: Arc::new(driver),
            scratch: Mutex::new(scratch),
            limits,
            residual: Residual::new(),
            staging: Mutex::default(),
            failed: Mutex::default(),
            planning: AtomicBool::new(false),
            max_blocks: AtomicUsize::new(0),
        }
    }

    /// What it computes on.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch<D>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a kernel whose arguments keep its contract: all of this folder's callers have asserted their shapes.
    pub(super) fn launch<P: Params>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        params: &P,
    ) -> Result<(), DeviceError> {
        self.launch_shared(kernel, grid, threads, 0, params)
    }

    /// As [`Self::launch`], with `shared` bytes for what the kernel calls `DYNAMIC_SHARED`.
    pub(super) fn launch_shared<P: Params>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Result<(), DeviceError> {
        self.do_what_waits()?;
        if self.has_failed() {
            return Ok(());
        }
        let launch = Launch { kernel, grid, threads, shared };
        if self.is_planning() {
            return self.driver.find(&launch, size_of::<P>());
        }
        start(&*self.driver, &launch, params)
    }

    /// Keeps a failure for whoever waits next.
    fn note(&self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(error);
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(super) fn is_planning(&self) -> bool {
        self.planning.load(Ordering::Relaxed)
    }

    fn noted(&self) -> Result<(), DeviceError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.map_or(Ok(()), Err)
    }

    /// As the kernels take it.
    pub(super) fn input(&self, rows: usize, input: Input<'_, Self>) -> InputParams {
        let driver = &*self.driver;
        let (x, other, kind, eps) = match input {
            Input::Rows(x) => (x, 0, 0, 0.0),
            Input::Normed { x, weight, eps } => (x, weight.address(driver, x.cols), 1, eps),
            Input::Gated { activation, gate, up } => {
                assert_eq!(gate.cols, up.cols, "gate width");
                assert!(rows <= up.rows, "{rows} rows of {}", up.rows);
                let kind = match activation {
                    Activation::Silu => 2,
                    Activation::GeluTanh => 3,
                    Activation::GeluErf => 4,
                };
                (gate, up.address(driver), kind, 0.0)
            }
        };
        assert!(rows <= x.rows, "{rows} rows of {}", x.rows);
        let cols = count(x.cols);
        // A value for each thread where there are few rows, some where there are blocks enough.
        let span = match (kind, rows) {
            (1, _) => cols.max(1),
            (_, 0..=8) => 256,
            _ => 1024,
        };
        InputParams { x: x.address(driver), other, kind, cols, span, eps }
    }
}

impl<D: Driver> Device for Cuda<D> {
    type Buffer = Buffer<D>;
    type Matrix = Matrix<D>;
    type Vector = Vector<D>;
    type Rope = Rope<D>;
    type Cache = Cache<D>;
    type Step = Step<D>;
    type Upload = Pending<D>;

    fn describe(&self) -> String {
        self.driver.describe()
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer<D>, DeviceError> {
        let memory = self.driver.reserve("activations", 4 * rows * cols)?;
        Ok(Buffer { memory: Arc::new(memory), rows, cols })
    }

    fn begin_matrix(
        &self,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Pending<D>, DeviceError> {
        Pending::new(&self.staging, &self.driver, dtype, rows, cols)
    }

    fn vector(&self, values: &[f32]) -> Result<Vector<D>, DeviceError> {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let memory = self.driver.reserve("a norm or a bias", bytes.len())?;
        self.driver.write(&memory, 0, &bytes)?;
        Ok(Vector { memory: Arc::new(memory), len: values.len() })
    }

    fn rope(&self, params: &RopeParams) -> Result<Rope<D>, DeviceError> {
        Rope::new(&self.driver, params)
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache<D>, DeviceError> {
        Self::check_cache(&shape)?;
        self.max_blocks.fetch_max(shape.num_blocks, Ordering::Relaxed);
        Cache::new(&self.driver, shape)
    }

    fn step(&self, max_tokens: usize) -> Result<Step<D>, DeviceError> {
        Step::new(&self.driver, max_tokens, self.max_blocks.load(Ordering::Relaxed))
    }

    fn set_step(&self, step: &mut Step<D>, batch: &Batch) {
        step.set(batch);
        if !self.is_planning() {
            self.note(step.send(&self.driver));
        }
    }

    fn begin(&self, step: &mut Step<D>, rows: Rows, room: Rows) -> Option<Rows> {
        match self.try_begin(step, rows, room) {
            Ok(rows) => rows,
            Err(error) => {
                self.note(Err(error));
                Some(rows)
            }
        }
    }

    fn end(&self, step: &mut Step<D>) {
        self.note(self.try_end(step));
    }

    fn plan(&self, enqueue: impl FnOnce()) -> Result<(), DeviceError> {
        // What was asked for before is no part of the plan.
        self.note(self.do_what_waits());
        self.planning.store(true, Ordering::Relaxed);
        enqueue();
        self.note(self.do_what_waits());
        self.planning.store(false, Ordering::Relaxed);
        self.noted()
    }

    fn crossings(&self) -> Option<Crossings> {
        Some(self.driver.crossings())
    }

    fn embed(&self, step: &Step<D>, table: &Matrix<D>, scale: f32, out: &mut Buffer<D>) {
        assert_eq!(table.cols, out.cols, "embedding width");
        assert!(step.num_tokens <= out.rows, "{} tokens of {}", step.num_tokens, out.rows);
        if step.num_tokens == 0 {
            return;
        }
        let driver = &*self.driver;
        let params = Embed {
            step: step.params(driver),
            table: table.params(driver),
            out: out.address(driver),
            scale,
            unused: 0,
        };
        let name = format!("embed_{}", table.form.name());
        let grid = [count(step.num_tokens), count(table.cols.div_ceil(512)).max(1), 1];
        self.note(self.launch(&name, grid, 128, &params));
    }

    fn linear(&self, rows: usize, input: Input<'_, Self>, outputs: &mut [Linear<'_, Self>]) {
        self.note(self.try_linear(rows, input, false, outputs));
    }

    fn logits(&self, rows: usize, input: Input<'_, Self>, weight: &Matrix<D>, out: &mut Buffer<D>) {
        self.note(self.try_linear(rows, input, true, &[Linear { weight, bias: None, out }]));
    }

    fn rope_store(&self, step: &Step<D>, args: RopeStore<'_, Self>) {
        self.note(self.try_rope_store(step, &args));
    }

    fn attention(&self, step: &Step<D>, args: Attention<'_, Self>) {
        self.note(self.try_attention(step, &args));
    }

    fn add(&self, rows: usize, input: Input<'_, Self>, sum: &mut Buffer<D>) {
        self.note(self.wait_to_add(rows, input, sum));
    }

    fn select(&self, step: &Step<D>, x: &Buffer<D>, out: &mut Buffer<D>) {
        assert_eq!(x.cols, out.cols, "width of selected rows");
        assert!(step.num_logit_rows <= out.rows && step.num_tokens <= x.rows, "selected rows");
        if step.num_logit_rows > 0 {
            let driver = &*self.driver;
            let (x, out, cols) = (x.address(driver), out.address(driver), count(x.cols));
            let params = Select { x, rows: step.logit_rows(driver), out, cols, unused: 0 };
            let grid = [count(step.num_logit_rows), 1, 1];
            self.note(self.launch("select_rows", grid, 256, &params));
        }
    }

    fn softcap(&self, rows: usize, cap: f32, x: &mut Buffer<D>) {
        assert!(rows <= x.rows, "{rows} rows of {}", x.rows);
        let len = rows * x.cols;
        if len > 0 {
            let params = Softcap { x: x.address(&self.driver), len: len as u64, cap, unused: 0 };
            self.note(self.launch("softcap", [count(len.div_ceil(256)), 1, 1], 256, &params));
        }
    }

    fn clear_blocks(&self, cache: &mut Cache<D>, blocks: &[u32]) {
        self.note(self.try_clear(cache, blocks));
    }

    fn sample(
        &self,
        step: &Step<D>,
        logits: &mut Buffer<D>,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError> {
        let chosen = self.try_sample(step, logits, out);
        self.noted().and(chosen)
    }

    fn download(&self, x: &Buffer<D>, row: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        assert!(row < x.rows && out.len() == x.cols, "row {row} of {}", x.rows);
        self.note(self.do_what_waits());
        let mut bytes = Zeroizing::new(vec![0; 4 * x.cols]);
        let read = self.driver.read(&x.memory, 4 * row * x.cols, &mut bytes);
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        self.noted().and(read)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.note(self.do_what_waits());
        let finished = self.driver.finish();
        self.noted().and(finished)
    }
}

impl<D: Driver> Buffer<D> {
    pub(super) fn address(&self, driver: &D) -> u64 {
        driver.address(&self.memory)
    }
}

impl<D: Driver> Vector<D> {
    /// The address of `len` values.
    pub(super) fn address(&self, driver: &D, len: usize) -> u64 {
        assert_eq!(self.len, len, "length of a norm or a bias");
        driver.address(&self.memory)
    }
}

/// Starts a kernel whose arguments keep its contract, as [`Cuda::launch`].
#[expect(unsafe_code, reason = "the one place where kernels are started")]
pub(super) fn start<D: Driver, P: Params>(
    driver: &D,
    launch: &Launch<'_>,
    params: &P,
) -> Result<(), DeviceError> {
    // SAFETY: addresses are those of memory which the caller borrows, or of scratch memory whose lock it holds; sizes follow
    // from the shapes that it asserted.
    unsafe { driver.launch(launch, params) }
}

/// A count as kernels take it.
#[expect(clippy::expect_used, reason = "models and steps are far smaller")]
pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).expect("fewer than 2^32 of anything")
}

/// Of most models' products.
const TICKETS: usize = 4096;

impl<D: Driver> fmt::Debug for Cuda<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cuda({})", self.driver.describe())
    }
}

impl<D: Driver> fmt::Debug for Buffer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} x {})", self.rows, self.cols)
    }
}

impl<D: Driver> fmt::Debug for Vector<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({})", self.len)
    }
}
