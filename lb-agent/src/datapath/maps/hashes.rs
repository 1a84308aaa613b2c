//! Frontends, addresses and source ranges: elements of hashes and tries, written in as few system calls
//! as the kernel allows.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

use lb_common::abi::{AddressFlags, FILTER_NODE, FILTER_VIP, map};

use super::Maps;
use crate::datapath::Error;
use crate::datapath::batch::{self, Batch, Hash};
use crate::diff::Op;
use crate::model::Family;
use crate::plan::{FrontKey, SourceRange};

impl Maps {
    /// Operations on one map, all of one kind.
    pub(super) fn write(&self, run: Run, ops: &[Op]) -> Vec<(usize, Error)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::FrontendPut(key, word) => {
                    // That of a node port is looked up at addresses of the node.
                    if key.is_node_port() {
                        self.note_node_port(key.proto(), key.port());
                    } else {
                        self.note_address(key.addr(), FILTER_VIP);
                    }
                    key_bytes(key, &mut keys);
                    values.extend_from_slice(&word.0.to_ne_bytes());
                }
                Op::FrontendDelete(key) => key_bytes(key, &mut keys),
                Op::AddressPut(addr, word) => {
                    self.note_address(*addr, class(word.flags()));
                    address_bytes(*addr, &mut keys);
                    values.extend_from_slice(&word.0.to_ne_bytes());
                }
                Op::AddressDelete(addr) => address_bytes(*addr, &mut keys),
                Op::SourceRangePut(range) => {
                    range_bytes(range, &mut keys);
                    values.extend_from_slice(&1_u64.to_ne_bytes());
                }
                Op::SourceRangeDelete(range) => range_bytes(range, &mut keys),
                _ => {}
            }
        }
        let (fd, name) = match run.map {
            Table::Frontends4 => (&self.frontends4, map::FRONTENDS4),
            Table::Frontends6 => (&self.frontends6, map::FRONTENDS6),
            Table::Addresses4 => (&self.addresses4, map::ADDRESSES4),
            Table::Addresses6 => (&self.addresses6, map::ADDRESSES6),
            Table::SourceRanges4 => (&self.source_ranges4, map::SOURCE_RANGES4),
            Table::SourceRanges6 => (&self.source_ranges6, map::SOURCE_RANGES6),
        };
        let kind = if run.deletes { Batch::Delete } else { Batch::Update };
        let failed = match Hash::new(fd.as_fd()) {
            Ok(hash) => write_many(&hash, kind, &mut keys, &mut values),
            Err(error) => {
                let why = |_| io::Error::new(error.kind(), error.to_string());
                let each = (0..ops.len()).map(|i| (i, why(i)));
                return each.map(|(i, e)| (i, Error::system(format!("use {name}"))(e))).collect();
            }
        };
        let verb = if run.deletes { "delete from" } else { "insert into" };
        failed
            .into_iter()
            .map(|(i, error)| (i, Error::system(format!("{verb} {name}"))(error)))
            .collect()
    }
}

/// Writes what `keys` and `values` hold, in as few calls as the kernel allows; an element that a
/// batch stops at is tried once more on its own, which is how a passing lack of memory in the
/// kernel's allocator is overcome.
fn write_many(
    hash: &Hash<'_>,
    kind: Batch,
    keys: &mut [u8],
    values: &mut [u8],
) -> Vec<(usize, std::io::Error)> {
    let key_size = hash.key_size();
    let count = keys.len() / key_size.max(1);
    let mut failed = Vec::new();
    let mut batches = count > 1;
    let mut done = 0;
    while done < count {
        if batches {
            let keys = keys.get_mut(done * key_size..).unwrap_or_default();
            let values = values.get_mut(done * batch::VALUE_SIZE..).unwrap_or_default();
            let (part, result) = hash.batch(kind, keys, values, None);
            match result {
                Ok(()) => break,
                // Of a kernel without batches, which leaves the count as it was.
                Err(error) if unsupported(&error) => {
                    batches = false;
                    continue;
                }
                Err(_) => done += part.min(count - done),
            }
        }
        let key = keys.get(done * key_size..(done + 1) * key_size).unwrap_or_default();
        let result = if kind == Batch::Delete {
            hash.delete(key)
        } else {
            let at = done * batch::VALUE_SIZE;
            let mut value = [0; batch::VALUE_SIZE];
            value.copy_from_slice(values.get(at..at + batch::VALUE_SIZE).unwrap_or(&[0; 8]));
            hash.update(key, value)
        };
        match result {
            Ok(()) => {}
            Err(error) if kind == Batch::Delete && error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => failed.push((done, error)),
        }
        done += 1;
    }
    failed
}

fn unsupported(error: &std::io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// The bytes of a key, as they lie in the map.
pub(in crate::datapath) fn key_bytes(key: &FrontKey, bytes: &mut Vec<u8>) {
    let mut add = |addr: &[u32], port: u16, proto: u8| {
        bytes.extend(addr.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(port.to_ne_bytes());
        bytes.extend([proto, 0]);
    };
    match key {
        FrontKey::V4(key) => add(&key.addr, key.port, key.proto),
        FrontKey::V6(key) => add(&key.addr, key.port, key.proto),
    }
}

/// The bytes of an address, as they lie in a map.
fn address_bytes(addr: IpAddr, bytes: &mut Vec<u8>) {
    match addr {
        IpAddr::V4(addr) => bytes.extend(addr.octets()),
        IpAddr::V6(addr) => bytes.extend(addr.octets()),
    }
}

/// The bytes of the key of a source range, as they lie in the map.
fn range_bytes(range: &SourceRange, bytes: &mut Vec<u8>) {
    let SourceRange { id, range } = range;
    bytes.extend((32 + u32::from(range.prefix())).to_ne_bytes());
    // What a trie compares is in network order.
    bytes.extend(id.to_be_bytes());
    address_bytes(range.first(), bytes);
}

/// The bits in the filter of an address that has these flags.
fn class(flags: u32) -> u32 {
    let of_services = AddressFlags::CLUSTER_IP | AddressFlags::VIP;
    let vip = if flags & of_services != 0 { FILTER_VIP } else { 0 };
    let node = if flags & !of_services != 0 { FILTER_NODE } else { 0 };
    vip | node
}

/// A hash or trie that the agent writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Frontends4,
    Frontends6,
    Addresses4,
    Addresses6,
    SourceRanges4,
    SourceRanges6,
}

/// What operations of one batch have in common.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    map: Table,
    deletes: bool,
}

/// Which batch an operation can go in.
pub(super) fn run(op: &Op) -> Option<Run> {
    let frontends = |key: &FrontKey| match key {
        FrontKey::V4(_) => Table::Frontends4,
        FrontKey::V6(_) => Table::Frontends6,
    };
    let addresses = |addr: &IpAddr| match addr {
        IpAddr::V4(_) => Table::Addresses4,
        IpAddr::V6(_) => Table::Addresses6,
    };
    let ranges = |range: &SourceRange| match range.range.family() {
        Family::V4 => Table::SourceRanges4,
        Family::V6 => Table::SourceRanges6,
    };
    let (map, deletes) = match op {
        Op::FrontendPut(key, _) => (frontends(key), false),
        Op::FrontendDelete(key) => (frontends(key), true),
        Op::AddressPut(addr, _) => (addresses(addr), false),
        Op::AddressDelete(addr) => (addresses(addr), true),
        Op::SourceRangePut(range) => (ranges(range), false),
        Op::SourceRangeDelete(range) => (ranges(range), true),
        _ => return None,
    };
    Some(Run { map, deletes })
}
