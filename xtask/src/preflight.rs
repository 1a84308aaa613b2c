//! What does this machine lack for a command, and what is to be done about it?
//!
//! Decisions and advice are pure functions of [`Facts`]; only [`Facts::gather`] looks around.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::sh;

/// The oldest kernel that the programs are made for: major and minor version.
pub(crate) const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// What was found on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// This process runs as root.
    pub(crate) root: bool,
    /// `sudo` is installed.
    pub(crate) sudo: bool,
    /// The kernel describes its types in `/sys/kernel/btf/vmlinux`.
    pub(crate) btf: bool,
    /// Where cgroup2 is mounted; it differs between machines.
    pub(crate) cgroup2: Option<PathBuf>,
    /// Major and minor version of the running kernel, as far as its release tells.
    pub(crate) kernel: Option<(u32, u32)>,
    /// A C compiler, which rustc links with.
    pub(crate) linker: bool,
    /// `rustup` is installed.
    pub(crate) rustup: bool,
    /// Packages can be installed with `apt-get`.
    pub(crate) apt: bool,
}

/// Something that a command cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Root, or `sudo` to become root.
    Root,
    /// Type information of the kernel.
    Btf,
    /// A mounted cgroup2 hierarchy.
    Cgroup2,
    /// A kernel of at least [`OLDEST_KERNEL`].
    Kernel,
    /// A C linker.
    Linker,
    /// `rustup`, which fetches compiler components.
    Rustup,
}

/// What loading the kernel programs on this machine takes.
pub(crate) const DATAPATH: [Need; 4] = [Need::Root, Need::Kernel, Need::Btf, Need::Cgroup2];

/// What building takes.
pub(crate) const BUILD: [Need; 2] = [Need::Rustup, Need::Linker];

/// One thing that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// What is missing.
    pub(crate) lack: String,
    /// What to do about it.
    pub(crate) advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.lack, self.advice)
    }
}

impl Facts {
    /// Looks at this machine.
    pub(crate) fn gather() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            // A process owns its own folder in /proc.
            root: fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0),
            sudo: sh::has_program("sudo"),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            cgroup2: cgroup2_mount(&read("/proc/self/mounts")),
            kernel: kernel_version(&read("/proc/sys/kernel/osrelease")),
            linker: sh::has_program("cc"),
            rustup: sh::has_program("rustup"),
            apt: sh::has_program("apt-get"),
        }
    }

    /// Everything of `needs` that is missing, each with advice.
    pub(crate) fn problems(&self, needs: &[Need]) -> Vec<Problem> {
        needs.iter().filter_map(|&need| self.problem(need)).collect()
    }

    /// Fails with all that is missing.
    pub(crate) fn require(&self, needs: &[Need]) -> anyhow::Result<()> {
        let problems = self.problems(needs);
        if problems.is_empty() {
            return Ok(());
        }
        anyhow::bail!("this machine lacks something:\n{}", list(&problems))
    }

    fn problem(&self, need: Need) -> Option<Problem> {
        match need {
            Need::Root => (!self.root && !self.sudo).then(|| Problem {
                lack: "not root, and there is no sudo".into(),
                advice: "run this command as root (`su -c 'cargo xtask …'`), or install sudo"
                    .into(),
            }),
            Need::Btf => (!self.btf).then(|| Problem {
                lack: "the kernel has no BTF (/sys/kernel/btf/vmlinux)".into(),
                advice: "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; the stock kernels of \
                         Debian 11 and Ubuntu 20.10 and newer have it. In a container, mount the \
                         host's /sys"
                    .into(),
            }),
            Need::Cgroup2 => self.cgroup2.is_none().then(|| Problem {
                lack: "cgroup2 is not mounted".into(),
                advice: "run `mount -t cgroup2 none /sys/fs/cgroup/unified` as root (make the \
                         folder first), or boot with systemd.unified_cgroup_hierarchy=1"
                    .into(),
            }),
            Need::Kernel => kernel_problem(self.kernel),
            Need::Linker => (!self.linker).then(|| Problem {
                lack: "there is no C linker (cc)".into(),
                advice: "run `apt-get install build-essential` as root".into(),
            }),
            Need::Rustup => (!self.rustup).then(|| Problem {
                lack: "rustup is not installed".into(),
                advice: "get it from https://rustup.rs; the kernel programs need the pinned \
                         compiler with its component rust-src"
                    .into(),
            }),
        }
    }
}

/// One line per problem.
pub(crate) fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|p| format!("  - {p}")).collect();
    lines.join("\n")
}

