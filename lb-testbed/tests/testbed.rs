//! Does the testbed itself work? Pods talk across nodes without Millrace, and nothing is left.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    apiserver::ApiServer,
    cluster::{At, Cluster, Family, Place, Spec},
    foreign::{Direction, Order, Policy},
    id,
    manifest::{Manifest, Node, Service},
    matrix::{Case, TOPOLOGIES},
    packet::{Packet, TcpFlags},
    peer::{self, Close, LoadKind, STEP},
    process::Launch,
    require,
    sweep::{self, Whose},
    testrun::{self, Kind},
    wait,
};

#[test]
fn pods_reach_pods_of_their_own_and_of_another_node() -> Result<()> {
    if !require::root_or_skip("pods_reach_pods_of_their_own_and_of_another_node") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let cluster = Cluster::build(Spec { topology, ..Spec::default() })?;
        let _near = cluster.serve(At::Pod(0, 1), "near", 8080)?;
        let _far = cluster.serve(At::Pod(1, 0), "far", 8080)?;
        let _host = cluster.serve(At::Node(1), "host", 8081)?;
        for case in Case::all() {
            let mut client = cluster.peer(At::Pod(0, 0), case.engine.place())?;
            for (at, name, port) in [
                (At::Pod(0, 1), "near", 8080),
                (At::Pod(1, 0), "far", 8080),
                (At::Node(1), "host", 8081),
            ] {
                let to = SocketAddr::new(cluster.address(at, case.family), port);
                let sock = case.connect(&mut client, to)?;
                assert_eq!(sock.remote, Some(to));
                let reply = client.ask(&sock, "hello")?;
                assert_eq!(reply.server, name, "{topology}, {case}");
                assert_eq!(reply.local, to);
                assert_eq!(
                    reply.client, sock.local,
                    "{topology}, {case}: nothing rewrites the source"
                );
                assert_eq!(reply.client.ip(), cluster.address(At::Pod(0, 0), case.family));
                assert_eq!(case.once(&mut client, to)?.server, name);
            }
        }
    }
    Ok(())
}

#[test]
fn a_pod_added_later_is_reachable() -> Result<()> {
    if !require::root_or_skip("a_pod_added_later_is_reachable") {
        return Ok(());
    }
    for topology in TOPOLOGIES {
        let mut cluster = Cluster::build(Spec { pods_per_node: 1, topology, ..Spec::default() })?;
        let pod = cluster.add_pod(1)?;
        let _server = cluster.serve(At::Pod(1, pod), "late", 80)?;
        let mut client = cluster.peer(At::Pod(0, 0), Place::InCgroup)?;
        for family in Family::ALL {
            let to = SocketAddr::new(cluster.address(At::Pod(1, pod), family), 80);
            assert_eq!(client.tcp_once(to)?.server, "late");
        }
    }
    Ok(())
}

#[test]
fn peers_report_what_the_kernel_reports() -> Result<()> {
    if !require::root_or_skip("peers_report_what_the_kernel_reports") {
        return Ok(());
    }
    let cluster = Cluster::build(Spec { nodes: 1, ..Spec::default() })?;
    let mut server = cluster.serve(At::Pod(0, 1), "server", 80)?;
    let mut client = cluster.peer(At::Pod(0, 0), Place::Outside)?;
    for family in Family::ALL {
        let address = cluster.address(At::Pod(0, 1), family);
        let to = SocketAddr::new(address, 80);

        let refused = client.tcp_connect(SocketAddr::new(address, 81)).unwrap_err();
        assert_eq!(peer::errno(&refused), Some(libc::ECONNREFUSED), "{refused:#}");
        let silent = client.udp_open(to)?;
        let late = client.receive(silent.id, Duration::from_millis(20)).unwrap_err();
        assert_eq!(peer::errno(&late), Some(libc::EAGAIN), "{late:#}");

        let from = SocketAddr::new(cluster.address(At::Pod(0, 0), family), 34_567);
        let sock = client.tcp_connect_from(Some(from), to, STEP)?;
        assert_eq!(sock.local, from);
        client.bulk(sock.id, 3_000_000)?;
        assert_eq!(client.ask(&sock, "after bulk")?.client, from);
        client.close(sock.id, Close::Write)?;
        assert_eq!(client.receive(sock.id, STEP)?, None, "the server closes as well");
        client.close(sock.id, Close::Reset)?;
        assert!(client.names(sock.id).is_err(), "the socket is gone");

        let sock = client.udp_open(to)?;
        let (reply, from) = client.ask_to(sock.id, to, &"x".repeat(4000), STEP)?;
        assert_eq!((reply.server.as_str(), from), ("server", Some(to)));
        let connected = client.udp_connect(sock.id, to)?;
        assert_eq!(connected.remote, Some(to));
        assert_eq!(client.ask(&connected, "connected")?.client.port(), sock.local.port());

        for kind in [
            LoadKind::TcpConnections,
            LoadKind::TcpEstablished,
            LoadKind::UdpConnected,
            LoadKind::UdpUnconnected,
            LoadKind::UdpSockets,
        ] {
            let load = client.load(to, kind, STEP)?;
            client.load_goes_on(load, 20, STEP)?;
            let stats = client.load_stop(load)?;
            assert_eq!(stats.failed, 0, "{kind:?}: {stats:?}");
            assert_eq!(stats.by_server.get("server"), Some(&stats.answered));
        }
        let stats = client.crr(to, 50)?;
        assert_eq!((stats.answered, stats.failed), (50, 0), "{stats:?}");
        let nobody = client.crr(SocketAddr::new(address, 81), 2)?;
        assert_eq!((nobody.answered, nobody.failed), (0, 2));
    }
    assert!(cluster.nodes()[0].cgroup.processes().contains(&server.pid()));
    assert!(cluster.outside().processes().contains(&client.pid()));
    // A load notices that its server has gone.
    let to = SocketAddr::new(cluster.address(At::Pod(0, 1), Family::V4), 80);
    let load = client.load(to, LoadKind::TcpConnections, Duration::from_secs(1))?;
    client.load_goes_on(load, 1, STEP)?;
    server.kill()?;
    wait::until("a failed request", STEP, || {
        client.load_stats(load).is_ok_and(|stats| stats.failed > 0)
    })?;
    Ok(())
}

