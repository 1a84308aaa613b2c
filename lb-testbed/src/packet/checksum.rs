//! Checksums, computed over whole packets the slow and obvious way: nothing here is shared with the
//! code under test.

use std::net::IpAddr;

/// The Internet checksum (RFC 1071) of bytes, as it is written into a header.
pub fn internet(bytes: &[u8]) -> u16 {
    !ones_sum(bytes)
}

/// The sum that is all ones when the checksum within is right.
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        let high = u64::from(pair[0]);
        let low = pair.get(1).copied().map_or(0, u64::from);
        sum += high * 256 + low;
    }
    while sum > 0xffff {
        sum = sum % 0x1_0000 + sum / 0x1_0000;
    }
    u16::try_from(sum).unwrap_or_default()
}

/// The pseudo header of RFC 793 or RFC 8200 section 8.1, followed by the upper-layer bytes.
pub fn with_pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, upper: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            bytes.extend([0, protocol]);
            bytes.extend(u16::try_from(upper.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
        (src, dst) => {
            for ip in [src, dst] {
                match ip {
                    IpAddr::V6(ip) => bytes.extend(ip.octets()),
                    IpAddr::V4(ip) => bytes.extend(ip.to_ipv6_mapped().octets()),
                }
            }
            bytes.extend(u32::try_from(upper.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
        }
    }
    bytes.extend(upper);
    bytes
}

/// `CRC32c` (RFC 9260 appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc % 2 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 1071 section 3.
        assert_eq!(ones_sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        // RFC 3720 appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
