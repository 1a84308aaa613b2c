//! The kernel programs as bytes, fitted to the running kernel before they are loaded.
//!
//! Everything that depends on the kernel is decided here, by probing, never by version: constants
//! of the object ([`Settings`]) and calls of kernel functions, whose ids differ from kernel to
//! kernel. The agent, the tests and the benchmarks load what this crate prepares.

mod btf;
mod calls;

use std::fs;

use aya::maps::ProgramArray;
use aya::programs::{ProgramError, ProgramFd, ProgramType, SchedClassifier, Xdp};
use aya::sys::is_helper_supported;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_func_id;
use lb_common::abi::{EarlySlot, ProgramSlot, map};
use lb_common::tables::LocalMode;

pub use btf::Btf;

/// Why the object cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was not there when this binary was built.
    #[error("this binary was built without its kernel programs; build it with `cargo xtask build`")]
    Missing,
    /// It is not what this crate expects.
    #[error(
        "the object with the kernel programs is damaged: {0}; build it anew with `cargo xtask build`"
    )]
    Damaged(&'static str),
}

/// The object as it was built, deflated: it would be a tenth of the agent.
static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/lb-ebpf.o.deflated"));
/// Bytes that an object has at most, with all its debug information.
const LARGEST: usize = 64 << 20;

/// The object as it was built.
fn inflated() -> Result<Vec<u8>, Error> {
    if OBJECT.is_empty() {
        return Err(Error::Missing);
    }
    miniz_oxide::inflate::decompress_to_vec_with_limit(OBJECT, LARGEST)
        .map_err(|_| Error::Damaged("it cannot be inflated"))
}

/// What the programs need to know of the kernel. The default assumes nothing and works everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `bpf_set_retval` exists (kernel 5.18): a refused call gets its own error number.
    pub set_retval: bool,
    /// Where `struct sk_buff` keeps `ip_summed`, with the id of the kernel function that gives
    /// access to it (kernel 6.2): checksums are adjusted in place.
    pub summed: Option<Summed>,
    /// Cookie of the node's own network namespace (`SO_NETNS_COOKIE`, kernel 5.14); 0 if unknown.
    pub node_netns: u64,
    /// Only sockets of that namespace are served.
    pub node_only: bool,
    /// Programs with functions of their own may go on with others: those are smaller then, and refused
    /// packets are answered.
    pub jumps: bool,
    /// How pods of this node are told from other clients.
    pub local_mode: LocalMode,
    /// Everything to a clusterIP gets a source of this node (M-6).
    pub masquerade_all: bool,
    /// First source port of what is sent on, host order.
    pub snat_first: u16,
    /// Number of these ports, at least 1.
    pub snat_count: u16,
    /// A random number: others do not know which source port a flow gets.
    pub seed: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            set_retval: false,
            summed: None,
            node_netns: 0,
            node_only: false,
            jumps: false,
            local_mode: LocalMode::Interface,
            masquerade_all: false,
            // Below NodePorts and the ephemeral ports of nodes, by default.
            snat_first: 1_024,
            snat_count: 28_976,
            seed: 0,
        }
    }
}

/// See [`Settings::summed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summed {
    /// Bits from the beginning of `struct sk_buff`.
    pub bit: u32,
    /// BTF id of `bpf_cast_to_kern_ctx`.
    pub cast: u32,
}

impl Settings {
    /// Asks the running kernel. What cannot be asked counts as missing.
    pub fn probe() -> Self {
        let set_retval =
            is_helper_supported(ProgramType::CgroupSockAddr, bpf_func_id::BPF_FUNC_set_retval)
                .unwrap_or(false);
        let summed = fs::read("/sys/kernel/btf/vmlinux").ok().and_then(|bytes| {
            let btf = Btf::parse(&bytes)?;
            Some(Summed { bit: btf.member_bit("sk_buff", "ip_summed")?, cast: btf.function(CAST)? })
        });
        // On arm64 since kernel 6.0; this helper came with the next one, and nothing tells directly.
        let jumps = cfg!(not(target_arch = "aarch64"))
            || is_helper_supported(
                ProgramType::SchedClassifier,
                bpf_func_id::BPF_FUNC_ktime_get_tai_ns,
            )
            .unwrap_or(false);
        Self { set_retval, summed, jumps, ..Self::default() }
    }

