//! The terms that came with a package key: how long, and for how many tokens, it may be used.
//!
//! A request is admitted against what is left, and what it does not use goes back. So the tokens that were served never
//! pass the lease, whatever ran side by side. The clock is the guest's, which a host can slow; tokens it cannot stretch.

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    until_ms: Option<u64>,
    /// Tokens that nobody has used yet; some of them may be promised.
    left: Option<u64>,
    promised: u64,
}

/// Tokens that were promised to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promise(u64);

impl Lease {
    /// Without an end: an open package, or a release that names none.
    pub const UNLIMITED: Self = Self { until_ms: None, left: None, promised: 0 };

    /// A lease that begins now; 0 is without limit.
    pub fn new(seconds: u32, tokens: u64, now_ms: u64) -> Self {
        let until_ms = now_ms.saturating_add(u64::from(seconds).saturating_mul(1_000));
        Self {
            until_ms: (seconds != 0).then_some(until_ms),
            left: (tokens != 0).then_some(tokens),
            promised: 0,
        }
    }

    /// Whether nothing new may be served. Fewer tokens than receipts count in are as good as none.
    pub fn is_over(&self, now_ms: u64, quantum: u16) -> bool {
        self.until_ms.is_some_and(|until| now_ms >= until)
            || self.left.is_some_and(|left| left < u64::from(quantum).max(2))
    }

    /// When it ends by time.
    pub const fn until_ms(&self) -> Option<u64> {
        self.until_ms
    }

    /// Promises a request its prompt and as many output tokens as are left, `output` at most. Nothing when there is no
    /// token of output for it.
    pub fn promise(&mut self, prompt: u32, output: u32) -> Option<(u32, Promise)> {
        let Some(left) = self.left else {
            return Some((output, Promise(0)));
        };
        let room = left.saturating_sub(self.promised).checked_sub(u64::from(prompt))?;
        let output = output.min(u32::try_from(room).unwrap_or(u32::MAX));
        if output == 0 {
            return None;
        }
        let promise = u64::from(prompt).saturating_add(u64::from(output));
        self.promised = self.promised.saturating_add(promise);
        Some((output, Promise(promise)))
    }

    /// Takes a promise back: `used` of it is spent, the rest is there for others.
    pub fn settle(&mut self, promise: Promise, used: u64) {
        self.promised = self.promised.saturating_sub(promise.0);
        self.left = self.left.map(|left| left.saturating_sub(used.min(promise.0)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_by_time() {
        let lease = Lease::new(60, 0, 5_000);
        assert_eq!(lease.until_ms(), Some(65_000));
        assert!(!lease.is_over(64_999, 64));
        assert!(lease.is_over(65_000, 64));
        assert!(!Lease::UNLIMITED.is_over(u64::MAX, 64));
        assert_eq!(Lease::new(0, 0, 5), Lease::UNLIMITED);
    }

    #[test]
    fn what_is_promised_is_nobody_elses_and_what_is_not_used_comes_back() {
        let mut lease = Lease::new(0, 100, 0);
        let (output, first) = lease.promise(10, 50).unwrap();
        assert_eq!(output, 50);
        // 40 are left for others: 10 of prompt, and 30 of the 50 that were asked for.
        let (output, second) = lease.promise(10, 50).unwrap();
        assert_eq!(output, 30);
        assert_eq!(lease.promise(1, 1), None);
        lease.settle(first, 20);
        assert_eq!(lease.promise(40, 1), None);
        let (output, third) = lease.promise(39, 2).unwrap();
        assert_eq!(output, 1);
        lease.settle(second, 40);
        assert!(!lease.is_over(0, 40));
        lease.settle(third, 40);
        assert!(lease.is_over(0, 1));
        assert_eq!(lease.left, Some(0));
        assert_eq!(lease.promised, 0);
    }

    #[test]
    fn served_tokens_never_pass_a_lease() {
        let mut state = 1_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for tokens in [2, 63, 1_000, 5_000] {
            let mut lease = Lease::new(0, tokens, 0);
            let mut running: Vec<(Promise, u64)> = Vec::new();
            let mut served = 0;
            for _ in 0..2_000 {
                let prompt = random(60) as u32;
                if let Some((output, promise)) = lease.promise(prompt, random(90) as u32) {
                    running.push((promise, u64::from(prompt + output)));
                }
                if !running.is_empty() && random(2) == 0 {
                    let (promise, most) =
                        running.swap_remove(random(running.len() as u64) as usize);
                    let used = random(most + 1);
                    served += used;
                    lease.settle(promise, used);
                }
                let promised: u64 = running.iter().map(|(_, most)| most).sum();
                assert!(served + promised <= tokens, "{served} and {promised} of {tokens}");
            }
        }
    }
}
