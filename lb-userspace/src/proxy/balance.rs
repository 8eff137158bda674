//! Which endpoint a request goes to: the less loaded of two drawn at random (I24).
//!
//! Straight to pods, over ready endpoints only (I20; the model leaves the others out). What is
//! ejected, and what this request has failed at already, is passed over while anything else is
//! left: when all are ejected, all are tried, since a wrong ejection must never be an outage.
//! Chance is an argument.

use crate::proxy::table::Endpoint;
use std::net::SocketAddr;
use std::sync::Arc;

/// Returns the endpoint for a request; none for an empty pool or when all were tried.
///
/// `random` gives numbers below its argument, which is never 0.
pub fn choose<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &[SocketAddr],
    now: u64,
    mut random: impl FnMut(usize) -> usize,
) -> Option<&'a Arc<Endpoint>> {
    match endpoints {
        [] => return None,
        [only] => return (!tried.contains(&only.address)).then_some(only),
        _ => {}
    }
    // The usual case: two draws, both usable.
    let one = endpoints.get(random(endpoints.len()))?;
    let mut at = random(endpoints.len() - 1);
    if endpoints.get(at)?.address == one.address {
        at = endpoints.len() - 1;
    }
    let two = endpoints.get(at)?;
    let usable = |endpoint: &Endpoint| !endpoint.is_ejected(now) && !tried.contains(&endpoint.address);
    match (usable(one), usable(two)) {
        (true, true) => return Some(if two.load() < one.load() { two } else { one }),
        (true, false) => return Some(one),
        (false, true) => return Some(two),
        (false, false) => {}
    }
    // Two draws hit what is out of use: look at all of them, from a place drawn at random, so
    // that equals share what is left.
    let from = random(endpoints.len());
    let all = || endpoints.iter().cycle().skip(from).take(endpoints.len());
    let least = |keep: &dyn Fn(&Endpoint) -> bool| all().filter(|e| keep(e)).min_by_key(|e| e.load());
    least(&usable).or_else(|| least(&|endpoint| !tried.contains(&endpoint.address)))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::proxy::table::InFlight;
    use std::time::Duration;

    fn endpoints(count: u8) -> Vec<Arc<Endpoint>> {
        (1..=count).map(|n| Arc::new(Endpoint::new(([10, 0, 0, n], 80).into()))).collect()
    }

    /// A small generator, the same at each run.
    fn random() -> impl FnMut(usize) -> usize {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        move |below| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        }
    }

    fn last(endpoint: &Arc<Endpoint>) -> u8 {
        match endpoint.address.ip() {
            std::net::IpAddr::V4(v4) => v4.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        }
    }

    #[test]
    fn an_empty_pool_has_no_answer() {
        assert!(choose(&[], &[], 0, random()).is_none());
    }

    #[test]
    fn the_less_loaded_of_two_is_chosen() {
        let all = endpoints(2);
        let _busy = all[0].begin();
        let mut random = random();
        for _ in 0..100 {
            assert_eq!(last(choose(&all, &[], 0, &mut random).unwrap()), 2);
        }
    }

    #[test]
    fn load_spreads_evenly() {
        let all = endpoints(10);
        let mut random = random();
        let held: Vec<InFlight> =
            (0..1000).map(|_| choose(&all, &[], 0, &mut random).unwrap().begin()).collect();
        assert_eq!(held.len(), 1000);
        for endpoint in &all {
            assert!((95..=105).contains(&endpoint.load()), "{endpoint:?}");
        }
    }

    #[test]
    fn the_ejected_and_the_tried_are_passed_over() {
        let all = endpoints(10);
        for endpoint in &all[..9] {
            endpoint.refused(0, Duration::from_secs(5));
        }
        let mut random = random();
        for _ in 0..100 {
            assert_eq!(last(choose(&all, &[], 1000, &mut random).unwrap()), 10);
        }
        // The one that is left was tried: an ejected one is better than none.
        let tried = [all[9].address];
        assert_ne!(last(choose(&all, &tried, 1000, &mut random).unwrap()), 10);
        let tried: Vec<SocketAddr> = all.iter().map(|endpoint| endpoint.address).collect();
        assert!(choose(&all, &tried, 1000, &mut random).is_none());
    }

    #[test]
    fn all_ejected_is_no_outage() {
        let all = endpoints(3);
        assert!(all.iter().all(|endpoint| endpoint.refused(0, Duration::from_secs(5))));
        assert!(choose(&all, &[], 1000, random()).is_some());
    }

    #[test]
    fn one_endpoint_is_not_tried_twice() {
        let all = endpoints(1);
        assert!(choose(&all, &[], 0, random()).is_some());
        assert!(choose(&all, &[all[0].address], 0, random()).is_none());
    }
}