fn kernel_problem(kernel: Option<(u32, u32)>) -> Option<Problem> {
    let (major, minor) = OLDEST_KERNEL;
    let lack = match kernel {
        None => "the kernel's release in /proc/sys/kernel/osrelease is not a version".to_owned(),
        Some(version) if version < OLDEST_KERNEL => {
            format!("the kernel is {}.{}", version.0, version.1)
        }
        Some(_) => return None,
    };
    Some(Problem { lack, advice: format!("boot Linux {major}.{minor} or newer") })
}

/// The version in a release such as `6.12.41+deb13-cloud-amd64`.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The first mount point of type cgroup2 in the text of `/proc/self/mounts`.
pub(crate) fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

/// Advice when the output of rustup, cargo, apt or a resolver tells of a network that is not there.
pub(crate) fn network_advice(output: &str) -> Option<&'static str> {
    const SIGNS: [&str; 12] = [
        "Could not resolve",
        "Couldn't resolve",
        "could not resolve host",
        "Temporary failure in name resolution",
        "Temporary failure resolving",
        "failed to lookup address",
        "dns error",
        "Network is unreachable",
        "Connection timed out",
        "Connection refused",
        "could not download file",
        "error sending request",
    ];
    SIGNS.iter().any(|sign| output.contains(sign)).then_some(
        "The network could not be reached: connect this machine (or set https_proxy) and run the \
         same command again; what was already fetched is kept",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        Facts {
            root: true,
            sudo: false,
            btf: true,
            cgroup2: Some("/sys/fs/cgroup".into()),
            kernel: Some((6, 6)),
            linker: true,
            rustup: true,
            apt: true,
        }
    }

    fn only_lack(facts: &Facts) -> Problem {
        let needs = [DATAPATH.as_slice(), BUILD.as_slice()].concat();
        let mut problems = facts.problems(&needs);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[test]
    fn a_good_machine_has_no_problem() {
        let needs = [DATAPATH.as_slice(), BUILD.as_slice()].concat();
        assert!(fine().problems(&needs).is_empty());
        assert!(fine().require(&needs).is_ok());
    }

    #[test]
    fn sudo_stands_in_for_root() {
        let mut facts = fine();
        facts.root = false;
        assert!(only_lack(&facts).advice.contains("as root"));
        facts.sudo = true;
        assert!(facts.problems(&DATAPATH).is_empty());
    }

    #[test]
    fn each_lack_has_its_own_advice() {
        type Spoil = fn(&mut Facts);
        let cases: [(Spoil, &str); 5] = [
            (|facts| facts.btf = false, "CONFIG_DEBUG_INFO_BTF"),
            (|facts| facts.cgroup2 = None, "mount -t cgroup2"),
            (|facts| facts.kernel = Some((5, 9)), "5.10 or newer"),
            (|facts| facts.linker = false, "build-essential"),
            (|facts| facts.rustup = false, "rustup.rs"),
        ];
        for (spoil, advice) in cases {
            let mut facts = fine();
            spoil(&mut facts);
            let problem = only_lack(&facts);
            assert!(problem.advice.contains(advice), "{problem}");
        }
    }

    #[test]
    fn all_that_is_missing_is_told_at_once() {
        let mut facts = fine();
        facts.btf = false;
        facts.kernel = None;
        let message = facts.require(&DATAPATH).map_err(|error| error.to_string());
        let message = message.err().unwrap_or_default();
        assert!(message.contains("BTF") && message.contains("osrelease"), "{message}");
    }

    #[test]
    fn kernel_releases_compare_by_number() {
        assert_eq!(kernel_version("6.12.41+deb13-cloud-amd64\n"), Some((6, 12)));
        assert_eq!(kernel_version("5.4.0-150-generic"), Some((5, 4)));
        assert_eq!(kernel_version("unknown"), None);
        assert!(kernel_problem(Some((5, 4))).is_some());
        assert!(kernel_problem(Some((5, 10))).is_none());
        assert!(kernel_problem(Some((10, 0))).is_none());
    }

    #[test]
    fn cgroup2_is_found_wherever_it_is_mounted() {
        let hybrid = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(cgroup2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup2_mount("x /a\\040b cgroup2 rw 0 0\n"), Some("/a b".into()));
        assert_eq!(cgroup2_mount("cgroup /cgroup2 cgroup rw 0 0\n"), None);
    }

    #[test]
    fn network_trouble_is_recognised_in_the_words_of_each_tool() {
        let told = [
            "error: could not download file from 'https://static.rust-lang.org/dist/x'",
            "  [6] Couldn't resolve host name (Could not resolve host: index.crates.io)",
            "W: Failed to fetch http://…  Temporary failure resolving 'deb.debian.org'",
        ];
        for output in told {
            assert!(network_advice(output).is_some(), "{output}");
        }
        assert!(network_advice("error[E0308]: mismatched types").is_none());
    }
}
