//! `lb-common`'s tables over the maps.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and user space")]

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, LruHashMap};
use lb_common::abi::{
    AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, BackendWord, Counter,
    FLOW_SOURCE_FLAGS, FactsWord, Flow, FlowKey, FragmentKey, FragmentRecord, FrontendKey,
    FrontendWord, Ip, Live, RefusalWord, ServiceCidr, ServicePortId, SetWord, SourceRangeKey, V4,
    V6, filter_place, flow_port, flow_source,
};
use lb_common::tables::{
    FlowRef, FlowTable, FlowTables, FrontendTables, GuardTables, Insert, RefusalTables,
    ServiceTables,
};

use crate::maps::{self, RangeData};

const BPF_ANY: u64 = 0;
const BPF_NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// Element of `FLOW_PORTS` of flows from outside, whose replies may leave by any interface: no
/// interface has this index.
const OUTSIDE: u32 = 0;

/// The maps of this program, and the interface at hand (0 where there is none).
pub struct Maps {
    pub ifindex: u32,
    /// Of the program; only programs over packets need it.
    pub context: *mut c_void,
    /// Whether packets have an Ethernet header, in which a next hop's addresses can be written.
    pub framed: bool,
}

/// One load of an array element; user space changes elements by single stores of a word.
#[inline(always)]
fn load<T: Copy>(array: &Array<T>, index: u32) -> Option<T> {
    let pointer = array.get_ptr(index)?;
    // SAFETY: the verifier proved the index; the element is aligned; user space may store to it at
    // the same time, so the load is volatile and what must be consistent lies in one word.
    Some(unsafe { pointer.read_volatile() })
}

impl ServiceTables for Maps {
    #[inline(always)]
    fn set(&self, index: u32) -> SetWord {
        SetWord(load(&maps::SETS, index).unwrap_or(0))
    }

