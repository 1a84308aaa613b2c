//! What are programs told of interfaces and of pods' addresses? The maps that only flows from and to
//! other machines depend on.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::abi::{Interface, SNAT_ADDRESSES, map};
use lb_common::tables::LocalMode;
use lb_object::Settings;

use super::Error;
use super::maps::{array, cidrs};
use super::mmap::MmapArray;
use crate::model::Family;
use crate::plan::{Cidr, address};

/// What programs have as constants: who is a pod, and as whom packets are sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// How pods of this node are told.
    pub local_mode: LocalMode,
    /// Every connection to a clusterIP gets a source of this node (M-6).
    pub masquerade_all: bool,
    /// First source port of what is sent on.
    pub snat_first: u16,
    /// Number of these ports.
    pub snat_count: u16,
}

impl Default for Forwarding {
    /// That of the programs, as they are built.
    fn default() -> Self {
        let Settings { local_mode, masquerade_all, snat_first, snat_count, .. } =
            Settings::default();
        Self { local_mode, masquerade_all, snat_first, snat_count }
    }
}

/// Bytes of an element of `INTERFACES`.
const RECORD: usize = size_of::<Interface>();

/// `INTERFACES`, `LOCAL_CIDRS4` and `LOCAL_CIDRS6`, open.
#[derive(Debug)]
pub struct OutsideMaps {
    interfaces: HashMap<MapData, u32, [u8; RECORD]>,
    local_cidrs: [MmapArray<AtomicU64>; 2],
}

impl OutsideMaps {
    /// Opens what is pinned in a folder.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let data = MapData::from_pin(folder.join(map::INTERFACES));
        let data = data.map_err(failed("open the map INTERFACES"))?;
        let interfaces = Map::HashMap(data).try_into();
        Ok(Self {
            interfaces: interfaces.map_err(failed("open the map INTERFACES"))?,
            local_cidrs: [array(folder, map::LOCAL_CIDRS4)?, array(folder, map::LOCAL_CIDRS6)?],
        })
    }

    /// What is told of interfaces, by index.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>, Error> {
        let each = self.interfaces.iter().map(|element| {
            let (index, bytes) = element.map_err(failed("read INTERFACES"))?;
            Ok((index, record(&bytes)))
        });
        each.collect()
    }

    /// Tells programs of an interface, or that there is none with this index.
    pub fn tell(&mut self, index: u32, interface: Option<&Interface>) -> Result<(), Error> {
        match interface {
            Some(interface) => self
                .interfaces
                .insert(index, bytes(interface), 0)
                .map_err(failed("write an element of INTERFACES")),
            None => match self.interfaces.remove(&index) {
                Err(MapError::KeyNotFound) => Ok(()),
                result => result.map_err(failed("delete an element of INTERFACES")),
            },
        }
    }

    /// The ranges of pods' addresses of a family.
    pub fn local_cidrs(&self, family: Family) -> Vec<Cidr> {
        cidrs::read(&self.local_cidrs[usize::from(family == Family::V6)], family)
    }

    /// Makes these the ranges of pods' addresses of a family, as many as there is room for.
    pub fn set_local_cidrs(&self, family: Family, list: &[Cidr]) {
        cidrs::store(&self.local_cidrs[usize::from(family == Family::V6)], family, list);
    }
}

/// The addresses under which packets leave by an interface, IPv4 first.
pub fn sources(interface: &Interface) -> Vec<IpAddr> {
    let v4 = interface.v4.iter().take_while(|word| **word != 0);
    let v6 = interface.v6.iter().take_while(|words| **words != [0; 4]);
    v4.map(|word| address(&[*word, 0, 0, 0], false)).chain(v6.map(|w| address(w, true))).collect()
}

/// The words of a record in their order.
fn words(interface: &Interface) -> impl Iterator<Item = u32> {
    let Interface { flags, group, v4, v6, mtu, tag } = *interface;
    [flags, group].into_iter().chain(v4).chain(v6.into_iter().flatten()).chain([mtu, tag])
}

fn bytes(interface: &Interface) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words(interface)) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn record(bytes: &[u8; RECORD]) -> Interface {
    let mut words = bytes.chunks_exact(4).map(|chunk| {
        let mut word = [0; 4];
        word.copy_from_slice(chunk);
        u32::from_ne_bytes(word)
    });
    let mut next = || words.next().unwrap_or(0);
    let (flags, group) = (next(), next());
    let v4 = [(); SNAT_ADDRESSES].map(|()| next());
    let v6 = [(); SNAT_ADDRESSES].map(|()| [(); 4].map(|()| next()));
    Interface { flags, group, v4, v6, mtu: next(), tag: next() }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |error| Error::system(what)(std::io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn a_record_of_an_interface_lies_in_the_map_as_programs_read_it() {
        let v6 = [[7, 8, 9, 10], [11, 12, 13, 14], [15, 16, 17, 18], [19, 20, 21, 22]];
        let written = Interface { flags: 1, group: 2, v4: [3, 4, 5, 6], v6, mtu: 23, tag: 24 };
        let bytes = bytes(&written);
        assert_eq!(record(&bytes), written);
        for (offset, value) in [
            (offset_of!(Interface, flags), 1_u32),
            (offset_of!(Interface, group), 2),
            (offset_of!(Interface, v4), 3),
            (offset_of!(Interface, v6), 7),
            (offset_of!(Interface, mtu), 23),
            (offset_of!(Interface, tag), 24),
        ] {
            assert_eq!(bytes[offset..offset + 4], value.to_ne_bytes());
        }
    }
}
