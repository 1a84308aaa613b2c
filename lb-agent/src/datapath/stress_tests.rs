//! The commit protocol on real memory: threads read sets while another one changes them as fast as
//! it can. A test with the kernel's programs as readers is in `lb-testbed`.

#![expect(clippy::cast_possible_truncation, reason = "random numbers, and halves of words")]

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use lb_common::abi::{
    BackendFlags, BackendWord, FactsFlags, FactsWord, FrontendWord, Scope, SetWord,
};

use super::maps::{Maps, anonymous};
use crate::diff::{self, Op};
use crate::model::{DesiredBackend, DesiredPort, Family, Frontend, PortKey, Protocol};
use crate::plan::{Capacity, Planner};

const SERVICES: u8 = 6;
const READERS: usize = 2;
const BATCHES: u32 = 10_000;
/// So tight that ids and slots are reused all the time.
const CAPACITY: Capacity = Capacity {
    service_ports: 12,
    backends: 96,
    slots: 160,
    frontends: 16,
    addresses: 16,
    source_ranges: 16,
};

/// What the readers see: the maps, a word for each VIP in place of the hash, and who reads.
struct Shared {
    maps: Maps,
    fronts: [AtomicU64; SERVICES as usize],
    /// Odd while a reader is on its way.
    readers: [AtomicU64; READERS],
    stop: AtomicBool,
}

impl Shared {
    fn apply(&self, ops: &[Op]) {
        for op in ops {
            match op {
                Op::FrontendPut(key, word) => {
                    self.front(key.addr()).store(word.0, Ordering::Release);
                }
                Op::FrontendDelete(key) => self.front(key.addr()).store(0, Ordering::Release),
                // No reader here asks for addresses, which are in a hash as well.
                Op::AddressPut(..) | Op::AddressDelete(_) => {}
                op => assert!(self.maps.apply(std::slice::from_ref(op)).is_empty()),
            }
        }
    }

    fn front(&self, vip: IpAddr) -> &AtomicU64 {
        let IpAddr::V4(vip) = vip else { panic!("all VIPs are IPv4") };
        &self.fronts[usize::from(vip.octets()[3])]
    }

    /// Waits until every reader has ended what it is at.
    fn grace(&self) {
        for reader in &self.readers {
            let seen = reader.load(Ordering::SeqCst);
            while seen % 2 == 1 && reader.load(Ordering::SeqCst) == seen {
                thread::yield_now();
            }
        }
    }

    /// One connection to a VIP; true if it got a backend.
    fn connect(&self, service: u8, pick: u64) -> bool {
        let id = FrontendWord(self.fronts[usize::from(service)].load(Ordering::Acquire)).id();
        if id == 0 {
            return false;
        }
        let facts = FactsWord(self.maps.facts[id as usize].load(Ordering::Acquire));
        let local = facts.flags() & FactsFlags::INTERNAL_LOCAL != 0;
        let scope = if local { Scope::Local } else { Scope::Cluster };
        let set = SetWord(self.maps.sets[scope.index(id) as usize].load(Ordering::Acquire));
        if set.count() == 0 {
            return false;
        }
        if pick.is_multiple_of(61) {
            // The worst moment to be interrupted: the set is known, its slots are not yet read.
            thread::yield_now();
        }
        let slot = set.first() + (pick % u64::from(set.count())) as u32;
        let backend = self.maps.slots[slot as usize].load(Ordering::Relaxed);
        let backend = self.maps.backend(backend).unwrap();
        let [_, owner, ..] = backend.addr[0].to_ne_bytes();
        assert_eq!(owner, service, "a backend of another Service, through {id} and slot {slot}");
        assert_eq!(backend.service_port, id);
        assert!(BackendWord(backend.word).has(BackendFlags::PRESENT));
        true
    }
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn desired(service: u8, state: &mut u64) -> (PortKey, Option<DesiredPort>) {
    let key = PortKey {
        namespace: "default".into(),
        service: format!("s{service}").into(),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    };
    let bits = random(state);
    // The first one is never gone and never empty.
    if service > 0 && bits.is_multiple_of(5) {
        return (key, None);
    }
    let member = BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL | BackendFlags::SERVING;
    let backends = (0..8_u8)
        .filter(|n| (bits >> 8) & (1 << n) != 0 || (service == 0 && *n == 0))
        .map(|n| DesiredBackend { addr: [10, service, 0, n].into(), port: 80, flags: member })
        .collect();
    let desired = DesiredPort {
        created_s: 1,
        frontends: vec![Frontend::cluster_ip([10, 96, 0, service].into(), 80)],
        backends,
        internal_local: bits & 2 != 0,
        external_local: false,
        drop_when_no_local: false,
        affinity_timeout_s: None,
        source_ranges: [].into(),
    };
    (key, Some(desired))
}

/// A reader on its way; a failed assertion ends it too, so that the writer does not wait for ever.
struct Reading<'a>(&'a AtomicU64);

impl<'a> Reading<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(counter)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn read(shared: &Shared, reader: usize) -> u64 {
    let mut state = 77 + reader as u64;
    let mut served = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let service = (random(&mut state) % u64::from(SERVICES)) as u8;
        let got = {
            let _reading = Reading::new(&shared.readers[reader]);
            shared.connect(service, random(&mut state))
        };
        assert!(got || service != 0, "the first Service always has a backend");
        served += u64::from(got);
        if served.is_multiple_of(32) {
            // Better here than on the way, where the writer would wait for it.
            thread::yield_now();
        }
    }
    served
}

#[test]
fn no_reader_gets_a_backend_that_was_never_its_own() {
    let shared = Shared {
        maps: anonymous(CAPACITY).unwrap(),
        fronts: Default::default(),
        readers: Default::default(),
        stop: AtomicBool::new(false),
    };
    let mut planner = Planner::new(CAPACITY);
    let mut state = 1;
    let first = planner.plan([desired(0, &mut state)]);
    shared.apply(&diff::operations(first));
    let served: Vec<u64> = thread::scope(|scope| {
        let shared = &shared;
        let readers: Vec<_> =
            (0..READERS).map(|reader| scope.spawn(move || read(shared, reader))).collect();
        for _ in 0..BATCHES {
            let count = 1 + random(&mut state) % 3;
            let updates: Vec<_> = (0..count)
                .map(|_| {
                    let service = random(&mut state) % u64::from(SERVICES);
                    desired(service as u8, &mut state)
                })
                .collect();
            let batch = planner.plan(updates);
            shared.apply(&diff::operations(batch));
            if let Some(epoch) = planner.waiting()
                && random(&mut state).is_multiple_of(3)
            {
                shared.grace();
                shared.apply(&diff::clear(&planner.release(epoch)));
            }
        }
        shared.stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(served.iter().all(|&served| served > 1000), "every reader was served: {served:?}");
}
