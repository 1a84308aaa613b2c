//! By what does `lb-agent status` tell that the socket engine acts on a process?
//!
//! The agent programs one more service port in each family: an address that no cluster has, and no
//! backend. A UDP `connect` to it is refused by the socket engine (contract V-3) before the kernel
//! looks for a route, and by nobody else; it sends nothing. So it works in any network namespace,
//! and shows that the programs run, and that they read these very maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::{DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol};

/// The namespace in `NAMES`: not one that the API would take, so that no Service is mistaken for it.
pub const NAMESPACE: &str = "Millrace";
/// In TEST-NET-1 (RFC 5737).
pub const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// In the prefix for documentation (RFC 3849).
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The discard port (RFC 863).
pub const PORT: u16 = 9;

/// Whether a service port is one of [`ports`].
pub fn is(key: &PortKey) -> bool {
    &*key.namespace == NAMESPACE
}

/// The service ports to program beside those of the cluster. Any real Service with such an address
/// is older, and so has it; to have one as an externalIP is the weakest claim.
pub fn ports() -> [(PortKey, DesiredPort); 2] {
    let port = |family, addr: IpAddr| {
        let key = PortKey {
            namespace: NAMESPACE.into(),
            service: "self-test".into(),
            port: "".into(),
            protocol: Protocol::Udp,
            family,
        };
        let desired = DesiredPort {
            created_s: i64::MAX,
            frontends: vec![Frontend { addr, port: PORT, kind: FrontendKind::ExternalIp }],
            backends: Vec::new(),
            internal_local: false,
            external_local: false,
            drop_when_no_local: false,
            affinity_timeout_s: None,
            source_ranges: [].into(),
        };
        (key, desired)
    };
    [port(Family::V4, VIP4.into()), port(Family::V6, VIP6.into())]
}
