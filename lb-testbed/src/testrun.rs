//! One run of a loaded program over given bytes (`BPF_PROG_TEST_RUN`), and the smallest programs,
//! which measurements are compared with.
#![expect(unsafe_code, reason = "bpf() reads and writes through addresses in its argument")]

pub mod array;
pub mod kernel;
pub mod place;
pub(crate) mod plain;
pub mod spread;

use std::{
    ffi::{CStr, c_int},
    ops::Range,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::sys;

const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_TEST_RUN: c_int = 10;
const BPF_OBJ_GET_INFO_BY_FD: c_int = 15;
/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`
const SUMMED: u32 = 1 << 2;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 1 << 1;
/// `BPF_XDP`: what XDP programs are made for. Newer kernels let one go on with another only if both are
/// made for the same.
pub const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`
const IN_DRIVER: u32 = 1 << 2;
/// `BPF_F_XDP_HAS_FRAGS`
const HAS_FRAGS: u32 = 1 << 5;
/// Programs may grow a packet (XDP head room, encapsulation); the result must have room for it.
const HEADROOM: usize = 4096;
/// Longer than any context of any kernel.
const CONTEXT: usize = 512;
/// Where `struct __sk_buff` has its mark.
const MARK: Range<usize> = 8..12;
/// Which of its words are by which interface the packet arrived, and at which it is.
const SK_BUFF_ARRIVAL: usize = 9;
const SK_BUFF_INTERFACE: usize = 10;
const SK_BUFF_WORDS: usize = 11;

/// What a program is run over.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The packet, from the Ethernet header on; at least 14 bytes, for tc at most a page.
    pub data: &'a [u8],
    /// The context (`struct __sk_buff` or `struct xdp_md`) in bytes; empty for the kernel's default.
    pub context: &'a [u8],
    /// How often it runs over the same packet. Above 1 later runs see what earlier ones wrote.
    pub repeat: u32,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The program's return value: `TC_ACT_…`, `TCX_…` or `XDP_…`.
    pub verdict: u32,
    /// The packet after the last run.
    pub data: Vec<u8>,
    /// Mean time of one run, nanoseconds; includes the kernel's own cost of calling it.
    pub duration: Duration,
}

/// A type of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// tc, tcx.
    SchedCls = 3,
    /// XDP.
    Xdp = 6,
    /// A cgroup's making and freeing of sockets.
    CgroupSock = 9,
    /// A cgroup's connect, sendmsg and so on.
    CgroupSockAddr = 18,
}

/// Runs a program once over a packet.
pub fn once(program: BorrowedFd<'_>, data: &[u8]) -> Result<Output> {
    run(program, &Input { data, context: &[], repeat: 1 })
}

/// Runs a tc program once over a packet that carries a sum of all its bytes, as from a network card
/// (`CHECKSUM_COMPLETE`). Fails with EBADMSG when the sum does not fit the packet afterwards, and
/// with EINVAL below kernel 6.15.
pub fn once_summed(program: BorrowedFd<'_>, data: &[u8]) -> Result<Output> {
    run_flagged(program, &Input { data, context: &[], repeat: 1 }, SUMMED)
}

/// Runs a tc program once over a packet with a mark; also the mark that it has afterwards.
pub fn once_marked(program: BorrowedFd<'_>, data: &[u8], mark: u32) -> Result<(Output, u32)> {
    let context: Vec<u8> = [0, 0, mark].into_iter().flat_map(u32::to_ne_bytes).collect();
    let (output, context) = run_whole(program, &Input { data, context: &context, repeat: 1 }, 0)?;
    let mark = context.get(MARK).and_then(|bytes| bytes.try_into().ok());
    Ok((output, u32::from_ne_bytes(mark.context("a context that ends before the mark")?)))
}

/// Runs a tc program once over a packet that arrives by an interface of this namespace, or leaves by
/// it.
pub fn once_at(program: BorrowedFd<'_>, data: &[u8], ifindex: u32) -> Result<Output> {
    let mut context = [0_u32; SK_BUFF_WORDS];
    // What has arrived anywhere is none of this node's own sockets'.
    (context[SK_BUFF_ARRIVAL], context[SK_BUFF_INTERFACE]) = (ifindex, ifindex);
    let context: Vec<u8> = context.into_iter().flat_map(u32::to_ne_bytes).collect();
    run(program, &Input { data, context: &context, repeat: 1 })
}

