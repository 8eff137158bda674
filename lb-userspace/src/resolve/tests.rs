#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use std::sync::Mutex;

/// Answers from a script, and counts.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<Played>>);

#[derive(Default)]
struct Played {
    answers: BTreeMap<(String, bool), Answer>,
    /// Times that each name was asked for.
    asked: BTreeMap<String, usize>,
    under_way: usize,
    /// Names that nobody answers for begin so.
    silent: Option<&'static str>,
}

impl Script {
    fn set(&self, name: &str, answer: Answer) {
        for family in [Family::V4, Family::V6] {
            let answer = match &answer {
                Answer::Found(addresses, lasts) => {
                    let mut of_family = addresses.clone();
                    of_family.retain(|ip| ip.is_ipv4() == (family == Family::V4));
                    if of_family.is_empty() {
                        Answer::Gone("it has no address".into())
                    } else {
                        Answer::Found(of_family, *lasts)
                    }
                }
                Answer::Gone(_) | Answer::Failed(_) => answer.clone(),
            };
            self.set_family(name, family, answer);
        }
    }

    fn set_family(&self, name: &str, family: Family, answer: Answer) {
        self.0.lock().unwrap().answers.insert((name.into(), family == Family::V4), answer);
    }

    /// How often names were asked for since the last call.
    fn asked(&self) -> usize {
        std::mem::take(&mut self.0.lock().unwrap().asked).values().sum()
    }
}

impl Lookup for Script {
    async fn lookup(&self, name: &str, family: Family) -> Answer {
        let silent = {
            let mut state = self.0.lock().unwrap();
            if family == Family::V4 {
                *state.asked.entry(name.into()).or_default() += 1;
            }
            state.under_way += 1;
            assert!(state.under_way <= 2 * AT_ONCE);
            state.silent.is_some_and(|silent| name.starts_with(silent))
        };
        // A lookup that is given up ends here too.
        let _done = Done(self);
        tokio::time::sleep(if silent { 2 * PATIENCE } else { Duration::from_millis(10) }).await;
        let answers = &self.0.lock().unwrap().answers;
        answers.get(&(name.into(), family == Family::V4)).cloned().unwrap_or(Answer::Gone("none".into()))
    }
}

struct Done<'a>(&'a Script);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().under_way -= 1;
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn found(texts: &[&str], seconds: u64) -> Answer {
    Answer::Found(addresses(texts), Duration::from_secs(seconds))
}

struct Rig {
    script: Script,
    wanted: watch::Sender<WantedNames>,
    names: watch::Receiver<Arc<Names>>,
}

/// Names that a namespace wants.
fn want(namespace: &str, names: &[String]) -> WantedNames {
    names.iter().map(|name| (name.clone(), [namespace.to_string()].into())).collect()
}

fn start(wanted: &[String]) -> Rig {
    start_with(want("default", wanted))
}

fn start_with(wanted: WantedNames) -> Rig {
    let script = Script::default();
    let (sender, receiver) = watch::channel(wanted);
    let (told, names) = watch::channel(Arc::default());
    tokio::spawn(run(script.clone(), receiver, told));
    Rig { script, wanted: sender, names }
}

