//! The maps that the agent writes: arrays through shared memory, frontends, addresses and source ranges
//! through batches.
//!
//! A changed set costs memory stores and no system call; only frontends, addresses and source ranges
//! that come, go or mean something else do.

pub(super) mod cidrs;
mod hashes;

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lb_common::abi::{
    ABI_VERSION, Backend, BackendWord, FILTER_NODE, META_WORDS, MetaWord, NAME_LEN, Name, SCOPES,
    SetWord, V4, filter_place, map, node_port_place,
};
use lb_common::select::narrow;

pub(super) use self::hashes::key_bytes;
use self::hashes::run;
use super::Error;
use super::mmap::MmapArray;
use super::sys;
use crate::diff::Op;
use crate::plan::{Capacity, words};

/// 64-bit words of an element of `BACKENDS`: two of address, the backend's word, and the rest.
const BACKEND_WORDS: usize = size_of::<Backend>() / 8;
/// 64-bit words of an element of `NAMES`.
const NAME_WORDS: usize = NAME_LEN / 8;
/// The maps, open. Stores are seen by the kernel's programs at once.
#[derive(Debug)]
pub struct Maps {
    pub(super) frontends4: OwnedFd,
    pub(super) frontends6: OwnedFd,
    pub(super) addresses4: OwnedFd,
    pub(super) addresses6: OwnedFd,
    /// `SERVICE_CIDRS4` and `SERVICE_CIDRS6`.
    service_cidrs: [MmapArray<AtomicU64>; 2],
    /// `SETS`.
    pub sets: MmapArray<AtomicU64>,
    /// `FACTS`.
    pub facts: MmapArray<AtomicU64>,
    /// `SLOTS`, slot by slot.
    pub slots: MmapArray<AtomicU32>,
    backends: MmapArray<AtomicU64>,
    names: MmapArray<AtomicU64>,
    meta: MmapArray<AtomicU64>,
    /// `VIP_FILTER`; bits are only ever set.
    vip_filter: MmapArray<AtomicU64>,
    /// `NODE_PORTS`, likewise.
    node_ports: MmapArray<AtomicU64>,
    pub(super) source_ranges4: OwnedFd,
    pub(super) source_ranges6: OwnedFd,
}