    /// The object for this kernel.
    pub fn object(&self) -> Result<Vec<u8>, Error> {
        let mut object = inflated()?;
        calls::fit(&mut object, CAST, self.summed.map(|summed| summed.cast))?;
        Ok(object)
    }

    /// Sets the constants of the object that [`Settings::object`] returned.
    pub fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>, constants: &'a Constants) {
        loader.override_global("SET_RETVAL", &constants.set_retval, true);
        loader.override_global("SKB_SUMMED", &constants.skb_summed, true);
        loader.override_global("NODE_NETNS", &constants.node_netns, true);
        loader.override_global("NODE_ONLY", &constants.node_only, true);
        loader.override_global("JUMPS", &constants.jumps, true);
        loader.override_global("LOCAL_MODE", &constants.local_mode, true);
        loader.override_global("MASQUERADE_ALL", &constants.masquerade_all, true);
        loader.override_global("SNAT_FIRST", &constants.snat_first, true);
        loader.override_global("SNAT_COUNT", &constants.snat_count, true);
        loader.override_global("SEED", &constants.seed, true);
    }

    /// The constants as the object wants them; they have to outlive the loader.
    pub fn constants(&self) -> Constants {
        Constants {
            set_retval: u32::from(self.set_retval),
            skb_summed: self.summed.map_or(0, |summed| ((summed.bit / 8) << 8) | (summed.bit % 8)),
            node_netns: self.node_netns,
            node_only: u32::from(self.node_only),
            jumps: u32::from(self.jumps),
            local_mode: match self.local_mode {
                LocalMode::Interface => 0,
                LocalMode::Range => 1,
                LocalMode::None => 2,
            },
            masquerade_all: u32::from(self.masquerade_all),
            snat_first: u32::from(self.snat_first),
            snat_count: u32::from(self.snat_count.max(1)),
            seed: self.seed,
        }
    }
}

/// See [`Settings::constants`].
#[derive(Clone, Copy, Debug)]
pub struct Constants {
    set_retval: u32,
    skb_summed: u32,
    node_netns: u64,
    node_only: u32,
    jumps: u32,
    local_mode: u32,
    masquerade_all: u32,
    snat_first: u32,
    snat_count: u32,
    seed: u32,
}

/// The program at XDP, that of packets in several buffers where `frags` says so (kernel 5.18), loaded with
/// what it goes on with; its name.
///
/// # Errors
///
/// The kernel refuses one of them, or the place is not to be had.
pub fn load_early(ebpf: &mut Ebpf, frags: bool) -> Result<&'static str, ProgramError> {
    let (name, array) = if frags {
        ("xdp_ingress_frags", map::XDP_PROGRAMS_FRAGS)
    } else {
        ("xdp_ingress", map::XDP_PROGRAMS)
    };
    let load = |ebpf: &mut Ebpf, name| -> Result<Option<ProgramFd>, ProgramError> {
        let Some(program) = ebpf.program_mut(name) else { return Ok(None) };
        let program: &mut Xdp = program.try_into()?;
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error),
        }
        Ok(Some(program.fd()?.try_clone()?))
    };
    for slot in EarlySlot::ALL {
        let behind = load(ebpf, slot.program(frags))?;
        if let (Some(fd), Some(map)) = (behind, ebpf.map_mut(array)) {
            ProgramArray::try_from(map)?.set(slot as u32, &fd, 0)?;
        }
    }
    load(ebpf, name)?;
    Ok(name)
}

/// Loads the programs that others go on with, and puts each in its place in `PROGRAMS`. Do it before
/// the others are attached: where the place is empty, packets pass untranslated.
pub fn fill_program_array(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let mut loaded = Vec::new();
    for slot in ProgramSlot::ALL {
        let program: &mut SchedClassifier = match ebpf.program_mut(slot.program()) {
            Some(program) => program.try_into()?,
            None => continue,
        };
        match program.load() {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
            Err(error) => return Err(error),
        }
        loaded.push((slot, program.fd()?.try_clone()?));
    }
    if let Some(map) = ebpf.map_mut(map::PROGRAMS) {
        let mut array = ProgramArray::try_from(map)?;
        for (slot, fd) in loaded {
            array.set(slot as u32, &fd, 0)?;
        }
    }
    Ok(())
}

/// The kernel function that turns a program's context into the kernel's own structure.
const CAST: &str = "bpf_cast_to_kern_ctx";
