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
        roles::{Device, Overrides, Role},
        status, sys,
    },
    diff,
    model::{Cidr, DesiredBackend, DesiredPort, Family, Frontend, FrontendKind, PortKey, Protocol},
    plan::{Capacity, NodeFacts, Planner, Snapshot},
};
use lb_common::abi::{BackendFlags, MetaWord};
use lb_testbed::{bpffs::Bpffs, cgroup::Cgroup, netns::Netns, require};

#[path = "datapath/hooks.rs"]
mod hooks_in_place;

const CAPACITY: Capacity = Capacity {
    service_ports: 64,
    backends: 256,
    slots: 256,
    frontends: 5000,
    addresses: 5000,
    source_ranges: 6000,
};

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
            xdp: datapath::xdp::Config::default(),
            forwarding: datapath::outside::Forwarding::default(),
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
    let balanced = |n| Frontend { kind: FrontendKind::LoadBalancer, ..Frontend::cluster_ip(n, 1) };
    // As many as frontends, of all lengths.
    let range = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let (addr, all): (IpAddr, u8) = match family {
            Family::V4 => ([high, low, 7, 7].into(), 32),
            Family::V6 => ([0xfd80, n, 0, 0, 0, 0, 0, 7].into(), 128),
        };
        Cidr::new(addr, all - u8::try_from(n % 16).unwrap_or(0))
    };
    DesiredPort {
        created_s: 1,
        frontends: (1..=frontends)
            .map(|port| Frontend::cluster_ip(addr(96, 1), port))
            .chain([
                external(addr(97, 1)),
                balanced(addr(98, 1)),
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
        source_ranges: Cidr::widest((1..=frontends).filter_map(range).collect()).into(),
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
        host_addresses: vec![[192, 0, 2, round].into(), [192, 0, 2, 9].into(), v6(9)],
        service_cidrs: (0..=2 - round)
            .flat_map(|n| [([10, 96 + n, 0, 0].into(), 16), (v6(u16::from(n) << 8), 120)])
            .collect(),
    }
}

/// The same in no matter which order frontends and addresses are read, and whatever is drawn at random.
fn sorted(mut snapshot: Snapshot) -> Snapshot {
    snapshot.meta[MetaWord::SnatSeed as usize] = 0;
    snapshot.frontends.sort_by_key(|&(key, _)| key);
    snapshot.addresses.sort_by_key(|&(addr, _)| addr);
    snapshot.source_ranges.sort_unstable();
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
    ensure!(fake.source_ranges.len() > 4096, "more than one batch");
    for (tcp, port) in &fake.node_ports {
        ensure!(real.maps().is_node_port(*tcp, *port) && !real.maps().is_node_port(*tcp, 29_999));
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
    config.sizes.tables.source_ranges = 5;
    let mut real = BpfDatapath::open(&config)?;
    // A planner that believes in more room than there is.
    let mut planner = Planner::new(CAPACITY);
    let batch = planner.plan([(key(1, Family::V4), Some(desired(1, Family::V4, 12, &[1])))]);
    let ops = diff::operations(batch);
    let failed = real.apply(&ops);
    // Twelve, an externalIP, one of a load balancer and a node port; and twelve ranges.
    let of = |name: &str| failed.iter().filter(|(_, e)| e.to_string().contains(name)).count();
    assert_eq!((failed.len(), of("FRONTENDS4"), of("SOURCE_RANGES4")), (14, 7, 7));
    for (index, _) in &failed {
        let op = ops.get(*index);
        ensure!(matches!(op, Some(diff::Op::FrontendPut(..) | diff::Op::SourceRangePut(_))));
    }
    let found = real.snapshot()?;
    assert_eq!((found.frontends.len(), found.source_ranges.len()), (8, 5));
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
            source_ranges: 16,
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
                    Change::Primaries(_) => {}
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

/// Which source ports clients get is not to be guessed: the seed is drawn, and kept for who comes after.
#[test]
fn the_seed_of_source_ports_is_drawn_once_for_each_node() -> Result<()> {
    if !require::root_or_skip("the_seed_of_source_ports_is_drawn_once_for_each_node") {
        return Ok(());
    }
    let seed = |rig: &Rig| -> Result<u64> {
        rig.netns.run(|| Ok(rig.open()?.maps().meta()[MetaWord::SnatSeed as usize]))?
    };
    let (one, other) = (Rig::new()?, Rig::new()?);
    let drawn = seed(&one)?;
    ensure!(drawn >> 32 == 1, "{drawn:#x}");
    ensure!(seed(&one)? == drawn, "another one after a restart");
    ensure!(seed(&other)? != drawn, "the same on another node");
    Ok(())
}
