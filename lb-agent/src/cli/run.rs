//! `lb-agent run`: the agent.

use std::env;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use lb_agent::convert::Converter;
use lb_agent::datapath::roles::Overrides;
use lb_agent::datapath::{self, BpfDatapath, Config, Datapath, interfaces};
use lb_agent::health::Health;
use lb_agent::namespaces;
use lb_agent::policy::node::NodePortAddresses;
use lb_agent::source::{self, ApiServer, Manifests, SourceError};
use lb_agent::sync::{Inputs, Outside, Sync};
use lb_common::abi::BypassCgroup;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinError;
use tracing_subscriber::EnvFilter;

use super::args::{self, NodeArgs};
use super::cgroup;
use super::error::{Error, Exit};
use super::health::HealthArgs;
use super::lacking;
use super::outside::{self, OutsideArgs};
use super::sizes::SizeArgs;
use super::sockets::SocketArgs;
use super::xdp::XdpArgs;

/// Run the agent: keep what is programmed equal to the cluster's Services and EndpointSlices
///
/// Programs, links and maps are pinned and outlive it: when it ends or is killed, traffic goes on,
/// new connections included; when it starts again, it takes over what is there.
/// Logs go to standard error, filtered by the variable `RUST_LOG`; the line `synced` tells that all is in force.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  ended by SIGTERM or SIGINT; everything stays in force
  1  failed
  2  the arguments make no sense")]
pub(super) struct Arguments {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Name of this node's Node object [default: the host name in lower case]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = args::node_name)]
    #[arg(help_heading = "Node")]
    node_name: Option<String>,
    /// Roles of interfaces where they are not as found: name=pod-port|uplink|overlay|ignored,…
    #[arg(long, value_name = "NAME=ROLE,…", help_heading = "Node")]
    interfaces: Option<Overrides>,
    #[command(flatten)]
    sockets: SocketArgs,
    #[command(flatten)]
    xdp: XdpArgs,
    #[command(flatten)]
    outside: OutsideArgs,
    #[command(flatten)]
    health: HealthArgs,
    /// Addresses of this node that answer on node ports: ranges as 10.0.0.0/8, or a keyword
    ///
    /// `primary`: those that the Node object tells first, in each IP family; `all`: those of all
    /// interfaces, but loopback; `localhost`: loopback, for processes of the node itself only.
    /// A family with no range in the list, where there is no keyword either, has all of its addresses.
    #[arg(long, value_name = "LIST", default_value = "primary", help_heading = "Services")]
    node_port_addresses: NodePortAddresses,
    /// Whether externalIPs of Services are served
    ///
    /// Whoever may write a Service can take traffic to any address by them (CVE-2020-8554).
    #[arg(long, value_enum, value_name = "on|off", default_value = "on")]
    #[arg(help_heading = "Services")]
    external_ips: Switch,
    #[command(flatten)]
    sizes: SizeArgs,
    /// How to write logs
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// Where Services come from; without either flag, the API server of the cluster that this runs in.
#[derive(Args, Debug)]
#[command(next_help_heading = "Where Services come from [default: the API server of this cluster]")]
struct SourceArgs {
    /// File or folder of manifests, YAML or JSON, watched for changes
    ///
    /// As `kubectl get services,endpointslices,nodes -A -o json` prints them.
    #[arg(long, value_name = "PATH", value_parser = existing, conflicts_with = "kubeconfig")]
    manifests: Option<PathBuf>,
    /// File that tells how to reach an API server
    #[arg(long, value_name = "PATH", value_parser = existing)]
    kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Changes of interfaces that wait at most.
const CHANGES: usize = 256;
/// Warnings that wait for the API server at most; the log has all of them.
const WARNINGS: usize = 64;

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let started = Instant::now();
    let node = &arguments.node;
    let node_name = arguments.node_name()?;
    arguments.source.check()?;
    let cgroup = node.cgroup()?;
    let bypass = arguments.sockets.bypass()?;
    let outside = arguments.outside.outside()?;
    start_logs(arguments.log_format);
    end_with_panics();
    datapath::keep_memory_small();
    if let Err(error) = datapath::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is: health checks may lack some");
    }
    node.enter()?;
    let config = Config {
        bpffs: node.bpffs.clone(),
        cgroup,
        sizes: arguments.sizes.sizes(),
        scope: arguments.sockets.scope(),
        node_netns: arguments.sockets.node_netns()?,
        xdp: arguments.xdp.config()?,
        forwarding: outside::forwarding(&outside),
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node_name,
        netns = ?node.netns,
        cgroup = %config.cgroup.display(),
        bpffs = %config.bpffs.display(),
        source = %arguments.source.display(),
        interfaces = ?arguments.interfaces,
        socket_engine = %config.scope,
        bypass_cgroups = bypass.len(),
        local_detector = %outside.detector,
        masquerade_all = outside.masquerade_all,
        snat_addresses = %outside.snat_addresses,
        snat_ports = %outside.snat_ports,
        sizes = ?config.sizes,
        "starting"
    );
    for doubt in arguments.outside.doubts().into_iter().chain(arguments.xdp.doubts()) {
        tracing::warn!("{doubt}");
    }
    if !node.names_cgroup() && !cgroup::is_machine_root(&config.cgroup) {
        tracing::info!(
            cgroup = %config.cgroup.display(),
            "this is the root cgroup only as seen from here; processes outside of it are served \
             by the packet engine alone"
        );
    }
    for lacking in lacking::capabilities(None) {
        tracing::warn!(lacking = lacking.what, costs = lacking.costs, "a capability is missing");
    }
    let agent = agent(arguments, &node_name, &config, outside, bypass, started);
    runtime()?.block_on(agent)?;
    Ok(Exit::Success)
}

