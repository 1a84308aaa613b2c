//! Words that a program of a few instructions shares with its test: an array map with one element.
#![expect(unsafe_code, reason = "bpf() reads and writes through addresses in its argument")]

use std::{
    ffi::c_int,
    os::fd::{AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::sys;

const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_LOOKUP_ELEM: c_int = 1;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
/// `BPF_MAP_TYPE_ARRAY`
const ARRAY: u32 = 2;

/// The words, all 0 in the beginning.
#[derive(Debug)]
pub struct Words<const N: usize> {
    map: OwnedFd,
}

impl<const N: usize> Words<N> {
    /// New ones.
    pub fn new() -> Result<Self> {
        let value_size = u32::try_from(N * 8).context("the size of a value")?;
        let mut attr = CreateAttr { map_type: ARRAY, key_size: 4, value_size, max_entries: 1 };
        // SAFETY: no addresses in this argument.
        let map = unsafe { sys::bpf_open(BPF_MAP_CREATE, &mut attr) }.context("make a map")?;
        Ok(Self { map })
    }

    /// The two halves of an instruction that loads their address into a register
    /// (`BPF_PSEUDO_MAP_VALUE`).
    pub fn address(&self, register: u8) -> [u64; 2] {
        let map = u64::from(self.map.as_raw_fd().cast_unsigned()) << 32;
        [0x18 | (u64::from(register | 0x20) << 8) | map, 0]
    }

    /// What they are.
    pub fn get(&self) -> Result<[u64; N]> {
        let mut words = [0; N];
        self.access(BPF_MAP_LOOKUP_ELEM, words.as_mut_ptr() as u64).context("read a map")?;
        Ok(words)
    }

    /// Sets all of them.
    pub fn set(&self, words: [u64; N]) -> Result<()> {
        self.access(BPF_MAP_UPDATE_ELEM, words.as_ptr() as u64).context("write a map")
    }

    /// `value` is the address of `N` words of the caller's.
    fn access(&self, command: c_int, value: u64) -> Result<()> {
        let key = 0_u32;
        let mut attr = ElementAttr {
            map: self.map.as_raw_fd().cast_unsigned(),
            padding: 0,
            key: (&raw const key) as u64,
            value,
            flags: 0,
        };
        // SAFETY: the key lives until the call returns, and `value` points to as many words as an
        // element of the map has, exclusively ours.
        unsafe { sys::bpf(command, &mut attr) }?;
        Ok(())
    }
}

/// `union bpf_attr` as `BPF_MAP_CREATE` reads it.
#[repr(C)]
#[derive(Debug)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `union bpf_attr` as the commands on elements read it.
#[repr(C)]
#[derive(Debug)]
struct ElementAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
