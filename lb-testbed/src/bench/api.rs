//! The same as files tell, told by a real API server: how long until ten thousand Services are in
//! force, how much memory does it take, and how fast is a change?

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Figure, Plan, Reach,
    samples::{Progress, largest, median, millis, say},
    scale::{
        COMMIT_WITHIN, COMMITTED, ENDPOINTS, READING, SERVICES, SYNC_WITHIN, SYNCED, build, number,
        peak_mib, seconds, unload,
    },
};
use crate::{
    address::{node_v4, node_v6},
    agent::{Agent, Source},
    apiserver::{self, ApiServer, BINARIES},
    cluster::{At, Cluster, Family, Spec, Topology},
    manifest::{Endpoint, EndpointSlice, Manifest, Node, Service},
    synthetic::{Families, Synthetic},
    wait,
};

pub(super) const IDS: [&str; 3] = ["api_10k_synced_s", "api_10k_peak_mib", "api_10k_change_ms"];

const UNITS: [&str; 3] = ["s", "MiB", "ms"];
const REACHES: [f64; 3] = [5.0, 100.0, 20.0];
/// How long the API server may take until it tells what was put behind it.
const TOLD_WITHIN: Duration = Duration::from_mins(2);
/// The Service of which an endpoint changes.
const CHANGED: &str = "changed";

/// Two nodes and an API server on their network.
pub(super) struct Api {
    // Dropped in this order: the server before the namespace that it is in.
    pub(super) plane: ApiServer,
    pub(super) cluster: Cluster,
    pub(super) services: u32,
}

pub(super) fn measure(plan: &Plan) -> Result<Vec<Figure>> {
    if let Some(why) = apiserver::lacking(&BINARIES) {
        let missing = |((id, unit), reach)| {
            Figure::missing(id, unit, why.clone())
                .reach(Reach::AtMost(reach))
                .method("10000 Services told by kube-apiserver to user system:kube-proxy")
        };
        return Ok(IDS.into_iter().zip(UNITS).zip(REACHES).map(missing).collect());
    }
    let (runs, changes) = (plan.pick(3, 1), plan.pick(40, 3));
    let api = Api::start(plan)?;
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    let mut progress = Progress::new("cold start by the API server", runs);
    let mut lists = String::new();
    for run in 0..runs {
        progress.step(run);
        let start = Instant::now();
        let agent = api.agent()?;
        agent.wait_synced(SYNC_WITHIN)?;
        times.push(start.elapsed().as_secs_f64());
        peaks.push(peak_mib(agent.pid())?);
        api.check(&agent)?;
        lists = format!(
            "all times: {}",
            times.iter().map(|s| format!("{s:.2} s")).collect::<Vec<_>>().join(", ")
        );
        unload(agent)?;
    }
    let agent = api.agent()?;
    agent.wait_synced(SYNC_WITHIN)?;
    let (mut commits, mut from_calls) = (Vec::new(), Vec::new());
    let mut progress = Progress::new("a changed endpoint", changes);
    for change in 1..=changes {
        progress.step(change);
        let (commit, from_call) = api.change_seen(&agent, change)?;
        commits.push(commit);
        from_calls.push(from_call);
    }
    unload(agent)?;

    let services = api.services;
    let build = build()?;
    let method = |what: &str| {
        format!(
            "{what}; {services} Services with {ENDPOINTS} endpoints each, told by kube-apiserver to \
             user system:kube-proxy; {build}"
        )
    };
    let cold = format!("nothing pinned before, {runs} runs");
    let [synced, peak, change] = REACHES.map(Reach::AtMost);
    Ok(vec![
        Figure::new(IDS[0], median(&times), UNITS[0])
            .reach(synced)
            .method(method(&format!(
                "start of the process to everything programmed and attached, {cold}, median"
            )))
            .note(lists),
        Figure::new(IDS[1], largest(&peaks), UNITS[1])
            .reach(peak)
            .method(method(&format!("VmHWM of the process when it is in sync, {cold}, the largest"))),
        Figure::new(IDS[2], median(&commits), UNITS[2])
            .reach(change)
            .method(method(&format!(
                "from when an event of the watch was read until after the commit, by the times of the \
                 agent's log lines, one of {ENDPOINTS} endpoints replaced; {changes} changes, median"
            )))
            .note(format!("slowest {:.2} ms", largest(&commits))),
        Figure::new(format!("{}.from_call", IDS[2]), median(&from_calls), UNITS[2]).method(method(
            "from the call of kubectl until the log line of the commit was read here, median",
        )),
    ])
}

impl Api {
    /// Starts the API server and gives it all objects.
    pub(super) fn start(plan: &Plan) -> Result<Self> {
        let services = plan.pick(SERVICES, 200);
        let assets = apiserver::assets().context("KUBEBUILDER_ASSETS")?;
        let cluster = Cluster::build(Spec {
            pods_per_node: 1,
            topology: Topology::Routed,
            ..Spec::default()
        })?;
        let address = cluster.address(At::Fabric, Family::V4);
        let plane = ApiServer::start_in(&assets, cluster.fabric(), address)?;
        let mut manifest = Manifest::new();
        for (number, node) in cluster.nodes().iter().enumerate() {
            let addresses = [node_v4(number).into(), node_v6(number).into()];
            manifest.set(Node::new(&node.name, &addresses));
        }
        let vip: IpAddr = Ipv4Addr::new(10, 96, 255, 1).into();
        manifest.set(Service::new("default", CHANGED, &[vip]).port("http", "TCP", 80, 8080));
        plane.apply(&manifest)?;
        let api = Self { plane, cluster, services };
        api.apply_change(0)?;
        api.load()?;
        Ok(api)
    }

