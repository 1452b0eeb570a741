//! What a package's owner allows with its key, as one TOML file. Nothing has a permissive default.

use std::time::{SystemTime, UNIX_EPOCH};

use chrysalis_attestation::policy::{AppraisalPolicy, PolicyError, ReleaseTerms};
use chrysalis_protocol::package::Header;
use chrysalis_protocol::statement::Tee;
use serde::Deserialize;
use toml::value::{Datetime, Offset};

use super::refusal::Refusal;
use crate::hex;

/// Why a file is no licence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LicenceError {
    /// Not TOML, a key that is missing or does not exist, or a value of another type.
    #[error("the licence is not a file of this form: {0}")]
    Toml(String),
    /// A value that the key does not take.
    #[error("{key} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// A budget of tokens that a lease without limit would make meaningless.
    #[error(
        "token_budget is a number and lease_tokens is \"unlimited\": a release would be without limit"
    )]
    Unbounded,
    /// The appraisal policy was refused.
    #[error("its policy: {0}")]
    Policy(#[from] PolicyError),
}

/// One package's licence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Licence {
    /// Counts up; a licence is replaced by one with a higher serial only.
    pub serial: u64,
    /// The line of models that shares a floor of security versions.
    pub model: String,
    /// Whose key.
    pub package_id: [u8; 16],
    /// Where the appraisal policy lies, beside the licence.
    pub policy_path: String,
    /// The lowest security version that gets a key; never lowered for a line of models.
    pub minimum_svn: u32,
    /// Kinds of platform.
    pub platforms: Vec<Tee>,
    /// Unix seconds.
    pub expires: u64,
    /// Releases over all time.
    pub releases: Option<u64>,
    /// Releases to one chip over all time.
    pub releases_per_chip: Option<u64>,
    /// How long an enclave may serve with one release.
    pub lease_seconds: Option<u32>,
    /// How many tokens it may serve with one release.
    pub lease_tokens: Option<u64>,
    /// Tokens of all leases together.
    pub token_budget: Option<u64>,
}

/// What was spent of a licence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Releases.
    pub releases: u64,
    /// Tokens of their leases.
    pub tokens: u64,
}