impl Maps {
    /// Opens what is pinned in a folder, whoever made it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let words = |name| array(folder, name);
        Ok(Self {
            frontends4: open(folder, map::FRONTENDS4)?,
            frontends6: open(folder, map::FRONTENDS6)?,
            addresses4: open(folder, map::ADDRESSES4)?,
            addresses6: open(folder, map::ADDRESSES6)?,
            service_cidrs: [words(map::SERVICE_CIDRS4)?, words(map::SERVICE_CIDRS6)?],
            sets: words(map::SETS)?,
            facts: words(map::FACTS)?,
            slots: array(folder, map::SLOTS)?,
            backends: words(map::BACKENDS)?,
            names: words(map::NAMES)?,
            meta: words(map::META)?,
            vip_filter: words(map::VIP_FILTER)?,
            node_ports: words(map::NODE_PORTS)?,
            source_ranges4: open(folder, map::SOURCE_RANGES4)?,
            source_ranges6: open(folder, map::SOURCE_RANGES6)?,
        })
    }

    /// The sizes that the maps have.
    pub fn capacity(&self) -> Result<Capacity, Error> {
        let small = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let entries = |fd: &OwnedFd, what| {
            sys::map_info(fd.as_fd()).map(|info| info.max_entries).map_err(Error::system(what))
        };
        let frontends = entries(&self.frontends4, "read the size of FRONTENDS4")?
            .min(entries(&self.frontends6, "read the size of FRONTENDS6")?);
        let addresses = entries(&self.addresses4, "read the size of ADDRESSES4")?
            .min(entries(&self.addresses6, "read the size of ADDRESSES6")?);
        let source_ranges = entries(&self.source_ranges4, "read the size of SOURCE_RANGES4")?
            .min(entries(&self.source_ranges6, "read the size of SOURCE_RANGES6")?);
        // They differ where a run with other sizes ended while it made them.
        let (sets, names) = (self.sets.len() / SCOPES as usize, self.names.len() / NAME_WORDS);
        let ports = self.facts.len().min(sets).min(names);
        Ok(Capacity {
            service_ports: small(ports),
            backends: small(self.backends.len() / BACKEND_WORDS),
            slots: small(self.slots.len()),
            frontends,
            addresses,
            source_ranges,
        })
    }

    /// A backend, as it is at this moment; the word is loaded first.
    pub fn backend(&self, id: u32) -> Option<Backend> {
        let words = element(&self.backends, id, BACKEND_WORDS)?;
        let load = |i: usize| words.get(i).map_or(0, |word| word.load(Ordering::Acquire));
        let word = load(2);
        let (a, b, rest) = (halves(load(0)), halves(load(1)), halves(load(3)));
        let [zone_low, zone_high, pad_low, pad_high] = rest[1].to_ne_bytes();
        Some(Backend {
            addr: [a[0], a[1], b[0], b[1]],
            word,
            service_port: rest[0],
            zone: u16::from_ne_bytes([zone_low, zone_high]),
            pad: u16::from_ne_bytes([pad_low, pad_high]),
        })
    }

    /// The number of backend ids.
    pub fn backend_ids(&self) -> u32 {
        u32::try_from(self.backends.len() / BACKEND_WORDS).unwrap_or(u32::MAX)
    }

    /// The name of a service port.
    pub fn name(&self, id: u32) -> Option<Name> {
        let mut name = [0; NAME_LEN];
        let words = element(&self.names, id, NAME_WORDS)?;
        for (chunk, word) in name.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(name)
    }

    /// All words of `META`.
    pub fn meta(&self) -> [u64; META_WORDS as usize] {
        let mut words = [0; META_WORDS as usize];
        for (value, word) in words.iter_mut().zip(self.meta.iter()) {
            *value = word.load(Ordering::Relaxed);
        }
        words
    }

    /// Stores a word of `META`.
    pub fn set_meta(&self, word: MetaWord, value: u64) {
        if let Some(word) = self.meta.get(word as usize) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Applies operations in order; tells which failed.
    pub fn apply(&self, ops: &[Op]) -> Vec<(usize, Error)> {
        let mut failed = Vec::new();
        let mut at = 0;
        while let Some(op) = ops.get(at) {
            if let Some(run) = run(op) {
                let same = |other: &&Op| self::run(other) == Some(run);
                let end = at + ops.iter().skip(at).take_while(same).count();
                let part = ops.get(at..end).unwrap_or_default();
                failed.extend(self.write(run, part).into_iter().map(|(i, e)| (at + i, e)));
                at = end;
            } else {
                if let Err(error) = self.store(op) {
                    failed.push((at, error));
                }
                at += 1;
            }
        }
        failed
    }

    fn store(&self, op: &Op) -> Result<(), Error> {
        let put = |array: &[AtomicU64], map, index: u32, value, order| {
            let word = array.get(index as usize).ok_or(Error::Bounds { map, index })?;
            word.store(value, order);
            Ok(())
        };
        match op {
            Op::Name(id, name) => self.store_name(*id, name),
            Op::Backend(id, backend) => self.store_backend(*id, backend),
            Op::BackendWord(id, word) => self.store_backend_word(*id, *word),
            Op::Slots(first, ids) => {
                let bounds = || Error::Bounds { map: map::SLOTS, index: *first };
                let slots = self.slots.get(*first as usize..).ok_or_else(bounds)?;
                let slots = slots.get(..ids.len()).ok_or_else(bounds)?;
                for (slot, &id) in slots.iter().zip(ids) {
                    slot.store(id, Ordering::Relaxed);
                }
                Ok(())
            }
            // Everything stored before is visible to whoever sees this word.
            Op::Set(index, SetWord(word)) => {
                put(&self.sets, map::SETS, *index, *word, Ordering::Release)
            }
            Op::Facts(id, facts) => put(&self.facts, map::FACTS, *id, facts.0, Ordering::Release),
            Op::Meta(word, value) => {
                put(&self.meta, map::META, *word as u32, *value, Ordering::Relaxed)
            }
            Op::ServiceCidrs(family, list) => {
                self.store_cidrs(*family, list);
                Ok(())
            }
            // Written through system calls.
            Op::FrontendDelete(_)
            | Op::FrontendPut(..)
            | Op::AddressDelete(_)
            | Op::AddressPut(..)
            | Op::SourceRangePut(_)
            | Op::SourceRangeDelete(_) => Ok(()),
        }
    }

    /// Sets a bit of an address in the filter, before anything is inserted for it: nothing is looked up
    /// for an address of which no bit is set.
    fn note_address(&self, addr: IpAddr, class: u32) {
        let ip = words(addr);
        let (word, shift) =
            if addr.is_ipv4() { filter_place(&narrow::<V4>(&ip)) } else { filter_place(&ip) };
        if let Some(word) = self.vip_filter.get(word as usize) {
            word.fetch_or(u64::from(class) << shift, Ordering::Release);
        }
    }

    /// Notes addresses under which this node sends on what comes from others, before it does: what is
    /// answered there is looked up.
    pub(super) fn note_own_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        addresses.into_iter().for_each(|addr| self.note_address(addr, FILTER_NODE));
    }

    /// Notes that a port is a node port, before its frontend is inserted: to an address of the node
    /// only packets to such a port are looked up. Both families share the bits, and none is cleared
    /// while the map lives, because flows of a Service that is gone go on.
    fn note_node_port(&self, proto: u8, port: u16) {
        if let Some((word, mask)) = node_port_place(proto, port)
            && let Some(word) = self.node_ports.get(word as usize)
        {
            word.fetch_or(mask, Ordering::Release);
        }
    }

    /// An element of `NODE_PORTS`; 0 beyond its end.
    pub fn node_port_word(&self, index: u32) -> u64 {
        self.node_ports.get(index as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Whether a port is noted as a node port.
    pub fn is_node_port(&self, proto: u8, port: u16) -> bool {
        node_port_place(proto, port)
            .is_some_and(|(word, mask)| self.node_port_word(word) & mask != 0)
    }

    fn store_name(&self, id: u32, name: &Name) -> Result<(), Error> {
        let words = element(&self.names, id, NAME_WORDS);
        let words = words.ok_or(Error::Bounds { map: map::NAMES, index: id })?;
        for (word, chunk) in words.iter().zip(name.chunks_exact(8)) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn store_backend(&self, id: u32, backend: &Backend) -> Result<(), Error> {
        let [a, b, word, rest] = self.backend_words(id)?;
        let [z0, z1] = backend.zone.to_ne_bytes();
        let [p0, p1] = backend.pad.to_ne_bytes();
        a.store(joined(backend.addr[0], backend.addr[1]), Ordering::Relaxed);
        b.store(joined(backend.addr[2], backend.addr[3]), Ordering::Relaxed);
        let zone = u32::from_ne_bytes([z0, z1, p0, p1]);
        rest.store(joined(backend.service_port, zone), Ordering::Relaxed);
        // Last, so that whoever sees the new generation sees the new address.
        word.store(backend.word, Ordering::Release);
        Ok(())
    }

    fn store_backend_word(&self, id: u32, word: BackendWord) -> Result<(), Error> {
        let [_, _, at, _] = self.backend_words(id)?;
        at.store(word.0, Ordering::Release);
        Ok(())
    }

    fn backend_words(&self, id: u32) -> Result<&[AtomicU64; BACKEND_WORDS], Error> {
        element(&self.backends, id, BACKEND_WORDS)
            .and_then(|words| words.try_into().ok())
            .ok_or(Error::Bounds { map: map::BACKENDS, index: id })
    }
}

fn element(words: &[AtomicU64], index: u32, length: usize) -> Option<&[AtomicU64]> {
    let at = (index as usize).checked_mul(length)?;
    words.get(at..at.checked_add(length)?)
}

fn joined(low: u32, high: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low.to_ne_bytes());
    bytes[4..].copy_from_slice(&high.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn halves(word: u64) -> [u32; 2] {
    let bytes = word.to_ne_bytes();
    let half = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    [u32::from_ne_bytes(half(0)), u32::from_ne_bytes(half(4))]
}

fn open(folder: &Path, name: &str) -> Result<OwnedFd, Error> {
    let path = folder.join(name);
    sys::object_get(&path).map_err(Error::system(format!("open the pinned map {}", path.display())))
}

pub(super) fn array<W: super::mmap::Word>(
    folder: &Path,
    name: &str,
) -> Result<MmapArray<W>, Error> {
    let fd = open(folder, name)?;
    let what = || format!("map the memory of {name} (v{ABI_VERSION})");
    let info = sys::map_info(fd.as_fd()).map_err(Error::system(what()))?;
    let bytes = info.value_size.next_multiple_of(8) as usize * info.max_entries as usize;
    MmapArray::of_map(fd.as_fd(), bytes).map_err(Error::system(what()))
}

/// The same maps in memory of this process, for tests of what readers see.
#[cfg(test)]
pub(super) fn anonymous(capacity: Capacity) -> std::io::Result<Maps> {
    use lb_common::abi::{FILTER_WORDS, NODE_PORT_WORDS, SERVICE_CIDRS};

    use self::cidrs::CIDR_WORDS;

    let ports = capacity.service_ports as usize;
    let none = || std::fs::File::open("/dev/null").map(OwnedFd::from);
    Ok(Maps {
        frontends4: none()?,
        frontends6: none()?,
        addresses4: none()?,
        addresses6: none()?,
        service_cidrs: [
            MmapArray::anonymous(SERVICE_CIDRS as usize * CIDR_WORDS[0])?,
            MmapArray::anonymous(SERVICE_CIDRS as usize * CIDR_WORDS[1])?,
        ],
        sets: MmapArray::anonymous(ports * 2)?,
        facts: MmapArray::anonymous(ports)?,
        slots: MmapArray::anonymous(capacity.slots as usize)?,
        backends: MmapArray::anonymous(capacity.backends as usize * BACKEND_WORDS)?,
        names: MmapArray::anonymous(ports * NAME_WORDS)?,
        meta: MmapArray::anonymous(META_WORDS as usize)?,
        vip_filter: MmapArray::anonymous(FILTER_WORDS as usize)?,
        node_ports: MmapArray::anonymous(NODE_PORT_WORDS as usize)?,
        source_ranges4: none()?,
        source_ranges6: none()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Frontend, FrontendKind, Protocol};
    use crate::plan::{FrontKey, address_word};

    const CAPACITY: Capacity = Capacity {
        service_ports: 4,
        backends: 4,
        slots: 4,
        frontends: 4,
        addresses: 4,
        source_ranges: 4,
    };

    #[test]
    fn a_vip_passes_the_filter_before_its_frontend_is_inserted() {
        let maps = anonymous(CAPACITY).unwrap();
        for addr in ["10.96.0.1", "fd00::1"] {
            let frontend = Frontend::cluster_ip(addr.parse().unwrap(), 80);
            let key = FrontKey::new(frontend, Protocol::Tcp);
            // There is no hash behind these maps, so that nothing more can have been done.
            assert_eq!(
                maps.apply(&[Op::FrontendPut(key, key.word(1, FrontendKind::ClusterIp))]).len(),
                1
            );
            let (word, shift) = match &key {
                FrontKey::V4(key) => filter_place(&key.addr),
                FrontKey::V6(key) => filter_place(&key.addr),
            };
            assert_ne!(maps.vip_filter[word as usize].load(Ordering::Relaxed) >> shift & 3, 0);
        }
    }

    #[test]
    fn an_address_has_its_bit_before_it_is_inserted_and_a_node_port_has_none() {
        let maps = anonymous(CAPACITY).unwrap();
        let bits = || maps.vip_filter.iter().map(|w| w.load(Ordering::Relaxed).count_ones()).sum();
        let node_port = FrontKey::new(Frontend::node_port(Family::V6, 30_080), Protocol::Tcp);
        maps.apply(&[Op::FrontendPut(node_port, node_port.word(1, FrontendKind::NodePort))]);
        assert_eq!(0_u32, bits(), "asked for at addresses of the node only");
        let addr = "fd02::1".parse().unwrap();
        let failed = maps.apply(&[Op::AddressPut(addr, address_word(&addr, 2))]);
        assert_eq!((failed.len(), bits()), (1, 1));
        let (word, shift) = filter_place(&words(addr));
        assert_ne!(maps.vip_filter[word as usize].load(Ordering::Relaxed) >> shift & 3, 0);
    }

    #[test]
    fn answers_to_an_address_for_snat_are_looked_up_whatever_room_there_is_for_addresses() {
        let maps = anonymous(CAPACITY).unwrap();
        let own = ["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        maps.note_own_addresses(own);
        for addr in own {
            let ip = words(addr);
            let (word, shift) =
                if addr.is_ipv4() { filter_place(&narrow::<V4>(&ip)) } else { filter_place(&ip) };
            let bits = maps.vip_filter[word as usize].load(Ordering::Relaxed) >> shift & 3;
            assert_eq!(bits, u64::from(FILTER_NODE), "{addr}");
        }
    }

    #[test]
    fn every_operation_on_a_map_that_cannot_be_used_is_told_as_failed() {
        let maps = anonymous(CAPACITY).unwrap();
        let key = |port| {
            FrontKey::new(Frontend::cluster_ip("10.96.0.1".parse().unwrap(), port), Protocol::Tcp)
        };
        let ops = [
            Op::FrontendDelete(key(1)),
            Op::FrontendDelete(key(2)),
            Op::Set(7, SetWord::DROP),
            Op::FrontendPut(key(3), key(3).word(1, FrontendKind::ClusterIp)),
            Op::FrontendPut(key(4), key(4).word(1, FrontendKind::ClusterIp)),
        ];
        let failed: Vec<_> = maps.apply(&ops).into_iter().map(|(index, _)| index).collect();
        assert_eq!(failed, [0, 1, 3, 4]);
    }

    #[test]
    fn a_backend_is_read_as_it_was_written() {
        let maps = anonymous(CAPACITY).unwrap();
        let backend = Backend {
            addr: [1, 2, 3, 4],
            word: BackendWord::new(0x1f90, 5, 6).0,
            service_port: 7,
            zone: 8,
            pad: 0,
        };
        assert!(maps.apply(&[Op::Backend(3, backend)]).is_empty());
        assert_eq!(maps.backend(3), Some(backend));
        assert_eq!(maps.backend(2), Some(Backend::default()));
    }

    #[test]
    fn a_store_outside_of_a_map_is_refused() {
        let maps = anonymous(CAPACITY).unwrap();
        let bad = [
            Op::Set(8, SetWord::REJECT),
            Op::Slots(3, vec![1, 2]),
            Op::Backend(4, Backend::default()),
            Op::Name(4, Box::new([0; NAME_LEN])),
            Op::Set(7, SetWord::DROP),
        ];
        let failed: Vec<_> = maps.apply(&bad).into_iter().map(|(index, _)| index).collect();
        assert_eq!(failed, [0, 1, 2, 3], "and the last one is stored");
    }
}
