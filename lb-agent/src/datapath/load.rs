//! From the object to maps that are pinned and programs that are loaded.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher as _;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use aya_obj::EbpfSectionKind;
use lb_common::abi::{ABI_VERSION, MetaWord, SCOPES, map};
use lb_object::Settings;

use super::maps::array;
use super::outside::Forwarding;
use super::{Config, Error, Scope, sys};
use crate::plan::Capacity;

/// `BPF_FS_MAGIC`, linux/magic.h.
const BPF_FS: u64 = 0xcafe_4a11;

/// Number of elements of all maps whose size can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Those that plan fills.
    pub tables: Capacity,
    /// `FLOWS4` and `FLOWS6`, each. `--max-flows`.
    pub flows: u32,
    /// `HALF_OPEN4` and `HALF_OPEN6`, each. `--max-half-open-flows`.
    pub half_open: u32,
    /// `SOCKET_PEERS` and `HOST_SOCKET_PEERS`, each. `--max-socket-peers`.
    pub socket_peers: u32,
    /// `UDP_SOCKETS` and `HOST_UDP_SOCKETS`, each. `--max-udp-sockets`.
    pub udp_sockets: u32,
    /// `AFFINITY`. `--max-affinity`.
    pub affinity: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        let tables = Capacity::default();
        Self {
            tables,
            flows: 1 << 18,
            half_open: 1 << 16,
            socket_peers: 1 << 16,
            udp_sockets: 1 << 16,
            affinity: 1 << 16,
        }
    }
}

impl Sizes {
    fn of(&self, name: &str) -> Option<u32> {
        let tables = &self.tables;
        Some(match name {
            map::FRONTENDS4 | map::FRONTENDS6 => tables.frontends,
            map::ADDRESSES4 | map::ADDRESSES6 => tables.addresses,
            map::SOURCE_RANGES4 | map::SOURCE_RANGES6 => tables.source_ranges,
            map::SETS => tables.service_ports.saturating_mul(SCOPES),
            map::FACTS | map::NAMES => tables.service_ports,
            map::SLOTS => tables.slots.div_ceil(2),
            map::BACKENDS => tables.backends,
            map::FLOWS4 | map::FLOWS6 => self.flows,
            map::HALF_OPEN4 | map::HALF_OPEN6 => self.half_open,
            map::SOCKET_PEERS | map::HOST_SOCKET_PEERS => self.socket_peers,
            map::UDP_SOCKETS | map::HOST_UDP_SOCKETS => self.udp_sockets,
            map::AFFINITY => self.affinity,
            _ => return None,
        })
    }
}

/// The folder of pins of one node: versioned, so that another layout is never reinterpreted.
pub fn folder(bpffs: &Path) -> PathBuf {
    bpffs.join(format!("v{ABI_VERSION}"))
}

/// The lock of a folder, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    /// To close it is not enough: a process that is just being started holds a copy of the
    /// descriptor until it executes its program.
    fn drop(&mut self) {
        drop(self.0.unlock());
    }
}

/// Makes sure that `bpffs` is a folder on a BPF file system, and makes the folder of this version
/// in it. The lock that is returned keeps a second agent away.
pub(super) fn prepare(bpffs: &Path) -> Result<Lock, Error> {
    let not_there = |source: io::Error| match source.kind() {
        // A BPF file system takes no folder where it is not.
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => {
            Error::NotBpffs(bpffs.to_owned())
        }
        _ => Error::system(format!("make the folder {}", bpffs.display()))(source),
    };
    // The nearest folder that exists tells where a new one would be made.
    let existing = bpffs.ancestors().find(|path| path.exists()).unwrap_or(bpffs);
    if !is_bpffs(existing) {
        return Err(Error::NotBpffs(bpffs.to_owned()));
    }
    let folder = folder(bpffs);
    fs::create_dir_all(folder.join("links")).map_err(not_there)?;
    let lock = File::open(&folder)
        .map_err(Error::system(format!("open the folder {}", folder.display())))?;
    sys::lock(lock.as_fd()).map_err(|_| Error::InUse(folder))?;
    Ok(Lock(lock))
}

