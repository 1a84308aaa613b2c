#![expect(unsafe_code, reason = "memory shared with the kernel")]
//! Array maps as memory: what is stored here is what kernel programs load next.
//!
//! Elements are seen as atomic words only, never as structs: the kernel's programs read them at any
//! moment, and an atomic store is the one thing that may happen at the same time.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

/// Words that shared memory may hold.
pub trait Word: private::Sealed {}

impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

mod private {
    pub trait Sealed {}
    impl Sealed for std::sync::atomic::AtomicU32 {}
    impl Sealed for std::sync::atomic::AtomicU64 {}
}

/// Shared memory as a slice of atomic words, unmapped when dropped.
#[derive(Debug)]
pub struct MmapArray<W: Word> {
    base: NonNull<W>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory belongs to this value, wherever it is moved; what it holds is atomic.
unsafe impl<W: Word> Send for MmapArray<W> {}
// SAFETY: sharing gives access to atomics only.
unsafe impl<W: Word> Sync for MmapArray<W> {}

impl<W: Word> MmapArray<W> {
    /// The elements of an array map with `BPF_F_MMAPABLE`: `bytes` is element size, rounded up to
    /// 8, times the number of elements. More than the map has is refused by the kernel.
    pub fn of_map(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        Self::map(map.as_raw_fd(), libc::MAP_SHARED, bytes)
    }

    /// Zeroed memory of this process, for tests of what is stored where.
    pub fn anonymous(words: usize) -> io::Result<Self> {
        Self::map(-1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, words * size_of::<W>())
    }

    fn map(fd: i32, flags: i32, bytes: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, prot, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, words: bytes / size_of::<W>(), bytes })
    }
}

impl<W: Word> Deref for MmapArray<W> {
    type Target = [W];

    fn deref(&self) -> &[W] {
        // SAFETY: bounds: `words` fit into the bytes that were mapped; alignment: mappings begin at
        // a page; access: the kernel and other threads may store at any time, which atomics allow,
        // and every bit pattern is valid; lifetime: unmapped on drop only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl<W: Word> Drop for MmapArray<W> {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; nobody borrows from it any more.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "a mapping can be unmapped");
    }
}
