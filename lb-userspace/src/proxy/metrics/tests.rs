#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::model::routes::PoolKey;
use crate::proxy::record::Attempt;
use std::time::Duration;

fn ingress(n: usize) -> Arc<ObjectKey> {
    Arc::new(ObjectKey::new("shop", format!("front-{n}")))
}

fn pool(n: usize) -> PoolKey {
    PoolKey { service: Arc::new(ObjectKey::new("shop", format!("web-{n}"))), port: 80 }
}

fn attempt(status: Option<u16>) -> Attempt {
    Attempt {
        address: "10.0.0.1:80".parse().unwrap(),
        connect: Some(Duration::from_millis(1)),
        header: status.map(|_| Duration::from_millis(30)),
        response: Duration::from_millis(40),
        bytes: 10,
        status,
    }
}

fn record<'a>(route: Option<Route<'a>>, status: u16, attempts: &'a [Attempt]) -> Record<'a> {
    Record {
        peer: "192.0.2.7:40000".parse().unwrap(),
        client: "192.0.2.7".parse().unwrap(),
        method: "GET",
        target: "/",
        host: "a.example.com",
        http: http::Version::HTTP_11,
        tls: None,
        referer: None,
        user_agent: None,
        request_id: "",
        status,
        request_bytes: 200,
        body_bytes: 5_000,
        took: Duration::from_millis(50),
        route,
        attempts,
        local: None,
    }
}

/// The samples, without help and types.
fn samples(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|have| have == *line), "{line}\n{text}");
    }
}

#[test]
fn workers_are_summed_under_both_names() {
    let options = Options {
        workers: 2,
        refusals: vec!["bare-lf"],
        local: vec!["no_route"],
        node: "node1".into(),
        ..Options::default()
    };
    let metrics = Metrics::new(options, None, None);
    let recorders = [metrics.recorder(0), metrics.recorder(1)];
    let (front, web) = (ingress(1), pool(1));
    let route = Route { ingress: &front, pool: Some(&web) };
    for recorder in &recorders {
        recorder.opened(true);
        recorder.opened(false);
        recorder.closed(false);
        recorder.begun();
        recorder.begun();
        recorder.ended(&record(Some(route), 204, &[attempt(None), attempt(Some(204))]));
        recorder.refused("bare-lf");
        recorder.refused("one that nobody named");
        recorder.handshake(Err(&Refused::Timeout));
        recorder.tunnel_opened();
        recorder.ejected();
    }
    recorders[0].ended(&record(Some(route), 503, &[]));
    recorders[0].ended(&Record { local: Some("no_route"), ..record(None, 404, &[]) });
    metrics.configured(1_795_436_135);
    let text = metrics.text();
    assert!(!text.contains("# EOF"));
    let labels = "controller_class=\"weir\",controller_pod=\"node1\"";
    let named = format!("{labels},namespace=\"shop\",ingress=\"front-1\",service=\"web-1\"");
    assert_lines(
        &text,
        &[
            "lb_proxy_requests_total{ingress=\"shop/front-1\",service=\"shop/web-1\",code=\"2xx\"} 2",
            "lb_proxy_requests_total{ingress=\"shop/front-1\",service=\"shop/web-1\",code=\"5xx\"} 1",
            "lb_proxy_requests_total{ingress=\"\",service=\"\",code=\"4xx\"} 1",
            "lb_proxy_request_duration_seconds_count{ingress=\"shop/front-1\",service=\"shop/web-1\"} 3",
            "lb_proxy_request_duration_seconds_bucket{le=\"0.025\",ingress=\"shop/front-1\",service=\"shop/web-1\"} 0",
            "lb_proxy_request_duration_seconds_bucket{le=\"0.1\",ingress=\"shop/front-1\",service=\"shop/web-1\"} 3",
            "lb_proxy_body_bytes_total{ingress=\"shop/front-1\",service=\"shop/web-1\"} 15000",
            "lb_proxy_accepted_connections_total{scheme=\"https\"} 2",
            "lb_proxy_open_connections{scheme=\"https\"} 2",
            "lb_proxy_open_connections{scheme=\"http\"} 0",
            "lb_proxy_in_flight{what=\"request\"} 0",
            "lb_proxy_in_flight{what=\"tunnel\"} 2",
            "lb_proxy_handshakes_total{version=\"\",result=\"timeout\"} 2",
            "lb_proxy_refused_total{reason=\"bare-lf\"} 2",
            "lb_proxy_refused_total{reason=\"other\"} 2",
            "lb_proxy_local_answers_total{reason=\"no_route\"} 1",
            "lb_proxy_retries_total 2",
            "lb_proxy_ejections_total 2",
            &format!("nginx_ingress_controller_requests{{{named},status=\"2xx\"}} 2"),
            &format!("nginx_ingress_controller_request_duration_seconds_sum{{{named}}} 0.15"),
            &format!("nginx_ingress_controller_response_duration_seconds_count{{{named}}} 2"),
            &format!("nginx_ingress_controller_response_size_bucket{{le=\"1000.0\",{named}}} 0"),
            &format!("nginx_ingress_controller_response_size_bucket{{le=\"100000.0\",{named}}} 3"),
            &format!("nginx_ingress_controller_connect_duration_seconds_count{{{labels}}} 4"),
            &format!("nginx_ingress_controller_header_duration_seconds_count{{{labels}}} 2"),
            &format!("nginx_ingress_controller_nginx_process_connections{{{labels},state=\"active\"}} 2"),
            &format!(
                "nginx_ingress_controller_nginx_process_connections_total{{{labels},state=\"accepted\"}} 4"
            ),
            &format!("nginx_ingress_controller_config_last_reload_successful{{{labels}}} 1"),
        ],
    );
    let own = Options { nginx_names: false, ..Options::default() };
    assert!(!Metrics::new(own, None, None).text().contains("nginx"));
}

