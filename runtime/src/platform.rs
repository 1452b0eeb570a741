//! The thread of the attester. A report takes as long as the platform's firmware likes, and no answer may wait for it:
//! the session asks here and goes on, and what the platform said comes back through the inbox.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};
use std::thread;

use chrysalis_attestation::attester::Attester;
use chrysalis_protocol::statement::Statement;

use crate::epoch::Stated;
use crate::hub::Inbound;

/// The attester on its thread, which ends when this handle is dropped and the report under way is made.
#[derive(Debug)]
pub(crate) struct Platform {
    questions: Sender<Statement>,
}

impl Platform {
    /// Moves the attester to its own thread; what it says reaches the inbox, in the order of the questions.
    ///
    /// # Errors
    /// The system's, when no thread can be started.
    pub(crate) fn start(
        attester: Box<dyn Attester>,
        answers: SyncSender<Inbound>,
    ) -> io::Result<Self> {
        let (questions, inbox) = channel();
        thread::Builder::new()
            .name("attester".into())
            .spawn(move || run(attester, &inbox, &answers))?;
        Ok(Self { questions })
    }

    /// Asks for evidence for `statement`.
    pub(crate) fn ask(&self, statement: Statement) {
        // It fails when the thread is gone: the question stays open, and whoever waits for it is told after a while, as
        // with firmware that does not answer.
        let _sent = self.questions.send(statement);
    }
}

fn run(
    mut attester: Box<dyn Attester>,
    questions: &Receiver<Statement>,
    answers: &SyncSender<Inbound>,
) {
    for statement in questions {
        let attested = Stated::new(&mut *attester, statement);
        if answers.send(Inbound::Attested(Box::new(attested))).is_err() {
            return;
        }
    }
}
