//! Deadlines of one worker, all kept by one coarse clock.
//!
//! A timer for each read and write would cost more than the read. Here a deadline is a number
//! in a table: moving it is a store. A tick of the worker looks over the table and wakes the
//! tasks whose number has passed. Deadlines are late by up to one tick and never early.

use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// How often the table is looked over.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// The table, and the clock: milliseconds since the engine's start.
pub(super) struct Deadlines {
    started: Instant,
    now: Cell<u64>,
    slots: RefCell<Slab<Slot>>,
}

struct Slot {
    /// `NEVER`: not set.
    at: u64,
    waker: Option<Waker>,
}

const NEVER: u64 = u64::MAX;

/// One deadline; gone from the table when dropped.
pub(super) struct Deadline {
    all: Rc<Deadlines>,
    key: usize,
}

impl Deadlines {
    pub(super) fn new(started: Instant) -> Rc<Self> {
        let all = Self { started, now: Cell::new(0), slots: RefCell::default() };
        all.read_clock();
        Rc::new(all)
    }

    /// Milliseconds, as of the last tick.
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(super) fn add(self: &Rc<Self>) -> Deadline {
        let key = self.slots.borrow_mut().insert(Slot { at: NEVER, waker: None });
        Deadline { all: Rc::clone(self), key }
    }

    /// Wakes every task whose deadline has passed, once.
    pub(super) fn tick(&self) {
        self.read_clock();
        let now = self.now();
        let mut woken = Vec::new();
        for (_, slot) in &mut *self.slots.borrow_mut() {
            if slot.at <= now {
                woken.extend(slot.waker.take());
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    fn read_clock(&self) {
        self.now.set(millis(self.started.elapsed()));
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NEVER)
}

impl Deadline {
    /// Sets it to a time from now, over what was set before.
    pub(super) fn set(&self, after: Duration) {
        // The clock may be a tick behind: never early.
        let at = self.all.now().saturating_add(millis(after + TICK)).min(NEVER - 1);
        self.put(at);
    }

    pub(super) fn clear(&self) {
        self.put(NEVER);
    }

    fn put(&self, at: u64) {
        if let Some(slot) = self.all.slots.borrow_mut().get_mut(self.key) {
            slot.at = at;
        }
    }

    /// Tells whether it has passed; if not, the task is woken when it does, whenever that is.
    pub(super) fn poll(&self, cx: &Context<'_>) -> bool {
        let now = self.all.now();
        let mut slots = self.all.slots.borrow_mut();
        let Some(slot) = slots.get_mut(self.key) else { return false };
        if slot.at <= now {
            return true;
        }
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        false
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // Not while the table is borrowed: the waker may be a task's last reference.
        let slot = self.all.slots.borrow_mut().try_remove(self.key);
        drop(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_deadline_wakes_once_and_not_early() {
        let all = Deadlines::new(Instant::now() - Duration::from_secs(100));
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let deadline = all.add();
        assert!(!deadline.poll(&cx));

        deadline.set(Duration::from_secs(60));
        assert!(!deadline.poll(&cx));
        all.tick();
        assert_eq!(count.0.load(Ordering::Relaxed), 0);

        deadline.put(all.now());
        all.tick();
        all.tick();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(deadline.poll(&cx));

        deadline.clear();
        assert!(!deadline.poll(&cx));
        drop(deadline);
        assert!(all.slots.borrow().is_empty());
    }
}
