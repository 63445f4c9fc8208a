//! From slices to figures: medians, and what is added in the same round.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::contender::{CONTROL, NOTHING};

/// Controls that differ by more prove nothing.
pub const TOLERANCE: f64 = 0.03;

/// Nanoseconds by workload, contender and round.
#[derive(Default)]
pub struct Slices(BTreeMap<(String, String), BTreeMap<usize, f64>>);

/// Of one contender at one workload.
pub struct Figure {
    /// Median nanoseconds that one takes.
    pub ns: f64,
    /// Median of what it takes more than nothing does in the same round; its quartiles.
    pub added: [f64; 3],
    /// Median of what nothing takes in its parts.
    pub ratio: f64,
}

impl Slices {
    /// Keeps one.
    pub fn push(&mut self, workload: &str, contender: &str, round: usize, ns: f64) {
        let key = (workload.to_owned(), contender.to_owned());
        self.0.entry(key).or_default().insert(round, ns);
    }

    /// Against nothing in the same rounds.
    pub fn figure(&self, workload: &str, contender: &str) -> Option<Figure> {
        let of = |contender: &str| self.0.get(&(workload.to_owned(), contender.to_owned()));
        let (nothing, all) = (of(NOTHING)?, of(contender)?);
        let pairs: Vec<_> = all
            .iter()
            .filter_map(|(round, ns)| Some((*nothing.get(round)?, *ns)))
            .collect();
        let added: Vec<_> = pairs.iter().map(|(nothing, ns)| ns - nothing).collect();
        Some(Figure {
            ns: quantile(all.values().copied().collect(), 0.5),
            added: [0.25, 0.5, 0.75].map(|at| quantile(added.clone(), at)),
            ratio: quantile(
                pairs.iter().map(|(nothing, ns)| nothing / ns).collect(),
                0.5,
            ),
        })
    }

    /// Rounds in which it was measured.
    pub fn rounds(&self, workload: &str) -> usize {
        let key = (workload.to_owned(), NOTHING.to_owned());
        self.0.get(&key).map_or(0, BTreeMap::len)
    }

    /// How far nothing is from itself.
    pub fn control(&self, workload: &str) -> Option<f64> {
        let figure = self.figure(workload, CONTROL)?;
        Some((figure.ratio - 1.0).abs())
    }
}

impl Figure {
    /// As it is kept.
    pub fn json(&self, name: &str, title: &str) -> Value {
        let [low, added, high] = self.added.map(tenths);
        json!({
            "name": name,
            "title": title,
            "ns": tenths(self.ns),
            "added": added,
            "low": low,
            "high": high,
            "ratio": (self.ratio * 1e4).round() / 1e4,
        })
    }
}

/// Of numbers in any order; between two of them, what is on the line between.
pub fn quantile(mut all: Vec<f64>, at: f64) -> f64 {
    all.sort_by(f64::total_cmp);
    let place = all.len().saturating_sub(1) as f64 * at;
    let (Some(low), Some(high)) = (all.get(place as usize), all.get(place.ceil() as usize)) else {
        return f64::NAN;
    };
    low + (high - low) * place.fract()
}

/// The middle one.
pub fn median(all: &[f64]) -> f64 {
    quantile(all.to_vec(), 0.5)
}

/// Rounded, since more digits would say more than was measured.
pub fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