impl Licence {
    /// Reads a licence.
    ///
    /// # Errors
    /// [`LicenceError`] names the key.
    pub fn from_toml(text: &str) -> Result<Self, LicenceError> {
        let file: File =
            toml::from_str(text).map_err(|error| LicenceError::Toml(error.to_string()))?;
        let wrong = |key, expected| LicenceError::Value { key, expected };
        if file.format != FORMAT {
            return Err(wrong("format", "1"));
        }
        if file.model.is_empty() || file.model.len() > MODEL_MAX {
            return Err(wrong("model", "a name of 1 to 64 bytes"));
        }
        let package_id = hex::decode(&file.package_id)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| wrong("package_id", "32 hexadecimal digits"))?;
        let platforms: Option<Vec<Tee>> = file.platforms.iter().map(|name| tee(name)).collect();
        let platforms = platforms
            .filter(|platforms| !platforms.is_empty())
            .ok_or_else(|| wrong("platforms", "a list of \"sev-snp\", \"tdx\", \"simulated\""))?;
        let narrow = |value: Option<u64>| match value.map(u32::try_from).transpose() {
            Ok(value) => Ok(value),
            Err(_) => Err(wrong("lease_seconds", "below 2^32")),
        };
        let licence = Self {
            serial: file.serial,
            model: file.model,
            package_id,
            policy_path: file.policy,
            minimum_svn: file.minimum_svn,
            platforms,
            expires: unix(&file.expires)
                .ok_or_else(|| wrong("expires", "a time in UTC: 2027-01-31T00:00:00Z"))?,
            releases: file.releases.number("releases")?,
            releases_per_chip: file.releases_per_chip.number("releases_per_chip")?,
            lease_seconds: narrow(file.lease_seconds.number("lease_seconds")?)?,
            lease_tokens: file.lease_tokens.number("lease_tokens")?,
            token_budget: file.token_budget.number("token_budget")?,
        };
        if licence.token_budget.is_some() && licence.lease_tokens.is_none() {
            return Err(LicenceError::Unbounded);
        }
        Ok(licence)
    }

    /// What goes with a key; in the message 0 is without limit, so a limit of 0 cannot be in a licence.
    pub fn terms(&self, floor: u32) -> ReleaseTerms {
        ReleaseTerms {
            min_model_svn: floor,
            lease_seconds: self.lease_seconds.unwrap_or(0),
            lease_tokens: self.lease_tokens.unwrap_or(0),
        }
    }

    /// Whether the licence stands at this time.
    ///
    /// # Errors
    /// [`Refusal::Expired`].
    pub const fn check_time(&self, now: u64) -> Result<(), Refusal> {
        if now < self.expires {
            Ok(())
        } else {
            Err(Refusal::Expired { expires: self.expires, now })
        }
    }

    /// Whether the licence covers an attested platform and model.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn check_enclave(&self, platform: Tee, svn: u32, floor: u32) -> Result<(), Refusal> {
        if !self.platforms.contains(&platform) {
            return Err(Refusal::Platform { found: tee_name(platform) });
        }
        if svn < floor {
            return Err(Refusal::Svn { found: svn, floor });
        }
        Ok(())
    }

    /// What is spent after one more release to a chip that had `chip` so far.
    ///
    /// # Errors
    /// The [`Refusal`] of the budget that is used up.
    pub fn spend(&self, spent: Spent, chip: u64) -> Result<(Spent, u64), Refusal> {
        if let Some(budget) = self.releases.filter(|budget| spent.releases >= *budget) {
            return Err(Refusal::Releases { spent: spent.releases, budget });
        }
        if let Some(budget) = self.releases_per_chip.filter(|budget| chip >= *budget) {
            return Err(Refusal::ChipReleases { spent: chip, budget });
        }
        let lease = self.lease_tokens.unwrap_or(0);
        let tokens = spent.tokens.saturating_add(lease);
        if let Some(budget) = self.token_budget.filter(|budget| tokens > *budget) {
            return Err(Refusal::Tokens { spent: spent.tokens, budget, lease });
        }
        let releases = spent.releases.saturating_add(1);
        Ok((Spent { releases, tokens }, chip.saturating_add(1)))
    }
}

/// A licence for a package to start from, commented, with small budgets and a year.
pub fn example(header: &Header, model: &str, policy: &str, now: u64) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let (year, month, day) = date(now.saturating_add(365 * DAY));
    format!(
        "# What the owner allows with the key of one package. Every key is required, and unknown keys are refused.\n\
         format = 1\n\
         # Raise it with each change: a licence is replaced only by one with a higher serial.\n\
         serial = 1\n\
         package_id = \"{}\"\n\
         # The line of models that this package belongs to. Its floor of security versions is never lowered, so that\n\
         # a withdrawn package gets no key any more, whatever its own licence says.\n\
         model = {}\n\
         minimum_svn = {}\n\
         # What an enclave has to be: models, publishers, measurements, chips. The file beside this one; a copy of it\n\
         # is stored with the licence.\n\
         policy = {}\n\
         # Any of \"sev-snp\", \"tdx\", and for trying things out \"simulated\".\n\
         platforms = [\"sev-snp\", \"tdx\"]\n\
         expires = {year:04}-{month:02}-{day:02}T00:00:00Z\n\
         # How often the key is released, over all time and to one chip. Each start of an enclave takes one.\n\
         releases = 100\n\
         releases_per_chip = 20\n\
         # How long, and for how many tokens (prompt and output), an enclave serves with one release.\n\
         lease_seconds = 86400\n\
         lease_tokens = 100000000\n\
         # Tokens of all leases together; a release takes lease_tokens of it.\n\
         token_budget = 1000000000\n\
         # Each of the five limits may be \"unlimited\" instead, token_budget only together with lease_tokens.\n",
        hex::encode(&header.package_id),
        quoted(model),
        header.model_svn,
        quoted(policy),
    )
}

/// How a licence names a kind of platform.
pub const fn tee_name(tee: Tee) -> &'static str {
    match tee {
        Tee::SevSnp => "sev-snp",
        Tee::Tdx => "tdx",
        Tee::Simulated => "simulated",
    }
}

