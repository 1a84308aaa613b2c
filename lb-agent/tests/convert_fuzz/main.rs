//! Can an API object do harm? Valid objects are damaged in every way and go through the agent beside
//! good ones: nothing may panic, memory stays bounded, and the good ones are served as before
//! (contract section 12: all inputs from API objects are untrusted).
//!
//! `MILLRACE_FUZZ_ROUNDS` is how many damaged objects are tried, `MILLRACE_FUZZ_SEED` which ones; the
//! seed of a run is printed.

mod mutate;
mod objects;

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lb_agent::convert::{self, Converter, Findings, Kind, Object, Origin, Skipped};
use lb_agent::datapath::Datapath as _;
use lb_agent::datapath::fake::Fake;
use lb_agent::model::{Change, Frontend, Protocol, Store};
use lb_agent::plan::{Capacity, FrontKey, self_test};
use lb_agent::source::{self, Manifests, SourceEvent};
use lb_agent::sync::{Event, Sync};
use serde_json::Value;

use self::mutate::Random;
use self::objects::{GOOD, NODE, damaged_seeds, good_objects, good_vip};

/// So many damaged objects go through the agent, and a part of them through files.
const ROUNDS: u64 = 2000;
/// What an object may cost beyond its own bytes while it is read.
const MOST_MIB: u64 = 16;
const CAPACITY: Capacity = Capacity {
    service_ports: 512,
    backends: 4096,
    slots: 8192,
    frontends: 2048,
    addresses: 2048,
    source_ranges: 2048,
};

/// The peak of memory is one for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn random(test: &str) -> Random {
    let seed = number("MILLRACE_FUZZ_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("{test}: MILLRACE_FUZZ_SEED={seed}");
    Random::new(seed)
}

fn rounds() -> u64 {
    number("MILLRACE_FUZZ_ROUNDS").unwrap_or(ROUNDS)
}

/// What the bytes of an object change, read as JSON and as YAML, which must agree.
fn read(converter: &mut Converter, bytes: &[u8]) -> Option<Change> {
    // Who it is, is asked of objects that cannot be read otherwise.
    let _who = convert::json_identity(bytes);
    let raw = convert::json(bytes).ok()?;
    let kind = Kind::of(&raw.api_version, &raw.kind).ok()??;
    let mut findings = Findings::default();
    let object = converter.object(kind, &raw, &mut findings);
    let name = (kind.name(), &*raw.metadata.namespace, &*raw.metadata.name);
    for report in findings.report(&Origin::Api, name, Skipped::Part) {
        let text = report.to_string();
        assert!(text.len() < 4096 && !text.contains(char::is_control), "{text:?}");
    }
    Some(match object? {
        Object::Service(service) => Change::SetService(service),
        Object::Slice(slice) => Change::SetSlice(slice),
        Object::Node(node) => Change::SetNode(node),
        Object::ServiceCidr(cidr) => Change::SetServiceCidr(cidr),
        Object::Ignored(Kind::Service, key) => Change::DropService(key),
        Object::Ignored(Kind::Slice, key) => Change::DropSlice(key),
        Object::Ignored(..) => return None,
    })
}

/// A running agent on maps in memory, with the good objects.
struct Agent {
    sync: Sync<Fake>,
    converter: Converter,
}

impl Agent {
    fn start() -> Self {
        let mut agent = Self {
            sync: Sync::new(Fake::new(CAPACITY), CAPACITY).unwrap(),
            converter: Converter::new(NODE),
        };
        let good = agent.good();
        agent.apply(good);
        assert!(agent.sync.step([Event::Source(SourceEvent::Synced)]));
        agent.assert_good_ones_are_served("at the start");
        agent
    }

    fn good(&mut self) -> Vec<Change> {
        let mut read = |object: &Value| read(&mut self.converter, object.to_string().as_bytes());
        good_objects().iter().map(|object| read(object).unwrap()).collect()
    }

    fn apply(&mut self, changes: Vec<Change>) {
        assert!(self.sync.step([Event::Source(SourceEvent::Batch(changes))]));
    }

