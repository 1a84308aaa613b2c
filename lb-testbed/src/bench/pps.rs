//! How many packets per second does a node send on to a backend of another node, beside kube-proxy?
//!
//! Packets of many UDP flows come in by the node's uplink for a `NodePort` and leave by it for the
//! other node. They are made and counted at the other end of the uplink's cable ([`super::flood`]), in
//! the same interrupts and on the same CPU as the node's work on them, so that a packet costs the sum
//! of all.

use anyhow::{Context as _, Result, ensure};

use super::{
    Figure, Plan, Reach,
    arena::{Arena, Backend, OUTSIDE, TARGET, UPLINK},
    flood::{Ends, FLOWS, Flood, Rate},
    samples::{Progress, interval, median, say},
};
use crate::{
    cluster::{At, Family},
    kube_proxy,
    matrix::cell::Proxy,
    netns::Netns,
};

pub(super) const IDS: [&str; 2] = ["nodeport_remote_pps_ratio", "xdp_nodeport_pps_ratio"];
const REACHES: [f64; 2] = [1.5, 3.0];
/// Of the packets that are sent, what has to arrive for a rate to mean anything.
const ENOUGH: f64 = 0.9;

/// Packets per second, by who served.
#[derive(Debug, Default)]
struct Rates {
    /// Where the node drops all of them at once.
    made: f64,
    millrace: Vec<f64>,
    xdp: Vec<f64>,
    kube_proxy: Vec<f64>,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    let (rounds, seconds) = (plan.pick(21, 1), if plan.quick { 0.1 } else { 1.0 });
    let method = format!(
        "packets per second over those of kube-proxy, each counted where it arrives as the backend \
         must see it; {FLOWS} UDP flows over IPv4 of 60 bytes, both directions of which were seen \
         before, from a client behind a router to a NodePort whose backend is on another node, in \
         and out by one uplink, a virtual cable with GRO; runs of {seconds} s, packets made by \
         BPF_PROG_TEST_RUN with live frames, made, sent on and counted on one CPU; rules of {}; \
         {rounds} rounds, in each of which all three had their turn in the same namespaces; median \
         of the ratios of the rounds",
        kube_proxy::versions()
    );
    // A short run is to show in seconds that methods work; this one only by name.
    let unasked = plan.quick && !plan.names(&IDS);
    let quick = unasked.then(|| "left out of quick runs that do not name it".to_owned());
    if let Some(why) = kube_proxy::lacking().or(quick) {
        let missing = |(id, reach): (&str, f64)| {
            Figure::missing(id, "ratio", why.clone())
                .reach(Reach::AtLeast(reach))
                .method(method.clone())
        };
        return Ok(IDS.into_iter().zip(REACHES).map(missing).collect());
    }
    let rates = run(plan, rounds, seconds)?;
    Ok([&rates.millrace, &rates.xdp]
        .into_iter()
        .zip(IDS)
        .zip(REACHES)
        .filter(|((ours, _), _)| !ours.is_empty())
        .map(|((ours, id), reach)| {
            let pairs = ours.iter().zip(&rates.kube_proxy);
            let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
            let [low, high] = interval(&ratios);
            Figure::new(id, median(&ratios), "ratio")
                .reach(Reach::AtLeast(reach))
                .method(method.clone())
                .note(format!(
                    "95 % interval of the median {low:.2} to {high:.2}; {:.0} and {:.0} packets per \
                     second; {:.0} if the node's driver drops all of them",
                    median(ours),
                    median(&rates.kube_proxy),
                    rates.made
                ))
        })
        .collect())
}

fn run(plan: &Plan, rounds: u32, seconds: f64) -> Result<Rates> {
    let mut arena = Arena::new(false)?;
    let ends = ends(&arena)?;
    let node = &arena.cluster.nodes()[0].netns;
    node.aggregate(UPLINK[0], true)?;
    arena.cluster.fabric().aggregate(UPLINK[1], true)?;
    arena.cluster.fabric().offload_checksums(UPLINK[1], false)?;
    let flood = Flood::new(arena.cluster.fabric(), UPLINK[1], plan.cpu, &ends)?;
    let mut rates =
        Rates { made: flood.made_per_s(node, UPLINK[0], FLOWS * 100)?, ..Rates::default() };
    drop(flood);
    let mut progress = Progress::new("packets per second: rounds", rounds);
    for round in 0..rounds {
        progress.step(round);
        let mut proxies = Proxy::ALL;
        // Who comes first alternates, so that a drift of the machine favours nobody.
        if round % 2 == 0 {
            proxies.reverse();
        }
        for proxy in proxies {
            let unwanted = match proxy {
                Proxy::Millrace => !plan.wants(IDS[0]),
                Proxy::MillraceXdp => !plan.wants(IDS[1]),
                Proxy::KubeProxy => false,
            };
            if unwanted {
                continue;
            }
            arena.serve(proxy)?;
            let rate = rate(plan, &arena, &ends, seconds).with_context(|| proxy.to_string())?;
            if plan.quick {
                say(&format!("nobody: {:.0} packets per second made", rates.made));
                let Rate { per_s, arrived } = rate;
                say(&format!("{proxy}: {per_s:.0} packets per second, {arrived:.3} arrived"));
            }
            let of_proxy = match proxy {
                Proxy::Millrace => &mut rates.millrace,
                Proxy::MillraceXdp => &mut rates.xdp,
                Proxy::KubeProxy => &mut rates.kube_proxy,
            };
            of_proxy.push(rate.per_s);
        }
    }
    arena.leave()?;
    Ok(rates)
}

fn rate(plan: &Plan, arena: &Arena, ends: &Ends, seconds: f64) -> Result<Rate> {
    let flood = Flood::new(arena.cluster.fabric(), UPLINK[1], plan.cpu, ends)?;
    flood.begin_flows(FLOWS * 8)?;
    flood.rate(seconds / 4.0)?;
    let rate = flood.rate(seconds)?;
    ensure!(rate.arrived > ENOUGH, "only {:.0} % of all packets arrived", rate.arrived * 100.0);
    Ok(rate)
}

/// Knows the neighbours before there is anything to measure.
fn ends(arena: &Arena) -> Result<Ends> {
    let cluster = &arena.cluster;
    let v4 = |at| match cluster.address(at, Family::V4) {
        std::net::IpAddr::V4(ip) => Ok(ip),
        std::net::IpAddr::V6(ip) => anyhow::bail!("{ip} is no IPv4 address"),
    };
    let frontend = arena.node_port(Backend::There, Family::V4).port();
    Ok(Ends {
        macs: [mac(&cluster.nodes()[0].netns, UPLINK[0])?, mac(cluster.fabric(), "br0")?],
        client: v4(OUTSIDE)?,
        frontend: (v4(At::Node(0))?, frontend),
        backend: (v4(Backend::There.at())?, TARGET),
    })
}

/// The address of an Ethernet interface.
fn mac(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
    let shown = netns.ip_output(&["-o", "link", "show", "dev", interface])?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    let text = words.nth(1).with_context(|| format!("no address in {shown:?}"))?;
    let mut bytes = [0; 6];
    for (byte, digits) in bytes.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16).with_context(|| format!("understand {text}"))?;
    }
    Ok(bytes)
}