    /// All but one Service, and the one that the API server has from the beginning.
    fn load(&self) -> Result<()> {
        let services = usize::try_from(self.services - 2)?;
        let endpoints = usize::from(ENDPOINTS);
        let synthetic = Synthetic { services, endpoints, families: Families::V4 };
        let start = Instant::now();
        self.cluster.fabric().run(|| -> Result<()> {
            let mut etcd = self.plane.etcd();
            let mut number = 0;
            synthetic.each_json(|text| {
                number += 1;
                let object: Value = serde_json::from_str(text)?;
                for (key, value) in stored(object, number) {
                    etcd.put(&key, &value.to_string()).map_err(std::io::Error::other)?;
                }
                Ok(())
            })?;
            etcd.flush()
        })??;
        // The API server tells of them when it has seen the last.
        let last = format!("/api/v1/namespaces/synthetic/services/service-{}", services - 1);
        let slices = "/apis/discovery.k8s.io/v1/namespaces/synthetic/endpointslices?limit=1";
        for path in [last.as_str(), slices] {
            wait::until("the API server to tell what it has", TOLD_WITHIN, || {
                self.plane
                    .kubectl(&["get", "--raw", path])
                    .is_ok_and(|text| text.contains("synthetic"))
            })?;
        }
        say(&format!(
            "{} Services are behind the API server after {:.0?}",
            self.services,
            start.elapsed()
        ));
        Ok(())
    }

    fn agent(&self) -> Result<Agent> {
        let node = &self.cluster.nodes()[0];
        self.cluster
            .agent(0, Source::Kubeconfig(self.plane.proxy_kubeconfig()))?
            .starts_in(&node.netns)
            .env("RUST_LOG", "info,lb_agent::source::api=debug")
            .start_unsynced()
    }

    /// The agent has all Services, and in each all endpoints.
    fn check(&self, agent: &Agent) -> Result<()> {
        let lines = agent.log().all();
        let synced =
            lines.iter().rev().find(|line| line.contains(SYNCED)).context("no synced line")?;
        let (seen, missing) = (number(synced, "services"), number(synced, "unprogrammed"));
        ensure!(
            (seen, missing) == (Some(self.services.into()), Some(0)),
            "of {} Services the agent says: {synced}",
            self.services
        );
        Ok(())
    }

    /// Replaces the oldest endpoint of a Service, for the so-manieth time.
    pub(super) fn apply_change(&self, change: u32) -> Result<()> {
        let pods = change..change + u32::from(ENDPOINTS);
        let name = format!("{CHANGED}-a");
        let slice = EndpointSlice::new("default", &name, CHANGED, "IPv4").port("http", "TCP", 8080);
        let slice = pods.fold(slice, |slice, pod| {
            let ip: IpAddr = Ipv4Addr::from(0x0aff_0000 + 1 + pod).into();
            slice.endpoint(Endpoint::ready(ip))
        });
        self.plane.apply(Manifest::new().set(slice))
    }

    /// Milliseconds from the event to the commit, and from the call to the commit.
    fn change_seen(&self, agent: &Agent, change: u32) -> Result<(f64, f64)> {
        let mut mark = agent.log().mark();
        let start = Instant::now();
        self.apply_change(change)?;
        let mut reading = None;
        loop {
            let either = |line: &str| line.contains(READING) || line.contains(COMMITTED);
            let (line, after) = agent.log().wait_from(mark, "commit", COMMIT_WITHIN, either)?;
            mark = after;
            if line.contains(READING) {
                // Others are of bookmarks.
                reading = line.contains("endpointslices").then_some(line).or(reading);
            } else if let Some(reading) = reading {
                let time =
                    |line: &str| seconds(line).with_context(|| format!("no time in {line:?}"));
                let commit = (time(&line)? - time(&reading)?) * 1000.0;
                return Ok((commit, millis(start.elapsed())));
            }
        }
    }
}

/// What the API server would store of an object: for a Service also that its address is in use, or
/// it spends its time on mending that.
fn stored(mut object: Value, number: u32) -> Vec<(String, Value)> {
    let uid = |of: u32| format!("00000000-0000-4000-9000-{of:012x}");
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    object["metadata"]["uid"] = uid(number).into();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }
    let key = |folder: &str| format!("/registry/{folder}/synthetic/{name}");
    match object["kind"].as_str() {
        Some("Service") => {
            let vip = Ipv4Addr::from(0x0a60_0000 + 256 + number).to_string();
            object["spec"]["clusterIP"] = vip.as_str().into();
            object["spec"]["clusterIPs"] = json!([vip]);
            let address = json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
                "metadata": {
                    "name": vip, "uid": uid(number + (1 << 24)),
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {
                        "ipaddress.kubernetes.io/ip-family": "IPv4",
                        "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"
                    }
                },
                "spec": {"parentRef": {
                    "group": "", "resource": "services", "namespace": "synthetic", "name": name
                }}
            });
            let address_key = format!("/registry/ipaddresses/{vip}");
            vec![(address_key, address), (key("services/specs"), object)]
        }
        Some("EndpointSlice") => vec![(key("endpointslices"), object)],
        _ => Vec::new(), // Nodes are registered by those who are there.
    }
}
