use super::*;
use crate::problem::ObjectKey;
use crate::source::{Object, Objects, Touched};
use std::fs;
use tempfile::TempDir;

/// A folder, a reader of it, and what the agent would know.
struct Bench {
    dir: TempDir,
    reader: Reader,
    objects: Objects,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let options = DirOptions { paths: vec![dir.path().to_path_buf()], fill: FillConfig::default() };
        Self { reader: Reader::new(options), dir, objects: Objects::new("node-1") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes files the way a careful tool does: beside, then renamed over.
    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(".new"), text).expect("written");
        fs::rename(self.path(".new"), self.path(name)).expect("renamed");
    }

    fn look(&mut self) -> Touched {
        let batch = self.reader.look(&Hint::All);
        self.objects.apply_all(batch)
    }

    fn services(&self) -> Vec<String> {
        self.objects.services.keys().map(ToString::to_string).collect()
    }

    fn port(&self, name: &str) -> u16 {
        self.objects.services[&ObjectKey::new("default", name)].ports[0].port
    }

    /// Problems as `file: field: reason`, the path cut to its name.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.dir.path().display());
        self.objects.source_problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

fn touched(names: &[&str]) -> Touched {
    Touched {
        services: names.iter().map(|name| ObjectKey::new("default", *name)).collect(),
        ..Touched::default()
    }
}

#[test]
fn a_folder_is_its_manifests_of_every_form() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &format!("# first\n---\n{}---\n{}...\n", service("one", 1), service("two", 2)));
    bench.write("b.yml", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "three", "namespace": "other"}, "spec": {"ports": [{"port": 3}]}}"#);
    let list = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "four"}, "spec": {"ports": [{"port": 4}]}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}]}"#;
    bench.write("c.json", list);
    bench.write(
        "d.yaml",
        "kind: ServiceList\napiVersion: v1\nitems:\n- metadata: {name: five}\n  spec: {ports: [{port: 5}]}\n",
    );
    bench.write("e.yaml", "kind: EndpointSlice\napiVersion: discovery.k8s.io/v1\naddressType: IPv4\nmetadata:\n  name: one-x\n  labels: {kubernetes.io/service-name: one}\nendpoints:\n- addresses: [10.1.0.1]\n");
    for kind in ["Namespace", "Secret", "ConfigMap"] {
        bench.write(
            &format!("{kind}.yaml"),
            &format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: x}}\n"),
        );
    }
    let kinds = [("Ingress", "rules: [{host: a.example}]"), ("IngressClass", "controller: weir.dev/ingress")];
    for (kind, spec) in kinds {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec: {{{spec}}}\n"
        );
        bench.write(&format!("{kind}.yaml"), &text);
    }
    bench.write("readme.txt", "not: [a manifest");
    bench.write(".hidden.yaml", "not: [a manifest");
    bench.look();
    assert_eq!(
        bench.services(),
        ["default/five", "default/four", "default/one", "default/two", "other/three"]
    );
    assert!(bench.objects.node.is_some());
    assert_eq!(bench.objects.pods.len(), 1);
    assert_eq!(bench.objects.slices.len(), 1);
    let x = ObjectKey::new("default", "x");
    assert!(bench.objects.ingresses.contains_key(&x) && bench.objects.secrets.contains_key(&x));
    assert!(bench.objects.ingress_classes.contains_key("x"));
    assert_eq!(bench.problems(), Vec::<String>::new());
    assert!(bench.objects.ready_l4() && bench.objects.ready_l7());
}

#[test]
fn a_changed_file_touches_only_what_differs_in_it() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &format!("{}---\n{}", service("one", 1), service("two", 2)));
    bench.write("b.yaml", &service("three", 3));
    assert_eq!(bench.look(), touched(&["one", "two", "three"]));
    assert_eq!(bench.look(), Touched::default());
    bench.write("a.yaml", &format!("# a comment\n{}---\n{}", service("one", 1), service("two", 22)));
    assert_eq!(bench.look(), touched(&["two"]));
    bench.write("a.yaml", &service("two", 22));
    assert_eq!(bench.look(), touched(&["one"]));
    fs::remove_file(bench.path("b.yaml")).expect("removed");
    assert_eq!(bench.look(), touched(&["three"]));
    assert_eq!(bench.services(), ["default/two"]);
}

