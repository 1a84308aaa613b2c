//! The few other system calls: what a file system is, locks, where this process is, how many descriptors
//! it may have, and how it gives memory back.
#![expect(unsafe_code, reason = "statfs, flock, setns, rlimits and mallopt are not in std")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path as the kernel takes it.
pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The type of the file system that a path is on.
pub fn file_system(path: &Path) -> io::Result<u64> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero; `stat` has room for what the kernel writes.
    let result = unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so that all of it is written.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_type.cast_unsigned())
}

/// Takes the lock of an open folder for this process; released when it is closed.
pub fn lock(folder: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::flock(folder.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What an interface of this thread's network namespace is called at this moment; none if there is
/// none with this index.
pub(super) fn interface_name(index: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function demands, and lives longer than the call.
    let found = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr().cast()) };
    if found.is_null() {
        return None;
    }
    Some(CStr::from_bytes_until_nul(&buffer).ok()?.to_string_lossy().into_owned())
}

/// The index of an interface of this thread's network namespace; none if there is none of that name.
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends with a zero, and lives longer than the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

/// Moves this thread to a network namespace. Threads and processes that it starts from now on are
/// there too; mounts stay, so that bpffs and cgroup2 are where they were. Call it before any other
/// thread starts.
pub fn enter_netns(namespace: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process have as many descriptors as it is allowed to: the soft limit is 1024 on most
/// machines, and Services choose how many sockets for health checks there are. Tells how many.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = descriptor_limits()?;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the limit is a live struct, which the kernel only reads.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) };
    if result == 0 { Ok(raised.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

/// How many descriptors this process may have at the moment.
pub fn descriptor_limit() -> io::Result<u64> {
    descriptor_limits().map(|limit| limit.rlim_cur)
}

fn descriptor_limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is a live struct of ours, which the kernel writes.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { Ok(limit) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process keep little memory that it does not use: one heap for its few threads, which
/// rarely allocate at the same time, and what is large goes back to the kernel when it is freed. A
/// first list of 10,000 Services peaks a sixth lower for it. Call it before any other thread starts.
#[cfg(target_env = "gnu")]
pub fn keep_memory_small() {
    const LARGE: libc::c_int = 128 << 10;
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, LARGE), (libc::M_TRIM_THRESHOLD, LARGE)]
    {
        // SAFETY: no pointers; an allocator that refuses goes on as it was.
        let _accepted = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other allocators have no such settings.
#[cfg(not(target_env = "gnu"))]
pub fn keep_memory_small() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_interface_is_that_of_this_moment() {
        // In every network namespace.
        assert_eq!(interface_name(1).as_deref(), Some("lo"));
        assert_eq!(interface_name(0), None);
    }

    #[test]
    fn all_descriptors_that_are_allowed_can_be_had() {
        let limit = raise_descriptor_limit().unwrap();
        assert_eq!(limit, descriptor_limits().unwrap().rlim_max);
        assert_eq!(limit, descriptor_limit().unwrap());
    }
}
