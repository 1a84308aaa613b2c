//! How many connections per second, beside kube-proxy: from outside to a `NodePort`, and on the node
//! to a ClusterIP?

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{
    Figure, Plan, Reach,
    arena::{Arena, Backend, OUTSIDE, POD, TARGET},
    asker::{self, Asker},
    samples::{Progress, interval, median, say},
};
use crate::{
    cluster::{At, Family},
    kube_proxy,
    matrix::{Engine, cell::Proxy},
};

pub(super) const IDS: [&str; 6] = [
    "nodeport_remote_crr_ratio",
    "nodeport_local_crr_ratio",
    "clusterip_socket_crr_vs_kube_proxy",
    "clusterip_packet_crr_vs_kube_proxy",
    "clusterip_socket_crr_vs_kube_proxy_cni",
    "clusterip_packet_crr_vs_kube_proxy_cni",
];

/// What one figure is about.
#[derive(Clone, Copy, Debug)]
struct Way {
    id: &'static str,
    reach: f64,
    with_cni: bool,
    client: At,
    engine: Engine,
    backend: Backend,
}

/// A client of a way in one family, and what it reached.
struct Client {
    way: Way,
    family: Family,
    asker: Asker,
    to: SocketAddr,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

const WAYS: [Way; 6] = [
    Way::new(IDS[0], 1.2, OUTSIDE, Engine::Packet, Backend::There),
    Way::new(IDS[1], 1.0, OUTSIDE, Engine::Packet, Backend::Here),
    Way::new(IDS[2], 1.10, POD, Engine::Socket, Backend::Here),
    Way::new(IDS[3], 1.02, POD, Engine::Packet, Backend::Here),
    Way::new(IDS[4], 1.00, POD, Engine::Socket, Backend::Here).with_cni(),
    Way::new(IDS[5], 0.95, POD, Engine::Packet, Backend::Here).with_cni(),
];

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let (pairs, count) = (plan.pick(21, 1), plan.pick(2_000, 100));
    // A short run is to show in seconds that methods work; this one only by name.
    let unasked = plan.quick && !plan.names(&IDS);
    let quick = unasked.then(|| "left out of quick runs that do not name it".to_owned());
    if let Some(why) = kube_proxy::lacking().or(quick) {
        let missing = |way: &Way| {
            Figure::missing(way.id, "ratio", why.clone())
                .reach(Reach::AtLeast(way.reach))
                .method(way.method(pairs, count))
        };
        return Ok(WAYS.iter().map(missing).collect());
    }
    let mut figures = Vec::new();
    for with_cni in [false, true] {
        let wanted = |way: &Way| way.with_cni == with_cni && plan.wants(way.id);
        let ways: Vec<Way> = WAYS.into_iter().filter(wanted).collect();
        if ways.is_empty() {
            continue;
        }
        let clients = run(plan, &ways, pairs, count)?;
        for way in &ways {
            let of_way: Vec<&Client> =
                clients.iter().filter(|client| client.way.id == way.id).collect();
            figures.extend(way.figures(&of_way, &way.method(pairs, count))?);
        }
    }
    Ok(figures)
}

fn run(plan: &Plan, ways: &[Way], pairs: u32, count: u32) -> Result<Vec<Client>> {
    let with_cni = ways.iter().any(|way| way.with_cni);
    let mut arena = Arena::new(with_cni)?;
    let _servers = [Backend::Here, Backend::There]
        .into_iter()
        .map(|backend| asker::server(plan, &arena.cluster, backend.at(), TARGET))
        .collect::<Result<Vec<_>>>()?;
    let mut clients = Vec::new();
    for way in ways {
        for family in Family::ALL {
            let to = match way.client {
                POD => Arena::cluster_ip(way.backend, family),
                _ => arena.node_port(way.backend, family),
            };
            let asker = Asker::start(plan, &arena.cluster, way.client, way.engine)?;
            let (ours, theirs) = (Vec::new(), Vec::new());
            clients.push(Client { way: *way, family, asker, to, ours, theirs });
        }
    }
    let what = if with_cni { "pairs beside a network plugin's rules" } else { "pairs" };
    let mut progress = Progress::new(format!("connections per second: {what}"), pairs);
    for pair in 0..pairs {
        progress.step(pair);
        // Who comes first in a pair alternates, so that a drift of the machine favours neither.
        let mut proxies = [Proxy::KubeProxy, Proxy::Millrace];
        if pair % 2 == 1 {
            proxies.reverse();
        }
        for proxy in proxies {
            arena.serve(proxy)?;
            for client in &mut clients {
                let rate = client.asker.per_second(client.to, count);
                let rate = rate.with_context(|| format!("{proxy}: {}", client.way.id))?;
                if plan.quick {
                    let Client { way, family, .. } = client;
                    say(&format!("{proxy}, {}, {family}: {rate:.0} per second", way.id));
                }
                let rates =
                    if proxy == Proxy::KubeProxy { &mut client.theirs } else { &mut client.ours };
                rates.push(rate);
            }
        }
    }
    arena.leave()?;
    Ok(clients)
}

impl Way {
    const fn new(
        id: &'static str,
        reach: f64,
        client: At,
        engine: Engine,
        backend: Backend,
    ) -> Self {
        Self { id, reach, with_cni: false, client, engine, backend }
    }

    const fn with_cni(self) -> Self {
        Self { with_cni: true, ..self }
    }

    fn method(&self, pairs: u32, count: u32) -> String {
        let client = match (self.client, self.engine) {
            (POD, Engine::Socket) => "from a pod to a ClusterIP by the socket engine",
            (POD, Engine::Packet) => "from a pod to a ClusterIP by the packet engine",
            _ => "from a client behind a router to a NodePort by the packet engine at tc",
        };
        let backend = match self.backend {
            Backend::Here => "of the same node",
            Backend::There => "of another node",
        };
        // As a switch of metal: `br_netfilter` would have its frames pass this machine's hooks.
        let wire = match self.client {
            OUTSIDE => ", over a network whose switch has no netfilter",
            _ => "",
        };
        let node = if self.with_cni {
            "a node with a network plugin's rules for all (masquerade, ct state invalid drop)"
        } else {
            "a bare node"
        };
        format!(
            "connect, request, reply, close per second over those with kube-proxy, {client} with a \
             backend {backend}, on {node}{wire}; client and server on one CPU at priority -20; {pairs} pairs \
             of runs of {count} after a quarter of that to warm up, in the same namespaces, in turn; \
             rules of {}; median of the ratios of the pairs, the worse of IPv4 and IPv6",
            kube_proxy::versions()
        )
    }

    fn figures(&self, clients: &[&Client], method: &str) -> Result<Vec<Figure>> {
        let reach = Reach::AtLeast(self.reach);
        let parts = clients.iter().map(|client| client.figure().reach(reach).method(method));
        let parts: Vec<Figure> = parts.collect();
        let worst = parts.iter().filter_map(Figure::value).min_by(f64::total_cmp);
        let whole = Figure::new(self.id, worst.context("no figure")?, "ratio");
        Ok([vec![whole.reach(reach).method(method)], parts].concat())
    }
}

impl Client {
    fn figure(&self) -> Figure {
        let pairs = self.ours.iter().zip(&self.theirs);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        let [low, high] = interval(&ratios);
        let id = format!("{}.{}", self.way.id, self.family).to_lowercase();
        Figure::new(id, median(&ratios), "ratio").note(format!(
            "95 % interval of the median {low:.3} to {high:.3}; {:.0} and {:.0} connections per second",
            median(&self.ours),
            median(&self.theirs)
        ))
    }
}
