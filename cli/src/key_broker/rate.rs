//! Rate limits by address, package and chip, in tables of bounded size.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use super::refusal::Refusal;

/// Calls a minute, for each address, package and chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// All calls of one IPv4 address, or of one IPv6 network of 64 bits.
    pub address: u32,
    /// Releases of one package, counted once the evidence was good.
    pub package: u32,
    /// Releases to one chip, counted once the evidence was good.
    pub chip: u32,
}

/// Whose calls are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Address(IpAddr),
    Package([u8; 16]),
    Chip([u8; 64]),
    /// Everybody for whom the table has no room, together.
    Rest,
    /// The audit log's lines about calls that proved nothing.
    Line,
}

/// Who calls, and what was proved by calling. Strangers, however many, leave the second table alone.
#[derive(Debug)]
pub struct Rates {
    limits: RateLimits,
    strangers: Table,
    proved: Table,
}

/// When each caller would have used up what it may do (the generic cell rate algorithm): one number a caller.
#[derive(Debug)]
struct Table {
    busy_until_us: HashMap<Caller, u64>,
    max: usize,
    swept_us: u64,
}

impl Rates {
    /// Tables for at most `max` callers each.
    pub fn new(limits: RateLimits, max: usize) -> Self {
        Self { limits, strangers: Table::new(max), proved: Table::new(max) }
    }

    /// Counts a call of an address.
    ///
    /// # Errors
    /// [`Refusal::Rate`].
    pub fn address(&mut self, address: IpAddr, now_us: u64) -> Result<(), Refusal> {
        let caller = Caller::Address(network(address));
        self.strangers.count(caller, self.limits.address, "address", now_us)
    }

    /// Counts a release of a package.
    ///
    /// # Errors
    /// [`Refusal::Rate`].
    pub fn package(&mut self, package_id: [u8; 16], now_us: u64) -> Result<(), Refusal> {
        self.proved.count(Caller::Package(package_id), self.limits.package, "package", now_us)
    }

    /// Counts a release to a chip.
    ///
    /// # Errors
    /// [`Refusal::Rate`].
    pub fn chip(&mut self, chip: [u8; 64], now_us: u64) -> Result<(), Refusal> {
        self.proved.count(Caller::Chip(chip), self.limits.chip, "chip", now_us)
    }

    /// Whether the log has room for one more call that proved nothing: strangers must not fill the disk.
    pub fn line(&mut self, now_us: u64) -> bool {
        self.strangers.count(Caller::Line, LINES_A_MINUTE, "line", now_us).is_ok()
    }
}

impl Table {
    fn new(max: usize) -> Self {
        Self { busy_until_us: HashMap::new(), max, swept_us: 0 }
    }

    fn count(
        &mut self,
        caller: Caller,
        a_minute: u32,
        what: &'static str,
        now_us: u64,
    ) -> Result<(), Refusal> {
        let caller = self.room_for(caller, now_us);
        let each_us = MINUTE_US / u64::from(a_minute.max(1));
        let busy = self.busy_until_us.get(&caller).copied().unwrap_or(0).max(now_us);
        let next = busy.saturating_add(each_us);
        // A minute's worth at once, and then one whenever its share of a minute has passed.
        if next > now_us.saturating_add(MINUTE_US) {
            let wait_us = next - now_us - MINUTE_US;
            return Err(Refusal::Rate { what, retry_after_s: wait_us.div_ceil(1_000_000) });
        }
        self.busy_until_us.insert(caller, next);
        Ok(())
    }

    /// The caller, if the table has room for it once those are gone that have done nothing for a while.
    fn room_for(&mut self, caller: Caller, now_us: u64) -> Caller {
        if self.busy_until_us.len() < self.max || self.busy_until_us.contains_key(&caller) {
            return caller;
        }
        // A whole table is looked through once a second at most: a crowd must not buy a look with each call.
        if now_us >= self.swept_us.saturating_add(SWEEP_US) {
            self.swept_us = now_us;
            self.busy_until_us.retain(|_, until| *until > now_us);
        }
        if self.busy_until_us.len() < self.max { caller } else { Caller::Rest }
    }
}

