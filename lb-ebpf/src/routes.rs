//! What is set for this node, its interfaces, and the kernel's routes.
#![expect(unsafe_code, reason = "helpers are foreign functions, map values are shared")]

use core::mem::MaybeUninit;

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh};
use lb_common::abi::{Interface, InterfaceWord, Ip, NextHop, ServiceCidr, V4, V6, address_in_turn};
use lb_common::select::widen;
use lb_common::tables::{LocalMode, NodeTables, RouteStatus, RouteTables};

use crate::config;
use crate::maps::{self, Hop};
use crate::tables::Maps;

pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;

/// Bytes of `struct bpf_fib_lookup`.
const PARAMS: i32 = 64;
/// Its words that matter here, and what follows it.
const FAMILY: usize = 0;
const LENGTH: usize = 1;
const IFINDEX: usize = 2;
const FLOW_INFO: usize = 3;
const SOURCE: usize = 4;
const DESTINATION: usize = 8;
const VLAN: usize = 12;
const MACS: usize = 13;
const ASKED: usize = 16;
/// Whether there are link addresses: 0, [`TOLD`] or [`TAKEN`].
const KNOWN: usize = 17;
const FORGOTTEN: usize = 18;
/// Link addresses as they lie in the packet.
const ETHERNET: usize = 19;
/// The kernel told them, at [`MACS`].
const TOLD: u32 = 1;
/// A flow's record did, at [`ETHERNET`].
const TAKEN: u32 = 2;

/// This CPU's element of `HOP`. A program is not interrupted by another one over packets on its CPU.
#[derive(Clone, Copy)]
struct Words(*mut u32);

impl Words {
    #[inline(always)]
    fn get() -> Option<Self> {
        maps::HOP.get_ptr_mut(0).map(|hop: *mut Hop| Self(hop.cast()))
    }

    #[inline(always)]
    fn set(self, index: usize, value: u32) {
        // SAFETY: within the element; the verifier checks it.
        unsafe { self.0.add(index).write_volatile(value) };
    }

    #[inline(always)]
    fn word(self, index: usize) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.add(index).read_volatile() }
    }

    #[inline(always)]
    fn set_ip<const N: usize>(self, index: usize, ip: &Ip<N>) {
        let [a, b, c, d] = widen(ip);
        self.set(index, a);
        if N == V6 {
            self.set(index + 1, b);
            self.set(index + 2, c);
            self.set(index + 3, d);
        }
    }
}

/// Two bytes of a word of the question: the length, and later what fits.
#[inline(always)]
fn second_half(word: u32) -> u32 {
    let [_, _, a, b] = word.to_ne_bytes();
    u32::from(u16::from_ne_bytes([a, b]))
}

impl Maps {
    /// Destination and source address of the Ethernet header for the route that was found last, as
    /// the three words lie in the packet. `None`: the neighbour is still to be asked for.
    #[inline(always)]
    pub fn ethernet(&self) -> Option<[u32; 3]> {
        let words = Words::get()?;
        let known = words.word(KNOWN);
        if known == TAKEN {
            let word = |index| words.word(ETHERNET + index);
            return Some([word(0), word(1), word(2)]);
        }
        if known == 0 {
            return None;
        }
        // The kernel tells the source first.
        let [s0, s1, s2, s3] = words.word(MACS).to_ne_bytes();
        let [s4, s5, d0, d1] = words.word(MACS + 1).to_ne_bytes();
        let [d2, d3, d4, d5] = words.word(MACS + 2).to_ne_bytes();
        Some([
            u32::from_ne_bytes([d0, d1, d2, d3]),
            u32::from_ne_bytes([d4, d5, s0, s1]),
            u32::from_ne_bytes([s2, s3, s4, s5]),
        ])
    }