#[test]
fn a_file_cut_anywhere_loses_nothing_that_it_had_before() {
    let whole = format!(
        "{}  selector: {{app: web}}\n---\n{}  sessionAffinity: \"ClientIP\"\n",
        service("one", 1),
        service("two", 2)
    );
    for cut in 1..whole.len() {
        let mut bench = Bench::new();
        bench.write("a.yaml", &whole);
        bench.write("b.yaml", &service("other", 3));
        bench.look();
        bench.write("a.yaml", &whole[..cut]);
        let touched = bench.look();
        assert!(!touched.services.contains(&ObjectKey::new("default", "other")), "cut at {cut}");
        let (services, problems) = (bench.services(), bench.problems());
        // What is left may be a whole file by itself; then it is read as one, and "two" is gone.
        let is_whole = problems.is_empty() && services == ["default/one", "default/other"];
        assert!(is_whole || services.len() == 3, "cut at {cut}: {services:?} {problems:?}");
        let cut_in_a_word = !whole[..cut].ends_with(['\n', ' ', ':', '1', '2', '-']);
        assert!(
            !cut_in_a_word || !problems.is_empty() || whole[cut..].starts_with(['\n', '}']),
            "cut at {cut} in silence"
        );
    }
}

#[test]
fn a_broken_document_costs_only_itself() {
    let mut bench = Bench::new();
    let good = format!("{}---\n{}---\n{}", service("one", 1), service("two", 2), service("three", 3));
    bench.write("a.yaml", &good);
    bench.look();
    let broken = good.replace("  - port: 2", "  - port: [2").replace("port: 3", "port: 33");
    bench.write("a.yaml", &broken);
    assert_eq!(bench.look(), touched(&["three"]));
    assert_eq!((bench.port("two"), bench.port("three")), (2, 33));
    let problems = bench.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("File a.yaml: document 2, line "), "{problems:?}");
    assert!(problems[0].contains("Service default/two: is not YAML"), "{problems:?}");
    assert!(problems[0].ends_with("its last good version stays"), "{problems:?}");

    let mistyped = good.replace("  - port: 2", "  - port: two");
    bench.write("a.yaml", &mistyped);
    assert_eq!(bench.look(), touched(&["three"]));
    assert_eq!(bench.port("two"), 2);
    let problems = bench.problems();
    assert!(
        problems[0]
            .starts_with("File a.yaml: document 2, line 15: Service default/two: spec.ports[0].port: "),
        "{problems:?}"
    );

    // Nobody can tell what was in there: what the file had stays.
    bench.write("a.yaml", &format!("{}---\nkind: [Service\n", service("one", 1)));
    assert_eq!(bench.look(), Touched::default());
    assert_eq!(bench.services(), ["default/one", "default/three", "default/two"]);
    assert!(bench.problems()[0].ends_with("the objects that the file had stay"), "{:?}", bench.problems());

    bench.write("a.yaml", &good.replace("port: 2", "port: 22"));
    assert_eq!(bench.look(), touched(&["two"]));
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn a_broken_json_list_keeps_what_it_had_and_a_bad_item_costs_itself() {
    let mut bench = Bench::new();
    let item = |name: &str, port: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {{\"name\": \"{name}\"}}, \"spec\": {{\"ports\": [{{\"port\": {port}}}]}}}}"
        )
    };
    let list = |items: &[String]| {
        format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n{}\n]}}", items.join(",\n"))
    };
    let good = list(&[item("one", "1"), item("two", "2")]);
    bench.write("a.json", &good);
    bench.look();
    bench.write("a.json", &good[..good.len() / 2]);
    assert_eq!(bench.look(), Touched::default());
    assert_eq!(bench.problems().len(), 1);
    bench.write("a.json", &list(&[item("one", "11"), item("two", "\"x\"")]));
    assert_eq!(bench.look(), touched(&["one"]));
    let problems = bench.problems();
    assert!(
        problems[0].starts_with(
            "File a.json: document 1, item 2, line 3: Service default/two: spec.ports[0].port: "
        ),
        "{problems:?}"
    );
    bench.write("a.json", &list(&[item("two", "2")]));
    assert_eq!(bench.look(), touched(&["one"]));
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn the_first_file_that_defines_an_object_counts() {
    let mut bench = Bench::new();
    bench.write("b.yaml", &service("one", 2));
    bench.look();
    bench.write("c.yaml", &service("one", 3));
    assert_eq!(bench.look(), Touched::default());
    assert_eq!(bench.port("one"), 2);
    let problems = bench.problems();
    assert!(
        problems.len() == 1 && problems[0].starts_with("File c.yaml: : Service default/one: is defined in"),
        "{problems:?}"
    );
    bench.write("a.yaml", &service("one", 1));
    assert_eq!(bench.look(), touched(&["one"]));
    assert_eq!((bench.port("one"), bench.problems().len()), (1, 2));
    fs::remove_file(bench.path("a.yaml")).expect("removed");
    bench.look();
    assert_eq!((bench.port("one"), bench.problems().len()), (2, 1));
    fs::remove_file(bench.path("b.yaml")).expect("removed");
    bench.look();
    assert_eq!((bench.port("one"), bench.problems().len()), (3, 0));
    bench.write("c.yaml", &format!("{}---\n{}", service("one", 4), service("one", 5)));
    bench.look();
    assert_eq!(bench.port("one"), 4);
    assert!(bench.problems()[0].contains("is defined above already"), "{:?}", bench.problems());
}

