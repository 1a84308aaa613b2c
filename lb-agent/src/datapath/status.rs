//! What does the kernel really run? For `lb-agent status`: it asks the kernel, not the agent.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya_obj::generated::BPF_F_QUERY_EFFECTIVE;

use super::hooks::{self, Direction, SOCKET_HOOKS};
use super::outside::OutsideMaps;
use super::sys::{self, Target};
use super::xdp::{self, State};
use super::{Error, Interface, load};

/// One hook as the kernel sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookStatus {
    /// Name of our program.
    pub name: &'static str,
    /// The cgroup or interface.
    pub target: String,
    /// All programs that run there, in order.
    pub programs: Vec<RunningProgram>,
    /// Index of ours among them; nothing if it does not run.
    pub ours: Option<usize>,
    /// Why nothing can be said, if so.
    pub error: Option<String>,
    /// What is lost where ours does not run, if the engine works without.
    pub costs: Option<&'static str>,
}

/// A program that runs at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningProgram {
    /// Its id.
    pub id: u32,
    /// Its name; empty if it cannot be read.
    pub name: String,
}

/// The socket hooks, as they act on a process in `cgroup`: those of its ancestors count too.
pub fn socket_hooks(bpffs: &Path, cgroup: &Path) -> Result<Vec<HookStatus>, Error> {
    let file = hooks::open_cgroup(cgroup)?;
    let folder = load::folder(bpffs);
    Ok(SOCKET_HOOKS
        .iter()
        .map(|hook| {
            let target = Target::Cgroup(file.as_fd());
            let running = sys::program_query(target, hook.attach_type, BPF_F_QUERY_EFFECTIVE);
            let pin = hooks::socket_pin(&folder, hook);
            status(hook.name, cgroup.display().to_string(), running, &pin, hook.costs)
        })
        .collect())
}

/// The packet engine on one interface of this thread's network namespace.
pub fn interface_hooks(bpffs: &Path, interface: &Interface) -> Vec<HookStatus> {
    let folder = load::folder(bpffs);
    let Interface { index, name, role, ethernet, .. } = interface;
    let index = *index;
    let each = Direction::ALL.iter().filter_map(|&direction| {
        let program = direction.program(*role, *ethernet)?;
        let target = Target::Interface(index);
        let running = sys::program_query(target, direction.attach_type(), 0);
        let pin = hooks::interface_pin(&folder, direction, index);
        let shown = status(program, name.clone(), running, &pin, None);
        Some(match clsact(&folder, direction, index) {
            // Before Linux 6.6 there is no such query; what we have put there is all that is known.
            Some(program) if shown.ours.is_none() => {
                HookStatus { programs: vec![program], ours: Some(0), error: None, ..shown }
            }
            _ => shown,
        })
    });
    each.collect()
}

/// XDP on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpStatus {
    /// What became of it, as the agent told last.
    pub state: State,
    /// The program that the interface runs, ours or not.
    pub program: Option<RunningProgram>,
    /// Whether the driver runs it; else the kernel does.
    pub native: bool,
    /// Whether it is ours.
    pub ours: bool,
}

/// XDP on the interfaces of this thread's network namespace where it belongs, or where anything runs,
/// by index.
pub async fn xdp(bpffs: &Path) -> Result<BTreeMap<u32, XdpStatus>, Error> {
    let folder = load::folder(bpffs);
    let told: BTreeMap<u32, State> = OutsideMaps::open(&folder)?
        .interfaces()?
        .into_iter()
        .map(|(index, interface)| (index, State::of_flags(interface.flags)))
        .collect();
    let each = xdp::attached().await?.into_iter().filter_map(|(index, attached)| {
        let state = told.get(&index).copied().unwrap_or_default();
        let id = attached.driver.or(attached.generic);
        if state == State::Unwanted && id.is_none() {
            return None;
        }
        let link = sys::object_get(&xdp::pin(&folder, index));
        let own = link.and_then(|link| sys::link_info(link.as_fd())).map(|info| info.program);
        let status = XdpStatus {
            state,
            program: id.map(|id| RunningProgram { id, name: program_name(id) }),
            native: attached.driver.is_some(),
            ours: id.is_some() && own.ok() == id,
        };
        Some((index, status))
    });
    Ok(each.collect())
}

/// Our program in a clsact filter, if we have put one there.
fn clsact(folder: &Path, direction: Direction, index: u32) -> Option<RunningProgram> {
    let program = sys::object_get(&hooks::clsact_pin(folder, direction, index)).ok()?;
    let info = sys::program_info(program.as_fd()).ok()?;
    Some(RunningProgram { id: info.id, name: info.name() })
}

fn status(
    name: &'static str,
    target: String,
    running: io::Result<Vec<u32>>,
    pin: &Path,
    costs: Option<&'static str>,
) -> HookStatus {
    let own = sys::object_get(pin).and_then(|link| sys::link_info(link.as_fd()));
    let own = own.map(|info| info.program);
    let (ids, error) = match running {
        Ok(ids) => (ids, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let ours = own.ok().and_then(|own| ids.iter().position(|&id| id == own));
    let programs = ids.into_iter().map(|id| RunningProgram { id, name: program_name(id) });
    HookStatus { name, target, programs: programs.collect(), ours, error, costs }
}

fn program_name(id: u32) -> String {
    let info = sys::program_by_id(id).and_then(|fd| sys::program_info(fd.as_fd()));
    info.map(|info| info.name()).unwrap_or_default()
}
