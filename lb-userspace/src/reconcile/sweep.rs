//! The thread that sweeps the flows, and what the reconciler does with what it saw.
//!
//! Reading all flows takes as long as there are many of them, so no round waits for it (S63).
//! What a sweep saw is of the time when it began: a frontend that was retired later may have
//! flows that it missed.

use super::{Reconciler, Round};
use crate::board::agent_problem;
use crate::datapath::{Datapath, Sweep, Sweeper};
use lb_common::abi::Reason;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How often flows are swept, at most.
const PAUSE: Duration = Duration::from_secs(5);
/// The pause after a long sweep is so many times as long: 2 % of one CPU.
const SHARE: u32 = 50;
/// Seconds for which a frontend must have been retired when a sweep begins: a packet that was
/// on its way through the programs may still have opened a flow.
const RETIRED: u64 = 2;

/// What a sweep saw, and when it began.
#[derive(Debug)]
pub struct Swept {
    pub began: Instant,
    pub took: Duration,
    pub sweep: Sweep,
}

/// Ends the thread when dropped.
pub(super) struct Sweeping {
    _stop: Sender<()>,
}

/// Starts the thread; its sweeps come by `done`.
pub(super) fn spawn(sweeper: Box<dyn Sweeper>, done: mpsc::Sender<Swept>) -> std::io::Result<Sweeping> {
    let (stop, stopped) = channel();
    std::thread::Builder::new().name("sweep".into()).spawn(move || run(sweeper, &done, &stopped))?;
    Ok(Sweeping { _stop: stop })
}

fn run(mut sweeper: Box<dyn Sweeper>, done: &mpsc::Sender<Swept>, stopped: &Receiver<()>) {
    let mut pause = PAUSE;
    while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        let began = Instant::now();
        let sweep = sweeper.sweep();
        let took = began.elapsed();
        pause = PAUSE.max(took * SHARE);
        if let Some(sweep) = sweep
            && done.blocking_send(Swept { began, took, sweep }).is_err()
        {
            return;
        }
    }
}

/// Packets that ever found no room for their flow.
pub(super) fn refused(datapath: &mut dyn Datapath) -> u64 {
    datapath.counters().get(Reason::FlowsFull.slot() as usize).copied().unwrap_or(0)
}

impl Reconciler {
    /// Takes a sweep; the coming round does what follows from it.
    pub fn set_swept(&mut self, swept: Swept) {
        self.swept = Some(swept);
    }

    /// Forgets retired frontends without a flow, and Service ids without a frontend.
    pub(super) fn forget_unused(&mut self, swept: &Swept, round: &mut Round) {
        self.metrics.swept(swept.took, swept.sweep.expired);
        self.metrics.sockets_ended(swept.sweep.sockets_ended);
        let began = swept.began.saturating_duration_since(self.started).as_secs();
        let idle: Vec<_> = self
            .planner
            .retired()
            .filter(|(_, service, since)| {
                since + RETIRED < began && swept.sweep.flows.get(service).copied().unwrap_or(0) == 0
            })
            .map(|(key, ..)| key)
            .collect();
        for key in idle {
            let ops = self.planner.forget(&key);
            self.apply_loose(&ops, round);
        }
        let ops = self.planner.sweep();
        self.apply_loose(&ops, round);
        self.tell_refused_flows(swept.sweep.sockets_failure.as_deref());
    }

    /// Says so when flows have been refused since the last sweep for want of room (H52), and why
    /// sockets stay with backends that are gone (S64).
    fn tell_refused_flows(&mut self, sockets: Option<&str>) {
        let refused = refused(self.datapath.as_mut());
        let more = refused > std::mem::replace(&mut self.flows_refused, refused);
        let room = self.datapath.capacity().flows / 2;
        let refused = more.then(|| {
            agent_problem(
                "--conntrack-max",
                format!("there is room for {room} open flows and it is used up: new flows are refused"),
            )
        });
        let sockets = sockets.map(|error| {
            agent_problem(
                "sockets",
                format!("connected UDP sockets of the host stay with backends that are gone: {error}"),
            )
        });
        self.problems.set_flows(refused.into_iter().chain(sockets).collect());
    }
}
