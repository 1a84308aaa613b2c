//! Do the agent's tables follow what the real API server and its controllers write? Pods come, get
//! ready, are scaled and go; labels, the Node and its zone change; the agent is the restricted user
//! `system:kube-proxy`. What a kubelet would do is done here.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    address::{node_v4, node_v6},
    agent::{Agent, Source},
    apiserver::ApiServer,
    cluster::{At, Cluster, Family, Spec, Topology},
    manifest::{Manifest, Node},
    require,
    rig::IN_FORCE_WITHIN,
    wait,
};
use serde_json::{Value, json};

/// How long controllers may take to do their part.
const CONTROLLERS_WITHIN: Duration = Duration::from_mins(1);
const ZONE: &str = "topology.kubernetes.io/zone";
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// A cluster of namespaces, a control plane, and the agent of node 0.
struct World {
    // Dropped in this order.
    agent: Agent,
    plane: ApiServer,
    cluster: Cluster,
}

#[test]
fn the_tables_follow_what_controllers_write() -> Result<()> {
    let Some(world) = World::start("the_tables_follow_what_controllers_write")? else {
        return Ok(());
    };
    world.create(&[service("app", &json!({})), replica_set("app", "node-0", 2)])?;
    let vips = world.cluster_ips("app")?;
    // Nothing is ready: the frontends reject (V-3).
    world.wait_backends(&vips, &[])?;
    let pods = world.wait_pods("app", 2)?;
    world.set_ready(&pods[0], 1, true)?;
    world.set_ready(&pods[1], 2, true)?;
    world.wait_backends(&vips, &[1, 2])?;

    // Scaled up.
    world.plane.kubectl(&["scale", "rs/app", "--replicas=4"])?;
    let all = world.wait_pods("app", 4)?;
    let mut new = all.iter().filter(|pod| !pods.contains(pod));
    let [third, fourth] = [new.next(), new.next()].map(|pod| pod.cloned().unwrap_or_default());
    world.set_ready(&third, 3, true)?;
    world.set_ready(&fourth, 4, true)?;
    world.wait_backends(&vips, &[1, 2, 3, 4])?;

    // E-12, T-1: what is not ready gets nothing new.
    world.set_ready(&third, 3, false)?;
    world.wait_backends(&vips, &[1, 2, 4])?;
    world.set_ready(&third, 3, true)?;
    world.wait_backends(&vips, &[1, 2, 3, 4])?;

    // A pod that is asked to end leaves the set, and is gone when its kubelet says so.
    world.plane.kubectl(&["delete", "pod", &fourth, "--wait=false"])?;
    world.wait_backends(&vips, &[1, 2, 3])?;
    world.remove_pod(&fourth)?;
    // There is another in its place, which never runs.
    world.wait_pods("app", 4)?;

    // T-2: as long as nothing is ready, what still serves while it ends is used.
    world.plane.kubectl(&["scale", "rs/app", "--replicas=0"])?;
    world.wait_terminating("app", 4)?;
    world.wait_backends(&vips, &[1, 2, 3])?;
    for pod in world.pods("app")? {
        world.remove_pod(&pod)?;
    }
    world.wait_backends(&vips, &[])?;

    // A Service that goes takes its frontends along.
    world.plane.kubectl(&["delete", "service", "app"])?;
    world.wait_frontends(&vips, false)?;
    world.ensure_allowed()
}

#[test]
fn labels_that_hand_a_service_to_others_act_at_once_in_both_ways() -> Result<()> {
    let test = "labels_that_hand_a_service_to_others_act_at_once_in_both_ways";
    let Some(world) = World::start(test)? else { return Ok(()) };
    world.create(&[service("app", &json!({})), pod("app", "one", "node-0")])?;
    let vips = world.cluster_ips("app")?;
    world.set_ready("one", 1, true)?;
    world.wait_backends(&vips, &[1])?;
    // S-1, S-2, E-5: the controller writes the same labels to the slices.
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let (set, unset) = (format!("{label}=other"), format!("{label}-"));
        world.plane.kubectl(&["label", "service", "app", &set])?;
        world.wait_frontends(&vips, false).with_context(|| set.clone())?;
        world.plane.kubectl(&["label", "service", "app", &unset])?;
        world.wait_backends(&vips, &[1]).with_context(|| unset.clone())?;
    }
    world.ensure_allowed()
}

