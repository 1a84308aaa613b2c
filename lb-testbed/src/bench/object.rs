//! The kernel programs with tables of a size that a large cluster has, filled by hand.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray},
    programs::Program,
};
use lb_common::abi::{
    AddressFlags, AddressWord, Backend, BackendFlags, BackendId, BackendWord, Counter, FILTER_NODE,
    FILTER_VIP, FILTER_WORDS, FactsFlags, FactsWord, Flow, FlowKey, FlowKind, FrontendKey,
    FrontendWord, Interface, Ip, Scope, ServicePortId, SetWord, V4, V6, filter_place, flow_port,
    map, proto,
};
use lb_object::Settings;

use crate::testrun::plain::Plain;

/// Services that are loaded in every measurement of a program.
pub(super) const SERVICES: u32 = 10_000;
/// Records in the flow table of each family: three quarters of its default size.
pub(super) const FLOWS: u32 = 200_000;
/// The port of all Services.
pub(super) const PORT: u16 = 80;
/// The port of all their backends.
pub(super) const TARGET: u16 = 8080;

/// The loaded object. Everything is gone when it is dropped: nothing is pinned.
#[derive(Debug)]
pub(super) struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Loads the object and these programs of it.
    pub(super) fn load(programs: &[&str]) -> Result<Self> {
        Self::load_with(programs, None)
    }

    /// The same with flow tables of so many records, if not as many as by default.
    pub(super) fn load_with(programs: &[&str], flows: Option<u32>) -> Result<Self> {
        let settings = Settings::probe();
        let bytes = settings.object()?;
        let constants = settings.constants();
        let mut loader = EbpfLoader::new();
        settings.apply(&mut loader, &constants);
        if let Some(flows) = flows {
            for name in [map::FLOWS4, map::FLOWS6] {
                loader.map_max_entries(name, flows);
            }
        }
        let mut ebpf = loader.load(&bytes).context("load the kernel programs; are you root?")?;
        for name in programs {
            match ebpf.program_mut(name) {
                Some(Program::SchedClassifier(program)) => program.load(),
                Some(Program::CgroupSockAddr(program)) => program.load(),
                Some(Program::Xdp(program)) => program.load(),
                _ => bail!("the object has no program {name} of the expected type"),
            }
            .with_context(|| format!("load the program {name}"))?;
        }
        lb_object::fill_program_array(&mut ebpf).context("load the programs behind them")?;
        lb_object::load_early(&mut ebpf, false).context("load the programs at XDP")?;
        Ok(Self { ebpf })
    }

    /// A program that was loaded.
    pub(super) fn program(&self, name: &str) -> Result<BorrowedFd<'_>> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(program.fd().with_context(|| format!("{name} is not loaded"))?.as_fd())
    }

    /// Loads [`SERVICES`] Services of each family on TCP and UDP, all with the same `backends` of
    /// their family.
    pub(super) fn fill_services(&mut self, backends: &[SocketAddr]) -> Result<()> {
        self.fill_filter()?;
        let (v4, v6): (Vec<SocketAddr>, Vec<SocketAddr>) =
            backends.iter().partition(|at| at.is_ipv4());
        // Backend 0 is none; slots lie in pairs, and a range begins with a whole one.
        let first_v6 = u32::try_from(v4.len()).context("number of backends")?.next_multiple_of(2);
        self.fill_sets(1, 0, &v4)?;
        self.fill_sets(1 + 2 * SERVICES, first_v6, &v6)?;
        self.fill_frontends::<V4>(map::FRONTENDS4, vip4, 1)?;
        self.fill_frontends::<V6>(map::FRONTENDS6, vip6, 1 + 2 * SERVICES)
    }

    /// Gives the service ports of one family, from `first_port` on, a set from `first_slot` on.
    fn fill_sets(
        &mut self,
        first_port: ServicePortId,
        first_slot: u32,
        backends: &[SocketAddr],
    ) -> Result<()> {
        let mut ids: Vec<BackendId> = Vec::new();
        for (at, id) in backends.iter().zip(first_slot + 1..) {
            self.set_backend(id, first_port, *at)?;
            ids.push(id);
        }
        let mut slots = self.array::<[u32; 2]>(map::SLOTS)?;
        for (pair, index) in ids.chunks(2).zip(first_slot / 2..) {
            let second = pair.get(1).copied().unwrap_or_default();
            slots.set(index, [pair[0], second], 0).context("fill SLOTS")?;
        }
        let count = u32::try_from(ids.len()).context("number of backends")?;
        let set = SetWord::new(first_slot, count).0;
        let facts = FactsWord::new(FactsFlags::PRESENT, 0).0;
        for id in first_port..first_port + 2 * SERVICES {
            for scope in [Scope::Cluster, Scope::Local] {
                self.array(map::SETS)?.set(scope.index(id), set, 0).context("fill SETS")?;
            }
            self.array(map::FACTS)?.set(id, facts, 0).context("fill FACTS")?;
        }
        Ok(())
    }

    /// Fills the flow tables with flows of one client that no packet belongs to.
    pub(super) fn fill_flows(&mut self) -> Result<()> {
        self.fill_flow_table::<V4>(map::FLOWS4, vip4, words4(Ipv4Addr::new(10, 244, 9, 9)))?;
        let client = Ipv6Addr::new(0xfd00, 0x10, 0x244, 9, 0, 0, 0, 9);
        self.fill_flow_table::<V6>(map::FLOWS6, vip6, words6(client))
    }

    /// Notes that an interface has flows, or that it never had any.
    pub(super) fn set_has_flows(&mut self, ifindex: u32, has: bool) -> Result<()> {
        let mut ports = self.array::<u64>(map::FLOW_PORTS)?;
        ports.set(flow_port(ifindex), u64::from(has), 0).context("set FLOW_PORTS")
    }

    /// Says what an interface is, and that these addresses are the node's and its source for SNAT.
    pub(super) fn set_interface(
        &mut self,
        ifindex: u32,
        flags: u32,
        addresses: &[IpAddr],
    ) -> Result<()> {
        let mut interface = Interface { flags, group: ifindex, mtu: 1500, ..Interface::default() };
        let address = AddressFlags::HOST;
        for addr in addresses {
            let place = match addr {
                IpAddr::V4(v4) => {
                    let ip = words4(*v4);
                    [interface.v4[0]] = ip;
                    let word = AddressWord::new(&ip, address).0;
                    self.hash::<u32, u64>(map::ADDRESSES4)?.insert(ip[0], word, 0)?;
                    filter_place(&ip)
                }
                IpAddr::V6(v6) => {
                    let ip = words6(*v6);
                    interface.v6[0] = ip;
                    let word = AddressWord::new(&ip, address).0;
                    self.hash::<[u32; 4], u64>(map::ADDRESSES6)?.insert(ip, word, 0)?;
                    filter_place(&ip)
                }
            };
            let mut filter = self.array::<u64>(map::VIP_FILTER)?;
            let (index, shift) = place;
            let bits = filter.get(&index, 0)? | u64::from(FILTER_NODE) << shift;
            filter.set(index, bits, 0).context("fill VIP_FILTER")?;
        }
        interface.tag = interface.tag_for(ifindex);
        let mut interfaces = self.hash::<u32, Plain<Interface>>(map::INTERFACES)?;
        interfaces.insert(ifindex, Plain(interface), 0).context("fill INTERFACES")
    }

    /// A counter, summed over all CPUs.
    pub(super) fn counter(&self, counter: Counter) -> Result<u64> {
        let map = self.ebpf.map(map::COUNTERS).context("no map COUNTERS")?;
        let counters: PerCpuArray<_, u64> = map.try_into().context("open COUNTERS")?;
        let values = counters.get(&(counter as u32), 0).context("read COUNTERS")?;
        Ok(values.iter().sum())
    }

    fn set_backend(
        &mut self,
        id: BackendId,
        service_port: ServicePortId,
        at: SocketAddr,
    ) -> Result<()> {
        let flags = BackendFlags::PRESENT
            | BackendFlags::SERVING
            | BackendFlags::READY
            | BackendFlags::IN_CLUSTER
            | BackendFlags::IN_LOCAL;
        let (addr, family) = match at {
            SocketAddr::V4(v4) => ([words4(*v4.ip())[0], 0, 0, 0], 0),
            SocketAddr::V6(v6) => (words6(*v6.ip()), BackendFlags::IPV6),
        };
        let word = BackendWord::new(at.port().to_be(), flags | family, 1).0;
        let backend = Backend { addr, word, service_port, zone: 0, pad: 0 };
        self.array(map::BACKENDS)?.set(id, Plain(backend), 0).context("fill BACKENDS")
    }

    fn fill_filter(&mut self) -> Result<()> {
        let size = usize::try_from(FILTER_WORDS).unwrap_or(0);
        let mut bits = vec![0_u64; size];
        let of_each = (0..SERVICES).flat_map(|n| [filter_place(&vip4(n)), filter_place(&vip6(n))]);
        for (word, shift) in of_each {
            if let Some(bits) = bits.get_mut(usize::try_from(word).unwrap_or(size)) {
                *bits |= u64::from(FILTER_VIP) << shift;
            }
        }
        let mut filter = self.array::<u64>(map::VIP_FILTER)?;
        for (word, index) in bits.into_iter().zip(0..) {
            filter.set(index, word, 0).context("fill VIP_FILTER")?;
        }
        Ok(())
    }

    fn fill_frontends<const N: usize>(
        &mut self,
        name: &str,
        vip: fn(u32) -> Ip<N>,
        first_port: ServicePortId,
    ) -> Result<()>
    where
        Plain<FrontendKey<N>>: aya::Pod,
    {
        let mut frontends = self.hash::<Plain<FrontendKey<N>>, u64>(name)?;
        for n in 0..SERVICES {
            let id = first_port + 2 * n;
            for (protocol, id) in [(proto::TCP, id), (proto::UDP, id + 1)] {
                let key = FrontendKey::new(vip(n), PORT.to_be(), protocol);
                let word = FrontendWord::new(&key, id, 0).0;
                frontends.insert(Plain(key), word, 0).with_context(|| format!("fill {name}"))?;
            }
        }
        Ok(())
    }

    fn fill_flow_table<const N: usize>(
        &mut self,
        name: &str,
        vip: fn(u32) -> Ip<N>,
        client: Ip<N>,
    ) -> Result<()>
    where
        Plain<FlowKey<N>>: aya::Pod,
        Plain<Flow<N>>: aya::Pod,
    {
        let mut flows = self.hash::<Plain<FlowKey<N>>, Plain<Flow<N>>>(name)?;
        for n in 0..FLOWS {
            let sport = 1000 + u16::try_from(n / SERVICES).unwrap_or(0);
            let kind = if n % 2 == 0 { FlowKind::INGRESS } else { FlowKind::EGRESS };
            let (src, dst) = (client, vip(n % SERVICES));
            let (sport, dport) = (sport.to_be(), PORT.to_be());
            let key = FlowKey { src, dst, sport, dport, proto: proto::TCP, kind, pad: 0 };
            let flow = whole(&key, Flow { src, dst, sport, dport, ..Flow::empty() });
            flows.insert(Plain(key), Plain(flow), 0).with_context(|| format!("fill {name}"))?;
        }
        Ok(())
    }

    fn array<T: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        map.try_into().with_context(|| format!("open {name}"))
    }

    fn hash<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &str,
    ) -> Result<HashMap<&mut MapData, K, V>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        map.try_into().with_context(|| format!("open {name}"))
    }
}

