//! Which Ingresses are ours, their hosts and paths, and who gets what several ask for.

use super::*;

/// Name; class, annotation; classes with their controller, and whether they are the default;
/// flags; whether the Ingress is ours.
type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a [(&'a str, &'a str, bool)], L7Options, bool);

#[test]
fn an_ingress_is_ours_by_its_class() {
    #[rustfmt::skip]
    let rows: &[Row<'_>] = &[
        ("our class (I1)", Some("weir"), None, &[("weir", "weir.dev/ingress", false)], options(), true),
        ("a foreign class (I4)", Some("other"), None, &[("other", "x/y", false)], options(), false),
        ("an unknown class (I4)", Some("weir"), None, &[], options(), false),
        ("the field hides the annotation (I3)", Some("other"), Some("weir"),
            &[("weir", "weir.dev/ingress", false), ("other", "x/y", false)], options(), false),
        ("the annotation alone (I3)", None, Some("weir"), &[("weir", "weir.dev/ingress", false)], options(), true),
        ("a foreign annotation (I3)", None, Some("nginx"), &[("weir", "weir.dev/ingress", true)], options(), false),
        ("no class, and none at all: manifests", None, None, &[], options(), true),
        ("no class, ours is the default: manifests", None, None, &[("weir", "weir.dev/ingress", true)], options(), true),
        ("no class, ours is no default: manifests", None, None, &[("weir", "weir.dev/ingress", false)], options(), false),
        ("no class, the default is foreign: manifests", None, None,
            &[("a", "x/y", true), ("weir", "weir.dev/ingress", false)], options(), false),
        ("no class, API server (I2)", None, None, &[("weir", "weir.dev/ingress", true)],
            L7Options { manifests: false, ..options() }, false),
        ("no class, asked for (I2)", None, None, &[],
            L7Options { manifests: false, without_class: true, ..options() }, true),
        ("several controllers (I1)", Some("nginx"), None, &[("nginx", "k8s.io/ingress-nginx", false)],
            L7Options { controllers: ["a".into(), "k8s.io/ingress-nginx".into()].into(), ..options() }, true),
        ("another namespace (I5)", Some("weir"), None, &[("weir", "weir.dev/ingress", false)],
            L7Options { namespace: Some("shop".into()), ..options() }, false),
        ("the watched namespace (I5)", Some("weir"), None, &[("weir", "weir.dev/ingress", false)],
            L7Options { namespace: Some("default".into()), ..options() }, true),
    ];
    for (name, class, annotation, classes, options, ours) in rows {
        let mut objects = Objects::default();
        for (class, controller, default) in *classes {
            put_class(&mut objects, class, controller, *default);
        }
        let mut subject = ingress("a", 0, &["a.example P / web:80"]);
        subject.class = class.map(Into::into);
        subject.class_annotation = annotation.map(Into::into);
        put_ingress(&mut objects, subject);
        let model = built_with(options.clone(), &objects, &L7Input::default());
        assert_eq!(model.owned().count() == 1, *ours, "{name}");
        assert_eq!(model.routes().hosts.len() == 1, *ours, "{name}");
        assert_eq!(model.problems().is_empty(), !*ours, "{name}: of others nothing is told");
    }
}

#[test]
fn routes_come_and_go_with_the_class() {
    let mut objects = Objects::default();
    let mut subject = ingress("a", 0, &["a.example P / web:80"]);
    subject.class = Some("weir".into());
    put_ingress(&mut objects, subject);
    web(&mut objects, "web", "10.0.0.1");
    let mut model = built(&objects);
    let classes = Touched { ingress_classes: true, ..Touched::default() };
    assert!(rules(&model).is_empty());
    put_class(&mut objects, "weir", "weir.dev/ingress", false);
    assert_eq!(model.update(&objects, &L7Input::default(), &classes).len(), 2);
    assert_eq!(rules(&model), ["a.example P  default/web:80 (default/a)"]);
    objects.ingress_classes.clear();
    model.update(&objects, &L7Input::default(), &classes);
    assert_eq!(*model.routes(), Routes::default());
    assert_eq!(model.owned().count(), 0);
}

#[test]
fn hosts_and_paths_are_brought_into_their_form_and_order() {
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(
        &mut objects,
        ingress(
            "a",
            0,
            &[
                "Shop.Example P /a/ web:80",
                "shop.example E /a web:http",
                "shop.example P /a/b web:80",
                "shop.example E /a/ web:80",
                "shop.example I /impl web:80",
                "*.shop.example P / web:80",
                "* P /any web:80",
                "only.example",
            ],
        ),
    );
    let model = built(&objects);
    let to = "default/web:80 (default/a)";
    assert_eq!(
        rules(&model),
        [
            "only.example nothing".to_string(),
            format!("shop.example P /impl {to}"),
            format!("shop.example P /a/b {to}"),
            format!("shop.example E /a/ {to}"),
            format!("shop.example E /a {to}"),
            format!("shop.example P /a {to}"),
            format!("*.shop.example P  {to}"),
            format!("* P /any {to}"),
        ]
    );
    assert_eq!(told(&model), "");
}

