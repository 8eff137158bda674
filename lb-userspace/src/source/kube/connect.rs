//! Which API server to talk to, and as whom.
//!
//! Who we are comes from one place, where the server is from several, tried in order: a node
//! without kube-proxy must come up, and then the cluster IP that Pods are told leads nowhere.

use super::ANSWER_WITHIN;
use super::memory::{remembered_endpoints, remembered_kubelet_server};
use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use tokio::time::timeout;

/// A name that every API server's certificate has, whatever address it is reached by.
const SERVER_NAME: &str = "kubernetes.default.svc";

/// Where to look for an API server and for credentials.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientOptions {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--apiserver`.
    pub apiserver: Option<String>,
    /// The node's own kubeconfig, where it is mounted: its address, and its credentials as the
    /// last resort.
    pub kubelet_kubeconfig: PathBuf,
    /// `--state-dir`: where the addresses last seen are kept.
    pub state_dir: PathBuf,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            apiserver: None,
            kubelet_kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
            state_dir: "/run/weir".into(),
        }
    }
}

/// Connects to the first API server that answers.
///
/// # Errors
/// When there are no credentials to be found, or no server answers: with what each one said.
pub async fn connect(options: &ClientOptions) -> anyhow::Result<Client> {
    connect_to(options).await.map(|(client, _)| client)
}

/// The same, and the address that answered.
pub(super) async fn connect_to(options: &ClientOptions) -> anyhow::Result<(Client, String)> {
    // The provider is a matter of the whole process; whoever was first is as good.
    let _was_there = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut errors = Vec::new();
    for config in candidates(options).await? {
        let address = config.cluster_url.to_string();
        let client = match Client::try_from(config).context("no client") {
            Ok(client) => client,
            Err(error) => {
                errors.push(format!("{address}: {error:#}"));
                continue;
            }
        };
        match answers(&client).await {
            Ok(()) => return Ok((client, address)),
            Err(error) => errors.push(format!("{address}: {error:#}")),
        }
    }
    bail!("{}", errors.join("; "))
}

/// Whether an API server is at the other end.
///
/// # Errors
/// Why not: nothing there, no answer in time, or one that is not ready. A server that refuses us
/// is there; the watches will tell what it refuses.
pub(super) async fn answers(client: &Client) -> anyhow::Result<()> {
    match timeout(ANSWER_WITHIN, client.apiserver_version()).await {
        Err(_) => bail!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        Ok(Ok(_)) => Ok(()),
        Ok(Err(::kube::Error::Api(status))) if status.code < 500 => Ok(()),
        Ok(Err(error)) => Err(anyhow::Error::new(error)),
    }
}

/// Every server that may be tried, best first, each with our credentials.
async fn candidates(options: &ClientOptions) -> anyhow::Result<Vec<Config>> {
    let kubelet = read(&options.kubelet_kubeconfig).await.ok();
    let in_cluster = Config::incluster().ok();
    let variable =
        std::env::var_os("KUBECONFIG").map(PathBuf::from).filter(|path| !path.as_os_str().is_empty());

    let mut found = Found { kubelet: kubelet.clone(), in_cluster: in_cluster.clone(), ..Found::default() };
    if let Some(path) = &options.kubeconfig {
        found.kubeconfig = Some(read(path).await?);
    } else if in_cluster.is_none()
        && let Some(path) = &variable
    {
        found.kubeconfig = Some(read(path).await?);
    }
    found.flag = options.apiserver.clone();
    found.kubelet_server = remembered_kubelet_server(&options.state_dir);
    found.remembered =
        remembered_endpoints(&options.state_dir).iter().map(|at| format!("https://{at}")).collect();
    found.candidates()
}

