//! What prompt lookup is worth: `cargo run --release -p chrysalis-runtime --example speculate -- MODEL.gguf [THREADS]`
//!
//! Answers ordinary requests greedily, with and without drafts, and fails where the tokens differ. Prints the share of
//! drafted tokens that was right, the steps that were left of those without drafts, and decoded tokens a second of both.

use std::error::Error;
use std::time::Duration;

use chrysalis_models::source::SourceText;
use chrysalis_models::text::{ClientText, Message, gguf_tokenizer};
use chrysalis_runtime::engine::{
    Engine, Event, NewSequence, Sampling, SequenceId, StepShape, StepStatus,
};

mod common;

/// An answer and what it took.
struct Answer {
    tokens: Vec<u32>,
    steps: u64,
    drafted: u64,
    confirmed: u64,
    /// From the first token to the last.
    time: Duration,
}

#[expect(clippy::print_stdout, reason = "it is a program for a terminal")]
fn main() -> Result<(), Box<dyn Error>> {
    let (source, threads) = common::arguments()?;
    let SourceText::Gguf(metadata) = source.text() else {
        return Err("a GGUF file is needed: its tokenizer is in it".into());
    };
    let text = gguf_tokenizer::client_text(metadata)?;
    let engine = |max_draft| -> Result<Engine, Box<dyn Error>> {
        let engine = common::engine(&source, threads, 1, CONTEXT, MAX_DRAFT as usize)?;
        Ok(engine.shaped(StepShape { max_draft, ..StepShape::default() }))
    };
    let mut engines = (engine(0)?, engine(MAX_DRAFT)?);
    let mut total = (Duration::ZERO, Duration::ZERO);
    println!("request       tokens  right  steps  tok/s off  tok/s on  gain");
    for (name, task, passage) in REQUESTS {
        let prompt = prompt(&text, &format!("{task}\n\n{passage}"))?;
        let (off, on) = compare(&mut engines, threads, &text, &prompt)?;
        if off.tokens != on.tokens {
            return Err(format!("{name}: drafts changed the answer").into());
        }
        total = (total.0 + off.time, total.1 + on.time);
        let rate = |answer: &Answer| (answer.tokens.len() - 1) as f64 / answer.time.as_secs_f64();
        println!(
            "{name:<12}  {:>6}  {:>4.0}%  {:>4.0}%  {:>9.1}  {:>8.1}  {:>4.2}",
            on.tokens.len(),
            100.0 * on.confirmed as f64 / on.drafted.max(1) as f64,
            100.0 * on.steps as f64 / off.steps as f64,
            rate(&off),
            rate(&on),
            rate(&on) / rate(&off),
        );
    }
    println!("all: gain {:.2}", total.0.as_secs_f64() / total.1.as_secs_f64());
    Ok(())
}

/// The best of a few runs without and with drafts, in turns, so that the machine's moods meet both.
fn compare(
    (off, on): &mut (Engine, Engine),
    threads: usize,
    text: &ClientText,
    prompt: &[u32],
) -> Result<(Answer, Answer), Box<dyn Error>> {
    let mut best = (answer(off, threads, text, prompt)?, answer(on, threads, text, prompt)?);
    for _ in 1..REPEATS {
        let next = (answer(off, threads, text, prompt)?, answer(on, threads, text, prompt)?);
        best.0.time = best.0.time.min(next.0.time);
        best.1.time = best.1.time.min(next.1.time);
    }
    Ok(best)
}

fn prompt(text: &ClientText, request: &str) -> Result<Vec<u32>, Box<dyn Error>> {
    let tokenizer = text.tokenizer()?;
    if text.chat_template.is_none() {
        return Ok(tokenizer.encode(&format!("{request}\n\nAnswer:\n"), true)?);
    }
    let template = text.chat_template(&tokenizer)?;
    let rendered = template.render(&[Message::new("user", request)], true)?;
    Ok(tokenizer.encode_rendered(&rendered)?)
}

