#![expect(clippy::unwrap_used, reason = "tests")]
use super::value::{Devices, NodePortAddresses, SocketLb};
use super::*;
use std::io::Write;

fn config(args: &[&str]) -> Result<Config, String> {
    let args = ["weir", "run", "--node-name=n"].iter().chain(args).map(OsString::from);
    match parse(args) {
        Ok(Task::Run(config)) => Ok(*config),
        Ok(Task::Ask(_)) => panic!("not run"),
        Err(e) => {
            assert_eq!(e.exit_code(), 2);
            Err(e.to_string())
        }
    }
}

fn file(text: &str) -> (std::path::PathBuf, impl Drop) {
    struct Removed(std::path::PathBuf);
    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("weir-args-{}-{}.yaml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    (path.clone(), Removed(path))
}

#[test]
fn the_command_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = config(&[]).unwrap();
    let l4 = config.l4.unwrap();
    assert_eq!(l4.devices, Devices::Auto);
    assert!(l4.pod_devices && l4.socket_lb == SocketLb::On && !l4.masquerade_all);
    assert_eq!(l4.nodeport_addresses, NodePortAddresses::Primary);
    assert_eq!((l4.snat[0].first, l4.snat[0].last, l4.snat[1].first), (10000, 29999, 61000));
    assert_eq!(config.http.healthz.to_string(), "[::]:10256");
    assert_eq!(config.http.metrics.to_string(), "127.0.0.1:10249");
    assert_eq!(config.http.admin_socket.to_str(), Some("/run/weir/admin.sock"));
    let l7 = config.l7.unwrap();
    assert_eq!((l7.http[0].to_string(), l7.https[0].to_string()), ("[::]:80".into(), "[::]:443".into()));
    assert!(l7.workers > 0 && l7.controllers.iter().eq(["weir.dev/ingress"]));
    assert!(!l7.watch_without_class && l7.publish.update && l7.external_names);
    assert_eq!((l7.body_size, l7.drain_timeout.as_secs()), (Some(1 << 20), 240));
    assert_eq!((l7.access_log, l7.access_log_format), (AccessLog::Stdout, AccessLogFormat::Nginx));
    assert_eq!((l7.watch_namespace, l7.default_certificate, l7.publish.service), (None, None, None));
    assert!(matches!(config.source.kind, SourceKind::Api(_)));
}

/// H36: what the proxy, health and metrics listen on, whatever else the list names.
#[test]
fn own_ports_are_always_protected() {
    for (args, protected, free) in [
        (&[][..], &[22, 6443, 10249, 10250, 10256, 80, 443][..], &[8080][..]),
        (&["--protected-ports", "2222"], &[2222, 80, 443, 10256], &[22]),
        (&["--http-listen", "[::]:8080", "--healthz-listen", "[::]:9000"], &[8080, 443, 9000], &[80]),
        (&["--l7", "off"], &[22], &[80, 443]),
    ] {
        let ports = config(args).unwrap().model.protected_ports;
        assert!(protected.iter().all(|port| ports.contains(port)), "{args:?}: {ports:?}");
        assert!(!free.iter().any(|port| ports.contains(port)), "{args:?}: {ports:?}");
    }
}

/// Each deviation from kube-proxy that Weir has of its own accord is off, and what is said by its
/// own flag beats the profile.
#[test]
fn the_profile_of_kube_proxy_turns_off_what_weir_does_of_its_own_accord() {
    for (args, masquerades, protected, sockets) in [
        (&[][..], false, Some(22), SocketLb::On),
        (&["--compat", "off"], false, Some(22), SocketLb::On),
        (&["--compat", "kube-proxy"], true, None, SocketLb::Host),
        (&["--compat=kube-proxy", "--masquerade-external=off"], false, None, SocketLb::Host),
        (&["--compat=kube-proxy", "--protected-ports=2222"], true, Some(2222), SocketLb::Host),
        (&["--compat=kube-proxy", "--socket-lb=on"], true, None, SocketLb::On),
        (&["--masquerade-external", "--socket-lb=host"], true, Some(22), SocketLb::Host),
    ] {
        let config = config(args).unwrap();
        assert_eq!(config.model.masquerade_external, masquerades, "{args:?}");
        let ports = &config.model.protected_ports;
        assert!(protected.map_or(ports.is_empty(), |port| ports.contains(&port)), "{args:?}: {ports:?}");
        assert_eq!(config.l4.unwrap().socket_lb, sockets, "{args:?}");
    }
}

#[test]
fn flags_of_ingress_are_heard() {
    let config = config(&[
        "--ingress-controller=weir.dev/ingress,k8s.io/ingress-nginx",
        "--http-listen=127.0.0.1:8080",
        "--http-listen=[::1]:8080",
        "--proxy-workers=3",
        "--proxy-body-size=0",
        "--default-ssl-certificate=a/b",
        "--publish-status-address=192.0.2.1,lb.example.com",
        "--trusted-proxies=10.0.0.0/8",
        "--access-log=/var/log/x",
        "--access-log-format=json",
        "--external-names=off",
        "--drain-timeout=5m",
    ]);
    let l7 = config.unwrap().l7.unwrap();
    assert!(l7.controllers.contains("k8s.io/ingress-nginx") && l7.controllers.len() == 2);
    assert_eq!((l7.http.len(), l7.workers, l7.body_size), (2, 3, None));
    assert_eq!(l7.default_certificate.unwrap().to_string(), "a/b");
    assert_eq!(l7.publish.addresses.len(), 2);
    assert_eq!(l7.trusted_proxies.len(), 1);
    assert_eq!(l7.access_log, AccessLog::File("/var/log/x".into()));
    assert_eq!(l7.access_log_format, AccessLogFormat::Json);
    assert!(!l7.external_names && l7.drain_timeout.as_secs() == 300);
}