    /// Sends the packet of a tc program to the next hop of the route that was found last; the kernel
    /// asks for its link address.
    #[inline(always)]
    pub fn redirect_to_neighbour(&self) -> i64 {
        let Some(words) = Words::get() else { return -1 };
        let [family, ..] = words.word(FAMILY).to_ne_bytes();
        // `struct bpf_redir_neigh`, in place of what is not needed any more: the family as a word,
        // right before the address of the next hop.
        words.set(DESTINATION - 1, u32::from(family));
        // SAFETY: the verifier checks that twenty bytes from there lie in the element.
        unsafe {
            bpf_redirect_neigh(words.word(IFINDEX), words.0.add(DESTINATION - 1).cast(), 20, 0)
        }
    }

    /// Asks the kernel; a function of its own, because it is asked for both families.
    #[inline(always)]
    fn ask(&self, words: Words, over: u32, out: bool, length: u32) -> RouteStatus {
        let [a, b] = (length.min(0xffff) as u16).to_ne_bytes();
        words.set(LENGTH, u32::from_ne_bytes([0, 0, a, b]));
        words.set(IFINDEX, over);
        words.set(FLOW_INFO, 0);
        words.set(VLAN, 0);
        words.set(ASKED, length);
        let flags = if out { BPF_FIB_LOOKUP_OUTPUT } else { 0 };
        // SAFETY: a helper on this program's context and a map element of that many bytes.
        let code = unsafe { bpf_fib_lookup(self.context, words.0.cast(), PARAMS, flags) };
        words.set(KNOWN, 0);
        if code == i64::from(BPF_FIB_LKUP_RET_SUCCESS) {
            let [_, _, high, low] = words.word(MACS + 1).to_ne_bytes();
            // Older kernels tell of a neighbour that has not answered yet; others have no address.
            if words.word(MACS + 2) | u32::from(high) | u32::from(low) == 0 {
                return RouteStatus::NoNeighbour;
            }
            words.set(KNOWN, TOLD);
            RouteStatus::Found
        } else if code == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
            RouteStatus::NoNeighbour
        } else if code == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED) {
            RouteStatus::Local
        } else if code == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED) {
            RouteStatus::TooBig
        } else {
            RouteStatus::NoRoute
        }
    }
}

/// Whether what lies there is an interface's value, whole.
#[inline(always)]
fn is_whole(value: *const Interface, ifindex: u32) -> bool {
    let words = value.cast::<u32>();
    // SAFETY: words of a looked-up element; the agent may replace it meanwhile, which the tag tells.
    let word = |index: usize| unsafe { words.add(index).read_volatile() };
    let (flags, group, mtu) = (word(0), word(1), word(22));
    let mut mix = Interface::mix(ifindex, flags, group, mtu);
    let mut index = 2;
    while index < 22 {
        mix = mix.word(u64::from(word(index)) | (u64::from(word(index + 1)) << 32));
        index += 2;
    }
    word(23) == mix.tag()
}

/// What an interface is: [`InterfaceWord`], 0 if nothing is known of it. A value that the agent replaces
/// is read once more; who meets two replacements takes it for one that leads out of the node, as what it
/// tells of pods has more effect.
#[inline(never)]
fn described(ifindex: u32) -> u64 {
    for _ in 0..2 {
        let Some(value) = maps::INTERFACES.get_ptr(ifindex) else { return 0 };
        // SAFETY: a looked-up element, checked below.
        let (flags, group) = unsafe {
            (
                (&raw const (*value).flags).read_volatile(),
                (&raw const (*value).group).read_volatile(),
            )
        };
        if is_whole(value, ifindex) {
            return InterfaceWord::new(flags, group).0;
        }
    }
    InterfaceWord::TORN.0
}

impl NodeTables for Maps {
    #[inline(always)]
    fn arrival(&self) -> u32 {
        self.ifindex
    }

