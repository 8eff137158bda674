//! Whether two answers are the same answer.
//!
//! The first tries of a question need not agree where several endpoints are valid: a case whose
//! sets are unlike is asked again, more and more often, and with it the case that it leans on. The
//! sets of all that may happen have to be equal. A client of a sticky Service must have one answer, and that among
//! those which kube-proxy gives for the Service that is the same without affinity.

use super::case::{Case, Client};
use super::probe::{Fate, Fates, Probe};
use super::twins::Twins;
use anyhow::Result;
use std::collections::BTreeSet;

/// Patience of the questions that are put again: nothing else is asked meanwhile.
const PATIENCE_MS: u64 = 4_000;
/// How often a question is put: at first, and when the answers differed. Of three endpoints one is
/// missed by so many tries as come last once in 10^10.
const ROUNDS: [u16; 4] = [2, 8, 24, 60];
/// Tries that tell all that may happen.
const MANY: u16 = 24;

/// A case whose answers differ.
#[derive(Clone, Debug)]
pub(super) struct Difference {
    pub(super) case: usize,
    kube_proxy: Fates,
    weir: Fates,
}

#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) differences: Vec<Difference>,
    /// What some client heard at first, and none when the answers agreed: each as a text.
    pub(super) passing: Vec<String>,
}

impl Difference {
    pub(super) fn text(&self, all: &[Case]) -> String {
        let case = &all[self.case];
        let sticky = if case.plain.is_some() { " (sticky)" } else { "" };
        format!("{case}{sticky}: kube-proxy {}, Weir {}", spell(&self.kube_proxy), spell(&self.weir))
    }
}

impl Found {
    /// One difference of each kind of cell and outcome.
    pub(super) fn first_of_each_kind(&self, all: &[Case]) -> Vec<&Difference> {
        let mut seen = BTreeSet::new();
        let kind = |difference: &Difference| {
            let case = &all[difference.case];
            let cell = case.cell;
            (cell.door, cell.local, cell.client, case.probe.how, case.plain.is_some())
        };
        self.differences.iter().filter(|difference| seen.insert(kind(difference))).collect()
    }
}

/// Asks all cases, and more and more often those whose answers differ.
pub(super) fn ask(twins: &Twins<'_>, all: &[Case]) -> Result<Found> {
    let mut found = Found::default();
    let mut doubtful: Vec<usize> = (0..all.len()).collect();
    let mut first: Option<[Vec<Fates>; 2]> = None;
    for tries in ROUNDS {
        let fresh = put(twins, all, &doubtful, tries)?;
        let (agreed, left): (Vec<usize>, Vec<usize>) =
            doubtful.into_iter().partition(|case| settled(all, *case, &fresh, tries));
        if let Some(before) = &first {
            let transient = |case: &&usize| {
                all[**case].plain.is_none()
                    && (0..2).any(|side| !before[side][**case].is_subset(&fresh[side][**case]))
            };
            let text = |case: &usize| {
                let (kube_proxy, weir) = (before[0][*case].clone(), before[1][*case].clone());
                Difference { case: *case, kube_proxy, weir }.text(all)
            };
            found.passing.extend(agreed.iter().filter(transient).map(text));
        }
        if tries == ROUNDS[ROUNDS.len() - 1] {
            found.differences.extend(left.iter().map(|case| Difference {
                case: *case,
                kube_proxy: fresh[0][*case].clone(),
                weir: fresh[1][*case].clone(),
            }));
        }
        doubtful = left;
        first.get_or_insert(fresh);
        if doubtful.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Puts these cases so often, and with them those that they lean on; by the number of the case
/// what both said, nothing for the others.
fn put(twins: &Twins<'_>, all: &[Case], some: &[usize], tries: u16) -> Result<[Vec<Fates>; 2]> {
    let asked: BTreeSet<usize> = some.iter().flat_map(|n| [Some(*n), all[*n].plain]).flatten().collect();
    let questions: Vec<(Client, Probe)> = asked
        .iter()
        .map(|n| {
            let patience_ms = if tries == ROUNDS[0] { all[*n].probe.patience_ms } else { PATIENCE_MS };
            (all[*n].cell.client, Probe { tries, patience_ms, ..all[*n].probe })
        })
        .collect();
    let answers = twins.put(&questions)?;
    Ok(answers.map(|answers| {
        let mut by_case = vec![Fates::new(); all.len()];
        asked.iter().zip(answers).for_each(|(n, fates)| by_case[*n] = fates);
        by_case
    }))
}

/// Whether the answers to a case agree. Those of a sticky Service agree for certain only when
/// its like has been asked often.
fn settled(all: &[Case], n: usize, [kube_proxy, weir]: &[Vec<Fates>; 2], tries: u16) -> bool {
    let (theirs, ours) = (&kube_proxy[n], &weir[n]);
    if theirs == ours {
        return true;
    }
    match all[n].plain {
        // Each chose one of its own; which it may choose, the like tells.
        Some(plain) if theirs.len() == 1 && ours.len() == 1 => {
            let may = &kube_proxy[plain];
            let answers = |fates: &Fates| fates.iter().all(|fate| matches!(fate, Fate::Answered { .. }));
            tries >= MANY && answers(theirs) && answers(ours) && theirs.is_subset(may) && ours.is_subset(may)
        }
        _ => false,
    }
}

fn spell(fates: &Fates) -> String {
    let spelled: Vec<String> = fates
        .iter()
        .map(|fate| match fate {
            Fate::Answered { by, seen, named } => {
                let name = if *named { "" } else { " under another name" };
                format!("{by} sees {seen}{name}")
            }
            Fate::Refused => "refused".into(),
            Fate::Silent => "silence".into(),
            Fate::Failed(why) => format!("failed ({why})"),
        })
        .collect();
    format!("[{}]", spelled.join("; "))
}
