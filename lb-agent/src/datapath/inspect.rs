//! What is in the pinned maps right now? Reads them one element at a time and never writes, so that
//! tools can look at a node in service, whether its agent runs or not.

mod fill;

pub use self::fill::Fill;

use std::cell::RefCell;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::abi::{
    AddressFlags, AddressWord, AffinityKey, AffinityRecord, Backend, BackendId, COUNTERS, Counter,
    FILTER_WORDS, FactsWord, Flow, FlowKey, FrontendKey, FrontendWord, Ip, ServicePortId, SetWord,
    SourceRangeKey, V4, filter_place, map,
};
use lb_common::select::narrow;
use lb_common::tables::FlowTable;

use super::batch::Hash;
use super::mmap::MmapArray;
use super::outside::OutsideMaps;
use super::sys;
use super::{Error, Maps};
use crate::plan::words;

/// The pinned maps of a node, open for reading.
#[derive(Debug)]
pub struct Inspector {
    folder: PathBuf,
    maps: Maps,
    filter: MmapArray<AtomicU64>,
    /// IPv4, then IPv6.
    frontends: [OwnedFd; 2],
    addresses: [OwnedFd; 2],
    source_ranges: [OwnedFd; 2],
    outside: OutsideMaps,
    affinity: OwnedFd,
    flows: [OwnedFd; 2],
    half_open: [OwnedFd; 2],
    /// The first lookup that failed.
    failure: RefCell<Option<Error>>,
}

impl Inspector {
    /// Opens what is pinned in a folder, whoever made it; nothing if there is nothing.
    pub fn open(folder: &Path) -> Result<Option<Self>, Error> {
        if !folder.join(map::META).exists() {
            return Ok(None);
        }
        let open = |name| open(folder, name);
        let filter = open(map::VIP_FILTER)?;
        let filter = MmapArray::of_map(filter.as_fd(), FILTER_WORDS as usize * 8)
            .map_err(Error::system("map the memory of VIP_FILTER"))?;
        Ok(Some(Self {
            folder: folder.to_owned(),
            maps: Maps::open(folder)?,
            filter,
            frontends: [open(map::FRONTENDS4)?, open(map::FRONTENDS6)?],
            addresses: [open(map::ADDRESSES4)?, open(map::ADDRESSES6)?],
            source_ranges: [open(map::SOURCE_RANGES4)?, open(map::SOURCE_RANGES6)?],
            outside: OutsideMaps::open(folder)?,
            affinity: open(map::AFFINITY)?,
            flows: [open(map::FLOWS4)?, open(map::FLOWS6)?],
            half_open: [open(map::HALF_OPEN4)?, open(map::HALF_OPEN6)?],
            failure: RefCell::new(None),
        }))
    }

    /// The maps that can be read as memory.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What programs are told of interfaces and of pods' addresses.
    pub fn outside(&self) -> &OutsideMaps {
        &self.outside
    }

