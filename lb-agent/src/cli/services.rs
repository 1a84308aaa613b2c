//! `lb-agent services`: every frontend with its backends, read from what is pinned.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use lb_agent::datapath::inspect::Inspector;
use lb_agent::plan::self_test;
use serde::Serialize;

use super::args::NodeArgs;
use super::error::{Error, Exit};
use super::output::{OutputArgs, note};
use super::table::Table;
use super::view::{self, Frontend};

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

#[derive(Debug, Serialize)]
struct Services {
    frontends: Vec<Frontend>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let folder = arguments.node.folder();
    let inspector = Inspector::open(&folder)?.ok_or(Error::NotLoaded(folder))?;
    let mut frontends = view::frontends(&inspector.maps().snapshot()?);
    frontends.retain(|frontend| {
        (arguments.all || !is_self_test(frontend))
            && arguments.filter.as_ref().is_none_or(|filter| filter.takes(frontend))
    });
    if frontends.is_empty() {
        note(if arguments.filter.is_some() { "no frontend matches" } else { "no frontends" });
    }
    arguments.output.write(&Services { frontends }, |services| table(&services.frontends))?;
    Ok(Exit::Success)
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
            format!("{}/{}", SocketAddr::new(frontend.address, frontend.port), frontend.protocol),
            frontend.service_port.to_string(),
            count(&frontend.cluster),
            count(&frontend.local),
            format!("{}{affinity}", frontend.facts.internal_traffic_policy),
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

    fn takes(&self, frontend: &Frontend) -> bool {
        match self {
            Self::Service(service) => frontend.service == *service,
            Self::Address(address) => frontend.address == *address,
            Self::Port(at) => (frontend.address, frontend.port) == (at.ip(), at.port()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_agent::datapath::{Datapath as _, fake::Fake};
    use lb_agent::model::{DesiredBackend, DesiredPort, Family, PortKey, Protocol};
    use lb_agent::plan::{Capacity, Planner};
    use lb_common::abi::BackendFlags;

    fn frontends() -> Vec<Frontend> {
        let capacity =
            Capacity { service_ports: 16, backends: 16, slots: 64, frontends: 16, addresses: 16 };
        let (mut planner, mut fake) = (Planner::new(capacity), Fake::new(capacity));
        let key = |service: &str| PortKey {
            namespace: "default".into(),
            service: service.into(),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let ready = BackendFlags::PRESENT
            | BackendFlags::READY
            | BackendFlags::SERVING
            | BackendFlags::IN_CLUSTER;
        let desired = |vip: &str, backends: &[&str]| DesiredPort {
            created_s: 0,
            frontends: vec![lb_agent::model::Frontend::cluster_ip(vip.parse().unwrap(), 80)],
            backends: backends
                .iter()
                .map(|addr| DesiredBackend {
                    addr: addr.parse().unwrap(),
                    port: 8080,
                    flags: ready,
                })
                .collect(),
            internal_local: false,
            external_local: false,
            drop_when_no_local: false,
            affinity_timeout_s: Some(60),
        };
        let batch = planner.plan([
            (key("web"), Some(desired("10.96.0.10", &["10.244.0.2", "10.244.0.3"]))),
            (key("idle"), Some(desired("10.96.0.11", &[]))),
        ]);
        assert!(fake.apply(&lb_agent::diff::operations(batch)).is_empty());
        view::frontends(&fake.snapshot().unwrap())
    }

    #[test]
    fn a_frontend_is_shown_with_each_of_its_backends() {
        let text = table(&frontends());
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        let [_, idle, first, second] = &lines[..] else { panic!("{text}") };
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
        for (text, shown) in [
            ("default/web", 1),
            ("default/other", 0),
            ("10.96.0.11", 1),
            ("10.96.0.10:80", 1),
            ("10.96.0.10:81", 0),
            ("[fd00::1]:80", 0),
            ("[fd00::1]", 0),
        ] {
            let filter = Filter::parse(text).unwrap();
            assert_eq!(all.iter().filter(|f| filter.takes(f)).count(), shown, "{text}");
        }
        for bad in ["", "web", "a/b/c", "/b", "a/", "10.96.0.300"] {
            assert!(Filter::parse(bad).is_err(), "{bad}");
        }
    }
}
