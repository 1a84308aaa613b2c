//! The maps that tell programs of network namespaces and cgroups, and that tell the agent who talks
//! to which backend.
//!
//! They belong to the thread that looks after namespaces, which shares with the loop only the maps
//! that are memory.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::abi::{
    BYPASS_CGROUPS, BackendFlags, BackendId, BackendWord, BypassCgroup, FrontendKey, FrontendWord,
    MetaWord, Name, NetnsRecord, ServicePortId, map, proto,
};

use super::batch::Hash;
use super::{Error, Maps, sys};
use crate::plan::{self, FrontKey};

/// Bytes of a record of `NETNS`.
const RECORD: usize = size_of::<NetnsRecord>();

/// What `connect` translated on a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket {
    /// The backend's address as the maps hold it: IPv4 in the first word.
    pub peer: [u32; 4],
    /// Its port, host order.
    pub peer_port: u16,
    /// Its id when it was chosen.
    pub backend: BackendId,
    /// Its generation then.
    pub generation: u32,
}

/// The maps, open.
#[derive(Debug)]
pub struct NamespaceMaps {
    folder: PathBuf,
    maps: Arc<Maps>,
    netns: HashMap<MapData, u64, [u8; RECORD]>,
    /// Those of pods, and those of the node's own namespace.
    udp_sockets: [OwnedFd; 2],
}

impl NamespaceMaps {
    /// Opens what is pinned in a folder, and shares what is open already.
    pub fn open(folder: &Path, maps: Arc<Maps>) -> Result<Self, Error> {
        let sockets = |name| {
            let path = folder.join(name);
            let what = format!("open the pinned map {}", path.display());
            sys::object_get(&path).map_err(Error::system(what))
        };
        Ok(Self {
            folder: folder.to_owned(),
            maps,
            netns: netns(folder)?,
            udp_sockets: [sockets(map::UDP_SOCKETS)?, sockets(map::HOST_UDP_SOCKETS)?],
        })
    }

    /// The maps that the agent writes.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// All that is known of namespaces, by cookie.
    pub fn records(&self) -> Result<Vec<(u64, NetnsRecord)>, Error> {
        let each = self.netns.iter().map(|element| {
            let (cookie, bytes) = element.map_err(other("read NETNS"))?;
            Ok((cookie, record(bytes)))
        });
        each.collect()
    }

    /// Tells programs of a namespace.
    pub fn put(&mut self, cookie: u64, record: &NetnsRecord) -> Result<(), Error> {
        let what = "write an element of NETNS";
        self.netns.insert(cookie, bytes(record), 0).map_err(other(what))
    }

    /// Forgets a namespace, known or not.
    pub fn remove(&mut self, cookie: u64) -> Result<(), Error> {
        match self.netns.remove(&cookie) {
            Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            result => result.map_err(other("delete an element of NETNS")),
        }
    }

    /// Stores which cgroups are left alone, at most [`BYPASS_CGROUPS`].
    pub fn set_bypass_cgroups(&mut self, cgroups: &[BypassCgroup]) -> Result<(), Error> {
        let mut array = bypass_cgroups(&self.folder)?;
        for index in 0..BYPASS_CGROUPS {
            let BypassCgroup { id, level, .. } =
                cgroups.get(index as usize).copied().unwrap_or_default();
            let mut element = [0; 16];
            element[..8].copy_from_slice(&id.to_ne_bytes());
            element[8..12].copy_from_slice(&level.to_ne_bytes());
            array.set(index, element, 0).map_err(other("write BYPASS_CGROUPS"))?;
        }
        Ok(())
    }

    /// The UDP sockets that are connected through us, by cookie.
    pub fn udp_sockets(&self) -> Result<Vec<(u64, UdpSocket)>, Error> {
        let mut found = Vec::new();
        for sockets in &self.udp_sockets {
            let each = |key: &[u8], value: &[u8]| {
                let cookie = key.first_chunk().copied().map(u64::from_ne_bytes);
                found.extend(cookie.zip(udp_socket(value)));
            };
            Hash::to_read(sockets.as_fd())
                .and_then(|sockets| sockets.for_each(each))
                .map_err(Error::system("read the maps of UDP sockets"))?;
        }
        Ok(found)
    }

