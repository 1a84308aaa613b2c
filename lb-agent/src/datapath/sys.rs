#![expect(unsafe_code, reason = "bpf(2) and membarrier(2) take pointers and give descriptors")]
//! The system calls that aya has no function for: batches, links, queries, grace periods.
//!
//! Every attribute is a struct of integers without padding, laid out as the kernel's union member of
//! that command; what the kernel knows beyond its end is zero to it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_map_type};

use super::process::c_path;
pub use super::process::{file_system, lock};

thread_local! {
    /// Of each thread, so that what others do meanwhile is not taken for a part of a commit.
    static CALLS: Cell<Calls> = const { Cell::new(Calls { bpf: 0, membarrier: 0 }) };
}

/// System calls made by this module on one thread since that started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// bpf(2).
    pub bpf: u64,
    /// membarrier(2).
    pub membarrier: u64,
}

/// System calls of this thread so far.
pub fn calls() -> Calls {
    CALLS.get()
}

/// # Safety
///
/// Every pointer in `attr` must be valid for what `cmd` reads and writes through it.
pub(super) unsafe fn bpf<A>(cmd: bpf_cmd, attr: &mut A) -> io::Result<i32> {
    CALLS.set(Calls { bpf: calls().bpf + 1, ..calls() });
    let attr: *mut A = attr;
    // SAFETY: the attribute is a live struct of integers of the size given; the caller answers for
    // the pointers in it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, cmd as u32, attr, size_of::<A>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(i32::try_from(result).unwrap_or(0))
    }
}

/// As [`bpf`], for commands that answer with a new descriptor.
///
/// # Safety
///
/// As [`bpf`].
unsafe fn bpf_fd<A>(cmd: bpf_cmd, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(cmd, attr) }?;
    // SAFETY: the kernel made this descriptor for us just now; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

pub(super) fn address<T>(data: &[T]) -> u64 {
    data.as_ptr() as u64
}

pub(super) fn address_mut<T>(data: &mut [T]) -> u64 {
    data.as_mut_ptr() as u64
}

#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned map, program or link.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` is a string that ends with a zero and lives until the call returns.
    unsafe { bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr) }
}

/// Pins a map, program or link.
pub fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: as in `object_get`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// Information structs that the kernel fills.
trait Info: Default {}

fn info<I: Info>(fd: BorrowedFd<'_>) -> io::Result<I> {
    let mut info = I::default();
    let len = u32::try_from(size_of::<I>()).unwrap_or(0);
    let target: *mut I = &raw mut info;
    let mut attr = InfoAttr { fd: raw(fd), len, info: target as u64 };
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`, a struct of integers.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The head of the kernel's `bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MapInfo {
    /// Type of the map.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Number of elements.
    pub max_entries: u32,
    /// Flags it was made with.
    pub flags: u32,
}

impl Info for MapInfo {}

/// What a map is.
pub fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// The head of the kernel's `bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramInfo {
    /// Type of the program.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// Hash of its instructions.
    pub tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    /// Nanoseconds since boot when it was loaded.
    pub loaded_ns: u64,
    /// User who loaded it.
    pub user: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

impl Info for ProgramInfo {}

impl ProgramInfo {
    /// Its name, at most 15 bytes.
    pub fn name(&self) -> String {
        let end = self.name.iter().position(|&byte| byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

/// What a program is.
pub fn program_info(fd: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    info(fd)
}

/// A program by its id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr) }
}

/// The head of the kernel's `bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    /// Type of the link.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// The program that it runs.
    pub program: u32,
    pad: u32,
    target: [u32; 4],
}

impl Info for LinkInfo {}

impl LinkInfo {
    /// The interface of a tcx link; 0 when it is gone.
    pub fn ifindex(&self) -> u32 {
        self.target[0]
    }

    /// The cgroup of a cgroup link; 0 when it is gone.
    pub fn cgroup(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.target[0].to_ne_bytes());
        bytes[4..].copy_from_slice(&self.target[1].to_ne_bytes());
        u64::from_ne_bytes(bytes)
    }
}

/// What a link is.
pub fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

/// Where to attach.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A cgroup.
    Cgroup(BorrowedFd<'a>),
    /// A network interface of this thread's network namespace, by index.
    Interface(u32),
}

impl Target<'_> {
    fn raw(self) -> u32 {
        match self {
            Self::Cgroup(fd) => raw(fd),
            Self::Interface(index) => index,
        }
    }
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches a program by a link. `flags` are `BPF_F_BEFORE` or `BPF_F_AFTER` for tcx, else 0.
pub fn link_create(
    program: BorrowedFd<'_>,
    target: Target<'_>,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        target: target.raw(),
        attach_type: attach_type as u32,
        flags,
        relative: 0,
        pad: 0,
        expected_revision: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Replaces the program of a link in place.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), raw(program), 0, 0];
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program of a link off its target at once. A link that only loses its pin goes some
/// time later, when the kernel frees the pin.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link)];
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    pad: u32,
    attach_flags_each: u64,
    link_ids: u64,
    link_flags_each: u64,
    revision: u64,
}

/// Ids of the programs attached at a target, in the order in which they run. `query_flags` is
/// `BPF_F_QUERY_EFFECTIVE` to include what a cgroup inherits.
pub fn program_query(
    target: Target<'_>,
    attach_type: bpf_attach_type,
    query_flags: u32,
) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut attr = QueryAttr {
        target: target.raw(),
        attach_type: attach_type as u32,
        query_flags,
        attach_flags: 0,
        program_ids: address_mut(&mut ids),
        count: u32::try_from(ids.len()).unwrap_or(0),
        pad: 0,
        attach_flags_each: 0,
        link_ids: 0,
        link_flags_each: 0,
        revision: 0,
    };
    // SAFETY: `program_ids` points to `count` integers that the kernel may write.
    unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

#[repr(C)]
pub(super) struct ElementAttr {
    pub(super) map: u32,
    pub(super) pad: u32,
    pub(super) key: u64,
    pub(super) value: u64,
    pub(super) flags: u64,
}

#[repr(C)]
struct MapCreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
}

/// An array of one map and that map, to wait for a grace period by updating it.
pub fn map_in_map() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut inner = MapCreateAttr {
        kind: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner: 0,
    };
    // SAFETY: no pointers.
    let inner = unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut inner) }?;
    let mut outer = MapCreateAttr {
        kind: bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner: inner.as_raw_fd().cast_unsigned(),
    };
    // SAFETY: no pointers.
    let outer = unsafe { bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut outer) }?;
    Ok((outer, inner))
}

/// Puts `inner` into `outer`: returns when every program that runs now has ended (kernel commit
/// 1ae80cf31938, `maybe_wait_bpf_programs`).
pub fn map_in_map_update(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    let key = [0_u32];
    let value = [raw(inner)];
    let mut attr = ElementAttr {
        map: raw(outer),
        pad: 0,
        key: address(&key),
        value: address(&value),
        flags: 0,
    };
    // SAFETY: key and value are four bytes, as in the map that `map_in_map` makes; others are
    // refused by the kernel, whose values are descriptors in every map of maps.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Waits until every CPU has left whatever it ran in the kernel: `MEMBARRIER_CMD_GLOBAL` is
/// `synchronize_rcu`, and BPF programs run inside of RCU read sections.
pub fn membarrier() -> io::Result<()> {
    CALLS.set(Calls { membarrier: calls().membarrier + 1, ..calls() });
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
