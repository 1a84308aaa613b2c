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
//! 6. frontends: those that are gone first, so that they make room in a full map, then new ones
//!    and those that lead elsewhere;
//! 7. flags that backends lose, by single stores.
//!
//! What went out of use is not touched but for such flags until a grace period has passed, because
//! a program may have read the way to it already: [`clear`] comes after that.
//!
//! A stop between 1 and 3 leaves backends and slots that nobody reaches; between 3 and 6 a frontend
//! that was to move still reaches its old service port, which is whole; before 7 some backends of a
//! set that is no longer committed look alive, which only UDP flows that use them see.
//! [`crate::plan::Planner::adopt`] finds all of these.

use lb_common::abi::{
    Backend, BackendId, BackendWord, FactsWord, FrontendWord, MetaWord, NAME_LEN, Name, Scope,
    ServicePortId, SetWord,
};

use crate::plan::{Batch, FrontKey, FrontendChange, PortChange, Retired};

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
    /// What tools see of the agent.
    Meta(MetaWord, u64),
}

impl Op {
    /// How many bytes it stores in shared memory; frontends go through system calls instead.
    pub fn bytes_stored(&self) -> usize {
        match self {
            Self::Name(..) => NAME_LEN,
            Self::Backend(..) => size_of::<Backend>(),
            Self::BackendWord(..) => size_of::<BackendWord>(),
            Self::Slots(_, ids) => size_of_val(ids.as_slice()),
            Self::Set(..) => size_of::<SetWord>(),
            Self::Facts(..) => size_of::<FactsWord>(),
            Self::Meta(..) => size_of::<u64>(),
            Self::FrontendDelete(_) | Self::FrontendPut(..) => 0,
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
            FrontendChange::Put(key, id) => puts.push(Op::FrontendPut(key, key.word(id))),
        }
    }
    let mut ops = names;
    for part in [backends, slots, commits, facts, emptied, deletes, puts, losses] {
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
        }
    }
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SetChange;
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
}