    #[inline(always)]
    fn facts(&self, id: ServicePortId) -> FactsWord {
        FactsWord(load(&maps::FACTS, id).unwrap_or(0))
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> BackendId {
        let Some(pair) = maps::SLOTS.get_ptr(index >> 1) else { return 0 };
        let slot = pair.cast::<u32>().wrapping_add((index & 1) as usize);
        // SAFETY: one of the two words of an element whose index the verifier proved.
        unsafe { slot.read_volatile() }
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        if id == 0 { None } else { load(&maps::BACKENDS, id) }
    }

    #[inline(always)]
    fn backend_word(&self, id: BackendId) -> BackendWord {
        let Some(backend) = maps::BACKENDS.get_ptr(id) else { return BackendWord::default() };
        // SAFETY: the verifier proved the index; one aligned word, loaded once.
        BackendWord(unsafe { (&raw const (*backend).word).read_volatile() })
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: a helper without arguments; the verifier turns it into one load.
        (unsafe { bpf_jiffies64() } >> 8) as u32
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        // SAFETY: a helper without arguments.
        (unsafe { bpf_ktime_get_ns() } / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        let record = maps::AFFINITY.get_ptr(key)?;
        // SAFETY: the verifier proved the pointer; another CPU may write it, which the caller's
        // checks of the backend take care of.
        Some(unsafe { record.read_volatile() })
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, record: &AffinityRecord) -> bool {
        maps::AFFINITY.insert(key, record, BPF_ANY).is_ok()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(value) = maps::COUNTERS.get_ptr_mut(counter as u32) {
            // SAFETY: this CPU's element; programs on one CPU do not interrupt each other here
            // in a way that loses more than one count.
            unsafe { *value = (*value).wrapping_add(1) };
        }
    }
}

impl RefusalTables for Maps {
    #[inline(always)]
    fn refusals(&self) -> Option<RefusalWord> {
        let word = maps::REJECTS.get_ptr(0)?;
        // SAFETY: this CPU's element. A program that interrupts another one here makes the limit
        // wrong by one answer.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn set_refusals(&self, word: RefusalWord) {
        if let Some(element) = maps::REJECTS.get_ptr_mut(0) {
            // SAFETY: as above.
            unsafe { element.write_volatile(word) };
        }
    }
}

/// A record in a flow table.
pub struct Record<const N: usize>(*mut Flow<N>);

impl<const N: usize> FlowRef<N> for Record<N> {
    #[inline(always)]
    fn read(&self) -> Flow<N> {
        let mut flow = MaybeUninit::<Flow<N>>::uninit();
        let (from, to) = (self.0.cast::<u64>(), flow.as_mut_ptr().cast::<u64>());
        for index in 0..size_of::<Flow<N>>() / 8 {
            // SAFETY: words of the element, whose pointer the verifier proved, and of the copy. The
            // element may be reused while it is copied, which the record's tag tells. Volatile: what
            // was checked is what is used; word by word: the compiler would copy it twice.
            unsafe { to.add(index).write(from.add(index).read_volatile()) };
        }
        // SAFETY: all words were written, and any bytes are a record.
        unsafe { flow.assume_init() }
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        // SAFETY: as above; one aligned word.
        unsafe { (&raw const (*self.0).tag).read_volatile() }
    }

    #[inline(always)]
    fn flags(&self) -> u32 {
        // SAFETY: as above; one aligned word.
        unsafe { (&raw const (*self.0).flags).read_volatile() }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above; one aligned word.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    #[inline(always)]
    fn translates_as(&self, other: &Flow<N>) -> bool {
        let own = self.0;
        // SAFETY: as above; what is compared may be another record's by now, which does no harm.
        let (src, dst, sport, dport) = unsafe {
            (
                (&raw const (*own).src).read_volatile(),
                (&raw const (*own).dst).read_volatile(),
                (&raw const (*own).sport).read_volatile(),
                (&raw const (*own).dport).read_volatile(),
            )
        };
        // Without branches, each of which the verifier would follow.
        let mut differs = u32::from((sport ^ other.sport) | (dport ^ other.dport));
        for (own, other) in src.iter().zip(&other.src) {
            differs |= own ^ other;
        }
        for (own, other) in dst.iter().zip(&other.dst) {
            differs |= own ^ other;
        }
        differs == 0
    }

    #[inline(always)]
    fn leads_to(&self, ip: &Ip<N>, port: u16) -> bool {
        let own = self.0;
        // SAFETY: as above.
        let (dst, dport) = unsafe {
            ((&raw const (*own).dst).read_volatile(), (&raw const (*own).dport).read_volatile())
        };
        let mut differs = u32::from(dport ^ port);
        for (own, other) in dst.iter().zip(ip) {
            differs |= own ^ other;
        }
        differs == 0
    }

    #[inline(always)]
    fn live(&self) -> Live {
        // SAFETY: as above; one aligned word.
        Live(unsafe { (&raw const (*self.0).live).read_volatile() })
    }

    #[inline(always)]
    fn set_live(&self, live: Live) {
        // SAFETY: as above; one aligned word, and a stray write to a reused element is harmless.
        unsafe { (&raw mut (*self.0).live).write_volatile(live.0) };
    }
}

macro_rules! tables {
    (
        $n:ident, $frontends:ident, $addresses:ident, $cidrs:ident, $ranges:ident, $flows:ident,
        $half_open:ident, $fragments:ident
    ) => {
        impl FrontendTables<$n> for Maps {
            #[inline(always)]
            fn frontend(&self, key: &FrontendKey<$n>) -> Option<FrontendWord> {
                Some(FrontendWord(word(maps::$frontends.get_ptr(key)?)))
            }

            #[inline(always)]
            fn filter(&self, ip: &Ip<$n>) -> u32 {
                let (word, shift) = filter_place(ip);
                (load(&maps::VIP_FILTER, word).unwrap_or(0) >> shift) as u32 & 3
            }

            #[inline(always)]
            fn address(&self, ip: &Ip<$n>) -> Option<AddressWord> {
                Some(AddressWord(word(maps::$addresses.get_ptr(ip)?)))
            }

            #[inline(always)]
            fn source_allowed(&self, id: ServicePortId, source: &Ip<$n>) -> bool {
                let key = SourceRangeKey::of(id, *source);
                let data = RangeData { service_port: key.service_port, addr: key.addr };
                maps::$ranges.get(&Key::new(key.prefix, data)).is_some()
            }
        }

        impl GuardTables<$n> for Maps {
            #[inline(always)]
            fn service_cidr(&self, index: u32) -> Option<ServiceCidr<$n>> {
                load(&maps::$cidrs, index)
            }
        }

        impl FlowTables<$n> for Maps {
            type Ref = Record<$n>;

            #[inline(always)]
            fn has_flows(&self) -> bool {
                load(&maps::FLOW_PORTS, flow_port(self.ifindex)).unwrap_or(0) != 0
                    || load(&maps::FLOW_PORTS, OUTSIDE).unwrap_or(0) != 0
            }

            #[inline(always)]
            fn has_flows_to(&self, backend: &Ip<$n>) -> bool {
                let (element, place) = flow_source(backend);
                let Some(flags) = maps::FLOW_SOURCES.get_ptr(element) else { return false };
                let flag = flags.cast::<u8>().wrapping_add(place & (FLOW_SOURCE_FLAGS - 1));
                // SAFETY: the verifier proved the element; the place lies in it.
                unsafe { flag.read_volatile() != 0 }
            }

            #[inline(always)]
            fn note_flows(&self, backend: &Ip<$n>, outside: bool) {
                let (element, place) = flow_source(backend);
                if let Some(flags) = maps::FLOW_SOURCES.get_ptr_mut(element) {
                    let flag = flags.cast::<u8>().wrapping_add(place & (FLOW_SOURCE_FLAGS - 1));
                    // SAFETY: as above; a byte that only ever becomes 1.
                    unsafe { flag.write_volatile(1) };
                }
                let port = if outside { OUTSIDE } else { flow_port(self.ifindex) };
                if let Some(noted) = maps::FLOW_PORTS.get_ptr_mut(port) {
                    // SAFETY: the verifier proved the pointer; one aligned word that only ever
                    // becomes 1.
                    unsafe { noted.write_volatile(1) };
                }
            }

            #[inline(always)]
            fn flow(&self, table: FlowTable, key: &FlowKey<$n>) -> Option<Record<$n>> {
                let map = match table {
                    FlowTable::Main => &maps::$flows,
                    FlowTable::HalfOpen => &maps::$half_open,
                };
                map.get_ptr_mut(key).map(Record)
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                table: FlowTable,
                key: &FlowKey<$n>,
                flow: &Flow<$n>,
                replace: bool,
            ) -> Insert {
                match table {
                    FlowTable::Main => insert(&maps::$flows, key, flow, replace),
                    FlowTable::HalfOpen => insert(&maps::$half_open, key, flow, replace),
                }
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$n>) -> Option<FragmentRecord> {
                let record = maps::$fragments.get_ptr(key)?;
                // SAFETY: the verifier proved the pointer; the record's tag tells if it was reused.
                Some(unsafe { record.read_volatile() })
            }

            #[inline(always)]
            fn set_fragment(&self, key: &FragmentKey<$n>, record: &FragmentRecord) -> bool {
                maps::$fragments.insert(key, record, BPF_ANY).is_ok()
            }

            #[inline(always)]
            fn remove_flow(&self, table: FlowTable, key: &FlowKey<$n>) {
                // A record that is gone already is what was wanted.
                let _gone = match table {
                    FlowTable::Main => maps::$flows.remove(key),
                    FlowTable::HalfOpen => maps::$half_open.remove(key),
                };
            }
        }
    };
}

tables!(V4, FRONTENDS4, ADDRESSES4, SERVICE_CIDRS4, SOURCE_RANGES4, FLOWS4, HALF_OPEN4, FRAGMENTS4);
tables!(V6, FRONTENDS6, ADDRESSES6, SERVICE_CIDRS6, SOURCE_RANGES6, FLOWS6, HALF_OPEN6, FRAGMENTS6);

/// One load of a hash element that is a word.
#[inline(always)]
fn word(pointer: *const u64) -> u64 {
    // SAFETY: a looked-up element; one aligned word, whose tag the caller checks.
    unsafe { pointer.read_volatile() }
}

#[inline(always)]
fn insert<const N: usize>(
    map: &LruHashMap<FlowKey<N>, Flow<N>>,
    key: &FlowKey<N>,
    flow: &Flow<N>,
    replace: bool,
) -> Insert {
    match map.insert(key, flow, if replace { BPF_ANY } else { BPF_NOEXIST }) {
        Ok(()) => Insert::Done,
        Err(EEXIST) => Insert::Exists,
        Err(_) => Insert::Full,
    }
}
