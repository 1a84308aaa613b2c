//! The agent's datapath on the real kernel: maps, links and interfaces without a cluster.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::IpAddr,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::{
    datapath::{
        self, BpfDatapath, Config, Datapath as _, Error, Interface, Sizes,
        fake::Fake,
        hooks::{self, Direction, SOCKET_HOOKS},
        interfaces::{self, Change},
        roles::{Overrides, Role},
        status, sys,
    },
    diff,
    model::{DesiredBackend, DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol},
    plan::{Capacity, NodeFacts, Planner, Snapshot},
};
use lb_common::abi::BackendFlags;
use lb_testbed::{bpffs::Bpffs, cgroup::Cgroup, netns::Netns, require};

const CAPACITY: Capacity =
    Capacity { service_ports: 64, backends: 256, slots: 256, frontends: 5000, addresses: 5000 };

/// What a datapath needs, removed on drop.
struct Rig {
    bpffs: Bpffs,
    cgroup: Cgroup,
    netns: Netns,
}

impl Rig {
    fn new() -> Result<Self> {
        Ok(Self { bpffs: Bpffs::new()?, cgroup: Cgroup::new()?, netns: Netns::new()? })
    }

    fn config(&self) -> Config {
        let sizes = Sizes {
            tables: CAPACITY,
            flows: 1024,
            half_open: 512,
            socket_peers: 512,
            udp_sockets: 512,
            affinity: 512,
        };
        Config {
            bpffs: self.bpffs.path().join("node"),
            cgroup: self.cgroup.path().into(),
            sizes,
            scope: datapath::Scope::All,
            node_netns: 0,
        }
    }

    fn folder(&self) -> PathBuf {
        datapath::folder(&self.config().bpffs)
    }

    fn open(&self) -> Result<BpfDatapath> {
        Ok(BpfDatapath::open(&self.config())?)
    }
}

fn key(service: u8, family: Family) -> PortKey {
    PortKey {
        namespace: "default".into(),
        service: format!("s{service}").into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family,
    }
}

fn desired(service: u8, family: Family, frontends: u16, endpoints: &[u8]) -> DesiredPort {
    let addr = |net: u8, n: u8| match family {
        Family::V4 => IpAddr::from([10, net, service, n]),
        Family::V6 => {
            IpAddr::from([0xfd00, u16::from(net), u16::from(service), 0, 0, 0, 0, u16::from(n)])
        }
    };
    let flags = BackendFlags::IN_CLUSTER | BackendFlags::SERVING | BackendFlags::READY;
    let external = |n| Frontend { kind: FrontendKind::ExternalIp, ..Frontend::cluster_ip(n, 1) };
    DesiredPort {
        created_s: 1,
        frontends: (1..=frontends)
            .map(|port| Frontend::cluster_ip(addr(96, 1), port))
            .chain([
                external(addr(97, 1)),
                Frontend::node_port(family, 30_000 + u16::from(service)),
            ])
            .collect(),
        backends: endpoints
            .iter()
            .map(|&n| DesiredBackend { addr: addr(0, n), port: 8080, flags })
            .collect(),
        internal_local: false,
        external_local: false,
        drop_when_no_local: true,
        affinity_timeout_s: Some(60),
    }
}

/// Facts of a node that moves on; each time some addresses and ranges go and some come.
fn node(round: u8) -> NodeFacts {
    let v6 = |n: u16| IpAddr::from([0xfd09, 0, 0, 0, 0, 0, 0, n]);
    NodeFacts {
        node_port_addresses: vec![
            ([192, 0, 2, round].into(), false),
            ([127, 0, 0, 1].into(), true),
            (v6(u16::from(round)), false),
        ],
        service_cidrs: (0..=2 - round)
            .flat_map(|n| [([10, 96 + n, 0, 0].into(), 16), (v6(u16::from(n) << 8), 120)])
            .collect(),
    }
}

/// The same in no matter which order frontends and addresses are read.
fn sorted(mut snapshot: Snapshot) -> Snapshot {
    snapshot.frontends.sort_by_key(|&(key, _)| key);
    snapshot.addresses.sort_by_key(|&(addr, _)| addr);
    snapshot
}

