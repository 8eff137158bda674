//! An IngressClass (I1, I2).

use crate::source::IngressClass;
use k8s_openapi::api::networking::v1 as api;

/// Annotation of the class that the API server gives to an Ingress without one (I2).
const DEFAULT_ANNOTATION: &str = "ingressclass.kubernetes.io/is-default-class";

/// Projects an IngressClass to its compact form. Parameters mean nothing here.
pub fn ingress_class(from: &api::IngressClass) -> IngressClass {
    let meta = &from.metadata;
    let annotation = meta.annotations.as_ref().and_then(|annotations| annotations.get(DEFAULT_ANNOTATION));
    IngressClass {
        name: meta.name.clone().unwrap_or_default(),
        controller: from.spec.as_ref().and_then(|spec| spec.controller.clone()).unwrap_or_default(),
        default: annotation.is_some_and(|value| value == "true"),
    }
}
