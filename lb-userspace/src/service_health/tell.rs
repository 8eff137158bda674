//! The Event `FailedToStartServiceHealthcheck`, as kube-proxy writes it (S54).

use super::Failure;
use crate::source::kube::{ClientOptions, connect};
use ::kube::Client;
use ::kube::api::{Api, PostParams};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// How long one request may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The same Service is not complained of again sooner.
const AGAIN: Duration = Duration::from_secs(600);
/// Services of which it is remembered when that was.
const REMEMBERED: usize = 1024;

/// Where Events go.
#[derive(Clone, Debug)]
pub struct EventOptions {
    pub client: ClientOptions,
    pub node_name: String,
}

/// Posts an Event for each failure. One that cannot be posted is logged: the problem is told
/// anyway.
pub async fn post(options: EventOptions, mut failures: mpsc::Receiver<Failure>) {
    let mut client: Option<Client> = None;
    let mut said: BTreeMap<String, Instant> = BTreeMap::new();
    while let Some(failure) = failures.recv().await {
        let now = Instant::now();
        said.retain(|_, at| *at + AGAIN > now);
        let key = failure.service.to_string();
        if said.contains_key(&key) || said.len() >= REMEMBERED {
            continue;
        }
        if client.is_none() {
            client = connect(&options.client).await.ok();
        }
        let Some(connected) = &client else { continue };
        let api: Api<Event> = Api::namespaced(connected.clone(), &failure.service.namespace);
        let event = event(&failure, &options.node_name, Timestamp::now());
        match timeout(ANSWER_WITHIN, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {
                said.insert(key, now);
            }
            Ok(Err(error)) => tracing::info!(service = key, %error, "an Event cannot be written"),
            // The next one asks for a server anew.
            Err(_) => client = None,
        }
    }
}

fn event(failure: &Failure, node: &str, now: Timestamp) -> Event {
    let Failure { service, uid, text } = failure;
    let mut hasher = DefaultHasher::new();
    (uid, text, node, now.as_nanosecond()).hash(&mut hasher);
    Event {
        metadata: ObjectMeta {
            // A Service's name has 63 characters at most.
            name: Some(format!("{}.{:016x}", service.name, hasher.finish())),
            namespace: Some(service.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".into()),
        reason: Some("FailedToStartServiceHealthcheck".into()),
        action: Some("Listen".into()),
        note: Some(text.clone()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Service".into()),
            namespace: Some(service.namespace.clone()),
            name: Some(service.name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("weir.dev/services".into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ObjectKey;

    #[test]
    fn an_event_says_what_it_is_about_in_kube_proxys_words() {
        let failure = Failure {
            service: ObjectKey::new("shop", "web"),
            uid: "u-1".into(),
            text: "node 192.0.2.1:32000 failed to start healthcheck".into(),
        };
        let event = event(&failure, "node-a", Timestamp::UNIX_EPOCH);
        assert_eq!(event.reason.as_deref(), Some("FailedToStartServiceHealthcheck"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        let regarding = event.regarding.unwrap_or_default();
        assert_eq!((regarding.kind.as_deref(), regarding.uid.as_deref()), (Some("Service"), Some("u-1")));
        // One of the API's conditions for Events of this version.
        assert!(event.action.is_some() && event.reporting_instance.is_some());
    }
}