#[test]
fn kernel_maps_hold_what_maps_in_memory_hold() -> Result<()> {
    if !require::root_or_skip("kernel_maps_hold_what_maps_in_memory_hold") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let mut real = rig.open()?;
    let mut fake = Fake::new(CAPACITY);
    let mut planner = Planner::new(CAPACITY);
    let families = [Family::V4, Family::V6];
    // More frontends than one batch of a lookup holds; then some go, some come.
    for (round, (frontends, endpoints)) in
        (0..).zip([(2300, &[1, 2, 3][..]), (2200, &[1, 3, 4]), (2250, &[])])
    {
        planner.set_node(node(round));
        let updates = families.into_iter().flat_map(|family| {
            (1..=2).map(move |s| (key(s, family), Some(desired(s, family, frontends, endpoints))))
        });
        let batch = planner.plan(updates);
        let epoch = batch.epoch;
        let ops = diff::operations(batch);
        ensure!(real.apply(&ops).is_empty() && fake.apply(&ops).is_empty());
        ensure!(sorted(real.snapshot()?) == sorted(fake.snapshot()?), "round {round}");
        real.grace().wait()?;
        let ops = diff::clear(&planner.release(epoch));
        ensure!(real.apply(&ops).is_empty() && fake.apply(&ops).is_empty());
        ensure!(sorted(real.snapshot()?) == sorted(fake.snapshot()?), "round {round}");
    }
    drop(real);
    // A restart finds all of it, and has nothing to do.
    let real = rig.open()?;
    let (mut planner, retired) = Planner::adopt(CAPACITY, &real.snapshot()?);
    assert_eq!(retired, []);
    let all = families
        .into_iter()
        .flat_map(|family| (1..=2).map(move |s| (key(s, family), desired(s, family, 2250, &[]))));
    planner.set_node(node(2));
    ensure!(planner.plan_all(all).is_empty());
    Ok(())
}

#[test]
fn one_changed_endpoint_takes_no_system_call() -> Result<()> {
    if !require::root_or_skip("one_changed_endpoint_takes_no_system_call") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let mut real = rig.open()?;
    let mut planner = Planner::new(CAPACITY);
    let update = |endpoints| {
        [Family::V4, Family::V6].map(|f| (key(1, f), Some(desired(1, f, 3, endpoints))))
    };
    ensure!(real.apply(&diff::operations(planner.plan(update(&[1, 2])))).is_empty());
    let ops = diff::operations(planner.plan(update(&[1, 3])));
    let before = sys::calls();
    ensure!(real.apply(&ops).is_empty());
    ensure!(sys::calls() == before, "{before:?}, then {:?}", sys::calls());
    Ok(())
}

#[test]
fn frontends_that_do_not_fit_are_told_one_by_one() -> Result<()> {
    if !require::root_or_skip("frontends_that_do_not_fit_are_told_one_by_one") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let mut config = rig.config();
    config.sizes.tables.frontends = 8;
    let mut real = BpfDatapath::open(&config)?;
    // A planner that believes in more room than there is.
    let mut planner = Planner::new(CAPACITY);
    let batch = planner.plan([(key(1, Family::V4), Some(desired(1, Family::V4, 12, &[1])))]);
    let ops = diff::operations(batch);
    let failed = real.apply(&ops);
    // Twelve, an externalIP and a node port.
    assert_eq!(failed.len(), 6);
    for (index, error) in &failed {
        ensure!(matches!(ops.get(*index), Some(diff::Op::FrontendPut(..))));
        ensure!(error.to_string().contains("FRONTENDS4"), "{error}");
    }
    assert_eq!(real.snapshot()?.frontends.len(), 8);
    Ok(())
}

#[test]
fn pins_that_do_not_fit_are_refused() -> Result<()> {
    if !require::root_or_skip("pins_that_do_not_fit_are_refused") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let open = rig.open()?;
    ensure!(matches!(BpfDatapath::open(&rig.config()), Err(Error::InUse(_))));
    drop(open);
    let wrong = Config { bpffs: "/tmp".into(), ..rig.config() };
    ensure!(matches!(BpfDatapath::open(&wrong), Err(Error::NotBpffs(_))));
    let wrong = Config { cgroup: "/tmp".into(), ..rig.config() };
    ensure!(matches!(BpfDatapath::open(&wrong), Err(Error::NotCgroup2(_))));
    rig.open()?;
    Ok(())
}

#[test]
fn pinned_maps_keep_their_sizes_and_what_is_in_them() -> Result<()> {
    if !require::root_or_skip("pinned_maps_keep_their_sizes_and_what_is_in_them") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let mut real = rig.open()?;
    let mut planner = Planner::new(CAPACITY);
    let batch = planner.plan([(key(1, Family::V6), Some(desired(1, Family::V6, 2, &[1, 2])))]);
    ensure!(real.apply(&diff::operations(batch)).is_empty());
    let before = real.snapshot()?;
    drop(real);
    let mut other = rig.config();
    other.sizes = Sizes {
        tables: Capacity {
            service_ports: 128,
            backends: 257,
            slots: 128,
            frontends: 16,
            addresses: 16,
        },
        flows: 2048,
        half_open: 1024,
        socket_peers: 1024,
        udp_sockets: 1024,
        affinity: 1024,
    };
    let real = BpfDatapath::open(&other)?;
    assert_eq!(real.maps().capacity()?, CAPACITY);
    assert_eq!(sorted(real.snapshot()?), sorted(before));
    Ok(())
}

