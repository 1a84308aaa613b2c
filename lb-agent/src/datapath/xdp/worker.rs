//! Puts XDP on interfaces, one after the other, and takes it off where it does harm.
//!
//! On a thread of its own: a driver may take seconds to make its queues anew, and so may neighbours
//! to answer. A link is pinned only when it is proven to do no harm: until then it goes with the
//! process, so that an agent that is killed in between does not leave a node cut off.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya_obj::generated::bpf_attach_type;
use rtnetlink::{Handle, new_connection};
use tokio::time::{Instant, sleep, sleep_until};

use super::neighbours::{self, Attached};
use super::probe::{self, Question};
use super::state::{Reason, State};
use super::{Ask, Config, Mode, Shared, pin};
use crate::datapath::hooks;
use crate::datapath::roles::Interface;
use crate::datapath::sys::{self, Target};

/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`, `linux/if_link.h`.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// How long neighbours have to answer before XDP is attached: who does not is not asked again.
const BEFORE: Duration = Duration::from_millis(700);
/// How long one of those that answered has to do so again.
const AFTER: Duration = Duration::from_secs(3);
/// How long a link may be down because XDP was attached: drivers reset cards for it.
const CARRIER: Duration = Duration::from_secs(10);
const CARRIER_POLL: Duration = Duration::from_millis(50);
/// Changes of a link so soon after it was tried are taken for those of the driver itself.
const OWN_CHANGES: Duration = Duration::from_secs(15);
/// Longest pause before a link change leads to another attempt, after many that failed.
const MAX_PAUSE: Duration = Duration::from_mins(30);
const MIN_PAUSE: Duration = Duration::from_secs(15);

pub(super) struct Worker {
    config: Config,
    folder: PathBuf,
    shared: Arc<Shared>,
    handle: Handle,
    seats: BTreeMap<u32, Seat>,
}

/// What was tried on an interface.
struct Seat {
    interface: Interface,
    state: State,
    /// When it was last tried.
    tried: Instant,
    /// How often that failed, one time after the other.
    failures: u32,
    /// When it is tried again, if it is.
    retry: Option<Instant>,
}

/// Works until there is nobody who could ask for more.
pub(super) async fn work(config: Config, folder: PathBuf, shared: Arc<Shared>) -> io::Result<()> {
    let (connection, handle, _messages) = new_connection()?;
    tokio::spawn(connection);
    let seats = BTreeMap::new();
    let worker = Worker { config, folder, shared: Arc::clone(&shared), handle, seats };
    tokio::select! {
        () = worker.run() => {}
        () = shared.closed() => {}
    }
    Ok(())
}

impl Worker {
    async fn run(mut self) {
        loop {
            for (index, Ask { forget, settle }) in self.shared.take() {
                if forget {
                    self.forget(index).await;
                }
                if let Some(interface) = settle {
                    self.settle(interface).await;
                }
            }
            let due = self.seats.values().filter_map(|seat| seat.retry).min();
            let retry = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.asked() => continue,
                () = retry => {}
            }
            let now = Instant::now();
            let due = self.seats.values().filter(|seat| seat.retry.is_some_and(|at| at <= now));
            let due: Vec<Interface> = due.map(|seat| seat.interface.clone()).collect();
            for interface in due {
                self.occupy(interface).await;
            }
        }
    }

    /// Makes an interface have XDP if that is wanted, and none otherwise.
    async fn settle(&mut self, interface: Interface) {
        let index = interface.index;
        if !self.config.wants(&interface) {
            self.forget(index).await;
            return;
        }
        let Some(seat) = self.seats.get_mut(&index) else {
            self.occupy(interface).await;
            return;
        };
        let before = std::mem::replace(&mut seat.interface, interface.clone()).device;
        let now = interface.device;
        if seat.state.runs() {
            // A driver may have dropped the program with the change.
            if now != before && now.running && !self.is_in_force(index).await {
                self.occupy(interface).await;
            }
        } else if now.mtu != before.mtu || seat.state == State::Down {
            self.occupy(interface).await;
        } else if now != before && now.running && seat.tried.elapsed() > OWN_CHANGES {
            // A link that goes up and down, perhaps because of XDP, is not tried each time.
            let pause = MIN_PAUSE.saturating_mul(1 << seat.failures.min(8)).min(MAX_PAUSE);
            seat.retry = Some((seat.tried + pause).max(Instant::now()));
        }
    }

    /// Takes XDP off an interface, or forgets one that is gone.
    async fn forget(&mut self, index: u32) {
        self.seats.remove(&index);
        self.shared.tell(index, State::Unwanted).await;
        self.shared.nobody_sends(index).await;
        self.take_off(index);
    }

    fn take_off(&self, index: u32) {
        if let Err(error) = hooks::detach(&pin(&self.folder, index)) {
            tracing::warn!(index, %error, "XDP cannot be taken off; will be tried at the next start");
        }
    }

    /// Tries to put XDP on an interface, and tells what became of it.
    async fn occupy(&mut self, interface: Interface) {
        let (index, name) = (interface.index, interface.name.clone());
        let (state, passing) = self.attempt(&interface).await;
        let failures = self.seats.get(&index).map_or(0, |seat| seat.failures);
        let demoted = matches!(state, State::Demoted(_));
        let tried = Instant::now();
        let seat = Seat {
            interface,
            state,
            tried,
            failures: if demoted { failures + 1 } else { 0 },
            retry: passing.then_some(tried + MIN_PAUSE.saturating_mul(1 << failures.min(8))),
        };
        self.seats.insert(index, seat);
        if let State::Demoted(reason) = state {
            tracing::warn!(interface = name, %reason, "no XDP here: tc does its work");
        } else {
            tracing::info!(interface = name, xdp = %state, "XDP");
            self.shared.tell(index, state).await;
        }
    }

    /// Who listens knows of a demotion already. Also whether one may be nobody's fault but a neighbour's
    /// that went away.
    async fn attempt(&mut self, interface: &Interface) -> (State, bool) {
        match self.attach(interface).await {
            Ok(state) => (state, false),
            Err(refusal) => {
                self.shared.tell(interface.index, State::Demoted(refusal.reason)).await;
                self.shared.nobody_sends(interface.index).await;
                // Nothing must be left of what does not work, and nothing of an earlier run.
                drop(refusal.link);
                self.take_off(interface.index);
                let passing = match refusal.reason {
                    Reason::Unanswered => {
                        let until = Instant::now() + BEFORE;
                        let again = probe::ask(interface.index, &refusal.asked, until, true).await;
                        again.is_ok_and(|answered| answered.is_empty())
                    }
                    _ => false,
                };
                (State::Demoted(refusal.reason), passing)
            }
        }
    }

    async fn attach(&mut self, interface: &Interface) -> Result<State, Refusal> {
        let index = interface.index;
        let native = self.config.mode == Mode::Native;
        let failed = |error: io::Error| Refusal::of(Reason::failed(&error));
        if !neighbours::link(&self.handle, index).await.map_err(failed)?.running
            && sys::object_get(&pin(&self.folder, index)).is_err()
        {
            return Ok(State::Down);
        }
        let master = interface.device.master;
        let questions = neighbours::questions(&self.handle, index, master).await.map_err(failed)?;
        let deadline = Instant::now() + BEFORE;
        let answered = probe::ask(index, &questions, deadline, false).await.map_err(failed)?;
        let asked: Vec<Question> =
            questions.into_iter().filter(|q| answered.contains(&q.neighbour)).collect();

        let Put { link, frags, program } = self.put(index, native).await?;
        let refuse = |reason, link| Refusal { reason, link, asked: asked.clone() };
        let runs = match self.wait_for_carrier(index).await {
            Ok(attached) => attached,
            Err(error) => return Err(refuse(Reason::failed(&error), link)),
        };
        let wanted = if native { runs.driver } else { runs.generic };
        if wanted != Some(program) {
            return Err(refuse(Reason::OtherMode, link));
        }
        let deadline = Instant::now() + AFTER;
        let again = match probe::ask(index, &asked, deadline, true).await {
            Ok(again) => again,
            Err(error) => return Err(refuse(Reason::failed(&error), link)),
        };
        if again.is_empty() && !asked.is_empty() {
            return Err(refuse(Reason::Unanswered, link));
        }
        if let Some(link) = link
            && let Err(error) = keep(link.as_fd(), &pin(&self.folder, index))
        {
            return Err(refuse(Reason::failed(&error), Some(link)));
        }
        let by: Option<IpAddr> = again.into_iter().next();
        tracing::debug!(interface = interface.name, neighbour = ?by, "answered under XDP");
        Ok(State::Runs { native, frags, proven: by.is_some() })
    }

    /// Replaces the program of a pinned link, so that no packet is missed, or makes a link.
    async fn put(&self, index: u32, native: bool) -> Result<Put, Refusal> {
        let mut refused = Reason::NoProgram;
        let programs = self.shared.programs.get();
        let variants = programs.map(|p| [(true, &p.frags), (false, &p.plain)]);
        for (frags, program) in variants.into_iter().flatten() {
            let Some(program) = program else { continue };
            let failed = |error: &io::Error| Refusal::of(Reason::failed(error));
            let id = sys::program_info(program.as_fd()).map_err(|e| failed(&e))?.id;
            match self.attach_one(index, native, program.as_fd()).await {
                Ok(link) => return Ok(Put { link, frags, program: id }),
                Err(error) => refused = Reason::refused(&error),
            }
        }
        Err(Refusal::of(refused))
    }

    async fn attach_one(
        &self,
        index: u32,
        native: bool,
        program: BorrowedFd<'_>,
    ) -> io::Result<Option<OwnedFd>> {
        let pin = pin(&self.folder, index);
        if let Ok(old) = sys::object_get(&pin) {
            let here = sys::link_info(old.as_fd()).is_ok_and(|info| info.ifindex() == index);
            if here && sys::link_update(old.as_fd(), program).is_ok() {
                return Ok(None);
            }
            // Of another interface that had this index, or with a program that the driver does not
            // take in place of the one before.
            self.shared.tell(index, State::Unwanted).await;
            self.shared.nobody_sends(index).await;
            hooks::detach(&pin)?;
        }
        let mode = if native { DRV_MODE } else { SKB_MODE };
        let target = Target::Interface(index);
        sys::link_create(program, target, bpf_attach_type::BPF_XDP, mode).map(Some)
    }

    async fn wait_for_carrier(&self, index: u32) -> io::Result<Attached> {
        let deadline = Instant::now() + CARRIER;
        loop {
            let link = neighbours::link(&self.handle, index).await?;
            if link.running || Instant::now() >= deadline {
                return Ok(link.attached);
            }
            sleep(CARRIER_POLL).await;
        }
    }

    /// Whether the pinned link still has its program on the interface.
    async fn is_in_force(&self, index: u32) -> bool {
        let link = sys::object_get(&pin(&self.folder, index));
        let info = link.and_then(|link| sys::link_info(link.as_fd()));
        let Ok(info) = info else { return false };
        let Ok(link) = neighbours::link(&self.handle, index).await else { return false };
        let Attached { driver, generic } = link.attached;
        info.ifindex() == index && [driver, generic].contains(&Some(info.program))
    }
}

/// What was attached.
struct Put {
    /// A new link; none if a program was replaced.
    link: Option<OwnedFd>,
    frags: bool,
    /// Its id.
    program: u32,
}

struct Refusal {
    reason: Reason,
    /// What has to go.
    link: Option<OwnedFd>,
    /// Who answered before.
    asked: Vec<Question>,
}

impl Refusal {
    fn of(reason: Reason) -> Self {
        Self { reason, link: None, asked: Vec::new() }
    }
}

fn keep(link: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    sys::object_pin(link, pin)
}