/// The same for an XDP program, to which packets only arrive (kernel 5.15).
pub fn once_early_at(program: BorrowedFd<'_>, data: &[u8], ifindex: u32) -> Result<Output> {
    let context = xdp_context(data, ifindex)?;
    run(program, &Input { data, context: &context, repeat: 1 })
}

/// The same with a packet in several buffers, the first of which has so many bytes (kernel 6.18).
pub fn once_early_in_parts(
    program: BorrowedFd<'_>,
    data: &[u8],
    ifindex: u32,
    linear: usize,
) -> Result<Output> {
    let first = data.get(..linear).context("a first buffer that is a part of the packet")?;
    let context = xdp_context(first, ifindex)?;
    run(program, &Input { data, context: &context, repeat: 1 })
}

/// The context (`struct xdp_md`) of a packet that arrives by the first queue of an interface.
pub fn xdp_context(data: &[u8], ifindex: u32) -> Result<Vec<u8>> {
    // Data, its end, metadata, interface, queue, egress.
    let fields = [0, len(data)?, 0, ifindex, 0, 0];
    Ok(fields.into_iter().flat_map(u32::to_ne_bytes).collect())
}

/// Runs a program.
pub fn run(program: BorrowedFd<'_>, input: &Input<'_>) -> Result<Output> {
    run_flagged(program, input, 0)
}

/// Has an XDP program make packets out of copies of a frame, as if an interface of the calling
/// thread's namespace had received them: what the program returns is done (kernel 5.18). Frames are
/// used again as others left them.
pub fn live(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32, packets: u32) -> Result<()> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, len(frame)?, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: len(frame)?,
        data_in: address(frame),
        repeat: packets,
        ctx_size_in: len(&context)?,
        ctx_in: address(&context),
        flags: LIVE_FRAMES,
        batch_size: 64,
        ..TestRunAttr::default()
    };
    // SAFETY: both addresses belong to slices of the length stated beside them that live until the
    // call returns.
    unsafe { sys::bpf(BPF_PROG_TEST_RUN, &mut attr) }.context("make live frames; needs 5.18")?;
    Ok(())
}

/// Attaches an XDP program to an interface of the calling thread's namespace, in its driver, until
/// the descriptor is closed.
pub fn attach_xdp(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    sys::link_create(program, ifindex, ATTACH_XDP, IN_DRIVER).context("attach an XDP program")
}

fn run_flagged(program: BorrowedFd<'_>, input: &Input<'_>, flags: u32) -> Result<Output> {
    run_whole(program, input, flags).map(|(output, _)| output)
}

/// Also the context afterwards.
fn run_whole(
    program: BorrowedFd<'_>,
    input: &Input<'_>,
    flags: u32,
) -> Result<(Output, [u8; CONTEXT])> {
    let mut data = vec![0; input.data.len() + HEADROOM];
    let mut context = [0; CONTEXT];
    let mut attr = TestRunAttr {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: len(input.data)?,
        data_size_out: len(&data)?,
        data_in: address(input.data),
        data_out: data.as_mut_ptr() as u64,
        repeat: input.repeat,
        ctx_size_in: len(input.context)?,
        ctx_in: if input.context.is_empty() { 0 } else { address(input.context) },
        // Asked for without one that was given, XDP's says that the packet is empty.
        ctx_size_out: if input.context.is_empty() { 0 } else { len(&context)? },
        ctx_out: if input.context.is_empty() { 0 } else { context.as_mut_ptr() as u64 },
        flags,
        ..TestRunAttr::default()
    };
    // SAFETY: each address belongs to a slice of the length stated beside it that lives until the
    // call returns, and both outputs are exclusively ours.
    unsafe { sys::bpf(BPF_PROG_TEST_RUN, &mut attr) }.context("run a BPF program over a packet")?;
    let size = usize::try_from(attr.data_size_out).context("size of the result")?;
    ensure!(size <= data.len(), "a result of {size} bytes");
    data.truncate(size);
    let duration = Duration::from_nanos(attr.duration.into());
    Ok((Output { verdict: attr.retval, data, duration }, context))
}

