//! What was wrong with which object: told, never thrown.
//!
//! A bad object costs only itself. Whoever finds the fault (a source that cannot read a
//! file, the model that cannot use a field, the data path whose map is full) names the
//! object, the field and the reason; `weir problems`, the log and a metric repeat it.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// Kinds of objects that Weir reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    Pod,
    Namespace,
    Ingress,
    IngressClass,
    Secret,
    ServiceCidr,
    ConfigMap,
    /// Not an object: a manifest file, named by its path.
    File,
    /// Not an object: the agent's own configuration or surroundings.
    Agent,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As the API spells it.
        if *self == Self::ServiceCidr { f.write_str("ServiceCIDR") } else { fmt::Debug::fmt(self, f) }
    }
}

/// Namespace and name. The namespace is empty for cluster-wide kinds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Kind, namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ObjectRef {
    pub kind: Kind,
    pub key: ObjectKey,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// One fault of one object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub object: ObjectRef,
    /// Path of the field as the API spells it, such as `spec.clusterIPs[0]`.
    pub field: String,
    /// A sentence that says what is wrong and what Weir does about it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

/// Problems of one object that are told one by one.
const TOLD: usize = 8;

/// The first few Problems of one object, by field, and how many there are beside them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Few {
    first: BTreeSet<(String, String)>,
    more: usize,
}

impl Few {
    /// Takes one more.
    pub fn add(&mut self, field: String, reason: String) {
        self.first.insert((field, reason));
        if self.first.len() > TOLD {
            self.first.pop_last();
            self.more += 1;
        }
    }

    /// Takes what else was found.
    pub fn merge(&mut self, other: &Self) {
        for (field, reason) in &other.first {
            self.add(field.clone(), reason.clone());
        }
        self.more += other.more;
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.first.len()
    }

    /// What is told of the object.
    pub fn of(self, object: &ObjectRef) -> Vec<Problem> {
        let more = (self.more > 0).then(|| rest(object, self.more));
        let first = self.first.into_iter();
        first.map(|(field, reason)| Problem { object: object.clone(), field, reason }).chain(more).collect()
    }
}

/// Says how many Problems are not told one by one.
fn rest(object: &ObjectRef, more: usize) -> Problem {
    // The field sorts after the names of fields.
    Problem { object: object.clone(), field: "…".into(), reason: format!("and {more} more") }
}

/// Keeps the first few Problems of each object and counts the others.
///
/// Objects come from anybody who may write them, and one object can be wrong in thousands of
/// places: that must not bury what is wrong elsewhere. The answer is sorted by object.
pub fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by(|a, b| a.object.cmp(&b.object));
    let mut kept = Vec::new();
    for of_object in problems.chunk_by(|a, b| a.object == b.object) {
        kept.extend(of_object.iter().take(TOLD).cloned());
        if let [.., last] = of_object
            && of_object.len() > TOLD
        {
            kept.push(rest(&last.object, of_object.len() - TOLD));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_problems_of_one_object_hide_none_of_another() {
        let problem = |name: &str, n: usize| Problem {
            object: ObjectRef { kind: Kind::Service, key: ObjectKey::new("default", name) },
            field: format!("spec.ports[{n}]"),
            reason: "wrong".into(),
        };
        let mut problems: Vec<_> = (0..1_000).map(|n| problem("b", n)).collect();
        problems.extend([problem("a", 0), problem("c", 0)]);
        let told: Vec<_> = bounded(problems).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 11);
        assert_eq!(told[0], "Service default/a: spec.ports[0]: wrong");
        assert_eq!(told[8], "Service default/b: spec.ports[7]: wrong");
        assert_eq!(told[9], "Service default/b: …: and 992 more");
        assert_eq!(told[10], "Service default/c: spec.ports[0]: wrong");
        assert_eq!(bounded((0..8).map(|n| problem("b", n)).collect()).len(), 8);
    }
}
