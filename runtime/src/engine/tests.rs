//! What the engine promises, one fact at a time.

use std::sync::{Arc, Mutex};

use super::fake::{Fake, Faults, limits};
use super::{
    AddError, Engine, EngineError, EngineLimits, Event, FinishReason, NewSequence, Sampling,
    SamplingError, SequenceId, StepShape, StepStatus,
};

const LIMITS: EngineLimits = EngineLimits {
    max_sequences: 4,
    max_waiting: 2,
    max_tokens_per_step: 16,
    max_prompt: 30,
    max_output: 20,
};

fn engine_with(limits_of_engine: EngineLimits) -> (Engine, Arc<Mutex<Faults>>) {
    let model = Fake::new(50, 48, limits(10, 4));
    let faults = Arc::clone(&model.faults);
    (Engine::new(Box::new(model), limits_of_engine).unwrap(), faults)
}

fn engine() -> Engine {
    engine_with(LIMITS).0
}

/// An engine over a model whose text goes round: 0, 1, 6, 5, 0, with drafts of at most
/// `max_draft`.
fn repeating(max_draft: u32, limits_of_engine: EngineLimits) -> Engine {
    let model = Fake::new(13, 48, limits(10, 4)).with_habit(12.0);
    let shape = StepShape { max_draft, ..StepShape::default() };
    Engine::new(Box::new(model), limits_of_engine).unwrap().shaped(shape)
}

/// A greedy sequence that has gone round almost twice, and goes on with 5.
fn round(id: u64, max_output: u32) -> NewSequence {
    NewSequence {
        prompt: vec![0, 1, 6, 5, 0, 1, 6].into(),
        sampling: Sampling::greedy(),
        ..new(id, 7, max_output)
    }
}

fn new(id: u64, prompt: usize, max_output: u32) -> NewSequence {
    NewSequence {
        id: SequenceId(id),
        prompt: (0..prompt as u32).map(|token| token % 50).collect::<Vec<_>>().into(),
        max_output,
        sampling: Sampling::default(),
        seed: id,
        stop_token_ids: Vec::new(),
        logprobs: None,
    }
}

/// Steps until nothing is left.
fn finish(engine: &mut Engine) -> Vec<Event> {
    let mut events = Vec::new();
    while engine.step(&mut events).unwrap() != StepStatus::Idle {}
    events
}

