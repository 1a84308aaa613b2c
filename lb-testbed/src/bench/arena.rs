//! One cluster of namespaces in which Millrace and kube-proxy take turns: the same machines, cables
//! and clients for both.
//!
//! kube-proxy's rules are made by kube-proxy from the same objects, told by a real API server, and
//! then put in force and taken away by `nft`; meanwhile neither kube-proxy nor the API server runs,
//! so that neither takes time from what is measured.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{object, samples::say, scale::unload};
use crate::{
    address::{node_v4, node_v6, pod_net_v4, pod_net_v6},
    agent::{Agent, AgentSpec, Source},
    apiserver::{self, ApiServer},
    cluster::{At, Cluster, Family, Spec, Topology},
    kube_proxy::{self, KubeProxy, Rules},
    manifest::{Endpoint, EndpointSlice, Manifest, Node, Service},
    matrix::cell::Proxy,
    one_armed::wait_for_native_xdp,
};

/// A client's pod on node-0.
pub(super) const POD: At = At::Pod(0, 0);
/// A client behind a router.
pub(super) const OUTSIDE: At = At::Client(0);
/// The port of both Services.
pub(super) const PORT: u16 = 80;
/// The port that servers listen on.
pub(super) const TARGET: u16 = 8080;
/// The uplink of node-0, and its other end.
pub(super) const UPLINK: [&str; 2] = ["eth0", "n0"];
/// The node that everything goes through.
const NODE: usize = 0;
/// What stands for the rules of a network plugin: pods leave the cluster by their node's address, and
/// what connection tracking finds invalid is dropped.
const CNI: &str = "
table inet cni {
    chain forward {
        type filter hook forward priority filter;
        ct state invalid drop
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        ip6 saddr fd00:10:244::/48 ip6 daddr != fd00:10:244::/48 masquerade
    }
}
";

/// A Service, by where its only endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// A pod of node-0.
    Here,
    /// A pod of node-1.
    There,
}

/// The cluster, and who serves in it.
#[derive(Debug)]
pub(super) struct Arena {
    // Dropped before the cluster that it runs in.
    agent: Option<Agent>,
    has_rules: bool,
    rules: Rules,
    manifest: PathBuf,
    pub(super) cluster: Cluster,
}

impl Arena {
    /// Builds it, bare or with a network plugin's rules on node-0; nobody serves.
    pub(super) fn new(with_cni: bool) -> Result<Self> {
        say(&format!(
            "a cluster {} a network plugin's rules, and kube-proxy's rules for it",
            if with_cni { "with" } else { "without" }
        ));
        let cluster = Cluster::build(Spec {
            nodes: 2,
            pods_per_node: 2,
            topology: Topology::Routed,
            clients: 1,
            ..Spec::default()
        })?;
        let manifest = objects(&cluster);
        let path = cluster.scratch().join("state.json");
        manifest.write(&path)?;
        let node = &cluster.nodes()[NODE];
        let rules = rules(&cluster, &manifest).context("have kube-proxy make its rules")?;
        if with_cni {
            kube_proxy::nft_file(&node.netns, CNI)?;
        }
        // Of thousands of connections in a second, none is of interest for two minutes.
        let tracked = ("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "5");
        node.netns.sysctls(&[tracked])?;
        Ok(Self { agent: None, has_rules: false, rules, manifest: path, cluster })
    }

    /// Has a proxy serve, and nobody else.
    pub(super) fn serve(&mut self, proxy: Proxy) -> Result<()> {
        self.leave()?;
        let xdp: &[&str] = match proxy {
            Proxy::KubeProxy => {
                self.rules.put(&self.cluster.nodes()[NODE].netns)?;
                self.has_rules = true;
                return Ok(());
            }
            Proxy::Millrace => &[],
            Proxy::MillraceXdp => &["--xdp", "native", "--xdp-interfaces", UPLINK[0]],
        };
        let spec = self.cluster.agent(NODE, Source::Manifests(self.manifest.clone()))?;
        let spec = xdp.iter().fold(spec, AgentSpec::arg);
        let agent = self.agent.insert(spec.start()?);
        if proxy == Proxy::MillraceXdp {
            wait_for_native_xdp(agent, UPLINK[0])?;
        }
        Ok(())
    }

    /// Has nobody serve.
    pub(super) fn leave(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            unload(agent)?;
        }
        if self.has_rules {
            Rules::remove(&self.cluster.nodes()[NODE].netns)?;
            self.has_rules = false;
        }
        Ok(())
    }