#[test]
fn what_no_request_can_ask_for_is_told_and_costs_only_itself() {
    let long = format!("/{}", "x".repeat(5_000));
    let rows = [
        ("bad_host.example", "P", "/", "is not a DNS name"),
        ("192.0.2.1", "P", "/", "is not a DNS name"),
        ("a..example", "P", "/", "is not a DNS name"),
        ("*.*.example", "P", "/", "is not a DNS name"),
        ("a.example:80", "P", "/", "is not a DNS name"),
        ("a.example", "P", "api", "does not begin with /"),
        ("a.example", "E", "/a?b", "no path of a request holds"),
        ("a.example", "E", "/a#b", "no path of a request holds"),
        ("a.example", "P", "/é", "no path of a request holds"),
        ("a.example", "P", "/foo(.*)", "as regular expressions do"),
        ("a.example", "E", "/a$", "as regular expressions do"),
        ("a.example", "P", &long, "longer than"),
    ];
    for (host, kind, path, reason) in rows {
        let mut objects = Objects::default();
        web(&mut objects, "web", "10.0.0.1");
        put_ingress(
            &mut objects,
            ingress("a", 0, &[&format!("{host} {kind} {path} web:80"), "good.example P / web:80"]),
        );
        let model = built(&objects);
        assert_told(&model, &[reason]);
        let found = rules(&model);
        assert_eq!(found.last().unwrap(), "good.example P  default/web:80 (default/a)", "{host} {path}");
        assert!(
            found.iter().all(|line| !line.contains("/") || !line.starts_with("a.example P /")),
            "{found:?}"
        );
    }
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a", 0, &["a.example I /foo(.*) web:80"]));
    let model = built(&objects);
    assert_eq!(rules(&model), ["a.example P /foo(.*) default/web:80 (default/a)"], "I12: as Prefix");
    assert_told(&model, &["looks like a regular expression"]);
    put_ingress(&mut objects, ingress("a", 0, &["a.example P /a%20b web:80"]));
    assert_told(&built(&objects), &["requests on it answer 400"]);
}

#[test]
fn the_older_ingress_keeps_its_path_and_the_other_is_told() {
    let mut objects = Objects::default();
    web(&mut objects, "a/web", "10.0.0.1");
    web(&mut objects, "b/web", "10.0.0.2");
    put_ingress(&mut objects, ingress("a/young", 20, &["x.example P /api web:80", "x.example P /a web:80"]));
    put_ingress(&mut objects, ingress("b/old", 10, &["x.example P /api/ web:80", "x.example E /api web:80"]));
    let model = built(&objects);
    let merged = [
        "x.example E /api b/web:80 (b/old)",
        "x.example P /api b/web:80 (b/old)",
        "x.example P /a a/web:80 (a/young)",
    ];
    assert_eq!(rules(&model), merged);
    assert_told(
        &model,
        &[
            "Ingress a/young: spec.rules[0].http.paths[0]: x.example Prefix /api: held by Ingress b/old, which is older",
        ],
    );
    // The same age: by namespace and name.
    put_ingress(&mut objects, ingress("b/old", 20, &["x.example P /api/ web:80"]));
    let model = built(&objects);
    assert_eq!(rules(&model)[0], "x.example P /api a/web:80 (a/young)");
    assert_told(
        &model,
        &[
            "Ingress b/old: spec.rules[0].http.paths[0]: x.example Prefix /api: held by Ingress a/young, whose name sorts first",
        ],
    );
    // Its own earlier entry.
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80", "x.example P / web:http"]));
    assert_told(
        &built(&objects),
        &["spec.rules[1].http.paths[0]: x.example Prefix /: an earlier entry of this Ingress"],
    );
}

#[test]
fn a_problem_names_the_field_as_it_was_written() {
    let mut ingress = ingress("a", 0, &["x.example P /api none:80", "tls gone y.example *"]);
    ingress.rules[0].index = 2;
    ingress.rules[0].paths.as_mut().unwrap()[0].index = 1;
    ingress.tls[0].index = 3;
    ingress.tls[0].hosts[1].0 = 5;
    let mut objects = Objects::default();
    put_ingress(&mut objects, ingress);
    objects.listed.insert(Kind::Secret);
    assert_told(
        &built(&objects),
        &[
            "spec.rules[2].http.paths[1]: x.example Prefix /api: there is no Service",
            "spec.tls[3].secretName: Secret default/gone",
            "spec.tls[3].hosts[5]: \"*\" is not a DNS name",
        ],
    );
}

