//! What does the socket engine leave alone on this node, and why? For `lb-agent status`: reads the
//! pinned maps and looks into namespaces itself, the agent is not asked.

use std::path::{Path, PathBuf};

use lb_common::abi::NetnsFlags;
use serde::Serialize;

use super::sock_diag::{SockDiag, Support};
use super::visit::{Place, visit};
use super::{cgroup, look, own_cookie, scan};
use crate::datapath::Error;
use crate::datapath::namespaces::{self, Told};

/// A network namespace whose sockets are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BypassedNetns {
    /// Its inode, as `/proc/PID/ns/net` shows it.
    pub netns: u64,
    /// A process in it.
    pub pid: u32,
    /// What that is called.
    pub process: String,
    /// Why it is left alone.
    pub why: String,
}

/// A cgroup that is left alone, with all below it: the agent was told to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BypassedCgroup {
    /// Its id: the inode of its folder.
    pub id: u64,
    /// Its folder; none if it has gone, so that nothing is left alone by it any more.
    pub path: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Namespaces.
    pub namespaces: Vec<BypassedNetns>,
    /// Cgroups.
    pub cgroups: Vec<BypassedCgroup>,
    /// Something that the kernel does not have, each with what that costs.
    #[serde(skip)]
    pub lacking: Vec<(&'static str, &'static str)>,
}

/// Looks around, on a thread in the node's network namespace.
pub fn survey(folder: &Path, node_cgroup: &Path) -> Result<Survey, Error> {
    let Told { namespaces: records, cgroups } = namespaces::told(folder)?;
    let is_bypassed = |cookie: u64| {
        records.iter().any(|(of, record)| *of == cookie && record.flags & NetnsFlags::BYPASS != 0)
    };
    let mut survey = Survey { lacking: lacking(), ..Survey::default() };
    let found = scan::scan(node_cgroup)
        .map_err(Error::system(format!("read the cgroups below {}", node_cgroup.display())))?;
    if found.unseen > 0 {
        survey.lacking.push((
            "hostPID",
            "processes of the node cannot be seen: pods with a service mesh are not bypassed, and \
             UDP sockets of pods stay on backends that are gone",
        ));
    }
    if records.iter().any(|(cookie, _)| is_bypassed(*cookie)) {
        let own = scan::own().map_err(Error::system("tell the own network namespace"))?;
        let others = found.namespaces.into_iter().filter(|(inode, _)| *inode != own);
        let places: Vec<_> = others.map(|(inode, pid)| Place { inode, pid: Some(pid) }).collect();
        for (place, result) in visit(&places, |_| look::look(true)) {
            let (Ok(seen), Some(pid)) = (result, place.pid) else { continue };
            if is_bypassed(seen.cookie) {
                let why = seen.redirect().map_or_else(
                    || "it redirected what it sends when the agent last looked".to_owned(),
                    |redirect| redirect.to_string(),
                );
                let process = scan::process_name(pid);
                survey.namespaces.push(BypassedNetns { netns: place.inode, pid, process, why });
            }
        }
    }
    for bypass in cgroups {
        let path = cgroup::path_of(bypass.id, node_cgroup);
        survey.cgroups.push(BypassedCgroup { id: bypass.id, path });
    }
    Ok(survey)
}

fn lacking() -> Vec<(&'static str, &'static str)> {
    let mut lacking = Vec::new();
    if own_cookie().is_err() {
        lacking.push((
            "SO_NETNS_COOKIE (kernel 5.14)",
            "pods with a service mesh are not bypassed, and ClientIP affinity takes a pod's socket \
             and its packets for two clients",
        ));
    }
    if let Ok(Support::Not) = SockDiag::open().and_then(|mut diag| diag.support()) {
        lacking.push((
            "CONFIG_INET_DIAG_DESTROY",
            "connected UDP sockets stay on backends that are gone",
        ));
    }
    lacking
}

impl Survey {
    /// One sentence for each that is left alone.
    pub fn sentences(&self) -> Vec<String> {
        let namespaces = self.namespaces.iter().map(|bypassed| {
            let BypassedNetns { netns, pid, process, why } = bypassed;
            format!(
                "netns {netns} (pid {pid} {process}): {why}: its sockets are left alone; the packet \
                 engine serves it"
            )
        });
        let cgroups = self.cgroups.iter().map(|bypassed| match &bypassed.path {
            Some(path) => format!(
                "cgroup {}: --bypass-cgroup: sockets of processes in and below it are left alone; \
                 the packet engine serves those that are in pods",
                path.display()
            ),
            None => format!(
                "cgroup with id {}: --bypass-cgroup: it is not below the node's cgroup (any more); \
                 if it was made anew, start the agent again",
                bypassed.id
            ),
        });
        namespaces.chain(cgroups).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bypass_says_what_who_and_why() {
        let survey = Survey {
            namespaces: vec![BypassedNetns {
                netns: 4_026_532_345,
                pid: 1234,
                process: "envoy".into(),
                why: crate::namespaces::redirect::Redirect::Nftables.to_string(),
            }],
            cgroups: vec![
                BypassedCgroup { id: 7, path: Some("/sys/fs/cgroup/vm".into()) },
                BypassedCgroup { id: 8, path: None },
            ],
            lacking: Vec::new(),
        };
        let [netns, cgroup, gone] = &survey.sentences()[..] else { panic!("{survey:?}") };
        assert_eq!(
            netns,
            "netns 4026532345 (pid 1234 envoy): nat REDIRECT rules in OUTPUT (nftables): its \
             sockets are left alone; the packet engine serves it"
        );
        assert!(cgroup.starts_with("cgroup /sys/fs/cgroup/vm: --bypass-cgroup"), "{cgroup}");
        assert!(gone.contains("id 8"), "{gone}");
    }
}
