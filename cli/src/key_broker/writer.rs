//! The one thread that writes the store: whatever waits is decided together, in one transaction, and then answered.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::admin::{self, Answer, Request};
use super::error::BrokerError;
use super::refusal::Refusal;
use super::spend::{Job, Outcome};
use super::store::Store;

/// Something to be done, and whoever waits for it.
enum Waiting {
    /// What hosts ask for.
    Job(Job, oneshot::Sender<Outcome>),
    /// What the operator asks for, and when.
    Admin(Request, u64, oneshot::Sender<Answer>),
}

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
        self.send(Waiting::Job(job, answer))?;
        outcome.await.map_err(|_| Refusal::Store)
    }

    /// Has done what the operator asks for, after everything that was submitted before.
    pub async fn administer(&self, request: Request, now: u64) -> Answer {
        let (answer, done) = oneshot::channel();
        let sent = self.send(Waiting::Admin(request, now, answer));
        sent.map_err(|refusal| refusal.to_string())?;
        done.await.unwrap_or_else(|_| Err(Refusal::Store.to_string()))
    }

    fn send(&self, waiting: Waiting) -> Result<(), Refusal> {
        self.0.try_send(waiting).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::Busy,
            TrySendError::Disconnected(_) => Refusal::Store,
        })
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
        let (mut jobs, mut answers, mut next) = (Vec::new(), Vec::new(), Some(first));
        while let Some(Waiting::Job(job, answer)) = next {
            jobs.push(job);
            answers.push(answer);
            next = if jobs.len() < TOGETHER_MAX { waiting.try_recv().ok() } else { None };
        }
        if !jobs.is_empty() {
            for (answer, outcome) in answers.into_iter().zip(store.commit(jobs)?) {
                // Whoever waited may have left; the answer is kept for when it comes again.
                drop(answer.send(outcome));
            }
        }
        if let Some(Waiting::Admin(request, now, answer)) = next {
            administer(store, &request, now, answer)?;
        }
    }
    Ok(())
}

/// A request that is refused leaves the store as it was; a store that failed is not used again.
fn administer(
    store: &mut Store,
    request: &Request,
    now: u64,
    answer: oneshot::Sender<Answer>,
) -> Result<(), BrokerError> {
    let (told, failed) = match admin::perform(store, request, now) {
        Ok(done) => (Ok(done), None),
        Err(error) => (Err(error.to_string()), Some(error)),
    };
    // Whoever waited may have left; what was done is in the log.
    drop(answer.send(told));
    failed.filter(|error| !error.is_refusal()).map_or(Ok(()), Err)
}

/// Jobs that wait at once.
const WAITING_MAX: usize = 4_096;
/// Jobs of one transaction.
const TOGETHER_MAX: usize = 256;
