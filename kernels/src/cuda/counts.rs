//! Crossings between host and device, counted by whoever makes them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::Crossings;

/// The counts of a driver.
#[derive(Debug, Default)]
pub(super) struct Counts {
    copies_in: AtomicU64,
    bytes_in: AtomicU64,
    copies_out: AtomicU64,
    bytes_out: AtomicU64,
    waits: AtomicU64,
    launches: AtomicU64,
    replays: AtomicU64,
    reservations: AtomicU64,
}

impl Counts {
    pub(super) fn copied_in(&self, bytes: usize) {
        add(&self.copies_in, 1);
        add(&self.bytes_in, bytes as u64);
    }

    pub(super) fn copied_out(&self, bytes: usize) {
        add(&self.copies_out, 1);
        add(&self.bytes_out, bytes as u64);
    }

    pub(super) fn waited(&self) {
        add(&self.waits, 1);
    }

    pub(super) fn launched(&self) {
        add(&self.launches, 1);
    }

    pub(super) fn replayed(&self) {
        add(&self.replays, 1);
    }

    pub(super) fn reserved(&self) {
        add(&self.reservations, 1);
    }

    pub(super) fn all(&self) -> Crossings {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Crossings {
            copies_in: get(&self.copies_in),
            bytes_in: get(&self.bytes_in),
            copies_out: get(&self.copies_out),
            bytes_out: get(&self.bytes_out),
            waits: get(&self.waits),
            launches: get(&self.launches),
            replays: get(&self.replays),
            reservations: get(&self.reservations),
        }
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}
