//! What `cargo xtask cluster test` asks of a real cluster, one scenario after the other, each
//! with the figures that it saw.
//!
//! The cluster is up ([`crate::cluster`]), Weir is installed from `deploy/`. A scenario leaves
//! the cluster as it found it; one that fails says why, and the others are still asked.

mod install;
mod outage;
mod place;
mod privileges;
mod rollout;
mod stage;
mod takeover;
mod uninstall;
mod watch;

use crate::cluster::Cluster;
use anyhow::{Result, bail};
use stage::Stage;
use std::path::PathBuf;
use std::time::Instant;
use watch::Scale;

/// A scenario: what it is called, whether it is for CI as well, what it does.
struct Scenario {
    name: &'static str,
    ci: bool,
    play: fn(&mut Stage) -> Result<String>,
}

/// In the order in which they are played: the last one takes Weir away.
const SCENARIOS: [Scenario; 16] = [
    Scenario { name: "seed", ci: true, play: install::seed },
    Scenario { name: "dns", ci: true, play: install::dns },
    Scenario { name: "every-door", ci: true, play: install::every_door },
    Scenario { name: "host-network", ci: false, play: install::host_network },
    Scenario { name: "privileges", ci: true, play: privileges::threads },
    Scenario { name: "memory", ci: false, play: privileges::memory },
    Scenario { name: "secrets", ci: true, play: privileges::secrets },
    Scenario { name: "deployment-rollout", ci: false, play: rollout::deployment },
    Scenario { name: "weir-rollout", ci: true, play: rollout::weir },
    Scenario { name: "broken-rollout", ci: false, play: rollout::broken },
    Scenario { name: "pods-deleted", ci: false, play: rollout::deleted },
    Scenario { name: "api-server-away", ci: false, play: outage::api_server },
    Scenario { name: "node-away", ci: false, play: outage::node },
    Scenario { name: "from-nftables", ci: false, play: takeover::nftables },
    Scenario { name: "from-iptables", ci: false, play: takeover::iptables },
    Scenario { name: "uninstall", ci: true, play: uninstall::uninstall },
];

/// Plays the scenarios of these names (all of them without one; with `ci` those that fit into
/// a check of each change, with less traffic), tells what each saw, and says whether all went well.
///
/// # Errors
/// When there is no cluster, or a name is none.
pub fn run(cluster: Cluster, images: Vec<PathBuf>, names: &[String], ci: bool) -> Result<bool> {
    if let Some(unknown) = names.iter().find(|name| !SCENARIOS.iter().any(|known| known.name == **name)) {
        let known: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        bail!("no scenario {unknown}; there are: {}", known.join(", "));
    }
    let chosen: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name))
        .filter(|scenario| !ci || scenario.ci)
        .collect();
    let began = Instant::now();
    let mut stage = Stage::set_up(cluster, images, if ci { Scale::SMALL } else { Scale::FULL })?;
    println!("the stage is set: {:.0} s", began.elapsed().as_secs_f64());
    let mut failed = 0;
    for Scenario { name, play, .. } in &chosen {
        let began = Instant::now();
        let played = play(&mut stage);
        let took = began.elapsed().as_secs_f64();
        match played {
            Ok(figures) => println!("ok     {name} ({took:.0} s): {figures}"),
            Err(error) => {
                failed += 1;
                println!("FAILED {name} ({took:.0} s): {error:#}");
            }
        }
    }
    stage.strike()?;
    let (passed, verdict) = (chosen.len() - failed, if failed == 0 { "ok" } else { "FAILED" });
    // As a test binary says it: `cargo xtask test` counts.
    println!("test result: {verdict}. {passed} passed; {failed} failed; 0 ignored");
    Ok(failed == 0)
}