fn tokens(events: &[Event], of: u64) -> Vec<u32> {
    let token = |event: &Event| match event {
        Event::Token { id, token, .. } if id.0 == of => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

fn ends(events: &[Event]) -> Vec<(u64, FinishReason, u32, u32)> {
    let end = |event: &Event| match *event {
        Event::Finished { id, reason, prompt_tokens, output_tokens } => {
            Some((id.0, reason, prompt_tokens, output_tokens))
        }
        _ => None,
    };
    events.iter().filter_map(end).collect()
}

#[test]
fn a_sequence_ends_at_its_output_limit() {
    let mut engine = engine();
    engine.add(new(1, 5, 7)).unwrap();
    let events = finish(&mut engine);
    assert_eq!(tokens(&events, 1).len(), 7);
    assert_eq!(ends(&events), [(1, FinishReason::Length, 5, 7)]);
    let counters = engine.counters();
    assert_eq!((counters.prefill_tokens, counters.decode_tokens), (5, 6));
    assert_eq!((counters.output_tokens, counters.steps), (7, 7));
}

#[test]
fn a_stop_token_ends_a_sequence_and_is_not_put_out() {
    let mut engine = engine();
    engine.add(new(1, 5, 7)).unwrap();
    let all = tokens(&finish(&mut engine), 1);
    engine.add(NewSequence { stop_token_ids: vec![all[3]], ..new(1, 5, 7) }).unwrap();
    let events = finish(&mut engine);
    assert!(tokens(&events, 1) == all[..3]);
    assert_eq!(ends(&events), [(1, FinishReason::Stop, 5, 3)]);
}

#[test]
fn the_seed_decides() {
    let run = |seed| {
        let mut engine = engine();
        engine.add(NewSequence { seed, ..new(1, 5, 12) }).unwrap();
        tokens(&finish(&mut engine), 1)
    };
    assert!(run(3) == run(3));
    assert!(run(3) != run(4));
}

#[test]
fn a_long_prompt_is_cut_into_chunks_and_reported_on_the_way() {
    let mut engine = engine();
    engine.add(new(1, 30, 1)).unwrap();
    let mut events = Vec::new();
    let ran = |prefill_tokens| StepStatus::Ran { prefill_tokens, decode_tokens: 0, sequences: 1 };
    assert_eq!(engine.step(&mut events).unwrap(), ran(16));
    assert!(events == [Event::Progress { id: SequenceId(1), computed: 16, total: 30 }]);
    assert_eq!(engine.step(&mut events).unwrap(), ran(14));
    assert_eq!(ends(&events), [(1, FinishReason::Length, 30, 1)]);
}

#[test]
fn a_cancelled_sequence_ends_with_the_next_step_and_gives_its_blocks_back_clear() {
    let (mut engine, faults) = engine_with(LIMITS);
    engine.add(new(1, 5, 7)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    assert!(faults.lock().unwrap().slots_in_use > 0);
    engine.cancel(SequenceId(1));
    engine.cancel(SequenceId(1));
    engine.cancel(SequenceId(2));
    events.clear();
    assert_eq!(engine.step(&mut events).unwrap(), StepStatus::Idle);
    assert_eq!(ends(&events), [(1, FinishReason::Cancelled, 5, 1)]);
    assert_eq!(engine.counters().free_blocks, 10);
    assert_eq!(faults.lock().unwrap().slots_in_use, 0);
}

#[test]
fn a_dropped_engine_leaves_the_cache_clear() {
    let (mut engine, faults) = engine_with(LIMITS);
    engine.add(new(1, 5, 7)).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    drop(engine);
    assert_eq!(faults.lock().unwrap().slots_in_use, 0);
}

#[test]
fn a_failed_forward_pass_ends_its_sequences_and_no_other() {
    let (mut engine, faults) = engine_with(EngineLimits { max_sequences: 1, ..LIMITS });
    engine.add(new(1, 5, 7)).unwrap();
    engine.add(new(2, 5, 7)).unwrap();
    faults.lock().unwrap().forward = true;
    let mut events = Vec::new();
    let error = engine.step(&mut events).unwrap_err();
    assert!(matches!(error, EngineError::Forward { failures: 1, .. }), "{error}");
    assert_eq!(ends(&events), [(1, FinishReason::Error, 5, 0)]);
    faults.lock().unwrap().forward = true;
    engine.add(new(3, 5, 7)).unwrap();
    let error = engine.step(&mut events).unwrap_err();
    assert!(matches!(error, EngineError::Forward { failures: 2, .. }), "{error}");
    assert_eq!(ends(&finish(&mut engine)), [(3, FinishReason::Length, 5, 7)]);
    assert_eq!(engine.counters().failed, 2);
}

#[test]
fn logits_that_are_not_finite_end_the_sequence() {
    let (mut engine, faults) = engine_with(LIMITS);
    engine.add(new(1, 5, 7)).unwrap();
    faults.lock().unwrap().not_finite = true;
    let events = finish(&mut engine);
    assert_eq!(ends(&events), [(1, FinishReason::Error, 5, 0)]);
}

#[test]
fn a_failure_to_choose_ends_the_sequences_of_the_step() {
    let (mut engine, faults) = engine_with(LIMITS);
    engine.add(new(1, 5, 7)).unwrap();
    engine.add(new(2, 5, 7)).unwrap();
    faults.lock().unwrap().sample = true;
    let mut events = Vec::new();
    let error = engine.step(&mut events).unwrap_err();
    assert!(matches!(error, EngineError::Forward { failures: 1, .. }), "{error}");
    assert_eq!(ends(&events), [(1, FinishReason::Error, 5, 0), (2, FinishReason::Error, 5, 0)]);
    engine.add(new(3, 20, 2)).unwrap();
    faults.lock().unwrap().sample = true;
    // Nothing is chosen after a chunk that is not the last.
    assert!(engine.step(&mut events).is_ok());
    assert!(engine.step(&mut events).is_err());
}

#[test]
fn log_probabilities_change_no_token() {
    for max_draft in [0, 4] {
        let [with, without] = [Some(0), None].map(|logprobs| {
            let mut engine = repeating(max_draft, LIMITS);
            for id in 0..4 {
                let greedy = NewSequence { logprobs, ..round(id, 9 + id as u32) };
                let sampling = Sampling::default();
                let other = NewSequence { sampling, logprobs: None, ..round(id, 12) };
                engine.add(if id == 1 { other } else { greedy }).unwrap();
            }
            let events = finish(&mut engine);
            (0..4).map(|id| tokens(&events, id)).collect::<Vec<_>>()
        });
        assert!(with == without && with[3].len() == 12, "drafts of {max_draft}");
    }
}

#[test]
fn nothing_runs_until_freed_blocks_are_clear() {
    let (mut engine, faults) = engine_with(LIMITS);
    engine.add(new(1, 5, 7)).unwrap();
    engine.step(&mut Vec::new()).unwrap();
    engine.cancel(SequenceId(1));
    engine.add(new(2, 5, 7)).unwrap();
    let mut events = Vec::new();
    for _ in 0..3 {
        faults.lock().unwrap().clear = true;
        let error = engine.step(&mut events).unwrap_err();
        assert!(matches!(error, EngineError::Clear { .. }), "{error}");
    }
    assert_eq!(tokens(&events, 2).len(), 0);
    assert_eq!(tokens(&finish(&mut engine), 2).len(), 7);
}

#[test]
fn a_paused_sequence_waits_and_goes_on_with_the_same_tokens() {
    let mut engine = engine();
    engine.add(new(1, 5, 7)).unwrap();
    let all = tokens(&finish(&mut engine), 1);
    engine.add(new(1, 5, 7)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    engine.set_paused(SequenceId(1), true);
    assert_eq!(engine.step(&mut events).unwrap(), StepStatus::Idle);
    engine.set_paused(SequenceId(1), false);
    events.extend(finish(&mut engine));
    assert!(tokens(&events, 1) == all);
}

#[test]
fn logprobs_come_with_each_token_if_asked_for() {
    let mut engine = engine();
    engine.add(NewSequence { logprobs: Some(3), ..new(1, 5, 4) }).unwrap();
    engine.add(new(2, 5, 4)).unwrap();
    for event in finish(&mut engine) {
        if let Event::Token { id, logprobs, .. } = event {
            assert_eq!(logprobs.is_some(), id.0 == 1);
            let ordered = |l: super::TokenLogprobs| {
                l.alternatives.len() == 3
                    && l.alternatives.is_sorted_by(|a, b| a.1 >= b.1)
                    && l.logprob <= l.alternatives[0].1
                    && l.logprob < 0.0
            };
            assert!(logprobs.is_none_or(ordered));
        }
    }
}

fn refused(alter: fn(&mut NewSequence)) -> AddError {
    let mut sequence = new(1, 5, 7);
    alter(&mut sequence);
    engine().add(sequence).unwrap_err()
}

#[test]
fn what_can_never_run_is_refused() {
    assert_eq!(refused(|s| s.prompt.clear()), AddError::PromptEmpty);
    assert_eq!(
        refused(|s| s.prompt.resize(31, 0)),
        AddError::PromptTooLong { tokens: 31, max: 30 }
    );
    assert_eq!(refused(|s| s.max_output = 0), AddError::OutputZero);
    assert_eq!(refused(|s| s.max_output = 21), AddError::OutputTooLong { tokens: 21, max: 20 });
    let long = refused(|s| {
        s.prompt.resize(28, 0);
        s.max_output = 13;
    });
    assert_eq!(long, AddError::ContextTooLong { tokens: 41, max: 40 });
}

#[test]
fn what_is_outside_the_vocabulary_or_a_range_is_refused() {
    let unknown = refused(|s| s.prompt[3] = 50);
    assert_eq!(unknown, AddError::TokenOutOfRange { index: 3, vocab_size: 50 });
    let unknown = refused(|s| s.sampling.logit_bias = vec![(49, 0.0), (50, 0.0)]);
    assert_eq!(unknown, AddError::BiasOutOfRange { index: 1, vocab_size: 50 });
    let many = refused(|s| s.stop_token_ids = vec![1; 265]);
    assert_eq!(many, AddError::TooManyStopTokens { tokens: 265, max: 264 });
    let many = refused(|s| s.logprobs = Some(21));
    assert_eq!(many, AddError::TooManyLogprobs { wanted: 21, max: 20 });
    let sampling = refused(|s| s.sampling.top_p = 0.0);
    assert!(matches!(sampling, AddError::Sampling(SamplingError::OutOfRange { .. })));
}

#[test]
fn an_id_is_used_once_at_a_time() {
    let mut engine = engine();
    assert!(engine.add(new(1, 5, 7)).is_ok());
    assert_eq!(engine.add(new(1, 5, 7)), Err(AddError::IdInUse));
    finish(&mut engine);
    assert!(engine.add(new(1, 5, 7)).is_ok());
}

#[test]
fn the_longest_sequence_fills_the_pool_and_finishes() {
    let mut engine = engine();
    assert_eq!(engine.max_output(5), 20);
    assert_eq!(engine.max_output(28), 12);
    assert_eq!(engine.max_output(40), 0);
    engine.add(new(1, 28, 12)).unwrap();
    engine.add(new(2, 28, 12)).unwrap();
    let events = finish(&mut engine);
    let expected = |id| (id, FinishReason::Length, 28, 12);
    assert_eq!(ends(&events), [expected(1), expected(2)]);
}

#[test]
fn sequences_beyond_the_places_and_the_queue_are_refused_as_busy() {
    let mut engine = engine();
    (0..6).for_each(|id| engine.add(new(id, 2, 2)).unwrap());
    assert_eq!(engine.add(new(6, 2, 2)), Err(AddError::Busy { sequences: 6, max: 6 }));
    finish(&mut engine);
    assert!(engine.add(new(6, 2, 2)).is_ok());
}

#[test]
fn limits_without_room_are_refused() {
    let model = || Box::new(Fake::new(50, 48, limits(10, 4)));
    for (max_sequences, max_tokens_per_step) in [(0, 1), (1, 0)] {
        let none = EngineLimits { max_sequences, max_tokens_per_step, ..LIMITS };
        assert!(matches!(Engine::new(model(), none), Err(EngineError::LimitZero { .. })));
    }
    let no_blocks = Box::new(Fake::new(50, 48, limits(0, 4)));
    assert!(matches!(Engine::new(no_blocks, LIMITS), Err(EngineError::LimitZero { .. })));
}

#[test]
fn drafts_save_steps_and_change_no_token() {
    let run = |max_draft| {
        let mut engine = repeating(max_draft, LIMITS);
        engine.add(round(1, 20)).unwrap();
        let events = finish(&mut engine);
        assert_eq!(ends(&events), [(1, FinishReason::Length, 7, 20)]);
        (tokens(&events, 1), engine.counters())
    };
    let (expected, without) = run(0);
    assert_eq!((without.steps, without.drafted_tokens, without.confirmed_tokens), (20, 0, 0));
    assert!(expected[..5] == [5, 0, 1, 6, 5]);
    for max_draft in [1, 2, 3, 8, u32::MAX] {
        let (found, with) = run(max_draft);
        assert!(found == expected);
        assert_eq!(with.confirmed_tokens, with.drafted_tokens);
        assert_eq!(with.steps, without.steps - with.confirmed_tokens);
    }
    // The prompt, drafts of 3, 5 and 7 tokens, each with the token after it, and the last one.
    assert_eq!(run(8).1.steps, 5);
}

#[test]
fn nothing_is_drafted_unless_asked_for() {
    let model = Fake::new(13, 48, limits(10, 4)).with_habit(12.0);
    let mut engine = Engine::new(Box::new(model), LIMITS).unwrap();
    engine.add(round(1, 20)).unwrap();
    finish(&mut engine);
    assert_eq!((engine.counters().steps, engine.counters().drafted_tokens), (20, 0));
}

#[test]
fn a_stop_token_within_a_draft_ends_the_sequence() {
    let mut engine = repeating(8, LIMITS);
    engine.add(NewSequence { stop_token_ids: vec![1], ..round(1, 20) }).unwrap();
    let events = finish(&mut engine);
    assert!(tokens(&events, 1) == [5, 0]);
    assert_eq!(ends(&events), [(1, FinishReason::Stop, 7, 2)]);
    assert_eq!((engine.counters().steps, engine.counters().drafted_tokens), (2, 3));
    assert_eq!(engine.counters().free_blocks, 10);
}

#[test]
fn every_sampling_and_logprobs_are_the_same_with_drafts() {
    let run = |max_draft| {
        let mut engine = repeating(max_draft, LIMITS);
        let sampling = Sampling { frequency_penalty: 0.2, top_k: 3, ..Sampling::default() };
        engine.add(NewSequence { sampling, logprobs: Some(2), ..round(1, 20) }).unwrap();
        let events = finish(&mut engine);
        (events, engine.counters().confirmed_tokens)
    };
    let ((expected, none), (found, confirmed)) = (run(0), run(8));
    assert!(found == expected);
    assert!(none == 0 && confirmed > 5);
}

#[test]
fn drafts_take_nothing_from_other_sequences() {
    let run = |max_draft, max_tokens_per_step, max_sequences| {
        let limits = EngineLimits { max_tokens_per_step, max_sequences, ..LIMITS };
        let mut engine = repeating(max_draft, limits);
        engine.add(round(1, 12)).unwrap();
        engine.step(&mut Vec::new()).unwrap();
        engine.add(round(2, 12)).unwrap();
        let status = engine.step(&mut Vec::new()).unwrap();
        finish(&mut engine);
        (status, engine.counters())
    };
    // A prompt goes before drafts,
    let (status, counters) = run(8, 7, 2);
    assert_eq!(status, StepStatus::Ran { prefill_tokens: 6, decode_tokens: 1, sequences: 2 });
    assert!(counters.confirmed_tokens > 0);
    // and every sequence's next token.
    assert_eq!(run(8, 1, 1).1.drafted_tokens, 0);
    assert_eq!(run(8, 2, 1).1.confirmed_tokens, 10);
    // Both fill the pool, and neither is preempted.
    assert_eq!(run(8, 16, 2).1.preemptions, 0);
}

#[test]
fn drafts_need_rows_of_logits() {
    let mut few = limits(10, 4);
    few.max_logit_rows = 1;
    let model = Fake::new(13, 48, few).with_habit(12.0);
    let shape = StepShape { max_draft: 8, ..StepShape::default() };
    let mut engine = Engine::new(Box::new(model), LIMITS).unwrap().shaped(shape);
    engine.add(round(1, 20)).unwrap();
    finish(&mut engine);
    assert_eq!(engine.counters().drafted_tokens, 0);
}

#[test]
fn drafts_leave_each_running_sequence_a_free_block() {
    let drafted = |sequences| {
        let model = Fake::new(13, 48, limits(5, 4)).with_habit(12.0);
        let shape = StepShape { max_draft: 8, ..StepShape::default() };
        let mut engine = Engine::new(Box::new(model), LIMITS).unwrap().shaped(shape);
        (0..sequences).for_each(|id| engine.add(round(id, 12)).unwrap());
        engine.step(&mut Vec::new()).unwrap();
        engine.step(&mut Vec::new()).unwrap();
        engine.counters().drafted_tokens
    };
    // After the prompt a sequence fills two of the five blocks.
    assert_eq!((drafted(1), drafted(2)), (3, 0));
}

#[test]
fn a_cancelled_sequence_leaves_no_draft_behind() {
    let mut engine = repeating(8, LIMITS);
    engine.add(round(1, 20)).unwrap();
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    engine.step(&mut events).unwrap();
    engine.cancel(SequenceId(1));
    assert_eq!(engine.step(&mut events).unwrap(), StepStatus::Idle);
    assert_eq!(ends(&events), [(1, FinishReason::Cancelled, 7, 5)]);
    assert_eq!(engine.counters().free_blocks, 10);
}
