//! Incremental internet checksums (RFC 1071, RFC 1624 equation 3).
//!
//! A difference is the one's complement sum of (~old + new) over 16-bit words in the machine's
//! order; it is kept in 32 bits and folded at the end, as the kernel's `__wsum` is.

use crate::packet::ChecksumChange;

/// A difference between old and new contents, unfolded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Diff(u64);

impl Diff {
    /// Replaces one 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        // At most a few dozen words are added: 64 bits cannot overflow.
        Self(self.0.wrapping_add(!old as u64).wrapping_add(new as u64))
    }

    /// Replaces words.
    #[inline(always)]
    #[must_use]
    pub fn words<const N: usize>(self, old: &[u32; N], new: &[u32; N]) -> Self {
        let mut diff = self;
        for (old, new) in old.iter().zip(new) {
            diff = diff.word(*old, *new);
        }
        diff
    }

    /// Replaces a 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        // Adding the 16-bit complement keeps the sum in the 16-bit lane.
        Self(self.0.wrapping_add(!old as u64).wrapping_add(new as u64))
    }

    /// The sum in 32 bits.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        let sum = (self.0 & 0xffff_ffff).wrapping_add(self.0 >> 32);
        let sum = (sum & 0xffff_ffff).wrapping_add(sum >> 32);
        sum as u32
    }
}

/// A sum from scratch, for a packet of our own making.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds a 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, word: u32) -> Self {
        // As in a difference, a few dozen words do not overflow.
        Self(self.0.wrapping_add(word as u64))
    }

    /// Adds words.
    #[inline(always)]
    #[must_use]
    pub fn words<const N: usize>(self, words: &[u32; N]) -> Self {
        let mut sum = self;
        for word in words {
            sum = sum.word(*word);
        }
        sum
    }

    /// The checksum: the complement of the sum.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !fold(Diff(self.0).sum() as u64)
    }
}

/// Folds a 32-bit sum to 16 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    let sum = (sum & 0xffff).wrapping_add(sum >> 16);
    sum as u16
}

/// The checksum after a difference: ~(~old + diff).
#[inline(always)]
pub const fn updated(old: u16, diff: u32) -> u16 {
    !fold((!old as u64).wrapping_add(diff as u64))
}

/// The checksum after two differences.
#[inline(always)]
pub const fn updated_twice(old: u16, one: u32, other: u32) -> u16 {
    !fold((!old as u64).wrapping_add(one as u64).wrapping_add(other as u64))
}

/// The transport checksum after a rewrite, for a packet that carries a complete one; `None` leaves
/// it as it is.
#[inline(always)]
pub const fn adjusted(old: u16, change: &ChecksumChange) -> Option<u16> {
    if change.udp && old == 0 {
        return None;
    }
    let new = updated_twice(old, change.pseudo, change.header);
    if change.udp && new == 0 { Some(0xffff) } else { Some(new) }
}

/// The sum of the pseudo header after a rewrite, for a packet whose checksum is completed later (by
/// offload): such a field is not complemented and covers the addresses only.
#[inline(always)]
pub const fn adjusted_partial(old: u16, change: &ChecksumChange) -> Option<u16> {
    if change.udp && old == 0 {
        return None;
    }
    let new = fold((old as u64).wrapping_add(change.pseudo as u64));
    if change.udp && new == 0 { Some(0xffff) } else { Some(new) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(words: &[u16]) -> u16 {
        let mut sum = words.iter().map(|word| u64::from(*word)).sum::<u64>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_full_sum(
            mut words in proptest::collection::vec(any::<u16>(), 4..20),
            changes in proptest::collection::vec((any::<usize>(), any::<u16>()), 0..6),
        ) {
            // A zero word sum has two representations; real headers are never all zero.
            words[0] |= 1;
            let before = full(&words);
            let mut diff = Diff::default();
            for (index, value) in changes {
                let index = 1 + index % (words.len() - 1);
                diff = diff.half(words[index], value);
                words[index] = value;
            }
            prop_assert_eq!(updated(before, diff.sum()), full(&words));
        }

        #[test]
        fn a_sum_from_scratch_is_the_complement_of_all_words(
            words in proptest::array::uniform8(any::<u32>()),
        ) {
            let halves: Vec<u16> =
                words.iter().flat_map(|word| [*word as u16, (*word >> 16) as u16]).collect();
            prop_assert_eq!(Sum::default().words(&words).checksum(), full(&halves));
        }

        #[test]
        fn a_udp_checksum_of_zero_stays_and_a_computed_one_never_is_zero(
            old in any::<u16>(), pseudo in any::<u32>(), header in any::<u32>(),
        ) {
            let change = ChecksumChange { pseudo, header, udp: true, ipv6: false };
            match adjusted(old, &change) {
                None => prop_assert_eq!(old, 0),
                Some(new) => prop_assert!(old != 0 && new != 0),
            }
        }
    }
}
