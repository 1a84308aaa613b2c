//! Do rules of the older iptables redirect what leaves? Reads the table `nat` as the kernel keeps
//! it, by two socket options.
//!
//! To ask for a table that is not there makes it: its module is loaded, or it is put into the
//! namespace, with connection tracking in its wake. So only a table that is listed is asked for.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use socket2::{Domain, Socket, Type};

use crate::namespaces::netlink::{native_u16, native_u32};
use crate::namespaces::sockopt;

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: i32 = 64;
/// `IPT_SO_GET_ENTRIES` and `IP6T_SO_GET_ENTRIES`.
const GET_ENTRIES: i32 = 65;
/// `struct ipt_getinfo`: name, valid hooks, five entry points, five ends, number and size.
const INFO: usize = 84;
const INFO_HOOKS: usize = 32;
const INFO_ENTRY: usize = 36;
const INFO_UNDERFLOW: usize = 56;
const INFO_SIZE: usize = 80;
/// `struct ipt_get_entries` before its entries: name, size, padding.
const ENTRIES: usize = 40;
/// `struct xt_entry_target` before its data: size, name, revision.
const TARGET: usize = 32;
/// `NF_INET_LOCAL_OUT`.
const LOCAL_OUT: usize = 3;
/// Bytes of a table that are looked at; that of a pod has a few thousand.
const MAX_SIZE: usize = 16 << 20;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

impl Family {
    /// The tables of this thread's network namespace.
    const fn tables(self) -> &'static str {
        match self {
            Self::V4 => "/proc/thread-self/net/ip_tables_names",
            Self::V6 => "/proc/thread-self/net/ip6_tables_names",
        }
    }

    const fn level(self) -> i32 {
        match self {
            Self::V4 => libc::IPPROTO_IP,
            Self::V6 => libc::IPPROTO_IPV6,
        }
    }

    const fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }

    /// Where in an entry the offsets of its target and of the next entry are: behind `struct ipt_ip`
    /// or `struct ip6t_ip6` and the cache flags.
    const fn offsets(self) -> usize {
        match self {
            Self::V4 => 84 + 4,
            Self::V6 => 136 + 4,
        }
    }
}