/// A Namespace that is being deleted keeps its Ingresses until its last Pod is gone, and an
/// Ingress its finalizers: what they hold is given to whoever stays, and served by them until
/// then.
#[test]
fn an_ingress_that_is_being_deleted_gives_way_and_serves_what_nobody_else_asks_for() {
    let mut objects = Objects::default();
    web(&mut objects, "a/web", "10.0.0.1");
    web(&mut objects, "b/web", "10.0.0.2");
    put_ingress(&mut objects, ingress("a/old", 10, &["x.example P /api web:80", "default web:80"]));
    put_ingress(&mut objects, ingress("a/any", 10, &["default web:80"]));
    put_ingress(&mut objects, ingress("b/any", 20, &["default web:80"]));
    let input = L7Input { now: NOW, ..L7Input::default() };
    let mut model = built(&objects);
    let default = |model: &L7Model| rules(model).into_iter().find(|line| line.starts_with("* default"));
    assert_eq!(default(&model).unwrap(), "* default a/web:80 (a/any)");

    let namespace = |ending| {
        let namespace = Namespace { name: "a".into(), ending };
        crate::source::Change::Upsert(crate::source::Object::Namespace(namespace))
    };
    let touched = objects.apply(namespace(true));
    assert_eq!(touched.ingresses, [key("a/any"), key("a/old")].into(), "and none of another namespace");
    model.update(&objects, &input, &touched);
    assert_eq!(default(&model).unwrap(), "* default b/web:80 (b/any)");
    assert_eq!(rules(&model)[0], "x.example P /api a/web:80 (a/old)", "nobody else's");
    assert_told(
        &model,
        &[
            "Ingress a/any: spec.defaultBackend: default of *: held by Ingress b/any, while this one is being deleted",
        ],
    );
    // Both: the older one again. Neither any more: as before.
    let mut ending = ingress("b/any", 20, &["default web:80"]);
    ending.ending = true;
    put_ingress(&mut objects, ending);
    assert_eq!(default(&built(&objects)).unwrap(), "* default a/web:80 (a/any)");
    let touched = objects.apply(namespace(false));
    model.update(&objects, &input, &touched);
    assert_eq!(default(&model).unwrap(), "* default a/web:80 (a/any)");
}

#[test]
fn default_backends_are_for_their_own_hosts() {
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("own", 1, &["a.example P /x web:80", "b.example", "default web:80"]));
    put_ingress(&mut objects, ingress("late", 2, &["a.example P /y web:80", "default web:http"]));
    put_ingress(&mut objects, ingress("catch-all", 3, &["default web:80"]));
    put_ingress(&mut objects, ingress("none", 4, &["c.example P /x web:80"]));
    let model = built(&objects);
    let to = "default/web:80";
    assert_eq!(
        rules(&model),
        [
            format!("a.example P /x {to} (default/own)"),
            format!("a.example P /y {to} (default/late)"),
            format!("a.example default {to} (default/own)"),
            format!("b.example default {to} (default/own)"),
            format!("c.example P /x {to} (default/none)"),
            format!("* default {to} (default/catch-all)"),
        ]
    );
    assert_told(
        &model,
        &["Ingress default/late: spec.defaultBackend: default of a.example: held by Ingress default/own"],
    );
}

#[test]
fn https_is_asked_for_by_those_who_have_tls_and_forced_on_no_elder() {
    let mut objects = Objects::default();
    for service in ["a/web", "b/web", "c/web"] {
        web(&mut objects, service, "10.0.0.1");
    }
    put_ingress(&mut objects, ingress("a/old", 10, &["x.example P /a web:80"]));
    put_ingress(&mut objects, ingress("b/mid", 20, &["x.example P /b web:80", "tls - x.example"]));
    put_ingress(&mut objects, ingress("b/elder", 5, &["x.example P /b2 web:80"]));
    put_ingress(&mut objects, ingress("c/new", 30, &["x.example P /c web:80"]));
    put_ingress(&mut objects, ingress("a/else", 40, &["y.z.example P / web:80", "tls - *.z.example"]));
    put_ingress(&mut objects, ingress("a/bare", 40, &["tls - plain.example"]));
    put_ingress(&mut objects, ingress("b/plain", 41, &["plain.example P / web:80"]));
    assert_eq!(
        rules(&built(&objects)),
        [
            "plain.example P  b/web:80 (b/plain)",
            "x.example P /b2 b/web:80 (b/elder) 308",
            "x.example P /a a/web:80 (a/old)",
            "x.example P /b b/web:80 (b/mid) 308",
            "x.example P /c c/web:80 (c/new) 308",
            "y.z.example P  a/web:80 (a/else) 308",
        ]
    );
}

#[test]
fn one_ingress_and_one_host_have_a_limit() {
    let lines: Vec<String> = (0..11_000).map(|n| format!("x.example E /{n} web:80")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut objects = Objects::default();
    web(&mut objects, "web", "10.0.0.1");
    put_ingress(&mut objects, ingress("a", 0, &lines));
    let model = built(&objects);
    assert_eq!(rules(&model).len(), 10_000);
    assert!(told(&model).contains("more than 10000 paths"));
    put_ingress(&mut objects, ingress("b", 1, &lines));
    for (n, name) in ["c", "d"].iter().enumerate() {
        let lines: Vec<String> = lines.iter().map(|line| line.replace("E /", &format!("E /{n}/"))).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        put_ingress(&mut objects, ingress(name, 2, &lines));
    }
    let model = built(&objects);
    assert_eq!(rules(&model).len(), 20_000);
    assert!(told(&model).contains("Ingress default/d: spec.rules: x.example has more than 20000 paths"));
    assert!(model.problems().len() < 60, "one object's problems are bounded");
}
