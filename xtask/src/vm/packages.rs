//! Debian packages of any release, unpacked into a folder of their own.
//!
//! apt runs with its own lists, cache and an empty package state, so that neither the system's
//! packages nor its sources change, and no root is needed. Packages are checked against Debian's
//! archive keys as usual.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{self, say};
use crate::workspace;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
const ARCHIVE: &str = "http://archive.debian.org/debian";

/// Which packages, and where they come from.
pub(super) struct Wanted {
    suite: &'static str,
    choice: Choice,
}

enum Choice {
    /// These packages with all they depend on.
    WithDependencies(&'static [&'static str]),
    /// The newest cloud kernel whose version begins like this.
    Kernel(&'static str),
}

/// QEMU as of Debian 13: older ones corrupt newer guests under emulation now and then.
pub(super) fn qemu() -> Wanted {
    Wanted {
        suite: "trixie",
        choice: Choice::WithDependencies(&["qemu-system-x86", "busybox-static"]),
    }
}

/// The newest kernel of `suite` whose version begins with `version`.
pub(super) fn kernel(suite: &'static str, version: &'static str) -> Wanted {
    Wanted { suite, choice: Choice::Kernel(version) }
}

/// Unpacks `wanted` into `folder`, unless that was done before and `refresh` is false.
pub(super) fn unpack(folder: &Path, refresh: bool, wanted: &Wanted) -> Result<()> {
    let stamp = folder.join(".complete");
    if stamp.exists() && !refresh {
        return Ok(());
    }
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if !sh::has_program(program) {
            bail!("{program} is not installed; QEMU and kernels come from Debian's archive");
        }
    }
    if !Path::new(KEYRING).exists() {
        bail!("{KEYRING} is missing; run `apt-get install debian-archive-keyring` as root");
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot delete {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let archives = download(wanted)?;
    say("unpack", &format!("{} packages into {}", archives.len(), folder.display()));
    for archive in &archives {
        let mut dpkg = Command::new("dpkg-deb");
        sh::run("unpacking", dpkg.arg("-x").arg(archive).arg(folder))?;
    }
    // Larger than what was unpacked, and old by the next time.
    let state = apt_folder();
    fs::remove_dir_all(&state).with_context(|| format!("cannot delete {}", state.display()))?;
    fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
}

/// The first file below `folder` whose name fits.
pub(super) fn find(folder: &Path, fits: impl Fn(&str) -> bool) -> Option<PathBuf> {
    workspace::files(folder)
        .ok()?
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| fits(&name.to_string_lossy())))
}

fn download(wanted: &Wanted) -> Result<Vec<PathBuf>> {
    let mut last = None;
    for sources in sources(wanted.suite, &system_sources()) {
        match Apt::new(wanted.suite, &sources).and_then(|apt| apt.fetch(&wanted.choice)) {
            Ok(archives) => return Ok(archives),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no source for Debian {}", wanted.suite)))
}

/// Contents of the sources to try in turn: the machine's mirror, then the archive of old releases.
fn sources(suite: &str, system: &str) -> Vec<String> {
    let mirror = debian_mirror(system).unwrap_or(MIRROR);
    let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
    if suite != "bullseye" {
        return vec![line(mirror, suite)];
    }
    // The kernels of an old release are kept current by its security archive alone.
    let security = format!("{mirror}-security");
    vec![
        line(mirror, suite) + &line(&security, "bullseye-security"),
        line(MIRROR, suite),
        line(ARCHIVE, suite),
    ]
}

/// All of the machine's own apt sources, as text.
fn system_sources() -> String {
    let folder = Path::new("/etc/apt/sources.list.d");
    let listed = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    std::iter::once(PathBuf::from("/etc/apt/sources.list"))
        .chain(listed.map(|entry| entry.path()))
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first Debian mirror in sources of either format; other archives end in other words.
fn debian_mirror(sources: &str) -> Option<&str> {
    sources
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_end_matches('/'))
        .find(|word| word.starts_with("http") && word.ends_with("/debian"))
}

fn apt_folder() -> PathBuf {
    workspace::target().join("vm/apt")
}

/// apt with a state of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(suite: &str, sources: &str) -> Result<Self> {
        let folder = apt_folder().join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
        }
        let apt = Self { folder };
        fs::write(apt.folder.join("status"), "")?;
        fs::write(apt.folder.join("sources.list"), sources)?;
        let mut update = apt.command("apt-get");
        // A failed index is a warning to apt, and an empty search later on.
        update.args(["update", "--error-on=any"]);
        sh::run(&format!("reading the package lists of Debian {suite}"), &mut update)?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| sh::text(&self.folder.join(name));
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("LC_ALL", "C").arg("-q");
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::State::status={}", at("status")),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            // Old releases are no longer signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "Debug::NoLocking=1".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Downloads; paths of the packages.
    fn fetch(&self, choice: &Choice) -> Result<Vec<PathBuf>> {
        match choice {
            Choice::WithDependencies(names) => {
                let mut install = self.command("apt-get");
                install.args(["install", "-y", "--download-only", "--no-install-recommends"]);
                install.args(*names);
                sh::run(&format!("fetching {}", names.join(" ")), &mut install)?;
                debs(&self.folder.join("cache/archives"))
            }
            Choice::Kernel(version) => {
                let names = self.kernel_packages(version)?;
                let folder = self.folder.join("kernel");
                if folder.exists() {
                    fs::remove_dir_all(&folder)?;
                }
                fs::create_dir_all(&folder)?;
                let mut download = self.command("apt-get");
                download.current_dir(&folder).arg("download").args(&names);
                sh::run(&format!("fetching {}", names.join(" ")), &mut download)?;
                debs(&folder)
            }
        }
    }

    fn kernel_packages(&self, version: &str) -> Result<Vec<String>> {
        let mut search = self.command("apt-cache");
        search.args([
            "search",
            "--names-only",
            "^linux-(image|binary|modules)-[0-9].*cloud-amd64$",
        ]);
        let found = sh::run("looking up kernels", &mut search)?.stdout;
        let names: Vec<&str> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        let chosen = choose_kernel(&names, version);
        if chosen.is_empty() {
            bail!("Debian offers no cloud kernel {version}* there");
        }
        Ok(chosen)
    }
}

