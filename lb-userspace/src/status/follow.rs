//! Follows what addresses are made of: one Service, or the Nodes. Only the agent that writes does.

use super::{Publish, Seen, node_addresses, service_addresses};
use crate::board::Board;
use crate::source::StatusAddress;
use crate::source::kube::Backoff;
use ::kube::runtime::watcher::{self, Event, watcher};
use ::kube::{Api, Client, Resource, ResourceExt};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use tokio::sync::watch::Sender;
use tokio::time::sleep;

/// The part's name in problems.
const PART: &str = "--publish-service";

/// Tells what is seen, for ever.
pub(super) async fn follow(
    client: &Client,
    publish: &Publish,
    seen: &Sender<Seen>,
    board: &Board,
) -> Infallible {
    match publish {
        Publish::Given(_) => pending().await,
        Publish::Service(key) => {
            let api: Api<Service> = Api::namespaced(client.clone(), &key.namespace);
            let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
            let mut listed: Option<Vec<StatusAddress>> = None;
            let tell = |addresses: Option<Vec<StatusAddress>>| {
                let missing = addresses.is_none();
                let reason = format!("Service {key} does not exist; statuses stay as they are");
                board.set_part(PART, missing.then_some(reason));
                seen.send_modify(|seen| seen.service = addresses);
            };
            each(watcher(api, config), board, |event| match event {
                Event::Init => listed = None,
                Event::InitApply(service) => listed = Some(service_addresses(&service)),
                Event::InitDone => tell(listed.take()),
                Event::Apply(service) => tell(Some(service_addresses(&service))),
                Event::Delete(_) => tell(None),
            })
            .await
        }
        Publish::Nodes(selector) => {
            let mut nodes: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
            let tell = |nodes: &BTreeMap<String, Vec<IpAddr>>| {
                seen.send_if_modified(|seen| {
                    let changed = seen.nodes.as_ref() != Some(nodes);
                    if changed {
                        seen.nodes = Some(nodes.clone());
                    }
                    changed
                });
            };
            let config = watcher::Config::default().labels(selector);
            each(watcher(Api::<Node>::all(client.clone()), config), board, |event| {
                match event {
                    Event::Init => nodes.clear(),
                    Event::InitApply(node) => {
                        nodes.insert(node.name_any(), node_addresses(&node));
                    }
                    Event::InitDone => tell(&nodes),
                    Event::Apply(node) => {
                        let addresses = node_addresses(&node);
                        // A Node says every few seconds that it lives.
                        if nodes.get(&node.name_any()) != Some(&addresses) {
                            nodes.insert(node.name_any(), addresses);
                            tell(&nodes);
                        }
                    }
                    Event::Delete(node) => {
                        nodes.remove(&node.name_any());
                        tell(&nodes);
                    }
                }
            })
            .await
        }
    }
}

/// Takes each event; failures are told and waited out, what was seen stays.
async fn each<K: Resource>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    board: &Board,
    mut take: impl FnMut(Event<K>),
) -> Infallible {
    let mut events = pin!(events);
    let mut backoff = Backoff::default();
    let part = "addresses for statuses";
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    backoff.reset();
                    board.set_part(part, None);
                }
                take(event);
            }
            Err(error) => {
                board.set_part(part, Some(format!("cannot be read: {error}; tried again")));
                sleep(backoff.next()).await;
            }
        }
    }
    pending().await
}
