//! `lb-agent services`: every frontend with its backends, read from what is pinned.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use lb_agent::datapath::inspect::Inspector;
use lb_agent::plan::{Snapshot, address_flags, self_test};
use lb_common::abi::{AddressFlags, MetaWord};
use serde::Serialize;

use super::args::NodeArgs;
use super::error::{Error, Exit};
use super::output::{OutputArgs, note};
use super::table::Table;
use super::view::{self, Frontend, Kind};

/// What is said where node ports are programmed, and no address is.
const NOWHERE: &str = "Node ports answer at no address: the Node object of this node was not read, or \
    tells none; see --node-name and --node-port-addresses of `lb-agent run`\n";

/// Source ranges of a frontend that the table shows; JSON shows all.
const RANGES_SHOWN: usize = 3;

/// Show frontends with their backends, states and ids
///
/// Reads what is pinned, and so what is in force, whether an agent runs or not.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  shown
  1  failed
  2  the arguments make no sense
  4  nothing is in force here")]
pub(super) struct Arguments {
    /// Only this Service (namespace/name), or this address (with or without a port)
    #[arg(value_name = "SERVICE|ADDRESS", value_parser = Filter::parse)]
    filter: Option<Filter>,
    /// The agent's own self-test Service too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Debug, Serialize)]
struct Services {
    frontends: Vec<Frontend>,
    /// Where node ports answer.
    node_port_addresses: Vec<NodeAddress>,
    /// Frontends that several Services claim, of which only the owner is shown.
    conflicts: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct NodeAddress {
    address: IpAddr,
    /// For processes in the node's own network namespace only.
    loopback: bool,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let folder = arguments.node.folder();
    let inspector = Inspector::open(&folder)?.ok_or(Error::NotLoaded(folder))?;
    let snapshot = inspector.maps().snapshot()?;
    let node_port_addresses = node_port_addresses(&snapshot);
    let mut frontends = view::frontends(&snapshot);
    frontends.retain(|frontend| {
        let taken = |filter: &Filter| filter.takes(frontend, &node_port_addresses);
        (arguments.all || !is_self_test(frontend)) && arguments.filter.as_ref().is_none_or(taken)
    });
    if frontends.is_empty() {
        note(if arguments.filter.is_some() { "no frontend matches" } else { "no frontends" });
    }
    let conflicts = snapshot.meta[MetaWord::Conflicts as usize];
    let services = Services { frontends, node_port_addresses, conflicts };
    arguments.output.write(&services, text)?;
    Ok(Exit::Success)
}

fn text(services: &Services) -> String {
    let mut parts = vec![table(&services.frontends)];
    let has_node_ports = services.frontends.iter().any(|f| f.kind == Kind::NodePort);
    if has_node_ports && services.node_port_addresses.is_empty() {
        parts.push(NOWHERE.to_owned());
    } else if has_node_ports {
        let shown = services.node_port_addresses.iter().map(|at| {
            let whose = if at.loopback { " (processes of the node itself)" } else { "" };
            format!("{}{whose}", at.address)
        });
        let shown: Vec<String> = shown.collect();
        parts.push(format!("Node ports answer at {}\n", shown.join(", ")));
    }
    let conflicts = match services.conflicts {
        0 => None,
        1 => Some("1 frontend is".to_owned()),
        n => Some(format!("{n} frontends are")),
    };
    parts.extend(conflicts.map(|conflicts| {
        format!("{conflicts} claimed by several Services; the log of `lb-agent run` names them\n")
    }));
    parts.join("\n")
}

fn node_port_addresses(snapshot: &Snapshot) -> Vec<NodeAddress> {
    let flags = snapshot.addresses.iter().map(|(addr, word)| (*addr, address_flags(addr, *word)));
    let mut found: Vec<_> = flags
        .filter(|(_, flags)| flags & (AddressFlags::NODE | AddressFlags::LOOPBACK) != 0)
        .map(|(address, flags)| NodeAddress { address, loopback: flags & AddressFlags::NODE == 0 })
        .collect();
    found.sort_by_key(|at| (at.loopback, at.address));
    found
}

fn is_self_test(frontend: &Frontend) -> bool {
    let (namespace, _) = frontend.service.split_once('/').unwrap_or_default();
    namespace == self_test::NAMESPACE
}

fn table(frontends: &[Frontend]) -> String {
    let mut table = Table::new(&[
        "SERVICE", "PORT", "FRONTEND", "ID", "CLUSTER", "LOCAL", "TRAFFIC", "BACKEND", "STATES",
    ]);
    for frontend in frontends {
        let affinity = frontend.facts.session_affinity_timeout_s;
        let affinity = affinity.map(|s| format!(",affinity={s}s")).unwrap_or_default();
        let mut head = [
            frontend.service.clone(),
            frontend.port_name.clone(),
            at(frontend),
            frontend.service_port.to_string(),
            count(&frontend.cluster),
            count(&frontend.local),
            format!("{}{affinity}{}", frontend.traffic_policy(), clients(frontend)),
        ];
        let mut backends = frontend.backends.iter();
        let first = backends.next();
        for backend in first.map(Some).into_iter().chain(backends.map(Some)).chain(
            // A frontend without any backend has a line all the same.
            first.is_none().then_some(None),
        ) {
            let [service, port, address, id, cluster, local, traffic] = head;
            let (backend, states) = backend.map_or((String::new(), String::new()), |backend| {
                let at = SocketAddr::new(backend.address, backend.port);
                (format!("{at} #{}", backend.id), backend.states.join(","))
            });
            table.row([service, port, address, id, cluster, local, traffic, backend, states]);
            head = Default::default();
        }
    }
    if table.is_empty() { String::new() } else { table.to_string() }
}

/// Whom it lets in, if not everybody.
fn clients(frontend: &Frontend) -> String {
    match frontend.source_ranges.as_deref() {
        None => String::new(),
        Some([]) => ",from=nobody".to_owned(),
        Some(ranges) => {
            let (shown, more) = ranges.split_at(ranges.len().min(RANGES_SHOWN));
            let more =
                if more.is_empty() { String::new() } else { format!("+{} more", more.len()) };
            format!(",from={}{more}", shown.join("+"))
        }
    }
}

/// Where it is, and as what if not as a clusterIP.
fn at(frontend: &Frontend) -> String {
    let (port, protocol) = (frontend.port, frontend.protocol);
    let at = SocketAddr::new(frontend.address, port);
    match frontend.kind {
        Kind::ClusterIp => format!("{at}/{protocol}"),
        Kind::External => format!("{at}/{protocol} (external)"),
        Kind::LoadBalancer => format!("{at}/{protocol} (load balancer)"),
        Kind::NodePort if frontend.address.is_ipv4() => format!("*:{port}/{protocol} (node port)"),
        Kind::NodePort => format!("[*]:{port}/{protocol} (node port)"),
    }
}

fn count(set: &view::Set) -> String {
    if set.backends == 0 { set.when_empty.to_owned() } else { set.backends.to_string() }
}

/// Which frontends to show.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Service(String),
    Address(IpAddr),
    Port(SocketAddr),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Address(address));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Port(address));
        }
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::Service(text.to_owned()))
            }
            _ => Err("neither namespace/name of a Service nor an address".into()),
        }
    }

    fn takes(&self, frontend: &Frontend, node_port_addresses: &[NodeAddress]) -> bool {
        // A node port is at all addresses of the node of its family (C-2).
        let is_at = |address: &IpAddr| match frontend.kind {
            Kind::NodePort => {
                frontend.address.is_ipv4() == address.is_ipv4()
                    && node_port_addresses.iter().any(|own| own.address == *address)
            }
            Kind::ClusterIp | Kind::External | Kind::LoadBalancer => frontend.address == *address,
        };
        match self {
            Self::Service(service) => frontend.service == *service,
            Self::Address(address) => is_at(address),
            Self::Port(at) => is_at(&at.ip()) && frontend.port == at.port(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::datapath::{Datapath as _, fake::Fake};
    use lb_agent::model::{self, DesiredBackend, DesiredPort, Family, PortKey, Protocol};
    use lb_agent::plan::{Capacity, NodeFacts, Planner};
    use lb_common::abi::BackendFlags;

    const CAPACITY: Capacity = Capacity {
        service_ports: 16,
        backends: 16,
        slots: 64,
        frontends: 16,
        addresses: 16,
        source_ranges: 16,
    };

    fn key(service: &str) -> PortKey {
        PortKey {
            namespace: "default".into(),
            service: service.into(),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        }
    }

    fn desired(frontends: Vec<model::Frontend>, backends: &[&str]) -> DesiredPort {
        let flags = BackendFlags::PRESENT
            | BackendFlags::READY
            | BackendFlags::SERVING
            | BackendFlags::IN_CLUSTER;
        let backend =
            |addr: &&str| DesiredBackend { addr: addr.parse().unwrap(), port: 8080, flags };
        DesiredPort {
            created_s: 0,
            frontends,
            backends: backends.iter().map(backend).collect(),
            internal_local: false,
            external_local: false,
            drop_when_no_local: false,
            affinity_timeout_s: Some(60),
            source_ranges: [].into(),
        }
    }

    fn snapshot() -> Snapshot {
        let (mut planner, mut fake) = (Planner::new(CAPACITY), Fake::new(CAPACITY));
        let cluster_ip = |vip: &str| model::Frontend::cluster_ip(vip.parse().unwrap(), 80);
        let external = model::FrontendKind::ExternalIp;
        let external = model::Frontend { kind: external, ..cluster_ip("198.51.100.1") };
        let node_port = model::Frontend::node_port(Family::V4, 30_080);
        let web = vec![cluster_ip("10.96.0.10"), external, node_port];
        planner.set_node(NodeFacts {
            node_port_addresses: vec![
                ("127.0.0.1".parse().unwrap(), true),
                ("192.168.0.1".parse().unwrap(), false),
            ],
            host_addresses: vec!["192.168.0.2".parse().unwrap()],
            ..NodeFacts::default()
        });
        let batch = planner.plan([
            (key("web"), Some(desired(web, &["10.244.0.2", "10.244.0.3"]))),
            (key("idle"), Some(desired(vec![cluster_ip("10.96.0.11")], &[]))),
        ]);
        assert!(fake.apply(&lb_agent::diff::operations(batch)).is_empty());
        fake.snapshot().unwrap()
    }

    fn frontends() -> Vec<Frontend> {
        view::frontends(&snapshot())
    }

    #[test]
    fn a_frontend_is_shown_with_each_of_its_backends() {
        let text = table(&frontends());
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        let [_, idle, first, second, ..] = &lines[..] else { panic!("{text}") };
        let shown = ["default/idle", "http", "10.96.0.11:80/tcp"];
        assert_eq!(idle[..3], shown, "{text}");
        assert_eq!(idle[4..], ["reject", "reject", "Cluster,affinity=60s"], "{text}");
        assert_eq!(first[4..7], ["2", "reject", "Cluster,affinity=60s"], "{text}");
        assert_eq!((first[7], first[9]), ("10.244.0.2:8080", "ready,serving"), "{text}");
        assert_eq!((second[0], second[2]), ("10.244.0.3:8080", "ready,serving"), "{text}");
    }

    #[test]
    fn a_filter_is_a_service_or_an_address() {
        let all = frontends();
        let node = node_port_addresses(&snapshot());
        for (text, shown) in [
            ("default/web", 3),
            ("default/other", 0),
            ("10.96.0.11", 1),
            ("10.96.0.10:80", 1),
            ("10.96.0.10:81", 0),
            ("198.51.100.1:80", 1),
            ("192.168.0.1:30080", 1),
            ("192.168.0.1:80", 0),
            ("127.0.0.1", 1),
            ("192.168.0.2:30080", 0),
            ("[fd00::1]:80", 0),
            ("[fd00::1]", 0),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!(all.iter().filter(|f| filter.takes(f, &node)).count(), shown, "{text}");
        }
        for bad in ["", "web", "a/b/c", "/b", "a/", "10.96.0.300"] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_load_balancers_address_is_shown_with_whom_it_lets_in() {
        let shown = |ranges: Option<&[&str]>| {
            let ranges = ranges.map(|all| all.iter().map(ToString::to_string).collect());
            clients(&Frontend { source_ranges: ranges, ..frontends().remove(0) })
        };
        assert_eq!(shown(None), "");
        assert_eq!(shown(Some(&[])), ",from=nobody");
        assert_eq!(shown(Some(&["a", "b"])), ",from=a+b");
        assert_eq!(shown(Some(&["a", "b", "c", "d", "e"])), ",from=a+b+c+2 more");
        let (mut planner, mut fake) = (Planner::new(CAPACITY), Fake::new(CAPACITY));
        let vip = model::Frontend {
            addr: "198.51.100.1".parse().unwrap(),
            port: 80,
            kind: model::FrontendKind::LoadBalancer,
        };
        let client = model::Cidr::of_one("203.0.113.7".parse().unwrap());
        let desired =
            DesiredPort { source_ranges: [client].into(), ..desired(vec![vip], &["10.244.0.2"]) };
        let batch = planner.plan([(key("web"), Some(desired))]);
        assert!(fake.apply(&lb_agent::diff::operations(batch)).is_empty());
        let text = table(&view::frontends(&fake.snapshot().unwrap()));
        for shown in
            ["198.51.100.1:80/tcp (load balancer)", "Cluster,affinity=60s,from=203.0.113.7/32"]
        {
            assert!(text.contains(shown), "{shown}: {text}");
        }
    }

    #[test]
    fn each_kind_of_frontend_is_shown_as_what_it_is() {
        let snapshot = snapshot();
        let services = Services {
            frontends: view::frontends(&snapshot),
            node_port_addresses: node_port_addresses(&snapshot),
            conflicts: 2,
        };
        let text = text(&services);
        for shown in [
            "10.96.0.10:80/tcp ",
            "198.51.100.1:80/tcp (external)",
            "*:30080/tcp (node port)",
            "Node ports answer at 192.168.0.1, 127.0.0.1 (processes of the node itself)",
            "2 frontends are claimed by several Services",
        ] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let nowhere = Services { node_port_addresses: Vec::new(), ..services.clone() };
        assert!(super::text(&nowhere).contains("at no address: the Node object"));
        let json = serde_json::to_value(&services).unwrap();
        let kinds: Vec<_> =
            json["frontends"].as_array().unwrap().iter().map(|f| f["kind"].clone()).collect();
        assert_eq!(kinds, ["cluster_ip", "cluster_ip", "external", "node_port"]);
    }
}