    #[inline(always)]
    fn own(&self) -> bool {
        let skb: *mut __sk_buff = self.context.cast();
        // SAFETY: asked by tc programs only, whose context this is; 0 if nobody received the packet.
        (unsafe { (&raw const (*skb).ingress_ifindex).read_volatile() }) == 0
    }

    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<InterfaceWord> {
        let word = described(ifindex);
        (word != 0).then_some(InterfaceWord(word))
    }

    #[inline(always)]
    fn interface_unchecked(&self, ifindex: u32) -> Option<InterfaceWord> {
        let value = maps::INTERFACES.get_ptr(ifindex)?;
        // SAFETY: a looked-up element; who asks can do with that of another interface.
        let (flags, group) = unsafe {
            (
                (&raw const (*value).flags).read_volatile(),
                (&raw const (*value).group).read_volatile(),
            )
        };
        Some(InterfaceWord::new(flags, group))
    }

    #[inline(always)]
    fn node_ports(&self, index: u32) -> u64 {
        let Some(word) = maps::NODE_PORTS.get_ptr(index) else { return 0 };
        // SAFETY: the verifier proved the index; one aligned word.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn local_mode(&self) -> LocalMode {
        match config::local_mode() {
            0 => LocalMode::Interface,
            1 => LocalMode::Range,
            _ => LocalMode::None,
        }
    }

    #[inline(always)]
    fn masquerade_all(&self) -> bool {
        config::masquerade_all()
    }

    #[inline(always)]
    fn snat_first(&self) -> u32 {
        config::snat_first()
    }

    #[inline(always)]
    fn snat_count(&self) -> u32 {
        config::snat_count()
    }

    #[inline(always)]
    fn seed(&self) -> u32 {
        config::seed()
    }

    #[inline(always)]
    fn egress(&self) -> u32 {
        Words::get().map_or(0, |words| words.word(IFINDEX))
    }

    #[inline(always)]
    fn neighbour_known(&self) -> bool {
        Words::get().is_some_and(|words| words.word(KNOWN) != 0)
    }

    #[inline(always)]
    fn forget(&self, value: u32) -> u32 {
        let Some(words) = Words::get() else { return value };
        words.set(FORGOTTEN, value);
        words.word(FORGOTTEN)
    }

    /// Before kernel 5.12 the answer is only that the packet does not fit the interface.
    #[inline(always)]
    fn mtu(&self) -> u32 {
        let Some(words) = Words::get() else { return 0 };
        let told = second_half(words.word(LENGTH));
        if told < words.word(ASKED) {
            return told;
        }
        let Some(value) = maps::INTERFACES.get_ptr(words.word(IFINDEX)) else { return 0 };
        // SAFETY: a looked-up element; a wrong size costs a packet or two.
        unsafe { (&raw const (*value).mtu).read_volatile() }
    }

    /// What fits is what the kernel tells (5.12), or before that what was asked for: so much fits.
    #[inline(always)]
    fn found_hop(&self) -> Option<NextHop> {
        let words = Words::get()?;
        let ethernet = self.ethernet()?;
        let (egress, limits) = (words.word(IFINDEX), second_half(words.word(LENGTH)));
        (limits != 0).then(|| NextHop { egress, ethernet, limits, ..NextHop::default() })
    }

    #[inline(always)]
    fn next_hop(&self, place: u32) -> Option<NextHop> {
        if !self.framed {
            return None;
        }
        let from = maps::NEXT_HOPS.get_ptr(place)?.cast::<u64>();
        let mut hop = MaybeUninit::<NextHop>::uninit();
        let to = hop.as_mut_ptr().cast::<u64>();
        for index in 0..size_of::<NextHop>() / 8 {
            // SAFETY: words of the element, whose index the verifier proved, and of the copy. Another
            // CPU may write it meanwhile, which its tag tells.
            unsafe { to.add(index).write(from.add(index).read_volatile()) };
        }
        // SAFETY: all words were written, and any bytes are a next hop.
        Some(unsafe { hop.assume_init() })
    }

