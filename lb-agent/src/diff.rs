//! In which order are changes written, so that a stop after any of them leaves a working table?
//!
//! A kernel program goes from a frontend to the facts and the set of its service port, from there
//! to a slot and to a backend. So what is reached last is written first:
//!
//! 1. names, new backends (address before word) and flags that backends gain;
//! 2. slots of new sets, in free ranges;
//! 3. the words of new sets: **the commit**, one aligned 64-bit store for all frontends at once;
//! 4. facts, which may lead to another scope than before;
//! 5. the words of sets that became empty: not before nobody is sent to them any more;
//! 6. source ranges, before the frontends that they guard say so;
//! 7. frontends that are gone, then addresses that are gone: first, so that they make room in full
//!    maps;
//! 8. addresses (each after its bit in the filter), then frontends that are new, lead elsewhere, or
//!    are guarded now or not any more (each after its bit in the filter, or among the node ports): a
//!    frontend is never reached at an address that does not count as one;
//! 9. ranges of Services' addresses, which guard what is in no table;
//! 10. flags that backends lose, by single stores.
//!
//! What went out of use is not touched but for such flags until a grace period has passed, because
//! a program may have read the way to it already: [`clear`] comes after that.
//!
//! Source ranges that are gone wait as well: who is let in before and after is let in meanwhile.
//!
//! A stop between 1 and 3 leaves backends and slots that nobody reaches; between 3 and 8 a frontend
//! that was to move still reaches its old service port, which is whole, and one that was to be guarded
//! is as open as it was; within 7 and 8 an address may be left over, whose other ports reject for
//! longer than they should; before 10 some backends of a
//! set that is no longer committed look alive, which only UDP flows that use them see.
//! [`crate::plan::Planner::adopt`] finds all of these.

use std::net::IpAddr;

use lb_common::abi::{
    AddressWord, Backend, BackendId, BackendWord, FactsWord, FrontendWord, MetaWord, NAME_LEN,
    Name, SERVICE_CIDRS, Scope, ServiceCidr, ServicePortId, SetWord, V4, V6,
};

use crate::model::Family;
use crate::plan::{
    AddressChange, Batch, Cidr, FrontKey, FrontendChange, PortChange, Retired, SourceRange,
};

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The name of a service port.
    Name(ServicePortId, Box<Name>),
    /// A whole backend: its word is stored last.
    Backend(BackendId, Backend),
    /// The word of a backend.
    BackendWord(BackendId, BackendWord),
    /// Slots from this one on.
    Slots(u32, Vec<BackendId>),
    /// The word of a set, by index in `SETS`; stored with release order.
    Set(u32, SetWord),
    /// Facts.
    Facts(ServicePortId, FactsWord),
    /// A frontend that is gone.
    FrontendDelete(FrontKey),
    /// A frontend that is new or leads elsewhere.
    FrontendPut(FrontKey, FrontendWord),
    /// An address that is gone.
    AddressDelete(IpAddr),
    /// An address that is new or means something else.
    AddressPut(IpAddr, AddressWord),
    /// All ranges of a family; the rest of the map becomes zero.
    ServiceCidrs(Family, Vec<Cidr>),
    /// A source range that is new.
    SourceRangePut(SourceRange),
    /// A source range that is gone.
    SourceRangeDelete(SourceRange),
    /// What tools see of the agent.
    Meta(MetaWord, u64),
}

impl Op {
    /// How many bytes it stores in shared memory, at most; frontends, addresses and source ranges go
    /// through system calls instead.
    pub fn bytes_stored(&self) -> usize {
        match self {
            Self::Name(..) => NAME_LEN,
            Self::Backend(..) => size_of::<Backend>(),
            Self::BackendWord(..) => size_of::<BackendWord>(),
            Self::Slots(_, ids) => size_of_val(ids.as_slice()),
            Self::Set(..) => size_of::<SetWord>(),
            Self::Facts(..) => size_of::<FactsWord>(),
            Self::Meta(..) => size_of::<u64>(),
            Self::ServiceCidrs(Family::V4, _) => {
                SERVICE_CIDRS as usize * size_of::<ServiceCidr<V4>>()
            }
            Self::ServiceCidrs(Family::V6, _) => {
                SERVICE_CIDRS as usize * size_of::<ServiceCidr<V6>>()
            }
            Self::FrontendDelete(_)
            | Self::FrontendPut(..)
            | Self::AddressDelete(_)
            | Self::AddressPut(..)
            | Self::SourceRangePut(_)
            | Self::SourceRangeDelete(_) => 0,
        }
    }
}