/// Who owns an IPv6 address owns its network.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        address @ IpAddr::V4(_) => address,
    }
}

const MINUTE_US: u64 = 60_000_000;
/// How often a full table is looked through.
const SWEEP_US: u64 = 1_000_000;
/// Lines a minute about calls that proved nothing; some 40 MB a day.
const LINES_A_MINUTE: u32 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RateLimits = RateLimits { address: 2, package: 1, chip: 1 };
    const HOME: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn a_caller_has_a_minutes_worth_and_then_its_share() {
        let mut rates = Rates::new(LIMITS, 8);
        assert_eq!(rates.address(HOME, 0), Ok(()));
        assert_eq!(rates.address(HOME, 0), Ok(()));
        let refused = Err(Refusal::Rate { what: "address", retry_after_s: 30 });
        assert_eq!(rates.address(HOME, 0), refused);
        assert_eq!(rates.address(HOME, 30_000_000), Ok(()));
        assert!(rates.address(HOME, 30_000_001).is_err());
        assert_eq!(rates.package([0; 16], 0), Ok(()));
        assert_eq!(rates.package([1; 16], 0), Ok(()));
        assert!(rates.package([0; 16], 59_000_000).is_err());
        assert_eq!(rates.chip([0; 64], 0), Ok(()));
        assert!(rates.chip([0; 64], 59_000_000).is_err());
    }

    #[test]
    fn neighbours_of_one_network_are_one_caller() {
        let mut rates = Rates::new(LIMITS, 8);
        for (text, taken) in [
            ("2001:db8::1", true),
            ("2001:db8::2", true),
            ("2001:db8::ffff:3", false),
            ("2001:db8:0:1::3", true),
            ("192.0.2.1", true),
            ("192.0.2.2", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.1", false),
        ] {
            let address = text.parse().unwrap();
            assert_eq!(rates.address(address, 0).is_ok(), taken, "{text}");
        }
    }

    #[test]
    fn the_table_never_grows_and_a_crowd_shares_what_is_left() {
        let mut rates = Rates::new(LIMITS, 2);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        for n in 0..200 {
            let taken = rates.address(address(n), 0).is_ok();
            assert_eq!(taken, n < 4, "{n}");
        }
        assert_eq!(rates.strangers.busy_until_us.len(), 3);
        // Packages and chips have a table of their own, which strangers do not fill.
        assert_eq!(rates.package([1; 16], 0), Ok(()));
        assert_eq!(rates.chip([1; 64], 0), Ok(()));
        // After a minute the first ones are forgotten.
        assert_eq!(rates.address(address(9), 120_000_000), Ok(()));
        assert_eq!(rates.strangers.busy_until_us.len(), 1);
    }

    #[test]
    fn a_full_table_is_looked_through_once_a_second() {
        let mut rates = Rates::new(LIMITS, 2);
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        // These are busy until 120 s; whoever comes meanwhile shares what is left.
        assert_eq!(rates.address(address(1), 90_000_000), Ok(()));
        assert_eq!(rates.address(address(3), 90_000_000), Ok(()));
        assert_eq!(rates.address(address(2), 119_500_000), Ok(()));
        assert_eq!(rates.strangers.swept_us, 119_500_000);
        assert_eq!(rates.address(address(2), 120_400_000), Ok(()));
        assert_eq!(rates.strangers.swept_us, 119_500_000);
        assert!(rates.address(address(2), 120_499_999).is_err(), "the shared rate is used up");
        assert_eq!(rates.address(address(2), 120_500_000), Ok(()));
        assert_eq!(rates.strangers.swept_us, 120_500_000);
    }

    #[test]
    fn calls_that_prove_nothing_have_sixty_lines_a_minute() {
        let mut rates = Rates::new(LIMITS, 8);
        assert_eq!((0..100).filter(|_| rates.line(0)).count(), 60);
        assert!(rates.line(1_000_000) && !rates.line(1_000_001));
    }
}
