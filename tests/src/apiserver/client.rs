//! A thread of its own that lives in the control plane's network namespace: it starts the
//! programs there and talks to the API server, so that a test may do both from anywhere.

use anyhow::{Context, Result, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use tokio::runtime::Runtime;

type Job = Box<dyn FnOnce(&Runtime) + Send>;

/// A way to an API server, from a network namespace.
pub struct Connection {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    client: Option<Client>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts the thread in a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn open(netns: Option<&Path>) -> Result<Self> {
        let netns = netns.map(File::open).transpose().context("opening the namespace")?;
        let (jobs, queue) = channel::<Job>();
        let (started, start) = channel();
        let thread = std::thread::Builder::new().name("api".into()).spawn(move || {
            let ready = set_up(netns.as_ref());
            match ready {
                Ok(runtime) => {
                    // The caller waits for this answer, so it is there.
                    let _ = started.send(Ok(()));
                    serve(&runtime, &queue);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        start.recv().context("the api thread ended")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), client: None })
    }

    /// Runs `f` in the thread.
    ///
    /// # Errors
    /// When the thread is gone.
    pub(crate) fn in_place<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.run(move |_| f())
    }

    fn run<T: Send + 'static>(&self, f: impl FnOnce(&Runtime) -> T + Send + 'static) -> Result<T> {
        let (answer, answered) = channel();
        let job: Job = Box::new(move |runtime| drop(answer.send(f(runtime))));
        let jobs = self.jobs.as_ref().context("the api thread is stopped")?;
        jobs.send(job).ok().context("the api thread is gone")?;
        answered.recv().context("the api thread is gone")
    }

    /// Reads the kubeconfig; connects with the first request.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn connect(&mut self, kubeconfig: &Path) -> Result<()> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let client = self.run(move |runtime| {
            runtime.block_on(async {
                let config =
                    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                anyhow::Ok(Client::try_from(config)?)
            })
        })??;
        self.client = Some(client);
        Ok(())
    }

    /// Runs a request in the thread.
    ///
    /// # Errors
    /// With what the request failed with, or before [`Self::connect`].
    pub fn ask<T, F>(&self, request: impl FnOnce(Client) -> F + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>>,
    {
        let Some(client) = self.client.clone() else { bail!("not connected") };
        self.run(move |runtime| runtime.block_on(request(client)))?
    }

    /// # Errors
    /// While the API server does not call itself ready.
    pub fn ready(&self) -> Result<()> {
        self.ask(|client| async move {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            client.request_text(request).await?;
            Ok(())
        })
    }
}

fn set_up(netns: Option<&File>) -> Result<Runtime> {
    if let Some(netns) = netns {
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)
            .context("entering the namespace (run as root)")?;
    }
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn serve(runtime: &Runtime, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job(runtime);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.jobs = None;
        self.client = None;
        if let Some(thread) = self.thread.take() {
            // A panic in there was told already.
            let _ = thread.join();
        }
    }
}
