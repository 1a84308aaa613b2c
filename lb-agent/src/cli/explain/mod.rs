//! `lb-agent explain`: what happens to a connection to an address, and why.
//!
//! It runs the very code that the kernel programs run, over the maps that they read, and writes
//! down each question and answer. Nothing is written to the maps.

mod asker;
mod packet;
mod reader;
mod recorder;
mod show;
#[cfg(test)]
mod tests;
mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;
use lb_agent::datapath::inspect::Inspector;
use lb_agent::datapath::routes;
use lb_agent::plan::{FrontKey, words};
use lb_common::abi::{SCOPES, V4, V6, proto};
use lb_common::decide;
use lb_common::guard;
use lb_common::packet::SlicePacket;
use lb_common::parse::{Link, tcp};
use lb_common::select::narrow;
use lb_common::socket::{self, Address, Outcome};
use lb_common::verdict::Verdict;
use serde::Serialize;

use self::asker::Asker;
use self::packet::Probe;
use self::reader::FamilyReader;
use self::recorder::{Notes, Recorder, Step, at};
use self::verdicts::{NOT_SERVICE, meaning, word};
use super::args::NodeArgs;
use super::error::{Error, Exit};
use super::output::OutputArgs;
use super::view;

/// Explain where a connection to an address goes, and why
///
/// Runs the decisions of both engines over the maps that are in force, and shows each step. Nothing
/// is changed by it. Of several backends with the same chance the first is shown, and all are listed.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  lb-agent explain 10.96.0.10:80
  lb-agent explain '[fd00:10:96::10]:53/udp' --from 'fd00:10:244::5'
  lb-agent explain 10.96.0.10:80 --from 10.244.0.5:40312
  lb-agent explain 192.0.2.10:30080 --from 198.51.100.7 --interface eth0

Exit codes:
  0  explained, whether the address is a Service's or not
  1  failed
  2  the arguments make no sense
  4  nothing is in force here")]
pub(super) struct Arguments {
    /// Where to: ADDRESS:PORT, with /tcp (default), /udp or /sctp; an IPv6 address in brackets
    #[arg(value_name = "ADDRESS:PORT[/PROTOCOL]", value_parser = destination)]
    to: (SocketAddr, u8),
    /// From where [default: a process of the node itself]; with a port, records of that flow count
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = client)]
    from: Option<Client>,
    /// As a packet that arrives by this interface, such as an uplink, and not as one of a pod
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Who asks; without a port, any of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    ip: IpAddr,
    port: Option<u16>,
}

/// What to explain.
#[derive(Clone, Debug)]
struct Question {
    to: SocketAddr,
    protocol: u8,
    from: Option<Client>,
    asker: Asker,
    /// Index and name of the interface by which its packet arrives, if not a pod's.
    arrival: Option<(u32, String)>,
}

