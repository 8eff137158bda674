//! Rules over the text of one source file.
//!
//! They look at words, not at meaning: good enough to keep the stages apart, and quick. What
//! follows a `#[cfg(test)]` line, and files that hold only tests, may import what they like.

/// The longest file.
const LONGEST: usize = 700;

/// What a part of the tree may not mention.
struct Stage {
    /// The part, as a path prefix.
    path: &'static str,
    /// The modules of its own crate that it may use; empty: any.
    modules: &'static [&'static str],
    /// Words that it may not use at all.
    words: &'static [&'static str],
}

/// What is pure knows no clock, no kernel, no network.
const STAGES: [Stage; 5] = [
    Stage {
        path: "lb-userspace/src/model/",
        modules: &["address", "model", "problem", "source"],
        words: &["kube", "tokio", "aya", "hyper", "Instant", "SystemTime", "rtnetlink"],
    },
    Stage {
        path: "lb-userspace/src/plan/",
        modules: &["plan", "model", "problem", "datapath"],
        words: &["kube", "k8s_openapi", "tokio", "aya", "hyper", "SystemTime", "rtnetlink"],
    },
    Stage {
        path: "lb-userspace/src/datapath/",
        modules: &["datapath", "plan", "problem"],
        words: &["kube", "k8s_openapi", "hyper"],
    },
    Stage {
        path: "lb-userspace/src/proxy/",
        modules: &["proxy", "model", "problem"],
        words: &["kube", "k8s_openapi", "aya"],
    },
    Stage {
        path: "lb-common/src/",
        modules: &[],
        words: &["std", "alloc", "aya", "aya_ebpf", "weir", "kube", "tokio", "libc", "anyhow"],
    },
];

/// Only the datapath talks to the kernel's BPF side.
const AYA_USERS: [&str; 4] = ["lb-userspace/src/datapath/", "lb-ebpf/", "tests/", "xtask/"];

/// The modules that may hold `unsafe`: what the kernel's side needs, the few raw system calls.
const UNSAFE: [&str; 10] = [
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/skb.rs",
    "lb-ebpf/src/xdp.rs",
    "lb-ebpf/src/sock.rs",
    "lb-ebpf/src/count.rs",
    "lb-userspace/src/datapath/pod.rs",
    "lb-userspace/src/datapath/sys.rs",
    "lb-userspace/src/netfilter/legacy.rs",
    "tests/src/netns.rs",
    "tests/src/netns/sys.rs",
];

/// What stands for work left undone. Spelled apart, so that this file passes.
const UNDONE: [&str; 5] = [
    concat!("#[", "ignore"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
];

/// Returns what is wrong with a file, one line for each finding.
pub(super) fn check(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let count = text.lines().count();
    if count > LONGEST {
        found.push(format!("{path}: {count} lines, at most {LONGEST}"));
    }
    if !is_test_file(path) && !opens_with_a_paragraph(text) {
        found.push(format!("{path}:1: a module opens with a `//!` paragraph"));
    }
    let tests_from = if is_test_file(path) { 0 } else { tests_start(text) };
    for (index, line) in text.lines().enumerate() {
        let mut tell = |what: &str| found.push(format!("{path}:{}: {what}", index + 1));
        if let Some(word) = UNDONE.iter().find(|word| line.contains(**word)) {
            tell(&format!("`{word}`: finish it or leave it out"));
        }
        let code = line.split("//").next().unwrap_or_default();
        if !UNSAFE.contains(&path) && uses_unsafe(code) {
            tell("`unsafe` outside of the modules that may hold it");
        }
        if index < tests_from {
            imports(path, code).iter().for_each(|what| tell(what));
        }
    }
    if let Some(stage) = stage(path) {
        // A group may run over several lines, so modules are looked for in the whole text.
        let code: String = text.lines().take(tests_from).map(without_comment).collect();
        for module in crate_modules(&code) {
            if !stage.modules.is_empty() && !stage.modules.contains(&module.as_str()) {
                found.push(format!("{path}: uses crate::{module}, which {} may not see", stage.path));
            }
        }
    }
    found
}

fn stage(path: &str) -> Option<&'static Stage> {
    STAGES.iter().find(|stage| path.starts_with(stage.path))
}

fn imports(path: &str, code: &str) -> Vec<String> {
    let words: Vec<&str> = words(code).collect();
    let mut found = Vec::new();
    if let Some(stage) = stage(path) {
        for word in stage.words.iter().filter(|word| is_path_head(code, &words, word)) {
            found.push(format!("`{word}` has no place in {}", stage.path));
        }
    }
    if !AYA_USERS.iter().any(|user| path.starts_with(user)) && is_path_head(code, &words, "aya") {
        found.push("`aya` has no place outside of the datapath".to_owned());
    }
    found
}

/// Tells whether a word is used: a type by its name, a crate as the head of a path.
fn is_path_head(code: &str, words: &[&str], word: &str) -> bool {
    let is_type = word.starts_with(char::is_uppercase);
    words.contains(&word)
        && (is_type
            || code.match_indices(word).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
                whole && code[at + word.len()..].starts_with("::")
            }))
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// Blocks, functions, impls; `#[unsafe(no_mangle)]` and lint names are no code of that kind.
fn uses_unsafe(code: &str) -> bool {
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"]
        .iter()
        .any(|form| code.match_indices(form).any(|(at, _)| !code[..at].ends_with(['"', '_', '`'])))
}