/// Whether rules in the network namespace of this thread do.
pub(super) fn redirects(family: Family) -> io::Result<bool> {
    let tables = match fs::read_to_string(family.tables()) {
        Ok(tables) => tables,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !tables.lines().any(|table| table == "nat") {
        return Ok(false);
    }
    let socket = Socket::new(family.domain(), Type::DGRAM, None)?;
    let mut info = named(INFO);
    sockopt::option(&socket, family.level(), GET_INFO, &mut info)?;
    let size = native_u32(&info, INFO_SIZE).and_then(|size| usize::try_from(size).ok());
    let size = size.filter(|&size| size <= MAX_SIZE).ok_or(io::ErrorKind::FileTooLarge)?;
    let mut entries = named(ENTRIES + size);
    if let Some(field) = entries.get_mut(32..36) {
        field.copy_from_slice(info.get(INFO_SIZE..INFO).unwrap_or(&[0; 4]));
    }
    // Refused with EAGAIN where the table has changed in between: that is looked at again later.
    sockopt::option(&socket, family.level(), GET_ENTRIES, &mut entries)?;
    let entries = entries.get(ENTRIES..).unwrap_or_default();
    Ok(table_redirects(family, &info, entries))
}

/// A buffer that begins with the name of the table.
fn named(length: usize) -> Vec<u8> {
    let mut buffer = b"nat".to_vec();
    buffer.resize(length, 0);
    buffer
}

/// Whether a packet can get from the chain `OUTPUT` to a rule that redirects.
fn table_redirects(family: Family, info: &[u8], entries: &[u8]) -> bool {
    let word = |at: usize| usize::try_from(native_u32(info, at)?).ok();
    if word(INFO_HOOKS).is_none_or(|hooks| hooks & (1 << LOCAL_OUT) == 0) {
        return false;
    }
    let (Some(first), Some(last)) =
        (word(INFO_ENTRY + 4 * LOCAL_OUT), word(INFO_UNDERFLOW + 4 * LOCAL_OUT))
    else {
        return false;
    };
    let mut seen = BTreeSet::new();
    let mut to_do = vec![first];
    while let Some(mut at) = to_do.pop() {
        // To the end of the chain. An entry that was seen has been followed from there on.
        while seen.insert(at) {
            let Some(entry) = entry(family, entries, at) else { break };
            match entry.target {
                Target::Redirect => return true,
                Target::Jump(to) => to_do.push(to),
                Target::Other => {}
                // Begins the next chain.
                Target::Error => break,
            }
            // The policy of a built-in chain.
            if at == last {
                break;
            }
            at = entry.next;
        }
    }
    false
}

struct Entry {
    target: Target,
    next: usize,
}

enum Target {
    Redirect,
    Jump(usize),
    Error,
    Other,
}

fn entry(family: Family, entries: &[u8], at: usize) -> Option<Entry> {
    let entry = entries.get(at..)?;
    let offset = |which: usize| Some(usize::from(native_u16(entry, family.offsets() + which)?));
    let (target_offset, next_offset) = (offset(0)?, offset(2)?);
    let target = entry.get(target_offset..)?;
    let name = target.get(2..TARGET - 1)?;
    let name = name.split(|&byte| byte == 0).next()?;
    let target = match name {
        b"REDIRECT" => Target::Redirect,
        b"ERROR" => Target::Error,
        // The standard target: a verdict if negative, else the place to go on at.
        b"" => native_u32(target, TARGET)
            .and_then(|verdict| usize::try_from(verdict.cast_signed()).ok())
            .map_or(Target::Other, Target::Jump),
        _ => Target::Other,
    };
    Some(Entry { target, next: at.checked_add(next_offset.max(1))? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETURN: i32 = -5;
    const ACCEPT: i32 = -2;

    /// An entry without matches.
    fn rule(family: Family, name: &[u8], verdict: i32) -> Vec<u8> {
        let begin = family.offsets();
        // Both offsets, then `comefrom` and two counters of eight bytes, aligned.
        let target = (begin + 8).next_multiple_of(8) + 16;
        let mut bytes = vec![0; target + TARGET + 8];
        let length = bytes.len();
        for (at, value) in [(begin, target), (begin + 2, length), (target, TARGET + 8)] {
            bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_ne_bytes());
        }
        bytes[target + 2..target + 2 + name.len()].copy_from_slice(name);
        bytes[target + TARGET..target + TARGET + 4].copy_from_slice(&verdict.to_ne_bytes());
        bytes
    }

    /// Two built-in chains, PREROUTING and OUTPUT, and one of the user's; tells their offsets.
    fn table(family: Family, output_jumps: bool, target: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let size = i32::try_from(rule(family, b"", 0).len()).unwrap();
        let user = 5 * size;
        let rules = [
            rule(family, b"REDIRECT", 0),
            rule(family, b"", ACCEPT),
            // OUTPUT.
            rule(family, b"", if output_jumps { user } else { RETURN }),
            rule(family, b"", ACCEPT),
            // The user's chain begins with its name.
            rule(family, b"ERROR", 0),
            rule(family, target, ACCEPT),
            rule(family, b"", RETURN),
            rule(family, b"ERROR", 0),
        ];
        let mut info = named(INFO);
        let words = [
            (INFO_HOOKS, 0b1001),
            (INFO_ENTRY + 4 * LOCAL_OUT, 2 * size),
            (INFO_UNDERFLOW + 4 * LOCAL_OUT, 3 * size),
        ];
        for (at, value) in words {
            info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        (info, rules.concat())
    }

    #[test]
    fn a_redirect_counts_where_what_leaves_can_reach_it() {
        for family in [Family::V4, Family::V6] {
            let found = |output_jumps, target: &[u8]| {
                let (info, entries) = table(family, output_jumps, target);
                table_redirects(family, &info, &entries)
            };
            assert!(found(true, b"REDIRECT"), "{family:?}");
            assert!(!found(false, b"REDIRECT"), "{family:?}: nobody jumps there");
            assert!(!found(true, b"DNAT"), "{family:?}: only PREROUTING redirects");
            let (mut info, entries) = table(family, true, b"REDIRECT");
            info[INFO_HOOKS..INFO_HOOKS + 4].copy_from_slice(&1_u32.to_ne_bytes());
            assert!(!table_redirects(family, &info, &entries), "no chain for what leaves");
        }
    }

    #[test]
    fn a_table_that_is_cut_or_turns_in_circles_ends() {
        let (info, entries) = table(Family::V4, true, b"REDIRECT");
        for end in 0..entries.len() {
            table_redirects(Family::V4, &info, &entries[..end]);
        }
        let size = i32::try_from(rule(Family::V4, b"", 0).len()).unwrap();
        let mut circle = entries;
        let verdict = 5 * usize::try_from(size).unwrap();
        circle.splice(verdict.., rule(Family::V4, b"", 2 * size));
        assert!(!table_redirects(Family::V4, &info, &circle));
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(mut info: [u8; INFO], entries: Vec<u8>, first: u16) {
            table_redirects(Family::V6, &info, &entries);
            info[INFO_HOOKS] |= 1 << LOCAL_OUT;
            info[INFO_ENTRY + 12..INFO_ENTRY + 16].copy_from_slice(&u32::from(first % 64).to_ne_bytes());
            table_redirects(Family::V4, &info, &entries);
        }
    }
}
