//! Taking over from a kube-proxy: what the reconciler does about netfilter's flows (S82), and
//! the thread that looks at them.
//!
//! Before any hook is attached, the flows that netfilter translates are looked at once and
//! written down, and *every* TCP packet in mid-flow that we know no flow of is left to it
//! until a look that began after the hooks were in place has found the rest. From then on the
//! flows that were found are left to it, one by one, until they end. As long as there are any,
//! [`Netfilter::hold`] sees to it that they outlive kube-proxy's rules.

use super::Reconciler;
use crate::board::agent_problem;
use crate::netfilter::{Netfilter, TABLE, Translated};
use crate::problem::Problem;
use crate::takeover::{Carried, Judged, Surroundings, Takeover, judge};
use lb_common::abi::{Addr, FlowKey, NodeFlags};
use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Between two looks while hooks wait for one, or flows may have been missed.
const SOON: Duration = Duration::from_millis(250);
/// While there are flows: a UDP one whose backend goes stays there no longer than that.
const OFTEN: Duration = Duration::from_secs(2);
/// While there are none.
const SELDOM: Duration = Duration::from_secs(30);
/// The pause after a long look is so many times as long, unless something waits for the next.
const SHARE: u32 = 20;
/// How long hooks wait for the first look.
const PATIENCE: Duration = Duration::from_secs(5);
/// A packet that was on its way as the last hook was attached has reached conntrack by then.
const ON_ITS_WAY: Duration = Duration::from_millis(100);

/// What one look at netfilter saw.
#[derive(Debug)]
pub struct Seen {
    pub began: Instant,
    /// Flows whose destination is translated, or why they cannot be read.
    pub flows: Result<Vec<Translated>, String>,
    /// Whether our table is there.
    pub held: bool,
    /// What kube-proxy has in the kernel.
    pub rules: Vec<String>,
    /// Why our table cannot be made or removed, or rules cannot be read.
    pub trouble: Option<String>,
}

/// What the thread is to do, and when it is to look again.
#[derive(Debug)]
pub(super) struct Order {
    /// `None`: nobody knows yet.
    hold: Option<bool>,
    forget: Vec<FlowKey>,
    pause: Duration,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Nothing was seen yet, and hooks wait.
    #[default]
    Looking,
    /// Hooks may be attached: what comes meanwhile is held.
    Holding(Option<Instant>),
    /// All flows of before are known.
    Following,
    /// Nobody looks, netfilter cannot be looked at, or the first look takes too long; hooks were
    /// attached at this time.
    Blind(Option<Instant>),
}

/// The reconciler's part.
#[derive(Debug, Default)]
pub(super) struct Following {
    orders: Option<Sender<Order>>,
    stage: Stage,
    since: Option<Instant>,
    seen: Option<Seen>,
    known: BTreeSet<FlowKey>,
    /// Flows were judged at least once.
    judged: bool,
    /// There are entries in the map.
    entries: bool,
    pub(super) told: Takeover,
}

/// Starts the thread; what it sees comes by `seen`.
pub(super) fn spawn(seen: mpsc::Sender<Seen>) -> std::io::Result<Sender<Order>> {
    let (orders, ordered) = channel();
    std::thread::Builder::new().name("netfilter".into()).spawn(move || run(&seen, &ordered))?;
    Ok(orders)
}