/// The names right below `crate::`, also in groups.
fn crate_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, head) in code.match_indices("crate::") {
        if code[..at].ends_with('$') {
            continue;
        }
        let rest = code[at + head.len()..].trim_start();
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group_heads(group)),
            None => modules.extend(words(rest).next().map(str::to_owned)),
        }
    }
    modules
}

/// The first name of each member of a group, up to its closing brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0_u32;
    let mut member = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(std::mem::take(&mut member)),
            _ => {}
        }
        if depth == 0 {
            member.push(c);
        }
    }
    heads.push(member);
    heads.iter().filter_map(|member| words(member).next().map(str::to_owned)).collect()
}

fn without_comment(line: &str) -> String {
    format!("{}\n", line.split("//").next().unwrap_or_default())
}

fn opens_with_a_paragraph(text: &str) -> bool {
    text.lines().find(|line| !line.trim().is_empty()).is_some_and(|line| line.starts_with("//!"))
}

/// The line where the tests of a file begin; its length when there are none.
fn tests_start(text: &str) -> usize {
    let mark = concat!("#[cfg(", "test)]");
    let mut lines = text.lines();
    let at = lines.position(|line| line.trim() == mark);
    // `#[cfg(test)] mod tests;` names a file, and more code may follow it.
    match at {
        Some(at) if !text.lines().nth(at + 1).is_some_and(|next| next.trim_end().ends_with(';')) => at,
        _ => text.lines().count(),
    }
}

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    name == "tests.rs"
        || name.ends_with("_tests.rs")
        || path.contains("/tests/")
        || path.starts_with("tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, code: &str) -> usize {
        check(path, &format!("//! Text.\n{code}\n")).len()
    }

    #[test]
    fn stages_see_only_what_comes_before_them() {
        for (path, code, wrong) in [
            ("lb-userspace/src/model/a.rs", "use crate::source::Objects;", 0),
            ("lb-userspace/src/model/a.rs", "use k8s_openapi::api::core::v1::Service;", 0),
            ("lb-userspace/src/model/a.rs", "use kube::Client;", 1),
            ("lb-userspace/src/model/a.rs", "use std::time::Instant;", 1),
            ("lb-userspace/src/model/a.rs", "use crate::plan::op::Op;", 1),
            ("lb-userspace/src/model/a.rs", "use crate::{problem::Problem, plan::{self, op::Op}};", 1),
            ("lb-userspace/src/model/a.rs", "use crate::{\n    problem::Problem,\n    datapath,\n};", 1),
            ("lb-userspace/src/plan/a.rs", "use crate::model::L4;\nuse lb_common::abi::Backend;", 0),
            ("lb-userspace/src/plan/a.rs", "tokio::spawn(x);", 1),
            ("lb-userspace/src/datapath/a.rs", "use crate::plan::op::Op;\nuse aya::Ebpf;", 0),
            ("lb-userspace/src/datapath/a.rs", "use crate::model::L4;", 1),
            ("lb-userspace/src/agent.rs", "use aya::Ebpf;", 1),
            ("lb-userspace/src/agent.rs", "use crate::datapath::bpf;", 0),
            ("lb-common/src/a.rs", "use core::mem;\nuse crate::abi::Addr;", 0),
            ("lb-common/src/a.rs", "use std::mem;", 1),
        ] {
            assert_eq!(findings(path, code), wrong, "{path}: {code}");
        }
    }

    #[test]
    fn comments_words_and_tests_are_no_imports() {
        let path = "lb-userspace/src/model/a.rs";
        assert_eq!(findings(path, "// as kube::Client does\nlet tokio = a.kube::<u8>();"), 0);
        let tests = format!("{}\nmod tests {{\n    use tokio::time;\n}}", concat!("#[cfg(", "test)]"));
        assert_eq!(findings(path, &tests), 0);
        let named = format!("{}\nmod tests;\nuse tokio::time;", concat!("#[cfg(", "test)]"));
        assert_eq!(findings(path, &named), 1, "code after a named test module is code");
        assert_eq!(findings("lb-userspace/src/model/tests.rs", "use tokio::time;"), 0);
    }

    #[test]
    fn unsafe_code_is_found_and_attributes_are_not() {
        let block = concat!("unsafe", " { f() }");
        assert_eq!(findings("lb-userspace/src/agent.rs", block), 1);
        assert_eq!(findings("lb-userspace/src/datapath/sys.rs", block), 0);
        assert_eq!(findings("lb-ebpf/src/main.rs", "#[unsafe(no_mangle)]"), 0);
    }

    #[test]
    fn undone_long_and_unexplained_files_are_found() {
        assert_eq!(findings("xtask/src/a.rs", &format!("fn f() {{ {}) }}", UNDONE[1])), 1);
        assert_eq!(findings("xtask/src/a.rs", UNDONE[0]), 1);
        assert_eq!(findings("xtask/src/a.rs", &"x;\n".repeat(LONGEST)), 1);
        assert_eq!(check("xtask/src/a.rs", "use std::fs;\n").len(), 1);
    }
}
