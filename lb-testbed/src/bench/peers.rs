//! What others need for the same, where their programs are at hand.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    Figure, Plan,
    api::Api,
    samples::{Progress, largest, median},
    scale::{ENDPOINTS, peak_mib},
};
use crate::{
    address::{node_v4, node_v6},
    kube_proxy::{self, LAST_SYNC, PROGRAM},
    process::Process,
    wait,
};

pub(super) const IDS: [&str; 2] = ["kube_proxy_sync_10k_s", "kube_proxy_change_10k_ms"];

const UNITS: [&str; 2] = ["s", "ms"];
/// The node that it is on; Millrace's agent is on the other one.
const NODE: usize = 1;
const SYNC_WITHIN: Duration = Duration::from_mins(3);
/// Of all address families it does the first one first.
const FAMILY: &str = "ip_family=\"IPv4\"";
const DURATION_SUM: &str = "kubeproxy_sync_proxy_rules_duration_seconds_sum";
const FULL_COUNT: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds_count";
const DURATION_COUNT: &str = "kubeproxy_sync_proxy_rules_duration_seconds_count";

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    // A short run is to show in seconds that methods work; this one takes what the peer takes.
    let quick = plan.quick.then(|| format!("{PROGRAM} is left out of quick runs"));
    if let Some(why) = kube_proxy::lacking().or(quick) {
        let missing = |(id, unit): (&str, &'static str)| {
            Figure::missing(id, unit, why.clone())
                .method(format!("{PROGRAM} in nftables mode on the same state"))
        };
        return Ok(IDS.into_iter().zip(UNITS).map(missing).collect());
    }
    let changes = plan.pick(10, 2);
    let api = Api::start(plan)?;
    register(&api)?;
    let start = Instant::now();
    let mut proxy = start_proxy(&api)?;
    let running = |proxy: &mut Process| -> Result<()> {
        ensure!(proxy.is_running(), "{PROGRAM} has ended: {}", proxy.stderr().tail(20));
        Ok(())
    };
    let first = wait::until_some("the first sync", SYNC_WITHIN, || {
        let ended = running(&mut proxy).err();
        let synced = metric(&api, LAST_SYNC).is_ok_and(|at| at > 0.0).then_some(Ok(()));
        ended.map(Err).or(synced)
    });
    first.with_context(|| proxy.stderr().tail(20))??;
    let took = start.elapsed().as_secs_f64();
    let peak = peak_mib(proxy.pid())?;
    // All but `kubernetes`, which has no endpoints here.
    let (programmed, wanted) = (programmed(&api)?, usize::try_from(api.services)? - 1);
    ensure!(
        programmed >= wanted,
        "{PROGRAM} has programmed {programmed} of {wanted} Services with endpoints"
    );

    let full_syncs = metric(&api, FULL_COUNT)?;
    let mut times = Vec::new();
    let mut progress = Progress::new(format!("a changed endpoint, {PROGRAM}"), changes);
    for change in 1..=changes {
        progress.step(change);
        times.push(change_once(&api, change)?);
    }
    running(&mut proxy)?;
    let full_syncs = metric(&api, FULL_COUNT)? - full_syncs;
    let method = |what: &str| {
        format!(
            "{what}; {} Services with {ENDPOINTS} endpoints each, told by kube-apiserver; {}, in a \
             namespace of its own",
            api.services,
            kube_proxy::versions()
        )
    };
    Ok(vec![
        Figure::new(IDS[0], took, UNITS[0])
            .method(method(
                "start of the process to the end of its first sync for IPv4, by its metrics; one run",
            ))
            .note(format!("VmHWM {peak:.0} MiB without its children `nft`; IPv6 comes after")),
        Figure::new(IDS[1], median(&times), UNITS[1])
            .method(method(&format!(
                "time of a sync for IPv4 after one of {ENDPOINTS} endpoints was replaced, by its \
                 metrics, the second that it waits before excluded; {changes} changes, median"
            )))
            .note(format!(
                "slowest {:.1} ms; {full_syncs:.0} of the syncs were full ones",
                largest(&times)
            )),
    ])
}

/// It waits for the addresses of its Node.
fn register(api: &Api) -> Result<()> {
    let addresses = [node_v4(NODE).to_string(), node_v6(NODE).to_string()]
        .map(|address| json!({"type": "InternalIP", "address": address}));
    let status = json!({"status": {"addresses": addresses}}).to_string();
    let node = &api.cluster.nodes()[NODE].name;
    let args = ["patch", "node", node, "--subresource=status", "--type=merge", "-p", &status];
    api.plane.kubectl(&args).map(drop)
}

fn start_proxy(api: &Api) -> Result<Process> {
    kube_proxy::launch(&api.plane, &api.cluster.nodes()[NODE])?
        .arg("--cluster-cidr=10.244.0.0/16,fd00:10:244::/56")
        .spawn()
}

/// Milliseconds of the sync after a change.
fn change_once(api: &Api, change: u32) -> Result<f64> {
    let (sum, count) = (metric(api, DURATION_SUM)?, metric(api, DURATION_COUNT)?);
    api.apply_change(change)?;
    wait::until_some("a sync after a change", SYNC_WITHIN, || {
        let more = metric(api, DURATION_COUNT).ok()? - count;
        let time = metric(api, DURATION_SUM).ok()? - sum;
        (more >= 1.0).then(|| time * 1000.0 / more)
    })
}

/// How many cluster IPs it has put into its map.
fn programmed(api: &Api) -> Result<usize> {
    let netns = &api.cluster.nodes()[NODE].netns;
    let text = kube_proxy::nft(netns, &["list", "map", "ip", PROGRAM, "service-ips"], "")?;
    let is_vip = |word: &&str| word.starts_with("10.96.");
    Ok(text.split_whitespace().filter(is_vip).collect::<HashSet<_>>().len())
}

/// A number of its metrics, for IPv4 where they tell families apart.
fn metric(api: &Api, name: &str) -> Result<f64> {
    let text = kube_proxy::metrics(&api.cluster.nodes()[NODE].netns)?;
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse().ok());
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
    let line = lines.iter().find(|line| line.contains(FAMILY)).or(lines.first());
    line.and_then(|line| value(line))
        .with_context(|| format!("no {name} in the metrics of {PROGRAM}"))
}