/// Everything that is to be said.
#[derive(Debug, Serialize)]
struct Explanation {
    to: SocketAddr,
    protocol: &'static str,
    from: Option<IpAddr>,
    from_port: Option<u16>,
    /// By which interface packets arrive, if not a pod's.
    interface: Option<String>,
    service: Option<ServicePort>,
    /// What else is at this address, if this port is no Service's.
    same_address: Vec<String>,
    decisions: Vec<Decision>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ServicePort {
    /// `namespace/name`.
    service: String,
    port_name: String,
    id: u32,
}

/// What one engine does.
#[derive(Debug, Serialize)]
struct Decision {
    /// `socket` or `packet`.
    engine: &'static str,
    /// What is decided on.
    case: &'static str,
    steps: Vec<Step>,
    /// The verdict in one word.
    verdict: &'static str,
    /// What that means.
    text: String,
    /// Where it goes, if it is translated.
    to: Option<SocketAddr>,
    /// The source that the backend sees, where that is known and changes; of a flow that is yet to be
    /// sent on, its port is not known.
    from: Option<SocketAddr>,
    /// Whether the source is kept, and why.
    source: Option<&'static str>,
    /// The backend that was chosen, or that the flow's record tells.
    backend: Option<view::Backend>,
    /// The service port whose frontend was found.
    #[serde(skip)]
    service_port: Option<u32>,
    /// All backends that might have been chosen.
    one_of: Vec<view::Backend>,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let (to, protocol) = arguments.to;
    if let Some(from) = arguments.from
        && from.ip.is_ipv4() != to.is_ipv4()
    {
        return Err(Error::flag("--from", "must be of the same family as the destination"));
    }
    let folder = arguments.node.folder();
    arguments.node.enter()?;
    let inspector = Inspector::open(&folder)?.ok_or(Error::NotLoaded(folder))?;
    let asker = Asker::find(&inspector, &arguments.node, arguments.from)?;
    let arrival = arguments.interface.as_ref().map(|name| {
        let index = routes::interface_index(name).ok_or_else(|| {
            Error::flag("--interface", format!("there is no interface {name}; see `ip link`"))
        });
        index.map(|index| (index, name.clone()))
    });
    let arrival = arrival.transpose()?;
    let question = Question { to, protocol, from: arguments.from, asker, arrival };
    let mut explanation = explain(&inspector, &question);
    if let Some(error) = inspector.take_failure() {
        return Err(error.into());
    }
    if explanation.service.is_none() {
        let snapshot = inspector.maps().snapshot()?;
        let keys = snapshot.frontends.iter().map(|(key, _)| key);
        let mut same: Vec<&FrontKey> = keys.filter(|key| key.addr() == to.ip()).collect();
        same.sort();
        explanation.same_address = same.into_iter().map(ToString::to_string).collect();
    }
    arguments.output.write(&explanation, show::text)?;
    Ok(Exit::Success)
}

fn explain<R>(reader: &R, question: &Question) -> Explanation
where
    R: FamilyReader<V4> + FamilyReader<V6>,
{
    // What arrives by another interface than a pod's is no socket's of this node.
    let of_socket = question.arrival.is_none().then(|| connect(reader, question));
    let mut decisions: Vec<Decision> = of_socket.into_iter().collect();
    let client_port = question.from.and_then(|from| from.port);
    if question.protocol == proto::TCP && client_port.is_some() {
        let (known, decision) = packet(reader, question, tcp::ACK, "a packet of this connection");
        // Without a record of it there is no such connection to explain.
        decisions.extend(known.then_some(decision));
    }
    let case = match question.protocol {
        proto::TCP => "a new connection (SYN)",
        proto::UDP => "a datagram",
        _ => "a new association (INIT)",
    };
    let (_, decision) = packet(reader, question, tcp::SYN, case);
    decisions.push(decision);
    let id = decisions.iter().find_map(|decision| decision.service_port);
    Explanation {
        to: question.to,
        protocol: view::protocol(question.protocol),
        from: question.from.map(|from| from.ip),
        from_port: client_port,
        interface: question.arrival.as_ref().map(|(_, name)| name.clone()),
        service: id.map(|id| {
            let (service, port_name) = view::service(&reader.name(id));
            ServicePort { service, port_name, id }
        }),
        same_address: Vec::new(),
        decisions,
    }
}

/// The socket engine: `connect` of a fresh socket.
fn connect<R>(reader: &R, question: &Question) -> Decision
where
    R: FamilyReader<V4> + FamilyReader<V6>,
{
    let recorder = Recorder::new(reader, &question.asker, false, 0);
    let case = "connect() in the node's cgroup";
    if question.protocol == proto::SCTP {
        let text =
            "the socket engine has no hook for SCTP; its packets go the way below".to_owned();
        return decision("socket", case, ("unsupported", text), reader, recorder.notes());
    }
    if question.asker.off {
        let text = "the socket engine is off; packets of pods go the way below".to_owned();
        return decision("socket", case, ("off", text), reader, recorder.notes());
    }
    let ip = words(question.to.ip());
    let port = question.to.port().to_be();
    let outcome = if question.to.is_ipv4() {
        let to = Address { ip: narrow::<V4>(&ip), port };
        described(socket::connect(&recorder, question.protocol, &to))
    } else {
        let to = Address { ip: narrow::<V6>(&ip), port };
        described(socket::connect(&recorder, question.protocol, &to))
    };
    let (verdict, text, to) = outcome;
    let notes = recorder.notes();
    // A frontend was found, and yet nothing is done.
    let said = if verdict == NOT_SERVICE && notes.service_port.is_some() {
        ("bypassed", "left alone: connect() goes to the VIP, and the way below".to_owned())
    } else {
        (verdict, text)
    };
    let decision = decision("socket", case, said, reader, notes);
    Decision { to, ..decision }
}

fn described<const N: usize>(outcome: Outcome<N>) -> (&'static str, String, Option<SocketAddr>) {
    match outcome {
        Outcome::Pass => (NOT_SERVICE, "not a Service's: connect() is left alone".into(), None),
        Outcome::Translated(to) => {
            let to = at(&to.ip, to.port);
            let text = format!(
                "connect() goes to {to}; the application sees the address that it named as its peer"
            );
            ("translated", text, Some(to))
        }
        Outcome::Reject => {
            ("no_backend", "no backend: connect() fails with ECONNREFUSED".into(), None)
        }
        Outcome::Drop => (
            "no_local_backend",
            "no backend on this node, as its policy wants: connect() fails with EHOSTUNREACH"
                .into(),
            None,
        ),
    }
}

/// The packet engine: a packet that arrives, by a pod's interface unless the question says otherwise.
/// Tells whether the flow has a record.
fn packet<R>(reader: &R, question: &Question, tcp_flags: u8, case: &'static str) -> (bool, Decision)
where
    R: FamilyReader<V4> + FamilyReader<V6>,
{
    // Addresses for documentation, RFC 5737 and RFC 3849: nobody's.
    let nobody: IpAddr = if question.to.is_ipv4() {
        Ipv4Addr::new(192, 0, 2, 2).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into()
    };
    let client = question.from.unwrap_or(Client { ip: nobody, port: None });
    // The first ephemeral port of RFC 6335, where any will do.
    let from = SocketAddr::new(client.ip, client.port.unwrap_or(49_152));
    let probe = Probe { from, to: question.to, protocol: question.protocol, tcp_flags };
    let mut bytes = probe.bytes();
    let arrival = question.arrival.as_ref().map_or(0, |(index, _)| *index);
    let knows_client = client.port.is_some();
    let recorder = Recorder::new(reader, &question.asker, knows_client, arrival);
    let mut verdict = decide::ingress(&mut SlicePacket(&mut bytes), &recorder, Link::None);
    let mut notes = recorder.notes();
    if verdict == Verdict::NotService {
        // It goes on its way, and meets the guard of the uplink there; what that asks is only told
        // where it stops the packet.
        let recorder = Recorder::new(reader, &question.asker, knows_client, arrival);
        let packet = &mut SlicePacket(&mut bytes);
        if guard::suspects(packet, &recorder, Link::None)
            && let Some(stopped) = guard::leaving(packet, &recorder, Link::None)
        {
            verdict = stopped;
            notes.steps.extend(recorder.notes().steps);
        }
    }
    let known = notes.known_flow;
    let after = match verdict {
        Verdict::Translated | Verdict::Reflected | Verdict::Forwarded => {
            packet::addresses(&mut bytes)
        }
        _ => None,
    };
    let text = meaning(verdict, after.map(|(_, to)| to));
    let source = verdicts::source(verdict, &notes);
    let decision = decision("packet", case, (word(verdict), text), reader, notes);
    let new_source = after.map(|(source, _)| source).filter(|source| *source != from);
    // The port follows from what only the programs know.
    let is_known = known || verdict != Verdict::Forwarded;
    let new_source =
        new_source.map(|source| if is_known { source } else { SocketAddr::new(source.ip(), 0) });
    let to = after.map(|(_, to)| to);
    (known, Decision { to, from: new_source, source, ..decision })
}

fn decision<R>(
    engine: &'static str,
    case: &'static str,
    (verdict, text): (&'static str, String),
    reader: &R,
    notes: Notes,
) -> Decision
where
    R: FamilyReader<V4> + FamilyReader<V6>,
{
    let ids = notes.set.into_iter().flat_map(|(_, word)| {
        (word.first()..word.first().saturating_add(word.count())).map(|slot| reader.slot(slot))
    });
    let one_of = ids.filter_map(|id| view::backend(id, &reader.backend(id)?)).collect();
    let backend = notes.backend.and_then(|(id, backend)| view::backend(id, &backend));
    debug_assert!(notes.set.is_none_or(|(index, _)| Some(index / SCOPES) == notes.service_port));
    Decision {
        engine,
        case,
        steps: notes.steps,
        verdict,
        text,
        to: None,
        from: None,
        source: None,
        backend,
        service_port: notes.service_port,
        one_of,
    }
}

fn destination(text: &str) -> Result<(SocketAddr, u8), String> {
    let (at, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "sctp" => proto::SCTP,
        other => return Err(format!("{other} is none of tcp, udp and sctp")),
    };
    let at: SocketAddr = at.parse().map_err(|_| {
        "must be ADDRESS:PORT, as 10.96.0.10:80 or [fd00::1]:80, and not a name".to_owned()
    })?;
    if at.port() == 0 {
        return Err("no Service has port 0".into());
    }
    // An IPv4-mapped address is IPv4 to the engines as well.
    Ok((SocketAddr::new(at.ip().to_canonical(), at.port()), protocol))
}

fn client(text: &str) -> Result<Client, String> {
    let trimmed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = trimmed.parse::<IpAddr>() {
        return Ok(Client { ip: ip.to_canonical(), port: None });
    }
    match text.parse::<SocketAddr>() {
        Ok(at) if at.port() != 0 => {
            Ok(Client { ip: at.ip().to_canonical(), port: Some(at.port()) })
        }
        _ => Err("must be ADDRESS or ADDRESS:PORT, as 10.244.0.5:40312".into()),
    }
}