fn answer(
    engine: &mut Engine,
    threads: usize,
    text: &ClientText,
    prompt: &[u32],
) -> Result<Answer, Box<dyn Error>> {
    let before = engine.counters();
    engine.add(NewSequence {
        id: SequenceId(0),
        prompt: prompt.to_vec().into(),
        max_output: OUTPUT,
        sampling: Sampling::greedy(),
        seed: 0,
        stop_token_ids: text.config.eos_token_ids.clone(),
        logprobs: None,
    })?;
    let (mut tokens, mut events, mut first) = (Vec::new(), Vec::new(), None);
    while engine.step(&mut events)? != StepStatus::Idle {
        for event in events.drain(..) {
            if let Event::Token { token, .. } = event {
                first.get_or_insert_with(|| common::now(threads));
                tokens.push(token);
            }
        }
    }
    let after = engine.counters();
    Ok(Answer {
        tokens,
        steps: after.steps - before.steps,
        drafted: after.drafted_tokens - before.drafted_tokens,
        confirmed: after.confirmed_tokens - before.confirmed_tokens,
        time: first.map_or(Duration::ZERO, |first| common::now(threads) - first),
    })
}

const OUTPUT: u32 = 160;
const CONTEXT: usize = 1_024;
const REPEATS: usize = 3;
/// As the enclave has it.
const MAX_DRAFT: u32 = 8;

/// Name, task, passage.
const REQUESTS: &[(&str, &str, &str)] = &[
    ("summary 1", "Summarise the following text in a few sentences.", FERRY),
    ("summary 2", "Write a short summary of this report.", ORCHARD),
    ("translation", "Translate the following text into French.", FERRY),
    ("translation2", "Translate this report into Spanish, sentence by sentence.", ORCHARD),
    ("correction", "Correct the spelling of this text and change nothing else.", NOTICE),
    ("story", "Write a story about a lighthouse keeper who finds a letter.", ""),
];

const FERRY: &str = "\
The old ferry between Harlow and the island of Saint Bride will stop running at the end of October. The harbour board \
said on Tuesday that the hull, which was built in 1964, needs repairs that would cost more than a new boat. For sixty \
years the ferry has carried the island's children to school, its sheep to market and its letters to the mainland. A \
faster boat with room for forty passengers and six cars will take its place in spring. Until then a fishing boat will \
make two crossings a day, one in the morning and one in the evening, if the weather allows. Some islanders fear that \
the fishing boat will not sail in winter storms, and have asked the harbour board for a helicopter in emergencies. The \
harbour board has promised an answer before the end of the month. Margaret Doyle, who has sold tickets on the old ferry \
since 1987, said that she would miss the sound of the engine more than anything else. She has been offered a place on \
the new boat, and has not yet decided whether to take it.";

const ORCHARD: &str = "\
This year the community orchard produced 2,300 kilograms of apples, 400 kilograms more than last year. The dry spring \
delayed the blossom by two weeks, which kept it safe from the late frost in April. The new drip irrigation, paid for by \
the town council, used a third of the water that the old sprinklers used. Volunteers gave 1,150 hours of work, most of \
them in September and October. Half of the harvest went to the food bank, a quarter was pressed into juice, and the rest \
was sold at the market for 1,840 pounds. The committee proposes to spend the money on a second beehive and on a fence \
against deer, which damaged eleven young trees in the winter. The committee thanks the school, whose pupils planted \
twenty pear trees in November, and the fire brigade, whose pump filled the water tank during the dry weeks of July. The \
next meeting of the committee is on the first Monday of February in the village hall.";

const NOTICE: &str = "\
Dear neighbours, the watter will be turned off on Thursday from nine in the morning untill four in the afternoon, becouse \
the pipes under Mill Street have to be replaced. Please fill a few bottels the evening before. The libary will be open \
all day, and anyone who needs watter can fetch it there. If you have a washing mashine, please do not start it before \
five oclock, since the first watter may be brown. We are sorry for the trouble and thank you for your pacience. The work \
on the pipes under Station Road will folow in two weeks, and we will send you another leter before it begins.";