    /// The first lookup that failed since the last call: it was answered as if nothing were there.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure.take()
    }

    /// What an address may be, by its bits in the filter.
    #[expect(clippy::cast_possible_truncation, reason = "two bits")]
    pub fn filter<const N: usize>(&self, ip: &Ip<N>) -> u32 {
        let (word, shift) = filter_place(ip);
        let word = self.filter.get(word as usize);
        word.map_or(0, |word| (word.load(Ordering::Relaxed) >> shift) as u32 & 3)
    }

    /// The word of a frontend.
    pub fn frontend<const N: usize>(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        let mut bytes = ip_bytes(&key.addr);
        bytes.extend(key.port.to_ne_bytes());
        bytes.extend([key.proto, key.pad]);
        let (fd, name) = of_family::<N>(&self.frontends, [map::FRONTENDS4, map::FRONTENDS6]);
        let value = self.read(fd, name, &bytes)?;
        Some(FrontendWord(u64::from_ne_bytes(value.try_into().ok()?)))
    }

    /// The word of an address.
    pub fn address<const N: usize>(&self, ip: &Ip<N>) -> Option<AddressWord> {
        let (fd, name) = of_family::<N>(&self.addresses, [map::ADDRESSES4, map::ADDRESSES6]);
        let value = self.read(fd, name, &ip_bytes(ip))?;
        Some(AddressWord(u64::from_ne_bytes(value.try_into().ok()?)))
    }

    /// Whether a source is in a range of a service port.
    pub fn is_in_source_range<const N: usize>(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        let key = SourceRangeKey::of(id, *source);
        let mut bytes = key.prefix.to_ne_bytes().to_vec();
        bytes.extend(key.service_port.to_ne_bytes());
        bytes.extend(ip_bytes(&key.addr));
        let names = [map::SOURCE_RANGES4, map::SOURCE_RANGES6];
        let (fd, name) = of_family::<N>(&self.source_ranges, names);
        self.read(fd, name, &bytes).is_some()
    }

    /// Whether an address is this node's, be it for its own sockets only.
    pub fn is_of_node(&self, addr: IpAddr) -> bool {
        let ip = words(addr);
        let flags = match addr {
            IpAddr::V4(_) => {
                let ip = narrow::<V4>(&ip);
                self.address(&ip).map_or(0, |word| word.flags_for(&ip))
            }
            IpAddr::V6(_) => self.address(&ip).map_or(0, |word| word.flags_for(&ip)),
        };
        let of_node = AddressFlags::NODE | AddressFlags::LOOPBACK | AddressFlags::HOST;
        addr.is_loopback() || flags & of_node != 0
    }

    /// Which backend a client of a service port with session affinity has.
    pub fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        let mut bytes = key.service_port.to_ne_bytes().to_vec();
        bytes.extend(ip_bytes(&key.client));
        let value = self.read(&self.affinity, map::AFFINITY, &bytes)?;
        let mut rest = &value[..];
        let mut word = || take::<4>(&mut rest).map(u32::from_ne_bytes);
        let (backend, generation, seen_s) = (word()?, word()?, word()?);
        Some(AffinityRecord { backend, generation, seen_s, pad: 0 })
    }

    /// The record of a flow.
    pub fn flow<const N: usize>(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Flow<N>> {
        let mut bytes = ip_bytes(&key.src);
        bytes.extend(ip_bytes(&key.dst));
        bytes.extend(key.sport.to_ne_bytes());
        bytes.extend(key.dport.to_ne_bytes());
        bytes.extend([key.proto, key.kind]);
        bytes.extend(key.pad.to_ne_bytes());
        let (fd, name) = match table {
            FlowTable::Main => of_family::<N>(&self.flows, [map::FLOWS4, map::FLOWS6]),
            FlowTable::HalfOpen => {
                of_family::<N>(&self.half_open, [map::HALF_OPEN4, map::HALF_OPEN6])
            }
        };
        flow_from(&self.read(fd, name, &bytes)?)
    }

    /// An element of `SETS`.
    pub fn set(&self, index: u32) -> SetWord {
        let word = self.maps.sets.get(index as usize);
        word.map_or(SetWord::REJECT, |word| SetWord(word.load(Ordering::Acquire)))
    }

    /// An element of `FACTS`.
    pub fn facts(&self, id: ServicePortId) -> FactsWord {
        let word = self.maps.facts.get(id as usize);
        word.map_or_else(FactsWord::default, |word| FactsWord(word.load(Ordering::Acquire)))
    }

    /// A slot.
    pub fn slot(&self, index: u32) -> BackendId {
        self.maps.slots.get(index as usize).map_or(0, |slot| slot.load(Ordering::Relaxed))
    }

    /// A backend.
    pub fn backend(&self, id: BackendId) -> Option<Backend> {
        if id == 0 { None } else { self.maps.backend(id) }
    }

    /// Counters, each summed over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, Error> {
        let what = || "read COUNTERS".to_owned();
        let failed = |error| Error::system(what())(std::io::Error::other(error));
        let data = MapData::from_pin(self.folder.join(map::COUNTERS)).map_err(failed)?;
        let counters: PerCpuArray<MapData, u64> =
            Map::PerCpuArray(data).try_into().map_err(failed)?;
        debug_assert!(Counter::ALL.iter().all(|counter| (*counter as u32) < COUNTERS));
        let sum = |counter: &Counter| {
            let values = counters.get(&(*counter as u32), 0).map_err(failed)?;
            Ok((*counter, values.iter().sum()))
        };
        Counter::ALL.iter().map(sum).collect()
    }

    fn read(&self, fd: &OwnedFd, name: &str, key: &[u8]) -> Option<Vec<u8>> {
        match Hash::to_read(fd.as_fd()).and_then(|hash| hash.read(key)) {
            Ok(value) => value,
            Err(error) => {
                let error = Error::system(format!("look up an element of {name}"))(error);
                self.failure.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

fn of_family<'a, const N: usize>(
    fds: &'a [OwnedFd; 2],
    names: [&'static str; 2],
) -> (&'a OwnedFd, &'static str) {
    let ([v4, v6], [name4, name6]) = (fds, names);
    if N == V4 { (v4, name4) } else { (v6, name6) }
}

fn open(folder: &Path, name: &str) -> Result<OwnedFd, Error> {
    let path = folder.join(name);
    sys::object_get(&path).map_err(Error::system(format!("open the pinned map {}", path.display())))
}

fn ip_bytes<const N: usize>(ip: &Ip<N>) -> Vec<u8> {
    ip.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A record from the bytes of its element: `repr(C)`, all fields in the machine's order.
fn flow_from<const N: usize>(bytes: &[u8]) -> Option<Flow<N>> {
    let mut rest = bytes;
    let live = take::<8>(&mut rest).map(u64::from_ne_bytes)?;
    let mut word = || take::<4>(&mut rest).map(u32::from_ne_bytes);
    let (mut src, mut dst) = ([0; N], [0; N]);
    for field in src.iter_mut().chain(&mut dst) {
        *field = word()?;
    }
    let [s0, s1, d0, d1] = word()?.to_ne_bytes();
    Some(Flow {
        live,
        src,
        dst,
        sport: u16::from_ne_bytes([s0, s1]),
        dport: u16::from_ne_bytes([d0, d1]),
        flags: word()?,
        backend: word()?,
        generation: word()?,
        tag: word()?,
        ifindex: word()?,
    })
}

fn take<const L: usize>(bytes: &mut &[u8]) -> Option<[u8; L]> {
    let (head, rest) = bytes.split_first_chunk::<L>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_lies_in_the_map() {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        bytes.extend([0x9c, 0x40, 0x1f, 0x90]);
        for word in [1_u32, 2, 3, 4, 0] {
            bytes.extend(word.to_ne_bytes());
        }
        assert_eq!(bytes.len(), size_of::<Flow<V4>>());
        let flow = flow_from::<V4>(&bytes).unwrap();
        assert_eq!(flow.dst[0].to_ne_bytes(), [10, 0, 0, 2]);
        assert_eq!((u16::from_be(flow.sport), u16::from_be(flow.dport)), (40_000, 8080));
        assert_eq!((flow.live, flow.flags, flow.backend), (7, 1, 2));
        assert_eq!((flow.generation, flow.tag), (3, 4));
        assert_eq!(flow_from::<V4>(&bytes[..39]), None);
    }
}