#[test]
fn zones_ranges_and_health_follow_the_objects_that_tell_them() -> Result<()> {
    let test = "zones_ranges_and_health_follow_the_objects_that_tell_them";
    let Some(world) = World::start(test)? else { return Ok(()) };
    world.label_node("node-0", &format!("{ZONE}=a"))?;
    world.label_node("node-1", &format!("{ZONE}=b"))?;
    let near = json!({"trafficDistribution": "PreferClose"});
    world.create(&[
        service("app", &near),
        pod("app", "here", "node-0"),
        pod("app", "there", "node-1"),
    ])?;
    let vips = world.cluster_ips("app")?;
    world.set_ready("here", 1, true)?;
    world.set_ready("there", 2, true)?;
    // T-6 to T-8: the controller hints at zones; this node is in zone a.
    world.wait_backends(&vips, &[1])?;
    // T-10, T-11: the node moves, and its pod follows once the controller writes other hints.
    world.label_node("node-0", &format!("{ZONE}=b"))?;
    wait::until("the backends of the other zone", IN_FORCE_WITHIN, || {
        let found = vips.each_ref().map(|vip| world.backends(vip).ok().flatten());
        vips.iter()
            .zip(found)
            .all(|(vip, found)| found.is_some_and(|found| found.is_superset(&targets(vip, &[2]))))
    })?;

    // V-13: the range of the cluster's Services is known.
    let cidrs = world.plane.kubectl(&["get", "servicecidrs", "-o", "jsonpath={..cidrs}"])?;
    ensure!(cidrs.contains("10.96.0.0/16"), "no ServiceCIDR: {cidrs}");

    // H-4: a node that is about to be removed gets no traffic of load balancers.
    world.wait_health("/healthz", 200)?;
    let taint = "ToBeDeletedByClusterAutoscaler=1:NoSchedule";
    world.plane.kubectl(&["taint", "node", "node-0", taint])?;
    world.wait_health("/healthz", 503)?;
    world.wait_health("/livez", 200)?;
    world.plane.kubectl(&["taint", "node", "node-0", &format!("{taint}-")])?;
    world.wait_health("/healthz", 200)?;
    // T-11: a Node that is deleted keeps its zone here. Its controllers may take back what they hinted,
    // so more may be served by now, but what was chosen for the zone is.
    world.plane.kubectl(&["delete", "node", "node-0"])?;
    world.wait_health("/healthz", 503)?;
    world.wait_health("/livez", 200)?;
    let found = world.backends(&vips[0])?.unwrap_or_default();
    ensure!(found.is_superset(&targets(&vips[0], &[2])), "the Node was deleted: {found:?}");
    world.ensure_allowed()
}

