//! The node: by which interface does the packet arrive, who may its client be, and where would it be
//! sent on?

use lb_common::abi::{
    InterfaceFlags, InterfaceWord, Ip, NextHop, RefusalWord, ServiceCidr, address_in_turn,
};
use lb_common::tables::{LocalMode, NodeTables, RefusalTables, RouteStatus, RouteTables};

use super::{Recorder, ip_of};
use crate::cli::explain::reader::{FamilyReader, Reader};

/// Nobody is answered here.
impl<R: Reader> RefusalTables for Recorder<'_, R> {
    fn refusals(&self) -> Option<RefusalWord> {
        None
    }

    fn set_refusals(&self, _: RefusalWord) {}
}

impl<R: Reader> NodeTables for Recorder<'_, R> {
    fn arrival(&self) -> u32 {
        self.arrival
    }

    fn own(&self) -> bool {
        false
    }

    fn interface(&self, ifindex: u32) -> Option<InterfaceWord> {
        let found = self.reader.interface(ifindex);
        let word = found.map(|interface| {
            if interface.is_for(ifindex) {
                InterfaceWord::new(interface.flags, interface.group)
            } else {
                InterfaceWord::TORN
            }
        });
        if ifindex == self.arrival && !self.told_interface.replace(true) {
            let is = match word {
                None if ifindex == 0 => "a pod's".to_owned(),
                None => "not known, and taken for one that leads to a pod".to_owned(),
                Some(word) if word.has(InterfaceFlags::OFF_NODE) => {
                    self.outside.set(true);
                    "an uplink or overlay: from outside the node".to_owned()
                }
                Some(word) if word.has(InterfaceFlags::LOCAL_POD) => "a pod's".to_owned(),
                Some(_) => "of this node, and no pod's to the local detector".to_owned(),
            };
            self.note("interface", format!("arrives by {}: {is}", self.name(ifindex)));
        }
        word
    }

    fn node_ports(&self, index: u32) -> u64 {
        self.reader.node_ports(index)
    }

    fn local_mode(&self) -> LocalMode {
        let mode = self.reader.settings().local_mode;
        let how = match mode {
            LocalMode::Interface => "goes by the interface",
            LocalMode::Range => "goes by the source",
            LocalMode::None => "there is none: who is a pod of this node is not known",
        };
        self.note("local_detector", format!("local detector: {how}"));
        mode
    }

    fn masquerade_all(&self) -> bool {
        let all = self.reader.settings().masquerade_all;
        if all {
            self.note("masquerade_all", "every client of a clusterIP is masqueraded".to_owned());
        }
        self.masqueraded.set(all);
        all
    }

    fn snat_first(&self) -> u32 {
        self.reader.settings().snat_first
    }

    fn snat_count(&self) -> u32 {
        self.reader.settings().snat_count
    }

    /// The node keeps it to itself: which port it is is not told.
    fn seed(&self) -> u32 {
        0
    }

    fn egress(&self) -> u32 {
        self.egress.get()
    }

    /// What is asked for is the route.
    fn found_hop(&self) -> Option<NextHop> {
        None
    }

    fn next_hop(&self, _: u32) -> Option<NextHop> {
        None
    }

    fn set_next_hop(&self, _: u32, _: &NextHop) {}

    fn set_next_hop_found(&self, _: u32, _: u32) {}

    fn source_known(&self, _: u32) -> u64 {
        0
    }

    fn set_source_known(&self, _: u32, _: u64) {}

    fn take_hop(&self, _: &NextHop) {}

    fn forget_neighbour(&self) {}

    /// Packets that are explained are short.
    fn neighbour_known(&self) -> bool {
        false
    }

    fn mtu(&self) -> u32 {
        0
    }
}

impl<const N: usize, R: FamilyReader<N>> RouteTables<N> for Recorder<'_, R> {
    fn snat_address(&self, ifindex: u32, turn: u32) -> Ip<N> {
        let at = |index: usize| {
            self.reader.snat_address(ifindex, u32::try_from(index).unwrap_or(u32::MAX))
        };
        let found = address_in_turn(turn, at);
        if turn == 0 {
            let text = if found == [0; N] {
                format!("{} has no address to send from", self.name(ifindex))
            } else {
                format!("{} sends from {}", self.name(ifindex), ip_of(&found))
            };
            self.note("snat_address", text);
        }
        found
    }

    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        let range = self.reader.local_cidr(index)?;
        let prefix: u32 = range.mask.iter().map(|word| word.count_ones()).sum();
        if prefix > 0 {
            let shown = format!("{}/{prefix}", ip_of(&range.addr));
            self.note("local_cidr", format!("range of pods of this node: {shown}"));
        } else if index == 0 {
            self.note("local_cidr", "no range of this family: there is no detector".to_owned());
        }
        Some(range)
    }

    fn route(&self, from: &Ip<N>, to: &Ip<N>, over: u32, out: bool, _: u32) -> RouteStatus {
        let (status, egress) = self.reader.route(ip_of(from), ip_of(to), over, out);
        let leads = match status {
            RouteStatus::Found | RouteStatus::NoNeighbour => {
                self.egress.set(egress);
                format!("out of {}", self.name(egress))
            }
            RouteStatus::Local => "to this node itself".to_owned(),
            RouteStatus::TooBig => "to where it is too long for".to_owned(),
            RouteStatus::NoRoute => "nowhere".to_owned(),
        };
        self.note("route", format!("route to {}: {leads}", ip_of(to)));
        status
    }
}

impl<R: Reader> Recorder<'_, R> {
    /// An interface as people know it.
    fn name(&self, ifindex: u32) -> String {
        if ifindex == 0 {
            return "the interface of a pod".to_owned();
        }
        self.reader.interface_name(ifindex).unwrap_or_else(|| format!("interface {ifindex}"))
    }
}