#[test]
fn a_service_address_leads_nowhere_without_millrace() -> Result<()> {
    if !require::root_or_skip("a_service_address_leads_nowhere_without_millrace") {
        return Ok(());
    }
    let cluster = Cluster::build(Spec::default())?;
    let _server = cluster.serve(At::Pod(1, 0), "server", 80)?;
    let mut client = cluster.peer(At::Pod(0, 0), Place::InCgroup)?;
    for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
        let deadline = Duration::from_millis(300);
        let error = client.tcp_connect_from(None, vip.parse()?, deadline).unwrap_err();
        assert_eq!(peer::errno(&error), Some(libc::ETIMEDOUT), "{error:#}");
    }
    Ok(())
}

#[test]
fn nothing_is_left_after_a_process_ends_well_or_badly() -> Result<()> {
    if !require::root_or_skip("nothing_is_left_after_a_process_ends_well_or_badly") {
        return Ok(());
    }
    // The names belong to the maker, and tests run side by side in this process: a process of its
    // own makes the cluster.
    for kill in [false, true] {
        let mut maker = Launch::new("maker", std::env::current_exe()?)
            .args(["--exact", "a_cluster_for_another_test", "--ignored", "--nocapture"])
            .spawn()?;
        maker.stdout().wait("cluster", Duration::from_secs(30), |line| line.contains("built"))?;
        let pid = maker.pid();
        let made = sweep::owned_by(pid);
        // Two nodes with two pods each and the fabric; one cgroup, one mount, one folder.
        assert_eq!(made.len(), 7 + 3, "{made:?}");
        let swept = sweep::sweep(Whose::TheDead).removed;
        assert!(swept.iter().all(|path| id_of(path) != Some(pid)), "a living owner: {swept:?}");
        if kill {
            maker.kill()?;
            assert!(!sweep::owned_by(pid).is_empty(), "kill -9 lets no guard run");
            let report = sweep::sweep(Whose::TheDead);
            assert!(report.failed.is_empty(), "{report}");
            let mut removed: Vec<_> =
                report.removed.into_iter().filter(|path| id_of(path) == Some(pid)).collect();
            removed.sort();
            // Another test's sweep may have been first.
            assert!(removed.len() <= made.len(), "{removed:?}");
        } else {
            drop(maker.take_stdin());
            ensure!(maker.wait(Duration::from_secs(30))?.success(), "the maker failed");
        }
        assert_eq!(sweep::owned_by(pid), Vec::<String>::new());
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        assert!(!mounts.contains(&format!("/mr-{pid}-")), "{mounts}");
        assert!(!mounts.contains(&format!("/millrace-test/{pid}-")), "{mounts}");
        let children = format!("/proc/{pid}");
        assert!(!std::path::Path::new(&children).exists());
    }
    Ok(())
}

/// Not a test by itself: the process that another test starts and ends.
#[test]
#[ignore = "run by nothing_is_left_after_a_process_ends_well_or_badly"]
fn a_cluster_for_another_test() -> Result<()> {
    let cluster = Cluster::build(Spec::default())?;
    let _server = cluster.serve(At::Pod(0, 0), "server", 80)?;
    println!("\nbuilt");
    let mut end = String::new();
    std::io::stdin().read_line(&mut end)?;
    Ok(())
}

