//! Ranges of Services' or pods' addresses, in shared memory: how are they changed while programs read them?

use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::abi::{ServiceCidr, V4, V6};

use super::{Maps, halves, joined};
use crate::model::Family;
use crate::plan::{Cidr, address, mask, words};

/// 64-bit words of an element of `SERVICE_CIDRS4` and of `SERVICE_CIDRS6`.
pub(super) const CIDR_WORDS: [usize; 2] =
    [size_of::<ServiceCidr<V4>>() / 8, size_of::<ServiceCidr<V6>>() / 8];

impl Maps {
    /// The ranges of Services' addresses of a family.
    pub fn service_cidrs(&self, family: Family) -> Vec<Cidr> {
        read(&self.service_cidrs[usize::from(family == Family::V6)], family)
    }

    /// Writes what differs.
    pub(super) fn store_cidrs(&self, family: Family, list: &[Cidr]) {
        store(&self.service_cidrs[usize::from(family == Family::V6)], family, list);
    }
}

/// The ranges in an array of a family.
pub(in crate::datapath) fn read(array: &[AtomicU64], family: Family) -> Vec<Cidr> {
    let v6 = family == Family::V6;
    let elements = array.chunks_exact(CIDR_WORDS[usize::from(v6)]);
    let ranges = elements.map_while(|element| {
        let halves: Vec<u32> =
            element.iter().flat_map(|word| halves(word.load(Ordering::Acquire))).collect();
        let (addr, mask) = halves.split_at_checked(halves.len() / 2)?;
        let mut addr_words = [0; V6];
        addr_words.iter_mut().zip(addr).for_each(|(to, from)| *to = *from);
        // As the programs see it: a zero mask ends the list.
        let prefix: u32 = mask.iter().map(|word| word.count_ones()).sum();
        (prefix > 0).then(|| (address(&addr_words, v6), u8::try_from(prefix).unwrap_or(128)))
    });
    ranges.collect()
}

/// Writes what differs. One of IPv4 is a single store; while one of IPv6 changes, its mask has no
/// bit where the address begins, so that it covers nothing. Only a program that has read its
/// address and not yet its mask may take one packet wrongly.
pub(in crate::datapath) fn store(array: &[AtomicU64], family: Family, list: &[Cidr]) {
    let elements = array.chunks_exact(CIDR_WORDS[usize::from(family == Family::V6)]);
    for (at, element) in elements.enumerate() {
        let wanted = cidr_words(list.get(at).copied(), family);
        if element.iter().zip(&wanted).all(|(word, new)| word.load(Ordering::Relaxed) == *new) {
            continue;
        }
        if let ([word], [new]) = (element, &wanted[..]) {
            word.store(*new, Ordering::Release);
            continue;
        }
        let (addr, mask) = element.split_at(element.len() / 2);
        for word in mask {
            word.store(0, Ordering::SeqCst);
        }
        for (word, new) in addr.iter().zip(&wanted) {
            word.store(*new, Ordering::SeqCst);
        }
        for (word, new) in mask.iter().zip(wanted.iter().skip(addr.len())).rev() {
            word.store(*new, Ordering::SeqCst);
        }
    }
}

/// The words of an element of `SERVICE_CIDRS4` or `SERVICE_CIDRS6`.
fn cidr_words(cidr: Option<Cidr>, family: Family) -> Vec<u64> {
    let Some((addr, prefix)) = cidr else {
        return vec![0; CIDR_WORDS[usize::from(family == Family::V6)]];
    };
    let (addr, mask) = (words(addr), words(mask(&addr, prefix)));
    match family {
        Family::V4 => vec![joined(addr[0], mask[0])],
        Family::V6 => {
            [addr, mask].iter().flat_map(|w| [joined(w[0], w[1]), joined(w[2], w[3])]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::anonymous;
    use super::*;
    use crate::diff::Op;
    use crate::plan::Capacity;

    const CAPACITY: Capacity = Capacity {
        service_ports: 1,
        backends: 1,
        slots: 1,
        frontends: 1,
        addresses: 1,
        source_ranges: 1,
    };

    fn cidr(text: &str, prefix: u8) -> Cidr {
        (text.parse().unwrap(), prefix)
    }

    #[test]
    fn ranges_are_read_as_they_were_written_and_shorter_lists_end_earlier() {
        let maps = anonymous(CAPACITY).unwrap();
        let v4 = vec![cidr("10.96.0.0", 12), cidr("10.0.0.0", 31)];
        let v6 = vec![cidr("fd00::", 112), cidr("fd01::", 64), cidr("fd02::2", 127)];
        let ops =
            [Op::ServiceCidrs(Family::V4, v4.clone()), Op::ServiceCidrs(Family::V6, v6.clone())];
        assert!(maps.apply(&ops).is_empty());
        assert_eq!((maps.service_cidrs(Family::V4), maps.service_cidrs(Family::V6)), (v4, v6));
        let fewer = vec![cidr("fd03::", 112)];
        maps.apply(&[Op::ServiceCidrs(Family::V6, fewer.clone())]);
        assert_eq!(maps.service_cidrs(Family::V6), fewer);
        maps.apply(&[Op::ServiceCidrs(Family::V6, vec![])]);
        assert_eq!(maps.service_cidrs(Family::V6), []);
    }
}
