//! What the supervisor does next, decided from what happened: pure, with time as an argument.
//!
//! One agent, and one proxy that serves. A process that ends is started again, at once the
//! first time and then ever later. An upgrade starts a second proxy beside the first and
//! drains the first when the second serves. The end waits for a successor that is about to
//! take over, drains, and stops the agent, in such an order that no connection is refused.

use super::restarts::Restarts;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest wait for a new proxy of an upgrade to serve.
const UPGRADE: Duration = Duration::from_secs(60);
/// What a proxy may take beyond its drain time.
const MARGIN: Duration = Duration::from_secs(10);
/// What an agent may take to stop: a last round, and statuses that are taken away.
const AGENT: Duration = Duration::from_secs(15);
/// Shortest time between two links of one proxy: each costs the agent its whole table.
const RELINK: Duration = Duration::from_secs(1);

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Who {
    Agent,
    /// By its number: each start has its own.
    Proxy(u64),
}

/// Which program a process is started from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// The supervisor's own, even if the file has been replaced since.
    Own,
    /// What was at its path when the so-manyth upgrade began. It may have been replaced since
    /// by one that speaks another protocol and that nobody has asked for.
    Upgraded(u64),
}

/// Something that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// A process ended, or could not be started. `failed`: it gave up by itself.
    Exited { who: Who, failed: bool },
    /// A process said what it speaks.
    Hello { who: Who, protocol: u64 },
    /// The agent holds the node.
    Up,
    /// A proxy serves.
    Ready(u64),
    /// A proxy's link to the agent is over.
    Unlinked(u64),
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGUSR2.
    Upgrade,
    /// The next supervisor has the listeners.
    Asked,
    /// It is gone.
    Gone,
    /// It serves.
    Done,
    /// Time has passed.
    Tick,
}

/// Something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    /// Find out who holds the listeners, get them or bind them.
    Adopt,
    Start(Who, Program),
    /// Link this proxy and the agent.
    Link(u64),
    Drain(u64),
    /// End a process now.
    End(Who),
    /// Ask the agent to stop.
    StopAgent,
    /// Tell whoever held the listeners before that it is relieved.
    Relieve,
    /// Close our own listeners.
    Release,
    /// Exit; false: as a failure.
    Exit(bool),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// Our connections drain elsewhere: another supervisor serves. Its end is waited for.
    Retired,
    /// `released`: connections are taken no more.
    Stopping {
        since: Instant,
        released: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AgentState {
    Alive,
    Waiting(Instant),
    /// Told to stop; ended by force after that.
    Stopping(Instant),
    Gone,
}

/// A proxy's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Starting,
    Serving,
    /// Ended by force after that.
    Draining(Instant),
}

#[derive(Debug)]
struct Proxy {
    stage: Stage,
    protocol: Option<u64>,
    linked: bool,
    /// Not linked again before that.
    relink: Option<Instant>,
}

impl Proxy {
    /// Could be linked to an agent that speaks this, were it time.
    fn wants(&self, spoken: u64) -> bool {
        let open = !matches!(self.stage, Stage::Draining(_));
        open && !self.linked && self.protocol == Some(spoken)
    }
}

/// Times of the end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// From the signal until connections are refused, for load balancers to notice.
    pub(crate) delay: Duration,
    /// How long connections may live on.
    pub(crate) drain: Duration,
}

/// The supervisor's state.
#[derive(Debug)]
pub(crate) struct Machine {
    times: Times,
    phase: Phase,
    agent: AgentState,
    agent_protocol: Option<u64>,
    agent_program: Program,
    /// An agent has held the node: failures are no longer a wrong set-up.
    ever_up: bool,
    agent_restarts: Restarts,
    proxies: BTreeMap<u64, Proxy>,
    /// The proxy that serves, or is to.
    current: Option<u64>,
    /// The next proxy of an upgrade, and when it is given up.
    candidate: Option<(u64, Instant)>,
    /// When a proxy is started in place of one that ended.
    proxy_due: Option<Instant>,
    proxy_restarts: Restarts,
    /// What proxies are started from.
    program: Program,
    /// How many upgrades were asked for: the last one's program.
    upgrades: u64,
    last_number: u64,
    /// Somebody is about to take over.
    successor: bool,
}

