//! The embedded demo, called by `cargo xtask run`: a client, a node that runs
//! `weir run --manifests deploy/demo`, pods with real servers, real traffic between them;
//! one line for each case. Stays up until Ctrl-C and tells what to try; with `--check` it
//! ends after the cases, exit code 1 if one failed.

use anyhow::{Context, Result, bail};
use lab::agent::{Agent, Setup, invocation};
use lab::authority::Authority;
use lab::cases::{self, Assigned, Outcome, certificates, ingress};
use lab::manifests::{self, demo_dir, read_dir};
use lab::topology::Topology;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    lab::helper::serve_if_asked();
    let check = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        _ => {
            eprintln!("usage: demo [--check]");
            return ExitCode::from(2);
        }
    };
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<()> {
    let dir = demo_dir();
    let dir = dir.canonicalize().with_context(|| format!("no {}", dir.display()))?;
    let lab = Topology::new(&manifests::pods(&read_dir(&dir)?)?)?;
    println!("client, node1, node2 and {} pods are up, each a network namespace", lab.pods().count());
    let authority = Authority::new()?;
    let secrets = lab.scratch().dir().join("secrets");
    std::fs::create_dir(&secrets)?;
    let secret = secrets.join("tls-secret.yaml");
    manifests::write(&secret, &certificates::first(&authority)?)?;
    let name_server = ingress::serve_outside(&lab)?;
    let setup = Setup::manifests(&dir).and_manifests(&secrets).name_server(name_server);
    let agent = Agent::ready(&lab, setup.clone())?;
    println!(
        "node1 runs weir (pid {}) --manifests {} --manifests {}",
        agent.pid(),
        dir.display(),
        secrets.display()
    );
    println!("{} has been made, and an authority that clients trust", ingress::SECRET);
    let assigned = Assigned { my_service: agent.cluster_ip("default/my-service")? };
    println!("my-service has been given {}\n", assigned.my_service);
    let tell = |outcome: &Outcome| println!("{outcome}");
    let mut outcomes = cases::run(&lab, &assigned, tell);
    outcomes.extend(ingress::run(&lab, &authority, tell));
    let told = ingress::told(&agent);
    told.iter().for_each(tell);
    outcomes.extend(told);
    let change = |object: Option<&Value>| manifests::write_or_remove(&secret, object);
    outcomes.extend(certificates::run(&lab, &authority, &change, tell));
    let failed: Vec<&Outcome> = outcomes.iter().filter(|outcome| outcome.said.is_err()).collect();
    println!("\n{} of {} cases ok", outcomes.len() - failed.len(), outcomes.len());
    if check {
        if !failed.is_empty() {
            for outcome in &failed {
                println!("{outcome}");
            }
            bail!("{} of {} cases failed", failed.len(), outcomes.len());
        }
        return Ok(());
    }
    let root = lab.scratch().dir().join("ca.pem");
    std::fs::write(&root, authority.root())?;
    suggest(&lab, &setup, &assigned, &root)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(())
}

fn suggest(lab: &Topology, setup: &Setup, assigned: &Assigned, root: &Path) -> Result<()> {
    let pod = lab.pod("client")?.path().display();
    let outside = lab.client().path().display();
    let cgroup = lab.node_cgroup()?;
    let ip = assigned.my_service;
    println!("\nThe network stays up until Ctrl-C. Try, as root:");
    println!("  # a pod asks my-service, translated packet by packet");
    println!("  nsenter --net={pod} curl -s {ip}");
    println!("  # the same, translated once at connect()");
    println!("  sh -c 'echo $$ > {}/cgroup.procs; nsenter --net={pod} curl -s {ip}'", cgroup.display());
    println!("  # from outside: NodePort, LoadBalancer address, externalIP");
    println!("  nsenter --net={outside} curl -s 172.30.0.1:30080");
    println!("  nsenter --net={outside} curl -s 'http://[2001:db8:100::10]'");
    println!("  nsenter --net={outside} curl -s 203.0.113.10");
    println!("  # the Ingress, over TLS, HTTP/2 and with its certificate verified");
    println!(
        "  nsenter --net={outside} curl -s --cacert {} --connect-to ::172.30.0.1 https://example.com/api",
        root.display()
    );
    println!("  # what the agent knows");
    let service = format!("explain {ip}:80");
    for words in [
        "status",
        "services",
        "routes",
        &service,
        "explain svc/default/no-endpoints:80",
        "explain https://example.com/apix",
        "problems",
    ] {
        println!("  {}", invocation(lab, setup, words));
    }
    Ok(())
}
