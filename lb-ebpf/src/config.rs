//! Constants that the agent sets before it loads the object. The verifier knows their values, so
//! code that a kernel does not support is never checked there.
#![expect(unsafe_code, reason = "volatile reads keep the compiler from folding the defaults in")]

/// 1 if `set_retval` exists (kernel 5.18); without it a refused call fails with EPERM.
#[unsafe(no_mangle)]
static SET_RETVAL: u32 = 1;

/// Where the kernel's `struct sk_buff` keeps `ip_summed`, two bits wide: byte offset in the bits
/// from 8 on, shift in that byte below; 0 if unknown.
#[unsafe(no_mangle)]
static SKB_SUMMED: u32 = 0;

/// The cookie of the node's own network namespace; 0 if the kernel does not tell.
#[unsafe(no_mangle)]
static NODE_NETNS: u64 = 0;

/// 1 if only sockets of the node's own network namespace are served.
#[unsafe(no_mangle)]
static NODE_ONLY: u32 = 0;

/// 1 if a program that has functions of its own may go on with another (x86-64; arm64 from kernel 6.0):
/// packets that are no matter of course are decided on, and refused ones answered, by programs of their
/// own.
#[unsafe(no_mangle)]
static JUMPS: u32 = 1;

/// How pods of this node are told from other clients: 0 by the interface that they arrive by, 1 by
/// ranges of addresses, 2 not at all.
#[unsafe(no_mangle)]
static LOCAL_MODE: u32 = 0;

/// 1 if everything to a clusterIP gets a source of this node.
#[unsafe(no_mangle)]
static MASQUERADE_ALL: u32 = 0;

/// First source port of what is sent on, host order.
#[unsafe(no_mangle)]
static SNAT_FIRST: u32 = 1_024;

/// Number of these ports, at least 1.
#[unsafe(no_mangle)]
static SNAT_COUNT: u32 = 28_976;

/// A random number.
#[unsafe(no_mangle)]
static SEED: u32 = 0;

#[inline(always)]
pub fn jumps() -> bool {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const JUMPS) != 0 }
}

#[inline(always)]
pub fn node_netns() -> u64 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const NODE_NETNS) }
}

#[inline(always)]
pub fn node_only() -> bool {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const NODE_ONLY) != 0 }
}

#[inline(always)]
pub fn skb_summed() -> u32 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const SKB_SUMMED) }
}

#[inline(always)]
pub fn set_retval() -> bool {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const SET_RETVAL) != 0 }
}

#[inline(always)]
pub fn local_mode() -> u32 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const LOCAL_MODE) }
}

#[inline(always)]
pub fn masquerade_all() -> bool {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const MASQUERADE_ALL) != 0 }
}

#[inline(always)]
pub fn snat_first() -> u32 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const SNAT_FIRST) }
}

#[inline(always)]
pub fn snat_count() -> u32 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const SNAT_COUNT) }
}

#[inline(always)]
pub fn seed() -> u32 {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const SEED) }
}