impl Machine {
    /// The state at the start, and what is to be done then.
    pub(crate) fn start(times: Times, now: Instant) -> (Self, Vec<Action>) {
        let mut machine = Self {
            times,
            phase: Phase::Running,
            agent: AgentState::Alive,
            agent_protocol: None,
            agent_program: Program::Own,
            ever_up: false,
            agent_restarts: Restarts::default(),
            proxies: BTreeMap::new(),
            current: None,
            candidate: None,
            proxy_due: None,
            proxy_restarts: Restarts::default(),
            program: Program::Own,
            upgrades: 0,
            last_number: 0,
            successor: false,
        };
        machine.agent_restarts.started(now);
        let mut actions = vec![Action::Adopt, Action::Start(Who::Agent, Program::Own)];
        machine.start_current(now, &mut actions);
        (machine, actions)
    }

    /// Takes what happened; returns what is to be done, in that order.
    pub(crate) fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut todo = Vec::new();
        match event {
            Event::Exited { who: Who::Agent, failed } => self.agent_exited(now, failed, &mut todo),
            Event::Exited { who: Who::Proxy(number), .. } => self.proxy_exited(now, number, &mut todo),
            Event::Hello { who, protocol } => match who {
                Who::Agent => self.agent_protocol = Some(protocol),
                Who::Proxy(number) => {
                    if let Some(proxy) = self.proxies.get_mut(&number) {
                        proxy.protocol = Some(protocol);
                    }
                }
            },
            Event::Up => {
                self.ever_up = true;
                if self.phase == Phase::Retired {
                    // Whoever took over is gone again.
                    self.phase = Phase::Running;
                    todo.push(Action::Adopt);
                    self.start_current(now, &mut todo);
                }
            }
            Event::Ready(number) => self.ready(now, number, &mut todo),
            Event::Unlinked(number) => {
                if let Some(proxy) = self.proxies.get_mut(&number) {
                    proxy.linked = false;
                }
            }
            Event::Stop => self.stop(now, &mut todo),
            Event::Upgrade => {
                if self.phase == Phase::Running && self.candidate.is_none() {
                    let number = self.add_proxy();
                    self.candidate = Some((number, now + UPGRADE));
                    self.upgrades += 1;
                    todo.push(Action::Start(Who::Proxy(number), Program::Upgraded(self.upgrades)));
                }
            }
            Event::Asked => self.successor = true,
            Event::Gone => self.successor = false,
            Event::Done => {
                self.successor = false;
                if self.phase == Phase::Running {
                    self.phase = Phase::Retired;
                }
                self.release(now, &mut todo);
            }
            Event::Tick => {}
        }
        self.due(now, &mut todo);
        if matches!(self.phase, Phase::Stopping { .. })
            && self.agent == AgentState::Gone
            && self.proxies.is_empty()
        {
            todo.push(Action::Exit(true));
        }
        todo
    }

    /// Whether something may still be started from what the so-manyth upgrade found.
    pub(crate) fn needs(&self, upgrade: u64) -> bool {
        let program = Program::Upgraded(upgrade);
        [self.program, self.agent_program].contains(&program)
            || self.candidate.is_some() && upgrade == self.upgrades
    }

    /// When time alone asks for a step.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        let agent = match self.agent {
            AgentState::Waiting(at) | AgentState::Stopping(at) => Some(at),
            AgentState::Alive | AgentState::Gone => None,
        };
        let draining = self.proxies.values().filter_map(|proxy| match proxy.stage {
            Stage::Draining(until) => Some(until),
            Stage::Starting | Stage::Serving => None,
        });
        let candidate = self.candidate.map(|(_, until)| until);
        let spoken = self.agent_protocol;
        let relinks = self.proxies.values().filter(|proxy| spoken.is_some_and(|spoken| proxy.wants(spoken)));
        let sound = [&self.agent_restarts, &self.proxy_restarts].into_iter().filter_map(Restarts::sound_at);
        draining
            .chain(sound)
            .chain(agent)
            .chain(candidate)
            .chain(relinks.filter_map(|proxy| proxy.relink))
            .chain(self.proxy_due)
            .chain(self.release_at())
            .min()
    }

    /// The proxies and how far each is.
    pub(crate) fn proxies(&self) -> impl Iterator<Item = (u64, Stage)> {
        self.proxies.iter().map(|(number, proxy)| (*number, proxy.stage))
    }

    /// Times that agent and proxies ended unasked.
    pub(crate) fn restarts(&self) -> (u64, u64) {
        (self.agent_restarts.total(), self.proxy_restarts.total())
    }

    /// What is wrong, for people.
    pub(crate) fn trouble(&self) -> Option<String> {
        let ends = [("agent", &self.agent_restarts), ("proxy", &self.proxy_restarts)];
        ends.into_iter().find_map(|(who, restarts)| {
            let streak = restarts.streak();
            (streak > 1).then(|| format!("the {who} ended {streak} times in a row; started again ever later"))
        })
    }

    fn add_proxy(&mut self) -> u64 {
        self.last_number += 1;
        let proxy = Proxy { stage: Stage::Starting, protocol: None, linked: false, relink: None };
        self.proxies.insert(self.last_number, proxy);
        self.last_number
    }

    fn start_current(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let number = self.add_proxy();
        self.current = Some(number);
        self.proxy_due = None;
        self.proxy_restarts.started(now);
        todo.push(Action::Start(Who::Proxy(number), self.program));
    }

    fn agent_exited(&mut self, now: Instant, failed: bool, todo: &mut Vec<Action>) {
        self.agent_protocol = None;
        for proxy in self.proxies.values_mut() {
            (proxy.linked, proxy.relink) = (false, None);
        }
        if matches!(self.phase, Phase::Stopping { .. }) {
            self.agent = AgentState::Gone;
        } else if failed && !self.ever_up {
            // It said why. Whoever started us knows what to do about it.
            self.agent = AgentState::Gone;
            self.end_all(todo);
            todo.push(Action::Exit(false));
        } else if matches!(self.agent, AgentState::Stopping(_)) {
            // For another program: that is no failure.
            self.agent = AgentState::Waiting(now);
        } else {
            self.agent = AgentState::Waiting(self.agent_restarts.ended(now));
        }
    }

    fn proxy_exited(&mut self, now: Instant, number: u64, todo: &mut Vec<Action>) {
        if self.proxies.remove(&number).is_none() {
            return;
        }
        if self.candidate.is_some_and(|(candidate, _)| candidate == number) {
            self.give_up_upgrade(now, todo);
        } else if self.current == Some(number) {
            self.current = None;
            if self.phase == Phase::Running {
                self.proxy_due = Some(self.proxy_restarts.ended(now));
            }
        }
    }

    fn give_up_upgrade(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.candidate = None;
        if self.agent_program == Program::Upgraded(self.upgrades) {
            self.set_agent_program(now, self.program, todo);
        }
    }

    /// Has the agent run from that program. The old one is ended as if by a crash: told to stop
    /// it would take away the statuses, since it may be the last one (I69).
    fn set_agent_program(&mut self, now: Instant, program: Program, todo: &mut Vec<Action>) {
        if self.agent_program != program {
            self.agent_program = program;
            if self.agent == AgentState::Alive {
                self.agent = AgentState::Stopping(now + AGENT);
                todo.push(Action::End(Who::Agent));
            }
        }
    }

    /// Links the agent and those proxies that speak the same.
    fn link(&mut self, now: Instant, todo: &mut Vec<Action>) {
        let Some(spoken) = self.agent_protocol else { return };
        for (number, proxy) in &mut self.proxies {
            if proxy.wants(spoken) && proxy.relink.is_none_or(|at| at <= now) {
                (proxy.linked, proxy.relink) = (true, Some(now + RELINK));
                todo.push(Action::Link(*number));
            }
        }
        // The new proxy speaks another protocol: the agent is upgraded with it.
        let candidate = self.candidate.and_then(|(number, _)| self.proxies.get(&number)?.protocol);
        if candidate.is_some_and(|protocol| protocol != spoken) {
            self.set_agent_program(now, Program::Upgraded(self.upgrades), todo);
        }
    }

    fn ready(&mut self, now: Instant, number: u64, todo: &mut Vec<Action>) {
        let Some(proxy) = self.proxies.get_mut(&number).filter(|proxy| proxy.stage == Stage::Starting) else {
            return;
        };
        proxy.stage = Stage::Serving;
        if self.candidate.is_some_and(|(candidate, _)| candidate == number) {
            self.candidate = None;
            self.program = Program::Upgraded(self.upgrades);
            self.proxy_due = None;
            if let Some(old) = self.current.replace(number) {
                self.drain(now, old, todo);
            }
        }
        todo.push(Action::Relieve);
    }

    fn drain(&mut self, now: Instant, number: u64, todo: &mut Vec<Action>) {
        if let Some(proxy) = self.proxies.get_mut(&number)
            && !matches!(proxy.stage, Stage::Draining(_))
        {
            proxy.stage = Stage::Draining(now + self.times.drain + MARGIN);
            todo.push(Action::Drain(number));
        }
    }

    /// Takes no more connections.
    fn release(&mut self, now: Instant, todo: &mut Vec<Action>) {
        todo.push(Action::Release);
        self.candidate = None;
        self.current = None;
        self.proxy_due = None;
        let numbers: Vec<u64> = self.proxies.keys().copied().collect();
        for number in numbers {
            self.drain(now, number, todo);
        }
        if let Phase::Stopping { released, .. } = &mut self.phase {
            *released = true;
        }
    }

    /// When connections are taken no more, if that is decided.
    fn release_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Stopping { since, released: false } => {
                Some(since + if self.successor { self.times.drain } else { self.times.delay })
            }
            Phase::Running | Phase::Retired | Phase::Stopping { .. } => None,
        }
    }

    fn stop(&mut self, now: Instant, todo: &mut Vec<Action>) {
        if matches!(self.phase, Phase::Stopping { .. }) {
            // Said twice: at once.
            self.end_all(todo);
            todo.push(Action::Exit(true));
            return;
        }
        let released = self.phase == Phase::Retired;
        self.phase = Phase::Stopping { since: now, released };
        self.proxy_due = None;
        match self.agent {
            AgentState::Alive => {
                self.agent = AgentState::Stopping(now + AGENT);
                todo.push(Action::StopAgent);
            }
            AgentState::Waiting(_) => self.agent = AgentState::Gone,
            AgentState::Stopping(_) | AgentState::Gone => {}
        }
        if let Some((number, _)) = self.candidate.take() {
            self.proxies.remove(&number);
            todo.push(Action::End(Who::Proxy(number)));
        }
    }

    fn end_all(&mut self, todo: &mut Vec<Action>) {
        todo.extend(self.proxies.keys().map(|number| Action::End(Who::Proxy(*number))));
        if matches!(self.agent, AgentState::Alive | AgentState::Stopping(_)) {
            todo.push(Action::End(Who::Agent));
        }
    }

    /// What time asks for.
    fn due(&mut self, now: Instant, todo: &mut Vec<Action>) {
        self.agent_restarts.settle(now);
        self.proxy_restarts.settle(now);
        match self.agent {
            AgentState::Waiting(at) if at <= now => {
                self.agent = AgentState::Alive;
                self.agent_restarts.started(now);
                todo.push(Action::Start(Who::Agent, self.agent_program));
            }
            AgentState::Stopping(until) if until <= now => {
                self.agent = AgentState::Stopping(now + AGENT);
                todo.push(Action::End(Who::Agent));
            }
            AgentState::Waiting(_) | AgentState::Stopping(_) | AgentState::Alive | AgentState::Gone => {}
        }
        if self.proxy_due.is_some_and(|at| at <= now) {
            self.start_current(now, todo);
        }
        self.link(now, todo);
        if let Some((number, until)) = self.candidate
            && until <= now
        {
            self.proxies.remove(&number);
            todo.push(Action::End(Who::Proxy(number)));
            self.give_up_upgrade(now, todo);
        }
        if self.release_at().is_some_and(|at| at <= now) {
            self.release(now, todo);
        }
        let overdue = |proxy: &Proxy| matches!(proxy.stage, Stage::Draining(until) if until <= now);
        let numbers: Vec<u64> =
            self.proxies.iter().filter(|(_, proxy)| overdue(proxy)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.proxies.remove(&number);
            todo.push(Action::End(Who::Proxy(number)));
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
