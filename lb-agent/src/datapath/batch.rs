#![expect(unsafe_code, reason = "bpf(2) reads and writes elements through pointers")]
//! Elements of a hash or trie, one by one or many at once (`BPF_MAP_*_BATCH`), for which aya has nothing.

use std::io;
use std::os::fd::BorrowedFd;

use aya_obj::generated::{bpf_cmd, bpf_map_type};

use super::sys::{ElementAttr, address, address_mut, bpf, map_info, raw};

/// A hash or a trie, with values of 8 bytes unless it is only read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hash<'a> {
    fd: BorrowedFd<'a>,
    key_size: usize,
    value_size: usize,
}

/// Elements that [`Hash::for_each`] reads by one call.
const CHUNK: usize = 4096;

/// Bytes of a value of [`Hash`].
pub(super) const VALUE_SIZE: usize = 8;

impl<'a> Hash<'a> {
    /// Checks that the map has such keys and values: the kernel writes as many bytes as it has.
    pub(super) fn new(fd: BorrowedFd<'a>) -> io::Result<Self> {
        const KINDS: [bpf_map_type; 2] =
            [bpf_map_type::BPF_MAP_TYPE_HASH, bpf_map_type::BPF_MAP_TYPE_LPM_TRIE];
        let kind = map_info(fd)?.kind;
        let hash = Self::to_read(fd)?;
        if KINDS.iter().any(|own| *own as u32 == kind) && hash.value_size == VALUE_SIZE {
            Ok(hash)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    /// A hash of any kind, a trie or an array, with values of any size, for [`Self::read`] and batched
    /// lookups.
    pub(super) fn to_read(fd: BorrowedFd<'a>) -> io::Result<Self> {
        const KINDS: [bpf_map_type; 4] = [
            bpf_map_type::BPF_MAP_TYPE_ARRAY,
            bpf_map_type::BPF_MAP_TYPE_HASH,
            bpf_map_type::BPF_MAP_TYPE_LRU_HASH,
            bpf_map_type::BPF_MAP_TYPE_LPM_TRIE,
        ];
        let info = map_info(fd)?;
        if !KINDS.iter().any(|kind| *kind as u32 == info.kind) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (key_size, value_size) = (info.key_size as usize, info.value_size as usize);
        Ok(Self { fd, key_size, value_size })
    }

    /// Bytes of a key.
    pub(super) fn key_size(&self) -> usize {
        self.key_size
    }

    fn element(&self, cmd: bpf_cmd, key: &[u8], value: &mut [u8]) -> io::Result<()> {
        if key.len() != self.key_size || value.len() != self.key_size.max(self.value_size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = ElementAttr {
            map: raw(self.fd),
            pad: 0,
            key: address(key),
            value: address_mut(value),
            flags: 0,
        };
        // SAFETY: `key` has the size of a key and `value` that of the larger of key and value,
        // which is the most that any of these commands reads or writes there.
        unsafe { bpf(cmd, &mut attr) }.map(drop)
    }

    fn buffer(&self, value: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; self.key_size.max(self.value_size)];
        buffer[..value.len()].copy_from_slice(value);
        buffer
    }

    /// Inserts or replaces one element.
    pub(super) fn update(&self, key: &[u8], value: [u8; VALUE_SIZE]) -> io::Result<()> {
        self.element(bpf_cmd::BPF_MAP_UPDATE_ELEM, key, &mut self.buffer(&value))
    }

    /// Deletes one element.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<()> {
        let mut attr =
            ElementAttr { map: raw(self.fd), pad: 0, key: address(key), value: 0, flags: 0 };
        if key.len() != self.key_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `key` has the size of a key; nothing else is read or written.
        unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
    }

    /// One element.
    pub(super) fn lookup(&self, key: &[u8]) -> io::Result<[u8; VALUE_SIZE]> {
        let mut buffer = self.buffer(&[]);
        self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key, &mut buffer)?;
        let mut value = [0; VALUE_SIZE];
        value.copy_from_slice(&buffer[..VALUE_SIZE]);
        Ok(value)
    }