/// Id of the link and of its program, of every pinned link.
fn links(folder: &Path) -> Result<BTreeMap<String, (u32, u32)>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(folder.join("links"))? {
        let path = entry?.path();
        let info = sys::link_info(sys::object_get(&path)?.as_fd())?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        links.insert(name.to_owned(), (info.id, info.program));
    }
    Ok(links)
}

#[test]
fn socket_programs_are_replaced_in_place() -> Result<()> {
    if !require::root_or_skip("socket_programs_are_replaced_in_place") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let inner = rig.cgroup.child("pod")?;
    let mut real = rig.open()?;
    real.attach_sockets()?;
    ensure!(real.lacking().is_empty(), "{:?}", real.lacking());
    drop(real);
    let before = links(&rig.folder())?;
    assert_eq!(before.len(), SOCKET_HOOKS.len());
    let mut real = rig.open()?;
    real.attach_sockets()?;
    let after = links(&rig.folder())?;
    for (name, (link, program)) in &before {
        assert_eq!(after[name].0, *link, "{name}: the link stays");
        assert_ne!(after[name].1, *program, "{name}: its program is new");
    }
    for hook in status::socket_hooks(&rig.config().bpffs, inner.path())? {
        ensure!(hook.ours.is_some(), "{hook:?}");
    }
    // Another cgroup: the old links belong to nobody any more.
    drop(real);
    let other = Cgroup::new()?;
    let config = Config { cgroup: other.path().into(), ..rig.config() };
    BpfDatapath::open(&config)?.attach_sockets()?;
    for hook in status::socket_hooks(&config.bpffs, other.path())? {
        ensure!(hook.ours.is_some(), "{hook:?}");
    }
    for hook in status::socket_hooks(&config.bpffs, rig.cgroup.path())? {
        ensure!(hook.ours.is_none(), "{hook:?}");
    }
    Ok(())
}

fn interface(netns: &Netns, name: &str, ethernet: bool) -> Result<Interface> {
    let index = netns.ifindex(name)?;
    Ok(Interface { index, name: name.into(), role: Role::PodPort, ethernet })
}

#[test]
fn interface_programs_are_first_on_ingress_and_last_on_egress() -> Result<()> {
    if !require::root_or_skip("interface_programs_are_first_on_ingress_and_last_on_egress") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1\ntuntap add t0 mode tun")?;
    let veth = interface(&rig.netns, "v0", true)?;
    let tun = interface(&rig.netns, "t0", false)?;
    let bpffs = rig.config().bpffs;
    rig.netns.run(|| -> Result<()> {
        let foreign = lb_testbed::testrun::load_empty(lb_testbed::testrun::Kind::SchedCls, -1, 0)?;
        let mut kept = Vec::new();
        for direction in Direction::ALL {
            let target = sys::Target::Interface(veth.index);
            kept.push(sys::link_create(foreign.as_fd(), target, direction.attach_type(), 0)?);
        }
        let mut real = rig.open()?;
        real.attach(&veth)?;
        real.attach(&tun)?;
        let before = links(&rig.folder())?;
        drop(real);
        let mut real = rig.open()?;
        assert_eq!(real.attached().len(), 2, "found again by their pins");
        real.attach(&veth)?;
        real.attach(&tun)?;
        let after = links(&rig.folder())?;
        ensure!(
            before.iter().all(|(name, link)| after[name].0 == link.0 && after[name].1 != link.1)
        );
        for hook in status::interface_hooks(&bpffs, &veth) {
            assert_eq!(hook.programs.len(), 2);
            let place = usize::from(hook.name != "tc_ingress");
            assert_eq!(hook.ours, Some(place), "{hook:?}");
        }
        for hook in status::interface_hooks(&bpffs, &tun) {
            assert_eq!(hook.ours, Some(0), "{hook:?}");
            assert_eq!(hook.programs[0].name, hook.name);
        }
        real.detach(veth.index)?;
        for hook in status::interface_hooks(&bpffs, &veth) {
            assert_eq!((hook.programs.len(), hook.ours), (1, None));
        }
        Ok(())
    })??;
    // An index whose interface is gone is forgotten without it.
    rig.netns.ip("link del t0")?;
    let mut real = rig.open()?;
    real.detach(tun.index)?;
    ensure!(links(&rig.folder())?.is_empty());
    Ok(())
}