    /// Whether a socket's backend is still that backend and serves: a UDP flow may stay then (U-4).
    pub fn serves(&self, socket: &UdpSocket) -> bool {
        let word = self.maps.backend(socket.backend).map(|backend| BackendWord(backend.word));
        word.is_some_and(|word| {
            word.has(BackendFlags::PRESENT | BackendFlags::SERVING)
                && word.generation() == socket.generation
        })
    }

    /// The service port that a frontend leads to.
    pub fn service_port(&self, key: &FrontKey) -> Option<ServicePortId> {
        let mut bytes = Vec::new();
        super::maps::key_bytes(key, &mut bytes);
        let fd = match key {
            FrontKey::V4(_) => &self.maps.frontends4,
            FrontKey::V6(_) => &self.maps.frontends6,
        };
        key.id_in(FrontendWord(read_word(fd, &bytes)?))
    }

    /// Adds to a word of `META` that no one else writes.
    pub fn add_meta(&self, word: MetaWord, value: u64) {
        let old = self.maps.meta().get(word as usize).copied().unwrap_or(0);
        self.maps.set_meta(word, old.saturating_add(value));
    }
}

/// One element of a hash of words; one that cannot be read is none.
fn read_word(map: &OwnedFd, key: &[u8]) -> Option<u64> {
    let value = Hash::to_read(map.as_fd()).and_then(|hash| hash.read(key)).ok()??;
    Some(u64::from_ne_bytes(value.try_into().ok()?))
}

/// The key of the frontend of UDP at an address.
pub fn front_key(addr: SocketAddr) -> FrontKey {
    let (ip, port) = (plan::words(addr.ip()), addr.port().to_be());
    match addr {
        SocketAddr::V4(_) => FrontKey::V4(FrontendKey::new([ip[0]], port, proto::UDP)),
        SocketAddr::V6(_) => FrontKey::V6(FrontendKey::new(ip, port, proto::UDP)),
    }
}

/// What the programs are told of namespaces and cgroups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Namespaces, by cookie.
    pub namespaces: Vec<(u64, NetnsRecord)>,
    /// Cgroups that are left alone.
    pub cgroups: Vec<BypassCgroup>,
}

/// Reads what the programs are told from a folder of pins; for tools.
pub fn told(folder: &Path) -> Result<Told, Error> {
    let netns = netns(folder)?;
    let each = netns.iter().map(|element| {
        let (cookie, bytes) = element.map_err(other("read NETNS"))?;
        Ok((cookie, record(bytes)))
    });
    let namespaces = each.collect::<Result<_, Error>>()?;
    let array = bypass_cgroups(folder)?;
    let mut cgroups = Vec::new();
    for index in 0..BYPASS_CGROUPS {
        let element = array.get(&index, 0).map_err(other("read BYPASS_CGROUPS"))?;
        let (id, rest) = element
            .split_first_chunk()
            .map_or((0, &element[..]), |(id, rest)| (u64::from_ne_bytes(*id), rest));
        let level = rest.first_chunk().copied().map_or(0, u32::from_ne_bytes);
        if id != 0 {
            cgroups.push(BypassCgroup { id, level, pad: 0 });
        }
    }
    Ok(Told { namespaces, cgroups })
}

fn netns(folder: &Path) -> Result<HashMap<MapData, u64, [u8; RECORD]>, Error> {
    let data = MapData::from_pin(folder.join(map::NETNS)).map_err(other("open the map NETNS"))?;
    Map::HashMap(data).try_into().map_err(other("open the map NETNS"))
}