    /// The bytes of one element's value, if it is there. An LRU hash does not take this for a use.
    pub(super) fn read(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = self.buffer(&[]);
        match self.element(bpf_cmd::BPF_MAP_LOOKUP_ELEM, key, &mut buffer) {
            Ok(()) => {
                buffer.truncate(self.value_size);
                Ok(Some(buffer))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The key after this one; without one, the first.
    pub(super) fn next_key(&self, key: Option<&[u8]>) -> io::Result<Vec<u8>> {
        let mut next = vec![0; self.key_size];
        if key.is_some_and(|key| key.len() != self.key_size) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attr = ElementAttr {
            map: raw(self.fd),
            pad: 0,
            key: key.map_or(0, address),
            value: address_mut(&mut next),
            flags: 0,
        };
        // SAFETY: `key` is none or has the size of a key, as the kernel writes to `next`.
        unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) }?;
        Ok(next)
    }

    /// Shows all elements, a part at a time. Those that are deleted meanwhile may be shown or not.
    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut cursor = Cursor::default();
        let mut chunk = CHUNK;
        loop {
            let mut keys = vec![0; chunk * self.key_size];
            let mut values = vec![0; chunk * self.value_size];
            let before = cursor;
            let (read, result) =
                self.batch(Batch::Lookup, &mut keys, &mut values, Some(&mut cursor));
            let ended = match result {
                Ok(()) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than there is room for; the cursor has not moved.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 20 => {
                    cursor = before;
                    chunk *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let pairs = keys.chunks_exact(self.key_size).zip(values.chunks_exact(self.value_size));
            pairs.take(read).for_each(|(key, value)| each(key, value));
            if ended {
                return Ok(());
            }
        }
    }

    /// Inserts, deletes or looks up `count` elements at once; see [`Batch`].
    pub(super) fn batch(
        &self,
        kind: Batch,
        keys: &mut [u8],
        values: &mut [u8],
        cursor: Option<&mut Cursor>,
    ) -> (usize, io::Result<()>) {
        let count = keys.len() / self.key_size.max(1);
        if keys.len() != count * self.key_size
            || (values.len() != count * self.value_size && kind != Batch::Delete)
        {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        }
        let (input, output) = cursor.map_or((0, 0), |cursor| {
            let input = if cursor.started { address(&cursor.position) } else { 0 };
            cursor.started = true;
            (input, address_mut(&mut cursor.position))
        });
        let mut attr = BatchAttr {
            in_batch: input,
            out_batch: output,
            keys: address_mut(keys),
            values: if kind == Batch::Delete { 0 } else { address_mut(values) },
            count: u32::try_from(count).unwrap_or(0),
            map: raw(self.fd),
            element_flags: 0,
            flags: 0,
        };
        let cmd = match kind {
            Batch::Update => bpf_cmd::BPF_MAP_UPDATE_BATCH,
            Batch::Delete => bpf_cmd::BPF_MAP_DELETE_BATCH,
            Batch::Lookup => bpf_cmd::BPF_MAP_LOOKUP_BATCH,
        };
        if kind == Batch::Lookup && output == 0 {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        }
        if output != 0 && self.key_size > size_of::<[u64; POSITION]>() {
            return (0, Err(io::ErrorKind::InvalidInput.into()));
        }
        // SAFETY: `keys` and `values` hold `count` elements of the map's own sizes; the cursor holds
        // more bytes than the kernel's position in a hash (4), and as many as that in a trie, which
        // is a key, for reading and writing.
        let result = unsafe { bpf(cmd, &mut attr) };
        (attr.count as usize, result.map(drop))
    }
}

/// What a batch does. The kernel tells how many elements it did even if it then failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batch {
    /// Inserts or replaces.
    Update,
    /// Deletes; values are not used.
    Delete,
    /// Reads on from a cursor; ENOENT tells the end.
    Lookup,
}

/// Words of a position: no key is longer than that of a flow of IPv6.
const POSITION: usize = 5;

/// Where a batched lookup goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    position: [u64; POSITION],
    started: bool,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}