/// V-12, V-13: an uplink is guarded, and what a pod port has is taken off when it becomes one.
#[test]
fn an_interface_that_changes_its_role_gets_other_programs() -> Result<()> {
    if !require::root_or_skip("an_interface_that_changes_its_role_gets_other_programs") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1\ntuntap add t0 mode tun")?;
    let bpffs = rig.config().bpffs;
    let veth = interface(&rig.netns, "v0", true)?;
    let tun = interface(&rig.netns, "t0", false)?;
    rig.netns.run(|| -> Result<()> {
        for tcx in [true, false] {
            let real = rig.open()?;
            let mut real = if tcx { real } else { real.without_tcx() };
            for (name, pod_port) in [("", &veth), ("_l3", &tun)] {
                for role in [Role::PodPort, Role::Uplink, Role::Overlay, Role::PodPort] {
                    let now = Interface { role, ..pod_port.clone() };
                    real.attach(&now)?;
                    let hooks = status::interface_hooks(&bpffs, &now);
                    ensure!(hooks.iter().all(|hook| hook.ours.is_some()), "{role}: {hooks:?}");
                    let wanted: &[&str] = match role {
                        Role::PodPort => &["tc_egress", "tc_ingress"],
                        _ => &["tc_uplink_egress"],
                    };
                    let names: Vec<&str> = hooks.iter().map(|hook| hook.name).collect();
                    let wanted: Vec<String> =
                        wanted.iter().map(|program| format!("{program}{name}")).collect();
                    assert_eq!(names, wanted, "{role}");
                    // Nothing of the earlier role is left.
                    let both = status::interface_hooks(&bpffs, pod_port);
                    let ours = both.iter().filter(|hook| hook.ours.is_some()).count();
                    assert_eq!(ours, names.len(), "{role}: {both:?}");
                }
                real.detach(pod_port.index)?;
            }
        }
        Ok(())
    })?
}

#[test]
fn what_fails_half_way_is_not_forgotten() -> Result<()> {
    if !require::root_or_skip("what_fails_half_way_is_not_forgotten") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1")?;
    let veth = interface(&rig.netns, "v0", true)?;
    rig.netns.run(|| -> Result<()> {
        let mut real = rig.open()?;
        // A folder where the pin of the second direction belongs: it can neither be made nor removed.
        let obstacle = hooks::interface_pin(&rig.folder(), Direction::Ingress, veth.index);
        fs::create_dir(&obstacle)?;
        ensure!(real.attach(&veth).is_err());
        assert_eq!(real.attached(), [veth.index], "its egress has a program");
        ensure!(real.detach(veth.index).is_err());
        ensure!(real.detach(veth.index).is_err(), "the second attempt does something as well");
        assert_eq!(real.attached(), [veth.index]);
        fs::remove_dir(&obstacle)?;
        real.detach(veth.index)?;
        ensure!(real.attached().is_empty());
        for hook in status::interface_hooks(&rig.config().bpffs, &veth) {
            ensure!(hook.programs.is_empty(), "{hook:?}");
        }
        Ok(())
    })?
}

