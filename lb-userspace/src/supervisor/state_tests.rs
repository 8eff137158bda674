#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use Action::{Adopt, Drain, End, Exit, Link, Release, Relieve, Start, StopAgent};
use Event::{Asked, Done, Gone, Ready, Stop, Tick, Unlinked, Up, Upgrade};
use Program::{Own, Upgraded};
use Who::{Agent, Proxy as P};

const TIMES: Times = Times { delay: Duration::from_secs(3), drain: Duration::from_secs(240) };

/// A machine and its clock.
struct Run {
    machine: Machine,
    now: Instant,
}

const fn died(who: Who) -> Event {
    Event::Exited { who, failed: true }
}

const fn hello(who: Who, protocol: u64) -> Event {
    Event::Hello { who, protocol }
}

impl Run {
    fn new() -> Self {
        let now = Instant::now();
        let (machine, actions) = Machine::start(TIMES, now);
        assert_eq!(actions, [Adopt, Start(Agent, Own), Start(P(1), Own)]);
        Self { machine, now }
    }

    /// Everything works.
    fn serving() -> Self {
        let mut run = Self::new();
        run.does(&[(hello(Agent, 7), &[]), (hello(P(1), 7), &[Link(1)]), (Up, &[]), (Ready(1), &[Relieve])]);
        // Long enough for what ends later to count as the first time.
        run.after(60, &[]);
        run
    }

    fn does(&mut self, steps: &[(Event, &[Action])]) {
        for (number, (event, actions)) in steps.iter().enumerate() {
            assert_eq!(self.machine.step(self.now, *event), *actions, "step {number}, {event:?}: {self:?}");
        }
    }

    /// What comes of so many seconds, at the moments that the machine asks for.
    fn after(&mut self, seconds: u64, wanted: &[Action]) {
        let until = self.now + Duration::from_secs(seconds);
        let mut actions = Vec::new();
        for _ in 0..100 {
            let Some(wake) = self.machine.next_wake().filter(|wake| *wake <= until) else {
                self.now = until;
                assert_eq!(actions, wanted, "{self:?}");
                return;
            };
            self.now = self.now.max(wake);
            actions.extend(self.machine.step(self.now, Tick));
        }
        panic!("a busy loop: {self:?}");
    }
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.machine.fmt(f)
    }
}

#[test]
fn what_ends_is_started_again_at_once_and_linked_anew() {
    let mut run = Run::serving();
    run.does(&[
        (died(P(1)), &[Start(P(2), Own)]),
        (hello(P(2), 7), &[Link(2)]),
        (Ready(2), &[Relieve]),
        (died(Agent), &[Start(Agent, Own)]),
        (hello(Agent, 7), &[Link(2)]),
        (Up, &[]),
    ]);
    assert_eq!((run.machine.restarts(), run.machine.trouble()), ((1, 1), None));
}

#[test]
fn a_link_that_fails_is_made_anew_while_both_ends_live() {
    let mut run = Run::serving();
    run.does(&[
        (Unlinked(1), &[Link(1)]),
        (Unlinked(9), &[]),
        // One that asks over and over costs the agent no more than a table a second.
        (Unlinked(1), &[]),
        (Unlinked(1), &[]),
    ]);
    run.after(3, &[Link(1)]);
    run.does(&[
        (died(Agent), &[Start(Agent, Own)]),
        (Unlinked(1), &[]),
        (hello(Agent, 7), &[Link(1)]),
        (Stop, &[StopAgent]),
    ]);
    run.after(4, &[Release, Drain(1)]);
    run.does(&[(Unlinked(1), &[])]);
}

#[test]
fn a_crash_loop_is_told_and_slows_down_and_is_forgotten() {
    let mut run = Run::serving();
    run.does(&[(died(P(1)), &[Start(P(2), Own)]), (died(P(2)), &[])]);
    assert!(run.machine.trouble().unwrap().contains("proxy ended 2 times"));
    run.after(1, &[Start(P(3), Own)]);
    run.does(&[(hello(P(3), 7), &[Link(3)]), (Ready(3), &[Relieve])]);
    run.after(11, &[]);
    assert_eq!(run.machine.trouble(), None);
    run.does(&[(died(P(3)), &[Start(P(4), Own)])]);
}

#[test]
fn an_agent_that_never_worked_is_a_failure_and_one_that_did_is_not() {
    let mut run = Run::new();
    run.does(&[(died(Agent), &[End(P(1)), Exit(false)])]);
    let mut run = Run::new();
    run.does(&[(Up, &[]), (died(Agent), &[Start(Agent, Own)]), (died(Agent), &[])]);
    run.after(1, &[Start(Agent, Own)]);
    let mut run = Run::new();
    run.does(&[(Event::Exited { who: Agent, failed: false }, &[Start(Agent, Own)])]);
}

