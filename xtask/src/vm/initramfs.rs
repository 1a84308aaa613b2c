//! The root file system of an emulated machine: test binaries with the libraries they name,
//! busybox, kernel modules, and an init that runs the tests and powers off.
//!
//! It is a cpio archive in the `newc` format (Linux `Documentation/driver-api/early-userspace/
//! buffer-format.rst`), uncompressed: QEMU copies it into memory at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{cards, packages};
use crate::{sh, workspace};

/// Printed before each binary's exit code, at the start of a line.
pub(super) const MARK: &str = "millrace-vm-exit-code:";

/// Modules of Debian's cloud kernels that attaching to interfaces takes, in loading order.
const MODULES: [&str; 9] = [
    "failover",
    "net_failover",
    "virtio",
    "virtio_ring",
    "virtio_pci",
    "virtio_net",
    "veth",
    "sch_ingress",
    "cls_bpf",
];

const SYMLINK: u32 = 0o120_777;
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// What goes into the archive.
pub(super) struct Image<'a> {
    pub(super) busybox: PathBuf,
    /// The root of the kernel's unpacked packages.
    pub(super) kernel: &'a Path,
    pub(super) binaries: &'a [PathBuf],
    pub(super) arguments: &'a [String],
    /// `ip` for machines that have network cards.
    pub(super) ip: Option<PathBuf>,
}

impl Image<'_> {
    /// The archive's bytes.
    pub(super) fn build(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        archive.device("dev/console", 5, 1);
        archive.file("bin/busybox", &read(&self.busybox)?);
        archive.link("bin/sh", "busybox");

        let mut modules = Vec::new();
        for name in MODULES {
            // Built in where there is no file.
            if let Some(bytes) = self.module(name)? {
                archive.file(&format!("modules/{name}.ko"), &bytes);
                modules.push(name);
            }
        }
        let mut libraries = BTreeSet::new();
        let mut tests = Vec::new();
        for (index, binary) in self.binaries.iter().enumerate() {
            libraries.extend(shared_libraries(binary)?);
            let name = format!("tests/{index}");
            archive.file(&name, &stripped(binary)?);
            tests.push(format!("/{name}"));
        }
        for (path, program) in self.programs() {
            libraries.extend(shared_libraries(&program)?);
            archive.file(path, &stripped(&program)?);
        }
        for library in libraries {
            archive.file(relative(&library)?, &read(&library)?);
        }
        // At the path that it has on this machine, where the tests look for it.
        let object = workspace::object();
        if object.is_file() {
            archive.file(relative(&object)?, &read(&object)?);
            let testbed = workspace::root().join("lb-testbed");
            archive.folder(relative(&testbed)?);
        }
        archive.file("init", init(&modules, &tests, self.arguments, self.ip.is_some()).as_bytes());
        Ok(archive.end())
    }

    /// What tests with network cards start, and where they look for it.
    fn programs(&self) -> Vec<(&'static str, PathBuf)> {
        let Some(ip) = &self.ip else { return Vec::new() };
        let peer = workspace::host_target().join("debug/testbed-peer");
        let ours = [("tests/lb-agent", workspace::agent(false)), ("tests/testbed-peer", peer)];
        let built = ours.into_iter().filter(|(_, path)| path.is_file());
        built.chain([("sbin/ip", ip.clone())]).collect()
    }

    /// A module's bytes; newer kernels have it compressed, which busybox undoes.
    fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let plain = format!("{name}.ko");
        let packed = format!("{name}.ko.xz");
        let Some(path) = packages::find(self.kernel, |file| file == plain || file == packed) else {
            return Ok(None);
        };
        if path.extension().is_some_and(|extension| extension == "ko") {
            return read(&path).map(Some);
        }
        let output = Command::new(&self.busybox)
            .args(["xz", "-dc"])
            .arg(&path)
            .output()
            .with_context(|| format!("cannot start {}", self.busybox.display()))?;
        if !output.status.success() || output.stdout.is_empty() {
            bail!("cannot uncompress {}", path.display());
        }
        Ok(Some(output.stdout))
    }
}

/// Mounts what the tests use; the shell that runs it is the first process.
const PROLOGUE: &str = r#"#!/bin/sh
export PATH=/sbin:/bin HOME=/ RUST_BACKTRACE=1
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
echo "Linux $(uname -r)"
"#;

/// QEMU ends at a reboot (-no-reboot); power-off would need a driver.
const EPILOGUE: &str = "sync\nreboot -f\n";