async fn agent(
    arguments: &Arguments,
    node_name: &str,
    config: &Config,
    outside: Outside,
    bypass: Vec<BypassCgroup>,
    started: Instant,
) -> Result<(), Error> {
    // Before anything that takes long: who asks to stop is heard from now on.
    let shutdown = shutdown()?;
    // And who asks whether it lives is answered.
    let health = Health::default();
    arguments.health.serve(&health)?;
    let datapath = BpfDatapath::open(config)?;
    for lacking in Datapath::lacking(&datapath) {
        let (hook, costs, error) = (lacking.hook, lacking.costs, &lacking.error);
        tracing::warn!(hook, %error, costs, "a hook is missing");
    }
    let namespaces = namespaces::Config {
        folder: datapath::folder(&config.bpffs),
        cgroup: config.cgroup.clone(),
        scope: config.scope,
        bypass,
    };
    let namespaces = namespaces::start(&namespaces, datapath.maps(), Datapath::grace(&datapath))?;
    // What maps have, which need not be what was asked for.
    let capacity = datapath.maps().capacity()?;
    let mut sync = Sync::new(datapath, capacity)?
        .started_at(started)
        .with_health(health)
        .with_namespaces(namespaces)
        .with_outside(outside)
        .with_node_port_addresses(arguments.node_port_addresses.clone());
    let converter =
        Converter::new(node_name).with_external_ips(arguments.external_ips == Switch::On);
    let (tell, warnings) = mpsc::channel(WARNINGS);
    let (source, source_task) = if let Some(path) = &arguments.source.manifests {
        source::start(Manifests::new(path), converter)
    } else {
        let kubeconfig = arguments.source.kubeconfig.clone();
        sync = sync.with_warnings(tell);
        source::start(ApiServer::new(kubeconfig, node_name).with_warnings(warnings), converter)
    };
    let (changes, interfaces) = mpsc::channel(CHANGES);
    let overrides = arguments.interfaces.clone().unwrap_or_default();
    tokio::spawn(interfaces::watch(overrides, changes));
    sync.run(Inputs { source, interfaces, shutdown })
        .await
        .map_err(|error| Error::flag("--detect-local-mode", error.to_string()))?;
    if source_task.is_finished() {
        ended(source_task.await)?;
    }
    Ok(())
}

/// How a source ended; one that broke down must not look as if somebody had asked it to stop.
fn ended(result: Result<Result<(), SourceError>, JoinError>) -> Result<(), Error> {
    match result {
        Ok(result) => Ok(result?),
        Err(error) if error.is_cancelled() => Ok(()),
        Err(source) => Err(SourceError::Reader { source }.into()),
    }
}

/// Ready when SIGTERM or SIGINT arrives.
fn shutdown() -> Result<oneshot::Receiver<()>, Error> {
    let listen = |kind| signal(kind).map_err(Error::system("listen for signals"));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if tell.send(()).is_err() {
            tracing::debug!("asked to stop after the loop has ended");
        }
    });
    Ok(told)
}

