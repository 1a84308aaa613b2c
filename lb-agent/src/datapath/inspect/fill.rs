//! How full is each map?

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::{
    BackendFlags, BackendWord, FILTER_WORDS, FactsFlags, FactsWord, SetWord, map,
};

use super::{Inspector, open};
use crate::datapath::batch::{Batch, Cursor, Hash};
use crate::datapath::{Error, sys};

/// Elements read by one call.
const CHUNK: usize = 4096;

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
            (map::UDP_SOCKETS, Some("--max-udp-sockets")),
            (map::NETNS, None),
        ] {
            hash(name, &open(&self.folder, name)?, flag)?;
        }
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
