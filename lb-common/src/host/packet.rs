//! A packet that can change its length, for tests.

use std::vec::Vec;

use crate::packet::{ChecksumChange, Packet, Renew, SlicePacket};

/// A packet whose checksums are complete, in a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPacket(pub Vec<u8>);

impl HostPacket {
    fn slice(&mut self) -> SlicePacket<'_> {
        SlicePacket(&mut self.0)
    }
}

impl Packet for HostPacket {
    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.words_of(at).map(u16::from_ne_bytes)
    }

    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let mut words = [0; N];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.words_of(at.checked_add(index.checked_mul(4)?)?)?);
        }
        Some(words)
    }

    fn set_u16(&mut self, at: usize, value: u16) -> Option<()> {
        self.slice().set_u16(at, value)
    }

    fn set_words<const N: usize>(&mut self, at: usize, value: &[u32; N]) -> Option<()> {
        self.slice().set_words(at, value)
    }

    fn adjust_checksum(&mut self, at: usize, change: &ChecksumChange) -> Option<()> {
        self.slice().adjust_checksum(at, change)
    }
}

impl HostPacket {
    fn words_of<const L: usize>(&self, at: usize) -> Option<[u8; L]> {
        self.0.get(at..at.checked_add(L)?)?.try_into().ok()
    }
}

impl Renew for HostPacket {
    /// What was not written would show.
    fn renew(&mut self, l3: usize, _: usize, length: usize) -> Option<()> {
        self.0.truncate(l3);
        if self.0.len() < l3 {
            return None;
        }
        self.0.resize(l3.checked_add(length)?, 0xee);
        Some(())
    }
}
