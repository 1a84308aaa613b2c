//! Ranges of addresses that come and go, as the agent stores them.

use std::net::IpAddr;

use super::HostTables;
use super::builder::{Words, words};
use super::family::OfFamily;
use super::node::range;
use crate::abi::{Ip, ServicePortId, SourceRangeKey};

impl HostTables {
    /// Stores a range of sources that a service port lets through, or removes it.
    pub fn store_source_range(&self, id: ServicePortId, first: IpAddr, prefix: u8, there: bool) {
        match words(first) {
            Words::V4(first) => self.store_range_of(id, first, prefix, there),
            Words::V6(first) => self.store_range_of(id, first, prefix, there),
        }
    }

    /// Makes these all ranges of pods' addresses, of both families.
    pub fn store_local_cidrs(&self, ranges: impl IntoIterator<Item = (IpAddr, u8)>) {
        self.v4.local_cidrs.borrow_mut().clear();
        self.v6.local_cidrs.borrow_mut().clear();
        for (first, prefix) in ranges {
            self.add_local_cidr(first, prefix);
        }
    }

    fn store_range_of<const N: usize>(
        &self,
        id: ServicePortId,
        first: Ip<N>,
        prefix: u8,
        there: bool,
    ) where
        Self: OfFamily<N>,
    {
        let addr = range(first, prefix).addr;
        let key = SourceRangeKey { prefix: 32 + u32::from(prefix), service_port: id.to_be(), addr };
        let mut ranges = self.family().source_ranges.borrow_mut();
        if there {
            ranges.insert(key);
        } else {
            ranges.remove(&key);
        }
    }
}