/// The script that loads the modules, runs each test and ends the machine.
fn init(modules: &[&str], tests: &[String], arguments: &[String], cards: bool) -> String {
    let load = |module: &&str| format!("insmod /modules/{module}.ko\n");
    let modules: String = modules.iter().map(load).collect();
    let arguments: Vec<String> = arguments.iter().map(|argument| quote(argument)).collect();
    let arguments = arguments.join(" ");
    // The mark is on a line of its own, even when the last output did not end one.
    let run = |test: &String| {
        format!("{test} --test-threads=1 {arguments}\ncode=$?; echo; echo \"{MARK} $code\"\n")
    };
    let tests: String = tests.iter().map(run).collect();
    let cards = if cards { format!("export {}=1\n", cards::VARIABLE) } else { String::new() };
    [PROLOGUE, &modules, &cards, &tests, EPILOGUE].concat()
}

/// A word for the shell, whatever is in it.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Paths of the libraries that a binary is loaded with, the loader among them.
fn shared_libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let finished = sh::attempt("looking up libraries", ldd.arg(binary), None)?;
    // A static binary makes ldd fail, and needs none.
    if !finished.success && !finished.transcript.contains("not a dynamic executable") {
        bail!("ldd {}: {}", binary.display(), finished.transcript.trim());
    }
    parse_ldd(&finished.stdout)
}

fn parse_ldd(output: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in output.lines() {
        if line.contains("not found") {
            bail!("a library is missing here: {}", line.trim());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        libraries.extend(path.map(PathBuf::from));
    }
    Ok(libraries)
}

/// Debug information is most of a test binary and of no use in there.
fn stripped(binary: &Path) -> Result<Vec<u8>> {
    let copy = workspace::target().join("vm/stripped");
    let mut strip = Command::new("strip");
    strip.arg("-o").arg(&copy).arg(binary);
    if sh::query(&mut strip).is_some() { read(&copy) } else { read(binary) }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn relative(path: &Path) -> Result<&str> {
    path.strip_prefix("/")
        .ok()
        .and_then(Path::to_str)
        .with_context(|| format!("{} is no absolute path in UTF-8", path.display()))
}

/// A cpio archive that grows; parent folders come by themselves.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    fn file(&mut self, path: &str, content: &[u8]) {
        self.parents(path);
        self.entry(path, PROGRAM, content, (0, 0));
    }

    fn link(&mut self, path: &str, to: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, to.as_bytes(), (0, 0));
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.parents(path);
        self.entry(path, DEVICE, &[], (major, minor));
    }

    fn folder(&mut self, path: &str) {
        self.parents(path);
        if self.folders.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[], (0, 0));
        }
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        // inode, mode, uid, gid, links, mtime, size, device of the file (two), device that it is
        // (two), length of the name with its zero, checksum (unused in this format).
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_layout_of_newc() {
        let mut archive = Archive::default();
        archive.file("a/b", b"12345");
        let bytes = archive.end();
        let text = String::from_utf8_lossy(&bytes);
        // The folder: header of 110 bytes, "a" and its zero, padded to 112.
        assert!(text.starts_with("07070100000001000041ed"), "{text}");
        assert_eq!(&text[110..111], "a");
        // The file behind it: size 5, a name of 4 with its zero.
        let file = &text[112..];
        assert!(file.starts_with("07070100000002000081ed"), "{file}");
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[94..102], "00000004");
        assert_eq!(&file[110..113], "a/b");
        assert_eq!(&file[116..121], "12345");
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn folders_are_made_once() {
        let mut archive = Archive::default();
        archive.file("x/one", b"");
        archive.file("x/two", b"");
        assert_eq!(archive.entries, 3);
    }

    #[test]
    fn libraries_and_the_loader_are_read_from_ldd() -> Result<()> {
        let output = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(output)?, paths.map(PathBuf::from));
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
        Ok(())
    }

    #[test]
    fn init_runs_each_test_with_its_arguments_quoted() {
        let script = init(&["veth"], &["/tests/0".into()], &["it's".into()], true);
        assert!(script.contains("insmod /modules/veth.ko\n"));
        assert!(script.contains("/tests/0 --test-threads=1 'it'\\''s'\n"));
        assert!(script.contains("export MILLRACE_CARDS=1\n/tests/0"), "{script}");
        assert!(script.contains(&format!("echo \"{MARK} $code\"")));
    }
}
