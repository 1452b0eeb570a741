//! The attester over configfs-tsm, against a stand-in for the kernel with its rules: an entry counts
//! its writes, what may be written cannot be read, and a report is over what was written last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_attestation::attester::tsm::{Configfs, Kernel, Tsm};
use chrysalis_attestation::attester::{Attester, AttesterError, Choice, Interfaces};
use chrysalis_attestation::policy::package_rtmr;
use chrysalis_attestation::quote::{Quote, TdReport};
use chrysalis_attestation::verifier::{Roots, TdxPlatformDemand, verify_snp, verify_tdx};
use chrysalis_protocol::hash::sha384;
use chrysalis_protocol::statement::Tee;

use crate::simulated::{LAUNCH_CONFIG, MEASUREMENT, NOW};
use crate::tdx::{Intel, Made, TdWorld};

type Platform = Box<dyn FnMut(&[u8; 64], [u8; 48]) -> Vec<u8> + Send>;

/// The kernel's side.
struct State {
    provider: Option<&'static str>,
    platform: Platform,
    entries: BTreeMap<PathBuf, (u64, Option<[u8; 64]>)>,
    /// How often somebody else writes between our write and our read.
    disturbances: usize,
    rtmr3: Option<[u8; 48]>,
    /// The highest level that the guest has; TDX has none.
    privlevel_floor: Option<&'static str>,
    privlevel: Option<Vec<u8>>,
    /// What an operation on a path that ends like this fails with.
    failure: Option<(&'static str, i32)>,
    generation_text: Option<&'static str>,
    removed: usize,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<State>>);

impl Fake {
    fn new(provider: &'static str, platform: Platform) -> Self {
        Self(Arc::new(Mutex::new(State {
            provider: Some(provider),
            platform,
            entries: BTreeMap::new(),
            disturbances: 0,
            rtmr3: None,
            privlevel_floor: (provider != "tdx_guest\n").then_some("0\n"),
            privlevel: None,
            failure: None,
            generation_text: None,
            removed: 0,
        })))
    }

    /// An SEV-SNP guest whose reports the simulated platform signs.
    fn snp() -> Self {
        let mut simulated = Simulated::new(LAUNCH_CONFIG, MEASUREMENT).expect("a key");
        let report = move |data: &[u8; 64], _| simulated.attest(data).expect("it signs").report;
        Self::new("sev_guest\n", Box::new(report))
    }

    /// A TDX guest; its platform's last quote and vendor are left in the slot.
    fn tdx(slot: Arc<Mutex<Option<Made>>>) -> Self {
        let world = TdWorld::honest();
        let quote = move |data: &[u8; 64], rtmr3| {
            let mut td = TdReport { report_data: *data, ..world.td.clone() };
            td.rtmrs[3] = rtmr3;
            let made = Intel::honest().make(&[td]);
            let quote = [made.quotes[0].as_slice(), &[0; 70]].concat();
            *slot.lock().unwrap() = Some(made);
            quote
        };
        let fake = Self::new("tdx_guest\n", Box::new(quote));
        fake.set(|state| state.rtmr3 = Some([0; 48]));
        fake
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }

    fn open(&self) -> Result<Tsm, AttesterError> {
        Tsm::open(Path::new("/"), Box::new(self.clone()))
    }

