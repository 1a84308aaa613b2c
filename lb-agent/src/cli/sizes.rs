//! How large are the maps? The flags that say so.

use clap::Args;
use lb_agent::datapath::Sizes;
use lb_agent::plan::Capacity;

/// Sizes of maps. Pinned maps keep theirs: other sizes take effect after `lb-agent cleanup`.
#[derive(Args, Clone, Copy, Debug)]
#[expect(clippy::struct_field_names, reason = "the names of flags")]
#[command(next_help_heading = "Sizes of maps, fixed until `lb-agent cleanup`")]
pub(super) struct SizeArgs {
    /// Service ports: one for each port and IP family of a Service
    #[arg(long, value_name = "N", default_value_t = tables().service_ports)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    max_service_ports: u32,
    /// Frontends, for each IP family, and as many addresses
    #[arg(long, value_name = "N", default_value_t = tables().frontends)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1 << 22))]
    max_frontends: u32,
    /// Source ranges of load balancers: for each service port that has them, and each IP family
    #[arg(long, value_name = "N", default_value_t = tables().source_ranges)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1 << 22))]
    max_source_ranges: u32,
    /// Backends: endpoints, for each service port that they serve
    #[arg(long, value_name = "N", default_value_t = tables().backends)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1 << 24))]
    max_backends: u32,
    /// Slots: the sizes of all sets, and as much again for changes; a sixteenth is kept for removals
    #[arg(long, value_name = "N", default_value_t = tables().slots)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=1 << 26))]
    max_slots: u32,
    /// Flow records of the packet engine, two for each connection, for each IP family
    #[arg(long, value_name = "N", default_value_t = Sizes::default().flows)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    max_flows: u32,
    /// Records of TCP flows that the client has not answered yet, for each IP family
    #[arg(long, value_name = "N", default_value_t = Sizes::default().half_open)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    max_half_open_flows: u32,
    /// Peers of unconnected UDP sockets, two for each socket and VIP; as many again for the node's own sockets
    #[arg(long, value_name = "N", default_value_t = Sizes::default().socket_peers)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    max_socket_peers: u32,
    /// UDP sockets; as many again for the node's own
    #[arg(long, value_name = "N", default_value_t = Sizes::default().udp_sockets)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    max_udp_sockets: u32,
    /// Clients of service ports with session affinity, one for each client and service port
    #[arg(long, value_name = "N", default_value_t = Sizes::default().affinity)]
    #[arg(value_parser = clap::value_parser!(u32).range(1024..=1 << 24))]
    max_affinity: u32,
}

impl SizeArgs {
    /// The sizes.
    pub(super) fn sizes(self) -> Sizes {
        Sizes {
            tables: Capacity {
                service_ports: self.max_service_ports,
                backends: self.max_backends,
                slots: self.max_slots,
                frontends: self.max_frontends,
                addresses: self.max_frontends,
                source_ranges: self.max_source_ranges,
            },
            flows: self.max_flows,
            half_open: self.max_half_open_flows,
            socket_peers: self.max_socket_peers,
            udp_sockets: self.max_udp_sockets,
            affinity: self.max_affinity,
        }
    }
}

fn tables() -> Capacity {
    Capacity::default()
}
