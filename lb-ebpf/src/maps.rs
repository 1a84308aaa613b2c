//! Every map, once. Sizes are defaults: the agent sets them when it first creates the maps.
//! `docs/maps.md` tells who writes and reads each.

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray};
use lb_common::abi::{
    AffinityKey, AffinityRecord, BYPASS_CGROUPS as BYPASS_CGROUP_COUNT, Backend, BypassCgroup,
    COUNTERS as COUNTER_COUNT, EarlySlot, FILTER_WORDS, FLOW_PORTS as FLOW_PORT_COUNT,
    FLOW_SOURCE_FLAGS, FLOW_SOURCES as FLOW_SOURCE_COUNT, Flow, FlowKey, FragmentKey,
    FragmentRecord, FrontendKey, Interface, Ip, LOCAL_CIDRS as PODS, META_WORDS,
    NEXT_HOPS as NEXT_HOP_COUNT, NODE_PORT_WORDS, Name, NetnsRecord, NextHop, ProgramSlot,
    RefusalWord, SCOPES, SERVICE_CIDRS as CIDRS, SOURCES as SOURCE_COUNT, ServiceCidr, SocketKey,
    SocketPeer, SocketRecord, TCP_SOCKETS as TCP_SOCKET_COUNT, TcpSocket, V4, V6,
};

const SERVICE_PORTS: u32 = 1 << 16;
const FRONTENDS: u32 = 1 << 17;
const BACKEND_IDS: u32 = 1 << 18;
const SLOT_PAIRS: u32 = 1 << 19;
const FLOWS: u32 = 1 << 18;
const DATAGRAMS: u32 = 1 << 13;
const HALF_OPEN: u32 = 1 << 16;
const PEERS: u32 = 1 << 16;
const UDP: u32 = 1 << 16;
const CLIENTS: u32 = 1 << 16;
const NAMESPACES: u32 = 1 << 12;
const LINKS: u32 = 1 << 13;
const RANGES: u32 = 1 << 16;
/// `BPF_F_MMAPABLE`: the agent writes these by plain stores.
const MMAPABLE: u32 = 1 << 10;

/// What follows the prefix in [`lb_common::abi::SourceRangeKey`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RangeData<const N: usize> {
    pub service_port: u32,
    pub addr: Ip<N>,
}

/// A question to the kernel's routes and its answer (`struct bpf_fib_lookup`), then what came of it:
/// in a map, because the stack has no room for it.
pub type Hop = [u32; 22];

#[map]
pub static FRONTENDS4: HashMap<FrontendKey<V4>, u64> = HashMap::with_max_entries(FRONTENDS, 0);
#[map]
pub static FRONTENDS6: HashMap<FrontendKey<V6>, u64> = HashMap::with_max_entries(FRONTENDS, 0);
#[map]
pub static ADDRESSES4: HashMap<Ip<V4>, u64> = HashMap::with_max_entries(FRONTENDS, 0);
#[map]
pub static ADDRESSES6: HashMap<Ip<V6>, u64> = HashMap::with_max_entries(FRONTENDS, 0);
#[map]
pub static SERVICE_CIDRS4: Array<ServiceCidr<V4>> = Array::with_max_entries(CIDRS, MMAPABLE);
#[map]
pub static SERVICE_CIDRS6: Array<ServiceCidr<V6>> = Array::with_max_entries(CIDRS, MMAPABLE);
#[map]
pub static LOCAL_CIDRS4: Array<ServiceCidr<V4>> = Array::with_max_entries(PODS, MMAPABLE);
#[map]
pub static LOCAL_CIDRS6: Array<ServiceCidr<V6>> = Array::with_max_entries(PODS, MMAPABLE);
#[map]
pub static NODE_PORTS: Array<u64> = Array::with_max_entries(NODE_PORT_WORDS, MMAPABLE);
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(LINKS, 0);
/// `BPF_F_NO_PREALLOC`, without which the kernel makes no such map.
const NO_PREALLOC: u32 = 1;
#[map]
pub static SOURCE_RANGES4: LpmTrie<RangeData<V4>, u64> =
    LpmTrie::with_max_entries(RANGES, NO_PREALLOC);