#[test]
fn the_admin_socket_follows_the_state_folder() {
    let config = config(&["--state-dir", "/tmp/x"]).unwrap();
    assert_eq!(config.http.admin_socket.to_str(), Some("/tmp/x/admin.sock"));
}

#[test]
fn booleans_take_on_off_true_false() {
    for (value, on) in [("on", true), ("true", true), ("off", false), ("false", false)] {
        assert_eq!(config(&["--l4", value]).unwrap().l4.is_some(), on);
        let all = format!("--masquerade-all={value}");
        assert_eq!(config(&[&all]).unwrap().l4.unwrap().masquerade_all, on);
    }
    assert!(config(&["--masquerade-all"]).unwrap().l4.unwrap().masquerade_all);
    for (value, on) in [("on", true), ("off", false)] {
        assert_eq!(config(&["--l7", value]).unwrap().l7.is_some(), on);
    }
    assert!(config(&["--watch-ingress-without-class"]).unwrap().l7.unwrap().watch_without_class);
}

#[test]
fn a_bad_value_names_flag_value_and_reason() {
    for (args, parts) in [
        (&["--xdp", "fast"][..], &["--xdp", "fast"][..]),
        (&["--snat-port-range", "5-1"], &["--snat-port-range", "5-1", "not a range"]),
        (&["--snat-port-range", "30000-31000"], &["--snat-port-range", "30000-31000", "--nodeport-range"]),
        (&["--cluster-cidr", "10.0.0.0/99"], &["--cluster-cidr", "10.0.0.0/99", "prefix length"]),
        (&["--healthz-listen", "10256"], &["--healthz-listen", "10256"]),
        (&["--apiserver", "10.0.0.1"], &["--apiserver", "10.0.0.1", "https://"]),
        (&["--default-ssl-certificate", "x"], &["--default-ssl-certificate", "NAMESPACE/NAME"]),
        (&["--l4", "maybe"], &["--l4", "maybe", "neither on nor off"]),
        (&["--publish-status-address", "a b"], &["--publish-status-address", "a b", "host name"]),
        (&["--proxy-body-size", "1mb"], &["--proxy-body-size", "1mb", "unit of size"]),
        (
            &["--http-listen", "127.0.0.1:80", "--https-listen", "127.0.0.1:80"],
            &["--http-listen", "127.0.0.1:80", "--https-listen"],
        ),
        (&["--protected-ports", "22,x"], &["--protected-ports", "x", "not a port"]),
    ] {
        let error = config(args).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}

#[test]
fn command_lines_of_others_can_be_pasted() {
    let config = config(&[
        "--hostname-override=other",
        "--master=https://10.0.0.1:6443",
        "--healthz-bind-address=0.0.0.0:10257",
        "--metrics-bind-address=0.0.0.0:10250",
        "--service-node-port-range=20000-22767",
        "--snat-port-range=40000-50000",
        "--controller-class=k8s.io/ingress-nginx",
    ]);
    // --node-name stands in the helper's command line already.
    assert!(config.unwrap_err().contains("cannot be used multiple times"));
    let args = [
        "weir",
        "run",
        "--hostname-override=Other",
        "--server=https://10.0.0.1:6443",
        "--healthz-bind-address=0.0.0.0:10257",
    ];
    let Ok(Task::Run(config)) = parse(args.iter().map(OsString::from)) else { panic!("refused") };
    assert_eq!(config.node_name, "other");
    assert_eq!(config.http.healthz.port(), 10257);
}

#[test]
fn flags_beat_the_file() {
    let (path, _removed) = file(
        "xdp: off\nsocket-lb: false\nnodeport_addresses: [10.0.0.0/8, 'fd00::/8']\nmanifests: [/a, /b]\nhealthz-listen: 127.0.0.1:1\n",
    );
    let config = config(&["--config", path.to_str().unwrap(), "--xdp", "generic"]).unwrap();
    let l4 = config.l4.unwrap();
    assert_eq!(l4.xdp, Xdp::Generic);
    assert_eq!(l4.socket_lb, SocketLb::Off);
    assert!(matches!(l4.nodeport_addresses, NodePortAddresses::Within(cidrs) if cidrs.len() == 2));
    assert!(matches!(config.source.kind, SourceKind::Manifests { paths, .. } if paths.len() == 2));
    assert_eq!(config.http.healthz.port(), 1);
}

#[test]
fn a_bad_file_is_wrong_usage() {
    for (text, parts) in [
        ("xdpp: off\n", &["xdpp", "no such flag"][..]),
        ("xdp: fast\n", &["--xdp", "fast"]),
        ("- a\n", &["--config"]),
        ("config: /x\n", &["no such flag"]),
    ] {
        let (path, _removed) = file(text);
        let error = config(&["--config", path.to_str().unwrap()]).unwrap_err();
        for part in parts.iter().chain([&path.to_str().unwrap()]) {
            assert!(error.contains(part), "{text}: {error}");
        }
    }
    assert!(config(&["--config", "/nonexistent.yaml"]).unwrap_err().contains("No such file"));
}
