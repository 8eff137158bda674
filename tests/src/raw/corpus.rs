//! Reads the corpus: its files say in their first lines how they are written.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// Numbers of the requirements that it is about.
    pub requirements: Vec<String>,
    /// What is expected, line by line.
    pub expect: Vec<String>,
    pub bytes: Vec<u8>,
    /// The lines that the bytes are written in.
    pub lines: Vec<String>,
}

impl Case {
    /// The last line of what is expected: the verdict.
    #[must_use]
    pub fn verdict(&self) -> &str {
        self.expect.last().map_or("", String::as_str)
    }

    /// The rest of each expected line that begins with `mark`, its escapes read.
    ///
    /// # Errors
    /// When an escape is none.
    pub fn marked(&self, mark: &str) -> Result<Vec<Vec<u8>>> {
        self.expect.iter().filter_map(|line| line.strip_prefix(mark)).map(unescape).collect()
    }
}

/// Reads the cases of a file.
///
/// # Errors
/// When it is not written as its first lines say, or two cases have one name.
pub fn read(text: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    let mut lines = text.lines().filter(|line| !line.starts_with("# ") && *line != "#");
    let mut names = BTreeSet::new();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, requirements) = line
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'))
            .with_context(|| format!("no case begins with {line:?}"))?;
        ensure!(names.insert(name), "two cases of the name {name}");
        let expect = lines.by_ref().take_while(|line| *line != "---").map(str::to_owned).collect();
        let (mut bytes, mut written) = (Vec::new(), Vec::new());
        for line in lines.by_ref().take_while(|line| *line != "---") {
            written.push(line.to_owned());
            // A lone backslash at the end: no line end.
            let (line, end) = match line.strip_suffix('\\') {
                Some(rest) if rest.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0 => {
                    (rest, &b""[..])
                }
                Some(_) | None => (line, &b"\r\n"[..]),
            };
            bytes.extend(unescape(line).with_context(|| name.to_owned())?);
            bytes.extend_from_slice(end);
        }
        cases.push(Case {
            name: name.to_owned(),
            requirements: requirements.split_whitespace().map(str::to_owned).collect(),
            expect,
            bytes,
            lines: written,
        });
    }
    Ok(cases)
}

/// Reads the escapes of a piece of text.
///
/// # Errors
/// At one that is none.
pub fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let kind = rest.chars().next().context("a backslash alone")?;
        rest = &rest[kind.len_utf8()..];
        match kind {
            '\\' => bytes.push(b'\\'),
            'r' => bytes.push(b'\r'),
            'n' => bytes.push(b'\n'),
            't' => bytes.push(b'\t'),
            's' => bytes.push(b' '),
            '0' => bytes.push(0),
            'x' => {
                let digits = rest.get(..2).context("no two digits")?;
                bytes.push(u8::from_str_radix(digits, 16)?);
                rest = &rest[2..];
            }
            '<' => {
                let (inner, after) = rest.split_once('>').context("no end of a repetition")?;
                let (what, count) = inner.rsplit_once('*').context("no count")?;
                bytes.extend(unescape(what)?.repeat(count.parse()?));
                rest = after;
            }
            _ => bail!("no escape \\{kind}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    Ok(bytes)
}

/// Bytes as the corpus writes them, cut short.
#[must_use]
pub fn show(bytes: &[u8]) -> String {
    let text = bytes
        .iter()
        .take(400)
        .flat_map(|byte| std::ascii::escape_default(*byte))
        .map(char::from)
        .collect::<String>();
    if bytes.len() > 400 { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_with_their_escapes() -> Result<()> {
        let text = "# head\n#\n\n[a] H1 H2\n> GET / x\\sy\npass\n---\nA\\0\\x41\\\\\n\nB\\<xy*2>\\\n---\n[b]\nwait\n---\n---\n";
        let cases = read(text)?;
        assert_eq!(cases[0].bytes, b"A\0A\\\r\n\r\nBxyxy");
        assert_eq!((cases[0].verdict(), cases[0].requirements.len()), ("pass", 2));
        assert_eq!(cases[0].marked("> ")?, [b"GET / x y"]);
        assert_eq!((cases[1].name.as_str(), cases[1].bytes.len()), ("b", 0));
        assert!(read("[a]\n---\n---\n[a]\n---\n---\n").is_err());
        assert!(unescape("\\q").is_err());
        Ok(())
    }
}
