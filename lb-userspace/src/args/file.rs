//! The configuration file: flags as keys, scalars or lists as values.

use clap::Command;
use std::collections::BTreeMap;
use std::path::Path;

/// A value as YAML gives it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Value>),
}

impl Value {
    fn texts(self) -> Vec<String> {
        match self {
            Self::Bool(on) => vec![if on { "on" } else { "off" }.to_string()],
            Self::Number(number) => vec![number.to_string()],
            Self::Text(text) => vec![text],
            Self::List(values) => values.into_iter().flat_map(Self::texts).collect(),
        }
    }
}

/// `command` with the file's values as the defaults of `run`.
///
/// # Errors
/// When the file cannot be read, is not a map of flags, or names an unknown one.
pub(super) fn with_defaults(command: Command, path: &Path) -> Result<Command, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let values: BTreeMap<String, Value> = super::config::yaml(&text)?;
    let mut run = command.find_subcommand("run").ok_or("no flags to set")?.clone();
    for (key, value) in values {
        let flag = key.replace('_', "-");
        let arg = run
            .get_arguments()
            .find(|arg| {
                arg.get_long() == Some(&flag) && !["config", "role"].contains(&&*flag) || is_alias(arg, &flag)
            })
            .ok_or_else(|| format!("{key}: no such flag"))?;
        let id = arg.get_id().clone();
        let mut texts = value.texts();
        // A list given to a flag that takes one value is that value with commas.
        if !matches!(arg.get_action(), clap::ArgAction::Append) {
            texts = vec![texts.join(",")];
        }
        run = run.mut_arg(id, |arg| arg.default_values(texts));
    }
    Ok(command.mut_subcommand("run", |_| run))
}

fn is_alias(arg: &clap::Arg, flag: &str) -> bool {
    arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&flag))
}
