//! From a world in which a case differs to the smallest Service in which it still does.

use super::case::{Case, cases};
use super::judge;
use super::twins::Twins;
use super::world::{Service, World};
use anyhow::Result;

/// Worlds that are tried at most.
const MOST_STEPS: usize = 60;

/// Leaves out of the world what the difference does not need; says what is left, as YAML.
pub(super) fn shrink(twins: &mut Twins<'_>, world: &World, case: &Case) -> Result<String> {
    let mut smallest = World { services: neighbours(world, case) };
    let Some(mut said) = differs(twins, &smallest, case)? else {
        return Ok("shows only among the other Services of its world".into());
    };
    let mut steps = 0;
    // A sticky Service and its like stay alike: they are left as they are.
    'simpler: while let [only] = smallest.services.as_slice() {
        for simpler in only.simpler() {
            steps += 1;
            if steps > MOST_STEPS {
                break 'simpler;
            }
            let tried = World { services: vec![simpler] };
            if let Some(text) = differs(twins, &tried, case)? {
                (smallest, said) = (tried, text);
                continue 'simpler;
            }
        }
        break;
    }
    let objects: Vec<String> =
        smallest.objects().iter().map(|object| serde_json::to_string(object).unwrap_or_default()).collect();
    Ok(format!("after {steps} steps: {said}\n{}", objects.join("\n---\n")))
}

/// The Service of a case, and its like where the case leans on that.
fn neighbours(world: &World, case: &Case) -> Vec<Service> {
    let first =
        if world.services[case.service].sticky { case.service.saturating_sub(1) } else { case.service };
    world.services[first..=case.service].to_vec()
}

/// What both say in a world where the client's answers from the same address differ.
fn differs(twins: &mut Twins<'_>, world: &World, case: &Case) -> Result<Option<String>> {
    let all: Vec<Case> = cases(world, 0)
        .into_iter()
        .map(|mut found| {
            // Sides of a coin: connected or not is as in the case.
            if found.probe.to == case.probe.to && found.cell.client == case.cell.client {
                let udp = found.probe.how != super::How::Tcp;
                if udp == (case.probe.how != super::How::Tcp) {
                    found.probe.how = case.probe.how;
                }
            }
            found
        })
        .collect();
    if !all.iter().any(|found| same(found, case)) {
        return Ok(None);
    }
    twins.show(world)?;
    let found = judge::ask(twins, &all)?;
    let difference = found.differences.iter().find(|difference| same(&all[difference.case], case));
    Ok(difference.map(|difference| difference.text(&all)))
}

fn same(found: &Case, case: &Case) -> bool {
    found.probe.to == case.probe.to
        && found.probe.how == case.probe.how
        && found.cell.client == case.cell.client
}