impl World {
    fn start(test: &str) -> Result<Option<Self>> {
        if !require::root_or_skip(test) {
            return Ok(None);
        }
        let Some(assets) = require::kubernetes_or_skip(test) else { return Ok(None) };
        let cluster = Cluster::build(Spec {
            pods_per_node: 1,
            topology: Topology::Routed,
            ..Spec::default()
        })?;
        let plane = ApiServer::start_in(
            &assets,
            cluster.fabric(),
            cluster.address(At::Fabric, Family::V4),
        )?;
        let mut manifest = Manifest::new();
        for (number, node) in cluster.nodes().iter().enumerate() {
            manifest.set(Node::new(&node.name, &[node_v4(number).into(), node_v6(number).into()]));
        }
        plane.apply(&manifest)?;
        for node in cluster.nodes() {
            // As its kubelet would say: without, controllers leave the node's pods out.
            let status = json!({"status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]
            }});
            patch_status(&plane, "node", &node.name, &status)?;
        }
        let agent = cluster
            .agent(0, Source::Kubeconfig(plane.proxy_kubeconfig()))?
            .starts_in(&cluster.nodes()[0].netns)
            .start()?;
        Ok(Some(Self { agent, plane, cluster }))
    }

    fn create(&self, objects: &[Value]) -> Result<()> {
        let mut manifest = Manifest::new();
        for object in objects {
            manifest.set(object.clone());
        }
        self.plane.apply(&manifest)
    }

    /// What the API server has allocated, a frontend in each family.
    fn cluster_ips(&self, service: &str) -> Result<[SocketAddr; 2]> {
        let text = self.plane.kubectl(&["get", "service", service, "-o", "json"])?;
        let object: Value = serde_json::from_str(&text)?;
        let ip = |index: usize| -> Result<SocketAddr> {
            let text = object["spec"]["clusterIPs"][index].as_str().context("a clusterIP")?;
            Ok(SocketAddr::new(text.parse()?, PORT))
        };
        Ok([ip(0)?, ip(1)?])
    }

    fn pods(&self, app: &str) -> Result<Vec<String>> {
        let selector = format!("app={app}");
        let text = self.plane.kubectl(&["get", "pods", "-l", &selector, "-o", "name"])?;
        Ok(text.lines().filter_map(|line| line.strip_prefix("pod/")).map(str::to_owned).collect())
    }

    fn wait_pods(&self, app: &str, count: usize) -> Result<Vec<String>> {
        let what = format!("{count} pods of {app}");
        wait::until_some(&what, CONTROLLERS_WITHIN, || {
            self.pods(app).ok().filter(|pods| pods.len() == count)
        })
    }

    fn wait_terminating(&self, app: &str, count: usize) -> Result<()> {
        let selector = format!("app={app}");
        let path = "jsonpath={..deletionTimestamp}";
        wait::until("pods to be asked to end", CONTROLLERS_WITHIN, || {
            let text = self.plane.kubectl(&["get", "pods", "-l", &selector, "-o", path]);
            text.is_ok_and(|text| text.split_whitespace().count() == count)
        })
    }

    /// Says as the kubelet of its node that a pod runs with these addresses, and whether it is ready.
    fn set_ready(&self, pod: &str, number: u8, ready: bool) -> Result<()> {
        let [v4, v6] = addresses(number);
        let ready = if ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
            "conditions": [{"type": "Ready", "status": ready}]
        }});
        patch_status(&self.plane, "pod", pod, &status)
    }

    /// Says as the kubelet that a pod has ended.
    fn remove_pod(&self, pod: &str) -> Result<()> {
        self.plane.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0"]).map(drop)
    }

    fn label_node(&self, node: &str, label: &str) -> Result<()> {
        self.plane.kubectl(&["label", "--overwrite", "node", node, label]).map(drop)
    }

    /// The frontends at an address and port, of all protocols.
    fn frontends(&self, at: &SocketAddr) -> Result<Vec<Value>> {
        let text = self.agent.command("services", &["--output", "json"])?;
        let shown: Value = serde_json::from_str(&text)?;
        let all = shown["frontends"].as_array().context("a list of frontends")?;
        let is_it = |f: &&Value| {
            f["address"] == at.ip().to_string() && f["port"].as_u64() == Some(at.port().into())
        };
        Ok(all.iter().filter(is_it).cloned().collect())
    }

    /// The backends that new connections to a frontend go to; nothing if it is not there.
    fn backends(&self, at: &SocketAddr) -> Result<Option<BTreeSet<SocketAddr>>> {
        let frontends = self.frontends(at)?;
        let Some(frontend) = frontends.first() else { return Ok(None) };
        let mut found = BTreeSet::new();
        for backend in frontend["backends"].as_array().context("a list of backends")? {
            if backend["in_cluster"] != true {
                continue; // It keeps what it has.
            }
            let ip: IpAddr = backend["address"].as_str().context("an address")?.parse()?;
            let port = backend["port"].as_u64().context("a port")?;
            found.insert(SocketAddr::new(ip, u16::try_from(port)?));
        }
        Ok(Some(found))
    }

    /// Waits until both frontends lead to exactly these pods.
    fn wait_backends(&self, vips: &[SocketAddr; 2], pods: &[u8]) -> Result<()> {
        for vip in vips {
            let wanted = targets(vip, pods);
            let mut last = String::new();
            wait::until(&format!("the backends of {vip}"), IN_FORCE_WITHIN, || {
                let found = self.backends(vip);
                last = format!("{found:?}");
                found.is_ok_and(|found| found.as_ref() == Some(&wanted))
            })
            .with_context(|| format!("wanted {wanted:?}, there was {last}"))?;
        }
        Ok(())
    }

    fn wait_frontends(&self, vips: &[SocketAddr; 2], there: bool) -> Result<()> {
        wait::until("the frontends to come or go", IN_FORCE_WITHIN, || {
            vips.iter().all(|vip| self.frontends(vip).is_ok_and(|found| found.is_empty() != there))
        })
    }

    /// Waits until the agent's server of health checks answers with this code.
    fn wait_health(&self, path: &str, code: u16) -> Result<()> {
        let mut last = String::new();
        wait::until(&format!("{path} to answer {code}"), IN_FORCE_WITHIN, || {
            last = self.health(path).unwrap_or_else(|error| format!("{error:#}"));
            last.starts_with(&format!("HTTP/1.1 {code} ")) && last.contains("lastUpdated")
        })
        .with_context(|| format!("the last answer: {last}"))
    }

    fn health(&self, path: &str) -> Result<String> {
        self.cluster.run(At::Node(0), || -> Result<String> {
            let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, 10256))?;
            stream.set_read_timeout(Some(IN_FORCE_WITHIN))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }

    /// Nothing that the agent asked for was forbidden to it.
    fn ensure_allowed(&self) -> Result<()> {
        let lines = self.agent.log().all();
        let refused = lines.iter().find(|line| line.contains("cannot read from the API server"));
        ensure!(refused.is_none(), "{refused:?}");
        Ok(())
    }
}