#[test]
fn what_is_no_object_of_ours_is_told_by_file_and_kind() {
    for (name, text, expected) in [
        (
            "another kind",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n",
            "kind Deployment of apps/v1 is not read",
        ),
        (
            "another group's Service",
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: x}\n",
            "kind Service of serving.knative.dev/v1",
        ),
        ("no kind", "apiVersion: v1\nmetadata: {name: x}\n", "kind is missing"),
        ("no version", "kind: Service\nmetadata: {name: x}\n", "apiVersion is missing"),
        ("no name", "apiVersion: v1\nkind: Service\nmetadata: {}\n", "metadata.name is missing"),
        ("text", "hello\n", "is no object"),
        (
            "no ports",
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {selector: {a: b}}\n",
            "spec.ports: is missing",
        ),
        (
            "number as label",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, labels: {app: 80}}\n",
            "metadata.labels.app: invalid type: integer `80`",
        ),
    ] {
        let mut bench = Bench::new();
        bench.write("a.yaml", text);
        bench.write("b.yaml", &service("one", 1));
        bench.look();
        assert_eq!(bench.services(), ["default/one"], "{name}");
        let problems = bench.problems();
        assert!(problems.len() == 1 && problems[0].contains(expected), "{name}: {problems:?}");
        assert!(problems[0].starts_with("File a.yaml: document 1, line "), "{name}: {problems:?}");
    }
}

#[test]
fn an_unreadable_file_keeps_its_objects() {
    let mut bench = Bench::new();
    bench.write("a.yaml", &service("one", 1));
    bench.look();
    fs::write(bench.path("a.yaml"), [0xff, 0xfe, 0x00]).expect("written");
    assert_eq!(bench.look(), Touched::default());
    assert_eq!((bench.services().len(), bench.problems().len()), (1, 1));
}

#[test]
fn nothing_is_sent_before_every_path_is_there_and_a_lost_folder_deletes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let late = dir.path().join("late");
    let file = dir.path().join("one.yaml");
    fs::write(&file, service("one", 1)).expect("written");
    let paths = vec![file.clone(), late.clone()];
    let mut reader = Reader::new(DirOptions { paths, fill: FillConfig::default() });
    let mut objects = Objects::new("node-1");

    objects.apply_all(reader.look(&Hint::All));
    assert!(!objects.ready_l4() && objects.services.is_empty());
    assert!(objects.source_problems[0].reason.contains("nothing is programmed before"));

    fs::create_dir(&late).expect("made");
    fs::write(late.join("two.yaml"), service("two", 2)).expect("written");
    objects.apply_all(reader.look(&Hint::All));
    assert!(objects.ready_l4());
    assert_eq!((objects.services.len(), objects.source_problems.len()), (2, 0));

    fs::rename(&late, dir.path().join("gone")).expect("renamed");
    objects.apply_all(reader.look(&Hint::All));
    assert_eq!((objects.services.len(), objects.source_problems.len()), (2, 1));

    // A file that was asked for by name and is deleted is deleted.
    fs::remove_file(&file).expect("removed");
    objects.apply_all(reader.look(&Hint::Some([file].into())));
    assert_eq!(objects.services.len(), 1);
}

