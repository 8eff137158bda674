//! The Helm chart stands for the objects that kustomize makes: for its defaults, for each overlay
//! with the values of the same name, and for components that are combined.

use anyhow::{Context, Result, ensure};
use lab::deploy::{find, folder, objects, rendered};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;

/// Objects by what tells them apart, each as text whose lists have one order.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, String> {
    let named = objects.into_iter().filter(|object| object.is_object()).map(|object| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let name =
            format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]));
        (name, sorted(object).to_string())
    });
    named.collect()
}

/// Containers, mounts, volumes, variables and subjects mean the same in any order; words do not.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.into_iter().map(sorted).collect();
            if list.iter().all(Value::is_object) {
                list.sort_by_key(Value::to_string);
            }
            Value::Array(list)
        }
        Value::Object(fields) => {
            let fields: BTreeMap<String, Value> =
                fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
    }
}

/// Components that people want at the same time.
const COMBINED: [&[&str]; 4] = [
    &["l4-only", "monitoring"],
    &["l7-only", "monitoring"],
    &["l7-nodes", "monitoring", "privileged"],
    &["namespaced-secrets", "l7-nodes", "monitoring"],
];

/// What an overlay of somebody's own makes of a folder and components.
fn combined(root: &str, components: &[&str]) -> Result<Vec<Value>> {
    let own = std::env::temp_dir().join(format!(
        "weir-overlay-{}-{root}-{}",
        std::process::id(),
        components.join("-")
    ));
    fs::create_dir_all(&own)?;
    // Roots are named by their way from here.
    let up = "../".repeat(own.canonicalize()?.components().count() - 1);
    let deploy = folder().canonicalize()?;
    let from_here = format!("{up}{}", deploy.strip_prefix("/")?.display());
    let components: String =
        components.iter().map(|name| format!("  - {from_here}/components/{name}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {from_here}/{root}\n\
         components:\n{components}"
    );
    fs::write(own.join("kustomization.yaml"), text)?;
    let made = objects(&own);
    fs::remove_dir_all(&own)?;
    made
}

#[test]
fn cleaning_up_can_be_privileged_too() -> Result<()> {
    let objects = combined("cleanup", &["privileged"])?;
    let spec = &find(&objects, "DaemonSet", "weir-cleanup")?["spec"]["template"]["spec"];
    for containers in ["initContainers", "containers"] {
        let context = &spec[containers][0]["securityContext"];
        ensure!(
            context["privileged"] == true && context["capabilities"].is_null(),
            "{containers}: {context}"
        );
    }
    Ok(())
}

#[test]
fn the_chart_makes_what_kustomize_makes() -> Result<()> {
    let base = by_name(objects(&folder())?);
    let mut compared = vec![(Vec::new(), base.clone())];
    for entry in fs::read_dir(folder().join("overlays"))? {
        let overlay = entry?;
        let mut wanted = by_name(objects(&overlay.path())?);
        // These come beside the others; the chart has no part without them.
        if overlay.file_name() == "admission" {
            wanted.extend(base.clone());
        }
        compared.push((vec![overlay.file_name().into_string().ok().context("a strange name")?], wanted));
    }
    let values = fs::read_dir(folder().join("chart/values"))?.count();
    ensure!(values == compared.len() - 1, "{values} files of values for {} overlays", compared.len() - 1);
    for components in COMBINED {
        let wanted = by_name(combined("base", components)?);
        compared.push((components.iter().map(ToString::to_string).collect(), wanted));
    }
    for (overlay, mut wanted) in compared {
        let overlay: Vec<&str> = overlay.iter().map(String::as_str).collect();
        // Helm keeps its record in the namespace, which must be there before.
        let namespace = wanted.remove("Namespace /weir-system");
        ensure!(namespace.is_some() && wanted.len() > 4, "{overlay:?}: {:?}", wanted.keys());
        let found = by_name(rendered(&overlay)?);
        let names = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&found) == names(&wanted), "{overlay:?}: {:?} and {:?}", names(&found), names(&wanted));
        for (name, wanted) in &wanted {
            let found = &found[name];
            ensure!(found == wanted, "{overlay:?}: {name}: Helm\n{found}\nkustomize\n{wanted}");
        }
    }
    Ok(())
}