/// Whether a path is on a BPF file system.
pub(super) fn is_bpffs(path: &Path) -> bool {
    sys::file_system(path).is_ok_and(|magic| magic == BPF_FS)
}

/// Tells that a seed was drawn.
const DRAWN: u64 = 1 << 32;

/// What [`load`] takes as a seed, as `META` has it: that of an earlier run, because half of a record that
/// was lost is found again by its port, or else a new one. Nothing that others may read leads to it.
pub(super) fn seed(folder: &Path) -> Result<u64, Error> {
    let path = folder.join(map::META);
    let known = if path.exists() {
        let meta = array::<AtomicU64>(folder, map::META)?;
        meta.get(MetaWord::SnatSeed as usize).map_or(0, |word| word.load(Ordering::Relaxed))
    } else {
        0
    };
    // The standard library seeds its hashers by what the kernel has for keys.
    let drawn = || DRAWN | RandomState::new().hash_one(folder) >> 32;
    Ok(if known & DRAWN != 0 { known } else { drawn() })
}

/// Loads the object: maps that are pinned are used as they are, others are made and pinned. `seed` is
/// what source ports of what is sent on begin from.
pub(super) fn load(folder: &Path, config: &Config, seed: u32) -> Result<Ebpf, Error> {
    let Forwarding { local_mode, masquerade_all, snat_first, snat_count } = config.forwarding;
    let settings = Settings {
        node_netns: config.node_netns,
        node_only: config.scope == Scope::Host,
        local_mode,
        masquerade_all,
        snat_first,
        snat_count,
        ..Settings::probe()
    };
    // The seed is nobody's business.
    tracing::debug!(?settings, "kernel probed");
    let settings = Settings { seed, ..settings };
    let object = settings.object()?;
    let mut pins = pins(&object, folder, &config.sizes)?;
    for pin in pins.values_mut() {
        pin.check()?;
    }
    let constants = settings.constants();
    let mut loader = EbpfLoader::new();
    // Nothing is relocated against the kernel's own types.
    loader.btf(None).allow_unsupported_maps();
    settings.apply(&mut loader, &constants);
    for (name, pin) in &pins {
        loader.map_pin_path(name, &pin.path);
        loader.map_max_entries(name, pin.wanted.max_entries);
    }
    loader.load(&object).map_err(|error| Error::Object(Box::new(error)))
}

struct Pin {
    path: PathBuf,
    wanted: sys::MapInfo,
    /// Programs work with any number of elements.
    any_size: bool,
}

/// Every map of the object but its constants, with what it has to look like.
fn pins(object: &[u8], folder: &Path, sizes: &Sizes) -> Result<BTreeMap<String, Pin>, Error> {
    let object = aya_obj::Object::parse(object)
        .map_err(|error| Error::Object(Box::new(aya::EbpfError::ParseError(error))))?;
    let is_ours = |map: &aya_obj::Map| {
        matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps)
    };
    let maps =
        object.maps.iter().filter(|(name, map)| is_ours(map) && PINNED.contains(&name.as_str()));
    Ok(maps
        .map(|(name, map)| {
            let wanted = sys::MapInfo {
                kind: map.map_type(),
                id: 0,
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: sizes.of(name).unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            let any_size = sizes.of(name).is_some();
            (name.clone(), Pin { path: folder.join(name), wanted, any_size })
        })
        .collect())
}

/// The maps that outlive the agent. Those of a debug build, for logs, do not.
pub(super) const PINNED: [&str; 42] = [
    map::FRONTENDS4,
    map::FRONTENDS6,
    map::ADDRESSES4,
    map::ADDRESSES6,
    map::SERVICE_CIDRS4,
    map::SERVICE_CIDRS6,
    map::LOCAL_CIDRS4,
    map::LOCAL_CIDRS6,
    map::NODE_PORTS,
    map::INTERFACES,
    map::SOURCE_RANGES4,
    map::SOURCE_RANGES6,
    map::AFFINITY,
    map::NETNS,
    map::BYPASS_CGROUPS,
    map::UDP_SOCKETS,
    map::HOST_UDP_SOCKETS,
    map::SETS,
    map::FACTS,
    map::SLOTS,
    map::BACKENDS,
    map::NAMES,
    map::META,
    map::VIP_FILTER,
    map::FLOW_PORTS,
    map::FLOW_SOURCES,
    map::PROGRAMS,
    map::XDP_PROGRAMS,
    map::XDP_PROGRAMS_FRAGS,
    map::FLOWS4,
    map::FLOWS6,
    map::HALF_OPEN4,
    map::HALF_OPEN6,
    map::FRAGMENTS4,
    map::FRAGMENTS6,
    map::TCP_SOCKETS,
    map::SOCKETS,
    map::SOCKET_PEERS,
    map::HOST_SOCKET_PEERS,
    map::REJECTS,
    map::NEXT_HOPS,
    map::COUNTERS,
];

