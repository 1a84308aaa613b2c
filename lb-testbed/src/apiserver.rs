//! A real Kubernetes control plane without kubelets: etcd, kube-apiserver and
//! kube-controller-manager from `KUBEBUILDER_ASSETS`, in a namespace of its own.
//!
//! No kubelet runs: a test registers Nodes, and creates Pods or `EndpointSlices` itself.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    cgroup::Cgroup,
    etcd::Etcd,
    manifest::{self, Manifest},
    netns::Netns,
    process::{Launch, Process},
    scratch::Scratch,
    wait,
};

/// Programs that `KUBEBUILDER_ASSETS` must hold.
pub const BINARIES: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

const READY_WITHIN: Duration = Duration::from_mins(1);
const KUBECTL_WITHIN: Duration = Duration::from_mins(1);
const PORT: u16 = 6443;
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;

/// A running control plane; killed and removed on drop.
#[derive(Debug)]
pub struct ApiServer {
    assets: PathBuf,
    // Fields are dropped in this order: clients before servers, folders last.
    controllers: Option<Process>,
    server: Process,
    etcd: Process,
    address: IpAddr,
    netns_path: PathBuf,
    own_netns: Option<Netns>,
    cgroup: Cgroup,
    scratch: Scratch,
}

/// `KUBEBUILDER_ASSETS`.
pub fn assets() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
}

/// Why these programs cannot be run here, if they cannot.
pub fn lacking(programs: &[&str]) -> Option<String> {
    let Some(folder) = assets() else {
        return Some(format!(
            "KUBEBUILDER_ASSETS is not set; let it name a folder that holds {}",
            programs.join(", ")
        ));
    };
    let missing: Vec<&str> =
        programs.iter().copied().filter(|name| !folder.join(name).is_file()).collect();
    (!missing.is_empty()).then(|| format!("{} holds no {}", folder.display(), missing.join(", ")))
}

impl ApiServer {
    /// Starts one on the loopback interface of a namespace of its own.
    pub fn start(assets: &Path) -> Result<Self> {
        let netns = Netns::new()?;
        let path = netns.path();
        Self::start_at(assets, path, Some(netns), Ipv4Addr::LOCALHOST.into())
    }

    /// Starts one at an address of an existing namespace, for example a cluster's fabric.
    pub fn start_in(assets: &Path, netns: &Netns, address: IpAddr) -> Result<Self> {
        Self::start_at(assets, netns.path(), None, address)
    }

