//! The node, as far as an explanation knows it: a client of which nothing is said is a pod of this node,
//! and no packet is sent on.

use lb_common::abi::{InterfaceWord, Ip, ServiceCidr};
use lb_common::tables::{LocalMode, NodeTables, RouteStatus, RouteTables};

use super::Recorder;
use crate::cli::explain::reader::{FamilyReader, Reader};

impl<R: Reader> NodeTables for Recorder<'_, R> {
    fn arrival(&self) -> u32 {
        0
    }

    fn own(&self) -> bool {
        false
    }

    fn interface(&self, _: u32) -> Option<InterfaceWord> {
        None
    }

    fn node_ports(&self, _: u32) -> u64 {
        u64::MAX
    }

    fn local_mode(&self) -> LocalMode {
        LocalMode::Interface
    }

    fn masquerade_all(&self) -> bool {
        false
    }

    fn snat_first(&self) -> u32 {
        0
    }

    fn snat_count(&self) -> u32 {
        0
    }

    fn seed(&self) -> u32 {
        0
    }

    fn egress(&self) -> u32 {
        0
    }

    fn mtu(&self) -> u32 {
        0
    }
}

impl<const N: usize, R: FamilyReader<N>> RouteTables<N> for Recorder<'_, R> {
    fn snat_address(&self, _: u32, _: u32) -> Ip<N> {
        [0; N]
    }

    fn local_cidr(&self, _: u32) -> Option<ServiceCidr<N>> {
        None
    }

    fn route(&self, _: &Ip<N>, _: &Ip<N>, _: u32, _: bool, _: u32) -> RouteStatus {
        RouteStatus::Local
    }
}
