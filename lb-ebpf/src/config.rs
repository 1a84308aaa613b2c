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
/// refused packets are answered, by a program of their own.
#[unsafe(no_mangle)]
static ANSWERS: u32 = 1;

#[inline(always)]
pub fn answers() -> bool {
    // SAFETY: a static of this module; nothing writes it after load.
    unsafe { core::ptr::read_volatile(&raw const ANSWERS) != 0 }
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