    /// May do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.scratch.path().join("admin.kubeconfig")
    }

    /// User `system:kube-proxy`: exactly what a node proxy may do.
    pub fn proxy_kubeconfig(&self) -> PathBuf {
        self.scratch.path().join("proxy.kubeconfig")
    }

    /// What it stores its objects in. To be used in its namespace.
    pub fn etcd(&self) -> Etcd {
        Etcd::at(self.address, ETCD_PORT)
    }

    /// The file of the namespace it is in.
    pub fn netns_path(&self) -> &Path {
        &self.netns_path
    }

    /// The namespace made for it, where it has one of its own.
    pub fn own_netns(&self) -> Option<&Netns> {
        self.own_netns.as_ref()
    }

    /// Creates or changes objects.
    pub fn apply(&self, manifest: &Manifest) -> Result<()> {
        let file = self.scratch.path().join("apply.json");
        manifest::write_atomically(&file, &manifest.to_apply())?;
        let file = file.to_string_lossy();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file]).map(drop)
    }

    /// Sets the status of objects that are there already.
    pub fn apply_status(&self, manifest: &Manifest) -> Result<()> {
        let file = self.scratch.path().join("status.json");
        manifest::write_atomically(&file, &manifest.to_apply_status())?;
        let file = file.to_string_lossy();
        // Not by apply: two addresses of a Node are the same to it when they are of one type.
        self.kubectl(&["replace", "--subresource=status", "-f", &file]).map(drop)
    }

    /// Runs kubectl as the administrator; its standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.launch("kubectl")?
            .arg("--kubeconfig")
            .arg(self.admin_kubeconfig())
            .args(args)
            .output(KUBECTL_WITHIN)
    }

    /// Kills the API server only; clients lose their connections.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Starts the API server again after [`ApiServer::kill_server`].
    pub fn restart_server(&mut self, address: IpAddr) -> Result<()> {
        self.server =
            server_launch(&self.assets, &self.netns_path, &self.cgroup, &self.scratch, address)?
                .spawn()?;
        self.wait_ready()
    }

    fn start_at(
        assets: &Path,
        netns_path: PathBuf,
        own_netns: Option<Netns>,
        address: IpAddr,
    ) -> Result<Self> {
        let (scratch, cgroup) = (Scratch::new()?, Cgroup::new()?);
        let dir = scratch.path();
        for (name, user) in [("admin", "admin"), ("proxy", "system:kube-proxy")] {
            let path = dir.join(format!("{name}.kubeconfig"));
            manifest::write_atomically(&path, &kubeconfig(dir, address, user))?;
        }
        let tokens = "admin-token,admin,admin,system:masters\n\
                      system:kube-proxy-token,system:kube-proxy,proxy\n";
        manifest::write_atomically(&dir.join("tokens.csv"), tokens)?;
        fs::create_dir(dir.join("pki")).context("make the folder of keys")?;

        let host = bracketed(address);
        let client_url = format!("http://{host}:{ETCD_PORT}");
        let peer_url = format!("http://{host}:{ETCD_PEER_PORT}");
        let etcd = launch(assets, "etcd", &netns_path, &cgroup)?
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .arg("--unsafe-no-fsync")
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")])
            .spawn()?;
        let server = server_launch(assets, &netns_path, &cgroup, &scratch, address)?.spawn()?;
        let assets = assets.to_owned();
        let mut plane = Self {
            assets,
            controllers: None,
            server,
            etcd,
            address,
            netns_path,
            own_netns,
            cgroup,
            scratch,
        };
        plane.wait_ready()?;
        plane.controllers = Some(plane.start_controllers()?);
        Ok(plane)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let mut last = String::new();
        wait::until("the API server to be ready", READY_WITHIN, || {
            if !self.server.is_running() || !self.etcd.is_running() {
                // Waiting longer is in vain; the check below says what happened.
                return true;
            }
            self.kubectl(&["get", "--raw", "/readyz"]).map_err(|e| last = format!("{e:#}")).is_ok()
        })
        .with_context(|| format!("kubectl: {last}\n{}", self.server.stderr().tail(20)))?;
        for (name, process) in [("etcd", &mut self.etcd), ("kube-apiserver", &mut self.server)] {
            anyhow::ensure!(
                process.is_running(),
                "{name} has ended: {}",
                process.stderr().tail(20)
            );
        }
        Ok(())
    }

    fn start_controllers(&self) -> Result<Process> {
        let pki = self.scratch.path().join("pki");
        let key = pki.join("apiserver.key");
        let controllers = "endpointslice-controller,endpointslice-mirroring-controller,\
                           deployment-controller,replicaset-controller,namespace-controller,\
                           serviceaccount-controller,garbage-collector-controller,\
                           service-cidr-controller";
        self.launch("kube-controller-manager")?
            .arg("--kubeconfig")
            .arg(self.admin_kubeconfig())
            .args(["--leader-elect=false", "--secure-port=0"])
            .arg("--service-account-private-key-file")
            .arg(key)
            .arg("--root-ca-file")
            .arg(pki.join("apiserver.crt"))
            .arg(format!("--controllers={controllers}"))
            .spawn()
    }

    fn launch(&self, program: &str) -> Result<Launch> {
        launch(&self.assets, program, &self.netns_path, &self.cgroup)
    }
}

fn server_launch(
    assets: &Path,
    netns: &Path,
    cgroup: &Cgroup,
    scratch: &Scratch,
    address: IpAddr,
) -> Result<Launch> {
    let dir = scratch.path();
    // The server makes itself a certificate and an RSA key in --cert-dir before it reads the keys
    // of service accounts; one key for both saves a program that makes keys.
    let key = dir.join("pki/apiserver.key");
    let key = key.to_string_lossy();
    Ok(launch(assets, "kube-apiserver", netns, cgroup)?
        .arg(format!("--etcd-servers=http://{}:{ETCD_PORT}", bracketed(address)))
        .arg(format!("--bind-address={address}"))
        .arg(format!("--secure-port={PORT}"))
        .arg("--advertise-address=10.0.0.1")
        .arg("--cert-dir")
        .arg(dir.join("pki"))
        .arg("--endpoint-reconciler-type=none")
        .arg("--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112")
        .arg(format!("--service-account-key-file={key}"))
        .arg(format!("--service-account-signing-key-file={key}"))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--token-auth-file")
        .arg(dir.join("tokens.csv"))
        .arg("--authorization-mode=RBAC")
        .arg("--disable-admission-plugins=ServiceAccount"))
}

fn launch(assets: &Path, program: &str, netns: &Path, cgroup: &Cgroup) -> Result<Launch> {
    Launch::new(program, assets.join(program)).netns_at(netns)?.cgroup(cgroup)
}

/// JSON is YAML, so a kubeconfig may be JSON.
fn kubeconfig(dir: &Path, address: IpAddr, user: &str) -> String {
    let cluster = json!({
        "server": format!("https://{}:{PORT}", bracketed(address)),
        "certificate-authority": dir.join("pki/apiserver.crt"),
    });
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": format!("{user}-token")}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
    });
    format!("{config:#}\n")
}

fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}