/// One thread: a node's agent waits nearly always, and its work is in order. What blocks has
/// threads of its own.
pub(super) fn runtime() -> Result<Runtime, Error> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(Error::system("start the event loop"))
}

/// Makes a panic the end of the process, as it is in a release build: half an agent is worse than none,
/// and whoever started this one starts it again.
fn end_with_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn start_logs(format: LogFormat) {
    let filter =
        EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

fn existing(text: &str) -> Result<PathBuf, String> {
    match std::fs::metadata(text) {
        Ok(_) => Ok(PathBuf::from(text)),
        Err(error) => Err(error.to_string()),
    }
}

impl Arguments {
    fn node_name(&self) -> Result<String, Error> {
        if let Some(name) = &self.node_name {
            return Ok(name.clone());
        }
        let name = args::host_name().map_err(Error::system("read the host name"))?;
        args::node_name(&name).map_err(|reason| {
            Error::flag("--node-name", format!("the host name `{name}` cannot be it: {reason}"))
        })
    }
}

impl SourceArgs {
    /// In a pod, the kubelet sets this variable.
    fn check(&self) -> Result<(), Error> {
        let given = self.manifests.is_some() || self.kubeconfig.is_some();
        if given || env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Ok(());
        }
        Err(Error::flag(
            "--manifests or --kubeconfig",
            "one of them is needed outside of a cluster (KUBERNETES_SERVICE_HOST is not set)",
        ))
    }

    fn display(&self) -> String {
        match (&self.manifests, &self.kubeconfig) {
            (Some(path), _) => format!("manifests at {}", path.display()),
            (None, Some(path)) => format!("the API server of {}", path.display()),
            (None, None) => "the API server of this cluster".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser as _;
    use lb_agent::datapath::Sizes;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["lb-agent", "run"], args].concat())
    }

    #[test]
    fn a_source_that_panics_is_a_failure() {
        let result = runtime()
            .unwrap()
            .block_on(async { tokio::spawn(async { panic!("on purpose") }).await });
        let error = ended(result).unwrap_err();
        assert_eq!(error.exit(), Exit::Failure, "{error}");
        ended(Ok(Ok(()))).unwrap();
    }

    #[test]
    fn an_impossible_value_is_refused_with_the_name_of_its_flag() {
        for (flag, value) in [
            ("--netns", "relative"),
            ("--cgroup", "relative"),
            ("--bpffs", "/"),
            ("--node-name", "Not_A_Node"),
            ("--interfaces", "eth0=router"),
            ("--socket-engine", "some"),
            ("--bypass-cgroup", "relative"),
            ("--manifests", "/no/such/file"),
            ("--kubeconfig", "/no/such/file"),
            ("--healthz-bind-address", "localhost:10256"),
            ("--max-service-ports", "0"),
            ("--max-frontends", "-1"),
            ("--max-backends", "many"),
            ("--max-slots", "99999999999"),
            ("--max-flows", "1"),
            ("--max-half-open-flows", "1"),
            ("--max-socket-peers", "1"),
            ("--max-udp-sockets", "1"),
            ("--max-affinity", "1"),
            ("--node-port-addresses", "secondary"),
            ("--node-port-addresses", "10.0.0.0/8,10.1.0.0/16"),
            ("--external-ips", "maybe"),
            ("--log-format", "xml"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
        let both = parse(&["--manifests", "/", "--kubeconfig", "/"]).unwrap_err().to_string();
        assert!(both.contains("--manifests") && both.contains("--kubeconfig"), "{both}");
    }

    #[test]
    fn sizes_are_what_the_datapath_makes_unless_told_otherwise() {
        let sizes = |args: &[&str]| match parse(args).unwrap().command {
            crate::cli::Command::Run(arguments) => arguments.sizes.sizes(),
            other => panic!("{other:?}"),
        };
        assert_eq!(sizes(&[]), Sizes::default());
        let changed = sizes(&["--max-backends", "4096", "--max-flows", "2048"]);
        assert_eq!((changed.tables.backends, changed.flows), (4096, 2048));
        assert_eq!(changed.socket_peers, Sizes::default().socket_peers);
    }
}