impl Rig {
    fn told(&self, name: &str) -> Option<Result<Vec<IpAddr>, String>> {
        self.names.borrow().get(name).cloned()
    }

    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_for_again_when_its_time_is_over() {
    let rig = start(&["a".into()]);
    rig.script.set("a", found(&["203.0.113.1", "2001:db8::1", "203.0.113.1"], 30));
    rig.pass(1).await;
    assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.1", "2001:db8::1"]))));
    rig.script.set("a", found(&["203.0.113.2"], 0));
    rig.pass(28).await;
    assert_eq!((rig.script.asked(), rig.told("a").unwrap().unwrap().len()), (1, 2));
    rig.pass(3).await;
    assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.2"]))));
    // A time to live of 0 is no reason to hammer.
    rig.script.asked();
    rig.pass(60).await;
    assert!((10..=13).contains(&rig.script.asked()));
}

#[tokio::test(start_paused = true)]
async fn silence_takes_nothing_away_for_a_while_and_a_denial_does_at_once() {
    let rig = start(&["a".into(), "b".into()]);
    rig.script.set("a", found(&["203.0.113.1"], 5));
    rig.script.set("b", found(&["203.0.113.2"], 5));
    rig.pass(1).await;
    rig.script.set("a", Answer::Failed("silence".into()));
    rig.script.set("b", Answer::Gone("no such name".into()));
    rig.pass(60).await;
    assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.1"]))));
    assert_eq!(rig.told("b"), Some(Err("no such name".into())));
    rig.script.set("b", found(&["203.0.113.3"], 5));
    rig.pass(70).await;
    assert_eq!(rig.told("b"), Some(Ok(addresses(&["203.0.113.3"]))));
    rig.pass(3700).await;
    assert_eq!(rig.told("a"), Some(Err("silence".into())));
    rig.script.set("a", found(&["203.0.113.4"], 5));
    rig.pass(70).await;
    assert_eq!(rig.told("a"), Some(Ok(addresses(&["203.0.113.4"]))));
}

/// A family that nobody answers for loses nothing, and takes nothing from the other one.
#[tokio::test(start_paused = true)]
async fn families_fail_apart() {
    let rig = start(&["six".into(), "dual".into()]);
    let silence = || Answer::Failed("silence".into());
    rig.script.set("six", found(&["2001:db8::6"], 5));
    rig.script.set("dual", found(&["203.0.113.1", "2001:db8::1"], 5));
    rig.pass(1).await;
    rig.script.set_family("six", Family::V6, silence());
    rig.script.set_family("dual", Family::V6, silence());
    rig.script.set_family("dual", Family::V4, found(&["203.0.113.2"], 5));
    rig.pass(1800).await;
    assert_eq!(rig.told("six"), Some(Ok(addresses(&["2001:db8::6"]))));
    assert_eq!(rig.told("dual"), Some(Ok(addresses(&["203.0.113.2", "2001:db8::1"]))));
    rig.pass(1900).await;
    assert_eq!(rig.told("six"), Some(Err("silence".into())));
    assert_eq!(rig.told("dual"), Some(Ok(addresses(&["203.0.113.2"]))));
    // A denial of one family is believed, whatever becomes of the other.
    rig.script.set("dual", found(&["203.0.113.2", "2001:db8::1"], 5));
    rig.pass(10).await;
    rig.script.set_family("dual", Family::V6, Answer::Gone("none".into()));
    rig.script.set_family("dual", Family::V4, silence());
    rig.pass(10).await;
    assert_eq!(rig.told("dual"), Some(Ok(addresses(&["203.0.113.2"]))));
}

/// Names of silent name servers, which sort first, hold nobody else's lookups up.
#[tokio::test(start_paused = true)]
async fn silent_names_of_one_namespace_starve_no_other() {
    let silent: Vec<String> = (0..150).map(|n| format!("0-{n:03}")).collect();
    let mut wanted = want("greedy", &silent);
    wanted.extend(want("honest", &["z".into()]));
    let rig = start_with(wanted);
    rig.script.0.lock().unwrap().silent = Some("0-");
    rig.script.set("z", found(&["203.0.113.1"], 5));
    rig.pass(1).await;
    assert_eq!(rig.told("z"), Some(Ok(addresses(&["203.0.113.1"]))));
    rig.script.asked();
    rig.pass(600).await;
    let asked = std::mem::take(&mut rig.script.0.lock().unwrap().asked);
    assert!(asked["z"] >= 110, "every 5 seconds: {}", asked["z"]);
    // Each of the others has its turn, none twice before all had one.
    let times: Vec<usize> = silent.iter().map(|name| asked.get(name).copied().unwrap_or(0)).collect();
    assert!(times.iter().all(|times| (1..=2).contains(times)), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn names_have_a_limit_and_go_when_nobody_wants_them() {
    let many: Vec<String> = (0..quota::OF_NAMESPACE + 5).map(|n| format!("n{n:05}")).collect();
    let rig = start(&many);
    rig.pass(5).await;
    let refused =
        rig.names.borrow().values().filter(|told| matches!(told, Err(e) if e.contains("more than"))).count();
    assert_eq!((refused, rig.names.borrow().len()), (5, quota::OF_NAMESPACE + 5));
    rig.wanted.send(want("default", &["n00000".to_string()])).unwrap();
    rig.pass(1).await;
    assert_eq!(rig.names.borrow().keys().collect::<Vec<_>>(), ["n00000"]);
}