fn bypass_cgroups(folder: &Path) -> Result<Array<MapData, [u8; 16]>, Error> {
    let data = MapData::from_pin(folder.join(map::BYPASS_CGROUPS));
    let data = data.map_err(other("open the map BYPASS_CGROUPS"))?;
    Map::Array(data).try_into().map_err(other("open the map BYPASS_CGROUPS"))
}

fn other<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> Error {
    move |error| Error::system(what)(std::io::Error::other(error))
}

fn bytes(record: &NetnsRecord) -> [u8; RECORD] {
    let [a, b, c, d] = record.v6;
    let mut bytes = [0; RECORD];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip([record.v4, record.flags, a, b, c, d]) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn record(bytes: [u8; RECORD]) -> NetnsRecord {
    let word = |at: usize| word(&bytes, at).unwrap_or(0);
    NetnsRecord { v4: word(0), flags: word(1), v6: [word(2), word(3), word(4), word(5)] }
}

/// The fields of `SocketRecord` that matter here, from its bytes; none if the socket is not
/// connected through us.
fn udp_socket(bytes: &[u8]) -> Option<UdpSocket> {
    let word = |at: usize| word(bytes, at);
    // The VIP, the peer, a link of five words, and then: backend, generation, both ports.
    let [a, b, c, d] = word(15)?.to_ne_bytes();
    if [a, b] == [0, 0] {
        return None;
    }
    Some(UdpSocket {
        peer: [word(4)?, word(5)?, word(6)?, word(7)?],
        peer_port: u16::from_be_bytes([c, d]),
        backend: word(13)?,
        generation: word(14)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(4 * at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Whether a service port's name is that of one of UDP; without reading all of it, because there may
/// be many.
pub fn is_udp(name: &Name) -> bool {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let text = name.get(..end).unwrap_or_default();
    text.ends_with(b"/UDP4") || text.ends_with(b"/UDP6")
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use lb_common::abi::SocketRecord;

    use super::*;
    use crate::model::{Family, PortKey, Protocol};

    #[test]
    fn service_ports_of_udp_are_told_by_their_names() {
        for (protocol, udp) in
            [(Protocol::Udp, true), (Protocol::Tcp, false), (Protocol::Sctp, false)]
        {
            for family in [Family::V4, Family::V6] {
                let (namespace, service, port) = ("d".into(), "udp4".into(), "udp".into());
                let key = PortKey { namespace, service, port, protocol, family };
                let name = plan::name::encode(&key).unwrap();
                assert_eq!(is_udp(&name), udp, "{}", plan::name::display(&key));
            }
        }
        assert!(!is_udp(&[0; lb_common::abi::NAME_LEN]));
    }

    #[test]
    fn records_lie_in_the_maps_as_they_are_read() {
        for (at, offset) in [
            (4, offset_of!(SocketRecord, peer)),
            (13, offset_of!(SocketRecord, backend)),
            (14, offset_of!(SocketRecord, generation)),
            (15, offset_of!(SocketRecord, vip_port)),
        ] {
            assert_eq!(4 * at, offset);
        }
        let mut bytes = vec![0; size_of::<SocketRecord>()];
        assert_eq!(udp_socket(&bytes), None, "not connected through us");
        bytes[60..64].copy_from_slice(&[0, 53, 0x1f, 0x90]);
        bytes[16..20].copy_from_slice(&[10, 0, 0, 1]);
        bytes[52] = 7;
        let socket = udp_socket(&bytes).unwrap();
        assert_eq!(socket.peer, plan::words("10.0.0.1".parse().unwrap()));
        assert_eq!((socket.peer_port, u32::from_le(socket.backend)), (8080, 7));
        assert_eq!(udp_socket(&bytes[..63]), None);
    }

    #[test]
    fn a_record_of_a_namespace_comes_back_as_it_was_written() {
        assert_eq!(offset_of!(NetnsRecord, v6), 8);
        let written = NetnsRecord { v4: 1, flags: 2, v6: [3, 4, 5, 6] };
        assert_eq!(record(bytes(&written)), written);
    }
}
