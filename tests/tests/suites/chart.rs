//! The Helm chart stands for the objects that kustomize makes: for its defaults, and for each overlay
//! with the values of the same name.

use anyhow::{Context, Result, ensure};
use lab::deploy::{folder, objects, rendered};
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

#[test]
fn the_chart_makes_what_kustomize_makes() -> Result<()> {
    let base = by_name(objects(&folder())?);
    let mut compared = vec![(None, base.clone())];
    for entry in fs::read_dir(folder().join("overlays"))? {
        let overlay = entry?;
        let mut wanted = by_name(objects(&overlay.path())?);
        // These come beside the others; the chart has no part without them.
        if overlay.file_name() == "admission" {
            wanted.extend(base.clone());
        }
        compared.push((Some(overlay.file_name().into_string().ok().context("a strange name")?), wanted));
    }
    let values = fs::read_dir(folder().join("chart/values"))?.count();
    ensure!(values == compared.len() - 1, "{values} files of values for {} overlays", compared.len() - 1);
    for (overlay, mut wanted) in compared {
        // Helm keeps its record in the namespace, which must be there before.
        let namespace = wanted.remove("Namespace /weir-system");
        ensure!(namespace.is_some() && wanted.len() > 4, "{overlay:?}: {:?}", wanted.keys());
        let found = by_name(rendered(overlay.as_deref())?);
        let names = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&found) == names(&wanted), "{overlay:?}: {:?} and {:?}", names(&found), names(&wanted));
        for (name, wanted) in &wanted {
            let found = &found[name];
            ensure!(found == wanted, "{overlay:?}: {name}: Helm\n{found}\nkustomize\n{wanted}");
        }
    }
    Ok(())
}
