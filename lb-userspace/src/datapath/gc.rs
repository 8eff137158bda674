//! Ends flows that have been idle for too long.
//!
//! Closed flows leave the confirmed map by themselves (see `lb_common::path`); this sweep
//! finds those that fell silent: UDP, and TCP peers that vanished. It runs beside the
//! packets, so whatever it decides on is looked at again before it is removed.

use super::hash::Hash;
use super::sockets::Ended;
use super::{Sweep, Sweeper, sys};
use lb_common::abi::{Flow, FlowFlags, FlowKey, Proto, Ticks, timeout};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Idle time after which a confirmed flow is over, in ticks.
pub(super) const fn limit(proto: Proto, flow: &Flow) -> u32 {
    if proto.0 != Proto::TCP.0 {
        timeout::UDP
    } else if flow.flags.has(FlowFlags::FIN) {
        timeout::TCP_HALF_CLOSED
    } else {
        timeout::TCP
    }
}

/// Whether an entry has been idle for longer than its flow may be.
pub(super) const fn idle(key: &FlowKey, flow: &Flow, now: Ticks) -> bool {
    now.since(flow.seen) > limit(key.proto, flow)
}

/// Whether both directions agree that the flow is over. A missing second entry counts as
/// silent: the pair is committed together, so one alone is of no use.
pub(super) fn over(key: &FlowKey, flow: &Flow, pair: Option<&Flow>, now: Ticks) -> bool {
    idle(key, flow, now)
        && pair.is_none_or(|pair| {
            let shorter = limit(key.proto, flow).min(limit(key.proto, pair));
            now.since(pair.seen) > shorter
        })
}

/// Entries of the flow maps, as the last sweep counted them.
#[derive(Debug, Default)]
pub(super) struct Used {
    pub(super) flows: AtomicU32,
    pub(super) transient: AtomicU32,
}

/// Sweeps the kernel's flow maps, by descriptors of its own.
pub(super) struct FlowSweeper {
    pub(super) flows: Hash<FlowKey, Flow>,
    pub(super) transient: Hash<FlowKey, Flow>,
    pub(super) used: Arc<Used>,
    pub(super) ended: Arc<Ended>,
}

impl Sweeper for FlowSweeper {
    fn sweep(&mut self) -> Option<Sweep> {
        let now = Ticks::from_nanos(sys::monotonic_nanos());
        let mut sweep = Sweep::default();
        let mut silent = Vec::new();
        let (mut confirmed, mut transient) = (0, 0);
        // Before the confirmed ones: a flow that is confirmed meanwhile is counted twice, and
        // not in neither map, which would forget its Service under it.
        let read = self.transient.for_each(|_, flow| {
            transient += 1;
            // A silent leftover keeps no Service: it would be opened anew anyway.
            if !flow.flags.has(FlowFlags::REPLY) && now.since(flow.seen) < timeout::UDP {
                *sweep.flows.entry(flow.service).or_default() += 1;
            }
        });
        read.ok()?;
        let read = self.flows.for_each(|key, flow| {
            confirmed += 1;
            if idle(key, flow, now) {
                silent.push((*key, *flow));
            }
            if !flow.flags.has(FlowFlags::REPLY) {
                *sweep.flows.entry(flow.service).or_default() += 1;
            }
        });
        read.ok()?;
        for (key, flow) in silent {
            let pair_key = flow.pair(key.proto);
            let pair = self.flows.get(&pair_key);
            // Read again: a packet may have passed meanwhile.
            let Some(flow) = self.flows.get(&key) else { continue };
            if over(&key, &flow, pair.as_ref(), now) {
                for key in [key, pair_key] {
                    if self.flows.remove(&key).is_ok_and(|there| there) {
                        sweep.expired[usize::from(!key.destination.is_v4())] += 1;
                        confirmed -= 1;
                    }
                }
                if let Some(count) = sweep.flows.get_mut(&flow.service) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        sweep.flows.retain(|_, count| *count > 0);
        (sweep.sockets_ended, sweep.sockets_failure) = self.ended.take();
        self.used.flows.store(confirmed, Ordering::Relaxed);
        self.used.transient.store(transient, Ordering::Relaxed);
        Some(sweep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(seen: u32, flags: FlowFlags) -> Flow {
        Flow { seen: Ticks(seen), flags, ..Flow::default() }
    }

    #[test]
    fn a_flow_is_over_when_both_directions_are_silent() {
        let now = Ticks(1_000_000);
        let udp = FlowKey { proto: Proto::UDP, ..FlowKey::default() };
        let tcp = FlowKey { proto: Proto::TCP, ..FlowKey::default() };
        let none = FlowFlags::default();
        let (recent, minutes, hours, days) = (999_990, 999_700, 995_000, 900_000);
        for (name, key, own, pair, expected) in [
            ("udp, both silent", udp, flow(minutes, none), Some(flow(minutes, none)), true),
            ("udp, replies still come", udp, flow(minutes, none), Some(flow(recent, none)), false),
            ("udp, requests still come", udp, flow(recent, none), Some(flow(minutes, none)), false),
            ("udp, half an entry", udp, flow(minutes, none), None, true),
            ("tcp, silent for minutes", tcp, flow(minutes, none), Some(flow(minutes, none)), false),
            ("tcp, silent for a day", tcp, flow(days, none), Some(flow(days, none)), true),
            ("tcp, half closed", tcp, flow(hours, FlowFlags::FIN), Some(flow(hours, none)), true),
            (
                "tcp, half closed, other side sends",
                tcp,
                flow(hours, FlowFlags::FIN),
                Some(flow(recent, none)),
                false,
            ),
        ] {
            assert_eq!(over(&key, &own, pair.as_ref(), now), expected, "{name}");
        }
    }
}
