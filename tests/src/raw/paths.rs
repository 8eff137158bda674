//! Runs the paths of the corpus through the agreement rule.

use super::corpus::{show, unescape};
use anyhow::{Context, Result, ensure};
use weir::proxy::target::{Refusal, agree};

/// A path and what is expected of it: `route NAME` or `refuse LABEL`.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub path: Vec<u8>,
    pub verdict: String,
}

/// Reads the paths of the corpus.
///
/// # Errors
/// At a line that is none.
pub fn read(text: &str) -> Result<Vec<Row>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let mut parts = line.split("  ");
            let mut next = || parts.next().with_context(|| format!("not name, path, verdict: {line}"));
            Ok(Row { name: next()?.to_owned(), path: unescape(next()?)?, verdict: next()?.to_owned() })
        })
        .collect()
}

/// The routes that the file of paths names.
#[must_use]
pub fn route(path: &[u8]) -> &'static str {
    if path == b"/api/exact" {
        return "exact";
    }
    for name in ["admin", "public", "projects", "api", "web", "files"] {
        let below = path.strip_prefix(b"/").and_then(|path| path.strip_prefix(name.as_bytes()));
        if below.is_some_and(|below| matches!(below.first(), None | Some(b'/'))) {
            return name;
        }
    }
    "-"
}

/// What the rule says of a path.
#[must_use]
pub fn verdict(path: &[u8]) -> String {
    match agree(path, route) {
        Ok(name) => format!("route {name}"),
        Err(refusal) => format!("refuse {}", refusal.label()),
    }
}

/// Checks one path.
///
/// # Errors
/// When the rule says something else than the row.
pub fn check(row: &Row) -> Result<()> {
    let verdict = verdict(&row.path);
    ensure!(verdict == row.verdict, "{} {}: {verdict}, not {}", row.name, show(&row.path), row.verdict);
    Ok(())
}

type OriginStep = fn(&[u8]) -> Vec<u8>;

/// What an origin may make of a path, written anew: each step that servers are known to
/// take, in every order of up to four. The rule must refuse whatever one of them leads astray.
pub fn origins(path: &[u8], mut see: impl FnMut(&[u8])) {
    let steps: [OriginStep; 6] = [decoded, undotted, backslashed, merged, without_parameters, cut];
    let mut seen = std::collections::BTreeSet::from([path.to_vec()]);
    let mut fresh: Vec<Vec<u8>> = vec![path.to_vec()];
    // An origin decodes once, and does each of the other steps no more than twice.
    let mut used = std::collections::BTreeMap::from([(path.to_vec(), 0_u8)]);
    for _ in 0..4 {
        let mut next = Vec::new();
        for from in fresh {
            let already = used.get(&from).copied().unwrap_or(0);
            for (number, step) in steps.iter().enumerate() {
                if number == 0 && already & 1 == 1 || number == 5 && already & 1 == 0 {
                    continue;
                }
                let to = step(&from);
                if seen.insert(to.clone()) {
                    see(&to);
                    used.insert(to.clone(), already | u8::from(number == 0));
                    next.push(to);
                }
            }
        }
        fresh = next;
    }
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path
            .get(at + 1..at + 3)
            .filter(|_| path[at] == b'%')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(path[at]);
                at += 1;
            }
        }
    }
    out
}

fn undotted(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    if matches!(segments.last(), Some(&b"." | &b"..")) {
        segments.push(b"");
    }
    for segment in segments {
        match segment {
            b"." => {}
            b".." => drop(kept.pop()),
            _ => kept.push(segment),
        }
    }
    [b"/", kept.join(&b'/').as_slice()].concat()
}

fn backslashed(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut out = path.to_vec();
    out.dedup_by(|a, b| *a == b'/' && *b == b'/');
    out
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default())
        .collect();
    segments.join(&b'/')
}

fn cut(path: &[u8]) -> Vec<u8> {
    path.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default().to_vec()
}

/// All labels of refusals.
#[must_use]
pub fn labels() -> Vec<&'static str> {
    Refusal::ALL.iter().map(|refusal| refusal.label()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::PATHS;
    use super::*;

    #[test]
    fn every_path_of_the_corpus_goes_where_it_says() -> Result<()> {
        let rows = read(PATHS)?;
        let names: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
        assert_eq!(names.len(), rows.len(), "two paths of one name");
        let wrong: Vec<_> =
            rows.iter().filter_map(|row| check(row).err()).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let hostile = rows.iter().filter(|row| row.verdict.starts_with("refuse")).count();
        assert!(hostile >= 132 && rows.len() >= 150, "{hostile} of {}", rows.len());
        for label in labels() {
            assert!(rows.iter().any(|row| row.verdict == format!("refuse {label}")), "no path for {label}");
        }
        Ok(())
    }

    #[test]
    fn no_step_that_an_origin_takes_leads_a_served_path_astray() -> Result<()> {
        for row in read(PATHS)?.iter().filter(|row| row.path.len() < 500) {
            let Some(name) = row.verdict.strip_prefix("route ") else { continue };
            origins(&row.path, |path| assert_eq!(route(path), name, "{}: {}", row.name, show(path)));
        }
        Ok(())
    }
}