/// The addresses of a pod of that number.
fn addresses(number: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 9, 0, 0, 0, number.into());
    [Ipv4Addr::new(10, 244, 9, number).into(), v6.into()]
}

/// Where these pods listen, in the family of a frontend.
fn targets(vip: &SocketAddr, pods: &[u8]) -> BTreeSet<SocketAddr> {
    let of_family =
        |number: &u8| addresses(*number).into_iter().find(|ip| ip.is_ipv4() == vip.is_ipv4());
    pods.iter().filter_map(of_family).map(|ip| SocketAddr::new(ip, TARGET)).collect()
}

fn patch_status(plane: &ApiServer, kind: &str, name: &str, status: &Value) -> Result<()> {
    let patch = status.to_string();
    plane
        .kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch])
        .map(drop)
}

fn service(name: &str, further: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"app": name}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "port": PORT, "targetPort": TARGET}]
        }
    });
    for (field, value) in further.as_object().into_iter().flatten() {
        service["spec"][field] = value.clone();
    }
    service
}

fn pod_spec(node: &str) -> Value {
    json!({
        "nodeName": node, "terminationGracePeriodSeconds": 600,
        "containers": [{"name": "app", "image": "none", "ports": [{"containerPort": TARGET}]}]
    })
}

fn pod(app: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": pod_spec(node)
    })
}

fn replica_set(app: &str, node: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": app, "namespace": "default"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": app}},
            "template": {"metadata": {"labels": {"app": app}}, "spec": pod_spec(node)}
        }
    })
}
