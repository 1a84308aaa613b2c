//! kube-proxy itself, in nftables mode, in the namespace of a node: what Millrace is held against.
//!
//! It needs a real API server. Once it is in sync its rules can be taken out and put back without
//! it: they are the rules that it made.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apiserver::{self, ApiServer, BINARIES, assets},
    cluster::Node,
    manifest::Manifest,
    netns::Netns,
    process::{Launch, Process},
    wait,
};

/// The program.
pub const PROGRAM: &str = "kube-proxy";
const METRICS: u16 = 10249;
const SYNC_WITHIN: Duration = Duration::from_mins(1);
const STOP_WITHIN: Duration = Duration::from_secs(10);
pub(crate) const LAST_SYNC: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
/// The tables of its rules, one for each family.
const TABLES: [[&str; 2]; 2] = [["ip", PROGRAM], ["ip6", PROGRAM]];

/// Why it cannot be run here, if it cannot.
pub fn lacking() -> Option<String> {
    let programs: Vec<&str> = BINARIES.into_iter().chain([PROGRAM]).collect();
    let no_nft = || {
        let nft = Command::new("nft").arg("--version").output();
        nft.is_err().then(|| "there is no `nft`; `apt install nftables`".into())
    };
    apiserver::lacking(&programs).or_else(no_nft)
}

/// The versions of kube-proxy and nft, for people.
pub fn versions() -> String {
    let proxy = assets().unwrap_or_default().join(PROGRAM);
    format!(
        "{PROGRAM} {} in nftables mode with its defaults, nft {}",
        version(&proxy),
        version(Path::new("nft"))
    )
}

/// A running kube-proxy, in sync; killed on drop. Its rules stay until they are removed, or go with
/// the namespace.
#[derive(Debug)]
pub struct KubeProxy {
    process: Process,
}

/// The rules that a kube-proxy has made in a namespace, to be put there again.
#[derive(Clone, Debug)]
pub struct Rules {
    text: String,
}

impl KubeProxy {
    /// Starts it as the proxy of a node, which the API server has to know, and waits until all that
    /// the API server tells is in force. It knows its node's pods by the Node's ranges.
    pub fn start(plane: &ApiServer, node: &Node) -> Result<Self> {
        let process = launch(plane, node)?.arg("--detect-local-mode=NodeCIDR").spawn()?;
        let mut proxy = Self { process };
        let synced = proxy.wait_synced(&node.netns);
        synced.with_context(|| proxy.process.stderr().tail(20))?;
        Ok(proxy)
    }

    /// Ends it; its rules, which stay in force.
    pub fn leave(mut self, netns: &Netns) -> Result<Rules> {
        self.process.stop(STOP_WITHIN)?;
        let mut text = String::new();
        for [family, table] in TABLES {
            text += &nft(netns, &["list", "table", family, table], "")?;
        }
        ensure!(text.contains("masquerade"), "{PROGRAM} made no rules: {text}");
        Ok(Rules { text })
    }

    /// Both families, once each: it begins when it knows all Services and slices.
    fn wait_synced(&mut self, netns: &Netns) -> Result<()> {
        wait::until_some("the first sync of kube-proxy", SYNC_WITHIN, || {
            if !self.process.is_running() {
                return Some(Err(anyhow::anyhow!("{PROGRAM} has ended")));
            }
            let metrics = metrics(netns).unwrap_or_default();
            let done = |family: &str| {
                let mut of_family = metrics
                    .lines()
                    .filter(|line| line.starts_with(LAST_SYNC) && line.contains(family));
                of_family.any(|line| !line.ends_with(" 0"))
            };
            (done("\"IPv4\"") && done("\"IPv6\"")).then_some(Ok(()))
        })?
    }
}

impl Rules {
    /// Puts them in force.
    pub fn put(&self, netns: &Netns) -> Result<()> {
        nft_file(netns, &self.text)
    }

    /// Takes them away.
    pub fn remove(netns: &Netns) -> Result<()> {
        delete(netns)
    }

    /// What `nft` reads.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// As the proxy of a node, which the API server has to know; how it knows the node's pods is left to
/// say.
pub(crate) fn launch(plane: &ApiServer, node: &Node) -> Result<Launch> {
    let program = assets().context("KUBEBUILDER_ASSETS is not set")?.join(PROGRAM);
    Ok(Launch::new(PROGRAM, program)
        .netns(&node.netns)?
        .cgroup(&node.cgroup)?
        .arg("--kubeconfig")
        .arg(plane.proxy_kubeconfig())
        .arg("--proxy-mode=nftables")
        .arg(format!("--hostname-override={}", node.name))
        // Those are the machine's, not the namespace's.
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
        .args(["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]))
}

/// Sets the addresses of load balancers and nodes, which are status and so not applied with the rest.
pub fn publish(plane: &ApiServer, manifest: &Manifest) -> Result<()> {
    plane.apply(manifest)?;
    plane.apply_status(manifest)
}

/// Has `nft` read rules in a namespace.
pub fn nft_file(netns: &Netns, rules: &str) -> Result<()> {
    nft(netns, &["-f", "-"], rules).map(drop)
}

/// What an `nft` command says in a namespace.
pub fn nft(netns: &Netns, args: &[&str], input: &str) -> Result<String> {
    // `nft` has no flag for a namespace; who is in one when it starts is what counts.
    netns.run(|| {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run `nft`; install the package nftables")?;
        if let Some(mut stdin) = child.stdin.take() {
            // A broken pipe means that it has stopped at an error, which is reported below.
            drop(stdin.write_all(input.as_bytes()));
        }
        let output = child.wait_with_output().context("wait for `nft`")?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("nft {} failed: {}", args.join(" "), error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })?
}

/// Takes away what kube-proxy made.
fn delete(netns: &Netns) -> Result<()> {
    // To add first makes it no error that one is not there.
    let lines = TABLES.map(|[family, table]| {
        format!("add table {family} {table}\ndelete table {family} {table}\n")
    });
    nft_file(netns, &lines.concat())
}

/// What it tells of itself in a namespace.
pub(crate) fn metrics(netns: &Netns) -> Result<String> {
    netns.run(|| -> Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS))?;
        stream.set_read_timeout(Some(SYNC_WITHIN))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// The version that a program tells, as the first word with a digit behind a `v`.
pub fn version(program: &Path) -> String {
    let said = Command::new(program).arg("--version").output().map(|output| output.stdout);
    let said = String::from_utf8_lossy(&said.unwrap_or_default()).into_owned();
    let is_version = |word: &&str| {
        word.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    said.split_whitespace().find(is_version).unwrap_or("of some version").to_owned()
}
