//! Answers as tables for people.

use serde_json::Value;

pub(super) fn json(value: &Value) -> String {
    // A Value always serializes.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

pub(super) fn explanation(value: &Value) -> String {
    text(value, "text")
}

pub(super) fn problems(value: &Value) -> String {
    let rows: Vec<[String; 3]> = rows(value, "problems").map(problem).collect();
    if rows.is_empty() {
        return "No problems.\n".into();
    }
    table(["OBJECT", "FIELD", "REASON"], &rows)
}

fn problem(problem: &Value) -> [String; 3] {
    let object = problem.get("object").unwrap_or(&Value::Null);
    let key = object.get("key").unwrap_or(&Value::Null);
    let (namespace, name) = (text(key, "namespace"), text(key, "name"));
    let name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
    [format!("{} {name}", text(object, "kind")), text(problem, "field"), text(problem, "reason")]
}

pub(super) fn services(value: &Value, detailed: bool) -> String {
    let mut rows = Vec::new();
    let mut details = String::new();
    for service in self::rows(value, "services") {
        for port in self::rows(service, "ports") {
            let backends: Vec<&Value> = self::rows(port, "backends").collect();
            let ready = backends.iter().filter(|backend| text(backend, "state") == "ready").count();
            let count = |group: &str, field: &str| {
                port.get(group).and_then(|group| group.get(field)).and_then(Value::as_u64).unwrap_or(0)
            };
            for frontend in self::rows(port, "frontends") {
                let programmed = frontend.get("programmed").and_then(Value::as_bool) == Some(true);
                rows.push([
                    text(service, "service"),
                    text(port, "name"),
                    text(frontend, "kind"),
                    format!("{}/{}", text(frontend, "address"), text(port, "protocol")),
                    format!("{ready}/{}", backends.len()),
                    (count("flows", "packet") + count("flows", "socket")).to_string(),
                    (count("drops", "no_endpoint") + count("drops", "other")).to_string(),
                    if programmed { "programmed" } else { "waiting" }.to_string(),
                ]);
            }
            if detailed {
                details.push_str(&port_details(port, &backends));
            }
        }
        if detailed {
            for problem in self::rows(service, "problems").map(problem) {
                details.push_str(&format!("Problem: {}: {}\n", problem[1], problem[2]));
            }
        }
    }
    if rows.is_empty() && details.is_empty() {
        return "No Services.\n".into();
    }
    let head = ["SERVICE", "PORT", "KIND", "FRONTEND", "READY", "FLOWS", "REFUSED", "STATE"];
    let table = table(head, &rows);
    if detailed { format!("{table}\n{details}") } else { table }
}

fn port_details(port: &Value, backends: &[&Value]) -> String {
    let rows: Vec<[String; 4]> = backends
        .iter()
        .map(|backend| {
            let on = |field: &str| backend.get(field).and_then(Value::as_bool) == Some(true);
            let sets = [("cluster_ip", "cluster-ip"), ("inside", "inside"), ("outside", "outside")];
            let sets: Vec<&str> = sets.iter().filter(|(field, _)| on(field)).map(|(_, name)| *name).collect();
            [
                text(backend, "address"),
                if on("local") { "this node" } else { "elsewhere" }.to_string(),
                text(backend, "state"),
                if sets.is_empty() { "-".to_string() } else { sets.join(",") },
            ]
        })
        .collect();
    let affinity = match port.get("affinity_seconds").and_then(Value::as_u64) {
        None | Some(0) => String::new(),
        Some(seconds) => format!(", session affinity {seconds} s"),
    };
    let name = text(port, "name");
    let name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
    let head = format!("Port{name} {} {}{affinity}\n", text(port, "protocol"), text(port, "family"));
    if rows.is_empty() {
        return format!("{head}  no endpoints\n");
    }
    let table = table(["BACKEND", "WHERE", "STATE", "TAKES NEW FLOWS OF"], &rows);
    format!("{head}{}", table.lines().map(|line| format!("  {line}\n")).collect::<String>())
}

pub(super) fn routes(value: &Value) -> String {
    let mut out = Vec::new();
    for host in rows(value, "hosts") {
        let certificate = host.get("certificate").unwrap_or(&Value::Null);
        let by_default = certificate.get("by_default").and_then(Value::as_bool) == Some(true);
        let certificate = match text(certificate, "secret") {
            secret if secret.is_empty() => "-".to_string(),
            secret if by_default => format!("{secret} (default)"),
            secret => secret,
        };
        for rule in rows(host, "rules") {
            let unavailable = text(rule, "unavailable");
            let endpoints: Vec<String> =
                rows(rule, "endpoints").filter_map(Value::as_str).map(Into::into).collect();
            let (service, endpoints) = match (unavailable.is_empty(), endpoints.is_empty()) {
                (false, _) => ("-".to_string(), format!("503: {unavailable}")),
                (true, true) => (text(rule, "service"), "none".to_string()),
                (true, false) => (text(rule, "service"), crate::explain::url::some(&endpoints)),
            };
            let policies: Vec<&str> = rows(rule, "policies").filter_map(Value::as_str).collect();
            out.push([
                text(host, "host"),
                text(rule, "path"),
                text(rule, "type"),
                service,
                endpoints,
                certificate.clone(),
                if policies.is_empty() { "-".to_string() } else { policies.join(",") },
                text(rule, "ingress"),
            ]);
        }
    }
    if out.is_empty() {
        return "No routes.\n".into();
    }
    table(["HOST", "PATH", "TYPE", "SERVICE", "ENDPOINTS", "CERTIFICATE", "POLICIES", "INGRESS"], &out)
}

pub(super) fn flows(value: &Value) -> String {
    let rows: Vec<[String; 6]> = rows(value, "flows")
        .map(|flow| {
            let flags = rows(flow, "flags").filter_map(Value::as_str).collect::<Vec<_>>().join(",");
            [
                text(flow, "protocol"),
                text(flow, "client"),
                text(flow, "frontend"),
                text(flow, "backend"),
                text(flow, "service"),
                flags,
            ]
        })
        .collect();
    table(["PROTO", "CLIENT", "FRONTEND", "BACKEND", "SERVICE", "FLAGS"], &rows)
}

pub(super) fn status(value: &Value) -> String {
    let part = |name: &str| value.get(name).unwrap_or(&Value::Null);
    let number = |part: &Value, name: &str| part.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (node, sync, programmed) = (part("node"), part("sync"), part("programmed"));
    let addresses: Vec<&str> = rows(node, "addresses").filter_map(Value::as_str).collect();
    let mut out = format!(
        "weir {} on {} ({}): {}\n",
        text(value, "version"),
        text(node, "name"),
        addresses.join(", "),
        text(value, "state")
    );
    if part("l4").as_bool() == Some(false) {
        out.push_str("L4 is off: nothing is programmed.\n");
    }
    if node.get("eligible").and_then(Value::as_bool) == Some(false) {
        out.push_str("The Node is unknown, or about to leave: load balancers are told to stay away.\n");
    }
    out.push_str(&format!(
        "{} Services, {} frontends, {} backends; {} rounds, the last one in {} µs; {} Services wait to be tried again\n\n",
        number(programmed, "services"),
        number(programmed, "frontends"),
        number(programmed, "backends"),
        number(sync, "rounds"),
        number(sync, "last_round_micros"),
        number(sync, "pending_services"),
    ));
    let l7 = part("l7");
    if l7.is_object() {
        out.push_str(&format!(
            "L7: {}; {} Ingresses, {} hosts, {} pools, {} certificates\n\n",
            text(l7, "state"),
            number(l7, "ingresses"),
            number(l7, "hosts"),
            number(l7, "pools"),
            number(l7, "certificates"),
        ));
    }
    let takeover = part("takeover");
    let carried = takeover.get("carried").unwrap_or(&Value::Null);
    let (tcp, udp) = (number(carried, "tcp"), number(carried, "udp"));
    if tcp + udp > 0 {
        let held = takeover.get("held").and_then(Value::as_bool).unwrap_or(false);
        let held = if held { ", by table inet weir-takeover" } else { "" };
        out.push_str(&format!(
            "Take-over: netfilter goes on with {tcp} TCP and {udp} UDP connections of kube-proxy's{held}\n\n"
        ));
    }
    let now = number(sync, "now_ms");
    let source = part("source");
    out.push_str(&format!("Source: {}\n", text(source, "origin")));
    let kinds = source.get("kinds").and_then(Value::as_object);
    let kinds: Vec<[String; 3]> = kinds
        .into_iter()
        .flatten()
        .map(|(kind, state)| {
            let listed =
                if state.get("listed_since").is_some_and(Value::is_u64) { "listed" } else { "waiting" };
            let heard = state.get("last_event").and_then(Value::as_u64);
            let heard = heard.map_or("never heard of".to_string(), |at| {
                format!("heard of {} s ago", now.saturating_sub(at) / 1000)
            });
            let error = text(state, "error");
            [kind.clone(), listed.to_string(), if error.is_empty() { heard } else { error }]
        })
        .collect();
    out.push_str(&indent(&table(["KIND", "STATE", "NEWS"], &kinds)));
    let hooks: Vec<[String; 3]> = rows(value, "hooks")
        .map(|hook| {
            let error = text(hook, "error");
            [
                text(hook, "place"),
                text(hook, "hook"),
                if error.is_empty() { "attached".into() } else { error },
            ]
        })
        .collect();
    out.push_str("\nHooks\n");
    out.push_str(&indent(&table(["PLACE", "HOOK", "STATE"], &hooks)));
    let maps: Vec<[String; 3]> = rows(value, "maps")
        .map(|map| [text(map, "map"), number(map, "used").to_string(), number(map, "capacity").to_string()])
        .collect();
    out.push_str("\nMaps\n");
    out.push_str(&indent(&table(["MAP", "USED", "CAPACITY"], &maps)));
    let listeners: Vec<[String; 3]> = rows(value, "listeners")
        .map(|listener| {
            let error = text(listener, "error");
            [
                text(listener, "name"),
                text(listener, "address"),
                if error.is_empty() { "listening".into() } else { error },
            ]
        })
        .collect();
    out.push_str("\nListeners\n");
    out.push_str(&indent(&table(["FLAG", "ADDRESS", "STATE"], &listeners)));
    let processes = part("processes");
    if processes.is_object() {
        let proxies: Vec<[String; 4]> = rows(processes, "proxies")
            .map(|proxy| {
                [text(proxy, "number"), text(proxy, "pid"), text(proxy, "state"), view(&proxy["view"])]
            })
            .collect();
        out.push_str(&format!(
            "\nProxies (ended unasked: {}; agents: {})\n",
            number(processes, "proxy_restarts"),
            number(processes, "agent_restarts")
        ));
        out.push_str(&indent(&table(["NUMBER", "PID", "STATE", "SEES FILES"], &proxies)));
    }
    out.push_str("\nProblems\n");
    out.push_str(&indent(&problems(value)));
    out
}

/// Whether a proxy sees files, by what keeps it from them.
fn view(view: &Value) -> String {
    match view["confined"]["landlock"].as_u64() {
        Some(version) => format!("no (Landlock {version})"),
        None if view["open"].is_object() => "as its user".into(),
        None => "-".into(),
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn rows<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Columns as wide as their widest cell; the last one is left as it is.
fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        line.trim_end().to_string() + "\n"
    };
    let mut out = line(&mut head.into_iter());
    for row in rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up_and_a_problem_is_one_line() {
        let value = json!({ "problems": [
            { "object": { "kind": "Service", "key": { "namespace": "a", "name": "b" } }, "field": "spec", "reason": "bad" },
            { "object": { "kind": "File", "key": { "namespace": "", "name": "/x.yaml" } }, "field": "", "reason": "cut" },
        ]});
        let expected = "OBJECT        FIELD  REASON\nService a/b   spec   bad\nFile /x.yaml         cut\n";
        assert_eq!(problems(&value), expected);
        assert_eq!(problems(&json!({ "problems": [] })), "No problems.\n");
    }

    #[test]
    fn a_route_is_a_line_with_what_is_behind_it() {
        let value = json!({ "hosts": [{
            "host": "example.com",
            "certificate": { "secret": "default/tls-secret", "by_default": false },
            "rules": [
                { "path": "/api", "type": "Prefix", "service": "default/api:80", "endpoints": ["10.0.0.1:8080"],
                  "policies": ["https-308"], "ingress": "default/a" },
                { "path": "/x", "type": "Exact", "unavailable": "there is no Service default/x", "ingress": "default/a" },
            ],
        }]});
        let lines: Vec<String> = routes(&value)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines[1],
            "example.com /api Prefix default/api:80 10.0.0.1:8080 default/tls-secret https-308 default/a"
        );
        assert_eq!(
            lines[2],
            "example.com /x Exact - 503: there is no Service default/x default/tls-secret - default/a"
        );
        assert_eq!(routes(&json!({ "hosts": [] })), "No routes.\n");
    }

    #[test]
    fn a_proxy_is_told_with_what_it_sees() {
        let proxy = |number: u64, view: Value| json!({ "number": number, "pid": 7, "state": "serving", "view": view });
        let told = status(&json!({ "processes": { "proxies": [
            proxy(1, json!({ "confined": { "landlock": 7 } })),
            proxy(2, json!({ "open": { "reason": "no Landlock" } })),
            proxy(3, json!("untold")),
        ]}}));
        for row in ["no (Landlock 7)", "as its user", "-"] {
            assert!(told.lines().any(|line| line.trim_end().ends_with(&format!("serving  {row}"))), "{told}");
        }
    }

    #[test]
    fn a_status_without_parts_is_still_told() {
        let told = status(&json!({ "version": "1", "state": "standby", "node": { "name": "n" } }));
        assert!(told.starts_with("weir 1 on n (): standby\n"), "{told}");
    }
}
