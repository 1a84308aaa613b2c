//! The real kernel programs against the oracle: a sample of the generated clusters is copied into
//! the programs' maps, and packets from every kind of source to every frontend, and to some addresses
//! that are none, are run through them, in a namespace with the interfaces and routes of the node.
//! Needs root and nothing else.

use std::{cell::RefCell, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{abi::Counter, tables::LocalMode};
use lb_object::Settings;
use lb_testbed::{
    netns::Netns,
    oracle::{
        Engine, Expectation, Place, Source, View,
        cluster::{Family, Protocol},
        generate::{NODE, every, history, link},
    },
    packet::{self, Link, Parsed, TcpFlags},
    require,
    testrun::{Output, kernel::Kernel, place},
    traffic::{self, ACK, SYN, SYN_ACK},
};
use proptest::test_runner::TestCaseError;

use super::{
    compare::{Question, at_the_engine, frontends, questions},
    decide::{Became, Way, transport},
    node,
    pipeline::Agent,
    run::{self, Tally, Weight},
    sources,
};

/// Rules that decide about packets.
const MET: [&str; 13] =
    ["V-1", "V-2", "V-3", "V-4", "V-5", "V-6", "V-7", "V-8", "V-9", "V-12", "V-13", "C-6", "early"];
/// Of what is no frontend, one question of so many is asked.
const ONE_OF: usize = 97;
/// Of all clusters with every combination, and of all questions about each, one of so many: no
/// divisor of what they go round by.
const EVERY: usize = 7;
/// Of what asks for a frontend from off the node, one of so many.
const ONE_OF_OFF_NODE: usize = 3;
/// The programs where packets arrive, leave to a pod, and leave the node.
const INGRESS: &str = "tc_ingress";
const EGRESS: &str = "tc_egress";
const UPLINK: &str = "tc_uplink_egress";
/// The one that meets them before.
const EARLY: &str = "xdp_ingress";
/// What tc programs return: `TC_ACT_SHOT`, `TC_ACT_REDIRECT`, `TC_ACT_UNSPEC`.
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const NEXT: i32 = -1;
/// What XDP programs return: `XDP_PASS`, `XDP_TX`, `XDP_REDIRECT`.
const PASS: i32 = 2;
const TX: i32 = 3;
const EARLY_REDIRECT: i32 = 4;

/// Why packets may be dropped, and what that means.
const DROPS: [(Counter, Became); 6] = [
    (Counter::DropNoBackend, Became::Rejected),
    (Counter::DropUndefinedPort, Became::Rejected),
    (Counter::DropNoLocalBackend, Became::Dropped),
    (Counter::DropSourceRange, Became::Dropped),
    (Counter::DropUnallocated, Became::Dropped),
    (Counter::DropSctpPort, Became::SctpPort),
];

/// C-2, V-1 to V-13, R-1 to R-6, M-1 to M-10 with the departures, in the kernel itself: what becomes
/// of a first packet from every kind of source, and of the answer to it, at tc and at XDP.
#[test]
fn kernel_programs_agree_with_the_contract() -> Result<()> {
    if !require::bpf_or_skip("kernel_programs_agree_with_the_contract") {
        return Ok(());
    }
    node_with_routes()?.run(|| {
        let programs = RefCell::new(Programs::default());
        run::check("kernel", Weight::Dear, &[], history(4), |history| {
            let mut agent = Agent::new(&history.config, &history.service_cidrs);
            let mut tally = Tally::default();
            for (burst, cluster) in history.steps() {
                agent.take(burst);
                let view = View::new(&cluster, NODE);
                let mut programs = programs.borrow_mut();
                programs.choose(&agent).map_err(fail)?;
                tally.add(&programs.compare(&view)?);
            }
            Ok(tally)
        });
    })
}

/// The same for every kind of source, under policies and settings of every kind.
#[test]
fn kernel_programs_treat_every_kind_of_source_as_the_contract_says() -> Result<()> {
    if !require::bpf_or_skip("kernel_programs_treat_every_kind_of_source_as_the_contract_says") {
        return Ok(());
    }
    node_with_routes()?.run(|| {
        let (mut programs, mut tally) = (Programs::default(), Tally::default());
        for (turn, cluster) in every::clusters().enumerate().step_by(EVERY) {
            programs.choose(&Agent::of(&cluster))?;
            let view = View::new(&cluster, NODE);
            for (index, question) in
                Family::BOTH.into_iter().flat_map(sources::questions).enumerate()
            {
                if question.place == Place::Host || !(turn / EVERY + index).is_multiple_of(EVERY) {
                    continue;
                }
                let protocol = Protocol::ALL[(turn + index / EVERY) % Protocol::ALL.len()];
                programs
                    .compare_one(&Question { protocol, ..question }, &view, &mut tally)
                    .with_context(|| format!("under {:?}", cluster.config))?;
            }
        }
        println!("sources: {} decisions compared; {:?}", tally.compared, tally.rules);
        let missed: Vec<_> = MET.iter().filter(|rule| !tally.rules.contains_key(*rule)).collect();
        ensure!(missed.is_empty(), "never met {missed:?}");
        Ok(())
    })?
}

/// The interfaces and routes that the oracle's node has. Every other neighbour is known.
fn node_with_routes() -> Result<Netns> {
    let links: Vec<_> =
        node::links().map(|link| (link.name, node::index(link), link.bridge)).collect();
    let mut lines = Vec::new();
    for family in Family::BOTH {
        let bits = if family == Family::V4 { 32 } else { 128 };
        for link in [link::UPLINK, link::UPLINK2] {
            let own = node::snat_address(link, family);
            lines.push(format!("address add {own}/{bits} dev {}", link.name));
        }
        for (index, (to, link)) in node::routes(family).into_iter().enumerate() {
            let dev = link.name;
            lines.push(format!("route add {to}/{bits} dev {dev}"));
            if node::is_known(to) {
                let mac = format!("02:00:00:00:00:{index:02x}");
                lines.push(format!("neigh add {to} lladdr {mac} nud permanent dev {dev}"));
            }
        }
    }
    place::with_links(&links, &lines.join("\n"))
}

/// What the programs are made with; it is fixed when they are loaded.
type Constants = (LocalMode, bool);

/// The loaded programs, in every way in which they were needed so far.
#[derive(Default)]
struct Programs {
    loaded: Vec<(Constants, Kernel)>,
    /// The ones in use.
    now: usize,
    sport: u16,
    /// What [`Programs::drops`] told last, if nothing was dropped since.
    drops: RefCell<Option<Vec<u64>>>,
}

fn load((local_mode, masquerade_all): Constants) -> Result<Kernel> {
    let settings = Settings { local_mode, masquerade_all, ..Settings::probe() };
    let mut kernel = Kernel::prepare(&settings)?;
    for program in [INGRESS, EGRESS, UPLINK, EARLY] {
        kernel.load(program)?;
    }
    kernel.fill_program_array()?;
    Ok(kernel)
}

/// What became of a packet.
struct Went {
    became: Became,
    /// As it went on.
    data: Vec<u8>,
}

impl Programs {
    /// Fills the programs that an agent's settings ask for.
    fn choose(&mut self, agent: &Agent) -> Result<()> {
        let constants = agent.constants();
        let known = self.loaded.iter().position(|(other, _)| *other == constants);
        self.now = known.unwrap_or(self.loaded.len());
        if known.is_none() {
            self.loaded.push((constants, load(constants)?));
        }
        self.drops.take();
        let (_, kernel) = self.loaded.get_mut(self.now).context("just loaded")?;
        kernel.reset()?;
        kernel.fill(&agent.tables)
    }

    fn kernel(&self) -> Result<&Kernel> {
        self.loaded.get(self.now).map(|(_, kernel)| kernel).context("chosen before")
    }

    fn compare(&mut self, view: &View) -> Result<Tally, TestCaseError> {
        let captured = frontends(view);
        let mut tally = Tally::default();
        for (index, question) in Family::BOTH.into_iter().flat_map(questions).enumerate() {
            let is_frontend = captured.contains_key(&(question.to, question.protocol));
            // The turn goes round with the port that was used last, so that all get theirs.
            let turn = index + usize::from(self.sport);
            let of = match (is_frontend, question.place) {
                (false, _) => ONE_OF,
                (true, Place::Elsewhere) => ONE_OF_OFF_NODE,
                (true, _) => 1,
            };
            if question.place == Place::Host || turn % of != 0 {
                continue;
            }
            self.compare_one(&question, view, &mut tally).map_err(fail)?;
        }
        Ok(tally)
    }

    /// Asks one question at tc, and if XDP meets it too, there before.
    fn compare_one(&mut self, question: &Question, view: &View, tally: &mut Tally) -> Result<()> {
        let expected =
            view.expect(Engine::Packet, &question.client(), question.to, question.protocol);
        for way in question.ways().filter(|way| [Way::Packet, Way::Early].contains(way)) {
            self.ask(way, question, &expected, tally)
                .with_context(|| format!("{way:?} of {question:?}"))?;
        }
        Ok(())
    }

    fn ask(
        &mut self,
        way: Way,
        question: &Question,
        expected: &Expectation,
        tally: &mut Tally,
    ) -> Result<()> {
        let allowed = at_the_engine(expected, question);
        self.sport = self.sport.checked_add(1).unwrap_or(1024);
        let client = SocketAddr::new(question.ip, self.sport);
        let sent = traffic::packet(transport(question.protocol), client, question.to, SYN).build();
        let early = if way == Way::Early { self.early(question, &sent)? } else { None };
        let went = self.first(question, client, &sent)?;
        if let Some(early) = early {
            // Whoever meets the flow's packets: they are the same behind the Ethernet header.
            ensure!(early.get(14..) == went.data.get(14..), "XDP and tc make different packets");
            tally.met("early");
        } else if let (Way::Early, Became::Out(at)) = (way, went.became) {
            let egress = node::egress(at.ip()).context("a route")?;
            let is_ready = node::has_early(egress) && node::is_known(at.ip());
            // Every few ticks XDP leaves a packet to tc, for the kernel to look after the neighbour. Now
            // it has.
            ensure!(
                !is_ready || self.early(question, &sent)?.is_some(),
                "XDP left to tc what it could send to {at} by {egress:?}, twice"
            );
        }
        // A packet that is sent on to where it goes anyway looks like one that nobody touched.
        let itself = Became::To(question.to, Source::Kept);
        let unchanged = went.became == Became::Untouched && allowed.contains(&itself);
        ensure!(
            unchanged || allowed.contains(&went.became),
            "it became {:?}: the contract expects {expected}",
            went.became
        );
        if let Some(backend) = went.became.endpoint().filter(|_| !unchanged) {
            let parsed = packet::parse(&went.data, Link::Ethernet).context("parsed before")?;
            let (source, _) = ends(&parsed)?;
            self.answer(question, client, source, backend).context("the answer")?;
        }
        tally.add(&Tally::of(1));
        tally.met(expected.rule);
        Ok(())
    }

    /// What XDP sends, if it sends a packet; if not, it leaves it as it is.
    fn early(&self, question: &Question, sent: &[u8]) -> Result<Option<Vec<u8>>> {
        self.drops.take();
        let ran = self.kernel()?.run_at(EARLY, sent, node::index(question.link))?;
        match ran.verdict.cast_signed() {
            PASS => {
                ensure!(ran.data == sent, "XDP passed a packet, and wrote to it");
                Ok(None)
            }
            action @ (TX | EARLY_REDIRECT) => {
                packet::checksums_ok(&ran.data, Link::Ethernet)?;
                let parsed = packet::parse(&ran.data, Link::Ethernet).context("what XDP made")?;
                let back = node::egress(parsed.dst) == Some(question.link);
                ensure!(back == (action == TX), "returned {action} to {}", parsed.dst);
                Ok(Some(ran.data))
            }
            other => bail!("XDP returned {other}"),
        }
    }

    /// What becomes of the first packet of a flow at tc.
    fn first(&self, question: &Question, client: SocketAddr, sent: &[u8]) -> Result<Went> {
        let kernel = self.kernel()?;
        let before = self.counted()?;
        let mut ran = kernel.run_at(INGRESS, sent, node::index(question.link))?;
        if ran.verdict.cast_signed() == NEXT && ran.data == sent {
            // What nobody takes leaves the node.
            ran = kernel.run_at(UPLINK, sent, node::index(link::UPLINK))?;
        }
        let became = self.became(question, client, sent, &ran, &before)?;
        if became.endpoint().is_none() && became != Became::Untouched {
            self.drops.take();
        }
        Ok(Went { became, data: ran.data })
    }

    fn became(
        &self,
        question: &Question,
        client: SocketAddr,
        sent: &[u8],
        ran: &Output,
        before: &[u64],
    ) -> Result<Became> {
        let parsed = packet::parse(&ran.data, Link::Ethernet).context("what is left of it")?;
        packet::checksums_ok(&ran.data, Link::Ethernet)?;
        match ran.verdict.cast_signed() {
            NEXT if ran.data == sent => Ok(Became::Untouched),
            SHOT => self.why_dropped(before),
            REDIRECT if is_error(&ran.data, &parsed) => {
                ensure!(parsed.dst == client.ip(), "the error goes to {}", parsed.dst);
                Ok(Became::Rejected)
            }
            action @ (NEXT | REDIRECT) => {
                let (source, backend) = ends(&parsed)?;
                let hairpin = question.place == Place::Pod && backend.ip() == client.ip();
                if action == REDIRECT && !hairpin {
                    let egress = node::egress(backend.ip()).context("a route")?;
                    let expected = node::snat_address(egress, Family::of(backend.ip()));
                    ensure!(source.ip() == expected, "sent out of {egress:?} from {source}");
                    return Ok(Became::Out(backend));
                }
                ensure!(hairpin == (action == REDIRECT), "returned {action} to {backend}");
                let kept = if source == client { Source::Kept } else { Source::Rewritten };
                Ok(Became::To(backend, kept))
            }
            other => bail!("returned {other}"),
        }
    }

    /// The backend's answer: the client sees the address that it asked for.
    fn answer(
        &self,
        question: &Question,
        client: SocketAddr,
        source: SocketAddr,
        backend: SocketAddr,
    ) -> Result<()> {
        let off_node = question.place == Place::Elsewhere;
        if off_node && node::egress(client.ip()) != Some(question.link) {
            return Ok(()); // Nobody answers to what has an address of this node.
        }
        let flags = if question.protocol == Protocol::Tcp { SYN_ACK } else { ACK };
        let sent = traffic::packet(transport(question.protocol), backend, source, flags).build();
        // Where the source is another one, the answer is met where it arrives.
        let (program, link, action) = match (source == client, off_node) {
            (true, true) => (UPLINK, question.link, NEXT),
            (true, false) => (EGRESS, question.link, NEXT),
            (false, _) => {
                let arrives = node::egress(backend.ip()).context("a route")?;
                (INGRESS, arrives, REDIRECT)
            }
        };
        let ran = self.kernel()?.run_at(program, &sent, node::index(link))?;
        let parsed = packet::parse(&ran.data, Link::Ethernet).context("what is left of it")?;
        packet::checksums_ok(&ran.data, Link::Ethernet)?;
        let returned = ran.verdict.cast_signed();
        ensure!(returned == action, "{program} returned {returned}");
        let seen = ends(&parsed)?;
        ensure!(seen == (question.to, client), "it goes from and to {seen:?}");
        Ok(())
    }

    /// The same as [`Programs::drops`], which is many system calls.
    fn counted(&self) -> Result<Vec<u64>> {
        let known = self.drops.borrow().clone();
        let drops = known.map_or_else(|| self.drops(), Ok)?;
        self.drops.replace(Some(drops.clone()));
        Ok(drops)
    }

    /// How often each of [`DROPS`] was counted.
    fn drops(&self) -> Result<Vec<u64>> {
        let kernel = self.kernel()?;
        DROPS.iter().map(|(counter, _)| kernel.counter(*counter)).collect()
    }

    fn why_dropped(&self, before: &[u64]) -> Result<Became> {
        let counted = self.drops()?.into_iter().zip(before).position(|(now, then)| now > *then);
        match counted.and_then(|index| DROPS.get(index)) {
            Some((_, became)) => Ok(*became),
            None => bail!(
                "dropped, and counted as none of what may happen: now all are {:?}",
                self.kernel()?.counters()?
            ),
        }
    }
}

/// Whether a packet is an answer that tells its receiver that nobody is there.
fn is_error(bytes: &[u8], parsed: &Parsed) -> bool {
    match parsed.protocol {
        packet::protocol::ICMP | packet::protocol::ICMPV6 => true,
        packet::protocol::TCP => {
            bytes.get(parsed.upper_at + 13).is_some_and(|flags| flags & TcpFlags::RST.0 != 0)
        }
        _ => false,
    }
}

fn ends(parsed: &Parsed) -> Result<(SocketAddr, SocketAddr)> {
    let [sport, dport] = parsed.ports.context("ports")?;
    Ok((SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport)))
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn fail(error: anyhow::Error) -> TestCaseError {
    TestCaseError::fail(format!("{error:#}"))
}
