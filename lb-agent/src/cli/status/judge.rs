//! What of a status is a problem, and how bad is it?

use lb_agent::datapath::hooks::RELEASE;
use lb_agent::datapath::roles::Role;

use super::{Hook, InterfaceStatus, Status, Xdp};
use crate::cli::error::Exit;
use crate::cli::self_test::Seen;

/// What the status says of a socket engine that serves nobody.
const OFF: &str = "off";

/// Fills in problems, notes and health; tells the exit code.
pub(super) fn judge(status: &mut Status) -> Exit {
    status.problems = problems(status);
    status.notes = notes(status);
    let (health, exit) = if !status.agent.running {
        ("not_running", Exit::NotRunning)
    } else if status.problems.is_empty() {
        ("healthy", Exit::Success)
    } else {
        ("degraded", Exit::Degraded)
    };
    status.health = health;
    exit
}

fn problems(status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    if !status.agent.running {
        problems.push(
            "no agent runs: traffic goes on as programmed, and changes are not followed; \
             start `lb-agent run`"
                .to_owned(),
        );
    }
    if !status.sync.synced {
        problems.push(
            "the first complete list is not programmed yet: what an earlier run programmed, \
             if there was one, is in force"
                .to_owned(),
        );
    }
    if status.sync.unprogrammed > 0 {
        problems.push(format!(
            "{} not programmed as they should be; see the log of `lb-agent run`",
            count(status.sync.unprogrammed, "service port is", "service ports are")
        ));
    }
    for hook in &status.socket_hooks {
        if status.socket_engine == OFF {
            // One hook stays until the sockets that were served are closed.
            if hook.runs && hook.program != RELEASE {
                problems.push(format!("{}: runs although the socket engine is off", hook.program));
            }
        } else if let Some(problem) = missing(hook) {
            let costs = hook.costs.unwrap_or("the socket engine serves nobody by this call");
            problems.push(format!("{}: {problem}: {costs}", hook.program));
        }
    }
    problems.extend(self_test(status));
    for interface in &status.interfaces {
        problems.extend(on_interface(interface));
    }
    problems.extend(status.outside.problems());
    for lacking in &status.lacking {
        problems.push(format!("{} is missing: {}", lacking.what, lacking.costs));
    }
    for map in &status.maps {
        if let Some(flag) = map.flag
            && map.used >= map.max
        {
            problems.push(format!(
                "{} is full ({} of {}): raise {flag}, after `lb-agent cleanup`",
                map.map, map.used, map.max
            ));
        }
    }
    problems
}

fn notes(status: &Status) -> Vec<String> {
    let sync = &status.sync;
    let mut notes = status.bypassed.sentences();
    if status.socket_engine == OFF {
        notes.push(
            "the socket engine is off (--socket-engine): the packet engine serves pods, and \
             processes of the node itself reach no Service"
                .to_owned(),
        );
    }
    for InterfaceStatus { name, xdp, .. } in &status.interfaces {
        match xdp {
            Some(xdp) if xdp.demoted => notes.push(format!("{name}: XDP {}", xdp.state)),
            Some(Xdp { program: Some(program), runs: false, .. }) => notes.push(format!(
                "{name}: the XDP program {} (id {}) of somebody else sees packets first",
                program.name, program.id
            )),
            _ => {}
        }
    }
    notes.extend(status.interfaces.iter().filter_map(on_uplink));
    notes.extend(status.outside.notes());
    if sync.skipped_objects > 0 {
        notes.push(format!(
            "{} skipped as bad; the log of `lb-agent run` says why",
            count(sync.skipped_objects, "object is", "objects are")
        ));
    }
    if sync.conflicts > 0 {
        notes.push(format!(
            "{} claimed by several Services: one whose clusterIP it is has it, or else the oldest",
            count(sync.conflicts, "frontend is", "frontends are")
        ));
    }
    if sync.refused > 0 {
        notes.push(format!(
            "{} refused that Services make to what belongs to others; the log of `lb-agent run` says \
             which",
            count(sync.refused, "claim is", "claims are")
        ));
    }
    if sync.failed_health_ports > 0 {
        notes.push(format!(
            "{} not answered: another Service or process has the port, or an address is missing; \
             the log of `lb-agent run` says which",
            count(
                sync.failed_health_ports,
                "Service's healthCheckNodePort is",
                "Services' healthCheckNodePorts are"
            )
        ));
    }
    notes
}

