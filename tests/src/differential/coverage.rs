//! How often each kind of case was asked.

use super::case::{Case, Cell, Door};
use super::world::State;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Debug, Default)]
pub(super) struct Coverage {
    cells: BTreeMap<Cell, usize>,
    nobodys: usize,
}

impl Coverage {
    pub(super) fn count(&mut self, case: &Case) {
        if case.cell.door == Door::Nobodys {
            self.nobodys += 1;
        } else {
            *self.cells.entry(case.cell).or_default() += 1;
        }
    }

    pub(super) fn cases(&self) -> usize {
        self.cells.values().sum::<usize>() + self.nobodys
    }

    fn of(&self, cell: Cell) -> usize {
        self.cells.get(&cell).copied().unwrap_or(0)
    }

    /// Cells that were asked less often.
    pub(super) fn thinner_than(&self, least: usize) -> Vec<String> {
        let thin = Cell::all().into_iter().filter(|cell| self.of(*cell) < least);
        thin.map(|cell| format!("{} {}: {}", row_name(cell), cell.state.name(), self.of(cell))).collect()
    }

    /// A row for each kind of address, policy, client and family; a column for each state of the
    /// endpoints; `-` where none can be.
    pub(super) fn table(&self) -> String {
        let mut text = format!("{:<44}", "address, policy, client, family");
        for state in State::ALL {
            // Writing to a string does not fail.
            let _ = write!(text, "{:>11}", state.name());
        }
        let mut rows: BTreeMap<String, BTreeMap<State, usize>> = BTreeMap::new();
        let all = Cell::all();
        for cell in &all {
            rows.entry(row_name(*cell)).or_default().insert(cell.state, self.of(*cell));
        }
        for (name, row) in rows {
            let _ = write!(text, "\n{name:<44}");
            for state in State::ALL {
                let count = row.get(&state).map_or_else(|| "-".into(), ToString::to_string);
                let _ = write!(text, "{count:>11}");
            }
        }
        let thinnest = all.iter().map(|cell| self.of(*cell)).min().unwrap_or(0);
        let _ = write!(
            text,
            "\n{} cells, {thinnest} cases in the thinnest; {} cases of addresses that nobody serves",
            all.len(),
            self.nobodys
        );
        text
    }
}

fn row_name(cell: Cell) -> String {
    let policy = if cell.local { "Local" } else { "Cluster" };
    let family = if cell.v6 { "IPv6" } else { "IPv4" };
    format!("{} {policy} {} {family}", cell.door.name(), cell.client.name())
}
