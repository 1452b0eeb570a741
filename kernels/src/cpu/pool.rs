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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// What threads share, laid out so that a helper begins after one transfer of a cache line: the
/// board, which the caller alone writes. All else that a thread writes often is on a line of its own.
struct Shared {
    board: Board,
    runs: Vec<Run>,
    panicked: AtomicBool,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

/// The operation at hand.
#[repr(align(128))]
struct Board {
    /// Number of the operation, and [`OPEN`] while tiles are given out.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
}

#[derive(Clone, Copy)]
struct Job {
    tile: *const TileFn<'static>,
    count: usize,
}

/// The tiles of one thread, and whether it is among them.
#[derive(Default)]
#[repr(align(128))]
struct Run {
    /// The operation's number above [`TILE_BITS`] bits, the next tile in them; of an earlier operation
    /// where nobody has begun.
    next: AtomicU64,
    /// Set by the thread before it looks whether the operation is still open. The caller closes the
    /// operation before it looks at this: one of both sees the other.
    inside: AtomicBool,
}

// SAFETY: `job` is written only while nobody is inside (see `Run::inside`) and read only from inside.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is only ever followed while its closure is borrowed by `run`.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({:x})", self.board.state.load(Ordering::Relaxed))
    }
}

impl Pool {
    /// A pool in which `threads` threads work, the caller's own included.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            board: Board { state: AtomicU64::new(0), job: UnsafeCell::new(None) },
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
        assert!(count < LAST as usize, "fewer than 2^24 tiles");
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let job = std::ptr::from_ref(tile);
        // SAFETY: only the lifetime changes. The pointer is followed only between the opening below
        // and the end of `Close::drop`, and `tile` is borrowed until after that.
        let job = unsafe { std::mem::transmute::<*const TileFn<'_>, *const TileFn<'static>>(job) };
        // SAFETY: `turn` makes this the only caller, and the last operation left nobody inside.
        unsafe { *shared.board.job.get() = Some(Job { tile: job, count }) };
        shared.panicked.store(false, Ordering::Relaxed);
        let operation = (shared.board.state.load(Ordering::Relaxed) >> 1).wrapping_add(1);
        shared.board.state.store(operation << 1 | OPEN, Ordering::SeqCst);
        for (thread, parked) in self.threads.iter().zip(&shared.parked) {
            if parked.load(Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
        let close = Close { shared, operation };
        shared.work(operation, count, tile, 0);
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
struct Close<'a> {
    shared: &'a Shared,
    operation: u64,
}

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let Self { shared, operation } = *self;
        if std::thread::panicking() {
            // There may be tiles left; none is taken any more.
            for run in &shared.runs {
                run.next.store(operation << TILE_BITS | LAST, Ordering::Relaxed);
            }
        }
        shared.board.state.store(operation << 1, Ordering::SeqCst);
        let mut spins = 0u32;
        for run in &shared.runs[1..] {
            while run.inside.load(Ordering::SeqCst) {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Shared {
    /// Takes the worker's own tiles, then those of others, until there is none left.
    fn work(&self, operation: u64, count: usize, tile: &TileFn<'_>, worker: usize) {
        let threads = self.runs.len();
        for owner in (worker..threads).chain(0..worker) {
            let (start, end) = (count * owner / threads, count * (owner + 1) / threads);
            while let Some(i) = self.runs[owner].take(operation, start, end) {
                tile(i, worker);
            }
        }
    }

    /// The life of a helper.
    fn help(&self, index: usize) {
        let (worker, mut done) = (index + 1, 0);
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.board.state.load(Ordering::Acquire);
            if is_open(state, done) {
                done = state >> 1;
                let inside = &self.runs[worker].inside;
                inside.store(true, Ordering::SeqCst);
                if self.board.state.load(Ordering::SeqCst) == state {
                    self.tiles(done, worker);
                }
                inside.store(false, Ordering::Release);
            } else if !self.spin(done) {
                self.parked[index].store(true, Ordering::SeqCst);
                let idle = !is_open(self.board.state.load(Ordering::SeqCst), done);
                if idle && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
            }
        }
    }

    fn tiles(&self, operation: u64, worker: usize) {
        // SAFETY: this thread is inside, so the job is set and nobody writes it.
        let job = unsafe { *self.board.job.get() };
        let Some(Job { tile, count }) = job else { return };
        // SAFETY: `run` keeps the closure borrowed until this thread has left.
        let tile = unsafe { &*tile };
        let work = AssertUnwindSafe(|| self.work(operation, count, tile, worker));
        if catch_unwind(work).is_err() {
            self.panicked.store(true, Ordering::Relaxed);
        }
    }

    /// Waits a little for an operation; whether one came.
    fn spin(&self, done: u64) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if is_open(self.board.state.load(Ordering::Relaxed), done) {
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

impl Run {
    /// The next tile of `start..end`, if there is one.
    fn take(&self, operation: u64, start: usize, end: usize) -> Option<usize> {
        let mut next = self.next.load(Ordering::Relaxed);
        loop {
            let begun = next >> TILE_BITS == operation << TILE_BITS >> TILE_BITS;
            let i = if begun { (next & LAST) as usize } else { start };
            if i >= end {
                return None;
            }
            let taken = operation << TILE_BITS | (i as u64 + 1);
            match self.next.compare_exchange_weak(next, taken, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return Some(i),
                Err(now) => next = now,
            }
        }
    }
}

fn is_open(state: u64, done: u64) -> bool {
    state & OPEN != 0 && state >> 1 != done
}

const OPEN: u64 = 1;
/// Bits of a tile's number. The rest tell operations apart for half a year at 60,000 a second, even in
/// the run of a thread that had no tile since.
const TILE_BITS: u32 = 24;
/// A tile that no operation has.
const LAST: u64 = (1 << TILE_BITS) - 1;
/// How long an idle helper stays awake: longer than the gap between two operations of a step.
const SPIN_TIME: Duration = Duration::from_micros(60);
/// Roughly 20 µs; then the core is offered to whoever keeps the last tile from its end.
const SPINS_BEFORE_YIELD: u32 = 500;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

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
