//! How do the maps hold addresses, masks and what an address is?

use std::net::IpAddr;

use lb_common::abi::{AddressWord, V4};
use lb_common::select::narrow;

/// An address as the maps hold it: four words in network order, IPv4 in the first.
pub fn words(addr: IpAddr) -> [u32; 4] {
    let mut bytes = [0; 16];
    match addr {
        IpAddr::V4(addr) => bytes[..4].copy_from_slice(&addr.octets()),
        IpAddr::V6(addr) => bytes = addr.octets(),
    }
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    words
}

/// The address in such words.
pub fn address(words: &[u32; 4], v6: bool) -> IpAddr {
    if !v6 {
        return IpAddr::from(words[0].to_ne_bytes());
    }
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::from(bytes)
}

/// The element of `ADDRESSES4` or `ADDRESSES6` for an address.
pub fn address_word(addr: &IpAddr, flags: u32) -> AddressWord {
    let words = words(*addr);
    if addr.is_ipv4() {
        AddressWord::new(&narrow::<V4>(&words), flags)
    } else {
        AddressWord::new(&words, flags)
    }
}

/// The flags in such an element, if it belongs to the address.
pub fn address_flags(addr: &IpAddr, word: AddressWord) -> u32 {
    let words = words(*addr);
    if addr.is_ipv4() { word.flags_for(&narrow::<V4>(&words)) } else { word.flags_for(&words) }
}

/// The netmask of a prefix, in the family of an address.
pub fn mask(addr: &IpAddr, prefix: u8) -> IpAddr {
    let gone = |bits: u32| bits.saturating_sub(u32::from(prefix));
    match addr {
        IpAddr::V4(_) => IpAddr::from(u32::MAX.checked_shl(gone(32)).unwrap_or(0).to_be_bytes()),
        IpAddr::V6(_) => IpAddr::from(u128::MAX.checked_shl(gone(128)).unwrap_or(0).to_be_bytes()),
    }
}

/// 0 for IPv4, 1 for IPv6.
pub(super) fn family_index(addr: &IpAddr) -> usize {
    usize::from(addr.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_flags_and_take_no_other_words() {
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        for (addr, other) in [(a, b), (b, a)] {
            let word = address_word(&addr, 6);
            assert_eq!((address_flags(&addr, word), address_flags(&other, word)), (6, 0));
        }
    }

    #[test]
    fn masks_have_as_many_bits_as_the_prefix() {
        for (addr, prefix, wanted) in [
            ("10.0.0.1", 12, "255.240.0.0"),
            ("10.0.0.1", 32, "255.255.255.255"),
            ("10.0.0.1", 0, "0.0.0.0"),
            ("fd00::1", 112, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"),
            ("fd00::1", 0, "::"),
        ] {
            assert_eq!(mask(&addr.parse().unwrap(), prefix), wanted.parse::<IpAddr>().unwrap());
        }
    }
}