    fn entries(&self) -> usize {
        self.0.lock().unwrap().entries.len()
    }
}

impl State {
    fn fails(&self, path: &Path) -> io::Result<()> {
        match self.failure {
            Some((end, code)) if path.to_string_lossy().ends_with(end) => {
                Err(io::Error::from_raw_os_error(code))
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, attribute: &Path) -> io::Result<&mut (u64, Option<[u8; 64]>)> {
        self.entries
            .get_mut(attribute.parent().unwrap())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Configfs for Fake {
    fn make(&mut self, entry: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let parent = entry.parent().unwrap();
        assert_eq!(parent, Path::new("/sys/kernel/config/tsm/report"));
        state.fails(parent)?;
        if state.provider.is_none() {
            return Err(io::Error::from_raw_os_error(ENXIO));
        }
        if state.entries.contains_key(entry) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.entries.insert(entry.to_owned(), (0, None));
        Ok(())
    }

    fn write(&mut self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.fails(attribute)?;
        if attribute.ends_with("tdx_guest/measurements/rtmr3:sha384") {
            let register = state.rtmr3.as_mut().ok_or(io::ErrorKind::NotFound)?;
            *register = sha384(&[&*register, <&[u8; 48]>::try_from(bytes).expect("a digest")]);
            return Ok(());
        }
        if attribute.ends_with("privlevel") {
            state.privlevel = Some(bytes.to_vec());
            state.entry(attribute)?.0 += 1;
            return Ok(());
        }
        if !attribute.ends_with("inblob") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let data = bytes.try_into().map_err(|_| io::Error::from_raw_os_error(EINVAL))?;
        let entry = state.entry(attribute)?;
        *entry = (entry.0 + 1, Some(data));
        if state.disturbances > 0 {
            state.disturbances -= 1;
            let entry = state.entry(attribute)?;
            *entry = (entry.0 + 1, Some([0xBA; 64]));
        }
        Ok(())
    }

    fn read(&mut self, attribute: &Path) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock().unwrap();
        state.fails(attribute)?;
        let (generation, data) = *state.entry(attribute)?;
        match attribute.file_name().and_then(|name| name.to_str()) {
            Some("provider") => Ok(state.provider.unwrap_or_default().as_bytes().to_vec()),
            Some("generation") => match state.generation_text {
                Some(text) => Ok(text.as_bytes().to_vec()),
                None => Ok(format!("{generation}\n").into_bytes()),
            },
            Some("outblob") => {
                let data = data.ok_or_else(|| io::Error::from_raw_os_error(EINVAL))?;
                let rtmr3 = state.rtmr3.unwrap_or([0; 48]);
                Ok((state.platform)(&data, rtmr3))
            }
            Some("privlevel_floor") => match state.privlevel_floor {
                Some(text) => Ok(text.as_bytes().to_vec()),
                None => Err(io::ErrorKind::NotFound.into()),
            },
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn remove(&mut self, entry: &Path) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.removed += 1;
        state.entries.remove(entry).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

#[test]
fn an_snp_guest_gives_its_bare_report_and_what_it_was_launched_with() {
    let fake = Fake::snp();
    let mut tsm = fake.open().expect("a guest");
    assert_eq!(tsm.tee(), Tee::SevSnp);
    let evidence = tsm.attest(&DATA).expect("a report");
    assert!(evidence.endorsements.is_empty());
    let vcek = include_bytes!("../../src/roots/simulated/vcek.der");
    let verified = verify_snp(&evidence.report, vcek, Roots::Simulated, NOW).expect("authentic");
    assert_eq!(verified.report().report_data, DATA);
    assert_eq!(tsm.launch_config_digest(), Ok(LAUNCH_CONFIG));
    assert_eq!(tsm.measure_package(&[1; 48]), Ok(false));
    assert_eq!(fake.entries(), 0);
}

#[test]
fn a_tdx_guest_gives_its_quote_and_extends_its_register_with_the_package() {
    let slot = Arc::new(Mutex::new(None));
    let fake = Fake::tdx(Arc::clone(&slot));
    let mut tsm = fake.open().expect("a guest");
    assert_eq!(tsm.tee(), Tee::Tdx);
    assert_eq!(tsm.launch_config_digest(), Ok(LAUNCH_CONFIG));
    assert_eq!(tsm.measure_package(&[7; 48]), Ok(true));
    let evidence = tsm.attest(&DATA).expect("a quote");
    let made = slot.lock().unwrap().take().expect("it was made");
    let collateral = made.collateral.to_bytes();
    let demand = TdxPlatformDemand::default();
    let verified = verify_tdx(&evidence.report, &collateral, &made.root, NOW, &demand);
    let verified = verified.expect("authentic, without the zeros behind it");
    assert_eq!(verified.report().report_data, DATA);
    assert_eq!(verified.report().rtmrs[3], package_rtmr(&[7; 48]));
    // A kernel without the register, and one that refuses.
    fake.set(|state| state.rtmr3 = None);
    assert_eq!(tsm.measure_package(&[7; 48]), Ok(false));
    fake.set(|state| state.failure = Some(("rtmr3:sha384", EINVAL)));
    assert!(matches!(tsm.measure_package(&[7; 48]), Err(AttesterError::Interface { .. })));
    assert_eq!(fake.entries(), 0);
}

#[test]
fn a_config_id_that_is_no_digest_is_refused() {
    let quote = |data: &[u8; 64], _| {
        let mut td = TdWorld::honest().td;
        td.report_data = *data;
        td.mr_config_id[47] = 1;
        Intel::honest().make(&[td]).quotes.remove(0)
    };
    let mut tsm = Fake::new("tdx_guest\n", Box::new(quote)).open().expect("a guest");
    assert_eq!(tsm.launch_config_digest(), Err(AttesterError::ConfigId));
}

#[test]
fn a_report_between_other_writes_is_not_taken() {
    let fake = Fake::snp();
    let mut tsm = fake.open().expect("a guest");
    fake.set(|state| state.disturbances = 4);
    let evidence = tsm.attest(&DATA).expect("the fifth attempt is undisturbed");
    assert_eq!(evidence.report[0x50..0x90], DATA);
    fake.set(|state| state.disturbances = usize::MAX);
    assert_eq!(tsm.attest(&DATA), Err(AttesterError::Disturbed { attempts: 5 }));
    assert_eq!(fake.entries(), 0);
}

#[test]
fn below_an_svsm_a_guest_asks_at_its_own_level() {
    let fake = Fake::snp();
    let mut tsm = fake.open().expect("a guest");
    assert!(tsm.attest(&DATA).is_ok());
    assert_eq!(fake.0.lock().unwrap().privlevel, None, "the kernel's own choice is 0");
    fake.set(|state| state.privlevel_floor = Some("2\n"));
    assert!(tsm.attest(&DATA).is_ok());
    assert_eq!(fake.0.lock().unwrap().privlevel, Some(b"2".to_vec()));
    for text in ["4", "", "two"] {
        fake.set(|state| state.privlevel_floor = Some(text));
        let refused = tsm.attest(&DATA);
        assert!(matches!(refused, Err(AttesterError::Attribute { .. })), "{refused:?}");
    }
    fake.set(|state| state.failure = Some(("privlevel_floor", EACCES)));
    assert!(matches!(tsm.attest(&DATA), Err(AttesterError::Privilege { .. })));
    assert_eq!(fake.entries(), 0);
}

#[test]
fn what_the_platform_gives_is_checked() {
    let answers: [(&str, Platform); 5] = [
        ("short", Box::new(|_, _| vec![3; 1_183])),
        ("long", Box::new(|_, _| vec![3; 1_185])),
        ("empty", Box::new(|_, _| Vec::new())),
        ("no report", Box::new(|_, _| vec![0xFF; 1_184])),
        (
            "a quote",
            Box::new(|_, _| Intel::honest().make(&[TdWorld::honest().td]).quotes.remove(0)),
        ),
    ];
    for (name, platform) in answers {
        let fake = Fake::new("sev_guest\n", platform);
        let mut tsm = fake.open().expect("a guest");
        let refused = tsm.attest(&DATA);
        assert!(matches!(refused, Err(AttesterError::Report { .. })), "{name}: {refused:?}");
        assert!(tsm.launch_config_digest().is_err(), "{name}");
        assert_eq!(fake.entries(), 0);
    }
    let mut simulated = Simulated::new(LAUNCH_CONFIG, MEASUREMENT).expect("a key");
    let other = move |_: &[u8; 64], _| simulated.attest(&[9; 64]).expect("it signs").report;
    let mut tsm = Fake::new("sev_guest\n", Box::new(other)).open().expect("a guest");
    assert_eq!(tsm.attest(&DATA), Err(AttesterError::OtherReport));
}

#[test]
fn what_is_missing_is_named() {
    let reports = "config/tsm/report";
    let text = |fake: &Fake| fake.open().expect_err("it cannot be").to_string();
    let fake = Fake::snp();
    fake.set(|state| state.failure = Some((reports, ENOENT)));
    assert!(text(&fake).contains("CONFIG_TSM_REPORTS"), "{}", text(&fake));
    assert!(text(&fake).contains("mount -t configfs"));
    fake.set(|state| state.failure = Some((reports, EACCES)));
    assert!(text(&fake).contains("run as root"), "{}", text(&fake));
    fake.set(|state| state.failure = None);
    fake.set(|state| state.provider = None);
    assert!(text(&fake).contains("CONFIG_SEV_GUEST"), "{}", text(&fake));
    assert!(text(&fake).contains("CONFIG_TDX_GUEST_DRIVER"));
    fake.set(|state| state.provider = Some("arm_cca_guest\n"));
    assert!(text(&fake).contains("arm_cca_guest"));

    for (attribute, code) in [("inblob", EACCES), ("outblob", EACCES), ("generation", EACCES)] {
        let fake = Fake::snp();
        let mut tsm = fake.open().expect("a guest");
        fake.set(|state| state.failure = Some((attribute, code)));
        let refused = tsm.attest(&DATA);
        assert!(matches!(refused, Err(AttesterError::Privilege { .. })), "{refused:?}");
        fake.set(|state| state.failure = Some((attribute, EIO)));
        let refused = tsm.attest(&DATA).expect_err("it failed").to_string();
        assert!(refused.contains(attribute), "{refused}");
        assert_eq!(fake.entries(), 0, "entries are removed after a failure too");
    }
    let fake = Fake::snp();
    let mut tsm = fake.open().expect("a guest");
    fake.set(|state| state.generation_text = Some("many"));
    assert!(matches!(tsm.attest(&DATA), Err(AttesterError::Attribute { .. })));
}

#[test]
fn a_provider_that_changes_is_refused() {
    let fake = Fake::snp();
    let mut tsm = fake.open().expect("a guest");
    fake.set(|state| state.provider = Some("tdx_guest\n"));
    assert!(matches!(tsm.attest(&DATA), Err(AttesterError::Provider { .. })));
}

#[test]
fn entries_that_others_left_are_passed_by() {
    let fake = Fake::snp();
    let entry = |number: u32| {
        let name = format!("chrysalis-{}-{number}", std::process::id());
        Path::new("/sys/kernel/config/tsm/report").join(name)
    };
    let fill = |count| {
        let entries = (1..=count).map(|number| (entry(number), (0, None))).collect();
        fake.set(|state| state.entries = entries);
    };
    fill(63);
    assert!(fake.open().expect("the last name is free").attest(&DATA).is_ok());
    fill(64);
    assert!(matches!(fake.open(), Err(AttesterError::Entries { .. })));
}

#[test]
fn a_machine_is_never_taken_for_what_it_is_not() {
    let empty = tempfile::tempdir().unwrap();
    let interfaces = Interfaces::below(empty.path());
    let refused = |choice| interfaces.attester(choice).map(|_| ()).expect_err("nothing is there");
    assert!(matches!(refused(Choice::Auto), AttesterError::NoPlatform { .. }));
    assert!(matches!(refused(Choice::Snp), AttesterError::NoInterface { .. }));
    assert!(matches!(refused(Choice::Tdx), AttesterError::NoInterface { .. }));
    // A device says that this is a confidential VM: what is missing then is the interface.
    fs::create_dir(empty.path().join("dev")).unwrap();
    fs::write(empty.path().join("dev/tdx_guest"), "").unwrap();
    assert!(matches!(refused(Choice::Auto), AttesterError::NoInterface { .. }));

    let by = |choice| {
        let fake = Fake::snp();
        Interfaces::default().attester_by(choice, Box::new(fake)).map(|attester| attester.tee())
    };
    assert_eq!(by(Choice::Auto), Ok(Tee::SevSnp));
    assert_eq!(by(Choice::Snp), Ok(Tee::SevSnp));
    let (found, wanted) = (Tee::SevSnp, Tee::Tdx);
    assert_eq!(by(Choice::Tdx), Err(AttesterError::OtherPlatform { found, wanted }));
    let fake = Fake::tdx(Arc::default());
    let refused = Interfaces::default().attester_by(Choice::Snp, Box::new(fake));
    let refused = refused.map(|_| ()).expect_err("it is a TDX guest");
    let (found, wanted) = (Tee::Tdx, Tee::SevSnp);
    assert_eq!(refused, AttesterError::OtherPlatform { found, wanted });
}

#[test]
fn the_kernels_files_are_touched_as_the_interface_says() {
    let folder = tempfile::tempdir().unwrap();
    let entry = folder.path().join("entry");
    Kernel.make(&entry).unwrap();
    assert_eq!(Kernel.make(&entry).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let attribute = entry.join("inblob");
    // The kernel makes attributes; a program never does.
    assert_eq!(Kernel.write(&attribute, &DATA).unwrap_err().kind(), io::ErrorKind::NotFound);
    fs::write(&attribute, "").unwrap();
    Kernel.write(&attribute, &DATA).unwrap();
    assert_eq!(Kernel.read(&attribute).unwrap(), DATA);
    fs::write(&attribute, vec![0; (64 << 10) + 1]).unwrap();
    assert_eq!(Kernel.read(&attribute).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    fs::remove_file(&attribute).unwrap();
    Kernel.remove(&entry).unwrap();
    assert!(!entry.exists());
}

#[test]
fn a_padded_quote_has_nothing_but_zeros_behind_it() {
    let quote = Intel::honest().make(&[TdWorld::honest().td]).quotes.remove(0);
    let padded = [quote.as_slice(), &[0; 70]].concat();
    assert_eq!(Quote::parse_padded(&padded).map(|quote| quote.bytes), Ok(quote.as_slice()));
    let text = [quote.as_slice(), &[0, 1]].concat();
    assert!(Quote::parse_padded(&text).is_err() && Quote::parse(&padded).is_err());
}

const DATA: [u8; 64] = [0xDA; 64];
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const ENXIO: i32 = 6;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;