/// The operations of a batch, in order.
pub fn operations(batch: Batch) -> Vec<Op> {
    let mut names = Vec::new();
    let mut backends = Vec::new();
    let mut slots = Vec::new();
    let mut commits = Vec::new();
    let mut facts = Vec::new();
    let mut emptied = Vec::new();
    let mut losses = Vec::new();
    for change in batch.ports {
        let PortChange { id, name, facts: new_facts, sets, added, words } = change;
        names.extend(name.map(|name| Op::Name(id, name)));
        backends.extend(added.into_iter().map(|(id, backend)| Op::Backend(id, backend)));
        for (id, before, after) in words {
            let both = before.flags() | after.flags();
            if both != before.flags() {
                let gained = BackendWord::new(after.port(), both, after.generation());
                backends.push(Op::BackendWord(id, gained));
            }
            if both != after.flags() {
                losses.push(Op::BackendWord(id, after));
            }
        }
        for (scope, set) in [Scope::Cluster, Scope::Local].into_iter().zip(sets) {
            let Some(set) = set else { continue };
            let index = scope.index(id);
            if set.slots.is_empty() {
                emptied.push(Op::Set(index, set.word));
            } else {
                slots.push(Op::Slots(set.word.first(), set.slots));
                commits.push(Op::Set(index, set.word));
            }
        }
        facts.extend(new_facts.map(|facts| Op::Facts(id, facts)));
    }
    let (mut deletes, mut puts) = (Vec::new(), Vec::new());
    for change in batch.frontends {
        match change {
            FrontendChange::Delete(key) => deletes.push(Op::FrontendDelete(key)),
            FrontendChange::Put(key, word) => puts.push(Op::FrontendPut(key, word)),
        }
    }
    let (mut addresses_gone, mut addresses) = (Vec::new(), Vec::new());
    for change in batch.addresses {
        match change {
            AddressChange::Delete(addr) => addresses_gone.push(Op::AddressDelete(addr)),
            AddressChange::Put(addr, word) => addresses.push(Op::AddressPut(addr, word)),
        }
    }
    let cidrs = batch.service_cidrs.into_iter();
    let cidrs = cidrs.map(|(family, list)| Op::ServiceCidrs(family, list)).collect();
    let ranges = batch.source_ranges.into_iter().map(Op::SourceRangePut).collect();
    let mut ops = names;
    for part in [
        backends,
        slots,
        commits,
        facts,
        emptied,
        ranges,
        deletes,
        addresses_gone,
        addresses,
        puts,
        cidrs,
        losses,
    ] {
        ops.extend(part);
    }
    ops
}

/// Clears what became free, after its grace period and before anything is given to others, so that
/// the tables show nothing that is not.
pub fn clear(retired: &[Retired]) -> Vec<Op> {
    let mut ops = Vec::new();
    for retired in retired {
        match *retired {
            Retired::ServicePort(id) => ops.extend([
                Op::Set(Scope::Cluster.index(id), SetWord::REJECT),
                Op::Set(Scope::Local.index(id), SetWord::REJECT),
                Op::Facts(id, FactsWord::default()),
                Op::Name(id, Box::new([0; NAME_LEN])),
            ]),
            Retired::Backend(id, generation) => {
                // The generation outlives the backend: records may still hold it.
                let word = BackendWord::new(0, 0, generation).0;
                ops.push(Op::Backend(id, Backend { word, ..Backend::default() }));
            }
            Retired::SourceRange(range) => ops.push(Op::SourceRangeDelete(range)),
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Frontend, FrontendKind, Protocol};
    use crate::plan::{SetChange, address_word};
    use lb_common::abi::BackendFlags;

    #[test]
    fn flags_are_gained_before_the_commit_and_lost_after_the_frontends() {
        let word = |flags| BackendWord::new(80, flags, 1);
        let (serving, member) = (BackendFlags::SERVING, BackendFlags::IN_CLUSTER);
        let batch = Batch {
            ports: vec![PortChange {
                id: 3,
                sets: [Some(SetChange { word: SetWord::new(8, 1), slots: vec![5] }), None],
                words: vec![
                    (4, word(member | serving), word(serving)),
                    (5, word(serving), word(member)),
                ],
                ..PortChange::default()
            }],
            ..Batch::default()
        };
        assert_eq!(
            operations(batch),
            [
                Op::BackendWord(5, word(member | serving)),
                Op::Slots(8, vec![5]),
                Op::Set(Scope::Cluster.index(3), SetWord::new(8, 1)),
                Op::BackendWord(4, word(serving)),
                Op::BackendWord(5, word(member)),
            ]
        );
    }

    #[test]
    fn a_set_is_emptied_after_the_facts_that_lead_elsewhere() {
        let full = Some(SetChange { word: SetWord::new(0, 1), slots: vec![1] });
        let empty = Some(SetChange { word: SetWord::DROP, slots: vec![] });
        let facts = FactsWord::new(1, 0);
        let batch = Batch {
            ports: vec![PortChange {
                id: 1,
                facts: Some(facts),
                sets: [full, empty],
                ..PortChange::default()
            }],
            ..Batch::default()
        };
        let ops = operations(batch);
        assert_eq!(
            ops[1..],
            [Op::Set(2, SetWord::new(0, 1)), Op::Facts(1, facts), Op::Set(3, SetWord::DROP)]
        );
    }

    #[test]
    fn an_address_is_one_before_its_frontends_come_and_until_they_are_gone() {
        let addr = |n: u8| IpAddr::from([10, 96, 0, n]);
        let key = |n| FrontKey::new(Frontend::cluster_ip(addr(n), 80), Protocol::Tcp);
        let word = key(2).word(7, FrontendKind::ClusterIp);
        let flags = address_word(&addr(2), 1);
        let cidrs = vec![(addr(0), 24)];
        let batch = Batch {
            frontends: vec![FrontendChange::Put(key(2), word), FrontendChange::Delete(key(1))],
            addresses: vec![AddressChange::Put(addr(2), flags), AddressChange::Delete(addr(1))],
            service_cidrs: vec![(Family::V4, cidrs.clone())],
            ..Batch::default()
        };
        assert_eq!(
            operations(batch),
            [
                Op::FrontendDelete(key(1)),
                Op::AddressDelete(addr(1)),
                Op::AddressPut(addr(2), flags),
                Op::FrontendPut(key(2), word),
                Op::ServiceCidrs(Family::V4, cidrs),
            ]
        );
    }
}
