//! Direct packet access, the same for skb and XDP.
//!
//! Each access compares its end with the packet's right before it, by pointer, because only that
//! gives the verifier a range. Loads and stores are single BPF instructions written out: packet
//! data has no alignment, which these instructions accept and Rust's loads do not.
#![expect(unsafe_code, reason = "packet memory is reached through proven pointers only")]

use core::arch::asm;

/// A context that knows where its packet begins and ends.
pub trait Bounds {
    /// Address of the first byte.
    fn data(&self) -> usize;
    /// Address behind the last byte that can be reached directly.
    fn data_end(&self) -> usize;
}

/// Address of `len` bytes at offset `at`, if the packet holds them.
#[inline(always)]
fn checked<B: Bounds>(bounds: &B, at: usize, len: usize) -> Option<usize> {
    let pointer = bounds.data().wrapping_add(at);
    if pointer.wrapping_add(len) > bounds.data_end() { None } else { Some(pointer) }
}

macro_rules! load {
    ($type:literal, $pointer:expr, $offset:expr) => {{
        let value: u64;
        // SAFETY: the caller compared the range with the packet's end; the verifier checks that it
        // did. The instruction needs no alignment. Nobody else writes this packet.
        unsafe {
            asm!(
                concat!("{value} = *(", $type, " *)({pointer} + {offset})"),
                value = lateout(reg) value,
                pointer = in(reg) $pointer,
                offset = const $offset,
                options(nostack, readonly, preserves_flags),
            );
        }
        value
    }};
}

macro_rules! store {
    ($type:literal, $pointer:expr, $offset:expr, $value:expr) => {
        // SAFETY: as for a load.
        unsafe {
            asm!(
                concat!("*(", $type, " *)({pointer} + {offset}) = {value}"),
                pointer = in(reg) $pointer,
                value = in(reg) u64::from($value),
                offset = const $offset,
                options(nostack, preserves_flags),
            );
        }
    };
}

#[inline(always)]
pub fn u8<B: Bounds>(bounds: &B, at: usize) -> Option<u8> {
    let pointer = checked(bounds, at, 1)?;
    Some(load!("u8", pointer, 0) as u8)
}

#[inline(always)]
pub fn u16<B: Bounds>(bounds: &B, at: usize) -> Option<u16> {
    let pointer = checked(bounds, at, 2)?;
    Some(load!("u16", pointer, 0) as u16)
}

#[inline(always)]
pub fn set_u16<B: Bounds>(bounds: &B, at: usize, value: u16) -> Option<()> {
    let pointer = checked(bounds, at, 2)?;
    store!("u16", pointer, 0, value);
    Some(())
}

/// For each index below ten: the access, if the array is that long. Offsets must be constants.
macro_rules! each_word {
    ($n:ident, $do:ident) => {
        $do!($n, 0);
        $do!($n, 1);
        $do!($n, 2);
        $do!($n, 3);
        $do!($n, 4);
        $do!($n, 5);
        $do!($n, 6);
        $do!($n, 7);
        $do!($n, 8);
        $do!($n, 9);
    };
}

#[inline(always)]
pub fn words<const N: usize, B: Bounds>(bounds: &B, at: usize) -> Option<[u32; N]> {
    const { assert!(N <= 10, "each_word goes to ten") };
    let pointer = checked(bounds, at, N * 4)?;
    let mut words = [0; N];
    macro_rules! word {
        ($n:ident, $i:literal) => {
            if let Some(word) = words.get_mut($i) {
                *word = load!("u32", pointer, $i * 4) as u32;
            }
        };
    }
    each_word!(N, word);
    Some(words)
}

#[inline(always)]
pub fn set_words<const N: usize, B: Bounds>(bounds: &B, at: usize, value: &[u32; N]) -> Option<()> {
    const { assert!(N <= 10, "each_word goes to ten") };
    let pointer = checked(bounds, at, N * 4)?;
    macro_rules! word {
        ($n:ident, $i:literal) => {
            if let Some(word) = value.get($i) {
                store!("u32", pointer, $i * 4, *word);
            }
        };
    }
    each_word!(N, word);
    Some(())
}
