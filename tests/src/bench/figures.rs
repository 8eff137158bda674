//! Medians, quartiles, the tables that are printed, and the order of rounds.

use serde_json::{Value, json};

/// Median and quartiles of a set of samples.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Spread {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of nothing: zeroes.
    pub(super) fn of(samples: &[f64]) -> Self {
        Self { low: quantile(samples, 0.25), median: quantile(samples, 0.5), high: quantile(samples, 0.75) }
    }

    pub(super) fn json(self) -> Value {
        json!({ "low": self.low, "median": self.median, "high": self.high })
    }
}

/// A quantile, between two samples where it falls between them.
pub(super) fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let (below, share) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * share
}

/// Prints rows in columns: the first left-aligned, all others right-aligned.
pub(super) fn print(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|n| width(n).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            if n == 0 {
                line += &format!("{cell}{pad}");
            } else {
                line += &format!("  {pad}{cell}");
            }
        }
        println!("{}", line.trim_end());
    }
}

/// Three significant digits where there are few, thousands where there are many.
pub(super) fn figure(value: f64) -> String {
    if value < 1000.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// SplitMix64: the order of a round.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn shuffle(&mut self, items: &mut [usize]) {
        for n in (1..items.len()).rev() {
            let other = (self.next() % (n as u64 + 1)) as usize;
            items.swap(n, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of(&[7.0]), Spread { low: 7.0, median: 7.0, high: 7.0 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }

    #[test]
    fn figures_have_thousands() {
        assert_eq!(
            [figure(17.25), figure(999.9), figure(1234.0), figure(1_234_567.8)],
            ["17.2", "999.9", "1,234", "1,234,568"]
        );
    }

    #[test]
    fn an_order_holds_everything_once() {
        let mut order: Vec<usize> = (0..4).collect();
        Random::new(1).shuffle(&mut order);
        order.sort_unstable();
        assert_eq!(order, [0, 1, 2, 3]);
    }
}