    #[inline(always)]
    fn next_hop_seen(&self, place: u32) -> Option<(u32, u32)> {
        if !self.framed {
            return None;
        }
        let hop = maps::NEXT_HOPS.get_ptr(place)?;
        // SAFETY: as above.
        Some(unsafe {
            ((&raw const (*hop).tag).read_volatile(), (&raw const (*hop).seen).read_volatile())
        })
    }

    #[inline(always)]
    fn set_next_hop(&self, place: u32, hop: &NextHop) {
        if let Some(element) = maps::NEXT_HOPS.get_ptr_mut(place) {
            // SAFETY: the verifier proved the index; what another CPU reads or writes meanwhile is
            // told by the tag.
            unsafe { element.write_volatile(*hop) };
        }
    }

    #[inline(always)]
    fn set_next_hop_found(&self, place: u32, found: u32) {
        if let Some(hop) = maps::NEXT_HOPS.get_ptr_mut(place) {
            // SAFETY: as above; one aligned word. Only read where it is right already: all CPUs do.
            unsafe {
                let word = &raw mut (*hop).found;
                if word.read_volatile() != found {
                    word.write_volatile(found);
                }
            }
        }
    }

    #[inline(always)]
    fn source_known(&self, place: u32) -> u64 {
        let Some(word) = maps::SOURCES.get_ptr(place) else { return 0 };
        // SAFETY: the verifier proved the index; one aligned word.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn set_source_known(&self, place: u32, word: u64) {
        if let Some(element) = maps::SOURCES.get_ptr_mut(place) {
            // SAFETY: as above.
            unsafe { element.write_volatile(word) };
        }
    }

    #[inline(always)]
    fn take_hop(&self, hop: &NextHop) {
        let Some(words) = Words::get() else { return };
        let [a, b, c] = hop.ethernet;
        words.set(IFINDEX, hop.egress);
        words.set(ETHERNET, a);
        words.set(ETHERNET + 1, b);
        words.set(ETHERNET + 2, c);
        words.set(KNOWN, TAKEN);
    }

    #[inline(always)]
    fn forget_neighbour(&self) {
        if let Some(words) = Words::get() {
            words.set(KNOWN, 0);
        }
    }
}

macro_rules! routes {
    ($n:ident, $family:ident, $cidrs:ident, $address:expr) => {
        impl RouteTables<$n> for Maps {
            #[inline(always)]
            fn snat_address(&self, ifindex: u32, turn: u32) -> Ip<$n> {
                let none = [0; $n];
                let Some(value) = maps::INTERFACES.get_ptr(&ifindex) else { return none };
                let ip = address_in_turn(turn, |index| {
                    let at = value.cast::<u32>().wrapping_add($address + index * $n);
                    // SAFETY: the address lies in the looked-up element, which is checked behind it.
                    unsafe { at.cast::<Ip<$n>>().read_volatile() }
                });
                if is_whole(value, ifindex) { ip } else { none }
            }

            #[inline(always)]
            fn local_cidr(&self, index: u32) -> Option<ServiceCidr<$n>> {
                let range = maps::$cidrs.get_ptr(index)?;
                // SAFETY: the verifier proved the index; the agent changes ranges word by word, and
                // never while they count.
                Some(unsafe { range.read_volatile() })
            }

            #[inline(always)]
            fn route(
                &self,
                from: &Ip<$n>,
                to: &Ip<$n>,
                over: u32,
                out: bool,
                length: u32,
            ) -> RouteStatus {
                let Some(words) = Words::get() else { return RouteStatus::NoRoute };
                words.set(FAMILY, u32::from_ne_bytes([$family, 0, 0, 0]));
                words.set_ip(SOURCE, from);
                words.set_ip(DESTINATION, to);
                self.ask(words, over, out, length)
            }
        }
    };
}

routes!(V4, AF_INET, LOCAL_CIDRS4, 2);
routes!(V6, AF_INET6, LOCAL_CIDRS6, 6);