#[map]
pub static SOURCE_RANGES6: LpmTrie<RangeData<V6>, u64> =
    LpmTrie::with_max_entries(RANGES, NO_PREALLOC);
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityRecord> =
    LruHashMap::with_max_entries(CLIENTS, 0);
#[map]
pub static NETNS: HashMap<u64, NetnsRecord> = HashMap::with_max_entries(NAMESPACES, 0);
#[map]
pub static BYPASS_CGROUPS: Array<BypassCgroup> = Array::with_max_entries(BYPASS_CGROUP_COUNT, 0);
#[map]
pub static SETS: Array<u64> = Array::with_max_entries(SERVICE_PORTS * SCOPES, MMAPABLE);
#[map]
pub static FACTS: Array<u64> = Array::with_max_entries(SERVICE_PORTS, MMAPABLE);
#[map]
pub static SLOTS: Array<[u32; 2]> = Array::with_max_entries(SLOT_PAIRS, MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(BACKEND_IDS, MMAPABLE);
#[map]
pub static NAMES: Array<Name> = Array::with_max_entries(SERVICE_PORTS, MMAPABLE);
#[map]
pub static META: Array<u64> = Array::with_max_entries(META_WORDS, MMAPABLE);
#[map]
pub static VIP_FILTER: Array<u64> = Array::with_max_entries(FILTER_WORDS, MMAPABLE);
#[map]
pub static FLOW_PORTS: Array<u64> = Array::with_max_entries(FLOW_PORT_COUNT, 0);
#[map]
pub static FLOW_SOURCES: Array<[u8; FLOW_SOURCE_FLAGS]> =
    Array::with_max_entries(FLOW_SOURCE_COUNT, 0);
#[map]
pub static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(ProgramSlot::COUNT, 0);
#[map]
pub static XDP_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(EarlySlot::COUNT, 0);
#[map]
pub static XDP_PROGRAMS_FRAGS: ProgramArray = ProgramArray::with_max_entries(EarlySlot::COUNT, 0);
#[map]
pub static FLOWS4: LruHashMap<FlowKey<V4>, Flow<V4>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub static FLOWS6: LruHashMap<FlowKey<V6>, Flow<V6>> = LruHashMap::with_max_entries(FLOWS, 0);
#[map]
pub static FRAGMENTS4: LruHashMap<FragmentKey<V4>, FragmentRecord> =
    LruHashMap::with_max_entries(DATAGRAMS, 0);
#[map]
pub static FRAGMENTS6: LruHashMap<FragmentKey<V6>, FragmentRecord> =
    LruHashMap::with_max_entries(DATAGRAMS, 0);
#[map]
pub static HALF_OPEN4: LruHashMap<FlowKey<V4>, Flow<V4>> =
    LruHashMap::with_max_entries(HALF_OPEN, 0);
#[map]
pub static HALF_OPEN6: LruHashMap<FlowKey<V6>, Flow<V6>> =
    LruHashMap::with_max_entries(HALF_OPEN, 0);
#[map]
pub static UDP_SOCKETS: HashMap<u64, SocketRecord> = HashMap::with_max_entries(UDP, 0);
#[map]
pub static SOCKET_PEERS: HashMap<SocketKey, SocketPeer> = HashMap::with_max_entries(PEERS, 0);
#[map]
pub static HOST_UDP_SOCKETS: HashMap<u64, SocketRecord> = HashMap::with_max_entries(UDP, 0);
#[map]
pub static HOST_SOCKET_PEERS: HashMap<SocketKey, SocketPeer> = HashMap::with_max_entries(PEERS, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);
#[map]
pub static REJECTS: PerCpuArray<RefusalWord> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static NEXT_HOPS: Array<NextHop> = Array::with_max_entries(NEXT_HOP_COUNT, 0);
#[map]
pub static SOURCES: Array<u64> = Array::with_max_entries(SOURCE_COUNT, 0);
#[map]
pub static HOP: PerCpuArray<Hop> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static TCP_SOCKETS: Array<TcpSocket> = Array::with_max_entries(TCP_SOCKET_COUNT, 0);
#[btf_map]
pub static SOCKETS: SkStorage<SocketRecord> = SkStorage::new();