#[test]
fn without_tcx_filters_are_replaced_in_place_and_removed() -> Result<()> {
    if !require::root_or_skip("without_tcx_filters_are_replaced_in_place_and_removed") {
        return Ok(());
    }
    let rig = Rig::new()?;
    rig.netns.ip("link add v0 type veth peer name v1")?;
    let veth = interface(&rig.netns, "v0", true)?;
    let filters = |direction| {
        let output = std::process::Command::new("tc")
            .args(["-n", rig.netns.name(), "filter", "show", "dev", "v0", direction])
            .output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    if filters("ingress").is_err() {
        require::skip("without_tcx_filters_are_replaced_in_place_and_removed", "needs `tc`");
        return Ok(());
    }
    for _ in 0..2 {
        rig.netns.run(|| -> Result<()> { Ok(rig.open()?.without_tcx().attach(&veth)?) })??;
        for (direction, name) in [("ingress", "tc_ingress"), ("egress", "tc_egress")] {
            let shown = filters(direction)?;
            assert_eq!(shown.matches("handle 0x4d52").count(), 1, "{shown}");
            ensure!(shown.contains(name), "{shown}");
        }
    }
    assert_eq!(hooks::pinned_interfaces(&rig.folder())?, [veth.index]);
    // A run that finds them by their pins takes them off.
    rig.netns.run(|| -> Result<()> { Ok(rig.open()?.detach(veth.index)?) })??;
    assert_eq!(filters("ingress")? + &filters("egress")?, "");
    rig.netns.run(|| -> Result<()> { Ok(rig.open()?.without_tcx().attach(&veth)?) })??;
    rig.netns
        .run(|| datapath::cleanup(&rig.config().bpffs, &[(veth.index, "v0".into())], false))??;
    assert_eq!(filters("ingress")? + &filters("egress")?, "");
    ensure!(!rig.config().bpffs.exists());
    Ok(())
}

#[test]
fn cleanup_leaves_no_pin() -> Result<()> {
    if !require::root_or_skip("cleanup_leaves_no_pin") {
        return Ok(());
    }
    let rig = Rig::new()?;
    let bpffs = rig.config().bpffs;
    let mut real = rig.open()?;
    real.attach_sockets()?;
    ensure!(matches!(datapath::cleanup(&bpffs, &[], false), Err(Error::InUse(_))));
    drop(real);
    datapath::cleanup(&bpffs, &[], false)?;
    ensure!(!bpffs.exists());
    datapath::cleanup(&bpffs, &[], false).context("nothing to clean up is no error")?;
    for hook in SOCKET_HOOKS {
        let cgroup = hooks::open_cgroup(rig.cgroup.path())?;
        let running = sys::program_query(sys::Target::Cgroup(cgroup.as_fd()), hook.attach_type, 0)?;
        ensure!(running.is_empty(), "{} still runs", hook.name);
    }
    Ok(())
}

#[test]
fn interfaces_are_followed_as_they_come_and_go() -> Result<()> {
    if !require::root_or_skip("interfaces_are_followed_as_they_come_and_go") {
        return Ok(());
    }
    let (node, pod) = (Netns::new()?, Netns::new()?);
    node.ip(&format!(
        "link add name br0 type bridge\nlink add v0 type veth peer name eth0 netns {0}\n\
         link set v0 master br0 up\nlink add up0 type veth peer name up1 netns {0}\n\
         addr add 192.0.2.2/24 dev up0\nlink set up0 up",
        pod.name()
    ))?;
    node.run(|| -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (sender, mut changes) = tokio::sync::mpsc::channel(64);
            let watch = tokio::spawn(interfaces::watch(Overrides::default(), sender));
            let mut roles = BTreeMap::new();
            let addresses = RefCell::new(Vec::new());
            let has = |text: &str| addresses.borrow().contains(&text.parse::<IpAddr>().unwrap());
            let mut next = async |roles: &mut BTreeMap<String, (u32, Role)>| -> Result<bool> {
                let change = tokio::time::timeout(Duration::from_secs(10), changes.recv()).await?;
                match change.context("the watch ended")? {
                    Change::Is(i) => drop(roles.insert(i.name, (i.index, i.role))),
                    Change::Gone(index) => roles.retain(|_, (i, _)| *i != index),
                    Change::Addresses(all) => *addresses.borrow_mut() = all,
                    Change::Listed => return Ok(true),
                }
                Ok(false)
            };
            while !next(&mut roles).await? {}
            assert!(has("192.0.2.2"), "{addresses:?}");
            assert_eq!(roles["v0"].1, Role::PodPort);
            assert_eq!(roles["up0"].1, Role::PodPort, "no default route yet");
            assert!(matches!(roles["br0"].1, Role::Ignored(_)));
            node.ip("route add default via 192.0.2.1 dev up0")?;
            while roles["up0"].1 != Role::Uplink {
                next(&mut roles).await?;
            }
            node.ip("link add v9 type veth peer name eth9")?;
            while !roles.contains_key("v9") {
                next(&mut roles).await?;
            }
            assert!(matches!(roles["v9"].1, Role::Ignored(_)), "both ends are here");
            node.ip("link del v0")?;
            while roles.contains_key("v0") {
                next(&mut roles).await?;
            }
            node.ip("addr add 192.0.2.3/32 dev up0")?;
            while !has("192.0.2.3") {
                next(&mut roles).await?;
            }
            node.ip("addr del 192.0.2.3/32 dev up0")?;
            while has("192.0.2.3") {
                next(&mut roles).await?;
            }
            // With its link down, the route is gone.
            node.ip("link set up0 down")?;
            while roles["up0"].1 != Role::PodPort {
                next(&mut roles).await?;
            }
            let listed = interfaces::list(&Overrides::default()).await?;
            let names: Vec<_> = listed.iter().map(|i| i.name.as_str()).collect();
            for name in roles.keys() {
                ensure!(names.contains(&name.as_str()), "{name} is not among {names:?}");
            }
            watch.abort();
            Ok(())
        })
    })??;
    Ok(())
}
