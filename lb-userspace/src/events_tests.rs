use super::*;
use crate::problem::{Kind, ObjectRef};
use crate::source::Ingress;
use std::sync::Arc;

fn report(name: &str, generation: i64, problems: &[(&str, &str)]) -> Report {
    let key = ObjectKey::new("shop", name);
    let object = ObjectRef { kind: Kind::Ingress, key: key.clone() };
    let problem = |(field, reason): &(&str, &str)| Problem {
        object: object.clone(),
        field: (*field).into(),
        reason: (*reason).into(),
    };
    Report {
        problems: problems.iter().map(problem).collect(),
        ingress: Arc::new(Ingress { uid: format!("uid-{name}"), key, generation, ..Ingress::default() }),
        ours: true,
        in_force: true,
    }
}

/// Takes a report and says all there is to say, as `Type Reason: text`.
fn tell(teller: &mut Teller, report: &Report, now: Instant) -> Vec<String> {
    teller.take(report, false, now);
    let mut told = Vec::new();
    while let Some(note) = teller.next(now) {
        let kind = if note.warning { "Warning" } else { "Normal" };
        told.push(format!("{kind} {}: {}", note.reason, note.text));
        teller.said(&note, now);
    }
    told.sort();
    told
}

const SYNC: &str = "Normal Sync: Routes are in force";

#[tokio::test]
async fn sync_is_said_once_for_each_generation_in_force() {
    let start = Instant::now();
    let mut teller = Teller::new(start);
    let mut not_yet = report("web", 1, &[]);
    not_yet.in_force = false;
    assert_eq!(tell(&mut teller, &not_yet, start), Vec::<String>::new());
    assert_eq!(tell(&mut teller, &report("web", 1, &[]), start), [SYNC]);
    assert_eq!(tell(&mut teller, &report("web", 1, &[]), start), Vec::<String>::new());
    assert_eq!(tell(&mut teller, &report("web", 2, &[]), start), [SYNC]);
    let mut foreign = report("web", 3, &[("spec", "odd")]);
    foreign.ours = false;
    assert_eq!(tell(&mut teller, &foreign, start), Vec::<String>::new(), "another controller's");

    // One that an earlier agent dealt with was told of then; its next generation is not.
    let mut teller = Teller::new(start);
    teller.take(&report("web", 2, &[]), true, start);
    assert_eq!(teller.next(start), None);
    assert_eq!(tell(&mut teller, &report("web", 3, &[]), start), [SYNC]);
    // The same name, another object.
    let mut again = report("web", 3, &[]);
    Arc::make_mut(&mut again.ingress).uid = "other".into();
    assert_eq!(tell(&mut teller, &again, start), [SYNC]);
}

#[tokio::test]
async fn a_warning_is_said_once_while_it_holds_and_again_after_it_had_gone() {
    let start = Instant::now();
    let mut teller = Teller::new(start);
    let secret = ("spec.tls[0].secretName", "Secret shop/tls does not exist");
    let path = ("spec.rules[0].http.paths[1].path", "\"x\" does not begin with /");
    let first = tell(&mut teller, &report("web", 1, &[secret, path]), start);
    assert_eq!(
        first,
        [
            SYNC,
            "Warning BadCertificate: spec.tls[0].secretName: Secret shop/tls does not exist",
            "Warning BadPath: spec.rules[0].http.paths[1].path: \"x\" does not begin with /",
        ]
    );
    assert_eq!(tell(&mut teller, &report("web", 1, &[secret, path]), start), Vec::<String>::new());
    assert_eq!(
        tell(&mut teller, &report("web", 2, &[secret]), start),
        [SYNC],
        "another generation, the same fault"
    );
    assert_eq!(tell(&mut teller, &report("web", 2, &[]), start), Vec::<String>::new());
    assert_eq!(tell(&mut teller, &report("web", 2, &[secret]), start).len(), 1, "it is back");
    let later = start + AGAIN;
    assert_eq!(
        tell(&mut teller, &report("web", 2, &[secret]), later).len(),
        1,
        "the first has been forgotten"
    );
}

#[tokio::test]
async fn many_events_wait_for_their_turn_and_nothing_grows_without_bound() {
    let start = Instant::now();
    let mut teller = Teller::new(start);
    for n in 0..2 * WAITING {
        teller.take(&report(&format!("i{n}"), 1, &[]), false, start);
    }
    assert_eq!(teller.waiting.len(), WAITING);
    let said = |teller: &mut Teller, now| (0..).map_while(|_: u32| teller.next(now)).count();
    assert_eq!(said(&mut teller, start), BURST as usize);
    assert!(teller.due(start) > Some(start));
    assert_eq!(said(&mut teller, start + Duration::from_millis(90)), 0);
    assert_eq!(said(&mut teller, start + Duration::from_secs(1)), RATE as usize);
    assert_eq!(said(&mut teller, start + Duration::from_secs(3600)), BURST as usize);
    let key = ObjectKey::new("shop", "i1");
    teller.keep(&[&key].into());
    assert_eq!(teller.said.len(), 1);
    assert!(teller.waiting.values().all(|note| note.ingress == key));
}

#[tokio::test]
async fn an_event_keeps_to_the_apis_bounds_and_is_the_same_whoever_writes_it() {
    let long = "ä".repeat(5_000);
    let report = report(&"n".repeat(253), 1, &[("spec", &long)]);
    let note = Note::warning(&report, &report.problems[0]);
    let event = note.event("node-1", Timestamp::UNIX_EPOCH);
    let name = event.metadata.name.expect("a name");
    assert!(name.len() <= LONGEST_NAME && name.starts_with("nnn"), "{name}");
    assert!(event.note.as_ref().is_some_and(|note| note.len() <= LONGEST_NOTE));
    let regarding = event.regarding.expect("an object");
    assert_eq!(
        (regarding.kind.as_deref(), regarding.uid.as_deref()),
        (Some("Ingress"), Some(&*report.ingress.uid))
    );
    let other = Note::warning(&report, &report.problems[0]).event("node-2", Timestamp::UNIX_EPOCH);
    assert_eq!(other.metadata.name, Some(name), "so the API server keeps one of them");
}
