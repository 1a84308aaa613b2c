//! The loaded programs with maps of their own, filled from tables of the host.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{Program, ProgramFd},
};
use lb_common::{
    abi::{
        Backend, Counter, FLOW_SOURCE_FLAGS, Flow, FlowKey, FragmentKey, FragmentRecord,
        FrontendKey, Interface, LOCAL_CIDRS, Live, SERVICE_CIDRS, ServiceCidr, SourceRangeKey, V4,
        V6, flow_port, flow_source, map,
    },
    host::HostTables,
    tables::FlowTable,
};
use lb_object::Settings;

use super::{
    Output,
    plain::{Plain, RangeData},
};
use crate::require;

/// The interface of a test run: the loopback one of this namespace.
const INTERFACE: u32 = 1;
/// Room for a case. An LRU hash gives each CPU a share, so it needs more than it holds.
const ENTRIES: u32 = 256;
const LRU_ENTRIES: u32 = 1 << 13;

/// For packets in several buffers, from kernel 5.18 on.
const FRAGS: &str = "_frags";

/// The programs. Nothing is pinned: all is gone when this is dropped.
pub struct Kernel {
    ebpf: Ebpf,
    /// Words of `VIP_FILTER` that are not 0.
    filter: Vec<u32>,
    /// The same of `NODE_PORTS`.
    node_ports: Vec<u32>,
}

impl Kernel {
    /// Prepares the object for these settings; no program is loaded yet.
    pub fn prepare(settings: &Settings) -> Result<Self> {
        let object = settings.object()?;
        let constants = settings.constants();
        let mut loader = EbpfLoader::new();
        settings.apply(&mut loader, &constants);
        for name in [
            map::FRONTENDS4,
            map::FRONTENDS6,
            map::SETS,
            map::FACTS,
            map::SLOTS,
            map::BACKENDS,
            map::NAMES,
            map::SOCKET_PEERS,
            map::UDP_SOCKETS,
            map::HOST_SOCKET_PEERS,
            map::HOST_UDP_SOCKETS,
            map::ADDRESSES4,
            map::ADDRESSES6,
        ] {
            loader.map_max_entries(name, ENTRIES);
        }
        for name in [
            map::FLOWS4,
            map::FLOWS6,
            map::HALF_OPEN4,
            map::HALF_OPEN6,
            map::FRAGMENTS4,
            map::FRAGMENTS6,
        ] {
            loader.map_max_entries(name, LRU_ENTRIES);
        }
        let ebpf = loader.load(&object).context("create the maps")?;
        Ok(Self { ebpf, filter: Vec::new(), node_ports: Vec::new() })
    }

    /// Names of all programs that this kernel can have, in order.
    pub fn names(&self) -> Vec<String> {
        let frags = require::is_kernel(5, 18);
        let mut names: Vec<_> = self.ebpf.programs().map(|(name, _)| name.to_owned()).collect();
        names.retain(|name| frags || !name.ends_with(FRAGS));
        names.sort();
        names
    }

    /// Loads a program; says how many instructions the verifier followed, where the kernel tells.
    pub fn load(&mut self, name: &str) -> Result<Option<u32>> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        match program {
            Program::SchedClassifier(program) => program.load(),
            Program::Xdp(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            other => bail!("{name} is of type {:?}", other.prog_type()),
        }
        .with_context(|| format!("load {name}"))?;
        Ok(program.info().ok().and_then(|info| info.verified_instruction_count()))
    }

    /// Loads the programs that others go on with, and tells those.
    pub fn fill_program_array(&mut self) -> Result<()> {
        lb_object::fill_program_array(&mut self.ebpf)
            .context("load the programs behind the hooks")?;
        for frags in [false, true] {
            if !frags || require::is_kernel(5, 18) {
                lb_object::load_early(&mut self.ebpf, frags).context("load the programs at XDP")?;
            }
        }
        Ok(())
    }

    /// Runs a loaded program over a packet, as if it came by the loopback interface.
    pub fn run(&self, name: &str, packet: &[u8]) -> Result<Output> {
        super::once(self.fd(name)?.as_fd(), packet)
    }

    /// The same, as if it came, or went, by this interface of the thread's network namespace.
    pub fn run_at(&self, name: &str, packet: &[u8], ifindex: u32) -> Result<Output> {
        let program = self.fd(name)?.as_fd();
        match self.ebpf.program(name) {
            Some(Program::Xdp(_)) => super::once_early_at(program, packet, ifindex),
            _ => super::once_at(program, packet, ifindex),
        }
    }