#[test]
fn series_are_bounded_whatever_the_number_of_ingresses() {
    let metrics = Metrics::new(Options::default(), None, None);
    let recorder = metrics.recorder(0);
    let attempts = [attempt(Some(200))];
    for n in 0..10_000 {
        let (front, web) = (ingress(n), pool(n));
        for status in [101, 200, 301, 404, 502] {
            recorder.ended(&record(Some(Route { ingress: &front, pool: Some(&web) }), status, &attempts));
        }
    }
    let text = metrics.text();
    let count = samples(&text).len();
    assert!((1_500..=3_000).contains(&count), "{count}");
    // Nothing is lost: what has no series of its own is counted together.
    let total: u64 = samples(&text)
        .iter()
        .filter(|line| line.starts_with("lb_proxy_requests_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(total, 50_000);
    let timed: u64 = samples(&text)
        .iter()
        .filter(|line| line.starts_with("lb_proxy_request_duration_seconds_count"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert_eq!(timed, 50_000);
    assert!(text.contains("lb_proxy_requests_total{ingress=\"other\",service=\"other\",code=\"2xx\"}"));
}

#[test]
fn removed_routes_take_their_series_along_and_make_room() {
    let metrics = Metrics::new(Options { most_series: 800, ..Options::default() }, None, None);
    let recorder = metrics.recorder(0);
    let has = |n: usize| metrics.text().contains(&format!("\"shop/front-{n}\""));
    let keys: Vec<_> = (0..100).map(|n| (ingress(n), pool(n))).collect();
    for (front, web) in &keys {
        recorder.ended(&record(Some(Route { ingress: front, pool: Some(web) }), 200, &[]));
    }
    assert!(has(0) && !has(99));
    let route = |n: usize| (&*keys[n].0, Some(&*keys[n].1.service));
    metrics.keep([route(99)]);
    assert!(!has(0));
    for n in [0, 99] {
        // The recorder asks again, and there is room now.
        let (front, web) = &keys[n];
        recorder.ended(&record(Some(Route { ingress: front, pool: Some(web) }), 200, &[]));
        assert!(has(n), "{n}");
    }
    metrics.keep([route(0), route(99)]);
    assert!(has(0) && has(99));
    // The Ingress lives on, and leads to another Service, or to none.
    metrics.keep([(&*keys[0].0, Some(&*keys[1].1.service)), (&*keys[99].0, None)]);
    assert!(!has(0) && !has(99));
    recorder.ended(&record(Some(Route { ingress: &keys[0].0, pool: None }), 503, &[]));
    metrics.keep([(&*keys[0].0, None)]);
    assert!(has(0));
}

#[test]
fn one_route_has_one_series_whatever_object_names_it() {
    let metrics = Metrics::new(Options::default(), None, None);
    let recorder = metrics.recorder(0);
    for _ in 0..3 {
        // As in a routing table that was sent again.
        let (front, web) = (ingress(1), pool(1));
        recorder.ended(&record(Some(Route { ingress: &front, pool: Some(&web) }), 200, &[]));
    }
    let text = metrics.text();
    assert_lines(
        &text,
        &["lb_proxy_requests_total{ingress=\"shop/front-1\",service=\"shop/web-1\",code=\"2xx\"} 3"],
    );
}

#[test]
fn counting_is_cheap() {
    let metrics = Metrics::new(Options::default(), None, None);
    let recorder = metrics.recorder(0);
    let (front, web) = (ingress(1), pool(1));
    let attempts = [attempt(Some(200))];
    let record = record(Some(Route { ingress: &front, pool: Some(&web) }), 200, &attempts);
    let begin = std::time::Instant::now();
    for _ in 0..10_000 {
        recorder.begun();
        recorder.ended(&record);
    }
    // Some 50 ns in a release build; without optimisation and on a busy machine still far below
    // what a lock or a made-up name would cost.
    assert!(begin.elapsed() < Duration::from_millis(300), "{:?}", begin.elapsed());
}

#[test]
fn certificates_are_told_by_secret() {
    use crate::proxy::tls::tests::{certificate, name, told};
    let certificates = Certificates::new().unwrap();
    let own = certificate(&["a.example.com"]);
    let mut updates = vec![told("own", &own), name("a.example.com", "own")];
    updates.extend((0..300).map(|n| told(&format!("s{n}"), &own)));
    certificates.update(&updates, true);
    let metrics = Metrics::new(Options::default(), Some(certificates), None);
    let text = metrics.text();
    assert_lines(
        &text,
        &[
            "lb_proxy_certificates_count{state=\"usable\"} 301",
            "lb_proxy_certificate_expiry_timestamp_seconds{secret=\"default/own\"} 4000000000",
            "nginx_ingress_controller_ssl_expire_time_seconds{class=\"weir\",host=\"a.example.com\",\
             namespace=\"default\",secret_name=\"own\"} 4000000000",
        ],
    );
    assert!(samples(&text).len() < 400, "the first hundred to end");
}
