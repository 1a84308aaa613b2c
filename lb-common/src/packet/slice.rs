//! A packet in a slice: host tests, fuzzing and `explain`.

use super::{ChecksumChange, Packet};
use crate::csum;

/// A packet whose checksums are complete, in a mutable slice.
pub struct SlicePacket<'a>(pub &'a mut [u8]);

impl SlicePacket<'_> {
    fn bytes<const L: usize>(&self, at: usize) -> Option<[u8; L]> {
        self.0.get(at..at.checked_add(L)?)?.try_into().ok()
    }

    fn set_bytes(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        self.0.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
        Some(())
    }
}

impl Packet for SlicePacket<'_> {
    fn u8(&self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }

    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let end = at.checked_add(N.checked_mul(4)?)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(self.0.get(at..end)?.chunks_exact(4)) {
            *word = u32::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn set_u16(&mut self, at: usize, value: u16) -> Option<()> {
        self.set_bytes(at, &value.to_ne_bytes())
    }

    fn set_words<const N: usize>(&mut self, at: usize, value: &[u32; N]) -> Option<()> {
        let end = at.checked_add(N.checked_mul(4)?)?;
        for (bytes, word) in self.0.get_mut(at..end)?.chunks_exact_mut(4).zip(value) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Some(())
    }

    fn adjust_checksum(&mut self, at: usize, change: &ChecksumChange) -> Option<()> {
        let old = self.u16(at)?;
        match csum::adjusted(old, change) {
            Some(new) => self.set_u16(at, new),
            None => Some(()),
        }
    }
}