fn run(seen: &mpsc::Sender<Seen>, orders: &Receiver<Order>) {
    let mut netfilter = Netfilter::default();
    let mut trouble = None;
    loop {
        let began = Instant::now();
        let flows = netfilter.translated().map_err(|error| error.to_string());
        let rules = netfilter.kube_proxy();
        let held = netfilter.held();
        let look = Seen {
            began,
            flows,
            held: *held.as_ref().unwrap_or(&false),
            trouble: trouble.take().or_else(|| rules.as_ref().err().map(ToString::to_string)),
            rules: rules.unwrap_or_default(),
        };
        let took = began.elapsed();
        if seen.blocking_send(look).is_err() {
            return;
        }
        // The next look waits for what was made of this one, but not for ever.
        let mut pause = SELDOM;
        let mut end = Instant::now() + pause;
        loop {
            match orders.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    let done = netfilter
                        .forget(&order.forget)
                        .and_then(|()| order.hold.map_or(Ok(()), |hold| netfilter.hold(hold)));
                    trouble = done.err().map(|error| error.to_string());
                    pause = if order.pause == SOON { SOON } else { order.pause.max(took * SHARE) };
                    end = Instant::now() + pause;
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

impl Following {
    /// Goes on where an earlier agent was.
    pub(super) fn over(known: impl Iterator<Item = FlowKey>) -> Self {
        Self { known: known.collect(), ..Self::default() }
    }

    /// From now on somebody looks.
    pub(super) fn start(&mut self, orders: Sender<Order>) {
        self.orders = Some(orders);
    }

    /// Until when hooks and facts wait for the first look; `None`: they need not.
    pub(super) fn waits(&mut self, now: Instant) -> Option<Instant> {
        if self.stage != Stage::Looking {
            return None;
        }
        let due = *self.since.get_or_insert(now) + PATIENCE;
        if self.orders.is_some() && now < due {
            return Some(due);
        }
        self.stage = Stage::Blind(None);
        None
    }

    /// What the programs are told.
    pub(super) fn flags(&self) -> NodeFlags {
        match self.stage {
            Stage::Holding(_) => NodeFlags::FOREIGN.with(NodeFlags::HOLD),
            Stage::Following if self.entries => NodeFlags::FOREIGN,
            Stage::Looking | Stage::Following | Stage::Blind(_) => NodeFlags::default(),
        }
    }

    /// Hooks were attached.
    pub(super) fn attached(&mut self, now: Instant) {
        match &mut self.stage {
            Stage::Holding(at @ None) | Stage::Blind(at @ None) => *at = Some(now),
            Stage::Holding(Some(_)) | Stage::Blind(Some(_)) | Stage::Looking | Stage::Following => {}
        }
    }

    /// Goes on after a look that could be written down.
    fn advance(&mut self, began: Instant) {
        self.stage = match self.stage {
            Stage::Looking => Stage::Holding(None),
            Stage::Blind(attached) => Stage::Holding(attached),
            Stage::Holding(Some(attached)) if began > attached + ON_ITS_WAY => Stage::Following,
            stage @ (Stage::Holding(_) | Stage::Following) => stage,
        };
    }

    fn pause(&self) -> Duration {
        match self.stage {
            Stage::Looking | Stage::Holding(_) => SOON,
            // What is ordered now is to be seen done.
            Stage::Following if self.told.held != self.told.carried.any() => SOON,
            Stage::Following | Stage::Blind(_) if self.entries => OFTEN,
            Stage::Following | Stage::Blind(_) => SELDOM,
        }
    }

    fn order(&self, forget: Vec<FlowKey>) {
        if let Some(orders) = &self.orders {
            // A thread that is gone looks at nothing any more.
            let hold = self.judged.then_some(self.told.carried.any());
            let _gone = orders.send(Order { hold, forget, pause: self.pause() });
        }
    }
}

impl Reconciler {
    /// Takes a look; the coming round does what follows from it.
    pub fn set_seen(&mut self, seen: Seen) {
        if self.objects.ready_l4() && self.tables_known {
            self.following.seen = Some(seen);
        } else {
            // Nothing to compare it with yet, and it would be old by then.
            self.following.order(Vec::new());
        }
    }

    /// Writes down what was seen, before hooks and facts are looked after.
    pub(super) fn follow_netfilter(&mut self) {
        let Some(seen) = self.following.seen.take() else { return };
        let mut problems = Vec::new();
        let mut forget = Vec::new();
        match seen.flows {
            Ok(flows) => {
                let judged = self.judge(&flows);
                match self.datapath.set_foreign(&judged.foreign) {
                    Ok(()) => self.following.advance(seen.began),
                    Err(error) => problems.push(problem(format!(
                        "flows of netfilter's cannot be written down, so they may end: {error:#}; tried again"
                    ))),
                }
                problems.extend((judged.beyond > 0).then(|| {
                    problem(format!("{} flows of netfilter's find no room and may end", judged.beyond))
                }));
                let before = self.following.told.carried;
                if before.any() != judged.carried.any() {
                    let Carried { tcp, udp } = judged.carried;
                    tracing::info!(tcp, udp, "flows of a kube-proxy that netfilter goes on with");
                }
                self.following.judged = true;
                self.following.entries = !judged.foreign.is_empty();
                self.following.told.carried = judged.carried;
                self.following.known = judged.originals;
                forget = judged.stale;
            }
            Err(error) => {
                problems.push(problem(format!("flows of netfilter's cannot be read: {error}")));
                if self.following.stage == Stage::Looking {
                    self.following.stage = Stage::Blind(None);
                }
            }
        }
        let told = &mut self.following.told;
        told.held = seen.held;
        problems.extend(rules_problem(&seen.rules, told.carried));
        told.rules = seen.rules;
        if told.carried.any() {
            problems.extend(seen.trouble.map(|trouble| {
                problem(format!(
                    "table inet {TABLE}: {trouble}: open connections of kube-proxy's may end with its rules"
                ))
            }));
        }
        self.problems.set_takeover(problems);
        self.following.order(forget);
    }

    fn judge(&self, flows: &[Translated]) -> Judged {
        let local = |addr: &Addr| self.tables.local.contains(&(*addr).into());
        let around = Surroundings {
            frontends: self.planner.frontends(),
            backends: self.planner.backends(),
            is_local: &local,
        };
        let room = self.datapath.capacity().flows as usize;
        judge(flows, &self.following.known, &around, self.datapath.now(), room)
    }
}

fn problem(reason: String) -> Problem {
    agent_problem("takeover", reason)
}

/// kube-proxy's rules do no harm beside Weir, whose hooks come first; but nobody keeps them
/// current if kube-proxy itself is gone.
fn rules_problem(rules: &[String], carried: Carried) -> Option<Problem> {
    let [first, more @ ..] = rules else { return None };
    let and = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    let flows = if carried.any() { ", its open connections go on" } else { "" };
    Some(problem(format!(
        "kube-proxy's rules are on this node ({first}{and}): Weir comes first, so they do no harm while kube-proxy \
         keeps them current; if it is to go or is gone, run `kube-proxy --cleanup` here{flows}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_wait_for_the_first_look_and_hold_until_one_began_after_them() {
        let (orders, _thread) = channel();
        let mut following = Following::default();
        following.start(orders);
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(following.waits(start), Some(start + PATIENCE));
        assert_eq!(following.flags(), NodeFlags::default());
        following.advance(after(10));
        assert_eq!(following.waits(after(20)), None);
        assert!(following.flags().has(NodeFlags::FOREIGN.with(NodeFlags::HOLD)));
        following.advance(after(25));
        assert!(following.flags().has(NodeFlags::HOLD), "nothing is attached yet");
        following.attached(after(30));
        following.advance(after(120));
        assert!(following.flags().has(NodeFlags::HOLD), "a packet may be on its way");
        following.advance(after(131));
        assert_eq!(following.flags(), NodeFlags::default());
        following.entries = true;
        assert_eq!(following.flags(), NodeFlags::FOREIGN);
        following.attached(after(140));
        assert_eq!(following.flags(), NodeFlags::FOREIGN, "later hooks change nothing");
    }

    #[test]
    fn hooks_do_not_wait_where_nobody_looks_or_for_ever() {
        let start = Instant::now();
        assert_eq!(Following::default().waits(start), None);
        let (orders, _thread) = channel();
        let mut following = Following::default();
        following.start(orders);
        assert!(following.waits(start).is_some());
        let late = start + PATIENCE;
        assert_eq!(following.waits(late), None);
        following.attached(late);
        following.advance(late + SOON);
        assert!(following.flags().has(NodeFlags::HOLD), "a look that came late counts");
        following.advance(late + SOON + SOON);
        assert_eq!(following.stage, Stage::Following, "and the next one ends the hold");
    }
}
