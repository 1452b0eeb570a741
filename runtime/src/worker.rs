//! The thread of the engine. It gets token ids and gives token ids, never keys or identities, so that it can become
//! a process of its own without a change to either side (docs/threat-model.md, "Processes inside the guest").

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel};
use std::thread::{self, JoinHandle};

use crate::engine::{AddError, Engine, Event, FinishReason, NewSequence, SequenceId, StepStatus};
use crate::hub::Inbound;

/// What the session asks of the engine.
#[expect(missing_debug_implementations, reason = "it carries prompts")]
pub enum Command {
    /// Answer a prompt.
    Add(Box<NewSequence>),
    /// Nobody waits for this answer any more.
    Cancel(SequenceId),
    /// The host takes no frames of this answer for now, or takes them again.
    Pause(SequenceId, bool),
}

/// The engine on its thread. It ends when this handle is dropped.
#[derive(Debug)]
pub struct Worker {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Moves the engine to its own thread; its events reach the inbox.
    ///
    /// # Errors
    /// The system's, when no thread can be started.
    pub fn start(engine: Engine, events: SyncSender<Inbound>) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let thread = thread::Builder::new().name("engine".into()).spawn(move || {
            // The binary aborts on a panic; a host that embeds the enclave learns of it here.
            let ran = catch_unwind(AssertUnwindSafe(|| run(engine, &inbox, &events)));
            if ran.is_err() {
                drop(events.send(Inbound::EngineFailed("it panicked".into())));
            }
        })?;
        Ok(Self { commands: Some(commands), thread: Some(thread) })
    }

    /// Sends a command; the engine's end shows as [`Inbound::EngineFailed`].
    pub fn send(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A failed send means that the engine ended, which it reports itself.
            drop(commands.send(command));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the engine was reported through the inbox.
            drop(thread.join());
        }
    }
}

fn run(mut engine: Engine, inbox: &Receiver<Command>, out: &SyncSender<Inbound>) {
    let mut events = Vec::new();
    let (mut idle, mut failures) = (true, 0);
    loop {
        if idle {
            let Ok(command) = inbox.recv() else { return };
            obey(&mut engine, command, &mut events);
        }
        loop {
            match inbox.try_recv() {
                Ok(command) => obey(&mut engine, command, &mut events),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        let stepped = engine.step(&mut events);
        if !events.is_empty() && out.send(Inbound::Engine(std::mem::take(&mut events))).is_err() {
            return;
        }
        match stepped {
            Ok(status) => {
                idle = matches!(status, StepStatus::Idle);
                failures = 0;
            }
            // The sequences of the step ended with an error; a device that goes on failing is gone.
            Err(error) => {
                failures += 1;
                if failures >= FAILURES_MAX {
                    drop(out.send(Inbound::EngineFailed(error.to_string())));
                    return;
                }
            }
        }
    }
}

fn obey(engine: &mut Engine, command: Command, events: &mut Vec<Event>) {
    match command {
        Command::Add(sequence) => {
            let id = sequence.id;
            if let Err(error) = engine.add(*sequence) {
                let reason = match error {
                    AddError::Busy { .. } => FinishReason::Busy,
                    _ => FinishReason::Error,
                };
                events.push(Event::Finished { id, reason, prompt_tokens: 0, output_tokens: 0 });
            }
        }
        Command::Cancel(id) => engine.cancel(id),
        Command::Pause(id, paused) => engine.set_paused(id, paused),
    }
}

/// Steps in a row that may fail before the engine gives up.
const FAILURES_MAX: u32 = 3;