impl Pin {
    /// A map that is pinned already must be what programs and agent take it for: the kernel would
    /// read and write as many bytes as the map has, whatever buffer it is given.
    fn check(&mut self) -> Result<(), Error> {
        let fd = match sys::object_get(&self.path) {
            Ok(fd) => fd,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(Error::system(format!("open {}", self.path.display()))(error));
            }
        };
        let found = sys::map_info(fd.as_fd())
            .map_err(Error::system(format!("ask what {} is", self.path.display())))?;
        self.take(&found)
    }

    /// A map of another size is used as it is: not to start would leave the node without an agent.
    fn take(&mut self, found: &sys::MapInfo) -> Result<(), Error> {
        if self.any_size && found.max_entries != self.wanted.max_entries {
            tracing::warn!(
                map = %self.path.display(),
                elements = found.max_entries,
                asked = self.wanted.max_entries,
                "a pinned map keeps its size; another one takes effect after `lb-agent cleanup`"
            );
            self.wanted.max_entries = found.max_entries;
        }
        let wanted = &self.wanted;
        for (field, found, needed) in [
            ("type", found.kind, wanted.kind),
            ("key size", found.key_size, wanted.key_size),
            ("value size", found.value_size, wanted.value_size),
            ("max entries", found.max_entries, wanted.max_entries),
            ("flags", found.flags, wanted.flags),
        ] {
            if found != needed {
                let path = self.path.clone();
                return Err(Error::OtherMap { path, field, found, needed });
            }
        }
        Ok(())
    }
}

/// Loads one program into the kernel.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<(), Error> {
    let program = ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
    let result = match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => return Err(Error::NoProgram(name)),
    };
    match result {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(source) => Err(Error::Program { name, source: Box::new(source) }),
    }
}

/// The descriptor of a loaded program.
pub(super) fn program_fd<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).ok_or(Error::NoProgram(name))?;
    let fd = program.fd().map_err(|source| Error::Program { name, source: Box::new(source) })?;
    Ok(fd.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: sys::MapInfo =
        sys::MapInfo { kind: 2, id: 0, key_size: 4, value_size: 8, max_entries: 64, flags: 0 };

    fn pin(any_size: bool) -> Pin {
        Pin { path: "v1/SETS".into(), wanted: WANTED, any_size }
    }

    #[test]
    fn a_pinned_map_keeps_its_size_where_programs_work_with_any() {
        let mut sizable = pin(true);
        sizable.take(&sys::MapInfo { max_entries: 128, ..WANTED }).unwrap();
        assert_eq!(sizable.wanted.max_entries, 128);
        let fixed = pin(false).take(&sys::MapInfo { max_entries: 128, ..WANTED });
        assert!(
            matches!(&fixed, Err(Error::OtherMap { field: "max entries", .. })),
            "programs index it by constants: {fixed:?}"
        );
    }

    #[test]
    fn a_pinned_map_with_other_elements_is_refused_whatever_its_size() {
        for (other, name) in [
            (sys::MapInfo { kind: 1, ..WANTED }, "type"),
            (sys::MapInfo { key_size: 8, ..WANTED }, "key size"),
            (sys::MapInfo { value_size: 16, max_entries: 1, ..WANTED }, "value size"),
            (sys::MapInfo { flags: 1, ..WANTED }, "flags"),
        ] {
            match pin(true).take(&other) {
                Err(Error::OtherMap { field, .. }) => assert_eq!(field, name),
                result => panic!("{name}: {result:?}"),
            }
        }
    }
}
