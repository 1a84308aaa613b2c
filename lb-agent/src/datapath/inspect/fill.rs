//! How full is each map?

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::{
    BackendFlags, BackendWord, FILTER_WORDS, FactsFlags, FactsWord, SetWord, TCP_SOCKETS,
    TcpSocket, map,
};

use super::{Inspector, open};
use crate::datapath::batch::Hash;
use crate::datapath::{Error, sys};

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
        hash(map::ADDRESSES4, &self.addresses[0], Some("--max-frontends"))?;
        hash(map::ADDRESSES6, &self.addresses[1], Some("--max-frontends"))?;
        hash(map::SOURCE_RANGES4, &self.source_ranges[0], Some("--max-source-ranges"))?;
        hash(map::SOURCE_RANGES6, &self.source_ranges[1], Some("--max-source-ranges"))?;
        hash(map::FLOWS4, &self.flows[0], None)?;
        hash(map::FLOWS6, &self.flows[1], None)?;
        hash(map::HALF_OPEN4, &self.half_open[0], None)?;
        hash(map::HALF_OPEN6, &self.half_open[1], None)?;
        // The kernel's LRU makes room in this one.
        hash(map::AFFINITY, &self.affinity, None)?;
        for (name, flag) in [
            (map::SOCKET_PEERS, Some("--max-socket-peers")),
            (map::HOST_SOCKET_PEERS, Some("--max-socket-peers")),
            (map::UDP_SOCKETS, Some("--max-udp-sockets")),
            (map::HOST_UDP_SOCKETS, Some("--max-udp-sockets")),
            (map::NETNS, None),
        ] {
            hash(name, &open(&self.folder, name)?, flag)?;
        }
        let sockets = open(&self.folder, map::TCP_SOCKETS)?;
        let (used, max) = count_places(&sockets).map_err(Error::system("count TCP sockets"))?;
        // Those that find no place have storage of their own.
        fill.push(Fill { map: map::TCP_SOCKETS, used, max, flag: None });
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
}

/// Elements in a hash, and how many it can hold.
fn count(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let max = u64::from(sys::map_info(fd.as_fd())?.max_entries);
    let hash = Hash::to_read(fd.as_fd())?;
    let mut used = 0;
    match hash.for_each(|_, _| used += 1) {
        // A kernel without batches.
        Err(_) if used == 0 => Ok((count_singly(&hash, max)?, max)),
        counted => counted.map(|()| (used, max)),
    }
}

/// Places of `TCP_SOCKETS` that a socket has, and how many there are.
fn count_places(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let mut used = 0;
    Hash::to_read(fd.as_fd())?.for_each(|_, record| {
        let owner = record.get(offset_of!(TcpSocket, cookie)..).and_then(<[u8]>::first_chunk::<8>);
        used += u64::from(owner.is_some_and(|owner| *owner != [0; 8]));
    })?;
    Ok((used, u64::from(TCP_SOCKETS)))
}

/// At most `max` steps: where a key is gone when the next one is asked for, the kernel begins anew.
fn count_singly(hash: &Hash<'_>, max: u64) -> io::Result<u64> {
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
