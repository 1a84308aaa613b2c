//! How often a CPU tells senders that their packets are refused.

/// Answers per tick and CPU: about 4,000 per second with 1,000 jiffies in it, 1,000 with 250. More
/// than clients need that ask once and give up, and too few to make a flood of ours.
pub const REFUSALS_PER_TICK: u32 = 1_000;

/// Value of `REJECTS`: the tick of the last answer in the high half (256 jiffies, as everywhere), how
/// many were given in it in the low half.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusalWord(pub u64);

impl RefusalWord {
    /// The word after one more answer; `None` if there were enough in this tick.
    #[inline(always)]
    #[must_use]
    pub const fn spend(self, now: u32) -> Option<Self> {
        // Not ordered: a clock that goes round only begins a tick.
        let given = if self.0 >> 32 == now as u64 { self.0 & 0xffff_ffff } else { 0 };
        if given >= REFUSALS_PER_TICK as u64 {
            return None;
        }
        Some(Self(((now as u64) << 32) | given.wrapping_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_tick_has_its_answers_and_no_more(
            start in any::<u64>(),
            asked in proptest::collection::vec((0_u32..3, 0_usize..2_500), 1..6),
            first in any::<u32>(),
        ) {
            let (mut word, mut now) = (RefusalWord(start), first);
            // What is there at first may be of this tick.
            let mut given = if start >> 32 == u64::from(first) { start & 0xffff_ffff } else { 0 };
            for (later, times) in asked {
                now = now.wrapping_add(later);
                if later > 0 {
                    given = 0;
                }
                for _ in 0..times {
                    let next = word.spend(now);
                    prop_assert_eq!(next.is_some(), given < u64::from(REFUSALS_PER_TICK));
                    given += u64::from(next.is_some());
                    word = next.unwrap_or(word);
                }
            }
        }
    }
}