async fn read(path: &Path) -> anyhow::Result<Config> {
    let about = || format!("kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(about)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(about)
}

/// What was found on this machine.
#[derive(Default)]
struct Found {
    flag: Option<String>,
    kubeconfig: Option<Config>,
    kubelet: Option<Config>,
    /// Its address alone, where the kubeconfig may not be read.
    kubelet_server: Option<String>,
    remembered: Vec<String>,
    in_cluster: Option<Config>,
}

impl Found {
    /// Puts credentials and addresses together.
    fn candidates(self) -> anyhow::Result<Vec<Config>> {
        let identity = self.kubeconfig.as_ref().or(self.in_cluster.as_ref()).or(self.kubelet.as_ref());
        let identity = match (identity, &self.flag) {
            (Some(identity), _) => identity.clone(),
            (None, Some(url)) => Config::new(url.parse().with_context(|| format!("--apiserver {url}"))?),
            (None, None) => bail!(
                "no credentials: neither --kubeconfig nor a service account nor $KUBECONFIG nor the kubelet's kubeconfig"
            ),
        };
        let mut addresses: Vec<(String, Option<String>)> = Vec::new();
        addresses.extend(self.flag.map(|url| (url, None)));
        for config in [&self.kubeconfig, &self.kubelet].into_iter().flatten() {
            addresses.push((config.cluster_url.to_string(), config.tls_server_name.clone()));
        }
        addresses.extend(self.kubelet_server.map(|url| (url, None)));
        addresses.extend(self.remembered.into_iter().map(|url| (url, Some(SERVER_NAME.to_owned()))));
        addresses.extend(self.in_cluster.iter().map(|config| (config.cluster_url.to_string(), None)));

        let mut candidates: Vec<Config> = Vec::new();
        for (url, server_name) in addresses {
            let mut config = identity.clone();
            config.cluster_url = url.parse().with_context(|| format!("API server address {url}"))?;
            config.tls_server_name = server_name;
            config.connect_timeout = Some(ANSWER_WITHIN);
            if candidates.iter().all(|other| other.cluster_url != config.cluster_url) {
                candidates.push(config);
            }
        }
        Ok(candidates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str, token: &str) -> Config {
        let mut config = Config::new(url.parse().expect("a URL"));
        config.auth_info.token = Some(token.to_owned().into());
        config
    }

    fn shown(found: Found) -> Vec<(String, Option<String>, Option<String>)> {
        use k8s_openapi::serde_json;
        let of = |config: Config| {
            let auth = serde_json::to_value(&config.auth_info).expect("JSON");
            let token = auth.get("token").and_then(|token| token.as_str()).map(str::to_owned);
            (config.cluster_url.to_string(), token, config.tls_server_name)
        };
        found.candidates().expect("candidates").into_iter().map(of).collect()
    }

    #[test]
    fn addresses_are_tried_in_the_order_of_the_contract_with_one_identity() {
        let found = Found {
            flag: Some("https://flag:1".into()),
            kubeconfig: None,
            kubelet: Some(config("https://kubelet:2", "of-kubelet")),
            kubelet_server: Some("https://node:3".into()),
            remembered: vec!["https://192.0.2.3:6443".into(), "https://[2001:db8::3]:6443".into()],
            in_cluster: Some(config("https://10.96.0.1", "of-account")),
        };
        let account = Some("of-account".to_owned());
        let name = Some(SERVER_NAME.to_owned());
        assert_eq!(
            shown(found),
            [
                ("https://flag:1/".to_owned(), account.clone(), None),
                ("https://kubelet:2/".to_owned(), account.clone(), None),
                ("https://node:3/".to_owned(), account.clone(), None),
                ("https://192.0.2.3:6443/".to_owned(), account.clone(), name.clone()),
                ("https://[2001:db8::3]:6443/".to_owned(), account.clone(), name),
                ("https://10.96.0.1/".to_owned(), account, None),
            ]
        );
    }

    #[test]
    fn a_kubeconfig_gives_identity_and_address_and_no_address_is_tried_twice() {
        let found = Found {
            kubeconfig: Some(config("https://one:6443", "mine")),
            kubelet: Some(config("https://one:6443", "of-kubelet")),
            ..Found::default()
        };
        assert_eq!(shown(found), [("https://one:6443/".to_owned(), Some("mine".to_owned()), None)]);
    }

    #[test]
    fn without_any_identity_the_flag_alone_is_enough_and_nothing_is_an_error() {
        let found = Found { flag: Some("http://127.0.0.1:8001".into()), ..Found::default() };
        assert_eq!(shown(found), [("http://127.0.0.1:8001/".to_owned(), None, None)]);
        assert!(Found::default().candidates().is_err());
    }
}