#[test]
fn a_foreign_policy_drops_what_it_names_and_nothing_else() -> Result<()> {
    if !require::root_or_skip("a_foreign_policy_drops_what_it_names_and_nothing_else") {
        return Ok(());
    }
    let cluster = Cluster::build(Spec::default())?;
    let _servers =
        [cluster.serve(At::Pod(0, 1), "near", 80)?, cluster.serve(At::Pod(1, 0), "far", 80)?];
    let node = &cluster.nodes()[0];
    let port = &node.pods[0].host_interface;
    let mut client = cluster.peer(At::Pod(0, 0), Place::Outside)?;
    let mut reaches = |pod: At, family| {
        let to = SocketAddr::new(cluster.address(pod, family), 80);
        let sock = client.tcp_connect_from(None, to, Duration::from_millis(300));
        sock.is_ok_and(|sock| client.ask(&sock, "hello").is_ok())
    };
    let policy = Policy::nothing_to(&cluster.addresses(At::Pod(0, 1)));
    let everything = Policy::no_service_address();
    for order in [Order::First, Order::Last] {
        let _idle = everything.attach(&node.netns, port, Direction::Ingress, order)?;
        let attached = policy.attach(&node.netns, port, Direction::Ingress, order)?;
        for family in Family::ALL {
            assert!(!reaches(At::Pod(0, 1), family), "{order:?}, {family}");
            assert!(reaches(At::Pod(1, 0), family), "{order:?}, {family}");
        }
        drop(attached);
        for family in Family::ALL {
            assert!(reaches(At::Pod(0, 1), family), "{order:?}, {family}: detached");
        }
    }
    // Service addresses, as the pod's own here: what it sends is dropped, and what is sent to it.
    cluster
        .netns(At::Pod(0, 0))
        .ip("addr add 10.96.0.9/32 dev lo\naddr add fd00:10:96::9/128 dev lo nodad")?;
    let from = ["10.96.0.9:0", "[fd00:10:96::9]:0"];
    node.netns.ip(
        "route add 10.96.0.9/32 via 10.244.0.10\nroute add fd00:10:96::9/128 via fd00:10:244::10",
    )?;
    for direction in [Direction::Ingress, Direction::Egress] {
        let mut outcome = |family: Family| {
            let to = SocketAddr::new(cluster.address(At::Node(0), family), 81);
            let from = from[usize::from(family == Family::V6)].parse().ok();
            let error = client.tcp_connect_from(from, to, Duration::from_millis(300)).unwrap_err();
            peer::errno(&error)
        };
        for family in Family::ALL {
            assert_eq!(outcome(family), Some(libc::ECONNREFUSED), "{family}: nobody listens");
        }
        let _attached = everything.attach(&node.netns, port, direction, Order::First)?;
        for family in Family::ALL {
            assert_eq!(outcome(family), Some(libc::ETIMEDOUT), "{direction:?}, {family}");
        }
    }
    Ok(())
}

#[test]
fn programs_run_over_packets() -> Result<()> {
    if !require::root_or_skip("programs_run_over_packets") {
        return Ok(());
    }
    let packet = Packet::new("10.0.0.1", "10.0.0.2").tcp(1, 2, TcpFlags::SYN).build();
    for (kind, verdict) in [(Kind::SchedCls, 2), (Kind::SchedCls, -1), (Kind::Xdp, 1)] {
        let program = testrun::load_empty(kind, verdict, 0)?;
        let output = testrun::once(program.as_fd(), &packet)?;
        assert_eq!(output.verdict.cast_signed(), verdict);
        assert_eq!(output.data, packet);
        assert!(testrun::once(program.as_fd(), &packet[..13]).is_err(), "shorter than Ethernet");
    }
    Ok(())
}

#[test]
fn a_real_api_server_answers_administrator_and_proxy() -> Result<()> {
    let test = "a_real_api_server_answers_administrator_and_proxy";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let Some(assets) = require::kubernetes_or_skip(test) else { return Ok(()) };
    let plane = ApiServer::start(&assets)?;
    let vips: [IpAddr; 2] = ["10.96.0.10".parse()?, "fd00:10:96::10".parse()?];
    let endpoints: [IpAddr; 1] = ["10.244.0.10".parse()?];
    let mut manifest = Manifest::new();
    manifest
        .set(Node::new("node-0", &["172.18.0.10".parse()?]).pod_cidrs(&["10.244.0.0/24"]))
        .publish("web", &vips, 80, 8080, &endpoints)
        .set(Service::new("default", "bare", &["10.96.0.11".parse()?]).port("x", "TCP", 1, 2));
    plane.apply(&manifest)?;
    let services = plane.kubectl(&["get", "services", "-A", "-o", "name"])?;
    assert!(services.contains("service/web") && services.contains("service/bare"), "{services}");
    let proxy = plane.proxy_kubeconfig();
    let proxy = proxy.to_str().context("a path in UTF-8")?;
    let slices =
        plane.kubectl(&["--kubeconfig", proxy, "get", "endpointslices", "-A", "-o", "json"])?;
    assert!(slices.contains("10.244.0.10"), "{slices}");
    let forbidden = plane.kubectl(&["--kubeconfig", proxy, "get", "pods", "-A"]).unwrap_err();
    assert!(format!("{forbidden:#}").contains("forbidden"), "{forbidden:#}");
    Ok(())
}

fn id_of(path: &str) -> Option<u32> {
    let name = path.rsplit('/').next()?;
    ["mr-", "millrace-test-", ""].iter().find_map(|prefix| id::owner(name, prefix))
}