    /// The same at XDP, in buffers the first of which has so many bytes (kernel 6.18).
    pub fn run_in_parts(
        &self,
        name: &str,
        packet: &[u8],
        ifindex: u32,
        linear: usize,
    ) -> Result<Output> {
        super::once_early_in_parts(self.fd(name)?.as_fd(), packet, ifindex, linear)
    }

    /// The same with a mark; also the mark that the packet has afterwards.
    pub fn run_marked(&self, name: &str, packet: &[u8], mark: u32) -> Result<(Output, u32)> {
        super::once_marked(self.fd(name)?.as_fd(), packet, mark)
    }

    /// The same with a sum of the whole packet, see [`super::once_summed`].
    pub fn run_summed(&self, name: &str, packet: &[u8]) -> Result<Output> {
        super::once_summed(self.fd(name)?.as_fd(), packet)
    }

    /// A map, whatever its type.
    pub fn map_data(&self, name: &str) -> Option<&MapData> {
        match self.ebpf.map(name)? {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)
            | Map::ProgramArray(data)
            | Map::SkStorage(data) => Some(data),
            _ => None,
        }
    }

    /// Empties every table.
    pub fn reset(&mut self) -> Result<()> {
        self.forget_sources::<V4>(map::FLOWS4)?;
        self.forget_sources::<V4>(map::HALF_OPEN4)?;
        self.forget_sources::<V6>(map::FLOWS6)?;
        self.forget_sources::<V6>(map::HALF_OPEN6)?;
        self.empty::<FrontendKey<V4>, u64>(map::FRONTENDS4)?;
        self.empty::<FrontendKey<V6>, u64>(map::FRONTENDS6)?;
        for name in [map::FLOWS4, map::HALF_OPEN4] {
            self.empty::<FlowKey<V4>, Plain<Flow<V4>>>(name)?;
        }
        for name in [map::FLOWS6, map::HALF_OPEN6] {
            self.empty::<FlowKey<V6>, Plain<Flow<V6>>>(name)?;
        }
        self.empty::<FragmentKey<V4>, Plain<FragmentRecord>>(map::FRAGMENTS4)?;
        self.empty::<FragmentKey<V6>, Plain<FragmentRecord>>(map::FRAGMENTS6)?;
        self.array::<u64>(map::FLOW_PORTS)?.set(flow_port(INTERFACE), 0, 0)?;
        self.fill(&HostTables::new())
    }

    /// Makes the service tables, and what is said of the node, the same as those of the host. Flows
    /// are left alone.
    pub fn fill(&mut self, tables: &HostTables) -> Result<()> {
        self.fill_node(tables)?;
        self.store(map::SETS, tables.sets().iter().map(|word| word.0))?;
        self.store(map::FACTS, tables.all_facts().iter().map(|word| word.0))?;
        let slots = tables.slots();
        let pairs = slots.chunks(2).map(|pair| [pair[0], pair.get(1).copied().unwrap_or(0)]);
        self.store(map::SLOTS, pairs)?;
        let empty = Backend::default();
        let backends = tables.backends().into_iter().map(Plain);
        self.store_or(map::BACKENDS, backends, Plain(empty))?;
        self.fill_filter(tables)?;
        self.fill_ranges::<V4>(map::SERVICE_CIDRS4, &tables.service_cidrs(), SERVICE_CIDRS)?;
        self.fill_ranges::<V6>(map::SERVICE_CIDRS6, &tables.service_cidrs(), SERVICE_CIDRS)?;
        let frontends = tables.frontends::<V4>().into_iter().map(|(key, word)| (key, word.0));
        self.fill_hash(map::FRONTENDS4, frontends.collect())?;
        let frontends = tables.frontends::<V6>().into_iter().map(|(key, word)| (key, word.0));
        self.fill_hash(map::FRONTENDS6, frontends.collect())?;
        let addresses = tables.addresses::<V4>().into_iter().map(|(ip, word)| (ip, word.0));
        self.fill_hash(map::ADDRESSES4, addresses.collect())?;
        let addresses = tables.addresses::<V6>().into_iter().map(|(ip, word)| (ip, word.0));
        self.fill_hash(map::ADDRESSES6, addresses.collect())
    }

    /// What is said of the node.
    fn fill_node(&mut self, tables: &HostTables) -> Result<()> {
        self.fill_node_ports(tables)?;
        self.fill_ranges::<V4>(map::LOCAL_CIDRS4, &tables.local_cidrs(), LOCAL_CIDRS)?;
        self.fill_ranges::<V6>(map::LOCAL_CIDRS6, &tables.local_cidrs(), LOCAL_CIDRS)?;
        self.fill_trie::<V4>(map::SOURCE_RANGES4, &tables.source_ranges())?;
        self.fill_trie::<V6>(map::SOURCE_RANGES6, &tables.source_ranges())?;
        let interfaces = tables.host_interfaces();
        let map = self.ebpf.map_mut(map::INTERFACES).context("no map INTERFACES")?;
        let mut map = HashMap::<_, u32, Plain<Interface>>::try_from(map)?;
        let present = map.keys().collect::<Result<Vec<_>, _>>()?;
        for index in present {
            if !interfaces.iter().any(|(wanted, _)| *wanted == index) {
                map.remove(&index)?;
            }
        }
        for (index, interface) in interfaces {
            map.insert(index, Plain(interface), 0)?;
        }
        Ok(())
    }

    /// All counters that are not 0, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        let mut counters = Vec::new();
        for counter in Counter::ALL {
            let sum = self.counter(*counter)?;
            if sum != 0 {
                counters.push((*counter, sum));
            }
        }
        Ok(counters)
    }

    /// A counter, summed over the CPUs.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let map = self.ebpf.map(map::COUNTERS).context("no map COUNTERS")?;
        let map = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }

    /// All flow records, in words, without their times.
    pub fn flows(&self) -> Result<Vec<String>> {
        let mut flows = self.flows_of::<V4>(map::FLOWS4, FlowTable::Main)?;
        flows.extend(self.flows_of::<V4>(map::HALF_OPEN4, FlowTable::HalfOpen)?);
        flows.extend(self.flows_of::<V6>(map::FLOWS6, FlowTable::Main)?);
        flows.extend(self.flows_of::<V6>(map::HALF_OPEN6, FlowTable::HalfOpen)?);
        flows.sort();
        Ok(flows)
    }

    fn fill_ranges<const N: usize>(
        &mut self,
        name: &str,
        ranges: &[ServiceCidr<N>],
        room: u32,
    ) -> Result<()>
    where
        Plain<ServiceCidr<N>>: aya::Pod,
    {
        let none = ServiceCidr { addr: [0; N], mask: [0; N] };
        let mut array = self.array::<Plain<ServiceCidr<N>>>(name)?;
        for index in 0..room {
            let range = ranges.get(index as usize).copied().unwrap_or(none);
            array.set(index, Plain(range), 0)?;
        }
        Ok(())
    }

    fn fill_trie<const N: usize>(&mut self, name: &str, ranges: &[SourceRangeKey<N>]) -> Result<()>
    where
        Plain<RangeData<N>>: aya::Pod,
    {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map = LpmTrie::<_, Plain<RangeData<N>>, u64>::try_from(map)?;
        let present = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in present {
            map.remove(&key)?;
        }
        for range in ranges {
            let data = RangeData { service_port: range.service_port, addr: range.addr };
            map.insert(&Key::new(range.prefix, Plain(data)), 1, 0)?;
        }
        Ok(())
    }

    /// Only the words that are not 0, or were not: there are many.
    fn fill_node_ports(&mut self, tables: &HostTables) -> Result<()> {
        let wanted: Vec<_> =
            (0_u32..).zip(tables.all_node_ports()).filter(|(_, word)| *word != 0).collect();
        let shown = std::mem::take(&mut self.node_ports);
        let mut array = self.array::<u64>(map::NODE_PORTS)?;
        for index in shown {
            array.set(index, 0, 0)?;
        }
        for (index, word) in &wanted {
            array.set(*index, word, 0)?;
        }
        self.node_ports = wanted.into_iter().map(|(index, _)| index).collect();
        Ok(())
    }

    /// Only the words that are not 0, or were not: there are many.
    fn fill_filter(&mut self, tables: &HostTables) -> Result<()> {
        let wanted: Vec<_> =
            (0_u32..).zip(tables.vip_filter()).filter(|(_, word)| *word != 0).collect();
        let shown = std::mem::take(&mut self.filter);
        let mut array = self.array::<u64>(map::VIP_FILTER)?;
        for index in shown {
            array.set(index, 0, 0)?;
        }
        for (index, word) in &wanted {
            array.set(*index, word, 0)?;
        }
        self.filter = wanted.into_iter().map(|(index, _)| index).collect();
        Ok(())
    }

    /// Takes back the notes that the flows of a table left.
    fn forget_sources<const N: usize>(&mut self, name: &str) -> Result<()>
    where
        Plain<FlowKey<N>>: aya::Pod,
        Plain<Flow<N>>: aya::Pod,
    {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let map = HashMap::<_, Plain<FlowKey<N>>, Plain<Flow<N>>>::try_from(map)?;
        let flows = map.iter().collect::<Result<Vec<_>, _>>()?;
        let mut sources = self.array::<[u8; FLOW_SOURCE_FLAGS]>(map::FLOW_SOURCES)?;
        for (_, Plain(flow)) in flows {
            sources.set(flow_source(&flow.dst).0, [0; FLOW_SOURCE_FLAGS], 0)?;
        }
        Ok(())
    }

    fn fd(&self, name: &str) -> Result<&ProgramFd> {
        let program = self.ebpf.program(name).with_context(|| format!("no program {name}"))?;
        Ok(match program {
            Program::SchedClassifier(program) => program.fd()?,
            Program::Xdp(program) => program.fd()?,
            _ => bail!("{name} does not run over packets"),
        })
    }

    fn flows_of<const N: usize>(&self, name: &str, table: FlowTable) -> Result<Vec<String>>
    where
        Plain<FlowKey<N>>: aya::Pod,
        Plain<Flow<N>>: aya::Pod,
    {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        let map = HashMap::<_, Plain<FlowKey<N>>, Plain<Flow<N>>>::try_from(map)?;
        let mut flows = Vec::new();
        for entry in &map {
            let (Plain(key), Plain(flow)) = entry?;
            flows.push(describe(table, &key, flow));
        }
        Ok(flows)
    }

    fn fill_hash<K: PartialEq + Copy>(&mut self, name: &str, wanted: Vec<(K, u64)>) -> Result<()>
    where
        Plain<K>: aya::Pod,
    {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map = HashMap::<_, Plain<K>, u64>::try_from(map)?;
        let present = map.keys().collect::<Result<Vec<_>, _>>()?;
        for Plain(key) in present {
            if !wanted.iter().any(|(wanted, _)| *wanted == key) {
                map.remove(&Plain(key))?;
            }
        }
        for (key, word) in wanted {
            map.insert(Plain(key), word, 0)?;
        }
        Ok(())
    }

    fn empty<K, V: aya::Pod>(&mut self, name: &str) -> Result<()>
    where
        Plain<K>: aya::Pod,
    {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        let mut map = HashMap::<_, Plain<K>, V>::try_from(map)?;
        let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
        Ok(())
    }

    fn store<T: aya::Pod + Default>(
        &mut self,
        name: &str,
        elements: impl Iterator<Item = T>,
    ) -> Result<()> {
        self.store_or(name, elements, T::default())
    }

    /// Stores the elements, and `empty` behind them.
    fn store_or<T: aya::Pod>(
        &mut self,
        name: &str,
        elements: impl Iterator<Item = T>,
        empty: T,
    ) -> Result<()> {
        let mut array = self.array::<T>(name)?;
        let elements: Vec<T> = elements.collect();
        ensure!(elements.len() <= ENTRIES as usize, "{} elements for {name}", elements.len());
        for index in 0..ENTRIES {
            array.set(index, elements.get(index as usize).unwrap_or(&empty), 0)?;
        }
        Ok(())
    }

    fn array<T: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }
}

/// All flow records of the host, in the same words.
pub fn flows_on_host(tables: &HostTables) -> Vec<String> {
    let mut flows = Vec::new();
    for table in [FlowTable::Main, FlowTable::HalfOpen] {
        let four = tables.flows::<V4>(table);
        flows.extend(four.into_iter().map(|(key, flow)| describe(table, &key, flow)));
        let six = tables.flows::<V6>(table);
        flows.extend(six.into_iter().map(|(key, flow)| describe(table, &key, flow)));
    }
    flows.sort();
    flows
}

fn describe<const N: usize>(table: FlowTable, key: &FlowKey<N>, mut flow: Flow<N>) -> String {
    // The host has a clock of its own.
    flow.live = Live::new(0, Live(flow.live).state()).0;
    format!("{table:?} {key:?} {flow:?}")
}
