//! What is in the pinned maps right now? Reads them one element at a time and never writes, so that
//! tools can look at a node in service, whether its agent runs or not.

use std::cell::RefCell;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Map, MapData, PerCpuArray};
use lb_common::abi::{
    AddressWord, Backend, BackendFlags, BackendId, BackendWord, COUNTERS, Counter, FILTER_WORDS, FactsFlags,
    FactsWord, Flow, FlowKey, FrontendKey, FrontendWord, Ip, ServicePortId, SetWord, V4,
    filter_bit, map,
};
use lb_common::tables::FlowTable;

use super::batch::{Batch, Cursor, Hash};
use super::mmap::MmapArray;
use super::sys;
use super::{Error, Maps};

/// Elements read by one call.
const CHUNK: usize = 4096;

/// The pinned maps of a node, open for reading.
#[derive(Debug)]
pub struct Inspector {
    folder: PathBuf,
    maps: Maps,
    filter: MmapArray<AtomicU64>,
    /// IPv4, then IPv6.
    frontends: [OwnedFd; 2],
    addresses: [OwnedFd; 2],
    flows: [OwnedFd; 2],
    half_open: [OwnedFd; 2],
    /// The first lookup that failed.
    failure: RefCell<Option<Error>>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map.
    pub map: &'static str,
    /// Elements in use.
    pub used: u64,
    /// Elements that it has.
    pub max: u64,
    /// What to raise when it is full; nothing where that does no harm.
    pub flag: Option<&'static str>,
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
            flows: [open(map::FLOWS4)?, open(map::FLOWS6)?],
            half_open: [open(map::HALF_OPEN4)?, open(map::HALF_OPEN6)?],
            failure: RefCell::new(None),
        }))
    }

    /// The maps that can be read as memory.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The first lookup that failed since the last call: it was answered as if nothing were there.
    pub fn take_failure(&self) -> Option<Error> {
        self.failure.take()
    }

    /// Whether the filter lets packets to an address through to a lookup.
    pub fn may_be_vip<const N: usize>(&self, ip: &Ip<N>) -> bool {
        let (word, mask) = filter_bit(ip);
        let word = self.filter.get(word as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & mask != 0)
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

    /// How full each map is.
    pub fn fill(&self) -> Result<Vec<Fill>, Error> {
        let maps = &self.maps;
        let mut fill = Vec::new();
        let mut hash = |map, fd: &OwnedFd, flag| {
            let (used, max) =
                count(fd).map_err(Error::system(format!("count what is in {map}")))?;
            fill.push(Fill { map, used, max, flag });
            Ok::<_, Error>(())
        };
        hash(map::FRONTENDS4, &self.frontends[0], Some("--max-frontends"))?;
        hash(map::FRONTENDS6, &self.frontends[1], Some("--max-frontends"))?;
        hash(map::FLOWS4, &self.flows[0], None)?;
        hash(map::FLOWS6, &self.flows[1], None)?;
        hash(map::HALF_OPEN4, &self.half_open[0], None)?;
        hash(map::HALF_OPEN6, &self.half_open[1], None)?;
        let peers = open(&self.folder, map::SOCKET_PEERS)?;
        hash(map::SOCKET_PEERS, &peers, Some("--max-socket-peers"))?;
        let present = |facts: &&AtomicU64| {
            FactsWord(facts.load(Ordering::Relaxed)).flags() & FactsFlags::PRESENT != 0
        };
        let slots = |words: &[AtomicU64]| -> u64 {
            words.iter().map(|word| u64::from(SetWord(word.load(Ordering::Relaxed)).count())).sum()
        };
        let backends = (1..maps.backend_ids()).filter_map(|id| maps.backend(id));
        let backends =
            backends.filter(|backend| BackendWord(backend.word).has(BackendFlags::PRESENT)).count();
        let bits: u64 = self
            .filter
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        // Id 0 is none.
        let ids = |len: usize| (len as u64).saturating_sub(1);
        fill.extend([
            Fill {
                map: map::FACTS,
                used: maps.facts.iter().filter(present).count() as u64,
                max: ids(maps.facts.len()),
                flag: Some("--max-service-ports"),
            },
            Fill {
                map: map::BACKENDS,
                used: backends as u64,
                max: ids(maps.backend_ids() as usize),
                flag: Some("--max-backends"),
            },
            Fill {
                map: map::SLOTS,
                used: slots(&maps.sets),
                max: maps.slots.len() as u64,
                flag: Some("--max-slots"),
            },
            Fill {
                map: map::VIP_FILTER,
                used: bits,
                max: u64::from(FILTER_WORDS) * 64,
                flag: None,
            },
        ]);
        Ok(fill)
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

/// Elements in a hash, and how many it can hold.
fn count(fd: &OwnedFd) -> std::io::Result<(u64, u64)> {
    let max = u64::from(sys::map_info(fd.as_fd())?.max_entries);
    let hash = Hash::to_read(fd.as_fd())?;
    let mut cursor = Cursor::default();
    let (mut used, mut chunk) = (0, CHUNK);
    loop {
        let mut keys = vec![0; chunk * hash.key_size()];
        let mut values = vec![0; chunk * hash.value_size()];
        let before = cursor;
        let (read, result) = hash.batch(Batch::Lookup, &mut keys, &mut values, Some(&mut cursor));
        match result {
            Ok(()) => used += read as u64,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok((used + read as u64, max));
            }
            // One bucket holds more than there is room for; the cursor has not moved.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 20 => {
                cursor = before;
                chunk *= 2;
            }
            // A kernel without batches.
            Err(_) if used == 0 => return Ok((count_singly(&hash, max)?, max)),
            Err(error) => return Err(error),
        }
    }
}

/// At most `max` steps: where a key is gone when the next one is asked for, the kernel begins anew.
fn count_singly(hash: &Hash<'_>, max: u64) -> std::io::Result<u64> {
    let mut key: Option<Vec<u8>> = None;
    for used in 0..max {
        match hash.next_key(key.as_deref()) {
            Ok(next) => key = Some(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(used),
            Err(error) => return Err(error),
        }
    }
    Ok(max)
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
        pad: word()?,
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