#[test]
fn an_upgrade_drains_the_old_proxy_when_the_new_one_serves() {
    let mut run = Run::serving();
    run.does(&[
        (Upgrade, &[Start(P(2), Upgraded(1))]),
        (Upgrade, &[]),
        (hello(P(2), 7), &[Link(2)]),
        (Ready(2), &[Drain(1), Relieve]),
        (Event::Exited { who: P(1), failed: false }, &[]),
        // From now on the new program is the one, whatever comes to its path later.
        (died(P(2)), &[Start(P(3), Upgraded(1))]),
        (hello(P(3), 7), &[Link(3)]),
        (Ready(3), &[Relieve]),
        // The agent speaks the same and stays what it is, also when the next one fails.
        (Upgrade, &[Start(P(4), Upgraded(2))]),
        (died(P(4)), &[]),
        (died(Agent), &[Start(Agent, Own)]),
    ]);
    assert_eq!(run.machine.restarts(), (1, 1));
    assert!(run.machine.needs(1) && !run.machine.needs(2));
}

#[test]
fn an_upgrade_that_fails_leaves_the_old_proxy_alone() {
    let mut run = Run::serving();
    run.does(&[(Upgrade, &[Start(P(2), Upgraded(1))]), (died(P(2)), &[])]);
    run.does(&[(Upgrade, &[Start(P(3), Upgraded(2))]), (hello(P(3), 7), &[Link(3)])]);
    run.after(59, &[]);
    run.after(2, &[End(P(3))]);
    run.does(&[(died(P(3)), &[]), (Ready(3), &[]), (died(P(1)), &[Start(P(4), Own)])]);
}

#[test]
fn an_upgrade_to_another_protocol_takes_the_agent_along_and_back() {
    let mut run = Run::serving();
    run.does(&[
        (Upgrade, &[Start(P(2), Upgraded(1))]),
        (hello(P(2), 8), &[End(Agent)]),
        (Event::Exited { who: Agent, failed: false }, &[Start(Agent, Upgraded(1))]),
        // The old proxy keeps the table that it has.
        (hello(Agent, 8), &[Link(2)]),
        (died(P(2)), &[End(Agent)]),
        (Event::Exited { who: Agent, failed: false }, &[Start(Agent, Own)]),
        (hello(Agent, 7), &[Link(1)]),
        (Upgrade, &[Start(P(3), Upgraded(2))]),
        (hello(P(3), 8), &[End(Agent)]),
        (Event::Exited { who: Agent, failed: false }, &[Start(Agent, Upgraded(2))]),
        (hello(Agent, 8), &[Link(3)]),
        (Ready(3), &[Drain(1), Relieve]),
        (died(Agent), &[Start(Agent, Upgraded(2))]),
    ]);
    assert_eq!(run.machine.restarts(), (1, 0));
}

#[test]
fn the_end_waits_for_load_balancers_then_drains() {
    let mut run = Run::serving();
    run.does(&[(Stop, &[StopAgent]), (Event::Exited { who: Agent, failed: false }, &[])]);
    run.after(2, &[]);
    run.after(2, &[Release, Drain(1)]);
    run.does(&[(Event::Exited { who: P(1), failed: false }, &[Exit(true)])]);
}

#[test]
fn a_second_wish_to_end_and_processes_that_hang_end_at_once() {
    let mut run = Run::serving();
    run.does(&[(Stop, &[StopAgent]), (Stop, &[End(P(1)), End(Agent), Exit(true)])]);
    let mut run = Run::serving();
    run.does(&[(Stop, &[StopAgent])]);
    run.after(15, &[Release, Drain(1), End(Agent)]);
    run.does(&[(died(Agent), &[])]);
    run.after(300, &[End(P(1)), Exit(true)]);
}

#[test]
fn the_end_waits_for_a_successor_that_makes_itself_ready() {
    let mut run = Run::serving();
    run.does(&[(Asked, &[]), (Stop, &[StopAgent]), (Event::Exited { who: Agent, failed: false }, &[])]);
    run.after(100, &[]);
    run.does(&[(Done, &[Release, Drain(1)]), (Event::Exited { who: P(1), failed: false }, &[Exit(true)])]);

    // It goes away again, or never comes so far.
    let mut run = Run::serving();
    run.does(&[(Asked, &[]), (Stop, &[StopAgent])]);
    run.after(5, &[]);
    run.does(&[(Gone, &[Release, Drain(1)])]);
    let mut run = Run::serving();
    run.does(&[(Asked, &[]), (Stop, &[StopAgent]), (died(Agent), &[])]);
    run.after(239, &[]);
    run.after(2, &[Release, Drain(1)]);
}

#[test]
fn who_was_relieved_waits_for_its_end_and_comes_back_when_it_holds_the_node() {
    let mut run = Run::serving();
    run.does(&[
        (died(Agent), &[Start(Agent, Own)]),
        (Asked, &[]),
        (Done, &[Release, Drain(1)]),
        (died(P(1)), &[]),
        (died(Agent), &[]),
    ]);
    run.after(1, &[Start(Agent, Own)]);
    run.does(&[
        (Up, &[Adopt, Start(P(2), Own)]),
        (hello(Agent, 7), &[]),
        (hello(P(2), 7), &[Link(2)]),
        (Ready(2), &[Relieve]),
    ]);
    let mut run = Run::serving();
    run.does(&[
        (Done, &[Release, Drain(1)]),
        (Stop, &[StopAgent]),
        (Event::Exited { who: P(1), failed: false }, &[]),
        (Event::Exited { who: Agent, failed: false }, &[Exit(true)]),
    ]);
}