/// Loads a program that only returns `verdict`.
pub fn load_empty(kind: Kind, verdict: i32, attach_type: u32) -> Result<OwnedFd> {
    // mov r0, verdict; exit
    let code = [0xb7 | (u64::from(verdict.cast_unsigned()) << 32), 0x95];
    load(kind, &code, attach_type)
}

/// Loads a program of these instructions.
pub(crate) fn load(kind: Kind, code: &[u64], attach_type: u32) -> Result<OwnedFd> {
    load_logged(kind, code, [attach_type, 0], c"Apache-2.0", 1).map(|(program, _)| program)
}

/// What the verifier makes of a program.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The statistics that it gives (`BPF_LOG_STATS`).
    pub log: String,
    /// The instructions that are left: what cannot be reached is gone, with whole functions.
    pub code: Vec<u64>,
}

/// Loads a program of these instructions, which may use what is for GPL programs only, and drops it
/// again. `frags` says that it takes packets in several buffers (XDP).
pub fn verify(kind: Kind, code: &[u64], attach_type: u32, frags: bool) -> Result<Verified> {
    let flags = if frags { HAS_FRAGS } else { 0 };
    let (program, log) = load_logged(kind, code, [attach_type, flags], c"Dual MIT/GPL", 4)?;
    let mut code = Vec::new();
    // The first answer says how many there are.
    for _ in 0..2 {
        let mut info = Info {
            xlated_prog_len: u32::try_from(size_of_val(code.as_slice()))?,
            xlated_prog_insns: code.as_mut_ptr() as u64,
            ..Info::default()
        };
        let mut attr = InfoAttr {
            bpf_fd: program.as_raw_fd().cast_unsigned(),
            info_len: u32::try_from(size_of::<Info>()).context("size of a structure")?,
            info: (&raw mut info) as u64,
        };
        // SAFETY: both structures live until the call returns, and so does the code, exclusively ours
        // and as long as stated.
        unsafe { sys::bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.context("read a program back")?;
        code.resize(usize::try_from(info.xlated_prog_len / 8).context("length of a program")?, 0);
    }
    Ok(Verified { log, code })
}

/// `union bpf_attr` as `BPF_OBJ_GET_INFO_BY_FD` reads it.
#[repr(C)]
#[derive(Debug)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The first members of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: u64,
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
}

fn load_logged(
    kind: Kind,
    code: &[u64],
    [attach_type, prog_flags]: [u32; 2],
    license: &CStr,
    log_level: u32,
) -> Result<(OwnedFd, String)> {
    let mut log = vec![0_u8; 1 << 16];
    let mut attr = LoadAttr {
        prog_type: kind as u32,
        insn_cnt: u32::try_from(code.len()).context("length of a program")?,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level,
        log_size: len(&log)?,
        log_buf: log.as_mut_ptr() as u64,
        expected_attach_type: attach_type,
        prog_flags,
        ..LoadAttr::default()
    };
    // SAFETY: code, licence and log live until the call returns; the log is exclusively ours and as
    // long as stated.
    let loaded = unsafe { sys::bpf_open(BPF_PROG_LOAD, &mut attr) };
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let log = String::from_utf8_lossy(log.get(..end).unwrap_or_default()).trim().to_owned();
    match loaded {
        Ok(program) => Ok((program, log)),
        Err(error) => Err(error).with_context(|| format!("load a program of type {kind:?}: {log}")),
    }
}

/// `union bpf_attr` as `BPF_PROG_TEST_RUN` reads it (kernel 5.10: until `cpu`).
#[repr(C)]
#[derive(Debug, Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `union bpf_attr` as `BPF_PROG_LOAD` reads it, until `expected_attach_type`.
#[repr(C)]
#[derive(Debug, Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

fn len(bytes: &[u8]) -> Result<u32> {
    u32::try_from(bytes.len()).context("a packet of at most 4 GiB")
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}
