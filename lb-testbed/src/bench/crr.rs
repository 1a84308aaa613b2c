//! How many connections per second go through a ClusterIP, as a share of those that go directly to
//! the pod while nothing of Millrace is loaded?
//!
//! Client and server are in pods of one node; what an exchange is tells [`super::asker`].

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{
    Figure, Plan, Reach,
    asker::{self, Asker},
    samples::{Progress, median, quartiles, say},
};
use crate::{
    agent::{Agent, Source},
    cluster::{At, Cluster, Family, Spec, Topology},
    manifest::Manifest,
    matrix::Engine,
};

pub(super) const IDS: [&str; 2] = ["crr_socket_ratio", "crr_packet_ratio"];

const CLIENT: At = At::Pod(0, 0);
const SERVER: At = At::Pod(0, 1);
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// A client process of one engine, and its share in each pair of runs.
struct Client {
    engine: Engine,
    family: Family,
    asker: Asker,
    direct: SocketAddr,
    vip: SocketAddr,
    direct_per_s: Vec<f64>,
    vip_per_s: Vec<f64>,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let (pairs, count) = (plan.pick(101, 2), plan.pick(800, 100));
    let method = format!(
        "exchanges per second through the ClusterIP over those to the pod with nothing of Millrace \
         loaded; client and server in pods of one node, both on one CPU at priority -20; {pairs} pairs of runs of \
         {count} after a quarter of that to warm up, direct and through Millrace in turn; median of \
         the ratios of the pairs"
    );
    let mut all = Vec::new();
    for topology in [Topology::Routed, Topology::Bridge] {
        let clients = run(plan, topology, pairs, count)
            .with_context(|| format!("{topology} pods, {pairs} pairs"))?;
        all.extend(clients.into_iter().map(|client| (topology, client)));
    }
    let mut figures = Vec::new();
    for (id, engine, reach) in [(IDS[0], Engine::Socket, 0.97), (IDS[1], Engine::Packet, 0.90)] {
        let reach = Reach::AtLeast(reach);
        let singles: Vec<Figure> = all
            .iter()
            .filter(|(_, client)| client.engine == engine)
            .map(|(topology, client)| {
                let name = format!("{id}.{topology}_{}", client.family).to_lowercase();
                client
                    .figure(name)
                    .reach(reach)
                    .method(format!("{}, {topology} pods; {method}", client.family))
            })
            .collect();
        // Both ends of a connection on one link is what a bridge makes of the direct way alone:
        // through any ClusterIP it goes by the gateway. Routed pods compare like with like.
        let like = |figure: &&Figure| figure.id().contains("routed");
        let worst = singles.iter().filter(like).filter_map(Figure::value).min_by(f64::total_cmp);
        figures.push(Figure::new(id, worst.context("no figure")?, "ratio").reach(reach).method(
            format!(
                "the worse of IPv4 and IPv6 between routed pods, where both ways take the same \
                 hops; {method}"
            ),
        ));
        figures.extend(singles);
    }
    Ok(figures)
}

fn run(plan: &Plan, topology: Topology, pairs: u32, count: u32) -> Result<Vec<Client>> {
    say(&format!("crr: a cluster of {topology} pods"));
    let cluster = Cluster::build(Spec { nodes: 1, topology, ..Spec::default() })?;
    let manifest = cluster.scratch().join("state.json");
    let vips = [Family::V4, Family::V6].map(|family| vip(family).ip());
    Manifest::new()
        .publish("web", &vips, PORT, TARGET, &cluster.addresses(SERVER))
        .write(&manifest)?;
    let _server = asker::server(plan, &cluster, SERVER, TARGET)?;
    let mut clients = Vec::new();
    for engine in Engine::ALL {
        for family in Family::ALL {
            clients.push(Client::start(plan, &cluster, engine, family)?);
        }
    }
    let mut progress = Progress::new(format!("crr, {topology} pods: pairs"), pairs);
    for pair in 0..pairs {
        progress.step(pair);
        // Who comes first in a pair alternates, so that a drift of the machine favours neither.
        for through in [pair % 2 == 1, pair % 2 == 0] {
            let agent = through.then(|| start(&cluster, &manifest)).transpose()?;
            for client in &mut clients {
                let to = if through { client.vip } else { client.direct };
                let rate = client.asker.per_second(to, count)?;
                (if through { &mut client.vip_per_s } else { &mut client.direct_per_s }).push(rate);
            }
            if let Some(agent) = agent {
                unload(agent)?;
            }
        }
    }
    Ok(clients)
}

fn start(cluster: &Cluster, manifest: &std::path::Path) -> Result<Agent> {
    cluster.agent(0, Source::Manifests(manifest.to_owned()))?.start()
}

fn unload(mut agent: Agent) -> Result<()> {
    agent.stop()?;
    agent.command("cleanup", &[]).map(drop)
}

impl Client {
    fn start(plan: &Plan, cluster: &Cluster, engine: Engine, family: Family) -> Result<Self> {
        Ok(Self {
            engine,
            family,
            asker: Asker::start(plan, cluster, CLIENT, engine)?,
            direct: SocketAddr::new(cluster.address(SERVER, family), TARGET),
            vip: vip(family),
            direct_per_s: Vec::new(),
            vip_per_s: Vec::new(),
        })
    }

    fn figure(&self, id: String) -> Figure {
        let pairs = self.vip_per_s.iter().zip(&self.direct_per_s);
        let ratios: Vec<f64> = pairs.map(|(vip, direct)| vip / direct).collect();
        let [low, high] = quartiles(&ratios);
        Figure::new(id, median(&ratios), "ratio").note(format!(
            "quartiles {low:.3} and {high:.3}; direct {:.0} per s, through the ClusterIP {:.0} per s",
            median(&self.direct_per_s),
            median(&self.vip_per_s)
        ))
    }
}

fn vip(family: Family) -> SocketAddr {
    let ip = match family {
        Family::V4 => super::object::vip4_address(10).into(),
        Family::V6 => super::object::vip6_address(10).into(),
    };
    SocketAddr::new(ip, PORT)
}