fn count(number: u64, one: &str, several: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { several })
}

fn missing(hook: &Hook) -> Option<String> {
    match &hook.error {
        Some(error) => Some(format!("what runs there cannot be told ({error})")),
        None if hook.runs => None,
        None => Some("does not run".to_owned()),
    }
}

fn self_test(status: &Status) -> Vec<String> {
    let test = &status.self_test;
    if let Some(error) = &test.error {
        return vec![format!("the self-test could not be made: {error}")];
    }
    let families = [("IPv4", test.ipv4), ("IPv6", test.ipv6)];
    let each = families.into_iter().filter_map(|(family, seen)| match seen? {
        Seen::Works | Seen::NoFamily => None,
        Seen::NotRefused => Some(format!(
            "self-test: the socket engine does not act on {family} sockets of processes below {}",
            status.cgroup
        )),
        Seen::EverythingRefused => Some(format!(
            "self-test: somebody refuses {family} connections below {} to any address, so that \
             nothing can be told",
            status.cgroup
        )),
    });
    each.collect()
}

fn on_interface(interface: &InterfaceStatus) -> Vec<String> {
    let name = &interface.name;
    let mut problems = Vec::new();
    for hook in &interface.hooks {
        if let Some(problem) = missing(hook) {
            let costs = match (hook.program.starts_with("tc_uplink"), is_pod_port(interface)) {
                (true, _) => {
                    "answers to clients outside leave with addresses of pods, and packets to \
                     unknown ports and addresses of Services leave the node there"
                }
                (false, true) => "sockets outside of the node's cgroup are not served there",
                (false, false) => "connections from outside are not served there",
            };
            problems.push(format!("{name}: {} {problem}: {costs}", hook.program));
            continue;
        }
        // On egress ours is last on purpose, so that the others see pod addresses.
        if let Some(before) = before_ours(hook)
            && !is_egress(hook)
        {
            problems.push(format!(
                "{name}: {before} runs before {} and may end the chain, which would leave packets \
                 untranslated",
                hook.program
            ));
        }
    }
    if let Some(xdp) = &interface.xdp
        && xdp.expected
        && !xdp.runs
    {
        problems.push(format!(
            "{name}: XDP does not run any more, although it did when the agent last looked: tc does \
             its work"
        ));
    }
    problems
}

fn is_pod_port(interface: &InterfaceStatus) -> bool {
    interface.role == Role::PodPort.to_string()
}

fn is_egress(hook: &Hook) -> bool {
    hook.program.contains("egress")
}

/// Programs of others that run before ours, if ours runs.
fn before_ours(hook: &Hook) -> Option<String> {
    let before = hook.order.iter().take_while(|program| !program.ours);
    let before: Vec<String> =
        before.map(|program| format!("{} (id {})", program.name, program.id)).collect();
    (hook.runs && !before.is_empty()).then(|| before.join(", "))
}

