//! The one thread that writes the store: whatever waits is decided together, in one transaction, and then answered.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::error::BrokerError;
use super::refusal::Refusal;
use super::spend::{Job, Outcome};
use super::store::Store;

/// A job and whoever waits for it.
type Waiting = (Job, oneshot::Sender<Outcome>);

/// The way to the writing thread.
#[derive(Clone)]
pub struct Writer(SyncSender<Waiting>);

/// The writing thread.
#[derive(Debug)]
pub struct WriterThread(JoinHandle<Result<(), BrokerError>>);

impl Writer {
    /// Starts the thread. It ends when all ways to it are gone, or when the store fails; the receiver then knows.
    ///
    /// # Errors
    /// [`BrokerError::Server`] when there is no thread to be had.
    pub fn start(
        mut store: Store,
    ) -> Result<(Self, WriterThread, oneshot::Receiver<()>), BrokerError> {
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let (ended, end) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                let result = run(&mut store, &waiting);
                // The server may have ended before.
                ended.send(()).unwrap_or_default();
                result
            })
            .map_err(BrokerError::Server)?;
        Ok((Self(jobs), WriterThread(thread), end))
    }

    /// Has a job done. What comes back is on the disk.
    ///
    /// # Errors
    /// [`Refusal::Store`] when the store failed or cannot keep up.
    pub async fn submit(&self, job: Job) -> Result<Outcome, Refusal> {
        let (answer, outcome) = oneshot::channel();
        match self.0.try_send((job, answer)) {
            Ok(()) => outcome.await.map_err(|_| Refusal::Store),
            Err(TrySendError::Full(_)) => Err(Refusal::Busy),
            Err(TrySendError::Disconnected(_)) => Err(Refusal::Store),
        }
    }
}

impl WriterThread {
    /// Waits until everything that was submitted is done.
    ///
    /// # Errors
    /// [`BrokerError::Stopped`] when the store failed.
    pub fn join(self) -> Result<(), BrokerError> {
        let ended = self.0.join();
        let ended =
            ended.unwrap_or_else(|_| Err(BrokerError::Stopped("its thread panicked".into())));
        ended.map_err(|error| BrokerError::Stopped(error.to_string()))
    }
}

fn run(store: &mut Store, waiting: &Receiver<Waiting>) -> Result<(), BrokerError> {
    while let Ok(first) = waiting.recv() {
        let (mut jobs, mut answers) = (vec![first.0], vec![first.1]);
        while jobs.len() < TOGETHER_MAX
            && let Ok((job, answer)) = waiting.try_recv()
        {
            jobs.push(job);
            answers.push(answer);
        }
        for (answer, outcome) in answers.into_iter().zip(store.commit(jobs)?) {
            // Whoever waited may have left; the answer is kept for when it comes again.
            drop(answer.send(outcome));
        }
    }
    Ok(())
}

/// Jobs that wait at once.
const WAITING_MAX: usize = 4_096;
/// Jobs of one transaction.
const TOGETHER_MAX: usize = 256;
