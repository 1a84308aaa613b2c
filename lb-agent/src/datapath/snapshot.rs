//! What is programmed right now? Read back from the pinned maps, for adoption and for tools.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use lb_common::abi::{
    AddressWord, Backend, FactsWord, FrontendKey, FrontendWord, NAME_LEN, Scope, SetWord, V4, V6,
    map,
};

use super::Error;
use super::batch::Hash;
use super::maps::Maps;
use crate::model::{self, Family};
use crate::plan::{FrontKey, PortRow, SetRow, Snapshot, SourceRange, address, name};

impl Maps {
    /// Everything that is programmed.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let mut frontends = Vec::new();
        read_all(&self.frontends4, map::FRONTENDS4, &mut |key, word| {
            frontends.extend(key4(key).map(|key| (FrontKey::V4(key), FrontendWord(word))));
        })?;
        read_all(&self.frontends6, map::FRONTENDS6, &mut |key, word| {
            frontends.extend(key6(key).map(|key| (FrontKey::V6(key), FrontendWord(word))));
        })?;
        let mut addresses = Vec::new();
        for (fd, name) in [(&self.addresses4, map::ADDRESSES4), (&self.addresses6, map::ADDRESSES6)]
        {
            read_all(fd, name, &mut |key, word| {
                addresses.extend(addr(key).map(|addr| (addr, AddressWord(word))));
            })?;
        }
        let mut source_ranges = Vec::new();
        for (fd, name) in [
            (&self.source_ranges4, map::SOURCE_RANGES4),
            (&self.source_ranges6, map::SOURCE_RANGES6),
        ] {
            read_all(fd, name, &mut |key, _| source_ranges.extend(source_range(key)))?;
        }
        let ids = 1..u32::try_from(self.facts.len()).unwrap_or(u32::MAX);
        let backends = (1..self.backend_ids()).filter_map(|id| Some((id, self.backend(id)?)));
        Ok(Snapshot {
            frontends,
            addresses,
            service_cidrs: [self.service_cidrs(Family::V4), self.service_cidrs(Family::V6)],
            source_ranges,
            ports: ids.filter_map(|id| self.port(id)).collect(),
            backends: backends.filter(|(_, backend)| *backend != Backend::default()).collect(),
            meta: self.meta(),
        })
    }

    /// A service port, if anything of it is not zero.
    pub fn port(&self, id: u32) -> Option<PortRow> {
        let facts = FactsWord(self.facts.get(id as usize)?.load(Ordering::Acquire));
        let name = self.name(id).filter(|name| *name != [0; NAME_LEN]);
        let row = PortRow {
            id,
            name: name.map(|name| name::text(&name)).unwrap_or_default(),
            facts,
            sets: [self.set(Scope::Cluster, id), self.set(Scope::Local, id)],
        };
        let blank = PortRow { id, ..PortRow::default() };
        (row != blank).then_some(row)
    }

    fn set(&self, scope: Scope, id: u32) -> SetRow {
        let word = self.sets.get(scope.index(id) as usize);
        let word = SetWord(word.map_or(0, |word| word.load(Ordering::Acquire)));
        let slots = self.slots.get(word.first() as usize..).unwrap_or_default();
        let slots = slots.iter().take(word.count() as usize);
        SetRow { word, ids: slots.map(|slot| slot.load(Ordering::Relaxed)).collect() }
    }
}

fn read_all(
    fd: &std::os::fd::OwnedFd,
    name: &str,
    each: &mut dyn FnMut(&[u8], u64),
) -> Result<(), Error> {
    let hash = Hash::new(fd.as_fd()).map_err(Error::system(format!("use {name}")))?;
    match read_batches(&hash, each) {
        Ok(()) => Ok(()),
        // Nothing was read: a kernel without batches.
        Err((false, _)) => read_single(&hash, each).map_err(Error::system(format!("read {name}"))),
        Err((true, error)) => Err(Error::system(format!("read {name}"))(error)),
    }
}

/// On failure tells whether anything was read before.
fn read_batches(
    hash: &Hash<'_>,
    each: &mut dyn FnMut(&[u8], u64),
) -> Result<(), (bool, io::Error)> {
    let mut read = false;
    let each = |key: &[u8], value: &[u8]| {
        read = true;
        each(key, word(value));
    };
    hash.for_each(each).map_err(|error| (read, error))
}

fn read_single(hash: &Hash<'_>, each: &mut dyn FnMut(&[u8], u64)) -> io::Result<()> {
    let mut key: Option<Vec<u8>> = None;
    loop {
        let next = match hash.next_key(key.as_deref()) {
            Ok(next) => next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        };
        let value = hash.lookup(&next)?;
        each(&next, u64::from_ne_bytes(value));
        key = Some(next);
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
}

fn addr(bytes: &[u8]) -> Option<IpAddr> {
    let mut words = [0; V6];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().ok()?);
    }
    Some(address(&words, bytes.len() > 4))
}

fn source_range(bytes: &[u8]) -> Option<SourceRange> {
    let (prefix, rest) = bytes.split_first_chunk()?;
    let (id, rest) = rest.split_first_chunk()?;
    let prefix = u8::try_from(u32::from_ne_bytes(*prefix).checked_sub(32)?).ok()?;
    let range = model::Cidr::new(addr(rest)?, prefix)?;
    Some(SourceRange { id: u32::from_be_bytes(*id), range })
}

fn key4(bytes: &[u8]) -> Option<FrontendKey<V4>> {
    let (addr, rest) = bytes.split_at_checked(4)?;
    let addr = u32::from_ne_bytes(addr.try_into().ok()?);
    Some(FrontendKey::new([addr], port(rest)?, *rest.get(2)?))
}

fn key6(bytes: &[u8]) -> Option<FrontendKey<V6>> {
    let (addr, rest) = bytes.split_at_checked(16)?;
    let mut words = [0; V6];
    for (word, chunk) in words.iter_mut().zip(addr.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().ok()?);
    }
    Some(FrontendKey::new(words, port(rest)?, *rest.get(2)?))
}

fn port(rest: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?))
}
