//! The rights of the ServiceAccounts that `deploy/` makes: what docs/rbac.md lists and nothing
//! else, as the API server's authorizer sees it (H40).

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::Discovery;
use kube::{Api, Client};
use lab::apiserver::ApiServer;
use lab::deploy;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const TABLE: &str = include_str!("../../../docs/rbac.md");
const OWN: &str = "weir-system";
const OTHER: &str = "default";
const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// `group/resource[/subresource] verb [of NAME] in NAMESPACE`.
type Rights = BTreeSet<String>;

/// What can be asked for: resource by group and kind, with its subresources.
type Resources = BTreeMap<(String, String), Vec<String>>;

#[test]
fn accounts_have_the_rights_that_the_docs_list_and_no_others() -> Result<()> {
    let server = ApiServer::start()?;
    deploy::kubectl(Some(&server.kubeconfig()), &["apply", "-k", &deploy::folder().to_string_lossy()])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(&server.kubeconfig()).await?;
        let resources = resources(&client).await?;
        // What every account may: to look at the API itself, for one.
        let everybody = rights(&client, &resources, "of-nobody").await?;
        for (account, rows) in [("weir", usize::MAX), ("weir-l4", 6)] {
            let wanted = listed(&resources, rows)?;
            let found: Rights =
                rights(&client, &resources, account).await?.difference(&everybody).cloned().collect();
            let missing: Vec<_> = wanted.difference(&found).collect();
            let more: Vec<_> = found.difference(&wanted).collect();
            ensure!(
                missing.is_empty() && more.is_empty(),
                "{account} lacks {missing:?} and has also {more:?}"
            );
            ensure!(found.len() > 8, "{account}: only {found:?}");
        }
        Ok(())
    })
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn resources(client: &Client) -> Result<Resources> {
    let mut resources = Resources::new();
    for group in Discovery::new(client.clone()).run().await?.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let mut names = vec![resource.plural.clone()];
            names.extend(
                capabilities
                    .subresources
                    .iter()
                    .map(|(sub, _)| format!("{}/{}", resource.plural, sub.plural)),
            );
            resources.insert((resource.group.clone(), resource.kind.clone()), names);
        }
    }
    ensure!(resources.len() > 40, "discovery found only {} kinds", resources.len());
    Ok(resources)
}

/// Everything that the account may do, by asking for each thing.
async fn rights(client: &Client, resources: &Resources, account: &str) -> Result<Rights> {
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let mut questions = Vec::new();
    for ((group, _), names) in resources {
        for name in names {
            for verb in VERBS {
                for namespace in [OWN, OTHER] {
                    // The one right that is limited to a name.
                    let one = (name == "leases").then_some("weir-status");
                    questions.push((group.as_str(), name.as_str(), verb, namespace, one));
                    if one.is_some() {
                        questions.push((group.as_str(), name.as_str(), verb, namespace, Some("another")));
                    }
                }
            }
        }
    }
    let reviews = &reviews;
    stream::iter(questions)
        .map(|(group, name, verb, namespace, one)| async move {
            let (resource, sub) = name.split_once('/').map_or((name, None), |(name, sub)| (name, Some(sub)));
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(format!("system:serviceaccount:{OWN}:{account}")),
                    groups: Some(vec![
                        "system:serviceaccounts".into(),
                        format!("system:serviceaccounts:{OWN}"),
                        "system:authenticated".into(),
                    ]),
                    resource_attributes: Some(ResourceAttributes {
                        group: Some(group.to_owned()),
                        resource: Some(resource.to_owned()),
                        subresource: sub.map(str::to_owned),
                        verb: Some(verb.to_owned()),
                        namespace: Some(namespace.to_owned()),
                        // Nobody knows the name of what is yet to be made.
                        name: one.filter(|_| verb != "create").map(str::to_owned),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = reviews.create(&kube::api::PostParams::default(), &review).await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            Ok(allowed.then(|| right(group, name, verb, one, namespace)))
        })
        .buffer_unordered(16)
        .try_filter_map(|right| async move { Ok(right) })
        .try_collect()
        .await
}

fn right(group: &str, name: &str, verb: &str, one: Option<&str>, namespace: &str) -> String {
    let of = one.filter(|_| verb != "create").map(|one| format!(" of {one}")).unwrap_or_default();
    format!("{group}/{name} {verb}{of} in {namespace}")
}

/// The first rows of the table, with both namespaces for what is cluster-wide.
fn listed(resources: &Resources, rows: usize) -> Result<Rights> {
    let mut rights = Rights::new();
    let table = TABLE.lines().filter(|line| line.starts_with("| ")).skip(1);
    for row in table.take(rows) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [group, kind, verbs, scope, _] = cells[..] else { anyhow::bail!("not five cells: {row}") };
        let group = if group == "core" { "" } else { group };
        let mut words = kind.split(&[' ', ',', '`'][..]).filter(|word| !word.is_empty());
        let kind = words.next().context("a row without a kind")?;
        let (sub, one) = match words.collect::<Vec<_>>()[..] {
            [] => (None, None),
            ["subresource", sub] => (Some(sub), None),
            [one] => (None, Some(one)),
            _ => anyhow::bail!("not understood: {row}"),
        };
        let key = (group.to_owned(), kind.to_owned());
        let name =
            resources.get(&key).and_then(|names| names.first()).with_context(|| format!("no {kind}"))?;
        let name = sub.map_or(name.clone(), |sub| format!("{name}/{sub}"));
        let namespaces: &[&str] = if scope.contains("own namespace") { &[OWN] } else { &[OWN, OTHER] };
        for verb in verbs.split(", ") {
            ensure!(VERBS.contains(&verb), "{verb} is no verb: {row}");
            for namespace in namespaces {
                rights.insert(right(group, &name, verb, one, namespace));
            }
        }
    }
    Ok(rights)
}
