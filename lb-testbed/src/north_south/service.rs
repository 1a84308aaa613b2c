//! How is a Service of these tests exposed, and under which addresses?

use std::net::{IpAddr, Ipv6Addr};

use super::{FIRST_NODE_PORT, TARGET};
use crate::cluster::{At, Family};

/// How a Service is exposed.
#[derive(Clone, Debug, Default)]
pub struct Exposure {
    pub(super) endpoints: Vec<At>,
    pub(super) local: bool,
    pub(super) affinity: bool,
    pub(super) ranges: Vec<String>,
    target: Option<u16>,
}

/// A Service of the cluster, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exposed(pub(super) u16);

/// By what a client outside reaches a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The entry node's address, the Service's `NodePort`.
    NodePort,
    /// The load balancer's address.
    LoadBalancer,
    /// The externalIP.
    ExternalIp,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::NodePort, Self::LoadBalancer, Self::ExternalIp];
}

impl Exposure {
    /// Under the policy Cluster, with these endpoints.
    pub fn new(endpoints: &[At]) -> Self {
        Self { endpoints: endpoints.to_vec(), ..Self::default() }
    }

    /// Under the external policy Local.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// With affinity to client addresses.
    #[must_use]
    pub fn affinity(mut self) -> Self {
        self.affinity = true;
        self
    }

    /// With source ranges, as they are written in the Service.
    #[must_use]
    pub fn ranges(mut self, ranges: &[&str]) -> Self {
        self.ranges = ranges.iter().map(|&range| range.to_owned()).collect();
        self
    }

    /// With another port of the endpoints than [`TARGET`].
    #[must_use]
    pub fn target(mut self, port: u16) -> Self {
        self.target = Some(port);
        self
    }

    pub(super) fn target_port(&self) -> u16 {
        self.target.unwrap_or(TARGET)
    }
}

impl Exposed {
    /// `default/<name>`.
    pub fn name(self) -> String {
        format!("svc-{}", self.0)
    }

    /// Its cluster IP.
    pub fn cluster_ip(self, family: Family) -> IpAddr {
        let host = 0x201 + self.0;
        match family {
            Family::V4 => self.address(family, [10, 96, 2], [0; 4]),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, host).into(),
        }
    }

    /// Its load balancer's address.
    pub fn load_balancer(self, family: Family) -> IpAddr {
        self.address(family, [203, 0, 113], [0x2001, 0xdb8, 8, 0])
    }

    /// Its externalIP.
    pub fn external_ip(self, family: Family) -> IpAddr {
        self.address(family, [198, 51, 100], [0x2001, 0xdb8, 7, 0])
    }

    /// Its `NodePort`.
    pub fn node_port(self) -> u16 {
        FIRST_NODE_PORT + self.0
    }

    fn address(self, family: Family, v4: [u8; 3], v6: [u16; 4]) -> IpAddr {
        let host = self.0 + 1;
        match family {
            Family::V4 => [v4[0], v4[1], v4[2], u8::try_from(host).unwrap_or(u8::MAX)].into(),
            Family::V6 => Ipv6Addr::new(v6[0], v6[1], v6[2], v6[3], 0, 0, 2, host).into(),
        }
    }
}
