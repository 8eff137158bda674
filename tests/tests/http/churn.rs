//! Everything changes at once, and no client notices (I71, I73, H56, H57).

use lab::attack::load::{self, Count, Pace};
use lab::attack::rig::{HOST, Rig, SECURE};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Clients of each kind; together 1,000 requests in a second, as long as an answer takes less
/// than 50 ms in the mean. Who falls behind catches up.
const CLIENTS: u32 = 25;
const REQUESTS_EACH: u32 = 20;
const STREAMS: usize = 20;
const TUNNELS: usize = 50;

/// What the supervisor waits before it starts a process that ends again and again, in
/// milliseconds (docs/processes.md): kills a second apart are such ends.
const WAITS: [u64; 5] = [0, 100, 200, 400, 800];

/// What all clients saw.
#[derive(Default, Debug)]
struct Counts {
    http1: Count,
    http2: Count,
    streams: Count,
    tunnels: Count,
}

impl Counts {
    fn all(&self) -> [(&'static str, &Count); 4] {
        [("h1", &self.http1), ("h2", &self.http2), ("streams", &self.streams), ("tunnels", &self.tunnels)]
    }

    fn failed(&self) -> Vec<String> {
        let all = self.all().into_iter();
        all.flat_map(|(kind, count)| count.failed().into_iter().map(move |why| format!("{kind}: {why}")))
            .collect()
    }
}

/// Stops the clients when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs the clients while `change` changes things.
fn under_load(rig: &Rig, change: impl FnOnce(&Counts)) -> Counts {
    let counts = Counts::default();
    let stop = Arc::new(AtomicBool::new(false));
    let pace = |every, offset| Pace { stop: Arc::clone(&stop), every, offset };
    let period = Duration::from_secs(1) / REQUESTS_EACH;
    // One request a millisecond, not all of them at once.
    let each: Vec<_> = (0..CLIENTS).map(|number| pace(period, period * number / CLIENTS)).collect();
    let slowly = pace(Duration::from_millis(200), Duration::ZERO);
    let began = Instant::now();
    let mut took = Duration::ZERO;
    std::thread::scope(|scope| {
        for each in &each {
            scope.spawn(|| load::http1(each, &counts.http1, HOST, || rig.connect()));
            scope.spawn(|| load::http2(each, &counts.http2, SECURE, || rig.h2()));
        }
        for _ in 0..STREAMS {
            scope.spawn(|| load::streaming(&slowly, &counts.streams, SECURE, || rig.h2()));
        }
        scope.spawn(|| load::tunnels(&slowly, &counts.tunnels, HOST, TUNNELS, || rig.connect()));
        // However this ends, the clients end with it.
        let _stop = Stop(&stop);
        std::thread::sleep(Duration::from_secs(1));
        change(&counts);
        std::thread::sleep(Duration::from_secs(1));
        took = began.elapsed();
    });
    for (kind, count) in counts.all() {
        println!("{kind}: {} served, {} failed", count.served(), count.failed().len());
    }
    let requests = counts.http1.served() + counts.http2.served();
    println!("{:.0} requests/s of 1,000, beside streams and tunnels", requests as f64 / took.as_secs_f64());
    counts
}

/// Waits until there is a process of a role with another id.
fn successor(rig: &Rig, role: &str, old: u32) -> u32 {
    lab::wait::until(&format!("another {role}"), Duration::from_secs(20), || {
        let pid = rig.role(role)?;
        anyhow::ensure!(pid != old, "the old one");
        Ok(pid)
    })
    .unwrap()
}

#[test]
fn change_upgrade_and_the_agents_death_cost_no_request() {
    let rig = Rig::start(BTreeMap::new(), &["--drain-timeout", "120s"]).unwrap();
    let began = Instant::now();
    let counts = under_load(&rig, |_| {
        for number in 0..200 {
            rig.edit_routes(number).unwrap();
            std::thread::sleep(Duration::from_millis(60));
            rig.flip_endpoints(number).unwrap();
            std::thread::sleep(Duration::from_millis(60));
            if number % 4 == 0 {
                rig.renew_certificate().unwrap();
            }
            if number % 20 == 10 {
                let old = rig.kill("agent").unwrap();
                successor(&rig, "agent", old);
            }
            if number % 60 == 30 {
                let old = rig.proxy_pid().unwrap();
                rig.upgrade_proxy().unwrap();
                successor(&rig, "proxy", old);
            }
        }
    });
    println!(
        "churn: 200 route edits, 200 endpoint flips, 50 certificates, 10 agents killed, 3 proxies, {:?}",
        began.elapsed()
    );
    let failed = counts.failed();
    let told = failed.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(failed.is_empty(), "{} failed:\n{told}\nlog:\n{}", failed.len(), rig.log());
    for (kind, count) in counts.all() {
        assert!(count.served() > 1_000, "{kind}: only {}", count.served());
    }
}

#[test]
fn a_killed_proxy_costs_what_was_in_flight_and_no_connection() {
    let rig = Rig::start(BTreeMap::new(), &[]).unwrap();
    let mut slowest = Duration::ZERO;
    let counts = under_load(&rig, |_| {
        for wait in WAITS {
            let old = rig.kill("proxy").unwrap();
            let killed = Instant::now();
            // Waits in the accept queue meanwhile; never refused.
            rig.probe().unwrap();
            slowest = slowest.max(killed.elapsed().saturating_sub(Duration::from_millis(wait)));
            successor(&rig, "proxy", old);
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    println!(
        "proxy killed 5 times: first answer after at most {slowest:?}, beside what the supervisor waits"
    );
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let refused: u64 = counts.all().iter().map(|(_, count)| count.refused()).sum();
    assert_eq!(refused, 0, "connections refused");
    for (kind, count) in counts.all() {
        // Each client had at most one exchange under way at each kill.
        let clients = match kind {
            "h1" | "h2" => CLIENTS as usize,
            "streams" => STREAMS,
            _ => TUNNELS,
        };
        let failed = count.failed();
        assert!(failed.len() <= 5 * clients, "{kind}: {} failed: {:?}", failed.len(), &failed[..10]);
    }
}
