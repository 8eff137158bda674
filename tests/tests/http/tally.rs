//! Counts the cases of a requirement and tells the figure.

/// Cases that held, and those that did not.
#[derive(Debug)]
pub(crate) struct Tally {
    name: &'static str,
    cases: usize,
    failed: Vec<String>,
}

impl Tally {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, cases: 0, failed: Vec::new() }
    }

    /// Counts one case.
    pub(crate) fn case(&mut self, name: impl Into<String>, result: Result<(), String>) {
        self.cases += 1;
        if let Err(why) = result {
            self.failed.push(format!("{}: {why}", name.into()));
        }
    }

    /// Prints the figure.
    ///
    /// # Panics
    /// With every case that failed, or when there were fewer than expected.
    pub(crate) fn end(self, at_least: usize) {
        println!("{}: {} of {}", self.name, self.cases - self.failed.len(), self.cases);
        assert!(self.failed.is_empty(), "{}:\n{}", self.name, self.failed.join("\n"));
        assert!(self.cases >= at_least, "{}: only {} cases", self.name, self.cases);
    }
}