    /// The clusterIP of a Service.
    pub(super) fn cluster_ip(backend: Backend, family: Family) -> SocketAddr {
        SocketAddr::new(cluster_ip(backend, family), PORT)
    }

    /// The `NodePort` of a Service at node-0.
    pub(super) fn node_port(&self, backend: Backend, family: Family) -> SocketAddr {
        SocketAddr::new(self.cluster.address(At::Node(NODE), family), node_port(backend))
    }
}

impl Backend {
    const ALL: [Self; 2] = [Self::Here, Self::There];

    /// Where it is.
    pub(super) fn at(self) -> At {
        match self {
            Self::Here => At::Pod(NODE, 1),
            Self::There => At::Pod(1, 0),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::There => "there",
        }
    }
}

fn rules(cluster: &Cluster, manifest: &Manifest) -> Result<Rules> {
    let assets = apiserver::assets().context("KUBEBUILDER_ASSETS is not set")?;
    let address = cluster.address(At::Fabric, Family::V4);
    let plane = ApiServer::start_in(&assets, cluster.fabric(), address)?;
    kube_proxy::publish(&plane, manifest)?;
    let node = &cluster.nodes()[NODE];
    let rules = KubeProxy::start(&plane, node)?.leave(&node.netns)?;
    Rules::remove(&node.netns)?;
    Ok(rules)
}

fn objects(cluster: &Cluster) -> Manifest {
    let mut manifest = Manifest::new();
    for (number, node) in cluster.nodes().iter().enumerate() {
        let addresses = [node_v4(number).into(), node_v6(number).into()];
        let object = Node::new(&node.name, &addresses);
        manifest.set(object.pod_cidrs(&[&pod_net_v4(number), &pod_net_v6(number)]));
    }
    for backend in Backend::ALL {
        let vips = Family::ALL.map(|family| cluster_ip(backend, family));
        let port = |name: &str, protocol: &str| {
            json!({
                "name": name, "protocol": protocol, "port": PORT, "targetPort": TARGET,
                "nodePort": node_port(backend),
            })
        };
        manifest.set(
            Service::new("default", backend.name(), &vips)
                .spec("type", "NodePort")
                .spec("externalTrafficPolicy", "Cluster")
                .spec("ports", vec![port("tcp", "TCP"), port("udp", "UDP")]),
        );
        let At::Pod(node, _) = backend.at() else { continue };
        for (ip, family) in cluster.addresses(backend.at()).into_iter().zip(["IPv4", "IPv6"]) {
            let name = format!("{}-{}", backend.name(), family.to_lowercase());
            manifest.set(
                EndpointSlice::new("default", &name, backend.name(), family)
                    .port("tcp", "TCP", TARGET)
                    .port("udp", "UDP", TARGET)
                    .endpoint(Endpoint::ready(ip).node(&cluster.nodes()[node].name)),
            );
        }
    }
    manifest
}

fn cluster_ip(backend: Backend, family: Family) -> IpAddr {
    let number = if backend == Backend::Here { 10 } else { 11 };
    match family {
        Family::V4 => object::vip4_address(number).into(),
        Family::V6 => object::vip6_address(number).into(),
    }
}

fn node_port(backend: Backend) -> u16 {
    if backend == Backend::Here { 30_080 } else { 30_081 }
}
