//! Which Ingresses are ours (I1 to I5).

use super::L7Options;
use crate::source::{Ingress, Objects};
use std::collections::BTreeSet;

/// What the IngressClasses say about it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Classes {
    /// Names of the classes whose controller we are (I1).
    ours: BTreeSet<String>,
    /// An Ingress that names no class is ours (I2).
    classless: bool,
}

impl Classes {
    /// In manifests mode nobody fills in the default class, so it is done here: without any
    /// class at all, every Ingress without one is ours. Of several default classes the first by
    /// name counts, as for the API server among equally old ones.
    pub(super) fn of(objects: &Objects, options: &L7Options) -> Self {
        let classes = &objects.ingress_classes;
        let is_ours = |controller: &str| options.controllers.contains(controller);
        let filled_in = || match classes.values().find(|class| class.default) {
            Some(default) => is_ours(&default.controller),
            None => classes.is_empty(),
        };
        let ours = classes.values().filter(|class| is_ours(&class.controller));
        Self {
            ours: ours.map(|class| class.name.clone()).collect(),
            classless: options.without_class || options.manifests && filled_in(),
        }
    }

    /// The old annotation counts only where the field is unset (I3), and names a class just as
    /// the field does.
    pub(super) fn own(&self, ingress: &Ingress, options: &L7Options) -> bool {
        if options.namespace.as_ref().is_some_and(|namespace| *namespace != ingress.key.namespace) {
            return false;
        }
        match ingress.class.as_ref().or(ingress.class_annotation.as_ref()) {
            Some(class) => self.ours.contains(class),
            None => self.classless,
        }
    }
}