/// The clock, Unix seconds.
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2026-11-25T18:00:00Z`.
pub fn timestamp(unix: u64) -> String {
    let (year, month, day) = date(unix);
    let (hour, minute, second) = (unix % DAY / 3_600, unix % 3_600 / 60, unix % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn tee(name: &str) -> Option<Tee> {
    [Tee::SevSnp, Tee::Tdx, Tee::Simulated].into_iter().find(|tee| tee_name(*tee) == name)
}

/// Unix seconds of a time that says UTC.
fn unix(time: &Datetime) -> Option<u64> {
    let (date, clock) = (time.date?, time.time?);
    if !matches!(time.offset, Some(Offset::Z | Offset::Custom { minutes: 0 })) {
        return None;
    }
    let (year, month, day) = (u64::from(date.year), u64::from(date.month), u64::from(date.day));
    let days = days_from_civil(year, month, day)?;
    let second = clock.second.map_or(0, u64::from);
    Some(days * DAY + u64::from(clock.hour) * 3_600 + u64::from(clock.minute) * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; nothing before it.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years that begin in March, so that the leap day is the last.
    let shifted = if month > 2 { year } else { year.checked_sub(1)? };
    let month = if month > 2 { month - 3 } else { month + 9 };
    let days =
        365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * month + 2) / 5 + day
            - 1;
    days.checked_sub(DAYS_TO_1970)
}

/// Year, month and day of a Unix time.
fn date(unix: u64) -> (u64, u64, u64) {
    let days = unix / DAY + DAYS_TO_1970;
    // A year too late at most, and so one step back at most.
    let mut year = days * 400 / 146_097 + 1;
    let start = |year: u64| 365 * year + year / 4 - year / 100 + year / 400;
    while start(year) > days {
        year -= 1;
    }
    let day_of_year = days - start(year);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    serial: u64,
    package_id: String,
    model: String,
    minimum_svn: u32,
    policy: String,
    platforms: Vec<String>,
    expires: Datetime,
    releases: Limit,
    releases_per_chip: Limit,
    lease_seconds: Limit,
    lease_tokens: Limit,
    token_budget: Limit,
}

/// A number, or the word that says there is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum Limit {
    Number(u64),
    Word(String),
}

impl Limit {
    fn number(&self, key: &'static str) -> Result<Option<u64>, LicenceError> {
        match self {
            Self::Number(0) => Err(LicenceError::Value { key, expected: "at least 1" }),
            Self::Number(number) => Ok(Some(*number)),
            Self::Word(word) if word == "unlimited" => Ok(None),
            Self::Word(_) => {
                Err(LicenceError::Value { key, expected: "a number, or \"unlimited\"" })
            }
        }
    }
}

/// A licence and its policy, as they were read.
#[derive(Clone, Debug)]
pub struct Licensed {
    /// The licence.
    pub licence: Licence,
    /// Its appraisal policy.
    pub policy: AppraisalPolicy,
}

impl Licensed {
    /// Reads both.
    ///
    /// # Errors
    /// [`LicenceError`].
    pub fn from_toml(licence: &str, policy: &str) -> Result<Self, LicenceError> {
        let licence = Licence::from_toml(licence)?;
        Ok(Self { licence, policy: AppraisalPolicy::from_toml(policy)? })
    }
}

const FORMAT: u32 = 1;
const MODEL_MAX: usize = 64;
const DAY: u64 = 86_400;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "format = 1\nserial = 3\npackage_id = \"000102030405060708090a0b0c0d0e0f\"\n\
        model = \"smol\"\nminimum_svn = 2\npolicy = \"smol.policy.toml\"\nplatforms = [\"sev-snp\"]\n\
        expires = 2027-01-31T12:30:01Z\nreleases = 2\nreleases_per_chip = 1\nlease_seconds = 60\n\
        lease_tokens = 10\ntoken_budget = 15\n";

    #[test]
    fn a_licence_is_read_as_written() {
        let licence = Licence::from_toml(TEXT).unwrap();
        assert_eq!((licence.serial, licence.minimum_svn, licence.expires), (3, 2, 1_801_398_601));
        assert_eq!(licence.platforms, [Tee::SevSnp]);
        assert_eq!((licence.releases, licence.lease_seconds), (Some(2), Some(60)));
        let open = TEXT.replace("releases = 2", "releases = \"unlimited\"");
        assert_eq!(Licence::from_toml(&open).unwrap().releases, None);
    }

    #[test]
    fn each_wrong_key_is_named() {
        let rows = [
            ("format = 1", "format = 2", "format"),
            ("serial = 3\n", "", "serial"),
            ("000102", "0001", "package_id"),
            ("model = \"smol\"", "model = \"\"", "model"),
            ("[\"sev-snp\"]", "[\"sgx\"]", "platforms"),
            ("[\"sev-snp\"]", "[]", "platforms"),
            ("12:30:01Z", "12:30:01+02:00", "expires"),
            ("2027-01-31T12:30:01Z", "2027-01-31", "expires"),
            ("releases = 2", "releases = 0", "releases"),
            ("releases = 2", "releases = \"many\"", "releases"),
            ("lease_seconds = 60", "lease_seconds = 4294967296", "lease_seconds"),
            ("lease_tokens = 10", "lease_tokens = \"unlimited\"", "lease_tokens"),
            ("format = 1", "format = 1\nloud = true", "loud"),
        ];
        for (from, to, named) in rows {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT, "{from}");
            let error = Licence::from_toml(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{named} is not in {error}");
        }
    }

    #[test]
    fn each_budget_ends_by_itself() {
        let licence = Licence::from_toml(TEXT).unwrap();
        let (spent, chip) = licence.spend(Spent::default(), 0).unwrap();
        assert_eq!((spent, chip), (Spent { releases: 1, tokens: 10 }, 1));
        assert_eq!(licence.spend(spent, chip), Err(Refusal::ChipReleases { spent: 1, budget: 1 }));
        assert_eq!(
            licence.spend(spent, 0),
            Err(Refusal::Tokens { spent: 10, budget: 15, lease: 10 })
        );
        let spent = Spent { releases: 2, tokens: 0 };
        assert_eq!(licence.spend(spent, 0), Err(Refusal::Releases { spent: 2, budget: 2 }));
    }

    #[test]
    fn platform_version_and_time_are_held() {
        let licence = Licence::from_toml(TEXT).unwrap();
        assert_eq!(licence.check_enclave(Tee::SevSnp, 2, 2), Ok(()));
        let found = "simulated";
        assert_eq!(licence.check_enclave(Tee::Simulated, 2, 2), Err(Refusal::Platform { found }));
        let refused = Err(Refusal::Svn { found: 2, floor: 3 });
        assert_eq!(licence.check_enclave(Tee::SevSnp, 2, 3), refused);
        let expires = licence.expires;
        assert_eq!(licence.check_time(expires - 1), Ok(()));
        let refused = Err(Refusal::Expired { expires, now: expires });
        assert_eq!(licence.check_time(expires), refused);
    }

    #[test]
    fn dates_go_both_ways() {
        for (unix_time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_801_398_601, "2027-01-31T12:30:01Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(timestamp(unix_time), text);
            assert_eq!(unix(&text.parse().unwrap()), Some(unix_time));
        }
        for day in 0..200_000 {
            let (year, month, day_of_month) = date(day * DAY);
            assert_eq!(days_from_civil(year, month, day_of_month), Some(day));
        }
    }

    #[test]
    fn the_example_is_a_licence() {
        let header = Header {
            sealed: true,
            segment_log2: 21,
            blob_log2: 34,
            package_id: [7; 16],
            data_len: 0,
            meta_len: 0,
            model_svn: 5,
            meta_root: [0; 32],
            data_root: [0; 32],
            table_root: [0; 32],
            key_commit: [0; 32],
            publisher_key_id: [0; 32],
        };
        let text = example(&header, "a \"model\"", "x.policy.toml", 1_801_398_601);
        let licence = Licence::from_toml(&text).unwrap();
        assert_eq!((licence.package_id, licence.minimum_svn), ([7; 16], 5));
        assert_eq!(licence.model, "a \"model\"");
    }
}
