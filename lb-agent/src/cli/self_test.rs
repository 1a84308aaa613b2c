//! Does the socket engine act on a process of the node? Seen by a process that is one.
//!
//! A child process moves to a cgroup of its own below the node's, and connects UDP sockets to an
//! address that only the socket engine refuses; see [`lb_agent::plan::self_test`]. To tell its
//! refusal from that of somebody who refuses everything, a neighbouring address is tried as well.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use lb_agent::plan::self_test::{PORT, VIP4, VIP6};
use serde::{Deserialize, Serialize};

use super::error::{Error, Exit};
use super::output;

/// What names of our temporary cgroups begin with; the process id of their maker follows.
const PREFIX: &str = "millrace-self-test-";
/// Not a Service's: beside the addresses of the self-test.
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 3);

#[derive(Args, Debug)]
pub(super) struct ChildArguments {
    /// The cgroup to move to
    cgroup: PathBuf,
}

/// What the child saw in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Seen {
    /// The self-test address is refused, the other one is not.
    Works,
    /// Nobody refuses the self-test address.
    NotRefused,
    /// Both are refused.
    EverythingRefused,
    /// There are no sockets of this family here.
    NoFamily,
}

/// What was found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct SelfTest {
    pub(super) ipv4: Option<Seen>,
    pub(super) ipv6: Option<Seen>,
    /// Why nothing was found out.
    pub(super) error: Option<String>,
}

/// Runs the test in a temporary cgroup below `cgroup`.
pub(super) fn run(cgroup: &Path) -> SelfTest {
    match in_child(cgroup) {
        Ok([ipv4, ipv6]) => SelfTest { ipv4: Some(ipv4), ipv6: Some(ipv6), error: None },
        Err(error) => SelfTest { ipv4: None, ipv6: None, error: Some(error.to_string()) },
    }
}

/// Removes what a killed test left below a cgroup; tells what.
pub(super) fn sweep(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let left = entries.filter(|entry| {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    });
    left.map(|entry| entry.path()).filter(|path| fs::remove_dir(path).is_ok()).collect()
}

fn in_child(cgroup: &Path) -> Result<[Seen; 2], Error> {
    sweep(cgroup);
    let path = cgroup.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir(&path)
        .map_err(Error::system(format!("make the temporary cgroup {}", path.display())))?;
    let place = Temporary(path);
    // This very program, whatever its file is called by now.
    let output = Command::new("/proc/self/exe")
        .arg("self-test-child")
        .arg(&place.0)
        .output()
        .map_err(Error::system("start a process for the self-test"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::system("run the self-test")(io::Error::other(said)));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| Error::system("read what the self-test says")(error.into()))
}

/// A cgroup without processes, removed when the test is over.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // The next test or `cleanup` sweeps it otherwise.
        drop(fs::remove_dir(&self.0));
    }
}

/// The child: moves, connects, and writes what it saw.
pub(super) fn child(arguments: &ChildArguments) -> Result<Exit, Error> {
    let procs = arguments.cgroup.join("cgroup.procs");
    // 0 is whoever writes it.
    fs::write(&procs, "0").map_err(Error::system(format!("write to {}", procs.display())))?;
    let seen = [(VIP4.into(), OTHER4.into()), (VIP6.into(), OTHER6.into())]
        .map(|(vip, other)| judge(connect(vip), connect(other)));
    let text = serde_json::to_string(&seen)
        .map_err(|error| Error::system("write the result")(error.into()))?;
    output::print(&text)?;
    Ok(Exit::Success)
}

fn judge(vip: Attempt, other: Attempt) -> Seen {
    match (vip, other) {
        (Attempt::NoSocket, _) | (_, Attempt::NoSocket) => Seen::NoFamily,
        (Attempt::Refused, Attempt::Passed) => Seen::Works,
        (Attempt::Refused, Attempt::Refused) => Seen::EverythingRefused,
        (Attempt::Passed, _) => Seen::NotRefused,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    NoSocket,
    Refused,
    /// Connected, or no route: the kernel looked for one, and so nobody refused before.
    Passed,
}

fn connect(ip: IpAddr) -> Attempt {
    let any = if ip.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let Ok(socket) = UdpSocket::bind(any) else { return Attempt::NoSocket };
    match socket.connect((ip, PORT)).map_err(|error| error.kind()) {
        // Before Linux 5.18 a program's refusal is EPERM, whatever it means.
        Err(ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => Attempt::Refused,
        _ => Attempt::Passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_of_the_one_address_shows_that_it_works() {
        use Attempt::{NoSocket, Passed, Refused};
        for (vip, other, seen) in [
            (Refused, Passed, Seen::Works),
            (Refused, Refused, Seen::EverythingRefused),
            (Passed, Passed, Seen::NotRefused),
            (Passed, Refused, Seen::NotRefused),
            (NoSocket, NoSocket, Seen::NoFamily),
        ] {
            assert_eq!(judge(vip, other), seen);
        }
    }

    #[test]
    fn a_cgroup_that_cannot_be_made_is_told() {
        let test = run(Path::new("/proc"));
        assert!(test.error.unwrap().contains("temporary cgroup /proc/millrace-self-test-"));
    }
}