    fn assert_good_ones_are_served(&self, when: &str) {
        for number in 0..GOOD {
            let vip = good_vip(number);
            let key = FrontKey::new(Frontend::cluster_ip(vip.into(), 80), Protocol::Tcp);
            let reached = self.sync.datapath().reach(&key).unwrap_or_default();
            let reached: BTreeSet<Ipv4Addr> = reached
                .iter()
                .map(|backend| Ipv4Addr::from_bits(u32::from_be(backend.addr[0])))
                .collect();
            let expected = objects::good_endpoints(number).into_iter().collect();
            assert_eq!(reached, expected, "{vip} {when}");
        }
    }

    /// The damaged objects are gone, and the good ones listed anew.
    fn relist(&mut self) {
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        for change in self.good() {
            match change {
                Change::SetService(service) => services.push(service),
                Change::SetSlice(slice) => slices.push(slice),
                _ => {}
            }
        }
        let keep = Vec::new;
        self.apply(vec![
            Change::ReplaceServices { services, keep: keep() },
            Change::ReplaceSlices { slices, keep: keep() },
        ]);
    }
}

#[test]
fn damaged_objects_disturb_no_good_one() {
    let _alone = alone();
    let mut random = random("damaged_objects_disturb_no_good_one");
    let seeds = damaged_seeds();
    let mut agent = Agent::start();
    let before = peak_kib();
    for round in 0..rounds() {
        let mut object = random.pick(&seeds).clone();
        for _ in 0..=random.below(6) {
            mutate::value(&mut object, &mut random);
        }
        let mut bytes = object.to_string().into_bytes();
        if random.below(3) == 0 {
            mutate::bytes(&mut bytes, &mut random);
        }
        if round % 16 == 0 {
            // The same through the reader of YAML, of which JSON is a part.
            let text = String::from_utf8_lossy(&bytes);
            let _any = (convert::yaml(&text, false).is_ok(), convert::yaml_identity(&text, false));
        }
        let change = read(&mut agent.converter, &bytes);
        agent.apply(change.into_iter().collect());
        agent.assert_good_ones_are_served(&format!("after round {round}"));
        if round % 256 == 255 {
            agent.relist();
        }
    }
    agent.relist();
    agent.assert_good_ones_are_served("at the end");
    let is_left = |port: u16| port != 80 && port != self_test::PORT;
    let fake = agent.sync.datapath();
    let left: Vec<_> = fake.frontends.keys().filter(|key| is_left(key.port())).collect();
    assert!(left.is_empty(), "frontends of objects that are gone: {left:?}");
    assert!(fake.snapshot().is_ok());
    let grown = peak_kib().saturating_sub(before) >> 10;
    assert!(grown <= 4 * MOST_MIB, "{grown} MiB more after {} damaged objects", rounds());
}

#[test]
fn a_damaged_object_in_a_file_keeps_no_other_from_being_read() {
    let _alone = alone();
    let mut random = random("a_damaged_object_in_a_file_keeps_no_other_from_being_read");
    let folder = tempfile::tempdir().unwrap();
    let (good, seeds) = (good_objects(), damaged_seeds());
    let expected = store_of(&mut Converter::new(NODE), &good);
    for round in 0..rounds().div_ceil(32) {
        let mut items = good.clone();
        let place = random.below(items.len() + 1);
        let mut object = random.pick(&seeds).clone();
        for _ in 0..=random.below(6) {
            mutate::value(&mut object, &mut random);
        }
        items.insert(place, object);
        let path = folder.path().join(format!("{round}.{}", random.pick(&["json", "yaml"])));
        let text = if path.extension().is_some_and(|ending| ending == "json") {
            serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
        } else {
            documents(&items)
        };
        fs::write(&path, text).unwrap();
        let read = read_file(&path);
        for service in expected.services() {
            assert_eq!(read.service(&service.key), Some(service), "{}", path.display());
            let slices = |store: &Store| store.slices_of(&service.key).count();
            assert!(slices(&read) >= slices(&expected), "{}", path.display());
        }
        fs::remove_file(&path).unwrap();
    }
}

