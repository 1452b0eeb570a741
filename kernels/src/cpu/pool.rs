//! Threads that share the tiles of one operation, and nothing between operations.
//!
//! An operation is a number of tiles. Every thread has an equal run of neighbours, the same in every
//! step, so that it reads memory in order; who has done his takes what others have left. Each tile
//! computes its outputs wholly and alone, so who computes it shows in no result. The caller works
//! too, and at the end it waits only for threads that are inside a tile: one that another process
//! keeps from running costs nothing. An idle thread spins for some tens of microseconds, then parks.
#![expect(unsafe_code, reason = "a borrowed closure is lent to threads that outlive the borrow")]

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A function of `(tile, worker)`.
type TileFn<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One operation at a time.
    turn: Mutex<()>,
}

struct Shared {
    /// `operation << 32 | OPEN | threads inside`. A thread enters by compare-and-swap while OPEN is
    /// set; the caller clears OPEN and waits for none inside before it takes the job back.
    state: AtomicU64,
    job: UnsafeCell<Option<*const TileFn<'static>>>,
    runs: Vec<Run>,
    panicked: AtomicBool,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

/// The tiles of one thread; on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Run {
    next: AtomicUsize,
    end: AtomicUsize,
}

// SAFETY: `job` is written only while nobody is inside (see `state`) and read only from inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only ever followed while its closure is borrowed by `run`.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({:x})", self.state.load(Ordering::Relaxed))
    }
}

impl Pool {
    /// A pool in which `threads` threads work, the caller's own included.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            runs: (0..=helpers).map(|_| Run::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Self { shared, threads: Vec::new(), turn: Mutex::new(()) };
        for index in 0..helpers {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("kernels-{}", index + 1));
            pool.threads.push(thread.spawn(move || shared.help(index))?);
        }
        Ok(pool)
    }

    /// Threads that work, the caller's included.
    pub(super) fn num_threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// As [`Pool::run`], on the caller's thread alone.
    pub(super) fn alone(&self, count: usize, tile: &TileFn<'_>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        (0..count).for_each(|i| tile(i, 0));
    }

    /// Calls `tile(i, worker)` once for each `i` below `count`, on any thread. No two concurrent
    /// calls have the same `worker`, which is below [`Pool::num_threads`].
    ///
    /// # Panics
    /// When a tile panics.
    pub(super) fn run(&self, count: usize, tile: &TileFn<'_>) {
        if count <= 1 || self.threads.is_empty() {
            return self.alone(count, tile);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let job = std::ptr::from_ref(tile);
        // SAFETY: only the lifetime changes. The pointer is followed only between the opening below
        // and the end of `Close::drop`, and `tile` is borrowed until after that.
        let job = unsafe { std::mem::transmute::<*const TileFn<'_>, *const TileFn<'static>>(job) };
        // SAFETY: `turn` makes this the only caller, and the last operation left nobody inside.
        unsafe { *shared.job.get() = Some(job) };
        let threads = shared.runs.len();
        for (worker, run) in shared.runs.iter().enumerate() {
            run.next.store(count * worker / threads, Ordering::Relaxed);
            run.end.store(count * (worker + 1) / threads, Ordering::Relaxed);
        }
        shared.panicked.store(false, Ordering::Relaxed);
        let operation = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.store(operation << 32 | OPEN, Ordering::SeqCst);
        for (thread, parked) in self.threads.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
        let close = Close(shared);
        shared.work(tile, 0);
        drop(close);
        assert!(!shared.panicked.load(Ordering::Relaxed), "a tile panicked on another thread");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let joined = thread.join();
            debug_assert!(joined.is_ok(), "helpers catch the panics of tiles");
        }
    }
}

/// Ends an operation, also when the caller's own tile panics: nobody new enters, and those inside
/// are waited for.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        // After a panic there may be tiles left; none is taken any more.
        for run in &self.0.runs {
            run.next.store(usize::MAX / 2, Ordering::Relaxed);
        }
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Shared {
    /// Takes the worker's own tiles, then those of others, until there is none left.
    fn work(&self, tile: &TileFn<'_>, worker: usize) {
        let (others, own) = self.runs.split_at(worker);
        for run in own.iter().chain(others) {
            let end = run.end.load(Ordering::Relaxed);
            // Looked at before it is counted up: the line of a finished run stays shared.
            while run.next.load(Ordering::Relaxed) < end {
                let i = run.next.fetch_add(1, Ordering::Relaxed);
                if i >= end {
                    break;
                }
                tile(i, worker);
            }
        }
    }

    /// The life of a helper.
    fn help(&self, index: usize) {
        let mut done = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.enter(&mut done) {
                self.tiles(index + 1);
                self.state.fetch_sub(1, Ordering::Release);
            } else if !self.spin(done) {
                self.parked[index].store(true, Ordering::SeqCst);
                let idle = !is_open(self.state.load(Ordering::SeqCst), done);
                if idle && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
            }
        }
    }

    /// Enters the open operation, if it is not the one this thread has already `done`.
    fn enter(&self, done: &mut u64) -> bool {
        let state = self.state.load(Ordering::Acquire);
        if !is_open(state, *done) {
            return false;
        }
        let entered =
            self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
        if entered.is_ok() {
            *done = state >> 32;
        }
        // On a lost race the caller of this function sees a spin that ends at once.
        entered.is_ok()
    }

    fn tiles(&self, worker: usize) {
        // SAFETY: this thread is inside, so the job is set and nobody writes it.
        let job = unsafe { *self.job.get() };
        let Some(job) = job else { return };
        // SAFETY: `run` keeps the closure borrowed until this thread has left.
        let tile = unsafe { &*job };
        if catch_unwind(AssertUnwindSafe(|| self.work(tile, worker))).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Waits a little for an operation; whether one came.
    fn spin(&self, done: u64) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if is_open(self.state.load(Ordering::Relaxed), done) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN_TIME || self.stop.load(Ordering::Relaxed) {
                return false;
            }
        }
    }
}

fn is_open(state: u64, done: u64) -> bool {
    state & OPEN != 0 && state >> 32 != done
}

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
/// How long an idle helper stays awake: longer than the gap between two operations of a step.
const SPIN_TIME: Duration = Duration::from_micros(60);
/// Roughly 20 µs; then the core is offered to whoever keeps the last tile from its end.
const SPINS_BEFORE_YIELD: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for count in [0, 1, 2, 7, 1000] {
                let hits: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                pool.run(count, &|i, worker| {
                    assert!(worker < threads);
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|hits| hits.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn parked_threads_wake_for_the_next_operation() {
        let pool = Pool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(1));
            pool.run(16, &|i, _| {
                sum.fetch_add(i, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 20 * 120);
    }

    #[test]
    fn a_panic_in_a_tile_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|i, _| assert!(i != 40, "as asked"));
        }));
        assert!(result.is_err());
        let hits = AtomicUsize::new(0);
        pool.run(10, &|_, _| {
            hits.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(hits.load(Ordering::Relaxed), 10);
    }
}
