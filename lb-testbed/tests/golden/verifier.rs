//! How much do the programs ask of the verifier and of the kernel's stack? Compared with a record,
//! because both grow unnoticed until an older kernel refuses a program.
//!
//! aya throws the verifier's statistics of a good load away, so the same object is linked once more,
//! with the same maps, and loaded by hand.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    env, fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::{
    Object, ProgramSection,
    generated::{bpf_attach_type, bpf_func_id, bpf_insn},
};
use lb_object::Settings;
use lb_testbed::{
    require,
    testrun::{self, Kind, Verified, kernel::Kernel},
};
use serde::{Deserialize, Serialize};

const RECORD: &str = include_str!("../../../docs/verifier.json");
const VARIABLE: &str = "MILLRACE_RECORD";
/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_CALL`.
const OWN_FUNCTION: u8 = 1;
/// What no program may exceed on any kernel; it allows a million instructions.
const MAX_INSTRUCTIONS: u32 = 100_000;
const MAX_STACK: u32 = 384;
/// What the verifier allows; it rounds frames up.
const MAX_FRAMES_IN_32S: u32 = 512;

/// `docs/verifier.json`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The kernel's release; only there the numbers are exact.
    kernel: String,
    programs: BTreeMap<String, Cost>,
}

/// What one program costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cost {
    /// Instructions that the verifier followed.
    verified_instructions: u32,
    /// Bytes of stack over the deepest chain of calls.
    stack: u32,
    /// The same with each frame rounded up to 32, as older kernels count.
    frames_in_32s: u32,
}

#[test]
fn programs_cost_what_is_recorded_or_stay_within_their_budget() -> Result<()> {
    if !require::bpf_or_skip("programs_cost_what_is_recorded_or_stay_within_their_budget") {
        return Ok(());
    }
    for (name, cost) in &measure(&Settings { jumps: false, ..Settings::probe() })? {
        // The verifier follows more there; what it allows for the stack is the same.
        ensure!(
            cost.stack <= MAX_STACK && cost.frames_in_32s <= MAX_FRAMES_IN_32S,
            "{name} needs {cost:?} where programs do not jump"
        );
    }
    let here = Record { kernel: release()?, programs: measure(&Settings::probe())? };
    println!("{}", table(&here));
    for (name, cost) in &here.programs {
        ensure!(
            cost.verified_instructions <= MAX_INSTRUCTIONS
                && cost.stack <= MAX_STACK
                && cost.frames_in_32s <= MAX_FRAMES_IN_32S,
            "{name} needs {cost:?}; at most {MAX_INSTRUCTIONS} instructions, {MAX_STACK} bytes of \
             stack and {MAX_FRAMES_IN_32S} rounded up"
        );
    }
    if env::var_os(VARIABLE).is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verifier.json");
        let text = serde_json::to_string_pretty(&here)? + "\n";
        return fs::write(&path, text).with_context(|| format!("write {}", path.display()));
    }
    let recorded: Record = serde_json::from_str(RECORD).context("read docs/verifier.json")?;
    if recorded.kernel == here.kernel {
        ensure!(
            recorded == here,
            "docs/verifier.json says otherwise:\n{}if that is meant, run this test with \
             {VARIABLE}=1 as root and commit the file",
            table(&recorded)
        );
    }
    Ok(())
}

/// Loads every program and asks what it cost.
fn measure(settings: &Settings) -> Result<BTreeMap<String, Cost>> {
    let mut kernel = Kernel::prepare(settings)?;
    let object = settings.object()?;
    let object = link(&object, &kernel)?;
    let mut costs = BTreeMap::new();
    for name in kernel.names() {
        let program = object.programs.get(&name).with_context(|| format!("no program {name}"))?;
        let function = object
            .functions
            .get(&program.function_key())
            .with_context(|| format!("no code of {name}"))?;
        let code: Vec<u64> = function.instructions.iter().copied().map(word).collect();
        // Those that refuse go on with an answer where the kernel takes both (`JUMPS`).
        if !["tc_begin_", "tc_forward_", "tc_icmp_", "tc_fragment_", "tc_refuse_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        {
            jumps_or_calls(&function.instructions).context(name.clone())?;
        }
        let (kind, attach) = kind(&program.section)?;
        let frags = matches!(program.section, ProgramSection::Xdp { frags: true, .. });
        let Verified { log, code } =
            testrun::verify(kind, &code, attach as u32, frags).context(name.clone())?;
        let (processed, depths) = statistics(&log).with_context(|| format!("{name}: {log}"))?;
        // The real load knows types of functions too; where it does not tell, this one does.
        let verified_instructions = kernel.load(&name)?.unwrap_or(processed);
        let stack = deepest(&code, &depths).with_context(|| format!("{name}: {log}"))?;
        let rounded: Vec<u32> = depths.iter().map(|depth| in_32s(*depth)).collect();
        let frames_in_32s = deepest(&code, &rounded)?;
        costs.insert(name, Cost { verified_instructions, stack, frames_in_32s });
    }
    Ok(costs)
}

/// Before kernel 6.0 arm64 refuses a program that has functions of its own and goes on with another,
/// wherever it does so.
fn jumps_or_calls(code: &[bpf_insn]) -> Result<()> {
    let calls = |kind, target: Option<i32>| {
        code.iter().any(|instruction| {
            instruction.code == CALL
                && instruction.src_reg() == kind
                && target.is_none_or(|target| instruction.imm == target)
        })
    };
    let jumps = calls(0, Some(bpf_func_id::BPF_FUNC_tail_call as i32));
    ensure!(!(jumps && calls(OWN_FUNCTION, None)), "it goes on with another and calls functions");
    Ok(())
}

/// The object with the addresses of these maps and of its own functions in its code.
fn link(bytes: &[u8], kernel: &Kernel) -> Result<Object> {
    let mut object = Object::parse(bytes).context("parse the object")?;
    let maps = std::mem::take(&mut object.maps);
    let mut places = Vec::new();
    for (name, map) in &maps {
        let data = kernel.map_data(name).with_context(|| format!("no map {name}"))?;
        places.push((name.as_str(), data.fd().as_fd().as_raw_fd(), map));
    }
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(places.into_iter(), &sections).context("link the maps")?;
    object.relocate_calls(&sections).context("link the functions")?;
    Ok(object)
}

fn kind(section: &ProgramSection) -> Result<(Kind, bpf_attach_type)> {
    Ok(match section {
        ProgramSection::SchedClassifier => {
            (Kind::SchedCls, bpf_attach_type::BPF_CGROUP_INET_INGRESS)
        }
        ProgramSection::Xdp { .. } => (Kind::Xdp, bpf_attach_type::BPF_XDP),
        ProgramSection::CgroupSockAddr { attach_type } => {
            (Kind::CgroupSockAddr, (*attach_type).into())
        }
        ProgramSection::CgroupSock { attach_type } => (Kind::CgroupSock, (*attach_type).into()),
        other => bail!("a program of section {other:?}"),
    })
}

/// An instruction as the kernel of a little-endian machine reads it.
fn word(instruction: bpf_insn) -> u64 {
    let registers = (instruction.src_reg() << 4) | instruction.dst_reg();
    u64::from(instruction.code)
        | (u64::from(registers) << 8)
        | (u64::from(instruction.off.cast_unsigned()) << 16)
        | (u64::from(instruction.imm.cast_unsigned()) << 32)
}

/// Instructions followed, and the stack depth of each function.
fn statistics(log: &str) -> Option<(u32, Vec<u32>)> {
    let after = |words| log.lines().find_map(|line| line.strip_prefix(words));
    // Newer kernels add their own maximum, rounded up in their own way.
    let depths = after("stack depth ")?.split(" max ").next()?;
    let depths = depths.split('+').map(|depth| depth.trim().parse().ok());
    let processed = after("processed ")?.split(' ').next()?.parse().ok()?;
    Some((processed, depths.collect::<Option<_>>()?))
}

/// Bytes of stack of the deepest chain of calls that begins with the program.
fn deepest(code: &[u64], depths: &[u32]) -> Result<u32> {
    let calls: Vec<(usize, usize)> = code
        .iter()
        .enumerate()
        .filter_map(|(at, word)| Some((at, call_target(at, *word)?)))
        .collect();
    let mut starts: BTreeSet<usize> = calls.iter().map(|(_, target)| *target).collect();
    starts.insert(0);
    let starts: Vec<usize> = starts.into_iter().collect();
    ensure!(starts.len() == depths.len(), "{} functions, {depths:?}", starts.len());
    let function_at = |at: usize| starts.iter().rposition(|start| *start <= at).unwrap_or(0);
    let edges: BTreeSet<(usize, usize)> =
        calls.into_iter().map(|(at, target)| (function_at(at), function_at(target))).collect();
    Ok(below(0, &edges, depths))
}

fn below(function: usize, edges: &BTreeSet<(usize, usize)>, depths: &[u32]) -> u32 {
    let own = depths.get(function).copied().unwrap_or(0);
    let callees = edges.iter().filter(|(from, to)| *from == function && *to != function);
    own + callees.map(|(_, to)| below(*to, edges, depths)).max().unwrap_or(0)
}

/// A frame as older kernels count it.
fn in_32s(depth: u32) -> u32 {
    depth.max(1).next_multiple_of(32)
}

/// The instruction that a call of a function of the program goes to.
fn call_target(at: usize, word: u64) -> Option<usize> {
    let [code, registers, a, b, ..] = word.to_ne_bytes();
    // BPF_JMP | BPF_CALL with BPF_PSEUDO_CALL as its source.
    if code != 0x85 || registers >> 4 != 1 {
        return None;
    }
    // In a loaded program the distance is where others have offsets: the rest is the function's number.
    at.checked_add(1)?.checked_add_signed(i16::from_ne_bytes([a, b]).into())
}

fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(text.trim().to_owned())
}

fn table(record: &Record) -> String {
    let rows = record.programs.iter().map(|(name, cost)| {
        let Cost { verified_instructions, stack, frames_in_32s } = cost;
        format!("  {name}: {verified_instructions} instructions, {stack} ({frames_in_32s}) bytes of stack\n")
    });
    format!("on {}:\n{}", record.kernel, rows.collect::<String>())
}

#[test]
fn the_deepest_chain_is_found() {
    let call = |distance: i16| 0x1085 | (u64::from(distance.cast_unsigned()) << 16);
    let exit = 0x95;
    // 0 calls 1 and 2, 1 calls 2.
    let code = [call(2), call(3), exit, call(1), exit, exit];
    assert_eq!(deepest(&code, &[8, 40, 300]).unwrap(), 8 + 40 + 300);
    assert_eq!([0, 1, 32, 33].map(in_32s), [32, 32, 32, 64]);
    assert!(deepest(&code, &[8, 0]).is_err());
    let log = "verification time 5 usec\nstack depth 16+8\nprocessed 42 insns (limit 1000000)";
    assert_eq!(statistics(log), Some((42, vec![16, 8])));
    let newer = "stack depth 64+0 max 64\ninsns processed 580\nprocessed 580 insns (limit 1000000)";
    assert_eq!(statistics(newer), Some((580, vec![64, 0])));
}