/// A YAML document each, on a line of its own.
fn documents(objects: &[Value]) -> String {
    objects.iter().fold(String::new(), |text, object| format!("{text}---\n{object}\n"))
}

fn store_of(converter: &mut Converter, objects: &[Value]) -> Store {
    let mut store = Store::default();
    let read = |object: &Value| read(converter, object.to_string().as_bytes()).unwrap();
    store.apply_all(objects.iter().map(read).collect::<Vec<_>>());
    store
}

/// All that a source says of a file until it has told everything.
fn read_file(path: &Path) -> Store {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut events, reading) =
            source::start(Manifests::new(path), lb_agent::convert::Converter::new(NODE));
        let mut store = Store::default();
        while let Some(event) = events.recv().await {
            match event {
                SourceEvent::Batch(changes) => drop(store.apply_all(changes)),
                SourceEvent::Synced | SourceEvent::SyncedInPart => break,
                // Nobody can tell what is in the file: nothing begins until it is mended (L-3).
                SourceEvent::Reports(reports)
                    if reports.iter().any(|report| report.skipped == Skipped::File) =>
                {
                    break;
                }
                SourceEvent::Reports(_) | SourceEvent::Alive => {}
            }
        }
        reading.abort();
        store
    })
}

#[test]
fn a_huge_object_costs_little_beyond_its_own_bytes() {
    let _alone = alone();
    let mut agent = Agent::start();
    for (what, bytes) in objects::huge(1) {
        let before = reset_peak_kib();
        let change = read(&mut agent.converter, &bytes);
        agent.apply(change.into_iter().collect());
        let grown = peak_kib().saturating_sub(before) >> 10;
        let size = bytes.len() >> 20;
        eprintln!("{what}: {size} MiB, {grown} MiB beyond it");
        assert!(grown <= MOST_MIB, "{what} of {size} MiB costs {grown} MiB beyond it");
        agent.assert_good_ones_are_served(what);
        agent.relist();
    }
}

/// A file is read in pieces, so that neither format needs much more than the file.
#[test]
fn a_huge_object_in_a_file_costs_little_beyond_the_file() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    // A debug build takes its time with YAML.
    for (ending, part) in [("json", 16), ("yaml", 64)] {
        for (what, bytes) in objects::huge(part) {
            let good = good_objects();
            let path = folder.path().join(format!("huge.{ending}"));
            let size = bytes.len() as u64 >> 20;
            let text = if ending == "json" {
                let head = br#"{"apiVersion":"v1","kind":"List","items":["#.to_vec();
                let good: Vec<_> = good.iter().map(ToString::to_string).collect();
                [head, good.join(",").into(), b",".to_vec(), bytes, b"]}".to_vec()].concat()
            } else {
                [documents(&good).into(), b"---\n".to_vec(), bytes, b"\n".to_vec()].concat()
            };
            fs::write(&path, text).unwrap();
            let before = reset_peak_kib();
            let store = read_file(&path);
            let grown = peak_kib().saturating_sub(before) >> 10;
            eprintln!("{what} in {ending}: {size} MiB, {grown} MiB to read it");
            assert!(
                grown <= 2 * size + 2 * MOST_MIB,
                "{what} in {ending}: {size} MiB cost {grown} MiB"
            );
            if !what.contains("nested") {
                let good =
                    (0..GOOD).filter(|number| store.service(&objects::good_key(*number)).is_some());
                assert_eq!(good.count(), GOOD, "{what} in {ending}");
            }
            fs::remove_file(&path).unwrap();
        }
    }
}

/// The most memory that the process has had, in KiB.
fn peak_kib() -> u64 {
    status_kib("VmHWM:")
}

/// Forgets the peak; what the process has now.
fn reset_peak_kib() -> u64 {
    fs::write("/proc/self/clear_refs", "5").unwrap();
    status_kib("VmRSS:")
}

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap()
}