fn debs(folder: &Path) -> Result<Vec<PathBuf>> {
    let archives: Vec<PathBuf> = workspace::files(folder)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if archives.is_empty() {
        bail!("apt left no packages in {}", folder.display());
    }
    Ok(archives)
}

/// The packages of the newest kernel whose version begins with `version`.
///
/// One package holds image and modules; in newer releases that one is empty and two others do.
fn choose_kernel(names: &[&str], version: &str) -> Vec<String> {
    let newest = names
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| release.starts_with(version))
        .max_by_key(|release| numbers(release));
    let Some(release) = newest else {
        return Vec::new();
    };
    let split: Vec<String> = ["binary", "modules"]
        .map(|part| format!("linux-{part}-{release}"))
        .into_iter()
        .filter(|name| names.contains(&name.as_str()))
        .collect();
    if split.is_empty() { vec![format!("linux-image-{release}")] } else { split }
}

/// Version numbers compare as numbers: 5.10.0-9 is older than 5.10.0-46.
fn numbers(release: &str) -> Vec<u64> {
    release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let names = [
            "linux-image-5.10.0-9-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64",
            "linux-image-6.1.0-0.deb11.52-cloud-amd64",
        ];
        assert_eq!(choose_kernel(&names, "5.10."), ["linux-image-5.10.0-46-cloud-amd64"]);
        assert_eq!(choose_kernel(&names, ""), ["linux-image-6.1.0-0.deb11.52-cloud-amd64"]);
        assert!(choose_kernel(&names, "7.").is_empty());
    }

    #[test]
    fn a_split_kernel_is_its_two_parts() {
        let names = [
            "linux-binary-7.2.13+deb14-cloud-amd64",
            "linux-image-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.2.13+deb14-cloud-amd64",
        ];
        assert_eq!(
            choose_kernel(&names, ""),
            ["linux-binary-7.2.13+deb14-cloud-amd64", "linux-modules-7.2.13+deb14-cloud-amd64"]
        );
    }

    #[test]
    fn the_mirror_is_read_from_both_formats() {
        let deb822 = "Types: deb\n# http://old.example/debian\nURIs: http://m.example/debian/\n";
        assert_eq!(debian_mirror(deb822), Some("http://m.example/debian"));
        let line = "deb [arch=amd64] https://n.example/debian bookworm main\n";
        assert_eq!(debian_mirror(line), Some("https://n.example/debian"));
        assert_eq!(debian_mirror("URIs: http://archive.ubuntu.com/ubuntu/\n"), None);
    }

    #[test]
    fn an_old_release_is_looked_for_in_the_archive_too() {
        let sources = sources("bullseye", "");
        assert!(sources[0].contains("bullseye-security"));
        assert!(sources.last().is_some_and(|last| last.contains("archive.debian.org")));
        assert!(sources.iter().all(|text| text.contains("signed-by=")));
    }
}