/// The VIP of Service `n`: 10.96.0.0 and on.
pub(super) fn vip4_address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0000 + n)
}

/// The VIP of Service `n`: `fd00:10:96::` and on.
pub(super) fn vip6_address(n: u32) -> Ipv6Addr {
    Ipv6Addr::from(0xfd00_0010_0096_u128 << 80 | u128::from(n))
}

/// An address that is no Service's but shares its bit of the filter with one.
pub(super) fn collision4() -> Result<Ipv4Addr> {
    let bits: std::collections::HashSet<_> =
        (0..SERVICES).flat_map(|n| [filter_place(&vip4(n)), filter_place(&vip6(n))]).collect();
    let pods = 0x0af4_0100..0x0af5_0000_u32;
    pods.map(Ipv4Addr::from)
        .find(|pod| bits.contains(&filter_place(&words4(*pod))))
        .context("no pod address shares a bit with a VIP")
}

/// Whether an address has a bit of the filter that no VIP has.
pub(super) fn is_alone(ip: std::net::IpAddr) -> bool {
    let bit = match ip {
        std::net::IpAddr::V4(ip) => filter_place(&words4(ip)),
        std::net::IpAddr::V6(ip) => filter_place(&words6(ip)),
    };
    (0..SERVICES).all(|n| bit != filter_place(&vip4(n)) && bit != filter_place(&vip6(n)))
}

fn vip4(n: u32) -> Ip<V4> {
    words4(vip4_address(n))
}

fn vip6(n: u32) -> Ip<V6> {
    words6(vip6_address(n))
}

fn words4(ip: Ipv4Addr) -> Ip<V4> {
    [u32::from_ne_bytes(ip.octets())]
}

fn words6(ip: Ipv6Addr) -> Ip<V6> {
    match lb_common::host::words(ip.into()) {
        lb_common::host::Words::V6(words) => words,
        lb_common::host::Words::V4([word]) => [word, 0, 0, 0],
    }
}

fn whole<const N: usize>(key: &FlowKey<N>, mut flow: Flow<N>) -> Flow<N> {
    flow.tag = flow.tag_for(key);
    flow
}
