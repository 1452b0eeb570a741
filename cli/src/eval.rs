//! `chrysalis eval`: perplexity over a text, in the convention of scripts/llama-cpp-reference.py.
//!
//! Special tokens in the text are text, and BOS stands before every window exactly if the model adds one. Every token of
//! a window but the first is scored, given all before it: exp(mean of -ln p), p from a softmax in f64. The reference cuts
//! a longer text at the first window; for this command `--window` says where, and the windows behind it count as well.

use std::path::Path;
use std::time::Instant;

use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::decoder::Model;
use chrysalis_models::text::{ClientText, TextConfig};
use chrysalis_protocol::package::ClientBundle;
use chrysalis_runtime::compute;
use chrysalis_runtime::load::LoadOptions;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{ComputeDevice, EvalArgs};
use crate::engine_setup::{self, BLOCK, Opened};
use crate::error::CliError;
use crate::output;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Report {
    package: String,
    text: String,
    device: String,
    perplexity: f64,
    mean_nll: f64,
    tokens_scored: usize,
    tokens: usize,
    windows: usize,
    window: usize,
    top1: f64,
    bos: bool,
    seconds: f64,
}

/// Runs `chrysalis eval`.
///
/// # Errors
/// [`CliError`] when the package, the text or the model fails.
pub fn run(args: &EvalArgs) -> Result<(), CliError> {
    let text = engine_setup::read_text(&args.text)?;
    let opened = engine_setup::open(&args.package, args.key.as_deref())?;
    let context = opened.package.meta().architecture.max_position_embeddings as usize;
    let window = args.window.min(context);
    if window < 2 {
        return Err(CliError::Usage("--window is 2 or more"));
    }
    let (ids, bos) = tokens(&opened, &args.package, &text)?;
    let windows = windows(&ids, bos, window);
    if windows.is_empty() {
        return Err(CliError::Usage("the text has no second token: there is nothing to score"));
    }
    let options = LoadOptions {
        threads: args.threads,
        max_tokens: CHUNK,
        max_logit_rows: CHUNK,
        kv_tokens: window.next_multiple_of(BLOCK),
        block_size: BLOCK,
        cache_dtype: CacheDtype::F16,
    };
    let mut decoder = match args.device {
        ComputeDevice::Cpu => {
            engine_setup::model(&opened, compute::processor(args.threads)?, options)?.0
        }
        ComputeDevice::Cuda => engine_setup::model(&opened, compute::card(None)?, options)?.0,
    };
    let total: usize = windows.iter().map(Vec::len).sum();
    let bar = if args.json { ProgressBar::hidden() } else { ProgressBar::new(total as u64) };
    bar.set_style(
        ProgressStyle::with_template("scoring {bar:32} {pos}/{len} tokens {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let start = Instant::now();
    let mut scorer = Scorer::new(&mut *decoder);
    for window in &windows {
        scorer.window(window, &bar)?;
    }
    bar.finish_and_clear();
    let score = scorer.score;
    let mean_nll = score.nll / score.tokens as f64;
    let report = Report {
        package: args.package.display().to_string(),
        text: args.text.display().to_string(),
        device: decoder.describe(),
        perplexity: mean_nll.exp(),
        mean_nll,
        tokens_scored: score.tokens,
        tokens: total,
        windows: windows.len(),
        window,
        top1: score.best as f64 / score.tokens as f64,
        bos: bos.is_some(),
        seconds: start.elapsed().as_secs_f64(),
    };
    if args.json { output::json(&report) } else { print(&report) }
}

/// The ids of the text without BOS, and BOS if the model adds one.
fn tokens(opened: &Opened, path: &Path, text: &str) -> Result<(Vec<u32>, Option<u32>), CliError> {
    let bytes = opened.files.client_bundle()?;
    let file = path.with_extension("client");
    let refused = |source| CliError::ClientBundle { path: file.clone(), source };
    opened.package.meta().check_client_bundle(&bytes).map_err(refused)?;
    let bundle = ClientBundle::parse(&bytes)
        .map_err(|source| CliError::BundleForm { path: file.clone(), source })?;
    let client_text = ClientText {
        tokenizer_json: bundle.tokenizer.to_vec(),
        chat_template: None,
        config: bundle
            .text_config
            .map_or_else(|| Ok(TextConfig::default()), TextConfig::from_json)?,
    };
    let tokenizer = client_text.tokenizer()?;
    let config = tokenizer.config();
    let bos = config.bos_token_id.filter(|_| config.add_bos);
    Ok((tokenizer.encode(text, false)?, bos))
}

/// The windows that have a token to score.
fn windows(ids: &[u32], bos: Option<u32>, window: usize) -> Vec<Vec<u32>> {
    let room = window - usize::from(bos.is_some());
    let windows =
        ids.chunks(room).map(|chunk| bos.into_iter().chain(chunk.iter().copied()).collect());
    windows.filter(|window: &Vec<u32>| window.len() > 1).collect()
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    /// Sum of -ln p.
    nll: f64,
    tokens: usize,
    /// Tokens that were the likeliest.
    best: usize,
}

struct Scorer<'a> {
    model: &'a mut dyn Model,
    blocks: Vec<u32>,
    batch: Batch,
    logits: Vec<f32>,
    score: Score,
}

impl<'a> Scorer<'a> {
    fn new(model: &'a mut dyn Model) -> Self {
        let num_blocks = u32::try_from(model.limits().num_blocks).unwrap_or(u32::MAX);
        let logits = vec![0.0; model.vocab_size()];
        Self {
            model,
            blocks: (0..num_blocks).collect(),
            batch: Batch::default(),
            logits,
            score: Score::default(),
        }
    }

    /// Scores every token of a window but the first. The window's positions replace those of the window before.
    fn window(&mut self, window: &[u32], bar: &ProgressBar) -> Result<(), CliError> {
        // The last token has nothing behind it to predict.
        let inputs = window.split_last().map_or(&[][..], |(_, inputs)| inputs);
        let mut position = 0;
        for (chunk, targets) in
            inputs.chunks(CHUNK).zip(window.get(1..).unwrap_or_default().chunks(CHUNK))
        {
            self.batch.clear();
            self.batch.push(chunk, position, &self.blocks, WantLogits::All);
            self.model.forward(&self.batch)?;
            for (row, &target) in targets.iter().enumerate() {
                self.model.logits(row, &mut self.logits)?;
                self.score.add(&self.logits, target);
            }
            position += u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            bar.inc(chunk.len() as u64);
        }
        bar.inc(1);
        Ok(())
    }
}

impl Score {
    fn add(&mut self, logits: &[f32], target: u32) {
        let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum();
        // A token that the vocabulary lacks has no probability; the model refused it before.
        let found =
            logits.get(target as usize).map_or(f64::NEG_INFINITY, |&logit| f64::from(logit));
        self.nll += highest + sum.ln() - found;
        self.tokens += 1;
        self.best += usize::from(found >= highest);
    }
}

fn print(report: &Report) -> Result<(), CliError> {
    output::line(&format!(
        "perplexity {:.4} ({} tokens scored in {} windows of at most {}, {} BOS, top-1 {:.2} %), {:.1} s on {}",
        report.perplexity,
        report.tokens_scored,
        report.windows,
        report.window,
        if report.bos { "with" } else { "without" },
        report.top1 * 100.0,
        report.seconds,
        report.device
    ))
}

/// Tokens, and rows of logits, of one step.
const CHUNK: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_opens_with_bos_and_none_is_without_a_token_to_score() {
        assert_eq!(windows(&[5, 6, 7], Some(1), 3), [vec![1, 5, 6], vec![1, 7]]);
        assert_eq!(windows(&[5, 6, 7], None, 2), [vec![5, 6]]);
        assert_eq!(windows(&[5], None, 8), Vec::<Vec<u32>>::new());
        assert_eq!(windows(&[], Some(1), 8), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn even_odds_have_the_vocabulary_as_their_perplexity() {
        let mut score = Score::default();
        for target in 0..4 {
            score.add(&[0.5; 4], target);
        }
        assert!(((score.nll / 4.0).exp() - 4.0).abs() < 1e-12);
        assert_eq!((score.tokens, score.best), (4, 4));
    }

    #[test]
    fn a_certain_token_costs_nothing_and_large_logits_do_not_overflow() {
        let mut score = Score::default();
        score.add(&[1e4, -1e4], 0);
        assert_eq!((score.nll, score.best), (0.0, 1));
        score.add(&[1e4, -1e4], 1);
        assert_eq!((score.nll, score.best), (2e4, 1));
    }
}