#[tokio::test]
async fn changes_are_seen_as_they_happen_one_batch_a_file() {
    use tokio::time::timeout;
    let patience = std::time::Duration::from_secs(10);
    let dir = tempfile::tempdir().expect("a folder");
    let (tx, mut rx) = tokio::sync::mpsc::channel(16);
    let syncs = Arc::new(Syncs::default());
    let options = DirOptions { paths: vec![dir.path().to_path_buf()], fill: FillConfig::default() };
    let running = tokio::spawn(DirSource::new(options).run(tx, Arc::clone(&syncs)));
    let mut objects = Objects::new("node-1");
    objects.apply_all(timeout(patience, rx.recv()).await.expect("in time").expect("a batch"));
    assert!(objects.ready_l4());

    let both = format!("{}---\n{}", service("one", 1), service("two", 2));
    fs::write(dir.path().join("a.yaml"), &both).expect("written");
    let batch = timeout(patience, rx.recv()).await.expect("in time").expect("a batch");
    assert_eq!(objects.apply_all(batch), touched(&["one", "two"]));

    fs::write(dir.path().join(".a"), both.replace("port: 1", "port: 11")).expect("written");
    fs::rename(dir.path().join(".a"), dir.path().join("a.yaml")).expect("renamed");
    let batch = timeout(patience, rx.recv()).await.expect("in time").expect("a batch");
    assert_eq!(objects.apply_all(batch), touched(&["one"]));

    fs::remove_file(dir.path().join("a.yaml")).expect("removed");
    let batch = timeout(patience, rx.recv()).await.expect("in time").expect("a batch");
    assert_eq!(objects.apply_all(batch), touched(&["one", "two"]));
    assert!(syncs.kinds()[&Kind::Service].listed_since.is_some());

    drop(rx);
    timeout(patience, running).await.expect("stops when nobody listens").expect("no panic");
}

#[test]
fn a_mounted_config_map_is_seen_when_its_link_is_swapped() {
    let mut bench = Bench::new();
    for (version, port) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(bench.path(version)).expect("made");
        fs::write(bench.path(version).join("a.yaml"), service("one", port)).expect("written");
    }
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, bench.path("..tmp")).expect("linked");
        fs::rename(bench.path("..tmp"), bench.path("..data")).expect("renamed");
    };
    link("..1");
    std::os::unix::fs::symlink("..data/a.yaml", bench.path("a.yaml")).expect("linked");
    let batch = bench.reader.look(&Hint::All);
    bench.objects.apply_all(batch);
    assert_eq!(bench.port("one"), 1);
    let link = |to: &str| {
        std::os::unix::fs::symlink(to, bench.path("..tmp")).expect("linked");
        fs::rename(bench.path("..tmp"), bench.path("..data")).expect("renamed");
    };
    link("..2");
    bench.look();
    assert_eq!(bench.port("one"), 2);
}

/// Lists of the shape that the scale figures are taken with.
fn big_list(services: usize) -> String {
    let mut items = Vec::new();
    for n in 0..services {
        items.push(format!(
            r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"s{n}"}},"spec":{{"ports":[{{"port":80}}]}}}}"#
        ));
        let endpoints: Vec<String> = (0..10)
            .map(|e| {
                format!(
                    r#"{{"addresses":["10.{}.{}.{e}"],"nodeName":"n{}","conditions":{{"ready":true}}}}"#,
                    n / 250,
                    n % 250,
                    e
                )
            })
            .collect();
        items.push(format!(
            r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4","metadata":{{"name":"s{n}-x","labels":{{"kubernetes.io/service-name":"s{n}"}}}},"ports":[{{"name":"","port":8080}}],"endpoints":[{}]}}"#,
            endpoints.join(",")
        ));
    }
    format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[\n{}\n]}}", items.join(",\n"))
}

#[test]
fn a_large_list_loads_and_one_changed_item_touches_one_service() {
    let mut bench = Bench::new();
    let list = big_list(2000);
    bench.write("all.json", &list);
    assert_eq!(bench.look().services.len(), 2000);
    assert_eq!(bench.objects.slices.values().map(|slice| slice.endpoints.len()).sum::<usize>(), 20_000);
    bench.write("all.json", &list.replace("10.3.7.4", "10.200.7.4"));
    let batch = bench.reader.look(&Hint::All);
    assert!(batch.iter().all(|change| !matches!(change, Change::Replace(..))));
    let slices =
        batch.iter().filter(|change| matches!(change, Change::Upsert(Object::EndpointSlice(_)))).count();
    assert_eq!(slices, 1);
    assert_eq!(bench.objects.apply_all(batch), touched(&["s757"]));
}