/// What others may do to packets that leave the node, if they wish.
fn on_uplink(interface: &InterfaceStatus) -> Option<String> {
    let hook = interface.hooks.iter().find(|hook| is_egress(hook))?;
    let before = before_ours(hook).filter(|_| !is_pod_port(interface))?;
    Some(format!(
        "{}: {before} runs before {} on purpose; if it ends the chain (TC_ACT_OK), answers to clients \
         outside leave with addresses of pods",
        interface.name, hook.program
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Agent, MapFill, Outside, Program, Sync};
    use super::*;
    use crate::cli::lacking::Lacking;
    use crate::cli::self_test::SelfTest;
    use lb_agent::datapath::status::{RunningProgram, XdpStatus};
    use lb_agent::datapath::xdp::{Reason, State};
    use lb_agent::namespaces::survey::{BypassedCgroup, Survey};

    fn hook(program: &'static str, order: &[&str]) -> Hook {
        Hook {
            program,
            runs: order.contains(&"ours"),
            order: (1..)
                .zip(order)
                .map(|(id, name)| Program { id, name: (*name).into(), ours: *name == "ours" })
                .collect(),
            error: None,
            costs: None,
        }
    }

    fn healthy() -> Status {
        Status {
            health: "",
            problems: Vec::new(),
            notes: Vec::new(),
            cgroup: "/cg".into(),
            machine_root: true,
            bpffs: "/b".into(),
            agent: Agent { running: true, pid: Some(7) },
            sync: Sync {
                synced: true,
                commits: 1,
                last_commit_age_s: Some(0),
                source_seen_age_s: Some(0),
                skipped_objects: 1,
                conflicts: 1,
                refused: 2,
                failed_health_ports: 1,
                unprogrammed: 0,
            },
            socket_engine: "all".into(),
            bypassed: Survey::default(),
            ended_sockets: 0,
            xdp_demotions: 0,
            self_test: SelfTest {
                ipv4: Some(Seen::Works),
                ipv6: Some(Seen::NoFamily),
                error: None,
            },
            socket_hooks: vec![hook("connect4", &["other", "ours"])],
            interfaces: vec![InterfaceStatus {
                name: "veth0".into(),
                index: 3,
                role: "pod-port".into(),
                hooks: vec![
                    hook("tc_egress", &["other", "ours"]),
                    hook("tc_ingress", &["ours", "other"]),
                ],
                xdp: None,
            }],
            outside: Outside::default(),
            lacking: Vec::new(),
            maps: vec![MapFill { map: "FLOWS4", used: 8, max: 8, flag: None }],
            counters: Vec::new(),
        }
    }

    fn without_notes(status: &mut Status) {
        let sync = &mut status.sync;
        (sync.skipped_objects, sync.conflicts) = (0, 0);
        (sync.refused, sync.failed_health_ports) = (0, 0);
    }

    #[test]
    fn healthy_is_when_nothing_is_wrong() {
        let mut status = healthy();
        assert_eq!(judge(&mut status), Exit::Success, "{:?}", status.problems);
        assert_eq!(status.health, "healthy");
        let [skipped, conflicts, refused, ports] = &status.notes[..] else {
            panic!("{:?}", status.notes)
        };
        assert!(ports.starts_with("1 Service's healthCheckNodePort is not"), "{ports}");
        assert!(skipped.starts_with("1 object is skipped"), "{skipped}");
        assert!(conflicts.starts_with("1 frontend is claimed"), "{conflicts}");
        assert!(refused.starts_with("2 claims are refused"), "{refused}");
        without_notes(&mut status);
        judge(&mut status);
        assert_eq!(status.notes, Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_wrong_is_told() {
        type Change = fn(&mut Status);
        let changes: [(Change, &str); 11] = [
            (|s| s.sync.synced = false, "not programmed yet"),
            (|s| s.sync.unprogrammed = 2, "2 service ports are not programmed as they should be"),
            (|s| s.socket_hooks[0] = hook("connect4", &["other"]), "connect4: does not run"),
            (|s| s.socket_hooks[0].error = Some("EPERM".into()), "connect4: what runs there"),
            (|s| s.self_test.ipv6 = Some(Seen::NotRefused), "does not act on IPv6"),
            (|s| s.self_test.ipv4 = Some(Seen::EverythingRefused), "refuses IPv4"),
            (|s| s.self_test.error = Some("x".into()), "could not be made: x"),
            (
                |s| s.interfaces[0].hooks[1] = hook("tc_ingress", &["policy", "ours"]),
                "veth0: policy (id 1) runs before tc_ingress",
            ),
            (|s| s.interfaces[0].hooks[0] = hook("tc_egress", &[]), "tc_egress does not run"),
            (
                |s| s.interfaces[0].hooks = vec![hook("tc_uplink_egress", &["other"])],
                "addresses of Services leave the node there",
            ),
            (
                |s| {
                    let full = MapFill { map: "B", used: 8, max: 8, flag: Some("--max-b") };
                    s.maps.push(full);
                },
                "B is full (8 of 8): raise --max-b",
            ),
        ];
        for (change, expected) in changes {
            let mut status = healthy();
            change(&mut status);
            assert_eq!(judge(&mut status), Exit::Degraded, "{expected}");
            let [problem] = &status.problems[..] else { panic!("{:?}", status.problems) };
            assert!(problem.contains(expected), "{problem}");
        }
        let mut status = healthy();
        status.lacking.push(Lacking { what: "CAP_X", costs: "all" });
        assert_eq!(judge(&mut status), Exit::Degraded);
    }

    fn xdp(state: State, ours: bool) -> Xdp {
        let program = ours.then(|| RunningProgram { id: 9, name: "xdp_ingress".into() });
        XdpStatus { state, program, native: true, ours }.into()
    }

    #[test]
    fn a_demotion_of_xdp_is_noted_and_its_loss_is_a_problem() {
        let mut status = healthy();
        without_notes(&mut status);
        let runs = State::Runs { native: true, frags: true, proven: true };
        status.interfaces[0].xdp = Some(xdp(runs, true));
        assert_eq!(judge(&mut status), Exit::Success, "{:?}", status.problems);
        assert!(status.notes.is_empty(), "{:?}", status.notes);
        status.interfaces[0].xdp = Some(xdp(runs, false));
        assert_eq!(judge(&mut status), Exit::Degraded);
        assert!(status.problems[0].starts_with("veth0: XDP does not run"), "{:?}", status.problems);
        status.interfaces[0].xdp = Some(xdp(State::Demoted(Reason::Unanswered), false));
        assert_eq!(judge(&mut status), Exit::Success, "tc does its work");
        let [note] = &status.notes[..] else { panic!("{:?}", status.notes) };
        assert!(note.starts_with("veth0: XDP demoted to tc: a neighbour"), "{note}");
    }

    #[test]
    fn a_program_that_may_end_the_chain_of_an_uplink_is_a_problem_before_packets_are_met_only() {
        let mut status = healthy();
        status.interfaces[0].role = "uplink".into();
        status.interfaces[0].hooks =
            vec![hook("tc_uplink_egress", &["policy", "ours"]), hook("tc_ingress", &["ours"])];
        assert_eq!(judge(&mut status), Exit::Success, "{:?}", status.problems);
        let note = status.notes.iter().find(|note| note.contains("TC_ACT_OK")).unwrap();
        assert!(note.starts_with("veth0: policy (id 1) runs before tc_uplink_egress"), "{note}");
        status.interfaces[0].hooks = vec![hook("tc_ingress", &["policy", "ours"])];
        assert_eq!(judge(&mut status), Exit::Degraded);
        status.interfaces[0].hooks = vec![hook("tc_ingress", &[])];
        judge(&mut status);
        let [problem] = &status.problems[..] else { panic!("{:?}", status.problems) };
        assert!(problem.ends_with("connections from outside are not served there"), "{problem}");
    }

    #[test]
    fn without_an_agent_it_is_not_running_whatever_else_is_fine() {
        let mut status = healthy();
        status.agent.running = false;
        assert_eq!(judge(&mut status), Exit::NotRunning);
        assert_eq!((status.health, status.problems.len()), ("not_running", 1));
    }

    #[test]
    fn what_is_left_alone_on_purpose_is_noted_and_no_problem() {
        let mut status = healthy();
        without_notes(&mut status);
        let path = Some("/cg/vm".into());
        status.bypassed.cgroups.push(BypassedCgroup { id: 7, path });
        assert_eq!(judge(&mut status), Exit::Success);
        let [note] = &status.notes[..] else { panic!("{:?}", status.notes) };
        assert!(note.starts_with("cgroup /cg/vm: --bypass-cgroup"), "{note}");
        status.bypassed = Survey::default();
        status.socket_engine = OFF.into();
        status.socket_hooks = vec![hook("connect4", &[]), hook(RELEASE, &["ours"])];
        assert_eq!(judge(&mut status), Exit::Success, "{:?}", status.problems);
        assert!(status.notes[0].starts_with("the socket engine is off"), "{:?}", status.notes);
        status.socket_hooks = vec![hook("connect4", &["ours"])];
        assert_eq!(judge(&mut status), Exit::Degraded);
        assert!(status.problems[0].contains("although the socket engine is off"));
    }
}
